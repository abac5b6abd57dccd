"""The options that say how a model server is asked: URL, headers, query, certificates, fields of a body."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from profiler.errors import UsageError
from profiler.load.declared import Kind
from profiler.providers.endpoint import LOOPS_OWN, Endpoint, Tls, shown_url
from profiler.redaction import keep_secret
from profiler.redaction.keys import REDACTED

if TYPE_CHECKING:
    from profiler.load.options import LoadOptions

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FRAMING = frozenset(("content-length", "transfer-encoding", "connection", "content-encoding"))
"""Headers that say how a request is written, which the HTTP library alone knows."""


def _header(text: str) -> tuple[str, ...]:
    name, equals, value = text.partition("=")
    if not equals or not _TOKEN.fullmatch(name):
        raise ValueError("expected NAME=VALUE, such as api-key=…")
    if name.lower() in _FRAMING:
        raise ValueError(f"{name} is for the HTTP library to say")
    if not (value.isascii() and value.isprintable()):
        raise ValueError(f"the value of {name} may have printable ASCII characters alone")
    return (f"{name}={value}",)


def _parameter(text: str) -> tuple[str, ...]:
    name, equals, _ = text.partition("=")
    if not equals or not name.strip():
        raise ValueError("expected NAME=VALUE, such as api-version=2024-10-21")
    return (text,)


def _field(text: str) -> tuple[str, ...]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ValueError("expected KEY=JSON, such as stream_options=null")
    if name in LOOPS_OWN:
        raise ValueError(f"{name} is {LOOPS_OWN[name]}")
    try:
        # What can be read may still not be sent: 1e999 is infinite, "\\ud800" half a character.
        json.dumps(
            json.loads(value, parse_constant=_no_constant), ensure_ascii=False, allow_nan=False
        ).encode()
    except (ValueError, RecursionError):
        raise ValueError(f'no JSON after {name}= (a text is written {name}="…", quotes included)') from None
    return (text,)


def _server(text: str) -> tuple[str, ...]:
    from profiler.mcp.servers import ServerSpec

    ServerSpec.parse(text)
    return (text,)


def _shown_servers(texts: Iterable[str]) -> tuple[str, ...]:
    from profiler.mcp.servers import shown_server

    return tuple(map(shown_server, texts))


def _server_header(text: str) -> tuple[str, ...]:
    server, colon, header = text.partition(":")
    if not colon or not server.strip():
        raise ValueError("expected SERVER:NAME=VALUE, such as search:authorization=…")
    return (f"{server.strip()}:{_header(header)[0]}",)


def _object(text: str) -> str:
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ValueError("no JSON") from None
    if not isinstance(value, dict):
        raise ValueError('expected a JSON object, such as {"query": "rain"}')  # noqa: TRY004 (of an option)
    return text


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _names(values: Iterable[str]) -> tuple[str, ...]:
    """Each `NAME=VALUE` with its value hidden."""
    return tuple(f"{one.partition('=')[0]}={REDACTED}" for one in values)


def _text(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


URL = Kind(_text, metavar="URL", shown=shown_url)
HEADER = Kind(_header, "".join, metavar="NAME=VALUE", shown=_names, each=True)
PARAMETER = Kind(_parameter, "".join, metavar="NAME=VALUE", shown=_names, each=True)
SERVER = Kind(_server, "".join, metavar="[NAME=]URL|COMMAND", shown=_shown_servers, each=True)
SERVER_HEADER = Kind(_server_header, "".join, metavar="SERVER:NAME=VALUE", shown=_names, each=True)
OBJECT = Kind(_object, metavar="JSON")
FIELD = Kind(_field, "".join, metavar="KEY=JSON", each=True)


def endpoint_of(options: LoadOptions, root: str) -> Endpoint:
    """The endpoint at `root`, asked as the options say; from now on this process shows none of its secrets.

    Raises `UsageError` for a URL that is none.
    """
    endpoint = Endpoint.parse(root, "--base-url")
    found = replace(
        endpoint,
        query=(*endpoint.query, *_pairs(options.query)),
        headers=_pairs(options.header),
        tls=tls_of(options),
    )
    keep_secret(value for _, value in (*found.query, *found.headers))
    return found


def tls_of(options: LoadOptions) -> Tls:
    """Raises `UsageError` for options that contradict each other."""
    if options.client_key is not None and options.client_cert is None:
        raise UsageError("--client-key is the key of a certificate: add --client-cert")
    if options.insecure and options.ca is not None:
        raise UsageError("--insecure trusts every certificate: it makes --ca useless")
    return Tls(options.ca, options.client_cert, options.client_key, options.insecure)


def check_tls(options: LoadOptions) -> None:
    """Raises `UsageError` for certificates that cannot be read, or that no server is asked with."""
    tls = tls_of(options)
    if tls == Tls():
        return
    url = options.base_url or ""
    if not url.lower().startswith("https://"):
        server = shown_url(url) if url else "the emulator"
        raise UsageError(
            f"--ca, --client-cert and --insecure are for a --base-url with https://, not {server}"
        )
    tls.context()


def fields_of(body: Sequence[str]) -> dict[str, Any]:
    """The fields of `--body`: to be set, or with None to be left out of requests."""
    return {name: json.loads(value) for name, value in _pairs(body)}


def _pairs(values: Iterable[str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, _, value in (one.partition("=") for one in values))
