"""A profiler for a loop that exists already: it watches, and changes nothing about how the loop runs.

    prof = Profiler()
    client = prof.instrument(AsyncOpenAI())
    get_weather = prof.tool(get_weather)
    with prof.loop("support-agent"):
        ...                                 # the loop as it was

Model requests are observed at the transport of the SDK's HTTP client, tool calls in the wrapped
functions; contextvars tell which loop they belong to, through tasks, `gather`, `TaskGroup` and
`to_thread`. In a thread without that context, a call belongs to the loop that asked for it by name and
arguments.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from inspect import Signature
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast, overload
from weakref import WeakValueDictionary

import httpx2
from msgspec.structs import replace

from profiler.errors import UsageError
from profiler.limits.gate import current_slot
from profiler.loop import nesting
from profiler.loop.boundary import Boundary, Part
from profiler.loop.calls import arguments_text
from profiler.loop.lag import LagSampler, StopSampler
from profiler.loop.model import LOOP_HEADER, TRIAL_HEADER, CallRequest, current_probe
from profiler.loop.recorder import Recorder, Sink
from profiler.loop.tools import Tool, current_call
from profiler.process.lifetime import in_forked_child
from profiler.providers import refuse_httpx, refuse_invoke_model
from profiler.providers.attempts import (
    AsyncObservedTransport,
    Guard,
    ObservedTransport,
    transports,
    with_attempts,
)
from profiler.providers.wire import api_of, requested_model, requested_prompt
from profiler.records import Clock, LoopRecord
from profiler.redaction import Content, Redact
from profiler.watch import frameworks, mcp, mcp_owners
from profiler.watch.arguments import CONTRADICTED, FITTING, POSSIBLE, Fit, bound_arguments
from profiler.watch.auto import Automatic, Found, OfferedTool, OnClient, finder
from profiler.watch.context import LoopContext
from profiler.watch.conversations import Conversations
from profiler.watch.dispatch import Dispatch, Given
from profiler.watch.frameworks import describe
from profiler.watch.loop import Match, ObservedLoop
from profiler.watch.requests import WatchedRequest, body_of, is_retry
from profiler.watch.rounds import ObservedCall, ObservedRound, handed_over
from profiler.watch.runs import Held, ToolRun, Watching
from profiler.watch.sinks import sinks_of
from profiler.watch.tools import code_of, name_of, signature_of, unwatched_of, watched

if TYPE_CHECKING:
    from profiler.exporters.prometheus import PrometheusSink

T = TypeVar("T")
R = TypeVar("R", bound=ToolRun)


class Profiler:
    """Watches loops, and hands a `LoopRecord` of each to the sinks when it ends.

    `sinks` are those that are given, and what keywords add: `records` a file of JSON lines, if its name ends
    in `.jsonl`, else a directory in which each process makes one of its own; `prometheus` metrics in
    prometheus-client's default registry (`metrics` is that sink); `otel` spans and metrics of OpenTelemetry's
    global providers (extra `otel`). With none of all these it is Prometheus. Raises `UsageError` for records
    that cannot be written there, and where OpenTelemetry is not installed.

    With `record_content` the records hold prompts, arguments and results (not the final answer), each
    passed through `redact` and cut at `profiler.redaction.MOST_CHARACTERS`. `orphan_calls` counts calls
    that ran outside every loop, while none of this profiler could have asked for them; the next record has
    those since the last one. `failures` counts what could not be watched because the watching itself failed,
    by what it was (`profiler.loop.boundary.Part`): the application has not noticed, but records lack it.

    `hold`, where it is set, is asked with the name of each watched tool that is about to run outside every
    slot of a limiter and every callable that was handed over, and with its MCP server's where it has one: the
    run waits in what it returns (None: it does not wait), entered as an async context manager by async tools,
    as a plain one by sync tools in threads.

    `guard` looks at every request of its clients before that is sent, and may refuse it. `on_start` is called
    where each run of a watched tool begins; `sources` has the code of the functions that are watched, by the
    tool's name.
    """

    guard: Guard | None = None

    def __init__(
        self,
        sinks: Sequence[Sink] | None = None,
        *,
        records: Path | str | None = None,
        prometheus: bool | None = None,
        otel: bool = False,
        record_content: bool = False,
        redact: Redact | None = None,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        self.metrics: PrometheusSink | None
        chosen, self.metrics = sinks_of(sinks, records, prometheus, otel)
        self.recorder = Recorder(chosen, clock, overheard=True)
        self.orphan_calls = 0
        self._orphans_recorded = 0
        self._boundary = Boundary(self._failed)
        self._content = Content(redact) if record_content else None
        self._open: WeakValueDictionary[str, ObservedLoop] = WeakValueDictionary()
        self._loop: ContextVar[ObservedLoop | None] = ContextVar("toolloop_observed_loop", default=None)
        self._round: ContextVar[ObservedRound | None] = ContextVar("toolloop_observed_round", default=None)
        self._watching = Watching(clock, self._loop, self._content, self._boundary)
        self.hold: Callable[..., Held | None] | None = None
        self.on_start: Callable[[], object] | None = None
        self.sources: dict[str, CodeType] = {}
        self._automatic: Automatic | None = None
        self._found: tuple[Found, ...] = ()
        self._offered: dict[str, OfferedTool] = {}
        self._conversations: Conversations | None = None
        self._mcp: mcp.SessionWatch | None = None
        in_forked_child(self._renew)

    def _renew(self) -> None:
        """In a forked child: the loops under way are the parent's, and so are their records."""
        for loop in list(self._open.values()):
            loop.open = False
        self._open = WeakValueDictionary()
        self._orphans_recorded = self.orphan_calls
        if self._conversations is not None:
            self._conversations.forget()
        if self._automatic is not None:
            self._automatic.forked()

    @property
    def failures(self) -> Mapping[Part, int]:
        return self._boundary.failures

    def _failed(self, part: Part) -> None:
        loop = self._loop.get()
        if loop is not None:
            loop.watch_failures += 1
        self.recorder.count_watch_failure(part)

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

        `strategy` labels its metrics. A loop inside the context of another one is its child, and one of the
        tool call that it begins in, also inside a `ToolLoop` of the same sinks. With a `number` its requests
        tell an emulator which work they belong to.
        """
        return LoopContext(
            self,
            {"name": name, "strategy": strategy, "agent": agent, "number": number, "trial": trial},
        )

    def instrument(self, client: T, *, name: str = "", meta: bool = True) -> T:
        """Watch the requests of an `OpenAI`, `AsyncOpenAI`, `Anthropic` or `AsyncAnthropic` client.

        And of the SDKs' clients for other clouds: Azure, Foundry, Vertex, Bedrock's Mantle. Returns the same
        client. Doing it twice is harmless. Raises `UsageError` for an object without the SDKs' kind of HTTP
        client, and for `AnthropicBedrock`, whose requests and streams are in a form of AWS's own.

        Or the calls of tools of an MCP server, each under the tool's name: of a `ClientSession` or `Client`
        of the SDK, or of what is made on it (fastmcp's `Client`, openai-agents' `MCPServer…`, pydantic-ai's
        `MCPToolset`, LangChain's `MultiServerMCPClient`); with "mcp" those of all sessions of the process.
        `name` is the server's in the records, where it is not to be the one that it gives itself. With `meta`
        each request tells its server which call of the model's it is, in `_meta`.
        """
        session = mcp_owners.watchable(client)
        if session is not None:
            if self._mcp is None:
                self._mcp = mcp.SessionWatch(self)
            self._mcp.watch(session, name, meta)
            return client
        mcp.refuse(name, meta)
        http_client = _http_client(client)
        asynchronous = isinstance(http_client, httpx2.AsyncClient)
        observed = AsyncObservedTransport if asynchronous else ObservedTransport
        for put, transport in transports(http_client):
            if _owner(transport) is not self:
                attempts = with_attempts(transport, asynchronous, self._boundary)
                put(observed(attempts, partial(_watched, self), self._boundary, self, transport))
        return client

    def auto(
        self,
        *,
        find_tools: bool = False,
        conversations: bool = False,
        on_client: OnClient | None = None,
    ) -> Self:
        """Watch every OpenAI and Anthropic client of the process without naming it, from its next request on.

        So are the tools of the SDKs' own runners, and the calls of all MCP sessions. With `find_tools` also
        the application's functions that the names of tools stand for, found when a request first offers a
        tool: those of registries by key, others by their name, behind frameworks too; their code is exchanged
        in place, and put back by `stop`. Only calls that the model asked for are recorded of those. With
        `conversations` requests outside every `loop` are recorded: each conversation is a loop, whose record
        comes with `stop`.

        `on_client` is called with each client before its first request is sent; what it raises reaches the
        application. `found` says what is watched. Doing it twice changes nothing. Returns the profiler.
        """
        if self._automatic is None:
            if self._mcp is None:
                self._mcp = mcp.SessionWatch(self)
            self._boundary.call("tool", self._mcp.start)
            if conversations:
                self._conversations = Conversations(
                    self._begin_conversation, self._end_conversation, self._rest_conversation
                )
            self._automatic = Automatic(self, find_tools, on_client)
            self._automatic.start()
        return self

    def stop(self) -> None:
        """Undo `auto`. What it found stays known, and conversations under way have come to their end."""
        automatic, self._automatic = self._automatic, None
        if automatic is not None:
            if self._mcp is not None:
                self._boundary.call("tool", self._mcp.stop)
            automatic.stop()
            self._found += tuple(automatic.found)
            self._offered |= automatic.offered
        conversations, self._conversations = self._conversations, None
        if conversations is not None:
            self._boundary.call("loop", conversations.end)

    @property
    def found(self) -> tuple[Found, ...]:
        """What `auto` watches or has watched, clients, tools and sessions, and what it cannot, with why."""
        sessions = () if self._mcp is None else self._mcp.found
        return (*self._found, *(() if self._automatic is None else self._automatic.found), *sessions)

    @property
    def offered(self) -> tuple[OfferedTool, ...]:
        """The tools that requests offered the model while `auto(find_tools=True)` watched."""
        now = {} if self._automatic is None else self._automatic.offered
        return tuple((self._offered | now).values())

    def _begin_conversation(
        self, parent: ObservedLoop | None
    ) -> tuple[ObservedLoop, LagSampler | StopSampler | None]:
        loop = ObservedLoop(self.recorder.clock, "", "application", sinks=self.recorder.sinks)
        if parent is not None:
            loop.parent = nesting.begun_in(loop.running)
        self._open[loop.id] = loop
        in_event_loop = asyncio._get_running_loop() is not None
        return loop, self.recorder.enter() if in_event_loop else self.recorder.enter_sync()

    def _rest_conversation(self, loop: ObservedLoop, rests: bool) -> None:
        """It asks for no calls, so it need not be looked at for each; or it does again."""
        if rests:
            self._open.pop(loop.id, None)
        else:
            self._open[loop.id] = loop

    def _end_conversation(self, record: LoopRecord) -> None:
        self._open.pop(record.id, None)
        self.recorder.emit(self._with_orphans(record))

    def _conversation(self, request: httpx2.Request, current: ObservedLoop | None) -> ObservedLoop | None:
        """The loop that a request belongs to, where loops are conversations."""
        conversations = self._conversations
        if conversations is None or (current is not None and current.open and current not in conversations):
            return current
        round_ = self._round.get()
        if current is not None and round_ in current.rounds[-8:] and is_retry(request):
            return current
        inside = current is not None and current.runs(current_call.get())
        loop = conversations.of(body_of(request), current, inside)
        self._loop.set(loop)
        return loop

    def _took(self, ns: int) -> None:
        """Looking for tools took so long: before its first request that is no time of a loop's."""
        loop = self._loop.get()
        if loop is not None and not loop.rounds:
            loop.started_ns += ns

    def _expected(self, names: Sequence[str]) -> str | None:
        """Which of these tools a function that stands for them runs now: one that was asked for, if any."""
        outer = current_call.get()
        observed = None if outer is None else outer.observed
        running = (
            observed.request.name if isinstance(observed, ObservedCall) and not observed.ended_ns else ""
        )
        if running in names:
            return None  # a part of the call that was asked for, such as what a decorator calls
        known = self._loop.get()
        if known is not None and known.open:
            found = next((name for name in names if known.expects(name)), None)
            if found is not None:
                return found
            if not (self._conversations and known in self._conversations):
                return None
        loops = [loop for ref in self._open.valuerefs() if (loop := ref()) is not None]
        return next((name for name in names if any(loop.expects(name) for loop in loops)), None)

    def _held(self, name: str, server: str = "") -> Held | None:
        """What a run of a tool waits in; `server`: the MCP server whose tool it is, where that is known."""
        hold = self.hold
        if hold is None or current_slot.get() is not None or current_call.get() is not None:
            return None
        handed = handed_over.get()
        if handed is not None:
            return None
        return hold(name, server) if server else hold(name)

    def uninstrument(self, client: T) -> T:
        """Restore the client as it was before `instrument`. Returns it."""
        session = mcp_owners.watchable(client)
        if session is not None:
            if self._mcp is not None:
                self._mcp.forget(session)
            return client
        self._restore(_http_client(client))
        return client

    def _restore(self, http_client: Any) -> None:
        for put, transport in transports(http_client):
            if _owner(transport) is self:
                put(transport.original)
                continue
            # Another profiler began to watch it later, and goes on.
            outer: Any = transport
            while isinstance(outer, AsyncObservedTransport | ObservedTransport):
                inner: Any = outer.inner
                if _owner(inner) is self:
                    outer.original, outer.inner = inner.original, inner.inner
                outer = outer.inner

    @overload
    def tool(self, function: T, *, name: str | None = None) -> T: ...
    @overload
    def tool(self, *, name: str | None = None) -> Callable[[T], T]: ...

    def tool(self, function: Any = None, *, name: str | None = None) -> Any:
        """Watch the calls of a function, a method, a callable object or a `Tool`; of generators, too.

        Returns one with the same signature, docstring and behaviour: an attribute of a class is bound to its
        objects just if it would be unwatched. In place of an object, a partial or a cache comes another one
        that has its class (for `isinstance`), attributes, `==` and `hash`, and no state of its own: what is
        set on one is set on both. In place of a class comes what makes its objects, and is no class.

        Copies of a watched object are watched. A pickle of one, and a pickle or `copy.copy` of a method, give
        the unwatched one; watched classes, caches and functions of C cannot be pickled. Not watched are the
        calls that an object makes of itself, and other methods of it that run it.

        A call ends when what it returns has ended (`profiler.watch.returned`). `name` is the one under which
        the model knows the tool, where that is not the function's own; with it alone, this is a decorator.
        The tools of frameworks are watched as by `tools`, the `call_tool` of a session of MCP as by
        `dispatcher`. Raises `UsageError` for what cannot be called.
        """
        if function is None and name is not None:
            return partial(self.tool, name=name)
        if isinstance(function, Tool):
            return function.replaced(self.tool(function.function, name=name or function.name))
        if isinstance(function, classmethod | staticmethod):
            return type(function)(self.tool(function.__func__, name=name))
        if frameworks.holds_tools(function):
            return frameworks.watched_tools(function, lambda one, own: self.tool(one, name=name or own))
        if not callable(function):
            raise UsageError(f"not a function: {describe(function)}")
        runs_any = (
            None if name is not None else self._boundary.call("tool", mcp_owners.tool_parameter, function)
        )
        if runs_any is not None:
            return self.dispatcher(function, name=runs_any)
        if getattr(function, "__toolloop_profiler__", None) is self:
            if name is None:
                return function
            function = unwatched_of(function)
        name = name or name_of(function)
        code = self._boundary.call("tool", code_of, function)
        if code is not None:
            self.sources[name] = code
        begin = _Begin(self, _told_once(name, signature_of(function)), name)
        return watched(function, begin, self._watching, self, partial(self.tool, name=name))

    def _watched_as(self, function: Any, name: str | None) -> Any:
        return self.tool(function, name=name)

    def tools(self, registry: T) -> T:
        """Watch all tools that a registry holds. Returns a registry of the same kind, with watched tools.

        A dict: its keys are the names. A list, tuple or set of functions, of `Tool`s or of what follows. A
        value may be a dict or a tuple that holds a function beside other things, such as its schema. These
        are copied, and are left as they were.

        What frameworks hold is changed in place and returned, since whatever was made of it has it already:
        a pydantic-ai `Agent`, toolset or `Tool`; an openai-agents `Agent` (with the agents it hands off to)
        or `FunctionTool`; a LangChain `BaseTool`; a LangGraph `ToolNode` or compiled graph; tools of the
        SDKs' own runners. Do this when all of their tools are there.

        Raises `UsageError` where no tool is found.
        """
        return cast(T, frameworks.watched_tools(registry, self._watched_as))

    @overload
    def dispatcher(self, function: T, *, name: str) -> T: ...
    @overload
    def dispatcher(self, *, name: str) -> Callable[[T], T]: ...

    def dispatcher(self, function: Any = None, *, name: str) -> Any:
        """Watch a function that runs all tools: each call of it is one of the tool that it runs.

        `name` is the parameter that says which one: it holds the tool's name, the tool, or the model's call
        as the SDKs give it. The other arguments, or a mapping among them, are the tool's own, by which the
        call is told from others. Where no name can be told, the call has the function's. Without a function
        this is a decorator. For the rest as `tool`.

        Raises `UsageError` for what cannot be called, and where it has no such parameter.
        """
        if function is None:
            return partial(self.dispatcher, name=name)
        if isinstance(function, Tool):
            return function.replaced(self.dispatcher(function.function, name=name))
        if isinstance(function, classmethod | staticmethod):
            return type(function)(self.dispatcher(function.__func__, name=name))
        if not callable(function):
            raise UsageError(f"not a function: {describe(function)}")
        if getattr(function, "__toolloop_profiler__", None) is self:
            function = unwatched_of(function)
        told = Dispatch(name_of(function), signature_of(function), name)
        again = partial(self.dispatcher, name=name)
        return watched(function, _Begin(self, told, told.of), self._watching, self, again)

    def _begin(self, told: Told, of: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ToolRun:
        """A wrapped tool is about to run; `told` says which, and where it cannot, `of` is its name."""
        if self.on_start is not None:
            self._boundary.call("tool", self.on_start)
        try:
            return self._run(*told(args, kwargs))
        except Exception as error:
            self._boundary.failed("tool", error)
            return ToolRun(self._watching, None, _unwatched(of))

    def _run(self, name: str, given: Given, kind: type[R] = ToolRun) -> R:  # type: ignore[assignment]
        """A run of the tool of this name, with what its arguments may be."""
        loop, call = self._begin_call(name, given)
        return self._run_of(name, loop, call, kind)

    def _run_of(self, name: str, loop: ObservedLoop | None, call: ObservedCall, kind: type[R]) -> R:
        if loop is not None and self._content is not None and call.request.arguments != "":
            call.arguments = self._content.keep(arguments_text(call.request.arguments))
        waits: Callable[[], Held | None] | None = None
        if self.hold is not None:
            waits = partial(self._boundary.call, "tool", self._held, name)
        return kind(self._watching, loop, call, waits)

    def _begin_call(self, name: str, given: Given) -> tuple[ObservedLoop | None, ObservedCall]:
        """The loop that a starting tool works for, None if it is an orphan, and its call."""
        known = self._loop.get()
        if known is not None and known.is_running(name, given):
            return None, _unwatched(name)
        while True:
            loop, found, arguments = self._best_of(name, given)
            if loop is None:
                self.orphan_calls += 1
                self.recorder.count_orphan()
                return None, _unwatched(name)
            if found is None or found.fit[0] < FITTING:
                tried = loop.try_again(name, arguments)
                if tried is not None:
                    return loop, tried
            if found is None or loop.claim(found):
                return loop, loop.begin_call(name, found)

    def _best_of(
        self, name: str, given: Given
    ) -> tuple[ObservedLoop | None, Match | None, Mapping[str, Any] | None]:
        """The loop and the request of those possible arguments that fit best."""
        if len(given) == 1:
            return (*self._asked_by(name, given[0]), given[0])
        asked = [(*self._asked_by(name, arguments), arguments) for arguments in given]
        return max(asked, key=lambda one: (one[0] is not None, () if one[1] is None else one[1].fit))

    def _asked_by(
        self, name: str, arguments: Mapping[str, Any] | None
    ) -> tuple[ObservedLoop | None, Match | None]:
        """The loop that a starting tool works for, and the request that it runs."""
        known = self._loop.get()
        if known is not None and known.open:
            found = known.match(name, arguments)
            # The conversation of a context may be one that the application is done with.
            if found is not None or self._conversations is None or known not in self._conversations:
                return known, found
            known = None
        # A thread without the context of a loop, or with that of one that has ended: which one asked for it?
        loops = [loop for ref in self._open.valuerefs() if (loop := ref()) is not None and loop.rounds]
        matches = [(loop, found) for loop in loops if (found := loop.match(name, arguments)) is not None]
        best = max((found.fit for _, found in matches), default=None)
        # Where nothing is possible, the only loop there is may still have had its arguments changed.
        least = FITTING if known is not None else POSSIBLE if len(loops) > 1 else CONTRADICTED
        if best is None or best[0] < least:
            return None, None
        loop, found = min(
            ((loop, found) for loop, found in matches if found.fit == best),
            key=lambda one: one[0].started_ns,
        )
        rivals = sum(_as_good(other.fit, best) for _, other in matches)
        return loop, found._replace(certain=found.certain and rivals == 1)

    def _with_orphans(self, record: LoopRecord) -> LoopRecord:
        """The record, with the calls since the last one that belonged to no loop."""
        orphans = self.orphan_calls - self._orphans_recorded
        self._orphans_recorded += orphans
        return replace(record, orphan_calls=orphans) if orphans else record

    def serve_metrics(self, port: int, host: str = "127.0.0.1") -> int:
        """Serve `/metrics` from a thread of its own; port 0 takes a free one. Returns the port."""
        if self.metrics is None:
            raise UsageError(
                "this Profiler has no Prometheus metrics of its own: make it with prometheus=True, "
                "or call serve() of the Prometheus sink that it was given"
            )
        return self.metrics.serve(port, host)


Told = Callable[[tuple[Any, ...], dict[str, Any]], "tuple[str, Given]"]
"""Tells which tool a call runs, and what its arguments may be."""


def _told_once(name: str, signature: Signature | None) -> Told:
    """As all calls of a function do that is one tool."""

    def told(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, Given]:
        return name, (bound_arguments(signature, args, kwargs),)

    return told


class _Begin:
    """Begins runs of a watched function (`profiler.watch.tools.Begin`)."""

    __slots__ = ("_of", "_profiler", "_told")

    def __init__(self, profiler: Profiler, told: Told, of: str) -> None:
        self._profiler, self._told, self._of = profiler, told, of

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ToolRun:
        return self._watcher()._begin(self._told, self._of, args, kwargs)

    @property
    def holds(self) -> bool:
        return self._watcher().hold is not None

    def held(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Held | None:
        return self._profiler._boundary.call("tool", self._held, args, kwargs)

    def _held(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Held | None:
        return self._watcher()._held(self._told(args, kwargs)[0])

    def _watcher(self) -> Profiler:
        """The profiler that watches the run: its own, or while that has no loop, one that looks for tools.

        So what an application has named to a profiler of its own is known to `profiler run` and load tests.
        """
        own = self._profiler
        found: Profiler | None = None if own._open else own._boundary.call("tool", finder)
        return found or own


def _owner(transport: Any) -> object:
    """The profiler that put this transport in its place, None for one that nobody watches."""
    return transport.owner if isinstance(transport, AsyncObservedTransport | ObservedTransport) else None


def _watched(profiler: Profiler, request: httpx2.Request) -> WatchedRequest | None:
    """Begin to watch a request. None outside a loop, for other paths, and under another observer."""
    loop = profiler._loop.get()
    if (loop is None and profiler._conversations is None) or current_probe.get() is not None:
        return None
    api = api_of(request.url.path) if request.method == "POST" else None
    if api is None:
        return None
    if profiler._conversations is not None:
        loop = profiler._conversation(request, loop)
    if loop is None:
        return None
    clock = profiler.recorder.clock
    round_ = profiler._round.get()
    if round_ is None or round_ not in loop.rounds[-8:] or not (is_retry(request) or round_.sent(request)):
        body = body_of(request)
        round_ = loop.begin_round(api, requested_model(body, request.url.path))
        if profiler._content is not None and loop.prompt is None:
            prompt = requested_prompt(body)
            loop.prompt = None if prompt is None else profiler._content.keep(prompt)
        # The SDK's retries run in this same context, and find the round that they belong to here.
        profiler._round.set(round_)
    round_.sends(request)
    if loop.number is not None:
        request.headers[LOOP_HEADER] = str(loop.number)
        if loop.trial is not None:
            request.headers[TRIAL_HEADER] = str(loop.trial)
    return WatchedRequest(api, round_, clock)


def _as_good(fit: Fit, best: Fit) -> bool:
    """Whether a request may be meant as well as the one of another loop that fits best.

    That one may be equal only since a framework made it so; and of requests that are possible, each is.
    """
    if best[0] < FITTING:
        return fit[0] == best[0]
    return fit[0] >= FITTING and fit[1] >= best[1]


def _unwatched(name: str) -> ObservedCall:
    """The call of a run that belongs to no loop."""
    return ObservedCall(CallRequest("", name, ""), 0, 0)


def _http_client(client: Any) -> Any:
    refuse_invoke_model(client)
    http_client = getattr(client, "_client", None)
    if not isinstance(http_client, httpx2.AsyncClient | httpx2.Client):
        refuse_httpx(client)
        raise UsageError(
            f"cannot instrument {type(client).__name__}: expected an OpenAI, AsyncOpenAI, Anthropic or "
            "AsyncAnthropic client"
        )
    return http_client
