"""Whether a short text matches a pattern, by backtracking that gives up. Pure.

It walks the tree of Python's parser, and takes letters as they are, whatever flags say: texts are written
with the pattern's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from profiler.emulator.work import Work

_MOST_STEPS = 2_000
"""Steps for one text."""


class _GaveUpError(Exception):
    pass


class _Match:
    __slots__ = ("groups", "left", "text")

    def __init__(self, text: str, steps: int) -> None:
        self.text = text
        self.left = steps
        self.groups: dict[int, str] = {}


def finds(tree: Any, text: str, work: Work) -> bool:
    """Whether the pattern matches anywhere in `text`; True too where that takes too long to say."""
    steps = min(_MOST_STEPS, max(0, work.left))
    match = _Match(text, steps)
    try:
        return any(True for start in range(len(text) + 1) for _ in _ends(tree, 0, start, match))
    except (_GaveUpError, RecursionError):
        return True
    finally:
        work.left -= steps - match.left


def _ends(items: Any, n: int, at: int, match: _Match) -> Iterator[int]:
    """Where a match of `items[n:]` that begins at `at` may end."""
    text = match.text
    while n < len(items):
        match.left -= 1
        if match.left < 0:
            raise _GaveUpError
        kind, argument = str(items[n][0]), items[n][1]
        if kind in _SINGLE:
            if at >= len(text) or not _is_one(kind, argument, text[at]):
                return
            at, n = at + 1, n + 1
        elif kind == "AT":
            if not _is_at(str(argument), text, at):
                return
            n += 1
        elif kind == "GROUPREF":
            group = match.groups.get(argument)
            if group is None or not text.startswith(group, at):
                return
            at, n = at + len(group), n + 1
        elif kind in ("ASSERT", "ASSERT_NOT"):
            if _looks(argument, at, match) != (kind == "ASSERT"):
                return
            n += 1
        else:
            for end in _complex(kind, argument, at, match):
                yield from _ends(items, n + 1, end, match)
            return
    yield at


def _complex(kind: str, argument: Any, at: int, match: _Match) -> Iterator[int]:
    """Where a match of one item that may match in several ways may end."""
    if kind == "BRANCH":
        for option in argument[1]:
            yield from _ends(option, 0, at, match)
    elif kind == "SUBPATTERN":
        for end in _ends(argument[3], 0, at, match):
            if argument[0] is not None:
                match.groups[argument[0]] = match.text[at:end]
            yield end
    elif kind == "ATOMIC_GROUP":
        yield from _first(_ends(argument, 0, at, match))
    elif kind == "POSSESSIVE_REPEAT":
        yield from _first(_repeated(argument, 0, at, match))
    elif kind == "MAX_REPEAT":
        yield from _repeated(argument, 0, at, match)
    elif kind == "MIN_REPEAT":
        # Which of the ends comes first does not matter to whether there is one.
        yield from _repeated(argument, 0, at, match)
    elif kind == "GROUPREF_EXISTS":
        yes, no = argument[1], argument[2]
        yield from _ends(yes if argument[0] in match.groups else no or [], 0, at, match)
    else:
        raise _GaveUpError


def _first(ends: Iterator[int]) -> Iterator[int]:
    for end in ends:
        yield end
        return


def _repeated(argument: Any, done: int, at: int, match: _Match) -> Iterator[int]:
    fewest, most, body = argument
    if len(body) == 1 and str(body[0][0]) in _SINGLE:  # without a level of recursion for each character
        kind, of = str(body[0][0]), body[0][1]
        end = at
        while end < len(match.text) and end - at < int(most) and _is_one(kind, of, match.text[end]):
            end += 1
        match.left -= end - at
        yield from range(end, at + int(fewest) - 1, -1)
        return
    if done < int(most):
        for end in _ends(body, 0, at, match):
            if end > at or done < int(fewest):
                yield from _repeated(argument, done + 1, end, match)
    if done >= int(fewest):
        yield at


def _looks(argument: Any, at: int, match: _Match) -> bool:
    """Whether a look ahead (or behind) finds something."""
    direction, items = argument
    if direction > 0:
        return any(True for _ in _ends(items, 0, at, match))
    return any(end == at for start in range(at, -1, -1) for end in _ends(items, 0, start, match))


def _is_at(where: str, text: str, at: int) -> bool:
    if "BEGINNING" in where:
        return at == 0
    if "END" in where:
        return at == len(text)
    before = at > 0 and (text[at - 1].isalnum() or text[at - 1] == "_")
    after = at < len(text) and (text[at].isalnum() or text[at] == "_")
    return (before != after) == ("NON" not in where)


_SINGLE = frozenset({"LITERAL", "NOT_LITERAL", "ANY", "IN"})


def _is_one(kind: str, argument: Any, char: str) -> bool:
    if kind == "LITERAL":
        return ord(char) == int(argument)
    if kind == "NOT_LITERAL":
        return ord(char) != int(argument)
    if kind == "ANY":
        return char != "\n"
    negated = bool(argument) and str(argument[0][0]) == "NEGATE"
    return negated != any(_is_in(str(name), value, char) for name, value in argument)


def _is_in(kind: str, value: Any, char: str) -> bool:
    if kind == "LITERAL":
        return ord(char) == int(value)
    if kind == "RANGE":
        return int(value[0]) <= ord(char) <= int(value[1])
    if kind != "CATEGORY":
        return False  # NEGATE
    category = str(value)
    found = (
        char.isdecimal()
        if "DIGIT" in category
        else char.isspace()
        if "SPACE" in category
        else char.isalnum() or char == "_"
    )
    return found != ("NOT" in category)
