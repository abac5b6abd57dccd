"""The servers of a simulation, by the rule that a recording showed, and the virtual time.

An event is a tuple (time, number, function, argument): the number keeps events of one time in the order in
which they were made. A job has `service_ns`, and is told by `answered(refused, retry_after_ns)`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Protocol

from profiler.prediction.servers.pace import PaceDraws
from profiler.prediction.simulation.work import Server


class Job(Protocol):
    service_ns: int

    def answered(self, refused: bool, retry_after_ns: int | None) -> None: ...


@dataclass(slots=True)
class ServerUse:
    """How a server was used while trials measured: `at_arrival` counts arrivals by the calls in flight then.

    `work_ns` is the service that was asked for and not refused.
    """

    at_arrival: list[int] = field(default_factory=list)
    arrived: int = 0
    refused: int = 0
    work_ns: int = 0


class Clock:
    """The virtual time, and what is due."""

    __slots__ = ("heap", "made", "now")

    def __init__(self) -> None:
        self.now = 0
        self.made = 0
        self.heap: list[tuple[int, int, Callable[[Any], None], Any]] = []

    def at(self, time: int, function: Callable[[Any], None], argument: Any = None) -> None:
        self.made += 1
        heappush(self.heap, (time, self.made, function, argument))


class SimulatedServer:
    """Serves every job at once."""

    __slots__ = (
        "capacity",
        "clock",
        "inside",
        "over",
        "pace",
        "rate",
        "server",
        "tokens",
        "tokens_at",
        "use",
    )

    def __init__(self, clock: Clock, server: Server, pace: PaceDraws | None = None) -> None:
        self.clock = clock
        self.pace = pace
        self.server = server
        self.capacity = server.rule.capacity or 1
        self.rate = server.rule.rate
        self.over = self.end  # bound once: it is pushed with every job
        self.inside = 0
        self.use = ServerUse()
        self.tokens = 0.0
        self.tokens_at = -(2**62)

    def arrive(self, job: Job) -> None:
        use, inside = self.use, self.inside
        use.arrived += 1
        try:
            use.at_arrival[inside] += 1
        except IndexError:
            use.at_arrival += [0] * (inside - len(use.at_arrival)) + [1]
        if self.rate is not None:
            wait_ns = self._take(self.rate)
            if wait_ns:
                asked = self.server.retry_after_ns
                self.refuse(job, asked if asked is None or asked else wait_ns)
                return
        if self.pace is not None:
            job.service_ns = int(job.service_ns * self.pace.factor(self.clock.now))
        if self.take(job):
            self.inside += 1
            use.work_ns += job.service_ns
        else:
            self.refuse(job, self.server.retry_after_ns)

    def take(self, job: Job) -> bool:
        """Serve the job now or later; False: it is refused."""
        self.serve(job)
        return True

    def serve(self, job: Job) -> None:
        """Serve the job from now on, at full speed."""
        clock = self.clock  # `at`, written out where most events are made
        clock.made = number = clock.made + 1
        heappush(clock.heap, (clock.now + job.service_ns, number, self.over, job))

    def end(self, job: Job) -> None:
        self.inside -= 1
        job.answered(False, None)

    def refuse(self, job: Job, retry_after_ns: int | None) -> None:
        self.use.refused += 1
        self.clock.at(self.clock.now + self.server.refusal_ns, _refused, (job, retry_after_ns))

    def _take(self, rate: float) -> int:
        """Take one from the bucket: 0, or how long until there will be one."""
        burst = self.server.rule.burst or 1.0
        now = self.clock.now
        self.tokens = min(burst, self.tokens + (now - self.tokens_at) * rate / 1e9)
        self.tokens_at = now
        if self.tokens < 1.0:
            return int((1.0 - self.tokens) / rate * 1e9) + 1
        self.tokens -= 1.0
        return 0


def _refused(told: tuple[Job, int | None]) -> None:
    told[0].answered(True, told[1])


class _Refusing(SimulatedServer):
    """Serves `capacity` jobs at once, and refuses more."""

    __slots__ = ()

    def take(self, job: Job) -> bool:
        if self.inside >= self.capacity:
            return False
        self.serve(job)
        return True


class _Queueing(SimulatedServer):
    """Serves `capacity` jobs at once; more wait in the order they came, `queue` of them at most."""

    __slots__ = ("waiting",)

    def __init__(self, clock: Clock, server: Server, pace: PaceDraws | None = None) -> None:
        super().__init__(clock, server, pace)
        self.waiting: deque[Job] = deque()

    def take(self, job: Job) -> bool:
        most = self.server.rule.queue
        if self.inside < self.capacity:
            self.serve(job)
        elif most is not None and len(self.waiting) >= most:
            return False
        else:
            self.waiting.append(job)
        return True

    def end(self, job: Job) -> None:
        self.inside -= 1
        if self.waiting:
            self.serve(self.waiting.popleft())
        job.answered(False, None)


class _Sharing(SimulatedServer):
    """Serves all jobs at once, each at the speed min(1, capacity / jobs): processor sharing.

    `served` is the service, in ns, of a job that was there from the beginning: one that came when it was s is
    over when it is s + its own service. So the order of ends is known however many come after.
    """

    __slots__ = ("at", "due", "ends", "look", "number", "served")

    def __init__(self, clock: Clock, server: Server, pace: PaceDraws | None = None) -> None:
        super().__init__(clock, server, pace)
        self.served = 0.0
        self.at = 0
        self.ends: list[tuple[float, int, Job]] = []
        self.number = 0
        self.due = 2**62  # of the earliest event under way
        self.look = self._look  # bound once

    def _advance(self) -> None:
        """Bring `served` to now."""
        jobs, capacity, now = len(self.ends), self.capacity, self.clock.now
        passed = now - self.at
        self.served += passed if jobs <= capacity else passed * capacity / jobs
        self.at = now

    def _plan(self) -> None:
        ends = self.ends
        if not ends:
            return
        jobs, capacity, clock = len(ends), self.capacity, self.clock
        left = ends[0][0] - self.served
        if jobs > capacity:
            left = left * jobs / capacity
        due = clock.now + (int(left) + 1 if left > 0 else 1)
        if due < self.due:  # else the earlier event looks again
            self.due = due
            clock.made = number = clock.made + 1
            heappush(clock.heap, (due, number, self.look, due))

    def take(self, job: Job) -> bool:
        self._advance()
        self.number += 1
        heappush(self.ends, (self.served + job.service_ns, self.number, job))
        self._plan()
        return True

    def _look(self, due: int) -> None:
        if due != self.due:
            return
        self.due = 2**62
        self._advance()
        ends, last = self.ends, self.served + 0.5  # ns; the sum of parts is not exact
        if not ends or ends[0][0] > last:
            self._plan()
            return
        job = heappop(ends)[2]
        others = []
        while ends and ends[0][0] <= last:
            others.append(heappop(ends)[2])
        self.inside -= 1 + len(others)
        self._plan()
        job.answered(False, None)
        for job in others:
            job.answered(False, None)


SERVERS: dict[str, type[SimulatedServer]] = {
    "none": SimulatedServer,
    "rate": SimulatedServer,
    "refuse": _Refusing,
    "queue": _Queueing,
    "share": _Sharing,
}
