# make compare: the main job, on the embedded emulator. make test: the tests.
# Both set up .venv first; no key, no server, no account is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# In CI the tests of other people's frameworks are not optional.
comma := ,
EXTRAS := dev$(if $(CI),$(comma)frameworks)

.PHONY: compare test lint types contracts unit integration benchmarks clean

compare: $(STAMP)
	$(BIN)/profiler compare

test: $(STAMP) lint types contracts
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

contracts: $(STAMP)
	$(BIN)/lint-imports

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist
