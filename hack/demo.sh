#!/usr/bin/env bash
# From nothing to a session at work: cluster, images, Helm chart, sample, its live stream.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# `make test` runs the demo too, and holds the lock itself.
exec 7>>"$BASE/test.lock"
[ -n "${OPENCODE_OPERATOR_LOCKED:-}" ] || flock -n 7 || fail "another 'make test' or 'make demo' runs on this machine." "Wait for it, then run this again."

began=$SECONDS
sample=session-scripted
if [ -n "${ANTHROPIC_API_KEY:-}" ]; then
  sample=session-anthropic
elif [ -n "${OPENAI_API_KEY:-}" ]; then
  sample=session-openai
fi
# A real provider is out in the world: pods of the built-in cluster must be able to reach it.
[ "$sample" = session-scripted ] || export OPENCODE_OPERATOR_CLUSTER_EGRESS=1

hack/setup.sh 7>&-
deploy/images.sh build 7>&-
use_cluster 7>&-
deploy/images.sh load 7>&-
hack/install.sh 7>&-

kubectl() { command kubectl --namespace "$DEMO_NAMESPACE" "$@"; }
command kubectl create namespace "$DEMO_NAMESPACE" --dry-run=client -o yaml | command kubectl apply -f - >/dev/null
command kubectl label namespace "$DEMO_NAMESPACE" pod-security.kubernetes.io/enforce=restricted --overwrite >/dev/null
# A second demo begins anew: a session's prompt runs at most once ever.
kubectl delete opencodesession demo --ignore-not-found --wait --timeout=90s >/dev/null
secret() { # NAME KEY: the value comes on stdin, so that it is in no process list
  kubectl create secret generic "$1" --from-file="$2"=/dev/stdin --dry-run=client -o yaml | kubectl apply -f - >/dev/null
}
token=$(head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n')
printf '%s' "$token" | secret demo-token token
case $sample in
  session-anthropic) printf '%s' "$ANTHROPIC_API_KEY" | secret anthropic key ;;
  session-openai) printf '%s' "$OPENAI_API_KEY" | secret openai key ;;
  *)
    printf 'not-a-real-key' | secret scripted-key key
    sed "s#localhost/opencode-operator/scripted-model:dev#$(deploy/images.sh in-cluster scripted-model)#" \
      deploy/samples/scripted-model.yaml | kubectl apply -f - >/dev/null
    kubectl rollout status deployment/scripted-model --timeout=60s >/dev/null
    ;;
esac
say "kubectl apply -f deploy/samples/$sample.yaml"
applied=$SECONDS
kubectl apply -f "deploy/samples/$sample.yaml" >/dev/null
if ! timed "waiting for the session's pod" "$LOGS/demo-wait.log" "kubectl -n $DEMO_NAMESPACE describe opencodesession demo" \
  command kubectl --namespace "$DEMO_NAMESPACE" wait opencodesession/demo --for=condition=PodReady --timeout=120s; then
  kubectl get opencodesession,pods,pvc >&2
  exit 1
fi

FORWARD_PID=''
trap '[ -z "$FORWARD_PID" ] || kill "$FORWARD_PID" 2>/dev/null || true' EXIT
forward_port "$DEMO_NAMESPACE" demo 3003 "$LOGS/demo-forward.log"
say "--- the session's stream, $((SECONDS - applied)) s after apply ---"
OPENCODE_TOKEN=$token node hack/stream.mjs "http://127.0.0.1:$FORWARD_PORT" demo
say "--- the workspace ---"
kubectl exec demo -c agent -- sh -c 'cd /workspace && ls -la --ignore=.git'
say "--- the object ---"
kubectl get opencodesession demo -o wide

cat <<MSG

Done in $((SECONDS - began)) s. Go on with:
  eval "\$(deploy/local/cluster.sh env)"                                      # this cluster's kubectl and helm
  kubectl -n $DEMO_NAMESPACE describe opencodesession demo                    # what the operator says of it
  kubectl -n $DEMO_NAMESPACE exec -it demo -c agent -- bash                   # look around where the agent works
End it all: make cluster-down
MSG
