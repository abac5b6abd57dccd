"""How well a rule of waiting explains the calls of one server: the likelihood of their ends, given their starts.

Under the right rule the services are draws from one distribution, whatever the load. So the probability
that a call ends within a millisecond of when it did is that of its service within a millisecond, times the
speed at which it was served last (a queue: 1). The distribution is not assumed: it is a histogram of the
other half of the calls (cross-validation), in a logarithmic scale. By the mean of the logarithm of this
probability the true rule comes first (Gibbs' inequality), across kinds too: a queue against sharing, one
capacity against another, any of them against none.

Beside the plain likelihood there is one that takes the median of each stretch of time out. It cannot see what
changes from stretch to stretch, hence no drift: what it tells apart is due to the load within a stretch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from profiler.prediction.calls import Bools, Floats, Ints, Kind, Timeline

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


@dataclass(frozen=True, slots=True)
class Explained:
    """The calls under one rule. `likelihood` and `within` are log densities per call, in the timeline's
    order: plain, and without what changes from stretch to stretch. `impossible` is the share of calls that
    end before their service began."""

    kind: Kind
    capacity: int | None
    services: Floats
    likelihood: Floats
    within: Floats
    impossible: float


@dataclass(slots=True)
class Evidence:
    """Scores rules on one timeline; rules that were scored before are not scored again."""

    timeline: Timeline
    group: Ints
    block: Ints = field(init=False)
    stretch: Ints = field(init=False)
    _half: Bools = field(init=False)
    _scored: dict[tuple[Kind, int | None], Explained] = field(init=False, default_factory=dict)
    resolution: float = field(init=False)
    _offset: float = field(init=False)

    def __post_init__(self) -> None:
        size = self.group.size
        self.block = parts(self.group, max(20, size // _BLOCKS), _BLOCKS)
        self.stretch = parts(self.group, _STRETCH, _STRETCHES)
        self._half = self.block % 2 == 0
        short = float(np.quantile(self.timeline.durations, 0.1))
        self.resolution = max(RESOLUTION_NS, RESOLUTION * short)
        self._offset = max(RESOLUTION_NS, short / 4)

    def of(self, kind: Kind, capacity: int | None = None) -> Explained:
        key = (kind, capacity)
        if key not in self._scored:
            self._scored[key] = self._score(kind, capacity)
        return self._scored[key]

    def tried(self, kind: Kind) -> list[int]:
        return sorted(capacity for known, capacity in self._scored if known == kind and capacity is not None)

    def _score(self, kind: Kind, capacity: int | None) -> Explained:
        services = self.timeline.services(kind, capacity)
        tolerance = np.maximum(TOLERANCE_NS, TOLERANCE * self.timeline.durations)
        possible = services >= -tolerance
        # What an end that is known to +- `resolution` says of the service.
        known = np.full(services.size, self.resolution)
        if kind == "share" and capacity is not None:
            known *= self.timeline.speed_at_end(capacity)
        logs, below, above = (self.scaled(services + step) for step in (0.0, -known, known))
        plain = self._probabilities(logs, below, above, possible)
        centre = _medians(logs, self.stretch, possible)
        within = self._probabilities(logs - centre, below - centre, above - centre, possible)
        return Explained(kind, capacity, services, plain, within, float(np.mean(~possible)))

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
        edges = low + width * np.arange(bins + 1)
        spread = 2 * max(late - early, 10 * width)
        # A small part of the calls may be anywhere: the tails of the histogram know too little.
        anywhere = (above - below) * np.exp(-np.abs(logs - middle) / spread) / (2 * spread)
        found = np.empty_like(logs)
        for half in (False, True):
            learned = possible & (self._half != half)
            counts = np.convolve(np.bincount(at[learned], minlength=bins), (0.25, 0.5, 0.25), mode="same")
            below_edge = np.concatenate(([0.0], np.cumsum(counts))) / max(1.0, counts.sum())
            rows = self._half == half
            inside = np.interp(above[rows], edges, below_edge) - np.interp(below[rows], edges, below_edge)
            found[rows] = 0.98 * inside + 0.02 * anywhere[rows]
        return np.where(possible, np.log(np.maximum(found, _OUTLIER)), np.log(_OUTLIER / 10))

    def gain(self, better: Explained, worse: Explained, *, within: bool = False) -> tuple[float, float]:
        """By how much the log likelihood of all calls is higher, and its standard error (over blocks)."""
        difference = better.within - worse.within if within else better.likelihood - worse.likelihood
        sums = np.bincount(self.block, weights=difference)
        return float(difference.sum()), float(np.std(sums) * np.sqrt(sums.size))


def parts(group: Ints, least: int, most: int) -> Ints:
    """Numbers stretches of neighbouring rows of one group: `least` rows or more, at most `most` a group."""
    numbers = np.empty(group.size, dtype=np.int64)
    made = 0
    for one in np.unique(group):
        rows = np.flatnonzero(group == one)
        count = int(np.clip(rows.size // least, 1, most))
        numbers[rows] = made + np.arange(rows.size) * count // rows.size
        made += count
    return numbers


def _medians(values: Floats, part: Ints, usable: Bools) -> Floats:
    """Of each row the median of its part."""
    medians = np.zeros(int(part.max(initial=0)) + 1)
    for one in range(medians.size):
        chosen = values[(part == one) & usable]
        medians[one] = np.median(chosen) if chosen.size else 0.0
    return medians[part]
