"""Event-loop lag: how late timers fire, sampled while loops run.

Lag is what a busy or blocked event loop adds to every latency measured on it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from weakref import WeakKeyDictionary

INTERVAL_SECONDS = 0.01

_KEPT = 256


class LagSampler:
    """The sampler of one event loop; runs while at least one user has entered and not left."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], int]) -> None:
        self.observers: set[Callable[[int], None]] = set()
        self._loop = loop
        self._clock = clock
        self._users = 0
        self._due_ns = 0
        self._timer: asyncio.TimerHandle | None = None
        # Samples (time, lag) with falling lag: all that a maximum up to now can ever need.
        self._worst: deque[tuple[int, int]] = deque(maxlen=_KEPT)

    def enter(self) -> None:
        self._users += 1
        if self._users == 1:
            self._schedule()

    def leave(self, since_ns: int) -> int:
        """Stop using; the worst lag sampled since then, in nanoseconds, the current moment included."""
        self._users -= 1
        worst = max(0, self._clock() - self._due_ns)
        for at_ns, lag_ns in self._worst:
            if at_ns >= since_ns:
                worst = max(worst, lag_ns)
                break
        if self._users == 0 and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return worst

    def _schedule(self) -> None:
        self._due_ns = self._clock() + int(INTERVAL_SECONDS * 1e9)
        self._timer = self._loop.call_later(INTERVAL_SECONDS, self._sample)

    def _sample(self) -> None:
        now_ns = self._clock()
        lag_ns = max(0, now_ns - self._due_ns)  # uvloop's timers may fire a little early
        while self._worst and self._worst[-1][1] <= lag_ns:
            self._worst.pop()
        self._worst.append((now_ns, lag_ns))
        for observe in self.observers:
            observe(lag_ns)
        self._schedule()


_samplers: WeakKeyDictionary[asyncio.AbstractEventLoop, LagSampler] = WeakKeyDictionary()


def lag_sampler(clock: Callable[[], int]) -> LagSampler:
    """The one sampler of the running event loop; the clock is that of its first user."""
    loop = asyncio.get_running_loop()
    sampler = _samplers.get(loop)
    if sampler is None:
        sampler = _samplers[loop] = LagSampler(loop, clock)
    return sampler
