"""A rate: the generic cell rate algorithm (GCRA), a token bucket that keeps one number.

With T = 1/rate, burst b and a call of cost c, at time t:

    may enter when  TAT + (min(c, b) - b)·T ≤ t,   then  TAT = max(t, TAT) + c·T

(TAT, the theoretical arrival time, is when the bucket is full again.) Over any span of length s
the cost let in is at most rate·s + b. A call that costs more than a burst is let in by a full
bucket, and those after it wait for the debt: rate·s + the largest cost. Whoever drives it must be
first come, first served, or small calls would overtake a large one for ever.
"""

from __future__ import annotations

import math
from collections import deque
from itertools import islice

from profiler.errors import UsageError
from profiler.limits.limiter import Cost, Outcome, Ticket

LATE_SECONDS = 0.05
"""Timers are late, and a bucket of one call would lose every lateness for good."""


class _Entry:
    """A call let in: what it paid, and how far the TAT was ahead of it then."""

    __slots__ = ("ahead_ns", "number", "open", "paid")

    def __init__(self, number: int, paid: float, ahead_ns: float) -> None:
        self.number = number
        self.paid = paid
        self.ahead_ns = ahead_ns
        self.open = True


class RateLimit:
    """At most `rate` a second of `resource`, with `burst` of it at once.

    What a call reserves can be more or less than it uses: the difference is given back (or
    charged) when it leaves; a rejected call, or one that never ran, gives all of it back. Giving back
    never lets in more than if the call had been of its true cost from the start: what the bucket
    would have overflowed meanwhile is lost. By default the burst is one call and what
    `LATE_SECONDS` let through.
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
        """What is left of the bucket; negative while in debt."""
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

    def leave(self, now_ns: int, ticket: Ticket, outcome: Outcome, used: Cost | None) -> None:
        entry: _Entry = ticket
        if not entry.open:
            raise RuntimeError("left more often than entered")
        entry.open = False
        if outcome == "rejected" and used is None:
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

        Both can only lower what is allowed; negative values, which some servers send for want of
        better, say nothing.
        """
        if rate is not None and 0 < rate < self.rate:
            owed_ns = max(0.0, self._tat_ns - now_ns) * self.rate / rate  # as many calls, not as long
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
