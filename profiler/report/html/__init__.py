"""The report: one HTML file that needs no network.

`write_report` makes it from a run directory; `gather` and `render` are its two halves, for callers that
need the summary as well: it is part of the material, from the same read of the records.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
from pathlib import Path
from typing import Any

from profiler.errors import RecordError
from profiler.process.modes import opener_like
from profiler.report.advice import next_steps
from profiler.report.html import comparison, conditions
from profiler.report.html.charts import MOST_STRATEGIES, payload
from profiler.report.html.data import Material, gather
from profiler.report.html.markup import embedded, name, swatch, text
from profiler.report.text import clean, counted
from profiler.rundir import RunDirectory

__all__ = ["Material", "gather", "render", "write_report"]

REPORT = "report.html"


def write_report(directory: RunDirectory, out: Path | None = None, material: Material | None = None) -> Path:
    """Write the report of a run directory, by default into it; returns where it is.

    `material` is what `gather(directory)` returned, when that has been done already. Raises
    `RecordError`, `UsageError`.
    """
    path = directory.path / REPORT if out is None else out
    page = render(gather(directory) if material is None else material)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8", opener=opener_like(directory.records_path)) as file:
            file.write(page)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RecordError(f"{path}: cannot be written: {error.strerror}") from error
    return path


# The page put together: one file, with its styles, scripts and data inside.


ASSETS = Path(__file__).with_name("assets")
SCRIPTS = ("format.js", "frame.js", "charts.js", "course.js", "waterfalls.js", "page.js")

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
"""The browser's own guarantee that the page loads nothing from outside."""


def render(material: Material) -> str:
    """The page of a run."""
    data = payload(material)
    summary, run = material.summary, material.run
    shown = summary.strategies[:MOST_STRATEGIES]
    steps = next_steps(summary, run, material.counterfactuals)
    libraries = json.loads(_asset("vendor/vendor.json"))  # in the order in which they are loaded
    sections = [
        ("verdict", "Verdict", "", comparison.verdict(summary, steps)),
        (
            "strategies",
            "Strategies side by side",
            "Good loops finished with every call answered. Dots are figures, bars their 95 % intervals; "
            "where there is no bar there were too few loops for one.",
            comparison.side_by_side(shown),
        ),
        (
            "phases",
            "Where the time goes",
            "Mean seconds of a completed loop. Each instant belongs to one phase: model before running tools "
            "before queued calls before the rest.",
            comparison.phases(shown),
        ),
        (
            "distributions",
            "Distributions",
            "The share that took at most this long, on a logarithmic axis. Further left is faster. "
            "Loops that came to no answer are in none of them.",
            comparison.distributions(data["distributions"], shown),
        ),
        (
            "course",
            "Over time",
            "The strategies took turns, block by block, so that what drifts hits all of them.",
            conditions.course(data["course"], shown),
        ),
    ]
    if summary.levels:
        sections.append(
            (
                "levels",
                "Load levels",
                "Dots are measured, with 95 % intervals; lines are the fitted law, where there is one.",
                conditions.levels(summary),
            )
        )
    sections += [
        (
            "loops",
            "Loops",
            "One loop of each strategy at the same work.",
            conditions.loops(data["waterfalls"], shown),
        ),
        (
            "tools",
            "Tools",
            "Queue is the wait for the strategy to start a call. Critical path is the share of the "
            "longest calls of all rounds that was this tool's.",
            conditions.tools(material, data["counterfactuals"], shown),
        ),
        (
            "conditions",
            "The client and the conditions",
            "",
            conditions.conditions(material, libraries, len(data["waterfalls"]["loops"])),
        ),
    ]
    body = "".join(_section(*section) for section in sections)
    vendored = [f"vendor/{library['file']}" for library in libraries]
    links = "".join(f'<li><a href="#{key}">{text(title)}</a></li>' for key, title, _, _ in sections)
    left = len(summary.strategies) - len(shown)
    more = f'<p class="small">{left} more strategies are left out of this page.</p>' if left else ""
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{text(_title(material))}</title><style>{_asset('report.css')}</style></head><body>"
        '<a class="skip" href="#verdict">To the verdict</a>'
        f"<header><div><p class=brand>toolcall-profiler</p><h1>{name(run.scenario)}</h1>"
        f'<p class="facts">{_facts(material)}</p></div>'
        '<button type="button" id="theme" aria-label="Switch between light and dark">'
        '<span aria-hidden="true">◐</span></button></header>'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>'
        '<div class="toggles" role="group" aria-label="Strategies shown in the charts" id="toggles">'
        f"{_toggles(data['strategies'])}</div>"
        f"<main>{more}{body}</main>"
        f'<script type="application/json" id="data">{embedded(data)}</script>'
        + "".join(f"<script>{_asset(file)}</script>" for file in (*vendored, *SCRIPTS))
        + "</body></html>\n"
    )


def _asset(file: str) -> str:
    return (ASSETS / file).read_text("utf-8")


def _section(key: str, title: str, about: str, content: str) -> str:
    heading = f'<h2 id="h-{key}">{text(title)}</h2>'
    note = f'<p class="about">{text(about)}</p>' if about else ""
    return f'<section id="{key}" aria-labelledby="h-{key}">{heading}{note}{content}</section>'


def _toggles(strategies: list[dict[str, Any]]) -> str:
    return "".join(
        f'<button type="button" aria-pressed="true" data-index="{index}">{swatch(one["colour"])}'
        f"<bdi>{html.escape(one['name'])}</bdi></button>"
        for index, one in enumerate(strategies)
    )


def _title(material: Material) -> str:
    strategies = ", ".join(clean(s.strategy, 40) for s in material.summary.strategies[:4])
    return f"{clean(material.run.scenario, 40)}: {strategies}"


def _facts(material: Material) -> str:
    run, summary = material.run, material.summary
    agents = summary.strategies[0].users if summary.strategies else run.load.users
    loops = sum(strategy.loops.due for strategy in summary.strategies)
    blocks = max((strategy.blocks for strategy in summary.strategies), default=0)
    parts = [
        text(run.provider, 40),
        *([name(run.model)] if run.model else []),
        f"{run.load.model} load, {counted(agents, 'agent')}",
        counted(blocks, "block"),
        f"{loops:,} loops".replace(",", " "),
    ]
    return " · ".join(f"<span>{part}</span>" for part in parts)
