"""How fast servers are from one moment to the next, apart from the load.

For some seconds they are faster, for some slower. Calls that run then are slow together, although they are of
different loops. Where it shows, the logarithm of the pace is taken for a first-order autoregressive process
over bins of `BIN_NS`,

    x_{b+1} = r·x_b + sqrt(1 - r²)·s·e,

with s² the covariance c₀ of calls of different loops in the same bin. How far the mean pace of one run is
from that of another depends on r: the variance of a mean over n bins is s²·τ/n, with

    τ = 1 + 2·(c₁ + c₂ + …)/c₀

and c_k the covariance k bins apart. So r = (τ - 1)/(τ + 1), which has that τ. Taken from c₁ alone, spells of
8 s would count as alike for 15 s. Calls of one loop are left out: they may be alike for the loop's own sake.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from profiler.statistics.table import Ints

Floats = NDArray[np.float64]

BIN_NS = 1_000_000_000
PARTS = 12
"""Parts of the recording that the error of a covariance is estimated from."""
SURE = 1.64
"""Standard errors by which the covariance of neighbouring bins must exceed 0."""
LEAST = 0.05
"""A smaller standard deviation, in logarithms, is not worth telling."""
MOST_ALIKE = 0.98
MOST_BINS = 100
"""So far apart are bins at most that are compared."""
ENOUGH = 25
"""Pairs of calls from which two bins count as much as any two."""
ROUNDS = 4
"""Passes in which the mean over time is found."""


@dataclass(frozen=True, slots=True)
class Pace:
    """`spread` is s, `persistence` r, `excess` the mean of what `without` could not take out of services.

    `error` is the standard error of the mean pace of the recording, which may be that of a few fast spells or
    slow ones.
    """

    spread: float
    persistence: float
    excess: float = 0.0
    error: float = 0.0


@dataclass(frozen=True, slots=True)
class Services:
    """Services of calls, free of waiting: `logs` of them over the typical one of their server."""

    started: Ints
    group: Ints
    loop: Ints
    logs: Floats


class _Bins:
    """Sums of logarithms by bin and by loop and bin."""

    def __init__(self, services: Services) -> None:
        groups, index = np.unique(services.group, return_inverse=True)
        first = np.array([services.started[index == place].min() for place in range(groups.size)])
        inside = (services.started - first[index]) // BIN_NS
        span = int(inside.max(initial=0)) + 8  # bins of two groups are no neighbours
        self.place = index * span + inside
        logs = services.logs - services.logs.mean()
        self.size = groups.size * span
        self.sums = np.bincount(self.place, logs, self.size)
        self.counts = np.bincount(self.place, minlength=self.size).astype(float)
        loops = np.unique(services.loop, return_inverse=True)[1]
        key, back = np.unique(loops * np.int64(self.size) + self.place, return_inverse=True)
        self.own = key
        self.own_sums = np.bincount(back, logs)
        self.own_counts = np.bincount(back).astype(float)
        self.variance = float(np.mean(logs**2)) if logs.size else 0.0

    def covariance(self, lag: int) -> tuple[float, float]:
        """That of calls of different loops `lag` bins apart, and its standard error."""
        ahead = slice(lag, None), slice(None, self.size - lag)
        above = self.sums[ahead[0]] * self.sums[ahead[1]]
        below = self.counts[ahead[0]] * self.counts[ahead[1]]
        found = np.searchsorted(self.own, self.own + lag)
        found = np.minimum(found, self.own.size - 1)
        same = self.own[found] == self.own + lag
        bins = (self.own % self.size)[same]
        kept = bins < above.size
        mine, theirs, bins = np.flatnonzero(same)[kept], found[same][kept], bins[kept]
        above = above - np.bincount(bins, self.own_sums[mine] * self.own_sums[theirs], above.size)
        below = below - np.bincount(bins, self.own_counts[mine] * self.own_counts[theirs], above.size)
        used = np.flatnonzero(below > 0)
        if used.size < 2 * PARTS:
            return 0.0, math.inf
        # Bins count alike once they have enough calls: most calls begin where servers are fast.
        weight = np.zeros(above.size)
        weight[used] = np.minimum(below[used], ENOUGH)
        above[used] *= weight[used] / below[used]
        parts = np.array_split(used, PARTS)
        value = above[used].sum() / weight[used].sum()
        weights = np.array([weight[part].sum() for part in parts])
        errors = np.array([above[part].sum() for part in parts]) - value * weights
        return float(value), float(np.sqrt((errors**2).sum() * PARTS / (PARTS - 1)) / weights.sum())


def pace_of(services: Services) -> Pace | None:
    """The pace of these servers; None where none shows."""
    if services.started.size < 100:
        return None
    bins = _Bins(services)
    now, _ = bins.covariance(0)
    next_, error = bins.covariance(1)
    if next_ < SURE * error or min(now, next_) < LEAST**2:
        return None
    beyond = next_
    for lag in range(2, MOST_BINS):
        further, error = bins.covariance(lag)
        if further < error:
            break
        beyond += further
    alike = 1 + 2 * beyond / now
    return Pace(math.sqrt(now), min(MOST_ALIKE, (alike - 1) / (alike + 1)))


def without(services: Services, pace: Pace) -> tuple[Floats, Pace]:
    """The pace that was most likely when each call started (log), and the `Pace` that puts it back.

    The Kalman smoother of Rauch, Tung and Striebel (1965) over the bins.
    """
    bins = _Bins(services)
    variance, keep = pace.spread**2, pace.persistence
    noise = max(1e-6, bins.variance - variance)
    used = np.flatnonzero(bins.counts)
    centre = 0.0
    for _ in range(ROUNDS):
        # More calls begin while servers are fast, and under heavy loads. What is drawn anew has no such
        # weights, so that the mean over time is what must be 0, not the mean over calls.
        means = _smoothed(bins, variance, keep, noise, centre)
        centre += float(means[used].mean())
    found = means[bins.place]
    left = max(0.0, variance - float(np.var(found)))
    alike = (1 + keep) / (1 - keep)
    return found, Pace(pace.spread, keep, left / 2, math.sqrt(variance * alike / used.size))


def _smoothed(bins: _Bins, variance: float, keep: float, noise: float, centre: float) -> Floats:
    """The log of the pace in every bin, over that of `centre`."""
    mean, spread = 0.0, variance
    means, spreads, ahead_means, ahead_spreads = (np.zeros(bins.size) for _ in range(4))
    for place in range(bins.size):
        ahead_means[place], ahead_spreads[place] = mean, spread
        count = bins.counts[place]
        if count:
            gain = spread / (spread + noise / count)
            mean += gain * (bins.sums[place] / count - centre - mean)
            spread *= 1 - gain
        means[place], spreads[place] = mean, spread
        mean, spread = keep * mean, keep**2 * spread + (1 - keep**2) * variance
    for place in range(bins.size - 2, -1, -1):
        gain = spreads[place] * keep / max(1e-12, ahead_spreads[place + 1])
        means[place] += gain * (means[place + 1] - ahead_means[place + 1])
    return means


class PaceDraws:
    """A pace over virtual time: `factor(now)` is what services take times as long."""

    def __init__(self, pace: Pace, seed: str) -> None:
        self._pace = pace
        self._random = Random(seed)
        self._log = self._random.gauss(0.0, pace.spread)
        self._step = math.sqrt(1 - pace.persistence**2) * pace.spread
        self._mean = self._random.gauss(0.0, pace.error) - pace.excess
        self._bin = 0
        self._factor = math.exp(self._log + self._mean)

    def factor(self, now_ns: int) -> float:
        """Of a time that is not before the last one that was asked for."""
        place = now_ns // BIN_NS
        if place != self._bin:
            for _ in range(min(place - self._bin, 1_000)):
                self._log = self._pace.persistence * self._log + self._random.gauss(0.0, self._step)
            self._bin = place
            self._factor = math.exp(self._log + self._mean)
        return self._factor


def joined(parts: Sequence[Services]) -> Services:
    """The services of several servers together."""
    return Services(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("started", "group", "loop", "logs")
        )
    )
