# `make help` lists the targets. Everything runs in .venv, which `install` builds when it is missing or stale.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCHMARKS := $(filter-out benchmarks/bench_zoo.py,$(sort $(wildcard benchmarks/bench_*.py)))

.DEFAULT_GOAL := help
.PHONY: help install demo test lint house bench zoo docs package clean

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

install: $(STAMP) ## build .venv (only when missing, or older than pyproject.toml or constraints.txt)

# torch comes first and alone, so that no other package's requirements choose its version.
# The stamp is written last: an interrupted install is repeated.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "make install needs Python 3.11 or newer for the pinned versions, and $(PYTHON) is %d.%d; try: make install PYTHON=python3.11" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install ## train a small CNN on handwritten digits, prune half of it, write demo/report.html
	$(BIN)/shaprune demo

test: install ## run all tests, on all cores
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

lint: install ## ruff (rules and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

house: ## how easy the source is to find one's way in: numbers beside their goals
	$(PYTHON) benchmarks/house.py

bench: install ## run every benchmarks/bench_*.py, one after the other
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python "$$script"; done

zoo: .venv-zoo/.installed ## ask real models of torchvision, timm, transformers and ultralytics what can leave, in .venv-zoo
	.venv-zoo/bin/python benchmarks/bench_zoo.py

.venv-zoo/.installed: benchmarks/zoo-requirements.txt
	$(PYTHON) -m venv .venv-zoo
	.venv-zoo/bin/python -m pip install --quiet --requirement benchmarks/zoo-requirements.txt
	.venv-zoo/bin/python -m pip install --quiet --editable .
	@touch $@

docs: install ## build the documentation into site, warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

package: install ## build the sdist, and the wheel from it, into dist
	rm -rf dist
	$(BIN)/python -m build --no-isolation

clean: ## remove caches, builds and the demo's output (.venv stays)
	rm -rf build dist site demo lightning_logs .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov
	find src tests benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +
