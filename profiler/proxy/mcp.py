"""Calls of MCP servers' tools as they go by: both eras of Streamable HTTP, JSON or events. Pure.

Of a session it is read who the server says it is. A call is from its request to its answer: the event with
it, for clients close an event stream before its end. Nothing of arguments and results is kept.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Literal

from profiler.mcp import wire
from profiler.proxy.coding import Decode, decoder
from profiler.proxy.exchange import body_of
from profiler.proxy.matching import Matching, ToolRun
from profiler.proxy.seen import Exchange
from profiler.records import RemoteCall

MOST_ANSWER = 4 * 2**20
"""Bytes of an answer that are read. Of a longer one its length of time is known all the same."""
MOST_PENDING = 5_000
LONGEST_NS = 3600 * 10**9
MOST_NAMES = 1_000
MOST_META = 20

_CALL_HEADER = b"x-toolloop-call"
_CANCELLED_CODES = (-32800,)


@dataclass(slots=True, eq=False)
class _Pending:
    """A call whose answer has not come. `progress` counts notifications."""

    run: ToolRun
    number: object
    exchange: Exchange
    answered_ns: int | None = None
    progress: int = 0


@dataclass(slots=True, eq=False)
class McpReading:
    """One request to an MCP server: what is read of its response. `opens`: its answer names the server."""

    calls: list[_Pending] = field(default_factory=list)
    opens: object = None
    events: wire.EventReader | None = None
    chunks: list[bytes] = field(default_factory=list)
    size: int = 0
    decode: Decode | None = None
    begun: bool = False
    readable: bool = True


class McpCalls:
    """Reads the exchanges with MCP servers, and hands calls of tools to `matching`."""

    def __init__(self, matching: Matching) -> None:
        self._matching = matching
        self._names: OrderedDict[object, str] = OrderedDict()  # of servers, by session or upstream
        self._pending: OrderedDict[tuple[object, object], _Pending] = OrderedDict()
        self.calls = 0

    def requested(self, exchange: Exchange) -> McpReading:
        """A request was made."""
        reading = McpReading()
        exchange.state = reading
        if exchange.method != b"POST":
            return reading
        body = body_of(exchange)
        if body is None:
            return reading
        try:
            messages = wire.messages(wire.decoded(body))
        except ValueError:
            return reading
        session = exchange.header(b"mcp-session-id")
        for message in messages:
            method, params = message.get("method"), message.get("params")
            if not isinstance(params, dict):
                params = {}
            if method == "tools/call" and isinstance(params.get("name"), str):
                self._call(reading, exchange, session, message.get("id"), params)
            elif method in ("initialize", "server/discover"):
                reading.opens = message.get("id")
            elif method == wire.CANCELLED:
                self._cancelled(exchange, session, params.get("requestId"))
        return reading

    def responding(self, exchange: Exchange, reading: McpReading) -> None:
        """More of a response is there."""
        if not reading.begun and exchange.status is not None:
            reading.begun = True
            kind = (exchange.response_header(b"content-type") or b"").lower()
            if kind.startswith(b"text/event-stream"):
                reading.events = wire.EventReader()
            encoding = (exchange.response_header(b"content-encoding") or b"").strip().lower()
            if encoding not in (b"", b"identity"):
                reading.decode = decoder(encoding)
                reading.readable = reading.decode is not None
        body = exchange.response
        pieces, body.pieces = body.pieces, []
        if not body.kept:
            reading.readable = False
        for at_ns, raw in pieces:
            data = raw
            if reading.decode is not None and reading.readable:
                try:
                    data = reading.decode(raw)
                except Exception:  # of any decoder; its client sees the same
                    reading.readable = False
            if not reading.readable:
                return
            reading.size += len(data)
            if reading.events is not None:
                for event in reading.events.feed(data):
                    self._event(exchange, reading, event, at_ns)
                if reading.events.pending > MOST_ANSWER:
                    reading.readable = False
            elif reading.size <= MOST_ANSWER:
                reading.chunks.append(data)
            else:
                reading.readable = False
                reading.chunks.clear()

    def ended(self, exchange: Exchange, reading: McpReading) -> None:
        """A response has ended."""
        self.responding(exchange, reading)
        ended_ns = exchange.ended_ns or exchange.started_ns
        if reading.events is None and reading.readable and reading.chunks:
            try:
                messages = wire.messages(wire.decoded(b"".join(reading.chunks)))
            except ValueError:
                messages = []
            reading.chunks.clear()
            for message in messages:
                self._message(exchange, reading, message, exchange.head_ns or ended_ns, ended_ns)
        for pending in [*reading.calls]:
            if self._pending.get(_key(exchange, pending.run.session, pending.number)) is pending:
                self._unanswered(exchange, reading, pending, ended_ns)

    def tick(self, now_ns: int) -> None:
        """Gives up calls of which nothing was heard for too long."""
        for pending in [*self._pending.values()]:
            if now_ns - pending.run.started_ns < LONGEST_NS:
                break
            self._finish(pending, now_ns, "cancelled", "cancelled", None)

    def _call(
        self,
        reading: McpReading,
        exchange: Exchange,
        session: bytes | None,
        number: object,
        params: dict[str, Any],
    ) -> None:
        self.calls += 1
        hints = []
        call = exchange.header(_CALL_HEADER)
        if call is not None:
            hints.append(call.decode("latin-1"))
        meta = params.get("_meta")
        if isinstance(meta, dict):
            hints += [value for value in [*meta.values()][:MOST_META] if isinstance(value, str)]
        run = ToolRun(
            params["name"][:200],
            self._matching.digest(params.get("arguments") or {}),
            exchange.started_ns,
            session,
            hints,
        )
        pending = _Pending(run, number, exchange)
        reading.calls.append(pending)
        self._pending[_key(exchange, session, number)] = pending
        while len(self._pending) > MOST_PENDING:
            _, old = self._pending.popitem(last=False)
            self._finish(old, exchange.started_ns, "cancelled", "cancelled", None)
        self._matching.began(run)

    def _event(self, exchange: Exchange, reading: McpReading, event: bytes, at_ns: int) -> None:
        try:
            messages = wire.messages(wire.decoded(event))
        except ValueError:
            return
        for message in messages:
            self._message(exchange, reading, message, at_ns, at_ns)

    def _message(
        self,
        exchange: Exchange,
        reading: McpReading,
        message: dict[str, Any],
        answered_ns: int,
        ended_ns: int,
    ) -> None:
        if wire.is_asking(message):
            if message.get("method") == wire.PROGRESS:
                for pending in reading.calls:
                    pending.progress += 1
            return
        session = exchange.header(b"mcp-session-id")
        number = message.get("id")
        if reading.opens is not None and (number == reading.opens or str(number) == str(reading.opens)):
            self._named(exchange, message.get("result"))
            return
        # Of a stream that was lost the answer may come on another one of the session.
        found = self._pending.get(_key(exchange, session, number))
        if found is None and wire.answers_nobody(message) and len(reading.calls) == 1:
            found = reading.calls[0]
        if found is None or not ("result" in message or "error" in message):
            return
        pending = found
        pending.answered_ns = answered_ns
        meaning = wire.meaning(message)
        error_type = meaning.error_type
        if error_type == wire.INPUT_REQUIRED:
            pending.run.unfinished = True
        status = exchange.status or 0
        if status >= 400 and status not in (400, 404):
            error_type = f"http_{status}"  # then it is the status that tells
        outcome: Literal["ok", "error", "cancelled"] = "ok" if error_type is None else "error"
        if wire.error_code(message.get("error")) in _CANCELLED_CODES:
            outcome, error_type = "cancelled", "cancelled"
        self._finish(pending, ended_ns, outcome, error_type, meaning.server_ns)

    def _unanswered(self, exchange: Exchange, reading: McpReading, pending: _Pending, ended_ns: int) -> None:
        """The response has ended without an answer that could be read."""
        status = exchange.status
        if exchange.outcome == "client gone":
            self._finish(pending, ended_ns, "cancelled", "cancelled", None)
        elif status is None or exchange.outcome != "complete":
            self._finish(pending, ended_ns, "error", "connection", None)
        elif status >= 400:
            self._finish(pending, ended_ns, "error", f"http_{status}", None)
        elif not reading.readable:  # too long, or in an encoding that nothing here reads
            self._finish(pending, ended_ns, "ok", None, None)
        elif reading.events is None or not pending.run.session:
            self._finish(pending, ended_ns, "error", wire.INVALID_REPLY, None)
        # else the stream was lost, and may be taken up again: the answer is waited for

    def _finish(
        self,
        pending: _Pending,
        ended_ns: int,
        status: Literal["ok", "error", "cancelled"],
        error_type: str | None,
        server_ns: int | None,
    ) -> None:
        exchange, run = pending.exchange, pending.run
        self._pending.pop(_key(exchange, run.session, pending.number), None)
        if run.ended_ns is not None:
            return
        if server_ns is None:
            timing = exchange.response_header(b"server-timing")
            server_ns = None if timing is None else wire.server_timing_ns(timing.decode("latin-1"))
        kind = (exchange.response_header(b"content-type") or b"").lower()
        reply: Literal["json", "sse"] | None = None
        if pending.answered_ns is not None:
            reply = "sse" if kind.startswith(b"text/event-stream") else "json"
        run.ended_ns, run.status, run.error_type = ended_ns, status, error_type
        run.unfinished = run.unfinished or status != "ok"
        run.remote = RemoteCall(
            self._name_of(exchange, run.session),
            "http",
            _text(exchange.header(b"mcp-protocol-version")),
            posted_ns=exchange.sent_ns,
            answered_ns=pending.answered_ns,
            server_ns=server_ns,
            reply=reply,
            http_status=exchange.status,
            new_connection=not exchange.reused,
            progress=pending.progress,
        )
        self._matching.finished(run)

    def _cancelled(self, exchange: Exchange, session: bytes | None, number: object) -> None:
        pending = self._pending.get(_key(exchange, session, number))
        if pending is not None:
            self._finish(pending, exchange.started_ns, "cancelled", "cancelled", None)

    def _named(self, exchange: Exchange, result: Any) -> None:
        info = wire.discovered(result) or wire.initialized(result)
        if info is None or not info.name:
            return
        self._names[exchange.upstream, exchange.path] = info.name
        while len(self._names) > MOST_NAMES:
            self._names.popitem(last=False)

    def _name_of(self, exchange: Exchange, session: object) -> str:
        """The name that a server gives itself, else its address."""
        return self._names.get((exchange.upstream, exchange.path)) or exchange.upstream.partition("://")[2]


def _key(exchange: Exchange, session: object, number: object) -> tuple[object, object]:
    """The identity of a call: its number in its session, or without a session on its own request."""
    number = number if isinstance(number, str | int | float) else None
    return (exchange.upstream, session) if session else exchange.number, str(number)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")[:40]
