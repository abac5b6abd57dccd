"""Limits from what headers state, or an option gives, and how much their buckets hold. Pure.

A bucket's size is what is left of it and what fills it until all is there again: remaining + rate · reset.
Where a server does not tell the latter, refusals do, and the most that was ever left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from profiler.limits.known import UNBOUNDED, KnownQuota
from profiler.limits.quotas import MINUTE_NS, SECOND_NS, stated
from profiler.limits.token_bucket import Resource
from profiler.prediction.quota import Limit, Request, mean, name, or_nan
from profiler.prediction.refused import lacks_of, parted

RESOURCE: dict[str, Resource] = {
    "requests": "requests",
    "tokens": "tokens",
    "input_tokens": "input-tokens",
    "output_tokens": "output-tokens",
}
"""A bucket's resource by the name that `profiler.limits.quotas` has for it."""

LEAST_REFUSED = 5
"""Fewer refusals tell no limit: any rule explains them."""


# What headers state


class _Seen(NamedTuple):
    """What the headers of one response said of one resource."""

    remaining: float | None
    reset_ns: int | None


def stated_limits(requests: Sequence[Request], given: KnownQuota | None, words: list[str]) -> list[Limit]:
    """The limits that are given, or stated in headers, in a minute; others are said in words."""
    amounts: dict[tuple[Resource, int | None], float] = {}
    unbounded = set()
    for one in requests:
        for quota in stated(one.headers) if one.headers else ():
            a_minute = quota.limit if quota.per_second is None else 60 * quota.per_second
            if not quota.limit or not a_minute:
                continue
            if a_minute >= UNBOUNDED[quota.resource]:
                unbounded.add(quota.words)
                continue
            key = RESOURCE[quota.resource], quota.window_ns
            amounts[key] = min(quota.limit, amounts.get(key, quota.limit))
    words += [f"the headers state {one}, more than anybody meets: taken for no limit" for one in unbounded]
    limits = {}
    for (resource, window_ns), amount in sorted(amounts.items(), key=lambda item: item[0][1] or 0):
        if window_ns is None and (resource, MINUTE_NS) in amounts:
            continue
        if window_ns is None or window_ns > MINUTE_NS:
            span = "a window that they do not tell" if window_ns is None else f"{window_ns / 1e9:g} s"
            words.append(
                f"the headers state {amount:,.12g} {name(resource)} in {span}: such a limit is not simulated"
            )
        elif resource not in limits:
            limits[resource] = Limit(resource, amount * MINUTE_NS / window_ns, "headers")
    if "input-tokens" in limits and "output-tokens" in limits:
        limits.pop("tokens", None)  # the sum of both, which Anthropic states beside them
    for quota in () if given is None else given.limits:
        if quota.limit and quota.window_ns == MINUTE_NS:
            limits[RESOURCE[quota.resource]] = Limit(RESOURCE[quota.resource], quota.limit, "given")
    return list(limits.values())


def _seen(requests: Sequence[Request], resource: Resource) -> list[_Seen | None]:
    found: list[_Seen | None] = []
    for one in requests:
        quotas = stated(one.headers) if one.headers else ()
        of = next((quota for quota in quotas if RESOURCE[quota.resource] == resource), None)
        found.append(None if of is None else _Seen(of.remaining, of.reset_ns))
    return found


# How much a bucket holds


def sized(limit: Limit, requests: Sequence[Request]) -> tuple[Limit | None, np.ndarray]:
    """The limit with its burst, and which refusals it explains; None where the server does not keep to it."""
    rate = limit.amount / 60
    refused = np.array([one.refused for one in requests], dtype=bool)
    seen = _seen(requests, limit.resource)
    costs = np.array([or_nan(one.cost(limit.resource)) for one in requests])
    costs[np.isnan(costs)] = mean(costs[~np.isnan(costs)])
    lacks = lacks_of(requests, costs, np.array([rate]))[:, 0]
    burst, source, why = _size_in_headers(seen, rate), limit.source, ""
    unit = max(1.0, mean(costs))
    if burst is None and refused.sum() >= LEAST_REFUSED:
        part = parted(lacks, refused, unit, rate)
        if part.fits:
            burst, source = part.size, "429s"
    if burst is None:
        burst, full = _most_left(requests, seen, costs, rate)
        source = "headers"
        if not full:
            least = "" if burst is None else f", {burst:,.6g} at least"
            burst, why = None, f"how much of it may be used at once is not known{least}"
    # A bucket lets through its burst and what it fills with. What goes beyond it by far was never held to it.
    most = limit.amount if burst is None else burst
    admitted = lacks[~refused]
    beyond = admitted > 1.1 * most + 2 * np.max(costs, initial=0.0)
    if beyond.sum() > max(3, 0.01 * len(admitted)):
        return None, np.zeros(len(requests), dtype=bool)
    explained = (
        refused & (lacks > most - max(unit / 2, 0.02 * most))
        if burst is not None
        else np.zeros(len(requests), dtype=bool)
    )
    met = explained.sum() >= 1
    if not met:
        why = f"stated, never met{f'; {why}' if why else ''}"
    return (
        replace(
            limit,
            burst=burst,
            burst_source=None if burst is None else source,
            met=bool(met),
            identified=burst is not None,
            why=why,
        ),
        explained,
    )


def _size_in_headers(seen: Sequence[_Seen | None], rate: float) -> float | None:
    """size = remaining + rate · reset, within what both were rounded by; None where responses disagree."""
    told = [(one.remaining, one.reset_ns) for one in seen if one is not None and one.remaining is not None]
    known = [(remaining, reset_ns) for remaining, reset_ns in told if reset_ns]
    if len(known) < LEAST_REFUSED:
        return None
    # In whole seconds they are those of a point in time, too, which is rounded as the response's own is.
    steps = {2 * SECOND_NS: SECOND_NS, 1_000_000: 1_000_000}
    step_ns = next((n for n, unit in steps.items() if all(ns % unit == 0 for _, ns in known)), 1)
    low = float(np.quantile([remaining + rate * (ns - step_ns) / SECOND_NS for remaining, ns in known], 0.95))
    high = float(np.quantile([remaining + 1 + rate * ns / SECOND_NS for remaining, ns in known], 0.05))
    if abs(high - low) > max(2.5, 0.04 * high):
        return None
    whole = round(low)
    return float(whole) if low - 0.01 <= whole <= high else (low + high) / 2


def _most_left(
    requests: Sequence[Request], seen: Sequence[_Seen | None], costs: np.ndarray, rate: float
) -> tuple[float | None, bool]:
    """The most that was ever left before a request, and whether the bucket was seen full with it.

    It was full where time enough had gone by to fill it further, and it held no more.
    """
    known = [
        (one.at_ns, left.remaining, left.remaining + (0 if one.refused else cost))
        for one, left, cost in zip(requests, seen, costs, strict=True)
        if left is not None and left.remaining is not None
    ]
    if not known:
        return None, False
    most = max(before for _, _, before in known)
    margin = max(2.0, 0.03 * most)
    full = 0
    for (at_ns, remaining, _), (later_ns, _, before) in pairwise(known):
        filled = remaining + rate * (later_ns - at_ns) / SECOND_NS
        full += filled > most + margin and before >= most - margin
    return most, full >= 1
