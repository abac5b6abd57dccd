"""One `httpx.AsyncClient` for all tools of a process, on an aiohttp transport.

httpx's own transport scans its whole connection pool on every request, and under Locust its
liveness check stands still in gevent's patched `select`. aiohttp's does neither.
"""

from __future__ import annotations

import asyncio
import functools
import os
import ssl
from weakref import WeakKeyDictionary

import aiohttp
import httpx
import httpx_aiohttp

from profiler import headers
from profiler.tools import current_call

_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()


def tool_client() -> httpx.AsyncClient:
    """The client of the running event loop; made at the first call, closed by `close_tool_client`.

    No limit on connections, so a tool never waits for one; a 30 s timeout. Inside a load test
    its requests carry the loop's number and the call's id to the emulator.
    """
    loop = asyncio.get_running_loop()
    client = _clients.get(loop)
    if client is None:
        client = _clients[loop] = httpx.AsyncClient(
            transport=httpx_aiohttp.AiohttpTransport(verify=_ssl_context(), client=_session),
            timeout=30.0,
            event_hooks={"request": [_identify]},
        )
    return client


async def close_tool_client() -> None:
    """Close the running event loop's client, if there is one."""
    client = _clients.pop(asyncio.get_running_loop(), None)
    if client is not None:
        await client.aclose()


def _session() -> aiohttp.ClientSession:
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=_ssl_context()), cookie_jar=aiohttp.DummyCookieJar()
    )
    # aiohttp silently sends a GET again when a kept-alive connection turns out dead: the server
    # would see two requests where the tool made one. There is no public switch.
    session._retry_connection = False
    return session


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    """Made once: loading the certificates takes some 20 ms, in which nothing else runs."""
    return ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE"))


async def _identify(request: httpx.Request) -> None:
    call = current_call.get()
    if call is not None and call.number is not None:
        request.headers[headers.LOOP] = str(call.number)
        request.headers[headers.CALL] = call.call_id
        if call.trial is not None:
            request.headers[headers.TRIAL] = str(call.trial)
