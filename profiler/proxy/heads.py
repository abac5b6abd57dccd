"""Heads of requests and responses, as a proxy passes them on: names, order, repeats stay as they came. Pure.

What concerns one connection alone (RFC 9110, 7.6.1) is left out, and said anew where it is needed: the
connection to the client and the one to the upstream end, and frame their bodies, as each needs it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence

import orjson

from profiler.proxy.seen import Exchange, Headers
from profiler.redaction import SHORTEST

Raw = Sequence[tuple[bytes, bytes]]
"""Header lines, as they came."""

_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    )
)
_LOOKED_AT = _HOP | {b"host", b"content-length", b"origin", b"sec-fetch-site", b"anthropic-version"}
_USUAL = frozenset((b"keep-alive", b"close", b"te", b"upgrade", b"http2-settings"))

WEBSOCKET = b"websocket"


class RequestHead:
    """The head of a request. `lines` are those that go on; at `host_at` in them belongs the Host.

    `host` is None without one (several are joined by commas). `chunked` and `length` tell of its body; with
    neither there is none. `upgrade` in lower case. `asks`: what tells who asks, for `access.refusal`.
    """

    __slots__ = (
        "anthropic",
        "asks",
        "chunked",
        "coding",
        "headers",
        "host",
        "host_at",
        "length",
        "lines",
        "method",
        "target",
        "trailers",
        "upgrade",
    )

    def __init__(self, method: bytes, target: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.host: bytes | None = None
        self.host_at = 0
        self.coding = b""
        self.chunked = False
        self.length: int | None = None
        self.upgrade: bytes | None = None
        self.trailers = False
        self.anthropic = False
        self.asks: dict[bytes, bytes] | None = None
        lines: list[bytes] = []
        connection = b""
        for name, value in headers:
            lower = name.lower()
            if lower in _LOOKED_AT:
                if lower == b"host":
                    if self.host is None:
                        self.host, self.host_at = value, len(lines)
                    else:
                        self.host += b", " + value
                    continue
                if lower == b"content-length":
                    self.length = int(value)
                elif lower == b"anthropic-version":
                    self.anthropic = True
                elif lower in (b"origin", b"sec-fetch-site"):
                    self.asks = self.asks or {}
                    self.asks[lower] = value if lower not in self.asks else self.asks[lower] + b", " + value
                else:
                    if lower == b"connection":
                        connection += b"," + value
                    elif lower == b"transfer-encoding":
                        self.chunked = True
                        self.coding += b", " + value if self.coding else value
                    elif lower == b"upgrade":
                        self.upgrade = value.strip().lower()
                    elif lower == b"te":
                        self.trailers = b"trailers" in value.lower()
                    continue
            lines.append(b"%b: %b\r\n" % (name, value))
        named = _named(connection)
        if named:
            kept = [line.partition(b":")[0].lower() not in named for line in lines]
            self.host_at = sum(kept[: self.host_at])
            lines = [line for line, keep in zip(lines, kept, strict=True) if keep]
        self.lines = lines

    def forwarded(self, target: bytes, authority: bytes, more: bytes = b"") -> bytes:
        """As it goes to the upstream; `more` are lines for the proxy that it goes through."""
        lines = self.lines
        at = self.host_at
        if self.chunked:
            more += b"Transfer-Encoding: %b\r\n" % self.coding
        if self.upgrade == WEBSOCKET:
            more += b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
        elif self.trailers:
            more += b"Connection: TE\r\nTE: trailers\r\n"
        return b"%b %b HTTP/1.1\r\n%bHost: %b\r\n%b%b\r\n" % (
            self.method,
            target,
            b"".join(lines[:at]),
            authority,
            b"".join(lines[at:]),
            more,
        )

    def without_upgrade(self, version: bytes) -> bytes:
        """The same request without the wish for another protocol, to be parsed once more."""
        lines = [
            b"%b: %b\r\n" % (name, value)
            for name, value in self.headers
            if name.lower() not in (b"upgrade", b"http2-settings")
        ]
        return b"%b %b HTTP/%b\r\n%b\r\n" % (self.method, self.target, version, b"".join(lines))


class ResponseHead:
    """The head of a response, read. `lines` are those that go on, a Location as `location` turns it.

    `coding`: its transfer codings, empty for none. `to_the_end`: nothing frames its body, if it has one, but
    the end of the connection.
    """

    __slots__ = ("coding", "keep_alive_seconds", "length", "lines", "to_the_end")

    def __init__(self, headers: Raw, location: Callable[[bytes], bytes]) -> None:
        self.coding = b""
        self.length: int | None = None
        self.keep_alive_seconds: float | None = None
        lines: list[bytes] = []
        connection = b""
        for name, value in headers:
            lower = name.lower()
            if lower in _HOP:
                if lower == b"connection":
                    connection += b"," + value
                elif lower == b"transfer-encoding":
                    self.coding += b", " + value if self.coding else value
                elif lower == b"keep-alive":
                    self.keep_alive_seconds = _timeout(value)
                continue
            if lower == b"content-length":
                self.length = int(value)
            elif lower == b"location":
                lines.append(b"%b: %b\r\n" % (name, location(value)))
                continue
            lines.append(b"%b: %b\r\n" % (name, value))
        named = _named(connection)
        if named:
            lines = [line for line in lines if line.partition(b":")[0].lower() not in named]
        if self.coding and self.length is not None:
            # The framing in chunks counts (RFC 9112, 6.3), and both together must not go on.
            lines = [line for line in lines if line[:15].lower() != b"content-length:"]
            self.length = None
        self.to_the_end = self.length is None and not self.coding
        if self.coding:
            codings = [
                one for part in self.coding.split(b",") if (one := part.strip().lower()) != b"identity"
            ]
            if codings[-1:] != [b"chunked"]:
                # Its body is not in chunks, and goes on in some.
                self.to_the_end = True
                self.coding = b", ".join([*codings, b"chunked"])
        self.lines = lines


def trailers(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The end of a body in chunks, with these trailers."""
    lines = b"".join(
        b"%b: %b\r\n" % (name, value)
        for name, value in headers
        if name.lower() not in _HOP and name.lower() not in (b"content-length", b"host")
    )
    return b"0\r\n%b\r\n" % lines


def _named(connection: bytes) -> set[bytes]:
    """Headers that a Connection header says are of this connection alone, but for those that always are."""
    if not connection or connection.lower() in (b",keep-alive", b",close"):
        return set()
    names = {part.strip().lower() for part in connection.split(b",")} - _USUAL - {b""}
    # What frames the message, or says where it goes, is not for Connection to take away.
    return names - {b"content-length", b"host", b"content-type", b"content-encoding", b"authorization"}


def _timeout(value: bytes) -> float | None:
    for part in value.split(b","):
        name, _, seconds = part.strip().partition(b"=")
        if name.lower() == b"timeout":
            try:
                return float(seconds)
            except ValueError:
                return None
    return None


_SECRET = (b"auth", b"key", b"token", b"secret", b"cookie", b"credential", b"password", b"signature")
_BETWEEN = re.compile(rb"[\s;,=]+|\bBearer\b|\bBasic\b", re.IGNORECASE)
_names: dict[bytes, bytes] = {}
"""Names of headers in lower case; empty for those that may hold a credential. Bounded by `shown`."""


def shown(headers: Raw, secrets: Collection[bytes] = (), held: list[bytes] | None = None) -> Headers:
    """Headers without those that may hold a credential, names in lower case.

    Nor are those with one of `secrets` in them, should a server send back what it was sent. `held` is given
    the values that are left out.
    """
    told = []
    if secrets:
        whole = b"\n".join([value for _, value in headers])
        secrets = [secret for secret in secrets if secret in whole]
    for name, value in headers:
        lower = _names.get(name)
        if lower is None:
            lower = name.lower()
            if _is_secret(lower):
                lower = b""
            if len(_names) < 1000:
                _names[name] = lower
        if not lower:
            if held is not None:
                held.append(value)
        elif not secrets or not any(secret in value for secret in secrets):
            told.append((lower, value))
    return told


def tell_response(exchange: Exchange) -> None:
    """Fill in the headers of its response, as an observer may see them."""
    if exchange.raw_response:
        exchange.response_headers = shown(exchange.raw_response, exchange.secrets)
        exchange.raw_response = exchange.secrets = ()


def parts_of(values: Iterable[bytes]) -> tuple[bytes, ...]:
    """What is secret in the values of such headers: the words of each (`Bearer X`, `a=X; b=Y`)."""
    words = (word for value in values for word in _BETWEEN.split(value))
    return tuple(word for word in dict.fromkeys(words) if len(word) >= SHORTEST)


def _is_secret(lower: bytes) -> bool:
    if b"ratelimit" in lower:  # …-tokens-remaining
        return False
    return any(word in lower for word in _SECRET)


def error_body(shape: str, status: int, words: str) -> bytes:
    """A refusal of the proxy's own, as the servers of an API (`openai`, `anthropic`, `mcp`) put theirs."""
    kind = "invalid_request_error" if status < 500 else "api_error"
    if shape == "anthropic":
        return orjson.dumps({"type": "error", "error": {"type": kind, "message": words}, "request_id": None})
    if shape == "mcp":
        return orjson.dumps({"jsonrpc": "2.0", "id": None, "error": {"code": -32000, "message": words}})
    return orjson.dumps({"error": {"message": words, "type": kind, "param": None, "code": None}})
