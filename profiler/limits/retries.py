"""The rule by which a client tries model requests again: that of the providers' SDKs. Pure.

Both SDKs wait min(8 s, 0.5·2ⁿ⁻¹ s)·(1 - U(0, 0.25)) after attempt n, and as long as a Retry-After asks where
the response has one. OpenAI's gives up when that is more than two minutes. The figures are those of the SDKs'
own code, most of which they do not export; `test_limits_retries.py` holds them against it.

Requests behind a limiter of ours are tried again by another rule (`profiler.loop.model.LimitedModel`), and
so are tool calls (`profiler.loop.calls`): for both, `profiler.limits.refusals.delay_ns`, or the wait of the
gate (`Holdback`) where a server asked for one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz
from random import Random

SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class RetryTimes:
    """How long a process of a client takes with retries: ns, each as quantiles at even distances.

    It sends one after another and notices one response after another. `late`: from when a retry is due until
    it is sent, where none before it was still to be sent; else it is sent `send_gap` after that one.
    `refusal`: from when a request was sent until its refusal is noticed, where no earlier refusal was still
    to be noticed; else that is `notice_gap` after that one. Empty gaps: this was not seen.

    Where a quota is used up, all who wait are told the same moment, and who comes first then gets the next
    request: so milliseconds decide how many are refused again.
    """

    late: tuple[int, ...]
    send_gap: tuple[int, ...]
    refusal: tuple[int, ...]
    notice_gap: tuple[int, ...]

    def sent_ns(self, due_ns: int, before_ns: int, random: Random) -> int:
        """When a retry is sent that is due then; the one before it was or will be at `before_ns`."""
        if due_ns > before_ns or not self.send_gap:
            return due_ns + drawn(self.late, random)
        return before_ns + drawn(self.send_gap, random)

    def noticed_ns(self, sent_ns: int, before_ns: int, random: Random) -> int:
        """When the refusal of a request that was sent then is noticed; the one before it: at `before_ns`."""
        if sent_ns > before_ns or not self.notice_gap:
            return sent_ns + drawn(self.refusal, random)
        return max(sent_ns + self.refusal[0], before_ns + drawn(self.notice_gap, random))


def drawn(quantiles: tuple[int, ...], random: Random) -> int:
    """A value as often as these quantiles have it."""
    place, part = divmod(random.random() * (len(quantiles) - 1), 1)
    low = quantiles[int(place)]
    return round(low + part * (quantiles[int(place) + 1] - low))


@dataclass(frozen=True, slots=True)
class RetryRule:
    """A failed attempt is tried again up to `retries` times. Attempts count from 1.

    `base_ns` is the first backoff, doubled with each attempt up to `cap_ns`, of which `jitter` at most is
    left out at random. `most_asked_ns`: a Retry-After above it is not waited for, the request fails.
    `times`: how long the client takes beside these waits; None: it takes no time.
    """

    name: str
    retries: int = 2
    base_ns: int = SECOND_NS // 2
    cap_ns: int = 8 * SECOND_NS
    jitter: float = 0.25
    most_asked_ns: int | None = None
    times: RetryTimes | None = None

    def again(self, attempt: int, status: int | None, retry_after_ns: int | None = None) -> bool:
        """Whether there is another attempt after this one; `status` None: no response came."""
        if attempt > self.retries or not self.waits(retry_after_ns):
            return False
        return status is None or status in (408, 409, 429) or status >= 500

    def waits(self, retry_after_ns: int | None) -> bool:
        """Whether so long a wait that a server asks for is waited at all."""
        return self.most_asked_ns is None or retry_after_ns is None or retry_after_ns <= self.most_asked_ns

    def backoff_ns(self, attempt: int) -> tuple[int, int]:
        """The shortest and the longest wait after an attempt whose response asks for none."""
        longest = min(self.cap_ns, self.base_ns << min(attempt - 1, 64))
        return round(longest * (1 - self.jitter)), longest

    def delay_ns(self, attempt: int, retry_after_ns: int | None, random: Random) -> int:
        """Nanoseconds from the end of an attempt to the next one."""
        if retry_after_ns:
            return retry_after_ns
        longest = self.backoff_ns(attempt)[1]
        return round(longest * (1 - self.jitter * random.random()))


LONGEST_ASKED_S = 4_294_967
"""The longest wait of the SDKs, in seconds."""


def asked_ns(
    milliseconds: str | None, seconds: str | None, wall_clock: Callable[[], float] = time.time
) -> int | None:
    """The wait that a response asks for, as the SDKs read `retry-after-ms` and `retry-after`.

    Whatever `float` takes is a number, else it is a date on this machine's clock. None: no wait is asked for.
    What a record says of the same headers is stricter (`profiler.limits.refusals.asked_wait_ns`).
    """
    wait = None
    for text, unit in ((milliseconds, 1e-3), (seconds, 1.0)):
        try:
            wait = float(text or "") * unit
            break
        except ValueError:
            continue
    if wait is None:
        date = parsedate_tz(seconds or "")
        try:
            wait = 0.0 if date is None else mktime_tz(date) - wall_clock()
        except (ValueError, OverflowError):  # a date that there is not
            wait = 0.0
    return int(min(wait, LONGEST_ASKED_S) * SECOND_NS) if wait > 0 else None


OPENAI = RetryRule("openai", most_asked_ns=120 * SECOND_NS)
ANTHROPIC = RetryRule("anthropic")  # older versions wait a minute at most; above it, their backoff
RULES = {rule.name: rule for rule in (OPENAI, ANTHROPIC)}
"""The rules of the SDKs' own defaults, by the name of the package."""
