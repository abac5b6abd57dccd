"""The search, pure: which limits to try next, who stays in, what the curve shows.

Successive halving: a wide ladder of limits in short blocks, then only those that are not shown to
be worse, closer together and for longer. The last rung's figures are its own: a winner's score in the
rung it won is too good by what luck it had.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from profiler.statistics.comparison import Ratio
from profiler.statistics.quantiles import Estimate

KNEE_SHARE = 0.95
"""The knee is the smallest limit with this share of the best score."""

CLIFF_SHARE = 0.9
"""Beyond the cliff less than this share of the best is left."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate in one experiment. `score` is more the better it is; `against_best` is the paired ratio.

    `limit` is that of a shared semaphore, None for others; `calls_per_second` is of its tool calls.
    """

    spec: str
    limit: int | None
    score: Estimate
    goodput: Estimate
    throughput: Estimate
    p95: Estimate
    failures: Estimate
    calls_per_second: float
    against_best: Ratio | None = None


def ladder(highest: int, lowest: int = 1, guess: int | None = None, most: int = 5) -> list[int]:
    """Limits to begin with, evenly spaced by ratio from `lowest` to `highest`; at most `most`.

    Below what the calls need on average everything only queues (and takes long to drain). With a guess
    they lie around it, closer together.
    """
    lowest, highest = max(1, lowest), max(1, highest)
    lowest = min(lowest, highest)
    if guess is not None:
        around = (0.5, 0.7, 1.0, 1.4, 2.0)
        limits = {round(max(1.0, guess * share)) for share in around}
    else:
        ratio = highest / lowest
        limits = {round(lowest * ratio ** (k / (most - 1))) for k in range(most)}
    return sorted(limits)[:most]


def refine(scores: Mapping[int, float], most: int = 5) -> list[int]:
    """Limits between the best and its neighbours, the best among them; at most `most`, sorted."""
    if not scores:
        return []
    tried = sorted(scores)
    best = max(tried, key=lambda limit: scores[limit])
    place = tried.index(best)
    below = tried[place - 1] if place else max(1, best // 2)
    above = tried[place + 1] if place + 1 < len(tried) else round(best * 1.5)
    between = {best}
    for k in range(1, most // 2 + 1):
        share = k / (most // 2 + 1)
        between.add(round(best * (below / best) ** share))
        between.add(round(best * (above / best) ** share))
    return sorted(between, key=lambda limit: (abs(math.log(limit / best)), limit))[:most]


def survivors(scored: Sequence[Scored], most: int) -> list[Scored]:
    """Those not shown to be worse than the best, best first, at most `most`.

    The best itself is always in; who has no score is out.
    """
    ranked = sorted(
        (one for one in scored if one.score.value is not None), key=lambda one: -(one.score.value or 0.0)
    )
    return [one for one in ranked if not _worse(one)][: max(1, most)]


def _worse(one: Scored) -> bool:
    ratio = one.against_best
    return ratio is not None and ratio.shown and ratio.value is not None and ratio.value < 1


def on_one_scale(rungs: Sequence[Sequence[Scored]]) -> list[Scored]:
    """The curve: every shared semaphore by limit, from the last rung that tried it, on the last one's scale.

    Blocks of different lengths, at different times, are not to be compared as they are: a rung's rates
    are multiplied by what the candidates it has in common with the next one gained or lost there.
    """
    curve: dict[int, Scored] = {}
    factor = 1.0
    later: dict[str, float] = {}
    for rung in reversed(rungs):
        own = {one.spec: one.score.value for one in rung if one.score.value}
        common = [spec for spec in own if spec in later and spec not in UNLIMITED]
        if later and common:
            factor *= sum(later[spec] for spec in common) / sum(own[spec] for spec in common)
        for one in rung:
            if one.limit is not None and one.limit not in curve:
                curve[one.limit] = replace(
                    one,
                    score=_times(one.score, factor),
                    goodput=_times(one.goodput, factor),
                    throughput=_times(one.throughput, factor),
                )
        later = own
    return [curve[limit] for limit in sorted(curve)]


UNLIMITED = ("gathered", "sequential")
"""Where calls fail and loops are short, a rung's length matters otherwise than for limits near the best."""


def _times(one: Estimate, factor: float) -> Estimate:
    return Estimate(*(None if value is None else value * factor for value in (one.value, one.low, one.high)))


@dataclass(frozen=True, slots=True)
class Shape:
    """What a curve of score over the limit shows; limits, None where nothing was seen.

    `knee`: the smallest tried limit with nearly the best score. `cliff`: the smallest tried limit beyond
    the best at which clearly less is left. `low` to `high` around the best are the tried limits that are
    not shown to differ from it, and have `CLIFF_SHARE` of its score.
    """

    best: int
    knee: int
    cliff: int | None
    low: int
    high: int


def shape(curve: Sequence[Scored], best: int) -> Shape:
    """Of shared semaphores, one entry for each limit; `best` is among them."""
    points = sorted((one for one in curve if one.limit is not None), key=lambda one: one.limit or 0)
    limits = [one.limit or 0 for one in points]
    scores = [one.score.value or 0.0 for one in points]
    place = limits.index(best)
    top = scores[place]
    knee = next(limit for limit, score in zip(limits, scores, strict=True) if score >= KNEE_SHARE * top)
    cliff = None
    for one, limit in zip(points[place + 1 :], limits[place + 1 :], strict=True):
        high = one.score.high if one.score.high is not None else one.score.value
        if high is not None and high < CLIFF_SHARE * top:
            cliff = limit
            break
    low = high_ = place
    while low > 0 and not _apart(points[low - 1], points[place]):
        low -= 1
    while high_ + 1 < len(points) and not _apart(points[high_ + 1], points[place]):
        high_ += 1
    return Shape(best, min(knee, best), cliff, limits[low], limits[high_])


def _apart(one: Scored, best: Scored) -> bool:
    """Whether a figure is shown to differ, or is so far below that only too few loops hide it.

    By the paired comparison, else by intervals that do not meet.
    """
    if (one.score.value or 0.0) < CLIFF_SHARE * (best.score.value or 0.0):
        return True
    if (
        one.against_best is not None
        and one.against_best.value is not None
        and one.against_best.low is not None
    ):
        return one.against_best.shown
    if one.score.high is None or best.score.low is None:
        return (one.score.value or 0.0) < KNEE_SHARE * (best.score.value or 0.0)
    return one.score.high < best.score.low


def block_seconds(seconds: float, trials: int, drain: float, least: float = 1.0) -> float:
    """How long each of so many trials can measure in `seconds`, each with a drain after it."""
    return max(least, seconds / max(1, trials) - drain)


def affordable(seconds: float, candidates: int, blocks: int, drain: float, fewest: int = 2) -> int:
    """Of at most `blocks`, in how many all candidates can be measured for as long as they drain.

    Short windows between long drains measure little more than the start of a load.
    """
    least = max(1.0, 0.5 * drain)
    return min(blocks, max(fewest, int(seconds / (max(1, candidates) * (drain + least)))))


EQUIVALENT = 0.05
"""A difference below this does not matter."""

EARLY = 1.5
"""An interval looked at before the end counts as this much wider: who looks often finds much by luck."""


def equivalent(ratio: Ratio | None, wider: float = 1.0) -> bool:
    """Whether a ratio is shown to be at least nearly 1."""
    bounds = _bounds(ratio, wider)
    return bounds is not None and bounds[0] >= 1 - EQUIVALENT


def settled(scored: Sequence[Scored]) -> bool:
    """Whether every candidate is shown to be worse than the best, or as good, so that no more is needed."""
    ranked = [one for one in scored if one.score.value is not None]
    if len(ranked) < 2:
        return False
    best = max(ranked, key=lambda one: one.score.value or 0.0)
    for one in scored:
        if one is best or one.score.value == 0:
            continue
        bounds = _bounds(one.against_best, EARLY)
        if bounds is None or not (bounds[1] < 1 or bounds[0] >= 1 - EQUIVALENT):
            return False
    return True


def _bounds(ratio: Ratio | None, wider: float) -> tuple[float, float] | None:
    """Its interval, widened by a factor on the logarithmic scale it was computed on."""
    if ratio is None or not ratio.value or not ratio.low or not ratio.high:
        return None
    return ratio.value * (ratio.low / ratio.value) ** wider, ratio.value * (ratio.high / ratio.value) ** wider
