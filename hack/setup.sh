#!/usr/bin/env bash
# Installs what builds and tests need and this machine lacks. What is there is left alone. `clients`: also the clients of
# hack/clients-test.sh, a browser among them.
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
# Package managers are run through the egress proxy, in a network of their own.
command -v ip >/dev/null || packages="$packages iproute2"
python3 -m pip --version >/dev/null 2>&1 || packages="$packages python3-pip"
if [ "${1:-}" = clients ]; then
  command -v chromium >/dev/null || packages="$packages chromium"
  python3 -m venv --help >/dev/null 2>&1 || packages="$packages python3-venv"
fi
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

if [ "${1:-}" = clients ]; then
  # Outside of the checkout; made anew when a pin changes.
  pins=$(cat hack/clients/requirements.txt hack/clients/package-lock.json | sha256sum | cut -c1-16)
  if [ "$(cat "$CACHE/tools/clients.pins" 2>/dev/null)" != "$pins" ]; then
    install_clients() {
      rm -rf "$CACHE/tools/clients-venv" "$CACHE/tools/clients-npm"
      python3 -m venv "$CACHE/tools/clients-venv"
      "$CACHE/tools/clients-venv/bin/pip" install -q --no-deps -r hack/clients/requirements.txt
      mkdir -p "$CACHE/tools/clients-npm"
      cp hack/clients/package.json hack/clients/package-lock.json "$CACHE/tools/clients-npm"
      npm ci --silent --prefix "$CACHE/tools/clients-npm"
    }
    timed "installing the clients of tests" "$LOGS/clients.log" "the registries of PyPI and npm must be reachable" install_clients
    echo "$pins" >"$CACHE/tools/clients.pins"
  fi
fi
