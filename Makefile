.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PINS := -c constraints.txt --build-constraint constraints.txt
KERNELS := CMakeLists.txt $(shell find src -name '*.cpp' -o -name '*.h')
JOBS ?= 2
RUN ?= runs/default

.PHONY: help run test test-slow bench claims reliability lint format clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | sort

run: $(VENV)/.package ## train, compress, score and sample the default recipe, into runs/default
	$(BIN)/fairway run recipes/default.yaml --folder $(RUN) --json

test: lint ## lint and the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

test-slow: $(VENV)/.dev ## the tests that take minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m 'slow and not gpu' --timeout 3600

lint: $(VENV)/.dev ## style, types and layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python
	$(BIN)/lint-imports

format: $(VENV)/.dev ## rewrite to the house style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.bench ## every benchmark, beside its peers
	set -e; for script in $$(grep -l __main__ benchmarks/*.py | grep -v -e reliability -e tables); do $(BIN)/python $$script; done
	$(BIN)/python benchmarks/tables.py

claims: $(VENV)/.bench ## every claim about a technique, by whole runs (hours), into docs/claims.md
	$(BIN)/python benchmarks/claims/run.py --all --page

reliability: $(VENV)/.dev ## kill, damage and fuzz at full length (an hour), into docs/reliability.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/reliability.py

clean: ## remove everything that can be made again, runs excepted
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(VENV)/.pip: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Fairway needs Python 3.11 or newer; name one with make PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade -c constraints.txt pip
	@touch $@

$(VENV)/.package: $(VENV)/.pip pyproject.toml $(KERNELS)
	$(PIP) install $(PINS) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.package
	$(PIP) install $(PINS) --group dev
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(PIP) install $(PINS) --group bench
	@touch $@
