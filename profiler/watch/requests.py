"""Model requests of a loop that is not ours, as they pass the transport of its SDK's HTTP client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx2

from profiler.loop.lag import late_ns
from profiler.loop.model import CallRequest, current_probe
from profiler.providers.wire import Api, EventReader, ObservedReply, read_json
from profiler.records import Clock
from profiler.watch.circumstances import circumstances
from profiler.watch.rounds import ObservedRound

_RETRY_HEADER = b"x-stainless-retry-count"


@dataclass(slots=True, eq=False)
class WatchedRequest:
    """One attempt of a watched model request, as an `Observation` of `profiler.providers.attempts`."""

    api: Api
    round: ObservedRound
    clock: Clock
    ok: bool = False
    ended: bool = False
    events: EventReader | None = None
    chunks: list[bytes] = field(default_factory=list)
    head: tuple[int, Any] | None = None  # status and headers of a compressed response

    def begin(self) -> Callable[[], None]:
        return partial(current_probe.reset, current_probe.set(self.round.probe))

    def responded(self, response: Any) -> None:
        self.ok = response.status_code < 400
        self.round.error_type = None if self.ok else f"http_{response.status_code}"
        # Not `response.headers`: each look-up there decodes all headers.
        streamed = False
        for name, value in response.headers.raw:
            lower = name.lower()
            if lower == b"content-type":
                streamed = value.startswith(b"text/event-stream")
            elif lower == b"content-encoding":
                self.head = (response.status_code, response.headers)
        if streamed:
            self.round.streamed = True
            self.events = EventReader(self.api, self.round.probe.token, self._call_complete)

    def _call_complete(self, request: CallRequest) -> None:
        now = self.clock()
        self.round.probe.call_complete(request)
        self.round.unclaimed.append((request, now))

    def on_chunk(self, data: bytes) -> None:
        if self.events is not None and self.head is None:
            if self.round.read_in is None:
                self.round.read_in = circumstances()
            self.events.feed(data)
        elif self.ok:
            self.chunks.append(data)

    def end(self, error: BaseException | None = None) -> None:
        """The body has been read or given up, or has failed. Only the first call counts."""
        if self.ended:
            return
        self.ended = True
        round_ = self.round
        round_.ended_ns = self.clock()
        round_.late_ns = late_ns()
        if error is not None:
            if not isinstance(error, asyncio.CancelledError):
                attempts = round_.probe.attempts
                round_.error_type = (attempts[-1].error_type if attempts else None) or "connection"
            return
        if not self.ok:
            return
        round_.reply = self._read()
        if not round_.reply.complete and round_.error_type is None:
            round_.error_type = "truncated_stream" if round_.streamed else "unreadable"

    def _read(self) -> ObservedReply:
        body = b"".join(self.chunks)
        if self.head is not None:  # only now can it be decompressed, by httpx2's own decoders
            body = httpx2.Response(self.head[0], headers=self.head[1], content=body).content
        if self.events is not None:
            if body:
                self.events.feed(body)
            return self.events.observed
        observed = read_json(self.api, body)
        now = self.clock()
        self.round.unclaimed.extend((request, now) for request in observed.calls)
        return observed


def is_retry(request: httpx2.Request) -> bool:
    """Whether the SDK sends a request again."""
    # Not `request.headers`: a look-up there decodes all headers first.
    return any(name.lower() == _RETRY_HEADER and value != b"0" for name, value in request.headers.raw)
