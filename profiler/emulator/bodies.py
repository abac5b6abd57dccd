"""JSON bodies, read in bounded time. Pure."""

from __future__ import annotations

import re
from typing import Any

import orjson

MOST_VALUES = 200_000
"""Values of a body at most: more than any model reads, and some tenths of a second of checking."""

# In one pass: possessive, and a text that does not end is one as well, or each quote in it would be tried.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


class BodyError(ValueError):
    """The body has more in it than is read; the words say what."""


def read_json(body: bytes) -> Any:
    """Raises `BodyError`, and `orjson.JSONDecodeError` for what is no JSON."""
    # Each value but the first has a comma or a bracket before it.
    if len(body) > MOST_VALUES and _marks(body) > MOST_VALUES:
        # Texts may be full of them: looked at without, unless that would take long too.
        texts, escapes = (body.count(b'"') - body.count(b'\\"')) // 2, body.count(b"\\")
        long = texts > 2 * MOST_VALUES or escapes > 10 * MOST_VALUES
        if long or _marks(_STRING.sub(b"", body)) > MOST_VALUES:
            raise BodyError(f"the body holds more than {MOST_VALUES:,} values")
    return orjson.loads(body)


def _marks(body: bytes) -> int:
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def can_be_written(value: object) -> bool:
    """Whether a value that was read is not nested too deeply to be part of an answer."""
    try:
        orjson.dumps(value)
    except TypeError:
        return False
    return True
