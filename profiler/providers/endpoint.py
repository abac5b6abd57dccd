"""Addresses of servers: URLs, whether they are on this machine, how they are asked. Looks up no name."""

from __future__ import annotations

import functools
import ipaddress
import os
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

from profiler.errors import UsageError
from profiler.redaction.keys import REDACTED

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

LOOPS_OWN = {
    "model": "--model",
    "stream": "--stream",
    "tools": "what the scenario has",
    "messages": "what the loop writes",
    "input": "what the loop writes",
}
"""Fields of a request that are a loop's own, and what decides them."""

_NO_HOST = re.compile(r"[\\%<>{}|^`\"]")
"""Not in a host's name: a place that was left to be filled in, or a backslash for a slash."""

_UNPRINTED = re.compile(r"[\x00-\x20\x7f]")

_APIS = ("/chat/completions", "/responses", "/messages")
"""Ends of URLs that people copy with the path of a request."""


@dataclass(frozen=True, slots=True)
class Tls:
    """How a server proves who it is, and how this client does; paths of PEM files.

    `ca`: trusted beside the system's (or those of SSL_CERT_FILE). `certificate` and `key` are the client's,
    which may be in one file. `insecure`: whoever answers is trusted.
    """

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    insecure: bool = False

    def context(self) -> ssl.SSLContext:
        """For the connections of a client. Raises `UsageError` naming a file that cannot be used."""
        import httpx2

        context = httpx2.create_ssl_context(verify=not self.insecure)
        if self.ca is not None:
            try:
                context.load_verify_locations(self.ca)
            except (OSError, ValueError) as error:
                raise UsageError(f"--ca {self.ca}: {_unread(error)}") from error
        if self.certificate is not None:
            key = f" with --client-key {self.key}" if self.key else ""
            try:
                context.load_cert_chain(self.certificate, self.key, password=_no_password)
            except (OSError, ValueError) as error:
                raise UsageError(f"--client-cert {self.certificate}{key}: {_unread(error)}") from error
        return context


def check_trusted(environment: Mapping[str, str]) -> None:
    """Raises `UsageError` for certificates to trust that the environment names and that cannot be used.

    The HTTP libraries read them for every client, also for one that will ask without TLS, and fail in words
    that name no file. `SSL_CERT_DIR` counts where `SSL_CERT_FILE` is not set.
    """
    remedy = "name another, or unset it"
    if file := environment.get("SSL_CERT_FILE"):
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
        except (OSError, ValueError) as error:
            raise UsageError(f"SSL_CERT_FILE {file}: {_unread(error)}: {remedy}") from error
        return
    directories = environment.get("SSL_CERT_DIR")
    if directories and not any(os.path.isdir(part) for part in directories.split(os.pathsep)):
        raise UsageError(f"SSL_CERT_DIR {directories}: no such directory: {remedy}")


def _no_password() -> str:
    """Instead of OpenSSL's question at the terminal."""
    raise ValueError("the key is encrypted: write it without a password")


def _unread(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        if error.reason == "KEY_VALUES_MISMATCH":
            return "the key is that of another certificate"
        why = f" ({error.reason})" if error.reason else ""
        return f"no PEM file of the kind that is needed{why}"
    return getattr(error, "strerror", None) or str(error)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A model server, and how it is asked. `url` has no query and no trailing slash.

    A URL with a path of its own is taken as it is; to a bare root OpenAI's APIs are at `/v1`. Anthropic's SDK
    puts `/v1/messages` behind any URL, which may end in `/v1` here. `query` and `headers` go with every
    request; neither is shown anywhere.
    """

    url: str
    query: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    tls: Tls = Tls()

    @classmethod
    def parse(cls, url: str, source: str = "") -> Endpoint:
        """Parse a base URL. Raises `UsageError`, naming the option `source`."""
        expected = (
            "expected http://HOST[:PORT] or https://HOST[:PORT], with a path where the server needs one"
        )
        said = f"{source}: " if source else ""
        try:
            parts = urlsplit(url)
            parts.port  # noqa: B018 (raises ValueError)
        except ValueError:
            parts = urlsplit("")
        known = parts.scheme in ("http", "https") and bool(parts.hostname)
        if not known or _UNPRINTED.search(url) or not _can_be_asked(url, parts.hostname or ""):
            raise UsageError(f"{said}not a base URL: {_without_secrets(url)!r}: {expected}")
        if "@" in parts.netloc:
            raise UsageError(
                f"{said}the base URL of {parts.hostname} holds credentials: pass the key by environment"
            )
        if parts.fragment:
            raise UsageError(f"{said}the base URL of {parts.hostname} has a fragment (#…): {expected}")
        path = parts.path.rstrip("/")
        for api in _APIS:
            path = path.removesuffix(api).rstrip("/")
        query = tuple(parse_qsl(parts.query, keep_blank_values=True))
        return cls(f"{parts.scheme}://{parts.netloc}{path}", query)

    @property
    def root(self) -> str:
        """The URL without a `/v1` at its end: Anthropic's SDK takes it, and an emulator's tools are there."""
        return self.url.removesuffix("/v1").rstrip("/")

    @property
    def is_bare(self) -> bool:
        """Whether it has no path, but for `/v1`: an emulator of ours is nowhere else."""
        return not urlsplit(self.root).path

    @property
    def openai_base(self) -> str:
        """What OpenAI's SDK takes."""
        return self.url if urlsplit(self.url).path else f"{self.url}/v1"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.address[0])

    @property
    def key_headers(self) -> frozenset[str]:
        """The names, in lower case, of its headers that carry a key."""
        return frozenset(name.lower() for name, _ in self.headers).intersection(KEY_HEADERS)


def sdk_options(endpoint: Endpoint | None, sdk: str, api_key: str | None) -> dict[str, Any]:
    """Arguments of the client of `sdk` (`openai` or `anthropic`) for this endpoint, its transport excepted.

    A key among the endpoint's headers takes the place of the one that the SDK finds in the environment, which
    `client_options` keep from being sent.
    """
    variable = "OPENAI_API_KEY" if sdk == "openai" else "ANTHROPIC_API_KEY"
    if endpoint is None:
        return {"base_url": None, "api_key": api_key}
    options: dict[str, Any] = {"base_url": endpoint.openai_base if sdk == "openai" else endpoint.root}
    if api_key is None and endpoint.key_headers:
        api_key = NO_KEY
    options["api_key"] = api_key or emulator_key(endpoint, variable)
    if endpoint.headers:
        options["default_headers"] = dict(endpoint.headers)
    return options


def client_options(endpoint: Endpoint | None) -> dict[str, Any]:
    """Options of `DefaultAioHttpClient` for this endpoint, without a queue for pooled connections.

    Requests to this machine never go through a proxy that the environment names. Raises `UsageError` for
    certificates that cannot be read.
    """
    import httpx2

    from profiler.providers.connections import bound_reply

    options: dict[str, Any] = {
        "event_hooks": {"response": [bound_reply]},
        "limits": httpx2.Limits(
            max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS, keepalive_expiry=30.0
        ),
    }
    if endpoint is not None:
        if endpoint.query:  # the SDKs' default_query has each name but once
            options["params"] = list(endpoint.query)
        options["trust_env"] = not endpoint.is_loopback
        options["verify"] = tls_context(endpoint)
        options["event_hooks"]["request"] = [_before_each_request(endpoint)]
    return options


def proxy_of(url: str, is_loopback: bool) -> str | None:
    """The proxy that the environment names for this server, never for one on this machine."""
    import urllib.request  # not at the top: it is slow, and few need it

    if is_loopback:
        return None
    parts, proxies = urlsplit(url), urllib.request.getproxies()
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if urllib.request.proxy_bypass(f"{host}:{port}") or _is_in_network(host, proxies.get("no", "")):
        return None
    return proxies.get(parts.scheme) or proxies.get("all")


def _is_in_network(host: str, no_proxy: str) -> bool:
    """Whether it is an address of one of the networks, such as 192.0.2.0/24, in a list of hosts."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    for entry in (part.strip() for part in no_proxy.split(",") if "/" in part):
        try:
            if address in ipaddress.ip_network(entry, strict=False):
                return True
        except ValueError:  # no network
            continue
    return False


def tls_context(endpoint: Endpoint) -> ssl.SSLContext:
    """For the connections to an endpoint. Raises `UsageError` for certificates that cannot be read."""
    if endpoint.url.startswith("https") and (endpoint.is_loopback or endpoint.tls != Tls()):
        # Without trust_env the client no longer reads SSL_CERT_FILE itself.
        return endpoint.tls.context()
    return _usual_context(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@functools.cache
def _usual_context(file: str | None, directories: str | None) -> ssl.SSLContext:
    """One for all clients, since each would take 20 ms to load the same certificates, without TLS too."""
    return Tls().context()


def _before_each_request(endpoint: Endpoint) -> Callable[[Any], Awaitable[None]]:
    """What is done with requests to the endpoint, and with those that its redirects lead to."""
    import httpx2

    from profiler.loop.supervision import is_left
    from profiler.providers.connections import LeavesThisMachine, LoopIsOver

    given = endpoint.key_headers
    others = [name for name in KEY_HEADERS if given and name not in given]
    secrets = (*KEY_HEADERS, *(name for name, _ in endpoint.headers))
    home = httpx2.URL(endpoint.url).host  # as requests name it, a punycoded one in letters

    async def checked(request: Any) -> None:
        if is_left():  # others run in its place: together they would be more than was asked for
            raise LoopIsOver("the loop was ended", request=request)
        elsewhere = request.url.host != home
        for name in secrets if elsewhere else others:
            request.headers.pop(name, None)
        if elsewhere and endpoint.is_loopback and not is_loopback(request.url.host):
            # Who loads a server on this machine has not agreed to load another one.
            words = "this is another machine: if it is meant, give it as --base-url"
            raise LeavesThisMachine(words, request=request)

    return checked


def shown_url(url: str) -> str:
    """A URL as it may be printed and stored: without credentials, and its query without values."""
    if not set(url).intersection("?#@"):
        return url
    try:
        parts = urlsplit(url)
    except ValueError:
        return _without_secrets(url)
    names = [quote(name) for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    query = "&".join(f"{name}={REDACTED}" for name in names)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))


def _without_secrets(url: str) -> str:
    """What may be shown of what is no URL: the part before an @, or after a ?, may be a secret."""
    shown, mark, _ = url.partition("@")[0].partition("?")
    if mark and "@" in url:  # a password with a ? in it, or a query with an @
        return f"{shown.partition('://')[0]}://…" if "://" in shown else "…"
    return re.split(r"[?#]", url.rpartition("@")[2])[0]


def _can_be_asked(url: str, host: str) -> bool:
    """Whether the HTTP libraries take the URL: each refuses one in its own way, and late."""
    import httpx2

    try:
        httpx2.URL(url)
        host.encode("idna")  # no label is empty or longer than 63 bytes
    except (httpx2.InvalidURL, UnicodeError):
        return False
    return ":" in host or not _NO_HOST.search(host)


def emulator_key(endpoint: Endpoint | None, variable: str) -> str | None:
    """A placeholder key for a server on this machine when the environment holds none."""
    if endpoint is None or not endpoint.is_loopback or os.environ.get(variable):
        return None
    # Without a key Anthropic's clients send the token.
    if variable == "ANTHROPIC_API_KEY" and os.environ.get("ANTHROPIC_AUTH_TOKEN"):
        return None
    return NO_KEY


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
