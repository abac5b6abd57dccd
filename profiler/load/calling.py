"""Calling what a user wrote, whatever kind of function it is, until it has really ended.

An async function runs on the event loop. Any other runs in a native thread, since it may block: there
`asyncio.run`, sync SDK clients, locks and pools of its own work as they do in a program. There are as many
threads as loops run at once. What a function returns goes on where that is an awaitable, a generator or a
stream: it is awaited, or read to its end, before the call has ended.
"""

from __future__ import annotations

import concurrent.futures.thread
import inspect
import sys
import threading
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial, wraps
from typing import Any

from profiler.load.context import agent_call
from profiler.loop.eventloop import NativeThreads

MOST_THREADS = 100_000
"""More than agents of any process: a thread is started when a call begins and no other is idle."""

_ASYNC_CODE = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR | inspect.CO_ITERABLE_COROUTINE

_WORKER = getattr(concurrent.futures.thread, "_worker", None)
_CARRIES = "__toolloop_carries_context__"

_threads: NativeThreads | None = None


def is_async(function: Any) -> bool:
    """Whether its code is that of an async function or an async generator: calling it does not block."""
    function = underlying(function)
    code = getattr(function, "__code__", None)
    return isinstance(code, types.CodeType) and bool(code.co_flags & _ASYNC_CODE)


def underlying(function: Any) -> Any:
    """The function that runs when a partial, a method, or an object with `__call__` is called."""
    while True:
        if isinstance(function, partial):
            function = function.func
        elif isinstance(function, types.MethodType):
            function = function.__func__
        elif isinstance(function, types.FunctionType | types.BuiltinFunctionType | type):
            return function
        else:
            method = inspect.getattr_static(type(function), "__call__", None)
            return method if isinstance(method, types.FunctionType) else function


def greenlets_for_threads() -> bool:
    """Whether gevent has patched this process: a native thread that waits for a lock may wait for ever."""
    # The name is missing while another thread imports gevent: nothing has been patched by then.
    is_patched = getattr(sys.modules.get("gevent.monkey"), "is_module_patched", None)
    return is_patched is not None and bool(is_patched("threading"))


async def called(function: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    """The result of the function, when that has come to its end; of a generator or a stream None."""
    if is_async(function):
        value = function(*args, **keywords)
    else:
        value = await _pool().run(partial(_in_thread, function, args, keywords))
    while not isinstance(value, type):
        if isinstance(value, Awaitable):
            value = await value
        elif isinstance(value, AsyncIterator):
            async for _ in value:
                pass
            return None
        elif isinstance(value, Iterator):
            return await _pool().run(partial(_exhaust, value))
        else:
            break
    return value


def _in_thread(function: Callable[..., Any], args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    call = agent_call.get()
    if call is not None and call.trace is not None:
        call.trace.thread = threading.get_ident()
    value = function(*args, **keywords)
    return _exhaust(value) if inspect.isgenerator(value) else value


def _exhaust(iterator: Iterator[Any]) -> None:
    for _ in iterator:
        pass


def carry_context_into_threads() -> Callable[[], None]:
    """Have threads that an agent starts, and jobs of its pools, know the loop that they are part of.

    Python hands the context on to tasks alone. A call in such a thread would belong to whichever loop asked
    for one like it, and no strategy could hold it back. Returns what undoes this.
    """
    start: Any = threading.Thread.start
    submit: Any = ThreadPoolExecutor.submit
    if greenlets_for_threads() or hasattr(start, _CARRIES):
        return lambda: None

    @wraps(start)
    def start_with_context(thread: threading.Thread) -> None:
        if getattr(thread, "_target", None) is not _WORKER:  # its jobs have contexts of their own
            thread.run = partial(copy_context().run, thread.run)  # type: ignore[method-assign]
        start(thread)

    @wraps(submit)
    def submit_with_context(pool: Any, fn: Any, /, *args: Any, **keywords: Any) -> Any:
        return submit(pool, copy_context().run, fn, *args, **keywords)

    def put(start: Any, submit: Any) -> None:
        threading.Thread.start = start  # type: ignore[method-assign]
        ThreadPoolExecutor.submit = submit  # type: ignore[method-assign]

    setattr(start_with_context, _CARRIES, True)
    put(start_with_context, submit_with_context)
    return partial(put, start, submit)


def _pool() -> NativeThreads:
    global _threads
    if _threads is None:
        _threads = NativeThreads(MOST_THREADS)
    return _threads
