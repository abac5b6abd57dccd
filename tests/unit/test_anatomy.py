"""Phases and figures of loops that are only watched, whatever overlaps, against a count by instants."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler import anatomy
from profiler.anatomy import PHASES, eagerness, loop_phases, model_queue_ns, peak, phases, runs, tool_phase
from profiler.loop.model import CallRequest
from profiler.records import (
    Attempt,
    LoopRecord,
    ModelCall,
    RoundRecord,
    ServerToolCall,
    ToolAttempt,
    ToolCall,
)
from profiler.report.timeline import causes
from profiler.watch.loop import ObservedLoop
from profiler.watch.rounds import ObservedCall, ObservedRound


def watched_at_random(seed: int) -> LoopRecord:
    """Requests at once; tools beside a streamed reply or a request, in each other, past the next round."""
    choose = random.Random(seed)
    now = 0
    loop = ObservedLoop(lambda: now, name="", strategy="application", parent=None)
    streaming: list[ObservedRound] = []
    running: list[ObservedCall] = []
    asked = 0
    for _ in range(choose.randint(1, 25)):
        now += choose.choice((0, 1, 1, 2, 5))
        what = choose.choice(
            ("request", "complete", "complete", "reply", "retry", "call", "call", "end", "end")
        )
        if what == "request":
            round_ = loop.begin_round("p", "m")
            round_.streamed = choose.random() < 0.7
            streaming.append(round_)
        elif what == "complete" and streaming:
            asked += 1
            arguments = f'{{"x": {asked % 3}}}'
            choose.choice(streaming).unclaimed.append((CallRequest(str(asked), "t", arguments), now))
        elif what == "reply" and streaming:
            streaming.pop(choose.randrange(len(streaming))).ended_ns = now
        elif what == "retry" and streaming:
            made = choose.choice(streaming).probe.attempts
            began = made[-1].ended_ns + choose.randint(0, 3) if made else now
            now = max(now, began + 1)
            made.append(Attempt(began, now))
        elif what == "call":
            running.append(loop.begin_call("t", loop.match("t", {"x": choose.randrange(3)})))
        elif what == "end" and running:
            running.pop(choose.randrange(len(running))).ended_ns = now
    now += choose.randint(0, 3)
    record = loop.record("ok", None, 0)
    if choose.random() < 0.5:
        return record
    rounds = tuple(
        replace(
            round_, model=replace(round_.model, server_tools=server_tools_at_random(choose, round_.model))
        )
        for round_ in record.rounds
    )
    return replace(record, rounds=rounds)


def server_tools_at_random(choose: random.Random, model: ModelCall) -> tuple[ServerToolCall, ...]:
    """Some beside each other, some that stick out of the request, some without times."""
    found = []
    for _ in range(choose.randint(0, 3)):
        start, end = sorted(choose.randint(model.started_ns - 2, model.ended_ns + 2) for _ in range(2))
        known = choose.random() < 0.8
        found.append(ServerToolCall("web_search", start if known else None, end if known else None))
    return tuple(found)


ORDER = (
    *("model_queue", "backoff", "server_tools", "model"),
    *("tools", "queue", "parse", "collect", "unaccounted"),
)


def counted(rounds: tuple[RoundRecord, ...], started: int, ended: int) -> dict[str, int]:
    """Nanosecond by nanosecond, in the order of precedence."""
    total = dict.fromkeys(PHASES, 0)
    for at in range(started, ended):
        of_rounds = [_phase(round_, at) for round_ in rounds]
        order = ORDER
        total[min([*of_rounds, "unaccounted"], key=order.index)] += 1
    return total


def _phase(round_: RoundRecord, at: int) -> str:
    if round_.model.started_ns <= at < round_.model.ended_ns:
        return _of_request(round_.model, at)
    if any(c.started_ns is not None and c.started_ns <= at < c.ended_ns for c in round_.tool_calls):
        return "tools"
    if any(c.queued_ns <= at < c.waited_until_ns for c in round_.tool_calls):
        return "queue"
    first, last = round_.tools_started_ns, round_.tools_ended_ns
    if first is not None and round_.model.ended_ns <= at < first:
        return "parse"
    if last is not None and max(last, round_.model.ended_ns) <= at < round_.ended_ns:
        return "collect"
    return "unaccounted"


def _of_request(model: ModelCall, at: int) -> str:
    if at < model.started_ns + model_queue_ns(model):
        return "model_queue"
    pairs = zip(model.attempts, model.attempts[1:], strict=False)
    if any(before.ended_ns <= at < after.started_ns for before, after in pairs):
        return "backoff"
    ran = [one for one in model.server_tools if one.started_ns is not None and one.ended_ns is not None]
    if any(one.started_ns <= at < one.ended_ns for one in ran):  # type: ignore[operator]
        return "server_tools"
    return "model"


@pytest.mark.parametrize("first_seed", range(0, 2000, 200))
def test_phases_of_any_watched_loop_are_those_counted_instant_by_instant(first_seed: int) -> None:
    overlapping = 0
    for seed in range(first_seed, first_seed + 200):
        record = watched_at_random(seed)
        for round_ in record.rounds:
            found = phases(round_)
            assert found == counted((round_,), round_.started_ns, round_.ended_ns), seed
            assert min(found.values()) >= 0, seed
            assert sum(found.values()) == round_.duration_ns, seed
        assert loop_phases(record) == counted(record.rounds, record.started_ns, record.ended_ns), seed
        why = causes(record)
        assert sum(cause.ns for cause in why) == record.wall_ns, seed
        assert all(cause.ns > 0 for cause in why), seed
        overlapping += sum(r.duration_ns for r in record.rounds) > record.wall_ns
    assert overlapping > 10


@pytest.mark.parametrize("first_seed", range(0, 2000, 200))
def test_figures_of_the_tool_phase_stay_in_their_range(first_seed: int) -> None:
    seen = 0
    for seed in range(first_seed, first_seed + 200):
        for round_ in watched_at_random(seed).rounds:
            phase, eager = tool_phase(round_), eagerness(round_)
            if phase is not None:
                assert 0 <= phase.critical_path_ns <= phase.wall_ns, seed
                assert phase.critical_path_ns <= phase.work_ns, seed
                assert phase.work_ns <= phase.peak_concurrency * phase.wall_ns, seed
                assert phase.straggler_ratio >= 1, seed
            if eager is not None:
                seen += 1
                assert 0 <= eager.overlapped_ns <= round_.model.duration_ns, seed
                assert 0 <= eager.bound_ns <= min(eager.wall_ns, eager.gathered_ns), seed
            for call in round_.tool_calls:
                assert call.ready_ns <= call.queued_ns <= call.waited_until_ns <= call.ended_ns, seed
    assert seen > 50


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param(  # two calls, each started as soon as it is complete
            "0 request, 150 complete a, 150 call a, 300 complete b, 300 call b, 450 end a, 600 reply,"
            "700 end b, 710 request, 900 reply",
            {"model": 790, "tools": 100, "collect": 10},
            id="started while the reply streams",
        ),
        pytest.param(
            "0 request, 10 call p, 310 end p, 500 reply", {"model": 500}, id="prefetch beside the request"
        ),
        pytest.param(
            "0 request, 10 call p, 500 reply, 700 end p, 720 request, 800 reply",
            {"model": 580, "tools": 200, "collect": 20},
            id="prefetch that outlasts the request",
        ),
        pytest.param(
            "0 request, 200 complete a, 200 reply, 200 call a, 250 call inner, 450 end inner, 500 end a,"
            "500 request, 700 reply",
            {"model": 400, "tools": 300},
            id="a tool in a tool",
        ),
        pytest.param(
            "0 request, 100 complete a, 100 reply, 150 call a, 200 request, 300 end a, 400 reply",
            {"model": 300, "parse": 50, "tools": 50},
            id="a call that ends after the next round began",
        ),
        pytest.param(
            "0 request, 100 complete a, 100 reply, 100 call a, 300 request, 400 reply",
            {"model": 200, "tools": 200},
            id="an unfinished call",
        ),
        pytest.param(
            "0 request, 50 request, 200 reply, 300 reply, 350 complete a, 350 call a, 400 end a",
            {"model": 300, "parse": 50, "tools": 50},
            id="two requests at once",
        ),
    ],
)
def test_phases_of_watched_loops_whose_work_overlaps(events: str, expected: dict[str, int]) -> None:
    now, calls = 0, {}
    loop = ObservedLoop(lambda: now, name="", strategy="application", parent=None)
    for event in events.split(","):
        at, what, *names = event.split()
        now = int(at)
        if what == "request":
            loop.begin_round("p", "m").streamed = True
        elif what == "reply":
            next(r for r in loop.rounds if r.ended_ns is None).ended_ns = now
        elif what == "complete":
            loop.rounds[0].unclaimed.append((CallRequest(names[0], "t", f'{{"x": "{names[0]}"}}'), now))
        elif what == "call":
            calls[names[0]] = loop.begin_call("t", loop.match("t", {"x": names[0]}))
        else:
            calls[names[0]].ended_ns = now
    found = loop_phases(loop.record("ok", None, 0))
    assert {phase: spent for phase, spent in found.items() if spent} == expected


def test_server_tools_are_a_phase_of_their_own_as_far_as_their_times_are_known() -> None:
    """A request from 0 to 100: searches at 20 to 50 and 40 to 60, one whose times nobody knows."""
    searches = (
        ServerToolCall("web_search", 20, 50),
        ServerToolCall("web_search", 40, 60),
        ServerToolCall("code_execution"),
    )
    model = ModelCall("anthropic", "m", 0, 100, streamed=True, server_tools=searches)
    record = LoopRecord("x", "gathered", "anthropic", "m", 0, 110, "ok", (RoundRecord(0, 0, 110, model),))
    assert {name: ns for name, ns in loop_phases(record).items() if ns} == {
        "model": 60,
        "server_tools": 40,
        "unaccounted": 10,
    }
    words = {cause.kind: cause.words for cause in causes(record)}
    assert words["server_tools"] == "the model's server ran tools of its own (web_search)"
    untimed = replace(model, server_tools=(ServerToolCall("web_search"),))
    record = replace(record, rounds=(replace(record.rounds[0], model=untimed),))
    assert loop_phases(record)["model"] == 100


small = st.integers(0, 12)


@st.composite
def calls_of_any_kind(draw) -> ToolCall:
    """Mostly a call as a loop runs it, after its reply, and sometimes anything else that records hold."""
    queued = 20 + draw(small)
    started = queued + draw(small)
    ended = started + draw(small)
    if draw(st.integers(0, 9)):
        return ToolCall("c", "t", 20, queued, started, ended)
    attempts = tuple(
        ToolAttempt(started + n, started + n + draw(small)) for n in range(draw(st.integers(0, 2)))
    )
    return ToolCall(
        "c",
        "t",
        20,
        queued - draw(small) * draw(st.integers(-1, 2)),
        draw(st.sampled_from((None, started))),
        ended,
        nested=draw(st.booleans()),
        attempts=attempts,
        unknown=draw(st.sampled_from(((), ("queued_ns",), ("ended_ns",)))),
        upper_bound=draw(st.booleans()),
    )


@st.composite
def rounds_of_any_kind(draw) -> RoundRecord:
    began = draw(st.integers(0, 2))
    attempts = tuple(Attempt(n, n + 1) for n in range(draw(st.sampled_from((0, 1, 1, 1, 2)))))
    model = ModelCall(
        draw(st.sampled_from(("openai", "openai", "none"))),
        "m",
        began,
        draw(st.integers(10, 21)),
        attempts=attempts,
        limiter_wait_ns=draw(st.sampled_from((0, 0, 3))),
        server_tools=draw(st.sampled_from(((), (), (ServerToolCall("s", 4, 6),)))),
    )
    calls = tuple(draw(st.lists(calls_of_any_kind(), max_size=4)))
    ends = [model.ended_ns, 20, *(call.ended_ns for call in calls)]
    tools = (20, max(ends) - draw(st.sampled_from((0, 0, 0, 2)))) if calls else (None, None)
    return RoundRecord(0, 0, max(ends) + draw(small), model, *tools, calls)


@given(rounds_of_any_kind())
def test_phases_in_one_pass_are_those_of_the_long_way(round_: RoundRecord):
    assert phases(round_) == anatomy._phases(round_)
    assert [*phases(round_)] == [*PHASES]


def test_usual_rounds_are_taken_in_one_pass(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(anatomy, "_phases")
    model = ModelCall("openai", "m", 1, 10, attempts=(Attempt(2, 9),))
    at_once = (ToolCall("a", "t", 10, 12, 13, 30), ToolCall("b", "t", 10, 12, 14, 25))
    assert phases(RoundRecord(0, 0, 33, model, 12, 30, at_once)) == {
        **dict.fromkeys(PHASES, 0),
        "model": 9,
        "parse": 2,
        "queue": 1,
        "tools": 17,
        "collect": 3,
        "unaccounted": 1,
    }
    in_turn = (ToolCall("a", "t", 10, 12, 12, 20), ToolCall("b", "t", 10, 12, 22, 30))
    assert phases(RoundRecord(0, 0, 33, model, 12, 30, in_turn))["queue"] == 2
    assert phases(RoundRecord(0, 0, 12, model))["unaccounted"] == 3


@given(rounds_of_any_kind())
def test_tool_phase_is_what_its_calls_tell(round_: RoundRecord):
    calls = [call for call in round_.tool_calls if not call.nested]
    ran, found = runs(calls), tool_phase(round_)
    if not ran:
        assert found is None
        return
    assert found is not None
    durations = sorted(ended - started for started, ended in ran)
    median = (durations[(len(ran) - 1) // 2] + durations[len(ran) // 2]) / 2
    tries = [
        span
        for call in calls
        if call.started_ns is not None and call.ended
        for span in (
            [(t.started_ns, t.ended_ns) for t in call.attempts] or [(call.started_ns, call.ended_ns)]
        )
    ]
    assert found == anatomy.ToolPhase(
        wall_ns=max(round_.tools_ended_ns, *(ended for _, ended in ran))
        - min(20, *(started for started, _ in ran)),
        work_ns=sum(durations),
        critical_path_ns=durations[-1],
        peak_concurrency=peak(tries) or 1,
        straggler_ratio=durations[-1] / median if median else 1.0,
        upper_bound=any(call.upper_bound for call in calls),
    )
