"""Lines of JSON as other programs left them: torn, with half characters, with values of any type.

Everything here answers None (or skips) where a value is not what it should be; nothing raises. A format takes
its fields out with these, so that what it keeps of a line is of known types and of bounded size.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import orjson

from profiler.recordings.formats import Skipped, Source
from profiler.records import MOST

LONGEST_LINE = 64 * 2**20
"""Bytes; a longer line is skipped. Pictures are in these files as base64, and take some megabytes."""

TORN = "torn last lines"
NO_JSON = "lines that are no JSON"
TOO_LONG = f"lines of over {LONGEST_LINE >> 20} MiB"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HALF_CHARACTER = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)


def values(source: Source) -> Iterator[tuple[int, Any] | Skipped]:
    """The value of every line that is JSON, with its number from 1; `Skipped` for one that is not.

    The last line of a file that is still being written, or whose writer was killed, is torn.
    """
    number = 0
    bad: Skipped | None = None
    while line := source.stream.readline(LONGEST_LINE + 1):
        number += 1
        if bad is not None:
            yield bad
            bad = None
        if len(line) > LONGEST_LINE:
            yield Skipped(TOO_LONG, where=f"{source.name}:{number}")
            while line and not line.endswith(b"\n"):
                line = source.stream.readline(LONGEST_LINE)
            continue
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError:
            stripped = line.strip(b"\x00 \t\r\n\xef\xbb\xbf")
            if not stripped:
                continue
            value = leniently(stripped)
            if value is None:
                bad = Skipped(NO_JSON, where=f"{source.name}:{number}")
                if not line.endswith(b"\n"):
                    bad = Skipped(TORN, where=f"{source.name}:{number}")
                continue
        yield number, value
    if bad is not None:
        yield Skipped(TORN, where=bad.where)


def leniently(line: bytes) -> Any | None:
    """The value of a line that is nearly JSON: with half a surrogate pair (JavaScript cuts texts there), with
    bytes that are no UTF-8, with NaN (Python writes it). None where it is none at all."""
    text = _HALF_CHARACTER.sub(r"\\ufffd", line.decode("utf-8", "replace"))
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    if "NaN" not in text and "Infinity" not in text:
        return None
    try:
        return json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None


def time_ns(value: object) -> int | None:
    """Unix nanoseconds of an ISO time (without a zone: UTC), or of a number of seconds, ms, µs or ns."""
    if type(value) is str:
        try:
            time = datetime.fromisoformat(value)
        except ValueError:
            return None
        if time.tzinfo is None:
            time = time.replace(tzinfo=UTC)
        since = time - _EPOCH
        at_ns = (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1_000
        return at_ns if 0 < at_ns < MOST else None
    if (type(value) is int or type(value) is float) and 1e8 < value < 1e19:
        unit = 1_000_000_000 if value < 1e11 else 1_000_000 if value < 1e14 else 1_000 if value < 1e17 else 1
        at_ns = int(value * unit)
        return at_ns if at_ns < MOST else None
    return None


def count(value: object) -> int | None:
    """A count; None for what is none."""
    if type(value) is int:
        return value if 0 <= value <= MOST else None
    if type(value) is float and value.is_integer() and 0 <= value < 2**53:
        return int(value)
    return None


def duration_ns(value: object, unit_ns: int) -> int | None:
    """A duration of `value` times the unit; None for what is none, and for over a year."""
    if (type(value) is int or type(value) is float) and 0 <= value < 31_536_000 * 1_000_000_000 / unit_ns:
        return round(value * unit_ns)
    return None


def text(value: object) -> str:
    """A name or an id: the string, cut where no name is so long; empty for anything else."""
    return value[:512] if type(value) is str else ""


def mapping(value: object) -> dict[str, Any]:
    """The JSON object, or an empty one."""
    return value if type(value) is dict else {}


def objects(value: object) -> list[dict[str, Any]]:
    """The JSON objects of an array; empty for what is none."""
    return [one for one in value if type(one) is dict] if type(value) is list else []


def as_text(value: object) -> str | None:
    """Arguments or a result as text: strings as they are, anything else as JSON; None for null."""
    if value is None or type(value) is str:
        return value
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # nested deeper than anything that is written
        return None
