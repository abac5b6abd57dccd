"""Programs that name their spans' attributes in their own way, in the words of the GenAI conventions.

    Claude Code   bare names (`model`, `input_tokens`); a tool span holds the wait for an approval and the
                  execution, each in a span of its own
    MLflow        `mlflow.spanType` and others, each value as JSON text
    Spring AI     `spring.ai.kind`
    LangSmith     `langsmith.span.kind`, where an older version says nothing else
    LiteLLM       below its own span, or one of the application's, one of the request as it was sent; its
                  values are as Python prints them

`translated` gives the attributes that `genai.span_of` looks at. What a span says in the conventions' words
already is left as it is, but for an operation that its own kind tells more exactly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from profiler.recordings.genai_replies import counted, parsed

Attributes = Mapping[str, Any]

_OPERATION = "gen_ai.operation.name"
RUN, WAIT = "tool.execution", "tool.blocked_on_user"
"""Operations of the two parts of a tool call; the conventions have none."""

_CLAUDE_CODE = {
    "interaction": "invoke_agent",
    "llm_request": "chat",
    "tool": "execute_tool",
    RUN: RUN,
    WAIT: WAIT,
}
_MLFLOW = {"LLM": "chat", "CHAT_MODEL": "chat", "TOOL": "execute_tool", "AGENT": "invoke_agent"}
_SPRING = {"chat_client": "invoke_agent", "tool_call": "execute_tool"}
_LANGSMITH = {"llm": "chat", "tool": "execute_tool"}

LITELLM, LITELLM_RAW = "litellm_request", "raw_gen_ai_request"

KEYS = frozenset(
    {
        *(
            "span.type",
            "tool_name",
            "tool_use_id",
            "model",
            "stop_reason",
            "request_id",
            "ttft_ms",
            "attempt",
        ),
        *("input_tokens", "output_tokens", "cache_read_tokens", "cache_creation_tokens"),
        *("success", "status_code", "decision", "agent_name"),
        *("mlflow.spanType", "mlflow.llm.model", "mlflow.chat.tokenUsage", "mlflow.spanOutputs"),
        *("spring.ai.kind", "spring.ai.tool.definition.name", "spring.ai.chat.client.conversation.id"),
        "langsmith.span.kind",
        *(
            f"llm.{provider}.{key}"
            for provider in ("openai", "azure", "anthropic")
            for key in ("model", "usage")
        ),
    }
)
"""The attributes that are looked at here."""


def translated(name: str, attributes: Attributes) -> Attributes:
    """The attributes of a span of that name, in the conventions' words."""
    if name.startswith("claude_code."):
        return _of_claude_code(name.removeprefix("claude_code."), attributes)
    if "mlflow.spanType" in attributes:
        return _of_mlflow(name, attributes)
    if "spring.ai.kind" in attributes:
        return _of_spring(attributes)
    if name == LITELLM_RAW:
        return _of_litellm(attributes)
    operation = _LANGSMITH.get(str(attributes.get("langsmith.span.kind")))
    if operation is not None and _OPERATION not in attributes:
        return {**attributes, _OPERATION: operation}
    return attributes


def _of_claude_code(kind: str, attributes: Attributes) -> Attributes:
    result = dict(attributes)
    result.pop(_OPERATION, None)
    operation = _CLAUDE_CODE.get(kind)
    if operation is None:
        return result
    result[_OPERATION] = operation
    get = attributes.get
    if operation == "execute_tool":
        _set(result, "gen_ai.tool.name", get("tool_name"))
        _set(result, "gen_ai.tool.call.id", get("tool_use_id"))
    elif operation == WAIT and get("decision") == "reject":
        result["error.type"] = "CancelledError"
    if operation == "chat":
        _set(result, "gen_ai.system", "anthropic")
        _set(result, "gen_ai.request.model", get("model"))
        _set(result, "gen_ai.response.id", get("request_id"))
        _set(result, "gen_ai.response.finish_reasons", get("stop_reason"))
        _set(result, "http.response.status_code", get("status_code"))
        attempt, first = counted(get("attempt")), get("ttft_ms")
        if attempt:
            _set(result, "http.request.resend_count", attempt - 1)
        if isinstance(first, int | float | str):
            _set(result, "ai.stream.msToFirstChunk", first)
        # What was read from the cache, and what was written to it, are not in the input.
        parts = [counted(get(key)) for key in ("input_tokens", "cache_read_tokens", "cache_creation_tokens")]
        if parts[0] is not None:
            result["gen_ai.usage.input_tokens"] = sum(one or 0 for one in parts)
            result["gen_ai.provider.name"] = "anthropic"
        _set(result, "gen_ai.usage.cache_read.input_tokens", parts[1])
        _set(result, "gen_ai.usage.cache_creation.input_tokens", parts[2])
        _set(result, "gen_ai.usage.output_tokens", get("output_tokens"))
    if str(get("success")).lower() == "false":
        status = counted(get("status_code"))
        _set(result, "error.type", f"http_{status}" if operation == "chat" and status else "error")
    return result


def _of_mlflow(name: str, attributes: Attributes) -> Attributes:
    result = {key: value for key, value in attributes.items() if key != "mlflow.spanOutputs"}
    kind = attributes["mlflow.spanType"]
    operation = _MLFLOW.get(str(parsed(kind) or kind))
    if operation is None:
        return result
    result[_OPERATION] = operation
    if operation == "execute_tool":
        _set(result, "gen_ai.tool.name", name)
    if operation == "chat":
        reply = parsed(attributes.get("mlflow.spanOutputs"))
        reply = reply if isinstance(reply, dict) else {}
        model = attributes.get("mlflow.llm.model")
        _set(result, "gen_ai.request.model", parsed(model) or model or reply.get("model"))
        _set(result, "gen_ai.output.messages", reply)
        choices = reply.get("choices")
        if isinstance(choices, list):
            reasons = [one.get("finish_reason") for one in choices if isinstance(one, dict)]
            _set(result, "gen_ai.response.finish_reasons", reasons)
        _set(result, "gen_ai.response.finish_reasons", reply.get("stop_reason"))
        usage = parsed(attributes.get("mlflow.chat.tokenUsage"))
        if isinstance(usage, dict):
            for key in ("input_tokens", "output_tokens", "total_tokens"):
                _set(result, f"gen_ai.usage.{key}", usage.get(key))
            _set(result, "gen_ai.usage.cache_read.input_tokens", usage.get("cache_read_input_tokens"))
            _set(result, "gen_ai.usage.cache_creation.input_tokens", usage.get("cache_creation_input_tokens"))
    return result


def _of_litellm(attributes: Attributes) -> Attributes:
    result = dict(attributes)
    for key, value in attributes.items():
        if key.endswith(".model"):
            _set(result, "gen_ai.request.model", value)
        elif key.endswith(".usage") and isinstance(value, str):
            for name, count in _COUNT.findall(value):
                _set(result, _COUNTS[name], int(count))
    if "gen_ai.request.model" in result:
        result[_OPERATION] = "chat"
    return result


_COUNTS = {
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "reasoning_tokens": "gen_ai.usage.reasoning_tokens",
}
_COUNT = re.compile(rf"'({'|'.join(_COUNTS)})': (\d{{1,15}})")


def _of_spring(attributes: Attributes) -> Attributes:
    result = dict(attributes)
    operation = _SPRING.get(str(attributes["spring.ai.kind"]))
    if operation is not None:
        result[_OPERATION] = operation
    _set(result, "gen_ai.tool.name", attributes.get("spring.ai.tool.definition.name"))
    _set(result, "gen_ai.conversation.id", attributes.get("spring.ai.chat.client.conversation.id"))
    return result


def _set(attributes: dict[str, Any], key: str, value: Any) -> None:
    """Where it is not there, and there is something to say."""
    if value is not None and value != "" and attributes.get(key) is None:
        attributes[key] = value
