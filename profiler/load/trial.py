"""A trial as one process runs it, on the event loop's thread: agents that run loops until it is over.

The leader and the workers are plain synchronous code. What they wait with (`Event`), and how a worker reaches
the event loop (`LoopThread`), is passed in: greenlets and gevent's events under Locust (`locust/bridge.py`),
a virtual clock in unit tests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from profiler.arrivals import Arrivals, pause_after, start_offset
from profiler.load.context import LoopPosition
from profiler.load.health import Meter, Tally
from profiler.load.messages import Begin, Pulse, TrialState
from profiler.load.plan import tape_numbers
from profiler.load.runners import LoopRunner
from profiler.load.spending import LoopAccount
from profiler.loop.ledger import current_ledger
from profiler.records import Clock

T = TypeVar("T")

MOST_WAITING = 100_000
"""Arrivals that may wait in one process for others to end (`--max-in-flight`); more are dropped."""


class Event(Protocol):
    """As `threading.Event`."""

    def is_set(self) -> bool: ...

    def set(self) -> None: ...

    def clear(self) -> None: ...

    def wait(self, timeout: float | None = None) -> bool: ...


class LoopTask(Protocol):
    """A coroutine under way on an event loop in another thread.

    `wait` returns when it has ended, or raises what it raised; `TimeoutError` after `timeout` seconds.
    """

    def wait(self, timeout: float | None = None) -> object: ...

    def cancel(self) -> None: ...


class LoopThread(Protocol):
    """An event loop that runs in a thread of its own.

    `run` waits for `work()` to end, and cancels it when the waiting ends early; `submit` does not wait.
    `call` has a function called on the loop's thread, `post` from there on the thread that waits.
    """

    def run(self, work: Callable[[], Coroutine[Any, Any, T]], timeout: float | None = None) -> T: ...

    def submit(self, work: Callable[[], Coroutine[Any, Any, object]]) -> LoopTask: ...

    def call(self, function: Callable[[], None]) -> None: ...

    def post(self, function: Callable[[], object]) -> None: ...

    def stop(self) -> None: ...


class RunningTrial:
    """One strategy's trial, as `plan` says.

    `process` is the name of this process in records. `ask` is called once when agents want to begin more
    loops than are `granted` (None: any number), and they wait. `on_dropped` is called for every arrival that
    will never start, `on_start` with how late a loop starts that was due at some time, in nanoseconds.
    While `holds()` is false no loop begins: `go_on` is called when it may be true again.

    `open`: whether another loop may start; the worker's thread writes it, the loop's thread reads it. `tasks`
    are the agents and the tasks that they run in, which the worker keeps here.

    Counts are written on the loop's thread alone: loops begun and in flight; arrivals that wait because of
    `max_in_flight`; and of all that `arrived`, those that had to wait (`late`) and those that never started
    (`dropped`).
    """

    def __init__(
        self,
        plan: Begin,
        ask: Callable[[], None] = lambda: None,
        clock: Clock = time.monotonic_ns,
        *,
        process: str = "",
        on_dropped: Callable[[], None] = lambda: None,
        on_start: Callable[[int], None] = lambda lag_ns: None,
        meter: Meter | None = None,
        holds: Callable[[], bool] = lambda: True,
    ) -> None:
        self.plan = plan
        self.granted = 0 if plan.limited else None
        self.open = True
        self.started_ns = clock()
        self.meter = Meter() if meter is None else meter
        self.tally = Tally()
        self.begun = self.in_flight = self.waiting = 0
        self.arrived = self.late = self.dropped = 0
        self.tasks: dict[LoopTask, TrialAgent] = {}
        self._ask = ask
        self._process = process
        self._on_dropped = on_dropped
        self._on_start = on_start
        self._asking = False
        self._holds = holds
        self._clock = clock
        self._numbers = tape_numbers(plan.part, plan.worker, plan.workers)  # all agents take from this one
        self._seed = f"{plan.seed}/{plan.part}/{plan.worker}"
        self._sleepers: set[asyncio.Future[None]] = set()
        self._waiting_for_leave: set[asyncio.Future[None]] = set()
        self._slots = None if plan.max_in_flight is None else asyncio.Semaphore(plan.max_in_flight)

    @property
    def agents(self) -> int:
        """How many take part; those that leave only finish their loop."""
        return sum(not agent.leaving() for agent in list(self.tasks.values()))

    def pulse(self) -> Pulse:
        """The state that the leader is told of; may be called from any thread."""
        # In this order a loop that ends in between is counted twice, as under way too, and not left out.
        begun, in_flight = self.begun, self.in_flight
        state = TrialState(
            in_flight,
            self.waiting,
            self.tally.loops,
            self.tally.failed,
            self.tally.rate_limited,
            self.meter.take_worst_lag(self.open and in_flight > 0),  # no samples are taken when it is closed
            self.agents,
        )
        return Pulse(self.plan.sequence, state, begun, self._asking, self.tally.spent)

    # On the event loop's thread:

    def close(self) -> None:
        """Start nothing new; wake agents that sleep until their next loop."""
        self.open = False
        for sleeper in (*self._sleepers, *self._waiting_for_leave):
            _wake(sleeper)

    def grant(self, loops: int) -> None:
        """Let `loops` loops begin in all."""
        self.granted = loops
        self._asking = False
        self.go_on()

    def go_on(self) -> None:
        """Let agents see whether they may begin their next loop."""
        for sleeper in self._waiting_for_leave:
            _wake(sleeper)

    async def run_agent(self, runner: LoopRunner, agent: TrialAgent) -> None:
        """An agent's part in the trial, until the trial is over and the agent's loops have ended."""
        if self.plan.arrivals is None:
            await self._closed_load(runner, agent)
        else:
            await self._open_load(runner, agent, self.plan.arrivals)

    async def _closed_load(self, runner: LoopRunner, agent: TrialAgent) -> None:
        if self.plan.spread_seconds and not agent.joins_late:
            offset = start_offset(self._source(agent), self.plan.spread_seconds)
            await self._sleep_until(self.started_ns + int(offset * 1e9))
        failures = 0
        for number in self._numbers:
            if not self.open or agent.leaving() or not await self._may_begin():
                return
            began_ns = self._clock()
            ended_well = await self._run(runner, agent, number, None)
            failures = 0 if ended_well else failures + 1
            now_ns = self._clock()
            pause = max(self.plan.think_seconds, pause_after(failures, (now_ns - began_ns) / 1e9))
            if pause:
                due_ns = now_ns + int(pause * 1e9)
                await self._sleep_until(due_ns)
                if self.open:
                    self._starts(due_ns)

    async def _open_load(self, runner: LoopRunner, agent: TrialAgent, arrivals: Arrivals) -> None:
        joined_ns = self._clock() if agent.joins_late else self.started_ns
        loops: set[asyncio.Task[None]] = set()
        try:
            for due in arrivals.of_source(self._source(agent), self._seed):
                due_ns = self.started_ns + int(due * 1e9)
                if due_ns < joined_ns:
                    continue
                await self._sleep_until(due_ns)
                if not self.open or agent.leaving():
                    break
                self._starts(due_ns)
                self.arrived += 1
                if self.waiting >= MOST_WAITING:
                    self._drop()
                    continue
                task = asyncio.ensure_future(self._arrive(runner, agent, next(self._numbers), due_ns))
                loops.add(task)
                task.add_done_callback(loops.discard)
            if loops:
                await asyncio.wait(loops)
        finally:
            for task in loops:
                task.cancel()
            if loops:
                await asyncio.wait(loops)

    def _source(self, agent: TrialAgent) -> int:
        """The agent's number among those of all workers."""
        return agent.ordinal * self.plan.workers + self.plan.worker

    def _starts(self, due_ns: int) -> None:
        """Note how late a loop starts that was due at `due_ns`."""
        lag_ns = max(0, self._clock() - due_ns)
        self.meter.schedule.add(lag_ns)
        self._on_start(lag_ns)

    async def _arrive(self, runner: LoopRunner, agent: TrialAgent, number: int, due_ns: int) -> None:
        if self._slots is None:
            await self._run_arrival(runner, agent, number, due_ns)
            return
        self.late += self._slots.locked()
        self.waiting += 1
        started = False
        try:
            async with self._slots:
                started = True
                self.waiting -= 1
                await self._run_arrival(runner, agent, number, due_ns)
        finally:
            if not started:
                self.waiting -= 1
                self._drop()

    def _drop(self) -> None:
        """Count an arrival that will never start: it has failed, and leaves no record."""
        self.dropped += 1
        self._on_dropped()

    async def _run_arrival(self, runner: LoopRunner, agent: TrialAgent, number: int, due_ns: int) -> None:
        """A loop that was due while the trial was open; it may run while the trial drains."""
        if await self._may_begin(when_closed=True):
            await self._run(runner, agent, number, due_ns)
        else:
            self.arrived -= 1  # our own limit refused it, not the system

    async def _may_begin(self, when_closed: bool = False) -> bool:
        """Whether another loop may begin, which then counts as begun. Waits for leave if need be."""
        loop = asyncio.get_running_loop()
        while not (holds := self._holds()) or (self.granted is not None and self.begun >= self.granted):
            if not self.open:
                return False
            if holds and not self._asking:
                self._asking = True
                self._ask()
            sleeper: asyncio.Future[None] = loop.create_future()
            self._waiting_for_leave.add(sleeper)
            try:
                await sleeper
            finally:
                self._waiting_for_leave.discard(sleeper)
        if not self.open and not when_closed:
            return False
        self.begun += 1
        return True

    async def _run(self, runner: LoopRunner, agent: TrialAgent, number: int, due_ns: int | None) -> bool:
        self.in_flight += 1
        account = LoopAccount()
        token = current_ledger.set(account)
        try:
            return await runner.run(LoopPosition(number, agent.name, self.plan.index, self._process, due_ns))
        finally:
            current_ledger.reset(token)
            self.tally.spent += account.spent
            self.in_flight -= 1

    async def _sleep_until(self, at_ns: int) -> None:
        """Sleep until then, or until the trial closes."""
        loop = asyncio.get_running_loop()
        # In a loop, since uvloop's timers may fire almost 1 ms early.
        while self.open and (left_ns := at_ns - self._clock()) > 0:
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
class TrialAgent:
    """One agent in one trial. `ordinal` counts the agents of its process.

    `leaving()` is asked before every loop: an agent that leaves finishes its loop. `joins_late`: it came
    after the trial had begun, and does not make up for what was due before.
    """

    name: str
    ordinal: int
    leaving: Callable[[], bool]
    joins_late: bool = False
