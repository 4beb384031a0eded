# make demo       run the quickstart recipe in a fresh .venv
# make test       the tests (minutes);  make test-slow  the ones that take longer
# make aarch64    an ARM Python under qemu-user in ~/.cache, for the tests of the ARM form (100 MB, once)
# make lint       ruff, ruff format, mypy
# make bench      every script of benchmarks/, one after another
# make docs       what docs/ says of settings, commands and the Python API, from the code
# make families-table  what the tests of families measure, into docs/families.md and docs/support.md (half an hour)
# make clean      remove .venv and the caches, but no results: they are in .vlm-edge/ and runs/

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_WORKERS ?= 2
# One thread a worker: torch's own threads would wait for each other (9 min with them, 3 min without, on 2 busy cores).
TEST_ENV := OMP_NUM_THREADS=1

# What pip says, cut down to the large downloads; its errors come through whole.
INSTALL = @echo "installing vlm-edge[$(1)] into $(VENV) (about 1 GB the first time)" >&2; \
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[$(1)]' \
	| sed -unE 's/^ +(Downloading|Using cached) ([^ ]+) \(([0-9.]+ [MG]B)\).*/  \2 (\3)/p; s/^Installing collected.*/  unpacking/p'

.PHONY: help demo test test-slow aarch64 lint bench docs families-table clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11" >&2; echo "hint: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(call INSTALL,demo)
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(call INSTALL,test)
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	$(BIN)/vlm-edge run recipes/quickstart.yaml

test: $(VENV)/.test
	$(TEST_ENV) $(BIN)/pytest -n $(PYTEST_WORKERS)

test-slow: $(VENV)/.test aarch64
	$(BIN)/pytest -m slow
	$(TEST_ENV) $(BIN)/pytest --hypothesis-profile=random $$(grep -rlE "from hypothesis import" tests)

aarch64: $(VENV)/.test
	$(BIN)/python tests/support/aarch64.py

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.test
	@for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(BIN)/python "$$file"; done

docs: $(VENV)/.test
	$(BIN)/python docs/write_pages.py

families-table: $(VENV)/.test
	$(TEST_ENV) VLM_EDGE_WRITE_FAMILIES=1 $(BIN)/pytest tests/families --ignore tests/families/test_families_page.py
	$(TEST_ENV) VLM_EDGE_WRITE_FAMILIES=1 $(BIN)/pytest -m slow tests/families/test_support_page.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
