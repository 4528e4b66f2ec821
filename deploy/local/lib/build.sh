# shellcheck shell=bash
# Binaries of the built-in cluster: made from pinned Go modules, kept in the cache under a name that says what they were made of.

PINS=$HERE/pins

# NAME -> which folder of pins, cgo, and the packages. Kept in the order in which the cluster needs them.
BINARIES="etcd containerd runc cni kubernetes kubectl coredns provisioner helm"
recipe() {
  PINS_OF=$1 CGO=0 TAGS='' LDFLAGS='-s -w'
  case $1 in
    etcd) PACKAGES="etcd=go.etcd.io/etcd/server/v3" ;;
    containerd)
      local c=github.com/containerd/containerd/v2/cmd
      PACKAGES="containerd=$c/containerd containerd-shim-runc-v2=$c/containerd-shim-runc-v2 ctr=$c/ctr"
      ;;
    # runc enters namespaces in C before the Go runtime starts, and filters system calls through libseccomp.
    runc) PACKAGES="runc=github.com/opencontainers/runc" CGO=1 TAGS=seccomp ;;
    cni)
      local p=github.com/containernetworking/plugins/plugins
      PACKAGES="ptp=$p/main/ptp loopback=$p/main/loopback host-local=$p/ipam/host-local"
      ;;
    kubernetes | kubectl)
      local k=k8s.io/kubernetes/cmd v
      PINS_OF=kubernetes
      v=$(awk '$1 == "k8s.io/kubernetes" {print $2} $1 == "require" && $2 == "k8s.io/kubernetes" {print $3}' "$PINS/kubernetes/go.mod")
      # Without this the node would report the version v0.0.0.
      LDFLAGS+=" -X k8s.io/component-base/version.gitVersion=$v -X k8s.io/client-go/pkg/version.gitVersion=$v"
      PACKAGES="kubectl=$k/kubectl"
      [ "$1" = kubectl ] || PACKAGES="kube-apiserver=$k/kube-apiserver kubelet=$k/kubelet \
        kube-controller-manager=$k/kube-controller-manager kube-scheduler=$k/kube-scheduler kube-proxy=$k/kube-proxy"
      ;;
    coredns) PACKAGES="coredns=github.com/coredns/coredns" ;;
    provisioner) PACKAGES="local-path-provisioner=github.com/rancher/local-path-provisioner" ;;
    helm) PACKAGES="helm=helm.sh/helm/v4/cmd/helm" ;;
    *) fail "no such binary: $1" ;;
  esac
}

need_go() {
  command -v go >/dev/null || fail "the built-in cluster is built with Go, and there is no go on PATH." \
    "Install Go 1.26 or newer (https://go.dev/dl), or set KUBECONFIG to a cluster that you have."
  GO_VERSION=$(cd "$PINS/kubernetes" && go env GOVERSION GOARCH 2>&1 | tr '\n' ' ') ||
    fail "this Go is too old or cannot get the one that is needed: $GO_VERSION" "Install Go 1.26 or newer."
}

# Where the binaries of NAME are, or will be.
bin_dir() {
  recipe "$1"
  local hash
  hash=$(
    {
      cat "$PINS/$PINS_OF/go.mod" "$PINS/$PINS_OF/go.sum"
      printf '%s\n' "$GO_VERSION" "$CGO $TAGS $LDFLAGS" "$PACKAGES"
    } | sha256sum | cut -c1-16
  )
  printf '%s/bin/%s-%s\n' "$CACHE" "$1" "$hash"
}

# ensure_binary NAME: builds it unless the cache has it.
ensure_binary() {
  local name=$1 dir tmp pair log
  dir=$(bin_dir "$name")
  [ -d "$dir" ] && return
  mkdir -p "$CACHE/bin" "$CACHE/log"
  # The lock is the cache's own: clusters with another state folder may share the cache.
  exec 7>>"$CACHE/bin/.lock"
  if ! flock -n 7; then
    say "another process builds into $CACHE/bin; waiting for it"
    flock 7
  fi
  if [ ! -d "$dir" ]; then
    recipe "$name"
    # Built beside its place and renamed when complete, so that a build that was cut short is never taken for a whole one.
    rm -rf "$CACHE/bin/tmp-$name"-*
    tmp=$(mktemp -d "$CACHE/bin/tmp-$name-XXXXXX")
    for pair in $PACKAGES; do
      log=$CACHE/log/build-${pair%%=*}.log
      timed "build ${pair%%=*}" "$log" "see the log; when it is about the network, run the same command again: what was built is kept" \
        go_build "$tmp/${pair%%=*}" "${pair#*=}" || { rm -rf "$tmp"; exit 1; }
    done
    chmod 755 "$tmp"
    mv -T "$tmp" "$dir"
  fi
  exec 7>&-
}

go_build() {
  cd "$PINS/$PINS_OF" || return 1
  # GOFLAGS and GOWORK of the caller could change what is built. nice: a build must not starve the rest of a small machine.
  GOFLAGS='' GOWORK=off CGO_ENABLED=$CGO nice -n 5 \
    go build -mod=readonly -trimpath -buildvcs=false -tags "$TAGS" -ldflags "$LDFLAGS" -o "$1" "$2"
}

# link_binaries NAME...: all in one folder for the daemons, and what people call in another one that goes on their PATH.
link_binaries() {
  local name pair dir
  mkdir -p "$BASE/bin" "$BASE/tools"
  for name in "$@"; do
    recipe "$name"
    dir=$(bin_dir "$name")
    for pair in $PACKAGES; do
      ln -sfnT "$dir/${pair%%=*}" "$BASE/bin/${pair%%=*}"
      case ${pair%%=*} in kubectl | helm) ln -sfnT "$dir/${pair%%=*}" "$BASE/tools/${pair%%=*}" ;; esac
    done
  done
}

# kubectl and helm for clusters that are not ours: those of the machine, else the pinned ones.
ensure_tools() {
  local name
  for name in kubectl helm; do
    type -P "$name" >/dev/null && continue
    need_go
    ensure_binary "$name"
    link_binaries "$name"
  done
}

# ensure_packages COMMAND_OR_FILE=PACKAGE...: installs with apt what is missing.
ensure_packages() {
  local pair missing=''
  for pair in "$@"; do
    case $pair in
      /*) [ -e "${pair%%=*}" ] || missing+=" ${pair#*=}" ;;
      *) command -v "${pair%%=*}" >/dev/null || missing+=" ${pair#*=}" ;;
    esac
  done
  [ -z "$missing" ] && return
  command -v apt-get >/dev/null || fail "these Debian packages (or what your system calls them) are missing:$missing"
  [ "$(id -u)" = 0 ] || fail "these packages are missing:$missing" "Run: sudo apt-get install$missing"
  mkdir -p "$CACHE/log"
  # shellcheck disable=SC2086 # a list of names
  timed "install packages:$missing" "$CACHE/log/apt.log" "run: apt-get update && apt-get install$missing" apt_install $missing || exit 1
}
apt_install() {
  # A failed update is no reason to stop: the lists that are there may do.
  apt-get update -qq || true
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
}
