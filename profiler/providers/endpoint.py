"""Where a server is: its root URL, whether it is this machine, and how to connect to it."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from profiler.errors import UsageError

MAX_CONNECTIONS = 100_000
"""So many that the client's connection pool never queues a request (and falsifies its latency)."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server's root URL, without a trailing slash or `/v1`."""

    root: str

    @classmethod
    def parse(cls, url: str, source: str = "") -> Endpoint:
        """From a root URL or one that ends in `/v1`. `source`: the option, for errors (`UsageError`)."""
        expected = "expected http://HOST[:PORT] or https://HOST[:PORT]"
        said = f"{source}: " if source else ""
        # What comes before an @, or after a ?, may be a secret: it is not repeated.
        shown = re.split(r"[?#]", url.rpartition("@")[2])[0]
        try:
            parts = urlsplit(url)
            parts.port  # noqa: B018 (raises ValueError)
        except ValueError:
            raise UsageError(f"{said}not a base URL: {shown!r}: {expected}") from None
        spoilt = any(character <= " " for character in url)
        if parts.scheme not in ("http", "https") or not parts.hostname or spoilt:
            raise UsageError(f"{said}not a base URL: {shown!r}: {expected}")
        if "@" in parts.netloc:
            raise UsageError(
                f"{said}the base URL of {parts.hostname} holds credentials: pass the key by environment"
            )
        if parts.query or parts.fragment:
            raise UsageError(f"{said}the base URL of {parts.hostname} has a query: {expected}")
        return cls(url.rstrip("/").removesuffix("/v1").rstrip("/"))

    @property
    def openai_base(self) -> str:
        return f"{self.root}/v1"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.root)
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.address[0])


def client_options(endpoint: Endpoint | None) -> dict[str, Any]:
    """Options of `DefaultAioHttpClient` for this endpoint: no queueing for a pooled connection.

    Requests to this machine never go through a proxy that the environment names.
    """
    import httpx2

    options: dict[str, Any] = {
        "limits": httpx2.Limits(
            max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS, keepalive_expiry=30.0
        )
    }
    if endpoint is not None and endpoint.is_loopback:
        options["trust_env"] = False
        if endpoint.root.startswith("https"):
            # trust_env is what made the client read SSL_CERT_FILE.
            options["verify"] = ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE"))
    return options


def emulator_key(endpoint: Endpoint | None, variable: str) -> str | None:
    """A placeholder key for a server on this machine when the environment holds none."""
    if endpoint is not None and endpoint.is_loopback and not os.environ.get(variable):
        return "no-key-needed"
    return None


# Which addresses are this machine's alone. Pure: no name is looked up.

LOOPBACK = "127.0.0.1"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on this address; of names, localhost alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def exposed(what: str, host: str, port: int) -> str | None:
    """What to say where something listens for other machines too; None where it does not."""
    if is_loopback(host):
        return None
    shown = f"[{host}]" if ":" in host else host
    return f"{what} listens on {shown or 'all addresses'}:{port}: other machines can reach it, without a key"


def scrape_host(host: str) -> str:
    """Where this machine reaches what listens on `host`."""
    return LOOPBACK if host in ("", "0.0.0.0") else f"[{host}]" if ":" in host else host
