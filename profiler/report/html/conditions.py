"""The page's second half: over time, the loads, the loops, the tools, the client and the conditions."""

from __future__ import annotations

import html
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from profiler import palette
from profiler.prediction.what_if import NotEstimated
from profiler.records import NO_MODEL
from profiler.report.advice import command
from profiler.report.html.charts import MOST_TOOL_ROWS, critical_shares
from profiler.report.html.data import CALLS_READ, ESTIMATED_TOOLS, Material
from profiler.report.html.markup import (
    LONGEST,
    Cell,
    Grid,
    behind,
    bullets,
    chart,
    command_line,
    definitions,
    name,
    seconds,
    strategy,
    swatch,
    text,
)
from profiler.report.html.waterfalls import MOST_ROWS, UNTIMED
from profiler.report.servers import PART_NAMES
from profiler.report.terminal import limits
from profiler.report.text import clean, duration, number, percent
from profiler.rundir import Run
from profiler.statistics.caveats import left_out
from profiler.statistics.figures import StrategySummary
from profiler.statistics.summary import Summary

MOST_TRIAL_ROWS = 200
MOST_CLIENT_ROWS = 200
MOST_INCIDENTS = 20
MOST_REASONS = 12
LONGEST_REASON = 300

LANES = (
    ("completions", "loops completed per second"),
    ("median", "loop latency in seconds: median (line) and slowest (dots)"),
    ("in_flight", "loops in flight"),
    ("queued", "tool calls waiting to start"),
    ("running", "tool calls running at once"),
    ("limited", "refused by a quota (429) per second: model requests and tool calls"),
)
WITH_LIMIT = " (bars) and the limit in force (line)"


def course(data: dict[str, Any], strategies: Sequence[StrategySummary]) -> str:
    """Six charts on one time axis, and a table of the trials."""
    if not data["trials"]:
        return "<p>No trial came to its end.</p>"
    grid = Grid(
        "The trials in the order in which they ran",
        [
            *("trial", "block", "strategy", "agents", "from", "measured"),
            *("warm-up left out", "drained in", "most calls at once", "limit"),
        ],
    )
    for trial in data["trials"][:MOST_TRIAL_ROWS]:
        place = trial["strategy"]
        grid.rows.append(
            [
                Cell(str(trial["index"] + 1), heading=True),
                Cell(str(trial["block"] + 1)),
                Cell(strategy(strategies[place].strategy) if place >= 0 else "–", numeric=False),
                Cell(str(trial["users"])),
                Cell(duration(trial["start"], "s")),
                Cell(duration(trial["end"] - trial["warm"], "s")),
                Cell(duration(trial["warm"] - trial["start"], "s")),
                Cell(duration(trial["drained"] - trial["end"], "s")),
                Cell(number(max(trial["running"]))),
                Cell(_limit_range(trial["limit"])),
            ]
        )
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
        + _left(len(data["trials"]) - len(grid.rows), "more trials are left out of the table")
    )


def _left(count: int, words: str) -> str:
    return f'<p class="small">{count} {words}.</p>' if count else ""


def _limit_range(limits: Sequence[float | None]) -> str:
    """`9.0 to 48.0, last 40.0` of the bins of a trial; a dash where the limit does not move."""
    known = [limit for limit in limits if limit is not None]
    if not known:
        return "–"
    return f"{number(min(known))} to {number(max(known))}, last {number(known[-1])}"


def levels(summary: Summary) -> str:
    """Goodput and p95 against load."""
    grid = Grid("Every load", ["agents", "strategy", "good loops/s", "loop p50", "p95", "failed"])
    for level in summary.levels:
        for one in level.strategies:
            grid.rows.append(
                [
                    Cell(str(level.users), float(level.users), heading=True),
                    Cell(strategy(one.strategy), numeric=False),
                    Cell(number(one.goodput.value)),
                    seconds(one.loop_seconds.p50.value),
                    seconds(one.loop_seconds.p95.value),
                    Cell(percent(one.failure_rate.value)),
                ]
            )
    laws = [f"{strategy(key)}: {text(law.sentence)}" for key, law in summary.scalability.items()]
    return (
        (bullets(laws, "notes") if laws else "")
        + '<div class="pair even">'
        + chart("chart-throughput", "Good loops per second against agents", 300)
        + chart("chart-tail", "Loop latency at p95 against agents", 300)
        + "</div>"
        + behind(grid, "table-levels")
    )


def loops(data: dict[str, Any], strategies: Sequence[StrategySummary]) -> str:
    """The choice of a case, and where its loops are drawn."""
    labels = [_case(case, strategies) for case in data["cases"]]
    return drawn(data, labels, "The same entry of the tape is the same work for every strategy. ")


def drawn(data: dict[str, Any], labels: Sequence[str], note: str = "") -> str:
    """The choice of a case, of which `labels` are the names, and where its loops are drawn."""
    if not labels:
        return "<p>No loop was measured, so there is none to draw.</p>"
    options = "".join(
        f'<option value="{index}">{html.escape(label)}</option>' for index, label in enumerate(labels)
    )
    more = f" {data['left']} more loops to choose from would have made the page too large."
    kinds = {"model": "model", "backoff": "backoff", "queue": "queue", "run": "tools"}
    if any(span["kind"] == "server_tools" for span in _spans(data)):
        kinds = {"model": "model", "server tools": "server_tools", **kinds}
    legend = [f"{swatch(palette.PHASES[phase])}{label}" for label, phase in kinds.items()]
    drawn_kinds = {span["kind"] for span in _spans(data)}
    legend += [
        f"{swatch(colour)}{PART_NAMES[part]}" for part, colour in palette.PARTS.items() if part in drawn_kinds
    ]
    legend += [
        f"{swatch(palette.SEQUENTIAL)}{words}" for kind, words in UNTIMED.items() if kind in drawn_kinds
    ]
    legend.append('<span class="swatch failed" aria-hidden="true"></span>failed')
    grid = Grid(
        "Every row of the loops above, in seconds from the start of its loop",
        ["strategy", "row", "status", "from", "waited", "ran"],
        rows=[[Cell("", numeric=False)] * 3 + [Cell("")] * 3],  # the script replaces it
    )
    return (
        f'<p class="controls"{"" if len(labels) > 1 else " hidden"}><label for="pick-case">Show</label> '
        f'<select id="pick-case">{options}</select></p>'
        + bullets(legend, "legend")
        + '<div id="waterfalls" class="waterfalls"></div>'
        '<div id="call-detail" class="detail" role="status" aria-live="polite">'
        "<p>Choose a bar for the details of a model request or a tool call.</p></div>"
        f'<p class="small">{text(note)}'
        f"At most {MOST_ROWS} rows of a loop are drawn.{more if data['left'] else ''}</p>"
        + behind(grid, "table-loops")
    )


def _spans(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for one in data["loops"].values():
        for row in one["rows"]:
            yield from row["spans"]


def _case(case: dict[str, Any], strategies: Sequence[StrategySummary]) -> str:
    whose = clean(strategies[case["strategy"]].strategy, LONGEST) if case["strategy"] >= 0 else "?"
    entry = "" if case["number"] is None else f" (tape entry {case['number']})"
    return f"{'a failed' if case['kind'] == 'failed' else 'the ' + case['kind']} loop of {whose}{entry}"


def tools(
    material: Material, estimates: Sequence[dict[str, Any]], strategies: Sequence[StrategySummary]
) -> str:
    """Per tool and strategy, then what would change if one thing were different."""
    shares = critical_shares(material)
    grid = Grid(
        "Calls of each tool in the loops that count",
        [
            *("tool", "strategy", "calls", "errors", "p50", "p95", "queue p50", "queue p95"),
            *("critical path", "held the event loop"),
        ],
        sortable=True,
    )
    rows = [(tool, one, found) for one in material.summary.strategies for tool, found in one.tools.items()]
    rows.sort(key=lambda row: -row[2].calls)
    order = {tool: place for place, tool in enumerate(dict.fromkeys(tool for tool, _, _ in rows))}
    shown = sorted(rows[:MOST_TOOL_ROWS], key=lambda row: order[row[0]])
    for tool, one, found in shown:
        share = shares.get(one.strategy, {}).get(tool, 0.0)
        kinds = ", ".join(f"{text(kind, 30)} {count}" for kind, count in list(found.error_types.items())[:4])
        held = found.blocking_seconds
        grid.rows.append(
            [
                Cell(name(tool), heading=True),
                Cell(strategy(one.strategy), numeric=False),
                Cell(str(found.calls), float(found.calls)),
                Cell(
                    str(found.errors),
                    float(found.errors),
                    below=kinds,
                    kind="bad" if found.errors else "",
                ),
                *(seconds(found.seconds[q].value) for q in ("p50", "p95")),
                *(seconds(found.queue_seconds[q].value) for q in ("p50", "p95")),
                Cell(percent(share), share),
                Cell(duration(held) if held else "–", held),
            ]
        )
    left = _left(len(rows) - len(shown), "more rows, of tools with fewer calls, are left out here")
    return grid.html("table-tools") + left + _estimates(estimates, strategies, material.unknown)


def _estimates(
    estimates: Sequence[dict[str, Any]],
    strategies: Sequence[StrategySummary],
    unknown: Sequence[NotEstimated],
) -> str:
    none = _not_estimated(unknown, {one.strategy for one in strategies})
    if not estimates:
        return none and f"<h3>If one thing were different</h3>{none}"
    grid = Grid(
        "Estimates: the measured quantile times what a simulation of the recorded loops says",
        [
            *("change", "strategy", "p50", "estimate", "from", "to", "p95", "estimate", "from", "to"),
            *("failed loops", "estimate"),
        ],
    )
    for one in estimates:
        quantiles = [
            one[q][which] for q in ("p50", "p95") for which in ("measured", "estimated", "low", "high")
        ]
        shares = [one["failures"][which] for which in ("measured", "estimated")]
        grid.rows.append(
            [
                Cell(f"<bdi>{html.escape(one['change'])}</bdi>", heading=True),
                Cell(strategy(strategies[one["strategy"]].strategy), numeric=False),
                *map(seconds, quantiles),
                *(Cell(percent(share), share) for share in shares),
            ]
        )
    return (
        "<h3>If one thing were different</h3>"
        '<p class="small">Estimates, not measurements: the recorded loops run again in a simulation with one '
        "change, with the limiters of the strategy and the servers as the recording shows them. Nine in ten "
        "runs with that change are expected between <em>from</em> and <em>to</em>.</p>"
        + chart("chart-estimates", "Measured and estimated p50 per change", 44 + 34 * len(estimates))
        + behind(grid, "table-estimates")
        + none
    )


def _not_estimated(unknown: Sequence[NotEstimated], shown: Collection[str]) -> str:
    """What there is no estimate for, and why; the changes with one reason in one line."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for one in unknown:
        if one.strategy in shown:
            words = reasons.setdefault((one.strategy, one.why), [])
            if one.change is not None:
                words.append(clean(one.change.words, LONGEST + 30))
    lines = [
        f"{', '.join([strategy(name), *map(html.escape, changes)])}: {text(why, LONGEST_REASON)}."
        for (name, why), changes in list(reasons.items())[:MOST_REASONS]
    ]
    left = _left(len(reasons) - len(lines), "more reasons are left out here")
    said = "Not estimated (what a server does under more load is known from a recording of more load):"
    return f'<p class="small">{said}</p>{bullets(lines, "notes")}{left}' if lines else ""


def conditions(material: Material, libraries: Sequence[dict[str, str]], drawn: int) -> str:
    """Everything needed to judge the run, and to repeat it. `drawn`: how many loops are drawn."""
    run = material.run
    blocks = [
        ("The load", _load(run, material.summary)),
        ("The machine", _machine(run)),
        ("Versions", list(run.versions.items())),
        ("Arguments", [(key, _shown(value)) for key, value in run.arguments.items()]),
    ]
    columns = (f"<section><h3>{title}</h3>{definitions(pairs)}</section>" for title, pairs in blocks if pairs)
    used = (f"{text(lib['package'])} {text(lib['version'])} ({text(lib['licence'])})" for lib in libraries)
    return (
        f"<h3>Repeat it</h3>{command_line(command(run))}"
        + _health(run)
        + f'<div class="columns">{"".join(columns)}</div>'
        + f"<h3>Left out, and why</h3>{bullets(_left_out(material, drawn), 'notes')}"
        + f'<p class="small">Charts: {", ".join(used)}. This page asks the network for nothing.</p>'
    )


def _load(run: Run, summary: Summary) -> list[tuple[str, str]]:
    load, spent = run.load, run.spent
    if load.model == "open":
        what = f"open: arrivals do not wait ({load.arrivals or f'{number(load.rate)}/s'})"
    else:
        what = f"closed: each of {load.users} agents waits for its own loop"
    pairs = [
        ("load", what),
        ("think time", duration(load.think_seconds)),
        ("scenario", run.scenario),
        ("provider", run.provider),
        ("model", run.model or "the provider's default"),
        ("seed", str(run.seed)),
        ("processes that run loops", str(run.workers)),
        ("trials", str(len(run.trials))),
        ("loops recorded", str(sum(one.totals.loops for one in summary.strategies))),
    ]
    if spent is not None and run.provider != NO_MODEL:
        pairs.append(("asked of the model in all, retries and warm-up included", spent.asked))
    began = datetime.fromtimestamp(run.anchor.unix_ns / 1e9, tz=UTC)
    pairs.append(("began", began.strftime("%Y-%m-%d %H:%M:%S UTC")))
    for line in limits(run):
        spec, _, said = line.partition(": ")
        pairs.append((f"limit of {spec}", said))
    return pairs


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
        ["process", "trial", "loop lag p99", "late starts p99", "busy", "ready, not run"],
    )
    for one in run.client[:MOST_CLIENT_ROWS]:
        grid.rows.append(
            [
                Cell(name(one.process), heading=True),
                Cell("all" if one.trial is None else str(one.trial + 1)),
                seconds(one.loop_lag_p99),
                seconds(one.schedule_lag_p99),
                Cell(percent(one.cpu)),
                Cell(percent(one.delayed_share)),
            ]
        )
    return f"<h3>The client</h3>{grid.html('table-client')}"


def _left_out(material: Material, drawn: int) -> list[str]:
    summary, run = material.summary, material.run
    lines = [f"{name(one.strategy)}: {said}." for one in summary.strategies if (said := left_out(one))]
    if run.provider == NO_MODEL:
        lines = ["Nothing: every call counts, those that waited longest too."]
    elif not lines:
        lines = ["No warm-up was seen in the series of loops, so none was left out."]
    cut = sum(one.loops.interrupted for one in summary.strategies)
    if cut:
        lines.append(f"{cut} loops were cut off after the drain; they count as failed and have no latency.")
    sampled = (
        f"Drawn as waterfalls: the slowest, median and failed loops, {drawn} of {material.table.trial.size}. "
        "Every other figure and curve is of all loops that count; nothing else was sampled."
    )
    estimates = (
        f"Estimates are made from the first loops of each trial, with {CALLS_READ} tool calls in all at "
        f"most, and try the {ESTIMATED_TOOLS} tools that took the most time."
    )
    return [
        *lines,
        "Latencies are of loops that completed; read them beside the share that failed.",
        *(
            text(f"{i.kind.replace('_', ' ')}: {i.detail} ({i.count})")
            for i in run.incidents[:MOST_INCIDENTS]
        ),
        *([] if run.provider == NO_MODEL else [sampled, estimates]),
    ]


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(part) for part in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
