"""A semaphore's rule."""

from __future__ import annotations

from profiler.errors import UsageError
from profiler.limits.limiter import UNTIL_RELEASE, Cost, Outcome, Ticket


class FixedLimit:
    """At most `limit` inside at once."""

    __slots__ = ("inside", "limit")

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise UsageError(f"a limit must be at least 1, not {limit}")
        self.limit = limit
        self.inside = 0

    def wait_ns(self, now_ns: int, cost: Cost) -> int:
        return 0 if self.inside < self.limit else UNTIL_RELEASE

    def enter(self, now_ns: int, cost: Cost) -> Ticket:
        self.inside += 1

    def leave(self, now_ns: int, ticket: Ticket, outcome: Outcome, used: Cost | None) -> None:
        if self.inside == 0:
            raise RuntimeError("left more often than entered")
        self.inside -= 1
