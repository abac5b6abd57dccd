"""An MCP server that shares no code with the emulator, nor with the official SDK, and does as it is told.

    python -m tests.mcp_server --seconds 0.05 --capacity 8 --refuses --reply sse --era legacy
    python -m tests.mcp_server --stdio --seconds 0.05

Over HTTP it prints its port, and ends when its standard input is closed. In a test of one's own:

    async with McpServer(Behaviour(seconds=0.1, capacity=4)) as server:
        ... server.url, server.calls, server.most_at_once

It has the tools that `tools` names (those whose names begin with `write` are not read-only). Each takes any
arguments, and returns them as JSON text after `seconds`, or those in its argument `seconds`. With `fault` in
the arguments of a call, or for every call in `Behaviour.fault`, it misbehaves: see `FAULTS`. `calls` is the
truth: an entry for every `tools/call`, in nanoseconds of CLOCK_MONOTONIC, which all processes of a machine
share; over HTTP at `GET /log` too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any

MODERN, LEGACY = "2026-07-28", "2025-11-25"

FAULTS = {
    "tool_error": "a result with isError, at once",
    "rpc_error": "a JSON-RPC error with the code -32603",
    "rpc_own": "a JSON-RPC error with a code of its own",
    "429": "HTTP 429 with Retry-After 1.5",
    "503": "HTTP 503 with a text",
    "500_html": "HTTP 500 with a page",
    "503_slow": "HTTP 503 with a body that does not end",
    "html": "HTTP 200 with a page",
    "not_json": "HTTP 200 and JSON's content type, but none",
    "202": "HTTP 202 on a request, and nothing more",
    "redirect": "HTTP 307 to another port",
    "reset": "the connection is reset before any answer",
    "reset_in_reply": "the connection is reset in the middle of the answer",
    "sse_without_answer": "a stream of events that ends without the answer",
    "silence": "no answer, ever",
    "wrong_id": "an answer to another request",
    "lost_session": "HTTP 404: the session is forgotten",
    "huge": "an answer that does not end",
    "input_required": "a result that asks for input",
    "early_headers": "the headers at once, the body when the tool has ended",
    "asks": "a ping, and a request for roots, before the answer (SSE, stdio)",
    "progress": "three notifications of progress before the answer (SSE, stdio)",
    "image": "a text, an image of 3 MB, a link",
    "structured": "structured content alone",
    "batch": "the answer in a list",
    "noise": "lines on standard output that are no messages (stdio)",
    "exit": "the process ends with code 3, after some words on standard error (stdio)",
}


@dataclass
class Behaviour:
    """How it behaves. `capacity`: calls at a time; more wait in line, or with `refuses` get HTTP 429 at once.

    `serialise`: one call at a time, in the order they came. `timing`: it says how long a call took, in the
    header `Server-Timing` and in `_meta`, or in one of them.
    """

    seconds: float = 0.0
    capacity: int | None = None
    refuses: bool = False
    serialise: bool = False
    reply: str = "json"  # or sse
    era: str = "both"  # or modern, legacy
    timing: str = "both"  # or header, meta, none
    fault: str = ""
    retry_after: str = "1.5"
    session: bool = True  # of the older era: whether it has one
    pages: int = 1  # of the listing; 0: it does not end
    moved: bool = False  # it is at /mcp/, where /mcp redirects to
    tools: tuple[str, ...] = ("search", "write")
    name: str = "plain-server"


@dataclass
class Call:
    tool: str
    arguments: dict[str, Any]
    meta: dict[str, Any]
    received_ns: int
    headers: dict[str, str] = field(default_factory=dict)
    connection: int = 0
    started_ns: int | None = None
    ended_ns: int | None = None
    outcome: str = ""  # ok, refused, cancelled, or the fault


class Core:
    """What is the same over HTTP and stdio."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.calls: list[Call] = []
        self.said: list[dict[str, Any]] = []  # notifications, and answers to what we asked
        self.admitted = 0
        self.at_once = 0
        self.most_at_once = 0
        limit = 1 if behaviour.serialise else behaviour.capacity
        self._room = asyncio.Semaphore(limit) if limit and not behaviour.refuses else None

    def full(self) -> bool:
        behaviour = self.behaviour
        return behaviour.refuses and behaviour.capacity is not None and self.admitted >= behaviour.capacity

    async def run(self, call: Call) -> None:
        seconds = call.arguments.get("seconds", self.behaviour.seconds)
        if self.fault_of(call) == "silence":
            seconds = 3600
        try:
            async with self._room or contextlib.nullcontext():
                self.at_once += 1
                self.most_at_once = max(self.most_at_once, self.at_once)
                call.started_ns = time.monotonic_ns()
                try:
                    await asyncio.sleep(seconds)
                finally:
                    self.at_once -= 1
                    call.ended_ns = time.monotonic_ns()
        except asyncio.CancelledError:
            call.outcome = "cancelled"
            raise

    def fault_of(self, call: Call) -> str:
        return str(call.arguments.get("fault", self.behaviour.fault))

    def result(self, call: Call, fault: str) -> dict[str, Any]:
        if fault == "input_required":
            return {"resultType": "input_required", "inputRequests": {"a": {"method": "elicitation/create"}}}
        text = {"type": "text", "text": json.dumps(call.arguments)}
        result: dict[str, Any] = {"content": [text], "resultType": "complete"}
        if fault == "tool_error":
            result.update(isError=True, content=[{"type": "text", "text": "no such city"}])
        elif fault == "image":
            image = {"type": "image", "mimeType": "image/png", "data": "A" * 4_000_000}
            result["content"] += [image, {"type": "resource_link", "uri": "file:///a", "name": "a"}]
        elif fault == "structured":
            result.update(content=[], structuredContent={"rows": [1, 2]})
        if self.behaviour.timing in ("both", "meta") and call.started_ns and call.ended_ns:
            result["_meta"] = {"toolcall-profiler/serverNs": call.ended_ns - call.started_ns}
        return result

    def answer(self, call: Call, number: Any, fault: str) -> Any:
        if fault == "wrong_id":
            number = 987654
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": number}
        if fault in ("rpc_error", "rpc_own"):
            code = -32603 if fault == "rpc_error" else 12345
            return {**answer, "error": {"code": code, "message": "the archive is closed"}}
        answer["result"] = self.result(call, fault)
        return [answer] if fault == "batch" else answer

    def other(self, message: dict[str, Any]) -> dict[str, Any]:
        """The answer to what is no call of a tool."""
        behaviour, method, params = self.behaviour, message["method"], message.get("params") or {}
        named = {"name": behaviour.name, "version": "7"}
        if method == "server/discover" and behaviour.era != "legacy":
            meta = {"io.modelcontextprotocol/serverInfo": named}
            result: dict[str, Any] = {
                "supportedVersions": [MODERN],
                "capabilities": {"tools": {}},
                "_meta": meta,
            }
        elif method == "initialize" and behaviour.era != "modern":
            result = {"protocolVersion": LEGACY, "capabilities": {"tools": {}}, "serverInfo": named}
        elif method == "tools/list":
            page = int(params.get("cursor") or 1)
            tools = behaviour.tools if page == 1 else (f"more{page}",)
            result = {"tools": [_tool(name) for name in tools]}
            if behaviour.pages == 0 or page < behaviour.pages:
                result["nextCursor"] = str(page + 1)
        elif method == "ping":
            result = {}
        else:
            error = {"code": -32601, "message": f"Method not found: {method}"}
            return {"jsonrpc": "2.0", "id": message["id"], "error": error}
        if "io.modelcontextprotocol/protocolVersion" in (params.get("_meta") or {}):
            result.update(resultType="complete", ttlMs=0, cacheScope="private")
        return {"jsonrpc": "2.0", "id": message["id"], "result": result}

    def extras(self, fault: str, meta: dict[str, Any], number: Any) -> list[dict[str, Any]]:
        """What comes before an answer."""
        if fault == "asks":
            asked = ("ping", "roots/list")
            return [{"jsonrpc": "2.0", "id": f"s{n}", "method": m} for n, m in enumerate(asked)]
        if fault == "progress":
            token = meta.get("progressToken", number)
            return [
                {
                    "jsonrpc": "2.0",
                    "method": "notifications/progress",
                    "params": {"progressToken": token, "progress": step, "total": 3},
                }
                for step in (1, 2, 3)
            ]
        return []


def _tool(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": {"query": {"type": "string"}}}
    if name == "mirrored":
        schema["properties"]["region"] = {"type": "string", "x-mcp-header": "Region"}
    read_only = not name.startswith("write")
    return {
        "name": name,
        "description": f"The tool {name}.",
        "inputSchema": schema,
        "annotations": {"readOnlyHint": read_only},
    }


class McpServer:
    """Over HTTP, on the running event loop. `forget()` forgets all sessions."""

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        self.core = Core(behaviour or Behaviour())
        self.sessions: set[str] = set()
        self.opened = 0
        self.requests: list[tuple[str, str, dict[str, str]]] = []  # HTTP method, JSON-RPC method, headers
        self.connections = 0
        self._running: dict[Any, asyncio.Task[Any]] = {}

    @property
    def calls(self) -> list[Call]:
        return self.core.calls

    @property
    def most_at_once(self) -> int:
        return self.core.most_at_once

    def forget(self) -> None:
        self.sessions.clear()

    async def __aenter__(self) -> McpServer:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=4096)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/mcp"
        self._tasks: set[asyncio.Task[Any]] = set()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        number = self.connections
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                first, *lines = head.decode("latin-1").split("\r\n")
                headers = {
                    k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines if line)
                }
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                method, path, _ = first.split(" ", 2)
                if not await self._asked(method, path, headers, body, reader, writer, number):
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _asked(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        connection: int,
    ) -> bool:
        """Whether the connection goes on."""
        if method == "GET" and path == "/log":
            return await _respond(writer, 200, [asdict(call) for call in self.calls])
        if self.core.behaviour.moved and path == "/mcp":
            return await _respond(writer, 307, b"", {"location": f"{self.url}/"})
        message = json.loads(body) if body else {}
        self.requests.append((method, message.get("method", ""), headers))
        if method == "DELETE":
            self.sessions.discard(headers.get("mcp-session-id", ""))
            return await _respond(writer, 200, b"")
        if method != "POST":
            return await _respond(writer, 405, b"")
        if "id" not in message or "method" not in message:
            self.core.said.append(message)
            params = message.get("params") or {}
            running = self._running.get((headers.get("mcp-session-id"), params.get("requestId")))
            if message.get("method") == "notifications/cancelled" and running is not None:
                running.cancel()
            return await _respond(writer, 202, b"")
        modern = headers.get("mcp-protocol-version") == MODERN
        refused = self._refused(message, headers, modern)
        if refused is not None:
            status, code, words = refused
            error = {"jsonrpc": "2.0", "id": message["id"], "error": {"code": code, "message": words}}
            return await _respond(writer, status, error)
        if message["method"] == "tools/call":
            return await self._call(message, headers, reader, writer, connection)
        more = {}
        if message["method"] == "initialize" and self.core.behaviour.session:
            self.opened += 1
            more["mcp-session-id"] = f"session-{self.opened}"
            self.sessions.add(more["mcp-session-id"])
        answer = self.core.other(message)
        if self.core.behaviour.reply == "sse" and not modern and "result" in answer:
            return await _stream(writer, [answer], more)
        return await _respond(writer, 404 if "error" in answer and modern else 200, answer, more)

    def _refused(
        self, message: dict[str, Any], headers: dict[str, str], modern: bool
    ) -> tuple[int, int, str] | None:
        era = self.core.behaviour.era
        if modern and era == "legacy":
            return 400, -32600, "Bad Request: Missing session ID"
        if not modern and era == "modern":
            return 400, -32022, "Unsupported protocol version"
        if modern:
            name = (message.get("params") or {}).get("name")
            if headers.get("mcp-method") != message["method"] or headers.get("mcp-name") != name:
                return 400, -32020, "Header mismatch"
            arguments = message["params"].get("arguments") or {}
            if name == "mirrored" and "region" in arguments and "mcp-param-region" not in headers:
                return 400, -32020, "Header mismatch"
            if "io.modelcontextprotocol/protocolVersion" not in (message["params"].get("_meta") or {}):
                return 400, -32602, "No _meta"
        elif (
            message["method"] != "initialize"
            and self.core.behaviour.session
            and headers.get("mcp-session-id") not in self.sessions
        ):
            return 404, -32600, "Session not found"
        return None

    async def _call(
        self,
        message: dict[str, Any],
        headers: dict[str, str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        connection: int,
    ) -> bool:
        core, params, number = self.core, message["params"], message["id"]
        meta = params.get("_meta") or {}
        call = Call(
            params["name"], params.get("arguments") or {}, meta, time.monotonic_ns(), headers, connection
        )
        core.calls.append(call)
        fault = core.fault_of(call)
        call.outcome = fault or "ok"
        if fault == "429" or core.full():
            call.outcome = "refused"
            return await _respond(writer, 429, b"slow down", {"retry-after": core.behaviour.retry_after})
        if fault == "lost_session":
            self.sessions.discard(headers.get("mcp-session-id", ""))
            error = {"code": -32600, "message": "Session not found"}
            return await _respond(writer, 404, {"jsonrpc": "2.0", "id": number, "error": error})
        if fault == "reset":
            return _reset(writer)
        if fault == "early_headers":
            writer.write(_JSON_HEAD + b"transfer-encoding: chunked\r\n\r\n")
            await writer.drain()
        sse = core.behaviour.reply == "sse" or fault in ("asks", "progress", "sse_without_answer")
        if sse and fault not in ("early_headers",):
            await _begin_stream(writer)
            for extra in core.extras(fault, meta, number):
                await _chunk(writer, _event(extra))
        running = asyncio.ensure_future(core.run(call))
        core.admitted += 1
        key = headers.get("mcp-session-id", connection), number
        self._running[key] = running
        gone = asyncio.ensure_future(reader.read(1))  # nobody sends a second request before the answer
        try:
            await asyncio.wait((running, gone), return_when=asyncio.FIRST_COMPLETED)
            if not running.done():  # the client has closed the connection, which cancels in the modern era
                if "mcp-method" in headers:
                    running.cancel()
                await asyncio.wait((running,))
                return False
            if running.cancelled():
                return False
        finally:
            core.admitted -= 1
            del self._running[key]
            gone.cancel()
            running.cancel()
            await asyncio.wait((gone,))
        return await self._finish(call, number, fault, sse, writer)

    async def _finish(
        self, call: Call, number: Any, fault: str, sse: bool, writer: asyncio.StreamWriter
    ) -> bool:
        core = self.core
        answer = core.answer(call, number, fault)
        if fault == "sse_without_answer":
            await _chunk(writer, b": nothing\n\n")
            return await _chunk(writer, b"")
        if fault == "huge":
            writer.write(_JSON_HEAD + b"transfer-encoding: chunked\r\n\r\n")
            while True:
                await _chunk(writer, b" " * 1_000_000)
        if fault == "503_slow":
            writer.write(b"HTTP/1.1 503 Said\r\ncontent-type: text/plain\r\ncontent-length: 99\r\n\r\nlater")
            await asyncio.sleep(3600)
        if fault == "early_headers":
            await _chunk(writer, json.dumps(answer).encode())
            return await _chunk(writer, b"")
        if fault == "reset_in_reply":
            writer.write(_JSON_HEAD + b"content-length: 1000\r\n\r\n{")
            await writer.drain()
            await asyncio.sleep(0.05)
            return _reset(writer)
        page = b"<html><head><title>Bad gateway</title></head><body>no</body></html>"
        plain = {
            "503": (503, b"the archive is being moved", "text/plain"),
            "500_html": (500, page, "text/html"),
            "html": (200, page, "text/html"),
            "not_json": (200, b"{not json", "application/json"),
            "202": (202, b"", "text/plain"),
            "redirect": (307, b"", "text/plain"),
        }
        if fault in plain:
            status, body, kind = plain[fault]
            return await _respond(writer, status, body, {"location": "http://127.0.0.1:1/elsewhere"}, kind)
        more = {}
        if core.behaviour.timing in ("both", "header") and call.started_ns and call.ended_ns:
            took_ms = (call.ended_ns - call.started_ns) / 1e6
            more["server-timing"] = f'queue;dur=0.1, total;dur={took_ms:.3f};desc="all of it"'
        if sse:
            await _chunk(writer, _event(answer))
            return await _chunk(writer, b"")
        return await _respond(writer, 200, answer, more)


_JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


def _reset(writer: asyncio.StreamWriter) -> bool:
    raw: socket.socket = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


def _event(message: Any) -> bytes:
    return f"event: message\r\ndata: {json.dumps(message)}\r\n\r\n".encode()


async def _begin_stream(writer: asyncio.StreamWriter, more: dict[str, str] | None = None) -> None:
    extra = "".join(f"{name}: {value}\r\n" for name, value in (more or {}).items())
    head = f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n{extra}transfer-encoding: chunked\r\n\r\n"
    writer.write(head.encode())
    await writer.drain()


async def _chunk(writer: asyncio.StreamWriter, data: bytes) -> bool:
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))
    await writer.drain()
    return True


async def _stream(writer: asyncio.StreamWriter, messages: list[Any], more: dict[str, str]) -> bool:
    await _begin_stream(writer, more)
    for message in messages:
        await _chunk(writer, _event(message))
    return await _chunk(writer, b"")


async def _respond(
    writer: asyncio.StreamWriter,
    status: int,
    body: Any,
    more: dict[str, str] | None = None,
    kind: str = "application/json",
) -> bool:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Said", f"content-type: {kind}", f"content-length: {len(raw)}"]
    lines += [f"{name}: {value}" for name, value in (more or {}).items()]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + raw)
    await writer.drain()
    return True


# Standard streams.


async def serve_stdio(behaviour: Behaviour) -> None:
    core = Core(behaviour)
    running: dict[Any, asyncio.Task[None]] = {}
    loop = asyncio.get_running_loop()

    def say(message: Any) -> None:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()

    async def call(message: dict[str, Any]) -> None:
        params, number = message["params"], message["id"]
        meta = params.get("_meta") or {}
        one = Call(params["name"], params.get("arguments") or {}, meta, time.monotonic_ns())
        fault = core.fault_of(one)
        if params["name"] == "environment":
            one.arguments = dict(os.environ)
        if params["name"] == "said":
            one.arguments = {"said": core.said}
        if fault == "noise":
            sys.stdout.write("Starting up ...\n\n{broken\n")
        if fault == "exit":
            sys.stderr.write("Traceback: the archive\nRuntimeError: burnt down\n")
            sys.stderr.flush()
            os._exit(3)
        if fault == "huge":
            sys.stdout.write(f'{{"jsonrpc": "2.0", "id": {number}, "result": "' + "x" * 40_000_000)
            sys.stdout.flush()
        for extra in core.extras(fault, meta, number):
            say(extra)
        try:
            await core.run(one)
        except asyncio.CancelledError:
            return
        finally:
            running.pop(number, None)
        if fault != "silence":
            say(core.answer(one, number, fault))

    async for line in _lines(loop):
        message = json.loads(line)
        if "id" not in message or "method" not in message:
            core.said.append(message)
            task = running.get((message.get("params") or {}).get("requestId"))
            if task is not None:
                task.cancel()
        elif message["method"] == "tools/call":
            running[message["id"]] = asyncio.ensure_future(call(message))
        elif message["method"] == "server/discover" and behaviour.fault == "exits_at_discover":
            sys.stderr.write("expected initialize\n")
            sys.stderr.flush()
            os._exit(1)
        else:
            say(core.other(message))


async def _lines(loop: asyncio.AbstractEventLoop) -> AsyncIterator[bytes]:
    reader = asyncio.StreamReader(limit=2**26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield line


async def serve_http(behaviour: Behaviour) -> None:
    async with McpServer(behaviour) as server:
        sys.stdout.write(f"{server.port}\n")
        sys.stdout.flush()
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        await reader.read()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stdio", action="store_true")
    defaults = Behaviour()
    for one in fields(Behaviour):
        value = getattr(defaults, one.name)
        flag = f"--{one.name.replace('_', '-')}"
        if isinstance(value, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=value)
        elif isinstance(value, tuple):
            parser.add_argument(flag, nargs="*", default=value)
        else:
            parser.add_argument(flag, type=int if value is None else type(value), default=value)
    options = vars(parser.parse_args())
    stdio = options.pop("stdio")
    behaviour = Behaviour(**{**options, "tools": tuple(options["tools"])})
    asyncio.run(serve_stdio(behaviour) if stdio else serve_http(behaviour))


if __name__ == "__main__":
    main()
