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

# What unit tests are built from. Cargo joins the features of all that one command builds, so commands that name other packages
# would build dependencies once more.
UNITS=(--locked --workspace --exclude tests)
# Programs for generated files and for tests that start them, as `cargo test` builds them too.
build_debug() { in_sources cargo build -q "${UNITS[@]}" --bins --examples; }
