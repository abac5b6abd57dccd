"""The page's first half: verdict, strategies side by side, where the time goes, distributions."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

from profiler import palette
from profiler.report.advice import Step
from profiler.report.html.charts import SHARES
from profiler.report.html.markup import Cell, Grid, behind, chart, name, swatch, text
from profiler.report.terminal import overlap
from profiler.report.text import duration, number, percent
from profiler.statistics.figures import StrategySummary
from profiler.statistics.quantiles import Estimate
from profiler.statistics.summary import Summary

ROW = 34
"""Height of a strategy's row in a chart."""

READ_AT = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
"""Shares that the table behind the distributions shows."""

_FACTOR = re.compile(r"(\d+(?:\.\d+)?×)( \[[^\]]*\])?")


def verdict(summary: Summary, steps: Sequence[Step]) -> str:
    """What was found, said first; what makes it doubtful, said before."""
    parts = []
    invalid = [warning for warning in summary.warnings if warning.invalid]
    if invalid:
        items = "".join(f"<li>{text(w.detail)}; <strong>{text(w.remedy)}</strong>.</li>" for w in invalid)
        parts.append(
            '<div class="notice invalid" role="note"><p><strong>Invalid.</strong> '
            f"These figures describe the client, not the system.</p><ul>{items}</ul></div>"
        )
    if not summary.finished:
        parts.append(
            '<div class="notice" role="note"><p><strong>Cut short.</strong> '
            "The run did not come to its end; what had finished is here.</p></div>"
        )
    sentences = [sentence(one.sentence, summary) for one in summary.verdicts]
    if not sentences:
        sentences = [_alone(summary)]
    parts.append(f'<p class="verdict lead">{sentences[0]}</p>')
    parts += [f'<p class="verdict">{one}</p>' for one in sentences[1:]]
    if summary.objective is not None:
        parts.append(f'<p class="objective">{_objective(summary)}</p>')
    notes = [warning for warning in summary.warnings if not warning.invalid]
    if notes:
        items = "".join(f"<li>{text(w.detail)}; {text(w.remedy)}.</li>" for w in notes)
        parts.append(f'<h3>Read with care</h3><ul class="notes">{items}</ul>')
    if steps:
        items = "".join(f"<li><p>{text(step.words)}</p>{_command(step.command)}</li>" for step in steps)
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

    for strategy in known:
        chip = f'<span class="chip">{swatch(palette.strategy_colour(strategy))}{name(strategy)}</span>'
        shown = re.sub(rf"(?<![\w:]){re.escape(text(strategy))}(?![\w:@])", lambda _, c=chip: mark(c), shown)  # type: ignore[misc]
    shown = _FACTOR.sub(
        lambda m: f"<strong>{m[1]}</strong>" + (f'<span class="interval">{m[2]}</span>' if m[2] else ""),
        shown,
    )
    return re.sub(r"\x00(\d+)\x00", lambda m: marks[int(m[1])], shown)


def _alone(summary: Summary) -> str:
    """Without a comparison there is still something to say first."""
    for strategy in summary.strategies:
        if strategy.loop_seconds.p50.value is not None:
            middle, tail = (duration(strategy.loop_seconds[q].value) for q in ("p50", "p95"))
            return sentence(
                f"{strategy.strategy}: a loop takes {middle} at p50 and {tail} at p95; "
                "there is nothing to compare.",
                summary,
            )
    return "No loop was measured."


def _objective(summary: Summary) -> str:
    parts = []
    for answer, word in ((True, "met by"), (False, "missed by")):
        names = [name(s.strategy) for s in summary.strategies if s.objective_met is answer]
        if names:
            parts.append(f"{word} {', '.join(names)}")
    outcome = "; ".join(parts) or "no loop was measured"
    return f"Objective <code>{text(summary.objective or '')}</code>: {outcome}."


def _command(line: str | None) -> str:
    if line is None:
        return ""
    return (
        f'<div class="command"><code>{html.escape(line)}</code>'
        '<button type="button" class="copy" data-copies="command">Copy</button></div>'
    )


def side_by_side(strategies: Sequence[StrategySummary]) -> str:
    """The table of strategies, and the dots with intervals."""
    grid = Grid(
        "Strategies side by side; small figures are 95 % intervals",
        [
            ("strategy", False),
            ("good loops/s", True),
            ("loop p50", True),
            ("p95", True),
            ("p99", True),
            ("failed", True),
            ("attempts per request", True),
            ("speed-up", True),
            ("efficiency", True),
            ("loops", True),
        ],
        sortable=True,
    )
    for one in strategies:
        grid.rows.append(
            [
                Cell(swatch(palette.strategy_colour(one.strategy)) + name(one.strategy), heading=True),
                _number(one.goodput),
                *(_duration(one.loop_seconds[q]) for q in ("p50", "p95", "p99")),
                _percent(one.failure_rate),
                _number(one.attempts_per_request),
                _number(one.speed_up, "×"),
                _percent(one.efficiency),
                Cell(f"{one.loops.due:,}".replace(",", " "), float(one.loops.due)),
            ]
        )
    return (
        grid.html("table-strategies")
        + '<div class="pair">'
        + chart("chart-latency", "Loop latency per strategy: p50, p95 and p99", 70 + ROW * len(strategies))
        + chart("chart-goodput", "Good loops per second per strategy", 70 + ROW * len(strategies))
        + chart("chart-failures", "Share of failed loops per strategy", 70 + ROW * len(strategies))
        + "</div>"
    )


def phases(strategies: Sequence[StrategySummary]) -> str:
    """Stacked phases per strategy, and their table."""
    names = list(dict.fromkeys(phase for one in strategies for phase in one.phases))
    grid = Grid(
        "Mean seconds per completed loop, by phase; the phases add up to the mean",
        [("strategy", False), *((phase.replace("_", " "), True) for phase in names), ("loop", True)],
    )
    for one in strategies:
        mean = one.mean_loop_seconds
        cells = [Cell(swatch(palette.strategy_colour(one.strategy)) + name(one.strategy), heading=True)]
        for phase in names:
            value = one.phases.get(phase)
            share = percent(value / mean) if mean and value is not None else ""
            cells.append(Cell(duration(value), value, below=share))
        grid.rows.append([*cells, Cell(duration(mean), mean)])
    legend = "".join(
        f"<li>{swatch(palette.PHASES.get(phase, '#8A8F98'))}{text(phase.replace('_', ' '))}</li>"
        for phase in names
        if any(_seen(one, phase) for one in strategies)
    )
    beside = "".join(
        f"<li>{swatch(palette.strategy_colour(one.strategy))}{name(one.strategy)}: {text(said)}</li>"
        for one in strategies
        if (said := overlap(one)) is not None
    )
    return (
        f'<ul class="legend">{legend}</ul>'
        + chart("chart-phases", "Mean seconds per loop, stacked by phase", 50 + (ROW + 6) * len(strategies))
        + (f'<ul class="notes">{beside}</ul>' if beside else "")
        + behind(grid, "table-phases")
    )


def _seen(strategy: StrategySummary, phase: str) -> bool:
    mean = strategy.mean_loop_seconds or 0.0
    return strategy.phases.get(phase, 0.0) >= 0.001 * mean > 0


def distributions(series: Sequence[dict[str, Any]], strategies: Sequence[dict[str, Any]]) -> str:
    """The choice of a series, the curves, and the quantiles behind them."""
    if not series:
        return "<p>No loop completed, so there is no distribution to draw.</p>"
    options = "".join(
        f'<option value="{index}">{html.escape(one["name"])}</option>' for index, one in enumerate(series)
    )
    grid = Grid(
        "Seconds at or below which this share lies",
        [("series", False), ("strategy", False), *((percent(share), True) for share in READ_AT)],
    )
    places = [SHARES.index(share) for share in READ_AT]
    for one in series:
        for strategy, curve in zip(strategies, one["curves"], strict=True):
            if curve is not None:
                grid.rows.append(
                    [
                        Cell(f"<bdi>{html.escape(one['name'])}</bdi>", heading=True),
                        Cell(
                            swatch(strategy["colour"]) + f"<bdi>{html.escape(strategy['name'])}</bdi>",
                            numeric=False,
                        ),
                        *(Cell(duration(curve[place]), curve[place]) for place in places),
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
    unit = None if estimate.value is None else ("s" if abs(estimate.value) >= 0.9995 else "ms")
    below = ""
    if estimate.low is not None and estimate.high is not None:
        scale = 1.0 if unit == "s" else 1000.0
        below = f"{number(estimate.low * scale)} – {number(estimate.high * scale)}"
    return Cell(duration(estimate.value), estimate.value, below=below)


def _number(estimate: Estimate, unit: str = "") -> Cell:
    below = ""
    if estimate.low is not None and estimate.high is not None:
        below = f"{number(estimate.low)} – {number(estimate.high)}"
    shown = "–" if estimate.value is None else f"{number(estimate.value)}{unit}"
    return Cell(shown, estimate.value, below=below)


def _percent(estimate: Estimate) -> Cell:
    below = ""
    if estimate.low is not None and estimate.high is not None:
        below = f"{percent(estimate.low)} – {percent(estimate.high)}"
    return Cell(percent(estimate.value), estimate.value, below=below)
