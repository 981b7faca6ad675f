# Each target builds the environment it needs: `make demo` and `make test` work from a bare checkout.
# The pinned set of constraints.txt needs Python 3.11 or newer: `make demo PYTHON=python3.12` picks one.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RUN    := runs/demo

.PHONY: env dev-env demo test clean

env: $(VENV)/env.stamp

dev-env: $(VENV)/dev-env.stamp

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is missing or older than 3.11; set PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/env.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[app]'
	touch $@

$(VENV)/dev-env.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(VENV)/env.stamp $@

demo: env
	$(BIN)/python -m experiments.train denoise --sigma 25 --out $(RUN)

test: dev-env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find piggyback regularizers experiments tests -name __pycache__ -type d -prune -exec rm -rf {} +
