# Everything a newcomer types. Each target makes the environment (.venv) if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OLDEST := .venv-oldest
# Makes this processor another one: fewer vector units, other last bits.
WIDE := $(shell grep -qw avx512f /proc/cpuinfo 2>/dev/null && echo yes)
OTHER_CPU := $(if $(WIDE),ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2,ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41)
STORE ?= wmarena-store
export MLFLOW_DISABLE_TELEMETRY ?= true
export OMP_NUM_THREADS ?= 1
# Tests that need nothing but this process and its children. tests/conftest.py sets the marks.
TIER := not (ray or server or browser or training or package or drill or slow)
QUICK := tests/test_house.py tests/test_defaults.py tests/schemes/test_statistics.py tests/schemes/test_params.py \
    tests/schemes/test_keys.py tests/schemes/test_prf.py tests/schemes/test_commitment.py tests/schemes/test_uchida.py \
    tests/orchestrator/plan tests/orchestrator/keys/test_derivation.py tests/orchestrator/running/test_ledger.py \
    tests/experiments/spec tests/experiments/planning/test_expand.py tests/experiments/results

.PHONY: help demo quick test test-slow test-portable test-all package repository-files fuzz mutants drill check lint types imports ui docs bench clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z.-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV): $(READY) ## the virtual environment, with everything installed

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("expected Python >= 3.11, got " + sys.version.split()[0] + "; pass PYTHON=python3.12 or newer" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(READY)

demo: $(READY) ## run the main job on real data: MLflow records and an HTML report
	$(BIN)/wmarena --store $(STORE) run quickstart

quick: $(READY) ## 90 seconds for the inner loop: statistics, keys, planning, one scheme
	$(BIN)/pytest -m "$(TIER)" -n 2 $(QUICK)

test: $(READY) ## the test suite of a newcomer: no network service, no Ray, no browser
	$(BIN)/pytest -m "$(TIER)" -n 2 --dist loadscope

test-slow: $(READY) ## what `test` leaves out: Ray, servers (PostgreSQL, S3, MLflow), browser, long training, packaging, a drill of each kind
	$(BIN)/pytest -m "not ($(TIER)) and not slow" -n 2 --dist loadscope

$(OLDEST)/.ready: $(READY) pyproject.toml constraints/minimum.txt
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(OLDEST)
	$(BIN)/uv pip install --quiet --python $(OLDEST)/bin/python -c constraints/minimum.txt -e '.[dev]'
	touch $@

test-portable: $(OLDEST)/.ready ## the numeric tests with the oldest versions, as on another processor: other last bits, the same claims
	$(OTHER_CPU) $(OLDEST)/bin/pytest -m "$(TIER) or training" -n 2 --dist loadscope tests/schemes tests/attacks

test-all: test test-slow test-portable ## every tier but the slowest; .ci/run adds check

package: $(READY) ## source archive and wheel in dist/, and the slow tests of packaging: empty environments, 6 GB each, minutes
	$(BIN)/python -m build --no-isolation
	$(BIN)/pytest -m slow -p no:randomly tests/packaging

repository-files: $(READY) ## workflow, issue forms and citation against their schemas, versions against pyproject.toml
	$(BIN)/pytest -p no:randomly tests/packaging/test_repository_files.py

fuzz: $(READY) ## 10,000 altered inputs for everything that is read from disk: minutes
	WMARENA_FUZZ=1 $(BIN)/pytest -n 2 --dist load tests/fuzz

mutants: $(READY) ## small changes to the rules that decide verdicts, each of which a test should notice: MUTANTS="--module costs --sample 0"
	$(BIN)/python tests/mutants.py $(MUTANTS)

drill: fuzz ## the full numbers: altered inputs, killed workers, drivers and nodes, hung workers, full and rotten disks
	WMARENA_DRILL=1 $(BIN)/pytest -p no:randomly -rs tests/drills

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

imports: $(READY)
	$(BIN)/lint-imports

check: lint types imports test ## ruff, mypy --strict, import contracts, the tests of a newcomer

ui: $(READY) ## browse the records in MLflow (loopback)
	$(BIN)/wmarena --store $(STORE) ui

docs: $(READY) ## the documentation as a site in site/: open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo site/index.html

bench: $(READY) ## the benchmarks, side by side
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.scheduling
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.tuning

clean: ## remove the environment and caches; stores stay
	rm -rf $(VENV) $(OLDEST) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
