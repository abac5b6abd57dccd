"""When a request of a session leaves and its answer comes: patches of the SDK's transports.

Each makes what takes the place of a function. What it does besides is inside the boundary.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextvars import ContextVar
from functools import wraps
from typing import Any

from profiler.loop.tools import current_call
from profiler.mcp.session import META
from profiler.watch.identity import ById
from profiler.watch.mcp_owners import boundary, of_opening, state_of
from profiler.watch.remote import Send, Wire, bounded_name
from profiler.watch.tools import _of_kind

_wires: ById[Wire] = ById()
_streams: ById[Any] = ById()
_http_clients: ById[bool] = ById()
_connections: ById[bool] = ById()

by_message: dict[int, Send] = {}
by_number: dict[tuple[int, Any], Send] = {}

calling: ContextVar[Send | None] = ContextVar("toolloop_mcp_calling", default=None)
"""The request that a session's `call_tool` is about to send, in the caller's own context."""

_posting: ContextVar[Send | None] = ContextVar("toolloop_mcp_posting", default=None)
"""The request that the HTTP transport is posting, in the context of the task that does."""


# When a request is written, and its answer found.


def _note_written(send: Send, message: Any, owner: Any, stream: Any) -> None:
    """The request of a tool goes to the transport; what else is written is not noted."""
    root = vars(message).get("root", message)  # of mcp 1
    if send.keys or vars(root).get("method") != "tools/call":
        return
    number = (id(owner), root.id)
    send.keys = (id(message), number)
    by_message[id(message)] = send
    by_number[number] = send
    send.message = message  # so that its id stays its own
    if send.session.transport is None:
        send.session.transport = _transport_of(stream)
        send.stream = stream
    if send.meta:
        params = root.params
        ours = _ours()
        if ours and type(params) is dict:
            params["_meta"] = _with(ours, params.get("_meta"))
    send.handed_over()


def _ours() -> dict[str, Any]:
    """What a request tells its server: which call it is."""
    call = current_call.get()
    if call is None:
        return {}
    told: dict[str, Any] = {}
    if call.call_id:
        told[_CALL] = call.call_id
    if call.number is not None:
        told[_LOOP] = call.number
    if call.trial is not None:
        told[_TRIAL] = call.trial
    return told


_CALL, _LOOP, _TRIAL = f"{META}call", f"{META}loop", f"{META}trial"


def _with(ours: dict[str, Any], theirs: Any) -> Any:
    """The `_meta` of a request, in which what its sender says goes before."""
    if theirs is None:
        return ours
    return {**ours, **theirs} if isinstance(theirs, Mapping) else theirs


def _transport_of(stream: Any) -> Any:
    """What is at the other end of a stream: the task that waits there tells."""
    if type(stream).__name__ == "ContextSendStream":
        return "http"
    receivers = getattr(getattr(stream, "_state", None), "waiting_receivers", None) or {}
    names = " ".join(str(one.task_info.name) for one in receivers.values())
    if "stdio" in names or "stdin" in names:
        return "stdio"
    if "post_writer" in names or "sse" in names or "ws_" in names:
        return "http"
    return None if not names else "memory"


def dispatcher_write(original: Any) -> Any:
    """`JSONRPCDispatcher._write(self, message, metadata)`, in the caller's task (mcp 2)."""

    def _write(self: Any, message: Any, *args: Any, **kwargs: Any) -> Any:
        send = calling.get()
        if send is not None and not send.keys:
            try:
                _note_written(send, message, self, getattr(self, "_write_stream", None))
            except Exception as error:
                boundary.failed("tool", error)
        return original(self, message, *args, **kwargs)

    made: Any = _write
    return wraps(original)(_of_kind(made, inspect.CO_COROUTINE))


def see_written(session: Any) -> None:
    """The same for mcp 1, where only the session's own stream is there to be asked."""
    stream = getattr(session, "_write_stream", None)
    if stream is None or _streams.get(stream) is not None or not hasattr(stream, "__dict__"):
        return
    original = stream.send

    @wraps(original)
    async def send(item: Any) -> None:
        sending = calling.get()
        if sending is not None:
            boundary.call("tool", _note_written, sending, getattr(item, "message", None), session, stream)
        await original(item)

    stream.send = send
    _streams.put(stream, True)


def _found(owner: Any, number: Any) -> None:
    send = by_number.get((id(owner), number))
    if send is None and type(number) is str and number.isdecimal():
        send = by_number.get((id(owner), int(number)))
    if send is not None:
        if send.session.transport is None:  # its writer was busy before
            send.session.transport = _transport_of(send.stream)
        send.resolved()


def dispatcher_resolve(original: Any) -> Any:
    """`JSONRPCDispatcher._resolve_pending(self, request_id, outcome)` (mcp 2)."""

    @wraps(original)
    def _resolve_pending(self: Any, request_id: Any, *args: Any, **kwargs: Any) -> Any:
        if by_number:
            try:
                _found(self, request_id)
            except Exception as error:
                boundary.failed("tool", error)
        return original(self, request_id, *args, **kwargs)

    return _resolve_pending


def session_response(original: Any) -> Any:
    """`BaseSession._handle_response(self, message)` (mcp 1)."""

    @wraps(original)
    async def _handle_response(self: Any, message: Any, *args: Any, **kwargs: Any) -> Any:
        if by_number:
            boundary.call("tool", lambda: _found(self, message.message.root.id))
        return await original(self, message, *args, **kwargs)

    return _handle_response


def direct_request(original: Any) -> Any:
    """`DirectDispatcher.send_raw_request(self, method, …)`: a server in the same process (mcp 2)."""

    @wraps(original)
    async def send_raw_request(self: Any, method: Any, *args: Any, **kwargs: Any) -> Any:
        send = calling.get() if method == "tools/call" else None
        if send is None:
            return await original(self, method, *args, **kwargs)
        args = boundary.call("tool", _note_direct, send, args) or args
        try:
            return await original(self, method, *args, **kwargs)
        finally:
            boundary.call("tool", send.resolved)

    return send_raw_request


def _note_direct(send: Send, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the arguments with what we add to the first of them, the parameters of the request."""
    send.session.transport = "memory"
    params = args[0] if args else None
    if send.meta and isinstance(params, Mapping) and (ours := _ours()):
        args = ({**params, "_meta": _with(ours, params.get("_meta"))}, *args[1:])
    send.handed_over()
    return args


def session_initialize(original: Any) -> Any:
    """`ClientSession.initialize(self)`, of which mcp 1 does not keep what the server said of itself."""

    @wraps(original)
    async def initialize(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = await original(self, *args, **kwargs)
        boundary.call("tool", _note_opening, self, result)
        return result

    return initialize


def _note_opening(session: Any, result: Any) -> None:
    state = state_of(session)
    name, protocol = of_opening(result)
    state.server, state.protocol = state.server or name, protocol or state.protocol


# HTTP.


def transport_post(original: Any) -> Any:
    """`StreamableHTTPTransport._handle_post_request(self, ctx)`, in the task of the request."""

    @wraps(original)
    async def _handle_post_request(self: Any, ctx: Any, *args: Any, **kwargs: Any) -> Any:
        send = boundary.call("tool", _begin_post, self, ctx) if by_message else None
        if send is None:
            return await original(self, ctx, *args, **kwargs)
        token = _posting.set(send)
        try:
            return await original(self, ctx, *args, **kwargs)
        except Exception as error:
            boundary.call("tool", send.broke, error)
            raise
        finally:
            _posting.reset(token)

    return _handle_post_request


def _begin_post(transport: Any, ctx: Any) -> Send | None:
    send = by_message.get(id(ctx.session_message.message))
    if send is None:
        return None
    wire = _wires.get(transport)
    if wire is None:
        wire = Wire()
        _wires.put(transport, wire)
    state = send.session
    state.wire, state.transport = wire, "http"
    if state.protocol is None:
        protocol = getattr(transport, "protocol_version", None)
        state.protocol = None if protocol is None else str(protocol)[:40]
    if not state.server:
        state.server = bounded_name(str(transport.url).partition("://")[2].partition("/")[0])
    _see_responses(ctx.client)
    send.handed_over()
    return send


def _see_responses(client: Any) -> None:
    """Hooks of the HTTP client: ours last of those that see a request, first of those that see a response."""
    hooks = client.event_hooks
    before, after = hooks.get("request", []), hooks.get("response", [])
    if _on_request not in before or _on_response not in after:
        client.event_hooks = {
            **hooks,
            "request": [*(one for one in before if one is not _on_request), _on_request],
            "response": [_on_response, *(one for one in after if one is not _on_response)],
        }
        _http_clients.put(client, True)


async def _on_request(request: Any) -> None:
    send = _posting.get()
    if send is not None:
        boundary.call("tool", _trace, send, request)


def _trace(send: Send, request: Any) -> None:
    previous = request.extensions.get("trace")

    async def trace(name: str, info: Any) -> None:
        if name.endswith(".started"):
            boundary.call("tool", send.traces, name)
        if previous is not None:
            await previous(name, info)

    request.extensions["trace"] = trace


async def _on_response(response: Any) -> None:
    send = _posting.get()
    if send is not None:
        boundary.call("tool", send.responds, response.status_code, response.headers)


def transport_event(original: Any) -> Any:
    """`StreamableHTTPTransport._handle_sse_event(self, sse, …)`, in the task of the request."""

    @wraps(original)
    async def _handle_sse_event(self: Any, sse: Any, *args: Any, **kwargs: Any) -> Any:
        send = _posting.get()
        if send is not None:
            boundary.call("tool", lambda: send.event(sse.data))
        return await original(self, sse, *args, **kwargs)

    return _handle_sse_event


# LangChain's adapters open a session for every call.


def create_session(original: Any) -> Any:
    @wraps(original)
    def create_session(connection: Any, *args: Any, **kwargs: Any) -> Any:
        made = original(connection, *args, **kwargs)
        return _Creating(made, connection) if isinstance(connection, Mapping) else made

    return create_session


def _note_made(session: Any, connection: Mapping[str, Any]) -> None:
    state_of(session).made_for = connection


class _Creating:
    """An async context manager that notes for which connection the session is that it gives."""

    def __init__(self, made: Any, connection: Mapping[str, Any]) -> None:
        self._made, self._connection = made, connection

    async def __aenter__(self) -> Any:
        session = await self._made.__aenter__()
        boundary.call("tool", _note_made, session, self._connection)
        return session

    async def __aexit__(self, *raised: Any) -> Any:
        return await self._made.__aexit__(*raised)


def unpatch() -> None:
    """Take away what was put into objects; the patches of classes are others'."""
    for stream in _streams:
        stream.__dict__.pop("send", None)
        _streams.drop(stream)
    for client in _http_clients:
        boundary.call("tool", _unhook, client)
        _http_clients.drop(client)


def _unhook(client: Any) -> None:
    client.event_hooks = {
        event: [one for one in hooks if one is not _on_request and one is not _on_response]
        for event, hooks in client.event_hooks.items()
    }
