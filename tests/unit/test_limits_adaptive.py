"""The adaptive limit: it finds a capacity, follows it, and its rules one by one at their edges."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler import UsageError
from profiler.limits.limiter import ONE, UNTIL_RELEASE, AdaptiveLimit, Signal

S = 1_000_000_000


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
def test_adaptive_limit_finds_the_capacity_and_stays_near(capacity):
    seen = run(AdaptiveLimit(), capacity, S, 120 * S)
    settled = seen[len(seen) // 2 :]
    assert min(settled) >= 0.7 * capacity
    assert max(settled) <= max(capacity + 2, 1.2 * capacity)


@settings(max_examples=200)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 10**8), st.sampled_from(["ok", "rejected", "timeout", "unknown"])),
        max_size=80,
    )
)
def test_adaptive_limit_is_never_below_one_whatever_happens(steps):
    limit, now = AdaptiveLimit(3, most=20), 0
    for gap, outcome in steps:
        now += gap
        while wait := limit.wait_ns(now, ONE):
            assert wait < UNTIL_RELEASE  # nobody is inside: time alone must open it again
            now += wait
        limit.leave(now + gap // 2, limit.enter(now, ONE), outcome, None)
        now += gap // 2
        assert 1.0 <= limit.exact <= 20


def test_burst_of_rejections_is_one_cut():
    limit = AdaptiveLimit(40)
    tickets = [limit.enter(0, ONE) for _ in range(40)]
    for ticket in tickets[:8]:
        limit.leave(1, ticket, "rejected", None)
    assert limit.exact == 28.0  # 40 · 0.7, once
    for ticket in tickets[8:]:
        limit.leave(S, ticket, "ok", None)


def test_timeouts_are_a_signal_only_where_there_are_many():
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


def test_adaptive_limit_does_not_grow_while_idle():
    limit = AdaptiveLimit(10)
    for _ in range(100):
        limit.leave(1, limit.enter(0, ONE), "ok", None)
    assert limit.exact == 10.0


TENTH = S // 10
"""An epoch of an adaptive limit that has not seen a call end well."""


def inside(limit: AdaptiveLimit, count: int) -> list[object]:
    return [limit.enter(0, ONE) for _ in range(count)]


def leave(limit: AdaptiveLimit, tickets: list[object], signal: Signal, now_ns: int = 0) -> None:
    limit.leave(now_ns, tickets.pop(), signal, None)


@pytest.mark.parametrize(("count", "grown"), [(8, 10.0), (9, 11.0), (10, 11.0)])
def test_adaptive_limit_grows_only_while_nine_tenths_are_inside(count, grown):
    limit = AdaptiveLimit(10)
    leave(limit, inside(limit, count), "ok")
    assert limit.exact == grown


def test_failure_for_reasons_of_its_own_teaches_nothing():
    limit = AdaptiveLimit(10)
    tickets = inside(limit, 10)
    leave(limit, tickets, "unknown")
    assert (limit.exact, limit.inside) == (10.0, 9)


def test_adaptive_limit_never_grows_beyond_the_most():
    limit = AdaptiveLimit(10, most=11)
    for _ in range(3):
        leave(limit, inside(limit, 10), "ok")
    assert limit.exact == 11.0


def test_epoch_of_successes_after_slow_start_is_one_more():
    limit = AdaptiveLimit(10)
    tickets = inside(limit, 20)
    leave(limit, tickets, "timeout")
    leave(limit, tickets, "timeout")  # the second one is more than 5 %: the end of slow start
    assert limit.exact == 7.0
    leave(limit, tickets, "ok")
    assert limit.exact == pytest.approx(7 + 1 / 7)


def test_refusal_in_slow_start_cuts_to_seven_tenths_or_the_others_but_not_below_half():
    for others, left in ((19, 14.0), (12, 12.0), (3, 10.0), (0, 10.0)):
        limit = AdaptiveLimit(20)
        leave(limit, inside(limit, others + 1), "rejected")
        assert limit.exact == left


def test_refusal_that_came_alone_costs_no_tenth():
    limit, tickets = after_slow_start()
    now = 3 * TENTH  # two epochs on, and the third begins with it
    for _ in range(2):
        limit.leave(now, tickets.pop(), "unknown", None)
        limit.leave(now, limit.enter(now, ONE), "timeout", None)
        now += TENTH + 1
    before = limit.exact
    leave(limit, tickets, "rejected", now)
    assert limit.exact == before  # as many others were inside
    leave(limit, tickets, "rejected", now + 1)
    assert limit.exact == before  # at most one cut in an epoch
    leave(limit, tickets, "rejected", now + TENTH)
    assert limit.exact == pytest.approx(0.9 * before)  # the next epoch has one too


def after_slow_start() -> tuple[AdaptiveLimit, list[object]]:
    """A limit of 14 with 40 inside, just cut."""
    limit = AdaptiveLimit(20)
    tickets = inside(limit, 41)
    leave(limit, tickets, "rejected")
    assert limit.exact == 14.0
    return limit, tickets


def test_epoch_is_a_mean_latency_that_follows_slowly():
    limit = AdaptiveLimit(20)
    tickets = inside(limit, 40)
    leave(limit, tickets, "ok", S)
    leave(limit, tickets, "ok", 2 * S)  # mean 1 s + 0.05 · (2 - 1) s
    before = limit.exact
    leave(limit, tickets, "rejected", 2 * S)
    cut = limit.exact
    assert cut == pytest.approx(0.7 * before)
    leave(limit, tickets, "rejected", 3 * S + S // 20 - 1)
    assert limit.exact == cut
    leave(limit, tickets, "rejected", 3 * S + S // 20)
    assert limit.exact == pytest.approx(0.9 * cut)


def test_ceiling_after_a_refusal_is_the_others_for_an_epoch():
    limit = AdaptiveLimit(20)
    tickets = inside(limit, 5)
    leave(limit, tickets, "rejected")  # four others
    assert limit.exact == 10.0
    assert limit.wait_ns(0, ONE) == TENTH
    assert limit.wait_ns(TENTH - 1, ONE) == 1
    assert limit.wait_ns(TENTH, ONE) == 0
    leave(limit, tickets, "rejected", 10)  # three: the lower ceiling, and a new epoch
    assert limit.wait_ns(10, ONE) == TENTH
    tickets.append(limit.enter(TENTH + 10, ONE))
    tickets.append(limit.enter(TENTH + 10, ONE))
    leave(limit, tickets, "rejected", TENTH + 20)  # the old ceiling is over: the new one is at four
    assert limit.wait_ns(TENTH + 20, ONE) == TENTH
    leave(limit, tickets, "unknown", TENTH + 20)
    assert limit.wait_ns(TENTH + 20, ONE) == 0
    tickets.append(limit.enter(TENTH + 20, ONE))
    tickets.append(limit.enter(2 * TENTH + 20, ONE))
    leave(limit, tickets, "rejected", 2 * TENTH + 19)
    leave(limit, tickets, "unknown", 2 * TENTH + 19)
    assert limit.wait_ns(2 * TENTH + 19, ONE) == 0


def test_ceiling_that_holds_is_not_raised_by_more_others():
    limit = AdaptiveLimit(40)
    first, second = inside(limit, 2)
    limit.leave(0, first, "rejected", None)  # ceiling: one
    limit.leave(0, second, "unknown", None)
    assert limit.wait_ns(0, ONE) == 0
    tickets = [limit.enter(1, ONE) for _ in range(4)]  # (the gate would not have)
    leave(limit, tickets, "rejected", 2)
    for _ in range(2):
        leave(limit, tickets, "unknown", 2)
    assert limit.wait_ns(2, ONE) == TENTH  # one is inside, and one is the ceiling


def drive(
    limit: AdaptiveLimit, capacity: Callable[[int], int], until_ns: int
) -> tuple[list[float], list[float]]:
    """Always calls waiting, latencies of 0.5 to 1.5 s: when calls were refused, the limit at each second."""
    ends: list[tuple[int, int, object]] = []
    number = itertools.count()
    refused, limits, now = [], [], 0
    while now < until_ns:
        while limit.wait_ns(now, ONE) == 0:
            ticket = limit.enter(now, ONE)
            if len(ends) >= capacity(now):
                limit.leave(now, ticket, "rejected", None)
                refused.append(now / S)
            else:
                k = next(number)
                heapq.heappush(ends, (now + int(S * (0.5 + k * 0.618034 % 1)), k, ticket))
        while now / S >= len(limits):
            limits.append(limit.exact)
        wait = limit.wait_ns(now, ONE)
        opens = now + wait if wait < UNTIL_RELEASE else until_ns
        if ends and ends[0][0] <= opens:
            now, _, ticket = heapq.heappop(ends)
            limit.leave(now, ticket, "ok", None)
        else:
            now = opens
    return refused, limits


@pytest.mark.parametrize("capacity", [20, 50])
def test_full_server_is_tried_every_sixteen_latencies_after_the_first_time(capacity):
    refused, limits = drive(AdaptiveLimit(), lambda now: capacity, 120 * S)
    back = next(k for k in range(int(refused[0]) + 1, 120) if limits[k] >= capacity)
    first, *gaps = (b - a for a, b in zip([back, *refused[1:]], refused[1:], strict=False))
    assert len(gaps) >= 4
    assert 7 < first < 12
    assert all(16 <= gap < 20 for gap in gaps[1:])


def test_server_that_has_more_again_is_used_after_some_epochs_faster_and_faster():
    _, limits = drive(AdaptiveLimit(), lambda now: 20 if now < 60 * S else 200, 100 * S)
    assert set(limits[52:67]) == {20.0}
    steps = [b - a for a, b in itertools.pairwise(limits[68:75])]
    assert all(0.8 < step < 1.3 for step in steps[:3])  # one an epoch at first
    assert 1.5 < steps[5] < 3  # then twice as many each time ...
    assert all(1.08 < b / a < 1.16 for a, b in itertools.pairwise(limits[78:90]))  # ... up to an eighth
    assert set(limits[92:98]) == {200.0}


def epochs(limit: AdaptiveLimit, count: int, now: int) -> tuple[list[float], int]:
    """Full of calls of one epoch each, which all end well: the limit after each epoch."""
    seen = []
    for _ in range(count):
        tickets = []
        while limit.wait_ns(now, ONE) == 0:
            tickets.append(limit.enter(now, ONE))
        now += TENTH
        while tickets:
            leave(limit, tickets, "ok", now)
        seen.append(limit.exact)
    return seen, now


def refuse_one_more(limit: AdaptiveLimit, now: int) -> None:
    """It is tried up to the limit, and the last one is refused."""
    tickets = []
    while limit.wait_ns(now, ONE) == 0:
        tickets.append(limit.enter(now, ONE))
    leave(limit, tickets, "rejected", now)
    while tickets:
        leave(limit, tickets, "unknown", now)


def test_full_server_is_tried_after_eight_epochs_and_sixteen_when_that_was_in_vain():
    limit = AdaptiveLimit(2)
    refuse_one_more(limit, 0)
    found, now = epochs(limit, 8, 0)
    assert found == [1.0] * 7 + [2.0]
    for _ in range(2):
        refuse_one_more(limit, now)
        found, now = epochs(limit, 16, now)
        assert found == [1.0] * 15 + [2.0]
    found, now = epochs(limit, 1, now)
    assert found > [2.0]
    found, now = epochs(limit, 1, now)  # it held for two epochs more: what was full before is forgotten
    full = int(limit.exact) - 1
    refuse_one_more(limit, now)
    found, now = epochs(limit, 8, now)
    assert found[:7] == [found[0]] * 7
    assert full <= found[0] < found[7]


def test_epoch_of_the_first_outcome_is_the_first_that_counts():
    limit = AdaptiveLimit(2)
    tickets = inside(limit, 2)
    leave(limit, tickets, "rejected", 0)
    leave(limit, tickets, "timeout", 10)  # the same epoch still
    found, _ = epochs(limit, 8, TENTH // 2)
    assert found == [1.0] * 7 + [2.0]


def test_burst_of_refusals_is_one_vain_try():
    limit = AdaptiveLimit(4)
    tickets = inside(limit, 4)
    leave(limit, tickets, "rejected")
    leave(limit, tickets, "rejected")
    while tickets:
        leave(limit, tickets, "unknown")
    found, _ = epochs(limit, 9, TENTH)
    assert found[:7] == [found[0]] * 7
    assert found[8] > found[0]


def test_try_that_failed_once_is_repeated_soon_when_the_limit_held_more_for_two_epochs():
    limit = AdaptiveLimit(2)
    refuse_one_more(limit, 0)
    _, now = epochs(limit, 9, 0)
    refuse_one_more(limit, now)  # one epoch of growth: as full as it was
    found, _ = epochs(limit, 12, now)
    assert found == [found[0]] * 12


def one_each_epoch(limit: AdaptiveLimit, others: int, now: int, count: int) -> tuple[list[float], int]:
    """With so many others inside, one call ends well in each epoch: what it adds, times the limit."""
    while limit.inside < others:
        limit.enter(now, ONE)
    steps = []
    for _ in range(count):
        before = limit.exact
        limit.leave(now, limit.enter(now - TENTH, ONE), "ok", None)
        steps.append(round((limit.exact - before) * before, 6))
        now += TENTH
    return steps, now


def cut_by_timeouts(limit: AdaptiveLimit, now: int) -> None:
    for _ in range(2):
        limit.leave(now, limit.enter(now, ONE), "timeout", None)


def test_step_doubles_with_each_epoch_of_growth_after_the_fourth_up_to_an_eighth():
    limit = AdaptiveLimit(400)
    grown, _ = one_each_epoch(limit, 400, 0, 1)
    assert grown == [400.0]  # slow start: a whole one
    cut_by_timeouts(limit, 0)
    before = limit.exact
    assert before == pytest.approx(0.7 * 401)
    steps, now = one_each_epoch(limit, 400, TENTH, 11)
    assert steps[:10] == [1, 1, 1, 1, 1, 2, 4, 8, 16, 32]
    assert steps[10] == pytest.approx(limit.exact / 8, rel=0.01)
    cut_by_timeouts(limit, now)
    steps, _ = one_each_epoch(limit, 400, now + TENTH, 6)
    assert steps == [1, 1, 1, 1, 1, 2]  # from the start again


def test_epochs_without_growth_are_no_calm_ones():
    limit = AdaptiveLimit(400)
    cut_by_timeouts(limit, 0)
    _, now = one_each_epoch(limit, 400, TENTH, 1)
    while limit.inside:
        limit.leave(now, now, "unknown", None)
    for _ in range(10):  # one call at a time: it says nothing about 280
        now += TENTH
        limit.leave(now, limit.enter(now - TENTH, ONE), "ok", None)
    steps, _ = one_each_epoch(limit, 400, now + TENTH, 4)
    assert steps == [1, 1, 1, 1]


@pytest.mark.parametrize(("calls", "left"), [(59, 700.0), (60, 1000.0)])
def test_timeouts_are_a_signal_when_more_than_one_in_twenty(calls, left):
    limit = AdaptiveLimit(1000)
    for k in range(calls):
        limit.leave(5, limit.enter(0, ONE), "ok" if k < calls - 3 else "timeout", None)
    assert limit.exact == left


def test_timeouts_are_counted_anew_after_a_cut():
    limit = AdaptiveLimit(100)
    limit.leave(1000, limit.enter(0, ONE), "ok", None)  # a mean of 1 µs: when a cut is over
    for _ in range(2):
        limit.leave(2000, limit.enter(0, ONE), "timeout", None)
    assert limit.exact == 70.0
    limit.leave(9000, limit.enter(0, ONE), "timeout", None)
    assert limit.exact == 70.0
    limit.leave(9000, limit.enter(0, ONE), "timeout", None)
    assert limit.exact == 63.0


def test_refusal_two_epochs_after_a_cut_did_not_come_alone():
    for later, left in ((2, 12.6), (3, 14.0)):
        limit, tickets = after_slow_start()
        for epoch in range(1, later):
            leave(limit, tickets, "timeout", epoch * TENTH)
        leave(limit, tickets, "rejected", later * TENTH)
        assert limit.exact == pytest.approx(left)


def test_success_of_a_full_limit_lets_one_more_beyond_the_others_that_were_inside():
    limit = AdaptiveLimit(100)
    tickets = inside(limit, 141)
    leave(limit, tickets, "rejected")
    assert limit.limit == 70
    while limit.inside > 68:
        leave(limit, tickets, "unknown")
    leave(limit, tickets, "rejected", 1)  # 67 others
    assert limit.wait_ns(1, ONE) == TENTH
    leave(limit, tickets, "ok", 2)
    entered = 0
    while limit.wait_ns(2, ONE) == 0:
        limit.enter(2, ONE)
        entered += 1
    assert (entered, limit.inside) == (2, 68)


def test_refusal_with_nobody_inside_may_be_tried_again_at_once():
    limit = AdaptiveLimit(10)
    leave(limit, inside(limit, 1), "rejected")
    assert limit.wait_ns(0, ONE) == 0
    limit.enter(0, ONE)
    assert limit.wait_ns(0, ONE) == TENTH


def test_epoch_of_calls_that_take_no_time_is_a_nanosecond():
    limit = AdaptiveLimit(20)
    limit.leave(0, limit.enter(0, ONE), "ok", None)
    tickets = inside(limit, 10)
    leave(limit, tickets, "rejected", 0)
    leave(limit, tickets, "rejected", 0)
    assert limit.exact == 10.0  # one cut, to half
    while limit.inside > 9:
        leave(limit, tickets, "unknown", 0)
    assert limit.wait_ns(0, ONE) == 1


def test_adaptive_limit_starts_at_one_at_least():
    assert AdaptiveLimit(1).limit == 1
    with pytest.raises(UsageError, match="at 1 at least, not 0"):
        AdaptiveLimit(0)
