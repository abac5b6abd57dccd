"""What a search turns: a semaphore's limit, or a setting of the agent over a range or a list of values."""

from __future__ import annotations

import pytest

from profiler import UsageError
from profiler.load.options import LoadOptions
from profiler.strategies import Knob
from profiler.tune.dial import Dial, dial_of, split_over
from profiler.tune.search import Search


def test_parts_of_over_keep_the_values_of_a_setting():
    assert split_over("semaphore, adaptive") == ("semaphore", "adaptive")
    assert split_over("calls=1,2,4") == ("calls=1,2,4",)
    assert split_over("calls=1..32,semaphore") == ("calls=1..32", "semaphore")


def test_dial_is_a_semaphore_unless_a_setting_is_named():
    assert dial_of(("semaphore", "rate")) == Dial()
    assert dial_of(("calls=2..32",)) == Dial(Knob("calls"), range(2, 33))
    assert dial_of(("calls=8,2,4,2",)) == Dial(Knob("calls"), (2, 4, 8))


@pytest.mark.parametrize(
    ("over", "said"),
    [
        (
            "calls=1..32,semaphore",
            "--over calls=1..32: a setting of the agent is searched alone, not with semaphore",
        ),
        ("a=1..3,b=1..3", "--over a=1..3: a setting of the agent is searched alone, not with b=1..3"),
        ("a=5", "--over a=5: expected whole numbers up to 1000000, two or more of them, such as a=1..32"),
        ("a=5..5", "--over a=5..5: expected whole numbers"),
        ("a=9..5", "--over a=9..5: expected whole numbers"),
        ("a=0..5", "--over a=0..5: expected whole numbers"),
        ("a=1..9999999", "--over a=1..9999999: expected whole numbers"),
        ("a=fast,slow", "--over a=fast: a setting of the agent is searched alone, not with slow"),
    ],
)
def test_over_that_cannot_be_searched_is_refused(over, said):
    with pytest.raises(UsageError, match=said):
        dial_of(split_over(over))


def test_search_of_a_setting_needs_an_agent_of_ones_own():
    with pytest.raises(UsageError, match="settings are those of an agent of your own"):
        Search(LoadOptions(), 10, over=("calls=1..32",))
    assert Search(LoadOptions(agent="my:make"), 10, over=("calls=1..32",)).dial.setting == "calls"


def test_values_of_a_semaphore_and_of_a_setting():
    semaphore, setting = Dial(), dial_of(("calls=2,4,8",))
    assert (semaphore.baseline, semaphore.beside) == ("gathered", "sequential")
    assert (setting.baseline, setting.beside) == ("calls=8", "calls=4")
    assert (semaphore.spec(3), setting.spec(4)) == ("semaphore:3", "calls=4")
    specs = ("semaphore:3", "semaphore:3@agent", "semaphore:3 calls=4", "eager+semaphore:3", "gathered")
    assert [semaphore.value(spec) for spec in specs] == [3, None, None, None, None]
    specs = ("calls=4", "calls=4 b=1", "other=4", "gathered calls=4", "calls=true", "calls=4.0")
    assert [setting.value(spec) for spec in specs] == [4, None, None, None, None, None]
    assert (semaphore.nearest(0.2), setting.nearest(5.9), setting.nearest(100)) == (1, 4, 8)
    assert (semaphore.below(3), semaphore.below(1), setting.below(8), setting.below(2)) == (2, None, 4, None)
    assert setting.distinct([1, 2, 3.5, 9, 4]) == [2, 4, 8]
    assert dial_of(("calls=1..2",)).beside == "calls=1"
