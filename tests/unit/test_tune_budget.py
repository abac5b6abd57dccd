"""How the time of a search is spent: windows of three loops, fewer candidates rather than shorter ones."""

from __future__ import annotations

import pytest

from profiler.tune.budget import (
    DRAIN_LOOPS,
    LEAST_WINDOW,
    PILOT_LOOPS,
    PILOT_SHARE,
    START,
    WINDOW_LOOPS,
    affordable,
    fitting,
    sufficient,
    trial_seconds,
    window_seconds,
)


def test_trial_has_three_loops_at_least_and_time_to_start_and_to_drain() -> None:
    assert trial_seconds(6.0) == 6.0 + 18.0 + 9.0
    assert trial_seconds(0.1) == pytest.approx(0.1 + LEAST_WINDOW + 0.15)
    assert trial_seconds(0.1, window=10.0) == pytest.approx(10.25)
    assert trial_seconds(2.0, loops=PILOT_LOOPS) == 1.5 + 3.0 + 3.0


def test_short_time_leaves_fewer_candidates() -> None:
    assert fitting([1.0, 1.0, 1.0], 11.0) == 2  # 5.5 s each
    assert fitting([1.0, 9.0, 1.0], 11.0) == 1  # in their order: the first ones are the most telling
    assert fitting([1.0, 1.0, 1.0], 11.0, blocks=2) == 1
    assert fitting([1.0], 5.0) == fitting([1.0], -1.0) == 0


def test_long_time_is_for_more_blocks_then_for_longer_windows() -> None:
    assert [affordable([1.0, 1.0], seconds, 8) for seconds in (5, 11, 34, 1000)] == [1, 1, 3, 8]
    assert affordable([], 10, 8) == 1
    window = window_seconds([1.0, 1.0], 100.0, 4)
    assert 8 * trial_seconds(1.0, window) == pytest.approx(100.0, abs=0.1)
    assert window_seconds([1.0, 1.0], 1.0, 4) == LEAST_WINDOW  # then three loops decide


@pytest.mark.parametrize("loop", [0.2, 1.3, 6.0, 17.0, 40.0])
@pytest.mark.parametrize("start", [3.0, START, 14.0])
def test_budget_that_is_named_suffices(loop: float, start: float) -> None:
    """For the pilot in its share, and for three candidates after it, each with three loops of this length."""
    named = sufficient(loop, 60.0, start)
    assert named > 60.0
    assert named % 30 == 0
    left = PILOT_SHARE * named - start - loop
    assert left >= 2 * trial_seconds(loop, loops=PILOT_LOOPS)
    assert fitting([loop] * 3, (1 - PILOT_SHARE) * named - start) == 3
    assert trial_seconds(loop) >= (WINDOW_LOOPS + DRAIN_LOOPS) * loop
