"""A lean session with an MCP server: what is the same over HTTP and over the streams of a process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from profiler.errors import ToolServerError
from profiler.mcp import wire
from profiler.mcp.servers import ServerSpec
from profiler.mcp.session import CallResult, ListedTool, ServerInfo, Tell
from profiler.records import Clock, RemoteCall
from profiler.redaction import environment_secrets, header_secrets, scrub

MOST_PAGES = 200
MOST_TOOLS = 10_000
"""Of a listing: one that is longer does not end."""

DISCOVER_SECONDS = 10.0
"""A server that has not answered `server/discover` by then is taken for one that does not know it, until it
refuses `initialize`: then it was only late."""

_NO_ANSWER = frozenset(("timeout", "connection", "session_lost", "cancelled"))
"""Error types of a request that the server said nothing to."""

MOST_CANCELLATIONS = 64
"""Notifications of cancelled calls that are under way at once; more are not sent."""


class Exchange:
    """One request and what became of it. Times as in `RemoteCall`.

    `message` is the answer; without one, `error_type` and `words` say what went wrong. `token`: by which
    notifications of its progress are known, if they were asked for.
    """

    __slots__ = (
        "answered_ns",
        "error_type",
        "http_status",
        "message",
        "new_connection",
        "number",
        "posted_ns",
        "progress",
        "reply",
        "retry_after_ns",
        "server_timing",
        "session_id",
        "token",
        "words",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.posted_ns: int | None = None
        self.answered_ns: int | None = None
        self.message: wire.Message | None = None
        self.error_type: str | None = None
        self.words = ""
        self.retry_after_ns: int | None = None
        self.http_status: int | None = None
        self.reply: Literal["json", "sse"] | None = None
        self.new_connection: bool | None = None
        self.progress = 0
        self.server_timing: str | None = None
        self.session_id: str | None = None
        self.token: object = None

    def fail(self, error_type: str, words: str) -> None:
        self.error_type, self.words = error_type, words


class LeanSession:
    """A session on one event loop. What carries the messages is in the classes for each transport."""

    transport: Literal["http", "stdio"]

    def __init__(self, spec: ServerSpec, timeout: float, clock: Clock) -> None:
        self.spec = spec
        self.timeout = timeout
        self.clock = clock
        self.generation = 0
        """How often it was opened: what failed in an earlier opening says nothing of this one."""
        self.modern = False
        self._info: ServerInfo | None = None
        self._numbers = 0
        self._opening: asyncio.Task[None] | None = None
        self._is_open = False
        self._closed = False
        self._mirrored: dict[str, wire.Mirrored] = {}
        self._secrets = secrets_of(spec)
        self._meta = wire.envelope(False)

    @property
    def server(self) -> str:
        return self.spec.name

    @property
    def info(self) -> ServerInfo:
        assert self._info is not None, "it is not open"
        return self._info

    # What a transport does.

    async def _start(self) -> None:
        """Get ready to open the session, perhaps anew. Raises `ToolServerError`."""
        raise NotImplementedError

    def _is_there(self) -> bool:
        """Whether the server is there, so far as is known without asking it."""
        return True

    async def _give_up(self) -> None:
        """Leave nothing behind of an opening that failed."""

    async def _end(self) -> None:
        """Let go of everything; what is in flight is lost."""
        raise NotImplementedError

    def _agreed(self, asked: Exchange, found: ServerInfo) -> None:
        """The server has answered `initialize`."""

    async def _exchange(
        self,
        exchange: Exchange,
        body: bytes,
        method: str,
        timeout: float | None,
        tool: str | None = None,
        more_headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send a request and wait for its answer. Raises nothing but cancellation."""
        raise NotImplementedError

    async def _notify(self, message: wire.Message) -> None:
        """Send a notification. Raises `ToolServerError`."""
        raise NotImplementedError

    async def _revived(self) -> None:
        """Be there again after a server that met a request which it did not know has ended."""

    # Opening.

    async def open(self) -> None:
        """Raises `ToolServerError`."""
        was = self._info
        await self._start()
        try:
            found = await (self._found() if was is None or self.modern else self._initialize())
        except BaseException:
            await self._give_up()
            raise
        self._info = ServerInfo(found.name or self.spec.name, found.version, found.protocol)
        self.generation += 1
        self._is_open = True

    def _set_era(self, modern: bool) -> None:
        self.modern = modern
        self._meta = wire.envelope(modern)

    async def _found(self) -> ServerInfo:
        """The server, whatever its era. Raises `ToolServerError`."""
        found, late = await self._discover(min(DISCOVER_SECONDS, self.timeout))
        if found is not None:
            return found
        try:
            return await self._initialize()
        except ToolServerError as refused:
            if not late or refused.error_type in _NO_ANSWER:
                raise
            # It answers by now. A modern one on a busy machine may only have been slow to start; what it says
            # to the first request, if it still does, is an answer that nobody waits for.
            found, _ = await self._discover(self.timeout)
            if found is None:
                raise
            return found

    async def _discover(self, seconds: float) -> tuple[ServerInfo | None, bool]:
        """(None where the server is of the older era, whether it has not answered in time)."""
        self._set_era(True)
        asked = await self._ask("server/discover", {}, seconds)
        message = asked.message
        if message is None:
            if asked.error_type in ("connection", "http_401", "http_403", "http_407"):
                raise self._error(asked)
            return None, asked.error_type == "timeout"
        if "error" in message:
            return None, False
        return wire.discovered(message.get("result")), False

    async def _initialize(self) -> ServerInfo:
        self._set_era(False)
        await self._revived()
        asked = await self._ask("initialize", wire.initialize_params(), self.timeout)
        if asked.message is None:
            raise self._error(asked)
        found = wire.initialized(asked.message.get("result"))
        if found is None:
            error = asked.message.get("error")
            words = wire.error_words(error) if error is not None else "its answer is none to initialize"
            asked.fail(wire.error_type_of(error) if error is not None else wire.INVALID_REPLY, words)
            raise self._error(asked)
        self._agreed(asked, found)
        await self._notify(wire.notification("notifications/initialized"))
        return found

    def _error(self, asked: Exchange) -> ToolServerError:
        """Of an opening, or a listing, that failed."""
        words = self.said(asked.words)
        return ToolServerError(
            f"MCP server {self.server} ({self.spec.shown}): {words}{self._remedy(asked)}",
            server=self.server,
            error_type=asked.error_type or wire.INVALID_REPLY,
        )

    def _remedy(self, asked: Exchange) -> str:
        if asked.error_type in ("http_401", "http_403"):
            return f": give it what it wants, such as --mcp-header {self.server}:Authorization='Bearer …'"
        if asked.error_type in ("http_404", "http_405", wire.INVALID_REPLY) and self.transport == "http":
            return (
                ": is this the address of its MCP endpoint for streamable HTTP (often …/mcp; the older "
                "transport, often …/sse, is not spoken here)?"
            )
        return ""

    def said(self, words: str) -> str:
        """A server's words as they may be shown."""
        return scrub(words, [one for one in self._secrets if one in words])

    async def _reopen(self) -> None:
        """Open it anew, once for all calls that find it lost. Raises `ToolServerError`."""
        if self._closed:
            raise ToolServerError(f"MCP server {self.server}: the session is closed", server=self.server)
        if self._opening is None:
            self._opening = asyncio.ensure_future(self.open())
            self._opening.add_done_callback(self._opened)
        await asyncio.shield(self._opening)  # a caller that gives up does not take it from the others

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._opening = None
        if not task.cancelled():
            task.exception()  # it was raised to those who waited, if anybody did

    def lose(self, generation: int) -> None:
        """The session of this opening is lost: the next call opens it anew."""
        if generation == self.generation:
            self._is_open = False

    # Asking.

    def _new_exchange(self) -> Exchange:
        self._numbers += 1
        return Exchange(self._numbers)

    async def _ask(self, method: str, params: Mapping[str, Any], timeout: float | None) -> Exchange:
        exchange = self._new_exchange()
        body = wire.encoded(wire.request(exchange.number, method, params, self._meta))
        await self._exchange(exchange, body, method, timeout)
        return exchange

    async def list_tools(self) -> tuple[ListedTool, ...]:
        """All pages of the listing. Raises `ToolServerError`."""
        if not self._is_open or not self._is_there():
            await self._reopen()
        found: list[ListedTool] = []
        cursor: str | None = None
        seen: set[str] = set()
        pages = 0
        while pages < MOST_PAGES:
            pages += 1
            params = {} if cursor is None else {"cursor": cursor}
            generation = self.generation
            asked = await self._ask("tools/list", params, self.timeout)
            message = asked.message
            if message is None:
                if asked.error_type == "session_lost":
                    self.lose(generation)
                raise self._error(asked)
            page = wire.listed(message.get("result"))
            if page is None:
                error = message.get("error")
                if not found and wire.error_code(error) == wire.METHOD_NOT_FOUND:
                    return ()  # it has prompts or resources alone
                words = wire.error_words(error) if error is not None else "its answer is no listing of tools"
                asked.fail(wire.error_type_of(error) if error is not None else wire.INVALID_REPLY, words)
                raise self._error(asked)
            tools, cursor = page
            if cursor == "" and tools == found:  # some servers say so that there is no more
                cursor = None
                break
            found += tools
            if cursor is None or cursor in seen or len(found) > MOST_TOOLS:
                break
            seen.add(cursor)
        if cursor is not None:
            raise ToolServerError(
                f"MCP server {self.server} ({self.spec.shown}): its listing of tools does not end: "
                f"after {pages} pages with {len(found)} tools it names one more (nextCursor)",
                server=self.server,
                error_type=wire.INVALID_REPLY,
            )
        self._mirrored = {one.name: wire.mirrored(one.parameters) for one in found}
        return tuple(found)

    async def call(
        self,
        tool: str,
        arguments: Mapping[str, Any],
        *,
        meta: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        tell: Tell | None = None,
    ) -> CallResult:
        """As in `Session`."""
        if tell is not None:
            tell(lambda: RemoteCall(self.server, self.transport, sends=0))
        if not self._is_open or not self._is_there():
            try:
                await self._reopen()
            except ToolServerError as error:
                return CallResult(
                    str(error), RemoteCall(self.server, self.transport, sends=0), error.error_type
                )
        generation = self.generation
        exchange = await self._call(tool, arguments, meta, timeout, tell)
        sends = 0 if exchange.posted_ns is None else 1
        if self._wants_headers(exchange, tool):
            exchange, sends = await self._call_with_headers(exchange, tool, arguments, meta, timeout)
        if exchange.error_type == "session_lost":
            self.lose(generation)
        return self._result(exchange, sends)

    async def _call(
        self,
        tool: str,
        arguments: Mapping[str, Any],
        meta: Mapping[str, Any] | None,
        timeout: float | None,
        tell: Tell | None = None,
    ) -> Exchange:
        exchange = self._new_exchange()
        if tell is not None:
            tell(partial(self._so_far, exchange))
        whole = self._meta
        if meta:
            whole = {**whole, **meta}
            exchange.token = meta.get("progressToken")
        params = {"name": tool, "arguments": arguments}
        try:
            body = wire.encoded(wire.request(exchange.number, "tools/call", params, whole))
        except (ValueError, TypeError, RecursionError) as error:
            exchange.fail("invalid_arguments", f"these arguments cannot be sent as JSON: {error}")
            return exchange
        wanted = self._mirrored.get(tool) if self.modern else None
        more = wire.argument_headers(wanted, arguments) if wanted else None
        await self._exchange(exchange, body, "tools/call", timeout, tool, more)
        return exchange

    def _wants_headers(self, exchange: Exchange, tool: str) -> bool:
        """Whether the server misses headers that only its listing tells of, which was not asked for yet."""
        message = exchange.message
        if message is None or tool in self._mirrored:
            return False
        return wire.error_code(message.get("error")) == wire.HEADER_MISMATCH

    async def _call_with_headers(
        self,
        first: Exchange,
        tool: str,
        arguments: Mapping[str, Any],
        meta: Mapping[str, Any] | None,
        timeout: float | None,
    ) -> tuple[Exchange, int]:
        """List the tools; if that tells what it misses, send it again. Also how many requests there were."""
        try:
            await self.list_tools()
        except ToolServerError:
            return first, 2
        if not self._mirrored.get(tool):
            return first, 2
        second = await self._call(tool, arguments, meta, timeout)
        second.posted_ns = first.posted_ns
        return second, 3

    def _so_far(self, exchange: Exchange) -> RemoteCall:
        """The record of a call that is cut off now."""
        sends = 0 if exchange.posted_ns is None else 1
        return remote_call(self.spec.name, self.transport, self._info, exchange, None, sends)

    def _result(self, exchange: Exchange, sends: int) -> CallResult:
        message = exchange.message
        error_type, server_ns = exchange.error_type, None
        if message is None:
            text = self.said(exchange.words)
        else:
            meant = wire.meaning(message)
            text, error_type, server_ns = meant.text, meant.error_type, meant.server_ns
            if error_type is not None and error_type != "tool_error":
                text = self.said(text)
        if server_ns is None and exchange.reply == "json":  # the headers of a stream precede the tool
            server_ns = wire.server_timing_ns(exchange.server_timing)
        if server_ns is not None:
            server_ns = credible_ns(server_ns, exchange.posted_ns, exchange.answered_ns)
        remote = remote_call(self.spec.name, self.transport, self._info, exchange, server_ns, sends)
        return CallResult(text, remote, error_type, exchange.retry_after_ns)

    async def close(self) -> None:
        """Ends it. Calls in flight are lost."""
        self._closed = True
        self._is_open = False
        opening = self._opening
        if opening is not None:
            opening.cancel()
            await asyncio.wait((opening,))
        await self._end()


def secrets_of(spec: ServerSpec) -> tuple[str, ...]:
    """What nobody is to read in the words of a server."""
    secrets = environment_secrets() | header_secrets(spec.headers.items()) | set(spec.secrets)
    return tuple(one for one in secrets if len(one) >= 6)


ROUNDING_NS = 1_000_000
"""A server may round its time up to whole milliseconds."""


def credible_ns(server_ns: int | None, posted_ns: int | None, answered_ns: int | None) -> int | None:
    """A server's time, which can be no longer than the caller waited; None for one that is."""
    if server_ns is None or posted_ns is None or answered_ns is None:
        return None
    most_ns = answered_ns - posted_ns
    return min(server_ns, most_ns) if server_ns <= most_ns + ROUNDING_NS else None


def remote_call(
    server: str,
    transport: Literal["http", "stdio"],
    info: ServerInfo | None,
    exchange: Exchange,
    server_ns: int | None,
    sends: int,
) -> RemoteCall:
    """The record of an exchange."""
    return RemoteCall(
        server,
        transport,
        None if info is None else info.protocol,
        exchange.posted_ns,
        exchange.answered_ns,
        server_ns,
        0,
        exchange.reply,
        exchange.http_status,
        exchange.new_connection,
        sends,
        exchange.progress,
    )
