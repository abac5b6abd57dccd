"""Runs of tools of MCP servers: which call of a loop each of them is, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any, TypeVar

from profiler.loop.lag import late_ns
from profiler.loop.model import CallRequest
from profiler.loop.nesting import enter
from profiler.loop.nesting import leave as left
from profiler.loop.tools import Answer, CallContext, current_call
from profiler.watch.arguments import FITTING, fit_of
from profiler.watch.loop import ObservedLoop, same_tool
from profiler.watch.mcp_owners import first_state
from profiler.watch.remote import Requests, Send, SessionState
from profiler.watch.rounds import ObservedCall
from profiler.watch.runs import ToolRun, Watching, _text

T = TypeVar("T")

if TYPE_CHECKING:
    from profiler.watch.profiler import Profiler

NOTICED_NS = 5_000_000
"""The end of a call that took no longer cannot have been noticed much later."""


class Request:
    """A call of a `call_tool`: of which owner, for which tool, with which arguments.

    `session`: the owner is a session, which sends it once. `waits`: it may wait for its session. `server` is
    the name that somebody gave the server; `state` is what is known of the session, None where nobody asked.
    """

    __slots__ = ("arguments", "name", "owner", "server", "session", "state", "waits")

    def __init__(
        self, owner: Any, name: str, arguments: Mapping[str, Any], session: bool, waits: bool
    ) -> None:
        self.owner = owner
        self.name = name
        self.arguments = arguments
        self.session = session
        self.waits = waits
        self.server = ""
        self.state: SessionState | None = None


current_scope: ContextVar[RemoteRun | None] = ContextVar("toolloop_mcp_scope", default=None)
"""The run whose record has begun in this context: what is sent inside is a part of it."""


def _inside_another() -> bool:
    scope = current_scope.get()
    while scope is not None:
        if scope.open:
            return True
        scope = scope.outer
    return False


def put_back(variable: ContextVar[T], token: Token[T]) -> None:
    """Reset it; in another context than it was set in, as where a coroutine is closed, nothing changes."""
    try:
        variable.reset(token)
    except ValueError:
        return


def begin_remote(profiler: Profiler, request: Request) -> RemoteRun:
    """A tool of a server begins to run in this context. Does not raise."""
    if profiler.on_start is not None:
        profiler._boundary.call("tool", profiler.on_start)
    run: RemoteRun | None = None
    try:
        run = _begin(profiler, request)
        run.enters()
        return run
    except Exception as error:
        profiler._boundary.failed("tool", error)
        return RemoteRun(profiler._watching, None, _nobodys(request.name)) if run is None else run


def _begin(profiler: Profiler, request: Request) -> RemoteRun:
    name, arguments = request.name, request.arguments
    outer, scope = current_call.get(), current_scope.get()
    run: RemoteRun | None = None
    if outer is None:
        known = profiler._loop.get()
        if known is not None and known.running.open:
            found = known.match(name, arguments)
            if found is not None and found.fit[0] >= FITTING and known.claim(found):
                run = profiler._run_of(name, known, known.begin_call(name, found), RemoteRun)
    # Inside another run it is what a server in this process does.
    elif not _inside_another() and _is_part_of(profiler, outer, name, arguments):
        run = RemoteRun(profiler._watching, None, _nobodys(name))
        run.part_of(outer)
    if run is None:
        run = profiler._run(_known_as(profiler, name, arguments), (arguments,), RemoteRun)
    run.profiler, run.owner, run.session = profiler, request.owner, request.session
    run.waits, run.outer, run.open = request.waits, scope, True
    run.requests.server, run.requests.state = request.server, request.state
    return run


def _known_as(profiler: Profiler, name: str, arguments: Mapping[str, Any]) -> str:
    """The name under which the model knows the tool of a server that starts now."""
    known = profiler._loop.get()
    if known is not None and known.open and known.expects(name):
        return name
    loops = [known] if known is not None and known.open else []
    if not loops or (profiler._conversations is not None and loops[0] in profiler._conversations):
        loops += [loop for ref in profiler._open.valuerefs() if (loop := ref()) is not None]
    found = [one for loop in loops if (one := loop.known_as(name, arguments)) is not None]
    return name if name in found or not found else found[0]


def _is_part_of(profiler: Profiler, outer: CallContext, name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether a server's tool that starts now is what the call around it is there for.

    So it is in a framework's tool, and in a function of the application's that calls the session. One that is
    watched but was not asked for gets the request that this one runs.
    """
    call = outer.observed
    if call is None:
        return outer.answer is not None and outer.answer.telling is None
    known = profiler._loop.get()
    if not isinstance(call, ObservedCall) or call.ended_ns is not None or known is None:
        return False
    if not known.runs(outer):
        return False
    request = call.request
    if request.arguments != "":
        fits = fit_of(request.arguments, arguments)[0] >= FITTING
        return fits and (same_tool(request.name, name) or known.known_as(name, arguments) is None)
    if call.requests is not None:
        return False
    found = known.match(known.known_as(name, arguments) or name, arguments)
    return found is not None and found.fit[0] >= FITTING and known.adopt(call, found)


class RemoteRun(ToolRun):
    """The run of a tool that a server runs; the record has what its requests tell.

    `open`: requests that are sent in its context are a part of it. `outer` is the run around it.
    """

    __slots__ = ("_entered", "_outer", "open", "outer", "owner", "profiler", "requests", "session", "waits")

    def __init__(self, watching: Watching, loop: ObservedLoop | None, call: ObservedCall, *held: Any) -> None:
        super().__init__(watching, loop, call, *held)
        self._outer: CallContext | None = None
        self._entered: Token[RemoteRun | None] | None = None
        self.profiler: Profiler | None = None
        self.owner: Any = None
        self.session = self.waits = self.open = False
        self.outer: RemoteRun | None = None
        self.requests = Requests()

    def part_of(self, outer: CallContext) -> None:
        """It is the call that runs here already: what is known of it goes there."""
        self._outer = outer
        self._answer = outer.answer

    # What is sent while it runs.

    @property
    def free(self) -> bool:
        """Nothing is under way in it: what a server of this process does inside is no part of it."""
        sends = self.requests.sends
        return self.open and (not sends or sends[-1].ended_ns is not None)

    def sends_for(self, profiler: Any, request: Request) -> bool:
        """Whether a call of this profiler's that begins now is one that this one sends."""
        if not self.open or self.profiler is not profiler or self.session or not self.free:
            return False
        self.requests.server = self.requests.server or request.server
        return True

    def takes(self, send: Send) -> None:
        if self.open and self.free and (not self.session or not self.requests.sends):
            self.requests.sends.append(send)

    # Its course.

    def enters(self) -> None:
        """Its code runs from here on, in this context; inside the boundary of who begins it."""
        self._entered = current_scope.set(self)
        if self._loop is not None:
            self._tokens = (
                self.watching.loop.set(self._loop),
                current_call.set(self._context),
                enter(self._loop.running, self.call.loops),
            )

    def ends_with(self, error: BaseException) -> None:
        """It raised. Does not raise."""
        try:
            self._leaves()
            self._note(self.watching.clock(), error)
        except Exception as failure:
            self.boundary.failed("tool", failure)
        self.failed(error)

    def ends(self, value: Any) -> None:
        """It returned. Does not raise."""
        now_ns = self.watching.clock()
        try:
            self._leaves()
            self._note(now_ns, None)
            answer = self._answer
            if answer is not None and answer.failure is not None:  # its text may say which failure
                self.came_to(value)
            elif self.watching.content is not None:
                self.call.result = self.watching.content.keep(*_text(value, self.watching.content.looks_at))
        except Exception as failure:
            self.boundary.failed("tool", failure)
        self.call.end(now_ns)

    def _leaves(self) -> None:
        self.open = False
        entered, self._entered = self._entered, None
        tokens, self._tokens = self._tokens, None
        try:
            if entered is not None:
                current_scope.reset(entered)
            if tokens is not None:
                self.watching.loop.reset(tokens[0])
                current_call.reset(tokens[1])
                left(tokens[2])
        except ValueError:  # it was closed in another context than it ran in
            return

    def _note(self, now_ns: int, error: BaseException | None) -> None:
        """What its requests told."""
        requests = self.requests
        sends = requests.sends
        call = self.call
        if now_ns - call.started_ns > NOTICED_NS:
            call.late_ns = late_ns()
        answer = self._answer
        if answer is None:
            self._answer = answer = Answer()
        answer.failure = sends[-1].returned if sends else None
        outer = None if self._outer is None else self._outer.observed
        if isinstance(outer, ObservedCall):
            call = outer
        if self.waits:
            until_ns = sends[0].started_ns if sends else now_ns
            requests.session_wait_ns = max(0, until_ns - call.started_ns)
        if error is not None:
            requests.cut_off = True
            if not sends and requests.state is None:
                requests.state = first_state(self.owner)
        call.requests, answer.telling = requests, requests.record


def _nobodys(name: str) -> ObservedCall:
    """The call of a run that is none of its own."""
    return ObservedCall(CallRequest("", name, ""), 0, 0)
