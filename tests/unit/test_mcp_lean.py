"""What sessions with MCP servers have in common, whatever carries their messages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from profiler.errors import ToolServerError
from profiler.mcp import wire
from profiler.mcp.child import child_environment, last_lines
from profiler.mcp.lean import DISCOVER_SECONDS, Exchange, LeanSession, credible_ns
from profiler.mcp.servers import ServerSpec
from profiler.records import Clock
from profiler.testing import run_virtual


def test_server_s_own_time_is_no_longer_than_the_wait_for_it() -> None:
    assert credible_ns(5_000_000, 0, 9_000_000) == 5_000_000
    assert credible_ns(10_000_000, 0, 9_000_000) == 9_000_000  # whole milliseconds
    assert credible_ns(11_000_000, 0, 9_000_000) is None
    assert credible_ns(5, None, 9) is None
    assert credible_ns(5, 0, None) is None
    assert credible_ns(None, 0, 9) is None


def test_child_has_a_small_part_of_this_process_s_environment() -> None:
    environment = {
        "OPENAI_API_KEY": "sk-1",
        "SECRET_OF_MINE": "hush",
        "HOME": "/",
        "LC_ALL": "C",
        "PATH": "() { :; }",
    }
    assert child_environment(environment) == {"HOME": "/", "LC_ALL": "C"}


def test_last_lines_are_one_line_of_bounded_length() -> None:
    assert last_lines("one\n\ntwo\x1b[0m\nthree\nfour\n") == "two [0m | three | four"
    assert last_lines("x" * 10_000) == "x" * 400
    assert last_lines("") == ""


DISCOVERED = {"supportedVersions": [wire.MODERN], "serverInfo": {"name": "there"}}
INITIALIZED = {"protocolVersion": wire.HANDSHAKE, "serverInfo": {"name": "there"}}
REFUSED = {"code": wire.METHOD_NOT_FOUND, "message": "no such method"}


class Scripted(LeanSession):
    """A server that says `answers` to each method, one after another: (after seconds, result or error).

    Without an answer that is left it says nothing. `asked` are the methods, in order.
    """

    transport = "stdio"

    def __init__(self, clock: Clock, **answers: list[tuple[float, str, Any]]) -> None:
        super().__init__(ServerSpec("there", command=("there",)), 30.0, clock)
        self.asked: list[str] = []
        self._answers = answers

    async def _start(self) -> None:
        pass

    async def _exchange(
        self,
        exchange: Exchange,
        body: bytes,
        method: str,
        timeout: float | None,
        tool: str | None = None,
        more_headers: Mapping[str, str] | None = None,
    ) -> None:
        self.asked.append(method)
        left = self._answers[method.rpartition("/")[2]]
        after, key, value = left.pop(0) if left else (1e9, "result", None)
        try:
            async with asyncio.timeout(timeout):
                await asyncio.sleep(after)
        except TimeoutError:
            exchange.fail("timeout", "no answer")
            return
        exchange.message = {"id": json.loads(body)["id"], key: value}

    async def _notify(self, message: wire.Message) -> None:
        self.asked.append(message["method"])


def test_server_that_refuses_initialize_after_a_late_discover_is_asked_to_discover_again() -> None:
    async def main(clock: Clock) -> tuple[Scripted, float]:
        session = Scripted(
            clock,
            discover=[(DISCOVER_SECONDS + 5, "result", DISCOVERED), (15.0, "result", DISCOVERED)],
            initialize=[(1.0, "error", REFUSED)],
        )
        await session.open()
        return session, clock() / 1e9

    session, took = run_virtual(main)
    assert session.asked == ["server/discover", "initialize", "server/discover"]
    assert session.modern
    assert (session.info.name, session.info.protocol) == ("there", wire.MODERN)
    assert took == pytest.approx(
        DISCOVER_SECONDS + 1.0 + 15.0
    )  # the second time it has as long as any request


@pytest.mark.parametrize(
    ("discover", "initialize", "asked", "words"),
    [
        # Of the older era, and silent to what it does not know.
        ([], [(1.0, "result", INITIALIZED)], ["initialize", "notifications/initialized"], ""),
        # It said that it does not know it: to ask again would lead nowhere.
        ([(1.0, "error", REFUSED)], [(1.0, "error", REFUSED)], ["initialize"], "no such method"),
        # Nothing answers.
        ([], [], ["initialize"], "no answer"),
        # Neither: the refusal is what is told.
        ([], [(1.0, "error", REFUSED)], ["initialize", "server/discover"], "no such method"),
    ],
)
def test_server_is_asked_to_discover_again_only_where_that_may_help(
    discover: list[tuple[float, str, Any]],
    initialize: list[tuple[float, str, Any]],
    asked: list[str],
    words: str,
) -> None:
    async def main(clock: Clock) -> tuple[Scripted, str]:
        session = Scripted(clock, discover=list(discover), initialize=list(initialize))
        try:
            await session.open()
        except ToolServerError as error:
            return session, str(error)
        return session, ""

    session, said = run_virtual(main)
    assert session.asked == ["server/discover", *asked]
    assert words in said
    assert bool(words) == bool(said)
