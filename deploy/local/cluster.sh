#!/usr/bin/env bash
# A Kubernetes cluster for development and tests: the one of KUBECONFIG, or kind, or one node built and run right here.
# deploy/local/README.md says how it works.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib/common.sh
. "$HERE/lib/common.sh"
mkdir -p "$BASE"
BASE=$(realpath "$BASE")
STATE=$BASE/cluster
# shellcheck source-path=SCRIPTDIR source=lib/process.sh
. "$HERE/lib/process.sh"
# shellcheck source-path=SCRIPTDIR source=lib/machine.sh
. "$HERE/lib/machine.sh"
# shellcheck source-path=SCRIPTDIR source=lib/build.sh
. "$HERE/lib/build.sh"
# shellcheck source-path=SCRIPTDIR source=lib/oci.sh
. "$HERE/lib/oci.sh"
# shellcheck source-path=SCRIPTDIR source=lib/control-plane.sh
. "$HERE/lib/control-plane.sh"
# shellcheck source-path=SCRIPTDIR source=lib/node.sh
. "$HERE/lib/node.sh"
# shellcheck source-path=SCRIPTDIR source=lib/addons.sh
. "$HERE/lib/addons.sh"
# shellcheck source-path=SCRIPTDIR source=lib/builtin.sh
. "$HERE/lib/builtin.sh"

KIND_NAME=opencode-operator

usage() {
  cat >&2 <<X
usage: cluster.sh COMMAND
  up             start the cluster, or mend it, or find it running; prints the path of its kubeconfig
  down           end it and leave nothing of it behind
  status         what runs, and whether it is well
  kubeconfig     print the path of its kubeconfig
  env            print shell lines that set KUBECONFIG and PATH: eval "\$(deploy/local/cluster.sh env)"
  load FILE...   put image archives into it
  hold -- CMD    run CMD; until it ends, nobody can take the cluster down
  build          build the binaries of the built-in cluster and stop
  prepare        the same where 'up' would need them
  tools          see that there are kubectl and helm; print the folder of the pinned ones
environment:
  KUBECONFIG                           a cluster that answers is used as it is
  OPENCODE_OPERATOR_CACHE              built binaries and images (now: $CACHE)
  OPENCODE_OPERATOR_STATE              the cluster's files (now: $BASE)
  OPENCODE_OPERATOR_CLUSTER=builtin    skip KUBECONFIG and kind
  OPENCODE_OPERATOR_CLUSTER_EGRESS=1   let pods of the built-in cluster reach the world
X
  exit 2
}

# Sets KIND to external, kind or builtin.
choose() {
  if [ "${OPENCODE_OPERATOR_CLUSTER:-}" = builtin ]; then KIND=builtin; return; fi
  # With the environment of "cluster.sh env", KUBECONFIG is our own file: that is no other cluster.
  if [ -n "${KUBECONFIG:-}" ] && [ "$KUBECONFIG" != "$STATE/admin.kubeconfig" ] && [ "$KUBECONFIG" != "$BASE/kind.kubeconfig" ]; then
    if external_answers; then KIND=external; return; fi
    say "KUBECONFIG=$KUBECONFIG: no cluster answers there; it is not used"
  fi
  if command -v kind >/dev/null && docker info >/dev/null 2>&1; then KIND=kind; return; fi
  KIND=builtin
}
external_answers() {
  ensure_tools
  client --request-timeout 5s get --raw /readyz >/dev/null 2>&1
}

# kubectl of the machine, or the pinned one; with the KUBECONFIG of the environment.
client() { PATH=$PATH:$BASE/tools command kubectl "$@"; }

chosen() { cat "$CHOICE_FILE" 2>/dev/null || true; }
record() {
  printf '%s\n' "$1" >"$CHOICE_FILE"
  printf '%s\n' "$2" >"$KUBECONFIG_FILE"
  printf '%s\n' "$2"
}

cmd_up() {
  lock_for_change
  choose
  case $KIND in
    external)
      say "cluster: the one of KUBECONFIG"
      record external "$KUBECONFIG"
      ;;
    kind)
      say "cluster: kind ($KIND_NAME)"
      ensure_tools
      if ! [[ $'\n'$(kind get clusters 2>/dev/null)$'\n' == *$'\n'"$KIND_NAME"$'\n'* ]]; then
        timed "kind create cluster" "$BASE/kind.log" "see https://kind.sigs.k8s.io/docs/user/known-issues/, or use the built-in one: OPENCODE_OPERATOR_CLUSTER=builtin" \
          kind create cluster --name "$KIND_NAME" --kubeconfig "$BASE/kind.kubeconfig" --wait 180s || exit 1
      else
        kind export kubeconfig --name "$KIND_NAME" --kubeconfig "$BASE/kind.kubeconfig" 2>/dev/null
      fi
      record kind "$BASE/kind.kubeconfig"
      ;;
    builtin)
      say "cluster: the built-in one"
      builtin_up
      record builtin "$STATE/admin.kubeconfig"
      ;;
  esac
}

cmd_down() {
  lock_for_change
  refuse_if_used "taking the cluster down"
  case $(chosen) in
    external) say "cluster: the one of KUBECONFIG is not ours to end; nothing done" ;;
    kind) kind delete cluster --name "$KIND_NAME" --kubeconfig "$BASE/kind.kubeconfig" ;;
  esac
  # A built-in one may be there besides: one that an earlier run left.
  builtin_down
  rm -f "$CHOICE_FILE" "$KUBECONFIG_FILE" "$BASE/kind.kubeconfig"
}

need_cluster() { [ -e "$KUBECONFIG_FILE" ] || fail "there is no cluster." "Start it: make cluster"; }

cmd_status() {
  case $(chosen) in
    '') say "no cluster"; return 1 ;;
    builtin) echo "built-in cluster, kubeconfig $(cat "$KUBECONFIG_FILE")"; builtin_status ;;
    *)
      echo "cluster: $(chosen), kubeconfig $(cat "$KUBECONFIG_FILE")"
      client --kubeconfig "$(cat "$KUBECONFIG_FILE")" --request-timeout 10s get nodes -o wide
      ;;
  esac
}

cmd_env() {
  need_cluster
  printf 'export KUBECONFIG=%q\n' "$(cat "$KUBECONFIG_FILE")"
  # shellcheck disable=SC2016 # $PATH is for the shell that reads this
  printf 'export PATH=%q:$PATH\n' "$BASE/tools"
}

cmd_load() {
  need_cluster
  local file
  for file in "$@"; do
    [ -r "$file" ] || fail "no such image archive: $file"
    case $(chosen) in
      builtin) import_archive "$file" ;;
      kind) kind load image-archive --name "$KIND_NAME" "$file" ;;
      external) fail "images cannot be put into a cluster of KUBECONFIG from here." "Push them to a registry it can pull from: REGISTRY=... deploy/images.sh load" ;;
    esac
  done
}

cmd_hold() {
  [ "${1:-}" = -- ] && shift
  [ $# -gt 0 ] || usage
  need_cluster
  exec 9>>"$USE_LOCK"
  # Shared: several may work on the cluster at once. Whoever takes it down has this lock for itself, and is quick.
  flock -s -w 60 9 || fail "the cluster is being taken down" "Start it again: make cluster"
  # The command inherits the lock: should it outlive this shell, the cluster stays held.
  exec "$@"
}

main() {
  case ${1:-} in
    up) cmd_up ;;
    down) cmd_down ;;
    status) cmd_status ;;
    kubeconfig) need_cluster; cat "$KUBECONFIG_FILE" ;;
    env) cmd_env ;;
    load) shift; [ $# -gt 0 ] || usage; cmd_load "$@" ;;
    hold) shift; cmd_hold "$@" ;;
    build) ensure_binaries ;;
    prepare) choose; [ "$KIND" != builtin ] || ensure_binaries ;;
    tools) ensure_tools; printf '%s\n' "$BASE/tools" ;;
    *) usage ;;
  esac
}
# On one line: bash reads a script as it runs it, and this file may change meanwhile.
main "$@"; exit
