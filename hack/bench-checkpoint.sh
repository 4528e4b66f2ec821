#!/usr/bin/env bash
# Prints the figures of checkpoints in docs/benchmarks.md. No cluster.
# Arguments: files and MiB of the workspace (default: 50000 1024). BENCH_DIR: a folder on the disk to measure, with twice that room.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
take_sources
timed "compile the benchmark (release)" "$LOGS/bench-checkpoint.log" "see the compiler's messages in the log" \
  in_sources cargo build --locked --release -p checkpoint --example figures
TMPDIR=${BENCH_DIR:-$CARGO_TARGET_DIR} exec "$CARGO_TARGET_DIR/release/examples/figures" "$@"
