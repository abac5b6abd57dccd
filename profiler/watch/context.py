"""One pass of a loop that is marked by `with prof.loop(...)`: its begin, its end and its record."""

from __future__ import annotations

import asyncio
import contextlib
import os
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, Any

from profiler.errors import unwrapped
from profiler.loop import nesting
from profiler.loop.lag import LagSampler, Stall, StopSampler
from profiler.loop.supervision import can_tell, cancelled_as, has_timed_out
from profiler.records import LOOP_TIMEOUT, LoopRecord, Status
from profiler.watch.loop import ObservedLoop

if TYPE_CHECKING:
    from profiler.watch.profiler import Profiler


class LoopContext:
    """One pass of a loop, between enter and exit. Use it once. `options` are those of `ObservedLoop`."""

    _sampler: LagSampler | StopSampler | None = None

    def __init__(self, profiler: Profiler, options: dict[str, Any]) -> None:
        self._profiler = profiler
        self._options = options
        self._loop: ObservedLoop | None = None
        self._token: Token[ObservedLoop | None] | None = None
        self._place: nesting.Left | None = None
        self._process = 0

    def __enter__(self) -> ObservedLoop:
        profiler = self._profiler
        recorder = profiler.recorder
        self._loop = loop = ObservedLoop(recorder.clock, **self._options, sinks=recorder.sinks)
        self._process = os.getpid()
        profiler._boundary.call("loop", self._enter, loop)
        return loop

    def _enter(self, loop: ObservedLoop) -> None:
        profiler = self._profiler
        parent = profiler._loop.get()
        loop.parent = nesting.begun_in(loop.running)
        if parent is not None:
            loop.number = parent.number if loop.number is None else loop.number
            loop.trial = parent.trial if loop.trial is None else loop.trial
        can_tell(lambda status, error_type: loop.record(status, error_type, 0))
        profiler._open[loop.id] = loop
        self._token = profiler._loop.set(loop)
        self._place = nesting.enter(loop.running)
        in_event_loop = asyncio._get_running_loop() is not None
        self._sampler = profiler.recorder.enter() if in_event_loop else profiler.recorder.enter_sync()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        profiler, boundary = self._profiler, self._profiler._boundary
        kind = kind if error is None else type(unwrapped(error))
        # Each on its own: that one fails is no reason to leave the next undone.
        token, self._token = self._token, None
        if token is not None:
            boundary.call("loop", _left, profiler._loop, token)
        place, self._place = self._place, None
        if place is not None:
            boundary.call("loop", nesting.leave, place)
        loop, self._loop = self._loop, None
        if loop is None:
            return
        if self._process != os.getpid():  # forked inside the loop: its record is the parent's
            return
        boundary.call("loop", self._close, loop)
        lateness = boundary.call("loop", self._lateness, loop)
        if boundary.call("loop", loop.leaves_record) is False:
            return
        record = boundary.call("loop", self._record, loop, kind, lateness or (0, None))
        if record is None:
            loop.watch_failures += 1  # outside its context by now
            record = boundary.call("loop", loop.bare_record, *_ending(kind))
        if record is not None:
            boundary.call("loop", profiler.recorder.emit, record)

    def _close(self, loop: ObservedLoop) -> None:
        loop.open = False
        self._profiler._open.pop(loop.id, None)

    def _lateness(self, loop: ObservedLoop) -> tuple[int, list[Stall] | None]:
        """The worst lag of its event loop, and the stalls."""
        sampler, self._sampler = self._sampler, None
        if sampler is None:
            return 0, None
        stalls = sampler.stalls(loop.started_ns) if loop.rounds else []  # nobody else asks for them
        return sampler.leave(loop.started_ns), stalls

    def _record(
        self,
        loop: ObservedLoop,
        kind: type[BaseException] | None,
        lateness: tuple[int, list[Stall] | None],
    ) -> LoopRecord:
        return self._profiler._with_orphans(loop.record(*_ending(kind), *lateness))

    async def __aenter__(self) -> ObservedLoop:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)


def _ending(kind: type[BaseException] | None) -> tuple[Status, str | None]:
    """Status and error type of a loop that ended with such an exception."""
    if has_timed_out():  # also where its code took the cancellation for something else
        return "error", LOOP_TIMEOUT
    if kind is None:
        return "ok", None
    if issubclass(kind, GeneratorExit):
        return "cancelled", kind.__name__
    if not issubclass(kind, asyncio.CancelledError):
        return "error", kind.__name__
    status, _ = cancelled_as()
    return status, kind.__name__


def _left(variable: ContextVar[ObservedLoop | None], token: Token[ObservedLoop | None]) -> None:
    with contextlib.suppress(
        ValueError
    ):  # in another context than it was entered in, as async generators may
        variable.reset(token)
