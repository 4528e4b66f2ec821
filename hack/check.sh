#!/usr/bin/env bash
# The inner loop: format, lints, unit tests, licences, generated files. No cluster.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
hack/setup.sh
take_sources
timed "format" "$LOGS/fmt.log" "cargo fmt --all" cargo fmt --all --check
timed "lints" "$LOGS/clippy.log" "mend what clippy names" in_sources cargo clippy --workspace --all-targets --locked -- -D warnings
timed "shell scripts" "$LOGS/shellcheck.log" "mend what shellcheck names" hack/shellcheck.sh
timed "licences and sources of dependencies" "$LOGS/deny.log" "see deny.toml" cargo deny check bans licenses sources
timed "generated files" "$LOGS/generate.log" "make generate" hack/generate.sh --check
hack/unit.sh
