"""The page of records without a load test: what one loop, or thousands, did, and why it took so long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from profiler import palette
from profiler.limits.known import KnownQuota
from profiler.records import RECORDED, files_of
from profiler.report.html import conditions, kinds, recorded, servers
from profiler.report.html.bare import Bare, Group, gather_files
from profiler.report.html.charts import DIGITS, SHARES, distributions
from profiler.report.html.markup import (
    LONGEST,
    Cell,
    Grid,
    bullets,
    definitions,
    embedded,
    name,
    text,
)
from profiler.report.html.page import Section, libraries, page, write_page
from profiler.report.html.waterfalls import MOST_BYTES, loop
from profiler.report.look import ended, failures, lead, said_of
from profiler.report.text import clean, counted, duration, percent
from profiler.report.timeline import of_several
from profiler.rundir import Run
from profiler.statistics.figures import Tokens
from profiler.statistics.recorded import RecordedFigures
from profiler.statistics.windows import cancelled

FEWEST_FOR_CURVES = 5
MOST_REASONS = 30


class Written(NamedTuple):
    """A page, and where it is. `recorded` are the figures of those loops on it that are a recording, `run` is
    the recorded run that they are of, `own` counts the loops beside them."""

    path: Path
    title: str = ""
    recorded: RecordedFigures | None = None
    run: Run | None = None
    own: int = 0


def write_records(
    path: Path,
    out: Path | None = None,
    title: str | None = None,
    run: Run | None = None,
    quota: KnownQuota | None = None,
) -> Written:
    """Write the page of a file of records, or of a directory of such files.

    `title` None: the name of the file. `out` None: beside the file, under its name with `.html`, or
    `report.html` in the directory. `run` is the recorded run that they are of; its use of a `quota` is held
    against it. Raises `RecordError`, `UsageError`.
    """
    if out is None:
        out = path / "report.html" if path.is_dir() else path.with_suffix(".html")
    bare = gather_files(path, title, run, quota)
    write_page(out, render_records(bare), files_of(path)[0])
    return Written(out, bare.source, bare.recorded, run, bare.own)


def render_records(bare: Bare) -> str:
    """The page of records."""
    data = _payload(bare)
    alone = bare.table.nested.size == 1
    figures = bare.recorded
    of_loops = (_lead(bare), *_notes(bare))
    said = _verdict(bare) if figures is None else recorded.verdict(figures, bare.run, of_loops, bare.own)
    sections = [Section("verdict", "In short", "", said)]
    if figures is not None and figures.parallel:
        sections.append(Section("calls", "Calls at once", recorded.ABOUT_CALLS, recorded.calls(figures)))
    sections += [
        Section("why", "Why it took so long", _WHY[alone], _why(bare)),
        Section(
            "loops",
            "Timeline" if alone else "Loops",
            "" if alone else "Times count from the start of each loop.",
            conditions.drawn(data["waterfalls"], _case_names(bare, data)),
        ),
    ]
    if causes_of_failures := _reasons(bare):
        sections.append(
            Section(
                "failures",
                "Failures",
                "Why loops ended and calls failed, the most frequent first. A call that fails may be tried "
                "again, so one loop may have several.",
                _failures(causes_of_failures),
            )
        )
    if len(bare.shown) > 1:
        sections.append(
            Section(
                "groups",
                "Kinds of loops",
                "As they are told apart by name, strategy and model.",
                kinds.groups(bare),
            )
        )
    sections.append(Section("phases", "Where the time goes", _PHASES_ABOUT, kinds.phases(bare)))
    if figures is not None and figures.tools:
        sections.append(Section("tools", "Tools", recorded.ABOUT_TOOLS, recorded.tools(figures)))
    elif any(one.tools for one in bare.summaries):
        sections.append(
            Section(
                "tools",
                "Tools",
                "Queue is the wait of a call to be started. Critical path is the share of the longest calls "
                "of all rounds that was this tool's.",
                kinds.tools(bare),
            )
        )
    if bare.table.servers:
        content = servers.section(bare.table.servers.figures())
        sections.append(Section("servers", servers.TITLE, servers.ABOUT, content))
    if data["distributions"]:
        sections.append(
            Section(
                "distributions",
                "Distributions",
                "The share that took at most this long, on a logarithmic axis. Loops that came to no answer "
                "are in none of them.",
                kinds.curves(bare, data["distributions"]),
            )
        )
    if figures is not None:
        sections.append(Section("absent", "What is not here, and why", "", recorded.absent()))
    sections.append(Section("conditions", "What this page is made of", "", _made_of(bare)))
    title = _heading(bare)
    return page(
        f"{clean(title, LONGEST)}: {counted(int(bare.tops.size), 'loop')}",
        name(title),
        _facts(bare),
        sections,
        data,
        switches=len(bare.shown) > 1,
    )


_WHY = {
    True: "The parts add up to the time of the loop.",
    False: "The parts add up to the time of all loops that ran inside no other; what each was is said of the "
    "loop in which it took longest.",
}
_PHASES_ABOUT = (
    "Of loops that came to an answer. Each instant belongs to one phase: model before running tools before "
    "queued calls before the rest."
)


def _heading(bare: Bare) -> str:
    if bare.run is not None:
        return bare.source
    names = {group.name for group in bare.groups if not group.inside}
    return names.pop() if len(names) == 1 and "" not in names else bare.source


def _facts(bare: Bare) -> str:
    models = list(dict.fromkeys((group.provider, group.model) for group in bare.groups if group.model))
    strategies = list(dict.fromkeys(group.strategy for group in bare.groups if group.strategy != RECORDED))
    parts = [] if bare.recorded is None else recorded.facts(bare.recorded, bare.run)
    parts += [f"{text(provider, 40)} {name(model)}" for provider, model in models[:3]]
    if len(models) > 3:
        parts.append(f"{len(models) - 3} more models")
    parts += [name(strategy) for strategy in strategies[:3]]
    if len(strategies) > 3:
        parts.append(f"{len(strategies) - 3} more strategies")
    parts.append(f"{counted(int(bare.tops.size), 'loop')}")
    return " · ".join(f"<span>{part}</span>" for part in parts)


def _verdict(bare: Bare) -> str:
    """What was not seen first, then the lead."""
    parts = []
    missing = bare.unseen.sentences()
    if missing:
        items = bullets(f"{text(one)}." for one in missing)
        parts.append(
            '<div class="notice" role="note"><p><strong>Not everything was seen.</strong> '
            f"What is missing is in no figure here.</p>{items}</div>"
        )
    parts.append(f'<p class="verdict lead">{text(_lead(bare))}</p>')
    parts += [f'<p class="verdict">{text(one)}</p>' for one in _notes(bare)]
    return "".join(parts)


def _lead(bare: Bare) -> str:
    table, tops = bare.table, bare.tops
    walls = (table.ended - table.started)[tops] / 1e9
    failed = [record for _, record in bare.rows.values() if record.failed]
    if tops.size == 1 and bare.rows:
        record = next(
            record for _, record in bare.rows.values() if table.nested.size == 1 or not record.nested
        )
        return f"{lead(record)}."
    stopped = int(cancelled(table, tops).size)
    count = int(np.count_nonzero(table.good[tops] == 0)) - stopped
    p95 = float(np.quantile(walls, 0.95))
    why = ", ".join(f"{clean(what)} {count}" for what, count in _reasons(bare)[:3])
    return f"{said_of(walls.tolist(), count, why or failures(failed), p95, stopped)}."


def _reasons(bare: Bare) -> list[tuple[str, int]]:
    """Why loops and calls failed, and how often, the most frequent first."""
    found: Counter[str] = Counter()
    for one in bare.summaries:
        found.update(one.totals.causes)
    return found.most_common(MOST_REASONS)


def _failures(reasons: Sequence[tuple[str, int]]) -> str:
    grid = Grid("Failures by reason", ["what", "times"], sortable=True)
    grid.rows = [
        [Cell(f"<bdi>{text(what, 80)}</bdi>", heading=True), Cell(str(count), float(count))]
        for what, count in reasons
    ]
    return grid.html("table-failures")


def _notes(bare: Bare) -> Iterator[str]:
    inside = int(np.count_nonzero(bare.table.nested)) if bare.tops.size < bare.table.nested.size else 0
    if inside:
        yield (
            f"{counted(inside, 'more loop')} ran inside tool calls of these: their time is part of those "
            "calls."
        )
    if bare.left_out:
        yield f"These are the newest loops; {counted(bare.left_out, 'older loop')} were not kept."
    if bare.groups_left:
        yield f"{bare.groups_left} more kinds of loops, with fewer loops, are left out of the tables."


def _why(bare: Bare) -> str:
    """The causes of the time of all loops, as a table with what to do about each."""
    table, tops = bare.table, bare.tops
    wall = int((table.ended - table.started)[tops].sum())
    alone = tops.size == 1
    columns = ["what took the time", "time" if alone else "time in all", "share"]
    grid = Grid(
        "The causes of the time, the largest first", [*columns, *([] if alone else ["loops"]), "what to do"]
    )
    for kind, one in sorted(bare.causes.items(), key=lambda pair: -pair[1].ns):
        share = one.ns / wall if wall else 0.0
        generic = one.words if alone else of_several(kind, one.words)
        cells = [
            Cell(
                text(generic),
                heading=True,
                below="" if alone or generic == one.words else text(one.words),
                kind="words",
            ),
            Cell(duration(one.ns / 1e9), one.ns / 1e9),
            Cell(percent(share), share),
        ]
        if not alone:
            cells.append(Cell(f"{one.loops} of {tops.size}", float(one.loops)))
        cells.append(Cell(text(one.remedy if share >= 0.02 else ""), numeric=False, kind="words"))
        grid.rows.append(cells)
    return grid.html("table-why")


def _case_names(bare: Bare, data: dict[str, Any]) -> list[str]:
    """`loop 17 of 940, the slowest: 3.40 s, failed (http_429)`."""
    found = []
    slowest = max((record.wall_ns for _, record in bare.rows.values() if not record.nested), default=0)
    for case in data["waterfalls"]["cases"]:
        place, record = bare.rows[case["row"]]
        label = f"loop {place} of {bare.table.nested.size}"
        if record.name:
            label += f", {clean(record.name, LONGEST)}"
        if record.nested:
            label += ", inside a tool call"
        elif record.wall_ns == slowest:
            label += ", the slowest"
        label += f": {duration(record.wall_ns / 1e9)}"
        if how := ended(record):
            label += f", {how}"
        began = (record.started_ns - int(bare.table.started.min())) / 1e9
        found.append(f"{label} (began at {duration(began, 's')})")
    return found


_NO_DATE = (
    "Records hold no date: times count from the start of the first loop, by the clock of the machine that "
    "ran it. Of records of several machines, or from before and after a restart, only durations mean "
    "anything."
)


def _made_of(bare: Bare) -> str:
    table = bare.table
    tokens = [one.tokens for one in bare.summaries]
    requests, calls = int(table.requests.sum()), int(table.call_tool.size)
    pairs = [
        ("records of", bare.source),
        (
            "loops",
            f"{table.nested.size}, {int(np.count_nonzero(table.nested))} of them inside tool calls of others",
        ),
        ("model requests", f"{requests}, {int(table.attempts.sum())} attempts"),
        ("tool calls", str(calls)),
        ("refused by a quota", str(table.refused.size)),
        ("tokens", _tokens(tokens)),
        (
            "from the first start to the last end",
            duration(int(table.ended.max() - table.started.min()) / 1e9, "s"),
        ),
    ]
    drawn = len(bare.rows)
    which = "all loops"
    if drawn < table.nested.size:
        which = f"{drawn} of {table.nested.size} loops: the slowest, the medians, and some that failed"
    notes = [
        *([_NO_DATE] if bare.run is None else []),
        "Nothing was left out as warm-up, and there are no intervals: nobody decided here how many loops ran "
        "when.",
        f"Drawn: {which}.",
    ]
    used = ", ".join(
        f"{text(one['package'])} {text(one['version'])} ({text(one['licence'])})" for one in libraries()
    )
    return (
        f"{definitions(pairs)}{bullets(map(text, notes), 'notes')}"
        f'<p class="small">Charts: {used}. This page asks the network for nothing.</p>'
    )


def _tokens(found: Sequence[Tokens]) -> str:
    said = f"{sum(one.input for one in found)} in, {sum(one.output for one in found)} out"
    replies, unknown = sum(one.replies for one in found), sum(one.unknown_replies for one in found)
    return f"{said}; those of {unknown} of {replies} replies are not known" if unknown else said


# What the scripts draw from.


def _payload(bare: Bare) -> dict[str, Any]:
    """As that of a load test's page, without what belongs to a load."""
    labels = [one.strategy for one in bare.summaries]
    place = {group: index for index, group in enumerate(bare.groups)}
    cases: list[dict[str, Any]] = []
    loops: dict[str, dict[str, Any]] = {}
    spent = 0
    for row, (_, record) in bare.rows.items():
        for content in (True, False):
            one = {**loop(record, content), "strategy": place.get(Group.of(record), -1)}
            size = len(embedded(one))
            if spent + size <= MOST_BYTES:
                spent += size
                loops[str(row)] = one
                cases.append({"row": row, "loops": [row], "missing": []})
                break
    curves = {}
    if bare.tops.size >= FEWEST_FOR_CURVES:
        curves = distributions(bare, len(labels))
    return {
        "strategies": [
            {
                "name": clean(one.strategy, LONGEST),
                "colour": colour,
                "figures": {"phases": one.phases, "mean_loop_seconds": one.mean_loop_seconds},
            }
            for one, colour in zip(bare.summaries, kinds.colours(bare), strict=True)
        ],
        "phases": palette.PHASES | palette.PARTS | {"failed": palette.STATUSES["error"]},
        "distributions": [
            {
                "name": clean(series, LONGEST),
                "curves": [
                    [float(f"{value:.{DIGITS}g}") for value in found[label]] if label in found else None
                    for label in labels
                ],
            }
            for series, found in curves.items()
        ],
        "shares": list(SHARES),
        "course": {"width": 1.0, "trials": []},
        "levels": [],
        "waterfalls": {"cases": cases, "left": len(bare.rows) - len(cases), "loops": loops},
        "counterfactuals": [],
    }
