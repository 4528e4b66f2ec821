#!/usr/bin/env bash
# Makes the generated files. With --check: fails when one is not fresh, and changes nothing.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

check=${1:-}
stale=0
make_file() {
  local file=$1 fresh
  shift
  fresh=$(mktemp)
  "$@" >"$fresh"
  if ! cmp -s "$fresh" "$file"; then
    if [ "$check" = --check ]; then
      say "error: $file is not what the code makes. Run 'make generate' and commit it."
      diff -u "$file" "$fresh" | head -20 >&2 || true
      stale=1
    else
      cp "$fresh" "$file"
      say "made $file"
    fi
  fi
  rm -f "$fresh"
}

make_file charts/opencode-operator/files/crds.yaml cargo run -q -p crds --example crdgen
make_file docs/openapi.json cargo run -q -p sidecar -- openapi
make_file docs/events.schema.json cargo run -q -p sidecar -- event-schema
exit "$stale"
