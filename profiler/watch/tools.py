"""Functions, methods and callable objects that are watched: each call of one is a run of the tool."""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any

from profiler.loop.eventloop import TimedCoroutine
from profiler.watch.returned import Steps, Unawaited, followed, iterated, under_its_name
from profiler.watch.runs import ToolRun, Watching

Begin = Callable[[tuple[Any, ...], dict[str, Any]], "ToolRun"]
"""A watched tool is called with these positional and keyword arguments. Does not raise."""


def watched_function(function: Any, begin: Begin, watching: Watching) -> Any:
    """The function, or callable object, with its runs watched. It is of the same kind of function."""
    wrapped: Any
    flags = _code_flags(function)
    # Also of an async function and of a generator is the call itself passed on at once: Python binds its
    # arguments then, and wrong ones are a TypeError of the call, not of the first step.
    if flags & inspect.CO_COROUTINE and inspect.iscoroutinefunction(function):

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            made = _made(function, begin, args, kwargs)
            return under_its_name(_awaiting(begin, args, kwargs, Unawaited(made), watching), made)

        wrapped = _of_kind(wrapped, inspect.CO_COROUTINE)
    elif flags & inspect.CO_ASYNC_GENERATOR and inspect.isasyncgenfunction(function):

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            made = _made(function, begin, args, kwargs)
            return under_its_name(_streaming(begin, args, kwargs, made), made)

        wrapped = _of_kind(wrapped, inspect.CO_ASYNC_GENERATOR)
    elif flags & inspect.CO_GENERATOR and inspect.isgeneratorfunction(function):
        steps = _awaitable_iterating if flags & inspect.CO_ITERABLE_COROUTINE else _iterating

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            made = _made(function, begin, args, kwargs)
            return under_its_name(steps(begin, args, kwargs, made), made)

        wrapped = _of_kind(wrapped, flags & (inspect.CO_GENERATOR | inspect.CO_ITERABLE_COROUTINE))
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


def _made(function: Any, begin: Begin, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The coroutine or generator that the call makes, before any of its code has run."""
    try:
        return function(*args, **kwargs)
    except BaseException:
        with begin(args, kwargs):  # this call has ended already
            raise


def _of_kind(wrapped: types.FunctionType, flags: int) -> types.FunctionType:
    """The same function, of which `inspect` says what it says of those whose code has these flags.

    It goes by nothing else. The interpreter does not: to it, this is a function that returns a value.
    """
    code = wrapped.__code__.replace(co_flags=wrapped.__code__.co_flags | flags)
    return types.FunctionType(code, wrapped.__globals__, closure=wrapped.__closure__)


async def _awaiting(
    begin: Begin, args: tuple[Any, ...], kwargs: dict[str, Any], held: Unawaited, watching: Watching
) -> Any:
    """Awaits the coroutine of an async function: its call begins with the first step."""
    with begin(args, kwargs) as run:
        timed = TimedCoroutine(_coroutine(held.coroutine), watching.clock)
        try:
            value = await timed
        finally:
            run.stepped(timed)
        return followed(run, value)


async def _streaming(
    begin: Begin, args: tuple[Any, ...], kwargs: dict[str, Any], generator: AsyncGenerator[Any, Any]
) -> AsyncGenerator[Any, Any]:
    """The same of an async generator."""
    # What `yield from` is to generators, async generators lack.
    steps = Steps(begin(args, kwargs), generator)
    while await steps.next():
        try:
            steps.send((yield steps.item))
        except BaseException as error:
            steps.throw(error)


def _iterating(
    begin: Begin, args: tuple[Any, ...], kwargs: dict[str, Any], generator: Generator[Any, Any, Any]
) -> Generator[Any, Any, Any]:
    """The same of a generator."""
    return (yield from iterated(begin(args, kwargs), generator))


@types.coroutine
def _awaitable_iterating(
    begin: Begin, args: tuple[Any, ...], kwargs: dict[str, Any], generator: Generator[Any, Any, Any]
) -> Generator[Any, Any, Any]:
    """The same of a generator that may be awaited."""
    return (yield from iterated(begin(args, kwargs), generator))


def _coroutine(value: Any) -> Coroutine[Any, Any, Any]:
    """What an async function returned; a stand-in for one may return a future."""
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
    """Those of its own code, 0 where it has none that could be looked at."""
    while isinstance(function, functools.partial | types.MethodType):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
    return flags if isinstance(flags, int) else 0
