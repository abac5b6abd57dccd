"""From the bytes of an OTLP request to the message in them, within bounds, and the answers. Pure.

What is not understood is a `Refused`, with the words for its sender. Protobuf is read where the package
`opentelemetry-proto` is installed (the `otel` extra); the few fields of an answer are written by hand, so
that who sends protobuf in vain is told why, too.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import orjson
import zstandard

Encoding = Literal["protobuf", "json"]

MOST_UNPACKED = 128_000_000
"""Bytes of a request once unpacked: some thousand bytes can say that they are gigabytes."""

PROTOBUF_MISSING = "protobuf needs the otel extra: pip install 'toolcall-profiler[otel]'"

CONTENT_TYPES: dict[Encoding, bytes] = {"protobuf": b"application/x-protobuf", "json": b"application/json"}
_ENCODINGS: dict[bytes, Encoding] = {
    b"application/x-protobuf": "protobuf",
    b"application/protobuf": "protobuf",
    b"application/json": "json",
}
_REMOTE = 0x300
"""Bits of `Span.flags` that say that the parent is in another process."""
_ZSTD_WINDOW = 2**27
_INVALID_ARGUMENT, _UNAVAILABLE, _RESOURCE_EXHAUSTED = 3, 14, 8
_CODES = {503: _UNAVAILABLE, 413: _RESOURCE_EXHAUSTED}


class Refused(Exception):
    """A request that is not taken: an HTTP status, and why in words."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status, self.words = status, words


def encoding_of(headers: Mapping[bytes, bytes]) -> Encoding | None:
    """The encoding that a request's content type names; None for any other."""
    return _ENCODINGS.get(headers.get(b"content-type", b"").partition(b";")[0].strip().lower())


def unpacked_body(headers: Mapping[bytes, bytes], body: bytes, most: int = MOST_UNPACKED) -> bytes:
    """The body without its content encoding. Raises `Refused`."""
    given = headers.get(b"content-encoding", b"").strip().lower()
    if given in (b"", b"identity"):
        return body
    shown = given.decode("latin-1")
    unpack = _UNPACKERS.get(given)
    if unpack is None:
        raise Refused(415, f"Content-Encoding {shown[:40]!r} is not read: send gzip, deflate, zstd or none")
    try:
        return unpack(body, most)
    except Refused:
        raise
    except Exception as error:  # zlib's, and whatever zstandard raises
        raise Refused(400, f"the body is not {shown}: {error}") from error


def parsed(encoding: Encoding, body: bytes) -> Any:
    """The `ExportTraceServiceRequest` in a body: protobuf's message, or a JSON object. Raises `Refused`."""
    if encoding == "protobuf":
        read = protobuf_reader()
        if read is None:
            raise Refused(415, f"{PROTOBUF_MISSING}; or send application/json")
        try:
            return read(body)
        except Exception as error:  # protobuf's DecodeError, of whichever implementation
            raise Refused(400, "the body is no ExportTraceServiceRequest in protobuf") from error
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(400, f"the body is not JSON: {error}") from error
    if not isinstance(message, dict):
        raise Refused(400, "the body is no ExportTraceServiceRequest: expected a JSON object")
    return message


def protobuf_reader() -> Callable[[bytes], Any] | None:
    """The reader of protobuf messages; None where the package is not installed."""
    try:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    except ImportError:
        return None
    read: Callable[[bytes], Any] = ExportTraceServiceRequest.FromString
    return read


class Counted(NamedTuple):
    """How many spans a message holds, readable or not; and those (trace, id) whose parent is in another
    process, as far as they say so."""

    spans: int
    remote: frozenset[tuple[str, str]]


def counted(message: Any) -> Counted:
    """Counts the spans of a message. Raises `ValueError` where it is no request."""
    spans, remote = 0, []
    if isinstance(message, dict):
        try:
            for resource in message.get("resourceSpans") or message.get("resource_spans") or ():
                for scope in resource.get("scopeSpans") or resource.get("scope_spans") or ():
                    for span in scope.get("spans") or ():
                        spans += 1
                        if int(span.get("flags") or 0) & _REMOTE == _REMOTE:
                            remote.append((str(span.get("traceId")).lower(), str(span.get("spanId")).lower()))
        except (AttributeError, TypeError) as error:
            raise ValueError(str(error)) from error
    else:
        for resource in message.resource_spans:
            for scope in resource.scope_spans:
                spans += len(scope.spans)
                remote += [
                    (span.trace_id.hex(), span.span_id.hex())
                    for span in scope.spans
                    if span.flags & _REMOTE == _REMOTE
                ]
    return Counted(spans, frozenset(remote))


def accepted(encoding: Encoding, rejected: int = 0, words: str = "") -> bytes:
    """The answer to a request that was taken, but for so many spans: an empty message, as a rule."""
    if encoding == "json":
        if not rejected and not words:
            return b"{}"
        # 64-bit integers are strings in protobuf's JSON.
        partial = {"rejectedSpans": str(rejected), "errorMessage": words}
        return orjson.dumps({"partialSuccess": partial})
    if not rejected and not words:
        return b""
    partial_bytes = (b"\x08" + _varint(rejected) if rejected else b"") + _text(0x12, words)
    return b"\x0a" + _varint(len(partial_bytes)) + partial_bytes


def refusal_body(encoding: Encoding, status: int, words: str) -> bytes:
    """A `google.rpc.Status` that says why a request was not taken."""
    code = _CODES.get(status, _INVALID_ARGUMENT)
    if encoding == "json":
        return orjson.dumps({"code": code, "message": words})
    return b"\x08" + _varint(code) + _text(0x12, words)


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _text(tag: int, words: str) -> bytes:
    encoded = words.encode()
    return bytes((tag,)) + _varint(len(encoded)) + encoded if encoded else b""


def _inflated(wbits: int) -> Callable[[bytes, int], bytes]:
    def unpack(body: bytes, most: int) -> bytes:
        parts: list[bytes] = []
        left = most
        while body:
            member = zlib.decompressobj(wbits)
            part = member.decompress(body, left + 1)
            left -= len(part)
            if left < 0:
                raise _too_large(most)
            if not member.eof:
                raise ValueError("it ends too early")
            parts.append(part)
            body = member.unused_data.lstrip(b"\0")  # gzip may be padded, and have several members
        if not parts:
            raise ValueError("it is empty")
        return b"".join(parts)

    return unpack


def _deflated(body: bytes, most: int) -> bytes:
    """`deflate` is zlib's format, and what some send under its name is not."""
    try:
        return _inflated(zlib.MAX_WBITS)(body, most)
    except zlib.error:
        return _inflated(-zlib.MAX_WBITS)(body, most)


def _unzstd(body: bytes, most: int) -> bytes:
    unpacker = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    # Only this one can be bounded, and only the other one says whether all of it has come.
    with unpacker.stream_reader(body, read_across_frames=True) as reader:
        if len(reader.read(most + 1)) > most:
            raise _too_large(most)
    parts: list[bytes] = []
    while body or not parts:
        frame = unpacker.decompressobj()
        parts.append(frame.decompress(body))
        if not frame.eof:
            raise ValueError("it ends too early")
        body = frame.unused_data
    return b"".join(parts)


def _too_large(most: int) -> Refused:
    return Refused(413, f"the body has more than {most:,} bytes once unpacked: send smaller batches")


_UNPACKERS: dict[bytes, Callable[[bytes, int], bytes]] = {
    b"gzip": _inflated(zlib.MAX_WBITS | 16),
    b"x-gzip": _inflated(zlib.MAX_WBITS | 16),
    b"deflate": _deflated,
    b"zstd": _unzstd,
}
