"""Who held the event loop, and what kept calls from overlapping: values on a clock made by hand."""

from __future__ import annotations

import asyncio

import pytest

from profiler.anatomy import schedule_wall, shortfall
from profiler.loop.eventloop import TimedCoroutine
from profiler.records import ToolCall
from profiler.testing import run_virtual

MS = 1_000_000


class HandClock:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


def test_steps_count_if_they_are_long_and_awaits_do_not():
    clock = HandClock()

    async def tool() -> str:
        clock.now += 300 * MS  # holds the loop
        await asyncio.sleep(0)
        clock.now += 4 * MS  # too short to blame
        await asyncio.sleep(1)
        clock.now += 50 * MS
        return "done"

    async def main(_):
        steps = TimedCoroutine(tool(), clock)
        return await steps, steps.blocking_ns

    assert run_virtual(main) == ("done", 350 * MS)


def test_coroutine_that_is_given_up_is_closed():
    ended = []

    async def tool() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            ended.append("closed")

    async def main(clock):
        running = TimedCoroutine(tool(), clock).__await__()
        next(running)
        running.close()
        return ended

    assert run_virtual(main) == ["closed"]


def test_errors_and_cancellation_pass_through_the_steps():
    seen = []

    async def tool() -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def fails() -> None:
        await asyncio.sleep(0)
        raise LookupError("gone")

    async def main(clock):
        task = asyncio.ensure_future(_awaited(TimedCoroutine(tool(), clock)))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(LookupError, match="gone"):
            await TimedCoroutine(fails(), clock)
        async with asyncio.timeout(5):
            return await TimedCoroutine(asyncio.sleep(1, "in time"), clock)

    assert run_virtual(main) == "in time"
    assert seen == ["cancelled"]


async def _awaited(steps: TimedCoroutine) -> None:
    await steps


def calls(*spans: tuple[int, int], blocking: int = 0, thread_wait: int = 0) -> list[ToolCall]:
    return [
        ToolCall(
            str(i),
            "t",
            0,
            0,
            start * MS,
            end * MS,
            blocking_ns=blocking * MS,
            thread_wait_ns=thread_wait * MS,
        )
        for i, (start, end) in enumerate(spans)
    ]


@pytest.mark.parametrize(
    ("made", "wall", "limit", "reason"),
    [
        (calls((0, 100), (0, 200)), 200, None, None),
        (calls((0, 100), (100, 200)), 200, 1, None),  # sequential: all that it allows
        (calls((0, 100), (0, 100), (100, 200)), 200, 2, None),
        (calls((0, 100), (100, 200)), 200, 2, "limiter"),  # others had its places
        (calls((0, 100), (100, 200), blocking=100), 200, None, "blocked_loop"),
        (calls((0, 100), (100, 200)), 200, None, "blocked_loop"),  # somebody else's fault
        (calls((0, 100), (0, 200), thread_wait=100), 200, None, "threads"),
        (calls((0, 100), (4, 104)), 104, None, None),  # within tolerance
        (calls((0, 100)), 300, 1, None),
    ],
)
def test_shortfall_names_what_kept_calls_from_overlapping(made, wall, limit, reason):
    assert shortfall(made, wall * MS, limit) == reason


@pytest.mark.parametrize(
    ("made", "limit", "lag", "reason"),
    [
        (calls((0, 100), (100, 200)), None, 0, "application"),  # awaited in turn
        (calls((0, 100), (100, 200)), None, 49, "application"),
        (calls((0, 100), (100, 200)), None, 50, "blocked_loop"),
        (calls((0, 100), (100, 200), blocking=100), None, 100, "blocked_loop"),
        (calls((0, 100), (100, 200), blocking=10), None, 10, "application"),
        (calls((0, 100), (0, 200), thread_wait=100), None, 0, "threads"),
        (calls((0, 100), (0, 200)), None, 0, None),
        (calls((0, 100), (100, 200)), 2, 0, "limiter"),
    ],
)
def test_shortfall_of_a_watched_loop_may_be_that_it_awaits_its_calls_in_turn(made, limit, lag, reason):
    assert shortfall(made, 200 * MS, limit, lag * MS) == reason


@pytest.mark.parametrize(
    ("durations", "limit", "wall"),
    [([3, 1, 2], None, 3), ([3, 1, 2], 1, 6), ([3, 1, 2], 2, 3), ([1, 1, 3], 2, 4), ([2], 5, 2)],
)
def test_wall_of_a_first_come_schedule(durations, limit, wall):
    assert schedule_wall(durations, limit) == wall
