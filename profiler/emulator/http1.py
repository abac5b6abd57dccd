"""HTTP/1.1 for the emulator: one asyncio protocol per connection on the llhttp parser.

A general web framework costs as much as everything the emulator does with a request, and wants a
task per request; here the application decides at once what to answer and when, and the connection
sends it when due. Complete where it counts: keep-alive, pipelining (answered in order),
Content-Length and chunked bodies, Expect: 100-continue, HEAD, HTTP/1.0, limits (413, 414, 431),
400 for what does not parse, back-pressure in both directions, TLS by the transport.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Literal, NoReturn, Protocol, cast

import httptools
import msgspec

from profiler.emulator.scheduler import Scheduler, Timer

MAX_HEAD, MAX_BODY = 64 * 1024, 32 * 1024 * 1024
"""Bytes of a request's head (a quarter of it for the URL) and of its body."""

MAX_DISCARDED = 8 * MAX_BODY
"""Bytes of a body that is too large for which its client is let finish, so that it comes to read why."""

MAX_PIPELINED = 32
IDLE_SECONDS = 120
_GONE = getattr(select, "POLLRDHUP", 0)  # where it does not exist the client is missed when its reply is due

_JOINED = frozenset({b"host", b"origin", b"sec-fetch-site"})
"""Headers of which the last must not stand for all, since they say who asks."""

Ending = Literal["complete", "reset", "cut"]
"""How a response ends: as it should, with a connection reset, or by closing in the middle of a stream."""

Outcome = Literal[Ending, "disconnected"]

_log = logging.getLogger(__name__)
_STATUS_LINES = {
    int(status): f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
_STATUS_LINES[529] = b"HTTP/1.1 529 Overloaded\r\n"


class Observer(Protocol):
    """The receiver of how a response went: an entry of the journal. Times are monotonic ns."""

    def first_byte(self, ns: int) -> None: ...

    def finished(self, ns: int, outcome: Outcome) -> None: ...


Payload = bytes | Callable[[int], bytes]
"""Bytes of a stream, or what makes them when they are sent, told the time (monotonic ns)."""


class HttpReply(msgspec.Struct, eq=False):
    """A response: `body` at `due_ns`, or, when `frames` is given, a chunked stream of (due_ns, payload).

    `headers` are complete header lines. Times are monotonic ns; 0 is at once. With the ending `reset`
    a reply without frames is a connection that dies unanswered at `due_ns`.

    `at_sending` is called with the time just before a reply without frames is written, which it may still
    change. A stream that is `open` has more to come: whoever adds to `frames`, or ends it, sends it again.
    """

    status: int
    headers: bytes
    body: bytes = b""
    due_ns: int = 0
    frames: list[tuple[int, Payload]] | None = None
    open: bool = False
    at_sending: Callable[[HttpReply, int], None] | None = None
    ending: Ending = "complete"
    observer: Observer | None = None


class Exchange(msgspec.Struct, eq=False):
    """One request, and where its reply goes. `send` is called once, now or later; again only for a stream
    that is open, or with another reply as long as none has begun.

    The `body` is there while the application is called, and not later: replies may take long, and bodies are
    large. `on_gone` is called when the client goes away before the reply has ended.
    """

    _connection: Connection
    method: bytes
    path: bytes
    query: bytes | None
    headers: dict[bytes, bytes]
    body: bytes
    keep_alive: bool
    _chunked: bool
    received_ns: int = msgspec.field(default_factory=time.monotonic_ns)
    reply: HttpReply | None = None
    on_gone: Callable[[], None] | None = None
    _timer: Timer | None = None
    _next: int = 0  # index of the first frame not yet written
    _started: bool = False

    def send(self, reply: HttpReply) -> None:
        """Answer with `reply`, at its due time."""
        self.reply = reply
        self._connection.pump()

    @property
    def begun(self) -> bool:
        """Whether a part of a stream has been written."""
        return self._started

    def end_stream(self, due_ns: int, payload: Payload) -> None:
        """End the open stream with `payload` at `due_ns`; frames that are due later are dropped."""
        reply = self.reply
        if reply is None or reply.frames is None:
            return
        left = [frame for frame in reply.frames[self._next :] if frame[0] <= due_ns]
        reply.frames[self._next :] = [*left, (due_ns, payload)]
        reply.open = False
        if self._timer is not None:
            self._timer.cancel()
        self._connection.pump()


Application = Callable[[Exchange], None]


class Server:
    """The state that the connections of one listener share.

    `refused` is told of requests that cannot be read: method, path, status, reason.
    """

    def __init__(
        self,
        application: Application,
        scheduler: Scheduler,
        refused: Callable[[bytes, bytes, int, str], None] = lambda method, path, status, reason: None,
    ) -> None:
        self.application = application
        self.refused = refused
        self.scheduler = scheduler
        self.connections: set[Connection] = set()
        self._date = b""
        self._date_second = -1

    def connection(self) -> Connection:
        return Connection(self)

    def date_line(self) -> bytes:
        """The Date header, made once a second."""
        now = int(time.time())
        if now != self._date_second:
            self._date_second = now
            self._date = time.strftime("date: %a, %d %b %Y %H:%M:%S GMT\r\n", time.gmtime(now)).encode()
        return self._date

    def sweep(self) -> None:
        """Close connections that are idle too long, or take too long to send a request or to read a reply.

        And those whose clients went away while we read nothing of them, which nobody else notices.
        """
        limit = time.monotonic_ns() - IDLE_SECONDS * 1_000_000_000
        for connection in list(self.connections):
            if connection.is_left() or connection.stuck_since(limit):
                connection.abort()
            elif connection.idle_since(limit):
                connection.close()

    def close(self) -> None:
        for connection in list(self.connections):
            connection.abort()


def _has_body(headers: dict[bytes, bytes]) -> bool:
    return headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers


def _without_upgrade(exchange: Exchange) -> bytes:
    """The head of a request that does not ask for another protocol; what it expected it has been told."""
    query = b"" if exchange.query is None else b"?" + exchange.query
    lines = [b"%b %b%b HTTP/1.1\r\n" % (exchange.method, exchange.path, query)]
    left_out = (b"upgrade", b"connection", b"http2-settings", b"expect")
    lines += [b"%b: %b\r\n" % one for one in exchange.headers.items() if one[0] not in left_out]
    return b"".join(lines) + b"\r\n"


class Connection(asyncio.Protocol):
    """Parses requests, queues them, writes their replies in order."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Exchange] = deque()
        self._refusal: int | None = None
        self._closing = False
        self._discarded = 0
        self._paused = False
        self._reading_paused = False
        self._last_ns = time.monotonic_ns()
        self._begin()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one, but does not say so
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._transport = None
        for exchange in self._queue:
            self._gone(exchange)
        self._queue.clear()
        # Half a request may be large, and the parser knows us: a circle, which would keep it for a while.
        self._begin()
        del self._parser

    def data_received(self, data: bytes) -> None:
        if self._closing:
            self._discarded += len(data)
            if self._discarded > MAX_DISCARDED:
                self.abort()
            return
        waiting = len(self._queue)
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse(self._refusal or 400)
        # Counts a header line that does not end, which `on_header` never sees. (Where the queue has grown, a
        # request has ended.)
        if self._in_head and len(self._queue) == waiting:
            self._head_size += len(data)
            if self._head_size > MAX_HEAD and not self._closing:
                self._refuse(431)
        queue = self._queue
        if len(queue) == waiting:
            return
        if not self._reading_paused and self._transport is not None and self._holds_more_than(1):
            self._reading_paused = True
            self._transport.pause_reading()
        if waiting == 0:
            self._dispatch()

    def _feed(self, data: bytes) -> None:
        while True:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                exchange = self._queue[-1]
                if exchange.method == b"CONNECT" or not _has_body(exchange.headers):
                    # Nothing to upgrade to: it is answered as it is, and the connection ends with it.
                    exchange.keep_alive = False
                    self._closing = True
                    return
                # The parser would leave out its body (a Java client asks for h2c so): it is read as if it had
                # not asked.
                self._queue.pop()
                self._parser = httptools.HttpRequestParser(self)
                data = _without_upgrade(exchange) + data[upgrade.args[0] :]

    def pause_writing(self) -> None:
        self._paused = True
        self._last_ns = time.monotonic_ns()

    def resume_writing(self) -> None:
        self._paused = False
        self.pump()

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        self._head_size = 0  # blank lines before it do not count; all else is as `_begin` left it

    def _begin(self) -> None:
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: bytes | bytearray = b""
        self._head_size = 0
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        self._url += url
        if len(self._url) > MAX_HEAD // 4:
            self._stop_parsing(414)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_size = size = self._head_size + len(name) + len(value)
        if size > MAX_HEAD:
            self._stop_parsing(431)
        if not self._in_head:
            return  # a trailer, after the body: nothing here needs one, and none may replace a header
        name, headers = name.lower(), self._headers
        if name in _JOINED and name in headers:
            value = headers[name] + b", " + value
        headers[name] = value

    def on_headers_complete(self) -> None:
        self._in_head = False
        headers = self._headers
        length = headers.get(b"content-length")
        if length is not None and int(length) > MAX_BODY:
            self._stop_parsing(413)
        if (
            headers.get(b"expect", b"").lower() == b"100-continue"
            and self._transport is not None
            and not self._queue
        ):
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        if not self._body:
            self._body = body
            return
        if len(self._body) + len(body) > MAX_BODY:
            self._stop_parsing(413)
        if isinstance(self._body, bytes):
            self._body = bytearray(self._body)  # not a list of pieces: a piece of one byte takes 40
        self._body += body

    def on_message_complete(self) -> None:
        path, mark, query = self._url.partition(b"?")
        parser = self._parser
        modern = parser.get_http_version() == "1.1"  # an HTTP/1.0 client gets one plain reply a connection
        if modern and b"host" not in self._headers:
            self._headers[b"host"] = b""  # which HTTP/1.1 demands: to leave it out names no host either
        self._queue.append(
            Exchange(
                self,
                parser.get_method(),
                path,
                query if mark else None,
                self._headers,
                bytes(self._body),
                modern and parser.should_keep_alive(),
                modern,
            )
        )
        self._begin()

    def _stop_parsing(self, status: int) -> NoReturn:
        """Leave the parser, which any exception does; `data_received` refuses the request with `status`."""
        self._refusal = status
        raise ValueError

    # Replies

    def _dispatch(self) -> None:
        """Hand the request at the head of the queue to the application."""
        exchange = self._queue[0]
        try:
            self._server.application(exchange)
        except Exception:
            _log.exception(
                "the emulator failed on %s %s", exchange.method.decode(), exchange.path.decode("latin-1")
            )
            if exchange.reply is None:
                exchange.send(
                    HttpReply(
                        500, b"content-type: text/plain\r\n", b"the emulator failed; its log says why\n"
                    )
                )
            else:
                self.abort()
        exchange.body = b""

    def pump(self) -> None:
        """Write whatever is due of the reply at the head of the queue; arm the timer for what is not."""
        transport = self._transport
        if transport is None or not self._queue or self._paused:
            return
        exchange = self._queue[0]
        reply = exchange.reply
        if reply is None:
            return
        if reply.frames is not None:
            self._pump_frames(transport, exchange, reply, reply.frames)
            return
        now = time.monotonic_ns()
        if reply.due_ns > now:
            if exchange._timer is None:
                exchange._timer = self._server.scheduler.at(reply.due_ns, self.pump)
            return
        if reply.ending == "reset":
            self._finish(exchange, reply, "reset")
            return
        if reply.at_sending is not None:
            reply.at_sending(reply, now)
        body = reply.body
        length = len(body)
        if reply.ending == "cut":
            body = body[: length // 2]
        if exchange.method == b"HEAD":
            body = b""
        transport.write(b"%bcontent-length: %d\r\n\r\n%b" % (self._head(exchange, reply), length, body))
        if reply.observer is not None:
            reply.observer.first_byte(now)
        self._finish(exchange, reply, reply.ending)

    def _head(self, exchange: Exchange, reply: HttpReply) -> bytes:
        connection = b"" if exchange.keep_alive else b"connection: close\r\n"
        line = _STATUS_LINES.get(reply.status) or b"HTTP/1.1 %d Unknown\r\n" % reply.status
        return b"%b%b%b%b" % (line, reply.headers, self._server.date_line(), connection)

    def _pump_frames(
        self,
        transport: asyncio.Transport,
        exchange: Exchange,
        reply: HttpReply,
        frames: list[tuple[int, Payload]],
    ) -> None:
        now = time.monotonic_ns()
        position, parts = exchange._next, []
        chunked = exchange._chunked
        while position < len(frames):
            due_ns, payload = frames[position]
            if due_ns > now:
                break
            if not isinstance(payload, bytes):
                payload = payload(now)
            # Empty: the head alone is due, and an empty chunk would be the last.
            parts.append(b"%x\r\n%b\r\n" % (len(payload), payload) if chunked and payload else payload)
            position += 1
        exchange._next = position
        done = position == len(frames) and not reply.open
        if parts or done:
            if done and chunked and reply.ending == "complete":
                parts.append(b"0\r\n\r\n")
            if not exchange._started:
                exchange._started = True
                coding = b"transfer-encoding: chunked\r\n\r\n" if chunked else b"\r\n"
                parts.insert(0, self._head(exchange, reply) + coding)
                if reply.observer is not None:
                    reply.observer.first_byte(now)
            transport.write(b"".join(parts))
        if done:
            self._finish(exchange, reply, reply.ending)
        elif position < len(frames) and (exchange._timer is None or exchange._timer.callback is None):
            # (Else one is armed already, or nothing is known of what comes next.)
            exchange._timer = self._server.scheduler.at(frames[position][0], self.pump)

    def _finish(self, exchange: Exchange, reply: HttpReply, outcome: Outcome) -> None:
        now = self._last_ns = time.monotonic_ns()
        self._queue.popleft()
        exchange.on_gone = None
        if reply.observer is not None:
            reply.observer.finished(now, outcome)
        if outcome == "reset":
            self._reset()
        elif self._refusal == 413 and not self._queue:
            self._linger()
        elif outcome == "cut" or not exchange.keep_alive:
            self.close()
        elif self._queue:
            # Not from here: a long pipeline of instant replies would recurse.
            asyncio.get_running_loop().call_soon(self._proceed)

    def _proceed(self) -> None:
        if self._reading_paused and self._transport is not None and not self._holds_more_than(0.5):
            self._reading_paused = False
            self._transport.resume_reading()
        if self._queue and self._transport is not None:
            if self._queue[0].reply is None:
                self._dispatch()
            else:
                self.pump()

    def _holds_more_than(self, share: float) -> bool:
        """Whether more is waiting to be answered than this share of what may."""
        queue = self._queue
        if len(queue) > MAX_PIPELINED * share:
            return True
        return len(queue) > 1 and sum(len(exchange.body) for exchange in queue) > MAX_BODY * share

    def _refuse(self, status: int) -> None:
        """A request that cannot be read: answered in its turn, then the connection is closed."""
        self._closing = True
        self._begin()  # of what was read of it nothing is needed
        reason = _STATUS_LINES[status][13:].decode().strip()
        self._server.refused(b"-", b"-", status, f"{reason}: the request cannot be read")
        exchange = Exchange(self, b"GET", b"", None, {}, b"", False, False)
        exchange.reply = HttpReply(status, b"content-type: text/plain\r\n", _STATUS_LINES[status][9:])
        self._queue.append(exchange)
        self.pump()

    def _gone(self, exchange: Exchange) -> None:
        if exchange._timer is not None:
            exchange._timer.cancel()
        if exchange.on_gone is not None:
            exchange.on_gone()
            exchange.on_gone = None
        if exchange.reply is not None and exchange.reply.observer is not None:
            exchange.reply.observer.finished(time.monotonic_ns(), "disconnected")

    def idle_since(self, limit_ns: int) -> bool:
        return not self._queue and self._last_ns < limit_ns

    def stuck_since(self, limit_ns: int) -> bool:
        """Whether the client has read nothing since, of a reply or of the last one before the end."""
        return (self._paused or (self._closing and not self._queue)) and self._last_ns < limit_ns

    def is_left(self) -> bool:
        """Whether the client went away while nothing is read of it: then the event loop does not see it."""
        if not self._reading_paused or not _GONE or self._transport is None:
            return False
        raw = self._transport.get_extra_info("socket")
        if raw is None:
            return False
        poll = select.poll()
        poll.register(raw.fileno(), _GONE)
        return bool(poll.poll(0))

    def close(self) -> None:
        self._closing = True
        if self._transport is not None:
            self._transport.close()

    def _linger(self) -> None:
        """Close for writing alone, while the client sends: else it would see a reset, and no reply."""
        if self._transport is None or not self._transport.can_write_eof():
            self.close()
        else:
            self._transport.write_eof()

    def abort(self) -> None:
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    def _reset(self) -> None:
        """Close so that the client sees a reset, not an orderly end: linger 0 makes the kernel send RST."""
        if self._transport is not None:
            raw = self._transport.get_extra_info("socket")
            if raw is not None:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.abort()
