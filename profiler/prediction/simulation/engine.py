"""Discrete events on a heap, in virtual time: agents, limiters, servers.

What belongs to this package runs here as in production, since it is the same code: limiters and their rules,
the wait after Retry-After, arrivals, pauses. What belongs to others (servers, SDKs) is simulated by the rule
that a recording showed. Trials start as real ones do, agent after agent, and drain. The result depends on its
arguments alone: no clock is read, and every draw comes from the seed.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

from profiler.arrivals import share, start_offset
from profiler.limits.retries import RetryRule
from profiler.prediction.quotas.finding import Announced, QuotaFinding
from profiler.prediction.servers.pace import PaceDraws
from profiler.prediction.simulation.agents import Agent, Loop, RecordedAgent, RecordedSource
from profiler.prediction.simulation.lanes import Process
from profiler.prediction.simulation.load import RecordedTrial, SimulatedLoad, Trials
from profiler.prediction.simulation.servers import SERVERS, Clock, ServerUse
from profiler.prediction.simulation.work import LoopWork, System
from profiler.strategies import StrategySpec

Draw = Callable[[int, int], LoopWork]
"""The work of a loop that begins at a time (ns) for an agent, by its number among those of all processes."""


@dataclass(slots=True)
class TrialResult:
    """The loops of one trial, in the order in which they ended; times in ns of the virtual clock.

    `ok`: came to an answer; `good`: with every call answered. `interrupted` loops were cut off after the
    drain; they are among the others too. `dropped` arrivals never started.
    """

    seconds: float
    started_ns: int
    due: list[int] = field(default_factory=list)
    started: list[int] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    ok: list[bool] = field(default_factory=list)
    good: list[bool] = field(default_factory=list)
    interrupted: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Simulated:
    """The result of a simulation: its trials, the use of each server (the model's last), and its size."""

    trials: tuple[TrialResult, ...]
    servers: tuple[ServerUse, ...]
    events: int
    attempts: int
    refused: int


class Simulation:
    """A simulation under way: its servers, its processes with their limiters, and its clock."""

    def __init__(
        self,
        system: System,
        strategy: StrategySpec,
        load: SimulatedLoad,
        draw: Draw,
        quota: QuotaFinding | None,
        retry: RetryRule | None,
        seed: str,
    ) -> None:
        self.system = system
        self.strategy = strategy
        self.load = load
        self.draw = draw
        self.quota = quota.state(0) if quota is not None and quota.limits else None
        self.announced = Announced() if quota is None else quota.announced
        self.retry = retry
        self.seed = seed
        self.random = random.Random(seed)
        self.clock = Clock()
        self.open = False
        self.begun = 0
        self.result = TrialResult(0.0, 0)
        self.names = [
            (tool, system.mcp[place] if system.mcp else "") for place, tool in enumerate(system.tools)
        ]
        self.sequential = strategy.kind == "sequential"
        self.limited = bool(strategy.rules)
        self.by_agent = any(rule.scope == "agent" for rule in strategy.rules)
        paces = ((system.pace, "tools"), (system.model_pace, "model"))
        self.pace, self.model_pace = (
            None if pace is None else PaceDraws(pace, f"{seed}/pace/{name}") for pace, name in paces
        )
        self.uses = [ServerUse() for _ in (*system.servers, system.model)]
        self._start_anew()

    def _start_anew(self) -> None:
        """Servers and limiters without anything inside."""
        self.under_way: set[Loop] = set()
        system = self.system
        self.servers = [SERVERS[one.rule.kind](self.clock, one, self.pace) for one in system.servers]
        self.of_tools = [self.servers[place] for place in self.system.server_of]
        self.model = SERVERS[system.model.rule.kind](self.clock, system.model, self.model_pace)
        load = self.load
        part = load.workers if load.share_limit else 1
        self.processes = [
            Process(self.clock, self.strategy.rules, part, self.random) for _ in range(load.workers)
        ]
        self.waiting: dict[int, deque[tuple[Agent, int]]] = {id(one): deque() for one in self.processes}
        for number, process in enumerate(self.processes):
            most = load.max_in_flight
            process.slots = -1 if most is None else share(most, number, load.workers)
            if self.limited and not self.by_agent:
                process.of_tools = [process.path(*names, "") for names in self.names]

    def trial(self, block: int, trials: Trials) -> TrialResult:
        """Run one trial to the end of its drain."""
        load = self.load
        self._begin(0 if load.arrivals is not None else int(load.spread_seconds * 1e9), trials.seconds)
        for source in range(load.users):
            agent = Agent(self, self.processes[source % load.workers], source)
            if load.arrivals is None:
                offset = start_offset(source, load.spread_seconds)
                self.clock.at(self.begun + int(offset * 1e9), agent.begin)
            else:
                worker = source % load.workers
                agent.arrivals = load.arrivals.of_source(source, f"{self.seed}/{block}/{worker}")
                agent.plan()
        return self._measure(trials.drain_seconds)

    def recorded_trial(self, trial: RecordedTrial, drain_seconds: float) -> TrialResult:
        """Run one trial with the loops of a recording."""
        self._begin(trial.warm_up_ns, trial.seconds)
        for process, slots in zip(self.processes, trial.slots, strict=False):
            process.slots = slots
        kind = RecordedSource if trial.is_open else RecordedAgent
        for source, chain in enumerate(trial.chains):
            kind(self, self.processes[chain.process], source, chain, trial).plan()
        return self._measure(drain_seconds)

    def _begin(self, warm_up_ns: int, seconds: float) -> None:
        self.begun = self.clock.now
        self.result = TrialResult(seconds, self.begun + warm_up_ns)
        self.open = True

    def _measure(self, drain_seconds: float) -> TrialResult:
        clock, starts = self.clock, self.result.started_ns
        ends = starts + int(self.result.seconds * 1e9)
        self._run(starts)
        everything = [*self.servers, self.model]
        for server, use in zip(everything, self.uses, strict=True):
            server.use = use
        self._run(ends)
        for server in everything:
            server.use = ServerUse()
        self.open = False
        clock.now = max(clock.now, ends)
        until = ends + int(drain_seconds * 1e9)
        self._run(until)
        left = sum(map(len, self.waiting.values()))
        self.result.dropped += left
        if self.under_way or left:
            clock.now = until
            for loop in sorted(self.under_way, key=lambda one: (one.due, one.agent.source)):
                self.note(loop, False)
                self.result.interrupted += 1
            clock.heap.clear()
            self._start_anew()
        clock.heap.clear()  # arrivals that were due after the end
        return self.result

    def _run(self, until: int) -> None:
        """Let everything happen that is due before `until`."""
        clock = self.clock
        heap = clock.heap
        stop = (until, -1, _never, None)  # before everything that is due then
        heappush(heap, stop)
        while (event := heappop(heap)) is not stop:
            clock.now = event[0]
            event[2](event[3])

    def begin_loop(self, agent: Agent, due: int) -> None:
        self.under_way.add(Loop(self, agent, agent.work(), due))

    def arrived(self, agent: Agent, due: int) -> None:
        process = agent.process
        if process.slots == 0:
            self.waiting[id(process)].append((agent, due))
            return
        process.slots -= 1
        self.begin_loop(agent, due)

    def freed(self, process: Process) -> None:
        waiting = self.waiting[id(process)]
        if waiting:
            agent, due = waiting.popleft()
            self.begin_loop(agent, due)
        else:
            process.slots += 1

    def result_of(self, trials: Sequence[TrialResult]) -> Simulated:
        """Everything that was simulated."""
        arrived = sum(use.arrived for use in self.uses)
        refused = sum(use.refused for use in self.uses)
        return Simulated(tuple(trials), tuple(self.uses), self.clock.made, arrived, refused)

    def note(self, loop: Loop, ok: bool) -> None:
        result = self.result
        result.due.append(loop.due)
        result.started.append(loop.started)
        result.ended.append(self.clock.now)
        result.ok.append(ok)
        result.good.append(ok and loop.good)


def simulate(
    system: System,
    strategy: StrategySpec,
    load: SimulatedLoad,
    draw: Draw,
    trials: Trials,
    *,
    quota: QuotaFinding | None = None,
    retry: RetryRule | None = None,
    seed: str = "0",
) -> Simulated:
    """Run `trials` of a strategy under a load; `draw` gives the work of each loop that begins.

    Limiters live through all trials, as those of a process do.
    """
    simulation = Simulation(system, strategy, load, draw, quota, retry, seed)
    return simulation.result_of([simulation.trial(block, trials) for block in range(trials.blocks)])


def _never(_: Any) -> None:
    raise RuntimeError("this event only marks a time")


def _nothing(now_ns: int, source: int) -> LoopWork:
    raise LookupError("the loops are a recording's")


def simulate_recorded(
    system: System,
    strategy: StrategySpec,
    load: SimulatedLoad,
    trials: Sequence[RecordedTrial],
    drain_seconds: float,
    *,
    quota: QuotaFinding | None = None,
    retry: RetryRule | None = None,
    seed: str = "0",
) -> Simulated:
    """As `simulate`, with the loops of a recording in their order, not agents and arrivals of `load`."""
    simulation = Simulation(system, strategy, load, _nothing, quota, retry, seed)
    return simulation.result_of([simulation.recorded_trial(trial, drain_seconds) for trial in trials])
