# make compare: the main job, on the embedded emulator. make test: the tests.
# Both set up .venv first; no key, no server, no account is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# In CI the tests of other people's frameworks are not optional.
comma := ,
EXTRAS := dev$(if $(CI),$(comma)frameworks)

.PHONY: compare test test-oldest lint types contracts coverage clean

compare: $(STAMP)
	$(BIN)/profiler compare

# What measures time has the machine to itself; all else shares its cores, and mostly waits.
test: $(STAMP) lint types contracts
	$(BIN)/python -m pytest -n 3 --dist loadfile -m 'not measures'
	$(BIN)/python -m pytest -m measures

# With the oldest versions that pyproject.toml admits: what decides, and what meets SDKs and Locust on sockets.
# (Without anyio's own pytest plugin: the one of then refuses the pytest of today.)
OLDEST := $(VENV)-oldest
test-oldest:
	$(PYTHON) -m venv $(OLDEST)
	$(PYTHON) tests/oldest.py > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pytest -p no:anyio -n 3 --dist loadfile tests/unit $(addprefix tests/integration/test_, \
		providers.py instrument.py load_bridge.py locust_runs.py)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

contracts: $(STAMP)
	$(BIN)/lint-imports

# Lines and branches of the modules that decide, by the unit tests: at least 95 % of each of them.
coverage: $(STAMP)
	$(BIN)/coverage run -m pytest tests/unit
	$(BIN)/coverage report
	$(BIN)/coverage report | awk '/\.py / && $$6 + 0 < 95 { print "below 95 %: " $$1; low = 1 } END { exit low }'

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) $(OLDEST) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage build dist
