"""Limiters as state machines: how long a call has to wait, letting it in, taking it back.

No asyncio and no clock: `profiler.limits.gate.Gate` drives them. `FixedLimit` is a semaphore's rule,
`RateLimit` the generic cell rate algorithm, `AdaptiveLimit` follows what the server takes, `Together` is
several limiters as one.
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
        longest = 0
        for one in self.limiters:  # plainly, since predictions ask this for every call
            wait_ns = one.wait_ns(now_ns, cost)
            if wait_ns > longest:
                longest = wait_ns
        return longest

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
        early = self._tat_ns
        if amount < self.burst:
            early += (amount - self.burst) * self._interval_ns
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


# A limit that follows what the server takes: additive increase, multiplicative decrease by epochs.
#
# AIMD after Chiu & Jain 1989, with a memory of where the server was full. Rejections come in bursts, and
# a cut at each one would end at a limit of one call. So a limit L is cut at most once per epoch, which
# is one mean latency: the time it takes to see what a cut did.
#
#     success      L + 1 in slow start, L + 1/L after it; only while at least 0.9·L calls are inside
#     rejection    to min(0.9·L, others inside), in slow start min(0.7·L, others); to the others alone
#                  when there was no cut for 3 epochs; never below L/2
#     timeouts     to 0.9·L (0.7·L in slow start), when more than 5 % of the epoch's calls timed out
#     full         a call was refused with k others inside: L stays at k for 8 epochs, then one more is
#                  tried; if that fails, for 16
#     growth       after 4 epochs of growth without a cut, each further one doubles the step, up to L/8
#
# Minimum latency and its gradient are not used: tool latencies are heavy-tailed. For an epoch after a
# rejection no call is let in beyond the others that were inside then: otherwise the whole queue would be
# refused on the one place too many, a call per round trip. The memory is there because a limit that keeps
# trying its ceiling costs a failed call each time.


START = 8
CUT = 0.9
CUT_IN_SLOW_START = 0.7
DEEPEST_CUT = 0.5
SATURATED = 0.9
"""The share of the limit that must be in use for a success to say that more would be taken."""

TIMEOUT_SHARE = 0.05
LATENCY_WEIGHT = 0.05
"""The weight of each new latency in the exponential moving average, which is the length of an epoch."""

PATIENT_EPOCHS = 4
FASTEST_GROWTH = 1 / 8
FIRST_PATIENCE, LAST_PATIENCE = 4, 16
ALONE_EPOCHS = 3


class AdaptiveLimit:
    """At most `limit` calls inside at once, which follows the server; never below 1 nor above `most`."""

    def __init__(self, start: int = START, *, most: int | None = None) -> None:
        if start < 1:
            raise UsageError(f"an adaptive limit must start at 1 at least, not {start}")
        self.exact = float(start)
        self.inside = 0
        self._most = float(most) if most is not None else float("inf")
        self._slow_start = True
        self._latency_ns: float | None = None
        self._no_cut_before_ns = 0
        self._ceiling = 0
        self._ceiling_until_ns = 0
        self._epoch_ends_ns = 0
        self._epoch_calls = 0
        self._epoch_timeouts = 0
        self._epochs = 0
        self._calm_epochs = 0
        self._grew = False
        self._full: int | None = None  # others inside when a call was last refused
        self._full_epochs = 0
        self._patience = FIRST_PATIENCE
        self._last_cut = 0

    @property
    def limit(self) -> int:
        return int(self.exact)

    def wait_ns(self, now_ns: int, cost: Cost) -> int:
        if self.inside >= int(self.exact):
            return UNTIL_RELEASE
        if self.inside >= self._ceiling and now_ns < self._ceiling_until_ns:
            return self._ceiling_until_ns - now_ns
        return 0

    def enter(self, now_ns: int, cost: Cost) -> Ticket:
        self.inside += 1
        return now_ns

    def leave(self, now_ns: int, ticket: Ticket, signal: Signal, used: Cost | None) -> None:
        if self.inside == 0:
            raise RuntimeError("left more often than entered")
        saturated = self.inside >= SATURATED * int(self.exact)
        self.inside -= 1
        if signal == "unknown":
            return
        if now_ns >= self._epoch_ends_ns:
            self._next_epoch(now_ns)
        self._epoch_calls += 1
        if signal == "ok":
            elapsed: int = now_ns - ticket
            mean = self._latency_ns
            self._latency_ns = elapsed if mean is None else mean + LATENCY_WEIGHT * (elapsed - mean)
            if saturated:
                self._grow()
        elif signal == "rejected":
            self._hold_at_others(now_ns)
            if self._full is None:  # a try of one more that failed
                self._patience = min(LAST_PATIENCE, 2 * self._patience)
            self._full, self._full_epochs = self.inside, 0
            self._cut(now_ns, refused=True)
        else:
            self._epoch_timeouts += 1
            if self._epoch_timeouts > max(1.0, TIMEOUT_SHARE * self._epoch_calls):
                self._cut(now_ns, refused=False)

    def _grow(self) -> None:
        self._grew = True
        if self._slow_start:
            step = 1.0
        else:
            beyond = self._calm_epochs - PATIENT_EPOCHS
            per_epoch = max(1.0, min(2.0**beyond, self.exact * FASTEST_GROWTH))
            step = per_epoch / self.exact
        grown = min(self.exact + step, self._most)
        if self._full is not None and grown > self._full:
            grown = float(self._full)
        if grown > self.exact:
            self.exact = grown
        self._ceiling += 1

    def _cut(self, now_ns: int, *, refused: bool) -> None:
        if now_ns < self._no_cut_before_ns:
            return
        wanted = (CUT_IN_SLOW_START if self._slow_start else CUT) * self.exact
        if refused:
            alone = not self._slow_start and self._epochs - self._last_cut >= ALONE_EPOCHS
            wanted = min(self.exact if alone else wanted, float(self.inside))
        self.exact = max(1.0, DEEPEST_CUT * self.exact, wanted)
        self._slow_start = False
        self._calm_epochs = 0
        self._grew = False
        self._last_cut = self._epochs
        self._no_cut_before_ns = now_ns + self._epoch_ns
        self._epoch_calls = self._epoch_timeouts = 0

    def _hold_at_others(self, now_ns: int) -> None:
        """For an epoch, let no call in beyond those inside now."""
        others = max(1, self.inside)
        if others < self._ceiling or now_ns >= self._ceiling_until_ns:
            self._ceiling = others
        self._ceiling_until_ns = now_ns + self._epoch_ns

    def _next_epoch(self, now_ns: int) -> None:
        self._epoch_ends_ns = now_ns + self._epoch_ns
        self._epoch_calls = self._epoch_timeouts = 0
        self._epochs += 1
        if self._grew and self._full is None:
            self._calm_epochs += 1
            if self._calm_epochs > 1:  # the server takes more than it seemed to
                self._patience = FIRST_PATIENCE
        elif self._full is not None and self.exact >= self._full:
            self._full_epochs += 1
            if self._full_epochs >= self._patience:
                self._full = None
        self._grew = False

    @property
    def _epoch_ns(self) -> int:
        """One mean latency; a tenth of a second until there is one."""
        return 100_000_000 if self._latency_ns is None else max(1, int(self._latency_ns))
