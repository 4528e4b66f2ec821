# shellcheck shell=bash
# What every script here begins with.
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source-path=SCRIPTDIR source=../deploy/local/lib/common.sh
. "$ROOT/deploy/local/lib/common.sh"
# shellcheck source-path=SCRIPTDIR source=../deploy/local/lib/sources.sh
. "$ROOT/deploy/local/lib/sources.sh"
cd "$ROOT" || exit 1

TOOLS=$CACHE/tools/bin
export PATH=$TOOLS:$PATH
LOGS=${OPENCODE_OPERATOR_LOGS:-$BASE/logs}
mkdir -p "$LOGS"

# shellcheck disable=SC2034 # used by who sources this
DEMO_NAMESPACE=opencode-demo
# shellcheck disable=SC2034
SYSTEM_NAMESPACE=opencode-operator-system

use_cluster() {
  deploy/local/cluster.sh up >"$LOGS/kubeconfig"
  eval "$(deploy/local/cluster.sh env)"
}

# forward_port NAMESPACE POD PORT LOG: any free port of this machine, forwarded to a pod's. Sets FORWARD_PORT and FORWARD_PID, which
# the caller ends: kubectl itself, not a shell around a function of its name. LOG is emptied before the process that writes it
# exists: else the port of its last run could be read.
forward_port() {
  local log=$4
  : >"$log"
  "$(type -P kubectl)" --namespace "$1" port-forward "pod/$2" ":$3" >>"$log" 2>&1 7>&- &
  FORWARD_PID=$!
  until FORWARD_PORT=$(sed -nE 's/^Forwarding from 127\.0\.0\.1:([0-9]+) .*/\1/p' "$log") && [ -n "$FORWARD_PORT" ]; do
    kill -0 "$FORWARD_PID" 2>/dev/null || fail "kubectl port-forward ended." "its log: $log"
    sleep 0.1
  done
}

# What unit tests are built from. Cargo joins the features of all that one command builds, so commands that name other packages
# would build dependencies once more.
UNITS=(--locked --workspace --exclude tests)
# Programs for generated files and for tests that start them, as `cargo test` builds them too.
build_debug() { in_sources cargo build -q "${UNITS[@]}" --bins --examples; }
