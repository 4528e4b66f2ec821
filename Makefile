# Two commands matter: `make demo` shows it, `make test` proves it. `make` alone lists the rest.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules

export CARGO_TERM_COLOR ?= never

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: demo
demo: ## from nothing to a session at work on a real cluster, in readable form
	@hack/demo.sh

.PHONY: test
test: ## everything, from unit tests to end-to-end tests on a real cluster with the real agent
	@hack/test.sh

.PHONY: test-long
test-long: ## the same with the long versions of the suites
	@LONG=1 hack/test.sh

.PHONY: dev
dev: ## sidecar, runner, OpenCode and scripted model as plain processes, no cluster
	@hack/dev.sh

.PHONY: check
check: ## the inner loop: format, lints, unit tests, licences, generated files
	@hack/check.sh

.PHONY: bench
bench: ## print the figures of docs/benchmarks.md
	@hack/bench.sh

.PHONY: bench-journal
bench-journal: ## the journal beside SQLite and bare loops on this disk; no cluster
	@hack/bench-journal.sh

.PHONY: bench-checkpoint
bench-checkpoint: ## checkpoints of 1 GB in 50,000 files on this disk; no cluster
	@hack/bench-checkpoint.sh

.PHONY: fuzz
fuzz: ## fuzz every parser for a minute each (FUZZ_SECONDS); needs a nightly compiler
	@hack/fuzz.sh

.PHONY: cluster
cluster: ## a cluster for development: KUBECONFIG's, kind's, or one built here
	@deploy/local/cluster.sh up

.PHONY: cluster-down
cluster-down: ## end that cluster and leave nothing of it
	@deploy/local/cluster.sh down

.PHONY: images
images: ## build all images and put them into the cluster
	@deploy/images.sh build && deploy/images.sh load

.PHONY: install
install: ## install or upgrade the operator in the cluster with Helm
	@hack/install.sh

.PHONY: generate
generate: ## make the generated files anew: CRD, OpenAPI, JSON Schema
	@hack/generate.sh

.PHONY: setup
setup: ## install what this machine lacks
	@hack/setup.sh
