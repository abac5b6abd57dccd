"""The requests that a model's server saw, and the quota that they are held against. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from profiler.limits.quotas import MINUTE_NS, SECOND_NS
from profiler.limits.token_bucket import Bucket, QuotaRefusal, QuotaState, Resource
from profiler.records import ModelCall, limited_input_tokens

Source = Literal["headers", "429s", "given"]


@dataclass(frozen=True, slots=True)
class Request:
    """One try of a model request that reached the server; it came there at `at_ns` and ended at `ended_ns`.

    Tokens are those that count against the limits; of a try that was refused, those of its call, which None
    says are not known. `late_ns`: for so long at most a busy client did not notice its end.
    """

    at_ns: int
    ended_ns: int
    refused: bool
    input_tokens: int | None = None
    output_tokens: int | None = None
    headers: dict[str, str] | None = None
    retry_after_ns: int | None = None
    late_ns: int = 0

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
                late_ns=call.late_ns if one is call.attempts[-1] else 0,
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


def simulated_refusals(finding: QuotaFinding, requests: Sequence[Request]) -> list[QuotaRefusal | None]:
    """What a server with these limits would have answered to the same requests at the same times.

    What was refused in the recording and is admitted here takes as long as those admitted there.
    """
    if not requests:
        return []
    state = finding.state(requests[0].at_ns)
    served = [one for one in requests if not one.refused]
    usual_ns = int(np.median([one.ended_ns - one.at_ns for one in served])) if served else 0
    read = mean([one.input_tokens for one in requests])
    written = mean([one.output_tokens for one in requests])
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
            heapq.heappush(ends, one.at_ns + usual_ns if one.refused else one.ended_ns - one.late_ns)
    return answers


def amount_words(limit: Limit) -> str:
    return (
        f"{limit.amount:,.6g} {name(limit.resource)}{'' if limit.resource == 'concurrent' else ' a minute'}"
    )


def told_by(source: Source) -> str:
    return {"headers": "stated in headers", "429s": "from the 429s", "given": "given"}[source]


def name(resource: Resource) -> str:
    return "requests at once" if resource == "concurrent" else resource.replace("-", " ")


def costs_of(requests: Sequence[Request], resource: Resource) -> np.ndarray:
    """What each request takes of a bucket; the mean of the others where that is not known."""
    costs = np.array([one.cost(resource) for one in requests], dtype=float)  # None is NaN
    unknown = np.isnan(costs)
    costs[unknown] = mean(costs[~unknown].tolist())
    return costs


def mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else 0.0
