# shellcheck shell=bash
# What the built-in cluster has on the machine outside of its state folder: bridge, firewall tables, cgroups, kernel settings.
# Everything made here is unmade by clean.

BRIDGE=opencode0
NODE_IP=10.244.0.1
POD_CIDR=10.244.0.0/16
NODE_POD_CIDR=10.244.0.0/24
SERVICE_CIDR=10.96.0.0/16
API_SERVICE_IP=10.96.0.1
DNS_SERVICE_IP=10.96.0.10
NFT_TABLE=opencode_operator_local
CGROUP=opencode-operator

# Set by the kubelet or by us; their former values come back with down.
SYSCTLS="net.ipv4.ip_forward vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops
  kernel.keys.root_maxkeys kernel.keys.root_maxbytes"

# The bridge's alias says whose it is: there is one node address, so there can be only one built-in cluster on a machine.
bridge_owner() { cat "/sys/class/net/$BRIDGE/ifalias" 2>/dev/null || true; }
owns_machine() { [ "$(bridge_owner)" = "$STATE" ] || [ -e "$STATE/owner" ]; }

our_cgroups() {
  local dir
  for dir in "/sys/fs/cgroup/$CGROUP" /sys/fs/cgroup/*/"$CGROUP"; do
    [ ! -d "$dir" ] || printf '%s\n' "$dir"
  done
}

refuse_other_node() {
  local owner
  owner=$(bridge_owner)
  if [ -d "/sys/class/net/$BRIDGE" ] && [ "$owner" != "$STATE" ]; then
    fail "another built-in cluster has this machine; its state is in ${owner:-an unknown folder}." \
      "Use that one, or end it: OPENCODE_OPERATOR_STATE=$(dirname "${owner:-FOLDER/cluster}") $0 down"
  fi
  if [ -z "$owner" ]; then
    if nft list table ip kube-proxy >/dev/null 2>&1; then
      fail "a node of another Kubernetes cluster runs on this machine (it has the firewall table 'ip kube-proxy')." \
        "Set KUBECONFIG to use that cluster."
    fi
    # Not "| grep -q", here and elsewhere: it ends before it has read all, and with pipefail the writer's broken pipe counts.
    if [[ $(ip -4 -o addr show) == *" $NODE_IP/"* ]]; then
      fail "the address $NODE_IP, which the built-in cluster needs, is taken:" "$(ip -4 -o addr show to "$NODE_IP")"
    fi
  fi
}

make_network() {
  local name
  touch "$STATE/owner"
  for name in $SYSCTLS; do
    printf '%s=%s\n' "$name" "$(sysctl -n "$name" 2>/dev/null)"
  done >"$STATE/sysctl.before"
  # An empty bridge rather than a dummy device: not every kernel has the latter. It carries the node's address; pods have routes of
  # their own (CNI plugin ptp), so bridged packets never pass by the service rules and br_netfilter is not needed.
  ip link add "$BRIDGE" type bridge || fail "cannot make the bridge $BRIDGE" "The kernel needs bridge support and this process CAP_NET_ADMIN."
  ip link set "$BRIDGE" alias "$STATE"
  ip addr add "$NODE_IP/24" dev "$BRIDGE"
  ip link set "$BRIDGE" up
  sysctl -qw net.ipv4.ip_forward=1
  # Pods reach each other, services and this node. Beyond the machine they get nothing unless asked for: tests stay here, and a
  # refusal at once is better than a time-out.
  if [ "${OPENCODE_OPERATOR_CLUSTER_EGRESS:-0}" = 1 ]; then
    nft -f - <<X
table ip $NFT_TABLE {
  chain postrouting {
    type nat hook postrouting priority srcnat;
    ip saddr $POD_CIDR ip daddr != $POD_CIDR masquerade
  }
}
X
  else
    nft -f - <<X
table ip $NFT_TABLE {
  chain forward {
    type filter hook forward priority filter;
    ip saddr $POD_CIDR ip daddr != $POD_CIDR reject with icmp type admin-prohibited
  }
}
X
  fi
}

# The kubelet wants its root cgroup to exist in every hierarchy.
make_cgroups() {
  local dir parent
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    # cgroup v2. In a container whose own processes sit in the root group this fails; the kubelet then says what it misses.
    pass_controllers_down /sys/fs/cgroup
    mkdir -p "/sys/fs/cgroup/$CGROUP"
    pass_controllers_down "/sys/fs/cgroup/$CGROUP"
    return
  fi
  for parent in /sys/fs/cgroup/*/; do
    parent=${parent%/}
    [ -e "$parent/cgroup.procs" ] || continue
    dir=$parent/$CGROUP
    mkdir -p "$dir"
    # A v1 cpuset without processors and memory nodes takes no process.
    if [ -e "$dir/cpuset.cpus" ]; then
      cat "$parent/cpuset.cpus" >"$dir/cpuset.cpus"
      cat "$parent/cpuset.mems" >"$dir/cpuset.mems"
    fi
  done
}

# One by one: a controller that cannot be passed down must not keep back the others.
pass_controllers_down() {
  local controllers c
  read -r -a controllers <"$1/cgroup.controllers"
  for c in "${controllers[@]}"; do
    printf '+%s' "$c" >"$1/cgroup.subtree_control" 2>/dev/null || true
  done
}

mounts_below() {
  # Blanks in paths are written \040 in mountinfo. Deepest first.
  awk -v d="$1/" 'index($5, d) == 1 {print $5}' /proc/self/mountinfo | sed 's/\\040/ /g' | sort -r
}

unmount_all() {
  local pass path
  for pass in 1 2 3; do
    [ -n "$(mounts_below "$STATE")" ] || return 0
    mounts_below "$STATE" | while IFS= read -r path; do
      # The last pass detaches what is busy: its last user is dead or dying.
      if [ "$pass" = 3 ]; then umount -l "$path" || true; else umount "$path" 2>/dev/null || true; fi
    done
  done
  [ -z "$(mounts_below "$STATE")" ] || fail "these mounts cannot be undone:" "$(mounts_below "$STATE")"
}

# clean: leaves nothing of the built-in cluster, in whatever state it is.
clean() {
  local dir table path
  kill_our_processes
  unmount_all
  if owns_machine; then
    for dir in $(our_cgroups); do
      # A killed process leaves its group a moment after it is gone from the process list.
      for _ in $(seq 50); do
        find "$dir" -depth -type d -exec rmdir {} + 2>/dev/null && break
        sleep 0.1
      done
    done
    for table in "ip kube-proxy" "ip6 kube-proxy" "ip $NFT_TABLE"; do
      # shellcheck disable=SC2086 # family and name
      nft delete table $table 2>/dev/null || true
    done
    ip link del "$BRIDGE" 2>/dev/null || true
    # The kubelet links container logs here, whatever its configuration says.
    for path in /var/log/containers/*; do
      case $(readlink "$path") in "$STATE"/*) rm -f "$path" ;; esac
    done
    rmdir /var/log/containers 2>/dev/null || true
    rm -f /var/lib/cni/results/opencode-operator-*
    rmdir /var/lib/cni/results /var/lib/cni 2>/dev/null || true
    if [ -e "$STATE/sysctl.before" ]; then sysctl -qp "$STATE/sysctl.before" 2>/dev/null || true; fi
  fi
  # --one-file-system: should a mount have been overlooked, what is behind it stays.
  rm -rf --one-file-system "$STATE"
}
