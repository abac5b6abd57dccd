"""A refusal that a tool hides in words of its own is a failure of its call, where its client is looked at."""

from __future__ import annotations

import asyncio
import http.client
import io
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import httpx
import pytest

from profiler.loop.loop import ToolLoop
from profiler.loop.tools import tool
from profiler.records import ToolCall
from profiler.testing import ScriptedModel, call, run_virtual
from profiler.watch.answers import look_at_answers
from profiler.watch.profiler import Profiler

Statuses = list[int | Exception]
Ask = Callable[[Statuses], Awaitable[Any]]


def said(statuses: Statuses) -> int:
    status = statuses.pop(0)
    if isinstance(status, Exception):
        raise status
    return status


async def with_httpx(statuses: Statuses) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(said(statuses)))
    async with httpx.AsyncClient(transport=transport) as client:
        await client.get("http://tool/")


async def with_httpx_in_turn(statuses: Statuses) -> None:
    with httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(said(statuses)))) as client:
        client.get("http://tool/")  # noqa: ASYNC212


class Socket:
    def __init__(self, statuses: Statuses) -> None:
        self._statuses = statuses

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(b"HTTP/1.1 %d -\r\ncontent-length: 0\r\n\r\n" % said(self._statuses))

    def sendall(self, data: bytes) -> None: ...

    def close(self) -> None: ...


async def with_the_standard_library(statuses: Statuses) -> None:
    connection = http.client.HTTPConnection("tool")
    connection.sock = Socket(statuses)
    connection.request("GET", "/")
    connection.getresponse().read()


class Response:
    """As much of a response of aiohttp's as its status."""

    def __init__(self, status: int) -> None:
        self.status = status


async def with_aiohttp(statuses: Statuses) -> None:
    await aiohttp.ClientSession._request(statuses, "GET", "http://tool/")  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def looking(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    async def request(statuses: Statuses, *_: object) -> Response:
        return Response(said(statuses))

    monkeypatch.setattr(aiohttp.ClientSession, "_request", request)
    stop = look_at_answers()
    yield
    stop()


def in_a_watched_loop(tool_body: Callable[[], Awaitable[str]]) -> ToolCall:
    records: list[Any] = []

    async def main(clock: Any) -> None:
        prof = Profiler([records.append], clock=clock)
        watched = prof.tool(tool_body)
        with prof.loop() as loop:
            loop.begin_round("openai-chat", "m").ended_ns = clock()
            await watched()

    run_virtual(main)
    return next(iter(records[0].tool_calls))


def in_a_tool_loop(tool_body: Callable[[], Awaitable[str]]) -> ToolCall:
    async def main(clock: Any) -> Any:
        model = ScriptedModel([[call("look_up")], "done"])
        return await ToolLoop(model, [tool(tool_body)], clock=clock).run("Go.")

    return next(iter(run_virtual(main).record.tool_calls))


@pytest.mark.parametrize("run", [in_a_watched_loop, in_a_tool_loop])
@pytest.mark.parametrize("ask", [with_httpx, with_httpx_in_turn, with_the_standard_library, with_aiohttp])
@pytest.mark.parametrize(
    ("statuses", "status", "error_type"),
    [
        ([429], "error", "http_429"),
        ([200, 503], "error", "http_503"),
        ([TimeoutError()], "timeout", "timeout"),
        ([429, 200], "ok", None),  # it tried again
        ([404], "ok", None),  # its own business
        ([200], "ok", None),
    ],
)
def test_call_whose_last_answer_was_a_refusal_has_failed_whatever_it_says(
    run: Callable[..., ToolCall], ask: Ask, statuses: Statuses, status: str, error_type: str | None
) -> None:
    left = list(statuses)

    async def look_up() -> str:
        """Look up."""
        while left:
            try:
                await ask(left)
            except Exception:
                await asyncio.sleep(0.1)
        return "It is not available just now."

    found = run(look_up)
    assert (found.status, found.error_type) == (status, error_type)


def test_what_a_tool_says_of_itself_goes_before_what_its_server_said() -> None:
    async def look_up() -> str:
        """Look up."""
        await with_httpx([429])
        return "Error: 503 Service Unavailable"

    assert in_a_watched_loop(look_up).error_type == "http_503"


def test_clients_are_as_they_were_when_nobody_looks_any_more() -> None:
    looked_at = httpx.Client.send
    first, second = look_at_answers(), look_at_answers()
    first()
    first()  # once more is nothing
    assert httpx.Client.send is looked_at
    second()
    assert httpx.Client.send is looked_at  # the fixture still looks
