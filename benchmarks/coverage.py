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

Then servers whose latency keeps a level for hundreds of loops: a fast and a slow state in turn, each
strategy on a server of its own or both on one by the clock, and an AR(1) level with a long memory. An
interval is right when it holds the truth of the server, not that of the run, or when it is refused.
What nobody can see is counted apart: runs that met one state only.

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
from functools import lru_cache
from unittest.mock import patch

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
WIDTHS = ("paired", "alone")
WIDEST = 1.5
"""How much wider than where nothing is remembered an interval may be of latencies that forget soon."""
REFUSED = 0.10
"""How often those may get none."""
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


@dataclass(frozen=True, slots=True)
class Slow:
    """A server that keeps its level for about `loops` loops.

    The median of its slow state is `ratio` times that of the fast one; the states of both strategies are
    the same by the clock where they are `shared`. Without a ratio the level is an AR(1) of σ 0.3.
    """

    loops: int
    ratio: float = 0.0
    shared: bool = False

    @property
    def name(self) -> str:
        if not self.ratio:
            return f"AR(1) level, {self.loops} loops"
        where = "shared by the clock" if self.shared else "of each"
        return f"states ×{self.ratio:.0f} {where}, {self.loops} loops"

    @property
    def slow_share(self) -> float:
        """The share of loops in the slow state: half of the time, but fewer loops in it by the clock."""
        return 1 / (1 + self.ratio) if self.shared else 0.5

    def truth(self, p: float) -> float:
        """The logarithm of the p-quantile of all loops."""
        return _true_quantile(self.ratio, self.slow_share, p)


NOISE = 0.3
"""σ of loops in one state."""
LEVEL = 0.3
"""σ of an AR(1) level."""


@lru_cache(maxsize=100)
def _true_quantile(ratio: float, slow_share: float, p: float) -> float:
    from scipy.optimize import brentq
    from scipy.special import ndtr, ndtri

    if not ratio:
        return float(ndtri(p)) * float(np.hypot(NOISE, LEVEL))
    step = np.log(ratio)

    def below(x: float) -> float:
        slow = ndtr((x - step) / NOISE)
        return float(slow_share * slow + (1 - slow_share) * ndtr(x / NOISE)) - p

    return float(brentq(below, -5.0, 5.0 + step))


def states(rng: np.random.Generator, length: float, sojourn: float) -> tuple[Samples, bool]:
    """(times of the changes between two states up to `length`, whether the first one is slow)."""
    changes = np.cumsum(rng.exponential(sojourn, int(2 * length / sojourn) + 20))
    return changes[changes < length], bool(rng.integers(2))


def slow_blocks(
    rng: np.random.Generator, slow: Slow, blocks: int, loops: int
) -> tuple[list[list[Samples]], bool]:
    """(logarithms of the latencies of both strategies in each block, whether both met both states)."""
    if not slow.ratio:
        from scipy.signal import lfilter

        keep = np.exp(-1 / slow.loops)
        steps = rng.normal(0, LEVEL * np.sqrt(1 - keep**2), (2, blocks * loops))
        start = rng.normal(0, LEVEL, (2, 1)) * keep ** np.arange(1, blocks * loops + 1)
        level = lfilter([1], [1, -keep], steps, axis=1) + start
        noisy = level + rng.normal(0, NOISE, level.shape)
        return [list(side.reshape(blocks, loops)) for side in noisy], True
    drawn: list[list[Samples]] = [[], []]
    met: list[list[float]] = [[], []]
    if slow.shared:  # loops take a unit of time in the fast state, `ratio` in the slow one
        trial = loops * 2 / (1 + 1 / slow.ratio)
        changes, begins_slow = states(rng, 2 * blocks * trial, slow.loops * trial / loops)
        order = [first ^ k for first in rng.integers(0, 2, blocks) for k in (0, 1)]
        for number, strategy in enumerate(order):
            start, end = number * trial, (number + 1) * trial
            edges = np.concatenate([[start], changes[(changes > start) & (changes < end)], [end]])
            is_slow = begins_slow ^ (np.searchsorted(changes, edges[:-1], side="right") % 2 == 1)
            counts = np.round(np.diff(edges) / np.where(is_slow, slow.ratio, 1.0)).astype(int)
            level = np.repeat(is_slow, counts)
            drawn[strategy].append(level * np.log(slow.ratio) + rng.normal(0, NOISE, level.size))
            met[strategy] += level.tolist()
    else:
        for strategy in (0, 1):
            changes, begins_slow = states(rng, blocks * loops, slow.loops)
            level = begins_slow ^ (np.searchsorted(changes, np.arange(blocks * loops)) % 2 == 1)
            noisy = level * np.log(slow.ratio) + rng.normal(0, NOISE, level.size)
            drawn[strategy] = list(noisy.reshape(blocks, loops))
            met[strategy] = level.tolist()
    return drawn, all(MET <= np.mean(levels) <= 1 - MET for levels in met)


MET = 0.05
"""The share of a strategy's loops that each state must have had for the run to have met it."""


def slow_coverage(
    rng: np.random.Generator, slow: Slow, blocks: int, loops: int, count: int
) -> dict[str, tuple[Count, Count]]:
    """(how often an interval held the truth, how often there was none) over runs that met both states.

    `met` is how often a run did.
    """
    names = [f"{kind} {name}" for kind in ("paired", "two runs", "alone") for name in ("p50", "p95")]
    found = {name: (Count(), Count()) for name in (*names, "met")}
    for _ in range(count):
        (ours, theirs), met = slow_blocks(rng, slow, blocks, loops)
        found["met"][0].add(met)
        if not met:
            continue
        sides = [_slow_side(name, one) for name, one in (("new", ours), ("old", theirs))]
        paired = compare(*sides, paired=True)
        apart = None if slow.shared else compare(*sides, paired=False, same_run=False)
        alone = quantiles(sides[1].latencies, 1e-9)
        for name in ("p50", "p95"):
            figures = [("paired", getattr(paired, name), 1.0)]
            if apart is not None:
                figures.append(("two runs", getattr(apart, name), 1.0))
            figures.append(("alone", alone[name], float(np.exp(slow.truth(LEVELS[name])))))
            for kind, figure, truth in figures:
                held, refused = found[f"{kind} {name}"]
                refused.add(figure.low is None)
                if figure.low is not None:
                    held.add(figure.low <= truth <= figure.high)
    return found


def _slow_side(name: str, logs: list[Samples]) -> Side:
    counts = tuple(block.size for block in logs)
    return Side(
        name,
        tuple(np.exp(block) * 1e9 for block in logs),
        (1.0,) * len(logs),
        counts,
        counts,
        tuple((0, count) for count in counts),
    )


def print_slow(rng: np.random.Generator, count: int, check: Callable[[float, float, float], str]) -> None:
    """Coverage and refusals on servers that keep their level for long."""
    print(f"\n{count} runs a line: 'held / refused' in per cent, and how many runs met both states")
    columns = [f"{kind} {name}" for kind in ("paired", "two runs", "alone") for name in ("p50", "p95")]
    print(f"{'level':40} {'blocks':>11} {'met':>5}" + "".join(f"{column:>14}" for column in columns))
    for slow in SLOW:
        for blocks, loops in ((10, 100), (3, 500), (10, 400), (10, 1000)):
            found = slow_coverage(rng, slow, blocks, loops, count)
            cells, judged = "", ""
            for column in columns:
                held, refused = found[column]
                cell = f"{held.share * 100:.1f}".replace("nan", "–") + f" / {refused.share * 100:.0f}"
                cells += f"{cell.replace('nan', '–'):>14}"
                if refused.tries >= FEWEST_TRIES:
                    right = (held.hits + refused.hits) / refused.tries
                    judged = judged or check(right, RIGHT, 1.0)
            met = found["met"][0].share * 100
            print(f"{slow.name:40} {blocks:>4} × {loops:<4} {met:>4.0f}{cells}{judged}", flush=True)


RIGHT = 0.90
"""The share of runs in which an interval must hold the truth or be refused."""
FEWEST_TRIES = 50
SLOW = (
    *(Slow(loops, 2.0) for loops in (100, 300, 1000)),
    *(Slow(loops, 4.0) for loops in (100, 300, 1000)),
    *(Slow(loops, 3.0, shared=True) for loops in (100, 300, 1000)),
    Slow(300),
)


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
    parser.add_argument("--slow", type=int, default=400, help="runs against a server that changes slowly")
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
    print(
        f"{'latencies':24} {'blocks':>11}  {'p50':>6} {'p95':>6} {'p99':>6} {'alone p95':>10} "
        " too few   alone   wider   alone"
    )
    for shape, sizes, required in CASES:
        for blocks, loops in sizes:
            found = paired_coverage(rng, shape, blocks, loops, options.experiments)
            shares = {name: found[name].share for name in found}
            judged = "".join(check(shares[name], *COVERAGE) for name in ("p50", "p95")) if required else ""
            cells = " ".join(f"{shares[name] * 100:6.1f}" for name in LEVELS).replace("nan", "  –")
            alone = f"{shares['alone p95'] * 100:10.1f}".replace("nan", "  –")
            wider = widening(rng, shape, blocks, loops, options.slow)
            line = f"{shape.name:24} {blocks:>4} × {loops:<4}  {cells} {alone}  "
            line += f"{shares['too few'] * 100:5.1f} % {shares['alone too few'] * 100:5.1f} %"
            line += "".join(f" {f'{wider[name]:.2f}×' if name in wider else '–':>7}" for name in WIDTHS)
            if required and wider:
                judged += "".join(check(value, 0.0, WIDEST) for value in wider.values())
                judged += check(shares["too few"], 0.0, REFUSED)
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
    print_slow(rng, options.slow, check)
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
