"""The transport that a watched client gets passes for the one it had."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import openai
import pytest

from profiler.providers.attempts import observe_attempts
from profiler.watch.profiler import Profiler
from profiler.watch.requests import WatchedRequest

REPLY = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
}
MESSAGES: Any = [{"role": "user", "content": "x"}]


def answer(request: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200, json=REPLY)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_transport_of_both_kinds_whose_replies_are_read_already_is_watched(asynchronous):
    """Such as `httpx2.MockTransport`, which many programs are tested with."""
    records: list[Any] = []
    prof = Profiler(sinks=[records.append])
    transport = httpx2.MockTransport(answer)

    async def main() -> Any:
        given = {"model": "m", "messages": MESSAGES}
        if asynchronous:
            http_client = httpx2.AsyncClient(transport=transport)
            client = prof.instrument(openai.AsyncOpenAI(api_key="k", http_client=http_client))
            async with prof.loop():
                return await client.chat.completions.create(**given)
        with prof.loop():
            sync = openai.OpenAI(api_key="k", http_client=httpx2.Client(transport=transport))
            return prof.instrument(sync).chat.completions.create(**given)

    assert asyncio.run(main()).choices[0].message.content == "hi"
    (round_,) = records[0].rounds
    assert (round_.model.status, round_.model.input_tokens, round_.model.output_tokens) == ("ok", 5, 7)
    assert (round_.model.finish_reason, round_.model.unreadable, records[0].watch_failures) == ("stop", 0, 0)


class Opened(httpx2.BaseTransport, httpx2.AsyncBaseTransport):
    """A transport that is to be entered, has something of its own, and answers with nonsense."""

    pool = "its own"

    def __init__(self, response: Any = None) -> None:
        self.did: Counter[str] = Counter()
        self.response = response

    def __enter__(self) -> Any:
        self.did["enter"] += 1
        return self

    async def __aenter__(self) -> Any:
        self.did["enter"] += 1
        return self

    def __exit__(self, *error: Any) -> None:
        self.did["exit"] += 1

    async def __aexit__(self, *error: Any) -> None:
        self.did["exit"] += 1

    def handle_request(self, request: httpx2.Request) -> Any:
        return self.response

    async def handle_async_request(self, request: httpx2.Request) -> Any:
        return self.response


class WithClient:
    def __init__(self, http_client: Any) -> None:
        self._client = http_client


@pytest.mark.parametrize("asynchronous", [False, True])
def test_it_is_entered_and_asked_as_the_one_it_stands_for(asynchronous):
    transport = Opened()
    kind: Any = httpx2.AsyncClient if asynchronous else httpx2.Client
    client = WithClient(kind(transport=transport))
    Profiler(sinks=[]).instrument(client)  # type: ignore[type-var]
    assert client._client._transport.pool == "its own"
    with pytest.raises(AttributeError, match="'Opened' object has no attribute 'other'"):
        client._client._transport.other  # noqa: B018

    async def main() -> None:
        if asynchronous:
            async with client._client:
                assert transport.did == {"enter": 1}
        else:
            with client._client:
                assert transport.did == {"enter": 1}

    asyncio.run(main())
    assert transport.did == {"enter": 1, "exit": 1}


class AsyncOnly(httpx2.AsyncByteStream):
    pass


@pytest.mark.parametrize("response", [None, "text", httpx2.Response(200, stream=AsyncOnly())])
@pytest.mark.parametrize("watch", ["profiler", "attempts"])
def test_a_response_that_is_none_fails_as_it_does_unwatched(response, watch):
    prof = Profiler(sinks=[])

    def asked(watched: bool) -> tuple[type[BaseException], str]:
        client = httpx2.Client(transport=Opened(response))
        if watched and watch == "profiler":
            prof.instrument(WithClient(client))  # type: ignore[type-var]
        elif watched:
            observe_attempts(client)
        with pytest.raises((AttributeError, AssertionError, TypeError)) as failure, prof.loop():
            client.post("http://m/v1/chat/completions", content=json.dumps({"model": "m"}))
        return failure.type, str(failure.value)

    assert asked(True) == asked(False)


def test_of_two_profilers_of_a_client_the_last_watches_and_both_can_be_taken_off_again():
    http_client = httpx2.Client(transport=httpx2.MockTransport(answer))
    original = http_client._transport
    client = openai.OpenAI(api_key="k", http_client=http_client)
    one, other = Profiler(sinks=[]), Profiler(sinks=[])
    one.instrument(client)
    inner = http_client._transport
    other.instrument(client)
    with one.loop() as first, other.loop() as second:
        client.chat.completions.create(model="m", messages=MESSAGES)
    assert (len(first.rounds), len(second.rounds)) == (0, 1)
    other.uninstrument(client)
    assert http_client._transport is inner
    one.uninstrument(client)
    assert http_client._transport is original


class Login(httpx2.Auth):
    def auth_flow(self, request: httpx2.Request) -> Any:
        response = yield request
        if response.status_code == 401:
            request.headers["authorization"] = "Digest x"
            yield request


@pytest.mark.parametrize("status", [307, 308, 401])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_redirection_and_a_challenge_to_log_in_are_attempts_of_one_request(asynchronous, status):
    """The HTTP client sends the same body again by itself; from a redirection its request has no content."""
    records: list[Any] = []
    prof = Profiler(sinks=[records.append], record_content=True)
    bodies: list[bytes] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        bodies.append(b"".join(request.stream))  # type: ignore[arg-type]
        if len(bodies) == 1:
            return httpx2.Response(status, headers={"location": "/v2/chat/completions"}, content=b"moved")
        return answer(request)

    def traced(request: httpx2.Request) -> httpx2.Response:
        request.extensions["trace"]("http11.send_request_body.complete", {})
        return handle(request)

    async def async_traced(request: httpx2.Request) -> httpx2.Response:
        await request.extensions["trace"]("http11.send_request_body.complete", {})
        return handle(request)

    async def main() -> Any:
        given: Any = {"model": "m", "messages": MESSAGES}
        options: Any = {"api_key": "k", "max_retries": 0}
        if asynchronous:
            http_client = httpx2.AsyncClient(
                transport=httpx2.MockTransport(async_traced), auth=Login(), follow_redirects=True
            )
            client = prof.instrument(openai.AsyncOpenAI(http_client=http_client, **options))
            async with prof.loop():
                return await client.chat.completions.create(**given)
        sync = httpx2.Client(transport=httpx2.MockTransport(traced), auth=Login(), follow_redirects=True)
        with prof.loop():
            return prof.instrument(openai.OpenAI(http_client=sync, **options)).chat.completions.create(
                **given
            )

    assert asyncio.run(main()).choices[0].message.content == "hi"
    assert bodies[0] == bodies[1] != b""
    (round_,) = records[0].rounds
    assert (round_.model.model, round_.model.status, round_.model.error_type) == ("m", "ok", None)
    assert (round_.model.output_tokens, round_.model.unreadable) == (7, 0)
    assert [one.status for one in round_.model.attempts] == [status, 200]
    assert all(one.sent_ns is not None for one in round_.model.attempts)
    assert (records[0].prompt, records[0].watch_failures) == ("x", 0)


def test_a_redirection_that_is_not_followed_is_an_error():
    records: list[Any] = []
    prof = Profiler(sinks=[records.append])
    transport = httpx2.MockTransport(lambda _: httpx2.Response(304))
    client = openai.OpenAI(api_key="k", max_retries=0, http_client=httpx2.Client(transport=transport))
    with pytest.raises(openai.APIStatusError), prof.loop():
        prof.instrument(client).chat.completions.create(model="m", messages=MESSAGES)
    (round_,) = records[0].rounds
    assert (round_.model.status, round_.model.error_type, round_.model.unreadable) == ("error", "http_304", 0)


WATCHING = ("begin", "responded", "on_chunk", "end")


def asked_with_a_failing(
    method: str, error: type[BaseException], asynchronous: bool, monkeypatch: Any
) -> Any:
    """(the reply that a watched client gives, the profiler, its records), where that method raises."""

    def fails(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(WatchedRequest, method, fails)
    records: list[Any] = []
    prof = Profiler(sinks=[records.append])
    body = Body([json.dumps(REPLY).encode()])  # one that passes, not one that is there already
    transport = Opened(httpx2.Response(200, headers={"content-type": "application/json"}, stream=body))
    given: Any = {"model": "m", "messages": MESSAGES}
    options: Any = {"api_key": "k", "max_retries": 0}

    async def main() -> Any:
        if asynchronous:
            http_client = httpx2.AsyncClient(transport=transport)
            client = prof.instrument(openai.AsyncOpenAI(http_client=http_client, **options))
            async with prof.loop():
                return await client.chat.completions.create(**given)
        sync = prof.instrument(openai.OpenAI(http_client=httpx2.Client(transport=transport), **options))
        with prof.loop():
            return sync.chat.completions.create(**given)

    return asyncio.run(main()), prof, records


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("method", WATCHING)
def test_whatever_fails_in_watching_a_request_stays_there(method, asynchronous, monkeypatch):
    reply, prof, records = asked_with_a_failing(method, ValueError, asynchronous, monkeypatch)
    assert (reply.choices[0].message.content, reply.usage.completion_tokens) == ("hi", 7)
    (round_,) = records[0].rounds
    assert prof.failures["request"] == records[0].watch_failures > 0
    assert (round_.model.output_tokens, round_.model.unreadable) == (None, 1)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("method", WATCHING)
def test_an_interruption_while_a_request_is_watched_is_the_applications(method, asynchronous, monkeypatch):
    with pytest.raises(SystemExit):
        asked_with_a_failing(method, SystemExit, asynchronous, monkeypatch)


class Body(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A body that notes what is done with it."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        self.did: list[str] = []

    def __iter__(self) -> Iterator[bytes]:
        try:
            for piece in self.pieces:
                self.did.append("gives one")
                yield piece
        finally:
            self.did.append("stops")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece

    def close(self) -> None:
        self.did.append("is closed")

    async def aclose(self) -> None:
        self.close()


@pytest.mark.parametrize("enough", [0, 2, 9])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_body_is_read_as_it_is_needed_and_closed_once(asynchronous, enough):
    """A connection goes back to its pool when its body is closed."""

    async def did(watched: bool) -> list[str]:
        body = Body([b"data: {}\n\n"] * 5)
        response = httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=body)
        kind: Any = httpx2.AsyncClient if asynchronous else httpx2.Client
        client = kind(transport=Opened(response))
        prof = Profiler(sinks=[])
        if watched:
            prof.instrument(WithClient(client))  # type: ignore[type-var]
        asked: Any = ("POST", "http://m/v1/chat/completions")
        read = 0
        with prof.loop() as loop:
            if asynchronous:
                async with client.stream(*asked, content=b"{}") as given:
                    if enough:
                        pieces = given.aiter_raw()
                        async for _ in pieces:
                            body.did.append("is read")
                            read += 1
                            if read == enough:
                                break
                        await pieces.aclose()
            else:
                with client.stream(*asked, content=b"{}") as given:
                    if enough:
                        for _ in given.iter_raw():
                            body.did.append("is read")
                            read += 1
                            if read == enough:
                                break
        assert len(loop.rounds) == watched
        return body.did

    bare, mine = asyncio.run(did(False)), asyncio.run(did(True))
    assert mine == bare
    assert mine.count("is closed") == 1
    assert mine.count("is read") == min(enough, 5)
