"""The wire of the Model Context Protocol, both eras of it: what is sent, and what an answer means. Pure.

`MODERN` is stateless: `server/discover`, then every request carries its version and the client's capabilities
in `_meta`. `HANDSHAKE` is what came before: `initialize`, then a session, over HTTP with an id in a header.
"""

from __future__ import annotations

import base64
import importlib.metadata
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from profiler.mcp.session import META, ListedTool, ServerInfo, code_error


def _version() -> str:
    try:
        return importlib.metadata.version("toolcall-profiler")
    except importlib.metadata.PackageNotFoundError:  # run from its source
        return "0"


MODERN = "2026-07-28"
HANDSHAKE = "2025-11-25"

OF_PROTOCOL = "io.modelcontextprotocol/"
"""Prefix of the protocol's own keys in `_meta`."""

CLIENT = {"name": "toolcall-profiler", "version": _version()}

CANCELLED = "notifications/cancelled"
PROGRESS = "notifications/progress"

METHOD_NOT_FOUND = -32601
HEADER_MISMATCH = -32020

INVALID_REPLY = "invalid_reply"
"""`error_type` of an answer that is none: no JSON-RPC, another request's, nothing at all."""
INPUT_REQUIRED = "input_required"
TOO_LARGE = "too_large"

MOST_WORDS = 500
"""Characters that are shown of what a server said about a failure."""

Message = dict[str, Any]


def encoded(message: Mapping[str, Any]) -> bytes:
    """A message as JSON without line breaks. Raises `ValueError` or `TypeError` for what JSON cannot hold."""
    try:
        return orjson.dumps(message)
    except TypeError:  # integers of more than 64 bits, half of a pair of surrogates
        return json.dumps(message, separators=(",", ":"), allow_nan=False).encode()


def decoded(data: bytes | str) -> Any:
    """JSON. Raises `ValueError`, also for what is nested too deeply."""
    try:
        return orjson.loads(data)
    except ValueError:
        try:
            return json.loads(data)  # it takes half of a pair of surrogates, NaN, and more depth
        except RecursionError as error:
            raise ValueError(str(error)) from None


def envelope(modern: bool) -> Message:
    """What every request's `_meta` holds."""
    if not modern:
        return {}
    return {
        f"{OF_PROTOCOL}protocolVersion": MODERN,
        f"{OF_PROTOCOL}clientInfo": CLIENT,
        f"{OF_PROTOCOL}clientCapabilities": {},
    }


def request(number: int, method: str, params: Mapping[str, Any], meta: Mapping[str, Any]) -> Message:
    """A request; without `_meta` where that would be empty."""
    whole = {**params, "_meta": meta} if meta else params
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": whole}


def notification(method: str, params: Mapping[str, Any] | None = None) -> Message:
    """A notification: a request without an id, which nobody answers."""
    return {"jsonrpc": "2.0", "method": method, **({"params": params} if params else {})}


def initialize_params() -> Message:
    """Of `initialize`."""
    return {"protocolVersion": HANDSHAKE, "capabilities": {}, "clientInfo": CLIENT}


def reply_to(message: Mapping[str, Any]) -> Message | None:
    """Our answer to what a server asks its client: nothing but `ping` is served. None: a notification."""
    if "id" not in message:
        return None
    answer: Message = {"jsonrpc": "2.0", "id": message["id"]}
    if message.get("method") == "ping":
        return {**answer, "result": {}}
    words = f"this client does not serve {str(message.get('method'))[:60]}"
    return {**answer, "error": {"code": METHOD_NOT_FOUND, "message": words}}


def is_asking(message: Mapping[str, Any]) -> bool:
    """The server's own request or notification, no answer."""
    return "method" in message


def answers(message: Mapping[str, Any], number: int) -> bool:
    """Whether a message is the answer to this request. (Some servers turn a number into text.)"""
    found = message.get("id")
    if found is True or found is False:
        return False
    return (found == number or found == str(number)) and ("result" in message or "error" in message)


def answers_nobody(message: Mapping[str, Any]) -> bool:
    """An error of a server that could not read which request it answers."""
    return message.get("id") is None and "error" in message and "method" not in message


# What opens a session.


def discovered(result: Any) -> ServerInfo | None:
    """From the result of `server/discover`; None where it offers no version of the modern era."""
    if not isinstance(result, Mapping):
        return None
    versions = result.get("supportedVersions")
    if not isinstance(versions, Sequence) or MODERN not in versions:
        return None
    meta = result.get("_meta")
    named = meta.get(f"{OF_PROTOCOL}serverInfo") if isinstance(meta, Mapping) else None
    return _greeting(named or result.get("serverInfo"), MODERN)


def initialized(result: Any) -> ServerInfo | None:
    """From the result of `initialize`; None where it is none."""
    if not isinstance(result, Mapping):
        return None
    protocol = result.get("protocolVersion")
    if not isinstance(protocol, str) or not protocol or not may_be_sent(protocol):
        return None
    return _greeting(result.get("serverInfo"), protocol[:40])


def _greeting(named: Any, protocol: str) -> ServerInfo:
    named = named if isinstance(named, Mapping) else {}
    return ServerInfo(str(named.get("name") or "")[:200], str(named.get("version") or "")[:100], protocol)


# Headers of HTTP.

_PLAIN = re.compile(r"[\x20-\x7e]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ENCODED = re.compile(r"=\?base64\?.*\?=")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,100}")


def may_be_sent(text: str) -> bool:
    """Whether a header can hold what a server wants to be told again: no character of control."""
    return not _CONTROL.search(text)


def header_value(text: str) -> str:
    """A text as the value of a header: as it is, or in base64 where a header could not hold it."""
    if _PLAIN.fullmatch(text) and text == text.strip() and not _ENCODED.fullmatch(text):
        return text
    return f"=?base64?{base64.b64encode(text.encode('utf-8', 'replace')).decode()}?="


def base_headers(protocol: str | None, session_id: str | None) -> dict[str, str]:
    """Of every POST. `protocol` None: it is not agreed on yet."""
    headers = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
    if protocol is not None:
        headers["mcp-protocol-version"] = protocol
    if session_id is not None:
        headers["mcp-session-id"] = session_id
    return headers


def modern_headers(method: str, tool: str | None = None) -> dict[str, str]:
    """What the modern era repeats of a request in its headers."""
    headers = {"mcp-method": method}
    if tool is not None:
        headers["mcp-name"] = header_value(tool)
    return headers


Mirrored = Mapping[tuple[str, ...], str]
"""Arguments that a server wants in headers too: the path of each, and the header's name."""


def mirrored(schema: Any) -> Mirrored:
    """From the `x-mcp-header` marks of a tool's schema."""
    return dict(_marks(schema, ()))


def _marks(schema: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(properties, Mapping) or len(path) > 8:
        return
    for name, inner in properties.items():
        mark = inner.get("x-mcp-header") if isinstance(inner, Mapping) else None
        if isinstance(mark, str) and _TOKEN.fullmatch(mark):
            yield (*path, name), f"Mcp-Param-{mark}"
        yield from _marks(inner, (*path, name))


def argument_headers(wanted: Mirrored, arguments: Mapping[str, Any]) -> dict[str, str]:
    """The headers of these arguments; those that are missing, null, or no plain value have none."""
    headers = {}
    for path, header in wanted.items():
        value: Any = arguments
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, bool):
            headers[header] = "true" if value else "false"
        elif isinstance(value, str | int | float):
            headers[header] = header_value(str(value))
    return headers


def server_timing_ns(header: str | None) -> int | None:
    """How long the server took, from a `Server-Timing` header.

    The metric `total` where there is one, else the longest: parts may lie inside each other.
    """
    if not header:
        return None
    found: dict[str, float] = {}
    for metric in header.split(",")[:50]:
        name, *parameters = (part.strip() for part in metric.split(";"))
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip().lower() == "dur":
                try:
                    milliseconds = float(value.strip().strip('"'))
                except ValueError:
                    continue
                if 0 <= milliseconds < 1e9:
                    found[name.lower()] = milliseconds
    if not found:
        return None
    return round(found.get("total", max(found.values())) * 1e6)


# Server-sent events.

_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventReader:
    """Parses a stream of server-sent events: pieces in, the data of whole events out.

    Events of other kinds than `message` are left out. `last_id` is that of the last event that had one.
    """

    __slots__ = ("_after_cr", "_begun", "_data", "_kind", "_parts", "last_id", "pending")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._data: list[bytes] = []
        self._kind = b""
        self._after_cr = False
        self._begun = False
        self.last_id = b""
        self.pending = 0
        """Bytes of the event that has not ended yet."""

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that end in this piece."""
        if not self._begun and piece:
            self._begun = True
            piece = piece.removeprefix(b"\xef\xbb\xbf")
        if self._after_cr and piece[:1] == b"\n":
            piece = piece[1:]
            self._after_cr = False
        if not piece:
            return []
        self._after_cr = piece.endswith(b"\r")
        self.pending += len(piece)
        lines = _LINE_END.split(piece)
        if len(lines) == 1:
            self._parts.append(piece)
            return []
        if self._parts:
            lines[0] = b"".join((*self._parts, lines[0]))
        self._parts = [lines.pop()]
        events = []
        for line in lines:
            if not line:
                if self._data:
                    if self._kind in (b"", b"message"):
                        events.append(b"\n".join(self._data))
                    self._data = []
                self._kind = b""
                self.pending = len(self._parts[0])
                continue
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"data":
                self._data.append(value)
            elif field == b"event":
                self._kind = value
            elif field == b"id":
                self.last_id = value
        return events


# What an answer means.


@dataclass(frozen=True, slots=True)
class Meaning:
    """What the answer to a call of a tool says; as in `CallResult`."""

    text: str
    error_type: str | None = None
    server_ns: int | None = None


def meaning(message: Mapping[str, Any]) -> Meaning:
    """Of the answer to `tools/call`."""
    if "error" in message:
        return Meaning(error_words(message["error"]), error_type_of(message["error"]))
    result = message.get("result")
    if not isinstance(result, Mapping):
        return Meaning("the server answered without a result", INVALID_REPLY)
    server_ns = _server_ns(result.get("_meta"))
    if result.get("resultType") == "input_required":
        words = (
            "the server asks for input before it goes on (a question to the user, or to a model), "
            "which a load test cannot give"
        )
        return Meaning(words, INPUT_REQUIRED, server_ns)
    content, structured = result.get("content"), result.get("structuredContent")
    if content is None and structured is None and "toolResult" in result:  # of the first version
        return Meaning(_as_text(result["toolResult"]), None, server_ns)
    text = content_text(content)
    if not text and structured is not None:
        text = _as_text(structured)
    return Meaning(text, "tool_error" if result.get("isError") is True else None, server_ns)


def content_text(content: Any) -> str:
    """What a model sees of a result's content: its texts, and what else there is as short JSON."""
    if not isinstance(content, list):
        return "" if content is None else _as_text(content)
    return "\n".join(map(_block_text, content))


_SHOWN = ("type", "mimeType", "uri", "name", "title")


def _block_text(block: Any) -> str:
    if not isinstance(block, Mapping):
        return _as_text(block)
    text = block.get("text")
    if block.get("type") == "text" and isinstance(text, str):
        return text
    inner = block.get("resource")
    resource = inner if isinstance(inner, Mapping) else {}
    if isinstance(resource.get("text"), str):
        return str(resource["text"])
    whole = {**resource, **block}
    shown = {key: whole[key] for key in _SHOWN if isinstance(whole.get(key), str)}
    data = block.get("data", resource.get("blob"))
    if isinstance(data, str):
        shown["bytes"] = len(data) * 3 // 4
    return _as_text(shown)


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return encoded(value).decode("utf-8", "replace")
    except (ValueError, RecursionError):  # what can just be read may be too deep to be written
        return "a value that is nested too deeply to be shown"


def _server_ns(meta: Any) -> int | None:
    value = meta.get(f"{META}serverNs") if isinstance(meta, Mapping) else None
    return value if type(value) is int and 0 <= value < 2**62 else None


def error_code(error: Any) -> object:
    """Of a JSON-RPC error."""
    return error.get("code") if isinstance(error, Mapping) else None


def error_type_of(error: Any) -> str:
    """`rpc_-32602` and the like."""
    code = error_code(error)
    return code_error(code if type(code) is int else None)


def error_words(error: Any) -> str:
    """What a JSON-RPC error says."""
    if not isinstance(error, Mapping):
        return _as_text(error)[:MOST_WORDS] or "an error without words"
    words = error.get("message")
    said = words if isinstance(words, str) and words else f"error {error.get('code')}"
    data = error.get("data")
    if isinstance(data, str | int | float) and str(data) not in said:
        said = f"{said}: {data}"
    return said[:MOST_WORDS]


def messages(value: Any) -> list[Message]:
    """The messages in a JSON value: one, or a batch of them (2025-03-26 had those)."""
    found = value if isinstance(value, list) else [value]
    return [one for one in found if isinstance(one, dict)]


# The listing.


def listed(result: Any) -> tuple[list[ListedTool], str | None] | None:
    """The tools of one page of `tools/list`, and where the next one begins; None where it is no listing."""
    tools = result.get("tools") if isinstance(result, Mapping) else None
    if not isinstance(tools, list):
        return None
    found = [
        _listed_tool(one) for one in tools if isinstance(one, Mapping) and isinstance(one.get("name"), str)
    ]
    cursor = result.get("nextCursor")
    return found, cursor if isinstance(cursor, str) else None


def _listed_tool(tool: Mapping[str, Any]) -> ListedTool:
    hints, schema = tool.get("annotations"), tool.get("inputSchema")
    return ListedTool(
        tool["name"],
        str(tool.get("description") or ""),
        schema if isinstance(schema, Mapping) else {"type": "object"},
        isinstance(hints, Mapping) and hints.get("readOnlyHint") is True,
    )
