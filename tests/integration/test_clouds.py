"""The SDKs' clients for other clouds, in `ToolLoop` and watched: paths, models, calls, tokens, records."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable
from typing import Any

import anthropic
import openai
import pytest

from profiler import ToolLoop, UsageError, tool
from profiler.providers import AnthropicMessages, OpenAIChat, OpenAIResponses
from profiler.records import LoopRecord
from profiler.watch.profiler import Profiler
from tests.integration.plain_server import (
    Asked,
    answer,
    calls,
    events,
    message,
    responded,
    response,
    serving,
)

AZURE = {"api_key": "fake-key", "api_version": "2024-10-21"}
VERTEX = {"region": "europe-west1", "project_id": "mine", "access_token": "fake-token"}
PROJECT = "/v1/projects/mine/locations/europe-west1/publishers/anthropic/models"
MESSAGES_TOOL = {"name": "get_weather", "input_schema": {"type": "object", "properties": {"city": {}}}}
CHAT_TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": MESSAGES_TOOL["input_schema"]},
}


@tool(name="get_weather")
async def weather(city: str) -> str:
    """The weather."""
    return f"{city}: sunny"


def cloud(asked: Asked) -> bytes:
    """One call of a tool, then an answer, by either API; streamed where that is asked for."""
    path, body = asked.path.partition("?")[0], asked.body
    if path.endswith("/responses"):
        return response(200, responded())
    has_result = "sunny" in json.dumps(body["messages"])
    if path.endswith("/chat/completions"):
        whole = answer() if has_result else calls(("get_weather", {"city": "Paris"}))
        return chunks(whole) if body.get("stream") else response(200, whole)
    block = {"type": "text", "text": "Done."}
    if not has_result:
        block = {"type": "tool_use", "id": "call_0", "name": "get_weather", "input": {"city": "Paris"}}
    reply = message(block, reason="end_turn" if has_result else "tool_use")
    return parts(reply, block) if body.get("stream") else response(200, reply)


def chunks(whole: dict[str, Any]) -> bytes:
    """A completion as a stream."""
    (choice,) = whole["choices"]
    delta = dict(choice["message"])
    if "tool_calls" in delta:
        delta["tool_calls"] = [{"index": n, **call} for n, call in enumerate(delta["tool_calls"])]
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return events(
        {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
        {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]},
        {**head, "choices": [], "usage": whole["usage"]},
        "[DONE]",
    )


def parts(reply: dict[str, Any], block: dict[str, Any]) -> bytes:
    """A message of one block as a stream."""
    if block["type"] == "text":
        begun, delta = {**block, "text": ""}, {"type": "text_delta", "text": block["text"]}
    else:
        begun = {**block, "input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
    ended = {"stop_reason": reply["stop_reason"], "stop_sequence": None}
    return events(
        {"type": "message_start", "message": {**reply, "content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": begun},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": ended, "usage": {"output_tokens": 20}},
        {"type": "message_stop"},
        names=True,
    )


def vertex(model: str, stream: bool) -> str:
    return f"{PROJECT}/{model}:{'streamRawPredict' if stream else 'rawPredict'}"


Made = Callable[[str], Any]
CLOUDS: dict[str, tuple[Made, Made, Callable[[bool], str]]] = {
    "azure": (
        lambda url: openai.AsyncAzureOpenAI(azure_endpoint=url, **AZURE),
        lambda url: openai.AzureOpenAI(azure_endpoint=url, **AZURE),
        lambda stream: "/openai/deployments/m%201/chat/completions?api-version=2024-10-21",
    ),
    "azure-deployment": (
        lambda url: openai.AsyncAzureOpenAI(azure_endpoint=url, azure_deployment="d", **AZURE),
        lambda url: openai.AzureOpenAI(azure_endpoint=url, azure_deployment="d", **AZURE),
        lambda stream: "/openai/deployments/d/chat/completions?api-version=2024-10-21",
    ),
    "bedrock-openai": (
        lambda url: openai.AsyncBedrockOpenAI(
            base_url=f"{url}/openai/v1", api_key="fake-key", aws_region="us-east-1"
        ),
        lambda url: openai.BedrockOpenAI(
            base_url=f"{url}/openai/v1", api_key="fake-key", aws_region="us-east-1"
        ),
        lambda stream: "/openai/v1/chat/completions",
    ),
    "vertex": (
        lambda url: anthropic.AsyncAnthropicVertex(base_url=f"{url}/v1", **VERTEX),
        lambda url: anthropic.AnthropicVertex(base_url=f"{url}/v1", **VERTEX),
        lambda stream: vertex("m%201", stream),
    ),
    "foundry": (
        lambda url: anthropic.AsyncAnthropicFoundry(base_url=f"{url}/anthropic", api_key="fake-key"),
        lambda url: anthropic.AnthropicFoundry(base_url=f"{url}/anthropic", api_key="fake-key"),
        lambda stream: "/anthropic/v1/messages",
    ),
    "mantle": (
        lambda url: anthropic.AsyncAnthropicBedrockMantle(
            base_url=f"{url}/anthropic", api_key="fake-key", aws_region="us-east-1"
        ),
        lambda url: anthropic.AnthropicBedrockMantle(
            base_url=f"{url}/anthropic", api_key="fake-key", aws_region="us-east-1"
        ),
        lambda stream: "/anthropic/v1/messages",
    ),
}
MODEL = "m 1"


def check(record: LoopRecord) -> None:
    """Two rounds, one call in the first, with the tokens that the server named."""
    assert (record.status, len(record.rounds)) == ("ok", 2)
    first, last = record.rounds
    assert [(c.id, c.name, c.status) for c in first.tool_calls] == [("call_0", "get_weather", "ok")]
    assert last.tool_calls == ()
    for round_ in record.rounds:
        model = round_.model
        assert (model.input_tokens, model.output_tokens, len(model.attempts)) == (50, 20, 1)
        assert (round_.unobserved_calls, model.unreadable) == (0, 0)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", CLOUDS)
async def test_loop_of_ours_on_a_client_for_another_cloud(name: str, stream: bool) -> None:
    make, _, path = CLOUDS[name]
    with serving(cloud) as server:
        async with make(server.url) as client:
            models: list[Any] = [AnthropicMessages(client, MODEL)] if hasattr(client, "messages") else []
            if not models:
                models = [OpenAIChat(client, MODEL), OpenAIChat(client, MODEL, rewrite=False)]
            records: list[LoopRecord] = []
            for model in models:
                loop = ToolLoop(model, [weather], stream=stream, sinks=[records.append])
                assert (await loop.run("hi")).text == "Done."
    assert [asked.path for asked in server.asked] == [path(stream)] * (2 * len(models))
    assert len(records) == len(models)
    for record in records:
        check(record)


async def test_responses_of_azure() -> None:
    with serving(cloud) as server:
        async with openai.AsyncAzureOpenAI(azure_endpoint=server.url, **AZURE) as client:
            for rewrite in (True, False):
                loop = ToolLoop(OpenAIResponses(client, "m", rewrite=rewrite))
                assert (await loop.run("hi")).text == "Done."
    assert [asked.path for asked in server.asked] == ["/openai/responses?api-version=2024-10-21"] * 2


async def ask(client: Any, messages: list[Any], stream: bool) -> tuple[Any, list[tuple[str, str, Any]]]:
    """What a hand-written loop does: the assistant's message, and its calls (id, name, arguments)."""
    if hasattr(client, "chat"):
        sent: Any = client.chat.completions.create(
            model=MODEL, messages=messages, tools=[CHAT_TOOL], stream=stream
        )
    else:
        sent = client.messages.create(
            model=MODEL, messages=messages, tools=[MESSAGES_TOOL], max_tokens=9, stream=stream
        )
    reply = await sent if inspect.isawaitable(sent) else sent
    if stream:
        got = [one async for one in reply] if hasattr(reply, "__aiter__") else list(reply)
        return streamed(got)
    if hasattr(client, "chat"):
        said = reply.choices[0].message
        found = [(c.id, c.function.name, json.loads(c.function.arguments)) for c in said.tool_calls or ()]
        return said.model_dump(exclude_none=True), found
    found = [(block.id, block.name, block.input) for block in reply.content if block.type == "tool_use"]
    return {"role": "assistant", "content": [block.model_dump() for block in reply.content]}, found


def streamed(got: list[Any]) -> tuple[Any, list[tuple[str, str, Any]]]:
    if hasattr(got[0], "choices"):
        made = [c for one in got for choice in one.choices for c in choice.delta.tool_calls or ()]
        plain = [c.model_dump(exclude={"index"}) for c in made]
        found = [(c.id, c.function.name, json.loads(c.function.arguments)) for c in made]
        return {"role": "assistant", "content": None, "tool_calls": plain}, found
    block = next(one.content_block for one in got if one.type == "content_block_start")
    if block.type == "text":
        return {"role": "assistant", "content": "Done."}, []
    given = json.loads(next(one.delta.partial_json for one in got if one.type == "content_block_delta"))
    content = [{"type": "tool_use", "id": block.id, "name": block.name, "input": given}]
    return {"role": "assistant", "content": content}, [(block.id, block.name, given)]


async def hand_written(client: Any, run: Any, stream: bool) -> None:
    messages: list[Any] = [{"role": "user", "content": "hi"}]
    while True:
        said, found = await ask(client, messages, stream)
        if not found:
            return
        messages.append(said)
        for id_, _, arguments in found:
            result = await run(**arguments)
            if hasattr(client, "chat"):
                messages.append({"role": "tool", "tool_call_id": id_, "content": result})
            else:
                block = {"type": "tool_result", "tool_use_id": id_, "content": result}
                messages.append({"role": "user", "content": [block]})


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", CLOUDS)
async def test_client_for_another_cloud_is_watched(name: str, stream: bool, sync: bool) -> None:
    path = CLOUDS[name][2]
    records: list[LoopRecord] = []
    prof = Profiler(sinks=[records.append])

    @prof.tool
    async def get_weather(city: str) -> str:
        return f"{city}: sunny"

    with serving(cloud) as server:
        client = prof.instrument(CLOUDS[name][1 if sync else 0](server.url))
        with prof.loop("mine"):
            await hand_written(client, get_weather, stream)
        closed = client.close()
        if inspect.isawaitable(closed):
            await closed
    prof.recorder.flush()
    assert [asked.path for asked in server.asked] == [path(stream)] * 2
    (record,) = records
    assert [r.model.first_token_ns is not None for r in record.rounds] == [stream, stream]
    check(record)
    assert [r.model.model for r in record.rounds] == [MODEL, MODEL]
    assert (record.watch_failures, prof.orphan_calls) == (0, 0)


BEDROCK = {"aws_region": "us-east-1", "aws_access_key": "fake", "aws_secret_key": "fake"}


@pytest.mark.parametrize("name", ["AnthropicBedrock", "AsyncAnthropicBedrock"])
def test_client_of_invoke_model_is_refused_in_one_line(name: str) -> None:
    client = getattr(anthropic, name)(**BEDROCK)
    said = (
        f"{name} cannot be profiled: Bedrock's InvokeModel API streams in frames of its own; "
        f"use {name}Mantle, Bedrock's Messages API"
    )
    for profile in (Profiler(sinks=[]).instrument, AnthropicMessages):
        with pytest.raises(UsageError) as refused:
            profile(client)
        assert str(refused.value) == said
    assert hasattr(anthropic, f"{name}Mantle")
    closed = client.close()
    if inspect.isawaitable(closed):
        asyncio.run(closed)  # type: ignore[arg-type]
