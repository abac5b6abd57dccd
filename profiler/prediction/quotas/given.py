"""A quota that is given (`--quota`) in place of the recorded one, and what loops ask of a quota. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from profiler.errors import UsageError
from profiler.limits.known import ANY, KnownQuota
from profiler.limits.quotas import MINUTE_NS
from profiler.prediction.fitting import Fitted
from profiler.prediction.quotas.finding import Announced, Limit, QuotaFinding, amount_words
from profiler.prediction.quotas.headers import RESOURCE
from profiler.records import vendor


def given_quota(known: Sequence[KnownQuota], fitted: Fitted) -> QuotaFinding | None:
    """The recorded quota with the limits that are given in place of its own; None without any.

    What it announces is what it was seen to announce; a quota that refused nothing is taken to announce whole
    seconds. Raises `UsageError` for one of another provider.
    """
    if not known:
        return None
    recorded = fitted.quota
    limits: list[Limit] = []
    for one in known:
        if one.provider != ANY and vendor(one.provider) != vendor(fitted.run.provider):
            raise UsageError(f"--quota {one.provider}: the recording is of {fitted.run.provider}")
        for quota in one.limits:
            resource, window_ns = RESOURCE[quota.resource], quota.window_ns or MINUTE_NS
            amount = quota.limit or 0.0
            # A minute's worth, or a day's, may be used at once: nothing says less of a quota nobody met.
            limits.append(Limit(resource, amount * MINUTE_NS / window_ns, "given", burst=amount))
    named = {limit.resource for limit in limits}
    kept = [limit for limit in recorded.limits if limit.resource not in named]
    announced = recorded.announced if recorded.refused else Announced("seconds")
    return replace(recorded, limits=(*kept, *limits), announced=announced)


def given_words(known: Sequence[KnownQuota], fitted: Fitted) -> tuple[str, ...]:
    """What is assumed of a quota that is given."""
    if not known:
        return ()
    said = ["the quota given is taken to be full when a run begins, and to hold all of its window at once"]
    if not fitted.quota.refused:
        said.append("nothing was refused in the recording: a 429 is taken to say how many seconds to wait")
    return tuple(said)


@dataclass(frozen=True, slots=True)
class Demand:
    """What loops ask of one limit, in a minute, where `amount` is there."""

    name: str
    asked: float
    amount: float
    met: bool

    @property
    def share(self) -> float:
        """The share of the limit that is asked for, above 1 where it is too little."""
        return self.asked / self.amount if self.amount else 1.0


def demands(fitted: Fitted, quota: QuotaFinding, loops_per_second: float) -> list[Demand]:
    """What so many loops a second ask of each limit of a rate, by the mean of the recorded ones."""
    weights = np.array([loop.weight for loop in fitted.loops])
    if not weights.size:
        return []
    of_loop = {
        "requests": [len(loop.rounds) for loop in fitted.loops],
        "input-tokens": [sum(one.input_tokens for one in loop.rounds) for loop in fitted.loops],
        "output-tokens": [sum(one.output_tokens for one in loop.rounds) for loop in fitted.loops],
    }
    means = {name: float(np.average(values, weights=weights)) for name, values in of_loop.items()}
    means["tokens"] = means["input-tokens"] + means["output-tokens"]
    return [
        Demand(
            amount_words(limit),
            60 * loops_per_second * means[limit.resource],
            limit.amount,
            limit.met or limit.source == "given",
        )
        for limit in quota.limits
        if limit.resource in means
    ]
