"""What `profiler predict` prints: the figures of `compare`, predicted, with bands, and what they rest on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from profiler.prediction.answer import Answer, PredictedLevel
from profiler.prediction.check import POINTS, Checked, CheckedCell, CheckedFigure
from profiler.report.terminal import rendered
from profiler.report.text import clean, counted, duration, number, percent
from profiler.statistics.quantiles import Estimate

_LONGEST = 500
_BAR = 16
"""Characters of the longest bar of a curve."""


def render_prediction(answer: Answer, width: int = 80, color: bool = False) -> str:
    """The answer as text: warnings, what is better, figures, what is outside the recording, its limits."""
    text = rendered(_prediction(answer, width), width, color)
    # Not wrapped: a command is to be copied.
    return text + "".join(f"  {clean(line, 4096)}\n" for line in answer.record)


def _prediction(answer: Answer, width: int) -> Iterator[RenderableType]:
    for said in answer.warnings:
        yield Text(
            f"warning: {_about(said.strategies, said.users)}{clean(said.sentence, _LONGEST)}", "yellow"
        )
    yield Text(_label(answer), style="bold")
    for verdict in answer.verdicts:
        yield Text(clean(verdict.sentence, _LONGEST), style="bold")
    for level in answer.every_level:
        if any(not one.refused for one in level.strategies):
            if answer.levels:
                yield Text(load_words(level))
            yield _table(level, width)
    for said in answer.refused:
        where = _about(said.strategies, said.users)
        yield Text(f"outside the recording: {where}{clean(said.sentence, _LONGEST)}", style="yellow")
    yield from map(Text, chart(answer))
    for line in answer.curves:
        yield Text(clean(line, _LONGEST))
    for capacity in answer.capacities:
        yield Text(clean(capacity.sentence, _LONGEST))
    if answer.objective is not None and answer.told:
        yield Text(f"objective {clean(answer.objective, _LONGEST)}: {objective_words(answer)}")
    for line in answer.limits:
        yield Text(clean(line, _LONGEST))
    yield Text(_rests_on(answer))
    if answer.record:
        yield Text("to know more, record:")


def _label(answer: Answer) -> str:
    band = percent(answer.band)
    each = f"{counted(answer.replicates, 'simulated run')} of {duration(answer.seconds)}"
    if answer.blocks > 1:
        each += f" in {answer.blocks} blocks"
    return (
        f"predicted, not run; {band} bands, of {each} for each strategy and load"
        if answer.told
        else ("nothing is predicted")
    )


def load_words(level: PredictedLevel) -> str:
    """`40 agents`, or `12 loops/s`."""
    return counted(level.users, "agent") if level.rate is None else f"{number(level.rate)} loops/s"


def _about(strategies: Sequence[str], users: Sequence[int]) -> str:
    """`gathered, semaphore:8 (40, 80 agents): `; empty for all."""
    names = ", ".join(clean(name) for name in strategies)
    loads = ", ".join(map(str, users)) + (" agent" if users == (1,) else " agents") if users else ""
    said = f"{names} ({loads})" if names and loads else names or loads
    return f"{said}: " if said else ""


def objective_words(answer: Answer) -> str:
    """`predicted to be met by gathered; missed by sequential (p95 2.31 s)`, under the lowest load."""
    shown = [one for one in answer.every_level[0].strategies if one.objective_met is not None]
    met = [clean(one.strategy) for one in shown if one.objective_met]
    missed = [
        f"{clean(one.strategy)} ({', '.join(one.objective_missed)})" for one in shown if not one.objective_met
    ]
    parts = [f"predicted to be met by {', '.join(met)}"] if met else []
    parts += [f"missed by {', '.join(missed)}"] if missed else []
    return "; ".join(parts) or "nothing is predicted"


_WIDE = 98
"""From this width on all figures of a row have room beside each other, with their bands."""


def _table(level: PredictedLevel, width: int) -> Table:
    shown = level.strategies
    failing = any(one.failure_rate.value for one in shown)
    refusing = any(one.refused_share.high for one in shown)
    rates = ["good/s", *(["loops/s"] if width >= _WIDE else [])] if failing else ["loops/s"]
    p99 = any(one.loop_seconds.p99.value is not None for one in shown)
    p99 = p99 and (width >= _WIDE or not refusing)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    longest = max(len(one.strategy) for one in shown)
    table.add_column("predicted", min_width=min(14, longest), max_width=22, overflow="fold")
    names = [*rates, "loop p50", "p95", *(["p99"] if p99 else []), "failed", *(["429s"] if refusing else [])]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for one in shown:
        head = Text(clean(one.strategy, 120))
        if one.refused:
            table.add_row(head, *("–" for _ in names))
            continue
        cells = [one.goodput if name == "good/s" else one.throughput for name in rates]
        times = [one.loop_seconds.p50, one.loop_seconds.p95, *([one.loop_seconds.p99] if p99 else [])]
        table.add_row(
            head,
            *(_cell(cell, number) for cell in cells),
            *(_cell(cell, duration) for cell in times),
            _cell(one.failure_rate, percent, "red" if one.failure_rate.value else ""),
            *([_cell(one.refused_share, percent)] if refusing else []),
        )
    return table


def _cell(one: Estimate, words: Any, style: str = "") -> Text:
    """The figure, and its band on a second line."""
    if one.value is None:
        return Text("–")
    text = Text(words(one.value), style=style)
    if one.low is not None and one.high is not None:
        text.append(f"\n{between(one.low, one.high, words)}", style="dim")
    return text


def between(low: float, high: float, words: Any) -> str:
    """`2.21–2.40 s`, with the unit once where both have the same."""
    first, last = words(low), words(high)
    value, _, unit = first.partition(" ")
    return f"{value}–{last}" if unit and last.endswith(f" {unit}") else f"{first}–{last}"


def _rests_on(answer: Answer) -> str:
    recorded = answer.recorded
    loads = ", ".join(map(str, recorded.levels))
    text = f"fitted to {_counted(recorded.loops, 'recorded loop')} with "
    text += _counted(recorded.tool_calls, "tool call")
    if recorded.strategies:
        text += f" of {', '.join(clean(name) for name in recorded.strategies[:6])}"
        text += " and more" if len(recorded.strategies) > 6 else ""
    if loads:
        text += f" under {loads} agents" if answer.load.arrivals is None else f" ({loads} agents)"
    return "; ".join([text, *answer.changed])


def _counted(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def chart(answer: Answer) -> list[str]:
    """Goodput as bars: of each strategy over the loads where there are several, else of the strategies."""
    levels = [level for level in answer.every_level if any(not one.refused for one in level.strategies)]
    rows: list[tuple[str, str, float]] = []
    if len(levels) >= _FEWEST_POINTS:
        for name in [one.strategy for one in levels[0].strategies]:
            for level in levels:
                found = next(one for one in level.strategies if one.strategy == name)
                if found.goodput.value is not None:
                    rows.append((name, load_words(level), found.goodput.value))
    elif levels and len(levels[-1].strategies) >= _FEWEST_POINTS:
        rows = [
            ("", one.strategy, one.goodput.value)
            for one in levels[-1].strategies
            if one.goodput.value is not None
        ]
    if len(rows) < _FEWEST_POINTS:
        return []
    widest = max(len(label) for _, label, _ in rows)
    lines = ["good loops/s, predicted"]
    before = ""
    for (name, label, value), bar in zip(rows, bars([value for *_, value in rows]), strict=True):
        if name != before:
            lines.append(clean(name))
            before = name
        lines.append(f"  {clean(label, widest):<{widest}}  {bar:<{_BAR}} {number(value)}")
    return lines


_FEWEST_POINTS = 3


def bars(values: Sequence[float]) -> list[str]:
    """A bar for each value, in eighths of a character, the longest for the largest."""
    most = max(values, default=0.0)
    eighths = [0 if most <= 0 else round(value / most * _BAR * 8) for value in values]
    return ["█" * (one // 8) + ("", *"▏▎▍▌▋▊▉")[one % 8] for one in eighths]


# What `--check` prints.

FIGURES = {
    "p50": "p50",
    "p95": "p95",
    "p99": "p99",
    "throughput": "loops/s",
    "goodput": "good/s",
    "failure_rate": "failed",
    "refused_share": "429s",
}
"""The figures that are checked, and how they are headed."""

_WORDS: dict[str, Callable[[float | None], str]] = {
    **dict.fromkeys(("p50", "p95", "p99"), duration),
    **dict.fromkeys(("throughput", "goodput"), number),
    **dict.fromkeys(("failure_rate", "refused_share"), percent),
}


def render_check(checked: Checked, width: int = 80, color: bool = False) -> str:
    """The check as text: how good it is in sentences, then predicted against measured, cell by cell."""
    return rendered(_check(checked, width), width, color)


def _check(checked: Checked, width: int) -> Iterator[RenderableType]:
    for sentence in checked.sentences:
        yield Text(clean(sentence, _LONGEST), style="bold")
    shown = checked_figures(checked)
    if width < _WIDE and len(shown) >= len(FIGURES):
        shown.remove("p99")  # there is no room for all of them; the report has it
    longest = max((len(clean(cell.strategy)) for cell in checked.cells), default=0)
    before = ""
    table = None
    for cell in checked.cells:
        if not cell.figures:
            continue
        if table is None or cell.left_out != before:
            if table is not None:
                yield table
            before = cell.left_out
            yield Text(f"without {clean(before)}, predicted from the others:")
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
            table.add_column("strategy", min_width=min(14, longest), max_width=22, overflow="fold")
            for heading in ("agents", *(FIGURES[name] for name in shown)):
                table.add_column(heading, justify="right", no_wrap=True)
        one = [_checked(cell.figures.get(name), name) for name in shown]
        table.add_row(Text(clean(cell.strategy)), str(cell.users), *one)
    if table is not None:
        yield table
        yield Text("each: the error, and what was measured; !: that is outside the band")
    for cell in checked.cells:
        for sentence in cell.refused[:1]:
            said = f"outside what is left without {clean(cell.left_out)}: {cell_words(cell)}: "
            yield Text(said + clean(sentence, _LONGEST), style="yellow")


def checked_figures(checked: Checked) -> list[str]:
    """The names of the figures that say something: not of failures and refusals where there were none."""
    found = []
    for name in FIGURES:
        every = [cell.figures[name] for cell in checked.cells if name in cell.figures]
        silent = name in POINTS and not any(one.measured or one.predicted for one in every)
        if every and not silent:
            found.append(name)
    same = all(
        cell.figures["goodput"].measured == cell.figures["throughput"].measured
        for cell in checked.cells
        if cell.figures.keys() >= {"goodput", "throughput"}
    )
    return [name for name in found if name != "goodput" or not same]


def cell_words(cell: CheckedCell) -> str:
    """`gathered with 40 agents`."""
    return f"{clean(cell.strategy)} with {counted(cell.users, 'agent')}"


def error_words(one: CheckedFigure) -> str:
    """`+2.1 %`, or of a share `+0.4 points`; a dash where it has none."""
    if one.error is None:
        return "–"
    return f"{one.error * 100:+.1f} {'pt' if one.points else '%'}"


def figure_words(name: str, value: float | None) -> str:
    """A figure in its own unit."""
    return _WORDS[name](value)


def _checked(one: CheckedFigure | None, name: str) -> Text:
    if one is None:
        return Text("–")
    text = Text(error_words(one) if one.held else f"! {error_words(one)}", style="" if one.held else "red")
    text.append(f"\n{figure_words(name, one.measured)}", style="dim")
    return text
