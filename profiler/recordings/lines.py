"""The rows of a file of lines, one JSON value each: a damaged line costs itself and no other.

`reading.values` finds values however they are laid out, and so a line that only begins an array, or an
object, can take what follows with it. A file whose first line is a whole object is read by its lines alone.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO, cast

from profiler.recordings.formats import Skipped, Source
from profiler.recordings.reading import MOST_BYTES, NOT_JSON, TOO_LONG, TORN, Value, parsed, values

_BLANK = b"\x00 \t\r\n"
_MARK = b"\xef\xbb\xbf"


def rows(source: Source) -> Iterator[Value | Skipped]:
    """The value of every line; where the first is no whole object, the values of the file as they are found.

    The last line of a file that is still being written, or whose writer was killed, is torn.
    """
    first = source.stream.readline(MOST_BYTES)
    if not _is_object(first):
        yield from values(source._replace(stream=again(first, source.stream)))
        return
    bad: Skipped | None = None
    line, number, torn = first, 1, False
    while line:
        if bad is not None:
            yield bad
            bad = None
        torn = not line.endswith(b"\n")
        if torn and len(line) >= MOST_BYTES:
            yield Skipped(TOO_LONG, where=f"{source.name}:{number}")
            while line and not line.endswith(b"\n"):
                line = source.stream.readline(MOST_BYTES)
        elif stripped := line.removeprefix(_MARK).strip(_BLANK):
            try:
                value = parsed(stripped)
            except ValueError:
                bad = Skipped(NOT_JSON, where=f"{source.name}:{number}")
            else:
                yield Value(number, value)
        line, number = source.stream.readline(MOST_BYTES), number + 1
    if bad is not None:
        yield Skipped(TORN if torn else NOT_JSON, where=bad.where)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(parsed(line.removeprefix(_MARK).strip(_BLANK)), dict)
    except ValueError:
        return False


def again(beginning: bytes, rest: BinaryIO) -> BinaryIO:
    """A stream of which the beginning was read already, from its beginning."""
    return cast("BinaryIO", io.BufferedReader(_Again(beginning, rest), 2**18))


class _Again(io.RawIOBase):
    def __init__(self, beginning: bytes, rest: BinaryIO) -> None:
        self._beginning = beginning
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        piece = self._beginning[: len(buffer)] or self._rest.read(len(buffer))
        self._beginning = self._beginning[len(buffer) :]
        buffer[: len(piece)] = piece
        return len(piece)
