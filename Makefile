# Two commands are enough: `make demo` and `make test`.
VENV ?= .venv
PYTHON ?= python3.11
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo serve results bench test test-all check format docs

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
# torch and torchvision first and by exact version: everything else then keeps to them.
	$(BIN)/python -m pip install --quiet $$(grep -E '^(torch|torchvision)==' constraints.txt)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	touch $@

demo: $(STAMP)
	$(BIN)/mla demo

serve: $(STAMP)
	$(BIN)/mla serve

# The paper's ablations: hours on a laptop; goes on where it was stopped.
results: $(STAMP)
	$(BIN)/mla reproduce --out docs

# 15 minutes on two cores that do nothing else. Writes the tables of benchmarks/RESULTS.md.
bench: $(STAMP)
	$(BIN)/python -m benchmarks.report

# Two processes, each with a Ray of its own; more threads than cores would wait for each other.
# Tests of a Qdrant server follow where there is one, in one process: they share its collections.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not cluster and not server and not browser and not gpu"
ifneq ($(MLA_TEST_QDRANT_URL)$(MLA_TEST_QDRANT_START),)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "server and not slow"
endif

test-all: $(STAMP)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# The reference pages from the code, then the site in site/. A broken link fails.
docs: $(STAMP)
	$(BIN)/python docs/reference/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
