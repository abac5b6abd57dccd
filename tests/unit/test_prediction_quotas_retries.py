"""How the client of a recording tried requests again, held against the SDKs' rules."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from profiler.limits.retries import ANTHROPIC, OPENAI, RetryRule, RetryTimes
from profiler.prediction.quotas.retries import observed_retries, observed_times
from profiler.records import Attempt, ModelCall

SECOND = 1_000_000_000
MS = 1_000_000


class Drawn(Random):
    def __init__(self, value: float) -> None:
        super().__init__(0)
        self.value = value

    def random(self) -> float:
        return self.value


# What a recording shows


def call(*waits: tuple[int | None, int], ended: int | None = 200, provider: str = "openai") -> ModelCall:
    """A call whose attempts were refused, each with (Retry-After, the wait before the next), but the last."""
    at, attempts = 0, []
    for asked, wait in waits:
        attempts.append(Attempt(at, at + 1000, 429, retry_after_ns=asked))
        at += 1000 + wait
    attempts.append(Attempt(at, at + 1000, ended))
    return ModelCall(
        provider, "m", 0, at + 1000, status="ok" if ended == 200 else "error", attempts=tuple(attempts)
    )


def sdk_calls(
    rule: RetryRule, *, ended: int = 429, late_ns: int = 0, provider: str = "openai"
) -> list[ModelCall]:
    random = Random(3)
    return [
        call(
            *(
                (asked, rule.delay_ns(n, asked, random) + round(late_ns * random.random()))
                for n, asked in enumerate([None, SECOND, None, 11_000_000][: rule.retries], start=1)
            ),
            ended=ended,
            provider=provider,
        )
        for _ in range(30)
    ]


@pytest.mark.parametrize("late_ns", [0, 20_000_000, 130_000_000])
def test_waits_of_the_sdk_agree_with_its_rule_though_its_client_is_late(late_ns: int) -> None:
    found = observed_retries(sdk_calls(OPENAI, late_ns=late_ns))
    assert found.rule is not None
    assert found.rule == OPENAI
    assert (found.waits, found.seen, found.exhausted, found.words) == (60, 2, True, "")
    assert found.agreeing >= 58


TIMES = RetryTimes(
    late=(1 * MS, 3 * MS, 11 * MS),
    send_gap=(2 * MS, 2 * MS),
    refusal=(4 * MS, 6 * MS),
    notice_gap=(1 * MS, 1 * MS),
)


def test_retry_is_as_late_as_the_client_or_comes_behind_the_one_before() -> None:
    due = 100 * MS
    assert [TIMES.sent_ns(due, 99 * MS, Drawn(drawn)) - due for drawn in (0.0, 0.25, 0.5, 0.75)] == [
        1 * MS,
        2 * MS,
        3 * MS,
        7 * MS,
    ]
    assert TIMES.sent_ns(due, 105 * MS, Drawn(0.5)) == 107 * MS
    assert replace(TIMES, send_gap=()).sent_ns(due, 105 * MS, Drawn(0.5)) == 103 * MS


def test_refusals_are_noticed_one_after_another_and_none_before_it_was_answered() -> None:
    sent = 100 * MS
    assert TIMES.noticed_ns(sent, 90 * MS, Drawn(0.5)) == 105 * MS
    assert TIMES.noticed_ns(sent, 107 * MS, Drawn(0.5)) == 108 * MS
    assert TIMES.noticed_ns(sent, 100 * MS, Drawn(0.5)) == 104 * MS  # 101 is sooner than any refusal
    assert replace(TIMES, notice_gap=()).noticed_ns(sent, 107 * MS, Drawn(0.5)) == 105 * MS


def refused_together(at: int, count: int) -> list[ModelCall]:
    """Calls refused at once, told to wait 50 ms, and sent again 2 ms after each other, the first 3 ms late.

    Refusals are noticed after 5 ms, the others 1 ms after each other.
    """
    calls = []
    for place in range(count):
        noticed = at + (5 + place) * MS
        again = at + (5 + 50 + 3 + 2 * place) * MS
        attempts = (
            Attempt(at, noticed, 429, sent_ns=at, retry_after_ns=50 * MS),
            Attempt(again, again + 400 * MS, 200, sent_ns=again),
        )
        calls.append(ModelCall("openai", "m", at, again + 400 * MS, attempts=attempts))
    return calls


def test_times_of_retries_are_those_of_the_first_and_of_those_behind_it() -> None:
    herd = [one for n in range(30) for one in refused_together(n * 1000 * MS, 3)]
    found = observed_times([herd])
    assert found is not None
    assert [set(one) for one in (found.late, found.send_gap, found.refusal, found.notice_gap)] == [
        {3 * MS},
        {2 * MS},
        {5 * MS},
        {1 * MS},
    ]
    # Each alone in its process: nobody was behind anybody.
    alone = observed_times([[one] for one in herd])
    assert alone is not None
    assert (alone.send_gap, alone.notice_gap) == ((), ())
    assert (min(alone.late), max(alone.late)) == (3 * MS, 5 * MS)
    assert observed_times([herd[:30]]) is None  # ten that were first are too few


def test_number_of_retries_is_the_one_that_requests_were_given_up_after() -> None:
    found = observed_retries(sdk_calls(replace(ANTHROPIC, retries=4), provider="anthropic"))
    assert found.rule == replace(ANTHROPIC, retries=4)
    assert found.exhausted


def test_number_of_retries_is_the_sdks_default_where_no_request_was_given_up() -> None:
    found = observed_retries([call((None, 450_000_000)), call()])
    assert found.rule == OPENAI
    assert found.words == "no request was given up: 2 retries are taken, the openai SDK's default"
    assert observed_retries([call()], retries=0).rule == replace(OPENAI, retries=0)
    many = observed_retries(sdk_calls(replace(OPENAI, retries=4), ended=200))
    assert many.rule == replace(OPENAI, retries=4)
    assert many.words == "no request was given up: 4 retries are taken, the most that were seen"


@pytest.mark.parametrize(
    "waits",
    [
        [(None, 20_000_000)] * 3,  # at once
        [(None, 5 * SECOND)] * 3,  # later than the first backoff of the SDK's
        [(SECOND, SECOND // 2)] * 3,  # Retry-After not heeded
        [(SECOND, 2 * SECOND)] * 3,  # and more of it than asked for
    ],
)
def test_retries_of_an_applications_own_are_not_known(waits: list[tuple[int | None, int]]) -> None:
    found = observed_retries([call(one) for one in waits])
    assert found.rule is None
    assert found.words == (
        "3 of 3 waits before a retry are not those of the openai SDK: the client has a retry rule of its "
        "own, which is not known"
    )


def test_retries_are_not_known_where_nothing_tells_of_them() -> None:
    unseen = replace(call(), resends=2)
    assert (
        observed_retries([unseen]).words == "2 tries were seen without their times: its waits are not known"
    )
    assert observed_retries([call(provider="gemini")]).rule is None
    assert observed_retries([]).rule is None
    assert observed_retries([call(provider="none")]).rule is None
    mixed = observed_retries([call(ended=429), call((None, 450_000_000), ended=429)])
    assert mixed.rule is None
    assert mixed.words == "requests were given up after 0, 1 retries: no one rule does so"
