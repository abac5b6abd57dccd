"""The application without sockets: loop numbers, the ring, the store, what is scheduled when."""

from __future__ import annotations

import gc
import json
import weakref
from typing import Any

import pytest
from msgspec.structs import replace

from profiler.emulator import anthropic_messages, openai_chat
from profiler.emulator.conversation import Carried, MadeCall, Said, answer, limited
from profiler.emulator.draws import Place, decode
from profiler.emulator.http1 import Exchange, HttpReply
from profiler.emulator.journal import Journal
from profiler.emulator.openai_responses import Store, after
from profiler.emulator.server import Emulator
from profiler.emulator.tool_service import population, weather
from profiler.scenarios import load_scenario

USER = {"role": "user", "content": "x"}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}},
    }
]


class Line:
    """A connection that keeps what it is given."""

    def pump(self) -> None:
        pass


def ask(emulator: Emulator, method: str, path: str, body: Any = None, **headers: str) -> HttpReply:
    fields = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    path, _, query = path.partition("?")
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    exchange = Exchange(Line(), method.encode(), path.encode(), query.encode(), fields, data, True, True)  # type: ignore[arg-type]
    emulator(exchange)
    assert exchange.reply is not None
    return exchange.reply


@pytest.fixture
def emulator() -> Emulator:
    return Emulator(load_scenario("instant"), 0, None)  # type: ignore[arg-type]


def chat(emulator: Emulator, messages: list[Any] | None = None, **headers: str) -> dict[str, Any]:
    body = {"model": "m", "messages": messages or [USER], "tools": TOOLS}
    reply = ask(emulator, "POST", "/v1/chat/completions", body, **headers)
    assert reply.status == 200, reply.body
    message: dict[str, Any] = json.loads(reply.body)["choices"][0]["message"]
    return message


def place(message: dict[str, Any], n: int = 0) -> Place | None:
    return decode(message["tool_calls"][n]["id"])


def test_loop_numbers_from_header_history_and_the_next_free(emulator: Emulator) -> None:
    assert place(chat(emulator)) == Place(0, 0, 0)
    assert place(chat(emulator), 2) == Place(1, 0, 2)
    assert place(chat(emulator, x_toolloop_loop="40")) == Place(40, 0, 0)
    assert place(chat(emulator)) == Place(41, 0, 0)
    assert place(chat(emulator, x_toolloop_loop="not a number")) == Place(42, 0, 0)
    assert place(chat(emulator, x_toolloop_loop="9" * 5000, x_stainless_retry_count="9" * 5000)) == Place(
        43, 0, 0
    )
    first = chat(emulator)
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "r"} for call in first["tool_calls"]]
    answer = chat(emulator, [USER, first, *results])
    assert answer["content"] == "From 3 results: r; r; r."
    # A new question in the same conversation is a new loop.
    assert place(chat(emulator, [USER, first, *results, answer, USER])) == Place(45, 0, 0)


def test_same_place_asked_twice_gets_other_ids(emulator: Emulator) -> None:
    first, second = (chat(emulator, x_toolloop_loop="3") for _ in range(2))
    assert [c["function"] for c in first["tool_calls"]] == [c["function"] for c in second["tool_calls"]]
    ids = {call["id"] for message in (first, second) for call in message["tool_calls"]}
    assert len(ids) == 6


def test_instant_schedules_nothing(emulator: Emulator) -> None:
    # The fixture's scheduler is None: any timer would have failed.
    body = {"model": "m", "messages": [USER], "tools": TOOLS, "stream": True}
    reply = ask(emulator, "POST", "/v1/chat/completions", body)
    assert reply.frames is not None
    assert len({due for due, _ in reply.frames}) == 1
    assert ask(emulator, "GET", "/tools/weather?city=Oslo").due_ns == 0


def test_journal_is_a_ring_that_counts_what_fell_out() -> None:
    emulator = Emulator(load_scenario("instant"), 0, None, Journal(size=4))  # type: ignore[arg-type]
    for n in range(6):
        ask(emulator, "GET", f"/tools/weather?city={n}", x_toolloop_trial=str(n))
    body = json.loads(ask(emulator, "GET", "/emulator/journal").body)
    assert body["dropped"] == 2
    assert [entry["trial"] for entry in body["entries"]] == ["2", "3", "4", "5"]
    ask(emulator, "DELETE", "/emulator/journal")
    body = json.loads(ask(emulator, "GET", "/emulator/journal").body)
    assert (body["dropped"], body["entries"]) == (0, [])


def test_entry_ends_once_and_does_not_keep_its_journal() -> None:
    ended: list[str] = []
    journal = Journal(kept=lambda entry: ended.append(entry.outcome))
    entry = journal.open("model", "chat", 5)
    entry.on_finished = lambda: ended.append("on_finished")
    entry.status = 200
    entry.finished(9, "complete")
    entry.finished(11, "disconnected")
    assert ended == ["on_finished", "complete"]
    assert (entry.finished_ns, journal.stats()["requests"]) == (9, {"chat": {"200": 1}})
    left = weakref.ref(journal)
    del journal
    gc.collect()  # which does not look into entries
    assert left() is None


def test_store_forgets_the_least_recently_used() -> None:
    store = Store(size=2)
    from profiler.emulator.conversation import ApiError

    states = [Carried(n, n, None, (), (), n) for n in range(3)]
    store.put("a", states[0])
    store.put("b", states[1])
    assert store.get("a") == states[0]
    store.put("c", states[2])
    with pytest.raises(ApiError) as caught:
        store.get("b")
    assert caught.value.code == "previous_response_not_found"
    assert store.get("a") == states[0]


def test_limits_cut_text_and_calls() -> None:
    text = Said("a" * 100, (), "stop", 1, 26)
    assert limited(text, 26) is text
    assert limited(text, 5) == Said("a" * 20, (), "length", 1, 5)
    call = MadeCall("t", "f", '{"city":"Paris","n":1}')  # 14 tokens
    calls = Said(None, (call, call), "tool_calls", 1, 28)
    assert limited(calls, 28).finish == "tool_calls"
    assert limited(calls, 14).calls == (call,)
    assert limited(calls, 24).calls == (call, replace(call, arguments='{"city"'))
    assert limited(calls, 3) == Said(None, (), "length", 1, 3)


def test_tool_requests_that_belong_to_no_call_get_a_place_of_their_own(emulator: Emulator) -> None:
    for _ in range(2):
        ask(emulator, "GET", "/tools/population?city=Oslo", x_toolloop_call="call_foreign")
    entries = json.loads(ask(emulator, "GET", "/emulator/journal").body)["entries"]
    assert entries[0]["call_id"] == "call_foreign"
    assert entries[0]["loop"] != entries[1]["loop"]
    assert min(entry["loop"] for entry in entries) > 1 << 62


OWN = [
    ("GET", "/emulator/journal"),
    ("DELETE", "/emulator/journal"),
    ("GET", "/emulator/stats"),
    ("GET", "/emulator/what-is-not-there"),
    ("OPTIONS", "/emulator/journal"),
    ("GET", "/metrics"),
]
FOREIGN = [
    {"host": "evil.example"},
    {"host": "127.0.0.1:8100", "origin": "http://evil.example"},
    {"host": "127.0.0.1:8100", "origin": "null"},
]


@pytest.mark.parametrize(("method", "path"), OWN)
@pytest.mark.parametrize("headers", FOREIGN)
def test_own_endpoints_refuse_strangers_and_do_nothing(
    emulator: Emulator, method: str, path: str, headers: dict[str, str]
) -> None:
    # The model APIs and the tools answer everybody.
    assert (
        ask(emulator, "POST", "/v1/chat/completions", {"model": "m", "messages": [USER]}, **headers).status
        == 200
    )
    assert ask(emulator, "GET", "/tools/weather?city=Oslo", **headers).status == 200
    assert ask(emulator, "GET", "/healthz", **headers).status == 200
    refused = ask(emulator, method, path, **headers)
    assert refused.status == 403
    assert (
        "the emulator's own endpoints answer localhost alone" in json.loads(refused.body)["error"]["message"]
    )
    assert len(json.loads(ask(emulator, "GET", "/emulator/journal").body)["entries"]) == 2


def test_own_endpoints_in_absolute_form_go_by_the_host_in_it(emulator: Emulator) -> None:
    local = {"host": "localhost:8100"}
    assert ask(emulator, "GET", "http://localhost:8100/emulator/stats", **local).status == 200
    for target in ("http://evil.example", "http://localhost@evil.example", "http://"):
        for path in ("/emulator/stats", "/metrics"):
            assert ask(emulator, "GET", target + path, **local).status in (400, 403)
    body = {"model": "m", "messages": [USER]}
    assert ask(emulator, "POST", "http://evil.example/v1/chat/completions", body).status == 200


def test_hosts_that_are_given_are_answered() -> None:
    emulator = Emulator(load_scenario("instant"), 0, None, allowed=["loadtest"])  # type: ignore[arg-type]
    assert ask(emulator, "GET", "/emulator/journal", host="loadtest:8100").status == 200
    assert ask(emulator, "GET", "/emulator/journal", host="other:8100").status == 403


def test_stored_conversation_keeps_of_results_what_an_answer_shows() -> None:
    """A state may be kept for long after its client has gone, and results may be most of a body."""
    results = tuple(f"{n} " + "r" * 100_000 for n in range(5))
    state = Carried(1, 5, "call_a", (), results, 9)
    kept = after(state, Said("so", (), "stop", 1, 1), 1).results
    assert list(map(len, kept)) == [48, 48, 48, 0, 0]
    assert answer(kept) == answer(results)


@pytest.mark.parametrize("city", ["Oslo", "O" * 5_000])
def test_answers_about_long_cities_are_not_remembered(emulator: Emulator, city: str) -> None:
    for tool in (weather, population):
        tool.cache_clear()
        body = ask(emulator, "POST", f"/tools/{tool.__name__}", {"city": city}).body
        assert city.encode() in body
        assert tool.cache_info().currsize == (len(city) < 100)


DEEP = b"[" * 900 + b"]" * 900


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/chat/completions", b'{"a":[' + b"[]," * 200_000 + b"[]]}", "holds more than 200,000 values"),
        ("/v1/responses", b'{"a":[' + b"1," * 200_000 + b"1]}", "holds more than 200,000 values"),
        ("/v1/messages", b'{"a":[' + b'"",' * 900_000 + b'""]}', "holds more than 200,000 values"),
        ("/v1/messages", b'{"a":"' + b'\\",' * 900_000, "not valid JSON"),
        ("/tools/search", b'{"a":[' + b"1," * 200_000 + b"1]}", "holds more than 200,000 values"),
        ("/tools/search", b'{"a":' + DEEP + b"}", "the body is nested too deeply"),
        ("/v1/chat/completions", b'{"model":"m","messages":[{"role":' + DEEP + b"}]}", "Invalid value"),
        ("/v1/chat/completions", b'{"model":"m","n":' + DEEP + b',"messages":[1]}', "Invalid value for 'n'"),
        (
            "/v1/responses",
            b'{"model":"m","input":"x","metadata":' + DEEP + b"}",
            "Invalid 'metadata': nested",
        ),
        (
            "/v1/messages",
            b'{"model":"m","max_tokens":9,"messages":[{"role":' + DEEP + b',"content":"x"}]}',
            "Unexpected role",
        ),
        ("/v1/chat/completions", b'{"model":"' + b"m" * 300 + b'","messages":[]}', "empty array"),
        (
            "/v1/chat/completions",
            b'{"model":"' + b"m" * 300 + b'","messages":[{"role":"user","content":"x"}]}',
            "Expected a string with maximum length 256, but got a string with length 300",
        ),
        ("/v1/responses", b'{"model":"' + b"m" * 300 + b'","input":"x"}', "maximum length 256"),
        (
            "/v1/messages",
            b'{"model":"' + b"m" * 300 + b'","max_tokens":9,"messages":[{"role":"user","content":"x"}]}',
            "model: String should have at most 256 characters",
        ),
    ],
)
def test_bodies_with_too_much_in_them_are_refused_in_words(
    emulator: Emulator, path: str, body: bytes, words: str
) -> None:
    reply = ask(emulator, "POST", path, body)
    assert reply.status == 400
    assert words in json.loads(reply.body)["error"]["message"]


def test_texts_may_hold_as_many_commas_as_they_like(emulator: Emulator) -> None:
    texts = [{"role": "user", "content": text} for text in ("," * 300_000, json.dumps([["a"]] * 100_000))]
    assert ask(emulator, "POST", "/v1/chat/completions", {"model": "m", "messages": texts}).status == 200


@pytest.mark.parametrize("lenient", [False, True])
def test_results_of_thousands_of_calls_are_matched_in_one_pass(lenient: bool) -> None:
    """Quadratic work would take minutes."""
    size = 15_000
    ids = ["" if lenient else f"c{n}" for n in range(size)]
    function = {"name": "f", "arguments": "{}"}
    calls = [{"id": one, "type": "function", "function": function} for one in ids]
    results = [{"role": "tool", "tool_call_id": one, "content": "r"} for one in ids]
    messages = [USER, {"role": "assistant", "tool_calls": calls}, *results]
    assert openai_chat.parse({"model": "m", "messages": messages}, lenient=lenient).calls == size
    uses = [{"type": "tool_use", "id": one, "name": "f", "input": {}} for one in ids]
    blocks = [{"type": "tool_result", "tool_use_id": one, "content": "r"} for one in ids]
    history = [USER, {"role": "assistant", "content": uses}, {"role": "user", "content": blocks}]
    body = {"model": "m", "max_tokens": 9, "messages": history}
    assert anthropic_messages.parse(body, lenient=lenient).calls == size
