"""Tokens told before a connection broke, or a request was cancelled, are recorded and spent."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from profiler import ToolLoop
from profiler.errors import ProviderError
from profiler.instrument import Profiler
from profiler.load.spending import spent_by
from profiler.providers import AnthropicMessages, OpenAIChat
from profiler.records import LoopRecord, ModelCall

START = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
        "usage": {"input_tokens": 12, "cache_read_input_tokens": 30_000, "output_tokens": 1},
    },
}
TEXT = {
    "type": "content_block_start",
    "index": 0,
    "content_block": {"type": "text", "text": "so"},
}
CHAT = {
    "id": "c",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "delta": {"content": "so"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 50, "completion_tokens": 3, "total_tokens": 53},
}
TOLD = {
    "anthropic": (30_012, 30_000, None),  # its output is told at the end
    "openai": (50, None, 3),
}
BROKEN = (httpx2.TransportError, anthropic.APIConnectionError, openai.APIConnectionError)
BASE = {"anthropic": "", "openai": "/v1"}


def events(provider: str) -> bytes:
    if provider == "openai":
        return f"data: {json.dumps(CHAT)}\n\n".encode()
    return "".join(f"event: {one['type']}\ndata: {json.dumps(one)}\n\n" for one in (START, TEXT)).encode()


@asynccontextmanager
async def served(provider: str, *, breaks: bool) -> AsyncIterator[str]:
    """A server that streams the beginning of a reply; then the connection `breaks`, or nothing more comes."""
    over = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            body = events(provider)
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 99999\r\n\r\n"
            )
            writer.write(body)
            await writer.drain()
            if not breaks:
                await over.wait()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}{BASE[provider]}"
        over.set()


def client_of(provider: str, url: str) -> Any:
    kind: Any = anthropic.AsyncAnthropic if provider == "anthropic" else openai.AsyncOpenAI
    return kind(api_key="none", base_url=url, max_retries=0)


async def stream(provider: str, client: Any) -> Any:
    asked: Any = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    if provider == "anthropic":
        return await client.messages.create(**asked, max_tokens=100)
    return await client.chat.completions.create(**asked)


def loop_of(provider: str, client: Any, records: list[LoopRecord], **options: Any) -> ToolLoop:
    model: Any = AnthropicMessages if provider == "anthropic" else OpenAIChat
    return ToolLoop(model(client, "m"), stream=True, sinks=[records.append], **options)


def tokens(call: ModelCall) -> tuple[int | None, ...]:
    return call.input_tokens, call.cached_tokens, call.output_tokens


def check(records: list[LoopRecord], provider: str) -> ModelCall:
    (record,) = records
    (round_,) = record.rounds
    assert tokens(round_.model) == TOLD[provider]
    spent = spent_by(record)
    assert (spent.input_tokens, spent.cached_tokens) == (TOLD[provider][0], TOLD[provider][1] or 0)
    assert (spent.replies, spent.unknown_replies) == (1, int(provider == "anthropic"))
    return round_.model


@pytest.mark.parametrize("provider", TOLD)
async def test_of_a_loop_whose_connection_broke(provider: str) -> None:
    records: list[LoopRecord] = []
    async with served(provider, breaks=True) as url, client_of(provider, url) as client:
        with pytest.raises(ProviderError) as caught:
            await loop_of(provider, client, records).run("hi")
    model = check(records, provider)
    assert (model.status, model.error_type) == ("error", caught.value.error_type)


@pytest.mark.parametrize("provider", TOLD)
async def test_of_a_loop_that_was_cancelled(provider: str) -> None:
    records: list[LoopRecord] = []
    begun = asyncio.Event()
    async with served(provider, breaks=False) as url, client_of(provider, url) as client:
        running = loop_of(provider, client, records, on_text=lambda _: begun.set())
        task = asyncio.create_task(running.run("hi"))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert check(records, provider).status == "cancelled"


@pytest.mark.parametrize("provider", TOLD)
async def test_of_a_watched_loop_whose_connection_broke(provider: str) -> None:
    records: list[LoopRecord] = []
    profiler = Profiler(sinks=[records.append])
    async with served(provider, breaks=True) as url, client_of(provider, url) as client:
        profiler.instrument(client)
        with profiler.loop("broken"), pytest.raises(BROKEN):
            async for _ in await stream(provider, client):
                pass
    assert check(records, provider).status == "error"


@pytest.mark.parametrize("provider", TOLD)
async def test_of_a_watched_loop_that_was_cancelled(provider: str) -> None:
    records: list[LoopRecord] = []
    profiler = Profiler(sinks=[records.append])
    came = asyncio.Event()

    async def read(client: Any) -> None:
        with profiler.loop("cancelled"):
            async for _ in await stream(provider, client):
                came.set()

    async with served(provider, breaks=False) as url, client_of(provider, url) as client:
        profiler.instrument(client)
        task = asyncio.create_task(read(client))
        await came.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    check(records, provider)
