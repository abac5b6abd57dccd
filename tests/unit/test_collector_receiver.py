"""What is asked of the collector over HTTP, and what is answered, without a socket."""

from __future__ import annotations

import json

import pytest

from profiler.collector.receiver import Receiver

SPAN = {
    "traceId": "a" * 32,
    "spanId": "b" * 16,
    "name": "chat m",
    "startTimeUnixNano": "5",
    "endTimeUnixNano": "9",
}


class Exchange:
    """As much of `http1.Exchange` as an application sees."""

    def __init__(self, method, path, headers, body):
        self.method, self.path, self.headers, self.body = method, path, headers, body

    def send(self, reply):
        self.reply = reply


class Taker:
    def __init__(self):
        self.behind, self.taken, self.counted, self.said = "", [], [], set()

    def take(self, spans, unreadable, remote):
        self.taken.append(([one.id for one in spans], unreadable, remote))

    def count_request(self, signal, status):
        self.counted.append((signal, status))

    def say_once(self, words):
        self.said.add(words)


@pytest.fixture
def taker():
    return Taker()


def ask(taker, body=b"{}", method=b"POST", path=b"/v1/traces", allowed=(), **headers):
    given = {b"content-type": b"application/json", b"host": b"127.0.0.1:4318"}
    given.update({name.replace("_", "-").encode(): value for name, value in headers.items()})
    exchange = Exchange(method, path, given, body)
    shown = []
    Receiver(taker, shown.append, allowed)(exchange)
    return exchange.reply if not shown else None


def request(*spans):
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": list(spans)}]}]}).encode()


def test_spans_are_taken_and_the_answer_is_empty_in_the_same_encoding(taker):
    reply = ask(taker, request(SPAN, {**SPAN, "spanId": "c" * 16, "flags": 0x301}))
    assert (reply.status, reply.headers, reply.body) == (200, b"content-type: application/json\r\n", b"{}")
    assert taker.taken == [(["b" * 16, "c" * 16], 0, {("a" * 32, "c" * 16)})]
    assert taker.counted == [("traces", 200)]


def test_spans_that_cannot_be_read_are_said_to_be_rejected(taker):
    reply = ask(taker, request(SPAN, {"name": "no ids"}))
    assert json.loads(reply.body)["partialSuccess"]["rejectedSpans"] == "1"
    assert taker.taken == [(["b" * 16], 1, frozenset())]


def test_null_is_what_is_not_given(taker):
    assert ask(taker, b'{"resourceSpans": null}').status == 200
    assert taker.taken == [([], 0, frozenset())]
    assert ask(taker, b'{"resourceSpans": 5}').status == 400


def test_who_sends_too_fast_is_asked_to_come_again(taker):
    taker.behind = "the disk is full"
    reply = ask(taker, request(SPAN))
    assert b"the disk is full: try again" in reply.body
    assert (reply.status, b"retry-after" in reply.headers, taker.taken) == (503, True, [])
    assert json.loads(reply.body)["code"] == 14


@pytest.mark.parametrize("signal", ["metrics", "logs"])
def test_other_signals_are_dropped_in_words(taker, signal):
    reply = ask(taker, path=f"/v1/{signal}".encode())
    assert reply.status == 200
    assert f"{signal} are dropped here" in json.loads(reply.body)["partialSuccess"]["errorMessage"]
    assert taker.said == {f"{signal} come in too, and are dropped: only spans are kept"}
    assert taker.counted == [(signal, 200)]


@pytest.mark.parametrize(
    ("status", "words", "given"),
    [
        (405, b"POST", {"method": b"GET"}),
        (415, b"application/x-protobuf or application/json", {"content_type": b"application/grpc"}),
        (400, b"not JSON", {"body": b"{"}),
        (400, b"no ExportTraceServiceRequest", {"body": b'{"spans":[]}'}),
        (400, b"no ExportTraceServiceRequest", {"body": b'{"resourceSpans":5}'}),
        (403, b"profiler collect --allow-host evil.example", {"origin": b"https://evil.example"}),
        (403, b"another site", {"sec_fetch_site": b"cross-site", "sec_fetch_mode": b"cors"}),
        (404, b"spans go to /v1/traces", {"path": b"/v1/trace"}),
        (405, b"GET", {"path": b"/metrics"}),
        (403, b"--allow-host evil.example", {"path": b"/metrics", "method": b"GET", "host": b"evil.example"}),
    ],
)
def test_what_is_not_taken_is_refused_in_words(taker, status, words, given):
    reply = ask(taker, **given)
    assert (reply.status, words in reply.body, taker.taken) == (status, True, [])


def test_exporters_may_call_the_collector_by_any_name(taker):
    assert ask(taker, host=b"collector:4318").status == 200


def test_metrics_are_shown_to_this_machine_and_to_hosts_that_are_let_in(taker):
    for host, allowed in ((b"localhost:4318", ()), (b"collector:4318", ("collector",))):
        assert ask(taker, b"", b"GET", b"/metrics", allowed, host=host) is None
    assert ask(taker, b"", b"HEAD", b"/healthz", host=b"any").body == b"ok\n"


def test_a_request_that_could_not_be_read_is_counted(taker):
    Receiver(taker, lambda exchange: None).unread(b"-", b"-", 413, "too large")
    assert taker.counted == [("other", 413)]
