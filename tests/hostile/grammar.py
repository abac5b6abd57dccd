"""A grammar of bad replies: each kind takes the good reply to a request and spoils it."""

from __future__ import annotations

import asyncio
import functools
import gzip
import json
import random
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from tests.hostile.good import answer_of, events_of, sse

ENDLESS_SECONDS = 60.0
"""After this the server gives up on a client that reads an endless reply on and on."""

BOMB_BYTES = 100 * 2**20
"""Decoded bytes of a bomb."""

ODD_VALUES: tuple[str, ...] = (
    *("null", "true", "-1", "1e400", "NaN", "-Infinity", "1" + "0" * 400, str(2**64), str(-(2**70)), "0.5"),
    *('"many"', '""', '"\\ud800"', '"\\udfff\\u0000"', "[]", "{}", "[[]]", '[null,{"index":"first"}]'),
    *('{"error":[]}', '"' + "x" * 20_000 + '"', "[" * 2000 + "]" * 2000, '{"a":' * 1500 + "1" + "}" * 1500),
)
"""JSON that takes the place of a value somewhere in a good reply."""


ODD_HEADERS = ("soon", "-1", "9" * 400, "1e400", "NaN", "", "٣", "2026-13-45T99:99:99Z", "0.01")
"""Values of headers that are numbers or dates."""


class Request:
    """One request, and the good reply to it."""

    def __init__(self, api: str, streamed: bool, number: int, calls: int, dice: random.Random) -> None:
        self.api, self.streamed, self.number, self.calls, self.dice = api, streamed, number, calls, dice

    def body(self, change: Callable[[str], str] = lambda text: text) -> bytes:
        """The good reply, with `change` made to its JSON: the whole, or one of the events."""
        if not self.streamed:
            return change(json.dumps(answer_of(self.api, self.number, self.calls))).encode(
                "utf-8", "surrogatepass"
            )
        events = events_of(self.api, self.number, self.calls)
        chosen = self.dice.randrange(len(events))
        parts = []
        for index, (name, data) in enumerate(events):
            text = data if isinstance(data, str) else json.dumps(data)
            parts.append(sse(name, change(text) if index == chosen else text))
        return b"".join(parts)

    @property
    def content_type(self) -> str:
        return "text/event-stream" if self.streamed else "application/json"

    def head(self, *more: str | bytes, status: str = "200 OK") -> bytes:
        lines = [f"HTTP/1.1 {status}", f"content-type: {self.content_type}", *more]
        return b"\r\n".join(x.encode("latin-1") if isinstance(x, str) else x for x in lines) + b"\r\n\r\n"

    def framed(self, body: bytes, *more: str | bytes, status: str = "200 OK") -> bytes:
        """A reply with its right length."""
        return self.head(*more, f"content-length: {len(body)}", status=status) + body


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += paths_of(inner, (*path, key))
    return found


def with_odd_value(dice: random.Random, text: str, within: str = "") -> str:
    """A JSON text with an odd value in some place of it; `within`: in a field of that name, if it has one."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return dice.choice(ODD_VALUES)
    paths = [path for path in paths_of(data) if path and (not within or within in path)] or [()]
    path, odd = dice.choice(paths), dice.choice(ODD_VALUES)
    if not path:
        return odd
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = "\x01odd\x01"
    return json.dumps(data).replace(json.dumps("\x01odd\x01"), odd)


def with_odd_arguments(dice: random.Random, text: str) -> str:
    """A JSON text whose calls have odd arguments."""
    odd = dice.choice(ODD_VALUES)
    for given in (json.dumps('{"text": "t0"}'), '{"text": "t0"}'):
        text = text.replace(given, json.dumps(odd) if given[0] == '"' else odd)
    return text


# Bad ones: each is a function that says all it has to say, and returns whether the connection may go on.

Writer = asyncio.StreamWriter
Bad = Callable[[Request, Writer], AsyncIterator[bytes]]
KINDS: dict[str, Bad] = {}
ENDLESS: set[str] = set()
"""Kinds that only a timeout ends."""


def simple(name: str, make: Callable[[Request], bytes]) -> None:
    """A kind that is one write, after which the connection is closed."""

    async def bad(request: Request, writer: Writer) -> AsyncIterator[bytes]:
        yield make(request)

    KINDS[name] = bad


def endless(name: str, head: Callable[[Request], bytes], piece: bytes, pause: float) -> None:
    """A kind that never ends: `piece` again and again, `pause` seconds apart."""

    async def bad(request: Request, writer: Writer) -> AsyncIterator[bytes]:
        yield head(request)
        loop = asyncio.get_running_loop()
        until = loop.time() + ENDLESS_SECONDS
        while loop.time() < until:
            yield piece
            await asyncio.sleep(pause)

    KINDS[name] = bad
    ENDLESS.add(name)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@functools.cache
def encoded_bomb(encoding: str) -> bytes:
    """`BOMB_BYTES` of blanks, compressed."""
    if encoding == "br":
        import brotli

        return bytes(brotli.compress(b" " * BOMB_BYTES, quality=1))
    packer = zlib.compressobj(1, wbits=31 if encoding == "gzip" else 15)
    return packer.compress(b" " * BOMB_BYTES) + packer.flush()


def encodings() -> list[str]:
    try:
        import brotli  # noqa: F401
    except ImportError:
        return ["gzip", "deflate"]
    return ["gzip", "deflate", "br"]


simple("odd_value", lambda r: r.framed(r.body(lambda text: with_odd_value(r.dice, text))))
simple("odd_usage", lambda r: r.framed(r.body(lambda text: with_odd_value(r.dice, text, "usage"))))
simple(
    "odd_values",
    lambda r: r.framed(
        r.body(lambda text: with_odd_value(r.dice, with_odd_value(r.dice, with_odd_value(r.dice, text))))
    ),
)
simple("odd_arguments", lambda r: r.framed(r.body(lambda text: with_odd_arguments(r.dice, text))))
simple("invalid_utf8", lambda r: r.framed(r.body().replace(b'"', b'"\xff\xfe\xc3\x28', 9)))
simple(
    "invalid_utf8_in_text",
    lambda r: r.framed(r.body().replace(b"Answer", b"An\xc3\x28wer").replace(b"t0", b"\xff")),
)
simple("nested_deep", lambda r: r.framed(r.body(lambda text: "[" * 2000 + text + "]" * 2000)))
simple("nested_very_deep", lambda r: r.framed(r.body(lambda text: '{"a":' * 100_000 + text + "}" * 100_000)))
simple("unclosed_deep", lambda r: r.framed(r.body(lambda text: "[" * 100_000)))
simple("cut_json", lambda r: r.framed((lambda b: b[: r.dice.randrange(len(b))])(r.body())))
simple("empty", lambda r: r.framed(b""))
simple("blank", lambda r: r.framed(b" \r\n" * 40))
simple("html", lambda r: r.framed(b"<html><title>502</title><body>Bad gateway</body></html>"))
simple("scalar", lambda r: r.framed(r.dice.choice((b"null", b"[]", b"1", b'"text"', b"{}", b"true", b"NaN"))))
simple("binary", lambda r: r.framed(r.dice.randbytes(3000)))
simple("error_in_200", lambda r: r.framed(b'{"error":' + r.dice.choice(ODD_VALUES).encode() + b"}"))
simple(
    "event_of_error",
    lambda r: r.framed(r.body() + b"event: error\ndata: " + r.dice.choice(ODD_VALUES).encode() + b"\n\n"),
)
simple(
    "bytes_flipped",
    lambda r: r.framed(bytes(byte if r.dice.random() > 0.02 else r.dice.randrange(256) for byte in r.body())),
)
simple("only_returns", lambda r: r.framed(r.body().replace(b"\n", b"\r")))

simple("length_too_large", lambda r: r.head(f"content-length: {len(r.body()) + 500}") + r.body())
simple("length_too_small", lambda r: r.head(f"content-length: {max(0, len(r.body()) - 30)}") + r.body())
simple("length_in_words", lambda r: r.head("content-length: many") + r.body())
simple("length_negative", lambda r: r.head("content-length: -5") + r.body())
simple("length_twice", lambda r: r.head("content-length: 5", f"content-length: {len(r.body())}") + r.body())
simple("length_huge", lambda r: r.head("content-length: 1" + "0" * 30) + r.body())
simple("chunk_in_words", lambda r: r.head("transfer-encoding: chunked") + b"many\r\n" + r.body())
simple(
    "chunk_too_short", lambda r: r.head("transfer-encoding: chunked") + b"5\r\n" + r.body() + b"\r\n0\r\n\r\n"
)
simple("chunk_missing", lambda r: r.head("transfer-encoding: chunked") + chunk(r.body()))
simple("chunk_huge", lambda r: r.head("transfer-encoding: chunked") + b"f" * 40 + b"\r\n" + r.body())
simple(
    "both_framings",
    lambda r: r.head("transfer-encoding: chunked", "content-length: 3") + chunk(r.body()) + b"0\r\n\r\n",
)
simple("encoding_lies", lambda r: r.framed(r.body(), f"content-encoding: {r.dice.choice(encodings())}"))
simple("encoding_unknown", lambda r: r.framed(r.body(), "content-encoding: lzma, secret"))
simple("gzip_cut", lambda r: r.framed(gzip.compress(r.body())[:-12], "content-encoding: gzip"))
simple("gzip_twice", lambda r: r.framed(gzip.compress(r.body()), "content-encoding: gzip, gzip"))
simple(
    "bomb",
    lambda r: (lambda e: r.framed(encoded_bomb(e), f"content-encoding: {e}"))(r.dice.choice(encodings())),
)

simple("header_long", lambda r: r.framed(r.body(), "x-request-id: " + "a" * 9000))
simple("headers_many", lambda r: r.framed(r.body(), *(f"x-h-{k}: {k}" for k in range(300))))
simple("header_invalid", lambda r: r.framed(r.body(), b"x-request-id: \xff\xfe\xc3", b"request-id: \xf0\x28"))
simple("header_no_colon", lambda r: r.framed(r.body(), "this is no header"))
simple("header_nul", lambda r: r.framed(r.body(), b"x-request-id: a\x00b"))
simple(
    "content_type_odd",
    lambda r: r.framed(r.body()).replace(b"content-type: ", b"content-type: \xff;charset=\xff;"),
)
simple(
    "charset_unknown",
    lambda r: r.framed(r.body()).replace(
        b"\r\n\r\n", b";\r\ncontent-type: application/json; charset=klingon\r\n\r\n", 1
    ),
)
simple(
    "quota_headers_odd",
    lambda r: r.framed(
        r.body(),
        *(
            f"{name}: {r.dice.choice(ODD_HEADERS)}".encode()
            for name in (
                "x-ratelimit-limit-requests",
                "x-ratelimit-remaining-requests",
                "x-ratelimit-reset-requests",
                "anthropic-ratelimit-tokens-reset",
                "anthropic-ratelimit-tokens-limit",
                "ratelimit",
                "retry-after",
                "retry-after-ms",
                "date",
            )
        ),
    ),
)
simple(
    "refused_oddly",
    lambda r: r.framed(
        r.dice.choice(ODD_VALUES).encode(),
        "retry-after: " + r.dice.choice(("soon", "-5", "NaN", "0.01")),
        status=r.dice.choice(("429 Slow", "503 Busy", "529 Overloaded")),
    ),
)
simple(
    "status_odd",
    lambda r: r.framed(
        r.body(), status=r.dice.choice(("999 Odd", "299 Odd", "418 Teapot", "599 Odd", "700 Odd"))
    ),
)
simple("status_in_words", lambda r: r.framed(r.body(), status="fine"))
simple("status_no_content", lambda r: r.head(status="204 No Content"))
simple("status_not_modified", lambda r: r.head(status="304 Not Modified"))
simple("status_informs", lambda r: b"HTTP/1.1 103 Early Hints\r\n\r\n" * 3 + r.framed(r.body()))
simple(
    "no_http",
    lambda r: r.dice.choice(
        (b"SSH-2.0-OpenSSH_9.2\r\n", b"\x16\x03\x01\x02\x00", b"\r\n\r\n\r\n", b"HTTP/9.9 200 OK\r\n\r\n")
    ),
)
simple("redirect_nowhere", lambda r: r.framed(b"", status="302 Found"))
simple(
    "redirect_odd",
    lambda r: r.framed(
        b"",
        b"location: "
        + r.dice.choice((b"http://[::1", b"\xff\xfe", b"ftp://x/", b"http://127.0.0.1:99999/", b"//")),
        status="307 Moved",
    ),
)
simple(
    "redirect_round",
    lambda r: r.framed(
        b"", f"location: {r.dice.choice(('/v1/chat/completions', '?again'))}", status="307 Moved"
    ),
)
simple("closed", lambda r: b"")
simple("closed_after_head", lambda r: r.head("content-length: 400"))


async def _reset(request: Request, writer: Writer) -> AsyncIterator[bytes]:
    body = request.body()
    yield request.head(f"content-length: {len(body)}") + body[: len(body) // 2]
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


KINDS["reset"] = _reset

CHUNKED = "transfer-encoding: chunked"
endless("endless_body", lambda r: r.head(CHUNKED) + chunk(b'{"id": "'), chunk(b"x" * 200), 0.02)
endless("endless_blanks", lambda r: r.head(CHUNKED), chunk(b" "), 0.02)
endless("endless_comments", lambda r: r.head(CHUNKED), chunk(b": keep-alive\n\n"), 0.02)
endless("endless_pings", lambda r: r.head(CHUNKED), chunk(b'event: ping\ndata: {"type": "ping"}\n\n'), 0.02)
endless(
    "endless_events",
    lambda r: r.head(CHUNKED),
    chunk(b'data: {"choices": [{"index": 0, "delta": {"content": "x"}}]}\n\n'),
    0.02,
)
endless("endless_head", lambda r: b"HTTP/1.1 200 OK\r\n", b"x: y\r\n", 0.02)
endless("endless_hints", lambda r: b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", 0.02)
endless("endless_silence", lambda r: r.head(CHUNKED), b"", 0.5)
