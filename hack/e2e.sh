#!/usr/bin/env bash
# End-to-end tests on the cluster, with the operator installed as users install it.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
take_sources
use_cluster
# What is built and loaded already takes no time.
deploy/images.sh build
if [ "$(cat "$CHOICE_FILE")" = external ] && [ -z "${REGISTRY:-}" ]; then
  say "note: without REGISTRY the cluster of KUBECONFIG is taken to have the images already"
else
  deploy/images.sh load
fi
hack/install.sh
for target in scripted-model agent; do
  image=$(deploy/images.sh in-cluster "$target")
  name=IMAGE_${target//-/_}
  export "${name^^}=$image"
done
# The leak suite shows each attack in a pod without protections first. Like other tests it needs the node itself, so it cannot run
# on a cluster of KUBECONFIG.
if [ "$(cat "$CHOICE_FILE")" != external ]; then
  deploy/images.sh build --weakened
  deploy/images.sh load --weakened
fi
exec deploy/local/cluster.sh hold -- env -C "$SOURCE" cargo test --locked -p tests -- --test-threads="${E2E_THREADS:-3}" "$@"
