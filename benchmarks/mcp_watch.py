"""What watching costs a call of an MCP tool, in a session that does nothing.

The SDK's session calls a tool of a server that answers at once: over streams in memory, and through the HTTP
transport with the network cut off below the HTTP client, so that all phase hooks run. Blocks with and
without watching alternate in one process, both inside a watched loop whose rounds ask for eight calls each;
the figures are the medians of the blocks. A record is made when its loop ends: "with record" is the CPU from
the loop's start to its end.

python benchmarks/mcp_watch.py [--blocks 40] [--rounds 20]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import statistics
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import mcp.types as types
import orjson
from mcp.client.session import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage

from profiler.loop.model import CallRequest
from profiler.watch.profiler import Profiler

MAJOR = int(importlib.metadata.version("mcp").partition(".")[0])
OPENING = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "nothing", "version": "1"},
}
LISTING = {"tools": [{"name": "nothing", "inputSchema": {"type": "object"}}]}
ARGUMENTS = '{"query": "anything"}'
DONE = {"content": [{"type": "text", "text": "done"}]}
RESULTS = {"initialize": OPENING, "tools/list": LISTING, "tools/call": DONE}


def parsed(message: dict[str, Any]) -> Any:
    if MAJOR == 1:
        return types.JSONRPCMessage.model_validate(message)
    return types.jsonrpc_message_adapter.validate_python(message)


@contextlib.asynccontextmanager
async def in_memory() -> AsyncIterator[ClientSession]:
    """A session whose server is a task that answers at once."""
    to_server, asked = anyio.create_memory_object_stream[Any](8)
    to_client, answers = anyio.create_memory_object_stream[Any](8)

    async def serve() -> None:
        async for item in asked:
            message = getattr(item.message, "root", item.message)
            result = RESULTS.get(message.method)
            if result is not None:
                answer = {"jsonrpc": "2.0", "id": message.id, "result": result}
                await to_client.send(SessionMessage(parsed(answer)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        async with ClientSession(answers, to_server) as session:
            await session.initialize()
            yield session
        tasks.cancel_scope.cancel()
    for stream in (to_server, asked, to_client, answers):
        stream.close()


@contextlib.asynccontextmanager
async def over_http() -> AsyncIterator[ClientSession]:
    """A session over the HTTP transport, whose HTTP client answers at once."""
    http: Any = __import__("httpx" if MAJOR == 1 else "httpx2")

    def serve(request: Any) -> Any:
        if request.method != "POST":
            return http.Response(405)
        message = orjson.loads(request.content)
        if "id" not in message:
            return http.Response(202)
        answer = {"jsonrpc": "2.0", "id": message["id"], "result": RESULTS[message["method"]]}
        return http.Response(200, json=answer, headers={"server-timing": "tool;dur=0.1"})

    async with (
        http.AsyncClient(transport=http.MockTransport(serve)) as client,
        streamable_http_client("http://127.0.0.1/mcp", http_client=client) as streams,
        ClientSession(streams[0], streams[1]) as session,
    ):
        await session.initialize()
        yield session


AT_ONCE = 8


async def block(
    session: ClientSession, rounds: int, profiler: Profiler, watched: bool
) -> tuple[float, float, float]:
    """Microseconds of CPU and of wall time a call, and of CPU with the loop's record."""
    if watched:
        profiler.instrument(session)
    wall = cpu = 0.0
    whole = time.process_time()
    with profiler.loop() as loop:
        for number in range(rounds):
            asked = loop.begin_round("chat", "m")
            asked.unclaimed += [
                (CallRequest(f"call_{number}_{one}", "nothing", ARGUMENTS), time.monotonic_ns())
                for one in range(AT_ONCE)
            ]
            began = time.perf_counter(), time.process_time()
            for _ in range(AT_ONCE):
                await session.call_tool("nothing", {"query": "anything"})
            wall, cpu = wall + time.perf_counter() - began[0], cpu + time.process_time() - began[1]
    whole = time.process_time() - whole
    if watched:
        profiler.uninstrument(session)
    calls = rounds * AT_ONCE
    return cpu / calls * 1e6, wall / calls * 1e6, whole / calls * 1e6


async def measure(name: str, opened: Any, blocks: int, rounds: int) -> None:
    records: list[Any] = []
    profiler = Profiler(sinks=[records.append])
    figures: dict[bool, list[tuple[float, float, float]]] = {False: [], True: []}
    async with opened as session:
        for watched in (False, True):
            await block(session, rounds, profiler, watched)
        records.clear()
        for number in range(2 * blocks):
            watched = number % 4 in (1, 2)  # neither is always first
            figures[watched].append(await block(session, rounds, profiler, watched))
    seen = [call for record in records for call in record.tool_calls]
    assert len(seen) == blocks * rounds * AT_ONCE
    assert all(call.id and call.remote is not None and call.remote.answered_ns for call in seen)
    for index, unit in enumerate(("CPU", "wall", "with record")):
        without = statistics.median(one[index] for one in figures[False])
        watched_us = statistics.median(one[index] for one in figures[True])
        print(
            f"{name:10} {unit:11}  unwatched {without:7.1f} us  watched {watched_us:7.1f} us  "
            f"watching {watched_us - without:+6.1f} us a call"
        )


async def main(blocks: int, rounds: int) -> None:
    print(f"mcp {importlib.metadata.version('mcp')}, {blocks} blocks of {rounds * AT_ONCE} calls each way")
    await measure("in memory", in_memory(), blocks, rounds)
    await measure("HTTP hooks", over_http(), blocks, rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    asyncio.run(main(options.blocks, options.rounds))
