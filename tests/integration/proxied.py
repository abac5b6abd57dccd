"""The proxy in front of a server of a test's own, and both ends of the wire, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from profiler.proxy.observing import Watching
from profiler.proxy.routes import routes
from profiler.proxy.seen import Exchange
from profiler.proxy.server import ProxyServer
from profiler.proxy.through import behind_proxies
from profiler.proxy.upstream import Pool

WAIT = 60.0
"""Seconds for what has to happen: the machine may be busy."""


class Wire:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def until(self, end: bytes) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(end), WAIT)

    async def exactly(self, count: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(count), WAIT)

    async def rest(self) -> bytes:
        return await asyncio.wait_for(self.reader.read(-1), WAIT)

    async def head(self) -> bytes:
        """With the empty line at its end."""
        return await self.until(b"\r\n\r\n")

    async def chunk(self) -> bytes:
        """A chunk of a body; the last one is empty, and its trailers are left."""
        size = int(await self.until(b"\r\n"), 16)
        data = await self.exactly(size)
        if size:
            assert await self.exactly(2) == b"\r\n"
        return data

    async def message(self, bodiless: bool = False) -> tuple[bytes, bytes]:
        """Head and body of a message, by its framing."""
        head = await self.head()
        lower = head.lower()
        if bodiless:
            return head, b""
        if re.search(rb"transfer-encoding: [^\r]*chunked", lower):
            body = b""
            while data := await self.chunk():
                body += data
            await self.until(b"\r\n")
            return head, body
        if b"content-length: " in lower:
            length = int(lower.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            return head, await self.exactly(length)
        return head, b"" if not lower.startswith(b"http/") else await self.rest()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        self.writer.transport.abort()


Handler = Callable[[Wire], Awaitable[None]]


@dataclass
class Seen:
    """An observer that keeps what it is told."""

    events: list[tuple[str, Exchange]] = field(default_factory=list)

    def requested(self, exchange: Exchange) -> None:
        self.events.append(("requested", exchange))

    def responding(self, exchange: Exchange) -> None:
        self.events.append(("responding", exchange))

    def ended(self, exchange: Exchange) -> None:
        self.events.append(("ended", exchange))

    def tick(self, now_ns: int) -> None:
        pass

    async def exchanges(self, count: int) -> list[Exchange]:
        """Those that have ended, once there are so many."""
        ended: list[Exchange] = []
        async with asyncio.timeout(WAIT):
            while len(ended := [one for event, one in self.events if event == "ended"]) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        return ended


@dataclass
class Proxied:
    """A proxy that runs, and the server behind it. `accepted` are the connections that came to that."""

    port: int
    upstream_port: int
    server: ProxyServer
    seen: Seen
    said: list[str]
    accepted: list[Wire]
    opened: list[Wire] = field(default_factory=list)

    async def connect(self) -> Wire:
        wire = Wire(*await asyncio.open_connection("127.0.0.1", self.port))
        self.opened.append(wire)
        return wire

    async def ask(self, request: bytes) -> tuple[bytes, bytes]:
        """Head and body of the answer to a request on a connection of its own."""
        wire = await self.connect()
        await wire.send(request)
        return await wire.message()


@contextlib.asynccontextmanager
async def proxied(
    handler: Handler,
    *,
    specs: tuple[str, ...] = ("http://127.0.0.1:{port}",),
    mcp: tuple[str, ...] = (),
    observer: Seen | None = None,
    server_tls: ssl.SSLContext | None = None,
    client_tls: ssl.SSLContext | None = None,
    allowed: tuple[str, ...] = (),
    through: str | None = None,
) -> AsyncIterator[Proxied]:
    """A proxy whose upstream hands each connection to `handler`. `{port}` in a spec is the upstream's.

    `through` is the URL of a proxy of the environment's that upstreams are behind.
    """
    accepted: list[Wire] = []
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer)
        accepted.append(wire)
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            await handler(wire)
        writer.close()

    upstream = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_tls)
    port = upstream.sockets[0].getsockname()[1]
    loop = asyncio.get_running_loop()
    seen = observer or Seen()
    said: list[str] = []
    server = ProxyServer(
        behind_proxies(
            routes([one.format(port=port) for one in specs], [one.format(port=port) for one in mcp]),
            lambda url, here: through,
        ),
        Watching(seen, loop, said.append),
        Pool(loop, client_tls),
        {},
        allowed,
        said.append,
    )
    listener = await loop.create_server(server.connection, "127.0.0.1", 0)
    bound = listener.sockets[0].getsockname()[1]
    running = Proxied(bound, port, server, seen, said, accepted)
    try:
        yield running
    finally:
        for wire in (*running.opened, *accepted):
            wire.reset()
        server.cut()
        listener.close()
        upstream.close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=WAIT)
        await asyncio.sleep(0.01)  # what was closed is told so in turns of the event loop
