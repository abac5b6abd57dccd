"""What moves in a simulation: agents, their loops, and the calls of those."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from profiler.arrivals import pause_after
from profiler.limits.limiter import Signal
from profiler.limits.refusals import Holdback
from profiler.limits.token_bucket import QuotaRefusal
from profiler.prediction.simulation.lanes import Lane, Process
from profiler.prediction.simulation.load import Chain, RecordedTrial
from profiler.prediction.simulation.work import CallWork, LoopWork

if TYPE_CHECKING:
    from profiler.prediction.simulation.engine import Simulation

NOTHING: dict[str, float] = {}


class Call:
    """A tool call under way."""

    __slots__ = ("client_ns", "failed", "lanes", "loop", "place", "service_ns", "step", "tickets", "tool")

    lanes: tuple[Lane, ...]
    tickets: list[Any]

    def __init__(self, loop: Loop, work: CallWork, place: int) -> None:
        self.loop = loop
        self.tool = work.tool
        self.service_ns = work.service_ns
        self.client_ns = work.client_ns
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

    def noticed(self, _: Any) -> None:
        """The client has the answer that the server gave a while ago."""
        self.client_ns = 0
        self.answered(False, None)

    def answered(self, refused: bool, retry_after_ns: int | None) -> None:
        if self.client_ns and not refused:  # a refusal's is in the server's `refusal_ns`
            clock = self.loop.simulation.clock
            clock.at(clock.now + self.client_ns, self.noticed)
            return
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


class Loop:
    """A loop under way; as a job it is its model request."""

    __slots__ = (
        *("agent", "due", "good", "open", "process", "round", "service_ns", "simulation", "started", "tries"),
        "work",
    )

    def __init__(self, simulation: Simulation, agent: Agent, work: LoopWork, due: int) -> None:
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
                self._refused(refusal)
                return
        model.arrive(self)

    def _refused(self, refusal: QuotaRefusal) -> None:
        """The model's quota refuses the request."""
        simulation, process = self.simulation, self.process
        model, clock = simulation.model, simulation.clock
        wait_ns = simulation.announced.wait_ns(refusal)
        model.use.arrived += 1
        if simulation.retry is None or simulation.retry.times is None:
            model.refuse(self, wait_ns)
            return
        model.use.refused += 1
        process.noticed_ns = simulation.retry.times.noticed_ns(
            clock.now, process.noticed_ns, simulation.random
        )
        clock.at(process.noticed_ns, self._turned_away, wait_ns)

    def _turned_away(self, wait_ns: int | None) -> None:
        self.answered(True, wait_ns)

    def again(self, _: Any = None) -> None:
        """The next attempt is due."""
        simulation, process = self.simulation, self.process
        clock = simulation.clock
        assert simulation.retry is not None
        assert simulation.retry.times is not None
        process.sent_ns = simulation.retry.times.sent_ns(clock.now, process.sent_ns, simulation.random)
        clock.at(process.sent_ns, self.ask)

    def answered(self, refused: bool, retry_after_ns: int | None) -> None:
        simulation = self.simulation
        clock = simulation.clock
        if refused:
            retry = simulation.retry
            if retry is None or not retry.again(self.tries, 429, retry_after_ns):
                self._end(False)
                return
            wait_ns = retry.delay_ns(self.tries, retry_after_ns, simulation.random)
            clock.at(clock.now + wait_ns, self.ask if retry.times is None else self.again)
            return
        if simulation.quota is not None:
            simulation.quota.release()
        work = self.work.rounds[self.round]
        noticed_ns = work.client_ns + work.parse_ns
        if work.calls:
            clock.at(clock.now + noticed_ns, self.tools)
        else:
            self._next(noticed_ns + work.collect_ns)

    def tools(self, _: Any = None) -> None:
        """Hand the calls of the round to the strategy."""
        calls = self.work.rounds[self.round].calls
        self.open = len(calls)
        if self.simulation.sequential:
            Call(self, calls[0], 0).begin()
            return
        clock = self.simulation.clock
        for place, work in enumerate(calls):
            if work.after_ns:
                clock.at(clock.now + work.after_ns, Call(self, work, place).begin)
            else:
                Call(self, work, place).begin()

    def call_ended(self, call: Call) -> None:
        self.open -= 1
        work = self.work.rounds[self.round]
        if not self.open:
            self._next(work.collect_ns)
        elif self.simulation.sequential:
            place = call.place + 1
            Call(self, work.calls[place], place).begin()

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
        self.agent.ended(self, ok)  # one with a failed call came to its end: no pause follows


class Agent:
    """An agent, or in an open load a source of arrivals. `source` counts those of all processes."""

    __slots__ = ("arrivals", "failures", "name", "process", "simulation", "source")

    def __init__(self, simulation: Simulation, process: Process, source: int) -> None:
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

    def ended(self, loop: Loop, well: bool) -> None:
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


class RecordedAgent(Agent):
    """Runs the loops of a chain in a closed load, each as long after the one before as it did."""

    __slots__ = ("chain", "place", "trial")

    def __init__(
        self, simulation: Simulation, process: Process, source: int, chain: Chain, trial: RecordedTrial
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

    def ended(self, loop: Loop, well: bool) -> None:
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


class RecordedSource(RecordedAgent):
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

    def ended(self, loop: Loop, well: bool) -> None:
        self.simulation.freed(self.process)
