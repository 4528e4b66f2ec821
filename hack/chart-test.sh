#!/usr/bin/env bash
# Tests the Helm chart: what it renders, what it refuses, and on the cluster install, upgrade, two replicas, uninstall, install
# again. Leaves the operator installed. Needs the operator's image in the cluster (make images).
# shellcheck disable=SC2317 # check() calls the tests by their names
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
if [ "${1:-}" != --held ]; then
  use_cluster
  exec deploy/local/cluster.sh hold -- "$ROOT/hack/chart-test.sh" --held
fi
eval "$(deploy/local/cluster.sh env)"

CHART=charts/opencode-operator
RELEASE=opencode-operator
NAMESPACE=$SYSTEM_NAMESPACE
CRD=opencodesessions.opencode-operator.dev
ACCOUNT=system:serviceaccount:$NAMESPACE:$RELEASE
USERS=chart-test-$$-$RANDOM
WAIT=120s
work=$(mktemp -d)
passed=0 failed=0

cleanup() {
  rm -rf "$work"
  kubectl delete namespace "$USERS" --ignore-not-found --wait=false >/dev/null 2>&1 || true
}
trap cleanup EXIT
trap 'exit 1' INT TERM

# --- the runner of this file's tests -----------------------------------------------------------------------------------------
finish() {
  if ((failed == 0)); then printf 'test result: ok. %d passed; 0 failed;\n' "$passed"; exit 0; fi
  printf 'test result: FAILED. %d passed; %d failed;\n' "$passed" "$failed"
  exit 1
}
# check NAME: runs the function of that name (_ for -) in a shell of its own, which ends at the first command that fails.
check() {
  local name=$1 start=$SECONDS rc
  # No condition around it: that would switch errexit off inside.
  set +e
  (set -e; "${name//-/_}") >"$work/out" 2>&1
  rc=$?
  set -e
  if ((rc == 0)); then
    passed=$((passed + 1))
    printf 'test %s ... ok (%d s)\n' "$name" $((SECONDS - start))
    return
  fi
  failed=$((failed + 1))
  printf 'test %s ... FAILED\n---- %s stdout ----\n' "$name" "$name"
  cat "$work/out"
}
# need NAME: what follows makes no sense without it.
need() {
  local before=$failed
  check "$1"
  ((failed == before)) || { dump; finish; }
}
dump() {
  printf -- '---- state of %s ----\n' "$NAMESPACE"
  helm --namespace "$NAMESPACE" history "$RELEASE" || true
  k get deployments,pods,leases -o wide || true
  k get events --field-selector type=Warning || true
  k logs --selector "app.kubernetes.io/instance=$RELEASE" --tail=30 --prefix || true
}

# --- tools -------------------------------------------------------------------------------------------------------------------
k() { kubectl --namespace "$NAMESPACE" "$@"; }
die() { printf '%s\n' "$*"; return 1; }
# equal WHAT EXPECTED GOT
equal() { [ "$2" = "$3" ] || die "$1: expected '$2', got '$3'"; }
# refused TEXT CMD...: CMD fails and says TEXT.
refused() {
  local text=$1
  shift
  if "$@" >"$work/refused" 2>&1; then die "not refused: $*"; return 1; fi
  grep -qF -- "$text" "$work/refused" || { cat "$work/refused"; die "refused, but without '$text': $*"; }
}
yaml() { helm template "$RELEASE" "$CHART" --namespace "$NAMESPACE" "$@"; }
# The objects as JSON, one after the other. Without a cluster: also of kinds that it does not know.
json() { kubectl annotate --local --filename - --output json chart-test=yes; }
# expect FILE: asserts on its objects, by JavaScript from stdin.
expect() {
  local script
  script=$(cat)
  node --input-type=module --eval "
    import assert from 'node:assert/strict';
    import fs from 'node:fs';
    const text = fs.readFileSync(process.argv[1], 'utf8').trimEnd();
    const all = text.split(/(?<=^})\n(?={)/m).map((t) => JSON.parse(t));
    const kinds = all.map((o) => o.kind).sort();
    const one = (kind, name = '$RELEASE') => {
      const found = all.filter((o) => o.kind === kind && o.metadata.name === name);
      assert.equal(found.length, 1, kind + ' ' + name);
      return found[0];
    };
    const flag = (d, name) => d.spec.template.spec.containers[0].args.filter((a) => a.startsWith('--' + name + '='))
      .map((a) => a.slice(name.length + 3));
    $script" -- "$@"
}
images() { deploy/images.sh chart-values; }
install() { # ARG...: as hack/install.sh does
  local args=() name image
  while read -r name image; do args+=(--set "images.$name=$image"); done < <(images)
  helm upgrade --install "$RELEASE" "${chart:-$CHART}" --namespace "$NAMESPACE" --create-namespace "${args[@]}" \
    --wait --timeout "$WAIT" "$@"
}
# Its hash: a failure is printed.
signing_key() { k get secret "$RELEASE-signing-key" -o jsonpath='{.data.key\.pem}' | sha256sum; }
# UIDs of the pods that run and are not about to end.
pods() {
  k get pods --selector "app.kubernetes.io/instance=$RELEASE" --field-selector status.phase=Running \
    -o go-template='{{range .items}}{{if not .metadata.deletionTimestamp}}{{.metadata.uid}} {{end}}{{end}}'
}
# until_true SECONDS CMD...
until_true() {
  local end=$((SECONDS + $1))
  shift
  until "$@" >"$work/try" 2>&1; do
    ((SECONDS < end)) || { cat "$work/try"; die "not so in time: $*"; return 1; }
    sleep 0.3
  done
}
session() { # NAME: YAML of a session that starts no pod
  cat <<Y
apiVersion: opencode-operator.dev/v1alpha1
kind: OpenCodeSession
metadata: {name: $1, namespace: $USERS}
spec:
  suspend: true
  providers: [{name: scripted, kind: compatible, endpoint: "http://model.invalid/v1", apiKeySecretRef: {name: none, key: key}}]
  model: {provider: scripted, name: scripted-1}
Y
}

# Every switch of the chart in its other position.
cat >"$work/all.yaml" <<'Y'
images:
  registry: registry.example.com:5000/team/opencode/
  tag: v9.9.9
  sidecar: registry.example.com/other/sidecar@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
  pullPolicy: Always
imagePullSecrets: [{name: pull-me}]
replicas: 3
binaries: copy
logLevel: info,operator=debug
sidecarLogLevel: warn
telemetry: {otlpEndpoint: "http://collector.example.com:4318"}
signingKey: {existingSecret: my-key, key: ed25519.pem}
trustedKeys: {existingConfigMap: gateway-keys, key: set.json}
crds: {keep: false}
serviceAccount: {name: my-account, annotations: {example.com/role: some-role}}
resources: {requests: {cpu: 50m, memory: 64Mi}, limits: {cpu: 1, memory: 256Mi}}
podAnnotations: {example.com/note: "yes"}
podLabels: {team: platform}
nodeSelector: {disk: fast}
tolerations: [{key: dedicated, operator: Exists, effect: NoSchedule}]
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/os, operator: In, values: [linux]}]}]
topologySpreadConstraints: [{maxSkew: 2, topologyKey: zone, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {team: platform}}}]
priorityClassName: system-cluster-critical
podDisruptionBudget: {maxUnavailable: 50%}
service: {annotations: {example.com/scrape: "true"}}
serviceMonitor: {enabled: true, labels: {release: prometheus}, interval: 15s, scrapeTimeout: 5s}
Y

# --- what it renders ---------------------------------------------------------------------------------------------------------
lint() {
  helm lint --strict "$CHART"
  helm lint --strict "$CHART" --values "$work/all.yaml"
}

renders_defaults() {
  yaml | json >"$work/default.json"
  expect "$work/default.json" <<'JS'
    assert.deepEqual(kinds, ['ClusterRole', 'ClusterRole', 'ClusterRole', 'ClusterRoleBinding', 'CustomResourceDefinition',
      'Deployment', 'Secret', 'Service', 'ServiceAccount']);
    assert.equal(one('CustomResourceDefinition', 'opencodesessions.opencode-operator.dev')
      .metadata.annotations['helm.sh/resource-policy'], 'keep');
    const d = one('Deployment');
    assert.equal(d.spec.replicas, 1);
    assert.equal(d.spec.strategy.type, 'Recreate');
    assert.deepEqual(flag(d, 'leader-election'), []);
    assert.deepEqual(flag(d, 'watch-namespace'), []);
    assert.deepEqual(flag(d, 'binaries'), ['auto']);
    const pod = d.spec.template.spec, c = pod.containers[0];
    assert.equal(pod.serviceAccountName, 'opencode-operator');
    assert.equal(one('ServiceAccount').automountServiceAccountToken, false);
    assert.equal(pod.securityContext.runAsNonRoot, true);
    assert.equal(pod.securityContext.runAsUser, 65532);
    assert.equal(pod.securityContext.seccompProfile.type, 'RuntimeDefault');
    assert.deepEqual(c.securityContext,
      {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: ['ALL']}});
    assert.deepEqual(c.resources, {requests: {cpu: '10m', memory: '32Mi'}, limits: {memory: '128Mi'}});
    assert.equal(c.livenessProbe.httpGet.path, '/healthz');
    assert.equal(c.readinessProbe.httpGet.path, '/readyz');
    const volume = pod.volumes.find((v) => v.name === 'signing-key').secret;
    assert.equal(volume.defaultMode, 0o440);
    assert.equal(pod.securityContext.fsGroup, 65532);
    assert.equal(volume.secretName, one('Secret', 'opencode-operator-signing-key').metadata.name);
    const mount = c.volumeMounts.find((m) => m.name === 'signing-key').mountPath;
    assert.deepEqual(flag(d, 'signing-key-file'), [mount + '/' + volume.items[0].path]);
    // The operator's cache takes objects with managed-by=opencode-operator for sessions' children.
    for (const o of all) assert.notEqual(o.metadata.labels['app.kubernetes.io/managed-by'], 'opencode-operator');
JS
}

default_images_are_those_that_images_sh_builds() {
  images >"$work/images"
  expect "$work/default.json" "$work/images" <<'JS'
    const built = Object.fromEntries(fs.readFileSync(process.argv[2], 'utf8').trim().split('\n').map((l) => l.split(' ')));
    const d = one('Deployment');
    const used = {operator: d.spec.template.spec.containers[0].image};
    for (const name of ['sidecar', 'runner', 'opencode', 'agent']) used[name] = flag(d, name + '-image')[0];
    assert.deepEqual(used, built);
JS
}

renders_every_switch() {
  yaml --values "$work/all.yaml" | json >"$work/all.json"
  expect "$work/all.json" <<'JS'
    assert.deepEqual(kinds, ['ClusterRole', 'ClusterRole', 'ClusterRole', 'ClusterRoleBinding', 'CustomResourceDefinition',
      'Deployment', 'Lease', 'PodDisruptionBudget', 'Role', 'RoleBinding', 'Service', 'ServiceAccount', 'ServiceMonitor']);
    assert.equal(one('CustomResourceDefinition', 'opencodesessions.opencode-operator.dev')
      .metadata.annotations['helm.sh/resource-policy'], undefined);
    const d = one('Deployment'), pod = d.spec.template.spec, c = pod.containers[0];
    assert.equal(d.spec.replicas, 3);
    assert.equal(d.spec.strategy.type, 'RollingUpdate');
    assert.equal(c.image, 'registry.example.com:5000/team/opencode/operator:v9.9.9');
    assert.equal(c.imagePullPolicy, 'Always');
    assert.deepEqual(pod.imagePullSecrets, [{name: 'pull-me'}]);
    assert.deepEqual(c.args.toSorted(), [
      '--agent-image=registry.example.com:5000/team/opencode/agent:v9.9.9',
      '--binaries=copy',
      '--image-pull-policy=Always',
      '--leader-election=true',
      '--lease-name=opencode-operator',
      '--listen=0.0.0.0:8080',
      '--opencode-image=registry.example.com:5000/team/opencode/opencode:v9.9.9',
      '--runner-image=registry.example.com:5000/team/opencode/runner:v9.9.9',
      '--sidecar-image=registry.example.com/other/sidecar@sha256:' + '0123456789abcdef'.repeat(4),
      '--sidecar-log-level=warn',
      '--sidecar-otlp-endpoint=http://collector.example.com:4318',
      '--signing-key-file=/etc/opencode-operator/signing-key/ed25519.pem',
      '--trusted-keys-file=/etc/opencode-operator/trusted-keys/set.json',
    ]);
    assert.equal(c.env.find((e) => e.name === 'LOG_LEVEL').value, 'info,operator=debug');
    assert.equal(pod.volumes.find((v) => v.name === 'signing-key').secret.secretName, 'my-key');
    assert.equal(pod.volumes.find((v) => v.name === 'trusted-keys').configMap.name, 'gateway-keys');
    assert.equal(pod.serviceAccountName, 'my-account');
    assert.equal(one('ServiceAccount', 'my-account').metadata.annotations['example.com/role'], 'some-role');
    for (const b of [one('ClusterRoleBinding'), one('RoleBinding', 'opencode-operator-leader')])
      assert.deepEqual(b.subjects, [{kind: 'ServiceAccount', name: 'my-account', namespace: 'opencode-operator-system'}]);
    assert.equal(c.resources.limits.memory, '256Mi');
    assert.equal(d.spec.template.metadata.annotations['example.com/note'], 'yes');
    assert.equal(d.spec.template.metadata.labels.team, 'platform');
    assert.deepEqual(pod.nodeSelector, {disk: 'fast'});
    assert.equal(pod.tolerations[0].key, 'dedicated');
    assert.ok(pod.affinity.nodeAffinity);
    assert.equal(pod.topologySpreadConstraints[0].topologyKey, 'zone');
    assert.equal(pod.priorityClassName, 'system-cluster-critical');
    assert.equal(one('PodDisruptionBudget').spec.maxUnavailable, '50%');
    assert.equal(one('Service').metadata.annotations['example.com/scrape'], 'true');
    const m = one('ServiceMonitor');
    assert.equal(m.metadata.labels.release, 'prometheus');
    assert.deepEqual(m.spec.endpoints, [{port: 'http', path: '/metrics', interval: '15s', scrapeTimeout: '5s'}]);
    assert.ok(one('Service').spec.ports.some((p) => p.name === 'http'));
JS
}

renders_what_is_switched_off() {
  yaml --set crds.install=false,rbac.create=false,serviceAccount.create=false,serviceAccount.name=mine,podDisruptionBudget.enabled=false \
    --set replicas=2,podSecurityContext.runAsUser=null | json >"$work/off.json"
  expect "$work/off.json" <<'JS'
    assert.deepEqual(kinds, ['Deployment', 'Lease', 'Secret', 'Service']);
    const pod = one('Deployment').spec.template.spec;
    assert.equal(pod.serviceAccountName, 'mine');
    assert.equal('runAsUser' in pod.securityContext, false);
    assert.equal(pod.topologySpreadConstraints[0].whenUnsatisfiable, 'ScheduleAnyway');
JS
  yaml --set rbac.aggregate=false | json >"$work/off.json"
  expect "$work/off.json" <<<"assert.equal(kinds.filter((k) => k === 'ClusterRole').length, 1);"
}

one_namespace_needs_no_cluster_role() {
  yaml --set watchNamespace=team-a,rbac.aggregate=false | json >"$work/one.json"
  expect "$work/one.json" <<'JS'
    assert.equal(kinds.some((k) => k.startsWith('ClusterRole')), false);
    assert.equal(one('Role').metadata.namespace, 'team-a');
    assert.equal(one('RoleBinding').metadata.namespace, 'team-a');
    assert.equal(one('RoleBinding').subjects[0].namespace, 'opencode-operator-system');
    assert.deepEqual(flag(one('Deployment'), 'watch-namespace'), ['team-a']);
JS
}

two_releases_share_no_name() {
  yaml | json >"$work/first.json"
  helm template second "$CHART" --namespace "$NAMESPACE" --set crds.install=false | json >"$work/second.json"
  expect "$work/first.json" "$work/second.json" <<'JS'
    const names = (o) => o.kind + ' ' + o.metadata.name;
    const second = fs.readFileSync(process.argv[2], 'utf8').trimEnd().split(/(?<=^})\n(?={)/m).map((t) => names(JSON.parse(t)));
    assert.ok(second.includes('Deployment second-opencode-operator'));
    assert.deepEqual(all.map(names).filter((n) => second.includes(n)), []);
JS
  # The longest name that Helm allows.
  local long
  long=$(printf 'r%.0s' {1..53})
  helm template "$long" "$CHART" --set replicas=2 | json >"$work/long.json"
  expect "$work/long.json" <<'JS'
    for (const o of all) if (o.kind !== 'CustomResourceDefinition') assert.ok(o.metadata.name.length <= 63, o.metadata.name);
JS
}

roles_have_no_wildcard_and_no_secret() {
  expect "$work/all.json" <<'JS'
    const rules = all.filter((o) => /Role$/.test(o.kind)).flatMap((o) => o.rules);
    assert.ok(rules.length > 5);
    for (const rule of rules) {
      const words = [...rule.apiGroups, ...rule.resources, ...rule.verbs];
      for (const bad of ['*', 'secrets', 'impersonate', 'escalate', 'bind', 'pods/exec', 'pods/attach', 'nodes/proxy'])
        assert.equal(words.includes(bad), false, JSON.stringify(rule));
    }
    for (const rule of one('Role', 'opencode-operator-leader').rules)
      assert.ok(rule.verbs.join() === 'create' || rule.resourceNames?.join() === 'opencode-operator', JSON.stringify(rule));
JS
  # A reason stands above each of the operator's rules.
  awk '/^  - apiGroups/ && previous !~ /^  #/ {print "no reason above: line " NR; bad = 1} {previous = $0} END {exit bad}' \
    "$CHART/files/rbac-rules.yaml"
}

# SET-ARGUMENT | what the message has to name
bad_values_are_refused() {
  local set text lines=0
  while IFS='|' read -r set text; do
    refused "$text" yaml --set "$set"
    lines=$((lines + 1))
  done <<'T'
replica=2|additional properties 'replica' not allowed
image.tag=v1|additional properties 'image' not allowed
images.operater=x|/images
replicas=two|/replicas
replicas=-1|/replicas
replicas=1.5|/replicas
images.registry=https://registry.example.com|/images/registry
images.tag=a b|/images/tag
images.tag=|/images/tag
images.operator=UPPER/case:x|/images/operator
images.pullPolicy=Sometimes|/images/pullPolicy
binaries=magic|value must be one of 'auto', 'image-volume', 'copy'
logLevel=loud|/logLevel
sidecarLogLevel=|/sidecarLogLevel
telemetry.otlpEndpoint=http://user:pw@collector:4318|/telemetry/otlpEndpoint
telemetry.otlpEndpoint=collector:4317|/telemetry/otlpEndpoint
watchNamespace=a\,b|/watchNamespace
signingKey.existingSecret=Not_A_Name|/signingKey/existingSecret
signingKey.key=../../etc/passwd|/signingKey/key
trustedKeys.key=a/b|/trustedKeys/key
crds.keep=maybe|/crds/keep
resources.limit.memory=1Gi|additional properties 'limit' not allowed
podAnnotations.n=1|/podAnnotations/n
imagePullSecrets[0].name=A_B|/imagePullSecrets/0/name
imagePullSecrets[0]=my-registry|/imagePullSecrets/0
podDisruptionBudget.maxUnavailable=0%|/podDisruptionBudget/maxUnavailable
podDisruptionBudget.maxUnavailable=0|/podDisruptionBudget/maxUnavailable
serviceMonitor.interval=often|/serviceMonitor/interval
serviceAccount.create=false|name an account of your own in serviceAccount.name
T
  ((lines == 29)) || die "only $lines lines were tried"
}

makes_an_ed25519_key() {
  local pem
  yaml -s templates/signing-key.yaml | sed -n 's/^  key.pem: //p' | base64 -d >"$work/key.pem"
  pem=$(head -1 "$work/key.pem")
  equal "first line" '-----BEGIN PRIVATE KEY-----' "$pem"
  openssl pkey -in "$work/key.pem" -noout -text | grep '^ED25519 Private-Key:'
}

# The table of docs/helm.md, values.yaml and values.schema.json name the same values; the table has their defaults.
documents_every_value() {
  mkdir -p "$work/print/templates"
  cp "$CHART/Chart.yaml" "$CHART/values.yaml" "$work/print/"
  printf '{{ .Values | toJson }}\n' >"$work/print/templates/values.yaml"
  helm template print "$work/print" | sed '/^---$/d; /^#/d' >"$work/values.json"
  expect "$work/values.json" "$CHART/values.schema.json" docs/helm.md <<'JS'
    const schema = JSON.parse(fs.readFileSync(process.argv[2], 'utf8'));
    const inSchema = (s, path = []) => s.additionalProperties === false
      ? Object.entries(s.properties).flatMap(([k, v]) => inSchema(v, [...path, k])) : [path.join('.')];
    const names = inSchema(schema).filter((n) => n !== 'global').sort();
    const value = (name) => name.split('.').reduce((v, k) => v?.[k], all[0]);
    const table = Object.fromEntries([...fs.readFileSync(process.argv[3], 'utf8').matchAll(/^\| `([^`]+)` \| (?:`([^`]*)`)? ?\|/gm)]
      .map((m) => [m[1], m[2]]));
    assert.deepEqual(Object.keys(table).sort(), names, 'docs/helm.md and values.schema.json');
    for (const name of names) assert.notEqual(value(name), undefined, 'values.yaml lacks ' + name);
    const top = new Set(names.map((n) => n.split('.')[0]));
    assert.deepEqual(Object.keys(all[0]).filter((k) => !top.has(k)), []);
    for (const name of names) {
      const v = value(name);
      const shown = v === '' ? undefined : typeof v === 'string' ? v : JSON.stringify(v);
      // Objects are described in words.
      if (typeof v !== 'object' || Object.keys(v).length === 0) assert.equal(table[name], shown, 'default of ' + name);
    }
JS
}

# --- on the cluster ----------------------------------------------------------------------------------------------------------
namespaces() {
  local namespace
  for namespace in "$NAMESPACE" "$USERS"; do
    kubectl create namespace "$namespace" --dry-run=client -o yaml | kubectl apply -f -
    kubectl label namespace "$namespace" --overwrite pod-security.kubernetes.io/{enforce,warn}=restricted
  done
}

# Also: nothing that Pod Security warns of, in a namespace labelled restricted.
server_accepts_what_is_rendered() {
  local values
  for values in "$CHART/values.yaml" "$work/all.yaml"; do
    # Under another name, so that nothing that is there takes part.
    helm template chart-test "$CHART" --namespace "$NAMESPACE" --values "$values" --set serviceMonitor.enabled=false |
      kubectl apply --server-side --force-conflicts --dry-run=server -f - 2>&1 | tee "$work/dry-run"
    if grep -qi '^warning' "$work/dry-run"; then die "a warning with $values"; fi
  done
}

# An older chart, whose CRD knows one column less by its name.
installs_an_older_chart() {
  cp -r "$CHART" "$work/older"
  sed -i 's/^      name: Activity$/      name: Doing/' "$work/older/files/crds.yaml"
  # The CRD may be there from a release that is gone, or from kubectl.
  chart=$work/older install --take-ownership --force-conflicts
  crd_has_column Doing
  k rollout status deployment/"$RELEASE" --timeout="$WAIT"
  signing_key >"$work/key.before"
  pods >"$work/pods.before"
  session kept | kubectl create -f -
  kubectl --namespace "$USERS" get opencodesession kept -o jsonpath='{.metadata.uid}' >"$work/session.uid"
}
crd_has_column() { kubectl get crd "$CRD" -o jsonpath='{.spec.versions[*].additionalPrinterColumns[*].name}' | grep -w "$1"; }

operator_works_with_these_permissions() {
  # It writes a status only after it has read, and its log names what RBAC does not let it do.
  until_true 30 session_is_observed
  if k logs deployment/"$RELEASE" | grep 'forbidden: User'; then die "the operator lacks a permission"; fi
}
session_is_observed() { [ -n "$(kubectl --namespace "$USERS" get opencodesession kept -o jsonpath='{.status.observedGeneration}')" ]; }

service_serves_metrics() {
  kubectl get --raw "/api/v1/namespaces/$NAMESPACE/services/http:$RELEASE:http/proxy/metrics" | grep '^opencode_operator_'
}

# may yes|no VERB RESOURCE [ARG...]
may() {
  local expected=$1 got
  shift
  got=$(kubectl auth can-i "$@" --as="${as:-$ACCOUNT}" 2>/dev/null || true)
  [ "$got" = "$expected" ] || die "${as:-$ACCOUNT}: $*: expected $expected, got $got"
}
operator_may_do_this_and_no_more() {
  local verb resource
  for verb in get list watch create update patch delete deletecollection; do
    may no "$verb" secrets --all-namespaces
    may no "$verb" secrets --namespace "$NAMESPACE"
    may no "$verb" configmaps --all-namespaces
    may no "$verb" serviceaccounts --all-namespaces
    may no "$verb" clusterroles
    may no "$verb" leases --namespace kube-system
  done
  may no '*' '*'
  may no create pods --subresource=exec --all-namespaces
  may no create serviceaccounts --subresource=token --all-namespaces
  may no patch opencodesessions --all-namespaces
  may no update opencodesessions --all-namespaces
  may no delete opencodesessions --all-namespaces
  may no delete persistentvolumeclaims --all-namespaces
  may no get nodes
  for verb in list watch create patch delete; do may yes "$verb" pods --all-namespaces; done
  for verb in list watch create patch; do may yes "$verb" persistentvolumeclaims --all-namespaces; done
  for verb in list watch; do may yes "$verb" opencodesessions.opencode-operator.dev --all-namespaces; done
  may yes patch opencodesessions.opencode-operator.dev --subresource=status --all-namespaces
  may yes patch pods --subresource=resize --all-namespaces
  may yes create events.events.k8s.io --all-namespaces
  # Everything, for reading; and nothing in it that is not in the file.
  kubectl auth can-i --list --as="$ACCOUNT" --namespace "$USERS" --no-headers | sort | tee "$work/can-i"
  resource=$(awk '$1 !~ /^\[|^selfsubject/ {print $1}' "$work/can-i" | sort | paste -sd' ')
  equal "resources it has to do with" "events.events.k8s.io opencodesessions.opencode-operator.dev \
opencodesessions.opencode-operator.dev/finalizers opencodesessions.opencode-operator.dev/status persistentvolumeclaims pods pods/resize" "$resource"
}

users_roles_cover_sessions() {
  local role
  for role in view edit admin; do
    kubectl --namespace "$USERS" create rolebinding "test-$role" --clusterrole="$role" --user="test-$role"
  done
  # Aggregation is the work of a controller.
  as=test-admin until_true 20 may yes create opencodesessions.opencode-operator.dev --namespace "$USERS"
  for role in view edit admin; do
    as=test-$role may yes watch opencodesessions.opencode-operator.dev --namespace "$USERS"
    as=test-$role may no patch opencodesessions.opencode-operator.dev --subresource=status --namespace "$USERS"
    as=test-$role may no list opencodesessions.opencode-operator.dev --namespace "$NAMESPACE"
  done
  as=test-view may no create opencodesessions.opencode-operator.dev --namespace "$USERS"
  as=test-view may no delete opencodesessions.opencode-operator.dev --namespace "$USERS"
  as=test-edit may yes delete opencodesessions.opencode-operator.dev --namespace "$USERS"
}

# The session that NOTES show is one that the API server takes.
notes_show_what_to_run_next() {
  helm --namespace "$NAMESPACE" get notes "$RELEASE" | tee "$work/notes"
  grep -q 'kubectl .*create secret generic anthropic' "$work/notes"
  grep -q 'get ocs' "$work/notes"
  grep -q 'Uninstalling .* leaves the CustomResourceDefinition' "$work/notes"
  sed -n '/^  apiVersion/,/^  YAML/{/^  YAML/d; s/^  //; p}' "$work/notes" >"$work/notes.yaml"
  kubectl --namespace "$USERS" create --dry-run=server -f "$work/notes.yaml"
}

upgrades() {
  install --set logLevel=debug
  k rollout status deployment/"$RELEASE" --timeout="$WAIT"
  equal "the signing key" "$(cat "$work/key.before")" "$(signing_key)"
  pods >"$work/pods.after"
  [ -s "$work/pods.after" ] || die "no pod runs"
  if [ "$(cat "$work/pods.before")" = "$(cat "$work/pods.after")" ]; then die "the pod was not replaced"; fi
  equal "log level" debug "$(k get deployment "$RELEASE" -o jsonpath='{.spec.template.spec.containers[0].env[?(@.name=="LOG_LEVEL")].value}')"
}
upgrades_the_crd() {
  crd_has_column Activity
  if crd_has_column Doing; then die "the old column is still there"; fi
  kubectl get crd "$CRD" -o json >"$work/crd.live"
  kubectl replace --dry-run=server -f "$CHART/files/crds.yaml" -o json >"$work/crd.file"
  expect "$work/crd.live" "$work/crd.file" <<<"assert.deepEqual(all[0].spec, JSON.parse(fs.readFileSync(process.argv[2], 'utf8')).spec)"
}
same_upgrade_again_changes_nothing() {
  local generation
  generation=$(k get deployment "$RELEASE" -o jsonpath='{.metadata.generation}')
  install --set logLevel=debug
  equal "generation of the deployment" "$generation" "$(k get deployment "$RELEASE" -o jsonpath='{.metadata.generation}')"
  equal "pods" "$(cat "$work/pods.after")" "$(pods)"
  equal "the signing key" "$(cat "$work/key.before")" "$(signing_key)"
}
refused_upgrade_changes_nothing() {
  local revision
  revision=$(k get secrets --selector owner=helm -o name | wc -l)
  refused /binaries install --set binaries=magic
  equal "revisions" "$revision" "$(k get secrets --selector owner=helm -o name | wc -l)"
  equal "pods" "$(cat "$work/pods.after")" "$(pods)"
}

# As on clusters before 1.36, whose pods cannot mount images.
binaries_are_copied_into_the_pod() {
  install --set binaries=copy
  k rollout status deployment/"$RELEASE" --timeout="$WAIT"
  session copied | sed '/suspend: true/d' | kubectl create -f -
  kubectl --namespace "$USERS" wait opencodesession/copied --for=condition=AgentReady --timeout=240s
  equal "mounted images" "" "$(kubectl --namespace "$USERS" get pod copied -o jsonpath='{.spec.volumes[*].image.reference}')"
  kubectl --namespace "$USERS" get pod copied -o jsonpath='{.spec.initContainers[*].name}' | grep -w install-opencode
  kubectl --namespace "$USERS" delete opencodesession copied --timeout=120s
}

lease_holder() { k get lease "$RELEASE" -o jsonpath='{.spec.holderIdentity}'; }
lease_is_held_by_another_pod_than() {
  local holder
  holder=$(lease_holder)
  [ -n "$holder" ] && [ "$holder" != "$1" ] && k get pod "$holder" -o name
}
two_replicas_take_turns() {
  local holder
  install --set replicas=2
  k rollout status deployment/"$RELEASE" --timeout="$WAIT"
  equal "pods that run" 2 "$(pods | wc -w)"
  equal "disruptions allowed by the budget" 1 "$(k get poddisruptionbudget "$RELEASE" -o jsonpath='{.spec.maxUnavailable}')"
  until_true 30 lease_is_held_by_another_pod_than nobody
  holder=$(lease_holder)
  k delete pod "$holder" --wait=false
  # A lease given back is taken in far less than its 15 s; one that is not, after them.
  until_true 60 lease_is_held_by_another_pod_than "$holder"
  # A Lease that somebody deleted is made anew by the next pod.
  k delete lease "$RELEASE"
  k delete pods --selector "app.kubernetes.io/instance=$RELEASE"
  until_true 60 lease_is_held_by_another_pod_than nobody
  k rollout status deployment/"$RELEASE" --timeout="$WAIT"
}
back_to_one_replica() {
  install
  k rollout status deployment/"$RELEASE" --timeout="$WAIT"
  equal "strategy" Recreate "$(k get deployment "$RELEASE" -o jsonpath='{.spec.strategy.type}')"
  k get leases,poddisruptionbudgets,roles --selector "app.kubernetes.io/instance=$RELEASE" -o name >"$work/left"
  equal "Lease, PDB and leader's Role" "" "$(cat "$work/left")"
  until_true 30 one_pod_runs
  equal "the signing key" "$(cat "$work/key.before")" "$(signing_key)"
}
one_pod_runs() { [ "$(pods | wc -w)" = 1 ]; }

session_is_the_same() {
  equal "UID of the session" "$(cat "$work/session.uid")" "$(kubectl --namespace "$USERS" get opencodesession kept -o jsonpath='{.metadata.uid}')"
}
left_in_the_namespace() {
  k get "$(kubectl api-resources --namespaced --verbs=list -o name | grep -v '^events' | paste -sd,)" -o name 2>"$work/err" |
    { grep -vxE 'configmap/kube-root-ca.crt|serviceaccount/default' || true; }
}
left_in_the_cluster() {
  kubectl get "$(kubectl api-resources --namespaced=false --verbs=list -o name | paste -sd,)" \
    --selector "app.kubernetes.io/instance=$RELEASE" -o name
}
nothing_is_left_in_the_namespace() { left_in_the_namespace >"$work/left" && [ ! -s "$work/left" ]; }
uninstalls_all_but_sessions() {
  # The same questions find something before.
  left_in_the_namespace | grep '^secret/opencode-operator-signing-key$'
  left_in_the_cluster | grep '^clusterrolebinding'
  helm --namespace "$NAMESPACE" uninstall "$RELEASE" --wait --timeout "$WAIT"
  session_is_the_same
  until_true 60 nothing_is_left_in_the_namespace || { cat "$work/left" "$work/err"; return 1; }
  left_in_the_cluster >"$work/left"
  equal "cluster-wide objects" "customresourcedefinition.apiextensions.k8s.io/$CRD" "$(cat "$work/left")"
}
installs_again() {
  install
  k rollout status deployment/"$RELEASE" --timeout="$WAIT"
  session_is_the_same
  upgrades_the_crd
}

check lint
check renders-defaults
check default-images-are-those-that-images-sh-builds
check renders-every-switch
check renders-what-is-switched-off
check one-namespace-needs-no-cluster-role
check two-releases-share-no-name
check roles-have-no-wildcard-and-no-secret
check bad-values-are-refused
check makes-an-ed25519-key
check documents-every-value
need namespaces
check server-accepts-what-is-rendered
need installs-an-older-chart
check operator-works-with-these-permissions
check service-serves-metrics
check operator-may-do-this-and-no-more
check users-roles-cover-sessions
check notes-show-what-to-run-next
need upgrades
check upgrades-the-crd
check same-upgrade-again-changes-nothing
check refused-upgrade-changes-nothing
check binaries-are-copied-into-the-pod
check two-replicas-take-turns
need back-to-one-replica
check uninstalls-all-but-sessions
need installs-again
((failed == 0)) || dump
finish
