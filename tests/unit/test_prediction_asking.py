"""The questions that follow from a recording's own load."""

from __future__ import annotations

import pytest

from profiler.arrivals import Arrivals
from profiler.prediction.asking import as_recorded, recorded_levels, recorded_trials
from profiler.prediction.simulation.load import Trials
from profiler.rundir import Load
from profiler.strategies import parse_strategies
from tests.unit.statistics_data import run, trial

TRIALS = [
    trial(0, "gathered", 0, 2000, block=0, users=10),
    trial(1, "gathered", 3000, 6000, block=1, users=10),
    trial(2, "gathered", 7000, 9000, block=0, users=20),
]


def test_trials_are_as_many_and_as_long_as_they_were() -> None:
    of = run(TRIALS, arguments={"drain_seconds": 12.0})
    assert recorded_levels(of) == (10, 20)
    assert recorded_trials(of, "gathered", 10) == Trials(2.5, 2, 12.0)
    assert recorded_trials(of, "gathered", 30) is None


def test_a_closed_load_keeps_its_pauses_processes_and_shares() -> None:
    of = run(TRIALS, load=Load("closed", 20, think_seconds=1.5), workers=2, arguments={"share_limit": True})
    asked = as_recorded(of, parse_strategies("gathered,sequential"), (10, 20), Trials(5.0))
    assert [(one.load.users, one.strategy.text) for one in asked.questions()] == [
        (10, "gathered"),
        (10, "sequential"),
        (20, "gathered"),
        (20, "sequential"),
    ]
    load = asked.questions()[-1].load
    assert (load.think_seconds, load.workers, load.share_limit, load.arrivals) == (1.5, 2, True, None)


def test_the_sources_of_an_open_ladder_make_the_rate_that_its_spec_names() -> None:
    of = run(TRIALS, load=Load("open", 20, arrivals="5/s", rate=10.0), arguments={"max_in_flight": 30})
    asked = as_recorded(of, parse_strategies("gathered"), (10, 20), Trials(5.0))
    assert asked.arrivals == Arrivals(5.0, 10)
    assert (asked.rate(10), asked.rate(20)) == (pytest.approx(5.0), pytest.approx(10.0))
    assert asked.questions()[0].load.max_in_flight == 30
