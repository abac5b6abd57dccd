"""A profiler for a loop that exists already: it watches, and changes nothing about how the loop runs.

    prof = Profiler()
    client = prof.instrument(AsyncOpenAI())
    get_weather = prof.tool(get_weather)
    with prof.loop("support-agent"):
        ...                                 # the loop as it was

Model requests are observed at the transport of the SDK's HTTP client, tool calls in the wrapped
functions; contextvars tell which loop they belong to, through tasks, `gather`, `TaskGroup` and
`to_thread`. In a thread without that context, calls are matched by name and arguments.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakSet

import httpx2

from profiler.errors import UsageError
from profiler.limits.gate import current_slot
from profiler.limits.refusals import returned_failure
from profiler.loop.calls import arguments_text
from profiler.loop.eventloop import TimedCoroutine
from profiler.loop.model import LOOP_HEADER, TRIAL_HEADER, CallRequest, current_probe
from profiler.loop.recorder import Recorder, Sink
from profiler.loop.tools import CallContext, Tool, current_call, failure_type, is_async, result_text
from profiler.providers import refuse_httpx
from profiler.providers.attempts import (
    AsyncObservedTransport,
    ObservedTransport,
    transports,
    with_attempts,
)
from profiler.providers.wire import (
    Api,
    EventReader,
    ObservedReply,
    api_of,
    read_json,
    requested_model,
    requested_prompt,
)
from profiler.records import Clock, Status
from profiler.redaction import Content, Redact
from profiler.watch.loop import Match, ObservedCall, ObservedLoop, ObservedRound, bound_arguments

if TYPE_CHECKING:
    from profiler.exporters.prometheus import PrometheusSink

T = TypeVar("T")

_RETRY_HEADER = b"x-stainless-retry-count"


class Profiler:
    """Watches loops, and hands a `LoopRecord` of each to the sinks when it ends.

    `sinks` None: Prometheus, in prometheus-client's default registry (`metrics` is that sink).
    With `record_content` the records hold prompts, arguments and results (not the final answer), each
    passed through `redact` and cut at `profiler.redaction.MOST_CHARACTERS`. `orphan_calls` counts calls
    that ran while no loop of this profiler could have asked for them.
    """

    def __init__(
        self,
        sinks: Sequence[Sink] | None = None,
        *,
        record_content: bool = False,
        redact: Redact | None = None,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        self.metrics: PrometheusSink | None = None
        if sinks is None:
            from profiler.exporters.prometheus import PrometheusSink, register

            self.metrics = register(PrometheusSink())
            sinks = [self.metrics]
        self.recorder = Recorder(sinks, clock)
        self.orphan_calls = 0
        self._content = Content(redact) if record_content else None
        self._open: WeakSet[ObservedLoop] = WeakSet()
        self._loop: ContextVar[ObservedLoop | None] = ContextVar("toolloop_observed_loop", default=None)
        self._round: ContextVar[ObservedRound | None] = ContextVar("toolloop_observed_round", default=None)

    def loop(
        self,
        name: str = "",
        *,
        strategy: str = "application",
        agent: str = "",
        number: int | None = None,
        trial: int | None = None,
    ) -> LoopContext:
        """A context manager, sync or async, around one pass of the loop.

        `strategy` labels its metrics. A loop inside the context of another one is its child. With a
        `number` its requests tell an emulator which work they belong to.
        """
        return LoopContext(
            self,
            {"name": name, "strategy": strategy, "agent": agent, "number": number, "trial": trial},
        )

    def instrument(self, client: T) -> T:
        """Watch the requests of an `OpenAI`, `AsyncOpenAI`, `Anthropic` or `AsyncAnthropic` client.

        Returns the same client. Doing it twice is harmless. Raises `UsageError` for an object without
        the SDKs' kind of HTTP client.
        """
        http_client = _http_client(client)
        for put, transport in transports(http_client):
            if getattr(transport, "owner", None) is not self:
                asynchronous = isinstance(transport, httpx2.AsyncBaseTransport)
                observed = AsyncObservedTransport if asynchronous else ObservedTransport
                put(observed(with_attempts(transport), partial(_watched, self), self, transport))
        return client

    def uninstrument(self, client: T) -> T:
        """Restore the client as it was before `instrument`. Returns it."""
        for put, transport in transports(_http_client(client)):
            if getattr(transport, "owner", None) is self:
                put(transport.original)
        return client

    def tool(self, function: T) -> T:
        """Watch the calls of a function, a method or a `Tool`, sync or async.

        Returns one with the same signature, docstring and behaviour.
        """
        if isinstance(function, Tool):
            return cast(T, function.replaced(self.tool(function.function)))
        if not callable(function):
            raise UsageError(f"not a function: {function!r}")
        if getattr(function, "__toolloop_profiler__", None) is self:
            return function
        name = getattr(function, "__name__", type(function).__name__)
        signature = inspect.signature(function)
        wrapped: Any
        if is_async(function):

            @functools.wraps(function)
            async def wrapped(*args: Any, **kwargs: Any) -> Any:
                with self._call(name, bound_arguments(signature, args, kwargs)) as call:
                    timed = TimedCoroutine(function(*args, **kwargs), self.recorder.clock)
                    try:
                        return self._returned(call, await timed)
                    finally:
                        call.blocking_ns = timed.blocking_ns
        else:

            @functools.wraps(function)
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                with self._call(name, bound_arguments(signature, args, kwargs)) as call:
                    return self._returned(call, function(*args, **kwargs))

        wrapped.__toolloop_profiler__ = self
        return cast(T, wrapped)

    @contextmanager
    def _call(self, name: str, arguments: dict[str, Any]) -> Iterator[ObservedCall]:
        """Around one run of a wrapped tool; an exception of the tool is passed on to its caller."""
        loop, call = self._begin_call(name, arguments)
        content, tokens = self._content, None
        if loop is not None:
            if content is not None and call.request.arguments != "":
                call.arguments = content.keep(arguments_text(call.request.arguments))
            context = CallContext(call.request.id, call.request.name, loop.number, loop.trial)
            tokens = self._loop.set(loop), current_call.set(context)
        try:
            yield call
        except BaseException as error:
            call.status = "timeout" if isinstance(error, TimeoutError) else "error"
            if isinstance(error, asyncio.CancelledError):
                call.status = "cancelled"
            call.error_type = failure_type(error) if call.status == "error" else call.status
            # A limiter learns of it here: the application may turn the failure into a result.
            if (slot := current_slot.get()) is not None:
                slot.failed(error)
            if content is not None:
                call.result = content.keep(f"Error: {type(error).__name__}: {error}")
            raise
        finally:
            if tokens is not None:
                self._loop.reset(tokens[0])
                current_call.reset(tokens[1])
            call.ended_ns = self.recorder.clock()

    def _returned(self, call: ObservedCall, value: T) -> T:
        """The tool has returned `value`; returns it."""
        returned = returned_failure(value)
        if returned is not None:
            if (slot := current_slot.get()) is not None:
                slot.learn(returned.signal, returned.retry_after_ns)
            if returned.error_type is not None:
                call.status = "timeout" if returned.error_type == "timeout" else "error"
                call.error_type = returned.error_type
        if self._content is not None:
            call.result = self._content.keep(result_text(value))
        return value

    def _begin_call(self, name: str, arguments: dict[str, Any]) -> tuple[ObservedLoop | None, ObservedCall]:
        """The loop that a starting tool works for, None if it is an orphan, and its call."""
        loop = self._loop.get()
        if loop is not None:
            return loop, loop.begin_call(name, loop.match(name, arguments))
        # A thread without the context of a loop: find the open loop that asked for this call.
        certain: list[tuple[ObservedLoop, Match]] = []
        possible: list[tuple[ObservedLoop, Match]] = []
        for candidate in list(self._open):
            found = candidate.match(name, arguments)
            if found is not None:
                (certain if found[2] else possible).append((candidate, found))
        candidates = certain or possible
        if not candidates:
            self.orphan_calls += 1
            return None, ObservedCall(CallRequest("", name, ""), 0, 0)
        loop, (round_, index, sure) = min(candidates, key=lambda c: c[0].started_ns)
        return loop, loop.begin_call(name, (round_, index, sure and len(candidates) == 1))

    def serve_metrics(self, port: int, host: str = "127.0.0.1") -> int:
        """Serve `/metrics` from a thread of its own; port 0 takes a free one. Returns the port."""
        if self.metrics is None:
            raise UsageError("this Profiler was given sinks of its own: call serve() of its Prometheus sink")
        return self.metrics.serve(port, host)


class LoopContext:
    """One pass of a loop, between enter and exit. Use it once. `options` are those of `ObservedLoop`."""

    def __init__(self, profiler: Profiler, options: dict[str, Any]) -> None:
        self._profiler = profiler
        self._options = options
        self._loop: ObservedLoop | None = None
        self._token: Token[ObservedLoop | None] | None = None

    def __enter__(self) -> ObservedLoop:
        profiler = self._profiler
        self._loop = loop = ObservedLoop(profiler.recorder.clock, **self._options)
        parent = profiler._loop.get()
        if parent is not None:
            loop.parent = parent.id
            loop.number = parent.number if loop.number is None else loop.number
            loop.trial = parent.trial if loop.trial is None else loop.trial
        profiler._open.add(loop)
        self._token = profiler._loop.set(loop)
        in_event_loop = asyncio._get_running_loop() is not None  # there is no lag to sample in sync code
        self._sampler = profiler.recorder.enter() if in_event_loop else None
        return loop

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        profiler, loop = self._profiler, self._loop
        assert loop is not None
        try:
            if self._token is not None:
                profiler._loop.reset(self._token)
        except ValueError:
            pass  # left in another context than the one it was entered in, as async generators may
        profiler._open.discard(loop)
        lag_ns = self._sampler.leave(loop.started_ns) if self._sampler is not None else 0
        status: Status = "ok"
        if kind is not None:
            cancelled = issubclass(kind, asyncio.CancelledError | GeneratorExit)
            status = "cancelled" if cancelled else "error"
        profiler.recorder.emit(loop.record(status, kind.__name__ if kind is not None else None, lag_ns))

    async def __aenter__(self) -> ObservedLoop:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)


@dataclass(slots=True, eq=False)
class _WatchedRequest:
    """One attempt of a watched model request, as an `Observation` of `profiler.providers.attempts`."""

    api: Api
    round: ObservedRound
    clock: Clock
    ok: bool = False
    ended: bool = False
    events: EventReader | None = None
    chunks: list[bytes] = field(default_factory=list)
    head: tuple[int, Any] | None = None  # status and headers of a compressed response

    def begin(self) -> Callable[[], None]:
        return partial(current_probe.reset, current_probe.set(self.round.probe))

    def responded(self, response: Any) -> None:
        self.ok = response.status_code < 400
        self.round.error_type = None if self.ok else f"http_{response.status_code}"
        # Not `response.headers`: each look-up there decodes all headers.
        streamed = False
        for name, value in response.headers.raw:
            lower = name.lower()
            if lower == b"content-type":
                streamed = value.startswith(b"text/event-stream")
            elif lower == b"content-encoding":
                self.head = (response.status_code, response.headers)
        if streamed:
            self.round.streamed = True
            self.events = EventReader(self.api, self.round.probe.token, self._call_complete)

    def _call_complete(self, request: CallRequest) -> None:
        now = self.clock()
        self.round.probe.call_complete(request)
        self.round.unclaimed.append((request, now))

    def on_chunk(self, data: bytes) -> None:
        if self.events is not None and self.head is None:
            self.events.feed(data)
        elif self.ok:
            self.chunks.append(data)

    def end(self, error: BaseException | None = None) -> None:
        """The body has been read or given up, or has failed. Only the first call counts."""
        if self.ended:
            return
        self.ended = True
        round_ = self.round
        round_.ended_ns = self.clock()
        if error is not None:
            if not isinstance(error, asyncio.CancelledError):
                attempts = round_.probe.attempts
                round_.error_type = (attempts[-1].error_type if attempts else None) or "connection"
            return
        if not self.ok:
            return
        round_.reply = self._read()
        if not round_.reply.complete and round_.error_type is None:
            round_.error_type = "truncated_stream" if round_.streamed else "unreadable"

    def _read(self) -> ObservedReply:
        body = b"".join(self.chunks)
        if self.head is not None:  # only now can it be decompressed, by httpx2's own decoders
            body = httpx2.Response(self.head[0], headers=self.head[1], content=body).content
        if self.events is not None:
            if body:
                self.events.feed(body)
            return self.events.observed
        observed = read_json(self.api, body)
        now = self.clock()
        self.round.unclaimed.extend((request, now) for request in observed.calls)
        return observed


def _watched(profiler: Profiler, request: httpx2.Request) -> _WatchedRequest | None:
    """Begin to watch a request. None outside a loop, for other paths, and under another observer."""
    loop = profiler._loop.get()
    if loop is None or current_probe.get() is not None:
        return None
    api = api_of(request.url.path) if request.method == "POST" else None
    if api is None:
        return None
    clock = profiler.recorder.clock
    round_ = profiler._round.get()
    if round_ is None or round_ not in loop.rounds[-8:] or not _is_retry(request):
        round_ = loop.begin_round(api, requested_model(request.content))
        if profiler._content is not None and loop.prompt is None:
            prompt = requested_prompt(request.content)
            loop.prompt = None if prompt is None else profiler._content.keep(prompt)
        # The SDK's retries run in this same context, and find the round that they belong to here.
        profiler._round.set(round_)
    if loop.number is not None:
        request.headers[LOOP_HEADER] = str(loop.number)
        if loop.trial is not None:
            request.headers[TRIAL_HEADER] = str(loop.trial)
    return _WatchedRequest(api, round_, clock)


def _is_retry(request: httpx2.Request) -> bool:
    # Not `request.headers`: a look-up there decodes all headers first.
    return any(name.lower() == _RETRY_HEADER and value != b"0" for name, value in request.headers.raw)


def _http_client(client: Any) -> Any:
    http_client = getattr(client, "_client", None)
    if not isinstance(http_client, httpx2.AsyncClient | httpx2.Client):
        refuse_httpx(client)
        raise UsageError(
            f"cannot instrument {type(client).__name__}: expected an OpenAI, AsyncOpenAI, Anthropic or "
            "AsyncAnthropic client"
        )
    return http_client
