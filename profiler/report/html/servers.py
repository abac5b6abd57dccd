"""The section about MCP servers, on the page of a load test and on that of bare records."""

from __future__ import annotations

from collections.abc import Sequence

from profiler.report.html.markup import Cell, Grid, bullets, name, strategy, text
from profiler.report.servers import (
    PART_NAMES,
    cell,
    connections,
    errors,
    facts,
    findings,
    shown_parts,
    withheld,
)
from profiler.report.text import duration
from profiler.rundir import McpServer
from profiler.statistics.servers import Calls, ServerFigures

TITLE = "MCP servers"
ABOUT = (
    "Of every recorded call, warm-up included. The parts add up to the time of a call: the first two pass "
    "before its request is sent, so no faster server shortens them. Where a server does not say how long it "
    "took, its time and the network's are one. Large: p50; small: p95."
)


def section(
    servers: Sequence[ServerFigures], offered: Sequence[McpServer] = (), *, strategies: bool = False
) -> str:
    """What was found, the parts of the time, the tools, and which servers there were.

    `strategies`: with a row for each strategy as well, since it was they who were compared.
    """
    found = [f"{text(one, 900)}." for one in findings(servers)]
    parts = shown_parts(servers)
    columns = ["calls", "failed", "call", *(PART_NAMES[part] for part in parts)]
    whole = Grid("The parts of the time of calls, by server", ["server", *columns, "at once", "connections"])
    tools = Grid("The parts of the time of calls, by tool", ["tool", "server", *columns], sortable=True)
    for one in servers:
        last = [Cell(str(one.most_in_flight), one.most_in_flight), Cell(connections(one), numeric=False)]
        head = Cell(name(one.name), heading=True, below=text(facts(one)))
        whole.rows.append([head, *_cells(one.calls, parts), *last])
        if strategies and len(one.strategies) > 1:
            whole.rows += [
                [Cell(strategy(spec), heading=True), *_cells(calls, parts), Cell(""), Cell("")]
                for spec, calls in one.strategies.items()
            ]
        tools.rows += [
            [Cell(name(tool), heading=True), Cell(name(one.name), numeric=False), *_cells(calls, parts)]
            for tool, calls in one.tools.items()
        ]
    html = bullets(found, "notes") if found else ""
    if servers:
        html += whole.html("table-servers") + tools.html("table-server-tools")
    return html + (_offered(offered) if offered else "")


def _cells(calls: Calls, parts: Sequence[str]) -> list[Cell]:
    return [
        Cell(str(calls.calls), calls.calls),
        Cell(str(calls.errors), calls.errors, below=text(errors(calls)), kind="bad" if calls.errors else ""),
        *(_quantiles(calls, part) for part in ("duration", *parts)),
    ]


def _quantiles(calls: Calls, part: str) -> Cell:
    p50, p95 = cell(calls, part, "p50"), cell(calls, part, "p95")
    return Cell(duration(p50), p50, below="" if p95 is None else duration(p95))


def _offered(servers: Sequence[McpServer]) -> str:
    grid = Grid(
        "The servers of --mcp, and their tools; those that may write are withheld unless --allow-writes "
        "names them",
        ("server", "transport", "address", "protocol", "says it is", "tools offered", "withheld"),
    )
    for one in servers:
        grid.rows.append(
            [
                Cell(name(one.name), heading=True),
                Cell(text(one.transport), numeric=False),
                Cell(f"<bdi>{text(one.address, 120)}</bdi>", numeric=False, kind="words"),
                Cell(text(one.protocol or "–"), numeric=False),
                Cell(f"{name(one.title)} {text(one.version, 40)}", numeric=False),
                Cell(str(len(one.offered)), len(one.offered)),
                Cell(text(withheld(one), 400), numeric=False, kind="words"),
            ]
        )
    return grid.html("table-mcp-servers")
