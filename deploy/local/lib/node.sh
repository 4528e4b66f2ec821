# shellcheck shell=bash
# The node of the built-in cluster: containerd, kubelet, kube-proxy.

CONTAINERD_SOCKET=$STATE/containerd.sock
PAUSE_IMAGE=localhost/opencode-operator-local/pause:1
HELPER_IMAGE=localhost/opencode-operator-local/busybox:1

ctr() { CONTAINERD_ADDRESS=$CONTAINERD_SOCKET "$BASE/bin/ctr" -n k8s.io "$@"; }

start_containerd() {
  mkdir -p "$STATE/cni"
  cat >"$STATE/containerd.toml" <<X
version = 3
root = "$STATE/containerd/root"
state = "$STATE/containerd/state"
# Other containerds are none of ours, and no snapshotter but overlayfs is used: less to start, nothing left in /run and /opt.
disabled_plugins = [
  "io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "$CONTAINERD_SOCKET"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "$PAUSE_IMAGE"
[plugins."io.containerd.cri.v1.runtime"]
  # Root in a container often lacks CAP_SYS_RESOURCE, without which no score below one's own can be set.
  restrict_oom_score_adj = true
  # Network namespaces where down finds them, not among those of others in /run/netns.
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["$(bin_dir cni)"]
    conf_dir = "$STATE/cni"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = "$(bin_dir runc)/runc"
      Root = "$STATE/runc"
X
  cat >"$STATE/cni/10-opencode-operator.conflist" <<X
{"cniVersion": "1.0.0", "name": "opencode-operator", "plugins": [{
  "type": "ptp",
  "ipam": {"type": "host-local", "dataDir": "$STATE/leases", "ranges": [[{"subnet": "$NODE_POD_CIDR", "gateway": "$NODE_IP"}]],
    "routes": [{"dst": "0.0.0.0/0"}]}
}]}
X
  # containerd looks for its shim on PATH.
  PATH=$BASE/bin:$PATH spawn containerd "$BASE/bin/containerd" -c "$STATE/containerd.toml" -l info
}

# The two images that the cluster itself needs, from files of Debian packages.
import_own_images() {
  local dir root
  dir=$STATE/images
  mkdir -p "$dir"
  root=$(mktemp -d -p "$STATE")
  cp "$(command -v catatonit)" "$root/pause"
  write_image "$dir/pause.tar" "$PAUSE_IMAGE" "$root" '{"Entrypoint":["/pause","-P"],"User":"65535:65535"}'
  rm "$root/pause"
  mkdir -m 1777 "$root/tmp"
  mkdir "$root/bin"
  cp "$(static_busybox)" "$root/bin/busybox"
  ln -s busybox "$root/bin/sh"
  # A shell with the usual commands: it makes volumes for the provisioner, and is at hand for looking into the cluster.
  local applet
  for applet in $("$root/bin/busybox" --list); do [ -e "$root/bin/$applet" ] || ln -s busybox "$root/bin/$applet"; done
  write_image "$dir/busybox.tar" "$HELPER_IMAGE" "$root" '{"Cmd":["/bin/sh"],"Env":["PATH=/bin"]}'
  rm -r "$root"
  wait_for containerd 20 "containerd to answer" ctr version
  import_archive "$dir/pause.tar"
  import_archive "$dir/busybox.tar"
}
static_busybox() { if [ -x /usr/lib/busybox-static/busybox ]; then echo /usr/lib/busybox-static/busybox; else echo /bin/busybox; fi; }

import_archive() {
  local out
  out=$(ctr images import --snapshotter overlayfs "$1" 2>&1) || fail "containerd did not take the image archive $1:" "$out"
}

start_kubelet() {
  # Pods get search domains of the cluster only, not the machine's.
  : >"$STATE/resolv.conf"
  cat >"$STATE/kubelet.yaml" <<X
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://$CONTAINERD_SOCKET
cgroupDriver: cgroupfs
cgroupRoot: /$CGROUP
# Machines in the cloud and in CI still come with cgroup v1.
failCgroupV1: false
failSwapOn: false
address: $NODE_IP
healthzBindAddress: $NODE_IP
tlsCertFile: $STATE/pki/kubelet-server.crt
tlsPrivateKeyFile: $STATE/pki/kubelet-server.key
authentication: {anonymous: {enabled: false}, x509: {clientCAFile: $STATE/pki/ca.crt}, webhook: {enabled: true}}
authorization: {mode: Webhook}
clusterDNS: [$DNS_SERVICE_IP]
clusterDomain: cluster.local
resolvConf: $STATE/resolv.conf
# A disk that is nearly full is the machine's matter; and images are loaded, not pulled: one that is deleted does not come back.
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
# The tables of iptables stay as they are: services are made with nftables.
makeIPTablesUtilChains: false
volumePluginDir: $STATE/kubelet-plugins
podLogsDir: $STATE/pod-logs
registerNode: true
X
  spawn kubelet "$BASE/bin/kubelet" --config="$STATE/kubelet.yaml" --kubeconfig="$STATE/kubelet.kubeconfig" \
    --root-dir="$STATE/kubelet" --hostname-override=node1 --node-ip="$NODE_IP"
}

start_proxy() {
  cat >"$STATE/proxy.yaml" <<X
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $STATE/proxy.kubeconfig}
mode: nftables
clusterCIDR: $POD_CIDR
hostnameOverride: node1
bindAddress: $NODE_IP
healthzBindAddress: $NODE_IP:10256
metricsBindAddress: $NODE_IP:10249
# The machine's connection tracking settings stay as they are.
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
nftables: {minSyncPeriod: 100ms}
X
  spawn kube-proxy "$BASE/bin/kube-proxy" --config="$STATE/proxy.yaml"
}
