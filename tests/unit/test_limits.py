"""Limiters as state machines: rates and refunds, adaption, waits that servers ask for."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.limits.adaptive import AdaptiveLimit
from profiler.limits.limiter import ONE, UNTIL_RELEASE, RateLimit, Together
from profiler.limits.refusals import (
    Holdback,
    delay_ns,
    is_transient,
    parse_retry_after,
    retry_after_ns,
    signal_of,
    status_of,
)

S = 1_000_000_000


def tokens(amount: float) -> dict[str, float]:
    return {"tokens": amount}


# ── rate ───────────────────────────────────────────────────────────────────────────────────────


def test_a_burst_then_one_each_interval():
    limit = RateLimit(10, burst=3)
    for _ in range(3):
        assert limit.wait_ns(0, ONE) == 0
        limit.enter(0, ONE)
    assert limit.wait_ns(0, ONE) == S // 10
    assert limit.wait_ns(S // 10, ONE) == 0
    assert limit.level(S) == 3.0


CALLS = st.lists(
    st.tuples(
        st.integers(0, 400_000_000),  # ns after the one before
        st.integers(1, 12),  # reserved
        st.integers(0, 12),  # used
        st.integers(0, 900_000_000),  # ns until it leaves
        st.sampled_from(["ok", "rejected", "unknown"]),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(rate=st.sampled_from([3.0, 10.0, 50.0]), burst=st.integers(1, 12), calls=CALLS)
def test_what_is_used_never_exceeds_the_rate_and_the_burst_whatever_is_given_back(rate, burst, calls):
    """Every call uses at most what it reserved; refunds must not let more in than the truth allows."""
    limit = RateLimit(rate, burst, "tokens")
    now, entered, leaving = 0, [], []

    def leave_until(time: int) -> None:
        leaving.sort(key=lambda one: one[0])
        while leaving and leaving[0][0] <= time:
            at, ticket, outcome, used = leaving.pop(0)
            limit.leave(at, ticket, outcome, used)

    for gap, reserved, used, stays, outcome in calls:
        now += gap
        leave_until(now)
        while wait := limit.wait_ns(now, tokens(reserved)):  # first come, first served: time passes
            now = min([now + wait, *(at for at, *_ in leaving)])
            leave_until(now)
        ticket = limit.enter(now, tokens(reserved))
        true = 0.0 if outcome == "rejected" else float(min(used, reserved))
        leaving.append((now + stays, ticket, outcome, None if outcome == "rejected" else tokens(true)))
        entered.append((now, true))
    largest = max([burst, *(reserved for _, reserved, *_ in calls)])
    for first in range(len(entered)):
        total = 0.0
        for at, true in entered[first:]:
            total += true
            assert total <= rate * (at - entered[first][0]) / S + largest + 1e-6


def test_a_refund_is_exact_while_the_bucket_was_busy():
    limit = RateLimit(10, burst=10, resource="tokens")
    first = limit.enter(0, tokens(10))
    second = limit.enter(S, tokens(10))
    assert limit.wait_ns(S, tokens(10)) == S
    limit.leave(S, first, "ok", tokens(4))  # six too many; the bucket would have overflowed meanwhile
    assert limit.level(S) == pytest.approx(0.0)
    limit.leave(S, second, "ok", tokens(4))
    assert limit.level(S) == pytest.approx(6.0)


def test_what_was_used_beyond_the_reserve_is_charged():
    limit = RateLimit(10, burst=10, resource="tokens")
    ticket = limit.enter(0, tokens(5))
    limit.leave(0, ticket, "ok", tokens(25))
    assert limit.level(0) == -15.0
    assert limit.wait_ns(0, tokens(5)) == 2 * S


def test_an_unrejected_call_without_figures_keeps_what_it_paid():
    limit = RateLimit(10, burst=10)
    limit.leave(0, limit.enter(0, ONE), "ok", None)
    assert limit.level(0) == 9.0
    limit.leave(0, limit.enter(0, ONE), "rejected", None)
    assert limit.level(0) == 9.0


def test_servers_can_lower_what_is_allowed_but_never_raise_it():
    limit = RateLimit(10, burst=10)
    limit.lower(0, remaining=4, rate=100)
    assert (limit.rate, limit.level(0)) == (10, 4.0)
    limit.lower(0, remaining=400, rate=5)
    assert (limit.rate, limit.level(0)) == (5, pytest.approx(4.0))
    before = limit.level(0)
    limit.lower(0, remaining=-1, rate=-1)  # Azure
    assert (limit.rate, limit.level(0)) == (5, before)
    limit.lower(0, remaining=0, rate=0)
    assert limit.wait_ns(0, ONE) == S // 5  # goes on at its rate, without a burst


def test_resources_are_taken_together_or_not_at_all():
    requests, spend = RateLimit(10, burst=2), RateLimit(10, burst=10, resource="tokens")
    both = Together([requests, spend])
    cost = {"requests": 1.0, "tokens": 8.0}
    ticket = both.enter(0, cost)
    assert both.wait_ns(0, cost) == 600_000_000  # for tokens; a request is there
    assert requests.level(0) == 1.0
    both.leave(0, ticket, "ok", {"requests": 1.0, "tokens": 2.0})
    assert (requests.level(0), spend.level(0)) == (1.0, 8.0)
    assert both.wait_ns(0, cost) == 0


# ── adaptive ───────────────────────────────────────────────────────────────────────────────────


def run(limit: AdaptiveLimit, capacity: int, latency_ns: int, until_ns: int, now_ns: int = 0) -> list[int]:
    """Saturate the limit against a server of `capacity` that refuses at once; the limits over time."""
    ends: list[tuple[int, int]] = []
    seen = []
    while now_ns < until_ns:
        while ends and ends[0][0] <= now_ns:
            limit.leave(now_ns, ends.pop(0)[1], "ok", None)
        while limit.wait_ns(now_ns, ONE) == 0:
            ticket = limit.enter(now_ns, ONE)
            if len(ends) >= capacity:
                limit.leave(now_ns, ticket, "rejected", None)
            else:
                ends.append((now_ns + latency_ns, ticket))
        seen.append(limit.limit)
        now_ns += latency_ns // 20
        ends.sort()
    for _, ticket in ends:
        limit.leave(now_ns, ticket, "unknown", None)
    return seen


@pytest.mark.parametrize("capacity", [1, 3, 20, 50, 200])
def test_it_finds_the_capacity_and_stays_near(capacity):
    seen = run(AdaptiveLimit(), capacity, S, 120 * S)
    settled = seen[len(seen) // 2 :]
    assert min(settled) >= 0.7 * capacity
    assert max(settled) <= max(capacity + 2, 1.2 * capacity)


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 10**8), st.sampled_from(["ok", "rejected", "timeout", "unknown"])),
        max_size=80,
    )
)
def test_never_below_one_whatever_happens(steps):
    limit, now = AdaptiveLimit(3, most=20), 0
    for gap, outcome in steps:
        now += gap
        while wait := limit.wait_ns(now, ONE):
            assert wait < UNTIL_RELEASE  # nobody is inside: time alone must open it again
            now += wait
        limit.leave(now + gap // 2, limit.enter(now, ONE), outcome, None)
        now += gap // 2
        assert 1.0 <= limit.exact <= 20


def test_a_burst_of_rejections_is_one_cut():
    limit = AdaptiveLimit(40)
    tickets = [limit.enter(0, ONE) for _ in range(40)]
    for ticket in tickets[:8]:
        limit.leave(1, ticket, "rejected", None)
    assert limit.exact == 28.0  # 40 · 0.7, once
    for ticket in tickets[8:]:
        limit.leave(S, ticket, "ok", None)


def test_few_timeouts_are_no_signal_and_many_are():
    limit = AdaptiveLimit(20)
    for _ in range(2):
        tickets = [limit.enter(0, ONE) for _ in range(20)]
        for ticket in tickets[1:]:
            limit.leave(10_000, ticket, "ok", None)
        limit.leave(10_000, tickets[0], "timeout", None)
    grown = limit.exact
    assert grown > 20
    for _ in range(4):
        limit.leave(20_000, limit.enter(20_000, ONE), "timeout", None)
    assert limit.exact == pytest.approx(0.7 * grown)  # once: what slow start had not found out yet
    for _ in range(4):
        limit.leave(90_000, limit.enter(90_000, ONE), "timeout", None)
    assert limit.exact == pytest.approx(0.7 * 0.9 * grown)


def test_an_idle_limit_does_not_grow():
    limit = AdaptiveLimit(10)
    for _ in range(100):
        limit.leave(1, limit.enter(0, ONE), "ok", None)
    assert limit.exact == 10.0


# ── waits ──────────────────────────────────────────────────────────────────────────────────────


def test_a_holdback_waits_what_was_asked_and_a_random_share_of_the_spread():
    holdback = Holdback(Random(1))
    assert holdback.wait_ns(0) == 0
    holdback.refused(0, 10 * S)
    waits = [holdback.wait_ns(0) / S for _ in range(500)]
    assert 10 <= min(waits) < 10.1
    assert 11.9 < max(waits) <= 12  # 0.2 · 10 s
    late = [holdback.wait_ns(int(11.5 * S)) / S for _ in range(200)]
    assert max(late) <= 0.5
    holdback.refused(0, S)  # a shorter one changes nothing
    assert holdback.is_closed(int(9.9 * S))
    assert not holdback.is_closed(10 * S)
    assert holdback.wait_ns(12 * S) == 0


def test_the_delay_before_the_next_attempt():
    random = Random(1)
    asked = [delay_ns(1, "rejected", S, random) / S for _ in range(300)]
    assert min(asked) >= 1
    assert 1.9 < max(asked) <= 2
    for attempt, most in ((1, 0.5), (2, 1.0), (3, 2.0), (9, 8.0)):
        drawn = [delay_ns(attempt, "unknown", None, random) / S for _ in range(300)]
        assert 0.9 * most < max(drawn) <= most


class Answer(Exception):
    def __init__(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.response = type("Response", (), {"status_code": status, "headers": headers or {}})()


class Aiohttp(Exception):
    """As aiohttp.ClientResponseError: the status is the exception's own."""

    status = 503
    headers = {"retry-after": "3"}  # noqa: RUF012


def test_what_failures_teach():
    assert [status_of(e) for e in (Answer(404), Aiohttp(), ValueError(1))] == [404, 503, None]
    errors = [Answer(429), Aiohttp(), Answer(529), TimeoutError(), Answer(500), ValueError()]
    assert [signal_of(e) for e in errors] == ["rejected"] * 3 + ["timeout", "unknown", "unknown"]
    assert [is_transient(e) for e in errors] == [True] * 5 + [False]
    assert not is_transient(Answer(400))


def test_retry_after_in_its_three_forms():
    assert retry_after_ns(Answer(429, {"retry-after-ms": "250", "retry-after": "9"})) == S // 4
    assert retry_after_ns(Aiohttp()) == 3 * S
    assert retry_after_ns(ValueError()) is None
    assert parse_retry_after(None, "soon") is None
    assert parse_retry_after("-1", None) is None
    assert parse_retry_after(None, "Wed, 21 Oct 2015 07:28:00 GMT") == 0
