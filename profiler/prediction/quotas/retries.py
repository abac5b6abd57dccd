"""How a recording's client tries model requests again: by the rule of an SDK, or not known. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median

import numpy as np

from profiler.limits.retries import RULES, RetryRule, RetryTimes
from profiler.records import Attempt, ModelCall, vendor

SLACK_NS = 50_000_000
LATE_SHARE = 0.1
"""How much longer than its rule says, and than the others, a client may have waited."""

MOST_LATE_NS = 250_000_000
"""How much longer than its rule says most waits of a busy client may be: its event loop is late."""

EARLY_NS = 2_000_000

QUANTILES = 41
"""Of how long a client takes; more would be noise."""

FEWEST = 20
"""Times of one kind from which their quantiles are taken."""

AGREE = 0.9
"""The share of waits that have to be as the rule says."""


@dataclass(frozen=True, slots=True)
class ObservedRetries:
    """How a recording's client tried model requests again.

    `rule` is the one that its waits agree with, with its number of retries; None where it is not known.
    Of `waits` between attempts `agreeing` did. `seen`: the most retries of one request; `exhausted`: requests
    were given up after so many, so that it is known that there are no more. `words`: what is not known.
    """

    rule: RetryRule | None
    waits: int = 0
    agreeing: int = 0
    seen: int = 0
    exhausted: bool = False
    words: str = ""


def observed_retries(calls: Iterable[ModelCall], retries: int | None = None) -> ObservedRetries:
    """The retry rule of the client that made these calls of one provider.

    `retries`: how many its options say, if they are known; else as many as were seen, where requests were
    given up after them, and the SDK's default where none was.
    """
    rule: RetryRule | None = None
    seen = unseen = 0
    waited: list[tuple[int, int, int]] = []
    given_up: set[int] = set()
    for call in calls:
        if not call.asked:
            continue
        rule = RULES.get(vendor(call.provider), rule)
        unseen += call.resends
        if rule is None or not call.attempts:
            continue
        seen = max(seen, len(call.attempts) - 1)
        unbounded = replace(rule, retries=len(call.attempts))
        last = call.attempts[-1]
        tried_again = unbounded.again(1, last.status, last.retry_after_ns)
        if call.status == "error" and last.status is not None and tried_again:
            given_up.add(len(call.attempts) - 1)
        for n, (one, after) in enumerate(pairwise(call.attempts), start=1):
            asked_ns = one.retry_after_ns
            waited.append(
                (after.started_ns - one.ended_ns, *((asked_ns, asked_ns) if asked_ns else rule.backoff_ns(n)))
            )
    exhausted = len(given_up) == 1
    waits, agreeing = len(waited), _agreeing(waited)
    found = ObservedRetries(None, waits, agreeing, seen, exhausted)
    if rule is None:
        return replace(found, words="the client's retries are not known: no SDK is known for this provider")
    if unseen:
        return replace(found, words=f"{unseen} tries were seen without their times: its waits are not known")
    if waits and agreeing < AGREE * waits:
        words = f"{waits - agreeing} of {waits} waits before a retry are not those of the {rule.name} SDK"
        return replace(found, words=f"{words}: the client has a retry rule of its own, which is not known")
    if len(given_up) > 1:
        counts = ", ".join(map(str, sorted(given_up)))
        return replace(found, words=f"requests were given up after {counts} retries: no one rule does so")
    count = retries
    words = ""
    if count is None:
        count = given_up.pop() if given_up else max(seen, rule.retries)
        if not exhausted:
            words = f"no request was given up: {count} retries are taken, the {rule.name} SDK's default"
            if seen > rule.retries:
                words = f"no request was given up: {count} retries are taken, the most that were seen"
    return replace(found, rule=replace(rule, retries=count), words=words)


def observed_times(processes: Iterable[Iterable[ModelCall]]) -> RetryTimes | None:
    """How long clients took with retries, from the calls of each process; None: too few were asked for."""
    late: list[int] = []
    send_gap: list[int] = []
    refusal: list[int] = []
    notice_gap: list[int] = []
    for calls in processes:
        retries, refusals = [], []
        for call in calls:
            for one, after in pairwise(call.attempts):
                if one.retry_after_ns:
                    retries.append((_sent_ns(after), one.ended_ns + one.retry_after_ns))
            refusals += [(one.ended_ns, _sent_ns(one)) for one in call.attempts if one.status == 429]
        _sort_gaps(retries, late, send_gap)
        _sort_gaps(refusals, refusal, notice_gap)
    if min(len(late), len(refusal)) < FEWEST:
        return None
    kinds = (late, send_gap, refusal, notice_gap)
    return RetryTimes(*(_quantiles(one) if len(one) >= FEWEST else () for one in kinds))


def _sort_gaps(times: list[tuple[int, int]], alone: list[int], behind: list[int]) -> None:
    """Of (when it happened, from when it could): how long it took alone, or behind the one before it."""
    times.sort()
    before = None
    for happened, could in times:
        if before is None or could > before:
            alone.append(max(0, happened - could))
        else:
            behind.append(happened - before)
        before = happened


def _quantiles(values: list[int]) -> tuple[int, ...]:
    return tuple(int(one) for one in np.quantile(values, np.linspace(0.0, 1.0, QUANTILES)))


def _sent_ns(attempt: Attempt) -> int:
    return attempt.started_ns if attempt.sent_ns is None else attempt.sent_ns


def _agreeing(waited: list[tuple[int, int, int]]) -> int:
    """How many of the waits are as a rule says; each with the shortest and the longest that it allows.

    A busy client is late, with all of them alike: it is never early.
    """
    if not waited:
        return 0
    late_ns = min(MOST_LATE_NS, max(0, int(median(wait - longest for wait, _, longest in waited))))
    return sum(
        shortest - EARLY_NS <= wait <= longest * (1 + LATE_SHARE) + SLACK_NS + 2 * late_ns
        for wait, shortest, longest in waited
    )
