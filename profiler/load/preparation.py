"""Makes, and warms up, what runs the loops of one process: an agent pool for every strategy.

The first use of a client costs 110 to 230 ms, and a server may refuse whatever it is asked. So before the
test the built-in loop sends one request (or runs once, where a limit is to be kept on what loops spend), and
an agent of the user's own runs once with each strategy; none of that is recorded. And `calibrate`: how fast
the client alone is.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import statistics
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from profiler.emulator.tape import Tape
from profiler.errors import ProviderError, TargetError
from profiler.limits.gate import Gate
from profiler.load.agents import LoadedAgent, load_redact
from profiler.load.calling import carry_context_into_threads
from profiler.load.clients import Pointing
from profiler.load.context import AgentContext, LoopPosition
from profiler.load.direct import direct_agents
from profiler.load.estimate import loop_seconds_after
from profiler.load.holding import hold
from profiler.load.messages import Calibration, Ready
from profiler.load.options import LoadOptions
from profiler.load.places import function_line, limits_of, remade_by, swallowed
from profiler.load.plan import NUMBERS_PER_PART, WARM_UP_BLOCK
from profiler.load.runners import BuiltInAgent, CustomAgent, FirstLoop, LoopRunner, is_expected, note_defect
from profiler.load.selfcheck import Seen, judged, merged
from profiler.load.spending import LoopAccount
from profiler.load.tool_servers import ToolServers
from profiler.loop.eventloop import NativeThreads
from profiler.loop.ledger import current_ledger
from profiler.loop.loop import ToolLoop
from profiler.loop.model import LimitedModel, Probe, RequestOptions, parse_model_limit
from profiler.loop.recorder import Sink, waited_for
from profiler.loop.supervision import Supervision, supervised
from profiler.loop.tools import Tool
from profiler.providers import ClientName, make_provider
from profiler.providers.endpoint import Endpoint
from profiler.records import LoopRecord, encode
from profiler.redaction import Redact, guard_logs
from profiler.rundir import Check, McpServer, Spent
from profiler.scenarios import Scenario, load_scenario
from profiler.strategies import Gathered, Sequential, Strategy
from profiler.watch.answers import look_at_answers

if TYPE_CHECKING:
    from profiler.watch.profiler import Profiler

_log = logging.getLogger(__name__)

FirstUse = Callable[[], Awaitable[float]]
"""Uses a runner for the first time; returns the seconds that a loop of it is thought to take."""

PASSING_STATUS = (408, 409, 425, 429)
"""Refusals that another request may not meet; any other below 500 is that of every request."""

CALIBRATION_AGENTS = 32
"""In each process: enough to keep it busy."""

LONE_LOOPS = 5

COST_SECONDS = 0.1
"""How long requests are sent to tell how much CPU one takes."""

COST_IN_FLIGHT = 8

NO_SERVER = "http://127.0.0.1"
"""In place of a model's server where there is none: nothing is sent there."""

TRIED_NUMBERS = 100
"""Entries of the tape among which the work of the first loops is chosen."""


class LoopRunners:
    """A runner for each Locust user class and strategy. Used on the event loop's thread.

    With `says` it says which clients of an agent's own are pointed at the target: one process does. `share`:
    how many processes share the limits, those of `strategies` (by their text) and the model's.
    """

    def __init__(
        self,
        options: LoadOptions,
        root: str,
        tools_root: str,
        scenario: Scenario,
        share: int = 1,
        says: bool = True,
    ) -> None:
        self.strategies = {spec.text: spec.build(share=share) for spec in options.strategies}
        self._variants = {spec.text: spec.variant for spec in options.strategies}
        self._options = options
        self._endpoint = options.endpoint(NO_SERVER if options.direct else root)
        self._tools_root = tools_root
        self._scenario = scenario
        self._redact = None if options.redact is None else load_redact(options.redact)
        self._pointing = Pointing(self._endpoint, _log.info if says else _log.debug)
        self._model_gate: Gate | None = None
        if options.model_limit is not None:
            self._model_gate = Gate(parse_model_limit(options.model_limit), share=share)
        self._runners: dict[tuple[str, str], LoopRunner] = {}
        self._shared: Profiler | None = None  # of plain agents
        self._guarding: Profiler | None = None  # of clients that a factory does not have watched
        self._undo: list[Callable[[], None]] = []
        self._model = ""
        self._spent = Spent()
        self._first_failure: str | None = None
        self._checks: tuple[Check, ...] = ()
        self._share = share
        self._servers = ToolServers(options)
        self._direct: tuple[McpServer, ...] = ()  # what is loaded without a model
        self._firsts: list[FirstUse] = []

    def __getitem__(self, key: tuple[str, str]) -> LoopRunner:
        return self._runners[key]

    async def make(self, agents: Mapping[str, LoadedAgent | None], sinks: Sequence[Sink]) -> None:
        """Make all runners. `agents`: by Locust user class, None for the built-in loop."""
        guard_logs()  # an agent's module may have set up logging of its own
        for user_class, agent in agents.items():
            if self._options.direct:
                first = await self._make_direct(user_class, sinks)
            elif agent is None:
                first = await self._make_built_in(user_class, sinks)
            else:
                first = await self._make_custom(user_class, agent, sinks)
            self._firsts.append(first)

    async def warm_up(self) -> Ready:
        """Use each runner once; the answer says what that took.

        Raises `ProfilerError` when the target refuses, or cannot be reached.
        """
        slowest = 0.0
        for first in self._firsts:
            # At the end of the time that the test has there is nothing to warm up for.
            limit = asyncio.timeout(self._seconds_left())
            account = LoopAccount()
            token = current_ledger.set(account)
            try:
                async with limit:
                    slowest = max(slowest, await first())
            except TimeoutError:
                if not limit.expired():
                    raise
            finally:
                current_ledger.reset(token)
                self._spent += account.spent
        return Ready(
            loop_seconds=slowest,
            model=self._model,
            spent=self._spent,
            first_failure=self._first_failure,
            checks=self._checks,
            mcp_servers=self._direct or self._servers.described,
        )

    def _seconds_left(self) -> float | None:
        until = self._options.until_seconds
        return None if until is None else until - time.monotonic()

    async def refresh(self) -> None:
        """Between two trials: have the tools that MCP servers list by now."""
        for server in await self._servers.refresh():
            _log.warning("the tools of MCP server %s have changed: the loops have the new ones", server)

    async def close(self) -> None:
        """Close the clients of all runners."""
        while self._undo:
            self._undo.pop()()
        for runner in self._runners.values():
            await runner.close()
        await self._servers.close()

    async def _make_built_in(self, user_class: str, sinks: Sequence[Sink]) -> FirstUse:
        self._options.check_variants()
        servers = self._servers
        tools = (await servers.open()).tools if servers.specs else None
        make = built_in_loops(
            self._options,
            self._endpoint,
            self._tools_root,
            self._scenario,
            self._redact,
            self._model_gate,
            tools,
        )
        for spec, strategy in self.strategies.items():
            loop = make(strategy=strategy, sinks=sinks)
            self._runners[user_class, spec] = BuiltInAgent(
                loop,
                self._scenario.prompt,
                self._options.loop_timeout,
                servers.tools_of if servers.specs else None,
            )
        strategy = warm_up_strategy(self.strategies.values())
        loop = make(strategy=strategy, sinks=[self._warmed_up])
        self._model = loop.model.model
        # As long as it is not known what a loop spends, one alone may be under way.
        whole = self._options.budget(self._model).by_spending
        use, what = (loop.run, "loop") if whole else (loop.first_request, "request")

        async def use_once() -> float:
            seconds = 0.0
            for attempt in range(2):
                self._spent += Spent(int(whole))
                prompt = self._scenario.prompt.replace("{number}", str(attempt))
                began = time.monotonic()
                error = await supervised(partial(use, prompt), self._options.loop_timeout, Supervision())
                seconds = time.monotonic() - began
                if error is None:
                    break
                if not is_expected(error):
                    note_defect(error)
                if isinstance(error, ProviderError):
                    if not attempt and may_pass(error):
                        continue
                    if is_hopeless(error):
                        raise TargetError(str(error)) from error
                    self._first_failure = error.error_type
                _log.warning("the %s before the test failed: %s", what, error)
                break
            tape = Tape(self._scenario, self._options.seed)
            return seconds if whole else loop_seconds_after(seconds, tape, strategy.limit != 1)

        return use_once

    async def _make_direct(self, user_class: str, sinks: Sequence[Sink]) -> FirstUse:
        made = await direct_agents(self._options, self.strategies, sinks, self._redact)
        for spec, agent in made.agents.items():
            self._runners[user_class, spec] = agent
        self._direct = (made.server,)

        async def call_once() -> float:
            began = time.monotonic()
            self._first_failure = await made.first([self._warmed_up])
            if self._first_failure is not None:
                _log.warning("the call before the test failed: %s", self._first_failure)
            return time.monotonic() - began

        return call_once

    async def _make_custom(self, user_class: str, loaded: LoadedAgent, sinks: Sequence[Sink]) -> FirstUse:
        self._model = self._options.model or ""
        self._undo += [carry_context_into_threads(), look_at_answers()]
        made: dict[str, CustomAgent] = {}
        for spec, strategy in self.strategies.items():
            context = self._context(loaded, strategy, sinks)
            variant = dict(self._variants[spec])
            agent = await CustomAgent.make(loaded, context, sinks, self._options.loop_timeout, variant)
            self._runners[user_class, spec] = agent
            made[spec] = agent
        self._spent += Spent(len(made))

        nowhere = LoopPosition(self._telling_number(), "", None, "")

        async def check(agent: CustomAgent) -> FirstLoop:
            try:
                return await agent.first(nowhere, [self._warmed_up])
            except TargetError:  # as with the built-in loop, once may be a bad moment of the server's
                self._spent += Spent(1)
                return await agent.first(nowhere, [self._warmed_up])

        async def check_all() -> float:
            specs, began = self._options.strategies, time.monotonic()
            firsts = await asyncio.gather(*(check(made[spec.text]) for spec in specs))
            mixed = any(first.trace.foreign for first in firsts)
            self._checks += merged(
                [
                    one
                    for spec, first in zip(specs, firsts, strict=True)
                    for one in judged(spec, self._seen(loaded, first, mixed), self._share)
                ]
            )
            return time.monotonic() - began

        return check_all

    def _telling_number(self) -> int:
        """The work of the first loops: of some of the tape's, one that asks for more than any limit allows.

        Where none does, the one that asks for most. A server that is no emulator asks for what it likes.
        """
        tape = Tape(self._scenario, self._options.seed)
        wanted = 1 + max((one.limit for one in self.strategies.values() if one.limit is not None), default=1)
        first = WARM_UP_BLOCK * NUMBERS_PER_PART

        def tells(number: int) -> tuple[int, int]:
            asked = tape.fan_out(number, 0)
            return min(asked, wanted), -asked

        return max(range(first, first + TRIED_NUMBERS), key=tells)

    def _seen(self, loaded: LoadedAgent, first: FirstLoop, mixed: bool) -> Seen:
        unrun, unasked = first.trace.missed()
        module = loaded.module
        ran = {call.name for record in first.records for call in record.tool_calls}
        caught = {name: swallowed(code) for name, code in first.sources.items() if name in ran}
        remade = {} if not loaded.plain else remade_by(loaded.function, first.sources)
        return Seen(
            first.records,
            first.trace,
            {name: function_line(module, name) for name in unrun},
            {name: function_line(module, name) for name in unasked},
            tuple(self._pointing.unwatched),
            {name: where for name, where in caught.items() if where},
            {name: where for name, where in remade.items() if name in ran},
            limits_of(module),
            loaded.plain,
            mixed,
            first.timed_out,
        )

    def _context(self, loaded: LoadedAgent, strategy: Strategy, sinks: Sequence[Sink]) -> AgentContext:
        from profiler.watch.profiler import Profiler

        options = self._options
        context = AgentContext(
            provider=options.provider,
            endpoint=self._endpoint,
            body=options.fields,
            tools_url=self._tools_root,
            model=options.model,
            strategy=strategy,
            prompt=self._scenario.prompt,
            sinks=sinks,
            record_content=options.record_content,
            redact=self._redact,
            model_gate=self._model_gate,
            profiler=self._shared if loaded.plain else None,
            guard=self._pointing.for_plain if loaded.plain else self._pointing.guard,
            client=options.client,
        )
        if loaded.plain and self._shared is None:
            # One for all strategies, since a client at module level has one: calls are told apart by the
            # context of the loop that they are in.
            self._shared = context.profiler
            self._shared.hold = hold
            self._shared.auto(find_tools=True, on_client=self._pointing.point)
            self._undo.append(self._shared.stop)
        elif not loaded.plain and self._guarding is None:
            # A factory says itself what is watched; but nothing else may ask somebody else either.
            self._guarding = Profiler([])
            self._guarding.guard = self._pointing.guard
            self._guarding.auto(on_client=partial(self._pointing.note, self._guarding))
            self._undo.append(self._guarding.stop)
        return context

    @waited_for
    def _warmed_up(self, record: LoopRecord) -> None:
        """The sink of the first loops."""
        account = current_ledger.get()
        if isinstance(account, LoopAccount):
            account.record(record)
        if record.status == "error":
            self._first_failure = record.error_type


def preload(options: LoadOptions) -> None:
    """Import what the built-in agent's first loop needs, which takes longest of all that comes before it.

    What cannot be imported is said where it is used.
    """
    if options.agent is None and not options.direct:
        gc.disable()  # classes that stay: a collector would only walk through them, again and again
        try:
            with contextlib.suppress(Exception):
                from profiler import providers

                if options.client == "sdk":
                    getattr(providers, providers.PROVIDERS[options.provider].model_class)
        finally:
            gc.enable()


def may_pass(error: ProviderError) -> bool:
    """Whether a first request that failed so is tried once more: once it may be a bad moment of the server's,
    twice it is what every request meets."""
    return error.error_type in ("unreadable", "undecodable", "not_http", "too_large", "reset", "connection")


def is_hopeless(error: ProviderError) -> bool:
    """Whether the requests after a first one that failed so would all fail in the same way."""
    if error.status is None or error.error_type == "unreadable":
        return True
    refused = not 200 <= error.status < 300 and error.status < 500
    return refused and error.status not in PASSING_STATUS


def built_in_loops(
    options: LoadOptions,
    endpoint: Endpoint,
    tools_root: str,
    scenario: Scenario,
    redact: Redact | None,
    model_gate: Gate | None,
    tools: Sequence[Tool] | None = None,
) -> Callable[..., ToolLoop]:
    """A function that makes built-in loops of these options, given their `strategy` and `sinks`.

    All of them share one client, one set of tools (without `tools`, the scenario's) and one pool of threads.
    """
    from profiler.scenarios.tools import scenario_tools

    model = make_provider(
        options.provider,
        base_url=endpoint,
        model=options.model,
        body=options.fields,
        rewrite=False,
        client=options.client,
    )
    return partial(
        ToolLoop,
        model if model_gate is None else LimitedModel(model, model_gate),
        scenario_tools(scenario, tools_root) if tools is None else tools,
        max_rounds=options.max_rounds,
        tool_choice=options.tool_choice,
        parallel_tool_calls=options.parallel_tool_calls,
        stream=options.stream,
        record_content=options.record_content,
        redact=redact,
        threads=NativeThreads(),
    )


def warm_up_strategy(strategies: Collection[Strategy]) -> Strategy:
    """A strategy for the loop before the test that lets no more calls run at once than the test will."""
    if any(strategy.limit is None and strategy.gate is None for strategy in strategies):
        return Gathered()
    return next((strategy for strategy in strategies if strategy.gate is not None), Sequential())


async def calibrate(options: LoadOptions, root: str) -> Calibration:
    """Measure the client alone: run the built-in loop for `calibration_seconds`, before the test.

    `root` serves the scenario `instant`, without latency. The figure says how far a measured load is from the
    client's own limit, and how much of every latency is the client itself; the target is not involved.
    """
    if options.direct:
        return await calibrate_direct(options, root)
    from profiler.scenarios.tools import scenario_tools

    model = make_provider(
        options.provider, base_url=root, model=options.model, rewrite=False, client=options.client
    )
    tools = scenario_tools(load_scenario("instant"), root, environment={})
    lines: list[bytes] = []  # recording is part of what the client does; nobody reads these
    sinks = [waited_for(lambda record: lines.append(encode(record)))]
    loop = ToolLoop(model, tools, Gathered(), stream=options.stream, sinks=sinks)
    numbers = itertools.count()
    await loop.run("Warm up.", number=next(numbers))
    lone = [(await loop.run("Alone.", number=next(numbers))).record.latency_ns for _ in range(LONE_LOOPS)]
    loops, elapsed = await _together(
        options.calibration_seconds, lambda: loop.run("Together.", number=next(numbers))
    )
    await model.client.close()  # type: ignore[attr-defined]
    return Calibration(CALIBRATION_AGENTS, loops, elapsed, statistics.median(lone) / 1e9)


async def request_cpu(options: LoadOptions, root: str, client: ClientName) -> float:
    """The seconds of CPU that one request to a model takes through a client, its reply read included.

    `root` serves the scenario `instant`. What this thread used, which runs nothing else meanwhile.
    """
    from profiler.scenarios.tools import scenario_tools

    model = make_provider(options.provider, base_url=root, model=options.model, rewrite=False, client=client)
    tools = model.render_tools(scenario_tools(load_scenario("instant"), root, environment={}))
    asked = RequestOptions(stream=options.stream)
    requests = 0

    async def send(until: float) -> None:
        nonlocal requests
        while True:
            await model.request(model.conversation("Together."), tools, asked, Probe(time.monotonic_ns))
            requests += 1
            if time.monotonic() >= until:
                return

    async def send_until(until: float) -> None:
        await asyncio.gather(*(send(until) for _ in range(COST_IN_FLIGHT)))

    try:
        await send_until(0.0)  # connects, and imports what a first request does
        requests, began = 0, time.thread_time()
        await send_until(time.monotonic() + COST_SECONDS)
        return (time.thread_time() - began) / requests
    finally:
        await model.client.close()  # type: ignore[attr-defined]


async def calibrate_direct(options: LoadOptions, root: str) -> Calibration:
    """The same for calls without a model: the emulator's tools, by the client that the test will use."""
    options = replace(
        options,
        mcp=(f"{root}/mcp",),
        mcp_headers=(),
        call=(),
        call_arguments=None,
        calls_from=None,
        allow_writes=(),
        mcp_per_agent=False,
        record_content=False,
        redact=None,
    )
    records: list[LoopRecord] = []
    lines: list[bytes] = []

    def record(one: LoopRecord) -> None:
        lines.append(encode(one))
        records[:] = [one]

    made = await direct_agents(options, {"gathered": Gathered()}, [waited_for(record)])
    agent = made.agents["gathered"]
    numbers = itertools.count()

    async def one_call() -> None:
        await agent.run(LoopPosition(next(numbers), "", None, ""))

    try:
        await one_call()
        lone = []
        for _ in range(LONE_LOOPS):
            await one_call()
            lone.append(records[0].latency_ns)
        loops, elapsed = await _together(options.calibration_seconds, one_call)
    finally:
        await agent.close()
    return Calibration(CALIBRATION_AGENTS, loops, elapsed, statistics.median(lone) / 1e9)


async def _together(seconds: float, once: Callable[[], Awaitable[object]]) -> tuple[int, float]:
    """How many loops `CALIBRATION_AGENTS` run in so many seconds, and how long that took."""
    loops = 0
    began = time.monotonic()

    async def agent() -> None:
        nonlocal loops
        while time.monotonic() - began < seconds:
            await once()
            loops += 1

    await asyncio.gather(*(agent() for _ in range(CALIBRATION_AGENTS)))
    return loops, time.monotonic() - began
