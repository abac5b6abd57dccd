"""From the spans of traces to loops: which are one loop, one request, one round."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.recordings.drafts import CallDraft, LoopDraft, Tally, record_of
from profiler.recordings.formats import Skipped
from profiler.recordings.spans import Span, loops_of, packed, unpacked

MS = 1_000_000


def span(kind: Any, id_: str, started: float, ended: float | None, parent: str = "a", **more: Any) -> Span:
    values: dict[str, Any] = {"trace": "t", "id": id_, "name": id_} | more
    return Span(
        parent=parent,
        kind=kind,
        started_ns=int(started * MS),
        ended_ns=None if ended is None else int(ended * MS),
        **values,
    )


def agent(id_: str, started: float, ended: float | None, parent: str = "", **more: Any) -> Span:
    return span("agent", id_, started, ended, parent, **({"agent": id_} | more))


def model(id_: str, started: float, ended: float | None, parent: str = "a", **more: Any) -> Span:
    return span("model", id_, started, ended, parent, **({"provider": "openai", "model": "m"} | more))


def tool(id_: str, started: float, ended: float | None, parent: str = "a", **more: Any) -> Span:
    return span("tool", id_, started, ended, parent, **more)


PLAIN = (
    agent("a", 0, 100),
    model("m1", 1, 20),
    tool("t1", 21, 50, call_id="c1"),
    tool("t2", 22, 60, call_id="c2"),
    model("m2", 61, 90),
)


def drafts(*spans: Span) -> list[LoopDraft]:
    return [one for one in loops_of(spans, "otel") if isinstance(one, LoopDraft)]


def skipped(*spans: Span) -> dict[str, int]:
    return {one.reason: one.count for one in loops_of(spans, "otel") if isinstance(one, Skipped)}


def only(*spans: Span) -> LoopDraft:
    (loop,) = drafts(*spans)
    return loop


def shape(loop: LoopDraft) -> list[list[str]]:
    """The calls of each round."""
    return [[call.name for call in round_.calls] for round_ in loop.rounds]


def calls(loop: LoopDraft) -> list[CallDraft]:
    return [call for round_ in loop.rounds for call in round_.calls]


def test_a_root_agent_is_a_loop():
    loop = only(*PLAIN)
    assert (loop.name, loop.status, loop.started_ns, loop.ended_ns) == ("a", "ok", 0, 100 * MS)
    assert shape(loop) == [["t1", "t2"], []]
    assert [call.id for call in calls(loop)] == ["c1", "c2"]
    assert [(call.started_ns, call.ended_ns) for call in calls(loop)] == [
        (21 * MS, 50 * MS),
        (22 * MS, 60 * MS),
    ]


def test_calls_without_an_id_are_named_after_their_spans():
    loop = only(agent("a", 0, 100), model("m", 1, 20), tool("t", 21, 30))
    assert [call.id for call in calls(loop)] == ["t"]


def test_an_agent_below_an_agent_is_the_same_loop():
    loop = only(
        agent("w", 0, 110, agent="", name="workflow"),
        agent("a", 1, 100, "w", agent="planner"),
        *(replace(one, parent="a") for one in PLAIN[1:]),
    )
    assert (loop.name, loop.ended_ns, shape(loop)) == ("planner", 110 * MS, [["t1", "t2"], []])


def test_an_agent_below_a_tool_is_a_loop_of_its_own():
    outer, inner = drafts(
        *PLAIN,
        agent("b", 23, 49, "t1"),
        model("b1", 24, 30, "b", input_tokens=5),
        tool("bt", 31, 40, "b"),
        model("b2", 41, 48, "b", input_tokens=6),
    )
    assert (outer.name, inner.name) == ("a", "b")
    assert (shape(outer), shape(inner)) == ([["t1", "t2"], []], [["bt"], []])
    assert inner.spawned_by == calls(outer)[0].key
    assert inner.parent == outer.id
    assert [round_.model.input_tokens for round_ in outer.rounds] == [None, None]


def test_an_agent_below_a_tool_with_other_spans_between():
    outer, inner = drafts(
        *PLAIN, span("other", "http", 23, 49, "t1"), agent("b", 24, 48, "http"), model("b1", 25, 30, "b")
    )
    assert inner.spawned_by == calls(outer)[0].key


def test_model_requests_below_a_tool_without_an_agent_are_a_loop_of_their_own():
    outer, inner = drafts(
        *PLAIN, model("b1", 24, 30, "t1"), tool("bt", 31, 40, "t1"), model("b2", 41, 48, "t1")
    )
    assert (shape(outer), shape(inner)) == ([["t1", "t2"], []], [["bt"], []])
    assert (inner.spawned_by, inner.parent, inner.status) == (calls(outer)[0].key, outer.id, "ok")
    assert inner.started_ns is None


@pytest.mark.parametrize("parent", ["a", "turn", "m1", "", "lost"])
def test_calls_go_to_the_request_before_them_wherever_they_hang(parent: str):
    loop = only(
        agent("a", 0, 100),
        span("other", "turn", 0.5, 60),
        model("m1", 1, 20, "turn"),
        tool("t1", 21, 50, parent),
        tool("t2", 22, 60, parent),
        model("m2", 61, 90),
        tool("t3", 91, 95, parent),
        model("m3", 96, 99),
    )
    assert shape(loop) == [["t1", "t2"], ["t3"], []]
    assert loop.orphan_calls == (3 if parent in ("", "lost") else 0)


def test_the_id_of_a_call_goes_before_its_time():
    loop = only(
        agent("a", 0, 100),
        model("m1", 1, 20, calls=(("late", "x"),)),
        model("m2", 21, 40, calls=(("c", "y"),)),
        tool("x", 50, 60, call_id="late"),
        tool("y", 51, 61, call_id="c"),
    )
    assert shape(loop) == [["x"], ["y"]]


def test_agents_of_one_loop_at_once_keep_their_calls_apart():
    loop = only(
        agent("w", 0, 100, agent=""),
        agent("a", 1, 90, "w"),
        agent("b", 2, 95, "w"),
        model("a1", 3, 20, "a"),
        model("b1", 4, 10, "b"),
        tool("bt", 11, 30, "b"),
        tool("at", 21, 40, "a"),
        model("b2", 31, 50, "b"),
        model("a2", 41, 60, "a"),
    )
    assert shape(loop) == [["at"], ["bt"], [], []]


def test_agents_at_once_below_a_span_of_the_application_are_loops():
    loops = drafts(
        span("other", "gather", 0, 100, ""),
        agent("a", 1, 90, "gather"),
        agent("b", 2, 95, "gather"),
        model("a1", 3, 20, "a"),
        model("b1", 4, 10, "b"),
        tool("bt", 11, 30, "b"),
        tool("at", 21, 40, "a"),
        model("b2", 31, 50, "b"),
        model("a2", 41, 60, "a"),
    )
    assert [(one.name, shape(one)) for one in loops] == [("a", [["at"], []]), ("b", [["bt"], []])]


def test_a_request_inside_a_request_is_one():
    loop = only(
        agent("a", 0, 100),
        model("outer", 1, 50, input_tokens=10, output_tokens=3),
        model(
            "inner", 2, 49, "outer", input_tokens=10, output_tokens=3, first_token_ns=20 * MS, cached_tokens=4
        ),
        span("http", "h1", 3, 10, "inner", http_status=429),
        span("http", "h2", 12, 48, "inner", http_status=200),
    )
    (round_,) = loop.rounds
    assert (round_.model.started_ns, round_.model.ended_ns) == (1 * MS, 50 * MS)
    assert (round_.model.input_tokens, round_.model.output_tokens, round_.model.cached_tokens) == (10, 3, 4)
    assert round_.model.first_token_ns == 20 * MS
    assert [(one.status, one.started_ns // MS) for one in round_.model.attempts] == [(429, 3), (200, 12)]


def test_tokens_that_only_the_inner_span_has_are_its():
    loop = only(
        agent("a", 0, 9),
        model("o", 1, 8),
        model("failed", 2, 3, "o", status="error"),
        model("i", 4, 7, "o", input_tokens=7, output_tokens=2),
    )
    (round_,) = loop.rounds
    assert (round_.model.input_tokens, round_.model.output_tokens, round_.model.status) == (7, 2, "ok")
    assert len(round_.model.attempts) == 2


def test_a_first_token_of_another_clock_is_none():
    loop = only(
        agent("a", 0, 9, clock="here"),
        model("o", 1, 8, clock="here"),
        model("i", 2, 7, "o", clock="there", first_token_ns=5 * MS),
    )
    assert loop.rounds[0].model.first_token_ns is None


def test_two_instrumentations_side_by_side_are_one_request():
    one, other = {"scope": "x"}, {"scope": "y"}
    loop = only(
        agent("a", 0, 100),
        model("m1", 1, 20, **one, first_token_ns=9 * MS),
        model("n1", 2, 19, **other, input_tokens=5),
        tool("t1", 21, 50),
        model("m2", 61, 90, **one),
        model("n2", 62, 91, **other, input_tokens=6),
    )
    assert shape(loop) == [["t1"], []]
    assert [round_.model.input_tokens for round_ in loop.rounds] == [5, 6]


def test_requests_at_once_of_one_instrumentation_are_several():
    for scope in ("x", ""):
        more = {"scope": scope, "name": "chat m"}
        loop = only(agent("a", 0, 100), model("m1", 1, 20, **more), model("m2", 2, 19, **more))
        assert len(loop.rounds) == 2


def test_a_failed_request_and_the_next_are_attempts_of_one_round():
    loop = only(
        agent("a", 0, 100),
        model("m1", 1, 5, status="error", error_type="RateLimitError"),
        model("m2", 8, 20),
        tool("t1", 21, 50),
        model("m3", 51, 60),
    )
    assert shape(loop) == [["t1"], []]
    first = loop.rounds[0].model
    assert (first.status, first.started_ns, first.ended_ns) == ("ok", 1 * MS, 20 * MS)
    assert [(one.status, one.error_type) for one in first.attempts] == [(429, "RateLimitError"), (None, None)]


def test_a_failed_request_and_one_after_a_call_are_two_rounds():
    loop = only(
        agent("a", 0, 100),
        model("m1", 1, 5, status="error"),
        tool("t1", 6, 7),
        model("m2", 8, 20),
    )
    assert shape(loop) == [["t1"], []]
    assert loop.rounds[0].model.status == "error"


def test_a_count_of_tries_stays_a_count():
    loop = only(agent("a", 0, 100), model("m1", 1, 20, resends=2))
    assert (loop.rounds[0].model.attempts, loop.rounds[0].model.resends) == ((), 2)


def test_tries_that_were_seen_are_not_counted_again():
    loop = only(
        agent("a", 0, 100),
        model("m1", 1, 20, resends=2),
        span("http", "h1", 2, 3, "m1", http_status=503),
        span("http", "h3", 9, 19, "m1", http_status=200, resends=2),
    )
    model_ = loop.rounds[0].model
    assert (len(model_.attempts), model_.resends) == (2, 1)


def test_requests_of_a_tool_are_no_attempts():
    loop = only(
        agent("a", 0, 100),
        model("m1", 1, 20),
        tool("t", 21, 50),
        span("http", "h", 22, 49, "t", http_status=200),
    )
    assert loop.rounds[0].model.attempts == ()


def test_a_span_around_a_request_and_its_calls_ended_before_them():
    loop = only(
        agent("a", 0, 100),
        model("m1", 1, 60),
        tool("t1", 21, 50, "m1"),
        tool("t2", 22, 59, "m1"),
        model("m2", 61, 90),
    )
    first = loop.rounds[0].model
    assert (first.ended_ns, first.derived) == (21 * MS, ("ended_ns",))
    assert loop.ambiguous_calls == 0


def test_calls_inside_the_last_request_may_be_of_several_rounds():
    """As where a client that runs the calls itself is traced around it, and not inside."""
    inside = (model("m1", 1, 90), tool("t1", 21, 50, "m1"), tool("t2", 60, 80, "m1"))
    loop = only(agent("a", 0, 100), *inside)
    assert (shape(loop), loop.ambiguous_calls) == ([["t1", "t2"]], 2)


def test_a_request_that_holds_requests_and_calls_is_an_agent():
    loop = only(
        model("whole", 0, 100, ""),
        model("m1", 1, 20, "whole", input_tokens=1),
        tool("t1", 21, 50, "whole"),
        model("m2", 61, 90, "whole", input_tokens=2),
    )
    assert shape(loop) == [["t1"], []]
    assert (loop.started_ns, loop.ended_ns) == (0, 100 * MS)


def test_a_tool_inside_the_tool_is_the_same_call():
    spans = (*PLAIN, tool("t1", 23, 49, "t1", id="inner"))
    assert shape(only(*spans)) == [["t1", "t2"], []]
    assert skipped(*spans) == {"a second span of the same tool call": 1}


def test_spans_of_one_call_at_one_time_are_one_and_later_ones_are_not():
    spans = (*PLAIN, tool("t1", 22, 51, id="x", call_id="c1"), tool("t1", 55, 58, id="y", call_id="c1"))
    assert shape(only(*spans)) == [["t1", "t2", "t1"], []]
    assert skipped(*spans) == {"a second span of the same tool call": 1}


def test_spans_of_the_application_s_own_that_are_named_as_calls_are_calls():
    loop = only(
        span("other", "POST /chat", 0, 100, ""),
        model("m1", 1, 20, "POST /chat", calls=(("c1", "weather"), ("c2", "people"))),
        span("other", "s1", 21, 50, "POST /chat", name="weather"),
        span("other", "s2", 22, 60, "POST /chat", name="people"),
        span("other", "s3", 23, 30, "s1", name="query"),
        model("m2", 61, 90, "POST /chat"),
    )
    assert shape(loop) == [["weather", "people"], []]
    assert loop.rounds[0].unobserved == ()


def test_a_tool_around_calls_with_ids_only_holds_them():
    loop = only(
        agent("a", 0, 100),
        model("m1", 1, 20),
        tool("running 2 tools", 21, 60),
        tool("t1", 22, 50, "running 2 tools", call_id="c1"),
        tool("t2", 23, 59, "running 2 tools", call_id="c2"),
    )
    assert shape(loop) == [["t1", "t2"]]


def test_a_loop_whose_root_never_came_is_cancelled():
    loop = only(*PLAIN[1:4])
    assert (loop.status, loop.started_ns, loop.ended_ns, shape(loop)) == (
        "cancelled",
        None,
        None,
        [["t1", "t2"]],
    )


def test_turns_that_came_without_their_agent_are_one_loop():
    loop = only(
        span("other", "turn1", 0, 60, "lost"),
        model("m1", 1, 20, "turn1"),
        tool("t1", 21, 50, "turn1"),
        model("m2", 61, 90, "turn2"),
    )
    assert (loop.status, shape(loop)) == ("cancelled", [["t1"], []])


def test_a_root_that_never_ended_is_cancelled_and_so_are_its_open_calls():
    loop = only(agent("a", 0, None), model("m1", 1, 20), tool("t1", 21, 50), tool("t2", 22, None))
    assert (loop.status, loop.ended_ns) == ("cancelled", None)
    assert [(call.status, call.ended_ns) for call in calls(loop)] == [("ok", 50 * MS), ("cancelled", None)]


def test_an_agent_with_a_parent_elsewhere_is_a_loop():
    loop = only(replace(PLAIN[0], parent="remote"), *PLAIN[1:])
    assert loop.status == "ok"


def test_an_agent_whose_parent_is_lost_inside_another_ran_in_it():
    outer, inner = drafts(*PLAIN, agent("b", 23, 49, "lost"), model("b1", 24, 30, "b"))
    assert inner.parent == outer.id
    assert inner.spawned_by is None


def test_calls_of_another_clock_have_uncertain_places():
    loop = only(agent("a", 0, 100, clock="x"), model("m1", 1, 20, clock="x"), tool("t", 21, 50, clock="y"))
    assert calls(loop)[0].ended_late
    assert loop.clocks == ("x", "y")


def test_requests_of_another_clock_have_uncertain_places():
    loop = only(agent("a", 0, 100, clock="x"), model("m1", 1, 20, clock="x"), model("m2", 61, 90, clock="y"))
    assert [one.model.derived for one in loop.rounds] == [(), ("started_ns", "ended_ns")]


def test_calls_come_in_the_order_in_which_they_were_asked_for():
    asked = (("c9", "x"), ("c5", "y"), ("c7", "z"))
    some = [
        tool("t1", 21, 50, call_id="c7"),
        tool("t2", 21, 90, call_id="c5"),
        tool("t3", 22, 60, call_id="c9"),
    ]
    loop = only(agent("a", 0, 100), model("m1", 1, 20, calls=asked), *some)
    assert [call.id for call in calls(loop)] == ["c9", "c5", "c7"]
    untold = only(agent("a", 0, 100), model("m1", 1, 20), *some)
    assert [call.id for call in calls(untold)] == ["c7", "c5", "c9"]


def test_a_try_that_failed_without_a_word_does_not_look_like_a_good_one():
    loop = only(
        agent("a", 0, 100), model("m1", 1, 20, status="error"), model("m2", 21, 40), model("m3", 41, 50)
    )
    assert [(one.status, one.error_type) for one in loop.rounds[0].model.attempts] == [
        (None, "error"),
        (None, None),
    ]


def test_a_plain_root_holds_a_loop():
    loop = only(
        span("other", "POST /chat", 0, 100, ""),
        *(replace(one, parent="POST /chat") for one in PLAIN[1:]),
    )
    assert (loop.name, loop.status, loop.ended_ns, shape(loop)) == (
        "POST /chat",
        "ok",
        100 * MS,
        [["t1", "t2"], []],
    )


def test_turns_below_a_plain_root_are_one_loop():
    loop = only(
        span("other", "run", 0, 100, ""),
        span("other", "turn1", 0.5, 60, "run"),
        model("m1", 1, 20, "turn1"),
        tool("t1", 21, 50, "turn1"),
        span("other", "turn2", 60, 99, "run"),
        model("m2", 61, 90, "turn2"),
    )
    assert shape(loop) == [["t1"], []]


def test_two_jobs_below_a_plain_root_are_two_loops():
    loops = drafts(
        span("other", "batch", 0, 200, ""),
        span("other", "job1", 1, 99, "batch"),
        *(replace(one, parent="job1") for one in PLAIN[1:]),
        span("other", "job2", 2, 99, "batch"),
        *(replace(one, id="x" + one.id, parent="job2") for one in PLAIN[1:]),
    )
    assert [(one.name, shape(one)) for one in loops] == [
        ("job1", [["t1", "t2"], []]),
        ("job2", [["t1", "t2"], []]),
    ]


def test_a_node_called_agent_that_only_asks_is_part_of_the_graph():
    loop = only(
        span("other", "graph", 0, 100, ""),
        agent("agent1", 1, 20, "graph", agent=""),
        model("m1", 2, 19, "agent1"),
        span("other", "tools", 20, 60, "graph"),
        tool("t1", 21, 50, "tools"),
        agent("agent2", 61, 90, "graph", agent=""),
        model("m2", 62, 89, "agent2"),
    )
    assert shape(loop) == [["t1"], []]
    assert (loop.started_ns, loop.ended_ns) == (0, 100 * MS)


def test_every_request_a_trace_of_its_own_is_joined_by_conversation():
    spans = (
        model("m1", 1, 20, "", trace="1", conversation="c", finish_reason="tool_calls"),
        tool("t1", 21, 50, "", trace="2", conversation="c"),
        model("m2", 61, 90, "", trace="3", conversation="c", finish_reason="stop"),
        model("m3", 500, 520, "", trace="4", conversation="c", finish_reason="stop"),
    )
    first, second = drafts(*spans)
    assert (shape(first), first.status, first.started_ns) == ([["t1"], []], "ok", None)
    assert shape(second) == [[]]


def test_a_sequence_that_ends_with_calls_was_cut():
    loop = only(
        model("m1", 1, 20, "", trace="1", conversation="c"),
        tool("t1", 21, 50, "", trace="2", conversation="c"),
    )
    assert loop.status == "cancelled"


def test_calls_without_any_request_are_counted():
    assert drafts(tool("t1", 21, 50, "")) == []
    assert skipped(tool("t1", 21, 50, "")) == {"a tool call of which no model request is recorded": 1}


def test_calls_that_nobody_saw_run_are_named():
    loop = only(
        agent("a", 0, 100),
        model("m1", 1, 20, calls=(("c1", "x"), ("c2", "y"), ("c3", "y"))),
        tool("x", 21, 30, call_id="c1"),
        tool("y", 21, 30),
    )
    assert loop.rounds[0].unobserved == ("y",)


def test_a_background_call_may_outlive_its_loop():
    tally = Tally()
    record = record_of(only(agent("a", 0, 100), model("m1", 1, 20), tool("t", 21, 150)), tally)
    (call,) = record.tool_calls
    assert (record.ended_ns, call.ended_ns, call.duration_ns) == (100 * MS, 150 * MS, 129 * MS)


def test_a_clock_that_stepped_back_is_clamped():
    tally = Tally()
    record = record_of(only(agent("a", 0, 100), model("m1", 1, 20), tool("t", 50, 40)), tally)
    assert [call.duration_ns for call in record.tool_calls] == [0]
    assert tally.clamped == 1


def test_the_status_of_a_loop_is_its_root_s_or_that_of_its_last_request():
    assert only(agent("a", 0, 9, status="error", error_type="E"), model("m", 1, 2)).status == "error"
    assert only(agent("a", 0, 9), model("m", 1, 2, status="error", error_type="E")).status == "error"
    assert only(agent("a", 0, 9, status="cancelled"), model("m", 1, 2)).status == "cancelled"


def test_a_call_that_two_requests_may_have_asked_for_is_ambiguous():
    loop = only(agent("a", 0, 100), model("m1", 1, 20), model("m2", 2, 21), tool("t", 30, 40))
    assert loop.ambiguous_calls == 1


def test_parents_in_a_circle_do_no_harm():
    loop = only(
        *PLAIN[:4], span("other", "x", 1, 2, "y"), span("other", "y", 1, 2, "x"), model("m9", 61, 70, "x")
    )
    assert sum(len(one.calls) for one in loop.rounds) == 2


def test_content_is_kept_when_asked_for():
    spans = (
        agent("a", 0, 9, prompt="P"),
        model("m", 1, 2, text="T"),
        tool("t", 3, 4, arguments="A", result="R"),
    )
    (bare,) = loops_of(spans, "otel")
    (full,) = loops_of(spans, "otel", content=True)
    assert isinstance(bare, LoopDraft)
    assert isinstance(full, LoopDraft)
    assert (bare.prompt, bare.text, calls(bare)[0].arguments, calls(bare)[0].result) == (None,) * 4
    assert (full.prompt, full.text, calls(full)[0].arguments, calls(full)[0].result) == ("P", "T", "A", "R")


def test_a_span_survives_json():
    one = model("m1", 1, None, calls=(("c1", "x"),), input_tokens=4)
    assert unpacked(json.loads(json.dumps(packed(one)))) == one


_KINDS = st.sampled_from(["agent", "model", "tool", "http", "other"])


@st.composite
def _spans(draw: st.DrawFn) -> list[Span]:
    """Any spans at all of two traces: odd parents, circles, missing ends."""
    ids = [f"s{n}" for n in range(draw(st.integers(1, 14)))]
    result = []
    for id_ in ids:
        started = draw(st.integers(0, 30))
        result.append(
            Span(
                trace=draw(st.sampled_from(["t", "u"])),
                id=id_,
                parent=draw(st.sampled_from(["", "lost", *ids])),
                kind=draw(_KINDS),
                name=draw(st.sampled_from(["x", "y"])),
                started_ns=started,
                ended_ns=draw(st.none() | st.integers(0, 40)),
                status=draw(st.sampled_from(["ok", "error"])),
                conversation=draw(st.sampled_from(["", "", "c", "d"])),
                call_id=draw(st.sampled_from(["", "", "c1", "c2"])),
                calls=draw(st.sampled_from([(), (("c1", "x"),)])),
                scope=draw(st.sampled_from(["p", "q"])),
                input_tokens=draw(st.none() | st.integers(0, 9)),
            )
        )
    return result


@given(_spans(), st.randoms(use_true_random=False))
def test_order_and_repeats_change_nothing(spans: list[Span], random: Any):
    shuffled = [*spans, *random.choices(spans, k=5)]
    random.shuffle(shuffled)
    assert loops_of(shuffled, "otel") == loops_of(spans, "otel")


@given(_spans())
def test_every_call_and_request_is_once_in_a_loop_or_counted(spans: list[Span]):
    result = loops_of(spans, "otel")
    loops = [one for one in result if isinstance(one, LoopDraft)]
    keys = [call.key for loop in loops for call in calls(loop)]
    assert len(keys) == len(set(keys))
    assert len({loop.id for loop in loops}) == len(loops)
    for loop in loops:
        record_of(loop, Tally())


def test_calls_of_an_agent_without_any_request_are_counted():
    spans = (agent("a", 0, 100), tool("t1", 10, 20), tool("t2", 30, 40))
    assert only(*spans).rounds == []
    assert skipped(*spans) == {"a tool call of which no model request is recorded": 2}
