"""What the three APIs refuse beyond the error tables, and what they accept. No sockets."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.emulator import anthropic_messages, openai_chat, openai_responses
from profiler.emulator.conversation import (
    ApiError,
    Choice,
    Conversation,
    MadeCall,
    Said,
    call_tokens,
    limited,
    tokens_of,
)
from profiler.emulator.dialects import dialect
from profiler.emulator.faults import spoiled
from profiler.emulator.openai_responses import Store
from profiler.emulator.replies import Frame, Reply

USER: dict[str, Any] = {"role": "user", "content": "x"}
SCHEMA = {"type": "object", "properties": {}}
CHAT_TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
RESPONSES_TOOL = {"type": "function", "name": "f", "parameters": SCHEMA}
MESSAGES_TOOL = {"name": "f", "input_schema": SCHEMA}


def chat(**body: Any) -> Conversation:
    return openai_chat.parse({"model": "m", "messages": [USER], **body})


def responses(**body: Any) -> Conversation:
    return openai_responses.parse({"model": "m", "input": "x", **body}, Store())


def messages(**body: Any) -> Conversation:
    return anthropic_messages.parse({"model": "m", "messages": [USER], "max_tokens": 9, **body})


def made(**call: Any) -> list[Any]:
    whole = {"id": "call_A", "type": "function", "function": {"name": "f", "arguments": "{}"}, **call}
    return [USER, {"role": "assistant", "tool_calls": [whole]}]


@pytest.mark.parametrize(
    ("body", "message", "param", "code"),
    [
        (
            {"model": 5},
            "Invalid type for 'model': expected a string, but got an integer instead.",
            "model",
            "invalid_type",
        ),
        (
            {"messages": {}},
            "Invalid type for 'messages': expected an array of objects, but got an object instead.",
            "messages",
            "invalid_type",
        ),
        (
            {"messages": ["x"]},
            "Invalid type for 'messages[0]': expected an object",
            "messages[0]",
            "invalid_type",
        ),
        (
            {"messages": [{"content": "x"}]},
            "Missing required parameter: 'messages[0].role'.",
            "messages[0].role",
            "missing_required_parameter",
        ),
        (
            {"messages": [{"role": "user"}]},
            "Missing required parameter: 'messages[0].content'.",
            "messages[0].content",
            "missing_required_parameter",
        ),
        (
            {"messages": [{"role": "user", "content": 5}]},
            "Invalid type for 'messages[0].content'",
            "messages[0].content",
            "invalid_type",
        ),
        (
            {"messages": [{"role": "assistant"}]},
            "Invalid value for 'content': expected a string, got null.",
            "messages.[0].content",
            None,
        ),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": []}]},
            "Invalid 'messages[1].tool_calls': empty array.",
            "messages[1].tool_calls",
            "empty_array",
        ),
        (
            {"messages": made(id=None)},
            "Missing required parameter: 'messages[1].tool_calls[0].id'.",
            "messages[1].tool_calls[0].id",
            "missing_required_parameter",
        ),
        (
            {"messages": made(type="robot")},
            "Invalid value: 'robot'. Supported values are: 'function'.",
            "messages[1].tool_calls[0].type",
            "invalid_value",
        ),
        (
            {"stream": "yes"},
            "Invalid type for 'stream': expected a boolean, but got a string instead.",
            "stream",
            "invalid_type",
        ),
        (
            {"parallel_tool_calls": 1},
            "Invalid type for 'parallel_tool_calls': expected a boolean, but got an integer instead.",
            "parallel_tool_calls",
            "invalid_type",
        ),
        (
            {"messages": made(function={"name": "f"})},
            "Missing required parameter: 'messages[1].tool_calls[0].function.arguments'.",
            "messages[1].tool_calls[0].function.arguments",
            "missing_required_parameter",
        ),
        (
            {"messages": made(function={"name": "f", "arguments": {}})},
            "Invalid type for 'messages[1].tool_calls[0].function.arguments': expected a string",
            "messages[1].tool_calls[0].function.arguments",
            "invalid_type",
        ),
        (
            {"messages": [*made(), {"role": "tool", "content": "x"}]},
            "Missing required parameter: 'messages.[2].tool_call_id'.",
            "messages.[2].tool_call_id",
            "missing_required_parameter",
        ),
        (
            {"messages": [*made(), {"role": "tool", "tool_call_id": "call_A"}]},
            "Missing required parameter: 'messages.[2].content'.",
            "messages.[2].content",
            "missing_required_parameter",
        ),
        ({"tools": []}, "Invalid 'tools': empty array.", "tools", "empty_array"),
        ({"tools": {}}, "Invalid type for 'tools': expected an array of objects", "tools", "invalid_type"),
        (
            {"tools": [{"type": "robot"}]},
            "Invalid value: 'robot'. Supported values are: 'function'.",
            "tools[0].type",
            "invalid_value",
        ),
        (
            {"tools": [{}]},
            "Missing required parameter: 'tools[0].type'.",
            "tools[0].type",
            "missing_required_parameter",
        ),
        (
            {"tools": [{"type": "function"}]},
            "Missing required parameter: 'tools[0].function'.",
            "tools[0].function",
            "missing_required_parameter",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            "Invalid 'tools[0].function.name': string does not match pattern.",
            "tools[0].function.name",
            "invalid_value",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]},
            (
                "Invalid schema for function 'f': schema must be a JSON Schema of 'type: \"object\"', got"
                " 'type: \"array\"'."
            ),
            "tools[0].function.parameters",
            "invalid_function_parameters",
        ),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {
                            "name": "f",
                            "parameters": {"type": "object", "properties": {"x": {"type": "array"}}},
                        },
                    }
                ]
            },
            "Invalid schema for function 'f': In context=('properties', 'x'), array schema missing items.",
            "tools[0].function.parameters",
            "invalid_function_parameters",
        ),
        (
            {"tools": [CHAT_TOOL], "tool_choice": "sometimes"},
            "Invalid value: 'sometimes'. Supported values are: 'none', 'auto', and 'required'.",
            "tool_choice",
            "invalid_value",
        ),
        (
            {"tools": [CHAT_TOOL], "tool_choice": {"type": "function"}},
            "Missing required parameter: 'tool_choice.function.name'.",
            "tool_choice.function.name",
            "missing_required_parameter",
        ),
        (
            {"parallel_tool_calls": True},
            (
                "Invalid value for 'parallel_tool_calls': 'parallel_tool_calls' is only allowed when 'tools'"
                " are specified."
            ),
            "parallel_tool_calls",
            None,
        ),
        (
            {"stream_options": {}},
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            "stream_options",
            None,
        ),
        (
            {"max_tokens": 1, "max_completion_tokens": 1},
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
            "max_tokens",
            None,
        ),
        (
            {"max_tokens": 0},
            "Invalid 'max_tokens': integer below minimum value.",
            "max_tokens",
            "integer_below_min_value",
        ),
        (
            {"max_completion_tokens": "9"},
            "Invalid type for 'max_completion_tokens': expected an integer, but got a string instead.",
            "max_completion_tokens",
            "invalid_type",
        ),
    ],
)
def test_chat_refuses(body: dict[str, Any], message: str, param: str, code: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        chat(**body)
    assert caught.value.message.startswith(message)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({"input": 5}, "Invalid type for 'input': expected one of a string or array of input items", "input"),
        ({"input": [{"content": "x"}]}, "Missing required parameter: 'input[0].role'.", "input[0].role"),
        ({"input": [{"role": "robot", "content": "x"}]}, "Invalid value: 'robot'.", "input[0].role"),
        ({"input": [{"type": "robot"}]}, "Invalid value: 'robot'.", "input[0].type"),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f"}]},
            "Missing required parameter: 'input[0].arguments'.",
            "input[0].arguments",
        ),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": {}}]},
            "Invalid type for 'input[0].arguments': expected a string, but got an object",
            "input[0].arguments",
        ),
        (
            {"input": [{"type": "function_call_output", "output": "x"}]},
            "Missing required parameter: 'input[0].call_id'.",
            "input[0].call_id",
        ),
        (
            {"tools": [{"type": "web_search"}]},
            "Invalid value: 'web_search'. Supported values are: 'function'.",
            "tools[0].type",
        ),
        (
            {"max_output_tokens": 3},
            "Invalid 'max_output_tokens': integer below minimum value.",
            "max_output_tokens",
        ),
        (
            {"previous_response_id": 5},
            "Invalid type for 'previous_response_id': expected a string",
            "previous_response_id",
        ),
        (
            {"tools": [RESPONSES_TOOL], "tool_choice": {"type": "function", "name": "g"}},
            "Tool choice 'g' not found in 'tools' parameter.",
            "tool_choice",
        ),
    ],
)
def test_responses_refuses(body: dict[str, Any], message: str, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        responses(**body)
    assert caught.value.message.startswith(message)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"model": 5}, "model: Input should be a valid string"),
        ({"messages": []}, "messages: at least one message is required"),
        ({"messages": {}}, "messages: Input should be a valid list"),
        ({"messages": [{"role": "user"}]}, "messages.0.content: Field required"),
        ({"messages": [{"content": "x"}]}, "messages.0.role: Field required"),
        ({"messages": [{"role": "system", "content": "x"}]}, 'messages: Unexpected role "system".'),
        ({"messages": [{"role": "user", "content": [{}]}]}, "messages.0.content.0.type: Field required"),
        (
            {
                "messages": [
                    {"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {}}]}
                ]
            },
            "messages.0.content.0.tool_use.id: Field required",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "content": [{"type": "tool_use", "id": "t", "name": "f", "input": "{}"}],
                    }
                ]
            },
            "messages.0.content.0.tool_use.input: Input should be a valid dictionary",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]},
            "messages: text content blocks must be non-empty",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": " \n"}]}]},
            "messages: text content blocks must contain non-whitespace text",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "t"}]}]},
            "messages.0: `tool_result` blocks can only be in `user` messages",
        ),
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
        ({"max_tokens": "9"}, "max_tokens: Input should be a valid integer"),
        ({"tools": [{"input_schema": SCHEMA}]}, "tools.0.custom.name: Field required"),
        (
            {"tools": [{"name": "a b", "input_schema": SCHEMA}]},
            "tools.0.custom.name: String should match pattern",
        ),
        ({"tools": [{"name": "f"}]}, "tools.0.custom.input_schema: Field required"),
        ({"tools": [{"name": "f", "input_schema": {}}]}, "tools.0.custom.input_schema.type: Field required"),
        (
            {"tools": [{"name": "f", "input_schema": {"type": "array"}}]},
            "tools.0.custom.input_schema.type: Input should be 'object'",
        ),
        ({"tools": [MESSAGES_TOOL, MESSAGES_TOOL]}, "tools: Tool names must be unique."),
        (
            {"tools": [{"type": "bash_20250124", "name": "bash"}]},
            "tools.0: server tools such as 'bash_20250124' are not supported",
        ),
        (
            {"tool_choice": {"type": "auto"}},
            "tool_choice: tool_choice may only be specified while providing tools",
        ),
        (
            {"tools": [MESSAGES_TOOL], "tool_choice": "any"},
            "tool_choice: Input tag 'any' found using 'type' does not match",
        ),
        (
            {"tools": [MESSAGES_TOOL], "tool_choice": {"type": "tool", "name": "g"}},
            "Tool 'g' not found in provided tools",
        ),
        (
            {"tools": [MESSAGES_TOOL], "tool_choice": {"type": "tool"}},
            "tool_choice.tool.name: Field required",
        ),
        ({"thread": {"id": "x"}}, "thread: message threads are not supported by this server"),
    ],
)
def test_messages_refuses(body: dict[str, Any], message: str) -> None:
    with pytest.raises(ApiError) as caught:
        messages(**body)
    assert caught.value.message.startswith(message)
    assert (caught.value.status, caught.value.kind) == (400, "invalid_request_error")


def test_chat_conversation_stands_where_its_messages_say() -> None:
    call = made()[1]
    result = {"role": "tool", "tool_call_id": "call_A", "content": "r"}
    talk = chat(messages=[{"role": "system", "content": "s"}, USER, call, result, call, result])
    assert (talk.turns, talk.calls, talk.call_id, talk.results) == (2, 2, "call_A", ["r", "r"])
    assert chat(messages=[USER, call, result, USER]).turns == 0


def test_messages_conversation_stands_where_its_messages_say() -> None:
    use = {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_A", "name": "f", "input": {}}]}
    answer = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_A", "content": "r"}]}
    talk = messages(messages=[USER, use, answer])
    assert (talk.turns, talk.calls, talk.call_id, talk.results) == (1, 1, "toolu_A", ["r"])
    # Text beside the results does not make it a new question.
    beside = {"role": "user", "content": [*answer["content"], {"type": "text", "text": "go on"}]}
    assert messages(messages=[USER, use, beside]).turns == 1
    assert messages(messages=[USER, use, answer, USER]).turns == 0


def test_choices() -> None:
    assert chat(tools=[CHAT_TOOL], tool_choice="required").choice == Choice("required")
    assert chat(tools=[CHAT_TOOL], parallel_tool_calls=False).parallel is False
    named = {"type": "function", "function": {"name": "f"}}
    assert chat(tools=[CHAT_TOOL], tool_choice=named).choice == Choice("named", ("f",))
    assert (
        responses(tools=[RESPONSES_TOOL], tool_choice={"type": "function", "name": "f"}).choice.kind
        == "named"
    )
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}
    assert responses(tools=[RESPONSES_TOOL], tool_choice=allowed).choice == Choice("required", ("f",))
    assert responses(tool_choice="none").choice.kind == "auto"
    one = messages(tools=[MESSAGES_TOOL], tool_choice={"type": "any", "disable_parallel_tool_use": True})
    assert (one.choice, one.parallel) == (Choice("required"), False)


def test_tools_that_are_the_same_are_compiled_once() -> None:
    body = {"model": "m", "messages": [USER], "tools": [CHAT_TOOL]}
    assert openai_chat.parse(body).tools is openai_chat.parse(orjson.loads(orjson.dumps(body))).tools


def test_spoilt_calls() -> None:
    call = MadeCall("t", "f", '{"city":"Paris","n":1}')
    assert spoiled(call, "unknown_tool").name == "nonexistent_tool"
    assert spoiled(call, "malformed_arguments").arguments == '{"city":"Paris","n":1'
    assert orjson.loads(spoiled(call, "wrong_type").arguments) == {"city": [{"unexpected": None}], "n": 1}
    assert orjson.loads(spoiled(MadeCall("t", "f", "{}"), "wrong_type").arguments) == {
        "unexpected": [{"unexpected": None}]
    }


texts = st.text(max_size=90)  # whatever characters: what is said may repeat a result
made_calls = st.lists(
    st.builds(
        lambda token, name, arguments: MadeCall(token, name, arguments, "call_" + token),
        st.from_regex("[A-Za-z0-9]{24}", fullmatch=True),
        texts,
        texts,
    ),
    max_size=4,
).map(tuple)


def said_of(text: str, calls: tuple[MadeCall, ...], most: int | None, reasoning: int) -> Said:
    tokens = reasoning + (sum(map(call_tokens, calls)) if calls else tokens_of(text))
    said = Said(
        *(None if calls else text, calls, "tool_calls" if calls else "stop"),
        *(300, tokens, reasoning, 70, 20, "1h"),
    )
    return limited(said, most)


def made_one_by_one(reply: Reply, tokens_per_event: int) -> list[Frame]:
    """The frames of a reply of OpenAI's or Anthropic's, from its events."""
    said, talk, token, created = reply.said, reply.talk, reply.token, reply.created
    if reply.api == "messages":
        events = anthropic_messages.events(said, talk, token, tokens_per_event)
        return [(tokens, anthropic_messages.frame(event)) for tokens, event in events]
    if reply.api == "responses":
        events = openai_responses.events(said, talk, token, created, tokens_per_event)
        return [(tokens, openai_responses.frame(event, n)) for n, (tokens, event) in enumerate(events)]
    begun = orjson.dumps(openai_chat.start(talk, token, created, chunk=True))
    events = openai_chat.events(said, talk, tokens_per_event, "reasoning_content")
    frames = [(tokens, openai_chat.frame(begun, event)) for tokens, event in events]
    return [*frames, (said.output_tokens, openai_chat.DONE)]


@given(
    text=texts,
    calls=made_calls,
    most=st.none() | st.integers(1, 60),
    reasoning=st.sampled_from([0, 0, 0, 9]),
    tokens_per_event=st.integers(1, 9),
    counted=st.booleans(),
    model=texts,
)
def test_frames_that_are_written_at_once_are_those_of_the_events(
    text: str,
    calls: tuple[MadeCall, ...],
    most: int | None,
    reasoning: int,
    tokens_per_event: int,
    counted: bool,
    model: str,
) -> None:
    said = said_of(text, calls, most, reasoning)
    talks = {
        "chat": chat(stream=True, model=model or "m", stream_options={"include_usage": counted}),
        "responses": responses(
            stream=True, model=model or "m", tools=[RESPONSES_TOOL], metadata={"é": model}
        ),
        "messages": messages(stream=True, model=model or "m"),
    }
    for api, talk in talks.items():
        reply = Reply(api, said, talk, "0123456789abcdef01234567", 1_700_000_000, 5, dialect("openai"))
        frames, held = reply.frames(tokens_per_event)
        assert frames == made_one_by_one(reply, tokens_per_event)
        assert held >= len(frames) - 1  # nothing is held back: [DONE] comes when all is said


junk = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-2, 3),
        st.sampled_from(["", "x", "user", "tool", "function", "f"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["type", "role", "content", "id", "name", "function", "tools", "parameters", "call_id"]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=6,
)
KEYS = {
    chat: [
        "messages",
        "tools",
        "tool_choice",
        "stream_options",
        "n",
        "max_tokens",
        "stream",
        "parallel_tool_calls",
    ],
    responses: [
        "input",
        "tools",
        "tool_choice",
        "max_output_tokens",
        "previous_response_id",
        "metadata",
        "store",
    ],
    messages: ["messages", "tools", "tool_choice", "max_tokens", "stream", "thread"],
}


def status_of(parse: Any, body: dict[str, Any]) -> int:
    """What a body is answered with; any exception but the API's own goes through."""
    try:
        parse(**body)
    except ApiError as error:
        return error.status
    return 200


@pytest.mark.parametrize("parse", list(KEYS), ids=lambda parse: parse.__name__)
@given(data=st.data())
def test_junk_is_refused_and_never_breaks_the_server(parse: Any, data: st.DataObject) -> None:
    body = data.draw(st.dictionaries(st.sampled_from(KEYS[parse]), junk, min_size=1, max_size=3))
    if data.draw(st.booleans()) and "stream_options" in KEYS[parse]:
        body["stream"] = True
    assert status_of(parse, body) in (200, 400)


@pytest.mark.parametrize("parse", list(KEYS), ids=lambda parse: parse.__name__)
@given(
    parts=st.lists(junk, max_size=4), more=st.dictionaries(st.sampled_from(["tool_calls", "content"]), junk)
)
def test_junk_inside_messages_and_tools(parse: Any, parts: list[Any], more: dict[str, Any]) -> None:
    call = {"role": "assistant", "content": parts, **more}
    history = {"input" if parse is responses else "messages": [USER, call, *parts]}
    tool: dict[str, Any] = (
        {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {"x": p}}}
        if (p := (parts or [None])[0]) is not None
        else RESPONSES_TOOL
    )
    offered = {
        chat: {"type": "function", "function": tool},
        responses: tool,
        messages: {"name": "f", "input_schema": tool["parameters"]},
    }[parse]
    for body in (history, {"tools": [offered]}, {"tools": parts or None}):
        assert status_of(parse, body) in (200, 400)
