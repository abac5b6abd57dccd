"""Connections of clients: HTTP/1.1 on the llhttp parser.

Requests of a connection are forwarded one after another, in the order they came. Bodies go on piece by piece,
in the turn of the event loop in which they were read, in either direction; nobody reads faster than the other
side takes it.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import time
from collections import deque
from typing import TYPE_CHECKING, cast

import httptools

from profiler.proxy import heads
from profiler.proxy.forward import Answer, Forward
from profiler.proxy.heads import RequestHead
from profiler.proxy.seen import Exchange

if TYPE_CHECKING:
    from profiler.proxy.server import ProxyServer

MAX_HEAD = 128 * 1024
"""Bytes of a request's head."""

MOST_WAITING = 512 * 1024
"""Bytes of a body that are read before there is a connection to the upstream."""

LINGER_SECONDS = 3.0
"""How long the rest of a request is read, and dropped, after an answer that came before its end."""

_PREFACE = b"PRI * HTTP/2.0"
_NO_HTTP2 = b"this proxy speaks HTTP/1.1, not HTTP/2: have the client ask for that"
_GOAWAY = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + (
    (8 + len(_NO_HTTP2)).to_bytes(3, "big")
    + b"\x07\x00\x00\x00\x00\x00"
    + b"\x00\x00\x00\x00\x00\x00\x00\x0d"  # no stream was looked at; HTTP_1_1_REQUIRED
    + _NO_HTTP2
)
"""An empty SETTINGS frame, and GOAWAY with words."""

_GONE = getattr(select, "POLLRDHUP", 0)


class ClientConnection(asyncio.Protocol):
    """A connection of a client. The first of `_queue` is being forwarded, the others wait for their turn."""

    def __init__(self, server: ProxyServer, number: int) -> None:
        self.server = server
        self._number = number
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Forward] = deque()
        self._reading: Forward | None = None
        """The request that is being read, once its head is."""
        self._tunnel: Forward | None = None
        self._closing = False
        self._lingering = False
        self._fresh = True
        self._held_back = False
        self._upgrading = False
        self._again = False
        self._unreadable = False
        self.write_paused = False
        self._last_ns = time.monotonic_ns()
        self._begin()

    def _begin(self) -> None:
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._trailers: list[tuple[bytes, bytes]] = []
        self._head_size = 0
        self._started_ns = 0
        self._refusal: tuple[int, str] | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.server.connections.add(self)
        if self.server.closing:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self)
        self._transport = None
        self._closing = True
        queue, self._queue = list(self._queue), deque()
        for forward in queue:
            forward.client_gone()
        self._reading = self._tunnel = None
        del self._parser

    def data_received(self, data: bytes) -> None:
        if self._tunnel is not None:
            connection = self._tunnel.connection
            if connection is not None:
                connection.write(data)
            return
        if self._upgrading and self._queue:
            self._queue[-1].out.append(data)
            self._queue[0].send()
            return
        if self._unreadable or (self._closing and not self._lingering):
            return
        now = self._now = time.monotonic_ns()
        if self._fresh:
            self._fresh = False
            if self._is_other_protocol(data):
                return
        waiting = len(self._queue)
        self._feed(data)
        reading = self._reading
        if reading is None and self._url and len(self._queue) == waiting:
            self._head_size += len(data)
            if self._head_size > MAX_HEAD and not self._closing:
                self._refuse_unread(431, "the head of the request is too large")
        queue = self._queue
        transport = self._transport
        if not queue or transport is None or transport.is_closing():
            return
        if waiting == 0:
            self._last_ns = now
            queue[0].begin()
        else:
            queue[0].send()
        if len(queue) > 1:
            self._held_back = True
        elif reading is None or reading.connection is not None or _size(reading) < MOST_WAITING:
            return
        self.pause_reading()

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
            if not self._again:
                # A tunnel, if the upstream agrees. What the client sends before it knows goes there first.
                self._upgrading = True
                if rest and self._queue:
                    self._queue[-1].out.append(rest)
                return
            # The parser takes the body of a request that wants another protocol for that protocol already.
            self._again = False
            head = RequestHead(self._method, self._url, self._headers)
            version = self._version
            self._begin()
            self._parser = httptools.HttpRequestParser(self)
            self._feed(head.without_upgrade(version.encode()) + rest)
        except httptools.HttpParserError as error:
            if self._lingering:
                self.close()
                return
            if self._closing:
                return
            status, words = self._refusal or (400, f"this is no request of HTTP/1.1: {error}")
            if self._refusal is None and isinstance(error, httptools.HttpParserCallbackError):
                self.server.defect(error.__context__ or error)
                status, words = 502, "a defect of the profiler"
            self._refuse_unread(status, words)

    def _is_other_protocol(self, data: bytes) -> bool:
        if data[:14] == _PREFACE:
            self.server.counts["not_http"] += 1
            self.server.problem("a client asked for HTTP/2, which was refused: it has to speak HTTP/1.1")
            self.write(_GOAWAY)
            self.close()
            return True
        if data[:1] == b"\x16":
            self.server.counts["not_http"] += 1
            self.server.problem(
                "a client asked for https: this proxy is asked by http, as in http://127.0.0.1"
            )
            self.abort()
            return True
        return False

    def pause_writing(self) -> None:
        self.write_paused = True
        if self._queue and self._queue[0].connection is not None:
            self._queue[0].connection.pause_reading()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._queue and self._queue[0].connection is not None:
            self._queue[0].connection.resume_reading()

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        self._begin()
        self._started_ns = self._now

    def on_url(self, url: bytes) -> None:
        self._url += url
        if len(self._url) > MAX_HEAD // 2:
            self._refusal = 431, "the URL is too long"
            raise ValueError

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_size += len(name) + len(value)
        if self._head_size > MAX_HEAD:
            self._refusal = 431, "the head of the request is too large"
            raise ValueError
        (self._headers if self._reading is None else self._trailers).append((name, value))

    def on_headers_complete(self) -> None:
        if self._lingering:
            return
        parser = self._parser
        method = parser.get_method()
        upgrades = parser.should_upgrade()
        version = parser.get_http_version()
        if upgrades and method != b"CONNECT":
            wish = b"".join(value for name, value in self._headers if name.lower() == b"upgrade")
            if wish.strip().lower() != heads.WEBSOCKET:
                # HTTP/1.1 does as well: a server need not agree to another protocol (h2c).
                self._again = True
                self._method, self._version = method, version
                return
        head = RequestHead(method, self._url, self._headers)
        modern = version != "1.0"
        keep_alive = modern and not upgrades and parser.should_keep_alive() and not self.server.closing
        self._add(head, modern, keep_alive)

    def on_body(self, data: bytes) -> None:
        forward = self._reading
        if forward is None or forward.over or forward.own is not None:
            return
        if forward.head.chunked:
            forward.out += (b"%x\r\n" % len(data), data, b"\r\n")
        else:
            forward.out.append(data)
        forward.watching.keep(forward.exchange.request, self._now, data)

    def on_message_complete(self) -> None:
        if self._again:
            return
        forward, self._reading = self._reading, None
        if self._lingering:
            self.close()
            return
        if forward is None:
            return
        if forward.head.chunked:
            forward.out.append(heads.trailers(self._trailers) if self._trailers else b"0\r\n\r\n")
        forward.complete = True
        forward.exchange.request_ended_ns = self._now
        self._url = b""

    def _add(self, head: RequestHead, modern: bool, keep_alive: bool) -> None:
        """A request's head was read."""
        server = self.server
        target = head.target
        path = target.partition(b"?")[0]
        own = None
        upstream = None
        refused: tuple[int, str] | None = None
        if head.method == b"CONNECT" or not (target.startswith(b"/") or target == b"*"):
            refused = (
                501 if head.method == b"CONNECT" else 400,
                "this is no forward proxy (HTTP_PROXY, HTTPS_PROXY): set the base URL of the client instead",
            )
        elif head.host is None and modern:
            refused = 400, "the request has no Host"
        elif (words := server.refused(head)) is not None:
            refused = 403, words
        else:
            upstream = server.routes.find(target, head.anthropic)
            if (answer := server.own.get(path)) is not None and (upstream is None or not upstream.prefix):
                upstream = None
                if head.method in (b"GET", b"HEAD"):
                    own = answer
                else:
                    refused = 405, "this path of the proxy's own is only read"
            elif upstream is None or target == b"*":
                shown = path.decode("latin-1")[:200]
                refused = 404, f"nothing is forwarded at {shown}: see the paths that --upstream names"
        exchange = Exchange(
            number=next(server.numbers),
            connection=self._number,
            kind=upstream.kind if upstream is not None else "model",
            upstream=upstream.origin if upstream is not None else "",
            method=head.method,
            path=path,
            started_ns=self._started_ns,
            raw_request=head.headers,
        )
        forward = Forward(self, head, modern, keep_alive, upstream, exchange, server.watching)
        if own is not None:
            forward.own = own
        elif refused is not None:
            server.counts["refused"] += 1
            status, words = refused
            server.problem(f"refused: {words}")
            shape = "anthropic" if head.anthropic else "openai"
            body = heads.error_body(shape, status, f"toolcall-profiler proxy: {words}")
            forward.own = Answer(status, b"application/json", body)
        else:
            server.in_flight += 1
        self._queue.append(forward)
        self._reading = forward

    # Answers

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def tunnel(self, forward: Forward) -> None:
        """From here on everything goes to the upstream as it comes."""
        self.server.counts["tunnelled"] += 1
        self._tunnel = forward
        self.resume_reading()

    def finished(self, forward: Forward) -> None:
        """The exchange at the head of the queue has ended: the response was handed on whole."""
        if not self._queue or self._queue[0] is not forward:
            return
        self._queue.popleft()
        self._last_ns = time.monotonic_ns()
        if not forward.complete:
            # To close with something unread would be a reset, which may overtake the answer.
            self._linger()
        elif forward.close or (self.server.closing and not self._queue):
            self.close()
        elif self._queue:
            # Not from here: a long pipeline of instant answers would recurse.
            asyncio.get_running_loop().call_soon(self._next)
        else:
            self.resume_reading()

    def _next(self) -> None:
        if self._transport is None or not self._queue:
            return
        first = self._queue[0]
        if len(self._queue) == 1:
            self._held_back = False
            self.resume_reading()
        first.begin()

    def _linger(self) -> None:
        self._closing = self._lingering = True
        self._held_back = False
        self.resume_reading()
        asyncio.get_running_loop().call_later(LINGER_SECONDS, self.close)

    def _refuse_unread(self, status: int, words: str) -> None:
        """What came is no request: answered in its turn, then the connection is closed."""
        self.server.counts["not_http"] += 1
        self.server.problem(f"refused: {words}")
        reading, self._reading = self._reading, None
        self._closing = self._unreadable = True
        if reading is not None:
            # In the middle of a body: the upstream has a part of it, and no answer of ours can be right.
            self.abort()
            return
        head = RequestHead(b"GET", b"/", [])
        exchange = Exchange(next(self.server.numbers), self._number, "model", "", b"", b"", self._now)
        forward = Forward(self, head, True, False, None, exchange, self.server.watching)
        body = heads.error_body("openai", status, f"toolcall-profiler proxy: {words}")
        forward.own = Answer(status, b"application/json", body)
        self._queue.append(forward)
        self._begin()

    # Reading and ending

    def pause_reading(self) -> None:
        transport = self._transport
        if transport is not None and transport.is_reading():
            transport.pause_reading()

    def resume_reading(self) -> None:
        transport = self._transport
        upstream = self._queue[0].connection if self._queue else None
        held_back = self._held_back or (upstream is not None and upstream.write_paused)
        if transport is not None and not held_back and not transport.is_closing():
            transport.resume_reading()

    def idle_since(self, limit_ns: int) -> bool:
        return not self._queue and self._tunnel is None and self._last_ns < limit_ns

    def is_left(self) -> bool:
        """Whether the client went away while nothing is read of it: then the event loop does not see it."""
        transport = self._transport
        if transport is None or not _GONE or transport.is_reading() or transport.is_closing():
            return False
        raw = transport.get_extra_info("socket")
        if raw is None:
            return False
        poll = select.poll()
        poll.register(raw.fileno(), _GONE)
        return bool(poll.poll(0))

    def stop(self) -> None:
        """Close as soon as nothing is being forwarded."""
        if not self._queue:
            self.close()

    def close(self) -> None:
        """After what was written has gone."""
        self._closing = True
        self._lingering = False
        if self._transport is not None:
            self._transport.close()

    def cut(self, reset: bool) -> None:
        """End in the middle of a response, so that nobody takes it for whole.

        `reset`: the end of the connection would be its end. Else what was written before still arrives.
        """
        self._closing = True
        if reset and self._transport is not None:
            raw = self._transport.get_extra_info("socket")
            if raw is not None:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
        else:
            self.close()

    def break_off(self) -> None:
        """End at once, whatever is being forwarded, and so that nobody takes a part of it for whole."""
        if self._queue and self._queue[0].to_the_end:
            self.cut(reset=True)
        else:
            self.abort()

    def abort(self) -> None:
        self._closing = True
        if self._transport is not None:
            self._transport.abort()


def _size(forward: Forward) -> int:
    return sum(map(len, forward.out))
