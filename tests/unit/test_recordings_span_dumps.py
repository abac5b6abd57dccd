"""Spans as SDKs of tracing print them and as trace stores keep them, beside OTLP's own JSON."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from profiler.recordings.drafts import LoopDraft
from profiler.recordings.formats import Item, Skipped, Source
from profiler.recordings.otlp import Otlp

AT = 1_800_000_000
TRACE = "0af7651916cd43dd8448eb211c80319c"
IDS = ["00000000000000a0", "00000000000000a1", "00000000000000a2"]
TIMES = [(0, 900), (100, 300), (350, 850)]  # ms
NAMES = ["planner", "chat m", "find"]
ATTRIBUTES: list[dict[str, Any]] = [
    {"openinference.span.kind": "AGENT"},
    {
        "openinference.span.kind": "LLM",
        "llm.model_name": "m",
        "llm.token_count.prompt": 12,
        "llm.token_count.completion": 3,
    },
    {"openinference.span.kind": "TOOL", "tool.name": "find"},
]


def ns(ms: int) -> int:
    return AT * 10**9 + ms * 10**6


def iso(ms: int) -> str:
    return f"2027-01-15T08:00:00.{ms:03}000+00:00"


def parent(place: int) -> str | None:
    return None if place == 0 else IDS[0]


def phoenix(place: int) -> dict[str, Any]:
    attributes = {key: value for key, value in ATTRIBUTES[place].items() if "span.kind" not in key}
    return {
        "id": f"node-{place}",
        "name": NAMES[place],
        "context": {"trace_id": TRACE, "span_id": IDS[place]},
        "span_kind": ATTRIBUTES[place]["openinference.span.kind"],
        "parent_id": parent(place),
        "start_time": iso(TIMES[place][0]),
        "end_time": iso(TIMES[place][1]),
        "status_code": "ERROR" if place == 2 else "OK",
        "attributes": attributes,
        "events": [],
    }


def frame(place: int) -> dict[str, Any]:
    row = {
        "name": NAMES[place],
        "span_kind": ATTRIBUTES[place]["openinference.span.kind"],
        "parent_id": parent(place),
        "start_time": AT * 1000 + TIMES[place][0],
        "end_time": AT * 1000 + TIMES[place][1],
        "status_code": "ERROR" if place == 2 else "OK",
        "context.span_id": IDS[place],
        "context.trace_id": TRACE,
    }
    return row | {f"attributes.{key}": value for key, value in ATTRIBUTES[place].items()}


def javascript(place: int) -> dict[str, Any]:
    span = {
        "_spanContext": {"traceId": TRACE, "spanId": IDS[place], "traceFlags": 1},
        "name": NAMES[place],
        "kind": 0,
        "startTime": [AT, TIMES[place][0] * 10**6],
        "endTime": [AT, TIMES[place][1] * 10**6],
        "attributes": ATTRIBUTES[place],
        "status": {"code": 2 if place == 2 else 0},
        "resource": {"_rawAttributes": [["service.name", "shop"]]},
        "instrumentationScope": {"name": "app"},
    }
    return span if place == 0 else span | {"parentSpanContext": {"traceId": TRACE, "spanId": IDS[0]}}


def node_console(place: int) -> dict[str, Any]:
    span = {
        "resource": {"attributes": {"service.name": "shop"}},
        "instrumentationScope": {"name": "app"},
        "traceId": TRACE,
        "name": NAMES[place],
        "id": IDS[place],
        "kind": 0,
        "timestamp": AT * 10**6 + TIMES[place][0] * 1000,
        "duration": (TIMES[place][1] - TIMES[place][0]) * 1000,
        "attributes": ATTRIBUTES[place],
        "status": {"code": 2 if place == 2 else 0},
        "events": [],
    }
    return span if place == 0 else span | {"parentSpanContext": {"traceId": TRACE, "spanId": IDS[0]}}


def zipkin(place: int) -> dict[str, Any]:
    tags = {key: str(value) for key, value in ATTRIBUTES[place].items()} | {"otel.scope.name": "app"}
    span = {
        "traceId": TRACE,
        "id": IDS[place],
        "name": NAMES[place],
        "timestamp": AT * 10**6 + TIMES[place][0] * 1000,
        "duration": (TIMES[place][1] - TIMES[place][0]) * 1000,
        "localEndpoint": {"serviceName": "shop"},
        "tags": tags | ({"error": "true"} if place == 2 else {}),
    }
    return span if place == 0 else span | {"parentId": IDS[0]}


def logfire(place: int) -> dict[str, Any]:
    return {
        "start_timestamp": iso(TIMES[place][0]),
        "end_timestamp": iso(TIMES[place][1]),
        "trace_id": TRACE,
        "span_id": IDS[place],
        "parent_span_id": parent(place),
        "kind": "span",
        "span_name": NAMES[place],
        "service_name": "shop",
        "otel_scope_name": "app",
        "otel_status_code": "ERROR" if place == 2 else None,
        "attributes": json.dumps(ATTRIBUTES[place]),
    }


def mlflow(place: int) -> dict[str, Any]:
    attributes: dict[str, Any] = {"mlflow.spanType": json.dumps(("AGENT", "CHAT_MODEL", "TOOL")[place])}
    if place == 1:
        attributes |= {
            "mlflow.llm.model": '"m"',
            "mlflow.chat.tokenUsage": '{"input_tokens": 12, "output_tokens": 3}',
        }
    return {
        "trace_id": "CvdlGRbNQ92ESOshHIAxnA==",
        "span_id": ("AAAAAAAAAKA=", "AAAAAAAAAKE=", "AAAAAAAAAKI=")[place],
        "parent_span_id": None if place == 0 else "AAAAAAAAAKA=",
        "name": NAMES[place],
        "start_time_unix_nano": ns(TIMES[place][0]),
        "end_time_unix_nano": ns(TIMES[place][1]),
        "status": {"code": "STATUS_CODE_ERROR" if place == 2 else "STATUS_CODE_OK"},
        "attributes": attributes,
    }


def java(place: int) -> dict[str, Any]:
    return {
        "traceId": TRACE,
        "spanId": IDS[place],
        "parentSpanId": parent(place) or "",
        "name": NAMES[place],
        "kind": 1,
        "startTimeUnixNano": str(ns(TIMES[place][0])),
        "endTimeUnixNano": str(ns(TIMES[place][1])),
        "attributes": [
            {"key": key, "value": {"stringValue": str(one)}} for key, one in ATTRIBUTES[place].items()
        ],
        "status": {"code": 2 if place == 2 else 0},
    }


def nested(place: int) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    for key, value in ATTRIBUTES[place].items():
        *path, last = key.split(".")
        inner = attributes
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return phoenix(place) | {"attributes": attributes}


ALL = range(3)
FILES: dict[str, tuple[Any, int]] = {
    "Phoenix, a page of its API": ({"data": [phoenix(one) for one in ALL], "next_cursor": None}, 1000),
    "Phoenix, a list": ([phoenix(one) for one in ALL], 1000),
    "Phoenix, a trace": ({"traceId": TRACE, "spans": [phoenix(one) for one in ALL]}, 1000),
    "attributes in attributes": ([nested(one) for one in ALL], 1000),
    "a data frame": ([frame(one) for one in ALL], 1_000_000),
    "JavaScript's objects": ([javascript(one) for one in ALL], 1),
    "Node's console exporter": ([node_console(one) for one in ALL], 1000),
    "Zipkin": ([zipkin(one) for one in ALL], 1000),
    "logfire": ([logfire(one) for one in ALL], 1000),
    "MLflow": ({"info": {"trace_id": "tr-1"}, "data": {"spans": [mlflow(one) for one in ALL]}}, 1),
    "Java's log exporter": ({"resource": {}, "scopeSpans": [{"spans": [java(one) for one in ALL]}]}, 1),
    "Jaeger's API, version 3": (
        {"result": {"resourceSpans": [{"scopeSpans": [{"spans": [java(one) for one in ALL]}]}]}},
        1,
    ),
}


def loops_in(written: Any) -> tuple[list[LoopDraft], list[Skipped]]:
    text = json.dumps(written).encode()
    format_ = Otlp()
    path = Path("spans.json")
    assert format_.recognises(text, path)
    told = list(format_.read(Source(path, path.name, io.BytesIO(text)), False))
    items = [one for one in told if isinstance(one, Item)]
    loops = list(format_.loops(items, False))
    return [one for one in loops if isinstance(one, LoopDraft)], [
        one for one in (*told, *loops) if isinstance(one, Skipped)
    ]


@pytest.mark.parametrize("name", FILES)
def test_a_loop_is_the_same_however_its_spans_are_written(name):
    written, tick = FILES[name]
    (loop,), skipped = loops_in(written)
    assert skipped == []
    assert (loop.started_ns, loop.ended_ns, loop.resolution_ns) == (ns(0), ns(900), tick)
    (round_,) = loop.rounds
    model = round_.model
    assert (model.started_ns, model.ended_ns, model.model) == (ns(100), ns(300), "m")
    assert (model.input_tokens, model.output_tokens) == (12, 3)
    (call,) = round_.calls
    assert (call.name, call.started_ns, call.ended_ns, call.status) == ("find", ns(350), ns(850), "error")


def test_javascript_counts_the_kinds_of_spans_from_zero():
    http = javascript(1) | {
        "_spanContext": {"traceId": TRACE, "spanId": "00000000000000a9"},
        "parentSpanContext": {"spanId": IDS[1]},
        "name": "POST",
        "kind": 2,
        "attributes": {"http.request.method": "POST", "http.response.status_code": 200},
    }
    (loop,), _ = loops_in([*(javascript(one) for one in ALL), http])
    assert [one.status for one in loop.rounds[0].model.attempts] == [200]


def test_javascript_has_times_as_objects_too():
    spans = [javascript(one) for one in ALL]
    for span in spans:
        for key in ("startTime", "endTime"):
            span[key] = dict(zip("01", span[key], strict=True))
    (loop,), _ = loops_in(spans)
    assert loop.ended_ns == ns(900)


def test_a_span_with_a_duration_and_no_end_ended_then():
    spans = [javascript(one) for one in ALL]
    del spans[2]["endTime"]
    spans[2]["duration"] = [0, 500 * 10**6]
    (loop,), _ = loops_in(spans)
    assert loop.rounds[0].calls[0].ended_ns == ns(850)


def test_pages_in_pages_end_somewhere():
    deep: Any = [phoenix(0)]
    for _ in range(50):
        deep = {"data": deep} if isinstance(deep, list) else {"trace": deep}
    loops, skipped = loops_in(deep)
    assert loops == []
    assert [one.reason for one in skipped] == ["a span without ids or times"]
