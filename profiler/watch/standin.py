"""Objects that the application gets in place of others, and that are those in all but what is watched."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

_FORWARDED = (
    *("repr", "str", "format", "hash", "call", "dir", "reduce", "reduce_ex", "or", "ror"),
    *("eq", "ne", "lt", "le", "gt", "ge"),
)


class StandIn:
    """Has the class, the attributes and the special methods of the object that it stands for.

    Both have one state, since there is one: an attribute that is set is set on that object. What a stand-in
    does of its own its class names in `_toolloop_own`; Python looks special methods up on the class, which is
    therefore made for that of the object (`stand_in_class`).
    """

    __slots__ = ("__weakref__", "_toolloop_value")

    _toolloop_own: frozenset[str] = frozenset()

    def __init__(self, value: Any) -> None:
        object.__setattr__(self, "_toolloop_value", value)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_toolloop_") or name in type(self)._toolloop_own:
            return object.__getattribute__(self, name)
        return getattr(object.__getattribute__(self, "_toolloop_value"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._toolloop_value, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._toolloop_value, name)


_OWN = frozenset(
    {*dir(type), *dir(StandIn), "__del__", "__weakref__", "__class_getitem__", "__set_name__"}
    - {f"__{name}__" for name in _FORWARDED}
)
"""Special methods that a stand-in has of itself, or should not have."""


def stand_in_class(base: type[StandIn], kind: type, methods: dict[str, Any]) -> Any:
    """The class derived from `base` for objects of the class `kind`, with these methods of its own.

    The other special methods of `kind` call those of the object. One that returns the object itself, as
    `__enter__` and `__iter__` do, returns the stand-in; what is compared with another stand-in is compared
    with the object of that one.
    """
    kept = _OWN | vars(base).keys() | methods.keys()
    special = [n for n in dir(kind) if n.startswith("__") and n.endswith("__") and n not in kept]
    forwarded = {name: _forwarded(name) for name in special if callable(getattr(kind, name, None))}
    body = {
        **forwarded,
        **methods,
        "__slots__": (),
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": inspect.getdoc(kind) or "",  # never that of a base, which tells the user's model nothing
        "_toolloop_own": base._toolloop_own | methods.keys(),
    }
    return type(kind.__name__, (base,), body)


def _method(value: Any, name: str) -> Any:
    """A special method of the object. An attribute of a class by that name is a method of its objects."""
    kind = type(value)
    return types.MethodType(getattr(kind, name), value) if issubclass(kind, type) else getattr(value, name)


@functools.cache
def _forwarded(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        value = self._toolloop_value
        result = _method(value, name)(*args, **kwargs)
        return self if result is value else result

    def compared(self: Any, other: Any) -> Any:
        return method(self, other._toolloop_value if issubclass(type(other), StandIn) else other)

    return compared if name in ("__eq__", "__ne__") else method
