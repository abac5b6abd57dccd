"""The place on the tape of a request whose ids do not say it.

Pure state, and bounded: the oldest calls are forgotten. Foreign clients send no call id to the tool; their
request is matched to a call that was handed out and not taken yet, by tool name and arguments. Exact matches
first, then a call whose arguments are all in the request (tools fill in defaults). Ids that are too short to
hold a place, or that a fault took away, are remembered with it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import orjson

from profiler.emulator.draws import Place, decode


class Handed(NamedTuple):
    """A call that was handed out: its place and its full id."""

    place: Place
    call_id: str


def canonical(arguments: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """Arguments in a form that compares: a query string has only texts, so all values become texts."""
    return frozenset((name, _text(value)) for name, value in arguments.items())


def _text(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


@dataclass(eq=False)
class _Call:
    text: str
    handed: Handed

    @cached_property
    def asked(self) -> frozenset[tuple[str, str]]:
        """The arguments, read only when a tool request comes: for most clients, never."""
        try:
            return canonical(orjson.loads(self.text))
        except (orjson.JSONDecodeError, AttributeError):  # spoilt by a fault: no request matches
            return frozenset({("", self.text)})


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

    def take(self, name: str, arguments: Mapping[str, Any], call_id: str | None = None) -> Handed | None:
        """The oldest call that this request may be, which is then taken; only one of this id, if given."""
        calls = self._tools.get(name)
        if not calls:
            return None
        wanted = canonical(arguments)
        found = None
        for serial, call in calls.items():
            if call_id is not None and call.handed.call_id != call_id:
                continue
            if call.asked == wanted:
                found = serial
                break
            if found is None and call.asked <= wanted:
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


class Places:
    """The place that an id names: written in it, or remembered for it."""

    def __init__(self, size: int = 100_000) -> None:
        self._size = size
        self._known: OrderedDict[str, Place] = OrderedDict()

    def remember(self, ident: str, place: Place) -> None:
        """Know `ident` as that of the call at `place`."""
        self._known[ident] = place
        if len(self._known) > self._size:
            self._known.popitem(last=False)

    def find(self, ident: str) -> Place | None:
        """None for ids that are not ours."""
        return decode(ident) or self._known.get(ident)
