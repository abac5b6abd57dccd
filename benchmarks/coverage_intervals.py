"""Simulated experiments of known truth, and how often intervals and gates on them are right.

Each experiment draws blocks of two strategies in random order, under a drift that walks from trial
to trial, with latencies that depend on each other, and hands them to `profiler.statistics`.

Dependence: `ar r` is a Gaussian AR(1) of correlation r under lognormal latencies (σ .4 against 1.0,
so that the bias of their quantiles differs, or .6 against .6); `queue r` is the sojourn in a
single-queue server at utilisation r against one 10 % faster, from its stationary state, or from
empty with the warm-up left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from profiler.statistics.comparison import Comparison, Side, compare, holm
from profiler.statistics.gates import decide
from profiler.statistics.objectives import parse_gates
from profiler.statistics.quantiles import LEVELS, quantiles
from profiler.statistics.verdicts import verdict
from profiler.statistics.windows import of_blocks

Samples = NDArray[np.float64]
Drift = Callable[[np.random.Generator, int, int], Samples]
Check = Callable[[float, float, float], str]
"""What is said of a share that must lie between two others: nothing if it does."""
BATCH = 250


@dataclass(frozen=True, slots=True)
class Shape:
    """The latencies of both strategies: drawn (experiments, 2, blocks, loops), and the true log-ratios.

    `draw` returns logarithms without drift; `truth` maps a quantile's p to log(candidate / baseline).
    `warm` says that the warm-up must be found.
    """

    name: str
    draw: Callable[[np.random.Generator, int, int, int], Samples]
    truth: Callable[[float], float]
    warm: bool = False


@dataclass(slots=True)
class Count:
    """Hits among tries."""

    hits: int = 0
    tries: int = 0

    def add(self, hit: bool) -> None:
        self.hits += hit
        self.tries += 1

    @property
    def share(self) -> float:
        return self.hits / self.tries if self.tries else float("nan")


def correlated(rng: np.random.Generator, shape: tuple[int, ...], correlation: float) -> Samples:
    """Standard normal AR(1) series along the last axis."""
    noise = rng.standard_normal(shape)
    series = np.empty(shape)
    series[..., 0] = noise[..., 0]
    scale = np.sqrt(1 - correlation**2)
    for k in range(1, shape[-1]):
        series[..., k] = correlation * series[..., k - 1] + scale * noise[..., k]
    return series


def lognormal(correlation: float, sigmas: tuple[float, float], shift: float) -> Shape:
    """Lognormal latencies of these σ; the candidate's median is exp(shift) of the baseline's."""
    from scipy.special import ndtri

    def draw(rng: np.random.Generator, experiments: int, blocks: int, loops: int) -> Samples:
        z = correlated(rng, (experiments, 2, blocks, loops), correlation)
        z *= np.array(sigmas)[None, :, None, None]
        z[:, 0] += shift
        return z

    name = f"ar {correlation} σ {sigmas[0]}/{sigmas[1]}"
    return Shape(name, draw, lambda p: shift + (sigmas[0] - sigmas[1]) * float(ndtri(p)))


def queue(utilisation: float, empty: bool = False) -> Shape:
    """Sojourn in M/M/1: exponential of rate μ - λ; the candidate's μ is 1.1, the baseline's 1."""
    rates = np.array([1.1, 1.0])[None, :, None]

    def draw(rng: np.random.Generator, experiments: int, blocks: int, loops: int) -> Samples:
        shape = (experiments, 2, blocks)
        wait = np.zeros(shape)
        if not empty:
            busy = rng.random(shape) < utilisation / rates
            wait = busy * rng.exponential(1.0, shape) / (rates - utilisation)
        result = np.empty((*shape, loops))
        for k in range(loops):
            result[..., k] = wait + rng.exponential(1.0, shape) / rates
            wait = np.maximum(0, result[..., k] - rng.exponential(1 / utilisation, shape))
        return np.log(result)

    truth = float(np.log((1 - utilisation) / (1.1 - utilisation)))
    return Shape(f"queue {utilisation}{' from empty' if empty else ''}", draw, lambda p: truth, warm=empty)


def wander(rng: np.random.Generator, experiments: int, blocks: int) -> Samples:
    """(experiments, 2, blocks): two runs at two times, each on a random walk of its own of 5 % a block."""
    return rng.normal(0, 0.05, (experiments, 2, blocks)).cumsum(axis=2)


def jitter(rng: np.random.Generator, experiments: int, blocks: int) -> Samples:
    """(experiments, 2, blocks): two runs whose blocks differ by 5 %, independently."""
    return rng.normal(0, 0.05, (experiments, 2, blocks))


def drift(rng: np.random.Generator, experiments: int, blocks: int) -> Samples:
    """(experiments, 2, blocks): a random walk of 5 % a trial with a trend, in random order within blocks."""
    walk = rng.normal(0, 0.05, (experiments, 2 * blocks)).cumsum(axis=1)
    walk += rng.normal(0, 0.02, (experiments, 1)) * np.arange(2 * blocks)
    pairs = walk.reshape(experiments, blocks, 2)
    swapped = rng.integers(0, 2, (experiments, blocks, 1)).astype(bool)
    return np.where(swapped, pairs[..., ::-1], pairs).transpose(0, 2, 1)


def side(name: str, logs: Sequence[Samples], warm: bool = False) -> Side:
    """One strategy of one experiment, from the logarithms of the latencies of each block."""
    latencies = [np.exp(block) * 1e9 for block in logs]
    skip = of_blocks(latencies).skip if warm else 0
    counts = tuple(block.size for block in logs)
    return Side(
        name,
        tuple(block[skip:] for block in latencies),
        (1.0,) * len(counts),
        counts,
        counts,
        tuple((0, count) for count in counts),
    )


def experiments(
    rng: np.random.Generator, shape: Shape, blocks: int, loops: int, count: int, moving: Drift = drift
) -> Iterator[tuple[Side, Side, Samples]]:
    """(candidate, baseline, drift of both) per experiment."""
    while count > 0:
        size = min(BATCH, count)
        count -= size
        moves = moving(rng, size, blocks)
        drawn = shape.draw(rng, size, blocks, loops) + moves[..., None]
        for logs, move in zip(drawn, moves, strict=True):
            yield side("new", logs[0], shape.warm), side("old", logs[1], shape.warm), move


def paired_coverage(
    rng: np.random.Generator, shape: Shape, blocks: int, loops: int, count: int
) -> dict[str, Count]:
    """How often intervals hold the truth, per quantile; `too few` counts verdicts that were refused."""
    found = {name: Count() for name in (*LEVELS, "too few", "alone p95", "alone too few")}
    for new, old, move in experiments(rng, shape, blocks, loops, count):
        made = holm([compare(new, old, paired=True)])[0]
        found["too few"].add(verdict(made).kind == "too_few")
        for name, p in LEVELS.items():
            ratio = getattr(made, name)
            if ratio.needed is None:
                found[name].add(ratio.low <= np.exp(shape.truth(p)) <= ratio.high)
        if "σ" in shape.name:  # one strategy's own interval: around its quantile under the mean drift
            alone = quantiles(old.latencies, 1e-9).p95
            found["alone too few"].add(alone.low is None)
            if alone.low is not None and alone.high is not None:
                sigma = float(shape.name.rpartition("/")[2])
                found["alone p95"].add(alone.low <= np.exp(sigma * 1.6448536 + move[1].mean()) <= alone.high)
    return found


def widening(rng: np.random.Generator, shape: Shape, blocks: int, loops: int, count: int) -> dict[str, float]:
    """How much wider intervals are than where nothing is taken to be remembered, on average."""
    widths: dict[str, list[tuple[float, float]]] = {"paired": [], "alone": []}
    for new, old, _ in experiments(rng, shape, blocks, loops, count):
        made = [compare(new, old, paired=True).p50, quantiles(old.latencies).p50]
        with (
            patch("profiler.statistics.comparison.memory", return_value=0.0),
            patch("profiler.statistics.quantiles.memory", return_value=0.0),
        ):
            plain = [compare(new, old, paired=True).p50, quantiles(old.latencies).p50]
        for name, wider, narrow in zip(widths, made, plain, strict=True):
            if wider.low and wider.high and narrow.low and narrow.high:
                widths[name].append((np.log(wider.high / wider.low), np.log(narrow.high / narrow.low)))
    sums = {name: np.sum(pairs, axis=0) for name, pairs in widths.items() if pairs}
    return {name: float(wider / narrow) for name, (wider, narrow) in sums.items()}


def false_alarms(
    rng: np.random.Generator,
    correlation: float,
    blocks: int,
    loops: int,
    count: int,
    change: float,
    moving: Drift,
) -> Count:
    """How often `p95 > +5%` fails a candidate whose p95 is truly `change` times the baseline's.

    Under `drift` both are strategies of one run and paired; else they are two runs.
    """
    shape = lognormal(correlation, (0.6, 0.6), float(np.log(change)))
    gates = parse_gates("p95 > +5%")
    found = Count()
    for new, old, _ in experiments(rng, shape, blocks, loops, count, moving):
        made: Comparison = compare(new, old, paired=moving is drift, same_run=moving is drift)
        found.add(decide(gates, [made])[0].holds is False)
    return found
