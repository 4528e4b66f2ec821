# shellcheck shell=bash
# Paths, messages, timed steps and locks. Sourced by every script of deploy/.

# One folder for what is expensive to make again, one for what belongs to the running cluster.
CACHE=${OPENCODE_OPERATOR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/opencode-operator}
BASE=${OPENCODE_OPERATOR_STATE:-${XDG_STATE_HOME:-$HOME/.local/state}/opencode-operator}
STATE=$BASE/cluster

# Which cluster was chosen, and the path of its kubeconfig. Other scripts read these two files.
CHOICE_FILE=$BASE/cluster.kind
KUBECONFIG_FILE=$BASE/kubeconfig.path

CHANGE_LOCK=$BASE/cluster.lock
USE_LOCK=$BASE/cluster.use.lock

# Results go to stdout, everything said on the way to stderr.
say() { printf '%s\n' "$*" >&2; }
fail() {
  say "error: $1"
  shift
  local line
  for line in "$@"; do say "  $line"; done
  exit 1
}

# timed WHAT LOG HINT CMD...: runs CMD with its output in LOG, says how long it took, and shows the end of LOG when it fails.
# A line every 30 seconds shows that a long step is alive.
timed() {
  local what=$1 log=$2 hint=$3
  shift 3
  local start=$SECONDS next=30 pid
  mkdir -p "$(dirname "$log")"
  say "$what ..."
  "$@" >"$log" 2>&1 </dev/null &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.2
    if ((SECONDS - start >= next)); then
      say "$what: still at it after $((SECONDS - start)) s"
      next=$((next + 30))
    fi
  done
  if ! wait "$pid"; then
    say "error: this step failed after $((SECONDS - start)) s: $what"
    say "  the last lines of $log:"
    tail -n 20 "$log" | sed 's/^/  | /' >&2
    say "  what to do: $hint"
    return 1
  fi
  say "$what: done in $((SECONDS - start)) s"
}

# Who has FILE open, other than this very script: the holders of a flock, also when the process that took it is gone and only
# its children live on.
holders() {
  local pid
  # Processes vanish while they are looked at; find's complaints are no failure.
  { find /proc/[0-9]*/fd -lname "$1" 2>/dev/null || true; } | cut -d/ -f3 | sort -un | while read -r pid; do
    # Subshells of this script have the same file open.
    if [ "$pid" != "$$" ] && [ "$(awk '/^PPid:/ {print $2}' "/proc/$pid/status" 2>/dev/null)" != "$$" ]; then printf '%s ' "$pid"; fi
  done
}

describe() {
  local pid
  for pid in "$@"; do
    say "  pid $pid: $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | cut -c1-120)"
  done
}

# Only one process changes the cluster at a time; a second one waits, and says for whom.
lock_for_change() {
  mkdir -p "$BASE"
  exec 8>>"$CHANGE_LOCK"
  flock -n 8 && return
  local pids
  pids=$(holders "$CHANGE_LOCK")
  say "another cluster.sh changes the cluster right now; waiting for it (at most 30 minutes):"
  # shellcheck disable=SC2086 # a list of numbers
  describe $pids
  flock -w 1800 8 || fail "the other cluster.sh still holds $CHANGE_LOCK after 30 minutes." "Stop it, then run this again: $pids"
}

# refuse_if_used WHAT: fails when somebody works on the cluster (cluster.sh hold).
refuse_if_used() {
  exec 9>>"$USE_LOCK"
  if ! flock -n 9; then
    local pids
    pids=$(holders "$USE_LOCK")
    say "error: $1 is refused: the cluster is in use."
    # shellcheck disable=SC2086 # a list of numbers
    describe $pids
    say "  Wait for it or stop it, then run this again."
    exit 1
  fi
}
release_use() { exec 9>&-; }
