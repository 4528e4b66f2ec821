# shellcheck shell=bash
# Daemons of the built-in cluster: started, found again, ended. A process is known by its id, its start time and the boot it
# belongs to, so that a stranger who got the same number later is never touched.

# The daemons carry this in their environment, and the containerd shims inherit it: leftovers are found by it even when every
# record is lost.
MARK=OPENCODE_OPERATOR_CLUSTER_PROCESS=$STATE

DAEMONS="etcd containerd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy coredns local-path-provisioner"

# Start time of PID in clock ticks since boot; nothing when it is gone or a zombie.
start_time() {
  local stat fields
  { stat=$(<"/proc/$1/stat"); } 2>/dev/null || return 0
  # The command's name may contain blanks and brackets; what follows its last bracket is regular.
  read -r -a fields <<<"${stat##*) }"
  [ "${fields[0]}" = Z ] || printf '%s' "${fields[19]}"
}

boot_id() { cat /proc/sys/kernel/random/boot_id; }

# spawn NAME CMD...: starts CMD in a session of its own, so that it outlives the shell that called us.
spawn() {
  local name=$1 record=$STATE/run/$1.pid
  shift
  rm -f "$record"
  # The child writes its own record before it becomes CMD: there is no moment in which it runs unrecorded. The locks are not
  # handed down, or they would be held as long as the cluster runs.
  # shellcheck disable=SC2016 # expanded by the child
  env "$MARK" setsid bash -c '
    stat=$(</proc/$$/stat); read -r -a f <<<"${stat##*) }"
    printf "%s %s %s\n" $$ "${f[19]}" "$2" >"$1.new" && mv "$1.new" "$1"
    shift 2; exec "$@"' spawn "$record" "$(boot_id)" "$@" >"$STATE/log/$name.log" 2>&1 </dev/null 6>&- 7>&- 8>&- 9>&- &
  until [ -s "$record" ]; do sleep 0.01; done
}

# The process id of NAME when it is alive.
pid_of() {
  local pid start boot
  { read -r pid start boot <"$STATE/run/$1.pid"; } 2>/dev/null || return 1
  [ "$boot" = "$(boot_id)" ] && [ "$(start_time "$pid")" = "$start" ] && printf '%s\n' "$pid"
}

# wait_for NAME SECONDS WHAT CMD...: until CMD succeeds; gives up when the daemon NAME is dead.
wait_for() {
  local name=$1 limit=$((SECONDS + $2)) what=$3
  shift 3
  until "$@" >/dev/null 2>&1; do
    if ! pid_of "$name" >/dev/null; then daemon_failed "$name" "$name ended while waiting for: $what"; fi
    if ((SECONDS >= limit)); then daemon_failed "$name" "gave up waiting for: $what"; fi
    sleep 0.1
  done
}
daemon_failed() {
  say "error: $2"
  say "  the last lines of $STATE/log/$1.log:"
  tail -n 20 "$STATE/log/$1.log" 2>/dev/null | cut -c1-300 | sed 's/^/  | /' >&2
  say "  what to do: run 'cluster.sh up' again (it starts afresh); if it fails again, the log says why."
  exit 1
}

# Every process of ours: recorded ones, those that carry the mark, and all that runs in the cluster's cgroup (the containers).
our_processes() {
  local name dir
  {
    for name in $DAEMONS; do pid_of "$name" || true; done
    grep -lzxF -- "$MARK" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3
    if owns_machine; then
      for dir in $(our_cgroups); do find "$dir" -name cgroup.procs -exec cat {} + 2>/dev/null; done
    fi
    # Groups and processes vanish while they are looked at; that is no failure of the list.
    true
  } | sort -un
}

kill_our_processes() {
  local pids limit=$((SECONDS + 20))
  while pids=$(our_processes) && [ -n "$pids" ]; do
    # Nothing in here is worth a graceful end: the state is thrown away next.
    # shellcheck disable=SC2086 # a list of numbers
    kill -9 $pids 2>/dev/null || true
    ((SECONDS < limit)) || fail "these processes of the cluster cannot be killed: $(printf '%s' "$pids" | tr '\n' ' ')" \
      "They hang in the kernel; a reboot ends them."
    sleep 0.1
  done
}
