"""Sessions on the official SDK, of either major version (`--mcp-client sdk`)."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from typing import Any, Literal

from profiler.errors import ToolServerError, UsageError
from profiler.mcp import wire
from profiler.mcp.child import last_lines
from profiler.mcp.lean import MOST_PAGES, MOST_TOOLS, Exchange, credible_ns, remote_call, secrets_of
from profiler.mcp.sdk_stdio import Pipes, pipes
from profiler.mcp.sdk_times import MARK, Receiving, Sending, Watch, said
from profiler.mcp.servers import ServerSpec
from profiler.mcp.session import CallResult, ListedTool, ServerInfo, Tell
from profiler.records import Clock, RemoteCall
from profiler.redaction import scrub

_TIMED_OUT = frozenset((-32001, 408))
_CLOSED = -32000
_PASSED_ON = frozenset((200, 400, 404))
"""HTTP statuses with which the SDK passes on the error in the body; of others it tells neither."""


async def connect_sdk(spec: ServerSpec, timeout: float, clock: Clock) -> SdkSession:
    """Raises `ToolServerError`, and `UsageError` where the SDK is not installed."""
    try:
        importlib.import_module("mcp")
    except ImportError as error:
        raise UsageError(
            "--mcp-client sdk needs the package mcp: pip install 'toolcall-profiler[mcp]'"
        ) from error
    session = SdkSession(spec, timeout, clock)
    await session.open()
    return session


class SdkSession:
    """As `Session`. One task enters the SDK's session, waits and leaves it, as it has to be the same one."""

    def __init__(self, spec: ServerSpec, timeout: float, clock: Clock) -> None:
        self.spec = spec
        self.timeout = timeout
        self.clock = clock
        self._transport: Literal["http", "stdio"] = "stdio" if spec.url is None else "http"
        self._watch = Watch(clock, spec.url is None)
        self._info: ServerInfo | None = None
        self._session: Any = None
        self._owner: asyncio.Task[None] | None = None
        self._leave = asyncio.Event()
        self._opening: asyncio.Task[None] | None = None
        self._numbers = 0
        self._closed = False
        self._secrets = secrets_of(spec)
        self._lost = False
        self._pipes: Pipes | None = None

    @property
    def server(self) -> str:
        return self.spec.name

    @property
    def info(self) -> ServerInfo:
        assert self._info is not None, "it is not open"
        return self._info

    # Opening and closing.

    async def open(self) -> None:
        """Raises `ToolServerError`."""
        await self._shut()
        self._leave = asyncio.Event()
        self._lost = False
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._owner = asyncio.ensure_future(self._own(ready, self._leave))
        try:
            async with asyncio.timeout(self.timeout):
                await asyncio.wait((self._owner, ready), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            await self._shut()
            raise self._error(f"no answer within {self.timeout:g} s", "timeout") from None
        except BaseException:
            await self._shut()
            raise
        if not ready.done():
            error = None if self._owner.cancelled() else self._owner.exception()
            end = self._last_words()
            words = f"{said(error)}{end and ': '}{end}"
            status = self._watch.status
            await self._shut()
            if status is not None and status not in _PASSED_ON and status >= 300:
                raise self._error(f"it answered with HTTP {status}", f"http_{status}") from error
            raise self._error(words, "connection") from error

    async def _own(self, ready: asyncio.Future[None], leave: asyncio.Event) -> None:
        async with contextlib.AsyncExitStack() as stack:
            read, write = await self._streams(stack)
            mcp: Any = importlib.import_module("mcp")
            client = getattr(mcp, "Client", None)
            if client is None:
                session = await stack.enter_async_context(mcp.ClientSession(read, write))
                result = await session.initialize()
                named, protocol = result.serverInfo, result.protocolVersion
            else:
                entered = await stack.enter_async_context(client(_given(read, write)))
                session = entered.session
                named, protocol = session.server_info, session.protocol_version
            name = getattr(named, "name", None) or self.spec.name
            self._info = ServerInfo(name, getattr(named, "version", None) or "", str(protocol))
            self._session = session
            ready.set_result(None)
            await leave.wait()

    async def _streams(self, stack: contextlib.AsyncExitStack) -> tuple[Any, Any]:
        if self.spec.url is None:
            self._pipes = await stack.enter_async_context(pipes(self.spec.command))
            streams = (self._pipes.read, self._pipes.write)
        else:
            http: Any = importlib.import_module("mcp.client.streamable_http")
            client = http.create_mcp_http_client(headers=dict(self.spec.headers) or None)
            if self.spec.is_loopback:  # it would go through a proxy that the environment names
                verify = _tls_context() if self.spec.url.startswith("https:") else True
                client = type(client)(
                    headers=client.headers, timeout=client.timeout, trust_env=False, verify=verify
                )
            client.follow_redirects = False  # the headers are for this server
            hooks = client.event_hooks
            hooks["request"].append(self._watch.requested)
            hooks["response"].append(self._watch.responded)
            client.event_hooks = hooks
            await stack.enter_async_context(client)
            transport = http.streamable_http_client(self.spec.url, http_client=client)
            streams = await stack.enter_async_context(transport)
        return Receiving(streams[0], self._watch), Sending(streams[1], self._watch)

    async def _shut(self) -> None:
        owner, self._owner, self._session = self._owner, None, None
        if owner is not None:
            await self._end(owner)
        self._pipes = None

    async def _end(self, owner: asyncio.Task[None]) -> None:
        self._leave.set()
        done, _ = await asyncio.wait((owner,), timeout=5.0)
        if not done:
            owner.cancel()
            await asyncio.wait((owner,), timeout=5.0)
        if owner.done() and not owner.cancelled():
            owner.exception()  # its calls have told

    def _error(self, words: str, error_type: str) -> ToolServerError:
        return ToolServerError(
            f"MCP server {self.server} ({self.spec.shown}): {scrub(words, self._secrets)}",
            server=self.server,
            error_type=error_type,
        )

    async def _reopen(self) -> None:
        if self._closed:
            raise self._error("the session is closed", "session_lost")
        if self._opening is None:
            self._opening = asyncio.ensure_future(self.open())
            self._opening.add_done_callback(self._opened)
        await asyncio.shield(self._opening)

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._opening = None
        if not task.cancelled():
            task.exception()

    @property
    def _is_open(self) -> bool:
        owner = self._owner
        is_there = owner is not None and not owner.done() and not self._lost
        return is_there and self._session is not None

    async def close(self) -> None:
        self._closed = True
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait((self._opening,))
        await self._shut()

    # Asking.

    async def list_tools(self) -> tuple[ListedTool, ...]:
        """All pages of the listing. Raises `ToolServerError`."""
        if not self._is_open:
            await self._reopen()
        types: Any = importlib.import_module("mcp.types")
        found: list[ListedTool] = []
        seen: set[str] = set()
        cursor: str | None = None
        for _ in range(MOST_PAGES):
            params = types.PaginatedRequestParams(cursor=cursor)
            try:
                async with asyncio.timeout(self.timeout):
                    result = await self._session.list_tools(params=params)
            except Exception as error:
                code = _code(error)
                if code == wire.METHOD_NOT_FOUND and not found:
                    return ()
                error_type = wire.error_type_of({"code": code}) if code is not None else "connection"
                raise self._error(said(error), error_type) from error
            page = wire.listed(result.model_dump(mode="json", by_alias=True, exclude_none=True))
            assert page is not None
            if page == (found, ""):  # as in the lean client
                return tuple(found)
            found += page[0]
            cursor = page[1]
            if cursor is None:
                return tuple(found)
            if cursor in seen or len(found) > MOST_TOOLS:
                break
            seen.add(cursor)
        raise self._error("its listing of tools does not end", wire.INVALID_REPLY)

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
        self._numbers += 1
        exchange = Exchange(self._numbers)
        if tell is not None:
            tell(lambda: self._remote(exchange, None, 0 if exchange.posted_ns is None else 1))
        if not self._is_open:
            try:
                await self._reopen()
            except ToolServerError as error:
                exchange.fail(error.error_type, str(error))
                return CallResult(str(error), self._remote(exchange, None, 0), error.error_type)
        owner = self._owner
        assert owner is not None
        self._watch.marked[exchange.number] = exchange
        calling = asyncio.ensure_future(self._asked(tool, arguments, meta, timeout, exchange))
        try:
            await asyncio.wait((calling, owner), return_when=asyncio.FIRST_COMPLETED)
            if not calling.done():  # the session has ended, and tells its calls, or does not
                await asyncio.wait((calling,), timeout=0.1)
            if not calling.done() or calling.cancelled():
                self._explain(exchange, None, "the session was lost, by another call's failure", timeout)
                return self._failed(exchange)
            return self._result(exchange, calling, timeout)
        finally:
            if not calling.done():
                calling.cancel()
                await asyncio.wait((calling,), timeout=1.0)
            self._watch.forget(exchange)

    async def _asked(
        self,
        tool: str,
        arguments: Mapping[str, Any],
        meta: Mapping[str, Any] | None,
        timeout: float | None,
        exchange: Exchange,
    ) -> Any:
        call = self._session.call_tool
        options: dict[str, Any] = {"meta": {**(meta or {}), MARK: exchange.number}}
        if options["meta"].pop("progressToken", None) is not None:  # the SDK gives one of its own

            async def progressed(*_: Any) -> None:
                exchange.progress += 1

            options["progress_callback"] = progressed
        modern = "allow_input_required" in inspect.signature(call).parameters
        if modern:
            options["allow_input_required"] = True
        if timeout is not None:
            options["read_timeout_seconds"] = timeout if modern else timedelta(seconds=timeout)
        return await call(tool, dict(arguments), **options)

    def _result(self, exchange: Exchange, calling: asyncio.Task[Any], timeout: float | None) -> CallResult:
        error = calling.exception()
        if error is None:
            dumped = calling.result().model_dump(mode="json", by_alias=True, exclude_none=True)
            meant = wire.meaning({"result": dumped})
            return CallResult(
                meant.text,
                self._remote(exchange, meant.server_ns, 1),
                meant.error_type,
                exchange.retry_after_ns,
            )
        self._explain(exchange, _code(error), said(error), timeout)
        return self._failed(exchange)

    def _explain(self, exchange: Exchange, code: int | None, words: str, timeout: float | None) -> None:
        """What went wrong with a call, as far as the SDK's error and what was seen of its request tell."""
        status = exchange.http_status
        if status is not None and status not in _PASSED_ON and status >= 300:
            exchange.fail(f"http_{status}", f"it answered with HTTP {status}")
        elif exchange.error_type is not None:
            pass  # its connection failed
        elif code in _TIMED_OUT and timeout is not None and exchange.answered_ns is None:
            exchange.fail("timeout", f"no answer within {timeout:g} s")
        elif code in _TIMED_OUT and timeout is not None:
            exchange.fail(wire.INVALID_REPLY, f"its answer was none that the SDK takes (HTTP {status})")
        elif (code is None and not self._is_open) or (code == _CLOSED and not words.startswith("SSE stream")):
            end = self._last_words()
            exchange.fail("session_lost", f"{words}{end and ': '}{end}")
            self._lost = True
        elif status == 404 and code != wire.METHOD_NOT_FOUND:
            exchange.fail("session_lost", words)
            self._lost = True
        elif code is None or code == _CLOSED or (code in (-32600, -32700) and status in (200, 202)):
            exchange.fail(wire.INVALID_REPLY, words)
        else:
            exchange.fail(wire.error_type_of({"code": code}), words)

    def _last_words(self) -> str:
        """The last lines of the standard error of a server that is a process."""
        return "" if self._pipes is None else last_lines(self._pipes.said.decode("utf-8", "replace"))

    def _failed(self, exchange: Exchange) -> CallResult:
        text = scrub(exchange.words, self._secrets)
        remote = self._remote(exchange, None, 1)
        return CallResult(text, remote, exchange.error_type, exchange.retry_after_ns)

    def _remote(self, exchange: Exchange, server_ns: int | None, sends: int) -> RemoteCall:
        if server_ns is None and exchange.reply == "json":
            server_ns = wire.server_timing_ns(exchange.server_timing)
        server_ns = credible_ns(server_ns, exchange.posted_ns, exchange.answered_ns)
        return remote_call(self.spec.name, self._transport, self._info, exchange, server_ns, sends)


def _tls_context() -> ssl.SSLContext:
    """Without the environment the HTTP client does not read it for certificates either."""
    from profiler.mcp.http_pool import tls_context

    return tls_context(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


def _code(error: BaseException) -> int | None:
    """The code of the SDK's exception for a JSON-RPC error."""
    holder = getattr(error, "error", error)
    code = getattr(holder, "code", None)
    return code if type(code) is int else None


@contextlib.asynccontextmanager
async def _given(read: Any, write: Any) -> AsyncIterator[tuple[Any, Any]]:
    """Streams that are open, as a transport of the SDK's client."""
    yield read, write
