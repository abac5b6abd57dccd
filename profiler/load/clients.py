"""Clients that an agent brought along: they ask the target of the load test, and nobody else.

The agent that somebody has asks a paid API. Under load that is neither meant nor allowed: a plain agent's
clients are pointed at the target (`point`), and whatever would still leave it is refused before it is sent
(`guard`), whoever made the client.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

import httpx2

from profiler.errors import RequestRefused, UsageError
from profiler.load.context import agent_call
from profiler.providers.attempts import AsyncObservedTransport, ObservedTransport, transports
from profiler.providers.endpoint import KEY_HEADERS, NO_KEY, Endpoint, Tls, is_loopback, shown_url
from profiler.redaction.keys import hide_keys
from profiler.watch.auto import made_at
from profiler.watch.identity import ById
from profiler.watch.places import place_of_caller

_CLOUDS = ("azure", "bedrock", "vertex", "aws", "google_cloud", "foundry")
"""Modules of the SDKs whose clients make their URLs, and their keys, in a way of their own."""

_log = logging.getLogger(__name__)


def set_environment(
    endpoint: Endpoint, environment: MutableMapping[str, str], *, with_tools: bool = False
) -> None:
    """Have the SDKs' clients that are made from now on ask this server, unless they are told otherwise.

    To be called before a module is imported that makes some. On this machine they need a key, though none
    is asked for. `with_tools`: it is an emulator, which the worked tools ask, too.
    """
    if with_tools:
        environment.setdefault("PROFILER_TOOLS_URL", endpoint.root)
    environment["OPENAI_BASE_URL"] = endpoint.openai_base
    environment["ANTHROPIC_BASE_URL"] = endpoint.root
    if endpoint.is_loopback or endpoint.key_headers:
        if not environment.get("OPENAI_API_KEY"):
            environment["OPENAI_API_KEY"] = NO_KEY
        if not (environment.get("ANTHROPIC_API_KEY") or environment.get("ANTHROPIC_AUTH_TOKEN")):
            environment["ANTHROPIC_API_KEY"] = NO_KEY


class Pointing:
    """Points clients at one server, and refuses their requests to any other.

    `say` is called with a sentence for each client that asked another one before.
    """

    def __init__(self, endpoint: Endpoint, say: Callable[[str], object] = _log.info) -> None:
        self._endpoint = endpoint
        self._say = say
        self._pointed: ById[bool] = ById()
        self._connected: ById[bool] = ById()  # HTTP clients, which copies of a client share
        self.unwatched: dict[str, None] = {}  # clients of factories, such as `AsyncOpenAI (agent.py:7)`

    def point(self, client: Any) -> None:
        """Have a client of the SDKs ask the target. For `on_client` of `Profiler.auto`."""
        if self._pointed.get(client) or _cloud_of(client) is not None:
            return
        self._pointed.put(client, True)
        endpoint = self._endpoint
        before = str(client.base_url)
        openai = any(kind.__module__.split(".")[0] == "openai" for kind in type(client).__mro__)
        client.base_url = endpoint.openai_base if openai else endpoint.root
        if not self._connected.get(client._client):
            self._connected.put(client._client, True)
            _connect(client._client, endpoint)
        if not self._is_target(httpx2.URL(before)):
            where = made_at(client) or place_of_caller()
            self._say(
                f"{type(client).__name__}{f' ({where})' if where else ''} asks the target "
                f"{shown_url(str(client.base_url).rstrip('/'))} instead of "
                f"{shown_url(hide_keys(before.rstrip('/')))}"
            )

    def note(self, guarding: object, client: Any) -> None:
        """Note a client that nobody watches but `guarding`, whose `on_client` this is."""
        for _, transport in transports(client._client):
            if getattr(transport, "owner", None) is guarding and not isinstance(
                transport.original, AsyncObservedTransport | ObservedTransport
            ):
                where = made_at(client) or place_of_caller()
                self.unwatched[f"{type(client).__name__}{f' ({where})' if where else ''}"] = None

    def guard(self, request: httpx2.Request, asynchronous: bool) -> None:
        """Refuse a request of a factory's client to another server than the target: raises `RequestRefused`.

        And any of a loop that was ended: nothing can stop its threads. A `profiler.providers.attempts.Guard`.
        """
        self._look_at(request, asynchronous, FACTORY_REMEDY)

    def _look_at(self, request: httpx2.Request, asynchronous: bool, remedy: str) -> None:
        call = agent_call.get()
        if call is not None and call.trace is not None:
            call.trace.requested(asynchronous)
        if call is not None and call.over and not call.returned:
            raise RequestRefused(UsageError("the loop was ended"))
        if not self._is_target(request.url):
            refused = RequestRefused(UsageError(self._refusal(request.url, remedy)))
            if call is not None:
                call.refused = call.refused or refused
            raise refused

    def for_plain(self, request: httpx2.Request, asynchronous: bool) -> None:
        """The same for a plain agent, whose requests are given the headers and the query of the target."""
        self._look_at(request, asynchronous, PLAIN_REMEDY)
        endpoint = self._endpoint
        if endpoint.headers:
            for name in KEY_HEADERS:
                if endpoint.key_headers and name not in endpoint.key_headers:
                    request.headers.pop(name, None)
            request.headers.update(dict(endpoint.headers))
        if missing := [one for one in endpoint.query if one not in request.url.params.multi_items()]:
            params = request.url.params
            for name, value in missing:
                params = params.add(name, value)
            request.url = request.url.copy_with(params=params)

    def _is_target(self, url: httpx2.URL) -> bool:
        host, port = self._endpoint.address
        known = url.port or (443 if url.scheme == "https" else 80)
        home = httpx2.URL(self._endpoint.url).host  # as requests name it, a punycoded one in letters
        return known == port and (url.host in (host, home) or (is_loopback(url.host) and is_loopback(host)))

    def _refusal(self, url: httpx2.URL, remedy: str) -> str:
        where = place_of_caller()
        parts = urlsplit(str(url))
        asks = f"a model request to {parts.scheme}://{parts.hostname}"
        asks += f":{parts.port}" if parts.port else ""
        return (
            f"{where or 'the agent'}: {asks} was refused before it was sent: under load only the target, "
            f"{shown_url(self._endpoint.url)}, is asked{remedy}"
        )


PLAIN_REMEDY = (
    "; an agent's own clients are pointed there, but not those of a cloud (Azure, Bedrock, Vertex, Foundry), "
    "nor whole URLs and redirects: use OpenAI, AsyncOpenAI, Anthropic or AsyncAnthropic under load"
)

FACTORY_REMEDY = (
    "; make the client with **ctx.client_options(), or with base_url=ctx.openai_url (Anthropic's: "
    "ctx.base_url)"
)


def _cloud_of(client: Any) -> str | None:
    """The cloud that a client of the SDKs is for, None for those that can be pointed elsewhere."""
    for kind in type(client).__mro__:
        if kind.__module__.split(".")[0] in ("openai", "anthropic"):
            for part in kind.__module__.split("."):
                if part in _CLOUDS:
                    return part
    return None


def _connect(http_client: Any, endpoint: Endpoint) -> None:
    """Have an HTTP client reach the endpoint: past proxies to this machine, with its certificates."""
    if endpoint.is_loopback and hasattr(http_client, "_mounts"):
        http_client._mounts.clear()
    if not endpoint.url.startswith("https") or endpoint.tls == Tls():
        return
    context = endpoint.tls.context()
    asynchronous = isinstance(http_client, httpx2.AsyncClient)
    made = httpx2.AsyncHTTPTransport if asynchronous else httpx2.HTTPTransport
    for put, transport in transports(http_client):
        with_tls: Any = made(verify=context)
        if isinstance(transport, AsyncObservedTransport | ObservedTransport):
            while isinstance(transport.inner, AsyncObservedTransport | ObservedTransport):
                transport = transport.inner  # noqa: PLW2901
            transport.inner = with_tls
        else:
            put(with_tls)
