"""Who held the event loop: values on a clock made by hand."""

from __future__ import annotations

import asyncio

import pytest

from profiler.loop.eventloop import TimedCoroutine
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
        return await steps, steps.steps

    assert run_virtual(main) == ("done", [(0, 300 * MS), (304 * MS, 354 * MS)])


def test_ends_of_waits_are_noted_and_the_newest_kept():
    async def tool(waits: int) -> None:
        await asyncio.sleep(0.1)
        await asyncio.sleep(0)  # no wait
        for _ in range(waits):
            await asyncio.sleep(0.2)

    async def main(clock):
        few, many = TimedCoroutine(tool(1), clock), TimedCoroutine(tool(999), clock)
        await few
        await many
        return few.resumed, many.resumed

    few, many = run_virtual(main)
    assert [at // MS for at in few] == [100, 300]
    assert 128 <= len(many) <= 256
    assert many[-1] // MS == 300 + 100 + 999 * 200


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
