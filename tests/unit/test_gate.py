"""The gate: first come first served, never more inside than allowed, nothing lost to cancellation."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler import UsageError
from profiler.gate import Gate
from profiler.limits import FixedLimit
from profiler.strategies import parse_strategy
from profiler.testing import run_virtual


def test_waiters_are_admitted_in_the_order_they_came():
    async def main(clock):
        gate, order = Gate(FixedLimit(2)), []

        async def call(name: int) -> None:
            async with gate:
                order.append((name, clock() // 1_000_000))
                await asyncio.sleep(0.1)

        await asyncio.gather(*(call(i) for i in range(5)))
        return order

    assert run_virtual(main) == [(0, 0), (1, 0), (2, 100), (3, 100), (4, 200)]


@settings(max_examples=60, deadline=None)
@given(
    limit=st.integers(1, 4),
    calls=st.lists(
        st.tuples(st.integers(0, 50), st.integers(1, 50), st.one_of(st.none(), st.integers(0, 80))),
        min_size=1,
        max_size=25,
    ),
)
def test_never_more_inside_and_no_slot_lost(limit, calls):
    """calls: (arrives at ms, stays ms, is cancelled ms after its arrival)."""

    async def main(clock):
        gate = Gate(FixedLimit(limit))
        most = inside = 0

        async def call(arrives: int, stays: int) -> None:
            nonlocal most, inside
            await asyncio.sleep(arrives / 1000)
            async with gate:
                inside += 1
                most = max(most, inside)
                try:
                    await asyncio.sleep(stays / 1000)
                finally:
                    inside -= 1

        async def cancel(task: asyncio.Task[None], at: int) -> None:
            await asyncio.sleep(at / 1000)
            task.cancel()

        tasks = [asyncio.create_task(call(arrives, stays)) for arrives, stays, _ in calls]
        killers = [
            asyncio.create_task(cancel(task, arrives + after))
            for task, (arrives, _, after) in zip(tasks, calls, strict=True)
            if after is not None
        ]
        await asyncio.gather(*tasks, *killers, return_exceptions=True)
        return most, gate.limiter.inside, gate.waiting

    most, left, waiting = run_virtual(main)
    assert most <= limit
    assert (left, waiting) == (0, 0)


def test_a_place_granted_to_a_cancelled_waiter_goes_to_the_next():
    async def main(clock):
        gate = Gate(FixedLimit(1))
        await gate.__aenter__()

        async def call() -> str:
            async with gate:
                return "in"

        second, third = asyncio.create_task(call()), asyncio.create_task(call())
        await asyncio.sleep(0)
        await gate.__aexit__(None, None, None)  # grants it to the second,
        second.cancel()  # which is cancelled before it wakes
        return await asyncio.gather(second, third, return_exceptions=True), gate.limiter.inside

    (second, third), inside = run_virtual(main)
    assert isinstance(second, asyncio.CancelledError)
    assert (third, inside) == ("in", 0)


@pytest.mark.parametrize(
    ("spec", "limit", "scope"),
    [
        ("sequential", 1, "agent"),
        ("gathered", None, "process"),
        ("semaphore:4", 4, "process"),
        ("semaphore:12@agent", 12, "agent"),
    ],
)
def test_a_spec_names_a_strategy_and_back(spec, limit, scope):
    strategy = parse_strategy(spec)
    assert (strategy.spec, strategy.limit, strategy.scope) == (spec, limit, scope)


@pytest.mark.parametrize(
    "spec", ["", "parallel", "semaphore", "semaphore:0", "semaphore:-1", "semaphore:4@tool", "semaphore:4x"]
)
def test_what_is_no_strategy_is_refused(spec):
    with pytest.raises(UsageError, match="unknown strategy"):
        parse_strategy(spec)


def test_a_limiter_released_too_often_is_a_bug():
    with pytest.raises(RuntimeError, match="more often"):
        FixedLimit(1).release()
    with pytest.raises(UsageError, match="at least 1, not 0"):
        FixedLimit(0)
