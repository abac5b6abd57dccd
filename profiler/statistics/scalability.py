"""Throughput against load: Gunther's Universal Scalability Law.

    X(N) = λN / (1 + σ(N - 1) + κN(N - 1)),    σ, κ ≥ 0,    peak at N* = √((1 - σ) / κ)

λ is the throughput of one agent, σ the share of contention, κ that of coherency.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from profiler.statistics.quantiles import CONFIDENCE, Estimate, Floats

FEWEST_LOADS = 4
REPEATS = 300
_NOTHING = 1e-9
"""A κ this small in fits of real throughputs is none: its N* would be above 30,000 agents."""


@dataclass(frozen=True, slots=True)
class Scalability:
    """A fit: `peak` is N* with its interval, None when no peak was seen; `sentence` says which."""

    rate: float
    contention: float
    coherency: Estimate
    peak: Estimate | None
    sentence: str

    def throughput(self, load: float) -> float:
        """The fitted loops per second under a load."""
        return float(_usl(np.array([load]), self.rate, self.contention, self.coherency.value or 0.0)[0])


def fit(loads: Sequence[float], throughputs: Sequence[Sequence[float]], seed: int = 0) -> Scalability | None:
    """The law fitted to the blocks' throughputs under each load; None below `FEWEST_LOADS` loads.

    Relative errors are minimised: throughput varies in proportion to itself. The intervals come
    from a bootstrap of the blocks within each load, or of the residuals where there is one block.
    "No peak seen" unless κ's interval stays above 0 and N* is within twice the largest load; nor is
    an N* below the smallest load a peak: throughput falls from there on.
    """
    if len({load for load, blocks in zip(loads, throughputs, strict=True) if len(blocks)}) < FEWEST_LOADS:
        return None
    rng = np.random.default_rng(seed)
    x = np.concatenate(
        [np.full(len(blocks), load, float) for load, blocks in zip(loads, throughputs, strict=True)]
    )
    y = np.concatenate([np.asarray(blocks, float) for blocks in throughputs])
    if not np.all(y > 0):
        return None
    best = _fit(x, y)
    replicated = all(len(blocks) > 1 for blocks in throughputs)
    fitted = _usl(x, *best)
    # Least squares uses up three degrees of freedom, which shrinks the residuals.
    residuals = np.log(y / fitted) * math.sqrt(x.size / max(1, x.size - 3))
    draws = []
    for _ in range(REPEATS):
        if replicated:
            resampled = np.concatenate(
                [rng.choice(np.asarray(blocks, float), len(blocks)) for blocks in throughputs]
            )
        else:
            resampled = fitted * np.exp(rng.choice(residuals, x.size))
        draws.append(_fit(x, resampled, best))
    tail = (1 - CONFIDENCE) / 2
    fits = np.array(draws)
    low, high = (float(v) for v in np.quantile(fits[:, 2], [tail, 1 - tail]))
    coherency = Estimate(best[2], low, high)
    if low <= _NOTHING or best[2] <= _NOTHING:
        sentence = f"no peak seen up to {max(loads):.0f} agents"
        return Scalability(best[0], best[1], coherency, None, sentence)
    peaks = np.sqrt(np.maximum(1 - fits[:, 1], 0) / np.maximum(fits[:, 2], _NOTHING))
    at = math.sqrt((1 - best[1]) / best[2])
    bounds = [float(v) for v in np.quantile(peaks, [tail, 1 - tail])]
    if at < x.min():
        sentence = f"throughput falls with every agent beyond {x.min():.0f}"
        return Scalability(best[0], best[1], coherency, None, sentence)
    if at > 2 * max(loads):
        sentence = f"no peak seen up to {max(loads):.0f} agents"
        return Scalability(best[0], best[1], coherency, None, sentence)
    peak = Estimate(at, min(bounds[0], at), max(bounds[1], at))
    sentence = f"throughput peaks at about {at:.0f} [{peak.low:.0f}, {peak.high:.0f}] agents"
    return Scalability(best[0], best[1], coherency, peak, sentence)


def _fit(x: Floats, y: Floats, start: tuple[float, float, float] | None = None) -> tuple[float, float, float]:
    from scipy.optimize import least_squares

    first = start or (float(np.max(y / x)), 0.01, 1e-4)
    first = (first[0], min(max(first[1], 1e-6), 0.99), max(first[2], 1e-8))
    found = least_squares(
        lambda parameters: np.log(_usl(x, *parameters) / y),
        first,
        bounds=([1e-12, 0.0, 0.0], [np.inf, 1.0, 1.0]),
        x_scale=(first[0], 0.1, 1e-3),
    )
    return float(found.x[0]), float(found.x[1]), float(found.x[2])


def _usl(load: Floats, rate: float, contention: float, coherency: float) -> Floats:
    return rate * load / (1 + contention * (load - 1) + coherency * load * (load - 1))
