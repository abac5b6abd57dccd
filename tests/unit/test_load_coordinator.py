"""How a load test's ramp ends: all users there, or stopped for a reason that is said."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from profiler.errors import TargetError
from profiler.load.leader import Coordinator, Ramp, Site
from profiler.load.options import LoadOptions, conditions
from profiler.load.output import Ledger
from profiler.load.team import BEGIN, END
from profiler.rundir import Incident, RunDirectory
from tests.unit.test_load_team import Workers

TOO_SHORT = "stopped before all users were there: nothing was measured; spawn them faster (-r)"


@contextlib.contextmanager
def ramping(
    path: Path,
    workers: Workers,
    *,
    seconds: float | None,
    max_loops: int | None = None,
    gone: str | None = None,
) -> Iterator[Coordinator]:
    """A hundred users at one a second, of whom none has come."""
    options = LoadOptions(drain_seconds=0.0, max_loops=max_loops, out=str(path))
    run = conditions(options, 100)
    site = Site("http://127.0.0.1:1", scale=lambda users, rate: None, wanted=lambda: 100, gone=lambda: gone)
    ledger = Ledger(RunDirectory.create(options.out, run), run)
    try:
        with gevent.Timeout(5):
            yield Coordinator(options, Ramp(100, 1.0, seconds), workers.team, site, ledger)
    finally:
        ledger.close()


def test_a_target_that_goes_away_while_users_are_spawned_ends_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workers = Workers("a")
    with ramping(tmp_path, workers, seconds=0.5, gone="the target went away") as coordinator:
        coordinator.run()
    assert isinstance(coordinator.error, TargetError)
    assert workers.told(BEGIN) == workers.told(END) == ["a"]
    run = coordinator.ledger.run
    assert (run.finished, run.trials) == (False, ())
    assert run.incidents == (Incident("aborted", "the target went away"),)
    assert TOO_SHORT not in caplog.text


@pytest.mark.parametrize(
    ("seconds", "max_loops", "interrupted", "said"),
    [
        (0.5, None, False, True),  # over as soon as it begins
        (60.0, None, False, False),
        (None, None, False, False),
        (0.5, 1, False, False),  # spent by the first loop of the worker
        (0.5, None, True, False),
    ],
)
def test_only_a_run_time_that_was_too_short_is_blamed_for_users_that_did_not_come(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    seconds: float | None,
    max_loops: int | None,
    interrupted: bool,
    said: bool,
) -> None:
    with ramping(tmp_path, Workers("a"), seconds=seconds, max_loops=max_loops) as coordinator:
        if interrupted:
            coordinator.ledger.note(Incident("interrupted", "stopped by the user"))
        if max_loops is None:
            coordinator.stop()
        coordinator.run()
    assert (TOO_SHORT in caplog.text) == said
    assert coordinator.ended_early == (said or max_loops is not None)  # then the exit code is 1
    assert coordinator.ledger.run.trials == ()
