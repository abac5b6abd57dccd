"""Watched calls of `call_tool`: of a session, and of a client or a server of a framework above it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextvars import Token
from functools import wraps
from typing import TYPE_CHECKING, Any

from profiler.watch.auto import finder
from profiler.watch.mcp_owners import (
    Options,
    boundary,
    first_state,
    name_of_connection,
    opened,
    state_of,
    told_name,
    watching,
)
from profiler.watch.mcp_transports import by_message, by_number, calling, see_written
from profiler.watch.remote import Send
from profiler.watch.remote_runs import Request, begin_remote, current_scope, put_back
from profiler.watch.returned import Unawaited, under_its_name
from profiler.watch.tools import _of_kind

if TYPE_CHECKING:
    from profiler.watch.profiler import Profiler


def watched_call(original: Any, session: bool, waits: bool = False) -> Any:
    """`call_tool` of a session, or of a client or server above it (`waits`: it may wait for the session)."""

    def call_tool(*args: Any, **kwargs: Any) -> Any:
        if not watching or not args:
            return original(*args, **kwargs)
        counted = None
        try:
            found = _watchers(args[0])
            if found and session and (len(args) > 4 or "progress_callback" in kwargs):
                counted = _Counted.of(args, kwargs)
        except Exception as error:
            boundary.failed("tool", error)
            found = []
        if not found:
            return original(*args, **kwargs)
        if counted is not None:
            args, kwargs = counted.args, counted.kwargs
        made = original(*args, **kwargs)
        try:
            return _around(made, args, kwargs, found, session, waits, counted)
        except Exception as error:
            boundary.failed("tool", error)
            return made

    made: Any = call_tool
    return wraps(original)(_of_kind(made, inspect.CO_COROUTINE))


def _watchers(owner: Any) -> list[tuple[Profiler, Options]]:
    """The profilers that watch this call, and how."""
    around = current_scope.get()
    found: list[tuple[Profiler, Options]] = []
    for watch in [*watching]:
        options = watch.options_of(owner, around)
        if options is not None:
            profiler = watch.profiler
            # While the one that was told has no loop, one that looks for tools has.
            other = None if profiler._open else finder()
            profiler = other or profiler
            if not found or not any(profiler is known for known, _ in found):
                found.append((profiler, options))
    return found


class _Counted:
    """The arguments of a call whose `progress_callback` counts for the request that is sent."""

    __slots__ = ("args", "kwargs", "send")

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs
        self.send: Send | None = None

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Counted | None:
        progress = args[4] if len(args) > 4 else kwargs.get("progress_callback")
        if not callable(progress):
            return None
        made = cls(args, kwargs)
        counted = made._counting(progress)
        if len(args) > 4:
            made.args = (*args[:4], counted, *args[5:])
        else:
            made.kwargs = {**kwargs, "progress_callback": counted}
        return made

    def _counting(self, progress: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(progress)
        def counted(*told: Any, **more: Any) -> Any:
            send = self.send
            if send is not None and send.ended_ns is None:
                send.progress += 1
            return progress(*told, **more)

        return counted


Sending = tuple["Profiler", bool, "_Counted | None"]
"""How a session sends a call: by whose clock, with keys of ours in `_meta` or without, and what counts."""


def _around(
    made: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    found: list[tuple[Profiler, Options]],
    session: bool,
    waits: bool,
    counted: _Counted | None,
) -> Any:
    """A coroutine that awaits the one that was `made`."""
    name = args[1] if len(args) > 1 else kwargs.get("name", kwargs.get("tool_name"))
    if type(name) is not str:
        return made
    arguments = args[2] if len(args) > 2 else kwargs.get("arguments")
    if type(arguments) is not dict and not isinstance(arguments, Mapping):
        arguments = {}
    owner, (first, options) = args[0], found[0]
    given, meta = options.name, options.meta
    for _, options in found[1:]:
        given, meta = given or options.name, meta and options.meta
    request = Request(owner, name, arguments, session, waits)
    sending: Sending | None = None
    if session:
        request.state = state = state_of(owner)
        request.server = given
        if state.made_for is not None and not given:
            request.server = name_of_connection(state.made_for)
        sending = first, meta, counted
    else:
        request.server = given or told_name(owner)
        if not request.server:
            request.state = state = first_state(owner)
            if not state.server:
                state.server, protocol = opened(owner)
                state.protocol = state.protocol or protocol
    coroutine = made
    for profiler, _ in found:
        if _is_sent_by_another(profiler, request):
            continue  # its record has begun above
        coroutine = _recorded(profiler, request, Unawaited(coroutine), sending)
        if profiler.hold is not None:
            known = request.server or (request.state or first_state(owner)).server
            coroutine = _held_back(profiler, name, known, Unawaited(coroutine))
        under_its_name(coroutine, made)
        sending = None
    if sending is not None:
        coroutine = under_its_name(_sent(request, Unawaited(coroutine), sending), made)
    return coroutine


def _is_sent_by_another(profiler: Profiler, request: Request) -> bool:
    scope = current_scope.get()
    while scope is not None:
        if scope.sends_for(profiler, request):
            return True
        scope = scope.outer
    return False


async def _recorded(profiler: Profiler, request: Request, held: Unawaited, sending: Sending | None) -> Any:
    """Awaits the coroutine of a `call_tool` as a call of a loop; with `sending` it is that of a session."""
    run = begin_remote(profiler, request)
    sent = None if sending is None else _begin_send(request, *sending)
    try:
        value = await held.taken()
    except BaseException as error:
        if sent is not None:
            _end_send(request, *sent, error, None)
        run.ends_with(error)
        raise
    if sent is not None:
        _end_send(request, *sent, None, value)
    run.ends(value)
    return value


async def _held_back(profiler: Profiler, name: str, server: str, held: Unawaited) -> Any:
    """As the coroutine, after it has waited for what holds runs back."""
    waits = profiler._boundary.call("tool", profiler._held, name, server)
    if waits is None:
        return await held.taken()
    begun = False
    try:
        async with waits:
            begun = True
            return await held.taken()
    finally:
        if not begun:
            held.taken().close()  # it was cancelled in the queue, which is no mistake of the application's


async def _sent(request: Request, held: Unawaited, sending: Sending) -> Any:
    """Awaits the `call_tool` of a session, whose record has begun above."""
    sent = _begin_send(request, *sending)
    try:
        value = await held.taken()
    except BaseException as error:
        if sent is not None:
            _end_send(request, *sent, error, None)
        raise
    if sent is not None:
        _end_send(request, *sent, None, value)
    return value


def _given_name() -> str:
    """The name that somebody gave the server of what runs in this context."""
    scope, found = current_scope.get(), ""
    while scope is not None:
        found = found or scope.requests.server
        scope = scope.outer
    return found


_GONE = (None,)
"""In place of the keys of a request that is no longer under way."""


def _begin_send(
    request: Request, profiler: Profiler, meta: bool, counted: _Counted | None
) -> tuple[Send, Token[Send | None]] | None:
    """The request of a session's call is about to be sent. Does not raise; None where it fails."""
    try:
        state = request.state
        assert state is not None
        send = Send(profiler.recorder.clock, state, meta)
        if counted is not None:
            counted.send = send
        scope = current_scope.get()
        while scope is not None:
            scope.takes(send)
            scope = scope.outer
        see_written(request.owner)
        return send, calling.set(send)
    except Exception as error:
        boundary.failed("tool", error)
        return None


def _end_send(
    request: Request, send: Send, token: Token[Send | None], error: BaseException | None, value: Any
) -> None:
    """It has come to its end. Does not raise."""
    put_back(calling, token)
    keys, send.keys = send.keys, _GONE
    try:
        if error is None:
            send.came_to(value)
        else:
            send.raised(error)
        send.message = send.stream = None
        for watch in [*watching]:
            if watch.automatic:
                watch.saw(_given_name() or request.server or send.session.server)
    except Exception as failure:
        boundary.failed("tool", failure)
    if len(keys) > 1:
        by_message.pop(keys[0], None)
        by_number.pop(keys[1], None)
