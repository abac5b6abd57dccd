"""The lean client of MCP servers: against the official SDK's server, and one that does as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from profiler.errors import ToolServerError
from profiler.mcp.client import connect
from profiler.mcp.servers import ServerSpec
from profiler.mcp.session import CallResult, Session
from profiler.mcp.stdio import StdioSession
from tests.mcp_server import LEGACY, MODERN, Behaviour, McpServer

ROOT = Path(__file__).parents[2]


@contextlib.asynccontextmanager
async def connected(to: McpServer | ServerSpec, timeout: float = 60.0) -> AsyncIterator[Session]:
    spec = to if isinstance(to, ServerSpec) else ServerSpec("plain", to.url)
    session = await connect(spec, timeout=timeout)
    try:
        yield session
    finally:
        await session.close()


def stdio(*options: str) -> ServerSpec:
    return ServerSpec("plain", None, (sys.executable, str(ROOT / "tests/mcp_server.py"), "--stdio", *options))


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def in_order(result: CallResult, before_ns: int) -> None:
    remote = result.remote
    assert remote.posted_ns is not None
    assert before_ns <= remote.posted_ns <= time.monotonic_ns()
    if remote.answered_ns is not None:
        assert remote.posted_ns <= remote.answered_ns <= time.monotonic_ns()


@pytest.mark.parametrize("era", ["modern", "legacy"])
@pytest.mark.parametrize("reply", ["json", "sse"])
async def test_call_is_timed_as_the_server_tells(era: str, reply: str) -> None:
    async with (
        McpServer(Behaviour(seconds=0.05, era=era, reply=reply, timing="meta")) as server,
        connected(server) as session,
    ):
        before_ns = time.monotonic_ns()
        result = await session.call("search", {"query": "ä"}, meta={"toolcall-profiler/call": "c1"})
        (call,) = server.calls
        assert json.loads(result.text) == {"query": "ä"}
        assert result.error_type is None
        assert session.info.protocol == result.remote.protocol == (MODERN if era == "modern" else LEGACY)
        assert session.info.name == "plain-server"
        assert (result.remote.reply, result.remote.http_status) == (reply, 200)
        assert call.meta["toolcall-profiler/call"] == "c1"
        assert call.started_ns is not None
        assert call.ended_ns is not None
        in_order(result, before_ns)
        assert result.remote.posted_ns is not None
        assert result.remote.answered_ns is not None
        # A stream's headers come before the tool runs: its answer does not.
        assert result.remote.posted_ns <= call.received_ns
        assert call.ended_ns <= result.remote.answered_ns
        assert result.remote.server_ns == call.ended_ns - call.started_ns


async def test_server_timing_is_taken_from_the_headers_of_json_alone() -> None:
    async with McpServer(Behaviour(seconds=0.05, timing="header")) as server, connected(server) as session:
        result = await session.call("search", {})
        (call,) = server.calls
        assert call.started_ns is not None
        assert call.ended_ns is not None
        assert result.remote.server_ns == pytest.approx(call.ended_ns - call.started_ns, abs=1000)
        server.core.behaviour.reply = "sse"
        assert (await session.call("search", {})).remote.server_ns is None


async def test_headers_before_the_body_are_no_answer_yet() -> None:
    async with McpServer(Behaviour(seconds=0.1)) as server, connected(server) as session:
        result = await session.call("search", {"fault": "early_headers"})
        (call,) = server.calls
        assert call.ended_ns is not None
        assert result.remote.answered_ns is not None
        assert call.ended_ns <= result.remote.answered_ns


async def test_connections_are_as_many_as_calls_and_are_used_again() -> None:
    async with McpServer(Behaviour(seconds=0.3)) as server, connected(server) as session:
        before = server.connections
        results = await asyncio.gather(*(session.call("search", {"n": n}) for n in range(150)))
        assert server.most_at_once == 150
        assert sum(one.remote.new_connection is True for one in results) == server.connections - before
        again = await asyncio.gather(*(session.call("search", {"seconds": 0}) for n in range(5)))
        assert [one.remote.new_connection for one in again] == [False] * 5


@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_streams_leave_their_connection_for_the_next_call(era: str) -> None:
    async with McpServer(Behaviour(era=era, reply="sse")) as server, connected(server) as session:
        for _ in range(20):
            assert (await session.call("search", {})).error_type is None
        assert server.connections <= 3


HTTP_FAULTS = {
    # fault: error_type, a part of the words, whether an answer began to arrive
    "tool_error": ("tool_error", "no such city", True),
    "rpc_error": ("rpc_-32603", "the archive is closed", True),
    "rpc_own": ("rpc_error", "the archive is closed", True),
    "429": ("http_429", "slow down", True),
    "503": ("http_503", "the archive is being moved", True),
    "500_html": ("http_500", "Bad gateway", True),
    "html": ("invalid_reply", "text/html", True),
    "not_json": ("invalid_reply", "not JSON", True),
    "202": ("invalid_reply", "HTTP 202", True),
    "redirect": ("http_307", "http://127.0.0.1:1/elsewhere", True),
    "reset": ("connection", "closed the connection", False),
    "reset_in_reply": ("connection", "closed the connection", True),
    "sse_without_answer": ("invalid_reply", "ended without the answer", False),
    "wrong_id": ("invalid_reply", "another request", True),
    "huge": ("too_large", "32 MiB", True),
    "input_required": ("input_required", "asks for input", True),
}


@pytest.mark.parametrize("fault", sorted(HTTP_FAULTS))
async def test_fault_is_the_call_s_own(fault: str) -> None:
    error_type, words, answered = HTTP_FAULTS[fault]
    async with McpServer(Behaviour(seconds=0.1)) as server, connected(server) as session:
        before_ns = time.monotonic_ns()
        beside, failed = await asyncio.gather(
            session.call("search", {"query": "beside", "seconds": 0.3}),
            session.call("search", {"fault": fault}),
        )
        assert failed.error_type == error_type
        assert words in failed.text
        assert (failed.remote.answered_ns is not None) == answered
        assert failed.retry_after_ns == (1_500_000_000 if fault == "429" else None)
        in_order(failed, before_ns)
        assert beside.error_type is None
        assert [call.arguments.get("fault") for call in server.calls] == [None, fault]  # sent once, each
        assert (await session.call("search", {})).error_type is None


async def test_refusal_whose_body_does_not_end_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profiler.mcp.http_pool.ERROR_SECONDS", 0.1)
    async with McpServer() as server, connected(server) as session:
        failed = await session.call("search", {"fault": "503_slow"})
        assert failed.error_type == "http_503"
        assert "later" in failed.text


async def test_fault_names_no_more_than_it_knows_of_the_secrets_of_its_headers() -> None:
    async with McpServer(Behaviour(fault="503")) as server:
        spec = ServerSpec("plain", server.url, headers={"x-room": "the archive"})
        async with connected(spec) as session:
            failed = await session.call("search", {})
            assert server.calls[0].headers["x-room"] == "the archive"
            assert "the archive" not in failed.text
            assert "is being moved" in failed.text


async def test_headers_of_one_server_reach_no_other() -> None:
    async with McpServer() as one, McpServer() as other:
        first = ServerSpec("one", one.url, headers={"authorization": "Bearer canary-one"})
        async with connected(first) as session, connected(ServerSpec("other", other.url)) as beside:
            await session.call("search", {"fault": "redirect"})
            await beside.call("search", {})
        assert {headers.get("authorization") for *_, headers in one.requests} == {"Bearer canary-one"}
        assert {headers.get("authorization") for *_, headers in other.requests} == {None}


@pytest.mark.parametrize("era", ["modern", "legacy"])
@pytest.mark.parametrize("how", ["timeout", "cancelled"])
async def test_call_that_is_given_up_is_ended_at_the_server(era: str, how: str) -> None:
    async with McpServer(Behaviour(era=era)) as server, connected(server) as session:
        beside = asyncio.create_task(session.call("search", {"seconds": 0.5}))
        if how == "timeout":
            result = await session.call("search", {"fault": "silence"}, timeout=0.2)
            assert result.error_type == "timeout"
            assert "0.2 s" in result.text
            assert result.remote.answered_ns is None
        else:
            task = asyncio.create_task(session.call("search", {"fault": "silence"}))
            await until(lambda: any(call.arguments.get("fault") for call in server.calls))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await until(lambda: any(call.arguments.get("fault") for call in server.calls))
        silent = next(call for call in server.calls if call.arguments.get("fault"))
        await until(lambda: silent.outcome == "cancelled")
        told = [one["params"] for one in server.core.said if one["method"] == "notifications/cancelled"]
        assert [one["reason"] for one in told] == ([] if era == "modern" else [how])
        assert (await beside).error_type is None


async def test_lost_session_is_opened_anew_at_the_next_call() -> None:
    async with McpServer(Behaviour(era="legacy")) as server, connected(server) as session:
        assert server.opened == 1
        server.forget()
        lost = await asyncio.gather(*(session.call("search", {}) for _ in range(3)))
        assert [one.error_type for one in lost] == ["session_lost"] * 3
        assert server.calls == []
        found = await asyncio.gather(*(session.call("search", {}) for _ in range(3)))
        assert [one.error_type for one in found] == [None] * 3
        assert server.opened == 2
        assert {call.headers["mcp-session-id"] for call in server.calls} == {"session-2"}
    assert server.requests[-1][0] == "DELETE"
    assert server.sessions == set()


async def test_server_that_refuses_over_its_capacity() -> None:
    async with McpServer(Behaviour(seconds=0.2, capacity=4, refuses=True)) as server:
        async with connected(server) as session:
            results = await asyncio.gather(*(session.call("search", {}) for _ in range(10)))
        assert sorted(str(one.error_type) for one in results) == ["None"] * 4 + ["http_429"] * 6


@pytest.mark.parametrize("transport", ["http", "stdio"])
async def test_server_that_asks_its_client_is_answered(transport: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(McpServer(Behaviour(era="legacy")))
        spec = ServerSpec("plain", server.url) if transport == "http" else stdio("--era", "legacy")
        session = await stack.enter_async_context(connected(spec))
        assert (await session.call("search", {"fault": "asks", "seconds": 0.2})).error_type is None
        if transport == "http":
            await until(lambda: len(server.core.said) >= 3)
            said = server.core.said
        else:
            said = json.loads((await session.call("said", {})).text)["said"]
        answers = {one["id"]: one for one in said if "id" in one}
        assert answers["s0"]["result"] == {}
        assert answers["s1"]["error"]["code"] == -32601


@pytest.mark.parametrize("transport", ["http", "stdio"])
async def test_progress_is_counted(transport: str) -> None:
    async with (
        McpServer() as server,
        connected(server if transport == "http" else stdio()) as session,
    ):
        with_it, without = await asyncio.gather(
            session.call("search", {"fault": "progress"}, meta={"progressToken": "p7"}),
            session.call("search", {}),
        )
        assert (with_it.error_type, with_it.remote.progress) == (None, 3)
        assert (without.error_type, without.remote.progress) == (None, 0)


@pytest.mark.parametrize("transport", ["http", "stdio"])
async def test_content_is_what_a_model_can_read(transport: str) -> None:
    async with (
        McpServer() as server,
        connected(server if transport == "http" else stdio()) as session,
    ):
        shown = (await session.call("search", {"fault": "image"})).text.split("\n")
        assert json.loads(shown[0]) == {"fault": "image"}
        assert json.loads(shown[1]) == {"type": "image", "mimeType": "image/png", "bytes": 3_000_000}
        assert json.loads(shown[2]) == {"type": "resource_link", "uri": "file:///a", "name": "a"}
        structured = await session.call("search", {"fault": "structured"})
        assert json.loads(structured.text) == {"rows": [1, 2]}
        assert (await session.call("search", {"fault": "batch"})).error_type is None


async def test_listing_has_all_pages() -> None:
    async with McpServer(Behaviour(pages=3)) as server, connected(server) as session:
        tools = await session.list_tools()
        assert [(one.name, one.read_only) for one in tools] == [
            ("search", True),
            ("write", False),
            ("more2", True),
            ("more3", True),
        ]
        assert tools[0].parameters["properties"] == {"query": {"type": "string"}}


async def test_listing_that_does_not_end_is_an_error() -> None:
    async with McpServer(Behaviour(pages=0)) as server, connected(server) as session:
        with pytest.raises(ToolServerError, match=r"plain .* does not end: after 200 pages with 201 tools"):
            await session.list_tools()


async def test_arguments_go_into_headers_where_the_schema_says_so() -> None:
    async with McpServer(Behaviour(tools=("mirrored",))) as server, connected(server) as session:
        first = await session.call("mirrored", {"region": "Århus", "query": "q"})
        assert (first.error_type, first.remote.sends) == (None, 3)  # refused, listed, sent again
        again = await session.call("mirrored", {"region": "Århus", "query": "q"})
        assert (again.error_type, again.remote.sends) == (None, 1)
        assert [one.headers["mcp-param-region"] for one in server.calls] == ["=?base64?w4VyaHVz?="] * 2


async def test_server_that_is_elsewhere_on_its_host_is_called_there() -> None:
    async with McpServer(Behaviour(moved=True)) as server, connected(server) as session:
        assert (await session.call("search", {})).remote.sends == 1
        assert [method for _, method, _ in server.requests] == ["server/discover", "tools/call"]


async def test_large_arguments_are_sent_whole() -> None:
    async with McpServer() as server, connected(server) as session:
        result = await session.call("search", {"text": "x" * 3_000_000})
        assert (result.error_type, len(result.text)) == (None, 3_000_012)


async def test_nothing_listens() -> None:
    with socket.socket() as closed:  # bound, not listening: every connection is refused
        closed.bind(("127.0.0.1", 0))
        spec = ServerSpec("gone", f"http://127.0.0.1:{closed.getsockname()[1]}/mcp")
        with pytest.raises(ToolServerError, match=r"MCP server gone .*refused the connection") as caught:
            await connect(spec)
    assert (caught.value.server, caught.value.error_type) == ("gone", "connection")


# Standard streams.


async def test_stdio_calls_run_in_parallel_and_are_timed() -> None:
    async with connected(stdio("--seconds", "0.2")) as session:
        before_ns = time.monotonic_ns()
        results = await asyncio.gather(*(session.call("search", {"n": n}) for n in range(8)))
        assert [json.loads(one.text) for one in results] == [{"n": n} for n in range(8)]
        for one in results:
            in_order(one, before_ns)
            assert one.remote.answered_ns is not None
            assert one.remote.posted_ns is not None
            assert one.remote.server_ns is not None
            assert one.remote.server_ns <= one.remote.answered_ns - one.remote.posted_ns
            assert (one.remote.transport, one.remote.reply, one.remote.http_status) == ("stdio", None, None)
        last_posted = max(one.remote.posted_ns or 0 for one in results)
        assert last_posted < min(one.remote.answered_ns or 0 for one in results)


STDIO_FAULTS = {
    "tool_error": ("tool_error", "no such city"),
    "rpc_error": ("rpc_-32603", "the archive is closed"),
    "input_required": ("input_required", "asks for input"),
    "wrong_id": ("timeout", "no answer within"),
    "silence": ("timeout", "no answer within"),
}


@pytest.mark.parametrize("fault", sorted(STDIO_FAULTS))
async def test_stdio_fault_is_the_call_s_own(fault: str) -> None:
    error_type, words = STDIO_FAULTS[fault]
    seconds = 0.3 if error_type == "timeout" else 60
    async with connected(stdio()) as session:
        beside, failed = await asyncio.gather(
            session.call("search", {"seconds": 0.5}),
            session.call("search", {"fault": fault}, timeout=seconds),
        )
        assert failed.error_type == error_type
        assert words in failed.text
        assert beside.error_type is None


async def test_stdio_noise_is_counted() -> None:
    async with connected(stdio()) as session:
        assert isinstance(session, StdioSession)
        assert (await session.call("search", {"fault": "noise"})).error_type is None
        assert session.noise == 2
        failed = await session.call("search", {"fault": "silence"}, timeout=0.1)
        assert "2 lines on its standard output were no messages" in failed.text


@pytest.mark.parametrize("fault", ["exit", "huge"])
async def test_stdio_server_that_ends_takes_what_is_in_flight_and_is_started_again(fault: str) -> None:
    async with connected(stdio()) as session:
        tasks = [asyncio.create_task(session.call("search", {"seconds": 30})) for _ in range(3)]
        await session.call("search", {})
        culprit = await session.call("search", {"fault": fault})
        beside = await asyncio.gather(*tasks)
        assert [one.error_type for one in beside] == ["session_lost"] * 3
        if fault == "exit":
            assert culprit.error_type == "session_lost"
            assert "RuntimeError: burnt down" in culprit.text
        else:
            assert culprit.error_type == "too_large"
        again = await asyncio.gather(*(session.call("search", {"n": n}) for n in range(3)))
        assert [one.error_type for one in again] == [None] * 3


async def test_stdio_server_that_ended_while_nobody_called_is_started_for_the_next_call() -> None:
    async with connected(stdio()) as session:
        assert isinstance(session, StdioSession)
        process = session._process
        assert process is not None
        os.kill(process.child.pid, signal.SIGKILL)
        await until(lambda: process.is_over)
        assert (await session.call("search", {})).error_type is None


async def test_stdio_server_that_reads_slowly_holds_back_and_the_wait_is_before_posted() -> None:
    async with connected(stdio()) as session:
        assert isinstance(session, StdioSession)
        process = session._process
        assert process is not None
        os.kill(process.child.pid, signal.SIGSTOP)
        try:
            tasks = [asyncio.create_task(session.call("search", {"text": "x" * 300_000})) for _ in range(4)]
            await asyncio.sleep(0.2)
            released_ns = time.monotonic_ns()
            tasks[2].cancel()
        finally:
            os.kill(process.child.pid, signal.SIGCONT)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results.pop(2), asyncio.CancelledError)
        for one in results:
            assert isinstance(one, CallResult)
            assert one.error_type is None
            assert one.remote.posted_ns is not None
            assert one.remote.posted_ns > released_ns  # the pipe takes 64 KiB


async def test_stdio_server_that_reads_nothing_does_not_hold_a_call_with_a_time_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("profiler.mcp.stdio.WRITE_SECONDS", 0.2)
    async with connected(stdio()) as session:
        assert isinstance(session, StdioSession)
        process = session._process
        assert process is not None
        os.kill(process.child.pid, signal.SIGSTOP)
        begun, waiting = await asyncio.gather(
            *(session.call("search", {"text": "x" * 300_000}, timeout=0.1) for _ in range(2))
        )
        os.kill(process.child.pid, signal.SIGCONT)
        for one in (begun, waiting):
            assert (one.error_type, one.remote.posted_ns, one.remote.sends) == ("timeout", None, 0)
            assert "did not read its standard input" in one.text
        said = json.loads((await session.call("said", {})).text)["said"]
        assert len([one for one in said if one["method"] == "notifications/cancelled"]) == 1
        assert (await session.call("search", {}, timeout=30)).error_type is None


async def test_stdio_server_gets_no_key_of_the_model_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-1234567")
    monkeypatch.setenv("COPY_OF_IT", "sk-canary-1234567")
    command = stdio().command
    assert command is not None
    given = ServerSpec("plain", None, ("env", "ITS_OWN_TOKEN=search-token", *command))
    async with connected(given) as session:
        seen = json.loads((await session.call("environment", {})).text)
    assert seen["ITS_OWN_TOKEN"] == "search-token"
    assert "canary" not in str(seen)


async def test_stdio_server_that_ends_at_an_unknown_method_is_started_again() -> None:
    async with connected(stdio("--era", "legacy", "--fault", "exits_at_discover")) as session:
        assert session.info.protocol == LEGACY


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("no-such-program-here",), "no program 'no-such-program-here'"),
        ((sys.executable, "-c", "import sys; sys.exit('no archive here')"), "exit code 1: no archive here"),
    ],
)
async def test_command_that_is_no_server(command: tuple[str, ...], words: str) -> None:
    with pytest.raises(ToolServerError, match=words):
        await connect(ServerSpec("none", None, command))


def _runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


async def test_stdio_server_ends_with_its_session_and_so_does_what_it_started(tmp_path: Path) -> None:
    shell = f"sleep 600 & echo $! > {tmp_path}/pid; exec {sys.executable} {ROOT}/tests/mcp_server.py --stdio"
    async with connected(ServerSpec("plain", None, ("sh", "-c", shell))) as session:
        assert (await session.call("search", {})).error_type is None
        sleeping = int((tmp_path / "pid").read_text())
        assert _runs(sleeping)
    await until(lambda: not _runs(sleeping))


@pytest.mark.parametrize("ending", ["exit", "kill"])
async def test_stdio_server_ends_with_the_process_that_started_it(ending: str) -> None:
    script = f"""
        import asyncio, sys
        sys.path.insert(0, {str(ROOT)!r})
        from profiler.mcp.client import connect
        from profiler.mcp.servers import ServerSpec

        async def main():
            session = await connect(ServerSpec("plain", None, {stdio().command!r}))
            print(session._process.child.pid, flush=True)
            if {ending == "kill"}:
                await asyncio.sleep(600)

        asyncio.run(main())
        """
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(script), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    if ending == "kill":
        parent.kill()
    await parent.wait()
    await until(lambda: not _runs(pid))


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_stdio_works_in_a_native_thread_beside_gevent(loop: str) -> None:
    script = f"""
        import gevent.monkey
        gevent.monkey.patch_all()
        import asyncio, sys
        import gevent, uvloop
        sys.path.insert(0, {str(ROOT)!r})
        from profiler.loop.eventloop import start_native_thread
        from profiler.mcp.client import connect
        from profiler.mcp.servers import ServerSpec

        async def main():
            session = await connect(ServerSpec("plain", None, {stdio().command!r}))
            results = await asyncio.gather(*(session.call("search", {{"n": n}}) for n in range(20)))
            await session.close()
            return sorted(str(one.error_type) for one in results)

        gevent.get_hub()  # as Locust has one by then: two first ones at once can wait for each other for ever
        outcome = []
        start_native_thread(lambda: outcome.append({loop}.run(main())))
        while not outcome:
            gevent.sleep(0.01)
        print(outcome[0] == ["None"] * 20)
        """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(script), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        said, _ = await process.communicate()
    assert said == b"True\n"


# The official SDK's server.

SDK_SERVER = """
    import asyncio, sys

    from mcp.server import MCPServer
    from mcp.server.mcpserver import Context

    m = MCPServer("official", version="3")

    @m.tool()
    async def echo(text: str, seconds: float = 0) -> str:
        await asyncio.sleep(seconds)
        return text

    @m.tool()
    async def steps(ctx: Context) -> str:
        await ctx.report_progress(1, 2)
        return "done"

    async def serve():
        import socket
        import uvicorn

        servers = []
        for words in ("", "json", "stateless", "stateless json"):
            app = m.streamable_http_app(stateless_http="stateless" in words, json_response="json" in words)
            listening = socket.create_server(("127.0.0.1", 0))
            print(listening.getsockname()[1], flush=True)
            config = uvicorn.Config(app, log_level="critical")
            servers.append(uvicorn.Server(config).serve([listening]))
            m._session_manager = None  # one for each of the apps
        await asyncio.gather(*servers)

    if sys.argv[1] == "stdio":
        m.run(transport="stdio")
    else:
        asyncio.run(serve())
    """


@pytest.fixture(scope="module")
def officials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ServerSpec]]:
    """The SDK's server, by how it is served; one process serves all of HTTP, as it imports for seconds."""
    pytest.importorskip("mcp.server.mcpserver")
    script = tmp_path_factory.mktemp("official") / "official.py"
    script.write_text(textwrap.dedent(SDK_SERVER))
    found = {"stdio": ServerSpec("official", None, (sys.executable, str(script), "stdio"))}
    with subprocess.Popen((sys.executable, str(script), "http"), stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            for words in ("http", "http json", "http stateless", "http stateless json"):
                port = int(process.stdout.readline())
                found[words] = ServerSpec("official", f"http://127.0.0.1:{port}/mcp")
            yield found
        finally:
            process.kill()


@pytest.fixture
def official(officials: dict[str, ServerSpec], request: pytest.FixtureRequest) -> ServerSpec:
    return officials[request.param]


@pytest.mark.parametrize("official", ["http stateless json", "http", "stdio"], indirect=True)
async def test_official_server_of_the_modern_era(official: ServerSpec) -> None:
    async with connected(official) as session:
        assert (session.info.name, session.info.protocol) == ("official", MODERN)
        assert [one.name for one in await session.list_tools()] == ["echo", "steps"]
        results = await asyncio.gather(
            *(session.call("echo", {"text": str(n), "seconds": 0.2}) for n in range(8)),
            session.call("none", {}),
            session.call("echo", {}),
            session.call("steps", {}, meta={"progressToken": 5}),
        )
        assert [one.text for one in results[:8]] == [str(n) for n in range(8)]
        assert [one.error_type for one in results[8:]] == ["tool_error", "tool_error", None]
        assert "Unknown tool: none" in results[8].text
        remote = results[10].remote
        assert (remote.reply, remote.progress) in ((None, 1), ("sse", 1), ("json", 0))
        late = await session.call("echo", {"text": "late", "seconds": 60}, timeout=0.2)
        assert late.error_type == "timeout"
        assert (await session.call("echo", {"text": "on"})).text == "on"


@pytest.mark.parametrize("official", ["http", "http json", "http stateless", "stdio"], indirect=True)
async def test_official_server_of_the_era_before(
    official: ServerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_discovery(self: object, seconds: float) -> tuple[None, bool]:
        return None, False

    monkeypatch.setattr("profiler.mcp.lean.LeanSession._discover", no_discovery)
    async with connected(official) as session:
        assert (session.info.name, session.info.version, session.info.protocol) == ("official", "3", LEGACY)
        assert [one.name for one in await session.list_tools()] == ["echo", "steps"]
        results = await asyncio.gather(
            *(session.call("echo", {"text": str(n), "seconds": 0.2}) for n in range(8)),
            session.call("none", {}),
            session.call("steps", {}, meta={"progressToken": 5}),
        )
        assert [one.text for one in results[:8]] == [str(n) for n in range(8)]
        assert [one.error_type for one in results[8:]] == ["tool_error", None]
        late = await session.call("echo", {"text": "late", "seconds": 60}, timeout=0.2)
        assert late.error_type == "timeout"
        assert (await session.call("echo", {"text": "on"})).text == "on"
