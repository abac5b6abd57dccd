"""The lean client of MCP servers against servers that answer oddly, or badly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trustme

from profiler.errors import ToolServerError
from profiler.mcp.client import connect
from profiler.mcp.http import MOST_RESTS
from profiler.mcp.servers import ServerSpec
from profiler.mcp.session import Session
from profiler.mcp.stdio import StdioSession

CA = trustme.CA()

Message = dict[str, Any]
Answer = Callable[[Message], Message | bytes]
"""What a server says to a request: a result, or all bytes of its HTTP response."""


def http(
    body: bytes | Message, status: str = "200 OK", kind: str = "application/json", more: str = ""
) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n{more}\r\n"
    return head.encode() + data


def of_the_older_era(session_id: str = "", **results: Answer) -> Answer:
    """By method, with `_` for `/`; those that are not given are answered as well-behaved servers do."""

    def answer(message: Message) -> Message | bytes:
        method = message.get("method", "")
        given = results.get(method.replace("/", "_"))
        if given is not None:
            return given(message)
        if method == "initialize":
            hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {"name": "odd"}}
            more = f"mcp-session-id: {session_id}\r\n" if session_id else ""
            return http({"jsonrpc": "2.0", "id": message["id"], "result": hello}, more=more)
        if method == "tools/list":
            return {"tools": [{"name": "search", "inputSchema": {"type": "object"}}]}
        if method == "tools/call":
            return {"content": [{"type": "text", "text": "found"}]}
        return http(b"", "202 Accepted" if "id" not in message else "404 Not Found", "text/html")

    return answer


class OddServer:
    """`open_now` and `most_open` count connections, `requests` holds the heads of all requests."""

    def __init__(self, answer: Answer, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self.answer, self.host, self.tls = answer, host, tls
        self.requests: list[str] = []
        self.open_now = self.most_open = 0

    async def __aenter__(self) -> OddServer:
        self._server = await asyncio.start_server(self._serve, self.host, 0, ssl=self.tls)
        port = self._server.sockets[0].getsockname()[1]
        host = f"[{self.host}]" if ":" in self.host else self.host
        self.url = f"{'https' if self.tls else 'http'}://{host}:{port}/mcp"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                self.requests.append(head)
                length = head.partition("content-length: ")[2].partition("\r\n")[0]
                message = json.loads(await reader.readexactly(int(length or 0)) or "{}")
                said = self.answer(message)
                if not isinstance(said, bytes):
                    said = http({"jsonrpc": "2.0", "id": message["id"], "result": said})
                writer.write(said)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError, ssl.SSLError):
            pass
        finally:
            self.open_now -= 1
            writer.close()


@contextlib.asynccontextmanager
async def connected(spec: ServerSpec, client: Any = "lean", timeout: float = 60.0) -> AsyncIterator[Session]:
    session = await connect(spec, client=client, timeout=timeout)
    try:
        yield session
    finally:
        await session.close()


@pytest.mark.parametrize(
    "discover",
    [
        http(b"<p>none</p>", "404 Not Found", "text/html"),
        http(b"", "405 Method Not Allowed"),
        http(b"what?", "400 Bad Request", "text/plain"),
        http(b"", "406 Not Acceptable"),
        http(b""),
        http(b"", "202 Accepted"),
        http(b"oops", "500 Internal Server Error", "text/plain"),
        http({"jsonrpc": "2.0", "id": None, "error": {"code": -32000, "message": "No session"}}, "400 Bad"),
        http({"jsonrpc": "2.0", "id": 1, "error": {"code": -32602, "message": "no such method"}}),
        http({"jsonrpc": "2.0", "id": 1, "error": "no"}),
        http({"jsonrpc": "2.0", "id": 1, "result": None}),
        http({"jsonrpc": "2.0", "id": 1, "result": [1]}),
    ],
)
async def test_server_that_refuses_discovery_is_one_of_the_older_era(discover: bytes) -> None:
    answer = of_the_older_era(server_discover=lambda _: discover)
    async with OddServer(answer) as server, connected(ServerSpec("odd", server.url)) as session:
        assert session.info.protocol == "2025-06-18"
        assert (await session.call("search", {})).text == "found"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (of_the_older_era(session_id="a\x7fb"), "characters that no header can hold"),
        (of_the_older_era(initialize=lambda _: {"protocolVersion": "1\r\nx: y"}), "is none to initialize"),
    ],
)
async def test_what_no_header_can_hold_is_the_servers_fault(answer: Answer, words: str) -> None:
    async with OddServer(answer) as server:
        with pytest.raises(ToolServerError, match=words):
            await connect(ServerSpec("odd", server.url))
        assert not any("x: y" in one for one in server.requests)


async def test_streams_that_do_not_end_hold_few_connections() -> None:
    def streamed(message: Message) -> bytes:
        data = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": {"content": []}})
        event = f"data: {data}\n\n".encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        return head + b"%x\r\n%s\r\n" % (len(event), event)

    async with (
        OddServer(of_the_older_era(tools_call=streamed)) as server,
        connected(ServerSpec("odd", server.url)) as session,
    ):
        for _ in range(40):
            results = await asyncio.gather(*(session.call("search", {}) for _ in range(10)))
            assert [one.error_type for one in results] == [None] * 10
        assert server.most_open < MOST_RESTS + 50


async def test_session_that_is_lost_again_and_again_leaves_nothing_behind() -> None:
    turn = iter(range(10_000))

    def call(message: Message) -> Message | bytes:
        return {"content": []} if next(turn) % 2 else http(b"gone", "404 Not Found", "text/plain")

    async with (
        OddServer(of_the_older_era("abc", tools_call=call)) as server,
        connected(ServerSpec("odd", server.url)) as session,
    ):
        tasks = len(asyncio.all_tasks())
        found = [(await session.call("search", {})).error_type for _ in range(200)]
        assert found == ["session_lost", None] * 100
        assert server.most_open == 1
        assert len(asyncio.all_tasks()) == tasks


async def test_given_headers_are_sent_in_place_of_ours() -> None:
    async with (
        OddServer(of_the_older_era()) as server,
        connected(ServerSpec("odd", server.url, headers={"Accept": "application/json"})) as session,
    ):
        await session.call("search", {})
        assert all(one.count("\r\naccept: ") == 1 for one in server.requests)


async def test_secret_in_the_query_of_its_address_is_not_said() -> None:
    def refuse(_: Message) -> bytes:
        return http(b"no such key: plain-secret", "403 Forbidden", "text/plain")

    async with OddServer(of_the_older_era(tools_call=refuse)) as server:
        spec = ServerSpec.parse(f"odd={server.url}?key=plain-secret")
        async with connected(spec) as session:
            result = await session.call("search", {})
        assert result.error_type == "http_403"
        assert "no such key" in result.text
        assert "plain-secret" not in result.text
        assert "/mcp?key=plain-secret " in server.requests[0]


async def test_answer_that_can_be_read_but_not_written_is_one() -> None:
    def nested(message: Message) -> bytes:
        value = b"[" * 990 + b"]" * 990
        return http(b'{"jsonrpc":"2.0","id":%d,"result":{"structuredContent":%s}}' % (message["id"], value))

    async with (
        OddServer(of_the_older_era(tools_call=nested)) as server,
        connected(ServerSpec("odd", server.url)) as session,
    ):
        result = await session.call("search", {})
        assert result.remote.answered_ns is not None


@pytest.mark.parametrize("client", ["lean", "sdk"])
async def test_server_on_this_machine_is_not_asked_through_a_proxy(
    client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {"name": "a", "version": "1"}}
    async with (
        OddServer(of_the_older_era(initialize=lambda _: hello)) as server,
        OddServer(lambda _: http(b"", "502 Bad Gateway")) as proxy,
    ):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        async with connected(ServerSpec("odd", server.url), client) as session:
            assert (await session.call("search", {})).text == "found"
        assert proxy.requests == []


async def test_server_at_an_address_of_ipv6() -> None:
    try:
        async with OddServer(of_the_older_era(), host="::1") as server:
            spec = ServerSpec.parse(server.url)
            assert spec.is_loopback
            assert not spec.name.startswith("-")
            async with connected(spec) as session:
                assert (await session.call("search", {})).text == "found"
    except OSError:
        pytest.skip("this machine has no IPv6")


@pytest.mark.parametrize("client", ["lean", "sdk"])
async def test_tls_is_checked_against_the_certificates_that_the_environment_names(
    client: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    CA.issue_cert("127.0.0.1", "localhost").configure_cert(tls)
    CA.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {"name": "a", "version": "1"}}
    async with OddServer(of_the_older_era(initialize=lambda _: hello), tls=tls) as server:
        spec = ServerSpec("odd", server.url.replace("127.0.0.1", "localhost"))
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        with pytest.raises(ToolServerError, match="certificate"):
            await connect(spec, client=client, timeout=60.0)  # type: ignore[arg-type]
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        async with connected(spec, client) as session:
            assert (await session.call("search", {})).text == "found"


SCRIPT = """
import json, os, sys
for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message:
        continue
    answer = {"jsonrpc": "2.0", "id": message["id"]}
    if message["method"] == "initialize":
        answer["result"] = {"protocolVersion": "2025-06-18", "serverInfo": {"name": "odd"}}
    elif message["method"] == "tools/call":
        answer["result"] = {"content": [{"type": "text", "text": "found"}]}
        CALLED
    else:
        answer["error"] = {"code": -32601, "message": "no"}
    print(json.dumps(answer), flush=True)
"""


def script(called: str) -> ServerSpec:
    return ServerSpec("odd", None, (sys.executable, "-c", SCRIPT.replace("CALLED", called)))


async def test_stdio_server_that_reads_no_more_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profiler.mcp.stdio.END_SECONDS", 0.2)
    ending = "print(json.dumps(answer), flush=True); os.close(0); import time; time.sleep(600)"
    async with connected(script(ending)) as session:
        assert isinstance(session, StdioSession)
        assert (await session.call("search", {})).error_type is None
        process = session._process
        assert process is not None
        async with asyncio.timeout(60):
            while process.child.stdin is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (await session.call("search", {})).error_type is None
        assert session.generation == 2


async def test_stdio_call_that_nobody_can_read_is_lost_with_its_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("profiler.mcp.stdio.END_SECONDS", 0.2)
    async with connected(script("os.close(0); import time; time.sleep(600)")) as session:
        result = await session.call("search", {})
    assert result.error_type == "session_lost"
    assert "closed its standard input" in result.text


async def test_stdio_answers_to_nobody_change_nothing() -> None:
    odd = textwrap.dedent("""\
        for number in (12345, [1], {"a": 1}, True, "x", None, answer["id"], answer["id"]):
                    print(json.dumps({**answer, "id": number}), flush=True)""")
    async with connected(script(odd)) as session:
        for _ in range(3):
            assert (await session.call("search", {})).text == "found"


def test_starting_servers_again_and_again_leaves_no_process_behind() -> None:
    async def main() -> int:
        async with connected(script("print(json.dumps(answer), flush=True); os._exit(0)")) as session:
            for _ in range(10):
                await session.call("search", {})
                await asyncio.sleep(0.02)
        return len(os.listdir("/proc/self/fd"))

    first = asyncio.run(main())
    assert asyncio.run(main()) == first
