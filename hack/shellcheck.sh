#!/usr/bin/env bash
# All shell scripts of the project. Files that are only sourced are read with those that source them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
git ls-files '*.sh' .ci/run | grep -vE '(/lib/[^/]*|hack/common)\.sh$' | xargs shellcheck -x
