"""`profiler import`."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from profiler.commands import add_command, show

if TYPE_CHECKING:
    from profiler.commands import Commands
    from profiler.recordings.importing import Imported
    from profiler.rundir import Run
    from profiler.statistics.recorded import RecordedFigures

FORMATS = ("otel", "tracelab", "claude-code", "codex", "langfuse", "openai-agents")
"""The names of `profiler.recordings.importing.FORMATS`, which is imported when it is used."""


def add(commands: Commands) -> None:
    parser = add_command(
        commands,
        "import",
        "make a run directory of what other programs recorded: traces, sessions, exports",
        import_,
        "traces.jsonl",
        "~/.claude/projects ~/.codex/sessions --out runs",
        "export.json.gz --from langfuse",
    )
    parser.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="FILE|DIR",
        help="files of any of the formats, also packed (.gz, .zst); directories with all that is in them",
    )
    parser.add_argument(
        "--from",
        dest="format",
        choices=FORMATS,
        metavar="FORMAT",
        help="read every file as this, whatever it looks like (default: told by what is in it): "
        + ", ".join(FORMATS),
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="where the run directory is made (default: runs)",
    )
    parser.add_argument(
        "--content",
        action="store_true",
        help="keep arguments, results and prompts too; the run directory is then yours alone",
    )


def import_(arguments: argparse.Namespace) -> int:
    from profiler.recordings.importing import import_files
    from profiler.rundir import RunDirectory
    from profiler.statistics.recorded import recorded_figures

    imported = import_files(
        arguments.paths, arguments.out, format=arguments.format, content=arguments.content
    )
    show(told(imported))
    show("\n")
    directory = RunDirectory.open(imported.directory)
    run = directory.load()
    show_verdict(run.scenario, recorded_figures(directory.records(), run.recording), run, tally=False)
    return 0


def show_verdict(
    title: str, figures: RecordedFigures, run: Run | None, tally: bool = True, own: int = 0
) -> None:
    """Print what a recording says (`render_recorded`)."""
    from profiler.report.recorded import render_recorded
    from profiler.report.text import use_color

    width = min(shutil.get_terminal_size().columns, 100)
    color = use_color(sys.stdout, os.environ)
    show(render_recorded(title, figures, run, width, color, tally, own))


def told(imported: Imported) -> str:
    """The result of an import, as it is printed."""
    from profiler.report.text import clean, counted

    recording = imported.recording
    read = ", ".join(f"{count:,} of {name}" for name, count in recording.read.items())
    lines = [
        ("run", str(imported.directory)),
        ("read", f"{read}, in {counted(imported.files, 'file')}; {imported.kept:,} kept"),
    ]
    for reason, count in recording.skipped.items():
        place = imported.places.get(reason)
        where = "" if not place else f" (first: {clean(place, 200)})"
        what = reason.removeprefix("files: ")
        unit = f"{counted(count, 'file')}: " if what != reason else f"{count:,} × "
        lines.append(("skipped", f"{unit}{what}{where}"))
    inner = f" ({imported.inner_loops:,} inside others' calls)" if imported.inner_loops else ""
    lines += [
        ("loops", f"{imported.loops:,}{inner}, {imported.rounds:,} rounds, {imported.calls:,} tool calls"),
        ("durations", _durations(imported)),
        ("times", f"to {_tick(recording.resolution_ns)}, of {counted(recording.clocks, 'clock')}"),
    ]
    if recording.clamped:
        lines.append(("", f"{recording.clamped:,} times ended before they began, and last 0"))
    lines += [("note", note) for note in recording.notes]
    lines.append(("next", f"profiler report {imported.directory}"))
    told = []
    before = ""
    for label, text in lines:
        told.append(f"{'' if label == before else label:<11}{text}\n")
        before = label or before
    return "".join(told)


def _durations(imported: Imported) -> str:
    recording = imported.recording
    parts = {
        "exact": recording.exact,
        "derived": recording.derived,
        "upper bound" if recording.upper_bounds == 1 else "upper bounds": recording.upper_bounds,
        "never ended": recording.never_ended,
        "never started": recording.never_started,
    }
    return ", ".join(f"{count:,} {words}" for words, count in parts.items() if count) or "none"


def _tick(resolution_ns: int) -> str:
    for unit_ns, unit in ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "µs")):
        if resolution_ns >= unit_ns:
            return f"{resolution_ns / unit_ns:g} {unit}"
    return f"{resolution_ns} ns"
