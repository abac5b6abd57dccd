"""JSON values one after another in a stream: lines, pretty objects, elements of arrays, in any mixture.

Only one value at a time is held. What is torn, or no JSON, is reported with its line; the rest is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import orjson

LARGEST = 256 * 2**20
"""Bytes that one value may have."""

_PIECE = 4 * 2**20
_TOKENS = re.compile(rb'["\\{}\[\]]')


class Value(NamedTuple):
    """A value, and the line that it begins in."""

    value: Any
    line: int


class Torn(NamedTuple):
    """Something that is no JSON value. `last`: the end of the stream cut it off."""

    line: int
    last: bool


class _Splitter:
    """Cuts bytes into values by their brackets. A top-level array is cut into its elements."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.pending = bytearray()
        self.depth = 0
        self.base = 0  # 1 inside a top-level array
        self.line = 0
        self._in_string = False

    @property
    def inside(self) -> bool:
        """In the middle of a value."""
        return self.depth > self.base

    def feed(self, piece: bytes, line: int) -> Iterator[tuple[bytes, int]]:
        start = 0 if self.inside else -1
        skip = -1
        for match in _TOKENS.finditer(piece):
            at = match.start()
            if at <= skip:
                continue
            token = piece[at]
            if token == 0x5C:  # a backslash: what follows it is no token
                skip = at + 1
            elif token == 0x22:
                if self.inside or self._in_string:
                    self._in_string = not self._in_string
            elif self._in_string:
                continue
            elif token in b"{[":
                if token == 0x5B and self.depth == 0:
                    self.base = 1
                elif not self.inside:
                    start = at
                    self.line = line + piece.count(b"\n", 0, at)
                self.depth += 1
            else:
                self.depth -= 1
                if self.depth < 0:
                    self.reset()
                    start = -1
                elif self.depth == self.base and start >= 0:
                    self.pending += piece[start : at + 1]
                    yield bytes(self.pending), self.line
                    self.pending.clear()
                    start = -1
                elif self.depth == 0:
                    self.base = 0
        if start >= 0:
            self.pending += piece[start:]


def values_of(stream: BinaryIO) -> Iterator[Value | Torn]:
    """The values of a stream. A byte order mark before them is no matter."""
    splitter = _Splitter()
    number = 1
    at_line_start = True
    first = True
    while piece := stream.readline(_PIECE):
        if first:
            piece = piece.removeprefix(b"\xef\xbb\xbf")
            first = False
        whole = at_line_start and (piece.endswith(b"\n") or len(piece) < _PIECE)
        if at_line_start and piece[:1] == b"{" and splitter.inside:
            # Nothing that was printed has a bracket in its first column while another object is open.
            yield Torn(splitter.line, False)
            splitter.reset()
        if whole and not splitter.inside:
            stripped = piece.strip().rstrip(b",")
            value = _loaded(stripped) if stripped[:1] == b"{" else None
            if value is not None:
                yield Value(value, number)
            elif stripped and not splitter.depth and stripped[:1] not in (b"{", b"["):
                yield Torn(number, False)
            else:
                yield from _fed(splitter, piece, number)
        else:
            yield from _fed(splitter, piece, number)
        if len(splitter.pending) > LARGEST:
            yield Torn(splitter.line, False)
            splitter.reset()
        at_line_start = piece.endswith(b"\n")
        number += at_line_start
    if splitter.inside:
        yield Torn(splitter.line, True)


def _fed(splitter: _Splitter, piece: bytes, number: int) -> Iterator[Value | Torn]:
    for data, line in splitter.feed(piece, number):
        value = _loaded(data)
        yield Torn(line, False) if value is None else Value(value, line)


def _loaded(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
