"""What a failure tells a limiter: read from exceptions by their shape, whatever library raised them."""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any

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
