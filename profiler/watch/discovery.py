"""Finds the functions that names of tools stand for, and has calls of them pass through other code.

A model asks for a tool by its name. In an application that name is a key of a registry, the name of a
function, or an attribute of a tool object of some framework. The functions found by it are exchanged in
place: the code object of each is replaced by one that calls what watches it, so whoever holds the function
already (a registry, a closure, a bound method, a framework) runs that too. `restore` puts the code back.

Only functions of the application itself (`places.is_application`) are exchanged.
"""

from __future__ import annotations

import functools
import gc
import inspect
import sys
import threading
import types
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from profiler.watch.identity import ById
from profiler.watch.places import MOST_FRAMES, PASSES, is_application, place

_RUN_BY_TOOL_OBJECTS = (
    *("func", "coroutine", "function", "fn", "handler", "callback", "on_invoke_tool"),
    *("__call__", "call", "run", "_run", "arun", "_arun", "execute", "invoke"),
)
"""Attributes under which objects with a tool's name keep what the tool runs, in frameworks and by hand."""

_KINDS = (
    inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR | inspect.CO_GENERATOR | inspect.CO_ITERABLE_COROUTINE
)

_COPY = "__toolloop_copy__"
_OURS = frozenset(("__toolloop_profiler__", _COPY))
"""Attributes of functions that were made here."""

_NEAR = 3
_DEEPEST = 8
"""Containers and objects within each other that are looked into, from a module on."""

Runs = Callable[..., Any]
"""What runs in place of a function, with its arguments."""

Choose = Callable[[tuple[Any, ...], dict[str, Any]], Runs | None]
"""Says what runs in place of a function for these arguments; None: what was there before."""


def functions_of(names: Collection[str]) -> dict[str, list[types.FunctionType]]:
    """The application's functions that each of these tools may run; a name without any is left out.

    It looks at every object that the garbage collector knows, which takes 0.1 to 0.2 s in a large process; of
    what it was told to leave alone (`gc.freeze`), at what the application's modules hold.
    """
    return _found(_things(), names)


def functions_near(names: Collection[str]) -> dict[str, list[types.FunctionType]]:
    """The same, of those that the code of the application that called this has at hand: it takes no time."""
    at_hand: list[Any] = []
    frame: types.FrameType | None = sys._getframe(1)
    for _ in range(MOST_FRAMES):
        if frame is None:
            break
        if is_application(frame.f_code.co_filename):
            at_hand += [dict(frame.f_locals), frame.f_globals]
        frame = frame.f_back
    return _found(_inside(at_hand, _NEAR), names)


def _found(things: Iterable[Any], names: Collection[str]) -> dict[str, list[types.FunctionType]]:
    wanted = frozenset(names)
    found: dict[str, dict[int, types.FunctionType]] = {}
    for thing in things:
        for name, value in _named(thing, wanted):
            function = _function(value)
            if function is not None:
                found.setdefault(name, {})[id(function)] = function
    return {name: list(functions.values()) for name, functions in found.items()}


def _things() -> Iterator[Any]:
    yield from gc.get_objects()
    if not gc.get_freeze_count():
        return
    yield from _inside([vars(module) for module in [*sys.modules.values()] if _is_own(module)], _DEEPEST)


def _inside(waiting: list[Any], deep: int) -> Iterator[Any]:
    """These things, and those that they hold; left out are those that can hold no tool."""
    # Once for each class: data comes by the hundred thousand. By its id, since a class may have no hash.
    held_by = {id(kind): (kind, held) for kind, held in _HELD.items()}
    seen: set[int] = set()
    kept: list[Any] = []  # an id is that of another object once its own is gone
    for _ in range(deep):
        inside: list[Any] = []
        for thing in waiting:
            kind = type(thing)
            if id(kind) not in held_by:
                held_by[id(kind)] = kind, _held_by(kind)
            held = held_by[id(kind)][1]
            if held is not None and id(thing) not in seen:
                seen.add(id(thing))
                kept.append(thing)
                yield thing
                inside += held(thing)
        waiting = inside


def _held_by(kind: type) -> Callable[[Any], Iterable[Any]] | None:
    """Gives what a thing of this class holds, where `_HELD` has not the class; None: nothing of interest."""
    if issubclass(kind, type):
        return lambda made: (dict(vars(made)),)
    if _is_of_application(kind) or _may_hold_tools(kind):
        return lambda thing: () if (own := _attributes(thing)) is None else (own,)
    return None


def _may_hold_tools(kind: type) -> bool:
    """Whether an object of some framework is a tool, or an agent or graph that holds tools, by its class."""
    name = kind.__name__.lower()
    return any(word in name for word in ("tool", "agent", "graph", "runner"))


def _cells(function: types.FunctionType) -> list[Any]:
    """What a function, such as one that a decorator made, keeps in its closure."""
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # nothing yet
            continue
    return found


_HELD: dict[type, Callable[[Any], Iterable[Any]] | None] = {
    dict: lambda thing: [*thing.values()],
    list: lambda thing: thing,
    tuple: lambda thing: thing,
    types.FunctionType: _cells,
    functools.partial: lambda thing: (thing.func,),
    types.MethodType: lambda thing: (thing.__func__, thing.__self__),
}


def _is_own(module: Any) -> bool:
    filename = getattr(module, "__file__", None)
    return getattr(module, "__name__", "") == "__main__" or (
        isinstance(filename, str) and is_application(filename)
    )


def _is_of_application(kind: type) -> bool:
    """Whether the application's code made this class."""
    return _is_own(sys.modules.get(kind.__module__))


def place_of(function: types.FunctionType) -> str:
    """`agent.py:12`, where the function begins."""
    code = function.__code__
    return place(code.co_filename, code.co_firstlineno)


def _named(thing: Any, wanted: frozenset[str]) -> Iterator[tuple[str, Any]]:
    """(a name, what it may stand for): the pairs that one object gives. It runs no code of the object's."""
    kind = type(thing)
    if kind is types.FunctionType:
        if thing.__name__ in wanted:
            yield thing.__name__, thing
        return
    if kind is not dict:
        # Most objects have no dict until they are asked for one, and asking all would take long.
        if "tool" not in kind.__name__.lower():
            return
        thing = _attributes(thing)
        if thing is None:
            return
    try:
        for name in wanted & thing.keys():
            yield name, thing[name]
        named = thing.get("name")
        if type(named) is str and named in wanted:
            for attribute in _RUN_BY_TOOL_OBJECTS:
                if attribute in thing:
                    yield named, thing[attribute]
    except (RuntimeError, TypeError, KeyError):  # another thread changes it meanwhile; a key of its own kind
        return


def _attributes(thing: Any) -> Any:
    """The attributes of an object, None where it has none of its own."""
    try:
        found = object.__getattribute__(thing, "__dict__")
    except Exception:
        return None
    return found if type(found) is dict else None


def _function(value: Any) -> types.FunctionType | None:
    """The application's function behind a value, through methods, partials and the wrappers of libraries."""
    for _ in range(20):
        kind = type(value)
        if kind in (types.MethodType, staticmethod, classmethod):
            value = value.__func__
        elif kind is functools.partial:
            value = value.func
        elif kind is types.FunctionType:
            function: types.FunctionType = value
            own = is_application(value.__code__.co_filename)
            if own and _OURS.isdisjoint(value.__dict__):
                return function
            value = value.__dict__.get("__wrapped__")
        elif kind is functools._lru_cache_wrapper:
            value = value.__wrapped__
        else:
            return None
    return None


class Exchange:
    """A function whose code is exchanged. `original` is a copy of what it was, for who runs it now.

    The function is not kept alive: an application may make its tools anew for each of its requests.
    """

    def __init__(self, function: types.FunctionType) -> None:
        self.code = function.__code__
        self.original = _copy(function)
        self.runs: list[Choose] = []
        self._function = weakref.ref(function)
        self._was = function.__dict__.get("__signature__"), function.__defaults__, function.__kwdefaults__
        signature = _signature(function)
        if signature is not None:
            function.__signature__ = signature  # type: ignore[attr-defined]
        self._exchanged = code = _calling(self, self.code)
        # In this order other threads may call it meanwhile: the function's own defaults fit either code.
        function.__code__ = code
        function.__defaults__ = (_MISSING,) * code.co_argcount
        function.__kwdefaults__ = dict.fromkeys(_parameters(code)[2], _MISSING)

    def __call__(
        self,
        first: tuple[Any, ...],
        both: tuple[Any, ...],
        more: tuple[Any, ...],
        named: tuple[Any, ...],
        others: dict[str, Any],
    ) -> tuple[Runs, tuple[Any, ...], dict[str, Any]]:
        """What is to run in the function's place, with which arguments.

        Given are the values of its parameters: positional ones, those that may be named, those that have to
        be, with the arguments that fit none of them (`more`, `others`). Those left out are left out again.
        """
        _, names, only_named = _parameters(self.code)
        args = tuple(value for value in first if value is not _MISSING)
        kwargs: dict[str, Any] = {}
        if more:
            args += both + more
        else:
            kwargs = {name: value for name, value in zip(names, both, strict=True) if value is not _MISSING}
        for name, value in zip(only_named, named, strict=True):
            if value is not _MISSING:
                kwargs[name] = value
        kwargs.update(others)
        for choose in self.runs:
            chosen = choose(args, kwargs)
            if chosen is not None:
                return chosen, args, kwargs
        return self.original, args, kwargs

    def __reduce__(self) -> Any:
        """For who pickles functions by their code: it is sent as it would be unwatched."""
        return _unwatched, (self.original,)

    def holds(self, function: types.FunctionType) -> bool:
        """Whether this function's code is still what was put there."""
        return function.__code__ is self._exchanged

    def restore(self) -> None:
        function = self._function()
        if function is None or not self.holds(function):
            return  # gone, or changed since: notebooks put the code of an edited function into the old one
        signature, function.__defaults__, function.__kwdefaults__ = self._was
        function.__code__ = self.code
        if signature is None:
            function.__dict__.pop("__signature__", None)
        else:
            function.__signature__ = signature  # type: ignore[attr-defined]


def _unwatched(original: types.FunctionType) -> Exchange:
    made = Exchange.__new__(Exchange)
    made.code, made.original, made.runs = original.__code__, original, []
    return made


_lock = threading.Lock()
_exchanged: ById[Exchange] = ById()


def exchange(
    function: types.FunctionType, choose: Callable[[types.FunctionType], Choose]
) -> Callable[[], None]:
    """Have calls of a function pass by what `choose` makes, given a copy of the function as it was.

    That is asked with the arguments, as a tuple and a dict, of each call: it returns what runs in the
    function's place, or None for the function itself. Returns what undoes this.
    """
    with _lock:
        known = _exchanged.get(function)
        if known is None or not known.holds(function):
            known = Exchange(function)
        _exchanged.put(function, known)
    chosen = choose(known.original)
    known.runs.insert(0, chosen)
    of = weakref.ref(function)

    def undo() -> None:
        with _lock:
            if chosen in known.runs:
                known.runs.remove(chosen)
            function = of()
            if not known.runs and function is not None and _exchanged.get(function) is known:
                _exchanged.drop(function)
                known.restore()

    return undo


def _copy(function: types.FunctionType) -> types.FunctionType:
    """A function that does the same, and is not changed when the original's code is."""
    copy = types.FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__dict__.update(function.__dict__, **{_COPY: True})
    copy.__annotations__ = function.__annotations__
    copy.__qualname__, copy.__module__, copy.__doc__ = (
        function.__qualname__,
        function.__module__,
        function.__doc__,
    )
    return copy


def _signature(function: types.FunctionType) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


class _Missing:
    """The default of every parameter of an exchanged function: only what it ran before knows its own."""

    def __repr__(self) -> str:
        return "<as it was>"

    def __reduce__(self) -> str:
        return "_MISSING"  # in another process, too, it is the one


_MISSING = _Missing()
_PLACE = "the place of what says what runs instead"


@functools.lru_cache(maxsize=1024)
def _parameters(code: types.CodeType) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Names of its parameters: by position alone, by position or name, by name alone."""
    first, most, names = code.co_posonlyargcount, code.co_argcount, code.co_varnames
    return names[:first], names[first:most], names[most : most + code.co_kwonlyargcount]


def _calling(instead: Exchange, code: types.CodeType) -> types.CodeType:
    """Code that has `instead` say what runs, and passes for the code of the function.

    A code object takes any constant, so nothing of the function's globals or closure is needed. Its free
    variables have to be as many as the function's cells, though none is used; of the kind of function
    (async, a generator) `inspect` goes by the flags, and the interpreter by the instructions. It has the
    parameters of the function, since applications look for them in `__code__.co_varnames`.
    """
    first, both, named = _parameters(code)
    more, others, run = (f"__toolloop_{name}" for name in ("more", "others", "run"))
    parameters = [*first, *(["/"] if first else []), *both, f"*{more}", *named, f"**{others}"]
    source = (
        f"def template({', '.join(parameters)}):\n"
        f" {run} = {_PLACE!r}\n"
        f" {run}, {more}, {others} = "
        f"{run}({_tuple(first)}, {_tuple(both)}, {more}, {_tuple(named)}, {others})\n"
        f" return {run}(*{more}, **{others})"
    )
    made: dict[str, Any] = {}
    exec(source, made)
    template: types.CodeType = made["template"].__code__
    return template.replace(
        co_consts=(*(instead if one == _PLACE else one for one in template.co_consts), PASSES),
        co_freevars=code.co_freevars,
        co_name=code.co_name,
        co_qualname=code.co_qualname,
        co_filename=code.co_filename,
        co_firstlineno=code.co_firstlineno,
        co_flags=template.co_flags | (code.co_flags & _KINDS),
    )


def _tuple(names: Iterable[str]) -> str:
    return f"({''.join(f'{name}, ' for name in names)})"
