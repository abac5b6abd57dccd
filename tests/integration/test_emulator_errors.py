"""Every row of the providers' error tables, provoked through the real SDKs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from profiler.emulator.process import EmulatorProcess, start_emulator

STRICT = """
description = "instant, with known models and keys"
prompt = "Question {number}"
time_scale = 0

[model]
first_token = 0
tokens_per_second = 0
models = ["gpt-4o", "claude-sonnet-4-6"]
api_keys = ["sk-right"]

[loop]
rounds = 1
fan_out = 2

[tools.look]
description = "Looks."
duration = 0
"""

LOOK = {"type": "object", "properties": {"subject": {"type": "string"}}, "required": ["subject"]}
CHAT_TOOLS: Any = [{"type": "function", "function": {"name": "look", "parameters": LOOK}}]
RESPONSES_TOOLS: Any = [{"type": "function", "name": "look", "parameters": LOOK, "strict": False}]
MESSAGES_TOOLS: Any = [{"name": "look", "input_schema": LOOK}]


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatorProcess]:
    path: Path = tmp_path_factory.mktemp("scenario") / "strict.toml"
    path.write_text(STRICT)
    with start_emulator(str(path)) as running:
        yield running


@pytest.fixture
async def chat(emulator: EmulatorProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{emulator.url}/v1", api_key="sk-right", max_retries=0) as client:
        yield client


@pytest.fixture
async def claude(emulator: EmulatorProcess) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=emulator.url, api_key="sk-right", max_retries=0) as client:
        yield client


def made(*ids: str) -> dict[str, Any]:
    calls = [{"id": i, "type": "function", "function": {"name": "look", "arguments": "{}"}} for i in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def result(ident: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": ident, "content": "found"}


USER = {"role": "user", "content": "Look."}
BAD_PATTERN = {"type": "object", "properties": {"x": {"type": "string", "pattern": "("}}}

# (messages or other arguments, status, message, param, code)
CHAT_ROWS: dict[str, tuple[dict[str, Any], int, str, str | None, str | None]] = {
    "results missing": (
        {"messages": [USER, made("call_A", "call_B"), result("call_A"), USER]},
        400,
        (
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each"
            " 'tool_call_id'. The following tool_call_ids did not have response messages: call_B"
        ),
        "messages.[3].role",
        None,
    ),
    "results missing at the end": (
        {"messages": [USER, made("call_A", "call_B")]},
        400,
        (
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each"
            " 'tool_call_id'. The following tool_call_ids did not have response messages: call_A, call_B"
        ),
        "messages.[2].role",
        None,
    ),
    "tool message without calls before it": (
        {"messages": [USER, result("call_A")]},
        400,
        (
            "Invalid parameter: messages with role 'tool' must be a response to a preceeding message with"
            " 'tool_calls'."
        ),
        "messages.[1].role",
        None,
    ),
    "unknown id": (
        {"messages": [USER, made("call_A"), result("call_X")]},
        400,
        "Invalid parameter: 'tool_call_id' of 'call_X' not found in 'tool_calls' of previous message.",
        "messages.[2].tool_call_id",
        None,
    ),
    "duplicate id": (
        {"messages": [USER, made("call_A", "call_B"), result("call_A"), result("call_A"), result("call_B")]},
        400,
        "Invalid parameter: Duplicate value for 'tool_call_id' of 'call_A', in messages[2] and messages[3].",
        "messages.[3].tool_call_id",
        None,
    ),
    "bad schema": (
        {
            "tools": [
                *CHAT_TOOLS,
                {"type": "function", "function": {"name": "get_me", "parameters": {"type": "object"}}},
            ]
        },
        400,
        "Invalid schema for function 'get_me': In context=(), object schema missing properties.",
        "tools[1].function.parameters",
        "invalid_function_parameters",
    ),
    "bad keyword deep in a schema": (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": BAD_PATTERN}}]},
        400,
        "Invalid schema for function 'f': '(' is not a 'regex'.",
        "tools[0].function.parameters",
        "invalid_function_parameters",
    ),
    "unknown model": (
        {"model": "gpt-9"},
        404,
        "The model `gpt-9` does not exist or you do not have access to it.",
        None,
        "model_not_found",
    ),
    "more than one choice": (
        {"n": 2},
        400,
        "Invalid value for 'n': 2. Only 1 is supported.",
        "n",
        "invalid_value",
    ),
    "choice of a tool that is not offered": (
        {"tools": CHAT_TOOLS, "tool_choice": {"type": "function", "function": {"name": "listen"}}},
        400,
        "Tool choice 'listen' not found in 'tools' parameter.",
        "tool_choice",
        None,
    ),
    "tool_choice without tools": (
        {"tool_choice": "none"},
        400,
        "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified.",
        "tool_choice",
        None,
    ),
}


@pytest.mark.parametrize("row", list(CHAT_ROWS))
@pytest.mark.parametrize("stream", [False, True])
async def test_chat_errors(chat: openai.AsyncOpenAI, row: str, stream: bool) -> None:
    given, status, message, param, code = CHAT_ROWS[row]
    with pytest.raises(openai.APIStatusError) as caught:
        await chat.chat.completions.create(
            **{"model": "gpt-4o", "messages": [USER], "stream": stream, **given}
        )
    error = caught.value
    assert error.status_code == status
    assert error.body == {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    assert error.request_id is not None
    assert error.request_id.startswith("req_")


def call_item(ident: str) -> dict[str, Any]:
    return {"type": "function_call", "call_id": ident, "name": "look", "arguments": "{}"}


def output_item(ident: str) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": ident, "output": "found"}


RESPONSES_ROWS: dict[str, tuple[dict[str, Any], int, str, str | None, str | None]] = {
    "orphan output": (
        {"input": [USER, output_item("call_X")]},
        400,
        "No tool call found for function call output with call_id call_X.",
        "input",
        None,
    ),
    "missing output": (
        {"input": [USER, call_item("call_X"), call_item("call_Y"), output_item("call_Y")]},
        400,
        "No tool output found for function call call_X.",
        "input",
        None,
    ),
    "bad schema": (
        {
            "tools": [
                *RESPONSES_TOOLS,
                {"type": "function", "name": "get_me", "parameters": {"type": "object"}},
            ]
        },
        400,
        "Invalid schema for function 'get_me': In context=(), object schema missing properties.",
        "tools[1].parameters",
        "invalid_function_parameters",
    ),
    "unknown model": (
        {"model": "gpt-9"},
        400,
        "The requested model 'gpt-9' does not exist.",
        "model",
        "model_not_found",
    ),
    "unknown previous response": (
        {"previous_response_id": "resp_none"},
        400,
        "Previous response with id 'resp_none' not found.",
        "previous_response_id",
        "previous_response_not_found",
    ),
}


@pytest.mark.parametrize("row", list(RESPONSES_ROWS))
async def test_responses_errors(chat: openai.AsyncOpenAI, row: str) -> None:
    given, status, message, param, code = RESPONSES_ROWS[row]
    with pytest.raises(openai.APIStatusError) as caught:
        await chat.responses.create(**{"model": "gpt-4o", "input": "Look.", **given})
    assert caught.value.status_code == status
    assert caught.value.body == {
        "message": message,
        "type": "invalid_request_error",
        "param": param,
        "code": code,
    }


def use(*ids: str) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": [{"type": "tool_use", "id": i, "name": "look", "input": {}} for i in ids],
    }


def results(*ids: str) -> dict[str, Any]:
    return {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": i, "content": "found"} for i in ids],
    }


NO_RESULT = (
    " `tool_use` ids were found without `tool_result` blocks immediately after: {}. Each `tool_use` block"
    " must have a corresponding `tool_result` block in the next message."
)

MESSAGES_ROWS: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "results missing": (
        {"messages": [USER, use("toolu_A", "toolu_B", "toolu_C"), results("toolu_C")]},
        400,
        "invalid_request_error",
        "messages.1:" + NO_RESULT.format("toolu_A, toolu_B"),
    ),
    "results not directly after": (
        {"messages": [USER, use("toolu_A"), USER, results("toolu_A")]},
        400,
        "invalid_request_error",
        "messages.1:" + NO_RESULT.format("toolu_A"),
    ),
    "results missing at the end": (
        {"messages": [USER, use("toolu_A")]},
        400,
        "invalid_request_error",
        "messages.1:" + NO_RESULT.format("toolu_A"),
    ),
    "unknown id": (
        {"messages": [USER, use("toolu_A"), results("toolu_A", "toolu_X")]},
        400,
        "invalid_request_error",
        (
            "messages.2.content.1: unexpected `tool_use_id` found in `tool_result` blocks: toolu_X. Each"
            " `tool_result` block must have a corresponding `tool_use` block in the previous message."
        ),
    ),
    "duplicate tool_use": (
        {"messages": [USER, use("toolu_A", "toolu_A"), results("toolu_A")]},
        400,
        "invalid_request_error",
        "messages.1.content.1: `tool_use` ids must be unique",
    ),
    "duplicate results": (
        {"messages": [USER, use("toolu_A", "toolu_B"), results("toolu_A", "toolu_A", "toolu_B")]},
        400,
        "invalid_request_error",
        (
            "messages.2.content.1: each tool_use must have a single result. Found multiple `tool_result`"
            " blocks with id: toolu_A"
        ),
    ),
    "a tool role": (
        {"messages": [USER, {"role": "tool", "content": "found"}]},
        400,
        "invalid_request_error",
        (
            'messages: Unexpected role "tool". Allowed roles are "user" or "assistant". Tool results are'
            " `tool_result` blocks of a user message."
        ),
    ),
    "bad schema": (
        {"tools": [*MESSAGES_TOOLS, {"name": "f", "input_schema": BAD_PATTERN}]},
        400,
        "invalid_request_error",
        (
            "tools.1.custom.input_schema: JSON schema is invalid. It must match JSON Schema draft 2020-12 "
            "(https://json-schema.org/draft/2020-12). Learn more about tool use at "
            "https://docs.claude.com/en/docs/tool-use."
        ),
    ),
    "unknown model": ({"model": "claude-sonet-4-5"}, 404, "not_found_error", "model: claude-sonet-4-5"),
}


@pytest.mark.parametrize("row", list(MESSAGES_ROWS))
@pytest.mark.parametrize("stream", [False, True])
async def test_messages_errors(claude: anthropic.AsyncAnthropic, row: str, stream: bool) -> None:
    given, status, kind, message = MESSAGES_ROWS[row]
    arguments = {
        "model": "claude-sonnet-4-6",
        "messages": [USER],
        "max_tokens": 100,
        "stream": stream,
        **given,
    }
    with pytest.raises(anthropic.APIStatusError) as caught:
        await claude.messages.create(**arguments)
    error = caught.value
    assert error.status_code == status
    assert isinstance(error.body, dict)
    assert error.body["type"] == "error"
    assert error.body["error"] == {"type": kind, "message": message}
    assert error.body["request_id"] == error.request_id


async def test_a_thread_request_is_refused_so_that_the_runner_falls_back(
    claude: anthropic.AsyncAnthropic,
) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        await claude.beta.messages.create(
            model="claude-sonnet-4-6", messages=[USER], max_tokens=9, betas=["message-threads-2026-08-12"]
        )
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["details"] == {"error_code": "thread_unsupported_request"}


async def test_wrong_and_missing_keys(emulator: EmulatorProcess) -> None:
    async with openai.AsyncOpenAI(base_url=f"{emulator.url}/v1", api_key="sk-wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as refused:
            await client.chat.completions.create(model="gpt-4o", messages=[USER])
    assert refused.value.code == "invalid_api_key"
    assert "Incorrect API key provided: sk-***" in refused.value.message
    async with anthropic.AsyncAnthropic(base_url=emulator.url, api_key="sk-wrong", max_retries=0) as client:
        with pytest.raises(anthropic.AuthenticationError) as denied:
            await client.messages.create(model="claude-sonnet-4-6", max_tokens=9, messages=[USER])
    assert isinstance(denied.value.body, dict)
    assert denied.value.body["error"] == {"type": "authentication_error", "message": "invalid x-api-key"}
    async with httpx.AsyncClient(base_url=emulator.url, timeout=60) as raw:
        assert (await raw.post("/v1/responses", json={})).status_code == 401
        missing = await raw.post("/v1/messages", json={})
        assert (missing.status_code, missing.json()["error"]["message"]) == (
            401,
            "x-api-key header is required",
        )


@pytest.mark.parametrize(
    ("path", "body", "message", "param", "code"),
    [
        (
            "/v1/chat/completions",
            b'{"model": ',
            "We could not parse the JSON body of your request. ",
            None,
            None,
        ),
        ("/v1/chat/completions", b"[]", "We could not parse the JSON body of your request. ", None, None),
        ("/v1/chat/completions", b'{"messages":[]}', "you must provide a model parameter", None, None),
        (
            "/v1/chat/completions",
            b'{"model":"gpt-4o"}',
            "Missing required parameter: 'messages'.",
            "messages",
            "missing_required_parameter",
        ),
        (
            "/v1/chat/completions",
            b'{"model":"gpt-4o","messages":[]}',
            "Invalid 'messages': empty array.",
            "messages",
            "empty_array",
        ),
        (
            "/v1/chat/completions",
            b'{"model":"gpt-4o","messages":[{"role":"robot","content":"x"}]}',
            "Invalid value: 'robot'.",
            "messages[0].role",
            "invalid_value",
        ),
        (
            "/v1/responses",
            b'{"input":"x"}',
            "Missing required parameter: 'model'.",
            "model",
            "missing_required_parameter",
        ),
        (
            "/v1/responses",
            b'{"model":"gpt-4o"}',
            "Missing required parameter: 'input'.",
            "input",
            "missing_required_parameter",
        ),
        ("/v1/messages", b"{", "The request body is not valid JSON: ", None, None),
        ("/v1/messages", b'{"messages":[],"max_tokens":5}', "model: Field required", None, None),
        (
            "/v1/messages",
            b'{"model":"claude-sonnet-4-6","max_tokens":5}',
            "messages: Field required",
            None,
            None,
        ),
        (
            "/v1/messages",
            b'{"model":"claude-sonnet-4-6","messages":[]}',
            "max_tokens: Field required",
            None,
            None,
        ),
    ],
)
async def test_what_an_sdk_would_not_send(
    emulator: EmulatorProcess, path: str, body: bytes, message: str, param: str | None, code: str | None
) -> None:
    async with httpx.AsyncClient(
        base_url=emulator.url, headers={"authorization": "Bearer sk-right"}, timeout=60
    ) as client:
        response = await client.post(path, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["message"].startswith(message)
    assert error["type"] == "invalid_request_error"
    assert (error.get("param"), error.get("code")) == (param, code)


async def test_a_whole_history_is_accepted_on_every_api(
    chat: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic
) -> None:
    messages: Any = [USER, made("call_A", "call_B"), result("call_B"), result("call_A"), USER]
    answer = await chat.chat.completions.create(model="gpt-4o", messages=messages)
    assert answer.choices[0].message.content == "There was nothing to look up, so this is the answer."
    items: Any = [
        USER,
        call_item("call_A"),
        call_item("call_B"),
        output_item("call_B"),
        output_item("call_A"),
    ]
    response = await chat.responses.create(model="gpt-4o", input=items)
    assert response.output_text == "From 2 results: found; found."
    history: Any = [USER, use("toolu_A", "toolu_B"), results("toolu_B", "toolu_A")]
    message = await claude.messages.create(model="claude-sonnet-4-6", max_tokens=50, messages=history)
    assert message.content[0].type == "text"
    assert message.content[0].text == "From 2 results: found; found."
