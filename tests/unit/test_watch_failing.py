"""Each line of the code that watches may fail: the application sees what it sees when nobody watches.

A program with watched clients and tools is run again and again; each time another line raises when it is
first reached. Left out is only what is outside the boundary: what an application itself calls in order to be
watched, which runs the application's own code and catches what fails beside it. It is listed here.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import logging
import random
import re
import sys
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

import profiler
from profiler.loop import lag
from profiler.records import LoopRecord
from profiler.watch.profiler import Profiler
from tests.generated_replies import MESSAGES, Served, Wire, clients, shown

ROOT = Path(profiler.__file__).parent

WATCHING = re.compile(
    r"watch/\w+|providers/(attempts|wire)|loop/(model|lag|recorder|handover|kernel|nesting)|limits/refusals|redaction/\w+"
    r"|shortfalls|anatomy"
)

OUTSIDE = re.compile(
    "|".join(
        (
            # Around a tool, and in place of what it returned.
            r"watch/tools:(_runs\.<locals>\.\w+|watched\.<locals>.*|_made|_\w+ing|_coroutine|_awaited)",
            r"watch/tools:(_WithoutObject\..*|_held_back|_Object\..*|_bound|_named_in|_entered)",
            r"watch/standin:(StandIn\..*|_method|_forwarded\.<locals>.*)",
            r"watch/returned:(followed|iterated|_awaited|_held_back|_awaitable_steps|_streamed|Steps\..*|Unawaited\..*|under_its_name)",
            r"watch/returned:(_Awaitable\..*|_await|_enter|_exit|_send|_throw|_close)",
            r"watch/runs:ToolRun\.(__enter__|__exit__|boundary|holds|held)",
            # Around a request and its response; `_Observing` is the boundary.
            r"providers/attempts:(_Observing|_Observed|Async\w+|ObservedTransport|_Tee|Tee|_both)\..*",
            r"providers/attempts:.*<locals>\.(traced|TracedRequest\.send)|providers/attempts:_(Async)?Trace\..*",
            # What is called before anything runs, and to open and leave a loop.
            r"watch/profiler:(_Begin\.(__\w+__|holds|held|_watcher)|_told_once)",
            r"watch/profiler:Profiler\.(__init__|loop|instrument|uninstrument|failures)",
            r"watch/profiler:Profiler\.(tool|tools|dispatcher|_watched_as|_begin)(\..*)?",
            r"watch/(frameworks:.*|dispatch:Dispatch\.__init__.*)",
            r"watch/mcp:(watchable|is_owner|refuse)",
            r"watch/context:LoopContext\.__\w+__|watch/profiler:(_http_client|_owner)",
            r"watch/tools:(unwatched_of|name_of|signature_of|code_of)",
            r"watch/tools:(watched|_marked|_runs|_named|_code_flags|_of_kind)",
            r"watch/loop:ObservedLoop\.__\w+__|loop/nesting:Running\.__init__",
            r"providers/attempts:(transports|with_attempts)",
            r"loop/recorder:(Recorder\.(__init__|_all|sinks)|is_waited_for|fresh_id|_refuse)",
            r"loop/handover:Handover\.(__init__|__del__)",
            r"loop/lag:LagSampler\._sample",
            r"redaction/__init__:(Content\.__init__|environment_secrets|_secrets|_parts)",
        )
    )
)


@cache
def inside(code: CodeType) -> str | None:
    """The module of code behind the boundary; None for other code."""
    path = Path(code.co_filename)
    if not path.is_relative_to(ROOT) or code.co_name == "<module>":
        return None
    module = str(path.relative_to(ROOT).with_suffix(""))
    if WATCHING.fullmatch(module) is None or OUTSIDE.fullmatch(f"{module}:{code.co_qualname}") is not None:
        return None
    return module


class Injected(Exception):
    """Raised in a line that would not raise."""


class Lines:
    """Notes the lines that are reached behind the boundary; the first time that `fails` is, it raises."""

    def __init__(self, fails: tuple[str, int] | None = None) -> None:
        self.reached: dict[tuple[str, int], None] = {}
        self.fails = fails
        self.raised = False

    def __enter__(self) -> Lines:
        sys.settrace(self.enter)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)

    def enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        return None if inside(frame.f_code) is None else self.line

    def line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            where = str(inside(frame.f_code)), frame.f_lineno
            if where == self.fails:
                self.raised = True
                raise Injected
            self.reached[where] = None
        return self.line


# The program


def events(*parts: Any) -> Wire:
    body = "".join(f"data: {json.dumps(part)}\n\n" for part in parts).encode() + b"data: [DONE]\n\n"
    third = len(body) // 3
    headers = [("content-type", "text/event-stream"), ("x-ratelimit-remaining-tokens", "9")]
    return Wire(200, headers, [body[:third], body[third : 2 * third], body[2 * third :]])


def delta(delta: Any, finish: str | None = None) -> Any:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices}


def asking(index: int, name: str) -> Any:
    function = {"name": name, "arguments": '{"a": 1}'}
    return delta(
        {"tool_calls": [{"index": index, "id": f"c{index}", "type": "function", "function": function}]}
    )


NAMES = ("plain", "slow", "listing", "lazily", "awaitable", "future", "fails")
USAGE = {"input_tokens": 3, "output_tokens": 4}
MESSAGE = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "stop_reason": "tool_use",
    "usage": USAGE,
    "content": [{"type": "tool_use", "id": "t", "name": "plain", "input": {"a": [1, 2]}}],
}
JSON = [("content-type", "application/json"), ("request-id", "r")]
REFUSED = Wire(429, [*JSON, ("retry-after-ms", "1")], [b'{"error": {"message": "slow down"}}'])
WHOLE = Wire(200, JSON, [json.dumps(MESSAGE).encode()])
CHAT = events(
    delta({"role": "assistant", "content": "hi"}),
    *(asking(index, name) for index, name in enumerate(NAMES)),
    delta({}, "tool_calls"),
)
CUT_OFF = Wire(
    200, [("content-type", "text/event-stream")], CHAT.chunks[:1], during=ConnectionResetError("gone")
)


class Awaitable:
    def __await__(self) -> Generator[Any, Any, str]:
        yield from asyncio.sleep(0).__await__()
        return "awaited"


class Failure(Exception):
    status_code = 429


def plain(a: Any) -> Any:
    return {"got": a}


def dispatched(call: Any, a: Any) -> Any:
    return plain(a)


async def slow(a: Any) -> Any:
    await asyncio.sleep(0)
    return [a]


def listing(a: Any) -> Iterator[Any]:
    yield a
    return "end"


async def lazily(a: Any) -> AsyncIterator[Any]:
    yield a
    yield a


def awaitable(a: Any) -> Any:
    return Awaitable()


def future(a: Any) -> Any:
    made: concurrent.futures.Future[str] = concurrent.futures.Future()
    made.set_result("future")
    return asyncio.wrap_future(made)


async def fails(a: Any) -> Any:
    raise Failure("429 Too Many Requests")


async def used(tool: Any, a: Any) -> Any:
    try:
        value = tool(a=a)
        if tool.__name__ == "listing":
            return list(value)
        if tool.__name__ == "lazily":
            return [item async for item in value]
        if tool.__name__ == "plain":
            return value
        return await value
    except Exception as error:
        return error


async def program(served: Served, made: Any, prof: Profiler | None) -> list[Any]:
    """What it was given."""
    found: list[Any] = []
    sync, asynchronous = made
    tools = [plain, slow, listing, lazily, awaitable, future, fails]
    dispatcher = dispatched
    if prof is not None:
        tools = [prof.tool(one) for one in tools]
        dispatcher = prof.dispatcher(dispatched, name="call")

    def asked(wires: list[Wire]) -> None:
        served.wires = list(wires)

    with prof.loop("program") if prof is not None else nullcontext():
        asked([CHAT])
        stream = await asynchronous["openai"].chat.completions.create(
            model="m", messages=MESSAGES, stream=True
        )
        found += [shown(event) async for event in stream]
        found += map(shown, await asyncio.gather(*(used(tool, 1) for tool in tools)))
        found.append(shown(await used(tools[6], 1)))  # tried again
        asked([REFUSED, WHOLE])
        found.append(
            shown(await asynchronous["anthropic"].messages.create(model="m", max_tokens=9, messages=MESSAGES))
        )
        found.append(shown(dispatcher({"name": "plain"}, [1, 2])))
        asked([WHOLE])
        found.append(shown(sync["anthropic"].messages.create(model="m", max_tokens=9, messages=MESSAGES)))
        asked([CUT_OFF])
        try:
            stream = sync["openai"].chat.completions.create(model="m", messages=MESSAGES, stream=True)
            found += [shown(event) for event in stream]
        except Exception as error:
            found.append(shown(error))
    found.append(shown(tools[0]("outside")))
    return found


@pytest.fixture(scope="module")
def run():
    """Runs the program, watched or not: (what it saw, the profiler, its records)."""
    served = Served()
    made = [clients(served, asynchronous=each, max_retries=1) for each in (False, True)]

    def once(lines: Lines | None) -> tuple[list[Any], Profiler, list[Any]]:
        records: list[Any] = []
        prof = Profiler(sinks=[records.append], record_content=True)
        for client in (made[0], made[1]):
            for one in client.values():
                prof.instrument(one)
        try:
            with lines if lines is not None else nullcontext():
                return asyncio.run(program(served, made, prof)), prof, records
        finally:
            for client in (made[0], made[1]):
                for one in client.values():
                    prof.uninstrument(one)

    logging.disable(logging.CRITICAL)
    expected = asyncio.run(program(served, made, None))
    yield once, expected
    logging.disable(logging.NOTSET)
    # Where a line of leaving failed, somebody is inside, and a thread would run to the end of all tests.
    lag._heartbeat._users.clear()


def fail_at(run: Any, most: int | None) -> None:
    once, expected = run
    lines = Lines()
    found, prof, records = once(lines)
    assert found == expected
    assert set(prof.failures.values()) == {0}
    assert (len(records), records[0].watch_failures) == (1, 0)
    assert [call.name for call in records[0].tool_calls][:7] == list(NAMES)
    every = list(lines.reached)
    tried = every if most is None else random.Random(20261129).sample(every, most)
    raised = counted = recorded = 0
    for where in tried:
        failing = Lines(where)
        found, prof, records = once(failing)
        assert found == expected, where
        raised += failing.raised
        counted += sum(prof.failures.values()) > 0
        recorded += bool(records) and (
            records[0].watch_failures > 0 or any(r.model.unreadable for r in records[0].rounds)
        )
    sys.stdout.write(
        f"{len(tried)} of {len(every)} lines failed, {raised} of them again; {counted} failures counted, "
        f"{recorded} in the record; the program saw the same\n"
    )
    # Not each: what is cached is run once, and how late the event loop was is another question each time.
    assert raised > len(tried) * 0.6
    assert counted > raised * 0.6


def test_some_lines_of_watching_may_fail(run):
    fail_at(run, 30)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_line_of_watching_may_fail(run):
    fail_at(run, None)


def test_loop_that_a_task_group_ended_is_named_by_what_failed_in_it():
    records: list[LoopRecord] = []
    profiler = Profiler([records.append])

    async def main():
        with pytest.raises(ExceptionGroup):
            async with profiler.loop():
                raise ExceptionGroup("unhandled errors in a TaskGroup", [KeyError("city")])

    asyncio.run(main())
    assert [(one.status, one.error_type) for one in records] == [("error", "KeyError")]
