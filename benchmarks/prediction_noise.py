"""How far the figures of a run would differ from those of another such run: the bootstrap over its agents.

An agent's loops follow each other, so an agent in a block is drawn with all its loops. That all agents meet
one server is not in it: the intervals are somewhat narrow at a server that is full.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

RESAMPLES = 500
TAILS = (0.025, 0.975)


@dataclass
class Chain:
    """What one agent did in one window."""

    seconds: list[float] = field(default_factory=list)  # of loops that came to an answer
    good: int = 0
    failed: int = 0
    attempts: int = 0
    refused: int = 0


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


FIGURES: dict[str, Callable[[Sequence[Chain]], float]] = {
    "p50": lambda chains: float(np.quantile([one for c in chains for one in c.seconds] or [0.0], 0.5)),
    "p95": lambda chains: float(np.quantile([one for c in chains for one in c.seconds] or [0.0], 0.95)),
    "throughput": lambda chains: float(sum(len(c.seconds) for c in chains)),
    "goodput": lambda chains: float(sum(c.good for c in chains)),
    "failure_rate": lambda chains: _share(
        sum(c.failed for c in chains), sum(c.good + c.failed for c in chains)
    ),
    "refused_share": lambda chains: _share(sum(c.refused for c in chains), sum(c.attempts for c in chains)),
}
RELATIVE = ("p50", "p95", "throughput", "goodput")


def chains_of(directory: Any) -> list[Chain]:
    """Of a `RunDirectory`: each agent in each window, with the loops that started in it."""
    windows = {trial.index: trial for trial in directory.load().trials}
    chains: dict[tuple[int, str], Chain] = defaultdict(Chain)
    for loop in directory.records():
        trial = windows.get(-1 if loop.trial is None else loop.trial)
        if trial is None or not trial.started_ns <= loop.started_ns < trial.ended_ns:
            continue
        chain = chains[trial.index, f"{loop.process} {loop.agent}"]
        if loop.status == "ok":
            chain.seconds.append((loop.ended_ns - loop.started_ns) / 1e9)
        chain.good += loop.good
        chain.failed += not loop.good
        for round_ in loop.rounds:
            tried = (round_.model, *(call for call in round_.tool_calls if call.started_ns is not None))
            chain.attempts += sum(one.attempt_count for one in tried)
            chain.refused += sum(len(one.refusals) for one in tried)
    return list(chains.values())


def intervals(chains: Sequence[Chain], seed: int = 1) -> dict[str, tuple[float, float]]:
    """95 % intervals: of times and rates as factors of the figure, of shares as differences from it."""
    if not chains:
        return {}
    random = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in FIGURES}
    for _ in range(RESAMPLES):
        resample = [chains[number] for number in random.integers(0, len(chains), len(chains))]
        for name, figure in FIGURES.items():
            drawn[name].append(figure(resample))
    found = {}
    for name, figure in FIGURES.items():
        value, (low, high) = figure(chains), np.quantile(drawn[name], TAILS)
        if name not in RELATIVE:
            found[name] = (float(low - value), float(high - value))
        elif value:
            found[name] = (float(low / value), float(high / value))
    return found
