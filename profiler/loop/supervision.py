"""A loop that somebody else runs, and may end: its time limit, its cancellation, its last resort.

`supervised` runs it in a task of its own. So a loop that refuses to be cancelled keeps nobody waiting, and
`SystemExit` or `KeyboardInterrupt`, which asyncio lets end its whole event loop, end this loop alone.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from profiler.records import LOOP_TIMEOUT, LoopRecord, Status

CANCEL_SECONDS = 3.0
"""How long a cancelled loop may take to come to its end, before it is left to itself."""

AGAIN_SECONDS = 1.0
"""What still runs so long after it was cancelled is cancelled once more: tools may swallow the first one."""


@dataclass(slots=True, eq=False)
class Supervision:
    """What was done to a loop from outside: `timed_out` and `cancelled` are told before it is cancelled.

    `left`: it did not end when it was cancelled. Whoever supervises it has recorded it, so it records nothing
    itself any more. `so_far` makes the record of what it has done until now.
    """

    timed_out: bool = False
    cancelled: bool = False
    left: bool = False
    so_far: Callable[[Status, str | None], LoopRecord] | None = None

    @property
    def ending(self) -> tuple[Status, str]:
        """Status and error type of the loop, where it ends with a cancellation."""
        if self.timed_out:
            return "error", LOOP_TIMEOUT
        if self.cancelled:
            return "cancelled", "cancelled"
        return "error", "CancelledError"  # nobody cancelled it: something inside it was cancelled


supervision: ContextVar[Supervision | None] = ContextVar("toolloop_supervision", default=None)
"""That of the loop that this context is a part of, if anybody supervises it."""


def cancelled_as() -> tuple[Status, str]:
    """Status and error type of a loop that ends with a cancellation."""
    over = supervision.get()
    return ("cancelled", "cancelled") if over is None else over.ending


def can_tell(so_far: Callable[[Status, str | None], LoopRecord]) -> None:
    """The outermost loop of this context can tell what it has done, should it be left."""
    over = supervision.get()
    if over is not None and over.so_far is None:
        over.so_far = so_far


def has_timed_out() -> bool:
    """Whether the loop that this context is a part of has had its time."""
    over = supervision.get()
    return over is not None and over.timed_out


def is_left() -> bool:
    """Whether the loop that this context is a part of has been recorded by others."""
    over = supervision.get()
    return over is not None and over.left


async def supervised(
    work: Callable[[], Awaitable[Any]], seconds: float | None, over: Supervision
) -> BaseException | None:
    """Run a loop for `seconds` at most (None: any time); returns what it raised, None when it returned.

    That is a `TimeoutError` where it took longer, however it then ended. A cancellation of the caller is
    raised, once the loop has ended or was left.
    """

    async def settled() -> BaseException | None:
        supervision.set(over)
        try:
            await work()
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:
            return error
        return None

    task = asyncio.ensure_future(settled())
    try:
        await asyncio.wait((task,), timeout=seconds)
    except asyncio.CancelledError:
        over.cancelled = True
        await _cancel(task, over)
        raise
    if not task.done():
        over.timed_out = True
        await _cancel(task, over)
        return TimeoutError(f"the loop did not end within {seconds:g} s (--loop-timeout)")
    return asyncio.CancelledError() if task.cancelled() else task.result()


async def _cancel(task: asyncio.Task[Any], over: Supervision) -> None:
    """Cancel a task and wait for its end, for `CANCEL_SECONDS` at most."""
    loop = asyncio.get_running_loop()
    until = loop.time() + CANCEL_SECONDS
    try:
        while not task.done() and (left := until - loop.time()) > 0:
            task.cancel()
            await asyncio.wait((task,), timeout=min(left, AGAIN_SECONDS))
    finally:  # also where the caller is cancelled meanwhile
        over.left = not task.done()
        if over.left:
            _leave(task)


def _leave(task: asyncio.Task[Any]) -> None:
    """Leave a task to itself: should it raise at last, nobody wants to know."""
    task.add_done_callback(lambda late: late.cancelled() or late.exception())
    # Code with a bare `except` in a loop would catch the end of the interpreter too, which then had none: it
    # ends coroutines by an exception when it frees them. So this one is never freed.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(task.get_coro()))
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(task))
