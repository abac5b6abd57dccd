"""The JSON values of a file, one after another, however they are laid out; memory holds one at a time.

One value a line; values over several lines, with other lines between them (what a program printed); and
arrays, on one line or on many, whose elements are the values. What is no JSON is `Skipped`, with its line.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import orjson

from profiler.recordings.formats import Skipped, Source

MOST_BYTES = 64 * 2**20
"""Of one value. Real ones have some megabytes (pictures); parsed, one may take twenty times its size."""

NOT_JSON, TORN, TOO_LONG = "not JSON", "cut off", f"longer than {MOST_BYTES // 2**20} MB"

_DEEPEST = 1000
"""Parsers go no deeper."""

_CHUNK = 2**18
_TOKEN = re.compile(rb'"(?:[^"\\\n]|\\.)*+"?|[\[\]{},]', re.DOTALL)
_SPACE = b" \t\r\n"

# What writers let through and JSON does not: half a character of UTF-16, numbers that are none.
_LONE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
_NO_NUMBER = re.compile(rb"(?<=[:,\[ ])-?(?:NaN|Infinity)(?=[,\]} \r\n])")


class Value(NamedTuple):
    """A parsed JSON value and the line on which it begins (from 1)."""

    line: int
    data: Any


def values(source: Source) -> Iterator[Value | Skipped]:
    """Every JSON value of a file; of arrays, the elements."""
    return _Reader(source.stream, source.name).values()


def parsed(text: bytes) -> object:
    """A JSON value. NaN is null, half a character `\\ufffd`. Raises `ValueError`."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        mended = text
        if b"\\u" in mended:
            mended = _LONE.sub(rb"\\ufffd", mended)
        if b"NaN" in mended or b"Infinity" in mended:
            mended = _NO_NUMBER.sub(b"null", mended)
        decoded = mended.decode("utf-8", "replace")
        if mended is text and "\ufffd" not in decoded:
            raise
        return orjson.loads(decoded)


class _Reader:
    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream = stream
        self._name = name
        self._line = 0  # of what was read last
        self._pushed = b""  # read, and not used yet
        self._line_ended = True
        self._again = 0

    def values(self) -> Iterator[Value | Skipped]:
        while line := self._next(MOST_BYTES):
            text = line.strip(_SPACE)
            if not text:
                self._skip_blank()
                continue
            if self._again > 16 * MOST_BYTES:  # megabytes are looked at over and over: nobody writes this
                yield self._skipped(NOT_JSON, self._line)
                self._end_line()
                self._again = 0
                continue
            if text[:1] == b"[":
                yield from self._elements(line)
                continue
            if len(line) >= MOST_BYTES and not self._line_ended:
                yield self._skipped(TOO_LONG, self._line)
                self._end_line()
                continue
            if text[:1] != b"{":
                yield self._skipped(NOT_JSON, self._line)
                continue
            try:
                yield Value(self._line, parsed(text))
            except ValueError:
                yield from self._objects(line)

    def _next(self, most: int) -> bytes:
        """The rest of a line, or of it no more than `most` bytes."""
        if pushed := self._pushed:
            self._pushed = b""
            self._again += len(pushed)
            if not self._line_ended:
                pushed += self._stream.readline(most)
                self._line_ended = pushed.endswith(b"\n")
            return pushed
        read = self._stream.readline(most)
        self._line += self._line_ended and bool(read)
        self._line_ended = read.endswith(b"\n")
        return read.removeprefix(b"\xef\xbb\xbf") or b"\n" if self._line == 1 and read else read

    def _skip_blank(self) -> None:
        """What is buffered of blank lines, at once: a packed file may have a thousand million of them."""
        if self._line_ended and not self._pushed and isinstance(self._stream, io.BufferedReader):
            buffered = self._stream.peek()
            blank = self._stream.read(len(buffered) - len(buffered.lstrip(b"\n")))
            self._line += len(blank)

    def _end_line(self) -> None:
        while not self._line_ended and (read := self._stream.readline(_CHUNK)):
            self._line_ended = read.endswith(b"\n")

    def _skipped(self, reason: str, line: int) -> Skipped:
        return Skipped(reason, 1, f"{self._name}:{line}")

    def _objects(self, line: bytes) -> Iterator[Value | Skipped]:
        """A value over several lines, or several on one line. What comes after them is left.

        A line that begins another one shows that it was torn, where its own lines are indented.
        """
        parts: list[bytes] = []
        first, size, depth, start = self._line, 0, 0, 0
        bare = line.strip(_SPACE) == b"{"
        while line:
            if parts and line[:1] == b"{" and not bare:
                self._pushed = line
                break
            if len(parts) == 1:
                bare = bare and line[:1] not in (b" ", b"\t")  # written without indentation
            for found in _TOKEN.finditer(line):
                depth += _STEP.get(found[0], 0)
                if depth <= 0 and found[0] == b"}":
                    parts.append(line[start : found.end()])
                    yield self._value(b"".join(parts), first)
                    first, parts, size, depth, start = self._line, [], 0, 0, found.end()
                    while line[start : start + 1] in _BETWEEN:
                        start += 1
                    if line[start : start + 1] != b"{":
                        self._pushed = line[start:]
                        return
                elif depth > _DEEPEST:
                    yield self._skipped(NOT_JSON, first)
                    self._end_line()
                    return
            parts.append(line[start:])
            size += len(line)
            start = 0
            if size > MOST_BYTES:
                yield self._skipped(TOO_LONG, first)
                self._end_line()
                return
            line = self._next(MOST_BYTES)
        yield self._skipped(TORN, first)

    def _elements(self, line: bytes) -> Iterator[Value | Skipped]:
        """The elements of the array that begins here; what comes after it is left."""
        buffer = bytearray(line)
        start = at = buffer.index(b"[") + 1  # of the element, and of what was not looked at yet
        number, depth, more = self._line, 0, _CHUNK
        while True:
            for found in _TOKEN.finditer(buffer, at):
                token = found[0]
                if token[0] == _QUOTE:
                    if found.end() == len(buffer) and (len(token) == 1 or token[-1] != _QUOTE):
                        break  # goes on in what is not read yet
                elif token == b",":
                    if not depth:
                        yield from self._element(bytes(buffer[start : found.start()]), number)
                        number += buffer.count(b"\n", start, found.end())
                        start = found.end()
                elif token in b"{[":
                    depth += 1
                    if depth > _DEEPEST:
                        yield self._skipped(NOT_JSON, number)
                        self._end_line()
                        return
                else:
                    depth -= 1
                    if depth < 0:
                        yield from self._element(bytes(buffer[start : found.start()]), number)
                        self._pushed = bytes(buffer[found.end() :])
                        return
                at = found.end()
            del buffer[:start]
            at, start = at - start, 0
            if len(buffer) > MOST_BYTES:
                yield self._skipped(TOO_LONG, number)
                self._end_line()
                return
            # As much again as there is: a long string is looked at once more each time.
            more = max(_CHUNK, len(buffer))
            read = self._next(more)
            if not read:
                if buffer.strip(_SPACE):
                    yield self._skipped(TORN, number)
                return
            buffer += read

    def _element(self, text: bytes, line: int) -> Iterator[Value | Skipped]:
        if begun := text.lstrip(_SPACE):
            yield self._value(begun, line + text.count(b"\n", 0, len(text) - len(begun)))

    def _value(self, text: bytes, line: int) -> Value | Skipped:
        try:
            return Value(line, parsed(text))
        except ValueError:
            return self._skipped(NOT_JSON, line)


_QUOTE = ord('"')
_BETWEEN = (b" ", b",", b"\t")
_STEP = {b"{": 1, b"[": 1, b"}": -1, b"]": -1}
