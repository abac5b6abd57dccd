"""Tool servers and a model in virtual time, and runs on them by the loop and the trials of production.

They share no code with what predicts (`profiler.prediction`), so that a prediction can be held against a run:
thousands of loops take seconds. `record` makes the recording, or the truth.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from profiler import ToolLoop, tool
from profiler.arrivals import Arrivals
from profiler.errors import ProviderError
from profiler.load.context import LoopPosition
from profiler.load.messages import Begin
from profiler.load.runners import BuiltInAgent
from profiler.load.trial import RunningTrial, TrialAgent
from profiler.loop.model import CallRequest, Probe, Reply, RequestOptions, ToolResult
from profiler.loop.tools import Tool
from profiler.records import Attempt, LoopRecord
from profiler.rundir import Load, Run, Trial
from profiler.strategies import parse_strategies
from profiler.testing import run_virtual
from tests.unit.statistics_data import run as run_of

ServerKind = Literal["none", "refuse", "queue", "share"]
SECOND = 10**9
REFUSAL_SECONDS = 0.003
"""What a server takes to refuse a call."""

SPELL_SECONDS = 8.0
FIRST_SPREAD_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Server:
    """A tool with a server of its own, or the model's: typical seconds of a call, and what load does to it.

    `spread` is the standard deviation of the logarithm of a call's seconds.
    """

    seconds: float
    kind: ServerKind = "none"
    capacity: int = 0
    spread: float = 0.6


@dataclass(frozen=True, slots=True)
class World:
    """The tools by name, the model, and what loops are like.

    Calls of a loop are alike (`alike`: the standard deviation of the logarithm that they have in common), and
    so are its rounds. `slower` is by what factor everything is slower after so many seconds; `stands_still`
    every so many seconds for so long; `slow` the standard deviation of the logarithm of what calls have in
    common that begin within the same `SPELL_SECONDS`. `quota`: model requests a minute and at once; no header
    tells of it, unless its refusals are `announced` with the time to wait. `tape`: loops of one number are of
    the same work in every trial, as with the emulator.
    """

    tools: dict[str, Server]
    model: Server = Server(0.3, spread=0.4)
    rounds: tuple[int, ...] = (1, 2, 2, 3)
    calls: tuple[int, ...] = (2, 3, 4, 5, 6)
    alike: float = 0.3
    slower: tuple[float, float] | None = None
    stands_still: tuple[float, float] | None = None
    slow: float = 0.0
    quota: tuple[float, float] | None = None
    announced: bool = False
    tape: bool = False


@dataclass(frozen=True, slots=True)
class Recorded:
    """A run and its loops."""

    run: Run
    records: list[LoopRecord]


class Refused(Exception):
    """Of a tool's server: it takes no more calls."""

    status = 429


class _Serving:
    """A server under way."""

    def __init__(self, server: Server) -> None:
        self._kind, self._capacity = server.kind, server.capacity
        self._room = asyncio.Semaphore(server.capacity or 1)
        self._inside = 0
        # Sharing: of each call the work per call at which it is done, on a scale that all have in common.
        self._jobs: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._done = self._at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def serve(self, seconds: float) -> None:
        if self._kind == "share":
            await self._share(seconds)
            return
        if self._kind == "refuse" and self._inside >= self._capacity:
            await asyncio.sleep(REFUSAL_SECONDS)
            raise Refused
        self._inside += 1
        try:
            if self._kind == "queue":
                async with self._room:
                    await asyncio.sleep(seconds)
            else:
                await asyncio.sleep(seconds)
        finally:
            self._inside -= 1

    def _speed(self) -> float:
        return min(1.0, self._capacity / max(1, len(self._jobs)))

    def _advance(self) -> None:
        now = asyncio.get_running_loop().time()
        self._done += (now - self._at) * self._speed()
        self._at = now

    async def _share(self, seconds: float) -> None:
        self._advance()
        done = asyncio.get_running_loop().create_future()
        heapq.heappush(self._jobs, (self._done + seconds, next(self._numbers), done))
        self._plan()
        await done

    def _plan(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._jobs:
            left = max(0.0, self._jobs[0][0] - self._done) / self._speed()
            self._timer = asyncio.get_running_loop().call_later(left, self._finish)

    def _finish(self) -> None:
        self._advance()
        while self._jobs and self._jobs[0][0] <= self._done + 1e-9:
            heapq.heappop(self._jobs)[2].set_result(None)
        self._plan()


class _Quota:
    """A bucket of requests."""

    def __init__(self, a_minute: float, at_once: float) -> None:
        self._rate, self._most = a_minute / 60, at_once
        self._left, self._at = at_once, 0.0

    def wait(self, now: float) -> float:
        """0: it takes a request; else the seconds until it would."""
        self._left = min(self._most, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return (1 - self._left) / self._rate
        self._left -= 1
        return 0.0


class _Running:
    """A world under way: its servers, and the draws of its loops."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.seed = seed
        self.draw = random.Random(seed)
        self.servers = {name: _Serving(one) for name, one in world.tools.items()}
        self.model = _Serving(world.model)
        self.quota = None if world.quota is None else _Quota(*world.quota)
        self.tools = [self._tool(name) for name in world.tools]

    def pace(self) -> float:
        """By how much calls that start now are slower; what has to be waited is added by `standstill`."""
        world, now = self.world, asyncio.get_running_loop().time()
        pace = 1.0
        if world.slower is not None and now >= world.slower[0]:
            pace = world.slower[1]
        if world.slow:
            spell = random.Random(f"{self.seed}/{int(now // SPELL_SECONDS)}")
            pace *= math.exp(world.slow * spell.gauss(0, 1))
        return pace

    def standstill(self) -> float:
        if self.world.stands_still is None:
            return 0.0
        every, seconds = self.world.stands_still
        return max(0.0, seconds - asyncio.get_running_loop().time() % every)

    def _tool(self, name: str) -> Tool:
        async def serve(seconds: float) -> str:
            """Look."""
            await self.servers[name].serve(seconds * self.pace() + self.standstill())
            return "found"

        serve.__name__ = name
        return tool(serve)

    def loop(self, number: int) -> list[tuple[float, list[tuple[str, float]]]]:
        """Of each round the model's seconds, and its calls with theirs."""
        world = self.world
        draw = random.Random(f"{self.seed}/{number}") if world.tape else self.draw

        def seconds(server: Server, alike: float = 0.0) -> float:
            return server.seconds * math.exp(alike + draw.gauss(0, server.spread))

        count = draw.choice(world.calls)
        slow = draw.gauss(0, world.alike)
        rounds = []
        for _ in range(draw.choice(world.rounds)):
            alike = slow + draw.gauss(0, world.alike)
            names = draw.choices(list(world.tools), k=count)
            calls = [(name, seconds(world.tools[name], alike)) for name in names]
            rounds.append((seconds(world.model), calls))
        return [*rounds, (seconds(world.model), [])]


class _Model:
    """The model of one loop. Refused requests are tried again twice, as the SDK of OpenAI does."""

    provider = model = "m"

    def __init__(self, running: _Running, number: int) -> None:
        self._running = running
        self._rounds = iter(running.loop(number))

    def conversation(self, prompt: Any) -> list[Any]:
        return [prompt]

    def render_tools(self, tools: Sequence[Tool]) -> list[str]:
        return [one.name for one in tools]

    def results(self, results: Sequence[ToolResult]) -> list[Any]:
        return [one.content for one in results]

    async def request(self, messages: Any, tools: Any, options: RequestOptions, probe: Probe) -> Reply:
        seconds, calls = next(self._rounds)
        for retry in range(3):
            began = probe.clock()
            try:
                wait = await self._try(seconds)
            except Refused:
                wait = -1.0
            asked_ns = int(wait * 1e9) if wait > 0 else None
            probe.attempts.append(
                Attempt(began, probe.clock(), 429 if wait else 200, retry_after_ns=asked_ns)
            )
            if not wait:
                break
            if retry == 2:
                raise ProviderError("refused", provider="openai", status=429, error_type="http_429")
            if asked_ns is None:
                wait = min(8.0, 0.5 * 2**retry) * (1 - 0.25 * self._running.draw.random())
            await asyncio.sleep(wait)
        asked = tuple(
            CallRequest(f"c{number}", name, json.dumps({"seconds": took}))
            for number, (name, took) in enumerate(calls)
        )
        return Reply("" if asked else "done", asked, [{}], "tool_calls" if asked else "stop", "r", 100, 20)

    async def _try(self, seconds: float) -> float:
        """0; or how long a refusal asked to wait. Raises `Refused` for one that did not say."""
        quota, world = self._running.quota, self._running.world
        wait = 0.0 if quota is None else quota.wait(asyncio.get_running_loop().time())
        if wait:
            await asyncio.sleep(REFUSAL_SECONDS)
            if not world.announced:
                raise Refused
            return math.ceil(wait * 1000) / 1000
        await self._running.model.serve(seconds * self._running.pace())
        return 0.0


@dataclass(slots=True)
class _Agent:
    """Runs one loop after the other."""

    running: _Running
    strategy: Any
    clock: Callable[[], int]
    records: list[LoopRecord] = field(default_factory=list)

    async def run(self, position: LoopPosition) -> bool:
        loop = ToolLoop(
            _Model(self.running, position.number),
            self.running.tools,
            self.strategy,
            clock=self.clock,
            sinks=[self._keep],
        )
        # As `compare` runs it: what it returns decides about the pause before the next loop.
        return await BuiltInAgent(loop, "go").run(position)

    def _keep(self, record: LoopRecord) -> None:
        """A number is that of work, and without a tape each loop has its own."""
        self.records.append(record if self.running.world.tape else replace(record, number=None))

    async def close(self) -> None:
        """There is nothing to close."""


def record(
    world: World,
    strategies: str,
    levels: Sequence[int],
    *,
    seconds: float = 40.0,
    blocks: int = 1,
    seed: int = 1,
    arrivals: str | None = None,
    max_in_flight: int | None = None,
    think_seconds: float = 0.0,
    workers: int = 1,
    share_limit: bool = False,
    spread_seconds: float | None = FIRST_SPREAD_SECONDS,
) -> Recorded:
    """Every strategy under every number of agents in turn, as `compare` runs them.

    `arrivals` are those of the highest level. Agents start within `spread_seconds`: a loop's mean, as there;
    None: the mean of the last trial of the setting.
    """
    specs = parse_strategies(strategies)
    records: list[LoopRecord] = []
    trials: list[Trial] = []
    means: dict[tuple[str, int], float] = {}

    async def main(clock: Callable[[], int]) -> None:
        running = _Running(world, seed)
        order = random.Random(f"{seed}/order")
        cells = []
        for block in range(blocks):
            for users in levels:
                cells += [(block, users, spec) for spec in order.sample(specs, len(specs))]
        for index, (block, users, spec) in enumerate(cells):
            rate = None if arrivals is None else Arrivals.parse(arrivals, max(levels))
            before = len(records)
            spread = spread_seconds
            if spread is None:
                spread = means.get((spec.text, users), FIRST_SPREAD_SECONDS)
            spread = 0.0 if arrivals is not None else min(spread, seconds / 2)
            each: list[tuple[RunningTrial, _Agent]] = []
            for worker in range(workers):
                begin = Begin(
                    1,
                    index,
                    block,
                    spec.text,
                    worker,
                    workers,
                    seed,
                    arrivals=rate,
                    think_seconds=think_seconds,
                    max_in_flight=max_in_flight,
                    spread_seconds=spread,
                )
                trial = RunningTrial(begin, clock=clock, process=f"w{worker}")
                each.append(
                    (
                        trial,
                        _Agent(
                            running,
                            spec.build(share=workers if share_limit else 1, clock=clock),
                            clock,
                            records,
                        ),
                    )
                )
            tasks = [
                asyncio.ensure_future(
                    each[number % workers][0].run_agent(
                        each[number % workers][1], TrialAgent(f"a{number}", number // workers, lambda: False)
                    )
                )
                for number in range(users)
            ]
            await asyncio.sleep(spread)
            started = clock()
            await asyncio.sleep(seconds)
            for trial, _ in each:
                trial.close()
            ended = clock()
            await asyncio.gather(*tasks)
            lasted = [one.wall_ns / 1e9 for one in records[before:]]
            means[spec.text, users] = sum(lasted) / len(lasted) if lasted else FIRST_SPREAD_SECONDS
            arrived = None if arrivals is None else sum(trial.arrived for trial, _ in each)
            late = sum(trial.late for trial, _ in each)
            trials.append(
                Trial(index, block, spec.text, users, started, ended, clock(), arrived=arrived, late=late)
            )

    run_virtual(main)
    load = Load("closed", max(levels), think_seconds=think_seconds)
    if arrivals is not None:
        load = Load("open", max(levels), arrivals=arrivals, rate=Arrivals.parse(arrivals).rate)
    arguments: dict[str, Any] = {"share_limit": share_limit}
    if max_in_flight is not None:
        arguments["max_in_flight"] = max_in_flight
    run = run_of(
        trials,
        strategies=[one.text for one in specs],
        load=load,
        provider="openai",
        workers=workers,
        arguments=arguments,
    )
    return Recorded(run, records)
