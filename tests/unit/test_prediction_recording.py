"""Which servers a recording took past their capacity, and what to add where it took one nowhere near."""

from __future__ import annotations

import heapq
import random
from dataclasses import replace

import pytest

from profiler.prediction.recording import advice, seen
from profiler.records import LoopRecord, ToolCall
from profiler.rundir import Run
from profiler.strategies import parse_strategies
from tests.unit.statistics_data import asked_by_nobody, call, run, served, trial

LEVELS = (5, 10, 20, 40)


def recorded(run_strategies: str = "gathered", **arguments: object) -> Run:
    trials = [trial(place, "gathered", 0, 1000, users=users) for place, users in enumerate(LEVELS)]
    return replace(run(trials, arguments=arguments), strategies=parse_strategies(run_strategies))


def calls(capacity: int | None, *, refusing: bool = False, name: str = "search") -> list[LoopRecord]:
    """Loops of one call each, more and more at once, of a server that queues above `capacity` or refuses."""
    draw = random.Random(7)
    made: list[ToolCall] = []
    now = 0.0
    for level in LEVELS:
        agents = [now + draw.random() * 100 for _ in range(level)]
        heapq.heapify(agents)
        ends: list[float] = []  # of calls in service
        while agents[0] < now + 4000:
            at = heapq.heappop(agents)
            ends = [end for end in ends if end > at]
            takes = draw.lognormvariate(0, 0.5) * 100
            refused = refusing and capacity is not None and len(ends) >= capacity
            begins = at
            if not refusing and capacity is not None and len(ends) >= capacity:
                begins = sorted(ends)[len(ends) - capacity]
            if refused:
                error = replace(call(at, 5, name=name, status="error"), error_type="http_503")
                made.append(error)
                heapq.heappush(agents, at + 50)
                continue
            heapq.heappush(ends, begins + takes)
            made.append(call(at, begins + takes - at, name=name))
            heapq.heappush(agents, begins + takes + draw.expovariate(1 / 50))
        now += 6000
    return [asked_by_nobody([one]) for one in made]


def test_server_that_refused_calls_was_taken_past_its_capacity():
    (said,) = advice(recorded(), calls(20, refusing=True))
    (one,) = seen(calls(20, refusing=True))
    assert said == f"past its capacity: search (refused {one.refused} of {one.calls} calls, with 20 at once)"
    assert one.refused > 100


def test_server_whose_calls_waited_was_taken_past_its_capacity():
    (said,) = advice(recorded(), calls(12))
    assert said.startswith("past its capacity: search (")
    assert " times as slow with " in said
    (one,) = seen(calls(12))
    assert one.past is not None
    assert 2.0 < float(one.past.split()[0]) < 5.0  # 40 agents of which 12 are served


@pytest.mark.parametrize(
    ("strategies", "arguments", "more"),
    [
        ("gathered", {}, "add a level: --levels 5,10,20,40,80 to know it"),
        ("sequential,semaphore:8", {}, "add --strategy gathered, which limits nothing, to know it"),
        ("gathered", {"max_in_flight": 30}, "raise --max-in-flight to know it"),
    ],
)
def test_server_that_was_never_slower_is_said_to_be_unknown_above_that(strategies, arguments, more):
    records = calls(None)
    (said,) = advice(recorded(strategies, **arguments), records)
    (one,) = seen(records)
    assert 35 <= one.most <= 40
    assert said == (
        f"not taken past its capacity: search (up to {one.most} at once, none refused): {more}, or leave it: "
        f"nothing above {one.most} calls at once can be predicted"
    )


def test_each_server_has_its_own_verdict_and_tools_of_one_mcp_server_are_one():
    tools = [asked_by_nobody([served(10 * n, name=name)]) for n in range(60) for name in ("read", "list")]
    few = [asked_by_nobody([call(0, 10, name="rare")])]
    past, below, unknown = advice(recorded(), [*calls(12, name="slow"), *tools, *few])
    assert past.startswith("past its capacity: slow (")
    assert below.startswith(
        "not taken past its capacity: docs/* (up to 22 at once, none refused): add a level"
    )
    assert unknown == (
        "too few calls to know anything of it: rare (1): 50 are needed; a longer --duration has them"
    )


def test_few_refused_calls_are_not_enough_to_know_a_capacity():
    records = calls(None)
    refused = [
        asked_by_nobody([replace(call(100 * n, 5, name="search", status="error"), error_type="http_429")])
        for n in range(4)
    ]
    (said,) = advice(recorded(), [*records, *refused])
    assert " at once, 4 refused): add a level: " in said


def test_what_the_client_took_is_no_slowness_of_the_server():
    """Under many calls the client is late by as much as the call takes."""
    records = []
    for n in range(600):
        at, late = (n * 50.0, 0) if n < 300 else (20_000 + n * 2.0, 60_000_000)
        one = replace(call(at, 40 + late / 1e6, name="search"), late_ns=late)
        records.append(asked_by_nobody([one]))
    (one,) = seen(records)
    assert one.past is None
    assert one.most > 40


def test_run_without_calls_has_nothing_to_predict_from():
    assert advice(recorded(), []) == ["no tool was called: there is nothing of their servers to predict from"]
