from __future__ import annotations

import json
from typing import Any

import pytest

from profiler.proxy.matching import is_name_of
from profiler.proxy.seen import Exchange
from tests.unit.proxy_data import MS, Agent, Call, Traffic, reply

CALLS: list[Call] = [("a1", "search", {"query": "x", "most": 3}), ("a2", "search", {"query": "y"})]


def ms(ns: int | None) -> float | None:
    return None if ns is None else ns / MS


def ask(
    traffic: Traffic,
    arguments: Any,
    at: float,
    name: str = "search",
    session: str = "",
    number: Any = 1,
    meta: Any = None,
) -> Exchange:
    params = {"name": name, "arguments": arguments, **({"_meta": meta} if meta else {})}
    message = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}
    headers = [("mcp-protocol-version", "2025-11-25"), *([("mcp-session-id", session)] if session else [])]
    return traffic.send("/mcp", message, at, 100, headers, kind="mcp")


def answer(number: Any = 1, **result: Any) -> dict[str, Any]:
    content = {"content": [{"type": "text", "text": "secret"}], **result}
    return {"jsonrpc": "2.0", "id": number, "result": content}


def event(message: Any) -> bytes:
    return f"event: message\ndata: {json.dumps(message)}\n\n".encode()


def begun(calls: list[Call] = CALLS) -> tuple[Traffic, Agent]:
    traffic, agent = Traffic(mcp=True), Agent("openai")
    traffic.respond(traffic.send(agent.path, agent.body, 0), reply("openai", calls), 100)
    agent.went_on(calls)
    return traffic, agent


def over(traffic: Traffic, agent: Agent, at: float = 500) -> Any:
    traffic.respond(traffic.send(agent.path, agent.body, at), reply("openai"), at + 50)
    return traffic.records[-1]


def test_call_has_its_own_times_and_those_that_were_not_seen_have_bounds() -> None:
    traffic, agent = begun()
    exchange = ask(traffic, {"most": 3.0, "query": "x", "offset": None}, 110)
    traffic.respond(exchange, answer(), 200, headers=[("server-timing", "total;dur=70")])
    record = over(traffic, agent)
    seen, bound = record.rounds[0].tool_calls
    assert (ms(seen.started_ns), ms(seen.ended_ns)) == (110, 200)
    assert (seen.derived, seen.upper_bound, seen.status) == ((), False, "ok")
    remote = seen.remote
    assert (remote.server, remote.transport, remote.protocol) == ("up.example", "http", "2025-11-25")
    assert (ms(remote.posted_ns), ms(remote.answered_ns), ms(remote.server_ns)) == (110.1, 200, 70)
    assert (remote.reply, remote.http_status, remote.sends) == ("json", 200, 1)
    assert bound.upper_bound
    assert ms(bound.duration_ns) == 400
    assert (traffic.tally.exact, traffic.tally.upper_bounds) == (1, 1)
    assert record.orphan_calls == 0


@pytest.mark.parametrize(
    ("body", "status", "error_type"),
    [
        (answer(isError=True), 200, "tool_error"),
        ({"jsonrpc": "2.0", "id": 1, "error": {"code": -32602, "message": "no"}}, 200, "rpc_-32602"),
        ({"jsonrpc": "2.0", "id": 1, "error": {"code": -32600, "message": "no"}}, 503, "http_503"),
        (b"<html>", 503, "http_503"),
        (b"not json", 200, "invalid_reply"),
    ],
)
def test_failures_are_named_as_elsewhere(body: Any, status: int, error_type: str) -> None:
    traffic, agent = begun(CALLS[:1])
    traffic.respond(ask(traffic, CALLS[0][-1], 110), body, 200, status)
    [call] = over(traffic, agent).tool_calls
    assert (call.status, call.error_type, ms(call.ended_ns)) == ("error", error_type, 200)


def test_stream_ends_with_its_answer_though_its_client_closes_it() -> None:
    traffic, agent = begun(CALLS[:1])
    progress = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progress": 1}}
    exchange = ask(traffic, CALLS[0][-1], 110)
    traffic.respond(exchange, [(150, event(progress)), (180, event(answer()))], 300, outcome="client gone")
    [call] = over(traffic, agent).tool_calls
    assert (call.status, ms(call.ended_ns)) == ("ok", 180)
    assert (call.remote.reply, call.remote.progress) == ("sse", 1)


def test_client_that_does_not_wait_cancels_its_call() -> None:
    traffic, agent = begun(CALLS[:1])
    traffic.end(ask(traffic, CALLS[0][-1], 110), 150, "client gone")
    [call] = over(traffic, agent).tool_calls
    assert (call.status, ms(call.ended_ns)) == ("cancelled", 150)


def test_cancellation_that_is_said_ends_the_call() -> None:
    traffic, agent = begun(CALLS[:1])
    ask(traffic, CALLS[0][-1], 110, session="s", number=7)
    said = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}}
    traffic.send("/mcp", said, 160, 100, [("mcp-session-id", "s")], kind="mcp")
    [call] = over(traffic, agent).tool_calls
    assert (call.status, ms(call.ended_ns)) == ("cancelled", 160)


def test_lost_stream_is_taken_up_again_on_another() -> None:
    traffic, agent = begun(CALLS[:1])
    traffic.respond(ask(traffic, CALLS[0][-1], 110, session="s"), [(120, b": hello\n\n")], 130)
    again = traffic.send("/mcp", b"", 140, 100, [("mcp-session-id", "s")], kind="mcp", method="GET")
    traffic.respond(again, [(190, event(answer()))], 200)
    [call] = over(traffic, agent).tool_calls
    assert (call.status, ms(call.started_ns), ms(call.ended_ns)) == ("ok", 110, 190)


def test_call_is_sent_again_with_the_input_that_was_asked_for() -> None:
    traffic, agent = begun(CALLS[:1])
    traffic.respond(ask(traffic, CALLS[0][-1], 110), answer(resultType="input_required"), 150)
    traffic.respond(ask(traffic, CALLS[0][-1], 170), answer(), 250)
    [call] = over(traffic, agent).tool_calls
    assert (call.status, ms(call.started_ns), ms(call.ended_ns)) == ("ok", 110, 250)
    assert call.remote.sends == 2


def test_server_is_called_what_it_calls_itself() -> None:
    traffic, agent = begun(CALLS[:1])
    opening = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {}}
    hello = {"protocolVersion": "2025-11-25", "serverInfo": {"name": "library", "version": "1"}}
    exchange = traffic.send("/mcp", opening, 50, 100, kind="mcp")
    traffic.respond(exchange, [(60, event({"jsonrpc": "2.0", "id": 0, "result": hello}))], 61)
    traffic.respond(ask(traffic, CALLS[0][-1], 110), answer(), 200)
    [call] = over(traffic, agent).tool_calls
    assert call.server == "library"


def test_same_calls_of_two_loops_are_guessed_and_counted_unless_an_id_tells() -> None:
    traffic = Traffic(mcp=True)
    agents = []
    for n in (0, 1):
        agent = Agent("openai")
        calls: list[Call] = [(f"a{n}", "search", {"query": "x"})]
        traffic.respond(traffic.send(agent.path, agent.body, n, n), reply("openai", calls), 100 + n)
        agent.went_on(calls)
        agents.append(agent)
    # Claude Code and our own agents name the model's call.
    traffic.respond(ask(traffic, {"query": "x"}, 110, meta={"claudecode/toolUseId": "a1"}), answer(), 150)
    traffic.respond(ask(traffic, {"query": "x"}, 120), answer(), 160)
    for agent in agents:
        over(traffic, agent)
    first, second = sorted(traffic.records, key=lambda record: record.started_ns)
    assert [ms(call.started_ns) for call in first.tool_calls] == [120]
    assert [ms(call.started_ns) for call in second.tool_calls] == [110]
    assert [first.ambiguous_calls, second.ambiguous_calls] == [0, 0]


def test_session_that_had_a_loop_tells_its_later_calls() -> None:
    traffic = Traffic(mcp=True)
    agents = [Agent("openai"), Agent("openai")]
    for turn in (0, 1):
        at = 1000 * turn
        for n, agent in enumerate(agents):
            # The first calls differ, the second ones do not.
            calls: list[Call] = [(f"a{n}{turn}", "search", {"query": "x" if turn else f"x{n}"})]
            traffic.respond(traffic.send(agent.path, agent.body, at + n, n), reply("openai", calls), at + 100)
            agent.went_on(calls)
        for n in (1, 0):
            query = "x" if turn else f"x{n}"
            exchange = ask(traffic, {"query": query}, at + 200 + n, session=f"s{n}", number=turn)
            traffic.respond(exchange, answer(turn), at + 300 + n)
    for n, agent in enumerate(agents):
        over(traffic, agent, 2000 + n)
    records = sorted(traffic.records, key=lambda record: record.started_ns)
    assert [[ms(call.started_ns) for call in record.tool_calls] for record in records] == [
        [200, 1200],
        [201, 1201],
    ]
    assert [record.ambiguous_calls for record in records] == [0, 0]


def test_guess_that_cannot_be_right_is_taken_back() -> None:
    traffic = Traffic(mcp=True)
    agents = []
    for n in (0, 1):
        agent = Agent("openai")
        calls: list[Call] = [(f"a{n}", "search", {"query": "x"})]
        traffic.respond(traffic.send(agent.path, agent.body, n, n), reply("openai", calls), 100 + n)
        agent.went_on(calls)
        agents.append(agent)
    exchange = ask(traffic, {"query": "x"}, 110)  # taken for the first one's, whose results then come before
    over(traffic, agents[0], 150)
    traffic.respond(exchange, answer(), 190)
    over(traffic, agents[1], 200)
    first, second = sorted(traffic.records, key=lambda record: record.started_ns)
    assert [call.remote for call in first.tool_calls] == [None]
    assert [(ms(call.started_ns), ms(call.ended_ns)) for call in second.tool_calls] == [(110, 190)]


def test_arguments_that_a_client_completed_are_matched_by_name_and_counted() -> None:
    traffic, agent = begun(CALLS[:1])
    traffic.respond(ask(traffic, {"query": "x", "most": 3, "lang": "en"}, 110), answer(), 200)
    record = over(traffic, agent)
    [call] = record.tool_calls
    assert (ms(call.started_ns), ms(call.ended_ns)) == (110, 200)
    assert record.ambiguous_calls == 1


def test_calls_of_no_loop_are_counted_once() -> None:
    traffic = Traffic(mcp=True)
    traffic.respond(ask(traffic, {"query": "x"}, 10), answer(), 20)
    traffic.observer.tick(100_000 * MS)
    for n in (0, 1):
        agent = Agent("openai")
        traffic.respond(traffic.send(agent.path, agent.body, 200_000 + n), reply("openai"), 200_010 + n)
    assert [record.orphan_calls for record in traffic.records] == [1, 0]


def test_call_that_began_before_its_reply_had_ended_is_found() -> None:
    traffic, agent = Traffic(mcp=True), Agent("anthropic", stream=True)
    from tests.unit.proxy_data import stream

    calls: list[Call] = [("a1", "search", {"query": "x"}), ("a2", "search", {"query": "y"})]
    events = stream("anthropic", 50, calls)  # the first call is complete at 60, the end comes at 90
    model = traffic.send(agent.path, agent.body, 0)
    eager = ask(traffic, {"query": "x"}, 65)
    traffic.respond(model, events, 90)
    traffic.respond(eager, answer(), 120)
    traffic.respond(ask(traffic, {"query": "y"}, 95, number=2), answer(2), 130)
    agent.went_on(calls)
    traffic.respond(traffic.send(agent.path, agent.body, 200), reply("anthropic"), 250)
    [record] = traffic.records
    assert [(ms(call.started_ns), ms(call.ended_ns)) for call in record.tool_calls] == [(65, 120), (95, 130)]


@pytest.mark.parametrize(
    ("asked", "name", "same"),
    [
        ("search", "search", True),
        ("mcp__library__search", "search", True),
        ("library_search", "search", True),
        ("library-search", "search", True),
        ("library.search", "search", True),
        ("web_search", "web-search", True),
        ("research", "search", False),
        ("search", "research", False),
        ("search", "", False),
    ],
)
def test_names_may_have_the_servers_before_them(asked: str, name: str, same: bool) -> None:
    assert is_name_of(asked, name) is same


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"[1, null]", b'{"method": "tools/call"}', b'{"method": 1, "params": []}', b"\xff"],
)
def test_what_is_no_call_is_left_alone(body: bytes) -> None:
    traffic = Traffic(mcp=True)
    traffic.respond(traffic.send("/mcp", body, 0, kind="mcp"), body, 10, 400)
    traffic.observer.tick(10**15)
    traffic.close()
    assert traffic.observer.requests == {("mcp", "4xx"): 1}
