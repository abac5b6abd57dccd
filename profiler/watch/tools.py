"""Functions, methods and callable objects that are watched: each call of one is a run of the tool."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import types
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from inspect import Signature
from types import CodeType, MethodType
from typing import Any, Protocol, cast

from profiler.loop.eventloop import TimedCoroutine
from profiler.watch.returned import Steps, Unawaited, followed, iterated, under_its_name
from profiler.watch.runs import Held, ToolRun, Watching
from profiler.watch.standin import StandIn, stand_in_class


class Begin(Protocol):
    """A watched tool is called with these positional and keyword arguments. Does not raise.

    `held` is what its run has to wait in before, None if in nothing; not `holds`: that is always None.
    """

    @property
    def holds(self) -> bool: ...

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ToolRun: ...

    def held(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Held | None: ...


class _WithoutObject:
    """Begins runs of a method, whose first argument is its object, and none of the tool."""

    __slots__ = ("_begin",)

    def __init__(self, begin: Begin) -> None:
        self._begin = begin

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ToolRun:
        return self._begin(args[1:], kwargs)

    @property
    def holds(self) -> bool:
        return self._begin.holds

    def held(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Held | None:
        return self._begin.held(args[1:], kwargs)


Again = Callable[[Any], Any]
"""Watches another callable as the same tool."""


def watched(function: Any, begin: Begin, watching: Watching, owner: object, again: Again) -> Any:
    """The function, method or callable object with its runs watched, and marked as those of `owner`.

    It is of the same kind; as an attribute of a class, too, which binds it just if it binds the original.
    """
    kind = type(function)
    if kind is types.FunctionType:
        return _marked(function, begin, watching, owner)
    if kind is types.MethodType:
        inner = _marked(function.__func__, _WithoutObject(begin), watching, owner)
        return types.MethodType(inner, function.__self__)
    # Whatever the metaclass does when it is looked at.
    found = watching.boundary.call("tool", _object_class, kind)  # type: ignore[arg-type]
    return (found or _Object)(function, _runs(function, begin, watching), owner, again)


def _marked(function: Any, begin: Begin, watching: Watching, owner: object) -> Any:
    made: Any = _runs(function, begin, watching)
    named = _named(function)
    made.__name__, made.__qualname__ = named.__name__, getattr(named, "__qualname__", named.__name__)
    made = functools.wraps(function)(made)
    if not hasattr(function, "__annotations__"):  # not those of the wrapper
        made.__annotations__ = {}
    made.__toolloop_profiler__ = owner
    return made


def _runs(function: Any, begin: Begin, watching: Watching) -> Any:
    """A function that runs this one, of the same kind of function, with its runs watched."""
    wrapped: Any
    flags = _code_flags(function)
    # Also of an async function and of a generator is the call itself passed on at once: Python binds its
    # arguments then, and wrong ones are a TypeError of the call, not of the first step.
    if flags & inspect.CO_COROUTINE and inspect.iscoroutinefunction(function):

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            made = _made(function, begin, args, kwargs)
            run = _held_back if begin.holds else _awaiting
            return under_its_name(run(begin, args, kwargs, Unawaited(made), watching), made)

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
            # On an event loop's own thread nothing else runs meanwhile, and waiting would stop it.
            if (
                begin.holds
                and asyncio._get_running_loop() is None
                and (held := begin.held(args, kwargs)) is not None
            ):
                with held:
                    return run_once(args, kwargs)
            return run_once(args, kwargs)

        def run_once(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            with begin(args, kwargs) as run:
                run.call.sync = True
                value = function(*args, **kwargs)
                given = followed(run, value)
                run.call.sync = given is value and not run.follows
                return given

    return wrapped


class _Object(StandIn):
    """Stands for a callable object, calls of which are watched."""

    __slots__ = ("_toolloop_again", "_toolloop_owner", "_toolloop_runs")

    _toolloop_own = frozenset({"__deepcopy__", "__toolloop_profiler__"})

    def __init__(self, value: Any, runs: Callable[..., Any], owner: object, again: Again) -> None:
        super().__init__(value)
        object.__setattr__(self, "_toolloop_runs", runs)
        object.__setattr__(self, "_toolloop_owner", owner)
        object.__setattr__(self, "_toolloop_again", again)

    def __getattribute__(self, name: str) -> Any:
        if name == "__call__":  # asked for by frameworks, which look whether it is async
            return self._toolloop_again(self._toolloop_value.__call__)
        if name == "__wrapped__":  # no property, which frameworks would find on the class
            return self._toolloop_value
        if name == "__class__" and issubclass(type(self._toolloop_value), type):
            return type(self)  # what says that it is a class has to be one, for `issubclass`
        try:
            return super().__getattribute__(name)
        except AttributeError:
            # Frameworks name tools by these, which partials and objects lack.
            if name in ("__name__", "__qualname__"):
                return getattr(_named(self._toolloop_value), name)
            if name == "__annotations__":
                return {}
            raise

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self._toolloop_runs(*args, **kwargs)

    @property
    def __toolloop_profiler__(self) -> object:
        return self._toolloop_owner

    def __copy__(self) -> Any:
        return self._toolloop_again(copy.copy(self._toolloop_value))

    def __deepcopy__(self, memo: Any) -> Any:
        return self._toolloop_again(copy.deepcopy(self._toolloop_value, memo))


def _bound(stand_in: Any, instance: Any, owner: Any = None) -> Any:
    """`__get__` of a stand-in for an object that has it: what that comes to is watched as well."""
    value = stand_in._toolloop_value
    bound = value.__get__(instance, owner)
    if bound is value:
        return stand_in
    if type(bound) is types.MethodType and bound.__func__ is value:
        return types.MethodType(stand_in, bound.__self__)
    return stand_in._toolloop_again(bound) if callable(bound) else bound


def _named_in(stand_in: Any, owner: Any, name: str) -> None:
    """`__set_name__` of a stand-in for an object that has it."""
    stand_in._toolloop_value.__set_name__(owner, name)


async def _entered(stand_in: Any) -> Any:
    """`__aenter__` of a stand-in: an object that gives itself is still watched inside."""
    value = stand_in._toolloop_value
    entered = await value.__aenter__()
    return stand_in if entered is value else entered


_OWN_METHODS = {"__get__": _bound, "__set_name__": _named_in, "__aenter__": _entered}


@functools.lru_cache(maxsize=256)
def _object_class(kind: type) -> Any:
    """The class of stand-ins for callable objects of this class."""
    methods: dict[str, Any]
    methods = {name: own for name, own in _OWN_METHODS.items() if callable(getattr(kind, name, None))}
    call = inspect.getattr_static(kind, "__call__", None)
    if type(call) is types.FunctionType:
        methods["__call__"] = _calling_as(call)
    return stand_in_class(_Object, kind, methods)


def _calling_as(call: types.FunctionType) -> Any:
    """`__call__` of a stand-in, of which `inspect` and `typing` say what they say of that of the class."""
    of_kind = _of_kind(cast(types.FunctionType, _Object.__call__), call.__code__.co_flags & _KINDS)
    # `get_type_hints` looks names up in its globals.
    made: Any = functools.update_wrapper(types.FunctionType(of_kind.__code__, call.__globals__), call)
    # Frameworks refuse methods that are wrapped. One of a `functools.partialmethod` has the signature of
    # another function, too: by the first of these names, and since Python 3.13 by the second.
    del made.__wrapped__
    made.__dict__.update(call.__dict__)
    made._partialmethod = made.__partialmethod__ = functools.partialmethod(call)
    return made


def _named(function: Any) -> Any:
    """What has the name of a callable that may have none."""
    while isinstance(function, functools.partial):
        function = function.func
    return function if hasattr(function, "__name__") else type(function)


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


async def _held_back(
    begin: Begin, args: tuple[Any, ...], kwargs: dict[str, Any], held: Unawaited, watching: Watching
) -> Any:
    """As `_awaiting`, after it has waited for what holds runs back."""
    waits = begin.held(args, kwargs)
    if waits is None:
        return await _awaiting(begin, args, kwargs, held, watching)
    begun = False
    try:
        async with waits:
            begun = True
            return await _awaiting(begin, args, kwargs, held, watching)
    finally:
        if not begun and isinstance(held.coroutine, types.CoroutineType):
            held.coroutine.close()  # it was cancelled in the queue, which is no mistake of the application's


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


_KINDS = (
    inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR | inspect.CO_GENERATOR | inspect.CO_ITERABLE_COROUTINE
)
"""The flags that tell which kind of function one is."""


def _code_flags(function: Any) -> int:
    """Those of its own code, 0 where it has none that could be looked at."""
    while isinstance(function, functools.partial | types.MethodType):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
    return flags if isinstance(flags, int) else 0


# What a watched function was made of, and what is told of one.


def unwatched_of(watched: Any) -> Any:
    """What a watched function, method or object was made of."""
    if type(watched) is MethodType:
        function: Any = watched.__func__
        return MethodType(function.__wrapped__, watched.__self__)
    return watched.__wrapped__


def name_of(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def code_of(function: Any) -> CodeType | None:
    """The code of a function of the application, through partials, methods and decorators."""
    for _ in range(20):
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, MethodType):
            function = function.__func__
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        else:
            break
    code = getattr(function, "__code__", None)
    return code if isinstance(code, CodeType) else None


def signature_of(function: Any) -> Signature | None:
    """None for what does not tell it: functions written in C, classes of odd metaclasses."""
    try:
        return inspect.signature(function)
    except Exception:
        return None
