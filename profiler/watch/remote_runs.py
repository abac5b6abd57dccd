"""Runs of tools of MCP servers: which call of a loop each of them is, and what becomes of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any

from profiler.loop.boundary import within
from profiler.loop.lag import late_ns
from profiler.loop.model import CallRequest
from profiler.loop.nesting import enter
from profiler.loop.tools import Answer, CallContext, current_call
from profiler.watch.loop import ObservedLoop
from profiler.watch.remote import Send, attempts, remote_call
from profiler.watch.rounds import ObservedCall
from profiler.watch.runs import ToolRun, Watching, _text

if TYPE_CHECKING:
    from profiler.watch.profiler import Profiler

NOTICED_NS = 5_000_000
"""The end of a call that took no longer cannot have been noticed much later."""


class Request:
    """A call of a `call_tool`: of which owner, for which tool, with which arguments.

    `session`: the owner is a session, which sends it once. `waits`: it may wait for its session.
    """

    __slots__ = ("arguments", "name", "owner", "server", "session", "waits")

    def __init__(
        self, owner: Any, name: str, arguments: Mapping[str, Any], session: bool, waits: bool
    ) -> None:
        self.owner = owner
        self.name = name
        self.arguments = arguments
        self.session = session
        self.waits = waits
        self.server = ""


class Scope:
    """The record of a call that has begun in this context: what is sent inside is a part of it."""

    __slots__ = ("open", "outer", "owner", "profiler", "sends", "server", "session")

    def __init__(self, profiler: Any, request: Request, outer: Scope | None) -> None:
        self.profiler = profiler
        self.owner = request.owner
        self.session = request.session
        self.server = request.server
        self.outer = outer
        self.open = True
        self.sends: list[Send] = []

    @property
    def free(self) -> bool:
        """Nothing is under way in it: what a server of this process does inside is no part of it."""
        return self.open and (not self.sends or self.sends[-1].ended_ns is not None)

    def holds(self, profiler: Any, request: Request) -> bool:
        """Whether a call of this profiler's that begins now is one that this one sends."""
        if self.profiler is not profiler or self.session or not self.free:
            return False
        self.server = self.server or request.server
        return True

    def takes(self, send: Send) -> None:
        if self.free and (not self.session or not self.sends):
            self.sends.append(send)


_scope: ContextVar[Scope | None] = ContextVar("toolloop_mcp_scope", default=None)


def scopes() -> Iterator[Scope]:
    """Those of this context, from the innermost on."""
    scope = _scope.get()
    while scope is not None:
        yield scope
        scope = scope.outer


def begin_remote(profiler: Profiler, request: Request) -> ToolRun:
    """A tool of a server is about to run. Does not raise."""
    if profiler.on_start is not None:
        profiler._boundary.call("tool", profiler.on_start)
    try:
        return _begin(profiler, request)
    except Exception as error:
        profiler._boundary.failed("tool", error)
        return ToolRun(profiler._watching, None, _nobodys(request.name))


def _begin(profiler: Profiler, request: Request) -> ToolRun:
    name, given = request.name, (request.arguments,)
    outer = current_call.get()
    scope = Scope(profiler, request, _scope.get())
    run: RemoteRun | None = None
    alone = not any(one.open for one in scopes())  # else it is what a server in this process does
    if alone and outer is not None and profiler._is_part_of(outer, name, request.arguments):
        run = RemoteRun(profiler._watching, None, _nobodys(name))
        run.part_of(outer)
    elif outer is None:
        run = profiler._run_asked(name, request.arguments, RemoteRun)
    if run is None:
        run = profiler._run(profiler._known_as(name, request.arguments), given, RemoteRun)
    run.scope, run.request = scope, request
    return run


class RemoteRun(ToolRun):
    """The run of a tool that a server runs; the record has what its requests tell."""

    __slots__ = ("_entered", "_outer", "request", "scope")

    def __init__(self, watching: Watching, loop: ObservedLoop | None, call: ObservedCall, *held: Any) -> None:
        super().__init__(watching, loop, call, *held)
        self.scope: Scope | None = None
        self.request: Request | None = None
        self._outer: CallContext | None = None
        self._entered: Token[Scope | None] | None = None

    def part_of(self, outer: CallContext) -> None:
        """It is the call that runs here already: what is known of it goes there."""
        self._outer = outer
        self._answer = outer.answer

    @within("tool")
    def enter(self) -> None:
        self._entered = _scope.set(self.scope)
        if self._loop is not None:
            self._tokens = (
                self.watching.loop.set(self._loop),
                current_call.set(self._context),
                enter(self._loop.running, self.call.loops),
            )

    @within("tool")
    def leave(self) -> None:
        super().leave()
        entered, self._entered = self._entered, None
        if entered is not None:
            with contextlib.suppress(ValueError):  # closed in another context than it ran in
                _scope.reset(entered)

    @within("tool")
    def failed(self, error: BaseException) -> None:
        self._note()
        super().failed(error)

    @within("tool")
    def came_to(self, value: Any) -> None:
        self._note()
        told = None if self._answer is None else self._answer.failure
        if told is not None:  # its text may say which failure
            super().came_to(value)
        elif self.watching.content is not None:
            self.call.result = self.watching.content.keep(*_text(value, self.watching.content.looks_at))

    def _note(self) -> None:
        """What its requests told."""
        scope, request = self.scope, self.request
        if scope is None or request is None:
            return
        scope.open = False
        sends = scope.sends
        if self.watching.clock() - self.call.started_ns > NOTICED_NS:
            self.call.late_ns = late_ns()
        answer = self._answer
        if answer is None:
            self._answer = answer = Answer()
        answer.failure = sends[-1].returned if sends else None
        outer = None if self._outer is None else self._outer.observed
        call = outer if isinstance(outer, ObservedCall) else self.call
        waited_ns = 0
        if request.waits:
            until_ns = sends[0].started_ns if sends else self.watching.clock()
            waited_ns = max(0, until_ns - call.started_ns)
        answer.remote = call.remote = remote_call(sends, scope.server, waited_ns)
        call.sent = attempts(sends)


def _nobodys(name: str) -> ObservedCall:
    """The call of a run that is none of its own."""
    return ObservedCall(CallRequest("", name, ""), 0, 0)
