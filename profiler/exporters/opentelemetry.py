"""Records as OpenTelemetry spans and metrics, under the GenAI conventions (extra `otel`).

    invoke_agent {name}           a loop
      toolloop.round              a round, with its phases
        chat {model}              the model request; its attempts are events
        execute_tool {name}       a call, from the moment it was through its limiter

The n calls of a round are n siblings. What the conventions have no name for (a round, queue
wait, strategy, fan-out) is under `toolloop.`; durations in attributes are seconds. Spans get
their times from the record.
"""

from __future__ import annotations

import atexit
import json
import logging
import time
from _queue import Empty, SimpleQueue  # queue.SimpleQueue is gevent's in a patched process
from bisect import bisect_left, insort
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from profiler.anatomy import phases
from profiler.errors import UsageError
from profiler.loop.eventloop import start_native_thread
from profiler.records import Attempt, LoopRecord, ModelCall, RoundRecord, ToolCall
from profiler.rundir import Anchor

try:
    from opentelemetry import context as otel_context
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.sdk.trace import Span as SdkSpan
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import (
        Link,
        Span,
        SpanContext,
        SpanKind,
        StatusCode,
        TracerProvider,
        set_span_in_context,
    )

    from profiler.exporters.opentelemetry_metrics import Instruments
except ImportError as error:
    raise UsageError("OpenTelemetry is not installed: pip install 'toolcall-profiler[otel]'") from error

SCOPE = "toolcall-profiler"

MAX_QUEUED = 10_000
"""Records that wait for the thread; more are dropped and counted."""

MAX_HELD = 1_000
"""Nested loops that wait for their parent to end; beyond that the oldest go out without it."""

_NS = 1e9

_log = logging.getLogger(__name__)

Attributes = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Placed:
    """A span that a nested loop may belong under."""

    name: str
    started_ns: int
    ended_ns: int
    context: Context


@dataclass(slots=True)
class _Family:
    """The spans of one loop as nested loops look for their parent among them."""

    rounds: list[_Placed] = field(default_factory=list)
    calls: list[_Placed] = field(default_factory=list)

    def place(self, record: LoopRecord, otherwise: Context) -> Context:
        """Where a nested loop belongs: the call it ran in; its round, if several could be that call."""
        around = [
            call
            for call in self.calls
            if call.started_ns <= record.started_ns and record.ended_ns <= call.ended_ns
        ]
        if len(around) > 1:
            around = [call for call in around if call.name == record.name] or around
        if len(around) == 1:
            return around[0].context
        for round_ in self.rounds:
            if round_.started_ns <= record.started_ns <= round_.ended_ns:
                return round_.context
        return otherwise


class OpenTelemetrySink:
    """A sink that makes spans and metrics of records. Providers: the global ones, unless given.

    A loop makes some twenty spans and fifty measurements, a millisecond of work. So the loop's
    thread only puts the record into a queue (about a microsecond) and a native thread of this sink
    does the rest. How the spans are exported is the provider's business: `BatchSpanProcessor` queues
    2,048 of them unless told otherwise, which is a hundred loops.

    A loop becomes a child of the span that is current where it runs. A loop that ran in a tool call of
    another (`parent`) is held back until that one ends, and becomes a child of the call.

    Where an SDK or an instrumentation made a `chat` span of its own for a model request, with the
    same tracer provider, none is made here: the round links to that one.

    `dropped` counts records that found the queue full or that failed. Call `close` before the providers are
    shut down; at the end of the process that happens by itself. `anchor` turns the records'
    monotonic times into wall-clock time; over hours the two may drift apart by what NTP corrects.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        *,
        anchor: Anchor | None = None,
    ) -> None:
        self.dropped = 0
        self._provider = tracer_provider
        self._tracer = trace.get_tracer(SCOPE, tracer_provider=tracer_provider)
        self._instruments = Instruments(meter_provider, SCOPE)
        self._chats = ForeignChats(SCOPE)
        self._watching = self._watch()
        anchor = anchor if anchor is not None else Anchor.now()
        self._offset = anchor.unix_ns - anchor.monotonic_ns
        self._queue: SimpleQueue[tuple[LoopRecord, Context] | None] = SimpleQueue()
        self._stopped: SimpleQueue[None] = SimpleQueue()
        self._breath: SimpleQueue[None] = SimpleQueue()
        self._closed = False
        self._held: dict[str, list[tuple[LoopRecord, Context]]] = {}
        atexit.register(self.close)
        start_native_thread(self._work)

    def __call__(self, record: LoopRecord) -> None:
        if self._closed or self._queue.qsize() >= MAX_QUEUED:
            self.dropped += 1
        else:
            self._queue.put((record, otel_context.get_current()))

    def close(self, timeout: float = 10.0) -> None:
        """Make spans and metrics of what is left. Waits for that, up to `timeout` seconds."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        self._queue.put(None)
        with suppress(Empty):
            self._stopped.get(timeout=timeout)

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            self._take(*item)
        while self._held:
            self._release(next(iter(self._held)))
        self._stopped.put(None)

    def _yield(self) -> None:
        """Let the event loop's thread run: the interpreter would make it wait for up to 5 ms."""
        with suppress(Empty):
            self._breath.get(timeout=1e-6)

    def _watch(self) -> bool:
        """False while the global provider is one that stands in for what the application has yet to set."""
        return self._chats.watch(
            self._provider if self._provider is not None else trace.get_tracer_provider()
        )

    def _take(self, record: LoopRecord, context: Context) -> None:
        self._watching = self._watching or self._watch()
        if record.parent is None:
            self._export(record, context)
            return
        # Its parent is still running: a loop ends after the calls it waits for.
        self._held.setdefault(record.parent, []).append((record, context))
        if sum(map(len, self._held.values())) > MAX_HELD:
            self._release(next(iter(self._held)))

    def _release(self, parent: str) -> None:
        """Export loops whose parent did not come: where they ran, as far as that is known."""
        for record, context in self._held.pop(parent):
            self._export(record, context)

    def _export(self, record: LoopRecord, context: Context) -> None:
        try:
            family = self._loop(record, context)
        except Exception:
            self.dropped += 1
            if self.dropped == 1:
                _log.exception("a record could not be exported; later failures are only counted")
            family = _Family()
        for nested, own in self._held.pop(record.id, ()):
            self._export(nested, family.place(nested, own))

    def _loop(self, record: LoopRecord, context: Context) -> _Family:
        span = self._tracer.start_span(
            f"invoke_agent {record.name}" if record.name else "invoke_agent",
            context,
            SpanKind.INTERNAL,
            _loop_attributes(record),
            start_time=record.started_ns + self._offset,
        )
        inner = set_span_in_context(span, context)
        family = _Family()
        total: Counter[str] = Counter()
        for round_ in record.rounds:
            spent = phases(round_)
            total.update(spent)
            if span.is_recording():
                self._round(record, round_, spent, inner, family)
            else:  # not sampled: its metrics count all the same
                self._instruments.round(record, round_, inner)
                self._instruments.chat(record, round_.model, inner)
                for call in round_.tool_calls:
                    self._instruments.call(record, call, inner)
            self._yield()
        self._instruments.loop(record, total, inner)
        _finish(span, record.status, record.error_type)
        span.end(record.ended_ns + self._offset)
        return family

    def _round(
        self,
        record: LoopRecord,
        round_: RoundRecord,
        spent: dict[str, int],
        context: Context,
        family: _Family,
    ) -> None:
        foreign = self._chats.take(round_.model)
        attributes: Attributes = {
            "toolloop.round.index": round_.index,
            "toolloop.round.fanout": len(round_.tool_calls),
            "toolloop.strategy": record.strategy,
            "toolloop.status": round_.status,
        }
        for phase, value in spent.items():
            if value:
                attributes[f"toolloop.phase.{phase}"] = value / _NS
        if round_.shortfall is not None:
            attributes["toolloop.round.shortfall"] = round_.shortfall
        span = self._tracer.start_span(
            "toolloop.round",
            context,
            SpanKind.INTERNAL,
            attributes,
            links=() if foreign is None else (Link(foreign),),
            start_time=round_.started_ns + self._offset,
        )
        inner = set_span_in_context(span, context)
        family.rounds.append(_Placed("", round_.started_ns, round_.ended_ns, inner))
        self._instruments.round(record, round_, inner)
        if foreign is None:
            self._chat(record, round_.model, inner)
        else:
            self._attempts(span, round_.model)
            self._instruments.chat(record, round_.model, inner)
        for call in round_.tool_calls:
            made = self._call(record, call, inner)
            family.calls.append(_Placed(call.name, call.began_ns, call.ended_ns, made))
        _finish(span, round_.status, None)
        span.end(round_.ended_ns + self._offset)

    def _chat(self, record: LoopRecord, model: ModelCall, context: Context) -> None:
        span = self._tracer.start_span(
            f"chat {model.model}",
            context,
            SpanKind.CLIENT,
            _chat_attributes(model),
            start_time=model.started_ns + self._offset,
        )
        self._attempts(span, model)
        self._instruments.chat(record, model, set_span_in_context(span, context))
        _finish(span, model.status, model.error_type)
        span.end(model.ended_ns + self._offset)

    def _attempts(self, span: Span, model: ModelCall) -> None:
        for number, attempt in enumerate(model.attempts, start=1):
            span.add_event(
                "toolloop.attempt", _attempt_attributes(number, attempt), attempt.started_ns + self._offset
            )

    def _call(self, record: LoopRecord, call: ToolCall, context: Context) -> Context:
        span = self._tracer.start_span(
            f"execute_tool {call.name}",
            context,
            SpanKind.INTERNAL,
            _call_attributes(record, call),
            start_time=call.began_ns + self._offset,
        )
        inner = set_span_in_context(span, context)
        self._instruments.call(record, call, inner)
        _finish(span, call.status, call.error_type)
        span.end(call.ended_ns + self._offset)
        return inner


def _loop_attributes(record: LoopRecord) -> Attributes:
    attributes: Attributes = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": record.provider,
        "gen_ai.request.model": record.model,
        "toolloop.loop.id": record.id,
        "toolloop.strategy": record.strategy,
        "toolloop.status": record.status,
        "toolloop.rounds": len(record.rounds),
        "toolloop.tool_calls": sum(len(r.tool_calls) for r in record.rounds),
    }
    read = [r.model.input_tokens for r in record.rounds if r.model.input_tokens is not None]
    written = [r.model.output_tokens for r in record.rounds if r.model.output_tokens is not None]
    optional = {
        "gen_ai.agent.name": record.name or None,
        "gen_ai.usage.input_tokens": sum(read) if read else None,
        "gen_ai.usage.output_tokens": sum(written) if written else None,
        "toolloop.agent": record.agent or None,
        "toolloop.number": record.number,
        "toolloop.trial": record.trial,
        "toolloop.process": record.process or None,
        "toolloop.parent": record.parent,
        "toolloop.schedule_lag": (
            None if record.intended_ns is None else (record.started_ns - record.due_ns) / _NS
        ),
        "toolloop.event_loop_lag": record.lag_ns / _NS if record.lag_ns else None,
        # Content, which is in the record only where the user asked for it. The shape is the conventions'.
        "gen_ai.input.messages": _message("user", record.prompt),
        "gen_ai.output.messages": _message("assistant", record.text),
    }
    return attributes | {key: value for key, value in optional.items() if value is not None}


def _message(role: str, text: str | None) -> str | None:
    if text is None:
        return None
    return json.dumps([{"role": role, "parts": [{"type": "text", "content": text}]}], ensure_ascii=False)


def _chat_attributes(model: ModelCall) -> Attributes:
    attributes: Attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": model.provider,
        "gen_ai.request.model": model.model,
        "toolloop.status": model.status,
    }
    if model.streamed:
        attributes["gen_ai.request.stream"] = True
    if model.first_token_after_ns is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = model.first_token_after_ns / _NS
    if model.finish_reason is not None:
        attributes["gen_ai.response.finish_reasons"] = (model.finish_reason,)
    if model.input_tokens is not None:
        attributes["gen_ai.usage.input_tokens"] = model.input_tokens
    if model.output_tokens is not None:
        attributes["gen_ai.usage.output_tokens"] = model.output_tokens
    if model.request_id is not None:
        attributes["toolloop.request.id"] = model.request_id
    if len(model.attempts) > 1:
        attributes["http.request.resend_count"] = len(model.attempts) - 1
    return attributes


def _attempt_attributes(number: int, attempt: Attempt) -> Attributes:
    attributes: Attributes = {
        "toolloop.attempt.number": number,
        "toolloop.attempt.duration": (attempt.ended_ns - attempt.started_ns) / _NS,
    }
    if attempt.status is not None:
        attributes["http.response.status_code"] = attempt.status
    if attempt.error_type is not None:
        attributes["error.type"] = attempt.error_type
    if attempt.request_id is not None:
        attributes["toolloop.request.id"] = attempt.request_id
    if attempt.retry_after_ns is not None:
        attributes["toolloop.attempt.retry_after"] = attempt.retry_after_ns / _NS
    return attributes


def _call_attributes(record: LoopRecord, call: ToolCall) -> Attributes:
    attributes: Attributes = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": call.name,
        "gen_ai.tool.call.id": call.id,
        "gen_ai.tool.type": "function",
        "toolloop.strategy": record.strategy,
        "toolloop.status": call.status,
        "toolloop.queue": call.waited_ns / _NS,
    }
    if call.started_ns is None:
        attributes["toolloop.started"] = False
    if call.thread_wait_ns:
        attributes["toolloop.thread_wait"] = call.thread_wait_ns / _NS
    if call.blocking_ns:
        attributes["toolloop.blocking"] = call.blocking_ns / _NS
    if call.arguments is not None:
        attributes["gen_ai.tool.call.arguments"] = call.arguments
    if call.result is not None:
        attributes["gen_ai.tool.call.result"] = call.result
    return attributes


def _finish(span: Span, status: str, error_type: str | None) -> None:
    if status == "ok":
        return
    if error_type is not None:
        span.set_attribute("error.type", error_type)
    if status != "cancelled":  # stopped by the application: nothing failed
        span.set_status(StatusCode.ERROR)


# `chat` spans that others make: an SDK of its own accord, or an instrumentation of it.
#
# anthropic 2.12 and later starts a span for every request (scope `com.anthropic.sdk.python`) as soon as
# there is a tracer provider, unless its client has `open_telemetry=False` or the environment
# `ANTHROPIC_OPEN_TELEMETRY=false`. Instrumentations of openai do the same. None can be told from a
# record, and guessing from versions and settings would be wrong sooner or later: so the spans are
# watched as they start, and each is matched with the model request within which it did.

OPERATIONS = frozenset({"chat", "generate_content", "text_completion"})

REQUEST_ID = "anthropic.request.id"

MAX_WATCHED = 16_384
"""Spans kept for a request that may yet end; the oldest are forgotten (they were of no loop)."""

_Started = tuple[int, SdkSpan]
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

    def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
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
