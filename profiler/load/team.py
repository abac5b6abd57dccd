"""Who runs loops in a load test, and how the one that leads talks to them.

Messages to a worker: PREPARE, BEGIN, GRANT, END, CUT; from it: HELLO, READY, RECORDS, PULSE, DRAINED. On
a single process the same messages go to itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from gevent.event import Event

from profiler.errors import ProfilerError, TargetError, UsageError
from profiler.load.calibration import capacity
from profiler.load.health import machine_id
from profiler.load.options import LoadOptions
from profiler.load.plan import Arrivals, PlannedTrial, share
from profiler.load.spending import Budget, Grants, Resource
from profiler.rundir import Anchor, Capacity, ClientHealth, Spent

PREPARE, BEGIN, END, CUT = "toolcall_prepare", "toolcall_begin", "toolcall_end", "toolcall_cut"
HELLO, READY, RECORDS, DRAINED = "toolcall_hello", "toolcall_ready", "toolcall_records", "toolcall_drained"
PULSE, GRANT = "toolcall_pulse", "toolcall_grant"

PREPARE_SECONDS = 60.0
ANSWER_SECONDS = 15.0
"""How much longer than the drain itself a worker may take to say that it has drained."""


class Roster(Protocol):
    """Who is there, and how to reach them."""

    def workers(self) -> list[str]:
        """Ids of the workers that are alive, in an order that stays."""

    def users(self) -> int:
        """How many users there are now."""

    def send(self, kind: str, data: dict[str, Any], worker: str) -> None: ...


class Answers:
    """Waits until each of a set of workers has answered, or is gone."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._given: dict[str, dict[str, Any]] = {}
        self._came = Event()

    def give(self, worker: str, data: dict[str, Any]) -> None:
        self._given[worker] = data
        self._came.set()

    def wait(self, workers: list[str], seconds: float) -> dict[str, dict[str, Any]]:
        """The answers that came within `seconds`; a worker that vanished is not waited for."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            alive = self._roster.workers()
            if all(worker in self._given or worker not in alive for worker in workers):
                break
            self._came.wait(min(left, 0.2))
            self._came.clear()
        return {worker: self._given[worker] for worker in workers if worker in self._given}


@dataclass(frozen=True, slots=True)
class Ended:
    """What the workers said at the end of a trial; `lost` are those that said nothing."""

    interrupted: int = 0
    loops: int = 0
    arrived: int = 0
    late: int = 0
    dropped: int = 0
    health: tuple[ClientHealth, ...] = ()
    lost: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pulse:
    """How a trial stands on one worker, or on all of them together."""

    in_flight: int = 0
    waiting: int = 0
    loops: int = 0
    failed: int = 0
    rate_limited: int = 0
    lag_ns: int = 0


class Team:
    """The workers of a load test: prepared for one set of options and one target, led through trials.

    Worker k of the W that `enlist` returned takes the tape entries i ≡ k (mod W). `loop_seconds`
    is the longest that a worker took for its first loop, `model` the name of the model they use,
    `capacity` what they did in their calibration, `metrics` where each serves its metrics, `grants`
    what they have spent and may.
    `calibration` opens the server for that.
    """

    def __init__(
        self,
        roster: Roster,
        calibration: Callable[[], AbstractContextManager[str | None]] = nullcontext,
    ) -> None:
        self.loop_seconds = 0.0
        self.model = ""
        self.capacity: Capacity | None = None
        self.metrics: dict[str, int] = {}
        self.grants = Grants(Budget())
        self._calibration = calibration
        self._calibrated: dict[str, dict[str, float]] = {}
        self._pulses: dict[str, Pulse] = {}
        self._numbers: dict[str, int] = {}
        self._roster = roster
        self._wanted: tuple[LoadOptions, str] | None = None
        self._prepared: set[str] = set()
        self._ready = Answers(roster)
        self._drained = Answers(roster)
        self._turn = 0

    def users(self) -> int:
        """How many users there are now."""
        return self._roster.users()

    def enlist(self, options: LoadOptions, root: str, patience: float = PREPARE_SECONDS) -> list[str]:
        """The workers that are ready for the next trial; those that are new are prepared first.

        Waits up to `patience` seconds for the first worker. Raises `ProfilerError` when a worker
        cannot do what is asked, or none comes.
        """
        self.grants.budget = options.budget(self.model)
        if self._wanted != (options, root):
            self._wanted = (options, root)
            self._prepared.clear()
            self._ready = Answers(self._roster)
        deadline = time.monotonic() + patience
        while not (workers := self._roster.workers()):
            if time.monotonic() > deadline:
                raise TargetError("no worker is left to run loops")
            Event().wait(0.1)
        new = [worker for worker in workers if worker not in self._prepared]
        self._check_warm_up(options, len(new))
        uncalibrated = [worker for worker in new if worker not in self._calibrated]
        wanted = bool(uncalibrated) and options.calibration_seconds > 0
        with self._calibration() if wanted else nullcontext() as calibration:
            for worker in new:
                number = self._numbers.setdefault(worker, len(self._numbers))
                data = {
                    "options": options.as_json(),
                    "root": root,
                    "worker": number,
                    "workers": len(workers),
                    "machine": machine_id(),
                    "anchor": asdict(Anchor.now()),
                    "calibration": calibration if worker in uncalibrated else None,
                }
                self._roster.send(PREPARE, data, worker)
            answers = self._ready.wait(new, PREPARE_SECONDS)
        for worker, answer in answers.items():
            if answer["error"] is not None:
                kinds = {kind.exit_code: kind for kind in (ProfilerError, UsageError, TargetError)}
                raise kinds[answer["exit_code"]](answer["error"])
            self._prepared.add(worker)
            self.model = answer["model"]
            warmed_up = Spent(**answer["spent"])
            self.grants.spent += warmed_up
            self.grants.budget = options.budget(self.model)
            _check_usage(options, warmed_up, answer["first_failure"])
            self.loop_seconds = max(self.loop_seconds, answer["loop_seconds"])
            if answer.get("metrics") is not None:
                self.metrics[worker] = answer["metrics"]
            if answer.get("calibration") is not None:
                self._calibrated[worker] = answer["calibration"]
        if self._calibrated:
            shares = list(self._calibrated.values())
            self.capacity = capacity(int(sum(share["agents"] for share in shares)), shares)
        return [worker for worker in workers if worker in self._prepared]

    def begin(
        self,
        workers: list[str],
        planned: PlannedTrial,
        options: LoadOptions,
        sources: int,
        spread_seconds: float = 0.0,
    ) -> None:
        """Open a trial on each of them; an index below 0 says that it is not measured.

        Of an open load, `sources` users together make the rate that was asked for; the agents of a
        closed one start within `spread_seconds`.
        """
        self._turn += 1
        self._drained = Answers(self._roster)
        self._pulses.clear()
        self.grants.begin()
        arrivals = None
        if options.arrivals is not None:
            arrivals = asdict(Arrivals.parse(options.arrivals, sources))
        for number, worker in enumerate(workers):
            places = options.max_in_flight
            data = {
                "index": planned.index if planned.index >= 0 else None,
                "block": planned.block,
                "strategy": planned.strategy,
                "turn": self._turn,
                "worker": number,
                "workers": len(workers),
                "limited": self.grants.limited,
                "seed": options.seed,
                "arrivals": arrivals,
                "think_seconds": options.think_seconds,
                "spread_seconds": spread_seconds,
                "places": None if places is None else share(places, number, len(workers)),
            }
            self._roster.send(BEGIN, data, worker)

    def end(self, workers: list[str], drain_seconds: float) -> Ended:
        """Close the trial and wait until all have drained."""
        for worker in workers:
            self._roster.send(END, {"drain_seconds": drain_seconds}, worker)
        answers = self._drained.wait(workers, drain_seconds + ANSWER_SECONDS)
        for worker in workers:
            if worker in answers:
                self.grants.closed(worker, answers[worker]["begun"], Spent(**answers[worker]["spent"]))
            else:
                self.grants.lost(worker)
        lost = [self._describe_lost(worker) for worker in workers if worker not in answers]
        return Ended(
            **{
                name: sum(int(answer[name]) for answer in answers.values())
                for name in ("interrupted", "loops", "arrived", "late", "dropped")
            },
            health=tuple(ClientHealth(**answer["health"]) for answer in answers.values() if answer["health"]),
            lost=tuple(lost),
        )

    def pulse(self) -> Pulse:
        """How the trial under way stands, as far as the workers have said."""
        pulses = list(self._pulses.values())
        counts = ("in_flight", "waiting", "loops", "failed", "rate_limited")
        return Pulse(
            **{name: sum(getattr(pulse, name) for pulse in pulses) for name in counts},
            lag_ns=max((pulse.lag_ns for pulse in pulses), default=0),
        )

    def _check_warm_up(self, options: LoadOptions, workers: int) -> None:
        """Every worker's first loop is paid too."""
        left = None if options.max_loops is None else options.max_loops - self.grants.total.loops
        if left is not None and workers and left < workers:
            raise UsageError(
                f"--max-loops {options.max_loops}: the first loops of {workers} workers alone need {workers}"
            )

    def exhausted(self) -> Resource | None:
        """The limit on what may be spent at which nothing more may begin, None while something may."""
        if not self.grants.limited:
            return None
        self.grants.only(self._roster.workers())
        return self.grants.exhausted()

    def _describe_lost(self, worker: str) -> str:
        number, last = self._numbers.get(worker, 0), self._pulses.get(worker)
        missing = "what it had not sent is missing"
        if last is not None:
            missing = f"about {last.in_flight} loops it had in flight, and what it had not sent, are missing"
        return f"worker {number} left: {missing}"

    def cut(self) -> None:
        """Have all loops under way cancelled."""
        for worker in self._roster.workers():
            self._roster.send(CUT, {}, worker)

    def answered(self, kind: str, worker: str, data: dict[str, Any]) -> None:
        """A worker's READY, PULSE or DRAINED has come."""
        if kind == READY:
            self._ready.give(worker, data)
        elif kind == PULSE:
            if data.pop("turn") == self._turn:
                begun, spent, asks = data.pop("begun"), Spent(**data.pop("spent")), data.pop("asks")
                self._pulses[worker] = Pulse(**data)
                granted = self.grants.heard(worker, begun, data["in_flight"], spent, asks)
                if granted is not None:
                    self._roster.send(GRANT, {"turn": self._turn, "loops": granted}, worker)
        elif data["turn"] == self._turn:  # else it had been given up by then
            self._drained.give(worker, data)


def _check_usage(options: LoadOptions, warmed_up: Spent, failure: str | None) -> None:
    """A limit on what the target does not tell could not be kept."""
    for option, limit in (("--max-tokens", options.max_tokens), ("--max-cost", options.max_cost)):
        if limit is None or not warmed_up.requests or warmed_up.output_tokens:
            continue
        if failure is not None:
            raise TargetError(
                f"{option}: the first loop failed ({failure}), so whether the target names tokens is "
                "not known; try again, or use --max-requests"
            )
        raise UsageError(
            f"{option}: the target's reply to the first loop names no tokens, so they cannot be counted; "
            "use --max-requests"
        )
