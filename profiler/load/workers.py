"""The workers of a load test as the leader sees them: who is there, and what they answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Generic, Protocol, TypeVar

from profiler.arrivals import Arrivals, share
from profiler.errors import ProfilerError, TargetError, UsageError
from profiler.load.health import machine_id
from profiler.load.identity import of_scenario
from profiler.load.messages import (
    Begin,
    Calibration,
    ClientMeasured,
    Cut,
    Drained,
    End,
    Grant,
    MeasureClient,
    Prepare,
    Pulse,
    Ready,
    Returned,
    ToWorker,
    TrialState,
)
from profiler.load.options import LoadOptions
from profiler.load.plan import PlannedTrial
from profiler.load.spending import Budget, Grants, Resource
from profiler.load.trial import Event
from profiler.providers import ClientName
from profiler.records import Clock
from profiler.rundir import Anchor, Check, ClientCapacity, McpServer, Spent
from profiler.scenarios import load_scenario

PREPARE_SECONDS = 60.0
SILENT_SECONDS = 2.5
"""A worker in a trial says every second how it stands."""

ANSWER_SECONDS = 15.0
"""How much longer than the drain itself a worker may take to say that it has drained."""

CALIBRATION_REQUESTS = 5
"""Requests of a loop of the scenario `instant`: two to the model, three to tools."""

A = TypeVar("A", Ready, Drained, ClientMeasured)


class Transport(Protocol):
    """Locust's runner, as the leader needs it: it knows the workers and the users, and carries messages."""

    def workers(self) -> list[str]:
        """Ids of the workers that are alive, in an order that does not change."""

    def users(self) -> int:
        """How many users there are now."""

    def wanted_users(self) -> int:
        """How many users there should be by now; a load shape changes that by itself."""

    def scale(self, users: int, rate: float) -> None:
        """Spawn or stop users, `rate` a second."""

    def send(self, message: ToWorker, worker: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Ended:
    """The workers' answers at the end of a trial; `lost` describes those that did not answer."""

    drained: tuple[Drained, ...] = ()
    lost: tuple[str, ...] = ()

    def total(self, count: str) -> int:
        """A count of `Drained` (`loops`, `interrupted`, …) over all workers."""
        return sum(getattr(one, count) for one in self.drained)


@dataclass(frozen=True, slots=True)
class Shortage:
    """How many agents were left in a trial while workers were not heard, and until when, in nanoseconds."""

    fewest: int | None = None
    wanted: int = 0
    since_ns: int = 0
    until_ns: int = 0
    over: bool = False

    def noted(self, left: int, wanted: int, since_ns: int, now_ns: int) -> Shortage:
        """With so many left now of those wanted, where a worker has not been heard since then."""
        if left >= wanted:
            return self if self.fewest is None or self.over else replace(self, until_ns=now_ns, over=True)
        if self.fewest is None:
            return Shortage(left, wanted, since_ns, now_ns)
        return replace(self, fewest=min(left, self.fewest), until_ns=now_ns, over=False)

    def __str__(self) -> str:
        """`8 of 12 agents were left for 6 s, until the others had theirs too`; empty without a shortage."""
        if self.fewest is None:
            return ""
        until = "until others had taken their place" if self.over else "to the end of the trial"
        seconds = (self.until_ns - self.since_ns) / 1e9
        return f"{self.fewest} of {self.wanted} agents were left for {seconds:.0f} s, {until}"


class Workers:
    """All workers, prepared for one set of options and one target, and led through trials.

    Worker k of the W that `prepare` returned takes the tape entries i ≡ k (mod W). `loop_seconds` is the
    longest that a worker thinks a loop takes, `checks` what first loops showed, `mcp_servers` whose tools
    the loops have, `model` the name of the model they use, `capacity` what they did in their calibration,
    `metrics_ports` where each serves /metrics, `grants` what they have spent and may still spend.
    `calibration` opens the server that they are calibrated against.
    """

    def __init__(
        self,
        transport: Transport,
        new_event: Callable[[], Event],
        calibration: Callable[[], AbstractContextManager[str | None]] = nullcontext,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        self.transport = transport
        self.loop_seconds = 0.0
        self.checks: tuple[Check, ...] = ()
        self.mcp_servers: tuple[McpServer, ...] = ()
        self.model = ""
        self.capacity: ClientCapacity | None = None
        self.metrics_ports: dict[str, int] = {}
        self.grants = Grants(Budget())
        self._new_event = new_event
        self._clock = clock
        self._calibration = calibration
        self._calibrated: dict[str, Calibration] = {}
        self._pulses: dict[str, Pulse] = {}
        self._heard_ns: dict[str, int] = {}
        self._in_trial: set[str] = set()
        self._shortage = Shortage()
        self._numbers: dict[str, int] = {}
        self._wanted: tuple[LoadOptions, str] | None = None
        self._prepared: set[str] = set()
        self._ready: _Answers[Ready] = self._answers()
        self._drained: _Answers[Drained] = self._answers()
        self._measured: _Answers[ClientMeasured] = self._answers()
        self._sequence = 0

    def prepare(self, options: LoadOptions, root: str, patience: float = PREPARE_SECONDS) -> list[str]:
        """The workers that are ready for the next trial; new ones are prepared first.

        Waits up to `patience` seconds for the first worker. Raises `ProfilerError` when a worker cannot do
        what is asked, or none connects.
        """
        self.grants.budget = options.budget(self.model)
        if self._wanted != (options, root):
            self._wanted = (options, root)
            self._prepared.clear()
            self._ready = self._answers()
        workers = self._wait_for_workers(patience)
        new = [worker for worker in workers if worker not in self._prepared]
        self._check_warm_up(options, len(new))
        for worker, answer in self._prepare(new, len(workers), options, root).items():
            self._heard_ready(worker, answer, options)
        if self._calibrated:
            requests = 1 if options.direct else CALIBRATION_REQUESTS
            self.capacity = _capacity(self._calibrated.values(), requests)
        return [worker for worker in workers if worker in self._prepared]

    def begin(
        self,
        workers: Sequence[str],
        planned: PlannedTrial,
        options: LoadOptions,
        sources: int,
        spread_seconds: float = 0.0,
    ) -> None:
        """Open a trial on each of `workers`; one with an index below 0 is not measured.

        In an open load, `sources` users together make the rate that was asked for; the agents of a closed one
        start within `spread_seconds`.
        """
        self._sequence += 1
        self._drained = self._answers()
        self._pulses.clear()
        self._heard_ns.clear()
        self._shortage = Shortage()
        self._in_trial |= set(workers)
        self.grants.begin()
        message = Begin(
            self._sequence,
            planned.index if planned.index >= 0 else None,
            planned.index if options.own_work and planned.index >= 0 else planned.block,
            planned.strategy,
            worker=0,
            workers=len(workers),
            seed=options.seed,
            limited=self.grants.limited,
            arrivals=None if options.arrivals is None else Arrivals.parse(options.arrivals, sources),
            think_seconds=options.think_seconds,
            spread_seconds=spread_seconds,
        )
        most = options.max_in_flight
        for number, worker in enumerate(workers):
            its = None if most is None else share(most, number, len(workers))
            self.transport.send(replace(message, worker=number, max_in_flight=its), worker)

    def end(self, workers: Sequence[str], drain_seconds: float) -> Ended:
        """Close the trial and wait until all have drained."""
        for worker in workers:
            self.transport.send(End(drain_seconds), worker)
        answers = self._drained.wait(workers, drain_seconds + ANSWER_SECONDS)
        self._in_trial -= set(answers)  # whoever did not answer may still be in it
        for worker in workers:
            if worker in answers:
                self.grants.closed(worker, answers[worker].begun, answers[worker].spent)
            else:
                self.grants.lost(worker)
        lost = tuple(self._describe_lost(worker) for worker in workers if worker not in answers)
        gone = sum(
            pulse.state.agents for worker, pulse in self._pulses.items() if worker in {*workers} - {*answers}
        )
        if gone:
            there = sum(one.agents for one in answers.values())
            at_the_end = f"{there} of {there + gone} agents were left at the end of the trial"
            lost = (f"{lost[0]}; {str(self._shortage) or at_the_end}", *lost[1:])
        return Ended(tuple(answers.values()), lost)

    def measure_clients(self, clients: Sequence[ClientName]) -> None:
        """After the last trial: have a worker measure what a request costs through each of these clients."""
        capacity = self.capacity
        workers = [worker for worker in self.transport.workers() if worker in self._calibrated]
        if capacity is None or not workers:
            return
        self._measured = self._answers()
        with self._calibration() as server:
            if server is None:
                return
            self.transport.send(MeasureClient(server, tuple(clients)), workers[0])
            for answer in self._measured.wait(workers[:1], PREPARE_SECONDS).values():
                self.capacity = replace(capacity, request_cpu=dict(answer.request_cpu))

    def cut(self) -> None:
        """Have all loops under way cancelled, on every worker."""
        for worker in self.transport.workers():
            self.transport.send(Cut(), worker)

    def state(self) -> TrialState:
        """How the trial under way stands, by the last pulse of each worker."""
        states = [pulse.state for pulse in self._pulses.values()]
        total = {one.name: sum(getattr(state, one.name) for state in states) for one in fields(TrialState)}
        return TrialState(**{**total, "lag_ns": max((state.lag_ns for state in states), default=0)})

    def has_agents(self, worker: str) -> bool:
        """Whether agents of this worker may run loops: others must not be given their place while they do."""
        return worker in self._in_trial

    def look(self, wanted: int) -> None:
        """Note how many of the agents `wanted` are left while workers are not heard. Often, in a trial."""
        now_ns, alive = self._clock(), self.transport.workers()
        silent = [
            worker
            for worker, heard_ns in self._heard_ns.items()
            if worker not in alive or now_ns - heard_ns > SILENT_SECONDS * 1e9
        ]
        if silent:
            left = sum(pulse.state.agents for worker, pulse in self._pulses.items() if worker not in silent)
            since_ns = min(self._heard_ns[worker] for worker in silent)
            self._shortage = self._shortage.noted(left, wanted, since_ns, now_ns)

    def exhausted(self) -> Resource | None:
        """The limit that keeps any further loop from beginning, None while one may begin."""
        if not self.grants.limited:
            return None
        self.grants.only(self.transport.workers())
        return self.grants.exhausted()

    # Messages of the workers:

    def ready(self, worker: str, message: Ready) -> None:
        self._ready.give(worker, message)

    def client_measured(self, worker: str, message: ClientMeasured) -> None:
        self._measured.give(worker, message)

    def drained(self, worker: str, message: Drained) -> None:
        # Else the leader had given up waiting for it, or on it.
        if message.sequence == self._sequence and worker in self.transport.workers():
            self._drained.give(worker, message)

    def pulse(self, worker: str, message: Pulse) -> None:
        if message.sequence != self._sequence:
            return
        self._pulses[worker] = message
        self._heard_ns[worker] = self._clock()
        granted = self.grants.heard(
            worker, message.begun, message.state.in_flight, message.spent, message.asks
        )
        if granted is not None:
            self.transport.send(Grant(self._sequence, granted), worker)

    def _wait_for_workers(self, patience: float) -> list[str]:
        deadline_ns = self._clock() + int(patience * 1e9)
        while not (workers := self.transport.workers()):
            if self._clock() > deadline_ns:
                raise TargetError("no worker is left to run loops")
            self._new_event().wait(0.1)
        return workers

    def _prepare(
        self, new: Sequence[str], workers: int, options: LoadOptions, root: str
    ) -> Mapping[str, Ready]:
        """Prepare new workers; their answers."""
        uncalibrated = [worker for worker in new if worker not in self._calibrated]
        wanted = bool(uncalibrated) and options.calibration_seconds > 0
        scenario = of_scenario(load_scenario(options.scenario)) if new else ""
        with self._calibration() if wanted else nullcontext() as server:
            for worker in new:
                message = Prepare(
                    options,
                    root,
                    self._numbers.setdefault(worker, len(self._numbers)),
                    workers,
                    machine_id(),
                    Anchor.now(),
                    calibration=server if worker in uncalibrated else None,
                    scenario=scenario,
                )
                self.transport.send(message, worker)
            return self._ready.wait(new, PREPARE_SECONDS)

    def _heard_ready(self, worker: str, answer: Ready, options: LoadOptions) -> None:
        if answer.error is not None:
            kinds = {kind.exit_code: kind for kind in (ProfilerError, UsageError, TargetError)}
            raise kinds[answer.exit_code](answer.error)
        self._prepared.add(worker)
        self.model = answer.model
        self.grants.spent += answer.spent
        self.grants.budget = options.budget(self.model)
        _check_usage(options, answer.spent, answer.first_failure)
        self.loop_seconds = max(self.loop_seconds, answer.loop_seconds)
        self.checks = self.checks or answer.checks  # all workers run the same
        self.mcp_servers = self.mcp_servers or answer.mcp_servers
        if answer.metrics_port is not None:
            self.metrics_ports[worker] = answer.metrics_port
        if answer.calibration is not None:
            self._calibrated[worker] = answer.calibration

    def _check_warm_up(self, options: LoadOptions, workers: int) -> None:
        """Refuse a limit that the first loops alone would pass: they are paid for too."""
        left = None if options.max_loops is None else options.max_loops - self.grants.total.loops
        built_in = int(self.grants.budget.by_spending)
        needed = workers * (built_in if options.agent is None else len(options.strategies))
        if left is not None and left < needed:
            raise UsageError(
                f"--max-loops {options.max_loops}: the first loops of {workers} workers alone need {needed}"
            )

    def describe_returned(self, worker: str, message: Returned) -> str:
        """The fate of a worker that was lost, in words."""
        number = self._numbers.get(worker, 0)
        how = f"stood still for {message.seconds:.0f} s" if message.seconds else "had lost its connection"
        loops = f"{message.loops} loops" if message.loops != 1 else "1 loop"
        return (
            f"worker {number} {how} and came back when others had its agents: it began nothing more and "
            f"left; {loops} that it had in flight are in no figure"
        )

    def _describe_lost(self, worker: str) -> str:
        missing = "what it had not sent is missing"
        if (last := self._pulses.get(worker)) is not None:
            loops = f"about {last.state.in_flight} loops it had in flight"
            missing = f"{loops}, and what it had not sent, are missing"
        return f"worker {self._numbers.get(worker, 0)} left: {missing}"

    def _answers(self) -> _Answers[A]:
        return _Answers(self.transport, self._new_event(), self._clock)


class _Answers(Generic[A]):
    """The workers' answers to one message."""

    def __init__(self, transport: Transport, came: Event, clock: Clock) -> None:
        self._transport = transport
        self._given: dict[str, A] = {}
        self._came = came
        self._clock = clock

    def give(self, worker: str, answer: A) -> None:
        self._given[worker] = answer
        self._came.set()

    def wait(self, workers: Sequence[str], seconds: float) -> dict[str, A]:
        """The answers that come within `seconds`; workers that are gone are not waited for."""
        deadline_ns = self._clock() + int(seconds * 1e9)
        while (left_ns := deadline_ns - self._clock()) > 0:
            alive = self._transport.workers()
            if all(worker in self._given or worker not in alive for worker in workers):
                break
            self._came.wait(min(left_ns / 1e9, 0.2))
            self._came.clear()
        return {worker: self._given[worker] for worker in workers if worker in self._given}


def _capacity(calibrated: Collection[Calibration], requests: int) -> ClientCapacity:
    """The capacity of all workers together, at least one of which was calibrated; `requests` of a loop."""
    rate = sum(one.loops / one.seconds for one in calibrated)
    return ClientCapacity(
        agents=sum(one.agents for one in calibrated),
        loops_per_second=rate,
        requests_per_second=rate * requests,
        seconds=max(one.lone_seconds for one in calibrated),
    )


def _check_usage(options: LoadOptions, warmed_up: Spent, failure: str | None) -> None:
    """Refuse a limit on tokens where the target's replies do not say how many they used."""
    said = warmed_up.output_tokens and warmed_up.unknown_replies < max(1, warmed_up.replies)
    for option, limit in (("--max-tokens", options.max_tokens), ("--max-cost", options.max_cost)):
        if limit is None or not warmed_up.requests or said:
            continue
        if failure is not None:
            raise TargetError(
                f"{option}: the first request failed ({failure}), so whether the target names tokens is "
                "not known; try again, or use --max-requests"
            )
        raise UsageError(
            f"{option}: the target's first reply names no tokens, so they cannot be counted; "
            "use --max-requests"
        )
