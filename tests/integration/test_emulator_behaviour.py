"""The emulator over real sockets: conversations, journal, quotas, capacity, faults, lateness."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from profiler.emulator.process import EmulatorProcess, start_emulator

MODEL = "claude-sonnet-4-6"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CHAT_TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": CITY}}
    for name in ("get_weather", "get_population")
]
USER: Any = {"role": "user", "content": "Compare."}

TEMPLATE = """
description = "a scenario of one test"
prompt = "Question {number}"
time_scale = %(scale)s

[model]
first_token = %(first)s
tokens_per_second = %(speed)s

[loop]
rounds = %(rounds)s
fan_out = %(fan_out)s

[tools.look]
description = "Looks."
duration = %(duration)s
"""
DEFAULTS = {"scale": 1.0, "first": 0, "speed": 0, "rounds": 1, "fan_out": 3, "duration": 0}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """A function that starts an emulator of a scenario made of `TEMPLATE` and more TOML."""
    running: list[EmulatorProcess] = []

    def begin(extra: str = "", seed: int = 0, **values: Any) -> EmulatorProcess:
        path = tmp_path / f"scenario{len(running)}.toml"
        path.write_text(TEMPLATE % {**DEFAULTS, **values} + extra)
        running.append(start_emulator(str(path), seed=seed))
        return running[-1]

    yield begin
    for process in running:
        assert process.stop() == 0


@pytest.fixture(scope="module")
def instant() -> Iterator[EmulatorProcess]:
    with start_emulator("instant", seed=3) as running:
        yield running


@pytest.fixture
def unasked() -> Iterator[EmulatorProcess]:
    """One that no other test has left calls with."""
    with start_emulator("instant", seed=3) as running:
        yield running


def journal(emulator: EmulatorProcess, **query: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = httpx.get(
        f"{emulator.url}/emulator/journal", params=query, timeout=60
    ).json()["entries"]
    return entries


def clear(emulator: EmulatorProcess) -> None:
    httpx.delete(f"{emulator.url}/emulator/journal")


def post(emulator: EmulatorProcess, body: Any, headers: dict[str, str]) -> httpx.Response:
    return httpx.post(f"{emulator.url}/v1/chat/completions", json=body, headers=headers, timeout=60)


def ask_tool(emulator: EmulatorProcess, headers: dict[str, str]) -> httpx.Response:
    return httpx.get(f"{emulator.url}/tools/anything", params={"q": "x"}, headers=headers, timeout=60)


async def drained(stream: Any) -> list[Any]:
    return [item async for item in stream]


async def final_message(manager: Any) -> Any:
    async with manager as stream:
        return await stream.get_final_message()


async def test_a_client_without_headers_keeps_its_loop_by_the_ids_alone(unasked: EmulatorProcess) -> None:
    async with (
        openai.AsyncOpenAI(base_url=f"{unasked.url}/v1", api_key="x") as chat,
        httpx.AsyncClient(base_url=unasked.url, timeout=60) as tools,
    ):

        async def one() -> list[tuple[str, str]]:
            messages: list[Any] = [USER]
            asked = (
                (await chat.chat.completions.create(model="m", messages=messages, tools=CHAT_TOOLS))
                .choices[0]
                .message
            )
            messages.append(asked.model_dump(exclude_none=True))
            pairs = []
            for call in asked.tool_calls or []:
                assert call.type == "function"
                arguments = json.loads(call.function.arguments)
                pairs.append((call.id, call.function.name))
                path = "/tools/weather" if call.function.name == "get_weather" else "/tools/population"
                found = await tools.get(path, params={**arguments, "units": "celsius"})
                messages.append({"role": "tool", "tool_call_id": call.id, "content": found.text})
            answer = await chat.chat.completions.create(model="m", messages=messages, tools=CHAT_TOOLS)
            assert answer.choices[0].finish_reason == "stop"
            assert (answer.choices[0].message.content or "").startswith("From 3 results: ")
            return pairs

        asked = await asyncio.gather(*(one() for _ in range(8)))
    models, called = journal(unasked, kind="model"), journal(unasked, kind="tool")
    rounds = sorted((entry["loop"], entry["round"]) for entry in models)
    assert rounds == sorted((loop, round_) for loop in range(8) for round_ in (0, 1))
    # Tool requests named no call: they were matched by tool and arguments.
    wanted = {ident: name for pairs in asked for ident, name in pairs}
    assert {entry["call_id"]: entry["tool"] for entry in called} == wanted
    assert len(called) == 24
    assert sorted({entry["loop"] for entry in called}) == list(range(8))


async def test_headers_name_loop_trial_and_call_and_reach_the_journal(instant: EmulatorProcess) -> None:
    ids = []
    async with openai.AsyncOpenAI(base_url=f"{instant.url}/v1", api_key="x") as chat:
        for trial in ("a", "b"):
            headers = {"x-toolloop-loop": "77", "x-toolloop-trial": trial}
            reply = await chat.chat.completions.create(
                model="m", messages=[USER], tools=CHAT_TOOLS, extra_headers=headers
            )
            call = (reply.choices[0].message.tool_calls or [])[1]
            assert call.type == "function"
            ids.append((call.id, call.function.name, call.function.arguments))
            headers["x-toolloop-call"] = call.id
            assert ask_tool(instant, headers).status_code == 200
    assert ids[0][1:] == ids[1][1:]
    assert ids[0][0] != ids[1][0]
    (model,) = journal(instant, trial="b", kind="model")
    assert (model["loop"], model["round"], model["api"], model["status"], model["attempt"]) == (
        77,
        0,
        "chat",
        200,
        0,
    )
    (tool,) = journal(instant, trial="b", kind="tool")
    assert (tool["loop"], tool["round"], tool["call"], tool["call_id"]) == (77, 0, 1, ids[1][0])
    assert tool["tool"] == "anything"
    assert tool["received_ns"] <= tool["due_ns"] <= tool["sent_ns"] <= tool["finished_ns"]


async def test_without_parallel_calls_the_round_comes_one_call_at_a_time(instant: EmulatorProcess) -> None:
    headers = {"x-toolloop-loop": "5"}
    async with openai.AsyncOpenAI(base_url=f"{instant.url}/v1", api_key="x") as chat:
        whole = await chat.chat.completions.create(
            model="m", messages=[USER], tools=CHAT_TOOLS, extra_headers=headers
        )
        messages: list[Any] = [USER]
        single = []
        while True:
            reply = await chat.chat.completions.create(
                model="m",
                messages=messages,
                tools=CHAT_TOOLS,
                parallel_tool_calls=False,
                extra_headers=headers,
            )
            message = reply.choices[0].message
            if not message.tool_calls:
                break
            assert len(message.tool_calls) == 1
            single.append(message.tool_calls[0].function.arguments)  # type: ignore[union-attr]
            messages += [message.model_dump(exclude_none=True)]
            messages += [{"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "found"}]
    assert single == [call.function.arguments for call in whole.choices[0].message.tool_calls or []]  # type: ignore[union-attr]


async def test_responses_by_previous_id_and_by_whole_history_agree(instant: EmulatorProcess) -> None:
    tools: Any = [{"type": "function", "name": "look", "parameters": CITY, "strict": None}]
    async with openai.AsyncOpenAI(base_url=f"{instant.url}/v1", api_key="x") as client:
        first = await client.responses.create(model="m", input="Look.", tools=tools)
        calls = [item for item in first.output if item.type == "function_call"]
        assert len(calls) == 3
        outputs: Any = [
            {"type": "function_call_output", "call_id": c.call_id, "output": "found"} for c in calls
        ]
        stored = await client.responses.create(
            model="m", input=outputs, tools=tools, previous_response_id=first.id
        )
        history: Any = [USER, *(c.model_dump(exclude_none=True) for c in calls), *outputs]
        stateless = await client.responses.create(model="m", input=history, tools=tools, store=False)
        assert stored.output_text == stateless.output_text == "From 3 results: found; found; found."
        assert stored.previous_response_id == first.id
        assert stored.usage is not None
        assert first.usage is not None
        assert stored.usage.input_tokens > first.usage.total_tokens
        with pytest.raises(openai.BadRequestError, match="No tool output found for function call call_"):
            await client.responses.create(
                model="m", input=outputs[:1], tools=tools, previous_response_id=first.id
            )
        with pytest.raises(openai.BadRequestError, match="not found"):
            await client.responses.create(model="m", input="More.", previous_response_id=stateless.id)
        interleaved: Any = [USER]
        for call, output in zip(calls, outputs, strict=True):
            interleaved += [call.model_dump(exclude_none=True), output]
        answer = await client.responses.create(model="m", input=interleaved, tools=tools)
        assert answer.output_text == stored.output_text


async def test_tool_choice_on_every_api(instant: EmulatorProcess) -> None:
    async with (
        openai.AsyncOpenAI(base_url=f"{instant.url}/v1", api_key="x") as chat,
        anthropic.AsyncAnthropic(base_url=instant.url, api_key="x") as claude,
    ):

        async def names(choice: Any) -> list[str]:
            reply = await chat.chat.completions.create(
                model="m", messages=[USER], tools=CHAT_TOOLS, tool_choice=choice
            )
            return [call.function.name for call in reply.choices[0].message.tool_calls or []]  # type: ignore[union-attr]

        assert await names("none") == []
        assert len(await names("required")) == 3
        assert await names({"type": "function", "function": {"name": "get_population"}}) == ["get_population"]
        one: Any = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "get_weather"}}]}
        assert await names({"type": "allowed_tools", "allowed_tools": one}) == ["get_weather"] * 3

        async def used(choice: Any) -> list[str]:
            tools: Any = [{"name": name, "input_schema": CITY} for name in ("get_weather", "get_population")]
            message = await claude.messages.create(
                model=MODEL, max_tokens=999, messages=[USER], tools=tools, tool_choice=choice
            )
            return [block.name for block in message.content if block.type == "tool_use"]

        assert await used({"type": "none"}) == []
        assert len(await used({"type": "any"})) == 3
        assert len(await used({"type": "auto", "disable_parallel_tool_use": True})) == 1
        assert await used({"type": "tool", "name": "get_weather"}) == ["get_weather"]


async def test_models_and_token_counts(instant: EmulatorProcess) -> None:
    async with (
        openai.AsyncOpenAI(base_url=f"{instant.url}/v1", api_key="x") as chat,
        anthropic.AsyncAnthropic(base_url=instant.url, api_key="x") as claude,
    ):
        assert "gpt-4o" in [model.id async for model in chat.models.list()]
        assert "claude-sonnet-5-5" in [model.id async for model in claude.models.list()]
        assert (await claude.messages.count_tokens(model=MODEL, messages=[USER])).input_tokens > 10


def test_tool_endpoints(instant: EmulatorProcess) -> None:
    with httpx.Client(base_url=instant.url, timeout=60) as client:
        by_query = client.get("/tools/weather", params={"city": "São Paulo", "units": "celsius"}).json()
        by_path = client.get("/tools/weather/S%C3%A3o%20Paulo?format=j1").json()
        assert by_query == by_path
        assert by_query["nearest_area"][0]["areaName"][0]["value"] == "São Paulo"
        current = by_query["current_condition"][0]
        assert int(current["temp_F"]) == round(int(current["temp_C"]) * 9 / 5 + 32)
        assert current["weatherDesc"][0]["value"]
        assert len(by_query["weather"]) == 3
        population = client.get("/tools/population", params={"city": "Oslo"}).json()
        assert population["city"] == "Oslo"
        assert 100_000 <= population["population"] <= 12_100_000
        assert population == client.post("/tools/population", json={"city": "Oslo"}).json()
        other = client.post("/tools/anything", json={"q": [1, {"a": None}]}).json()
        assert (other["tool"], other["arguments"]) == ("anything", {"q": [1, {"a": None}]})
        assert client.post("/tools/anything", content=b"[1]").status_code == 400
        assert client.put("/tools/anything").status_code == 405
        assert client.get("/tools/").status_code == 404
        assert client.get("/nowhere").status_code == 404
        assert client.get("/v1/chat/completions").status_code == 405


def test_own_endpoints(instant: EmulatorProcess) -> None:
    with httpx.Client(base_url=instant.url, timeout=60) as client:
        assert client.get("/healthz").text == "ok\n"
        client.delete("/emulator/journal")
        client.get("/tools/weather", params={"city": "Oslo"})
        client.post("/v1/messages", content=b"{")
        stats = client.get("/emulator/stats").json()
        assert stats["requests"] == {"messages": {"400": 1}, "tools": {"200": 1}}
        assert stats["journal"] == {"entries": 2, "size": 100_000, "dropped": 0}
        assert (stats["scenario"], stats["seed"], stats["in_flight"]) == ("instant", 3, {})
        lines = client.get("/metrics").text.splitlines()
        assert 'emulator_requests_total{api="messages",status="400"} 1' in lines
        assert 'emulator_requests_total{api="tools",status="200"} 1' in lines
        assert "emulator_lateness_seconds_count 2" in lines
        assert "emulator_journal_dropped_total 0" in lines


@pytest.mark.measures
async def test_tool_durations_are_the_tapes_and_are_never_short(start: Any) -> None:
    emulator = start(duration='{ kind = "uniform", low = 0.02, high = 0.08 }', scale=1.0)
    async with httpx.AsyncClient(base_url=emulator.url, timeout=60) as client:

        async def call(n: int) -> None:
            await asyncio.sleep(n * 0.004)
            await client.get("/tools/look", params={"q": str(n)})

        await asyncio.gather(*(call(n) for n in range(60)))
    entries = journal(emulator, kind="tool")
    assert len(entries) == 60
    late = sorted(entry["actual_ns"] - entry["duration_ns"] for entry in entries)
    assert late[0] >= 0
    assert late[30] < 3_000_000
    assert max(entry["in_flight"] for entry in entries) >= 5
    assert all(20_000_000 <= entry["duration_ns"] <= 80_000_000 for entry in entries)


@pytest.mark.measures
async def test_model_times_stream_as_the_tape_says(start: Any) -> None:
    emulator = start(first=0.1, speed=100)
    async with openai.AsyncOpenAI(base_url=f"{emulator.url}/v1", api_key="x") as client:
        await client.models.list()
        started = time.perf_counter()
        stream = await client.chat.completions.create(model="m", messages=[USER], stream=True)
        times = [time.perf_counter() - started async for _ in stream]
        started = time.perf_counter()
        await client.chat.completions.create(model="m", messages=[USER])
        whole = time.perf_counter() - started
    # An answer counts 32 tokens, whatever its length.
    assert 0.1 <= times[0] < 0.3
    assert 0.42 <= times[-1] < 0.8
    assert 0.42 <= whole < 0.8


QUOTA = "\n[quota]\nrequests_per_minute = 600\nburst = 0.1\n"


@pytest.mark.measures
async def test_429s_come_exactly_when_the_quota_says(start: Any) -> None:
    # A minute of six seconds: 100 requests a second pass, the burst is 60. 200 a second are offered.
    emulator = start(QUOTA, scale=0.1)
    body = json.dumps({"model": "m", "messages": [USER]}).encode()
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    )
    host, port = emulator.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    drain = asyncio.create_task(reader.read(-1))
    begun = time.perf_counter()
    for n in range(800):  # pipelined: a client of an SDK's weight could not keep the rate
        delay = begun + n / 200 - time.perf_counter()
        if delay > 0:
            await asyncio.sleep(delay)
        writer.write(request)
    await asyncio.sleep(0.1)
    writer.close()
    replies = await drain
    entries = journal(emulator, kind="model")
    assert len(entries) == 800
    times = [(entry["received_ns"] - entries[0]["received_ns"]) / 1e9 for entry in entries]
    accepted = [at for at, entry in zip(times, entries, strict=True) if entry["status"] == 200]
    assert replies.count(b"HTTP/1.1 200 OK") == len(accepted)
    assert replies.count(b"HTTP/1.1 429 Too Many Requests") == 800 - len(accepted)
    assert len([at for at in accepted if at >= 1]) / (times[-1] - 1) == pytest.approx(100, rel=0.03)


@pytest.mark.measures
async def test_the_sdk_waits_as_long_as_announced(start: Any) -> None:
    emulator = start("\n[quota]\nrequests_per_minute = 60\nburst = 0.01\n", scale=0.3)
    async with openai.AsyncOpenAI(base_url=f"{emulator.url}/v1", api_key="x", max_retries=2) as client:
        raw = await client.chat.completions.with_raw_response.create(model="m", messages=[USER])
        assert raw.headers["x-ratelimit-limit-requests"] == "200"  # in a minute of ours
        assert raw.headers["x-ratelimit-remaining-requests"] == "0"
        assert raw.headers["x-ratelimit-reset-requests"].endswith("ms")
        again = await client.chat.completions.with_raw_response.create(model="m", messages=[USER])
        assert again.retries_taken == 1
        with pytest.raises(openai.RateLimitError) as refused:
            await client.with_options(max_retries=0).chat.completions.create(model="m", messages=[USER])
    error = refused.value
    assert (error.type, error.param, error.code) == ("requests", None, "rate_limit_exceeded")
    assert error.message.startswith("Error code: 429")
    assert "on requests per min (RPM): Limit 200, Used 1, Requested 1. Please try again in " in error.message
    announced = int(error.response.headers["retry-after-ms"])
    assert 200 <= announced <= 300
    assert error.response.headers["retry-after"] == "1"
    first, second, third, _ = journal(emulator, kind="model")
    assert [entry["status"] for entry in (first, second, third)] == [200, 429, 200]
    assert (second["attempt"], third["attempt"]) == (0, 1)
    waited = (third["received_ns"] - second["received_ns"]) / 1e6
    owed = 300 - (second["received_ns"] - first["received_ns"]) / 1e6
    assert owed - 1 <= waited <= owed + 60


@pytest.mark.measures
async def test_anthropic_quota_tells_input_and_output_apart(start: Any) -> None:
    emulator = start(
        "\n[quota]\ninput_tokens_per_minute = 30000\noutput_tokens_per_minute = 60\nburst = 0.5\n"
    )
    async with anthropic.AsyncAnthropic(base_url=emulator.url, api_key="x", max_retries=0) as client:
        raw = await client.messages.with_raw_response.create(model=MODEL, max_tokens=100, messages=[USER])
        for name in ("input-tokens", "output-tokens", "tokens"):
            for part in ("limit", "remaining", "reset"):
                assert f"anthropic-ratelimit-{name}-{part}" in raw.headers
        assert raw.headers["anthropic-ratelimit-input-tokens-limit"] == "30000"
        assert raw.headers["anthropic-ratelimit-input-tokens-reset"].endswith("Z")
        # Fourteen output tokens a request: the bucket of thirty is empty after two.
        await client.messages.create(model=MODEL, max_tokens=100, messages=[USER])
        with pytest.raises(anthropic.RateLimitError) as refused:
            await client.messages.create(model=MODEL, max_tokens=100, messages=[USER])
    assert isinstance(refused.value.body, dict)
    error = refused.value.body["error"]
    assert error["type"] == "rate_limit_error"
    assert error["message"].startswith(
        "This request would exceed your organization's rate limit of 60 output tokens per minute ("
    )
    assert int(refused.value.response.headers["retry-after"]) >= 1


@pytest.mark.measures
async def test_concurrent_requests_are_limited_and_released(start: Any) -> None:
    emulator = start("\n[quota]\nconcurrent_requests = 2\n", first=0.15)
    async with httpx.AsyncClient(base_url=emulator.url, timeout=60) as client:
        body = {"model": "m", "messages": [USER]}
        replies = await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for _ in range(5)))
        assert sorted(reply.status_code for reply in replies) == [200, 200, 429, 429, 429]
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/v1/chat/completions", json=body, timeout=0.05)
        await asyncio.sleep(0.05)  # the abandoned request's connection has been seen to close
        replies = await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for _ in range(2)))
        assert [reply.status_code for reply in replies] == [200, 200]


@pytest.mark.measures
@pytest.mark.parametrize(
    ("capacity", "statuses", "longest"),
    [
        ('{ concurrent = 2, mode = "reject" }', [200, 200, 429, 429, 429], 0.2),
        ('{ concurrent = 2, mode = "queue", queue = 2 }', [200, 200, 200, 200, 503], 0.35),
        ('{ concurrent = 2, mode = "share" }', [200] * 5, 0.42),
        ("{ requests_per_second = 1, burst = 3 }", [200, 200, 200, 429, 429], 0.2),
    ],
)
async def test_crowded_tools(start: Any, capacity: str, statuses: list[int], longest: float) -> None:
    emulator = start(f"capacity = {capacity}\n", duration=0.15)
    async with httpx.AsyncClient(base_url=emulator.url, timeout=60) as client:
        await asyncio.gather(*(client.get("/healthz") for _ in range(5)))
        replies = await asyncio.gather(*(client.get("/tools/look", params={"n": n}) for n in range(5)))
        assert sorted(reply.status_code for reply in replies) == statuses
        for reply in replies:
            assert ("retry-after" in reply.headers) == (reply.status_code == 429 and "per_second" in capacity)
        # Afterwards everything is free again.
        if "per_second" not in capacity:
            assert (await client.get("/tools/look")).status_code == 200
    served = [entry for entry in journal(emulator, kind="tool") if entry["status"] == 200][:-1]
    slowest = max(entry["actual_ns"] for entry in served) / 1e9
    assert longest * 0.7 < slowest < longest + 0.08
    assert all(0 <= entry["sent_ns"] - entry["due_ns"] < 30_000_000 for entry in served)


@pytest.mark.measures
async def test_a_caller_that_goes_away_frees_its_slot(start: Any) -> None:
    emulator = start('capacity = { concurrent = 1, mode = "reject" }\n', duration=5)
    async with httpx.AsyncClient(base_url=emulator.url, timeout=60) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.get("/tools/look", timeout=0.1)
        await asyncio.sleep(0.05)
        with pytest.raises(httpx.ReadTimeout):  # taken in, not rejected
            await client.get("/tools/look", timeout=0.1)
    await asyncio.sleep(0.05)
    assert [entry["outcome"] for entry in journal(emulator, kind="tool")] == ["disconnected"] * 2


def fault(kind: str, **more: Any) -> str:
    lines = "".join(f"{key} = {value}\n" for key, value in more.items())
    return f'\n[[faults]]\nkind = "{kind}"\nat = [{{ loop = 0 }}]\n{lines}'


@pytest.mark.parametrize(
    ("kind", "status"), [("http_429", 429), ("http_500", 500), ("http_503", 503), ("http_529", 529)]
)
async def test_faults_of_status(start: Any, kind: str, status: int) -> None:
    emulator = start(fault(kind), scale=0.01)
    headers = {"x-toolloop-loop": "0"}
    async with (
        openai.AsyncOpenAI(base_url=f"{emulator.url}/v1", api_key="x", max_retries=0) as chat,
        anthropic.AsyncAnthropic(base_url=emulator.url, api_key="x", max_retries=0) as claude,
    ):
        with pytest.raises(openai.APIStatusError) as refused:
            await chat.chat.completions.create(
                model="m", messages=[USER], tools=CHAT_TOOLS, extra_headers=headers
            )
        assert refused.value.status_code == status
        tools: Any = [{"name": "look", "input_schema": CITY}]
        with pytest.raises(anthropic.APIStatusError) as denied:
            await claude.messages.create(
                model=MODEL, max_tokens=9, messages=[USER], tools=tools, extra_headers=headers
            )
        assert denied.value.status_code == status
        # The fault hits the first attempt only: with retries nobody sees it.
        retrying = chat.with_options(max_retries=1)
        reply = await retrying.chat.completions.create(
            model="m", messages=[USER], tools=CHAT_TOOLS, extra_headers=headers
        )
        assert len(reply.choices[0].message.tool_calls or []) == 3
    assert [entry["fault"] for entry in journal(emulator)] == [kind, kind, kind, None]


@pytest.mark.measures
async def test_faults_of_the_connection(start: Any) -> None:
    headers = {"x-toolloop-loop": "0"}
    body = {"model": "m", "messages": [USER], "tools": CHAT_TOOLS}
    for extra, least, most in [(fault("reset"), 0, 0.39), (fault("hang", seconds=0.4), 0.4, 1.0)]:
        emulator = start(extra)
        async with httpx.AsyncClient(base_url=emulator.url, timeout=60) as client:
            started = time.perf_counter()
            with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
                await client.post("/v1/chat/completions", json=body, headers=headers)
            assert least <= time.perf_counter() - started < most
        (entry,) = journal(emulator)
        assert (entry["outcome"], entry["sent_ns"]) == ("reset", 0)
    emulator = start(fault("slow_first_byte", seconds=0.3))
    started = time.perf_counter()
    assert post(emulator, body, headers).status_code == 200
    assert 0.3 <= time.perf_counter() - started < 0.9


async def test_faults_in_mid_stream(start: Any) -> None:
    headers = {"x-toolloop-loop": "0"}
    tools: Any = [{"name": "look", "input_schema": CITY}]
    responses_tools: Any = [{"type": "function", "name": "look", "parameters": CITY, "strict": None}]
    emulator = start(fault("truncated_stream", attempts=9))
    async with (
        openai.AsyncOpenAI(base_url=f"{emulator.url}/v1", api_key="x") as chat,
        anthropic.AsyncAnthropic(base_url=emulator.url, api_key="x") as claude,
    ):
        stream = await chat.chat.completions.create(
            model="m", messages=[USER], tools=CHAT_TOOLS, stream=True, extra_headers=headers
        )
        with pytest.raises(Exception, match=r"Connection error|peer closed connection"):
            await drained(stream)
        manager = claude.messages.stream(
            model=MODEL, max_tokens=99, messages=[USER], tools=tools, extra_headers=headers
        )
        with pytest.raises(Exception, match=r"Connection error|peer closed connection"):
            await final_message(manager)
    assert {entry["outcome"] for entry in journal(emulator)} == {"cut"}
    emulator = start(fault("stream_error"))
    async with (
        openai.AsyncOpenAI(base_url=f"{emulator.url}/v1", api_key="x") as chat,
        anthropic.AsyncAnthropic(base_url=emulator.url, api_key="x") as claude,
    ):
        manager = claude.messages.stream(
            model=MODEL, max_tokens=99, messages=[USER], tools=tools, extra_headers=headers
        )
        with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
            await final_message(manager)
        stream = await chat.chat.completions.create(
            model="m", messages=[USER], tools=CHAT_TOOLS, stream=True, extra_headers=headers
        )
        with pytest.raises(openai.APIError, match="The server had an error"):
            await drained(stream)
        # This API's error is an event like others, which the SDK hands out.
        events = await chat.responses.create(
            model="m", input=[USER], tools=responses_tools, stream=True, extra_headers=headers
        )
        seen = [event async for event in events]
        assert seen[-1].type == "error"
        assert seen[-1].message == "The server had an error while processing your request."
        assert seen[-1].sequence_number == len(seen) - 1


async def test_faults_of_calls(start: Any) -> None:
    headers = {"x-toolloop-loop": "0"}
    seen: dict[str, Any] = {}
    for kind in ("malformed_arguments", "unknown_tool", "wrong_type", "tool_http_500"):
        emulator = start(fault(kind))
        async with openai.AsyncOpenAI(base_url=f"{emulator.url}/v1", api_key="x") as chat:
            reply = await chat.chat.completions.create(
                model="m", messages=[USER], tools=CHAT_TOOLS, extra_headers=headers
            )
        calls = reply.choices[0].message.tool_calls or []
        seen[kind] = calls[0]
        for call in calls[1:]:
            json.loads(call.function.arguments)  # type: ignore[union-attr]
    with pytest.raises(json.JSONDecodeError):
        json.loads(seen["malformed_arguments"].function.arguments)
    assert seen["unknown_tool"].function.name == "nonexistent_tool"
    assert isinstance(json.loads(seen["wrong_type"].function.arguments)["city"], list)
    call_id = seen["tool_http_500"].id
    assert ask_tool(emulator, {"x-toolloop-call": call_id}).status_code == 500
    assert journal(emulator, kind="tool")[0]["fault"] == "tool_http_500"
