"""Timers that are never early, on an event loop whose timers may be.

uvloop's clock ticks in milliseconds and is read once per turn of the loop, so its timers fire up to
0.9 ms early. Deadlines here are absolute `time.monotonic_ns` values in one heap with one loop timer
for the earliest; what fires early is armed again.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass

_CROWDED = 1_000
"""Timers from which on it is worth looking for those that were cancelled."""


@dataclass(slots=True, eq=False)
class Timer:
    """A pending callback; `cancel` forgets it (its heap entry goes later)."""

    due_ns: int
    callback: Callable[[], None] | None

    def cancel(self) -> None:
        self.callback = None


class Scheduler:
    """Runs callbacks at absolute monotonic times."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._loop = loop
        self._clock = clock
        self._heap: list[tuple[int, int, Timer]] = []  # the count keeps timers of equal times in order
        self._count = 0
        self._crowded = _CROWDED
        self._armed: asyncio.TimerHandle | None = None
        self._armed_ns = 0

    def at(self, due_ns: int, callback: Callable[[], None]) -> Timer:
        """Call `callback` at `due_ns` (monotonic), or as soon after as the loop allows; never before."""
        timer = Timer(due_ns, callback)
        self._count += 1
        heap = self._heap
        if len(heap) > self._crowded:
            # Of clients that went away: their replies may be due in an hour.
            heap[:] = [entry for entry in heap if entry[2].callback is not None]
            heapq.heapify(heap)
            self._crowded = max(_CROWDED, 2 * len(heap))
        heapq.heappush(heap, (due_ns, self._count, timer))
        if self._armed is None or due_ns < self._armed_ns:
            self._arm(due_ns)
        return timer

    def _arm(self, due_ns: int) -> None:
        if self._armed is not None:
            self._armed.cancel()
        # Rounded up: the loop counts whole milliseconds, and 0 would spin until the time has come.
        delay = max(1, (due_ns - self._clock() + 900_000) // 1_000_000) / 1000
        self._armed_ns = due_ns
        self._armed = self._loop.call_later(delay, self._fire)

    def _fire(self) -> None:
        self._armed = None
        heap, clock = self._heap, self._clock
        while heap:
            due_ns, _, timer = heap[0]
            if timer.callback is None:
                heapq.heappop(heap)
            elif due_ns <= clock():
                heapq.heappop(heap)
                callback, timer.callback = timer.callback, None
                callback()
            else:
                if self._armed is None or due_ns < self._armed_ns:
                    self._arm(due_ns)
                return
