#!/usr/bin/env bash
# Installs what builds and tests need and this machine lacks. What is there is left alone.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Newer versions may bring new checks: raise it on purpose.
DENY_VERSION=0.20.2

missing=''
for pair in cargo:Rust go:Go node:Node.js git:git; do
  command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair#*:}"
done
[ -z "$missing" ] || fail "this machine lacks:$missing." "Install them (README, \"What it needs\"), then run this again."

packages=''
command -v rg >/dev/null || packages="$packages ripgrep"
command -v cc >/dev/null || packages="$packages gcc libc6-dev"
command -v curl >/dev/null || packages="$packages curl"
command -v shellcheck >/dev/null || packages="$packages shellcheck"
if [ -n "$packages" ]; then
  [ "$(id -u)" = 0 ] || fail "these Debian packages are missing:$packages." "As root: apt-get install$packages"
  # shellcheck disable=SC2086 # a list of packages
  timed "installing$packages" "$LOGS/apt.log" "run 'apt-get update', then this again" \
    bash -c "apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends$packages"
fi

if ! "$TOOLS/cargo-deny" --version 2>/dev/null | grep -q " $DENY_VERSION\$"; then
  timed "building cargo-deny $DENY_VERSION (once per machine)" "$LOGS/cargo-deny.log" "read the log; the crates registry must be reachable" \
    env CARGO_TARGET_DIR="$CACHE/tools/target" cargo install --locked --root "$CACHE/tools" "cargo-deny@$DENY_VERSION"
  rm -rf "$CACHE/tools/target"
fi
