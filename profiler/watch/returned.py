"""What a watched tool returned, as part of its call, which ends when that has ended.

A tool may return a value, a coroutine or another awaitable, a future, a generator or an async generator;
the call lasts until that is done; that of a context manager made of a generator, until it is left. What the
application gets is of the same kind: it passes the same checks of `inspect` and `asyncio`, and is used the
same way. A future is handed on as it is; another object with `__await__` is, too, behind a
stand-in that passes `isinstance`, can be entered if the object can, and is a coroutine if the object is.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dis
import functools
import inspect
import sys
import types
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from typing import Any

from profiler.loop.eventloop import TimedCoroutine
from profiler.watch.runs import ToolRun
from profiler.watch.standin import StandIn, stand_in_class

_VALUES = frozenset((str, dict, list, int, float, bool, tuple, bytes, type(None)))
"""Types of nearly all results, which need no second look."""


def followed(run: ToolRun, value: Any) -> Any:
    """The tool has returned `value`. Returns what the application gets in its place, which may be it."""
    run.follows = False
    try:
        if type(value) not in _VALUES:
            given = _followed(run, value)
            if run.follows or given is not value:
                return given
    except Exception as error:  # whatever a type may do when it is asked what it is
        run.follows = False
        run.boundary.failed("tool", error)
    run.came_to(value)
    return value


def _followed(run: ToolRun, value: Any) -> Any:
    kind = type(value)
    if _begun(value):
        return value
    if issubclass(kind, types.AsyncGeneratorType):
        return _to_begin(run, _streamed(run, value), value)
    if issubclass(kind, types.GeneratorType):
        steps = _awaitable_steps if value.gi_code.co_flags & inspect.CO_ITERABLE_COROUTINE else iterated
        return _to_begin(run, steps(run, value), value)
    if issubclass(kind, types.CoroutineType):
        steps_of = _held_back if run.holds else _awaited
        return _to_begin(run, steps_of(run, Unawaited(value)), value)
    if issubclass(kind, contextlib._GeneratorContextManager) and not _begun(value.gen):
        value.gen = _to_begin(run, iterated(run, value.gen), value.gen)
        return value
    if issubclass(kind, contextlib._AsyncGeneratorContextManager) and not _begun(value.gen):
        value.gen = _to_begin(run, _streamed(run, value.gen), value.gen)
        return value
    # As `asyncio.isfuture`, which asks a lazy object for its `__class__` and thereby has it evaluated.
    if hasattr(kind, "_asyncio_future_blocking") or issubclass(kind, concurrent.futures.Future):
        if value.done():
            run.settled(value)
        else:
            value.add_done_callback(run.settled)
        run.follows = True
        return value
    if getattr(kind, "__await__", None) is not None:  # None says that it cannot be awaited
        stand_in = _stand_in(kind)(run, value)  # type: ignore[arg-type]
        run.ran_ns = run.watching.clock() - run.call.started_ns
        return stand_in
    return value


def _to_begin(run: ToolRun, watched: Any, original: Any) -> Any:
    """`watched` goes to the application, in place of the original and under its name."""
    under_its_name(watched, original)
    run.left_to_begin()
    return watched


def under_its_name(watched: Any, original: Any) -> Any:
    """The coroutine or generator `watched`, with the name of the original."""
    if type(original) is types.CoroutineType:
        watched.__name__, watched.__qualname__ = original.__name__, original.__qualname__
        return watched
    for name in ("__name__", "__qualname__"):
        if isinstance(getattr(original, name, None), str):
            setattr(watched, name, getattr(original, name))
    return watched


def _begun(value: Any) -> bool:
    """Whether a generator or coroutine has taken a step: then nothing can take its place."""
    kind = type(value)
    if issubclass(kind, types.GeneratorType):
        return inspect.getgeneratorstate(value) != inspect.GEN_CREATED
    if issubclass(kind, types.CoroutineType):
        return inspect.getcoroutinestate(value) != inspect.CORO_CREATED
    if issubclass(kind, types.AsyncGeneratorType):
        if sys.version_info >= (3, 12):
            return inspect.getasyncgenstate(value) != inspect.AGEN_CREATED
        return (
            value.ag_running or value.ag_frame is None or value.ag_frame.f_lasti > _created_at(value.ag_code)
        )
    return False


@functools.lru_cache(maxsize=256)
def _created_at(code: types.CodeType) -> int:
    """Where an async generator stands that has taken no step."""
    return next(one.offset for one in dis.get_instructions(code) if one.opname == "RETURN_GENERATOR")


class Unawaited:
    """Holds a coroutine that another one will await. If that never runs, Python warns of it alone."""

    __slots__ = ("coroutine",)

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.coroutine: Any = coroutine

    def taken(self) -> Any:
        """The coroutine, which is another one's to await now."""
        coroutine, self.coroutine = self.coroutine, None
        return coroutine

    def __del__(self) -> None:
        coroutine = self.coroutine
        if coroutine is None:  # taken
            return
        if (
            isinstance(coroutine, types.CoroutineType)
            and inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED
            and sys.getrefcount(coroutine) <= 3  # nobody else has it: this frame, the slot, the argument
        ):
            coroutine.close()


async def _awaited(run: ToolRun, held: Unawaited) -> Any:
    """Awaits what the tool returned, as part of its call."""
    with run:
        timed = TimedCoroutine(held.coroutine, run.watching.clock)
        try:
            value = await timed
        finally:
            run.stepped(timed)
        return followed(run, value)


async def _held_back(run: ToolRun, held: Unawaited) -> Any:
    """As `_awaited`, after it has waited for what holds runs back."""
    waits = run.held()
    if waits is None:
        return await _awaited(run, held)
    async with waits:
        run.released()
        return await _awaited(run, held)


def iterated(run: ToolRun, generator: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """The generator that the tool returned: the code between two of its items is part of the call."""
    step: Callable[[Any], Any] = generator.send
    argument: Any = None
    while True:
        run.enter()
        try:
            item = step(argument)
        except StopIteration as done:
            run.ended()
            return done.value
        except GeneratorExit:
            run.ended()
            raise
        except BaseException as error:
            run.failed(error)
            raise
        finally:
            argument = None
            run.leave()
        run.item(item)
        try:
            argument = yield item
            step = generator.send
        except BaseException as error:
            step, argument = generator.throw, error


@types.coroutine
def _awaitable_steps(run: ToolRun, generator: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """The same for a generator that may be awaited."""
    return (yield from iterated(run, generator))


class Steps:
    """Takes the steps of an async generator, as part of a call; `item` is what the last one yielded."""

    __slots__ = ("_argument", "_generator", "_run", "_step", "item")

    def __init__(self, run: ToolRun, generator: AsyncGenerator[Any, Any]) -> None:
        self.item: Any = None
        self._run = run
        self._generator = generator
        self._step: Callable[[Any], Any] = self._first
        self._argument: Any = None

    def _first(self, value: Any) -> Any:
        """The first step, unseen by the event loop, which would else close this one beside the outer one."""
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(None, None)
        try:
            return self._generator.asend(value)
        finally:
            sys.set_asyncgen_hooks(*hooks)

    def send(self, value: Any) -> None:
        self._step, self._argument = self._generator.asend, value

    def throw(self, error: BaseException) -> None:
        self._step, self._argument = self._generator.athrow, error

    async def next(self) -> bool:
        """Take a step; False when the generator is exhausted."""
        run = self._run
        step, argument = self._step, self._argument
        self.item = self._argument = None
        run.enter()
        timed = TimedCoroutine(step(argument), run.watching.clock)
        try:
            self.item = await timed
        except StopAsyncIteration:
            run.ended()
            return False
        except BaseException as error:
            if isinstance(error, GeneratorExit) and isinstance(argument, GeneratorExit):
                run.ended()
            else:
                run.failed(error)
            raise
        finally:
            argument = None
            run.stepped_on(timed)
            run.leave()
        run.item(self.item)
        return True


async def _streamed(run: ToolRun, generator: AsyncGenerator[Any, Any]) -> AsyncGenerator[Any, Any]:
    """The async generator that the tool returned, as part of its call."""
    steps = Steps(run, generator)
    while await steps.next():
        try:
            steps.send((yield steps.item))
        except BaseException as error:
            steps.throw(error)


class _Awaitable(StandIn):
    """Stands for an awaitable object that is none of Python's own.

    Watched the first time it is awaited or, as an HTTP client's request can be, entered; then the call ends
    when it is left.
    """

    __slots__ = ("_toolloop_entered", "_toolloop_run", "_toolloop_steps")

    _toolloop_own = frozenset({"__await__"})

    def __init__(self, run: ToolRun, value: Awaitable[Any]) -> None:
        super().__init__(value)
        object.__setattr__(self, "_toolloop_run", run)
        object.__setattr__(self, "_toolloop_entered", False)
        object.__setattr__(self, "_toolloop_steps", None)

    def __await__(self) -> Generator[Any, Any, Any]:
        run, value = self._toolloop_run, self._toolloop_value
        if run.ran_ns is None:  # awaited before
            return (yield from value.__await__())
        steps_of = _held_back if run.holds else _awaited
        return (yield from steps_of(run, Unawaited(_await(value))).__await__())


async def _await(value: Awaitable[Any]) -> Any:
    return await value


async def _enter(stand_in: Any) -> Any:
    """`__aenter__` of a stand-in."""
    run, value = stand_in._toolloop_run, stand_in._toolloop_value
    if run.ran_ns is None:  # awaited or entered before
        return await value.__aenter__()
    object.__setattr__(stand_in, "_toolloop_entered", True)
    run.enter()
    timed = TimedCoroutine(_await(value.__aenter__()), run.watching.clock)
    try:
        return await timed
    except BaseException as error:
        run.failed(error)
        raise
    finally:
        run.stepped(timed)
        run.leave()


async def _exit(stand_in: Any, kind: Any, error: BaseException | None, trace: Any) -> Any:
    """`__aexit__` of a stand-in."""
    run, value = stand_in._toolloop_run, stand_in._toolloop_value
    if not stand_in._toolloop_entered:
        return await value.__aexit__(kind, error, trace)
    run.enter()
    try:
        handled = await value.__aexit__(kind, error, trace)
    except BaseException as failure:
        run.failed(failure)
        raise
    finally:
        run.leave()
    if error is None or handled:
        run.ended()
    else:
        run.failed(error)
    return handled


def _send(stand_in: Any, argument: Any) -> Any:
    """`send` of a stand-in for a coroutine: tasks take its steps this way."""
    if stand_in._toolloop_steps is None:
        object.__setattr__(stand_in, "_toolloop_steps", stand_in.__await__())
    return stand_in._toolloop_steps.send(argument)


def _throw(stand_in: Any, *error: Any) -> Any:
    return (stand_in._toolloop_steps or stand_in._toolloop_value).throw(*error)


def _close(stand_in: Any) -> None:
    (stand_in._toolloop_steps or stand_in._toolloop_value).close()


@functools.lru_cache(maxsize=256)
def _stand_in(kind: type) -> Any:
    """The class of stand-ins for awaitable objects of this class."""
    methods: dict[str, Any] = {}
    if callable(getattr(kind, "__aenter__", None)):
        methods.update(__aenter__=_enter, __aexit__=_exit)
    if issubclass(kind, Coroutine):
        methods.update(send=_send, throw=_throw, close=_close)
    return stand_in_class(_Awaitable, kind, methods)
