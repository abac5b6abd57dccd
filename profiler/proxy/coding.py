"""Content-Encodings, undone piece by piece for who reads along: what is forwarded stays as it came."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable

import zstandard

from profiler.providers.connections import MOST_BYTES

Decode = Callable[[bytes], bytes]

_WINDOW = zlib.MAX_WBITS


def decoder(encoding: bytes, most: int = MOST_BYTES) -> Decode | None:
    """Undoes a Content-Encoding (several: the last was applied last); None for one that nothing here reads.

    What it returns raises (whatever the library does) for bytes that are not so encoded, and `ValueError` for
    more than `most` bytes in all. Brotli is read where its library is installed.
    """
    found: Decode | None = None
    for one in reversed(encoding.lower().split(b",")):
        made = _one(one.strip())
        if made is None:
            return None
        found = made if found is None else _both(found, made)
    return None if found is None else _bounded(found, most)


def _both(first: Decode, second: Decode) -> Decode:
    return lambda data: second(first(data))


def _bounded(decode: Decode, most: int) -> Decode:
    left = most

    def bounded(data: bytes) -> bytes:
        nonlocal left
        found = b""
        # By little, since a few bytes may stand for a great many.
        for start in range(0, len(data), 4096):
            found += decode(data[start : start + 4096])
            if len(found) > left:
                raise ValueError("the body is too large")
        left -= len(found)
        return found

    return bounded


def _one(name: bytes) -> Decode | None:
    if name in (b"", b"identity"):
        return bytes
    if name in (b"gzip", b"x-gzip"):
        return _Gzip().decode
    if name == b"deflate":
        return _Deflate().decode
    if name == b"zstd":
        return zstandard.ZstdDecompressor().decompressobj(read_across_frames=True).decompress
    if name == b"br":
        with contextlib.suppress(ImportError):
            import brotli

            process: Decode = brotli.Decompressor().process
            return process
    return None


class _Gzip:
    """Gzip, of which several may follow each other."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(_WINDOW | 16)

    def decode(self, data: bytes) -> bytes:
        found = self._inflate.decompress(data)
        while self._inflate.eof and self._inflate.unused_data:
            data = self._inflate.unused_data
            self._inflate = zlib.decompressobj(_WINDOW | 16)
            found += self._inflate.decompress(data)
        return found


class _Deflate:
    """Deflate in zlib's frame, as it is meant, or bare, as some servers send it."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj()
        self._begun = False

    def decode(self, data: bytes) -> bytes:
        if not self._begun and data:
            self._begun = True
            try:
                return self._inflate.decompress(data)
            except zlib.error:
                self._inflate = zlib.decompressobj(-_WINDOW)
        return self._inflate.decompress(data)
