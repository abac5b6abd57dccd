"""The loop on the real SDKs against the emulator: every provider, streamed or not."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import urllib.request
from importlib import resources

import anthropic
import openai
import pytest

from profiler import Gathered, ProviderError, SemaphoreLimited, ToolLoop, tool
from profiler.anatomy import loop_phases
from profiler.emulator.process import start_emulator
from profiler.providers import CLIENTS, AnthropicMessages, OpenAIChat, OpenAIResponses, make_provider
from profiler.providers.endpoint import Endpoint
from profiler.scenarios.tools import close_tool_clients, get_population, get_weather

PROVIDERS = ["openai", "openai-responses", "anthropic"]
SLACK_NS = 10_000_000_000
"""What a crowded machine may add to a time; never taken away from it (`test_truth`: how close)."""
PROMPT = "Compare the weather and population of Tokyo and Paris."


@pytest.fixture(scope="module")
def quick_cities(tmp_path_factory) -> str:
    """`cities`, five times as fast."""
    path = tmp_path_factory.mktemp("scenario") / "quick.toml"
    shipped = resources.files("profiler.scenarios").joinpath("cities.toml").read_text()
    path.write_text("time_scale = 0.2\n" + shipped)
    return str(path)


@pytest.fixture(scope="module")
def url(quick_cities):
    with start_emulator(quick_cities, seed=3) as emulator:
        yield emulator.url


@pytest.fixture(autouse=True)
def tools_url(url, monkeypatch):
    monkeypatch.setenv("PROFILER_TOOLS_URL", url)


def journal(url: str) -> list[dict]:
    with urllib.request.urlopen(f"{url}/emulator/journal", timeout=60) as response:
        return json.load(response)["entries"]


async def run(
    client, url, provider, *, number, tools=(get_weather, get_population), strategy=None, **options
):
    model = make_provider(provider, base_url=url, client=client)
    try:
        loop = ToolLoop(model, tools, strategy, **options)
        return await loop.run(PROMPT, number=number)
    finally:
        await model.client.close()
        await close_tool_clients()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("client", CLIENTS)
async def test_a_loop_from_prompt_to_answer(client, url, provider, stream):
    result = await run(client, url, provider, number=11, stream=stream)
    record = result.record
    entries = [e for e in journal(url) if e["loop"] == 11]
    requests = [e for e in entries if e["kind"] == "model"][-len(record.rounds) :]
    assert result.text
    assert record.status == "ok"
    assert [r.model.request_id for r in record.rounds] == [e["request_id"] for e in requests]
    calls = {c.id: c for c in record.tool_calls}
    slept = {e["call_id"]: e["actual_ns"] for e in entries if e["kind"] == "tool" and e["call_id"] in calls}
    assert set(slept) == set(calls)
    assert len(calls) >= 2
    for call_id, nanoseconds in slept.items():
        call = calls[call_id]
        assert call.status == "ok"
        assert 0 <= call.ended_ns - call.started_ns - nanoseconds < SLACK_NS
    for round_, entry in zip(record.rounds, requests, strict=True):
        assert round_.model.streamed == entry["streamed"] == stream
        assert (round_.model.first_token_ns is not None) == stream
        if stream:
            waited = round_.model.first_token_ns - round_.model.started_ns
            assert 0 <= waited - (entry["due_ns"] - entry["received_ns"]) < SLACK_NS
            assert (round_.model.first_tool_call_ns is not None) == bool(round_.tool_calls)
        (attempt,) = round_.model.attempts
        assert attempt.status == 200
        assert attempt.started_ns < attempt.connected_ns < attempt.sent_ns < attempt.first_byte_ns
        assert attempt.first_byte_ns < attempt.ended_ns <= round_.model.ended_ns
        assert round_.model.input_tokens > 0
        assert round_.model.output_tokens > 0
    assert sum(loop_phases(record).values()) == record.ended_ns - record.started_ns


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("client", CLIENTS)
async def test_the_same_number_is_the_same_work_on_every_provider(client, url, provider):
    result = await run(client, url, provider, number=5, record_content=True)
    work = [[(c.name, json.loads(c.arguments)) for c in r.tool_calls] for r in result.record.rounds]
    reference = await run(client, url, "openai", number=5, strategy=SemaphoreLimited(1), record_content=True)
    assert work == [
        [(c.name, json.loads(c.arguments)) for c in r.tool_calls] for r in reference.record.rounds
    ]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("client", CLIENTS)
async def test_text_deltas_add_up_to_the_answer(client, url, provider, stream):
    pieces: list[str] = []
    result = await run(client, url, provider, number=2, stream=stream, on_text=pieces.append)
    said = "".join(pieces)  # Anthropic's model also says something before its calls
    assert said.endswith(result.text) if stream else said == ""


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("client", CLIENTS)
async def test_one_call_per_response_when_parallel_calls_are_off(client, url, provider):
    together = await run(client, url, provider, number=7)
    apart = await run(client, url, provider, number=7, parallel_tool_calls=False, max_rounds=50)
    assert max(len(r.tool_calls) for r in together.record.rounds) > 1
    assert [len(r.tool_calls) for r in apart.record.rounds[:-1]] == [1] * (len(apart.record.rounds) - 1)
    assert [c.name for c in apart.record.tool_calls] == [c.name for c in together.record.tool_calls]


@pytest.mark.parametrize(("choice", "calls"), [("none", False), ("required", True), ("get_population", True)])
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("client", CLIENTS)
async def test_tool_choice_is_passed_through(client, url, provider, choice, calls):
    result = await run(client, url, provider, number=1, tool_choice=choice, max_rounds=1)
    made = [c.name for c in result.record.tool_calls]
    assert bool(made) == calls
    if choice == "get_population":
        assert set(made) == {"get_population"}
    assert result.text  # the last request could not call tools


@tool(name="get_weather")
async def weather_fails(city: str, units: str = "celsius") -> str:
    raise ConnectionError("no route to the station")


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("client", CLIENTS)
async def test_the_server_accepts_error_results(client, url, provider):
    result = await run(client, url, provider, number=7, tools=(weather_fails, get_population))
    failed = [c for c in result.record.tool_calls if c.name == "get_weather"]
    assert failed
    assert {(c.status, c.error_type) for c in failed} == {("error", "ConnectionError")}
    assert result.record.status == "ok"


SCENARIO = """
description = "a model that names its keys and models"
prompt = "hi"
[model]
api_keys = ["sk-right"]
models = ["gpt-4o", "claude-sonnet-5-5"]
first_token = 0
tokens_per_second = 0
[loop]
rounds = 1
fan_out = 1
[tools.get_weather]
path = "/tools/weather"
description = "Weather."
duration = 0
parameters = { type = "object" }
"""


@pytest.fixture(scope="module")
def strict_url(tmp_path_factory):
    path = tmp_path_factory.mktemp("scenario") / "strict.toml"
    path.write_text(SCENARIO)
    with start_emulator(str(path), seed=1) as emulator:
        yield emulator.url


@pytest.mark.parametrize(
    ("key", "model", "status", "cause"),
    [("sk-wrong", None, 401, "AuthenticationError"), ("sk-right", "gpt-0", 404, "NotFoundError")],
)
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize("client", CLIENTS)
async def test_a_refusal_names_provider_status_and_request(
    client, strict_url, provider, key, model, status, cause
):
    made = make_provider(provider, base_url=strict_url, model=model, api_key=key, client=client)
    with pytest.raises(ProviderError) as caught:
        await ToolLoop(made).run("hi")
    await made.client.close()
    error = caught.value
    assert (error.provider, error.status, error.error_type) == (provider, status, f"http_{status}")
    assert error.request_id == error.record.rounds[0].model.attempts[0].request_id
    assert error.request_id.startswith("req_")
    assert type(error.__cause__).__name__ == (cause if client == "sdk" else "NoneType")
    assert f"status {status}" in str(error)
    assert (error.record.status, error.exit_code) == ("error", 3)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("client", CLIENTS)
async def test_retries_are_attempts_with_backoff_between_them(client, provider):
    with socket.socket() as closed:  # bound, not listening: every connection is refused
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        made = make_provider(provider, base_url=url, client=client)
        made.client.max_retries = 1
        with pytest.raises(ProviderError) as caught:
            await ToolLoop(made).run("hi")
    await made.client.close()
    record = caught.value.record
    assert (caught.value.error_type, caught.value.status) == ("refused", None)
    assert f"(no response from {url}/" in str(caught.value)
    first, second = record.rounds[0].model.attempts
    assert (first.status, first.error_type) == (None, "refused")
    backoff = second.started_ns - first.ended_ns
    assert 300_000_000 < backoff < 500_000_000 + SLACK_NS
    assert loop_phases(record)["backoff"] == backoff


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_cancelled_loop_leaves_no_task_behind(client, url):
    model = make_provider("openai", base_url=url, client=client)
    records = []
    loop = ToolLoop(model, (get_weather, get_population), Gathered(), sinks=[records.append])
    task = asyncio.create_task(loop.run(PROMPT, number=7))
    async with asyncio.timeout(60):
        while not any(live.running for live in loop._live.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await model.client.close()
    await close_tool_clients()
    assert records[0].status == "cancelled"
    assert {c.status for c in records[0].tool_calls} == {"cancelled"}
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_clients_of_the_users_own_are_used_as_they_are(url):
    chat = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="mine")
    messages = anthropic.AsyncAnthropic(base_url=url, api_key="mine")
    async with chat, messages:
        for model in (
            OpenAIChat(chat, model="gpt-4o"),
            OpenAIResponses(chat, model="gpt-4o"),
            AnthropicMessages(messages, model="claude-sonnet-4-6"),
        ):
            result = await ToolLoop(model, tools=[get_weather, get_population]).run(
                [{"role": "user", "content": PROMPT}]
            )
            assert result.text
            attempt = result.record.rounds[0].model.attempts[0]
            # on httpx2's own transport
            assert attempt.started_ns < attempt.sent_ns < attempt.first_byte_ns
    await close_tool_clients()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("api", [OpenAIChat, OpenAIResponses])
async def test_what_goes_below_create_is_what_create_would_send(url, api, stream):
    endpoint = Endpoint.parse(url)
    sent: list[list[tuple[str, dict, dict]]] = []
    for rewrite in (False, True):
        model = api(endpoint=endpoint, rewrite=rewrite)
        requests: list[tuple[str, dict, dict]] = []

        async def note(request, requests=requests):
            headers = {name: value for name, value in request.headers.items() if name != "content-length"}
            body = re.sub(r"(call|fc|msg|rs)_\w{20,}", r"\1_", request.content.decode())  # ids are random
            requests.append((request.url.path, headers, json.loads(body)))

        model.client._client.event_hooks["request"].append(note)
        loop = ToolLoop(model, [get_weather, get_population], stream=stream)
        result = await loop.run(PROMPT, number=4)
        assert result.text
        sent.append(requests)
        await model.client.close()
    await close_tool_clients()
    assert len(sent[0]) >= 2  # one of them with calls and their results
    assert sent[0] == sent[1]
