"""The quotas of a model's server, from the requests of a recording. Pure.

Headers state limits, and refused requests tell the same without headers. A limit that nobody met is known
from headers alone, and one that no header states and nobody met not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from profiler.limits.known import KnownQuota
from profiler.limits.quotas import SECOND_NS
from profiler.limits.token_bucket import Resource
from profiler.prediction.quotas.finding import (
    Announced,
    Limit,
    QuotaFinding,
    Request,
    amount_words,
    requests_of,
    simulated_refusals,
    told_by,
)
from profiler.prediction.quotas.from_refusals import WRONG, from_refusals
from profiler.prediction.quotas.headers import LEAST_REFUSED, read_headers, sized, stated_limits
from profiler.records import ModelCall

SPLIT: tuple[Resource, ...] = ("requests", "input-tokens", "output-tokens")
JOINT: tuple[Resource, ...] = ("requests", "tokens")
"""The buckets that a provider may have: Anthropic counts input and output apart, others both together."""

OFF = 0.02
"""Limits are not identified where a simulation's share of 429s is further than this from the recorded one."""

MOST_FITTED = 20_000
"""Requests that a fit looks at, those with the most refusals among them."""


def fit_quotas(calls: Iterable[ModelCall], given: KnownQuota | None = None) -> QuotaFinding:
    """The quotas that calls show: those of one key, and of one model where each has its own (OpenAI).

    `given` goes before what headers state.
    """
    calls = list(calls)
    resources = SPLIT if any(call.provider == "anthropic" for call in calls) else JOINT
    requests = _looked_at(requests_of(calls))
    refused = [one.refused for one in requests]
    words: list[str] = []
    limits: list[Limit] = []
    left = np.array(refused, dtype=bool)  # refusals that nothing explains yet
    headers = read_headers(requests)
    for limit in stated_limits(requests, headers, given, words):
        fitted, explained = sized(limit, requests, headers)
        if fitted is None:
            words.append(
                f"{amount_words(limit)}, {told_by(limit.source)}: the server admitted far more than that, "
                "and it is left out"
            )
            continue
        limits.append(fitted)
        left &= ~explained
    known = {limit.resource for limit in limits}
    while left.sum() >= max(LEAST_REFUSED, 0.05 * sum(refused)):
        found = from_refusals(requests, left, known, resources)
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
    if limits and abs(simulated - sum(refused)) > OFF * len(requests) + 2:
        told = f"of the {len(requests)} requests these limits refuse {simulated}, the server {sum(refused)}"
        limits = [replace(one, identified=one.identified and one.source != "429s") for one in limits]
        words.append(told)
        finding = replace(finding, limits=tuple(limits))
    return replace(finding, simulated=simulated, words=(*words, *_unknown(finding)))


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
        f"{amount_words(limit)}, {told_by(limit.source)}: {limit.why}"
        for limit in finding.limits
        if limit.why
    ]
    if finding.refused and finding.unexplained > max(2, WRONG * finding.refused):
        said.append(
            f"{finding.unexplained} of {finding.refused} 429s are explained by no limit: none is simulated"
        )
    if finding.requests and not finding.refused and not finding.limits:
        said.append("no header states a quota and nothing was refused: nothing is known of one")
    return said


def _looked_at(requests: list[Request]) -> list[Request]:
    """At most `MOST_FITTED` in a row, those with the most refusals."""
    if len(requests) <= MOST_FITTED:
        return requests
    counted = np.concatenate(([0], np.cumsum([one.refused for one in requests])))
    first = int(np.argmax(counted[MOST_FITTED:] - counted[:-MOST_FITTED]))
    return requests[first : first + MOST_FITTED]
