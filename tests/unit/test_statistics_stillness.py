"""When a target stood still, and when it was only slow."""

from __future__ import annotations

from dataclasses import replace

import pytest

from profiler.records import LoopRecord
from profiler.statistics.stillness import stood_still
from tests.unit.statistics_data import call, loop

S = 1_000_000_000


def asked(start: float, end: float, *, replied: bool = True, lag: float = 0.0) -> LoopRecord:
    """A loop of one request from `start` to `end`, in seconds."""
    record = loop(start * 1e3, (end - start) * 1e3)
    (first, *_) = record.rounds
    model = replace(
        first.model,
        started_ns=int(start * S),
        ended_ns=int(end * S),
        first_token_ns=None,
        attempts=(),
        status="ok" if replied else "error",
        error_type=None if replied else "timeout",
    )
    only = replace(first, model=model, tool_calls=())
    return replace(record, rounds=(only,), lag_ns=int(lag * S))


def paced(agents: int, each: float, until: float, since: float = 0.0) -> list[LoopRecord]:
    """`agents` whose requests take `each` seconds, evenly apart, until then."""
    found = []
    for agent in range(agents):
        at = since + agent * each / agents
        while at + each <= until:
            found.append(asked(at, at + each))
            at += each
    return found


def stopped(since: float, until: float, lag: float = 0.0) -> list[LoopRecord]:
    """Three requests under way over a stop, two before it and two after."""
    return [asked(since - 0.1 * k, until + 0.1 * k, lag=lag) for k in (1, 2, 3)]


def around(since: float, until: float) -> list[LoopRecord]:
    return [*paced(4, 1.0, since), *paced(4, 1.0, until + 20.0, until + 0.5)]


def test_requests_that_all_wait_and_are_then_answered_are_a_stop() -> None:
    (found,) = stood_still([*around(30.0, 50.0), *stopped(30.0, 50.0)], with_tools=False)
    assert found.seconds == pytest.approx(20.1, abs=0.2)
    assert found.waiting == 3
    assert found.started_ns / S == pytest.approx(30.0, abs=0.3)


@pytest.mark.parametrize(
    ("what", "records"),
    [
        ("quick all the time", paced(4, 1.0, 60.0)),
        ("slow in general", paced(1, 20.0, 200.0)),
        ("slow in general, in step", [asked(20.0 * k, 20.0 * k + 19.9) for k in range(9) for _ in range(4)]),
        ("nothing was asked", around(30.0, 50.0)),
        (
            "it never answered again",
            [*paced(4, 1.0, 30.0), *(asked(29.9, 59.0, replied=False) for _ in "abc")],
        ),
        ("the client was stopped", [*around(30.0, 50.0), *stopped(30.0, 50.0, lag=19.5)]),
        ("a single answer went on", [*around(30.0, 50.0), *stopped(30.0, 50.0), *paced(1, 2.0, 60.0)]),
        ("too short", [*around(30.0, 34.0), *stopped(30.0, 34.0)]),
        ("no other replies to compare with", stopped(30.0, 50.0)),
        ("nothing", []),
    ],
)
def test_what_is_no_stop(what: str, records: list[LoopRecord]) -> None:
    assert stood_still(records, with_tools=False) == [], what


def test_tools_of_the_target_stand_still_with_it_and_others_do_not() -> None:
    records = around(30.0, 50.0)
    tools = []
    for start, end in [(float(k), k + 0.3) for k in range(8)] + [(29.9, 50.2), (29.8, 50.3)]:
        one = asked(start, start)
        (only,) = one.rounds
        made = call(start * 1e3, (end - start) * 1e3, name="look")
        tools.append(replace(one, rounds=(replace(only, tool_calls=(made,)),)))
    assert stood_still([*records, *tools], with_tools=False) == []
    (found,) = stood_still([*records, *tools], with_tools=True)
    assert found.waiting == 2
