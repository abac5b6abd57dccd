"""The bounded series: exact, then within its stated error."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.load.health import ALPHA, Histogram


def made_of(values: Iterable[int], limit: int = 1_000_000) -> Histogram:
    made = Histogram(limit=limit)
    for value in values:
        made.add(value)
    return made


def test_quantile_is_exact_up_to_the_limit() -> None:
    made = made_of([40, 10, 30, 20])
    assert made.samples is not None
    assert (made.quantile(0.5), made.quantile(1.0)) == (25.0, 40.0)
    assert Histogram().quantile(0.5) is None
    at_the_limit = made_of([10, 20, 40], limit=3)
    assert (at_the_limit.quantile(0.25), at_the_limit.quantile(0.75)) == (15.0, 30.0)


def test_folding_keeps_count_and_the_error_bound() -> None:
    rng = np.random.default_rng(1)
    values = rng.lognormal(18, 1.5, 20_000).astype(int)
    made = made_of(values.tolist(), limit=1000)
    assert made.samples is None
    assert made.count == 20_000
    for p in (0.01, 0.5, 0.95, 0.99, 0.999, 1.0):
        nearest = np.sort(values)[round(p * 19_999)]
        assert made.quantile(p) == pytest.approx(nearest, rel=ALPHA * 1.0001)
    assert len(made.bins) < 2500


@given(
    st.lists(st.integers(0, 10**12), min_size=1, max_size=150),
    st.integers(1, 50),
    st.sampled_from([0.0, 0.25, 0.5, 0.95, 1.0]),
)
def test_quantile_of_a_folded_series_is_within_its_error(values: list[int], limit: int, p: float) -> None:
    made = made_of(values, limit)
    if made.samples is None:
        truth = sorted(values)[round(p * (len(values) - 1))]
        assert made.quantile(p) == pytest.approx(truth, rel=ALPHA * 1.0001)


def test_zeros_stay_zeros_when_folded() -> None:
    assert made_of([0, 0, 0, 7], limit=1).quantile(0.5) == 0.0
