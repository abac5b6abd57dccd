"""OpenAI Chat Completions: requests checked and responses shaped as the provider does. Pure.

At the end, what the Responses API checks alike: tools, `tool_choice`, and the error envelope.
"""

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
    MadeCall,
    Offered,
    Said,
    ToolSets,
    call_tokens,
    pieces,
)

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_dumps = orjson.dumps


def parse(body: dict[str, Any], toolsets: ToolSets) -> Conversation:
    """Check a request body; raises `ApiError` with the provider's message, param and code."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        if model is not None and not isinstance(model, str):
            raise wrong_type("model", "a string", model)
        raise ApiError("you must provide a model parameter")
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise (
            missing("messages")
            if messages is None
            else wrong_type("messages", "an array of objects", messages)
        )
    if not messages:
        raise ApiError(
            "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array"
            " instead.",
            param="messages",
            code="empty_array",
        )
    n = body.get("n")
    if n is not None and n != 1:
        raise ApiError(f"Invalid value for 'n': {n}. Only 1 is supported.", param="n", code="invalid_value")
    tools = body.get("tools")
    offered = NO_TOOLS
    if tools is not None:
        if not isinstance(tools, list):
            raise wrong_type("tools", "an array of objects", tools)
        if not tools:
            raise ApiError(
                "Invalid 'tools': empty array. Expected an array with minimum length 1, but got an empty "
                "array instead.",
                param="tools",
                code="empty_array",
            )
        offered = toolsets.get(b"c" + _dumps(tools), lambda: tool_schemas(_functions(tools), "parameters"))
    choice = body.get("tool_choice")
    parallel = body.get("parallel_tool_calls")
    if parallel is not None and not offered.names:
        raise ApiError(
            "Invalid value for 'parallel_tool_calls': 'parallel_tool_calls' is only allowed when 'tools' are"
            " specified.",
            param="parallel_tool_calls",
        )
    stream = bool(body.get("stream"))
    options = body.get("stream_options")
    if options is not None and not stream:
        raise ApiError(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options"
        )
    if options is not None and not isinstance(options, dict):
        raise wrong_type("stream_options", "an object", options)
    turns, calls, call_id, results = _walk(messages)
    return Conversation(
        model=model,
        stream=stream,
        include_usage=bool(options and options.get("include_usage")),
        tools=offered,
        choice=tool_choice(choice, offered, choice.get("function") if isinstance(choice, dict) else None),
        parallel=parallel is not False,
        turns=turns,
        calls=calls,
        call_id=call_id,
        results=results,
        max_tokens=_limit(body),
    )


def _functions(tools: list[Any]) -> list[tuple[str, Any]]:
    functions = []
    for n, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise wrong_type(f"tools[{n}]", "an object", tool)
        if tool.get("type") != "function":
            raise (
                ApiError(
                    f"Invalid value: '{tool.get('type')}'. Supported values are: 'function'.",
                    param=f"tools[{n}].type",
                    code="invalid_value",
                )
                if tool.get("type") is not None
                else missing(f"tools[{n}].type")
            )
        functions.append((f"tools[{n}].function", tool.get("function")))
    return functions


def _limit(body: dict[str, Any]) -> int | None:
    limit = body.get("max_completion_tokens")
    old = body.get("max_tokens")
    if limit is not None and old is not None:
        raise ApiError(
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
            param="max_tokens",
        )
    key, value = ("max_tokens", old) if limit is None else ("max_completion_tokens", limit)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong_type(key, "an integer", value)
    if value < 1:
        raise ApiError(
            f"Invalid '{key}': integer below minimum value. Expected a value >= 1, but got {value} instead.",
            param=key,
            code="integer_below_min_value",
        )
    return value


def _walk(messages: list[Any]) -> tuple[int, int, str | None, list[Any]]:
    """One pass over the history: every rule about calls and their results, and where the loop stands."""
    turns = calls = 0
    call_id: str | None = None
    results: list[Any] = []
    pending: dict[str, int] | None = None  # call id → index of its result, -1 while there is none
    unanswered = 0
    for n, message in enumerate(messages):
        if not isinstance(message, dict):
            raise wrong_type(f"messages[{n}]", "an object", message)
        role = message.get("role")
        if role == "tool":
            if pending is None:
                raise ApiError(
                    "Invalid parameter: messages with role 'tool' must be a response to a preceeding message"
                    " with 'tool_calls'.",
                    param=f"messages.[{n}].role",
                )
            ident = message.get("tool_call_id")
            if not isinstance(ident, str):
                raise missing(f"messages.[{n}].tool_call_id")
            answered = pending.get(ident)
            if answered is None:
                raise ApiError(
                    f"Invalid parameter: 'tool_call_id' of '{ident}' not found in 'tool_calls' of previous"
                    " message.",
                    param=f"messages.[{n}].tool_call_id",
                )
            if answered >= 0:
                raise ApiError(
                    f"Invalid parameter: Duplicate value for 'tool_call_id' of '{ident}', in"
                    f" messages[{answered}] and messages[{n}].",
                    param=f"messages.[{n}].tool_call_id",
                )
            pending[ident] = n
            unanswered -= 1
            content = message.get("content")
            if content is None:
                raise missing(f"messages.[{n}].content")
            results.append(content)
            continue
        if unanswered and pending is not None:
            raise _unanswered(pending, n)
        pending = None
        content = message.get("content")
        if role == "assistant":
            made = message.get("tool_calls")
            if made is None:
                if (
                    content is None
                    and message.get("refusal") is None
                    and message.get("function_call") is None
                ):
                    raise ApiError(
                        f"Invalid value for 'content': expected a string, got null. (messages[{n}])",
                        param=f"messages.[{n}].content",
                    )
                continue
            pending = _made(made, n)
            unanswered = len(pending)
            turns += 1
            calls += unanswered
            if call_id is None:
                call_id = next(iter(pending))
            continue
        if role not in _ROLES:
            raise _role(role, n)
        if not isinstance(content, str | list):
            raise (
                missing(f"messages[{n}].content")
                if content is None
                else wrong_type(f"messages[{n}].content", "one of a string or array of objects", content)
            )
        if role == "user":
            turns = calls = 0
            call_id = None
            results = []
    if unanswered and pending is not None:
        raise _unanswered(pending, len(messages))
    return turns, calls, call_id, results


def _made(made: Any, n: int) -> dict[str, int]:
    if not isinstance(made, list) or not made:
        raise (
            ApiError(
                f"Invalid 'messages[{n}].tool_calls': empty array. Expected an array with minimum length 1,"
                " but got an empty array instead.",
                param=f"messages[{n}].tool_calls",
                code="empty_array",
            )
            if made == []
            else wrong_type(f"messages[{n}].tool_calls", "an array of objects", made)
        )
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


def _role(role: object, n: int) -> ApiError:
    if role is None:
        return missing(f"messages[{n}].role")
    return ApiError(
        f"Invalid value: '{role}'. Supported values are: 'system', 'assistant', 'user', 'function', 'tool',"
        " and 'developer'.",
        param=f"messages[{n}].role",
        code="invalid_value",
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
    start = _dumps(
        {
            "id": "chatcmpl-" + token,
            "object": "chat.completion.chunk",
            "created": created,
            "model": talk.model,
        }
    )
    head = b"data: " + start[:-1] + b',"service_tier":"default","system_fingerprint":"fp_emulator",'
    null_usage = b',"usage":null' if talk.include_usage else b""
    before = head + b'"choices":[{"index":0,"delta":'
    after = b',"logprobs":null,"finish_reason":null}]' + null_usage + b"}\n\n"
    out: list[Frame] = []

    def add(tokens: int, delta: bytes) -> None:
        out.append((tokens, before + delta + after))

    if said.calls:
        tokens = 0
        for n, call in enumerate(said.calls):
            opener = (
                b'"tool_calls":[{"index":%d,"id":"call_%b","type":"function",'
                b'"function":{"name":"%b","arguments":""}}]' % (n, call.token.encode(), call.name.encode())
            )
            if n == 0 and len(said.calls) == 1:
                add(tokens, b'{"role":"assistant","content":null,' + opener + b"}")
            else:
                if n == 0:
                    add(tokens, b'{"role":"assistant","content":null}')
                add(tokens, b"{" + opener + b"}")
            for end, piece in pieces(call.arguments, tokens_per_event):
                add(
                    tokens + 8 + end,
                    b'{"tool_calls":[{"index":%d,"function":{"arguments":%b}}]}' % (n, _dumps(piece)),
                )
            tokens += call_tokens(call)
    else:
        add(0, b'{"role":"assistant","content":"","refusal":null}')
        for end, piece in pieces(said.text or "", tokens_per_event):
            add(end, b'{"content":' + _dumps(piece) + b"}")
    last = said.output_tokens
    finish = said.finish.encode()
    out.append(
        (last, before + b'{},"logprobs":null,"finish_reason":"' + finish + b'"}]' + null_usage + b"}\n\n")
    )
    if talk.include_usage:
        out.append((last, head + b'"choices":[],"usage":' + _dumps(_usage(said)) + b"}\n\n"))
    out.append((last, b"data: [DONE]\n\n"))
    return out


# What both OpenAI APIs check alike.


def envelope(error: ApiError) -> bytes:
    """OpenAI's error body."""
    inner = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
    return orjson.dumps({"error": inner})


def missing(key: str) -> ApiError:
    """The error for a required parameter that is not there."""
    return ApiError(f"Missing required parameter: '{key}'.", param=key, code="missing_required_parameter")


def wrong_type(key: str, expected: str, value: object) -> ApiError:
    """The error for a parameter of the wrong JSON type."""
    found = {
        bool: "a boolean",
        int: "an integer",
        float: "a decimal",
        str: "a string",
        list: "an array",
        dict: "an object",
    }
    got = found.get(type(value), "null")
    return ApiError(
        f"Invalid type for '{key}': expected {expected}, but got {got} instead.",
        param=key,
        code="invalid_type",
    )


def tool_schemas(functions: list[tuple[str, Any]], parameters_key: str) -> dict[str, Mapping[str, Any]]:
    """Check functions given as (their path in the request, object); name → parameters.

    `parameters_key` is what the error's param ends in after the path.
    """
    schemas: dict[str, Mapping[str, Any]] = {}
    for path, function in functions:
        if not isinstance(function, dict):
            raise missing(path) if function is None else wrong_type(path, "an object", function)
        name = function.get("name")
        if not isinstance(name, str):
            raise missing(f"{path}.name")
        if not _NAME.fullmatch(name):
            raise ApiError(
                f"Invalid '{path}.name': string does not match pattern. Expected a string that matches the "
                "pattern '^[a-zA-Z0-9_-]+$'.",
                param=f"{path}.name",
                code="invalid_value",
            )
        parameters = function.get("parameters")
        if parameters is None:
            parameters = {"type": "object", "properties": {}}
        problem = _schema_problem(parameters)
        if problem is not None:
            raise ApiError(
                f"Invalid schema for function '{name}': {problem}",
                param=f"{path}.{parameters_key}",
                code="invalid_function_parameters",
            )
        schemas[name] = parameters
    return schemas


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
    if not isinstance(schema, dict):
        return None
    if schema.get("type") == "array" and "items" not in schema and "prefixItems" not in schema:
        return f"In context={context}, array schema missing items."
    properties = schema.get("properties")
    if isinstance(properties, dict):
        for key, part in properties.items():
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
    if value == "none":
        return Choice("none")
    if value == "required":
        return Choice("required")
    if isinstance(value, dict):
        if value.get("type") == "allowed_tools":
            return _allowed(value, offered)
        name = function.get("name") if isinstance(function, dict) else None
        if value.get("type") == "function" and isinstance(name, str):
            _known(name, offered)
            return Choice("named", (name,))
        raise missing("tool_choice.function.name" if value.get("type") == "function" else "tool_choice.type")
    raise ApiError(
        f"Invalid value: '{value}'. Supported values are: 'none', 'auto', and 'required'.",
        param="tool_choice",
        code="invalid_value",
    )


def _allowed(value: dict[str, Any], offered: Offered) -> Choice:
    inner = value.get("allowed_tools", value)  # Chat nests it, Responses does not
    tools = inner.get("tools") if isinstance(inner, dict) else None
    if not isinstance(tools, list) or not tools:
        raise missing("tool_choice.allowed_tools.tools")
    names = []
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, dict) else {}
        name = function.get("name") if isinstance(function, dict) else None
        _known(name, offered)
        names.append(str(name))
    return Choice("required" if inner.get("mode") == "required" else "auto", tuple(names))


def _known(name: object, offered: Offered) -> None:
    if name not in offered.names:
        raise ApiError(f"Tool choice '{name}' not found in 'tools' parameter.", param="tool_choice")
