"""Times of calls that the official SDK makes, which it does not tell.

They are noted where its messages pass: at the streams between its session and its transport, and over HTTP by
hooks of its client.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import orjson

from profiler.limits.refusals import asked_wait_ns
from profiler.mcp import wire
from profiler.mcp.lean import Exchange
from profiler.mcp.session import META
from profiler.providers.connections import plain_words
from profiler.records import Clock

MARK = f"{META}sdk"
"""Key in a request's `_meta` that tells which call of ours it is."""


WAITED_NS = 5_000_000
"""A longer time until the SDK's writer took a message is a wait for it, not its way there."""


class _Stream:
    """One of the SDK's streams, seen by us."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def __aenter__(self) -> Any:
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> Any:
        return await self._inner.__aexit__(*error)


class Sending(_Stream):
    def __init__(self, inner: Any, watch: Watch) -> None:
        super().__init__(inner)
        self._watch = watch

    async def send(self, item: Any) -> None:
        exchange = self._watch.sending(item)
        before_ns = self._watch.clock()
        await self._inner.send(item)
        if exchange is not None and self._watch.is_stdio:
            # Taken at once, it may have been written, and read, before we run again; else it waited till now.
            now_ns = self._watch.clock()
            exchange.posted_ns = now_ns if now_ns - before_ns > WAITED_NS else before_ns


class Receiving(_Stream):
    def __init__(self, inner: Any, watch: Watch) -> None:
        super().__init__(inner)
        self._watch = watch

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        item = await self._inner.__anext__()
        self._watch.received(item)
        return item

    async def receive(self) -> Any:
        item = await self._inner.receive()
        self._watch.received(item)
        return item


class Watch:
    """Notes the times of calls, by their ids of JSON-RPC."""

    def __init__(self, clock: Clock, is_stdio: bool) -> None:
        self.clock = clock
        self.is_stdio = is_stdio
        self.marked: dict[int, Exchange] = {}
        self._by_id: dict[Any, Exchange] = {}
        self._chunk_ns: dict[int, int] = {}
        self.status: int | None = None

    def sending(self, item: Any) -> Exchange | None:
        message = _message(item)
        params = getattr(message, "params", None)
        meta = params.get("_meta") if isinstance(params, dict) else None
        mark = meta.get(MARK) if isinstance(meta, dict) else None
        exchange = self.marked.get(mark) if isinstance(mark, int) else None
        if exchange is not None:
            self._by_id[message.id] = exchange
        return exchange

    def received(self, item: Any) -> None:
        message = _message(item)
        exchange = self._by_id.get(getattr(message, "id", None))
        if exchange is None or hasattr(message, "method"):
            return
        if self.is_stdio:
            exchange.answered_ns = self.clock()
        elif exchange.reply == "sse":
            exchange.answered_ns = self._chunk_ns.get(exchange.number)

    def forget(self, exchange: Exchange) -> None:
        self.marked.pop(exchange.number, None)
        self._chunk_ns.pop(exchange.number, None)
        for key in [key for key, value in self._by_id.items() if value is exchange]:
            del self._by_id[key]

    # Over HTTP.

    async def requested(self, request: Any) -> None:
        """A hook of the client, before a request."""
        if request.method != "POST":
            return
        try:
            exchange = self._by_id.get(orjson.loads(request.content).get("id"))
        except (ValueError, AttributeError):
            return
        if exchange is not None:
            exchange.new_connection = False
            request.extensions = {
                **request.extensions,
                "trace": _Trace(exchange, self.clock),
                "call": exchange,
            }

    async def responded(self, response: Any) -> None:
        """A hook of the client, when headers have come."""
        now_ns = self.clock()
        headers = response.headers
        exchange = response.request.extensions.get("call")
        if exchange is None:
            if response.request.method == "POST":
                self.status = response.status_code
            return
        exchange.http_status = response.status_code
        exchange.retry_after_ns = asked_wait_ns(
            headers.get("retry-after-ms"), headers.get("retry-after"), headers.get("date")
        )
        if headers.get("content-type", "").startswith("text/event-stream"):
            exchange.reply = "sse"
            response.stream = _timed(response.stream, self, exchange.number)
            return
        exchange.answered_ns = now_ns
        if response.status_code == 200:
            exchange.reply = "json"
            exchange.server_timing = headers.get("server-timing")

    def chunk(self, number: int) -> None:
        if number in self.marked:
            self._chunk_ns[number] = self.clock()


def _timed(stream: Any, watch: Watch, number: int) -> Any:
    """The body of a response, whose pieces are noted; of the stream's own class, which httpx asks for."""

    class Timed(type(stream)):  # type: ignore[misc]
        def __init__(self) -> None:
            pass

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for piece in stream:
                watch.chunk(number)
                yield piece

        async def aclose(self) -> None:
            await stream.aclose()

    return Timed()


class _Trace:
    """What httpx tells of a request under way."""

    def __init__(self, exchange: Exchange, clock: Clock) -> None:
        self._exchange = exchange
        self._clock = clock

    async def __call__(self, event: str, info: Mapping[str, Any]) -> None:
        if event == "connection.connect_tcp.started":
            self._exchange.new_connection = True
        elif event.endswith("send_request_headers.started"):
            self._exchange.posted_ns = self._clock()
        elif event.endswith(".failed") and isinstance(info.get("exception"), Exception):  # no cancellation
            self._exchange.fail("connection", f"its connection failed: {said(info.get('exception'))}")


def _message(item: Any) -> Any:
    """The JSON-RPC message in an item of a stream."""
    message = getattr(item, "message", None)
    return getattr(message, "root", message)  # 1.x wraps it


def said(error: Any) -> str:
    """What an exception says, or the first within a group."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    return plain_words(str(error))[: wire.MOST_WORDS] or type(error).__name__
