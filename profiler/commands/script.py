"""Runs a script in this process as `python script.py` would.

It is the module `__main__`, with its own `sys.argv` and its folder first in `sys.path`, and stays that until
the process ends, since its threads and its `atexit` functions go on. What it prints and reads is its own.
"""

from __future__ import annotations

import builtins
import io
import os
import sys
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from types import ModuleType, TracebackType

from profiler.errors import UsageError

_PACKAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")


@dataclass(frozen=True, slots=True)
class ScriptEnd:
    """How a script ended: the code it would have exited with, and the exception that ended it, if one did."""

    code: int
    error: BaseException | None = None


def run_script(path: str, arguments: Sequence[str]) -> ScriptEnd:
    """Run it to its end, that of its threads included, and show what it raises as Python does.

    Raises `UsageError` where the file cannot be read.
    """
    try:
        with io.open_code(os.path.abspath(path)) as file:
            source = file.read()
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror or error} (what ends in .py is a script; a prompt that does goes with "
            "--prompt)"
        ) from error
    module = ModuleType("__main__")
    module.__file__ = os.path.abspath(path)
    module.__builtins__ = builtins  # type: ignore[attr-defined]
    module.__dict__.update(__cached__=None, __spec__=None)
    sys.modules["__main__"] = module
    launcher, sys.argv = sys.argv[:1], [path, *arguments]
    _replace_first_path(os.path.dirname(os.path.realpath(path)), launcher)
    others = set(threading.enumerate())
    try:
        try:
            exec(compile(source, module.__file__, "exec", dont_inherit=True), module.__dict__)
        finally:
            _join(others)
    except SystemExit as left:
        return ScriptEnd(_code_of(left))
    except KeyboardInterrupt as interrupt:
        if type(interrupt) is KeyboardInterrupt:
            show_error(interrupt)
        return ScriptEnd(130, interrupt)
    except BaseException as error:
        show_error(error)
        return ScriptEnd(1, error)
    return ScriptEnd(0)


def show_error(error: BaseException) -> None:
    """Show an exception of the user's code as Python does at the end of a program, without our frames."""
    seen: set[int] = set()
    _clean(error, seen)
    sys.stdout.flush()
    sys.excepthook(type(error), error, error.__traceback__)


def _clean(error: BaseException | None, seen: set[int]) -> None:
    """Leave our frames out of its traceback, and of those of the exceptions that led to it."""
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    error.__traceback__ = without_ours(error.__traceback__)
    _clean(error.__cause__, seen)
    _clean(error.__context__, seen)
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            _clean(one, seen)


def without_ours(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without the frames of this package."""
    kept = []
    while trace is not None:
        if not os.path.abspath(trace.tb_frame.f_code.co_filename).startswith(_PACKAGE):
            kept.append(trace)
        trace = trace.tb_next
    following: TracebackType | None = None
    for one in reversed(kept):
        one.tb_next, following = following, one
    return following


def _replace_first_path(folder: str, launcher: Sequence[str]) -> None:
    """Python puts a script's folder where that of the command `profiler` stands, or of `python -m`."""
    ours = {"", os.getcwd(), *(os.path.dirname(os.path.abspath(one)) for one in launcher)}
    if sys.path and sys.path[0] in ours:
        sys.path[0] = folder
    else:
        sys.path.insert(0, folder)


def _join(others: set[threading.Thread]) -> None:
    """Wait for its threads, as Python does before a process ends."""
    while True:
        left = [
            one
            for one in threading.enumerate()
            if one not in others and not one.daemon and one is not threading.current_thread()
        ]
        if not left:
            return
        for one in left:
            arguments = getattr(one, "_args", None)  # every worker of a pool has a weak reference to it
            pool = arguments[0]() if arguments and isinstance(arguments[0], weakref.ref) else None
            if isinstance(pool, Executor):  # idle workers wait for more work until there is to be none
                pool.shutdown()
            one.join()


def _code_of(left: SystemExit) -> int:
    """The exit code, as Python understands it; a text is printed, and 1."""
    if left.code is None:
        return 0
    if isinstance(left.code, int):
        return left.code & 0xFF
    sys.stdout.flush()
    print(left.code, file=sys.stderr)
    return 1
