"""What came in place of an answer: its bounds, and the one word that tells what it was."""

from __future__ import annotations

import gzip
import zlib

import aiohttp
import httpx2
import pytest
from aiohttp.http_exceptions import BadHttpMessage, BadStatusLine, LineTooLong, TransferEncodingError
from yarl import URL

from profiler.providers.connections import MOST_BYTES, TooLarge, transport_error_type, transport_words
from profiler.providers.endpoint import Endpoint, client_options


def caused(error: BaseException, cause: BaseException) -> BaseException:
    """The error as it is when it is raised from that one."""
    error.__cause__ = cause
    return error


def client_error(message: str) -> aiohttp.ClientResponseError:
    """As aiohttp raises it for a head that it cannot read."""
    url = URL("http://127.0.0.1:1/")
    return aiohttp.ClientResponseError(
        aiohttp.RequestInfo(url, "POST", None, url),  # type: ignore[arg-type]
        (),
        status=400,
        message=message,
    )


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (caused(client_error("Got more than 8190 bytes"), LineTooLong(b"x" * 9000, 8190)), "not_http"),
        (caused(client_error("Too many headers"), BadHttpMessage("Too many headers")), "not_http"),
        (caused(client_error("Bad status line"), BadStatusLine("SSH-2.0")), "not_http"),
        (caused(httpx2.ReadError("cut"), TransferEncodingError("not a size")), "not_http"),
        (httpx2.RemoteProtocolError("illegal header line"), "not_http"),
        (httpx2.RemoteProtocolError("Server disconnected without sending a response."), "reset"),
        (caused(httpx2.ReadError("cut"), aiohttp.ClientPayloadError("not completed")), "reset"),
        (httpx2.DecodingError("incorrect header check"), "undecodable"),
        (caused(httpx2.TransportError("x"), TooLarge()), "too_large"),
        (httpx2.ReadTimeout("slow"), "timeout"),
    ],
)
def test_one_word_tells_what_came(error: BaseException, kind: str) -> None:
    assert transport_error_type(error) == kind


def test_words_for_a_reply_that_is_too_large_name_the_bound() -> None:
    words = transport_words(TooLarge(), "127.0.0.1:1")
    assert words == "127.0.0.1:1: its answer is longer than 32 MiB, and was not read on"


ENCODED = {
    "gzip": gzip.compress(b" " * (MOST_BYTES + 1), 1),
    "deflate": zlib.compress(b" " * (MOST_BYTES + 1), 1),
    "identity": b" " * (MOST_BYTES + 1),
}


def client_of(body: bytes, encoding: str) -> httpx2.AsyncClient:
    """A client as ours are made, of a server that answers with this body."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-encoding": encoding}, stream=Body(body))

    options = client_options(Endpoint.parse("http://127.0.0.1:1"))
    return httpx2.AsyncClient(transport=httpx2.MockTransport(answer), **options)


async def count(response: httpx2.Response, pieces: list[int]) -> None:
    async for piece in response.aiter_bytes():
        pieces += [len(piece)]


@pytest.mark.parametrize("encoding", ENCODED)
async def test_reading_stops_at_the_bound_whatever_it_came_as(encoding: str) -> None:
    pieces: list[int] = []
    async with client_of(ENCODED[encoding], encoding) as client:
        with pytest.raises(TooLarge):
            await client.get("http://127.0.0.1:1/")
        async with client.stream("GET", "http://127.0.0.1:1/") as response:
            with pytest.raises(TooLarge):
                await count(response, pieces)
    assert 0 < sum(pieces) <= MOST_BYTES
    assert max(pieces) <= 2**20  # nothing larger was in memory at once


async def test_reply_as_large_as_the_bound_is_read() -> None:
    async with client_of(ENCODED["identity"][1:], "identity") as client:
        assert len((await client.get("http://127.0.0.1:1/")).content) == MOST_BYTES


class Body(httpx2.AsyncByteStream):
    """A body in pieces of 16 KiB, as the SDKs' transport gives it."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def __aiter__(self):  # type: ignore[no-untyped-def]
        for start in range(0, len(self._data), 16384):
            yield self._data[start : start + 16384]
