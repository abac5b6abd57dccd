"""Records as OpenTelemetry spans and metrics, under the GenAI conventions (extra `otel`).

    invoke_agent {name}           a loop
      toolloop.round              a round, with its phases
        chat {model}              the model request; its attempts are events
          execute_tool {name}     a tool that the model's server ran, where a stream told its times
        execute_tool {name}       a call, from the moment it was through its limiter

The n calls of a round are n siblings. Things that the conventions have no name for (a round, queue
wait, strategy, fan-out) are under `toolloop.`; durations in attributes are seconds. Spans get their
times from the record; of a recording's, `toolloop.derived` and `toolloop.unknown` name those that were not
seen, and the duration of a span with `toolloop.upper_bound`, `toolloop.wait`, or `toolloop.ended` false, is
none of a tool.

Where an SDK, or an instrumentation of one, made a `chat` span of its own for a model request, none is
made here: `ForeignChats` finds that one, and the round links to it.

A call of an MCP server's tool is one `execute_tool` span too, with what the conventions for MCP say of the
request (`mcp.*`, `network.transport`). The request's own CLIENT span is the client's to make, as the official
SDK 2 does: `ForeignCalls` finds it, and the call links to it. Where the client makes none, as version 1 does,
there is none.
"""

from __future__ import annotations

import _thread
import atexit
import json
import logging
from _queue import Empty, SimpleQueue  # queue.SimpleQueue is gevent's in a patched process
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from profiler.anatomy import phases, remote_parts
from profiler.errors import UsageError
from profiler.loop.eventloop import native_sleep, start_native_thread, unpatched
from profiler.process.lifetime import at_exit, in_forked_child
from profiler.records import NO_MODEL, Attempt, LoopRecord, ModelCall, RoundRecord, ToolCall
from profiler.rundir import Anchor

try:
    from opentelemetry import context as otel_context
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import (
        Link,
        Span,
        SpanKind,
        StatusCode,
        TracerProvider,
        set_span_in_context,
    )

    from profiler.exporters.opentelemetry_foreign import ForeignCalls, ForeignChats
    from profiler.exporters.opentelemetry_metrics import (
        NETWORK_TRANSPORTS,
        TOOLS_CALL,
        Instruments,
        rpc_status,
    )
except ImportError as error:
    raise UsageError("OpenTelemetry is not installed: pip install 'toolcall-profiler[otel]'") from error

SCOPE = "toolcall-profiler"

MAX_QUEUED = 10_000
"""Records that wait for the sink's thread; more are dropped and counted."""

MAX_HELD = 1_000
"""Nested loops that wait for their parent to end; with more, the oldest are exported without it."""

REQUEST = "jsonrpc.request.id"

_NS = 1e9

_log = logging.getLogger(__name__)

Attributes = dict[str, Any]


@dataclass(slots=True)
class _Family:
    """The spans of one loop, among which nested loops have their parent.

    `calls`: the context of a call by the id of each loop that began in it; `rounds`: start, end and context;
    `whole`: that of the loop, None if it could not be exported.
    """

    whole: Context | None = None
    rounds: list[tuple[int, int, Context]] = field(default_factory=list)
    calls: dict[str, Context] = field(default_factory=dict)

    def place(self, record: LoopRecord, otherwise: Context) -> Context:
        """The context of a nested loop: the call that it began in, if none the round, or the whole loop."""
        if record.id in self.calls:
            return self.calls[record.id]
        for started_ns, ended_ns, context in self.rounds:
            if started_ns <= record.started_ns <= ended_ns:
                return context
        return self.whole or otherwise


class OpenTelemetrySink:
    """A sink that makes spans and metrics of records. Providers: the global ones, unless given.

    A loop makes some twenty spans and fifty measurements, a millisecond of work. So the loop's thread
    only puts the record into a queue (about a microsecond), and a native thread of this sink does the
    rest. How the spans are exported is up to the provider: `BatchSpanProcessor` queues 2,048 of them
    unless told otherwise, which is a hundred loops.

    A loop's span is a child of the span that is current where the loop runs. A loop that ran in a tool
    call of another one (`parent`) is held back until that one ends, and becomes a child of the call; one that
    goes on after that does so when it ends.

    `dropped` counts records that found the queue full or that failed. Call `close` before the providers
    are shut down; at the end of the process that happens by itself. `anchor` turns the records'
    monotonic times into wall-clock time; over hours the two drift apart as far as NTP corrects the clock.
    """

    waited_for = True

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
        self._chats, self._requests = ForeignChats(SCOPE), ForeignCalls(SCOPE)
        self._watching = self._watch()
        self._offset = (anchor if anchor is not None else Anchor.now()).unix(0)
        self._closed = False
        self._renew()
        in_forked_child(self._renew)
        at_exit(self.close)

    def _renew(self) -> None:
        """No thread runs, and nothing waits; what waits when a child is forked is exported by its parent."""
        self.dropped = 0
        self._queue: SimpleQueue[tuple[LoopRecord, Context] | None] = SimpleQueue()
        self._stopped: SimpleQueue[None] = SimpleQueue()
        self._held: dict[str, list[tuple[LoopRecord, Context]]] = {}
        self._late: dict[str, Context] = {}
        self._recorded: dict[str, _Family] = {}  # of recordings, whose loops come by their starts
        self._nowhere = 0
        self._starting = unpatched(_thread, "allocate_lock")()
        self._running = False
        self._chats.forget()
        self._requests.forget()

    def __call__(self, record: LoopRecord) -> None:
        if not self._running and not self._closed:
            self._start_thread()
        if self._closed or self._queue.qsize() >= MAX_QUEUED:
            self.dropped += 1
        else:
            self._queue.put((record, otel_context.get_current()))

    def _start_thread(self) -> None:
        """With the first record: a thread that was started before a fork would not be there after it."""
        with self._starting:
            if self._running:
                return
            self._running = True
        # Once more: a child of multiprocessing has a list of its own, and the provider may be younger.
        at_exit(self.close)
        try:
            start_native_thread(partial(self._work, self._queue))
        except RuntimeError:  # at a limit of threads, or at the end of the process
            self._running = False
            raise

    def close(self, timeout: float = 10.0) -> None:
        """Export the records that are left. Waits for that, up to `timeout` seconds."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        self._queue.put(None)
        if not self._running:
            return
        with suppress(Empty):
            self._stopped.get(timeout=timeout)
        if self._nowhere:
            _log.warning(
                "the spans of %d loops went nowhere, since OpenTelemetry has no tracer provider: set one "
                "(opentelemetry.trace.set_tracer_provider), or run under opentelemetry-instrument",
                self._nowhere,
            )

    def _work(self, queue: SimpleQueue[tuple[LoopRecord, Context] | None]) -> None:
        while (item := queue.get()) is not None:
            self._take(*item)
        while self._held:
            self._release(next(iter(self._held)))
        self._stopped.put(None)

    def _yield(self) -> None:
        """Let the event loop's thread run; it would have to wait up to 5 ms for the interpreter's lock."""
        # Not `SimpleQueue.get(timeout=1e-6)`: CPython 3.11 waits for ever when so short a time is over
        # before it has taken the queue's lock.
        native_sleep(1e-6)

    def _watch(self) -> bool:
        """False while the global provider is only a stand-in for one that the application will set."""
        provider = self._provider if self._provider is not None else trace.get_tracer_provider()
        return self._chats.watch(provider) and self._requests.watch(provider)

    def _take(self, record: LoopRecord, context: Context) -> None:
        if not self._watching and self._watch():
            self._watching = True
            at_exit(self.close)  # before the end of that provider, which has been made only now
        if self._provider is None and isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            self._nowhere += 1
        if record.parent is None:
            self._export(record, context)
            return
        late = self._late.pop(record.id, None)
        if late is not None:
            self._export(record, late)
            return
        if record.parent in self._recorded:
            self._export(record, self._recorded[record.parent].place(record, context))
            return
        # Its parent is still running, since a loop ends after its calls.
        self._held.setdefault(record.parent, []).append((record, context))
        if sum(map(len, self._held.values())) > MAX_HELD:
            self._release(next(iter(self._held)))

    def _release(self, parent: str) -> None:
        """Export loops whose parent did not come, under the span that was current where they ran."""
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
            family.calls.pop(nested.id, None)
        for id_, inner in family.calls.items():  # still running, though their calls have ended
            self._late[id_] = inner
            if len(self._late) > MAX_HELD:
                del self._late[next(iter(self._late))]
        if record.source:
            self._recorded[record.id] = family
            if len(self._recorded) > MAX_HELD:
                del self._recorded[next(iter(self._recorded))]

    def _start(
        self,
        name: str,
        context: Context,
        started_ns: int,
        attributes: Attributes,
        kind: SpanKind = SpanKind.INTERNAL,
        links: Sequence[Link] = (),
    ) -> tuple[Span, Context]:
        """A span, and the context inside it."""
        span = self._tracer.start_span(
            name, context, kind, attributes, links=links, start_time=started_ns + self._offset
        )
        return span, set_span_in_context(span, context)

    def _end(self, span: Span, ended_ns: int, status: str, error_type: str | None) -> None:
        if status != "ok" and error_type is not None:
            span.set_attribute("error.type", error_type)
        if status not in ("ok", "cancelled"):  # a cancellation is the application's wish, not a failure
            span.set_status(StatusCode.ERROR)
        span.end(ended_ns + self._offset)

    def _loop(self, record: LoopRecord, context: Context) -> _Family:
        name = f"invoke_agent {record.name}" if record.name else "invoke_agent"
        span, inner = self._start(name, context, record.started_ns, _loop_attributes(record))
        family = _Family(inner)
        total: Counter[str] = Counter()
        for round_ in record.rounds:
            spent = phases(round_)
            total.update(spent)
            if span.is_recording():
                self._round(record, round_, spent, inner, family)
            else:  # not sampled, but it counts in the metrics
                self._instruments.round(record, round_, inner)
                if round_.model.asked:
                    self._instruments.chat(record, round_.model, inner)
                for call in round_.tool_calls:
                    self._instruments.call(record, call, inner)
            self._yield()
        self._instruments.loop(record, total, inner)
        self._end(span, record.ended_ns, record.status, record.error_type)
        return family

    def _round(
        self,
        record: LoopRecord,
        round_: RoundRecord,
        spent: Mapping[str, int],
        context: Context,
        family: _Family,
    ) -> None:
        # The times of a recording are of another clock: no span that was made here is of its requests.
        foreign = self._chats.take(round_.model) if round_.model.asked and not record.source else None
        attributes = _present(
            {
                "toolloop.round.index": round_.index,
                "toolloop.round.fanout": len(round_.tool_calls),
                "toolloop.round.shortfall": round_.shortfall,
                "toolloop.strategy": record.strategy,
                "toolloop.status": round_.status,
                **{f"toolloop.phase.{phase}": value / _NS or None for phase, value in spent.items()},
            }
        )
        links = () if foreign is None else (Link(foreign),)
        span, inner = self._start("toolloop.round", context, round_.started_ns, attributes, links=links)
        family.rounds.append((round_.started_ns, round_.ended_ns, inner))
        self._instruments.round(record, round_, inner)
        if not round_.model.asked:
            pass
        elif foreign is None:
            self._chat(record, round_.model, inner)
        else:
            self._attempts(span, round_.model)
            self._server_tools(round_.model, inner)
            self._instruments.chat(record, round_.model, inner)
        for call in round_.tool_calls:
            made = self._call(record, call, inner)
            family.calls.update(dict.fromkeys(call.loops, made))
        self._end(span, round_.ended_ns, round_.status, None)

    def _chat(self, record: LoopRecord, model: ModelCall, context: Context) -> None:
        span, inner = self._start(
            f"chat {model.model}".rstrip(),
            context,
            model.started_ns,
            _chat_attributes(model),
            SpanKind.CLIENT,
        )
        self._attempts(span, model)
        self._server_tools(model, inner)
        self._instruments.chat(record, model, inner)
        self._end(span, model.ended_ns, model.status, model.error_type)

    def _server_tools(self, model: ModelCall, context: Context) -> None:
        for one in model.server_tools:
            if one.started_ns is None or one.ended_ns is None:
                continue
            attributes = {
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": one.name,
                "gen_ai.tool.type": "extension",
            }
            span, _ = self._start(f"execute_tool {one.name}", context, one.started_ns, attributes)
            span.end(one.ended_ns + self._offset)

    def _attempts(self, span: Span, model: ModelCall) -> None:
        for number, attempt in enumerate(model.attempts, start=1):
            span.add_event(
                "toolloop.attempt", _attempt_attributes(number, attempt), attempt.started_ns + self._offset
            )

    def _call(self, record: LoopRecord, call: ToolCall, context: Context) -> Context:
        attributes, links = _call_attributes(record, call), []
        if call.remote is not None and not record.source:
            request = self._requests.take(call)
            if request is not None and (made := request.get_span_context()) is not None:
                links.append(Link(made))
                attributes |= _present({REQUEST: (request.attributes or {}).get(REQUEST)})
        span, inner = self._start(
            f"execute_tool {call.name}", context, call.began_ns, attributes, links=links
        )
        self._instruments.call(record, call, inner)
        self._end(span, call.ended_ns, call.status, call.error_type)
        return inner


def _present(attributes: Mapping[str, Any]) -> Attributes:
    return {name: value for name, value in attributes.items() if value is not None}


def _times(names: Sequence[str]) -> tuple[str, ...] | None:
    """The times of a recording that were derived, or are unknown: `started_ns` is `started` here."""
    return tuple(name.removesuffix("_ns") for name in names) or None


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / _NS


def _loop_attributes(record: LoopRecord) -> Attributes:
    lag_ns = None if record.intended_ns is None else record.started_ns - record.due_ns
    return _present(
        {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.provider.name": None if record.provider == NO_MODEL else record.provider or None,
            "gen_ai.request.model": record.model or None,
            "gen_ai.agent.name": record.name or None,
            **_usage([round_.model for round_ in record.rounds if round_.model.asked]),
            "toolloop.loop.id": record.id,
            "toolloop.strategy": record.strategy,
            "toolloop.status": record.status,
            "toolloop.rounds": len(record.rounds),
            "toolloop.tool_calls": sum(len(r.tool_calls) for r in record.rounds),
            "toolloop.agent": record.agent or None,
            "toolloop.number": record.number,
            "toolloop.trial": record.trial,
            "toolloop.process": record.process or None,
            "toolloop.parent": record.parent,
            "toolloop.schedule_lag": _seconds(lag_ns),
            "toolloop.event_loop_lag": _seconds(record.lag_ns or None),
            "toolloop.source": record.source or None,
            "toolloop.resolution": _seconds(record.resolution_ns) if record.source else None,
            "toolloop.derived": _times(record.derived),
            # Content is in the record only if the user asked for it. The shape is the conventions'.
            "gen_ai.input.messages": _message("user", record.prompt),
            "gen_ai.output.messages": _message("assistant", record.text),
        }
    )


def _usage(models: Sequence[ModelCall]) -> dict[str, int | None]:
    """The tokens of model requests under the conventions' names; None where no reply said."""

    def known(counts: Iterable[int | None]) -> int | None:
        said = [count for count in counts if count is not None]
        return sum(said) if said else None

    return {
        "gen_ai.usage.input_tokens": known(model.input_tokens for model in models),
        "gen_ai.usage.cache_read.input_tokens": known(model.cached_tokens for model in models),
        "gen_ai.usage.cache_creation.input_tokens": known(model.cache_written_tokens for model in models),
        "gen_ai.usage.output_tokens": known(model.output_tokens for model in models),
        "gen_ai.usage.reasoning.output_tokens": known(model.reasoning_tokens for model in models),
    }


def _message(role: str, text: str | None) -> str | None:
    if text is None:
        return None
    return json.dumps([{"role": role, "parts": [{"type": "text", "content": text}]}], ensure_ascii=False)


def _chat_attributes(model: ModelCall) -> Attributes:
    return _present(
        {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": model.provider or None,
            "gen_ai.request.model": model.model or None,
            "gen_ai.request.stream": model.streamed or None,
            "gen_ai.response.time_to_first_chunk": _seconds(model.first_token_after_ns),
            "gen_ai.response.finish_reasons": None if model.finish_reason is None else (model.finish_reason,),
            **_usage([model]),
            "toolloop.time_to_first_output": _seconds(model.first_output_after_ns),
            "toolloop.unreadable": model.unreadable or None,
            "http.request.resend_count": model.attempt_count - 1 or None,
            "toolloop.derived": _times(model.derived),
            "toolloop.unknown": _times(model.unknown),
            "toolloop.request.id": model.request_id,
            "toolloop.status": model.status,
        }
    )


def _attempt_attributes(number: int, attempt: Attempt) -> Attributes:
    return _present(
        {
            "toolloop.attempt.number": number,
            "toolloop.attempt.duration": (attempt.ended_ns - attempt.started_ns) / _NS,
            "toolloop.attempt.retry_after": _seconds(attempt.retry_after_ns),
            "toolloop.request.id": attempt.request_id,
            "http.response.status_code": attempt.status,
            "error.type": attempt.error_type,
        }
    )


def _call_attributes(record: LoopRecord, call: ToolCall) -> Attributes:
    return _present(
        {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": call.name,
            "gen_ai.tool.call.id": call.id,
            "gen_ai.tool.type": "function",
            "gen_ai.tool.call.arguments": call.arguments,
            "gen_ai.tool.call.result": call.result,
            "toolloop.strategy": record.strategy,
            "toolloop.status": call.status,
            "toolloop.queue": _seconds(call.waited_ns),
            "toolloop.started": False if call.started_ns is None else None,
            "toolloop.ended": None if call.ended else False,
            "toolloop.upper_bound": call.upper_bound or None,
            "toolloop.wait": call.wait or None,
            "toolloop.derived": _times(call.derived),
            "toolloop.unknown": _times(call.unknown),
            "toolloop.thread_wait": _seconds(call.thread_wait_ns or None),
            "toolloop.blocking": _seconds(call.blocking_ns or None),
            **_remote_attributes(call),
        }
    )


def _remote_attributes(call: ToolCall) -> Attributes:
    """Attributes of a request to an MCP server: the conventions' names, ours for the parts of its time."""
    remote = call.remote
    if remote is None:
        return {}
    return {
        "gen_ai.tool.type": "extension",
        "mcp.method.name": TOOLS_CALL,
        "mcp.protocol.version": remote.protocol,
        "network.transport": NETWORK_TRANSPORTS.get(remote.transport),
        "network.protocol.name": "http" if remote.transport == "http" else None,
        "rpc.response.status_code": rpc_status(call.error_type),
        "http.response.status_code": remote.http_status,
        "toolloop.server": remote.server,
        "toolloop.server.sends": remote.sends if remote.sends != 1 else None,
        "toolloop.server.progress": remote.progress or None,
        "toolloop.server.reply": remote.reply,
        "toolloop.server.new_connection": remote.new_connection,
        **{f"toolloop.server.{part}": value / _NS for part, value in remote_parts(call).items()},
    }
