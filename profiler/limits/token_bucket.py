"""A server's quota on requests: token buckets and a count of requests at once. Pure.

It is the server's side: what it admits, and what it says when it does not (`profiler.limits.limiter` is
ours). The emulator serves by it, and predictions simulate it, so that both have the same arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

Resource = Literal["requests", "tokens", "input-tokens", "output-tokens", "concurrent"]


class Bucket:
    """`limit` units a minute of `minute_ns`, `size` at most; what a request takes never leaves it below 0.

    It starts full and refills continuously. `stated` is the limit for a minute of 60 s: what is told to
    clients, whose clock is not scaled.
    """

    __slots__ = ("_level", "_rate", "_updated_ns", "resource", "size", "stated")

    def __init__(self, resource: Resource, limit: float, size: float, minute_ns: float, now_ns: int) -> None:
        self.resource: Resource = resource
        self.stated = limit * 60e9 / minute_ns
        self.size = max(1.0, size)
        self._rate = limit / minute_ns
        self._level = self.size
        self._updated_ns = now_ns

    def level(self, now_ns: int) -> float:
        """The amount that is left at `now_ns`."""
        level = self._level + (now_ns - self._updated_ns) * self._rate
        self._level = level = self.size if level > self.size else level
        self._updated_ns = now_ns
        return level

    def take(self, amount: float) -> None:
        self._level -= amount

    def wait_ns(self, amount: float) -> int:
        """How long until `amount` (at most a full bucket) will be there, after the last `level`."""
        return max(0, int((min(amount, self.size) - self._level) / self._rate) + 1)

    def reset_ns(self) -> int:
        """How long until the bucket is full again, after the last `level`."""
        return int((self.size - self._level) / self._rate)


class QuotaRefusal(NamedTuple):
    """Why a request does not pass, with the figures that a 429's body states.

    `retry_ns`: how long until it would pass; 0 for `concurrent`, of which time alone tells nothing.
    """

    resource: Resource
    limit: float
    used: float
    requested: float
    retry_ns: int


class QuotaState:
    """The quota that one API key has left. A request takes from all buckets, or from none.

    `concurrent`: requests at once at most, None for any number.
    """

    __slots__ = ("_in_flight", "buckets", "concurrent")

    def __init__(self, buckets: Iterable[Bucket], concurrent: int | None = None) -> None:
        self.buckets = tuple(buckets)
        self.concurrent = concurrent
        self._in_flight = 0

    def admit(self, input_tokens: float, output_tokens: float, now_ns: int) -> QuotaRefusal | None:
        """Take what the request needs and return None, or take nothing and say why not."""
        if self.concurrent is not None and self._in_flight >= self.concurrent:
            return QuotaRefusal("concurrent", self.concurrent, self._in_flight, 1, 0)
        wanted: dict[Resource, float] = {
            "requests": 1,
            "tokens": input_tokens + output_tokens,
            "input-tokens": input_tokens,
            "output-tokens": output_tokens,
        }
        worst: QuotaRefusal | None = None
        amounts = []
        for bucket in self.buckets:
            level = bucket.level(now_ns)
            # More than a full bucket is let through by a full one: it would else never pass.
            amount = min(float(wanted[bucket.resource]), bucket.size)
            if amount > level + 1e-9:
                used, retry_ns = bucket.size - level, bucket.wait_ns(amount)
                if worst is None or retry_ns > worst.retry_ns:
                    worst = QuotaRefusal(bucket.resource, bucket.stated, used, amount, retry_ns)
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
