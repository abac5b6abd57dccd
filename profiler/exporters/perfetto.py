"""A run as a trace for ui.perfetto.dev: the Chrome trace event format, in JSON.

The trace holds the loops that were selected (`profiler.exporters.perfetto` says how they
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
from profiler.anatomy import Interval, loop_phases, model_queue_ns, tool_phase, union
from profiler.errors import RecordError, UsageError
from profiler.records import LoopRecord, ModelCall, RoundRecord, ToolCall
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
            heapq.heappush(self._slow, (record.wall_ns, -self.total, record))
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
            queued.add(call.queued_ns, call.waited_until_ns)
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


# Loop records as Chrome trace events, one group of tracks per agent.
#
# Every agent is a group ("process" in that format). On its track `loops` lie loop > round > model
# request > attempt > connect, send, wait, receive; then parse, the tool phase (partitioned into
# `tools` and `queue`) and collect. The calls lie on lanes of their own, as many as ran or waited
# at once, so that slices of one track nest and never overlap otherwise; an arrow leads from each
# round to its calls.

MAX_TEXT = 500
"""Characters of recorded content (prompts, arguments, results) that a slice shows."""

Event = dict[str, Any]


class _Lanes:
    """Tracks for things that may overlap: each goes to the first lane that is free."""

    def __init__(self) -> None:
        self._ends: list[int] = []

    def take(self, start: int, end: int) -> int:
        """The lane, counted from 0, of what runs from start to end. Ask in the order of the starts."""
        for lane, free in enumerate(self._ends):
            if free <= start:
                self._ends[lane] = end
                return lane
        self._ends.append(end)
        return len(self._ends) - 1


def events(loops: Sequence[LoopRecord], origin_ns: int) -> Iterator[Event]:
    """The events of loops (ordered by start), group by group; times are microseconds since `origin_ns`.

    A parent comes before its children: readers that order events by time keep equal ones as they came.
    """
    agents: dict[tuple[str, str], list[LoopRecord]] = {}
    for loop in loops:
        agents.setdefault((loop.process, loop.agent), []).append(loop)
    several = len({process for process, _ in agents}) > 1
    # The trace processor takes thread ids to be unique in the whole trace: one sequence numbers all.
    ids = itertools.count(2)
    flows = itertools.count(1)
    for (process, agent), own in agents.items():
        pid = next(ids)
        label = f"agent {agent}" if agent else "loops without an agent"
        yield from named(pid, "process_name", f"{label} of {process}" if several and process else label, pid)
        writer = _Writer(pid, origin_ns)
        calls: list[tuple[ToolCall, str]] = []
        lanes = _Lanes()
        tracks: list[int] = []
        for loop in own:
            lane = lanes.take(loop.started_ns, loop.ended_ns)
            if lane == len(tracks):
                tracks.append(next(ids))
                yield from _track(pid, tracks, "loops")
            yield from writer.loop(loop, tracks[lane], calls, flows)
        calls.sort(key=lambda item: item[0].queued_ns)
        lanes = _Lanes()
        tracks = []
        for call, flow in calls:
            lane = lanes.take(call.queued_ns, call.ended_ns)
            if lane == len(tracks):
                tracks.append(next(ids))
                yield from _track(pid, tracks, "calls")
            yield from writer.call(call, tracks[lane], flow)


class _Writer:
    """Events of one agent."""

    def __init__(self, pid: int, origin_ns: int) -> None:
        self.pid = pid
        self.origin_ns = origin_ns

    def slice(self, tid: int, name: str, category: str, start: int, end: int, **args: object) -> Event:
        # Whole microseconds, rounded down at both ends: what nests in nanoseconds still does.
        ts = (start - self.origin_ns) // 1000
        event = {
            "ph": "X",
            "name": name,
            "cat": category,
            "pid": self.pid,
            "tid": tid,
            "ts": ts,
            "dur": (end - self.origin_ns) // 1000 - ts,
        }
        shown = {key: value for key, value in args.items() if value is not None}
        if shown:
            event["args"] = shown
        return event

    def instant(self, tid: int, name: str, at: int) -> Event:
        ts = (at - self.origin_ns) // 1000
        return {"ph": "i", "s": "t", "name": name, "cat": "model", "pid": self.pid, "tid": tid, "ts": ts}

    def loop(
        self, loop: LoopRecord, tid: int, calls: list[tuple[ToolCall, str]], flows: Iterator[int]
    ) -> Iterator[Event]:
        """A loop and all its rounds; puts their calls, each with the id of its arrow, into `calls`."""
        name = loop.name or "loop"
        yield self.slice(
            tid,
            name if loop.number is None else f"{name} {loop.number}",
            "loop",
            loop.started_ns,
            loop.ended_ns,
            id=loop.id,
            strategy=loop.strategy,
            model=f"{loop.provider} {loop.model}",
            status=loop.status,
            error_type=loop.error_type,
            trial=loop.trial,
            parent=loop.parent,
            late_ms=None if loop.intended_ns is None else _ms(loop.started_ns - loop.due_ns),
            lag_ms=_ms(loop.lag_ns) if loop.lag_ns else None,
            **{f"{phase}_ms": _ms(spent) for phase, spent in loop_phases(loop).items() if spent},
            prompt=_short(loop.prompt),
            text=_short(loop.text),
        )
        for round_ in loop.rounds:
            start, end = _inside(round_.started_ns, round_.ended_ns, (loop.started_ns, loop.ended_ns))
            event = self.slice(
                tid,
                f"round {round_.index}",
                "round",
                start,
                end,
                status=round_.status,
                shortfall=round_.shortfall,
            )
            if round_.tool_calls:
                flow = f"0x{next(flows):x}"
                event |= {"bind_id": flow, "flow_out": True}
                calls.extend((call, flow) for call in round_.tool_calls)
            yield event
            yield from self._model(round_.model, tid, (start, end))
            yield from self._tool_phase(round_, tid, (start, end))

    def _model(self, model: ModelCall, tid: int, parent: Interval) -> Iterator[Event]:
        span = _inside(model.started_ns, model.ended_ns, parent)
        yield self.slice(
            tid,
            f"chat {model.model}",
            "model",
            *span,
            status=model.status,
            error_type=model.error_type,
            finish_reason=model.finish_reason,
            request_id=model.request_id,
            input_tokens=model.input_tokens,
            output_tokens=model.output_tokens,
            attempts=len(model.attempts),
        )
        free = span[0]
        if held_ns := model_queue_ns(model):
            free = _inside(free, free + held_ns, span)[1]
            yield self.slice(tid, "queue", "queue", span[0], free)
        before = None
        for number, attempt in enumerate(model.attempts, start=1):
            start, end = _inside(attempt.started_ns, attempt.ended_ns, (free, span[1]))
            if before is not None and start > free:
                yield self.slice(
                    tid,
                    "backoff",
                    "backoff",
                    free,
                    start,
                    after=before.status or before.error_type,
                )
            yield self.slice(
                tid,
                f"attempt {number}",
                "attempt",
                start,
                end,
                status=attempt.status,
                error_type=attempt.error_type,
                request_id=attempt.request_id,
                retry_after_ms=None if attempt.retry_after_ns is None else _ms(attempt.retry_after_ns),
            )
            reached = start
            received = None if attempt.first_byte_ns is None else attempt.ended_ns
            for name, at in (
                ("connect", attempt.connected_ns),
                ("send", attempt.sent_ns),
                ("wait", attempt.first_byte_ns),
                ("receive", received),
            ):
                if at is not None:
                    piece = _inside(reached, at, (reached, end))
                    yield self.slice(tid, name, "attempt", *piece)
                    reached = piece[1]
            before, free = attempt, end
        for name, at in (
            ("first token", model.first_token_ns),
            ("first tool call", model.first_tool_call_ns),
        ):
            if at is not None:
                yield self.instant(tid, name, _inside(at, at, span)[0])

    def _tool_phase(self, round_: RoundRecord, tid: int, parent: Interval) -> Iterator[Event]:
        if round_.tools_started_ns is None or round_.tools_ended_ns is None:
            return
        free = _inside(round_.model.ended_ns, round_.model.ended_ns, parent)[0]
        start, end = span = _inside(round_.tools_started_ns, round_.tools_ended_ns, (free, parent[1]))
        yield self.slice(tid, "parse", "phase", free, start)
        figures = tool_phase(round_)
        yield self.slice(
            tid,
            "tool phase",
            "phase",
            start,
            end,
            calls=len(round_.tool_calls),
            work_ms=None if figures is None else _ms(figures.work_ns),
            critical_path_ms=None if figures is None else _ms(figures.critical_path_ns),
            peak_concurrency=None if figures is None else figures.peak_concurrency,
        )
        running = [(c.started_ns, c.ended_ns) for c in round_.tool_calls if c.started_ns is not None]
        waiting = [(c.queued_ns, c.waited_until_ns) for c in round_.tool_calls]
        at = start
        busy = [_inside(*interval, span) for interval in union(running)]
        for low, high in [*busy, (end, end)]:
            for queue in union(_inside(*interval, (at, low)) for interval in waiting):
                yield self.slice(tid, "queue", "phase", *queue)
            if high > low:
                yield self.slice(tid, "tools", "phase", low, high)
            at = max(at, high)
        yield self.slice(tid, "collect", "phase", end, parent[1])

    def call(self, call: ToolCall, tid: int, flow: str) -> Iterator[Event]:
        """One call from its queueing to its end: its wait, then its execution."""
        start, end = call.queued_ns, max(call.queued_ns, call.ended_ns)
        event = self.slice(
            tid,
            call.name,
            "call",
            start,
            end,
            id=call.id,
            status=call.status,
            error_type=call.error_type,
            thread_wait_ms=_ms(call.thread_wait_ns) if call.thread_wait_ns else None,
            blocking_ms=_ms(call.blocking_ns) if call.blocking_ns else None,
            arguments=_short(call.arguments),
            result=_short(call.result),
        )
        yield event | {"bind_id": flow, "flow_in": True}
        started, _ = _inside(call.waited_until_ns, end, (start, end))
        if started > start:
            yield self.slice(tid, "queued", "call", start, started)
        if call.started_ns is not None:
            yield self.slice(tid, "running", "call", started, end)


def named(pid: int, kind: str, name: str, order: int) -> Iterator[Event]:
    """Name and place of a group."""
    yield {"ph": "M", "name": kind, "pid": pid, "args": {"name": name}}
    yield {"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": order}}


def _track(pid: int, tracks: Sequence[int], name: str) -> Iterator[Event]:
    """The name and place of the newest of an agent's tracks of one kind."""
    number, tid = len(tracks), tracks[-1]
    label = name if number == 1 else f"{name} {number}"
    order = number if name == "loops" else 1000 + number
    yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": label}}
    yield {"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": order}}


def _inside(start: int, end: int, parent: Interval) -> Interval:
    """The part of an interval inside another; empty, at an edge, where there is none."""
    low, high = parent
    start = min(max(start, low), high)
    return start, min(max(end, start), high)


def _ms(nanoseconds: int) -> float:
    return round(nanoseconds / 1e6, 3)


def _short(text: str | None) -> str | None:
    return text if text is None or len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"
