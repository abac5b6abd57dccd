"""Estimates against systems that ran both ways, in virtual time, by the loop that production runs."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pytest

from profiler import ToolLoop, tool
from profiler.arrivals import pause_after
from profiler.loop.model import CallRequest, Reply
from profiler.prediction.fitting import fit_run
from profiler.prediction.simulation.recorded import stretch_of, waited_for_a_place, with_load
from profiler.prediction.what_if import (
    FEWEST_LOOPS,
    Change,
    Counterfactual,
    WhatIf,
    counterfactuals,
    what_if,
)
from profiler.records import LoopRecord, ModelCall, RoundRecord, ToolCall
from profiler.rundir import Load, Run, Trial
from profiler.strategies import parse_strategy
from profiler.testing import run_virtual
from tests.unit.statistics_data import MS, run

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
    seconds: float = 60.0
    processes: int = 1
    index: int = 0

    def __str__(self) -> str:
        return f"{self.spec}, {f'{self.rate}/s' if self.rate else self.users}, {self.cap}, {self.processes}"

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


def figures(conditions: Run, records: list[LoopRecord]) -> tuple[float, float, float]:
    """p50, p95 and the share of failed loops."""
    (trial,) = conditions.trials
    inside = [record for record in records if trial.started_ns <= record.due_ns < trial.ended_ns]
    p50, p95 = np.quantile([record.latency_ns / 1e9 for record in inside if record.answered], (0.5, 0.95))
    return float(p50), float(p95), float(np.mean([not record.good for record in inside]))


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


def check(world: World, changes: Sequence[Change], rel: float | None = None) -> dict[Change, Counterfactual]:
    """What is estimated of the changes is what really happens: exactly where arrivals are the same."""
    rel = rel or (0.01 if world.rate else 0.08)
    conditions, records = world.run()
    found = {one.change: one for one in counterfactuals(conditions, records, TOOLS)}
    measured = figures(conditions, records)
    for change in changes:
        one, real = found[change], figures(*changed(world, change).run())
        assert one.replay_error < 0.01
        for estimate, before, after in zip((one.p50, one.p95), measured[:2], real[:2], strict=True):
            assert estimate.measured == pytest.approx(before)
            assert estimate.estimated == pytest.approx(after, rel=rel), change
            assert estimate.low <= after <= estimate.high
        assert one.failures.measured == pytest.approx(measured[2])
        assert one.failures.estimated == pytest.approx(real[2], abs=0.05)
        assert one.failures.low <= real[2] <= one.failures.high
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "changes"),
    [
        (World(), [ALPHA, TOKEN]),
        (World(rate=2.0), [ALPHA, TOKEN]),
        (World("sequential", rate=2.0), [ALPHA, TOKEN]),
        (World("semaphore:4"), [TOKEN, HALF_LIMIT]),
        (World("semaphore:4", rate=1.2), [TOKEN, HALF_LIMIT]),
        (World("semaphore:2@agent"), [ALPHA, TOKEN]),
        (World("rate:12/s", rate=1.5), [ALPHA, TOKEN]),
        (World("adaptive:4", rate=2.0), [ALPHA, TOKEN]),
        (World("semaphore:2", users=9, processes=3), [ALPHA, TOKEN]),
        (World("semaphore:6", rate=2.0, cap=7), [TOKEN]),
        (World(rate=2.6, cap=5), [ALPHA, TOKEN]),
        (World(rate=2.6, cap=8), [ALPHA, TOKEN]),
        (World(rate=2.6, cap=9, processes=3), [ALPHA, TOKEN]),
    ],
    ids=str,
)
def test_estimates_match_runs_in_which_the_change_was_real(world: World, changes: list[Change]) -> None:
    check(world, changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "world", [World("semaphore:4", seconds=120.0), World(rate=2.6, cap=5, seconds=120.0)], ids=str
)
def test_estimates_of_other_loads_match_those_loads(world: World) -> None:
    check(world, [MORE_LOAD], rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["queue", "share", "refuse"])
def test_waits_at_a_server_are_no_part_of_a_tool_s_own_time(kind: Any) -> None:
    """Twice as fast, the tool waits or is refused far less than half as much: the capacity was seen."""
    world = World(rate=2.2, kind=kind, capacity=8, seconds=120.0)
    found = check(world, [ALPHA, TOKEN], rel=0.05)
    if kind == "refuse":
        assert found[ALPHA].failures.estimated < 0.5 * found[ALPHA].failures.measured
    else:
        assert found[ALPHA].p95.estimated < 0.7 * found[ALPHA].p95.measured


def test_nothing_is_estimated_beyond_what_was_seen_unless_another_strategy_went_there() -> None:
    limited, records = World("semaphore:4", seconds=60.0).run()
    alone = what_if(limited, records, TOOLS)
    assert {one.change for one in alone.estimates}.isdisjoint({LIMITER, TWICE_LIMIT})
    why = {one.change: one.why for one in alone.unknown}
    assert why[LIMITER].startswith("outside the recording: alpha would have up to ")
    assert " at once and was seen with 4" in why[LIMITER]

    gathered, more = World(index=1, users=16, seconds=120.0).run()
    trials = (*limited.trials, *gathered.trials)
    both = replace(
        limited, trials=trials, strategies=(*limited.strategies, *gathered.strategies), finished=True
    )
    found = what_if(both, [*records, *more], TOOLS, users=8)
    assert {LIMITER, TWICE_LIMIT} <= {one.change for one in found.estimates}
    assert {one.strategy for one in found.estimates} == {"semaphore:4"}  # gathered had other agents


# By hand.


def by_hand(spec: str, calls: Sequence[ToolCall], loops: int = 25) -> WhatIf:
    """The same loop again and again, a second each: a model request of 100 ms, then these calls."""

    def moved(call: ToolCall, by: int) -> ToolCall:
        times = {
            name: getattr(call, name) + by for name in ("ready_ns", "queued_ns", "started_ns", "ended_ns")
        }
        return replace(call, **times)

    records = []
    for number in range(loops):
        at = number * SECOND
        mine = tuple(moved(call, at) for call in calls)
        end = max(call.ended_ns for call in mine)
        model = ModelCall("openai", "m", at, at + 100 * MS)
        only = RoundRecord(0, at, end, model, at + 100 * MS, end, mine)
        records.append(
            LoopRecord(f"{number}", spec, "openai", "m", at, end, "ok", (only,), agent="a", trial=0)
        )
    window = Trial(0, 0, spec, 1, 0, loops * SECOND, loops * SECOND)
    return what_if(run([window]), records, ["t40", "t10"])


def one_after_another(limit: int, durations: Sequence[int] = (40, 30, 20, 10)) -> list[ToolCall]:
    """Calls through `limit` places, first come, first served."""
    ends, calls = [100] * limit, []
    for duration in durations:
        start = min(ends)
        ends[ends.index(start)] = start + duration
        calls.append(ToolCall("c", f"t{duration}", 100 * MS, 100 * MS, start * MS, (start + duration) * MS))
    return calls


@pytest.mark.parametrize("spec", ["semaphore:2@agent", "semaphore:2"])
def test_limiter_by_hand(spec: str) -> None:
    found = {one.change: one for one in by_hand(spec, one_after_another(2)).estimates}
    # Two places: 40 | 30, then 20 after 30, 10 after 40: 50 ms. 20 | 30, then 20 and 10: 40 ms.
    one = found[Change("tool", "t40")]
    assert (one.p50.measured, one.p50.estimated) == (pytest.approx(0.150), pytest.approx(0.140))
    assert (one.loops, one.replay_error) == (25, 0.0)
    # All the same, so that nothing is left to chance.
    assert (one.p50.low, one.p50.high) == (one.p50.estimated, one.p50.estimated)
    assert found[LIMITER].p50.estimated == pytest.approx(0.140)
    # One place: 40 + 30 + 20 + 10.
    assert found[HALF_LIMIT].p50.estimated == pytest.approx(0.200)
    assert Change("tool", "t10") not in found  # it is not in the way
    assert TOKEN not in found  # none was observed


def test_words_of_changes() -> None:
    assert [one.words for one in (ALPHA, TOKEN, LIMITER, TWICE_LIMIT, HALF_LIMIT, MORE_LOAD, TWICE_LOAD)] == [
        "with alpha twice as fast",
        "with the first token twice as fast",
        "without the limiter",
        "with twice the limit",
        "with half the limit",
        "with 1.5 times the load",
        "with twice the load",
    ]


def test_run_that_the_simulation_misses_has_no_estimates() -> None:
    """Four calls at once through a "semaphore" of one: whatever ran there, it was not that."""
    found = by_hand("semaphore:1", one_after_another(4))
    assert found.estimates == ()
    (one,) = found.unknown
    assert (one.strategy, one.users, one.change) == ("semaphore:1", 1, None)
    assert one.why == "run again without a change, its median is 43 % off: something is not simulated"


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("my-own", "this version does not know how it runs calls"),
        ("a=1", "how calls run is up to the agent's own code"),
        ("semaphore:4 a=1", "how calls run is up to the agent's own code"),
        ("eager", "calls that start while the reply streams are not simulated"),
    ],
)
def test_strategies_that_are_not_simulated_are_named(spec: str, why: str) -> None:
    found = by_hand(spec, one_after_another(4))
    assert found.estimates == ()
    assert [(one.strategy, one.change, one.why) for one in found.unknown] == [(spec, None, why)]


def test_few_loops_have_no_estimates() -> None:
    found = by_hand("gathered", one_after_another(4), FEWEST_LOOPS - 1)
    assert (found.estimates, [one.why for one in found.unknown]) == ((), ["only 19 loops were answered"])
    assert by_hand("gathered", one_after_another(4)).estimates
    assert what_if(run([]), [], TOOLS) == WhatIf(())


# Stretches of a recording.


def test_loops_outside_the_window_do_not_count() -> None:
    conditions, records = World(seconds=60.0).run()
    (trial,) = conditions.trials
    fitted = fit_run(conditions, records)
    works = dict(zip(fitted.places, fitted.loops, strict=True))
    half = replace(trial, started_ns=30 * SECOND)
    for window, most in ((trial, 10**6), (half, 10**6), (trial, 300)):
        stretch = stretch_of(conditions, window, records, works, most)
        assert stretch is not None
        end = window.started_ns + int(stretch.trial.seconds * SECOND)
        begun = window.started_ns - stretch.trial.warm_up_ns
        inside = [one for one in records if window.started_ns <= one.started_ns < end]
        assert sorted(stretch.due + begun) == sorted(one.started_ns for one in inside)
        assert stretch.loops == len(inside)
        calls = sum(sum(1 for _ in one.tool_calls) for one in records if one.started_ns < end)
        assert (end == window.ended_ns) if most == 10**6 else (280 < calls <= most)
    nothing = replace(trial, started_ns=trial.ended_ns - 1)
    assert stretch_of(conditions, nothing, records, works, 10**6) is None


def test_places_that_arrivals_waited_for_are_seen_in_each_process() -> None:
    for world, slots in (
        (World(rate=2.6, cap=5, seconds=30.0), (5,)),
        (World(rate=3.2, cap=9, processes=3, seconds=30.0), (3, 3, 3)),
        (World(rate=1.0, seconds=30.0), (-1,)),
    ):
        conditions, records = world.run()
        fitted = fit_run(conditions, records)
        works = dict(zip(fitted.places, fitted.loops, strict=True))
        stretch = stretch_of(conditions, conditions.trials[0], records, works, 10**6)
        assert stretch is not None
        assert stretch.trial.slots == slots
    told = replace(conditions, arguments={"max_in_flight": 50})
    stretch = stretch_of(told, conditions.trials[0], records, works, 10**6)
    assert stretch is not None
    assert stretch.trial.slots == (50,)


def test_more_load_is_nearer_arrivals_or_more_agents() -> None:
    conditions, records = World(rate=2.0, seconds=30.0).run()
    fitted = fit_run(conditions, records)
    works = dict(zip(fitted.places, fitted.loops, strict=True))
    stretch = stretch_of(conditions, conditions.trials[0], records, works, 10**6)
    assert stretch is not None
    twice = with_load(stretch.trial, 2.0)
    assert twice.period_ns == stretch.trial.period_ns // 2
    for one, other in zip(stretch.trial.chains, twice.chains, strict=True):
        assert other.times_ns == tuple(ns // 2 for ns in one.times_ns)

    conditions, records = World(seconds=30.0).run()
    fitted = fit_run(conditions, records)
    works = dict(zip(fitted.places, fitted.loops, strict=True))
    stretch = stretch_of(conditions, conditions.trials[0], records, works, 10**6)
    assert stretch is not None
    chains = with_load(stretch.trial, 1.5).chains
    assert (len(stretch.trial.chains), len(chains)) == (8, 12)
    assert chains[:8] == stretch.trial.chains
    for added, whose in zip(chains[8:], (0, 2, 4, 6), strict=True):
        original = stretch.trial.chains[whose]
        middle = len(original.loops) // 2
        assert added.loops == (*original.loops[middle:], *original.loops[:middle])
        assert len(added.times_ns) == len(added.well) == len(added.loops)


def test_waits_are_judged_against_the_median_latency() -> None:
    latencies = np.full(1000, 1_000_000_000)
    few, some = (np.where(np.arange(1000) < count, 60_000_000, 0) for count in (10, 11))
    assert not waited_for_a_place(few, latencies)
    assert waited_for_a_place(some, latencies)
    assert not waited_for_a_place(some * 5 // 6, latencies)  # 50 ms: 5 % of the median
    assert not waited_for_a_place(latencies[:0], latencies[:0])
