"""Estimates against systems that ran both ways, in virtual time, by the loop that production runs."""

from __future__ import annotations

import asyncio
import json
import math
import random
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pytest

from profiler import ToolLoop, tool
from profiler.arrivals import pause_after
from profiler.loop.model import CallRequest, Reply
from profiler.prediction.what_if import (
    Change,
    Counterfactual,
    counterfactuals,
)
from profiler.records import LoopRecord
from profiler.rundir import Load, Run, Trial
from profiler.strategies import parse_strategy
from profiler.testing import run_virtual
from tests.unit.statistics_data import run

TOOLS = ("alpha", "beta")
SECOND = 10**9


class Refused(Exception):
    status_code = 429


class Sharing:
    """Serves all calls at once, each at the speed min(1, capacity / calls)."""

    def __init__(self, capacity: int, clock: Any) -> None:
        self.capacity, self.clock = capacity, clock
        self.left: dict[asyncio.Future[None], float] = {}
        self.at = 0.0
        self.timer: asyncio.TimerHandle | None = None

    async def serve(self, seconds: float) -> None:
        self.advance()
        done = asyncio.get_running_loop().create_future()
        self.left[done] = seconds
        self.plan()
        await done

    def advance(self) -> None:
        now = self.clock() / 1e9
        if self.left:
            part = (now - self.at) * min(1.0, self.capacity / len(self.left))
            self.left = {one: left - part for one, left in self.left.items()}
        self.at = now

    def plan(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        if self.left:
            speed = min(1.0, self.capacity / len(self.left))
            delay = max(0.0, min(self.left.values())) / speed
            self.timer = asyncio.get_running_loop().call_later(delay, self.fire)

    def fire(self) -> None:
        self.advance()
        for done in [one for one, left in self.left.items() if left < 1e-9]:
            del self.left[done]
            done.set_result(None)
        self.plan()


class Drawn:
    """A model whose replies follow from the number of the loop."""

    provider = model = "m"

    def __init__(self, seed: str, world: World) -> None:
        self.draw, self.world = random.Random(seed), world
        self.rounds = self.draw.choice([1, 2, 2, 3])

    def conversation(self, prompt: Any) -> list[Any]:
        return [prompt]

    def render_tools(self, tools: Any) -> list[Any]:
        return list(tools)

    def results(self, results: Any) -> list[Any]:
        return [result.content for result in results]

    async def request(self, messages: Any, tools: Any, options: Any, probe: Any) -> Reply:
        draw = self.draw
        took, before = 0.3 * math.exp(draw.gauss(0, 0.3)), draw.uniform(0.4, 0.7)
        await asyncio.sleep(took * before * self.world.token)
        probe.token()
        await asyncio.sleep(took * (1 - before))
        self.rounds -= 1
        if self.rounds < 0:
            return Reply("ok", (), [{}], "stop", "r", 1, 1)
        mood = draw.gauss(0, 0.4)  # calls of a round are alike
        calls = tuple(
            CallRequest(
                f"c{draw.random()}",
                draw.choice(["alpha", "alpha", "beta"]),
                json.dumps({"seconds": 0.4 * math.exp(mood + draw.gauss(0, 0.6))}),
            )
            for _ in range(draw.randint(2, 5))
        )
        return Reply("", calls, [{}], "tool_calls", "r", 1, 1)


@dataclass(frozen=True)
class World:
    """A system and its load, which can be run; `alpha` is served as `kind` says, `beta` at once."""

    spec: str = "gathered"
    users: int = 8
    rate: float | None = None
    cap: int | None = None
    kind: Literal["none", "queue", "share", "refuse"] = "none"
    capacity: int = 10
    alpha: float = 1.0
    token: float = 1.0
    seconds: float = 90.0
    processes: int = 1
    index: int = 0

    def run(self) -> tuple[Run, list[LoopRecord]]:
        records: list[LoopRecord] = []
        run_virtual(lambda clock: self._main(clock, records))
        load = Load("closed" if self.rate is None else "open", self.users)
        trial = self.trial
        return run([trial], load=load, workers=self.processes), records

    @property
    def trial(self) -> Trial:
        end = int(self.seconds * SECOND)
        return Trial(self.index, 0, self.spec, self.users, 5 * SECOND, end, end)

    async def _main(self, clock: Any, records: list[LoopRecord]) -> None:
        spec = parse_strategy(self.spec)
        queue, sharing = asyncio.Semaphore(self.capacity), Sharing(self.capacity, clock)
        inside = 0

        @tool
        async def alpha(seconds: float) -> str:
            """Served by the server."""
            nonlocal inside
            seconds *= self.alpha
            if self.kind == "queue":
                async with queue:
                    await asyncio.sleep(seconds)
            elif self.kind == "share":
                await sharing.serve(seconds)
            elif self.kind == "refuse" and inside >= self.capacity:
                await asyncio.sleep(0.004)
                raise Refused
            else:
                inside += 1
                await asyncio.sleep(seconds)
                inside -= 1
            return "r"

        @tool
        async def beta(seconds: float) -> str:
            """Served at once."""
            await asyncio.sleep(seconds)
            return "r"

        shared = [spec.build(clock=clock) for _ in range(self.processes)]
        by_agent = any(rule.scope == "agent" for rule in spec.rules)

        async def loop(number: int, agent: int, own: Any, due: int | None = None) -> LoopRecord:
            process = agent % self.processes
            made = ToolLoop(
                Drawn(f"{agent}/{number}", self),
                [alpha, beta],
                own or shared[process],
                clock=clock,
                sinks=[records.append],
            )
            where = {"agent": f"a{agent}", "trial": self.index, "process": f"p{process}"}
            return (await made.run("go", intended_ns=due, **where)).record

        async def agent(number: int) -> None:
            own = spec.build(clock=clock) if by_agent else None
            await asyncio.sleep(0.3 * number)
            count = failures = 0
            while clock() < self.trial.ended_ns:
                record = await loop(count, number, own)
                count += 1
                failures = 0 if record.good else failures + 1
                await asyncio.sleep(pause_after(failures, record.wall_ns / 1e9))

        if self.rate is None:
            await asyncio.gather(*(agent(number) for number in range(self.users)))
            return
        places = [asyncio.Semaphore((self.cap or 10**9) // self.processes) for _ in range(self.processes)]

        async def arrival(number: int, due: int) -> None:
            async with places[number % self.processes]:
                await loop(0, number, spec.build(clock=clock) if by_agent else None, due)

        draw, at, tasks = random.Random(1), 0.0, []
        while (at := at + draw.expovariate(self.rate)) < self.seconds:
            await asyncio.sleep(max(0.0, at - clock() / 1e9))
            tasks.append(asyncio.ensure_future(arrival(len(tasks), round(at * 1e9))))
        await asyncio.gather(*tasks)


def figures(world: World) -> tuple[float, float, float]:
    """p50, p95 and the share of failed loops, when it really runs."""
    conditions, records = world.run()
    (trial,) = conditions.trials
    inside = [record for record in records if trial.started_ns <= record.due_ns < trial.ended_ns]
    p50, p95 = np.quantile([record.latency_ns / 1e9 for record in inside if record.answered], (0.5, 0.95))
    return float(p50), float(p95), float(np.mean([not record.good for record in inside]))


def estimates(world: World) -> dict[Change, Counterfactual]:
    return {one.change: one for one in counterfactuals(*world.run(), TOOLS)}


ALPHA, TOKEN, LIMITER = Change("tool", "alpha"), Change("first_token"), Change("limiter")
TWICE_LIMIT, HALF_LIMIT = Change("limit", factor=2.0), Change("limit", factor=0.5)
MORE_LOAD, TWICE_LOAD = Change("load", factor=1.5), Change("load", factor=2.0)


def changed(world: World, change: Change) -> World:
    """The system with the change made for real."""
    if change == ALPHA:
        return replace(world, alpha=0.5)
    if change == TOKEN:
        return replace(world, token=0.5)
    if change.kind == "limiter":
        return replace(world, spec="gathered")
    factor = change.factor or 1.0
    if change.kind == "limit":
        kind, _, limit = world.spec.partition(":")
        return replace(world, spec=f"{kind}:{int(int(limit) * factor)}")
    if world.rate is not None:
        return replace(world, rate=world.rate * factor)
    return replace(world, users=int(world.users * factor))


@pytest.mark.parametrize(
    ("world", "changes"),
    [
        (World(), [ALPHA, TOKEN]),
        (World(rate=2.0), [ALPHA, TOKEN]),
        (World("sequential", rate=2.0), [ALPHA, TOKEN]),
        (World("semaphore:4"), [TOKEN, HALF_LIMIT, MORE_LOAD]),
        (World("semaphore:4", rate=1.2), [TOKEN, HALF_LIMIT]),
        (World("semaphore:2@agent"), [ALPHA, TOKEN, LIMITER]),
        (World("rate:12/s", rate=1.8), [ALPHA, TOKEN]),
        (World("adaptive:4", rate=2.0), [ALPHA, TOKEN]),
        (World("semaphore:2", users=9, processes=3), [TOKEN, MORE_LOAD]),
        (World("semaphore:6", rate=2.0, cap=7), [TOKEN]),
        (World(rate=2.6, cap=5), [ALPHA, TOKEN, MORE_LOAD]),
        (World(rate=2.6, cap=8), [ALPHA, TOKEN]),
        (World(rate=2.6, cap=9, processes=3), [ALPHA, TOKEN]),
    ],
    ids=lambda one: f"{one.spec} {one.rate or one.users} {one.cap or ''}" if isinstance(one, World) else "",
)
def test_estimates_match_runs_in_which_the_change_was_real(world: World, changes: list[Change]) -> None:
    found = estimates(world)
    measured = figures(world)
    for change in changes:
        one, real = found[change], figures(changed(world, change))
        assert one.replay_error < 0.001
        for estimate, before, after in zip((one.p50, one.p95), measured[:2], real[:2], strict=True):
            assert estimate.measured == pytest.approx(before)
            assert estimate.estimated == pytest.approx(after, rel=0.10 if change.kind == "load" else 0.05)
            assert estimate.low <= after <= estimate.high
        assert one.failures.measured == one.failures.estimated == 0.0
