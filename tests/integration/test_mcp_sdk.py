"""Sessions on the official SDK (`--mcp-client sdk`), of whichever major version is installed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator

import pytest

from profiler.errors import ToolServerError, UsageError
from profiler.mcp.client import connect
from profiler.mcp.servers import ServerSpec
from profiler.mcp.session import Session
from tests.integration.test_mcp_client import stdio, until
from tests.mcp_server import Behaviour, McpServer

pytest.importorskip("mcp")


@contextlib.asynccontextmanager
async def connected(to: McpServer | ServerSpec) -> AsyncIterator[Session]:
    spec = to if isinstance(to, ServerSpec) else ServerSpec("plain", to.url)
    session = await connect(spec, client="sdk", timeout=60)
    try:
        yield session
    finally:
        await session.close()


@pytest.mark.parametrize("reply", ["json", "sse"])
async def test_call_over_http_is_timed_beneath_the_sdk(reply: str) -> None:
    behaviour = Behaviour(seconds=0.05, reply=reply, timing="meta", pages=2)
    async with McpServer(behaviour) as server, connected(server) as session:
        assert [one.name for one in await session.list_tools()] == ["search", "write", "more2"]
        results = await asyncio.gather(
            *(session.call("search", {"n": n}, meta={"toolcall-profiler/call": f"c{n}"}) for n in range(8))
        )
        assert [json.loads(one.text) for one in results] == [{"n": n} for n in range(8)]
        calls = {call.meta["toolcall-profiler/call"]: call for call in server.calls}
        for number, one in enumerate(results):
            call, remote = calls[f"c{number}"], one.remote
            assert remote.posted_ns is not None
            assert remote.answered_ns is not None
            assert call.started_ns is not None
            assert call.ended_ns is not None
            assert remote.posted_ns <= call.received_ns
            assert call.ended_ns <= remote.answered_ns
            assert remote.server_ns == call.ended_ns - call.started_ns
            assert (remote.reply, remote.http_status, one.error_type) == (reply, 200, None)
        if reply == "json":
            assert any(one.remote.new_connection for one in results)
            assert (await session.call("search", {})).remote.new_connection is False


HTTP_FAULTS = {
    "tool_error": "tool_error",
    "rpc_error": "rpc_-32603",
    "429": "http_429",
    "503": "http_503",
    "redirect": "http_307",
    "reset": "connection",
    "html": "invalid_reply",
    "silence": "timeout",
}


@pytest.mark.parametrize("fault", sorted(HTTP_FAULTS))
async def test_fault_is_the_call_s_own_and_the_next_call_goes_on(fault: str) -> None:
    seconds = {"silence": 0.8, "html": 5}.get(fault, 60)  # html: the first major waits for more
    async with McpServer(Behaviour(seconds=0.1)) as server, connected(server) as session:
        beside, failed = await asyncio.gather(
            session.call("search", {"seconds": 0.4}),
            session.call("search", {"fault": fault}, timeout=seconds),
        )
        assert failed.error_type == HTTP_FAULTS[fault]
        assert failed.retry_after_ns == (1_500_000_000 if fault == "429" else None)
        # With some failures the SDK loses its session: nobody cancelled the call beside.
        assert beside.error_type in (None, "session_lost")
        assert (await session.call("search", {})).error_type is None


async def test_call_that_is_cancelled_leaves_the_session() -> None:
    async with McpServer() as server, connected(server) as session:
        task = asyncio.create_task(session.call("search", {"fault": "silence"}))
        await until(lambda: server.calls)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await session.call("search", {})).error_type is None


async def test_stdio_server_that_ends_is_started_again() -> None:
    async with connected(stdio()) as session:
        beside = asyncio.create_task(session.call("search", {"seconds": 30}))
        progressed = await session.call("search", {"fault": "progress"}, meta={"progressToken": 1})
        remote = progressed.remote
        assert (progressed.error_type, remote.progress, remote.transport) == (None, 3, "stdio")
        assert remote.posted_ns is not None
        assert remote.answered_ns is not None
        assert remote.server_ns is not None
        assert remote.server_ns <= remote.answered_ns - remote.posted_ns
        culprit = await session.call("search", {"fault": "exit"})
        assert [culprit.error_type, (await beside).error_type] == ["session_lost"] * 2
        assert "RuntimeError: burnt down" in culprit.text
        assert (await session.call("search", {})).error_type is None


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (ServerSpec("gone", "http://127.0.0.1:1/mcp"), "MCP server gone"),
        (ServerSpec("none", None, ("no-such-program",)), "there is no program"),
        (
            ServerSpec("ends", None, (sys.executable, "-c", "import sys; sys.exit('no archive')")),
            "no archive",
        ),
    ],
)
async def test_server_that_is_not_there(spec: ServerSpec, words: str) -> None:
    with pytest.raises(ToolServerError, match=words):
        await connect(spec, client="sdk", timeout=60)


async def test_without_the_sdk_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(UsageError, match=r"pip install 'toolcall-profiler\[mcp\]'"):
        await connect(ServerSpec("any", "http://127.0.0.1:1/mcp"), client="sdk")
