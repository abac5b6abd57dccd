"""Several limiters as one."""

from __future__ import annotations

from collections.abc import Sequence

from profiler.limits.limiter import Cost, Limiter, Outcome, Ticket


class Together:
    """Lets in whom all of its limiters let in: all resources are taken, or none."""

    __slots__ = ("limiters",)

    def __init__(self, limiters: Sequence[Limiter]) -> None:
        self.limiters = tuple(limiters)

    @property
    def limit(self) -> int | None:
        return min((one.limit for one in self.limiters if one.limit is not None), default=None)

    def wait_ns(self, now_ns: int, cost: Cost) -> int:
        return max((one.wait_ns(now_ns, cost) for one in self.limiters), default=0)

    def enter(self, now_ns: int, cost: Cost) -> Ticket:
        return [one.enter(now_ns, cost) for one in self.limiters]

    def leave(self, now_ns: int, ticket: Ticket, outcome: Outcome, used: Cost | None) -> None:
        for one, part in zip(self.limiters, ticket, strict=True):
            one.leave(now_ns, part, outcome, used)
