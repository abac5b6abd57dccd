"""Quantiles and their intervals.

One definition everywhere: the exact order statistics, linearly interpolated between the two
nearest (Hyndman & Fan 1996, type 7; numpy's default). The samples are kept, so nothing is rounded.
Intervals alone use the rank (n + 1)p (type 6): there bias matters, and nobody reads the figure itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVELS = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
CONFIDENCE = 0.95

FEWEST_BLOCKS = 3
FEWEST_PER_BLOCK = {"p50": 20, "p95": 100, "p99": 500}
"""Samples a block needs before its quantile may enter an interval; `benchmarks/coverage.py` shows why."""

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval; `low` and `high` are None when there is too little for one."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Three quantiles of one series, all None when it is empty."""

    p50: Estimate
    p95: Estimate
    p99: Estimate

    def __getitem__(self, name: str) -> Estimate:
        estimate: Estimate = getattr(self, name)
        return estimate


def quantile(samples: Floats | Integers, p: float) -> float | None:
    """The p-quantile (type 7) of samples in any order; None if there are none."""
    return float(np.quantile(samples, p)) if samples.size else None


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean over blocks, half the width of its interval, and the t quantile and degrees of freedom of it."""

    mean: float
    half: float
    t: float
    freedom: float

    @property
    def p_value(self) -> float:
        """The two-sided probability of a mean this far from 0 if the true one is 0.

        Below 0.05 exactly when the 95 % interval excludes 0.
        """
        if self.half == 0:
            return 0.0 if self.mean else 1.0
        return student_tails(self.mean * self.t / self.half, self.freedom)


def spread(
    blocks: Sequence[float] | Floats,
    halves: Sequence[float] | Floats | None = None,
    correlation: float = 0.0,
) -> Spread:
    """The t-interval of the mean of one figure per independent block; at least two blocks.

    `halves` holds, per block, the mean of the figures of its two halves. A quantile of few or of
    dependent samples is biased, and more blocks make the interval narrower but not the bias
    smaller. The bias at n samples is about the step from n/2 to n, so twice that step is added to
    the half-width, as squares (`benchmarks/coverage.py` measures what that gains).
    `correlation` is that of neighbouring blocks where they are not independent.
    """
    values = np.asarray(blocks, dtype=float)
    freedom = values.size - 1
    t = student(CONFIDENCE, freedom)
    half = t * float(values.std(ddof=1)) / math.sqrt(values.size)
    half *= math.sqrt((1 + correlation) / (1 - correlation))
    if halves is not None:
        half = math.hypot(half, 2 * float((values - np.asarray(halves)).mean()))
    return Spread(float(values.mean()), half, t, freedom)


def block_interval(value: float, blocks: Sequence[float], halves: Sequence[float] | None = None) -> Estimate:
    """The interval of a figure that cannot be negative, from one figure per independent block.

    A `spread` of the logarithms; where some block's figure is 0, of the figures themselves, cut off
    at 0. The interval is stretched to hold `value`, the figure of all blocks pooled, which differs
    from that of a typical block when the system drifts. Fewer than `FEWEST_BLOCKS` give none.
    """
    if len(blocks) < FEWEST_BLOCKS:
        return Estimate(value)
    everything = [*blocks, *(halves or ())]
    if value > 0 and min(everything) > 0:
        found = spread(np.log(blocks), None if halves is None else np.log(halves))
        low, high = math.exp(found.mean - found.half), math.exp(found.mean + found.half)
    else:
        found = spread(blocks, halves)
        low, high = max(0.0, found.mean - found.half), found.mean + found.half
    return Estimate(value, min(low, value), max(high, value))


def block_quantiles(groups: Sequence[Floats | Integers], p: float) -> tuple[list[float], list[float]]:
    """(the p-quantile of each group, the geometric mean of the p-quantiles of its two halves).

    Type 6: the expected logarithm of it is nearly unbiased for latencies, while type 7 is 5 % low at
    p95 of 100 samples. The samples of a group are in the order of time.
    """
    whole, halves = [], []
    for group in groups:
        middle = group.size // 2
        whole.append(_type6(group, p))
        halves.append((_type6(group[:middle], p) * _type6(group[middle:], p)) ** 0.5)
    return whole, halves


def coarsen(sizes: Sequence[int], fewest: int) -> list[slice] | None:
    """Slices of neighbouring blocks to join, each with at least `fewest` samples: as many as possible.

    `sizes` are the samples of each block (of a pair, those of its smaller side). A few large blocks
    are better than many thin ones, whose quantiles are biased. None for fewer than `FEWEST_BLOCKS`.
    """
    total = np.concatenate([[0], np.cumsum(sizes)])
    for count in range(len(sizes), FEWEST_BLOCKS - 1, -1):
        edges = [round(k * len(sizes) / count) for k in range(count + 1)]
        if all(total[end] - total[start] >= fewest for start, end in pairwise(edges)):
            return [slice(start, end) for start, end in pairwise(edges)]
    return None


def join(groups: Sequence[Floats | Integers], parts: Sequence[slice]) -> list[Floats]:
    """The groups of each part (of `coarsen`) as one."""
    return [np.concatenate([group.astype(float) for group in groups[part]]) for part in parts]


def _type6(samples: Floats | Integers, p: float) -> float:
    # np.quantile(samples, p, method="weibull") is the same, and takes twenty times as long.
    ordered = np.sort(samples)
    rank = min(max(p * (ordered.size + 1), 1.0), float(ordered.size))
    low = int(rank)
    high = min(low + 1, ordered.size)
    return float(ordered[low - 1] + (rank - low) * (ordered[high - 1] - ordered[low - 1]))


def student(confidence: float, freedom: float) -> float:
    """The two-sided quantile of Student's t."""
    from scipy.special import stdtrit  # scipy.stats takes ten times as long to import and to call

    return float(stdtrit(freedom, 0.5 + confidence / 2))


def student_tails(t: float, freedom: float) -> float:
    """The probability that Student's t is at least this far from 0, on either side."""
    from scipy.special import stdtr

    return float(2 * stdtr(freedom, -abs(t)))


def quantiles(groups: Sequence[Floats | Integers], scale: float = 1.0) -> Quantiles:
    """Quantiles of the pooled samples, with intervals from the groups (one per block, in time order).

    `scale` converts units: 1e-9 for nanoseconds to seconds. Blocks too thin for a quantile are
    joined with their neighbours; where that leaves too few, the quantile has no interval.
    """
    pooled = np.concatenate([group.astype(float) for group in groups]) if groups else np.empty(0)
    estimates = {}
    for name, p in LEVELS.items():
        value = quantile(pooled, p)
        parts = coarsen([group.size for group in groups], FEWEST_PER_BLOCK[name])
        if value is None or parts is None:
            estimates[name] = Estimate(None if value is None else value * scale)
            continue
        whole, halves = block_quantiles(join(groups, parts), p)
        found = block_interval(value, whole, halves)
        estimates[name] = Estimate(value * scale, (found.low or 0.0) * scale, (found.high or 0.0) * scale)
    return Quantiles(**estimates)
