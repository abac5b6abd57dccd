"""Clients that an agent brought along: pointed at the target, and kept from asking anybody else."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from anthropic import Anthropic, AsyncAnthropic
from openai import AsyncAzureOpenAI, AsyncOpenAI, OpenAI

from profiler.errors import RequestRefused
from profiler.load.clients import Pointing, set_environment
from profiler.load.context import AgentCall, agent_call
from profiler.providers.attempts import observe_attempts, request_guard
from profiler.providers.endpoint import NO_KEY, Endpoint, Tls
from profiler.watch.profiler import Profiler
from tests.unit.test_load_agents import POSITION

HERE = Path(__file__).name
TARGET = Endpoint.parse("http://127.0.0.1:8100")
ASKED = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


@pytest.fixture(autouse=True)
def no_other_target(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def answered(sent: list[httpx2.Request], redirect: str | None = None) -> httpx2.MockTransport:
    """A server that takes down what it is sent, and answers, or redirects."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        sent.append(request)
        if redirect is not None and "moved" not in request.url.path:
            return httpx2.Response(307, headers={"location": redirect})
        return httpx2.Response(200, json={"choices": []})

    return httpx2.MockTransport(answer)


@pytest.mark.parametrize(
    ("kind", "url"),
    [
        (OpenAI, "http://127.0.0.1:8100/v1"),
        (AsyncOpenAI, "http://127.0.0.1:8100/v1"),
        (Anthropic, "http://127.0.0.1:8100"),
        (AsyncAnthropic, "http://127.0.0.1:8100"),
    ],
)
def test_client_is_pointed_at_the_target_and_said_once(kind: Any, url: str) -> None:
    said: list[str] = []
    client = kind(api_key="x")
    pointing = Pointing(TARGET, said.append)
    pointing.point(client)
    pointing.point(client)
    assert str(client.base_url).rstrip("/") == url
    (sentence,) = said
    assert sentence.startswith(f"{kind.__name__} (")
    assert f"asks the target {url} instead of https://api." in sentence
    pointing.point(kind(api_key="x", base_url=url))
    assert len(said) == 1


def test_client_of_a_cloud_stays_as_it_is() -> None:
    client = AsyncAzureOpenAI(azure_endpoint="https://x.openai.azure.com", api_version="1", api_key="k")
    before = str(client.base_url)
    Pointing(TARGET).point(client)
    assert str(client.base_url) == before


@pytest.mark.parametrize(
    ("url", "is_target"),
    [
        ("http://127.0.0.1:8100/v1/chat/completions", True),
        ("http://localhost:8100/v1/messages", True),
        ("http://127.0.0.1:8101/v1/chat/completions", False),
        ("https://api.openai.com/v1/chat/completions", False),
        ("https://api.openai.com:8100/v1/chat/completions", False),
    ],
)
def test_only_the_target_is_asked(url: str, is_target: bool) -> None:
    pointing, call = Pointing(TARGET), AgentCall(POSITION)
    token = agent_call.set(call)
    try:
        if is_target:
            pointing.guard(httpx2.Request("POST", url), True)
            assert call.refused is None
            return
        with pytest.raises(RequestRefused) as refused:
            pointing.guard(httpx2.Request("POST", url), True)
    finally:
        agent_call.reset(token)
    assert call.refused is refused.value
    said = str(refused.value.error)
    assert HERE in said
    assert url.partition("/v1")[0] in said
    assert "only the target, http://127.0.0.1:8100, is asked; make the client with" in said


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("asynchronous", [True, False])
def test_refused_request_is_not_sent_and_not_tried_again(watched: bool, asynchronous: bool) -> None:
    """By a client of the SDKs that a profiler watches, or the transport of a `ToolLoop`."""
    sent: list[httpx2.Request] = []
    refused: list[bool] = []

    def guard(request: httpx2.Request, is_async: bool) -> None:
        refused.append(is_async)
        Pointing(TARGET).guard(request, is_async)

    kind: Any = httpx2.AsyncClient if asynchronous else httpx2.Client
    client: Any = (AsyncOpenAI if asynchronous else OpenAI)(
        api_key="x", max_retries=5, http_client=kind(transport=answered(sent))
    )
    token = None
    if watched:
        profiler = Profiler([])
        profiler.guard = guard
        profiler.instrument(client)
    else:
        observe_attempts(client._client)
        token = request_guard.set(guard)

    async def ask() -> None:
        made = client.chat.completions.create(**ASKED)
        if asynchronous:
            await made

    try:
        with pytest.raises(RequestRefused, match="was refused before it was sent"):
            asyncio.run(ask())
    finally:
        if token is not None:
            request_guard.reset(token)
    assert (sent, refused) == ([], [asynchronous])


def test_redirect_and_whole_url_are_refused_too() -> None:
    sent: list[httpx2.Request] = []
    transport = answered(sent, redirect="https://api.openai.com/moved")
    profiler = Profiler([])
    profiler.guard = Pointing(TARGET).for_plain
    client = profiler.instrument(
        OpenAI(api_key="x", http_client=httpx2.Client(transport=transport, follow_redirects=True))
    )
    Pointing(TARGET).point(client)
    with pytest.raises(RequestRefused, match=r"https://api\.openai\.com was refused"):
        client.chat.completions.create(**ASKED)  # type: ignore[call-overload]
    assert [request.url.host for request in sent] == ["127.0.0.1"]
    with pytest.raises(RequestRefused, match=r"https://other\.example was refused"):
        client.post("https://other.example/v1/chat/completions", body={}, cast_to=dict)
    assert len(sent) == 1


def test_requests_of_a_plain_agent_carry_what_the_target_wants() -> None:
    sent: list[httpx2.Request] = []
    endpoint = Endpoint.parse("http://127.0.0.1:8100/deployments/d?api-version=1")
    endpoint = Endpoint(endpoint.url, endpoint.query, (("api-key", "secret"), ("x-team", "blue")))
    profiler = Profiler([])
    pointing = Pointing(endpoint)
    profiler.guard = pointing.for_plain
    client = OpenAI(api_key="own", http_client=httpx2.Client(transport=answered(sent)))
    profiler.instrument(client)
    pointing.point(client)
    client.chat.completions.create(**ASKED)  # type: ignore[call-overload]
    (request,) = sent
    assert str(request.url) == "http://127.0.0.1:8100/deployments/d/chat/completions?api-version=1"
    assert (request.headers["api-key"], request.headers["x-team"]) == ("secret", "blue")
    assert "authorization" not in request.headers


def test_loop_that_is_over_asks_nobody() -> None:
    call = AgentCall(POSITION, over=True)
    token = agent_call.set(call)
    try:
        with pytest.raises(RequestRefused, match="the loop was ended"):
            Pointing(TARGET).guard(httpx2.Request("POST", "http://127.0.0.1:8100/v1/messages"), True)
    finally:
        agent_call.reset(token)


def test_a_thread_that_a_loop_left_behind_may_ask_for_later_ones() -> None:
    token = agent_call.set(AgentCall(POSITION, over=True, returned=True))
    try:
        Pointing(TARGET).guard(httpx2.Request("POST", "http://127.0.0.1:8100/v1/messages"), True)
        with pytest.raises(RequestRefused, match="only the target"):
            Pointing(TARGET).guard(httpx2.Request("POST", "http://127.0.0.1:81/v1/messages"), True)
    finally:
        agent_call.reset(token)


def test_copies_of_a_client_keep_its_connections() -> None:
    pointing = Pointing(replace(Endpoint.parse("https://127.0.0.1:8100"), tls=Tls(insecure=True)))
    client = OpenAI(api_key="own", http_client=httpx2.Client())
    pointing.point(client)
    transport = client._client._transport
    pointing.point(client.with_options(timeout=5))
    assert client._client._transport is transport


def test_environment_of_modules_that_are_imported_later() -> None:
    environment = {"OPENAI_API_KEY": "mine", "OPENAI_BASE_URL": "https://api.openai.com/v1"}
    set_environment(TARGET, environment)
    assert environment == {
        "OPENAI_API_KEY": "mine",
        "OPENAI_BASE_URL": "http://127.0.0.1:8100/v1",
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:8100",
        "ANTHROPIC_API_KEY": NO_KEY,
    }
    remote: dict[str, str] = {}
    set_environment(Endpoint.parse("https://models.example/v1"), remote)
    assert remote == {
        "OPENAI_BASE_URL": "https://models.example/v1",
        "ANTHROPIC_BASE_URL": "https://models.example",
    }
