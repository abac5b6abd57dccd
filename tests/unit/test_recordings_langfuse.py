"""Langfuse's exports become loops: one test for each shape, and for each thing that is easily mistaken."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.recordings.langfuse import APART, NO_ID, NO_OBSERVATION, NO_TIME, Langfuse
from tests.unit.recordings_data import jsonl, read, records

MS = 1_000_000
ZERO_NS = 1_767_225_600_000 * MS  # 2026-01-01T00:00:00Z


def at(ms):
    return f"2026-01-01 00:00:{ms // 1000:02}.{ms % 1000:03}000"


def row(id_, type_, parent, start, end, name="x", **more):
    return {
        "id": id_,
        "trace_id": "t1",
        "type": type_,
        "parent_observation_id": parent,
        "start_time": at(start),
        "end_time": None if end is None else at(end),
        "name": name,
        "level": "DEFAULT",
        "trace_name": "support",
    } | more


def generation(id_, parent, start, end, **more):
    details = {"input": 30, "input_cached_tokens": 70, "output": 8, "total": 108}
    more = {"provided_model_name": "gpt-4.1", "usage_details": details} | more
    return row(id_, "GENERATION", parent, start, end, "ChatOpenAI", **more)


def trace():
    return [
        row("root", "AGENT", "", 0, 5000, "support"),
        generation("g1", "root", 10, 1000, completion_start_time=at(400), tool_call_names=["find", "look"]),
        row("c1", "TOOL", "root", 1100, 1600, "find"),
        row("c2", "TOOL", "root", 1101, 2100, "look", level="ERROR", status_message="app.ValueError: no"),
        generation("g2", "root", 2200, 4900, completion_start_time=at(4900)),
    ]


def of(data, *more, content=False):
    files = [jsonl(one) if isinstance(one, list) else one for one in (data, *more)]
    found = read(Langfuse(), *files, content=content)
    return found, records(found.drafts, ZERO_NS)


def ms(*times):
    return [None if time is None else time / MS for time in times]


def test_observations_become_a_loop():
    found, (loop,) = of(trace())
    first, last = loop.rounds
    assert ms(loop.started_ns, loop.ended_ns) == [0, 5000]
    assert (loop.name, loop.status, loop.provider, loop.model, loop.source) == (
        "support",
        "ok",
        "openai",
        "gpt-4.1",
        "langfuse",
    )
    assert ms(first.model.started_ns, first.model.ended_ns, first.model.first_token_ns) == [10, 1000, 400]
    assert (first.model.input_tokens, first.model.cached_tokens, first.model.output_tokens) == (100, 70, 8)
    assert (first.model.streamed, last.model.streamed, last.model.first_token_ns) == (True, False, None)
    one, two = loop.tool_calls
    assert ms(one.started_ns, one.ended_ns, two.started_ns, two.ended_ns) == [1100, 1600, 1101, 2100]
    assert (one.status, two.status, two.error_type) == ("ok", "error", "ValueError")
    assert loop.resolution_ns == 1000
    assert not found.skipped


def camel(rows):
    names = {"parent_observation_id": "parentObservationId", "provided_model_name": "model"}

    def name(key):
        head, *rest = names.get(key, key).split("_")
        return head + "".join(word.title() for word in rest)

    def iso(value):
        return (
            value.replace(" ", "T")[:-3] + "Z"
            if isinstance(value, str) and value.startswith("2026-")
            else value
        )

    return [{name(key): iso(value) if value != "" else None for key, value in one.items()} for one in rows]


def as_csv(rows):
    out = io.StringIO()
    names = list(dict.fromkeys(name for one in rows for name in one))
    writer = csv.DictWriter(out, names)
    writer.writeheader()
    for one in rows:
        plain = {
            key: json.dumps(value) if isinstance(value, dict | list) else value for key, value in one.items()
        }
        writer.writerow({key: "" if value is None else value for key, value in plain.items()})
    return out.getvalue().encode()


SHAPES = {
    "lines": jsonl(trace()),
    "an array": json.dumps(trace()).encode(),
    "a pretty array": json.dumps(trace(), indent=2).encode(),
    "csv": as_csv(trace()),
    "csv with a mark": b"\xef\xbb\xbf" + as_csv(trace()),
    "a page of the API": json.dumps({"data": camel(trace()), "meta": {"page": 1, "totalItems": 5}}).encode(),
    "a pretty page": json.dumps({"data": camel(trace()), "meta": {"page": 1}}, indent=1).encode(),
    "a trace of the API": json.dumps(
        {
            "id": "t1",
            "projectId": "p",
            "name": "support",
            "latency": 5.0,
            "timestamp": "2026-01-01T00:00:00.000Z",
            "observations": [
                {key: value for key, value in one.items() if key not in ("traceId", "traceName")}
                for one in camel(trace())
            ],
        }
    ).encode(),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_tells_the_same(shape):
    assert Langfuse().recognises(SHAPES[shape], "x")
    found, (loop,) = of(SHAPES[shape])
    _, (expected,) = of(trace())
    assert loop.rounds == expected.rounds
    assert (loop.name, loop.status, loop.started_ns, loop.ended_ns) == ("support", "ok", 0, 5000 * MS)
    assert loop.resolution_ns == (MS if "API" in shape or "page" in shape else 1000)
    assert not found.skipped


@pytest.mark.parametrize(
    ("details", "input_", "cached", "output"),
    [
        ({"input": 30, "input_cached_tokens": 70, "output": 8, "total": 108}, 100, 70, 8),
        ({"input": 100, "input_cached_tokens": 70, "output": 8, "total": 108}, 100, 70, 8),
        (
            {"input": 5, "cache_read_input_tokens": 90, "cache_creation_input_tokens": 5, "output": 8},
            100,
            90,
            8,
        ),
        ({"input": 30, "output": 5, "output_reasoning_tokens": 3, "total": 38}, 30, None, 8),
        ({"input": 30, "output": 8, "output_reasoning_tokens": 3, "total": 38}, 30, None, 8),
        ('{"input": 30, "output": 8}', 30, None, 8),
        ("{'input': 30, 'output': 8}", 30, None, 8),
        ({"input": "30", "output": "8"}, 30, None, 8),
        ({}, None, None, None),
        ({"input": -1, "output": "many"}, None, None, None),
    ],
)
def test_buckets_of_tokens_add_up(details, input_, cached, output):
    _, (loop,) = of([generation("g1", "", 0, 1000, usage_details=details)])
    model = loop.rounds[0].model
    assert (model.input_tokens, model.cached_tokens, model.output_tokens) == (input_, cached, output)


@pytest.mark.parametrize(
    ("old", "tokens"),
    [
        ({"usage": {"input": 30, "output": 8, "unit": "TOKENS"}}, (30, 8)),
        ({"usage": {"promptTokens": 30, "completionTokens": 8, "totalTokens": 38}}, (30, 8)),
        ({"promptTokens": 30, "completionTokens": 8}, (30, 8)),
        ({"usage": {"input": 3000, "output": 800, "unit": "CHARACTERS"}}, (None, None)),
    ],
)
def test_old_usage(old, tokens):
    _, (loop,) = of([generation("g1", "", 0, 1000, usage_details={}, **old)])
    assert (loop.rounds[0].model.input_tokens, loop.rounds[0].model.output_tokens) == tokens


def test_of_two_versions_of_an_observation_the_later_one_counts():
    rows = trace()
    early = rows[2] | {"end_time": None, "updated_at": at(1200)}
    late = rows[2] | {"updated_at": at(1700)}
    for files in (([*rows[:2], early, late, *rows[3:]],), ([late, *rows[3:]], [early, *rows[:2]])):
        _, (loop,) = of(*files)
        assert [ms(call.duration_ns) for call in loop.tool_calls] == [[500], [999]]


def test_nested_generations_are_one_request():
    rows = trace()
    rows.append(generation("g1b", "g1", 20, 990))
    _, (loop,) = of(rows)
    assert len(loop.rounds) == 2
    assert sum(one.model.input_tokens for one in loop.rounds) == 200


def test_what_never_ended():
    rows = trace()
    rows[0]["end_time"] = rows[3]["end_time"] = rows[4]["end_time"] = None
    _, (loop,) = of(rows)
    assert loop.status == "cancelled"
    assert [call.ended for call in loop.tool_calls] == [True, False]


@pytest.mark.parametrize("type_", ["SPAN", "CHAIN"])
def test_spans_with_a_tools_name_after_a_request_are_calls_and_others_are_not(type_):
    rows = trace()
    rows[2]["type"] = type_
    rows[3]["type"] = type_
    rows[3]["name"] = "RunnableSequence"
    rows.append(row("early", type_, "root", 5, 8, "find"))
    rows.append(row("late", type_, "root", 4950, 4960, "find"))
    _, (loop,) = of(rows)
    assert [call.name for call in loop.tool_calls] == ["find"]
    rows[4]["tool_call_names"] = ["find"]
    _, (loop,) = of(rows)
    assert [[call.name for call in one.tool_calls] for one in loop.rounds] == [["find"], ["find"]]


def test_tools_names_are_in_replies_too():
    rows = trace()
    del rows[1]["tool_call_names"]
    rows[1]["output"] = {
        "role": "assistant",
        "tool_calls": [{"id": "k", "type": "function", "function": {"name": "find"}}],
    }
    rows[2]["type"] = rows[3]["type"] = "SPAN"
    _, (loop,) = of(rows)
    assert [call.name for call in loop.tool_calls] == ["find"]


def test_a_trace_without_a_root_is_named_by_the_trace():
    rows = trace()[1:]
    for one in rows:
        one["parent_observation_id"] = None
    _, (loop,) = of(rows)
    assert (loop.name, loop.status, len(loop.rounds)) == ("support", "ok", 2)
    assert len(list(loop.tool_calls)) == 2


def test_a_root_that_is_the_trace_itself():
    rows = trace()
    for one in rows[1:]:
        one["parent_observation_id"] = "t-t1" if one["id"] == "g1" else "t1"
    rows = rows[1:]
    _, (loop,) = of(rows)
    assert len(loop.rounds) == 2
    assert loop.status == "ok"


def test_what_is_no_part_of_a_loop_is_left_out_with_what_is_below_it():
    rows = trace()
    rows += [
        row("e", "EVENT", "root", 1000, None),
        row("j", "EVALUATOR", "root", 2100, 2150),
        generation("jg", "j", 2101, 2149),
        row("v", "EMBEDDING", "root", 20, 30),
    ]
    found, (loop,) = of(rows)
    assert len(loop.rounds) == 2
    assert found.skipped == {APART: 4}


def test_columns_may_be_missing():
    rows = trace()
    for one, seconds in zip(rows, (5.0, 0.99, 0.5, 0.999, 2.7), strict=True):
        del one["end_time"]
        one["latency"] = seconds
        one.pop("usage_details", None)
        one.pop("completion_start_time", None)
    rows[1]["time_to_first_token"] = 0.39
    _, (loop,) = of(rows)
    assert ms(loop.ended_ns, loop.rounds[0].model.first_token_ns) == [5000, 400]
    assert [ms(call.duration_ns) for call in loop.tool_calls] == [[500], [999]]
    assert loop.rounds[0].model.input_tokens is None


def test_several_traces_of_a_session_are_loops_of_their_own():
    rows = trace()
    other = [one | {"trace_id": "t2", "id": one["id"] + "b"} for one in trace()]
    for one in other:
        one["parent_observation_id"] = one["parent_observation_id"] and "rootb"
    for one in (*rows, *other):
        one["session_id"] = "chat"
    _, loops = of([*rows, *other])
    assert [len(loop.rounds) for loop in loops] == [2, 2]


def test_rows_that_are_no_observations_are_counted():
    rows = [{"id": "t1", "name": "support", "timestamp": at(0)}, *trace()]
    rows += [trace()[2] | {"id": ""}, trace()[2] | {"id": "z", "start_time": "soon"}, 7]
    found, (loop,) = of(rows)
    assert len(loop.rounds) == 2
    assert found.skipped == {NO_OBSERVATION: 2, NO_ID: 1, NO_TIME: 1}


def test_other_recordings_are_not_taken_for_these():
    for line in (
        b'{"traceId": "1", "spanId": "2", "startTimeUnixNano": "3", "type": "SPAN"}',
        b'{"name": "x", "context": {"trace_id": "0x1"}, "start_time": "2026-01-01T00:00:00Z"}',
        b'{"object": "trace.span", "trace_id": "1", "started_at": "x"}',
        b"a,b,c\n1,2,3\n",
        b"",
    ):
        assert not Langfuse().recognises(line, "x")


def test_content_is_kept_when_it_is_wanted_and_nowhere_else():
    rows = trace()
    rows[0] |= {"input": "SECRET in", "output": "SECRET out"}
    rows[2] |= {"input": {"q": "SECRET q"}, "output": "SECRET r"}
    assert "SECRET" not in repr(of(rows)[1])
    _, (loop,) = of(rows, content=True)
    call = next(loop.tool_calls)
    assert loop.prompt == "SECRET in"
    assert (call.arguments, call.result) == ('{"q":"SECRET q"}', "SECRET r")


@given(st.randoms(use_true_random=False))
def test_the_order_of_the_rows_is_of_no_account(draw):
    rows = trace()
    draw.shuffle(rows)
    assert of(rows)[1] == of(trace())[1]


def offered(**more):
    return [
        row("r", "SPAN", None, 0, 900, "root"),
        generation("g1", "r", 10, 100, **more),
        row("t1", "SPAN", "r", 110, 200, "lookup"),
        generation("g2", "r", 210, 300),
        row("t2", "SPAN", "r", 310, 400, "lookup"),
    ]


def test_a_span_between_two_requests_that_is_named_as_a_tool_on_offer_is_a_call():
    tools = [{"type": "function", "function": {"name": "lookup"}}]
    for more in (
        {"input": {"messages": [], "tools": tools}},
        {"input": '{"tools": [{"name": "lookup"}]}'},
        {"tool_definitions": {"lookup": "{}"}},
    ):
        _, (loop,) = of(jsonl(offered(**more)))
        assert [[call.id for call in round_.tool_calls] for round_ in loop.rounds] == [["t1"], []]
    _, (loop,) = of(jsonl(offered()))
    assert [len(round_.tool_calls) for round_ in loop.rounds] == [0, 0]


def test_a_timeout_is_an_error_by_its_name():
    failed = row(
        "t1", "TOOL", "r", 110, 200, "lookup", level="ERROR", status_message="TimeoutError: too late"
    )
    rows = [row("r", "AGENT", None, 0, 900, "root"), generation("g1", "r", 10, 100), failed]
    _, (loop,) = of(jsonl(rows))
    (call,) = loop.rounds[0].tool_calls
    assert (call.status, call.error_type) == ("error", "TimeoutError")


@pytest.mark.parametrize("packed", [False, True])
def test_what_was_sent_tells_the_names_of_tools_and_the_ids_of_calls(packed):
    """Some programs' tools are spans of no kind, and all are called after the span that was sent."""
    rows = trace()
    for one, type_, called in ((rows[2], "TOOL", "execute_tool find"), (rows[3], "SPAN", "tool.look")):
        attributes = {"gen_ai.tool.name": called[-4:], "gen_ai.tool.call.id": f"call_{called[-4:]}"}
        told = {"attributes": json.dumps(attributes) if packed else attributes}
        one |= {"type": type_, "name": called, "metadata": json.dumps(told) if packed else told}
    _, (loop,) = of(rows)
    assert [(call.id, call.name) for call in loop.tool_calls] == [
        ("call_find", "find"),
        ("call_look", "look"),
    ]


@pytest.mark.parametrize(
    ("called", "name"),
    [
        ("execute_tool find", "find"),
        ("running tool: find", "find"),
        ("running tool", "running tool"),
        ("", "tool"),
    ],
)
def test_the_name_of_a_tool_is_not_that_of_its_span(called, name):
    rows = trace()
    rows[2]["name"] = called
    _, (loop,) = of(rows)
    assert next(iter(loop.tool_calls)).name == name


def test_one_whose_parent_was_never_sent_is_the_root_when_all_others_lie_below_it():
    rows = [one | {"type": "SPAN"} if one["id"] == "root" else one for one in trace()]
    rows[0]["parent_observation_id"] = "the caller's, which does not send its spans"
    _, (loop,) = of(rows)
    assert (loop.status, *ms(loop.started_ns, loop.ended_ns)) == ("ok", 0, 5000)


def test_of_a_trace_of_which_more_is_missing_nobody_knows_the_end():
    rows = [one | {"parent_observation_id": f"lost {one['id']}"} for one in trace()[1:]]
    _, (loop,) = of(rows)
    assert loop.status == "cancelled"


def test_times_of_a_csv_file_may_be_json():
    rows = [one | {key: json.dumps(one[key]) for key in ("start_time", "end_time")} for one in trace()]
    _, (loop,) = of(as_csv(rows))
    assert ms(loop.started_ns, loop.ended_ns) == [0, 5000]
