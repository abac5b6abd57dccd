"""Places in the user's own code: where it calls what we watch, and where it raised."""

from __future__ import annotations

import ast
import asyncio
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from types import CodeType, CoroutineType, FrameType, FunctionType, ModuleType
from typing import Any

from profiler.errors import unwrapped
from profiler.load.calling import underlying
from profiler.watch.places import MOST_FRAMES, innermost_place, is_code_of_application, place

_LOCK = type(threading.Lock())


def raised_line(error: BaseException) -> str | None:
    """The innermost line of the user's code that an exception passed, None where it passed none."""
    found = None
    trace = unwrapped(error).__traceback__
    while trace is not None:
        if is_code_of_application(trace.tb_frame.f_code):
            found = place(trace.tb_frame.f_code.co_filename, trace.tb_lineno)
        trace = trace.tb_next
    return found


def waiting_line(coroutine: Any) -> str | None:
    """The innermost line of the user's code at which a coroutine that is not running waits."""
    found = None
    for frame in _awaited(coroutine):
        if is_code_of_application(frame.f_code):
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
    return innermost_place(sys._current_frames().get(thread))


def function_line(module: ModuleType | None, name: str) -> str:
    """Where a module defines a function of that name, at any depth; empty where it does not."""
    for value in [] if module is None else [*vars(module).values()]:
        if isinstance(value, FunctionType) and value.__module__ == getattr(module, "__name__", ""):
            if value.__name__ == name:
                return place(value.__code__.co_filename, value.__code__.co_firstlineno)
            if found := _inner_line(value.__code__, name):
                return found
    return ""


def _inner_line(code: CodeType, name: str) -> str:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            if inner.co_name == name:
                return place(inner.co_filename, inner.co_firstlineno)
            if found := _inner_line(inner, name):
                return found
    return ""


def limits_of(module: ModuleType | None) -> list[tuple[str, int]]:
    """The semaphores, locks and thread pools that a module keeps: `SLOTS (agent.py:8)`, and their size."""
    found = []
    for name, value in [] if module is None else [*vars(module).items()]:
        if isinstance(value, asyncio.Semaphore | threading.Semaphore):
            size = int(getattr(value, "_value", 0))
        elif isinstance(value, asyncio.Lock | _LOCK):
            size = 1
        elif isinstance(value, ThreadPoolExecutor):
            size = int(getattr(value, "_max_workers", 0))
        else:
            continue
        line = _assigned_line(module, name)
        found.append((f"{name} ({line})" if line else name, size))
    return found


def remade_by(agent: Any, sources: Mapping[str, CodeType]) -> dict[str, str]:
    """The functions, of these by name, that are defined inside an agent's own function, and where."""
    inside = f"{getattr(underlying(agent), '__qualname__', '')}.<locals>."
    return {
        name: place(code.co_filename, code.co_firstlineno)
        for name, code in sources.items()
        if code.co_qualname.startswith(inside)
    }


def swallowed(code: CodeType) -> str:
    """Where a function catches an exception and returns something made of it; empty where it does not."""
    for function in ast.walk(_tree(code.co_filename)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and function.name == code.co_name:
            first = min([function.lineno, *(one.lineno for one in function.decorator_list)])
            handlers = [one for one in ast.walk(function) if isinstance(one, ast.ExceptHandler)]
            for handler in handlers if first == code.co_firstlineno else ():
                if handler.name and any(_uses(one, handler.name) for one in _returned(handler)):
                    return place(code.co_filename, handler.lineno)
    return ""


def _returned(handler: ast.ExceptHandler) -> list[ast.expr]:
    returns = [one for one in ast.walk(handler) if isinstance(one, ast.Return)]
    return [one.value for one in returns if one.value is not None]


def _uses(value: ast.expr, name: str) -> bool:
    return any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(value))


@lru_cache(maxsize=16)
def _tree(file: str) -> ast.Module:
    """The source of a file, empty where there is none."""
    try:
        return ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ast.Module([], [])


def _assigned_line(module: ModuleType | None, name: str) -> str:
    """Where a module assigns to a global name."""
    file = str(getattr(module, "__file__", ""))
    for statement in _tree(file).body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        targets = [statement.target] if isinstance(statement, ast.AnnAssign) else targets
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return place(file, statement.lineno)
    return ""
