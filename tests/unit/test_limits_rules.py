"""The rules of limiters one by one, at their edges: what `test_limits.py` sees only as a whole."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from random import Random

import pytest

from profiler import UsageError
from profiler.limits.adaptive import AdaptiveLimit
from profiler.limits.limiter import ONE, UNTIL_RELEASE, FixedLimit, RateLimit, Signal, Together
from profiler.limits.refusals import (
    BASE_NS,
    CAP_NS,
    Holdback,
    delay_ns,
    is_transient,
    parse_retry_after,
    retry_after_ns,
    signal_of,
    status_of,
)
from profiler.limits.spec import parse_rules

S = 1_000_000_000
TENTH = S // 10
"""An epoch of an adaptive limit that has not seen a call end well."""


def inside(limit: AdaptiveLimit, count: int) -> list[object]:
    return [limit.enter(0, ONE) for _ in range(count)]


def leave(limit: AdaptiveLimit, tickets: list[object], signal: Signal, now_ns: int = 0) -> None:
    limit.leave(now_ns, tickets.pop(), signal, None)


# ── adaptive: growth ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("count", "grown"), [(8, 10.0), (9, 11.0), (10, 11.0)])
def test_it_grows_only_while_nine_tenths_are_inside(count, grown):
    limit = AdaptiveLimit(10)
    leave(limit, inside(limit, count), "ok")
    assert limit.exact == grown


def test_what_fails_for_reasons_of_its_own_teaches_nothing():
    limit = AdaptiveLimit(10)
    tickets = inside(limit, 10)
    leave(limit, tickets, "unknown")
    assert (limit.exact, limit.inside) == (10.0, 9)


def test_it_never_grows_beyond_the_most():
    limit = AdaptiveLimit(10, most=11)
    for _ in range(3):
        leave(limit, inside(limit, 10), "ok")
    assert limit.exact == 11.0


def test_after_slow_start_an_epoch_of_successes_is_one_more():
    limit = AdaptiveLimit(10)
    tickets = inside(limit, 20)
    leave(limit, tickets, "timeout")
    leave(limit, tickets, "timeout")  # the second one is more than 5 %: the end of slow start
    assert limit.exact == 7.0
    leave(limit, tickets, "ok")
    assert limit.exact == pytest.approx(7 + 1 / 7)


# ── adaptive: cuts ─────────────────────────────────────────────────────────────────────────────


def test_a_refusal_in_slow_start_cuts_to_seven_tenths_or_the_others_but_not_below_half():
    for others, left in ((19, 14.0), (12, 12.0), (3, 10.0), (0, 10.0)):
        limit = AdaptiveLimit(20)
        leave(limit, inside(limit, others + 1), "rejected")
        assert limit.exact == left


def test_a_refusal_that_came_alone_costs_no_tenth():
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


def test_an_epoch_is_a_mean_latency_that_follows_slowly():
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


def test_after_a_refusal_nobody_goes_beyond_the_others_for_an_epoch():
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


def test_more_others_do_not_raise_a_ceiling_that_holds():
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


# ── adaptive: memory ───────────────────────────────────────────────────────────────────────────


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
def test_a_full_server_is_tried_every_sixteen_latencies_after_the_first_time(capacity):
    refused, limits = drive(AdaptiveLimit(), lambda now: capacity, 120 * S)
    back = next(k for k in range(int(refused[0]) + 1, 120) if limits[k] >= capacity)
    first, *gaps = (b - a for a, b in zip([back, *refused[1:]], refused[1:], strict=False))
    assert len(gaps) >= 4
    assert 7 < first < 12
    assert all(16 <= gap < 20 for gap in gaps[1:])


def test_a_server_that_has_more_again_is_used_after_some_epochs_faster_and_faster():
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


def test_a_full_server_is_tried_after_eight_epochs_and_sixteen_when_that_was_in_vain():
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


def test_the_epoch_of_the_first_outcome_is_the_first_that_counts():
    limit = AdaptiveLimit(2)
    tickets = inside(limit, 2)
    leave(limit, tickets, "rejected", 0)
    leave(limit, tickets, "timeout", 10)  # the same epoch still
    found, _ = epochs(limit, 8, TENTH // 2)
    assert found == [1.0] * 7 + [2.0]


def test_a_burst_of_refusals_is_one_vain_try():
    limit = AdaptiveLimit(4)
    tickets = inside(limit, 4)
    leave(limit, tickets, "rejected")
    leave(limit, tickets, "rejected")
    while tickets:
        leave(limit, tickets, "unknown")
    found, _ = epochs(limit, 9, TENTH)
    assert found[:7] == [found[0]] * 7
    assert found[8] > found[0]


def test_a_try_that_failed_once_is_repeated_soon_when_the_limit_held_more_for_two_epochs():
    limit = AdaptiveLimit(2)
    refuse_one_more(limit, 0)
    _, now = epochs(limit, 9, 0)
    refuse_one_more(limit, now)  # one epoch of growth: as full as it was
    found, _ = epochs(limit, 12, now)
    assert found == [found[0]] * 12


# ── adaptive: counting epochs ──────────────────────────────────────────────────────────────────


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


def test_after_four_epochs_of_growth_each_further_one_doubles_the_step_up_to_an_eighth():
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


def test_a_refusal_two_epochs_after_a_cut_did_not_come_alone():
    for later, left in ((2, 12.6), (3, 14.0)):
        limit, tickets = after_slow_start()
        for epoch in range(1, later):
            leave(limit, tickets, "timeout", epoch * TENTH)
        leave(limit, tickets, "rejected", later * TENTH)
        assert limit.exact == pytest.approx(left)


def test_each_success_of_a_full_limit_lets_one_more_beyond_the_others_that_were_inside():
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


def test_one_that_was_refused_with_nobody_inside_may_try_again_at_once():
    limit = AdaptiveLimit(10)
    leave(limit, inside(limit, 1), "rejected")
    assert limit.wait_ns(0, ONE) == 0
    limit.enter(0, ONE)
    assert limit.wait_ns(0, ONE) == TENTH


def test_calls_that_take_no_time_have_an_epoch_of_a_nanosecond():
    limit = AdaptiveLimit(20)
    limit.leave(0, limit.enter(0, ONE), "ok", None)
    tickets = inside(limit, 10)
    leave(limit, tickets, "rejected", 0)
    leave(limit, tickets, "rejected", 0)
    assert limit.exact == 10.0  # one cut, to half
    while limit.inside > 9:
        leave(limit, tickets, "unknown", 0)
    assert limit.wait_ns(0, ONE) == 1


def test_an_adaptive_limit_starts_at_one_at_least():
    assert AdaptiveLimit(1).limit == 1
    with pytest.raises(UsageError, match="at 1 at least, not 0"):
        AdaptiveLimit(0)


# ── rates ──────────────────────────────────────────────────────────────────────────────────────


def test_a_wait_is_over_when_it_says_so():
    limit = RateLimit(3, burst=1)
    limit.enter(0, ONE)
    assert limit.wait_ns(0, ONE) == 333_333_334  # not a nanosecond less than a third
    assert limit.wait_ns(333_333_334, ONE) == 0


@pytest.mark.parametrize(("rate", "burst"), [(1, 2.0), (20, 2.0), (30, 3.0), (500, 26.0)])
def test_the_burst_of_itself_is_one_call_and_what_a_late_timer_lets_through(rate, burst):
    assert RateLimit(rate).burst == burst


@pytest.mark.parametrize("options", [(0, None), (-1, None), (float("inf"), None), (1, 0.5)])
def test_a_rate_that_cannot_be_is_refused(options):
    with pytest.raises(Exception, match="must be"):
        RateLimit(*options)


def test_what_costs_nothing_of_a_resource_does_not_wait_for_it():
    limit = RateLimit(1, burst=1, resource="tokens")
    limit.enter(0, {"tokens": 100.0})
    assert limit.wait_ns(0, ONE) == 0


def test_a_refund_passes_through_the_calls_after_it():
    limit = RateLimit(10, burst=10, resource="tokens")
    first = limit.enter(0, {"tokens": 4.0})
    later = [limit.enter(0, {"tokens": 2.0}) for _ in range(2)]
    limit.leave(0, first, "ok", {"tokens": 0.5})
    assert limit.level(0) == pytest.approx(10 - 0.5 - 4)
    limit.leave(0, later[0], "ok", {"tokens": 1.5})  # less than one of it counts as well
    assert limit.level(0) == pytest.approx(10 - 0.5 - 3.5)


def test_a_refund_counts_though_an_earlier_call_is_still_inside():
    limit = RateLimit(10, burst=10, resource="tokens")
    limit.enter(0, {"tokens": 4.0})
    limit.leave(S, limit.enter(S, {"tokens": 6.0}), "rejected", None)
    assert limit.level(S) == 10.0


def test_a_refund_that_overflowed_before_the_next_call_is_lost_whoever_came_earlier():
    limit = RateLimit(10, burst=10, resource="tokens")
    limit.enter(0, {"tokens": 1.0})
    middle = limit.enter(S, {"tokens": 5.0})
    limit.enter(3 * S, {"tokens": 5.0})  # the bucket was full again
    limit.leave(3 * S, middle, "rejected", None)
    assert limit.level(3 * S) == 5.0


def test_two_refunds_do_not_use_the_same_room_twice():
    limit = RateLimit(10, burst=10, resource="tokens")
    first, second = (limit.enter(0, {"tokens": 5.0}) for _ in range(2))
    limit.enter(9 * S // 10, {"tokens": 5.0})  # but for one token the bucket was full
    for ticket in (first, second):
        limit.leave(9 * S // 10, ticket, "rejected", None)
        assert limit.level(9 * S // 10) == pytest.approx(5.0)


def test_what_was_used_beyond_the_reserve_is_charged_from_now_whoever_came_later():
    limit = RateLimit(10, burst=10, resource="tokens")
    first = limit.enter(0, {"tokens": 1.0})
    limit.enter(S, {"tokens": 1.0})
    limit.leave(2 * S, first, "ok", {"tokens": 8.0})
    assert limit.level(2 * S) == 3.0


def test_what_names_nothing_of_a_resource_takes_nothing_of_it():
    limit = RateLimit(10, burst=10, resource="tokens")
    limit.enter(0, ONE)
    assert limit.level(0) == 10.0
    limit.leave(0, limit.enter(0, {"tokens": 4.0}), "ok", ONE)
    assert limit.level(0) == 10.0


def test_a_server_may_allow_less_than_one_in_a_second():
    limit = RateLimit(10, burst=10)
    limit.lower(0, remaining=10, rate=0.5)
    assert (limit.rate, limit.level(0)) == (0.5, 10.0)
    for _ in range(10):
        limit.enter(0, ONE)
    assert limit.wait_ns(0, ONE) == 2 * S


def test_what_has_left_is_forgotten():
    limit = RateLimit(1000, burst=10)
    stays = limit.enter(0, ONE)
    for now in range(50):
        limit.leave(now, limit.enter(now, ONE), "ok", None)
    assert len(limit._entries) == 51  # a refund of the first would have to pass through them
    limit.leave(50, stays, "ok", None)
    assert len(limit._entries) == 0


def test_leaving_twice_is_a_mistake():
    for limit in (RateLimit(10), FixedLimit(1), AdaptiveLimit()):
        ticket = limit.enter(0, ONE)
        limit.leave(0, ticket, "ok", None)
        with pytest.raises(RuntimeError, match="left more often than entered"):
            limit.leave(0, ticket, "ok", None)


# ── together, specs, signals, retries ──────────────────────────────────────────────────────────


def test_the_limit_of_several_is_the_smallest_that_is_one():
    assert Together([RateLimit(1), FixedLimit(7), FixedLimit(3)]).limit == 3
    assert Together([RateLimit(1)]).limit is None
    assert Together([]).limit is None
    assert Together([]).wait_ns(0, ONE) == 0


@pytest.mark.parametrize(
    ("spec", "whole", "of_four"),
    [("semaphore:8", 8, 2), ("semaphore:3", 3, 1), ("semaphore:8@agent", 8, 8), ("adaptive:40", 40, 10)],
)
def test_a_limit_shared_by_processes_is_cut_into_parts(spec, whole, of_four):
    (rule,) = parse_rules(spec) or ()
    assert (rule.make(1).limit, rule.make(4).limit) == (whole, of_four)


def test_a_rate_shared_by_processes_is_cut_into_parts():
    (rule,) = parse_rules("rate:600/min,burst=20") or ()
    whole, part = rule.make(1), rule.make(4)
    assert isinstance(whole, RateLimit)
    assert isinstance(part, RateLimit)
    assert (whole.rate, whole.burst) == (10.0, 20.0)
    assert (part.rate, part.burst) == (2.5, 5.0)
    assert rule.make(40).burst == 1.0


def test_an_adaptive_limit_shared_by_more_processes_than_it_has_places_starts_at_one():
    (rule,) = parse_rules("adaptive:2") or ()
    assert rule.make(4).limit == 1


def test_a_holdback_that_nobody_asked_for_is_open_and_one_that_is_over_is_too():
    holdback = Holdback(Random(1))
    assert not holdback.is_closed(0)
    holdback.refused(0, S)
    assert holdback.wait_ns(30 * S) == 0


def test_headers_of_a_shape_that_nobody_knows_ask_for_no_wait():
    error = ValueError()
    error.headers = [("retry-after", "3")]
    assert retry_after_ns(error) is None


def test_what_is_no_status_is_none():
    found = []
    for status in (99, 100, 599, 600):
        error = ValueError()
        error.status_code = status
        found.append(status_of(error))
    assert found == [None, 100, 599, None]


def test_waits_that_make_no_sense_are_not_believed():
    assert parse_retry_after("0", None) == 0
    assert parse_retry_after(None, "0.5") == S // 2
    assert parse_retry_after("1000000", "3") == 3 * S  # a quarter of an hour in ms is not what it means
    assert parse_retry_after(None, "999999") == 999_999 * S
    assert parse_retry_after(None, "1000000") is None
    assert parse_retry_after("soon", "later") is None
    assert parse_retry_after(None, "Mon, 01 Jan 99999999999999999999 00:00:00 GMT") is None


def test_a_date_to_wait_for_is_a_wait_by_the_wall_clock_of_now():
    date = "Tue, 24 Nov 2026 16:00:05 GMT"
    assert parse_retry_after(None, date, lambda: 1795536002.5) == 2_500_000_000
    assert parse_retry_after(None, date, lambda: 1795536006.0) == 0


def test_what_may_do_better_next_time():
    def answered(status: int) -> bool:
        error = ValueError()
        error.status_code = status
        return is_transient(error)

    assert [status for status in range(400, 600) if answered(status)] == [
        *(408, 429, 500, 502, 503, 504, 529),
    ]
    assert is_transient(asyncio.CancelledError()) is False
    assert signal_of(asyncio.CancelledError()) == "unknown"


def test_full_jitter_doubles_up_to_its_cap():
    class Highest(Random):
        def random(self) -> float:
            return 1.0

    found = [delay_ns(attempt, "unknown", None, Highest()) for attempt in (1, 2, 3, 4, 5, 6)]
    assert found == [BASE_NS, 2 * BASE_NS, 4 * BASE_NS, 8 * BASE_NS, CAP_NS, CAP_NS]
    assert (BASE_NS, CAP_NS) == (500_000_000, 8_000_000_000)
    assert delay_ns(1, "rejected", 2 * S, Highest()) == 3 * S
    assert delay_ns(1, "timeout", 2 * S, Highest()) == BASE_NS  # asked for by nobody who refused
