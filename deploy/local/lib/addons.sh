# shellcheck shell=bash
# DNS and volumes of the built-in cluster. Both run as processes of the machine: no images to build for them, and they start early.

start_dns() {
  local elsewhere
  # Names outside of the cluster are looked up only when pods may leave the machine; otherwise "no such name" comes at once.
  if [ "${OPENCODE_OPERATOR_CLUSTER_EGRESS:-0}" = 1 ]; then
    elsewhere='forward . /etc/resolv.conf'
  else
    elsewhere='template ANY ANY { rcode NXDOMAIN }'
  fi
  cat >"$STATE/Corefile" <<X
cluster.local:53 in-addr.arpa:53 {
  bind $NODE_IP
  errors
  kubernetes cluster.local in-addr.arpa {
    kubeconfig $STATE/addons.kubeconfig opencode-operator
    ttl 1
  }
  cache 1
}
.:53 {
  bind $NODE_IP
  errors
  cache 1
  $elsewhere
}
X
  spawn coredns "$BASE/bin/coredns" -conf "$STATE/Corefile"
}

apply_addons() {
  cluster_kubectl apply --server-side --force-conflicts -f - <<X
apiVersion: v1
kind: Service
metadata:
  name: kube-dns
  namespace: kube-system
  labels: {k8s-app: kube-dns}
spec:
  clusterIP: $DNS_SERVICE_IP
  # No selector: the endpoint is the process on the node.
  ports:
    - {name: dns, port: 53, protocol: UDP}
    - {name: dns-tcp, port: 53, protocol: TCP}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: kube-dns
  namespace: kube-system
  labels: {kubernetes.io/service-name: kube-dns}
addressType: IPv4
ports:
  - {name: dns, port: 53, protocol: UDP}
  - {name: dns-tcp, port: 53, protocol: TCP}
endpoints:
  - {addresses: [$NODE_IP]}
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: local-path
  annotations: {storageclass.kubernetes.io/is-default-class: "true"}
provisioner: rancher.io/local-path
volumeBindingMode: WaitForFirstConsumer
reclaimPolicy: Delete
---
apiVersion: v1
kind: Namespace
metadata: {name: local-path-storage}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: local-path-provisioner, namespace: local-path-storage}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: local-path-config, namespace: local-path-storage}
data:
  config.json: '{"nodePathMap": [{"node": "DEFAULT_PATH_FOR_NON_LISTED_NODES", "paths": ["$STATE/volumes"]}]}'
  setup: |
    #!/bin/sh
    set -eu
    mkdir -m 0777 -p "\$VOL_DIR"
  teardown: |
    #!/bin/sh
    set -eu
    rm -rf "\$VOL_DIR"
  helperPod.yaml: |
    apiVersion: v1
    kind: Pod
    metadata: {name: helper-pod}
    spec: {containers: [{name: helper-pod, image: $HELPER_IMAGE, imagePullPolicy: Never}]}
X
}

start_provisioner() {
  mkdir -p "$STATE/volumes" "$STATE/provisioner"
  cluster_kubectl -n local-path-storage get configmap local-path-config -o 'go-template={{index .data "config.json"}}' \
    >"$STATE/provisioner/config.json"
  POD_NAMESPACE=local-path-storage spawn local-path-provisioner "$BASE/bin/local-path-provisioner" start \
    --kubeconfig "$STATE/addons.kubeconfig" --config "$STATE/provisioner/config.json" --namespace local-path-storage \
    --configmap-name local-path-config --helper-image "$HELPER_IMAGE" --service-account-name local-path-provisioner
}
