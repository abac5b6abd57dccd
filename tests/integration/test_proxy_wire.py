"""What the proxy does to bytes: nothing, as far as HTTP lets it. Against a server of the tests' own."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import os
import socket
import ssl
from pathlib import Path

import orjson
import pytest
import trustme

from profiler.proxy.coding import decoder
from profiler.proxy.routes import Upstream
from profiler.proxy.seen import Exchange
from profiler.proxy.server import tls_context
from profiler.proxy.upstream import UpstreamConnection
from tests.integration.proxied import WAIT, Proxied, Seen, Wire, proxied

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
GET = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def echo(wire: Wire) -> None:
    """Answers each request with its own bytes, head and body."""
    while True:
        head, body = await wire.message()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(head) + len(body)))
        await wire.send(head + body)


async def always(wire: Wire, answer: bytes) -> None:
    while True:
        await wire.message()
        await wire.send(answer)


def answering(answer: bytes):  # type: ignore[no-untyped-def]
    return lambda wire: always(wire, answer)


async def test_heads_go_on_as_they_came_but_for_host_and_what_is_of_one_connection() -> None:
    async with proxied(echo, specs=("http://127.0.0.1:{port}/base/",)) as proxy:
        _, body = await proxy.ask(
            b"POST /v1/x?a=1&a=%20 HTTP/1.1\r\nhOST: localhost:9\r\nX-Twice: 1\r\n"
            b"Authorization: Bearer sk-1\r\nx-TWICE: 2\r\nEmpty:\r\n"
            b"Connection: keep-alive, X-Gone\r\nX-Gone: 1\r\nKeep-Alive: timeout=5\r\n"
            b"Proxy-Authorization: Basic eA==\r\nAccept-Encoding: gzip, br\r\nContent-Length: 3\r\n\r\nabc"
        )
        assert body == (
            b"POST /base/v1/x?a=1&a=%%20 HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nX-Twice: 1\r\n"
            b"Authorization: Bearer sk-1\r\nx-TWICE: 2\r\nEmpty: \r\nAccept-Encoding: gzip, br\r\n"
            b"Content-Length: 3\r\n\r\nabc" % proxy.upstream_port
        )


async def test_response_heads_go_on_as_they_came() -> None:
    answer = (
        b"HTTP/1.1 418 I am a Teapot\r\nSet-Cookie: a\r\nX-lower: 1\r\nset-cookie: b\r\n"
        b"Connection: close, X-Own\r\nX-Own: 1\r\nRetry-After: 2\r\n"
        b"Location: http://127.0.0.1:%d/other\r\nContent-Length: 1\r\n\r\n!"
    )

    async def handler(wire: Wire) -> None:
        await wire.message()
        await wire.send(answer % wire.writer.get_extra_info("sockname")[1])

    async with proxied(handler, specs=("/p=http://127.0.0.1:{port}",)) as proxy:
        wire = await proxy.connect()
        await wire.send(b"GET /p/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head, body = await wire.message()
        assert (head, body) == (
            b"HTTP/1.1 418 I am a Teapot\r\nSet-Cookie: a\r\nX-lower: 1\r\nset-cookie: b\r\n"
            b"Retry-After: 2\r\nLocation: /p/other\r\nContent-Length: 1\r\n\r\n",
            b"!",
        )
        await wire.send(b"GET /p/x HTTP/1.1\r\nHost: localhost\r\n\r\n")  # the client's connection goes on
        assert (await wire.message())[1] == b"!"


@pytest.mark.parametrize("framing", ["length", "chunked", "to the end"])
async def test_bodies_are_byte_identical_however_they_are_framed(framing: str) -> None:
    sent = os.urandom(3_000_000)
    got: list[bytes] = []

    async def handler(wire: Wire) -> None:
        while True:
            _, body = await wire.message()
            got.append(body)
            if framing == "to the end":
                await wire.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + sent)
                return
            await wire.send(b"HTTP/1.1 200 OK\r\n" + framed(sent))

    def framed(data: bytes) -> bytes:
        if framing == "length":
            return b"Content-Length: %d\r\n\r\n%b" % (len(data), data)
        chunks = [data[at : at + 70_001] for at in range(0, len(data), 70_001)]
        parts = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(one), one) for one in chunks)
        return b"Transfer-Encoding: chunked\r\n\r\n" + parts + b"0\r\n\r\n"

    def framed_request(data: bytes) -> bytes:
        return (
            framed(data).replace(b";ext=1", b"") if framing != "to the end" else b"Content-Length: 0\r\n\r\n"
        )

    async with proxied(handler) as proxy:
        wire = await proxy.connect()
        for _ in range(2):
            sending = asyncio.create_task(wire.send(POST + framed_request(sent)))
            _, body = await wire.message()
            await sending
            assert hashlib.sha256(body).digest() == hashlib.sha256(sent).digest()
        expected = b"" if framing == "to the end" else sent
        assert [hashlib.sha256(one).digest() for one in got] == [hashlib.sha256(expected).digest()] * 2
        assert len(proxy.accepted) == (2 if framing == "to the end" else 1)
        first, second = await proxy.seen.exchanges(2)
        assert first.response.whole() == sent
        assert first.request.whole() == expected
        assert (first.reused, second.reused) == (False, framing != "to the end")


async def test_each_chunk_is_delivered_before_the_next_is_sent() -> None:
    """In both directions; in either each side waits for the other."""
    step = asyncio.Queue[bytes]()

    async def handler(wire: Wire) -> None:
        await wire.head()
        for number in range(5):
            assert await wire.chunk() == b"up %d" % number
            step.put_nowait(b"next")
        assert await wire.chunk() == b""
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(5):
            await wire.send(b"6\r\ndown %d\r\n" % number)
            assert await asyncio.wait_for(step.get(), WAIT) == b"got it"
        await wire.send(b"0\r\n\r\n")

    async with proxied(handler) as proxy:
        wire = await proxy.connect()
        await wire.send(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        for number in range(5):
            await wire.send(b"4\r\nup %d\r\n" % number)
            assert await asyncio.wait_for(step.get(), WAIT) == b"next"
        await wire.send(b"0\r\n\r\n")
        await wire.head()
        for number in range(5):
            assert await wire.chunk() == b"down %d" % number
            step.put_nowait(b"got it")
        assert await wire.chunk() == b""
        (exchange,) = await proxy.seen.exchanges(1)
        assert [piece.data for piece in exchange.response.pieces] == [
            b"down %d" % number for number in range(5)
        ]
        times = [piece.at_ns for piece in exchange.response.pieces]
        assert times == sorted(times)
        assert exchange.started_ns <= (exchange.request_ended_ns or 0) <= (exchange.sent_ns or 0)
        assert (exchange.sent_ns or 0) <= (exchange.head_ns or 0) <= times[0]
        assert times[-1] <= (exchange.ended_ns or 0)


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n"),
        (b"DELETE", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ],
)
async def test_responses_without_a_body_end_with_their_head(method: bytes, answer: bytes) -> None:
    async with proxied(answering(answer)) as proxy:
        wire = await proxy.connect()
        for _ in range(2):
            await wire.send(method + b" /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert await wire.head() == answer
        assert [one.outcome for one in await proxy.seen.exchanges(2)] == ["complete", "complete"]
        assert len(proxy.accepted) == 1


async def test_100_continue_and_early_hints_are_the_upstreams() -> None:
    async def handler(wire: Wire) -> None:
        head = await wire.head()
        assert b"Expect: 100-continue" in head
        await wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await wire.exactly(3) == b"abc"
        await wire.send(b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n" + OK)

    async with proxied(handler) as proxy:
        wire = await proxy.connect()
        await wire.send(POST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert await wire.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await wire.send(b"abc")
        assert await wire.head() == b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n"
        assert await wire.message() == (OK[:-2], b"ok")
        (exchange,) = await proxy.seen.exchanges(1)
        assert exchange.status == 200


async def test_an_http_10_client_gets_a_body_to_the_end_of_its_connection() -> None:
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: 1\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    async with proxied(answering(answer)) as proxy:
        wire = await proxy.connect()
        await wire.send(b"GET /v1/models HTTP/1.0\r\n\r\n")
        assert await wire.rest() == b"HTTP/1.1 200 OK\r\nX: 1\r\nConnection: close\r\n\r\nabc"


async def test_pipelined_requests_are_answered_in_order_one_after_another() -> None:
    asked: list[bytes] = []

    async def handler(wire: Wire) -> None:
        while True:
            _, body = await wire.message()
            asked.append(body)
            await asyncio.sleep(0.01)
            assert len(asked) == int(body)
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%b" % body)

    async with proxied(handler) as proxy:
        wire = await proxy.connect()
        await wire.send(b"".join(POST + b"Content-Length: 1\r\n\r\n%d" % number for number in range(1, 10)))
        assert [(await wire.message())[1] for _ in range(9)] == [b"%d" % number for number in range(1, 10)]


async def test_trailers_go_on_in_both_directions() -> None:
    got = asyncio.Queue[bytes]()

    async def handler(wire: Wire) -> None:
        await wire.head()
        while await wire.chunk():
            pass
        got.put_nowait(await wire.until(b"\r\n\r\n"))
        await wire.send(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
            b"1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n"
        )

    async with proxied(handler) as proxy:
        wire = await proxy.connect()
        await wire.send(POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nb\r\n0\r\nX-Up: 2\r\n\r\n")
        assert await asyncio.wait_for(got.get(), WAIT) == b"X-Up: 2\r\n\r\n"
        assert b"Trailer: X-Sum" in await wire.head()
        assert await wire.chunk() == b"a"
        assert await wire.until(b"\r\n\r\n") == b"0\r\nX-Sum: 1\r\n\r\n"


@pytest.mark.parametrize(("coding", "sent"), [(b"identity", b"chunked"), (b"gzip", b"gzip, chunked")])
async def test_a_body_that_only_the_connections_end_frames_is_framed_anew(coding: bytes, sent: bytes) -> None:
    async def handler(wire: Wire) -> None:
        await wire.message()
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: %b\r\n\r\nhello" % coding)

    async with proxied(handler) as proxy:
        head, body = await proxy.ask(GET)
        assert head == b"HTTP/1.1 200 OK\r\nTransfer-Encoding: %b\r\n\r\n" % sent
        assert body == b"hello"


async def test_a_server_that_frames_twice_is_framed_once() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"
    async with proxied(answering(answer)) as proxy:
        wire = await proxy.connect()
        await wire.send(GET)
        head, body = await wire.message()
        assert (head, body) == (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"ab")


async def test_a_client_that_goes_away_ends_the_request_to_the_upstream() -> None:
    begun, gone = asyncio.Event(), asyncio.Event()

    async def handler(wire: Wire) -> None:
        await wire.message()
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        begun.set()
        with contextlib.suppress(ConnectionError):
            assert await wire.rest() == b""
        gone.set()

    async with proxied(handler) as proxy:
        wire = await proxy.connect()
        await wire.send(GET)
        await wire.head()
        assert await wire.chunk() == b"a"
        wire.reset()
        await asyncio.wait_for(gone.wait(), WAIT)
        (exchange,) = await proxy.seen.exchanges(1)
        assert (exchange.outcome, exchange.status, exchange.response.whole()) == ("client gone", 200, b"a")
        assert proxy.server.in_flight == 0


@pytest.mark.parametrize("how", ["closed", "reset", "not HTTP", "no server"])
@pytest.mark.parametrize("api", ["openai", "anthropic", "mcp"])
async def test_an_upstream_that_dies_unanswered_is_a_502_in_the_apis_own_form(how: str, api: str) -> None:
    async def handler(wire: Wire) -> None:
        await wire.message()
        if how == "reset":
            wire.reset()
        elif how == "not HTTP":
            await wire.send(b"SSH-2.0-OpenSSH_9.6\r\n")
            await wire.rest()

    port = "1" if how == "no server" else "{port}"
    async with proxied(
        handler,
        specs=(f"openai=http://127.0.0.1:{port}", f"anthropic=http://127.0.0.1:{port}/x"),
        mcp=(f"http://127.0.0.1:{port}/mcp",),
    ) as proxy:
        path = {"openai": b"/v1/responses", "anthropic": b"/v1/messages", "mcp": b"/mcp"}[api]
        wire = await proxy.connect()
        await wire.send(b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}" % path)
        head, body = await wire.message()
        assert head.startswith(b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: application/json\r\n")
        told = orjson.loads(body)
        if api == "anthropic":
            assert (told["type"], told["error"]["type"]) == ("error", "api_error")
        elif api == "mcp":
            assert (told["jsonrpc"], told["id"], told["error"]["code"]) == ("2.0", None, -32000)
        else:
            assert told["error"]["type"] == "api_error"
        words = {
            "closed": "closed the connection before it answered",
            "reset": "before it answered",
            "not HTTP": "sent what is not HTTP/1.1",
            "no server": "cannot reach http://127.0.0.1:1: ",
        }[how]
        assert words in told["error"]["message"]
        assert words in proxy.said[0]
        (exchange,) = await proxy.seen.exchanges(1)
        assert (exchange.outcome, exchange.status) == ("upstream gone", None)
        assert words in exchange.note
        assert [event for event, _ in proxy.seen.events] == ["requested", "ended"]
        await wire.send(GET)  # the client's connection goes on
        assert (await wire.message())[0].startswith(b"HTTP/1.1 502")


@pytest.mark.parametrize(
    ("version", "answer", "arrives"),
    [
        (b"1.1", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"3\r\nabc\r\n"),
        (b"1.1", b"Content-Length: 9\r\n\r\nabc", b"abc"),
        (b"1.1", b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n", b""),
        (b"1.0", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", None),
    ],
    ids=["chunked", "length", "nonsense", "to the end"],
)
async def test_an_upstream_that_dies_in_the_middle_is_no_clean_end(
    version: bytes, answer: bytes, arrives: bytes | None
) -> None:
    die = asyncio.Event()

    async def handler(wire: Wire) -> None:
        await wire.message()
        await wire.send(b"HTTP/1.1 200 OK\r\n" + answer)
        await die.wait()

    async with proxied(handler) as proxy:
        wire = await proxy.connect()
        await wire.send(b"GET /v1/x HTTP/%b\r\nHost: localhost\r\n\r\n" % version)
        await wire.head()
        die.set()
        if arrives is None:  # where the end of the connection would be the end of the body
            with pytest.raises(ConnectionResetError):
                await wire.rest()
        else:
            assert await wire.rest() == arrives
        (exchange,) = await proxy.seen.exchanges(1)
        assert (exchange.outcome, exchange.status) == ("upstream gone", 200)


async def test_a_proxy_that_is_ended_in_the_middle_is_no_clean_end_either() -> None:
    async def handler(wire: Wire) -> None:
        await wire.message()
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await asyncio.sleep(WAIT)

    async with proxied(handler) as proxy:
        wire = await proxy.connect()
        await wire.send(b"GET /v1/x HTTP/1.0\r\nHost: localhost\r\n\r\n")
        await wire.until(b"abc")
        proxy.server.cut()
        with pytest.raises(ConnectionResetError):
            await wire.rest()


async def test_a_request_that_a_server_may_have_taken_is_never_sent_twice() -> None:
    """A connection from the pool dies while the request is on its way: only what does no harm goes again."""
    asked: list[bytes] = []

    async def handler(wire: Wire) -> None:
        head, _ = await wire.message()
        asked.append(head.split(b" ")[0])
        await wire.send(OK)
        head, _ = await wire.message()
        asked.append(head.split(b" ")[0])  # and it dies

    async with proxied(handler) as proxy:
        wire = await proxy.connect()
        for request, expected in (
            (GET, b"HTTP/1.1 200"),
            (POST + b"Content-Length: 0\r\n\r\n", b"HTTP/1.1 502"),  # on the first connection
            (GET, b"HTTP/1.1 200"),  # on a second one
            (GET, b"HTTP/1.1 200"),  # twice: that one dies, and a third answers
            (POST + b"Content-Length: 0\r\n\r\n", b"HTTP/1.1 502"),
            (GET, b"HTTP/1.1 200"),
            (b"DELETE /v1/files/1 HTTP/1.1\r\nHost: localhost\r\n\r\n", b"HTTP/1.1 502"),
        ):
            await wire.send(request)
            assert (await wire.message())[0].startswith(expected)
        assert asked == [b"GET", b"POST", b"GET", b"GET", b"GET", b"POST", b"GET", b"DELETE"]
        assert len(proxy.accepted) == 4


async def test_an_idle_connection_that_the_server_closed_is_not_taken() -> None:
    async def handler(wire: Wire) -> None:
        await wire.message()
        await wire.send(OK)

    async with proxied(handler) as proxy:
        wire = await proxy.connect()
        for _ in range(3):
            await wire.send(POST + b"Content-Length: 0\r\n\r\n")
            assert (await wire.message())[1] == b"ok"
        assert len(proxy.accepted) == 3


async def test_keep_alive_says_how_long_a_connection_is_kept() -> None:
    answer = b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1\r\nContent-Length: 2\r\n\r\nok"
    async with proxied(answering(answer)) as proxy:
        for _ in range(2):
            head, _ = await proxy.ask(GET)
            assert b"Keep-Alive" not in head
        assert len(proxy.accepted) == 2  # a second less than it says: none at all


async def test_an_answer_before_the_end_of_the_request_arrives() -> None:
    async def handler(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await wire.rest()

    async with proxied(handler) as proxy:
        wire = await proxy.connect()
        await wire.send(POST + b"Content-Length: 90000000\r\n\r\n" + bytes(1000))
        head, body = await wire.message()
        assert head.startswith(b"HTTP/1.1 413 Content Too Large\r\n")
        assert b"Connection: close\r\n" in head
        assert body == b"big"


async def test_a_websocket_is_tunnelled_and_counted() -> None:
    async def handler(wire: Wire) -> None:
        head = await wire.head()
        assert b"Connection: Upgrade\r\nUpgrade: websocket\r\n" in head
        assert b"Sec-WebSocket-Key: a\r\n" in head
        await wire.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhi"
        )
        assert await wire.exactly(6) == b"\x81\x04ping"
        await wire.send(b"\x81\x04pong")
        assert await wire.rest() == b"bye"

    async with proxied(handler) as proxy:
        wire = await proxy.connect()
        await wire.send(
            b"GET /v1/realtime HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: a\r\n\r\n\x81\x04"
        )
        head = await wire.head()
        assert head.startswith(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade"
        )
        assert await wire.exactly(2) == b"hi"
        await wire.send(b"ping")
        assert await wire.exactly(6) == b"\x81\x04pong"
        await wire.send(b"bye")
        wire.close()
        (exchange,) = await proxy.seen.exchanges(1)
        assert (exchange.status, exchange.outcome, exchange.note) == (101, "complete", "tunnelled")
        assert proxy.server.counts["tunnelled"] == 1


async def test_a_websocket_that_the_upstream_declines_is_answered_as_it_says() -> None:
    answer = b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno"
    async with proxied(answering(answer)) as proxy:
        head, body = await proxy.ask(
            b"GET /v1/realtime HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\n\r\n"
        )
        assert (head.split(b"\r\n")[0], body) == (b"HTTP/1.1 426 Upgrade Required", b"no")


async def test_http_2_by_upgrade_is_answered_in_http_11_and_by_prior_knowledge_refused_in_words() -> None:
    async with proxied(echo) as proxy:
        _, body = await proxy.ask(
            POST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
            b"Content-Length: 5\r\n\r\nhello"
        )
        assert body.endswith(b"\r\n\r\nhello")
        assert b"h2c" not in body
        assert b"HTTP2-Settings" not in body
        wire = await proxy.connect()
        await wire.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
        refusal = b""
        with contextlib.suppress(ConnectionError):
            refusal = await wire.rest()
        assert refusal[:9] == b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
        assert refusal.endswith(b"this proxy speaks HTTP/1.1, not HTTP/2: have the client ask for that")
        assert len(proxy.accepted) == 1


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        (b"CONNECT api.openai.com:443 HTTP/1.1\r\nHost: api.openai.com:443\r\n\r\n", 501, "no forward proxy"),
        (b"GET http://example.com/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "no forward proxy"),
        (b"GET /v1/models HTTP/1.1\r\nHost: attacker.example\r\n\r\n", 403, "attacker.example"),
        (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: b.example\r\n\r\n", 403, "not one host"),
        (
            b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nOrigin: https://a.example\r\n\r\n",
            403,
            "a.example",
        ),
        (b"GET /v1/models HTTP/1.1\r\n\r\n", 400, "no Host"),
        (
            b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            "HTTP/1.1",
        ),
        (b"nonsense\r\n\r\n", 400, "no request of HTTP/1.1"),
        (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX: %b\r\n\r\n" % (b"x" * 200_000), 431, "too large"),
        (b"GET /%b HTTP/1.1\r\nHost: localhost\r\n\r\n" % (b"x" * 200_000), 431, "too long"),
    ],
    # Not the requests: pytest puts a test's name into the environment, and some are longer than that may be.
    ids=lambda value: "request" if isinstance(value, bytes) else str(value),
)
async def test_what_is_no_request_for_an_upstream_is_refused_in_words(
    request_: bytes, status: int, words: str
) -> None:
    async with proxied(echo) as proxy:
        wire = await proxy.connect()
        with contextlib.suppress(ConnectionError):
            await wire.send(request_)
        head, body = await wire.message()
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert words in orjson.loads(body)["error"]["message"]
        assert words in proxy.said[0]
        assert proxy.accepted == []
        assert proxy.seen.events == []


async def test_hosts_that_are_allowed_and_addresses_are_answered() -> None:
    async with proxied(echo, allowed=("box.local",)) as proxy:
        for host in (b"box.local:8300", b"192.168.7.7:1", b"[::1]:8300", b"app.localhost", b"127.0.0.1"):
            head, _ = await proxy.ask(b"GET /v1/models HTTP/1.1\r\nHost: %b\r\n\r\n" % host)
            assert head.startswith(b"HTTP/1.1 200"), host


async def test_compressed_bodies_are_forwarded_as_they_are_and_can_be_read_along() -> None:
    text = b'data: {"choices": []}\n\n' * 500
    packed = gzip.compress(text)
    answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (
        len(packed),
        packed,
    )
    async with proxied(answering(answer)) as proxy:
        head, body = await proxy.ask(GET)
        assert b"Content-Encoding: gzip\r\n" in head
        assert body == packed
        (exchange,) = await proxy.seen.exchanges(1)
        decode = decoder(exchange.response_header(b"content-encoding") or b"")
        assert decode is not None
        assert decode(exchange.response.whole()) == text


async def stalled(proxy: Proxied, count: list[int]) -> int:
    """What `count` holds, once it has not grown for a while."""
    last, same = -1, 0
    async with asyncio.timeout(WAIT):
        while same < 20:
            same = same + 1 if count[0] == last else 0
            last = count[0]
            await asyncio.sleep(0.02)
    return last


async def test_nobody_reads_faster_than_the_other_side_takes_it() -> None:
    """50 MB down to a client that does not read, and up to a server that does not: little is taken."""
    piece = os.urandom(1_000_000)
    whole = hashlib.sha256(piece * 50).digest()
    written = [0]
    read = asyncio.Event()
    got: list[bytes] = []

    async def send_all(wire: Wire) -> None:
        for _ in range(50):
            await wire.send(piece)
            written[0] += len(piece)

    async def handler(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n")
        await send_all(wire)
        await wire.head()
        await read.wait()
        digest = hashlib.sha256()
        for _ in range(50):
            digest.update(await wire.exactly(1_000_000))
        got.append(digest.digest())
        await wire.send(OK)

    async with proxied(handler) as proxy:
        wire = await proxy.connect()
        await wire.send(GET)
        await wire.head()
        assert await stalled(proxy, written) < 30_000_000
        digest = hashlib.sha256()
        for _ in range(50):
            digest.update(await wire.exactly(1_000_000))
        assert digest.digest() == whole
        written[0] = 0
        await wire.send(POST + b"Content-Length: 50000000\r\n\r\n")
        sending = asyncio.create_task(send_all(wire))
        assert await stalled(proxy, written) < 30_000_000
        read.set()
        await sending
        assert (await wire.message())[1] == b"ok"
        assert got == [whole]
        down, up = await proxy.seen.exchanges(2)
        assert (down.response.kept, down.response.size, down.response.pieces) == (False, 50_000_000, [])
        assert (up.request.kept, up.request.size, up.request.pieces) == (False, 50_000_000, [])
        assert proxy.server.watching.held == 0


async def test_what_a_client_sent_before_there_was_a_connection_is_not_followed_by_more_than_is_taken() -> (
    None
):
    """The first write to a server that does not read is more than its socket takes."""
    sent = [0]

    async def handler(wire: Wire) -> None:
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(WAIT)

    async with proxied(handler) as proxy:
        connect = proxy.server.pool.connect
        held = asyncio.Event()

        async def slow(upstream: Upstream) -> UpstreamConnection:
            await held.wait()
            connection = await connect(upstream)
            assert connection.transport is not None
            raw = connection.transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            return connection

        proxy.server.pool.connect = slow  # type: ignore[method-assign]
        wire = await proxy.connect()

        async def upload() -> None:
            await wire.send(POST + b"Content-Length: 100000000\r\n\r\n")
            for _ in range(100):
                await wire.send(b"x" * 1_000_000)
                sent[0] += 1_000_000

        uploading = asyncio.create_task(upload())
        await stalled(proxy, sent)
        held.set()
        assert await stalled(proxy, sent) < 50_000_000
        uploading.cancel()


class Failing(Seen):
    def requested(self, exchange: Exchange) -> None:
        raise RuntimeError("sk-canary")

    responding = ended = requested


async def test_an_observer_that_fails_changes_nothing_and_is_said_once() -> None:
    async with proxied(echo, observer=Failing()) as proxy:
        for _ in range(3):
            head, body = await proxy.ask(POST + b"Content-Length: 2\r\n\r\nhi")
            assert head.startswith(b"HTTP/1.1 200")
            assert body.endswith(b"hi")
        async with asyncio.timeout(WAIT):
            while proxy.server.watching.failures < 6:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert len(proxy.said) == 1
        assert "RuntimeError, test_proxy_wire.py:" in proxy.said[0]
        assert "canary" not in proxy.said[0]


async def test_https_upstreams_are_checked_and_named(tmp_path: Path) -> None:
    authority = trustme.CA()
    names: list[str | None] = []
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server)
    server.sni_callback = lambda connection, name, context: names.append(name)
    file = str(tmp_path / "ca.pem")
    authority.cert_pem.write_to_path(file)
    for client, status in ((tls_context(file), b"200"), (tls_context(), b"502")):
        async with proxied(
            echo, specs=("https://localhost:{port}",), server_tls=server, client_tls=client
        ) as proxy:
            head, body = await proxy.ask(GET)
            assert head.startswith(b"HTTP/1.1 " + status)
            if status == b"502":
                assert "its certificate is refused" in orjson.loads(body)["error"]["message"]
                assert "--upstream-ca FILE" in orjson.loads(body)["error"]["message"]
            else:
                assert b"Host: localhost:%d\r\n" % proxy.upstream_port in body
    assert names[0] == "localhost"


@contextlib.asynccontextmanager
async def environments_proxy(answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n"):  # type: ignore[no-untyped-def]
    """A proxy as companies have it: its address, and the heads that came. What it accepts it tunnels."""
    heads: list[bytes] = []
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            head = await reader.readuntil(b"\r\n\r\n")
            heads.append(head)
            writer.write(answer)
            if head.startswith(b"CONNECT ") and b" 200 " in answer:
                to = head.split()[1].decode().rpartition(":")
                up_reader, up_writer = await asyncio.open_connection(to[0], int(to[2]))
                await asyncio.gather(pump(reader, up_writer), pump(up_reader, writer))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", heads
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=WAIT)


async def test_an_https_upstream_behind_a_proxy_is_asked_through_a_tunnel(tmp_path: Path) -> None:
    authority = trustme.CA()
    secure = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(secure)
    file = str(tmp_path / "ca.pem")
    authority.cert_pem.write_to_path(file)
    async with (
        environments_proxy() as (address, heads),
        proxied(
            echo,
            specs=("https://localhost:{port}",),
            server_tls=secure,
            client_tls=tls_context(file),
            through=f"http://us%40er:secret@{address}",
        ) as proxy,
    ):
        wire = await proxy.connect()
        for _ in range(2):  # the tunnel is kept
            await wire.send(GET)
            head, body = await wire.message()
            assert head.startswith(b"HTTP/1.1 200")
            assert body == b"GET /v1/models HTTP/1.1\r\nHost: localhost:%d\r\n\r\n" % proxy.upstream_port
        assert heads == [
            b"CONNECT localhost:%d HTTP/1.1\r\nHost: localhost:%d\r\n"
            b"Proxy-Authorization: Basic dXNAZXI6c2VjcmV0\r\n\r\n"
            % (proxy.upstream_port, proxy.upstream_port)
        ]
        first, second = await proxy.seen.exchanges(2)
        assert (first.reused, second.reused) == (False, True)


async def test_a_proxy_that_declines_is_a_502_that_names_it_and_no_secret() -> None:
    declined = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    async with (
        environments_proxy(declined) as (address, _),
        proxied(
            echo,
            specs=("https://localhost:{port}",),
            client_tls=tls_context(),
            through=f"http://user:canary@{address}",
        ) as proxy,
    ):
        head, body = await proxy.ask(GET)
        assert head.startswith(b"HTTP/1.1 502")
        said = orjson.loads(body)["error"]["message"]
        assert f"cannot reach https://localhost:{proxy.upstream_port} (through the proxy {address})" in said
        assert "it answered CONNECT with HTTP/1.1 407 Proxy Authentication Required" in said
        assert "canary" not in said + str(proxy.said)


async def test_an_http_upstream_behind_a_proxy_is_asked_of_the_proxy() -> None:
    async with (
        environments_proxy(OK) as (address, heads),
        proxied(echo, specs=("http://models.example/base",), through=address) as proxy,
    ):
        _, body = await proxy.ask(GET)
        assert body == b"ok"
        assert heads == [b"GET http://models.example/base/v1/models HTTP/1.1\r\nHost: models.example\r\n\r\n"]


async def test_a_host_is_reached_though_one_of_its_addresses_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # its queue of connections is full: the kernel answers no further one
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(silent.getsockname())
        async with proxied(echo, specs=("http://models.example",)) as proxy:
            ports = [silent.getsockname()[1], proxy.upstream_port]

            async def addresses(host: str, port: int, **_: object) -> list[object]:
                assert (host, port) == ("models.example", 80)
                return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", one)) for one in ports]

            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", addresses)
            _, body = await proxy.ask(GET)
            assert body == b"GET /v1/models HTTP/1.1\r\nHost: models.example\r\n\r\n"
