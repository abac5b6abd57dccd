"""Texts that match a regular expression, for JSON Schema's `pattern`, in bounded time. Pure.

A pattern comes from whoever asks, and neither `re.compile` nor a match by `re` ends in time for all of them.
So only Python's parser reads it (linear), its tree is walked to write a text, and where that walk cannot be
sure of the text (look-around, references, anchors in the middle) a matcher looks that gives up after so many
steps.
Where no text of twenty matches, the last one is taken.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

# Private, since the public `sre_parse` is deprecated. A parser of our own would accept less.
from re import _parser as sre_parse  # type: ignore[attr-defined]
from typing import Any

from profiler.emulator.draws import Draws
from profiler.emulator.matching import finds
from profiler.emulator.work import MOST_WORK, SchemaError, TooMuch, Work, shown

MOST_PATTERN = 2_000
"""Characters of a pattern: the parser takes about a millisecond for a thousand."""

_TRIES = 20
_PRINTABLE = [chr(code) for code in range(32, 127)]
_WORD = [char for char in _PRINTABLE if char.isalnum() or char == "_"]
_CLASSES: dict[str, list[str]] = {
    "CATEGORY_DIGIT": list("0123456789"),
    "CATEGORY_WORD": _WORD,
    "CATEGORY_SPACE": [" "],
    "CATEGORY_NOT_DIGIT": [char for char in _PRINTABLE if not char.isdigit()],
    "CATEGORY_NOT_WORD": [char for char in _PRINTABLE if char not in _WORD],
    "CATEGORY_NOT_SPACE": _PRINTABLE[1:],
}


class Pattern:
    """A generator of texts that match. `least`: the least work that one takes."""

    __slots__ = ("_certain", "_tree", "_whole", "least")

    def __init__(self, pattern: object) -> None:
        """Raises `SchemaError` for what is no pattern, `TooMuch` for one whose texts are too long."""
        if not isinstance(pattern, str):
            raise SchemaError(f"{shown(pattern)} is not a 'regex'")
        if len(pattern) > MOST_PATTERN:
            raise TooMuch(f"a pattern has {len(pattern):,} characters; at most {MOST_PATTERN:,} are read")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what Python may read otherwise one day
                self._tree = list(sre_parse.parse(pattern))
            self._whole = _sequence(self._tree, {})
        except RecursionError:
            raise TooMuch(f"the pattern {shown(pattern)} is nested too deeply") from None
        except (re.error, ValueError, OverflowError) as error:
            raise SchemaError(f"{shown(pattern)} is not a 'regex'") from error
        self.least = self._whole.least
        if self.least > MOST_WORK:
            raise TooMuch(
                f"the pattern {shown(pattern)} takes at least {self.least:,} characters or steps; at most"
                f" {MOST_WORK:,} are made"
            )
        self._certain = _is_certain(self._tree, True, True)

    def text(self, draws: Draws, work: Work) -> str:
        """A text; what it takes comes off `work`, and without work left it is about the shortest."""
        text = ""
        for _ in range(_TRIES):
            pen = _Pen(draws, work)
            self._whole.write(pen)
            text = "".join(pen.parts)
            if self._certain or work.left <= 0 or finds(self._tree, text, work):
                break
        return text


class _Pen:
    """A text on its way."""

    __slots__ = ("draws", "groups", "parts", "work")

    def __init__(self, draws: Draws, work: Work) -> None:
        self.draws = draws
        self.work = work
        self.parts: list[str] = []
        self.groups: dict[int, str] = {}


class _Node:
    """A part of a pattern. `least`: characters and repetitions that it takes at least."""

    __slots__ = ("least",)

    def __init__(self, least: int) -> None:
        self.least = least

    def write(self, pen: _Pen) -> None:
        """Nothing: anchors and look-around are met, or not, by what surrounds them."""


class _Literal(_Node):
    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        super().__init__(len(text))
        self._text = text

    def write(self, pen: _Pen) -> None:
        pen.parts.append(self._text)
        pen.work.left -= 1


class _OneOf(_Node):
    """One character of several."""

    __slots__ = ("_characters",)

    def __init__(self, characters: Sequence[str]) -> None:
        super().__init__(1)
        self._characters = characters

    def write(self, pen: _Pen) -> None:
        pen.parts.append(pen.draws.choice(self._characters))
        pen.work.left -= 1


class _Sequence(_Node):
    __slots__ = ("_nodes",)

    def __init__(self, nodes: list[_Node]) -> None:
        super().__init__(max(1, sum(node.least for node in nodes)))
        self._nodes = nodes

    def write(self, pen: _Pen) -> None:
        for node in self._nodes:
            node.write(pen)


class _Branch(_Node):
    __slots__ = ("_options", "_shortest")

    def __init__(self, options: list[_Sequence]) -> None:
        self._options = options
        self._shortest = min(options, key=lambda option: option.least)
        super().__init__(self._shortest.least)

    def write(self, pen: _Pen) -> None:
        chosen = pen.draws.choice(self._options) if pen.work.left > 0 else self._shortest
        chosen.write(pen)


class _Group(_Node):
    __slots__ = ("_body", "_number")

    def __init__(self, number: int, body: _Sequence) -> None:
        super().__init__(body.least)
        self._number = number
        self._body = body

    def write(self, pen: _Pen) -> None:
        start = len(pen.parts)
        self._body.write(pen)
        pen.groups[self._number] = "".join(pen.parts[start:])


class _Again(_Node):
    """The text that a group has matched."""

    __slots__ = ("_number",)

    def __init__(self, number: int, least: int) -> None:
        super().__init__(least)
        self._number = number

    def write(self, pen: _Pen) -> None:
        text = pen.groups.get(self._number, "")
        pen.parts.append(text)
        pen.work.left -= len(text)


class _Repeat(_Node):
    __slots__ = ("_body", "_fewest", "_more")

    def __init__(self, body: _Sequence, fewest: int, most: int) -> None:
        super().__init__(fewest * body.least)
        self._body = body
        self._fewest = fewest
        self._more = min(most - fewest, 6)

    def write(self, pen: _Pen) -> None:
        work = pen.work
        for _ in range(self._fewest + (pen.draws.below(self._more + 1) if work.left > 0 else 0)):
            work.left -= 1
            self._body.write(pen)


_REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")


def _sequence(items: Any, groups: dict[int, int]) -> _Sequence:
    """The nodes of a sequence of the parser's; `groups`: number → least of those that have ended."""
    return _Sequence([_node(str(kind), argument, groups) for kind, argument in items])


def _node(kind: str, argument: Any, groups: dict[int, int]) -> _Node:
    if kind == "LITERAL":
        return _Literal(chr(argument))
    if kind == "NOT_LITERAL":
        return _OneOf([char for char in _WORD if char != chr(argument)])
    if kind == "ANY":
        return _OneOf(_WORD)
    if kind == "IN":
        return _OneOf(_members(argument))
    if kind == "BRANCH":
        return _Branch([_sequence(option, groups) for option in argument[1]])
    if kind == "SUBPATTERN":
        number, body = argument[0], _sequence(argument[3], groups)
        if number is None:
            return body
        groups[number] = body.least
        return _Group(number, body)
    if kind == "GROUPREF":
        return _Again(argument, groups.get(argument, 0))
    if kind == "ATOMIC_GROUP":
        return _sequence(argument, groups)
    if kind in _REPEATS:
        fewest, most, body = argument
        return _Repeat(_sequence(body, groups), int(fewest), int(most))
    return _Node(0)


def _members(argument: Any) -> list[str]:
    """Characters of a class: of a wide range the first ones."""
    negated = bool(argument) and str(argument[0][0]) == "NEGATE"
    members: list[str] = []
    for kind, value in argument[1:] if negated else argument:
        name = str(kind)
        if name == "LITERAL":
            members.append(chr(value))
        elif name == "RANGE":
            members.extend(chr(code) for code in range(value[0], min(value[1], value[0] + 255) + 1))
        elif name == "CATEGORY":
            members.extend(_CLASSES.get(str(value), []))
    if negated:
        left_out = set(members)
        members = [char for char in _WORD if char not in left_out] or _PRINTABLE
    return members or _PRINTABLE


def _is_certain(items: Any, first: bool, last: bool) -> bool:
    """Whether every text that is written for `items` matches; they stand `first` in the text, and `last`."""
    kinds = [str(kind) for kind, _ in items]
    for n, (_, argument) in enumerate(items):
        at_start = first and all(kind == "AT" for kind in kinds[:n])
        at_end = last and all(kind == "AT" for kind in kinds[n + 1 :])
        if kinds[n] == "AT":
            where = str(argument)
            if not (at_start if "BEGINNING" in where else at_end if "END" in where else False):
                return False
        elif kinds[n] == "BRANCH":
            if not all(_is_certain(option, at_start, at_end) for option in argument[1]):
                return False
        elif kinds[n] == "SUBPATTERN":
            if not _is_certain(argument[3], at_start, at_end):
                return False
        elif kinds[n] in ("MAX_REPEAT", "MIN_REPEAT"):
            if not _is_certain(argument[2], False, False):
                return False
        elif kinds[n] not in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            return False
    return True
