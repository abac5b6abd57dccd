"""MCP over lines, in virtual time: what is written when, and what the journal says of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from profiler.emulator.http1 import MAX_BODY
from profiler.emulator.journal import Entry, Journal
from profiler.emulator.mcp_stdio import StdioService
from profiler.emulator.mcp_tools import DEFAULT_MCP, McpTools
from profiler.emulator.places import Outstanding, Places
from profiler.emulator.scheduler import Timer
from profiler.emulator.tape import Tape
from profiler.emulator.tool_calls import ToolCalls
from profiler.mcp.session import META
from profiler.scenarios import parse_scenario

SCENARIO = """
description = "tools over MCP"
prompt = "Question {number}"
[model]
first_token = 0
tokens_per_second = 0
[loop]
rounds = 1
fan_out = 1
[tools.look]
description = "Looks."
duration = 2
"""
S = 1_000_000_000


class Time:
    """A clock, and a scheduler upon it."""

    def __init__(self) -> None:
        self.now = 100 * S
        self.timers: list[Timer] = []

    def clock(self) -> int:
        return self.now

    def at(self, due_ns: int, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(due_ns, callback))
        return self.timers[-1]

    def run(self, seconds: float) -> None:
        end = self.now + int(seconds * S)
        while due := [one for one in self.timers if one.callback is not None and one.due_ns <= end]:
            timer = min(due, key=lambda one: one.due_ns)
            self.now = timer.due_ns
            callback, timer.callback = timer.callback, None
            assert callback is not None
            callback()
        self.now = end


class Served:
    """A service, and all that it wrote."""

    def __init__(self, faults: str = "") -> None:
        self.time, self.written, self.left = Time(), b"", 0
        self.kept: list[Entry] = []
        scenario = parse_scenario(SCENARIO + faults, name="mcp", source="mcp.toml")
        journal = Journal(kept=self.kept.append)
        calls = ToolCalls(Tape(scenario, 0), journal, Outstanding(), Places(), self.time)  # type: ignore[arg-type]
        self.service = StdioService(McpTools(calls, DEFAULT_MCP), self._write, self._leave, self.time.clock)

    def _write(self, data: bytes) -> None:
        self.written += data

    def _leave(self) -> None:
        self.left += 1

    def ask(self, ident: int, method: str = "tools/call", **params: Any) -> None:
        if method == "tools/call":
            params = {"name": "look", "arguments": {"subject": "cats"}, **params}
        message = {"jsonrpc": "2.0", "id": ident, "method": method, "params": params}
        self.service.feed(json.dumps(message).encode() + b"\n")

    def cancel(self, ident: Any) -> None:
        params = {"requestId": ident}
        message = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}
        self.service.feed(json.dumps(message).encode() + b"\n")

    def heard(self) -> list[Any]:
        """The ids of what was answered; the method of what was not."""
        lines, self.written = self.written.splitlines(), b""
        found = []
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:
                found.append("noise")
            else:
                found.append(message["id"] if "id" in message else message["method"])
        return found


def fault(kind: str, **more: Any) -> str:
    keys = "".join(f"{key} = {value}\n" for key, value in more.items())
    return f'[[faults]]\nkind = "{kind}"\nat = [{{ loop = 1 }}]\n{keys}'


def test_calls_are_answered_when_they_are_due_and_tell_the_time() -> None:
    served = Served()
    served.ask(1)
    served.time.run(0.5)
    served.ask(2)
    served.ask(3, "ping")
    assert served.heard() == [3]
    served.time.run(1.5)
    message = json.loads(served.written)
    assert message["result"]["_meta"][META + "serverNs"] == 2 * S == served.kept[0].actual_ns
    assert served.heard() == [1]
    served.time.run(0.5)
    assert served.heard() == [2]
    assert [(one.outcome, one.in_flight) for one in served.kept] == [("complete", 0), ("complete", 1)]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_lines_may_come_in_pieces(size: int) -> None:
    served = Served()
    data = b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n\n \r\n{"jsonrpc":"2.0","id":2,"method":"ping"}\r\n{'
    for start in range(0, len(data), size):
        served.service.feed(data[start : start + size])
    assert served.heard() == [1, 2]


def test_line_that_is_too_long_is_refused_once_and_left_out() -> None:
    served = Served()
    for _ in range(MAX_BODY // (1 << 20) + 3):
        served.service.feed(b"x" * (1 << 20))
    served.ask(1, "ping")  # the end of that line
    served.ask(2, "ping")
    assert served.heard() == [None, 2]


def test_progress_comes_in_steps_before_the_answer() -> None:
    served = Served()
    served.ask(1, _meta={"progressToken": "p"})
    served.time.run(1)
    assert served.heard() == ["notifications/progress"] * 2
    served.time.run(1)
    assert served.heard() == ["notifications/progress", 1]


def test_cancelled_call_is_not_answered_and_frees_its_place() -> None:
    served = Served("")
    served.ask(1, _meta={"progressToken": 5})
    for ident in ([1], True, None, 9, 1):
        served.cancel(ident)
    served.time.run(5)
    assert served.heard() == []
    assert [(one.outcome, one.sent_ns) for one in served.kept] == [("cancelled", 0)]
    served.ask(1)
    assert served.service.running
    served.service.close()
    assert [one.outcome for one in served.kept] == ["cancelled", "disconnected"]
    assert served.kept[-1].in_flight == 0


@pytest.mark.parametrize("mode", ["reject", "queue"])
def test_capacity_holds_over_lines(mode: str) -> None:
    served = Served(f'[tools.look.capacity]\nconcurrent = 1\nmode = "{mode}"\nqueue = 1\n')
    for ident in (1, 2, 3):
        served.ask(ident, _meta={"progressToken": ident})
    begun = "notifications/progress"
    assert served.heard() == ([begun, 2, 3] if mode == "reject" else [begun, begun, 3])
    assert {one.status for one in served.kept} == {429 if mode == "reject" else 503}


def test_refusals_take_the_form_that_a_fault_gives_them() -> None:
    for kind in ("mcp_refused_result", "mcp_refused_error"):
        faults = (
            '[tools.look.capacity]\nrequests_per_second = 0.01\n[[faults]]\nkind = "{}"\nprobability = 1\n'
        )
        served = Served(faults.format(kind))
        served.ask(1)
        served.ask(2)
        message = json.loads(served.written)
        if kind == "mcp_refused_error":
            assert message["error"]["code"] == -32000
        else:
            assert message["result"]["isError"] is True
        assert "try again in" in str(message)
        assert served.kept[0].fault == kind


def test_faults_of_lines() -> None:
    loop = {"_meta": {META + "loop": 1}}
    served = Served(fault("mcp_noise"))
    served.ask(1, **loop)
    served.time.run(2)
    assert served.heard() == ["noise", 1]
    served = Served(fault("mcp_exit"))
    served.ask(1, **loop)
    served.time.run(2)
    assert (served.heard(), served.left, served.kept[0].outcome) == ([], 1, "reset")
    served = Served(fault("mcp_silence", seconds=30))
    served.ask(1, **loop)
    served.time.run(29)
    assert served.kept == []
    served.time.run(1)
    assert (served.heard(), served.kept[0].outcome, served.kept[0].due_ns) == ([], "unanswered", 0)
    served = Served(fault("mcp_slow_progress", seconds=2))
    served.ask(1, _meta={META + "loop": 1, "progressToken": 0})
    served.time.run(3)
    assert served.heard() == ["notifications/progress"] * 3
    served.time.run(1)
    assert served.heard() == [1]


def test_faults_of_http_change_nothing_here() -> None:
    served = Served(fault("mcp_http_429") + fault("mcp_reset") + fault("mcp_accepted"))
    served.ask(1, _meta={META + "loop": 1})
    served.time.run(2)
    assert served.heard() == [1]
    assert served.kept[0].fault is None


def test_wrong_messages_are_refused_and_the_next_is_served() -> None:
    served = Served()
    served.service.feed(b"nonsense\n[]\n")
    served.ask(1, "prompts/list")
    served.ask(2, name=7)
    served.ask(3, arguments=[])
    served.ask(4, name="nobody")
    served.ask(5, "initialize", protocolVersion="2025-06-18")
    served.ask(6, "server/discover")
    envelope = {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}
    served.ask(7, "server/discover", _meta=envelope)  # without what it can do
    served.ask(8, "server/discover", _meta={**envelope, "io.modelcontextprotocol/clientCapabilities": {}})
    messages = [json.loads(line) for line in served.written.splitlines()]
    assert [(m["id"], m.get("error", {}).get("code")) for m in messages] == [
        (None, -32700), (None, -32600), (1, -32601), (2, -32602), (3, -32602), (4, None), (5, None),
        (6, -32601), (7, -32602), (8, None),
    ]  # fmt: skip
    assert messages[5]["result"]["isError"] is True
    assert messages[9]["result"]["supportedVersions"] == ["2026-07-28"]
