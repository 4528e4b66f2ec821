#!/usr/bin/env bash
# Real clients against the real sidecar: curl, Chromium's EventSource, Python's httpx-sse, npm's eventsource. Each is cut many
# times, in mid-event as well, resumes with Last-Event-ID and must get every event once and in order.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
hack/setup.sh clients
here=$ROOT/hack/clients venv=$CACHE/tools/clients-venv modules=$CACHE/tools/clients-npm
dir=$(mktemp -d "${TMPDIR:-/tmp}/opencode-clients.XXXXXX")
pids=()
# shellcheck disable=SC2317 # called by the trap
cleanup() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

cp "$here"/*.mjs "$dir"
ln -s "$modules/node_modules" "$dir/node_modules"
ports=$(node -e 'const s=[0,0,0,0].map(()=>require("net").createServer().listen(0,"127.0.0.1"));
  setTimeout(()=>{console.log(s.map((x)=>x.address().port).join(" "));process.exit()},100)')
read -r port proxy opencode model <<<"$ports"
PORT=$port PROXY_PORT=$proxy OPENCODE_PORT=$opencode MODEL_PORT=$model hack/dev.sh >"$dir/dev.out" 2>"$dir/dev.err" &
pids+=($!)
until grep -q '^curl' "$dir/dev.out"; do
  kill -0 "${pids[0]}" 2>/dev/null || { tail -20 "$dir/dev.err" >&2; fail "sidecar and agent did not start."; }
  sleep 0.2
done
OPENCODE_TOKEN=$(sed -nE 's/.*Bearer ([^"]+)".*/\1/p' "$dir/dev.out")
export OPENCODE_TOKEN
base=http://127.0.0.1:$port

(cd "$dir" && exec node cut.mjs "$base" "$dir" >"$dir/cut.port") &
pids+=($!)
until [ -s "$dir/cut.port" ]; do sleep 0.05; done
cut=http://127.0.0.1:$(cat "$dir/cut.port")

begin() {
  curl -sf -o /dev/null -X POST "$base/sessions" -H "Authorization: Bearer $OPENCODE_TOKEN" -H 'Content-Type: application/json' \
    -d "{\"session_id\": \"$1\", \"prompt\": \"$2\"}"
}
browse() {
  local session=$1 chromium
  timeout 120 chromium --headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking \
    --user-data-dir="$dir/profile-$session" "$cut/page/$session" >"$dir/chromium-$session.log" 2>&1 &
  chromium=$!
  for _ in $(seq 600); do
    [ ! -s "$dir/browser-$session.json" ] || break
    kill -0 "$chromium" 2>/dev/null || break
    sleep 0.2
  done
  kill "$chromium" 2>/dev/null || true
  wait "$chromium" 2>/dev/null || true
  [ -s "$dir/browser-$session.json" ] || { tail -5 "$dir/chromium-$session.log" >&2; return 1; }
}

# All at once, while the turn runs: slow words, so that cuts fall into what is live and into what is stored.
begin live "SCENARIO:slow 250 20"
clients=()
run() {
  local name=$1
  shift
  ( cd "$dir" && exec timeout 150 "$@" ) >"$dir/$name-live.json" 2>"$dir/$name.err" &
  clients+=("$name:$!")
}
run curl "$here/curl.sh" "$cut/stream/live?client=curl"
run node node node.mjs "$cut/stream/live?client=node"
run python "$venv/bin/python" "$here/python.py" "$cut/stream/live?client=python"
browse live || fail "Chromium did not read the stream to its end."
for client in "${clients[@]}"; do
  wait "${client#*:}" || { tail -5 "$dir/${client%:*}.err" >&2; fail "${client%:*} did not read the stream to its end."; }
done
node "$dir/stored.mjs" "$base" live >"$dir/live.json"
for name in curl node python browser; do
  node "$dir/compare.mjs" "$dir/$name-live.json" "$dir/live.json" "$name" || fail "$name lost, doubled or changed an event."
  cuts=$(curl -sf "$cut/cuts/live?client=$name")
  say "$name: cut $cuts times"
  ((cuts >= 20)) || fail "$name was cut $cuts times only: that proves little."
done

# Our event is called error, and so is EventSource's own: a page tells them apart by their class.
begin fails "SCENARIO:err401"
browse fails || fail "Chromium did not read the failed turn."
node "$dir/stored.mjs" "$base" fails >"$dir/fails.json"
node "$dir/compare.mjs" "$dir/browser-fails.json" "$dir/fails.json" "browser, a turn that fails" || fail "the failed turn's events differ."
node -e '
const { got, notes } = JSON.parse(require("fs").readFileSync(process.argv[1]));
const ours = got.filter((e) => e.event === "error" && JSON.parse(e.data).code === "provider_auth");
if (ours.length !== 1 || notes.length < 1) throw new Error(JSON.stringify([ours, notes]));
' "$dir/browser-fails.json" || fail "the browser did not tell our error event from its own."

curl -sf -H "Authorization: Bearer $OPENCODE_TOKEN" "$base/metrics" | "$venv/bin/python" "$here/metrics.py" ||
  fail "the metrics are not well-formed."
