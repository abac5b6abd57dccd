"""Compares the arguments of a running tool with those of the calls that a model has asked for.

Frameworks change arguments on their way: texts into numbers, dates or enums, all of them into one model,
names into names of their own. What is recognised in its new form fits, though less than what is equal.
Nothing here raises, whatever the application's arguments are, and none of the code of its own classes is run:
that could take long, or have effects. Of objects of these only what they hold is looked at. Pure.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import inspect
import json
import math
import pathlib
import types
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

CONTRADICTED, POSSIBLE, FITTING, EQUAL = range(4)
"""How the arguments of a running tool, or one of them, compare with those of a request. `CONTRADICTED`: a
plain value differs. `POSSIBLE`: they cannot be compared, such as a request's parameter that is not among
them. `FITTING`: they are the requested ones, changed by a framework or beside others. `EQUAL`: they are the
requested ones, and no others."""

Fit = tuple[int, int, int, int]
"""(one of the four above, how many arguments fit, how many of these are equal, how many there are by name);
of several fits the largest counts."""


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
    if type(parsed) is dict:
        return parsed
    if not parsed and parsed is not False:
        return {}
    return parsed if isinstance(parsed, Mapping) else None


def same_request(one: str | Mapping[str, Any], other: str | Mapping[str, Any]) -> bool:
    """Whether two requests have equal arguments."""
    if one == other:
        return True
    arguments, others = requested(one), requested(other)
    return arguments is not None and others is not None and _by_name(arguments, others) == EQUAL


def fit_of(arguments: str | Mapping[str, Any], given: Mapping[str, Any] | None) -> Fit:
    """How a call with these requested arguments fits a tool that runs with those `given`."""
    if given is None:
        return POSSIBLE, 0, 0, 0
    asked = requested(arguments)
    if asked is None:
        return POSSIBLE, 0, 0, 0
    if not asked:
        return FITTING if given else EQUAL, 0, 0, 0
    fit = _fit(asked, given)
    if fit[0] == EQUAL:
        return fit
    return _fit_as_one(asked, given, fit) if fit[0] == POSSIBLE and fit[3] <= 1 else fit


def _fit(asked: Mapping[str, Any], given: Mapping[str, Any]) -> Fit:
    """How arguments fit by their names."""
    level = EQUAL if len(asked) == len(given) else FITTING
    alike = equal = found = 0
    names: Mapping[str, str] | None = None
    values: set[tuple[type, Any]] | None = None
    for name, value in asked.items():
        if name in given:
            found += 1
            other = given[name]
            if type(value) is str is type(other) and value == other:  # most are
                alike += 1
                equal += 1
                continue
            same = _same(value, other)
        else:
            if names is None:
                names = _own_names(asked, given)
            own = names.get(_folded(name)) if names else None
            if own is not None:
                found += 1
                same = min(_same(value, given[own]), FITTING)
            else:
                same = POSSIBLE
                if values is None:
                    values = {
                        (type(v), v) for n, v in given.items() if n not in asked and type(v) in _TELLING
                    }
                alike += type(value) in _TELLING and (type(value), value) in values  # renamed, perhaps
        if same == EQUAL:
            alike += 1
            equal += 1
            continue
        alike += same == FITTING
        if same < level:
            level = same
    return level, alike, equal, found


def _fit_as_one(asked: Mapping[str, Any], given: Mapping[str, Any], fit: Fit) -> Fit:
    """How they fit where one of the `given` may be all arguments as one: a model, an object or JSON text.

    `fit` is how they fit by their names.
    """
    fits = []
    for value in given.values():
        try:
            whole = orjson.loads(value) if type(value) is str and value.startswith("{") else value
            fields = whole if type(whole) is dict else _fields(whole, asked)
            if fields:
                level, alike, equal, found = _fit(asked, fields)
                if found:
                    fits.append((min(level, FITTING), alike, equal, found))
        except Exception:  # whatever the code of an application's classes may raise
            pass
    if not fits:
        return fit
    return max(fits) if len(given) == 1 else max(fit, *fits)


_PLAIN = frozenset((str, int, float, bool, type(None)))
_TELLING = frozenset((str, int, float))
"""Types of values of which two that are equal are hardly so by chance."""

_LARGEST = 1000
"""Numbers in an array, up to which they are compared."""

_MOST_PAIRS = 100
"""Pairs of members of two sets, up to which objects among them are compared."""


def _same(value: Any, given: Any) -> int:
    """How a value compares with a requested one, as one of the four above.

    `value` has come from JSON. `given` may be anything: frameworks turn values into models, enums or
    numbers, and applications pass arrays, frames and handles, whose `==` may give anything, or fail.
    """
    kind = type(given)
    try:
        if kind in _PLAIN:
            if type(value) is kind and value == given:
                return EQUAL
            return _same_plain(value, given) if type(value) in _PLAIN else POSSIBLE
        if kind is dict and type(value) is dict:
            return _by_name(value, given)
        if (kind is list or kind is tuple) and type(value) is list:
            if len(value) != len(given):
                return CONTRADICTED
            level = EQUAL
            for part, other in zip(value, given, strict=True):
                same = _same(part, other)
                if same < level:
                    level = same
                    if level == CONTRADICTED:
                        break
            return level
        return FITTING if _made_of(value, given) else POSSIBLE
    except Exception:  # whatever the code of an application's classes may raise
        return POSSIBLE


def _same_plain(value: Any, given: Any) -> int:
    """The same of two that are text, a number, a truth value or None, and not both equal and of one type."""
    if value == given:
        # 1 and true: another call may be meant, or a framework has turned it into that.
        return POSSIBLE if isinstance(value, bool) or isinstance(given, bool) else EQUAL
    if value != value and given != given:  # NaN
        return EQUAL
    if isinstance(value, str) and isinstance(given, str):
        return FITTING if value.strip() == given.strip() else CONTRADICTED
    if isinstance(value, str):
        return _same_text(value, given)
    if isinstance(given, str):
        return _same_text(given, value)
    return CONTRADICTED


_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_WORDS_FOR_NONE = ("none", "null")


def _same_text(text: str, other: float | None) -> int:
    """The same of a text and what is none, such as "5" and 5."""
    text = text.strip().lower()
    if other is None:
        return FITTING if text in _WORDS_FOR_NONE else CONTRADICTED
    if isinstance(other, bool):
        if text == str(int(other)):
            return POSSIBLE  # as 1 and true
        return FITTING if _WORDS.get(text) is other else CONTRADICTED
    try:
        return FITTING if text == str(other) or float(text) == other else CONTRADICTED
    except ValueError:
        return CONTRADICTED


def _by_name(asked: Mapping[str, Any], given: Mapping[str, Any]) -> int:
    """How the values under the names of an object compare; others beside them are a framework's."""
    level = EQUAL if len(asked) == len(given) else FITTING
    names: Mapping[str, str] | None = None
    for name, value in asked.items():
        if name in given:
            same = _same(value, given[name])
        else:
            names = _own_names(asked, given) if names is None else names
            own = names.get(_folded(name))
            same = CONTRADICTED if own is None else min(FITTING, _same(value, given[own]))
        if same < level:
            level = same
            if level == CONTRADICTED:
                break
    return level


def _folded(name: str) -> str:
    """`fromCity`, `from-city` and `from_city` are one name, and so are `from` and `from_`."""
    return name.replace("_", "").replace("-", "").lower()


def _own_names(asked: Mapping[str, Any], given: Mapping[str, Any]) -> Mapping[str, str]:
    """Names among the `given` that were not asked for, each under what it is folded to, where that is one."""
    found: dict[str, str] = {}
    twice = set()
    for name in given:
        if type(name) is str and name not in asked:
            folded = _folded(name)
            if folded in found:
                twice.add(folded)
            found[folded] = name
    for folded in twice:
        del found[folded]
    return found


_VALUES = {
    *("builtins", "uuid", "ipaddress", "fractions", "collections", "array", "zoneinfo", "typing", "abc"),
    *("numpy", "pydantic", "pydantic_core"),
}
"""Packages whose classes are of plain values: their code computes these, and nothing else."""


def _is_plain_class(kind: type) -> bool:
    """Whether all of a class's code is from packages of plain values."""
    return all(base.__module__.partition(".")[0] in _VALUES for base in kind.__mro__)


def _made_of(value: Any, given: Any) -> bool:
    """Whether an object, which is none of JSON's kinds, is recognised as the requested value.

    Nothing here asks an object for its `__class__`, as `isinstance` does: a lazy one would be evaluated.
    """
    kind = type(given)
    if issubclass(kind, enum.Enum):
        return bool(value == given._name_) or _same(value, given._value_) >= FITTING
    if issubclass(kind, datetime.date | datetime.time | datetime.timedelta):
        return _same_moment(value, given) or str(given) == value
    if issubclass(kind, decimal.Decimal):
        with decimal.localcontext():  # the flags of the application's context stay as they are
            return type(value) in _TELLING and decimal.Decimal(str(value)) == given
    if issubclass(kind, pathlib.PurePath):
        return type(value) is str and pathlib.PurePath(value) == given
    if issubclass(kind, bytes | bytearray):
        return type(value) is str and bytes.__eq__(value.encode(), given) is True
    if issubclass(kind, set | frozenset):
        return type(value) is list and _same_members(value, frozenset.union(frozenset(), given))
    # Of a class derived from one of JSON's kinds: by the methods of that kind.
    if issubclass(kind, str):
        return _same(value, str.__str__(given)) >= FITTING
    if issubclass(kind, int):
        return _same(value, int.__int__(given)) >= FITTING
    if issubclass(kind, float):
        return _same(value, float.__float__(given)) >= FITTING
    if issubclass(kind, dict):
        return _same(value, dict(dict.items(given))) >= FITTING
    if issubclass(kind, list):
        return _same(value, list.copy(given)) >= FITTING
    fields = _fields(given, value) if type(value) is dict else None
    if fields is not None and _by_name(value, fields) >= FITTING:
        return True
    if not _is_plain_class(kind):
        return False
    if hasattr(kind, "__len__"):
        if type(value) not in (list, dict) or len(given) != len(value):
            return False
        if math.prod(getattr(given, "shape", ())) > _LARGEST:
            return False
    try:
        plain = orjson.loads(orjson.dumps(given, default=_plain))
        if type(plain) in (dict, list, *_PLAIN) and _same(value, plain) >= FITTING:
            return True
    except TypeError:
        pass
    return type(value) in _TELLING and str(given) == str(value)


def _same_moment(value: Any, given: Any) -> bool:
    """Whether a date, a time or a duration is that of ISO 8601, or that many seconds."""
    kind = type(given)
    if type(value) in (int, float):
        if issubclass(kind, datetime.timedelta):
            return bool(given.total_seconds() == value)
        # pydantic takes large ones for milliseconds
        return issubclass(kind, datetime.datetime) and given.timestamp() in (value, value / 1000)
    if type(value) is not str or issubclass(kind, datetime.timedelta):
        return False
    try:
        if issubclass(kind, datetime.time):
            return bool(datetime.time.fromisoformat(value) == given)
        moment = datetime.datetime.fromisoformat(value.strip())
    except ValueError:
        return False
    if not issubclass(kind, datetime.datetime):
        return bool(moment.date() == given)
    if given.tzinfo is None and moment.tzinfo is not None:  # its zone was dropped
        in_utc = moment.astimezone(datetime.UTC).replace(tzinfo=None)
        return given in (moment.replace(tzinfo=None), in_utc)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=given.tzinfo)
    return bool(moment == given)


def _same_members(value: list[Any], given: set[Any] | frozenset[Any]) -> bool:
    plain = all(type(one) in _PLAIN for one in (*value, *given))
    if plain and {(type(one), one) for one in value} == {(type(one), one) for one in given}:
        return True
    if len(value) * len(given) > _MOST_PAIRS:
        return False
    left = list(given)
    for part in value:
        left = [other for other in left if _same(part, other) < FITTING]
    return not left and all(any(_same(part, other) >= FITTING for other in given) for part in value)


def _fields(given: Any, asked: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a dataclass, a pydantic model or a named tuple holds, by name; else None. Runs none of its code.

    Of a model, what its maker set, without defaults, and by its alias where that is the one asked for.
    """
    kind = type(given)
    if issubclass(kind, tuple):
        names = getattr(kind, "_fields", None)
        return None if names is None else dict(zip(names, given, strict=True))
    names = getattr(kind, "__dataclass_fields__", None)
    if names is not None:
        return {name: value for name in names for value in _held(given, name)}
    known = getattr(kind, "__pydantic_fields__", None)
    if not isinstance(known, dict):
        return None
    own = object.__getattribute__
    held = {**own(given, "__dict__"), **(own(given, "__pydantic_extra__") or {})}
    fields = {}
    for name in own(given, "__pydantic_fields_set__"):
        alias = getattr(known.get(name), "validation_alias", None)
        if name in held:
            fields[alias if type(alias) is str and alias in asked else name] = held[name]
    return fields


def _held(given: Any, name: str) -> Iterator[Any]:
    """The value of an attribute, as it is kept in the object: one, or none."""
    slot = getattr(type(given), name, None)
    if type(slot) is types.MemberDescriptorType:
        yield slot.__get__(given)
        return
    held = object.__getattribute__(given, "__dict__")
    if name in held:
        yield held[name]


def _plain(value: Any) -> Any:
    """An array as lists."""
    convert = getattr(type(value), "tolist", None) if _is_plain_class(type(value)) else None
    if convert is None:
        raise TypeError
    return convert(value)


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
