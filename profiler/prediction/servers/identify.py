"""How one server behaves under load, from what its clients saw; or that they did not see it.

A rule is named only when the recording went past it: calls waited, shared or were refused, the rule explains
them much better than any other does, and what it leaves as service does not depend on the load. What is left
open is in the sentence. The rules are in `calls`, how they are compared in `likelihood` and `refusals`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from profiler.prediction.servers.calls import Calls, Ints, Rule, in_flight
from profiler.prediction.servers.queueing import MARGIN, Waiting, waiting
from profiler.prediction.servers.refusals import Refusing, Threshold, refusing

FEWEST_CALLS = 50
"""Accepted calls from which anything is said."""
_RATES = 1.05
"""A rate is identified when those that explain as much are within this factor of each other."""


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


def identify(calls: Calls, *, seed: int = 0) -> Finding:
    """The rule that explains the calls of one server best, if one does.

    `seed` orders calls that started at the same instant: as far as anyone knows, any may have come first.
    """
    mixed = np.random.default_rng(seed).permutation(calls.started.size)
    calls = calls.chosen(mixed)
    taken, served = ~calls.refused, calls.at_server()
    seen = _seen(in_flight(served)[taken])
    if taken.sum() < FEWEST_CALLS:
        few = f"only {int(taken.sum())} calls were accepted: nothing is known of what it does under load"
        return Finding(Rule("none"), False, seen, None, few, ())
    refusals = int(calls.refused.sum())
    return _together(waiting(served, taken), refusing(calls, in_flight(calls)), seen, refusals)


def _seen(others: Ints) -> tuple[float, float]:
    if not others.size:
        return (0.0, 0.0)
    enough = max(20, others.size // 500)
    number = np.sort(others) + 1
    return (float(number[0]), float(number[max(0, number.size - enough)]))


def _together(waits: Waiting, refuses: Refusing, seen: tuple[float, float], refusals: int) -> Finding:
    warnings = waits.warnings
    rule = Rule(waits.kind, waits.capacity)
    sentence, capacities, identified = waits.sentence, waits.capacities, waits.identified
    limit = refuses.threshold
    if limit is not None:
        seen_refused = f"(seen: {int(limit.explains.sum())} refusals with {limit.at} or more in flight)"
        if rule.capacity is not None and rule.capacity < limit.at:
            rule = replace(rule, queue=limit.at - rule.capacity)
            sentence += f"; refuses above {limit.at} at once {seen_refused}"
        else:
            rule = Rule("refuse", limit.at)
            capacities, identified = (limit.lowest, limit.highest), limit.highest <= MARGIN * limit.lowest + 1
            words = f"refuses above {_range(limit)} at once {seen_refused}"
            if not waits.identified:
                identified, words = False, f"{words}; {sentence}"  # it may hold some in a queue
            sentence = words
    if refuses.rate is not None:
        burst = max(1, round(refuses.rate.burst))
        rule = replace(rule, rate=refuses.rate.per_second, burst=float(burst))
        words = f"refuses above {refuses.rate.per_second:.4g} a second, {burst} at once"
        if refuses.rate.highest > _RATES * refuses.rate.lowest:
            between = f"{refuses.rate.lowest:.3g} and {refuses.rate.highest:.3g}"
            words += f" (any rate between {between} explains what was seen)"
            identified = False
        if rule.kind == "none":
            rule = replace(rule, kind="rate")
            words += f" (seen: {refusals} refusals)"
            sentence = words if identified and not warnings else f"{words}; {sentence}"
        else:
            sentence += f"; {words}"
    if not refuses.known:  # the reason why nothing is, so first
        identified, sentence = False, f"{refuses.words}; {sentence}"
    if waits.until is not None and rule.kind in ("none", "rate"):
        seen = (min(seen[0], waits.until), min(seen[1], waits.until))
    return Finding(rule, identified, seen, capacities, sentence, warnings)


def _range(limit: Threshold) -> str:
    return f"{limit.at}" if limit.lowest == limit.highest else f"{limit.lowest} to {limit.highest}"
