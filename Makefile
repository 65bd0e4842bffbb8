# One command per chore; continuous integration runs the same ones. `make help` lists them.

PYTHON ?= python3
# Where else to look for torch: a CPU-only or another CUDA build, see constraints.txt.
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST_ARGS ?=
CHAOS_ARGS ?=
# What `make bench-report` measures: names of files in benchmarks/matrices.
MATRICES ?= memory zero scaling throughput engines

# DeepSpeed looks for the `ninja` executable on PATH, and tests run the `genrec` command.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-slow test-gpu test-browser check format bench bench-report predictions chaos cluster-proof docs clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## Make .venv and install genrec with the tested versions (PYTHON=python3.12 picks another Python)

$(STAMP): setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v[:2] <= (3, 12) else f"genrec needs Python 3.11 or 3.12, but $(PYTHON) is {v[0]}.{v[1]}; run: make install PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing torch and the other versions of constraints.txt into $(VENV); this takes some minutes."
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $(STAMP)
	@echo "Looking at this machine, and compiling DeepSpeed's CPU op once: about a minute on 2 cores."
	-@$(BIN)/genrec doctor

quickstart: install ## From a synthetic log to a trained model, recommendations and a report, in minutes
	$(BIN)/genrec prepare configs/quickstart.yaml
	$(BIN)/genrec train configs/quickstart.yaml
	$(BIN)/genrec evaluate runs/quickstart
	$(BIN)/genrec recommend runs/quickstart --overwrite
	$(BIN)/genrec report runs/quickstart
	@echo "Open $(CURDIR)/runs/quickstart/report.html"

# Tests that start Ray, or workers of their own, take turns; the others run side by side, one file on each core.
TURNS := tests/distributed tests/e2e tests/unit/data/test_ray_session.py
# pytest's status where nothing was chosen, by -k among PYTEST_ARGS say
NO_TEST := 5

test: install ## Every test that needs neither a GPU nor many minutes, on two cores
	$(BIN)/pytest -m "not slow and not gpu" $(TURNS) $(PYTEST_ARGS) || [ $$? -eq $(NO_TEST) ]
	$(BIN)/pytest -m "not slow and not gpu" -n 2 --dist loadfile tests/guards tests/unit $(TURNS:%=--ignore=%) $(PYTEST_ARGS)

test-slow: install ## The tests that take minutes
	$(BIN)/pytest -m "slow and not gpu" $(PYTEST_ARGS)

test-gpu: install ## The tests that need a CUDA device
	$(BIN)/pytest -m gpu $(PYTEST_ARGS)

test-browser: install ## The tests that look at the reports in Chromium (Debian, Ubuntu: apt-get install chromium)
	@command -v chromium chromium-browser google-chrome >/dev/null || { echo "no Chromium on PATH: apt-get install chromium"; exit 1; }
	$(BIN)/pytest -m browser $(PYTEST_ARGS)

check: install ## Format, lint, types, shell scripts and the guards in tests/guards
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@if command -v shellcheck >/dev/null; then shellcheck .ci/run $$(git ls-files "*.sh"); else echo "shellcheck is not installed: shell scripts are left unchecked"; fi
	$(BIN)/pytest --quiet tests/guards

format: install ## Rewrite the code in the one format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install ## Measure throughput and overhead (benchmarks/README.md)
	$(BIN)/python benchmarks/overhead.py

bench-report: install ## Measure the matrices of benchmarks/README.md, hours that may be cut short, and write them as one page
	for name in $(MATRICES); do $(BIN)/genrec bench benchmarks/matrices/$$name.yaml --launcher local || exit 1; done
	$(BIN)/python benchmarks/predictions.py benchmarks/out/memory.json
	$(BIN)/python benchmarks/zero.py benchmarks/out/zero.json
	$(BIN)/genrec report benchmarks/out --html benchmarks/out/report.html

predictions: install ## Predicted beside measured memory and step time of 48 cases: the table of benchmarks/README.md
	$(BIN)/genrec bench benchmarks/matrices/memory.yaml --launcher local
	$(BIN)/python benchmarks/predictions.py benchmarks/out/memory.json --markdown benchmarks/out/predictions.md

chaos: install ## Break a training run on a small Ray cluster 22 times, half an hour (CHAOS_ARGS=--quick: 9 times)
	$(BIN)/python benchmarks/chaos.py $(CHAOS_ARGS)

cluster-proof: install ## Submit a run to a small Ray cluster, kill a node, submit it again; equal to the local run?
	$(BIN)/python benchmarks/cluster_proof.py

docs: install ## Write the generated pages again
	$(BIN)/python docs/config_reference.py

clean: ## Remove caches and build products; keeps .venv, prepared data and runs
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find genrec tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +
