"""The search against systems in virtual time: real loops and limits, servers of known capacity."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.tune_simulated import System, search_once
from profiler import UsageError
from profiler.tune.answer import render


@pytest.mark.slow
def test_search_finds_the_capacity_within_its_budget(tmp_path: Path) -> None:
    system = System(users=8, capacity=5)
    answer, simulated, took = search_once(system, 1, 60.0, tmp_path, predicting_seconds=2.0)
    assert answer.setting.limit in (4, 5)
    assert took <= 1.1 * 60.0
    again = simulated.goodput(answer.setting.spec, 20.0)
    assert answer.setting.goodput.low <= again <= answer.setting.goodput.high


@pytest.mark.slow
def test_budget_that_a_refusal_names_suffices(tmp_path: Path) -> None:
    system = System(users=8, capacity=100, model=(1.0, 0.2), tool=(8.0, 0.2))
    with pytest.raises(UsageError, match="is too little: a loop takes some") as refused:
        search_once(system, 1, 60.0, tmp_path, predicting_seconds=2.0)
    named = re.search(r"--budget (\d+)s is enough", str(refused.value))
    assert named is not None
    answer, _, took = search_once(system, 1, float(named[1]), tmp_path, predicting_seconds=2.0)
    assert answer.proven
    assert answer.setting.goodput.value > 0
    assert took <= 1.1 * float(named[1])


@pytest.mark.slow
@pytest.mark.parametrize(("start", "short"), [(13.0, False), (21.0, True)])
def test_windows_that_a_slow_start_made_short_are_said_first(
    tmp_path: Path, start: float, short: bool
) -> None:
    system = System(users=8, capacity=100, model=(0.3, 0.2), tool=(0.7, 0.2), start=(start, start))
    answer, _, _ = search_once(system, 1, 60.0, tmp_path, predicting_seconds=2.0)
    first = render(answer).splitlines()[0]
    assert first.startswith("not to be relied on: settings were measured for 1.5 loops each") == short
    assert (answer.short_windows is not None) == short


@pytest.mark.slow
@pytest.mark.parametrize("drift", [0.0, 0.25])
def test_promise_is_of_the_end_of_the_search_and_allows_for_drift(tmp_path: Path, drift: float) -> None:
    """Tools that take longer by a quarter with each minute."""
    system = System(users=24, capacity=14, drift=drift)
    answer, simulated, _ = search_once(system, 1, 120.0, tmp_path, predicting_seconds=2.0)
    promise = answer.setting.goodput
    assert promise.low <= simulated.goodput(answer.setting.spec, 20.0) <= promise.high
    assert (answer.moved is not None) == (drift > 0)
    if drift:
        # Seen from the first look on, from which is predicted what the system was like then.
        assert "as predicted from the first look" in answer.moved
        assert promise.low < 0.7 * promise.value
        assert answer.moved in render(answer).splitlines()[1]
