#!/usr/bin/env bash
# Runs the commands that README.md shows, as a reader would. A command there that nothing here runs is a failure.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ran=0
pass() {
  ran=$((ran + 1))
  printf 'ok %s\n' "$1"
}
# All lines of README's sh blocks, lines that go on joined.
commands() { awk '/^ *```sh$/ {on = 1; next} /^ *```$/ {on = 0} on' README.md | sed -E 's/^ +//' | sed -e ':a' -e '/\\$/N; s/\\\n *//; ta'; }

ns=readme-$RANDOM$RANDOM
pids=()
FORWARD_PID=''
# shellcheck disable=SC2317 # called by the trap
cleanup() {
  for pid in "${pids[@]}" $FORWARD_PID; do kill "$pid" 2>/dev/null || true; done
  kubectl delete namespace "$ns" --ignore-not-found --wait=false >/dev/null 2>&1 || true
}
trap cleanup EXIT
use_cluster
kubectl create namespace "$ns" >/dev/null
kubectl config set-context --current --namespace=default >/dev/null 2>&1 || true

forward_demo() {
  forward_port "$DEMO_NAMESPACE" demo 3003 "$LOGS/readme-forward.log"
  ENDPOINT=http://127.0.0.1:$FORWARD_PORT
  TOKEN=$(kubectl -n "$DEMO_NAMESPACE" get secret demo-token -o 'jsonpath={.data.token}' | base64 -d)
  export ENDPOINT TOKEN
}

while IFS= read -r command; do
  case $command in
    'make demo')
      OPENCODE_OPERATOR_LOCKED=1 make demo >"$LOGS/readme-demo.log" 2>&1
      grep -q '✓ complete' "$LOGS/readme-demo.log"
      grep -q 'greet.sh' "$LOGS/readme-demo.log"
      forward_demo
      ;;
    'make test') ;; # that is what runs this
    'deploy/images.sh build --tag '*) eval "$command" >"$LOGS/readme-images.log" 2>&1 ;;
    'REGISTRY='*) [ -n "${README_TEST_REGISTRY:-}" ] || printf 'note: no registry here to push to: %s\n' "$command" ;;
    'helm upgrade --install '*) eval "$command --dry-run=server" >"$LOGS/readme-helm.log" ;;
    'kubectl create secret generic anthropic '*) (export ANTHROPIC_API_KEY=not-a-key && eval "${command/kubectl/kubectl -n $ns}" >/dev/null) ;;
    'kubectl apply -f deploy/samples/session-anthropic.yaml') eval "${command/kubectl/kubectl -n $ns}" >/dev/null ;;
    'kubectl get opencodesessions -w')
      kubectl -n "$ns" wait opencodesession/demo --for=condition=SecretsResolved --timeout=120s >/dev/null
      timeout 2 kubectl -n "$ns" get opencodesessions -w | grep -q demo || true
      ;;
    'curl -N '*'Last-Event-ID'*)
      ID=$(curl -sN --max-time 60 -H "Authorization: Bearer $TOKEN" "$ENDPOINT/sessions/demo/stream" | sed -n 's/^id: //p' | sed -n 3p)
      export ID
      first=$(eval "${command%%#*}" 2>/dev/null | sed -n 's/^id: //p' | sed -n 1p)
      [ "${first##*-}" = 4 ] || fail "after event 3 came $first"
      ;;
    'curl -N '*) eval "${command%%#*}" 2>/dev/null | grep -q '^event: complete' ;;
    'curl -X POST '*) eval "$command" 2>/dev/null | grep -q '"session_id":"second"' ;;
    *) fail "README.md shows a command that hack/readme-test.sh does not run:" "$command" ;;
  esac
  pass "$command"
done < <(commands | grep -v '^$')

# make dev: the curl that it prints works, and its first event comes within a minute.
: >"$LOGS/readme-dev.log" # not the last run's lines
PORT=13103 PROXY_PORT=13104 OPENCODE_PORT=14196 MODEL_PORT=18188 make dev >>"$LOGS/readme-dev.log" 2>&1 &
pids+=($!)
for _ in $(seq 1200); do
  grep -q '^curl -N' "$LOGS/readme-dev.log" && break
  kill -0 "${pids[-1]}" 2>/dev/null || fail "make dev ended." "its log: $LOGS/readme-dev.log"
  sleep 0.5
done
began=$SECONDS
eval "timeout 120 $(grep '^curl -N' "$LOGS/readme-dev.log") -s" >"$LOGS/readme-dev-stream.log"
grep -q '^event: complete' "$LOGS/readme-dev-stream.log"
grep -qE 'ready in [0-9]+ s' "$LOGS/readme-dev.log"
say "make dev: the turn was over $((SECONDS - began)) s after it was ready"
pass "make dev"
make >"$LOGS/readme-make.log"
grep -q demo "$LOGS/readme-make.log"
pass "make"
printf 'test result: ok. %d passed; 0 failed;\n' "$ran"
