"""What the first loop of an agent is judged to show: pure, from records."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from profiler.load.selfcheck import Seen, Trace, judged, merged
from profiler.records import LoopRecord, ModelCall, RoundRecord, ToolCall
from profiler.rundir import Check
from profiler.strategies import parse_strategy

MS = 1_000_000


def record(*spans: tuple[int, int], unseen: int = 0, around: int = 0, **changes: Any) -> LoopRecord:
    """A loop of one round with calls at these times, in milliseconds."""
    calls = tuple(
        ToolCall(f"c{n}", "a", 0, start * MS, start * MS, end * MS, "ok")
        for n, (start, end) in enumerate(spans)
    )
    model = ModelCall("openai", "m", 0, MS, "ok")
    rounds = (
        RoundRecord(
            0,
            0,
            100 * MS,
            model,
            min((start * MS for start, _ in spans), default=None),
            max((end * MS for _, end in spans), default=None),
            calls,
            "ok",
            unobserved_calls=unseen,
            shortfall=changes.pop("shortfall", None),
        ),
    )
    made = LoopRecord("l", "s", "openai", "m", 0, 100 * MS, "ok", rounds, unlimited_calls=around)
    return replace(made, **changes)


TOGETHER = ((1, 9), (1, 9), (1, 9), (1, 9))
IN_TURN = ((1, 3), (3, 5), (5, 7), (7, 9))
BY_TWO = ((1, 3), (1, 3), (3, 5), (3, 5))


def first(spec: str, *records: LoopRecord, **seen: Any) -> Check:
    return judged(parse_strategy(spec), Seen(records, seen.pop("trace", Trace()), **seen))[0]


@pytest.mark.parametrize(
    ("spec", "seen", "outcome", "said"),
    [
        ("gathered", record(*TOGETHER), "heeded", "4 calls asked for, 4 seen, 4 at once: heeded"),
        ("semaphore:2", record(*BY_TWO), "heeded", "2 at once as semaphore:2 allows: heeded"),
        ("sequential", record(*IN_TURN), "heeded", "1 at once as sequential allows: heeded"),
        ("rate:20/s", record(*TOGETHER), "heeded", "4 at once: heeded"),
        ("semaphore:4", record(*TOGETHER), "not_told", "no reply asked for more than 4 calls"),
        ("semaphore:2", record(*TOGETHER, around=4), "not_heeded", "4 at once where semaphore:2 allows 2"),
        ("semaphore:8", record(*TOGETHER, around=4), "not_heeded", "4 of them around it: not heeded"),
        ("semaphore:2", record(*TOGETHER), "not_told", "with calls of another loop among them"),
        (
            "semaphore:2",
            record(*BY_TWO, unseen=1),
            "not_told",
            "5 calls asked for, 4 seen: could not",
        ),
        ("semaphore:2", record(), "not_told", "the model asked for no tool call"),
        ("semaphore:2", record(rounds=()), "not_told", "no model request of it was seen"),
        ("gathered", record(*IN_TURN, shortfall="application"), "not_heeded", "1 at once where 4 could be"),
        ("gathered", record(*IN_TURN, shortfall="inside_tools"), "not_told", "each had ended before"),
    ],
)
def test_strategy_is_heeded_or_not(spec: str, seen: LoopRecord, outcome: str, said: str) -> None:
    check = first(spec, seen)
    assert (check.strategy, check.outcome) == (spec, outcome)
    assert said in check.detail


def test_loop_that_took_too_long_tells_nothing() -> None:
    check = first("semaphore:2", record(*TOGETHER, around=4), timed_out=True)
    assert (check.outcome, check.detail) == ("not_told", "could not be told within 10 s")


def test_line_to_change_is_named() -> None:
    trace = Trace(calls=Counter({"agent.py:17": 3, "agent.py:20": 1}))
    ignored = first("semaphore:2", record(*TOGETHER, around=4), trace=trace)
    assert ignored.remedy.startswith("agent.py:17: hand the calls over: await ctx.execute(")
    in_turn = first("gathered", record(*IN_TURN, shortfall="application"), trace=trace)
    assert in_turn.remedy.startswith("agent.py:17: ")


def test_limit_at_module_level_is_named_where_it_is_the_one() -> None:
    trace = Trace(callers=Counter({"agent.py:9": 4}))
    caps = [("SLOTS (agent.py:3)", 2), ("OTHER (agent.py:4)", 3)]
    held = first("gathered", record(*BY_TWO), caps=caps, trace=trace)
    assert "SLOTS (agent.py:3) lets 2 run at once: not heeded" in held.detail
    assert held.remedy == "agent.py:9: raise it, or leave it out under load"
    assert first("semaphore:2", record(*BY_TWO), caps=caps).outcome == "heeded"


def problems(*records: LoopRecord, **seen: Any) -> list[str]:
    found = judged(parse_strategy("gathered"), Seen(records, seen.pop("trace", Trace()), **seen))
    return [one.detail for one in found[1:]]


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ({"unrun": {"a": "agent.py:3"}}, "asked for, and run by no watched tool: a (agent.py:3): not seen"),
        ({"unrun": {"a": ""}, "unasked": {"b": "agent.py:4"}}, "a was asked for, and b (agent.py:4) ran"),
        ({"unwatched": ["OpenAI (agent.py:1)"]}, "OpenAI (agent.py:1) is not watched"),
        ({"swallowed": {"a": "agent.py:5"}}, "a makes results of its exceptions (agent.py:5)"),
        ({"remade": {"a": "agent.py:2"}}, "a (agent.py:2) is made anew by each call of the agent"),
        ({"trace": Trace(blocking=Counter({"agent.py:6": 1}))}, "agent.py:6 asks the model by a sync client"),
        ({"trace": Trace(foreign=Counter({"agent.py:7": 1}))}, "agent.py:7 uses what the factory made"),
        (
            {"trace": Trace(nested=Counter({"agent.py:8": 1}))},
            "agent.py:8 asks for its strategy inside",
        ),
    ],
)
def test_what_is_wrong_beside_is_told_with_its_place(seen: dict[str, Any], said: str) -> None:
    (found,) = problems(record(*TOGETHER), **seen)
    assert said in found


def test_requests_of_which_none_is_recorded() -> None:
    asked = Trace(requests=Counter({"agent.py:5": 1}))
    (found,) = problems(record(rounds=()), trace=asked)
    assert "model requests were sent (agent.py:5), and none is of this loop" in found
    assert problems(record(*TOGETHER), trace=asked) == []


def test_calls_outside_the_loop_or_not_told_apart() -> None:
    assert problems(record(*TOGETHER, orphan_calls=1)) == ["1 call of watched tools ran outside the loop"]
    assert problems(record(*TOGETHER, orphan_calls=1), mixed=True) == []
    assert problems(record(*TOGETHER, ambiguous_calls=2)) == ["2 calls could not be told apart"]


def test_problem_of_all_strategies_is_said_once_and_first() -> None:
    heeded = [Check(name, "heeded", "well") for name in ("gathered", "sequential", "semaphore:2")]
    everywhere = [replace(one, outcome="problem", detail="x", remedy="y") for one in heeded]
    some = [replace(one, outcome="problem", detail="z") for one in heeded[:2]]
    assert merged([*heeded, *everywhere, *some]) == (
        Check("", "problem", "x", "y"),
        Check("gathered, sequential", "problem", "z"),
        *heeded,
    )
    assert str(Check("", "problem", "x", "y")) == "x; y"
    assert str(Check("sequential", "heeded", "well")) == "sequential: well"
