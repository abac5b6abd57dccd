"""The page's first half: verdict, strategies side by side, where the time goes, distributions."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from typing import Any

from profiler import palette
from profiler.report.advice import Step
from profiler.report.html.charts import SHARES
from profiler.report.html.markup import (
    Cell,
    Grid,
    behind,
    bullets,
    chart,
    command_line,
    name,
    seconds,
    strategy,
    swatch,
    text,
)
from profiler.report.terminal import SURVIVORS, objective_outcome, overlap
from profiler.report.text import duration, number, percent
from profiler.statistics.figures import StrategySummary
from profiler.statistics.quantiles import Estimate
from profiler.statistics.summary import Summary

ROW = 34
"""Pixels of a strategy's row in a chart."""

READ_AT = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
"""Shares that the table behind the distributions shows."""

_FACTOR = re.compile(r"(\d+(?:\.\d+)?×)( \[[^\]]*\])?")


def verdict(summary: Summary, steps: Sequence[Step]) -> str:
    """The verdict: why the run is invalid, if it is, then what was found, and what to try next."""
    parts: list[str] = []
    first, *others = [sentence(one.sentence, summary) for one in summary.verdicts] or [_alone(summary)]
    lead = f'<p class="verdict lead">{first}</p>'
    if summary.void:
        parts.append(lead)
    invalid = [warning for warning in summary.warnings if warning.invalid]
    if invalid:
        items = bullets(f"{text(w.detail)}; <strong>{text(w.remedy)}</strong>." for w in invalid)
        names = list(dict.fromkeys(name for w in invalid for name in w.strategies))
        valid = any(one.valid for one in summary.strategies)
        whose = f"The figures of {', '.join(map(text, names))}" if valid and names else "These figures"
        what = f"{whose} describe the client, not the system."
        if all(warning.kind == "strategy_ignored" for warning in invalid):
            what = "A strategy was not applied: figures under its name are not its own."
        parts.append(
            f'<div class="notice invalid" role="note"><p><strong>Invalid.</strong> {what}</p>{items}</div>'
        )
    if not summary.finished:
        parts.append(
            '<div class="notice" role="note"><p><strong>Cut short.</strong> '
            "The run did not come to its end; what had finished is here.</p></div>"
        )
    if not summary.void:
        parts.append(lead)
    parts += [f'<p class="verdict">{one}</p>' for one in others]
    if summary.objective is not None:
        outcome = objective_outcome(summary, name)
        parts.append(f'<p class="objective">Objective <code>{text(summary.objective)}</code>: {outcome}.</p>')
    notes = [f"{text(w.detail)}; {text(w.remedy)}." for w in summary.warnings if not w.invalid]
    if notes:
        parts.append(f"<h3>Read with care</h3>{bullets(notes, 'notes')}")
    if steps:
        items = "".join(
            f"<li><p>{text(step.words)}</p>{command_line(step.command) if step.command else ''}</li>"
            for step in steps
        )
        parts.append(f'<h3>Try next</h3><ol class="steps">{items}</ol>')
    return "".join(parts)


def sentence(words: str, summary: Summary) -> str:
    """A verdict as HTML: strategies with their colours, factors in bold, intervals set back.

    Long names first, so that `semaphore:4` is not found inside `semaphore:40`.
    """
    shown = text(words)
    known = sorted({s.strategy for s in summary.strategies}, key=len, reverse=True)
    marks: list[str] = []

    def mark(content: str) -> str:
        marks.append(content)
        return f"\x00{len(marks) - 1}\x00"  # a character that `text` lets nothing bring in

    for spec in known:
        chip = f'<span class="chip">{strategy(spec)}</span>'
        shown = re.sub(rf"(?<![\w:]){re.escape(text(spec))}(?![\w:@])", lambda _, c=chip: mark(c), shown)  # type: ignore[misc]
    shown = _FACTOR.sub(
        lambda m: f"<strong>{m[1]}</strong>" + (f'<span class="interval">{m[2]}</span>' if m[2] else ""),
        shown,
    )
    return re.sub(r"\x00(\d+)\x00", lambda m: marks[int(m[1])], shown)


def _alone(summary: Summary) -> str:
    """The first sentence where there is no comparison."""
    for one in summary.strategies:
        middle, tail = one.loop_seconds.p50.value, one.loop_seconds.p95.value
        if middle is not None and one.backlog is None:
            return sentence(
                f"{one.strategy}: a loop takes {duration(middle)} at p50 and {duration(tail)} at p95; "
                "there is nothing to compare.",
                summary,
            )
    return "No loop was measured."


def side_by_side(strategies: Sequence[StrategySummary]) -> str:
    """The table of strategies, and the dots with intervals."""
    grid = Grid(
        "Strategies side by side; small figures are 95 % intervals",
        [
            *("strategy", "good loops/s", "loop p50", "p95", "p99", "failed"),
            *("attempts per request", "speed-up", "efficiency", "loops"),
        ],
        sortable=True,
    )
    for one in strategies:
        grid.rows.append(
            [
                Cell(strategy(one.strategy), heading=True),
                _with_interval(one.goodput, number),
                *(
                    # With a backlog that grows these say how long the window was.
                    Cell("–") if one.backlog else _duration(one.loop_seconds[q])
                    for q in ("p50", "p95", "p99")
                ),
                _with_interval(one.failure_rate, percent),
                _with_interval(one.attempts_per_request, number),
                _with_interval(one.speed_up, number, "×"),
                _with_interval(one.efficiency, percent),
                Cell(f"{one.loops.due:,}".replace(",", " "), float(one.loops.due)),
            ]
        )
    height = 70 + ROW * len(strategies)
    survivors = any(one.failure_rate.value for one in strategies)
    return (
        grid.html("table-strategies")
        + (f'<p class="small">{text(SURVIVORS)}.</p>' if survivors else "")
        + '<div class="pair">'
        + chart("chart-latency", "Loop latency per strategy: p50, p95 and p99", height)
        + chart("chart-goodput", "Good loops per second per strategy", height)
        + chart("chart-failures", "Share of failed loops per strategy", height)
        + "</div>"
    )


def phases(strategies: Sequence[StrategySummary]) -> str:
    """Stacked phases per strategy, and their table."""
    names = list(dict.fromkeys(phase for one in strategies for phase in one.phases))
    grid = Grid(
        "Mean seconds per completed loop, by phase; the phases add up to the mean",
        ["strategy", *(phase.replace("_", " ") for phase in names), "loop"],
    )
    for one in strategies:
        mean = one.mean_loop_seconds
        cells = [Cell(strategy(one.strategy), heading=True)]
        for phase in names:
            value = one.phases.get(phase)
            share = percent(value / mean) if mean and value is not None else ""
            cells.append(Cell(duration(value), value, below=share))
        grid.rows.append([*cells, seconds(mean)])
    legend = (
        swatch(palette.PHASES.get(phase, "#8A8F98")) + text(phase.replace("_", " "))
        for phase in names
        if any(_seen(one, phase) for one in strategies)
    )
    beside = [
        f"{strategy(one.strategy)}: {text(said)}" for one in strategies if (said := overlap(one)) is not None
    ]
    return (
        bullets(legend, "legend")
        + chart("chart-phases", "Mean seconds per loop, stacked by phase", 50 + (ROW + 6) * len(strategies))
        + (bullets(beside, "notes") if beside else "")
        + behind(grid, "table-phases")
    )


def _seen(strategy: StrategySummary, phase: str) -> bool:
    mean = strategy.mean_loop_seconds or 0.0
    return strategy.phases.get(phase, 0.0) >= 0.001 * mean > 0


def distributions(series: Sequence[dict[str, Any]], strategies: Sequence[StrategySummary]) -> str:
    """The choice of a series, the curves, and the quantiles behind them."""
    if not series:
        return "<p>No loop completed, so there is no distribution to draw.</p>"
    options = "".join(
        f'<option value="{index}">{html.escape(one["name"])}</option>' for index, one in enumerate(series)
    )
    grid = Grid("Seconds at or below which this share lies", ["series", "strategy", *map(percent, READ_AT)])
    places = [SHARES.index(share) for share in READ_AT]
    for one in series:
        for whose, curve in zip(strategies, one["curves"], strict=True):
            if curve is not None:
                grid.rows.append(
                    [
                        Cell(f"<bdi>{html.escape(one['name'])}</bdi>", heading=True),
                        Cell(strategy(whose.strategy), numeric=False),
                        *(seconds(curve[place]) for place in places),
                    ]
                )
    return (
        '<p class="controls"><label for="pick-series">Time of</label> '
        f'<select id="pick-series">{options}</select></p>'
        + chart("chart-distribution", "Cumulative share against time, one curve per strategy", 340)
        + '<p class="readout" id="readout" aria-live="off">Point at a curve to read it.</p>'
        + behind(grid, "table-distributions")
    )


def _duration(estimate: Estimate) -> Cell:
    unit = duration(estimate.value).split()[-1]
    scale = 1000.0 if unit == "ms" else 1.0
    return _with_interval(estimate, lambda value: number(value and value * scale), f" {unit}")


def _with_interval(estimate: Estimate, show: Callable[[float | None], str], unit: str = "") -> Cell:
    """A figure above its interval, which is shown without the unit."""
    below = ""
    if estimate.low is not None and estimate.high is not None:
        below = f"{show(estimate.low)} – {show(estimate.high)}"
    shown = show(estimate.value) + (unit if estimate.value is not None else "")
    return Cell(shown, estimate.value, below=below)
