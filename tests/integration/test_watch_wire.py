"""Generated replies over sockets: a program sees the same through a watched client and an unwatched one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import anthropic
import openai
import pytest

from profiler.watch.profiler import Profiler
from tests.generated_replies import APIS, WAYS, Api, Wire, generated, raised, seen, seen_async

SEED = 20261129
COUNT = 240

pytestmark = pytest.mark.filterwarnings("ignore")


class Server:
    """Answers every request with `wire`, its chunks as they are, then closes the connection."""

    wire: Wire

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            size = next(
                (
                    int(line[15:])
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length:")
                ),
                0,
            )
            await reader.readexactly(size)
            wire = self.wire
            if wire.before is None:
                lines = [f"HTTP/1.1 {wire.status} Odd", "connection: close", "transfer-encoding: chunked"]
                lines += [f"{name}: {value}" for name, value in wire.headers]
                writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
                for chunk in wire.chunks:
                    if chunk:
                        writer.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
                        await writer.drain()
                if wire.during is None:
                    writer.write(b"0\r\n\r\n")
                await writer.drain()
        writer.close()


@asynccontextmanager
async def served(server: Server) -> AsyncIterator[int]:
    async with await asyncio.start_server(server.answer, "127.0.0.1", 0) as listening:
        yield listening.sockets[0].getsockname()[1]


@pytest.fixture
def server() -> Iterator[tuple[Server, str]]:
    """A server in a thread, for sync clients block the event loop."""
    made, ready, done = Server(), threading.Event(), asyncio.Event()
    found: list[Any] = []

    async def main() -> None:
        async with served(made) as port:
            found.extend((port, asyncio.get_running_loop()))
            ready.set()
            await done.wait()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert ready.wait(60)
    yield made, f"http://127.0.0.1:{found[0]}"
    found[1].call_soon_threadsafe(done.set)
    thread.join(60)


def clients(url: str, asynchronous: bool, aiohttp: bool) -> dict[Api, Any]:
    """With the HTTP client that the SDK makes itself, or the one on aiohttp."""
    options: dict[str, Any] = {"api_key": "k", "max_retries": 0, "timeout": 30}
    of_openai: Any = openai.AsyncOpenAI if asynchronous else openai.OpenAI
    of_anthropic: Any = anthropic.AsyncAnthropic if asynchronous else anthropic.Anthropic
    clients = [{}, {}]
    if aiohttp:
        clients = [{"http_client": sdk.DefaultAioHttpClient()} for sdk in (openai, anthropic)]
    one = of_openai(base_url=f"{url}/v1", **clients[0], **options)
    other = of_anthropic(base_url=url, **clients[1], **options)
    return {"openai": one, "openai-responses": one, "anthropic": other}


def test_generated_replies_over_sockets(server):
    answering, url = server
    prof = Profiler(sinks=[])
    logging.disable(logging.CRITICAL)

    async def main() -> tuple[Counter[str], int]:
        kinds = {"sync": (False, False), "async": (True, False), "aiohttp": (True, True)}
        pairs = {kind: (clients(url, *how), clients(url, *how)) for kind, how in kinds.items()}
        for _, mine in pairs.values():
            for client in mine.values():
                prof.instrument(client)
        replies: Counter[str] = Counter()
        failed = 0
        for number in range(COUNT):
            rng = random.Random(f"{SEED} {number}")
            api, streamed, kind = rng.choice(APIS), rng.random() < 0.6, rng.choice(list(pairs))
            way, enough = rng.choice(WAYS), rng.randint(0, 5)
            answering.wire = generated(rng, api, streamed)
            bare, mine = pairs[kind]
            if kind == "sync":
                expected = seen(api, bare[api], way, streamed, enough)
                with prof.loop():
                    found = seen(api, mine[api], way, streamed, enough)
            else:
                expected = await seen_async(api, bare[api], way, streamed, enough)
                with prof.loop():
                    found = await seen_async(api, mine[api], way, streamed, enough)
            if way == "streaming":  # where sockets cut is not the server's choice
                expected, found = joined(expected), joined(found)
            assert found == expected, f"reply {number}, {api}, {kind}, {way}, streamed {streamed}"
            replies[kind] += 1
            failed += raised(expected)
        for one in pairs.values():
            for made in one:
                for client in {id(client): client for client in made.values()}.values():
                    closed = client.close()
                    if closed is not None:
                        await closed
        return replies, failed

    try:
        replies, failed = asyncio.run(main())
    finally:
        logging.disable(logging.NOTSET)
    sys.stdout.write(f"{dict(replies)} replies over sockets: {failed} raised, all alike; {prof.failures}\n")
    assert sum(replies.values()) == COUNT
    assert failed > COUNT / 4
    assert set(prof.failures.values()) == {0}


class Marked(aiohttp.ClientRequest):
    """Requests of an application's own."""

    async def send(self, conn: Any) -> Any:
        self.headers["x-marked"] = "yes"
        return await super().send(conn)


async def test_requests_of_an_applications_own_class_stay_of_it():
    """A session on aiohttp may have a class of requests, which signs them, for example."""
    heads: list[bytes] = []
    records: list[Any] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        body = b'{"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}'
        head = f"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {len(body)}\r\n"
        writer.write(head.encode() + b"content-type: application/json\r\n\r\n" + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        http_client = openai.DefaultAioHttpClient()
        async with aiohttp.ClientSession(request_class=Marked) as session:
            http_client._transport.client = lambda: session  # type: ignore[attr-defined]
            client = openai.AsyncOpenAI(
                api_key="k", base_url=f"http://127.0.0.1:{port}/v1", max_retries=0, http_client=http_client
            )
            prof = Profiler(sinks=[records.append])
            prof.instrument(client)
            messages: Any = [{"role": "user", "content": "x"}]
            async with prof.loop():
                for _ in range(2):
                    await client.chat.completions.create(model="m", messages=messages)
            await client.close()
    assert [b"x-marked: yes" in head for head in heads] == [True, True]
    attempts = [round_.model.attempts[0] for round_ in records[0].rounds]
    assert all(one.connected_ns is not None and one.sent_ns is not None for one in attempts)


def joined(found: list[Any]) -> list[Any]:
    body = b"".join(one for one in found if isinstance(one, bytes))
    return [*(one for one in found if not isinstance(one, bytes)), body]
