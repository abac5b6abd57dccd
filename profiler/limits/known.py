"""The limits of a server that are known for a run: given as `--quota`, or stated in its headers. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from profiler.errors import UsageError
from profiler.limits.quotas import DAY_NS, MINUTE_NS, TOLERANCE, Quota, stated
from profiler.records import LoopRecord, ModelCall, vendor

_WHAT, _AMOUNT = r"(?:rp|tp|itp|otp)[md]", r"\d{1,15}(?:\.\d{1,9})?"
_LIMIT = rf"(?:{_WHAT}={_AMOUNT}|{_AMOUNT}{_WHAT})"
_QUOTA = re.compile(rf"(?:([\w./-]+):)?({_LIMIT}(?:,{_LIMIT})*)")
_PART = re.compile(rf"({_AMOUNT})({_WHAT})")

_RESOURCE = {"rp": "requests", "tp": "tokens", "itp": "input_tokens", "otp": "output_tokens"}
OPTION = {resource: option for option, resource in _RESOURCE.items()}
"""How `--quota` says a resource, without the `m` (a minute) or `d` (a day)."""

UNBOUNDED = {"requests": 1e6, "tokens": 1e8, "input_tokens": 1e8, "output_tokens": 1e8}
"""Stated limits from this many a minute on limit nobody: servers without a quota state such numbers."""

MOST_MODELS = 1000
"""Models whose limits are told apart: another program may name any."""


ANY = "model"
"""The provider of a quota that was given without one."""


@dataclass(frozen=True, slots=True)
class KnownQuota:
    """The server's limits of `requests`, `tokens`, `input_tokens` and `output_tokens`, in one window or more.

    `untold`: limits whose windows cannot be told, from which no rate follows. `model` is the one that they
    are stated for; empty: each.
    """

    provider: str
    limits: tuple[Quota, ...]
    source: str
    untold: tuple[Quota, ...] = ()
    model: str = ""


def parse_quota(spec: str) -> KnownQuota:
    """`openai:rpm=500,tpm=30000`, or `500rpm,30000tpm`; also itpm, otpm; rpd, tpd, … are of a day.

    Without a provider it is of all. Raises `UsageError`.
    """
    match = _QUOTA.fullmatch(spec.strip())
    if match is None:
        raise UsageError(
            f"--quota {spec}: expected PROVIDER:rpm=N,tpm=N (also itpm, otpm; rpd and tpd: a day), "
            "such as openai:rpm=500"
        )
    limits: dict[str, Quota] = {}
    for part in match[2].split(","):
        amount_first = _PART.fullmatch(part)
        name, value = (amount_first[2], amount_first[1]) if amount_first else part.split("=")
        if float(value) <= 0:
            raise UsageError(f"--quota {spec}: {name} must be above 0")
        window_ns = MINUTE_NS if name.endswith("m") else DAY_NS
        limits[name] = Quota(_RESOURCE[name[:-1]], float(value), window_ns=window_ns)
    return KnownQuota(match[1] or ANY, tuple(limits.values()), "as given")


def seen_quota(records: Iterable[LoopRecord]) -> KnownQuota | None:
    """The smallest limits that any response stated in its headers; None when none of them limits anything."""
    found = StatedLimits()
    for record in records:
        for round_ in record.rounds:
            found.add(round_.model)
    return found.quota()


class _Limits:
    """The limits that responses stated, one by one."""

    def __init__(self) -> None:
        self._windows: dict[tuple[str, str, float], int | None] = {}
        self._resets: dict[tuple[str, str, float], int] = {}

    def add(self, quota: Quota, amount: float) -> None:
        key = (quota.resource, quota.per, amount)
        self._windows[key] = max(quota.window_ns or 0, self._windows.get(key) or 0) or None
        reset_ns = quota.reset_ns if quota.remaining else None  # a bucket in debt takes longer
        self._resets[key] = max(reset_ns or 0, self._resets.get(key, 0))

    def quota(self, provider: str, model: str = "") -> KnownQuota | None:
        """The smallest of each resource and window; None where nothing is limited."""
        told: dict[tuple[str, int], Quota] = {}
        untold: dict[str, Quota] = {}
        for (resource, per, amount), window_ns in self._windows.items():
            longer = self._resets[resource, per, amount] > (window_ns or 0) * (1 + TOLERANCE)
            quota = Quota(resource, amount, window_ns=window_ns if per or not longer else None)
            if quota.window_ns is None:
                untold[resource] = min(quota, untold.get(resource, quota), key=limit_of)
            else:
                of = resource, quota.window_ns
                told[of] = min(quota, told.get(of, quota), key=limit_of)
        if not told and not untold:
            return None
        return KnownQuota(provider, tuple(told.values()), "from its headers", tuple(untold.values()), model)


class StatedLimits:
    """The limits that responses state in their headers, request by request; of all, and of each model.

    One response tells a window, and another of the same limit does not: the longest that was told is its own.
    It cannot be told where a reset was further away than that: near its end a fixed window looks like a
    shorter one.
    """

    def __init__(self) -> None:
        self._all = _Limits()
        self._models: dict[tuple[str, str], _Limits] = {}
        self._provider = ""
        self.any = False
        """Any header was there, though perhaps of a limit that limits nobody."""

    def add(self, model: ModelCall) -> None:
        for attempt in model.attempts:
            if not attempt.rate_limits:
                continue
            self.any = True
            for quota in stated(attempt.rate_limits):
                amount = quota.limit
                a_minute = amount if quota.per_second is None else 60 * quota.per_second
                if not amount or not a_minute or a_minute >= UNBOUNDED[quota.resource]:
                    continue
                self._provider = model.provider
                self._all.add(quota, amount)
                key = (vendor(model.provider), model.model)
                if key in self._models or len(self._models) < MOST_MODELS:
                    self._models.setdefault(key, _Limits()).add(quota, amount)

    def quota(self) -> KnownQuota | None:
        """The smallest of each resource and window, whichever model they were stated for."""
        return self._all.quota(self._provider)

    def quotas(self) -> tuple[KnownQuota, ...]:
        """Those of each model: one's requests are none of another's limit. `provider` is a `vendor`."""
        found = (limits.quota(provider, model) for (provider, model), limits in self._models.items())
        return tuple(one for one in found if one is not None)


def limit_of(quota: Quota) -> float:
    return quota.limit or 0.0
