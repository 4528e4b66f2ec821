#!/usr/bin/env bash
# Installs or upgrades the operator in the cluster from this checkout's chart and images.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
use_cluster
args=()
images=$(deploy/images.sh chart-values)
key=$(deploy/images.sh key operator)
while read -r name image; do args+=(--set "images.$name=$image"); done <<<"$images"
# The tag stays the same from build to build: only this tells Kubernetes that the operator is another one.
args+=(--set-string "podAnnotations.opencode-operator\\.dev/image=$key")
timed "installing the operator with Helm" "$LOGS/helm.log" "kubectl -n $SYSTEM_NAMESPACE get pods,events; then 'make install'" \
  helm upgrade --install opencode-operator charts/opencode-operator --namespace "$SYSTEM_NAMESPACE" --create-namespace \
  "${args[@]}" --wait --timeout 3m
