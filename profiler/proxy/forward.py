"""One exchange on its way: a client's request, the upstream's connection that takes it, the response back.

A request is sent a second time only where no server can have taken it: before any of it was written, or, if
asking twice does no harm (RFC 9110, 9.2.2) and it has no body, when an idle connection turns out dead.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from profiler.proxy import heads
from profiler.proxy.heads import RequestHead, ResponseHead
from profiler.proxy.observing import Watching
from profiler.proxy.routes import Upstream
from profiler.proxy.seen import Exchange, Outcome

if TYPE_CHECKING:
    from profiler.proxy.client import ClientConnection
    from profiler.proxy.upstream import UpstreamConnection

_HARMLESS = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE"))


class Answer(NamedTuple):
    """An answer of the proxy's own."""

    status: int
    kind: bytes
    body: bytes


class Forward:
    """A request and its response. The upstream's connection calls what is below "from the upstream".

    `out`: bytes of the request's body, framed, that wait for a connection. `complete`: the request was read
    whole. `answered`: the head of a response was written to the client. `close`: the client's connection ends
    after it.
    """

    __slots__ = (
        "again",
        "answered",
        "client",
        "close",
        "complete",
        "connection",
        "exchange",
        "head",
        "modern",
        "out",
        "over",
        "own",
        "task",
        "to_the_end",
        "tunnelled",
        "upstream",
        "watching",
    )

    def __init__(
        self,
        client: ClientConnection,
        head: RequestHead,
        modern: bool,
        keep_alive: bool,
        upstream: Upstream | None,
        exchange: Exchange,
        watching: Watching,
    ) -> None:
        self.client = client
        self.head = head
        self.modern = modern
        self.close = not keep_alive
        self.upstream = upstream
        self.exchange = exchange
        self.watching = watching
        self.out: list[bytes] = []
        self.own: Answer | Callable[[], Answer] | None = None
        """The proxy's own answer, or what makes it, in a thread."""
        self.complete = False
        self.answered = False
        self.over = False
        self.again = False
        self.to_the_end = False
        self.tunnelled = False
        self.connection: UpstreamConnection | None = None
        self.task: asyncio.Task[None] | None = None

    # To the upstream

    def begin(self) -> None:
        """It is this request's turn."""
        own = self.own
        if own is not None:
            if isinstance(own, Answer):
                self._answer(*own)
            else:
                self.task = asyncio.get_running_loop().create_task(self._made(own))
            return
        assert self.upstream is not None
        pool = self.client.server.pool
        connection = pool.take(self.upstream)
        if connection is not None:
            self.exchange.reused = True
            self._attach(connection)
        else:
            self._connect()

    async def _made(self, make: Callable[[], Answer]) -> None:
        try:
            await self.watching.catch_up()  # a client sees in /metrics what it has done before
            answer = await asyncio.to_thread(make)
        except Exception as error:
            self.client.server.defect(error)
            answer = Answer(500, b"text/plain", b"a defect of the profiler\n")
        self.task = None
        if not self.over:
            self._answer(*answer)

    def _connect(self) -> None:
        self.task = asyncio.get_running_loop().create_task(self._connected())

    async def _connected(self) -> None:
        upstream = self.upstream
        assert upstream is not None
        try:
            connection = await self.client.server.pool.connect(upstream)
        except (OSError, TimeoutError, UnicodeError) as error:
            if not self.over:
                self.refuse(502, f"cannot reach {upstream.shown}: {unreachable(error)}")
            return
        except Exception as error:
            self.client.server.defect(error)
            if not self.over:
                self.refuse(502, f"cannot reach {upstream.shown}: a defect of the profiler")
            return
        finally:
            self.task = None
        if self.over:
            self.client.server.pool.give_back(connection, 5.0)
        else:
            self.exchange.reused = False
            self._attach(connection)

    def _attach(self, connection: UpstreamConnection) -> None:
        assert self.upstream is not None
        self.connection = connection
        connection.forward = self
        connection.heard = False
        connection.used += 1
        self.exchange.connected_ns = time.monotonic_ns()
        upstream, more = self.upstream, b""
        target = upstream.target(self.head.target)
        if upstream.through is not None and upstream.scheme == "http":  # the proxy itself is sent the request
            target, more = b"http://%b%b" % (upstream.authority, target), upstream.through.authorization
        data = self.head.forwarded(target, upstream.authority, more)
        if self.out:
            data += b"".join(self.out)
            self.out.clear()
        connection.write(data)
        if self.client.write_paused:
            connection.pause_reading()
        self.client.resume_reading()
        if self.complete:
            self._sent()

    def send(self) -> None:
        """Hand on what was read of the request's body, if there is a connection for it already."""
        connection = self.connection
        if connection is None:
            return
        if self.out:
            connection.write(self.out[0] if len(self.out) == 1 else b"".join(self.out))
            self.out.clear()
        if self.complete and self.exchange.sent_ns is None:
            self._sent()

    def _sent(self) -> None:
        self.exchange.sent_ns = time.monotonic_ns()
        self.watching.requested(self.exchange)

    # From the upstream

    def write(self, data: bytes) -> None:
        """Hand bytes on to the client."""
        self.client.write(data)

    def interim(
        self, status: int, reason: bytes, headers: list[tuple[bytes, bytes]], out: list[bytes]
    ) -> None:
        """100 Continue, 103 Early Hints."""
        if self.modern and not self.answered:
            lines = b"".join([b"%b: %b\r\n" % header for header in headers])
            out.append(b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, reason, lines))

    def switched(self, reason: bytes, headers: list[tuple[bytes, bytes]], out: list[bytes]) -> None:
        """101: from here on bytes go both ways, whatever they mean."""
        if self.head.upgrade != heads.WEBSOCKET:
            raise ValueError("it switches protocols without being asked")
        self.tunnelled = True
        self.answered = True
        self.close = True
        self.exchange.status = 101
        self.exchange.head_ns = time.monotonic_ns()
        lines = b"".join([b"%b: %b\r\n" % header for header in headers])
        out.append(b"HTTP/1.1 101 %b\r\n%b\r\n" % (reason, lines))
        self.client.tunnel(self)

    def location(self, value: bytes) -> bytes:
        return value if self.upstream is None else self.upstream.location(value)

    def respond(
        self,
        status: int,
        reason: bytes,
        headers: list[tuple[bytes, bytes]],
        head: ResponseHead,
        bodiless: bool,
        to_the_end: bool,
        now: int,
        out: list[bytes],
    ) -> bool:
        """The head of the response; whether its body is to be framed in chunks."""
        exchange = self.exchange
        exchange.status = status
        exchange.head_ns = now
        exchange.raw_response = headers
        self.answered = True
        framing = b""
        framed = not bodiless and self.modern and bool(head.coding or to_the_end)
        if framed:
            framing = b"Transfer-Encoding: %b\r\n" % (head.coding or b"chunked")
        elif not bodiless and (head.coding or to_the_end):
            self.close = self.to_the_end = True
        if not self.complete:
            self.close = True  # what is left of the request would be taken for another
        if self.close:
            framing += b"Connection: close\r\n"
        out.append(b"HTTP/1.1 %d %b\r\n%b%b\r\n" % (status, reason, b"".join(head.lines), framing))
        return framed

    def last_chunk(self, trailers: list[tuple[bytes, bytes]]) -> bytes:
        return heads.trailers(trailers) if trailers else b"0\r\n\r\n"

    def responded_whole(self, now: int) -> None:
        self.connection = None
        self._end("complete", now)
        self.client.finished(self)

    def failed(self, words: str) -> None:
        """The upstream sent what cannot be understood."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.abort()
        self._broke_off(words)

    def lost(self, error: Exception | None, heard: bool) -> None:
        """The connection ended before the response did."""
        self.connection = None
        if self.over:
            return
        if self.tunnelled:
            self._end("complete", time.monotonic_ns(), "tunnelled")
            self.client.close()
            return
        stale = self.exchange.reused and not heard and not self.again
        if stale and self.complete and self.head.method in _HARMLESS and not self.exchange.request.size:
            self.again = True
            self._connect()
            return
        how = "closed the connection" if error is None else f"broke the connection off ({broken(error)})"
        self._broke_off(
            how + (" before it answered" if not self.answered else " in the middle of its answer")
        )

    def _broke_off(self, words: str) -> None:
        upstream = self.upstream
        assert upstream is not None
        words = f"{upstream.origin} {words}"
        if not self.answered:
            self.refuse(502, words)
        else:
            self._end("upstream gone", time.monotonic_ns(), words)
            self.client.cut(reset=self.to_the_end)

    # Ends

    def refuse(self, status: int, words: str, outcome: Outcome = "upstream gone") -> None:
        """Answer in the proxy's own words, in the form of the API that was asked for."""
        shape = "openai" if self.upstream is None else self.upstream.shape
        if self.upstream is None and self.head.anthropic:
            shape = "anthropic"
        self.exchange.note = words
        body = heads.error_body(shape, status, f"toolcall-profiler proxy: {words}")
        self._end(outcome, time.monotonic_ns(), words)
        if outcome == "upstream gone" and self.upstream is not None:
            self.client.server.problem(words)
        self._answer(status, b"application/json", body)

    def _answer(self, status: int, kind: bytes, body: bytes) -> None:
        if not self.complete:
            self.close = True
        self.answered = True
        reason = REASONS.get(status, b"")
        more = b"Connection: close\r\n" if self.close else b""
        self.write(
            b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n%b\r\n%b"
            % (status, reason, kind, len(body), more, b"" if self.head.method == b"HEAD" else body)
        )
        self.over = True
        self.client.finished(self)

    def client_gone(self) -> None:
        """Nobody waits any more: the upstream is not to work on."""
        if self.over:
            return
        self._end("client gone", time.monotonic_ns(), "" if not self.tunnelled else "tunnelled")
        if self.task is not None:
            self.task.cancel()
        connection, self.connection = self.connection, None
        if connection is not None:
            if self.tunnelled:
                connection.forward = None
                connection.close()
            else:
                connection.abort()

    def _end(self, outcome: Outcome, now: int, note: str = "") -> None:
        self.over = True
        if self.complete and self.exchange.sent_ns is None and self.own is None:
            self.watching.requested(
                self.exchange
            )  # it never had a connection, and is an attempt all the same
        if self.tunnelled and outcome == "client gone":
            outcome = "complete"
        if self.own is None:
            self.client.server.ended(self, outcome)
            self.watching.ended(self.exchange, outcome, now, note)


REASONS = {
    200: b"OK",
    400: b"Bad Request",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
}


def unreachable(error: Exception) -> str:
    """In words, why no connection came about."""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message or "it does not fit"
        return f"its certificate is refused: {why} (--upstream-ca FILE names another authority to trust)"
    if isinstance(error, ssl.SSLError):
        return f"no TLS: {error.reason or 'the handshake failed'}"
    if isinstance(error, TimeoutError):
        return "no connection within 10 s"
    if isinstance(error, UnicodeError):
        return "its name is no host's"
    return broken(error)


def broken(error: Exception) -> str:
    """In words, how a connection failed."""
    if isinstance(error, OSError) and error.strerror:
        # asyncio wraps the system's words in some of its own.
        return error.strerror.rpartition("] ")[2] if "[Errno" in error.strerror else error.strerror
    return str(error) or type(error).__name__
