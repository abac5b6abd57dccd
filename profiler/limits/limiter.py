"""What every limiter does: say how long, let in, take back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from profiler.errors import UsageError

Cost = Mapping[str, float]
"""What a call takes of each resource: `requests`, `tokens`, ... What is not named costs nothing."""

ONE: Cost = {"requests": 1.0}
"""An ordinary call."""

Outcome = Literal["ok", "rejected", "timeout", "unknown"]
"""How a call ended, as far as a limiter learns from it.

`rejected`: the server refused it for its load (429, 503, 529). `unknown` teaches nothing: it
failed for reasons of its own, was cancelled, or never ran.
"""

Ticket = Any
"""What a limiter keeps of a call that is inside; only it looks into it."""

UNTIL_RELEASE = 2**62
"""A wait that time alone does not end: somebody has to leave first."""


class Limiter(Protocol):
    """Decides who may be inside. Times are monotonic nanoseconds and never go back.

    `wait_ns` changes nothing; `enter` is called only when it said 0 for the same time and cost.
    """

    @property
    def limit(self) -> int | None:
        """How many may be inside at once now, None when that is not what it limits."""

    def wait_ns(self, now_ns: int, cost: Cost) -> int:
        """0: may enter now. Else how long it has to wait at least, `UNTIL_RELEASE` for a place."""

    def enter(self, now_ns: int, cost: Cost) -> Ticket: ...

    def leave(self, now_ns: int, ticket: Ticket, outcome: Outcome, used: Cost | None) -> None:
        """The call has ended. `used` is what it took in truth, None for what was reserved."""


# A semaphore's rule.


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


# Several limiters as one.


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
