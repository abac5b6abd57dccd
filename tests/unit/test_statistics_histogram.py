"""The bounded series: exact, then within its stated error, however it was merged."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.statistics.histogram import ALPHA, Histogram


def test_exact_below_the_limit() -> None:
    made = Histogram()
    made.extend([40, 10, 30, 20])
    assert made.exact
    assert made.quantile(0.5) == 25.0
    assert made.quantile(1.0) == 40.0
    assert made.mean() == 25.0
    assert Histogram().quantile(0.5) is None
    assert Histogram().mean() is None


def test_folding_keeps_count_mean_and_the_error_bound() -> None:
    rng = np.random.default_rng(1)
    values = rng.lognormal(18, 1.5, 20_000).astype(int)
    made = Histogram(limit=1000)
    made.extend(values.tolist())
    assert not made.exact
    assert made.count == 20_000
    assert made.mean() == pytest.approx(values.mean())
    for p in (0.01, 0.5, 0.95, 0.99, 0.999, 1.0):
        nearest = np.sort(values)[round(p * 19_999)]
        assert made.quantile(p) == pytest.approx(nearest, rel=ALPHA * 1.0001)
    assert len(made.bins) < 2500


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 10**12), max_size=30), min_size=1, max_size=5),
    st.integers(1, 50),
    st.sampled_from([0.0, 0.25, 0.5, 0.95, 1.0]),
)
def test_merging_is_adding(parts: list[list[int]], limit: int, p: float) -> None:
    merged, whole = Histogram(limit=limit), Histogram(limit=limit)
    for part in parts:
        one = Histogram(limit=limit)
        one.extend(part)
        merged.merge(one)
        whole.extend(part)
    assert (merged.count, merged.total) == (whole.count, whole.total)
    if merged.exact == whole.exact:
        assert merged.quantile(p) == whole.quantile(p)
    if merged.count and not merged.exact:
        truth = sorted(value for part in parts for value in part)[round(p * (merged.count - 1))]
        assert merged.quantile(p) == pytest.approx(truth, rel=ALPHA * 1.0001)


def test_eight_workers_merge_within_the_bound() -> None:
    rng = np.random.default_rng(2)
    parts = [rng.lognormal(18, 1, 3000).astype(int) for _ in range(8)]
    merged = Histogram(limit=1000)
    for part in parts:
        one = Histogram(limit=1000)
        one.extend(part.tolist())
        merged.merge(one)
    pooled = np.sort(np.concatenate(parts))
    worst = max(
        abs((merged.quantile(p) or 0) / pooled[round(p * (pooled.size - 1))] - 1)
        for p in (0.5, 0.9, 0.99, 0.999)
    )
    assert worst <= ALPHA


@pytest.mark.parametrize("limit", [2, 100])
def test_it_travels_as_json(limit: int) -> None:
    made = Histogram(limit=limit)
    made.extend([0, 5, 7, 1000])
    back = Histogram.from_json(json.loads(json.dumps(made.to_json())), limit=limit)
    assert back == made


def test_as_many_samples_as_the_limit_are_still_exact() -> None:
    made = Histogram(limit=3)
    made.extend([10, 20, 40])
    assert made.exact
    assert made.quantile(0.25) == 15.0
    assert made.quantile(0.75) == 30.0


def test_zeros_stay_zeros_when_folded() -> None:
    made = Histogram(limit=1)
    made.extend([0, 0, 0, 7])
    assert made.quantile(0.5) == 0.0
