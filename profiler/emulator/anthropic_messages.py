"""Anthropic Messages: requests checked as the provider checks them, responses as it shapes them. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import orjson

from profiler.emulator.arguments import SchemaError, compile_schema
from profiler.emulator.conversation import (
    AUTO,
    NO_TOOLS,
    ApiError,
    Choice,
    Conversation,
    Frame,
    Offered,
    Progress,
    Said,
    call_tokens,
    offer,
    pieces,
    tokens_of,
)

_dumps = orjson.dumps
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_CHOICES = ("auto", "none", "any", "tool")
_STOP_REASONS = {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens"}
_OBJECT = "a valid dictionary or object to extract fields from"
PREFACE = "I'll look that up."
"""The text before the tool calls. It takes no time, so that the timing is the tape's on all APIs."""


def envelope(error: ApiError, request_id: str) -> bytes:
    """Anthropic's error body."""
    inner: dict[str, Any] = {"type": error.kind, "message": error.message}
    if error.details is not None:
        inner["details"] = dict(error.details)
    return _dumps({"type": "error", "error": inner, "request_id": request_id})


def parse(body: dict[str, Any], *, threads: bool = False) -> Conversation:
    """Check a request body; raises `ApiError` with the provider's message.

    `threads`: the request asks for the message-threads beta, which is refused so that the SDK's tool runner
    falls back to full history.
    """
    if threads or "thread" in body:
        raise ApiError(
            "thread: message threads are not supported by this server",
            details={"error_code": "thread_unsupported_request"},
        )
    for key in ("model", "messages", "max_tokens"):
        if body.get(key) is None:
            raise _required(key)
    model, messages, limit = body["model"], body["messages"], body["max_tokens"]
    if not isinstance(model, str):
        raise _invalid("model", "a valid string")
    if not isinstance(messages, list):
        raise _invalid("messages", "a valid list")
    if not messages:
        raise ApiError("messages: at least one message is required")
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise _invalid("max_tokens", "a valid integer")
    if limit < 1:
        raise _invalid("max_tokens", "greater than or equal to 1")
    tools = body.get("tools")
    if tools and not isinstance(tools, list):
        raise _invalid("tools", "a valid list")
    offered = _compiled(_dumps(tools)) if tools else NO_TOOLS
    choice, parallel = _choice(body.get("tool_choice"), offered)
    stream = bool(body.get("stream"))
    return Conversation(model, stream, True, offered, choice, parallel, *_walk(messages), limit)


def _required(place: str) -> ApiError:
    return ApiError(f"{place}: Field required")


def _invalid(place: str, expected: str) -> ApiError:
    return ApiError(f"{place}: Input should be {expected}")


@lru_cache(maxsize=512)  # clients repeat the same list in every request
def _compiled(tools: bytes) -> Offered:
    schemas: dict[str, Mapping[str, Any]] = {}
    for n, tool in enumerate(orjson.loads(tools)):
        if not isinstance(tool, dict):
            raise _invalid(f"tools.{n}", _OBJECT)
        if tool.get("type", "custom") not in ("custom", None):
            raise ApiError(
                f"tools.{n}: server tools such as {tool['type']!r} are not supported by this server"
            )
        name, schema, place = tool.get("name"), tool.get("input_schema"), f"tools.{n}.custom"
        if not isinstance(name, str):
            raise _required(f"{place}.name")
        if not _NAME.fullmatch(name):
            raise ApiError(f"{place}.name: String should match pattern '^{_NAME.pattern}$'")
        if name in schemas:
            raise ApiError("tools: Tool names must be unique.")
        if schema is None:
            raise _required(f"{place}.input_schema")
        if not isinstance(schema, dict):
            raise _invalid(f"{place}.input_schema", "a valid dictionary")
        if schema.get("type") is None:
            raise _required(f"{place}.input_schema.type")
        if schema["type"] != "object":
            raise _invalid(f"{place}.input_schema.type", "'object'")
        try:
            compile_schema(schema)
        except (SchemaError, TypeError, ValueError) as error:
            raise ApiError(
                f"{place}.input_schema: JSON schema is invalid. It must match JSON Schema draft"
                " 2020-12 (https://json-schema.org/draft/2020-12). Learn more about tool use at"
                " https://docs.claude.com/en/docs/tool-use."
            ) from error
        schemas[name] = schema
    return offer(schemas)


def _choice(value: Any, offered: Offered) -> tuple[Choice, bool]:
    if value is None:
        return AUTO, True
    if not isinstance(value, dict) or value.get("type") not in _CHOICES:
        raise ApiError(
            f"tool_choice: Input tag '{value.get('type') if isinstance(value, dict) else value}' found using"
            " 'type' does not match any of the expected tags: 'auto', 'any', 'tool', 'none'"
        )
    if not offered.names:
        raise ApiError("tool_choice: tool_choice may only be specified while providing tools")
    parallel = not value.get("disable_parallel_tool_use")
    kind = value["type"]
    if kind == "tool":
        name = value.get("name")
        if not isinstance(name, str):
            raise _required("tool_choice.tool.name")
        if name not in offered.names:
            raise ApiError(f"Tool '{name}' not found in provided tools")
        return Choice("named", (name,)), parallel
    return Choice("required" if kind == "any" else kind), parallel


def _walk(messages: list[Any]) -> Progress:
    """One pass over the history that checks every rule about tool_use and tool_result."""
    turns = calls = 0
    call_id: str | None = None
    results: list[Any] = []
    pending: list[str] = []  # ids of the tool_use blocks of the message before
    seen: set[str] = set()
    for n, message in enumerate(messages):
        if not isinstance(message, dict):
            raise _invalid(f"messages.{n}", _OBJECT)
        role, content = message.get("role"), message.get("content")
        if role != "user" and role != "assistant":
            raise _required(f"messages.{n}.role") if role is None else _unexpected_role(role)
        if isinstance(content, str):
            if pending:
                raise _unanswered(n - 1, pending)
            if role == "user":
                turns, calls, call_id, results = 0, 0, None, []
            continue
        if not isinstance(content, list):
            place = f"messages.{n}.content"
            raise _required(place) if content is None else _invalid(place, "a valid list")
        if role == "user":
            answered, only_results = _results(n, content, pending, results)
            if len(answered) < len(pending):
                raise _unanswered(n - 1, [ident for ident in pending if ident not in answered])
            if not only_results and not answered:
                turns, calls, call_id, results = 0, 0, None, []
            pending = []
            continue
        if pending:
            raise _unanswered(n - 1, pending)
        pending = _uses(n, content, seen)
        if pending:
            turns += 1
            calls += len(pending)
            call_id = call_id or pending[0]
    if pending:
        raise _unanswered(len(messages) - 1, pending)
    return turns, calls, call_id, results


def _unexpected_role(role: object) -> ApiError:
    hint = (
        "Use the top-level `system` parameter to provide a system prompt."
        if role == "system"
        else "Tool results are `tool_result` blocks of a user message."
    )
    return ApiError(f'messages: Unexpected role "{role}". Allowed roles are "user" or "assistant". {hint}')


def _kind(n: int, k: int, block: Any) -> str:
    if not isinstance(block, dict):
        raise _invalid(f"messages.{n}.content.{k}", _OBJECT)
    kind = block.get("type")
    if not isinstance(kind, str):
        raise _required(f"messages.{n}.content.{k}.type")
    return kind


def _uses(n: int, content: list[Any], seen: set[str]) -> list[str]:
    """The ids of the tool_use blocks of assistant message `n`, which are added to those `seen`."""
    ids = []
    for k, block in enumerate(content):
        kind = _kind(n, k, block)
        if kind == "tool_use":
            ident = block.get("id")
            if not isinstance(ident, str):
                raise _required(f"messages.{n}.content.{k}.tool_use.id")
            if ident in seen:
                raise ApiError(f"messages.{n}.content.{k}: `tool_use` ids must be unique")
            if not isinstance(block.get("name"), str):
                raise _required(f"messages.{n}.content.{k}.tool_use.name")
            if not isinstance(block.get("input"), dict):
                raise _invalid(f"messages.{n}.content.{k}.tool_use.input", "a valid dictionary")
            seen.add(ident)
            ids.append(ident)
        elif kind == "tool_result":
            raise ApiError(f"messages.{n}: `tool_result` blocks can only be in `user` messages")
    return ids


def _results(n: int, content: list[Any], pending: list[str], results: list[Any]) -> tuple[set[str], bool]:
    """The ids that user message `n` answers, and whether it holds nothing else; `results` grows."""
    answered: set[str] = set()
    only = True
    for k, block in enumerate(content):
        if _kind(n, k, block) != "tool_result":
            only = False
            continue
        ident = block.get("tool_use_id")
        if not isinstance(ident, str):
            raise _required(f"messages.{n}.content.{k}.tool_result.tool_use_id")
        if ident in answered:
            raise ApiError(
                f"messages.{n}.content.{k}: each tool_use must have a single result. "
                f"Found multiple `tool_result` blocks with id: {ident}"
            )
        if ident not in pending:
            raise ApiError(
                f"messages.{n}.content.{k}: unexpected `tool_use_id` found in `tool_result` blocks: {ident}. "
                "Each `tool_result` block must have a corresponding `tool_use` block in the previous message."
            )
        answered.add(ident)
        results.append(block.get("content") or "")
    return answered, only


def _unanswered(n: int, pending: list[str]) -> ApiError:
    return ApiError(
        f"messages.{n}: `tool_use` ids were found without `tool_result` blocks immediately after:"
        f" {', '.join(pending)}. Each `tool_use` block must have a corresponding `tool_result` block in the"
        " next message."
    )


def _message(
    said: Said, talk: Conversation, token: str, content: list[dict[str, Any]], output_tokens: int | None
) -> dict[str, Any]:
    """A `message` object; without `output_tokens`, one that has just begun."""
    return {
        "id": "msg_" + token,
        "type": "message",
        "role": "assistant",
        "model": talk.model,
        "content": content,
        "stop_reason": None if output_tokens is None else _STOP_REASONS[said.finish],
        "stop_sequence": None,
        "usage": {
            "input_tokens": said.input_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 1 if output_tokens is None else output_tokens,
            "service_tier": "standard",
        },
    }


def _text(said: Said) -> str:
    return PREFACE if said.calls else said.text or ""


def _output_tokens(said: Said) -> int:
    return said.output_tokens + (tokens_of(PREFACE) if said.calls else 0)


def render(said: Said, talk: Conversation, token: str, created: int) -> bytes:
    """A `message` body."""
    content: list[dict[str, Any]] = [{"type": "text", "text": _text(said)}]
    for call in said.calls:
        try:
            value = orjson.loads(call.arguments)
        except orjson.JSONDecodeError:
            continue  # cut by max_tokens: a body cannot hold half an object
        content.append({"type": "tool_use", "id": "toolu_" + call.token, "name": call.name, "input": value})
    return _dumps(_message(said, talk, token, content, _output_tokens(said)))


_PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_START = b'event: content_block_start\ndata: {"type":"content_block_start","index":%d,"content_block":'
_DELTA = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":'
_TEXT_START = _START + b'{"type":"text","text":""}}\n\n'
_TEXT_DELTA = _DELTA + b'{"type":"text_delta","text":%b}}\n\n'
_CALL_START = _START + b'{"type":"tool_use","id":"toolu_%b","name":"%b","input":{}}}\n\n'
_CALL_DELTA = _DELTA + b'{"type":"input_json_delta","partial_json":%b}}\n\n'
_BLOCK_STOP = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n'
_MESSAGE_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


def _frame(kind: str, **members: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _dumps({"type": kind, **members}))


def frames(said: Said, talk: Conversation, token: str, created: int, tokens_per_event: int) -> list[Frame]:
    """The SSE frames of the same response, in the provider's order."""
    start = _frame("message_start", message=_message(said, talk, token, [], None))
    out: list[Frame] = [(0, start), (0, _TEXT_START % 0), (0, _PING)]
    tokens = 0
    # A preface is one piece that takes no tokens.
    for end, piece in pieces(_text(said), 1 << 30 if said.calls else tokens_per_event):
        tokens = 0 if said.calls else end
        out.append((tokens, _TEXT_DELTA % (0, _dumps(piece))))
    out.append((tokens, _BLOCK_STOP % 0))
    for n, call in enumerate(said.calls, 1):
        out.append((tokens, _CALL_START % (n, call.token.encode(), call.name.encode())))
        out.append((tokens, _CALL_DELTA % (n, b'""')))
        for end, piece in pieces(call.arguments, tokens_per_event):
            out.append((tokens + 8 + end, _CALL_DELTA % (n, _dumps(piece))))
        tokens += call_tokens(call)
        out.append((tokens, _BLOCK_STOP % n))
    delta = {"stop_reason": _STOP_REASONS[said.finish], "stop_sequence": None}
    out.append((tokens, _frame("message_delta", delta=delta, usage={"output_tokens": _output_tokens(said)})))
    out.append((tokens, _MESSAGE_STOP))
    return out
