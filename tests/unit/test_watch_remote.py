"""What the end of a request to an MCP server means, and what its record says of it."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import pytest

from profiler.watch.remote import Requests, Send, SessionState, Wire, bounded_name


class Clock:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


def sent(transport: Any = "http", **attributes: Any) -> tuple[Send, Clock]:
    clock = Clock()
    send = Send(clock, SessionState("weather", "2025-11-25", transport))
    clock.now = 10
    send.handed_over()
    for name, value in attributes.items():
        setattr(send, name, value)
    return send, clock


class MCPError(Exception):
    def __init__(self, code: int, message: str = "words") -> None:
        self.error = type("Data", (), {"code": code, "message": message})()


class ReadError(Exception):
    pass


class PoolTimeout(Exception):
    pass


class ReadTimeout(Exception):
    pass


STOOD_IN = MCPError(-32603, "Server returned an error response")


@pytest.mark.parametrize(
    ("attributes", "error", "expected"),
    [
        ({"answered": True, "status": 200, "reply": "json"}, MCPError(-32602), ("error", "rpc_-32602")),
        ({"answered": True, "status": 200, "reply": "json"}, MCPError(-31999), ("error", "rpc_error")),
        ({"answered": True, "status": 400, "reply": "json"}, MCPError(-32020), ("error", "rpc_-32020")),
        ({"answered": True, "status": 503}, STOOD_IN, ("error", "http_503")),
        ({"answered": True, "status": 429}, STOOD_IN, ("error", "http_429")),
        ({}, MCPError(-32001), ("timeout", "timeout")),
        ({}, MCPError(408), ("timeout", "timeout")),
        ({"answered": True, "status": 200, "reply": "json"}, MCPError(-32001), ("error", "rpc_-32001")),
        ({}, MCPError(-32000), ("error", "connection")),
        ({"answered": True, "reply": "sse", "status": 200}, MCPError(-32000), ("error", "connection")),
        (
            {"answered": True, "reply": "sse", "status": 200, "heard": True},
            MCPError(-32000),
            ("error", "rpc_-32000"),
        ),
        ({"after_loss": True}, MCPError(-32000), ("error", "session_lost")),
        ({"failure": "connection"}, asyncio.CancelledError(), ("error", "connection")),
        ({}, asyncio.CancelledError(), ("cancelled", None)),
        ({}, ValueError("invalid structured content"), ("ok", None)),
    ],
)
def test_an_error_is_what_the_wire_says_of_it(
    attributes: dict[str, Any], error: BaseException, expected: tuple[str, str | None]
) -> None:
    send, _ = sent(**attributes)
    send.raised(error)
    told = None if send.returned is None else send.returned.error_type
    assert (send.status_word, told) == expected


def test_a_request_that_breaks_its_connection_takes_the_others_with_it() -> None:
    shared = Wire()
    culprit, other = sent()[0], sent()[0]
    culprit.session.wire = other.session.wire = shared
    culprit.broke(ReadError())
    for send in (culprit, other):
        send.raised(asyncio.CancelledError())
    assert culprit.returned is not None
    assert other.returned is not None
    assert (culprit.returned.error_type, other.returned.error_type) == ("connection", "session_lost")


@pytest.mark.parametrize(
    ("error", "expected", "posted"),
    [
        (PoolTimeout(), "connection", False),
        (ReadTimeout(), "timeout", True),
        (ReadError(), "connection", True),
    ],
)
def test_what_the_http_client_raises(error: Exception, expected: str, posted: bool) -> None:
    send, _ = sent()
    send.broke(error)
    assert send.failure == expected
    assert (send.posted_ns is not None) == posted


def test_a_refusal_keeps_the_wait_that_the_server_asks_for() -> None:
    send, _ = sent(answered=True)
    send.responds(429, {"retry-after": "3"})
    send.raised(STOOD_IN)
    assert send.returned is not None
    assert (send.returned.signal, send.returned.retry_after_ns) == ("rejected", 3_000_000_000)
    (tried,) = Requests([send]).attempts()
    assert (tried.refused, tried.retry_after_ns) == (True, 3_000_000_000)


def test_a_json_reply_is_answered_with_its_headers_an_event_stream_with_its_last_event() -> None:
    send, clock = sent()
    clock.now = 70_000_000
    send.responds(200, {"content-type": "application/json", "server-timing": "tool;dur=50"})
    clock.now = 80_000_000
    send.resolved()
    send.came_to(object())
    assert (send.answered_ns, send.server_time_ns(), send.reply) == (70_000_000, 50_000_000, "json")

    send, clock = sent()
    send.responds(200, {"content-type": "text/event-stream", "server-timing": "tool;dur=50"})
    for now, data in ((20, ""), (30, '{"method": "notifications/progress"}'), (40, '{"result": {}}')):
        clock.now = now
        send.event(data)
    send.resolved()
    send.came_to(object())
    assert (send.answered_ns, send.server_time_ns(), send.reply) == (40, None, "sse")


def test_a_request_is_posted_when_a_connection_is_there_for_it() -> None:
    for events, posted_ns, new in (
        (("connect_tcp.started", "http11.send_request_headers.started"), 100, True),
        (("http11.send_request_headers.started",), 100, False),
    ):
        send, clock = sent()
        for number, event in enumerate(events):
            clock.now = 100 * (number + 1)
            send.traces(event)
        assert (send.posted_ns, send.new_connection) == (posted_ns, new)


def test_a_server_that_says_it_took_longer_than_its_caller_waited_is_not_believed() -> None:
    class Result:
        is_error = False
        meta: ClassVar[dict[str, int]] = {"toolcall-profiler/serverNs": 9_000_000}

    send, clock = sent()
    clock.now = 5_000_010
    send.resolved()
    send.came_to(Result())
    assert send.server_time_ns() is None


def test_an_error_that_the_tool_returned_is_one() -> None:
    send, _ = sent()
    send.came_to(type("Result", (), {"isError": True})())
    assert send.returned is not None
    assert send.returned.error_type == "tool_error"


def test_several_requests_of_a_call_are_its_tries() -> None:
    first, clock = sent("stdio")
    second = Send(clock, first.session)
    for send, now in ((first, 50), (second, 90)):
        if send is second:
            clock.now = 60
            send.handed_over()
        clock.now = now
        send.resolved()
        send.came_to(object())
    record = Requests([first, second], session_wait_ns=5).record()
    assert record is not None
    assert (record.server, record.transport, record.sends, record.session_wait_ns) == (
        "weather",
        "stdio",
        2,
        5,
    )
    assert (record.posted_ns, record.answered_ns) == (10, 90)
    assert [(one.started_ns, one.ended_ns, one.status) for one in Requests([first, second]).attempts()] == [
        (0, 50, "ok"),
        (10, 90, "ok"),
    ]
    assert Requests([first]).attempts() == ()
    assert Requests(server="weather").record() is None


def test_a_name_of_a_server_is_short_and_has_no_control_characters() -> None:
    assert bounded_name("a\nb") == "a b"
    assert bounded_name("x" * 100) == "x" * 64
    assert bounded_name(None) == ""
