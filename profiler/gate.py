"""The asyncio gate that drives a limiter: first come, first served, safe under cancellation."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType

from profiler.limits import Limiter


class Gate:
    """An async context manager around one place of a limiter.

    Waiters are admitted in the order they came. Cancelling a waiter at any await gives back
    whatever it had been granted. One gate belongs to one event loop.
    """

    __slots__ = ("__weakref__", "_waiters", "limiter")

    def __init__(self, limiter: Limiter) -> None:
        self.limiter = limiter
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """Calls that wait now."""
        return sum(not waiter.done() for waiter in self._waiters)

    async def __aenter__(self) -> None:
        if not self._waiters and self.limiter.try_acquire():
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                # Granted and cancelled in the same tick: the place goes to the next.
                self._release()
            else:
                waiter.cancel()
                self._admit()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def _release(self) -> None:
        self.limiter.release()
        self._admit()

    def _admit(self) -> None:
        waiters = self._waiters
        while waiters:
            if waiters[0].done():
                waiters.popleft()
            elif self.limiter.try_acquire():
                waiters.popleft().set_result(None)
            else:
                return
