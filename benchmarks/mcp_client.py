"""Calls a second that one core can make of an MCP server: our lean client, the official SDK's, bare aiohttp.

raw    aiohttp: a request that was made ready is posted, the bytes of the answer are read, and not looked at
lean   `profiler.mcp.client.connect`: requests made and answers read, failures and times noted
sdk    `mcp.Client` of the official SDK, over HTTP as it comes

All ask one server, which does next to nothing, in a process and on a core of its own; the protocol is
2026-07-28 with JSON replies. The clients take turns in short blocks, in one process, pinned to a core. The
figures are medians over the repeats, the ratios medians of those within a repeat. Goals: lean at least half
of raw, four times the SDK's.

    python benchmarks/mcp_client.py [--repeats 9] [--calls 2000] [--loop uvloop|asyncio]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import aiohttp
import orjson
import uvloop

from profiler.mcp import wire
from profiler.mcp.client import connect
from profiler.mcp.servers import ServerSpec

Call = Callable[[], Awaitable[None]]
IN_FLIGHT = (1, 32)
NAMES = ("raw", "lean", "sdk")
ARGUMENTS = {"query": "What is the weather in Paris?", "limit": 10}


class Server(asyncio.Protocol):
    """Answers each request with what its method wants. One connection; a request may come in pieces."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.data = transport, b""

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, end, body = self.data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if not end or len(body) < length:
            return
        self.data = b""
        message = orjson.loads(body)
        stamp = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
        if message["method"] == "server/discover":
            result = {**stamp, "supportedVersions": [wire.MODERN], "capabilities": {"tools": {}}}
        elif message["method"] == "tools/list":
            result = {**stamp, "tools": [{"name": "search", "inputSchema": {"type": "object"}}]}
        else:
            result = {"resultType": "complete", "content": [{"type": "text", "text": "x" * 200}]}
        answer = orjson.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result})
        said = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
        self.transport.write(said % (len(answer), answer))


async def serve(core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def block(call: Call, calls: int, in_flight: int) -> tuple[float, float]:
    """(calls a second, CPU microseconds a call)."""
    left = calls

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call()

    gc.collect()
    cpu, began = time.process_time(), time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return calls / (time.perf_counter() - began), (time.process_time() - cpu) / calls * 1e6


async def compare(url: str, options: argparse.Namespace) -> None:
    import mcp

    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    headers = {**wire.base_headers(wire.MODERN, None), **wire.modern_headers("tools/call", "search")}
    params = {"name": "search", "arguments": ARGUMENTS}
    body = wire.encoded(wire.request(1, "tools/call", params, wire.envelope(True)))

    async def raw() -> None:
        async with session.post(url, data=body, headers=headers) as response:
            await response.read()

    lean_session = await connect(ServerSpec("bench", url))
    await lean_session.list_tools()

    async def lean() -> None:
        result = await lean_session.call("search", ARGUMENTS)
        assert result.error_type is None, result.text

    async with mcp.Client(url) as client:
        await client.list_tools()

        async def sdk() -> None:
            assert not (await client.call_tool("search", ARGUMENTS)).is_error

        clients: dict[str, tuple[Call, int]] = {
            "raw": (raw, options.calls),
            "lean": (lean, options.calls),
            "sdk": (sdk, options.calls // 5),
        }
        found: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for repeat in range(options.repeats + 1):
            for in_flight in IN_FLIGHT:
                for name in NAMES if repeat % 2 else reversed(NAMES):
                    call, calls = clients[name]
                    figures = await block(call, calls if repeat else calls // 5, in_flight)
                    if repeat:  # the first one warms up
                        found.setdefault((name, in_flight), []).append(figures)
    await lean_session.close()
    await session.close()
    report(found)


def report(found: dict[tuple[str, int], list[tuple[float, float]]]) -> None:
    print(f"{'client':8}{'in flight':>10}{'calls/s':>10}{'CPU us/call':>13}")
    for (name, in_flight), figures in sorted(
        found.items(), key=lambda one: (one[0][1], NAMES.index(one[0][0]))
    ):
        rate, cpu = (statistics.median(one[part] for one in figures) for part in (0, 1))
        print(f"{name:8}{in_flight:>10}{rate:>10.0f}{cpu:>13.0f}")
    for in_flight in IN_FLIGHT:
        for other, goal in (("raw", 0.5), ("sdk", 4.0)):
            pairs = list(zip(found["lean", in_flight], found[other, in_flight], strict=True))
            ratio = statistics.median(ours[0] / theirs[0] for ours, theirs in pairs)
            cpu = statistics.median(theirs[1] / ours[1] for ours, theirs in pairs)
            met = "met" if ratio >= goal else "NOT met"
            print(
                f"lean / {other}, {in_flight} in flight: {ratio:.2f} in calls/s ({cpu:.2f} by CPU); "
                f"goal {goal:g}: {met}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        uvloop.run(serve(options.serve if options.serve >= 0 else None))
        return
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    pinned = len(cores) > 1
    command = [sys.executable, __file__, "--serve", str(cores[1] if pinned else -1)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/mcp"
        if pinned:
            os.sched_setaffinity(0, {cores[0]})
        run = uvloop.run if options.loop == "uvloop" else asyncio.run
        print(f"Python {sys.version.split()[0]}, {options.loop}, arguments {json.dumps(ARGUMENTS)}")
        run(compare(url, options))
        assert server.stdin is not None
        server.stdin.close()


if __name__ == "__main__":
    main()
