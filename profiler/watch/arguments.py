"""Compares the arguments of a running tool with those of the calls that a model has asked for.

Nothing here raises, whatever the application's arguments are and whatever their code does. Pure.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

CONTRADICTED, POSSIBLE, FITTING = range(3)
"""How the arguments of a running tool compare with those of a request. `CONTRADICTED`: a plain value
differs. `POSSIBLE`: they cannot be compared, such as a request's parameter that is not among them."""

Fit = tuple[int, int]
"""(one of the three above, how many arguments are equal); of several fits the largest counts."""


def requested(arguments: str | Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The arguments of a request; None when they cannot be read. `null` and `[]` stand for none at all."""
    parsed: Any = arguments
    if isinstance(arguments, str):
        try:
            parsed = orjson.loads(arguments or "{}")
        except orjson.JSONDecodeError:
            try:
                parsed = json.loads(arguments)  # NaN, which models write and Python reads
            except (ValueError, RecursionError):
                return None
    if not parsed and parsed is not False:
        return {}
    return parsed if isinstance(parsed, Mapping) else None


def fit_of(arguments: str | Mapping[str, Any], given: Mapping[str, Any] | None) -> Fit:
    """How a call with these requested arguments fits a tool that runs with those `given`."""
    asked = None if given is None else requested(arguments)
    if asked is None or given is None:
        return POSSIBLE, 0
    level, equal = FITTING, 0
    for name, value in asked.items():
        same = _same(value, given[name]) if name in given else None
        if same:
            equal += 1
        else:
            level = min(level, POSSIBLE if same is None else CONTRADICTED)
    return level, equal


_SCALARS = (str, int, float, bool, type(None))
_LARGEST = 1000
"""Numbers in an array, up to which they are compared."""


def _same(value: Any, given: Any) -> bool | None:
    """Whether two values are equal as JSON; None when that cannot be told.

    `value` has come from JSON. `given` may be anything: frameworks turn values into models, enums or
    numbers, and applications pass arrays, frames and handles, whose `==` may give anything, or fail.
    """
    kind = type(given)
    try:
        if kind in _SCALARS:
            if not isinstance(value, _SCALARS):
                return None
            if value == given and isinstance(value, bool) is not isinstance(given, bool):
                return None  # 1 and true: another call may be meant, or a framework has turned it into that
            return bool(value == given) or str(value) == str(given)  # the latter for NaN, and for 5 and "5"
        if isinstance(value, dict) and kind is dict:
            return _all(_same(part, given[name]) if name in given else False for name, part in value.items())
        if isinstance(value, list) and kind in (list, tuple):
            if len(value) != len(given):
                return False
            return _all(_same(part, other) for part, other in zip(value, given, strict=True))
        if hasattr(kind, "__len__") and not isinstance(given, str):
            if not isinstance(value, list | dict) or len(given) != len(value):
                return None
            if math.prod(getattr(given, "shape", ())) > _LARGEST:
                return None
        plain = orjson.loads(orjson.dumps(given, default=_plain))
        if type(plain) in (dict, list, *_SCALARS) and _same(value, plain):
            return True
        return True if isinstance(value, str | int | float) and str(given) == str(value) else None
    except Exception:  # whatever the code of an application's classes may raise
        return None


def _all(parts: Iterable[bool | None]) -> bool | None:
    """False when one is, None when one cannot be told, else True."""
    told: bool | None = True
    for part in parts:
        if part is False:
            return False
        if part is None:
            told = None
    return told


def _plain(value: Any) -> Any:
    """A value as JSON's kinds: of a model, an array, or (as text) a number or date of some library's own."""
    for name in ("model_dump", "tolist"):
        convert = getattr(value, name, None)
        if convert is not None:
            return convert(mode="json") if name == "model_dump" else convert()
    raise TypeError


def bound_arguments(
    signature: inspect.Signature | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """Arguments by name, those in **kwargs under their own names.

    `kwargs` alone when they do not bind, None when nothing tells the names of positional ones.
    """
    if not args:  # nearly every call; binding would cost more than everything else here
        return kwargs
    if signature is None:
        return None
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:
        return kwargs
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        else:
            named[name] = value
    return named
