"""The series behind the pictures: distributions, the course of the run, the ladder. Plain data.

Distributions are of the same loops as the summary's quantiles and use its definition, so that a
curve passes through them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from profiler import palette
from profiler.report.html.data import Material
from profiler.report.html.waterfalls import waterfalls
from profiler.report.text import clean
from profiler.rundir import Trial
from profiler.statistics.figures import LimitLine, StrategySummary, limit_line
from profiler.statistics.summary import Summary
from profiler.statistics.table import NONE, OK, Ints, Table
from profiler.statistics.windows import Block, Indices, Measured, completed, latency

SHARES = (
    *(round(0.01 * k, 4) for k in range(100)),
    *(round(0.99 + 0.001 * k, 4) for k in range(1, 10)),
    1.0,
)
"""The shares at which a distribution is drawn: every hundredth, every thousandth in the last one."""

CURVE_TOOLS = 12
MOST_CURVES = 160
"""Tools with a distribution of their own are those with the most calls: fewer with many strategies."""

MOST_BINS = 240
FINEST_BIN = 0.25
_WIDTHS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)


def distributions(material: Material, strategies: int = 1) -> dict[str, dict[str, list[float]]]:
    """Series (`loops`, `rounds`, `tool phases`, `tool NAME`) → strategy → seconds at `SHARES`."""
    table = material.table
    groups = _top_groups(material)
    finished = {group.strategy: _finished(table, group) for group in groups}
    due = {group.strategy: _due(group.blocks) for group in groups}

    def rounds(strategy: str) -> Indices:
        return _members(table, finished[strategy], table.round_loop)

    def calls(strategy: str, code: int) -> Ints:
        members = _members(table, due[strategy], table.call_loop)
        return _positive(table.duration[members[table.call_tool[members] == code]])

    of: dict[str, Callable[[str], Ints]] = {
        "loops": lambda strategy: latency(table, finished[strategy]),
        "rounds": lambda strategy: table.round_wall[rounds(strategy)],
        "tool phases": lambda strategy: _positive(table.tool_wall[rounds(strategy)]),
    }
    counts = np.bincount(table.call_tool, minlength=len(table.tools))
    most = min(CURVE_TOOLS, MOST_CURVES // max(1, strategies))
    for code in np.argsort(-counts, kind="stable")[:most]:
        of[f"tool {table.tools[code]}"] = partial(calls, code=code)
    result: dict[str, dict[str, list[float]]] = {}
    for name, samples in of.items():
        curves = {group.strategy: samples(group.strategy) for group in groups}
        drawn = {strategy: curve(values) for strategy, values in curves.items() if values.size}
        if drawn:
            result[name] = drawn
    return result


def curve(nanoseconds: Ints) -> list[float]:
    """Seconds at `SHARES`: quantiles by the summary's definition (type 7)."""
    return [float(value) * 1e-9 for value in np.quantile(nanoseconds, SHARES)]


def course(material: Material) -> dict[str, Any]:
    """The run over time: a bin width, the trials, and per trial what happened in each of its bins.

    Seconds count from the start of the first trial. `in_flight`, `queued` and `running` (calls) are
    means over the bin; `median` and `slowest` are of the loops that ended in it, None where none did.
    `limit` is what a strategy whose limit moves let run at once in all processes, None before it is
    known; of other strategies every bin is None.
    """
    run, table = material.run, material.table
    if not run.trials:
        return {"width": FINEST_BIN, "trials": []}
    trials = sorted(run.trials, key=lambda trial: trial.started_ns)
    origin = trials[0].started_ns
    span = (max(trial.drained_ns for trial in trials) - origin) / 1e9
    width = next((w for w in _WIDTHS if span / w <= MOST_BINS), span / MOST_BINS)
    warm = _warm_until(material)
    waits_from, waits_to = material.instants.queued, material.instants.queued + table.queue
    order = np.argsort(table.trial, kind="stable")
    trial_of_call = table.trial[table.call_loop]
    limited = np.sort(material.instants.limited)
    ran = table.duration != NONE
    lines = {
        strategy: limit_line(table, strategy)
        for strategy in dict.fromkeys(trial.strategy for trial in trials)
        if run.strategy(strategy).adapts
    }
    drawn = []
    for trial in trials:
        loops = order[np.searchsorted(table.trial[order], trial.index, "left") :]
        loops = loops[: np.searchsorted(table.trial[loops], trial.index, "right")]
        calls = np.flatnonzero(trial_of_call == trial.index)
        running = calls[ran[calls]]
        edges = _edges(trial, width)
        drawn.append(
            {
                "index": trial.index,
                "block": trial.block,
                "strategy": trial.strategy,
                "users": trial.users,
                "start": (trial.started_ns - origin) / 1e9,
                "warm": (warm.get(trial.index, trial.started_ns) - origin) / 1e9,
                "end": (trial.ended_ns - origin) / 1e9,
                "drained": (trial.drained_ns - origin) / 1e9,
                "good": _rate(table.ended[loops[table.good[loops] == 1]], edges),
                "failed": _rate(table.ended[loops[table.good[loops] == 0]], edges),
                "limited": _rate(limited, edges),
                **_latencies(table, loops[table.status[loops] == OK], edges),
                "in_flight": _occupancy(table.started[loops], table.ended[loops], edges),
                "queued": _occupancy(waits_from[calls], waits_to[calls], edges),
                "running": _occupancy(waits_to[running], waits_to[running] + table.duration[running], edges),
                "limit": _limits(lines.get(trial.strategy), edges),
            }
        )
    return {"width": width, "trials": drawn}


def ladder(summary: Summary) -> list[dict[str, Any]]:
    """Per strategy its points over the loads, the fitted law on a grid, and the law in words."""
    names = dict.fromkeys(s.strategy for level in summary.levels for s in level.strategies)
    most = max((level.users for level in summary.levels), default=0)
    drawn = []
    for name in names:
        points = [
            (level.users, strategy)
            for level in summary.levels
            for strategy in level.strategies
            if strategy.strategy == name
        ]
        law = summary.scalability.get(name)
        grid = np.linspace(1, most * 1.1, 60) if law is not None else ()
        drawn.append(
            {
                "strategy": name,
                "points": [
                    {
                        "users": users,
                        "throughput": _estimate(figures.throughput),
                        "goodput": _estimate(figures.goodput),
                        "p95": _estimate(figures.loop_seconds.p95),
                    }
                    for users, figures in points
                ],
                "law": [[float(load), law.throughput(float(load))] for load in grid] if law else [],
                "peak": _estimate(law.peak) if law and law.peak else None,
                "sentence": law.sentence if law else None,
            }
        )
    return drawn


def critical_shares(material: Material) -> dict[str, dict[str, float]]:
    """Strategy → tool → the share of the critical paths (the longest call of each round) that is its own."""
    table, counts = material.table, material.instants.round_calls
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]) if counts.size else np.empty(0, dtype=np.int64)
    filled = counts > 0
    result: dict[str, dict[str, float]] = {}
    if not filled.any():
        return result
    first, owner = starts[filled], table.round_loop[filled]
    longest = np.maximum.reduceat(table.duration, first)
    # The first call of each round that is as long as its longest.
    group = np.repeat(np.arange(first.size), counts[filled])
    places = np.flatnonzero(table.duration == longest[group])
    _, where = np.unique(group[places], return_index=True)
    winner = places[where]
    for measured in _top_groups(material):
        chosen = np.zeros(table.trial.size, dtype=bool)
        for block in measured.blocks:
            chosen[block.due] = True
        mine = chosen[owner] & (longest != NONE)
        spent = np.bincount(
            table.call_tool[winner[mine]], weights=longest[mine].astype(float), minlength=len(table.tools)
        )
        total = float(spent.sum())
        if total:
            result[measured.strategy] = {
                table.tools[code]: float(spent[code]) / total for code in np.flatnonzero(spent)
            }
    return result


def _top_groups(material: Material) -> list[Measured]:
    top = max((group.users for group in material.measured), default=0)
    return [group for group in material.measured if group.users == top]


def _finished(table: Table, group: Measured) -> Indices:
    return completed(table, _due(group.blocks))


def _due(blocks: tuple[Block, ...]) -> Indices:
    parts = [block.due for block in blocks]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.intp)


def _members(table: Table, loops: Indices, owner: Ints) -> Indices:
    chosen = np.zeros(table.trial.size, dtype=bool)
    chosen[loops] = True
    return np.flatnonzero(chosen[owner])


def _positive(values: Ints) -> Ints:
    kept: Ints = values[values != NONE]
    return kept


def _warm_until(material: Material) -> dict[int, int]:
    """Trial → when its warm-up ended; blocks that are made of several trials are left out."""
    ends: dict[int, int] = {}
    for group in material.measured:
        for block in group.blocks:
            mine = [
                t
                for t in material.run.trials
                if (t.strategy, t.users, t.block) == (group.strategy, group.users, block.number)
            ]
            if len(mine) == 1:
                ends[mine[0].index] = mine[0].ended_ns - round(block.seconds * 1e9)
    return ends


def _edges(trial: Trial, width: float) -> Ints:
    step = round(width * 1e9)
    count = max(1, -(-(trial.drained_ns - trial.started_ns) // step))
    return trial.started_ns + step * np.arange(count + 1, dtype=np.int64)


def _rate(times: Ints, edges: Ints) -> list[float]:
    counts = np.histogram(times, edges)[0]
    return [round(float(count), 4) for count in counts / (np.diff(edges) / 1e9)]


def _latencies(table: Table, loops: Indices, edges: Ints) -> dict[str, list[float | None]]:
    medians: list[float | None] = []
    slowest: list[float | None] = []
    place = np.searchsorted(edges, table.ended[loops], "right") - 1
    seconds = latency(table, loops) * 1e-9
    order = np.argsort(place, kind="stable")
    bounds = np.searchsorted(place[order], np.arange(edges.size))
    for low, high in pairwise(bounds):
        values = seconds[order[low:high]]
        medians.append(round(float(np.median(values)), 5) if values.size else None)
        slowest.append(round(float(values.max()), 5) if values.size else None)
    return {"median": medians, "slowest": slowest}


def _limits(line: LimitLine | None, edges: Ints) -> list[float | None]:
    """The mean of the limits in force in each bin; where none was noted, the last one is still in force."""
    if line is None:
        return [None] * (edges.size - 1)
    places = np.searchsorted(line.times, edges)
    return [
        round(float(line.totals[low:high].mean()), 2)
        if high > low
        else float(line.totals[low - 1])
        if low
        else None
        for low, high in pairwise(places)
    ]


def _occupancy(starts: Ints, ends: Ints, edges: Ints) -> list[float]:
    """Mean number of intervals that are open, per bin: the growth of the time spent inside them."""
    spent = _inside(starts, edges) - _inside(ends, edges)
    return [round(float(value), 3) for value in np.diff(spent) / np.diff(edges)]


def _inside(times: Ints, edges: Ints) -> Any:
    """At each edge, the sum of how long ago each of the times was that are over."""
    ordered = np.sort(times).astype(np.float64) - float(edges[0])
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    at = (edges - edges[0]).astype(np.float64)
    place = np.searchsorted(ordered, at)
    return at * place - sums[place]


def _estimate(estimate: Any) -> list[float | None]:
    return [estimate.value, estimate.low, estimate.high]


# What the page's scripts draw from: the summary's own figures and the series, as plain data.
#
# Strategies and tools are lists, never keys, and every text from outside is cleaned and cut. The
# summary's figures go in as they are in `summary.json`; nothing is computed from them in the page.

NAME = 40
"""Characters of a strategy's or tool's name in the page."""

MOST_STRATEGIES = 16
MOST_TOOL_ROWS = 120
"""Rows of the tools' table: the tools with the most calls. The page says how many more there are."""

DIGITS = 5


def payload(material: Material) -> dict[str, Any]:
    """All data of the page."""
    strategies = material.summary.strategies[:MOST_STRATEGIES]
    names = [one.strategy for one in strategies]
    place = {name: index for index, name in enumerate(names)}
    falls = waterfalls(material)
    for case in falls["cases"]:
        case["missing"] = [clean(name, NAME) for name in case["missing"]]
        case["strategy"] = place.get(case["strategy"], -1)
    for loop in falls["loops"].values():
        loop["strategy"] = place.get(loop["strategy"], -1)
    drawn = course(material)
    for trial in drawn["trials"]:
        trial["strategy"] = place.get(trial["strategy"], -1)
    return {
        "strategies": [
            {
                "name": clean(one.strategy, NAME),
                "colour": palette.strategy_colour(one.strategy),
                "figures": figures(one),
            }
            for one in strategies
        ],
        "phases": palette.PHASES | {"arrival_wait": palette.STATUSES["cancelled"], "failed": "#CE0E0A"},
        "distributions": [
            {
                "name": clean(name, NAME),
                "curves": [
                    [_short(value) for value in found[strategy]] if strategy in found else None
                    for strategy in names
                ],
            }
            for name, found in distributions(material, len(names)).items()
        ],
        "shares": list(SHARES),
        "course": drawn,
        "ladder": [
            {**line, "strategy": place[line["strategy"]]}
            for line in ladder(material.summary)
            if line["strategy"] in place
        ],
        "waterfalls": falls,
        "counterfactuals": [
            {
                "strategy": place[one.strategy],
                "change": clean(one.change.words, NAME + 30),
                "p50": asdict(one.p50),
                "p95": asdict(one.p95),
            }
            for one in material.counterfactuals
            if one.strategy in place and one.users == material.summary.strategies[0].users
        ],
    }


def figures(strategy: StrategySummary) -> dict[str, Any]:
    """The summary's figures of a strategy, without its tools, which have a table of their own."""
    return asdict(replace(strategy, tools={}, error_types={}))


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
