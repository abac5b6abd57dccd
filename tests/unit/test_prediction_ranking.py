"""Which strategy is better, and how sure that is."""

from __future__ import annotations

from profiler.prediction.ranking import best, pair, ranking
from tests.unit.prediction_data import predicted

AHEAD = predicted(
    "semaphore:8", goodput=6.0, every=[{"goodput": one} for one in (5.0, 6.0, 6.0, 7.0, 6.5, 6.0, 6.0, 6.0)]
)
BEHIND = predicted(
    "gathered", goodput=5.0, every=[{"goodput": one} for one in (4.0, 5.0, 5.0, 6.0, 7.0, 5.0, 5.0, 6.0)]
)


def test_certainty_is_the_share_of_replicates_in_which_it_is_better_ties_halved() -> None:
    found = pair(AHEAD, BEHIND)
    assert found is not None
    assert (found.metric, found.certainty, found.told) == ("goodput", 6.5 / 8, False)
    assert (found.value, found.against) == (6.0, 5.0)
    other = pair(BEHIND, AHEAD)
    assert other is not None
    assert other.certainty == 1.5 / 8


def test_p95_decides_where_goodput_is_the_same() -> None:
    fast = predicted("adaptive", p95=1.5, every=[{"p95": 1.5}] * 10)
    slow = predicted("gathered", p95=2.0, every=[{"p95": 2.0}] * 10)
    found = pair(slow, fast)
    assert found is not None
    assert (found.metric, found.certainty, found.told) == ("p95", 0.0, True)
    assert best([slow, fast]) is fast


def test_a_difference_that_does_not_matter_is_not_told_however_sure_it_is() -> None:
    one = predicted("adaptive", goodput=5.02, every=[{"goodput": 5.02}] * 10)
    other = predicted("gathered", goodput=5.0, every=[{"goodput": 5.0}] * 10)
    found = pair(one, other)
    assert found is not None
    assert (found.certainty, found.told) == (1.0, False)


def test_the_best_against_each_other_one_the_hardest_to_tell_first() -> None:
    worst = predicted("sequential", goodput=1.0, every=[{"goodput": 1.0}] * 8)
    refused = predicted("semaphore:64", refused=("never so many in flight",))
    pairs = ranking([worst, refused, BEHIND, AHEAD])
    assert [(one.strategy, one.baseline) for one in pairs] == [
        ("semaphore:8", "gathered"),
        ("semaphore:8", "sequential"),
    ]
    assert ranking([refused]) == []
