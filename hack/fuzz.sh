#!/usr/bin/env bash
# Fuzzes targets under cargo-fuzz with the nightly compiler. Arguments: names of targets (default: all of fuzz/seeds).
# FUZZ_SECONDS: how long each (default 60). What breaks a target is kept where its log says.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Newer versions may bring new options: raise it on purpose.
FUZZ_VERSION=0.13.2
rustup run nightly rustc --version >/dev/null 2>&1 ||
  fail "fuzzing needs a nightly compiler." "Install it: rustup toolchain install nightly --profile minimal"
if ! "$TOOLS/cargo-fuzz" --version 2>/dev/null | grep -q " $FUZZ_VERSION\$"; then
  timed "building cargo-fuzz $FUZZ_VERSION (once per machine)" "$LOGS/cargo-fuzz.log" "read the log; the crates registry must be reachable" \
    env CARGO_TARGET_DIR="$CACHE/tools/target" cargo install --locked --root "$CACHE/tools" "cargo-fuzz@$FUZZ_VERSION"
  rm -rf "$CACHE/tools/target"
fi
# No sanitizer: what is fuzzed has no unsafe code, and it would need another build of every dependency.
build=(--sanitizer none --fuzz-dir fuzz)
take_sources
export CARGO_TARGET_DIR=$CARGO_TARGET_DIR/fuzz
timed "compile the fuzz target" "$LOGS/fuzz-build.log" "see the compiler's messages in the log" in_sources cargo +nightly fuzz build "${build[@]}" one
names=("$@")
[ $# -gt 0 ] || mapfile -t names < <(cd fuzz/seeds && printf '%s\n' *)
failed=''
for name in "${names[@]}"; do
  [ -d "fuzz/seeds/$name" ] || fail "there is no target $name." "There are: $(cd fuzz/seeds && echo *)"
  mkdir -p "fuzz/corpus/$name"
  FUZZ_TARGET=$name timed "fuzz $name" "$LOGS/fuzz-$name.log" \
    "run it on what the log names: FUZZ_TARGET=$name cargo +nightly fuzz run --sanitizer none one FILE" \
    in_sources cargo +nightly fuzz run "${build[@]}" one "$ROOT/fuzz/corpus/$name" "$ROOT/fuzz/seeds/$name" -- \
    "-max_total_time=${FUZZ_SECONDS:-60}" -max_len=16384 -timeout=20 -rss_limit_mb=2048 || failed+=" $name"
  sed -nE 's/^(Done [0-9]+ runs.*|stat::number_of_executed_units.*)/  \1/p' "$LOGS/fuzz-$name.log"
done
[ -z "$failed" ] || fail "broken:$failed"
