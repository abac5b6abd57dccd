"""Which strategy is better, and how sure that is: on the same resamples, replicate by replicate. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from profiler.prediction.predict import Predicted

Metric = Literal["goodput", "p95"]

TOLD = 0.9
"""Two strategies are told apart where one is better in at least this share of the replicates."""

SAME = 0.01
"""A difference below this share does not matter, however sure it is."""


@dataclass(frozen=True, slots=True)
class Pair:
    """`strategy` against `baseline`: it is better in the share `certainty` of the replicates, ties halved.

    `value` and `against` are the figures of both: good loops a second, or seconds.
    """

    strategy: str
    baseline: str
    metric: Metric
    certainty: float
    value: float
    against: float

    @property
    def told(self) -> bool:
        """Whether one of them is better by more than nothing, and which is known."""
        differs = abs(self.value - self.against) > SAME * max(self.value, self.against)
        return differs and max(self.certainty, 1 - self.certainty) >= TOLD


def pair(one: Predicted, other: Predicted) -> Pair | None:
    """Two strategies under one load, by goodput, or by p95 where that is the same; None without figures."""
    if not one.every or not other.every or not {"goodput"} <= one.figures.keys() & other.figures.keys():
        return None
    found = _pair(one, other, "goodput")
    if found.told or not {"p95"} <= one.figures.keys() & other.figures.keys():
        return found
    by_latency = _pair(one, other, "p95")
    return by_latency if by_latency.told else found


def _pair(one: Predicted, other: Predicted, metric: Metric) -> Pair:
    sign = 1 if metric == "goodput" else -1
    both = [
        (sign * getattr(mine, metric), sign * getattr(its, metric))
        for mine, its in zip(one.every, other.every, strict=True)
    ]
    better = sum(1.0 if mine > its else 0.5 if mine == its else 0.0 for mine, its in both)
    return Pair(
        one.question.strategy.text,
        other.question.strategy.text,
        metric,
        better / len(both),
        one.figures[metric].value or 0.0,
        other.figures[metric].value or 0.0,
    )


def best(predicted: Iterable[Predicted]) -> Predicted | None:
    """The one with the highest goodput; of those with as much, the one with the lower p95."""
    found = [one for one in predicted if "goodput" in one.figures]
    if not found:
        return None
    leader = max(found, key=lambda one: one.figures["goodput"].value or 0.0)
    for one in found:
        against = pair(one, leader)
        if against is not None and against.metric == "p95" and against.told and against.certainty >= TOLD:
            leader = one
    return leader


def ranking(predicted: Sequence[Predicted]) -> list[Pair]:
    """The best of the strategies under one load against each other one, the hardest to tell first."""
    leader = best(predicted)
    if leader is None:
        return []
    pairs = [pair(leader, one) for one in predicted if one is not leader]
    found = [one for one in pairs if one is not None]
    return sorted(found, key=lambda one: (one.certainty, abs(one.value - one.against)))
