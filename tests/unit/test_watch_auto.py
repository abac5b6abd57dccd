"""Clients and tools are watched that nobody named, conversations are loops, and all of it is put back."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import json
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from profiler.errors import UsageError
from profiler.records import LoopRecord
from profiler.watch import auto, conversations
from profiler.watch.profiler import Profiler

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


def chat_tools(*names: str) -> list[Any]:
    return [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in names]


def chat(calls: list[tuple[str, str, Any]], text: str = "done") -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": None if calls else text}
    if calls:
        message["tool_calls"] = [
            {"id": id_, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for id_, name, arguments in calls
        ]
    finish = "tool_calls" if calls else "stop"
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {"id": "r", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}


class Model(httpx2.BaseTransport, httpx2.AsyncBaseTransport):
    """Asks for one call of the first offered tool for each city of the question, then answers."""

    def __init__(self, refuses: int = 0) -> None:
        self.refuses = refuses
        self.numbers = itertools.count()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.read())
        if self.refuses:
            self.refuses -= 1
            return httpx2.Response(429, headers={"retry-after-ms": "1"}, json={"error": {"message": "slow"}})
        asked, tools = str(body["messages"][0]["content"]), body.get("tools") or []
        answered = len(body["messages"]) > 1 or not tools
        if request.url.path.endswith("/messages"):
            name = tools[0]["name"] if tools else ""
            content: list[Any] = [{"type": "text", "text": "done"}]
            if not answered:
                content = [
                    {
                        "type": "tool_use",
                        "id": f"t{next(self.numbers)}",
                        "name": name,
                        "input": {"city": city},
                    }
                    for city in asked.split()
                ]
            stop = "end_turn" if answered else "tool_use"
            usage = {"input_tokens": 1, "output_tokens": 1}
            head = {"id": "m", "type": "message", "role": "assistant", "model": "m", "usage": usage}
            return httpx2.Response(200, json={**head, "content": content, "stop_reason": stop})
        name = tools[0]["function"]["name"] if tools else ""
        calls = [(f"c{next(self.numbers)}", name, {"city": city}) for city in asked.split()]
        return httpx2.Response(200, json=chat([] if answered else calls))

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await asyncio.sleep(0)
        return self.handle_request(request)


def sync_client(model: Model, sdk: Any = openai.OpenAI, **options: Any) -> Any:
    return sdk(api_key="x", http_client=httpx2.Client(transport=model), **options)


def async_client(model: Model, sdk: Any = openai.AsyncOpenAI, **options: Any) -> Any:
    return sdk(api_key="x", http_client=httpx2.AsyncClient(transport=model), **options)


def auto_sync(city: str) -> str:
    return city.upper()


async def auto_async(city: str) -> str:
    await asyncio.sleep(0)
    return city.upper()


def ask(client: Any, question: str, tool: str, run: Any) -> str:
    messages: list[Any] = [{"role": "user", "content": question}]
    reply = client.chat.completions.create(model="m", messages=messages, tools=chat_tools(tool))
    message = reply.choices[0].message
    messages.append(message)
    for call in message.tool_calls:
        result = run(**json.loads(call.function.arguments))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return client.chat.completions.create(model="m", messages=messages).choices[0].message.content


async def ask_async(client: Any, question: str, tool: str, run: Any) -> str:
    messages: list[Any] = [{"role": "user", "content": question}]
    reply = await client.chat.completions.create(model="m", messages=messages, tools=chat_tools(tool))
    message = reply.choices[0].message
    messages.append(message)
    results = await asyncio.gather(
        *(run(**json.loads(call.function.arguments)) for call in message.tool_calls)
    )
    for call, result in zip(message.tool_calls, results, strict=True):
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return (await client.chat.completions.create(model="m", messages=messages)).choices[0].message.content


@pytest.fixture
def records():
    return []


@pytest.fixture
def prof(records):
    made = Profiler(sinks=[records.append])
    yield made
    made.stop()
    assert set(made.failures.values()) == {0}


def shape(record: Any) -> list[list[tuple[str, bool]]]:
    """For each round its calls: name, and whether it is known which request each ran."""
    return [[(call.name, bool(call.id)) for call in round_.tool_calls] for round_ in record.rounds]


def test_a_client_made_before_is_watched_from_its_next_request_on(prof, records):
    client = sync_client(Model())
    with prof.loop("before"):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    prof.auto()
    with prof.loop("after"):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    assert [len(record.rounds) for record in records] == [0, 1]
    found = prof.found[0]
    assert (found.kind, found.name, found.problem) == ("client", "OpenAI", "")
    assert found.place.rpartition(":")[0].endswith("test_watch_auto.py")  # of its request


def test_a_client_whose_http_client_was_replaced_is_watched_through_the_new_one(prof, records):
    """Frameworks close theirs at the end of a block, and make another when it is entered again."""
    client = sync_client(Model())
    prof.auto(conversations=True)
    for _ in range(3):
        assert ask(client, "Paris", "auto_sync", auto_sync) == "done"
        client._client.close()
        client._client = httpx2.Client(transport=Model(), base_url=client.base_url)
    prof.stop()
    assert [len(record.rounds) for record in records] == [2, 2, 2]
    assert [str(found) for found in prof.found if found.kind == "client"] == [str(prof.found[0])]
    assert ask(client, "Paris", "auto_sync", auto_sync) == "done"
    assert len(records) == 3


def test_a_client_made_since_is_said_with_where_it_was_made(prof):
    prof.auto()
    line = test_a_client_made_since_is_said_with_where_it_was_made.__code__.co_firstlineno + 3
    client = anthropic.AsyncAnthropic(api_key="x", http_client=httpx2.AsyncClient(transport=Model()))

    async def once() -> None:
        await client.messages.create(model="m", max_tokens=5, messages=[{"role": "user", "content": "x"}])

    asyncio.run(once())
    assert str(prof.found[0]).endswith(f"test_watch_auto.py:{line})")
    assert prof.found[0].name == "AsyncAnthropic"


def test_stop_leaves_everything_as_it_was(prof, records):
    from openai._base_client import AsyncAPIClient, SyncAPIClient

    before = [(one.request, one.__init__) for one in (SyncAPIClient, AsyncAPIClient)]
    code = auto_sync.__code__
    client = sync_client(Model())
    transport = client._client._transport
    prof.auto(find_tools=True)
    with prof.loop():
        ask(client, "rome oslo", "auto_sync", auto_sync)
    assert auto_sync.__code__ is not code
    assert client._client._transport is not transport
    prof.stop()
    assert auto_sync.__code__ is code
    assert client._client._transport is transport
    assert [(one.request, one.__init__) for one in (SyncAPIClient, AsyncAPIClient)] == before
    assert [str(one).partition(" ")[0] for one in prof.found] == ["OpenAI", "auto_sync"]
    with prof.loop():
        ask(client, "rome", "auto_sync", auto_sync)
    assert [len(record.rounds) for record in records] == [2, 0]


def test_what_on_client_raises_reaches_the_application_and_nothing_is_sent(prof):
    model = Model()

    def refuse(client: Any) -> None:
        raise UsageError("another host")

    prof.auto(on_client=refuse)
    client = sync_client(model)
    with pytest.raises(UsageError, match="another host"):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    assert next(model.numbers) == 0


def test_on_client_may_point_a_client_elsewhere_before_its_first_request(prof):
    asked: list[str] = []

    class Noting(Model):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            asked.append(str(request.url))
            return super().handle_request(request)

    def point(client: Any) -> None:
        client.base_url = "http://127.0.0.1:9/v1"

    prof.auto(on_client=point)
    client = sync_client(Noting(), base_url="https://example.com/v1")
    for _ in range(2):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    assert asked == ["http://127.0.0.1:9/v1/chat/completions"] * 2


def test_tools_are_found_by_name_and_by_registry_key(prof, records):
    registry = {"weather-of": auto_async}
    prof.auto(find_tools=True)
    client, asynchronous = sync_client(Model()), async_client(Model())
    with prof.loop("by name"):
        assert ask(client, "rome oslo", "auto_sync", auto_sync) == "done"
    with prof.loop("by key"):
        asyncio.run(ask_async(asynchronous, "rome oslo", "weather-of", registry["weather-of"]))
    assert shape(records[0]) == [[("auto_sync", True)] * 2, []]
    assert shape(records[1]) == [[("weather-of", True)] * 2, []]
    assert [record.rounds[0].unobserved_calls for record in records] == [0, 0]
    assert [record.ambiguous_calls for record in records] == [0, 0]


def test_a_function_that_the_application_calls_for_itself_is_no_call_of_a_tool(prof, records):
    prof.auto(find_tools=True)
    client = sync_client(Model())
    with prof.loop():
        ask(client, "rome", "auto_sync", auto_sync)
        assert auto_sync("own") == "OWN"
    assert auto_sync("outside") == "OUTSIDE"
    assert shape(records[0]) == [[("auto_sync", True)], []]
    assert (prof.orphan_calls, records[0].orphan_calls) == (0, 0)


def test_a_function_inside_another_of_the_same_tool_is_part_of_its_call(prof, records):
    async def wrapping(**arguments: Any) -> str:
        return await auto_async(**arguments)

    registry = {"auto_async": wrapping}
    prof.auto(find_tools=True)
    with prof.loop():
        asyncio.run(ask_async(async_client(Model()), "rome oslo", "auto_async", registry["auto_async"]))
    assert shape(records[0]) == [[("auto_async", True)] * 2, []]


def test_functions_defined_after_a_first_request_are_found_with_the_next_client(prof, records):
    prof.auto(find_tools=True)
    first = sync_client(Model())
    with prof.loop():
        ask(first, "rome", "auto_late", lambda city: city)
    made: dict[str, Any] = {}
    exec("def auto_late(city):\n    return city", made)
    with prof.loop():
        ask(sync_client(Model()), "rome", "auto_late", made["auto_late"])
    assert [shape(record) for record in records] == [[[], []], [[("auto_late", True)], []]]
    assert records[0].rounds[0].unobserved_calls == 1


def test_each_conversation_is_a_loop(prof, records):
    prof.auto(find_tools=True, conversations=True)
    client = sync_client(Model())
    ask(client, "rome oslo", "auto_sync", auto_sync)
    ask(client, "paris", "auto_sync", auto_sync)
    prof.stop()
    assert [shape(record) for record in records] == [
        [[("auto_sync", True)] * 2, []],
        [[("auto_sync", True)], []],
    ]
    assert [record.status for record in records] == ["ok", "ok"]
    for record in records:
        assert record.ended_ns == record.rounds[-1].model.ended_ns


def test_conversations_at_once_stay_apart(prof, records):
    prof.auto(find_tools=True, conversations=True)
    client = async_client(Model())

    async def together() -> None:
        questions = ["rome", "oslo paris", "bern kyiv lima"]
        await asyncio.gather(*(ask_async(client, one, "auto_async", auto_async) for one in questions))

    asyncio.run(together())
    prof.stop()
    assert sorted(len(record.rounds[0].tool_calls) for record in records) == [1, 2, 3]
    assert [len(record.rounds) for record in records] == [2, 2, 2]


def test_a_conversation_goes_on_in_a_thread_that_knows_nothing_of_it(prof, records):
    prof.auto(conversations=True)
    client = sync_client(Model())
    messages: list[Any] = [{"role": "user", "content": "rome"}]
    message = client.chat.completions.create(model="m", messages=messages, tools=chat_tools("other"))
    call = message.choices[0].message.tool_calls[0]
    messages += [message.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "x"}]

    def go_on() -> None:
        client.chat.completions.create(model="m", messages=messages)

    with ThreadPoolExecutor() as pool:
        pool.submit(go_on).result()
    prof.stop()
    assert [len(record.rounds) for record in records] == [2]


def test_an_sdk_s_retry_is_no_new_conversation(prof, records):
    prof.auto(conversations=True)
    client = sync_client(Model(refuses=2), max_retries=3)
    ask(client, "rome", "auto_sync", auto_sync)
    prof.stop()
    assert [[len(round_.model.attempts) for round_ in record.rounds] for record in records] == [[3, 1]]


def test_a_conversation_inside_a_tool_is_the_child_of_its_loop(prof, records):
    client = async_client(Model())

    async def auto_research(city: str) -> str:
        return await ask_async(client, "oslo", "auto_async", auto_async)

    prof.auto(find_tools=True, conversations=True)
    asyncio.run(ask_async(client, "rome", "auto_research", auto_research))
    prof.stop()
    outer = next(record for record in records if record.parent is None)
    inner = next(record for record in records if record.parent is not None)
    assert inner.parent == outer.id
    assert (shape(outer), shape(inner)) == (
        [[("auto_research", True)], []],
        [[("auto_async", True)], []],
    )


def test_a_loop_that_was_marked_is_no_conversation(prof, records):
    prof.auto(conversations=True)
    client = sync_client(Model())
    with prof.loop("marked"):
        ask(client, "rome", "auto_sync", auto_sync)
        ask(client, "oslo", "auto_sync", auto_sync)
    prof.stop()
    assert [(record.name, len(record.rounds)) for record in records] == [("marked", 4)]


def test_a_failed_request_ends_a_conversation_as_failed(prof, records):
    prof.auto(conversations=True)
    client = sync_client(Model(refuses=9), max_retries=0)
    with pytest.raises(openai.RateLimitError):
        ask(client, "rome", "auto_sync", auto_sync)
    prof.stop()
    assert [(record.status, record.error_type) for record in records] == [("error", "http_429")]


class Turnstile:
    """Lets one run in at a time, and counts."""

    def __init__(self) -> None:
        self.inside = self.most = self.entered = 0
        self.thread_lock = threading.Lock()
        self.lock = asyncio.Lock()

    def come(self, step: int) -> None:
        self.inside += step
        self.most = max(self.most, self.inside)
        self.entered += step > 0

    async def __aenter__(self) -> None:
        await self.lock.acquire()
        self.come(1)

    async def __aexit__(self, *raised: Any) -> None:
        self.come(-1)
        self.lock.release()

    def __enter__(self) -> None:
        self.thread_lock.acquire()
        self.come(1)

    def __exit__(self, *raised: Any) -> None:
        self.come(-1)
        self.thread_lock.release()


running = most = 0


async def auto_counted(city: str) -> str:
    global running, most
    running += 1
    most = max(most, running)
    await asyncio.sleep(0)
    running -= 1
    return city


@pytest.mark.parametrize("through", ["itself", "a wrapper", "a thread"])
def test_watched_tools_wait_in_what_holds_them(prof, records, through: str):
    global most
    most = 0
    gate = Turnstile()
    names: list[str] = []

    def hold(name: str) -> Turnstile:
        names.append(name)
        return gate

    def behind(**arguments: Any) -> Any:
        return auto_counted(**arguments)

    runs = {
        "itself": ("auto_counted", auto_counted),
        "a wrapper": ("auto_counted", behind),
        "a thread": ("auto_sync", lambda **arguments: asyncio.to_thread(auto_sync, **arguments)),
    }
    name, run = runs[through]
    prof.auto(find_tools=True)
    prof.hold = hold
    with prof.loop():
        asyncio.run(ask_async(async_client(Model()), "rome oslo bern", name, run))
    assert names == [name] * 3
    assert (gate.most, gate.entered) == (1, 3)
    assert most == (0 if through == "a thread" else 1)
    assert [call.name for call in records[0].tool_calls] == [name] * 3


def test_a_tool_inside_a_held_one_does_not_wait(prof, records):
    gate = Turnstile()

    async def auto_outer(city: str) -> str:
        return await inner(city=city)

    inner = prof.tool(auto_async)
    prof.auto(find_tools=True)
    prof.hold = lambda name: gate
    with prof.loop():
        answer = asyncio.run(ask_async(async_client(Model()), "rome oslo", "auto_outer", auto_outer))
    assert answer == "done"
    assert gate.entered == 2
    assert sorted(call.name for call in records[0].tool_calls) == ["auto_async"] * 2 + ["auto_outer"] * 2


def test_what_fails_while_it_is_asked_what_holds_a_tool_holds_nothing(records):
    prof = Profiler(sinks=[records.append])

    def hold(name: str) -> Any:
        raise ValueError(name)

    prof.auto(find_tools=True)
    prof.hold = hold
    try:
        with prof.loop():
            asyncio.run(ask_async(async_client(Model()), "rome oslo", "auto_async", auto_async))
    finally:
        prof.stop()
    assert shape(records[0]) == [[("auto_async", True)] * 2, []]
    assert prof.failures["tool"] == 2


def test_a_copy_of_a_client_is_the_client_to_what_looks_for_more(prof, monkeypatch):
    looks: list[Any] = []
    monkeypatch.setattr(auto, "functions_of", lambda names: looks.append(names) or {})
    asked: list[Any] = []
    prof.auto(find_tools=True, on_client=asked.append)
    client = sync_client(Model())
    for _ in range(5):
        ask(client.with_options(timeout=5), "rome", "auto_nowhere", lambda city: city)
    assert len(looks) == 1
    assert (len(prof.found), len(asked)) == (1, 5)  # each copy may have a URL of its own


def test_clients_made_for_each_request_are_said_once_and_not_kept(prof, monkeypatch):
    looks: list[Any] = []
    monkeypatch.setattr(auto, "functions_of", lambda names: looks.append(names) or {})
    prof.auto(find_tools=True)
    http_clients = []
    for _ in range(10):
        client = sync_client(Model())
        http_clients.append(weakref.ref(client._client))
        ask(client, "rome", "auto_nowhere", lambda city: city)
    del client
    gc.collect()
    assert [one() for one in http_clients] == [None] * 10
    assert len(prof.found) == 1
    assert len(looks) == auto.MOST_IN_VAIN + 1


def test_a_client_without_a_hash_is_watched_like_any_other(prof, records):
    class Compared(openai.OpenAI):
        __eq__ = lambda self, other: True  # noqa: E731
        __hash__ = None

    prof.auto()
    client = Compared(
        api_key="k", base_url="http://model.test/v1", http_client=httpx2.Client(transport=Model())
    )
    with prof.loop():
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    assert len(records[0].rounds) == 1


def test_no_thread_s_request_leaves_before_its_client_has_been_taken(prof):
    going, waiting, sent = threading.Event(), threading.Event(), []

    class Noting(Model):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            sent.append(request.url.host)
            return super().handle_request(request)

    def point(client: Any) -> None:
        going.set()
        assert waiting.wait(60)
        client.base_url = "http://127.0.0.1:9/v1"

    prof.auto(on_client=point)
    client = sync_client(Noting(), base_url="https://example.com/v1")

    def run() -> None:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(run)
        assert going.wait(60)
        second = pool.submit(run)
        waiting.set()
        first.result(60), second.result(60)
    assert sent == ["127.0.0.1", "127.0.0.1"]


def test_a_client_that_was_refused_is_refused_again(prof):
    def refuse(client: Any) -> None:
        raise UsageError("another host")

    prof.auto(on_client=refuse)
    client = sync_client(Model())
    for _ in range(2):
        with pytest.raises(UsageError, match="another host"):
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])


def test_conversations_that_have_their_answer_are_looked_at_no_more_and_end_when_there_are_many(
    prof, records, monkeypatch
):
    monkeypatch.setattr(conversations, "MOST_ANSWERED", 2)
    prof.auto(find_tools=True, conversations=True)
    client = sync_client(Model())
    for number in range(5):
        assert ask(client, f"city{number}", "auto_sync", auto_sync) == "done"
        assert len(prof._open) <= 1
    assert len(records) == 2  # the oldest two of the four before
    assert [shape(record) for record in records] == [[[("auto_sync", True)], []]] * 2


def test_a_conversation_that_was_answered_may_go_on_and_ask_for_calls_again(prof, records):
    prof.auto(conversations=True)
    client, contexts = sync_client(Model()), [contextvars.copy_context() for _ in range(2)]
    question = [{"role": "user", "content": "x"}]
    for context in contexts:
        context.run(client.chat.completions.create, model="m", messages=question)
    more: list[Any] = [*question, {"role": "assistant", "content": "done"}, *question]
    contexts[0].run(client.chat.completions.create, model="m", messages=more)
    contexts[1].run(client.chat.completions.create, model="m", messages=question)
    assert len(prof._open) == 1
    prof.stop()
    assert sorted(len(record.rounds) for record in records) == [1, 1, 2]


@pytest.mark.parametrize("first_stops_first", [True, False])
def test_two_profilers_leave_a_client_in_any_order(records, first_stops_first: bool):
    seen: list[LoopRecord] = []
    profilers = [Profiler([records.append]).auto(), Profiler([seen.append]).auto()]
    model = Model()
    client = sync_client(model)

    def run() -> None:
        with profilers[0].loop(), profilers[1].loop():
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])

    run()
    profilers[0 if first_stops_first else 1].stop()
    run()
    rounds = [[len(record.rounds) for record in one] for one in (records, seen)]
    # The one that came last has each request.
    assert rounds == ([[0, 0], [1, 1]] if first_stops_first else [[0, 1], [1, 0]])
    assert [len(one.rounds[0].model.attempts) for one in seen if one.rounds] == [1] * sum(rounds[1])
    profilers[1 if first_stops_first else 0].stop()
    assert client._client._transport is model


def test_conversations_step_by_step_in_one_task_stay_apart_though_ids_are_used_twice(prof, records):
    class SameIds(Model):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            self.numbers = itertools.count()
            return super().handle_request(request)

    prof.auto(find_tools=True, conversations=True)
    client, tools = sync_client(SameIds()), chat_tools("auto_sync")
    several: list[list[Any]] = [[{"role": "user", "content": city}] for city in ("rome", "oslo", "lima")]
    for step in range(2):
        for messages in several:
            reply = client.chat.completions.create(model="m", messages=messages, tools=tools).choices[0]
            messages.append(reply.message)
            for call in reply.message.tool_calls or ():
                result = auto_sync(**json.loads(call.function.arguments))
                messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        assert step or {messages[2]["tool_call_id"] for messages in several} == {"c0"}
    for messages in several:
        client.chat.completions.create(model="m", messages=[*messages, {"role": "user", "content": "more"}])
    prof.stop()
    assert [shape(record) for record in records] == [[[("auto_sync", True)], [], []]] * 3


@pytest.mark.parametrize("one_client", [False, True])
def test_tools_that_are_made_for_each_request_are_found_where_it_is_sent(
    prof, records, monkeypatch, one_client: bool
):
    looks: list[Any] = []
    look = auto.functions_of
    monkeypatch.setattr(auto, "functions_of", lambda names: looks.append(names) or look(names))
    prof.auto(find_tools=True)

    shared = sync_client(Model())

    def agent() -> str:
        def auto_anew(city: str) -> str:
            return city.upper()

        registry = {"auto_anew": auto_anew}
        return ask(shared if one_client else sync_client(Model()), "rome", "auto_anew", registry["auto_anew"])

    for _ in range(5):
        with prof.loop():
            assert agent() == "done"
    assert [shape(record) for record in records] == [[[("auto_anew", True)], []]] * 5
    assert len(looks) == 1
    assert len([one for one in prof.found if one.kind == "tool"]) == 1
    gc.collect()
    assert not [*prof._automatic._exchanged]


def test_a_conversation_whose_tools_nobody_watches_has_been_answered_all_the_same(prof):
    prof.auto(conversations=True)
    client = sync_client(Model())
    for _ in range(3):
        ask(client, "rome", "auto_unwatched", lambda city: city)
    assert len(prof._open) == 1


@pytest.mark.parametrize("how", ["tool", "dispatcher"])
def test_what_is_named_to_another_profiler_is_known_to_the_one_that_looks_for_tools(prof, records, how: str):
    own = Profiler(sinks=[])
    if how == "tool":
        run = own.tool(lambda city: city, name="auto_named")
    else:
        call_tool = own.dispatcher(lambda name, arguments: arguments["city"], name="name")
        run = lambda city: call_tool("auto_named", {"city": city})  # noqa: E731
    prof.auto(find_tools=True)
    with prof.loop():
        ask(sync_client(Model()), "rome oslo", "auto_named", run)
    assert shape(records[0]) == [[("auto_named", True)] * 2, []]
    assert (own.orphan_calls, prof.orphan_calls) == (0, 0)
    prof.stop()
    run("alone")
    assert (own.orphan_calls, prof.orphan_calls) == (1, 0)
