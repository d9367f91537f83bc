PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
DOCS := .venv-docs
RELEASE := .venv-release
MIMIC_IV ?= ../shared/mimic-iv-demo

# A processor without AVX-512 and bfloat16: what oneDNN and PyTorch then use, and what they lack.
AVX2 := ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2

.PHONY: test test-slow test-avx2 test-oldest test-extras demo bench faults docs lint release clean

test: $(VENV)/installed
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow and not extras"

test-slow: $(VENV)/installed
	$(BIN)/pytest -m "slow and not extras"

test-avx2: $(VENV)/installed
	$(AVX2) $(BIN)/pytest tests/models/test_contract.py tests/models/test_precision.py \
		tests/models/test_ehr_encoders.py tests/models/test_cxr_encoders.py tests/models/test_medfuse.py \
		tests/training/test_fit.py::test_bfloat16_trains \
		tests/training/test_fit.py::test_medfuse_trains_in_bfloat16_on_any_processor

test-oldest: $(OLDEST)/installed
	$(OLDEST)/bin/pytest -m "not extras and not slow" tests/test_cli.py tests/cohort/test_preparation.py \
		tests/cohort/test_store.py tests/data tests/evaluation tests/models/test_contract.py \
		tests/models/test_linear.py tests/report tests/simulate/test_build.py \
		tests/training/test_tune.py

test-extras: $(VENV)/installed-extras
	$(BIN)/pytest -m extras

demo: $(VENV)/installed
	$(BIN)/drfuse demo

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks.run --mimic-iv $(MIMIC_IV) --out docs/performance.md

faults: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.reliability --out docs/reliability.md

docs: $(DOCS)/installed
	$(DOCS)/bin/zensical build --clean --strict

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# VERSION=1.2.3: the version and its changes, packages in dist/, and the wheel tried in an empty environment
release:
	$(PYTHON) .ci/release.py $(VERSION)
	rm -rf dist
	$(PYTHON) -m venv --clear $(RELEASE)
	$(RELEASE)/bin/pip install --quiet build
	$(RELEASE)/bin/python -m build
	$(PYTHON) -m venv --clear $(RELEASE)
	$(RELEASE)/bin/pip install --quiet --constraint constraints.txt dist/*.whl
	folder=$$(mktemp -d) && $(RELEASE)/bin/drfuse demo --fast --out $$folder/demo && rm -rf $$folder

clean:
	rm -rf $(VENV) $(OLDEST) $(DOCS) $(RELEASE) dist site .pytest_cache .mypy_cache .ruff_cache

$(OLDEST)/installed: pyproject.toml constraints.txt .ci/oldest.py
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python .ci/oldest.py > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/pip install --quiet --constraint $(OLDEST)/constraints.txt --editable '.[dev]'
	touch $@

# Only what builds the site, which reads docstrings without importing them: no PyTorch
$(DOCS)/installed: pyproject.toml constraints.txt
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'], sep='\n')" > $(DOCS)/requirements.txt
	$(DOCS)/bin/pip install --quiet --constraint constraints.txt --requirement $(DOCS)/requirements.txt
	touch $@

$(VENV)/installed-extras: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,spark,ray,fuzz,explore]' playwright
	touch $@

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
