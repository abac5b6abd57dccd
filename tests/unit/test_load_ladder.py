"""The load test whose recording can be predicted from: its levels and strategies."""

from __future__ import annotations

from dataclasses import replace

import pytest

from profiler import UsageError
from profiler.load.ladder import for_prediction, ladder
from profiler.load.options import LoadOptions
from profiler.strategies import parse_strategies


@pytest.mark.parametrize(
    ("users", "levels"),
    [
        (1, (1, 2, 3)),
        (2, (1, 2, 4)),
        (3, (1, 2, 3, 6)),
        (20, (2, 5, 10, 20, 40)),
        (40, (5, 10, 20, 40, 80)),
        (1000, (125, 250, 500, 1000, 2000)),
    ],
)
def test_ladder_goes_beyond_the_agents_that_are_asked_for(users, levels):
    assert ladder(users) == levels


def test_ladder_is_for_what_nobody_named():
    asked = for_prediction(LoadOptions(), 40, paid=False)
    assert (asked.levels, [*map(str, asked.strategies)]) == ((5, 10, 20, 40, 80), ["gathered", "sequential"])
    assert [*map(str, for_prediction(LoadOptions(), 40, paid=True).strategies)] == ["gathered"]
    named = LoadOptions(levels=(3, 9), strategies=parse_strategies("semaphore:8"))
    assert for_prediction(named, 40, paid=False) == replace(named, own_work=True)
    open_load = for_prediction(LoadOptions(arrivals="4/s", levels=(1, 2)), 4, paid=False)
    assert (open_load.arrivals, open_load.levels) == ("4/s", (1, 2))
    own = LoadOptions(agent="my:make", variants=("calls=2", "calls=4"))
    assert [*map(str, for_prediction(own, 8, paid=True).strategies)] == ["calls=2", "calls=4"]


def test_ladder_past_the_capacity_is_not_to_end_there():
    with pytest.raises(UsageError, match="--abort-on errors>20% ends the test there: leave one of them out"):
        for_prediction(LoadOptions(abort_on="errors>20%"), 40, paid=False)
