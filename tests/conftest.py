"""The order of the tests is random; the seed that repeats it is said at the end."""

from __future__ import annotations

import gc

import pytest


def pytest_collection_finish() -> None:
    """What the imports left lives to the end: the collector need not look at it again in every test."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("randomly_reorganize", False):
        seed = config.getoption("randomly_seed")
        terminalreporter.write_line(f"in random order; the same again with --randomly-seed={seed}")
