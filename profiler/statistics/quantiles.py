"""Quantiles and their intervals.

One definition everywhere: the exact order statistics, linearly interpolated between the two
nearest (Hyndman & Fan 1996, type 7; numpy's default). The samples are kept, so nothing is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
    """A figure with its 95 % interval; the interval is None when there is too little to give one."""

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
        return {"p50": self.p50, "p95": self.p95, "p99": self.p99}[name]


def quantile(samples: Floats | Integers, p: float) -> float | None:
    """The p-quantile (type 7) of unsorted samples; None of none."""
    if samples.size == 0:
        return None
    return float(np.quantile(samples, p))


def block_interval(value: float, blocks: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """The interval of a positive figure from one figure per independent block.

    A t-interval on the logarithms of the blocks' figures, laid around `value`, the figure of all
    blocks pooled: a quantile of few samples is biased, and the mean over blocks keeps that bias
    while the interval shrinks; the pooled one does not. Where a block's figure is 0 there is no
    logarithm: the interval is then arithmetic, cut off at 0.
    Fewer than `FEWEST_BLOCKS` blocks give no interval.
    """
    count = len(blocks)
    if count < FEWEST_BLOCKS:
        return Estimate(value)
    values = np.asarray(blocks, dtype=float)
    logarithmic = value > 0 and bool(np.all(values > 0))
    if logarithmic:
        values = np.log(values)
    half = student(confidence, count - 1) * float(values.std(ddof=1)) / math.sqrt(count)
    if logarithmic:
        return Estimate(value, value * math.exp(-half), value * math.exp(half))
    return Estimate(value, max(0.0, value - half), value + half)


def sample_interval(samples: Floats, p: float, confidence: float = CONFIDENCE) -> Estimate:
    """The distribution-free interval of the p-quantile of *independent* samples.

    [X(l), X(u)] with l and u from the binomial distribution of the number of samples below the
    quantile. Samples of one run under load are not independent: use `block_interval` for those.
    A side that the sample is too small to bound is None: the upper one of p95 needs 72 samples,
    of p99 368, of p99.9 3,688.
    """
    from scipy.stats import binom

    count = samples.size
    if count == 0:
        return Estimate(None)
    ordered = np.sort(samples)
    tail = (1 - confidence) / 2
    low = int(binom.ppf(tail, count, p))
    high = int(binom.ppf(1 - tail, count, p)) + 1
    return Estimate(
        value=float(np.quantile(ordered, p)),
        low=float(ordered[low - 1]) if low >= 1 else None,
        high=float(ordered[high - 1]) if high <= count else None,
    )


def fewest_samples(p: float, confidence: float = CONFIDENCE) -> int:
    """The smallest number of independent samples for which `sample_interval` has an upper bound."""
    # The upper bound exists once P(all samples below the quantile) = p^n is below the tail.
    return math.floor(math.log((1 - confidence) / 2) / math.log(p)) + 1


def student(confidence: float, freedom: float) -> float:
    """The two-sided quantile of Student's t."""
    from scipy.stats import t

    return float(t.ppf(0.5 + confidence / 2, freedom))


def quantiles(groups: Sequence[Floats | Integers], scale: float = 1.0) -> Quantiles:
    """Quantiles of the pooled samples, with intervals from the groups (one per block).

    `scale` converts units: 1e-9 for nanoseconds to seconds. Empty groups count for nothing; a
    group thinner than `FEWEST_PER_BLOCK` denies that quantile its interval.
    """
    groups = [group for group in groups if group.size]
    pooled = np.concatenate([group.astype(float) for group in groups]) if groups else np.empty(0)
    estimates = {}
    for name, p in LEVELS.items():
        value = quantile(pooled, p)
        if value is None or min(group.size for group in groups) < FEWEST_PER_BLOCK[name]:
            estimates[name] = Estimate(None if value is None else value * scale)
            continue
        blocks = [float(np.quantile(group, p)) * scale for group in groups]
        estimates[name] = block_interval(value * scale, blocks)
    return Quantiles(**estimates)
