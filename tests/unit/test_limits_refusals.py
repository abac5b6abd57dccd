"""What refusals teach: waits that servers ask for, and the delay before another attempt."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import numpy as np
import pytest

from profiler.limits.refusals import (
    BASE_NS,
    CAP_NS,
    Holdback,
    delay_ns,
    is_transient,
    parse_retry_after,
    retry_after_ns,
    returned_failure,
    signal_of,
    status_of,
)

S = 1_000_000_000


def test_holdback_waits_what_was_asked_and_a_random_share_of_the_spread():
    holdback = Holdback(Random(1))
    assert holdback.wait_ns(0) == 0
    holdback.refused(0, 10 * S)
    waits = [holdback.wait_ns(0) / S for _ in range(500)]
    assert 10 <= min(waits) < 10.1
    assert 11.9 < max(waits) <= 12  # 0.2 · 10 s
    late = [holdback.wait_ns(int(11.5 * S)) / S for _ in range(200)]
    assert max(late) <= 0.5
    holdback.refused(0, S)  # a shorter one changes nothing
    assert holdback.is_closed(int(9.9 * S))
    assert not holdback.is_closed(10 * S)
    assert holdback.wait_ns(12 * S) == 0


def test_delay_before_the_next_attempt():
    random = Random(1)
    asked = [delay_ns(1, "rejected", S, random) / S for _ in range(300)]
    assert min(asked) >= 1
    assert 1.9 < max(asked) <= 2
    for attempt, most in ((1, 0.5), (2, 1.0), (3, 2.0), (9, 8.0)):
        drawn = [delay_ns(attempt, "unknown", None, random) / S for _ in range(300)]
        assert 0.9 * most < max(drawn) <= most


class Answer(Exception):
    def __init__(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.response = type("Response", (), {"status_code": status, "headers": headers or {}})()


class Aiohttp(Exception):
    """As aiohttp.ClientResponseError: the status is the exception's own."""

    status = 503
    headers = {"retry-after": "3"}  # noqa: RUF012


def test_failures_have_a_status_and_an_outcome():
    assert [status_of(e) for e in (Answer(404), Aiohttp(), ValueError(1))] == [404, 503, None]
    errors = [Answer(429), Aiohttp(), Answer(529), TimeoutError(), Answer(500), ValueError()]
    assert [signal_of(e) for e in errors] == ["rejected"] * 3 + ["timeout", "unknown", "unknown"]
    assert [is_transient(e) for e in errors] == [True] * 5 + [False]
    assert not is_transient(Answer(400))


def test_retry_after_at_a_time_is_one_of_the_servers_own_clock():
    at = {"retry-after": "Sun, 29 Nov 2026 10:00:05 GMT"}
    assert retry_after_ns(Answer(429, {**at, "date": "Sun, 29 Nov 2026 10:00:00 GMT"})) == 5 * S
    assert retry_after_ns(Answer(429, {**at, "date": "today"}), lambda: 1795946402.0) == 3 * S
    assert retry_after_ns(Answer(429, at), lambda: 1795946402.0) == 3 * S


def test_retry_after_in_its_three_forms():
    assert retry_after_ns(Answer(429, {"retry-after-ms": "250", "retry-after": "9"})) == S // 4
    assert retry_after_ns(Aiohttp()) == 3 * S
    assert retry_after_ns(ValueError()) is None
    assert parse_retry_after(None, "soon") is None
    assert parse_retry_after("-1", None) is None
    assert parse_retry_after(None, "Wed, 21 Oct 2015 07:28:00 GMT") == 0


def test_holdback_that_nobody_asked_for_is_open_and_one_that_is_over_is_too():
    holdback = Holdback(Random(1))
    assert not holdback.is_closed(0)
    holdback.refused(0, S)
    assert holdback.wait_ns(30 * S) == 0


def test_headers_of_a_shape_that_nobody_knows_ask_for_no_wait():
    error = ValueError()
    error.headers = [("retry-after", "3")]
    assert retry_after_ns(error) is None


def test_status_that_is_none_is_not_believed():
    found = []
    for status in (99, 100, 599, 600):
        error = ValueError()
        error.status_code = status
        found.append(status_of(error))
    assert found == [None, 100, 599, None]


def test_retry_after_that_makes_no_sense_is_not_believed():
    assert parse_retry_after("0", None) == 0
    assert parse_retry_after(None, "0.5") == S // 2
    assert parse_retry_after("1000000", "3") == 3 * S  # a quarter of an hour in ms is not what it means
    assert parse_retry_after(None, "999999") == 999_999 * S
    assert parse_retry_after(None, "1000000") is None
    assert parse_retry_after("soon", "later") is None
    assert parse_retry_after(None, "Mon, 01 Jan 99999999999999999999 00:00:00 GMT") is None


def test_retry_after_as_a_date_is_a_wait_by_the_wall_clock_of_now():
    date = "Tue, 24 Nov 2026 16:00:05 GMT"
    assert parse_retry_after(None, date, lambda: 1795536002.5) == 2_500_000_000
    assert parse_retry_after(None, date, lambda: 1795536006.0) == 0


def test_transient_failures_may_do_better_next_time():
    def answered(status: int) -> bool:
        error = ValueError()
        error.status_code = status
        return is_transient(error)

    assert [status for status in range(400, 600) if answered(status)] == [
        *(408, 429, 500, 502, 503, 504, 529),
    ]
    assert is_transient(asyncio.CancelledError()) is False
    assert signal_of(asyncio.CancelledError()) == "unknown"


def test_full_jitter_doubles_up_to_its_cap():
    class Highest(Random):
        def random(self) -> float:
            return 1.0

    found = [delay_ns(attempt, "unknown", None, Highest()) for attempt in (1, 2, 3, 4, 5, 6)]
    assert found == [BASE_NS, 2 * BASE_NS, 4 * BASE_NS, 8 * BASE_NS, CAP_NS, CAP_NS]
    assert (BASE_NS, CAP_NS) == (500_000_000, 8_000_000_000)
    assert delay_ns(1, "rejected", 2 * S, Highest()) == 3 * S
    assert delay_ns(1, "timeout", 2 * S, Highest()) == BASE_NS  # asked for by nobody who refused


def raised_from(cause: BaseException | None, context: BaseException | None, quiet: bool = False) -> Exception:
    """An application's own error, raised from another one or while another one was handled."""
    error = RuntimeError("the tool failed")
    error.__cause__, error.__context__, error.__suppress_context__ = cause, context, quiet
    return error


def test_limiter_learns_from_what_an_applications_own_error_hides():
    refused, wrapped = Answer(429, {"retry-after": "2"}), raised_from(Answer(503), None, quiet=True)
    assert (status_of(wrapped), signal_of(wrapped), is_transient(wrapped)) == (503, "rejected", True)
    implied = raised_from(None, refused)
    assert (status_of(implied), signal_of(implied), retry_after_ns(implied)) == (None, "rejected", 2 * S)
    assert signal_of(raised_from(None, refused, quiet=True)) == "unknown"  # `from None`
    assert signal_of(ExceptionGroup("two", [ValueError(), raised_from(TimeoutError(), None)])) == "timeout"
    assert signal_of(ExceptionGroup("two", [TimeoutError(), refused])) == "rejected"
    loop = ValueError()
    loop.__context__ = raised_from(loop, None)
    assert signal_of(loop) == "unknown"  # a circle ends


class Held:
    """An object with these attributes, such as a response."""

    def __init__(self, **values: object) -> None:
        self.__dict__.update(values)


class Refused(Exception):
    def __init__(self, status_code: int) -> None:
        super().__init__("refused")
        self.status_code = status_code


@dataclass(slots=True)
class Marked:
    content: str
    is_error: bool


@dataclass(slots=True)
class Slotted:
    status_code: int


class Reply(NamedTuple):
    status: int
    body: str


@pytest.mark.parametrize(
    ("result", "error_type", "signal"),
    [
        (Held(status_code=429, headers={"retry-after": "3"}), "http_429", "rejected"),
        (Held(status=529), "http_529", "rejected"),
        ({"status": 503, "body": ""}, "http_503", "rejected"),
        ({"error": "HTTPStatusError('Client error 429 Too Many Requests')"}, "http_429", "rejected"),
        ({"error": {"code": 529, "message": "Overloaded"}}, "http_529", "rejected"),
        ('{"error": "rate limit exceeded"}', "http_429", "rejected"),
        ("Error: 503 Service Unavailable", "http_503", "rejected"),
        ("HTTPStatusError: Client error '429 Too Many Requests'", "http_429", "rejected"),
        ("An error occurred while running the tool. Error: Request timed out.", "timeout", "timeout"),
        ("Error executing tool: TimeoutError", "timeout", "timeout"),
        ({"type": "tool_result", "is_error": True, "content": "no"}, "error_result", "unknown"),
        (Held(isError=True, content=["429: slow down"]), "http_429", "rejected"),
        (Held(status="error", content="HTTP 429 Too Many Requests"), "http_429", "rejected"),
        (Held(status="error", content="no such city"), "error_result", "unknown"),
        ({"role": "tool", "tool_call_id": "a", "content": "ToolError: overloaded"}, "http_529", "rejected"),
        (Marked("service temporarily unavailable", True), "http_503", "rejected"),
        ({"status": "error", "message": "429 Too Many Requests"}, "http_429", "rejected"),
        ({"success": False, "message": "rate limit exceeded"}, "http_429", "rejected"),
        ('{"is_error": true, "content": "Service Unavailable (503)"}', "http_503", "rejected"),
        ("Tool execution failed: Client error '429 Too Many Requests'", "http_429", "rejected"),
        ("Failed to fetch: 503 Service Unavailable", "http_503", "rejected"),
        ("ReadTimeout: ", "timeout", "timeout"),
        (("Error: 429 Too Many Requests", None), "http_429", "rejected"),
        ([{"type": "text", "text": "Error: 429 Too Many Requests"}], "http_429", "rejected"),
        (Refused(429), "http_429", "rejected"),
        (TimeoutError(), "timeout", "timeout"),
        (ValueError("no such city"), "ValueError", "unknown"),
        ({"error": "no such city"}, None, "unknown"),
        ({"success": False}, None, "unknown"),
        ("Error: no such city", None, "unknown"),
        ("429 Too Many Requests", "http_429", "rejected"),
        ("Service Unavailable", "http_503", "rejected"),
        ("Request failed with status code 429", "http_429", "rejected"),
        ("HTTP Error 503: Service Unavailable", "http_503", "rejected"),
        ("Error: server returned 503", "http_503", "rejected"),
        ("Error fetching data: Client error '429 Too Many Requests'", "http_429", "rejected"),
        ("**Error**: 429", "http_429", "rejected"),
        ("<tool_use_error>HTTP 429</tool_use_error>", "http_429", "rejected"),
        ("Rate limit exceeded, try again later", "http_429", "rejected"),
        ("Traceback (most recent call last):\nhttpx.ReadTimeout", "timeout", "timeout"),
        ("Tool call timed out after 10 seconds", "timeout", "timeout"),
        ("Failed to look up Paris: no such city", None, "unknown"),
        ('{"status": "error", "message": "429 Too Many Requests"}', "http_429", "rejected"),
        ('{"is_error": true, "content": "HTTP 503"}', "http_503", "rejected"),
        ({"success": False, "message": "rate limited"}, "http_429", "rejected"),
        ({"status": "timeout"}, "timeout", "timeout"),
        ({"timed_out": True}, "timeout", "timeout"),
        ({"error": True, "message": "429 Too Many Requests"}, "http_429", "rejected"),
        ({"errors": ["deadline exceeded"]}, "timeout", "timeout"),
        ({"code": 429, "message": "slow down"}, "http_429", "rejected"),
        ({"statusCode": "503"}, "http_503", "rejected"),
        ({"ok": False}, None, "unknown"),
        (Held(error="HTTP 429"), "http_429", "rejected"),
        (Held(error=Answer(529)), "http_529", "rejected"),
        (Slotted(429), "http_429", "rejected"),
        (Reply(503, ""), "http_503", "rejected"),
        ([{"type": "text", "text": "Error: 429"}], "http_429", "rejected"),
        (Answer(429), "http_429", "rejected"),
        # What `str` makes of the exceptions of clients, alone and behind an application's words.
        ("Client error '429 Too Many Requests' for url 'http://x/y'\nFor more", "http_429", "rejected"),
        ("503 Server Error: Service Unavailable for url: http://x/y", "http_503", "rejected"),
        ("429, message='Too Many Requests', url='http://x/y'", "http_429", "rejected"),
        ("Error code: 429 - {'error': {'message': 'slow down'}}", "http_429", "rejected"),
        ("get_weather failed: HTTP Error 429: Too Many Requests", "http_429", "rejected"),
        ("Sorry, something went wrong: 429, message='Too Many Requests'", "http_429", "rejected"),
        ("ERROR Client error '529 ' for url 'http://x/y'", "http_529", "rejected"),
        ("Tool error: timed out", "timeout", "timeout"),
        ("get_weather failed: timed out", "timeout", "timeout"),
        ("ReadTimeout('timed out')", "timeout", "timeout"),
        # Bodies of refusals whose status nobody looked at.
        ('{"detail":"Too Many Requests"}', "http_429", "rejected"),
        ('{"message": "API rate limit exceeded", "request_id": "a1"}', "http_429", "rejected"),
        ("<html>\r\n<head><title>503 Service Unavailable</title></head>", "http_503", "rejected"),
    ],
)
def test_failure_that_a_tool_returns_is_one(result: object, error_type: str | None, signal: str):
    found = returned_failure(result)
    assert found is not None
    assert (found.error_type, found.signal) == (error_type, signal)
    assert found.retry_after_ns == (3 * S if getattr(result, "headers", None) else None)


class Awkward(dict):
    def get(self, *_: object) -> object:
        raise RuntimeError("somebody's own mapping")


class Costly:
    @property
    def status_code(self) -> int:
        raise RuntimeError("a property that asks a server")


@pytest.mark.parametrize(
    "result",
    [
        *(None, 429, [429], "", "Paris", "Errors were made in 429 B.C.", "429", b"Error: 429"),
        *({"error": None, "temperature": 21}, {"status": "ok"}, {"status": 200}, {"is_error": False}, {}),
        *("Heart failure: overloaded ventricles", "Power failure: 429 customers lost power"),
        *("The mission failed after 429 seconds", "Timeout: the 2013 film", "TimeoutError - Python docs: x"),
        "The server timed out in 2019 during the election night",
        "Unable to connect to the internet? Here is what to do: rate limit",
        {"statusCode": 200, "code": 429, "message": "ok"},
        {"code": "529", "msg": "ok", "data": []},
        *([{"title": "x", "text": "Error: 429"}], ("Too many requests", "reviews")),
        *({"tool_call_id": "a", "content": "429 sheep"}, ("429", 1), [{"type": "text", "text": "429"}]),
        *("Timeout is a film of 2011", "Rate limits of APIs, explained", "Failed states index: 429 pages"),
        "HTTP 429 is the status code for Too Many Requests, defined in RFC 6585.",
        "HTTP 429: Too Many Requests\nThe 429 response status code indicates",
        *("Client error '404 Not Found' for url 'http://x/y'", "How to fix an HTTP Error 429: wait"),
        *('{"detail": "too many cooks"}', '{"message": "Too Many Requests", "films": 3}', "<html><p>429</p>"),
        *('{"message": "Rate limits, explained"}', "Client error '429 T' for url 'x'" + " and so on" * 60),
        *({"code": 429}, {"success": True, "code": 503}, {"title": "Error: 429 explained"}, (429, "x")),
        *('{"status": "ok", "count": 429}', '{"error": null}', '{"status": ', [{"text": 3}], [{"error": 1}]),
        *({"error": np.zeros(3)}, Awkward(error=1), Costly(), Held(status_code=404), Held(status=object())),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_result_that_is_no_failure(result: object):
    assert returned_failure(result) is None
