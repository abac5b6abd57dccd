"""The parts of the page of another program's loops: what their records say, and what they cannot."""

from __future__ import annotations

from collections.abc import Sequence

from profiler.report.html.markup import LONGEST, Cell, Grid, bullets, definitions, name, seconds, text
from profiler.report.html.page import Section, page
from profiler.report.recorded import DOORS, Words, words
from profiler.report.text import clean, duration, number, percent
from profiler.rundir import Run
from profiler.statistics.recorded import RecordedFigures
from profiler.statistics.rounds import LIMITS, Sums
from profiler.statistics.samples import FEWEST_FOR_TAIL
from profiler.statistics.tool_latency import MOST_TICKS

ABOUT_CALLS = (
    "Rounds that made several calls. Busy is for how long any of them ran; gathered, and a limit of so many "
    "at once, are estimates: the same durations, started in the order asked."
)
ABOUT_TOOLS = (
    "Latency is of calls whose start and end are known; upper bounds, which may hold an approval or a wait, "
    f"are counted beside it. With fewer than {FEWEST_FOR_TAIL} calls no tail is shown."
)
ABSENT = (
    "Strategies side by side: nobody chose how these calls were to run.",
    "Load levels: nobody chose how many loops ran at once.",
    "Blocks and intervals: one recording is one stretch of time; profiler compare of two cuts each into "
    "slices where it holds enough loops.",
    "Client health: the loops ran in another program, of whose event loop and processor nothing is recorded.",
    "Queue waits: nobody writes down when a call was queued, so each begins when it starts.",
)
"""Parts of a load test's page that this one lacks, and why."""


def verdict(figures: RecordedFigures, run: Run | None, of_loops: Sequence[str] = (), own: int = 0) -> str:
    """The sentences, those `of_loops` among them; what cannot be told; where all of it is from.

    `own` counts loops on the page that are no recording.
    """
    said = words(figures, own=own) if run is None else words(figures, run.recording, run.anchor, own)
    lead, *others = said.found or ["There is nothing to say"]
    parts = [f'<p class="verdict lead">{text(f"{lead}.", 2000)}</p>']
    parts += [f'<p class="verdict">{text(f"{one}.", 2000)}</p>' for one in others]
    parts += [f'<p class="verdict">{text(one, 2000)}</p>' for one in of_loops]
    if said.cannot:
        items = bullets(text(f"{one[0].upper()}{one[1:]}.", 2000) for one in said.cannot)
        parts.append(
            f'<div class="notice" role="note"><p><strong>What cannot be told</strong></p>{items}</div>'
        )
    return "".join(parts) + origin(said)


def origin(said: Words) -> str:
    """Where the records are from, and the tally."""
    return bullets((text(f"{one[0].upper()}{one[1:]}.", 2000) for one in said.of), "notes")


def calls(figures: RecordedFigures) -> str:
    """How rounds of several calls ran, and would have."""
    grid = Grid(
        "Rounds of several calls",
        ["rounds", "count", "calls", "work", "wall", "busy", "gaps", "speed-up", "most at once", "gathered"]
        + [f"semaphore:{limit}" for limit in LIMITS],
    )
    for title, sums in (
        ("one after another", figures.in_turn),
        ("overlapped", figures.overlapped),
        ("with upper bounds (≤)", figures.bounded),
    ):
        if sums.rounds:
            grid.rows.append(_row(title, sums))
    left = figures.left_out
    shown = [
        (count, why)
        for count, why in (
            (left.upper_bound, "a duration is an upper bound"),
            (left.never_ended, "a call never ended"),
            (left.wait, "a call only waited for another"),
            (left.unresolved, f"fewer than {MOST_TICKS} ticks of the clock"),
        )
        if count
    ]
    table = grid.html("table-calls") if grid.rows else "<p>There is no round to conclude from.</p>"
    pairs = [(f"left out: {why}", f"{count} of {figures.parallel} rounds") for count, why in shown]
    if figures.proxied.rounds:
        pairs.append(("of these, groups whose wall the proxy saw", f"{figures.proxied.rounds}"))
    return table + definitions(pairs) if pairs else table


def _row(title: str, sums: Sums) -> list[Cell]:
    bounded = title.endswith("(≤)")
    factor = None if bounded else sums.busy_speed_up
    estimates = (sums.gathered_seconds, *sums.limit_seconds.values())
    return [
        Cell(text(title), heading=True),
        Cell(str(sums.rounds), float(sums.rounds)),
        Cell(str(sums.calls), float(sums.calls)),
        *(
            Cell(f"{'≤ ' if bounded else ''}{duration(one)}", one)
            for one in (sums.work_seconds, sums.wall_seconds, sums.busy_seconds)
        ),
        seconds(None if bounded else sums.gap_seconds),
        Cell("–" if factor is None else f"{number(factor)}×", factor),
        Cell(f"{'≤ ' if bounded else ''}{sums.peak}", float(sums.peak)),
        *(seconds(None if bounded else one) for one in estimates),  # nothing follows from bounds
    ]


def tools(figures: RecordedFigures) -> str:
    """A row per tool: latencies, and what has none."""
    grid = Grid(
        "Latency of each tool",
        [
            *("tool", "calls", "known durations", "p50", "p95", "p99"),
            *("derived", "upper bounds", "never ended", "never started", "waits", "failed"),
        ],
        sortable=True,
    )
    for one in figures.tools[:MOST_TOOLS]:
        share = one.failed / one.calls
        grid.rows.append(
            [
                Cell(name(one.name), heading=True),
                Cell(str(one.calls), float(one.calls)),
                Cell(str(one.latency.count), float(one.latency.count)),
                *map(seconds, (one.latency.p50, one.latency.p95, one.latency.p99)),
                *(
                    Cell(str(count) if count else "–", float(count))
                    for count in (
                        *(one.derived, one.upper_bounds, one.never_ended),
                        *(one.never_started, one.waits),
                    )
                ),
                Cell(percent(share), share, kind="bad" if share else ""),
            ]
        )
    left = len(figures.tools) - len(grid.rows)
    more = f'<p class="small">{left} more tools are left out here.</p>' if left else ""
    return grid.html("table-tools") + more


MOST_TOOLS = 60


def absent() -> str:
    """What a load test's page has and this one lacks."""
    return bullets((text(one, 400) for one in ABSENT), "notes")


def facts(figures: RecordedFigures, run: Run | None) -> list[str]:
    """`imported (otel)`, as HTML."""
    sources = ", ".join(clean(one, LONGEST) for one in figures.sources if one)
    door = DOORS[run.recording.door] if run is not None and run.recording is not None else "recorded"
    shown = [text(f"{door} ({sources})" if sources else door, 200)]
    return shown if run is None or run.finished else [*shown, "still being recorded, or cut short"]


def render_empty(run: Run, figures: RecordedFigures) -> str:
    """The page of a recorded run that has no loop (yet); the figures are of none."""
    sections = [
        Section("verdict", "What was recorded", "", verdict(figures, run)),
        Section("absent", "What is not here, and why", "", absent()),
    ]
    data = {
        "strategies": [],
        "phases": {},
        "distributions": [],
        "shares": [],
        "course": {"width": 1.0, "trials": []},
        "levels": [],
        "waterfalls": {"cases": [], "left": 0, "loops": {}},
        "counterfactuals": [],
    }
    title = clean(run.scenario, LONGEST)
    shown = " · ".join(f"<span>{one}</span>" for one in facts(figures, run))
    return page(f"{title}: no loops", name(run.scenario), shown, sections, data, switches=False)
