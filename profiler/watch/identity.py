"""What is known of the application's objects, whatever their classes say of `==` and `hash`."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

V = TypeVar("V")


class ById(Generic[V]):
    """A value for each object while that lives. None for objects that are not known."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Any], V]] = {}

    def put(self, thing: Any, value: V) -> None:
        """Raises `TypeError` for what cannot be referred to weakly."""
        number, known = id(thing), self._known

        def gone(which: weakref.ref[Any]) -> None:
            if (kept := known.get(number)) is not None and kept[0] is which:  # ids are used again
                del known[number]

        known[number] = weakref.ref(thing, gone), value

    def get(self, thing: Any) -> V | None:
        kept = self._known.get(id(thing))
        return None if kept is None or kept[0]() is not thing else kept[1]

    def drop(self, thing: Any) -> None:
        self._known.pop(id(thing), None)

    def __bool__(self) -> bool:
        """Whether any may still be there."""
        return bool(self._known)

    def __iter__(self) -> Iterator[Any]:
        """The objects that are still there."""
        for which, _ in [*self._known.values()]:
            if (thing := which()) is not None:
                yield thing
