"""Content-Encodings, undone piece by piece for who reads along: what is forwarded stays as it came."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import zstandard

from profiler.providers.connections import MOST_BYTES

Decode = Callable[[bytes], bytes]

_WINDOW = zlib.MAX_WBITS


def decoder(encoding: bytes, most: int = MOST_BYTES) -> Decode | None:
    """Undoes a Content-Encoding (several: the last was applied last); None for one that nothing here reads.

    What it returns raises (whatever the library does) for bytes that are not so encoded, and `ValueError` for
    more than `most` bytes in all.
    """
    found: Decode | None = None
    for one in reversed(encoding.lower().split(b",")):
        made = _one(one.strip(), most)
        if made is None:
            return None
        found = made if found is None else _both(found, made)
    return found


def _both(first: Decode, second: Decode) -> Decode:
    return lambda data: second(first(data))


def _one(name: bytes, most: int) -> Decode | None:
    if name in (b"", b"identity"):
        return _Plain(most).decode
    if name in (b"gzip", b"x-gzip"):
        return _Gzip(most).decode
    if name == b"deflate":
        return _Deflate(most).decode
    if name == b"zstd":
        return _Zstd(most).decode
    if name == b"br":
        import brotli  # here, since most proxies never need it

        return _Brotli(brotli.Decompressor(), most).decode
    return None


class _Bounded:
    """What may still come, of `most` bytes: a few bytes may stand for a great many."""

    def __init__(self, most: int) -> None:
        self._left = most

    def _counted(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise ValueError("the body is too large")
        return data


class _Plain(_Bounded):
    def decode(self, data: bytes) -> bytes:
        return self._counted(data)


class _Gzip(_Bounded):
    """Gzip, of which several may follow each other."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self._inflate = zlib.decompressobj(_WINDOW | 16)

    def decode(self, data: bytes) -> bytes:
        found = self._counted(self._inflate.decompress(data, self._left + 1))
        while self._inflate.eof and self._inflate.unused_data:
            data = self._inflate.unused_data
            self._inflate = zlib.decompressobj(_WINDOW | 16)
            found += self._counted(self._inflate.decompress(data, self._left + 1))
        return found


class _Deflate(_Bounded):
    """Deflate in zlib's frame, as it is meant, or bare, as some servers send it."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self._inflate = zlib.decompressobj()
        self._begun = False

    def decode(self, data: bytes) -> bytes:
        if not self._begun and data:
            self._begun = True
            try:
                return self._counted(self._inflate.decompress(data, self._left + 1))
            except zlib.error:
                self._inflate = zlib.decompressobj(-_WINDOW)
        return self._counted(self._inflate.decompress(data, self._left + 1))


class _Zstd(_Bounded):
    """Zstandard. Its library bounds nothing here, so it is given little, which stands for some megabytes."""

    STEP = 512

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self._decompress = zstandard.ZstdDecompressor().decompressobj(read_across_frames=True).decompress

    def decode(self, data: bytes) -> bytes:
        steps = range(0, len(data), self.STEP)
        return b"".join([self._counted(self._decompress(data[at : at + self.STEP])) for at in steps])


class _Brotli(_Bounded):
    def __init__(self, decompressor: Any, most: int) -> None:
        super().__init__(most)
        self._brotli = decompressor

    def decode(self, data: bytes) -> bytes:
        found = self._counted(self._brotli.process(data, output_buffer_limit=self._left + 1))
        while not self._brotli.can_accept_more_data():
            found += self._counted(self._brotli.process(b"", output_buffer_limit=self._left + 1))
        return found
