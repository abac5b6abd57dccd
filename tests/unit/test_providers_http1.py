"""Exchanges of the lean client's HTTP/1.1, with bytes that come in any pieces; without sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from itertools import pairwise
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.errors import UsageError
from profiler.providers.connections import TooLarge
from profiler.providers.http1 import MOST_HEAD, Connection, Headers, Pool, Proxy
from profiler.testing import run_virtual

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nX-Request-Id: r1\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nt: 1\r\n\r\n"
UNTIL_END = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhello"


class Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.aborted = self.closed = False
        self.unsent = 0

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def write(self, data: bytes) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.aborted or self.closed


class Heard:
    """A receiver that keeps what it hears."""

    def __init__(self, says: Callable[[bytes], bool | None] = lambda data: None) -> None:
        self.events: list[str] = []
        self.status = 0
        self.headers: Headers = []
        self.body = b""
        self._says = says

    def sent(self) -> None:
        self.events.append("sent")

    def responded(self, status: int, headers: Headers) -> None:
        self.events.append("responded")
        self.status, self.headers = status, headers

    def received(self, data: bytes) -> bool | None:
        self.body += data
        return self._says(self.body)

    def ended(self) -> None:
        self.events.append("ended")


async def exchanged(
    pieces: Iterable[bytes],
    receiver: Any = None,
    *,
    ends: BaseException | bool | None = False,
    connection: Connection | None = None,
) -> tuple[Connection, Heard]:
    """One exchange in which the server sends these pieces, and then `ends` the connection, if not False."""
    receiver = receiver or Heard()
    if connection is None:
        connection = Connection()
        connection.connection_made(Transport())
    asking = asyncio.ensure_future(connection.exchange(b"POST / HTTP/1.1\r\n\r\n", receiver, 600))
    await asyncio.sleep(0)
    for piece in pieces:
        connection.data_received(piece)
    if ends is not False:
        connection.connection_lost(ends)  # type: ignore[arg-type]
    await asyncio.wait_for(asking, 60)
    return connection, receiver


def in_pieces(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(places)]


@given(st.lists(st.integers(0, 200)), st.sampled_from([OK, CHUNKED]))
def test_response_in_any_pieces_is_the_same(cuts: list[int], response: bytes) -> None:
    connection, heard = asyncio.run(exchanged(in_pieces(response, cuts)))
    assert (heard.status, heard.body) == (200, b"hello")
    assert heard.events == ["sent", "responded", "ended"]
    assert connection.reusable


async def test_names_of_headers_come_as_they_were_sent() -> None:
    _, heard = await exchanged([OK])
    assert heard.headers == [(b"content-length", b"5"), (b"X-Request-Id", b"r1")]


async def test_body_that_the_end_of_the_connection_ends() -> None:
    connection, heard = await exchanged([UNTIL_END], ends=None)
    assert (heard.body, heard.events[-1], connection.reusable) == (b"hello", "ended", False)


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 204 No\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]
)
async def test_response_without_a_body(head: bytes) -> None:
    connection, heard = await exchanged([head])
    assert (heard.body, heard.events[-1], connection.reusable) == (b"", "ended", True)


async def test_interim_responses_are_passed_over() -> None:
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    _, heard = await exchanged([early + OK])
    assert (heard.status, heard.events) == (200, ["sent", "responded", "ended"])
    assert (b"link", b"x") not in heard.headers


async def test_connection_serves_one_exchange_after_another() -> None:
    connection, _ = await exchanged([OK])
    again, heard = await exchanged([CHUNKED], connection=connection)
    assert (again, heard.body) == (connection, b"hello")
    assert connection.transport.written == b"POST / HTTP/1.1\r\n\r\n" * 2


@pytest.mark.parametrize(
    "closing",
    [b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", OK.replace(b"X-", b"connection: close\r\nX-")],
)
async def test_connection_that_the_server_will_close_is_not_used_again(closing: bytes) -> None:
    connection, _ = await exchanged([closing])
    assert not connection.reusable


@pytest.mark.parametrize(
    ("pieces", "ends", "kind", "words"),
    [
        ([b""], None, httpx2.RemoteProtocolError, "peer closed connection"),
        ([OK[:-2]], None, httpx2.RemoteProtocolError, "without sending all"),
        ([CHUNKED[:-7]], None, httpx2.RemoteProtocolError, "without sending all"),
        ([OK[:-2]], ConnectionResetError("reset"), ConnectionResetError, "reset"),
        ([b"SSH-2.0-OpenSSH\r\n\r\n"], False, httpx2.RemoteProtocolError, "Expected HTTP"),
        (
            [b"HTTP/1.1 200 OK\r\na: " + b"x" * MOST_HEAD + b"\r\n\r\n"],
            False,
            httpx2.RemoteProtocolError,
            "64 KiB",
        ),
        ([CHUNKED[:55] + b"zz\r\n"], False, httpx2.RemoteProtocolError, "chunk size"),
    ],
)
async def test_what_is_no_whole_response_fails_and_closes(
    pieces: list[bytes], ends: Any, kind: type[Exception], words: str
) -> None:
    connection = Connection()
    connection.connection_made(Transport())
    with pytest.raises(kind, match=words):
        await exchanged(pieces, ends=ends, connection=connection)
    assert connection.transport.aborted
    assert not connection.reusable


async def test_body_that_does_not_end_is_not_read_on() -> None:
    many = b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1024
    with pytest.raises(TooLarge):
        await exchanged([many, *[b"x" * 2**20] * 33])


async def test_what_the_receiver_raises_ends_the_exchange() -> None:
    def refuse(body: bytes) -> bool | None:
        raise ValueError("no room")

    connection = Connection()
    connection.connection_made(Transport())
    with pytest.raises(ValueError, match="no room"):
        await exchanged([OK], Heard(refuse), connection=connection)
    assert connection.transport.aborted


async def test_answer_that_changes_the_protocol_is_one() -> None:
    switching = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n\x00\x01"
    connection, heard = await exchanged([switching])
    assert (heard.status, heard.events) == (101, ["sent", "responded", "ended"])
    assert connection.transport.aborted


async def test_trailers_are_no_headers_and_bound_no_body() -> None:
    body = b"y" * (MOST_HEAD + 1)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nx-request-id: head\r\n\r\n"
    chunk = b"%x\r\n%b\r\n" % (len(body), body)
    connection, heard = await exchanged(
        [head + chunk + b"0\r\nx-request-id: trailer\r\nretry-after: 5\r\n\r\n"]
    )
    assert (heard.body, connection.reusable) == (body, True)
    assert [name for name, _ in heard.headers] == [b"Transfer-Encoding", b"x-request-id"]


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\ncontent-length: 5\n\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5  \r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nx: a\x01b\r\ncontent-length: 5\r\n\r\nhello",
    ],
    ids=["line feeds alone", "spaces after a chunk's size", "a header in two lines", "a control character"],
)
async def test_what_servers_get_wrong_is_put_up_with(response: bytes) -> None:
    _, heard = await exchanged([response])
    assert (heard.status, heard.body) == (200, b"hello")


@pytest.mark.parametrize("begun", [b"HTTP/1.1 200 OK\r\nx: ", b"HTTP/1.1 200 OK\r\nx", b""])
async def test_head_that_does_not_end_is_refused(begun: bytes) -> None:
    pieces = [begun, *[b"y" * 1000 if begun else b"HTTP/1.1 103 Early\r\na: b\r\n\r\n" * 40] * 70]
    with pytest.raises(httpx2.RemoteProtocolError, match="headers are longer than 64 KiB"):
        await exchanged(filter(None, pieces))


ALL_HERE = CHUNKED[:55]


@pytest.mark.parametrize(
    "end", [None, ConnectionResetError(104, "reset"), b"zz\r\n"], ids=["FIN", "RST", "garbage"]
)
async def test_end_of_a_connection_takes_nothing_from_a_reply_that_is_all_here(end: Any) -> None:
    pieces = [ALL_HERE, *([end] if isinstance(end, bytes) else [])]
    ends = False if isinstance(end, bytes) else end
    connection, heard = await exchanged(pieces, Heard(lambda body: True), ends=ends)
    assert (heard.body, connection.reusable) == (b"hel", False)


async def test_body_without_a_length_is_what_came_before_a_reset() -> None:
    _, heard = await exchanged([UNTIL_END], ends=ConnectionResetError(104, "reset"))
    assert (heard.body, heard.events[-1]) == (b"hello", "ended")


async def test_connection_whose_request_is_not_all_sent_is_not_used_again() -> None:
    connection = Connection()
    connection.connection_made(Transport())
    connection.pause_writing()
    connection.transport.unsent = 5
    connection, heard = await exchanged([OK], connection=connection)
    assert (heard.status, connection.reusable) == (200, False)
    assert heard.events == ["responded", "ended", "sent"]


def test_time_out_counts_from_the_last_piece() -> None:
    """Pieces at 0, 8 and 16 s, and no more; 10 s are allowed between two."""
    failed_at: list[float] = []

    async def main(_: Callable[[], int]) -> None:
        connection, loop = Connection(), asyncio.get_running_loop()
        connection.connection_made(Transport())
        began = loop.time()
        asking = asyncio.ensure_future(connection.exchange(b"x", Heard(), 10))
        for piece in (b"HTTP/1.1 200 OK\r\n", b"content-length: 5\r\n\r\n", b"h"):
            await asyncio.sleep(0)
            connection.data_received(piece)
            if piece != b"h":
                await asyncio.sleep(8)
        with pytest.raises(httpx2.ReadTimeout, match="within 10 s"):
            await asking
        failed_at.append(loop.time() - began)

    run_virtual(main)
    assert failed_at == [pytest.approx(26)]


async def test_pool_that_is_closed_keeps_no_connection() -> None:
    pool, connection = Pool("127.0.0.1", 1, None), Connection()
    connection.connection_made(Transport())
    pool.give(connection)
    assert await pool.take(1) is connection
    pool.close()
    pool.give(connection)
    assert connection.transport.closed


async def test_what_follows_a_reply_is_read_so_that_the_connection_can_be_used_again() -> None:
    connection, heard = await exchanged([CHUNKED[:-5], CHUNKED[-5:]], Heard(lambda body: True))
    assert (heard.body, connection.reusable) == (b"hel", True)


async def test_reply_of_which_no_more_is_wanted_ends_at_once() -> None:
    connection, heard = await exchanged([CHUNKED[:55]], Heard(lambda body: False))
    assert (heard.body, connection.reusable) == (b"hel", False)


async def test_cancelled_exchange_aborts_its_connection() -> None:
    connection = Connection()
    connection.connection_made(Transport())
    asking = asyncio.ensure_future(connection.exchange(b"x", Heard(), 600))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert connection.transport.aborted


async def test_receiver_is_called_in_the_context_of_the_exchange() -> None:
    mine: ContextVar[str] = ContextVar("mine", default="nobody's")
    seen: list[str] = []
    connection = Connection()
    connection.connection_made(Transport())

    async def ask(name: str) -> None:
        mine.set(name)
        receiver = Heard(lambda body: seen.append(mine.get()))  # type: ignore[func-returns-value]
        await connection.exchange(b"x", receiver, 600)

    for name in ("one", "two"):
        asking = asyncio.ensure_future(ask(name))
        await asyncio.sleep(0)
        connection.data_received(OK)
        await asking
    assert seen == ["one", "two"]


async def test_bytes_that_nobody_asked_for_end_an_idle_connection() -> None:
    connection, _ = await exchanged([OK])
    connection.data_received(b"HTTP/1.1 408 Late\r\n\r\n")
    assert not connection.reusable


async def test_request_that_the_server_is_slow_to_take_is_sent_when_it_is_taken() -> None:
    connection = Connection()
    connection.connection_made(Transport())
    connection.pause_writing()
    heard = Heard()
    asking = asyncio.ensure_future(connection.exchange(b"x", heard, 600))
    await asyncio.sleep(0)
    assert heard.events == []
    connection.resume_writing()
    for _ in range(3):
        await asyncio.sleep(0)
    assert heard.events == ["sent"]
    connection.data_received(OK)
    await asking


def test_proxy_whose_port_is_none_is_refused_without_its_url() -> None:
    with pytest.raises(UsageError, match=r"^the port of the proxy that the environment names is none$"):
        Proxy.parse("http://me:secret@proxy.example:abc")


def test_proxies() -> None:
    assert Proxy.parse("http://proxy.example:3128") == Proxy("proxy.example", 3128)
    assert Proxy.parse("proxy.example") == Proxy("proxy.example", 80)
    assert Proxy.parse("http://me:p%40ss@proxy.example:1").authorization == b"Basic bWU6cEBzcw=="
    for url in ("socks5://me:secret@proxy.example:1080", "https://proxy.example"):
        with pytest.raises(UsageError, match=r"speaks to proxies by http:// alone.*--client sdk") as refused:
            Proxy.parse(url)
        assert "secret" not in str(refused.value)
