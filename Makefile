PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MIMIC_IV ?= ../shared/mimic-iv-demo

.PHONY: test test-extras demo bench lint clean

test: $(VENV)/installed
	$(BIN)/pytest -m "not extras"

test-extras: $(VENV)/installed-extras
	$(BIN)/pytest -m extras

demo: $(VENV)/installed
	$(BIN)/drfuse demo

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks.run --mimic_iv $(MIMIC_IV) --out docs/performance.md

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

$(VENV)/installed-extras: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,spark,ray]'
	touch $@

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
