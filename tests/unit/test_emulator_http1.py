"""HTTP/1.1 on a transport that only remembers: framing, limits, pipelining, back-pressure, bad input."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from profiler.emulator.http1 import (
    MAX_BODY,
    MAX_DISCARDED,
    MAX_PIPELINED,
    Connection,
    Exchange,
    HttpReply,
    Server,
)
from profiler.emulator.scheduler import Timer


class Transport:
    def __init__(self, raw: socket.socket | None = None) -> None:
        self.sent = b""
        self.state = "open"
        self.reading = True
        self.raw = raw

    def write(self, data: bytes) -> None:
        assert self.state == "open"
        self.sent += data

    def close(self) -> None:
        self.state = "closed"

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.state = "closed for writing"

    def abort(self) -> None:
        self.state = "aborted"

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_extra_info(self, name: str) -> Any:
        return self.raw


class Scheduler:
    """Timers that fire when told."""

    def __init__(self) -> None:
        self.timers: list[tuple[int, Callable[[], None]]] = []

    def at(self, due_ns: int, callback: Callable[[], None]) -> Any:
        self.timers.append((due_ns, callback))
        return Timer(due_ns, callback)


class Watcher:
    def __init__(self) -> None:
        self.events: list[str] = []

    def first_byte(self, ns: int) -> None:
        self.events.append("first byte")

    def finished(self, ns: int, outcome: str) -> None:
        self.events.append(outcome)


def connect(application: Callable[[Exchange], None]) -> tuple[Connection, Transport]:
    connection = Server(application, Scheduler()).connection()  # type: ignore[arg-type]
    transport = Transport()
    connection.connection_made(transport)  # type: ignore[arg-type]
    return connection, transport


def echo(exchange: Exchange) -> None:
    exchange.send(HttpReply(200, b"x-method: %b\r\n" % exchange.method, exchange.path + b"|" + exchange.body))


def bodies(sent: bytes) -> list[bytes]:
    """The bodies of all responses with a Content-Length."""
    found = []
    while sent:
        head, _, rest = sent.partition(b"\r\n\r\n")
        if b"100 Continue" in head:
            sent = rest
            continue
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        found.append(rest[:length])
        sent = rest[length:]
    return found


def test_request_in_one_piece_and_in_single_bytes() -> None:
    data = b"POST /a?q=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
    connection, transport = connect(echo)
    connection.data_received(data)
    whole = transport.sent
    assert whole.startswith(b"HTTP/1.1 200 OK\r\nx-method: POST\r\ndate: ")
    assert bodies(whole) == [b"/a|hello"]
    connection, transport = connect(echo)
    for n in range(len(data)):
        connection.data_received(data[n : n + 1])
    assert bodies(transport.sent) == [b"/a|hello"]
    assert transport.state == "open"


def test_chunked_bodies_and_expect() -> None:
    connection, transport = connect(echo)
    connection.data_received(
        b"POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
    )
    assert transport.sent == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.data_received(b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\ntrailer: 1\r\n\r\n")
    assert bodies(transport.sent) == [b"/c|abcdefg"]


def test_head_and_http_1_0_and_connection_close() -> None:
    connection, transport = connect(echo)
    connection.data_received(b"HEAD /h HTTP/1.1\r\nHost: h\r\n\r\n")
    assert transport.sent.endswith(b"content-length: 3\r\n\r\n")
    assert transport.state == "open"
    for request in (b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"):
        connection, transport = connect(echo)
        connection.data_received(request)
        assert b"connection: close\r\n" in transport.sent
        assert transport.state == "closed"


async def test_pipelined_requests_are_answered_in_order() -> None:
    waiting: list[Exchange] = []
    connection, transport = connect(waiting.append)
    connection.data_received(b"".join(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % n for n in range(3)))
    for n in range(3):
        assert [exchange.path for exchange in waiting] == [b"/%d" % m for m in range(n + 1)]
        waiting[n].send(HttpReply(200, b"", b"answer %d" % n))
        await asyncio.sleep(0)
    assert bodies(transport.sent) == [b"answer 0", b"answer 1", b"answer 2"]


async def test_long_pipeline_stops_reading_until_it_is_half_empty() -> None:
    waiting: list[Exchange] = []
    connection, transport = connect(waiting.append)
    connection.data_received(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n" * (MAX_PIPELINED + 1))
    assert not transport.reading
    for n in range(MAX_PIPELINED + 1):
        waiting[n].send(HttpReply(200, b"", b"x"))
        await asyncio.sleep(0)
    assert transport.reading
    assert len(bodies(transport.sent)) == MAX_PIPELINED + 1


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"NONSENSE\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n", b"400 Bad Request"),
        (
            b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"400 Bad Request",
        ),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400 Bad Request"),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n", b"414 "),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * 70_000 + b"\r\n\r\n", b"431 "),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * 70_000, b"431 "),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999\r\n\r\n", b"413 "),
    ],
)
def test_bad_input_is_refused_and_the_connection_closed(request_: bytes, status: bytes) -> None:
    asked: list[Exchange] = []
    connection, transport = connect(asked.append)
    for start in range(0, len(request_), 4096):
        connection.data_received(request_[start : start + 4096])
    assert transport.sent.startswith(b"HTTP/1.1 " + status)
    assert transport.state == ("closed for writing" if status == b"413 " else "closed")
    assert asked == []


def test_a_client_that_sends_too_much_may_finish_and_read_why_but_not_for_ever() -> None:
    connection, transport = connect(echo)
    connection.data_received(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999\r\n\r\n")
    sent = transport.sent
    piece = bytes(2**20)
    for _ in range(MAX_DISCARDED // len(piece)):
        connection.data_received(piece)
    assert (transport.state, transport.sent) == ("closed for writing", sent)
    connection.data_received(piece)
    assert transport.state == "aborted"


def test_long_body_does_not_count_as_a_head() -> None:
    body = b"b" * 200_000
    head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 200000\r\n\r\n"
    connection, transport = connect(echo)
    connection.data_received(head)
    connection.data_received(body)
    connection.data_received(head + body)
    assert bodies(transport.sent) == [b"/|" + body] * 2
    assert transport.state == "open"


async def test_bad_request_behind_a_good_one_is_refused_in_its_turn() -> None:
    waiting: list[Exchange] = []
    connection, transport = connect(waiting.append)
    connection.data_received(b"GET / HTTP/1.1\r\nHost: h\r\n\r\nNONSENSE\r\n\r\n")
    assert transport.sent == b""
    waiting[0].send(HttpReply(200, b"", b"fine"))
    await asyncio.sleep(0)
    assert transport.sent.startswith(b"HTTP/1.1 200 OK")
    assert b"HTTP/1.1 400 Bad Request" in transport.sent
    assert transport.state == "closed"


def test_upgrade_is_not_taken_and_the_request_answered() -> None:
    connection, transport = connect(echo)
    connection.data_received(
        b"GET /u HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    )
    assert bodies(transport.sent) == [b"/u|"]
    assert transport.state == "closed"


def test_streams_are_chunked_and_end_as_told() -> None:
    watcher = Watcher()

    def stream(exchange: Exchange) -> None:
        ending: Any = exchange.path[1:].decode()
        exchange.send(
            HttpReply(200, b"", frames=[(0, b"one"), (0, b"twelve bytes")], ending=ending, observer=watcher)
        )

    connection, transport = connect(stream)
    connection.data_received(b"GET /complete HTTP/1.1\r\nHost: h\r\n\r\n")
    assert transport.sent.endswith(
        b"transfer-encoding: chunked\r\n\r\n3\r\none\r\nc\r\ntwelve bytes\r\n0\r\n\r\n"
    )
    assert (transport.state, watcher.events) == ("open", ["first byte", "complete"])
    connection, transport = connect(stream)
    connection.data_received(b"GET /cut HTTP/1.1\r\nHost: h\r\n\r\n")
    assert transport.sent.endswith(b"c\r\ntwelve bytes\r\n")
    assert (transport.state, watcher.events[2:]) == ("closed", ["first byte", "cut"])
    connection, transport = connect(stream)
    connection.data_received(b"GET /complete HTTP/1.0\r\n\r\n")
    assert transport.sent.endswith(b"\r\n\r\nonetwelve bytes")
    assert b"chunked" not in transport.sent


def test_open_stream_goes_on_until_it_is_ended_and_drops_what_would_come_after() -> None:
    waiting: list[Exchange] = []
    connection, transport = connect(waiting.append)
    connection.data_received(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    watcher, told = Watcher(), list[int]()

    def last(now: int) -> bytes:
        told.append(now)
        return b"last"

    later = time.monotonic_ns() + 3600 * 10**9
    reply = HttpReply(200, b"", frames=[(0, b"")], open=True, observer=watcher)
    waiting[0].send(reply)
    head, _, body = transport.sent.partition(b"\r\n\r\n")
    assert (b"transfer-encoding: chunked" in head, body) == (True, b"")  # the head alone, and no last chunk
    assert reply.frames is not None
    reply.frames += [(1, b"due"), (later, b"too late")]
    waiting[0].send(reply)
    assert transport.sent.endswith(b"\r\n\r\n3\r\ndue\r\n")
    before = time.monotonic_ns()
    waiting[0].end_stream(before, last)
    assert transport.sent.endswith(b"due\r\n4\r\nlast\r\n0\r\n\r\n")
    assert before <= told[0] <= time.monotonic_ns()
    assert watcher.events == ["first byte", "complete"]
    assert transport.state == "open"


def test_reply_may_say_when_it_was_sent_and_be_replaced_before_that() -> None:
    waiting: list[Exchange] = []
    connection, transport = connect(waiting.append)
    connection.data_received(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")

    def stamped(reply: HttpReply, now: int) -> None:
        reply.headers += b"x-now: %d\r\n" % now
        reply.body = b"%d" % now

    later = time.monotonic_ns() + 3600 * 10**9
    waiting[0].send(HttpReply(200, b"", due_ns=later, at_sending=stamped))
    assert transport.sent == b""
    waiting[0].send(HttpReply(200, b"", due_ns=1, at_sending=stamped))
    (body,) = bodies(transport.sent)
    assert b"x-now: %b\r\n" % body in transport.sent
    assert int(body) <= time.monotonic_ns()


def test_stream_waits_while_the_client_does_not_read() -> None:
    connection, transport = connect(
        lambda exchange: exchange.send(HttpReply(200, b"", frames=[(0, b"a"), (0, b"b")]))
    )
    connection.pause_writing()
    connection.data_received(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert transport.sent == b""
    connection.resume_writing()
    assert transport.sent.endswith(b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n")


def test_client_that_leaves_is_noticed_by_whoever_waits() -> None:
    watcher = Watcher()
    gone: list[str] = []

    def wait(exchange: Exchange) -> None:
        exchange.on_gone = lambda: gone.append("gone")
        if exchange.path == b"/answered":
            exchange.send(HttpReply(200, b"", b"later", due_ns=1 << 62, observer=watcher))

    for path in (b"/answered", b"/open"):
        connection, _ = connect(wait)
        connection.data_received(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % path)
        connection.connection_lost(None)
    assert gone == ["gone", "gone"]
    assert watcher.events == ["disconnected"]


def test_application_that_fails_answers_500(caplog: pytest.LogCaptureFixture) -> None:
    def fail(exchange: Exchange) -> None:
        raise RuntimeError("broken")

    connection, transport = connect(fail)
    connection.data_received(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert transport.sent.startswith(b"HTTP/1.1 500 ")
    assert "the emulator failed on GET /" in caplog.text


def test_idle_connections_are_swept() -> None:
    server = Server(echo, Scheduler())  # type: ignore[arg-type]
    connection, transport = server.connection(), Transport()
    connection.connection_made(transport)  # type: ignore[arg-type]
    server.sweep()
    assert transport.state == "open"
    assert connection.idle_since(1 << 62)
    connection.connection_lost(None)
    assert server.connections == set()


def seen(data: bytes) -> dict[bytes, bytes]:
    asked: list[Exchange] = []
    connection, _ = connect(asked.append)
    connection.data_received(data)
    return asked[0].headers


def test_headers_that_say_who_asks_are_never_the_last_of_several() -> None:
    several = b"GET / HTTP/1.1\r\nHost: evil\r\nhOst: localhost\r\nOrigin: a\r\nOrigin: b\r\n\r\n"
    assert seen(several) == {b"host": b"evil, localhost", b"origin": b"a, b"}
    assert seen(b"GET / HTTP/1.1\r\n\r\n") == {b"host": b""}  # HTTP/1.1 demands one
    assert seen(b"GET / HTTP/1.0\r\n\r\n") == {}


def test_trailers_replace_no_header() -> None:
    chunked = (
        b"POST / HTTP/1.1\r\nHost: evil\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nHost: localhost\r\n\r\n"
    )
    assert seen(chunked)[b"host"] == b"evil"


LARGE = b"b" * 1_000_000


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Circles stay: what is gone is gone at once, not when the collector comes by."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    "when", ["in its head", "in its body", "while it waits", "while it streams", "after it"]
)
def test_client_that_leaves_leaves_nothing_behind(when: str) -> None:
    def exchanges() -> int:
        # Not `isinstance`, which asks objects that another test made for their `__class__`.
        return sum(issubclass(type(one), Exchange) for one in gc.get_objects())

    def answer(exchange: Exchange) -> None:
        if when == "while it streams":
            exchange.send(HttpReply(200, b"", frames=[(0, b"one"), (1 << 62, b"two")]))
        elif when == "after it":
            exchange.send(HttpReply(200, b"", b"done"))

    before = exchanges()
    server = Server(answer, Scheduler())  # type: ignore[arg-type]
    connection, transport = server.connection(), Transport()
    connection.connection_made(transport)  # type: ignore[arg-type]
    head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2000000\r\n\r\n"
    connection.data_received(head[:20] if when == "in its head" else head + LARGE)
    if when not in ("in its head", "in its body"):
        connection.data_received(LARGE)
    left = weakref.ref(connection)
    assert exchanges() - before == (when.startswith("while"))
    connection.connection_lost(None)
    del connection
    # The scheduler's timer, which is cancelled, is all that may know of it until its time comes.
    server.scheduler.timers.clear()  # type: ignore[attr-defined]
    assert (left(), exchanges() - before, server.connections) == (None, 0, set())


def test_body_is_let_go_as_soon_as_it_has_been_read() -> None:
    """A reply may be due in ten minutes, and a connection may stay open for two without another request."""
    asked: list[Exchange] = []
    sizes: list[int] = []

    def take(exchange: Exchange) -> None:
        sizes.append(len(exchange.body))
        asked.append(exchange)

    connection, _ = connect(take)
    connection.data_received(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n" + LARGE)
    assert sizes == [1_000_000]
    assert asked[0].body == b""
    assert connection._body == b""


def test_body_in_many_pieces_takes_no_more_than_its_size() -> None:
    connection, transport = connect(
        lambda exchange: exchange.send(HttpReply(200, b"", b"%d" % len(exchange.body)))
    )
    connection.data_received(
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 5_000
    )
    assert connection._body == b"x" * 5_000
    connection.data_received(b"0\r\n\r\n")
    assert bodies(transport.sent) == [b"5000"]


def test_body_of_many_chunks_is_refused_beyond_the_limit() -> None:
    connection, transport = connect(echo)
    connection.data_received(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunk = b"400000\r\n" + b"x" * 0x400000 + b"\r\n"
    for _ in range(MAX_BODY // 0x400000 + 1):
        connection.data_received(chunk)
    assert transport.sent.startswith(b"HTTP/1.1 413 ")
    assert connection._body == b""


async def test_bodies_that_wait_for_their_turn_are_bounded() -> None:
    waiting: list[Exchange] = []
    connection, transport = connect(waiting.append)
    body = b"b" * (MAX_BODY // 2 + 1)
    request = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    for _ in range(2):  # the first has been read
        connection.data_received(request)
    assert transport.reading
    connection.data_received(request)
    assert not transport.reading
    for n in range(3):
        waiting[n].send(HttpReply(200, b"", b"x"))
        await asyncio.sleep(0)
    assert transport.reading
    assert bodies(transport.sent) == [b"x"] * 3


def test_client_that_leaves_while_nothing_is_read_of_it_is_swept() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        server = Server(lambda exchange: None, Scheduler())  # type: ignore[arg-type]
        connection, transport = server.connection(), Transport(ours)
        connection.connection_made(transport)  # type: ignore[arg-type]
        connection.data_received(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n" * (MAX_PIPELINED + 1))
        assert not transport.reading
        server.sweep()
        assert transport.state == "open"
        theirs.close()
        server.sweep()
        assert transport.state == "aborted"


def test_client_that_does_not_read_its_reply_is_swept_in_time() -> None:
    server = Server(echo, Scheduler())  # type: ignore[arg-type]
    connection, transport = server.connection(), Transport()
    connection.connection_made(transport)  # type: ignore[arg-type]
    connection.pause_writing()
    connection.data_received(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    server.sweep()
    assert transport.state == "open"
    assert connection.stuck_since(1 << 62)
    connection.resume_writing()
    assert not connection.stuck_since(1 << 62)
    connection.close()  # the end of it may never be read
    assert connection.stuck_since(1 << 62)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("framing", "sent"),
    [
        (b"content-length: 5\r\n", b"hello"),
        (b"transfer-encoding: chunked\r\n", b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"),
    ],
)
def test_the_body_of_a_request_that_asks_for_http2_is_read(
    at_once: bool, framing: bytes, sent: bytes
) -> None:
    connection, transport = connect(echo)
    head = b"POST /a?b HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    request = head + b"HTTP2-Settings: AAEAAEAA\r\n" + framing + b"\r\n" + sent
    for data in [request] if at_once else [request[n : n + 7] for n in range(0, len(request), 7)]:
        connection.data_received(data)
    assert bodies(transport.sent) == [b"/a|hello"]
    connection.data_received(b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n")
    assert bodies(transport.sent) == [b"/a|hello", b"/next|"]
