"""What the process that leads a load test writes: the run directory, as the test goes.

Records as they come, `run.json` after every trial, `summary.json` after every block: whatever
ends the test, what is there can be read. `progress.jsonl` and `targets.json` are for onlookers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from profiler.errors import ProfilerError, RecordError
from profiler.providers.endpoint import scrape_host
from profiler.rundir import PROGRESS, Incident, Progress, Run, RunDirectory, encode_progress

if TYPE_CHECKING:
    from profiler.statistics.summary import Summary

TARGETS = "targets.json"

SETTLED = "settled"
"""A file of this name in the run directory ends the run at the next trial."""

MOST_BYTES = 50_000_000
"""Records above this are not summed up between blocks: it would take seconds. The end does it once."""

_log = logging.getLogger(__name__)


class RunOutput:
    """The run directory of the test under way. All from greenlets of one process.

    `error` is set once records cannot be written (a full disk): what was there stays readable, and
    nothing more is written. Raises `RecordError` when the files cannot be opened.
    """

    def __init__(self, directory: RunDirectory, run: Run) -> None:
        self.directory = directory
        self.run = run
        self.records = 0
        self.dropped = 0
        self.error: RecordError | None = None
        # Unbuffered: what a failed write left in a buffer would be tried again at some later time.
        self._records = _open(directory.records_path)
        self._progress = _open(directory.path / PROGRESS)

    def write(self, lines: bytes, count: int) -> None:
        """Records of a worker, or of this process."""
        if self._records.closed:
            return
        if self.error is not None:
            self.dropped += count
            return
        failure = _append(self._records, lines)
        if failure is None:
            self.records += count
            return
        kept, error = failure
        self.records += kept
        self.dropped += count - kept
        self.error = RecordError(
            f"{self.directory.records_path}: cannot be written: {error.strerror}; "
            f"the {self.records} loops before that are kept"
        )

    def save(self, **changes: Any) -> None:
        """Change the run, on disk too. Raises `RecordError`."""
        self.run = dataclasses.replace(self.run, **changes)
        self.directory.save(self.run)

    def note(self, incident: Incident) -> None:
        """Keep what happened with the run, as far as it can be written."""
        _log.warning("%s: %s", incident.kind, incident.detail)
        try:
            self.save(incidents=(*self.run.incidents, incident))
        except RecordError as error:
            _log.warning("%s", error)

    @property
    def settled(self) -> bool:
        """Whether an onlooker has seen enough, and said so."""
        return (self.directory.path / SETTLED).exists()

    def progress(self, progress: Progress) -> None:
        """Where the test is; nobody is told any more once that cannot be written."""
        if not self._progress.closed and _append(self._progress, encode_progress(progress)) is not None:
            self._progress.close()

    def targets(self, ports: Mapping[str, int], host: str) -> None:
        """Where workers on this machine serve /metrics, as Prometheus' file_sd reads it.

        Without labels: the metrics carry the test's id, and a target that the configuration names
        already must not be scraped as another one.
        """
        targets = [f"{scrape_host(host)}:{port}" for port in sorted(set(ports.values()))]
        path = self.directory.path / TARGETS
        data = orjson.dumps([{"targets": targets}], option=orjson.OPT_INDENT_2)
        try:
            path.write_bytes(data)
        except OSError as error:
            raise RecordError(f"{path}: cannot be written: {error.strerror}") from error

    def summarise(self, at_the_end: bool = False) -> Summary | None:
        """Sum up what there is, on disk too; None when that takes too long, or cannot be done."""
        from profiler.statistics.summary import summarise_table
        from profiler.statistics.table import tabulate

        if not at_the_end and self.directory.records_path.stat().st_size > MOST_BYTES:
            return None
        try:
            summary = summarise_table(self.run, tabulate(self.directory.records()))
            self.directory.save_summary(summary)
        except ProfilerError as error:
            _log.warning("cannot sum up: %s", error)
            return None
        return summary

    def close(self) -> None:
        """After the last record has come."""
        self._records.close()
        self._progress.close()
        _log.info("%d loops recorded in %s", self.records, self.directory.path)


def _open(path: Path) -> FileIO:
    try:
        return FileIO(path, "ab")
    except OSError as error:
        raise RecordError(f"{path}: cannot be written: {error.strerror}") from error


def _append(file: FileIO, lines: bytes) -> tuple[int, OSError] | None:
    """None when all of them are written, else how many are, and why the rest is not.

    A torn line in the middle would make what comes after it unreadable.
    """
    before, written = os.fstat(file.fileno()).st_size, 0
    try:
        while written < len(lines):
            written += file.write(lines[written:])
    except OSError as error:
        whole = lines.rfind(b"\n", 0, written) + 1
        with contextlib.suppress(OSError):
            file.truncate(before + whole)
        return lines.count(b"\n", 0, whole), error
    return None
