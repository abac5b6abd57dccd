"""The SDKs' own stream helpers judge every stream: random tools, random fan-outs, no warning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from profiler.emulator.process import EmulatorProcess, start_emulator

SCENARIO = """
description = "instant, with fan-outs of 1 to 7 and small events"
prompt = "Question {number}"
time_scale = 0

[model]
first_token = 0
tokens_per_second = 0
tokens_per_event = 2

[loop]
rounds = 1
fan_out = { kind = "uniform", low = 1, high = 7 }

[tools.look]
description = "Looks."
duration = 0
"""

USER: Any = {"role": "user", "content": "Look."}
MODEL = "claude-sonnet-4-6"


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatorProcess]:
    path: Path = tmp_path_factory.mktemp("scenario") / "streams.toml"
    path.write_text(SCENARIO)
    with start_emulator(str(path), seed=11) as running:
        yield running


@pytest.fixture(scope="module")
def chat(emulator: EmulatorProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{emulator.url}/v1", api_key="x", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def claude(emulator: EmulatorProcess) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=emulator.url, api_key="x", max_retries=0) as client:
        yield client


leaves = st.sampled_from(
    [
        {"type": "string"},
        {"type": "string", "enum": ["é", 'quo"te', "back\\slash", "line\nbreak"]},
        {"type": "integer", "minimum": -3, "maximum": 3},
        {"type": "number"},
        {"type": "boolean"},
        {"type": "array", "items": {"type": "string"}, "maxItems": 3},
        {"type": ["string", "null"]},
    ]
)
objects = st.recursive(
    st.dictionaries(st.sampled_from(["city", "limit", "query", "flag", "when"]), leaves, max_size=4),
    lambda inner: st.dictionaries(
        st.sampled_from(["filter", "options"]),
        inner.map(
            lambda properties: {"type": "object", "properties": properties, "required": list(properties)}
        ),
        min_size=1,
        max_size=2,
    ),
    max_leaves=4,
)
toolsets = st.dictionaries(
    st.from_regex(r"[a-zA-Z_-][a-zA-Z0-9_-]{0,20}", fullmatch=True),
    objects.map(
        lambda properties: {"type": "object", "properties": properties, "required": list(properties)[:1]}
    ),
    min_size=1,
    max_size=4,
)
few = settings(
    max_examples=20,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

Calls = list[tuple[str, Any]]


@given(tools=toolsets, loop=st.integers(0, 10_000))
@few
def test_chat_streams(chat: openai.OpenAI, tools: dict[str, Any], loop: int) -> None:
    offered: Any = [
        {"type": "function", "function": {"name": name, "parameters": schema}}
        for name, schema in tools.items()
    ]
    common: Any = {
        "model": MODEL,
        "messages": [USER],
        "tools": offered,
        "extra_headers": {"x-toolloop-loop": str(loop)},
    }
    whole = chat.chat.completions.create(**common)
    done: list[str] = []
    with chat.chat.completions.stream(**common, stream_options={"include_usage": True}) as stream:
        done.extend(event.name for event in stream if event.type == "tool_calls.function.arguments.done")
        final = stream.get_final_completion()
    streamed: Calls = [
        (c.function.name, json.loads(c.function.arguments)) for c in final.choices[0].message.tool_calls or []
    ]
    plain: Calls = [
        (c.function.name, json.loads(c.function.arguments)) for c in whole.choices[0].message.tool_calls or []
    ]
    assert streamed == plain
    assert done == [name for name, _ in streamed]
    assert 1 <= len(streamed) <= 7
    assert {name for name, _ in streamed} <= set(tools)
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason == "tool_calls"
    assert final.usage is not None
    assert whole.usage is not None
    assert final.usage.completion_tokens == whole.usage.completion_tokens > 0


@given(tools=toolsets, loop=st.integers(0, 10_000))
@few
def test_responses_streams(chat: openai.OpenAI, tools: dict[str, Any], loop: int) -> None:
    offered: Any = [
        {"type": "function", "name": name, "parameters": schema, "strict": False}
        for name, schema in tools.items()
    ]
    common: Any = {
        "model": MODEL,
        "input": [USER],
        "tools": offered,
        "extra_headers": {"x-toolloop-loop": str(loop)},
    }
    whole = chat.responses.create(**common)
    numbers: list[int] = []
    with chat.responses.stream(**common) as stream:
        numbers.extend(event.sequence_number for event in stream if hasattr(event, "sequence_number"))
        final = stream.get_final_response()
    streamed = [
        (item.name, json.loads(item.arguments)) for item in final.output if item.type == "function_call"
    ]
    plain = [(item.name, json.loads(item.arguments)) for item in whole.output if item.type == "function_call"]
    assert streamed == plain
    assert 1 <= len(streamed) <= 7
    assert numbers == list(range(len(numbers)))
    assert final.status == whole.status == "completed"
    assert final.usage is not None
    assert final.usage.input_tokens_details.cached_tokens == 0


@given(tools=toolsets, loop=st.integers(0, 10_000))
@few
def test_messages_streams(claude: anthropic.Anthropic, tools: dict[str, Any], loop: int) -> None:
    offered: Any = [{"name": name, "input_schema": schema} for name, schema in tools.items()]
    common: Any = {
        "model": MODEL,
        "messages": [USER],
        "max_tokens": 10_000,
        "tools": offered,
        "extra_headers": {"x-toolloop-loop": str(loop)},
    }
    whole = claude.messages.create(**common)
    stopped = 0
    with claude.messages.stream(**common) as stream:
        for event in stream:
            stopped += event.type == "content_block_stop"
        final = stream.get_final_message()
    streamed = [(block.name, block.input) for block in final.content if block.type == "tool_use"]
    plain = [(block.name, block.input) for block in whole.content if block.type == "tool_use"]
    assert streamed == plain
    assert 1 <= len(streamed) <= 7
    assert stopped == len(final.content) == len(streamed) + 1
    assert final.stop_reason == whole.stop_reason == "tool_use"
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_all_apis_ask_for_the_same_calls(chat: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "n": {"type": "integer"}},
        "required": ["city"],
    }
    for loop in range(5):
        headers = {"x-toolloop-loop": str(loop)}
        function: Any = {"name": "look", "parameters": schema}
        first = chat.chat.completions.create(
            model="m",
            messages=[USER],
            tools=[{"type": "function", "function": function}],
            extra_headers=headers,
        )
        second = chat.responses.create(
            model="m",
            input=[USER],
            tools=[{"type": "function", "strict": None, **function}],
            extra_headers=headers,
        )
        third = claude.messages.create(
            model="m",
            messages=[USER],
            max_tokens=1000,
            tools=[{"name": "look", "input_schema": schema}],
            extra_headers=headers,
        )
        calls = [json.loads(c.function.arguments) for c in first.choices[0].message.tool_calls or []]  # type: ignore[union-attr]
        assert calls == [json.loads(item.arguments) for item in second.output if item.type == "function_call"]
        assert calls == [block.input for block in third.content if block.type == "tool_use"]


def frames(text: str) -> list[tuple[str | None, Any]]:
    """(event name, data) of an SSE body."""
    out = []
    for block in text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        data = lines["data"]
        out.append((lines.get("event"), data if data == "[DONE]" else json.loads(data)))
    return out


TOOL = {"type": "object", "properties": {"city": {"enum": ["Paris"]}}, "required": ["city"]}


def one_call(path: str, emulator: EmulatorProcess, **body: Any) -> list[tuple[str | None, Any]]:
    headers = {"x-toolloop-loop": "1", "anthropic-version": "2023-06-01"}
    response = httpx.post(
        emulator.url + path, json={"model": "m", "stream": True, **body}, headers=headers, timeout=60
    )
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    return frames(response.text)


def test_chat_frames_in_order(emulator: EmulatorProcess) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": TOOL}}]
    body = {"messages": [USER], "tools": tools, "stream_options": {"include_usage": True}}
    single = one_call("/v1/chat/completions", emulator, **body, parallel_tool_calls=False)
    assert all(name is None for name, _ in single)
    deltas = [data["choices"][0]["delta"] for _, data in single[:-3]]
    # With a single call, role and opener are one chunk.
    assert deltas[0]["role"] == "assistant"
    assert deltas[0]["tool_calls"][0]["function"] == {"name": "look", "arguments": ""}
    assert [set(d["tool_calls"][0]) for d in deltas[1:]] == [{"index", "function"}] * (len(deltas) - 1)
    assert "".join(d["tool_calls"][0]["function"]["arguments"] for d in deltas[1:]) == '{"city":"Paris"}'
    assert single[-3][1]["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "tool_calls",
    }
    assert (single[-2][1]["choices"], single[-2][1]["usage"]["prompt_tokens"] > 0) == ([], True)
    assert {data["usage"] for _, data in single[:-2]} == {None}
    assert single[-1][1] == "[DONE]"
    several = [data for _, data in one_call("/v1/chat/completions", emulator, **body)[:-3]]
    assert several[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    indices = [data["choices"][0]["delta"]["tool_calls"][0]["index"] for data in several[1:]]
    assert indices == sorted(indices)
    assert indices[-1] >= 1


def test_responses_frames_in_order(emulator: EmulatorProcess) -> None:
    tools = [{"type": "function", "name": "look", "parameters": TOOL}]
    events = one_call("/v1/responses", emulator, input="Look.", tools=tools, parallel_tool_calls=False)
    assert all(name == data["type"] for name, data in events)
    names = [str(name).removeprefix("response.") for name, _ in events]
    deltas = names.count("function_call_arguments.delta")
    assert names == [
        "created",
        "in_progress",
        "output_item.added",
        *["function_call_arguments.delta"] * deltas,
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    added, done = events[2][1]["item"], events[-2][1]["item"]
    assert (added["arguments"], added["status"]) == ("", "in_progress")
    assert (done["arguments"], done["status"], done["name"]) == ('{"city":"Paris"}', "completed", "look")
    assert done["call_id"].startswith("call_")
    assert done["id"].startswith("fc_")
    completed = events[-1][1]["response"]
    assert completed["usage"]["input_tokens_details"] == {"cached_tokens": 0, "cache_write_tokens": 0}
    text = [
        str(name).removeprefix("response.") for name, _ in one_call("/v1/responses", emulator, input="Look.")
    ]
    assert [name for name in text if name != "output_text.delta"] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]


def test_messages_frames_in_order(emulator: EmulatorProcess) -> None:
    tools = [{"name": "look", "input_schema": TOOL}]
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    events = one_call(
        "/v1/messages", emulator, messages=[USER], max_tokens=99, tools=tools, tool_choice=choice
    )
    assert all(name == data["type"] for name, data in events)
    names = [name for name, _ in events]
    assert names[:6] == [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
    ]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    start = events[5][1]
    assert (start["index"], start["content_block"]["input"]) == (1, {})
    assert start["content_block"]["id"].startswith("toolu_")
    parts = [data["delta"]["partial_json"] for name, data in events[6:] if name == "content_block_delta"]
    assert parts[0] == ""
    assert "".join(parts) == '{"city":"Paris"}'
    assert events[-2][1]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2][1]["usage"]["output_tokens"] > 0


def test_max_tokens_cuts_every_api(chat: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    text = chat.chat.completions.create(model="m", messages=[USER], max_completion_tokens=3)
    assert text.choices[0].finish_reason == "length"
    assert text.choices[0].message.content == "There was no"
    assert text.usage is not None
    assert text.usage.completion_tokens == 3
    offered: Any = [{"type": "function", "name": "look", "parameters": TOOL, "strict": None}]
    response = chat.responses.create(
        model="m", input="Look.", tools=offered, max_output_tokens=16, extra_headers={"x-toolloop-loop": "1"}
    )
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    tools: Any = [{"name": "look", "input_schema": TOOL}]
    with claude.messages.stream(
        model="m", messages=[USER], max_tokens=16, tools=tools, extra_headers={"x-toolloop-loop": "1"}
    ) as stream:
        message = stream.get_final_message()
    assert message.stop_reason == "max_tokens"
