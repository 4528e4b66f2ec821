#!/usr/bin/env bash
# End-to-end tests on the cluster, with the operator installed as users install it.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
use_cluster
hack/install.sh
exec deploy/local/cluster.sh hold -- cargo test --locked -p tests -- --test-threads="${E2E_THREADS:-3}" "$@"
