"""Where a request goes: upstreams, as options name them, and the rule by which a path finds its own. Pure.

    --upstream https://api.openai.com                everything
    --upstream https://api.openai.com --upstream https://api.anthropic.com
                                                     each API's own paths, told by the hosts' names
    --upstream openai=https://gateway.example/v1 --upstream anthropic=https://gateway.example/claude
                                                     the same, the APIs named
    --upstream /azure=https://one.azure.com/openai   what is below /azure, which is taken off
    --mcp-upstream https://tools.example/mcp         /mcp, and what is below it

The longest path that fits wins. Of what no path was given for, Anthropic's own paths (`…/messages`, and what
is below) and requests with the header `anthropic-version` go to Anthropic's API, everything else to OpenAI's;
where there is only one upstream, everything goes there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from profiler.errors import UsageError
from profiler.providers.endpoint import Endpoint, is_loopback
from profiler.proxy.seen import Kind

if TYPE_CHECKING:
    from profiler.proxy.through import Through

Api = Literal["openai", "anthropic"]

_SPEC = re.compile(r"(?:(?P<name>/[^=:?#]*|[a-z]+)=)?(?P<url>.+)", re.DOTALL)
_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")
_VERSION = re.compile(rb"/v[0-9]+[a-z0-9]*")
_MESSAGES = re.compile(rb"/messages(?:/|$)|^/v1/complete$")


@dataclass(frozen=True, slots=True)
class Upstream:
    """A server that requests go to. `prefix` is the path under which the proxy has it, empty: no path.

    `path` is that of its URL, without a slash at its end. `authority` is what its Host header says. It is
    asked by the proxy that it is `through`, if any.
    """

    kind: Kind
    prefix: bytes
    api: Api
    scheme: str
    host: str
    port: int
    authority: bytes
    path: bytes
    named: bool = False  # the API is what the option said
    through: Through | None = None

    @property
    def origin(self) -> str:
        """Without its path, as it may be shown."""
        return f"{self.scheme}://{self.authority.decode()}"

    @property
    def shape(self) -> str:
        """In whose form errors are told to its clients: `openai`, `anthropic`, `mcp`."""
        return "mcp" if self.kind == "mcp" else self.api

    @property
    def url(self) -> str:
        return f"{self.origin}{self.path.decode()}"

    @property
    def shown(self) -> str:
        """Its origin, and how it is asked."""
        return self.origin if self.through is None else f"{self.origin} (through the proxy {self.through})"

    def target(self, target: bytes) -> bytes:
        """What to ask it for, where the client asked the proxy for `target` (a path, with a query or not).

        A version at the end of its own path is not said twice: clients have it in their base URLs as well.
        """
        rest = target[len(self.prefix) :]
        if self.kind == "mcp" or rest[:1] != b"/":
            return (self.path + rest) if (self.path + rest)[:1] == b"/" else b"/" + rest
        last = self.path[self.path.rfind(b"/") :] if self.path else b""
        if last and _VERSION.fullmatch(last) and (rest + b"/").startswith(last + b"/"):
            rest = rest[len(last) :]
        return self.path + rest

    def location(self, value: bytes) -> bytes:
        """A Location of its responses as the proxy's client has to ask for it; another server's as it is."""
        origin = self.origin.encode()
        if not value.startswith(origin) or value[len(origin) : len(origin) + 1] not in (b"/", b"?", b""):
            return value
        rest = value[len(origin) :]
        if self.path and not rest.startswith(self.path):
            return value
        return (self.prefix + rest[len(self.path) :]) or b"/"

    @property
    def apis(self) -> tuple[Api, ...]:
        """The APIs that its clients may speak: the one that its name says, else either."""
        if self.named or _is_anthropic(self.host, self.path.decode()) or "openai" in self.host:
            return (self.api,)
        return ("openai", "anthropic")

    def base_url(self, root: str, api: Api = "openai") -> str:
        """What the SDK of an API takes as its base URL, where the proxy is at `root`."""
        base = root + self.prefix.decode()
        if self.kind == "mcp" or api == "anthropic":
            return base
        last = self.path[self.path.rfind(b"/") :]
        return base if self.path and not _VERSION.fullmatch(last) else f"{base}/v1"


class Routes:
    """All upstreams, and the rule of this module's docstring."""

    def __init__(self, upstreams: Sequence[Upstream]) -> None:
        self.upstreams = tuple(upstreams)
        named = [one for one in upstreams if one.prefix]
        self._named = sorted(named, key=lambda one: len(one.prefix), reverse=True)
        self._others = [one for one in upstreams if not one.prefix]

    def find(self, target: bytes, anthropic: bool = False) -> Upstream | None:
        """The upstream of a path (with a query or not); `anthropic`: the request has `anthropic-version`."""
        for one in self._named:
            if target.startswith(one.prefix) and target[len(one.prefix) : len(one.prefix) + 1] in _ENDS:
                return one
        others = self._others
        if len(others) < 2:
            return others[0] if others else None
        wanted: Api = "anthropic" if anthropic or _MESSAGES.search(target.partition(b"?")[0]) else "openai"
        return next(one for one in others if one.api == wanted)


_ENDS = (b"", b"/", b"?")


def routes(upstreams: Sequence[str], mcp: Sequence[str] = ()) -> Routes:
    """The values of `--upstream` and `--mcp-upstream`. Raises `UsageError`."""
    found = [_parsed(one, "model") for one in upstreams] + [_parsed(one, "mcp") for one in mcp]
    if not found:
        raise UsageError(
            "nothing to forward to: give --upstream URL (or --mcp-upstream URL), as in"
            " --upstream https://api.openai.com"
        )
    by_prefix: dict[bytes, Upstream] = {}
    by_api: dict[Api, Upstream] = {}
    for one in found:
        flag = "--upstream" if one.kind == "model" else "--mcp-upstream"
        if one.prefix:
            other = by_prefix.setdefault(one.prefix, one)
            if other is not one:
                shown = one.prefix.decode()
                raise UsageError(
                    f"{flag}: {other.url} and {one.url} would both be at {shown}: give each a path of its"
                    f" own, as in {flag} /other={one.url}"
                )
            continue
        other = by_api.setdefault(one.api, one)
        if other is not one:
            raise UsageError(
                f"--upstream: which requests go to {other.url} and which to {one.url}? Give a path to one of"
                f" them, as in --upstream /other={one.url}, or say which API each has, as in"
                f" --upstream anthropic={one.url}"
            )
    return Routes(found)


def _parsed(spec: str, kind: Kind) -> Upstream:
    flag = "--upstream" if kind == "model" else "--mcp-upstream"
    match = _SPEC.fullmatch(spec)
    name, url = (match["name"], match["url"]) if match else (None, spec)
    prefix, api = "", None
    if name is not None and name.startswith("/"):
        prefix = name.rstrip("/")
        if not _PREFIX.fullmatch(prefix):
            raise UsageError(f"{flag} {name}=…: expected a path such as /openai before the =")
        if (prefix + "/").startswith("/profiler/"):
            raise UsageError(f"{flag} {name}=…: /profiler is the proxy's own: take another path")
    elif name is not None:
        if name not in ("openai", "anthropic") or kind == "mcp":
            expected = "a path such as /openai, or openai or anthropic," if kind == "model" else "a path"
            raise UsageError(f"{flag} {name}=…: expected {expected} before the =")
        api = name
    if kind == "mcp" and not prefix:
        prefix = "/mcp"
    # Model servers' URLs are often copied with the path of a request; an MCP server's is the path.
    endpoint = Endpoint.parse(url, flag)
    parts = urlsplit(endpoint.url if kind == "model" else url)
    if endpoint.query:
        raise UsageError(
            f"{flag}: the URL of {parts.hostname} has a query: leave it to the clients, whose queries are"
            " forwarded"
        )
    host = parts.hostname or ""
    path = parts.path.rstrip("/") or ("/mcp" if kind == "mcp" else "")
    if api is None:
        api = "anthropic" if _is_anthropic(host, path) else "openai"
    try:
        ascii_host = host.encode("ascii").decode() if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        raise UsageError(f"{flag}: {host!r} is not a host's name") from None
    default = 443 if parts.scheme == "https" else 80
    port = parts.port or default
    shown = f"[{ascii_host}]" if ":" in ascii_host else ascii_host
    authority = shown if port == default else f"{shown}:{port}"
    return Upstream(
        kind=kind,
        prefix=prefix.encode(),
        api="anthropic" if api == "anthropic" else "openai",
        scheme=parts.scheme,
        host=ascii_host,
        port=port,
        authority=authority.encode(),
        path=path.encode(),
        named=name in ("openai", "anthropic"),
    )


def _is_anthropic(host: str, path: str) -> bool:
    return "anthropic" in path or (not is_loopback(host) and ("anthropic" in host or "claude" in host))
