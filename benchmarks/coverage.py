"""Are the verdicts right as often as they claim? Simulated experiments with a known truth.

    python benchmarks/coverage.py [--experiments 5000] [--seed 1]

Each experiment draws blocks of two strategies in random order, under a drift that walks from trial
to trial, with latencies that depend on each other, and hands them to `profiler.statistics`. Counted
are: how often the 95 % interval holds the true ratio wherever a verdict is given; how often a gate
(`p95 > +5%`) fails although the truth is no worse; how often thin blocks get "too few".

Dependence: `ar r` is a Gaussian AR(1) of correlation r under lognormal latencies (σ .4 against 1.0,
so that the bias of their quantiles differs, or .6 against .6); `queue r` is the sojourn in a
single-queue server at utilisation r against one 10 % faster, from its stationary state, or from
empty with the warm-up left out.

Then 200 runs a line with a stall of two seconds planted in one block, or in every block two seconds
after it began, and as many with a warm-up: the first two seconds of every block three times slower.
Counted is how often anything was left out. Exits 1 when a requirement is not met.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiler.statistics.comparison import Comparison, Side, compare, holm
from profiler.statistics.objectives import parse_gates
from profiler.statistics.quantiles import LEVELS, quantiles
from profiler.statistics.verdicts import decide, verdict
from profiler.statistics.windows import of_blocks

Samples = NDArray[np.float64]
Drift = Callable[[np.random.Generator, int, int], Samples]
BATCH = 250

COVERAGE = (0.92, 0.98)
FALSE_ALARMS = 0.06
FOUND = 0.90
"""The share of real warm-ups that must be found. Of stalls, none may be taken for one."""


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


def side(name: str, logs: Samples, warm: bool) -> Side:
    """One strategy of one experiment; `logs` is (blocks, loops)."""
    latencies = [np.exp(block) * 1e9 for block in logs]
    skip = of_blocks(latencies).skip if warm else 0
    kept = tuple(block[skip:] for block in latencies)
    count = logs.shape[1]
    return Side(
        name, kept, (1.0,) * len(kept), (count,) * len(kept), (count,) * len(kept), ((0, count),) * len(kept)
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
    found = {name: Count() for name in (*LEVELS, "too few", "alone p95")}
    for new, old, move in experiments(rng, shape, blocks, loops, count):
        made = holm([compare(new, old, paired=True)])[0]
        found["too few"].add(verdict(made).kind == "too_few")
        for name, p in LEVELS.items():
            ratio = getattr(made, name)
            if ratio.needed is None:
                found[name].add(ratio.low <= np.exp(shape.truth(p)) <= ratio.high)
        if "σ" in shape.name:  # one strategy's own interval: around its quantile under the mean drift
            alone = quantiles(old.latencies, 1e-9).p95
            if alone.low is not None and alone.high is not None:
                sigma = float(shape.name.rpartition("/")[2])
                found["alone p95"].add(alone.low <= np.exp(sigma * 1.6448536 + move[1].mean()) <= alone.high)
    return found


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


@dataclass(frozen=True, slots=True)
class Planted:
    """What is planted into a block: a standstill of `stall` seconds at `at`, a start `slower` for two."""

    at: float | None = None
    stall: float = 2.0
    slower: float = 1.0


SECONDS = 20.0
"""The length of a block with something planted in it."""
NORMAL = 0.2
"""The median of its loops, in seconds."""
RATE = 20.0
AGENTS = 8
SPREADS: dict[str, Callable[[np.random.Generator, int], Samples]] = {
    "σ 0.3": lambda rng, count: np.exp(rng.normal(0, 0.3, count)),
    "σ 1.0": lambda rng, count: np.exp(rng.normal(0, 1.0, count)),
    "two modes": lambda rng, count: np.exp(rng.normal(0, 0.2, count)) * rng.choice([1, 1, 3], count),
}


def open_block(rng: np.random.Generator, spread: str, planted: Planted) -> tuple[Samples, Samples]:
    """(latencies before the block, latencies in it), Poisson arrivals: what is due in a stall waits."""
    due = np.cumsum(rng.exponential(1 / RATE, int(2 * RATE * SECONDS)))
    due = due[due < SECONDS]
    took = NORMAL * SPREADS[spread](rng, due.size) * np.where(due < 2.0, planted.slower, 1.0)
    if planted.at is not None:
        end = planted.at + planted.stall
        waits = np.where(due < planted.at, planted.stall * (due + took > planted.at), end - due)
        took = took + np.where(due < end, waits, 0.0)
    return np.empty(0), took


def closed_block(rng: np.random.Generator, spread: str, planted: Planted) -> tuple[Samples, Samples]:
    """The same of agents that each begin a loop when the last has ended, the first before the block."""
    loops = []
    for first in rng.uniform(-NORMAL, 0, AGENTS):
        due = first
        for normal in NORMAL * SPREADS[spread](rng, 1000):
            took = normal * (planted.slower if due < 2.0 - NORMAL else 1.0)
            if planted.at is not None and due < planted.at + planted.stall and due + took > planted.at:
                took += min(planted.stall, planted.at + planted.stall - due)
            loops.append((due, took))
            due += took
            if due >= SECONDS:
                break
    every = np.array(sorted(loops))
    inside = every[:, 0] >= 0
    return every[~inside, 1], every[inside, 1]


def left_out(
    rng: np.random.Generator, load: str, spread: str, blocks: int, count: int, planted: str
) -> tuple[Count, list[int]]:
    """(how often loops were left out as warm-up, how many) where a `stall`, `pauses` or a `warm-up` is."""
    made = open_block if load == "open" else closed_block
    found, skips = Count(), []
    for _ in range(count):
        where = Planted(at=float(rng.uniform(0.5, 7.0)))
        each = [Planted()] * blocks
        each[int(rng.integers(blocks))] = where
        if planted == "pauses":
            each = [Planted(at=2.0)] * blocks
        elif planted == "warm-up":
            each = [Planted(slower=3.0)] * blocks
        drawn = [made(rng, spread, one) for one in each]
        skip = of_blocks([inside * 1e9 for _, inside in drawn], [before * 1e9 for before, _ in drawn]).skip
        found.add(skip > 0)
        skips.append(skip)
    return found, skips


def print_planted(rng: np.random.Generator, count: int, check: Callable[[float, float, float], str]) -> None:
    """The shares of planted stalls and warm-ups that were left out."""
    print(f"\n{count} runs a line: share with loops left out as warm-up")
    print(f"{'load':6} {'loops':9} {'blocks':>6}  {'stall':>7} {'in every block':>15} {'warm-up':>8}")
    for load in ("open", "closed"):
        for spread in SPREADS:
            for blocks in (1, 3, 10):
                shares = [
                    left_out(rng, load, spread, blocks, count, planted)[0].share
                    for planted in ("stall", "pauses", "warm-up")
                ]
                judged = check(shares[0], 0.0, 0.0) + check(shares[1], 0.0, 0.0)
                judged += check(shares[2], FOUND, 1.0) if blocks > 1 or spread != "σ 1.0" else ""
                stall, pauses, warm = (f"{share * 100:.1f} %" for share in shares)
                print(
                    f"{load:6} {spread:9} {blocks:>6}  {stall:>7} {pauses:>15} {warm:>8}{judged}", flush=True
                )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experiments", type=int, default=5000)
    parser.add_argument("--planted", type=int, default=200, help="runs with a stall or a warm-up in them")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    started, kept = time.perf_counter(), True

    def check(value: float, low: float, high: float) -> str:
        nonlocal kept
        if np.isnan(value) or low <= value <= high:
            return ""
        kept = False
        return "  <- outside"

    print(f"{options.experiments} experiments a line; paired 95 % intervals, share that hold the truth")
    print(f"{'latencies':24} {'blocks':>11}  {'p50':>6} {'p95':>6} {'p99':>6} {'alone p95':>10}  too few")
    for shape, sizes, required in CASES:
        for blocks, loops in sizes:
            found = paired_coverage(rng, shape, blocks, loops, options.experiments)
            shares = {name: found[name].share for name in found}
            judged = "".join(check(shares[name], *COVERAGE) for name in ("p50", "p95")) if required else ""
            cells = " ".join(f"{shares[name] * 100:6.1f}" for name in LEVELS).replace("nan", "  –")
            alone = f"{shares['alone p95'] * 100:10.1f}".replace("nan", "  –")
            line = (
                f"{shape.name:24} {blocks:>4} × {loops:<4}  {cells} {alone}  {shares['too few'] * 100:5.1f} %"
            )
            print(line + (judged if required else "  (beyond what is promised)"), flush=True)
    print("\ngate 'p95 > +5%': share that fails")
    for name, moving in GATES:
        for correlation, blocks, loops in ((0.5, 10, 100), (0.8, 4, 200)):
            for change in (1.0, 1.05, 1.3):
                alarms = false_alarms(rng, correlation, blocks, loops, options.experiments, change, moving)
                judged = "  (beyond what is promised)"
                if moving is not wander:
                    judged = check(alarms.share, 0.0, FALSE_ALARMS) if change <= 1.05 else ""
                print(
                    f"{name:20} ar {correlation} {blocks:>3} × {loops:<4} truth {change - 1:+4.0%}: "
                    f"{alarms.share * 100:5.1f} %{judged}",
                    flush=True,
                )
    print_planted(rng, options.planted, check)
    print(f"\n{'as required' if kept else 'NOT as required'}; {time.perf_counter() - started:.0f} s")
    return 0 if kept else 1


GATES = (("paired", drift), ("two runs", jitter), ("two runs that drift", wander))

CASES = (
    (lognormal(0.5, (0.6, 0.6), -0.05), ((10, 25), (10, 40), (10, 100), (3, 100)), True),
    (lognormal(0.8, (0.4, 1.0), -0.05), ((10, 40), (10, 100), (10, 400), (5, 100), (3, 500)), True),
    (queue(0.7), ((10, 100), (5, 200)), True),
    (queue(0.7, empty=True), ((10, 200),), True),
    (lognormal(0.5, (0.6, 0.6), -0.05), ((10, 5), (2, 400)), True),
    (queue(0.8), ((10, 100), (10, 400)), False),
)

if __name__ == "__main__":
    sys.exit(main())
