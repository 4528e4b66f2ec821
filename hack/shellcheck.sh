#!/usr/bin/env bash
# All shell scripts of the project, with the files that they source.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
git ls-files '*.sh' .ci/run | xargs shellcheck -x
