# The commands of this project. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTOS := $(shell find protos -name '*.proto')
PACKAGES := assistant gateway crypto_svc nlp_svc reply_svc plugins

.DEFAULT_GOAL := help
.PHONY: help proto lock check test clean

help: ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# What it takes to run; what it takes to develop contains it.
$(VENV)/.runtime: requirements/runtime.lock pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/runtime.lock
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

lock: | $(BIN)/python ## Pin the newest versions that pyproject.toml allows, with hashes
	$(BIN)/pip install --quiet uv
	for extra in proto:runtime dev:dev; do \
	  $(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --no-header --no-emit-index-url \
	    --no-emit-find-links --no-emit-package ai-assistant --extra $${extra%:*} pyproject.toml \
	    -o requirements/$${extra#*:}.lock || exit 1; done

check: $(VENV)/.dev proto ## Lint, types, protos, walls
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code

test: $(VENV)/.dev proto ## All tests, in parallel
	$(BIN)/pytest -n auto

clean: ## Remove what the commands made, except a mesh's state
	rm -rf $(VENV) assistant/api build *.egg-info
