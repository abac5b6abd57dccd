"""`--over`: its grammar, the strategies that its values stand for, and the errors."""

from __future__ import annotations

import pytest

from profiler import UsageError
from profiler.over import ANY_LIMIT, Over, Values, parse_over
from profiler.strategies import Knob, parse_strategy


def test_parts_of_over_are_kinds_with_or_without_values_and_settings():
    assert parse_over("semaphore=2..64, adaptive,rate=2.5..50,semaphore:search=8,1,4") == (
        Over("semaphore", Knob(), Values(2, 64)),
        Over("adaptive"),
        Over("rate", None, Values(2.5, 50.0, whole=False)),
        Over("semaphore", Knob(scope="tool", tool="search"), Values(1, 8, (1, 4, 8))),
    )
    assert parse_over("calls=1,2,4") == (Over("setting", Knob("calls"), Values(1, 4, (1, 2, 4))),)
    assert [one.values for one in parse_over("semaphore,sequential")] == [ANY_LIMIT, None]


@pytest.mark.parametrize(
    ("part", "specs"),
    [
        ("semaphore=2..64", ["semaphore:2", "semaphore:11", "semaphore:64"]),
        ("semaphore@agent=1..4", ["semaphore:1@agent", "semaphore:2@agent", "semaphore:4@agent"]),
        ("semaphore@tool=1..16", ["semaphore:1@tool", "semaphore:4@tool", "semaphore:16@tool"]),
        ("semaphore@server=1..9", ["semaphore:1@server", "semaphore:3@server", "semaphore:9@server"]),
        ("semaphore:search=1..16", ["semaphore:search=1", "semaphore:search=4", "semaphore:search=16"]),
        ("semaphore:my.files/*=1,2", ["semaphore:my.files/*=1", "semaphore:my.files/*=2"]),
        ("rate=0.5..50", ["rate:0.5/s", "rate:5/s", "rate:50/s"]),
        ("rate=12345.678,200000", ["rate:12345.678/s", "rate:200000/s"]),
        ("max_calls=1..32", ["max_calls=1", "max_calls=6", "max_calls=32"]),
        ("adaptive", ["adaptive"]),
        ("eager", ["eager"]),
        ("sequential", ["sequential"]),
        ("gathered", ["gathered"]),
    ],
)
def test_values_of_a_part_are_strategies_and_the_part_reads_as_it_was_written(part: str, specs: list[str]):
    (over,) = parse_over(part)
    assert over.specs(over.values.spaced(3) if over.values else ()) == specs
    assert str(over) == part
    assert [parse_strategy(spec).text for spec in specs] == specs
    if over.knob is not None:
        assert [over.spec(over.knob.value(spec)) for spec in specs] == specs


def test_value_of_a_knob_is_that_of_its_own_semaphore_alone():
    specs = ("semaphore:3", "semaphore:3@tool", "semaphore:search=3", "semaphore:other=3", "semaphore:s/*=3")
    knobs = (Knob(), Knob(scope="tool"), Knob(scope="tool", tool="search"), Knob(scope="server", server="s"))
    found = [[place for place, spec in enumerate(specs) if knob.value(spec) == 3] for knob in knobs]
    assert found == [[0], [1], [2], [4]]
    assert Knob(scope="tool", tool="a").value("semaphore:a=1,b=2") is None


def test_nearest_value_stays_within_what_was_asked_for():
    within, listed, rate = Values(2, 64), Values(1, 8, (1, 4, 8)), Values(5, 50, whole=False)
    assert [within.nearest(one) for one in (0.3, 7.6, 100)] == [2, 8, 64]
    assert [listed.nearest(one) for one in (0.3, 5.9, 100)] == [1, 4, 8]
    assert [rate.nearest(one) for one in (0.3, 12.34567, 100)] == [5, 12.35, 50]
    assert listed.distinct([9, 1, 2, 4, 8]) == [8, 1, 4]
    assert within.spaced(2) == [2, 64]


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ("magic", "--over magic: expected some of semaphore, semaphore@agent, semaphore@tool, semaphore@ser"),
        ("semaphor", "--over semaphor (did you mean 'semaphore'?): expected some of"),
        ("semaphor=2", "--over semaphor=2 (did you mean 'semaphore'?): expected whole numbers up to 1000000"),
        ("semaphore@tol=1..2", "--over semaphore@tol=1..2 (did you mean 'semaphore@tool'?): expected some"),
        ("semaphore@process", "--over semaphore@process"),
        ("semaphore:=1..4", "--over semaphore:=1..4"),
        ("semaphore:8", "--over semaphore:8 is one strategy; to search over its limit: semaphore=1..16"),
        (
            "semaphore=4..2",
            "--over semaphore=4..2: expected whole numbers up to 1000000, two or more of them",
        ),
        ("semaphore=1.5..3", "--over semaphore=1.5..3: expected whole numbers"),
        ("semaphore=", "--over semaphore=: expected whole numbers"),
        ("adaptive=1..4", "--over adaptive=1..4: adaptive has no values to choose from"),
        (
            "rate=0..5",
            "--over rate=0..5: expected calls a second up to 1000000, two or more of them, such as r",
        ),
        ("rate=5", "--over rate=5: expected calls a second"),
        ("a=5", "--over a=5: expected whole numbers up to 1000000, two or more of them, such as a=1..32"),
        ("a=5..5", "--over a=5..5: expected whole numbers"),
        ("a=0..5", "--over a=0..5: expected whole numbers"),
        ("a=1..9999999", "--over a=1..9999999: expected whole numbers"),
        ("a=fast,slow", "--over a=fast: expected whole numbers"),
        ("semaphore,rate,semaphore=1..4", "--over semaphore,rate,semaphore=1..4: semaphore is named twice"),
        (" ,", "--over: expected some of semaphore"),
    ],
)
def test_over_that_is_none_is_refused(over: str, said: str):
    with pytest.raises(UsageError) as error:
        parse_over(over)
    assert str(error.value).startswith(said)
