"""How late an event loop is, and whose fault that is: code that held it, or a machine that did not run it.

`LagSampler` finds out how late the loop's timers fire, and keeps each longer lateness as a `Stall`. From
inside, code of this process that holds the loop (a blocking call, a computation) looks the same as a
machine that does not run the process. Two things tell them apart. The kernel counts for how long the loop's
thread was runnable and did not run (`profiler.loop.kernel`). And where the whole process was stopped, frozen
or suspended, a second thread that only sleeps (`Heartbeat`) is late too, and the process used no CPU.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

from profiler.anatomy import Interval, overlap, union
from profiler.loop.eventloop import native_sleep, start_native_thread
from profiler.loop.kernel import RunDelay
from profiler.process.lifetime import in_forked_child

INTERVAL_SECONDS = 0.01
HEARTBEAT_SECONDS = 0.02

STALL_NS = 5_000_000
"""A shorter lateness is no stall: the interpreter itself switches threads every 5 ms."""

SETTLED_NS = 100_000_000
"""After this long the heartbeat's thread has had its turn too."""

_KEPT = 256


@dataclass(frozen=True, slots=True)
class Stall:
    """The event loop was due to run at `started_ns` and ran at `ended_ns`.

    `machine_ns` of that time the machine did not run it; for the rest, code of this process held it.
    """

    started_ns: int
    ended_ns: int
    machine_ns: int

    @property
    def lag_ns(self) -> int:
        return self.ended_ns - self.started_ns

    @property
    def earliest_ns(self) -> int:
        """When it may have begun at the earliest: as the timer was set, the loop ran."""
        return self.started_ns - int(INTERVAL_SECONDS * 1e9)

    @property
    def held_ns(self) -> int:
        """Nanoseconds in which code of this process held the loop."""
        return self.lag_ns - self.machine_ns


@dataclass(frozen=True, slots=True)
class Lateness:
    """Nanoseconds of a stretch of time in which the event loop was late.

    `held_ns` through code of this process, `machine_ns` because the machine did not run it.
    """

    held_ns: int
    machine_ns: int

    def __add__(self, other: Lateness) -> Lateness:
        return Lateness(self.held_ns + other.held_ns, self.machine_ns + other.machine_ns)

    def __sub__(self, other: Lateness) -> Lateness:
        return Lateness(self.held_ns - other.held_ns, self.machine_ns - other.machine_ns)


def lateness(stalls: Iterable[Stall], window: Interval) -> Lateness:
    """The lateness inside a window. A stall that lies in it in part counts in proportion."""
    held = machine = 0.0
    for stall in stalls:
        inside = overlap([(stall.started_ns, stall.ended_ns)], window)
        if inside:
            share = inside / stall.lag_ns
            held += stall.held_ns * share
            machine += stall.machine_ns * share
    return Lateness(round(held), round(machine))


def held_ns(steps: Iterable[Interval], stalls: Sequence[Stall], least_ns: int) -> int:
    """How long steps of over `least_ns` held the loop, without the time that the machine did not run them."""
    held = (end - start - lateness(stalls, (start, end)).machine_ns for start, end in steps)
    return sum(ns for ns in held if ns > least_ns)


class Gap(NamedTuple):
    """From when a heartbeat's thread was last seen to run until it ran again, although it was due before.

    `cpu_ns` of that time the process did run. When is not known: at first, it is taken to be.
    """

    woke_ns: int
    ended_ns: int
    cpu_ns: int


class Heartbeat:
    """A native thread that sleeps 20 ms at a time, and keeps the gaps in which the process did not run.

    A gap is a sleep that ended late although the process used CPU for less than half of that: where it used
    more, its own code kept this thread waiting (for the interpreter's lock). The thread runs while anybody
    has entered, and ends by itself.
    """

    def __init__(
        self,
        clock: Callable[[], int] = time.monotonic_ns,
        cpu_clock: Callable[[], int] = time.process_time_ns,
        start_thread: Callable[[Callable[[], None]], None] = start_native_thread,
        sleep: Callable[[float], None] = native_sleep,
    ) -> None:
        self._clock, self._cpu_clock = clock, cpu_clock
        self._start_thread, self._sleep = start_thread, sleep
        self._users: set[object] = set()
        self._thread: object | None = None  # the one whose turn it is; any other ends
        self._beat = (0, 0)  # wall and CPU time when the thread last woke
        self._gaps: deque[Gap] = deque(maxlen=_KEPT)

    def enter(self, user: object) -> None:
        """From any thread."""
        self._users.add(user)
        if self._thread is None:
            self._start()

    def leave(self, user: object) -> None:
        self._users.discard(user)

    def gaps(self) -> list[Gap]:
        """The gaps so far, that of now included: after a stop the thread may not have had its turn yet."""
        found = list(self._gaps)
        if self._thread is not None and (now := self._gap(self._clock())) is not None:
            found.append(now)
        return found

    def _start(self) -> None:
        self._thread = thread = object()
        self._beat = self._clock(), self._cpu_clock()
        try:
            self._start_thread(lambda: self._run(thread))
        except RuntimeError:  # a process may have no more threads: stops are not told from stalls
            self._thread = None

    def _run(self, thread: object) -> None:
        while self._users and self._thread is thread:
            self._sleep(HEARTBEAT_SECONDS)
            now_ns = self._clock()
            gap = self._gap(now_ns)
            if gap is not None:
                self._gaps.append(gap)
            self._beat = now_ns, self._cpu_clock()
        if self._thread is thread:
            self._thread = None
            if self._users:  # somebody has entered just now, and took this thread to be running
                self._start()

    def _gap(self, now_ns: int) -> Gap | None:
        woke_ns, before_ns = self._beat
        late_ns = now_ns - woke_ns - int(HEARTBEAT_SECONDS * 1e9)
        if late_ns < STALL_NS or 2 * (cpu_ns := self._cpu_clock() - before_ns) > late_ns:
            return None
        return Gap(woke_ns, now_ns, cpu_ns)


IDLE_NS = 200_000
"""A thread that neither ran nor waited for its turn for longer than this had nothing to do."""

STEPS = 8
"""Turns of the loop, at most, from when a response arrives until the code that awaits it goes on."""


class BusyPeriod:
    """For how long an event loop has had something to do, without a pause; looked at on its thread.

    What happens while a loop is busy is noticed at the end of that at the latest, so this is how late an
    event may be that is noticed now. Between two looks the loop paused if its process used the processor and
    its thread waited for one (`run_delay`) for less than the time between them: then it has been busy for as
    long as that, at most. Other threads count: the loop waits for the interpreter's lock while they run. In
    one turn of the loop there is no pause, whatever its code waits for there (`age_now`).
    """

    __slots__ = ("_at_ns", "_clock", "_cpu_clock", "_cpu_ns", "_delay_ns", "_run_delay", "age_ns")

    def __init__(
        self,
        clock: Callable[[], int],
        run_delay: Callable[[], int | None],
        cpu_clock: Callable[[], int] = time.process_time_ns,
    ) -> None:
        self._clock, self._cpu_clock, self._run_delay = clock, cpu_clock, run_delay
        self.age_ns = 0
        self._at_ns, self._cpu_ns, self._delay_ns = clock(), cpu_clock(), run_delay() or 0

    def look(self) -> int:
        """Nanoseconds until now."""
        now_ns, cpu_ns, delay_ns = self._clock(), self._cpu_clock(), self._run_delay() or 0
        wall_ns, busy_ns = now_ns - self._at_ns, cpu_ns - self._cpu_ns + delay_ns - self._delay_ns
        self.age_ns = busy_ns if wall_ns - busy_ns > IDLE_NS else self.age_ns + wall_ns
        self._at_ns, self._cpu_ns, self._delay_ns = now_ns, cpu_ns, delay_ns
        return self.age_ns

    def age_now(self) -> int:
        """Nanoseconds until now, where the loop has not paused since the last look."""
        return self.age_ns + self._clock() - self._at_ns

    def was_late(self, lag_ns: int) -> int:
        """Something that was due `lag_ns` ago is noticed now: busy for so long, and not for much longer.

        Where the process did not even wait for the processor meanwhile, it was stopped, or its code slept:
        since when is not known, but not since before the last look, nor that timer was set. Returns the age.
        """
        looked_ns, ran_ns = self._at_ns, self._cpu_ns + self._delay_ns
        most_ns = min(self.look(), STEPS * lag_ns + IDLE_NS)
        if lag_ns - (self._cpu_ns + self._delay_ns - ran_ns) > STALL_NS:
            since_ns = min(self._at_ns - looked_ns, lag_ns + int(INTERVAL_SECONDS * 1e9))
            most_ns = max(most_ns, since_ns)  # what else came in that stop has been looked at just now
        self.age_ns = max(lag_ns, most_ns)
        return self.age_ns


class LagSampler:
    """Samples how late the timers of one event loop fire, while at least one user has entered.

    This lag is what a busy or blocked event loop adds to every latency measured on it. It is made, and
    used, on the loop's own thread.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], int],
        run_delay: Callable[[], int | None] | None = None,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        self.observers: set[Callable[[int], None]] = set()
        self._loop = weakref.ref(loop)  # which outlives it; a sampler that is kept must not keep its loop
        self._clock = clock
        self._run_delay = RunDelay().read_ns if run_delay is None else run_delay
        self._heartbeat = heartbeat
        self._users = 0
        self._due_ns = 0
        self._delay_ns: int | None = None
        # Whether a timer runs, and which. The timer itself is not kept: it would keep the event loop.
        self._is_due = False
        self._number = 0
        self._busy = BusyPeriod(clock, self._run_delay)
        self._looked = False  # in this turn of the loop
        # Samples (time, lag) with falling lag: enough for the maximum from any time up to now.
        self._worst: deque[tuple[int, int]] = deque(maxlen=_KEPT)
        self._stalls: deque[Stall] = deque(maxlen=_KEPT)
        self._total = Lateness(0, 0)
        self._recent: deque[Stall] = deque(maxlen=_KEPT)  # those that the heartbeat may not know of yet

    def enter(self) -> None:
        self._users += 1
        if self._users == 1:
            # Loops of a few milliseconds, one after another, are sampled by the timer that the last one left.
            # One that is overdue is of a stall before this loop.
            if not self._is_due or self._clock() >= self._due_ns:
                self._schedule()
            if self._heartbeat is not None:
                self._heartbeat.enter(self)

    def leave(self, since_ns: int) -> int:
        """Stop using it; returns the worst lag since `since_ns` in nanoseconds, that of now included."""
        self._users -= 1
        worst = max(0, self._clock() - self._due_ns)
        for at_ns, lag_ns in self._worst:
            if at_ns >= since_ns:
                worst = max(worst, lag_ns)
                break
        if self._users == 0 and self._heartbeat is not None:
            self._heartbeat.leave(self)
        return worst

    def is_of(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether this is the loop whose timers are sampled."""
        return self._loop() is loop

    def late_ns(self) -> int:
        """How late an event may be that is noticed now (`BusyPeriod`). On the loop's thread."""
        # To look takes two system calls, and in a turn of the loop there is no pause to be found.
        if self._looked:
            return self._busy.age_now()
        if (loop := self._loop()) is not None:
            with contextlib.suppress(Exception):  # of a loop of another make: then every look is one
                loop.call_soon(self._begin_turn)
                self._looked = True
        # After a stop, what was received is handled before the timers that tell of it.
        overdue_ns = self._clock() - self._due_ns if self._is_due else 0
        return self._busy.was_late(overdue_ns) if overdue_ns > STALL_NS else self._busy.look()

    def _begin_turn(self) -> None:
        self._looked = False

    def total(self) -> Lateness:
        """The sum of all samples so far, those too that are no stalls. On the loop's thread."""
        return self._total

    def run_delay_ns(self) -> int | None:
        """For how long the loop's thread has been ready and did not run; None where that is not counted."""
        return self._run_delay()

    def stalls(self, since_ns: int) -> list[Stall]:
        """The stalls that ended at `since_ns` or later, in order; one that goes on at this moment included.

        To be called before `leave`. The newest 256 are kept.
        """
        found = [*takewhile(lambda stall: stall.ended_ns >= since_ns, reversed(self._stalls))][::-1]
        now_ns = self._clock()
        if self._is_due and now_ns - self._due_ns >= STALL_NS:
            found.append(Stall(self._due_ns, now_ns, self._delayed_ns()))
        return self._with_stops(found)

    def _with_stops(self, stalls: list[Stall]) -> list[Stall]:
        """The stalls with what the heartbeat knows by now: its thread may have its turn after the loop's."""
        gaps = self._heartbeat.gaps() if stalls and self._heartbeat is not None else []
        stopped = union((gap.woke_ns + gap.cpu_ns, gap.ended_ns) for gap in gaps)
        return [
            Stall(one.started_ns, one.ended_ns, min(one.lag_ns, max(one.machine_ns, overlap(stopped, span))))
            for one in stalls
            for span in [(one.started_ns, one.ended_ns)]
        ]

    def _schedule(self) -> None:
        self._due_ns = self._clock() + int(INTERVAL_SECONDS * 1e9)
        self._delay_ns = self._run_delay()
        loop = self._loop()
        assert loop is not None  # it runs
        self._is_due, self._number = True, self._number + 1
        loop.call_later(INTERVAL_SECONDS, self._sample, self._number)

    def _sample(self, number: int) -> None:
        """The timer: nothing that fails here reaches the event loop, and the next sample is taken.

        It lapses where nobody has entered by now.
        """
        if number != self._number:  # another one took its place
            return
        self._is_due = False
        if self._users == 0:
            return
        with contextlib.suppress(Exception):
            self._take()
        with contextlib.suppress(Exception):
            self._schedule()

    def _take(self) -> None:
        now_ns = self._clock()
        lag_ns = max(0, now_ns - self._due_ns)  # uvloop's timers may fire a little early
        while self._worst and self._worst[-1][1] <= lag_ns:
            self._worst.pop()
        self._worst.append((now_ns, lag_ns))
        delayed_ns = min(lag_ns, self._delayed_ns())
        self._total += Lateness(lag_ns - delayed_ns, delayed_ns)
        if lag_ns >= STALL_NS:
            self._stalls.append(Stall(self._due_ns, now_ns, delayed_ns))
            self._recent.append(self._stalls[-1])
        if self._recent and now_ns - self._recent[0].ended_ns > SETTLED_NS:
            self._count_stops(now_ns - SETTLED_NS)
        self._busy.was_late(lag_ns)
        for observe in self.observers:
            with contextlib.suppress(Exception):  # of a sink, one of several
                observe(lag_ns)

    def _count_stops(self, until_ns: int) -> None:
        """Move lateness from `held_ns` to `machine_ns` where the process turned out to have been stopped."""
        recent = []
        while self._recent and self._recent[0].ended_ns <= until_ns:
            recent.append(self._recent.popleft())
        stopped_ns = sum(
            after.machine_ns - before.machine_ns
            for before, after in zip(recent, self._with_stops(recent), strict=True)
        )
        self._total += Lateness(-stopped_ns, stopped_ns)

    def _delayed_ns(self) -> int:
        """For how long the thread has been runnable and did not run since the last sample."""
        now_ns = self._run_delay()
        return 0 if now_ns is None or self._delay_ns is None else now_ns - self._delay_ns


class StopSampler:
    """Like `LagSampler`, for sync code: it has no event loop to be late, so stops of the process only."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat

    def enter(self) -> None:
        self._heartbeat.enter(self)

    def leave(self, since_ns: int) -> int:
        """Stop using it; 0, for there is no lag."""
        self._heartbeat.leave(self)
        return 0

    def stalls(self, since_ns: int) -> list[Stall]:
        """The stops that ended at `since_ns` or later, in order, each since the heartbeat was due.

        To be called before `leave`.
        """
        sleep_ns = int(HEARTBEAT_SECONDS * 1e9)
        gaps = union(
            (gap.woke_ns + max(sleep_ns, gap.cpu_ns), gap.ended_ns) for gap in self._heartbeat.gaps()
        )
        return [Stall(start, end, end - start) for start, end in gaps if end >= since_ns]


def late_ns() -> int:
    """`LagSampler.late_ns` of the running event loop; 0 where none is sampled, or none runs here."""
    global _newest
    loop = asyncio._get_running_loop()
    if loop is None:
        return 0
    sampler: LagSampler | None = _newest
    if sampler is None or not sampler.is_of(loop):
        sampler = _samplers.get(loop)
        if sampler is None:
            return 0
        _newest = sampler
    return sampler.late_ns()


_newest: LagSampler | None = None
"""That of the last look: to find it in the dictionary takes longer than most looks."""

_samplers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LagSampler] = weakref.WeakKeyDictionary()
_heartbeat = Heartbeat()


def _renew() -> None:
    """In a forked child: no thread has come along, and what the kernel counts is of the parent's."""
    global _heartbeat, _newest
    _heartbeat, _newest = Heartbeat(), None
    _samplers.clear()


in_forked_child(_renew)


def stop_sampler() -> StopSampler:
    """One for the caller, of the process's one heartbeat."""
    return StopSampler(_heartbeat)


def lag_sampler(clock: Callable[[], int]) -> LagSampler:
    """The one sampler of the running event loop; the clock is that of its first user."""
    loop = asyncio.get_running_loop()
    return _samplers.get(loop) or _samplers.setdefault(loop, LagSampler(loop, clock, heartbeat=_heartbeat))
