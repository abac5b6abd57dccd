"""Throughput against load: Gunther's Universal Scalability Law.

    X(N) = λN / (1 + σ(N - 1) + κN(N - 1)),    σ, κ ≥ 0,    peak at N* = √((1 - σ) / κ)

λ is the throughput of one agent, σ the cost of contention, κ that of keeping agents coherent (Gunther 1993).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from profiler.statistics.quantiles import CONFIDENCE, Estimate, Floats

FEWEST_LOADS = 4
REPEATS = 300
_NEGLIGIBLE = 1e-9
"""A fitted κ below this counts as 0: its N* would be above 30,000 agents."""


@dataclass(frozen=True, slots=True)
class Scalability:
    """A fit: `rate` is λ, `contention` σ, `coherency` κ; `peak` is N*, None when no peak was seen."""

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

    Relative errors are minimised, since throughput varies in proportion to itself. The intervals come
    from a bootstrap of the blocks within each load, or of the residuals where a load has one block.
    A peak counts as seen when κ's interval stays above 0 and N* lies between the smallest load (below
    it, throughput falls from the start) and twice the largest.
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
    best = rate, contention, kappa = _fit(x, y)
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
    peak = None
    at = math.sqrt((1 - contention) / kappa) if min(low, kappa) > _NEGLIGIBLE else math.inf
    if at > 2 * max(loads):
        sentence = f"no peak seen up to {max(loads):.0f} agents"
    elif at < x.min():
        sentence = f"throughput falls with every agent beyond {x.min():.0f}"
    else:
        peaks = np.sqrt(np.maximum(1 - fits[:, 1], 0) / np.maximum(fits[:, 2], _NEGLIGIBLE))
        first, last = (float(v) for v in np.quantile(peaks, [tail, 1 - tail]))
        peak = Estimate(at, min(first, at), max(last, at))
        sentence = f"throughput peaks at about {at:.0f} [{peak.low:.0f}, {peak.high:.0f}] agents"
    return Scalability(rate, contention, Estimate(kappa, low, high), peak, sentence)


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
