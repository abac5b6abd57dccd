"""Whether the accepted calls of a server queue or share, and for what capacity.

How well a rule explains them is in `likelihood`, what it leaves of the load in `dependence`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from profiler.prediction.servers.calls import Bools, Calls, Kind
from profiler.prediction.servers.dependence import changes, dependence
from profiler.prediction.servers.likelihood import TOLERANCE_NS, Evidence, Explained, View

SLOWER = 1.10
"""A queue or a share is named where calls beyond its capacity took this many times their service or more."""
UNEXPLAINED = 1.15
"""Services that differ by this factor with the load, or over the recording, are not explained."""
MARGIN = 1.3
"""A capacity is identified when those that explain as much are within this factor of each other."""
_NATS = 8.0
"""A rule is better than another when the log likelihood of the calls is higher by this and by `_ERRORS`."""
_LEAST = 5.0
"""The same where only part of the evidence counts."""
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
_FEWEST_BESIDE = 20
_BESIDE = 0.05
"""Calls beyond a shared capacity that must have come beside those of other loops: so many, and this share."""
_NEARLY = 0.95
"""A capacity explains nearly as much as the best with this share of its gain over none."""
_FREE = 0.03
"""Dependence on the load that is this much more than another's, as a factor, tells."""
_KINDS: tuple[Kind, ...] = ("queue", "share")
_COARSE = 14


@dataclass(frozen=True, slots=True)
class Waiting:
    """What the accepted calls say: `kind` is none, queue or share."""

    kind: Kind
    capacity: int | None
    capacities: tuple[int, int] | None
    identified: bool
    sentence: str
    warnings: tuple[str, ...]
    until: int | None = None


def waiting(calls: Calls, taken: Bools) -> Waiting:
    evidence = Evidence.of_calls(calls.chosen(taken))
    most = int(evidence.others.max()) + 1
    best = _best(evidence, _KINDS, most)
    if changes(evidence, best or evidence.of("none")) > UNEXPLAINED:
        # What changes over the recording must not be taken for what changes with the load.
        evidence.view = "stretch" if evidence.repeated is None else "drift"
        best = _best(evidence, _KINDS, most)
    none = evidence.of("none")
    if (
        best is None
        or not _better(evidence, best, none, _nats(evidence, best))
        or not _where_it_differs(evidence, best)
        or _slowdown(evidence, best) < SLOWER
    ):
        return _no_waiting(evidence, most)
    best, low, high = _least_dependent(evidence, best, *_as_good(evidence, best, most))
    return _named(evidence, best, low, high, most)


def _where_it_differs(evidence: Evidence, best: Explained) -> bool:
    """Whether the rule explains the calls that waited or shared, too. Else its gain is of the others, whose
    services are the same: they may fall into the bins of the histogram by luck."""
    gain, error = evidence.gain(best, evidence.of("none"), touched=True)
    return gain > max(_LEAST, 2 * error)


def _named(evidence: Evidence, best: Explained, low: int, high: int, most: int) -> Waiting:
    """Whether the best rule is the server's; `low` to `high` are the capacities that explain as much."""
    kind, capacity = best.kind, best.capacity
    assert capacity is not None  # only none is without
    what = _words(kind, low, high)
    warnings: tuple[str, ...] = ()
    doubt = _other_reason(evidence, best)
    drift = changes(evidence, evidence.of("none") if doubt else best)
    if drift > UNEXPLAINED:
        warnings = (f"its times change over the recording (drift): x {drift:.2f}",)
    if doubt:
        return Waiting(kind, capacity, (low, high), False, f"{doubt}: {what} would explain it", warnings)
    if evidence.gain_apart_from_standstills(best, evidence.of("none")) <= 0:
        text = "stood still for a while now and then: calls waited for that, and no rule is known"
        return Waiting("none", None, None, False, text, (*warnings, "stands still now and then"))
    factor, at_low, at_high = dependence(evidence, best)
    free = evidence.by_load(int(evidence.others.max()))
    if factor > UNEXPLAINED or not _better(evidence, best, free, nats=5.0, errors=2.0):
        raw, _, _ = dependence(evidence, evidence.of("none"))
        slower = _slower(raw, at_low, at_high)
        text = f"slower with load, but neither a queue nor sharing explains it ({what} comes nearest)"
        return Waiting("none", None, None, False, text, (*warnings, slower))
    other = _best(evidence, ("share",) if kind == "queue" else ("queue",), most)
    if other is not None and not _better(evidence, best, other, _nats(evidence, best, 5.0), errors=3.0):
        text = f"{what}, or {_words(other.kind, other.capacity, other.capacity)}: what was seen fits both"
        return Waiting(kind, capacity, (low, high), False, text, warnings)
    if high > MARGIN * low + 1:
        text = f"{what}: which, the recording does not tell"
        return Waiting(kind, capacity, (low, high), False, text, warnings)
    nearer = _nearer_within_stretches(evidence, best, most)
    if nearer is not None:
        low, high = min(low, nearer), max(high, nearer)
        text = f"{_words(kind, low, high)}: which, its times that change over the recording do not tell"
        return Waiting(kind, capacity, (low, high), False, text, warnings)
    beyond = int((evidence.others >= capacity).sum())
    text = f"{what} (seen: {beyond} calls came when {capacity} or more were in flight)"
    return Waiting(kind, capacity, (low, high), True, text, warnings)


def _other_reason(evidence: Evidence, best: Explained) -> str:
    """What the times may differ for, where the load is not what they must differ for; empty if it is."""
    if not _apart(evidence, best, "stretch"):
        if evidence.repeated is None:
            return (
                "slower later or under more load, which are not told apart (record every level twice: "
                "--blocks 2 or more)"
            )
        if not all(_apart(evidence, best, view) for view in ("drift", "steps")):
            return "slower at some times or under more load, which are not told apart"
    if evidence.own is not None and best.capacity is not None:
        if not _apart(evidence, best, "own"):
            return (
                "slower in loops with more calls at once or under more load, which are not told apart "
                "(record more agents at once)"
            )
        beyond = evidence.others >= best.capacity
        beside = beyond & (evidence.others > evidence.own.in_flight)
        # In a queue, calls of one loop that began together end one after another: that is no loop's own way.
        if best.kind == "share" and beside.sum() < max(_FEWEST_BESIDE, _BESIDE * beyond.sum()):
            return (
                "slower beside calls of the same loop, and hardly any came beside those of others (record "
                "several agents at once)"
            )
    return ""


def _nearer_within_stretches(evidence: Evidence, best: Explained, most: int) -> int | None:
    """The capacity that explains what happens within stretches of time clearly better, if one does.

    Drift of the whole recording shifts the capacity that explains the whole best, and no other.
    """
    assert best.capacity is not None
    tried = [c for c in evidence.tried(best.kind) if best.capacity / 2 <= c <= 2 * best.capacity]
    tried += [c for c in (best.capacity - 1, best.capacity + 1) if 1 <= c < most]
    own = evidence.of(best.kind, best.capacity, view="stretch")
    found = [evidence.of(best.kind, each, view="stretch") for each in tried]
    top = max(found, key=_score)
    far = top.capacity is not None and abs(top.capacity - best.capacity) > max(1, best.capacity // 20)
    return top.capacity if far and _better(evidence, top, own, _LEAST, errors=2.5) else None


def _apart(evidence: Evidence, best: Explained, view: View) -> bool:
    """Whether the rule explains more than none without what the view takes out; in two blocks, if levels were
    repeated in several."""
    rule, none = (evidence.of(*key, view=view) for key in ((best.kind, best.capacity), ("none", None)))
    if not _better(evidence, rule, none, _LEAST, errors=3.0):
        return False
    if evidence.repeated is None:
        return True
    gains = np.bincount(evidence.repeated.block, weights=rule.likelihood - none.likelihood)
    return int((gains > 0).sum()) > 1


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


def _no_waiting(evidence: Evidence, most: int) -> Waiting:
    factor, low, high = dependence(evidence, evidence.of("none"))
    drift = changes(evidence, evidence.of("none"))
    warnings = []
    if drift > UNEXPLAINED:
        warnings.append(f"its times change over the recording (drift): x {drift:.2f}")
    if factor > UNEXPLAINED:
        warnings.append(_slower(factor, low, high))
        text = "slower with load, but neither a queue nor sharing explains it"
        if drift > UNEXPLAINED:
            text = (
                "slower later or under more load, which are not told apart (record every level twice: "
                "--blocks 2 or more)"
            )
        return Waiting("none", None, None, False, text, tuple(warnings))
    until = _excluded(evidence, most)
    text = f"never more than {most} in flight: no slower up to there, and nothing is known above"
    if until < most:
        text = f"no slower up to {until} in flight; too few calls went above that to tell"
    return Waiting("none", None, None, True, text, tuple(warnings), until)


def _excluded(evidence: Evidence, most: int) -> int:
    """The number in flight up to which calls are known not to wait: any lower capacity would have shown."""
    none = evidence.of("none")

    def excluded(capacity: int) -> bool:
        rules = [evidence.of(kind, capacity) for kind in _KINDS]
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
            and dependence(evidence, explained)[0] < _CONTRADICTED
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
            good += [(dependence(evidence, each)[0], each)] if _possible(evidence, each) else []
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


def _words(kind: Kind, low: int | None, high: int | None) -> str:
    count = f"{low}" if low == high else f"{low} to {high}"
    if kind == "queue":
        return f"queues above {count} at once"
    return f"shares the capacity of {count} among all"
