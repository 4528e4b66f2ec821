#!/usr/bin/env bash
# Unit and process tests: no cluster, but the real OpenCode as a plain process.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
take_sources
OPENCODE_BIN=$(deploy/images.sh opencode)
export OPENCODE_BIN
# Tests with the real OpenCode start the runner as a process of its own.
build_debug
export RUNNER_BIN=$CARGO_TARGET_DIR/debug/opencode-runner
# The long versions of the suites, for `make test-long`.
if [ -n "${LONG:-}" ]; then
  export JOURNAL_SEEDS=${JOURNAL_SEEDS:-10000} FUZZ_ROUNDS=${FUZZ_ROUNDS:-20000}
fi
# All of them: one failure is not to hide another.
in_sources cargo test --no-fail-fast "${UNITS[@]}" -- "$@" 6>&-
