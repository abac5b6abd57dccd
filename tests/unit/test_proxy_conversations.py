from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.proxy import conversations
from profiler.proxy.loops import UNFINISHED
from profiler.proxy.seen import Exchange, Piece
from tests.unit.proxy_data import APIS, MS, Agent, Call, Traffic, reply, stream

CALLS: list[Call] = [("a1", "weather", {"city": "Bern"}), ("a2", "weather", {"city": "Rome"})]


def ms(ns: int | None) -> float | None:
    return None if ns is None else ns / MS


@pytest.mark.parametrize("api", APIS)
def test_loop_of_two_rounds_has_its_phase_exactly_and_bounds_of_its_calls(api: str) -> None:
    traffic, agent = Traffic(), Agent(api)
    first = traffic.send(agent.path, agent.body, 0)
    traffic.respond(first, reply(api, CALLS), 100)
    agent.went_on(CALLS)
    second = traffic.send(agent.path, agent.body, 350)
    traffic.respond(second, reply(api), 400)
    [record] = traffic.records
    assert (record.source, record.provider, record.model, record.status) == ("proxy", api, "m", "ok")
    assert (ms(record.started_ns), ms(record.ended_ns)) == (0, 400)
    one, two = record.rounds
    assert (ms(one.model.started_ns), ms(one.model.ended_ns)) == (0, 100)
    assert (ms(one.tools_started_ns), ms(one.tools_ended_ns)) == (100, 350)
    assert [(call.id, call.name, ms(call.ready_ns)) for call in one.tool_calls] == [
        ("a1", "weather", 100),
        ("a2", "weather", 100),
    ]
    for call in one.tool_calls:
        assert call.upper_bound
        assert ms(call.duration_ns) == 250
        assert call.latency_ns is None
        assert {*call.derived} == {"started_ns", "ended_ns"}
    assert (one.model.input_tokens, one.model.output_tokens) == (100, 10)
    assert one.model.cached_tokens == (40 if api == "anthropic" else None)
    assert two.tool_calls == ()
    assert two.tools_started_ns is None
    assert (traffic.tally.upper_bounds, traffic.tally.exact) == (2, 0)
    assert not traffic.skipped


@pytest.mark.parametrize("api", APIS)
def test_call_that_was_alone_took_as_long_as_the_phase(api: str) -> None:
    traffic, agent = Traffic(), Agent(api)
    traffic.respond(traffic.send(agent.path, agent.body, 0), reply(api, CALLS[:1]), 100)
    agent.went_on(CALLS[:1], failed=["a1"])
    traffic.respond(traffic.send(agent.path, agent.body, 350), reply(api), 400)
    [record] = traffic.records
    [call] = record.rounds[0].tool_calls
    assert not call.upper_bound
    assert ms(call.latency_ns) == 250
    assert {*call.derived} == {"started_ns", "ended_ns"}
    # Only Messages says in a result that it is an error.
    assert (call.status, call.error_type) == (("error", "tool_error") if api == "anthropic" else ("ok", None))
    assert traffic.tally.derived == 1


@pytest.mark.parametrize("api", APIS)
def test_streamed_reply_tells_when_each_call_was_ready(api: str) -> None:
    traffic, agent = Traffic(), Agent(api, stream=True)
    events = stream(api, 50, CALLS)
    traffic.respond(traffic.send(agent.path, agent.body, 0), events, 90)
    agent.went_on(CALLS)
    traffic.respond(traffic.send(agent.path, agent.body, 300), stream(api, 340), 360)
    [record] = traffic.records
    one, two = record.rounds
    assert one.model.streamed
    assert ms(one.model.first_token_ns) == 50
    assert ms(one.model.first_tool_call_ns) == 60
    assert [ms(call.ready_ns) for call in one.tool_calls] == [60, 80]
    assert (ms(one.tools_started_ns), ms(one.tools_ended_ns)) == (80, 300)
    assert ms(one.model.attempts[0].first_byte_ns) == 50
    assert ms(two.model.first_output_ns) == (340 if api != "openai-responses" else 350)
    assert (one.model.input_tokens, one.model.output_tokens) == (100, 10)


@pytest.mark.parametrize("api", APIS)
@settings(max_examples=30, deadline=None)
@given(order=st.randoms(use_true_random=False), agents=st.integers(2, 12), rounds=st.integers(1, 4))
def test_agents_with_one_prompt_at_once_are_told_apart_by_ids(
    api: str, order: Any, agents: int, rounds: int
) -> None:
    traffic = Traffic()
    ids = itertools.count()
    of_id: dict[str, int] = {}

    def run(agent: int) -> Any:
        client = Agent(api)
        for _ in range(rounds):
            exchange = yield client
            calls = []
            for _ in range(order.randint(1, 3)):
                ident = f"call_{next(ids)}"
                of_id[ident] = agent
                calls.append((ident, "weather"))
            yield exchange, reply(api, calls)
            client.went_on(calls)
        exchange = yield client
        yield exchange, reply(api)

    running = {agent: run(agent) for agent in range(agents)}
    flying: dict[int, Exchange] = {}
    clients = {agent: next(generator) for agent, generator in running.items()}
    now = 0.0
    while running:
        now += 1
        agent = order.choice(sorted(running))
        if agent not in flying:
            # From a pool: any connection.
            client = clients[agent]
            flying[agent] = traffic.send(client.path, client.body, now, order.randint(1, agents))
        else:
            exchange, answer = running[agent].send(flying.pop(agent))
            traffic.respond(exchange, answer, now)
            try:
                clients[agent] = next(running[agent])
            except StopIteration:
                del running[agent]
    records = traffic.records
    assert len(records) == agents
    assert not traffic.skipped
    for record in records:
        assert len(record.rounds) == rounds + 1
        assert record.status == "ok"
        assert len({of_id[call.id] for call in record.tool_calls}) == 1
        assert record.ambiguous_calls == 0


@pytest.mark.parametrize("api", APIS)
def test_request_sent_again_is_a_try_of_the_same_round(api: str) -> None:
    traffic, agent = Traffic(), Agent(api)
    refused = traffic.send(agent.path, agent.body, 0, headers=[("x-stainless-retry-count", "0")])
    limits = [("retry-after", "1"), ("x-ratelimit-remaining-requests", "0"), ("x-request-id", "req_1")]
    traffic.respond(refused, {"error": {"message": "slow down"}}, 50, 429, limits)
    again = traffic.send(agent.path, agent.body, 1050, 7, headers=[("x-stainless-retry-count", "1")])
    traffic.respond(again, reply(api, CALLS), 1100)
    agent.went_on(CALLS)
    broken = traffic.send(agent.path, agent.body, 1200)
    traffic.end(broken, 1250, "upstream gone")
    last = traffic.send(agent.path, agent.body, 1750)
    traffic.respond(last, reply(api), 1800)
    [record] = traffic.records
    one, two = record.rounds
    assert [attempt.status for attempt in one.model.attempts] == [429, 200]
    assert ms(one.model.backoff_ns) == 1000
    assert (ms(one.model.started_ns), one.model.status) == (0, "ok")
    first = one.model.attempts[0]
    assert first.refused
    assert first.retry_after_ns == 10**9
    assert first.request_id == "req_1"
    assert first.rate_limits == {"x-ratelimit-remaining-requests": "0"}
    assert [attempt.error_type for attempt in two.model.attempts] == ["connection", None]
    assert (ms(two.model.started_ns), ms(two.model.ended_ns), ms(two.model.backoff_ns)) == (1200, 1800, 500)
    assert ms(one.tools_ended_ns) == 1200
    assert record.status == "ok"
    assert two.model.resends == 0


def test_same_request_that_its_sdk_calls_the_first_is_another_agent() -> None:
    traffic, agent = Traffic(), Agent("openai")
    count = ("x-stainless-retry-count", "0")
    for at in (0, 100):
        exchange = traffic.send(agent.path, agent.body, at, headers=[count])
        traffic.respond(exchange, {"error": {}}, at + 10, 503)
    first, second = traffic.close()
    assert [record.status for record in (first, second)] == ["error", "error"]
    assert [record.error_type for record in (first, second)] == ["http_503", "http_503"]


def test_retries_of_agents_with_one_prompt_go_to_one_loop_each() -> None:
    traffic, agent = Traffic(), Agent("openai")
    for at in (0, 1, 2):
        exchange = traffic.send(agent.path, agent.body, at, int(at), [("x-stainless-retry-count", "0")])
        traffic.respond(exchange, {"error": {}}, at + 10, 429)
    for at in (500, 501, 502):
        exchange = traffic.send(agent.path, agent.body, at, 9, [("x-stainless-retry-count", "1")])
        traffic.respond(exchange, reply("openai"), at + 10)
    assert [[a.status for a in record.rounds[0].model.attempts] for record in traffic.records] == [
        [429, 200]
    ] * 3


def test_tries_that_were_not_seen_are_a_count() -> None:
    traffic, agent = Traffic(), Agent("openai")
    exchange = traffic.send(agent.path, agent.body, 0, headers=[("x-stainless-retry-count", "2")])
    traffic.respond(exchange, reply("openai"), 50)
    [record] = traffic.records
    assert record.rounds[0].model.resends == 2
    assert record.rounds[0].model.attempt_count == 3


@pytest.mark.parametrize("status", [400, 401, 404])
def test_request_that_nobody_sends_again_ends_its_loop(status: int) -> None:
    traffic, agent = Traffic(), Agent("openai")
    traffic.respond(traffic.send(agent.path, agent.body, 0), {"error": {"message": "no"}}, 50, status)
    traffic.respond(traffic.send(agent.path, agent.body, 100), {"error": {"message": "no"}}, 150, status)
    traffic.observer.tick(10_200 * MS)
    for record in traffic.records:
        assert (record.status, record.error_type) == ("error", f"http_{status}")
    assert len(traffic.records) == 2


def test_failed_request_is_waited_for_as_long_as_its_server_asked_and_more() -> None:
    traffic, agent = Traffic(), Agent("openai")
    exchange = traffic.send(agent.path, agent.body, 0)
    traffic.respond(exchange, {}, 50, 429, [("retry-after", "90")])
    traffic.observer.tick(149_000 * MS)
    assert traffic.observer.open_loops == 1
    traffic.observer.tick(151_000 * MS)
    [record] = traffic.records
    assert (record.status, record.error_type, ms(record.ended_ns)) == ("error", "http_429", 50)


@pytest.mark.parametrize("api", APIS)
def test_new_message_of_the_user_begins_a_loop(api: str) -> None:
    traffic, agent = Traffic(), Agent(api)
    traffic.respond(traffic.send(agent.path, agent.body, 0), reply(api, CALLS), 100)
    agent.went_on(CALLS)
    traffic.respond(traffic.send(agent.path, agent.body, 200), reply(api), 300)
    agent.said("done", "and now?")
    traffic.respond(traffic.send(agent.path, agent.body, 9000), reply(api), 9100)
    first, second = traffic.records
    assert len(first.rounds) == 2
    assert len(second.rounds) == 1
    assert ms(second.started_ns) == 9000
    assert not traffic.skipped


def test_loop_that_nothing_comes_of_is_cancelled_with_its_calls_open() -> None:
    traffic, agent = Traffic(), Agent("anthropic")
    traffic.respond(traffic.send(agent.path, agent.body, 0), reply("anthropic", CALLS), 100)
    traffic.observer.tick(899_000 * MS)
    assert not traffic.records
    traffic.observer.tick(901_000 * MS)
    [record] = traffic.records
    assert record.status == "cancelled"
    assert ms(record.ended_ns) == 100
    assert [call.ended for call in record.tool_calls] == [False, False]
    assert traffic.tally.never_ended == 2


def test_request_under_way_is_not_idle() -> None:
    traffic, agent = Traffic(), Agent("openai")
    exchange = traffic.send(agent.path, agent.body, 0)
    traffic.observer.tick(1_200_000 * MS)
    traffic.respond(exchange, reply("openai"), 1_300_000)
    assert [record.status for record in traffic.records] == ["ok"]


def test_client_that_goes_away_cancels_its_loop_unless_it_comes_back() -> None:
    traffic, agent = Traffic(), Agent("openai", stream=True)
    exchange = traffic.send(agent.path, agent.body, 0)
    traffic.respond(exchange, stream("openai", 50, CALLS)[:1], 60, outcome="client gone")
    traffic.observer.tick(61_000 * MS)
    [record] = traffic.records
    assert record.status == "cancelled"
    assert record.rounds[0].tool_calls == ()
    assert record.rounds[0].model.error_type == "cancelled"


def test_stream_that_its_client_closes_after_the_end_is_whole() -> None:
    traffic, agent = Traffic(), Agent("openai", stream=True)
    exchange = traffic.send(agent.path, agent.body, 0)
    traffic.respond(exchange, stream("openai", 50), 500, outcome="client gone")
    [record] = traffic.records
    assert record.status == "ok"
    assert ms(record.ended_ns) == 60


@pytest.mark.parametrize("api", APIS)
def test_client_that_goes_on_before_its_stream_has_ended_is_in_its_loop(api: str) -> None:
    """It has read all that the reply says; the server keeps the response open."""
    traffic, agent = Traffic(), Agent(api, stream=True)
    first = traffic.send(agent.path, agent.body, 0)
    first.status, first.raw_response = 200, [(b"Content-Type", b"text/event-stream")]
    first.response.pieces += [Piece(int(at * MS), data) for at, data in stream(api, 50, CALLS)]
    agent.went_on(CALLS)
    second = traffic.send(agent.path, agent.body, 200, 2)
    traffic.respond(second, stream(api, 250), 260)
    traffic.end(first, 900, "client gone")
    [record] = traffic.records
    assert record.status == "ok"
    assert [ms(one.model.ended_ns) for one in record.rounds] == [50 + 10 * 2 * len(CALLS), 260]
    assert [ms(call.ended_ns) for call in record.rounds[0].tool_calls] == [200, 200]
    assert not traffic.skipped


def test_request_that_was_never_whole_is_counted() -> None:
    traffic, agent = Traffic(), Agent("openai")
    exchange = Exchange(1, 1, "model", "u", b"POST", agent.path.encode(), 0)
    traffic.end(exchange, 10, "client gone")
    assert traffic.skipped == {UNFINISHED: 1}
    assert not traffic.records


@pytest.mark.parametrize("api", APIS)
def test_second_request_from_one_reply_begins_a_loop_and_is_counted(api: str) -> None:
    traffic, agent = Traffic(), Agent(api)
    traffic.respond(traffic.send(agent.path, agent.body, 0), reply(api, CALLS), 100)
    agent.went_on(CALLS)
    one = traffic.send(agent.path, agent.body, 200, 1)
    two = traffic.send(agent.path, {**agent.body, "temperature": 1}, 201, 2)
    traffic.respond(one, reply(api), 300)
    traffic.respond(two, reply(api), 301)
    assert sorted(len(record.rounds) for record in traffic.records) == [1, 2]
    assert traffic.skipped == {conversations.BRANCHED: 1}


def test_results_of_calls_that_nobody_saw_begin_a_loop_and_are_counted() -> None:
    traffic, agent = Traffic(), Agent("openai")
    agent.went_on(CALLS)
    traffic.respond(traffic.send(agent.path, agent.body, 0), reply("openai"), 100)
    assert len(traffic.records) == 1
    assert traffic.skipped == {conversations.UNKNOWN: 1}


SAME: list[Call] = [("call_1", "weather")]


def _both_wait(traffic: Traffic, api: str, headers: Any = ((), ()), more: Any = ({}, {})) -> list[Agent]:
    """Two agents, on a connection each, whose calls have the same id."""
    agents = [Agent(api, more=dict(more[n])) for n in (0, 1)]
    for n, agent in enumerate(agents):
        exchange = traffic.send(agent.path, agent.body, n, n + 1, headers[n])
        traffic.respond(exchange, reply(api, SAME, ident=f"r{n}"), 100 + n)
        agent.went_on(SAME)
    return agents


@pytest.mark.parametrize("api", APIS)
def test_same_ids_at_once_are_told_apart_by_the_connection_and_counted(api: str) -> None:
    traffic = Traffic()
    # Two loops with ids of their own have stayed on their connections until here.
    others = [Agent(api), Agent(api)]
    for turn in (0, 1):
        for n, agent in enumerate(others):
            calls = [(f"own{n}{turn}", "weather")]
            sent = traffic.send(agent.path, agent.body, -1000 + 100 * turn + n, 11 + n)
            traffic.respond(sent, reply(api, calls, ident=f"o{n}{turn}"), -950 + 100 * turn + n)
            agent.went_on(calls)
    for n, agent in enumerate(others):
        traffic.respond(traffic.send(agent.path, agent.body, -500 + n, 11 + n), reply(api), -400 + n)
    traffic.records.clear()
    agents = _both_wait(traffic, api)
    for n in (1, 0):
        exchange = traffic.send(agents[n].path, agents[n].body, 200 + n, n + 1)
        traffic.respond(exchange, reply(api), 300 + n)
    records = sorted(traffic.records, key=lambda record: record.started_ns)
    assert [ms(record.ended_ns) for record in records] == [300, 301]
    assert [len(record.rounds) for record in records] == [2, 2]
    assert [record.ambiguous_calls for record in records] == [
        0,
        1,
    ]  # the second to come was the only one left
    assert traffic.skipped == {conversations.BY_CONNECTION: 1}


def test_same_ids_at_once_that_nothing_tells_apart_begin_loops_of_their_own() -> None:
    traffic = Traffic()
    agents = _both_wait(traffic, "openai")
    exchange = traffic.send(agents[1].path, agents[1].body, 200, 1)  # from a pool, as clients have them
    traffic.respond(exchange, reply("openai"), 300)
    records = traffic.close()
    assert [len(record.rounds) for record in records] == [1, 1, 1]
    assert [record.status for record in records] == ["cancelled", "cancelled", "ok"]
    assert records[2].ambiguous_calls == 1
    assert traffic.skipped == {conversations.UNRESOLVED: 1}


@pytest.mark.parametrize(
    "headers",
    [
        [("traceparent", "00-{:032x}-{:016x}-01")],
        [("x-session-id", "s{}{}")],
    ],
)
def test_same_ids_at_once_are_told_apart_by_what_the_client_says(headers: Any) -> None:
    traffic = Traffic()

    def of(n: int, request: int) -> list[tuple[str, str]]:
        return [
            (name, value.format(n + 1, request if name == "traceparent" else 0)) for name, value in headers
        ]

    agents = _both_wait(traffic, "openai", [of(0, 1), of(1, 2)])
    for n in (1, 0):
        exchange = traffic.send(agents[n].path, agents[n].body, 200 + n, 50, of(n, 3))
        traffic.respond(exchange, reply("openai"), 300 + n)
    records = sorted(traffic.records, key=lambda record: record.started_ns)
    assert [ms(record.ended_ns) for record in records] == [300, 301]
    assert not traffic.skipped


@pytest.mark.parametrize("how", ["previous_response_id", "conversation"])
def test_same_ids_at_once_are_told_apart_by_what_the_server_remembers(how: str) -> None:
    traffic, api = Traffic(), "openai-responses"
    more = [{"conversation": "c0"}, {"conversation": {"id": "c1"}}] if how == "conversation" else [{}, {}]
    agents = _both_wait(traffic, api, more=more)
    for n in (1, 0):
        agents[n].history = agents[n].history[-1:]
        if how == "previous_response_id":
            agents[n].more["previous_response_id"] = f"r{n}"
        traffic.respond(traffic.send(agents[n].path, agents[n].body, 200 + n, 9), reply(api), 300 + n)
    records = sorted(traffic.records, key=lambda record: record.started_ns)
    assert [ms(record.ended_ns) for record in records] == [300, 301]
    assert [record.ambiguous_calls for record in records] == [0, 0]
    assert not traffic.skipped


def test_same_ids_are_told_apart_by_how_long_the_history_is() -> None:
    traffic = Traffic()
    ahead, behind = Agent("openai"), Agent("openai")
    for at in (0, 200):
        traffic.respond(traffic.send(ahead.path, ahead.body, at, 1), reply("openai", SAME), at + 100)
        ahead.went_on(SAME)
    traffic.respond(traffic.send(behind.path, behind.body, 310, 2), reply("openai", SAME), 320)
    behind.went_on(SAME)
    traffic.respond(traffic.send(behind.path, behind.body, 400, 9), reply("openai"), 410)
    traffic.respond(traffic.send(ahead.path, ahead.body, 500, 9), reply("openai"), 510)
    records = sorted(traffic.records, key=lambda record: record.started_ns)
    assert [(len(record.rounds), ms(record.ended_ns)) for record in records] == [(3, 510), (2, 410)]


def test_calls_without_ids_go_on_with_the_one_loop_that_waits_for_as_many() -> None:
    traffic, agent = Traffic(), Agent("openai")
    asked = reply("openai", CALLS)
    for call in asked["choices"][0]["message"]["tool_calls"]:
        del call["id"]
    traffic.respond(traffic.send(agent.path, agent.body, 0), asked, 100)
    agent.went_on([("x1", "weather"), ("x2", "weather")])  # made up by its framework
    traffic.respond(traffic.send(agent.path, agent.body, 200), reply("openai"), 300)
    [record] = traffic.records
    assert len(record.rounds) == 2
    assert [call.ended for call in record.tool_calls] == [True, True]


def test_paused_turn_goes_on_in_its_loop() -> None:
    traffic, agent = Traffic(), Agent("anthropic")
    content = [{"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}]
    paused = {**reply("anthropic"), "content": content, "stop_reason": "pause_turn"}
    traffic.respond(traffic.send(agent.path, agent.body, 0), paused, 100)
    agent.history.append({"role": "assistant", "content": content})
    traffic.respond(traffic.send(agent.path, agent.body, 110), reply("anthropic"), 200)
    [record] = traffic.records
    assert len(record.rounds) == 2
    assert record.status == "ok"
    assert record.rounds[0].tool_calls == ()


def test_results_between_their_calls_belong_to_one_round() -> None:
    traffic, agent = Traffic(), Agent("openai-responses")
    traffic.respond(traffic.send(agent.path, agent.body, 0), reply("openai-responses", CALLS), 100)
    for call in CALLS:
        agent.went_on([call])
    traffic.respond(traffic.send(agent.path, agent.body, 200), reply("openai-responses"), 300)
    [record] = traffic.records
    assert [call.ended for call in record.tool_calls] == [True, True]


def test_oldest_loop_ends_when_too_many_are_open() -> None:
    ended: list[Any] = []
    skipped: list[str] = []
    from profiler.proxy.asked import Asked

    open_ = conversations.Conversations(ended.append, skipped.append, most_open=2)
    for n in range(3):
        open_.asked(Asked("openai", digest=bytes([n])), n, n)
    assert [draft.started_ns for draft in ended] == [0]
    assert len(open_) == 2
    assert skipped == [conversations.TOO_MANY]


def test_nothing_is_left_of_loops_that_have_ended() -> None:
    traffic = Traffic()
    for n in range(50):
        agent = Agent("openai-responses")
        calls: list[Call] = [(f"c{n}", "weather")]
        first = traffic.send(agent.path, agent.body, n, n)
        traffic.respond(first, reply("openai-responses", calls, ident=f"r{n}"), n)
        agent.went_on(calls)
        failed = traffic.send(agent.path, agent.body, n)
        traffic.respond(failed, {}, n, 500)
        traffic.respond(traffic.send(agent.path, agent.body, n), reply("openai-responses"), n)
    inner: Any = traffic.observer._conversations
    assert len(traffic.records) == 50
    assert not traffic.skipped
    for index in ("_open", "_asked", "_responses", "_served", "_nameless", "_failed"):
        assert not getattr(inner, index), index


@pytest.mark.parametrize("kind", ["local_shell", "shell", "computer", "apply_patch"])
def test_calls_of_tools_that_the_api_knows_and_the_client_runs_go_on_with_the_loop(kind: str) -> None:
    traffic, agent, api = Traffic(), Agent("openai-responses"), "openai-responses"
    item = {"type": f"{kind}_call", "id": "i1", "call_id": "c1", "status": "completed", "action": {}}
    traffic.respond(traffic.send(agent.path, agent.body, 0), {**reply(api), "output": [item]}, 100)
    agent.history += [item, {"type": f"{kind}_call_output", "call_id": "c1", "output": "x"}]
    traffic.respond(traffic.send(agent.path, agent.body, 200), reply(api), 300)
    [record] = traffic.records
    assert [(call.id, call.name, ms(call.duration_ns)) for call in record.tool_calls] == [("c1", kind, 100)]


@pytest.mark.parametrize("api", APIS)
def test_reply_that_was_cut_off_may_be_gone_on_from(api: str) -> None:
    traffic, agent = Traffic(), Agent(api, stream=True)
    exchange = traffic.send(agent.path, agent.body, 0)
    # Its client has the calls that it wants, and does not wait for the end.
    traffic.respond(exchange, stream(api, 50, CALLS)[:-1], 85, outcome="client gone")
    agent.went_on(CALLS)
    traffic.respond(traffic.send(agent.path, agent.body, 200), stream(api, 250), 300)
    [record] = traffic.records
    assert record.status == "ok"
    assert record.rounds[0].model.status == "cancelled"
    # The last call of Messages is known to be whole when another block begins; its text is, before that.
    assert [(call.id, ms(call.ended_ns)) for call in record.tool_calls] == [("a1", 200), ("a2", 200)]


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(order=st.randoms(use_true_random=False))
def test_whatever_happens_each_request_is_in_one_round_and_nothing_is_left(order: Any) -> None:
    """Ids that are used twice or missing, failures, retries, branches, ends of connections, long silence."""
    traffic = Traffic(mcp=True)
    agents = [Agent(order.choice(APIS)) for _ in range(4)]
    flying: list[tuple[Agent, Exchange]] = []
    now, sent = 0.0, 0
    for _ in range(order.randint(1, 60)):
        now += order.choice([1, 10, 1000, 70_000, 1_000_000])
        step = order.randint(0, 9)
        agent = order.choice(agents)
        if step <= 4 or not flying:
            headers = order.choice([[], [("x-stainless-retry-count", str(order.randint(0, 2)))]])
            if order.random() < 0.2:
                agent.more = {"previous_response_id": f"r{order.randint(0, 2)}"}
            flying.append((agent, traffic.send(agent.path, agent.body, now, order.randint(1, 3), headers)))
            sent += 1
        elif step <= 7:
            agent, exchange = flying.pop(order.randrange(len(flying)))
            calls: list[Call] = [(f"c{order.randint(0, 3)}", "t") for _ in range(order.randint(0, 3))]
            ident = f"r{order.randint(0, 2)}"
            body: Any = reply(agent.api, calls, ident=ident)
            if order.random() < 0.5:
                body = stream(agent.api, now, calls, ident=ident)
            outcome = order.choice(["complete", "complete", "client gone", "upstream gone"])
            traffic.respond(exchange, body, now, outcome=outcome)
            agent.went_on(calls)
        elif step == 8:
            _, exchange = flying.pop()
            traffic.respond(exchange, {"error": {}}, now, order.choice([400, 429, 500]))
        else:
            traffic.observer.tick(int(now) * MS)
    traffic.close()
    for _, exchange in flying:
        traffic.end(exchange, now, "client gone")
    models = [round_.model for record in traffic.records for round_ in record.rounds]
    attempts = sum(len(model.attempts) for model in models)
    assert attempts + traffic.skipped[conversations.LATE] == sent
    inner: Any = traffic.observer._conversations
    for index in ("_open", "_asked", "_responses", "_served", "_nameless", "_failed"):
        assert not getattr(inner, index), index
    assert not inner._tools._waiting
    assert not inner._tools._by_id


@pytest.mark.parametrize("api", APIS)
def test_request_that_is_sent_without_what_it_was_refused_for_is_a_try_of_the_same_round(api: str) -> None:
    traffic, agent = Traffic(), Agent(api, more={"thread": {}, "stream_options": {}})
    count = ("x-stainless-retry-count", "0")
    traffic.respond(traffic.send(agent.path, agent.body, 0, headers=[count]), {"error": {}}, 50, 400)
    agent.more = {}
    traffic.respond(traffic.send(agent.path, agent.body, 60, headers=[count]), reply(api), 90)
    [record] = traffic.records
    assert [attempt.status for attempt in record.rounds[0].model.attempts] == [400, 200]
    assert record.status == "ok"
    assert not traffic.skipped
