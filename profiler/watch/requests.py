"""Model requests of a loop that is not ours, as they pass the transport of its SDK's HTTP client."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx2

from profiler.loop.lag import late_ns
from profiler.loop.model import CallRequest, current_probe
from profiler.providers.connections import MOST_BYTES, TooLarge, decoded, transport_error_type
from profiler.providers.failures import error_type_of
from profiler.providers.replies import Api, ReplyReader, begins_stream, reader_of
from profiler.records import Clock
from profiler.watch.circumstances import circumstances
from profiler.watch.rounds import NO_REPLY, ObservedRound

_RETRY_HEADER = b"x-stainless-retry-count"


@dataclass(slots=True, eq=False)
class WatchedRequest:
    """One attempt of a watched model request, as an `Observation` of `profiler.providers.attempts`."""

    api: Api
    round: ObservedRound
    clock: Clock
    ok: bool = False
    ended: bool = False
    reader: ReplyReader | None = None
    inflate: Any = None
    chunks: list[bytes] = field(default_factory=list)
    head: Any = None  # the headers of a response that is compressed otherwise than by gzip
    size: int = 0

    def begin(self) -> Callable[[], None]:
        return partial(current_probe.reset, current_probe.set(self.round.probe))

    def responded(self, response: Any) -> None:
        self.ok = response.status_code < 300  # what a redirection leads to is the next attempt
        self.round.error_type = None if self.ok else f"http_{response.status_code}"
        # Not `response.headers`: each look-up there decodes all headers.
        streamed, encoding = False, b""
        for name, value in response.headers.raw:
            lower = name.lower()
            if lower == b"content-type":
                streamed = value.lower().startswith(b"text/event-stream")
            elif lower == b"content-encoding":
                encoding = value.strip().lower()
        if not self.ok:
            return
        round_ = self.round
        round_.streamed = streamed
        round_.probe.on_arguments = self._arguments_complete
        self.reader = reader_of(self.api, round_.probe, keeps=False)
        if encoding == b"gzip":
            self.inflate = zlib.decompressobj(wbits=31)  # a stream is read as it comes
        elif encoding not in (b"", b"identity"):
            self.head = response.headers

    def _arguments_complete(self, request: CallRequest) -> None:
        self.round.unclaimed.append((request, self.clock()))

    def on_chunk(self, data: bytes) -> None:
        reader, round_ = self.reader, self.round
        if reader is None:
            return
        if self.head is not None:
            self.chunks.append(data)
            return
        if self.inflate is not None:
            try:
                data = self.inflate.decompress(data, MOST_BYTES + 1)
            except zlib.error as error:  # which the application gets, too
                self._cannot_read(httpx2.DecodingError(str(error)))
                return
        self.size += len(data)
        if self.size > MOST_BYTES:  # the application may go on to read it
            self._cannot_read(TooLarge())
            return
        if round_.read_in is None and data:
            round_.read_in = circumstances()
            if not round_.streamed:  # servers may forget to say that they stream
                round_.streamed = begins_stream(data)
        if round_.streamed:
            reader.feed(data)
        else:
            self.chunks.append(data)

    def end(self, error: BaseException | None = None) -> None:
        """The body has been read or given up, or has failed. Only the first call counts."""
        if self.ended:
            return
        self.ended = True
        round_ = self.round
        round_.ended_ns = self.clock()
        round_.late_ns = late_ns()
        if error is not None and not isinstance(error, asyncio.CancelledError):
            attempts = round_.probe.attempts
            round_.error_type = (attempts[-1].error_type if attempts else None) or "connection"
        reader = self.reader
        if reader is None or round_.unread:
            return
        if error is not None:
            round_.reply = reader.so_far()
            return
        self._read(reader)
        if round_.unread:
            return
        round_.reply = reader.reply(None)
        if reader.error is not None:
            round_.error_type = error_type_of(reader.error)
        elif reader.broken is not None:
            round_.error_type = "unreadable"
        elif not reader.complete:
            round_.error_type = "truncated_stream" if round_.streamed else "unreadable"

    def unreadable(self) -> None:
        """The record says that something is missing, in place of what was read until then."""
        self.round.unread += 1
        self.reader, self.chunks = None, []
        self.round.reply = NO_REPLY

    def _cannot_read(self, error: Exception) -> None:
        self.unreadable()
        self.round.error_type = transport_error_type(error)

    def _read(self, reader: ReplyReader) -> None:
        """Read what could not be read as it came."""
        body = b"".join(self.chunks)
        if self.head is not None:  # only now can it be decompressed, by httpx2's own decoders
            try:
                body = decoded(self.head, body)
            except (httpx2.DecodingError, TooLarge) as error:  # as above
                self._cannot_read(error)
                return
        if self.round.streamed:
            if body:
                reader.feed(body)
            reader.end()
            return
        reader.read(body)
        now = self.clock()
        self.round.unclaimed.extend((request, now) for request in reader.calls if not request.truncated)


def body_of(request: httpx2.Request) -> bytes:
    """The body of a request that is about to be sent; empty where it is streamed, and can be read once."""
    try:
        return request.content
    except httpx2.RequestNotRead:  # a redirection is followed by a request that has only the stream
        return b"".join(request.stream) if isinstance(request.stream, httpx2.ByteStream) else b""


def is_retry(request: httpx2.Request) -> bool:
    """Whether the SDK sends a request again."""
    # Not `request.headers`: a look-up there decodes all headers first.
    return any(name.lower() == _RETRY_HEADER and value != b"0" for name, value in request.headers.raw)
