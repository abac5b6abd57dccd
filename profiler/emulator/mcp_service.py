"""MCP over streamable HTTP: `POST /mcp`, in the stateless protocol and in the one with sessions before it."""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from profiler.emulator import mcp_wire as wire
from profiler.emulator.http1 import Exchange, HttpReply, Outcome, Payload
from profiler.emulator.journal import Entry
from profiler.emulator.limits import Rejected
from profiler.emulator.mcp_tools import OVER_HTTP, McpCall, McpOptions, McpTools
from profiler.emulator.mcp_wire import Ident, Message, Refusal
from profiler.emulator.model_service import JSON
from profiler.emulator.tool_calls import ToolCalls
from profiler.emulator.tool_service import refusal_reply

_SSE = b"content-type: text/event-stream\r\ncache-control: no-cache, no-transform\r\n"
_MOST_SESSIONS = 100_000
_SESSION = b"mcp-session-id"
_RESET_AFTER_NS = 20_000_000  # until then the client has read the part of the reply that comes before


class McpService:
    """The endpoint, and the sessions of clients that began with `initialize`."""

    def __init__(self, calls: ToolCalls, options: McpOptions) -> None:
        self._tools = McpTools(calls, options)
        self._journal = calls.journal
        self._sessions: OrderedDict[str, dict[Ident, _Call]] = OrderedDict()  # with the calls under way

    def __call__(self, exchange: Exchange) -> None:
        """Answer one request."""
        try:
            if exchange.method == b"POST":
                self._post(exchange)
            elif exchange.method == b"DELETE":
                self._delete(exchange)
            else:
                self._refused(exchange, 405, "only POST and DELETE are served: no stream of notifications")
                exchange.send(HttpReply(405, b"allow: POST, DELETE\r\n"))
        except Refusal as refusal:
            self._refused(exchange, refusal.status, str(refusal))
            exchange.send(HttpReply(refusal.status, JSON, refusal.body()))

    def _refused(self, exchange: Exchange, status: int, words: str) -> None:
        self._journal.refused(exchange.method, exchange.path, status, words)

    def _post(self, exchange: Exchange) -> None:
        headers = exchange.headers
        if not wire.accepts_both(headers):
            self._refused(exchange, 406, "accept has to name application/json and text/event-stream")
            exchange.send(HttpReply(406, b""))
            return
        message = wire.read_message(exchange.body)
        if message is None:
            exchange.send(HttpReply(202, b""))
            return
        modern = wire.is_modern(message, headers)
        if modern:
            if message.is_request:
                wire.check_modern(message, headers)
                self._tools.check_headers(message, headers)
            session = ""
        else:
            session = self._session(exchange, message)
        if not message.is_request:
            call = self._sessions[session].get(message.cancels) if session else None
            if call is not None:
                call.cancel()
            exchange.send(HttpReply(202, b""))
        elif message.method == "tools/call":
            self._call(exchange, message, session, modern=modern)
        else:
            self._answer(exchange, message, modern=modern)

    def _session(self, exchange: Exchange, message: Message) -> str:
        """The session that a client of the older protocol names, "" for none. Raises `Refusal`."""
        named = exchange.headers.get(_SESSION)
        if named is None or message.method == "initialize":
            return ""
        session = named.decode("latin-1")
        if session not in self._sessions:
            raise _unknown_session(message.ident)
        return session

    def _answer(self, exchange: Exchange, message: Message, *, modern: bool) -> None:
        status, body = 200, b""
        try:
            body = self._tools.result(message, modern=modern)
        except Refusal as refusal:
            self._refused(exchange, refusal.status, str(refusal))
            status = refusal.status if modern else 200
            body = refusal.body()
        headers = b""
        if message.method == "initialize":
            session = uuid.uuid4().hex
            self._sessions[session] = {}
            if len(self._sessions) > _MOST_SESSIONS:
                self._sessions.popitem(last=False)
            headers = b"mcp-session-id: %b\r\n" % session.encode()
        if status == 200 and self._tools.options.reply == "sse":
            exchange.send(HttpReply(200, _SSE + headers, frames=[(0, wire.event(body))]))
        else:
            exchange.send(HttpReply(status, JSON + headers, body))

    def _call(self, exchange: Exchange, message: Message, session: str, *, modern: bool) -> None:
        kinds = (*OVER_HTTP, "mcp_session_lost") if session else OVER_HTTP
        call = self._tools.begin(message, exchange.received_ns, kinds, modern=modern)
        running = _Call(exchange, call, self._tools, message.ident)
        if session:
            running.forget_in(self._sessions[session], message.ident)
        if call.fault is not None and call.fault.kind == "mcp_session_lost":
            self._sessions.pop(session, None)
        if call.entry.fault is not None:
            self._refused(exchange, call.entry.status, f"fault {call.entry.fault}")
        running.start()

    def _delete(self, exchange: Exchange) -> None:
        named = exchange.headers.get(_SESSION)
        if named is None:
            exchange.send(HttpReply(204, b""))
            return
        if self._sessions.pop(named.decode("latin-1"), None) is None:
            raise _unknown_session(None)
        exchange.send(HttpReply(200, b""))


def _unknown_session(ident: Ident) -> Refusal:
    return Refusal(404, wire.INVALID_REQUEST, "Session not found", ident)


class _Stream:
    """The observer of a reply that streams: what counts as the first byte is the answer, not the head."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry

    def first_byte(self, ns: int) -> None:
        pass

    def finished(self, ns: int, outcome: Outcome) -> None:
        self._entry.finished(ns, outcome)


class _Call:
    """A call and the request that it came in."""

    def __init__(self, exchange: Exchange, call: McpCall, tools: McpTools, ident: Ident) -> None:
        self._exchange = exchange
        self._call = call
        self._tools = tools
        self._ident = ident
        self._streams = call.token is not None or tools.options.reply == "sse"
        self._leave: Callable[[], None] | None = None

    @property
    def entry(self) -> Entry:
        return self._call.entry

    def forget_in(self, running: dict[Ident, _Call], ident: Ident) -> None:
        """Be found in `running` until it has ended."""
        running[ident] = self
        left = self.entry.on_finished

        def ended() -> None:
            if running.get(ident) is self:
                del running[ident]
            if left is not None:
                left()

        self.entry.on_finished = ended

    def start(self) -> None:
        call, exchange = self._call, self._exchange
        entry, fault = call.entry, call.fault
        kind = None if fault is None else fault.kind
        if fault is not None and kind in ("mcp_http_429", "mcp_session_lost", "mcp_accepted", "mcp_silence"):
            self._unserved(kind, int(fault.seconds * 1e9))
            return
        if kind == "mcp_no_answer":
            self._streams = True
        elif kind in ("mcp_reset", "mcp_reset_in_reply"):
            self._streams = False
        if call.spec is None:
            self.answer(entry.due_ns)
            return
        self._leave = self._tools.calls.serve(call.spec, call.spec.name, self)
        if self._leave is not None:
            exchange.on_gone = partial(self._end, "disconnected")
            if self._streams:
                self._open()

    def _open(self, *end: tuple[int, Payload]) -> None:
        """Begin a stream. The head goes out before the tool's work, as the SDK's server has it."""
        frames: list[tuple[int, Payload]] = [(0, b"")]
        frames += [(due_ns, wire.event(body)) for due_ns, body in self._call.progress()]
        frames += end
        self._exchange.send(HttpReply(200, _SSE, frames=frames, open=not end, observer=_Stream(self.entry)))

    def _unserved(self, kind: str | None, seconds_ns: int) -> None:
        """A fault that the tool does not see: the call is turned away before it."""
        entry, exchange = self.entry, self._exchange
        entry.due_ns = entry.received_ns
        if kind == "mcp_silence":
            entry.due_ns = entry.status = 0
            due_ns = entry.received_ns + seconds_ns
            exchange.send(HttpReply(0, b"", due_ns=due_ns, ending="reset", observer=entry))
        elif kind == "mcp_http_429":
            entry.status = 429
            exchange.send(refusal_reply(Rejected(429, "an injected fault", seconds_ns), entry))
        elif kind == "mcp_session_lost":
            entry.status = 404
            exchange.send(HttpReply(404, JSON, _unknown_session(self._ident).body(), observer=entry))
        else:
            entry.status = 202
            exchange.send(HttpReply(202, b"", observer=entry))

    def answer(self, due_ns: int) -> None:
        entry, exchange, fault = self.entry, self._exchange, self._call.fault
        exchange.on_gone = None
        due_ns += self._call.late_ns()
        entry.due_ns = due_ns
        kind = None if fault is None else fault.kind
        if self._streams:
            end: Payload = b": nothing more\n\n" if kind == "mcp_no_answer" else self._event
            if exchange.reply is None:
                self._open((due_ns, end))
            else:
                exchange.end_stream(due_ns, end)
        elif kind == "mcp_reset":
            entry.status = 0
            exchange.send(HttpReply(0, b"", due_ns=due_ns, ending="reset", observer=entry))
        elif kind == "mcp_reset_in_reply":
            frames: list[tuple[int, Payload]] = [(due_ns, self._half), (due_ns + _RESET_AFTER_NS, b"")]
            exchange.send(HttpReply(200, JSON, frames=frames, ending="reset", observer=entry))
        else:
            exchange.send(HttpReply(200, JSON, due_ns=due_ns, at_sending=self._body, observer=entry))

    def _body(self, reply: HttpReply, now: int) -> None:
        server_ns = now - self.entry.received_ns
        reply.headers += wire.server_timing(server_ns)
        reply.body = self._call.answer.body(server_ns)

    def _event(self, now: int) -> bytes:
        self.entry.first_byte(now)
        return wire.event(self._call.answer.body(now - self.entry.received_ns))

    def _half(self, now: int) -> bytes:
        body = self._call.answer.body(now - self.entry.received_ns)
        return body[: len(body) // 2]

    def refuse(self, rejected: Rejected) -> None:
        exchange, entry = self._exchange, self.entry
        self._tools.calls.journal.refused(exchange.method, exchange.path, rejected.status, rejected.reason)
        self._call.fault = None
        if self._tools.refused_form(self._call, rejected):
            entry.status = 200
            self.answer(entry.due_ns)
        else:
            exchange.send(refusal_reply(rejected, entry))

    def cancel(self) -> None:
        """The client does not want it any more, and says so."""
        self._end("cancelled")
        if self._call.fault is not None and self._call.fault.kind == "mcp_silence":
            return  # and stay silent
        body = wire.error_body(self._ident, wire.CANCELLED, "Request cancelled")
        if self._streams:
            self._exchange.end_stream(0, wire.event(body))
        elif not self._exchange.begun:  # else it is being reset in its middle
            self._exchange.send(HttpReply(200, JSON, body))

    def _end(self, outcome: str) -> None:
        if self._leave is not None:
            self._leave()
        self._exchange.on_gone = None
        self.entry.finished(time.monotonic_ns(), outcome)
