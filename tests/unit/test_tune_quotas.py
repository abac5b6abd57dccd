"""Quotas by hand and from headers, and the largest rate without 429s."""

from __future__ import annotations

from dataclasses import replace

import pytest

from profiler import UsageError
from profiler.records import Attempt
from profiler.tune.quotas import Demand, KnownQuota, advise, demand, parse_quota, seen_quota
from tests.unit.tune_data import loop

S = 1_000_000_000


def test_quota_by_hand():
    assert parse_quota("openai:rpm=500,tpm=30000") == KnownQuota(
        "openai", {"requests": 500, "tokens": 30000}, "as given"
    )
    assert parse_quota("itpm=100").provider == "model"
    for wrong in ("openai", "openai:rpm=0", "openai:qpm=3", "openai:rpm=-1"):
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
    assert (split.bound_by, split.limits) == ("input_tokens", "tokens:15000/min")  # 12,000 · 250 / 200


def test_quota_that_headers_state():
    def attempt(**headers: str) -> Attempt:
        return Attempt(0, 1, 200, rate_limits=headers)

    states = [
        attempt(**{"x-ratelimit-limit-requests": "360", "x-ratelimit-remaining-requests": "3"}),
        attempt(**{"x-ratelimit-limit-requests": "300", "x-ratelimit-limit-tokens": "-1"}),
    ]
    quota = seen_quota([loop(0, None, attempts=(one,)) for one in states])
    assert quota == KnownQuota("openai", {"requests": 300.0}, "from its headers")
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
    stated = {"x-ratelimit-limit-requests": "1000000", "x-ratelimit-limit-tokens": "30000"}
    found = seen_quota([loop(0, None, attempts=(Attempt(0, 1, 200, rate_limits=stated),))])
    assert found == KnownQuota("openai", {"tokens": 30000.0}, "from its headers")
