"""Quotas in rate-limit headers: every dialect, windows that are named, inferred or not to be told."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.limits.gate import Gate
from profiler.limits.quotas import (
    DAY_NS,
    HOUR_NS,
    MINUTE_NS,
    MONTH_NS,
    SECOND_NS,
    Quota,
    duration_ns,
    kept,
    moment_s,
    stated,
)
from profiler.limits.refusals import parse_retry_after
from profiler.testing import run_virtual

TEN_O_CLOCK = "Sun, 29 Nov 2026 10:00:00 GMT"


def openai(resource: str, limit: object, remaining: object, reset: object) -> dict[str, str]:
    figures = {"limit": limit, "remaining": remaining, "reset": reset}
    return {f"x-ratelimit-{word}-{resource}": str(figure) for word, figure in figures.items()}


def anthropic(resource: str, limit: object, remaining: object, reset: object) -> dict[str, str]:
    figures = {"limit": limit, "remaining": remaining, "reset": reset}
    return {
        "date": TEN_O_CLOCK,
        **{f"anthropic-ratelimit-{resource}-{word}": str(figure) for word, figure in figures.items()},
    }


def windows(headers: dict[str, str], now_s: float | None = None) -> dict[str, int | None]:
    return {quota.resource: quota.window_ns for quota in stated(headers, now_s)}


@pytest.mark.parametrize(
    ("headers", "quotas"),
    [
        (  # OpenAI: 5,000 a minute are 12 ms each
            openai("requests", 5000, 4999, "12ms"),
            [Quota("requests", 5000, 4999, 12_000_000, MINUTE_NS)],
        ),
        (
            openai("tokens", 160000, 159976, "9ms"),
            [Quota("tokens", 160_000, 159_976, 9_000_000, MINUTE_NS)],
        ),
        (openai("requests", 60, 59, "1s"), [Quota("requests", 60, 59, SECOND_NS, MINUTE_NS)]),
        (openai("tokens", 30000, 0, "1m0s"), [Quota("tokens", 30_000, 0, MINUTE_NS, MINUTE_NS)]),
        (openai("project-tokens", 1000, 500, "30s"), [Quota("tokens", 1000, 500, 30 * SECOND_NS, MINUTE_NS)]),
        (  # Groq: 30 of 14,400 are back in 179.56 s
            openai("requests", 14400, 14370, "2m59.56s"),
            [Quota("requests", 14_400, 14_370, 179_560_000_000, DAY_NS)],
        ),
        (openai("requests", 14400, 14399, "6s"), [Quota("requests", 14_400, 14_399, 6 * SECOND_NS, DAY_NS)]),
        (openai("requests", 100, 0, "1h0m0s"), [Quota("requests", 100, 0, HOUR_NS, None)]),
        (openai("requests", 100, 40, "36m0s"), [Quota("requests", 100, 40, 36 * MINUTE_NS, HOUR_NS)]),
        (  # Anthropic, by the server's own clock
            anthropic("requests", 50, 49, "2026-11-29T10:00:02Z"),
            [Quota("requests", 50, 49, 2 * SECOND_NS, MINUTE_NS)],
        ),
        (
            anthropic("input-tokens", 40000, 40000, "2026-11-29T10:00:00Z"),
            [Quota("input_tokens", 40_000, 40_000, 0, MINUTE_NS)],
        ),
        (  # what is documented as a minute may be another window all the same
            anthropic("requests", 1000, 900, "2026-11-29T12:24:00+00:00"),
            [Quota("requests", 1000, 900, 8640 * SECOND_NS, DAY_NS)],
        ),
        (
            {"anthropic-ratelimit-output-tokens-limit": "8000"},
            [Quota("output_tokens", 8000, window_ns=MINUTE_NS)],
        ),
        (  # Mistral
            {
                "x-ratelimit-limit-req-minute": "720",
                "x-ratelimit-remaining-req-minute": "719",
                "x-ratelimit-limit-tokens-minute": "500000",
                "x-ratelimit-tokens-query-cost": "1300",
            },
            [
                Quota("requests", 720, 719, None, MINUTE_NS, "minute"),
                Quota("tokens", 500_000, None, None, MINUTE_NS, "minute"),
            ],
        ),
        (
            {"x-ratelimitbysize-limit-month": "1000000", "x-ratelimitbysize-remaining-month": "999"},
            [Quota("tokens", 1_000_000, 999, None, MONTH_NS, "month")],
        ),
        ({"ratelimitbysize-limit": "500000"}, [Quota("tokens", 500_000)]),
        (  # Cerebras
            {
                **openai("requests-day", 1440000, 1439999, "33011.382867"),
                **openai("tokens-minute", 60000, 59000, "11.38"),
            },
            [
                Quota("requests", 1_440_000, 1_439_999, 33_011_382_867_000, DAY_NS, "day"),
                Quota("tokens", 60_000, 59_000, 11_380_000_000, MINUTE_NS, "minute"),
            ],
        ),
        (
            {"x-ratelimit-limit-tokens-per-day": "9", "x-ratelimit-limit-prompt-tokens": "7"},
            [Quota("tokens", 9, None, None, DAY_NS, "day"), Quota("input_tokens", 7)],
        ),
        (  # Azure
            openai("tokens", 30000, 29000, 2),
            [Quota("tokens", 30_000, 29_000, 2 * SECOND_NS, MINUTE_NS)],
        ),
        (openai("tokens", -1, -1, 0), []),
        ({"x-rate-limit-remaining-tokens": "12"}, [Quota("tokens", None, 12)]),
        (  # as Python writes seconds
            openai("requests-day", 1000, 999, "33011.382867336273"),
            [Quota("requests", 1000, 999, 33_011_382_867_336, DAY_NS, "day")],
        ),
        (  # RFC 3339 in small letters
            anthropic("requests", 50, 49, "2026-11-29t10:00:02z"),
            [Quota("requests", 50, 49, 2 * SECOND_NS, MINUTE_NS)],
        ),
        (openai("tokens", "2,000,000", 1999, "30ms"), [Quota("tokens", None, 1999, 30_000_000)]),
        ({"x-ratelimit-limit-requests": "100, 100"}, [Quota("requests", 100)]),  # two lines of one header
        (  # OpenRouter, GitHub: fixed windows
            {"X-RateLimit-Limit": "50", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1795996800000"},
            [Quota("requests", 50, 0, 50_400 * SECOND_NS, DAY_NS)],
        ),
        (
            {
                "x-ratelimit-limit": "60",
                "x-ratelimit-remaining": "59",
                "x-ratelimit-reset": "1795946460",
                "date": TEN_O_CLOCK,
            },
            [Quota("requests", 60, 59, 60 * SECOND_NS, None)],
        ),
        # IETF drafts
        (
            {
                "RateLimit": '"default";r=50;t=30',
                "RateLimit-Policy": '"default";q=100;w=60, "day";q=1000;w=86400',
            },
            [
                Quota("requests", 100, 50, 30 * SECOND_NS, MINUTE_NS, "minute"),
                Quota("requests", 1000, None, None, DAY_NS, "day"),
            ],
        ),
        (
            {
                "RateLimit": '"a";r=9;t=30, "b";r=8;t=1',
                "RateLimit-Policy": '"a";q=10;w=90;qu="tokens", "b";q=10;w=60',
            },
            [
                Quota("tokens", 10, 9, 30 * SECOND_NS, 90 * SECOND_NS),
                Quota("requests", 10, 8, SECOND_NS, MINUTE_NS, "minute"),
            ],
        ),
        (
            {
                "RateLimit-Limit": "100",
                "RateLimit-Remaining": "50",
                "RateLimit-Reset": "30",
                "RateLimit-Policy": "100;w=60, 1000;w=3600",
            },
            [
                Quota("requests", 100, 50, 30 * SECOND_NS, MINUTE_NS, "minute"),
                Quota("requests", 1000, None, None, HOUR_NS, "hour"),
            ],
        ),
        (
            {"RateLimit": "limit=100, remaining=50, reset=5", "RateLimit-Policy": "10;w=1, 100;w=3600"},
            [
                Quota("requests", 100, 50, 5 * SECOND_NS, HOUR_NS, "hour"),
                Quota("requests", 10, None, None, SECOND_NS, "second"),
            ],
        ),
        (
            {"RateLimit-Limit": "100, 100;w=60, 10000;window=86400", "RateLimit-Remaining": "98"},
            [
                Quota("requests", 100, 98, None, MINUTE_NS, "minute"),
                Quota("requests", 10_000, None, None, DAY_NS, "day"),
            ],
        ),
        (
            {"RateLimit-Limit": "100", "RateLimit-Remaining": "50", "RateLimit-Reset": "30"},
            [Quota("requests", 100, 50, 30 * SECOND_NS, MINUTE_NS)],
        ),
        ({"RateLimit": '"default";r=50;t=30'}, [Quota("requests", None, 50, 30 * SECOND_NS)]),
    ],
)
def test_quotas_of_every_dialect(headers: dict[str, str], quotas: list[Quota]) -> None:
    assert list(stated(headers, moment_s(TEN_O_CLOCK))) == quotas


@pytest.mark.parametrize(
    "headers",
    [
        {"x-ratelimit-limit-requests": "14400"},  # and nothing else
        openai("requests", 14400, 14400, "0s"),  # nothing used
        openai("requests", 14400, 14400, "6s"),
        openai("requests", 100, 150, "6s"),  # more left than allowed
        openai("tokens", 150000, 149984, "6m0s"),  # 16 tokens in six minutes would be 39 days for all
        openai("requests", 1000000, 999999, "1s"),  # to the second: of a minute, an hour or a day
        openai("requests", 60, 59, "1m0s"),  # the first request of a fixed minute, or a bucket of an hour
        openai("tokens", 30000, 29000, 55),
        openai("requests", 500, 499, "2099-01-01T00:00:00Z"),  # years
        openai("requests", 500, 499, "soon"),
        openai("requests", 0, 0, "1s"),  # a model that is not in the plan
        {"RateLimit-Limit": "100", "RateLimit-Remaining": "90", "RateLimit-Reset": "30"},
    ],
)
def test_window_that_cannot_be_told_is_none(headers: dict[str, str]) -> None:
    (quota,) = stated(headers, 1_795_946_400.0)
    assert quota.window_ns is None
    assert quota.per_second is None


def test_bucket_of_less_than_a_minute_is_one_of_a_minute() -> None:
    # 3,600 a minute, of which 36 at once: it is full again long before 3,565 requests would be back.
    assert windows(openai("requests", 3600, 35, "17ms")) == {"requests": MINUTE_NS}
    assert windows(openai("requests", 10, 9, "100ms")) == {"requests": SECOND_NS}


@settings(max_examples=300)
@given(
    limit=st.integers(10, 10**8),
    share=st.floats(0.001, 1.0),
    window_ns=st.sampled_from([MINUTE_NS, HOUR_NS, DAY_NS]),
    decimals=st.integers(0, 3),
)
def test_window_that_is_told_is_the_one_that_the_bucket_has(
    limit: int, share: float, window_ns: int, decimals: int
) -> None:
    """Whatever a full-sized bucket has given away and however its reset is rounded: its window, or none."""
    used = max(1, round(limit * share))
    reset_s = used / limit * window_ns / SECOND_NS
    told = windows(openai("requests", limit, limit - used, f"{reset_s:.{decimals}f}s"))["requests"]
    assert told in (window_ns, None)
    if decimals == 3 and 1 < reset_s < 40:
        assert told == window_ns


@given(st.dictionaries(st.sampled_from(sorted({
    *openai("requests", 1, 1, 1), *openai("tokens-day", 1, 1, 1), *anthropic("requests", 1, 1, 1),
    *openai("req-minute", 1, 1, 1), "ratelimit", "ratelimit-policy", "ratelimit-limit", "ratelimit-remaining",
    "ratelimit-reset", "x-ratelimit-limit", "x-ratelimit-reset", "x-ratelimit-remaining", "date",
})), st.one_of(
    st.text(max_size=40),
    st.integers(-(10**30), 10**30).map(str),
    st.floats().map(str),
    st.from_regex(r'("[a-z]*"|[0-9]{0,4})(;[qrtw]=[0-9.]{0,6}){0,3}', fullmatch=True),
    st.from_regex(r"([0-9]{1,12}(\.[0-9]{1,3})?(d|h|m|s|ms|us)){1,4}", fullmatch=True),
    st.datetimes().map(lambda at: at.isoformat() + "Z"),
)))  # fmt: skip
def test_whatever_headers_say_nothing_is_raised_and_nothing_is_negative_or_infinite(
    headers: dict[str, str],
) -> None:
    for quota in stated(headers, 1_795_946_400.0):
        for figure in (quota.limit, quota.remaining, quota.reset_ns, quota.window_ns, quota.per_second):
            assert figure is None or (figure >= 0 and math.isfinite(figure))

    async def heeded(clock) -> tuple[list[tuple[float, float]], list[tuple[float, float]], int]:
        gate = Gate("rate:600/min,burst=20+tokens:60000/min,burst=1000", clock=clock)
        limiters = gate.limiters()[0].limiters

        def allowed() -> list[tuple[float, float]]:
            return [(one.rate, one.level(clock())) for one in limiters]

        before = allowed()
        gate.heed("", headers)
        return (
            before,
            allowed(),
            max(one.wait_ns(clock(), {"requests": 1, "tokens": 100}) for one in limiters),
        )

    before, after, wait_ns = run_virtual(heeded)
    for (rate, level), (lower, less) in zip(before, after, strict=True):
        assert 0 < lower <= rate
        assert math.isfinite(less)
        assert less <= level
    assert 0 <= wait_ns < 2**62  # a time after which it goes on


def test_limit_of_a_day_slows_nobody_down_until_what_is_left_would_not_last_a_minute() -> None:
    plenty = Quota("requests", 14_400, 14_370, None, DAY_NS)
    assert plenty.lowers(10.0) is None
    nearly_gone = Quota("requests", 14_400, 599, None, DAY_NS)
    assert nearly_gone.lowers(10.0) == pytest.approx(1 / 6)  # a second
    assert nearly_gone.lowers(0.1) is None
    assert Quota("requests", 14_400, None, None, DAY_NS).lowers(10.0) is None
    assert Quota("requests", 600, 600, None, MINUTE_NS).lowers(20.0) == 10.0
    assert Quota("requests", 600, 600).lowers(20.0) == 10.0  # a minute is the least that it can be
    assert Quota("requests", 0, 0, None, MINUTE_NS).lowers(20.0) is None  # a hint that would stop everything
    assert Quota("requests", None, 5).lowers(20.0) is None


def test_processes_that_share_limits_take_their_parts_of_what_headers_say() -> None:
    async def main(clock):
        gate = Gate("rate:600/min,burst=20", share=4, clock=clock)
        (limiter,) = gate.limiters()
        before = limiter.rate
        gate.heed("", openai("requests", 300, 4, "59.2s"))
        return before, limiter.rate, limiter.level(clock())

    assert run_virtual(main) == (2.5, 1.25, 1.0)


def test_quota_in_words() -> None:
    assert Quota("requests", 14_400, window_ns=DAY_NS).words == "14,400 requests a day"
    assert Quota("input_tokens", 40_000, window_ns=MINUTE_NS).words == "40,000 input tokens a minute"
    assert Quota("tokens", 10, window_ns=90 * SECOND_NS).words == "10 tokens in 90 s"
    assert Quota("requests", 5, window_ns=HOUR_NS).words == "5 requests an hour"
    assert Quota("requests", 500).words == "500 requests"


def test_headers_that_a_record_keeps() -> None:
    dialects = [
        *openai("requests", 1, 1, "1s").items(),
        ("x-ratelimit-limit-req-minute", "720"),
        ("x-ratelimit-reset-requests-day", "33011.38"),
        ("x-rate-limit-reset-tokens", "55"),
        ("x-ratelimitbysize-remaining-minute", "1"),
        ("ratelimitbysize-reset", "12"),
        ("x-tokenlimit-remaining", "98500"),
        ("anthropic-ratelimit-tokens-limit", "1"),
        ("anthropic-priority-input-tokens-limit", "1"),
        ("ratelimit-limit", "100"),
        ("ratelimit", '"default";r=50;t=30'),
    ]
    others = [
        ("date", TEN_O_CLOCK),
        ("set-cookie", "secret"),
        ("anthropic-organization-id", "org"),
        ("x-limit", "1"),
    ]
    assert kept([*dialects, *others]) == dict(dialects)
    assert kept(others) is None
    moment = ("anthropic-ratelimit-tokens-reset", "2026-11-29T10:00:02Z")
    assert kept([moment, *others]) == dict([moment, others[0]])  # a time needs the clock that it is of
    lines = [("ratelimit-policy", "10;w=1"), ("ratelimit-policy", "100;w=60")]
    assert kept(lines) == {"ratelimit-policy": "10;w=1, 100;w=60"}
    assert kept([("x-ratelimit-limit", "1" * 9000)]) is None
    assert len(kept((f"x-ratelimit-limit-{n}", "1") for n in range(1000)) or ()) == 48


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1s", SECOND_NS),
        ("6m0s", 6 * MINUTE_NS),
        ("17ms", 17_000_000),
        ("1m12s", 72 * SECOND_NS),
        ("1h2m3s", 3723 * SECOND_NS),
        ("2m59.56s", 179_560_000_000),
        ("12µs", 12_000),
        ("1d", DAY_NS),
    ],
)
def test_durations_as_go_writes_them(text: str, ns: int) -> None:
    found = duration_ns(text)
    assert found is not None
    assert found[0] == ns


def test_text_that_is_no_duration() -> None:
    assert [duration_ns(text) for text in ("", "5", "s", "-1s", "1s later", "1,5s")] == [None] * 6


@pytest.mark.parametrize(
    ("milliseconds", "seconds", "wait_s"),
    [
        (None, "3", 3),
        (None, "0.25", 0.25),
        (None, "1.7999999523162842", 1.799999952),
        (None, "1.2345678901234567s", 1.23456789),
        (None, " 7 ", 7),
        ("1500", "9", 1.5),
        ("1500.5", None, 1.5005),
        ("soon", "9", 9),
        (None, "7s", 7),
        (None, "1m12s", 72),
        (None, "86400", 86_400),
        (None, "Sun, 29 Nov 2026 10:00:05 GMT", 5),
        (None, "Sunday, 29-Nov-26 10:00:05 GMT", 5),
        (None, "Sun Nov 29 10:00:05 2026", 5),
        (None, "2026-11-29T10:00:05Z", 5),
        (None, TEN_O_CLOCK, 0),
        (None, "Sun, 06 Nov 1994 08:49:37 GMT", 0),
        (None, "Fri, 31 Dec 9999 23:59:59 GMT", None),
        *(
            (None, text, None)
            for text in ("-1", "nan", "inf", "1e999", "1000000", "99999999999h", "later", "")
        ),
        *((text, None, None) for text in ("-250", "nan", "", "99999999999999999999")),
    ],
)
def test_retry_after_in_every_form(
    milliseconds: str | None, seconds: str | None, wait_s: float | None
) -> None:
    found = parse_retry_after(milliseconds, seconds, lambda: moment_s(TEN_O_CLOCK) or 0.0)
    assert found == (None if wait_s is None else round(wait_s * SECOND_NS))


@given(
    st.one_of(st.none(), st.text(max_size=40), st.floats().map(str), st.integers().map(str)),
    st.text(max_size=40),
)
def test_retry_after_is_never_negative_and_never_beyond_measure(
    milliseconds: str | None, seconds: str
) -> None:
    found = parse_retry_after(milliseconds, seconds, lambda: 0.0)
    assert found is None or 0 <= found < 10**15
