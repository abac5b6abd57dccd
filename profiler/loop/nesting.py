"""Which loop, and which tool call of it, a loop begins in: an agent as a tool of another one.

Contextvars tell, whatever made the two loops: `ToolLoop`s, loops that are watched, or one of each. A call is
told by the object that it is, never by its id, which servers repeat or leave empty. A loop is part of another
one only where both of their records go to a common sink: to a reader of the one alone, the other is nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextvars import ContextVar, Token
from types import BuiltinMethodType, MethodType
from typing import Any, NamedTuple


class Running:
    """A loop under way: its id, and the sinks that will get its record.

    `open`: it has still to end. `counts`: it will leave a record.
    """

    __slots__ = ("counts", "id", "open", "sinks")

    def __init__(self, id: str, sinks: Sequence[Any]) -> None:
        self.id = id
        self.sinks = sinks
        self.open = True
        self.counts = True

    def shares(self, sinks: Sequence[Any]) -> bool:
        """Whether one of the sinks is one of its own, or there are none: then who runs both has both records.

        A method of the same object is the same sink.
        """
        return (not self.sinks and not sinks) or any(
            one is other or (type(one) in _METHODS and type(other) in _METHODS and one == other)
            for one in self.sinks
            for other in sinks
        )


class Place(NamedTuple):
    """Where code runs: in this loop, in the tool call that keeps `loops` if any, and inside what is `outer`.

    `loops` are the ids of the loops that have begun in the call.
    """

    loop: Running
    loops: list[str] | None
    outer: Place | None


_METHODS = (MethodType, BuiltinMethodType)

_place: ContextVar[Place | None] = ContextVar("toolloop_place", default=None)

Left = Token[Place | None]


def enter(loop: Running, loops: list[str] | None = None) -> Left:
    """Code of the loop runs from here on in this context; with `loops`, that of a tool call."""
    return _place.set(Place(loop, loops, _place.get()))


def leave(token: Left) -> None:
    """In another context than that of `enter`, as where an async generator is closed, nothing changes."""
    try:  # not contextlib's suppress, which costs more than all the rest
        _place.reset(token)
    except ValueError:
        return


def begun_in(loop: Running) -> str | None:
    """The id of the loop that this one begins in: the innermost that has not ended and shares a sink with it.

    Where that is in a tool call of it, the call has this loop from now on.
    """
    return _parent(loop, anywhere=True)


def begun_in_call(loop: Running) -> str | None:
    """The same, of a loop that only a tool call makes a part of another one, whatever is around the call."""
    return _parent(loop, anywhere=False)


def _parent(loop: Running, anywhere: bool) -> str | None:
    places = list(_around(loop))
    if not places or not (anywhere or any(place.loops is not None for place in places)):
        return None
    innermost = places[0]
    if innermost.loops is not None:
        innermost.loops.append(loop.id)
    return innermost.loop.id


def _around(loop: Running) -> Iterator[Place]:
    """The places of this context that count for the loop, from the innermost on."""
    place = _place.get()
    while place is not None:
        if place.loop.open and place.loop.counts and place.loop.shares(loop.sinks):
            yield place
        place = place.outer
