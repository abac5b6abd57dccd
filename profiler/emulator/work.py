"""How much work drawing arguments may be, and how a schema that asks for more is refused. Pure."""

from __future__ import annotations

import reprlib

MOST_WORK = 20_000
"""The work of one argument object at most: about its characters. A thousand take some milliseconds."""

MOST_DEEP = 100
"""Levels of a schema, and of a value, at most."""


class SchemaError(ValueError):
    """The schema is not one that a provider accepts."""


class TooMuch(SchemaError):
    """The schema may be right, but asks for more than this server makes."""


class Work:
    """The work that is left. Where there is none only what is required is drawn."""

    __slots__ = ("left",)

    def __init__(self, left: int = MOST_WORK) -> None:
        self.left = left


_shortener = reprlib.Repr()
_shortener.maxstring = _shortener.maxother = _shortener.maxlong = 160


def shown(value: object) -> str:
    """A value of the client's in a message: short, whatever it is."""
    return _shortener.repr(value)
