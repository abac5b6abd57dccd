"""MCP servers in words and in cells: the same in the terminal, on the pages and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from profiler.report.text import clean, counted, duration
from profiler.rundir import McpServer
from profiler.shortfalls import EXPLAINED
from profiler.statistics.serial import FEWEST_CALLS
from profiler.statistics.servers import Calls, ServerFigures

PART_NAMES = {
    "session_wait": "session wait",
    "client_wait": "client wait",
    "server": "server",
    "network": "network",
    "server_and_network": "server + network",
    "parsing": "parsing",
}
"""Parts of a call's time (`anatomy.PARTS`) as they are written."""

MOST_ERRORS = 4
MOST_NAMED = 8
"""Tools that are named, of those that were withheld."""


def serialised(server: ServerFigures) -> str | None:
    """That it ran parallel calls one at a time, by whom, with the figures and what to do; None if not so."""
    found = server.serialised
    if found is None:
        return None
    apart, wall, alone = map(duration, (found.apart_seconds, found.wall_seconds, found.alone_seconds))
    name = f"MCP server {clean(server.name)}"
    by_client = found.by == "client"
    if by_client:
        lead = f"{name} gets its calls one at a time: the session of its client lets only one through"
        remedy = EXPLAINED["mcp_session"].remedy
    else:
        of_tool = "" if found.tool is None else f" of {clean(found.tool)}"
        lead = f"{name} runs parallel calls{of_tool} one at a time"
        remedy = EXPLAINED["mcp_server"].remedy
    calls = counted(found.calls, "call")
    if not found.of_rounds:
        said = f"with many callers, {calls} that waited together were answered {apart} apart"
    else:
        sent = "started" if by_client else "posted"
        within = f"within {duration(found.together_seconds)}" if found.together_seconds >= 1e-5 else "at once"
        said = (
            f"{calls} {sent} {within} were answered {apart} apart: {wall} "
            f"instead of {alone} (so in {found.rounds} of {counted(found.of_rounds, 'round')} of at least "
            f"{FEWEST_CALLS} calls)"
        )
    if found.evidence == "told":
        said += "; by its own times no two ran at once"
    return f"{lead}: {said}; {remedy}"


def findings(servers: Iterable[ServerFigures]) -> Iterator[str]:
    """What is wrong with them, and what to do about it."""
    for server in servers:
        found = serialised(server)
        if found is not None:
            yield found
        yield from (f"MCP server {clean(server.name)}: {clean(one, 400)}" for one in server.advice)


def lines(servers: Sequence[ServerFigures]) -> Iterator[str]:
    """Two lines about each, then what was found of all.

    `docs (http, 2025-11-25): 240 calls, 3 failed (tool_error 3), at most 8 at once`,
    `  p50 212 ms, p95 340 ms: client wait 1.20 ms, 3.10 ms; server 200 ms, 310 ms; …`.
    """
    for server in servers:
        yield f"MCP server {clean(server.name)} ({facts(server)}): {counts(server)}"
        if said := times(server.calls):
            yield f"  {said}"
    yield from findings(servers)


def facts(server: ServerFigures) -> str:
    """`http, 2025-11-25`."""
    return ", ".join([server.transport, *(clean(one, 20) for one in server.protocols)])


def counts(server: ServerFigures) -> str:
    """`240 calls, 3 failed (tool_error 3), at most 8 at once`."""
    said = counted(server.calls.calls, "call")
    if server.calls.errors:
        said += f", {server.calls.errors} failed ({errors(server.calls)})"
    return f"{said}, at most {server.most_in_flight} at once"


def errors(calls: Calls) -> str:
    """`tool_error 3, http_503 1`."""
    return ", ".join(
        f"{clean(kind, 30)} {count}" for kind, count in list(calls.error_types.items())[:MOST_ERRORS]
    )


def times(calls: Calls) -> str:
    """p50 and p95 of the whole and of its parts, without parts that take no time; empty if none ever ran."""
    if "duration" not in calls.seconds:
        return ""
    parts = [
        f"{name} {_pair(calls, part)}"
        for part, name in PART_NAMES.items()
        if part in calls.seconds and (calls.seconds[part].p95.value or 0.0) > 0
    ]
    return f"p50, p95 of a call {_pair(calls, 'duration')}: {'; '.join(parts)}"


def _pair(calls: Calls, part: str) -> str:
    found = calls.seconds[part]
    return f"{duration(found.p50.value)}, {duration(found.p95.value)}"


def shown_parts(servers: Iterable[ServerFigures]) -> list[str]:
    """The parts that any of the servers has."""
    every = [server.calls.seconds for server in servers]
    return [part for part in PART_NAMES if any(part in seconds for seconds in every)]


def cell(calls: Calls, part: str, level: str) -> float | None:
    """A quantile of a part in seconds; None where there is none."""
    return calls.seconds[part][level].value if part in calls.seconds else None


def connections(server: ServerFigures) -> str:
    """`12 of 240 opened one`; a dash where nothing is known."""
    if not server.known_connections:
        return "–"
    return f"{server.new_connections} of {server.known_connections} opened one"


def withheld(server: McpServer) -> str:
    """`write_file, delete_file and 3 more`, the tools that may write and so were not offered."""
    names = [clean(one) for one in server.withheld[:MOST_NAMED]]
    left = len(server.withheld) - len(names)
    return ", ".join(names) + (f" and {left} more" if left else "") or "–"
