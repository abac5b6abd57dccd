"""Calls of MCP's sessions as they are watched, over an HTTP client that answers at once."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import Any

import pytest

from profiler.errors import UsageError
from profiler.loop.model import CallRequest
from profiler.records import LoopRecord
from profiler.watch.mcp_calls import watched_call
from profiler.watch.profiler import Profiler

pytest.importorskip("mcp")

from mcp.client.session import ClientSession
from mcp.client.streamable_http import StreamableHTTPTransport

from tests.unit.test_watch_mcp_failing import MAJOR, session

pytestmark = pytest.mark.filterwarnings("default")


class Twice:
    """A client that sends a call again where its session was asked for input."""

    def __init__(self, session: Any) -> None:
        self.session = session

    async def call_tool(self, name: str, arguments: dict[str, Any]) -> Any:
        await self.session.call_tool(name, arguments)
        return await self.session.call_tool(name, arguments)


async def watched(tool: str, around: Any = None, times: int = 1, **options: Any) -> LoopRecord:
    records: list[LoopRecord] = []
    profiler = Profiler(sinks=[records.append])
    async with session() as opened:
        profiler.instrument(opened, **options)
        client = opened if around is None else around(opened)
        with profiler.loop() as loop:
            loop.begin_round("chat", "m").unclaimed += [
                (CallRequest(f"call_{number}", tool, '{"query": "x"}'), time.monotonic_ns())
                for number in range(times)
            ]
            await asyncio.gather(*(client.call_tool(tool, {"query": "x"}) for _ in range(times)))
        profiler.uninstrument(opened)
    return records[0]


def test_requests_of_a_client_above_the_session_are_tries_of_one_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Twice, "call_tool", watched_call(Twice.call_tool, False))
    record = asyncio.run(watched("nothing", Twice, times=2))
    calls = list(record.tool_calls)
    assert [call.id for call in calls] == ["call_0", "call_1"]
    assert [len(call.attempts) for call in calls] == [2, 2]
    assert [call.remote.sends for call in calls if call.remote is not None] == [2, 2]


def test_a_failure_that_the_tool_returns_is_one() -> None:
    (call,) = asyncio.run(watched("failed")).tool_calls
    assert (call.status, call.error_type) == ("error", "tool_error")


def test_the_server_has_the_name_that_the_user_gives_it_or_its_own() -> None:
    own = "nothing" if MAJOR > 1 else "127.0.0.1"  # mcp 1 keeps none of a session that was open before
    for options, expected in (({}, own), ({"name": "mine"}, "mine")):
        (call,) = asyncio.run(watched("nothing", **options)).tool_calls
        assert call.remote is not None
        assert (call.remote.transport, call.remote.protocol) == ("http", "2025-11-25")
        assert call.server == expected


def test_every_class_is_as_it_was() -> None:
    kinds = [ClientSession, StreamableHTTPTransport]
    before = [dict(vars(kind)) for kind in kinds]
    profiler = Profiler(sinks=[])
    profiler.instrument("mcp")
    profiler.auto()
    assert [dict(vars(kind)) for kind in kinds] != before
    call_tool = ClientSession.call_tool
    assert inspect.iscoroutinefunction(call_tool)
    assert inspect.signature(call_tool) == inspect.signature(call_tool.__wrapped__)  # type: ignore[attr-defined]
    profiler.stop()
    assert ClientSession.call_tool is call_tool  # it was asked for by name, too
    profiler.uninstrument("mcp")
    assert [dict(vars(kind)) for kind in kinds] == before


def test_sessions_that_are_watched_unasked_are_named() -> None:
    profiler = Profiler(sinks=[])

    async def main() -> None:
        async with session() as opened:
            for _ in range(2):
                await opened.call_tool("nothing", {"query": "x"})

    profiler.auto()
    with profiler.loop():
        asyncio.run(main())
    profiler.stop()
    assert [str(one) for one in profiler.found] == ["MCP session with nothing"]


class OneAtATime:
    """A server of a framework's, whose calls wait for its session."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.lock = asyncio.Lock()

    async def call_tool(self, name: str, arguments: dict[str, Any]) -> Any:
        async with self.lock:
            return await self.session.call_tool(name, arguments)


def test_cancelled_calls_are_on_their_servers_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OneAtATime, "call_tool", watched_call(OneAtATime.call_tool, False, True))
    records: list[LoopRecord] = []
    profiler = Profiler(sinks=[records.append])

    async def main() -> None:
        asked = asyncio.Event()
        async with session(asked) as opened:
            profiler.instrument(opened, name="mine")
            client = OneAtATime(opened)
            with profiler.loop() as loop:
                loop.begin_round("chat", "m")
                calls = [asyncio.ensure_future(client.call_tool("hung", {})) for _ in range(2)]
                await asyncio.wait_for(asked.wait(), 60)
                for call in calls:
                    call.cancel()
                await asyncio.wait(calls)
            profiler.uninstrument(opened)

    asyncio.run(main())
    sent, waited = records[0].tool_calls
    assert (sent.status, sent.server, waited.status, waited.server) == ("cancelled", "mine") * 2
    assert sent.remote is not None
    assert waited.remote is not None
    assert (sent.remote.sends, waited.remote.sends) == (1, 0)
    assert sent.remote.posted_ns is not None
    assert waited.remote.transport == "http"
    assert 0 < waited.remote.session_wait_ns <= waited.duration_ns


def test_what_has_no_session_is_refused() -> None:
    profiler = Profiler(sinks=[])
    for client, options in ((object(), {}), ("mcps", {}), (object(), {"name": "x"})):
        with pytest.raises(UsageError):
            profiler.instrument(client, **options)  # type: ignore[arg-type]
