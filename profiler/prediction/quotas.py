"""The quotas of a model's server, from the requests of a recording. Pure.

Two sources tell of them. Headers state limits, and with what is left and when all is there again how much a
bucket holds: size = remaining + rate · reset. Requests that were refused tell the same without headers. With
a bucket of size b that fills at rate r, what it lacks just after a request of cost c at time t is

    v = max(0, lack after the one before - r · (time since)) + c,

and the request is admitted when v ≤ b. So for each rate the admitted have to be below some b and the refused
above it; the rate and the size are those under which the fewest are on the wrong side. For requests at once
v is the number in flight with this one.

A limit that nobody met is known from headers alone, and one that no header states and nobody met not at all.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

from profiler.limits.known import UNBOUNDED, KnownQuota
from profiler.limits.quotas import MINUTE_NS, SECOND_NS, stated
from profiler.limits.token_bucket import Bucket, QuotaRefusal, QuotaState, Resource
from profiler.records import ModelCall, limited_input_tokens

Source = Literal["headers", "429s", "given"]

RESOURCE: dict[str, Resource] = {
    "requests": "requests",
    "tokens": "tokens",
    "input_tokens": "input-tokens",
    "output_tokens": "output-tokens",
}
"""A bucket's resource by the name that `profiler.limits.quotas` has for it."""

WRONG = 0.1
"""The share of refusals up to which requests may be on the wrong side of a limit that 429s tell."""

LEAST_REFUSED = 5
"""Fewer refusals tell no limit: any rule explains them."""

NEAR = 0.1
"""A rate is known from 429s if all those that explain them as well are within ± this."""

MOST_FITTED = 40_000
"""Requests that a fit looks at, those with the most refusals among them."""


@dataclass(frozen=True, slots=True)
class Request:
    """One try of a model request that reached the server; it came there at `at_ns` and ended at `ended_ns`.

    Tokens are those that count against the limits; of a try that was refused, those of its call, which None
    says are not known.
    """

    at_ns: int
    ended_ns: int
    refused: bool
    input_tokens: int | None = None
    output_tokens: int | None = None
    headers: dict[str, str] | None = None
    retry_after_ns: int | None = None

    def cost(self, resource: Resource) -> float | None:
        """What it takes of a bucket; None where that is not known."""
        if resource == "requests":
            return 1.0
        if resource == "input-tokens":
            return self.input_tokens
        if resource == "output-tokens":
            return self.output_tokens
        if self.input_tokens is None or self.output_tokens is None:
            return None
        return self.input_tokens + self.output_tokens


def requests_of(calls: Iterable[ModelCall]) -> list[Request]:
    """The tries of model calls in the order in which the server saw them.

    Those without a response are left out: nothing says that they came there. 429s are refusals; a 529 is not:
    it tells of the server's own load, whatever this key has left.
    """
    found = []
    for call in calls:
        read = limited_input_tokens(call.provider, call.input_tokens, call.cached_tokens)
        found += [
            Request(
                at_ns=one.started_ns if one.sent_ns is None else one.sent_ns,
                ended_ns=one.ended_ns,
                refused=one.status == 429,
                input_tokens=read,
                output_tokens=call.output_tokens,
                headers=one.rate_limits,
                retry_after_ns=one.retry_after_ns,
            )
            for one in call.attempts
            if one.status is not None and one.status not in (401, 403, 404)
        ]
    return sorted(found, key=lambda request: request.at_ns)


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit of one resource: `amount` a minute of 60 s, or at once for `concurrent`.

    `burst`: what a full bucket holds; None where it is not known, and for `concurrent`. `low` and `high`:
    amounts that explain what was seen as well. `met`: requests were refused by it. `identified`: amount and
    burst are known; `why` says in words what is not.
    """

    resource: Resource
    amount: float
    source: Source
    burst: float | None = None
    burst_source: Source | None = None
    met: bool = False
    identified: bool = True
    low: float | None = None
    high: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Announced:
    """The wait that a refusal announces as Retry-After.

    `kind`: `exact` (until the request would pass, to the millisecond), `seconds` (the same in whole seconds,
    rounded up), `constant` (always `ns`), `none`. Where the limit is one of requests at once, no time is
    known, and it is always `concurrent_ns` (None: nothing is announced).
    """

    kind: Literal["exact", "seconds", "constant", "none"] = "none"
    ns: int = 0
    concurrent_ns: int | None = None

    def wait_ns(self, refusal: QuotaRefusal) -> int | None:
        """What the client is told; None for nothing."""
        if refusal.resource == "concurrent":
            return self.concurrent_ns
        if self.kind == "exact":
            return -(-refusal.retry_ns // 1_000_000) * 1_000_000
        if self.kind == "seconds":
            return -(-refusal.retry_ns // SECOND_NS) * SECOND_NS
        return self.ns if self.kind == "constant" else None


@dataclass(frozen=True, slots=True)
class QuotaFinding:
    """The quotas of one server, as far as a recording tells.

    `requests` came there and `refused` of them were refused; `unexplained` of these by none of the `limits`,
    and a simulation of the same requests refuses `simulated`. `words`: what is not known, a sentence each.
    """

    limits: tuple[Limit, ...] = ()
    announced: Announced = Announced()
    requests: int = 0
    refused: int = 0
    unexplained: int = 0
    simulated: int = 0
    words: tuple[str, ...] = ()

    def of(self, resource: Resource) -> Limit | None:
        """The limit of a resource; None without one."""
        return next((limit for limit in self.limits if limit.resource == resource), None)

    def state(self, now_ns: int) -> QuotaState:
        """A server with these limits, of which nothing is used yet.

        A bucket of unknown size holds a minute's worth, as the documents of most providers have it.
        """
        buckets, concurrent = [], None
        for limit in self.limits:
            if limit.resource == "concurrent":
                concurrent = int(limit.amount)
            else:
                size = limit.amount if limit.burst is None else limit.burst
                buckets.append(Bucket(limit.resource, limit.amount, size, MINUTE_NS, now_ns))
        return QuotaState(buckets, concurrent)


def fit_quotas(calls: Iterable[ModelCall], given: KnownQuota | None = None) -> QuotaFinding:
    """The quotas that the requests of one server show. `given` goes before what its headers state."""
    requests = _looked_at(requests_of(calls))
    refused = [one.refused for one in requests]
    words: list[str] = []
    limits: list[Limit] = []
    left = np.array(refused, dtype=bool)  # refusals that nothing explains yet
    for limit in _stated(requests, given, words):
        fitted, explained = _sized(limit, requests)
        if fitted is None:
            words.append(
                f"the {_name(limit.resource)} limit of {limit.amount:,.12g} a minute is {_of(limit.source)}, but "
                "the server admitted far more than that: it is left out"
            )
            continue
        limits.append(fitted)
        left &= ~explained
    known = {limit.resource for limit in limits}
    while left.sum() >= max(LEAST_REFUSED, 0.05 * sum(refused)):
        found = _from_refusals(requests, left, known)
        if found is None:
            break
        limit, explained = found
        limits.append(limit)
        known.add(limit.resource)
        left &= ~explained
    announced = _announced(requests, limits)
    finding = QuotaFinding(
        tuple(limits), announced, len(requests), sum(refused), int(left.sum()), 0, tuple(words)
    )
    simulated = sum(one is not None for one in simulated_refusals(finding, requests))
    return replace(finding, simulated=simulated, words=(*words, *_unknown(finding)))


def simulated_refusals(finding: QuotaFinding, requests: Sequence[Request]) -> list[QuotaRefusal | None]:
    """What a server with these limits would have answered to the same requests at the same times.

    What was refused in the recording and is admitted here takes as long as those admitted there.
    """
    if not requests:
        return []
    state = finding.state(requests[0].at_ns)
    served = [one for one in requests if not one.refused]
    usual_ns = int(np.median([one.ended_ns - one.at_ns for one in served])) if served else 0
    read = _mean([one.input_tokens for one in requests])
    written = _mean([one.output_tokens for one in requests])
    ends: list[int] = []
    answers: list[QuotaRefusal | None] = []
    for one in requests:
        while ends and ends[0] <= one.at_ns:
            heapq.heappop(ends)
            state.release()
        answer = state.admit(
            read if one.input_tokens is None else one.input_tokens,
            written if one.output_tokens is None else one.output_tokens,
            one.at_ns,
        )
        answers.append(answer)
        if answer is None:
            heapq.heappush(ends, one.at_ns + usual_ns if one.refused else one.ended_ns)
    return answers


# What headers state


class _Seen(NamedTuple):
    """What the headers of one response said of one resource."""

    remaining: float | None
    reset_ns: int | None


def _stated(requests: Sequence[Request], given: KnownQuota | None, words: list[str]) -> list[Limit]:
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
    words += [f"the headers state {one}, more than anybody meets: it is taken for no limit" for one in unbounded]
    limits = {}
    for (resource, window_ns), amount in sorted(amounts.items(), key=lambda item: item[0][1] or 0):
        if window_ns is None and (resource, MINUTE_NS) in amounts:
            continue
        if window_ns is None or window_ns > MINUTE_NS:
            span = "a window that they do not tell" if window_ns is None else f"{window_ns / 1e9:g} s"
            words.append(
                f"the headers state {amount:,.12g} {_name(resource)} in {span}: such a limit is not simulated"
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


def _sized(limit: Limit, requests: Sequence[Request]) -> tuple[Limit | None, np.ndarray]:
    """The limit with its burst, and which refusals it explains; None where the server does not keep to it."""
    rate = limit.amount / 60
    refused = np.array([one.refused for one in requests], dtype=bool)
    seen = _seen(requests, limit.resource)
    costs = np.array([_or_nan(one.cost(limit.resource)) for one in requests])
    costs[np.isnan(costs)] = _mean(costs[~np.isnan(costs)])
    lacks = _lacks(requests, costs, np.array([rate]))[:, 0]
    burst, source, why = _size_in_headers(seen, rate), limit.source, ""
    by_refusals = _threshold(lacks, refused)
    if burst is None and by_refusals.explained >= max(LEAST_REFUSED, 0.5 * refused.sum()):
        if by_refusals.beyond <= WRONG * by_refusals.explained:
            burst, source = by_refusals.size, "429s"
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
    slack = max(1.0, 0.05 * most)
    explained = refused & (lacks > most - slack) if burst is not None else np.zeros(len(requests), dtype=bool)
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
    """size = remaining + rate · reset, where responses agree on it."""
    sizes = [
        one.remaining + 0.5 + rate * one.reset_ns / SECOND_NS
        for one in seen
        if one is not None and one.remaining is not None and one.reset_ns
    ]
    if len(sizes) < LEAST_REFUSED:
        return None
    low, middle, high = np.quantile(sizes, (0.1, 0.5, 0.9))
    return float(middle) if high - low <= max(1.5, 0.04 * middle) else None


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


# What refusals tell


class _Threshold(NamedTuple):
    """A size between admitted and refused: `explained` refusals are above it, `beyond` admitted ones too."""

    size: float
    explained: int
    beyond: int

    @property
    def score(self) -> float:
        return self.explained - 3 * self.beyond


def _lacks(requests: Sequence[Request], costs: np.ndarray, rates: np.ndarray) -> np.ndarray:
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


def _threshold(values: np.ndarray, refused: np.ndarray) -> _Threshold:
    """The size that parts admitted from refused best; in the middle of those that do it equally well."""
    if not refused.any():
        return _Threshold(float("inf"), 0, 0)
    order = np.argsort(values, kind="stable")
    ordered, marks = values[order], refused[order]
    # Above position k: the refused are explained, the admitted are beyond.
    explained = np.concatenate(([marks.sum()], marks.sum() - np.cumsum(marks)))
    beyond = np.concatenate(([(~marks).sum()], (~marks).sum() - np.cumsum(~marks)))
    score = explained - 3.0 * beyond
    best = np.flatnonzero(score >= score.max())
    k = int(best[-1])
    below = ordered[k - 1] if k else 0.0
    above = ordered[k] if k < len(ordered) else below
    return _Threshold(float((below + above) / 2), int(explained[k]), int(beyond[k]))


def _from_refusals(
    requests: Sequence[Request], left: np.ndarray, known: set[Resource]
) -> tuple[Limit, np.ndarray] | None:
    """The limit that explains most of the refusals that are left; None where none does."""
    refused = np.array([one.refused for one in requests], dtype=bool)
    looked = left | ~refused  # those that another limit explains say nothing
    found: list[tuple[float, Limit, np.ndarray]] = []
    if "concurrent" not in known:
        found += _at_once(requests, left, looked)
    candidates: tuple[Resource, ...] = ("requests", "tokens", "input-tokens", "output-tokens")
    for resource in candidates:
        if resource not in known:
            found += _bucket(resource, requests, left, looked)
    if not found:
        return None
    found.sort(key=lambda one: -one[0])
    score, limit, explained = found[0]
    others = [_name(one.resource) for other, one, _ in found[1:] if other >= 0.95 * score]
    if others:
        why = f"a limit of {' or '.join(others)} explains the 429s as well"
        limit = replace(limit, identified=False, why="; ".join(filter(None, (limit.why, why))))
    return limit, explained


def _in_flight(requests: Sequence[Request]) -> np.ndarray:
    """Requests that the server has, with this one, when each comes."""
    ends: list[int] = []
    found = np.empty(len(requests))
    for n, one in enumerate(requests):
        while ends and ends[0] <= one.at_ns:
            heapq.heappop(ends)
        found[n] = len(ends) + 1
        if not one.refused:
            heapq.heappush(ends, one.ended_ns)
    return found


def _at_once(
    requests: Sequence[Request], left: np.ndarray, looked: np.ndarray
) -> list[tuple[float, Limit, np.ndarray]]:
    values = _in_flight(requests)
    part = _threshold(values[looked], left[looked])
    if part.explained < max(LEAST_REFUSED, 0.5 * left.sum()) or part.beyond > WRONG * part.explained:
        return []
    amount = float(max(1, int(part.size)))
    explained = left & (values > part.size)
    limit = Limit("concurrent", amount, "429s", met=True, low=amount, high=amount)
    return [(part.score, limit, explained)]


def _bucket(
    resource: Resource, requests: Sequence[Request], left: np.ndarray, looked: np.ndarray
) -> list[tuple[float, Limit, np.ndarray]]:
    costs = np.array([_or_nan(one.cost(resource)) for one in requests])
    unknown = np.isnan(costs)
    if unknown.all() or unknown[left].mean() > 0.5:
        return []
    costs[unknown] = _mean(costs[~unknown])
    admitted = np.array([not one.refused for one in requests], dtype=bool)
    seconds = max(1e-9, (requests[-1].at_ns - requests[0].at_ns) / SECOND_NS)
    mean = costs[admitted].sum() / seconds
    if mean <= 0:
        return []

    def tried(rates: np.ndarray) -> list[tuple[float, float, _Threshold, np.ndarray]]:
        values = _lacks(requests, costs, rates)
        parts = [_threshold(values[looked, n], left[looked]) for n in range(len(rates))]
        return [(part.score, rates[n], part, values[:, n]) for n, part in enumerate(parts)]

    coarse = tried(mean * np.geomspace(0.5, 50, 70))
    best = max(coarse, key=lambda one: one[0])
    fine = tried(best[1] * np.geomspace(0.93, 1.075, 60))
    top = max(one[0] for one in (*coarse, *fine))
    slack = max(1.0, 0.03 * left.sum())
    good = [one for one in (*coarse, *fine) if one[0] >= top - slack]
    level = [one for one in good if one[0] >= top]
    _, rate, part, values = sorted(level, key=lambda one: one[1])[len(level) // 2]
    if part.explained < max(LEAST_REFUSED, 0.5 * left.sum()) or part.beyond > WRONG * part.explained:
        return []
    low, high = min(one[1] for one in good), max(one[1] for one in good)
    sure = low >= (1 - NEAR) * rate and high <= (1 + NEAR) * rate
    why = "" if sure else f"from {60 * low:,.4g} to {60 * high:,.4g} a minute explain the 429s as well"
    limit = Limit(
        resource, 60 * rate, "429s", part.size, "429s", True, sure, low=60 * low, high=60 * high, why=why
    )
    return [(part.score, limit, left & (values > part.size))]


# What refusals announce


def _announced(requests: Sequence[Request], limits: Sequence[Limit]) -> Announced:
    """How waits are announced, judged by what a simulation of the limits says that they should be."""
    finding = QuotaFinding(tuple(limits))
    timed: list[tuple[int, int | None]] = []
    at_once: list[int | None] = []
    for one, answer in zip(requests, simulated_refusals(finding, requests), strict=True):
        if one.refused and answer is not None:
            if answer.resource == "concurrent":
                at_once.append(one.retry_after_ns)
            else:
                timed.append((answer.retry_ns, one.retry_after_ns))
    known = [wait for wait in at_once if wait is not None]
    concurrent_ns = int(np.median(known)) if 2 * len(known) > len(at_once) else None
    told = [(should, wait) for should, wait in timed if wait is not None]
    if not told:
        waits = [one.retry_after_ns for one in requests if one.refused and one.retry_after_ns is not None]
        constant = int(np.median(waits)) if waits else 0
        return Announced("constant" if waits else "none", constant, concurrent_ns)
    waits = [wait for _, wait in told]
    middle = int(np.median(waits))
    if all(wait % SECOND_NS == 0 for wait in waits):
        near = sum(abs(-(-should // SECOND_NS) * SECOND_NS - wait) <= SECOND_NS for should, wait in told)
        constant = len(set(waits)) == 1 and near < 0.9 * len(told)
        return Announced("constant" if constant else "seconds", middle, concurrent_ns)
    return Announced("constant" if len(set(waits)) == 1 else "exact", middle, concurrent_ns)


# Words


def _unknown(finding: QuotaFinding) -> list[str]:
    said = [
        f"{_name(limit.resource)}, {limit.amount:,.6g}{'' if limit.resource == 'concurrent' else ' a minute'} "
        f"{_of(limit.source)}: {limit.why}"
        for limit in finding.limits
        if limit.why
    ]
    if finding.refused and finding.unexplained > max(2, WRONG * finding.refused):
        said.append(
            f"{finding.unexplained} of {finding.refused} 429s are explained by no limit: they are not simulated"
        )
    if finding.requests and not finding.refused and not finding.limits:
        said.append("no header states a quota and nothing was refused: nothing is known of one")
    return said


def _of(source: Source) -> str:
    return {"headers": "stated in headers", "429s": "from the 429s", "given": "given"}[source]


def _name(resource: Resource) -> str:
    return "requests at once" if resource == "concurrent" else resource.replace("-", " ")


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else 0.0


def _looked_at(requests: list[Request]) -> list[Request]:
    """At most `MOST_FITTED` in a row, those with the most refusals."""
    if len(requests) <= MOST_FITTED:
        return requests
    counted = np.concatenate(([0], np.cumsum([one.refused for one in requests])))
    first = int(np.argmax(counted[MOST_FITTED:] - counted[:-MOST_FITTED]))
    return requests[first : first + MOST_FITTED]
