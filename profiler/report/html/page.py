"""The frame of a page: one file with its styles, scripts and data inside. It asks the network for nothing."""

from __future__ import annotations

import contextlib
import html
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from profiler.errors import RecordError
from profiler.process.modes import for_owner, opener_like
from profiler.report.html.markup import embedded, swatch, text

ASSETS = Path(__file__).with_name("assets")
SCRIPTS = ("format.js", "frame.js", "charts.js", "course.js", "waterfalls.js", "page.js")

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
"""The browser's own guarantee that the page loads nothing from outside."""


class Section(NamedTuple):
    """A part of a page: its anchor, its title, a sentence about it, its HTML. The first is the `verdict`."""

    key: str
    title: str
    about: str
    content: str


def page(
    title: str,
    heading: str,
    facts: str,
    sections: Sequence[Section],
    data: Any,
    more: str = "",
    switches: bool = True,
) -> str:
    """The whole page. `title` is text; `heading`, `facts` and `more`, above the sections, are HTML.

    `data` is what the scripts draw from; with `switches` each of its `strategies` can be switched off.
    """
    vendored = [f"vendor/{library['file']}" for library in libraries()]
    links = "".join(f'<li><a href="#{one.key}">{text(one.title)}</a></li>' for one in sections)
    body = "".join(map(_section, sections))
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{text(title)}</title><style>{_asset('report.css')}</style></head><body>"
        '<a class="skip" href="#verdict">To the verdict</a>'
        f"<header><div><p class=brand>toolcall-profiler</p><h1>{heading}</h1>"
        f'<p class="facts">{facts}</p></div>'
        '<button type="button" id="theme" aria-label="Switch between light and dark">'
        '<span aria-hidden="true">◐</span></button></header>'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>'
        f"{_toggles(data['strategies']) if switches else ''}<main>{more}{body}</main>"
        f'<script type="application/json" id="data">{embedded(data)}</script>'
        + "".join(f"<script>{_asset(file)}</script>" for file in (*vendored, *SCRIPTS))
        + "</body></html>\n"
    )


def libraries() -> list[dict[str, str]]:
    """What draws the charts, in the order in which it is loaded."""
    found: list[dict[str, str]] = json.loads(_asset("vendor/vendor.json"))
    return found


def write_page(path: Path, page: str, source: Path | None = None, private: bool = False) -> Path:
    """Write a page in one step; returns its path. Raises `RecordError`.

    It is its owner's alone where `private`, or where the records in `source` are.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    opener = for_owner if private else None if source is None else opener_like(source)
    try:
        with open(temporary, "w", encoding="utf-8", opener=opener) as file:
            file.write(page)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RecordError(f"{path}: cannot be written: {error.strerror}") from error
    return path


def _asset(file: str) -> str:
    return (ASSETS / file).read_text("utf-8")


def _section(one: Section) -> str:
    heading = f'<h2 id="h-{one.key}">{text(one.title)}</h2>'
    note = f'<p class="about">{text(one.about)}</p>' if one.about else ""
    return f'<section id="{one.key}" aria-labelledby="h-{one.key}">{heading}{note}{one.content}</section>'


def _toggles(strategies: list[dict[str, Any]]) -> str:
    buttons = "".join(
        f'<button type="button" aria-pressed="true" data-index="{index}">{swatch(one["colour"])}'
        f"<bdi>{html.escape(one['name'])}</bdi></button>"
        for index, one in enumerate(strategies)
    )
    return (
        '<div class="toggles" role="group" aria-label="Strategies shown in the charts" id="toggles">'
        f"{buttons}</div>"
    )
