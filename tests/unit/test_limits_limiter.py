"""Limiters of places, several together, and tickets that are given back once."""

from __future__ import annotations

import pytest

from profiler.limits.limiter import ONE, AdaptiveLimit, FixedLimit, RateLimit, Together


def tokens(amount: float) -> dict[str, float]:
    return {"tokens": amount}


def test_together_takes_resources_all_or_none():
    requests, spend = RateLimit(10, burst=2), RateLimit(10, burst=10, resource="tokens")
    both = Together([requests, spend])
    cost = {"requests": 1.0, "tokens": 8.0}
    ticket = both.enter(0, cost)
    assert both.wait_ns(0, cost) == 600_000_000  # for tokens; a request is there
    assert requests.level(0) == 1.0
    both.leave(0, ticket, "ok", {"requests": 1.0, "tokens": 2.0})
    assert (requests.level(0), spend.level(0)) == (1.0, 8.0)
    assert both.wait_ns(0, cost) == 0


def test_leaving_twice_is_a_mistake():
    for limit in (RateLimit(10), FixedLimit(1), AdaptiveLimit()):
        ticket = limit.enter(0, ONE)
        limit.leave(0, ticket, "ok", None)
        with pytest.raises(RuntimeError, match="left more often than entered"):
            limit.leave(0, ticket, "ok", None)


def test_together_has_the_smallest_limit_that_is_one():
    assert Together([RateLimit(1), FixedLimit(7), FixedLimit(3)]).limit == 3
    assert Together([RateLimit(1)]).limit is None
    assert Together([]).limit is None
    assert Together([]).wait_ns(0, ONE) == 0
