"""Quantiles and their intervals.

One definition everywhere: the exact order statistics, linearly interpolated between the two
nearest (Hyndman & Fan 1996, type 7; numpy's default). The samples are kept, so nothing is rounded.
Intervals alone use the rank (n + 1)p (type 6): there bias matters, and nobody reads the figure itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
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


# How long latencies remember: loops of one slow stretch of the server are one piece of evidence, not many.
#
# The loops of each block, in their order, are put into parts of equal length. The means of the logarithms
# of the parts, less the course that all blocks share and a linear trend, are taken for a noise that
# forgets at once plus a level that is forgotten as exp(-t/T), with a share λ of the variance. Both are
# found by Whittle's approximation of the likelihood (Whittle 1953), from the periodogram I at the
# frequencies w = 2πk/n:
#
#     l = -Σ (log f(w) + I(w) / f(w)),    f(w) = s (1 - λ + λ (1 - φ²) / (1 - 2φ cos w + φ²)),
#
# with φ = exp(-1/T) and the s that maximises it, the mean of I / f.

PARTS = 96
"""Parts that all blocks together are put into, at most (two of each block are at least made)."""
FEWEST_PER_PART = 12
EVIDENCE = 14.0
"""The log-likelihood that a level must add before loops count as dependent."""
PLAUSIBLE = 1.0
"""The log-likelihood that a longer memory than the likeliest may lack."""
TOLERATED = 0.12
"""The standard deviation, in logarithms, below which a wandering level is a drift, part of any run."""
MEMORIES = 4.0
"""How many memories long a block must be to be nearly independent of the next one."""
_MOST_LOOPS = 200_000

_MEMORY: Floats = np.geomspace(0.5, 64.0, 15)
_SHARE: Floats = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])


def memory(
    groups: Sequence[Floats | Integers],
    others: Sequence[Floats | Integers] | None = None,
    within: bool = False,
) -> float:
    """Over how many samples the level of a series is remembered, T; 0 where no memory is seen.

    The groups are the blocks, each in the order of time. With `others`, paired blocks of another series,
    it is the memory of the difference of both, so that what they share does not count. `within` looks at
    changes inside of blocks alone. It is the longest memory that is nearly as likely as the likeliest,
    since few stretches tell little of how long they last.
    """
    smallest = [min((group.size for group in side), default=0) for side in (groups, others or groups)]
    number = min(min(smallest) // FEWEST_PER_PART, max(2, PARTS // max(1, len(groups))))
    if number < 2 or number * len(groups) < FEWEST_PER_PART:
        return 0.0
    level = _parts(groups, number)
    if others is not None:
        level = level - _parts(others, number)
    course = level.reshape(len(groups), number)
    course = course - course.mean(axis=0)
    found = _forgotten((course - course.mean(axis=1, keepdims=True) if within else course).ravel())
    samples = sum(group.size for group in groups)
    if others is not None:
        samples = min(samples, sum(group.size for group in others))
    return found * samples / level.size


def _parts(groups: Sequence[Floats | Integers], number: int) -> Floats:
    """The mean logarithms of `number` parts of each group, one after another."""
    every = sum(group.size for group in groups)
    step = max(1, every // _MOST_LOOPS)
    scale = max((float(group.mean()) for group in groups), default=0.0) or 1.0
    positive = all(group.min() > 0 for group in groups)
    found = []
    for group in groups:
        some = group[::step] / scale
        logs = np.log(some) if positive else np.log1p(some)
        edges = np.linspace(0, logs.size, number + 1).astype(int)
        found.append(np.add.reduceat(logs, edges[:-1]) / np.diff(edges))
    return np.concatenate(found)


def _forgotten(level: Floats) -> float:
    """T of the model above, in parts; 0 for none."""
    time = np.arange(level.size) - (level.size - 1) / 2
    level = level - level.mean()
    level = level - time * float(time @ level) / float(time @ time)
    periodogram = np.abs(np.fft.rfft(level)[1 : (level.size + 1) // 2]) ** 2 / level.size
    if float(periodogram.mean()) <= 1e-12:
        return 0.0
    shapes, logs = _spectra(level.size)
    scale = (periodogram / shapes).mean(axis=2)
    likelihood = -periodogram.size * (np.log(scale) + logs)
    without = -periodogram.size * math.log(float(periodogram.mean()))
    best = np.unravel_index(int(np.argmax(likelihood)), likelihood.shape)
    if likelihood[best] - without < EVIDENCE or scale[best] * _SHARE[best[1]] < TOLERATED**2:
        return 0.0
    plausible = likelihood.max(axis=1) >= likelihood[best] - PLAUSIBLE
    return float(_MEMORY[np.flatnonzero(plausible)[-1]])


@lru_cache(maxsize=64)
def _spectra(size: int) -> tuple[Floats, Floats]:
    """(f / s for each T and λ at each frequency, the mean logarithm of each)."""
    frequency = 2 * np.pi * np.arange(1, (size + 1) // 2) / size
    phi, share = np.exp(-1 / _MEMORY)[:, None, None], _SHARE[None, :, None]
    shapes = 1 - share + share * (1 - phi**2) / (1 - 2 * phi * np.cos(frequency) + phi**2)
    return shapes, np.log(shapes).mean(axis=2)


def thick(fewest: int, remembered: float, memories: float = MEMORIES) -> int:
    """How many samples a block must have: `fewest` for its quantile, and to last as many `memories`."""
    return max(fewest, math.ceil(memories * remembered))


def independent(sizes: Sequence[int], remembered: float, memories: float = MEMORIES) -> list[slice] | None:
    """Neighbouring blocks to join so that none remembers the last one; None for fewer than `FEWEST_BLOCKS`.

    Each block is one where nothing is remembered, however few they are.
    """
    if not remembered:
        return [slice(k, k + 1) for k in range(len(sizes))]
    return coarsen(sizes, thick(1, remembered, memories))


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


def _between_states(pooled: Floats, blocks: Sequence[Floats], p: float) -> list[float]:
    """The interval of a quantile that may lie between two states: from the share of each block below it.

    The quantiles of such blocks jump from one state to the other, their shares do not (Woodruff 1952).
    Medians may lie there even where nothing is seen to be remembered.
    """
    value = float(np.quantile(pooled, p))
    half = spread([float(np.mean(block <= value)) for block in blocks]).half
    return [float(np.quantile(pooled, min(1.0, max(0.0, edge)))) for edge in (p - half, p + half)]


def quantiles(groups: Sequence[Floats | Integers], scale: float = 1.0) -> Quantiles:
    """Quantiles of the pooled samples, with intervals from the groups (one per block, in time order).

    `scale` converts units: 1e-9 for nanoseconds to seconds. Blocks too thin for a quantile, or shorter
    than the series remembers, are joined with their neighbours; where that leaves too few, the quantile
    has no interval.
    """
    pooled = np.concatenate([group.astype(float) for group in groups]) if groups else np.empty(0)
    estimates = {}
    remembered = memory(groups)
    for name, p in LEVELS.items():
        value = quantile(pooled, p)
        parts = coarsen([group.size for group in groups], thick(FEWEST_PER_BLOCK[name], remembered))
        if value is None or parts is None:
            estimates[name] = Estimate(None if value is None else value * scale)
            continue
        joined = join(groups, parts)
        whole, halves = block_quantiles(joined, p)
        found = block_interval(value, whole, halves)
        bounds = [found.low or 0.0, found.high or 0.0]
        if remembered or name == "p50":
            bounds += _between_states(pooled, joined, p)
        estimates[name] = Estimate(value * scale, min(bounds) * scale, max(bounds) * scale)
    return Quantiles(**estimates)
