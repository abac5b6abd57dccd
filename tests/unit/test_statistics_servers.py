"""Figures of MCP servers from records made by hand, and advice where the records show what is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest

from profiler.anatomy import remote_parts
from profiler.records import LoopRecord, RemoteCall, ToolCall
from profiler.report.servers import findings, lines, serialised
from profiler.statistics.servers import HTTPX_CONNECTIONS, ServerCalls, ServerFigures
from profiler.statistics.summary import summarise
from tests.unit.statistics_data import asked_by_nobody, loop, run, served, trial


def figures(records: Iterable[LoopRecord], *, per_agent: bool = False) -> tuple[ServerFigures, ...]:
    return ServerCalls.of(records).figures(per_agent=per_agent)


def one(*calls: ToolCall) -> ServerFigures:
    (found,) = figures([asked_by_nobody(calls)])
    return found


def medians(server: ServerFigures) -> dict[str, float | None]:
    return {part: seconds.p50.value for part, seconds in server.calls.seconds.items()}


# Figures


def test_parts_of_calls_have_quantiles():
    server = one(
        *(served(0, session=s, client=2, remote=100, parsing=1, told=80) for s in (0, 10, 20)),
        replace(served(0), started_ns=None, status="cancelled", error_type="cancelled"),
    )
    assert medians(server) == pytest.approx(
        {
            "duration": 0.113,
            "session_wait": 0.01,
            "client_wait": 0.002,
            "server": 0.08,
            "network": 0.02,
            "parsing": 0.001,
        }
    )
    assert (server.calls.calls, server.calls.errors) == (4, 1)
    assert server.calls.error_types == {"cancelled": 1}


def test_server_that_does_not_say_how_long_it_took_has_one_part_with_the_network():
    assert "server_and_network" in one(served(0)).calls.seconds
    assert not {"server", "network"} & one(served(0)).calls.seconds.keys()


def test_calls_are_divided_by_server_tool_and_strategy():
    calls = [
        served(0),
        served(0, name="read", status="error", error_type="tool_error"),
        served(0, server="wiki", transport="stdio"),
    ]
    docs, wiki = figures([asked_by_nobody(calls), asked_by_nobody(calls[:1], strategy="sequential")])
    assert (docs.name, docs.transport, docs.protocols) == ("docs", "http", ("2025-11-25",))
    assert (wiki.name, wiki.transport) == ("wiki", "stdio")
    assert {name: (calls.calls, calls.errors) for name, calls in docs.tools.items()} == {
        "search": (2, 0),
        "read": (1, 1),
    }
    assert {name: calls.calls for name, calls in docs.strategies.items()} == {"gathered": 2, "sequential": 1}


def test_most_in_flight_counts_requests_that_are_sent_and_not_answered():
    server = one(
        served(0, client=0, remote=100, parsing=500),
        served(0, client=50, remote=100),
        served(0, client=100, remote=100),  # sent as the first is answered
        replace(served(0), remote=RemoteCall("docs", "http")),  # never sent
    )
    assert server.most_in_flight == 2


def test_connections_and_replies_are_counted_where_they_are_known():
    server = one(
        served(0, new_connection=True, reply="sse"),
        served(0, new_connection=False, reply="json"),
        served(0),
    )
    assert (server.new_connections, server.known_connections) == (1, 2)
    assert (server.json_replies, server.sse_replies) == (1, 1)


def test_summary_has_the_servers_of_a_run():
    records = [asked_by_nobody([served(200 * number)]) for number in range(4)]
    summary = summarise(run([trial(0, "gathered", 0, 10_000)]), records)
    (server,) = summary.servers
    assert (server.name, server.calls.calls) == ("docs", 4)
    (strategy,) = summary.strategies
    assert (strategy.totals.model_requests, strategy.totals.attempts) == (0, 0)
    assert summarise(run([trial(0, "gathered", 0, 10_000)]), [loop(0)]).servers == ()


@pytest.mark.parametrize(
    ("remote", "expected"),
    [
        (RemoteCall("s", "http"), {"session_wait": 0, "client_wait": 100}),
        (
            RemoteCall("s", "http", posted_ns=30, session_wait_ns=20),
            {"session_wait": 20, "client_wait": 10, "server_and_network": 70},
        ),
        (
            RemoteCall("s", "http", None, 30, 90, 1_000),
            {"session_wait": 0, "client_wait": 30, "server": 60, "network": 0, "parsing": 10},
        ),
        # Of the last of several tries.
        (
            RemoteCall("s", "http", None, 300, 900, session_wait_ns=500),
            {"session_wait": 100, "client_wait": 0, "server_and_network": 0, "parsing": 0},
        ),
    ],
)
def test_parts_sum_to_the_duration_whatever_is_known(remote, expected):
    found = remote_parts(ToolCall("c", "t", 0, 0, 0, 100, remote=remote))
    assert found == expected
    assert sum(found.values()) == 100


# A server that serialises


def serial_rounds(rounds: int = 4, fan_out: int = 4, **more: object) -> list[Sequence[ToolCall]]:
    """Rounds of calls posted together and answered 200 ms apart."""
    return [
        [
            served(5_000 * number, client=1 + place / 10, remote=200 * (place + 1) - place / 10, **more)
            for place in range(fan_out)
        ]
        for number in range(rounds)
    ]


def test_server_that_runs_calls_one_at_a_time_is_named_with_its_figures():
    server = figures([asked_by_nobody(*serial_rounds(4, 8))])[0]
    assert server.serialised is not None
    said = serialised(server)
    assert said == (
        "MCP server docs runs parallel calls one at a time: 8 calls posted within 0.70 ms were answered 200 "
        "ms apart: 1.60 s instead of 200 ms (so in 4 of 4 rounds of at least 3 calls); make its tools async, "
        "or run several of it"
    )
    assert said in list(lines([server]))


def test_lock_of_the_session_is_named_as_the_client_s():
    rounds = [
        [served(5_000 * number, session=100 * place, client=0, remote=99) for place in range(4)]
        for number in range(3)
    ]
    (server,) = figures([asked_by_nobody(*rounds)])
    said = serialised(server)
    assert said is not None
    assert said.startswith(
        "MCP server docs gets its calls one at a time: the session of its client lets only one"
    )
    assert "4 calls started at once were answered 100 ms apart: 399 ms instead of 99.0 ms" in said
    assert said.endswith("give it several sessions, or a client that does not lock its session")


def test_rounds_in_which_the_client_stood_still_prove_nothing():
    made = asked_by_nobody(*serial_rounds())
    held = replace(made, rounds=tuple(replace(one, shortfall="blocked_loop") for one in made.rounds))
    assert figures([held])[0].serialised is None


def test_round_with_a_call_that_nobody_answered_proves_nothing():
    rounds = [
        [*calls[:-1], replace(calls[-1], remote=replace(calls[-1].remote, answered_ns=None))]
        for calls in serial_rounds()
    ]
    assert figures([asked_by_nobody(*rounds)])[0].serialised is None


@pytest.mark.parametrize(
    ("transport", "per_agent", "found"),
    [("http", False, False), ("stdio", False, True), ("stdio", True, True)],
)
def test_stdio_server_is_a_process_for_each_worker_and_http_one_for_all(transport, per_agent, found):
    """The rounds of two workers at the same time: a serial server each, or one that runs two."""
    rounds = serial_rounds(transport=transport)
    records = [asked_by_nobody(*rounds, process=process) for process in ("worker 1", "worker 2")]
    (server,) = figures(records, per_agent=per_agent)
    assert (server.serialised is not None) is found


# Advice


def test_connection_for_each_event_stream_is_said():
    (said,) = one(*(served(0, new_connection=True, reply="sse") for _ in range(20))).advice
    assert said.startswith("20 of 20 replies were event streams (SSE) whose call opened a TCP connection")
    for reply, new in (("json", True), ("sse", False), ("sse", None)):
        assert one(*(served(0, new_connection=new, reply=reply) for _ in range(20))).advice == ()


def test_limit_of_the_http_client_is_said_where_calls_wait_at_it():
    at_once = [served(0, client=1, remote=500) for _ in range(HTTPX_CONNECTIONS)]
    late = [served(0, client=502, remote=500) for _ in range(50)]
    (said,) = one(*at_once, *late).advice
    assert said.startswith(
        "the client had 100 requests at the server and no more, which is the limit of httpx"
    )
    assert "33 % of the calls waited" in said
    assert one(*at_once).advice == ()
    assert one(*at_once, served(0, client=1, remote=500), *late).advice == ()


def test_server_that_takes_long_to_fail_is_said():
    well = [served(0, remote=3) for _ in range(5)]
    failed = [served(0, remote=193, status="error", error_type="tool_error") for _ in range(5)]
    (said,) = one(*well, *failed).advice
    assert said.startswith("calls of search that fail take the server 193 ms, others 3 ms")
    assert (
        one(*well, *(served(0, remote=4, status="error", error_type="tool_error") for _ in range(5))).advice
        == ()
    )
    other = [served(0, remote=193, status="error", error_type="http_503") for _ in range(5)]
    assert one(*well, *other).advice == ()


def test_sound_server_is_told_in_two_lines():
    server = one(
        *(served(0, client=2, remote=100, parsing=1) for _ in range(3)),
        served(0, client=2, remote=100, status="error", error_type="http_503"),
    )
    assert list(findings([server])) == []
    assert list(lines([server])) == [
        "MCP server docs (http, 2025-11-25): 4 calls, 1 failed (http_503 1), at most 4 at once",
        "  p50, p95 of a call 103 ms, 103 ms: client wait 2.00 ms, 2.00 ms; server + network 100 ms, 100 ms; "
        "parsing 1.00 ms, 1.00 ms",
    ]


def test_names_from_outside_are_cleaned():
    (server,) = figures([asked_by_nobody(*serial_rounds(server="do\x1b[31mcs\n"))])
    assert all("\x1b" not in said and "\n" not in said for said in lines([server]))
