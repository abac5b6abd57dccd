"""Which call a tool request belongs to, when it does not say.

Pure state. Foreign clients send no call id to the tool; their request is matched to a call that was
handed out and not taken yet, by tool name and arguments. Exact matches first, then a call whose
arguments are all in the request (tools fill in defaults). Bounded: the oldest calls are forgotten.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from profiler.emulator.ids import Place


class Handed(NamedTuple):
    """A call that was handed out: its place and its full id."""

    place: Place
    call_id: str


def canonical(arguments: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """Arguments as they compare: a query string knows only texts, so values become their texts."""
    return frozenset((name, _text(value)) for name, value in arguments.items())


def _text(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


class _Call:
    """A call handed out. Its arguments are read when a tool request comes: for most clients, never."""

    __slots__ = ("_asked", "_text", "handed")

    def __init__(self, text: str, handed: Handed) -> None:
        self._text = text
        self._asked: frozenset[tuple[str, str]] | None = None
        self.handed = handed

    def asked(self) -> frozenset[tuple[str, str]]:
        if self._asked is None:
            try:
                self._asked = canonical(orjson.loads(self._text))
            except (orjson.JSONDecodeError, AttributeError):  # spoilt by a fault: no request matches
                self._asked = frozenset({("", self._text)})
        return self._asked


class Outstanding:
    """Calls handed out to clients that do not name them, oldest first."""

    def __init__(self, size: int = 10_000) -> None:
        self._size = size
        self._serial = 0
        self._tools: dict[str, OrderedDict[int, _Call]] = {}
        self._order: OrderedDict[int, str] = OrderedDict()

    def add(self, name: str, arguments: str, handed: Handed) -> None:
        """Remember a call that was handed out; `arguments` is its JSON text."""
        self._serial += 1
        self._tools.setdefault(name, OrderedDict())[self._serial] = _Call(arguments, handed)
        self._order[self._serial] = name
        if len(self._order) > self._size:
            serial, oldest = self._order.popitem(last=False)
            self._drop(oldest, serial)

    def take(self, name: str, arguments: Mapping[str, Any]) -> Handed | None:
        """The oldest call that this request may be, which is then taken."""
        calls = self._tools.get(name)
        if not calls:
            return None
        wanted = canonical(arguments)
        found = None
        for serial, call in calls.items():
            asked = call.asked()
            if asked == wanted:
                found = serial
                break
            if found is None and asked <= wanted:
                found = serial
        if found is None:
            return None
        handed = calls[found].handed
        del self._order[found]
        self._drop(name, found)
        return handed

    def _drop(self, name: str, serial: int) -> None:
        calls = self._tools[name]
        del calls[serial]
        if not calls:
            del self._tools[name]
