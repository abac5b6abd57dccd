"""What a watched loop shows of its calls: tries of one call, calls made by calls, pools, who ran them."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from profiler.anatomy import tool_phase
from profiler.loop.lag import Stall
from profiler.loop.model import CallRequest
from profiler.records import LoopRecord
from profiler.testing import run_virtual
from profiler.watch.circumstances import circumstances, pool, runner
from profiler.watch.loop import ObservedLoop
from profiler.watch.profiler import Profiler

MS = 1_000_000


def watched(loop_of: Any, *asked: dict[str, Any]) -> LoopRecord:
    """The record of a loop on a virtual clock, whose model asked for calls of `work` with these arguments."""
    records: list[LoopRecord] = []

    async def main(clock: Any) -> None:
        prof = Profiler(sinks=[records.append], clock=clock)
        with prof.loop() as loop:
            round_ = loop.begin_round("openai", "m")
            round_.unclaimed.extend(
                (CallRequest(f"c{i}", "work", one), clock()) for i, one in enumerate(asked)
            )
            round_.ended_ns = clock()
            await loop_of(prof)

    run_virtual(main)
    return records[0]


def test_a_call_that_is_tried_again_is_one_call_with_attempts() -> None:
    failures = iter((True, True, False))

    async def loop_of(prof: Profiler) -> None:
        @prof.tool
        async def work(x: int) -> str:
            await asyncio.sleep(0.1)
            if x == 0 and next(failures):
                raise LookupError("gone")
            return "done"

        async def patiently() -> None:
            while True:
                try:
                    await work(x=0)
                    return
                except LookupError:
                    await asyncio.sleep(0.05)

        await asyncio.gather(patiently(), work(x=1))

    record = watched(loop_of, {"x": 0}, {"x": 1})
    tried, once = record.rounds[0].tool_calls
    assert (tried.id, tried.status, tried.duration_ns) == ("c0", "ok", 400 * MS)
    assert [(one.status, one.error_type) for one in tried.attempts] == [
        ("error", "LookupError"),
        ("error", "LookupError"),
        ("ok", None),
    ]
    assert (once.id, once.attempts, once.duration_ns) == ("c1", (), 100 * MS)
    assert (record.rounds[0].shortfall, record.ambiguous_calls) == (None, 0)


def test_a_failed_call_does_not_take_the_request_of_the_next_one() -> None:
    failures = iter((True, False))

    async def loop_of(prof: Profiler) -> None:
        @prof.tool
        async def work(x: int) -> str:
            await asyncio.sleep(0.1)
            if x == 0 and next(failures):
                raise LookupError("gone")
            return "done"

        with pytest.raises(LookupError):
            await work(x=0)
        await work(x=0)
        await work(x=1)

    record = watched(loop_of, {"x": 0}, {"x": 1})
    calls = record.rounds[0].tool_calls
    assert [(call.id, call.attempt_count) for call in calls] == [("c0", 2), ("c1", 1)]
    assert record.rounds[0].shortfall == "application"


def test_calls_that_a_call_makes_are_part_of_it() -> None:
    async def loop_of(prof: Profiler) -> None:
        @prof.tool
        async def inner() -> str:
            await asyncio.sleep(0.1)
            return "done"

        @prof.tool
        async def work(x: int) -> str:
            await inner()
            await inner()
            return "done"

        await asyncio.gather(work(x=0), work(x=1))

    round_ = watched(loop_of, {"x": 0}, {"x": 1}).rounds[0]
    assert (
        sorted((call.name, call.nested) for call in round_.tool_calls)
        == [("inner", True)] * 4 + [("work", False)] * 2
    )
    phase = tool_phase(round_)
    assert phase is not None
    assert (phase.work_ns, phase.wall_ns, phase.peak_concurrency) == (400 * MS, 200 * MS, 2)
    assert round_.shortfall is None


def test_calls_served_one_at_a_time_by_a_lock_inside_the_tool() -> None:
    async def loop_of(prof: Profiler) -> None:
        lock = asyncio.Lock()

        @prof.tool
        async def work(x: int) -> str:
            async with lock:
                await asyncio.sleep(0.1)
            return "done"

        await asyncio.gather(*(work(x=i) for i in range(4)))

    assert watched(loop_of, *({"x": i} for i in range(4))).rounds[0].shortfall == "inside_tools"


def test_time_in_which_the_machine_did_not_run_a_step_is_not_the_tool_s() -> None:
    now = 0
    loop = ObservedLoop(lambda: now, name="", strategy="application")
    loop.begin_round("p", "m").ended_ns = 0
    call = loop.begin_call("t", None)
    call.steps = [(0, 300 * MS), (400 * MS, 450 * MS)]
    call.ended_ns = now = 500 * MS
    stalls = [Stall(5 * MS, 300 * MS, 294 * MS)]
    (made,) = loop.record("ok", None, 0, stalls).rounds[0].tool_calls
    assert made.blocking_ns == 50 * MS
    (made,) = loop.record("ok", None, 0).rounds[0].tool_calls
    assert made.blocking_ns == 350 * MS


def test_a_pool_tells_its_size_and_whether_work_waits_for_a_thread() -> None:
    gate = threading.Event()

    def job() -> Any:
        where = circumstances()
        assert where.executor is not None
        gate.wait(60)
        return pool(where.executor)

    with ThreadPoolExecutor(2) as executor:
        jobs = [executor.submit(job) for _ in range(3)]
        gate.set()
        seen = [one.result(60) for one in jobs]
    assert {found.threads for found in seen} == {2}
    # The first of the two to look sees the third wait; the other may look when that has begun.
    assert (seen[0].full or seen[1].full, seen[2].full) == (True, False)
    assert circumstances().executor is None


@pytest.mark.parametrize(
    ("module", "found"),
    [
        ("openai.lib.responses_tool_runner", "openai"),
        ("anthropic.lib.tools._beta_runner", "anthropic"),
        ("anthropic.lib.tools._beta_functions", None),
        ("application.runner", None),
    ],
)
def test_the_runner_of_an_sdk_is_told_by_the_code_that_calls(module: str, found: str | None) -> None:
    code = "def call(inner): return inner()"
    names: dict[str, Any] = {"__name__": module}
    exec(code, names)
    assert names["call"](runner) == found
