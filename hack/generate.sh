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

take_sources
build_debug
make_file charts/opencode-operator/files/crds.yaml "$CARGO_TARGET_DIR/debug/examples/crdgen"
make_file docs/openapi.json "$CARGO_TARGET_DIR/debug/opencode-sidecar" openapi
make_file docs/events.schema.json "$CARGO_TARGET_DIR/debug/opencode-sidecar" event-schema
exit "$stale"
