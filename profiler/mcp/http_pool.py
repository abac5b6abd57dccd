"""The aiohttp session of an event loop, which all MCP sessions there share, and reading and writing on it."""

from __future__ import annotations

import asyncio
import functools
import ssl
import warnings
from typing import Any
from weakref import WeakKeyDictionary

import aiohttp

from profiler.mcp.lean import Exchange
from profiler.providers.connections import MOST_BYTES
from profiler.providers.endpoint import Tls
from profiler.records import Clock

CONNECT_SECONDS = 30.0

IDLE_SECONDS = 4.0
"""How long a connection is kept: many servers close it after five, and a request may cross with that."""

MOST_ERROR_BYTES = 65_536
"""Bytes of a refusal's body that are read; the connection of a longer one is closed."""

ERROR_SECONDS = 5.0
"""How long the body of a refusal may take."""

LARGE_BYTES = 2**20


class Pool:
    """The aiohttp session of an event loop, and how many MCP sessions use it."""

    def __init__(self) -> None:
        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(_connected)
        trace.on_request_headers_sent.append(_sent)
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            trace_configs=[trace],
        )
        # aiohttp silently sends a GET or a DELETE again when a kept-alive connection turns out dead.
        self.session._retry_connection = False
        self.users = 0


_pools: WeakKeyDictionary[asyncio.AbstractEventLoop, Pool] = WeakKeyDictionary()


def join_pool() -> Pool:
    loop = asyncio.get_running_loop()
    pool = _pools.get(loop)
    if pool is None:
        pool = _pools[loop] = Pool()
    pool.users += 1
    return pool


async def leave_pool(pool: Pool) -> None:
    pool.users -= 1
    if pool.users <= 0:
        loop = asyncio.get_running_loop()
        if _pools.get(loop) is pool:
            del _pools[loop]
        await pool.session.close()


class Sent:
    """What aiohttp's trace tells of one request. `limit` is rescheduled when it is sent, if there is one."""

    __slots__ = ("clock", "exchange", "limit", "seconds")

    def __init__(self, exchange: Exchange, clock: Clock) -> None:
        self.exchange = exchange
        self.clock = clock
        self.limit: asyncio.Timeout | None = None
        self.seconds = 0.0


async def _connected(session: Any, context: Any, params: Any) -> None:
    sent = context.trace_request_ctx
    if sent is not None:
        sent.exchange.new_connection = True


async def _sent(session: Any, context: Any, params: Any) -> None:
    sent = context.trace_request_ctx
    if sent is None:
        return
    exchange = sent.exchange
    exchange.posted_ns = sent.clock()
    if exchange.new_connection is None:
        exchange.new_connection = False
    if sent.limit is not None:
        sent.limit.reschedule(asyncio.get_running_loop().time() + sent.seconds)


@functools.cache
def tls_context(file: str | None, directories: str | None) -> ssl.SSLContext:
    return Tls().context()


def payload(body: bytes) -> Any:
    """A body, without aiohttp's warning of a large one: to write it in pieces would cost more."""
    if len(body) <= LARGE_BYTES:
        return body
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        return aiohttp.BytesPayload(body)


class TooLong(ValueError):
    """An answer is larger than `MOST_BYTES`."""

    def __init__(self) -> None:
        super().__init__(f"its answer is longer than {MOST_BYTES // 2**20} MiB, and was not read on")


async def whole(response: aiohttp.ClientResponse) -> bytes:
    """The rest of a body. Raises `TooLong`."""
    content = response.content
    if content.is_eof():
        return await response.read()
    pieces: list[bytes] = []
    total = 0
    try:
        while piece := await content.readany():
            total += len(piece)
            if total > MOST_BYTES:
                raise TooLong
            pieces.append(piece)
    except BaseException:
        response.close()
        raise
    response.release()
    return b"".join(pieces)


async def beginning(response: aiohttp.ClientResponse) -> bytes:
    """As much of a refusal's body as is looked at."""
    data = b""
    try:
        async with asyncio.timeout(ERROR_SECONDS):
            while len(data) < MOST_ERROR_BYTES and (piece := await response.content.readany()):
                data += piece
    except TimeoutError:
        response.close()  # the status says enough
        return data
    except BaseException:
        response.close()
        raise
    if response.content.at_eof():
        response.release()
    else:
        response.close()
    return data
