"""Observes HTTP requests at the transport of an SDK's client, beneath the SDK's own retries.

The SDKs retry inside one call, so a retry looks like a slow model. With `observe_attempts` each try
becomes an `Attempt` of the probe that is current in the caller's context; without a probe requests pass
through untouched. `ObservedTransport` and `AsyncObservedTransport` do the same for other observers. Whatever
an observer does runs inside a `Boundary`: one that fails leaves the request as it would have been.

httpx2 has no public way to reach the transport of an existing client, which is what users pass in; a
client without `_transport` is left alone, and its attempts are not seen.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, Self

import httpx2

from profiler.limits.quotas import is_rate_limit, kept
from profiler.limits.refusals import asked_wait_ns
from profiler.loop.boundary import Boundary, within
from profiler.loop.lag import late_ns
from profiler.loop.ledger import current_ledger
from profiler.loop.model import Probe, current_probe
from profiler.providers.connections import transport_error_type
from profiler.records import Attempt
from profiler.redaction import carried_secrets, scrub_echo

_REQUEST_ID = ("x-request-id", "request-id")
_READ_HEADERS = frozenset((*_REQUEST_ID, "retry-after", "retry-after-ms", "date"))


_boundary = Boundary()
"""The boundary of attempts for which no other one is given."""


def observe_attempts(http_client: Any) -> None:
    """Wrap the transports of an `httpx2.AsyncClient` or `httpx2.Client`, once."""
    asynchronous = isinstance(http_client, httpx2.AsyncClient)
    for put, transport in transports(http_client):
        put(with_attempts(transport, asynchronous))


def with_attempts(transport: Any, asynchronous: bool, boundary: Boundary = _boundary) -> Any:
    """A transport that makes attempts of its requests, unless it is observed already.

    `asynchronous` is the client: a transport may serve both kinds.
    """
    if isinstance(transport, AsyncObservedTransport | ObservedTransport):
        return transport
    if asynchronous:
        trace = None if boundary.call("request", _trace_aiohttp, transport, boundary) else _AsyncTrace
        return AsyncObservedTransport(transport, partial(_open_attempt, trace, boundary), boundary)
    return ObservedTransport(transport, partial(_open_attempt, _Trace, boundary), boundary)


def transports(http_client: Any) -> Iterator[tuple[Callable[[Any], None], Any]]:
    """(function that replaces it, transport) for each transport of a client, those for proxies included."""
    transport = getattr(http_client, "_transport", None)
    if transport is not None:
        yield partial(setattr, http_client, "_transport"), transport
    mounts = getattr(http_client, "_mounts", None) or {}
    for pattern, mounted in list(mounts.items()):
        if mounted is not None:
            yield partial(mounts.__setitem__, pattern), mounted


class OpenAttempt:
    """An attempt under way, as an `Observation`. The probe gets it when it ends, one way or the other."""

    on_chunk: OnChunk | None = None

    __slots__ = (
        "_probe",
        "boundary",
        "connected_ns",
        "first_byte_ns",
        "headers",
        "sent_ns",
        "started_ns",
        "status",
    )

    def __init__(self, probe: Probe, boundary: Boundary) -> None:
        self.boundary = boundary
        self._probe: Probe | None = probe
        self.started_ns = probe.clock()
        self._count_sending(probe.began_ns + probe.limiter_wait_ns)
        self.connected_ns: int | None = None
        self.sent_ns: int | None = None
        self.first_byte_ns: int | None = None
        self.status: int | None = None
        self.headers: list[tuple[bytes, bytes]] = []

    def begin(self) -> Callable[[], None]:
        return partial(_current.reset, _current.set(self))

    @within("request")
    def note(self, moment: str) -> None:
        """`connected_ns` or `sent_ns` is now."""
        if self._probe is None:
            return
        setattr(self, moment, self._probe.clock())
        loop = asyncio._get_running_loop()
        if moment != "sent_ns" or loop is None:
            late_ns()  # the more looks, the better what the last one says
        else:  # aiohttp's writer is a task of its own, whose turn comes before that of the count
            loop.call_soon(self._count_sending, self.started_ns)

    @within("request")
    def _count_sending(self, since_ns: int) -> None:
        """Count the time since then in which this process was busy with sending the first attempt."""
        busy_ns, probe = late_ns(), self._probe
        if busy_ns and probe is not None and not probe.attempts:
            probe.sending_ns += max(0, min(busy_ns, probe.clock() - since_ns))

    def responded(self, response: Any) -> None:
        self.answered(response.status_code, response.headers.raw)

    def answered(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """The same, without an object of a response."""
        assert self._probe is not None
        if (ledger := current_ledger.get()) is not None:
            ledger.responded(status)
        self.first_byte_ns = self._probe.clock()
        self.status, self.headers = status, headers

    def unreadable(self) -> None:
        """Nothing of an attempt is read but its headers."""

    def end(self, error: BaseException | None = None) -> None:
        probe, self._probe = self._probe, None
        if probe is None:
            return
        request_id, retry_after_ns, rate_limits = read_headers(
            self.headers, carried_secrets(probe.sent_headers)
        )
        probe.attempts.append(
            Attempt(
                self.started_ns,
                probe.clock(),
                self.status,
                None if error is None else transport_error_type(error),
                request_id,
                self.connected_ns,
                self.sent_ns,
                self.first_byte_ns,
                retry_after_ns,
                rate_limits,
            )
        )


_current: ContextVar[OpenAttempt | None] = ContextVar("toolloop_current_attempt", default=None)


def _open_attempt(
    trace: Callable[[OpenAttempt], Any] | None, boundary: Boundary, request: httpx2.Request
) -> OpenAttempt | None:
    probe = current_probe.get()
    if probe is None:
        return None
    if (ledger := current_ledger.get()) is not None:
        ledger.sent()
    probe.url, probe.sent_headers = request.url, request.headers.raw
    attempt = OpenAttempt(probe, boundary)
    if trace is not None:
        known = request.extensions.get("trace")
        # A redirection keeps that of the attempt before, and a challenge to log in the whole request.
        if known is None or isinstance(known, _Trace | _AsyncTrace):
            request.extensions["trace"] = trace(attempt)
    return attempt


def read_headers(
    headers: Iterable[tuple[bytes, bytes]], secrets: Collection[str]
) -> tuple[str | None, int | None, dict[str, str] | None]:
    """Request id, retry-after in nanoseconds, rate-limit headers; each None when there is none.

    None of the `secrets` is in them, should a server send back what it was sent.
    """
    read = [(name, value.decode("latin-1")) for raw, value in headers if (name := _read(raw)) is not None]
    found = dict(read)
    request_id = None
    for name in _REQUEST_ID:
        request_id = found.get(name, request_id)
    wait = found.get("retry-after-ms"), found.get("retry-after")
    retry_after = None if wait == (None, None) else asked_wait_ns(*wait, found.get("date"))
    if request_id is not None:
        request_id = scrub_echo(request_id, secrets)
    limits = kept(read)
    if limits is not None:
        limits = {name: scrub_echo(value, secrets) for name, value in limits.items()}
    return request_id, retry_after, limits


@functools.lru_cache(maxsize=512)  # the same few names with every response
def _read(raw: bytes) -> str | None:
    """A header's name in lower case, None when nothing reads it."""
    name = raw.decode("latin-1").lower()
    return name if name in _READ_HEADERS or is_rate_limit(name) else None


OnEnd = Callable[[BaseException | None], None]
OnChunk = Callable[[bytes], None]


class Observation(Protocol):
    """One request under observation. `on_chunk` gets the pieces of the response's body as they pass."""

    @property
    def on_chunk(self) -> OnChunk | None: ...

    def begin(self) -> Callable[[], None]:
        """Set the context variables that the request is sent with; returns a function that resets them."""

    def responded(self, response: Any) -> None:
        """The headers of the response have arrived."""

    def end(self, error: BaseException | None = None) -> None:
        """The request failed, or its body has ended, failed or been given up; may be called twice."""

    def unreadable(self) -> None:
        """Observing it has failed: from here on it is told of its end alone."""


Observe = Callable[[httpx2.Request], Observation | None]
"""Begins to observe a request; None lets it pass untouched."""

Guard = Callable[[httpx2.Request, bool], None]
"""Looks at a request before it is sent, from an async client if the second argument is true.

It may change the request. What it raises is raised to the client, and the request is not sent.
"""

request_guard: ContextVar[Guard | None] = ContextVar("toolloop_request_guard", default=None)
"""The guard of the code that runs in this context. The owner of a transport may have one too (`guard`), for
requests from threads without the context."""


class _Observing:
    """An observation inside its boundary: no method raises, and once one has failed, little more is told."""

    __slots__ = ("_observed", "_reset", "boundary", "reads")

    def __init__(self, observed: Observation, boundary: Boundary) -> None:
        self.boundary = boundary
        self.reads = True
        self._observed = observed
        self._reset: Callable[[], None] | None = None

    def _failed(self, error: Exception) -> None:
        self.boundary.failed("request", error)
        if self.reads:
            self.reads = False
            self.boundary.call("request", self._observed.unreadable)

    def begin(self) -> None:
        try:
            self._reset = self._observed.begin()
        except Exception as error:
            self._failed(error)

    def sent(self) -> None:
        """The request is over, or its response has arrived: what `begin` set is reset."""
        if self._reset is not None:
            try:
                self._reset()
            except Exception as error:
                self._failed(error)

    def responded(self, response: Any) -> None:
        try:
            self._observed.responded(response)
        except Exception as error:
            self._failed(error)

    def on_chunk(self, data: bytes) -> None:
        if self.reads:
            try:
                on_chunk = self._observed.on_chunk
                if on_chunk is not None:
                    on_chunk(data)
            except Exception as error:
                self._failed(error)

    def end(self, error: BaseException | None = None) -> None:
        try:
            self._observed.end(error)
        except Exception as failure:
            self._failed(failure)

    def tee(self, response: Any, kind: type[_Tee], stream_kind: type[Any]) -> None:
        """Show the body too, as it passes. One that is no body is left for the client to complain of."""
        try:
            stream = response.stream
            if not isinstance(stream, stream_kind):
                self.end()
            elif hasattr(response, "_content"):  # made in this process, and read already: nobody will again
                if isinstance(stream, httpx2.ByteStream):
                    self.on_chunk(b"".join(stream))
                self.end()
            else:
                on_chunk = None if self._observed.on_chunk is None else self.on_chunk
                response.stream = kind.over(stream, self.end, on_chunk)
        except Exception as error:
            self._failed(error)
            self.end()


@dataclass(eq=False)
class _Observed:
    """`owner` put it in the place of `original`, which may differ from `inner`.

    Whatever else it is asked for, such as a connection pool, is that of `inner`.
    """

    inner: Any
    observe: Observe
    boundary: Boundary = _boundary
    owner: object = None
    original: Any = None

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # a copy that is not filled yet
            raise AttributeError(name)
        return getattr(self.inner, name)

    def _look_at(self, request: httpx2.Request, asynchronous: bool) -> None:
        """Outside the boundary: a guard is no observer."""
        guard: Guard | None = request_guard.get() or getattr(self.owner, "guard", None)
        if guard is not None:
            guard(request, asynchronous)

    def _begin(self, request: httpx2.Request) -> _Observing | None:
        try:
            observed = self.observe(request)
            if observed is None:
                return None
            observing = _Observing(observed, self.boundary)
        except Exception as error:
            self.boundary.failed("request", error)
            return None
        observing.begin()
        return observing


class AsyncObservedTransport(_Observed, httpx2.AsyncBaseTransport):
    """An async transport whose requests are shown to `observe`."""

    inner: httpx2.AsyncBaseTransport

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self._look_at(request, True)
        seen = self._begin(request)
        if seen is None:
            return await self.inner.handle_async_request(request)
        try:
            response = await self.inner.handle_async_request(request)
        except BaseException as error:
            seen.end(error)
            raise
        finally:
            seen.sent()
        seen.responded(response)
        seen.tee(response, AsyncTee, httpx2.AsyncByteStream)
        return response

    async def __aenter__(self) -> Self:
        await self.inner.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.inner.__aexit__(*error)

    async def aclose(self) -> None:
        await self.inner.aclose()


class ObservedTransport(_Observed, httpx2.BaseTransport):
    """A sync transport whose requests are shown to `observe`."""

    inner: httpx2.BaseTransport

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self._look_at(request, False)
        seen = self._begin(request)
        if seen is None:
            return self.inner.handle_request(request)
        try:
            response = self.inner.handle_request(request)
        except BaseException as error:
            seen.end(error)
            raise
        finally:
            seen.sent()
        seen.responded(response)
        seen.tee(response, Tee, httpx2.SyncByteStream)
        return response

    def __enter__(self) -> Self:
        self.inner.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.inner.__exit__(*error)

    def close(self) -> None:
        self.inner.close()


def _both(first: OnEnd, second: OnEnd) -> OnEnd:
    def on_end(error: BaseException | None) -> None:
        first(error)
        second(error)

    return on_end


@dataclass(eq=False)
class _Tee:
    """A response body that reports its chunks as they pass, and its end: `on_end(error or None)`.

    The end may be reported twice: when the body fails, and when it is closed. What it reports to does not
    raise. Whatever else it is asked for is that of `inner`.
    """

    inner: Any
    on_end: OnEnd
    on_chunk: OnChunk | None

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    @classmethod
    def over(cls, stream: Any, on_end: OnEnd, on_chunk: OnChunk | None) -> Self:
        """A tee around `stream`, in place of one that reports only its end: each chunk passes one tee."""
        if isinstance(stream, cls) and stream.on_chunk is None:
            return cls(stream.inner, _both(stream.on_end, on_end), on_chunk)
        return cls(stream, on_end, on_chunk)


class AsyncTee(_Tee, httpx2.AsyncByteStream):
    """The tee of an async client."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        on_chunk = self.on_chunk
        chunks: Any = None
        try:
            chunks = self.inner.__aiter__()
            async for chunk in chunks:
                if on_chunk is not None:
                    on_chunk(chunk)
                yield chunk
        except GeneratorExit:
            raise  # the reader has what it wants; it closes the stream next
        except BaseException as error:
            self.on_end(error)
            raise
        finally:
            if isinstance(chunks, AsyncGenerator):  # as the client does with what it is given
                await chunks.aclose()

    async def aclose(self) -> None:
        try:
            await self.inner.aclose()
        finally:
            self.on_end(None)


class Tee(_Tee, httpx2.SyncByteStream):
    """The tee of a sync client."""

    def __iter__(self) -> Iterator[bytes]:
        on_chunk = self.on_chunk
        chunks: Any = None
        try:
            chunks = iter(self.inner)
            for chunk in chunks:
                if on_chunk is not None:
                    on_chunk(chunk)
                yield chunk
        except GeneratorExit:
            if hasattr(chunks, "close"):  # as `yield from` does
                chunks.close()
            raise
        except BaseException as error:
            self.on_end(error)
            raise

    def close(self) -> None:
        try:
            self.inner.close()
        finally:
            self.on_end(None)


# httpx2's own transport reports its progress to the request's "trace" extension.
_MOMENTS = {
    "connection.connect_tcp.complete": "connected_ns",
    "connection.start_tls.complete": "connected_ns",
    "http11.send_request_body.complete": "sent_ns",
    "http2.send_request_body.complete": "sent_ns",
}


@dataclass(eq=False, slots=True)
class _Trace:
    attempt: OpenAttempt

    def __call__(self, event: str, info: Any) -> None:
        if event in _MOMENTS:
            self.attempt.note(_MOMENTS[event])


@dataclass(eq=False, slots=True)
class _AsyncTrace:
    attempt: OpenAttempt

    async def __call__(self, event: str, info: Any) -> None:
        if event in _MOMENTS:
            self.attempt.note(_MOMENTS[event])


def _trace_aiohttp(transport: Any, boundary: Boundary) -> bool:
    """Trace a transport if it is the SDKs' aiohttp transport; returns whether it is.

    That one ignores "trace". aiohttp's own TraceConfig would cost some 50 µs a request, so its session,
    which is made at the first request, gets a request class that notes the two moments.
    """
    make_session = getattr(transport, "get_client", None)
    if make_session is None:
        return False

    def traced() -> Any:
        session = make_session()
        boundary.call("request", _trace_session, session)
        return session

    transport.get_client = traced
    session: Any = getattr(transport, "client", None)
    if hasattr(session, "_request_class"):  # the first request is over
        _trace_session(session)
    return True


def _trace_session(session: Any) -> None:
    session._request_class = _traced_request(session._request_class)


@functools.lru_cache(maxsize=64)
def _traced_request(kind: type[Any]) -> type[Any]:
    """A session's class of requests, traced: it may be one of the application's own."""
    if getattr(kind, "toolloop_traced", False):
        return kind

    class TracedRequest(kind):  # type: ignore[misc]
        toolloop_traced = True

        async def send(self, conn: Any) -> Any:
            attempt = _current.get()
            if attempt is None:
                return await super().send(conn)
            attempt.note("connected_ns")  # aiohttp has just got a connection, new or kept alive
            response = await super().send(conn)
            attempt.note("sent_ns")
            return response

    return TracedRequest
