"""What the process that leads a load test writes: the run directory, as the test goes.

Records as they come, `run.json` after every trial, `summary.json` after every block: whatever
ends the test, what is there can be read. `progress.jsonl` and `targets.json` are for onlookers.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson

from profiler.errors import ProfilerError
from profiler.hosts import scrape_host
from profiler.progress import PROGRESS, Progress, encode
from profiler.rundir import Incident, Run, RunDirectory

if TYPE_CHECKING:
    from profiler.statistics.summary import Summary

TARGETS = "targets.json"

SETTLED = "settled"
"""A file of this name in the run directory ends the run at the next trial."""

MOST_BYTES = 50_000_000
"""Records above this are not summed up between blocks: it would take seconds. The end does it once."""

_log = logging.getLogger(__name__)


class Ledger:
    """The run directory of the test under way. All from greenlets of one process."""

    def __init__(self, directory: RunDirectory, run: Run) -> None:
        self.directory = directory
        self.run = run
        self.records = 0
        self._records = open(directory.records_path, "ab")  # noqa: SIM115 (closed by close)
        self._progress = open(directory.path / PROGRESS, "ab")  # noqa: SIM115 (closed by close)

    def write(self, lines: bytes, count: int) -> None:
        """Records of a worker, or of this process."""
        if not self._records.closed:
            self._records.write(lines)
            self._records.flush()
            self.records += count

    def save(self, **changes: Any) -> None:
        """Change the run, on disk too."""
        self.run = dataclasses.replace(self.run, **changes)
        self.directory.save(self.run)

    def note(self, incident: Incident) -> None:
        """Keep what happened with the run."""
        _log.warning("%s: %s", incident.kind, incident.detail)
        self.save(incidents=(*self.run.incidents, incident))

    @property
    def settled(self) -> bool:
        """Whether an onlooker has seen enough, and said so."""
        return (self.directory.path / SETTLED).exists()

    def progress(self, progress: Progress) -> None:
        """Where the test is."""
        if not self._progress.closed:
            self._progress.write(encode(progress))
            self._progress.flush()

    def targets(self, ports: Mapping[str, int], host: str) -> None:
        """Where workers on this machine serve /metrics, as Prometheus' file_sd reads it."""
        targets = [f"{scrape_host(host)}:{port}" for port in sorted(set(ports.values()))]
        labels = {"testid": self.directory.path.name}
        path = self.directory.path / TARGETS
        path.write_bytes(orjson.dumps([{"targets": targets, "labels": labels}], option=orjson.OPT_INDENT_2))

    def summarise(self, at_the_end: bool = False) -> Summary | None:
        """Sum up what there is, on disk too; None when that takes too long, or cannot be done."""
        from profiler.statistics.summary import summarise_directory

        if not at_the_end and self.directory.records_path.stat().st_size > MOST_BYTES:
            return None
        try:
            summary = summarise_directory(self.directory)
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
