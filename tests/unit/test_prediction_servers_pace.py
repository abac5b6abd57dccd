"""The pace of servers: found where it shows, taken out of services, drawn anew."""

from __future__ import annotations

import math

import numpy as np
import pytest

from profiler.prediction.servers.pace import BIN_NS, Pace, PaceDraws, Services, joined, pace_of, without

SECOND = 1_000_000_000


def services(spread: float, *, seconds: int = 1200, each: int = 20, loop_spread: float = 0.3) -> Services:
    """`each` calls a second, two of each loop; for 8 s at a time servers are faster or slower."""
    rng = np.random.default_rng(3)
    spells = np.repeat(rng.normal(0, spread, seconds // 8 + 1), 8)[:seconds]
    started = np.sort(rng.integers(0, seconds * SECOND, seconds * each))
    loop = np.arange(started.size) // 2
    logs = spells[started // SECOND] + rng.normal(0, loop_spread, loop[-1] + 1)[loop]
    logs = logs + rng.normal(0, 0.8, started.size)
    return Services(started, np.zeros_like(started), loop, logs)


def test_pace_is_found_apart_from_what_calls_of_a_loop_have_in_common() -> None:
    found = pace_of(services(0.3))
    assert found is not None
    assert found.spread == pytest.approx(0.3, rel=0.15)
    # Spells of 8 s: the mean of n seconds varies as that of n/8 independent ones, and (1 + r)/(1 - r) is 8.
    assert found.persistence == pytest.approx(7 / 9, abs=0.05)


@pytest.mark.parametrize("loop_spread", [0.0, 0.6])
def test_servers_that_are_always_as_fast_have_none(loop_spread: float) -> None:
    assert pace_of(services(0.0, loop_spread=loop_spread)) is None


def test_few_calls_show_none() -> None:
    every = services(0.3, seconds=16, each=6)
    assert pace_of(every) is None
    nothing = np.empty(0, np.int64)
    assert pace_of(Services(nothing, nothing, nothing, nothing.astype(float))) is None


def test_what_is_taken_out_is_the_spells() -> None:
    every = services(0.3)
    found = pace_of(every)
    assert found is not None
    logs, pace = without(every, found)
    assert pace_of(Services(every.started, every.group, every.loop, every.logs - logs)) is None
    assert np.std(logs) == pytest.approx(0.3, rel=0.2)
    # 150 spells: the mean pace of the recording is known to about 0.3 / sqrt(150).
    assert 1 < pace.error / (0.3 / math.sqrt(150)) < 2
    assert 0 <= pace.excess < 0.01


def test_mean_over_time_counts_not_the_mean_over_calls() -> None:
    """Four times as many calls while servers are fast: a service is still that of an ordinary time."""
    every = services(0.4)
    fast = np.flatnonzero((every.started // SECOND) % 16 < 8)
    spells = np.where((every.started // SECOND) % 16 < 8, -0.4, 0.4)
    logs = every.logs * 0.1 + spells
    kept = np.sort(np.concatenate([fast, np.setdiff1d(np.arange(logs.size), fast)[::4]]))
    some = Services(every.started[kept], every.group[kept], every.loop[kept], logs[kept])
    found = pace_of(some)
    assert found is not None
    taken, _ = without(some, found)
    assert float(np.mean(some.logs - taken)) == pytest.approx(0.0, abs=0.05)
    assert float(np.mean(some.logs)) == pytest.approx(-0.24, abs=0.02)


def test_drawn_pace_has_its_spread_and_persistence() -> None:
    draws = PaceDraws(Pace(0.3, 0.9), "seed")
    logs = np.log([draws.factor(second * BIN_NS) for second in range(20_000)])
    assert np.std(logs) == pytest.approx(0.3, rel=0.1)
    assert np.corrcoef(logs[1:], logs[:-1])[0, 1] == pytest.approx(0.9, abs=0.02)
    assert draws.factor(20_000 * BIN_NS) == draws.factor(20_001 * BIN_NS - 1)  # one bin
    again = PaceDraws(Pace(0.3, 0.9), "seed")
    assert np.log(again.factor(0)) == logs[0]


def test_servers_are_joined_call_by_call() -> None:
    one, other = services(0.1, seconds=8), services(0.2, seconds=16)
    both = joined([one, other])
    assert both.logs.tolist() == [*one.logs, *other.logs]
    assert both.started.size == one.started.size + other.started.size
