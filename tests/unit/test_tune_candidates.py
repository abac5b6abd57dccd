"""Candidates of a search: which are tried, how they are ranked, the shape of their curve."""

from __future__ import annotations

from dataclasses import replace

import pytest

from profiler.statistics.quantiles import Estimate
from profiler.tune.candidates import (
    affordable,
    block_seconds,
    ladder,
    on_one_scale,
    refine,
    settled,
    shape,
    survivors,
)
from tests.unit.tune_data import scored


def test_ladder_reaches_from_the_mean_to_the_peak_or_lies_around_a_guess():
    assert ladder(16, 1) == [1, 2, 4, 8, 16]
    assert ladder(1) == [1]
    assert ladder(160, 10, guess=20) == [10, 14, 20, 28, 40]
    assert ladder(4, guess=2) == [1, 2, 3, 4]
    assert ladder(5, 40) == [5]  # a peak below the mean is no peak: nothing was lost there


def test_refine_looks_between_the_best_and_its_neighbours():
    found = refine({10: 3.0, 20: 5.0, 40: 4.0})
    assert 20 in found
    assert all(10 < limit < 40 for limit in found)
    assert len(found) == 5
    assert max(refine({10: 3.0, 20: 5.0})) > 20  # the best is the last: look beyond it
    assert min(refine({10: 5.0, 20: 3.0})) < 10
    assert refine({}) == []
    assert 1 in refine({1: 5.0, 2: 5.0})


def test_survivors_are_those_not_shown_to_be_worse():
    found = [
        scored("gathered", 1.0, 0.2, shown=True),
        scored("semaphore:8", 4.9, 0.98),
        scored("semaphore:16", 5.0),
        scored("adaptive", None),
    ]
    assert [one.spec for one in survivors(found, 5)] == ["semaphore:16", "semaphore:8"]
    assert [one.spec for one in survivors(found, 1)] == ["semaphore:16"]


def test_rungs_of_different_lengths_are_put_on_one_scale():
    """The same system, of which the first rung saw a quarter more than the last."""
    first = [scored("gathered", 1.0), scored("semaphore:10", 5.0), scored("semaphore:20", 10.0)]
    last = [scored("gathered", 2.0), scored("semaphore:16", 6.4), scored("semaphore:20", 8.0)]
    curve = on_one_scale([first, last])
    assert [(one.limit, one.score.value) for one in curve] == [(10, pytest.approx(4.0)), (16, 6.4), (20, 8.0)]
    assert curve[0].goodput.high == pytest.approx(4.0 * 1.05)


def test_shape_of_a_curve():
    curve = [
        scored("semaphore:5", 2.0, 0.4, shown=True),
        scored("semaphore:10", 4.8, 0.96, shown=True),
        scored("semaphore:18", 4.95, 0.99),
        scored("semaphore:20", 5.0),
        scored("semaphore:22", 4.9, 0.98),
        scored("semaphore:40", 1.0, 0.2, shown=True),
    ]
    found = shape(curve, 20)
    assert (found.best, found.knee, found.cliff, found.low, found.high) == (20, 10, 40, 18, 22)
    assert shape(curve[:4], 20).cliff is None
    curve[4] = scored(
        "semaphore:22", 2.0, 0.4, width=1.0
    )  # not shown, for want of loops: no reason to name it
    assert shape(curve, 20).high == 20


def test_block_seconds_leave_time_for_drains():
    assert block_seconds(60, trials=20, drain=1) == 2
    assert block_seconds(10, trials=20, drain=1) == 1  # never shorter than says anything


def test_affordable_blocks_are_fewer_with_long_drains():
    assert affordable(60, candidates=5, blocks=8, drain=0.5) == 8
    assert affordable(60, candidates=5, blocks=8, drain=2.0) == 4
    assert affordable(5, candidates=5, blocks=8, drain=2.0) == 2


def test_settled_when_everything_is_told_apart_or_alike_with_room_to_spare():
    best = scored("semaphore:20", 5.0)
    far = scored("gathered", 1.0, 0.2, width=0.3)
    assert settled([best, far])
    assert settled([best, far, scored("semaphore:16", 4.95, 0.99, width=0.02)])
    # Shown at the end, but not when one looks more than once: 0.9 ± 8 % counts as ± 12 %.
    assert not settled([best, scored("semaphore:16", 4.5, 0.9, width=0.08)])
    assert not settled([best, far, scored("adaptive", 4.9, 0.98, width=0.05)])
    assert not settled([best, scored("adaptive", None)])
    assert settled([best, scored("gathered", 0.0)])  # not one loop ended well
    assert not settled([best])


def test_limits_are_apart_when_their_intervals_do_not_meet_or_one_has_none_and_is_clearly_less():
    best = scored("semaphore:20", 5.0, width=0.02)
    near = replace(scored("semaphore:18", 4.8, width=0.01), against_best=None)
    assert shape([near, best], 20).low == 20  # 4.85 < 4.9
    near = replace(near, score=Estimate(4.8, 4.6, 5.0))
    assert shape([near, best], 20).low == 18
    assert shape([replace(near, score=Estimate(4.8)), best], 20).low == 18  # 96 % of the best
    assert shape([replace(near, score=Estimate(4.7)), best], 20).low == 20  # 94 %


def test_curve_without_a_common_candidate_keeps_its_scale():
    curve = on_one_scale([[scored("semaphore:10", 5.0)], [scored("semaphore:20", 10.0)]])
    assert [one.score.value for one in curve] == [5.0, 10.0]
