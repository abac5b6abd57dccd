"""HTML from texts: texts from outside are cleaned, escaped, and kept from reordering their neighbours."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from profiler import palette
from profiler.report.text import clean, duration

LONGEST = 40
"""Characters of a strategy's or tool's name."""


def text(value: str, longest: int = 400) -> str:
    """A text on one line, without control characters, escaped."""
    return html.escape(clean(value, longest))


def embedded(data: Any) -> str:
    """JSON for a script element, without what might end it: `<`, `>`, `&` and JavaScript's line ends."""
    found = orjson.dumps(data).decode()
    for character in "<>&\u2028\u2029":
        found = found.replace(character, f"\\u{ord(character):04x}")
    return found


def name(value: str) -> str:
    """A name from outside, isolated: if it is written from right to left, nothing around it is."""
    return f"<bdi>{text(value, LONGEST)}</bdi>"


def swatch(colour: str) -> str:
    """A dot in a strategy's or phase's colour."""
    return f'<span class="swatch" style="--c:{html.escape(colour)}" aria-hidden="true"></span>'


def strategy(spec: str) -> str:
    """A strategy's name behind a dot in its colour."""
    return swatch(palette.strategy_colour(spec)) + name(spec)


def bullets(items: Iterable[str], kind: str = "") -> str:
    """A list of HTML items."""
    found = "".join(f"<li>{item}</li>" for item in items)
    return f'<ul class="{kind}">{found}</ul>' if kind else f"<ul>{found}</ul>"


def command_line(line: str) -> str:
    """A command with a button that copies it."""
    return (
        f'<div class="command"><code>{html.escape(line)}</code>'
        '<button type="button" class="copy" data-copies="command">Copy</button></div>'
    )


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: its HTML, what it is sorted by (None: its text), and a second, smaller line.

    `heading` is for the first cell of a row; `kind` is a class of the style sheet.
    """

    content: str
    sort: float | None = None
    below: str = ""
    heading: bool = False
    numeric: bool = True
    kind: str = ""


@dataclass(slots=True)
class Grid:
    """A table: `caption` names it, `columns` are the headings; each is aligned like the cells below it."""

    caption: str
    columns: Sequence[str]
    rows: list[list[Cell]] = field(default_factory=list)
    sortable: bool = False

    def html(self, identity: str) -> str:
        """The table, in a frame that scrolls sideways and can be reached by keyboard."""
        heads = []
        first_row = self.rows[0] if self.rows else [Cell("")] * len(self.columns)
        for title, cell in zip(self.columns, first_row, strict=True):
            label = f'<button type="button">{text(title)}</button>' if self.sortable else text(title)
            numeric = cell.numeric and not cell.heading
            heads.append(f'<th scope="col"{" class=n" if numeric else ""}>{label}</th>')
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in self.rows)
        tools = '<button type="button" class="copy" data-copies="table">Copy table</button>'
        return (
            f'<div class="table" id="{identity}"><div class="scroll" tabindex="0" role="region" '
            f'aria-label="{text(self.caption)}">'
            f"<table{' data-sortable' if self.sortable else ''}><caption>{text(self.caption)}</caption>"
            f"<thead><tr>{''.join(heads)}</tr></thead><tbody>{body}</tbody></table></div>{tools}</div>"
        )


def seconds(value: float | None) -> Cell:
    """A cell with a duration."""
    return Cell(duration(value), value)


def _cell(cell: Cell) -> str:
    sort = "" if cell.sort is None else f' data-sort="{cell.sort!r}"'
    classes = " ".join(filter(None, ("n" if cell.numeric and not cell.heading else "", cell.kind)))
    shown = f' class="{classes}"' if classes else ""
    below = f'<span class="below">{cell.below}</span>' if cell.below else ""
    if cell.heading:
        return f'<th scope="row"{sort}{shown}>{cell.content}{below}</th>'
    return f"<td{sort}{shown}>{cell.content}{below}</td>"


def behind(grid: Grid, identity: str, title: str = "The figures as a table") -> str:
    """A table that opens below its chart."""
    return f'<details class="behind"><summary>{text(title)}</summary>{grid.html(identity)}</details>'


def chart(identity: str, label: str, height: int) -> str:
    """The place of a chart, `height` pixels high as the chart will be."""
    return (
        f'<div class="chart" id="{identity}" role="img" aria-label="{text(label)}" '
        f'style="min-height:{height}px"></div>'
    )


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of terms; both sides are text."""
    items = "".join(f"<div><dt>{text(term)}</dt><dd>{text(value)}</dd></div>" for term, value in pairs)
    return f"<dl>{items}</dl>"
