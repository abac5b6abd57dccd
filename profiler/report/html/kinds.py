"""Kinds of loops side by side, on the page of records: tables, phases, curves."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from profiler import palette
from profiler.anatomy import PHASES
from profiler.report.html.bare import Bare
from profiler.report.html.charts import SHARES, critical_shares
from profiler.report.html.comparison import READ_AT
from profiler.report.html.markup import (
    LONGEST,
    Cell,
    Grid,
    behind,
    bullets,
    chart,
    name,
    seconds,
    swatch,
    text,
)
from profiler.report.text import duration, number, percent

MOST_TOOLS = 120
"""Rows of the tools' table: those with the most calls. The page says how many more there are."""


def _group(bare: Bare, place: int) -> str:
    return swatch(colours(bare)[place]) + name(bare.summaries[place].strategy)


def colours(bare: Bare) -> list[str]:
    """Of strategies their own; where several kinds have the same one, others that differ."""
    own = [palette.strategy_colour(group.strategy) for group in bare.groups]
    if len(set(own)) == len(own):
        return own
    return list(
        itertools.islice(itertools.cycle((*palette.SEMAPHORE, palette.GATHERED, palette.OTHER)), len(own))
    )


def groups(bare: Bare) -> str:
    """A row for each kind: how many, how long, how many failed, and were cancelled if any was."""
    stopped = any(one.loops.cancelled for one in bare.summaries)
    grid = Grid(
        "Kinds of loops",
        [
            "loops of",
            "loops",
            "p50",
            "p95",
            "failed",
            *(["cancelled"] if stopped else []),
            "requests per loop",
            "calls per loop",
            "speed-up",
            "efficiency",
        ],
        sortable=True,
    )
    for place, one in enumerate(bare.summaries):
        loops = max(1, one.loops.due)
        mine = bare.table.strategy == bare.table.strategies.index(one.strategy)
        calls = int(np.count_nonzero(mine[bare.table.call_loop]))
        requests = int(bare.table.requests[mine].sum())
        failed = one.failure_rate.value
        grid.rows.append(
            [
                Cell(_group(bare, place), heading=True),
                Cell(f"{one.loops.due:,}".replace(",", " "), float(one.loops.due)),
                seconds(one.loop_seconds.p50.value),
                seconds(one.loop_seconds.p95.value),
                Cell(percent(failed), failed, kind="bad" if failed else ""),
                *([Cell(str(one.loops.cancelled), float(one.loops.cancelled))] if stopped else []),
                Cell(number(requests / loops), requests / loops),
                Cell(number(calls / loops), calls / loops),
                Cell(
                    "–" if one.speed_up.value is None else f"{number(one.speed_up.value)}×",
                    one.speed_up.value,
                ),
                Cell(percent(one.efficiency.value), one.efficiency.value),
            ]
        )
    return grid.html("table-groups")


def phases(bare: Bare) -> str:
    """Mean seconds by phase as bars, and p50 and p95 of each."""
    table = bare.table
    alone = bare.table.nested.size == 1
    grid = Grid(
        "Seconds per loop in each phase",
        [
            *(["loops of"] if len(bare.shown) > 1 else []),
            "phase",
            *(("time", "share") if alone else ("mean", "share", "p50", "p95")),
        ],
    )
    seen: list[str] = []
    for place, (group, one) in enumerate(zip(bare.shown, bare.summaries, strict=True)):
        done = group.due[table.status[group.due] == 0]
        for column, phase in enumerate(PHASES):
            mean = one.phases.get(phase)
            if not mean or not done.size:
                continue
            spent = table.phases[done, column] / 1e9
            seen.append(phase)
            first = [Cell(_group(bare, place), heading=True)] if len(bare.shown) > 1 else []
            label = swatch(palette.PHASES[phase]) + text(phase.replace("_", " "))
            share = mean / one.mean_loop_seconds if one.mean_loop_seconds else None
            grid.rows.append(
                [
                    *first,
                    Cell(label, heading=not first, numeric=False),
                    seconds(mean),
                    Cell(percent(share), share),
                    *([] if alone else [seconds(float(np.quantile(spent, q))) for q in (0.5, 0.95)]),
                ]
            )
    if not grid.rows:
        return "<p>No loop came to an answer, so there is nothing to divide.</p>"
    legend = (
        swatch(palette.PHASES[phase]) + text(phase.replace("_", " "))
        for phase in PHASES
        if phase in set(seen)
    )
    height = 50 + 40 * len(bare.shown)
    return (
        bullets(legend, "legend")
        + chart("chart-phases", "Mean seconds per loop, stacked by phase", height)
        + grid.html("table-phases")
    )


def tools(bare: Bare) -> str:
    """A row per tool and kind: calls, errors, how long, and how much of it decided the time."""
    shares = critical_shares(bare)
    several = len(bare.shown) > 1
    grid = Grid(
        "Calls of each tool",
        [
            *("tool", *(["loops of"] if several else [])),
            *(
                "calls",
                "errors",
                "p50",
                "p95",
                "queue p50",
                "queue p95",
                "critical path",
                "held the event loop",
            ),
        ],
        sortable=True,
    )
    rows = [
        (tool, place, found) for place, one in enumerate(bare.summaries) for tool, found in one.tools.items()
    ]
    rows.sort(key=lambda row: -row[2].calls)
    for tool, place, found in rows[:MOST_TOOLS]:
        share = shares.get(bare.summaries[place].strategy, {}).get(tool, 0.0)
        kinds = ", ".join(f"{text(kind, 30)} {count}" for kind, count in list(found.error_types.items())[:4])
        held = found.blocking_seconds
        grid.rows.append(
            [
                Cell(name(tool), heading=True),
                *([Cell(_group(bare, place), numeric=False)] if several else []),
                Cell(str(found.calls), float(found.calls)),
                Cell(str(found.errors), float(found.errors), below=kinds, kind="bad" if found.errors else ""),
                *(seconds(found.seconds[q].value) for q in ("p50", "p95")),
                *(seconds(found.queue_seconds[q].value) for q in ("p50", "p95")),
                Cell(percent(share), share),
                Cell(duration(held) if held else "–", held),
            ]
        )
    left = len(rows) - len(grid.rows)
    more = (
        f'<p class="small">{left} more rows, of tools with fewer calls, are left out here.</p>'
        if left
        else ""
    )
    return grid.html("table-tools") + more


def curves(bare: Bare, series: Sequence[dict[str, Any]]) -> str:
    """The choice of a series, the curves, and the quantiles behind them."""
    options = "".join(
        f'<option value="{index}">{text(one["name"], LONGEST + 5)}</option>'
        for index, one in enumerate(series)
    )
    grid = Grid("Seconds at or below which this share lies", ["series", "loops of", *map(percent, READ_AT)])
    places = [SHARES.index(share) for share in READ_AT]
    for one in series:
        for place, curve in enumerate(one["curves"]):
            if curve is not None:
                grid.rows.append(
                    [
                        Cell(f"<bdi>{text(one['name'], LONGEST + 5)}</bdi>", heading=True),
                        Cell(_group(bare, place), numeric=False),
                        *(seconds(curve[at]) for at in places),
                    ]
                )
    return (
        '<p class="controls"><label for="pick-series">Time of</label> '
        f'<select id="pick-series">{options}</select></p>'
        + chart("chart-distribution", "Cumulative share against time, one curve per kind of loops", 340)
        + '<p class="readout" id="readout" aria-live="off">Point at a curve to read it.</p>'
        + behind(grid, "table-distributions")
    )
