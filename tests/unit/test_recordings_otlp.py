"""Files and requests of spans, in every encoding."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToJson
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from profiler.errors import RecordError
from profiler.recordings.drafts import LoopDraft, Tally, record_of
from profiler.recordings.formats import Format, Item, Skipped, Source
from profiler.recordings.importing import import_files
from profiler.recordings.openai_agents import OpenAIAgents
from profiler.recordings.otlp import Otlp, spans_of_request
from profiler.recordings.reading import NOT_JSON, TORN
from profiler.records import LoopRecord

MS = 1_000_000
AT = 1_790_000_000_000_000_000
TRACE, ROOT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def attribute(key: str, value: Any) -> dict[str, Any]:
    kind = {bool: "boolValue", int: "intValue", float: "doubleValue", str: "stringValue"}.get(type(value))
    if kind is None:
        return {"key": key, "value": {"arrayValue": {"values": [{"stringValue": one} for one in value]}}}
    return {"key": key, "value": {kind: str(value) if kind == "intValue" else value}}


def otlp_span(id_: str, name: str, started: int, ended: int, **attributes: Any) -> dict[str, Any]:
    return {
        "traceId": TRACE,
        "spanId": id_,
        "parentSpanId": "" if id_ == ROOT else ROOT,
        "name": name,
        "kind": 3 if name == "chat" else 1,
        "startTimeUnixNano": str(AT + started * MS),
        "endTimeUnixNano": str(AT + ended * MS),
        "attributes": [attribute(key.replace("__", "."), value) for key, value in attributes.items()],
        "status": {"code": 2} if attributes.get("error__type") else {},
    }


def tool_span(id_: str, started: int, ended: int, call: str, **more: Any) -> dict[str, Any]:
    values = {
        "gen_ai__operation__name": "execute_tool",
        "gen_ai__tool__name": "weather",
        "gen_ai__tool__call__id": call,
    }
    return otlp_span(id_, "tool", started, ended, **values, **more)


SPANS = [
    otlp_span(
        "00000000000000a1",
        "chat",
        2,
        100,
        gen_ai__operation__name="chat",
        gen_ai__provider__name="openai",
        gen_ai__request__model="m",
        gen_ai__usage__input_tokens=50,
        gen_ai__usage__cache_read__input_tokens=20,
        gen_ai__usage__output_tokens=7,
        gen_ai__response__time_to_first_chunk=0.03,
        gen_ai__response__finish_reasons=["tool_calls"],
    ),
    tool_span("00000000000000b1", 105, 205, "c1"),
    tool_span("00000000000000b2", 106, 306, "c2", error__type="TimeoutError"),
    otlp_span(
        "00000000000000a2", "chat", 310, 390, gen_ai__operation__name="chat", gen_ai__request__model="m"
    ),
    otlp_span(ROOT, "run", 0, 400, gen_ai__operation__name="invoke_agent", gen_ai__agent__name="planner"),
]


def request(spans: list[dict[str, Any]], **resource: Any) -> dict[str, Any]:
    about = {"attributes": [attribute(key.replace("__", "."), one) for key, one in resource.items()]}
    return {"resourceSpans": [{"resource": about, "scopeSpans": [{"scope": {"name": "s"}, "spans": spans}]}]}


def message(value: dict[str, Any]) -> ExportTraceServiceRequest:
    """The protobuf message of OTLP JSON, built by hand: protobuf's own JSON has its ids in base64."""
    result = ExportTraceServiceRequest()
    for resource in value["resourceSpans"]:
        to = result.resource_spans.add()
        fill(to.resource.attributes, resource["resource"]["attributes"])
        for scope in resource["scopeSpans"]:
            spans = to.scope_spans.add()
            spans.scope.name = scope["scope"]["name"]
            for span in scope["spans"]:
                one = spans.spans.add(name=span["name"], kind=span["kind"])
                one.trace_id, one.span_id = bytes.fromhex(span["traceId"]), bytes.fromhex(span["spanId"])
                one.parent_span_id = bytes.fromhex(span["parentSpanId"])
                one.start_time_unix_nano = int(span["startTimeUnixNano"])
                one.end_time_unix_nano = int(span["endTimeUnixNano"])
                one.status.code = span["status"].get("code", 0)
                fill(one.attributes, span["attributes"])
    return result


def fill(to: Any, attributes: list[dict[str, Any]]) -> None:
    for one in attributes:
        value = to.add(key=one["key"]).value
        for kind, held in one["value"].items():
            if kind == "arrayValue":
                for part in held["values"]:
                    value.array_value.values.add(string_value=part["stringValue"])
            else:
                name = {"boolValue": "bool_value", "intValue": "int_value", "doubleValue": "double_value"}
                setattr(value, name.get(kind, "string_value"), int(held) if kind == "intValue" else held)


def replaced(value: Any, change: Callable[[str, Any], tuple[str, Any]]) -> Any:
    if isinstance(value, list):
        return [replaced(one, change) for one in value]
    if isinstance(value, dict):
        return dict(change(key, replaced(one, change)) for key, one in value.items())
    return value


def read(text: str | bytes, format_: Format | None = None) -> tuple[list[Item], list[Skipped]]:
    data = text.encode() if isinstance(text, str) else text
    items = list((format_ or Otlp()).read(Source(Path("f.json"), "f.json", io.BytesIO(data)), False))
    return [one for one in items if isinstance(one, Item)], [one for one in items if isinstance(one, Skipped)]


def records(text: str | bytes, format_: Format | None = None) -> list[LoopRecord]:
    format_ = format_ or Otlp()
    data = text.encode() if isinstance(text, str) else text
    assert format_.recognises(data[:4096], Path("f.json"))
    items, _ = read(data, format_)
    loops = [one for one in format_.loops(items, False) if isinstance(one, LoopDraft)]
    return [record_of(one, Tally(), AT) for one in loops]


def check(record: LoopRecord) -> None:
    """What `SPANS` were."""
    assert (record.name, record.status, record.source) == ("planner", "ok", "otel")
    assert (record.started_ns, record.ended_ns) == (0, 400 * MS)
    first, last = record.rounds
    assert (first.model.started_ns, first.model.ended_ns, first.model.first_token_ns) == (
        2 * MS,
        100 * MS,
        32 * MS,
    )
    assert (first.model.input_tokens, first.model.cached_tokens, first.model.output_tokens) == (50, 20, 7)
    assert (first.model.provider, first.model.model, first.model.finish_reason) == (
        "openai",
        "m",
        "tool_calls",
    )
    assert [(call.id, call.name, call.status, call.error_type) for call in first.tool_calls] == [
        ("c1", "weather", "ok", None),
        ("c2", "weather", "error", "TimeoutError"),
    ]
    assert [(call.started_ns, call.ended_ns) for call in first.tool_calls] == [
        (105 * MS, 205 * MS),
        (106 * MS, 306 * MS),
    ]
    assert last.model.input_tokens is None
    assert last.tool_calls == ()


def lines(spans: list[dict[str, Any]] = SPANS) -> str:
    """A batch a line, the root in the last one."""
    return "".join(json.dumps(request(part)) + "\n" for part in (spans[:2], spans[2:]))


def in_base64(key: str, value: Any) -> tuple[str, Any]:
    if key in ("traceId", "spanId", "parentSpanId") and value:
        value = base64.b64encode(bytes.fromhex(value)).decode()
    return key, value


def in_snake_case(key: str, value: Any) -> tuple[str, Any]:
    return "".join("_" + letter.lower() if letter.isupper() else letter for letter in key), value


def in_names(key: str, value: Any) -> tuple[str, Any]:
    if key == "kind":
        value = {1: "SPAN_KIND_INTERNAL", 3: "SPAN_KIND_CLIENT"}[value]
    if key == "code":
        value = "STATUS_CODE_ERROR"
    return key, value


def in_numbers(key: str, value: Any) -> tuple[str, Any]:
    return key, int(value) if key.endswith("UnixNano") or key == "intValue" else value


@pytest.mark.parametrize("change", [in_base64, in_snake_case, in_names, in_numbers])
def test_encodings_of_one_request_are_the_same(change: Callable[[str, Any], tuple[str, Any]]):
    (record,) = records(json.dumps(replaced(request(SPANS), change)))
    check(record)


def pretty(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        lines(),
        "\ufeff" + lines(),
        lines().replace("\n", "\r\n\r\n"),
        pretty(request(SPANS)),
        pretty(request(SPANS[:3])) + pretty(request(SPANS[3:])),
        json.dumps([request(SPANS[:3]), request(SPANS[3:])]),
        pretty([request(SPANS[:3]), request(SPANS[3:])]),
        json.dumps(SPANS),
        "".join(json.dumps(one) + "\n" for one in SPANS),
        json.dumps({"batches": request(SPANS)["resourceSpans"]}),
        json.dumps({"trace": request(SPANS)}),
        json.dumps(request(SPANS)).replace("scopeSpans", "instrumentationLibrarySpans"),
    ],
)
def test_files_of_any_shape_are_the_same(text: str):
    (record,) = records(text)
    check(record)


def test_protobuf_and_its_json_are_the_same():
    sent = message(request(SPANS, host__name="h"))
    as_json = json.loads(MessageToJson(sent))
    assert (
        spans_of_request(sent)
        == spans_of_request(as_json)
        == spans_of_request(request(SPANS, host__name="h"))
    )
    assert {span.clock for span in spans_of_request(sent)} == {"h"}
    (record,) = records(MessageToJson(sent))
    check(record)


def test_a_request_without_spans_has_none():
    assert spans_of_request({}) == spans_of_request(ExportTraceServiceRequest()) == []
    assert spans_of_request({"resourceSpans": []}) == []


def test_json_that_is_no_request_is_refused():
    with pytest.raises(ValueError, match="no resourceSpans"):
        spans_of_request({"resourceLogs": []})


def test_a_span_that_cannot_be_read_is_left_out():
    assert (
        spans_of_request(request([SPANS[0], {"name": "x"}, 5, SPANS[0] | {"startTimeUnixNano": "soon"}]))
        == (  # type: ignore[list-item]
            spans_of_request(request(SPANS[:1]))
        )
    )


@pytest.mark.parametrize(
    "change", [{"start_time_unix_nano": 0}, {"start_time_unix_nano": 2**63}, {"span_id": b""}]
)
def test_a_span_of_protobuf_that_cannot_be_read_is_left_out(change: dict[str, Any]):
    sent = message(request(SPANS[:2]))
    for name, value in change.items():
        setattr(sent.resource_spans[0].scope_spans[0].spans[0], name, value)
    assert spans_of_request(sent) == spans_of_request(request(SPANS[1:2]))


def test_a_span_that_never_ended_has_no_end():
    for end in ({"endTimeUnixNano": "0"}, {"endTimeUnixNano": None}):
        (span,) = spans_of_request(request([SPANS[1] | end]))
        assert span.ended_ns is None


def python_dump(span: dict[str, Any]) -> dict[str, Any]:
    def iso(ns: str) -> str:
        micros = int(ns) // 1000 % 1_000_000
        return f"2026-09-21T14:13:{20 + (int(ns) - AT) // 10**9:02}.{micros:06}Z"

    plain = {}
    for one in span["attributes"]:
        ((kind, value),) = one["value"].items()
        if kind == "arrayValue":
            value = [part["stringValue"] for part in value["values"]]
        plain[one["key"]] = int(value) if kind == "intValue" else value
    return {
        "name": span["name"],
        "context": {
            "trace_id": "0x" + span["traceId"],
            "span_id": "0x" + span["spanId"],
            "trace_state": "[]",
        },
        "kind": "SpanKind.CLIENT" if span["kind"] == 3 else "SpanKind.INTERNAL",
        "parent_id": "0x" + span["parentSpanId"] if span["parentSpanId"] else None,
        "start_time": iso(span["startTimeUnixNano"]),
        "end_time": iso(span["endTimeUnixNano"]),
        "status": {"status_code": "ERROR" if span["status"] else "UNSET"},
        "attributes": plain,
        "events": [],
        "links": [],
        "resource": {"attributes": {"service.name": "trips", "host.name": "h"}, "schema_url": ""},
    }


def test_the_console_exporter_s_objects_one_after_another():
    text = "".join(json.dumps(python_dump(one), indent=4) + "\n" for one in SPANS)
    (record,) = records(text)
    check(record)
    assert (record.resolution_ns, record.process) == (1000, "trips")


def go_dump(span: dict[str, Any]) -> dict[str, Any]:
    plain = python_dump(span)
    return {
        "Name": span["name"],
        "SpanContext": {"TraceID": span["traceId"], "SpanID": span["spanId"], "TraceFlags": "01"},
        "Parent": {"TraceID": span["traceId"], "SpanID": span["parentSpanId"] or "0" * 16},
        "SpanKind": span["kind"],
        "StartTime": plain["start_time"],
        "EndTime": plain["end_time"],
        "Attributes": [
            {"Key": key, "Value": {"Type": "X", "Value": value}} for key, value in plain["attributes"].items()
        ],
        "Events": None,
        "Status": {"Code": "Error" if span["status"] else "Unset", "Description": ""},
        "Resource": [{"Key": "service.name", "Value": {"Type": "STRING", "Value": "trips"}}],
        "InstrumentationScope": {"Name": "s"},
    }


def test_what_the_go_sdk_prints():
    (record,) = records("".join(json.dumps(go_dump(one), indent="\t") + "\n" for one in SPANS))
    check(record)


def test_what_jaeger_s_api_says():
    spans = []
    for one in SPANS:
        tags = [
            {"key": key, "type": "x", "value": value} for key, value in python_dump(one)["attributes"].items()
        ]
        if one["status"]:
            tags.append({"key": "error", "type": "bool", "value": True})
        started = int(one["startTimeUnixNano"]) // 1000
        spans.append(
            {
                "traceID": TRACE,
                "spanID": one["spanId"].lstrip("0"),
                "operationName": one["name"],
                "references": [{"refType": "CHILD_OF", "traceID": TRACE, "spanID": ROOT}]
                if one["parentSpanId"]
                else [],
                "startTime": started,
                "duration": int(one["endTimeUnixNano"]) // 1000 - started,
                "tags": tags,
                "logs": [],
                "processID": "p1",
            }
        )
    traces = [{"traceID": TRACE, "spans": spans, "processes": {"p1": {"serviceName": "trips", "tags": []}}}]
    (record,) = records(json.dumps({"data": traces}))
    check(record)
    assert record.process == "trips"


def test_an_item_names_its_trace_and_conversation():
    span = otlp_span(ROOT, "run", 0, 9, gen_ai__operation__name="invoke_agent", gen_ai__conversation__id="c")
    (item,), _ = read(json.dumps(request([span])))
    assert (item.group, item.id, item.link, item.at_ns) == (TRACE, ROOT, "c", AT)


def test_what_is_torn_is_counted_and_the_rest_read():
    torn = json.dumps(request(SPANS))[:200]
    items, skipped = read(torn + "\n" + lines() + "what\n" + '{"a": 1}\n{"resourceLogs": []}\n' + torn)
    assert len(items) == len(SPANS)
    assert [(one.reason, one.where) for one in skipped] == [
        (TORN, "f.json:1"),
        (NOT_JSON, "f.json:4"),
        ("neither a span nor spans", "f.json:5"),
        ("logs or metrics, not traces", "f.json:6"),
        (TORN, "f.json:7"),
    ]


def test_a_file_without_spans_is_refused():
    for text in ("", "hello\n", "[1, 2]", '{"a": 1}'):
        with pytest.raises(RecordError, match=r"^f\.json: no spans in it"):
            read(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"type":"session_meta","payload":{"text":"{\\"resourceSpans\\":[]}"}}',
        '{"trace_id":"t","type":"GENERATION","start_time":"x"}',
        "resourceSpans",
        '{"object":"trace.span"}',
    ],
)
def test_other_files_are_not_recognised(text: str):
    assert not Otlp().recognises(text.encode(), Path("x"))


_KEYS = st.sampled_from(
    [
        "resourceSpans",
        "scopeSpans",
        "spans",
        "attributes",
        "traceId",
        "context",
        "data",
        "trace",
        "events",
        "status",
        "SpanContext",
        "batches",
        "resource",
        "key",
        "value",
        "startTimeUnixNano",
        "spanId",
    ]
)
_ODD = st.recursive(
    st.none() | st.text() | st.integers(),
    lambda inner: st.lists(inner) | st.dictionaries(_KEYS, inner),
    max_leaves=12,
)


@pytest.mark.slow
@given(st.lists(_ODD))
def test_odd_json_is_skipped_and_nothing_else(values: list[Any]):
    text = "".join(json.dumps(one) + "\n" for one in values) + json.dumps(request(SPANS)) + "\n"
    items, _ = read(text)
    assert len(items) >= len(SPANS)


def agents_span(id_: str, parent: str | None, started: int, ended: int | None, **data: Any) -> dict[str, Any]:
    def iso(at: int) -> str:
        return f"2026-09-21T14:13:20.{at * 1000:06}+00:00"

    return {
        "object": "trace.span",
        "id": id_,
        "trace_id": "trace_x",
        "parent_id": parent,
        "started_at": iso(started),
        "ended_at": None if ended is None else iso(ended),
        "span_data": data,
        "error": None,
    }


def usage(read: int, wrote: int, cached: int) -> dict[str, Any]:
    return {"input_tokens": read, "output_tokens": wrote, "input_tokens_details": {"cached_tokens": cached}}


AGENTS = [
    agents_span("g", "turn", 3, 100, type="generation", model="gpt-x", usage=usage(50, 7, 20), output=None),
    agents_span("f1", "turn", 105, 205, type="function", name="weather", input="{}", output="x"),
    agents_span("f2", "turn", 106, 306, type="function", name="people", input="{}", output=None)
    | {"error": {"message": "Error running tool", "data": {}}},
    agents_span(
        "turn",
        "ag",
        2,
        307,
        type="custom",
        name="turn",
        data={"sdk_span_type": "turn", "usage": usage(50, 7, 20)},
    ),
    agents_span("r", "ag", 310, 390, type="response", response_id="resp_1", usage=usage(60, 8, 0)),
    agents_span("guard", "ag", 390, 391, type="guardrail", name="g"),
    agents_span("ag", "task", 1, 398, type="agent", name="planner"),
    agents_span(
        "task",
        None,
        0,
        400,
        type="custom",
        name="task",
        data={"sdk_span_type": "task", "name": "Agent workflow", "usage": usage(110, 15, 20)},
    ),
]


@pytest.mark.parametrize(
    "text",
    [
        "".join(json.dumps(one) + "\n" for one in [{"object": "trace", "id": "trace_x"}, *AGENTS]),
        json.dumps(AGENTS),
        json.dumps({"data": AGENTS}),
        json.dumps([{"object": "trace", "id": "trace_x", "spans": AGENTS}]),
        json.dumps({"trace": {"object": "trace", "id": "trace_x"}, "spans": AGENTS}, indent=1),
        pretty(AGENTS),
    ],
)
def test_traces_of_openai_agents(text: str):
    (record,) = records(text, OpenAIAgents())
    assert (record.name, record.status, record.source) == ("planner", "ok", "openai-agents")
    assert (record.wall_ns, record.resolution_ns) == (400 * MS, 1000)
    first, last = record.rounds
    assert (first.model.provider, first.model.model, last.model.provider, last.model.model) == (
        "openai",
        "gpt-x",
        "openai",
        "",
    )
    assert [
        (one.model.input_tokens, one.model.cached_tokens, one.model.output_tokens) for one in record.rounds
    ] == [
        (50, 20, 7),
        (60, 0, 8),
    ]
    assert [(call.name, call.id, call.status, call.duration_ns) for call in first.tool_calls] == [
        ("weather", "f1", "ok", 100 * MS),
        ("people", "f2", "error", 200 * MS),
    ]
    assert last.model.request_id == "resp_1"


def test_a_handoff_of_openai_agents_stays_in_the_loop():
    spans = [
        agents_span("a", None, 0, 200, type="agent", name="first"),
        agents_span("r1", "a", 1, 100, type="response", usage=usage(1, 1, 0)),
        agents_span("h", "a", 101, 102, type="handoff", from_agent="first", to_agent="second"),
        agents_span("b", None, 201, 400, type="agent", name="second"),
        agents_span("r2", "b", 202, 300, type="response", usage=usage(1, 1, 0)),
    ]
    (record,) = records(json.dumps(spans), OpenAIAgents())
    assert (record.name, len(record.rounds)) == ("first", 2)
    assert (record.started_ns, record.ended_ns) == (0, 400 * MS)  # as long as the last of its agents


def test_rows_of_openai_agents_that_are_none_are_counted():
    bad = agents_span("x", None, 0, 1, type="agent") | {"started_at": None}
    items, skipped = read(
        "\n".join([json.dumps(AGENTS[0]), json.dumps(bad), '{"a": 1}', "5x"]), OpenAIAgents()
    )
    assert len(items) == 1
    assert [one.reason for one in skipped] == [
        "a span without ids or times",
        "neither a trace nor a span of one",
        NOT_JSON,
    ]
    with pytest.raises(RecordError, match="no traces in it"):
        read("{}", OpenAIAgents())


def test_requests_inside_a_guardrail_are_in_no_loop():
    rows = [
        agents_span("a", None, 0, 200, type="agent", name="first"),
        agents_span("g", "a", 1, 90, type="guardrail", name="polite"),
        agents_span("ga", "g", 2, 80, type="agent", name="judge"),
        agents_span("gr", "ga", 3, 70, type="response", usage=usage(1, 1, 0)),
        agents_span("r1", "a", 1, 100, type="response", usage=usage(5, 1, 0)),
    ]
    (record,) = records("\n".join(map(json.dumps, rows)), OpenAIAgents())
    assert [round_.model.input_tokens for round_ in record.rounds] == [5]


@pytest.mark.parametrize("format_", [Otlp(), OpenAIAgents()], ids=["otel", "openai-agents"])
def test_what_a_program_said_before_its_spans_hides_nothing(format_: Format):
    rows = SPANS if format_.name == "otel" else [agents_span("a", None, 0, 200, type="agent", name="first")]
    text = "INFO {started}\n\n2026-01-01 [main] WARNING: slow\n" + "\n".join(map(pretty, rows))
    assert format_.recognises(text.encode(), Path("out.txt"))


def test_a_model_that_only_the_name_of_its_span_tells():
    span = otlp_span(
        "00000000000000a1",
        "chat claude-sonnet-4-5",
        2,
        100,
        gen_ai__operation__name="chat",
        gen_ai__usage__input_tokens=5,
    )
    (record,) = records(json.dumps(request([span])))
    assert (record.model, record.provider) == ("claude-sonnet-4-5", "anthropic")


def test_the_clocks_of_a_trace_are_counted_by_its_machines(tmp_path: Path):
    rows = [request(SPANS[:1], host__name="h1"), request(SPANS[1:], host__name="h2")]
    (tmp_path / "spans.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert import_files([tmp_path], tmp_path / "runs").recording.clocks == 2


def test_traces_of_one_conversation_may_use_the_same_span_ids(tmp_path: Path):
    talk = [
        one | {"attributes": [*one["attributes"], attribute("gen_ai.conversation.id", "k")]} for one in SPANS
    ]
    rows = [request(talk), request([one | {"traceId": "f" * 32} for one in talk])]
    (tmp_path / "spans.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = import_files([tmp_path], tmp_path / "runs")
    assert (made.loops, made.recording.skipped) == (2, {})


@pytest.mark.parametrize("key", ["openinference__span__kind", "langfuse__observation__type"])
def test_what_a_guardrail_asks_is_in_no_loop(key: str):
    def kind(id_: str, name: str, parent: str, started: int, ended: int) -> dict[str, Any]:
        said = {key: name.upper() if key.startswith("openinference") else name}
        return otlp_span(id_, name, started, ended, **said) | {"parentSpanId": parent}

    model = "LLM" if key.startswith("openinference") else "generation"
    spans = [
        kind(ROOT, "agent", "", 0, 100),
        kind("00000000000000b1", "guardrail", ROOT, 1, 50),
        kind("00000000000000b2", "agent", "00000000000000b1", 2, 49),
        kind("00000000000000b3", model, "00000000000000b2", 3, 48),
        kind("00000000000000b4", model, ROOT, 5, 90),
    ]
    (record,) = records(json.dumps(request(spans)))
    assert [round_.model.started_ns // MS for round_ in record.rounds] == [5]
