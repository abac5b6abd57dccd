"""Output of a load test: a worker's reports of finished loops, and the leader's files.

The leader writes a run directory as the test goes: records as they come, `run.json` after every trial,
`summary.json` after every block. So whatever ends the test, what is there can be read. `progress.jsonl` and
`targets.json` are for onlookers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from profiler.errors import ProfilerError, RecordError
from profiler.process.modes import opener_like
from profiler.providers.endpoint import scrape_host
from profiler.records import NO_MODEL, LoopRecord, decode, encode
from profiler.rundir import (
    PROGRESS,
    Incident,
    Progress,
    Run,
    RunDirectory,
    append_lines,
    appended,
    encode_progress,
)

if TYPE_CHECKING:
    from profiler.load.options import LoadOptions
    from profiler.statistics.summary import Summary

TARGETS = "targets.json"

SETTLED = "settled"
"""A file of this name in the run directory ends the run before the next trial."""

MOST_BYTES = 50_000_000
"""Above this, records are not summed up between blocks, which would take seconds, but only at the end."""

NAME_LIMIT = 60
"""Characters of a tool's name in a reported name: a model may have made it up, at any length."""

_log = logging.getLogger(__name__)


class Reported(NamedTuple):
    """One request event of Locust's. `exception` is a bounded name, None for a success."""

    request_type: str
    name: str
    response_time: float
    exception: str | None


def reported(record: LoopRecord) -> Iterator[Reported]:
    """Locust's request events for a record: types LOOP, ROUND, MODEL and TOOL; times in milliseconds.

    The strategy is part of every name, since Locust knows no other dimension. A call that never got through
    its limiter is reported with the time it waited. Of a loop inside another's call only the rounds, requests
    and calls are reported. A call without a model is one event, CALL, timed from when it was due.
    """
    strategy = record.strategy
    if record.provider == NO_MODEL:
        for call in (call for round_ in record.rounds for call in round_.tool_calls):
            yield Reported("CALL", call.name[:NAME_LIMIT], record.latency_ns / 1e6, record.failure)
        return
    if not record.nested:
        yield Reported("LOOP", strategy, record.latency_ns / 1e6, record.failure)
    for round_ in record.rounds:
        model = round_.model
        if model.asked:
            name = f"{strategy} · round {round_.index + 1}"
            yield Reported("ROUND", name, round_.duration_ns / 1e6, round_.failure)
            yield Reported("MODEL", f"{strategy} · {model.model}", model.duration_ns / 1e6, model.failure)
        for call in round_.tool_calls:
            tool = "unknown tool" if call.error_type == "unknown_tool" else call.name[:NAME_LIMIT]
            milliseconds = (call.ended_ns - call.began_ns) / 1e6
            yield Reported("TOOL", f"{strategy} · {tool}", milliseconds, call.failure)


class Reporter:
    """Takes finished loops on the event loop's thread, hands them on from another.

    The loop's thread only encodes a record and appends it to a deque, which is emptied in batches: an event
    for Locust's statistics for every loop, round, model request and tool call, and the lines of
    `records.jsonl` for the leader.
    """

    def __init__(
        self, events: Callable[[Sequence[Reported]], None], write: Callable[[bytes, int], None]
    ) -> None:
        """`events` gets those of finished loops; `write(lines, count)` whole lines with their newlines."""
        self._events = events
        self._write = write
        self._waiting: deque[tuple[LoopRecord, bytes]] = deque()  # appends and pops are atomic
        self._lines: list[bytes] = []

    def sink(self, record: LoopRecord) -> None:
        """Called on the loop's thread."""
        self._waiting.append((record, encode(record)))

    def report(self) -> None:
        """Hand on the events of what has come since the last time."""
        events: list[Reported] = []
        for _ in range(len(self._waiting)):
            record, line = self._waiting.popleft()
            self._lines.append(line)
            events += reported(record)
        if events:
            self._events(events)

    def flush(self) -> None:
        """Report and hand over everything that has come so far."""
        self.report()
        if self._lines:
            lines, self._lines = self._lines, []
            self._write(b"\n".join(lines) + b"\n", len(lines))


def show_step(options: LoadOptions, step: str) -> None:
    """Tell onlookers what is done now, before the test. A command that looks on has made the directory."""
    if options.run_directory is None:
        return
    # A file that cannot be written is said once there are records.
    with contextlib.suppress(RecordError), _open(Path(options.run_directory) / PROGRESS) as file:
        append_lines(file, encode_progress(Progress(time.time(), "preparing", step=step)))


class RunOutput:
    """The run directory of the test under way. Used from greenlets of one process.

    `error` is set once records cannot be written (a full disk): what was there stays readable, and no more
    records are written. Raises `RecordError` when the files cannot be opened.
    """

    def __init__(self, directory: RunDirectory, run: Run) -> None:
        self.directory = directory
        self.run = run
        self.records = 0
        self.error: RecordError | None = None
        # Unbuffered: a buffer would try again later to write what failed, after other lines.
        self._records = _open(directory.records_path)
        self._progress = _open(directory.path / PROGRESS)

    def write(self, lines: bytes, count: int) -> None:
        """Append `count` records of a worker, or of this process."""
        if self._records.closed or self.error is not None:
            return
        failure = append_lines(self._records, lines)
        if failure is None:
            self.records += count
            return
        kept, error = failure
        self.records += kept
        self.error = RecordError(
            f"{self.directory.records_path}: cannot be written: {error.strerror}; "
            f"the {self.records} loops before that are kept"
        )

    def save(self, **changes: Any) -> None:
        """Change fields of the run, on disk too. Raises `RecordError`."""
        self.run = dataclasses.replace(self.run, **changes)
        self.directory.save(self.run)

    def note(self, incident: Incident) -> None:
        """Log an incident and keep it in the run; on disk too, if that can be written."""
        count = f" ({incident.count})" if incident.count > 1 else ""
        _log.warning("%s%s: %s", incident.kind, count, incident.detail)
        try:
            self.save(incidents=(*self.run.incidents, incident))
        except RecordError as error:
            _log.warning("%s", error)

    @property
    def position(self) -> int:
        """Where in the file the next record will be."""
        return self.directory.records_path.stat().st_size

    def since(self, position: int) -> Iterator[LoopRecord]:
        """The records from there on; none where they are so many that reading them takes seconds."""
        try:
            if self.position - position > MOST_BYTES:
                return
            lines, _ = appended(self.directory.records_path, position)
        except OSError:
            return
        for line in lines:
            with contextlib.suppress(RecordError):  # the report complains about it
                yield decode(line)

    @property
    def settled(self) -> bool:
        """Whether an onlooker has seen enough, and said so."""
        return (self.directory.path / SETTLED).exists()

    def progress(self, progress: Progress) -> None:
        """Append where the test is; once that fails, nothing more is appended."""
        if not self._progress.closed and append_lines(self._progress, encode_progress(progress)) is not None:
            self._progress.close()

    def targets(self, ports: Mapping[str, int], host: str) -> None:
        """Write where workers on this machine serve /metrics, in the form of Prometheus' file_sd.

        Without labels: the metrics carry the test's id, and a target that Prometheus' configuration names too
        would be scraped as a second one.
        """
        targets = [f"{scrape_host(host)}:{port}" for port in sorted(set(ports.values()))]
        path = self.directory.path / TARGETS
        data = orjson.dumps([{"targets": targets}], option=orjson.OPT_INDENT_2)
        try:
            with open(path, "wb", opener=opener_like(path.parent)) as file:
                file.write(data)
        except OSError as error:
            raise RecordError(f"{path}: cannot be written: {error.strerror}") from error

    def summarise(self, at_the_end: bool = False) -> Summary | None:
        """Summarise what there is, on disk too; None when that takes too long, or cannot be done."""
        from profiler.statistics.summary import summarise_table, with_loads
        from profiler.statistics.table import tabulate

        if not at_the_end and self.directory.records_path.stat().st_size > MOST_BYTES:
            return None
        try:
            table = tabulate(self.directory.records())
            summary = summarise_table(self.run, table)
            summary = with_loads(summary, self.run, table, self.directory.records())
            self.directory.save_summary(summary)
        except ProfilerError as error:
            _log.warning("cannot sum up: %s", error)
            return None
        return summary

    def close(self) -> None:
        """Close the files, after the last record has come."""
        self._records.close()
        self._progress.close()
        what = "calls" if self.run.provider == NO_MODEL else "loops"
        _log.info("%d %s recorded in %s", self.records, what, self.directory.path)


def _open(path: Path) -> FileIO:
    try:
        return FileIO(path, "ab", opener=opener_like(path.parent))
    except OSError as error:
        raise RecordError(f"{path}: cannot be written: {error.strerror}") from error
