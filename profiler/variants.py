"""Settings of an agent of the user's own, of which a load test compares several values.

    --variant max_concurrent_calls=2,8 --variant parallel=true,false

are four variants. Each is what the agent's factory is called with beside its context, and part of the
strategy's name: `max_concurrent_calls=2 parallel=true`. Pure.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence

from profiler.errors import UsageError
from profiler.redaction.keys import hide_keys

Value = int | float | bool | str | None

Variant = tuple[tuple[str, Value], ...]
"""Names and values, in the order in which they were given."""

MOST = 16
"""Combinations that one load test compares."""

_SETTING = re.compile(r"([^\W\d]\w*)=(.*)", re.DOTALL)
_WHOLE = re.compile(r"[+-]?\d{1,18}")
_FRACTION = re.compile(r"[+-]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][+-]?\d{1,3})?")
_WORDS: dict[str, Value] = {"true": True, "false": False, "null": None}


def is_setting(word: str) -> bool:
    """Whether it has the form `name=value`. `semaphore:search=2` has not."""
    return _SETTING.fullmatch(word) is not None


def parse_value(text: str) -> Value:
    """A number, `true`, `false` or `null`; anything else is text."""
    if text in _WORDS:
        return _WORDS[text]
    if _WHOLE.fullmatch(text):
        return int(text)
    if _FRACTION.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return text


def value_text(value: Value) -> str:
    """Inverse of `parse_value`."""
    named = {None: "null", True: "true", False: "false"}
    return named[value] if value is None or isinstance(value, bool) else str(value)


def variant_text(variant: Variant) -> str:
    """`max_concurrent_calls=2 parallel=true`."""
    return " ".join(f"{name}={value_text(value)}" for name, value in variant)


def parse_variant(words: Sequence[str]) -> Variant:
    """A variant from words of the form `name=value`. Raises `UsageError`."""
    found: dict[str, Value] = {}
    for word in words:
        match = _SETTING.fullmatch(word)
        if match is None or not match[2] or not word.isprintable():
            raise UsageError(f"{hide_keys(word)!r} is no setting of an agent: expected NAME=VALUE")
        if " " in word or "," in word:
            raise UsageError(f"{hide_keys(word)!r} holds a space or a comma, which no value can")
        if hide_keys(word) != word:
            raise UsageError(
                f"{hide_keys(word)}: looks like a key, and settings are stored and shown: have the agent "
                "read it from the environment"
            )
        if match[1] in found:
            raise UsageError(f"{match[1]} has two values in {' '.join(words)!r}")
        found[match[1]] = parse_value(match[2])
    return tuple(found.items())


def parse_grid(text: str) -> tuple[str, ...]:
    """The settings of a list with commas, each with its name: `a=1,2,b=true` is `a=1`, `a=2`, `b=true`.

    Raises `UsageError`.
    """
    found: list[str] = []
    name = ""
    for part in filter(None, map(str.strip, text.split(","))):
        if is_setting(part):
            name = part.partition("=")[0]
        elif not name:
            raise UsageError(f"{hide_keys(part)!r}: expected NAME=VALUE[,VALUE…]")
        found.append(variant_text(parse_variant([part if is_setting(part) else f"{name}={part}"])))
    return tuple(dict.fromkeys(found))


def grid(settings: Sequence[str]) -> list[Variant]:
    """Every combination of settings as `parse_grid` returns them: one value of each name."""
    by_name: dict[str, list[tuple[str, Value]]] = {}
    for setting in dict.fromkeys(settings):
        name, value = parse_variant([setting])[0]
        by_name.setdefault(name, []).append((name, value))
    return [tuple(each) for each in itertools.product(*by_name.values())]
