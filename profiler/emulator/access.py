"""Who may ask the emulator's own endpoints: those that show or change its state. Pure.

A web page can have its own host's name lead to 127.0.0.1 (DNS rebinding): then the browser lets it read
what a server of this machine answers. The page cannot change the `Host` that its browser sends, so the own
endpoints answer only under names that no stranger can have. The model APIs and the tools answer everybody.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from profiler.errors import UsageError

_AUTHORITY = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)\.?(?::[0-9]{0,5})?")
_MOST_HOST = 255
_ORIGIN = re.compile(rb"https?://(.+)", re.IGNORECASE)
_ABSOLUTE = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)(.*)", re.DOTALL)
_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_MOST_SHOWN = 80


class Refusal(NamedTuple):
    """Why a request is not answered: an HTTP status and the reason in words."""

    status: int
    words: str


def allowed_host(name: str) -> str:
    """A value of `--allow-host` in the form that `refusal` compares; raises `UsageError`."""
    bare = name.strip().removesuffix(".")
    if bare.startswith("[") and bare.endswith("]"):
        bare = bare[1:-1]
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        pass
    try:
        plain = bare.encode("idna").decode().lower()
    except UnicodeError:
        plain = ""
    if not _NAME.fullmatch(plain):
        raise UsageError(
            f"--allow-host {name!r} is not a host: give a name or an address alone, as in"
            " --allow-host loadtest (without scheme, port or wildcard; repeat it for several)"
        )
    return plain


def split_target(target: bytes) -> tuple[bytes | None, bytes]:
    """The authority of a request's target in absolute form (None in the usual form), and its path."""
    found = None if target[:1] == b"/" else _ABSOLUTE.fullmatch(target)
    return (None, target) if found is None else (found[1], found[2] or b"/")


EMULATOR = ("the emulator's own endpoints answer localhost alone", "profiler emulate")
"""Who is answered, in words, and the command whose `--allow-host` lets others in."""


def refusal(
    headers: Mapping[bytes, bytes],
    authority: bytes | None = None,
    allowed: Collection[str] = (),
    who: tuple[str, str] = EMULATOR,
    addresses: bool = False,
) -> Refusal | None:
    """Why the emulator's own endpoints do not answer a request with these headers; None when they do.

    `authority`: that of a target in absolute form. `allowed`: results of `allowed_host`. Headers that came
    several times are expected to be joined by commas, which no host has. A request without any host, as an
    old client may send, names nobody who could be a stranger. `who` is for the words. `addresses`: under an
    IP address of whatever kind everybody is answered, since no name leads there.
    """
    for given in (authority, headers.get(b"host")):
        if given is None:
            continue
        host = _host(given)
        if host is None:
            return Refusal(400, f"the Host {_shown(given)} is not one host with or without a port")
        if not (_is_known(host, allowed) or (addresses and _is_address(host))):
            return _foreign(f"the Host {_shown(given)}", host, who)
    origin = headers.get(b"origin")
    if origin is not None:
        found = _ORIGIN.fullmatch(origin)
        host = None if found is None else _host(found[1])
        if host is None or not _is_known(host, allowed):
            return _foreign(f"the Origin {_shown(origin)}", host, who)
    elif headers.get(b"sec-fetch-site") == b"cross-site" and headers.get(b"sec-fetch-mode") != b"navigate":
        # What a page of another site embeds (an image, a script) has no Origin. Links may be followed.
        return Refusal(403, "a page of another site asks (Sec-Fetch-Site: cross-site)")
    return None


def _foreign(what: str, host: str | None, who: tuple[str, str]) -> Refusal:
    answered, command = who
    remedy = "" if host is None else f"; `{command} --allow-host {host}` lets it in"
    return Refusal(403, f"{what} is not this machine's: {answered}{remedy}")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _host(authority: bytes) -> str | None:
    """The host of `host` or `host:port` in the form that compares; None when it is neither."""
    found = _AUTHORITY.fullmatch(authority)  # without the dot at its end: the root of all names
    if found is None or len(found[1]) > _MOST_HOST:
        return None
    host = found[1].decode().lower()
    if host.startswith("["):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            return None
    return host


def _is_known(host: str, allowed: Collection[str]) -> bool:
    if host == "localhost" or host.endswith(".localhost") or host in allowed:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address.is_loopback or (mapped is not None and (mapped.is_loopback or str(mapped) in allowed))


def _shown(value: bytes) -> str:
    text = value.decode("latin-1")
    return repr(text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "…")
