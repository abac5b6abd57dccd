"""Loops that are not ours, watched: counts, ids and times equal the emulator's journal."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import threading
import urllib.request
import weakref
from concurrent.futures import ThreadPoolExecutor

import anthropic
import httpx
import openai
import pytest

from profiler import UsageError, tool
from profiler.anatomy import loop_phases
from profiler.emulator.process import start_emulator
from profiler.records import LoopRecord
from profiler.watch.profiler import Profiler

PROMPT = "Compare the weather of Tokyo and Paris."

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
CHAT_TOOLS = [  # openai 3.0's `chat.completions.stream` takes only strict ones
    {"type": "function", "function": {"name": n, "description": n, "parameters": SCHEMA, "strict": True}}
    for n in ("get_weather", "get_population")
]
MESSAGE_TOOLS = [
    {"name": n, "description": n, "input_schema": SCHEMA} for n in ("get_weather", "get_population")
]


@pytest.fixture
def url():  # of one test alone: tool requests without headers are matched by what is still pending
    with start_emulator("cities", seed=7) as emulator:
        yield emulator.url


@pytest.fixture
def journal(url):
    """Reads the journal of this test alone."""
    call(url, "DELETE")
    return lambda: call(url, "GET")["entries"]


def call(url: str, method: str):
    request = urllib.request.Request(f"{url}/emulator/journal", method=method)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read() or b"null")


@pytest.fixture
def records() -> list[LoopRecord]:
    return []


@pytest.fixture
def prof(records) -> Profiler:
    return Profiler(sinks=[records.append])


def fetch(url: str, name: str, city: str) -> str:
    return httpx.get(f"{url}/tools/{name}", params={"city": city}, timeout=60).text


async def tutorial_loop(client, functions, *, stream=False) -> tuple[str, int]:
    """The bare loop every tutorial shows. Returns the answer and the number of calls made."""
    messages = [{"role": "user", "content": PROMPT}]
    made = 0
    while True:
        if stream:
            async with client.chat.completions.stream(
                model="gpt-4o",
                messages=messages,
                tools=CHAT_TOOLS,
                stream_options={"include_usage": True},
            ) as events:
                async for _ in events:
                    pass
                message = (await events.get_final_completion()).choices[0].message
        else:
            completion = await client.chat.completions.create(
                model="gpt-4o", messages=messages, tools=CHAT_TOOLS
            )
            message = completion.choices[0].message
        if not message.tool_calls:
            return message.content, made
        messages.append(message.model_dump(exclude_none=True))
        results = await asyncio.gather(
            *(functions[c.function.name](**json.loads(c.function.arguments)) for c in message.tool_calls)
        )
        for c, result in zip(message.tool_calls, results, strict=True):
            messages.append({"role": "tool", "tool_call_id": c.id, "content": result})
        made += len(results)


def async_tools(url, prof, http):
    @prof.tool
    async def get_weather(city: str) -> str:
        return (await http.get(f"{url}/tools/weather", params={"city": city})).text

    @prof.tool
    async def get_population(city: str) -> str:
        return (await http.get(f"{url}/tools/population", params={"city": city})).text

    return {"get_weather": get_weather, "get_population": get_population}


def check_against(journal, record: LoopRecord) -> None:
    """Model requests, call ids and tool durations are those the server saw."""
    model = [e for e in journal if e["kind"] == "model"]
    tools = [e for e in journal if e["kind"] == "tool"]
    assert len(record.rounds) == len(model)
    assert [r.model.request_id for r in record.rounds] == [e["request_id"] for e in model]
    assert [a.status for r in record.rounds for a in r.model.attempts] == [e["status"] for e in model]
    ours = {c.id: (c.ended_ns - c.started_ns) / 1e9 for c in record.tool_calls}
    theirs = {e["call_id"]: (e["due_ns"] - e["received_ns"]) / 1e9 for e in tools}
    assert set(ours) == set(theirs)
    for call_id, seconds in theirs.items():
        # No answer comes before it is due; a crowded machine may add to the client's time.
        assert 0 <= ours[call_id] - seconds < 10
    phases = loop_phases(record)
    assert sum(phases.values()) == record.ended_ns - record.started_ns


@pytest.mark.parametrize("stream", [False, True])
async def test_a_hand_written_loop(url, journal, prof, records, stream):
    client = prof.instrument(openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k"))
    prof.instrument(client)  # twice is harmless
    async with client, httpx.AsyncClient(timeout=60) as http, prof.loop("support-agent"):
        answer, made = await tutorial_loop(client, async_tools(url, prof, http), stream=stream)
    assert answer
    (record,) = records
    assert (record.name, record.status, record.strategy) == ("support-agent", "ok", "application")
    assert sum(1 for _ in record.tool_calls) == made > 0
    assert {c.status for c in record.tool_calls} == {"ok"}
    check_against(journal(), record)
    for round_ in record.rounds:
        assert (round_.model.first_token_ns is not None) == stream
        assert round_.model.input_tokens > 0
        assert round_.unobserved_calls == 0
    # n gathered calls are n siblings of one round, and overlap
    first = record.rounds[0].tool_calls
    assert max(c.started_ns for c in first) < min(c.ended_ns for c in first)


@pytest.mark.parametrize("stream", [False, True])
def test_a_sync_anthropic_client_with_threads_that_carry_no_context(url, journal, prof, records, stream):
    client = prof.instrument(anthropic.Anthropic(base_url=url, api_key="k"))

    @prof.tool
    def get_weather(city: str) -> str:
        return fetch(url, "weather", city)

    @prof.tool
    def get_population(city: str) -> str:
        return fetch(url, "population", city)

    functions = {"get_weather": get_weather, "get_population": get_population}
    messages = [{"role": "user", "content": PROMPT}]
    options = {"model": "claude-sonnet-4-6", "max_tokens": 500, "tools": MESSAGE_TOOLS}
    with client, ThreadPoolExecutor(8) as threads, prof.loop("sync"):
        while True:
            if stream:
                with client.messages.stream(messages=messages, **options) as events:
                    message = events.get_final_message()
            else:
                message = client.messages.create(messages=messages, **options)
            calls = [block for block in message.content if block.type == "tool_use"]
            if not calls:
                break
            messages.append({"role": "assistant", "content": message.content})
            results = threads.map(lambda c: functions[c.name](**c.input), calls)
            messages.append(
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": c.id, "content": r}
                        for c, r in zip(calls, results, strict=True)
                    ],
                }
            )
    (record,) = records
    check_against(journal(), record)
    assert (record.ambiguous_calls, prof.orphan_calls) == (0, 0)


def test_a_sync_openai_client_and_the_responses_api(url, journal, prof, records):
    client = prof.instrument(openai.OpenAI(base_url=f"{url}/v1", api_key="k"))

    @prof.tool
    def get_weather(city: str) -> str:
        return fetch(url, "weather", city)

    @prof.tool
    def get_population(city: str) -> str:
        return fetch(url, "population", city)

    functions = {"get_weather": get_weather, "get_population": get_population}
    tools = [
        {"type": "function", "name": n, "parameters": SCHEMA, "strict": False}
        for n in ("get_weather", "get_population")
    ]
    items: list = [{"role": "user", "content": PROMPT}]
    with client, prof.loop("responses"):
        while True:
            response = client.responses.create(model="gpt-4o", input=items, tools=tools)
            calls = [item for item in response.output if item.type == "function_call"]
            if not calls:
                break
            items += response.output
            for c in calls:
                result = functions[c.name](**json.loads(c.arguments))
                items.append({"type": "function_call_output", "call_id": c.call_id, "output": result})
    (record,) = records
    check_against(journal(), record)
    assert record.provider == "openai-responses"


async def test_uninstrument_restores(url, prof, records):
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k")
    before = client._client._transport
    prof.uninstrument(prof.instrument(client))
    assert client._client._transport is before
    async with client, prof.loop():
        await client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hi"}])
    assert records[0].rounds == ()
    with pytest.raises(UsageError, match="cannot instrument str"):
        prof.instrument("client")


async def test_two_profilers_may_watch_one_client(url, prof, records):
    others: list[LoopRecord] = []
    other = Profiler(sinks=[others.append])
    client = other.instrument(prof.instrument(openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k")))
    for watching in (prof, other):
        with watching.loop():
            await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    await client.close()
    assert [len(r.rounds) for r in records + others] == [1, 1]


async def test_requests_outside_a_loop_are_not_recorded(url, prof, records):
    async with prof.instrument(openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k")) as client:
        await client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hi"}])
    assert records == []


async def test_loops_nest_and_run_beside_each_other(url, prof, records):
    client = prof.instrument(openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k"))

    @prof.tool
    async def get_weather(city: str) -> str:
        with prof.loop("inner"):
            completion = await client.chat.completions.create(
                model="gpt-4o", messages=[{"role": "user", "content": city}]
            )
        return completion.choices[0].message.content

    @prof.tool
    async def get_population(city: str) -> str:
        return "1"

    async def outer(name: str) -> None:
        with prof.loop(name):
            await tutorial_loop(client, {"get_weather": get_weather, "get_population": get_population})

    async with client:
        await asyncio.gather(outer("a"), outer("b"))
    outers = {r.name: r for r in records if r.name != "inner"}
    assert set(outers) == {"a", "b"}
    for record in outers.values():
        children = [r for r in records if r.parent == record.id]
        assert len(children) == sum(c.name == "get_weather" for c in record.tool_calls)
        for child in children:
            assert record.started_ns < child.started_ns <= child.ended_ns < record.ended_ns
            assert len(child.rounds) == 1


async def test_what_ends_a_loop_is_recorded(url, prof, records):
    client = prof.instrument(openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0))

    @prof.tool
    async def stuck() -> None:
        await asyncio.sleep(60)

    async def cancelled() -> None:
        with prof.loop("cancelled"):
            await stuck()

    async with client:
        with pytest.raises(openai.NotFoundError), prof.loop("failed"):
            await client.post("/chat/completions/nowhere", cast_to=object, body={})
        task = asyncio.create_task(cancelled())
        await asyncio.sleep(0.01)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    by_name = {r.name: r for r in records}
    assert (by_name["failed"].status, by_name["failed"].error_type) == ("error", "NotFoundError")
    assert by_name["cancelled"].status == "cancelled"


def test_abandoned_loops_do_not_leak(prof):
    context = prof.loop("never left")
    loop = weakref.ref(context.__enter__())
    prof._loop.set(None)
    del context
    gc.collect()
    assert loop() is None
    assert len(prof._open) == 0


def test_a_tool_keeps_its_signature_and_kind(prof):
    import inspect

    class Desk:
        @prof.tool
        def lookup(self, key: str) -> str:
            """Look it up."""
            return key * 2

    assert str(inspect.signature(Desk.lookup)) == "(self, key: 'str') -> 'str'"
    assert (Desk().lookup("a"), Desk.lookup.__doc__) == ("aa", "Look it up.")
    assert prof.tool(Desk.lookup) is Desk.lookup

    @tool(timeout=3)
    async def ours(x: int) -> int:
        return x

    watched = prof.tool(ours)
    assert (watched.name, watched.timeout, watched.parameters) == ("ours", 3, ours.parameters)
    assert asyncio.run(watched(4)) == 4


def test_a_call_that_no_loop_asked_for_is_an_orphan(prof):
    @prof.tool
    def lonely() -> int:
        return 1

    assert (lonely(), prof.orphan_calls) == (1, 1)


async def test_equal_calls_in_context_free_threads_are_counted_as_ambiguous(prof, records):
    """Two open loops asked for the same call; a thread without context runs one of them."""
    from profiler.loop.model import CallRequest

    @prof.tool
    def search(q: str) -> str:
        return q

    with prof.loop("a") as a:
        a.begin_round("openai", "m").unclaimed.append((CallRequest("1", "search", '{"q":"x"}'), 0))
        token = prof._loop.set(None)
        with prof.loop("b") as b:
            b.begin_round("openai", "m").unclaimed.append((CallRequest("2", "search", '{"q":"x"}'), 0))
            thread = threading.Thread(target=search, args=("x",))
            thread.start()
            thread.join()
        prof._loop.reset(token)
    assert sorted(r.ambiguous_calls for r in records) == [0, 1]
