"""Sessions with MCP servers: who shares them, when they are opened and closed, what is said of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from profiler import ToolLoop, UsageError
from profiler.errors import ToolServerError
from profiler.load.context import LoopPosition
from profiler.load.options import LoadOptions
from profiler.load.runners import BuiltInAgent
from profiler.load.tool_servers import ToolServers, said, sessions_said
from profiler.mcp.servers import ServerSpec
from profiler.records import LoopRecord
from profiler.rundir import McpServer
from profiler.testing import ScriptedModel, call, run_virtual
from tests.unit.test_mcp_tools import FakeSession, listed

SERVERS = ("files=python -m files", "web=https://example.org/mcp")


class Servers:
    """Opens fake sessions; `opened` are all of them. Those of `refusing` servers cannot be opened."""

    def __init__(self, *refusing: str) -> None:
        self.opened: list[FakeSession] = []
        self.refusing = set(refusing)

    async def __call__(self, spec: ServerSpec) -> Any:
        await asyncio.sleep(0.5)
        if spec.name in self.refusing:
            raise ToolServerError(f"MCP server {spec.name}: no", server=spec.name)
        self.opened.append(
            FakeSession(spec.name, listed(f"ask_{spec.name}"), listed("write", read_only=False))
        )
        return self.opened[-1]

    @property
    def left(self) -> list[str]:
        return [one.server for one in self.opened if not one.closed]


def of(connect: Servers, **options: Any) -> ToolServers:
    return ToolServers(LoadOptions(mcp=SERVERS, **options), connect)


def test_agents_share_one_session_with_each_server():
    connect = Servers()

    async def main(clock):
        servers = of(connect)
        tools = [await servers.tools_of(agent) for agent in ("", "a", "b")]
        await servers.close()
        return tools

    tools = run_virtual(main)
    assert [tool.name for tool in tools[0]] == ["ask_files", "ask_web"]
    assert tools[1] is tools[0]
    assert [one.server for one in connect.opened] == ["files", "web"]
    assert connect.left == []


def test_each_agent_has_its_own_and_the_first_has_those_that_were_looked_at():
    connect = Servers()

    async def main(clock):
        servers = of(connect, mcp_per_agent=True)
        first = await servers.open()
        one, two, again = await asyncio.gather(*(servers.tools_of(agent) for agent in ("a", "b", "b")))
        await servers.close()
        return first.tools, one, two, again

    first, one, two, again = run_virtual(main)
    assert one is first
    assert two is again
    assert two is not one
    assert [one.server for one in connect.opened] == ["files", "web"] * 2
    assert connect.left == []


def test_tools_that_a_server_lists_by_now_are_those_of_the_next_loops():
    connect, records = Servers(), []

    async def main(clock):
        servers = of(connect)
        model = ScriptedModel([[call("ask_files", q="1")], "done", [call("more", q="1")], "done"])
        runner = BuiltInAgent(
            ToolLoop(model, clock=clock, sinks=[records.append]), "go", 60.0, servers.tools_of
        )
        await runner.run(at("a"))
        before = await servers.tools_of("a")
        same = await servers.refresh(), await servers.tools_of("a") is before
        connect.opened[0].tools = (listed("more"),)
        changed = await servers.refresh()
        await runner.run(at("a"))
        connect.opened[0].tools = ToolServerError("no", server="files")
        failed = await servers.refresh()
        connect.opened[0].tools = connect.opened[1].tools = (listed("write", read_only=False),)
        nothing = await servers.refresh()
        kept = [tool.name for tool in await servers.tools_of("a")]
        await servers.close()
        return same, changed, failed, nothing, kept

    assert run_virtual(main) == (([], True), ["files"], [], [], ["more", "ask_web"])
    assert [[c.name for c in record.tool_calls] for record in records] == [["ask_files"], ["more"]]
    assert all(record.good for record in records)


def test_server_that_cannot_be_opened_closes_the_others():
    connect = Servers("web")

    async def main(clock):
        servers = of(connect)
        with pytest.raises(ToolServerError, match="MCP server web: no"):
            await servers.open()

    run_virtual(main)
    assert connect.left == []
    assert [one.server for one in connect.opened] == ["files"]


def test_sessions_that_are_opened_when_the_run_is_cut_off_are_closed():
    connect = Servers()

    async def main(clock):
        servers = of(connect, mcp_per_agent=True)
        await servers.open()
        tasks = [asyncio.create_task(servers.tools_of(agent)) for agent in "abc"]
        await asyncio.sleep(0.2)
        for task in tasks:
            task.cancel()
        await servers.close()

    run_virtual(main)
    assert connect.left == []


def test_described_are_the_servers_with_what_is_offered_and_withheld():
    connect = Servers()

    async def main(clock):
        servers = of(connect, allow_writes=("write",))
        await servers.open()
        await servers.close()
        return servers.described

    files, web = run_virtual(main)
    assert files == McpServer(
        *("files", "stdio", "python -m files", "2025-11-25", "some server", "1"),
        offered=("ask_files", "files_write"),
        renamed={"files_write": "write"},
    )
    assert (web.transport, web.address, web.withheld) == ("http", "https://example.org/mcp", ())


def _runner(connect: Servers, records: list[LoopRecord], clock: Any) -> tuple[BuiltInAgent, ToolServers]:
    servers = of(connect, mcp_per_agent=True)
    model = ScriptedModel([[call("ask_files", q="1")], "done"] * 2)
    loop = ToolLoop(model, clock=clock, sinks=[records.append])
    return BuiltInAgent(loop, "go", 60.0, servers.tools_of), servers


def at(agent: str) -> LoopPosition:
    return LoopPosition(3, agent, 0, "worker 0", None)


def test_agents_loop_calls_its_own_session_and_opening_it_is_no_part_of_the_loop():
    connect, records = Servers(), []

    async def main(clock):
        runner, servers = _runner(connect, records, clock)
        went = [await runner.run(at("a")), await runner.run(at("b"))]
        await servers.close()
        return went

    assert run_virtual(main) == [True, True]
    assert [len(one.asked) for one in connect.opened if one.server == "files"] == [1, 1]
    assert [record.latency_ns for record in records] == [100_000_000] * 2


def test_agent_whose_server_cannot_be_opened_leaves_a_failed_loop_and_tries_again():
    connect, records = Servers("web"), []

    async def main(clock):
        runner, servers = _runner(connect, records, clock)
        first = await runner.run(at("a"))
        connect.refusing.clear()
        again = await runner.run(at("a"))
        await servers.close()
        return first, again

    assert run_virtual(main) == (False, True)
    first, again = records
    assert (first.status, first.error_type, first.number, first.agent) == ("error", "connection", 3, "a")
    assert again.status == "ok"
    assert connect.left == []


@pytest.mark.parametrize(
    ("transport", "agents", "workers", "per_agent", "words"),
    [
        ("stdio", 1, 1, False, "1 stdio process"),
        ("stdio", 20, 1, False, "1 stdio process: one per worker, shared by its 20 agents"),
        ("stdio", 40, 2, False, "2 stdio processes: one per worker, shared by its 20 agents"),
        ("http", 41, 2, False, "2 sessions: one per worker, shared by its 21 agents"),
        ("stdio", 2, 2, False, "2 stdio processes: one per worker"),
        ("stdio", 40, 2, True, "40 stdio processes: one per agent"),
        ("http", 3, 1, True, "3 sessions: one per agent"),
    ],
)
def test_number_of_sessions_is_said(transport, agents, workers, per_agent, words):
    assert sessions_said(transport, agents, workers, per_agent) == words


def test_plan_says_which_tools_are_offered_and_withheld():
    server = McpServer(
        *("files", "stdio", "python -m files", "2025-11-25", "some server", "1"),
        offered=("read", "files_list"),
        withheld=("write",),
        renamed={"files_list": "list"},
    )
    assert said([server], agents=1) == [
        "MCP server files (stdio, some server 1, protocol 2025-11-25): python -m files",
        "  1 stdio process",
        "  tools offered: read, files_list (there: list)",
        "  withheld, since they do not declare themselves read-only: write "
        "(--allow-writes TOOL,… lets them be called)",
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mcp_per_agent": True}, "--mcp-per-agent is about MCP servers: name them with --mcp"),
        ({"allow_writes": ("x",)}, "--allow-writes is about MCP servers"),
        ({"mcp_headers": ("web:a=b",)}, "--mcp-header web: no such server"),
    ],
)
def test_options_about_servers_need_some(options, words):
    with pytest.raises(UsageError, match=words):
        LoadOptions(**options)
