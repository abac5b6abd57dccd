"""One request to a model and its response, read as they go by: when what came, and what it says. Pure.

Whatever servers send is read without raising (`profiler.providers.replies`), and no content of it is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from profiler.loop.model import CallRequest, Probe
from profiler.providers.attempts import read_headers
from profiler.providers.connections import MOST_BYTES
from profiler.providers.failures import error_type_of
from profiler.providers.replies import ReplyReader, begins_stream, reader_of
from profiler.proxy.asked import Asked
from profiler.proxy.coding import Decode, decoder
from profiler.proxy.seen import Exchange
from profiler.recordings.drafts import ModelDraft
from profiler.records import Attempt, Status

RETRIED = frozenset((408, 409, 425, 429, 529))
"""Statuses, beside all from 500, after which clients send a request again."""


@dataclass(slots=True)
class AskedCall:
    """A call that a reply asked for. `made_up`: the server gave it no id, so nobody else knows this one."""

    id: str
    name: str
    asked_ns: int
    arguments: Any
    truncated: bool = False
    made_up: bool = False


@dataclass(slots=True)
class Told:
    """What the response said. `model` is of this one request; `calls` are those that its client may run.

    `paused`: the server interrupted its turn, and goes on when asked to. `transient`: it failed in a way
    after which clients try again.
    """

    model: ModelDraft
    calls: list[AskedCall] = field(default_factory=list)
    paused: bool = False
    transient: bool = False
    server_ids: tuple[str, ...] = ()
    response_id: str | None = None

    @property
    def status(self) -> Status:
        return self.model.status

    @property
    def ended_ns(self) -> int:
        assert self.model.ended_ns is not None
        return self.model.ended_ns


class Reading:
    """Reads the response of one exchange: `more` as it arrives, then `told`, once."""

    __slots__ = (
        "_asked",
        "_begun",
        "_chunks",
        "_decode",
        "_now_ns",
        "_probe",
        "_reader",
        "_size",
        "_streamed",
        "_unread",
    )

    def __init__(self, asked: Asked, started_ns: int) -> None:
        self._asked = asked
        self._now_ns = started_ns
        self._probe = Probe(self._clock)
        self._reader: ReplyReader | None = None
        self._decode: Decode | None = None
        self._begun = False
        self._streamed = False
        self._unread = False
        self._chunks: list[bytes] = []
        self._size = 0

    def _clock(self) -> int:
        return self._now_ns

    def more(self, exchange: Exchange) -> None:
        """The head of the response has come, or more of its body, which is taken from the exchange."""
        if not self._begun and exchange.status is not None:
            self._begun = True
            self._head(exchange, exchange.status)
        body = exchange.response
        pieces, body.pieces = body.pieces, []
        reader = self._reader
        if reader is None:
            return
        if not body.kept:
            self._cannot_read()
            return
        for at_ns, raw in pieces:
            data = raw
            if self._decode is not None:
                try:
                    data = self._decode(raw)
                except Exception:  # of any decoder; its client sees the same, and will say so
                    self._cannot_read()
                    return
            if not data:
                continue
            self._now_ns = at_ns
            if not self._size and not self._streamed:  # servers may forget to say that they stream
                self._streamed = begins_stream(data)
            self._size += len(data)
            if self._size > MOST_BYTES:
                self._cannot_read()
                return
            if self._streamed:
                reader.feed(data)
            else:
                self._chunks.append(data)

    @property
    def is_whole(self) -> bool:
        """It has said all, whether its response has ended or not."""
        reader = self._reader
        return self._streamed and reader is not None and reader.done and reader.usable

    def told(self, exchange: Exchange) -> Told:
        """What it said, now that it has ended, or is whole."""
        self.more(exchange)
        asked, probe, reader = self._asked, self._probe, self._reader
        ended_ns = exchange.ended_ns if exchange.ended_ns is not None else self._now_ns
        request_id, retry_after_ns, rate_limits = read_headers(exchange.response_headers, ())
        outcome, status = exchange.outcome, exchange.status
        error_type: str | None = None
        state: Status = "ok"
        if status is None:
            gone = outcome == "client gone"
            state, error_type = ("cancelled", "cancelled") if gone else ("error", "connection")
        elif status >= 300:
            state, error_type = "error", f"http_{status}"
        whole = outcome == "complete" or (reader is not None and reader.done and reader.usable)
        if reader is not None and not self._unread:
            if whole:
                if outcome != "complete":
                    ended_ns = self._now_ns  # its client had all that it wanted, and closed the connection
                self._end(reader, ended_ns)
                if reader.error is not None:
                    state, error_type = "error", error_type_of(reader.error)
                elif reader.broken is not None:
                    state, error_type = "error", "unreadable"
                elif not reader.complete:
                    state, error_type = "error", "truncated_stream" if self._streamed else "unreadable"
            else:
                reader.so_far()
                # A client that hangs up on what it cannot read has not cancelled: the reply was at fault.
                if state == "ok" and reader.error is not None:
                    state, error_type = "error", error_type_of(reader.error)
                elif state == "ok" and reader.broken is not None:
                    state, error_type = "error", "unreadable"
        if state == "ok" and not whole:
            gone = outcome == "client gone"
            state, error_type = ("cancelled", "cancelled") if gone else ("error", "reset")
        attempt = Attempt(
            exchange.started_ns,
            ended_ns,
            status,
            error_type if status is None or (state != "ok" and status < 300) else None,
            request_id,
            exchange.connected_ns,
            exchange.sent_ns,
            exchange.head_ns,
            retry_after_ns,
            rate_limits,
        )
        model = ModelDraft(
            provider=asked.api,
            model=asked.model,
            started_ns=exchange.started_ns,
            ended_ns=ended_ns,
            status=state,
            error_type=error_type,
            request_id=request_id,
            streamed=self._streamed,
            first_token_ns=probe.first_token_ns,
            first_output_ns=probe.first_output_ns,
            first_tool_call_ns=probe.first_tool_call_ns,
            attempts=(attempt,),
            unreadable=int(self._unread),
        )
        told = Told(model)
        # Of a stream that broke off the server's own word is the last; who is gone may come back.
        told.transient = state == "cancelled" or (
            state == "error" and (status is None or status < 300 or status >= 500 or status in RETRIED)
        )
        if reader is not None and not self._unread:
            self._take(told, reader, ended_ns)
        return told

    def _head(self, exchange: Exchange, status: int) -> None:
        encoding = b""
        for name, value in exchange.response_headers:
            if name == b"content-type":
                self._streamed = value.lower().startswith(b"text/event-stream")
            elif name == b"content-encoding":
                encoding = value.strip().lower()
        if status >= 300:
            return
        self._reader = reader_of(self._asked.api, self._probe, keeps=False)
        if encoding not in (b"", b"identity"):
            self._decode = decoder(encoding)
            if self._decode is None:
                self._cannot_read()

    def _cannot_read(self) -> None:
        self._unread = True
        self._reader = None
        self._chunks.clear()

    def _end(self, reader: ReplyReader, ended_ns: int) -> None:
        self._now_ns = ended_ns if not self._streamed else self._now_ns
        if self._streamed:
            reader.end()
        else:
            reader.read(b"".join(self._chunks))
            self._chunks.clear()

    def _take(self, told: Told, reader: ReplyReader, ended_ns: int) -> None:
        model = told.model
        model.finish_reason = reader.finish_reason
        model.input_tokens, model.output_tokens = reader.input_tokens, reader.output_tokens
        model.cached_tokens = reader.cached_tokens
        model.cache_written_tokens = reader.cache_written_tokens
        model.cache_written_1h_tokens = reader.cache_written_1h_tokens
        model.reasoning_tokens = reader.reasoning_tokens
        model.server_tools = tuple(reader.server_tools)
        model.unreadable += reader.unreadable
        told.paused, told.response_id = reader.paused, reader.response_id
        if reader.paused:
            told.server_ids = tuple(reader.server_ids)
        complete = self._probe.complete
        calls: list[CallRequest] = reader.calls
        if not reader.usable:  # a client may run the calls that had come
            calls = [request for request, _ in complete]
        for ident, name in reader.other_calls:
            told.calls.append(AskedCall(ident, name, ended_ns, {}))
        if not calls:
            return
        since = {id(request): at_ns for request, at_ns in complete}
        for request in calls:
            told.calls.append(
                AskedCall(
                    request.id,
                    request.name,
                    min(since.get(id(request), ended_ns), ended_ns),
                    request.arguments,
                    request.truncated,
                    request.id in reader.made_up,
                )
            )


def body_of(exchange: Exchange) -> bytes | None:
    """The body of the request, taken from the exchange; None where it was not kept or cannot be read.

    Some clients compress what they send.
    """
    kept = exchange.request
    body = kept.whole() if kept.kept else None
    kept.pieces.clear()
    encoding = exchange.header(b"content-encoding")
    if body is None or encoding is None:
        return body
    decode = decoder(encoding)
    try:
        return None if decode is None else decode(body)
    except Exception:  # of any decoder; the server will say so
        return None
