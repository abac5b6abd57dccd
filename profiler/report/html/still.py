"""Loops as a piece of HTML without scripts or style sheets: what a notebook shows, in its own colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from profiler import palette
from profiler.records import LoopRecord
from profiler.report.html.markup import LONGEST, text
from profiler.report.html.waterfalls import UNTIMED, loop
from profiler.report.look import MOST_DRAWN, in_a_line, lead, several
from profiler.report.text import counted, duration, percent
from profiler.report.timeline import causes
from profiler.report.unseen import Unseen

MOST_TOLD = 50
"""Loops that get a line each, behind a heading that opens."""

_FELT = 0.002
"""Spans that take a smaller share of the loop than this cannot be seen, and are not in the legend."""
_FAILED = "repeating-linear-gradient(45deg, #CE0E0A 0 3px, #f7b5b3 3px 5px)"
_WORDS = {"server_tools": "server tools", "queue": "queued", "tools": "ran", **UNTIMED}
_ORDER = ("model", "server_tools", "backoff", "queue", "tools", *UNTIMED, "failed")


def still(records: Sequence[LoopRecord], watched: Sequence[str] = (), left_out: int = 0) -> str:
    """The slowest loops drawn, the others told in a line each; what was watched, and what was not seen."""
    ordered = sorted(records, key=lambda record: record.started_ns)
    top = [record for record in ordered if not record.nested] or ordered
    drawn = {record.id for record in sorted(top, key=lambda record: -record.wall_ns)[:MOST_DRAWN]}
    parts = [f"<div>⚠ {text(one)}</div>" for one in Unseen.of(ordered).sentences()]
    if len(ordered) > 1 or left_out:
        parts.append(f'<div style="font-weight:600;margin:.3em 0">{text(several(ordered, left_out))}</div>')
    told = []
    for number, record in enumerate(ordered, start=1):
        if record.id in drawn:
            parts.append(_loop(record, f"loop {number}: " if len(ordered) > 1 else ""))
        else:
            told.append(f"<div>loop {number}: {text(in_a_line(record, ordered[0]))}</div>")
    if told:
        left = len(told) - MOST_TOLD
        more = f"<div>and {counted(left, 'more loop')}</div>" if left > 0 else ""
        parts.append(
            f"<details><summary>{counted(len(told), 'other loop')}</summary>"
            f"{''.join(told[:MOST_TOLD])}{more}</details>"
        )
    parts += [f'<div style="opacity:.75">{text(one, 2_000)}</div>' for one in watched]
    return (
        '<div style="font:13px/1.5 system-ui,sans-serif;max-width:60em;text-align:left">'
        f"{''.join(parts)}</div>"
    )


def _loop(record: LoopRecord, number: str) -> str:
    """One loop: why it took so long, its rows, and a legend."""
    data = loop(record, content=False)
    wall = record.wall_ns
    why = "".join(
        f"<div>{duration(cause.ns / 1e9)} ({percent(cause.ns / wall)}) {text(cause.words)}"
        f"{f'; <b>{text(cause.remedy)}</b>' if cause.remedy and cause.ns >= 0.1 * wall else ''}</div>"
        for cause in causes(record)[:3]
        if wall and cause.ns >= 0.01 * wall
    )
    kinds = {
        span["kind"]
        for row in data["rows"]
        for span in row["spans"]
        if span["to"] - span["from"] > _FELT * data["wall"]
    }
    legend = "".join(
        f'<span style="margin-right:1em;white-space:nowrap">{_box(kind)} {_WORDS.get(kind, kind)}</span>'
        for kind in _ORDER
        if kind in kinds
    )
    more = f"<div>{data['more']} more rows are not drawn</div>" if data["more"] else ""
    rows = "".join(_row(row, data["wall"]) for row in data["rows"])
    return (
        f'<div style="margin:.5em 0 1em"><div style="font-size:1.15em;font-weight:600">'
        f"{number}{text(lead(record))}</div>{why}"
        f'<div style="margin:.5em 0">{rows}{more}</div><div style="opacity:.8">{legend}</div></div>'
    )


def _row(row: dict[str, Any], wall: float) -> str:
    wall = wall or 1e-9
    bars = "".join(
        f'<span style="position:absolute;top:2px;bottom:2px;left:{100 * span["from"] / wall:.3f}%;'
        f'width:{max(0.2, 100 * (span["to"] - span["from"]) / wall):.3f}%;{_fill(span["kind"])}"></span>'
        for span in row["spans"]
    )
    indent = "1em" if row["kind"] == "call" else "0"
    took = "" if row["took"] is None else row.get("bound", "") + duration(row["took"])
    if row["status"] != "ok":
        took = f"{row['status']} {took}".rstrip()
    return (
        '<div style="display:flex;align-items:center;height:17px">'
        f'<span style="flex:0 0 28%;overflow:hidden;white-space:nowrap;text-overflow:ellipsis;'
        f'padding-left:{indent};box-sizing:border-box"><bdi>{text(row["label"], LONGEST)}</bdi></span>'
        f'<span style="position:relative;flex:1;height:17px;overflow:hidden">{bars}</span>'
        f'<span style="flex:0 0 7em;text-align:right;white-space:nowrap">{text(took)}</span></div>'
    )


def _fill(kind: str) -> str:
    if kind == "failed":
        return f"background:{_FAILED}"
    faint = ";opacity:.45" if kind in ("queue", "never_ended") else ""
    return f"background:{(palette.PHASES | palette.PARTS).get(kind, palette.SEQUENTIAL)}{faint}"


def _box(kind: str) -> str:
    return f'<span style="display:inline-block;width:.7em;height:.7em;{_fill(kind)}"></span>'
