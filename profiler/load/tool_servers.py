"""The MCP servers of a load test, as one process of it asks them: their sessions, and the tools found there.

All agents of a process share one session with each server, and so its process where that is a command; with
`--mcp-per-agent` each agent has its own. Everything here happens on the event loop that runs the loops.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Sequence

from profiler.errors import ProfilerError
from profiler.load.options import LoadOptions
from profiler.loop.tools import SchemaTool
from profiler.mcp.servers import ServerSpec
from profiler.mcp.session import Session
from profiler.mcp.tools import McpTools, mcp_tools
from profiler.rundir import McpServer

CLOSE_SECONDS = 5.0
"""Seconds that a session may take to close, its server's process included, before it is left to itself."""

Sessions = tuple[Session, ...]
"""One with each server."""

Connect = Callable[[ServerSpec], Awaitable[Session]]


class ToolServers:
    """Sessions with the servers of `--mcp`, and their tools. `connect` opens a session with one of them."""

    def __init__(self, options: LoadOptions, connect: Connect | None = None) -> None:
        self.specs = options.servers
        self.per_agent = options.mcp_per_agent
        self.described: tuple[McpServer, ...] = ()
        self._allowed = options.allow_writes
        self._client = options.mcp_client
        self._connect = connect or self._connected
        self._open: list[Session] = []
        self._found: dict[Sessions, McpTools] = {}
        self._first: Sessions | None = None
        self._unowned: Sessions | None = None  # the first sessions, until an agent has them
        self._of_agents: dict[str, asyncio.Task[Sessions]] = {}

    async def open(self) -> McpTools:
        """Open the first sessions; what the servers offer is in `described` from then on.

        Raises `ToolServerError` for a server that cannot be started or asked, `UsageError` where none of its
        tools may be called.
        """
        if self._first is None:
            self._first = self._unowned = await self._sessions()
            self.described = describe(self.specs, self._found[self._first])
        return self._found[self._first]

    async def tools_of(self, agent: str) -> Sequence[SchemaTool]:
        """The tools of an agent; opens sessions of its own the first time. Raises as `open` does."""
        if not self.per_agent:
            return (await self.open()).tools
        known = self._of_agents.get(agent)
        if known is None:
            found, self._unowned = self._unowned, None

            async def make() -> Sessions:
                return await self._sessions() if found is None else found

            known = self._of_agents[agent] = asyncio.create_task(make())
        try:
            sessions = known.result() if known.done() else await asyncio.shield(known)
            return self._found[sessions].tools
        except ProfilerError:
            self._of_agents.pop(agent, None)  # its next loop tries again
            raise

    async def refresh(self) -> list[str]:
        """List the tools anew, between loops; returns the servers whose tools are others now.

        Who asks for the tools of an agent gets the new ones from then on. Where a listing fails, or nothing
        is left that may be called, the tools stay as they are.
        """
        changed: list[str] = []
        for sessions in list(self._found):
            before = self._found[sessions]
            with contextlib.suppress(ProfilerError):
                now = await mcp_tools(sessions, allowed=self._allowed)
                if differing := _differing(before, now):
                    changed += differing
                    self._found[sessions] = now
        return list(dict.fromkeys(changed))

    async def close(self) -> None:
        """Close all sessions, and with them the processes that were started for them."""
        of_agents, self._of_agents = self._of_agents, {}
        for task in of_agents.values():
            task.cancel()
        if of_agents:
            await asyncio.wait(of_agents.values())
        sessions, self._open = self._open, []
        self._first = self._unowned = None
        self._found.clear()
        await asyncio.gather(*map(_closed, sessions))

    async def _sessions(self) -> Sessions:
        """A session with each server; their tools are in `_found` from then on."""
        made = await asyncio.gather(*map(self._one, self.specs), return_exceptions=True)
        failed = next((one for one in made if isinstance(one, BaseException)), None)
        sessions = tuple(one for one in made if not isinstance(one, BaseException))
        try:
            if failed is not None:
                raise failed
            self._found[sessions] = await mcp_tools(sessions, allowed=self._allowed)
            return sessions
        except BaseException:
            for session in sessions:
                self._open.remove(session)
            await asyncio.gather(*map(_closed, sessions))
            raise

    async def _one(self, spec: ServerSpec) -> Session:
        session = await self._connect(spec)
        self._open.append(session)
        return session

    async def _connected(self, spec: ServerSpec) -> Session:
        from profiler.mcp.client import connect

        return await connect(spec, client="sdk" if self._client == "sdk" else "lean")


async def _closed(session: Session) -> None:
    with contextlib.suppress(Exception):  # it is over in any case
        async with asyncio.timeout(CLOSE_SECONDS):
            await session.close()


def _differing(before: McpTools, now: McpTools) -> list[str]:
    """The servers whose tools are others in the second."""

    def of(found: McpTools, server: str) -> list[object]:
        return [
            (tool.name, tool.description, tool.parameters, tool.pure)
            for tool in found.tools
            if tool.server == server
        ]

    return [one.server for one in now.servers if of(before, one.server) != of(now, one.server)]


def describe(specs: Sequence[ServerSpec], found: McpTools) -> tuple[McpServer, ...]:
    """The servers and their tools for `run.json`."""
    return tuple(
        McpServer(
            spec.name,
            spec.transport,
            spec.shown,
            one.info.protocol,
            one.info.name,
            one.info.version,
            tuple(one.offered),
            one.withheld,
            one.renamed,
        )
        for spec, one in zip(specs, found.servers, strict=True)
    )


async def look(options: LoadOptions) -> tuple[McpServer, ...]:
    """The servers of these options and their tools, asked once, before a load. Raises as `open` does."""
    servers = ToolServers(options)
    try:
        await servers.open()
        return servers.described
    finally:
        await servers.close()


def said(
    servers: Sequence[McpServer], *, agents: int, workers: int = 1, per_agent: bool = False
) -> list[str]:
    """Lines for a reader: each server, how many of its sessions there are, and its tools."""
    lines = []
    for one in servers:
        itself = f"{one.title} {one.version}".strip()
        told = ", ".join(filter(None, (one.transport, itself, one.protocol and f"protocol {one.protocol}")))
        lines.append(f"MCP server {one.name} ({told}): {one.address}")
        lines.append(f"  {sessions_said(one.transport, agents, workers, per_agent)}")
        offered = [_offered(name, one.renamed.get(name)) for name in one.offered]
        lines.append(f"  tools offered: {', '.join(offered) or 'none'}")
        if one.withheld:
            lines.append(
                f"  withheld, since they do not declare themselves read-only: {', '.join(one.withheld)} "
                "(--allow-writes TOOL,… lets them be called)"
            )
    return lines


def lost_said(server: str, calls: int) -> str:
    """The calls that were lost with a session, in words."""
    lost = "1 call was" if calls == 1 else f"{calls} calls were"
    return f"the session with {server} was lost, and {lost} with it"


def _offered(name: str, listed: str | None) -> str:
    return name if listed is None else f"{name} (there: {listed})"


def sessions_said(transport: str, agents: int, workers: int, per_agent: bool) -> str:
    """`2 stdio processes: one per worker, shared by its 20 agents`."""
    what = ("stdio process", "stdio processes") if transport == "stdio" else ("session", "sessions")
    if agents == 1:
        return f"1 {what[0]}"
    if per_agent:
        return f"{agents} {what[agents != 1]}: one per agent"
    each = math.ceil(agents / workers)
    shared = f", shared by its {each} agents" if each > 1 else ""
    return f"{workers} {what[workers != 1]}: one per worker{shared}"
