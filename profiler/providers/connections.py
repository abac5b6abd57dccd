"""What became of a request that got no answer: one word for records and metrics, and a sentence for people.

The HTTP libraries name the same event in different ways, and the SDKs' aiohttp transport calls every failed
connection a connect timeout. The exceptions that an error was raised from tell what really happened.
"""

from __future__ import annotations

import errno
import socket
import ssl
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import httpx2

_RESET = frozenset((errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ESHUTDOWN))
_CERTIFICATE_ALERTS = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "HANDSHAKE_FAILURE")
"""In the reasons of TLS alerts: a server's answer to a client's certificate, or to none."""

_NO_TLS = frozenset(("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL"))

_MOST_LINKS = 32


MOST_BYTES = 32 * 2**20
"""Decoded bytes of one reply that are read: more than any model answers with, and little enough to hold."""


class LoopIsOver(httpx2.TransportError):
    """A loop that was left to itself, since it did not end when it was cancelled, asks on."""


class LeavesThisMachine(httpx2.TransportError):
    """A server on this machine redirects to another one."""


class TooLarge(httpx2.TransportError):
    """A reply is larger than `MOST_BYTES`: it does not end, or a small body unpacks to it."""

    def __init__(self) -> None:
        super().__init__(f"its answer is longer than {MOST_BYTES // 2**20} MiB, and was not read on")


class _Bounded:
    """A decoder of a response that gives `MOST_BYTES` at most. Its pieces are small, so it stops soon."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._left = MOST_BYTES

    def decode(self, data: bytes) -> Iterator[bytes]:
        return self._counted(self._inner.decode(data))

    def flush(self) -> Iterator[bytes]:
        return self._counted(self._inner.flush())

    def _counted(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self._left -= len(piece)
            if self._left < 0:
                raise TooLarge
            yield piece


async def bound_reply(response: Any) -> None:
    """A hook on the responses of a client: reading more than `MOST_BYTES` of one raises `TooLarge`.

    httpx2 decodes a body in pieces of 1 MiB at most, and has no public place to count them.
    """
    response._decoder = _Bounded(response._get_content_decoder())


def decoder_of(headers: Any) -> Any:
    """What decodes a body as its content-encoding says: `decode(data)` piece by piece, `flush()` at its end.

    Both give pieces, and raise `httpx2.DecodingError`, or `TooLarge`.
    """
    return _Bounded(httpx2.Response(200, headers=headers)._get_content_decoder())


def decoded(headers: Any, body: bytes) -> bytes:
    """A body as its content-encoding says. Raises as `decoder_of`."""
    decoder = decoder_of(headers)
    return b"".join((*decoder.decode(body), *decoder.flush()))


def transport_error_type(error: BaseException | None) -> str:
    """`refused`, `unresolved`, `untrusted`, `reset`, `timeout`, else `connection`: how a connection failed.

    `untrusted`: one side did not accept the other's certificate, or missed one. And for what came instead
    of an answer: `not_http` (its headers, lengths or chunks are none, or more than the client reads),
    `undecodable` (not what its content-encoding says), `too_large` (`MOST_BYTES`). `cancelled` for no error
    or one that is no `Exception`, and the class name of an error that is no transport's.
    """
    return _judged(error)[0]


def transport_words(
    error: BaseException | None, host: str, timeouts: Mapping[str, float | None] | None = None
) -> str:
    """What happened, in words, and what to do about it where that follows. `host` is the one that was asked.

    `timeouts`: the request's, in seconds, by what they limit (`connect`, `read`).
    """
    kind, link = _judged(error)
    timeouts = timeouts or {}
    proxy = any(isinstance(one, httpx2.ProxyError) or "Proxy" in type(one).__name__ for one in _links(error))
    if kind == "refused":
        who = "the proxy" if proxy else host
        return f"{who} refused the connection: nothing listens at this address and port"
    if kind == "unresolved":
        why = getattr(link, "strerror", None) or "unknown name"
        return f"the name {host} could not be resolved to an address ({why})"
    if kind == "untrusted" and isinstance(link, ssl.SSLCertVerificationError):
        told = (getattr(one, "verify_message", "") for one in _links(error))  # aiohttp's own has none
        why = next(filter(None, told), "it could not be verified").rstrip(".")
        if "mismatch" in why.lower() or "not valid for" in why:
            return f"the certificate of {host} is not trusted: {why}"
        trust = (
            "" if "expired" in why or "not yet valid" in why else "; --ca FILE trusts an issuer of your own"
        )
        return f"the certificate of {host} is not trusted: {why}{trust}"
    if kind == "untrusted":
        why = getattr(link, "reason", None) or "TLS alert"
        return f"{host} did not accept this client's certificate, or wants one: --client-cert FILE ({why})"
    if kind == "reset":
        begun = any("payload" in str(one).lower() or "message body" in str(one) for one in _links(error))
        when = "in the middle of its answer" if begun else "before it had answered"
        return f"{host} closed the connection {when}"
    if kind == "timeout":
        connecting = any(_is_named(one, "Connect") for one in _links(error))
        limit = timeouts.get("connect" if connecting else "read")
        within = "" if limit is None else f" within {limit:g} s"
        return f"no connection to {host}{within}" if connecting else f"nothing came from {host}{within}"
    if isinstance(link, ssl.SSLError):
        reason = link.reason
        if reason in _NO_TLS:
            return f"{host} does not speak TLS at this port ({reason}): is it http://?"
        return f"TLS with {host} failed: {reason}"
    if kind == "too_large":
        return f"{host}: {link}"
    if kind == "undecodable":
        return f"the answer of {host} is not what its content-encoding says: {link}"
    if (said := _unreadable_answer(error)) is not None:
        return f"the answer of {host} cannot be read: {said}"
    if isinstance(link, LeavesThisMachine):
        return str(link)
    if kind == "connection":
        return f"the connection to {host} failed: {_said(error)}"
    return _said(error)


def _unreadable_answer(error: BaseException | None) -> str | None:
    """Why an answer that is no HTTP cannot be read. (aiohttp adds a status of 400, which nobody sent.)"""
    for link in _links(error):
        module = type(link).__module__
        if module.startswith("aiohttp.") and type(link).__name__ == "ClientResponseError":
            return plain_words(str(getattr(link, "message", "")))[:300]
        if isinstance(link, httpx2.RemoteProtocolError):
            return plain_words(str(link))[:300]
    return None


def plain_words(text: str) -> str:
    """A text of somebody else's as it may be printed: no line breaks, and nothing that steers a terminal."""
    return " ".join("".join(one if one.isprintable() else " " for one in text).split())


def _said(error: BaseException | None) -> str:
    """The innermost words of an error and of those it was raised from."""
    for link in reversed(list(_links(error))):
        said = plain_words(getattr(link, "strerror", None) or str(link))
        if said:
            return said[:300]
    return type(error).__name__


def _judged(error: BaseException | None) -> tuple[str, BaseException | None]:
    """The kind, and the exception that told it."""
    for link in _links(error):
        kind = _kind(link)
        if kind is not None:
            return kind, link
    for link in _links(error):
        if _is_no_http(link):
            return "not_http", link
    # Not imported: without it, or while another thread imports it, nothing can have raised its error.
    aiohttp_error = getattr(sys.modules.get("aiohttp"), "ClientError", None)
    if isinstance(error, httpx2.TimeoutException):
        return "timeout", error
    if isinstance(error, httpx2.ReadError | httpx2.WriteError | httpx2.CloseError):
        return "reset", error
    if isinstance(error, httpx2.TransportError | OSError) or (
        aiohttp_error is not None and isinstance(error, aiohttp_error)
    ):
        return "connection", error
    return (type(error).__name__ if isinstance(error, Exception) else "cancelled"), error


def _kind(link: BaseException) -> str | None:
    """What this exception alone tells."""
    if isinstance(link, ssl.SSLError):
        if isinstance(link, ssl.SSLCertVerificationError):
            return "untrusted"
        if isinstance(link, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return "reset"
        reason = getattr(link, "reason", None)
        if reason is None:  # aiohttp's own, raised from one that has it
            return None
        alert = "ALERT" in reason and any(part in reason for part in _CERTIFICATE_ALERTS)
        return "untrusted" if alert else "connection"
    name = type(link).__name__
    if isinstance(link, socket.gaierror) or name == "ClientConnectorDNSError":
        return "unresolved"
    if isinstance(link, TooLarge):
        return "too_large"
    if isinstance(link, httpx2.DecodingError):
        return "undecodable"
    if isinstance(link, TimeoutError):
        return "timeout"
    code = getattr(link, "errno", None)
    if isinstance(link, OSError) and code == errno.ECONNREFUSED:
        return "refused"
    if isinstance(link, OSError) and (code in _RESET or isinstance(link, ConnectionResetError)):
        return "reset"
    if isinstance(link, BrokenPipeError | ConnectionAbortedError):
        return "reset"
    if name in ("ServerDisconnectedError", "ClientPayloadError", "BrokenResourceError", "EndOfStream"):
        return "reset"
    if name == "RemoteProtocolError" and ("disconnected" in str(link) or "peer closed" in str(link)):
        return "reset"
    return None


def _is_no_http(link: BaseException) -> bool:
    """Whether it is of an HTTP library's parser (aiohttp's, httpx2's)."""
    if isinstance(link, httpx2.RemoteProtocolError):
        return True
    module, name = type(link).__module__, type(link).__name__
    parsed = module.startswith("aiohttp.http_exceptions") or name in ("ClientResponseError", "InvalidHeader")
    return parsed and module.startswith("aiohttp.")


def _is_named(link: BaseException, part: str) -> bool:
    return isinstance(link, TimeoutError | httpx2.TimeoutException) and part in type(link).__name__


def _links(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that it was raised from, of a group the first; an aiohttp error's own one too."""
    seen: list[Any] = []
    link = error
    while link is not None and len(seen) < _MOST_LINKS and not any(link is one for one in seen):
        seen.append(link)
        yield link
        if isinstance(link, BaseExceptionGroup):
            link = link.exceptions[0]
        else:
            link = link.__cause__ or link.__context__
