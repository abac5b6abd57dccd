"""Connections to upstreams: HTTP/1.1, kept alive, one request at a time; and the pool of those that are idle.

A connection passes each piece of a response on in the turn in which it was read.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import time
from typing import TYPE_CHECKING, cast

import aiohappyeyeballs
import httptools

from profiler.proxy.heads import ResponseHead
from profiler.proxy.routes import Upstream
from profiler.proxy.through import tunnelled

if TYPE_CHECKING:
    from profiler.proxy.forward import Forward

CONNECT_SECONDS = 10.0
"""For a connection, its TLS handshake included. Of answers nothing is demanded: models take their time."""

NEXT_ADDRESS_SECONDS = 0.25
"""How long an address of a host may take before the next is tried beside it (RFC 8305)."""

IDLE_SECONDS = 50.0
"""How long an idle connection is kept, unless its server says that it closes sooner: the shortest time after
which load balancers usually do is a minute."""

MOST_IDLE = 512
"""Idle connections to one upstream."""

MOST_HEAD = 256 * 1024
"""Bytes of a response's head."""


class UpstreamConnection(asyncio.Protocol):
    """A connection to an upstream. `forward` is the exchange that it serves, None while it is idle."""

    def __init__(self, pool: Pool, upstream: Upstream) -> None:
        self._pool = pool
        self.upstream = upstream
        self.transport: asyncio.Transport | None = None
        self.forward: Forward | None = None
        self.used = 0
        self.idle_until = 0.0
        self.heard = False
        """Whether anything of the response to the current request has come."""
        self.write_paused = False
        """It takes no more for now: its client is not to be read."""
        self._closed_by: str | None = None
        self._new_parser()

    def _new_parser(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        # What clients take from servers that are sloppy; it is framed anew for ours.
        self._parser.set_dangerous_leniencies(lenient_chunked_length=True, lenient_optional_cr_before_lf=True)
        self._begin()

    def _begin(self) -> None:
        self._reason = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._trailers: list[tuple[bytes, bytes]] = []
        self._head_size = 0
        self._in_head = True
        self._interim = False
        self._framed = False
        self._to_the_end = False
        self._reusable = False
        self._done = False
        self._idle_seconds = IDLE_SECONDS
        self._out: list[bytes] = []

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one, but does not say so
        self._pool.connections.add(self)

    def data_received(self, data: bytes) -> None:
        forward = self.forward
        if forward is None:
            self.abort()  # nobody asked for anything
            return
        if forward.tunnelled:
            forward.client.write(data)
            return
        now = time.monotonic_ns()
        self._now = now
        self.heard = True
        out = self._out = []
        rest = b""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            if not self._done:
                forward.write(b"".join(out))
                # (Its text names what the parser expected, nothing of what came.)
                words = str(error)
                if isinstance(error, httptools.HttpParserCallbackError) and error.__context__ is not None:
                    words = str(error.__context__)
                forward.failed(f"sent what is not HTTP/1.1: {words}")
                return
            self._reusable = False
        if self._in_head and not self._done:
            self._head_size += len(data)
            if self._head_size > MOST_HEAD:
                forward.failed("sent a head that is too large")
                return
        if out:
            forward.write(out[0] if len(out) == 1 else b"".join(out))
            forward.watching.responding(forward.exchange)
        if self._done:
            self._finish(forward)
        elif forward.tunnelled and rest:
            forward.client.write(rest)

    def eof_received(self) -> None:
        return None  # and the transport closes

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.forget(self)
        forward, self.forward = self.forward, None
        self.transport = None
        if forward is not None:
            if self._to_the_end and exc is None and not self._in_head:
                if self._framed:
                    forward.write(b"0\r\n\r\n")
                forward.responded_whole(time.monotonic_ns())
            else:
                forward.lost(exc, self.heard)
        del self._parser  # it knows us: a circle

    def pause_writing(self) -> None:
        self.write_paused = True
        if self.forward is not None:
            self.forward.client.pause_reading()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.forward is not None:
            self.forward.client.resume_reading()

    # Callbacks of the parser

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            self._headers.append((name, value))
        else:
            self._trailers.append((name, value))

    def on_headers_complete(self) -> None:
        forward = self.forward
        if forward is None or self._done:
            raise ValueError("more than one answer came")
        parser = self._parser
        status = parser.get_status_code()
        self._in_head = False
        if 100 <= status < 200 and status != 101:
            self._interim = True
            forward.interim(status, self._reason, self._headers, self._out)
            return
        head = ResponseHead(self._headers, forward.location)
        if head.keep_alive_seconds is not None:
            self._idle_seconds = min(IDLE_SECONDS, head.keep_alive_seconds - 1)
        if status == 101:
            forward.switched(self._reason, self._headers, self._out)
            return
        bodiless = forward.head.method == b"HEAD" or status in (204, 304)
        self._to_the_end = not bodiless and head.to_the_end
        self._framed = forward.respond(
            status, self._reason, self._headers, head, bodiless, self._to_the_end, self._now, self._out
        )
        if forward.head.method == b"HEAD":
            # The parser would wait for the body that the head speaks of.
            self._done = True
            self._reusable = False
            if head.length is not None or head.coding:
                self._reusable = parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        forward = self.forward
        if forward is None or self._done:
            raise ValueError("a body came that nobody asked for")
        if self._framed:
            self._out += (b"%x\r\n" % len(data), data, b"\r\n")
        else:
            self._out.append(data)
        forward.watching.keep(forward.exchange.response, self._now, data)

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
            self._in_head = True
            self._reason = b""
            self._headers = []
            return
        forward = self.forward
        if self._done or forward is None or forward.tunnelled:
            return
        self._done = True
        self._reusable = self._parser.should_keep_alive()
        if self._framed:
            self._out.append(forward.last_chunk(self._trailers))

    def _finish(self, forward: Forward) -> None:
        """The response was handed on whole."""
        self.forward = None
        reusable = self._reusable and forward.complete and self.transport is not None
        if reusable:
            seconds = self._idle_seconds
            if forward.head.method == b"HEAD":
                self._new_parser()
            else:
                self._begin()
            self.resume_reading()
            self._pool.give_back(self, seconds)
        else:
            self.abort()
        forward.responded_whole(self._now)

    def pause_reading(self) -> None:
        if self.transport is not None and self.transport.is_reading():
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)

    def close(self) -> None:
        """After what was written has gone."""
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        self.forward = None
        if self.transport is not None:
            self.transport.abort()


def _readable(transport: asyncio.Transport) -> bool:
    """Whether an idle connection holds something that was not read yet: its end, as a rule."""
    raw = transport.get_extra_info("socket")
    if raw is None or not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(raw.fileno(), select.POLLIN)
    return bool(poll.poll(0))


class Pool:
    """The connections to all upstreams. `made` counts them, `reused` how often an idle one was taken."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tls: ssl.SSLContext | None = None) -> None:
        self._loop = loop
        self._tls = tls
        self._idle: dict[Upstream, list[UpstreamConnection]] = {}
        self.connections: set[UpstreamConnection] = set()
        self.made = 0
        self.reused = 0

    def take(self, upstream: Upstream) -> UpstreamConnection | None:
        """An idle connection, the one that was used last; None when there is none."""
        idle = self._idle.get(upstream)
        now = self._loop.time()
        while idle:
            connection = idle.pop()
            transport = connection.transport
            late = connection.idle_until < now
            if transport is None or transport.is_closing() or late or _readable(transport):
                connection.abort()
                continue
            self.reused += 1
            return connection
        return None

    async def connect(self, upstream: Upstream) -> UpstreamConnection:
        """A new connection, through the upstream's proxy if it has one. Raises `OSError`, `TimeoutError`."""
        context = self._tls if upstream.scheme == "https" else None
        if context is None and upstream.scheme == "https":
            raise ValueError("no certificates to check those of upstreams against")
        through = upstream.through
        at = upstream if through is None else through
        async with asyncio.timeout(CONNECT_SECONDS):
            one = await _connected(self._loop, at.host, at.port)
            try:
                if through is not None and context is not None:
                    connection = UpstreamConnection(self, upstream)
                    transport = await tunnelled(self._loop, one, through, upstream)
                    secured = await self._loop.start_tls(
                        transport, connection, context, server_hostname=upstream.host
                    )
                    assert secured is not None  # it is None on a connection that was lost: an error by then
                    connection.connection_made(secured)
                else:
                    _, connection = await self._loop.create_connection(
                        lambda: UpstreamConnection(self, upstream),
                        sock=one,
                        ssl=context,
                        server_hostname=upstream.host if context else None,
                    )
            except BaseException:
                one.close()
                raise
        self.made += 1
        return connection

    def give_back(self, connection: UpstreamConnection, seconds: float) -> None:
        idle = self._idle.setdefault(connection.upstream, [])
        if seconds <= 0 or len(idle) >= MOST_IDLE:
            connection.abort()
            return
        connection.idle_until = self._loop.time() + seconds
        idle.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        self.connections.discard(connection)
        idle = self._idle.get(connection.upstream)
        if idle and connection in idle:
            idle.remove(connection)

    def sweep(self) -> None:
        """Close what has been idle too long."""
        now = self._loop.time()
        for idle in self._idle.values():
            for connection in [one for one in idle if one.idle_until < now]:
                idle.remove(connection)
                connection.abort()

    @property
    def idle(self) -> int:
        return sum(map(len, self._idle.values()))

    def close(self) -> None:
        for connection in list(self.connections):
            connection.abort()


async def _connected(loop: asyncio.AbstractEventLoop, host: str, port: int) -> socket.socket:
    """A socket connected to the address of a host that answers first. Raises `OSError`.

    A network that drops IPv6 without a word, say, costs clients nothing without the proxy: their libraries
    do the same. The `create_connection` of uvloop takes one address after the other.
    """
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    try:
        one = await aiohappyeyeballs.start_connection(
            found, happy_eyeballs_delay=NEXT_ADDRESS_SECONDS, loop=loop
        )
    except RuntimeError as error:  # uvloop's, for some addresses
        raise OSError(str(error)) from error
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one
