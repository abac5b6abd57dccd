"""A trial as one process runs it, on the loop's thread: agents that run loops until it is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from gevent.event import Event

from profiler.load.agents import Place, Runs
from profiler.load.health import Meter, Tally
from profiler.load.locust.bridge import Flight
from profiler.load.plan import Arrivals, pause_after, tape_numbers
from profiler.loop.recorder import Clock

MOST_WAITING = 100_000
"""Arrivals that wait for a place (`--max-in-flight`) in one process; more are dropped."""


GOLDEN = 0.618033988749895
"""Multiples of it, modulo 1, are spread evenly however many there are."""


@dataclass(slots=True, eq=False)
class Trial:
    """One strategy's turn.

    `index` is None for what is not measured. `numbers` yields this process's tape entries. `open`
    says whether another loop may start; the loop's thread reads it, the hub's writes it. Of an open
    load (`arrivals`), `seed` decides the draws and at most `places` loops run at once; the agents of
    a closed one start within `spread_seconds`. `granted` is how many loops may begin, None for any
    number: who wants more calls `ask` and waits.

    Counts are written on the loop's thread alone: loops begun and in flight, arrivals waiting for a
    place, and of all arrivals those that had to wait (`late`) and those that never started (`dropped`).
    """

    index: int | None
    strategy: str
    numbers: Iterator[int]
    arrivals: Arrivals | None = None
    think_seconds: float = 0.0
    spread_seconds: float = 0.0
    places: int | None = None
    seed: str = ""
    worker: int = 0
    workers: int = 1
    granted: int | None = None
    ask: Callable[[], None] = lambda: None
    open: bool = True
    clock: Clock = time.monotonic_ns
    started_ns: int = 0
    flights: set[Flight[None]] = field(default_factory=set)
    left: Event = field(default_factory=Event)
    meter: Meter = field(default_factory=Meter)
    tally: Tally = field(default_factory=Tally)
    begun: int = 0
    in_flight: int = 0
    asking: bool = False
    waiting: int = 0
    arrived: int = 0
    late: int = 0
    dropped: int = 0
    _sleepers: set[asyncio.Future[None]] = field(default_factory=set)
    _refused: set[asyncio.Future[None]] = field(default_factory=set)
    _gate: asyncio.Semaphore | None = None

    def __post_init__(self) -> None:
        self.started_ns = self.clock()

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Trial:
        """From the master's message."""
        arrivals = data["arrivals"]
        return cls(
            data["index"],
            data["strategy"],
            tape_numbers(data["block"], data["worker"], data["workers"]),
            arrivals=None if arrivals is None else Arrivals(**arrivals),
            think_seconds=data["think_seconds"],
            spread_seconds=data["spread_seconds"],
            places=data["places"],
            seed=f"{data['seed']}/{data['block']}/{data['worker']}",
            worker=data["worker"],
            workers=data["workers"],
            granted=0 if data["limited"] else None,
        )

    def close(self) -> None:
        """On the loop's thread: nothing new starts, who sleeps until its next loop wakes."""
        self.open = False
        for sleeper in (*self._sleepers, *self._refused):
            _wake(sleeper)

    def grant(self, loops: int) -> None:
        """On the loop's thread: as many loops may begin in all."""
        self.granted = loops
        self.asking = False
        for sleeper in self._refused:
            _wake(sleeper)

    async def live(self, runs: Runs, agent: Agent) -> None:
        """An agent's part in the trial, until it is over and the agent's loops have ended."""
        if self.arrivals is None:
            await self._closed_load(runs, agent)
        else:
            await self._open_load(runs, agent, self.arrivals)

    async def _closed_load(self, runs: Runs, agent: Agent) -> None:
        if self.spread_seconds and not agent.joins_late:
            offset = (agent.ordinal * self.workers + self.worker) * GOLDEN % 1 * self.spread_seconds
            await self._sleep_until(self.started_ns + int(offset * 1e9))
        failures = 0
        for number in self.numbers:
            if not self.open or agent.leaving():
                return
            if not await self._may_begin():
                return
            began_ns = self.clock()
            ended_well = await self._run(runs, agent, number, None)
            failures = 0 if ended_well else failures + 1
            now_ns = self.clock()
            pause = pause_after(failures, (now_ns - began_ns) / 1e9)
            if self.think_seconds or pause:
                due_ns = now_ns + int(max(self.think_seconds, pause) * 1e9)
                await self._sleep_until(due_ns)
                if self.open:
                    agent.scheduled(self, self.clock() - due_ns)

    async def _open_load(self, runs: Runs, agent: Agent, arrivals: Arrivals) -> None:
        joined_ns = self.clock() if agent.joins_late else self.started_ns
        loops: set[asyncio.Task[None]] = set()
        source = agent.ordinal * self.workers + self.worker
        try:
            for due in arrivals.of_source(source, self.seed):
                due_ns = self.started_ns + int(due * 1e9)
                if due_ns < joined_ns:
                    continue
                await self._sleep_until(due_ns)
                if not self.open or agent.leaving():
                    break
                agent.scheduled(self, self.clock() - due_ns)
                self.arrived += 1
                if self.waiting >= MOST_WAITING:
                    self.dropped += 1
                    continue
                task = asyncio.ensure_future(self._arrive(runs, agent, next(self.numbers), due_ns))
                loops.add(task)
                task.add_done_callback(loops.discard)
            if loops:
                await asyncio.wait(loops)
        finally:
            for task in loops:
                task.cancel()
            if loops:
                await asyncio.wait(loops)

    async def _arrive(self, runs: Runs, agent: Agent, number: int, due_ns: int) -> None:
        if self.places is None:
            await self._run_arrival(runs, agent, number, due_ns)
            return
        if self._gate is None:
            self._gate = asyncio.Semaphore(self.places)
        self.late += self._gate.locked()
        self.waiting += 1
        started = False
        try:
            async with self._gate:
                started = True
                self.waiting -= 1
                await self._run_arrival(runs, agent, number, due_ns)
        finally:
            if not started:
                self.waiting -= 1
                self.dropped += 1

    async def _run_arrival(self, runs: Runs, agent: Agent, number: int, due_ns: int) -> None:
        """A loop that was due while the trial was open; it may run while the trial drains."""
        if await self._may_begin(when_closed=True):
            await self._run(runs, agent, number, due_ns)
        else:
            self.arrived -= 1  # our own limit refused it, not the system

    async def _may_begin(self, when_closed: bool = False) -> bool:
        """Whether another loop may begin, which then counts as begun. Waits for a grant if need be."""
        loop = asyncio.get_running_loop()
        while self.granted is not None and self.begun >= self.granted:
            if not self.open:
                return False
            if not self.asking:
                self.asking = True
                self.ask()
            sleeper: asyncio.Future[None] = loop.create_future()
            self._refused.add(sleeper)
            try:
                await sleeper
            finally:
                self._refused.discard(sleeper)
        if not self.open and not when_closed:
            return False
        self.begun += 1
        return True

    async def _run(self, runs: Runs, agent: Agent, number: int, due_ns: int | None) -> bool:
        self.in_flight += 1
        try:
            return await runs.run(Place(number, agent.name, self.index, agent.process, due_ns))
        finally:
            self.in_flight -= 1

    async def _sleep_until(self, at_ns: int) -> None:
        """Until then, or until the trial closes. uvloop's timers may fire almost 1 ms early."""
        loop = asyncio.get_running_loop()
        while self.open and (left_ns := at_ns - self.clock()) > 0:
            sleeper: asyncio.Future[None] = loop.create_future()
            timer = loop.call_later(left_ns / 1e9, _wake, sleeper)
            self._sleepers.add(sleeper)
            try:
                await sleeper
            finally:
                timer.cancel()
                self._sleepers.discard(sleeper)


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)


@dataclass(slots=True)
class Agent:
    """One agent in one trial.

    `leaving()` is asked before every loop: an agent that leaves finishes its loop. `joins_late`: it
    came after the trial had begun, and what was due before is not its. `observe_schedule_lag` gets
    how late each loop started against when it was meant to, in nanoseconds.
    """

    name: str
    ordinal: int
    process: str
    leaving: Callable[[], bool]
    joins_late: bool = False
    observe_schedule_lag: Callable[[int], None] | None = None

    def scheduled(self, trial: Trial, lag_ns: int) -> None:
        """A loop that was due `lag_ns` ago starts now."""
        lag_ns = max(0, lag_ns)
        trial.meter.schedule.add(lag_ns)
        if self.observe_schedule_lag is not None:
            self.observe_schedule_lag(lag_ns)
