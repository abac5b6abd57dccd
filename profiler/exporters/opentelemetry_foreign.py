"""Spans that others made for what our records hold too: found as they start, so that none is made twice.

No record tells whether there is one, and guessing from versions and settings would be wrong sooner or later:
so the spans of a tracer provider are watched as they start, and each is matched with the model request, or
the call, during which it did.
"""

from __future__ import annotations

import time
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator, Mapping
from operator import itemgetter
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import SpanContext, SpanKind, TracerProvider

from profiler.exporters.opentelemetry_metrics import TOOLS_CALL
from profiler.records import ModelCall, ToolCall

OPERATIONS = frozenset({"chat", "generate_content", "text_completion"})

REQUEST_ID = "anthropic.request.id"

MAX_WATCHED = 16_384
"""Foreign spans kept for what may yet end; the oldest are forgotten (they were of no loop)."""

_Started = tuple[int, SdkSpan]
_at = itemgetter(0)


class _ForeignSpans(SpanProcessor):
    """Spans of a tracer provider that are `_wanted`, except those of scope `own`, until one is taken."""

    def __init__(self, own: str) -> None:
        self._own = own
        self._new: deque[_Started] = deque(maxlen=MAX_WATCHED)  # appends are atomic, from any thread
        self._watched: list[_Started] = []  # by start; for the sink's thread alone

    def watch(self, provider: TracerProvider) -> bool:
        """Start watching; False if the provider makes no spans (yet), so that there is nothing to watch."""
        add = getattr(provider, "add_span_processor", None)
        if add is None:
            return False
        add(self)
        return True

    def forget(self) -> None:
        """In a forked child: the spans so far are of the parent's requests."""
        self._new.clear()
        self._watched.clear()

    def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
        scope = span.instrumentation_scope
        if scope is not None and scope.name == self._own:
            return
        attributes = span.attributes
        if attributes and self._wanted(span, attributes):
            # A time on the record's own clock; the span's is wall-clock time, which may be set back.
            self._new.append((time.monotonic_ns(), span))

    def _wanted(self, span: SdkSpan, attributes: Mapping[str, Any]) -> bool:
        raise NotImplementedError

    def _within(self, started_ns: int, ended_ns: int) -> Iterator[tuple[int, SdkSpan]]:
        """The spans that started in this time, with their places in `_watched`."""
        while self._new:
            insort(self._watched, self._new.popleft(), key=_at)
        watched = self._watched
        for index in range(bisect_left(watched, started_ns, key=_at), len(watched)):
            at_ns, span = watched[index]
            if at_ns > ended_ns:
                break
            yield index, span

    def _trim(self) -> None:
        if len(self._watched) > MAX_WATCHED:
            del self._watched[: len(self._watched) - MAX_WATCHED]


class ForeignChats(_ForeignSpans):
    """The `chat` spans of others.

    anthropic 2.12 and later starts a span for every request (scope `com.anthropic.sdk.python`) as soon
    as there is a tracer provider, unless its client has `open_telemetry=False` or the environment
    `ANTHROPIC_OPEN_TELEMETRY=false`. Instrumentations of openai do the same.
    """

    def _wanted(self, span: SdkSpan, attributes: Mapping[str, Any]) -> bool:
        return attributes.get("gen_ai.operation.name") in OPERATIONS

    def take(self, call: ModelCall) -> SpanContext | None:
        """The span that was made for this request, which is then forgotten; None without one.

        On one event loop nothing runs between the start of a request and that of its span, so the first
        span to start within the request is its own. If both know the request's id, the ids must agree.
        """
        for index, span in self._within(call.started_ns, call.ended_ns):
            attributes = span.attributes or {}
            request_id = attributes.get(REQUEST_ID)
            if None not in (request_id, call.request_id) and request_id != call.request_id:
                continue
            if attributes.get("gen_ai.request.model", call.model) == call.model:
                del self._watched[index]
                return span.get_span_context()
        self._trim()
        return None


class ForeignCalls(_ForeignSpans):
    """The CLIENT spans of requests `tools/call`: mcp 2 makes one, scope `mcp-python-sdk`; fastmcp another."""

    def _wanted(self, span: SdkSpan, attributes: Mapping[str, Any]) -> bool:
        return span.kind is SpanKind.CLIENT and attributes.get("mcp.method.name") == TOOLS_CALL

    def take(self, call: ToolCall) -> SdkSpan | None:
        """The span of the request of this call, which is then forgotten; None without one.

        Its name ends in that of the tool. Of calls of one tool that began together, each gets one.
        """
        if call.started_ns is None:
            return None
        for index, span in self._within(call.started_ns, call.ended_ns):
            if span.name.endswith(f" {call.name}"):
                del self._watched[index]
                return span
        self._trim()
        return None
