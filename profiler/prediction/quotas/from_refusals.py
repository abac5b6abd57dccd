"""Limits from what was refused: the rule that parts refused requests from admitted ones best. Pure.

With a bucket of size b that fills at rate r, what it lacks just after a request of cost c at time t is

    v = max(0, lack after the one before - r · (time since)) + c,

and the request is admitted when v ≤ b. So at the right rate the admitted are below some b and the refused
above it. For requests at once v is the number in flight with this one.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from profiler.limits.quotas import SECOND_NS
from profiler.limits.token_bucket import Resource
from profiler.prediction.quotas.finding import Limit, Request, costs_of, mean, name

WRONG = 0.1
"""The share of refusals up to which requests may be on the wrong side of a limit that 429s tell."""

WRONG_ADMITTED = 0.03
"""That of admitted ones, if it is more of them."""

MOST_LOSS = 0.4
"""The loss of each refusal up to which a rule is one: 1/8 where it is right, 1/2 where nothing parts them."""

LATE_S = 0.03
LATE_SHARE = 0.1
"""How much later than it was sent a request may come to a busy server; at most this share of a bucket."""

NEAR = 0.1
"""A rate is known from 429s if all those that explain them as well are within ± this."""

MOST_RATES = 12
"""Rates in whose surroundings a fit looks for the best."""


class Parted(NamedTuple):
    """Admitted and refused requests, parted by a `size`.

    `loss`: how far they are from the side of it that they should be on, in requests of mean cost, summed.
    `fits`: it is a rule that can have refused them.
    """

    size: float
    loss: float
    fits: bool


def lacks_of(requests: Sequence[Request], costs: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """v of the module's docstring, of each request (rows) at each rate a second (columns)."""
    lack = np.zeros(len(rates))
    found = np.empty((len(requests), len(rates)))
    before_ns = requests[0].at_ns if requests else 0
    for n, one in enumerate(requests):
        lack = np.maximum(0.0, lack - rates * ((one.at_ns - before_ns) / SECOND_NS))
        before_ns = one.at_ns
        found[n] = lack + costs[n]
        if not one.refused:
            lack = found[n]
    return found


def parted(values: np.ndarray, refused: np.ndarray, unit: float, rate: float = 0.0) -> Parted:
    """The size b that parts the v of admitted requests from those of refused ones best.

    It minimises Σ (v - b)⁺ of the admitted + Σ (b - v)⁺ of the refused, so that one admitted a little too
    early (it came later than it was sent) weighs little. A refused one should be above it by half a request:
    else a rate at which no bucket is ever used would explain every refusal.
    """
    order = np.argsort(values, kind="stable")
    ordered, marks = values[order], refused[order]
    below = np.concatenate(([0], np.cumsum(marks)))
    above = np.concatenate(([(~marks).sum()], (~marks).sum() - np.cumsum(~marks)))
    k = int(np.argmax(below >= above))
    edges = ordered[max(0, k - 1)], ordered[min(k, len(ordered) - 1)]
    size = float(sum(edges) / 2)
    return _parted_at(size, values, refused, unit, min(rate * LATE_S, LATE_SHARE * size))


def _parted_at(
    size: float, values: np.ndarray, refused: np.ndarray, unit: float, slack: float = 0.0
) -> Parted:
    """`slack`: how far a request may be on the wrong side since its time is not exactly known."""
    early, late = values[~refused] - size, size - values[refused]
    loss = (np.maximum(0.0, early).sum() + np.maximum(0.0, unit / 2 + late).sum()) / unit
    # The first asks for the right side, near or far; the second for a difference where all are near.
    few = _are_few(early > max(unit, slack), late > max(unit / 2, slack))
    return Parted(size, float(loss), few and bool(loss <= MOST_LOSS * refused.sum() * max(1.0, slack / unit)))


def _are_few(admitted: np.ndarray, refused: np.ndarray) -> bool:
    """Whether few of both are on the wrong side of a limit, so that it can have been what refused."""
    beyond = max(WRONG * len(refused), WRONG_ADMITTED * len(admitted))
    return bool(len(refused) and admitted.sum() <= beyond and refused.sum() <= WRONG * len(refused))


def from_refusals(
    requests: Sequence[Request], left: np.ndarray, known: set[Resource], resources: Sequence[Resource]
) -> tuple[Limit, np.ndarray] | None:
    """The limit that explains most of the refusals that are left; None where none does."""
    refused = np.array([one.refused for one in requests], dtype=bool)
    looked = left | ~refused  # those that another limit explains say nothing
    found: list[tuple[float, Limit, np.ndarray]] = []
    if "concurrent" not in known:
        found += _at_once(requests, left, looked)
    for resource in resources:
        if resource not in known:
            found += _bucket(resource, requests, left, looked)
    if not found:
        return None
    least = min(loss for loss, _, _ in found)
    alike = [one for one in found if one[0] <= 1.3 * least + 1]
    _, limit, explained = alike[0]  # of requests that all take the same, those rather than their tokens
    others = [name(one.resource) for _, one, _ in alike[1:]]
    if others:
        why = f"a limit of {' or '.join(others)} explains the 429s as well"
        limit = replace(limit, identified=False, why="; ".join(filter(None, (limit.why, why))))
    return limit, explained


def _in_flight(requests: Sequence[Request], late_ns: int = 0) -> np.ndarray:
    """Requests that the server has, with this one, when each comes.

    `late_ns`: for so much longer than the server the client may have taken a request to be under way, or for
    as long as it was too busy to notice its end. 0 takes the recorded ends.
    """
    ends: list[int] = []
    found = np.empty(len(requests))
    for n, one in enumerate(requests):
        while ends and ends[0] <= one.at_ns:
            heapq.heappop(ends)
        found[n] = len(ends) + 1
        if not one.refused:
            heapq.heappush(ends, one.ended_ns - (max(late_ns, one.late_ns) if late_ns else 0))
    return found


def _at_once(
    requests: Sequence[Request], left: np.ndarray, looked: np.ndarray
) -> list[tuple[float, Limit, np.ndarray]]:
    admitted = looked & ~left
    most = _in_flight(requests)[left]
    least = _in_flight(requests, int(LATE_S * SECOND_NS))[admitted]
    counts = range(1, int(most.max(initial=1)) + 1)  # whole: between two of them there is nothing to part
    plain = _in_flight(requests)[admitted]
    amount = min(
        counts, key=lambda count: ((least > count).sum() + (most <= count).sum(), (plain > count).sum())
    )
    if not _are_few(least > amount, most <= amount):
        return []
    loss = float(np.maximum(0.0, plain - amount).sum() + np.maximum(0.0, amount + 1 - most).sum())
    # A bucket that is right has a loss too: its refusals are anywhere in the half of a request above b.
    loss += left.sum() / 8
    explained = left.copy()
    explained[left] = most > amount
    return [(loss, Limit("concurrent", amount, "429s", met=True), explained)]


def _bucket(
    resource: Resource, requests: Sequence[Request], left: np.ndarray, looked: np.ndarray
) -> list[tuple[float, Limit, np.ndarray]]:
    known = [
        one.cost(resource) is not None for one, look in zip(requests, looked & ~left, strict=True) if look
    ]
    if sum(known) < 0.5 * len(known):  # of one that was never admitted nobody knows its tokens
        return []
    costs = costs_of(requests, resource)
    unit = mean(costs)
    if unit <= 0:
        return []
    rates = _saturated_rates(requests, costs, left)
    tried: list[tuple[float, float, Parted, np.ndarray]] = []
    # Of a bucket that holds next to nothing the rate may be higher: it is full again before each request.
    rates = np.concatenate(
        [*(rate * np.geomspace(0.97, 1.03, 41) for rate in rates), max(rates) * np.geomspace(1.03, 8, 60)]
    )
    step = 1.03 ** (1 / 20)
    for _ in range(3):  # each time closer to the best
        values = lacks_of(requests, costs, rates)
        parts = [parted(values[looked, n], left[looked], unit, rates[n]) for n in range(len(rates))]
        tried += [(part.loss, float(rates[n]), part, values[:, n]) for n, part in enumerate(parts)]
        best = min(tried, key=lambda one: one[0])
        rates = best[1] * np.geomspace(1 / step, step, 21)
        step = max(1.0005, step**0.2)
    loss, rate, part, lacks = best
    if not part.fits:
        return []
    good = [one[1] for one in tried if one[2].fits and one[0] <= 1.3 * loss + 1]
    low, high = 60 * min(good), 60 * max(good)
    sure = low >= (1 - NEAR) * 60 * rate and high <= (1 + NEAR) * 60 * rate
    why = "" if sure else f"from {low:,.4g} to {high:,.4g} a minute explain the 429s as well"
    limit = Limit(resource, 60 * rate, "429s", part.size, "429s", True, sure, low, high, why)
    return [(loss, limit, left & (lacks > part.size - 0.5 * unit))]


def _saturated_rates(requests: Sequence[Request], costs: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Rates a second at which the bucket may fill, from what was admitted between two refusals.

    At both the bucket had less than a request's cost c, so that A = r·Δ ± c was admitted in the time Δ
    between them, unless it was full meanwhile: then A is less. So the rate is near the largest (A - c) / Δ,
    which is looked for at each distance: too short a time is too sensitive to when a request came.
    """
    at = np.array([one.at_ns for one in requests], dtype=np.int64)
    admitted = np.where([one.refused for one in requests], 0.0, costs)
    total = np.cumsum(admitted)
    found = [float(total[-1] * SECOND_NS / max(1, at[-1] - at[0]))]  # no more is known of a few
    total = total[left]
    times, unit = at[left] / SECOND_NS, float(np.mean(costs))
    distance = 1
    while distance < len(times):
        amounts, spans = total[distance:] - total[:-distance], times[distance:] - times[:-distance]
        enough = (amounts >= 10 * unit) & (spans > 0)
        if enough.any():
            rate = float(np.max((amounts[enough] - unit) / spans[enough]))
            if all(abs(rate / other - 1) > 0.02 for other in found):
                found.append(rate)
        distance = max(distance + 1, int(distance * 1.5))
    return np.array(sorted(found)[-MOST_RATES:])
