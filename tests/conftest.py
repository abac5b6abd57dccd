"""The order of the tests is random; at the end: what was not measured, the matrix of dialects, the seed."""

from __future__ import annotations

import gc
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.dialects.table import PROPERTY, lines
from tests.measuring import TRIES, Measurement, NotMeasured, judge

INTEGRATION = Path(__file__).with_name("integration")

# A shell that starts the tests in the background has all its children ignore interrupts, and `nohup` has them
# ignore a hang-up; we send some of both.
for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, default)

# How long an example takes is the machine's business.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("measures"):
            item.add_marker(pytest.mark.timeout(TRIES * 120))
    # Files that take long come first: else one process runs the last of them while the others have no work.
    long = {item.path for item in items if item.get_closest_marker("slow") or item.path.parent == INTEGRATION}
    items.sort(key=lambda item: item.path not in long)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    """A test that is marked `measures` is judged by tests/measuring.py."""
    mark = pyfuncitem.get_closest_marker("measures")
    if mark is not None:
        once, shared = pyfuncitem.obj, [x for x in pyfuncitem.funcargs.values() if isinstance(x, Measurement)]

        def measured(**arguments: Any) -> None:
            __tracebackhide__ = True
            try:
                judge(lambda: once(**arguments), shared=shared, **mark.kwargs)
            except NotMeasured as not_measured:
                pytest.xfail(str(not_measured))

        pyfuncitem.obj = measured
    return (yield)


def pytest_collection_finish() -> None:
    """What the imports left lives to the end: the collector need not look at it again in every test."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for report in terminalreporter.stats.get("xfailed", []):
        terminalreporter.write_line(f"{report.nodeid}: {report.wasxfail.removeprefix('reason: ')}")
    ended = [*terminalreporter.stats.get("passed", []), *terminalreporter.stats.get("failed", [])]
    rows = [value for report in ended for name, value in report.user_properties if name == PROPERTY]
    for line in lines(sorted(rows, key=lambda row: row[:2])):
        terminalreporter.write_line(line)
    if config.getoption("randomly_reorganize", False):
        seed = config.getoption("randomly_seed")
        terminalreporter.write_line(f"in random order; the same again with --randomly-seed={seed}")
