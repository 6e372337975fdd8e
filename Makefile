# Everything here can also be done by hand; `make help` lists it. Stamp files keep a warm run away from pip.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.DEFAULT_GOAL := help
.PHONY: help install demo test simulate lint format data models bench chaos broker broker-stop clean

help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.serving ## Prompts in, generated text out, on an embedded Kafka (installs what serving needs)
	@$(BIN)/eddy demo

test: $(VENV)/.everything $(VENV)/.vectors ## Run all tests, those on a real Kafka too (installs torch and all)
	@echo "running all tests: unit, contract, and end to end on the embedded broker"
	$(BIN)/python -m pytest $(PYTEST_ARGS)

SEEDS ?= 1000
START ?= 0
simulate: $(VENV)/.everything ## Run the worker over a model of Kafka (SEEDS=100000 START=0), on virtual time
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) --start $(START)

lint: $(VENV)/.everything ## Check style, types and which room imports which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.everything ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

data: $(VENV)/.serving ## Bring the data sets of all tasks into the cache (Debian packages, without root)
	$(BIN)/python -m export.data

models: $(VENV)/.everything $(VENV)/.vectors ## Train and export the shipped models again (an hour of one core; NAMES="video" only one)
	$(BIN)/python -m export.rebuild $(NAMES)

bench: $(VENV)/.everything ## Measure the worker beside raw onnxruntime and a hand-batched loop
	$(BIN)/python -m tests.benchmarks

chaos: $(VENV)/.everything ## Kill, stop and shake workers and a broker (MINUTES=30 SEED=... BROKERS=3), and count what is lost or repeated
	$(BIN)/python -m tests.chaos --minutes $(or $(MINUTES),30) --brokers $(or $(BROKERS),1) $(if $(SEED),--seed $(SEED))

constraints: ## Write the versions that the image installs, from what serving needs today
	@rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	build/constraints/bin/python -m pip install --quiet .
	{ echo "# What the image installs; written by make constraints."; \
	  build/constraints/bin/python -m pip freeze --exclude eddy-streams; } > deploy/constraints.txt
	@rm -rf build/constraints

broker: $(VENV)/.serving ## Start a Kafka for development
	@$(BIN)/eddy broker start

broker-stop: $(VENV)/.serving ## Stop it
	@$(BIN)/eddy broker stop

install: $(VENV)/.serving ## Make .venv with what serving and the broker need

clean: ## Remove the environment and what tools left behind
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Eddy needs Python 3.11 or newer, $(PYTHON) is `$(PYTHON) --version 2>&1`: try make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	  || { echo "$(PYTHON) cannot make environments: install its venv package (Debian: apt-get install python3-venv)"; exit 1; }
	@echo "making the environment $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.serving: pyproject.toml | $(VENV)/.made
	@echo "installing what serving and the embedded broker need (about 150 MB, once)"
	@$(BIN)/python -m pip install --editable '.[broker]'
	@touch $@

$(VENV)/.everything: pyproject.toml | $(VENV)/.made
	@echo "installing what training, tests and linters need, torch among it (a few minutes, once)"
	@$(BIN)/python -m pip install --editable '.[export,baselines,broker,media,dev]'
	@touch $@ $(VENV)/.serving

$(VENV)/.vectors: pyproject.toml | $(VENV)/.everything
	@echo "installing word vectors that a model begins with (120 MB, once)"
	@$(BIN)/python -m pip install --editable '.[vectors]'
	@touch $@
