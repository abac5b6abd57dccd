"""How one server behaves under load, from what its clients saw: identified where they saw it, or said not to be.

A rule is named only when the recording went past it: calls waited, shared or were refused, the rule explains
them much better than any other does, and what it leaves as service does not depend on the load. What is left
open is in the sentence. The rules are in `calls`, how they are compared in `waiting` and `refusals`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from profiler.prediction.calls import (
    Bools,
    Calls,
    Floats,
    Ints,
    Kind,
    Rule,
    Timeline,
    in_flight,
    service_times,
)
from profiler.prediction.refusals import EXPLAINED, FEWEST, Rate, Threshold, bounds_in_flight, rate, threshold
from profiler.prediction.waiting import Evidence, Explained, parts

__all__ = ["Calls", "Finding", "Kind", "Rule", "identify", "in_flight", "service_times"]

FEWEST_CALLS = 50
"""Accepted calls from which anything is said."""
SLOWER = 1.10
"""A queue or a share is named where calls beyond its capacity took this many times their service or more."""
UNEXPLAINED = 1.15
"""Services that differ by this factor with the load, or over the recording, are not explained."""
MARGIN = 1.25
"""A capacity is identified when those that explain as much are within this factor of each other."""
_NATS = 8.0
"""A rule is better than another when the log likelihood of the calls is higher by this and by `_ERRORS`."""
_ERRORS = 4.0
"""Standard errors of a difference that tell."""
_IMPOSSIBLE = 0.02
"""A rule may exclude this share of what was seen: clients see calls start in another order than the server."""
_COARSE = 14
_LOADS = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of a server.

    `identified`: the recording went past `rule`; of `none`: calls did not get slower within `seen`, the
    lowest and the highest number of calls in flight (each call itself counted) with enough calls. Nothing is
    known above that, unless a capacity is identified. `capacities`: those that explain what was seen as well.
    """

    rule: Rule
    identified: bool
    seen: tuple[float, float]
    capacities: tuple[int, int] | None
    sentence: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Waiting:
    """What the accepted calls say: `kind` is none, queue or share."""

    kind: Kind
    capacity: int | None
    capacities: tuple[int, int] | None
    identified: bool
    sentence: str
    warnings: tuple[str, ...]


def identify(calls: Calls, *, seed: int = 0) -> Finding:
    """The rule that explains the calls of one server. The same calls give the same finding, with any `seed`."""
    others = in_flight(calls)
    taken = ~calls.refused
    seen = _seen(others[taken])
    if taken.sum() < FEWEST_CALLS:
        few = f"only {int(taken.sum())} calls were accepted: nothing is known of what it does under load"
        return Finding(Rule("none"), False, seen, None, few, ())
    waiting = _waiting(calls, taken)
    refusing = _refusing(calls, others)
    return _together(waiting, refusing, seen, int(calls.refused.sum()))


def _seen(others: Ints) -> tuple[float, float]:
    if not others.size:
        return (0.0, 0.0)
    enough = max(20, others.size // 500)
    number = np.sort(others) + 1
    return (float(number[0]), float(number[max(0, number.size - enough)]))


# Calls that wait or share.


def _waiting(calls: Calls, taken: Bools) -> _Waiting:
    timeline = Timeline.of(calls.started[taken], calls.ended[taken])
    evidence = Evidence(timeline, calls.group[taken][timeline.order])
    most = int(timeline.others.max()) + 1
    none = evidence.of("none")
    kinds: tuple[Kind, ...] = ("queue", "share")
    within = False
    best = _best(evidence, kinds, most, within)
    drift = _changes(evidence, best or none)
    if drift > UNEXPLAINED:
        # What changes over the recording must not be taken for what changes with the load.
        within = True
        best = _best(evidence, kinds, most, within)
    warnings: list[str] = []
    if best is None or not _better(evidence, best, none, within=within) or _slowdown(timeline, best) < SLOWER:
        return _no_waiting(evidence, most)
    drift = _changes(evidence, best)
    if drift > UNEXPLAINED:
        warnings.append(f"its times change over the recording (drift): x {drift:.2f}")
    assert best.capacity is not None  # only none is without
    low, high = _as_good(evidence, best, most, within)
    what = _words(best.kind, low, high)
    if not _better(evidence, best, none, within=True, nats=5.0, errors=3.0):
        text = f"slower later or under more load, which are not told apart: {what} would explain it"
        return _Waiting(best.kind, best.capacity, (low, high), False, text, tuple(warnings))
    factor, at_low, at_high = _dependence(evidence, best)
    if factor > UNEXPLAINED:
        raw, _, _ = _dependence(evidence, none)
        warnings.append(
            f"slower with load in a way that none of the rules explains: x {raw:.1f} from {at_low} to "
            f"{at_high} in flight"
        )
        text = f"slower with load, but neither a queue nor sharing explains it ({what} comes nearest)"
        return _Waiting("none", None, None, False, text, tuple(warnings))
    other = _best(evidence, tuple(kind for kind in kinds if kind != best.kind), most, within)
    if other is not None and not _better(evidence, best, other, within=within, nats=5.0, errors=3.0):
        what = f"{what}, or {_words(other.kind, other.capacity, other.capacity)}: what was seen fits both"
        return _Waiting(best.kind, best.capacity, (low, high), False, what, tuple(warnings))
    beyond = int((timeline.others >= best.capacity).sum())
    text = f"{what} (seen: {beyond} calls came when {best.capacity} or more were in flight)"
    identified = high <= MARGIN * low + 1
    if not identified:
        text = f"{what}: which, the recording does not tell"
    return _Waiting(best.kind, best.capacity, (low, high), identified, text, tuple(warnings))


def _no_waiting(evidence: Evidence, most: int) -> _Waiting:
    none = evidence.of("none")
    factor, low, high = _dependence(evidence, none)
    drift = _changes(evidence, none)
    warnings = []
    if drift > UNEXPLAINED:
        warnings.append(f"its times change over the recording (drift): x {drift:.2f}")
    if factor > UNEXPLAINED:
        warnings.append(
            f"slower with load in a way that none of the rules explains: x {factor:.1f} from {low} to {high} "
            "in flight"
        )
        text = "slower with load, but neither a queue nor sharing explains it"
        return _Waiting("none", None, None, False, text, tuple(warnings))
    text = f"never more than {most} in flight: no slower up to there, and nothing is known above"
    return _Waiting("none", None, None, True, text, tuple(warnings))


def _best(evidence: Evidence, kinds: Sequence[Kind], most: int, within: bool) -> Explained | None:
    """The rule of these kinds with the highest likelihood, of those that can be; None if none can."""
    found: list[Explained] = []
    for kind in kinds:
        if most < 2:
            continue
        for capacity in np.unique(np.rint(np.geomspace(1, most - 1, _COARSE)).astype(np.int64)).tolist():
            evidence.of(kind, capacity)
        while True:
            tried = evidence.tried(kind)
            ranked = [
                each for each in map(lambda c: evidence.of(kind, c), tried) if _possible(evidence, each)
            ]
            if not ranked:
                break
            top = max(ranked, key=lambda each: _score(each, within))
            assert top.capacity is not None
            at = tried.index(top.capacity)
            between = [
                (low + high) // 2
                for low, high in zip(tried[max(0, at - 1) : at + 1], tried[at : at + 2], strict=False)
                if high - low > max(1, high // 100)
            ]
            if not between:
                found.append(top)
                break
            for capacity in between:
                evidence.of(kind, capacity)
    return max(found, key=lambda each: _score(each, within), default=None)


def _score(explained: Explained, within: bool) -> float:
    return float((explained.within if within else explained.likelihood).sum())


def _possible(evidence: Evidence, explained: Explained) -> bool:
    """Whether the rule is not contradicted: few services are negative, and no load has all the short ones."""
    if explained.impossible > _IMPOSSIBLE:
        return False
    factor, _, _ = _dependence(evidence, explained)
    return factor < 2.0


def _better(
    evidence: Evidence,
    better: Explained,
    worse: Explained,
    *,
    within: bool,
    nats: float = _NATS,
    errors: float = _ERRORS,
) -> bool:
    gain, error = evidence.gain(better, worse, within=within)
    return gain > max(nats, errors * error)


def _as_good(evidence: Evidence, best: Explained, most: int, within: bool) -> tuple[int, int]:
    """The lowest and the highest capacity that explain nearly as much."""
    assert best.capacity is not None
    edges = []
    for direction in (-1, 1):
        good, step = best.capacity, 1
        bad: int | None = None
        while bad is None or abs(bad - good) > max(1, good // 100):
            tried = good + direction * step if bad is None else (good + bad) // 2
            if not 1 <= tried < most:
                if step == 1 or bad is not None:
                    break
                bad = 0 if direction < 0 else most
                continue
            if _better(evidence, best, evidence.of(best.kind, tried), within=within, nats=3.0, errors=2.5):
                bad = tried
            else:
                good = tried
                step *= 2
        edges.append(good)
    return edges[0], edges[1]


def _slowdown(timeline: Timeline, explained: Explained) -> float:
    """How many times its service a call took that found the capacity in use."""
    assert explained.capacity is not None
    beyond = timeline.others >= explained.capacity
    if beyond.sum() < 20:
        return 1.0
    services = np.maximum(1.0, explained.services[beyond])
    return float(timeline.durations[beyond].sum() / services.sum())


def _dependence(evidence: Evidence, explained: Explained) -> tuple[float, int, int]:
    """The factor by which services differ with the number in flight at their start, as far as it is no chance;
    and the numbers between which they do (each call itself counted)."""
    others = evidence.timeline.others
    logs = evidence.scaled(explained.services)
    edges = np.unique(np.quantile(others, np.linspace(0, 1, _LOADS + 1)[1:-1]))
    if explained.capacity is not None:
        # Calls that found room are one of the loads.
        edges = np.unique(np.append(edges[edges >= explained.capacity], explained.capacity))
    load = np.searchsorted(edges, others, side="right")
    factor, low, high = _differ(logs, load, evidence.block)
    at = [float(np.median(others[load == each])) + 1 if (load == each).any() else 1.0 for each in (low, high)]
    return factor, round(min(at)), round(max(at))


def _changes(evidence: Evidence, explained: Explained) -> float:
    """The factor by which services differ between the parts of the recording, as far as it is no chance."""
    order = np.arange(evidence.group.size)
    part = order * 4 // order.size
    factor, _, _ = _differ(evidence.scaled(explained.services), part, evidence.block)
    return factor


def _differ(logs: Floats, part: Ints, block: Ints) -> tuple[float, int, int]:
    """By what factor the parts with the lowest and highest mean differ, less two standard errors; those parts.

    Calls of one block and part count as one for the standard error, since calls of a loop are correlated.
    """
    means, errors, known = [], [], []
    for each in np.unique(part):
        rows = part == each
        count = np.bincount(block[rows])
        sums = np.bincount(block[rows], weights=logs[rows])
        count, sums = count[count > 0], sums[count > 0]
        if rows.sum() < 40 or count.size < 3:
            continue
        mean = sums.sum() / count.sum()
        errors.append(float(np.sqrt(((sums - mean * count) ** 2).sum()) / count.sum()))
        means.append(float(mean))
        known.append(int(each))
    if len(means) < 2:
        return 1.0, 0, 0
    low, high = int(np.argmin(means)), int(np.argmax(means))
    error = float(np.hypot(errors[low], errors[high]))
    factor = float(np.exp(max(0.0, means[high] - means[low] - 2 * error)))
    return factor, known[low], known[high]


def _words(kind: Kind, low: int | None, high: int | None) -> str:
    count = f"{low}" if low == high else f"{low} to {high}"
    if kind == "queue":
        return f"queues above {count} at once"
    return f"shares the capacity of {count} among all"


# Calls that are refused.


@dataclass(frozen=True, slots=True)
class _Refusing:
    threshold: Threshold | None
    rate: Rate | None
    known: bool
    words: str


def _refusing(calls: Calls, others: Ints) -> _Refusing:
    refused = calls.refused
    count = int(refused.sum())
    if not count:
        return _Refusing(None, None, True, "")
    if count < FEWEST:
        return _Refusing(None, None, False, f"{count} refusals, too few to tell what for")
    found = threshold(calls, others)
    if found is not None and max(found.unexplained, found.contradicting) <= EXPLAINED:
        return _Refusing(found, None, True, "")
    every = np.ones(refused.size, dtype=np.bool_)
    rated = rate(calls, every)
    if rated is not None and max(rated.unexplained, rated.contradicting) <= EXPLAINED:
        return _Refusing(None, rated, True, "")
    both = _both(calls, others)
    if both is not None:
        return both
    share = count / refused.size
    words = f"{share:.0%} of the calls are refused, for neither their number in flight nor their rate"
    return _Refusing(None, None, False, words)


def _both(calls: Calls, others: Ints) -> _Refusing | None:
    """A capacity that no accepted call exceeds, and a rate that explains the refusals below it."""
    refused = calls.refused
    fewest, most = bounds_in_flight(calls)
    at = int(np.quantile(fewest[~refused], 0.999)) + 1
    above = refused & (others >= at)
    near = (others < at) & (others >= at - max(3, at // 10))
    if above.sum() < 2 * FEWEST or not near.any() or np.mean(~refused[near]) < 0.3:
        return None
    rest = refused & (most < at)
    rated = rate(calls, ~refused | rest)
    if rated is None or max(rated.unexplained, rated.contradicting) > EXPLAINED:
        return None
    return _Refusing(Threshold(at, at, at, 0.0, 0.0, above), rated, True, "")


# Both.


def _together(waiting: _Waiting, refusing: _Refusing, seen: tuple[float, float], refusals: int) -> Finding:
    warnings = waiting.warnings
    rule = Rule(waiting.kind, waiting.capacity)
    sentence, capacities, identified = waiting.sentence, waiting.capacities, waiting.identified
    limit = refusing.threshold
    if limit is not None:
        seen_refused = f"(seen: {int(limit.explains.sum())} refusals with {limit.at} or more in flight)"
        if rule.capacity is not None and rule.capacity < limit.at:
            rule = replace(rule, queue=limit.at - rule.capacity)
            sentence += f"; refuses above {limit.at} at once {seen_refused}"
        else:
            rule = Rule("refuse", limit.at)
            capacities, identified = (limit.lowest, limit.highest), True
            sentence = f"refuses above {_range(limit)} at once {seen_refused}"
    if refusing.rate is not None:
        burst = max(1, round(refusing.rate.burst))
        rule = replace(rule, rate=refusing.rate.per_second, burst=float(burst))
        words = f"refuses above {refusing.rate.per_second:.4g} a second, {burst} at once"
        if rule.kind == "none":
            rule = replace(rule, kind="rate")
            words += f" (seen: {refusals} refusals)"
            identified = identified or not warnings
            sentence = words if identified else f"{words}; {sentence}"
        else:
            sentence += f"; {words}"
    if refusing.words:
        warnings = (*warnings, refusing.words)
        identified = identified and refusing.known
    return Finding(rule, identified, seen, capacities, sentence, warnings)


def _range(limit: Threshold) -> str:
    return f"{limit.at}" if limit.lowest == limit.highest else f"{limit.lowest} to {limit.highest}"
