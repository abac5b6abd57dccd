"""The rule by which a client tries model requests again: that of the providers' SDKs, or not known. Pure.

Both SDKs wait min(8 s, 0.5·2ⁿ⁻¹ s)·(1 - U(0, 0.25)) after attempt n, and as long as a Retry-After asks where
the response has one. OpenAI's gives up when that is more than two minutes. The figures are those of the SDKs'
own code, most of which they do not export; `test_prediction_quotas_retries.py` holds them against it.

Requests behind a limiter of ours are tried again by another rule (`profiler.loop.model.LimitedModel`), and
so are tool calls (`profiler.loop.calls`): for both, `profiler.limits.refusals.delay_ns`, or the wait of the
gate (`Holdback`) where a server asked for one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random
from statistics import median

import numpy as np

from profiler.records import Attempt, ModelCall, vendor

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
        if attempt > self.retries:
            return False
        if None not in (self.most_asked_ns, retry_after_ns) and retry_after_ns > self.most_asked_ns:  # type: ignore[operator]
            return False
        return status is None or status in (408, 409, 429) or status >= 500

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


OPENAI = RetryRule("openai", most_asked_ns=120 * SECOND_NS)
ANTHROPIC = RetryRule("anthropic")  # older versions wait a minute at most; above it, their backoff
RULES = {rule.name: rule for rule in (OPENAI, ANTHROPIC)}
"""The rules of the SDKs' own defaults, by the name of the package."""

SLACK_NS = 50_000_000
LATE_SHARE = 0.1
"""How much longer than its rule says, and than the others, a client may have waited."""

MOST_LATE_NS = 250_000_000
"""How much longer than its rule says most waits of a busy client may be: its event loop is late."""

EARLY_NS = 2_000_000

QUANTILES = 41
"""Of how long a client takes; more would be noise."""

FEWEST = 20
"""Times of one kind from which their quantiles are taken."""

AGREE = 0.9
"""The share of waits that have to be as the rule says."""


@dataclass(frozen=True, slots=True)
class ObservedRetries:
    """How a recording's client tried model requests again.

    `rule` is the one that its waits agree with, with its number of retries; None where it is not known.
    Of `waits` between attempts `agreeing` did. `seen`: the most retries of one request; `exhausted`: requests
    were given up after so many, so that it is known that there are no more. `words`: what is not known.
    """

    rule: RetryRule | None
    waits: int = 0
    agreeing: int = 0
    seen: int = 0
    exhausted: bool = False
    words: str = ""


def observed_retries(calls: Iterable[ModelCall], retries: int | None = None) -> ObservedRetries:
    """The retry rule of the client that made these calls of one provider.

    `retries`: how many its options say, if they are known; else as many as were seen, where requests were
    given up after them, and the SDK's default where none was.
    """
    rule: RetryRule | None = None
    seen = unseen = 0
    waited: list[tuple[int, int, int]] = []
    given_up: set[int] = set()
    for call in calls:
        if not call.asked:
            continue
        rule = RULES.get(vendor(call.provider), rule)
        unseen += call.resends
        if rule is None or not call.attempts:
            continue
        seen = max(seen, len(call.attempts) - 1)
        unbounded = replace(rule, retries=len(call.attempts))
        last = call.attempts[-1]
        tried_again = unbounded.again(1, last.status, last.retry_after_ns)
        if call.status == "error" and last.status is not None and tried_again:
            given_up.add(len(call.attempts) - 1)
        for n, (one, after) in enumerate(pairwise(call.attempts), start=1):
            asked_ns = one.retry_after_ns
            waited.append(
                (after.started_ns - one.ended_ns, *((asked_ns, asked_ns) if asked_ns else rule.backoff_ns(n)))
            )
    exhausted = len(given_up) == 1
    waits, agreeing = len(waited), _agreeing(waited)
    found = ObservedRetries(None, waits, agreeing, seen, exhausted)
    if rule is None:
        return replace(found, words="the client's retries are not known: no SDK is known for this provider")
    if unseen:
        return replace(found, words=f"{unseen} tries were seen without their times: its waits are not known")
    if waits and agreeing < AGREE * waits:
        words = f"{waits - agreeing} of {waits} waits before a retry are not those of the {rule.name} SDK"
        return replace(found, words=f"{words}: the client has a retry rule of its own, which is not known")
    if len(given_up) > 1:
        counts = ", ".join(map(str, sorted(given_up)))
        return replace(found, words=f"requests were given up after {counts} retries: no one rule does so")
    count = retries
    words = ""
    if count is None:
        count = given_up.pop() if given_up else max(seen, rule.retries)
        if not exhausted:
            words = f"no request was given up: {count} retries are taken, the {rule.name} SDK's default"
            if seen > rule.retries:
                words = f"no request was given up: {count} retries are taken, the most that were seen"
    return replace(found, rule=replace(rule, retries=count), words=words)


def observed_times(processes: Iterable[Iterable[ModelCall]]) -> RetryTimes | None:
    """How long clients took with retries, from the calls of each process; None: too few were asked for."""
    late: list[int] = []
    send_gap: list[int] = []
    refusal: list[int] = []
    notice_gap: list[int] = []
    for calls in processes:
        retries, refusals = [], []
        for call in calls:
            for one, after in pairwise(call.attempts):
                if one.retry_after_ns:
                    retries.append((_sent_ns(after), one.ended_ns + one.retry_after_ns))
            refusals += [(one.ended_ns, _sent_ns(one)) for one in call.attempts if one.status == 429]
        _sort_gaps(retries, late, send_gap)
        _sort_gaps(refusals, refusal, notice_gap)
    if min(len(late), len(refusal)) < FEWEST:
        return None
    kinds = (late, send_gap, refusal, notice_gap)
    return RetryTimes(*(_quantiles(one) if len(one) >= FEWEST else () for one in kinds))


def _sort_gaps(times: list[tuple[int, int]], alone: list[int], behind: list[int]) -> None:
    """Of (when it happened, from when it could): how long it took alone, or behind the one before it."""
    times.sort()
    before = None
    for happened, could in times:
        if before is None or could > before:
            alone.append(max(0, happened - could))
        else:
            behind.append(happened - before)
        before = happened


def _quantiles(values: list[int]) -> tuple[int, ...]:
    return tuple(int(one) for one in np.quantile(values, np.linspace(0.0, 1.0, QUANTILES)))


def _sent_ns(attempt: Attempt) -> int:
    return attempt.started_ns if attempt.sent_ns is None else attempt.sent_ns


def _agreeing(waited: list[tuple[int, int, int]]) -> int:
    """How many of the waits are as a rule says; each with the shortest and the longest that it allows.

    A busy client is late, with all of them alike: it is never early.
    """
    if not waited:
        return 0
    late_ns = min(MOST_LATE_NS, max(0, int(median(wait - longest for wait, _, longest in waited))))
    return sum(
        shortest - EARLY_NS <= wait <= longest * (1 + LATE_SHARE) + SLACK_NS + 2 * late_ns
        for wait, shortest, longest in waited
    )
