"""How well a rule explains the calls of one server: the likelihood of their ends, given their starts.

Under the right rule the services are draws from one distribution, whatever the load. So the probability
that a call ends within a millisecond of when it did is that of its service within a millisecond, times the
speed at which it was served last (a queue: 1). The distribution is not assumed: it is a histogram of the
other half of the calls (cross-validation), in a logarithmic scale. By the mean of the logarithm of this
probability the true rule comes first (Gibbs' inequality), across kinds too: a queue against sharing, one
capacity against another, any of them against none.

Beside the likelihood of the whole there are others, each without what something else than the load may be the
reason for (`View`): they tell whether the load alone is enough to tell the rules apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from profiler.prediction.servers.calls import Bools, Calls, Floats, Ints, Kind, Timeline
from profiler.prediction.servers.centring import OwnCalls, Repeated, medians, stretches

TOLERANCE_NS = 2e6
"""By how much a client may see a call end before its service began: what the network adds, unevenly."""
TOLERANCE = 0.01
"""The same as a share of the call's duration, where that is more."""
RESOLUTION_NS = 1e6
"""An end is known this well, of calls over a network; the likelihood is that of an end within +- this."""
RESOLUTION = 0.02
"""The same as a share of a short duration, where that is more."""
_OUTLIER = 1e-5
"""No call is less probable than this, and one that the rule excludes a tenth of it: few may be anything."""
_NARROWEST = 0.005
"""The narrowest bin of the histogram, as a difference of natural logarithms."""
_BLOCKS = 60
"""Blocks of time that a difference of two rules is summed over, for its standard error."""
_STRETCH = 250
"""Calls in a stretch of time of one trial, at least."""
_STRETCHES = 8
"""Stretches of a trial, at most."""
View = Literal["whole", "stretch", "drift", "steps", "own"]
"""What is taken out of services. `stretch`: the median of each stretch of time of a trial, with all that
changes from one to the next. `drift` and `steps`: the effect of time, slow or from block to block. `own`: the
median of the calls of which as many of the same loop ran together."""


_LOADS = 30
"""Numbers in flight, or ranges of them, that durations may depend on in any way."""
_DIFFERS = 0.1
"""The order of calls matters where services of those together began further apart: a share of a usual one."""
_SAME = 0.1
"""Two rules say the same of a call if its services differ by less than this share of the resolution."""
_GAPS = 100
"""Gaps between ends that are looked at in a trial: the longest."""
_LONG_GAP = 10
"""A standstill is a gap between two ends this many times the usual."""
_EXPECTED = 12.0
"""A standstill is a gap in which this many calls should have ended."""
_MOST = 20_000
"""Calls that rules are compared on: of more, whole stretches of time of each trial."""
_SAMPLE = 1_000
"""Calls in such a stretch, at least; a trial has up to `_STRETCHES` of them."""


@dataclass(frozen=True, slots=True)
class Explained:
    """The calls under one rule. `services` and `likelihood`, log probabilities, are per call in the order of
    the evidence. `impossible` is the share of calls that end before their service began."""

    kind: Kind
    capacity: int | None
    services: Floats
    likelihood: Floats
    impossible: float


@dataclass(slots=True)
class Evidence:
    """Scores rules on one timeline; rules that were scored before are not scored again.

    Not every call of the timeline is scored: of many, `scored` are those of some stretches of time of each
    trial, the others are there since they were in flight beside them. All other arrays are of the scored
    ones. What `view` takes out does not count.
    """

    timeline: Timeline
    calls: Calls
    scored: Bools
    view: View = "whole"
    started: Ints = field(init=False)
    others: Ints = field(init=False)
    durations: Ints = field(init=False)
    block: Ints = field(init=False)
    repeated: Repeated | None = field(init=False)
    own: OwnCalls | None = field(init=False, default=None)
    loop: Ints | None = field(init=False, default=None)
    possible: dict[tuple[Kind, int | None], bool] = field(init=False, default_factory=dict)
    resolution: float = field(init=False)
    _stretch: Ints = field(init=False)
    _half: Bools = field(init=False)
    _services: dict[tuple[Kind, int | None], tuple[Floats, Floats, Floats]] = field(
        init=False, default_factory=dict
    )
    _explained: dict[tuple[Kind, int | None, View], Explained] = field(init=False, default_factory=dict)
    _offset: float = field(init=False)

    @classmethod
    def of_calls(cls, calls: Calls) -> Evidence:
        """Of calls that were accepted."""
        timeline = Timeline.of(calls.started, calls.ended)
        calls = calls.chosen(timeline.order)
        scored, kept = _sampled(timeline, calls.group)
        if not kept.all():
            calls, scored = calls.chosen(kept), scored[kept]
            timeline = Timeline.of(timeline.started[kept], timeline.ended[kept])
        return cls(timeline, calls, scored)

    def __post_init__(self) -> None:
        self.started = self.timeline.started[self.scored]
        self.others = self.timeline.others[self.scored]
        self.durations = self.timeline.durations[self.scored]
        calls = self.calls.chosen(self.scored)
        self.block = stretches(calls.group, max(20, calls.group.size // _BLOCKS), _BLOCKS)
        self._stretch = stretches(calls.group, _STRETCH, _STRETCHES)
        self.repeated = Repeated.of(calls.started, calls.block, calls.level)
        if self.calls.loop is not None and calls.loop is not None:
            own = OwnCalls.of(self.timeline.started, self.timeline.ended, self.calls.loop)
            self.own = OwnCalls(own.together[self.scored], own.in_flight[self.scored])
            self.loop = np.unique(calls.loop, return_inverse=True)[1].astype(np.int64)
        self._half = self.block % 2 == 0
        short = float(np.quantile(self.durations, 0.1))
        self.resolution = max(RESOLUTION_NS, RESOLUTION * short)
        self._offset = max(RESOLUTION_NS, short / 4)

    def of(self, kind: Kind, capacity: int | None = None, *, view: View | None = None) -> Explained:
        view = view or self.view
        key = (kind, capacity, view)
        if key not in self._explained:
            self._explained[key] = self._explain(kind, capacity, view)
        return self._explained[key]

    def tried(self, kind: Kind) -> list[int]:
        """The capacities that were scored."""
        return sorted(
            capacity
            for known, capacity, view in self._explained
            if known == kind and capacity is not None and view == self.view
        )

    def _explain(self, kind: Kind, capacity: int | None, view: View) -> Explained:
        services, resolution, order = self._served(kind, capacity)
        possible = services >= -np.maximum(TOLERANCE_NS, TOLERANCE * self.durations)
        # What an end that is known to +- `resolution` says of the service.
        logs, below, above = (self.scaled(services + step) for step in (0.0, -resolution, resolution))
        if view != "whole":
            centre = self.centre(logs, view, possible)
            logs, below, above = logs - centre, below - centre, above - centre
        likelihood = self._probabilities(logs, below, above, possible) + order
        return Explained(kind, capacity, services, likelihood, float(np.mean(~possible)))

    def centre(self, logs: Floats, view: View, usable: Bools) -> Floats:
        """What a view takes out of each of these logarithms of services."""
        if view == "stretch":
            return medians(logs, self._stretch, usable)
        if view == "own" and self.own is not None:
            return medians(logs, self.own.parts(), usable)
        if view in ("drift", "steps") and self.repeated is not None:
            return self.repeated.of_time(logs, slow=view == "drift")
        return np.zeros(logs.size)

    def by_load(self, most: int) -> Explained:
        """Durations that depend in any way on the number in flight at the start: no rule, but one to beat."""
        services = self.durations.astype(np.float64)
        logs, below, above = (
            self.scaled(services + step) for step in (0.0, -self.resolution, self.resolution)
        )
        edges = np.unique(np.quantile(self.others, np.linspace(0, 1, min(most, _LOADS) + 1)[1:-1]))
        part = np.searchsorted(edges, self.others, side="right").astype(np.int64)
        every = np.ones(part.size, dtype=np.bool_)
        centre = medians(logs, part, every)
        for half in (False, True):
            learned, rows = self._half != half, self._half == half
            known = rows & np.isin(part, part[learned])
            centre[known] = medians(logs, part, learned)[known]
        centre += self.centre(logs - centre, self.view, every)
        likelihood = self._probabilities(logs - centre, below - centre, above - centre, every)
        return Explained("none", None, services, likelihood, 0.0)

    def gain_apart_from_standstills(self, better: Explained, worse: Explained) -> float:
        """The gain less three standard errors, of calls that were not under way while the server stood still.

        It does while nothing ends, though of the calls under way many should: as many as their ages and the
        durations of all say (Nelson and Aalen's cumulative hazard).
        """
        hit = np.zeros(self.durations.size, dtype=np.bool_)
        group = self.calls.group[self.scored]
        started, ended = self.timeline.started[self.scored], self.timeline.ended[self.scored]
        for each in np.unique(group):
            rows = group == each
            begun, over = started[rows], ended[rows]
            durations, ends = np.sort(over - begun), np.sort(over)
            hazard = np.cumsum(1.0 / np.arange(durations.size, 0, -1))
            gaps = np.diff(ends)
            for at in np.argsort(gaps)[-_GAPS:]:
                if gaps[at] < _LONG_GAP * np.median(gaps):
                    continue
                under_way = (begun < ends[at]) & (over > ends[at])
                ages = [moment - begun[under_way] for moment in (ends[at], ends[at + 1] - 1)]
                before, after = (
                    np.concatenate(([0.0], hazard))[np.searchsorted(durations, age, side="right")]
                    for age in ages
                )
                if float((after - before).sum()) > _EXPECTED:
                    hit |= (started < ends[at + 1]) & (ended > ends[at])
        if not hit.any():
            return 1.0
        difference = np.where(hit, 0.0, better.likelihood - worse.likelihood)
        sums = np.bincount(self.block, weights=difference)
        return float(difference.sum() - 3 * np.std(sums) * np.sqrt(sums.size))

    def _served(self, kind: Kind, capacity: int | None) -> tuple[Floats, Floats, Floats]:
        """The services under a rule, how well each is known, and the log chance of each one's turn."""
        key = (kind, capacity)
        if key not in self._services:
            timeline, scored = self.timeline, self.scored
            known = np.full(timeline.started.size, self.resolution)
            chance = np.zeros(timeline.started.size)
            if kind == "queue":
                served = timeline.served_from(capacity) if capacity else timeline.started
                services = (timeline.ended - served).astype(np.float64)
                chance = timeline.chosen(served)
            else:
                services = timeline.services(kind, capacity)
            if kind == "share" and capacity is not None:
                known *= timeline.speed_at_end(capacity)
            self._services[key] = services[scored], known[scored], chance[scored]
        return self._services[key]

    def scaled(self, services: Floats) -> Floats:
        """The scale in which services are compared: logarithmic, but for those far below the usual."""
        return np.log(np.maximum(0.0, services) + self._offset)

    def _probabilities(self, logs: Floats, below: Floats, above: Floats, possible: Bools) -> Floats:
        """The log probability of an interval for each call, learned from the other half of them."""
        low, early, middle, late, high = np.quantile(logs[possible], (0.002, 0.25, 0.5, 0.75, 0.998))
        width = max(_NARROWEST, 2 * (late - early) / max(1, possible.sum()) ** (1 / 3), (high - low) / 2000)
        bins = int((high - low) / width) + 7
        low -= 3 * width
        at = np.clip(((logs - low) / width).astype(np.int64), 0, bins - 1)
        spread = 2 * max(late - early, 10 * width)
        # A small part of the calls may be anywhere: the tails of the histogram know too little.
        anywhere = (above - below) * np.exp(-np.abs(logs - middle) / spread) / (2 * spread)
        found = np.empty_like(logs)
        for half in (False, True):
            learned = possible & (self._half != half)
            counts = np.convolve(np.bincount(at[learned], minlength=bins), (0.25, 0.5, 0.25), mode="same")
            below_edge = np.concatenate(([0.0], np.cumsum(counts))) / max(1.0, counts.sum())
            rows = self._half == half
            inside = _under(below_edge, (above[rows] - low) / width) - _under(
                below_edge, (below[rows] - low) / width
            )
            found[rows] = 0.98 * inside + 0.02 * anywhere[rows]
        return np.where(possible, np.log(np.maximum(found, _OUTLIER)), np.log(_OUTLIER / 10))

    def reordered(self, capacity: int) -> int:
        """How many calls waited whose place among those that started together makes a difference."""
        timeline = self.timeline
        services = timeline.services("queue", capacity)
        from_ = (timeline.ended - services)[timeline.turn]
        first = np.flatnonzero(np.diff(timeline.together, prepend=-1))
        spread = np.maximum.reduceat(from_, first) - np.minimum.reduceat(from_, first)
        differs = np.empty(from_.size, dtype=np.bool_)
        sizes = np.diff(np.append(first, from_.size))
        differs[timeline.turn] = np.repeat(spread > _DIFFERS * np.median(services), sizes)
        return int((differs[self.scored] & (self.others >= capacity)).sum())

    def gain(self, better: Explained, worse: Explained, *, touched: bool = False) -> tuple[float, float]:
        """By how much the log likelihood is higher, and its standard error; of those `touched`, the calls of
        which the two say different things, or of all.

        Calls of one stretch of time count as one for the error, or those of one loop, by which it is larger.
        """
        difference = better.likelihood - worse.likelihood
        if touched:
            same = np.abs(better.services - worse.services) < _SAME * self.resolution
            difference = np.where(same, 0.0, difference)
        errors = [
            float(np.std(sums) * np.sqrt(sums.size))
            for sums in (np.bincount(part, weights=difference) for part in self.clusters)
        ]
        return float(difference.sum()), max(errors)

    @property
    def clusters(self) -> list[Ints]:
        """Numberings of the calls by what makes them alike."""
        return [self.block] if self.loop is None else [self.block, self.loop]


def _under(below_edge: Floats, at: Floats) -> Floats:
    """The share below each position, counted in bins; within a bin it grows evenly."""
    at = np.clip(at, 0, below_edge.size - 1)
    edge = np.minimum(at.astype(np.int64), below_edge.size - 2)
    share: Floats = below_edge[edge] + (at - edge) * (below_edge[edge + 1] - below_edge[edge])
    return share


def _sampled(timeline: Timeline, group: Ints) -> tuple[Bools, Bools]:
    """The calls to score, and those with them that were in flight beside."""
    size = group.size
    scored = np.ones(size, dtype=np.bool_)
    if size <= _MOST:
        return scored, scored
    scored, kept = np.zeros(size, dtype=np.bool_), np.zeros(size, dtype=np.bool_)
    for each in np.unique(group):
        rows = np.flatnonzero(group == each)
        count = max(1, rows.size * _MOST // size)
        pieces = int(np.clip(count // _SAMPLE, 1, _STRETCHES))
        for first in np.arange(pieces) * rows.size // pieces:
            piece = rows[first : first + max(1, count // pieces)]
            scored[piece] = True
            until = timeline.ended[piece].max()
            before, after = rows[:first], rows[first : first + 2 * piece.size]
            kept[before[timeline.ended[before] > timeline.started[piece[0]]]] = True
            kept[after[timeline.started[after] <= until]] = True
    return scored, kept
