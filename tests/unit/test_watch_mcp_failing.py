"""Each line that watches MCP's calls may fail: the application sees what it sees when nobody watches."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.metadata
import itertools
import logging
import re
import sys
from collections.abc import AsyncIterator, Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import orjson
import pytest

import profiler
from profiler.loop import lag
from profiler.watch import remote_runs
from profiler.watch.profiler import Profiler

pytest.importorskip("mcp")

from mcp.client.session import ClientSession
from mcp.client.streamable_http import streamable_http_client

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What failing lines leave behind, such as coroutines that nobody awaits, complains in this test."""
    yield
    for _ in range(3):  # what one collection frees may hold more
        gc.collect()
    lag._heartbeat._users.clear()  # where a line of leaving failed, somebody is inside


MAJOR = int(importlib.metadata.version("mcp").partition(".")[0])
ROOT = Path(profiler.__file__).parent

# Around the application's own code: they run it, and catch what fails beside it.
OUTSIDE = re.compile(
    r"watched_call\.<locals>\.call_tool|_recorded|_sent|_held_back|_on_request|_on_response|begin_remote"
    r"|\w+\.<locals>\.(_write|_resolve_pending|_handle_response|_handle_post_request|_handle_sse_event)"
    r"|\w+\.<locals>\.(initialize|send|send_raw_request|create_session|trace)|_Counted\..*counted"
    r"|_Creating\..*|SessionWatch\.(__init__|watch|forget|start|stop|_perhaps_uninstall)"
    r"|_install|_uninstall|_patch|unpatch|_unhook|watchable|is_owner|watched_call|bounded_name"
    r"|(session|dispatcher|transport|direct)_\w+|_PATCHES|<lambda>|_renew|_imported|Options|refuse"
    r"|RemoteRun\.(ends|ends_with)|_begin_send|_end_send|put_back|_count_failure"
)


@cache
def inside(code: CodeType) -> str | None:
    """The module of code behind the boundary; None for other code."""
    path = Path(code.co_filename)
    if path.parent != ROOT / "watch" or not path.stem.startswith(("mcp", "remote")):
        return None
    if code.co_name == "<module>" or OUTSIDE.fullmatch(code.co_qualname):
        return None
    return path.stem


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
            if where == self.fails and not self.raised:
                self.raised = True
                raise Injected
            self.reached[where] = None
        return self.line


OPENING = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "nothing", "version": "1"},
}
LISTING = {"tools": [{"name": "nothing", "inputSchema": {"type": "object"}}]}
DONE = {"content": [{"type": "text", "text": "done"}]}


def answered(message: Any) -> dict[str, Any]:
    name = message["params"].get("name", "") if message.get("params") else ""
    answer = {"jsonrpc": "2.0", "id": message["id"]}
    if name == "refused":
        return {**answer, "error": {"code": -32602, "message": "bad"}}
    result: Any = {"initialize": OPENING, "tools/list": LISTING}.get(message["method"], DONE)
    return {**answer, "result": {**DONE, "isError": True} if name == "failed" else result}


@contextlib.asynccontextmanager
async def session(asked: asyncio.Event | None = None) -> AsyncIterator[ClientSession]:
    """Over the HTTP transport, whose HTTP client answers at once; when `asked` for `hung`, never."""
    http: Any = __import__("httpx" if MAJOR == 1 else "httpx2")

    async def serve(request: Any) -> Any:
        if request.method != "POST":
            return http.Response(405)
        message = orjson.loads(request.content)
        if "id" not in message:
            return http.Response(202)
        answer = answered(message)
        if asked is not None and (message.get("params") or {}).get("name") == "hung":
            asked.set()
            await asyncio.Event().wait()
        if (message.get("params") or {}).get("name") == "streamed":
            events = b"event: message\ndata: " + orjson.dumps(answer) + b"\n\n"
            return http.Response(200, content=events, headers={"content-type": "text/event-stream"})
        return http.Response(200, json=answer, headers={"server-timing": "tool;dur=0.1"})

    async with (
        http.AsyncClient(transport=http.MockTransport(serve)) as client,
        streamable_http_client("http://127.0.0.1/mcp", http_client=client) as streams,
        ClientSession(streams[0], streams[1]) as opened,
    ):
        await opened.initialize()
        yield opened


async def program(watching: bool) -> list[Any]:
    """What an application sees of its calls."""
    # Whatever is looked at only in calls that take long is looked at, however quick they are.
    profiler = Profiler(sinks=[], clock=itertools.count(1, 10_000_000).__next__)
    seen: list[Any] = []
    async with session() as opened:
        if watching:
            profiler.instrument(opened, name="mine")
        with profiler.loop() as loop:
            loop.begin_round("chat", "m")

            async def progress(*told: Any) -> None:
                seen.append(told)

            for name in ("nothing", "streamed", "failed", "refused"):
                try:
                    result = await opened.call_tool(name, {"query": "x"}, progress_callback=progress)
                    seen.append(result.model_dump(mode="json", by_alias=True))
                except Exception as error:
                    seen.append((type(error).__name__, str(error)))
            try:
                opened.call_tool()  # type: ignore[call-arg, unused-coroutine]
            except TypeError as error:
                seen.append(str(error))
        if watching:
            profiler.uninstrument(opened)
            seen.append(hasattr(ClientSession.call_tool, "__wrapped__"))
        else:
            seen.append(False)
    return seen


def test_no_line_that_fails_is_noticed(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.CRITICAL)
    monkeypatch.setattr(remote_runs, "NOTICED_NS", -1)  # however slow the machine is
    original = ClientSession.call_tool
    expected = asyncio.run(program(False))
    with Lines() as all_of_them:
        assert asyncio.run(program(True)) == expected
    assert len(all_of_them.reached) > 150
    for where in all_of_them.reached:
        with Lines(where) as lines:
            seen = asyncio.run(program(True))
        assert lines.raised, where
        assert seen == expected, where
    assert ClientSession.call_tool is original
