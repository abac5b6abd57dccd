"""The series behind the charts: distributions, the run over time, throughput against load. Plain data.

Distributions are of the same loops as the summary's quantiles and use its definition, so that a
curve passes through them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, astuple, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from profiler import palette
from profiler.report.html.data import Material, Shown
from profiler.report.html.markup import LONGEST
from profiler.report.html.waterfalls import waterfalls
from profiler.report.text import clean
from profiler.rundir import Trial
from profiler.statistics.figures import LimitLine, StrategySummary, limit_line, present
from profiler.statistics.summary import Summary
from profiler.statistics.table import NONE, OK, Ints, Table
from profiler.statistics.windows import Indices, completed, flagged, latency, members

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
"""Lengths of a bin of the run over time, in seconds: the first that makes at most `MOST_BINS` is taken."""


def distributions(material: Shown, strategies: int = 1) -> dict[str, dict[str, list[float]]]:
    """Series (`loops`, `rounds`, `tool phases`, `tool NAME`) → strategy → seconds at `SHARES`."""
    table = material.table
    due = {group.strategy: group.due for group in material.shown}
    answered = {strategy: completed(table, loops) for strategy, loops in due.items()}
    rounds = {strategy: members(table, loops, table.round_loop) for strategy, loops in answered.items()}
    calls = {strategy: members(table, loops, table.call_loop) for strategy, loops in due.items()}

    def of_tool(strategy: str, code: int) -> Ints:
        return present(table.duration[calls[strategy][table.call_tool[calls[strategy]] == code]])

    series: dict[str, Callable[[str], Ints]] = {
        "loops": lambda strategy: latency(table, answered[strategy]),
        "rounds": lambda strategy: table.round_wall[rounds[strategy]],
        "tool phases": lambda strategy: present(table.tool_wall[rounds[strategy]]),
    }
    counts = np.bincount(table.call_tool, minlength=len(table.tools))
    most = min(CURVE_TOOLS, MOST_CURVES // max(1, strategies))
    for code in np.argsort(-counts, kind="stable")[:most]:
        series[f"tool {table.tools[code]}"] = partial(of_tool, code=code)
    result: dict[str, dict[str, list[float]]] = {}
    for name, samples in series.items():
        drawn = {strategy: curve(values) for strategy in due if (values := samples(strategy)).size}
        if drawn:
            result[name] = drawn
    return result


def curve(nanoseconds: Ints) -> list[float]:
    """Seconds at `SHARES`: quantiles by the summary's definition (type 7)."""
    return [float(value) * 1e-9 for value in np.quantile(nanoseconds, SHARES)]


def course(material: Material) -> dict[str, Any]:
    """The run over time: a bin width, the trials, and per trial what happened in each of its bins.

    Seconds count from the start of the first trial. `in_flight` loops and `queued` and `running` calls
    are means over the bin; `good`, `failed` and `limited` (refusals) are per second; `median` and
    `slowest` are of the loops that ended in it, None where none did. `limit` is how many calls a strategy
    whose limit moves let run at once in all processes, None before it is known and for other strategies.
    """
    run, table = material.run, material.table
    if not run.trials:
        return {"width": FINEST_BIN, "trials": []}
    trials = sorted(run.trials, key=lambda trial: trial.started_ns)
    origin = trials[0].started_ns
    span = (max(trial.drained_ns for trial in trials) - origin) / 1e9
    width = next((w for w in _WIDTHS if span / w <= MOST_BINS), span / MOST_BINS)
    warm = _warm_until(material)
    waited_until = table.queued + np.maximum(0, table.queue)
    order = np.argsort(table.trial, kind="stable")
    trial_of_call = table.trial[table.call_loop]
    refused = np.sort(table.refused)
    ran = table.duration != NONE
    lines = {
        strategy: limit_line(table, strategy)
        for strategy in dict.fromkeys(trial.strategy for trial in trials)
        if run.strategy(strategy).adapts
    }
    drawn = []
    for trial in trials:
        first, last = (np.searchsorted(table.trial[order], trial.index, side) for side in ("left", "right"))
        loops = order[first:last]
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
                "limited": _rate(refused, edges),
                **_latencies(table, loops[table.status[loops] == OK], edges),
                "in_flight": _occupancy(table.started[loops], table.ended[loops], edges),
                "queued": _occupancy(table.queued[calls], waited_until[calls], edges),
                "running": _occupancy(
                    waited_until[running], waited_until[running] + table.duration[running], edges
                ),
                "limit": _limits(lines.get(trial.strategy), edges),
            }
        )
    return {"width": width, "trials": drawn}


def over_levels(summary: Summary) -> list[dict[str, Any]]:
    """Per strategy its points over the loads, the fitted law on a grid, and the law in words."""
    points: dict[str, list[dict[str, Any]]] = {}
    for level in summary.levels:
        for one in level.strategies:
            points.setdefault(one.strategy, []).append(
                {
                    "users": level.users,
                    "goodput": astuple(one.goodput),
                    "p95": astuple(one.loop_seconds.p95),
                }
            )
    most = max((level.users for level in summary.levels), default=0)
    drawn = []
    for strategy, of_strategy in points.items():
        law = summary.scalability.get(strategy)
        grid = [] if law is None else np.linspace(1, most * 1.1, 60).tolist()
        drawn.append(
            {
                "strategy": strategy,
                "points": of_strategy,
                "law": [] if law is None else [[load, law.throughput(load)] for load in grid],
                "peak": astuple(law.peak) if law and law.peak else None,
                "sentence": law.sentence if law else None,
            }
        )
    return drawn


def critical_shares(material: Shown) -> dict[str, dict[str, float]]:
    """Strategy → tool → its share of the critical paths (the longest call of each round)."""
    table = material.table
    result: dict[str, dict[str, float]] = {}
    filled = table.round_calls > 0
    if not filled.any():
        return result
    counts, owner = table.round_calls[filled], table.round_loop[filled]
    # Calls are in the order of their rounds: those of a round are one slice, from `first` on.
    first = np.cumsum(counts) - counts
    longest = np.maximum.reduceat(table.duration, first)
    round_of_call = np.repeat(np.arange(first.size), counts)
    candidates = np.flatnonzero(table.duration == longest[round_of_call])
    _, where = np.unique(round_of_call[candidates], return_index=True)
    winner = candidates[where]  # of each round, the first call that is as long as its longest
    for group in material.shown:
        chosen = flagged(table, group.due)[owner] & (longest != NONE) & (table.tool_wall[filled] != NONE)
        spent = np.bincount(
            table.call_tool[winner[chosen]], weights=longest[chosen].astype(float), minlength=len(table.tools)
        )
        if total := float(spent.sum()):
            result[group.strategy] = {
                table.tools[code]: float(spent[code]) / total for code in np.flatnonzero(spent)
            }
    return result


def _warm_until(material: Material) -> dict[int, int]:
    """Trial → when its warm-up ended (ns); blocks that are made of several trials are left out."""
    trials: dict[tuple[str, int, int], list[Trial]] = {}
    for trial in material.run.trials:
        trials.setdefault((trial.strategy, trial.users, trial.block), []).append(trial)
    ends: dict[int, int] = {}
    for group in material.measured:
        for block in group.blocks:
            only, *others = trials[group.strategy, group.users, block.number]
            if not others:
                ends[only.index] = only.ended_ns - round(block.seconds * 1e9)
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
    """The mean of the limits noted in each bin; where none was noted, the last one is still in force."""
    if line is None:
        return [None] * (edges.size - 1)
    means: list[float | None] = []
    for low, high in pairwise(np.searchsorted(line.times, edges)):
        if high > low:
            means.append(round(float(line.totals[low:high].mean()), 2))
        else:
            means.append(float(line.totals[low - 1]) if low else None)
    return means


def _occupancy(starts: Ints, ends: Ints, edges: Ints) -> list[float]:
    """Mean number of open intervals per bin: by how much the time spent inside them grows."""
    spent = _time_since(starts, edges) - _time_since(ends, edges)
    return [round(float(value), 3) for value in np.diff(spent) / np.diff(edges)]


def _time_since(times: Ints, edges: Ints) -> Any:
    """At each edge, the time that has passed since each of the earlier `times`, summed (ns)."""
    ordered = np.sort(times).astype(np.float64) - float(edges[0])
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    at = (edges - edges[0]).astype(np.float64)
    place = np.searchsorted(ordered, at)
    return at * place - sums[place]


# What the page's scripts draw from: the summary's own figures and the series, as plain data.
#
# Strategies and tools are in lists, never keys, and every text from outside is cleaned and cut. The
# summary's figures go in as they are in `summary.json`; the page computes nothing from them.

MOST_STRATEGIES = 16
MOST_TOOL_ROWS = 120
"""Rows of the tools' table: the tools with the most calls. The page says how many more there are."""

DIGITS = 5
"""Significant digits of a distribution."""


def _without_names(one: StrategySummary) -> StrategySummary:
    """Without what is named from outside: tools have a table of their own, and errors a sentence."""
    return replace(one, tools={}, error_types={}, totals=replace(one.totals, causes={}))


def payload(material: Material) -> dict[str, Any]:
    """All data of the page."""
    strategies = material.summary.strategies[:MOST_STRATEGIES]
    names = [one.strategy for one in strategies]
    place = {name: index for index, name in enumerate(names)}
    falls, drawn = waterfalls(material), course(material)
    for case in falls["cases"]:
        case["missing"] = [clean(name, LONGEST) for name in case["missing"]]
    for one in (*falls["cases"], *falls["loops"].values(), *drawn["trials"]):
        one["strategy"] = place.get(one["strategy"], -1)
    return {
        "strategies": [
            {
                "name": clean(one.strategy, LONGEST),
                "colour": palette.strategy_colour(one.strategy),
                "figures": asdict(_without_names(one)),
            }
            for one in strategies
        ],
        "phases": palette.PHASES
        | palette.PARTS
        | {"arrival_wait": palette.STATUSES["cancelled"], "failed": palette.STATUSES["error"]},
        "distributions": [
            {
                "name": clean(name, LONGEST),
                "curves": [
                    [float(f"{value:.{DIGITS}g}") for value in found[strategy]] if strategy in found else None
                    for strategy in names
                ],
            }
            for name, found in distributions(material, len(names)).items()
        ],
        "shares": list(SHARES),
        "course": drawn,
        "levels": [
            {**line, "strategy": place[line["strategy"]]}
            for line in over_levels(material.summary)
            if line["strategy"] in place
        ],
        "waterfalls": falls,
        "counterfactuals": [
            {
                "strategy": place[one.strategy],
                "change": clean(one.change.words, LONGEST + 30),
                "p50": asdict(one.p50),
                "p95": asdict(one.p95),
                "failures": asdict(one.failures),
            }
            for one in material.counterfactuals
            if one.strategy in place and one.users == material.summary.strategies[0].users
        ],
    }
