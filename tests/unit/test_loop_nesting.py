"""A loop that begins in another one's tool call: whose child it is, and of which call."""

from __future__ import annotations

import asyncio
import contextvars

import pytest

from profiler import Gathered, ToolLoop
from profiler.loop.model import CallRequest
from profiler.testing import ScriptedModel, call, run_virtual
from profiler.watch.profiler import Profiler


def parents(records):
    """(name, name of its parent, place of its call among those of the parent) of each loop, by its name."""
    by_id = {record.id: record for record in records}
    found = {}
    for record in records:
        above = by_id.get(record.parent)
        inside = [n for n, one in enumerate(above.tool_calls) if record.id in one.loops] if above else []
        found[record.name] = (above.name if above else record.parent, inside)
    return found


def asks(loop, *requests):
    round_ = loop.begin_round("openai", "m")
    round_.unclaimed += [(CallRequest(*request), 0) for request in requests]


async def watched_in_watched(sinks, topics, ids, clock=None):
    prof = Profiler(sinks)

    @prof.tool
    async def research(topic):
        await asyncio.sleep(0.01 * len(topic))  # the last asked for is the first whose loop begins
        with prof.loop(topic):
            await asyncio.sleep(0.05)

    with prof.loop("outer") as loop:
        asks(loop, *[(i, "research", f'{{"topic": "{t}"}}') for i, t in zip(ids, topics, strict=True)])
        await asyncio.gather(*(research(topic=topic) for topic in topics))


@pytest.mark.parametrize("ids", [("a", "b"), ("", ""), ("same", "same")], ids=["ids", "no ids", "one id"])
def test_each_of_two_calls_has_its_own_loop(ids):
    records = []
    asyncio.run(watched_in_watched([records.append], ("longer", "short"), ids))
    assert parents(records) == {"outer": (None, []), "longer": ("outer", [0]), "short": ("outer", [1])}


def scripted(name, tools, sinks, clock, calls=("", "")):
    asked = [[call("work", topic=topic) for topic in calls], "done"] if tools else ["done"]
    return ToolLoop(ScriptedModel(asked), tools, Gathered(), sinks=sinks, name=name, clock=clock)


def test_tool_loop_in_a_tool_of_a_tool_loop():
    async def main(clock):
        records = []

        async def work(topic: str) -> str:
            await scripted(topic, [], [records.append], clock).run("go")
            return topic

        await scripted("outer", [work], [records.append], clock, ("a", "b")).run("go")
        return parents(records)

    assert run_virtual(main) == {"outer": (None, []), "a": ("outer", [0]), "b": ("outer", [1])}


def test_tool_loop_in_a_watched_tool_and_one_that_is_watched_in_a_tool_loop():
    async def main(clock):
        records = []
        prof = Profiler([records.append], clock=clock)

        async def work(topic: str) -> str:
            with prof.loop(topic):
                with prof.loop(f"inside {topic}"):
                    pass
                await scripted(f"in {topic}", [], [records.append], clock).run("go")
            return topic

        @prof.tool
        async def start():
            await scripted("middle", [work], [records.append], clock, ("a",)).run("go")

        with prof.loop("top") as loop:
            asks(loop, ("", "start", "{}"))
            await start()
        await scripted("after", [], [records.append], clock).run("go")
        with prof.loop("frame"):  # no call: its own record is the whole loop's
            await scripted("own", [], [records.append], clock).run("go")
        return parents(records)

    assert run_virtual(main) == {
        "top": (None, []),
        "middle": ("top", [0]),
        "a": ("middle", [0]),
        "inside a": ("a", []),
        "in a": ("a", []),
        "after": (None, []),
        "frame": (None, []),
        "own": (None, []),
    }


def test_loop_of_a_profiler_whose_records_go_elsewhere_is_no_part():
    mine, others = [], []
    prof, other = Profiler([mine.append]), Profiler([others.append])

    @prof.tool
    def work():
        with other.loop("other"), prof.loop("inner"):
            pass

    with prof.loop("outer") as loop:
        asks(loop, ("", "work", "{}"))
        work()
    assert parents(mine) == {"inner": ("outer", [0]), "outer": (None, [])}
    assert parents(others) == {"other": (None, [])}


def test_loop_that_begins_when_its_place_has_ended_is_its_own():
    records = []
    prof = Profiler([records.append])
    kept = []

    @prof.tool
    def work():
        kept.append(contextvars.copy_context())

    with prof.loop("outer") as loop:
        asks(loop, ("", "work", "{}"))
        work()
    context = prof.loop("later")
    kept[0].run(context.__enter__)
    kept[0].run(context.__exit__, None, None, None)
    assert parents(records) == {"outer": (None, []), "later": (None, [])}


def test_loops_of_a_call_that_was_tried_again_are_all_its_own():
    records = []
    prof = Profiler([records.append])
    outcomes = [ConnectionError("gone"), None]

    @prof.tool
    def work():
        with prof.loop(f"try {len(outcomes)}"):
            if (error := outcomes.pop(0)) is not None:
                raise error

    with prof.loop("outer") as loop:
        asks(loop, ("a", "work", "{}"))
        with pytest.raises(ConnectionError):
            work()
        work()
    assert parents(records) == {"outer": (None, []), "try 2": ("outer", [0]), "try 1": ("outer", [0])}
    assert [one.id for one in records[-1].tool_calls] == ["a"]


def test_loops_without_any_sink_belong_together_and_to_none_that_has_one():
    async def main(clock):
        records, inner = [], []

        async def work(topic: str) -> str:
            inner.append((await scripted(topic, [], [], clock).run("go")).record)
            return topic

        outer = (await scripted("outer", [work], [], clock, ("a",)).run("go")).record
        kept = (await scripted("kept", [work], [records.append], clock, ("b",)).run("go")).record
        return parents([outer, kept, *inner])

    assert run_virtual(main) == {
        "outer": (None, []),
        "a": ("outer", [0]),
        "kept": (None, []),
        "b": (None, []),
    }
