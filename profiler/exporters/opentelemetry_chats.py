"""`chat` spans that others make: an SDK of its own accord, or an instrumentation of it.

anthropic 2.12 and later starts a span for every request (scope `com.anthropic.sdk.python`) as soon as
there is a tracer provider, unless its client has `open_telemetry=False` or the environment
`ANTHROPIC_OPEN_TELEMETRY=false`. Instrumentations of openai do the same. None can be told from a
record, and guessing from versions and settings would be wrong sooner or later: so the spans are
watched as they start, and each is matched with the model request within which it did.
"""

from __future__ import annotations

import time
from bisect import bisect_left, insort
from collections import deque
from operator import itemgetter

from opentelemetry.context import Context
from opentelemetry.sdk.trace import Span, SpanProcessor
from opentelemetry.trace import SpanContext, TracerProvider

from profiler.records import ModelCall

OPERATIONS = frozenset({"chat", "generate_content", "text_completion"})

REQUEST_ID = "anthropic.request.id"

MAX_WATCHED = 16_384
"""Spans kept for a request that may yet end; the oldest are forgotten (they were of no loop)."""

_Started = tuple[int, Span]
_at = itemgetter(0)


class ForeignChats(SpanProcessor):
    """The `chat` spans of a tracer provider, except those of scope `own`, until a request takes them."""

    def __init__(self, own: str) -> None:
        self._own = own
        self._new: deque[_Started] = deque(maxlen=MAX_WATCHED)  # appends are atomic, from any thread
        self._watched: list[_Started] = []  # by start; of the taking thread alone

    def watch(self, provider: TracerProvider) -> bool:
        """Start watching; False if the provider makes no spans (yet), so that there is nothing to watch."""
        add = getattr(provider, "add_span_processor", None)
        if add is None:
            return False
        add(self)
        return True

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        scope = span.instrumentation_scope
        if scope is not None and scope.name == self._own:
            return
        attributes = span.attributes
        if attributes and attributes.get("gen_ai.operation.name") in OPERATIONS:
            # A time on the record's own clock: the span's is wall-clock time, which may be set back.
            self._new.append((time.monotonic_ns(), span))

    def take(self, call: ModelCall) -> SpanContext | None:
        """The span that was made for this request, once; None if there is none.

        On one event loop nothing runs between the start of a request and that of its span, so the
        first span to start within the request is its own. Where both ids of a request are known
        they must agree.
        """
        while self._new:
            insort(self._watched, self._new.popleft(), key=_at)
        watched = self._watched
        for index in range(bisect_left(watched, call.started_ns, key=_at), len(watched)):
            started_ns, span = watched[index]
            if started_ns > call.ended_ns:
                break
            attributes = span.attributes or {}
            request_id = attributes.get(REQUEST_ID)
            if None not in (request_id, call.request_id) and request_id != call.request_id:
                continue
            if attributes.get("gen_ai.request.model", call.model) == call.model:
                del watched[index]
                return span.get_span_context()
        if len(watched) > MAX_WATCHED:
            del watched[: len(watched) - MAX_WATCHED]
        return None
