"""When loops start: arrivals of an open load, starts and pauses of a closed one."""

from __future__ import annotations

import statistics
from itertools import pairwise, takewhile

import pytest

from profiler.arrivals import Arrivals, pause_after, share, start_offset
from profiler.errors import UsageError


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("5/s", Arrivals(5.0, 4)),
        ("5", Arrivals(5.0, 4)),
        ("90/m", Arrivals(1.5, 4)),
        ("poisson:2.5/s", Arrivals(2.5, 4)),
        ("constant:12/s", Arrivals(12.0, 4, constant=True)),
    ],
)
def test_specs(spec: str, expected: Arrivals) -> None:
    assert Arrivals.parse(spec, 4) == expected


@pytest.mark.parametrize("spec", ["0/s", "-1/s", "5/h", "burst:5/s", "", "5/s,6/s"])
def test_arrivals_that_are_no_rate_are_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="expected a rate such as 5/s"):
        Arrivals.parse(spec)


def merged(arrivals: Arrivals, seconds: float, seed: str = "1/0/0") -> list[float]:
    """When all sources together are due within that time."""
    due = (takewhile(lambda t: t < seconds, arrivals.of_source(n, seed)) for n in range(arrivals.sources))
    return sorted(t for source in due for t in source)


def test_evenly_spaced_sources_together_are_evenly_spaced() -> None:
    together = merged(Arrivals(8.0, 4, constant=True), 3.0)
    assert together == pytest.approx([k / 8 for k in range(24)])


def test_poisson_sources_together_are_one_of_the_whole_rate() -> None:
    together = merged(Arrivals(50.0, 10), 200.0)
    assert len(together) == pytest.approx(10_000, rel=0.04)  # four standard deviations
    gaps = [after - before for before, after in pairwise(together)]
    # Exponential gaps have a standard deviation equal to their mean, which even spacing has not.
    assert statistics.stdev(gaps) / statistics.fmean(gaps) == pytest.approx(1.0, abs=0.05)


def test_draws_repeat_with_the_seed_and_differ_between_sources() -> None:
    arrivals = Arrivals(50.0, 2)
    assert merged(arrivals, 5.0) == merged(arrivals, 5.0)
    assert merged(arrivals, 5.0) != merged(arrivals, 5.0, seed="1/1/0")
    assert next(arrivals.of_source(0, "s")) != next(arrivals.of_source(1, "s"))


def test_schedule_does_not_drift() -> None:
    """The 100,000th arrival is where it belongs, not where rounding each gap would have left it."""
    source = Arrivals(3.0, 1, constant=True).of_source(0, "")
    for _ in range(99_999):
        next(source)
    assert next(source) == pytest.approx(33_333.0, rel=1e-12)


def test_expected_arrivals_scale_with_the_users() -> None:
    assert Arrivals(10.0, 20).expected(users=40, seconds=3.0) == pytest.approx(60.0)


def test_pause_grows_for_those_that_are_refused_at_once() -> None:
    assert [pause_after(n, 0.0) for n in (0, 1, 2, 3, 7, 60)] == pytest.approx([0, 0.1, 0.2, 0.4, 5.0, 5.0])
    assert pause_after(1, 0.04) == pytest.approx(0.06)
    assert pause_after(3, 2.0) == 0.0  # it was not refused at once


@pytest.mark.parametrize(("total", "workers"), [(8, 3), (5, 2), (9, 9)])
def test_limit_is_shared_whole(total: int, workers: int) -> None:
    shares = [share(total, worker, workers) for worker in range(workers)]
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1


def test_share_of_a_worker_is_one_place_at_least() -> None:
    assert [share(1, worker, 3) for worker in range(3)] == [1, 1, 1]


def test_agents_start_spread_over_the_time_they_are_given() -> None:
    offsets = sorted(start_offset(source, 3.0) for source in range(13))
    assert offsets[0] == 0.0
    assert offsets[-1] < 3.0
    gaps = [after - before for before, after in pairwise([*offsets, 3.0])]
    assert min(gaps) > 0.1  # 3 s / 13 = 0.23 s
    assert max(gaps) < 0.4
