"""Tools of a plain agent, held back by the strategy wherever they run."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any

import pytest

from profiler.errors import RequestRefused
from profiler.load.agents import as_agent
from profiler.load.context import AgentCall, AgentContext
from profiler.load.holding import HeldBack, hold
from profiler.load.runners import CustomAgent
from profiler.records import LoopRecord
from tests.unit.test_load_agents import POSITION, context

CALLS = 4


class Counted:
    """A tool, async and sync, that counts how many of it run at once: of the sync one, `together` or more."""

    def __init__(self, given: AgentContext, together: int = 1) -> None:
        self.context, self.together = given, together
        self.now = self.most = self.ran = 0
        self._lock = threading.Lock()
        self.tool = given.profiler.tool(self.awaited, name="a")
        self.sync = given.profiler.tool(self.blocking, name="a")

    def _enters(self) -> None:
        with self._lock:
            self.now += 1
            self.ran += 1
            self.most = max(self.most, self.now)

    def _leaves(self) -> None:
        with self._lock:
            self.now -= 1

    async def awaited(self) -> None:
        self._enters()
        for _ in range(20):
            await asyncio.sleep(0)
        self._leaves()

    def blocking(self) -> None:
        self._enters()
        time.sleep(0.002)
        deadline = time.monotonic() + 60
        while self.most < self.together and time.monotonic() < deadline:  # another thread has no turn yet
            os.sched_yield()
        self._leaves()


async def gathers(counted: Counted) -> None:
    await asyncio.gather(*(counted.tool() for _ in range(CALLS)))


async def gathers_threads(counted: Counted) -> None:
    await asyncio.gather(*(asyncio.to_thread(counted.sync) for _ in range(CALLS)))


async def in_pool(counted: Counted) -> None:
    def agent() -> None:
        with ThreadPoolExecutor(CALLS) as pool:
            for _ in range(CALLS):
                pool.submit(copy_context().run, counted.sync)

    await asyncio.to_thread(agent)


async def on_its_own_loop(counted: Counted) -> None:
    await asyncio.to_thread(asyncio.run, gathers(counted))


async def on_the_loop(counted: Counted) -> None:
    for _ in range(CALLS):
        counted.sync()


def held(spec: str, body: Callable[[Counted], Any], together: int = 1) -> tuple[Counted, LoopRecord]:
    records: list[LoopRecord] = []
    made: list[Counted] = []

    async def main() -> None:
        given = context(spec)
        given.profiler.hold = hold
        counted = Counted(given, together)
        made.append(counted)

        async def agent(prompt: str) -> None:
            with given.profiler.loop("inner", strategy=spec) as loop:
                loop.begin_round("openai", "m")
                await body(counted)

        own = await CustomAgent.make(as_agent(agent, "m:agent"), given, [records.append])
        assert await own.run(POSITION)

    asyncio.run(main())
    return made[0], records[0]


@pytest.mark.parametrize(("server", "most"), [("files", 1), ("other", CALLS), ("", CALLS)])
def test_call_of_a_servers_tool_waits_for_the_limit_of_the_server(server: str, most: int) -> None:
    running, highest = 0, 0

    async def call(counted: Counted) -> None:
        nonlocal running, highest
        place = counted.context.profiler._held("read", server)
        assert place is not None
        async with place:
            running += 1
            highest = max(highest, running)
            for _ in range(CALLS):
                await asyncio.sleep(0)
            running -= 1

    async def body(counted: Counted) -> None:
        await asyncio.gather(*(call(counted) for _ in range(CALLS)))

    held("semaphore:files/*=1", body)
    assert highest == most


@pytest.mark.parametrize("body", [gathers, gathers_threads, in_pool, on_its_own_loop])
@pytest.mark.parametrize(("spec", "most"), [("sequential", 1), ("semaphore:2", 2)])
def test_calls_wait_wherever_they_run(spec: str, most: int, body: Callable[[Counted], Any]) -> None:
    counted, record = held(spec, body, most)
    assert (counted.ran, counted.most, counted.now) == (CALLS, most, 0)
    assert record.unlimited_calls == 0
    calls = [call for round_ in record.rounds for call in round_.tool_calls]
    assert len(calls) == CALLS
    assert sum(call.started_ns > call.queued_ns for call in calls) >= CALLS - most


def test_nothing_waits_where_nothing_limits_or_overlaps() -> None:
    counted, _ = held("gathered", gathers)
    assert counted.most == CALLS
    counted, _ = held("semaphore:2", on_the_loop)
    assert (counted.ran, counted.most) == (CALLS, 1)


def test_call_inside_another_one_has_its_place() -> None:
    async def nested(counted: Counted) -> None:
        async def outer() -> None:
            await counted.tool()

        await tools[0].profiler.tool(outer)()

    tools: list[AgentContext] = []
    records: list[LoopRecord] = []

    async def main() -> None:
        given = context("semaphore:1")
        tools.append(given)
        given.profiler.hold = hold
        counted = Counted(given)

        async def agent(prompt: str) -> None:
            await nested(counted)

        own = await CustomAgent.make(as_agent(agent, "m:agent"), given, [records.append], timeout=30.0)
        assert await own.run(POSITION)
        assert counted.ran == 1
        assert given.strategy.gate is not None
        assert given.strategy.gate.waiting == 0

    asyncio.run(main())


def test_place_that_is_no_longer_waited_for_is_given_back() -> None:
    async def main() -> None:
        given = context("semaphore:1")
        assert given.strategy.gate is not None
        given.profiler.hold = hold
        counted = Counted(given)
        inside = asyncio.Event()

        @given.profiler.tool
        async def stays() -> None:
            inside.set()
            await asyncio.sleep(3600)

        async def agent(prompt: str) -> None:
            first = asyncio.ensure_future(stays())
            await inside.wait()
            cancels: list[Callable[[], object]] = []

            async def own_loop() -> None:
                calls = asyncio.gather(*(counted.tool() for _ in range(CALLS)))
                cancels.append(partial(asyncio.get_running_loop().call_soon_threadsafe, calls.cancel))
                with pytest.raises(asyncio.CancelledError):
                    await calls

            waiting = asyncio.ensure_future(asyncio.to_thread(asyncio.run, own_loop()))
            while given.strategy.gate.waiting < CALLS:  # type: ignore[union-attr]  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            cancels[0]()
            await waiting
            first.cancel()

        own = await CustomAgent.make(as_agent(agent, "m:agent"), given, ())
        assert await own.run(POSITION)
        async with asyncio.timeout(60), given.strategy.gate.slot():
            assert counted.ran == 0

    asyncio.run(main())


def waiting_call(given: AgentContext) -> tuple[AgentCall, HeldBack]:
    call = AgentCall(POSITION, given, asyncio.get_running_loop())
    assert given.strategy.gate is not None
    return call, HeldBack(call, given.strategy.gate, "a", time.monotonic_ns)


def test_a_thread_that_began_to_wait_as_its_loop_ended_goes_on() -> None:
    async def main() -> list[str]:
        told: list[str] = []
        given = context("semaphore:1")
        call, cancelled = waiting_call(given)
        cancelled._ask(partial(told.append, "cancelled"))
        await asyncio.sleep(0)
        (task,) = call.waits  # it has not taken its first step
        task.cancel()
        call, late = waiting_call(given)
        call.over = True
        late._ask(partial(told.append, "late"))
        for _ in range(5):
            await asyncio.sleep(0)
        async with asyncio.timeout(60), given.strategy.gate.slot():  # type: ignore[union-attr]
            return told

    assert sorted(asyncio.run(main())) == ["cancelled", "late"]


def test_a_thread_that_outlives_the_event_loop_of_the_agents_ends() -> None:
    async def main() -> HeldBack:
        return waiting_call(context("semaphore:1"))[1]

    with pytest.raises(RequestRefused, match="the loop was ended"), asyncio.run(main()):
        pass


def test_outside_a_loop_nothing_is_held() -> None:
    assert hold("a") is None


def test_what_a_tool_does_before_it_waits_is_not_in_the_time_that_it_has_the_place() -> None:
    async def begins_slowly(counted: Counted) -> None:
        clock = counted.context.profiler.recorder.clock

        def prepared() -> Any:
            until_ns = clock() + 2_000_000
            while clock() < until_ns:
                pass
            return counted.awaited()

        tool = counted.context.profiler.tool(prepared, name="b")
        await asyncio.gather(*(tool() for _ in range(CALLS)))

    counted, record = held("semaphore:1", begins_slowly)
    assert (counted.ran, counted.most) == (CALLS, 1)
    times = sorted((call.started_ns or 0, call.ended_ns or 0) for call in record.tool_calls)
    assert len(times) == CALLS
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(times))
