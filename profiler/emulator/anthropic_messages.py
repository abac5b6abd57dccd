"""Anthropic Messages: requests checked as the provider checks them, responses as it shapes them. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
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
    Said,
    ToolSets,
    call_tokens,
    pieces,
    tokens_of,
)  # fmt: skip

_dumps = orjson.dumps
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_CHOICES = ("auto", "none", "any", "tool")
PREFACE = "I'll look that up."
"""What the model says before it calls tools; it takes no time, so that all APIs keep the tape's."""


def envelope(error: ApiError, request_id: str) -> bytes:
    """Anthropic's error body."""
    inner: dict[str, Any] = {"type": error.kind, "message": error.message}
    if error.details is not None:
        inner["details"] = dict(error.details)
    return _dumps({"type": "error", "error": inner, "request_id": request_id})


def parse(body: dict[str, Any], toolsets: ToolSets, *, threads: bool = False) -> Conversation:
    """Check a request body. `threads`: the request asks for the message-threads beta, which is refused so
    that the SDK's tool runner falls back to full history."""
    if threads or "thread" in body:
        raise ApiError(
            "thread: message threads are not supported by this server",
            details={"error_code": "thread_unsupported_request"},
        )
    for key in ("model", "messages", "max_tokens"):
        if body.get(key) is None:
            raise ApiError(f"{key}: Field required")
    model, messages, limit = body["model"], body["messages"], body["max_tokens"]
    if not isinstance(model, str):
        raise ApiError("model: Input should be a valid string")
    if not isinstance(messages, list):
        raise ApiError("messages: Input should be a valid list")
    if not messages:
        raise ApiError("messages: at least one message is required")
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise ApiError("max_tokens: Input should be a valid integer")
    if limit < 1:
        raise ApiError("max_tokens: Input should be greater than or equal to 1")
    tools = body.get("tools")
    offered = NO_TOOLS
    if tools:
        if not isinstance(tools, list):
            raise ApiError("tools: Input should be a valid list")
        offered = toolsets.get(b"a" + _dumps(tools), lambda: _schemas(tools))
    choice, parallel = _choice(body.get("tool_choice"), offered)
    turns, calls, call_id, results = _walk(messages)
    return Conversation(
        model=model,
        stream=bool(body.get("stream")),
        include_usage=True,
        tools=offered,
        choice=choice,
        parallel=parallel,
        turns=turns,
        calls=calls,
        call_id=call_id,
        results=results,
        max_tokens=limit,
    )


def _schemas(tools: list[Any]) -> dict[str, Mapping[str, Any]]:
    schemas: dict[str, Mapping[str, Any]] = {}
    for n, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise ApiError(f"tools.{n}: Input should be a valid dictionary or object to extract fields from")
        if tool.get("type", "custom") not in ("custom", None):
            raise ApiError(
                f"tools.{n}: server tools such as {tool['type']!r} are not supported by this server"
            )
        name, schema = tool.get("name"), tool.get("input_schema")
        if not isinstance(name, str):
            raise ApiError(f"tools.{n}.custom.name: Field required")
        if not _NAME.fullmatch(name):
            raise ApiError(f"tools.{n}.custom.name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$'")
        if name in schemas:
            raise ApiError("tools: Tool names must be unique.")
        if schema is None:
            raise ApiError(f"tools.{n}.custom.input_schema: Field required")
        if not isinstance(schema, dict):
            raise ApiError(f"tools.{n}.custom.input_schema: Input should be a valid dictionary")
        if schema.get("type") is None:
            raise ApiError(f"tools.{n}.custom.input_schema.type: Field required")
        if schema["type"] != "object":
            raise ApiError(f"tools.{n}.custom.input_schema.type: Input should be 'object'")
        try:
            compile_schema(schema)
        except (SchemaError, TypeError, ValueError) as error:
            raise ApiError(
                f"tools.{n}.custom.input_schema: JSON schema is invalid. It must match JSON Schema draft"
                " 2020-12 (https://json-schema.org/draft/2020-12). Learn more about tool use at"
                " https://docs.claude.com/en/docs/tool-use."
            ) from error
        schemas[name] = schema
    return schemas


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
            raise ApiError("tool_choice.tool.name: Field required")
        if name not in offered.names:
            raise ApiError(f"Tool '{name}' not found in provided tools")
        return Choice("named", (name,)), parallel
    return Choice("required" if kind == "any" else kind), parallel


def _walk(messages: list[Any]) -> tuple[int, int, str | None, list[Any]]:
    """One pass over the history: every rule about tool_use and tool_result, and where the loop stands."""
    turns = calls = 0
    call_id: str | None = None
    results: list[Any] = []
    pending: list[str] = []  # ids of the tool_use blocks of the message before
    seen: set[str] = set()
    for n, message in enumerate(messages):
        if not isinstance(message, dict):
            raise ApiError(
                f"messages.{n}: Input should be a valid dictionary or object to extract fields from"
            )
        role, content = message.get("role"), message.get("content")
        if role != "user" and role != "assistant":
            if role is None:
                raise ApiError(f"messages.{n}.role: Field required")
            raise ApiError(
                f'messages: Unexpected role "{role}". Allowed roles are "user" or "assistant". '
                "Use the top-level `system` parameter to provide a system prompt."
                if role == "system"
                else (
                    f'messages: Unexpected role "{role}". Allowed roles are "user" or "assistant". '
                    "Tool results are `tool_result` blocks of a user message."
                )
            )
        if isinstance(content, str):
            if pending:
                raise _unanswered(n - 1, pending)
            if role == "user":
                turns, calls, call_id, results = 0, 0, None, []
            continue
        if not isinstance(content, list):
            raise ApiError(f"messages.{n}.content: Field required" if content is None else
                           f"messages.{n}.content: Input should be a valid list")  # fmt: skip
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
        for k, block in enumerate(content):
            kind = _kind(n, k, block)
            if kind == "tool_use":
                ident = block.get("id")
                if not isinstance(ident, str):
                    raise ApiError(f"messages.{n}.content.{k}.tool_use.id: Field required")
                if ident in seen:
                    raise ApiError(f"messages.{n}.content.{k}: `tool_use` ids must be unique")
                if not isinstance(block.get("name"), str):
                    raise ApiError(f"messages.{n}.content.{k}.tool_use.name: Field required")
                if not isinstance(block.get("input"), dict):
                    raise ApiError(
                        f"messages.{n}.content.{k}.tool_use.input: Input should be a valid dictionary"
                    )
                seen.add(ident)
                pending.append(ident)
            elif kind == "tool_result":
                raise ApiError(f"messages.{n}: `tool_result` blocks can only be in `user` messages")
        if pending:
            turns += 1
            calls += len(pending)
            call_id = call_id or pending[0]
    if pending:
        raise _unanswered(len(messages) - 1, pending)
    return turns, calls, call_id, results


def _kind(n: int, k: int, block: Any) -> str:
    if not isinstance(block, dict):
        raise ApiError(
            f"messages.{n}.content.{k}: Input should be a valid dictionary or object to extract fields from"
        )
    kind = block.get("type")
    if not isinstance(kind, str):
        raise ApiError(f"messages.{n}.content.{k}.type: Field required")
    return kind


def _results(n: int, content: list[Any], pending: list[str], results: list[Any]) -> tuple[set[str], bool]:
    """The ids answered by a user message, and whether it holds nothing else."""
    answered: set[str] = set()
    only = True
    for k, block in enumerate(content):
        if _kind(n, k, block) != "tool_result":
            only = False
            continue
        ident = block.get("tool_use_id")
        if not isinstance(ident, str):
            raise ApiError(f"messages.{n}.content.{k}.tool_result.tool_use_id: Field required")
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


def _finish(said: Said) -> str:
    return {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens"}[said.finish]


def _usage(said: Said, output_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": said.input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": output_tokens,
        "service_tier": "standard",
    }


def render(said: Said, talk: Conversation, token: str, created: int) -> bytes:
    """A `message` body."""
    content: list[dict[str, Any]] = [{"type": "text", "text": PREFACE if said.calls else said.text or ""}]
    for call in said.calls:
        try:
            value = orjson.loads(call.arguments)
        except orjson.JSONDecodeError:
            continue  # cut by max_tokens: a body cannot hold half an object
        content.append({"type": "tool_use", "id": "toolu_" + call.token, "name": call.name, "input": value})
    return _dumps(
        {
            "id": "msg_" + token,
            "type": "message",
            "role": "assistant",
            "model": talk.model,
            "content": content,
            "stop_reason": _finish(said),
            "stop_sequence": None,
            "usage": _usage(said, said.output_tokens + (tokens_of(PREFACE) if said.calls else 0)),
        }
    )


def _frame(kind: str, value: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _dumps(value))


_PING = b'event: ping\ndata: {"type":"ping"}\n\n'


def frames(said: Said, talk: Conversation, token: str, created: int, tokens_per_event: int) -> list[Frame]:
    """The SSE frames of the same response, in the provider's order."""
    message: dict[str, Any] = {
        "id": "msg_" + token,
        "type": "message",
        "role": "assistant",
        "model": talk.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(said, 1),
    }
    out: list[Frame] = [
        (0, _frame("message_start", {"type": "message_start", "message": message})),
        (
            0,
            (
                b"event: content_block_start\ndata:"
                b' {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n'
            ),
        ),
        (0, _PING),
    ]
    text = PREFACE if said.calls else said.text or ""
    tokens = 0
    for end, piece in pieces(text, 1 << 30 if said.calls else tokens_per_event):
        tokens = 0 if said.calls else end
        out.append(
            (
                tokens,
                b"event: content_block_delta\ndata:"
                b' {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":%b}}\n\n'
                % _dumps(piece),
            )
        )
    out.append((tokens, _stop(0)))
    for n, call in enumerate(said.calls, 1):
        out.append(
            (
                tokens,
                b'event: content_block_start\ndata: {"type":"content_block_start","index":%d,'
                b'"content_block":{"type":"tool_use","id":"toolu_%b","name":"%b","input":{}}}\n\n'
                % (n, call.token.encode(), call.name.encode()),
            )
        )
        out.append((tokens, _json_delta(n, b'""')))
        for end, piece in pieces(call.arguments, tokens_per_event):
            out.append((tokens + 8 + end, _json_delta(n, _dumps(piece))))
        tokens += call_tokens(call)
        out.append((tokens, _stop(n)))
    output = said.output_tokens + (tokens_of(PREFACE) if said.calls else 0)
    delta = {"stop_reason": _finish(said), "stop_sequence": None}
    out.append(
        (
            tokens,
            _frame(
                "message_delta", {"type": "message_delta", "delta": delta, "usage": {"output_tokens": output}}
            ),
        )
    )
    out.append((tokens, b'event: message_stop\ndata: {"type":"message_stop"}\n\n'))
    return out


def _stop(n: int) -> bytes:
    return b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n' % n


def _json_delta(n: int, text: bytes) -> bytes:
    return (
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
        b'"delta":{"type":"input_json_delta","partial_json":%b}}\n\n' % (n, text)
    )
