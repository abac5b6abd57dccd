"""HTTP/1.1 for the lean client: one asyncio protocol per connection, on the llhttp parser.

A general client makes objects of requests, responses and streams, and wakes a task with each piece of a body:
most of what a load generator costs. Here a request is written in one piece, and what comes is pushed to its
receiver as it is read. Complete where it counts: TLS, proxies, keep-alive, chunked bodies, those of a length
and those that the end of the connection ends, 1xx, limits of head and body, time-outs, back-pressure. A
cancelled exchange aborts its connection. Nothing is sent twice: a kept connection that the server has closed
is a failed exchange, for the caller to decide about. Not HTTP/2.
"""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

import aiohappyeyeballs
import httptools
import httpx2

from profiler.errors import UsageError
from profiler.providers.connections import MOST_BYTES, TooLarge

MOST_HEAD = 64 * 1024
"""Bytes of a response's headers, those of what came before it (1xx) included."""

IDLE_SECONDS = 30.0
"""After which a kept connection is not used again: servers close them from then on."""

NEXT_ADDRESS_SECONDS = 0.25
"""After which the next address of a host is tried beside the one before: as RFC 8305 has it."""

ADDRESSES_SECONDS = 10.0
"""For how long the addresses of a host are not asked for again."""

DRAIN_SECONDS = 0.1
"""For how long what follows a reply is read, so that its connection can be used again."""

Headers = list[tuple[bytes, bytes]]

P = TypeVar("P", bound=asyncio.BaseProtocol)


class Receiver(Protocol):
    """Hears of an exchange, in the context of whoever began it. What it raises ends the exchange."""

    def sent(self) -> None:
        """The request is written."""

    def responded(self, status: int, headers: Headers) -> None:
        """The head of the response is here."""

    def received(self, data: bytes) -> bool | None:
        """A piece of its body. True: what follows is not needed, but may be read; False: it is not."""

    def ended(self) -> None:
        """The response is complete."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds until there is a connection, and between two pieces of a response: as the SDKs have them."""

    connect: float = 5.0
    read: float = 600.0

    @property
    def named(self) -> dict[str, float | None]:
        """By what they limit, for the words of an error."""
        return {"connect": self.connect, "read": self.read}


class Connection(asyncio.Protocol):
    """A connection to a server, or through a proxy to it; one exchange at a time."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.reusable = True
        self.idle_since = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self._receiver: Receiver | None = None
        self._context: Context | None = None
        self._parser: Any = None
        self._paused: asyncio.Future[None] | None = None
        self._headers: Headers = []
        self._size = 0
        self._status = 0
        self._in_head = True
        self._until_end = False
        self._over = False
        self._heard_at = 0.0

    # Of asyncio.

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        context = self._context
        if context is None:  # nobody asked for it
            self._abort()
            return
        self._heard_at = asyncio.get_running_loop().time()
        if self._in_head:
            self._size += len(data)
            if self._size > MOST_HEAD + len(data):  # so far: what has just come may hold a body
                self._fail(httpx2.RemoteProtocolError(f"its headers are longer than {MOST_HEAD // 1024} KiB"))
                return
        try:
            context.run(self._parser.feed_data, data)
        except httptools.HttpParserUpgrade:  # what follows a 101 is no HTTP
            context.run(self._end)
            self._abort()
        except httptools.HttpParserCallbackError as error:
            self._fail(error.__context__ or error)
        except httptools.HttpParserError as error:
            self._fail(httpx2.RemoteProtocolError(str(error)))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.reusable = False
        self.resume_writing()
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        begun = not self._in_head
        if self._over:
            waiter.set_result(None)
        elif begun and self._until_end:  # however it ended: what has come tells whether it is whole
            assert self._context is not None
            try:
                self._context.run(self._end)
            except Exception as failure:
                waiter.set_exception(failure)
        else:
            where = " without sending all of the message body" if begun else ""
            waiter.set_exception(error or httpx2.RemoteProtocolError(f"peer closed connection{where}"))

    def pause_writing(self) -> None:
        self._paused = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        paused, self._paused = self._paused, None
        if paused is not None and not paused.done():
            paused.set_result(None)

    # Of the parser.

    def on_message_begin(self) -> None:
        self._headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:  # a trailer, which nobody reads
            return
        if b"\0" in value:
            raise httpx2.RemoteProtocolError("there is a zero byte in a header")
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._status = status = self._parser.get_status_code()
        # Of what has been read a part may be the body's.
        if (
            self._size > MOST_HEAD
            and sum(len(name) + len(value) for name, value in self._headers) > MOST_HEAD
        ):
            raise httpx2.RemoteProtocolError(f"its headers are longer than {MOST_HEAD // 1024} KiB")
        if 100 <= status < 200 and status != 101:  # another head follows
            return
        self._in_head, self._until_end = False, True
        for name, value in self._headers:
            if len(name) in (14, 17):
                lower = name.lower()
                if lower == b"content-length" or (
                    lower == b"transfer-encoding" and b"chunked" in value.lower()
                ):
                    self._until_end = False
        self._size = 0
        assert self._receiver is not None
        self._receiver.responded(status, self._headers)

    def on_body(self, data: bytes) -> None:
        if self._over:
            return
        self._size += len(data)
        if self._size > MOST_BYTES:
            raise TooLarge
        assert self._receiver is not None
        more = self._receiver.received(data)
        if more is None:
            return
        self._over = True
        if more:
            asyncio.get_running_loop().call_later(DRAIN_SECONDS, self._drained, self._waiter)
        else:
            self._drained(self._waiter)

    def on_message_complete(self) -> None:
        if not self._in_head:
            self.reusable = self.reusable and self._parser.should_keep_alive()
            self._end()

    # The exchange.

    async def exchange(self, request: bytes, receiver: Receiver, read_seconds: float) -> None:
        """Send a request, and have `receiver` hear of its response; returns when that is over.

        Raises an `OSError`, an error of `ssl` or of httpx2 for what came instead of a response, and whatever
        the receiver raises.
        """
        loop = asyncio.get_running_loop()
        self._parser = parser = httptools.HttpResponseParser(self)
        # What servers get wrong, and other clients put up with.
        parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )
        self._status, self._size = 0, 0
        self._in_head, self._over, self._until_end = True, False, False
        self._receiver, self._context = receiver, copy_context()
        self._waiter = waiter = loop.create_future()
        self._heard_at = loop.time()
        timer: list[asyncio.TimerHandle] = []
        timer.append(loop.call_later(read_seconds, self._late, read_seconds, timer))
        try:
            transport = self.transport
            transport.write(request)
            if self._paused is not None:  # an early answer need not wait for the rest of the request
                await asyncio.wait((self._paused, waiter), return_when=asyncio.FIRST_COMPLETED)
            receiver.sent()
            await waiter
            if transport.get_write_buffer_size():  # it was answered before all of it was sent
                self.reusable = False
        except BaseException:
            self._abort()
            if waiter.done() and not waiter.cancelled():
                waiter.exception()  # else, where we were cancelled at the same moment, asyncio logs it
            raise
        finally:
            timer[0].cancel()
            self._receiver = self._context = self._waiter = self._parser = None

    def _late(self, seconds: float, timer: list[asyncio.TimerHandle]) -> None:
        """Some time has gone by: look since when nothing has come."""
        loop = asyncio.get_running_loop()
        left = self._heard_at + seconds - loop.time()
        if left <= 0:
            self._fail(httpx2.ReadTimeout(f"nothing came within {seconds:g} s"))
        else:
            timer[0] = loop.call_later(left, self._late, seconds, timer)

    def _end(self) -> None:
        assert self._receiver is not None
        assert self._waiter is not None
        if not self._waiter.done():
            self._receiver.ended()
            self._waiter.set_result(None)

    def _drained(self, waiter: asyncio.Future[None] | None) -> None:
        if waiter is not None and waiter is self._waiter and not waiter.done():
            waiter.set_result(None)
            self._abort()

    def _fail(self, error: BaseException) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            if self._over:  # all that was wanted is here
                waiter.set_result(None)
            else:
                waiter.set_exception(error)
        self._abort()

    def _abort(self) -> None:
        self.reusable = False
        if self.transport is not None:
            self.transport.abort()

    def close(self) -> None:
        self.reusable = False
        self.transport.close()


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy: where it listens, and the credentials that it is told."""

    host: str
    port: int
    authorization: bytes | None = None

    @classmethod
    def parse(cls, url: str) -> Proxy:
        """Raises `UsageError` for one that is not asked by plain HTTP."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port or 80
        except ValueError:
            raise UsageError("the port of the proxy that the environment names is none") from None
        if parts.scheme != "http" or not parts.hostname:
            shown = f"{parts.scheme}://{parts.hostname or ''}"
            raise UsageError(
                f"the lean client speaks to proxies by http:// alone, and the environment names {shown}: "
                "use --client sdk, or NO_PROXY for this server"
            )
        authorization = None
        if parts.username:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = b"Basic " + base64.b64encode(pair.encode())
        return cls(parts.hostname, port, authorization)


class Pool:
    """The connections to one server, as many as are asked for at once; those that are idle are kept."""

    def __init__(
        self,
        host: str,
        port: int,
        tls: ssl.SSLContext | None,
        proxy: Proxy | None = None,
    ) -> None:
        self.host, self.port, self.tls, self.proxy = host, port, tls, proxy
        self._idle: deque[Connection] = deque()
        self._closed = False
        self._addresses = _Addresses(*((host, port) if proxy is None else (proxy.host, proxy.port)))

    async def take(self, seconds: float) -> Connection:
        """A connection that is open as far as is known, made within `seconds`. Raises as `exchange`."""
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable and not connection.transport.is_closing():
                if now - connection.idle_since < IDLE_SECONDS:
                    return connection
                connection.close()
        try:
            async with asyncio.timeout(seconds):
                return await self._connect()
        except TimeoutError as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the kernel: ETIMEDOUT
                raise
            raise httpx2.ConnectTimeout(f"no connection within {seconds:g} s") from error

    def give(self, connection: Connection) -> None:
        """Take a connection back whose exchange is over."""
        if not connection.reusable or self._closed or connection.transport.is_closing():
            connection.close()
            return
        connection.idle_since = now = asyncio.get_running_loop().time()
        self._idle.append(connection)
        while now - self._idle[0].idle_since >= IDLE_SECONDS:
            self._idle.popleft().close()

    def close(self) -> None:
        """Close the connections that are idle, and others when their exchange is over."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    async def _connect(self) -> Connection:
        if self.proxy is None:
            return await self._open(Connection, self.tls)
        try:
            if self.tls is not None:
                tunnel = await self._open(_Tunnel, None)
                return await tunnel.through(self.proxy, self.host, self.port, self.tls)
            return await self._open(Connection, None)
        except ssl.SSLError:
            raise
        except OSError as error:
            raise httpx2.ProxyError(str(error)) from error

    async def _open(self, made: Callable[[], P], tls: ssl.SSLContext | None) -> P:
        """The protocol of a new connection to the server, or to the proxy."""
        loop = asyncio.get_running_loop()
        name = self.host if tls is not None else None
        found = await self._addresses.get()
        if len(found) == 1:
            address = found[0][4][:2]
            return (await loop.create_connection(made, *address, ssl=tls, server_hostname=name))[1]
        try:
            one = await aiohappyeyeballs.start_connection(
                found, happy_eyeballs_delay=NEXT_ADDRESS_SECONDS, loop=loop
            )
        except RuntimeError as error:  # uvloop's, for some addresses
            raise OSError(str(error)) from error
        try:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return (await loop.create_connection(made, sock=one, ssl=tls, server_hostname=name))[1]
        except BaseException:
            one.close()
            raise


class _Addresses:
    """Those of a host: looked up by one for all who wait, and kept for `ADDRESSES_SECONDS`."""

    def __init__(self, host: str, port: int) -> None:
        self._asked = host, port
        self._found: list[Any] = []
        self._until = 0.0
        self._looking: asyncio.Task[list[Any]] | None = None

    async def get(self) -> list[Any]:
        """As `getaddrinfo` returns them, at least one. Raises `socket.gaierror`."""
        loop = asyncio.get_running_loop()
        if self._found and loop.time() < self._until:
            return self._found
        if self._looking is None:
            self._looking = asyncio.ensure_future(
                loop.getaddrinfo(*self._asked, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
            )
            self._looking.add_done_callback(self._looked)
        try:
            # Who is cancelled, or runs out of time, does not end it for the others.
            return await asyncio.shield(self._looking)
        except (ValueError, OverflowError) as error:  # a name, or a port, that cannot be one
            raise httpx2.ConnectError(f"no address of {self._asked[0]}: {error}") from error

    def _looked(self, task: asyncio.Task[list[Any]]) -> None:
        self._looking = None
        if not task.cancelled() and task.exception() is None:
            self._found = task.result()
            self._until = asyncio.get_running_loop().time() + ADDRESSES_SECONDS


class _Tunnel(asyncio.Protocol):
    """A connection to a proxy, until that has answered to CONNECT."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._head = b""
        self._answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._head += data
        if (b"\r\n\r\n" in self._head or len(self._head) > MOST_HEAD) and not self._answered.done():
            self._answered.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._answered.done():
            self._answered.set_exception(error or httpx2.ProxyError("the proxy closed the connection"))

    async def through(self, proxy: Proxy, host: str, port: int, tls: ssl.SSLContext) -> Connection:
        """A connection with TLS to a server that the proxy connects us with."""
        transport = self._transport
        try:
            name = f"[{host}]" if ":" in host else host
            told = b"" if proxy.authorization is None else _line(b"proxy-authorization", proxy.authorization)
            asked = f"CONNECT {name}:{port} HTTP/1.1\r\nhost: {name}:{port}\r\n"
            transport.write(asked.encode() + told + b"\r\n")
            await self._answered
            status = self._head.partition(b"\r\n")[0].decode("latin-1").partition(" ")[2]
            if not status.startswith("2"):
                # Its words may repeat what it was told.
                raise httpx2.ProxyError(f"the proxy refused: {status[:3]}" if status else "it speaks no HTTP")
            connection = Connection()
            connection.transport = await asyncio.get_running_loop().start_tls(
                transport, connection, tls, server_hostname=host
            )
        except BaseException:
            transport.abort()
            if self._answered.done() and not self._answered.cancelled():
                self._answered.exception()  # else, where we were cancelled meanwhile, asyncio logs it
            raise
        return connection


def _line(name: bytes, value: bytes) -> bytes:
    return b"%b: %b\r\n" % (name, value)
