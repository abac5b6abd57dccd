"""Limiters as state machines: how long a call has to wait, letting it in, taking it back.

No asyncio and no clock: `profiler.limits.gate.Gate` drives them. `FixedLimit` is a semaphore's rule,
`RateLimit` the generic cell rate algorithm, `Together` several limiters as one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, Protocol

from profiler.errors import UsageError

Cost = Mapping[str, float]
"""The amount that a call takes of each resource (`requests`, `tokens`, …); 0 of those not named."""

ONE: Cost = {"requests": 1.0}
"""The cost of an ordinary call."""

Signal = Literal["ok", "rejected", "timeout", "unknown"]
"""The lesson of a call's end for a limiter.

`rejected`: the server refused it because of its load (429, 503, 529). `unknown` teaches nothing: the
call failed for reasons of its own, was cancelled, or never ran.
"""

Ticket = Any
"""A limiter's own note on a call that is inside; opaque to everybody else."""

UNTIL_RELEASE = 2**62
"""A wait that time alone does not end: another call has to leave first."""


class Limiter(Protocol):
    """Decides which calls may be inside. Times are monotonic nanoseconds and never go back.

    `wait_ns` changes nothing; `enter` is called only when it said 0 for the same time and cost.
    """

    @property
    def limit(self) -> int | None:
        """How many calls may be inside at once now, None for a limiter of something else."""

    def wait_ns(self, now_ns: int, cost: Cost) -> int:
        """0: may enter now. Else the least time to wait, or `UNTIL_RELEASE`."""

    def enter(self, now_ns: int, cost: Cost) -> Ticket: ...

    def leave(self, now_ns: int, ticket: Ticket, signal: Signal, used: Cost | None) -> None:
        """The call has ended. `used` is what it really took, None for what it had reserved."""


class FixedLimit:
    """At most `limit` calls inside at once."""

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

    def leave(self, now_ns: int, ticket: Ticket, signal: Signal, used: Cost | None) -> None:
        if self.inside == 0:
            raise RuntimeError("left more often than entered")
        self.inside -= 1


class Together:
    """Several limiters as one: a call enters all of them at once, or none."""

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

    def leave(self, now_ns: int, ticket: Ticket, signal: Signal, used: Cost | None) -> None:
        for one, part in zip(self.limiters, ticket, strict=True):
            one.leave(now_ns, part, signal, used)


LATE_SECONDS = 0.05
"""How late timers may be. With a burst of one call, every lateness would be lost to the rate for good."""


@dataclass(slots=True, eq=False)
class _Entry:
    """A call let in: what it paid, and how far the TAT was ahead of it then."""

    number: int
    paid: float
    ahead_ns: float
    open: bool = True


class RateLimit:
    """At most `rate` a second of `resource`, with `burst` of it at once.

    The generic cell rate algorithm (GCRA, virtual scheduling of ITU-T I.371), a token bucket that keeps
    a single number. With T = 1/rate, burst b and a call of cost c, at time t:

        may enter when  TAT + (min(c, b) - b)·T ≤ t,   then  TAT = max(t, TAT) + c·T

    (TAT, the theoretical arrival time, is when the bucket is full again.) Over any span of length s
    the cost let in is at most rate·s + b. A call that costs more than the burst is let in by a full
    bucket, and those after it wait for the debt: rate·s + the largest cost. The caller must be first
    come, first served, or small calls would overtake a large one for ever.

    A call may use more or less than it reserved: the difference is charged or given back when it
    leaves; a rejected call, or one that never ran, gives back all of it. Giving back never lets in more
    than if the call had had its true cost from the start: the part that the bucket would have
    overflowed meanwhile is lost. The default burst is one call and as many as come in `LATE_SECONDS`.
    """

    limit = None

    def __init__(self, rate: float, burst: float | None = None, resource: str = "requests") -> None:
        if not (rate > 0 and math.isfinite(rate)):
            raise UsageError(f"a rate must be above 0, not {rate:g}")
        if burst is not None and burst < 1:
            raise UsageError(f"a burst must be at least 1, not {burst:g}")
        self.rate = rate
        self.burst = float(1 + math.ceil(rate * LATE_SECONDS) if burst is None else burst)
        self.resource = resource
        self._interval_ns = 1e9 / rate
        self._tat_ns = -math.inf
        self._entries: deque[_Entry] = deque()
        self._number = 0

    def level(self, now_ns: int) -> float:
        """How much is left in the bucket; negative while in debt."""
        return self.burst - max(0.0, self._tat_ns - now_ns) / self._interval_ns

    def wait_ns(self, now_ns: int, cost: Cost) -> int:
        amount = cost.get(self.resource, 0.0)
        if not amount:
            return 0
        early = self._tat_ns + (min(amount, self.burst) - self.burst) * self._interval_ns
        return math.ceil(early - now_ns) if early > now_ns else 0

    def enter(self, now_ns: int, cost: Cost) -> Ticket:
        amount = cost.get(self.resource, 0.0)
        entry = _Entry(self._number, amount, max(0.0, self._tat_ns - now_ns))
        self._number += 1
        self._entries.append(entry)
        self._tat_ns = max(self._tat_ns, float(now_ns)) + amount * self._interval_ns
        return entry

    def leave(self, now_ns: int, ticket: Ticket, signal: Signal, used: Cost | None) -> None:
        entry: _Entry = ticket
        if not entry.open:
            raise RuntimeError("left more often than entered")
        entry.open = False
        if signal == "rejected" and used is None:
            self._give_back(entry, entry.paid)
        elif used is not None:
            less = entry.paid - used.get(self.resource, 0.0)
            if less > 0:
                self._give_back(entry, less)
            elif less < 0:
                self._tat_ns = max(self._tat_ns, float(now_ns)) - less * self._interval_ns
        while self._entries and not self._entries[0].open:
            self._entries.popleft()

    def lower(self, now_ns: int, remaining: float, rate: float | None = None) -> None:
        """The server says that only `remaining` is left, and that it allows `rate` a second.

        Both can only lower what is allowed. Negative values, which some servers send when they have no
        figure, are ignored.
        """
        if rate is not None and 0 < rate < self.rate:
            owed_ns = max(0.0, self._tat_ns - now_ns) * self.rate / rate  # the same debt in calls
            self.rate = rate
            self._interval_ns = 1e9 / rate
            self._tat_ns = now_ns + owed_ns
        if remaining >= 0:
            self._tat_ns = max(self._tat_ns, now_ns + (self.burst - remaining) * self._interval_ns)

    def _give_back(self, entry: _Entry, amount: float) -> None:
        """Replay the calls after this one as if it had cost `amount` less.

        TAT_k = max(t_k, TAT_{k-1}) + c_k·T: a smaller TAT passes on to the next call only as far as
        it was ahead of that call's time.
        """
        earlier_ns = amount * self._interval_ns
        for later in islice(self._entries, entry.number - self._entries[0].number + 1, None):
            earlier_ns = min(earlier_ns, later.ahead_ns)
            if earlier_ns <= 0:
                return
            later.ahead_ns -= earlier_ns
        self._tat_ns -= earlier_ns
