"""Watches model requests of somebody else's loop at the transport of the SDK's HTTP client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx2

from profiler.loop.model import CallRequest, current_probe
from profiler.providers.attempts import AsyncAttempts, AsyncTee, Attempts, Tee
from profiler.providers.wire import Api, EventReader, ObservedReply, read_json
from profiler.records import Clock
from profiler.watch.loop import ObservedRound


class WatchedRequest:
    """One attempt of a watched model request."""

    __slots__ = ("_chunks", "_ended", "_events", "_head", "api", "clock", "ok", "round")

    def __init__(self, api: Api, round_: ObservedRound, clock: Clock) -> None:
        self.api = api
        self.round = round_
        self.clock = clock
        self.ok = False
        self._ended = False
        self._events: EventReader | None = None
        self._chunks: list[bytes] = []
        self._head: tuple[int, Any] | None = None  # status and headers of a compressed response

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
                self._head = (response.status_code, response.headers)
        if streamed:
            self.round.streamed = True
            self._events = EventReader(self.api, self.round.probe.token, self._call_complete)

    def _call_complete(self, request: CallRequest) -> None:
        now = self.clock()
        self.round.probe.call_complete(request)
        self.round.unclaimed.append((request, now))

    def chunk(self, data: bytes) -> None:
        if self._events is not None and self._head is None:
            self._events.feed(data)
        elif self.ok:
            self._chunks.append(data)

    def end(self, error: BaseException | None) -> None:
        """The body has been read or given up, or has failed. Only the first call counts."""
        if self._ended:
            return
        self._ended = True
        round_ = self.round
        round_.ended_ns = self.clock()
        if error is not None:
            if not isinstance(error, asyncio.CancelledError):
                attempts = round_.probe.attempts
                round_.error_type = (attempts[-1].error_type if attempts else None) or "connection"
            return
        if not self.ok:
            return
        observed = self._read()
        round_.finish_reason = observed.finish_reason
        round_.input_tokens = observed.input_tokens
        round_.output_tokens = observed.output_tokens
        if not observed.complete and round_.error_type is None:
            round_.error_type = "truncated_stream" if round_.streamed else "unreadable"

    def _read(self) -> ObservedReply:
        body = b"".join(self._chunks)
        if self._head is not None:  # only now can it be decompressed, by httpx2's own decoders
            body = httpx2.Response(self._head[0], headers=self._head[1], content=body).content
        if self._events is not None:
            if body:
                self._events.feed(body)
            return self._events.observed
        observed = read_json(self.api, body)
        now = self.clock()
        self.round.unclaimed.extend((request, now) for request in observed.calls)
        return observed


Observe = Callable[[httpx2.Request], WatchedRequest | None]
"""Begins to watch a request; None when it is not to be watched."""


class AsyncWatch(httpx2.AsyncBaseTransport):
    """An async transport that watches the requests `observe` picks, for its `owner`."""

    observes_attempts = True

    def __init__(self, owner: object, observe: Observe, original: httpx2.AsyncBaseTransport) -> None:
        self.owner = owner
        self.original = original
        self._observe = observe
        observed = getattr(original, "observes_attempts", False)
        self._inner = original if observed else AsyncAttempts(original)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        watched = self._observe(request)
        if watched is None:
            return await self._inner.handle_async_request(request)
        token = current_probe.set(watched.round.probe)
        try:
            response = await self._inner.handle_async_request(request)
        except BaseException as error:
            watched.end(error)
            raise
        finally:
            current_probe.reset(token)
        watched.responded(response)
        response.stream = AsyncTee.over(response.stream, watched.end, watched.chunk)
        return response

    async def aclose(self) -> None:
        await self.original.aclose()


class Watch(httpx2.BaseTransport):
    """`AsyncWatch` for a sync client."""

    observes_attempts = True

    def __init__(self, owner: object, observe: Observe, original: httpx2.BaseTransport) -> None:
        self.owner = owner
        self.original = original
        self._observe = observe
        observed = getattr(original, "observes_attempts", False)
        self._inner = original if observed else Attempts(original)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        watched = self._observe(request)
        if watched is None:
            return self._inner.handle_request(request)
        token = current_probe.set(watched.round.probe)
        try:
            response = self._inner.handle_request(request)
        except BaseException as error:
            watched.end(error)
            raise
        finally:
            current_probe.reset(token)
        watched.responded(response)
        response.stream = Tee.over(response.stream, watched.end, watched.chunk)
        return response

    def close(self) -> None:
        self.original.close()
