#!/usr/bin/env bash
# Unit and process tests: no cluster, but the real OpenCode as a plain process.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
OPENCODE_BIN=$(deploy/images.sh opencode)
export OPENCODE_BIN
# The long versions of the suites, for `make test-long`.
if [ -n "${LONG:-}" ]; then
  export JOURNAL_SEEDS=${JOURNAL_SEEDS:-10000} FUZZ_ROUNDS=${FUZZ_ROUNDS:-20000}
fi
run() { cargo test --locked --workspace --exclude tests "$@"; }

# What the tests with the real OpenCode start.
cargo build -q --locked -p runner -p scripted-model
export RUNNER_BIN=$CARGO_TARGET_DIR/debug/opencode-runner
run --no-run
if [ $# -gt 0 ]; then
  run --no-fail-fast -- "$@"
  exit
fi

# Tests with the real OpenCode wait most of their time: several at once, and beside all the others. One that fails hides none.
surprises=$LOGS/unit-surprises.log
run --test surprises -- --test-threads="${SURPRISES_THREADS:-5}" >"$surprises" 2>&1 &
pid=$!
failed=0
# shellcheck disable=SC2016 # JavaScript, not shell
mapfile -t others < <(cargo metadata --locked --no-deps --format-version 1 | node -e '
  const all = JSON.parse(require("fs").readFileSync(0)).packages.filter((p) => p.name !== "tests");
  const tests = all.flatMap((p) => p.targets).filter((t) => t.kind.includes("test") && t.name !== "surprises");
  for (const name of new Set(tests.map((t) => t.name))) console.log(`--test=${name}`);')
run --no-fail-fast --lib --bins --examples "${others[@]}" || failed=1
run --no-fail-fast --doc || failed=1
wait "$pid" || failed=1
cat "$surprises"
exit $failed
