"""Quotas: the server's limits on model requests, per API key. A limiter is ours, a quota is theirs.

Pure: token buckets and a concurrency count, driven by the monotonic ns that are passed in. A bucket
holds `burst` minutes' worth, starts full and refills continuously; a request takes from all buckets
or from none.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from profiler.scenario import Quota

Resource = Literal["requests", "tokens", "input-tokens", "output-tokens", "concurrent"]


class Bucket:
    """`limit` units a minute of `minute_ns`; what a request takes may leave it empty, never below.

    `stated` is the same for a minute of 60 s: what is told to clients, whose clock is not scaled.
    """

    __slots__ = ("_level", "_rate", "_size", "_updated_ns", "resource", "stated")

    def __init__(self, resource: Resource, limit: float, burst: float, minute_ns: float, now_ns: int) -> None:
        self.resource: Resource = resource
        self.stated = limit * 60e9 / minute_ns
        self._size = max(1.0, limit * burst)
        self._rate = limit / minute_ns
        self._level = self._size
        self._updated_ns = now_ns

    def level(self, now_ns: int) -> float:
        """What is left at `now_ns`."""
        level = self._level + (now_ns - self._updated_ns) * self._rate
        self._level = level = self._size if level > self._size else level
        self._updated_ns = now_ns
        return level

    def take(self, amount: float) -> None:
        self._level -= amount

    def wait_ns(self, amount: float) -> int:
        """How long until `amount` (at most a full bucket) will be there, after the last `level`."""
        return max(0, int((min(amount, self._size) - self._level) / self._rate) + 1)

    def reset_ns(self) -> int:
        """How long until the bucket is full again, after the last `level`."""
        return int((self._size - self._level) / self._rate)


class Refusal(NamedTuple):
    """Why a request does not pass, with the figures that the 429 body states."""

    resource: Resource
    limit: float
    used: float
    requested: float
    retry_ns: int


class KeyQuota:
    """The state of one API key on one provider's API."""

    __slots__ = ("_concurrent", "_in_flight", "buckets")

    def __init__(self, quota: Quota, *, split_tokens: bool, minute_ns: float, now_ns: int) -> None:
        """`split_tokens`: input and output have a bucket each (Anthropic), else one for both (OpenAI)."""
        limits: list[tuple[Resource, float]] = []
        if quota.requests_per_minute is not None:
            limits.append(("requests", quota.requests_per_minute))
        if quota.input_tokens_per_minute is not None and quota.output_tokens_per_minute is not None:
            if split_tokens:
                limits.append(("input-tokens", quota.input_tokens_per_minute))
                limits.append(("output-tokens", quota.output_tokens_per_minute))
            else:
                limits.append(("tokens", quota.input_tokens_per_minute + quota.output_tokens_per_minute))
        self.buckets = [Bucket(resource, limit, quota.burst, minute_ns, now_ns) for resource, limit in limits]
        self._concurrent = quota.concurrent_requests
        self._in_flight = 0

    def admit(self, input_tokens: int, output_tokens: int, now_ns: int) -> Refusal | None:
        """Take what the request needs and return None, or take nothing and say why not."""
        if self._concurrent is not None and self._in_flight >= self._concurrent:
            return Refusal("concurrent", self._concurrent, self._in_flight, 1, 0)
        worst: Refusal | None = None
        amounts = []
        for bucket in self.buckets:
            amount = float(
                1
                if bucket.resource == "requests"
                else (
                    input_tokens + output_tokens
                    if bucket.resource == "tokens"
                    else input_tokens
                    if bucket.resource == "input-tokens"
                    else output_tokens
                )
            )
            level = bucket.level(now_ns)
            # More than a full bucket is let through by a full one: it would else never pass.
            amount = min(amount, bucket._size)
            if amount > level + 1e-9:
                refusal = Refusal(
                    bucket.resource, bucket.stated, bucket._size - level, amount, bucket.wait_ns(amount)
                )
                if worst is None or refusal.retry_ns > worst.retry_ns:
                    worst = refusal
            amounts.append(amount)
        if worst is not None:
            return worst
        for bucket, amount in zip(self.buckets, amounts, strict=True):
            bucket.take(amount)
        self._in_flight += 1
        return None

    def release(self) -> None:
        """An admitted request ended."""
        self._in_flight -= 1
