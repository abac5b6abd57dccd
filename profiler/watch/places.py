"""Which code is the application's own, and where in it something happens."""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
from types import CodeType, FrameType

MOST_FRAMES = 200

_PACKAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")
_LIBRARY = tuple(
    os.path.join(os.path.realpath(path), "")
    for name in ("stdlib", "platstdlib")
    if (path := sysconfig.get_path(name))
)
_INSTALLED = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))


@functools.lru_cache(maxsize=65536)  # more than the modules of any process: each is asked for in every search
def is_application(filename: str) -> bool:
    """Whether code of this file is the application's: no library's, not Python's own and not ours.

    What is typed into a shell, or a cell of a notebook, is.
    """
    if filename.startswith("<"):
        return not filename.startswith(("<frozen", "<__array", "<attrs", "<lambdifygenerated"))
    path = os.path.join(_real_folder(os.path.dirname(filename)), os.path.basename(filename))
    if os.path.islink(path):
        path = os.path.realpath(path)
    if path.startswith(_PACKAGE) or any(part in path for part in _INSTALLED):
        return False
    return not path.startswith(_LIBRARY)


@functools.lru_cache(maxsize=4096)
def _real_folder(path: str) -> str:
    """Its path without links: that asks the file system about each part of it, for each file once more."""
    return os.path.realpath(path)


PASSES = "its calls pass through code of the profiler's"
"""The last constant of code that stands for a function's own (`profiler.watch.discovery`)."""


def is_code_of_application(code: CodeType) -> bool:
    """Whether code is the application's own, and does not only stand for it."""
    if code.co_consts and code.co_consts[-1] is PASSES:
        return False
    return is_application(code.co_filename)


def place_of_caller() -> str | None:
    """`file:line` of the innermost code of the application that called this; None without any."""
    return innermost_place(sys._getframe(1))


def innermost_place(frame: FrameType | None) -> str | None:
    """The same of the code that a frame is part of."""
    for _ in range(MOST_FRAMES):
        if frame is None:
            return None
        if is_code_of_application(frame.f_code):
            return place(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return None


def place(filename: str, line: int) -> str:
    """`agent.py:12`; relative to the working directory where the file is in it."""
    shown = filename
    if os.path.isabs(filename):
        try:
            relative = os.path.relpath(filename)
        except (OSError, ValueError):  # the directory is gone, or on another drive
            relative = filename
        shown = filename if relative.startswith("..") else relative
    return f"{shown}:{line}"
