"""Truth without waiting: production's own loops, limiters and trials in virtual time, on invented servers.

The servers and the SDK's retries are written here in plain asyncio and share nothing with the engine of the
predictions, nor with the emulator. What a `World` does in a run depends on the run's seed alone.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from profiler import ToolLoop, tool
from profiler.arrivals import Arrivals
from profiler.errors import ProviderError
from profiler.load.messages import Begin
from profiler.load.trial import RunningTrial, TrialAgent
from profiler.loop.model import CallRequest, Reply
from profiler.records import Attempt, LoopRecord
from profiler.rundir import Anchor, Load, Run, Trial, machine
from profiler.strategies import parse_strategy
from profiler.testing import run_virtual

REFUSAL_SECONDS = 0.003
FIRST_SPREAD = 3.0
"""Seconds within which agents start in the first trial of a setting; later the mean loop of the last one."""


@dataclass(frozen=True)
class Tool:
    """A tool's median seconds, and what its server does above `capacity` calls: none, refuse, queue or
    share."""

    median: float
    kind: str = "none"
    capacity: int | None = None


@dataclass(frozen=True)
class Quota:
    """Of the model's server: requests a minute, in a bucket of `burst`; 429s announce the exact wait."""

    per_minute: float
    burst: int


@dataclass(frozen=True)
class World:
    """How the model and the tools are.

    `sigma`: of the logarithm of a call's own time; `loop_sd` and `round_sd`: of what the calls of a loop, and
    of a round, have in common. `slow`: of what all calls have in common that begin in the same
    `slow_seconds`. `tape`: loops of one number are the same work in every trial, as with the emulator.
    """

    tools: Mapping[str, Tool]
    sigma: float = 0.8
    loop_sd: float = 0.3
    round_sd: float = 0.3
    model: tuple[float, float] = (0.3, 0.4)
    rounds: tuple[int, ...] = (1, 2, 2, 3)
    fan_out: tuple[int, ...] = (2, 3, 4, 5, 6)
    slow: float = 0.0
    slow_seconds: float = 8.0
    retry_after: float | None = None
    quota: Quota | None = None
    tape: bool = False

    def loop(self, draw: random.Random) -> list[tuple[float, list[tuple[str, float]]]]:
        """The rounds of a loop: the model's seconds, and each call's tool and seconds."""
        of_loop, wide = draw.gauss(0, self.loop_sd), draw.random()
        width = self.fan_out[int(wide * len(self.fan_out))]
        rounds = []
        for _ in range(draw.choice(self.rounds)):
            common = of_loop + draw.gauss(0, self.round_sd)
            calls = [
                (name, self.tools[name].median * math.exp(common + draw.gauss(0, self.sigma)))
                for name in draw.choices(list(self.tools), k=width)
            ]
            rounds.append((self._request(draw), calls))
        return [*rounds, (self._request(draw), [])]

    def _request(self, draw: random.Random) -> float:
        return self.model[0] * math.exp(draw.gauss(0, self.model[1]))

    def pace(self, seconds: float, seed: int) -> float:
        """What calls that begin then take times as long."""
        if not self.slow:
            return 1.0
        return math.exp(self.slow * random.Random(f"{seed}/{int(seconds // self.slow_seconds)}").gauss(0, 1))


class _Refused(Exception):
    status = 429

    def __init__(self, retry_after: float | None) -> None:
        self.headers = {} if retry_after is None else {"retry-after": str(retry_after)}


class _Server:
    """Of one tool."""

    def __init__(self, of: Tool, retry_after: float | None) -> None:
        self.kind, self.capacity, self.retry_after = of.kind, of.capacity or 1, retry_after
        self.inside = 0
        self.room = asyncio.Semaphore(self.capacity)
        self.jobs: list[tuple[float, int, asyncio.Future[None]]] = []
        self.came = 0
        self.served = self.at = 0.0
        self.timer: asyncio.TimerHandle | None = None

    async def serve(self, seconds: float) -> None:
        if self.kind == "share":
            await self._share(seconds)
            return
        if self.kind == "refuse" and self.inside >= self.capacity:
            await asyncio.sleep(REFUSAL_SECONDS)
            raise _Refused(self.retry_after)
        self.inside += 1
        try:
            if self.kind == "queue":
                async with self.room:
                    await asyncio.sleep(seconds)
            else:
                await asyncio.sleep(seconds)
        finally:
            self.inside -= 1

    async def _share(self, seconds: float) -> None:
        self._advance()
        self.came += 1
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self.jobs, (self.served + seconds, self.came, over))
        self._plan()
        await over

    def _speed(self) -> float:
        return min(1.0, self.capacity / max(1, len(self.jobs)))

    def _advance(self) -> None:
        now = asyncio.get_running_loop().time()
        self.served += (now - self.at) * self._speed()
        self.at = now

    def _plan(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.jobs:
            left = max(0.0, self.jobs[0][0] - self.served) / self._speed()
            self.timer = asyncio.get_running_loop().call_later(left, self._end)

    def _end(self) -> None:
        self._advance()
        while self.jobs and self.jobs[0][0] <= self.served + 1e-9:
            heapq.heappop(self.jobs)[2].set_result(None)
        self._plan()


class _Bucket:
    def __init__(self, quota: Quota) -> None:
        self.rate, self.burst, self.left, self.at = (
            quota.per_minute / 60,
            quota.burst,
            float(quota.burst),
            0.0,
        )

    def wait(self, now: float) -> float:
        """0: the request is admitted; else the seconds until one would be."""
        self.left = min(self.burst, self.left + (now - self.at) * self.rate)
        self.at = now
        if self.left < 1:
            return (1 - self.left) / self.rate
        self.left -= 1
        return 0.0


class _Model:
    """Asks for the calls of one loop. Refused requests are tried again twice, as the SDKs do."""

    provider = "openai"
    model = "m"

    def __init__(self, work: Sequence[tuple[float, list[tuple[str, float]]]], bucket: _Bucket | None) -> None:
        self.work = iter(work)
        self.bucket = bucket

    def conversation(self, prompt: Any) -> list[Any]:
        return [prompt]

    def render_tools(self, tools: Any) -> list[Any]:
        return list(tools)

    def results(self, results: Any) -> list[Any]:
        return [one.content for one in results]

    async def request(self, messages: Any, tools: Any, options: Any, probe: Any) -> Reply:
        seconds, asked = next(self.work)
        for tries in range(1, 4):
            began = probe.clock()
            wait = 0.0 if self.bucket is None else self.bucket.wait(asyncio.get_running_loop().time())
            if not wait:
                break
            wait = math.ceil(wait * 1000) / 1000
            await asyncio.sleep(REFUSAL_SECONDS)
            probe.attempts.append(
                Attempt(began, probe.clock(), 429, retry_after_ns=int(wait * 1e9), sent_ns=began)
            )
            if tries == 3:
                raise ProviderError("refused", provider="openai", status=429, error_type="http_429")
            await asyncio.sleep(wait)
        await asyncio.sleep(seconds)
        if self.bucket is not None:
            probe.attempts.append(Attempt(began, probe.clock(), 200, sent_ns=began))
        calls = tuple(
            CallRequest(f"c{place}", name, json.dumps({"seconds": took}))
            for place, (name, took) in enumerate(asked)
        )
        return Reply("" if calls else "done", calls, [{}], "tool_calls" if calls else "stop", "r", 100, 20)


def record(
    world: World,
    strategies: Sequence[str],
    levels: Sequence[int],
    *,
    blocks: int,
    seconds: float,
    seed: int,
    arrivals: float | None = None,
) -> tuple[Run, list[LoopRecord]]:
    """A run of `blocks` trials of `seconds` for each strategy and number of agents, and its loops.

    `arrivals`: loops a second that arrive at the last of the levels, at the others as many for each agent.
    """
    records: list[LoopRecord] = []
    trials: list[Trial] = []

    async def main(clock: Callable[[], int]) -> None:
        loop = asyncio.get_running_loop()
        draw = random.Random(seed)
        servers = {name: _Server(one, world.retry_after) for name, one in world.tools.items()}
        bucket = None if world.quota is None else _Bucket(world.quota)

        def made(name: str) -> Any:
            async def call(seconds: float) -> str:
                """A tool."""
                await servers[name].serve(seconds * world.pace(loop.time(), seed))
                return "r"

            call.__name__ = name
            return tool(call)

        tools = [made(name) for name in world.tools]
        built = {spec: parse_strategy(spec).build(clock=clock) for spec in strategies}
        means: dict[tuple[str, int], float] = {}

        class Runner:
            def __init__(self, spec: str, trial: int) -> None:
                self.spec, self.trial = spec, trial

            async def run(self, position: Any) -> bool:
                source = random.Random(f"{seed}/{position.number}") if world.tape else draw
                model = _Model(world.loop(source), bucket)
                agent = ToolLoop(model, tools, built[self.spec], clock=clock, sinks=[records.append])
                try:
                    result = await agent.run(
                        "go",
                        agent=position.agent,
                        number=position.number if world.tape else None,
                        trial=self.trial,
                        process="p",
                        intended_ns=position.intended_ns,
                    )
                except ProviderError:
                    return False
                return result.record.good

        for block in range(blocks):
            for users in levels:
                order = list(strategies)
                draw.shuffle(order)
                for spec in order:
                    index = len(trials)
                    rate = None if arrivals is None else Arrivals(arrivals * users / max(levels), users)
                    spread = 0.0 if rate else min(means.get((spec, users), FIRST_SPREAD), seconds / 2)
                    plan = Begin(1, index, block, spec, 0, 1, seed, arrivals=rate, spread_seconds=spread)
                    trial = RunningTrial(plan, clock=clock)
                    before, runner = len(records), Runner(spec, index)
                    tasks = [
                        asyncio.ensure_future(trial.run_agent(runner, TrialAgent(f"a{n}", n, lambda: False)))
                        for n in range(users)
                    ]
                    await asyncio.sleep(spread)
                    starts = clock()
                    await asyncio.sleep(seconds)
                    trial.close()
                    ends = clock()
                    await asyncio.gather(*tasks)
                    new = records[before:]
                    if new:
                        means[spec, users] = sum(one.wall_ns for one in new) / len(new) / 1e9
                    arrived = trial.arrived if rate else None
                    trials.append(
                        Trial(
                            index, block, spec, users, starts, ends, clock(), arrived=arrived, late=trial.late
                        )
                    )

    run_virtual(main)
    kind = "closed" if arrivals is None else "open"
    said = None if arrivals is None else f"{arrivals}/s"
    load = Load(kind, max(levels), arrivals=said, rate=arrivals)  # type: ignore[arg-type]
    specs = tuple(map(parse_strategy, strategies))
    run = Run("x", "openai", specs, load, seed, Anchor.now(), machine(), {}, {}, trials=tuple(trials))
    return run, records
