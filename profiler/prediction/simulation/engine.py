"""Discrete events on a heap, in virtual time: agents, limiters, servers.

What belongs to this package runs here as in production, since it is the same code: limiters and their rules,
the wait after Retry-After, arrivals, pauses. What belongs to others (servers, SDKs) is simulated by the rule
that a recording showed. Trials start as real ones do, agent after agent, and drain. The result depends on its
arguments alone: no clock is read, and every draw comes from the seed.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

from profiler.arrivals import Arrivals, pause_after, share, start_offset
from profiler.limits.limiter import Signal
from profiler.limits.refusals import Holdback
from profiler.prediction.quotas.finding import Announced, QuotaFinding
from profiler.prediction.quotas.retries import RetryRule
from profiler.prediction.servers.pace import PaceDraws
from profiler.prediction.simulation.lanes import Lane, Process
from profiler.prediction.simulation.servers import SERVERS, Clock, ServerUse
from profiler.prediction.simulation.work import CallWork, LoopWork, System
from profiler.strategies import StrategySpec

NOTHING: dict[str, float] = {}


Draw = Callable[[int, int], LoopWork]
"""The work of a loop that begins at a time (ns) for an agent, by its number among those of all processes."""


@dataclass(frozen=True, slots=True)
class SimulatedLoad:
    """How loops are started, as in `rundir.Load`.

    `workers` processes run the agents; of a limit each has its part where they `share_limit`, else all of it.
    `spread_seconds`: the agents of a closed load start one after another within that time.
    """

    users: int
    arrivals: Arrivals | None = None
    max_in_flight: int | None = None
    think_seconds: float = 0.0
    workers: int = 1
    share_limit: bool = False
    spread_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Trials:
    """`blocks` trials of `seconds` each, one after another, each drained for `drain_seconds` at most."""

    seconds: float
    blocks: int = 1
    drain_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Chain:
    """The loops of one agent, or one source of arrivals, in the order of a recording; all times in ns.

    `process` is the place of its process. `times_ns`: in a closed load the pause before each loop (of the
    first: from the start of the trial); in an open one when each is due, from the start of the trial. `well`:
    whether it ended well in the recording, which decides whether the pause after it was that of a failure.
    """

    process: int
    loops: tuple[LoopWork, ...]
    times_ns: tuple[int, ...]
    well: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class RecordedTrial:
    """A trial with the loops of a recording in their order, instead of drawn ones.

    It measures for `seconds`, which begin `warm_up_ns` after its start. An agent that has run all of its
    loops before the end begins again with the first, after `again_ns`; in an open load the arrivals are
    repeated every `period_ns`. `slots`: how many loops each process may have under way (-1: any number).
    """

    chains: tuple[Chain, ...]
    is_open: bool
    warm_up_ns: int
    seconds: float
    slots: tuple[int, ...]
    again_ns: int = 0
    period_ns: int = 0


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


# Agents, loops and calls.


class _Call:
    """A tool call under way."""

    __slots__ = ("failed", "lanes", "loop", "place", "service_ns", "step", "tickets", "tool")

    lanes: tuple[Lane, ...]
    tickets: list[Any]

    def __init__(self, loop: _Loop, work: CallWork, place: int) -> None:
        self.loop = loop
        self.tool = work.tool
        self.service_ns = work.service_ns
        self.failed = work.failed
        self.place = place

    def begin(self, _: Any = None) -> None:
        """It is handed to the strategy."""
        loop = self.loop
        simulation = loop.simulation
        if not simulation.limited:
            simulation.of_tools[self.tool].arrive(self)
            return
        process, tool = loop.process, self.tool
        self.tickets = []
        self.lanes = lanes = (
            process.path(*simulation.names[tool], loop.agent.name)
            if simulation.by_agent
            else process.of_tools[tool]
        )
        if process.held or not lanes:
            self.hold()
        else:
            self.step = 1
            lanes[0].enter(self)

    def hold(self, waited: bool = False) -> None:
        """Wait as long as a server asked calls of this tool to; then queue."""
        process = self.loop.process
        if process.held:
            holdback = process.holdbacks.get(self.tool)
            if holdback is not None:
                now = process.clock.now
                # Only a new refusal means waiting again: the random part has been waited already.
                wait_ns = holdback.wait_ns(now) if not waited or holdback.is_closed(now) else 0
                if wait_ns:
                    process.clock.at(now + wait_ns, self.hold, True)
                    return
        self.step = 0
        self.go_on()

    def go_on(self) -> None:
        """Enter the next lane, or start."""
        step, loop = self.step, self.loop
        if step < len(self.lanes):
            self.step = step + 1
            self.lanes[step].enter(self)
            return
        process = loop.process
        if process.held:
            holdback = process.holdbacks.get(self.tool)
            if holdback is not None and holdback.is_closed(process.clock.now):
                self._leave("unknown", NOTHING)
                self.hold()
                return
        loop.simulation.of_tools[self.tool].arrive(self)

    def _leave(self, signal: Signal, used: dict[str, float] | None) -> None:
        lanes, tickets = self.lanes, self.tickets
        if len(lanes) == 1:
            lanes[0].leave(tickets.pop(), signal, used)
            return
        self.tickets = []
        for lane, ticket in zip(lanes, tickets, strict=True):
            lane.leave(ticket, signal, used)

    def answered(self, refused: bool, retry_after_ns: int | None) -> None:
        loop = self.loop
        if loop.simulation.limited:
            if refused and retry_after_ns is not None:
                process = loop.process
                process.held = True
                holdback = process.holdbacks.get(self.tool)
                if holdback is None:
                    holdback = process.holdbacks[self.tool] = Holdback(process.random)
                holdback.refused(process.clock.now, retry_after_ns)
            signal: Signal = "rejected" if refused else "unknown" if self.failed else "ok"
            lanes = self.lanes
            if len(lanes) == 1:  # as `_leave`, written out where most calls come by
                lane = lanes[0]
                lane.limiter.leave(lane.clock.now, self.tickets.pop(), signal, None)
                if lane.queue:
                    lane.admit()
            else:
                self._leave(signal, None)
        if refused or self.failed:
            loop.good = False
        loop.call_ended(self)


class _Loop:
    """A loop under way; as a job it is its model request."""

    __slots__ = (
        *("agent", "due", "good", "open", "process", "round", "service_ns", "simulation", "started", "tries"),
        "work",
    )

    def __init__(self, simulation: _Simulation, agent: _Agent, work: LoopWork, due: int) -> None:
        self.simulation = simulation
        self.agent = agent
        self.process = agent.process
        self.work = work
        self.due = due
        self.good = not work.failed
        self.round = 0
        clock = simulation.clock
        self.started = clock.now
        if work.before_ns:
            clock.at(clock.now + work.before_ns, self.request)
        else:
            self.request()

    def request(self, _: Any = None) -> None:
        """Begin the next round."""
        if self.round == len(self.work.rounds):
            self._end(not self.work.failed)
            return
        self.tries = 0
        self.ask()

    def ask(self, _: Any = None) -> None:
        """One attempt of the model request."""
        self.tries += 1
        simulation = self.simulation
        model, quota = simulation.model, simulation.quota
        work = self.work.rounds[self.round]
        self.service_ns = work.service_ns
        if quota is not None:
            refusal = quota.admit(work.input_tokens, work.output_tokens, simulation.clock.now)
            if refusal is not None:
                model.use.arrived += 1
                model.refuse(self, simulation.announced.wait_ns(refusal))
                return
        model.arrive(self)

    def answered(self, refused: bool, retry_after_ns: int | None) -> None:
        simulation = self.simulation
        clock = simulation.clock
        if refused:
            retry = simulation.retry
            if retry is None or not retry.again(self.tries, 429, retry_after_ns):
                self._end(False)
                return
            wait_ns = retry.delay_ns(self.tries, retry_after_ns, simulation.random)
            clock.at(clock.now + wait_ns, self.ask)
            return
        if simulation.quota is not None:
            simulation.quota.release()
        work = self.work.rounds[self.round]
        if work.calls:
            clock.at(clock.now + work.parse_ns, self.tools)
        else:
            self._next(work.parse_ns + work.collect_ns)

    def tools(self, _: Any = None) -> None:
        """Hand the calls of the round to the strategy."""
        calls = self.work.rounds[self.round].calls
        self.open = len(calls)
        if self.simulation.sequential:
            _Call(self, calls[0], 0).begin()
            return
        clock = self.simulation.clock
        for place, work in enumerate(calls):
            if work.after_ns:
                clock.at(clock.now + work.after_ns, _Call(self, work, place).begin)
            else:
                _Call(self, work, place).begin()

    def call_ended(self, call: _Call) -> None:
        self.open -= 1
        work = self.work.rounds[self.round]
        if not self.open:
            self._next(work.collect_ns)
        elif self.simulation.sequential:
            place = call.place + 1
            _Call(self, work.calls[place], place).begin()

    def _next(self, after_ns: int) -> None:
        self.round += 1
        clock = self.simulation.clock
        if self.round == len(self.work.rounds):
            after_ns += self.work.after_ns
        clock.at(clock.now + after_ns, self.request)

    def _end(self, ok: bool) -> None:
        simulation = self.simulation
        simulation.under_way.discard(self)
        simulation.note(self, ok)
        self.agent.ended(self, ok and self.good)


class _Agent:
    """An agent, or in an open load a source of arrivals. `source` counts those of all processes."""

    __slots__ = ("arrivals", "failures", "name", "process", "simulation", "source")

    def __init__(self, simulation: _Simulation, process: Process, source: int) -> None:
        self.simulation = simulation
        self.process = process
        self.source = source
        self.name = str(source)
        self.failures = 0
        self.arrivals: Iterator[float] | None = None

    def work(self) -> LoopWork:
        """What its next loop does."""
        return self.simulation.draw(self.simulation.clock.now, self.source)

    # A closed load:

    def begin(self, _: Any = None) -> None:
        simulation = self.simulation
        if simulation.open:
            simulation.begin_loop(self, simulation.clock.now)

    def ended(self, loop: _Loop, well: bool) -> None:
        simulation = self.simulation
        if self.arrivals is not None:
            simulation.freed(self.process)
            return
        if not simulation.open:
            return
        now = simulation.clock.now
        self.failures = 0 if well else self.failures + 1
        pause = max(simulation.load.think_seconds, pause_after(self.failures, (now - loop.started) / 1e9))
        if pause:
            simulation.clock.at(now + int(pause * 1e9), self.begin)
        else:
            self.begin()

    # An open one:

    def arrive(self, due: int) -> None:
        simulation = self.simulation
        if not simulation.open:
            return
        self.plan()
        simulation.arrived(self, due)

    def plan(self) -> None:
        """Have the next arrival happen when it is due."""
        assert self.arrivals is not None
        due = self.simulation.begun + int(next(self.arrivals) * 1e9)
        self.simulation.clock.at(due, self.arrive, due)


class _RecordedAgent(_Agent):
    """Runs the loops of a chain in a closed load, each as long after the one before as it did."""

    __slots__ = ("chain", "place", "trial")

    def __init__(
        self, simulation: _Simulation, process: Process, source: int, chain: Chain, trial: RecordedTrial
    ) -> None:
        super().__init__(simulation, process, source)
        self.chain = chain
        self.trial = trial
        self.place = 0

    def work(self) -> LoopWork:
        loops = self.chain.loops
        work = loops[self.place % len(loops)]
        self.place += 1
        return work

    def plan(self) -> None:
        """Have its first loop begin."""
        self.simulation.clock.at(self.simulation.begun + self.chain.times_ns[0], self.begin)

    def ended(self, loop: _Loop, well: bool) -> None:
        simulation = self.simulation
        if not simulation.open:
            return
        chain, now, place = self.chain, simulation.clock.now, self.place
        wait_ns = chain.times_ns[place] if place < len(chain.loops) else self.trial.again_ns
        self.failures = 0 if well else self.failures + 1
        if well != chain.well[(place - 1) % len(chain.loops)]:
            pause = pause_after(self.failures, (now - loop.started) / 1e9)
            wait_ns = int(max(simulation.load.think_seconds, pause) * 1e9)
        simulation.clock.at(now + wait_ns, self.begin)


class _RecordedSource(_RecordedAgent):
    """Has the loops of a chain arrive when they did."""

    __slots__ = ("planned",)

    def plan(self) -> None:
        """Have the next loop arrive when it is due."""
        chain = self.chain
        passes, place = divmod(self.planned, len(chain.times_ns))
        self.planned += 1
        due = self.simulation.begun + chain.times_ns[place] + passes * self.trial.period_ns
        self.simulation.clock.at(due, self.arrive, due)

    def __init__(self, *of: Any) -> None:
        super().__init__(*of)
        self.planned = 0

    def ended(self, loop: _Loop, well: bool) -> None:
        self.simulation.freed(self.process)


class _Simulation:
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
        self.under_way: set[_Loop] = set()
        system = self.system
        self.servers = [SERVERS[one.rule.kind](self.clock, one, self.pace) for one in system.servers]
        self.of_tools = [self.servers[place] for place in self.system.server_of]
        self.model = SERVERS[system.model.rule.kind](self.clock, system.model, self.model_pace)
        load = self.load
        part = load.workers if load.share_limit else 1
        self.processes = [
            Process(self.clock, self.strategy.rules, part, self.random) for _ in range(load.workers)
        ]
        self.waiting: dict[int, deque[tuple[_Agent, int]]] = {id(one): deque() for one in self.processes}
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
            agent = _Agent(self, self.processes[source % load.workers], source)
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
        kind = _RecordedSource if trial.is_open else _RecordedAgent
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

    def begin_loop(self, agent: _Agent, due: int) -> None:
        self.under_way.add(_Loop(self, agent, agent.work(), due))

    def arrived(self, agent: _Agent, due: int) -> None:
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

    def note(self, loop: _Loop, ok: bool) -> None:
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
    simulation = _Simulation(system, strategy, load, draw, quota, retry, seed)
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
    simulation = _Simulation(system, strategy, load, _nothing, quota, retry, seed)
    return simulation.result_of([simulation.recorded_trial(trial, drain_seconds) for trial in trials])
