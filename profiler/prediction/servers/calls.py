"""The calls of one server as its clients saw them, and their times free of waiting under a rule.

What a client sees of a call is when it began and when it ended. How much of that was service follows from
the other calls in flight, once the server's rule is known:

- a `queue` of C servers, first come, first served: a call's service begins when it arrives, or when the
  C-th last of the earlier arrivals to end has ended, whichever is later;
- a `share` of C servers: with n calls in flight each is served at the speed min(1, C/n), so that a call's
  service is the integral of that speed over its time (egalitarian processor sharing).

Refused calls are in nobody's way: they are not counted as in flight.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

TOGETHER_NS = 2_000_000
"""Calls that started within this time may have reached the server in any order, over several connections."""

_SPREAD_NS = 1_000_000
"""Calls that started together are told apart where their services began further apart than this."""
_SWEEPS = 9
"""How often each of them may change its place with another."""
_ENOUGH = 200
"""Of fewer calls, their services do not tell which are likely."""

Kind = Literal["none", "queue", "share", "refuse", "rate"]


@dataclass(frozen=True, slots=True)
class Calls:
    """The calls of one server in any order; times are ns of one monotonic clock.

    One row for each attempt that reached the server. `refused`: it was answered with 429, 503 or 529 because
    of load. `group` numbers the trial that a row is of. `retry_after`: the ns that a refusal asked to wait,
    -1 without; None if no row has any.

    `block` and `level` of a row's trial, -1 where they are not known: trials of one level ran the same
    strategy with the same number of users, so that slow drift over the blocks is told from load. `loop` is
    the loop that a row is of: what is common to the calls of a loop is told from load by those of others.
    `sending` and `late` are the ns by which a busy client may have sent a row later, and seen its end later,
    than its times say; None: not at all.
    """

    started: Ints
    ended: Ints
    refused: Bools
    group: Ints
    retry_after: Ints | None = None
    block: Ints | None = None
    level: Ints | None = None
    loop: Ints | None = None
    sending: Ints | None = None
    late: Ints | None = None

    def at_server(self) -> Calls:
        """The calls as the server saw them: sent later than they began, over before that was noticed.

        An end comes at any time of the client's busy period, so that half of how late it may be is the mean.
        """
        if self.sending is None or self.late is None:
            return self
        started = np.minimum(self.started + self.sending, self.ended)
        ended = np.maximum(started, self.ended - self.late // 2)
        return replace(self, started=started, ended=ended, sending=None, late=None)

    def chosen(self, rows: Ints | Bools) -> Calls:
        """These rows of it, in this order."""
        optional = (self.retry_after, self.block, self.level, self.loop, self.sending, self.late)
        return Calls(
            self.started[rows],
            self.ended[rows],
            self.refused[rows],
            self.group[rows],
            *(None if column is None else column[rows] for column in optional),
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """What a server does with calls. `none`: it serves any number of them at once, at the same speed.

    `capacity` is C: the servers of a `queue` or `share`, or the number of calls at once above which it
    refuses. `queue`: how many more than C it holds before it refuses, None for any number. `rate` is in calls
    per second, `burst` the size of its bucket; both may hold beside a capacity, and `kind` is then the
    capacity's.
    """

    kind: Kind
    capacity: int | None = None
    queue: int | None = None
    rate: float | None = None
    burst: float | None = None


def in_flight(calls: Calls) -> Ints:
    """Of each row: how many other calls, refused ones left out, were under way when it started.

    Of calls that start at the same instant, the accepted ones came before the refused ones, as far as anyone
    knows, and those in earlier rows before others.
    """
    order = np.lexsort((calls.refused, calls.started))
    taken = ~calls.refused[order]
    started = calls.started[order]
    before: Ints = np.cumsum(taken) - taken
    # A call that ends at the instant at which it starts is never under way for others.
    left = np.searchsorted(np.sort(calls.ended[~calls.refused]), started, side="right")
    found = np.empty(started.size, dtype=np.int64)
    found[order] = np.maximum(0, before - left)
    return found


def service_times(calls: Calls, rule: Rule) -> Ints:
    """Of each row its ns of service, free of waiting under `rule`; -1 for refused rows.

    Under a rule that does not hold some are too small: 0 stands for all that would be negative.
    """
    services = np.full(calls.started.size, -1, dtype=np.int64)
    taken = ~calls.refused
    timeline = Timeline.of(calls.started[taken], calls.ended[taken])
    found = timeline.services(rule.kind, rule.capacity, mixed=True)
    services[np.flatnonzero(taken)[timeline.order]] = np.maximum(0, np.rint(found)).astype(np.int64)
    return services


@dataclass(frozen=True, slots=True)
class Timeline:
    """Accepted calls in the order in which they started, and the number in flight over time.

    `order` sorts the rows that it was made of. `times` are the starts and ends of all calls, merged;
    `number[k]` of them are in flight from `times[k]` on. `start_at` and `end_at` say where in `times` each
    call's own are.

    `turn` lists them in the order in which they are taken to have reached the server. Of calls that started
    `together` (numbered in that order), those that ended first came first: where one waits for another, no
    other order can have been.
    """

    order: Ints
    started: Ints
    ended: Ints
    others: Ints
    times: Ints
    number: Ints
    start_at: Ints
    end_at: Ints
    turn: Ints
    together: Ints

    @classmethod
    def of(cls, started: Ints, ended: Ints) -> Timeline:
        order = np.argsort(started, kind="stable")
        started, ended = started[order], np.maximum(ended[order], started[order])
        size = started.size
        times = np.concatenate((started, ended))
        # At one instant, calls end before others start: who follows at once has the place that is free. A
        # call without duration ends after it started all the same.
        rank = np.concatenate((np.ones(size), np.where(ended > started, 0, 2)))
        merged = np.lexsort((rank, times))
        place = np.empty(2 * size, dtype=np.int64)
        place[merged] = np.arange(2 * size)
        number = np.cumsum(np.where(merged < size, 1, -1))
        others = number[place[:size]] - 1
        together = _together(started)
        turn = np.lexsort((ended, together))
        return cls(
            order, started, ended, others, times[merged], number, place[:size], place[size:], turn, together
        )

    @property
    def durations(self) -> Ints:
        return self.ended - self.started

    def services(self, kind: Kind, capacity: int | None, *, mixed: bool = False) -> Floats:
        """Each call's service in ns, negative where the rule cannot be.

        With `mixed` set, calls of a queue that started together came in an order that is as likely as any.
        """
        if kind == "queue" and capacity is not None:
            served = self.served_from(capacity)
            return (self.ended - (self._mixed(served) if mixed else served)).astype(np.float64)
        if kind == "share" and capacity is not None:
            return self._shared(capacity)
        return self.durations.astype(np.float64)

    def served_from(self, capacity: int) -> Ints:
        """When the service of each call began, in a queue with `capacity` servers."""
        if capacity > int(self.others.max(initial=0)):
            return self.started
        # The heap holds the `capacity` latest ends of the calls so far, the earliest of them in front.
        latest = [-(2**62)] * capacity
        free: list[int] = []
        remember, replace = free.append, heapq.heappushpop
        for end in self.ended[self.turn].tolist():
            remember(latest[0])
            replace(latest, end)
        served = np.empty(self.started.size, dtype=np.int64)
        served[self.turn] = free
        return np.maximum(self.started, served)

    def _mixed(self, served: Ints) -> Ints:
        """The starts of service, given anew to the calls that started together.

        Their order is not known, and the one in which they ended makes long services too short. So starts are
        exchanged between two of them at a time, as likely as the services that come of it are among all
        (Metropolis' rule); those are counted anew now and then.
        """
        together = self.together
        ended, served = self.ended[self.turn], served[self.turn]
        first = np.flatnonzero(np.diff(together, prepend=-1))
        sizes = np.diff(np.append(first, together.size))
        spread = np.maximum.reduceat(served, first) - np.minimum.reduceat(served, first)
        rows = np.flatnonzero(np.repeat(spread > _SPREAD_NS, sizes))
        if rows.size and together.size >= _ENOUGH:
            chance = np.random.default_rng(0)
            part = together[rows]
            rank = np.arange(rows.size) - np.searchsorted(part, part, side="left")
            pairs = np.flatnonzero((rank[:-1] % 2 == 0) & (part[:-1] == part[1:]))
            for sweep in range(_SWEEPS):
                if sweep % 3 == 0:
                    density = _Density.of(ended - served)
                order = rows[np.lexsort((chance.random(rows.size), part))]
                one, other = order[pairs], order[pairs + 1]
                before = density.log(ended[one] - served[one]) + density.log(ended[other] - served[other])
                after = density.log(ended[one] - served[other]) + density.log(ended[other] - served[one])
                changed = after - before > np.log(chance.random(pairs.size))
                one, other = one[changed], other[changed]
                served[one], served[other] = served[other], served[one]
        mixed = np.empty_like(served)
        mixed[self.turn] = served
        return mixed

    def chosen(self, served_from: Ints) -> Floats:
        """Of each call the log of the chance that it came in its `turn` of the calls that started together.

        Of k calls k! orders are possible before, and after only those in which no call ends before its
        service began. Their number is a product over the places, from the last to the first: of the calls
        that end later than service there began, those that no later place has.
        """
        together, ended = self.together, self.ended[self.turn]
        first = np.searchsorted(together, together, side="left")
        after = np.searchsorted(together, together, side="right")
        place = np.arange(together.size) - first + 1
        since = self.started[first]
        far = np.int64(2) ** 42  # more than an hour: no call is looked at for longer
        keys = together * far + np.minimum(far - 1, ended - since)
        wanted = together * far + np.minimum(far - 1, served_from[self.turn] - since)
        left = np.minimum(after, np.maximum(first, np.searchsorted(keys, wanted, side="right")))
        fit = np.maximum(1, after - left - (after - first - place))
        chances = np.empty(together.size)
        chances[self.turn] = np.log(np.minimum(fit, place) / place)
        return chances

    def _shared(self, capacity: int) -> Floats:
        speed = np.minimum(1.0, capacity / np.maximum(1, self.number[:-1]))
        done = np.concatenate(([0.0], np.cumsum(np.diff(self.times) * speed)))
        return done[self.end_at] - done[self.start_at]

    def speed_at_end(self, capacity: int) -> Floats:
        """The speed at which each call was served just before it ended, sharing `capacity` servers."""
        return np.minimum(1.0, capacity / np.maximum(1, self.number[np.maximum(0, self.end_at - 1)]))


@dataclass(frozen=True, slots=True)
class _Density:
    """A histogram of services by their logarithm, as the log density of each service."""

    offset: float
    low: float
    width: float
    logs: Floats

    @classmethod
    def of(cls, services: Ints) -> _Density:
        # Short services would be ever more likely in a scale that is logarithmic down to nothing.
        offset = max(float(_SPREAD_NS), 0.2 * float(np.median(services)))
        logs = np.log(np.maximum(0, services) + offset)
        low, early, late, high = np.quantile(logs, (0.0, 0.25, 0.75, 1.0))
        width = max(0.01, 2 * (late - early) / logs.size ** (1 / 3), (high - low) / 500)
        counts = np.bincount(((logs - low) / width).astype(np.int64), minlength=1).astype(np.float64)
        counts = np.convolve(np.pad(counts, 1), (0.25, 0.5, 0.25), mode="same")
        return cls(offset, float(low - width), width, np.log(counts + 0.1))

    def log(self, services: Ints) -> Floats:
        logs = np.log(np.maximum(0, services) + self.offset)
        at = np.clip(((logs - self.low) / self.width).astype(np.int64), 0, self.logs.size - 1)
        return np.where(services < 0, -1e9, self.logs[at] - logs)


def _together(started: Ints) -> Ints:
    """Numbers the calls that started within `TOGETHER_NS`; `started` ascends."""
    if not started.size:
        return started
    apart = np.diff(started, prepend=started[0]) > TOGETHER_NS
    begun = started[np.maximum.accumulate(np.where(apart, np.arange(started.size), 0))]
    # A long row of calls without a pause is cut.
    part = (started - begun) // TOGETHER_NS
    return np.cumsum(apart | (np.diff(part, prepend=0) != 0)).astype(np.int64)
