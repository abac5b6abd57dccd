"""Lean sessions with MCP servers over streamable HTTP, on one aiohttp session for each event loop.

The official SDK's client costs several times the CPU of the wire (benchmarks/mcp_client.py): a load generator
on it measures itself. Here a call is one POST, without a task of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp

from profiler.limits.refusals import asked_wait_ns
from profiler.mcp import wire
from profiler.mcp.http_pool import (
    CONNECT_SECONDS,
    Pool,
    Sent,
    TooLong,
    beginning,
    join_pool,
    leave_pool,
    payload,
    tls_context,
    whole,
)
from profiler.mcp.lean import MOST_CANCELLATIONS, Exchange, LeanSession
from profiler.mcp.servers import ServerSpec
from profiler.mcp.session import ServerInfo
from profiler.providers.connections import MOST_BYTES, transport_error_type, transport_words
from profiler.providers.endpoint import proxy_of, shown_url
from profiler.records import Clock

NOTIFY_SECONDS = 5.0
CLOSE_SECONDS = 2.0
REST_SECONDS = 5.0
"""How long an event stream that has given its answer may take to end, before its connection is closed."""

MOST_RESTS = 50
"""Such streams at once; the connections of more are closed. Some servers end none."""

MOST_REDIRECTS = 3
MOST_READY = 1000
"""Tools whose headers are kept ready."""

_RPC_STATUSES = frozenset((200, 400, 404))
"""With any other status it is the status that tells what happened, whatever the body holds."""


class HttpSession(LeanSession):
    """A session over streamable HTTP. Its connections are shared with all others of the event loop."""

    transport = "http"

    def __init__(self, spec: ServerSpec, timeout: float, clock: Clock) -> None:
        super().__init__(spec, timeout, clock)
        assert spec.url is not None
        self._url = spec.url
        self._host = urlsplit(spec.url).netloc.rpartition("@")[2]
        self._pool: Pool | None = None
        self._session_id: str | None = None
        self._moved_to: str | None = None
        self._ready: dict[str | None, dict[str, str]] = {}
        self._base: dict[str, str] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._rests: dict[aiohttp.ClientResponse, asyncio.TimerHandle] = {}
        self._options: dict[str, Any] = {"allow_redirects": False}
        if spec.url.startswith("https:"):
            self._options["ssl"] = tls_context(
                os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
            )
        proxy = proxy_of(spec.url, spec.is_loopback)
        if proxy is not None:
            self._options["proxy"] = proxy

    async def _ask(self, method: str, params: Mapping[str, Any], timeout: float | None) -> Exchange:
        """As everywhere; but where the server is found to be elsewhere on its host, it is asked there, and
        called there from then on. (`/mcp` is often `/mcp/`.) A call is never sent a second time.
        """
        for _ in range(MOST_REDIRECTS):
            self._moved_to = None
            asked = await super()._ask(method, params, timeout)
            if self._moved_to is None:
                break
            self._url = self._moved_to
        return asked

    async def _start(self) -> None:
        self._session_id = None
        if self._pool is None:
            self._pool = join_pool()

    async def _end(self) -> None:
        pool, self._pool = self._pool, None
        if pool is None:
            return
        if self._session_id is not None:
            await self._delete(pool)
        for task in list(self._background):
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)
        for response in list(self._rests):
            self._end_rest(response)
        await leave_pool(pool)

    async def _delete(self, pool: Pool) -> None:
        """Tell the server that the session is over. It may refuse that, or be gone."""
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError, ValueError):
            async with asyncio.timeout(CLOSE_SECONDS):
                response = await pool.session.delete(self._url, headers=self._base, **self._options)
                response.release()

    def _set_era(self, modern: bool) -> None:
        super()._set_era(modern)
        self._agree(wire.MODERN if modern else None)

    def _agree(self, protocol: str | None) -> None:
        self._ready.clear()
        given = {name.lower() for name in self.spec.headers}
        ours = wire.base_headers(protocol, self._session_id)
        self._base = {name: ours[name] for name in ours if name not in given} | dict(self.spec.headers)

    def _headers(self, method: str | None, tool: str | None = None) -> dict[str, str]:
        if not self.modern or method is None:
            return self._base
        key = tool if method == "tools/call" else f"\n{method}"
        found = self._ready.get(key)
        if found is None:
            if len(self._ready) >= MOST_READY:
                self._ready.clear()
            found = self._ready[key] = {**self._base, **wire.modern_headers(method, tool)}
        return found

    def _agreed(self, asked: Exchange, found: ServerInfo) -> None:
        if not wire.may_be_sent(asked.session_id or ""):
            asked.fail(wire.INVALID_REPLY, "its session id has characters that no header can hold")
            raise self._error(asked)
        self._session_id = asked.session_id
        self._agree(found.protocol)

    async def _notify(self, message: wire.Message) -> None:
        exchange = Exchange(0)
        try:
            async with asyncio.timeout(self.timeout):
                await self._post_only(exchange, message, self._base)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            self._failed(exchange, error, self.timeout)
            raise self._error(exchange) from error
        # A server that refuses the notification shows at the first request whether it minds.

    async def _post_only(self, exchange: Exchange, message: wire.Message, headers: Mapping[str, str]) -> None:
        """A notification, or an answer of ours: whatever comes back is not looked at, but for its status."""
        pool = self._pool
        if pool is None:
            return
        response = await pool.session.post(
            self._url, data=payload(wire.encoded(message)), headers=headers, **self._options
        )
        if response.status >= 400:
            await self._refused(exchange, response, headers)
        else:
            response.close() if not response.content.is_eof() else response.release()

    async def _exchange(
        self,
        exchange: Exchange,
        body: bytes,
        method: str,
        timeout: float | None,
        tool: str | None = None,
        more_headers: Mapping[str, str] | None = None,
    ) -> None:
        sent = Sent(exchange, self.clock)
        headers = self._headers(method, tool)
        if more_headers:
            headers = {**headers, **more_headers}
        try:
            if timeout is None:
                await self._post(exchange, sent, body, headers)
                return
            sent.seconds = timeout
            async with asyncio.timeout(None) as sent.limit:
                await self._post(exchange, sent, body, headers)
        except TimeoutError as error:
            ours = sent.limit is not None and sent.limit.expired()
            self._failed(exchange, error, timeout if ours else None)
            self._tell_cancelled(exchange, method, "timeout", headers)
        except asyncio.CancelledError:
            self._tell_cancelled(exchange, method, "cancelled", headers)
            raise
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self._failed(exchange, error, None)

    def _failed(self, exchange: Exchange, error: BaseException, timeout: float | None) -> None:
        if isinstance(error, TooLong):
            exchange.fail(wire.TOO_LARGE, str(error))
            return
        if timeout is not None and isinstance(error, TimeoutError):
            exchange.fail("timeout", f"no answer within {timeout:g} s")
            return
        kind = transport_error_type(error)
        words = transport_words(error, self._host, {"connect": CONNECT_SECONDS})
        exchange.fail(wire.INVALID_REPLY if kind in ("not_http", "undecodable") else "connection", words)

    async def _post(self, exchange: Exchange, sent: Sent, body: bytes, headers: Mapping[str, str]) -> None:
        pool = self._pool
        if pool is None:
            exchange.fail("session_lost", "the session was closed")
            return
        response = await pool.session.post(
            self._url, data=payload(body), headers=headers, trace_request_ctx=sent, **self._options
        )
        answered_ns = self.clock()
        exchange.http_status = status = response.status
        told = response.headers
        if status != 200:
            exchange.answered_ns = answered_ns
            await self._refused(exchange, response, headers)
            return
        exchange.session_id = told.get("mcp-session-id")
        kind = told.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "text/event-stream":
            exchange.reply = "sse"
            await self._read_events(exchange, response, headers)
            return
        content = response.content
        first = b""
        if not content.total_bytes and not content.is_eof():
            # Headers that came before their body were sent before the tool had ended.
            first = await self._first(response)
            answered_ns = self.clock()
        exchange.answered_ns = answered_ns
        if "server-timing" in told:
            exchange.server_timing = ", ".join(told.getall("server-timing"))
        data = first + await whole(response)
        if kind != "application/json" and not kind.endswith("+json"):
            exchange.fail(wire.INVALID_REPLY, f"it answered with {kind or 'no content type'}, not with JSON")
            return
        exchange.reply = "json"
        self._read_message(exchange, data)

    async def _first(self, response: aiohttp.ClientResponse) -> bytes:
        try:
            return await response.content.readany()
        except BaseException:
            response.close()
            raise

    def _read_message(self, exchange: Exchange, data: bytes) -> None:
        try:
            value = wire.decoded(data)
        except ValueError:
            exchange.fail(wire.INVALID_REPLY, "its answer is not JSON")
            return
        for message in wire.messages(value):
            if wire.answers(message, exchange.number) or wire.answers_nobody(message):
                exchange.message = message
                return
        exchange.fail(wire.INVALID_REPLY, "it answered another request than this one, or none")

    async def _read_events(
        self, exchange: Exchange, response: aiohttp.ClientResponse, headers: Mapping[str, str]
    ) -> None:
        reader = wire.EventReader()
        content = response.content
        total = 0
        try:
            while True:
                piece = await content.readany()
                if not piece:
                    break
                now_ns = self.clock()
                total += len(piece)
                if total > MOST_BYTES:
                    raise TooLong
                for data in reader.feed(piece):
                    if data and self._take_event(exchange, data, headers):
                        exchange.answered_ns = now_ns
                        self._leave_rest(response)
                        return
        except BaseException:
            response.close()
            raise
        response.release()
        exchange.fail(wire.INVALID_REPLY, "its stream of events ended without the answer")

    def _take_event(self, exchange: Exchange, data: bytes, headers: Mapping[str, str]) -> bool:
        """Whether this was the answer."""
        try:
            value = wire.decoded(data)
        except ValueError:
            return False
        for message in wire.messages(value):
            if wire.is_asking(message):
                if message["method"] == wire.PROGRESS:
                    exchange.progress += 1
                reply = wire.reply_to(message)
                if reply is not None:
                    self._in_background(reply, headers)
            elif wire.answers(message, exchange.number) or wire.answers_nobody(message):
                exchange.message = message
                return True
        return False

    def _leave_rest(self, response: aiohttp.ClientResponse) -> None:
        """Let what follows an answer come without anybody waiting: read to its end, a connection is kept."""
        content = response.content
        if content.is_eof():
            response.release()
            return
        if len(self._rests) >= MOST_RESTS:
            response.close()
            return
        loop = asyncio.get_running_loop()
        self._rests[response] = loop.call_later(REST_SECONDS, self._end_rest, response)
        content.on_eof(functools.partial(self._end_rest, response))

    def _end_rest(self, response: aiohttp.ClientResponse) -> None:
        timer = self._rests.pop(response, None)
        if timer is not None:
            timer.cancel()
            response.release() if response.content.is_eof() else response.close()

    async def _refused(
        self, exchange: Exchange, response: aiohttp.ClientResponse, headers: Mapping[str, str]
    ) -> None:
        """An answer with a status other than 200."""
        status = response.status
        told = response.headers
        body = await beginning(response)
        exchange.http_status = status
        exchange.retry_after_ns = asked_wait_ns(
            told.get("retry-after-ms"), told.get("retry-after"), told.get("date")
        )
        if 300 <= status < 400:
            target = urljoin(self._url, told.get("location", ""))
            if status in (307, 308) and _origin(target) == _origin(self._url):
                self._moved_to = target
            where = shown_url(target)
            exchange.fail(f"http_{status}", f"it redirects to {where}: if that is meant, give that address")
            return
        if status < 300:
            exchange.fail(wire.INVALID_REPLY, f"it answered a request with HTTP {status}, without a result")
            return
        try:
            value = wire.decoded(body)
        except ValueError:
            value = None
        message = next((one for one in wire.messages(value) if "error" in one), None)
        error = None if message is None else message["error"]
        code = wire.error_code(error)
        if "mcp-session-id" in headers and self._is_lost(status, code, error):
            exchange.fail("session_lost", f"the server does not know this session any more (HTTP {status})")
            return
        if status in _RPC_STATUSES and message is not None and type(code) is int:
            exchange.message = message
            return
        from profiler.providers.failures import words_of

        words = words_of(body, self._secrets) if body else ""
        exchange.fail(f"http_{status}", f"it answered with HTTP {status}{words and ': '}{words}")

    @staticmethod
    def _is_lost(status: int, code: object, error: Any) -> bool:
        """Whether a refusal means that the server knows the session no more."""
        if status == 404:
            return code != wire.METHOD_NOT_FOUND
        # Servers built on an example of the TypeScript SDK.
        return status == 400 and code in (-32000, -32600) and "session" in wire.error_words(error).lower()

    # What nobody waits for.

    def _tell_cancelled(
        self, exchange: Exchange, method: str, reason: str, headers: Mapping[str, str]
    ) -> None:
        """In the older era a closed connection does not end a call; in the modern one it does."""
        if "mcp-method" in headers or exchange.posted_ns is None or method != "tools/call":
            return
        params = {"requestId": exchange.number, "reason": reason}
        self._in_background(wire.notification(wire.CANCELLED, params), headers)

    def _in_background(self, message: wire.Message, headers: Mapping[str, str]) -> None:
        if len(self._background) >= MOST_CANCELLATIONS or self._pool is None:
            return
        task = asyncio.ensure_future(self._send_quietly(message, headers))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _send_quietly(self, message: wire.Message, headers: Mapping[str, str]) -> None:
        # The call that it is about has its own outcome.
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError, ValueError):
            async with asyncio.timeout(NOTIFY_SECONDS):
                await self._post_only(Exchange(0), message, headers)


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.rpartition("@")[2].lower()
