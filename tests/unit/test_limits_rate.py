"""Rates: a burst, then one each interval; what is given back, charged and lowered."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.limits.limiter import ONE, RateLimit

S = 1_000_000_000


def tokens(amount: float) -> dict[str, float]:
    return {"tokens": amount}


def test_rate_lets_a_burst_in_then_one_each_interval():
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


@settings(max_examples=300)
@given(rate=st.sampled_from([3.0, 10.0, 50.0]), burst=st.integers(1, 12), calls=CALLS)
def test_use_never_exceeds_the_rate_and_the_burst_whatever_is_given_back(rate, burst, calls):
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


def test_refund_is_exact_while_the_bucket_was_busy():
    limit = RateLimit(10, burst=10, resource="tokens")
    first = limit.enter(0, tokens(10))
    second = limit.enter(S, tokens(10))
    assert limit.wait_ns(S, tokens(10)) == S
    limit.leave(S, first, "ok", tokens(4))  # six too many; the bucket would have overflowed meanwhile
    assert limit.level(S) == pytest.approx(0.0)
    limit.leave(S, second, "ok", tokens(4))
    assert limit.level(S) == pytest.approx(6.0)


def test_use_beyond_the_reserve_is_charged():
    limit = RateLimit(10, burst=10, resource="tokens")
    ticket = limit.enter(0, tokens(5))
    limit.leave(0, ticket, "ok", tokens(25))
    assert limit.level(0) == -15.0
    assert limit.wait_ns(0, tokens(5)) == 2 * S


def test_call_without_figures_that_was_not_rejected_keeps_what_it_paid():
    limit = RateLimit(10, burst=10)
    limit.leave(0, limit.enter(0, ONE), "ok", None)
    assert limit.level(0) == 9.0
    limit.leave(0, limit.enter(0, ONE), "rejected", None)
    assert limit.level(0) == 9.0


def test_rate_can_be_lowered_by_servers_but_never_raised():
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


def test_wait_is_over_when_it_says_so():
    limit = RateLimit(3, burst=1)
    limit.enter(0, ONE)
    assert limit.wait_ns(0, ONE) == 333_333_334  # not a nanosecond less than a third
    assert limit.wait_ns(333_333_334, ONE) == 0


@pytest.mark.parametrize(("rate", "burst"), [(1, 2.0), (20, 2.0), (30, 3.0), (500, 26.0)])
def test_burst_of_itself_is_one_call_and_what_a_late_timer_lets_through(rate, burst):
    assert RateLimit(rate).burst == burst


@pytest.mark.parametrize("options", [(0, None), (-1, None), (float("inf"), None), (1, 0.5)])
def test_rate_that_cannot_be_is_refused(options):
    with pytest.raises(Exception, match="must be"):
        RateLimit(*options)


def test_call_that_costs_nothing_of_a_resource_does_not_wait_for_it():
    limit = RateLimit(1, burst=1, resource="tokens")
    limit.enter(0, {"tokens": 100.0})
    assert limit.wait_ns(0, ONE) == 0


def test_refund_passes_through_the_calls_after_it():
    limit = RateLimit(10, burst=10, resource="tokens")
    first = limit.enter(0, {"tokens": 4.0})
    later = [limit.enter(0, {"tokens": 2.0}) for _ in range(2)]
    limit.leave(0, first, "ok", {"tokens": 0.5})
    assert limit.level(0) == pytest.approx(10 - 0.5 - 4)
    limit.leave(0, later[0], "ok", {"tokens": 1.5})  # less than one of it counts as well
    assert limit.level(0) == pytest.approx(10 - 0.5 - 3.5)


def test_refund_counts_though_an_earlier_call_is_still_inside():
    limit = RateLimit(10, burst=10, resource="tokens")
    limit.enter(0, {"tokens": 4.0})
    limit.leave(S, limit.enter(S, {"tokens": 6.0}), "rejected", None)
    assert limit.level(S) == 10.0


def test_refund_that_overflowed_before_the_next_call_is_lost_whoever_came_earlier():
    limit = RateLimit(10, burst=10, resource="tokens")
    limit.enter(0, {"tokens": 1.0})
    middle = limit.enter(S, {"tokens": 5.0})
    limit.enter(3 * S, {"tokens": 5.0})  # the bucket was full again
    limit.leave(3 * S, middle, "rejected", None)
    assert limit.level(3 * S) == 5.0


def test_refunds_do_not_use_the_same_room_twice():
    limit = RateLimit(10, burst=10, resource="tokens")
    first, second = (limit.enter(0, {"tokens": 5.0}) for _ in range(2))
    limit.enter(9 * S // 10, {"tokens": 5.0})  # but for one token the bucket was full
    for ticket in (first, second):
        limit.leave(9 * S // 10, ticket, "rejected", None)
        assert limit.level(9 * S // 10) == pytest.approx(5.0)


def test_use_beyond_the_reserve_is_charged_from_now_whoever_came_later():
    limit = RateLimit(10, burst=10, resource="tokens")
    first = limit.enter(0, {"tokens": 1.0})
    limit.enter(S, {"tokens": 1.0})
    limit.leave(2 * S, first, "ok", {"tokens": 8.0})
    assert limit.level(2 * S) == 3.0


def test_cost_that_names_nothing_of_a_resource_takes_nothing_of_it():
    limit = RateLimit(10, burst=10, resource="tokens")
    limit.enter(0, ONE)
    assert limit.level(0) == 10.0
    limit.leave(0, limit.enter(0, {"tokens": 4.0}), "ok", ONE)
    assert limit.level(0) == 10.0


def test_rate_may_be_lowered_to_less_than_one_in_a_second():
    limit = RateLimit(10, burst=10)
    limit.lower(0, remaining=10, rate=0.5)
    assert (limit.rate, limit.level(0)) == (0.5, 10.0)
    for _ in range(10):
        limit.enter(0, ONE)
    assert limit.wait_ns(0, ONE) == 2 * S


def test_entries_that_have_left_are_forgotten():
    limit = RateLimit(1000, burst=10)
    stays = limit.enter(0, ONE)
    for now in range(50):
        limit.leave(now, limit.enter(now, ONE), "ok", None)
    assert len(limit._entries) == 51  # a refund of the first would have to pass through them
    limit.leave(50, stays, "ok", None)
    assert len(limit._entries) == 0
