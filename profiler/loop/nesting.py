"""Which loop, and which tool call of it, a loop begins in: an agent as a tool of another one.

Contextvars tell, whatever made the two loops: `ToolLoop`s, loops that are watched, or one of each. A call is
told by the object that it is, never by its id, which servers repeat or leave empty. A loop is part of another
one only where both of their records go to a common sink: to a reader of the one alone, the other is nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar, Token
from typing import Any, NamedTuple


class Running:
    """A loop under way: its id, the sinks that will get its record, and whether it has still to end."""

    __slots__ = ("id", "open", "sinks")

    def __init__(self, id: str, sinks: Sequence[Any]) -> None:
        self.id = id
        self.sinks = sinks
        self.open = True

    def shares(self, sinks: Sequence[Any]) -> bool:
        return self.sinks is sinks or any(one in sinks for one in self.sinks)


class Place(NamedTuple):
    """Where code runs: in this loop, in the tool call that keeps `loops` if any, and inside what is `outer`.

    `loops` are the ids of the loops that have begun in the call.
    """

    loop: Running
    loops: list[str] | None
    outer: Place | None


_place: ContextVar[Place | None] = ContextVar("toolloop_place", default=None)

Left = Token[Place | None]


def enter(loop: Running, loops: list[str] | None = None) -> Left:
    """Code of the loop runs from here on in this context; with `loops`, that of a tool call."""
    return _place.set(Place(loop, loops, _place.get()))


def leave(token: Left) -> None:
    """Raises ValueError in another context than that of `enter`, and changes nothing there."""
    _place.reset(token)


def around(sinks: Sequence[Any]) -> Place | None:
    """The innermost place of this context in a loop that has not ended and shares a sink."""
    place = _place.get()
    while place is not None and not (place.loop.open and place.loop.shares(sinks)):
        place = place.outer
    return place
