"""Spans as JSON: OTLP's, in all its encodings, and where stores and exporters put them.

    {"resourceSpans": […]}            an export request; also below "trace", "result" or "batches"
    {"resource": …, "scopeSpans": …}  a part of one (Java's exporter to the log)
    {"data": [{"spans": […]}]}        Jaeger's API
    {"data": […]}, {"spans": […]}     spans of any kind (Phoenix; MLflow has them in "data")
    {…}                               one span, as `span_dumps` knows it

Each function yields what it can read and counts nothing: None stands for a span that cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from profiler.recordings.genai import Raw, origin_of
from profiler.recordings.sampling import share_of
from profiler.recordings.span_dumps import of_go, of_jaeger, of_stored
from profiler.recordings.span_values import (
    KINDS,
    LATEST_NS,
    STATUS,
    attributes_of,
    end_ns,
    enum,
    events_of,
    identity,
    text,
    time_ns,
)


def is_trace(value: object) -> bool:
    """Whether a JSON value is one of those above, as far as its keys tell."""
    if not isinstance(value, dict):
        return False
    return any(isinstance(value.get(key), list) for key in (*RESOURCE_SPANS, *_SCOPE_SPANS, *_LISTS)) or any(
        isinstance(value.get(key), kind)
        for key, kind in (
            *((key, dict) for key in (*_AROUND, *_CONTEXTS)),
            *((key, str | int) for key in _TRACE_IDS),
        )
    )


RESOURCE_SPANS = ("resourceSpans", "resource_spans", "batches")
_SCOPE_SPANS = ("scopeSpans", "scope_spans", "instrumentationLibrarySpans", "instrumentation_library_spans")
_LISTS = ("data", "spans")
_AROUND = ("trace", "result", "data")
_CONTEXTS = ("context", "SpanContext", "spanContext", "_spanContext")
_TRACE_IDS = ("traceId", "trace_id", "traceID", "context.trace_id")
_DEEPEST = 5
"""So many of them are around spans, and no more."""


def raws_of(value: Mapping[str, Any], depth: int = 0) -> Iterator[Raw | None]:
    """The spans of a JSON value."""
    get = value.get
    for key in RESOURCE_SPANS:
        if isinstance(get(key), list):
            for resource in value[key]:
                yield from _of_resource(resource)
            return
    if any(isinstance(get(key), list) for key in _SCOPE_SPANS):
        yield from _of_resource(value)
        return
    if depth < _DEEPEST:
        for key in _AROUND:
            if isinstance(get(key), dict):
                yield from raws_of(value[key], depth + 1)
                return
        for key in _LISTS:
            if isinstance(get(key), list):
                yield from _of_list(value, value[key], depth + 1)
                return
    if isinstance(get("SpanContext"), dict):
        yield _safely(of_go, value)
    elif isinstance(get("traceID"), str) and "operationName" in value:
        yield _safely(of_jaeger, value, {})
    else:
        yield _safely(of_stored, value)


def _of_list(around: Mapping[str, Any], spans: list[Any], depth: int) -> Iterator[Raw | None]:
    processes = around.get("processes")
    trace = around.get("traceId", around.get("trace_id"))
    for one in spans:
        if not isinstance(one, dict):
            yield None
        elif "operationName" in one and "traceID" in one:
            yield _safely(of_jaeger, one, processes if isinstance(processes, dict) else {})
        elif any(isinstance(one.get(key), list | dict) for key in (*RESOURCE_SPANS, *_LISTS, *_AROUND)):
            yield from raws_of(one, depth)
        else:
            yield from raws_of(one if trace is None else {"traceId": trace, **one}, _DEEPEST)


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
        clock, process = origin_of(attributes_of(attributes))
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError):
        clock = process = ""
    for key in _SCOPE_SPANS:
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
    status = get("status")
    started, ended = get("startTimeUnixNano"), get("endTimeUnixNano")
    if started is None:
        started, ended = get("start_time_unix_nano"), get("end_time_unix_nano")
    if started is None:
        started, ended = get("startTime", get("start_time")), get("endTime", get("end_time"))
    return Raw(
        trace=identity(get("traceId", get("trace_id")), 16),
        id=identity(get("spanId", get("span_id")), 8),
        parent=identity(get("parentSpanId", get("parent_span_id", get("parentId", get("parent_id")))), 8),
        name=text(get("name")),
        kind=enum(get("kind"), KINDS),
        started_ns=time_ns(started),
        ended_ns=end_ns(ended),
        attributes=attributes_of(get("attributes")),
        events=events_of(get("events")),
        status=enum(
            status.get("code", status.get("status_code")) if isinstance(status, dict) else status, STATUS
        ),
        scope=scope,
        clock=clock,
        process=process,
        sampled=share_of(text(get("traceState", get("trace_state")))),
    )
