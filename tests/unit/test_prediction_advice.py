"""Which servers a recording took past their capacity, and what to add where it did not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from profiler.prediction.advice import advice
from profiler.prediction.fitting import Fitted, ServerFit
from profiler.prediction.servers.calls import Rule
from profiler.prediction.servers.identify import Finding
from profiler.prediction.simulation.work import LoopWork, RoundWork, Server, System
from profiler.strategies import parse_strategies
from tests.unit.statistics_data import run, trial

LEVELS = (5, 10, 20, 40)

REFUSES = Finding(Rule("refuse", 20), True, (1.0, 45.0), (20, 20), "refuses above 20 at once", ())
FREE = Finding(Rule("none"), True, (1.0, 16.0), None, "no slower up to 16 in flight", ())
UNCLEAR = Finding(Rule("share", 8), False, (1.0, 30.0), None, "slower later or under more load", ())


def server(name: str, finding: Finding, calls: int = 900, busiest: int = 0) -> ServerFit:
    return ServerFit(name, (name,), finding, calls, 0, 1, busiest=busiest)


def fitted(
    *servers: ServerFit, loops: int = 1000, strategies: str = "gathered", **arguments: object
) -> Fitted:
    trials = [trial(place, "gathered", 0, 1000, users=users) for place, users in enumerate(LEVELS)]
    recorded = replace(run(trials, arguments=arguments), strategies=parse_strategies(strategies))
    model = ServerFit("the model", (), FREE, 0, 0, 1)
    system = System((), (), (), Server("the model", Rule("none")))
    return Fitted(recorded, system, (LoopWork((RoundWork(1),)),) * loops, servers, model, loops, 900)


def test_server_that_was_taken_past_its_capacity_is_told_with_it() -> None:
    assert advice(fitted(server("search", REFUSES))) == [
        "past its capacity: search (refuses above 20 at once)"
    ]


@pytest.mark.parametrize(
    ("asked", "remedy"),
    [
        ({}, "add a level: --levels 5,10,20,40,80"),
        ({"strategies": "sequential,semaphore:4"}, "add --strategy gathered, which limits nothing,"),
        ({"max_in_flight": 6}, "raise --max-in-flight"),
    ],
)
def test_server_that_was_not_is_told_with_what_takes_it_there(asked: dict[str, object], remedy: str) -> None:
    recorded = fitted(server("search", FREE), server("fetch", FREE, busiest=22), **asked)  # type: ignore[arg-type]
    assert advice(recorded) == [
        "not taken past its capacity: search (up to 16 at once), fetch (up to 22 at once): "
        f"{remedy} to know it, or leave it: nothing above that can be predicted"
    ]


def test_server_that_is_not_understood_is_told_with_the_reason() -> None:
    assert advice(fitted(server("search", UNCLEAR))) == [
        "not understood: search (slower later or under more load)"
    ]


def test_few_calls_or_loops_say_how_many_are_needed() -> None:
    assert advice(fitted(server("search", FREE, calls=49), loops=12)) == [
        "12 whole loops are too few to predict from: 150 are needed, and 1,000 make narrow bands; a longer "
        "--duration has them",
        "too few calls to know anything of it: search (49): 50 are needed; a longer --duration has them",
    ]


def test_model_s_server_is_told_of_too() -> None:
    recorded = fitted(server("search", REFUSES))
    model = replace(recorded.model, calls=900, finding=REFUSES)
    assert advice(replace(recorded, model=model)) == [
        "past its capacity: search (refuses above 20 at once), the model (refuses above 20 at once)"
    ]


def test_recording_without_tools_has_nothing_to_predict_from() -> None:
    assert advice(fitted()) == ["no tool was called: there is nothing of their servers to predict from"]
