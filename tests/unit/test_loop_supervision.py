"""Loops that somebody else runs: what ends them, and what is recorded of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from profiler.errors import ProviderError
from profiler.load import runners
from profiler.load.context import LoopPosition
from profiler.load.runners import BuiltInAgent, CustomAgent
from profiler.loop.loop import ToolLoop
from profiler.loop.recorder import waited_for
from profiler.loop.supervision import CANCEL_SECONDS, Supervision, supervised
from profiler.loop.tools import tool
from profiler.providers.connections import LoopIsOver
from profiler.providers.endpoint import Endpoint, client_options
from profiler.records import INTERNAL, LOOP_TIMEOUT, LoopRecord
from profiler.testing import ScriptedModel, call, run_virtual
from tests.unit.test_load_agents import context, factory

POSITION = LoopPosition(number=7, agent="a3", trial=2, process="worker 1", intended_ns=5)


@tool
async def wait(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "done"


@tool
async def refuse(seconds: float) -> str:
    """A tool that does not let itself be cancelled."""
    until = asyncio.get_running_loop().time() + seconds
    while (left := until - asyncio.get_running_loop().time()) > 0:
        try:
            await asyncio.sleep(left)
        except asyncio.CancelledError:
            continue
    return "done"


class Broken(ScriptedModel):
    """A provider with a defect."""

    async def request(self, *arguments: Any) -> Any:
        await super().request(*arguments)
        raise ValueError("a text that may hold a prompt")


def built_in(
    clock: Callable[[], int], kept: list[LoopRecord], timeout: float | None, *turns: Any, model: Any = None
) -> BuiltInAgent:
    loop = ToolLoop(model or ScriptedModel([*turns]), [wait, refuse], clock=clock, sinks=[kept.append])
    return BuiltInAgent(loop, "Question {number}.", timeout)


@pytest.fixture(autouse=True)
def none_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "_defects", 0)


def test_loop_that_takes_too_long_has_failed_with_what_it_had_done() -> None:
    kept: list[LoopRecord] = []

    async def main(clock: Callable[[], int]) -> bool:
        turns = [[call("wait", seconds=1.0)], [call("wait", seconds=99.0)], "done"]
        return await built_in(clock, kept, 5.0, *turns).run(POSITION)

    assert run_virtual(main) is False
    (record,) = kept
    assert (record.status, record.error_type, record.number) == ("error", LOOP_TIMEOUT, 7)
    assert (record.ended_ns - record.started_ns) / 1e9 == 5.0
    assert [one.status for one in record.rounds] == ["ok", "cancelled"]


def test_loop_that_refuses_to_be_cancelled_is_recorded_once_and_left() -> None:
    kept: list[LoopRecord] = []

    async def main(clock: Callable[[], int]) -> tuple[bool, int]:
        turns = [[call("wait", seconds=1.0)], [call("refuse", seconds=99.0)], "done"]
        ended_well = await built_in(clock, kept, 5.0, *turns).run(POSITION)
        at_ns = clock()
        await asyncio.sleep(200.0)  # it has ended by now, and has nothing to say any more
        return ended_well, at_ns

    ended_well, at_ns = run_virtual(main)
    assert (ended_well, at_ns / 1e9) == (False, 5.0 + CANCEL_SECONDS)
    (record,) = kept
    assert (record.status, record.error_type, record.agent) == ("error", LOOP_TIMEOUT, "a3")
    assert [one.status for one in record.rounds] == ["ok"]


@pytest.mark.parametrize("name", ["wait", "refuse"])
def test_cancelled_agent_leaves_a_record_and_soon(name: str) -> None:
    kept: list[LoopRecord] = []

    async def main(clock: Callable[[], int]) -> int:
        runner = built_in(clock, kept, None, [call(name, seconds=99.0)], "done")
        task = asyncio.ensure_future(runner.run(POSITION))
        await asyncio.sleep(2.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        at_ns = clock()
        await asyncio.sleep(200.0)
        return at_ns

    assert run_virtual(main) / 1e9 <= 2.0 + CANCEL_SECONDS
    assert [(one.status, one.error_type) for one in kept] == [("cancelled", "cancelled")]


def test_second_cancellation_ends_the_waiting() -> None:
    over = Supervision()

    async def main(clock: Callable[[], int]) -> int:
        async def work() -> None:
            await refuse(99.0)

        task = asyncio.ensure_future(supervised(work, 5.0, over))
        await asyncio.sleep(5.5)  # in the time that it has to end
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        at_ns = clock()
        await asyncio.sleep(200.0)
        return at_ns

    assert run_virtual(main) / 1e9 == 5.5
    assert (over.timed_out, over.left, over.ending) == (True, True, ("error", LOOP_TIMEOUT))


def test_defect_ends_one_loop_and_is_logged_once_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    kept: list[LoopRecord] = []

    async def main(clock: Callable[[], int]) -> list[bool]:
        broken = Broken(["one", "two", "three"])
        runner = built_in(clock, kept, None, model=broken)
        return [await runner.run(replace(POSITION, number=number)) for number in range(3)]

    with caplog.at_level(logging.WARNING, "profiler"):
        assert run_virtual(main) == [False] * 3
    assert [(one.number, one.status, one.error_type) for one in kept] == [
        (number, "error", INTERNAL) for number in range(3)
    ]
    (line,) = caplog.messages
    assert "ValueError at " in line
    assert "test_loop_supervision.py:" in line
    assert "prompt" not in line


def test_record_that_cannot_be_made_whole_is_one_of_a_defect() -> None:
    kept: list[LoopRecord] = []

    async def main(clock: Callable[[], int]) -> bool:
        loop = ToolLoop(ScriptedModel(["done"]), clock=clock, sinks=[kept.append], record_content=True)
        loop._content.keep = None  # type: ignore[assignment, union-attr]
        return await BuiltInAgent(loop, "go", None).run(POSITION)

    assert run_virtual(main) is False
    assert [(one.status, one.error_type, one.number) for one in kept] == [("error", INTERNAL, 7)]


def test_fault_of_the_server_is_no_defect(caplog: pytest.LogCaptureFixture) -> None:
    kept: list[LoopRecord] = []

    class Down(ScriptedModel):
        async def request(self, *arguments: Any) -> Any:
            raise ProviderError("down", provider="scripted", error_type="reset")

    async def main(clock: Callable[[], int]) -> bool:
        return await built_in(clock, kept, None, model=Down([])).run(POSITION)

    assert run_virtual(main) is False
    assert [one.error_type for one in kept] == ["reset"]
    assert not caplog.messages


async def exits() -> None:
    raise SystemExit(3)


async def interrupts() -> None:
    raise KeyboardInterrupt


async def cancels_itself() -> None:
    raise asyncio.CancelledError


async def overflows() -> None:
    await overflows()


async def sleeps() -> None:
    await asyncio.sleep(99.0)


async def takes_it_for_something_else() -> None:
    try:
        await asyncio.sleep(99.0)
    except BaseException:  # as code does that retries whatever happens
        return


@pytest.mark.parametrize(
    ("body", "error_type"),
    [
        (exits, "SystemExit"),
        (interrupts, "KeyboardInterrupt"),
        (cancels_itself, "CancelledError"),
        (overflows, "RecursionError"),
        (sleeps, LOOP_TIMEOUT),
        (takes_it_for_something_else, LOOP_TIMEOUT),
    ],
)
def test_agent_of_one_s_own_survives_whatever_it_raises(body: Callable[[], Any], error_type: str) -> None:
    kept: list[LoopRecord] = []

    async def main(clock: Callable[[], int]) -> list[bool]:
        ends = iter([body, asyncio.sleep])

        async def one() -> None:
            end = next(ends)
            await (end(0.1) if end is asyncio.sleep else end())

        given = context("gathered", [waited_for(lambda record: None)])
        own = await CustomAgent.make(factory(lambda _: one), given, [kept.append], 5.0)
        return [await own.run(replace(POSITION, number=number)) for number in range(2)]

    assert run_virtual(main) == [False, True]
    assert [(one.number, one.status, one.error_type) for one in kept] == [
        (0, "error", error_type),
        (1, "ok", None),
    ]


def test_agent_that_is_cancelled_before_its_first_step_leaves_a_record() -> None:
    kept: list[LoopRecord] = []

    async def main(clock: Callable[[], int]) -> None:
        own = await CustomAgent.make(factory(lambda _: sleeps), context("gathered"), [kept.append])
        task = asyncio.ensure_future(own.run(POSITION))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_virtual(main)
    assert [(one.status, one.number) for one in kept] == [("cancelled", 7)]


def test_caller_s_own_error_is_no_defect_of_ours() -> None:
    kept: list[LoopRecord] = []

    class Tells(ScriptedModel):
        async def request(self, messages: Any, tools: Any, options: Any, probe: Any) -> Any:
            probe.text("a word")

    def on_text(_: str) -> None:
        raise LookupError("of the caller")

    async def main(clock: Callable[[], int]) -> None:
        loop = ToolLoop(Tells([]), clock=clock, sinks=[kept.append], on_text=on_text, stream=True)
        with pytest.raises(LookupError):
            await loop.run("go")

    run_virtual(main)
    assert [(one.status, one.error_type) for one in kept] == [("error", "LookupError")]


def test_loop_that_was_left_asks_the_model_server_no_more() -> None:
    (hook,) = client_options(Endpoint.parse("http://127.0.0.1:1"))["event_hooks"]["request"]
    asked = []

    async def main(clock: Callable[[], int]) -> None:
        async def asks_on() -> None:
            for _ in range(3):
                await refuse(50.0)
                try:
                    await hook(httpx2.Request("POST", "http://127.0.0.1:1/v1/responses"))
                    asked.append(clock() / 1e9)
                except LoopIsOver:
                    return

        await supervised(asks_on, 60.0, Supervision())
        await asyncio.sleep(200.0)

    run_virtual(main)
    assert asked == [50.0]
