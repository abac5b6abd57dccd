"""Limits from what headers state, or an option gives, and how much their buckets hold. Pure.

A bucket's size is what is left of it and what fills it until all is there again: remaining + rate · reset.
Where a server does not tell the latter, refusals do, and the most that was ever left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from profiler.limits.known import UNBOUNDED, KnownQuota
from profiler.limits.quotas import MINUTE_NS, MONTH_NS, SECOND_NS, WINDOWS, Quota, stated, window_words
from profiler.limits.token_bucket import Resource
from profiler.prediction.quotas.finding import Limit, Request, Source, costs_of, mean, name
from profiler.prediction.quotas.from_refusals import lacks_of, parted

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


Stated = Sequence[tuple[Quota, ...]]
"""The quotas that each response stated."""


def read_headers(requests: Sequence[Request]) -> Stated:
    """The quotas that the response to each request states."""
    return [stated(one.headers) if one.headers else () for one in requests]


def stated_limits(
    requests: Sequence[Request], headers: Stated, given: KnownQuota | None, words: list[str]
) -> list[Limit]:
    """The limits that are given, or stated in headers, in a minute; others are said in words."""
    amounts: dict[tuple[Resource, int | None], float] = {}
    unbounded = set()
    for quotas in headers:
        for quota in quotas:
            a_minute = quota.limit if quota.per_second is None else 60 * quota.per_second
            if not quota.limit or not a_minute:
                continue
            if a_minute >= UNBOUNDED[quota.resource]:
                unbounded.add(f"{quota.limit:,.12g} {name(RESOURCE[quota.resource])}")
                continue
            key = RESOURCE[quota.resource], quota.window_ns
            amounts[key] = min(quota.limit, amounts.get(key, quota.limit))
    words += [
        f"the headers state {one}, more than anybody meets: taken for no limit" for one in sorted(unbounded)
    ]
    limits: dict[Resource, Limit] = {}
    for (resource, named_ns), amount in sorted(amounts.items(), key=lambda item: item[0][1] or MONTH_NS):
        if named_ns is None and resource in limits:
            continue  # another response tells it
        window_ns = named_ns or _shown_window(requests, headers, resource, amount)
        if window_ns is None or window_ns > MINUTE_NS:
            within = "in a window that cannot be told" if window_ns is None else window_words(window_ns)
            words.append(f"the headers state {amount:,.12g} {name(resource)} {within}: it is not simulated")
        elif resource not in limits:
            limits[resource] = Limit(resource, amount * MINUTE_NS / window_ns, "headers")
    if "input-tokens" in limits and "output-tokens" in limits:
        limits.pop("tokens", None)  # the sum of both, which Anthropic states beside them
    for quota in () if given is None else given.limits:
        if quota.limit and quota.window_ns == MINUTE_NS:
            limits[RESOURCE[quota.resource]] = Limit(RESOURCE[quota.resource], quota.limit, "given")
    return list(limits.values())


def _shown_window(
    requests: Sequence[Request], headers: Stated, resource: Resource, amount: float
) -> int | None:
    """The window of a limit whose headers have none, from how fast what is left grows again.

    What is left, and all that was taken before, grow by rate · Δ together unless the bucket is full
    meanwhile. Over less than a second, when a request came is not known well enough.
    """
    costs, times, totals, total = costs_of(requests, resource), [], [], 0.0
    for one, cost, left in zip(requests, costs, _left(headers, resource), strict=True):
        total += 0.0 if one.refused else cost
        if left is not None and left.remaining is not None:
            times.append(one.at_ns / SECOND_NS)
            totals.append(left.remaining + total)
    at, taken, unit = np.array(times), np.array(totals), max(1.0, mean(costs))
    shown = 0.0
    distance = 1
    while distance < len(at):
        grown, spans = taken[distance:] - taken[:-distance], at[distance:] - at[:-distance]
        enough = (grown >= 10 * unit) & (spans >= 1)
        if enough.any():
            shown = max(shown, float(np.max((grown[enough] - 2 * unit) / spans[enough])))
        distance = max(distance + 1, int(distance * 1.5))
    rates = {ns: amount * SECOND_NS / ns for ns in WINDOWS.values()}
    return next((ns for ns, rate in rates.items() if 0.5 * rate <= shown <= 1.2 * rate), None)


def _left(headers: Stated, resource: Resource) -> list[Quota | None]:
    """What each response says of a resource."""
    return [next((one for one in quotas if RESOURCE[one.resource] == resource), None) for quotas in headers]


# How much a bucket holds


def sized(limit: Limit, requests: Sequence[Request], headers: Stated) -> tuple[Limit | None, np.ndarray]:
    """The limit with its burst, and which refusals it explains; None where the server does not keep to it."""
    rate = limit.amount / 60
    refused = np.array([one.refused for one in requests], dtype=bool)
    seen = _left(headers, limit.resource)
    costs = costs_of(requests, limit.resource)
    lacks = lacks_of(requests, costs, np.array([rate]))[:, 0]
    unit = max(1.0, mean(costs))
    most_left, full = _most_left(requests, seen, costs, rate)
    source: Source = "headers"
    burst, why = _size_in_headers(seen, rate, most_left if full else None), ""
    if burst is None and refused.sum() >= LEAST_REFUSED:
        part = parted(lacks, refused, unit, rate)
        if part.fits:
            burst, source = part.size, "429s"
    if burst is None and full:
        burst = most_left
    elif burst is None:
        least = "" if most_left is None else f", {most_left:,.6g} at least"
        why = f"how much of it may be used at once is not known{least}"
    # A bucket lets through its burst and what it fills with. What goes beyond it by far was never held to it.
    most = limit.amount if burst is None else burst
    admitted = lacks[~refused]
    beyond = admitted > 1.1 * most + 2 * np.max(costs, initial=0.0)
    if beyond.sum() > max(3, 0.01 * len(admitted)):
        return None, np.zeros(len(requests), dtype=bool)
    explained = refused & (lacks > most - max(unit / 2, 0.02 * most)) & (burst is not None)
    for n in np.flatnonzero(refused).tolist():
        left, cost = seen[n], requests[n].cost(limit.resource)
        if left is not None and left.remaining is not None and cost is not None:
            explained[n] = left.remaining < cost  # the server's own word
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


def _size_in_headers(seen: Sequence[Quota | None], rate: float, full: float | None) -> float | None:
    """size = remaining + rate · reset, within what both were rounded by; None where responses disagree.

    `full`: what was left in a bucket that looked full, which is exact.
    """
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
    if full is not None and low - 1 <= full <= high + 1:
        return full
    whole = round(low)
    return float(whole) if low - 0.01 <= whole <= high <= low + 2.5 else (low + high) / 2


def _most_left(
    requests: Sequence[Request], seen: Sequence[Quota | None], costs: np.ndarray, rate: float
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
    most = float(max(before for _, _, before in known))
    margin = max(2.0, 0.03 * most)
    full = 0
    for (at_ns, remaining, _), (later_ns, _, before) in pairwise(known):
        filled = remaining + rate * (later_ns - at_ns) / SECOND_NS
        full += filled > most + margin and before >= most - margin
    return most, full >= 1
