"""How the calls of one round ran, and would have run: work, wall, overlap, estimates of limits. Pure.

work       the sum of the durations of its calls
wall       from the first start to the last end
busy       for how long any of them ran; what is left of the wall are gaps
gathered   an estimate: the longest call
limit k    an estimate: these durations, started in the order asked, at most k at once
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from profiler.anatomy import Interval, length, peak, union
from profiler.records import RoundRecord

LIMITS = (2, 4, 8)
"""Limits of which it is estimated what they would have made of the rounds."""

Overlap = Literal["single", "measured", "upper bound"]


class RoundTimes(NamedTuple):
    """The calls of a round that started and ended, in nanoseconds; `limits` of `LIMITS`.

    `second` is the longest duration but one: whether calls overlapped is told by no less than that.
    """

    calls: int
    work: int
    wall: int
    busy: int
    peak: int
    gathered: int
    limits: tuple[int, ...]
    overlap: Overlap
    second: int
    first: int
    last: int


def round_times(round_: RoundRecord) -> RoundTimes | None:
    """The times of a round's calls; None where no call both started and ended."""
    calls = [
        call for call in round_.tool_calls if call.started_ns is not None and call.ended and not call.nested
    ]
    return times_of(
        [(call.began_ns, call.ended_ns) for call in calls], any(call.upper_bound for call in calls)
    )


def times_of(spans: list[Interval], upper_bound: bool) -> RoundTimes | None:
    """As `round_times`, of the start and end of each call, in the order asked; any of them an upper bound."""
    if not spans:
        return None
    if len(spans) == 1:
        (first, last), took = spans[0], spans[0][1] - spans[0][0]
        same = (took,) * len(LIMITS)
        return RoundTimes(1, took, took, took, 1, took, same, "single", 0, first, last)
    durations = [ended - started for started, ended in spans]
    first, last = min(spans)[0], max([ended for _, ended in spans])
    ordered = sorted(durations)
    return RoundTimes(
        calls=len(spans),
        work=sum(durations),
        wall=last - first,
        busy=length(union(spans)),
        peak=max(1, peak(spans)),
        gathered=ordered[-1],
        limits=tuple(list_schedule(durations, limit) for limit in LIMITS),
        overlap="upper bound" if upper_bound else "measured",
        second=ordered[-2],
        first=first,
        last=last,
    )


def list_schedule(durations: Sequence[int], limit: int) -> int:
    """How long it takes to run these one after another, `limit` at once, each as soon as there is room."""
    if limit >= len(durations):
        return max(durations, default=0)
    running = list(durations[:limit])
    heapq.heapify(running)
    for duration in durations[limit:]:
        heapq.heappush(running, heapq.heappop(running) + duration)
    return max(running, default=0)


@dataclass(frozen=True, slots=True)
class Sums:
    """Rounds added up, in seconds. `peak`: the most calls at once in one. `limit_seconds`: by `semaphore:2`.

    `speed_up` is work / wall, `busy_speed_up` work / busy, which the gaps between calls do not lower; None
    without a round. `gap_seconds` are those gaps.
    """

    rounds: int
    calls: int
    work_seconds: float
    wall_seconds: float
    busy_seconds: float
    gathered_seconds: float
    limit_seconds: dict[str, float]
    gap_seconds: float
    peak: int
    speed_up: float | None
    busy_speed_up: float | None

    def less(self, seconds: float) -> float | None:
        """The share that the wall would be less, if calls ran for `seconds` in all and the gaps stayed."""
        return (self.busy_seconds - seconds) / self.wall_seconds if self.wall_seconds else None


def by_limit(nanoseconds: Iterable[int]) -> dict[str, float]:
    """Seconds by the strategy that has each of `LIMITS`."""
    return {f"semaphore:{limit}": ns / 1e9 for limit, ns in zip(LIMITS, nanoseconds, strict=True)}


@dataclass(slots=True)
class Adding:
    """Rounds that are being added up, in nanoseconds."""

    rounds: int = 0
    calls: int = 0
    work: int = 0
    wall: int = 0
    busy: int = 0
    gathered: int = 0
    limits: list[int] = field(default_factory=lambda: [0] * len(LIMITS))
    peak: int = 0

    def add(self, one: RoundTimes) -> None:
        self.rounds += 1
        self.calls += one.calls
        self.work += one.work
        self.wall += one.wall
        self.busy += one.busy
        self.gathered += one.gathered
        for place, taken in enumerate(one.limits):
            self.limits[place] += taken
        self.peak = max(self.peak, one.peak)

    def join(self, other: Adding) -> None:
        for name in ("rounds", "calls", "work", "wall", "busy", "gathered"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.limits = [a + b for a, b in zip(self.limits, other.limits, strict=True)]
        self.peak = max(self.peak, other.peak)

    def result(self) -> Sums:
        return Sums(
            self.rounds,
            self.calls,
            self.work / 1e9,
            self.wall / 1e9,
            self.busy / 1e9,
            self.gathered / 1e9,
            by_limit(self.limits),
            (self.wall - self.busy) / 1e9,
            self.peak,
            self.work / self.wall if self.wall else None,
            self.work / self.busy if self.busy else None,
        )
