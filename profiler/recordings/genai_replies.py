"""What the attributes of a model request's span tell of its reply: tokens, calls, why it ended."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import orjson

MOST_TOKENS = 2**53
_DEPTH = 12


class Tokens(NamedTuple):
    """As in `profiler.records.ModelCall`: input tokens with the cached ones. None: not said."""

    input: int | None = None
    output: int | None = None
    cached: int | None = None
    written: int | None = None
    written_1h: int | None = None
    reasoning: int | None = None


_INPUT = (
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.prompt_tokens",
    "llm.token_count.prompt",
    "llm.usage.prompt_tokens",
    "ai.usage.inputTokens",
    "ai.usage.promptTokens",
    "gen_ai.response.prompt_tokens",
)
_OUTPUT = (
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.completion_tokens",
    "llm.token_count.completion",
    "llm.usage.completion_tokens",
    "ai.usage.outputTokens",
    "ai.usage.completionTokens",
    "gen_ai.response.completion_tokens",
)
_CACHED = (
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.cache_read_input_tokens",
    "gen_ai.usage.input_tokens.cached",
    "gen_ai.usage.cached_tokens",
    "gen_ai.usage.details.cache_read_tokens",
    "gen_ai.usage.details.cache_read_input_tokens",
    "gen_ai.usage.details.cached_tokens",
    "llm.token_count.prompt_details.cache_read",
    "llm.usage.cache_read_input_tokens",
    "ai.usage.inputTokenDetails.cacheReadTokens",
    "ai.usage.cachedInputTokens",
)
_WRITTEN = (
    "gen_ai.usage.cache_write.input_tokens",
    "gen_ai.usage.cache_creation.input_tokens",
    "gen_ai.usage.cache_creation_input_tokens",
    "gen_ai.usage.details.cache_write_tokens",
    "gen_ai.usage.details.cache_creation_input_tokens",
    "llm.token_count.prompt_details.cache_write",
    "llm.usage.cache_creation_input_tokens",
    "ai.usage.inputTokenDetails.cacheWriteTokens",
)
_WRITTEN_1H = ("anthropic.usage.cache_creation.ephemeral_1h_input_tokens",)
_REASONING = (
    "gen_ai.usage.reasoning.output_tokens",
    "gen_ai.usage.reasoning_tokens",
    "gen_ai.usage.details.reasoning_tokens",
    "llm.token_count.completion_details.reasoning",
    "llm.usage.reasoning_tokens",
    "ai.usage.outputTokenDetails.reasoningTokens",
    "ai.usage.reasoningTokens",
)
_TOTAL = (
    "gen_ai.usage.total_tokens",
    "llm.usage.total_tokens",
    "llm.token_count.total",
    "ai.usage.totalTokens",
)
_UNCACHED = ("ai.usage.inputTokenDetails.noCacheTokens",)
_LANGFUSE_USAGE = "langfuse.observation.usage_details"
_VERCEL_METADATA = "ai.response.providerMetadata"
_SYSTEMS = ("gen_ai.system", "gen_ai.provider.name", "ai.model.provider")
_INCLUSIVE_SCOPES = ("opentelemetry.instrumentation.", "openinference.", "pydantic-ai", "logfire")
"""Instrumentations of Anthropic that add the cached tokens to the input themselves, whatever convention they
follow otherwise."""


def tokens_of(attributes: Mapping[str, Any], scope: str = "") -> Tokens:
    """The tokens of a request, in whichever way its dialect counts them."""
    details = attributes.get(_LANGFUSE_USAGE)
    if details is not None:
        return langfuse_tokens(details)
    given = _count(attributes, _INPUT)
    output = _count(attributes, _OUTPUT)
    cached = _count(attributes, _CACHED)
    written = _count(attributes, _WRITTEN)
    metadata = attributes.get(_VERCEL_METADATA)
    if metadata is not None and cached is None and written is None:
        anthropic = parsed(metadata)
        anthropic = anthropic.get("anthropic") if isinstance(anthropic, dict) else None
        if isinstance(anthropic, dict):
            cached = _count(anthropic, ("cacheReadInputTokens",))
            written = _count(anthropic, ("cacheCreationInputTokens",))
    parts = (cached or 0) + (written or 0)
    uncached = _count(attributes, _UNCACHED)
    if given is not None and parts and (uncached is None or uncached + parts > given):
        total = _count(attributes, _TOTAL)
        if parts > given or _without_cached(attributes, scope, given, output, parts, total):
            given += parts
    return Tokens(
        given,
        output,
        cached,
        written,
        _count(attributes, _WRITTEN_1H),
        _count(attributes, _REASONING),
    )


def _without_cached(
    attributes: Mapping[str, Any], scope: str, given: int, output: int | None, parts: int, total: int | None
) -> bool:
    """Whether the input tokens that a span gives leave out the cached ones, as Anthropic's own do."""
    if total is not None and output is not None and total == given + parts + output:
        return True
    systems = [str(attributes.get(key, "")).lower() for key in _SYSTEMS]
    if not any("anthropic" in one or "bedrock" in one for one in systems):
        return False
    if "ai.operationId" in attributes:
        return (
            attributes.get(_UNCACHED[0]) is None
        )  # from version 6 on it counts all, and says what was not cached
    return "gen_ai.provider.name" not in attributes and not scope.startswith(_INCLUSIVE_SCOPES)


def langfuse_tokens(details: object) -> Tokens:
    """The tokens of Langfuse's `usage_details` (a mapping or its JSON): buckets that exclude each other and
    add up to the total. Where input and output alone are the total, the sender had included the others."""
    usage = parsed(details)
    if not isinstance(usage, dict):
        return Tokens()
    counts = {str(key): count for key, value in usage.items() if (count := counted(value)) is not None}
    given = _count(counts, ("input", "prompt_tokens", "input_tokens", "promptTokens"))
    output = _count(counts, ("output", "completion_tokens", "output_tokens", "completionTokens"))
    total = _count(counts, ("total", "total_tokens", "totalTokens"))
    named = {"input", "input_tokens", "prompt_tokens", "promptTokens"}
    caches = {
        key: count
        for key, count in counts.items()
        if key.startswith(("input", "cache", "prompt_tokens_details")) and key not in named
    }
    # What openinference's instrumentations add is a part of input and output.
    parts = {
        key: count for key, count in counts.items() if key.startswith(("prompt_details.", "completion_det"))
    }
    outputs = {
        key: count for key, count in counts.items() if key.startswith("output_") and key != "output_tokens"
    }
    included = total is not None and given is not None and total == given + (output or 0)
    # Langfuse's names are exclusive ("input"), the providers' own ("prompt_tokens") hold everything.
    if not included and (caches or given is not None) and "prompt_tokens" not in counts:
        given = (given or 0) + sum(caches.values())
    if not included and (outputs or output is not None) and "completion_tokens" not in counts:
        output = (output or 0) + sum(outputs.values())
    read = [
        count
        for key, count in (caches | parts).items()
        if "creation" not in key and "write" not in key and "cache" in key
    ]
    wrote = [count for key, count in (caches | parts).items() if "creation" in key or "write" in key]
    reasoned = [count for key, count in (outputs | parts).items() if "reasoning" in key]
    return Tokens(
        given,
        output,
        sum(read) if read else None,
        sum(wrote) if wrote else None,
        None,
        sum(reasoned) if reasoned else None,
    )


_REASONS = (
    "gen_ai.response.finish_reasons",
    "gen_ai.response.finish_reason",
    "gen_ai.response.stop_reason",
    "llm.response.finish_reason",
    "llm.response.stop_reason",
    "anthropic.message.stop_reason",
    "ai.response.finishReason",
    "gen_ai.completion.0.finish_reason",
    "llm.finish_reason",
)


def finish_reason_of(attributes: Mapping[str, Any]) -> str | None:
    """Why the reply ended; of several choices, that of one that asks for calls, else of the first."""
    for key in _REASONS:
        value = attributes.get(key)
        if isinstance(value, str) and value.startswith("["):
            value = parsed(value)
        if isinstance(value, list | tuple):
            reasons = [one for one in value if isinstance(one, str) and one]
            value = next((one for one in reasons if "tool" in one), reasons[0] if reasons else None)
        if isinstance(value, str) and value:
            return value
    return None


_REPLIES = (
    "gen_ai.output.messages",
    "ai.response.toolCalls",
    "langfuse.observation.output",
    "gen_ai.completion",
    "events",
)
_CALL_TYPES = frozenset(
    {"tool_call", "tool_use", "function_call", "tool-call", "custom_tool_call", "function"}
)


def calls_of(
    attributes: Mapping[str, Any], events: Iterable[tuple[str, int, Mapping[str, Any]]] = ()
) -> tuple[tuple[str, str], ...]:
    """The (id, name) of the calls that a reply asked for, where the span holds the reply."""
    found: dict[str, str] = {}
    for key in _REPLIES:
        value = attributes.get(key)
        if value is None:
            continue
        value = parsed(value)
        if key == "events":
            value = [one for one in value if _is_choice(one)] if isinstance(value, list) else None
        _gather(value, found, 0)
        if found:
            return tuple(found.items())
    numbered: dict[str, str] = {}
    for key in attributes:
        if not key.startswith(("llm.output_messages.", "gen_ai.completion.")) or "tool_call" not in key:
            continue
        stem, _, end = key.rpartition(".")
        if end == "id":
            numbered.setdefault(stem.removesuffix(".tool_call"), str(attributes[key]))
    for stem, id_ in numbered.items():
        for end in (".tool_call.function.name", ".name", ".function.name"):
            name = attributes.get(stem + end)
            if name is not None:
                found[id_] = str(name)
                break
        else:
            found[id_] = ""
    if not found:
        without_ids = [
            str(attributes[key])
            for key in sorted(attributes)
            if key.startswith("gen_ai.completion.") and key.endswith(".function_call.name")
        ]
        if without_ids:
            return tuple(("", name) for name in without_ids)
        for name, _, details in events:
            if name == "gen_ai.choice":
                for value in details.values():
                    _gather(parsed(value), found, 0)
            elif name == "gen_ai.client.inference.operation.details":
                _gather(parsed(details.get("gen_ai.output.messages")), found, 0)
    return tuple(found.items())


def _is_choice(event: object) -> bool:
    return isinstance(event, dict) and event.get("event.name") == "gen_ai.choice"


def _gather(value: object, found: dict[str, str], depth: int) -> None:
    """All calls in a reply, whatever shape it has; what is in a call (its arguments) is not looked at."""
    if depth > _DEPTH:
        return
    if isinstance(value, list | tuple):
        for one in value:
            _gather(one, found, depth + 1)
    elif isinstance(value, dict):
        function = value.get("function")
        id_ = value.get("call_id") or value.get("toolCallId") or value.get("tool_call_id") or value.get("id")
        name = value.get("name") or value.get("toolName") or value.get("tool_name")
        if isinstance(function, dict):
            name = name or function.get("name")
        kind = value.get("type")
        if (
            isinstance(id_, str)
            and isinstance(name, str)
            and (kind in _CALL_TYPES or isinstance(function, dict) or "toolCallId" in value)
        ):
            if not value.get("builtin") and not value.get("providerExecuted"):
                found[id_] = name
            return
        for one in value.values():
            if isinstance(one, dict | list | tuple):
                _gather(one, found, depth + 1)


def text_of(attributes: Mapping[str, Any], keys: Iterable[str]) -> str | None:
    """The first of some attributes that is there, as text."""
    for key in keys:
        value = attributes.get(key)
        if value is None or value == "":
            continue
        return value if isinstance(value, str) else orjson.dumps(value, default=str).decode()
    return None


def provider_of(model: str) -> str:
    """The provider that a model's name tells, "" where it tells none."""
    name = model.lower().rpartition("/")[2].rpartition(":")[2]
    for provider, beginnings in _BEGINNINGS.items():
        if name.startswith(beginnings) or provider + "." in name:
            return provider
    return ""


_BEGINNINGS = {
    "openai": ("gpt-", "o1", "o3", "o4", "chatgpt", "codex", "text-davinci"),
    "anthropic": ("claude",),
}


def unix_ns(time: object) -> int | None:
    """Unix nanoseconds of an ISO time (also one in quotes); one without a zone is in UTC. None: no such."""
    if not isinstance(time, str):
        return None
    match = _ISO.match(time)
    if match is None:
        return None
    seconds, fraction, zone = match.groups()
    try:
        at = datetime.fromisoformat(
            seconds + ("+00:00" if zone is None or zone.strip() in ("Z", "z", "UTC") else zone)
        )
        return round(at.timestamp()) * 10**9 + int((fraction or "0").ljust(9, "0")[:9])
    except (ValueError, OverflowError, OSError):
        return None


_ISO = re.compile(
    r'^\s*"?(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)(?:[.,](\d{1,12}))?\s*(Z|z|[+-]\d\d:?\d\d|\s?UTC)?"?\s*$'
)


def parsed(value: object) -> object:
    """What a text is as JSON; anything else as it is. None: it is no JSON."""
    if not isinstance(value, str | bytes):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return None


def counted(value: object) -> int | None:
    """A count of tokens, as a number or its text; None where it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            return None
    if isinstance(value, float):
        if not value.is_integer():
            return None
        value = int(value)
    return value if isinstance(value, int) and 0 <= value <= MOST_TOKENS else None


def _count(attributes: Mapping[str, Any], keys: Iterable[str]) -> int | None:
    for key in keys:
        value = attributes.get(key)
        if value is not None and (count := counted(value)) is not None:
            return count
    return None


KEYS = frozenset(
    {
        *(*_INPUT, *_OUTPUT, *_CACHED, *_WRITTEN, *_WRITTEN_1H, *_REASONING, *_TOTAL, *_UNCACHED, *_SYSTEMS),
        *(*_REASONS, *_REPLIES, _LANGFUSE_USAGE, _VERCEL_METADATA),
    }
)
"""The attributes that are looked at here, beside numbered ones."""
