"""Runs of watched tools, which end when what they return has ended.

A tool may return a value, a coroutine or another awaitable, a future, a generator or an async generator;
the call lasts until that is done; that of a context manager made of a generator, until it is left. What the
application gets is of the same kind: it passes the same checks of `inspect` and `asyncio`, and is used the
same way. A future is handed on as it is; another object with `__await__` is, too, behind a
stand-in that passes `isinstance`, can be entered if the object can, and is a coroutine if the object is.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dis
import functools
import inspect
import sys
import types
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Any

from profiler.limits.gate import current_slot
from profiler.limits.refusals import returned_failure
from profiler.loop.eventloop import MOST_WAITS, TimedCoroutine
from profiler.loop.lag import late_ns
from profiler.loop.tools import CallContext, current_call, failure_text, failure_type, result_text
from profiler.records import Clock
from profiler.redaction import MOST_CHARACTERS, Content
from profiler.watch.circumstances import circumstances
from profiler.watch.loop import ObservedCall, ObservedLoop

Begin = Callable[[tuple[Any, ...], dict[str, Any]], "ToolRun"]
"""A watched tool is called with these positional and keyword arguments. Does not raise."""

_VALUES = frozenset((str, dict, list, int, float, bool, tuple, bytes, type(None)))
"""Types of nearly all results, which need no second look."""

_DEEPEST = 20
"""Nested containers looked into before a result is written as text."""


@dataclass(frozen=True, slots=True)
class Watching:
    """What runs need of the profiler that watches them; `loop` is the loop of the current context."""

    clock: Clock
    loop: ContextVar[ObservedLoop | None]
    content: Content | None


class ToolRun:
    """One run of a watched tool. `with` it, the tool's code runs; it ends with that, unless more follows."""

    __slots__ = (
        "_context",
        "_length",
        "_loop",
        "_slot",
        "_texts",
        "_tokens",
        "_watching",
        "call",
        "follows",
        "ran_ns",
    )

    def __init__(self, watching: Watching, loop: ObservedLoop | None, call: ObservedCall) -> None:
        self.call = call
        self.follows = False  # what the tool returned goes on, and ends the call
        self.ran_ns: int | None = None  # before what it returned took its first step
        self._watching = watching
        self._loop = loop
        self._slot = current_slot.get()
        self._context: CallContext | None = None
        self._tokens: tuple[Token[ObservedLoop | None], Token[CallContext | None]] | None = None
        self._texts: list[str] | None = None
        self._length = 0
        if loop is not None:
            self._context = CallContext(call.request.id, call.request.name, loop.number, loop.trial, call)

    def enter(self) -> None:
        """The tool's own code runs from here on, in this context, as part of the call."""
        if self.ran_ns is not None:  # the first step of what it returned
            self.call.started_ns = self._watching.clock() - self.ran_ns
            self.call.ended_ns, self.ran_ns = None, None
            self.call.where = circumstances()
            self.call.status, self.call.error_type = "ok", None
        if self._loop is not None:
            self._tokens = self._watching.loop.set(self._loop), current_call.set(self._context)

    def leave(self) -> None:
        """It does not run any more, perhaps for now."""
        if self._tokens is not None:
            (loop, call), self._tokens = self._tokens, None
            try:
                self._watching.loop.reset(loop)
                current_call.reset(call)
            except ValueError:  # it was closed in another context than the one it ran in
                pass

    def __enter__(self) -> ToolRun:
        self.enter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self.leave()
        if error is not None:
            self.failed(error)
        elif not self.follows:
            self.call.end(self._watching.clock())

    def resumed(self, timed: TimedCoroutine) -> None:
        """Note the ends of a coroutine's waits, the newest ones."""
        if timed.resumed:
            self.call.resumed = [*self.call.resumed, *timed.resumed][-MOST_WAITS:]

    def stepped(self, timed: TimedCoroutine) -> None:
        """A coroutine of the tool has ended."""
        self.call.steps += timed.steps
        self.resumed(timed)
        self.call.sending_ns += timed.sending_ns
        self.call.late_ns = late_ns() if timed.waited else 0

    def ended(self) -> None:
        """It has come to its end, or was closed by who had enough of it."""
        if self._texts is not None and self._watching.content is not None:
            self.call.result = self._watching.content.keep(f"[{','.join(self._texts)}]")
        self.call.end(self._watching.clock())

    def failed(self, error: BaseException) -> None:
        """The tool raised `error`, or it was raised into it."""
        call, content = self.call, self._watching.content
        call.end(self._watching.clock())
        if isinstance(error, asyncio.CancelledError | GeneratorExit | concurrent.futures.CancelledError):
            call.status = call.error_type = "cancelled"
        elif isinstance(error, TimeoutError):
            call.status = call.error_type = "timeout"
        else:
            call.status = "error"
            try:
                call.error_type = failure_type(error)
            except Exception:  # it looks into attributes of the application's exception
                call.error_type = type(error).__name__
        # A limiter learns of it here: the application may turn the failure into a result.
        slot = current_slot.get() or self._slot
        if slot is not None:
            with contextlib.suppress(Exception):  # as above
                slot.failed(error)
        if content is not None:
            call.result = content.keep(f"Error: {failure_text(error)}")

    def item(self, item: Any) -> None:
        """A generator has yielded `item`."""
        if self._watching.content is None or self._length > MOST_CHARACTERS:
            return
        if self._texts is None:
            self._texts = []
        text = _text([item])[1:-1]
        self._texts.append(text)
        self._length += len(text)

    def returned(self, value: Any) -> Any:
        """The tool has returned `value`. Returns what the application gets in its place, which may be it."""
        self.follows = False
        if type(value) not in _VALUES:
            try:
                given = self._followed(value)
            except Exception:  # whatever a type may do when it is asked what it is
                given = value
            if self.follows or given is not value:
                return given
        self._came_to(value)
        return value

    def _came_to(self, value: Any) -> None:
        """The tool's last word is `value`, which may stand for a failure."""
        call = self.call
        with contextlib.suppress(Exception):  # it looks into the application's objects
            returned = returned_failure(value)
            if returned is not None:
                slot = current_slot.get() or self._slot
                if slot is not None:
                    slot.learn(returned.signal, returned.retry_after_ns)
                if returned.error_type is not None:
                    call.status = "timeout" if returned.error_type == "timeout" else "error"
                    call.error_type = returned.error_type
        if self._watching.content is not None:
            call.result = self._watching.content.keep(_text(value))

    def _followed(self, value: Any) -> Any:
        kind = type(value)
        if _begun(value):
            return value
        if issubclass(kind, types.AsyncGeneratorType):
            return self._not_begun(_streamed(self, value), value)
        if issubclass(kind, types.GeneratorType):
            steps = _awaitable_steps if value.gi_code.co_flags & inspect.CO_ITERABLE_COROUTINE else _iterated
            return self._not_begun(steps(self, value), value)
        if issubclass(kind, types.CoroutineType):
            return self._not_begun(_awaited(self, _Unawaited(value)), value)
        if issubclass(kind, contextlib._GeneratorContextManager) and not _begun(value.gen):
            value.gen = self._not_begun(_iterated(self, value.gen), value.gen)
            return value
        if issubclass(kind, contextlib._AsyncGeneratorContextManager) and not _begun(value.gen):
            value.gen = self._not_begun(_streamed(self, value.gen), value.gen)
            return value
        # As `asyncio.isfuture`, which asks a lazy object for its `__class__` and thereby has it evaluated.
        if hasattr(kind, "_asyncio_future_blocking") or issubclass(kind, concurrent.futures.Future):
            if value.done():
                self._settled(value)
            else:
                value.add_done_callback(self._settled)
            self.follows = True
            return value
        if hasattr(kind, "__await__"):
            self.ran_ns = self._watching.clock() - self.call.started_ns
            return _stand_in(kind)(self, value)  # type: ignore[arg-type]
        return value

    def _not_begun(self, watched: Any, original: Any) -> Any:
        """`watched` goes to the application. Should it never be begun, the call has ended now, unfinished."""
        for name in ("__name__", "__qualname__"):
            if isinstance(getattr(original, name, None), str):
                setattr(watched, name, getattr(original, name))
        now = self._watching.clock()
        self.follows, self.ran_ns = True, now - self.call.started_ns
        self.call.ended_ns, self.call.status, self.call.error_type = now, "cancelled", "unfinished"
        return watched

    def _settled(self, future: Any) -> None:
        if future.cancelled():
            self.failed(asyncio.CancelledError())
            return
        # Not `exception()`: asyncio would take it for retrieved, and not warn if the application never does.
        error = future._exception if hasattr(future, "_exception") else future.exception()
        if error is not None:
            self.failed(error)
            return
        self._came_to(future.result())
        self.call.ended_ns = self._watching.clock()


def watched_function(function: Any, begin: Begin, watching: Watching) -> Any:
    """The function, or callable object, with its runs watched. It is of the same kind of function."""
    wrapped: Any
    if inspect.iscoroutinefunction(function):

        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            with begin(args, kwargs) as run:
                timed = TimedCoroutine(function(*args, **kwargs), watching.clock)
                try:
                    value = await timed
                finally:
                    run.stepped(timed)
                return run.returned(value)

    elif inspect.isasyncgenfunction(function):

        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            run = begin(args, kwargs)
            with run:
                run.follows = True
                generator = function(*args, **kwargs)
            # What `yield from` is to generators, async generators lack.
            steps = _Steps(run, generator)
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
            return (yield from _iterated(run, generator))

        if _code_flags(function) & inspect.CO_ITERABLE_COROUTINE:
            wrapped = types.coroutine(wrapped)
    else:

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with begin(args, kwargs) as run:
                run.call.sync = True
                value = function(*args, **kwargs)
                given = run.returned(value)
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


def _begun(value: Any) -> bool:
    """Whether a generator or coroutine has taken a step: then nothing can take its place."""
    kind = type(value)
    if issubclass(kind, types.GeneratorType):
        return inspect.getgeneratorstate(value) != inspect.GEN_CREATED
    if issubclass(kind, types.CoroutineType):
        return inspect.getcoroutinestate(value) != inspect.CORO_CREATED
    if issubclass(kind, types.AsyncGeneratorType):
        # `inspect.getasyncgenstate` is of Python 3.12.
        return (
            value.ag_running or value.ag_frame is None or value.ag_frame.f_lasti > _created_at(value.ag_code)
        )
    return False


@functools.lru_cache(maxsize=256)
def _created_at(code: types.CodeType) -> int:
    """Where an async generator stands that has taken no step."""
    return next(one.offset for one in dis.get_instructions(code) if one.opname == "RETURN_GENERATOR")


class _Unawaited:
    """Holds a coroutine that another one will await. If that never runs, Python warns of it alone."""

    __slots__ = ("coroutine",)

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.coroutine = coroutine

    def __del__(self) -> None:
        coroutine = self.coroutine
        if (
            isinstance(coroutine, types.CoroutineType)
            and inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED
            and sys.getrefcount(coroutine) <= 3  # nobody else has it: this frame, the slot, the argument
        ):
            coroutine.close()


async def _awaited(run: ToolRun, held: _Unawaited) -> Any:
    """Awaits what the tool returned, as part of its call."""
    with run:
        timed = TimedCoroutine(held.coroutine, run._watching.clock)
        try:
            value = await timed
        finally:
            run.stepped(timed)
        return run.returned(value)


def _iterated(run: ToolRun, generator: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
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
    return (yield from _iterated(run, generator))


class _Steps:
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
        timed = TimedCoroutine(step(argument), run._watching.clock)
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
            run.call.steps += timed.steps
            run.resumed(timed)
            run.leave()
        run.item(self.item)
        return True


async def _streamed(run: ToolRun, generator: AsyncGenerator[Any, Any]) -> AsyncGenerator[Any, Any]:
    """The async generator that the tool returned, as part of its call."""
    steps = _Steps(run, generator)
    while await steps.next():
        try:
            steps.send((yield steps.item))
        except BaseException as error:
            steps.throw(error)


class _StandIn:
    """Stands for an awaitable object that is none of Python's own.

    Watched the first time it is awaited or, as an HTTP client's request can be, entered; then the call ends
    when it is left.
    """

    __slots__ = ("_toolloop_entered", "_toolloop_run", "_toolloop_steps", "_toolloop_value")

    def __init__(self, run: ToolRun, value: Awaitable[Any]) -> None:
        object.__setattr__(self, "_toolloop_run", run)
        object.__setattr__(self, "_toolloop_value", value)
        object.__setattr__(self, "_toolloop_entered", False)
        object.__setattr__(self, "_toolloop_steps", None)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._toolloop_value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._toolloop_value, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._toolloop_value, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._toolloop_value, name)

    def __await__(self) -> Generator[Any, Any, Any]:
        run, value = self._toolloop_run, self._toolloop_value
        if run.ran_ns is None:  # awaited before
            return (yield from value.__await__())
        return (yield from _awaited(run, _Unawaited(_await(value))).__await__())


async def _await(value: Awaitable[Any]) -> Any:
    return await value


async def _enter(stand_in: Any) -> Any:
    """`__aenter__` of a stand-in."""
    run, value = stand_in._toolloop_run, stand_in._toolloop_value
    if run.ran_ns is None:  # awaited or entered before
        return await value.__aenter__()
    object.__setattr__(stand_in, "_toolloop_entered", True)
    run.enter()
    timed = TimedCoroutine(_await(value.__aenter__()), run._watching.clock)
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


_FORWARDED = (
    *("repr", "str", "format", "hash", "call", "dir", "reduce", "reduce_ex", "or", "ror"),
    *("eq", "ne", "lt", "le", "gt", "ge"),
)
_OWN = frozenset(
    {*dir(type), *dir(_StandIn), "__del__", "__weakref__", "__class_getitem__", "__set_name__"}
    - {f"__{name}__" for name in _FORWARDED}
)
"""Special methods that a stand-in has of itself, or should not have."""


@functools.lru_cache(maxsize=256)
def _stand_in(kind: type) -> type[_StandIn]:
    """The stand-in for objects of a class, with the special methods of that class."""

    def forwarded(name: str) -> Callable[..., Any]:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            return getattr(self._toolloop_value, name)(*args, **kwargs)

        return method

    special = [n for n in dir(kind) if n.startswith("__") and n.endswith("__") and n not in _OWN]
    methods: dict[str, Any] = {n: forwarded(n) for n in special if callable(getattr(kind, n, None))}
    if "__aenter__" in methods:
        methods.update(__aenter__=_enter, __aexit__=_exit)
    if issubclass(kind, Coroutine):
        methods.update(send=_send, throw=_throw, close=_close)
    return type(kind.__name__, (_StandIn,), {"__slots__": (), **methods})


def _text(value: Any) -> str:
    """A result as it is recorded: as `ToolLoop` would tell it. Does not raise, and uses up no iterator."""
    try:
        if any(isinstance(part, Iterator) for part in _parts(value, _DEEPEST)):
            return f"<{type(value).__name__}>"
        return result_text(value)
    except Exception:  # such as an object whose own __str__ fails
        return f"<{type(value).__name__}>"


def _parts(value: Any, depth: int) -> Iterator[Any]:
    """What a result holds: itself, and what is in its containers."""
    yield value
    if depth and type(value) in (list, tuple, set, frozenset, dict):
        for part in value.values() if type(value) is dict else value:
            yield from _parts(part, depth - 1)
