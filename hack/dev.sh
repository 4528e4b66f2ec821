#!/usr/bin/env bash
# Sidecar, runner, OpenCode and scripted model as plain processes of one user: no cluster, no isolation.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
hack/setup.sh
take_sources
timed "building" "$LOGS/dev-build.log" "mend what cargo names" in_sources cargo build --locked -p sidecar -p runner -p scripted-model
leave_sources
opencode=$(deploy/images.sh opencode)
bin=$CARGO_TARGET_DIR/debug

dir=$(mktemp -d "${TMPDIR:-/tmp}/opencode-dev.XXXXXX")
mkdir -p "$dir"/{workspace,home,tmp,config,keys/scripted,journal,run}
pids=()
# shellcheck disable=SC2317 # called by the trap
cleanup() {
  # The runner ends OpenCode and its tools; the sidecar ends its turns.
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 0' INT TERM

port=${PORT:-3003} proxy_port=${PROXY_PORT:-3004} opencode_port=${OPENCODE_PORT:-4096} model_port=${MODEL_PORT:-8088}
token=$(head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n')
printf 'not-a-real-key' >"$dir/keys/scripted/key"
cat >"$dir/config/config.json" <<JSON
{"name": "dev", "namespace": "dev", "uid": "dev",
 "providers": [{"name": "scripted", "kind": "compatible", "endpoint": "http://127.0.0.1:$model_port/v1"}],
 "model": {"provider": "scripted", "name": "scripted-1"}}
JSON

say "no isolation here: everything runs as $(id -un), and tools could read the sidecar's files. For real keys use a cluster."
started=$SECONDS
"$bin/scripted-model" --listen "127.0.0.1:$model_port" >"$dir/model.log" 2>&1 &
pids+=($!)
env RUNNER_SOCKET="$dir/run/runner.sock" WORKSPACE_DIR="$dir/workspace" HOME="$dir/home" TMPDIR="$dir/tmp" \
  "$bin/opencode-runner" >"$dir/runner.log" 2>&1 &
pids+=($!)
env HOST=127.0.0.1 PORT="$port" PROXY_PORT="$proxy_port" OPENCODE_PORT="$opencode_port" WORKSPACE_DIR="$dir/workspace" \
  AGENT_HOME="$dir/home" CONFIG_DIR="$dir/config" PROVIDER_KEYS_DIR="$dir/keys" JOURNAL_DIR="$dir/journal" \
  RUNNER_SOCKET="$dir/run/runner.sock" OPENCODE_PROGRAM="$opencode" OPENCODE_SHARED_SECRET="$token" \
  "$bin/opencode-sidecar" >"$dir/sidecar.log" 2>&1 &
pids+=($!)
until curl -sf -o "$dir/ready.json" "http://127.0.0.1:$port/ready"; do
  for pid in "${pids[@]}"; do
    kill -0 "$pid" 2>/dev/null || { tail -n 5 "$dir"/*.log >&2; fail "a process ended; its log is above."; }
  done
  ((SECONDS - started < 60)) || { tail -n 5 "$dir"/*.log >&2; fail "not ready after 60 s; the logs are above."; }
  sleep 0.1
done
curl -sf -X POST "http://127.0.0.1:$port/sessions" -H "Authorization: Bearer $token" -H 'Content-Type: application/json' \
  -d '{"session_id": "first", "prompt": "SCENARIO:demo Show me what you can do."}' >"$dir/created.json"
say "ready in $((SECONDS - started)) s; the session \"first\" is at work. Its events:"
say ""
printf 'curl -N -H "Authorization: Bearer %s" http://127.0.0.1:%s/sessions/first/stream\n' "$token" "$port"
say ""
say "logs: $dir/*.log    workspace: $dir/workspace    end: Ctrl-C"
wait -n "${pids[@]}" || true
say "a process ended:"
tail -n 3 "$dir"/*.log >&2
exit 1
