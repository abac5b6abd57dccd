"""The page of a load without a model: the same verdict and figures as on the terminal, in words of calls."""

from __future__ import annotations

import re
from typing import Any

from profiler.report.direct import (
    COLUMNS,
    NAME,
    failed,
    headline,
    in_calls,
    load_said,
    ours,
    rows,
    server_of,
    what_to_do,
)
from profiler.report.html import comparison, conditions
from profiler.report.html.data import Material
from profiler.report.html.markup import Cell, Grid, bullets, name, text

SERIES = {"loops": "calls, from when they were due"}
"""Distributions that are shown, beside those of tools."""


def data_of_calls(data: dict[str, Any]) -> dict[str, Any]:
    """The data of the page without what a loop of one call has none of."""
    shown = [
        one
        for one in data["distributions"]
        if one["name"] in SERIES or (one["name"].startswith("tool ") and one["name"] != "tool phases")
    ]
    return {
        **data,
        "strategies": [{**one, "name": NAME} for one in data["strategies"]],
        "distributions": [{**one, "name": SERIES.get(one["name"], one["name"])} for one in shown],
    }


def sections(
    material: Material, data: dict[str, Any], libraries: list[dict[str, str]], servers: str, about: str
) -> list[tuple[str, str, str, str]]:
    """Key, title, a sentence and the HTML of each section."""
    shown = material.summary.strategies[:1]
    found = [
        ("verdict", "Verdict", "", _verdict(material)),
        (
            "calls",
            "Calls",
            "Of every call from when it was due, the first and the last ones too; in brackets are 95 % "
            "intervals, where there were blocks enough.",
            _calls(material),
        ),
        (
            "distributions",
            "Distributions",
            "The share that took at most this long, on a logarithmic axis. Further left is faster.",
            comparison.distributions(data["distributions"], shown),
        ),
        ("course", "Over time", "", conditions.course(data["course"], shown)),
    ]
    if servers:
        found.append(("servers", "MCP servers", about, servers))
    drawn = len(data["waterfalls"]["loops"])
    found.append(
        (
            "conditions",
            "The client and the conditions",
            "",
            conditions.conditions(material, libraries, drawn),
        )
    )
    return [(key, title, said, _in_words(content)) for key, title, said, content in found]


def _verdict(material: Material) -> str:
    summary, run = material.summary, material.run
    parts = [
        f'<div class="notice invalid" role="note"><p>{text(said)}</p></div>'
        for said in (*(one.sentence for one in summary.warnings if one.invalid), *ours(summary.loads))
    ]
    first, *others = headline(summary.loads, server_of(run))
    parts.append(f'<p class="verdict lead">{text(first)}</p>')
    parts += [f'<p class="verdict">{text(one)}</p>' for one in others]
    notes = [text(one, 900) for one in what_to_do(summary.loads, run)]
    notes += [text(one.sentence, 900) for one in summary.outcomes if one.kind in ("gate", "objective")]
    if not summary.finished:
        notes.append("The run was cut short; what had finished is here.")
    return "".join(parts) + (bullets(notes, "notes") if notes else "")


def _calls(material: Material) -> str:
    grid = Grid("Each tool under each load", ["load", *COLUMNS])
    notes = []
    for load in material.summary.loads:
        for tool, *cells in rows(load):
            head = Cell(text(load_said(load)), heading=True)
            grid.rows.append([head, Cell(name(tool), numeric=False), *(Cell(text(one)) for one in cells)])
        notes += [text(one) for one in failed(load.tools)]
    return grid.html("table-calls") + (bullets(notes, "notes") if notes else "")


def _in_words(content: str) -> str:
    """The text between the tags with calls where a page of loops says loops."""
    return re.sub(r">[^<]+<", lambda found: in_calls(found[0]), content)
