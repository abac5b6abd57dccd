"""Calls that waited at an MCP server, or for the session with it, are told from those that did not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from profiler.records import RemoteCall
from profiler.shortfalls import Application, Ran, Shortfall, shortfall

MS = 1_000_000


def ran(
    ended: int,
    *,
    name: str = "search",
    started: int = 0,
    waited: int = 0,
    posted: int = 1,
    served: int | None = None,
    server: str = "archive",
) -> Ran:
    """A call, in milliseconds; `served` is how long its server says that it took."""
    remote = RemoteCall(
        server,
        "http",
        posted_ns=(posted + waited) * MS,
        answered_ns=(ended - 1) * MS,
        server_ns=None if served is None else served * MS,
        session_wait_ns=waited * MS,
    )
    return Ran(name, 0, started * MS, ended * MS, remote=remote)


def reason(calls: Sequence[Ran]) -> Shortfall | None:
    wall_ns = max(call.ended_ns for call in calls) - min(call.started_ns for call in calls)
    return shortfall(calls, wall_ns, None, [], Application(0))


CASES: dict[str, tuple[list[Ran], Shortfall | None]] = {
    "a lock around the session": ([ran(100), ran(200, waited=100), ran(300, waited=200)], "mcp_session"),
    "a lock, two calls": ([ran(100), ran(200, waited=100)], "mcp_session"),
    "at the server together": ([ran(100), ran(200), ran(300), ran(400)], "mcp_server"),
    "of several tools": ([ran(100, name="a"), ran(200, name="b"), ran(300, name="c")], "mcp_server"),
    "two, as the server says": ([ran(101, served=98), ran(200, served=98)], "mcp_server"),
    "of unlike length, as the server says": (
        [ran(101, served=98), ran(400, served=298), ran(450, served=48)],
        "mcp_server",
    ),
    "with the wait in what the server says": (
        [ran(101, served=98), ran(200, served=197), ran(300, served=297)],
        "mcp_server",
    ),
    "two of unlike length": ([ran(101, served=98), ran(200, served=197)], None),
    "at once": ([ran(100), ran(101), ran(102)], None),
    "two servers": ([ran(100), ran(200, server="b"), ran(330, server="c")], None),
    "one after another": (
        [ran(100), ran(200, started=100, posted=101), ran(300, started=200, posted=201)],
        "application",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_where_calls_of_an_mcp_server_waited(case: str) -> None:
    calls, expected = CASES[case]
    assert reason(calls) == expected
