"""Agents, which run loops: the built-in `ToolLoop`, or an agent that the user wrote.

A factory (`--agent module:factory`, or `AgentUser.agent`) is called once per process and strategy with an
`AgentContext`, in the running event loop, and returns an async callable without arguments: one call of it is
one loop. All agents of the process share that callable, as they share a client in production. What runs
inside such a call is recorded through `context.profiler` (an instrumented client, wrapped tools) or through a
`ToolLoop` with `sinks=[context.sink]`. Either way it becomes one record, in its place in the load test.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from profiler.errors import ProviderError, TargetError, UsageError
from profiler.limits.gate import Gate
from profiler.loop.boundary import place_of
from profiler.loop.recorder import LiveCalls, Recorder, Sink, fresh_id
from profiler.loop.supervision import Supervision, supervised
from profiler.providers.endpoint import Endpoint, client_options, sdk_options
from profiler.records import INTERNAL, LoopRecord, Status
from profiler.redaction import Redact, describe
from profiler.strategies import Sequential, Strategy, StrategySpec
from profiler.variants import Variant, variant_text
from profiler.watch.rounds import HandedOver, handed_over

if TYPE_CHECKING:
    from profiler.loop.loop import ToolLoop
    from profiler.loop.model import Model
    from profiler.watch.profiler import Profiler

T = TypeVar("T")

OneLoop = Callable[[], Awaitable[Any]]
"""An agent: one call is one loop."""

AgentFactory = Callable[..., "OneLoop | Awaitable[OneLoop]"]
"""Called with an `AgentContext`, and with the settings of the variant under test, by their names."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoopPosition:
    """Where a loop belongs in a load test; the fields are those of `LoopRecord`."""

    number: int
    agent: str
    trial: int | None
    process: str
    intended_ns: int | None = None


class LoopRunner(Protocol):
    """Runs loops of one strategy."""

    async def run(self, position: LoopPosition) -> bool:
        """Run one loop; returns whether it came to its end. Raises nothing but cancellation."""

    async def close(self) -> None: ...


class BuiltInAgent:
    """The built-in loop, for `timeout` seconds at most (None: any time).

    Whatever it raises is caught here, and nowhere else: what is no failure of the model's server is a defect
    of ours, and ends one loop, not the agent.
    """

    def __init__(self, loop: ToolLoop, prompt: str, timeout: float | None = None) -> None:
        self._loop = loop
        self._prompt = prompt
        self._timeout = timeout

    async def run(self, position: LoopPosition) -> bool:
        over = Supervision()
        recorder = self._loop.recorder
        started_ns = recorder.clock()
        try:
            error = await supervised(partial(self._once, position), self._timeout, over)
        finally:
            if over.left:
                record = _left(over, started_ns, recorder.clock(), self._loop.strategy.spec)
                recorder.emit(_at(record, position, self._loop.strategy.spec))
        if error is not None and not is_expected(error):
            note_defect(error)
        return error is None

    async def _once(self, position: LoopPosition) -> None:
        await self._loop.run(
            self._prompt.replace("{number}", str(position.number)),
            number=position.number,
            agent=position.agent,
            trial=position.trial,
            process=position.process,
            intended_ns=position.intended_ns,
        )

    async def close(self) -> None:
        client = getattr(self._loop.model, "client", None)
        if client is not None:
            await client.close()


def is_expected(error: BaseException) -> bool:
    """Whether the built-in loop may raise this: a fault of its server's, or the end of its time."""
    return isinstance(error, ProviderError | TimeoutError | asyncio.CancelledError)


_defects = 0


def note_defect(error: BaseException) -> None:
    """A loop, which is recorded as `internal`, ended with an exception that nobody expects.

    The first is logged: its type and its place, since its text may hold what nobody asked to record.
    """
    global _defects
    _defects += 1
    if _defects == 1:
        _log.error(
            "a defect of the profiler ended a loop, which is recorded as %r: %s at %s; later ones are only "
            "counted",
            *(INTERNAL, type(error).__name__, place_of(error)),
        )


def _left(over: Supervision, started_ns: int, ended_ns: int, strategy: str) -> LoopRecord:
    """The record of a loop that did not end when it was cancelled: of what it had done by then."""
    _log.warning("a loop did not end when it was cancelled, and was left to itself")
    status, error_type = over.ending
    if over.so_far is not None:
        try:
            return over.so_far(status, error_type)
        except Exception as error:
            note_defect(error)
    return _bare(started_ns, ended_ns, strategy, status, error_type)


def _bare(started_ns: int, ended_ns: int, strategy: str, status: Status, error_type: str) -> LoopRecord:
    """The record of a loop of which nothing else is known."""
    return LoopRecord(fresh_id(), strategy, "", "", started_ns, ended_ns, status, (), error_type)


@dataclass(slots=True)
class _AgentCall:
    """One call of a user's agent while it runs, and its records; `turn` keeps `sequential` in order."""

    position: LoopPosition
    records: list[LoopRecord] = field(default_factory=list)
    turn: Gate | None = None
    asked: bool = False  # whether it handed something to the strategy


_current: ContextVar[_AgentCall | None] = ContextVar("toolloop_agent_call", default=None)


class AgentContext:
    """Everything that a user's agent is given.

    `client_options()` are the arguments of the SDK's client for the model server under load. `base_url` is
    what Anthropic's clients take as theirs, `openai_url` what OpenAI's do, `body` the fields of `--body`.
    `tools_url` is the root of the tools. `strategy` says how the calls of a round are to run: hand it to a
    `ToolLoop`, or use `execute` or `limiter`. `profiler` watches a loop that is written already; `sink`,
    `record_content` and `redact` are for a `ToolLoop`. `limited(model)` keeps to `--model-limit`. `number`,
    `prompt` and `agent` are those of the loop that the caller is in.
    """

    def __init__(
        self,
        *,
        provider: str,
        endpoint: Endpoint,
        tools_url: str,
        model: str | None,
        strategy: Strategy,
        prompt: str,
        sinks: Sequence[Sink],
        record_content: bool = False,
        redact: Redact | None = None,
        body: Mapping[str, Any] | None = None,
        model_gate: Gate | None = None,
    ) -> None:
        from profiler.watch.profiler import Profiler

        self.provider = provider
        self.endpoint = endpoint
        self.base_url = endpoint.root
        self.openai_url = endpoint.openai_base
        self.body = dict(body or {})
        self.tools_url = tools_url
        self.model = model
        self.strategy = strategy
        self.sink: Sink = _Collector(sinks)
        self.record_content = record_content
        self.redact = redact
        self.profiler: Profiler = Profiler([self.sink], record_content=record_content, redact=redact)
        self._prompt = prompt
        self._model_gate = model_gate
        self._closers: list[Callable[[], Awaitable[Any]]] = []

    def client_options(self, sdk: str = "openai", **transport: Any) -> dict[str, Any]:
        """Arguments for an async client of `sdk` (or `anthropic`): `AsyncOpenAI(**ctx.client_options())`.

        Its URL, the headers, query and certificates that the load test was given, a key where the server is
        on this machine and the environment has none, and an HTTP client on aiohttp, to which `transport` are
        further arguments.
        """
        http_client = importlib.import_module(sdk).DefaultAioHttpClient
        return {
            **sdk_options(self.endpoint, sdk, None),
            "http_client": http_client(**{**client_options(self.endpoint), **transport}),
        }

    @property
    def number(self) -> int:
        """The loop's number: the tape entry it works on."""
        return self._call.position.number

    @property
    def agent(self) -> str:
        """The agent that runs the loop."""
        return self._call.position.agent

    @property
    def prompt(self) -> str:
        """The scenario's message for this loop."""
        return self._prompt.replace("{number}", str(self.number))

    @property
    def limiter(self) -> AbstractAsyncContextManager[Any]:
        """`async with context.limiter:` around one tool call lets the strategy hold it back.

        For limits that differ by tool, name it: `async with context.slot("search"):`.
        """
        return self.slot()

    def limited(self, model: Model) -> Model:
        """The model behind the limiters of `--model-limit`, which all loops share, if there are any."""
        from profiler.loop.model import LimitedModel

        return model if self._model_gate is None else LimitedModel(model, self._model_gate)

    def slot(self, tool: str = "") -> AbstractAsyncContextManager[Any]:
        """Goes around a call of a tool, or a try of it: limiters heed what that raises (429, timeouts)."""
        call = self._call
        call.asked = True
        gate = self.strategy.gate
        if isinstance(self.strategy, Sequential):
            gate = call.turn = call.turn or Gate("semaphore:1")
        return nullcontext() if gate is None else gate.slot(tool, call.position.agent)

    async def execute(self, *calls: Callable[[], Awaitable[T]]) -> list[T]:
        """Run the calls of a round as the strategy says; returns their results in order.

        The first failure is raised, after all have ended. In the records, the first tool call of each
        callable has waited as long as the strategy held the callable; the callable decides when further ones
        run.
        """
        gate, agent = self.strategy.gate, self._call.position.agent
        self._call.asked = True
        outcomes: list[T | BaseException] = [asyncio.CancelledError()] * len(calls)

        clock, limit = self.profiler.recorder.clock, self.strategy.limit
        outer, at_ns = handed_over.get(), clock()
        if outer is not None:
            outer.begun = True

        async def released(index: int) -> None:
            # Set and reset for each callable, since `sequential` runs all of them in one task.
            token = handed_over.set(HandedOver(at_ns, clock(), limit))
            try:
                outcomes[index] = await calls[index]()
            finally:
                handed_over.reset(token)

        async def one(index: int) -> None:
            try:
                if gate is None:
                    await released(index)
                else:
                    async with gate.slot(agent=agent):
                        await released(index)
            except Exception as error:
                outcomes[index] = error

        await self.strategy.execute([partial(one, index) for index in range(len(calls))])
        results: list[T] = []
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
            results.append(outcome)
        return results

    def on_close(self, close: Callable[[], Awaitable[Any]]) -> None:
        """Have `close()` awaited after the last loop, such as that of a client."""
        self._closers.append(close)

    async def close(self) -> None:
        """Await everything that `on_close` was given."""
        while self._closers:
            await self._closers.pop()()

    @property
    def _call(self) -> _AgentCall:
        call = _current.get()
        if call is None:
            raise UsageError(
                "number, prompt, limiter and execute are of a loop: use them inside the agent's call"
            )
        return call


class CustomAgent:
    """Loops of an agent that the user wrote."""

    def __init__(
        self, agent: OneLoop, context: AgentContext, sinks: Sequence[Sink], timeout: float | None = None
    ) -> None:
        self._agent = agent
        self._context = context
        self._timeout = timeout
        self._recorder = Recorder(sinks)
        self.failure: BaseException | None = None

    @classmethod
    async def make(
        cls,
        factory: AgentFactory,
        context: AgentContext,
        sinks: Sequence[Sink],
        timeout: float | None = None,
    ) -> CustomAgent:
        """Call the factory. Raises `UsageError` when what it returns cannot be called."""
        try:
            made = factory(context)
            if inspect.isawaitable(made):
                made = await made
        except (UsageError, asyncio.CancelledError):
            raise
        except BaseException as error:  # `sys.exit` too, which would end the whole event loop
            raise UsageError(f"the agent's factory failed: {describe(error)}") from error
        if not callable(made):
            raise UsageError(f"the agent's factory returned {made!r}: expected an async callable")
        return cls(made, context, sinks, timeout)

    async def warm(self, position: LoopPosition, sinks: Sequence[Sink] = ()) -> None:
        """Run one loop, recorded in `sinks` alone: the first use of a client takes long.

        Raises `TargetError` when the loop fails.
        """
        recorder, self._recorder = self._recorder, Recorder(sinks)
        try:
            if not await self.run(position):
                error = self.failure
                said = "nothing was raised" if error is None else describe(error)
                raise TargetError(f"the agent's first loop failed: {said}") from error
        finally:
            self._recorder = recorder

    async def run(self, position: LoopPosition) -> bool:
        call, over = _AgentCall(position), Supervision()
        clock, spec = self._recorder.clock, self._context.strategy.spec
        started_ns = clock()
        token = _current.set(call)
        try:
            error = await supervised(partial(self._once, position), self._timeout, over)
        finally:
            _current.reset(token)
            if over.left:
                call.records.append(_left(over, started_ns, clock(), spec))
            elif not call.records:  # it was cancelled before its first step
                call.records.append(_bare(started_ns, clock(), spec, *over.ending))
            for record in self._placed(call, started_ns):
                self._recorder.emit(record)
        if error is None:
            return True
        if self.failure is None:
            _log.warning("the agent raised %s (later ones are only counted)", describe(error))
        self.failure = error
        return False

    async def _once(self, position: LoopPosition) -> None:
        context = self._context
        async with context.profiler.loop(
            strategy=context.strategy.spec,
            agent=position.agent,
            number=position.number,
            trial=position.trial,
        ):
            await self._agent()

    def _placed(self, call: _AgentCall, started_ns: int) -> list[LoopRecord]:
        """The records of the call. It leaves one in any case."""
        spec, position = self._context.strategy.spec, call.position
        try:
            return placed(call.records, position, spec, call.asked)
        except Exception as error:
            note_defect(error)
            ended_ns = self._recorder.clock()
            return [_at(_bare(started_ns, ended_ns, spec, "error", INTERNAL), position, spec)]

    async def close(self) -> None:
        await self._context.close()


def placed(
    records: Sequence[LoopRecord], position: LoopPosition, strategy: str, asked: bool = True
) -> list[LoopRecord]:
    """The records of one call of an agent, put in its position. The last one is of the call as a whole.

    `asked`: the agent handed something to the strategy. Where it did not, calls that nobody watched went
    around its limit too.

    Where that one saw no model request of its own, a `ToolLoop` or a `profiler.loop` inside has recorded the
    loop, and to keep the empty frame around it would count the loop twice.
    """
    *inner, outer = records
    if outer.rounds or not any(record.parent in (None, outer.id) for record in inner):
        kept = records
    else:
        top = [record.parent in (None, outer.id) for record in inner]
        kept = [replace(r, parent=None) if is_top else r for r, is_top in zip(inner, top, strict=True)]
    return [
        replace(_at(record, position, strategy), unlimited_calls=_unlimited(record, strategy, asked))
        for record in kept
    ]


def _at(record: LoopRecord, position: LoopPosition, strategy: str) -> LoopRecord:
    """The record, in this place of a load test."""
    return replace(
        record,
        strategy=strategy,
        number=position.number,
        agent=position.agent,
        trial=position.trial,
        process=position.process,
        intended_ns=position.intended_ns if record.parent is None else None,
    )


def _unlimited(record: LoopRecord, strategy: str, asked: bool) -> int | None:
    """Calls of a loop that went around the limit of the strategy that it was to run under."""
    spec, own = StrategySpec.recorded(strategy), StrategySpec.recorded(record.strategy)
    if spec.kind not in ("sequential", "limited"):
        return None
    if record.unlimited_calls is None:  # a `ToolLoop`, with a strategy of its own
        return 0 if own.text == spec.text else len(list(record.tool_calls))
    return record.unlimited_calls + (0 if asked else sum(one.unobserved_calls for one in record.rounds))


def load_factory(spec: str) -> AgentFactory:
    """Import `my_app.agents:make_agent`, from the working directory too. Raises `UsageError`."""
    factory: AgentFactory = _named("--agent", spec, "MODULE:FACTORY, such as my_app.agents:make_agent")
    return factory


def with_settings(factory: AgentFactory, variant: Variant) -> AgentFactory:
    """The factory, called with these settings too. Raises `UsageError` where it takes none of that name."""
    if not variant:
        return factory
    try:
        taken = inspect.signature(factory)
    except (TypeError, ValueError):  # of a callable that tells nothing
        return partial(factory, **dict(variant))
    try:
        taken.bind(None, **dict(variant))
    except TypeError as error:
        named = getattr(factory, "__qualname__", repr(factory))
        raise UsageError(
            f"--variant {variant_text(variant)}: the factory {named}{taken} cannot take that: {error}"
        ) from None
    return partial(factory, **dict(variant))


def load_redact(spec: str) -> Redact:
    """Import `my_app.privacy:redact`, found as an agent's factory is. Raises `UsageError`."""
    redact: Redact = _named("--redact", spec, "MODULE:FUNCTION, such as my_app.privacy:redact")
    return redact


def _named(option: str, spec: str, expected: str) -> Any:
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise UsageError(f"{option} {spec}: expected {expected}")
    if "" not in sys.path and "." not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(f"{option} {spec}: cannot import {module_name}: {error}") from error
    except (Exception, SystemExit) as error:  # whatever a module does when it is imported
        raise UsageError(f"{option} {spec}: {module_name} fails at import: {describe(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"{option} {spec}: {module_name} has no function {name}")
    return function


class _Collector:
    """A sink that keeps the records of a call for `placed`; lag is passed on at once."""

    waited_for = True

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._recorder = Recorder(sinks)
        self.count_orphan = self._recorder.count_orphan
        self._lag = [sink.observe_lag for sink in sinks if hasattr(sink, "observe_lag")]

    def __call__(self, record: LoopRecord) -> None:
        call = _current.get()
        if call is not None:
            call.records.append(record)

    def live_calls(self, strategy: str, tool: str) -> LiveCalls:
        return self._recorder.live_calls(strategy, tool)

    def observe_lag(self, lag_ns: int) -> None:
        for observe in self._lag:
            observe(lag_ns)
