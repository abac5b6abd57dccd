"""Spans as JSON: OTLP's, in all its encodings, and what tracing SDKs and trace stores print.

    {"resourceSpans": […]}            an export request; also below "trace" or "batches" (Tempo)
    {"traceId": …, "spanId": …}       one span of it, its attributes a list or a plain map
    {"context": {"trace_id": …}}      the Python SDK's console exporter
    {"SpanContext": {"TraceID": …}}   the Go SDK's
    {"data": [{"spans": […]}]}        Jaeger's API

Each function yields what it can read and counts nothing: None stands for a span that cannot be read.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any

from profiler.recordings.genai import Event, Raw, origin_of
from profiler.recordings.genai_replies import unix_ns
from profiler.recordings.sampling import share_of

_KINDS = {"UNSPECIFIED": 0, "INTERNAL": 1, "SERVER": 2, "CLIENT": 3, "PRODUCER": 4, "CONSUMER": 5}
_STATUS = {"UNSET": 0, "OK": 1, "ERROR": 2}
LATEST_NS = 2**62
"""Times from here on are none: a record could not hold them."""


def is_trace(value: object) -> bool:
    """Whether a JSON value is one of those above, as far as its keys tell."""
    if not isinstance(value, dict):
        return False
    return any(isinstance(value.get(key), list) for key in (*_RESOURCE_SPANS, "batches", "data")) or any(
        isinstance(value.get(key), kind)
        for key, kind in (
            ("traceId", str),
            ("trace_id", str),
            ("context", dict),
            ("SpanContext", dict),
            ("trace", dict),
        )
    )


_RESOURCE_SPANS = ("resourceSpans", "resource_spans")


def raws_of(value: Mapping[str, Any]) -> Iterator[Raw | None]:
    """The spans of a JSON value."""
    for key in (*_RESOURCE_SPANS, "batches"):
        if isinstance(value.get(key), list):
            for resource in value[key]:
                yield from _of_resource(resource)
            return
    if isinstance(value.get("trace"), dict):
        yield from raws_of({key: one for key, one in value["trace"].items() if key != "trace"})
    elif isinstance(value.get("data"), list):
        for trace in value["data"]:
            yield from _of_jaeger(trace)
    elif isinstance(value.get("SpanContext"), dict):
        yield _safely(_of_go, value)
    elif isinstance(value.get("context"), dict):
        yield _safely(_of_python, value)
    else:
        yield _safely(_of_otlp, value, "", "", "")


def _safely(make: Any, *arguments: Any) -> Raw | None:
    """A span is made of whatever a file holds: what does not fit is no span."""
    try:
        raw: Raw = make(*arguments)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    return raw if raw.trace and raw.id and 0 < raw.started_ns < LATEST_NS else None


def _of_resource(resource: object) -> Iterator[Raw | None]:
    if not isinstance(resource, dict):
        yield None
        return
    about = resource.get("resource")
    attributes = about.get("attributes") if isinstance(about, dict) else None
    try:
        clock, process = origin_of(_attributes(attributes))
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError):
        clock = process = ""
    for key in ("scopeSpans", "scope_spans", "instrumentationLibrarySpans", "instrumentation_library_spans"):
        scopes = resource.get(key)
        for scope in scopes if isinstance(scopes, list) else ():
            if not isinstance(scope, dict):
                yield None
                continue
            about = scope.get("scope") or scope.get("instrumentationLibrary")
            name = about.get("name") if isinstance(about, dict) else None
            spans = scope.get("spans")
            for span in spans if isinstance(spans, list) else ():
                yield _safely(_of_otlp, span, name if isinstance(name, str) else "", clock, process)


def _of_otlp(span: Mapping[str, Any], scope: str, clock: str, process: str) -> Raw:
    get = span.get
    resource = get("resource")
    if isinstance(resource, dict) and not clock:
        clock, process = origin_of(_attributes(resource.get("attributes", resource)))
    status = get("status")
    code = status.get("code", status.get("status_code")) if isinstance(status, dict) else status
    started, ended = get("startTimeUnixNano"), get("endTimeUnixNano")
    if started is None:
        started, ended = get("start_time_unix_nano"), get("end_time_unix_nano")
    if started is None:
        started, ended = get("startTime", get("start_time")), get("endTime", get("end_time"))
    return Raw(
        trace=identity(get("traceId", get("trace_id")), 16),
        id=identity(get("spanId", get("span_id")), 8),
        parent=identity(get("parentSpanId", get("parent_span_id", get("parentId", get("parent_id")))), 8),
        name=_text(get("name")),
        kind=_enum(get("kind"), _KINDS),
        started_ns=_time(started),
        ended_ns=_end(ended),
        attributes=_attributes(get("attributes")),
        events=_events(get("events")),
        status=_enum(code, _STATUS),
        scope=scope,
        clock=clock,
        process=process,
        sampled=share_of(_text(get("traceState", get("trace_state")))),
    )


def _of_python(span: Mapping[str, Any]) -> Raw:
    context = span["context"]
    resource = span.get("resource")
    clock = process = ""
    if isinstance(resource, dict):
        clock, process = origin_of(_attributes(resource.get("attributes", resource)))
    status = span.get("status")
    code = status.get("status_code", status.get("code")) if isinstance(status, dict) else status
    return Raw(
        trace=identity(context["trace_id"], 16),
        id=identity(context["span_id"], 8),
        parent=identity(span.get("parent_id"), 8),
        name=_text(span.get("name")),
        kind=_enum(span.get("kind"), _KINDS),
        started_ns=_time(span["start_time"]),
        ended_ns=_end(span.get("end_time")),
        attributes=_attributes(span.get("attributes")),
        events=_events(span.get("events")),
        status=_enum(code, _STATUS),
        clock=clock,
        process=process,
        resolution_ns=1000,
        sampled=share_of(_text(context.get("trace_state"))),
    )


def _of_go(span: Mapping[str, Any]) -> Raw:
    parent = span.get("Parent")
    scope = span.get("InstrumentationScope") or span.get("InstrumentationLibrary")
    status = span.get("Status")
    clock, process = origin_of(_attributes(span.get("Resource")))
    return Raw(
        trace=identity(span["SpanContext"]["TraceID"], 16),
        id=identity(span["SpanContext"]["SpanID"], 8),
        parent=identity(parent.get("SpanID"), 8) if isinstance(parent, dict) else "",
        name=_text(span.get("Name")),
        kind=_enum(span.get("SpanKind"), _KINDS),
        started_ns=_time(span["StartTime"]),
        ended_ns=_end(span.get("EndTime")),
        attributes=_attributes(span.get("Attributes")),
        events=[
            (_text(one.get("Name")), _time(one.get("Time")), _attributes(one.get("Attributes")))
            for one in span.get("Events") or ()
        ],
        status=_enum(status.get("Code"), _STATUS) if isinstance(status, dict) else 0,
        scope=_text(scope.get("Name")) if isinstance(scope, dict) else "",
        clock=clock,
        process=process,
        sampled=share_of(_text(span["SpanContext"].get("TraceState"))),
    )


def _of_jaeger(trace: object) -> Iterator[Raw | None]:
    if not isinstance(trace, dict) or not isinstance(trace.get("spans"), list):
        yield None
        return
    processes = trace.get("processes")
    for span in trace["spans"]:
        yield _safely(_of_jaeger_span, span, processes if isinstance(processes, dict) else {})


def _of_jaeger_span(span: Mapping[str, Any], processes: Mapping[str, Any]) -> Raw:
    about = processes.get(span.get("processID", ""), {})
    resource = _tags(about.get("tags"))
    resource.setdefault("service.name", about.get("serviceName"))
    clock, process = origin_of(resource)
    tags = _tags(span.get("tags"))
    parents = [
        one["spanID"]
        for one in span.get("references") or ()
        if one.get("refType", "CHILD_OF") == "CHILD_OF"
        and one.get("traceID", span["traceID"]) == span["traceID"]
    ]
    started_ns = int(span["startTime"]) * 1000
    kind = str(tags.get("span.kind", "")).upper()
    status = 2 if tags.get("error") is True or tags.get("otel.status_code") == "ERROR" else 0
    events = []
    for log in span.get("logs") or ():
        fields = _tags(log.get("fields"))
        events.append((_text(fields.get("event")), int(log["timestamp"]) * 1000, fields))
    return Raw(
        trace=identity(span["traceID"], 16),
        id=identity(span["spanID"], 8),
        parent=identity(parents[0], 8) if parents else "",
        name=_text(span.get("operationName")),
        kind=_KINDS.get(kind, 1),
        started_ns=started_ns,
        ended_ns=started_ns + int(span["duration"]) * 1000,
        attributes=tags,
        events=events,
        status=status,
        scope=_text(tags.get("otel.scope.name", tags.get("otel.library.name"))),
        clock=clock,
        process=process,
        resolution_ns=1000,
        sampled=share_of(_text(tags.get("w3c.tracestate"))),
    )


def _tags(tags: Any) -> dict[str, Any]:
    return {one["key"]: one.get("value") for one in tags or ()}


def identity(value: Any, size: int) -> str:
    """An id of so many bytes as hexadecimal, from that, 0x…, base64 or a number; "" for none or zero."""
    if isinstance(value, int) and not isinstance(value, bool):
        text = format(value, "x")
    elif isinstance(value, str):
        text = value.removeprefix("0x").removeprefix("0X")
        if len(text) != 2 * size and text.endswith("=") and len(text) == (24 if size == 16 else 12):
            try:
                text = base64.b64decode(text, validate=True).hex()
            except (binascii.Error, ValueError):
                return text
        else:
            text = text.lower()
    else:
        return ""
    if not text.strip("0"):
        return ""
    return text.rjust(2 * size, "0")


def _enum(value: Any, names: Mapping[str, int]) -> int:
    """A number, its text, or a name: `SPAN_KIND_CLIENT`, `SpanKind.CLIENT`, `Client`."""
    if isinstance(value, int):
        return int(value)
    if not isinstance(value, str):
        return 0
    if value.isdigit():
        return int(value)
    word = value.upper().rpartition(".")[2]
    return names.get(word.removeprefix("SPAN_KIND_").removeprefix("STATUS_CODE_"), 0)


def _time(value: Any) -> int:
    """Unix ns from a number of ns, its text, or an ISO time. Raises ValueError."""
    if isinstance(value, str) and not value.isdigit():
        at_ns = unix_ns(value)
        if at_ns is None:
            raise ValueError(f"not a time: {value[:40]!r}")
        return at_ns
    return int(value)


def _end(value: Any) -> int | None:
    """None for a span that has not ended: without an end, or with the zero of its type."""
    if value is None or value == "":
        return None
    try:
        at_ns = _time(value)
    except (TypeError, ValueError):
        return None
    return at_ns if 0 < at_ns < LATEST_NS else None


def _events(events: Any) -> list[Event]:
    result: list[Event] = []
    for one in events if isinstance(events, list) else ():
        if not isinstance(one, dict):
            continue
        time = next((one[key] for key in _EVENT_TIMES if key in one), None)
        try:
            result.append((_text(one.get("name")), _time(time), _attributes(one.get("attributes"))))
        except (TypeError, ValueError):
            continue
    return result


_EVENT_TIMES = ("timeUnixNano", "time_unix_nano", "timestamp", "time")


def _attributes(attributes: Any) -> dict[str, Any]:
    if isinstance(attributes, dict):
        return attributes
    result = {}
    for one in attributes if isinstance(attributes, list) else ():
        if isinstance(one, dict):
            key, value = one.get("key", one.get("Key")), one.get("value", one.get("Value"))
            if isinstance(key, str):
                result[key] = _value(value)
    return result


def _value(value: Any) -> Any:
    """What an `AnyValue` holds. Integers may be text; NaN and the infinities are."""
    if not isinstance(value, dict):
        return value
    if "Type" in value:
        return value.get("Value")
    for key, one in value.items():
        kind = _VALUES.get(key)
        if kind == "int":
            return int(one) if isinstance(one, str) else one
        if kind == "double":
            return float(one) if isinstance(one, str) else one
        if kind == "plain":
            return one
        if kind == "array":
            inner = one.get("values") if isinstance(one, dict) else one
            return [_value(part) for part in inner or ()]
        if kind == "map":
            return _attributes(one.get("values") if isinstance(one, dict) else one)
    return None


_VALUES = {
    "stringValue": "plain",
    "string_value": "plain",
    "boolValue": "plain",
    "bool_value": "plain",
    "bytesValue": "plain",
    "bytes_value": "plain",
    "intValue": "int",
    "int_value": "int",
    "doubleValue": "double",
    "double_value": "double",
    "arrayValue": "array",
    "array_value": "array",
    "kvlistValue": "map",
    "kvlist_value": "map",
}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
