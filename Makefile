# Everything a newcomer types. Each target makes the environment (.venv) if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
STORE ?= wmarena-store
export MLFLOW_DISABLE_TELEMETRY ?= true
export OMP_NUM_THREADS ?= 1

.PHONY: help demo test fuzz mutants drill check lint types imports ui docs bench clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z.]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV): $(READY) ## the virtual environment, with everything installed

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("expected Python >= 3.11, got " + sys.version.split()[0] + "; pass PYTHON=python3.12 or newer" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(READY)

demo: $(READY) ## run the main job on real data: MLflow records and an HTML report
	$(BIN)/wmarena --store $(STORE) run quickstart

test: $(READY) ## the test suite
	$(BIN)/python -m pytest -n 2 --dist loadscope

fuzz: $(READY) ## 10,000 altered inputs for everything that is read from disk: minutes
	WMARENA_FUZZ=1 $(BIN)/python -m pytest -n 2 --dist load tests/fuzz

mutants: $(READY) ## small changes to the rules that decide verdicts, each of which a test should notice: MUTANTS="--module costs --sample 0"
	$(BIN)/python tests/mutants.py $(MUTANTS)

drill: fuzz ## the full numbers: altered inputs, killed workers, drivers and nodes, hung workers, full and rotten disks
	WMARENA_DRILL=1 $(BIN)/python -m pytest -p no:randomly -rs tests/drills

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

imports: $(READY)
	$(BIN)/lint-imports

check: lint types imports test ## what CI runs: ruff, mypy --strict, import contracts, tests

ui: $(READY) ## browse the records in MLflow (loopback)
	$(BIN)/wmarena --store $(STORE) ui

docs: $(READY) ## the documentation as a site in site/: open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo site/index.html

bench: $(READY) ## the benchmarks, side by side
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.scheduling
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.tuning

clean: ## remove the environment and caches; stores stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
