#!/usr/bin/env bash
# Everything: lints, unit tests, images, cluster, chart, end to end. Prints a time per suite and, last, what passed and failed.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Two runs would build and load different images under the same names.
exec 7>>"$BASE/test.lock"
if ! flock -n 7; then
  say "error: another 'make test' or 'make demo' runs on this machine:"
  # shellcheck disable=SC2046 # a list of numbers
  describe $(holders "$BASE/test.lock")
  fail "wait for it or stop it, then run this again."
fi

take_sources
passed=0 failed=0 report=''
began=$SECONDS

# suite NAME CMD...: runs it, its output in a log. What looks like a test runner's closing line counts as its tests,
# else the suite is one test.
suite() {
  local name=$1 log start=$SECONDS ok=1 p f
  shift
  log=$LOGS/suite-${name// /-}.log
  local command=$*
  timed "$name" "$log" "read the log, then run it alone: ${command#in_sources }" "$@" 6>&- 7>&- || ok=0
  p=$(sed -nE 's/^test result: .* ([0-9]+) passed; .*/\1/p' "$log" | awk '{n+=$1} END {print n+0}')
  f=$(sed -nE 's/^test result: .* ([0-9]+) failed; .*/\1/p' "$log" | awk '{n+=$1} END {print n+0}')
  if ((ok == 0 && f == 0)); then f=1; fi
  if ((ok == 1 && p == 0)); then p=1; fi
  passed=$((passed + p)) failed=$((failed + f))
  report+=$(printf '%-28s %5d s  %4d passed %3d failed' "$name" $((SECONDS - start)) "$p" "$f")$'\n'
  if ((ok == 0)); then
    sed -nE '/^(test .* FAILED|failures:|---- .* stdout ----)$/p; /panicked at/,+6p' "$log" | head -60 >&2
  fi
  return $((1 - ok))
}
finish() {
  say "$report"
  say "total: $((SECONDS - began)) s; logs: $LOGS"
  printf '%d passed, %d failed\n' "$passed" "$failed"
  ((failed == 0))
}

suite "setup" hack/setup.sh || finish
# On a new machine the cluster's binaries are compiled beside all else that only compiles; tests run alone.
setsid deploy/local/cluster.sh prepare >"$LOGS/prepare-cluster.log" 2>&1 6>&- 7>&- </dev/null &
prepared=$!
trap 'kill -- "-$prepared" 2>/dev/null || true' EXIT
# What needs no cluster may fail without keeping the rest from being tested.
suite "format" cargo fmt --all --check || true
suite "lints" in_sources cargo clippy --workspace --all-targets --locked -- -D warnings || true
suite "shell scripts" hack/shellcheck.sh || true
suite "licences and sources" cargo deny check bans licenses sources || true
suite "generated files" hack/generate.sh --check || true
suite "compile tests" in_sources cargo test --no-run "${UNITS[@]}" || true
suite "compile end to end" in_sources cargo test --no-run --locked -p tests || true
# What fails here the suite "cluster" meets again and tells.
wait "$prepared" || say "the cluster's binaries are not there yet: $LOGS/prepare-cluster.log"
# Its number may be another process's by now.
trap - EXIT
suite "scripts" hack/scripts-test.sh || true
suite "unit" hack/unit.sh || true
suite "clients" hack/clients-test.sh || true
suite "images" deploy/images.sh build || finish
suite "cluster" deploy/local/cluster.sh up || finish
suite "load images" deploy/images.sh load || finish
suite "chart" hack/chart-test.sh || true
suite "end to end" hack/e2e.sh || true
suite "readme" hack/readme-test.sh || true
finish
