PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help setup quickstart check test soak lint docs bench

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## virtual environment with the tested versions

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: $(STAMP) ## the whole chain on the built-in corpus: table, runs/quickstart/report.html
	$(BIN)/python pipelines/quickstart.py --out runs/quickstart

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: lint ## lint, unit tests, parity tests
	$(PYTEST) tests/unit tests/parity

# CHECKED=1 leaves out what `make check` has passed on the same tree; .ci/run sets it.
test: $(STAMP) ## every test that needs no GPU in its short form, two files at a time
	$(PYTEST) $(if $(CHECKED),tests/ray tests/e2e tests/browser)

soak: $(STAMP) ## fault and load tests in their long form
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m soak --soak --timeout 7200 -s

lint: $(STAMP) ## ruff, pyright, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$$PWD/$(BIN):$$PATH" $(BIN)/pyright
	$(BIN)/lint-imports

docs: $(STAMP) ## the guides and a reference of every module: docs/_build/index.html
	$(BIN)/sphinx-build --builder html --fail-on-warning --keep-going --quiet docs docs/_build

bench: $(STAMP) ## every benchmark, short form
	for script in tests/bench/bench_*.py; do $(BIN)/python $$script --quick || exit 1; done
