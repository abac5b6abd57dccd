# make compare: the main job, on the embedded emulator. make test: the tests. make quick: before a commit.
# Each sets up in .venv what it needs; no key, no server, no account is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# In CI the tests of other people's frameworks are not optional.
comma := ,
EXTRAS := dev$(if $(CI),$(comma)frameworks)
PACKAGE := $(VENV)/.installed
DEV := $(VENV)/.installed-$(EXTRAS)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: compare test shared quick fast test-oldest test-mcp1 lint types contracts coverage clean

# On a busy machine too this ends in a verdict, with its caveat.
compare: $(PACKAGE)
	$(BIN)/profiler compare --allow-saturated

# What measures time has the machine to itself; all else shares its cores, and mostly waits: mypy beside it too.
test: $(DEV) lint contracts
	$(MAKE) --no-print-directory -j 2 types shared
	$(BIN)/python -m pytest -m measures

# In the order of tests/conftest.py: the longest first. Compiled before, since the tests start some hundreds of
# processes, and each would compile the package anew where no bytecode may be written.
shared: $(DEV)
	$(BIN)/python -m compileall -q profiler
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m 'not measures'

# In under a minute on two cores: mypy, where it has no cache, runs beside the tests.
quick: $(DEV)
	$(MAKE) --no-print-directory -j 2 lint types contracts fast

fast: $(DEV)
	$(BIN)/python -m pytest -n 2 -m 'not slow' tests/unit

# With the oldest versions that pyproject.toml admits: what decides, and what meets SDKs and Locust on sockets.
# (Without anyio's own pytest plugin: the one of then refuses the pytest of today.)
OLDEST := $(VENV)-oldest
test-oldest:
	$(PYTHON) -m venv $(OLDEST)
	$(PYTHON) tests/oldest.py > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pytest -p no:anyio -n 3 --dist loadfile tests/unit $(addprefix tests/integration/test_, \
		providers.py instrument.py load_bridge.py locust_runs.py mcp_callers.py mcp_client.py mcp_sdk.py emulator_mcp.py)
	$(MAKE) --no-print-directory test-mcp1

# Frameworks on the first major of MCP's SDK, which excludes the second. They refuse the oldest of the rest.
MCP1 := $(VENV)-mcp1
test-mcp1:
	$(PYTHON) -m venv $(MCP1)
	$(MCP1)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[mcp1]'
	$(MCP1)/bin/python -m pytest -p no:anyio tests/integration/test_mcp_callers.py

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)
	$(BIN)/mypy

contracts: $(DEV)
	$(BIN)/lint-imports

# Lines and branches of the modules that decide, by the unit tests: at least 95 % of each of them.
coverage: $(DEV)
	$(BIN)/coverage run -m pytest tests/unit
	$(BIN)/coverage report
	$(BIN)/coverage report | awk '/\.py / && $$6 + 0 < 95 { print "below 95 %: " $$1; low = 1 } END { exit low }'

$(PACKAGE): pyproject.toml | $(BIN)/pip
	$(PIP) -e .
	touch $(PACKAGE)

$(DEV): pyproject.toml | $(BIN)/pip
	$(PIP) -e '.[$(EXTRAS)]'
	touch $(PACKAGE) $(DEV)

$(BIN)/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) $(OLDEST) $(MCP1) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage build dist
