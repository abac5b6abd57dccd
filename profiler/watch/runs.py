"""One run of a watched tool: what runs as part of its call, and what its call comes to."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Any, Protocol

from profiler.limits.gate import current_slot
from profiler.limits.refusals import returned_failure
from profiler.loop.boundary import Boundary, within
from profiler.loop.eventloop import MOST_WAITS, TimedCoroutine
from profiler.loop.lag import late_ns
from profiler.loop.nesting import Left, enter, leave
from profiler.loop.tools import Answer, CallContext, current_call, failure_text, failure_type, result_text
from profiler.records import Clock
from profiler.redaction import MOST_CHARACTERS, Content
from profiler.watch.circumstances import circumstances
from profiler.watch.loop import ObservedLoop
from profiler.watch.rounds import ObservedCall, handed_over

_DEEPEST = 20
"""Nested containers looked into before a result is written as text."""

_DEEPEST_WRITTEN = 100
"""Nested containers of a result that are written, where not all of it is."""


class Held(Protocol):
    """What the run of a tool waits in: entered by `async with`; in a thread without event loop by `with`."""

    async def __aenter__(self) -> object: ...

    async def __aexit__(self, *raised: Any) -> object: ...

    def __enter__(self) -> object: ...

    def __exit__(self, *raised: Any) -> object: ...


@dataclass(frozen=True, slots=True)
class Watching:
    """What runs need of the profiler that watches them; `loop` is the loop of the current context."""

    clock: Clock
    loop: ContextVar[ObservedLoop | None]
    content: Content | None
    boundary: Boundary


class ToolRun:
    """One run of a watched tool. `with` it, the tool's code runs; it ends with that, unless more follows.

    The application's own code calls these methods, through the wrapper around its tool: none of them raises.
    """

    __slots__ = (
        "_answer",
        "_context",
        "_held",
        "_length",
        "_loop",
        "_slot",
        "_texts",
        "_tokens",
        "call",
        "follows",
        "ran_ns",
        "watching",
    )

    def __init__(
        self,
        watching: Watching,
        loop: ObservedLoop | None,
        call: ObservedCall,
        held: Callable[[], Held | None] | None = None,
    ) -> None:
        self.call = call
        self._held = held
        self.follows = False  # what the tool returned goes on, and ends the call
        self.ran_ns: int | None = None  # before what it returned took its first step
        self.watching = watching
        self._loop = loop
        self._slot = current_slot.get()
        self._answer: Answer | None = None
        self._context: CallContext | None = None
        self._tokens: tuple[Token[ObservedLoop | None], Token[CallContext | None], Left] | None = None
        self._texts: list[str] | None = None
        self._length = 0
        if loop is not None:
            self._answer = Answer()
            name = call.request.name
            self._context = CallContext(call.request.id, name, loop.number, loop.trial, call, self._answer)

    @property
    def boundary(self) -> Boundary:
        return self.watching.boundary

    @property
    def holds(self) -> bool:
        return self._held is not None

    def held(self) -> Held | None:
        """What an awaitable that it returned has to wait in before its first step, None if in nothing."""
        held = None if self._held is None else self._held()
        if held is not None and self._loop is not None:
            self._loop.unlimited_calls -= 1  # it began outside every limiter, and has done nothing yet
        return held

    @within("tool")
    def released(self) -> None:
        """It has waited in what `held` returned."""
        handed = handed_over.get()
        if handed is not None:
            handed.begun = True
            self.call.handed_over, self.call.queued_ns = handed, max(self.call.ready_ns, handed.at_ns)

    @within("tool")
    def enter(self) -> None:
        """The tool's own code runs from here on, in this context, as part of the call."""
        if self.ran_ns is not None:  # the first step of what it returned
            self.call.started_ns = self.watching.clock() - self.ran_ns
            handed = self.call.handed_over
            if handed is not None:  # what ran before it waited ran beside the calls that it waited for
                self.call.started_ns = max(self.call.started_ns, handed.released_ns)
            self.call.ended_ns, self.ran_ns = None, None
            self.call.where = circumstances()
            self.call.status, self.call.error_type = "ok", None
        if self._loop is not None:
            self._tokens = (
                self.watching.loop.set(self._loop),
                current_call.set(self._context),
                enter(self._loop.running, self.call.loops),
            )

    @within("tool")
    def leave(self) -> None:
        """It does not run any more, perhaps for now."""
        if self._tokens is not None:
            (loop, call, place), self._tokens = self._tokens, None
            try:
                self.watching.loop.reset(loop)
                current_call.reset(call)
                leave(place)
            except ValueError:  # it was closed in another context than the one it ran in
                pass

    def __enter__(self) -> ToolRun:
        self.enter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self.leave()
        if error is not None:
            self.failed(error)
        elif not self.follows:
            self.returned()

    @within("tool")
    def returned(self) -> None:
        """Its code has come to its end."""
        self.call.end(self.watching.clock())

    @within("tool")
    def stepped_on(self, timed: TimedCoroutine) -> None:
        """An item of an async generator has been made."""
        self._steps(timed)
        self.resumed(timed)

    def _steps(self, timed: TimedCoroutine) -> None:
        if timed.steps:
            self.call.steps = [*self.call.steps, *timed.steps]

    @within("tool")
    def resumed(self, timed: TimedCoroutine) -> None:
        """Note the ends of a coroutine's waits, the newest ones."""
        if timed.resumed:
            self.call.resumed = [*self.call.resumed, *timed.resumed][-MOST_WAITS:]

    @within("tool")
    def stepped(self, timed: TimedCoroutine) -> None:
        """A coroutine of the tool has ended."""
        self._steps(timed)
        self.resumed(timed)
        self.call.sending_ns += timed.sending_ns
        self.call.late_ns = late_ns() if timed.waited else 0

    @within("tool")
    def ended(self) -> None:
        """It has come to its end, or was closed by who had enough of it."""
        if self._texts is not None and self.watching.content is not None:
            self.call.result = self.watching.content.keep(f"[{','.join(self._texts)}]")
        self.call.end(self.watching.clock())

    @within("tool")
    def failed(self, error: BaseException) -> None:
        """The tool raised `error`, or it was raised into it."""
        call, content = self.call, self.watching.content
        call.end(self.watching.clock())
        told = None if self._answer is None else self._answer.failure
        slot = current_slot.get() or self._slot
        if told is not None and told.error_type is not None:  # what answered it knows better
            call.status = "timeout" if told.error_type == "timeout" else "error"
            call.error_type = told.error_type
            if slot is not None:
                slot.learn(told.signal, told.retry_after_ns)
            slot = None
        elif isinstance(error, asyncio.CancelledError | GeneratorExit | concurrent.futures.CancelledError):
            call.status = call.error_type = "cancelled"
        elif isinstance(error, TimeoutError):
            call.status = call.error_type = "timeout"
        else:
            call.status = "error"
            try:
                call.error_type = failure_type(error)
            except Exception:  # it looks into attributes of the application's exception
                call.error_type = type(error).__name__
        # A limiter learns of it here: the application may turn the failure into a result.
        if slot is not None:
            with contextlib.suppress(Exception):  # as above
                slot.failed(error)
        if content is not None:
            call.result = content.keep(f"Error: {failure_text(error)}")

    @within("tool")
    def item(self, item: Any) -> None:
        """A generator has yielded `item`."""
        if self.watching.content is None or self._length > MOST_CHARACTERS:
            return
        if self._texts is None:
            self._texts = []
        text = _text([item], self.watching.content.looks_at)[0][1:-1]
        self._texts.append(text)
        self._length += len(text)

    @within("tool")
    def came_to(self, value: Any) -> None:
        """The tool's last word is `value`, which may stand for a failure."""
        call = self.call
        with contextlib.suppress(Exception):  # it looks into the application's objects
            returned = returned_failure(value)
            if self._answer is not None:
                returned = self._answer.or_of(returned)
            if returned is not None:
                slot = current_slot.get() or self._slot
                if slot is not None:
                    slot.learn(returned.signal, returned.retry_after_ns)
                if returned.error_type is not None:
                    call.status = "timeout" if returned.error_type == "timeout" else "error"
                    call.error_type = returned.error_type
        if self.watching.content is not None:
            call.result = self.watching.content.keep(*_text(value, self.watching.content.looks_at))

    def left_to_begin(self) -> None:
        """What it returned goes on. Should it never be begun, the call has ended now, unfinished."""
        now = self.watching.clock()
        self.follows, self.ran_ns = True, now - self.call.started_ns
        self.call.ended_ns, self.call.status, self.call.error_type = now, "cancelled", "unfinished"

    @within("tool")
    def settled(self, future: Any) -> None:
        """The future that it returned is done."""
        if future.cancelled():
            self.failed(asyncio.CancelledError())
            return
        # Not `exception()`: asyncio would take it for retrieved, and not warn if the application never does.
        error = future._exception if hasattr(future, "_exception") else future.exception()
        if error is not None:
            self.failed(error)
            return
        self.came_to(future.result())
        self.call.ended_ns = self.watching.clock()


def _text(value: Any, most: int | None) -> tuple[str, bool]:
    """A result as it is recorded: as `ToolLoop` would tell it, and whether that is a part of it.

    So it is where it holds so much that its first `most` characters do not need all of it. Does not raise,
    and uses up no iterator.
    """
    kind = type(value)
    try:
        cut = False
        if most is not None and kind in _CONTAINERS:
            beginning = _Beginning(most)
            value, cut = beginning.of(value), beginning.cut
        if any(isinstance(part, Iterator) for part in _parts(value, _DEEPEST)):
            return f"<{kind.__name__}>", False
        return result_text(value), cut
    except Exception:  # such as an object whose own __str__ fails
        return f"<{kind.__name__}>", False


_CONTAINERS = frozenset((list, tuple, set, frozenset, dict))


class _Beginning:
    """Copies of containers with no more in them than decides the first characters of their text.

    Each part is a character at least. `cut`: there was more.
    """

    def __init__(self, most: int) -> None:
        self.cut = False
        self._most = self._left = most

    def of(self, value: Any, depth: int = _DEEPEST_WRITTEN) -> Any:
        self._left -= 1
        kind = type(value)
        if kind is str:
            self.cut = self.cut or len(value) > self._most
            return value[: self._most]
        if kind not in _CONTAINERS:
            return value
        if not depth:
            self.cut = True
            return f"<{kind.__name__}>"
        if kind is dict:
            return {name: self.of(part, depth - 1) for name, part in self._first(value.items())}
        return [self.of(part, depth - 1) for part in self._first(value)]

    def _first(self, parts: Iterable[Any]) -> Iterator[Any]:
        for part in parts:
            if self._left <= 0:
                self.cut = True
                return
            yield part


def _parts(value: Any, depth: int) -> Iterator[Any]:
    """What a result holds: itself, and what is in its containers."""
    yield value
    if depth and type(value) in _CONTAINERS:
        for part in value.values() if type(value) is dict else value:
            yield from _parts(part, depth - 1)
