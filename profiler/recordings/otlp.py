"""OTLP export requests, protobuf or JSON, and files of them; dumps of tracing SDKs: format `otel`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from profiler.errors import RecordError
from profiler.recordings.drafts import LoopDraft
from profiler.recordings.formats import Item, Skipped, Source
from profiler.recordings.genai import Event, Raw, origin_of, span_of, wanted
from profiler.recordings.otlp_json import RESOURCE_SPANS, is_trace, raws_of
from profiler.recordings.reading import values
from profiler.recordings.sampling import share_of
from profiler.recordings.span import Span, packed, unpacked
from profiler.recordings.span_values import LATEST_NS
from profiler.recordings.spans import loops_of


def spans_of_request(message: Any, content: bool = False) -> list[Span]:
    """The spans of an `ExportTraceServiceRequest`: a decoded protobuf message, or its JSON as `dict`.

    Spans without a use (no agent's, model's, tool's, HTTP client's) are there as well, of kind "other", since
    others may be below them. A span that cannot be read (no ids, no start) is left out. Raises `ValueError`
    for JSON that is no such request.
    """
    if isinstance(message, dict):
        given = any(value is not None for value in message.values())  # null is what is not given
        if given and not any(isinstance(message.get(key), list) for key in RESOURCE_SPANS):
            raise ValueError("not an export request of traces: it has no resourceSpans")
        return [span_of(raw, content) for raw in raws_of(message) if raw is not None] if given else []
    return _of_protobuf(message, content)


def _of_protobuf(message: Any, content: bool) -> list[Span]:
    result = []
    for resource in message.resource_spans:
        about = {one.key: _value(one.value) for one in resource.resource.attributes}
        clock, process = origin_of(about)
        for scope in resource.scope_spans:
            name = scope.scope.name
            for span in scope.spans:
                trace_id, span_id, parent_id = span.trace_id, span.span_id, span.parent_span_id
                started_ns, ended_ns = span.start_time_unix_nano, span.end_time_unix_nano
                if not trace_id or not span_id or not 0 < started_ns < LATEST_NS:
                    continue
                attributes = {}
                for one in span.attributes:
                    key = one.key
                    if wanted(key, content):
                        attributes[key] = _value(one.value)
                result.append(
                    span_of(
                        Raw(
                            trace_id.hex(),
                            span_id.hex(),
                            parent_id.hex() if parent_id.strip(b"\0") else "",
                            span.name,
                            span.kind,
                            started_ns,
                            ended_ns if 0 < ended_ns < LATEST_NS else None,
                            attributes,
                            _Events(span),
                            span.status.code,
                            name,
                            clock,
                            process,
                            sampled=share_of(span.trace_state),
                        ),
                        content,
                    )
                )
    return result


class _Events:
    """The events of a protobuf span, decoded when somebody asks: there may be one for every chunk."""

    __slots__ = ("_span",)

    def __init__(self, span: Any) -> None:
        self._span = span

    def __iter__(self) -> Iterator[Event]:
        for event in self._span.events:
            attributes: Mapping[str, Any] = {}
            if event.name in _TELLING_EVENTS:
                attributes = {one.key: _value(one.value) for one in event.attributes}
            yield event.name, event.time_unix_nano, attributes


_TELLING_EVENTS = frozenset({"exception", "gen_ai.choice", "gen_ai.client.inference.operation.details"})


def _value(value: Any) -> Any:
    text = value.string_value
    if text:
        return text
    which = value.WhichOneof("value")
    if which == "array_value":
        return [_value(one) for one in value.array_value.values]
    if which == "kvlist_value":
        return {one.key: _value(one.value) for one in value.kvlist_value.values}
    return None if which is None else getattr(value, which)


_MARKS = (
    rb'"resource_?[sS]pans"\s*:\s*\[',
    rb'"(?:start_?[tT]ime_?[uU]nix_?[nN]ano)"\s*:',
    rb'"context"\s*:\s*\{[^{}]*"trace_id"\s*:\s*"0x',
    rb'"context"\s*:\s*\{[^{}]*"span_id"\s*:',
    rb'"SpanContext"\s*:\s*\{[^{}]*"TraceID"\s*:',
    rb'"batches"\s*:\s*\[\s*\{[^"]*"resource"',
    rb'"traceID"\s*:\s*"[0-9a-f]{16,32}"',
    rb'"scope_?[sS]pans"\s*:\s*\[',
    rb'"_?spanContext"\s*:\s*\{[^{}]*"traceId"\s*:',
    rb'"start_?[tT]ime"\s*:\s*\[\s*\d{9,10}\s*,',
    rb'"timestamp"\s*:\s*\d{15,16}(?:\.\d+)?\s*,\s*"duration"\s*:',
    rb'"start_timestamp"\s*:',
    rb'"context\.trace_id"\s*:',
    rb'"mlflow\.',
)
_RECOGNISED = re.compile(b"|".join(_MARKS))
BEGINS = re.compile(rb"^[ \t]*\[?\s*\{", re.MULTILINE)
"""On a line of its own: a program may have printed other things before its spans."""


class Otlp:
    """Files of OTLP JSON (a request a line, or a pretty one), and what SDKs and trace stores print."""

    name = "otel"
    resolution_ns = 1

    def recognises(self, beginning: bytes, path: Path) -> bool:
        del path
        beginning = beginning.removeprefix(b"\xef\xbb\xbf")
        return bool(BEGINS.search(beginning) and _RECOGNISED.search(beginning))

    def read(self, source: Source, content: bool) -> Iterator[Item | Skipped]:
        """The spans of a file. Raises `RecordError` where there is none, nor anything like one, in it."""
        read = 0
        for one in values(source):
            if isinstance(one, Skipped):
                yield one
                continue
            where = f"{source.name}:{one.line}"
            if not is_trace(one.data):
                other = isinstance(one.data, dict) and any(key in one.data for key in _OTHER_SIGNALS)
                yield Skipped(
                    "logs or metrics, not traces" if other else "neither a span nor spans", 1, where
                )
                read += other
            else:
                read += 1
                yield from _items(raws_of(one.data), content, where)
        if not read:
            raise RecordError(
                f"{source.name}: no spans in it: neither OTLP JSON nor what a tracing SDK prints"
            )

    def loops(self, items: Sequence[Item], content: bool) -> Iterator[LoopDraft | Skipped]:
        yield from loops_of([unpacked(item.data) for item in items], self.name, content)  # type: ignore[arg-type]


_OTHER_SIGNALS = ("resourceLogs", "resourceMetrics", "resource_logs", "resource_metrics")


def _items(raws: Iterable[Raw | None], content: bool, where: str) -> Iterator[Item | Skipped]:
    for raw in raws:
        if raw is None:
            yield Skipped("a span without ids or times", 1, where)
            continue
        span = span_of(raw, content)
        yield item_of(span)


def item_of(span: Span) -> Item:
    """A span on its way through an import: its trace, joined with others of its conversation."""
    return Item(
        group=span.trace,
        at_ns=span.started_ns,
        data=packed(span),
        id=span.id,
        version=span.ended_ns or 0,
        link=span.conversation or None,
    )
