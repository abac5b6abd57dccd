"""Cached and reasoning tokens and quotas, what content is refused, and the log. No sockets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from profiler.emulator.conversation import ApiError
from profiler.emulator.faults import status_error
from profiler.emulator.http1 import Exchange, HttpReply
from profiler.emulator.journal import Journal
from profiler.emulator.scheduler import Timer
from profiler.emulator.server import Emulator
from profiler.scenarios import parse_scenario

SCHEMA: Any = {"type": "object", "properties": {"q": {"type": "string"}}}
USER = {"role": "user", "content": "x"}
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (
        "/v1/chat/completions",
        {
            "messages": [USER],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
        },
    ),
    "responses": (
        "/v1/responses",
        {"input": "x", "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}]},
    ),
    "messages": (
        "/v1/messages",
        {"messages": [USER], "tools": [{"name": "f", "input_schema": SCHEMA}], "max_tokens": 9999},
    ),
}


class NoTimers:
    """A scheduler of which nothing is ever due."""

    def at(self, due_ns: int, callback: Any) -> Timer:
        return Timer(due_ns, callback)


class Line:
    """A connection that keeps what it is given."""

    def pump(self) -> None:
        pass


def emulator(model: str = "", rest: str = "", scale: float = 0, journal: Journal | None = None) -> Emulator:
    text = f"""
description = "d"
prompt = "p"
time_scale = {scale}
[model]
first_token = 1
tokens_per_second = 10
{model}
[loop]
rounds = 1
fan_out = 2
[tools.f]
description = "F."
duration = 0
{rest}
"""
    scenario = parse_scenario(text, name="n", source="n.toml")
    return Emulator(scenario, 0, None, journal)  # type: ignore[arg-type]


def post(target: Emulator, path: str, body: Any, **headers: str) -> HttpReply:
    fields = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    data = body if isinstance(body, bytes) else json.dumps({"model": "m", **body}).encode()
    exchange = Exchange(Line(), b"POST", path.encode(), None, fields, data, True, True)  # type: ignore[arg-type]
    target(exchange)
    assert exchange.reply is not None
    return exchange.reply


def ask(target: Emulator, api: str, **more: Any) -> HttpReply:
    path, body = BODIES[api]
    return post(target, path, {**body, **more})


# Cache and reasoning

CACHED = "context_tokens = 50000\ncached_share = 0.6\ncache_written_share = 0.5\nreasoning_tokens = 30\n"


def test_parts_of_input_are_shares_of_all_of_it() -> None:
    journal = Journal()
    reply = ask(emulator(CACHED, journal=journal), "messages")
    usage = json.loads(reply.body)["usage"]
    [entry] = journal.entries()
    cached, written = int(entry["input_tokens"] * 0.6), entry["cache_written_tokens"]
    assert entry["cached_tokens"] == usage["cache_read_input_tokens"] == cached
    assert written == int((entry["input_tokens"] - cached) * 0.5)
    assert usage["cache_creation"] == {"ephemeral_5m_input_tokens": written, "ephemeral_1h_input_tokens": 0}
    assert usage["input_tokens"] + usage["cache_creation_input_tokens"] + cached == entry["input_tokens"]
    assert 50_000 < entry["input_tokens"] < 50_200
    hour = json.loads(ask(emulator(CACHED + 'cache_ttl = "1h"\n'), "messages").body)["usage"]
    assert hour["cache_creation"] == {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": written}


@pytest.mark.parametrize("api", BODIES)
def test_journal_of_a_scenario_without_cache_counts_none(api: str) -> None:
    journal = Journal()
    target = emulator(journal=journal)
    ask(target, api)
    post(target, BODIES[api][0], b"{")
    answered, refused = journal.entries()
    names = ("cached_tokens", "cache_written_tokens", "reasoning_tokens")
    assert [answered[name] for name in names] == [0, 0, 0]
    assert answered["input_tokens"] > 0 < answered["output_tokens"]
    assert [refused[name] for name in ("input_tokens", "output_tokens", *names)] == [None] * 5


@pytest.mark.parametrize("api", BODIES)
def test_reasoning_comes_first_and_takes_its_time(api: str) -> None:
    plain, thinking = (
        ask(emulator(model, scale=1.0), api, stream=True) for model in ("", "reasoning_tokens = 40")
    )
    assert plain.frames is not None
    assert thinking.frames is not None
    kinds = {
        "chat": b'"reasoning_content":',
        "responses": b"summary_text.delta",
        "messages": b"thinking_delta",
    }
    thought = [due for due, frame in thinking.frames if kinds[api] in frame]
    calls = {
        "chat": b'"arguments":',
        "responses": b"function_call_arguments.delta",
        "messages": b"input_json",
    }
    called = [due for due, frame in thinking.frames if calls[api] in frame]
    assert thought == sorted(thought)
    assert len(thought) == 5  # of 8 tokens each
    assert thought[-1] - thinking.due_ns == 40 * 10**8  # at 10 tokens a second
    assert called[0] >= thought[-1]
    spans = [reply.frames[-1][0] - reply.due_ns for reply in (plain, thinking) if reply.frames]
    assert spans[1] - spans[0] == 40 * 10**8


@pytest.mark.parametrize("api", BODIES)
def test_reasoning_counts_within_the_limit_of_output(api: str) -> None:
    limit = {"chat": "max_tokens", "responses": "max_output_tokens", "messages": "max_tokens"}[api]
    body = json.loads(ask(emulator("reasoning_tokens = 40"), api, **{limit: 20}).body)
    if api == "chat":
        assert body["choices"][0]["finish_reason"] == "length"
        assert "tool_calls" not in body["choices"][0]["message"]
        assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 20
    elif api == "responses":
        assert (body["status"], [item["type"] for item in body["output"]]) == ("incomplete", ["reasoning"])
    else:
        assert (body["stop_reason"], [b["type"] for b in body["content"]]) == (
            "max_tokens",
            ["thinking", "text"],
        )


@pytest.mark.parametrize(("api", "admitted"), [("chat", 2), ("responses", 2), ("messages", 4)])
def test_quota_counts_cache_reads_on_openai_and_not_on_anthropic(api: str, admitted: int) -> None:
    # A request has 10,000 tokens, half of them from the cache; 20,500 a minute in a bucket of one minute.
    model = "context_tokens = 10000\ncached_share = 0.5\ncache_written_share = 1\n"
    quota = "[quota]\ninput_tokens_per_minute = 20500\noutput_tokens_per_minute = 600\n"
    target = emulator(model, quota, scale=1.0)
    statuses = [ask(target, api).status for _ in range(6)]
    assert statuses == [200] * admitted + [429] * (6 - admitted)


# Headers and bodies of refusals, by dialect


@pytest.mark.parametrize(
    ("dialect", "expected"),
    [
        ("openai", {"x-ratelimit-limit-requests", "x-ratelimit-reset-requests", "retry-after-ms"}),
        ("mistral", {"x-ratelimit-limit-req-minute", "x-ratelimit-remaining-req-minute", "retry-after"}),
        ("azure", {"x-ratelimit-remaining-requests", "retry-after-ms", "retry-after"}),
        ("gemini", {"retry-after"}),
    ],
)
def test_dialects_have_headers_of_their_own(dialect: str, expected: set[str]) -> None:
    target = emulator(f'dialect = "{dialect}"', "[quota]\nrequests_per_minute = 1\n", scale=1.0)
    assert ask(target, "chat").status == 200
    reply = ask(target, "chat")
    names = {line.partition(":")[0] for line in reply.headers.decode().splitlines()}
    assert reply.status == 429
    assert expected <= names
    assert ("x-ratelimit-reset-requests" in names) == (dialect == "openai")
    body = json.loads(reply.body)
    if dialect == "gemini":
        assert body[0]["error"]["status"] == "RESOURCE_EXHAUSTED"
    elif dialect == "mistral":
        assert (body["object"], body["code"]) == ("error", "1300")
    elif dialect == "azure":
        assert body["error"]["code"] == "429"


@pytest.mark.parametrize("dialect", ["openai", "vllm"])
def test_scenario_may_name_fields_that_the_server_does_not_know(dialect: str) -> None:
    target = emulator(f'dialect = "{dialect}"\nrefuses = ["stream_options", "parallel_tool_calls"]')
    assert ask(target, "chat").status == 200
    assert ask(target, "chat", parallel_tool_calls=True).status == 400
    reply = ask(target, "chat", stream=True, stream_options={"include_usage": True})
    assert "stream_options" in json.loads(reply.body)["error"]["message"]


# Content

NO_CONTENT = ({"a": 1}, 17, 1.5, [1, 2], ["x"], True, None, [{"a": 1}], [{"type": "text"}], [{"type": 3}])
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def with_result(api: str, content: Any) -> dict[str, Any]:
    """A request whose one call came back with `content`."""
    if api == "chat":
        result = {"role": "tool", "tool_call_id": "c", "content": content}
        return {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}, result]}
    if api == "responses":
        call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
        return {"input": [USER, call, {"type": "function_call_output", "call_id": "c", "output": content}]}
    use = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "c", "content": content}
    return {
        "messages": [USER, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    }


def with_message(api: str, role: str, content: Any) -> dict[str, Any]:
    message = {"role": role, "content": content}
    return {"input": [message, USER]} if api == "responses" else {"messages": [message, USER]}


@pytest.mark.parametrize("content", NO_CONTENT, ids=str)
@pytest.mark.parametrize("api", BODIES)
def test_content_that_is_neither_text_nor_parts_is_refused(api: str, content: Any) -> None:
    target = emulator()
    assert ask(target, api, **with_result(api, content)).status == 400
    assert ask(target, api, **with_message(api, "user", content)).status == 400
    assert ask(target, api, **with_message(api, "assistant", content)).status == 400
    if api == "messages" and content is not None:
        assert ask(target, api, system=content).status == 400
    elif api != "messages":
        assert ask(target, api, **with_message(api, "system", content)).status == 400


@pytest.mark.parametrize("api", BODIES)
def test_content_of_text_and_of_the_apis_own_parts_is_accepted(api: str) -> None:
    part = {"type": "input_text" if api == "responses" else "text", "text": "t"}
    target = emulator()
    for content in ("", "t", [part], [part, part]):
        assert ask(target, api, **with_result(api, content)).status == 200
        assert ask(target, api, **with_message(api, "user", content)).status == 200
    if api == "messages":
        blocks: list[Any] = [
            {"type": "image", "source": {}},
            {"type": "document", "source": {}},
            {"type": "search_result", "source": "s", "title": "t", "content": []},
        ]
        assert ask(target, api, **with_result(api, blocks)).status == 200


def test_first_wrong_part_is_named() -> None:
    reply = ask(emulator(), "chat", **with_result("chat", [{"type": "text", "text": "t"}, 2]))
    assert json.loads(reply.body)["error"] == {
        "message": (
            "Invalid type for 'messages[2].content[1]': expected an object, but got an integer instead."
        ),
        "type": "invalid_request_error",
        "param": "messages[2].content[1]",
        "code": "invalid_type",
    }
    reply = ask(emulator(), "messages", **with_result("messages", {"a": 1}))
    assert json.loads(reply.body)["error"]["message"] == (
        "messages.2.content.0.tool_result.content: Input should be a valid list"
    )


def test_fields_that_servers_add_are_accepted_when_they_come_back() -> None:
    target = emulator()
    signed = {**CALL, "extra_content": {"google": {"thought_signature": "s"}}}
    message = {"role": "assistant", "content": None, "tool_calls": [signed], "reasoning_content": "r", "x": 1}
    result = {"role": "tool", "tool_call_id": "c", "content": "r"}
    assert ask(target, "chat", messages=[USER, message, result]).status == 200
    blocks = [
        {"type": "thinking", "thinking": "t", "signature": "s"},
        {"type": "redacted_thinking", "data": "d"},
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []},
        {"type": "text", "text": "t", "citations": None},
    ]
    assert (
        ask(target, "messages", messages=[USER, {"role": "assistant", "content": blocks}, USER]).status == 200
    )
    items = [{"type": "reasoning", "id": "rs", "summary": []}, {"type": "web_search_call", "id": "ws"}]
    assert ask(target, "responses", input=[USER, *items, USER]).status == 200


def test_thinking_that_is_asked_for_has_to_come_back_before_calls() -> None:
    use = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
    thought = {"type": "thinking", "thinking": "t", "signature": "s"}
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "r"}]}
    asked = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
    statuses = [
        ask(
            emulator(), "messages", messages=[USER, {"role": "assistant", "content": c}, result], **asked
        ).status
        for c in ([use], [thought, use], [{"type": "redacted_thinking", "data": "d"}, use])
    ]
    assert statuses == [400, 200, 200]


def test_ids_that_are_the_same_are_refused_where_no_fault_makes_them() -> None:
    uses = [{"type": "tool_use", "id": "c", "name": "f", "input": {}} for _ in range(2)]
    reply = ask(emulator(), "messages", messages=[USER, {"role": "assistant", "content": uses}])
    assert "`tool_use` ids must be unique" in json.loads(reply.body)["error"]["message"]


# Tool requests

FAULT = '[[faults]]\nkind = "{}"\nprobability = 1\n'


@pytest.mark.parametrize("kind", ["duplicate_ids", "missing_ids", "empty_ids"])
def test_tool_requests_find_their_calls_though_ids_say_nothing(kind: str) -> None:
    journal = Journal()
    target = emulator(rest=FAULT.format(kind), journal=journal)
    message = json.loads(ask(target, "chat").body)["choices"][0]["message"]
    for n, call in enumerate(reversed(message["tool_calls"])):
        arguments = json.loads(call["function"]["arguments"])
        post(target, "/tools/f", arguments, x_toolloop_call=call.get("id", f"made_up_{n}"))
    places = [(entry["loop"], entry["round"], entry["call"]) for entry in journal.entries(kind="tool")]
    assert places == [(0, 0, 1), (0, 0, 0)]


# The log


def logged() -> tuple[Emulator, list[str]]:
    lines: list[str] = []
    rest = "[tools.f.capacity]\nconcurrent = 1\nrequests_per_second = 0.001\n"
    model = 'api_keys = ["sk-secret"]\n'
    return emulator(model, rest, scale=1.0, journal=Journal(log=lines.append)), lines


def test_log_has_a_line_for_each_refusal_and_nothing_of_what_was_sent() -> None:
    target, lines = logged()
    key = {"authorization": "Bearer sk-secret"}
    path, body = BODIES["chat"]
    assert post(target, path, {**body}, **key).status == 200
    assert lines == []
    post(target, path, body, authorization="Bearer sk-private")
    post(target, path, {**body, **with_result("chat", {"my": "secret"})}, **key)
    post(target, path, {"messages": [{"role": "my secret", "content": "x"}]}, **key)
    post(target, path, b"my secret", **key)
    post(target, "/v1/embeddings", {})
    post(target, "/tools/f/secret/place", {})
    assert lines == [
        "POST /v1/chat/completions 401 Incorrect API key provided.",
        "POST /v1/chat/completions 400 Invalid type for 'messages[2].content': expected one of a string or"
        " array of objects, but got an object instead.",
        "POST /v1/chat/completions 400 Invalid value for 'messages[0].role'. Supported values are: 'system',"
        " 'assistant', 'user', 'function', 'tool', and 'developer'.",
        *lines[3:4],
        "POST /v1/embeddings 404 Invalid URL (POST /v1/embeddings)",
        "POST /tools/f 404 unknown path",
    ]
    assert lines[3].startswith("POST /v1/chat/completions 400 We could not parse the JSON body")
    assert "secret" not in "".join(lines)


def test_log_names_faults_and_is_one_line_each() -> None:
    lines: list[str] = []
    target = emulator(rest=FAULT.format("http_503"), journal=Journal(log=lines.append))
    assert ask(target, "messages").status == 503
    journal = Journal(log=lines.append)
    journal.refused(b"POST", b"/x", 400, "two\nlines " + "a" * 9999)
    assert lines[0] == "POST /v1/messages 503 fault http_503"
    assert lines[1].startswith("POST /x 400 two lines aaa")
    assert len(lines[1]) < 450
    error: ApiError = status_error("http_429", "openai", 1)
    assert (error.status, error.log) == (429, "fault http_429")


# Replies that take a stated time, with tokens that are stated

WHOLE = "duration = 4\noutput_tokens = 200\ninput_tokens = 5000\n"


@pytest.mark.parametrize("api", BODIES)
@pytest.mark.parametrize("stream", [False, True])
def test_reply_takes_its_time_and_says_its_tokens(api: str, stream: bool) -> None:
    journal = Journal()
    reply = ask(emulator(WHOLE, scale=1.0, journal=journal), api, stream=stream)
    [entry] = journal.entries()
    assert (entry["input_tokens"], entry["output_tokens"]) == (5000, 200)
    received_ns = entry["received_ns"]
    if not stream:
        assert reply.due_ns - received_ns == pytest.approx(4e9, abs=10)
        usage = json.loads(reply.body)["usage"]
        assert 200 in usage.values()
        return
    assert reply.frames is not None
    times = [due for due, _ in reply.frames]
    assert times == sorted(times)
    assert reply.due_ns - received_ns == pytest.approx(1e9, abs=10)
    assert times[-1] - received_ns == pytest.approx(4e9, abs=10)


@pytest.mark.parametrize("few", [1, 5])
def test_reply_of_few_tokens_streams_in_order(few: int) -> None:
    reply = ask(emulator(f"duration = 2\noutput_tokens = {few}\n", scale=1.0), "chat", stream=True)
    assert reply.frames is not None
    times = [due for due, _ in reply.frames]
    assert times == sorted(times)
    assert times[-1] - reply.due_ns == pytest.approx(1e9, abs=10)


def test_stated_tokens_are_what_quotas_count_and_keep_to_the_request_s_limit() -> None:
    quota = "[quota]\ninput_tokens_per_minute = 3000\noutput_tokens_per_minute = 3000\n"
    target = emulator(WHOLE, quota, scale=1.0)
    assert [ask(target, "chat").status for _ in range(2)] == [200, 429]  # 5,200 of 6,000
    journal = Journal()
    ask(emulator(WHOLE, journal=journal), "chat", max_tokens=150)
    assert journal.entries()[0]["output_tokens"] == 150


@pytest.mark.parametrize(("announced", "headers"), [("exact", True), ("seconds", True), ("none", False)])
def test_refusals_for_a_quota_announce_what_is_stated_and_take_their_time(
    announced: str, headers: bool
) -> None:
    journal = Journal()
    quota = f'[quota]\nrequests_per_minute = 0.698\nretry_after = "{announced}"\nrefusal_seconds = 0.25\n'
    target = emulator("", quota, scale=1.0, journal=journal)
    ask(target, "chat")
    reply = ask(target, "chat")
    assert reply.status == 429
    assert (b"retry-after: 86" in reply.headers) is headers
    assert (b"retry-after-ms: 86000" in reply.headers) is (announced == "seconds")
    assert reply.due_ns - journal.entries()[1]["received_ns"] == 250_000_000


def test_refusals_of_a_tool_take_their_time_and_tools_of_a_server_share_its_capacity() -> None:
    rest = """server = "both"
[tools.g]
description = "G."
duration = 1
server = "both"
[servers.both]
concurrent = 1
retry_after = 2
refusal_seconds = 0.25
"""
    journal = Journal()
    scenario = emulator("", rest, scale=1.0)._scenario
    target = Emulator(scenario, 0, NoTimers(), journal)  # type: ignore[arg-type]

    def call(tool: str) -> Exchange:
        exchange = Exchange(Line(), b"POST", f"/tools/{tool}".encode(), None, {}, b"{}", True, True)  # type: ignore[arg-type]
        target(exchange)
        return exchange

    first, second = call("g"), call("f")
    assert first.reply is None  # it is being served
    assert second.reply is not None
    assert (second.reply.status, b"retry-after: 2" in second.reply.headers) == (429, True)
    assert second.reply.due_ns - second.received_ns == 250_000_000
