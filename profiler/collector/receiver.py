"""The collector's HTTP interface: requests and their answers. An application for `http1.Server`.

    POST /v1/traces                 spans: OTLP, as protobuf or JSON
    POST /v1/metrics, /v1/logs      taken and dropped, in words: exporters of one endpoint send all three
    GET  /metrics, /healthz

A request that is taken is answered with an empty message in its own encoding. One that is not is answered
with a status that exporters do not try again (4xx), or, where they should, with 503.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from profiler.collector.bodies import (
    CONTENT_TYPES,
    Encoding,
    Refused,
    accepted,
    counted,
    encoding_of,
    parsed,
    refusal_body,
    unpacked_body,
)
from profiler.emulator.access import refusal, split_target
from profiler.emulator.http1 import Connection, Exchange, HttpReply, Server
from profiler.recordings.otlp import spans_of_request
from profiler.recordings.span import Span

GRPC = (
    "a client speaks gRPC (HTTP/2) to this port, which is not served: set"
    " OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf where it runs, or use a collector's otlphttp exporter"
)

ACCESS = ("the collector's own endpoints answer localhost alone", "profiler collect")

_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n"
_TEXT = b"content-type: text/plain; charset=utf-8\r\n"
_SIGNALS = {b"/v1/traces": "traces", b"/v1/metrics": "metrics", b"/v1/logs": "logs"}
_OF_PAGES = (b"origin", b"sec-fetch-site", b"sec-fetch-mode")
_MORE_HEADERS = {405: b"allow: POST\r\n", 503: b"retry-after: 2\r\n"}


class Taker(Protocol):
    """Takes the spans that come in."""

    @property
    def behind(self) -> str:
        """Why it can take no more now, and whoever has more should wait; empty where it can."""
        ...

    def take(self, spans: list[Span], unreadable: int, remote: Collection[tuple[str, str]]) -> None:
        """Spans came, beside so many that could not be read. `remote`: those (trace, id) whose parent is in
        another process."""
        ...

    def count_request(self, signal: str, status: int) -> None:
        """A request was answered with this status."""
        ...

    def say_once(self, words: str) -> None:
        """Tell the user of something that needs a change elsewhere, however often it happens."""
        ...


class Receiver:
    """The application. `show` answers a request for `/metrics`.

    `allowed`: hosts beside localhost under which `/metrics` is shown (`access.allowed_host`).
    """

    def __init__(self, taker: Taker, show: Callable[[Exchange], None], allowed: Collection[str] = ()) -> None:
        self._taker = taker
        self._show = show
        self._allowed = frozenset(allowed)

    def __call__(self, exchange: Exchange) -> None:
        """Answer one request."""
        authority, path = split_target(exchange.path)
        signal = _SIGNALS.get(path)
        if signal is not None:
            self._post(exchange, signal)
        elif path not in (b"/healthz", b"/metrics"):
            _say(exchange, 404, f"nothing is at {path.decode('latin-1')[:80]!r}: spans go to /v1/traces")
        elif exchange.method not in (b"GET", b"HEAD"):
            _say(exchange, 405, "GET is what is answered here", b"allow: GET, HEAD\r\n")
        elif path == b"/healthz":
            _say(exchange, 200, "ok")
        elif (refused := refusal(exchange.headers, authority, self._allowed, ACCESS)) is not None:
            _say(exchange, refused.status, refused.words)
        else:
            self._show(exchange)

    def unread(self, method: bytes, path: bytes, status: int, reason: str) -> None:
        """For `http1.Server`: a request that could not be read was answered."""
        self._taker.count_request("other", status)

    def _post(self, exchange: Exchange, signal: str) -> None:
        encoding = encoding_of(exchange.headers)
        try:
            body, status = self._answer(exchange, signal, encoding), 200
        except Refused as refused:
            status = refused.status
            if encoding is None:
                body = refused.words.encode() + b"\n"
            else:
                body = refusal_body(encoding, status, refused.words)
        self._taker.count_request(signal, status)
        kind = _TEXT if encoding is None else b"content-type: " + CONTENT_TYPES[encoding] + b"\r\n"
        exchange.send(HttpReply(status, kind + _MORE_HEADERS.get(status, b""), body))

    def _answer(self, exchange: Exchange, signal: str, encoding: Encoding | None) -> bytes:
        headers = exchange.headers
        if exchange.method != b"POST":
            raise Refused(405, "POST is what is answered here")
        if encoding is None:
            given = headers.get(b"content-type", b"").decode("latin-1")[:60]
            raise Refused(
                415, f"Content-Type {given!r} is not read: send application/x-protobuf or application/json"
            )
        # A page of the web may not send: its browser says where it is from.
        said = {name: headers[name] for name in _OF_PAGES if name in headers}
        of_page = refusal(said, None, self._allowed, ACCESS)
        if of_page is not None:
            raise Refused(of_page.status, of_page.words)
        if signal != "traces":
            self._taker.say_once(f"{signal} come in too, and are dropped: only spans are kept")
            return accepted(encoding, 0, f"{signal} are dropped here: only spans are kept")
        if behind := self._taker.behind:
            raise Refused(503, f"{behind}: try again")
        message = parsed(encoding, unpacked_body(headers, exchange.body))
        try:
            spans = spans_of_request(message)
            held = counted(message)
        except ValueError as error:
            raise Refused(400, f"the body is no ExportTraceServiceRequest: {error}") from error
        unreadable = held.spans - len(spans)
        self._taker.take(spans, unreadable, held.remote)
        return accepted(encoding, unreadable, "spans without ids, or without a start" if unreadable else "")


class CollectorConnection(Connection):
    """A connection on which gRPC is recognised: `on_http2` is told of it, and the client gets a 400."""

    def __init__(self, server: Server, on_http2: Callable[[], None]) -> None:
        super().__init__(server)
        self._on_http2: Callable[[], None] | None = on_http2

    def data_received(self, data: bytes) -> None:
        on_http2, self._on_http2 = self._on_http2, None
        if on_http2 is not None and data.startswith(_HTTP2_PREFACE):
            on_http2()
        super().data_received(data)


def _say(exchange: Exchange, status: int, words: str, headers: bytes = b"") -> None:
    exchange.send(HttpReply(status, _TEXT + headers, words.encode() + b"\n"))
