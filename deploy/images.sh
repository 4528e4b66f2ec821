#!/usr/bin/env bash
# Builds the project's images and puts them into the cluster. What did not change is neither built nor loaded again.
set -euo pipefail

DEPLOY=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(dirname "$DEPLOY")
HERE=$DEPLOY/local
# shellcheck source-path=SCRIPTDIR source=local/lib/common.sh
. "$HERE/lib/common.sh"
# shellcheck source-path=SCRIPTDIR source=local/lib/sources.sh
. "$HERE/lib/sources.sh"
# shellcheck source-path=SCRIPTDIR source=local/lib/build.sh
. "$HERE/lib/build.sh"

ALL="operator sidecar runner opencode agent scripted-model"
# A name that no registry answers to, so that no cluster takes somebody else's image for it.
PREFIX=localhost/opencode-operator
TAG=dev
PROFILE=release
WEAKENED=''
# Stands in every binary that was built to be weak (features "weakened").
WEAKENED_MARK='WEAKENED for the leak suite'
BIN_DIR=''
WORK=$CACHE/images
# The agent image's packages. A change makes a new base.
SUITE=bookworm
AGENT_PACKAGES=git,ripgrep,ca-certificates,openssh-client

usage() {
  cat >&2 <<X
usage: images.sh COMMAND [OPTION...] [TARGET...]
  build   build images (all: $ALL)
  load    put the built images into the cluster of 'make cluster'; that of KUBECONFIG gets them by way of \$REGISTRY
  push    push the built images to \$REGISTRY
  names   print the images' names
  chart-values  print them as NAME IMAGE, for the chart's values, as the cluster knows them
  in-cluster TARGET  print the image's name as the cluster knows it
  key TARGET    print what identifies the built image's content
  opencode      fetch OpenCode for this machine, checked by its hash, and print its path
  clean   forget built images and their base; binaries of OpenCode stay
options:
  --tag TAG        default: $TAG
  --profile NAME   cargo profile of the binaries, default: $PROFILE
  --bin-dir DIR    take the Rust binaries from DIR instead of running cargo
  --weakened       sidecar and runner without their protections, tagged TAG-weakened: for the leak suite, never for use
environment: CARGO_TARGET_DIR, REGISTRY (push; load into a cluster of KUBECONFIG), OPENCODE_OPERATOR_CACHE (now: $CACHE)
X
  exit 2
}

case $(uname -m) in
  x86_64) ARCH=amd64 ;;
  aarch64) ARCH=arm64 ;;
  *) fail "images are made for x86_64 and aarch64, this is $(uname -m)" ;;
esac
TRIPLE=$(uname -m)-unknown-linux-gnu

# Which files go into the context of TARGET's build.
rust_binaries_of() {
  case $1 in
    operator) echo opencode-operator ;;
    sidecar) echo opencode-sidecar ;;
    runner | opencode) echo opencode-runner ;;
    scripted-model) echo scripted-model ;;
  esac
}

# All four are built however few are asked for: cargo joins the features of what it builds together, and another set would build
# most dependencies again.
build_rust() {
  local target needed=''
  for target in "$@"; do needed+=$(rust_binaries_of "$target"); done
  [ -n "$needed" ] || return 0
  if [ -n "$BIN_DIR" ]; then return; fi
  command -v cargo >/dev/null || fail "there is no cargo on PATH." "Install Rust (https://rustup.rs), or give ready binaries: --bin-dir DIR"
  BIN_DIR=$CARGO_TARGET_DIR/$TRIPLE/$([ "$PROFILE" = dev ] && echo debug || echo "$PROFILE")
  timed "compile the images' binaries ($PROFILE)" "$CACHE/log/cargo.log" "see the compiler's messages in the log" cargo_static || exit 1
}
cargo_static() {
  local triple features=()
  if [ -n "$WEAKENED" ]; then features=(--features sidecar/weakened --features runner/weakened); fi
  # Static, for images without a libc. Set for the target only: proc macros and build scripts stay as they are. With --target,
  # cargo keeps these builds in a folder of their own and those of 'cargo test' stay valid.
  triple=$(printf '%s' "$TRIPLE" | tr 'a-z-' 'A-Z_')
  in_sources env "CARGO_TARGET_${triple}_RUSTFLAGS=-C target-feature=+crt-static" \
    cargo build --locked --profile "$PROFILE" --target "$TRIPLE" --bins \
    -p operator -p sidecar -p runner -p scripted-model ${features[@]+"${features[@]}"}
}

# The OpenCode binary, by the hash that the repository vouches for. Prints its path.
opencode_binary() {
  local version package integrity dir tmp
  version=$(awk '$1 == "version" {print $2}' "$DEPLOY/opencode.lock")
  read -r package integrity < <(awk -v a="$ARCH" '$1 == a {print $2, $3}' "$DEPLOY/opencode.lock") ||
    fail "deploy/opencode.lock has no checksum of OpenCode $version for $ARCH." \
      "Get it with: npm view opencode-linux-$ARCH@$version dist.integrity"
  # The first that is asked for on a new machine, before any image.
  mkdir -p "$WORK" "$CACHE/log"
  dir=$WORK/opencode-$version-$ARCH-$(printf '%s' "$integrity" | sha256sum | cut -c1-16)
  if [ ! -e "$dir/opencode" ]; then
    command -v npm >/dev/null || fail "OpenCode is fetched with npm, and there is no npm on PATH." "Install Node.js with npm."
    tmp=$(mktemp -d -p "$WORK")
    timed "fetch $package@$version" "$CACHE/log/npm.log" "check that npm reaches its registry: npm view $package version" \
      npm_pack "$tmp" "$package@$version" || { rm -rf "$tmp"; exit 1; }
    local got
    got=sha512-$(openssl dgst -sha512 -binary "$tmp"/*.tgz | base64 -w0)
    if [ "$got" != "$integrity" ]; then
      rm -rf "$tmp"
      fail "$package@$version is not what deploy/opencode.lock says." "expected: $integrity" "got:      $got" \
        "Do not use it before you know why."
    fi
    tar -xzf "$tmp"/*.tgz -C "$tmp" --strip-components=2 package/bin/opencode
    rm "$tmp"/*.tgz
    chmod 755 "$tmp" "$tmp/opencode"
    mv -T "$tmp" "$dir" 2>/dev/null || rm -rf "$tmp"
  fi
  printf '%s\n' "$dir/opencode"
}
npm_pack() { cd "$1" && npm pack --silent "$2"; }

base_key() { printf '%s %s %s' "$SUITE" "$ARCH" "$AGENT_PACKAGES" | sha256sum | cut -c1-16; }

# The agent's base image, and its name. Made here from Debian packages, because many a build machine reaches a package mirror but
# no image registry.
ensure_agent_base() {
  AGENT_BASE=debian:$SUITE-slim
  if ! command -v mmdebstrap >/dev/null; then
    if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then ensure_packages mmdebstrap=mmdebstrap; else return 0; fi
  fi
  AGENT_BASE=$PREFIX/agent-base:$(base_key)
  image_exists "$AGENT_BASE" && return
  local tar
  tar=$WORK/agent-base-$SUITE-$(base_key).tar
  if [ ! -e "$tar" ]; then
    timed "make the agent's base ($SUITE: $AGENT_PACKAGES)" "$CACHE/log/mmdebstrap.log" "check that apt reaches its mirror: apt-get update" \
      mmdebstrap --variant=minbase --include="$AGENT_PACKAGES" \
      --dpkgopt=path-exclude=/usr/share/man/* --dpkgopt=path-exclude=/usr/share/locale/* --dpkgopt=path-exclude=/usr/share/doc/* \
      "$SUITE" "$tar.new.tar" || exit 1
    mv "$tar.new.tar" "$tar"
  fi
  timed "import the agent's base" "$CACHE/log/base.log" "see the log" import_base "$tar" "$AGENT_BASE" || exit 1
}

# --- docker or buildah -------------------------------------------------------------------------------------------------------
choose_builder() {
  if docker info >/dev/null 2>&1; then BUILDER=docker; return; fi
  ensure_packages buildah=buildah
  BUILDER=buildah
  # chroot: builds run in containers too, where nested namespaces are often forbidden.
  export BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-chroot}
  if [ -z "${STORAGE_DRIVER:-}" ]; then
    # overlay copies no layer; vfs works where overlay does not (overlay on overlay).
    if overlay_works; then export STORAGE_DRIVER=overlay; else export STORAGE_DRIVER=vfs; fi
  fi
}
overlay_works() {
  local d rc=0
  d=$(mktemp -d -p "$WORK")
  mkdir "$d/lower" "$d/upper" "$d/work" "$d/merged"
  mount -t overlay overlay -o "lowerdir=$d/lower,upperdir=$d/upper,workdir=$d/work" "$d/merged" 2>/dev/null || rc=1
  [ $rc = 1 ] || umount "$d/merged"
  rm -rf "$d"
  return $rc
}
image_exists() {
  case $BUILDER in
    docker) docker image inspect "$1" >/dev/null 2>&1 ;;
    buildah) [ -n "$(buildah images -q "$1" 2>/dev/null)" ] ;;
  esac
}
import_base() {
  case $BUILDER in
    docker) docker import "$1" "$2" ;;
    buildah)
      local container
      container=$(buildah from scratch) && buildah add "$container" "$1" / && buildah commit --rm "$container" "$2"
      ;;
  esac
}
build_image() { # CONTEXT TARGET NAME ARCHIVE
  case $BUILDER in
    docker)
      docker build --target "$2" --build-arg "AGENT_BASE=$AGENT_BASE" --tag "$3" -f "$1/Dockerfile" "$1" &&
        docker save --output "$4" "$3"
      ;;
    buildah)
      # --layers=false: every context is small and whole; a layer cache would only fill the disk.
      buildah bud --layers=false --target "$2" --build-arg "AGENT_BASE=$AGENT_BASE" --tag "$3" "$1" &&
        buildah push "$3" "docker-archive:$4:$3"
      ;;
  esac
}
push_image() { # ARCHIVE NAME-IN-IT NAME: what is pushed is what was built, whatever the builder's own store has by now
  case $BUILDER in
    docker) docker load --input "$1" && docker tag "$2" "$3" && docker push "$3" ;;
    # As docker does it: a registry on this machine needs no certificate.
    buildah) buildah pull "docker-archive:$1" && case $3 in
      localhost:* | 127.0.0.1:*) buildah push --tls-verify=false "$2" "$3" ;;
      *) buildah push "$2" "$3" ;;
    esac ;;
  esac
}

# --- build -------------------------------------------------------------------------------------------------------------------
name_of() { printf '%s/%s:%s\n' "$PREFIX" "$1" "$TAG"; }
# What identifies the built image's content.
key_of() {
  cat "$WORK/$1-$TAG.tar.key" 2>/dev/null || fail "the image $(name_of "$1") is not built." "Build it: deploy/images.sh build $1"
}
# A cluster of KUBECONFIG pulls: by a tag that changes with the content, so that no node takes an older image for it.
in_cluster_name() {
  if [ "$(cat "$CHOICE_FILE" 2>/dev/null)" = external ] && [ -n "${REGISTRY:-}" ]; then
    local key
    key=$(key_of "$1") || exit 1
    printf '%s/%s:%s-%s\n' "$REGISTRY" "$1" "$TAG" "$key"
  else
    name_of "$1"
  fi
}

# The context of TARGET: its files and the Dockerfile, and nothing else, so that their hash says whether anything changed.
stage() {
  local target=$1 context=$2 binary
  rm -rf "$context"
  mkdir -p "$context"
  cp "$DEPLOY/Dockerfile" "$context/Dockerfile"
  for binary in $(rust_binaries_of "$target"); do
    [ -x "$BIN_DIR/$binary" ] || fail "there is no $BIN_DIR/$binary." "Its package has to have a binary of this name."
    if file_is_dynamic "$BIN_DIR/$binary"; then fail "$BIN_DIR/$binary is not static: it would not start in an image without a libc."; fi
    check_strength "$BIN_DIR/$binary"
    cp "$BIN_DIR/$binary" "$context/$binary"
    # Symbols are for those who debug, not for every node that pulls.
    strip "$context/$binary" 2>/dev/null || true
    chmod 755 "$context/$binary"
  done
  case $target in
    operator | sidecar) install -m 644 /etc/ssl/certs/ca-certificates.crt "$context/" ;;
    opencode) ln "$OPENCODE" "$context/opencode" 2>/dev/null || cp "$OPENCODE" "$context/opencode" ;;
  esac
}
# An image holds a weakened binary if, and only if, it was asked for: its tag says so.
check_strength() {
  local weak=''
  if LC_ALL=C grep -aqF "$WEAKENED_MARK" "$1"; then weak=1; fi
  if [ -n "$weak" ] && [ -z "$WEAKENED" ]; then
    fail "$1 was built without its protections (feature \"weakened\")." "Build it anew: deploy/images.sh build"
  fi
  if [ -z "$weak" ] && [ -n "$WEAKENED" ]; then fail "$1 is not weakened: the leak suite would prove nothing with it."; fi
}
# A program header of type INTERP names the loader of a dynamic binary.
file_is_dynamic() { LC_ALL=C grep -aqE '/lib(64)?/ld-(linux|musl)[a-z0-9_-]*\.so' <(head -c 8192 "$1"); }

# Binaries that every node pulls for every session stay small.
check_size() {
  local file=$1 limit=$2 size
  size=$(stat -c %s "$file")
  ((size <= limit * 1000 * 1000)) || fail "$(basename "$file") has $((size / 1000000)) MB; at most $limit are allowed."
}

cmd_build() {
  local target context key archive start
  mkdir -p "$WORK" "$CACHE/log"
  # Before our own lock: who has the sources may be about to build images, and would wait for us while we wait for it.
  [ -n "$BIN_DIR" ] || take_sources
  exec 7>>"$WORK/.lock"
  if ! flock -n 7; then say "another images.sh is building; waiting for it"; flock 7; fi
  choose_builder
  build_rust "${TARGETS[@]}"
  for target in "${TARGETS[@]}"; do
    start=$(date +%s%N)
    AGENT_BASE=scratch
    if [ "$target" = agent ]; then ensure_agent_base; fi
    if [ "$target" = opencode ]; then OPENCODE=$(opencode_binary) || exit 1; fi
    context=$WORK/context-$target
    stage "$target" "$context"
    case $target in operator | sidecar) check_size "$context/opencode-$target" 25 ;; esac
    key=$(cd "$context" && find . -type f ! -name opencode | LC_ALL=C sort | xargs sha256sum |
      { cat; printf '%s\n' "$target" "$TAG" "$AGENT_BASE" "${OPENCODE:-}"; } | sha256sum | cut -c1-16)
    archive=$WORK/$target-$TAG.tar
    # The archive's key is written last: a build that was cut short is never taken for a whole one.
    if [ -e "$archive" ] && [ "$(cat "$archive.key" 2>/dev/null)" = "$key" ]; then
      report "$target" "$archive" unchanged
    else
      rm -f "$archive" "$archive.key"
      build_image "$context" "$target" "$(name_of "$target")" "$archive" >"$CACHE/log/image-$target.log" 2>&1 6>&- 7>&- || {
        say "error: the image $target could not be built; the last lines of $CACHE/log/image-$target.log:"
        tail -n 20 "$CACHE/log/image-$target.log" | sed 's/^/  | /' >&2
        exit 1
      }
      printf '%s\n' "$key" >"$archive.key"
      report "$target" "$archive" "built in $(elapsed "$start")"
    fi
    rm -rf "$context"
  done
}

elapsed() { awk -v a="$1" -v b="$(date +%s%N)" 'BEGIN {printf "%.1f s", (b - a) / 1e9}'; }
report() { printf '%-44s %6.1f MB  %s\n' "$(name_of "$1")" "$(stat -c %s "$2" | awk '{print $1 / 1e6}')" "$3"; }

# --- load and push -----------------------------------------------------------------------------------------------------------
cmd_load() {
  local target archive key mark start kind
  [ -e "$CHOICE_FILE" ] || fail "there is no cluster to load images into." "Start it: make cluster"
  kind=$(cat "$CHOICE_FILE")
  if [ "$kind" = external ]; then
    [ -n "${REGISTRY:-}" ] || fail "the cluster of KUBECONFIG takes no images from here." \
      "Name a registry that you may push to and that it can pull from, and run this again: export REGISTRY=registry.example/team"
    push_as in_cluster_name
    return
  fi
  for target in "${TARGETS[@]}"; do
    start=$(date +%s%N)
    archive=$WORK/$target-$TAG.tar
    key=$(key_of "$target") || exit 1
    # The record is part of the cluster's state: it goes when the cluster goes. kind keeps its own.
    mark=$STATE/loaded/$target-$TAG
    if [ "$kind" = builtin ] && [ "$(cat "$mark" 2>/dev/null)" = "$key" ]; then
      report "$target" "$archive" "loaded before"
      continue
    fi
    "$HERE/cluster.sh" load "$archive"
    if [ "$kind" = builtin ]; then
      mkdir -p "$STATE/loaded"
      printf '%s\n' "$key" >"$mark"
    fi
    report "$target" "$archive" "loaded in $(elapsed "$start")"
  done
}

cmd_push() {
  [ -n "${REGISTRY:-}" ] || fail "REGISTRY is not set: where to push to?"
  push_as tagged_name
}
tagged_name() { printf '%s/%s:%s\n' "$REGISTRY" "$1" "$TAG"; }
push_as() { # FUNCTION: prints the name that a target gets
  local target name
  choose_builder
  for target in "${TARGETS[@]}"; do
    key_of "$target" >/dev/null || exit 1
    name=$("$1" "$target") || exit 1
    timed "push $name" "$CACHE/log/push-$target.log" "log in to the registry: docker login, or buildah login" \
      push_image "$WORK/$target-$TAG.tar" "$(name_of "$target")" "$name" || exit 1
  done
}

cmd_clean() {
  choose_builder
  rm -f "$WORK"/*.tar "$WORK"/*.key
  local target
  for target in $ALL; do
    case $BUILDER in
      docker) docker rmi "$(name_of "$target")" >/dev/null 2>&1 || true ;;
      buildah) buildah rmi "$(name_of "$target")" >/dev/null 2>&1 || true ;;
    esac
  done
}

main() {
  local command=${1:-}
  [ $# -gt 0 ] && shift
  TARGETS=()
  while [ $# -gt 0 ]; do
    case $1 in
      --tag) TAG=${2:?}; shift ;;
      --profile) PROFILE=${2:?}; shift ;;
      --bin-dir) BIN_DIR=$(realpath "${2:?}"); shift ;;
      --weakened) WEAKENED=1 ;;
      -*) usage ;;
      *) case " $ALL " in *" $1 "*) TARGETS+=("$1") ;; *) fail "no such image: $1" "There are: $ALL" ;; esac ;;
    esac
    shift
  done
  if [ -n "$WEAKENED" ]; then
    TAG+=-weakened
    [ ${#TARGETS[@]} -gt 0 ] || TARGETS=(sidecar runner)
    case $command in build | load) ;; *) fail "weakened images are only built and loaded." ;; esac
    local target
    for target in "${TARGETS[@]}"; do
      case $target in sidecar | runner) ;; *) fail "there is no weakened $target." ;; esac
    done
  fi
  case $TAG in
    *-weakened) [ -n "$WEAKENED" ] || fail "the tag $TAG is kept for images without protections." "They are made with --weakened, and never pushed." ;;
  esac
  # shellcheck disable=SC2206 # a list of names
  [ ${#TARGETS[@]} -gt 0 ] || TARGETS=($ALL)
  case $command in
    build) cmd_build ;;
    load) cmd_load ;;
    push) cmd_push ;;
    clean) cmd_clean ;;
    names) local t; for t in "${TARGETS[@]}"; do name_of "$t"; done ;;
    chart-values) local t name; for t in operator sidecar runner opencode agent; do name=$(in_cluster_name "$t") || exit 1; printf '%s %s\n' "$t" "$name"; done ;;
    in-cluster) in_cluster_name "${TARGETS[0]}" ;;
    opencode) opencode_binary ;;
    key) key_of "${TARGETS[0]}" ;;
    *) usage ;;
  esac
}
main "$@"
