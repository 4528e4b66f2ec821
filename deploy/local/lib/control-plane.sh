# shellcheck shell=bash
# Keys, etcd, API server, controllers and scheduler of the built-in cluster.

API=https://$NODE_IP:6443
# On loopback, where pods do not get: this etcd asks nobody who they are. Not the usual port, so that another etcd may run.
ETCD=http://127.0.0.1:23790

# certificate NAME SUBJECT EXTENSION: signed by the cluster's authority.
certificate() {
  openssl req -x509 -config "$STATE/pki/openssl.cnf" -CA "$STATE/pki/ca.crt" -CAkey "$STATE/pki/ca.key" -days 3650 \
    -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -set_serial "0x$(openssl rand -hex 8)" \
    -keyout "$STATE/pki/$1.key" -out "$STATE/pki/$1.crt" -subj "$2" -addext "$3" 2>"$STATE/log/openssl-$1.log"
}

make_keys() {
  local pki=$STATE/pki name pids=()
  mkdir "$pki"
  chmod 700 "$pki"
  # A configuration of our own: the distribution's would make every certificate an authority.
  printf '[req]\ndistinguished_name=dn\n[dn]\n' >"$pki/openssl.cnf"
  openssl req -x509 -config "$pki/openssl.cnf" -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 \
    -keyout "$pki/ca.key" -out "$pki/ca.crt" -subj /CN=opencode-operator-local \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign 2>"$STATE/log/openssl-ca.log"
  local client=extendedKeyUsage=clientAuth
  certificate apiserver /CN=kube-apiserver \
    "subjectAltName=IP:127.0.0.1,IP:$NODE_IP,IP:$API_SERVICE_IP,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local" & pids+=($!)
  certificate kubelet-server /CN=node1 "subjectAltName=IP:$NODE_IP,DNS:node1" & pids+=($!)
  certificate admin /O=system:masters/CN=admin "$client" & pids+=($!)
  # CoreDNS and the provisioner are host processes of the same user who has the authority's key: an identity with fewer rights
  # would protect nothing.
  certificate addons /O=system:masters/CN=addons "$client" & pids+=($!)
  certificate apiserver-to-kubelet /O=system:masters/CN=kube-apiserver-kubelet-client "$client" & pids+=($!)
  certificate controller-manager /CN=system:kube-controller-manager "$client" & pids+=($!)
  certificate scheduler /CN=system:kube-scheduler "$client" & pids+=($!)
  certificate kubelet /O=system:nodes/CN=system:node:node1 "$client" & pids+=($!)
  certificate proxy /CN=system:kube-proxy "$client" & pids+=($!)
  openssl ecparam -name prime256v1 -genkey -noout -out "$pki/service-accounts.key"
  openssl ec -in "$pki/service-accounts.key" -pubout -out "$pki/service-accounts.pub" 2>/dev/null
  for name in "${pids[@]}"; do
    wait "$name" || fail "openssl could not make the cluster's certificates" "See $STATE/log/openssl-*.log"
  done
  for name in admin addons controller-manager scheduler kubelet proxy; do kubeconfig "$name" >"$STATE/$name.kubeconfig"; done
  chmod 600 "$STATE"/*.kubeconfig
}

# With the keys inside, so that the file can be copied.
kubeconfig() {
  local pki=$STATE/pki
  cat <<X
apiVersion: v1
kind: Config
clusters:
  - name: opencode-operator
    cluster: {server: "$API", certificate-authority-data: $(base64 -w0 "$pki/ca.crt")}
users:
  - name: $1
    user: {client-certificate-data: $(base64 -w0 "$pki/$1.crt"), client-key-data: $(base64 -w0 "$pki/$1.key")}
contexts:
  - name: opencode-operator
    context: {cluster: opencode-operator, user: $1}
current-context: opencode-operator
X
}

start_etcd() {
  # No fsync: what this cluster holds does not outlive a power cut anyway, and tests write a lot.
  spawn etcd "$BASE/bin/etcd" --data-dir "$STATE/etcd" --unsafe-no-fsync --log-level warn \
    --listen-client-urls "$ETCD" --advertise-client-urls "$ETCD" \
    --listen-peer-urls http://127.0.0.1:23800 --initial-advertise-peer-urls http://127.0.0.1:23800 \
    --initial-cluster default=http://127.0.0.1:23800
}

start_apiserver() {
  local pki=$STATE/pki
  spawn kube-apiserver "$BASE/bin/kube-apiserver" --etcd-servers="$ETCD" \
    --bind-address="$NODE_IP" --advertise-address="$NODE_IP" --secure-port=6443 --cert-dir="$STATE/pki" \
    --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" --client-ca-file="$pki/ca.crt" \
    --service-cluster-ip-range="$SERVICE_CIDR" \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local \
    --service-account-signing-key-file="$pki/service-accounts.key" --service-account-key-file="$pki/service-accounts.pub" \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
    --kubelet-certificate-authority="$pki/ca.crt" --kubelet-preferred-address-types=InternalIP \
    --kubelet-client-certificate="$pki/apiserver-to-kubelet.crt" --kubelet-client-key="$pki/apiserver-to-kubelet.key" \
    --profiling=false
}

start_controllers() {
  # One replica of each: nobody to elect a leader against. The default rate of requests makes the controllers, each with a token of
  # its own to ask for, need four seconds before the first pod can be made.
  spawn kube-controller-manager "$BASE/bin/kube-controller-manager" --kubeconfig="$STATE/controller-manager.kubeconfig" \
    --authentication-kubeconfig="$STATE/controller-manager.kubeconfig" --authorization-kubeconfig="$STATE/controller-manager.kubeconfig" \
    --root-ca-file="$STATE/pki/ca.crt" --service-account-private-key-file="$STATE/pki/service-accounts.key" \
    --use-service-account-credentials --cluster-cidr="$POD_CIDR" --leader-elect=false \
    --bind-address="$NODE_IP" --cert-dir="$STATE/pki/controller-manager" --profiling=false \
    --kube-api-qps=200 --kube-api-burst=400
  spawn kube-scheduler "$BASE/bin/kube-scheduler" --kubeconfig="$STATE/scheduler.kubeconfig" \
    --authentication-kubeconfig="$STATE/scheduler.kubeconfig" --authorization-kubeconfig="$STATE/scheduler.kubeconfig" \
    --leader-elect=false --bind-address="$NODE_IP" --cert-dir="$STATE/pki/scheduler" --profiling=false
}
