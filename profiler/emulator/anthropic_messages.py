"""Anthropic Messages: requests checked as the provider checks them, responses as it shapes them. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

import orjson

from profiler.emulator.arguments import Allowance, Generator, compile_schema
from profiler.emulator.bodies import can_be_written
from profiler.emulator.conversation import (
    AUTO,
    NO_TOOLS,
    ApiError,
    Choice,
    Conversation,
    Event,
    MadeCall,
    Offered,
    Progress,
    Said,
    call_tokens,
    offer,
    pieces,
    reasoning,
    tokens_of,
    unnamed,
)
from profiler.emulator.offers import Offers
from profiler.emulator.work import SchemaError, TooMuch

_dumps = orjson.dumps
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_CHOICES = ("auto", "none", "any", "tool")
_STOP_REASONS = {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens"}
_OBJECT = "a valid dictionary or object to extract fields from"
_RESULT_BLOCKS = frozenset({"text", "image", "document", "search_result", "tool_reference"})
_USER_BLOCKS = _RESULT_BLOCKS | {"tool_result", "container_upload"}
PREFACE = "I'll look that up."
"""The text before the tool calls. It takes no time, so that the timing is the tape's on all APIs."""


def envelope(error: ApiError, request_id: str) -> bytes:
    """Anthropic's error body."""
    inner: dict[str, Any] = {"type": error.kind, "message": error.message}
    if error.details is not None:
        inner["details"] = dict(error.details)
    return _dumps({"type": "error", "error": inner, "request_id": request_id})


def parse(body: dict[str, Any], *, threads: bool = False, lenient: bool = False) -> Conversation:
    """Check a request body; raises `ApiError` with the provider's message.

    `lenient`: as in `openai_chat.parse`. `threads`: the request asks for the message-threads beta, which is
    refused so that the SDK's tool runner falls back to full history.
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
    offered = _offered(tools) if tools else NO_TOOLS
    choice, parallel = _choice(body.get("tool_choice"), offered)
    if body.get("system") is not None:
        _check_content("system", body["system"], frozenset({"text"}))
    thinking = body.get("thinking")
    must_think = isinstance(thinking, dict) and thinking.get("type") == "enabled"
    return Conversation(
        *(model, bool(body.get("stream")), True, offered, choice, parallel),
        *_walk(messages, lenient, must_think),
        limit,
        resumed=_resumed(messages),
    )


def _resumed(messages: list[Any]) -> bool:
    """Whether the last assistant message may be a paused turn: it has used a server's tool, and no other."""
    content = next((one["content"] for one in reversed(messages) if one["role"] == "assistant"), None)
    kinds = {block["type"] for block in content} if isinstance(content, list) else set()
    return "server_tool_use" in kinds and "tool_use" not in kinds


def _required(place: str) -> ApiError:
    return ApiError(f"{place}: Field required")


def _invalid(place: str, expected: str) -> ApiError:
    return ApiError(f"{place}: Input should be {expected}")


def _offered(tools: list[Any]) -> Offered:
    try:
        return _OFFERS(tools)
    except TooMuch as error:
        raise ApiError(f"tools: {error}") from error


def _compiled(tools: list[Any]) -> Offered:
    generators: dict[str, Generator] = {}
    allowance = Allowance()
    for n, tool in enumerate(tools):
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
        if name in generators:
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
            generators[name] = compile_schema(schema, allowance)
        except TooMuch as error:
            raise ApiError(f"{place}.input_schema: tool '{name}': {error}") from error
        except SchemaError as error:
            raise ApiError(
                f"{place}.input_schema: JSON schema is invalid. It must match JSON Schema draft"
                " 2020-12 (https://json-schema.org/draft/2020-12). Learn more about tool use at"
                " https://docs.claude.com/en/docs/tool-use."
            ) from error
    return offer(generators)


_OFFERS = Offers(_compiled)


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


def _check_content(place: str, content: object, kinds: Collection[str]) -> None:
    """Check a text, or a list of blocks of these `kinds`."""
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        raise _invalid(place, "a valid list")
    for k, block in enumerate(content):
        kind = _kind(f"{place}.{k}", block)
        if kind not in kinds:
            expected = ", ".join(f"'{one}'" for one in sorted(kinds))
            raise ApiError(
                f"{place}.{k}: Input tag '{kind}' found using 'type' does not match any of the expected tags:"
                f" {expected}"
            )
        _check_block(f"{place}.{k}.{kind}", kind, block)


_TEXT_MEMBERS = {"text": ("text",), "thinking": ("thinking", "signature"), "redacted_thinking": ("data",)}


def _check_block(place: str, kind: str, block: dict[str, Any]) -> None:
    for member in _TEXT_MEMBERS.get(kind, ()):
        if member not in block:
            raise _required(f"{place}.{member}")
        if not isinstance(block[member], str):
            raise _invalid(f"{place}.{member}", "a valid string")


def _check_texts(content: list[dict[str, Any]]) -> None:
    """A text of nothing is refused, though it may have come so."""
    for block in content:
        if block["type"] == "text" and not block["text"].strip():
            raise ApiError(
                "messages: text content blocks must contain non-whitespace text"
                if block["text"]
                else "messages: text content blocks must be non-empty"
            )


def _walk(messages: list[Any], lenient: bool, must_think: bool) -> Progress:
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
            answered, only_results = _results(n, content, pending, results, lenient)
            _check_texts(content)
            if answered.total() < len(pending):
                raise _unanswered(n - 1, [ident for ident in pending if ident not in answered])
            if not only_results and not answered:
                turns, calls, call_id, results = 0, 0, None, []
            pending = []
            continue
        if pending:
            raise _unanswered(n - 1, pending)
        pending, first = _uses(n, content, seen, lenient)
        _check_texts(content)
        call_id = call_id or first
        if pending:
            if must_think and content[0]["type"] not in ("thinking", "redacted_thinking"):
                raise ApiError(
                    f"messages.{n}.content.0.type: Expected `thinking` or `redacted_thinking`, but found"
                    f" `{content[0]['type']}`. When `thinking` is enabled, a final `assistant` message must"
                    " start with a thinking block (preceeding the lastmost set of `tool_use` and"
                    " `tool_result` blocks)."
                )
            turns += 1
            calls += len(pending)
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


def _kind(place: str, block: Any) -> str:
    if not isinstance(block, dict):
        raise _invalid(place, _OBJECT)
    kind = block.get("type")
    if not isinstance(kind, str):
        raise _required(f"{place}.type")
    return kind


def _uses(n: int, content: list[Any], seen: set[str], lenient: bool) -> tuple[list[str], str | None]:
    """The ids of the tool_use blocks of assistant message `n`, which are added to those `seen`.

    And what names the first of them, or the server's own tool where a paused turn has no other.
    """
    ids = []
    first = searched = None
    for k, block in enumerate(content):
        place = f"messages.{n}.content.{k}"
        kind = _kind(place, block)
        if kind == "tool_use":
            ident = block.get("id")
            if lenient and ident is None:
                ident = ""
            if not isinstance(ident, str):
                raise _required(f"{place}.tool_use.id")
            if ident in seen and not lenient:
                raise ApiError(f"{place}: `tool_use` ids must be unique")
            if not isinstance(block.get("name"), str):
                raise _required(f"{place}.tool_use.name")
            given = block.get("input")
            if not isinstance(given, dict) and not (lenient and given in (None, "")):
                raise _invalid(f"{place}.tool_use.input", "a valid dictionary")
            seen.add(ident)
            ids.append(ident)
            if not first:
                first = ident or _unnamed(block["name"], given)
        elif kind == "tool_result":
            raise ApiError(f"messages.{n}: `tool_result` blocks can only be in `user` messages")
        else:
            _check_block(f"{place}.{kind}", kind, block)
            if kind == "server_tool_use" and isinstance(block.get("id"), str):
                searched = block["id"]
    return ids, first or searched


def _unnamed(name: str, given: object) -> str:
    """The key of a call without an id; one that is nested too deeply to be written was never ours."""
    return unnamed(name, _dumps(given).decode() if can_be_written(given) else None)


def _results(
    n: int, content: list[Any], pending: list[str], results: list[Any], lenient: bool
) -> tuple[Counter[str], bool]:
    """The ids that user message `n` answers, and whether it holds nothing else; `results` grows."""
    answered: Counter[str] = Counter()
    wanted = Counter(pending)
    only = True
    _check_content(f"messages.{n}.content", content, _USER_BLOCKS)
    for k, block in enumerate(content):
        if block["type"] != "tool_result":
            only = False
            continue
        place = f"messages.{n}.content.{k}"
        ident = block.get("tool_use_id")
        if lenient and "" in wanted and (not isinstance(ident, str) or ident not in wanted):
            ident = ""
        if not isinstance(ident, str):
            raise _required(f"{place}.tool_result.tool_use_id")
        if ident in answered and answered[ident] >= wanted[ident]:
            raise ApiError(
                f"{place}: each tool_use must have a single result. "
                f"Found multiple `tool_result` blocks with id: {ident}"
            )
        if ident not in wanted:
            raise ApiError(
                f"{place}: unexpected `tool_use_id` found in `tool_result` blocks: {ident}. "
                "Each `tool_result` block must have a corresponding `tool_use` block in the previous message."
            )
        answered[ident] += 1
        if "content" in block:
            _check_content(f"{place}.tool_result.content", block["content"], _RESULT_BLOCKS)
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
            "input_tokens": said.uncached_tokens,
            "cache_creation_input_tokens": said.cache_written_tokens,
            "cache_read_input_tokens": said.cached_tokens,
            "cache_creation": {
                f"ephemeral_{ttl}_input_tokens": said.cache_written_tokens if ttl == said.cache_ttl else 0
                for ttl in ("5m", "1h")
            },
            "output_tokens": 1 if output_tokens is None else output_tokens,
            "service_tier": "standard",
        },
    }


def _text(said: Said) -> str:
    return PREFACE if said.calls else said.text or ""


def output_tokens(said: Said) -> int:
    """All output tokens that this API counts: with the preface, which takes no time."""
    return said.output_tokens + (tokens_of(PREFACE) if said.calls else 0)


def _usage(said: Said) -> dict[str, Any]:
    """The usage at the end of a stream."""
    counted: dict[str, Any] = {"output_tokens": output_tokens(said)}
    if said.reasoning_tokens:
        counted["output_tokens_details"] = {"thinking_tokens": said.reasoning_tokens}
    return counted


def _use(call: MadeCall, value: object) -> dict[str, Any]:
    block = {"type": "tool_use", "id": call.id, "name": call.name, "input": value}
    left_out = [*(["id"] if call.id is None else []), *(["input"] if call.form == "missing" else [])]
    return {member: block[member] for member in block if member not in left_out}


def _odd_input(call: MadeCall) -> Any:
    """The value of an input that a fault has sent in another form than an object."""
    return orjson.loads(call.arguments) if call.form == "object" else "" if call.form == "empty" else None


def _signature(token: str) -> str:
    """The signature of a thinking block, which a client has to send back; it looks like the provider's."""
    return "EqQB" + token * 3 + "=="


def render(said: Said, talk: Conversation, token: str) -> dict[str, Any]:
    """A `message`."""
    content: list[dict[str, Any]] = []
    thought = reasoning(said)
    if thought:
        content.append({"type": "thinking", "thinking": thought, "signature": _signature(token)})
    content.append({"type": "text", "text": _text(said)})
    for call in said.calls:
        try:
            value = orjson.loads(call.arguments) if call.form == "text" else _odd_input(call)
        except orjson.JSONDecodeError:
            continue  # cut by max_tokens: a body cannot hold half an object
        content.append(_use(call, value))
    message = _message(said, talk, token, content, output_tokens(said))
    message["usage"] |= _usage(said)
    return message


def _block(out: list[Event], tokens: int, block: dict[str, Any], deltas: Iterable[Event]) -> None:
    """Add the events of a content block, the last of which come with its last delta."""
    index = {"index": sum(event["type"] == "content_block_start" for _, event in out)}
    out.append((tokens, {"type": "content_block_start", **index, "content_block": block}))
    for tokens, delta in deltas:
        out.append((tokens, {"type": "content_block_delta", **index, "delta": delta}))
    out.append((tokens, {"type": "content_block_stop", **index}))


def events(said: Said, talk: Conversation, token: str, tokens_per_event: int) -> list[Event]:
    """The events of the same response, in the provider's order."""
    out: list[Event] = [(0, {"type": "message_start", "message": _message(said, talk, token, [], None)})]
    tokens = said.reasoning_tokens
    if tokens:
        deltas: list[Event] = [
            (end, {"type": "thinking_delta", "thinking": piece})
            for end, piece in pieces(reasoning(said), tokens_per_event)
        ]
        deltas.append((tokens, {"type": "signature_delta", "signature": _signature(token)}))
        _block(out, 0, {"type": "thinking", "thinking": "", "signature": ""}, deltas)
    # A preface is one piece that takes no tokens.
    text = pieces(_text(said), 1 << 30 if said.calls else tokens_per_event, tokens)
    shown = [(tokens if said.calls else end, {"type": "text_delta", "text": piece}) for end, piece in text]
    _block(out, tokens, {"type": "text", "text": ""}, shown)
    for call in said.calls:
        made: list[Event] = [(tokens, {"type": "input_json_delta", "partial_json": ""})]
        for end, piece in pieces(call.deltas, tokens_per_event, tokens + 8):
            made.append((end, {"type": "input_json_delta", "partial_json": piece}))
        end = tokens + call_tokens(call)
        if call.form == "text":
            _block(out, tokens, _use(call, {}), made)
        else:
            _block(out, tokens, _use(call, _odd_input(call)), [])
        out[-1] = (end, out[-1][1])
        tokens = end
    out.insert(2, (0, {"type": "ping"}))
    delta = {"stop_reason": _STOP_REASONS[said.finish], "stop_sequence": None}
    out.append((said.output_tokens, {"type": "message_delta", "delta": delta, "usage": _usage(said)}))
    out.append((said.output_tokens, {"type": "message_stop"}))
    return out


def frame(event: dict[str, Any]) -> bytes:
    """One event as it is sent."""
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), _dumps(event))


_PING, _END = frame({"type": "ping"}), frame({"type": "message_stop"})


def plain_frames(
    said: Said, talk: Conversation, token: str, tokens_per_event: int
) -> list[tuple[int, bytes]]:
    """The frames of `events` without reasoning or faults, as `openai_chat.plain_frames`."""
    begun = {"type": "message_start", "message": _message(said, talk, token, [], None)}
    out: list[tuple[int, bytes]] = [
        (0, frame(begun)),
        (0, _start(0, {"type": "text", "text": ""})),
        (0, _PING),
    ]
    end = 0
    if said.calls:
        out.append((0, _delta(0, b'"text_delta","text"', PREFACE)))
    else:
        for end, piece in pieces(said.text or "", tokens_per_event):
            out.append((end, _delta(0, b'"text_delta","text"', piece)))
    out.append((end, _stop(0)))
    tokens = 0
    for n, call in enumerate(said.calls, start=1):
        out.append((tokens, _start(n, _use(call, {}))))
        out.append((tokens, _delta(n, b'"input_json_delta","partial_json"', "")))
        for end, piece in pieces(call.arguments, tokens_per_event, tokens + 8):
            out.append((end, _delta(n, b'"input_json_delta","partial_json"', piece)))
        tokens += call_tokens(call)
        out.append((tokens, _stop(n)))
    delta = {"stop_reason": _STOP_REASONS[said.finish], "stop_sequence": None}
    last = frame({"type": "message_delta", "delta": delta, "usage": _usage(said)})
    return [*out, (said.output_tokens, last), (said.output_tokens, _END)]


def _start(index: int, block: dict[str, Any]) -> bytes:
    return (
        b'event: content_block_start\ndata: {"type":"content_block_start","index":%d,"content_block":%b}\n\n'
        % (index, _dumps(block))
    )


def _delta(index: int, kind: bytes, piece: str) -> bytes:
    return (
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":%b:%b}}'
        b"\n\n" % (index, kind, _dumps(piece))
    )


def _stop(index: int) -> bytes:
    return b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n' % index
