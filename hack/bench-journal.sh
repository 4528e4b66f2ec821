#!/usr/bin/env bash
# Prints the journal's figures of docs/benchmarks.md, beside SQLite and bare loops on the same disk. No cluster.
# Arguments: groups (batch durable reads slow replay; default: all). BENCH_DIR: a folder on the disk to measure.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# The sidecar is measured as images hold it; the same flags spare a second build of all dependencies (deploy/images.sh).
triple=$(uname -m)-unknown-linux-gnu
flags=CARGO_TARGET_$(printf '%s' "$triple" | tr 'a-z-' 'A-Z_')_RUSTFLAGS
take_sources
timed "compile the benchmark and the sidecar (release)" "$LOGS/bench-journal.log" "see the compiler's messages in the log" \
  in_sources env "$flags=-C target-feature=+crt-static" cargo build --locked --release --target "$triple" \
  -p operator -p sidecar -p runner -p scripted-model -p bench --bin opencode-sidecar --bin bench-journal
bin=$CARGO_TARGET_DIR/$triple/release
export OPENCODE_SIDECAR=$bin/opencode-sidecar
exec "$bin/bench-journal" "${BENCH_DIR:-$CARGO_TARGET_DIR}" "$@"
