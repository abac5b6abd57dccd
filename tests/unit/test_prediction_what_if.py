"""Counterfactuals against runs that were made both ways, by another simulation than the one that replays."""

from __future__ import annotations

import dataclasses
import random
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np
import pytest

from profiler.records import LoopRecord, ModelCall, RoundRecord, ToolCall
from profiler.rundir import Load, Run, Trial
from profiler.statistics.replay import Change, Counterfactual, counterfactuals, waited_for_a_place
from tests.unit.statistics_data import MS, run

TOOLS = ("search", "fetch")


@dataclass
class World:
    """Agents as generators that sleep or wait for a slot; time is in nanoseconds."""

    now: int = 0
    sleeping: list[tuple[int, int, Generator[int | None, None, None]]] = field(default_factory=list)
    queue: deque[Generator[int | None, None, None]] = field(default_factory=deque)
    free: float = float("inf")
    order: int = 0

    def wake_at(self, time: int, process: Generator[int | None, None, None]) -> None:
        self.order += 1
        self.sleeping.append((time, self.order, process))

    def step(self, process: Generator[int | None, None, None]) -> None:
        """Run a process to its next sleep; None asks for a slot, -1 gives one back, -2 waits to be woken."""
        while True:
            try:
                request = next(process)
            except StopIteration:
                return
            if request is None:
                if self.free > 0:
                    self.free -= 1
                    continue
                self.queue.append(process)
                return
            if request == -2:
                return
            if request < 0:
                self.free += 1
                if self.queue:
                    self.free -= 1
                    self.wake_at(self.now, self.queue.popleft())
                continue
            self.wake_at(self.now + request, process)
            return

    def run(self) -> None:
        while self.sleeping:
            entry = min(self.sleeping)
            self.sleeping.remove(entry)
            self.now = entry[0]
            self.step(entry[2])


@dataclass(frozen=True)
class Work:
    """What one loop does: first token and rest of the model request, and calls of both tools."""

    token: int
    rest: int
    calls: tuple[tuple[str, int], ...]
    pause: int


def works(agents: int, loops: int, seed: int) -> list[list[Work]]:
    draw = random.Random(seed)

    def one() -> Work:
        calls = tuple(
            (tool, int(draw.lognormvariate(0, 0.6) * 300 * MS))
            for tool in TOOLS
            for _ in range(draw.randint(1, 3))
        )
        return Work(draw.randint(100, 400) * MS, draw.randint(50, 150) * MS, calls, draw.randint(0, 30) * MS)

    return [[one() for _ in range(loops)] for _ in range(agents)]


def simulate(plans: list[list[Work]], strategy: str, change: Change | None = None) -> list[LoopRecord]:
    """The records of the plans under a strategy, had the change been real."""
    world = World()
    if strategy.startswith("semaphore") and not (change and change.kind == "limiter"):
        world.free = int(strategy.partition(":")[2])
    chained = strategy == "sequential" and not (change and change.kind == "limiter")
    records: list[LoopRecord] = []

    def call(
        calls: dict[int, ToolCall], place: int, work: Work, took: int
    ) -> Generator[int | None, None, None]:
        queued = world.now
        yield None
        started = world.now
        yield took
        calls[place] = ToolCall("c", work.calls[place][0], queued, queued, started, world.now)
        if len(calls) == len(work.calls):
            world.wake_at(world.now, running[id(calls)])
        yield -1

    running: dict[int, Generator[int | None, None, None]] = {}
    agents: dict[int, Generator[int | None, None, None]] = {}

    def agent(number: int, plan: list[Work]) -> Generator[int | None, None, None]:
        for work in plan:
            begun = world.now
            token = work.token // 2 if change and change.kind == "first_token" else work.token
            yield token + work.rest
            asked = world.now
            calls: dict[int, ToolCall] = {}
            running[id(calls)] = agents[number]
            for place, (tool, duration) in enumerate(work.calls):
                took = duration // 2 if change == Change("tool", tool) else duration
                if chained:
                    started = world.now
                    yield took
                    calls[place] = ToolCall("c", tool, asked, asked, started, world.now)
                else:
                    world.step(call(calls, place, work, took))
            if not chained:
                yield -2
            done = [calls[place] for place in range(len(work.calls))]
            model = ModelCall("openai", "m", begun, asked, first_token_ns=begun + token, streamed=True)
            ended = max(c.ended_ns for c in done)
            first = RoundRecord(0, begun, world.now, model, asked, ended, tuple(done))
            records.append(
                LoopRecord(
                    id=f"{number}-{len(records)}",
                    strategy=strategy,
                    provider="openai",
                    model="m",
                    started_ns=begun,
                    ended_ns=world.now,
                    status="ok",
                    rounds=(first,),
                    agent=str(number),
                    trial=0,
                )
            )
            yield work.pause

    for number, plan in enumerate(plans):
        agents[number] = agent(number, plan)
        world.wake_at(0, agents[number])
    world.run()
    return records


def one_trial(strategy: str) -> Run:
    everything = Trial(
        index=0, block=0, strategy=strategy, users=8, started_ns=0, ended_ns=10**15, drained_ns=10**15
    )
    return run([everything])


CHANGES = (Change("tool", "search"), Change("first_token"), Change("limiter"))


@pytest.mark.parametrize("strategy", ["sequential", "gathered", "semaphore:6"])
def test_estimates_match_runs_in_which_the_change_was_real(strategy: str) -> None:
    plans = works(agents=8, loops=40, seed=3)
    records = simulate(plans, strategy)
    estimates = {one.change: one for one in counterfactuals(one_trial(strategy), records, TOOLS)}
    measured = np.array([r.ended_ns - r.started_ns for r in records]) / 1e9
    for change in CHANGES:
        if strategy == "gathered" and change.kind == "limiter":
            assert change not in estimates
            continue
        truth = [r.ended_ns - r.started_ns for r in simulate(plans, strategy, change)]
        estimate = estimates[change]
        assert estimate.loops == 320
        assert estimate.replay_error < 0.001
        for name, p in (("p50", 0.5), ("p95", 0.95)):
            figure = getattr(estimate, name)
            assert figure.measured == pytest.approx(np.quantile(measured, p))
            assert figure.estimated == pytest.approx(np.quantile(truth, p) / 1e9, rel=0.001)


def test_shared_limiter_is_replayed_with_the_waits_of_others() -> None:
    """Halving one of two tools behind a crowded semaphore saves more than half of that tool's time."""
    records = simulate(works(agents=8, loops=40, seed=3), "semaphore:2")
    estimate = next(
        one
        for one in counterfactuals(one_trial("semaphore:2"), records, TOOLS)
        if one.change.tool == "search"
    )
    own = np.quantile(
        [sum(c.ended_ns - (c.started_ns or 0) for c in r.tool_calls if c.name == "search") for r in records],
        0.5,
    )
    saved = estimate.p50.measured - estimate.p50.estimated
    assert saved > 0.75 * own / 1e9
    assert estimate.change.words == "with search twice as fast"


def per_agent(limit: int) -> tuple[Counterfactual, ...]:
    """One loop: model request of 100 ms, calls of 40, 30, 20 and 10 ms through the agent's own limiter."""
    durations, ends = [40, 30, 20, 10], [0] * limit
    calls = []
    for duration in durations:
        start = min(ends)
        ends[ends.index(start)] = start + duration
        calls.append(
            ToolCall(
                "c", f"t{duration}", 100 * MS, 100 * MS, (100 + start) * MS, (100 + start + duration) * MS
            )
        )
    done = (100 + max(ends)) * MS
    model = ModelCall("openai", "m", 0, 100 * MS)
    spec = f"semaphore:{limit}@agent"
    only = RoundRecord(0, 0, done, model, 100 * MS, done, tuple(calls))
    record = LoopRecord("a", spec, "openai", "m", 0, done, "ok", (only,), trial=0)
    return counterfactuals(one_trial(spec), [record], ["t40", "t10"])


def test_agents_own_limiter_by_hand() -> None:
    found = {one.change: one.p50 for one in per_agent(2)}
    # Two places: 40 | 30, then 20 after 30, 10 after 40: 50 ms. 20 | 30, then 20 and 10: 40 ms.
    assert found[Change("tool", "t40")].measured == pytest.approx(0.150)
    assert found[Change("tool", "t40")].estimated == pytest.approx(0.140)
    assert found[Change("limiter")].estimated == pytest.approx(0.140)
    assert Change("tool", "t10") not in found or found[Change("tool", "t10")].estimated == pytest.approx(
        0.150
    )
    assert Change("first_token") not in found  # none was observed


def test_replay_that_misses_the_run_estimates_nothing() -> None:
    """Fifty calls at once through a "semaphore" of two: whatever ran there, it was not that."""
    records = simulate(works(agents=25, loops=4, seed=5), "gathered")
    trials = [
        Trial(
            index=0,
            block=0,
            strategy="semaphore:2",
            users=25,
            started_ns=0,
            ended_ns=10**15,
            drained_ns=10**15,
        )
    ]
    assert counterfactuals(run(trials), records, TOOLS) == ()


def test_loops_outside_the_window_and_unknown_strategies_do_not_count() -> None:
    records = simulate(works(agents=2, loops=5, seed=1), "gathered")
    conditions = one_trial("gathered")
    trials = (
        Trial(index=0, block=0, strategy="my-own", users=8, started_ns=0, ended_ns=10**15, drained_ns=10**15),
    )
    assert counterfactuals(run(trials), records, TOOLS) == ()
    assert counterfactuals(conditions, [], TOOLS) == ()
    half = sorted(r.started_ns for r in records)[5]
    window = Trial(
        index=0, block=0, strategy="gathered", users=8, started_ns=half, ended_ns=10**15, drained_ns=10**15
    )
    assert {one.loops for one in counterfactuals(run([window]), records, TOOLS)} == {5}


def test_no_estimates_where_arrivals_waited_for_a_place() -> None:
    """An open load under a cap: every fourth loop starts 50 ms later than it was due."""
    load = dataclasses.replace(one_trial("gathered"), load=Load("open", 8, arrivals="5/s", rate=5.0))

    def due(record: LoopRecord, number: int, wait: float) -> LoopRecord:
        late = int(wait * 1e6) if number % 4 == 0 else 0
        return dataclasses.replace(record, intended_ns=record.started_ns - late, agent=f"a{number}")

    records = simulate(works(agents=8, loops=20, seed=3), "gathered")
    for wait, estimated in ((0.0, True), (0.5, True), (200.0, False)):
        made = [due(record, number, wait) for number, record in enumerate(records)]
        assert bool(counterfactuals(load, made, TOOLS)) is estimated


def test_waits_are_judged_against_the_median_latency() -> None:
    latencies = np.full(1000, 1_000_000_000)
    few, some = (np.where(np.arange(1000) < count, 60_000_000, 0) for count in (10, 11))
    assert not waited_for_a_place(few, latencies)
    assert waited_for_a_place(some, latencies)
    assert not waited_for_a_place(some * 5 // 6, latencies)  # 50 ms: 5 % of the median
    assert not waited_for_a_place(latencies[:0], latencies[:0])
