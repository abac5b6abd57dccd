"""The page's second half: over time, the ladder, the loops, the tools, the client and the conditions."""

from __future__ import annotations

import html
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from profiler import palette
from profiler.report.advice import command
from profiler.report.html.charts import MOST_TOOL_ROWS, critical_shares
from profiler.report.html.data import REPLAYED_TOOLS, Material
from profiler.report.html.markup import Cell, Grid, behind, chart, definitions, name, swatch, text
from profiler.report.html.waterfalls import MOST_ROWS
from profiler.report.terminal import limits
from profiler.report.text import duration, number, percent
from profiler.rundir import Run, Spent
from profiler.statistics.figures import StrategySummary, Tool
from profiler.statistics.replay import CALLS_PER_TRIAL
from profiler.statistics.summary import Summary

MOST_TRIAL_ROWS = 200

LANES = (
    ("completions", "loops completed per second"),
    ("median", "loop latency in seconds: median (line) and slowest (dots)"),
    ("in_flight", "loops in flight"),
    ("queued", "tool calls waiting to start"),
    ("running", "tool calls running at once"),
    ("limited", "refused by a quota (429) per second: model requests and tool calls"),
)
WITH_LIMIT = " (bars) and the limit in force (line)"


def course(data: dict[str, Any], strategies: Sequence[dict[str, Any]]) -> str:
    """Six charts on one time axis, and a table of the trials."""
    if not data["trials"]:
        return "<p>No trial came to its end.</p>"
    grid = Grid(
        "The trials in the order in which they ran",
        [
            ("trial", True),
            ("block", True),
            ("strategy", False),
            ("agents", True),
            ("from", True),
            ("measured", True),
            ("warm-up left out", True),
            ("drained in", True),
            ("most calls at once", True),
            ("limit", False),
        ],
    )
    for trial in data["trials"][:MOST_TRIAL_ROWS]:
        one = strategies[trial["strategy"]] if trial["strategy"] >= 0 else None
        grid.rows.append(
            [
                Cell(str(trial["index"] + 1), heading=True),
                Cell(str(trial["block"] + 1)),
                Cell(
                    swatch(one["colour"]) + f"<bdi>{html.escape(one['name'])}</bdi>" if one else "–",
                    numeric=False,
                ),
                Cell(str(trial["users"])),
                Cell(duration(trial["start"], "s")),
                Cell(duration(trial["end"] - trial["warm"], "s")),
                Cell(duration(trial["warm"] - trial["start"], "s")),
                Cell(duration(trial["drained"] - trial["end"], "s")),
                Cell(number(max(trial["running"]))),
                Cell(_limit_range(trial["limit"])),
            ]
        )
    left = len(data["trials"]) - len(grid.rows)
    more = f'<p class="small">{left} more trials are left out of the table.</p>' if left else ""
    moving = any(limit is not None for trial in data["trials"] for limit in trial["limit"])
    labels = [(key, label + (WITH_LIMIT if moving and key == "running" else "")) for key, label in LANES]
    lanes = "".join(
        f'<figure class="lane"><figcaption>{text(label)}</figcaption>'
        f"{chart(f'lane-{key}', f'{label}, over the run', 110)}</figure>"
        for key, label in labels
    )
    return (
        chart("lane-trials", "Which strategy ran when", 46)
        + lanes
        + f'<p class="small">One point per {duration(data["width"])}. Shaded: what no figure counts, '
        "warm-up before and draining after each window. Thin lines: where a block begins.</p>"
        + behind(grid, "table-trials", "The trials as a table")
        + more
    )


def _limit_range(limits: Sequence[float | None]) -> str:
    """`9.0 to 48.0, last 40.0` of the bins of a trial; a dash where the limit does not move."""
    known = [limit for limit in limits if limit is not None]
    if not known:
        return "–"
    return f"{number(min(known))} to {number(max(known))}, last {number(known[-1])}"


def levels(summary: Summary) -> str:
    """Throughput and p95 against load."""
    grid = Grid(
        "Every load",
        [
            ("agents", True),
            ("strategy", False),
            ("loops/s", True),
            ("good loops/s", True),
            ("loop p50", True),
            ("p95", True),
            ("failed", True),
        ],
    )
    for level in summary.levels:
        for one in level.strategies:
            grid.rows.append(
                [
                    Cell(str(level.users), float(level.users), heading=True),
                    Cell(swatch(palette.strategy_colour(one.strategy)) + name(one.strategy), numeric=False),
                    Cell(number(one.throughput.value)),
                    Cell(number(one.goodput.value)),
                    Cell(duration(one.loop_seconds.p50.value)),
                    Cell(duration(one.loop_seconds.p95.value)),
                    Cell(percent(one.failure_rate.value)),
                ]
            )
    laws = "".join(
        f"<li>{swatch(palette.strategy_colour(key))}{name(key)}: {text(law.sentence)}</li>"
        for key, law in summary.scalability.items()
    )
    return (
        (f'<ul class="notes">{laws}</ul>' if laws else "")
        + '<div class="pair even">'
        + chart("chart-throughput", "Loops per second against agents", 300)
        + chart("chart-tail", "Loop latency at p95 against agents", 300)
        + "</div>"
        + behind(grid, "table-levels")
    )


def loops(data: dict[str, Any], strategies: Sequence[dict[str, Any]]) -> str:
    """The choice of a case, and where its loops are drawn."""
    if not data["cases"]:
        return "<p>No loop was measured, so there is none to draw.</p>"
    options = "".join(
        f'<option value="{index}">{html.escape(_case(case, strategies))}</option>'
        for index, case in enumerate(data["cases"])
    )
    more = (
        f" {data['left']} more loops to choose from would have made the page too large."
        if data["left"]
        else ""
    )
    legend = "".join(
        f"<li>{swatch(colour)}{label}</li>"
        for label, colour in (
            ("model", palette.PHASES["model"]),
            ("backoff", palette.PHASES["backoff"]),
            ("queue", palette.PHASES["queue"]),
            ("run", palette.PHASES["tools"]),
        )
    )
    return (
        '<p class="controls"><label for="pick-case">Show</label> '
        f'<select id="pick-case">{options}</select></p>'
        f'<ul class="legend">{legend}<li><span class="swatch failed" aria-hidden="true"></span>'
        "failed</li></ul>"
        '<div id="waterfalls" class="waterfalls"></div>'
        '<div id="call-detail" class="detail" role="status" aria-live="polite">'
        "<p>Choose a bar for the details of a model request or a tool call.</p></div>"
        '<p class="small">The same entry of the tape is the same work for every strategy. '
        f"At most {MOST_ROWS} rows of a loop are drawn.{more}</p>"
        '<details class="behind"><summary>The figures as a table</summary>'
        '<div class="table"><div class="scroll" tabindex="0" role="region" aria-label="Loops as a table">'
        '<table id="table-loops"><caption>Every row of the loops above, in seconds from the start of its loop'
        '</caption><thead><tr><th scope="col">strategy</th><th scope="col">row</th>'
        '<th scope="col">status</th><th scope="col" class="n">from</th><th scope="col" class="n">waited</th>'
        '<th scope="col" class="n">ran</th></tr></thead><tbody></tbody></table></div></div></details>'
    )


def _case(case: dict[str, Any], strategies: Sequence[dict[str, Any]]) -> str:
    whose = strategies[case["strategy"]]["name"] if case["strategy"] >= 0 else "?"
    entry = "" if case["number"] is None else f" (tape entry {case['number']})"
    return f"{'a failed' if case['kind'] == 'failed' else 'the ' + case['kind']} loop of {whose}{entry}"


def tools(
    material: Material, estimates: Sequence[dict[str, Any]], strategies: Sequence[dict[str, Any]]
) -> str:
    """Per tool and strategy, then what would change if one thing were different."""
    shares = critical_shares(material)
    grid = Grid(
        "Calls of each tool in the loops that count",
        [
            ("tool", False),
            ("strategy", False),
            ("calls", True),
            ("errors", True),
            ("p50", True),
            ("p95", True),
            ("queue p50", True),
            ("queue p95", True),
            ("critical path", True),
            ("held the event loop", True),
        ],
        sortable=True,
    )
    rows: list[tuple[str, StrategySummary, Tool]] = [
        (tool, one, figures) for one in material.summary.strategies for tool, figures in one.tools.items()
    ]
    rows.sort(key=lambda row: -row[2].calls)
    order = {tool: place for place, tool in enumerate(dict.fromkeys(tool for tool, _, _ in rows))}
    shown = sorted(rows[:MOST_TOOL_ROWS], key=lambda row: order[row[0]])
    for tool, one, figures in shown:
        share = shares.get(one.strategy, {}).get(tool, 0.0)
        kinds = ", ".join(
            f"{text(kind, 30)} {count}" for kind, count in list(figures.error_types.items())[:4]
        )
        held = figures.blocking_seconds
        grid.rows.append(
            [
                Cell(name(tool), heading=True),
                Cell(swatch(palette.strategy_colour(one.strategy)) + name(one.strategy), numeric=False),
                Cell(str(figures.calls), float(figures.calls)),
                Cell(
                    str(figures.errors),
                    float(figures.errors),
                    below=kinds,
                    kind="bad" if figures.errors else "",
                ),
                *(Cell(duration(figures.seconds[q].value), figures.seconds[q].value) for q in ("p50", "p95")),
                *(
                    Cell(duration(figures.queue_seconds[q].value), figures.queue_seconds[q].value)
                    for q in ("p50", "p95")
                ),
                Cell(percent(share), share),
                Cell(duration(held) if held else "–", held),
            ]
        )
    left = len(rows) - len(shown)
    more = (
        f'<p class="small">{left} more rows, of tools with fewer calls, are left out here.</p>'
        if left
        else ""
    )
    return grid.html("table-tools") + more + _counterfactuals(estimates, strategies)


def _counterfactuals(estimates: Sequence[dict[str, Any]], strategies: Sequence[dict[str, Any]]) -> str:
    if not estimates:
        return ""
    grid = Grid(
        "Estimates: the measured quantile times what a replay of the recorded loops says",
        [
            ("change", False),
            ("strategy", False),
            ("p50", True),
            ("estimate", True),
            ("p95", True),
            ("estimate", True),
        ],
    )
    for one in estimates:
        strategy = strategies[one["strategy"]]
        grid.rows.append(
            [
                Cell(f"<bdi>{html.escape(one['change'])}</bdi>", heading=True),
                Cell(
                    swatch(strategy["colour"]) + f"<bdi>{html.escape(strategy['name'])}</bdi>", numeric=False
                ),
                *(
                    Cell(duration(one[q][which]), one[q][which])
                    for q in ("p50", "p95")
                    for which in ("measured", "estimated")
                ),
            ]
        )
    return (
        "<h3>If one thing were different</h3>"
        '<p class="small">Estimates, not measurements: recorded loops are replayed with one change, and '
        "durations are assumed not to depend on the load. Against a server at its quota they are "
        "too good.</p>"
        + chart("chart-estimates", "Measured and estimated p50 per change", 44 + 34 * len(estimates))
        + behind(grid, "table-estimates")
    )


def conditions(material: Material, libraries: Sequence[dict[str, str]], drawn: int) -> str:
    """Everything needed to judge the run, and to repeat it. `drawn`: loops that are drawn."""
    run, summary = material.run, material.summary
    blocks = [
        ("The load", _load(run, summary)),
        ("The machine", _machine(run)),
        ("Versions", list(run.versions.items())),
        ("Arguments", [(key, _shown(value)) for key, value in run.arguments.items()]),
    ]
    parts = [
        f'<h3>Repeat it</h3><div class="command"><code>{html.escape(command(run))}</code>'
        '<button type="button" class="copy" data-copies="command">Copy</button></div>',
        _health(run),
        '<div class="columns">',
        *(
            f"<section><h3>{text(title)}</h3>{definitions(pairs)}</section>"
            for title, pairs in blocks
            if pairs
        ),
        "</div>",
        '<h3>Left out, and why</h3><ul class="notes">',
        *(f"<li>{line}</li>" for line in _left_out(material, drawn)),
        "</ul>",
        '<p class="small">Charts: '
        + ", ".join(
            f"{text(lib['package'])} {text(lib['version'])} ({text(lib['licence'])})" for lib in libraries
        )
        + ". This page asks the network for nothing.</p>",
    ]
    return "".join(parts)


def _load(run: Run, summary: Summary) -> list[tuple[str, str]]:
    load = run.load
    if load.model == "open":
        asked = load.arrivals or f"{number(load.rate)}/s"
        what = f"open: arrivals do not wait ({asked})"
    else:
        what = f"closed: each of {load.users} agents waits for its own loop"
    began = datetime.fromtimestamp(run.anchor.unix_ns / 1e9, tz=UTC)
    return [
        ("load", what),
        ("think time", duration(load.think_seconds)),
        ("scenario", run.scenario),
        ("provider", run.provider),
        ("model", run.model or "the provider's default"),
        ("seed", str(run.seed)),
        ("processes that run loops", str(run.workers)),
        ("trials", str(len(run.trials))),
        ("loops recorded", str(material_loops(summary))),
        *([] if run.spent is None else [("asked of the model in all", _spent(run.spent))]),
        ("began", began.strftime("%Y-%m-%d %H:%M:%S UTC")),
        *((f"limit of {spec}", said) for spec, said in (line.split(": ", 1) for line in limits(run))),
    ]


def _spent(spent: Spent) -> str:
    return (
        f"{spent.requests:,} requests, {spent.input_tokens:,} tokens in, {spent.output_tokens:,} out, "
        "retries and warm-up included"
    )


def material_loops(summary: Summary) -> int:
    """Loops that were recorded of the strategies shown, warm-up and draining included."""
    return sum(strategy.totals.loops for strategy in summary.strategies)


def _machine(run: Run) -> list[tuple[str, str]]:
    memory = run.machine.memory_bytes
    return [
        ("cores", str(run.machine.cores)),
        ("processor", run.machine.cpu),
        ("memory", "unknown" if memory is None else f"{memory / 2**30:.1f} GiB"),
        ("system", run.machine.os),
        ("Python", run.machine.python),
    ]


def _health(run: Run) -> str:
    if not run.client:
        return '<p class="small">How the client itself fared was not recorded.</p>'
    grid = Grid(
        "How the client fared: it must not be what was measured",
        [
            ("process", False),
            ("trial", True),
            ("loop lag p99", True),
            ("late starts p99", True),
            ("busy", True),
        ],
    )
    for one in run.client[:200]:
        grid.rows.append(
            [
                Cell(name(one.process), heading=True),
                Cell("all" if one.trial is None else str(one.trial + 1)),
                Cell(duration(one.loop_lag_p99)),
                Cell(duration(one.schedule_lag_p99)),
                Cell(percent(one.cpu)),
            ]
        )
    return f"<h3>The client</h3>{grid.html('table-client')}"


def _left_out(material: Material, drawn: int) -> list[str]:
    summary, run = material.summary, material.run
    lines = []
    skipped = [s for s in summary.strategies if s.warm_up_loops]
    if skipped:
        each = ", ".join(f"{name(s.strategy)} {s.warm_up_loops}" for s in skipped)
        lines.append(f"Loops at the start of each block, while the system warmed up (MSER-5): {each}.")
    else:
        lines.append("No warm-up was seen in the series of loops, so none was left out.")
    cut = sum(strategy.loops.interrupted for strategy in summary.strategies)
    if cut:
        lines.append(f"{cut} loops were cut off after the drain; they count as failed and have no latency.")
    lines.append("Latencies are of loops that completed; read them beside the share that failed.")
    lines += [text(f"{i.kind.replace('_', ' ')}: {i.detail} ({i.count})") for i in run.incidents[:20]]
    of = int(material.table.trial.size)
    lines.append(f"Drawn as waterfalls: the slowest, median and failed loops, {drawn} of {of}. Every other")
    lines[-1] += " figure and curve is of all loops that count; nothing else was sampled."
    lines.append(
        f"Estimates replay the first {CALLS_PER_TRIAL} tool calls of each trial and try the {REPLAYED_TOOLS} "
        "tools that took the most time."
    )
    return lines


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(part) for part in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
