"""Texts that match a regular expression, for JSON Schema's `pattern`.

Pure. Walks the parse tree of Python's own parser; look-around and back-references are ignored,
and a pattern that cannot be met that way yields its nearest attempt.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from re import _parser as sre_parse  # type: ignore[attr-defined]
from typing import Any

from profiler.emulator.draws import Draws

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


def compile_pattern(pattern: str) -> Callable[[Draws], str]:
    """A generator of texts that `re.search(pattern, text)` finds. Raises `re.error` for bad patterns."""
    compiled = re.compile(pattern)
    tree = sre_parse.parse(pattern)

    def generate(draws: Draws) -> str:
        text = ""
        for _ in range(20):
            text = _sequence(tree, draws, {})
            if compiled.search(text):
                break
        return text

    return generate


def _sequence(items: Any, draws: Draws, groups: dict[int, str]) -> str:
    return "".join(_item(str(kind), argument, draws, groups) for kind, argument in items)


def _item(kind: str, argument: Any, draws: Draws, groups: dict[int, str]) -> str:
    if kind == "LITERAL":
        return chr(argument)
    if kind == "NOT_LITERAL":
        return draws.choice([char for char in _WORD if char != chr(argument)])
    if kind == "ANY":
        return draws.choice(_WORD)
    if kind == "IN":
        return draws.choice(_members(argument))
    if kind == "BRANCH":
        return _sequence(draws.choice(argument[1]), draws, groups)
    if kind == "SUBPATTERN":
        number, text = argument[0], _sequence(argument[3], draws, groups)
        groups[number] = text
        return text
    if kind == "GROUPREF":
        return groups.get(argument, "")
    if kind == "ATOMIC_GROUP":
        return _sequence(argument, draws, groups)
    if kind in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        fewest, most, body = argument
        times = fewest + draws.below(min(int(most) - fewest, 6) + 1)
        return "".join(_sequence(body, draws, groups) for _ in range(times))
    return ""  # anchors and look-around are met, or not, by what surrounds them


def _members(argument: Any) -> list[str]:
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
        members = [char for char in _WORD if char not in set(members)] or _PRINTABLE
    return members or _PRINTABLE
