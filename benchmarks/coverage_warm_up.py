"""Stalls and warm-ups planted into blocks of 20 s: how often are loops left out?

A stall of two seconds in one block, or in every block two seconds after it began, must never be left out;
a warm-up, the first two seconds of every block three times slower, must be found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.coverage_intervals import Check, Count, Samples
from profiler.statistics.windows import WarmUp, of_blocks

FOUND = 0.90
"""The share of warm-ups that must be found."""


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
) -> tuple[Count, list[WarmUp]]:
    """(how often loops were left out, what was found) where a `stall`, `pauses` or a `warm-up` is."""
    made = open_block if load == "open" else closed_block
    found, each = Count(), []
    for _ in range(count):
        where = Planted(at=float(rng.uniform(0.5, 7.0)))
        plan = [Planted()] * blocks
        plan[int(rng.integers(blocks))] = where
        if planted == "pauses":
            plan = [Planted(at=2.0)] * blocks
        elif planted == "warm-up":
            plan = [Planted(slower=3.0)] * blocks
        drawn = [made(rng, spread, one) for one in plan]
        warm_up = of_blocks([inside * 1e9 for _, inside in drawn], [before * 1e9 for before, _ in drawn])
        found.add(warm_up.skip > 0)
        each.append(warm_up)
    return found, each


def print_planted(rng: np.random.Generator, count: int, check: Check) -> None:
    """The shares of planted stalls and warm-ups that were left out, and of warm-ups called unclear.

    Of one block alone warm-ups must be found, or called unclear, only where its loops vary less than the
    warm-up changes them.
    """
    print(f"\n{count} runs a line: share with loops left out as warm-up")
    print(
        f"{'load':6} {'loops':9} {'blocks':>6}  {'stall':>7} {'in every block':>15} "
        f"{'warm-up':>8} {'unclear':>8}"
    )
    for load in ("open", "closed"):
        for spread in SPREADS:
            for blocks in (1, 3, 10):
                results = [
                    left_out(rng, load, spread, blocks, count, planted)
                    for planted in ("stall", "pauses", "warm-up")
                ]
                shares = [found.share for found, _ in results]
                unclear = sum(one.unclear > 0 for one in results[2][1]) / count
                judged = check(shares[0], 0.0, 0.0) + check(shares[1], 0.0, 0.0)
                if blocks > 1:
                    judged += check(shares[2], FOUND, 1.0)
                elif spread == "σ 0.3":
                    judged += check(shares[2] + unclear, FOUND, 1.0)
                stall, pauses, warm, said = (f"{share * 100:.1f} %" for share in (*shares, unclear))
                print(
                    f"{load:6} {spread:9} {blocks:>6}  {stall:>7} {pauses:>15} {warm:>8} {said:>8}{judged}",
                    flush=True,
                )
