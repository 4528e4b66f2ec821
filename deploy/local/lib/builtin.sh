# shellcheck shell=bash
# The built-in cluster as a whole: up, health, down.

cluster_kubectl() { "$BASE/bin/kubectl" --kubeconfig "$STATE/admin.kubeconfig" --request-timeout 10s "$@"; }
server_ready() { cluster_kubectl get --raw /readyz; }
node_ready() { [ "$(cluster_kubectl get node node1 -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}')" = True ]; }
dns_listens() { (exec 3<>"/dev/tcp/$NODE_IP/53") 2>/dev/null; }
# Pods cannot be made in a namespace before its service account is there.
service_account_there() { cluster_kubectl -n default get serviceaccount default; }

# What is wrong with the cluster; nothing when it is well.
builtin_ailments() {
  local name
  if [ ! -e "$STATE/complete" ]; then echo "it was never started, or its start was cut short"; return; fi
  for name in $DAEMONS; do pid_of "$name" >/dev/null || echo "$name is not running"; done
  [[ $(ip addr show dev "$BRIDGE" 2>/dev/null) == *" $NODE_IP/"* ]] || echo "the bridge $BRIDGE is gone"
}
# Asks the cluster too; only when all processes are there, for the answer may take seconds.
builtin_silent() {
  server_ready >/dev/null 2>&1 || { echo "the API server does not answer"; return; }
  node_ready 2>/dev/null || echo "the node is not ready"
}

ensure_binaries() {
  local name
  need_go
  ensure_packages ip=iproute2 nft=nftables openssl=openssl flock=util-linux catatonit=catatonit \
    /usr/share/doc/busybox-static=busybox-static sysctl=procps
  if [ ! -d "$(bin_dir runc)" ]; then
    ensure_packages gcc=gcc pkg-config=pkg-config /usr/include/seccomp.h=libseccomp-dev
  fi
  for name in $BINARIES; do ensure_binary "$name"; done
  # shellcheck disable=SC2086 # a list of names
  link_binaries $BINARIES
}

builtin_up() {
  local ailments start=$SECONDS
  [ "$(id -u)" = 0 ] || fail "the built-in cluster needs root: it makes network devices, mounts and cgroups." \
    "Run as root, or set KUBECONFIG to a cluster that you have, or start Docker and install kind."
  ((${#STATE} < 80)) || fail "the state folder's path is too long for a Unix socket in it: $STATE" "Set OPENCODE_OPERATOR_STATE to a shorter one."
  ailments=$(builtin_ailments)
  [ -n "$ailments" ] || ailments=$(builtin_silent)
  if [ -z "$ailments" ]; then
    say "built-in cluster: runs already"
    [ "$(cat "$STATE/complete")" = "$(recipe_hash)" ] ||
      say "  note: it was started from another version of deploy/local; 'cluster.sh down' and 'up' gives this one"
    return
  fi
  refuse_other_node
  if [ -e "$STATE" ] || [ -n "$(our_processes)" ] || [ -d "/sys/class/net/$BRIDGE" ]; then
    say "built-in cluster: what is left of the last one is cleared away:" "$(printf '%s' "$ailments" | paste -sd ';')"
    # A cluster in which nothing runs any more has nothing to lose; one that half works may be somebody's.
    if [ -n "$(our_processes)" ]; then refuse_if_used "clearing away a damaged cluster"; release_use; fi
    clean
  fi
  ensure_binaries
  start=$SECONDS
  say "built-in cluster: starting"
  mkdir -p "$STATE/run" "$STATE/log"
  chmod 711 "$STATE"
  make_network
  make_cgroups
  start_containerd
  import_own_images &
  local images=$!
  make_keys
  start_etcd
  start_apiserver
  wait_for kube-apiserver 60 "the API server to be ready" server_ready
  start_controllers
  start_kubelet
  start_proxy
  start_dns
  apply_addons >/dev/null 2>"$STATE/log/addons.log" || fail "the API server did not take DNS and storage:" "$(tail -n 5 "$STATE/log/addons.log")"
  start_provisioner
  wait "$images" || exit 1
  wait_for kubelet 60 "the node to be ready" node_ready
  wait_for coredns 30 "DNS to listen" dns_listens
  wait_for kube-controller-manager 30 "the default service account" service_account_there
  recipe_hash >"$STATE/complete"
  say "built-in cluster: ready after $((SECONDS - start)) s"
}

recipe_hash() { cat "$HERE"/cluster.sh "$HERE"/lib/*.sh "$PINS"/*/go.mod | sha256sum | cut -c1-16; }

builtin_down() {
  if [ ! -e "$STATE" ] && [ -z "$(our_processes)" ] && [ "$(bridge_owner)" != "$STATE" ]; then
    say "built-in cluster: nothing to end"
    return
  fi
  clean
  say "built-in cluster: ended; nothing of it is left but the binaries in $CACHE"
}

builtin_status() {
  local name pid ailments sum=0 rss
  ailments=$(builtin_ailments)
  [ -n "$ailments" ] || ailments=$(builtin_silent)
  for name in $DAEMONS; do
    pid=$(pid_of "$name") || { printf '%-26s not running\n' "$name"; continue; }
    rss=$(awk '/^VmRSS/ {print int($2 / 1024)}' "/proc/$pid/status")
    sum=$((sum + rss))
    printf '%-26s pid %-8s %5s MiB\n' "$name" "$pid" "$rss"
  done
  printf '%-26s %18s MiB\n' together "$sum"
  if [ -n "$ailments" ]; then
    printf 'not well: %s\n' "$(printf '%s' "$ailments" | paste -sd ';')"
    return 1
  fi
  cluster_kubectl get nodes -o wide
}
