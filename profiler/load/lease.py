"""A worker's leave to begin loops: it runs out by itself where its leader does not hear of it.

The leader gives the agents of a worker that it no longer hears to others. A worker that was stopped (a
suspended machine, a long swap, SIGSTOP) or cut off knows nothing of that when it goes on, and would load the
target a second time. So each worker says every half a second that it is there (`Beat`), and the leader's
answer to that (`Heard`) lets it begin loops for `LEASE_SECONDS` from when it had said so. That is shorter
than the time after which the leader takes a worker for lost.
"""

from __future__ import annotations

import time

from profiler.records import Clock

BEAT_SECONDS = 0.5

LEASE_SECONDS = 3.0
"""Locust's master takes a worker for lost 4 s after a heartbeat at the earliest. Heartbeats are sent every
second on the same connection: so this is a second less, whenever the last one was."""

STOOD_STILL_SECONDS = 2.0
"""A worker that says so much later than it ought to that it is there stood still meanwhile."""


def running_ns() -> int:
    """Monotonic nanoseconds that go on while the machine is suspended, where the system counts them."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic_ns() if clock is None else time.clock_gettime_ns(clock)


class Lease:
    """Until when this process may begin loops; nothing is allowed before the first answer.

    Times are nanoseconds of `clock`. May be asked from any thread.
    """

    def __init__(self, clock: Clock = running_ns) -> None:
        self.stood_still_seconds = 0.0
        self._clock = clock
        self._until_ns = 0
        self._beat_ns = clock()
        self._revoked = False

    @property
    def holds(self) -> bool:
        """Whether a loop may begin now."""
        return not self._revoked and self._clock() < self._until_ns

    def beat(self) -> int:
        """The time to send with a `Beat`; notes for how long this process has stood still before it."""
        now_ns = self._clock()
        late = (now_ns - self._beat_ns) / 1e9 - BEAT_SECONDS
        if late > STOOD_STILL_SECONDS:
            self.stood_still_seconds = late
        self._beat_ns = now_ns
        return now_ns

    def renew(self, sent_ns: int) -> bool:
        """The leader answered to the beat of `sent_ns`; whether that lets loops begin.

        It does not where the answer had waited here while this process stood still.
        """
        self._until_ns = max(self._until_ns, sent_ns + int(LEASE_SECONDS * 1e9))
        return self.holds

    def revoke(self) -> None:
        """Nothing may begin here any more."""
        self._revoked = True
