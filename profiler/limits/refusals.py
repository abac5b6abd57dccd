"""Reads exceptions and response headers: refusals, Retry-After, transient errors, remaining quotas.

Exceptions are recognised by their shape, whatever library raised them.
"""

from __future__ import annotations

import contextlib
import time
import typing
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from random import Random
from typing import Any, Literal, NamedTuple

from profiler.limits.limiter import Signal

REJECTING = frozenset((429, 503, 529))
"""HTTP statuses by which a server says that its load is too high at the moment."""

TRANSIENT = frozenset((408, 429, 500, 502, 503, 504, 529))
"""HTTP statuses after which another try may succeed."""


def status_of(error: BaseException) -> int | None:
    """The HTTP status in an exception of httpx, aiohttp, requests, openai or anthropic."""
    for holder in (getattr(error, "response", None), error):
        for name in ("status_code", "status"):
            status = getattr(holder, name, None)
            if isinstance(status, int) and 100 <= status < 600:
                return status
    return None


def signal_of(error: BaseException) -> Signal:
    """The signal of a call that raised this exception."""
    if status_of(error) in REJECTING:
        return "rejected"
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"TimeoutError", "TimeoutException", "APITimeoutError", "Timeout"}:
        return "timeout"
    return "unknown"


def retry_after_ns(error: BaseException, wall_clock: Callable[[], float] = time.time) -> int | None:
    """The wait that the server of a failed call asked for, None when it asked for none."""
    holder: Any = getattr(error, "response", None)
    headers = getattr(error if holder is None else holder, "headers", None)
    if headers is None or not hasattr(headers, "get"):
        return None
    return parse_retry_after(headers.get("retry-after-ms"), headers.get("retry-after"), wall_clock)


def parse_retry_after(
    milliseconds: str | None, seconds: str | None, wall_clock: Callable[[], float] = time.time
) -> int | None:
    """Nanoseconds to wait, from `retry-after-ms` (which goes first) and `retry-after` (seconds or a date).

    None when neither can be used. `wall_clock`: seconds since the epoch, to turn a date into a wait.
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


LEAST_SPREAD_NS = 1_000_000_000
SPREAD_SHARE = 0.2


def spread_ns(retry_after_ns: int) -> int:
    """The time over which callers come back after a wait, at random: max(1 s, 0.2·Retry-After).

    Callers that wait exactly as long as told, as those of the SDKs do, all come back at once.
    """
    return max(LEAST_SPREAD_NS, int(SPREAD_SHARE * retry_after_ns))


class Holdback:
    """The wait that a server asked for on one key (a tool, a model), shared by all callers of the key.

    `wait_ns` draws one caller's wait: until the end of the wait that was asked for, and a uniform share
    of what is left of the spread. Ask again after it: another caller may have been refused meanwhile.
    """

    __slots__ = ("_closed_until_ns", "_random", "_spread_until_ns")

    def __init__(self, random: Random) -> None:
        self._random = random
        self._closed_until_ns = 0
        self._spread_until_ns = 0

    def refused(self, now_ns: int, retry_after_ns: int) -> None:
        """The server asked for a wait. An earlier one that lasts longer stays in force."""
        until = now_ns + retry_after_ns
        self._closed_until_ns = max(self._closed_until_ns, until)
        self._spread_until_ns = max(self._spread_until_ns, until + spread_ns(retry_after_ns))

    def is_closed(self, now_ns: int) -> bool:
        """Whether the wait that was asked for is still on; the spread after it does not count."""
        return now_ns < self._closed_until_ns

    def wait_ns(self, now_ns: int) -> int:
        if now_ns >= self._spread_until_ns:
            return 0
        opens = max(now_ns, self._closed_until_ns)
        return opens - now_ns + int(self._random.random() * (self._spread_until_ns - opens))


BASE_NS = 500_000_000
CAP_NS = 8_000_000_000


def is_transient(error: BaseException) -> bool:
    """Whether another try may succeed: after a `TRANSIENT` status or a timeout."""
    return status_of(error) in TRANSIENT or signal_of(error) == "timeout"


def delay_ns(attempt: int, signal: Signal, asked_ns: int | None, random: Random) -> int:
    """Nanoseconds between attempt number `attempt` (from 1) and the next.

    After a rejection with Retry-After (`asked_ns`), that and U(0, max(1 s, 0.2·that)) more; else "full
    jitter" (Brooker 2015), U(0, min(8 s, 0.5·2ⁿ⁻¹ s)).
    """
    if asked_ns is not None and signal == "rejected":
        return asked_ns + int(random.random() * spread_ns(asked_ns))
    return int(random.random() * min(CAP_NS, BASE_NS << (attempt - 1)))


Word = Literal["limit", "remaining"]


class Stated(NamedTuple):
    """One figure of a response's rate-limit headers. `resource` is with underscores, `limit` per minute."""

    word: Word
    resource: str
    value: float


# OpenAI's headers end in remaining-tokens, Anthropic's in tokens-remaining.
_STATED: dict[str, tuple[Word, str]] = {
    f"{prefix}-{name}": (word, resource.replace("-", "_"))
    for prefix in ("x-ratelimit", "anthropic-ratelimit")
    for word in typing.get_args(Word)
    for resource in ("requests", "tokens", "input-tokens", "output-tokens")
    for name in (f"{word}-{resource}", f"{resource}-{word}")
}


def stated(headers: Mapping[str, str]) -> Iterator[Stated]:
    """The figures in a response's rate-limit headers; values that are not numbers are skipped."""
    for header, text in headers.items():
        if header in _STATED:
            with contextlib.suppress(ValueError):
                yield Stated(*_STATED[header], float(text))
