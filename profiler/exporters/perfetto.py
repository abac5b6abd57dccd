"""A run as a trace for ui.perfetto.dev: the Chrome trace event format, in JSON.

The trace holds the loops that were selected (`profiler.exporters.perfetto_events` says how they
are drawn). Its counters, in a group `run`, are those of the whole run: a slow loop is seen among
all the calls it competed with. Where no loop is shown they stand still.
"""

from __future__ import annotations

import gzip
import heapq
import itertools
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from profiler import records as records_file
from profiler.anatomy import Interval, union
from profiler.errors import RecordError, UsageError
from profiler.exporters.perfetto_events import Event, events, named
from profiler.records import LoopRecord
from profiler.rundir import RunDirectory

MAX_EVENTS = 250_000
"""What a trace holds when nobody said how many loops: some 20 MB unzipped, opened within seconds."""

MAX_COUNTER_POINTS = 50_000
"""Per counter. Beyond it points of time are merged, and a counter shows the last value of each."""


@dataclass(frozen=True, slots=True)
class Trace:
    """What `write_trace` wrote: `shown` loops `of` so many, as so many `events`, chosen as `selection` says.

    Counters are exact to `counter_step_us` microseconds.
    """

    shown: int
    of: int
    events: int
    selection: str
    counter_step_us: int

    @property
    def left_out(self) -> int:
        """Loops of the run that are not in the trace."""
        return self.of - self.shown


def write_trace(
    source: RunDirectory | Path | str | Iterable[LoopRecord],
    path: Path | str,
    loops: int | None = None,
    slowest: int | None = None,
) -> Trace:
    """Write the trace of a run (directory, records file or records) to `path`; zipped if it ends in `.gz`.

    `loops` takes the first so many loops to start, `slowest` those that took longest; together,
    both kinds. With neither, the first loops up to `MAX_EVENTS` events. A file is read twice, record
    by record (loops to show, then counters); memory holds the selected loops only.

    Raises `UsageError` for a number below 1, `RecordError` when there is nothing to read or `path`
    cannot be written.
    """
    for name, value in (("loops", loops), ("slowest", slowest)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, not {value}")
    if not isinstance(source, RunDirectory | str | Path):
        source = tuple(source)
    selection = _Selection(loops, slowest)
    for record in _records(source):
        selection.add(record)
    shown = selection.loops()
    if not shown:
        raise RecordError("no loops to trace: the run has no records")
    origin_ns, total = shown[0].started_ns, selection.total
    windows = union((record.started_ns, record.ended_ns) for record in shown) or [(origin_ns, origin_ns)]
    counters = _counters(_records(source), windows)
    step_us = max(counter.step for counter in counters.values())
    written = 0
    try:
        with open(path, "wb") as file:
            # No time and no name in the header: the same run gives the same file.
            zipped = str(path).endswith(".gz")
            output: Any = gzip.GzipFile("", "wb", 6, file, mtime=0) if zipped else file
            for written, event in enumerate(
                itertools.chain(run_events(counters, origin_ns, len(shown), total), events(shown, origin_ns)),
                start=1,
            ):
                output.write((b'{"traceEvents":[\n' if written == 1 else b",\n") + orjson.dumps(event))
            trace = Trace(len(shown), total, written, selection.text(), step_us)
            output.write(b'\n],"displayTimeUnit":"ms","otherData":' + orjson.dumps(trace) + b"}\n")
            if zipped:
                output.close()
    except OSError as error:
        raise RecordError(f"{path}: cannot be written: {error.strerror}") from error
    return trace


def _records(source: RunDirectory | Path | str | Iterable[LoopRecord]) -> Iterable[LoopRecord]:
    if isinstance(source, RunDirectory):
        return source.records()
    if isinstance(source, str | Path):
        return records_file.read(source) if Path(source).is_file() else RunDirectory.open(source).records()
    return source


class _Counter:
    """A step function inside windows of time (disjoint, sorted), kept as its changes.

    What changes outside them is put at the start of the next window: values inside are exact, and
    memory does not grow with the run. Where there are too many changes all the same, they are
    merged onto a coarser grid of time.
    """

    def __init__(self, windows: Sequence[Interval]) -> None:
        self.step = 1  # microseconds
        self._starts = [start for start, _ in windows]
        self._ends = [end for _, end in windows]
        self._changes: dict[int, int] = {}

    def add(self, start_ns: int, end_ns: int) -> None:
        """Count one more from start to end."""
        self._change(start_ns, 1)
        self._change(end_ns, -1)
        while len(self._changes) > MAX_COUNTER_POINTS:
            merged: dict[int, int] = {}
            for at, change in self._changes.items():
                merged[at // 2] = merged.get(at // 2, 0) + change
            self._changes = merged
            self.step *= 2

    def _change(self, at_ns: int, by: int) -> None:
        window = bisect_left(self._ends, at_ns)
        if window < len(self._ends):
            at = max(at_ns, self._starts[window]) // (self.step * 1000)
            self._changes[at] = self._changes.get(at, 0) + by

    def points(self) -> Iterator[tuple[int, int]]:
        """(nanoseconds, value): the value at the first window's start, then every change."""
        start, grid = self._starts[0], self.step * 1000
        value = sum(change for at, change in self._changes.items() if at * grid <= start)
        yield start, value
        for at in sorted(at for at in self._changes if at * grid > start):
            if self._changes[at]:
                value += self._changes[at]
                yield at * grid, value


class _Selection:
    """The loops to show."""

    def __init__(self, loops: int | None, slowest: int | None) -> None:
        self.total = 0
        self._loops, self._slowest = loops, slowest
        # The latest start, or the fastest loop, on top: the next to go. A sequence number breaks ties.
        self._first: list[tuple[int, int, int, LoopRecord]] = []
        self._slow: list[tuple[int, int, LoopRecord]] = []
        self._events = 0

    def add(self, record: LoopRecord) -> None:
        self.total += 1
        if self._slowest is not None:
            heapq.heappush(self._slow, (record.ended_ns - record.started_ns, -self.total, record))
            if len(self._slow) > self._slowest:
                heapq.heappop(self._slow)
            if self._loops is None:
                return
        cost = _cost(record)
        heapq.heappush(self._first, (-record.started_ns, -self.total, cost, record))
        self._events += cost
        while (self._events > MAX_EVENTS if self._loops is None else len(self._first) > self._loops) and len(
            self._first
        ) > 1:
            self._events -= heapq.heappop(self._first)[2]

    def loops(self) -> list[LoopRecord]:
        """The selected loops by start, each once."""
        chosen = {-number: record for _, number, _, record in self._first}
        chosen |= {-number: record for _, number, record in self._slow}
        return [chosen[n] for n in sorted(chosen, key=lambda n: (chosen[n].started_ns, n))]

    def text(self) -> str:
        if len(self.loops()) == self.total:
            return "all"
        if self._slowest is None:
            return "the first to start"
        if self._loops is None:
            return "the slowest"
        return f"the first {len(self._first)} to start and the slowest {len(self._slow)}"


def _cost(record: LoopRecord) -> int:
    """About how many events a loop becomes."""
    return 1 + sum(9 + 5 * len(r.model.attempts) + 3 * len(r.tool_calls) for r in record.rounds)


def _counters(records: Iterable[LoopRecord], windows: Sequence[Interval]) -> dict[tuple[str, str], _Counter]:
    """Calls and loops of all records; keys are names as the trace processor joins them, "calls queued"."""
    running, queued, loops = _Counter(windows), _Counter(windows), _Counter(windows)
    for record in records:
        loops.add(record.started_ns, record.ended_ns)
        for call in record.tool_calls:
            queued.add(call.queued_ns, call.ended_ns if call.started_ns is None else call.started_ns)
            if call.started_ns is not None:
                running.add(call.started_ns, call.ended_ns)
    return {("calls", "in flight"): running, ("calls", "queued"): queued, ("loops", "in flight"): loops}


def run_events(
    counters: dict[tuple[str, str], _Counter], origin_ns: int, shown: int, total: int
) -> Iterator[Event]:
    """The group `run`: how many loops, calls in flight and calls queued there were."""
    label = "run" if shown == total else f"run ({shown} of {total} loops shown, counters of all)"
    yield from named(1, "process_name", label, 0)
    for (name, key), counter in counters.items():
        for at, value in counter.points():
            yield {"ph": "C", "name": name, "pid": 1, "ts": (at - origin_ns) // 1000, "args": {key: value}}
