"""One function that runs all tools: which tool a call of it runs, and with which arguments.

    async def call_tool(name: str, arguments: dict) -> str: ...

The parameter that says so may hold the tool's name, an `Enum` of it, the tool itself (a function, or an
object with a `name`), or the model's call as the SDKs give it (with `name` or `function.name`, or a mapping).
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Mapping
from inspect import Parameter, Signature
from typing import Any

from profiler.errors import UsageError
from profiler.watch.arguments import requested

Given = tuple[Mapping[str, Any] | None, ...]
"""What a tool's arguments may be, the likeliest first; None: not known."""


class Dispatch:
    """Tells which tool a call of the function `of` runs, by its parameter `parameter`.

    Raises `UsageError` when the function has no such parameter.
    """

    def __init__(self, of: str, signature: Signature | None, parameter: str) -> None:
        self.of = of
        self.parameter = parameter
        self._signature = signature
        parameters = signature.parameters if signature is not None else {}
        named = parameters.get(parameter)
        self._named = named is not None and named.kind is not Parameter.VAR_KEYWORD
        self._default = named.default if named is not None else Parameter.empty
        takes_any = any(one.kind is Parameter.VAR_KEYWORD for one in parameters.values())
        if signature is not None and not self._named and not takes_any:
            names = ", ".join(parameters) or "none"
            raise UsageError(
                f"{of} has no parameter {parameter!r} (it has: {names}): name= is the one that says "
                "which tool runs"
            )

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, Given]:
        """The tool's name (the function's own where it cannot be told), and what its arguments may be."""
        named, others = self._bound(args, kwargs)
        value = others.pop(self.parameter, None) if named is None and not self._named else named
        if value is None and self._default is not Parameter.empty:
            value = self._default
        name, own = _told(value)
        given = [own] if own is not None else []
        for one in others.values():
            mapping = _mapping(one)
            if mapping is not None:
                given.append(mapping)
        return name or self.of, (*given, others)

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """What the parameter holds, and the other arguments by name, those in **kwargs under their own."""
        bound = None
        if self._signature is not None:
            with contextlib.suppress(TypeError):  # the function will say it itself
                bound = self._signature.bind(*args, **kwargs).arguments
        if bound is None or self._signature is None:
            others = dict(kwargs)
            return others.pop(self.parameter, None), others
        held = bound.pop(self.parameter, None) if self._named else None
        others = {}
        for name, value in bound.items():
            kind = self._signature.parameters[name].kind
            if kind is Parameter.VAR_KEYWORD:
                others.update(value)
            elif kind is not Parameter.VAR_POSITIONAL:
                others[name] = value
        return held, others


def _told(value: Any) -> tuple[str | None, Mapping[str, Any] | None]:
    """The name of the tool that `value` stands for, and its arguments if it is the model's call."""
    if isinstance(value, str):
        return str.__str__(value), None
    if isinstance(value, enum.Enum):
        held = value._value_
        return (str.__str__(held), None) if isinstance(held, str) else (None, None)
    if value is None or isinstance(value, int | float):
        return None, None
    inner = _part(value, "function")
    for call in (inner, value) if inner is not None else (value,):
        name = _part(call, "name")
        if isinstance(name, str):
            for key in ("arguments", "input", "args"):
                arguments = _mapping(_part(call, key))
                if arguments is not None:
                    return name, arguments
            return name, None
    name = getattr(value, "__name__", None)
    return (name, None) if isinstance(name, str) else (None, None)


def _part(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _mapping(value: Any) -> Mapping[str, Any] | None:
    """Arguments, parsed or as JSON text; None for anything else."""
    if isinstance(value, Mapping):
        return value
    if type(value) is str and value.lstrip()[:1] == "{":
        return requested(value)
    return None
