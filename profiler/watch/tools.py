"""Functions, methods and callable objects that are watched: each call of one is a run of the tool."""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
from collections.abc import Callable, Coroutine
from typing import Any

from profiler.loop.eventloop import TimedCoroutine
from profiler.watch.returned import Steps, followed, iterated
from profiler.watch.runs import ToolRun, Watching

Begin = Callable[[tuple[Any, ...], dict[str, Any]], "ToolRun"]
"""A watched tool is called with these positional and keyword arguments. Does not raise."""


def watched_function(function: Any, begin: Begin, watching: Watching) -> Any:
    """The function, or callable object, with its runs watched. It is of the same kind of function."""
    wrapped: Any
    if inspect.iscoroutinefunction(function):

        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            with begin(args, kwargs) as run:
                timed = TimedCoroutine(_coroutine(function(*args, **kwargs)), watching.clock)
                try:
                    value = await timed
                finally:
                    run.stepped(timed)
                return followed(run, value)

    elif inspect.isasyncgenfunction(function):

        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            run = begin(args, kwargs)
            with run:
                run.follows = True
                generator = function(*args, **kwargs)
            # What `yield from` is to generators, async generators lack.
            steps = Steps(run, generator)
            while await steps.next():
                try:
                    steps.send((yield steps.item))
                except BaseException as error:
                    steps.throw(error)

    elif inspect.isgeneratorfunction(function):

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            run = begin(args, kwargs)
            with run:
                run.follows = True
                generator = function(*args, **kwargs)
            return (yield from iterated(run, generator))

        if _code_flags(function) & inspect.CO_ITERABLE_COROUTINE:
            wrapped = types.coroutine(wrapped)
    else:

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with begin(args, kwargs) as run:
                run.call.sync = True
                value = function(*args, **kwargs)
                given = followed(run, value)
                run.call.sync = given is value and not run.follows
                return given

    named = function
    while isinstance(named, functools.partial):
        named = named.func
    if not hasattr(named, "__name__"):
        named = type(named)
    wrapped.__name__, wrapped.__qualname__ = named.__name__, getattr(named, "__qualname__", named.__name__)
    wrapped = functools.wraps(function)(wrapped)
    if not hasattr(function, "__annotations__"):  # not those of `wrapped` above
        wrapped.__annotations__ = {}
    if not isinstance(function, types.FunctionType | types.MethodType | type):
        # Methods of a callable object or a cache. Looked up on its class: a property may do anything.
        kind = type(function)
        with contextlib.suppress(Exception):  # a metaclass may do anything, too
            for name in dir(kind):
                method = inspect.getattr_static(kind, name, None)
                if not name.startswith("_") and isinstance(method, _METHODS) and not hasattr(wrapped, name):
                    setattr(wrapped, name, getattr(function, name))
    return wrapped


def _coroutine(value: Any) -> Coroutine[Any, Any, Any]:
    """What an async function returned; it may only say of itself that it is one, and return a future."""
    return value if issubclass(type(value), types.CoroutineType) else _awaited(value)


async def _awaited(value: Any) -> Any:
    return await value


_METHODS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    staticmethod,
    classmethod,
)


def _code_flags(function: Any) -> int:
    while isinstance(function, functools.partial | types.MethodType):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    return int(function.__code__.co_flags)
