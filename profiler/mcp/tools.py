"""The tools of MCP servers as tools of a loop: from all pages of their listings, with their own schemas.

Which of them a loop is offered is decided here, once: those that declare themselves read-only, and those
that the user allows. What is withheld no model hears of.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from profiler.errors import UsageError, did_you_mean
from profiler.limits.limiter import Signal
from profiler.limits.refusals import REJECTING, Returned, returned_failure
from profiler.loop.tools import CallContext, SchemaTool, current_call
from profiler.mcp.servers import may_be_called
from profiler.mcp.session import META, CallResult, ListedTool, ServerInfo, Session

CALL_SECONDS = 300.0
"""A call that takes longer has failed (`timeout`): the official SDK reads for so long."""

LONGEST_NAME = 64
"""Characters of a tool's name that every provider takes."""

_REJECTED = frozenset(f"http_{status}" for status in REJECTING)
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_-]")


@dataclass(frozen=True, slots=True)
class ServerTools:
    """The tools of one server: those `offered`, by what the model calls them → what the server does, and
    those `withheld`."""

    server: str
    info: ServerInfo
    offered: Mapping[str, str]
    withheld: tuple[str, ...] = ()

    @property
    def renamed(self) -> dict[str, str]:
        """Those of `offered` whose name the model does not see."""
        return {name: listed for name, listed in self.offered.items() if name != listed}


@dataclass(frozen=True, slots=True)
class McpTools:
    """The tools of all servers of a loop."""

    tools: tuple[SchemaTool, ...]
    servers: tuple[ServerTools, ...]


async def mcp_tools(sessions: Sequence[Session], *, allowed: Collection[str] = ()) -> McpTools:
    """The tools of these servers, each called through its session.

    A tool that declares itself read-only is `pure`. `allowed` are tools that may be called although they do
    not declare it. Raises `ToolServerError` when a listing fails, `UsageError` for an allowed tool that
    no server has, and when there is no tool at all that may be called.
    """
    listings = await asyncio.gather(*(session.list_tools() for session in sessions))
    _check(sessions, listings, allowed)
    callable_: list[list[ListedTool]] = [
        [tool for tool in listed if may_be_called(tool, emulated=session.info.emulated, allowed=allowed)]
        for session, listed in zip(sessions, listings, strict=True)
    ]
    names = tool_names(
        [
            (session.server, [tool.name for tool in of])
            for session, of in zip(sessions, callable_, strict=True)
        ]
    )
    tools: list[SchemaTool] = []
    servers: list[ServerTools] = []
    for session, listed, offered, named in zip(sessions, listings, callable_, names, strict=True):
        tools += (_tool(session, tool, name) for tool, name in zip(offered, named, strict=True))
        withheld = tuple(
            tool.name
            for tool in listed
            if not may_be_called(tool, emulated=session.info.emulated, allowed=allowed)
        )
        of_names = {name: tool.name for tool, name in zip(offered, named, strict=True)}
        servers.append(ServerTools(session.server, session.info, of_names, withheld))
    return McpTools(tuple(tools), tuple(servers))


def _check(
    sessions: Sequence[Session], listings: Sequence[Sequence[ListedTool]], allowed: Collection[str]
) -> None:
    known = {tool.name for listed in listings for tool in listed}
    for name in allowed:
        if name not in known:
            where = ", ".join(session.server for session in sessions)
            raise UsageError(
                f"--allow-writes {name}: no server has such a tool{did_you_mean(name, sorted(known))}; "
                f"tools of {where}: {', '.join(sorted(known)) or 'none'}"
            )
    emulated = any(
        session.info.emulated and listed for session, listed in zip(sessions, listings, strict=True)
    )
    if emulated or any(tool.read_only or tool.name in allowed for listed in listings for tool in listed):
        return
    where = ", ".join(session.server for session in sessions)
    if not known:
        raise UsageError(f"--mcp: {where}: no tools are listed there, so a loop would have none")
    raise UsageError(
        f"--mcp: {where}: no tool declares itself read-only, so none is called: name those that may be "
        f"called all the same, --allow-writes {','.join(sorted(known)[:3])}"
    )


def tool_names(servers: Sequence[tuple[str, Sequence[str]]]) -> list[list[str]]:
    """The names under which a model is offered tools, by server and its tools' own names.

    Those that providers take, and each once: a name that two servers have is prefixed with the server's.
    """
    count = Counter(name for _, of in servers for name in set(map(_valid, of)))
    taken: set[str] = set()
    found: list[list[str]] = []
    for server, of in servers:
        mine = []
        for listed in of:
            name = _valid(listed)
            if count[name] > 1:
                name = _valid(f"{server}_{listed}")
            mine.append(_once(name, taken))
        found.append(mine)
    return found


def _valid(name: str) -> str:
    return _NOT_IN_NAMES.sub("_", name)[:LONGEST_NAME] or "tool"


def _once(name: str, taken: set[str]) -> str:
    unique, number = name, 1
    while unique in taken:
        number += 1
        end = f"_{number}"
        unique = name[: LONGEST_NAME - len(end)] + end
    taken.add(unique)
    return unique


def _tool(session: Session, listed: ListedTool, name: str) -> SchemaTool:
    return SchemaTool(
        _function(session, listed.name),
        name=name,
        description=listed.description,
        parameters=_parameters(listed.parameters),
        pure=listed.read_only,
        server=session.server,
    )


def _parameters(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The server's schema as it is; providers refuse one that does not say that it is an object's, and only
    that, or whose properties are none."""
    properties = schema.get("properties")
    return {**schema, "type": "object", "properties": properties if isinstance(properties, Mapping) else {}}


def _function(session: Session, listed: str) -> Callable[..., Awaitable[str]]:
    async def call(**arguments: Any) -> str:
        here = current_call.get()
        answer = None if here is None else here.answer
        tell = None if answer is None else partial(setattr, answer, "telling")
        result = await session.call(listed, arguments, meta=_meta(here), timeout=CALL_SECONDS, tell=tell)
        if answer is not None:
            answer.telling = lambda: result.remote
            answer.failure = failure_of(result)
        return result.text

    return call


def _meta(here: CallContext | None) -> dict[str, Any]:
    """Which call this is, for the emulator's journal."""
    if here is None:
        return {}
    said = {"call": here.call_id, "loop": here.number, "trial": here.trial}
    return {f"{META}{name}": value for name, value in said.items() if value is not None}


def failure_of(result: CallResult) -> Returned | None:
    """The failure of a call for its record and for limiters; None of one that ended well.

    A tool that says that it failed may say so of a server behind it that refused: limiters heed that.
    """
    error = result.error_type
    if error is None:
        return None
    signal: Signal = "unknown"
    asked_ns = result.retry_after_ns
    if error in _REJECTED:
        signal = "rejected"
    elif error == "timeout":
        signal = "timeout"
    elif error == "tool_error":
        told = returned_failure(result.text)
        if told is not None:
            signal = told.signal
            asked_ns = told.retry_after_ns if asked_ns is None else asked_ns
    return Returned(error, signal, asked_ns)
