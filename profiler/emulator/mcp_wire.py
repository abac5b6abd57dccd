"""The Model Context Protocol as a server speaks it: requests read and checked, results written. Pure.

Two eras: up to 2025-11-25 a client begins with `initialize` and may be given a session; from 2026-07-28 on
every request says for itself which version it speaks (its envelope, in `_meta`) and is repeated in headers.
Wrong requests get the statuses and codes that the official SDK's server gives.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import orjson

from profiler.emulator.bodies import BodyError, can_be_written, read_json
from profiler.mcp.session import EMULATOR, META
from profiler.scenarios import ToolSpec

MODERN = ("2026-07-28",)
LEGACY = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")

PARSE_ERROR, INVALID_REQUEST, UNKNOWN_METHOD, INVALID_PARAMS = -32700, -32600, -32601, -32602
HEADER_MISMATCH, UNSUPPORTED_VERSION, CANCELLED, SERVER_ERROR = -32020, -32022, -32800, -32000

_KEYS = "io.modelcontextprotocol/"
VERSION_KEY, CAPABILITIES_KEY, SERVER_KEY = (
    _KEYS + name for name in ("protocolVersion", "clientCapabilities", "serverInfo")
)
SERVER_NS = META + "serverNs"

_NAMED = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
"""Methods with a header `mcp-name`, and the parameter that it repeats."""

_MOST_DEEP = 20
_ENCODED = re.compile(r"=\?base64\?(.*)\?=")

try:
    _VERSION = version("toolcall-profiler")
except PackageNotFoundError:  # from a source tree that is not installed
    _VERSION = "0"
SERVER_INFO = {"name": EMULATOR, "version": _VERSION}
_SERVER_META = orjson.dumps({SERVER_KEY: SERVER_INFO})[1:-1]

Ident = str | int | None
"""The id of a request; None where it cannot be told."""


class Refusal(Exception):
    """Why a message is not served: an HTTP status, and a JSON-RPC error."""

    def __init__(self, status: int, code: int, message: str, ident: Ident = None, data: Any = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.ident = ident
        self.data = data

    def body(self) -> bytes:
        return error_body(self.ident, self.code, str(self), self.data)


class Message(NamedTuple):
    """A request, or a notification (`is_request` False)."""

    method: str
    params: Mapping[str, Any]
    ident: Ident
    is_request: bool

    @property
    def meta(self) -> Mapping[str, Any]:
        meta = self.params.get("_meta")
        return meta if isinstance(meta, dict) else {}

    @property
    def cancels(self) -> Ident:
        """The id of the request that it cancels, where it is such a notification."""
        ident = self.params.get("requestId")
        if self.is_request or self.method != "notifications/cancelled" or isinstance(ident, bool):
            return None
        return ident if isinstance(ident, str | int) else None

    @property
    def enveloped(self) -> bool:
        """It says its version for itself, as from 2026 on."""
        return VERSION_KEY in self.meta


def read_message(body: bytes) -> Message | None:
    """One message; None for a response, of which nobody here waits for one. Raises `Refusal`."""
    try:
        value = read_json(body)
    except BodyError as problem:
        raise Refusal(400, INVALID_REQUEST, str(problem)) from None
    except orjson.JSONDecodeError as problem:
        raise Refusal(400, PARSE_ERROR, f"Parse error: {problem}") from None
    if isinstance(value, list):
        raise Refusal(400, INVALID_REQUEST, "Batches are not served: send one message at a time")
    if not isinstance(value, dict) or value.get("jsonrpc") != "2.0":
        raise Refusal(400, INVALID_REQUEST, "Not a JSON-RPC 2.0 message")
    if not can_be_written(value):
        raise Refusal(400, INVALID_REQUEST, "The message is nested too deeply")
    method, params, ident = value.get("method"), value.get("params"), value.get("id")
    if method is None and ("result" in value or "error" in value):
        return None
    is_request = "id" in value
    if is_request and (isinstance(ident, bool) or not isinstance(ident, str | int)):
        raise Refusal(400, INVALID_REQUEST, "The id of a request is a text or a whole number")
    if not isinstance(method, str):
        raise Refusal(400, INVALID_REQUEST, "The message has no method", ident)
    if params is not None and not isinstance(params, dict):
        raise Refusal(400, INVALID_PARAMS, "params is not an object", ident)
    return Message(method, params or {}, ident, is_request)


# Headers

_VERSION_HEADER = b"mcp-protocol-version"


def accepts_both(headers: Mapping[bytes, bytes]) -> bool:
    """Whether the client takes JSON and event streams, as every client of this protocol has to."""
    accept = headers.get(b"accept", b"")
    return b"*/*" in accept or (b"application/json" in accept and b"text/event-stream" in accept)


def is_modern(message: Message, headers: Mapping[bytes, bytes]) -> bool:
    """Whether this is a request of the stateless protocol. Raises `Refusal` for a version of neither era."""
    named = headers.get(_VERSION_HEADER)
    if message.method == "initialize" and (named is None or named.decode("latin-1") not in MODERN):
        return False  # an SDK may put an envelope on it all the same
    if message.enveloped or named is None:
        return message.enveloped
    name = named.decode("latin-1")
    if name in LEGACY:
        return False
    if name not in MODERN:
        raise _unsupported(name, message.ident)
    return True


def check_modern(message: Message, headers: Mapping[bytes, bytes] | None) -> None:
    """Raise `Refusal` where a request of the stateless protocol is not as it has to be.

    `headers`: None where the transport has none.
    """
    params, meta = message.params, message.params.get("_meta")
    if not isinstance(meta, dict):
        raise Refusal(
            400, INVALID_PARAMS, f"params._meta must be an object with {VERSION_KEY!r}", message.ident
        )
    missing = [key for key in (VERSION_KEY, CAPABILITIES_KEY) if key not in meta]
    if missing:
        raise Refusal(400, INVALID_PARAMS, f"params._meta lacks {', '.join(missing)}", message.ident)
    asked = meta[VERSION_KEY]
    if headers is not None:
        _check_repeated(message, params, asked, headers)
    if not isinstance(asked, str):
        raise Refusal(400, INVALID_PARAMS, f"{VERSION_KEY} is not a text", message.ident)
    if asked not in MODERN:
        raise _unsupported(asked, message.ident)


def _check_repeated(
    message: Message, params: Mapping[str, Any], asked: object, headers: Mapping[bytes, bytes]
) -> None:
    wanted: list[tuple[bytes, object]] = [(_VERSION_HEADER, asked), (b"mcp-method", message.method)]
    key = _NAMED.get(message.method)
    if key is not None and params.get(key) is not None:
        wanted.append((b"mcp-name", params[key]))
    for header, value in wanted:
        given = headers.get(header)
        if given is None or _decoded(given) != value:
            state = "is missing" if given is None else "does not match the body"
            raise Refusal(400, HEADER_MISMATCH, f"The header {header.decode()} {state}", message.ident)


def mirrored(schema: Mapping[str, Any]) -> list[tuple[tuple[str, ...], bytes]]:
    """The parameters that a client repeats in headers (`x-mcp-header`), as paths, with the names of those."""
    found: list[tuple[tuple[str, ...], bytes]] = []
    todo: list[tuple[tuple[str, ...], Any]] = [((), schema)]
    while todo:
        path, part = todo.pop()
        if not isinstance(part, dict) or len(path) > _MOST_DEEP:
            continue
        name = part.get("x-mcp-header")
        if path and isinstance(name, str):
            found.append((path, f"mcp-param-{name}".lower().encode()))
        inner = part.get("properties")
        if isinstance(inner, dict):
            todo += [((*path, key), value) for key, value in inner.items()]
    return found


def check_mirrored(
    message: Message, repeated: list[tuple[tuple[str, ...], bytes]], headers: Mapping[bytes, bytes]
) -> None:
    """Raise `Refusal` where the headers of a call do not say what its arguments do."""
    for path, header in repeated:
        value: Any = message.params.get("arguments")
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        given = headers.get(header)
        if isinstance(value, bool):
            value = "true" if value else "false"
        wanted = str(value) if isinstance(value, str | int | float) else None
        if (None if given is None else _decoded(given)) != wanted:
            words = f"The header {header.decode()} does not match the argument {'.'.join(path)}"
            raise Refusal(400, HEADER_MISMATCH, words, message.ident)


def _decoded(header: bytes) -> str | None:
    """A header's text; None for one whose encoding is broken."""
    text = header.decode("latin-1")
    found = _ENCODED.fullmatch(text)
    if found is None:
        return text
    try:
        return base64.b64decode(found[1], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None


def _unsupported(asked: str, ident: Ident) -> Refusal:
    data = {"supported": list(MODERN), "requested": asked[:100]}
    return Refusal(400, UNSUPPORTED_VERSION, "Unsupported protocol version", ident, data)


# What the server says


def error_body(ident: Ident, code: int, message: str, data: Any = None) -> bytes:
    problem: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        problem["data"] = data
    return orjson.dumps({"jsonrpc": "2.0", "id": ident, "error": problem})


def unknown_method(message: Message) -> Refusal:
    return Refusal(404, UNKNOWN_METHOD, f"Method not found: {message.method[:100]}", message.ident)


def result_body(ident: Ident, result: Mapping[str, Any], *, modern: bool) -> bytes:
    """A result other than that of a call. `modern`: with what the stateless protocol wants in each."""
    if modern:
        result = {**result, "resultType": "complete", "_meta": {SERVER_KEY: SERVER_INFO}}
    return orjson.dumps({"jsonrpc": "2.0", "id": ident, "result": result})


def discovered() -> dict[str, Any]:
    """The result of `server/discover`."""
    return {"supportedVersions": list(MODERN), "capabilities": {"tools": {}}, **_KEPT}


_KEPT = {"ttlMs": 60_000, "cacheScope": "public"}


def initialized(params: Mapping[str, Any]) -> dict[str, Any]:
    """The result of `initialize`, in the version that the client asks for, or the last one that had it."""
    asked = params.get("protocolVersion")
    return {
        "protocolVersion": asked if asked in LEGACY else LEGACY[0],
        "capabilities": {"tools": {"listChanged": False}},
        "serverInfo": SERVER_INFO,
    }


def listed_tool(spec: ToolSpec, *, structured: bool) -> dict[str, Any]:
    """A tool as `tools/list` has it. `structured`: its results have a schema."""
    listed = {
        "name": spec.name,
        "description": spec.description,
        "inputSchema": spec.parameters,
        "annotations": {"readOnlyHint": True, "idempotentHint": True, "openWorldHint": False},
    }
    if structured:
        listed["outputSchema"] = OUTPUT_SCHEMA
    return listed


OUTPUT_SCHEMA = {"type": "object", "required": ["answer"], "properties": {"answer": {"type": "object"}}}
"""The schema of structured results, where a scenario has them: what the text says, as `answer`."""


def listing(tools: list[dict[str, Any]], following: str | None, *, modern: bool) -> dict[str, Any]:
    """A page of `tools/list`."""
    page: dict[str, Any] = {"tools": tools}
    if following is not None:
        page["nextCursor"] = following
    return {**page, **_KEPT} if modern else page


@dataclass(slots=True)
class CallAnswer:
    """The answer to a call: the text of a result, or a JSON-RPC error. `ident` may be wrong, by a fault."""

    ident: Ident
    modern: bool
    text: str
    is_error: bool = False
    structured: Any = None
    code: int | None = None

    def body(self, server_ns: int) -> bytes:
        """The message, telling how long the server took."""
        if self.code is not None:
            return error_body(self.ident, self.code, self.text, {SERVER_NS: server_ns})
        structured = (
            b"" if self.structured is None else b'"structuredContent":%b,' % orjson.dumps(self.structured)
        )
        return (
            b'{"jsonrpc":"2.0","id":%b,"result":{"content":[{"type":"text","text":%b}],%b"isError":%b,'
            b'%b"_meta":{%b"%b":%d}}}'
        ) % (
            orjson.dumps(self.ident),
            orjson.dumps(self.text),
            structured,
            b"true" if self.is_error else b"false",
            b'"resultType":"complete",' if self.modern else b"",
            _SERVER_META + b"," if self.modern else b"",
            SERVER_NS.encode(),
            server_ns,
        )


def progress_body(token: str | int, step: int, steps: int) -> bytes:
    """A notification of progress."""
    params = {"progressToken": token, "progress": step, "total": steps}
    return orjson.dumps({"jsonrpc": "2.0", "method": "notifications/progress", "params": params})


def event(body: bytes) -> bytes:
    """A message as an event of a stream."""
    return b"event: message\ndata: %b\n\n" % body


def server_timing(server_ns: int) -> bytes:
    """The header line that tells how long the server took, in milliseconds to the nanosecond."""
    return b"server-timing: tool;dur=%d.%06d\r\n" % divmod(server_ns, 1_000_000)
