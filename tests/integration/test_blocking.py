"""A tool that blocks the event loop while it pretends to be async is named, with for how long."""

from __future__ import annotations

import asyncio
import time

import pytest

from profiler import Gathered, ToolLoop, tool
from profiler.records import LoopRecord
from profiler.report.timeline import render_timeline
from profiler.testing import ScriptedModel, call
from profiler.watch.profiler import Profiler

pytestmark = pytest.mark.measures

SECONDS = 0.2


@tool
async def pretends() -> str:
    time.sleep(SECONDS)  # noqa: ASYNC251 (what this is about)
    return "done"


@tool
async def waits() -> str:
    await asyncio.sleep(SECONDS)
    return "done"


@tool
def honest() -> str:
    time.sleep(SECONDS)
    return "done"


async def test_a_blocking_tool_is_named():
    script = [[call("pretends"), call("pretends"), call("waits"), call("honest")], "answer"]
    loop = ToolLoop(ScriptedModel(script), [pretends, waits, honest], Gathered())
    record = (await loop.run("go")).record
    first, second, waiting, threaded = record.rounds[0].tool_calls
    for blocked in (first, second):
        assert blocked.blocking_ns / 1e9 == pytest.approx(SECONDS, rel=0.1)
    assert (waiting.blocking_ns, threaded.blocking_ns) == (0, 0)
    assert record.rounds[0].shortfall == "blocked_loop"
    assert record.lag_ns / 1e9 > SECONDS
    drawn = render_timeline(record)
    assert "pretends" in "\n".join(drawn.splitlines()[:3])


async def test_sync_tools_do_not_block():
    script = [[call("honest"), call("honest"), call("honest")], "answer"]
    loop = ToolLoop(ScriptedModel(script), [honest], Gathered())
    record = (await loop.run("go")).record
    calls = record.rounds[0].tool_calls
    assert max(c.started_ns for c in calls) < min(c.ended_ns for c in calls)
    assert record.rounds[0].shortfall is None


async def test_a_blocking_tool_of_somebody_elses_loop_is_named():
    records: list[LoopRecord] = []
    prof = Profiler(sinks=[records.append])
    watched = prof.tool(pretends.function)
    with prof.loop("theirs") as loop:
        loop.begin_round("openai", "m").unclaimed.append((call("pretends"), 0))
        await watched()
    (made,) = records[0].tool_calls
    assert made.blocking_ns / 1e9 == pytest.approx(SECONDS, rel=0.1)


async def test_a_loop_of_ones_own_that_awaits_its_calls_in_turn_is_not_said_to_be_blocked():
    records: list[LoopRecord] = []
    prof = Profiler(sinks=[records.append])
    watched = prof.tool(waits.function)
    for gathers in (False, True):
        with prof.loop("theirs") as loop:
            loop.begin_round("openai", "m").unclaimed.extend([(call("waits"), 0), (call("waits"), 0)])
            if gathers:
                await asyncio.gather(watched(), watched())
            else:
                await watched()
                await watched()
    assert [record.rounds[0].shortfall for record in records] == ["application", None]
