"""Upstreams behind a proxy that the environment names (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`).

An https upstream is reached with CONNECT, and TLS is spoken with the upstream itself, so that the proxy sees
no more than its name. For an http upstream the proxy is sent the request, in absolute form.
"""

from __future__ import annotations

import asyncio
import socket
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from urllib.parse import unquote, urlsplit

from profiler.errors import UsageError
from profiler.providers.endpoint import is_loopback
from profiler.proxy.routes import Routes, Upstream

MOST_HEAD = 64 * 1024
"""Bytes of a proxy's answer to CONNECT."""


@dataclass(frozen=True, slots=True)
class Through:
    """A proxy. `authorization` is a line of a head, empty without a user in its URL; it is not shown."""

    host: str
    port: int
    authorization: bytes = field(default=b"", repr=False)

    def __str__(self) -> str:
        return _authority(self.host, self.port)


def behind_proxies(routes: Routes, proxy_of: Callable[[str, bool], str | None]) -> Routes:
    """The same routes, each upstream by the proxy that `proxy_of` names for (its URL, whether it is here).

    Raises `UsageError` for a proxy that is not asked by http.
    """
    return Routes([_behind(one, proxy_of(one.url, is_loopback(one.host))) for one in routes.upstreams])


def _behind(upstream: Upstream, url: str | None) -> Upstream:
    if not url:
        return upstream
    parts = urlsplit(url if "://" in url else f"http://{url}")
    variable = f"{upstream.scheme.upper()}_PROXY"
    try:
        host, port = parts.hostname, parts.port or 80
    except ValueError:
        host, port = None, 0
    if parts.scheme != "http" or not host:
        raise UsageError(
            f"{variable}: only a proxy that is asked by http can be used, as in http://proxy.example:3128;"
            f" NO_PROXY={upstream.host} has {upstream.origin} asked directly"
        )
    authorization = b""
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = b"Proxy-Authorization: Basic %b\r\n" % b64encode(user.encode())
    return replace(upstream, through=Through(host, port, authorization))


class _Asked(asyncio.Protocol):
    """The answer to CONNECT: its status line, once its head has come."""

    def __init__(self) -> None:
        self.answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._head = b""

    def data_received(self, data: bytes) -> None:
        self._head += data
        if self.answered.done():
            return
        if b"\r\n\r\n" in self._head:
            self.answered.set_result(self._head.partition(b"\r\n")[0])
        elif len(self._head) > MOST_HEAD:
            self.answered.set_exception(OSError("its answer to CONNECT has no end"))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answered.done():
            self.answered.set_exception(exc or OSError("it closed the connection"))


async def tunnelled(
    loop: asyncio.AbstractEventLoop, connected: socket.socket, through: Through, upstream: Upstream
) -> asyncio.Transport:
    """A connection to the upstream, on which nothing was sent yet, by one to the proxy. Raises `OSError`."""
    transport, asked = await loop.create_connection(_Asked, sock=connected)
    try:
        target = _authority(upstream.host, upstream.port).encode()
        transport.write(
            b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (target, target, through.authorization)
        )
        line = await asked.answered
        version, _, rest = line.partition(b" ")
        if not version.startswith(b"HTTP/1.") or not rest.startswith(b"2"):
            raise OSError(f"it answered CONNECT with {line.decode('latin-1')[:100]}")
    except BaseException:
        transport.abort()
        raise
    return transport


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
