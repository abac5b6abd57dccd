"""The report: one HTML file that needs no network.

`write_report` makes it from a run directory; `gather` and `render` are its two halves, for callers that
need the summary as well: it is part of the material, from the same read of the records.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from profiler.errors import RecordError
from profiler.report.html.data import Material, gather
from profiler.report.html.page import render
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
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RecordError(f"{path}: cannot be written: {error.strerror}") from error
    return path
