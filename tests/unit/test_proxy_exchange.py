from __future__ import annotations

import asyncio
import gzip
import json
import random
import zlib
from typing import Any

import orjson
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.proxy import conversations
from profiler.proxy.asked import Result, asked_of
from profiler.proxy.kinds import KINDS, kind_of
from profiler.proxy.loops import ALONE, BACKGROUND, BOUNDS, UNREAD
from profiler.proxy.observing import Watching
from profiler.proxy.seen import Exchange, Piece
from profiler.recordings.drafts import Tally, record_of
from profiler.records import decode, encode
from tests.generated_replies import ODD, generated
from tests.unit.proxy_data import APIS, MS, Agent, Call, Traffic, reply, stream

CALLS: list[Call] = [("a1", "weather", {"city": "Bern"})]


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("streamed", [False, True])
def test_any_reply_is_read_without_raising_and_makes_a_record(api: Any, streamed: bool) -> None:
    rng = random.Random(f"{api}{streamed}")
    statuses = set()
    for _ in range(300):
        wire = generated(rng, api, streamed)
        traffic, agent = Traffic(), Agent(api, stream=streamed)
        exchange = traffic.send(agent.path, agent.body, 0)
        exchange.status = wire.status
        exchange.response_headers = [
            (n.lower().encode(), v.encode("latin-1", "replace")) for n, v in wire.headers
        ]
        for place, chunk in enumerate(wire.chunks):
            exchange.response.pieces.append(Piece((place + 1) * MS, chunk))
            traffic.observer.responding(exchange)
        broken = wire.before is not None or wire.during is not None
        traffic.end(exchange, len(wire.chunks) + 1, "upstream gone" if broken else "complete")
        [record] = traffic.close()
        assert decode(encode(record)) == record
        statuses.add(record.status)
        for round_ in record.rounds:
            assert round_.started_ns <= round_.model.ended_ns <= round_.ended_ns
    assert statuses >= {"ok", "error"}


@pytest.mark.parametrize("api", APIS)
def test_client_that_hangs_up_on_what_it_cannot_read_has_not_cancelled(api: str) -> None:
    """Its SDK closes the connection at the first event that is no JSON, and the rest never comes."""
    traffic, agent = Traffic(), Agent(api, stream=True)
    exchange = traffic.send(agent.path, agent.body, 0)
    traffic.respond(exchange, [(50, b'data: {"object": "oops\n\n')], 60, outcome="client gone")
    [record] = traffic.close()
    model = record.rounds[0].model
    assert (model.status, model.error_type) == ("error", "unreadable")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd", "x-gzip"])
@pytest.mark.parametrize("streamed", [False, True])
def test_compressed_replies_are_read_as_they_come(encoding: str, streamed: bool) -> None:
    traffic, agent = Traffic(), Agent("openai", stream=streamed)
    exchange = traffic.send(agent.path, agent.body, 0)
    whole = stream("openai", 50, CALLS) if streamed else [(100, json.dumps(reply("openai", CALLS)).encode())]
    compressor: Any = {
        "deflate": zlib.compressobj(),
        "zstd": zstandard.ZstdCompressor().compressobj(),
    }.get(encoding, zlib.compressobj(wbits=31))
    flush = zstandard.COMPRESSOBJ_FLUSH_BLOCK if encoding == "zstd" else zlib.Z_SYNC_FLUSH
    pieces = [(at, compressor.compress(data) + compressor.flush(flush)) for at, data in whole]
    pieces.append((pieces[-1][0], compressor.flush()))
    packed: Any = pieces if streamed else b"".join(data for _, data in pieces)
    traffic.respond(exchange, packed, 110, headers=[("content-encoding", encoding)])
    agent.went_on(CALLS)
    traffic.respond(traffic.send(agent.path, agent.body, 200), reply("openai"), 250)
    [record] = traffic.records
    assert [call.id for call in record.tool_calls] == ["a1"]
    assert record.rounds[0].model.input_tokens == 100
    if streamed:
        assert record.rounds[0].model.first_token_ns == 50 * MS


def test_encoding_that_nothing_reads_is_counted() -> None:
    traffic, agent = Traffic(), Agent("openai")
    traffic.respond(
        traffic.send(agent.path, agent.body, 0), b"\x01\x02", 50, headers=[("content-encoding", "own")]
    )
    [record] = traffic.records
    assert record.status == "ok"
    assert record.rounds[0].model.unreadable == 1
    assert traffic.skipped == {UNREAD: 1}


def test_compressed_requests_are_read() -> None:
    traffic, agent = Traffic(), Agent("openai")
    traffic.respond(traffic.send(agent.path, agent.body, 0), reply("openai", CALLS), 100)
    agent.went_on(CALLS)
    body = zstandard.ZstdCompressor().compress(json.dumps(agent.body).encode())
    sent = traffic.send(agent.path, body, 200, headers=[("content-encoding", "zstd")])
    traffic.respond(sent, reply("openai"), 250)
    [record] = traffic.records
    assert len(record.rounds) == 2


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"messages": 3}', b"\xff\xfe", gzip.compress(b"{}", mtime=0)]
)
def test_request_that_is_none_is_a_loop_all_the_same(body: bytes) -> None:
    traffic = Traffic()
    exchange = traffic.send("/v1/chat/completions", body, 0)
    traffic.respond(exchange, {"error": {"message": "bad"}}, 50, 400)
    [record] = traffic.close()
    assert (record.status, record.error_type) == ("error", "http_400")


def test_request_that_was_not_kept_begins_a_loop_and_is_counted() -> None:
    traffic = Traffic()
    exchange = Exchange(1, 1, "model", "u", b"POST", b"/openai/deployments/gpt-x/chat/completions", 0)
    exchange.request.kept = False
    traffic.observer.requested(exchange)
    traffic.respond(exchange, reply("openai"), 50)
    [record] = traffic.records
    assert (record.status, record.model) == ("ok", "gpt-x")
    assert traffic.skipped == {conversations.NOT_READ: 1}


@pytest.mark.parametrize("api", APIS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_odd_requests_tell_no_more_than_they_hold(api: Any, data: st.DataObject) -> None:
    odd = st.sampled_from(ODD)
    name = "input" if api == "openai-responses" else "messages"
    part = st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["user", "assistant", "tool", None, 3]),
            "type": st.sampled_from(
                ["function_call_output", "function_call", "message", "reasoning", [], None]
            ),
            "content": st.one_of(
                odd, st.lists(st.fixed_dictionaries({"type": st.just("tool_result"), "tool_use_id": odd}))
            ),
            "tool_call_id": odd,
            "call_id": odd,
        },
    )
    body: dict[str, Any] = {
        name: data.draw(st.one_of(odd, st.lists(st.one_of(part, odd), max_size=6))),
        "model": data.draw(odd),
        "previous_response_id": data.draw(odd),
        "conversation": data.draw(odd),
        "metadata": data.draw(odd),
    }
    text = json.dumps(body).encode()
    asked = asked_of(api, "/x", [(b"x-stainless-retry-count", b"x")], text, b"salt")
    assert all(isinstance(one.id, str) for one in asked.results)
    assert asked.retry is None


def test_results_are_those_after_the_last_words_of_the_model() -> None:
    agent = Agent("openai")
    agent.went_on([("a1", "t"), ("a2", "t")])
    agent.went_on([("b1", "t"), ("b2", "t")])
    agent.history.append({"role": "user", "content": "and hurry"})
    asked = asked_of("openai", agent.path, (), orjson.dumps(agent.body), b"s")
    assert asked.results == (Result("b2"), Result("b1"))
    assert asked.items == 8


def test_words_put_into_the_models_mouth_do_not_hide_results() -> None:
    agent = Agent("anthropic")
    agent.went_on([("a1", "t")])
    agent.history.append({"role": "assistant", "content": "{"})
    asked = asked_of("anthropic", agent.path, (), orjson.dumps(agent.body), b"s")
    assert asked.results == (Result("a1"),)


def test_same_body_has_the_same_digest_under_one_salt_only() -> None:
    def digest(body: bytes, salt: bytes) -> bytes:
        return asked_of("openai", "/x", (), body, salt).digest

    assert digest(b"{}", b"s") == digest(b"{}", b"s")
    assert digest(b"{}", b"s") != digest(b"{ }", b"s")
    assert digest(b"{}", b"s") != digest(b"{}", b"t")


@pytest.mark.parametrize(
    ("method", "path", "kind", "api"),
    [
        ("POST", "/v1/chat/completions", "model", "openai"),
        ("POST", "/openai/deployments/X/chat/completions", "model", "openai"),
        ("POST", "/api/paas/v4/chat/completions/", "model", "openai"),
        ("POST", "/openai/v1/responses", "model", "openai-responses"),
        ("POST", "/v1/messages", "model", "anthropic"),
        (
            "POST",
            "/v1/projects/p/locations/l/publishers/anthropic/models/c@1:rawPredict",
            "model",
            "anthropic",
        ),
        ("POST", "/v1/messages/count_tokens", "count_tokens", None),
        ("POST", "/v1/messages/batches", "batches", None),
        ("GET", "/v1/batches/b", "batches", None),
        ("GET", "/v1/responses/resp_1", "stored_responses", None),
        ("POST", "/v1/responses/resp_1/cancel", "stored_responses", None),
        ("POST", "/v1/conversations", "stored_responses", None),
        ("POST", "/v1/threads/t/messages", "assistants", None),
        ("POST", "/v1/embeddings", "embeddings", None),
        ("GET", "/v1/models/gpt", "models", None),
        ("POST", "/v1/files", "files", None),
        ("POST", "/v1beta/models/gemini:streamGenerateContent", "other_model_api", None),
        ("POST", "/v1/completions", "other_model_api", None),
        ("GET", "/", "other", None),
        ("GET", "/favicon.ico", "other", None),
    ],
)
def test_paths_are_of_few_kinds(method: str, path: str, kind: str, api: Any) -> None:
    assert kind_of(method.encode(), path) == (kind, api)
    assert kind in KINDS


def test_other_requests_are_in_no_loop_and_counted_by_kind() -> None:
    traffic = Traffic()
    for path in ("/v1/embeddings", "/v1/messages/count_tokens", "/secret/path"):
        traffic.respond(traffic.send(path, {"input": "x"}, 0), {"ok": True}, 10)
    assert not traffic.close()
    assert traffic.observer.requests == {
        ("embeddings", "2xx"): 1,
        ("count_tokens", "2xx"): 1,
        ("other", "2xx"): 1,
    }


@pytest.mark.parametrize("name", ["x-request-id", "x-ratelimit-reset-tokens", "request-id"])
def test_credential_that_a_server_sends_back_is_not_told(name: str) -> None:
    told: list[Exchange] = []

    class Observer:
        def requested(self, exchange: Exchange) -> None:
            told.append(exchange)

        def responding(self, exchange: Exchange) -> None: ...

        def ended(self, exchange: Exchange) -> None: ...

        def tick(self, now_ns: int) -> None: ...

    loop = asyncio.new_event_loop()
    try:
        watching = Watching(Observer(), loop)
        exchanges = []
        for number, key in enumerate(("canary-1", "canary-1", "canary-2")):
            exchange = Exchange(number, 1, "model", "u", b"POST", b"/", 0)
            exchange.raw_request = [(b"Authorization", f"Bearer {key}".encode()), (b"X-Own", b"mine")]
            watching.requested(exchange)
            exchange.status = 200
            exchange.raw_response = [(name.encode(), f"id {key}".encode()), (b"Date", b"today")]
            watching.ended(exchange, "complete", 5)
            exchanges.append(exchange)
        watching.flush()
    finally:
        loop.close()
    first, second, third = exchanges
    assert first.key == second.key != third.key
    assert first.request_headers == [(b"x-own", b"mine")]
    assert first.response_headers == [(b"date", b"today")]
    assert "canary" not in repr(told)


def test_draft_of_a_call_that_was_alone_makes_a_derived_call() -> None:
    traffic, agent = Traffic(), Agent("openai")
    drafts: list[Any] = []
    traffic.observer._conversations._ended = drafts.append
    traffic.respond(traffic.send(agent.path, agent.body, 0), reply("openai", CALLS), 100)
    agent.went_on(CALLS)
    traffic.respond(traffic.send(agent.path, agent.body, 350), reply("openai"), 400)
    tally = Tally()
    [call] = record_of(drafts[0], tally).tool_calls
    assert (tally.exact, tally.derived) == (0, 1)
    assert call.latency_ns == 250 * MS


def test_reader_is_told_what_durations_are() -> None:
    traffic, agent = Traffic(), Agent("openai")
    two: list[Call] = [("a1", "weather"), ("a2", "weather")]
    traffic.respond(traffic.send(agent.path, agent.body, 0), reply("openai", CALLS), 100)
    agent.went_on(CALLS)
    traffic.respond(traffic.send(agent.path, agent.body, 350), reply("openai", two), 400)
    assert not traffic.notes
    agent.went_on(two)
    traffic.respond(traffic.send(agent.path, agent.body, 500), reply("openai"), 600)
    assert {*traffic.notes} == {ALONE, BOUNDS}


def test_request_that_is_worked_on_in_the_background_is_no_answered_loop() -> None:
    traffic = Traffic()
    body = {"model": "m", "background": True, "input": "hello"}
    exchange = traffic.send("/v1/responses", body, 0)
    traffic.respond(exchange, {"id": "resp_1", "object": "response", "status": "queued", "output": []}, 50)
    assert not traffic.close()
    assert traffic.skipped == {BACKGROUND: 1}
    traffic = Traffic()
    exchange = traffic.send("/v1/responses", {**body, "stream": True}, 0)  # this one is answered here
    traffic.respond(exchange, stream("openai-responses", 50), 100)
    assert [record.status for record in traffic.close()] == ["ok"]
