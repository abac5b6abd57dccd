"""How one server behaves under load, from what its clients saw; or that they did not see it.

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
    in_flight,
    service_times,
)
from profiler.prediction.refusals import FEWEST, Rate, Threshold, bounds_in_flight, rate, threshold
from profiler.prediction.waiting import TOLERANCE_NS, Evidence, Explained

__all__ = ["Calls", "Finding", "Kind", "Rule", "identify", "in_flight", "service_times"]

FEWEST_CALLS = 50
"""Accepted calls from which anything is said."""
SLOWER = 1.10
"""A queue or a share is named where calls beyond its capacity took this many times their service or more."""
UNEXPLAINED = 1.15
"""Services that differ by this factor with the load, or over the recording, are not explained."""
MARGIN = 1.3
"""A capacity is identified when those that explain as much are within this factor of each other."""
_NATS = 8.0
"""A rule is better than another when the log likelihood of the calls is higher by this and by `_ERRORS`."""
_ERRORS = 4.0
"""Standard errors of a difference that tell."""
_IMPOSSIBLE = 0.02
"""A rule may exclude this share of what was seen: a server may see calls in another order than clients."""
_ORDER = 0.12
"""Of calls that started together the order is the one that suits a queue best. That alone makes a queue more
likely than sharing by up to this, for each such call that waited."""
_SHADOWS = 0.1
"""Under a rule this share of the services may be nothing, if it leaves no other short ones."""
_CONTRADICTED = 2.0
"""A rule under which services differ by this factor with the load is not looked at."""
_REFUSES = 0.75
"""A server only refuses when calls are known not to wait up to this share of the number that it takes."""
_RATES = 1.05
"""A rate is identified when those that explain as much are within this factor of each other."""
_NEARLY = 0.95
"""A capacity explains nearly as much as the best with this share of its gain over none."""
_FREE = 0.03
"""Dependence on the load that is this much more than another's, as a factor, tells."""
_CLEAR = 0.02
"""With fewer errors than this, a number in flight explains the refusals and no rate is looked for."""
_WAITING: tuple[Kind, ...] = ("queue", "share")
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
    until: int | None = None


def identify(calls: Calls, *, seed: int = 0) -> Finding:
    """The rule that explains the calls of one server best, if one does.

    `seed` orders calls that started at the same instant: as far as anyone knows, any may have come first.
    """
    mixed = np.random.default_rng(seed).permutation(calls.started.size)
    calls = Calls(calls.started[mixed], calls.ended[mixed], calls.refused[mixed], calls.group[mixed])
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
    evidence = Evidence.of_calls(calls.started[taken], calls.ended[taken], calls.group[taken])
    most = int(evidence.others.max()) + 1
    best = _best(evidence, _WAITING, most)
    if _changes(evidence, best or evidence.of("none")) > UNEXPLAINED:
        # What changes over the recording must not be taken for what changes with the load.
        evidence.within = True
        best = _best(evidence, _WAITING, most)
    none = evidence.of("none")
    if (
        best is None
        or not _better(evidence, best, none, _nats(evidence, best))
        or _slowdown(evidence, best) < SLOWER
    ):
        return _no_waiting(evidence, most)
    best, low, high = _least_dependent(evidence, best, *_as_good(evidence, best, most))
    return _named(evidence, best, low, high, most)


def _named(evidence: Evidence, best: Explained, low: int, high: int, most: int) -> _Waiting:
    """Whether the best rule is the server's; `low` to `high` are the capacities that explain as much."""
    kind, capacity = best.kind, best.capacity
    assert capacity is not None  # only none is without
    what = _words(kind, low, high)
    warnings: tuple[str, ...] = ()
    drift = _changes(evidence, best)
    if drift > UNEXPLAINED:
        warnings = (f"its times change over the recording (drift): x {drift:.2f}",)
    inner, outer = (evidence.of(*key, within=True) for key in ((kind, capacity), ("none", None)))
    if not _better(evidence, inner, outer, nats=5.0, errors=3.0):
        text = f"slower later or under more load, which are not told apart: {what} would explain it"
        return _Waiting(kind, capacity, (low, high), False, text, warnings)
    if evidence.gain_apart_from_standstills(best, evidence.of("none")) <= 0:
        text = "stood still for a while now and then: calls waited for that, and no rule is known"
        return _Waiting("none", None, None, False, text, (*warnings, "stands still now and then"))
    factor, at_low, at_high = _dependence(evidence, best)
    free = evidence.by_load(int(evidence.others.max()))
    if factor > UNEXPLAINED or not _better(evidence, best, free, nats=5.0, errors=2.0):
        raw, _, _ = _dependence(evidence, evidence.of("none"))
        slower = _slower(raw, at_low, at_high)
        text = f"slower with load, but neither a queue nor sharing explains it ({what} comes nearest)"
        return _Waiting("none", None, None, False, text, (*warnings, slower))
    other = _best(evidence, ("share",) if kind == "queue" else ("queue",), most)
    if other is not None and not _better(evidence, best, other, _nats(evidence, best, 5.0), errors=3.0):
        text = f"{what}, or {_words(other.kind, other.capacity, other.capacity)}: what was seen fits both"
        return _Waiting(kind, capacity, (low, high), False, text, warnings)
    if high > MARGIN * low + 1:
        text = f"{what}: which, the recording does not tell"
        return _Waiting(kind, capacity, (low, high), False, text, warnings)
    beyond = int((evidence.others >= capacity).sum())
    text = f"{what} (seen: {beyond} calls came when {capacity} or more were in flight)"
    return _Waiting(kind, capacity, (low, high), True, text, warnings)


def _nats(evidence: Evidence, explained: Explained, least: float = _NATS) -> float:
    """By how much the likelihood must be higher, to be for the rule and not for the order that suits it."""
    if explained.kind != "queue" or explained.capacity is None:
        return least
    return max(least, _ORDER * evidence.reordered(explained.capacity))


def _slower(factor: float, low: int, high: int) -> str:
    return (
        f"slower with load in a way that none of the rules explains: x {factor:.1f} from {low} to {high} in "
        "flight"
    )


def _no_waiting(evidence: Evidence, most: int) -> _Waiting:
    factor, low, high = _dependence(evidence, evidence.of("none"))
    drift = _changes(evidence, evidence.of("none"))
    warnings = []
    if drift > UNEXPLAINED:
        warnings.append(f"its times change over the recording (drift): x {drift:.2f}")
    if factor > UNEXPLAINED:
        warnings.append(_slower(factor, low, high))
        text = "slower with load, but neither a queue nor sharing explains it"
        if drift > UNEXPLAINED:
            text = "slower later or under more load, which are not told apart: record several blocks"
        return _Waiting("none", None, None, False, text, tuple(warnings))
    until = _excluded(evidence, most)
    text = f"never more than {most} in flight: no slower up to there, and nothing is known above"
    if until < most:
        text = f"no slower up to {until} in flight; too few calls went above that to tell"
    return _Waiting("none", None, None, True, text, tuple(warnings), until)


def _excluded(evidence: Evidence, most: int) -> int:
    """The number in flight up to which calls are known not to wait: any lower capacity would have shown."""
    none = evidence.of("none")

    def excluded(capacity: int) -> bool:
        rules = [evidence.of(kind, capacity) for kind in _WAITING]
        return all(
            not _possible(evidence, each) or _better(evidence, none, each, nats=2.0, errors=2.0)
            for each in rules
            if (evidence.others >= capacity).any()
        )

    good, bad = 0, most
    for capacity in evidence.tried("share"):
        if not excluded(capacity):
            bad = capacity
            break
        good = capacity
    while bad - good > max(1, good // 50):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if excluded(middle) else (good, middle)
    return bad


def _best(evidence: Evidence, kinds: Sequence[Kind], most: int) -> Explained | None:
    """The rule of these kinds with the highest likelihood, of those that can be; None if none can."""
    found: list[Explained] = []
    for kind in kinds if most > 1 else ():
        tried = np.unique(np.rint(np.geomspace(1, most - 1, _COARSE)).astype(np.int64)).tolist()
        while tried:
            for capacity in tried:
                evidence.of(kind, capacity)
            known = evidence.tried(kind)
            possible = [each for each in (evidence.of(kind, c) for c in known) if _possible(evidence, each)]
            if not possible:
                break
            top = max(possible, key=_score)
            assert top.capacity is not None  # those of a queue or a share have one
            near = [c for c in known if c < top.capacity][-1:] + [c for c in known if c > top.capacity][:1]
            # Capacities that differ by less than a hundredth are not told apart.
            tried = [(c + top.capacity) // 2 for c in near if abs(c - top.capacity) > max(1, c // 100)]
            if not tried:
                found.append(top)
    return max(found, key=_score, default=None)


def _score(explained: Explained) -> float:
    return float(explained.likelihood.sum())


def _possible(evidence: Evidence, explained: Explained) -> bool:
    """Whether nothing contradicts the rule: few services are negative, not many are nothing at all, and no
    load has all the short ones."""
    key = (explained.kind, explained.capacity)
    if key not in evidence.possible:
        raw, services = evidence.durations, explained.services
        # Calls that end together, since they began together, look like the first of a queue and its shadows.
        nothing = float(np.mean(services < TOLERANCE_NS) - np.mean(raw < TOLERANCE_NS))
        little = float(np.mean((services >= TOLERANCE_NS) & (services < 2 * TOLERANCE_NS)))
        shadows = nothing > _SHADOWS and little < nothing / 4
        evidence.possible[key] = (
            explained.impossible <= _IMPOSSIBLE
            and not shadows
            and _dependence(evidence, explained)[0] < _CONTRADICTED
        )
    return evidence.possible[key]


def _better(
    evidence: Evidence, better: Explained, worse: Explained, nats: float = _NATS, errors: float = _ERRORS
) -> bool:
    gain, error = evidence.gain(better, worse)
    return gain > max(nats, errors * error)


def _as_good(evidence: Evidence, best: Explained, most: int) -> tuple[int, int]:
    """The lowest and the highest capacity that explain nearly as much."""
    assert best.capacity is not None
    edges = []
    for direction, end in ((-1, 0), (1, most)):
        good, bad, step = best.capacity, end, 1
        while abs(bad - good) > max(1, good // 100):
            tried = good + direction * step
            if (bad - tried) * direction <= 0:
                tried = (good + bad) // 2
            if _better(evidence, best, evidence.of(best.kind, tried), nats=3.0, errors=2.5):
                bad, step = tried, 1
            else:
                good, step = tried, 2 * step
        edges.append(good)
    return edges[0], edges[1]


def _least_dependent(evidence: Evidence, best: Explained, low: int, high: int) -> tuple[Explained, int, int]:
    """Of capacities that explain nearly as much, the best of those that leave least dependence on the load.

    Calls that started together are taken in an order that suits, which shifts the likelihood by a little;
    what is left of the load tells then.
    """
    assert best.capacity is not None
    near = max(2, best.capacity // 20)
    for capacity in range(max(1, best.capacity - near), best.capacity + near + 1, max(1, near // 2)):
        if capacity <= int(evidence.others.max()):
            evidence.of(best.kind, capacity)
    none = evidence.of("none")
    enough = _NEARLY * evidence.gain(best, none)[0]
    good = []
    for capacity in evidence.tried(best.kind):
        each = evidence.of(best.kind, capacity)
        shifted = best.kind == "queue" and evidence.gain(each, none)[0] >= enough
        if low <= capacity <= high or shifted:
            good += [(_dependence(evidence, each)[0], each)] if _possible(evidence, each) else []
    least = min((factor for factor, _ in good), default=1.0)
    # How fast a call is served while sharing changes little from one capacity to the next.
    free = [each for factor, each in good if factor <= least + _FREE * (1 + (best.kind == "share"))]
    if not free:
        return best, low, high
    top = max(free, key=_score)
    assert top.capacity is not None
    low, high = _as_good(evidence, top, int(evidence.others.max()) + 1)
    known = [each.capacity for each in free if each.capacity is not None and low <= each.capacity <= high]
    return top, min(known), max(known)


def _slowdown(evidence: Evidence, explained: Explained) -> float:
    """How many times its service a call took that found the capacity in use."""
    assert explained.capacity is not None
    beyond = evidence.others >= explained.capacity
    if beyond.sum() < 20:
        return 1.0
    services, durations = np.maximum(1.0, explained.services[beyond]), evidence.durations[beyond]
    if float(np.mean(durations - services)) < TOLERANCE_NS:  # what a network may add
        return 1.0
    return float(durations.sum() / services.sum())


def _dependence(evidence: Evidence, explained: Explained) -> tuple[float, int, int]:
    """The factor by which services differ with the number in flight at their start, as far as it is no
    chance; and the numbers between which they do (each call itself counted)."""
    others = evidence.others
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
    since = evidence.started - evidence.started[0]
    part = np.minimum(3, since * 4 // max(1, int(since[-1]))).astype(np.int64)
    factor, _, _ = _differ(evidence.scaled(explained.services), part, evidence.block)
    return factor


def _differ(logs: Floats, part: Ints, block: Ints) -> tuple[float, int, int]:
    """The factor by which the parts with the lowest and highest mean differ, less two standard errors; which.

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
    rated = None
    if found is None or found.errors > _CLEAR:
        rated = rate(calls, np.ones(refused.size, dtype=np.bool_))
    if found is not None and (rated is None or found.errors <= rated.errors):
        return _Refusing(found, None, True, "")
    if rated is not None:
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
    least = int(np.quantile(fewest[~refused], 0.999)) + 1
    tried = np.arange(least, max(least, int(np.quantile(others[~refused], 0.999))) + 2)
    wrong = [
        (~refused & (others >= at)).sum() + (refused & (others >= least) & (others < at)).sum()
        for at in tried
    ]
    at = int(tried[int(np.argmin(wrong))])
    above = refused & (others >= at)
    near = (others < at) & (others >= at - max(3, at // 10))
    # Near the capacity calls are accepted, at it none are.
    if above.sum() < 2 * FEWEST or not near.any() or np.mean(~refused[near]) < 0.3:
        return None
    rated = rate(calls, ~refused | (refused & (most < at)))
    if rated is None:
        return None
    return _Refusing(Threshold(at, at, at, 0.0, above), rated, True, "")


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
            capacities, identified = (limit.lowest, limit.highest), limit.highest <= MARGIN * limit.lowest + 1
            words = f"refuses above {_range(limit)} at once {seen_refused}"
            if not waiting.identified or (waiting.until or 0) < _REFUSES * limit.at:
                identified, words = False, f"{words}; {sentence}"  # it may hold some in a queue
            sentence = words
    if refusing.rate is not None:
        burst = max(1, round(refusing.rate.burst))
        rule = replace(rule, rate=refusing.rate.per_second, burst=float(burst))
        words = f"refuses above {refusing.rate.per_second:.4g} a second, {burst} at once"
        if refusing.rate.highest > _RATES * refusing.rate.lowest:
            between = f"{refusing.rate.lowest:.3g} and {refusing.rate.highest:.3g}"
            words += f" (any rate between {between} explains what was seen)"
            identified = False
        if rule.kind == "none":
            rule = replace(rule, kind="rate")
            words += f" (seen: {refusals} refusals)"
            sentence = words if identified and not warnings else f"{words}; {sentence}"
        else:
            sentence += f"; {words}"
    if refusing.words:
        warnings = (*warnings, refusing.words)
        identified = identified and refusing.known
    if waiting.until is not None and rule.kind in ("none", "rate"):
        seen = (min(seen[0], waiting.until), min(seen[1], waiting.until))
    return Finding(rule, identified, seen, capacities, sentence, warnings)


def _range(limit: Threshold) -> str:
    return f"{limit.at}" if limit.lowest == limit.highest else f"{limit.lowest} to {limit.highest}"
