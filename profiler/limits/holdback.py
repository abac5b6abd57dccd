"""Retry-After: everybody waits as long as the server asks, and nobody comes back at the same moment."""

from __future__ import annotations

from random import Random

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
