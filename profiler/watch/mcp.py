"""Watches the calls of the official SDK's MCP sessions, and of what is built on them.

Every client ends in `ClientSession.call_tool`, which is patched at its class while anybody watches: the
objects that frameworks make and replace as they go need not be known. Around it clients of a higher level
are patched, which may send one call several times, or let it wait for others; below it what tells when the
request left and its answer came. Modules that are not imported are left alone, and patched when they are.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import threading
import types
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from functools import partial, wraps
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from profiler.errors import UsageError
from profiler.loop.boundary import Boundary, Part
from profiler.loop.tools import current_call
from profiler.mcp.session import META
from profiler.process.lifetime import in_forked_child
from profiler.watch.auto import finder
from profiler.watch.identity import ById
from profiler.watch.imports import AfterImport
from profiler.watch.remote import Send, SessionState, Wire, bounded_name
from profiler.watch.remote_runs import Request, Scope, begin_remote, scopes
from profiler.watch.returned import Unawaited, under_its_name
from profiler.watch.runs import ToolRun, Watching
from profiler.watch.tools import _of_kind

if TYPE_CHECKING:
    from profiler.watch.profiler import Profiler

EVERYTHING = "mcp"
"""Stands for all sessions of the process in `Profiler.instrument`."""


class Options(NamedTuple):
    """How a session is watched: the `name` that the user gave its server, whether keys go into `_meta`."""

    name: str = ""
    meta: bool = True


_AS_IT_IS = Options()


class SessionWatch:
    """The sessions that one profiler watches: all of them (`everything`), or those of some owners.

    An owner is a session, or a client, a server, a toolset of a framework that has one, perhaps not yet.
    """

    def __init__(self, profiler: Profiler) -> None:
        self.profiler = profiler
        self.everything: Options | None = None
        self.automatic = False
        self._owners: ById[Options] = ById()
        self._resolved: ById[Options] = ById()

    def watch(self, owner: Any, name: str, meta: bool) -> None:
        options = Options(bounded_name(name), meta)
        if owner is EVERYTHING:
            self.everything = options
        else:
            self._owners.put(owner, options)
        _install(self)

    def forget(self, owner: Any) -> None:
        if owner is EVERYTHING:
            self.everything = None
        else:
            self._owners.drop(owner)
            self._resolved = ById()
        self._perhaps_uninstall()

    def start(self) -> None:
        """Watch all sessions, as a part of `auto`."""
        self.automatic = True
        _install(self)

    def stop(self) -> None:
        self.automatic = False
        self._perhaps_uninstall()

    def _perhaps_uninstall(self) -> None:
        if not self.automatic and self.everything is None and not [*self._owners]:
            _uninstall(self)

    def options_of(self, owner: Any, around: Scope | None) -> Options | None:
        """How calls of this owner are watched, None if they are not."""
        found = self._owners.get(owner) or self._resolved.get(owner)
        if found is None and around is not None:
            found = self._owners.get(around.owner)
        if found is None and self._owners:
            found = self._of_others(owner)
            if found is not None:
                self._resolved.put(owner, found)
        if found is None and (self.automatic or self.everything is not None):
            found = self.everything or _AS_IT_IS
        return found

    def _of_others(self, owner: Any) -> Options | None:
        """Those of an owner that has the same session."""
        mine = _sessions_of(owner) or [owner]
        for other in self._owners:
            theirs = _sessions_of(other)
            if any(one is session for one in theirs for session in mine) or _connects(other, owner):
                return self._owners.get(other)
        return None


# What the objects are, told by names: nothing of MCP's is imported here.

_OWNERS = frozenset(
    (
        ("mcp", "ClientSession"),
        ("mcp", "Client"),
        ("mcp", "ClientSessionGroup"),
        ("fastmcp", "Client"),
        ("agents", "MCPServer"),
        ("pydantic_ai", "MCPToolset"),
        ("pydantic_ai", "MCPServer"),
        ("langchain_mcp_adapters", "MultiServerMCPClient"),
    )
)
"""By the package and the name of a class, which may be a base of the object's."""

_METHODS: Mapping[str, str] = {
    "call_tool": "name",
    "call_tool_mcp": "name",
    "direct_call_tool": "name",
}


def watchable(value: Any) -> Any:
    """What `SessionWatch` watches for this: an owner, or all there is. None: nothing to do with MCP."""
    if type(value) is str:
        return EVERYTHING if value == EVERYTHING else None
    return value if is_owner(value) else None


def is_owner(value: Any) -> bool:
    """Whether it is, has, or will have a session of MCP's SDK."""
    for kind in type(value).__mro__:
        module = kind.__module__
        if type(module) is str and (module.partition(".")[0], kind.__name__) in _OWNERS:
            return True
    return False


def tool_parameter(function: Any) -> str | None:
    """The parameter of a method of an owner's that says which tool it runs; None for any other function."""
    if type(function) is not types.MethodType or function.__name__ not in _METHODS:
        return None
    if not is_owner(function.__self__):
        return None
    parameters = inspect.signature(function).parameters
    return next((one for one in ("name", "tool_name") if one in parameters), None)


def _sessions_of(owner: Any, depth: int = 4) -> list[Any]:
    """The sessions of an owner now; it may have none, and others later."""
    if _is_session(owner):
        return [owner]
    found: list[Any] = []
    if depth:
        for name in ("session", "_session", "client", "_client", "sessions"):
            try:
                inner = getattr(owner, name, None)
            except Exception:  # clients raise before they are entered
                continue
            if inner is None or callable(inner) or isinstance(inner, str):
                continue
            for one in inner if isinstance(inner, list) else [inner]:
                if is_owner(one):
                    found += _sessions_of(one, depth - 1)
            if found:
                break
    return found


def _is_session(value: Any) -> bool:
    return any(
        kind.__name__ == "ClientSession" and kind.__module__.startswith("mcp.")
        for kind in type(value).__mro__
    )


def _told_name(owner: Any) -> str:
    """The name that the user gave a server of openai-agents; other clients make one up."""
    if not any(kind.__module__.startswith("agents.") for kind in type(owner).__mro__):
        return ""
    try:
        name = getattr(owner, "name", None)
    except Exception:
        return ""
    if type(name) is not str or name.startswith(("stdio: ", "sse: ", "streamable_http: ")):
        return ""  # the framework made it, of a command or an address
    return bounded_name(name)


def _opened(owner: Any) -> tuple[str, str | None]:
    """The name and the protocol in what a framework's client keeps of the opening."""
    for attribute in ("initialize_result", "server_initialize_result"):
        try:
            result = getattr(owner, attribute, None)
        except Exception:  # not entered
            continue
        if result is not None:
            return _of_opening(result)
    return "", None


def _of_opening(result: Any) -> tuple[str, str | None]:
    info = getattr(result, "server_info", None) or getattr(result, "serverInfo", None)
    protocol = getattr(result, "protocol_version", None) or getattr(result, "protocolVersion", None)
    return bounded_name(getattr(info, "name", "")), None if protocol is None else str(protocol)[:40]


def _connects(client: Any, session: Any) -> bool:
    """Whether a LangChain client has the connection for which a session was made."""
    made_for = _made_for.get(session)
    return made_for is not None and _name_in(client, made_for) is not None


def _name_in(client: Any, connection: Mapping[str, Any]) -> str | None:
    connections = getattr(client, "connections", None)
    if not isinstance(connections, Mapping):
        return None
    for name, one in connections.items():
        if one is connection:
            return str(name)
    for name, one in connections.items():
        if isinstance(one, Mapping) and all(one.get(key) == connection.get(key) for key in _ADDRESS):
            return str(name)
    return None


_ADDRESS = ("transport", "url", "command", "args")

# What is known of sessions and transports, and the requests that are under way.

_states: ById[SessionState] = ById()
_wires: ById[Wire] = ById()
_streams: ById[Any] = ById()
_made_for: ById[Mapping[str, Any]] = ById()
_http_clients: ById[bool] = ById()
_connections: ById[bool] = ById()

_by_message: dict[int, Send] = {}
_by_number: dict[tuple[int, Any], Send] = {}

_calling: ContextVar[Send | None] = ContextVar("toolloop_mcp_calling", default=None)
"""The request that a session's `call_tool` is about to send, in the caller's own context."""

_posting: ContextVar[Send | None] = ContextVar("toolloop_mcp_posting", default=None)
"""The request that the HTTP transport is posting, in the context of the task that does."""


def _state_of(session: Any) -> SessionState:
    state = _states.get(session)
    if state is None:
        state = SessionState()
        _states.put(session, state)
    if not state.server:
        info = getattr(session, "server_info", None)
        state.server = bounded_name(getattr(info, "name", ""))
    if state.protocol is None:
        protocol = getattr(session, "protocol_version", None)
        state.protocol = None if protocol is None else str(protocol)[:40]
    return state


# Patches: each makes what takes the place of a function. What it does besides is inside the boundary.


def _count_failure(part: Part) -> None:
    for watch in [*_watching]:
        watch.profiler._boundary.failures[part] += 1
        watch.profiler._failed(part)


_boundary = Boundary(_count_failure)


def _told(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """The name and the arguments of the tool that a `call_tool` runs."""
    name = args[1] if len(args) > 1 else kwargs.get("name", kwargs.get("tool_name"))
    return name, args[2] if len(args) > 2 else kwargs.get("arguments")


def _watchers(owner: Any) -> list[tuple[Profiler, Options]]:
    """The profilers that watch this call, and how."""
    around = next(scopes(), None)
    found: list[tuple[Profiler, Options]] = []
    for watch in [*_watching]:
        options = watch.options_of(owner, around)
        if options is not None:
            profiler = watch.profiler
            # While the one that was told has no loop, one that looks for tools has.
            other = None if profiler._open else finder()
            profiler = other or profiler
            if not any(profiler is known for known, _ in found):
                found.append((profiler, options))
    return found


def _watched_call(original: Any, session: bool, waits: bool = False) -> Any:
    """`call_tool` of a session, or of a client or server above it (`waits`: it may wait for the session)."""

    def call_tool(*args: Any, **kwargs: Any) -> Any:
        found = _boundary.call("tool", _watchers, args[0]) if _watching and args else None
        made = original(*args, **kwargs)
        if not found:
            return made
        watched = _boundary.call("tool", _around, original, made, args, kwargs, found, session, waits)
        return made if watched is None else watched

    made: Any = call_tool
    return wraps(original)(_of_kind(made, inspect.CO_COROUTINE))


def _around(
    original: Any,
    made: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    found: list[tuple[Profiler, Options]],
    session: bool,
    waits: bool,
) -> Any:
    """A coroutine that awaits the one that was `made`."""
    name, arguments = _told(args, kwargs)
    if type(name) is not str:
        return None
    owner = args[0]
    given_name = next((options.name for _, options in found if options.name), "")
    request = Request(owner, name, arguments if isinstance(arguments, Mapping) else {}, session, waits)
    request.server = given_name or (_name_of_connection(owner) if session else _told_name(owner))
    held = Unawaited(made)
    sending = None
    if session:
        sending = _Sending(original, found[0][0], all(options.meta for _, options in found))
    elif not request.server and not (state := _first_state(owner)).server:
        state.server, protocol = _opened(owner)
        state.protocol = state.protocol or protocol
    coroutine = made
    for profiler, _ in found:
        if any(scope.holds(profiler, request) for scope in scopes()):
            continue  # its record has begun above
        begin = partial(begin_remote, profiler, request)
        coroutine = _recorded(begin, args, kwargs, held, profiler._watching, sending)
        if profiler.hold is not None:
            server = request.server or _first_state(owner).server or ""
            coroutine = _held_back(profiler, request.name, server, Unawaited(coroutine))
        under_its_name(coroutine, made)
        held, sending = Unawaited(coroutine), None
    if sending is not None:
        coroutine = under_its_name(_sent(args, kwargs, held, sending), made)
    return coroutine


def _first_state(owner: Any) -> SessionState:
    sessions = _sessions_of(owner)
    return _state_of(sessions[0]) if sessions else SessionState()


def _name_of_connection(session: Any) -> str:
    made_for = _made_for.get(session)
    if made_for is not None:
        for watch in _watching:
            for owner in watch._owners:
                name = _name_in(owner, made_for)
                if name is not None:
                    return bounded_name(name)
    return ""


class _Sending(NamedTuple):
    """How the `call_tool` of a session is sent: by `original`, with keys of ours in `_meta` or without."""

    original: Any
    profiler: Profiler
    meta: bool

    def begin(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Send, Token[Send | None], Unawaited | None]:
        """The request is about to be sent; returns the coroutine that does it now, if another one."""
        send = _begin_send(self.profiler, args[0])
        again = _with_ours(send, args, kwargs, self.meta)
        with_ours = None if again is None else Unawaited(self.original(*again[0], **again[1]))
        return send, _calling.set(send), with_ours


async def _recorded(
    begin: Callable[[], ToolRun],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    held: Unawaited,
    watching: Watching,
    sending: _Sending | None,
) -> Any:
    """Awaits the coroutine of a `call_tool` as a call of a loop; with `sending` it is that of a session."""
    run = begin()
    run.enter()
    send = token = None
    if sending is not None:
        begun = watching.boundary.call("tool", sending.begin, args, kwargs)
        if begun is not None:
            send, token, with_ours = begun
            if with_ours is not None:
                held.coroutine.close()  # its first step is still to come
                held = with_ours
    try:
        value = await held.coroutine
    except BaseException as error:
        if send is not None and token is not None:
            watching.boundary.call("tool", _end_send, send, token, error, None)
        run.leave()
        run.failed(error)
        raise
    if send is not None and token is not None:
        watching.boundary.call("tool", _end_send, send, token, None, value)
    run.leave()
    run.came_to(value)
    run.returned()
    return value


async def _held_back(profiler: Profiler, name: str, server: str, held: Unawaited) -> Any:
    """As the coroutine, after it has waited for what holds runs back."""
    waits = profiler._boundary.call("tool", profiler._held, name, server)
    if waits is None:
        return await held.coroutine
    begun = False
    try:
        async with waits:
            begun = True
            return await held.coroutine
    finally:
        if not begun:
            held.coroutine.close()  # it was cancelled in the queue, which is no mistake of the application's


async def _sent(args: tuple[Any, ...], kwargs: dict[str, Any], held: Unawaited, sending: _Sending) -> Any:
    """Awaits the `call_tool` of a session, whose record has begun above."""
    boundary = sending.profiler._boundary
    begun = boundary.call("tool", sending.begin, args, kwargs)
    if begun is None:
        return await held.coroutine
    send, token, with_ours = begun
    if with_ours is not None:
        held.coroutine.close()  # its first step is still to come
        held = with_ours
    try:
        value = await held.coroutine
    except BaseException as error:
        boundary.call("tool", _end_send, send, token, error, None)
        raise
    boundary.call("tool", _end_send, send, token, None, value)
    return value


def _begin_send(profiler: Profiler, session: Any) -> Send:
    clock = profiler.recorder.clock
    state = _state_of(session)
    send = Send(clock, state)
    for scope in scopes():
        scope.takes(send)
    _see_written(session)
    return send


def _end_send(send: Send, token: Token[Send | None], error: BaseException | None, value: Any) -> None:
    if error is None:
        send.came_to(value)
    else:
        send.raised(error)
    if send.keys:
        _by_message.pop(send.keys[0], None)
        _by_number.pop(send.keys[1], None)
    with contextlib.suppress(ValueError):  # closed in another context than it ran in
        _calling.reset(token)


def _with_ours(
    send: Send, args: tuple[Any, ...], kwargs: dict[str, Any], meta: bool
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The arguments with what we add to them, None where that is nothing."""
    more: dict[str, Any] = {}
    call = current_call.get()
    if meta and call is not None:
        told = {
            f"{META}{key}": value
            for key, value in (("call", call.call_id), ("loop", call.number), ("trial", call.trial))
            if value is not None and value != ""
        }
        own = kwargs.get("meta")
        if told and (own is None or isinstance(own, Mapping)):
            more["meta"] = {**told, **(own or {})}
    progress = args[4] if len(args) > 4 else kwargs.get("progress_callback")
    if callable(progress):

        @wraps(progress)
        def counted(*told: Any, **more: Any) -> Any:
            send.progress += 1
            return progress(*told, **more)

        if len(args) > 4:
            args = (*args[:4], counted, *args[5:])
        else:
            more["progress_callback"] = counted
        return args, {**kwargs, **more}
    return (args, {**kwargs, **more}) if more else None


# When a request is written, and its answer found.


def _note_written(send: Send | None, message: Any, owner: Any, stream: Any) -> Send | None:
    """The request of a tool goes to the transport; what else is written is not noted."""
    root = vars(message).get("root", message)  # of mcp 1
    if send is None or send.keys or vars(root).get("method") != "tools/call":
        return None
    number = (id(owner), root.id)
    send.keys = (id(message), number)
    _by_message[id(message)] = send
    _by_number[number] = send
    send.message = message  # so that its id stays its own
    if send.session.transport is None:
        send.session.transport = _transport_of(stream)
        send.stream = stream
    send.handed_over()
    return send


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


def _dispatcher_write(original: Any) -> Any:
    """`JSONRPCDispatcher._write(self, message, metadata)`, in the caller's task (mcp 2)."""

    @wraps(original)
    async def _write(self: Any, message: Any, *args: Any, **kwargs: Any) -> Any:
        send = _calling.get()
        if send is not None:
            _boundary.call("tool", _note_written, send, message, self, getattr(self, "_write_stream", None))
        return await original(self, message, *args, **kwargs)

    return _write


def _see_written(session: Any) -> None:
    """The same for mcp 1, where only the session's own stream is there to be asked."""
    stream = getattr(session, "_write_stream", None)
    if stream is None or _streams.get(stream) is not None or not hasattr(stream, "__dict__"):
        return
    original = stream.send

    @wraps(original)
    async def send(item: Any) -> None:
        sending = _calling.get()
        if sending is not None:
            _boundary.call("tool", _note_written, sending, getattr(item, "message", None), session, stream)
        await original(item)

    stream.send = send
    _streams.put(stream, True)


def _found(owner: Any, number: Any) -> None:
    send = _by_number.get((id(owner), number))
    if send is None and type(number) is str and number.isdecimal():
        send = _by_number.get((id(owner), int(number)))
    if send is not None:
        if send.session.transport is None:  # its writer was busy before
            send.session.transport = _transport_of(send.stream)
        send.resolved()


def _dispatcher_resolve(original: Any) -> Any:
    """`JSONRPCDispatcher._resolve_pending(self, request_id, outcome)` (mcp 2)."""

    @wraps(original)
    def _resolve_pending(self: Any, request_id: Any, *args: Any, **kwargs: Any) -> Any:
        if _by_number:
            _boundary.call("tool", _found, self, request_id)
        return original(self, request_id, *args, **kwargs)

    return _resolve_pending


def _session_response(original: Any) -> Any:
    """`BaseSession._handle_response(self, message)` (mcp 1)."""

    @wraps(original)
    async def _handle_response(self: Any, message: Any, *args: Any, **kwargs: Any) -> Any:
        if _by_number:
            _boundary.call("tool", lambda: _found(self, message.message.root.id))
        return await original(self, message, *args, **kwargs)

    return _handle_response


def _direct_request(original: Any) -> Any:
    """`DirectDispatcher.send_raw_request(self, method, …)`: a server in the same process (mcp 2)."""

    @wraps(original)
    async def send_raw_request(self: Any, method: Any, *args: Any, **kwargs: Any) -> Any:
        send = _calling.get() if method == "tools/call" else None
        if send is None:
            return await original(self, method, *args, **kwargs)
        _boundary.call("tool", _note_direct, send)
        try:
            return await original(self, method, *args, **kwargs)
        finally:
            _boundary.call("tool", send.resolved)

    return send_raw_request


def _note_direct(send: Send) -> None:
    send.session.transport = "memory"
    send.handed_over()


def _session_initialize(original: Any) -> Any:
    """`ClientSession.initialize(self)`, of which mcp 1 does not keep what the server said of itself."""

    @wraps(original)
    async def initialize(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = await original(self, *args, **kwargs)
        _boundary.call("tool", _note_opening, self, result)
        return result

    return initialize


def _note_opening(session: Any, result: Any) -> None:
    state = _state_of(session)
    name, protocol = _of_opening(result)
    state.server, state.protocol = state.server or name, protocol or state.protocol


# HTTP.


def _transport_post(original: Any) -> Any:
    """`StreamableHTTPTransport._handle_post_request(self, ctx)`, in the task of the request."""

    @wraps(original)
    async def _handle_post_request(self: Any, ctx: Any, *args: Any, **kwargs: Any) -> Any:
        send = _boundary.call("tool", _begin_post, self, ctx) if _by_message else None
        if send is None:
            return await original(self, ctx, *args, **kwargs)
        token = _posting.set(send)
        try:
            return await original(self, ctx, *args, **kwargs)
        except Exception as error:
            _boundary.call("tool", send.broke, error)
            raise
        finally:
            _posting.reset(token)

    return _handle_post_request


def _begin_post(transport: Any, ctx: Any) -> Send | None:
    send = _by_message.get(id(ctx.session_message.message))
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
        _boundary.call("tool", _trace, send, request)


def _trace(send: Send, request: Any) -> None:
    previous = request.extensions.get("trace")

    async def trace(name: str, info: Any) -> None:
        if name.endswith(".started"):
            _boundary.call("tool", send.traces, name)
        if previous is not None:
            await previous(name, info)

    request.extensions["trace"] = trace


async def _on_response(response: Any) -> None:
    send = _posting.get()
    if send is not None:
        _boundary.call("tool", send.responds, response.status_code, response.headers)


def _transport_event(original: Any) -> Any:
    """`StreamableHTTPTransport._handle_sse_event(self, sse, …)`, in the task of the request."""

    @wraps(original)
    async def _handle_sse_event(self: Any, sse: Any, *args: Any, **kwargs: Any) -> Any:
        send = _posting.get()
        if send is not None:
            _boundary.call("tool", lambda: send.event(sse.data))
        return await original(self, sse, *args, **kwargs)

    return _handle_sse_event


# LangChain's adapters open a session for every call.


def _create_session(original: Any) -> Any:
    @wraps(original)
    def create_session(connection: Any, *args: Any, **kwargs: Any) -> Any:
        made = original(connection, *args, **kwargs)
        return _Creating(made, connection) if isinstance(connection, Mapping) else made

    return create_session


class _Creating:
    """An async context manager that notes for which connection the session is that it gives."""

    def __init__(self, made: Any, connection: Mapping[str, Any]) -> None:
        self._made, self._connection = made, connection

    async def __aenter__(self) -> Any:
        session = await self._made.__aenter__()
        _boundary.call("tool", _made_for.put, session, self._connection)
        return session

    async def __aexit__(self, *raised: Any) -> Any:
        return await self._made.__aexit__(*raised)


# Putting patches in place, and taking them away.

Make = Callable[[Any], Any]

_PATCHES: Mapping[str, tuple[tuple[str, str, Make], ...]] = {
    "mcp.client.session": (
        ("ClientSession", "call_tool", lambda original: _watched_call(original, True)),
        ("ClientSession", "initialize", _session_initialize),
    ),
    "mcp.client.client": (("Client", "call_tool", lambda original: _watched_call(original, False)),),
    "mcp.client.session_group": (
        ("ClientSessionGroup", "call_tool", lambda original: _watched_call(original, False)),
    ),
    "mcp.shared.jsonrpc_dispatcher": (
        ("JSONRPCDispatcher", "_write", _dispatcher_write),
        ("JSONRPCDispatcher", "_resolve_pending", _dispatcher_resolve),
    ),
    "mcp.shared.direct_dispatcher": (("DirectDispatcher", "send_raw_request", _direct_request),),
    "mcp.shared.session": (("BaseSession", "_handle_response", _session_response),),
    "mcp.client.streamable_http": (
        ("StreamableHTTPTransport", "_handle_post_request", _transport_post),
        ("StreamableHTTPTransport", "_handle_sse_event", _transport_event),
    ),
    "fastmcp.client.client": (("Client", "call_tool", lambda original: _watched_call(original, False)),),
    "fastmcp.client.mixins.tools": (
        ("ClientToolsMixin", "call_tool", lambda original: _watched_call(original, False)),
    ),
    "agents.mcp.server": (
        ("_MCPServerWithClientSession", "call_tool", lambda original: _watched_call(original, False, True)),
        ("MCPServerStreamableHttp", "call_tool", lambda original: _watched_call(original, False, True)),
    ),
    "langchain_mcp_adapters.tools": (("", "create_session", _create_session),),
    "langchain_mcp_adapters.client": (("", "create_session", _create_session),),
}
"""By module: the class (none: the module itself), the function, and what makes the one in its place."""

_watching: list[SessionWatch] = []
_patched: dict[str, list[tuple[Any, str, Any]]] = {}
_lock = threading.RLock()


def _renew() -> None:
    """In a forked child: another thread of its parent may have had the lock."""
    global _lock
    _lock = threading.RLock()


in_forked_child(_renew)


def _install(watch: SessionWatch) -> None:
    with _lock:
        if watch not in _watching:
            _watching.append(watch)
        for name in _PATCHES:
            module = sys.modules.get(name)
            if module is not None and name not in _patched:
                _patch(name, module)
        _finder.install()


def _uninstall(watch: SessionWatch) -> None:
    with _lock:
        if watch in _watching:
            _watching.remove(watch)
        if _watching:
            return
        _finder.uninstall()
        while _patched:
            for owner, name, original in _patched.popitem()[1]:
                setattr(owner, name, original)
        for stream in _streams:
            stream.__dict__.pop("send", None)
            _streams.drop(stream)
        for client in _http_clients:
            _boundary.call("tool", _unhook, client)
            _http_clients.drop(client)


def _unhook(client: Any) -> None:
    client.event_hooks = {
        event: [one for one in hooks if one is not _on_request and one is not _on_response]
        for event, hooks in client.event_hooks.items()
    }


def _patch(name: str, module: ModuleType) -> None:
    """Another version may lack some of it."""
    done = _patched.setdefault(name, [])
    for kind, method, make in _PATCHES[name]:
        owner = getattr(module, kind, None) if kind else module
        original = None if owner is None else vars(owner).get(method)
        if isinstance(original, types.FunctionType):
            setattr(owner, method, make(original))
            done.append((owner, method, original))


def _imported(module: ModuleType) -> None:
    with _lock:
        if _watching and module.__name__ not in _patched:
            _patch(module.__name__, module)


_finder = AfterImport(_PATCHES, _imported)


def refuse(name: str, meta: bool) -> None:
    """Raise `UsageError` for options of sessions that were given with something else."""
    if name or not meta:
        raise UsageError("name= and meta= of instrument() are for sessions of MCP")
