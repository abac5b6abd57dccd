"""Limiters as pure state machines.

A *limiter* is ours: it decides which tool calls may run now. (A *quota* is the server's.)
A limiter knows neither asyncio nor wall-clock time; `profiler.gate.Gate` drives it.
"""

from __future__ import annotations

from typing import Protocol

from profiler.errors import UsageError


class Limiter(Protocol):
    """Admits calls. `try_acquire` takes a place and says True, or leaves all as it was and says False."""

    @property
    def limit(self) -> int:
        """How many may be inside at once."""

    def try_acquire(self) -> bool: ...

    def release(self) -> None: ...


class FixedLimit:
    """At most `limit` inside at once: a semaphore's rule."""

    __slots__ = ("inside", "limit")

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise UsageError(f"a limit must be at least 1, not {limit}")
        self.limit = limit
        self.inside = 0

    def try_acquire(self) -> bool:
        if self.inside >= self.limit:
            return False
        self.inside += 1
        return True

    def release(self) -> None:
        if self.inside == 0:
            raise RuntimeError("released more often than acquired")
        self.inside -= 1
