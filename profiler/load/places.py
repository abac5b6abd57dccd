"""Places in the user's own code: where it calls what we watch, and where it raised."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import CodeType, CoroutineType, FrameType
from typing import Any

from profiler.watch.places import MOST_FRAMES, is_application, place


def raised_line(error: BaseException) -> str | None:
    """The innermost line of the user's code that an exception passed, None where it passed none."""
    found = None
    trace = error.__traceback__
    while trace is not None:
        if is_application(trace.tb_frame.f_code.co_filename):
            found = place(trace.tb_frame.f_code.co_filename, trace.tb_lineno)
        trace = trace.tb_next
    return found


def waiting_line(coroutine: Any) -> str | None:
    """The innermost line of the user's code at which a coroutine that is not running waits."""
    found = None
    for frame in _awaited(coroutine):
        if is_application(frame.f_code.co_filename):
            found = place(frame.f_code.co_filename, frame.f_lineno)
    return found


def _awaited(coroutine: Any) -> Iterator[FrameType]:
    """The frames of a coroutine and of those that it awaits, outermost first."""
    for _ in range(MOST_FRAMES):
        if isinstance(coroutine, CoroutineType):
            frame, coroutine = coroutine.cr_frame, coroutine.cr_await
        elif hasattr(coroutine, "gi_frame"):
            frame, coroutine = coroutine.gi_frame, coroutine.gi_yieldfrom
        elif hasattr(coroutine, "ag_frame"):
            frame, coroutine = coroutine.ag_frame, coroutine.ag_await
        else:
            return
        if frame is not None:
            yield frame


def thread_line(thread: int) -> str | None:
    """The innermost line of the user's code that another thread is at."""
    frame = sys._current_frames().get(thread)
    for _ in range(MOST_FRAMES):
        if frame is None:
            return None
        if is_application(frame.f_code.co_filename):
            return place(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return None


def defined_line(code: CodeType, name: str) -> str | None:
    """Where a function of that name is defined inside this code, at any depth."""
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            if inner.co_name == name:
                return place(inner.co_filename, inner.co_firstlineno)
            if (found := defined_line(inner, name)) is not None:
                return found
    return None
