# make test | demo | bench | faults | lint: each sets up everything it needs by itself (.venv, pip, the locked versions).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow lint bench faults clean

demo: $(READY)
	$(BIN)/mrsi demo --output demo_output

test: lint
	$(BIN)/python -m pytest -m "not slow" tests

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python benchmarks/run_all.py

faults: $(READY)
	$(BIN)/python benchmarks/faults.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) demo_output build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
