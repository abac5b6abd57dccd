"""Settings as predicted: how good they are, and which of them are worth measuring. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from profiler.prediction.predict import Predicted
from profiler.statistics.objectives import Objective
from profiler.statistics.quantiles import Estimate
from profiler.strategies import StrategySpec
from profiler.tune.candidates import MOST_FAILURES, Candidate, ObjectiveName
from profiler.tune.dial import Dial

SAME = 0.02
"""A prediction this share below the best may be as good, however sure it is."""

TOLD = 0.9
"""A setting is worse than another where it is in at least this share of the replicates."""

NEAR = 0.9
"""What is predicted to reach less than this share of the best is not measured, however unsure it is."""

FEWER_PLACES = 0.95
"""A limit this much lower than the best, predicted to be as good, is worth measuring beside it."""

MOST_MEASURED = 3
"""Settings that are measured, beside the baseline."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A setting as predicted: its score in each replicate, the higher the better; none where `refused`."""

    spec: str
    scores: tuple[float, ...] = ()
    candidate: Candidate | None = None
    refused: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        """The median over the replicates; 0 without any."""
        return float(np.median(self.scores)) if self.scores else 0.0

    def worse_than(self, other: Scored) -> float:
        """The share of the replicates in which it is worse, ties halved."""
        both = [*zip(self.scores, other.scores, strict=False)]
        if not both:
            return 1.0
        return sum(1.0 if mine < its else 0.5 if mine == its else 0.0 for mine, its in both) / len(both)


Ask = Callable[[Sequence[str], int], list[Scored]]
"""Predicts settings, in so many replicates."""


def scored(predicted: Predicted, objective: ObjectiveName, slo: Objective | None, dial: Dial) -> Scored:
    """A prediction as the search sees it."""
    spec = predicted.question.strategy.text
    if predicted.refused:
        return Scored(spec, refused=predicted.refused)
    allowed = MOST_FAILURES if slo is None or slo.errors is None else slo.errors
    scores = []
    for one in predicted.every:
        score = one.goodput if objective == "goodput" else one.throughput
        if objective == "p95":
            hopeless = math.isnan(one.p95) or not one.p95 or one.failure_rate > allowed
            score = 0.0 if hopeless else 1 / one.p95
        scores.append(0.0 if math.isnan(score) else score)
    nothing = Estimate(None)
    values = Estimate(float(np.median(scores)), *map(float, np.quantile(scores, (0.05, 0.95))))
    figures = predicted.figures
    return Scored(
        spec,
        tuple(scores),
        Candidate(
            spec,
            dial.value(spec),
            values,
            figures.get("goodput", nothing),
            figures.get("throughput", nothing),
            figures.get("p95", nothing),
            figures.get("failure_rate", nothing),
            0.0,
            predicted=True,
        ),
    )


# Which of them are measured.


def leaders(found: Iterable[Scored], most: int = 8) -> list[Scored]:
    """Those that may be the best, the best first."""
    known = sorted((one for one in found if one.value > 0), key=lambda one: -one.value)
    if not known:
        return []
    return [
        one
        for one in known
        if one.value >= NEAR * known[0].value
        and (one.value >= (1 - SAME) * known[0].value or one.worse_than(known[0]) < TOLD)
    ][:most]


Sort = Literal["baseline", "shared", "scoped", "named", "rate", "other"]


def sort_of(spec: str, dial: Dial) -> Sort:
    """What kind of setting it is, from the simplest on."""
    if spec == dial.baseline:
        return "baseline"
    strategy = StrategySpec.recorded(spec)
    if any(rule.tool or rule.server for rule in strategy.rules):
        return "named"
    if any(rule.kind == "rate" for rule in strategy.rules):
        return "rate"
    if strategy.kind == "limited" and not strategy.adapts:
        return "shared" if strategy.scope == "process" else "scoped"
    return "other"


def finalists(found: Iterable[Scored], dial: Dial, most: int = MOST_MEASURED) -> list[str]:
    """The settings to measure: those that prediction does not tell apart, simple and different ones first.

    The best one; of limits as good, one with clearly fewer places; and the best of each other kind, the
    simplest kind first. Limits of several tools only where they gain over a simpler setting.
    """
    near = leaders(found, most=1000)
    if not near:
        return []
    simple = [one for one in near if sort_of(one.spec, dial) not in ("named", "rate")]
    gains = not simple or simple[0].value < (1 - SAME) * near[0].value
    kept = near if gains else simple
    chosen = [kept[0]]
    limit = dial.value(kept[0].spec)
    if limit is not None:
        fewer = [
            one
            for one in kept
            if (value := dial.value(one.spec)) is not None and value <= FEWER_PLACES * limit
        ]
        chosen += fewer[:1]
    order = ("baseline", "shared", "scoped", "other", "named", "rate")
    for sort in order:
        if all(sort_of(one.spec, dial) != sort for one in chosen):
            chosen += [one for one in kept if sort_of(one.spec, dial) == sort][:1]
    if all(sort_of(one.spec, dial) != "baseline" for one in kept):
        return [one.spec for one in chosen][:most]
    base = [one.spec for one in chosen if sort_of(one.spec, dial) == "baseline"]
    return [*dict.fromkeys([chosen[0].spec, *base, *(one.spec for one in chosen)])][:most]
