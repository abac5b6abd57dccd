"""The context of an agent of the user's own: the server, the strategy, the loop that it is in.

An `AgentContext` is made for each process and strategy. Which loop its properties speak of is told by the
context of the caller, an `AgentCall`.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from profiler.errors import RequestRefused, UsageError
from profiler.limits.gate import Gate, current_slot
from profiler.loop.recorder import LiveCalls, Recorder, Sink
from profiler.providers import ClientName, make_provider
from profiler.providers.attempts import Guard
from profiler.providers.endpoint import Endpoint, client_options, sdk_options
from profiler.records import LoopRecord
from profiler.redaction import Redact
from profiler.strategies import Sequential, Strategy
from profiler.watch.rounds import HandedOver, handed_over

if TYPE_CHECKING:
    from profiler.load.selfcheck import Trace
    from profiler.loop.model import Model
    from profiler.watch.profiler import Profiler

T = TypeVar("T")

OneLoop = Callable[[], Awaitable[Any]]
"""An agent: one call is one loop."""

AgentFactory = Callable[["AgentContext"], "OneLoop | Awaitable[OneLoop]"]


@dataclass(frozen=True, slots=True)
class LoopPosition:
    """Where a loop belongs in a load test; the fields are those of `LoopRecord`."""

    number: int
    agent: str
    trial: int | None
    process: str
    intended_ns: int | None = None


@dataclass(slots=True, eq=False)
class AgentCall:
    """One call of a user's agent while it runs, and its records; `turn` keeps `sequential` in order.

    `context` is the one that its agent was made with, `loop` the event loop that it was called on. `asked`:
    it handed something to the strategy. `refused`: one of its model requests was not sent. `over`: it has
    ended, and what still runs of it, in threads, is to end soon, unless it `returned` by itself: a thread
    that it started may serve later loops. `waits` are tasks of what threads wait for.
    `trace` sees what it does, in the first loop.
    """

    position: LoopPosition
    context: AgentContext | None = None
    loop: asyncio.AbstractEventLoop | None = None
    records: list[LoopRecord] = field(default_factory=list)
    turn: Gate | None = None
    asked: bool = False
    refused: RequestRefused | None = None
    over: bool = False
    returned: bool = False
    waits: set[asyncio.Task[None]] = field(default_factory=set)
    trace: Trace | None = None


agent_call: ContextVar[AgentCall | None] = ContextVar("toolloop_agent_call", default=None)

_by_name: ContextVar[bool] = ContextVar("toolloop_by_name", default=False)
"""The callables of `execute` run, and each watched call in them is to wait for a place under its name."""


class AgentContext:
    """Everything that a user's agent is given.

    `client_options()` are the arguments of the SDK's client for the model server under load. `base_url` is
    what Anthropic's clients take as theirs, `openai_url` what OpenAI's do, `body` the fields of `--body`.
    `tools_url` is the root of the tools. `strategy` says how the calls of a round are to run: hand it to a
    `ToolLoop`, or use `execute` or `limiter`. `profiler` watches a loop that is written already; `sink`,
    `record_content` and `redact` are for a `ToolLoop`, and so is `make_model()`. `limited(model)` keeps to
    `--model-limit`. `number`,
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
        profiler: Profiler | None = None,
        guard: Guard | None = None,
        client: ClientName = "sdk",
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
        self.sink: Sink = Collector(sinks)
        self.record_content = record_content
        self.redact = redact
        self.profiler: Profiler = profiler or Profiler(
            [self.sink], record_content=record_content, redact=redact
        )
        self.profiler.guard = self.guard = guard
        self._prompt = prompt
        self._model_gate = model_gate
        self._client: ClientName = client
        self._made_model = False
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

    def make_model(self) -> Model:
        """A model for a `ToolLoop`: that of the options, `--client` and `--model-limit` among them.

        Its client is closed after the last loop.
        """
        self._made_model = True
        model = make_provider(
            self.provider,
            base_url=self.endpoint,
            model=self.model,
            body=self.body,
            rewrite=False,
            client=self._client,
        )
        self.on_close(model.client.close)  # type: ignore[attr-defined]
        return self.limited(model)

    def check_client(self, agent: str) -> None:
        """Raises `UsageError` where the agent, which is made by now, has no use for the client asked for."""
        if self._client != "sdk" and not self._made_model:
            raise UsageError(
                f"--client {self._client}: {agent} asks the model by clients of its own; leave --client out, "
                "or give a factory whose loops ask a model of context.make_model()"
            )

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

    def slot(self, tool: str = "", server: str = "") -> AbstractAsyncContextManager[Any]:
        """Goes around a call of a tool, or a try of it: limiters heed what that raises (429, timeouts).

        `server`: the name of the MCP server whose tool it is, for limits of servers.
        """
        call = self._call
        call.asked = True
        gate = self.strategy.gate
        if isinstance(self.strategy, Sequential):
            gate = call.turn = call.turn or Gate("semaphore:1")
        if gate is None or _has_place(call, gate):
            return nullcontext()
        return gate.slot(tool, call.position.agent, server=server)

    async def execute(self, *calls: Callable[[], Awaitable[T]]) -> list[T]:
        """Run the calls of a round as the strategy says; returns their results in order.

        The first failure is raised, after all have ended. In the records, the first tool call of each
        callable has waited as long as the strategy held the callable; the callable decides when further ones
        run. Limits by tool or by MCP server alone hold the watched calls inside in place of the callables,
        whose names nobody knows.
        """
        call, gate = self._call, self.strategy.gate
        agent = call.position.agent
        call.asked = True
        if gate is not None and _has_place(call, gate):
            gate = None
        rules = () if gate is None else gate.rules
        by_name = bool(rules) and all(rule.scope in ("tool", "server") for rule in rules)
        if by_name:
            self._hold_by_name()
            gate = None
        outcomes: list[T | BaseException] = [asyncio.CancelledError()] * len(calls)

        clock, limit = self.profiler.recorder.clock, self.strategy.limit
        outer, at_ns = handed_over.get(), clock()
        if outer is not None:
            outer.begun = True

        async def released(index: int) -> None:
            # Set and reset for each callable, since `sequential` runs all of them in one task.
            token = None if by_name else handed_over.set(HandedOver(at_ns, clock(), limit))
            inside = _by_name.set(by_name)
            try:
                outcomes[index] = await calls[index]()
            finally:
                _by_name.reset(inside)
                if token is not None:
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

    def _hold_by_name(self) -> None:
        if self.profiler.hold is not None:
            return  # it holds every watched call
        from profiler.load.holding import hold

        self.profiler.hold = lambda tool, server="": hold(tool, server) if _by_name.get() else None

    def on_close(self, close: Callable[[], Awaitable[Any]]) -> None:
        """Have `close()` awaited after the last loop, such as that of a client."""
        self._closers.append(close)

    async def close(self) -> None:
        """Await everything that `on_close` was given."""
        while self._closers:
            await self._closers.pop()()

    @property
    def _call(self) -> AgentCall:
        call = agent_call.get()
        if call is None:
            raise UsageError(
                "number, prompt, limiter and execute are of a loop: use them inside the agent's call"
            )
        if call.trace is not None and call.context is not self:
            call.trace.note(call.trace.foreign)
        return call


def _has_place(call: AgentCall, gate: Gate) -> bool:
    """Whether the caller is inside a call that has its place in the gate.

    One more place would be one for which that call waits, and where all places are taken by such calls they
    wait for each other for ever.
    """
    slot = current_slot.get()
    if slot is None or slot.gate is not gate:
        return False
    if call.trace is not None:
        call.trace.note(call.trace.nested)
    return True


class Collector:
    """A sink that keeps the records of a call for `placed`; lag is passed on at once."""

    waited_for = True

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._recorder = Recorder(sinks)
        self._lag = [sink.observe_lag for sink in sinks if hasattr(sink, "observe_lag")]

    def __call__(self, record: LoopRecord) -> None:
        call = agent_call.get()
        if call is not None:
            call.records.append(record)

    def count_orphan(self) -> None:
        """A watched tool runs outside every loop of its profiler."""
        self._recorder.count_orphan()
        call = agent_call.get()
        if call is None or call.trace is None or call.context is None:
            return
        if call.context.sink is not self:
            call.trace.note(call.trace.foreign)

    def live_calls(self, strategy: str, tool: str) -> LiveCalls:
        return self._recorder.live_calls(strategy, tool)

    def observe_lag(self, lag_ns: int) -> None:
        for observe in self._lag:
            observe(lag_ns)
