"""The server's limits: the capacity of tools, and quotas on model requests.

Pure: state machines driven by monotonic ns that are passed in. A tool's capacity rejects calls above a
limit, queues them, or shares its speed among them; it is told of arrivals and departures, and asked what
ends when. The timers are the application's.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

from profiler.emulator.conversation import ApiError
from profiler.limits.token_bucket import Bucket, QuotaRefusal, QuotaState, Resource
from profiler.scenarios import Capacity, Quota


class Rejected(NamedTuple):
    """A call that is not served. `retry_ns` is the announced wait, None when nothing is announced."""

    status: int
    reason: str
    retry_ns: int | None


@dataclass(slots=True, eq=False)
class _Call:
    work_ns: float  # left to do, while shared or queued
    done_ns: int = 0  # when it ends, while served at full speed


class ToolCapacity:
    """The state of one tool. The caller chooses the keys that tell calls apart."""

    def __init__(self, capacity: Capacity, time_scale: float, start_ns: int) -> None:
        self._capacity = capacity
        self._scale = time_scale
        self._steps = [
            (start_ns + int(step.after * time_scale * 1e9), step.fraction) for step in capacity.schedule
        ]
        self._fraction = 1.0
        self._running: dict[int, _Call] = {}
        self._queue: OrderedDict[int, _Call] = OrderedDict()
        self._now_ns = start_ns
        self._tokens = float(capacity.burst)

    @property
    def in_flight(self) -> int:
        """Calls served or queued."""
        return len(self._running) + len(self._queue)

    def _slots(self) -> float:
        if self._capacity.concurrent is None:
            return float("inf")
        # A capacity of no slot at all is an outage; a fraction of one still serves one.
        return max(1, round(self._capacity.concurrent * self._fraction)) if self._fraction > 0 else 0

    def _rate(self) -> float | None:
        """Requests per second now, None for any number."""
        rate = self._capacity.requests_per_second
        if rate is None:
            return None
        return rate * self._fraction / self._scale if self._scale else float("inf")

    def arrive(self, key: int, work_ns: int, now_ns: int) -> Rejected | None:
        """Take call `key` in, or say why not. Call `advance(now_ns)` first."""
        asked = self._capacity.retry_after
        asked_ns = None if asked is None else int(asked * self._scale * 1e9)
        rate = self._rate()
        if rate is not None and self._tokens < 1:
            wait = (1 - self._tokens) / rate * 1e9 if rate > 0 else 1e9
            return Rejected(
                429, "too many requests a second", int(wait) + 1 if asked_ns is None else asked_ns
            )
        slots, mode = self._slots(), self._capacity.mode
        call = _Call(work_ns)
        if mode == "share":
            self._running[key] = call
        elif len(self._running) < slots:
            call.done_ns = now_ns + work_ns
            self._running[key] = call
        elif mode == "reject":
            return Rejected(429, f"at most {int(slots)} calls at once", asked_ns)
        elif len(self._queue) >= self._capacity.queue:
            return Rejected(503, f"queue of {self._capacity.queue} is full", asked_ns)
        else:
            self._queue[key] = call
        if rate is not None:
            self._tokens -= 1
        return None

    def leave(self, key: int) -> None:
        """A caller went away; what it held is free."""
        if self._running.pop(key, None) is None:
            self._queue.pop(key, None)
        else:
            self._fill(self._now_ns)

    def advance(self, now_ns: int) -> list[tuple[int, int]]:
        """Everything that ends up to `now_ns`, as (key, when)."""
        ended: list[tuple[int, int]] = []
        while (at := self.next_ns()) is not None and at <= now_ns:
            self._step(at, ended)
        self._step(now_ns, ended)
        return ended

    def next_ns(self) -> int | None:
        """When something ends or the capacity changes next; None when nothing will."""
        candidates = [self._steps[0][0]] if self._steps else []
        if self._running:
            if self._capacity.mode == "share":
                speed = self._speed()
                if speed > 0:
                    least = min(call.work_ns for call in self._running.values())
                    # Up by one: the floor would leave a fraction of a ns undone, and time would stand.
                    candidates.append(self._now_ns + int(max(0.0, least) / speed) + 1)
            else:
                candidates.append(min(call.done_ns for call in self._running.values()))
        return min(candidates) if candidates else None

    def _speed(self) -> float:
        slots = self._slots()
        return min(1.0, slots / len(self._running)) if self._running else 1.0

    def _step(self, at: int, ended: list[tuple[int, int]]) -> None:
        """Move time to `at`, which is not beyond the next change."""
        elapsed = max(0, at - self._now_ns)
        rate = self._rate()
        if rate is not None and elapsed:  # no time at an infinite rate would be NaN
            self._tokens = min(float(self._capacity.burst), self._tokens + elapsed * (rate / 1e9))
        if self._capacity.mode == "share":
            done = elapsed * self._speed()
            for key, call in list(self._running.items()):
                call.work_ns -= done
                if call.work_ns <= 0.5:  # ns; the division by the speed is not exact
                    del self._running[key]
                    ended.append((key, at))
        else:
            for key, call in list(self._running.items()):
                if call.done_ns <= at:
                    del self._running[key]
                    ended.append((key, call.done_ns))
        self._now_ns = max(self._now_ns, at)
        while self._steps and self._steps[0][0] <= at:
            self._fraction = self._steps.pop(0)[1]
        self._fill(at)

    def _fill(self, now_ns: int) -> None:
        """Start queued calls while there is room."""
        while self._queue and len(self._running) < self._slots():
            key, call = self._queue.popitem(last=False)
            call.done_ns = now_ns + int(call.work_ns)
            self._running[key] = call


# Quotas: the server's limits on model requests, per API key. A limiter is ours, a quota is theirs.


def key_quota(quota: Quota, *, split_tokens: bool, minute_ns: float, now_ns: int) -> QuotaState:
    """The state of one API key on one provider's API; a bucket holds `burst` minutes' worth.

    `split_tokens`: input and output have a bucket each (Anthropic), else one for both (OpenAI).
    """
    limits: list[tuple[Resource, float]] = []
    if quota.requests_per_minute is not None:
        limits.append(("requests", quota.requests_per_minute))
    if quota.input_tokens_per_minute is not None and quota.output_tokens_per_minute is not None:
        if split_tokens:
            limits.append(("input-tokens", quota.input_tokens_per_minute))
            limits.append(("output-tokens", quota.output_tokens_per_minute))
        else:
            limits.append(("tokens", quota.input_tokens_per_minute + quota.output_tokens_per_minute))
    buckets = [Bucket(resource, limit, limit * quota.burst, minute_ns, now_ns) for resource, limit in limits]
    return QuotaState(buckets, quota.concurrent_requests)


# How the providers tell of quotas: headers on every response, and the 429 that refuses.

ORGANIZATION = "org-emulator"

UNLIMITED: dict[str, bytes] = {
    "openai": (
        b"x-ratelimit-limit-requests: 1000000\r\nx-ratelimit-limit-tokens: 1000000000\r\n"
        b"x-ratelimit-remaining-requests: 999999\r\nx-ratelimit-remaining-tokens: 999999000\r\n"
        b"x-ratelimit-reset-requests: 0s\r\nx-ratelimit-reset-tokens: 0s\r\n"
    ),
    "anthropic": b"",
}
"""The headers where a scenario has no quotas: limits that nobody meets."""


def headers(style: str, quota: QuotaState, now_ns: int, wall: float) -> bytes:
    """The header lines for the state of `quota`; `wall` is the Unix time of `now_ns`.

    `style`: a provider, or a dialect with headers of its own, or with none.
    """
    states = [
        (bucket.resource, round(bucket.stated), max(0, int(bucket.level(now_ns))), bucket.reset_ns())
        for bucket in quota.buckets
    ]
    if style == "mistral":
        named = {"requests": "req"}
        return "".join(
            f"x-ratelimit-limit-{named.get(resource, resource)}-minute: {limit}\r\n"
            f"x-ratelimit-remaining-{named.get(resource, resource)}-minute: {remaining}\r\n"
            for resource, limit, remaining, _ in states
        ).encode()
    if style == "azure":
        return "".join(
            f"x-ratelimit-limit-{resource}: {limit}\r\nx-ratelimit-remaining-{resource}: {remaining}\r\n"
            for resource, limit, remaining, _ in states
        ).encode()
    if style not in ("openai", "anthropic"):
        return b""
    if style == "openai":
        return "".join(
            f"x-ratelimit-limit-{resource}: {limit}\r\nx-ratelimit-remaining-{resource}: {remaining}\r\n"
            f"x-ratelimit-reset-{resource}: {go_duration(reset_ns)}\r\n"
            for resource, limit, remaining, reset_ns in states
        ).encode()
    split = [state for state in states if state[0].endswith("tokens")]
    if split:  # Anthropic also tells of both together
        _, stated, left, resets = zip(*split, strict=True)
        states.append(("tokens", sum(stated), sum(left), max(resets)))
    return "".join(
        f"anthropic-ratelimit-{resource}-limit: {limit}\r\n"
        f"anthropic-ratelimit-{resource}-remaining: {remaining}\r\n"
        f"anthropic-ratelimit-{resource}-reset: {rfc3339(wall + reset_ns / 1e9)}\r\n"
        for resource, limit, remaining, reset_ns in states
    ).encode()


def refusal_error(provider: str, refusal: QuotaRefusal, model: str) -> ApiError:
    """The provider's 429 for `refusal`."""
    if provider == "openai":
        kind, unit = {
            "requests": ("requests", "requests per min (RPM)"),
            "tokens": ("tokens", "tokens per min (TPM)"),
        }.get(refusal.resource, ("requests", "concurrent requests"))
        return ApiError(
            f"Rate limit reached for {model} in organization {ORGANIZATION} on {unit}: Limit"
            f" {round(refusal.limit)}, Used {math.ceil(refusal.used)}, Requested {int(refusal.requested)}."
            f" Please try again in {go_duration(refusal.retry_ns)}. Visit"
            " https://platform.openai.com/account/rate-limits to learn more.",
            status=429,
            kind=kind,
            code="rate_limit_exceeded",
        )
    if refusal.resource == "concurrent":
        message = (
            "Number of concurrent connections has exceeded your rate limit. Please try again later or contact"
            " sales at https://www.anthropic.com/contact-sales to discuss your options for a rate limit"
            " increase."
        )
    else:
        message = (
            f"This request would exceed your organization's rate limit of {round(refusal.limit):,}"
            f" {refusal.resource.replace('-', ' ')} per minute (org: {ORGANIZATION}, model: {model}). For"
            " details, refer to: https://docs.claude.com/en/api/rate-limits."
        )
    return ApiError(message, status=429, kind="rate_limit_error")


def retry_headers(style: str, retry_ns: int) -> bytes:
    """`retry-after` in whole seconds, for OpenAI and Azure also `retry-after-ms`; both rounded up."""
    seconds = -(-retry_ns // 1_000_000_000)
    line = b"retry-after: %d\r\n" % seconds
    if style in ("openai", "azure"):
        line += b"retry-after-ms: %d\r\n" % -(-retry_ns // 1_000_000)
    return line


def go_duration(ns: int) -> str:
    """A duration as OpenAI writes it: 2ms, 3.89s, 1m12s."""
    if ns <= 0:
        return "0s"
    if ns < 1_000_000_000:
        return f"{-(-ns // 1_000_000)}ms"
    seconds = ns / 1e9
    if seconds < 60:
        return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return (f"{hours}h" if hours else "") + f"{minutes}m{whole % 60}s"


def rfc3339(wall: float) -> str:
    """Unix time as RFC 3339 in UTC, to the second, rounded up."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(-(-wall // 1))))
