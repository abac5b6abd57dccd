"""What a search turns: a semaphore's limit, or a setting of the agent, over a range or a list of values."""

from __future__ import annotations

import pytest

from profiler import UsageError
from profiler.load.options import LoadOptions
from profiler.over import ANY_LIMIT, Values, parse_over
from profiler.strategies import Knob
from profiler.tune.asked import Search, rates_to_try
from profiler.tune.dial import Dial, dial_of


def dial(over: str) -> Dial:
    return dial_of(parse_over(over))


def test_dial_is_a_shared_semaphore_unless_another_or_a_setting_is_named():
    assert dial("rate,adaptive") == dial("semaphore,rate") == Dial(Knob(), ANY_LIMIT)
    assert dial("semaphore=2..64,adaptive") == Dial(Knob(), Values(2, 64))
    assert dial("semaphore@tool=1..9") == Dial(Knob(scope="tool"), Values(1, 9))
    # Of several limits the shared one is what the curve is about.
    assert dial("semaphore@tool=1..4,semaphore=2..64") == Dial(Knob(), Values(2, 64))
    assert dial("semaphore:a=1..9,semaphore:b=1..4") == Dial(Knob(scope="tool", tool="a"), Values(1, 9))
    assert dial("calls=2..32") == Dial(Knob("calls"), Values(2, 32))
    assert dial("calls=8,2,4,2") == Dial(Knob("calls"), Values(2, 8, (2, 4, 8)))


@pytest.mark.parametrize(
    ("over", "said"),
    [
        (
            "calls=1..32,semaphore",
            "--over calls=1..32: a setting of the agent is searched alone, not with semaphore",
        ),
        ("a=1..3,b=1..3", "--over a=1..3: a setting of the agent is searched alone, not with b=1..3"),
    ],
)
def test_over_that_cannot_be_searched_at_once_is_refused(over, said):
    with pytest.raises(UsageError, match=said):
        dial(over)


def test_search_of_a_setting_needs_an_agent_of_ones_own():
    with pytest.raises(UsageError, match=r"--over calls=1\.\.32: settings are those of an agent of your own"):
        Search(LoadOptions(), 10, over=parse_over("calls=1..32"))
    with pytest.raises(
        UsageError, match=r"--over semaphor=1..4 \(did you mean 'semaphore'\?\): settings are"
    ):
        Search(LoadOptions(), 10, over=parse_over("semaphor=1..4"))
    own = LoadOptions(agent="my:make")
    assert Search(own, 10, over=parse_over("calls=1..32")).dial.setting == "calls"


def test_search_over_limits_of_servers_needs_servers():
    with pytest.raises(
        UsageError, match=r"--over semaphore@server=1\.\.4: a limit of MCP servers: name them"
    ):
        Search(LoadOptions(), 10, over=parse_over("semaphore@server=1..4"))


def test_values_of_a_semaphore_and_of_a_setting():
    semaphore, setting = Dial(), dial("calls=2,4,8")
    assert (semaphore.baseline, semaphore.beside) == ("gathered", "sequential")
    assert (setting.baseline, setting.beside) == ("calls=8", "calls=4")
    assert (semaphore.spec(3), setting.spec(4)) == ("semaphore:3", "calls=4")
    specs = ("semaphore:3", "semaphore:3@agent", "semaphore:3 calls=4", "eager+semaphore:3", "gathered")
    assert [semaphore.value(spec) for spec in specs] == [3, None, None, None, None]
    specs = ("calls=4", "calls=4 b=1", "other=4", "gathered calls=4", "calls=true", "calls=4.0")
    assert [setting.value(spec) for spec in specs] == [4, None, None, None, None, None]
    assert (semaphore.nearest(0.2), setting.nearest(5.9), setting.nearest(100)) == (1, 4, 8)
    assert (semaphore.below(3), semaphore.below(1), setting.below(8), setting.below(2)) == (2, None, 4, None)
    assert dial("semaphore=3..8").below(3) is None
    assert setting.distinct([1, 2, 3.5, 9, 4]) == [2, 4, 8]
    assert dial("calls=1..2").beside == "calls=1"


def test_value_at_an_end_of_what_was_asked_for_is_said_to_be_one():
    within = dial("semaphore=2..64")
    assert within.edge(64) == "64 is the largest that --over names: a larger one may be better"
    assert within.edge(2) == "2 is the smallest that --over names: a smaller one may be as good"
    assert within.edge(30) is None
    assert dial("calls=1,4").edge(1) is None
    assert Dial().edge(1) is None


@pytest.mark.parametrize(
    ("over", "seen", "tried"),
    [
        ("rate", 20.0, [16, 20, 24]),
        ("rate", 0.0, []),
        ("rate=5..50", 20.0, [16, 20, 24]),
        ("rate=5..50", 45.0, [36, 45, 50]),
        ("rate=5..50", 900.0, [5, 15.81, 50]),
        ("rate=5..50", 0.0, [5, 15.81, 50]),
        ("rate=5,10,12,14,30", 11.0, [5, 10, 12, 14, 30]),
    ],
)
def test_rates_that_are_tried_stay_within_what_was_asked_for(over, seen, tried):
    assert rates_to_try(*parse_over(over), seen) == tried
