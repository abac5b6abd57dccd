"""Specs, and what they name."""

from __future__ import annotations

import pytest

from profiler import UsageError
from profiler.limits.spec import Rule
from profiler.strategies import (
    Gathered,
    SemaphoreLimited,
    StrategySpec,
    crossed,
    effective_limits,
    parse_strategies,
    parse_strategy,
    split_specs,
)


@pytest.mark.parametrize(
    ("spec", "limit", "scope", "eager"),
    [
        ("sequential", 1, "agent", "no"),
        ("gathered", None, "process", "no"),
        ("semaphore:4", 4, "process", "no"),
        ("semaphore:12@agent", 12, "agent", "no"),
        ("semaphore:3@tool", 3, "tool", "no"),
        ("semaphore:get_weather=4,search=2", 2, "tool", "no"),
        ("semaphore:8@server", 8, "server", "no"),
        ("semaphore:files/*=8,127.0.0.1-8100/*=4,read=9", 4, "server", "no"),
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
    text = "gathered, semaphore:a=1,b=2,rate:5/s,burst=3 ,semaphore:a.b/*=1,c/*=2,d=3,eager"
    assert split_specs(text) == [
        "gathered",
        "semaphore:a=1,b=2",
        "rate:5/s,burst=3",
        "semaphore:a.b/*=1,c/*=2,d=3",
        "eager",
    ]


def test_share_of_a_limit():
    assert parse_strategy("semaphore:9").build(share=2).limit == 4
    assert SemaphoreLimited(9).limit == 9


def test_settings_of_an_agent_are_part_of_a_strategy_and_of_its_name():
    spec = parse_strategy("semaphore:8  max_concurrent_calls=2 parallel=true")
    assert spec == StrategySpec(
        "semaphore:8 max_concurrent_calls=2 parallel=true",
        "limited",
        (Rule("semaphore:8", "semaphore", limit=8),),
        variant=(("max_concurrent_calls", 2), ("parallel", True)),
    )
    assert (spec.base, spec.limit, spec.scope) == ("semaphore:8", 8, "process")
    built = spec.build()
    assert (built.spec, built.limit) == (spec.text, 8)
    assert parse_strategy("sequential a=1").build().spec == "sequential a=1"


def test_settings_alone_leave_the_calls_to_the_agent():
    spec = parse_strategy("max_concurrent_calls=2")
    assert (spec.kind, spec.text, spec.base, spec.limit) == ("own", "max_concurrent_calls=2", "", None)
    assert not spec.adapts
    built = spec.build()
    assert isinstance(built, Gathered)
    assert (built.spec, built.gate) == (spec.text, None)
    assert StrategySpec.recorded(spec.text) == spec


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("semaphore:8 fast", "unknown strategy"),
        ("semaphore:8 a=1 fast", "'fast' is no setting of an agent: expected NAME=VALUE"),
        ("a=", "'a=' is no setting of an agent"),
        ("a=1 a=2", "a has two values"),
        ("semaphore:0 a=1", "unknown strategy 'semaphore:0'"),
    ],
)
def test_spec_with_bad_settings_is_refused(spec, said):
    with pytest.raises(UsageError, match=said):
        parse_strategy(spec)


def test_list_with_settings_of_an_agent_begins_a_new_spec_at_each_comma():
    assert split_specs("semaphore:a=1,b=2 k=1,k=2,gathered k=3,k=4") == [
        "semaphore:a=1,b=2 k=1",
        "k=2",
        "gathered k=3",
        "k=4",
    ]
    assert split_specs("rate:5/s,burst=2 k=1,sequential") == ["rate:5/s,burst=2 k=1", "sequential"]


def test_settings_are_crossed_with_strategies():
    def texts(specs, settings):
        return [str(spec) for spec in crossed(parse_strategies(specs), settings)]

    assert texts("", ["a=1", "a=2"]) == ["a=1", "a=2"]
    assert texts("", ["a=1", "b=x", "a=2"]) == ["a=1 b=x", "a=2 b=x"]
    assert texts("gathered,semaphore:4", ["a=1", "a=2"]) == [
        *("gathered a=1", "gathered a=2", "semaphore:4 a=1", "semaphore:4 a=2")
    ]
    with pytest.raises(UsageError, match="--variant: 18 combinations"):
        texts("gathered,sequential", [f"a={n}" for n in range(9)])


def test_effective_limit_of_an_agents_own_way_is_not_claimed():
    specs = parse_strategies(["a=8", "gathered a=8", "semaphore:4 a=8", "rate:6/min+semaphore:2 a=x/min"])
    assert effective_limits(specs, agents=10, processes=2) == [
        "a=8: no limit of the profiler's; the agent runs its calls in its own way",
        "gathered a=8: no limit on calls running at once",
        "semaphore:4 a=8: 4 per process × 2 processes = up to 8 calls at once",
        "rate:6/min+semaphore:2 a=x/min: rate:6/min: 6 per process × 2 processes = up to 12 calls/min",
        "rate:6/min+semaphore:2 a=x/min: semaphore:2: 2 per process × 2 processes = up to 4 calls at once",
    ]
