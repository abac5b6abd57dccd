"""Content-Encodings that are undone for who reads along."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard

from profiler.proxy.coding import decoder

TEXT = b'data: {"choices":[{"delta":{"content":"word"}}]}\n\n' * 300


def bare_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        (b"gzip", gzip.compress),
        (b"X-GZIP", gzip.compress),
        (b"gzip", lambda data: gzip.compress(data[:7000]) + gzip.compress(data[7000:])),
        (b"deflate", zlib.compress),
        (b"deflate", bare_deflate),
        (b"br", brotli.compress),
        (b"zstd", zstandard.ZstdCompressor().compress),
        (b"identity", bytes),
        (b"gzip, br", lambda data: brotli.compress(gzip.compress(data))),
    ],
)
def test_decoder_undoes_an_encoding_piece_by_piece(name: bytes, packed: Callable[[bytes], bytes]) -> None:
    decode = decoder(name)
    assert decode is not None
    data = packed(TEXT)
    assert b"".join(decode(data[at : at + 13]) for at in range(0, len(data), 13)) == TEXT


def test_decoder_gives_what_a_stream_has_flushed_so_far() -> None:
    packer = zlib.compressobj(wbits=31)
    decode = decoder(b"gzip")
    assert decode is not None
    for number in range(5):
        event = b"data: %d\n\n" % number
        assert decode(packer.compress(event) + packer.flush(zlib.Z_SYNC_FLUSH)) == event


def test_decoder_knows_what_it_cannot_read() -> None:
    assert decoder(b"compress") is None
    assert decoder(b"gzip, aes128gcm") is None


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        (b"gzip", gzip.compress),
        (b"deflate", zlib.compress),
        (b"deflate", bare_deflate),
        (b"br", lambda data: brotli.compress(data, quality=2)),
        (b"zstd", zstandard.ZstdCompressor().compress),
        (b"gzip, gzip", lambda data: gzip.compress(gzip.compress(data))),
    ],
)
def test_decoder_refuses_what_unpacks_to_too_much_before_it_is_there(
    name: bytes, packed: Callable[[bytes], bytes]
) -> None:
    data = packed(bytes(50_000_000))
    decode = decoder(name, most=100_000)
    assert decode is not None
    tracemalloc.start()
    with pytest.raises(ValueError, match="too large"):
        decode(data)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 20_000_000


def test_decoder_takes_as_much_as_it_may() -> None:
    for name, packed in ((b"gzip", gzip.compress), (b"br", brotli.compress), (b"identity", bytes)):
        decode = decoder(name, most=len(TEXT))
        assert decode is not None
        assert decode(packed(TEXT)) == TEXT


def test_decoder_raises_for_what_is_not_so_encoded() -> None:
    decode = decoder(b"gzip")
    assert decode is not None
    with pytest.raises(zlib.error):
        decode(b"no gzip")
