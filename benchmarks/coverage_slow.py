"""Servers whose latency keeps a level for hundreds of loops: are intervals right, or refused?

A fast and a slow state in turn, each strategy on a server of its own or both on one by the clock, and an
AR(1) level with a long memory. An interval is right when it holds the truth of the server, not that of the
run, or when it is refused. What nobody can see is counted apart: runs that met one state only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from benchmarks.coverage_intervals import Check, Count, Samples, side
from profiler.statistics.comparison import compare
from profiler.statistics.quantiles import LEVELS, quantiles


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
        return [list(one.reshape(blocks, loops)) for one in noisy], True
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
        sides = [side(name, one) for name, one in (("new", ours), ("old", theirs))]
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


def print_slow(rng: np.random.Generator, count: int, check: Check) -> None:
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
