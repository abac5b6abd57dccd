"""OpenTelemetry beside the official SDK's own spans: each call of an MCP tool has one of ours, one of theirs.

The server and the client are the SDK's own, over its streamable HTTP, in this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from profiler.exporters.opentelemetry import OpenTelemetrySink
from profiler.records import NO_MODEL, LoopRecord, ModelCall, RemoteCall, RoundRecord, ToolCall

CALLS = 4

mcp = pytest.importorskip("mcp")


@contextlib.asynccontextmanager
async def a_server() -> AsyncIterator[str]:
    """The SDK's server with one tool; its address."""
    uvicorn = pytest.importorskip("uvicorn")
    server_module = pytest.importorskip("mcp.server")
    made = server_module.MCPServer("docs")

    @made.tool()
    async def search(query: str) -> str:
        await asyncio.sleep(0.02)
        return query

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        app = made.streamable_http_app(stateless_http=True, json_response=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        task = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            while not server.started:  # noqa: ASYNC110 (uvicorn has no event for it)
                await asyncio.sleep(0.01)
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            server.should_exit = True
            await task


async def called(client: object, number: int) -> ToolCall:
    started = time.monotonic_ns()
    await client.call_tool("search", {"query": str(number)})  # type: ignore[attr-defined]
    ended = time.monotonic_ns()
    remote = RemoteCall("docs", "http", "2026-07-28", started, ended, http_status=200)
    return ToolCall(f"call_{number}", "search", started, started, started, ended, remote=remote)


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Keeps the spans of the global provider, which the SDK uses."""
    found, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(found))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    # The SDK's tracer was made when it was imported, perhaps under another test's provider.
    module = pytest.importorskip("mcp.shared._otel", reason="this mcp makes no spans")
    monkeypatch.setattr(module, "_tracer", provider.get_tracer("mcp-python-sdk"))
    return found


def test_each_call_has_one_span_of_ours_and_one_of_the_sdk(exporter: InMemorySpanExporter) -> None:
    sink = OpenTelemetrySink()

    async def main() -> None:
        async with a_server() as url, mcp.Client(url) as client:
            await client.list_tools()
            exporter.clear()
            begun = time.monotonic_ns()
            calls = await asyncio.gather(*(called(client, number) for number in range(CALLS)))
            ended = time.monotonic_ns()
            nobody = ModelCall(NO_MODEL, "", begun, begun)
            round_ = RoundRecord(0, begun, ended, nobody, begun, ended, tuple(calls))
            sink(LoopRecord("x", "gathered", NO_MODEL, "", begun, ended, "ok", (round_,)))

    asyncio.run(main())
    sink.close()
    assert sink.dropped == 0
    spans = exporter.get_finished_spans()
    ours = [span for span in spans if span.name == "execute_tool search"]
    theirs = [span for span in spans if span.name == "MCP send tools/call search"]
    about_calls = Counter(
        (span.name, span.kind)
        for span in spans
        if span.kind is not SpanKind.SERVER and (span.attributes or {}).get("mcp.method.name") == "tools/call"
    )
    assert about_calls == {
        ("execute_tool search", SpanKind.INTERNAL): CALLS,
        ("MCP send tools/call search", SpanKind.CLIENT): CALLS,
    }
    # Each of ours links to another one of theirs, and has its request's id.
    linked = {link.context.span_id for span in ours for link in span.links}
    assert linked == {span.context.span_id for span in theirs}
    ids = {span.context.span_id: span.attributes["jsonrpc.request.id"] for span in theirs}
    for span in ours:
        (link,) = span.links
        assert span.attributes["jsonrpc.request.id"] == ids[link.context.span_id]
    # No model was asked.
    assert {span.name for span in spans if span.instrumentation_scope.name == "toolcall-profiler"} == {
        *("invoke_agent", "toolloop.round", "execute_tool search")
    }
