"""Quotas by hand and from headers, and the largest rate without 429s."""

from __future__ import annotations

from dataclasses import replace

import pytest

from profiler import UsageError
from profiler.limits.known import KnownQuota, parse_quota, seen_quota
from profiler.limits.quotas import DAY_NS, MINUTE_NS, Quota
from profiler.records import Attempt
from profiler.tune.quotas import Demand, advise, demand, refused, unsaid
from tests.unit.tune_data import loop

S = 1_000_000_000


def test_advised_tokens_are_the_limit_itself_whatever_a_loop_takes() -> None:
    """Its average is any fraction, and 3,600,000 × (23 / 7) / (23 / 7) is 3,599,999.9999999995."""
    for n in range(2, 400):
        for share in (1, n - 1):
            taken = Demand(2.0, (n - share) / 7, share / 7, {}, {})
            advice = advise(parse_quota("openai:tpm=3600000"), taken)
            assert advice is not None
            assert advice.limits == "tokens:3600000/min"
    half = advise(parse_quota("anthropic:otpm=6000"), Demand(2.0, 23 / 7, 23 / 7, {}, {}))
    assert half is not None
    assert half.limits == "tokens:12000/min"


def test_quota_by_hand():
    assert parse_quota("openai:rpm=500,tpm=30000,rpd=10000") == KnownQuota(
        "openai",
        (
            Quota("requests", 500, window_ns=MINUTE_NS),
            Quota("tokens", 30000, window_ns=MINUTE_NS),
            Quota("requests", 10000, window_ns=DAY_NS),
        ),
        "as given",
    )
    assert parse_quota("itpm=100").provider == "model"
    for wrong in ("openai", "openai:rpm=0", "openai:qpm=3", "openai:rpm=-1", "rph=1"):
        with pytest.raises(UsageError, match="--quota"):
            parse_quota(wrong)


def test_advice_is_the_largest_rate_without_429s():
    taken = demand([loop(0, None), loop(S, None)])
    assert taken is not None
    assert (taken.requests, taken.input_tokens, taken.output_tokens, taken.tools) == (1, 200, 50, {"look": 2})
    advice = advise(parse_quota("openai:rpm=500,tpm=30000"), taken)
    assert advice is not None
    assert advice.loops_per_second == pytest.approx(2.0)  # 30,000 / 60 / 250
    assert advice.bound_by == "tokens"
    assert advice.shares == {"requests": pytest.approx(0.24), "tokens": pytest.approx(1.0)}
    assert advice.tools == {"look": pytest.approx(4.0)}
    assert advice.models == {"gpt-4o": 1.0}
    assert advice.limits == "rate:500/min+tokens:30000/min"
    assert advice.sentence == (
        "openai (as given): up to 2 loops/s (120/min) without a 429, bound by tokens; "
        "that uses 24% of requests, 100% of tokens"
    )
    split = advise(parse_quota("anthropic:itpm=12000,otpm=6000"), taken)
    assert split is not None
    assert (split.bound_by, split.limits) == ("input tokens", "tokens:15000/min")  # 12,000 · 250 / 200


def test_quota_that_headers_state():
    def attempt(**headers: str) -> Attempt:
        return Attempt(0, 1, 200, rate_limits=headers)

    def requests(limit: int, remaining: int, reset: str) -> dict[str, str]:
        figures = {"limit": str(limit), "remaining": str(remaining), "reset": reset}
        return {f"x-ratelimit-{word}-requests": figure for word, figure in figures.items()}

    states = [
        attempt(**requests(360, 3, "59.5s")),
        attempt(**requests(300, 299, "200ms"), **{"x-ratelimit-limit-tokens": "-1"}),
        attempt(**requests(300, 300, "0s")),  # no window can be told from this one; the others tell
    ]
    quota = seen_quota([loop(0, None, attempts=(one,)) for one in states])
    assert quota == KnownQuota("openai", (Quota("requests", 300, window_ns=MINUTE_NS),), "from its headers")
    unlimited = attempt(**{"x-ratelimit-limit-requests": "1000000", "x-ratelimit-limit-tokens": "1000000000"})
    assert seen_quota([loop(0, None, attempts=(unlimited,))]) is None


def test_quota_that_nobody_takes_from_limits_nothing():
    silent = Demand(requests=1.0, input_tokens=0.0, output_tokens=0.0, tools={}, models={})
    assert advise(parse_quota("tpm=30000"), silent) is None
    assert demand([replace(loop(0, None), status="error")]) is None
    taken = demand([loop(0, None)])
    assert taken is not None
    only_requests = advise(parse_quota("rpm=60"), taken)
    assert only_requests is not None
    assert only_requests.limits == "rate:60/min"


def test_million_requests_a_minute_is_no_limit_beside_one_that_is():
    stated = {"x-ratelimit-limit-requests": "1000000", "x-ratelimit-limit-tokens-minute": "30000"}
    found = seen_quota([loop(0, None, attempts=(Attempt(0, 1, 200, rate_limits=stated),))])
    assert found == KnownQuota("openai", (Quota("tokens", 30000, window_ns=MINUTE_NS),), "from its headers")


GROQ = {
    "x-ratelimit-limit-requests": "14400",
    "x-ratelimit-remaining-requests": "14370",
    "x-ratelimit-reset-requests": "2m59.56s",
    "x-ratelimit-limit-tokens": "6000",
    "x-ratelimit-remaining-tokens": "5800",
    "x-ratelimit-reset-tokens": "2s",
}


def test_limit_of_a_day_is_none_of_a_minute():
    records = [loop(0, None, attempts=(Attempt(0, 1, 200, rate_limits=GROQ),))]
    quota, taken = seen_quota(records), demand(records)
    assert quota == KnownQuota(
        "openai",
        (Quota("requests", 14400, window_ns=DAY_NS), Quota("tokens", 6000, window_ns=MINUTE_NS)),
        "from its headers",
    )
    assert taken is not None
    advice = advise(quota, taken)
    assert advice is not None
    assert advice.loops_per_second == pytest.approx(14_400 / 86_400)  # not 240 a second
    assert (advice.bound_by, advice.limits) == ("requests a day", "rate:10/min+tokens:6000/min")
    assert advice.sentence == (
        "openai (from its headers): up to 0.167 loops/s (10/min) without a 429, bound by requests a day; "
        "that uses 100% of requests a day, 42% of tokens"
    )
    assert unsaid(quota, taken) == []


def test_window_that_cannot_be_told_is_said_and_no_rate_follows_from_it():
    headers = {"x-ratelimit-limit-requests": "14400", "x-ratelimit-limit-tokens-minute": "6000"}
    records = [loop(0, None, attempts=(Attempt(0, 1, 200, rate_limits=headers),))]
    quota, taken = seen_quota(records), demand(records)
    assert quota is not None
    assert taken is not None
    assert quota.untold == (Quota("requests", 14400),)
    advice = advise(quota, taken)
    assert advice is not None
    assert (advice.bound_by, advice.limits) == ("tokens", "tokens:6000/min")
    assert unsaid(quota, taken) == [
        "openai (from its headers): 14,400 requests, but its window cannot be told, so that no rate follows; "
        "--quota rpm=14400 says that it is a minute, rpd that it is a day"
    ]
    nothing_told = replace(quota, limits=())
    assert advise(nothing_told, taken) is None
    assert len(unsaid(nothing_told, taken)) == 1


def test_fixed_window_of_an_hour_is_none_of_a_minute_near_its_end():
    def attempt(remaining: int, reset: int) -> Attempt:
        figures = {"limit": 1000, "remaining": remaining, "reset": reset}
        return Attempt(0, 1, 200, rate_limits={f"ratelimit-{word}": str(n) for word, n in figures.items()})

    def untold(*attempts: Attempt) -> tuple[Quota, ...]:
        quota = seen_quota([loop(0, None, attempts=(one,)) for one in attempts])
        assert quota is not None
        return quota.untold

    near_its_end = attempt(500, 30)  # as of a minute, of which half is used and half is left
    assert untold(near_its_end) == ()
    assert untold(attempt(510, 90), near_its_end) == (Quota("requests", 1000),)
    assert untold(attempt(0, 90), near_its_end) == ()  # more was taken than there was


def test_tokens_that_are_not_known_are_no_zeros():
    known, silent = loop(0, None), loop(S, None)
    asked = replace(silent.rounds[0].model, input_tokens=None, output_tokens=None)
    silent = replace(silent, rounds=(replace(silent.rounds[0], model=asked),))
    taken = demand([known, silent])
    assert taken is not None
    assert (taken.requests, taken.input_tokens, taken.output_tokens) == (1, 200, 50)
    assert (taken.unknown, taken.asked) == (1, 2)
    quota = parse_quota("openai:rpm=500,tpm=30000")
    assert unsaid(quota, taken) == [
        "openai: of 1 of 2 requests the tokens are not known; they are taken to be like the others"
    ]
    nothing = demand([silent])
    assert nothing is not None
    assert (nothing.of("tokens"), nothing.models) == (None, {})
    advice = advise(quota, nothing)
    assert advice is not None
    assert (advice.bound_by, advice.limits) == ("requests", "rate:500/min")
    assert unsaid(quota, nothing) == [
        "openai: what loops take of tokens is not known: the server did not say its tokens, and the rate "
        "leaves that limit out"
    ]


@pytest.mark.parametrize(("provider", "counted"), [("anthropic", 20_012), ("openai", 50_012)])
def test_tokens_that_count_are_those_of_the_providers_rule(provider, counted):
    made = loop(0, None)
    asked = replace(
        made.rounds[0].model,
        provider=provider,
        input_tokens=50_012,
        cached_tokens=30_000,
        cache_written_tokens=20_000,
        output_tokens=88,
    )
    taken = demand([replace(made, rounds=(replace(made.rounds[0], model=asked),))])
    assert taken is not None
    assert (taken.of("input_tokens"), taken.of("tokens")) == (counted, counted + 88)


def test_requests_that_were_refused_are_not_part_of_what_loops_take():
    tries = (Attempt(0, 1, 429), Attempt(2, 3, 500), Attempt(4, 5, 200))
    taken = demand([loop(0, None, attempts=tries)])
    assert taken is not None
    assert taken.requests == 2


def test_what_the_models_server_refused_is_said_with_what_helps():
    tries = (Attempt(0, 1, 429), Attempt(2, 3, 200))
    records = [loop(0, None, attempts=tries), loop(S, None)]
    assert refused(records, "rate:500/min", held=False) == (
        "the model's server refused 1 of 3 requests (429), and no limit on tool calls changes that: "
        "--model-limit rate:500/min keeps to its quota"
    )
    assert (refused(records, None, held=False) or "").endswith("--model-limit holds requests back")
    assert (refused(records, "rate:5/s", held=True) or "").endswith(
        "--model-limit has to be lower, such as rate:5/s"
    )
    assert (refused(records, None, held=True) or "").endswith("--model-limit has to be lower")
    assert refused([loop(0, None)], None, held=False) is None
    assert refused([loop(0, None, error="http_429")], None, held=False) is None  # that was a tool
    rare = [loop(0, None, attempts=tries), *(loop(0, None) for _ in range(200))]
    assert refused(rare, None, held=False) is None
