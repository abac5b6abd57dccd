"""Attributes of every convention and dialect, as one kind of span."""

from __future__ import annotations

import json
from typing import Any

import pytest

from profiler.recordings.genai import Raw, kind_of, origin_of, span_of, wanted
from profiler.recordings.genai_replies import Tokens, calls_of, langfuse_tokens, tokens_of, unix_ns

START, END = 10**18, 10**18 + 10**9


def raw(attributes: dict[str, Any], name: str = "x", **more: Any) -> Raw:
    return Raw("t", "s", "p", name, more.pop("kind", 1), START, END, attributes, **more)


@pytest.mark.parametrize(
    ("attributes", "name", "kind"),
    [
        ({"gen_ai.operation.name": "chat"}, "", "model"),
        ({"gen_ai.operation.name": "generate_content"}, "", "model"),
        ({"gen_ai.operation.name": "text_completion"}, "", "model"),
        ({"gen_ai.operation.name": "execute_tool"}, "", "tool"),
        ({"gen_ai.operation.name": "invoke_agent"}, "", "agent"),
        ({"gen_ai.operation.name": "invoke_workflow"}, "", "agent"),
        (
            {"gen_ai.operation.name": "embeddings", "gen_ai.request.model": "e", "gen_ai.system": "o"},
            "",
            "other",
        ),
        ({"gen_ai.operation.name": "create_agent"}, "invoke_agent x", "other"),
        ({"openinference.span.kind": "LLM"}, "", "model"),
        ({"openinference.span.kind": "TOOL"}, "", "tool"),
        ({"openinference.span.kind": "AGENT"}, "", "agent"),
        ({"openinference.span.kind": "CHAIN"}, "", "other"),
        ({"openinference.span.kind": "EMBEDDING"}, "", "other"),
        ({"traceloop.span.kind": "workflow"}, "", "agent"),
        ({"traceloop.span.kind": "agent"}, "", "agent"),
        ({"traceloop.span.kind": "task"}, "", "other"),
        ({"traceloop.span.kind": "tool"}, "", "tool"),
        ({"llm.request.type": "chat"}, "openai.chat", "model"),
        ({"llm.request.type": "embedding", "gen_ai.system": "x", "gen_ai.request.model": "e"}, "", "other"),
        ({"langfuse.observation.type": "generation"}, "", "model"),
        ({"langfuse.observation.type": "tool"}, "", "tool"),
        ({"langfuse.observation.type": "agent"}, "", "agent"),
        ({"langfuse.observation.type": "span"}, "", "other"),
        ({"ai.operationId": "ai.generateText"}, "", "agent"),
        ({"ai.operationId": "ai.streamText"}, "", "agent"),
        ({"ai.operationId": "ai.streamText.doStream", "gen_ai.system": "o"}, "", "model"),
        ({"ai.operationId": "ai.generateText.doGenerate"}, "", "model"),
        ({"ai.operationId": "ai.toolCall"}, "", "tool"),
        ({"ai.operationId": "ai.embed"}, "", "other"),
        ({"gen_ai.tool.name": "f", "gen_ai.tool.call.id": "c"}, "running tool", "tool"),
        ({"tools": ["f", "g"]}, "running 2 tools", "other"),
        ({"agent_name": "planner", "model_name": "m"}, "agent run", "agent"),
        ({"gen_ai.system": "openai", "gen_ai.request.model": "m"}, "Chat Completion with 'm'", "model"),
        ({"gen_ai.agent.name": "x"}, "invoke_agent x", "agent"),
        ({"app.name": "x"}, "invoke_agent x", "other"),
        ({}, "chat m", "other"),
    ],
)
def test_a_kind_is_told_by_attributes(attributes: dict[str, Any], name: str, kind: str):
    assert kind_of(raw(attributes, name)) == kind
    assert all(wanted(key) for key in attributes if key not in ("app.name", "tools", "model_name"))


@pytest.mark.parametrize("method", ["http.request.method", "http.method"])
def test_http_requests_count_where_a_client_made_them(method: str):
    assert kind_of(raw({method: "POST"}, kind=3)) == "http"
    assert kind_of(raw({method: "POST"}, kind=2)) == "other"


@pytest.mark.parametrize("key", ["http.response.status_code", "http.status_code"])
def test_http_status_and_resends(key: str):
    span = span_of(raw({"http.method": "POST", key: "429", "http.request.resend_count": 2}, kind=3))
    assert (span.http_status, span.resends) == (429, 2)


def tokens(attributes: dict[str, Any], scope: str = "") -> tuple[int | None, ...]:
    one = tokens_of(attributes, scope)
    return one.input, one.cached, one.written, one.output


OLD, NEW = {"gen_ai.system": "anthropic"}, {"gen_ai.provider.name": "anthropic"}


@pytest.mark.parametrize(
    ("attributes", "scope", "expected"),
    [
        # All of the input, cached included.
        (
            NEW | {"gen_ai.usage.input_tokens": 100, "gen_ai.usage.cache_read.input_tokens": 60},
            "",
            (100, 60, None, None),
        ),
        (
            NEW | {"gen_ai.usage.input_tokens": 100, "gen_ai.usage.cache_write.input_tokens": 20},
            "",
            (100, None, 20, None),
        ),
        (
            NEW | {"gen_ai.usage.input_tokens": 100, "gen_ai.usage.cache_creation.input_tokens": 20},
            "",
            (100, None, 20, None),
        ),
        # More was cached than there is of input: it cannot be in it.
        (
            NEW | {"gen_ai.usage.input_tokens": 10, "gen_ai.usage.cache_read.input_tokens": 60},
            "",
            (70, 60, None, None),
        ),
        # Anthropic's own count, in conventions that did not say.
        (
            OLD | {"gen_ai.usage.input_tokens": 100, "gen_ai.usage.cache_read_input_tokens": 60},
            "",
            (160, 60, None, None),
        ),
        (
            OLD | {"gen_ai.usage.input_tokens": 100, "gen_ai.usage.cache_read_input_tokens": 60},
            "opentelemetry.instrumentation.anthropic",
            (100, 60, None, None),
        ),
        ({"gen_ai.usage.prompt_tokens": "9", "gen_ai.usage.completion_tokens": "3"}, "", (9, None, None, 3)),
        ({"llm.usage.prompt_tokens": 9, "llm.usage.completion_tokens": 3}, "", (9, None, None, 3)),
        (
            {
                "llm.token_count.prompt": 100,
                "llm.token_count.completion": 5,
                "llm.token_count.prompt_details.cache_read": 40,
            },
            "",
            (100, 40, None, 5),
        ),
        # The total tells.
        (
            {
                "gen_ai.usage.input_tokens": 100,
                "gen_ai.usage.output_tokens": 5,
                "gen_ai.usage.cache_read_input_tokens": 40,
                "gen_ai.usage.total_tokens": 145,
            },
            "",
            (140, 40, None, 5),
        ),
        # Vercel: version 6 counts all, 5 what Anthropic says, 4 knows the cache in its metadata alone.
        (
            {
                "ai.operationId": "ai.generateText.doGenerate",
                "gen_ai.system": "anthropic.messages",
                "ai.usage.inputTokens": 100,
                "ai.usage.cachedInputTokens": 40,
                "ai.usage.inputTokenDetails.noCacheTokens": 60,
            },
            "ai",
            (100, 40, None, None),
        ),
        (
            {
                "ai.operationId": "ai.generateText.doGenerate",
                "gen_ai.system": "anthropic.messages",
                "ai.usage.inputTokens": 100,
                "ai.usage.cachedInputTokens": 40,
            },
            "ai",
            (140, 40, None, None),
        ),
        (
            {
                "ai.operationId": "ai.generateText.doGenerate",
                "ai.model.provider": "anthropic.messages",
                "ai.usage.promptTokens": 100,
                "ai.response.providerMetadata": json.dumps(
                    {"anthropic": {"cacheReadInputTokens": 40, "cacheCreationInputTokens": 3}}
                ),
            },
            "ai",
            (143, 40, 3, None),
        ),
        ({"gen_ai.usage.input_tokens": True, "gen_ai.usage.output_tokens": -1}, "", (None, None, None, None)),
        ({}, "", (None, None, None, None)),
    ],
)
def test_input_tokens_are_all_of_them(
    attributes: dict[str, Any], scope: str, expected: tuple[int | None, ...]
):
    assert tokens(attributes, scope) == expected
    assert all(wanted(key) for key in attributes)


def test_tokens_of_a_root_are_not_a_request_s():
    span = span_of(raw({"gen_ai.operation.name": "invoke_agent", "gen_ai.usage.input_tokens": 5}))
    assert span.input_tokens is None


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ({"input": 10, "output": 3, "total": 13}, (10, 3, None, None, None)),
        (
            {"input": 10, "input_cached_tokens": 5, "output": 3, "output_reasoning_tokens": 2, "total": 20},
            (15, 5, 5, None, 2),
        ),
        (
            {
                "input": 10,
                "cache_read_input_tokens": 5,
                "cache_creation_input_tokens": 4,
                "output": 3,
                "total": 22,
            },
            (19, 3, 5, 4, None),
        ),
        # A sender that had included them.
        ({"input": 10, "input_cached_tokens": 5, "output": 3, "total": 13}, (10, 3, 5, None, None)),
        ({"prompt_tokens": 10, "completion_tokens": 3}, (10, 3, None, None, None)),
        ("nonsense", (None,) * 5),
        (
            {
                "input": 90,
                "output": 30,
                "total": 120,
                "prompt_details.cache_read": 50,
                "completion_details.reasoning": 20,
            },
            (90, 30, 50, None, 20),
        ),
    ],
)
def test_langfuse_s_buckets_exclude_each_other(details: Any, expected: tuple[int | None, ...]):
    as_json = details if isinstance(details, str) else json.dumps(details)
    one = langfuse_tokens(as_json)
    assert (one.input, one.output, one.cached, one.written, one.reasoning) == expected
    assert tokens_of({"langfuse.observation.usage_details": as_json}) == one


CHUNK = ("gen_ai.content.completion.chunk", START + 7, {})
MODEL = {"gen_ai.operation.name": "chat"}


@pytest.mark.parametrize(
    ("attributes", "events", "after"),
    [
        (MODEL | {"gen_ai.response.time_to_first_chunk": 0.31}, (), 310_000_000),
        (MODEL | {"gen_ai.client.operation.time_to_first_chunk": "0.31"}, (), 310_000_000),
        (MODEL | {"ai.response.msToFirstChunk": 31.5}, (), 31_500_000),
        (MODEL, (("First Token Stream Event", START + 5, {}),), 5),
        (MODEL, (("gen_ai.content.completion.chunk", START + 9, {}), CHUNK), 7),
        (MODEL | {"gen_ai.response.time_to_first_chunk": 0}, (), None),
        (MODEL | {"gen_ai.response.time_to_first_chunk": "soon"}, (), None),
        (MODEL, (("something", START + 5, {}),), None),
        (
            MODEL | {"langfuse.observation.completion_start_time": '"2001-09-09T01:46:40.250Z"'},
            (),
            250_000_000,
        ),
        (MODEL | {"langfuse.observation.completion_start_time": "2001-09-09T01:46:41.000Z"}, (), None),
    ],
)
def test_a_first_token_is_taken_where_one_is_told(attributes: dict[str, Any], events: Any, after: int | None):
    span = span_of(raw(attributes, events=events))
    assert span.first_token_ns == (None if after is None else START + after)
    assert span.streamed == (after is not None)


CALLS = (("c1", "f"), ("c2", "g"))


@pytest.mark.parametrize(
    "attributes",
    [
        {
            "gen_ai.output.messages": json.dumps(
                [
                    {
                        "role": "assistant",
                        "parts": [
                            {"type": "text", "content": "x"},
                            {
                                "type": "tool_call",
                                "id": "c1",
                                "name": "f",
                                "arguments": {"id": "no", "name": "no"},
                            },
                            {"type": "tool_call", "id": "c2", "name": "g"},
                        ],
                    }
                ]
            )
        },
        {
            "gen_ai.completion.0.tool_calls.0.id": "c1",
            "gen_ai.completion.0.tool_calls.0.name": "f",
            "gen_ai.completion.0.tool_calls.1.id": "c2",
            "gen_ai.completion.0.tool_calls.1.name": "g",
        },
        {
            "llm.output_messages.0.message.tool_calls.0.tool_call.id": "c1",
            "llm.output_messages.0.message.tool_calls.0.tool_call.function.name": "f",
            "llm.output_messages.0.message.tool_calls.1.tool_call.id": "c2",
            "llm.output_messages.0.message.tool_calls.1.tool_call.function.name": "g",
        },
        {
            "ai.response.toolCalls": json.dumps(
                [{"toolCallId": "c1", "toolName": "f", "input": "{}"}, {"toolCallId": "c2", "toolName": "g"}]
            )
        },
        {
            "langfuse.observation.output": json.dumps(
                {
                    "role": "assistant",
                    "tool_calls": [
                        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                        {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
                    ],
                }
            )
        },
        {
            "gen_ai.output.messages": [
                {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f"},
                {"type": "tool_use", "id": "c2", "name": "g", "input": {}},
                {"type": "server_tool_use", "id": "c3", "name": "web_search"},
                {"type": "tool_call", "id": "c4", "name": "code", "builtin": True},
            ]
        },
    ],
)
def test_calls_are_found_in_replies_of_any_shape(attributes: dict[str, Any]):
    assert calls_of(attributes) == CALLS
    assert all(wanted(key) for key in attributes)


def test_calls_are_found_in_events():
    choice = {
        "message": json.dumps({"tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f"}}]})
    }
    assert calls_of({}, [("gen_ai.choice", 1, choice)]) == (("c1", "f"),)


@pytest.mark.parametrize(
    ("attributes", "status", "events", "expected"),
    [
        ({}, 0, (), ("ok", None)),
        ({}, 1, (), ("ok", None)),
        ({}, 2, (), ("error", None)),
        ({"error.type": "429"}, 0, (), ("error", "http_429")),
        ({"error.type": 503}, 2, (), ("error", "http_503")),
        ({"error.type": "4290"}, 2, (), ("error", "4290")),
        ({"error.type": "openai.RateLimitError"}, 2, (), ("error", "RateLimitError")),
        ({}, 2, (("exception", 1, {"exception.type": "ValueError"}),), ("error", "ValueError")),
        ({}, 0, (("exception", 1, {"exception.type": "ValueError"}),), ("ok", None)),
        (
            {},
            2,
            (("exception", 1, {"exception.type": "asyncio.CancelledError"}),),
            ("cancelled", "CancelledError"),
        ),
        ({"langfuse.observation.level": "ERROR"}, 0, (), ("error", None)),
    ],
)
def test_errors(attributes: dict[str, Any], status: int, events: Any, expected: tuple[str, str | None]):
    span = span_of(raw(MODEL | attributes, status=status, events=events))
    assert (span.status, span.error_type) == expected


@pytest.mark.parametrize(
    ("attributes", "name", "agent"),
    [
        (
            {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "planner"},
            "invoke_agent planner",
            "planner",
        ),
        ({"gen_ai.operation.name": "invoke_agent"}, "invoke_agent planner", "planner"),
        ({"gen_ai.operation.name": "invoke_agent"}, "anthropic.messages.tool_runner", ""),
        ({"openinference.span.kind": "AGENT", "agent.name": "planner"}, "x", "planner"),
        ({"openinference.span.kind": "AGENT"}, "Agent workflow", ""),
        ({"traceloop.span.kind": "agent", "traceloop.entity.name": "planner"}, "planner.agent", "planner"),
        ({"traceloop.span.kind": "workflow", "traceloop.entity.name": "trip"}, "trip.workflow", ""),
        (
            {"ai.operationId": "ai.generateText", "ai.telemetry.functionId": "planner"},
            "ai.generateText",
            "planner",
        ),
        ({"langfuse.observation.type": "agent"}, "planner", "planner"),
        ({"agent_name": "planner"}, "agent run", "planner"),
    ],
)
def test_names_of_agents(attributes: dict[str, Any], name: str, agent: str):
    span = span_of(raw(attributes, name))
    assert (span.kind, span.agent) == ("agent", agent)


@pytest.mark.parametrize(
    ("attributes", "name", "tool", "call"),
    [
        (
            {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "f", "gen_ai.tool.call.id": "c"},
            "",
            "f",
            "c",
        ),
        ({"gen_ai.operation.name": "execute_tool"}, "execute_tool f", "f", ""),
        ({"openinference.span.kind": "TOOL", "tool.name": "f"}, "x", "f", ""),
        ({"openinference.span.kind": "TOOL"}, "f", "f", ""),
        ({"traceloop.span.kind": "tool", "traceloop.entity.name": "f"}, "f.tool", "f", ""),
        (
            {"ai.operationId": "ai.toolCall", "ai.toolCall.name": "f", "ai.toolCall.id": "c"},
            "ai.toolCall",
            "f",
            "c",
        ),
        ({"langfuse.observation.type": "tool"}, "f", "f", ""),
    ],
)
def test_names_of_tools(attributes: dict[str, Any], name: str, tool: str, call: str):
    span = span_of(raw(attributes, name))
    assert (span.kind, span.name, span.call_id) == ("tool", tool, call)


@pytest.mark.parametrize(
    ("attributes", "provider", "model"),
    [
        (
            {"gen_ai.provider.name": "openai", "gen_ai.system": "x", "gen_ai.request.model": "m"},
            "openai",
            "m",
        ),
        ({"gen_ai.system": "OpenAI", "gen_ai.response.model": "m"}, "openai", "m"),
        ({"gen_ai.system": "anthropic.messages", "ai.model.id": "m"}, "anthropic", "m"),
        ({"llm.model_name": "claude-sonnet-4-5"}, "anthropic", "claude-sonnet-4-5"),
        ({"gen_ai.request.model": "openai/gpt-4.1"}, "openai", "openai/gpt-4.1"),
        ({"gen_ai.request.model": "mine"}, "", "mine"),
        (
            {"gen_ai.system": "aws.bedrock", "gen_ai.request.model": "anthropic.claude-x"},
            "aws.bedrock",
            "anthropic.claude-x",
        ),
    ],
)
def test_providers_and_models(attributes: dict[str, Any], provider: str, model: str):
    span = span_of(raw(MODEL | attributes))
    assert (span.provider, span.model) == (provider, model)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), [1], {"a": 1}, "x", -5, 10**30, True, b"1"])
def test_odd_values_are_none(value: Any):
    keys = "http.status_code http.request.resend_count gen_ai.usage.input_tokens gen_ai.request.model"
    keys += " gen_ai.response.time_to_first_chunk gen_ai.response.finish_reasons gen_ai.output.messages"
    for attributes in (MODEL, {"http.method": "GET"}):
        span = span_of(raw(dict.fromkeys(keys.split(), value) | attributes, kind=3))
        assert (span.http_status, span.input_tokens, span.first_token_ns, span.calls) == (
            None,
            None,
            None,
            (),
        )


def test_what_logfire_says_of_a_span_that_has_begun():
    span = span_of(
        raw(MODEL | {"logfire.span_type": "pending_span", "logfire.pending_parent_id": "00000000000000ff"})
    )
    assert (span.id, span.parent, span.ended_ns, span.kind) == ("p", "00000000000000ff", None, "model")


def test_content_is_taken_when_asked_for():
    attributes = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.call.arguments": {"a": 1},
        "gen_ai.tool.call.result": "R",
    }
    assert (span_of(raw(attributes)).arguments, span_of(raw(attributes)).result) == (None, None)
    full = span_of(raw(attributes), content=True)
    assert (full.arguments, full.result) == ('{"a":1}', "R")
    assert not wanted("gen_ai.tool.call.result")
    assert wanted("gen_ai.tool.call.result", content=True)


def test_the_clock_is_the_host_s():
    assert origin_of({"service.name": "s", "host.name": "h", "service.instance.id": "i"}) == ("h", "s")
    assert origin_of({"service.name": "s", "service.instance.id": "i"}) == ("i", "s")
    assert origin_of({"service.name": "unknown_service:python"}) == ("", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2001-09-09T01:46:40Z", 10**18),
        ("2001-09-09T01:46:40.000000001Z", 10**18 + 1),
        ("2001-09-09 01:46:40.5", 10**18 + 5 * 10**8),
        ("2001-09-09T03:46:40.5+02:00", 10**18 + 5 * 10**8),
        ('"2001-09-09T01:46:40+0000"', 10**18),
        ("yesterday", None),
        ("2001-99-09T01:46:40Z", None),
        (5, None),
    ],
)
def test_times(text: Any, expected: int | None):
    assert unix_ns(text) == expected


def test_a_dialect_stands_for_a_scope_that_is_not_written_down():
    assert span_of(raw({"openinference.span.kind": "LLM"})).scope == "openinference.span.kind"
    assert span_of(raw(MODEL)).scope == "gen_ai.operation.name"
    assert span_of(raw(MODEL, scope="s")).scope == "s"


def test_nothing_is_known_of_nothing():
    assert tokens_of({}) == Tokens()
