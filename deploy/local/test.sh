#!/usr/bin/env bash
# Proves what README.md promises of the built-in cluster: mended after anything, shared, never ended under somebody's hands, and
# nothing left behind. Takes a few minutes, needs root, and wants the machine's built-in cluster to be down.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CLUSTER=$HERE/cluster.sh
export OPENCODE_OPERATOR_CLUSTER=builtin
unset KUBECONFIG
WORK=$(mktemp -d)
# A state folder of its own; the cache is shared, or this would build for a quarter of an hour.
export OPENCODE_OPERATOR_STATE="$WORK/state"
STATE=$OPENCODE_OPERATOR_STATE/cluster

[ "$(id -u)" = 0 ] || { echo "error: this test needs root" >&2; exit 1; }
if [ -d /sys/class/net/opencode0 ]; then
  echo "error: a built-in cluster is on this machine; end it first: deploy/local/cluster.sh down" >&2
  exit 1
fi

FAILED=0
PASSED=0
ok() { PASSED=$((PASSED + 1)); printf 'ok    %s\n' "$1"; }
bad() {
  FAILED=$((FAILED + 1))
  printf 'FAIL  %s\n' "$1"
  shift
  printf '      %s\n' "$@"
}
# check WHAT CMD...: CMD must succeed.
check() {
  local what=$1
  shift
  if "$@" >"$WORK/out" 2>&1; then ok "$what"; else bad "$what" "$(tail -n 15 "$WORK/out")"; fi
}
# refused WHAT TEXT CMD...: CMD must fail and say TEXT.
refused() {
  local what=$1 text=$2
  shift 2
  if "$@" >"$WORK/out" 2>&1; then
    bad "$what: it was not refused"
  elif grep -qF -- "$text" "$WORK/out"; then
    ok "$what"
  else
    bad "$what: it does not say '$text'" "$(cat "$WORK/out")"
  fi
}

end() {
  # Also when a step above broke off: the machine is left as it was.
  "$CLUSTER" down >/dev/null 2>&1 || true
  rm -rf "$WORK"
}
trap end EXIT

# All that a cluster could leave behind, in a form that can be compared.
machine() {
  echo "mounts:"; awk '{print $5, $9}' /proc/self/mountinfo | sort
  echo "links:"; ip -o link show | awk '{print $2}' | sort
  echo "addresses:"; ip -4 -o addr show | awk '{print $2, $4}' | sort
  echo "routes:"; ip -4 route show table all | grep -v '^broadcast' | sort
  echo "tables:"; nft list tables | sort
  echo "namespaces:"; ip netns list | sort
  echo "cgroups:"; find /sys/fs/cgroup -type d | grep -E 'opencode-operator|kubepods|k8s\.io' || true
  echo "settings:"; sysctl net.ipv4.ip_forward vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops \
    kernel.keys.root_maxkeys kernel.keys.root_maxbytes net.netfilter.nf_conntrack_max 2>/dev/null
  echo "folders:"; find /run /var/lib /var/log /opt /etc /usr/libexec -maxdepth 1 -newer "$WORK/start" -type d \
    \( -name '*containerd*' -o -name 'cni*' -o -name 'kube*' -o -name containers -o -name pods -o -name netns -o -name nri -o -name cdi \) 2>/dev/null | sort
  echo "processes:"; pgrep -af "$WORK/state/" | grep -v "test.sh" | cut -d' ' -f2- || true
}

K() { "$STATE/../tools/kubectl" --kubeconfig "$STATE/admin.kubeconfig" "$@"; }

# A pod under Pod Security "restricted" with a dynamic volume that resolves a name of the cluster and reaches the API server.
pod_works() {
  local ns=t$RANDOM
  K create namespace "$ns" && K label namespace "$ns" pod-security.kubernetes.io/enforce=restricted
  K -n "$ns" wait --for=create --timeout=30s serviceaccount/default
  K -n "$ns" apply -f - <<X
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: c
      image: localhost/opencode-operator-local/busybox:1
      imagePullPolicy: Never
      command: [sh, -c, "echo written >/data/f && nc -lk -p 8080 -e echo HTTP/1.0 200 OK & sleep 600"]
      securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
      volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
X
  K -n "$ns" wait --for=condition=Ready pod/p --timeout=90s &&
    [ "$(K -n "$ns" exec p -- cat /data/f)" = written ] &&
    K -n "$ns" exec p -- nslookup kubernetes.default.svc.cluster.local &&
    K -n "$ns" exec p -- nc -w 3 10.96.0.1 443 </dev/null
}

pids() { cat "$STATE"/run/*.pid | cut -d' ' -f1 | sort -n; }
all_processes() {
  {
    pids
    grep -lzxF "OPENCODE_OPERATOR_CLUSTER_PROCESS=$STATE" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3
    find /sys/fs/cgroup/*/opencode-operator /sys/fs/cgroup/opencode-operator -name cgroup.procs -exec cat {} + 2>/dev/null
  } | sort -un
}

touch "$WORK/start"
sleep 0.1
# Loads the kernel's firewall and bridge parts before the first look, so that what they add for good is no difference.
machine >/dev/null
machine >"$WORK/before"

start=$SECONDS
check "up starts a cluster" "$CLUSTER" up
echo "      (took $((SECONDS - start)) s)"
check "a pod runs, with volume, DNS and API server" pod_works
check "status says it is well" "$CLUSTER" status

before=$(pids)
start=$SECONDS
check "up on a running cluster succeeds" "$CLUSTER" up
took=$((SECONDS - start))
if ((took <= 3)) && [ "$before" = "$(pids)" ]; then ok "... at once, and changes nothing"; else bad "... at once, and changes nothing" "took $took s"; fi

refused "a second cluster on the machine is refused" "another built-in cluster has this machine" \
  env OPENCODE_OPERATOR_STATE="$WORK/other" "$CLUSTER" up
check "... and the first one does not notice" "$CLUSTER" status

"$CLUSTER" hold -- sleep 300 &
holder=$!
until grep -q "^sleep" "/proc/$holder/cmdline" 2>/dev/null; do sleep 0.05; done
refused "down is refused while somebody works on the cluster, and names them" "pid $holder: sleep 300" "$CLUSTER" down
check "... while up still shares it" "$CLUSTER" up
kill -9 "$(cut -d' ' -f1 "$STATE/run/kube-scheduler.pid")"
sleep 0.2
refused "a damaged cluster is not cleared away under somebody's hands" "in use" "$CLUSTER" up
kill "$holder"
wait "$holder" 2>/dev/null || true
refused "status names what is damaged" "kube-scheduler is not running" "$CLUSTER" status
check "up mends a cluster of which one process died" "$CLUSTER" up
check "... and pods run in it" pod_works

# shellcheck disable=SC2046 # a list of numbers
kill -9 $(all_processes) 2>/dev/null || true
sleep 0.5
check "up mends a cluster whose every process was killed" "$CLUSTER" up
check "... and pods run in it" pod_works

# What a reboot looks like: records of another boot, and nothing alive.
# shellcheck disable=SC2046 # a list of numbers
kill -9 $(all_processes) 2>/dev/null || true
sleep 300 &
innocent=$!
sed -i "s/^[0-9]* /$innocent /" "$STATE/run/etcd.pid"
printf '%s 1 00000000-0000-0000-0000-000000000000\n' "$innocent" >"$STATE/run/kubelet.pid"
check "up mends after a reboot" "$CLUSTER" up
if kill -0 "$innocent" 2>/dev/null; then ok "... and leaves alone who got a recorded number since"; else bad "... and leaves alone who got a recorded number since"; fi
kill "$innocent" 2>/dev/null || true
wait "$innocent" 2>/dev/null || true

check "down ends it" "$CLUSTER" down
"$CLUSTER" up >/dev/null 2>&1 &
starter=$!
until [ -s "$STATE/run/kube-apiserver.pid" ]; do sleep 0.05; done
kill -9 "$starter"
wait "$starter" 2>/dev/null || true
check "up mends a start that was killed half-way" "$CLUSTER" up
check "... and pods run in it" pod_works
check "down ends it" "$CLUSTER" down

"$CLUSTER" up >"$WORK/one" 2>&1 &
one=$!
"$CLUSTER" up >"$WORK/two" 2>&1 &
two=$!
check "two ups at once: the first succeeds" wait "$one"
check "... the second succeeds" wait "$two"
if grep -qh "waiting for it" "$WORK/one" "$WORK/two" && grep -qh "runs already" "$WORK/one" "$WORK/two"; then
  ok "... one started it, the other waited and found it"
else
  bad "... one started it, the other waited and found it" "$(cat "$WORK/one" "$WORK/two")"
fi

# A cluster of KUBECONFIG: this very cluster plays it for another state folder.
cp "$STATE/admin.kubeconfig" "$WORK/theirs"
choice() { env -u OPENCODE_OPERATOR_CLUSTER OPENCODE_OPERATOR_STATE="$WORK/other" "$@"; }
check "a cluster of KUBECONFIG is used" choice env KUBECONFIG="$WORK/theirs" "$CLUSTER" up
if [ "$(choice "$CLUSTER" kubeconfig)" = "$WORK/theirs" ]; then ok "... as it is"; else bad "... as it is"; fi
check "... and down does nothing to it" choice "$CLUSTER" down
check "... as one sees" "$CLUSTER" status

# kind, played by two scripts: which commands are called is all that can be tested where no Docker runs.
mkdir "$WORK/fake"
printf '#!/bin/sh\nexit 0\n' >"$WORK/fake/docker"
printf '#!/bin/sh\necho "$@" >>%s/kind.calls\n' "$WORK" >"$WORK/fake/kind"
chmod +x "$WORK/fake"/*
check "kind is used where Docker works" choice env PATH="$WORK/fake:$PATH" "$CLUSTER" up
check "... it makes a cluster" grep -q "^create cluster --name opencode-operator --kubeconfig $WORK/other/kind.kubeconfig" "$WORK/kind.calls"
touch "$WORK/image.tar"
check "... takes images" choice env PATH="$WORK/fake:$PATH" "$CLUSTER" load "$WORK/image.tar"
check "... and ends it" choice env PATH="$WORK/fake:$PATH" "$CLUSTER" down
check "... with the right words" grep -q "^delete cluster --name opencode-operator" "$WORK/kind.calls"

check "down ends the cluster" "$CLUSTER" down
check "down again is no error" "$CLUSTER" down
machine >"$WORK/after"
# The kernel takes network devices and namespaces down a moment after their last user.
for _ in $(seq 20); do
  cmp -s "$WORK/before" "$WORK/after" && break
  sleep 0.5
  machine >"$WORK/after"
done
check "nothing is left on the machine" diff "$WORK/before" "$WORK/after"
if [ ! -e "$STATE" ]; then ok "... nor in the state folder"; else bad "... nor in the state folder"; fi

echo "$PASSED passed, $FAILED failed"
[ "$FAILED" = 0 ]
