"""One span as JSON, as tracing SDKs print it and trace stores keep it.

    {"traceId": …, "spanId": …}            OTLP's, alone; attributes a list or a plain map
    {"context": {"trace_id": …}}           the Python SDK's; Phoenix's (`span_kind` beside it); MLflow's
    {"_spanContext": {"traceId": …}}       JavaScript's, as its object: times are [seconds, nanoseconds]
    {"traceId", "id", "timestamp", …}      the Node SDK's console exporter; Zipkin's, with `tags`
    {"trace_id", "start_timestamp", …}     a row of logfire's
    {"context.trace_id", "attributes.…"}   a row of a data frame of Phoenix's
    {"SpanContext": {"TraceID": …}}        the Go SDK's
    {"traceID", "operationName", …}        Jaeger's

Each function raises `ValueError`, `TypeError`, `KeyError` or `AttributeError` where it is no such span.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from profiler.recordings.genai import Raw, origin_of
from profiler.recordings.sampling import share_of
from profiler.recordings.span_values import (
    KINDS,
    STATUS,
    attributes_of,
    end_ns,
    enum,
    events_of,
    identity,
    stored_end,
    stored_time,
    text,
    time_ns,
)

_EXACT = (("startTimeUnixNano", "endTimeUnixNano"), ("start_time_unix_nano", "end_time_unix_nano"))
_STORED = (("startTime", "endTime"), ("start_time", "end_time"), ("start_timestamp", "end_timestamp"))
_CONTEXTS = ("context", "_spanContext", "spanContext")
_PARENTS = ("parentSpanContext", "_parentSpanContext", "parent")


def of_stored(span: Mapping[str, Any]) -> Raw:
    """A span of any of the first six."""
    context = next((span[key] for key in _CONTEXTS if isinstance(span.get(key), dict)), span)
    started_ns, ended_ns, tick = _times(span)
    kind = enum(span.get("kind"), KINDS)
    if isinstance(span.get("kind"), int) and _is_javascript(span):
        kind += 1  # its SDK counts from INTERNAL
    attributes = _all_attributes(span)
    clock, process = origin_of(_resource(span))
    return Raw(
        trace=identity(_any(context, "traceId", "trace_id", "context.trace_id"), 16),
        id=identity(_any(context, "spanId", "span_id", "context.span_id", "id"), 8),
        parent=identity(_parent(span), 8),
        name=text(_any(span, "name", "span_name")),
        kind=kind,
        started_ns=started_ns,
        ended_ns=ended_ns,
        attributes=attributes,
        events=events_of(span.get("events")),
        status=_status(span, attributes),
        scope=_scope(span, attributes),
        clock=clock,
        process=process,
        resolution_ns=tick,
        sampled=share_of(text(_any(context, "traceState", "trace_state"))),
    )


def _any(values: Mapping[str, Any], *keys: str) -> Any:
    return next((values[key] for key in keys if values.get(key) is not None), None)


def _times(span: Mapping[str, Any]) -> tuple[int, int | None, int]:
    for start, end in _EXACT:
        if span.get(start) is not None:
            return time_ns(span[start]), end_ns(span.get(end)), 1
    for start, end in _STORED:
        if span.get(start) is not None:
            started_ns, tick = stored_time(span[start])
            ended = span.get(end)
            lasted = span.get("duration", span.get("_duration"))
            if ended is None and isinstance(lasted, list | dict):
                return started_ns, started_ns + stored_time(lasted)[0], tick
            return started_ns, stored_end(ended), tick
    started_ns = round(span["timestamp"]) * 1000  # in µs, and so is the duration
    lasted = span.get("duration")
    return started_ns, None if lasted is None else started_ns + round(lasted) * 1000, 1000


def _is_javascript(span: Mapping[str, Any]) -> bool:
    if "localEndpoint" in span:
        return False
    return isinstance(span.get("startTime"), list | dict) or (
        "timestamp" in span and not any(key in span for pair in (*_EXACT, *_STORED) for key in pair)
    )


def _parent(span: Mapping[str, Any]) -> Any:
    named = _any(span, "parentSpanId", "parent_span_id", "parentId", "parent_id")
    if named is not None:
        return named
    about: dict[str, Any] = next((span[key] for key in _PARENTS if isinstance(span.get(key), dict)), {})
    return _any(about, "spanId", "span_id")


def _all_attributes(span: Mapping[str, Any]) -> dict[str, Any]:
    attributes = attributes_of(_any(span, "attributes", "tags"))
    columns = {
        key.removeprefix("attributes."): value
        for key, value in span.items()
        if key.startswith("attributes.") and value is not None
    }
    attributes = {**attributes, **attributes_of(columns)}
    kind = text(span.get("span_kind")).upper()
    if kind and kind.removeprefix("SPAN_KIND_").rpartition(".")[2] not in KINDS:
        attributes.setdefault("openinference.span.kind", kind)
    return attributes


def _status(span: Mapping[str, Any], attributes: Mapping[str, Any]) -> int:
    status = span.get("status")
    if isinstance(status, dict):
        status = _any(status, "code", "status_code", "statusCode")
    code = enum(
        _any({**span, "status": status}, "status", "status_code", "statusCode", "otel_status_code"), STATUS
    )
    if "tags" in span and ("error" in attributes or attributes.get("otel.status_code") == "ERROR"):
        return STATUS["ERROR"]
    return code


def _scope(span: Mapping[str, Any], attributes: Mapping[str, Any]) -> str:
    for key in ("scope", "instrumentationScope", "instrumentation_scope", "instrumentationLibrary"):
        if isinstance(span.get(key), dict):
            return text(span[key].get("name"))
    return text(span.get("otel_scope_name")) or text(_any(attributes, "otel.scope.name", "otel.library.name"))


def _resource(span: Mapping[str, Any]) -> dict[str, Any]:
    about = _any(span, "resource", "otel_resource_attributes")
    if isinstance(about, dict):
        about = _any(about, "attributes", "_attributes", "_rawAttributes") or about
    if isinstance(about, list) and all(isinstance(one, list) and len(one) == 2 for one in about):
        about = dict(about)
    resource = dict(attributes_of(about))
    local = span.get("localEndpoint")
    service = span.get("service_name") or (local.get("serviceName") if isinstance(local, dict) else None)
    if service:
        resource.setdefault("service.name", service)
    return resource


def of_go(span: Mapping[str, Any]) -> Raw:
    """What the Go SDK's console exporter prints."""
    parent = span.get("Parent")
    scope = span.get("InstrumentationScope") or span.get("InstrumentationLibrary")
    status = span.get("Status")
    clock, process = origin_of(attributes_of(span.get("Resource")))
    return Raw(
        trace=identity(span["SpanContext"]["TraceID"], 16),
        id=identity(span["SpanContext"]["SpanID"], 8),
        parent=identity(parent.get("SpanID"), 8) if isinstance(parent, dict) else "",
        name=text(span.get("Name")),
        kind=enum(span.get("SpanKind"), KINDS),
        started_ns=time_ns(span["StartTime"]),
        ended_ns=end_ns(span.get("EndTime")),
        attributes=attributes_of(span.get("Attributes")),
        events=[
            (text(one.get("Name")), time_ns(one.get("Time")), attributes_of(one.get("Attributes")))
            for one in span.get("Events") or ()
        ],
        status=enum(status.get("Code"), STATUS) if isinstance(status, dict) else 0,
        scope=text(scope.get("Name")) if isinstance(scope, dict) else "",
        clock=clock,
        process=process,
        sampled=share_of(text(span["SpanContext"].get("TraceState"))),
    )


def of_jaeger(span: Mapping[str, Any], processes: Mapping[str, Any]) -> Raw:
    """A span of Jaeger's: from its API, or as it stores one, with its process in it."""
    about = processes.get(span.get("processID", ""), span.get("process") or {})
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
        events.append((text(fields.get("event")), int(log["timestamp"]) * 1000, fields))
    return Raw(
        trace=identity(span["traceID"], 16),
        id=identity(span["spanID"], 8),
        parent=identity(parents[0], 8) if parents else "",
        name=text(span.get("operationName")),
        kind=KINDS.get(kind, 1),
        started_ns=started_ns,
        ended_ns=started_ns + int(span["duration"]) * 1000,
        attributes=tags,
        events=events,
        status=status,
        scope=text(tags.get("otel.scope.name", tags.get("otel.library.name"))),
        clock=clock,
        process=process,
        resolution_ns=1000,
        sampled=share_of(text(tags.get("w3c.tracestate"))),
    )


def _tags(tags: Any) -> dict[str, Any]:
    return {one["key"]: one.get("value") for one in tags or ()}
