"""The report: one HTML file that needs no network.

`write_report` makes it from a run directory; `gather` and `render` are its two halves, for callers that
need the summary as well: it is part of the material, from the same read of the records.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from profiler.errors import RecordError, UsageError
from profiler.limits.known import KnownQuota
from profiler.records import NO_MODEL
from profiler.report.advice import next_steps
from profiler.report.html import checked, comparison, conditions, direct, recorded, servers
from profiler.report.html.charts import MOST_STRATEGIES, payload
from profiler.report.html.data import Material, gather
from profiler.report.html.markup import name, text
from profiler.report.html.page import Section, libraries, page, write_page
from profiler.report.html.records import Written, write_records
from profiler.report.text import clean, counted
from profiler.rundir import RunDirectory
from profiler.statistics.recorded import recorded_figures

__all__ = ["Material", "Written", "gather", "render", "write_any", "write_report"]

REPORT = "report.html"

SCRIPT = "script"
"""The argument in `run.json` that names the script of `profiler run`."""


def write_report(directory: RunDirectory, out: Path | None = None, material: Material | None = None) -> Path:
    """Write the report of a run directory, by default into it; returns where it is.

    `material` is what `gather(directory)` returned, when that has been done already. Raises
    `RecordError`, `UsageError`.
    """
    path = directory.path / REPORT if out is None else out
    found = render(gather(directory) if material is None else material)
    return write_page(path, found, directory.records_path)


def write_any(path: Path, out: Path | None = None, quota: KnownQuota | None = None) -> Written:
    """Write the page of whatever `path` is: a run directory, a file of records, or a directory of such files.

    That of a run in which nothing was measured, as `profiler run` leaves one, or of a recorded one, is of its
    records. What recorded loops used is held against a `quota`. Raises `RecordError`, `UsageError`.
    """
    if RunDirectory.is_one(path):
        directory = RunDirectory.open(path)
        run = directory.load()
        if run.recording is not None:
            out = path / REPORT if out is None else out
            if not directory.records_path.stat().st_size:
                none = recorded_figures((), run.recording, quota)
                write_page(out, recorded.render_empty(run, none), directory.records_path)
                return Written(out, run.scenario, none, run)
            return write_records(directory.records_path, out, run.scenario, run, quota)
        if quota is not None:
            raise UsageError(
                f"--quota is for recorded runs: {path} is none (profiler tune has one of its own)"
            )
        # A load test that ended in its first trial has incidents to show; `run` has had no first loop.
        led = run.trials or run.loop_seconds is not None
        if led or not directory.records_path.stat().st_size:
            return Written(write_report(directory, out))
        title = str(run.arguments.get(SCRIPT) or run.arguments.get("agent") or run.scenario)
        return write_records(directory.records_path, path / REPORT if out is None else out, title)
    if not path.exists():
        raise RecordError(f"{path}: not a run directory, and no file of records")
    return write_records(path, out, quota=quota)


def render(material: Material) -> str:
    """The page of a run."""
    data = payload(material)
    summary, run = material.summary, material.run
    if run.provider == NO_MODEL:
        return _of_calls(material, data)
    shown = summary.strategies[:MOST_STRATEGIES]
    steps = next_steps(summary, run, material.counterfactuals)
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
        *(
            [("servers", servers.TITLE, servers.ABOUT, mcp_servers)]
            if (mcp_servers := servers.section(summary.servers, run.mcp_servers, strategies=True))
            else []
        ),
        *(
            [("checked", checked.TITLE, checked.ABOUT, checked.section(material.checked))]
            if material.checked is not None
            else []
        ),
        (
            "conditions",
            "The client and the conditions",
            "",
            conditions.conditions(material, libraries(), len(data["waterfalls"]["loops"])),
        ),
    ]
    left = len(summary.strategies) - len(shown)
    more = f'<p class="small">{left} more strategies are left out of this page.</p>' if left else ""
    parts = [Section(*section) for section in sections]
    return page(_title(material), name(run.scenario), _facts(material), parts, data, more)


def _of_calls(material: Material, data: dict[str, Any]) -> str:
    """The page of a load without a model."""
    summary, run = material.summary, material.run
    data = direct.data_of_calls(data)
    mcp_servers = servers.section(summary.servers, run.mcp_servers)
    sections = direct.sections(material, data, libraries(), mcp_servers, servers.ABOUT)
    calls = sum(load.calls for load in summary.loads)
    blocks = len({trial.block for trial in run.trials})
    facts = (f"{run.load.model} load", counted(blocks, "block"), f"{calls:,} calls".replace(",", " "))
    return page(
        clean(run.scenario, 40),
        name(run.scenario),
        " · ".join(f"<span>{one}</span>" for one in facts),
        [Section(*section) for section in sections],
        data,
        switches=False,
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
