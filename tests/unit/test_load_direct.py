"""Loops of one call without a model, on a session that does as it is told, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from profiler.errors import ToolServerError
from profiler.load.calls import CallPlan, PlannedCall
from profiler.load.context import LoopPosition
from profiler.load.direct import DirectAgent, Places, Sessions, raise_file_limit
from profiler.loop.tools import current_call
from profiler.mcp.session import CallResult, ListedTool, ServerInfo, Tell
from profiler.records import NO_MODEL, LoopRecord, RemoteCall
from profiler.strategies import Gathered, SemaphoreLimited
from profiler.testing import run_virtual

MS = 1_000_000
SEARCH = ListedTool("search", "", {"type": "object", "required": ["query"]}, read_only=True)


class FakeSession:
    """Answers after `seconds`, with an error where `error` names one."""

    server = "files"
    info = ServerInfo("files", "1", "2026-07-28")

    def __init__(self, clock, seconds: float = 0.2, error: str | None = None, text: str = "found") -> None:
        self._clock, self._seconds, self._error, self._text = clock, seconds, error, text
        self.asked: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
        self.closed = False

    async def list_tools(self) -> tuple[ListedTool, ...]:
        return (SEARCH,)

    async def call(
        self,
        tool: str,
        arguments: Mapping[str, Any],
        *,
        meta: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        tell: Tell | None = None,
    ) -> CallResult:
        self.asked.append((tool, dict(arguments), dict(meta or {})))
        posted_ns = self._clock()
        await asyncio.sleep(self._seconds)
        remote = RemoteCall("files", "http", "2026-07-28", posted_ns, self._clock())
        return CallResult(self._text, remote, self._error, 5 * MS if self._error == "http_429" else None)

    async def close(self) -> None:
        self.closed = True


def agent(clock, sessions: Sessions, records: list[LoopRecord], **given) -> DirectAgent:
    plan = CallPlan((SEARCH,), lambda number: PlannedCall("search", {"q": number}))
    strategy = given.pop("strategy", None) or Gathered()
    return DirectAgent(plan, sessions, strategy, [records.append], clock=clock, **given)


def at(number: int, name: str = "a0", intended_ns: int | None = None) -> LoopPosition:
    return LoopPosition(number, name, 3, "worker 0", intended_ns)


def opening(session) -> Any:
    async def connect():
        return session

    return connect


def test_loop_is_one_round_with_one_call_that_no_model_asked_for_from_when_it_was_due():
    async def main(clock):
        records: list[LoopRecord] = []
        session = FakeSession(clock)
        one = agent(clock, Sessions(opening(session)), records)
        due_ns = clock() - 300 * MS
        assert await one.run(at(7, intended_ns=due_ns))
        return records, session

    (record,), session = run_virtual(main)
    (round_,) = record.rounds
    (call,) = round_.tool_calls
    assert (record.provider, record.model, record.status, record.number, record.trial) == (
        NO_MODEL, "", "ok", 7, 3,
    )  # fmt: skip
    assert not round_.model.asked
    assert round_.model.duration_ns == 0
    assert record.latency_ns == 500 * MS
    assert (call.name, call.server, call.duration_ns, call.remote_ns) == (
        "search", "files", 200 * MS, 200 * MS,
    )  # fmt: skip
    (asked,) = session.asked
    # What is missing in the arguments the server is to say; the emulator finds the call in its journal.
    assert asked[:2] == ("search", {"q": 7})
    assert {key.rpartition("/")[2]: value for key, value in asked[2].items()} == {
        "call": "call_7",
        "loop": 7,
        "trial": 3,
    }


def test_call_that_fails_fails_the_loop_and_makes_a_closed_agent_pause():
    async def main(clock):
        records: list[LoopRecord] = []
        one = agent(clock, Sessions(opening(FakeSession(clock, error="http_429"))), records)
        return await one.run(at(0)), records

    ended_well, (record,) = run_virtual(main)
    assert ended_well is False
    assert (record.status, record.error_type) == ("error", "http_429")
    assert [refusal.reason for refusal in record.refusals] == ["429"]


@pytest.mark.parametrize(
    ("error", "text", "error_type", "goes_on"),
    [
        ("tool_error", "no such time zone", "tool_error", True),
        ("rpc_-32602", "wrong arguments", "rpc_-32602", True),
        ("tool_error", "Error: too many calls at once", "busy", False),
        ("rpc_error", "rate limit exceeded", "busy", False),
        ("tool_error", "429", "busy", False),
        ("connection", "cannot connect (Too many open files)", "client_limit", False),
        ("connection", "cannot connect (Connection refused)", "connection", False),
    ],
)
def test_tool_that_fails_has_answered_and_a_refusal_makes_a_closed_agent_pause(
    error, text, error_type, goes_on
):
    async def main(clock):
        records: list[LoopRecord] = []
        one = agent(clock, Sessions(opening(FakeSession(clock, error=error, text=text))), records)
        return await one.run(at(0)), records

    answered, (record,) = run_virtual(main)
    assert (record.status, record.error_type, answered) == ("error", error_type, goes_on)


def test_files_that_may_be_open_are_as_many_as_may_be(monkeypatch):
    resource = pytest.importorskip("resource")
    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: asked.append((kind, limits)))
    assert raise_file_limit() == 4096 - 100
    assert asked == [(resource.RLIMIT_NOFILE, (4096, 4096))]


def test_calls_for_which_no_connection_is_left_are_the_clients_failures():
    async def main(clock):
        records: list[LoopRecord] = []
        session = FakeSession(clock)
        one = agent(clock, Sessions(opening(session)), records, places=Places(2))
        await asyncio.gather(*(one.run(at(k)) for k in range(3)))
        await one.run(at(3))
        return sorted(record.error_type or "" for record in records), len(session.asked)

    assert run_virtual(main) == (["", "", "", "client_limit"], 3)


def test_session_that_cannot_be_opened_fails_the_calls_and_is_tried_again():
    async def main(clock):
        records: list[LoopRecord] = []
        tries = 0

        async def connect():
            nonlocal tries
            tries += 1
            if tries == 1:
                raise ToolServerError("MCP server files: refused")
            return FakeSession(clock)

        one = agent(clock, Sessions(connect), records)
        return [await one.run(at(number)) for number in range(2)], records

    ended_well, records = run_virtual(main)
    assert ended_well == [False, True]
    assert [record.error_type for record in records] == ["connection", None]


def test_agents_share_a_session_or_have_their_own():
    async def main(clock, per_agent):
        made = []

        async def connect():
            made.append(FakeSession(clock))
            return made[-1]

        sessions = Sessions(connect, per_agent)
        one = agent(clock, sessions, [])
        await asyncio.gather(*(one.run(at(k, f"a{k % 3}")) for k in range(6)))
        await one.close()
        return [len(session.asked) for session in made], all(session.closed for session in made)

    assert run_virtual(lambda clock: main(clock, False)) == ([6], True)
    assert run_virtual(lambda clock: main(clock, True)) == ([2, 2, 2], True)


def test_call_that_takes_too_long_is_ended_and_recorded():
    async def main(clock):
        records: list[LoopRecord] = []
        one = agent(clock, Sessions(opening(FakeSession(clock, seconds=9.0))), records, timeout=1.0)
        await one.run(at(0))
        return records

    (record,) = run_virtual(main)
    assert (record.status, record.error_type, record.wall_ns) == ("error", "loop_timeout", 1000 * MS)
    assert [call.status for call in record.tool_calls] == ["cancelled"]


def test_calls_pass_the_gate_of_their_strategy():
    async def main(clock):
        records: list[LoopRecord] = []
        one = agent(clock, Sessions(opening(FakeSession(clock))), records, strategy=SemaphoreLimited(2))
        await asyncio.gather(*(one.run(at(number)) for number in range(4)))
        return sorted(record.wall_ns // MS for record in records)

    assert run_virtual(main) == [200, 200, 400, 400]
    assert current_call.get() is None


def test_sessions_close_at_once_and_one_that_does_not_is_left_to_itself():
    async def main(clock):
        made = [FakeSession(clock) for _ in range(3)]

        async def slow() -> None:
            await asyncio.sleep(2.0)

        async def never() -> None:
            await asyncio.Event().wait()

        made[0].close = made[1].close = slow  # type: ignore[method-assign]
        made[2].close = never  # type: ignore[method-assign]
        waiting = list(made)

        async def connect():
            return waiting.pop()

        sessions = Sessions(connect, per_agent=True)
        await sessions.open(["a0", "a1", "a2"])
        began = clock()
        await sessions.close()
        return (clock() - began) / 1e9

    assert run_virtual(main) == pytest.approx(5.0)
