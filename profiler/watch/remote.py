"""What is known of one request to an MCP server while it happens, and what its end means. Pure."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from profiler.limits.refusals import REJECTING, Returned, asked_wait_ns, status_of
from profiler.mcp.session import META, code_error
from profiler.mcp.wire import server_timing_ns
from profiler.records import Clock, RemoteCall, ToolAttempt, ToolStatus

MOST_NAME = 64
"""Characters of a server's name: it becomes a label of metrics."""

SERVER_NS = f"{META}serverNs"

ROUNDING_NS = 1_000_000
"""A server may round its time up to whole milliseconds."""

_TIMED_OUT = frozenset((-32001, 408))
_CLOSED = -32000

_STAND_INS = frozenset(("Server returned an error response", "Not Found", "Session terminated"))
"""What the SDK says in place of a reply with a status that is no JSON-RPC error."""

_LOST_STREAM = frozenset(("ClosedResourceError", "BrokenResourceError", "EndOfStream"))
_NO_ANSWER = frozenset(("ReadTimeout", "WriteTimeout"))
_TRANSPORT = frozenset(("TransportError", "ConnectionError", "ClientConnectionError", "StreamError"))

Transport = Literal["http", "stdio", "memory"]


def bounded_name(name: object) -> str:
    """A server's name as it is recorded: without control characters, and not too long."""
    text = name if type(name) is str else str(name or "")
    if len(text) > MOST_NAME or not text.isprintable():
        text = "".join(one if one.isprintable() else " " for one in text[:MOST_NAME])
    return text.strip()


@dataclass(slots=True, eq=False, weakref_slot=True)
class Wire:
    """A connection that several calls may share. `lost_by`: the request whose failure ended it."""

    lost_by: Send | None = None
    lost: bool = False


@dataclass(slots=True, eq=False, weakref_slot=True)
class SessionState:
    """What is known of a client's session, from its calls and from its opening.

    `made_for`: the connection of a LangChain client that it was made for.
    """

    server: str = ""
    protocol: str | None = None
    transport: Transport | None = None
    wire: Wire = field(default_factory=Wire)
    made_for: Mapping[str, Any] | None = None


class Send:
    """One request `tools/call`; as in `RemoteCall` where attributes have the same names.

    `answered`: an answer came, from the server or in its place from the client; `heard`: an event of the
    reply held it. `failure`: the `error_type` of what the transport raised. `keys` are those under which it
    is found, with its `message` and the `stream` that it went to, while it is under way. `after_loss`: its
    session was lost before. `returned`: its failure, None for none. `meta`: it may tell its server which call
    it is.
    """

    __slots__ = (
        "after_loss",
        "answered",
        "answered_ns",
        "clock",
        "ended_ns",
        "failure",
        "heard",
        "keys",
        "message",
        "meta",
        "new_connection",
        "posted_ns",
        "progress",
        "reply",
        "retry_after_ns",
        "returned",
        "server_ns",
        "session",
        "started_ns",
        "status",
        "status_word",
        "stream",
        "timing",
        "traced",
    )

    def __init__(self, clock: Clock, session: SessionState, meta: bool = False) -> None:
        self.clock = clock
        self.session = session
        self.started_ns = clock()
        self.after_loss = session.wire.lost
        self.meta = meta
        self.posted_ns: int | None = None
        self.answered_ns: int | None = None
        self.ended_ns: int | None = None
        self.server_ns: int | None = None
        self.retry_after_ns: int | None = None
        self.status: int | None = None
        self.new_connection: bool | None = None
        self.reply: Literal["json", "sse"] | None = None
        self.timing: str | None = None
        self.failure: str | None = None
        self.returned: Returned | None = None
        self.status_word: ToolStatus = "ok"
        self.keys: tuple[Any, ...] = ()
        self.message: Any = None
        self.stream: Any = None
        self.traced = self.answered = self.heard = False
        self.progress = 0

    # What the transport tells.

    def handed_over(self) -> None:
        """Its request goes to the transport: to the writer of a pipe, or to a task that posts it."""
        self.posted_ns = self.clock()

    def traces(self, event: str) -> None:
        """An event of the HTTP connection's: it is posted with the first that a connection is there for."""
        if self.ended_ns is not None:
            return
        if event.endswith(("connect_tcp.started", "connect_unix_socket.started")):
            if not self.new_connection:
                self.new_connection, self.traced = True, True
                self.posted_ns = self.clock()
        elif event.endswith("send_request_headers.started") and not self.traced:
            self.new_connection, self.traced = False, True
            self.posted_ns = self.clock()

    def responds(self, status: int, headers: Mapping[str, str]) -> None:
        """The headers of its response have come."""
        if self.ended_ns is not None:
            return
        now = self.clock()
        self.status = status
        kind = headers.get("content-type", "").lower()
        if kind.startswith("text/event-stream"):
            self.reply = "sse"
        else:
            self.answered_ns = now
            if kind.startswith("application/json"):
                self.reply = "json"
                self.timing = headers.get("server-timing")
        if status >= 400:
            self.retry_after_ns = asked_wait_ns(
                headers.get("retry-after-ms"), headers.get("retry-after"), headers.get("date")
            )

    def event(self, data: str) -> None:
        """An event of an SSE reply has come: the last one before the call ends holds the answer."""
        if data and self.ended_ns is None:  # else it only opens the stream
            self.answered_ns = self.clock()
            self.heard = '"result"' in data or '"error"' in data

    def resolved(self) -> None:
        """The client has found the answer's request. Over HTTP that is later than the answer's first byte."""
        if self.ended_ns is not None:
            return
        self.answered = True
        if self.session.transport != "http" or self.answered_ns is None:
            self.answered_ns = self.clock()

    def broke(self, error: BaseException) -> None:
        """The transport raised this for it, which ends the session."""
        if self.ended_ns is None:
            self.failure = transport_failure(error)
            status = status_of(error)
            if status is not None:
                self.status = status
            if any(kind.__name__ == "PoolTimeout" for kind in type(error).__mro__):
                self.posted_ns = None  # no connection was free
        wire = self.session.wire
        wire.lost = True
        if wire.lost_by is None:
            wire.lost_by = self

    # Its end.

    def came_to(self, result: Any) -> None:
        """It returned, or the framework around it did: a result of MCP's."""
        told = getattr(result, "meta", None)
        if told is not None and isinstance(told, Mapping):
            server_ns = told.get(SERVER_NS)
            if type(server_ns) is int and 0 <= server_ns < 2**62:
                self.server_ns = server_ns
        failed = getattr(result, "is_error", None)
        if failed is None:
            failed = getattr(result, "isError", None)
        if failed is True:
            self._fail(Returned("tool_error", "unknown"))
        self._end()

    def raised(self, error: BaseException) -> None:
        """It raised. What `returned` is None then, it failed for no reason that MCP knows of."""
        error_type = self._error_type(error)
        if error_type is not None:
            signal = "timeout" if error_type == "timeout" else "unknown"
            if self.status in REJECTING:
                signal = "rejected"
            self._fail(Returned(error_type, signal, self.retry_after_ns))  # type: ignore[arg-type]
        elif isinstance(error, asyncio.CancelledError):
            self.status_word = "cancelled"
        no_answer = not self.answered or (self.reply == "sse" and not self.heard)
        if no_answer and (self.status is None or self.status < 400):
            self.answered_ns = None
        self._end()

    def _fail(self, returned: Returned) -> None:
        self.returned = returned
        self.status_word = "timeout" if returned.error_type == "timeout" else "error"

    def _end(self) -> None:
        self.ended_ns = self.clock()
        if self.posted_ns is None and self.returned is None and self.status_word == "ok":
            # A transport that tells nothing: all of it is network and server.
            self.posted_ns, self.answered_ns = self.started_ns, self.ended_ns

    def server_time_ns(self) -> int | None:
        """How long its server took, where that says so."""
        server_ns = self.server_ns
        if server_ns is None and self.reply == "json":  # an event stream's headers come too early for it
            server_ns = server_timing_ns(self.timing)
        return None if server_ns is None else _credible(server_ns, self.posted_ns, self.answered_ns)

    def _error_type(self, error: BaseException) -> str | None:
        names = {kind.__name__ for kind in type(error).__mro__}
        wire = self.session.wire
        if isinstance(error, asyncio.CancelledError):
            if self.failure is not None:
                return self.failure
            return "session_lost" if wire.lost_by is not None and not self.answered else None
        if "MCPError" in names or "McpError" in names:
            return self._of_rpc(error)
        if names & _LOST_STREAM:
            return self._lost()
        return transport_failure(error) if names & _TRANSPORT or status_of(error) is not None else None

    def _of_rpc(self, error: BaseException) -> str:
        data = getattr(error, "error", None)
        code, words = getattr(data, "code", getattr(error, "code", None)), str(getattr(data, "message", ""))
        if self.failure is not None:
            return self.failure
        if self.status is not None and self.status >= 400 and (words in _STAND_INS or not self.answered):
            return f"http_{self.status}"
        if code in _TIMED_OUT and not self.answered:
            return "timeout"
        if code == _CLOSED and (not self.answered or (self.reply == "sse" and not self.heard)):
            return self._lost()
        return code_error(code)

    def _lost(self) -> str:
        """Its session, or its connection, is gone: by its own doing, or by another's."""
        wire = self.session.wire
        if self.failure is not None:
            return self.failure
        theirs = self.after_loss or wire.lost_by is not None
        if self.session.transport != "http":
            wire.lost = True  # the process has ended: later calls find it lost
        return "session_lost" if theirs else "connection"


def transport_failure(error: BaseException) -> str:
    """The `error_type` of what an HTTP client raised."""
    status = status_of(error)
    if status is not None:
        return f"http_{status}"
    names = {kind.__name__ for kind in type(error).__mro__}
    return "timeout" if names & _NO_ANSWER else "connection"


def _credible(server_ns: int, posted_ns: int | None, answered_ns: int | None) -> int | None:
    """A server's time, which can be no longer than the caller waited; None for one that is."""
    if posted_ns is None or answered_ns is None:
        return None
    most_ns = answered_ns - posted_ns
    return min(server_ns, most_ns) if server_ns <= most_ns + ROUNDING_NS else None


class Requests:
    """What is known of the requests of one call; `record` when it has ended, however long after that.

    `sends` in their order. `server` is the name that somebody gave the server, `state` what is known of the
    session of who was called, None where nobody asked. `cut_off`: the call raised, or was cancelled.
    """

    __slots__ = ("cut_off", "sends", "server", "session_wait_ns", "state")

    def __init__(self, sends: list[Send] | None = None, server: str = "", session_wait_ns: int = 0) -> None:
        self.sends = [] if sends is None else sends
        self.server = server
        self.state: SessionState | None = None
        self.session_wait_ns = session_wait_ns
        self.cut_off = False

    def record(self) -> RemoteCall | None:
        """None where nothing was sent, but for a call that was cut off before: its server is known."""
        sends = self.sends
        if not sends:
            known = self.state or SessionState()
            server = self.server or known.server
            if not self.cut_off or not server:
                return None
            transport = known.transport or "memory"
            return RemoteCall(
                server, transport, known.protocol, session_wait_ns=self.session_wait_ns, sends=0
            )
        first, last = sends[0], sends[-1]
        told = [ns for one in sends if (ns := one.server_time_ns()) is not None]
        return RemoteCall(
            server=self.server or last.session.server or last.session.transport or "mcp",
            transport=last.session.transport or "memory",
            protocol=last.session.protocol,
            posted_ns=first.posted_ns,
            answered_ns=last.answered_ns if first.posted_ns is not None else None,
            server_ns=sum(told) if len(told) == len(sends) else None,
            session_wait_ns=self.session_wait_ns,
            reply=last.reply,
            http_status=last.status,
            new_connection=last.new_connection,
            sends=len(sends),
            progress=sum(one.progress for one in sends),
        )

    def attempts(self) -> tuple[ToolAttempt, ...]:
        """Its tries, where there were several, or a server asked for a wait, which only a try can tell."""
        if len(self.sends) < 2 and not any(one.retry_after_ns is not None for one in self.sends):
            return ()
        return tuple(
            ToolAttempt(
                one.started_ns,
                one.started_ns if one.ended_ns is None else one.ended_ns,
                one.status_word,
                None if one.returned is None else one.returned.error_type,
                one.retry_after_ns,
            )
            for one in self.sends
        )
