"""OpenAI Chat Completions: requests checked as the provider checks them, responses as it shapes them. Pure.

The Responses API shares what stands at the end: tools, `tool_choice`, limits and errors.
"""

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
    MadeCall,
    Offered,
    Progress,
    Said,
    call_tokens,
    offer,
    pieces,
)

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_TYPES = {
    bool: "a boolean",
    int: "an integer",
    float: "a decimal",
    str: "a string",
    list: "an array",
    dict: "an object",
}
_dumps = orjson.dumps


def parse(body: dict[str, Any]) -> Conversation:
    """Check a request body; raises `ApiError` with the provider's message, param and code."""
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise wrong_type("model", "a string", model)
    if not model:
        raise ApiError("you must provide a model parameter")
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise missing_or_wrong("messages", "an array of objects", messages)
    if not messages:
        raise _empty_array("messages")
    n = body.get("n")
    if n is not None and n != 1:
        raise ApiError(f"Invalid value for 'n': {n}. Only 1 is supported.", param="n", code="invalid_value")
    tools = body.get("tools")
    if tools == []:
        raise _empty_array("tools")
    offered = offered_tools(tools, nested=True)
    choice, parallel = body.get("tool_choice"), body.get("parallel_tool_calls")
    if parallel is not None and not offered.names:
        raise ApiError(
            "Invalid value for 'parallel_tool_calls': 'parallel_tool_calls' is only allowed when 'tools' are"
            " specified.",
            param="parallel_tool_calls",
        )
    stream, options = bool(body.get("stream")), body.get("stream_options")
    if options is not None and not stream:
        raise ApiError(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options"
        )
    if options is not None and not isinstance(options, dict):
        raise wrong_type("stream_options", "an object", options)
    include_usage = bool(options and options.get("include_usage"))
    progress = _walk(messages)
    chosen = tool_choice(choice, offered, choice.get("function") if isinstance(choice, dict) else None)
    limit = _limit(body)
    return Conversation(
        model, stream, include_usage, offered, chosen, parallel is not False, *progress, limit
    )


def _limit(body: dict[str, Any]) -> int | None:
    limit, old = body.get("max_completion_tokens"), body.get("max_tokens")
    if limit is None:
        return token_limit("max_tokens", old, 1)
    if old is not None:
        raise ApiError(
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
            param="max_tokens",
        )
    return token_limit("max_completion_tokens", limit, 1)


def _walk(messages: list[Any]) -> Progress:
    """One pass over the history that checks every rule about calls and their results."""
    turns = calls = 0
    call_id: str | None = None
    results: list[Any] = []
    pending: dict[str, int] = {}  # ids of the last message's calls → index of the result, -1 without one
    unanswered = 0
    for n, message in enumerate(messages):
        if not isinstance(message, dict):
            raise wrong_type(f"messages[{n}]", "an object", message)
        role, content = message.get("role"), message.get("content")
        if role == "tool":
            if not pending:
                raise ApiError(
                    "Invalid parameter: messages with role 'tool' must be a response to a preceeding message"
                    " with 'tool_calls'.",
                    param=f"messages.[{n}].role",
                )
            ident = message.get("tool_call_id")
            if not isinstance(ident, str):
                raise missing(f"messages.[{n}].tool_call_id")
            answered = pending.get(ident)
            if answered != -1:
                raise ApiError(
                    f"Invalid parameter: 'tool_call_id' of '{ident}' not found in 'tool_calls' of previous"
                    " message."
                    if answered is None
                    else f"Invalid parameter: Duplicate value for 'tool_call_id' of '{ident}', in"
                    f" messages[{answered}] and messages[{n}].",
                    param=f"messages.[{n}].tool_call_id",
                )
            pending[ident] = n
            unanswered -= 1
            if content is None:
                raise missing(f"messages.[{n}].content")
            results.append(content)
            continue
        if unanswered:
            raise _unanswered(pending, n)
        pending = {}
        made = message.get("tool_calls")
        if role == "assistant" and made is not None:
            pending = _made(made, n)
            unanswered = len(pending)
            turns += 1
            calls += unanswered
            call_id = call_id or next(iter(pending))
        elif role == "assistant":
            if content is None and message.get("refusal") is None and message.get("function_call") is None:
                raise ApiError(
                    f"Invalid value for 'content': expected a string, got null. (messages[{n}])",
                    param=f"messages.[{n}].content",
                )
        elif role not in _ROLES:
            supported = "'system', 'assistant', 'user', 'function', 'tool', and 'developer'"
            raise missing_or_unsupported(f"messages[{n}].role", role, supported)
        elif not isinstance(content, str | list):
            raise missing_or_wrong(f"messages[{n}].content", "one of a string or array of objects", content)
        elif role == "user":
            turns, calls, call_id, results = 0, 0, None, []
    if unanswered:
        raise _unanswered(pending, len(messages))
    return turns, calls, call_id, results


def _made(made: Any, n: int) -> dict[str, int]:
    """The ids of the calls of assistant message `n`, without results."""
    if made == []:
        raise _empty_array(f"messages[{n}].tool_calls")
    if not isinstance(made, list):
        raise wrong_type(f"messages[{n}].tool_calls", "an array of objects", made)
    pending: dict[str, int] = {}
    for k, call in enumerate(made):
        if not isinstance(call, dict):
            raise wrong_type(f"messages[{n}].tool_calls[{k}]", "an object", call)
        ident, function = call.get("id"), call.get("function")
        if not isinstance(ident, str):
            raise missing(f"messages[{n}].tool_calls[{k}].id")
        if not isinstance(function, dict):
            raise missing(f"messages[{n}].tool_calls[{k}].function")
        for key in ("name", "arguments"):
            if not isinstance(function.get(key), str):
                raise missing(f"messages[{n}].tool_calls[{k}].function.{key}")
        pending[ident] = -1
    return pending


def _unanswered(pending: dict[str, int], n: int) -> ApiError:
    ids = ", ".join(ident for ident, answered in pending.items() if answered < 0)
    return ApiError(
        "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
        f"'tool_call_id'. The following tool_call_ids did not have response messages: {ids}",
        param=f"messages.[{n}].role",
    )


def _empty_array(key: str) -> ApiError:
    return ApiError(
        f"Invalid '{key}': empty array. Expected an array with minimum length 1, but got an empty array"
        " instead.",
        param=key,
        code="empty_array",
    )


def _usage(said: Said) -> dict[str, Any]:
    return {
        "prompt_tokens": said.input_tokens,
        "completion_tokens": said.output_tokens,
        "total_tokens": said.input_tokens + said.output_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _call(call: MadeCall) -> dict[str, Any]:
    return {
        "id": "call_" + call.token,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def render(said: Said, talk: Conversation, token: str, created: int) -> bytes:
    """A `chat.completion` body; `created` in seconds since the epoch."""
    message: dict[str, Any] = {"role": "assistant", "content": said.text, "refusal": None, "annotations": []}
    if said.calls:
        message["tool_calls"] = [_call(call) for call in said.calls]
    return _dumps(
        {
            "id": "chatcmpl-" + token,
            "object": "chat.completion",
            "created": created,
            "model": talk.model,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": said.finish}],
            "usage": _usage(said),
            "service_tier": "default",
            "system_fingerprint": "fp_emulator",
        }
    )


def frames(said: Said, talk: Conversation, token: str, created: int, tokens_per_event: int) -> list[Frame]:
    """The SSE frames of the same response, in the provider's order."""
    start = {
        "id": "chatcmpl-" + token,
        "object": "chat.completion.chunk",
        "created": created,
        "model": talk.model,
        "service_tier": "default",
        "system_fingerprint": "fp_emulator",
    }
    head = b"data: " + _dumps(start)[:-1] + b","
    null_usage = b',"usage":null' if talk.include_usage else b""
    before = head + b'"choices":[{"index":0,"delta":'
    after = b',"logprobs":null,"finish_reason":null}]' + null_usage + b"}\n\n"
    out: list[Frame] = []

    def add(tokens: int, delta: bytes) -> None:
        out.append((tokens, before + delta + after))

    if not said.calls:
        add(0, b'{"role":"assistant","content":"","refusal":null}')
        for end, piece in pieces(said.text or "", tokens_per_event):
            add(end, b'{"content":' + _dumps(piece) + b"}")
    # The role comes in a chunk of its own, or with the first call where that is the only one.
    role = b'{"role":"assistant","content":null'
    if len(said.calls) > 1:
        add(0, role + b"}")
    opening = role + b"," if len(said.calls) == 1 else b"{"
    tokens = 0
    for n, call in enumerate(said.calls):
        made = b'{"index":%d,"id":"call_%b","type":"function","function":{"name":"%b","arguments":""}}'
        made %= (n, call.token.encode(), call.name.encode())
        add(tokens, opening + b'"tool_calls":[' + made + b"]}")
        for end, piece in pieces(call.arguments, tokens_per_event):
            delta = b'{"tool_calls":[{"index":%d,"function":{"arguments":%b}}]}' % (n, _dumps(piece))
            add(tokens + 8 + end, delta)
        tokens += call_tokens(call)
    last = said.output_tokens
    finish = b'{},"logprobs":null,"finish_reason":"%b"}]%b}\n\n' % (said.finish.encode(), null_usage)
    out.append((last, before + finish))
    if talk.include_usage:
        out.append((last, head + b'"choices":[],"usage":' + _dumps(_usage(said)) + b"}\n\n"))
    out.append((last, b"data: [DONE]\n\n"))
    return out


# What both OpenAI APIs check alike.


def envelope(error: ApiError) -> bytes:
    """OpenAI's error body."""
    inner = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
    return _dumps({"error": inner})


def missing(key: str) -> ApiError:
    """The error for a required parameter that is not there."""
    return ApiError(f"Missing required parameter: '{key}'.", param=key, code="missing_required_parameter")


def wrong_type(key: str, expected: str, value: object) -> ApiError:
    """The error for a parameter of the wrong JSON type."""
    return ApiError(
        f"Invalid type for '{key}': expected {expected}, but got {_TYPES.get(type(value), 'null')} instead.",
        param=key,
        code="invalid_type",
    )


def missing_or_wrong(key: str, expected: str, value: object) -> ApiError:
    """The error for a required parameter that is not there or has the wrong JSON type."""
    return missing(key) if value is None else wrong_type(key, expected, value)


def unsupported(key: str, value: object, supported: str) -> ApiError:
    """The error for a parameter with a value that is not one of those `supported`."""
    return ApiError(
        f"Invalid value: '{value}'. Supported values are: {supported}.", param=key, code="invalid_value"
    )


def missing_or_unsupported(key: str, value: object, supported: str) -> ApiError:
    """The error for a required parameter that is not there or has none of the `supported` values."""
    return missing(key) if value is None else unsupported(key, value, supported)


def token_limit(key: str, value: Any, least: int) -> int | None:
    """Check an optional limit of output tokens."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong_type(key, "an integer", value)
    if value < least:
        raise ApiError(
            f"Invalid '{key}': integer below minimum value. Expected a value >= {least}, but got {value}"
            " instead.",
            param=key,
            code="integer_below_min_value",
        )
    return value


def offered_tools(tools: Any, *, nested: bool) -> Offered:
    """Check `tools`. `nested`: a tool keeps its function in a member of its own, as Chat has it."""
    if tools is None:
        return NO_TOOLS
    if not isinstance(tools, list):
        raise wrong_type("tools", "an array of objects", tools)
    return _compiled(_dumps(tools), nested)


@lru_cache(maxsize=1024)  # clients repeat the same list in every request
def _compiled(tools: bytes, nested: bool) -> Offered:
    schemas: dict[str, Mapping[str, Any]] = {}
    for n, tool in enumerate(orjson.loads(tools)):
        path, function = f"tools[{n}]", tool
        if not isinstance(tool, dict):
            raise wrong_type(path, "an object", tool)
        if tool.get("type") != "function":
            refused = missing_or_unsupported if nested else unsupported
            raise refused(f"{path}.type", tool.get("type"), "'function'")
        if nested:
            path, function = f"{path}.function", tool.get("function")
        if not isinstance(function, dict):
            raise missing_or_wrong(path, "an object", function)
        name, parameters = function.get("name"), function.get("parameters")
        if not isinstance(name, str):
            raise missing(f"{path}.name")
        if not _NAME.fullmatch(name):
            raise ApiError(
                f"Invalid '{path}.name': string does not match pattern. Expected a string that matches the "
                "pattern '^[a-zA-Z0-9_-]+$'.",
                param=f"{path}.name",
                code="invalid_value",
            )
        schemas[name] = {"type": "object", "properties": {}} if parameters is None else parameters
        problem = _schema_problem(schemas[name])
        if problem is not None:
            raise ApiError(
                f"Invalid schema for function '{name}': {problem}",
                param=f"{path}.parameters",
                code="invalid_function_parameters",
            )
    return offer(schemas)


def _schema_problem(schema: object) -> str | None:
    if not isinstance(schema, dict) or schema.get("type") != "object":
        kind = schema.get("type") if isinstance(schema, dict) else type(schema).__name__
        return f"schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{kind}\"'."
    if "properties" not in schema:
        return "In context=(), object schema missing properties."
    problem = _missing_items(schema, ())
    if problem is not None:
        return problem
    try:
        compile_schema(schema)
    except (SchemaError, TypeError, ValueError) as error:
        return f"{error}."
    return None


def _missing_items(schema: object, context: tuple[str, ...]) -> str | None:
    """OpenAI alone insists that an array says what its items are."""
    if not isinstance(schema, dict):
        return None
    if schema.get("type") == "array" and "items" not in schema and "prefixItems" not in schema:
        return f"In context={context}, array schema missing items."
    properties = schema.get("properties")
    for key, part in properties.items() if isinstance(properties, dict) else ():
        problem = _missing_items(part, (*context, "properties", key))
        if problem is not None:
            return problem
    return _missing_items(schema.get("items"), (*context, "items"))


def tool_choice(value: object, offered: Offered, function: object) -> Choice:
    """Check `tool_choice`; `function` is where the API keeps the named tool (None when it is no object)."""
    if value is None or value == "auto":
        return AUTO
    if not offered.names:
        raise ApiError(
            "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified.",
            param="tool_choice",
        )
    if value == "none" or value == "required":
        return Choice(value)
    if not isinstance(value, dict):
        raise unsupported("tool_choice", value, "'none', 'auto', and 'required'")
    kind = value.get("type")
    if kind == "allowed_tools":
        return _allowed(value, offered)
    name = function.get("name") if isinstance(function, dict) else None
    if kind != "function" or not isinstance(name, str):
        raise missing("tool_choice.function.name" if kind == "function" else "tool_choice.type")
    return Choice("named", (_known(name, offered),))


def _allowed(value: dict[str, Any], offered: Offered) -> Choice:
    inner = value.get("allowed_tools", value)  # Chat nests it, Responses does not
    tools = inner.get("tools") if isinstance(inner, dict) else None
    if not isinstance(tools, list) or not tools:
        raise missing("tool_choice.allowed_tools.tools")
    names = []
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, dict) else {}
        names.append(_known(function.get("name") if isinstance(function, dict) else None, offered))
    return Choice("required" if inner.get("mode") == "required" else "auto", tuple(names))


def _known(name: Any, offered: Offered) -> str:
    if name not in offered.names:
        raise ApiError(f"Tool choice '{name}' not found in 'tools' parameter.", param="tool_choice")
    return str(name)
