"""Addresses of servers: root URLs, whether they are on this machine, how to connect. Looks up no name."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

from profiler.errors import UsageError
from profiler.redaction import REDACTED

MAX_CONNECTIONS = 100_000
"""So many that a client's connection pool never queues a request, which would falsify its latency."""

LOOPBACK = "127.0.0.1"

NO_KEY = "no-key-needed"
"""A key for servers on this machine, when the environment holds none."""

KEY_VARIABLES = (
    "OPENAI_API_KEY",
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "AZURE_OPENAI_API_KEY",
    "AZURE_OPENAI_AD_TOKEN",
    "ANTHROPIC_FOUNDRY_API_KEY",
)
"""Environment variables in which the SDKs look for a key."""

KEY_HEADERS = ("authorization", "x-api-key", "api-key")
"""Headers that carry a key, in lower case."""

REQUIRED_FIELDS = ("model", "messages", "input", "tools", "stream", "max_tokens")
"""Fields of a request that a loop cannot do without, or that have options of their own."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server's root URL, without a trailing slash or `/v1`."""

    root: str

    @classmethod
    def parse(cls, url: str, source: str = "") -> Endpoint:
        """Parse a root URL or one that ends in `/v1`. Raises `UsageError`, naming the option `source`."""
        expected = "expected http://HOST[:PORT] or https://HOST[:PORT]"
        said = f"{source}: " if source else ""
        # The part before an @, or after a ?, may be a secret: the message does not repeat it.
        shown = re.split(r"[?#]", url.rpartition("@")[2])[0]
        try:
            parts = urlsplit(url)
            parts.port  # noqa: B018 (raises ValueError)
        except ValueError:
            parts = urlsplit("")
        has_blanks = any(character <= " " for character in url)
        if parts.scheme not in ("http", "https") or not parts.hostname or has_blanks:
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
    """Options of `DefaultAioHttpClient` for this endpoint, without a queue for pooled connections.

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
            # Without trust_env the client no longer reads SSL_CERT_FILE itself.
            options["verify"] = ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE"))
    return options


def shown_url(url: str) -> str:
    """A URL as it may be printed and stored: without credentials, and its query without values."""
    parts = urlsplit(url)
    query = "&".join(
        f"{quote(name)}={REDACTED}" for name, _ in parse_qsl(parts.query, keep_blank_values=True)
    )
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))


def emulator_key(endpoint: Endpoint | None, variable: str) -> str | None:
    """A placeholder key for a server on this machine when the environment holds none."""
    if endpoint is not None and endpoint.is_loopback and not os.environ.get(variable):
        return NO_KEY
    return None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address; the only name that counts is `localhost`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def exposed(what: str, host: str, port: int) -> str | None:
    """A warning when something listens for other machines too, None when it does not."""
    if is_loopback(host):
        return None
    shown = f"[{host}]" if ":" in host else host
    return f"{what} listens on {shown or 'all addresses'}:{port}: other machines can reach it, without a key"


def scrape_host(host: str) -> str:
    """The address at which this machine reaches a server that listens on `host`."""
    return LOOPBACK if host in ("", "0.0.0.0") else f"[{host}]" if ":" in host else host
