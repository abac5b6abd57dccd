"""OpenTelemetry's spans of agents, in any convention or dialect, as `Span`.

Known: the GenAI conventions from their first to the new repository's; pydantic-ai and logfire; openinference;
openllmetry (traceloop); Anthropic's SDK; Langfuse's SDK; Vercel's AI SDK; HTTP clients; the programs of
`genai_dialects`. They are told by their attributes: the version of a schema is hardly ever given, and one
span often follows several at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from profiler.recordings.genai_dialects import KEYS as KEYS_OF_DIALECTS
from profiler.recordings.genai_dialects import RUN, WAIT, translated
from profiler.recordings.genai_replies import (
    KEYS,
    calls_of,
    finish_reason_of,
    provider_of,
    text_of,
    tokens_of,
    unix_ns,
)
from profiler.recordings.span import Kind, Span
from profiler.records import ToolStatus

Event = tuple[str, int, Mapping[str, Any]]


class Raw(NamedTuple):
    """A span as OpenTelemetry has it: ids in hexadecimal, times in Unix ns, `attributes` as plain values
    (lists and mappings where they are such), `kind` and `status` as their numbers (3: client; 2: error),
    `events` as (name, time, attributes). `clock` and `process` are its resource's (`origin_of`), `sampled`
    its tracestate's (`sampling.share_of`)."""

    trace: str
    id: str
    parent: str
    name: str
    kind: int
    started_ns: int
    ended_ns: int | None
    attributes: Mapping[str, Any]
    events: Iterable[Event] = ()
    status: int = 0
    scope: str = ""
    clock: str = ""
    process: str = ""
    resolution_ns: int = 1
    sampled: float | None = None


_OPERATIONS: dict[str, Kind] = {
    "chat": "model",
    "generate_content": "model",
    "text_completion": "model",
    "completion": "model",
    "acompletion": "model",
    "responses": "model",
    "aresponses": "model",
    "anthropic_messages": "model",
    "chat.completions": "model",
    "chat.streaming_completions": "model",
    "text.completions": "model",
    "text.streaming_completions": "model",
    "llm_call": "model",
    "execute_tool": "tool",
    "tool_call": "tool",
    "invoke_agent": "agent",
    "invoke_workflow": "agent",
    "agent_call": "agent",
    RUN: "run",
    WAIT: "wait",
}
"""The conventions', and what LiteLLM, Semantic Kernel, Gemini CLI and `genai_dialects` call the same."""
_OPENINFERENCE: dict[str, Kind] = {
    "LLM": "model",
    "TOOL": "tool",
    "AGENT": "agent",
    "GUARDRAIL": "apart",
    "EVALUATOR": "apart",
}
_LANGFUSE: dict[str, Kind] = {
    "generation": "model",
    "tool": "tool",
    "agent": "agent",
    "guardrail": "apart",
    "evaluator": "apart",
}
_TRACELOOP: dict[str, Kind] = {"workflow": "agent", "agent": "agent", "tool": "tool"}
_LLM_REQUESTS: dict[str, Kind] = {"chat": "model", "completion": "model"}
_NAMES: dict[str, Kind] = {
    "chat": "model",
    "generate_content": "model",
    "text_completion": "model",
    "execute_tool": "tool",
    "invoke_agent": "agent",
    "invoke_workflow": "agent",
}
"""First words of span names, where no attribute tells."""

_FIRST_TOKEN_SECONDS = (
    "gen_ai.response.time_to_first_chunk",
    "gen_ai.client.operation.time_to_first_chunk",
    "gen_ai.response.time_to_first_token",
    "gen_ai.server.time_to_first_token",
    "gen_ai.latency.time_to_first_token",
)
_FIRST_TOKEN_MS = ("ai.response.msToFirstChunk", "ai.stream.msToFirstChunk")
_FIRST_TOKEN_EVENTS = frozenset(
    {
        "First Token Stream Event",
        "gen_ai.content.completion.chunk",
        "llm.content.completion.chunk",
        "ai.stream.firstChunk",
    }
)
_CALL_IDS = ("gen_ai.tool.call.id", "tool_call.id", "ai.toolCall.id", "gen_ai.tool.call_id")
_TOOL_NAMES = ("gen_ai.tool.name", "tool.name", "ai.toolCall.name", "traceloop.entity.name")
_AGENT_NAMES = ("gen_ai.agent.name", "agent.name", "agent_name")
_CONVERSATIONS = (
    "gen_ai.conversation.id",
    "session.id",
    "langfuse.session.id",
    "traceloop.association.properties.session_id",
    "traceloop.association.properties.conversation_id",
    "traceloop.association.properties.thread_id",
    "ai.telemetry.metadata.sessionId",
)
_MODELS = (
    "gen_ai.request.model",
    "gen_ai.response.model",
    "llm.model_name",
    "llm.request.model",
    "llm.response.model",
    "langfuse.observation.model.name",
    "ai.model.id",
    "ai.response.model",
)
_PROVIDERS = ("gen_ai.provider.name", "gen_ai.system", "llm.provider", "llm.system", "ai.model.provider")
_FRAMEWORKS = ("strands-agents", "spring_ai", "langchain")
_REQUEST_IDS = ("gen_ai.response.id", "ai.response.id", "llm.response.id")
_STREAMED = ("gen_ai.request.stream", "llm.is_streaming", "gen_ai.is_streaming")
_TRUE = (True, "true", "True")
_HTTP_STATUS = ("http.response.status_code", "http.status_code")
_HTTP_METHOD = ("http.request.method", "http.method")
_ARGUMENTS = (
    "gen_ai.tool.call.arguments",
    "tool_arguments",
    "ai.toolCall.args",
    "input.value",
    "traceloop.entity.input",
    "langfuse.observation.input",
)
_RESULTS = (
    "gen_ai.tool.call.result",
    "tool_response",
    "ai.toolCall.result",
    "anthropic.tool_result.content",
    "output.value",
    "traceloop.entity.output",
    "langfuse.observation.output",
)
_PROMPTS = (
    "gen_ai.input.messages",
    "ai.prompt",
    "ai.prompt.messages",
    "input.value",
    "traceloop.entity.input",
    "langfuse.observation.input",
)
_TEXTS = (
    "final_result",
    "ai.response.text",
    "gen_ai.output.messages",
    "output.value",
    "traceloop.entity.output",
    "langfuse.observation.output",
)
_CONTENT = frozenset((*_ARGUMENTS, *_RESULTS, *_PROMPTS, *_TEXTS))

_TELLING = frozenset(
    {
        "gen_ai.operation.name",
        "openinference.span.kind",
        "langfuse.observation.type",
        "traceloop.span.kind",
        "ai.operationId",
        "llm.request.type",
        "mcp.method.name",
        "error.type",
        "http.request.resend_count",
        "langfuse.observation.level",
        "langfuse.observation.completion_start_time",
        "traceloop.entity.name",
        "gen_ai.workflow.name",
        "ai.telemetry.functionId",
        "logfire.span_type",
        "logfire.pending_parent_id",
        *_FIRST_TOKEN_SECONDS,
        *_FIRST_TOKEN_MS,
        *_CALL_IDS,
        *_TOOL_NAMES,
        *_AGENT_NAMES,
        *_CONVERSATIONS,
        *_MODELS,
        *_PROVIDERS,
        *_REQUEST_IDS,
        *_STREAMED,
        *_HTTP_STATUS,
        *_HTTP_METHOD,
    }
    | KEYS
    | KEYS_OF_DIALECTS
)
_PREFIXES = ("llm.output_messages.", "gen_ai.completion.")
_SUFFIXES = ("tool_call.id", "function.name", ".id", ".name", "finish_reason")

_STATUS_ALONE = re.compile(r"[1-5]\d\d")
_CANCELLED = frozenset({"CancelledError", "KeyboardInterrupt", "GeneratorExit", "AbortError"})


def wanted(key: str, content: bool = False) -> bool:
    """Whether `span_of` would look at that attribute: a reader need not decode the others."""
    if key in _TELLING:
        return True
    if key.startswith(_PREFIXES):
        return content or key.endswith(_SUFFIXES)
    return content and key in _CONTENT


def origin_of(resource: Mapping[str, Any]) -> tuple[str, str]:
    """The clock and the process that a resource's attributes tell: its host, else itself; its service."""
    service = _text(resource.get("service.name"))
    if service.startswith("unknown_service"):
        service = ""
    host = _text(resource.get("host.id")) or _text(resource.get("host.name"))
    return host or _text(resource.get("service.instance.id")) or service, service


def span_of(raw: Raw, content: bool = False) -> Span:
    """The span; of kind "other" where it is neither an agent's, a model's, a tool's nor an HTTP client's."""
    attributes = translated(raw.name, raw.attributes)
    if attributes is not raw.attributes:
        raw = raw._replace(attributes=attributes)
    if attributes.get("logfire.span_type") == "pending_span":
        return _pending(raw)
    kind = kind_of(raw)
    if kind in ("other", "apart"):
        return Span(
            raw.trace,
            raw.id,
            raw.parent,
            kind,
            raw.name,
            raw.started_ns,
            raw.ended_ns,
            conversation=_first(attributes, _CONVERSATIONS),
            clock=raw.clock,
            process=raw.process,
            resolution_ns=raw.resolution_ns,
            sampled=raw.sampled,
        )
    status, error_type = _status(raw)
    common: dict[str, Any] = {
        "trace": raw.trace,
        "id": raw.id,
        "parent": raw.parent,
        "kind": kind,
        "name": raw.name,
        "started_ns": raw.started_ns,
        "ended_ns": raw.ended_ns,
        "status": status,
        "error_type": error_type,
        "clock": raw.clock,
        "process": raw.process,
        "scope": raw.scope or _dialect(attributes),
        "resolution_ns": raw.resolution_ns,
        "sampled": raw.sampled,
    }
    if kind in ("run", "wait"):
        return Span(**common)
    if kind == "http":
        return Span(**common, http_status=_http_status(attributes), resends=_resends(attributes))
    common["conversation"] = _first(attributes, _CONVERSATIONS)
    common["agent"] = _first(attributes, _AGENT_NAMES)
    if kind == "tool":
        common["name"] = _first(attributes, _TOOL_NAMES) or _tool_name(raw.name)
        common["call_id"] = _first(attributes, _CALL_IDS)
        if content:
            common["arguments"] = text_of(attributes, _ARGUMENTS)
            common["result"] = text_of(attributes, _RESULTS)
        return Span(**common)
    if content:
        common["prompt"] = text_of(attributes, _PROMPTS)
        common["text"] = text_of(attributes, _TEXTS)
    if kind == "agent":
        common["agent"], common["name"] = _agent_name(raw, common["agent"])
        return Span(**common)
    model = _first(attributes, _MODELS) or _named_model(raw.name)
    first_token_ns = _first_token(raw)
    tokens = tokens_of(attributes, raw.scope)
    return Span(
        **common,
        provider=_provider(attributes) or provider_of(model),
        model=model,
        request_id=_first(attributes, _REQUEST_IDS) or None,
        finish_reason=finish_reason_of(attributes),
        streamed=first_token_ns is not None
        or any(attributes.get(key) in _TRUE for key in _STREAMED)
        or _text(attributes.get("ai.operationId")).endswith(".doStream"),
        first_token_ns=first_token_ns,
        input_tokens=tokens.input,
        output_tokens=tokens.output,
        cached_tokens=tokens.cached,
        cache_written_tokens=tokens.written,
        cache_written_1h_tokens=tokens.written_1h,
        reasoning_tokens=tokens.reasoning,
        resends=_resends(attributes),
        http_status=_http_status(attributes),
        calls=calls_of(attributes, raw.events),
    )


def kind_of(raw: Raw) -> Kind:
    """What a span is of. A dialect's own attribute goes before the conventions': it is more exact."""
    attributes = raw.attributes
    if not attributes:
        return "other"
    get = attributes.get
    told = False
    for key, kinds in _KINDS:
        said = get(key)
        if said is not None:
            told = True
            if isinstance(said, str) and said in kinds:
                # openinference calls everything a class of LlamaIndex's models does LLM; its private methods
                # get a request ready, and send none.
                private = kinds is _OPENINFERENCE and "._" in raw.name
                return "other" if private and kinds[said] == "model" else kinds[said]
    operation = get("ai.operationId")
    if isinstance(operation, str):
        if operation.endswith((".doGenerate", ".doStream")):
            return "model"
        if operation.startswith(("ai.generate", "ai.stream")):
            return "agent"
        return "tool" if operation == "ai.toolCall" else "other"
    if told:
        return "other"  # a chain, a task, an embedding
    if get("mcp.method.name") == "tools/call" and raw.kind == 3:
        return "tool"
    if raw.kind in (0, 1, 3) and (get("http.request.method") or get("http.method")):
        return "http" if raw.kind == 3 else "other"
    if get("gen_ai.tool.name") and (get("gen_ai.tool.call.id") or raw.name.startswith("running tool")):
        return "tool"
    if get("agent_name") is not None and (raw.name == "agent run" or raw.name.endswith(" run")):
        return "agent"
    if get("gen_ai.request.model") and (get("gen_ai.system") or get("gen_ai.provider.name")):
        return "model"
    if any(key.startswith("gen_ai.") for key in attributes):
        return _NAMES.get(raw.name.partition(" ")[0], "other")
    return "other"


_KINDS: tuple[tuple[str, dict[str, Kind]], ...] = (
    ("openinference.span.kind", _OPENINFERENCE),
    ("langfuse.observation.type", _LANGFUSE),
    ("traceloop.span.kind", _TRACELOOP),
    ("llm.request.type", _LLM_REQUESTS),
    ("gen_ai.operation.name", _OPERATIONS),
)


def _dialect(attributes: Mapping[str, Any]) -> str:
    """What stands for a scope where none is written down: the attribute that tells a span's kind."""
    return next((key for key, _ in _KINDS if key in attributes), "")


def _pending(raw: Raw) -> Span:
    """logfire says of a span that it began, in one below it of which nothing else is true."""
    parent = _text(raw.attributes.get("logfire.pending_parent_id"))
    if not parent.strip("0"):
        parent = ""
    kept = {key: value for key, value in raw.attributes.items() if not key.startswith("logfire.")}
    return span_of(raw._replace(id=raw.parent, parent=parent, ended_ns=None, attributes=kept, events=()))


def _status(raw: Raw) -> tuple[ToolStatus, str | None]:
    attributes = raw.attributes
    error = attributes.get("error.type")
    if raw.status != 2 and error is None and attributes.get("langfuse.observation.level") != "ERROR":
        return "ok", None
    error_type = _text(error) or None
    if error_type is None:
        for name, _, details in raw.events:
            if name == "exception":
                error_type = _text(details.get("exception.type")) or None
    short = (error_type or "").rpartition(".")[2]
    if short in _CANCELLED:
        return "cancelled", short
    if _STATUS_ALONE.fullmatch(short):  # the conventions have it as a number alone; records, as `http_429`
        return "error", f"http_{short}"
    return "error", None if error_type is None else short or error_type


def _first_token(raw: Raw) -> int | None:
    attributes = raw.attributes
    for keys, unit in ((_FIRST_TOKEN_SECONDS, 1e9), (_FIRST_TOKEN_MS, 1e6)):
        for key in keys:
            value = attributes.get(key)
            if isinstance(value, bool) or not isinstance(value, int | float | str):
                continue
            try:
                after_ns = float(value) * unit
            except (TypeError, ValueError):
                continue
            if 0 < after_ns < 1e15:
                return raw.started_ns + round(after_ns)
    began = attributes.get("langfuse.observation.completion_start_time")
    if began is not None:
        at_ns = unix_ns(began)
        # One that is the start or the end was filled in for a reply that was not streamed.
        return at_ns if at_ns not in (None, raw.started_ns, raw.ended_ns) else None
    return min((at_ns for name, at_ns, _ in raw.events if name in _FIRST_TOKEN_EVENTS), default=None)


def _agent_name(raw: Raw, named: str) -> tuple[str, str]:
    """The name of an agent, "" for a workflow or a runner; and what its span is called."""
    attributes = raw.attributes
    entity = _text(attributes.get("traceloop.entity.name"))
    workflow = attributes.get("traceloop.span.kind") == "workflow" or (
        attributes.get("gen_ai.operation.name") == "invoke_workflow"
    )
    title = entity or _text(attributes.get("gen_ai.workflow.name")) or raw.name
    if workflow:
        return "", title
    function = _text(attributes.get("ai.telemetry.functionId"))
    word, _, rest = raw.name.partition(" ")
    name = named or entity or function or (rest if word in ("invoke_agent", "invoke_workflow") else "")
    if not name and attributes.get("langfuse.observation.type") == "agent":
        name = raw.name
    return name, title


def _named_model(name: str) -> str:
    """The model in a span's name as the conventions have it (`chat gpt-4.1`); "" in any other."""
    word, _, rest = name.partition(" ")
    return rest if _NAMES.get(word) == "model" and rest and " " not in rest else ""


def _tool_name(name: str) -> str:
    word, _, rest = name.partition(" ")
    if rest and (word in ("execute_tool", "tools/call") or word.startswith("anthropic.")):
        return rest
    return name.removesuffix(".tool")


def _provider(attributes: Mapping[str, Any]) -> str:
    """`OpenAI`, `openai.chat` and `openai` are one. Frameworks that name themselves are none."""
    said = _first(
        {key: attributes.get(key) for key in _PROVIDERS if attributes.get(key) not in _FRAMEWORKS}, _PROVIDERS
    )
    said = said.lower()
    for name in ("openai", "anthropic"):
        if said == name or said.startswith(name + "."):
            return name
    return said


def _http_status(attributes: Mapping[str, Any]) -> int | None:
    for key in _HTTP_STATUS:
        value = attributes.get(key)
        try:
            status = int(value) if value is not None else 0
        except (TypeError, ValueError, OverflowError):
            continue
        if 100 <= status <= 599:
            return status
    return None


def _resends(attributes: Mapping[str, Any]) -> int:
    value = attributes.get("http.request.resend_count")
    try:
        return min(max(0, int(value)), 1000) if value is not None else 0
    except (TypeError, ValueError, OverflowError):
        return 0


def _first(attributes: Mapping[str, Any], keys: Iterable[str]) -> str:
    for key in keys:
        value = attributes.get(key)
        if value is not None and value != "":
            return _text(value)
    return ""


def _text(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)
