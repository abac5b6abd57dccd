"""The gate: first come first served, never more inside than allowed, nothing lost to cancellation."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler import UsageError
from profiler.limits.gate import Gate, Lane, exclusive_lane
from profiler.limits.limiter import AdaptiveLimit, FixedLimit, RateLimit, Together
from profiler.testing import run_virtual


def test_lane_admits_waiters_in_the_order_they_came():
    async def main(clock):
        lane, order = Lane(FixedLimit(2), clock), []

        async def call(name: int) -> None:
            ticket = await lane.enter()
            order.append((name, clock() // 1_000_000))
            await asyncio.sleep(0.1)
            lane.leave(ticket)

        await asyncio.gather(*(call(i) for i in range(5)))
        return order

    assert run_virtual(main) == [(0, 0), (1, 0), (2, 100), (3, 100), (4, 200)]


ARRIVALS = st.lists(
    st.tuples(st.integers(0, 50), st.integers(1, 50), st.one_of(st.none(), st.integers(0, 80))),
    min_size=1,
    max_size=25,
)
"""Calls: (arrives at ms, stays ms, is cancelled ms after its arrival)."""


async def _rush(limiter, calls, clock):
    """Send the calls through; (most inside, when each entered, arrived in this order, the lane)."""
    lane = Lane(limiter, clock)
    most, inside = 0, 0
    entered: dict[int, int] = {}
    arrived: list[int] = []

    async def call(index: int, arrives: int, stays: int) -> None:
        nonlocal most, inside
        await asyncio.sleep(arrives / 1000)
        arrived.append(index)
        ticket = await lane.enter()
        entered[index] = clock()
        inside += 1
        most = max(most, inside)
        try:
            await asyncio.sleep(stays / 1000)
        finally:
            inside -= 1
            lane.leave(ticket)

    async def cancel(task: asyncio.Task[None], at: int) -> None:
        await asyncio.sleep(at / 1000)
        task.cancel()

    tasks = [asyncio.create_task(call(i, arrives, stays)) for i, (arrives, stays, _) in enumerate(calls)]
    killers = [
        asyncio.create_task(cancel(task, arrives + after))
        for task, (arrives, _, after) in zip(tasks, calls, strict=True)
        if after is not None
    ]
    # A lost wake-up would leave a task waiting for ever: the virtual loop calls that a deadlock.
    await asyncio.gather(*tasks, *killers, return_exceptions=True)
    return most, entered, arrived, lane


def in_turn(entered: dict[int, int], arrived: list[int]) -> bool:
    """Nobody entered before one who came earlier; at the same instant, whose task runs first is asyncio's."""
    times = [entered[index] for index in arrived if index in entered]
    return times == sorted(times)


@settings(max_examples=60)
@given(limit=st.integers(1, 4), calls=ARRIVALS)
def test_lane_never_has_more_inside_and_loses_no_slot(limit, calls):
    most, entered, arrived, lane = run_virtual(lambda clock: _rush(FixedLimit(limit), calls, clock))
    assert most <= limit
    assert (lane.limiter.inside, lane.waiting) == (0, 0)
    assert in_turn(entered, arrived)
    assert {i for i, (_, _, after) in enumerate(calls) if after is None} <= set(entered)


@settings(max_examples=60)
@given(rate=st.sampled_from([20.0, 100.0]), burst=st.integers(1, 5), calls=ARRIVALS)
def test_lane_keeps_a_rate_in_order_whoever_gives_up(rate, burst, calls):
    entries: list[int] = []

    class Noting(RateLimit):
        def enter(self, now_ns, cost):
            entries.append(now_ns)
            return super().enter(now_ns, cost)

    _, entered, arrived, lane = run_virtual(lambda clock: _rush(Noting(rate, burst), calls, clock))
    assert in_turn(entered, arrived)
    assert {i for i, (_, _, after) in enumerate(calls) if after is None} <= set(entered)
    assert lane.waiting == 0
    # Those that were let in and cancelled in the same tick never ran: what ran kept the rate.
    if len(entries) == len(entered):
        for first in range(len(entries)):
            for last in range(first, len(entries)):
                span = (entries[last] - entries[first]) / 1e9
                assert last - first + 1 <= rate * span + burst + 1e-6


@settings(max_examples=60)
@given(start=st.integers(1, 6), most=st.integers(1, 8), calls=ARRIVALS)
def test_lane_of_an_adaptive_limit_loses_nobody(start, most, calls):
    limiter = AdaptiveLimit(start, most=most)
    inside, entered, _, lane = run_virtual(lambda clock: _rush(limiter, calls, clock))
    assert inside <= max(start, most)
    assert (limiter.inside, lane.waiting) == (0, 0)
    assert {i for i, (_, _, after) in enumerate(calls) if after is None} <= set(entered)


@settings(max_examples=60)
@given(calls=ARRIVALS)
def test_limiters_together_take_all_or_none(calls):
    places, rate = FixedLimit(2), RateLimit(50, burst=3)
    most, entered, _, lane = run_virtual(lambda clock: _rush(Together([places, rate]), calls, clock))
    assert most <= 2
    assert (places.inside, lane.waiting) == (0, 0)
    assert {i for i, (_, _, after) in enumerate(calls) if after is None} <= set(entered)


def test_place_granted_to_a_cancelled_waiter_goes_to_the_next():
    async def main(clock):
        lane = Lane(FixedLimit(1), clock)
        first = await lane.enter()

        async def call() -> str:
            ticket = await lane.enter()
            lane.leave(ticket)
            return "in"

        second, third = asyncio.create_task(call()), asyncio.create_task(call())
        await asyncio.sleep(0)
        lane.leave(first)  # grants it to the second,
        second.cancel()  # which is cancelled before it wakes
        return await asyncio.gather(second, third, return_exceptions=True), lane.limiter.inside, lane.waiting

    (second, third), inside, waiting = run_virtual(main)
    assert isinstance(second, asyncio.CancelledError)
    assert (third, inside, waiting) == ("in", 0, 0)


def test_cancelled_waiter_gives_its_share_of_a_rate_back():
    async def main(clock):
        lane = Lane(RateLimit(10, burst=1), clock)
        lane.leave(await lane.enter())
        waiter = asyncio.create_task(lane.enter())
        await asyncio.sleep(0.05)
        waiter.cancel()
        await asyncio.sleep(0.05)
        ticket = await lane.enter()
        lane.leave(ticket)
        return clock()

    assert run_virtual(main) == 100_000_000


def test_large_call_is_served_in_its_turn():
    """aiolimiter lets small requests overtake a large one for ever; here nobody overtakes."""

    async def main(clock):
        lane = Lane(RateLimit(10, burst=10, resource="tokens"), clock)
        order = []

        async def call(name: str, tokens: float) -> None:
            ticket = await lane.enter({"tokens": tokens})
            order.append((name, clock() // 1_000_000))
            lane.leave(ticket)

        await asyncio.gather(call("first", 10), call("large", 40), *(call(f"small {i}", 1) for i in range(3)))
        return order

    assert run_virtual(main) == [
        ("first", 0),
        ("large", 1000),  # the bucket of 10 is full again: more than a burst needs a full one
        ("small 0", 4100),  # after the debt of 30, and its own
        ("small 1", 4200),
        ("small 2", 4300),
    ]


def test_large_call_that_waits_is_not_overtaken():
    async def main(clock):
        lane = Lane(RateLimit(10, burst=10, resource="tokens"), clock)
        order = []

        async def call(name: str, tokens: float, at: float) -> None:
            await asyncio.sleep(at)
            lane.leave(await lane.enter({"tokens": tokens}))
            order.append((name, clock() // 1_000_000))

        await asyncio.gather(call("first", 10, 0), call("large", 10, 0), call("small", 1, 0.5))
        return order

    assert run_virtual(main) == [("first", 0), ("large", 1000), ("small", 1100)]


def test_large_call_that_gives_up_lets_the_small_one_behind_it_go_at_once():
    async def main(clock):
        lane = Lane(RateLimit(10, burst=10, resource="tokens"), clock)
        lane.leave(await lane.enter({"tokens": 10.0}))
        large = asyncio.create_task(lane.enter({"tokens": 10.0}))
        small = asyncio.create_task(lane.enter({"tokens": 1.0}))
        await asyncio.sleep(0.5)
        large.cancel()
        lane.leave(await small)
        return clock()

    assert run_virtual(main) == 500_000_000


def test_waiter_whose_coroutine_is_closed_stands_in_nobodys_way():
    async def main(clock):
        lane = Lane(FixedLimit(1), clock)
        ticket = await lane.enter()
        waiter = lane.enter()
        waiter.send(None)
        other = asyncio.create_task(lane.enter())
        await asyncio.sleep(0)
        waiter.close()
        lane.leave(ticket)
        lane.leave(await other)
        return lane.waiting, lane.limiter.inside

    assert run_virtual(main) == (0, 0)


def test_waiters_that_gave_up_do_not_pile_up_behind_one_that_waits():
    async def main(clock):
        lane = Lane(FixedLimit(1), clock)
        ticket = await lane.enter()
        waiter = asyncio.create_task(lane.enter())
        kept = 0
        for _ in range(20):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(lane.enter(), 0.01)
            kept = max(kept, len(lane._queue))
        lane.leave(ticket)
        lane.leave(await waiter)
        return kept, lane.limiter.inside

    assert run_virtual(main) == (2, 0)


def test_lane_has_one_timer_however_often_it_is_asked(monkeypatch):
    async def main(clock):
        loop, timers = asyncio.get_running_loop(), []
        later = loop.call_later

        def noting(delay, *rest):
            timers.append(later(delay, *rest))
            return timers[-1]

        lane = Lane(RateLimit(1, burst=10), clock)
        tickets = [await lane.enter() for _ in range(10)]
        monkeypatch.setattr(loop, "call_later", noting)
        waiter = asyncio.create_task(lane.enter())
        await asyncio.sleep(0)
        for ticket in tickets:
            lane.leave(ticket)
        armed = [timer for timer in timers if not timer.cancelled()]
        lane.leave(await waiter)
        return len(timers), len(armed)

    assert run_virtual(main) == (11, 1)


def test_wait_of_a_nanosecond_is_a_wait():
    class Soon(FixedLimit):
        def wait_ns(self, now_ns, cost):
            return max(0, 1 - now_ns)

        def enter(self, now_ns, cost):
            return now_ns

    times = iter([0, 7])
    assert asyncio.run(Lane(Soon(1), lambda: next(times)).enter()) == 7


def test_limits_of_servers_hold_over_their_tools_and_for_nothing_else():
    async def main(clock):
        gate = Gate("semaphore:2@server+semaphore:other/*=1", clock=clock)
        inside: dict[str, int] = {}
        most: dict[str, int] = {}

        async def call(tool: str, server: str) -> None:
            async with gate.slot(tool, server=server):
                inside[server] = inside.get(server, 0) + 1
                most[server] = max(most.get(server, 0), inside[server])
                await asyncio.sleep(0.1)
                inside[server] -= 1

        calls = [(tool, server) for tool in "abc" for server in ("one", "other", "")]
        await asyncio.gather(*(call(*one) for one in calls * 2))
        return most

    assert run_virtual(main) == {"one": 2, "other": 1, "": 6}


# ── gates ──────────────────────────────────────────────────────────────────────────────────────


def _times(spec: str, calls: list[tuple[str, str]], seconds: float = 0.1) -> dict[tuple[str, str, int], int]:
    """When each (tool, agent) got in, in ms; all arrive at once and stay for `seconds`."""

    async def main(clock):
        gate, entered = Gate(spec, clock=clock, seed=1), {}

        async def call(index: int, tool: str, agent: str) -> None:
            async with gate.slot(tool, agent):
                entered[tool, agent, index] = clock() // 1_000_000
                await asyncio.sleep(seconds)

        await asyncio.gather(*(call(i, tool, agent) for i, (tool, agent) in enumerate(calls)))
        assert gate.waiting == 0
        return dict(sorted(entered.items(), key=lambda one: one[0][2]))

    return run_virtual(main)


@settings(max_examples=60)
@given(calls=ARRIVALS, draw=st.randoms(use_true_random=False))
def test_gate_loses_no_place_whenever_a_call_is_cancelled_or_refused(calls, draw):
    """Five scopes in a row and a Retry-After among them: cancelled at every await there is."""
    who = [(draw.choice("ab"), draw.choice("xy"), draw.random() < 0.1) for _ in calls]

    async def main(clock):
        gate = Gate(
            "semaphore:2@agent+semaphore:2@tool+semaphore:2@server+semaphore:3+rate:200/s,burst=3",
            clock=clock,
            seed=1,
        )
        inside: dict[str, int] = {}
        most: dict[str, int] = {}
        lanes: set = set()
        done: set[int] = set()

        async def call(index: int, arrives: int, stays: int) -> None:
            tool, agent, refused = who[index]
            await asyncio.sleep(arrives / 1000)
            async with gate.slot(tool, agent, server="one") as slot:
                lanes.update(slot.lanes)
                for key in (tool, agent, "all"):
                    inside[key] = inside.get(key, 0) + 1
                    most[key] = max(most.get(key, 0), inside[key])
                try:
                    await asyncio.sleep(stays / 1000)
                finally:
                    for key in (tool, agent, "all"):
                        inside[key] -= 1
                done.add(index)
                if refused:
                    slot.rejected(retry_after=0.02)

        async def cancel(task: asyncio.Task[None], at: int) -> None:
            await asyncio.sleep(at / 1000)
            task.cancel()

        tasks = [asyncio.create_task(call(i, arrives, stays)) for i, (arrives, stays, _) in enumerate(calls)]
        killers = [
            asyncio.create_task(cancel(task, arrives + after))
            for task, (arrives, _, after) in zip(tasks, calls, strict=True)
            if after is not None
        ]
        await asyncio.gather(*tasks, *killers, return_exceptions=True)
        assert gate.waiting == 0
        for lane in lanes:
            parts = lane.limiter.limiters if isinstance(lane.limiter, Together) else (lane.limiter,)
            assert [one.inside for one in parts if isinstance(one, FixedLimit)] in ([0], [])
        return most, done

    most, done = run_virtual(main)
    assert all(count <= (3 if key == "all" else 2) for key, count in most.items())
    assert {i for i, (_, _, after) in enumerate(calls) if after is None} <= done


def test_semaphore_for_each_tool_holds_back_only_its_own():
    assert _times("semaphore:1@tool", [("a", ""), ("a", ""), ("b", "")]) == {
        ("a", "", 0): 0,
        ("a", "", 1): 100,
        ("b", "", 2): 0,
    }


def test_named_tools_have_limits_and_others_have_none():
    entered = _times("semaphore:a=1,b=2", [("a", ""), ("a", ""), ("b", ""), ("b", ""), ("b", ""), ("c", "")])
    assert list(entered.values()) == [0, 100, 0, 0, 100, 0]


def test_semaphore_for_each_agent():
    entered = _times("semaphore:1@agent", [("a", "one"), ("a", "one"), ("a", "two")])
    assert list(entered.values()) == [0, 100, 0]


def test_limiters_compose():
    entered = _times("semaphore:4+rate:10/s,burst=2", [("a", "")] * 6, seconds=0.15)
    assert list(entered.values()) == [0, 0, 100, 200, 300, 400]


def test_agents_place_is_taken_before_the_shared_one():
    entered = _times("semaphore:2+semaphore:1@agent", [("a", "x"), ("a", "x"), ("a", "x"), ("a", "y")])
    assert list(entered.values()) == [0, 100, 200, 0]


def test_gate_of_a_process_has_its_share_and_at_least_one():
    assert [Gate("semaphore:8", share=n).limit for n in (1, 2, 3, 16)] == [8, 4, 2, 1]
    assert Gate("semaphore:8@agent", share=4).limit == 8
    assert Gate("rate:10/s").limit is None


def test_limit_of_an_adaptive_gate_is_the_one_of_now():
    async def main(clock):
        gate = Gate("adaptive:4", clock=clock)
        before = gate.limit
        await asyncio.gather(*(_once(gate) for _ in range(4)))
        return before, gate.limit

    async def _once(gate: Gate) -> None:
        async with gate.slot():
            await asyncio.sleep(0.01)

    assert run_virtual(main) == (4, 5)  # the first of four leaves a full gate: one more


class Refusal(Exception):
    """As httpx's: a response with a status and headers."""

    def __init__(self, status: int, headers: dict[str, str]) -> None:
        super().__init__(status)
        self.response = type("Response", (), {"status_code": status, "headers": headers})()


def test_retry_after_holds_all_calls_of_the_tool_and_spreads_them():
    async def main(clock):
        gate, entered = Gate("semaphore:100", clock=clock, seed=1), []

        async def refused() -> None:
            async with gate.slot("a"):
                raise Refusal(429, {"retry-after": "2"})

        async def call(tool: str) -> None:
            async with gate.slot(tool):
                entered.append((tool, clock() / 1e9))

        with pytest.raises(Refusal):
            await refused()
        await asyncio.gather(*(call("a") for _ in range(40)), call("b"))
        return entered

    entered = run_virtual(main)
    assert entered[0] == ("b", 0.0)
    times = [at for tool, at in entered if tool == "a"]
    assert len(times) == 40
    assert min(times) >= 2.0
    assert max(times) <= 3.0  # spread over max(1 s, 0.2 · 2 s)
    assert max(times) - min(times) > 0.5
    assert len(set(times)) == 40


def _waits(calls: list[Exception | float | None], tool: str = "a") -> float:
    """Seconds that a call has to wait after these: an error raised, or a refusal said with its wait."""

    async def main(clock):
        gate = Gate("semaphore:100", clock=clock, seed=1)
        for call in calls:
            with contextlib.suppress(Refusal):
                async with gate.slot("a") as slot:
                    if isinstance(call, Exception):
                        raise call
                    slot.rejected(call)
        async with gate.slot(tool):
            return clock() / 1e9

    return run_virtual(main)


def test_refusal_that_is_said_holds_its_tool_back_as_one_that_is_raised():
    assert 2 <= _waits([2.0]) <= 3
    assert _waits([2.0], tool="b") == 0
    assert _waits([None]) == 0
    assert _waits([Refusal(500, {"retry-after": "2"})]) == 0  # it broke: it is not full


def test_shorter_wait_does_not_end_a_longer_one():
    async def main(clock):
        gate = Gate("semaphore:100", clock=clock, seed=1)
        first, second = gate.slot("a"), gate.slot("a")
        for slot, wait in ((first, 10.0), (second, 1.0)):
            await gate.enter(slot)
            slot.rejected(wait)
        gate.leave(first)
        gate.leave(second)
        async with gate.slot("a"):
            return clock() / 1e9

    assert run_virtual(main) >= 10


def test_refusal_that_is_said_lowers_an_adaptive_limit():
    async def main(clock):
        gate = Gate("adaptive:10", clock=clock)
        async with gate.slot() as slot:
            slot.rejected()
        return gate.limit

    assert run_virtual(main) == 5


def test_waiter_that_is_cancelled_in_the_second_line_gives_back_the_first_place():
    async def main(clock):
        gate = Gate("semaphore:1@tool+semaphore:1", clock=clock)
        async with gate.slot("a"):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(gate.enter(gate.slot("b")), 1)
        async with gate.slot("b"):
            return clock() / 1e9

    assert run_virtual(main) == 1.0


def test_gate_has_limiters_for_each_event_loop_and_keeps_them():
    gate = Gate("adaptive:4+semaphore:9")

    async def enter() -> object:
        slots = [gate.slot() for _ in range(4)]
        for slot in slots:
            await gate.enter(slot)
        return slots

    async def leave(slots) -> int | None:
        for slot in slots:
            gate.leave(slot)
        return gate.limit

    async def waiting() -> int:
        return gate.waiting

    async def inside() -> int:
        return gate.limiters()[0].limiters[0].inside

    idle, one, two = (asyncio.new_event_loop() for _ in range(3))
    try:
        assert idle.run_until_complete(waiting()) == 0
        first = one.run_until_complete(enter())
        second = two.run_until_complete(enter())  # four more: the first four are not in its way
        assert one.run_until_complete(inside()) == 4
        assert one.run_until_complete(leave(first)) == 5
        assert two.run_until_complete(leave(second)) == 5
    finally:
        for loop in (idle, one, two):
            loop.close()


@pytest.mark.parametrize(
    ("spec", "moves", "limit"),
    [
        ("adaptive:8+semaphore:5", True, 5),
        ("semaphore:12+adaptive:8", True, 8),
        ("adaptive:8+adaptive:4", True, 4),
        ("semaphore:7+semaphore:9@agent+rate:5/s", False, 7),
    ],
)
def test_limit_of_a_gate_is_its_narrowest_rule(spec, moves, limit):
    gate = Gate(spec)
    assert (gate.adapts, gate.limit) == (moves, limit)


def test_agents_limiters_are_not_shared():
    async def main(clock):
        return Gate("semaphore:2@agent", clock=clock).limiters()

    assert run_virtual(main) == ()


def test_gate_heeds_headers_for_the_rates_they_speak_of():
    async def main(clock):
        gate = Gate("rate:600/min,burst=20+tokens:60000/min,burst=1000", clock=clock)
        requests, tokens = gate.limiters()[0].limiters
        gate.heed("", {"x-ratelimit-remaining-requests": "3"})
        said = requests.rate, requests.level(clock()), tokens.rate, tokens.level(clock())
        gate.heed("", {"x-ratelimit-limit-tokens": "30000"})
        alone = Gate("rate:600/min,burst=20+semaphore:3", clock=clock)
        alone.heed("", {"anthropic-ratelimit-requests-limit": "300"})
        return said, (tokens.rate, tokens.level(clock())), alone.limiters()[0].limiters[0].rate

    assert run_virtual(main) == ((10.0, 3.0, 1000.0, 1000.0), (500.0, 1000.0), 5.0)


def test_gate_holds_those_in_line_when_the_server_asks_for_a_wait():
    async def main(clock):
        gate = Gate("semaphore:1", clock=clock, seed=1)
        entered = []

        async def refused() -> None:
            async with gate.slot("a"):
                await asyncio.sleep(0.1)
                raise Refusal(429, {"retry-after": "1"})

        async def call() -> None:
            async with gate.slot("a"):
                entered.append(clock() / 1e9)

        first = asyncio.create_task(refused())
        await asyncio.sleep(0.05)
        await asyncio.gather(call(), return_exceptions=True)
        await asyncio.gather(first, return_exceptions=True)
        return entered

    (at,) = run_virtual(main)
    assert 1.1 <= at <= 2.1


def test_slot_is_freed_by_what_a_call_raises_which_goes_on():
    async def main(clock):
        gate = Gate("adaptive:10", clock=clock)
        for error in (Refusal(429, {}), TimeoutError(), ValueError()):
            with pytest.raises(type(error)):
                async with gate.slot():
                    raise error
        (limiter,) = gate.limiters()
        return limiter.inside, limiter.limit

    assert run_virtual(main) == (0, 5)  # the 429, with nobody else inside, halves it; the others do nothing


def test_exclusive_tools_of_one_name_share_a_lane():
    async def main(clock):
        return exclusive_lane("db") is exclusive_lane("db"), exclusive_lane("db") is exclusive_lane("file")

    lane = run_virtual(main)
    assert lane[1] is False


@pytest.mark.parametrize(
    "spec", ["", "semaphore:0", "rate:0/s", "rate:5", "gathered", "semaphore:2+", "adaptive:0"]
)
def test_spec_that_is_no_limiter_is_refused(spec):
    with pytest.raises(UsageError, match="unknown limiter"):
        Gate(spec)


def test_limiter_left_too_often_is_a_bug():
    for limiter in (FixedLimit(1), AdaptiveLimit(1)):
        with pytest.raises(RuntimeError, match="more often"):
            limiter.leave(0, 0, "ok", None)
    with pytest.raises(UsageError, match="at least 1, not 0"):
        FixedLimit(0)
    with pytest.raises(UsageError, match="two limits"):
        Gate("semaphore:a=1,a=2")
