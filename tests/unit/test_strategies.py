"""Specs, and what they name."""

from __future__ import annotations

import pytest

from profiler import UsageError
from profiler.strategies import SemaphoreLimited, parse_strategy, split_specs


@pytest.mark.parametrize(
    ("spec", "limit", "scope", "eager"),
    [
        ("sequential", 1, "agent", "no"),
        ("gathered", None, "process", "no"),
        ("semaphore:4", 4, "process", "no"),
        ("semaphore:12@agent", 12, "agent", "no"),
        ("semaphore:3@tool", 3, "tool", "no"),
        ("semaphore:get_weather=4,search=2", 2, "tool", "no"),
        ("rate:500/min,burst=20", None, "process", "no"),
        ("adaptive", 8, "process", "no"),
        ("semaphore:6@agent+semaphore:48+rate:20/s", 6, "agent", "no"),
        ("eager", None, "process", "pure"),
        ("eager:all", None, "process", "all"),
        ("eager+semaphore:8", 8, "process", "pure"),
        ("eager:all+adaptive", 8, "process", "all"),
    ],
)
def test_spec_names_a_strategy_and_back(spec, limit, scope, eager):
    value = parse_strategy(spec)
    assert (value.text, value.limit, value.scope, value.eager) == (spec, limit, scope, eager)
    strategy = value.build()
    assert (strategy.spec, strategy.limit, strategy.eager) == (spec, limit, eager)


@pytest.mark.parametrize(
    "spec",
    [
        *("", "parallel", "semaphore", "semaphore:0", "semaphore:-1", "semaphore:4@all", "semaphore:4x"),
        *(
            "eager+sequential",
            "eager+gathered",
            "sequential+semaphore:2",
            "rate:0/s",
            "rate:3",
            "semaphore:4+",
        ),
    ],
)
def test_spec_that_is_no_strategy_is_refused(spec):
    with pytest.raises(UsageError, match="unknown strategy"):
        parse_strategy(spec)


def test_list_with_commas_keeps_the_commas_of_a_spec():
    assert split_specs("gathered, semaphore:a=1,b=2,rate:5/s,burst=3 ,eager") == [
        "gathered",
        "semaphore:a=1,b=2",
        "rate:5/s,burst=3",
        "eager",
    ]


def test_share_of_a_limit():
    assert parse_strategy("semaphore:9").build(share=2).limit == 4
    assert SemaphoreLimited(9).limit == 9
