"""The files to import: found, opened, unpacked. Nothing here waits for ever, or for more than a file is."""

from __future__ import annotations

import gzip
import io
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from profiler.errors import RecordError
from profiler.recordings.formats import Skipped

BEGINNING = 2**16
"""Bytes by which a format is recognised."""

_BUFFER = 2**18
_DEEPEST = 64
_MOST_FILES = 1_000_000

_RATIO, _FREE = 300, 2**30
"""A packed file may unpack to this many times its size and so many bytes more. Recordings that repeat whole
conversations reach a hundred times."""

_IDLE = 2**29
"""Bytes in a row in which nothing was understood, after which a file is left."""

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_SKIPPABLE = tuple(bytes((0x50 + n, 0x2A, 0x4D, 0x18)) for n in range(16))


def found(paths: Sequence[Path]) -> Iterator[Path | Skipped]:
    """The files that the paths name, and those in the directories among them, by name; each of them once.

    Raises `RecordError` for a path that is not there or cannot be read.
    """
    return _Walk().all(paths)


class _Walk:
    def __init__(self) -> None:
        self._seen: set[tuple[int, int]] = set()

    def all(self, paths: Sequence[Path]) -> Iterator[Path | Skipped]:
        for path in paths:
            try:
                status = path.stat()
            except (OSError, ValueError) as error:
                raise RecordError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
            if stat.S_ISDIR(status.st_mode):
                yield from self._inside(path, status, 0)
            elif self._new(status):
                yield path

    def _new(self, status: os.stat_result) -> bool:
        # Windows has no numbers of files in what a listing tells.
        if not status.st_ino:
            return True
        key = (status.st_dev, status.st_ino)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def _inside(self, path: Path, status: os.stat_result, depth: int) -> Iterator[Path | Skipped]:
        if not self._new(status):
            return
        try:
            names = sorted(os.listdir(path))
        except OSError as error:
            yield Skipped(f"files: a directory that cannot be read ({error.strerror})", 1, str(path))
            return
        if "run.json" in names and "records.jsonl" in names:
            yield Skipped(
                "files: run directories of this package (`profiler report` reads them)", 1, str(path)
            )
            return
        for name in names:
            inner = path / name
            try:
                inner_status = inner.stat()
            except OSError as error:
                yield Skipped(f"files: one that cannot be read ({error.strerror})", 1, str(inner))
                continue
            if stat.S_ISDIR(inner_status.st_mode):
                if depth < _DEEPEST:
                    yield from self._inside(inner, inner_status, depth + 1)
                else:
                    yield Skipped(f"files: in more than {_DEEPEST} directories", 1, str(inner))
            elif len(self._seen) > _MOST_FILES:
                yield Skipped(f"files: more than {_MOST_FILES:,}", 1, str(inner))
            elif self._new(inner_status):
                yield inner


class Opened:
    """A file that is open for reading: `stream` gives what is in it, unpacked where it is packed.

    As many bytes as it had when it was opened: one that grows is read up to there. `problem` is what ended it
    before its end, in words; None while there is none. Raises `RecordError` where it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _opened(path)
        try:
            size = os.fstat(self._file.fileno()).st_size
            plain = io.BufferedReader(_Part(self._file, size), _BUFFER)
            self._counted = _Counted(_unpacked(plain), size)
        except BaseException:
            self._file.close()
            raise
        self.stream = cast(BinaryIO, io.BufferedReader(self._counted, _BUFFER))

    @property
    def problem(self) -> str | None:
        return self._counted.problem

    def beginning(self) -> bytes:
        """What it begins with, which is still to be read."""
        reader = cast(io.BufferedReader, self.stream)
        return reader.peek(BEGINNING)[:BEGINNING]

    def understood(self) -> None:
        """Something of it was of use."""
        self._counted.idle = 0

    def close(self) -> None:
        self._file.close()


def _opened(path: Path) -> io.FileIO:
    # A pipe that nobody writes into would be waited for.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RecordError(f"{path}: not a regular file")
    return os.fdopen(descriptor, "rb", buffering=0)


def _unpacked(plain: io.BufferedReader[Any]) -> tuple[Any, bool]:
    """What reads the content, and whether it is packed."""
    start = plain.peek(4)[:4]
    if start[:2] == _GZIP:
        return gzip.GzipFile(fileobj=plain), True
    if start == _ZSTD or start in _SKIPPABLE:
        return _Zstd(plain), True
    return plain, False


class _Zstd:
    """Unpacks a file of one frame or several, and tells one that was cut off, unlike the library's reader."""

    _PIECE = 1024  # of it come 32 MB at most

    def __init__(self, packed: io.BufferedReader[Any]) -> None:
        self._packed = packed
        # More than usual, since `--long` is what long recordings are packed with.
        self._new = zstandard.ZstdDecompressor(max_window_size=2**27).decompressobj
        self._error = zstandard.ZstdError
        self._frame = self._new()
        self._begun = False
        self._left = b""
        self._unpacked = b""

    def read(self, most: int) -> bytes:
        while not self._unpacked:
            piece = self._left or self._packed.read(self._PIECE)
            self._left = b""
            if not piece:
                if self._begun:
                    raise EOFError
                return b""
            try:
                self._unpacked = self._frame.decompress(piece)
            except self._error as error:
                raise EOFError from error
            self._begun = not self._frame.eof
            if self._frame.eof:
                self._left = self._frame.unused_data
                self._frame = self._new()
        taken, self._unpacked = self._unpacked[:most], self._unpacked[most:]
        return taken


class _Part(io.RawIOBase):
    """The first `size` bytes of a file."""

    def __init__(self, file: io.FileIO, size: int) -> None:
        self._file = file
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(self._left, len(buffer))) or b""
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)


class _Counted(io.RawIOBase):
    """Ends before more is read than anybody needs, or where what unpacks it fails."""

    def __init__(self, content: tuple[Any, bool], size: int) -> None:
        self._content, packed = content
        self._most = _RATIO * size + _FREE if packed else None
        self._read = 0
        self.idle = 0
        self.problem: str | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        filled = 0
        while filled < len(buffer) and self.problem is None:
            try:
                data = self._content.read(len(buffer) - filled)
            except (EOFError, OSError, zlib.error) as error:
                # Words that say what is wrong; of what a library says, its own name for it.
                said = (
                    error.strerror if isinstance(error, OSError) and error.strerror else "damaged or cut off"
                )
                self.problem = f"files: not read to its end: {said}"
                break
            if not data:
                break
            buffer[filled : filled + len(data)] = data
            filled += len(data)
        self._read += filled
        self.idle += filled
        if self._most is not None and self._read > self._most:
            self.problem = f"files: not read to its end: unpacks to more than {_RATIO} times its size"
        elif self.idle > _IDLE:
            self.problem = f"files: not read to its end: nothing understood in {_IDLE // 2**20} MB of it"
        return filled
