# `make` alone lists what there is. Everything runs in .venv, which is made when it is first needed.
# ARGS is handed on, for example: make test ARGS="tests/unit -k wal2json"

.DEFAULT_GOAL := help
.NOTPARALLEL:

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
# the tests of one-way syncs and of several sources
AS_ROLE := $(addprefix tests/,$(addprefix integration/test_,stream.py two_way.py topologies.py join.py shapes.py keyless.py sequences.py \
	hundred_tables.py kick.py trigger_stream.py) $(addprefix acceptance/test_,crash.py restarts.py kick.py pgbench_on_kick.py \
	multi_master.py multi_master_nodes.py multi_master_rows.py convergence.py))
JOBS := 2 # processes that run tests: most of the time they wait. Each has servers of its own
# the servers' files are kept in memory where there is enough: to make and remove them on a disk takes as long as all the rest
MEMORY := /dev/shm
ROOM = $(shell [ "$$(df --output=avail $(MEMORY) 2>/dev/null | tail -n 1)" -gt 8000000 ] 2>/dev/null && echo $(MEMORY) || echo "$${TMPDIR:-/tmp}")
SMOKE_JOBS := update,insert,latency,busy,drain,copy,fan-out,growth
# what is compiled when it is installed, and by what
TYPES := $(wildcard streamer/*/*.pxd)
COMPILED := $(TYPES) $(TYPES:.pxd=.py) streamer/compiled.py hatch_build.py
MODULES = $(shell find streamer tests -name '*.py')

.PHONY: help
help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: demo
demo: $(VENV)/demo-installed ## replicate a live pgbench database on this machine, to look at it (one minute)
	@$(BIN)/streamer demo $(ARGS)

.PHONY: test
test: test-packages $(VENV)/dev-installed ## run all tests on real servers; installs what is missing
	TMPDIR=$(ROOM) $(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal $(ARGS)

.PHONY: lint
lint: $(VENV)/dev-installed ## check style, types and the size of modules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	@awk 'FNR == 401 { print FILENAME ": longer than 400 lines, split it"; long = 1 } END { exit long }' $(MODULES)

.PHONY: bench
bench: $(VENV)/dev-installed ## compare with PostgreSQL's built-in subscription, on this machine
	$(BIN)/python -m tests.bench $(ARGS)

.PHONY: bench-smoke
bench-smoke: test-packages $(VENV)/dev-installed ## run the benchmark with next to nothing to do: it works, and all sides end equal
	$(BIN)/python -m tests.bench --sizes smoke --only $(SMOKE_JOBS) $(ARGS)

.PHONY: bench-plots
bench-plots: $(VENV)/bench-installed ## draw docs/benchmarks-*.svg from docs/benchmarks.json
	$(BIN)/python -m tests.bench.plots

.PHONY: test-matrix
test-matrix: $(VENV)/dev-installed ## test every PostgreSQL from 10 to 18 as source and target (needs npm)
	$(BIN)/python -m tests.matrix.run $(ARGS)

.PHONY: test-as-role
test-as-role: test-packages $(VENV)/dev-installed ## run the tests of replication with the rights of docs/installation.md, not as a superuser
	STREAMER_LEAST_PRIVILEGE=1 $(BIN)/python -m pytest $(or $(ARGS),$(AS_ROLE))

.PHONY: clean
clean: ## remove everything that make has made
	rm -rf $(VENV) .matrix build dist streamer/native .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find streamer tests -name __pycache__ -prune -exec rm -rf {} +

.PHONY: test-packages
test-packages:
	@scripts/install-test-packages

$(BIN)/python:
	@scripts/make-venv $(VENV)

$(VENV)/demo-installed: pyproject.toml $(COMPILED) | $(BIN)/python
	@echo "installing into $(VENV)"
	@$(PIP) --editable ".[demo]"
	@touch $@

$(VENV)/dev-installed: pyproject.toml $(COMPILED) | $(BIN)/python
	@echo "installing into $(VENV)"
	@$(PIP) --editable ".[dev]"
	@touch $@ $(VENV)/demo-installed

$(VENV)/bench-installed: pyproject.toml $(COMPILED) | $(BIN)/python
	@echo "installing into $(VENV)"
	@$(PIP) --editable ".[dev,bench]"
	@touch $@
