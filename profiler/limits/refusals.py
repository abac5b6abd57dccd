"""What a failure tells a limiter: read from exceptions by their shape, whatever library raised them."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from random import Random
from typing import Any, Literal, NamedTuple

from profiler.limits.limiter import Outcome

REJECTING = frozenset((429, 503, 529))
"""HTTP statuses by which a server says that it is too much at the moment."""


def status_of(error: BaseException) -> int | None:
    """The HTTP status in an exception of httpx, aiohttp, requests, openai or anthropic."""
    for holder in (getattr(error, "response", None), error):
        for name in ("status_code", "status"):
            status = getattr(holder, name, None)
            if isinstance(status, int) and 100 <= status < 600:
                return status
    return None


def outcome_of(error: BaseException) -> Outcome:
    """What a call that raised this teaches a limiter."""
    if status_of(error) in REJECTING:
        return "rejected"
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"TimeoutError", "TimeoutException", "APITimeoutError", "Timeout"}:
        return "timeout"
    return "unknown"


def retry_after_ns(error: BaseException, wall_clock: Callable[[], float] = time.time) -> int | None:
    """The wait that the server asked for; `retry-after-ms` before `retry-after`, seconds or a date."""
    holder: Any = getattr(error, "response", None)
    headers = getattr(error if holder is None else holder, "headers", None)
    if headers is None or not hasattr(headers, "get"):
        return None
    return parse_retry_after(headers.get("retry-after-ms"), headers.get("retry-after"), wall_clock)


def parse_retry_after(
    milliseconds: str | None, seconds: str | None, wall_clock: Callable[[], float] = time.time
) -> int | None:
    """Nanoseconds from the two headers' values; None when neither says anything of use.

    `wall_clock` gives seconds since the epoch: a date is a wait only by the time it is now.
    """
    for text, unit in ((milliseconds, 1e6), (seconds, 1e9)):
        if text is None:
            continue
        try:
            value = float(text)
        except ValueError:
            continue
        if 0 <= value < 1e6:
            return int(value * unit)
    if seconds is not None:
        try:
            wait = parsedate_to_datetime(seconds).timestamp() - wall_clock()
        except (ValueError, TypeError, OverflowError):
            return None
        return max(0, int(wait * 1e9))
    return None


# Retry-After: everybody waits as long as the server asks, and nobody comes back at the same moment.

LEAST_SPREAD_NS = 1_000_000_000
SPREAD_SHARE = 0.2


def spread_ns(retry_after_ns: int) -> int:
    """Over how long the callers come back after the wait: max(1 s, 0.2·Retry-After).

    The SDKs wait exactly as long as told, all of them, and meet again: a herd.
    """
    return max(LEAST_SPREAD_NS, int(SPREAD_SHARE * retry_after_ns))


class Holdback:
    """What one key (a tool, a model) was told to wait. One for all that use the key.

    `wait_ns` draws a caller's wait: to the end of what was asked, and a uniform share of the spread
    that is left. Ask again after it: somebody may have been refused meanwhile.
    """

    __slots__ = ("_closed_until_ns", "_random", "_spread_until_ns")

    def __init__(self, random: Random) -> None:
        self._random = random
        self._closed_until_ns = 0
        self._spread_until_ns = 0

    def refused(self, now_ns: int, retry_after_ns: int) -> None:
        """The server asked for a wait. An earlier, longer one stays in force."""
        until = now_ns + retry_after_ns
        self._closed_until_ns = max(self._closed_until_ns, until)
        self._spread_until_ns = max(self._spread_until_ns, until + spread_ns(retry_after_ns))

    def is_closed(self, now_ns: int) -> bool:
        """Whether the wait that was asked for is not over yet, spread aside."""
        return now_ns < self._closed_until_ns

    def wait_ns(self, now_ns: int) -> int:
        if now_ns >= self._spread_until_ns:
            return 0
        opens = max(now_ns, self._closed_until_ns)
        return opens - now_ns + int(self._random.random() * (self._spread_until_ns - opens))


# When a failed call is tried again, and after how long.

BASE_NS = 500_000_000
CAP_NS = 8_000_000_000

TRANSIENT = frozenset((408, 429, 500, 502, 503, 504, 529))


def is_transient(error: BaseException) -> bool:
    """Whether another try may do better: after 429, 5xx of the usual kinds, and timeouts."""
    return status_of(error) in TRANSIENT or outcome_of(error) == "timeout"


def delay_ns(attempt: int, outcome: Outcome, asked_ns: int | None, random: Random) -> int:
    """Nanoseconds between attempt number `attempt` (from 1) and the next.

    What the server asked for (Retry-After) and U(0, max(1 s, 0.2·that)) more; else full jitter,
    U(0, min(8 s, 0.5·2ⁿ⁻¹ s)).
    """
    if asked_ns is not None and outcome == "rejected":
        return asked_ns + int(random.random() * spread_ns(asked_ns))
    return int(random.random() * min(CAP_NS, BASE_NS << (attempt - 1)))


# What providers say of their quotas: `x-ratelimit-*` and `anthropic-ratelimit-*` headers.

RESOURCES = ("requests", "tokens", "input-tokens", "output-tokens")

Word = Literal["limit", "remaining"]


class Stated(NamedTuple):
    """One figure of a response's headers; `resource` with underscores, `limit` is per minute."""

    word: Word
    resource: str
    value: float


@functools.lru_cache(maxsize=256)  # header names come from outside
def _meaning(header: str) -> tuple[Word, str] | None:
    """OpenAI's is remaining-tokens, Anthropic's tokens-remaining."""
    name = header.removeprefix("x-ratelimit-").removeprefix("anthropic-ratelimit-")
    words: tuple[Word, ...] = ("limit", "remaining")
    for word in words:
        for resource in RESOURCES:
            if name in (f"{word}-{resource}", f"{resource}-{word}"):
                return word, resource.replace("-", "_")
    return None


def stated(headers: Mapping[str, str]) -> Iterator[Stated]:
    """What a response's rate-limit headers say; what is no number is left out."""
    for header, text in headers.items():
        found = _meaning(header)
        if found is not None:
            with contextlib.suppress(ValueError):
                yield Stated(*found, float(text))
