#!/usr/bin/env bash
# Prints the figures of docs/benchmarks.md for this machine.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
hack/setup.sh
take_sources
deploy/images.sh build
began=$(date +%s%N)
use_cluster
up=$((($(date +%s%N) - began) / 1000000))
deploy/images.sh load
hack/install.sh
IMAGE_SCRIPTED_MODEL=$(deploy/images.sh in-cluster scripted-model)
export IMAGE_SCRIPTED_MODEL
say "| cluster up (0.2 s when it runs already) | $up ms | – | 1 |"
exec deploy/local/cluster.sh hold -- env -C "$SOURCE" cargo run -q --locked -p tests --bin figures
