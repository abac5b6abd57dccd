"""Tools of MCP servers as a loop's: their names and schemas, which are withheld, what their calls leave."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import pytest

from profiler import Strategy, ToolLoop, UsageError
from profiler.errors import ToolServerError
from profiler.limits.refusals import Returned
from profiler.mcp.session import EMULATOR, CallResult, ListedTool, ServerInfo, Tell
from profiler.mcp.tools import failure_of, mcp_tools, tool_names
from profiler.records import LoopRecord, RemoteCall
from profiler.strategies import parse_strategy
from profiler.testing import ScriptedModel, call, run_virtual

SCHEMA = {"type": "object", "required": ["q"], "properties": {"q": {"type": "string", "x-own": 1}}}


def listed(name: str, *, read_only: bool = True, parameters: Mapping[str, Any] = SCHEMA) -> ListedTool:
    return ListedTool(name, f"Does {name}.", parameters, read_only)


class FakeSession:
    """A server of these tools; a call takes `seconds`, and its text says what was asked."""

    def __init__(
        self, server: str, *tools: ListedTool, title: str = "some server", seconds: float = 0.1, **result: Any
    ) -> None:
        self.server = server
        self.info = ServerInfo(title, "1", "2025-11-25")
        self.asked: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
        self.most = self._running = 0
        self.closed = False
        self.tools: tuple[ListedTool, ...] | ToolServerError = tools
        self._seconds, self._result = seconds, result

    async def list_tools(self) -> tuple[ListedTool, ...]:
        if isinstance(self.tools, ToolServerError):
            raise self.tools
        return self.tools

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
        if tell is not None:
            tell(lambda: RemoteCall(self.server, "stdio", posted_ns=7))
        self._running += 1
        self.most = max(self.most, self._running)
        try:
            await asyncio.sleep(self._seconds)
        finally:
            self._running -= 1
        return CallResult(f"{tool} of {arguments}", RemoteCall(self.server, "stdio"), **self._result)

    async def close(self) -> None:
        self.closed = True


def found(*sessions: FakeSession, allowed: tuple[str, ...] = ()):
    return asyncio.run(mcp_tools(sessions, allowed=allowed))


def test_tools_keep_their_servers_schemas_names_and_descriptions():
    (tool,) = found(FakeSession("files", listed("read"))).tools
    assert (tool.name, tool.description, tool.server, tool.pure) == ("read", "Does read.", "files", True)
    assert tool.parameters == SCHEMA


def test_schema_without_a_type_is_made_one_that_providers_take():
    (tool,) = found(FakeSession("files", listed("read", parameters={}))).tools
    assert tool.parameters == {"type": "object", "properties": {}}
    (odd,) = found(
        FakeSession("files", listed("read", parameters={"type": "object", "required": None}))
    ).tools
    assert odd.parse("{}") == {}
    nullable = {"type": ["object", "null"], "properties": None}
    (odd,) = found(FakeSession("files", listed("read", parameters=nullable))).tools
    assert odd.parameters == {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    ("servers", "names"),
    [
        ([("a", ["x", "y"]), ("b", ["z"])], [["x", "y"], ["z"]]),
        ([("a", ["x", "y"]), ("b", ["x"])], [["a_x", "y"], ["b_x"]]),
        ([("a", ["x.y", "x_y"])], [["x_y", "x_y_2"]]),
        ([("a", ["x.y"]), ("b", ["x_y"])], [["a_x_y"], ["b_x_y"]]),
        ([("a.b", ["x"]), ("a_b", ["x"])], [["a_b_x"], ["a_b_x_2"]]),
        ([("a", ["größe/x"])], [["gr__e_x"]]),
        ([("a", ["n" * 80])], [["n" * 64]]),
        (
            [("s" * 32, ["n" * 64]), ("t" * 32, ["n" * 64])],
            [["s" * 32 + "_" + "n" * 31], ["t" * 32 + "_" + "n" * 31]],
        ),
        ([("a", ["n" * 80, "n" * 81])], [["n" * 64, "n" * 62 + "_2"]]),
    ],
)
def test_names_are_those_that_providers_take_and_each_once(servers, names):
    assert tool_names(servers) == names


def test_renamed_tools_are_called_by_their_own_name_and_said():
    a, b = FakeSession("a", listed("x"), listed("y.z")), FakeSession("b", listed("x"))
    tools = found(a, b)
    assert [tool.name for tool in tools.tools] == ["a_x", "y_z", "b_x"]
    assert tools.servers[0].renamed == {"a_x": "x", "y_z": "y.z"}
    model = ScriptedModel([[call("a_x", q="1"), call("y_z", q="2"), call("b_x", q="3")], "done"])
    run_virtual(lambda clock: ToolLoop(model, tools.tools, clock=clock).run("go"))
    assert [name for name, *_ in a.asked] == ["x", "y.z"]
    assert [name for name, *_ in b.asked] == ["x"]


def test_tools_that_may_write_are_withheld_unless_they_are_allowed():
    session = FakeSession(
        "files", listed("read"), listed("write", read_only=False), listed("drop", read_only=False)
    )
    tools = found(session, allowed=("write",))
    assert [(tool.name, tool.pure) for tool in tools.tools] == [("read", True), ("write", False)]
    assert tools.servers[0].withheld == ("drop",)


def test_every_tool_of_the_emulator_may_be_called():
    tools = found(FakeSession("emulator", listed("put", read_only=False), title=EMULATOR))
    assert [tool.name for tool in tools.tools] == ["put"]
    assert tools.servers[0].withheld == ()


def test_allowed_tool_that_no_server_has_is_an_error_with_a_suggestion():
    with pytest.raises(
        UsageError, match=r"--allow-writes wirte: no server has such a tool \(did you mean 'write'"
    ):
        found(FakeSession("files", listed("write", read_only=False)), allowed=("wirte",))


def test_servers_without_a_tool_that_may_be_called_are_an_error():
    with pytest.raises(
        UsageError, match=r"files: no tool declares itself read-only.*--allow-writes drop,write"
    ):
        found(FakeSession("files", listed("write", read_only=False), listed("drop", read_only=False)))
    with pytest.raises(UsageError, match="files: no tools are listed there"):
        found(FakeSession("files"))


def _run(strategy: Strategy | None = None, **result: Any):
    """One round of four calls of a server's tool: the loop's result, and the session."""
    session = FakeSession("files", listed("read"), **result)

    async def main(clock):
        tools = await mcp_tools([session])
        model = ScriptedModel([[call("read", q=str(n)) for n in range(4)], "done"])
        loop = ToolLoop(model, tools.tools, strategy and strategy.build(clock=clock), clock=clock)
        return await loop.run("go", number=7, trial=2)

    return run_virtual(main), session


def test_call_is_recorded_with_its_server_and_says_which_one_it_is():
    result, session = _run()
    calls = list(result.record.tool_calls)
    assert [one.server for one in calls] == ["files"] * 4
    assert [one.status for one in calls] == ["ok"] * 4
    name, arguments, meta = session.asked[2]
    assert (name, arguments) == ("read", {"q": "2"})
    assert meta == {
        "toolcall-profiler/call": calls[2].id,
        "toolcall-profiler/loop": 7,
        "toolcall-profiler/trial": 2,
    }


def test_tool_that_says_that_it_failed_is_a_failed_call_whose_text_the_model_sees():
    result, _ = _run(error_type="tool_error")
    assert {(one.status, one.error_type) for one in result.record.tool_calls} == {("error", "tool_error")}
    assert "read of {'q': '0'}" in str(result.messages)


def test_call_that_is_cut_off_is_on_its_servers_account():
    session = FakeSession("files", listed("read"), seconds=9.0)
    records: list[LoopRecord] = []

    async def main(clock):
        tools = await mcp_tools([session])
        loop = ToolLoop(
            ScriptedModel([[call("read", q="0")]]), tools.tools, clock=clock, sinks=[records.append]
        )
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(loop.run("go"), 1.0)

    run_virtual(main)
    (cut_off,) = records[0].tool_calls
    assert (cut_off.status, cut_off.error_type) == ("cancelled", "cancelled")
    assert cut_off.remote == RemoteCall("files", "stdio", posted_ns=7)


def test_timed_out_call_has_that_status():
    result, _ = _run(error_type="timeout")
    assert {(one.status, one.error_type) for one in result.record.tool_calls} == {("timeout", "timeout")}


@pytest.mark.parametrize(
    ("spec", "most"), [("semaphore:2@server", 2), ("semaphore:files/*=3", 3), ("gathered", 4)]
)
def test_limit_of_a_server_holds_over_its_tools(spec, most):
    assert _run(parse_strategy(spec))[1].most == most


@pytest.mark.parametrize(
    ("error", "text", "signal", "asked_ns"),
    [
        ("http_429", "", "rejected", 5),
        ("http_503", "", "rejected", 5),
        ("http_500", "", "unknown", 5),
        ("rpc_-32602", "HTTP 429", "unknown", 5),
        ("timeout", "", "timeout", 5),
        ("tool_error", "no such city", "unknown", 5),
        ("tool_error", "Error: HTTP 429 Too Many Requests", "rejected", 5),
    ],
)
def test_limiters_hear_how_a_call_failed(error, text, signal, asked_ns):
    remote = RemoteCall("files", "http")
    assert failure_of(CallResult(text, remote, error, 5)) == Returned(error, signal, asked_ns)
    assert failure_of(CallResult(text, remote)) is None
