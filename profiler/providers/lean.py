"""Models without the SDKs: the three APIs spoken by an HTTP client of our own, for load tests.

The same requests, records, errors and retries as through the SDKs, for a small part of the CPU: a load test
of a fast server measures its client else. Replies are read by the same readers.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
import orjson

from profiler.errors import UsageError
from profiler.limits.retries import ANTHROPIC, OPENAI, RetryRule, asked_ns
from profiler.loop.boundary import Boundary
from profiler.loop.ledger import current_ledger
from profiler.loop.model import Message, Probe, Reply, RequestOptions, ToolResult, conversation
from profiler.loop.supervision import is_left
from profiler.loop.tools import Tool
from profiler.providers.attempts import OpenAttempt
from profiler.providers.connections import LeavesThisMachine, LoopIsOver, decoder_of
from profiler.providers.endpoint import (
    KEY_HEADERS,
    Endpoint,
    emulator_key,
    is_loopback,
    proxy_of,
    tls_context,
)
from profiler.providers.exchange import finished
from profiler.providers.failures import refused, unanswered
from profiler.providers.formats import FORMATS, Format, messages_fields, with_fields
from profiler.providers.http1 import Headers, Pool, Proxy, Timeouts
from profiler.providers.replies import Api, ReplyReader, begins_stream, reader_of
from profiler.redaction import carried_secrets, scrub_echo

MOST_REDIRECTS = 20

_REDIRECTS = frozenset((301, 302, 303, 307, 308))

_ANTHROPIC_VERSION = "2026-10-21"
"""As its SDK names it, and sends the key: the one as the other depends on it."""

_CHARSET = re.compile(r"charset=[\"']?([\w.:-]+)", re.IGNORECASE)

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""What a header's name may be."""

_boundary = Boundary()


class LeanModel:
    """A model behind one of the three APIs, as `make_provider(..., client="lean")` makes it.

    `endpoint` None: the provider's own, or the one that its SDK's variable names. A key that is not given is
    that of the SDK's variable. Fields of `body` are set in every request, those that are None are left out.
    """

    conversation = staticmethod(conversation)

    def __init__(
        self,
        api: Api,
        model: str,
        *,
        endpoint: Endpoint | None = None,
        api_key: str | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> None:
        self.provider: Api = api
        self.model = model
        self._format: Format = FORMATS[api]
        self._fields = messages_fields(body or {}) if api == "anthropic" else dict(body or {})
        try:
            json.dumps(self._fields, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UsageError(f"the fields of the body cannot be sent: {error}") from None
        self._rule = ANTHROPIC if api == "anthropic" else OPENAI
        self._random = random.SystemRandom()  # in the children of a fork others than in the parent
        endpoint = endpoint or _usual_endpoint(api)
        base = endpoint.root if api == "anthropic" else endpoint.openai_base
        url = httpx2.URL(f"{base}{self._format.path}")
        self._url = url.copy_merge_params(list(endpoint.query)) if endpoint.query else url
        self._url_text = str(self._url)
        self.client = LeanClient(endpoint, _headers(api, endpoint, api_key), self._rule.retries)

    def render_tools(self, tools: Sequence[Tool]) -> Any:
        return self._format.render_tools(tools)

    def results(self, results: Sequence[ToolResult]) -> list[Message]:
        return self._format.results(results)

    async def request(
        self, messages: list[Message], tools: Any, options: RequestOptions, probe: Probe
    ) -> Reply:
        body = with_fields(self._format.body(self.model, messages, tools, options), self._fields)
        content, client = _encoded(body), self.client
        attempt = 0
        while True:
            attempt += 1
            asked = _Asked(content, attempt, options, reader_of(self.provider, probe))
            failure: Exception | None = None
            retry_after_ns: int | None = None
            try:
                await client.post(self._url, self._url_text, asked)
            except (OSError, httpx2.HTTPError) as error:
                if error is probe.on_text_error:
                    raise
                failure = error
                if asked.streams:
                    probe.broken_off = asked.reader.so_far()
                elif attempt <= client.max_retries and not isinstance(error, LoopIsOver | LeavesThisMachine):
                    await asyncio.sleep(self._rule.delay_ns(attempt, None, self._random) / 1e9)
                    continue
            except BaseException:
                # Cancelled, or the caller's own: what was generated by then is billed all the same.
                if asked.streams:
                    probe.broken_off = asked.reader.so_far()
                raise
            secrets = carried_secrets(probe.sent_headers)
            request_id = asked.header(self._format.request_id)
            if request_id is not None:
                request_id = scrub_echo(request_id, secrets)
            if failure is not None:
                # Where nothing of a reply has come, the id is that of a redirect, or of what cannot be read.
                known = request_id if asked.streams else None
                raise unanswered(
                    self.provider, failure, asked.requests(), client.timeouts.named, known, secrets
                ) from failure
            if 200 <= asked.status < 300:
                asked.read()
                return finished(self.provider, asked.reader, probe.url, request_id)
            retry_after_ns = asked_ns(asked.header("retry-after-ms"), asked.header("retry-after"))
            if attempt <= client.max_retries and asked.may_try_again(self._rule, retry_after_ns):
                await asyncio.sleep(self._rule.delay_ns(attempt, retry_after_ns, self._random) / 1e9)
                continue
            raise refused(self.provider, asked.status, asked.body(), asked.requests(), request_id, secrets)


def _encoded(body: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:  # numbers of more than 64 bits, which JSON allows
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


class _Asked:
    """One attempt of a request, and what comes of it; redirects included. A `Receiver`.

    `streams`: the reply has begun to come, and is read as it comes: from here on it is not tried again.
    """

    def __init__(self, content: bytes, attempt: int, options: RequestOptions, reader: ReplyReader) -> None:
        self.content = content
        self.attempt = attempt
        self.headers = options.headers or {}
        self.reader = reader
        self.streams = False
        self.status = 0
        self.open: OpenAttempt | None = None
        self.hops: list[tuple[str, httpx2.URL, Headers]] = []
        self._wants_stream = options.stream
        self._is_stream: bool | None = None
        self._answer: Headers = []
        self._whole: list[bytes] = []
        self._decoder: Any = None

    def begin(self) -> None:
        """Nothing of the answer to what is sent next is here."""
        self.status, self._answer, self._whole, self._decoder = 0, [], [], None

    # Of the connection.

    def sent(self) -> None:
        assert self.open is not None
        self.open.note("sent_ns")

    def responded(self, status: int, headers: Headers) -> None:
        assert self.open is not None
        if self.open.sent_ns is None:  # it answers before it has read all of the request
            self.open.note("sent_ns")
        self.open.answered(status, headers)
        self.status, self._answer = status, headers
        self.streams = self._wants_stream and 200 <= status < 300
        for name, value in headers:
            length = len(name)
            if length == 12 and self.streams and name.lower() == b"content-type":
                if value.lower().startswith(b"text/event-stream"):
                    self._is_stream = True
            elif length == 16 and name.lower() == b"content-encoding" and value.lower() != b"identity":
                self._decoder = decoder_of(headers)

    def received(self, data: bytes) -> bool | None:
        if self._decoder is not None:
            data = b"".join(self._decoder.decode(data))
        if not self.streams:
            self._whole.append(data)
            return None
        if self._is_stream is None and data.strip():
            self._is_stream = begins_stream(data)
        if self._is_stream is False:
            self._whole.append(data)
            return None
        reader = self.reader
        reader.feed(data)
        if reader.done:
            return True
        return False if reader.error is not None or reader.broken is not None else None

    def ended(self) -> None:
        if self._decoder is not None:
            rest = b"".join(self._decoder.flush())
            self._decoder = None
            if rest:
                self.received(rest)
        assert self.open is not None
        self.open.end()

    # Of the model.

    def header(self, name: str) -> str | None:
        """A header of the answer; of several of its name, all."""
        wanted = name.encode()
        found = [value for raw, value in self._answer if len(raw) == len(wanted) and raw.lower() == wanted]
        return b", ".join(found).decode("latin-1") if found else None

    def body(self) -> bytes:
        """What came, in UTF-8 where it says that it is text of another kind."""
        body = b"".join(self._whole)
        charset = _CHARSET.search(self.header("content-type") or "")
        if charset is not None and charset[1].lower() not in ("utf-8", "utf8"):
            with contextlib.suppress(LookupError):
                return body.decode(charset[1], "replace").encode()
        return body

    def read(self) -> None:
        """The reply is here."""
        if not self.streams:
            self.reader.read(self.body())
        elif self._whole:  # some servers do not stream all the same
            probe = self.reader.probe
            self.reader.read(self.body())
            probe.hand_on("".join(self.reader.texts))
        else:
            self.reader.end()

    def may_try_again(self, rule: RetryRule, retry_after_ns: int | None) -> bool:
        """Whether an attempt that was refused is tried again, as far as the refusal says."""
        if not rule.waits(retry_after_ns):
            return False
        said = self.header("x-should-retry")
        return said == "true" if said in ("true", "false") else rule.again(1, self.status, retry_after_ns)

    def requests(self) -> list[httpx2.Request]:
        """What was sent, for the words of an error."""
        return [
            httpx2.Request(method, url, headers=headers, content=self.content if method == "POST" else b"")
            for method, url, headers in self.hops
        ]


class LeanClient:
    """Requests to one endpoint, and to wherever that redirects; named as the SDKs' clients name the same.

    `max_retries`: how often a request that failed is tried again.
    """

    def __init__(self, endpoint: Endpoint, headers: Mapping[str, str], max_retries: int) -> None:
        self.max_retries = max_retries
        self.timeouts = Timeouts()
        self._endpoint = endpoint
        home = httpx2.URL(endpoint.url)
        self._home = home.host  # as requests name it, a punycoded one in letters
        self._origin = _origin(home)
        self._stays = endpoint.is_loopback
        self._headers = _checked(headers)
        self._given = {name.lower().encode() for name, _ in endpoint.headers}
        self._routes: dict[tuple[Any, str, str], _Route] = {}
        self._pools: dict[tuple[Any, str, str, int], Pool] = {}
        if endpoint.url.startswith("https"):
            tls_context(endpoint)  # files that cannot be read are said before the first request
        if (proxy := proxy_of(endpoint.url, endpoint.is_loopback)) is not None:
            Proxy.parse(proxy)  # and so is one that cannot be used

    def with_options(self, *, max_retries: int | None = None, timeout: float | None = None) -> LeanClient:
        """One on the same connections. `timeout`: seconds, of connecting and between pieces of a response."""
        other = copy.copy(self)
        if max_retries is not None:
            other.max_retries = max_retries
        if timeout is not None:
            other.timeouts = Timeouts(timeout, timeout)
        return other

    async def close(self) -> None:
        """Close the connections of this event loop: those in use when their exchange is over."""
        loop = asyncio.get_running_loop()
        for key in [key for key in self._pools if key[0] is loop]:
            self._pools.pop(key).close()
        self._routes.clear()

    async def post(self, url: httpx2.URL, text: str, asked: _Asked) -> None:
        """Send one attempt, and follow where it is redirected to. `text` is the URL too.

        Raises an `OSError` or httpx2's.
        """
        method = "POST"
        for _ in range(MOST_REDIRECTS + 1):
            await self._send(method, url, text, asked)
            if asked.status not in _REDIRECTS or (location := asked.header("location")) is None:
                return
            url = _joined(url, location)
            text = str(url)
            if asked.status not in (307, 308):
                method = "GET"
        raise httpx2.TooManyRedirects("Exceeded maximum allowed redirects.")

    async def _send(self, method: str, url: httpx2.URL, text: str, asked: _Asked) -> None:
        if is_left():  # others run in its place: together they would be more than was asked for
            raise LoopIsOver("the loop was ended")
        route = self._route(method, url, text, asked)
        headers = route.headers
        content = asked.content if method == "POST" else b""
        more = [(b"x-stainless-retry-count", b"%d" % (asked.attempt - 1))]
        if asked.headers:
            more = _checked(asked.headers) + more
            headers = [pair for pair in headers if all(pair[0] != name for name, _ in more)]
        head = route.head if headers is route.headers else _head(method, route.target, headers)
        head += b"".join([b"%b: %b\r\n" % pair for pair in more])
        if method == "POST":
            head += b"content-length: %d\r\n" % len(content)
        probe = asked.reader.probe
        probe.url, probe.sent_headers = url, [*headers, *more]
        asked.hops.append((method, url, headers))
        asked.begin()
        if (ledger := current_ledger.get()) is not None:
            ledger.sent()
        asked.open = attempt = OpenAttempt(probe, _boundary)
        try:
            connection = await route.pool.take(self.timeouts.connect)
            attempt.note("connected_ns")
            try:
                await connection.exchange(head + b"\r\n" + content, asked, self.timeouts.read)
            finally:
                route.pool.give(connection)
        except BaseException as error:
            attempt.end(error)
            raise
        attempt.end()

    def _route(self, method: str, url: httpx2.URL, text: str, asked: _Asked) -> _Route:
        """The way of requests to a URL. Raises httpx2's errors for one that cannot be asked."""
        key = asyncio.get_running_loop(), method, text  # a connection is of the event loop that made it
        route = self._routes.get(key)
        if route is not None:
            return route
        try:
            if url.scheme not in ("http", "https") or not url.host:
                raise httpx2.UnsupportedProtocol(f"a redirect to {url.scheme}:")
            if self._stays and url.host != self._home and not is_loopback(url.host):
                # Who loads a server on this machine has not agreed to load another one.
                raise LeavesThisMachine("this is another machine: if it is meant, give it as --base-url")
        except httpx2.HTTPError:
            asked.hops.append((method, url, []))
            raise
        if len(self._routes) > 64:  # a server that redirects each request to another place
            self._routes.pop(next(iter(self._routes)))
        pool = self._pool(url)
        headers = [
            (name, value) for name, value in self._headers if not self._is_withheld(name.decode(), name, url)
        ]
        target = url.raw_path
        if method == "GET":
            headers = [pair for pair in headers if pair[0] != b"content-type"]
        if pool.proxy is not None and url.scheme == "http":
            target = b"http://" + url.netloc + target
            if pool.proxy.authorization is not None:
                headers.append((b"proxy-authorization", pool.proxy.authorization))
        if url.host != self._home or all(name != b"host" for name, _ in headers):
            headers = [(b"host", url.netloc), *(pair for pair in headers if pair[0] != b"host")]
        route = self._routes[key] = _Route(pool, target, headers, _head(method, target, headers))
        return route

    def _is_withheld(self, name: str, raw: bytes, url: httpx2.URL) -> bool:
        """Whether a header is not for the server at this URL, to which a redirect led."""
        if name in KEY_HEADERS:
            scheme, host, port = self._origin
            upgraded = (scheme, port) == ("http", 80) and _origin(url) == ("https", host, 443)
            return _origin(url) != self._origin and not upgraded
        return raw in self._given and url.host != self._home

    def _pool(self, url: httpx2.URL) -> Pool:
        scheme, _, port = _origin(url)
        key = asyncio.get_running_loop(), scheme, url.host, port
        pool = self._pools.get(key)
        if pool is None:
            # Those of event loops that are over: their connections are closed where they are collected.
            for old in [old for old in self._pools if old[0].is_closed()]:
                del self._pools[old]
            for over in [over for over in self._routes if over[0].is_closed()]:
                del self._routes[over]
            proxy = proxy_of(str(url), is_loopback(url.host))
            tls = tls_context(self._endpoint) if scheme == "https" else None
            host = url.raw_host.decode("ascii")
            pool = Pool(host, port, tls, None if proxy is None else Proxy.parse(proxy))
            self._pools[key] = pool
        return pool


@dataclass(frozen=True, slots=True)
class _Route:
    """Where requests to one URL go, and what they begin with, up to what differs between them."""

    pool: Pool
    target: bytes
    headers: Headers
    head: bytes


def _head(method: str, target: bytes, headers: Headers) -> bytes:
    lines = b"".join([b"%b: %b\r\n" % pair for pair in headers])
    return b"%b %b HTTP/1.1\r\n%b" % (method.encode(), target, lines)


def _origin(url: httpx2.URL) -> tuple[str, str, int]:
    usual = 443 if url.scheme == "https" else 80
    return url.scheme, url.host, usual if url.port is None else url.port


def _joined(url: httpx2.URL, location: str) -> httpx2.URL:
    """Where a redirect leads. Raises `httpx2.RemoteProtocolError` for what is no URL."""
    with contextlib.suppress(UnicodeDecodeError):
        location = location.encode("latin-1").decode()
    try:
        found = url.join(location)
        if not 0 < _origin(found)[2] < 65536:
            raise ValueError("its port is none")
        found.raw_host.decode("ascii").encode("idna")  # as the look-up of its address does
    except (httpx2.InvalidURL, ValueError) as error:
        raise httpx2.RemoteProtocolError(f"Invalid URL in location header: {error}") from error
    return found


def _usual_endpoint(api: Api) -> Endpoint:
    """The provider's own, or the one that its SDK's variable names."""
    variable, url = (
        ("ANTHROPIC_BASE_URL", "https://api.anthropic.com")
        if api == "anthropic"
        else ("OPENAI_BASE_URL", "https://api.openai.com/v1")
    )
    return Endpoint.parse(os.environ.get(variable) or url, variable)


def _headers(api: Api, endpoint: Endpoint, api_key: str | None) -> dict[str, str]:
    """What every request is sent with, by names in lower case. Raises `UsageError` where there is no key."""
    headers = {
        "accept": "application/json",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "user-agent": "toolcall-profiler",
    }
    if api == "anthropic":
        headers["anthropic-version"] = _ANTHROPIC_VERSION
    else:
        for name, variable in (("organization", "OPENAI_ORG_ID"), ("project", "OPENAI_PROJECT_ID")):
            if value := os.environ.get(variable):
                headers[f"openai-{name}"] = value
    if not endpoint.key_headers:
        headers["authorization"] = f"Bearer {_key(api, endpoint, api_key)}"
    custom = os.environ.get("ANTHROPIC_CUSTOM_HEADERS" if api == "anthropic" else "OPENAI_CUSTOM_HEADERS", "")
    for name, colon, value in (line.partition(":") for line in custom.split("\n")):
        if colon:
            headers[name.strip().lower()] = value.strip()
    return headers | {name.lower(): value for name, value in endpoint.headers}


def _key(api: Api, endpoint: Endpoint, api_key: str | None) -> str:
    variable = "ANTHROPIC_API_KEY" if api == "anthropic" else "OPENAI_API_KEY"
    key = api_key or os.environ.get(variable)
    if not key and api == "anthropic":
        key = os.environ.get("ANTHROPIC_AUTH_TOKEN")
    key = key or emulator_key(endpoint, variable)
    if not key:
        raise UsageError(f"no key: set {variable}")
    return key


def _checked(headers: Mapping[str, str]) -> Headers:
    """Headers as they are sent. Raises `UsageError` for what would not arrive as one."""
    found = []
    for name, value in headers.items():
        raw = name.lower().encode("ascii", "replace")
        if not _TOKEN.fullmatch(raw) or raw in (b"content-length", b"transfer-encoding"):
            raise UsageError(f"no header that can be sent: {name!r}")
        if any(mark in value for mark in "\r\n\0"):
            raise UsageError(f"the value of the header {name!r} has a line break in it")
        found.append((raw, value.strip().encode()))
    return found
