"""Every dialect and every odd wire through the providers' own SDKs, to the end of a loop of two rounds.

The loop is one that a careful engineer would write: a call is known by its place in the reply, and what came
goes back as it came.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from profiler.emulator.process import EmulatorProcess, start_emulator
from profiler.loop.loop import ToolLoop
from profiler.providers import DIALECTS, PROVIDERS, make_provider
from profiler.records import LoopRecord
from profiler.scenarios import WIRE_FAULTS
from profiler.strategies import parse_strategy

SCENARIO = """
description = "two rounds of three calls, with cache and reasoning"
prompt = "Question {number}"
time_scale = 0

[model]
first_token = 0
tokens_per_second = 0
context_tokens = 50000
cached_share = 0.6
cache_written_share = 0.9
reasoning_tokens = 40

[loop]
rounds = 2
fan_out = 3

[tools.look]
description = "Looks."
duration = 0
"""
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CHAT_TOOLS: Any = [{"type": "function", "function": {"name": "look", "parameters": CITY}}]
RESPONSES_TOOLS: Any = [{"type": "function", "name": "look", "parameters": CITY}]
MESSAGES_TOOLS: Any = [{"name": "look", "input_schema": CITY}]
QUESTION: Any = {"role": "user", "content": "Compare."}
ODD_ARGUMENTS = ("null_arguments", "missing_arguments", "empty_arguments")


def fault(kind: str) -> str:
    return f'\n[[faults]]\nkind = "{kind}"\nprobability = 1\n'


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A function that gives an emulator of a dialect, and with a fault; each is started once."""
    running: dict[tuple[str, str | None], EmulatorProcess] = {}

    def begin(dialect: str = "openai", kind: str | None = None) -> EmulatorProcess:
        if (dialect, kind) not in running:
            path: Path = tmp_path_factory.mktemp("scenario") / "odd.toml"
            path.write_text(SCENARIO + (fault(kind) if kind else ""))
            running[dialect, kind] = start_emulator(str(path), seed=4, dialect=dialect)
        return running[dialect, kind]

    yield begin
    for process in running.values():
        assert process.stop() == 0


def joined(chunks: list[Any]) -> dict[str, Any]:
    """The assistant message that a stream of chunks is, as plain JSON."""
    message: dict[str, Any] = {"role": "assistant", "content": None}
    calls: list[dict[str, Any]] = []
    by_index: dict[Any, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk.get("choices", ()):
            delta = choice.get("delta") or {}
            for name, value in delta.items():
                if name not in ("role", "tool_calls") and isinstance(value, str):
                    message[name] = (message.get(name) or "") + value
            for part in delta.get("tool_calls") or ():
                function = part.get("function") or {}
                if function.get("name"):
                    calls.append({**part, "function": dict(function)})
                    by_index[part.get("index")] = calls[-1]
                    continue
                call = by_index.get(part.get("index"), calls[-1])
                call["function"]["arguments"] += function.get("arguments") or ""
    if calls:
        message["tool_calls"] = [{n: v for n, v in call.items() if n != "index"} for call in calls]
    return message


def usage_of(chunks: list[Any]) -> dict[str, Any] | None:
    found: list[dict[str, Any]] = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    return found[-1] if found else None


def arguments(call: dict[str, Any]) -> dict[str, Any]:
    given = call["function"].get("arguments")
    return given if isinstance(given, dict) else json.loads(given or "{}")


def results_of(calls: list[dict[str, Any]]) -> list[Any]:
    ident = [{"tool_call_id": call["id"]} if "id" in call else {} for call in calls]
    return [{"role": "tool", **one, "content": f"result {n}"} for n, one in enumerate(ident)]


def chat_options(dialect: str, stream: bool, kind: str | None) -> dict[str, Any]:
    options = {"stream_options": {"include_usage": True}} if stream and dialect != "mistral" else {}
    return {"model": "m", "tools": CHAT_TOOLS, "stream": stream, **options}


def run_chat(url: str, options: dict[str, Any]) -> tuple[list[dict[str, Any]], list[Any]]:
    """The assistant messages of a loop and their usages, with the sync SDK."""
    messages, said, usages = [QUESTION], [], []
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        for _ in range(3):
            reply = client.chat.completions.create(messages=messages, **options)
            if options["stream"]:
                chunks = [chunk.model_dump(exclude_unset=True, warnings=False) for chunk in reply]
                message, usage = joined(chunks), usage_of(chunks)
            else:
                body = reply.model_dump(exclude_unset=True, warnings=False)
                message, usage = body["choices"][0]["message"], body.get("usage")
            said.append(message)
            usages.append(usage)
            messages = [*messages, message, *results_of(message.get("tool_calls") or [])]
    return said, usages


async def run_chat_async(url: str, options: dict[str, Any]) -> list[dict[str, Any]]:
    messages, said = [QUESTION], []
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        for _ in range(3):
            reply = await client.chat.completions.create(messages=messages, **options)
            if options["stream"]:
                message = joined(
                    [chunk.model_dump(exclude_unset=True, warnings=False) async for chunk in reply]
                )
            else:
                message = reply.model_dump(exclude_unset=True, warnings=False)["choices"][0]["message"]
            said.append(message)
            messages = [*messages, message, *results_of(message.get("tool_calls") or [])]
    return said


def chunks_of(url: str, options: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a first reply."""
    with openai.OpenAI(base_url=url, api_key="x", max_retries=0) as client:
        stream: Any = client.chat.completions.create(messages=[QUESTION], **options)
        return [chunk.model_dump(exclude_unset=True, warnings=False) for chunk in stream]


def deltas_of(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pieces of calls in a stream."""
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return [call for choice in choices for call in choice["delta"].get("tool_calls", ())]


def truth(emulator: EmulatorProcess, kind: str = "model") -> list[dict[str, Any]]:
    url = f"{emulator.url}/emulator/journal"
    entries: list[dict[str, Any]] = httpx.get(url, params={"kind": kind}, timeout=60).json()["entries"]
    httpx.delete(url)
    return entries


def work(said: list[dict[str, Any]]) -> list[list[tuple[str, Any]]]:
    """Names and arguments of the calls, by round."""
    return [
        [(call["function"]["name"], arguments(call)) for call in message.get("tool_calls") or []]
        for message in said
    ]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_dialect_finishes_loops_of_the_openai_sdk(started: Any, dialect: str, stream: bool) -> None:
    emulator = started(dialect)
    truth(emulator)
    options = chat_options(dialect, stream, None)
    for loop in range(3):  # the habits of a server that has several
        options["extra_headers"] = {"x-toolloop-loop": str(loop)}
        said, usages = run_chat(emulator.url, options)
        assert [len(calls) for calls in work(said)] == [3, 3, 0]
        assert said[-1]["content"] == "From 6 results: result 0; result 1; result 2; and 3 more."
        entries = truth(emulator)
        if stream:
            whole, _ = run_chat(started("openai").url, {**options, "stream": False, "stream_options": None})
            assert work(said) == work(whole)
            truth(started("openai"))
        assert [(entry["status"], entry["loop"], entry["round"]) for entry in entries] == [
            (200, loop, number) for number in range(3)
        ]
        for usage, entry in zip(usages, entries, strict=True):
            assert usage["prompt_tokens"] == entry["input_tokens"] > 50_000
            assert usage["completion_tokens"] == entry["output_tokens"] > 40
            assert usage["prompt_tokens_details"]["cached_tokens"] == entry["cached_tokens"] > 30_000
            written = usage["prompt_tokens_details"]["cache_write_tokens"]
            assert written == entry["cache_written_tokens"] > 17_000
            assert usage["completion_tokens_details"]["reasoning_tokens"] == entry["reasoning_tokens"] == 40
    said_async = await run_chat_async(emulator.url, options)
    assert work(said_async) == work(said)


def refused(emulator: EmulatorProcess, messages: list[Any], **more: Any) -> tuple[int, Any]:
    body = {"model": "m", "messages": messages, "tools": CHAT_TOOLS, **more}
    reply = httpx.post(f"{emulator.url}/v1/chat/completions", json=body, timeout=60)
    return reply.status_code, reply.json()


def test_gemini_wants_its_signature_back(started: Any) -> None:
    emulator = started("gemini")
    [message, *_], _ = run_chat(emulator.url, chat_options("gemini", False, None))
    first, *others = message["tool_calls"]
    assert first["extra_content"]["google"]["thought_signature"]
    assert not any("extra_content" in call for call in others)
    bare = {**message, "tool_calls": [{**first, "extra_content": None}, *others]}
    status, [body] = refused(emulator, [QUESTION, bare, *results_of(message["tool_calls"])])
    assert (status, body["error"]["code"], body["error"]["status"]) == (400, 400, "INVALID_ARGUMENT")
    assert "missing a thought_signature" in body["error"]["message"]
    other = run_chat(emulator.url, chat_options("gemini", False, None))[0][0]["tool_calls"][0]
    swapped = [{**first, "extra_content": other["extra_content"]}, *others]
    status, [body] = refused(emulator, [QUESTION, {**message, "tool_calls": swapped}, *results_of(swapped)])
    assert (status, body["error"]["message"]) == (400, "Corrupted thought signature.")
    # Only calls since the last question are looked at.
    asked_again = [QUESTION, bare, *results_of(message["tool_calls"]), QUESTION]
    assert refused(emulator, asked_again)[0] == 200
    status, [body] = refused(emulator, [QUESTION], parallel_tool_calls=False)
    assert (status, body["error"]["message"]) == (
        400,
        'Invalid JSON payload received. Unknown name "parallel_tool_calls": Cannot find field.',
    )


def test_gemini_streams_without_an_index_or_with_one_for_all(started: Any) -> None:
    emulator = started("gemini")
    for loop, expected in ((0, [None] * 3), (1, [0] * 3)):
        options = chat_options("gemini", True, None) | {"extra_headers": {"x-toolloop-loop": str(loop)}}
        chunks = chunks_of(f"{emulator.url}/v1beta/openai", options)
        calls = deltas_of(chunks)
        assert [call.get("index") for call in calls] == expected
        assert all(json.loads(call["function"]["arguments"]) for call in calls)
        finishes = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
        assert [finish for finish in finishes if finish] == ["stop"]


def test_deepseek_wants_its_reasoning_back(started: Any) -> None:
    emulator = started("deepseek")
    [message, *_], [usage, *_] = run_chat(emulator.url, chat_options("deepseek", True, None))
    assert message["reasoning_content"].startswith("The question needs")
    assert usage["prompt_cache_hit_tokens"] + usage["prompt_cache_miss_tokens"] == usage["prompt_tokens"]
    assert usage["prompt_cache_hit_tokens"] == usage["prompt_tokens_details"]["cached_tokens"]
    del message["reasoning_content"]
    status, body = refused(emulator, [QUESTION, message, *results_of(message["tool_calls"])])
    assert (status, body["error"]["message"]) == (
        400,
        "The `reasoning_content` in the thinking mode must be passed back to the API.",
    )


def test_mistral_checks_ids_and_does_not_know_stream_options(started: Any) -> None:
    emulator = started("mistral")
    [message, *_], _ = run_chat(emulator.url, chat_options("mistral", False, None))
    idents = [call["id"] for call in message["tool_calls"]]
    assert all(len(ident) == 9 and ident.isalnum() for ident in idents)
    assert len(set(idents)) == 3
    for call in message["tool_calls"]:
        call["id"] = "call_" + call["id"]
    status, body = refused(emulator, [QUESTION, message, *results_of(message["tool_calls"])])
    assert (status, body["object"], body["code"]) == (400, "error", "3280")
    assert body["message"].endswith("but must be a-z, A-Z, 0-9, with a length of 9.")
    status, body = refused(emulator, [QUESTION], stream=True, stream_options={"include_usage": True})
    [problem] = body["message"]["detail"]
    assert (status, problem["type"], problem["loc"]) == (422, "extra_forbidden", ["body", "stream_options"])
    assert refused(emulator, [QUESTION], parallel_tool_calls=True)[0] == 200


def test_vllm_interleaves_calls_and_shows_reasoning_under_two_names(started: Any) -> None:
    emulator = started("vllm")
    for loop, name in ((0, "reasoning"), (1, "reasoning_content")):
        options = chat_options("vllm", True, None) | {"extra_headers": {"x-toolloop-loop": str(loop)}}
        chunks = chunks_of(f"{emulator.url}/v1", options)
        calls = deltas_of(chunks)
        assert [call["index"] for call in calls[:6]] == [0, 1, 2, 0, 1, 2]
        assert all(call["id"].startswith("chatcmpl-tool-") for call in calls[:3])
        assert joined(chunks)[name].startswith("The question needs")
    [message, *_], _ = run_chat(emulator.url, chat_options("vllm", False, None) | {"model": "Mistral-7B"})
    assert all(len(call["id"]) == 9 for call in message["tool_calls"])


def test_sglang_ends_streams_in_three_ways(started: Any) -> None:
    emulator = started("sglang")
    finishes, last = [], []
    for loop in range(3):
        options = chat_options("sglang", True, None) | {"extra_headers": {"x-toolloop-loop": str(loop)}}
        chunks = chunks_of(f"{emulator.url}/v1", options)
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        finishes.append([choice["finish_reason"] for choice in choices if choice["finish_reason"]])
        last.append("tool_calls" in choices[-1]["delta"])
    assert finishes == [["stop", "tool_calls"], ["tool_calls"], []]
    assert last == [False, True, True]


async def test_azure_client_of_the_sdk(started: Any) -> None:
    emulator = started("azure")
    with openai.AzureOpenAI(azure_endpoint=emulator.url, api_version="2024-10-21", api_key="k") as client:
        stream: Any = client.chat.completions.create(
            model="my-deployment", messages=[QUESTION], tools=CHAT_TOOLS, stream=True
        )
        chunks = [chunk.model_dump(exclude_unset=True, warnings=False) for chunk in stream]
        assert chunks[0]["choices"] == []
        assert chunks[0]["prompt_filter_results"][0]["content_filter_results"]["hate"]["severity"] == "safe"
        assert all("content_filter_results" in choice for chunk in chunks for choice in chunk["choices"])
        assert len(joined(chunks)["tool_calls"]) == 3
        assert chunks[-1]["model"] == "my-deployment"
    async with openai.AsyncAzureOpenAI(
        azure_endpoint=emulator.url, api_version="2024-10-21", api_key="k"
    ) as client:
        reply = await client.chat.completions.create(model="other", messages=[QUESTION], tools=CHAT_TOOLS)
        assert reply.choices[0].finish_reason == "tool_calls"
        responses = await client.responses.create(model="other", input="x", tools=RESPONSES_TOOLS)
        assert len([item for item in responses.output if item.type == "function_call"]) == 3


def test_azure_needs_its_api_version(started: Any) -> None:
    url = f"{started('azure').url}/openai/deployments/d/chat/completions"
    reply = httpx.post(url, json={"messages": [QUESTION]}, timeout=60)
    assert (reply.status_code, reply.json()) == (
        404,
        {"error": {"code": "404", "message": "Resource not found"}},
    )


@pytest.mark.parametrize("path", ["/api/paas/v4", "/v1beta/openai", "/openai/v1", ""])
def test_model_apis_answer_below_any_path(started: Any, path: str) -> None:
    url = started("openai").url + path
    with openai.OpenAI(base_url=url, api_key="x") as client:
        reply = client.chat.completions.create(model="m", messages=[QUESTION])
        assert reply.choices[0].finish_reason == "stop"
        assert client.responses.create(model="m", input="x").output_text
        assert client.models.list().data
    assert httpx.get(f"{url}/chat/completions", timeout=60).status_code == 405
    assert httpx.post(f"{url}/completions", timeout=60).status_code == 404


# Odd wires


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("kind", WIRE_FAULTS)
def test_odd_chat_wire_says_the_same_and_is_accepted_when_it_comes_back(
    started: Any, kind: str, stream: bool
) -> None:
    emulator = started("openai", kind)
    truth(emulator)
    options = chat_options("openai", stream, kind)
    said, _ = run_chat(emulator.url, options)
    entries = truth(emulator)
    assert [entry["status"] for entry in entries] == [200] * 3
    # One loop, known again without a header and, where a fault takes the ids away, without ids.
    assert len({entry["loop"] for entry in entries}) == 1
    plain, _ = run_chat(
        started("openai").url,
        {**options, "extra_headers": {"x-toolloop-loop": str(entries[0]["loop"])}},
    )
    if kind in ODD_ARGUMENTS:
        assert work(said) == [[(name, {}) for name, _ in calls] for calls in work(plain)]
    else:
        assert work(said) == work(plain)
    assert said[-1]["content"] == plain[-1]["content"]


def run_responses(url: str, stream: bool) -> list[list[Any]]:
    """The items of each reply of a loop that sends all of them back."""
    given: list[Any] = [QUESTION]
    said = []
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        for _ in range(3):
            common: Any = {"model": "m", "input": given, "tools": RESPONSES_TOOLS, "store": False}
            if stream:
                items = [
                    event.item.model_dump(exclude_unset=True, warnings=False)
                    for event in client.responses.create(**common, stream=True)
                    if event.type == "response.output_item.done"
                ]
            else:
                body = client.responses.create(**common).model_dump(exclude_unset=True, warnings=False)
                items = body["output"]
            said.append(items)
            results = []
            for n, item in enumerate(item for item in items if item["type"] == "function_call"):
                ident = {"call_id": item["call_id"]} if "call_id" in item else {}
                results.append({"type": "function_call_output", **ident, "output": f"result {n}"})
            given = [*given, *items, *results]
    return said


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("kind", WIRE_FAULTS)
def test_odd_responses_wire_finishes(started: Any, kind: str, stream: bool) -> None:
    emulator = started("openai", kind)
    truth(emulator)
    said = run_responses(emulator.url, stream)
    kinds = [[item["type"] for item in items if item["type"] != "web_search_call"] for items in said]
    assert kinds == [["reasoning", *["function_call"] * 3]] * 2 + [["reasoning", "message"]]
    searches = [sum(item["type"] == "web_search_call" for item in items) for items in said]
    assert searches == ([1] * 3 if kind == "server_tool" else [0] * 3)
    entries = truth(emulator)
    assert len({entry["loop"] for entry in entries}) == 1
    assert [entry["round"] for entry in entries] == [0, 1, 2]


def run_messages(url: str, stream: bool) -> tuple[list[Any], list[Any]]:
    """Contents and usages of each reply of a loop that goes on after a pause."""
    messages: list[Any] = [QUESTION]
    said, usages = [], []
    with anthropic.Anthropic(base_url=url, api_key="x", max_retries=0) as client:
        while True:
            common: Any = {"model": "m", "messages": messages, "tools": MESSAGES_TOOLS, "max_tokens": 9999}
            if stream:
                blocks, usage, stop = read_messages(client.messages.create(**common, stream=True))
            else:
                body = client.messages.create(**common).model_dump(exclude_unset=True, warnings=False)
                blocks, usage, stop = body["content"], body.get("usage"), body["stop_reason"]
            said.append(blocks)
            usages.append(usage)
            messages = [*messages, {"role": "assistant", "content": blocks}]
            uses = [block for block in blocks if block["type"] == "tool_use"]
            if uses:
                results = [
                    {
                        "type": "tool_result",
                        **({"tool_use_id": use["id"]} if "id" in use else {}),
                        "content": f"result {n}",
                    }
                    for n, use in enumerate(uses)
                ]
                messages.append({"role": "user", "content": results})
            elif stop != "pause_turn":
                return said, usages


def read_messages(events: Any) -> tuple[list[Any], dict[str, Any], str | None]:
    """Blocks, usage and stop reason of a stream, by hand."""
    blocks: list[Any] = []
    texts: list[str] = []
    usage: dict[str, Any] = {}
    stop = None
    for event in events:
        if event.type == "message_start":
            usage |= event.message.model_dump(exclude_unset=True, warnings=False).get("usage") or {}
        elif event.type == "content_block_start":
            blocks.append(event.content_block.model_dump(exclude_unset=True, warnings=False))
            texts.append("")
        elif event.type == "content_block_delta":
            delta = event.delta.model_dump(exclude_unset=True, warnings=False)
            texts[-1] += delta.get("text", "") + delta.get("thinking", "") + delta.get("partial_json", "")
            if "signature" in delta:
                blocks[-1]["signature"] = delta["signature"]
        elif event.type == "content_block_stop":
            block, text = blocks[-1], texts[-1]
            if block["type"] in ("text", "thinking"):
                block[block["type"]] = text
            elif text:
                block["input"] = json.loads(text)
        elif event.type == "message_delta":
            usage |= event.model_dump(exclude_unset=True, warnings=False).get("usage") or {}
            stop = event.delta.stop_reason
    return blocks, usage, stop


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("kind", WIRE_FAULTS)
def test_odd_messages_wire_finishes(started: Any, kind: str, stream: bool) -> None:
    emulator = started("openai", kind)
    truth(emulator)
    said, usages = run_messages(emulator.url, stream)
    kinds = [[block["type"] for block in blocks] for blocks in said]
    searched = ["server_tool_use", "web_search_tool_result"]
    calls, answer = ["thinking", "text", *["tool_use"] * 3], ["thinking", "text"]
    if kind == "pause_turn":
        paused = ["thinking", *searched, "text"]
        # After the pause the turn goes on; a turn that has results is a new one, and pauses again.
        assert kinds == [paused, calls, paused, calls, paused, answer]
    elif kind == "server_tool":
        assert kinds == [["thinking", *searched, *one[1:]] for one in (calls, calls, answer)]
    else:
        assert kinds == [calls, calls, answer]
    entries = truth(emulator)
    assert len({entry["loop"] for entry in entries}) == 1
    assert [entry["round"] for entry in entries if entry["fault"] != "pause_turn"] == [0, 1, 2]
    if kind in ("usage_in_words", "negative_usage", "huge_usage", "missing_usage"):
        return
    for usage, entry in zip(usages, entries, strict=True):
        uncached = entry["input_tokens"] - entry["cached_tokens"] - entry["cache_written_tokens"]
        assert usage["input_tokens"] == uncached
        assert usage["cache_read_input_tokens"] == entry["cached_tokens"] > 30_000
        assert usage["cache_creation_input_tokens"] == entry["cache_written_tokens"] > 17_000
        assert usage["cache_creation"]["ephemeral_5m_input_tokens"] == entry["cache_written_tokens"]
        assert usage["output_tokens"] == entry["output_tokens"]
        assert usage["output_tokens_details"]["thinking_tokens"] == entry["reasoning_tokens"] == 40


# Loops of ours

MODES = {"whole": (False, "gathered"), "streamed": (True, "gathered"), "eager": (True, "eager:all")}
USAGE_FAULTS = ("usage_in_words", "negative_usage", "huge_usage", "missing_usage")


async def run_ours(provider: str, url: str, mode: str, number: int, body: Any = None) -> LoopRecord:
    """The record of a `ToolLoop`, which has to end well."""

    async def look(city: str = "") -> str:
        """Looks."""
        return f"result of {city}"

    stream, strategy = MODES[mode]
    model: Any = make_provider(provider, base_url=url, body=body)
    try:
        loop = ToolLoop(model, [look], parse_strategy(strategy), stream=stream)
        result = await loop.run("Compare.", number=number)
    finally:
        await model.client.close()
    assert result.text.endswith("and 3 more.")
    assert [call.status for call in result.record.tool_calls] == ["ok"] * 6
    assert result.record.status == "ok"
    return result.record


def counted(record: LoopRecord) -> list[tuple[int | None, ...]]:
    return [
        (m.input_tokens, m.cached_tokens, m.cache_written_tokens, m.output_tokens, m.reasoning_tokens)
        for m in (round_.model for round_ in record.rounds)
    ]


def counted_by_server(entries: list[dict[str, Any]]) -> list[tuple[int | None, ...]]:
    names = ("input_tokens", "cached_tokens", "cache_written_tokens", "output_tokens", "reasoning_tokens")
    return [tuple(entry[name] for name in names) for entry in entries]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_dialect_finishes_loops_of_ours(started: Any, dialect: str, mode: str) -> None:
    emulator = started(dialect)
    truth(emulator)
    body = {"stream_options": None} if dialect == "mistral" and MODES[mode][0] else None
    for number in range(3):  # the habits of a server that has several
        record = await run_ours("openai", emulator.url, mode, number, body)
        entries = truth(emulator)
        assert [entry["status"] for entry in entries] == [200] * 3
        assert counted(record) == counted_by_server(entries)
        assert sum(round_.model.unreadable for round_ in record.rounds) == 0


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("kind", WIRE_FAULTS)
async def test_odd_wire_finishes_loops_of_ours(started: Any, kind: str, provider: str) -> None:
    emulator = started("openai", kind)
    truth(emulator)
    for mode in MODES:
        record = await run_ours(provider, emulator.url, mode, 0)
        entries = truth(emulator)
        assert [entry["status"] for entry in entries] == [200] * len(record.rounds)
        if kind in USAGE_FAULTS:
            # What is no count is unknown. Details that are counts stay.
            assert {(model[0], model[3]) for model in counted(record)} == {(None, None)}
        else:
            assert counted(record) == counted_by_server(entries)
