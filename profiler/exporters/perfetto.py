"""A run as a trace for ui.perfetto.dev: the Chrome trace event format, in JSON.

The trace holds the selected loops. Every agent is a group of tracks ("process" in that format). On its
track `loops` lie loop > round > model request > attempt > connect, send, wait, receive; then parse, the
tool phase (divided into `tools` and `queue`) and collect. The calls lie on tracks of their own, as many
as ran or waited at once, so that slices of one track nest and never overlap otherwise; an arrow leads
from each round to its calls, and from a call to the loops that began in it.

Every MCP server is a group too. There the requests of its calls lie, each from being sent to its answer,
with the server's own part where it says how long it took. How many it has at once is a counter of the run.

The counters, in a group `run`, are those of the whole run, so that a slow loop is seen among all the
calls it competed with. They stand still where no loop is shown.

Of a recording's loops every slice says which of its times were derived, and which are unknown. A call of
which only an upper bound is known is called `≤ name`, and one whose end was not seen says so in its name: it
is drawn to the end of its loop, and counts nowhere as running. What lies between the calls of a round is left
blank.
"""

from __future__ import annotations

import gzip
import heapq
import itertools
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from profiler import records as records_file
from profiler.anatomy import (
    Interval,
    loop_phases,
    model_queue_ns,
    remote_parts,
    runs,
    tool_phase,
    union,
    waits,
)
from profiler.errors import RecordError, UsageError
from profiler.process.modes import Opener, opener_like
from profiler.records import NO_MODEL, LoopRecord, ModelCall, RoundRecord, ToolCall
from profiler.rundir import Recording, RunDirectory

MAX_EVENTS = 250_000
"""Events of a trace for which no number of loops is given: some 20 MB unzipped, opened within seconds."""

MAX_COUNTER_POINTS = 50_000
"""Per counter. Beyond it points in time are merged, and a counter shows the last value of each."""

MAX_TEXT = 500
"""Characters of recorded content (prompts, arguments, results) that a slice shows."""

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace that was written: `shown` loops `of` so many, as so many `events`.

    `selection` says which loops; counters are exact to `counter_step_us` microseconds. `notes` are what to
    know of a recording's times, in sentences.
    """

    shown: int
    of: int
    events: int
    selection: str
    counter_step_us: int
    notes: tuple[str, ...] = ()


def write_trace(
    source: RunDirectory | Path | str | Iterable[LoopRecord],
    path: Path | str,
    loops: int | None = None,
    slowest: int | None = None,
) -> Trace:
    """Write the trace of a run (directory, records file or records) to `path`; zipped if it ends in `.gz`.

    `loops` selects so many loops that started first, `slowest` so many that took longest; together,
    both. With neither, the first loops up to `MAX_EVENTS` events. A file is read record by record, and those
    that ran beside the selected loops once more, for the counters; memory holds the selected loops, and a
    few numbers of each other.

    Raises `UsageError` for a number below 1, `RecordError` when there is nothing to read or `path`
    cannot be written.
    """
    for name, value in (("loops", loops), ("slowest", slowest)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, not {value}")
    every = _Records(source)
    selection = _Selection(loops, slowest)
    for record in every:
        selection.add(record)
    shown = selection.loops()
    if not shown:
        raise RecordError("no loops to trace: the run has no records")
    origin_ns, total = shown[0].started_ns, selection.total
    windows = union((record.started_ns, record.ended_ns) for record in shown) or [(origin_ns, origin_ns)]
    counters = _counters(every.beside(windows), every.servers, windows)
    step_us = max(counter.step for counter in counters.values())
    notes = tuple(_notes(shown, _recording(source)))
    written = 0
    try:
        with open(path, "wb", opener=_opener(source)) as file:
            # No time and no name in the header: the same run gives the same file.
            zipped = str(path).endswith(".gz")
            output: Any = gzip.GzipFile("", "wb", 6, file, mtime=0) if zipped else file
            for written, event in enumerate(
                itertools.chain(
                    run_events(counters, origin_ns, len(shown), total, notes), events(shown, origin_ns)
                ),
                start=1,
            ):
                output.write((b'{"traceEvents":[\n' if written == 1 else b",\n") + orjson.dumps(event))
            trace = Trace(len(shown), total, written, selection.text(), step_us, notes)
            output.write(b'\n],"displayTimeUnit":"ms","otherData":' + orjson.dumps(trace) + b"}\n")
            if zipped:
                output.close()
    except OSError as error:
        raise RecordError(f"{path}: cannot be written: {error.strerror}") from error
    return trace


def _recording(source: RunDirectory | Path | str | Iterable[LoopRecord]) -> Recording | None:
    """The recording that the records came from; None where the run does not tell."""
    if isinstance(source, str | Path) and RunDirectory.is_one(Path(source)):
        source = RunDirectory(Path(source))
    if isinstance(source, RunDirectory):
        with suppress(RecordError):
            return source.load().recording
    return None


def _notes(loops: Sequence[LoopRecord], recording: Recording | None) -> Iterator[str]:
    sources = sorted({loop.source for loop in loops if loop.source})
    if not sources:
        return
    yield f"made from a recording ({', '.join(sources)}): waits before calls are not in it"
    untimed = {call.untimed for loop in loops for call in loop.tool_calls}
    if "upper_bound" in untimed:
        yield "calls named ≤ took at most as long as they are drawn: when they started is not known"
    if "never_ended" in untimed:
        yield "calls without an end are drawn to the end of their loop"
    if recording is not None and recording.clocks > 1:
        yield f"the times are of {recording.clocks} clocks, which may differ"


def _opener(source: RunDirectory | Path | str | Iterable[LoopRecord]) -> Opener | None:
    """A trace is as private as the records that it is made of."""
    if isinstance(source, RunDirectory):
        return opener_like(source.path)
    return opener_like(Path(source)) if isinstance(source, str | Path) else None


class _Records:
    """The records of a source, to be read once, and then those again that ran in some windows of time.

    Of each record are kept where its line begins, and from when to when anything of it was under way;
    `servers` are the MCP servers of all.
    """

    def __init__(self, source: RunDirectory | Path | str | Iterable[LoopRecord]) -> None:
        self.servers: set[str] = set()
        self._records: tuple[LoopRecord, ...] = ()
        self._files: list[tuple[Path, array[int], array[int], array[int]]] = []
        if isinstance(source, RunDirectory):
            paths = [source.records_path]
        elif not isinstance(source, str | Path):
            self._records = tuple(source)
            return
        elif RunDirectory.is_one(Path(source)):
            paths = [RunDirectory.open(source).records_path]
        else:
            paths = records_file.files_of(Path(source))
        self._files = [(path, array("q"), array("q"), array("q")) for path in paths]

    def __iter__(self) -> Iterator[LoopRecord]:
        for record in self._records:
            self._note(record)
            yield record
        for path, lines, starts, ends in self._files:
            for record in records_file.read(path, lines):
                start, end = self._note(record)
                starts.append(start)
                ends.append(end)
                yield record

    def _note(self, record: LoopRecord) -> Interval:
        start, end = record.started_ns, record.ended_ns
        for call in record.tool_calls:
            start, end = min(start, call.queued_ns, call.began_ns), max(end, call.ended_ns)
            if call.remote is not None and _sent(call) is not None:
                self.servers.add(call.server)
        return start, end

    def beside(self, windows: Sequence[Interval]) -> Iterator[LoopRecord]:
        """Those of which anything was under way in one of the windows (disjoint, sorted)."""
        yield from self._records
        begins = [start for start, _ in windows]
        for path, lines, starts, ends in self._files:
            places = (
                line
                for line, start, end in zip(lines, starts, ends, strict=True)
                if (window := bisect_right(begins, end)) and windows[window - 1][1] >= start
            )
            yield from records_file.read_at(path, places)


class _Counter:
    """A step function inside windows of time (disjoint, sorted), stored as its changes.

    Changes outside the windows are put at the start of the next one: values inside are exact, and memory
    does not grow with the run. If there are too many changes even so, they are merged onto a coarser
    grid of time.
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
        # Heaps with the loop to drop next on top: the latest start, the fastest. Numbers break ties.
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
        while len(self._first) > 1 and self._too_many():
            self._events -= heapq.heappop(self._first)[2]

    def _too_many(self) -> bool:
        return self._events > MAX_EVENTS if self._loops is None else len(self._first) > self._loops

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
    """Roughly how many events a loop becomes."""
    return 1 + sum(
        9
        + 5 * len(r.model.attempts)
        + len(r.model.server_tools)
        + 3 * len(r.tool_calls)
        + 8 * sum(call.remote is not None for call in r.tool_calls)
        for r in record.rounds
    )


def _counters(
    records: Iterable[LoopRecord], names: Iterable[str], windows: Sequence[Interval]
) -> dict[tuple[str, str], _Counter]:
    """The counters of all records. The trace processor joins a key to a name such as "calls queued"."""
    running, queued, loops = _Counter(windows), _Counter(windows), _Counter(windows)
    servers = {name: _Counter(windows) for name in names}
    for record in records:
        loops.add(record.started_ns, record.ended_ns)
        for call in record.tool_calls:
            if call.waited_ns is not None:
                queued.add(call.queued_ns, call.waited_until_ns)
            if call.started_ns is not None and call.ended:
                running.add(call.started_ns, call.ended_ns)
            if (sent := _sent(call)) is not None:
                servers[call.server].add(*sent)
    found = {("calls", "in flight"): running, ("calls", "queued"): queued, ("loops", "in flight"): loops}
    return found | {(f"requests at {name}", "in flight"): servers[name] for name in sorted(servers)}


def run_events(
    counters: dict[tuple[str, str], _Counter],
    origin_ns: int,
    shown: int,
    total: int,
    notes: Sequence[str] = (),
) -> Iterator[Event]:
    """The group `run`, with its counters, and `notes` in its name."""
    label = "run" if shown == total else f"run ({shown} of {total} loops shown, counters of all)"
    label = "; ".join((label, *notes))
    yield from named(1, "process_name", label, 0)
    for (name, key), counter in counters.items():
        for at, value in counter.points():
            yield {"ph": "C", "name": name, "pid": 1, "ts": (at - origin_ns) // 1000, "args": {key: value}}


class _Tracks:
    """The tracks of one kind of an agent, for things that may overlap."""

    def __init__(self, pid: int, name: str, ids: Iterator[int]) -> None:
        self._pid, self._name, self._ids = pid, name, ids
        self._tids: list[int] = []
        self._ends: list[int] = []

    def take(self, start: int, end: int) -> tuple[int, list[Event]]:
        """The id of the first track that is free from start to end, and the events that name a new one.

        Ask in the order of the starts.
        """
        for lane, free in enumerate(self._ends):
            if free <= start:
                self._ends[lane] = end
                return self._tids[lane], []
        self._ends.append(end)
        self._tids.append(tid := next(self._ids))
        number = len(self._tids)
        label = self._name if number == 1 else f"{self._name} {number}"
        order = number if self._name == "loops" else 1000 + number
        track = {"ph": "M", "pid": self._pid, "tid": tid}
        return tid, [
            track | {"name": "thread_name", "args": {"name": label}},
            track | {"name": "thread_sort_index", "args": {"sort_index": order}},
        ]


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
    arrows = _arrows(loops, flows)
    for (process, agent), own in agents.items():
        pid = next(ids)
        label = f"agent {agent}" if agent else "loops without an agent"
        yield from named(pid, "process_name", f"{label} of {process}" if several and process else label, pid)
        writer = _Writer(pid, origin_ns, arrows)
        calls: list[tuple[ToolCall, str]] = []
        tracks, beside = _Tracks(pid, "loops", ids), _Tracks(pid, "rounds beside others", ids)
        for loop in own:
            tid, named_track = tracks.take(loop.started_ns, loop.ended_ns)
            yield from named_track
            yield from writer.loop(loop, tid, beside, calls, flows)
        tracks = _Tracks(pid, "calls", ids)
        for call, flow in sorted(calls, key=lambda item: item[0].queued_ns):
            tid, named_track = tracks.take(call.queued_ns, call.ended_ns)
            yield from named_track
            yield from writer.call(call, tid, flow)
        tracks = _Tracks(pid, "server tools", ids)
        models = [round_.model for loop in own for round_ in loop.rounds]
        for start, end, name in sorted(timed for model in models for timed in _server_tools(model)):
            tid, named_track = tracks.take(start, end)
            yield from named_track
            yield writer.slice(tid, name, "server tool", (start, end))
    yield from _servers(loops, origin_ns, ids)


def _servers(loops: Sequence[LoopRecord], origin_ns: int, ids: Iterator[int]) -> Iterator[Event]:
    """The requests of each MCP server, on as many tracks as it had of them at once."""
    sent: dict[str, list[tuple[Interval, ToolCall]]] = {}
    for loop in loops:
        for call in loop.tool_calls:
            if (span := _sent(call)) is not None:
                sent.setdefault(call.server, []).append((span, call))
    for server in sorted(sent):
        pid = next(ids)
        yield from named(pid, "process_name", f"MCP server {server}", pid)
        writer, tracks = _Writer(pid, origin_ns, {}), _Tracks(pid, "requests", ids)
        for span, call in sorted(sent[server], key=lambda item: item[0]):
            tid, named_track = tracks.take(*span)
            yield from named_track
            yield from writer.request(call, span, tid)


def _sent(call: ToolCall) -> Interval | None:
    """When the request of a call was at its MCP server; None if it never was."""
    remote = call.remote
    if remote is None or remote.posted_ns is None or call.started_ns is None or not call.ended:
        return None
    ended_ns = call.ended_ns if remote.answered_ns is None else remote.answered_ns
    return _inside(remote.posted_ns, ended_ns, (call.started_ns, max(call.started_ns, call.ended_ns)))


def _arrows(loops: Sequence[LoopRecord], flows: Iterator[int]) -> dict[str, str]:
    """The id of the arrow that leads to a loop, from the call that it began in, by the id of the loop.

    None in the microsecond in which the call starts: readers could find its end before its start.
    """
    starts = {loop.id: loop.started_ns for loop in loops}
    arrows: dict[str, str] = {}
    for loop in loops:
        for call in loop.tool_calls:
            if call.loops and call.started_ns is not None:
                flow = f"0x{next(flows):x}"
                arrows |= {
                    id_: flow for id_ in call.loops if starts.get(id_, 0) // 1000 > call.started_ns // 1000
                }
    return arrows


def _server_tools(model: ModelCall) -> Iterator[tuple[int, int, str]]:
    """(start, end, name) of each tool of the model's server whose times are known."""
    for one in model.server_tools:
        if one.started_ns is not None and one.ended_ns is not None:
            start, end = _inside(one.started_ns, one.ended_ns, (model.started_ns, model.ended_ns))
            yield start, end, one.name


@dataclass(frozen=True, slots=True)
class _Writer:
    """Events of one agent, which is the process `pid` in the trace; for `arrows` see `_arrows`."""

    pid: int
    origin_ns: int
    arrows: Mapping[str, str]

    def slice(
        self, tid: int, name: str, category: str, span: Interval, args: Mapping[str, object] | None = None
    ) -> Event:
        # Whole microseconds, rounded down at both ends, so that slices nest as they do in nanoseconds.
        ts = (span[0] - self.origin_ns) // 1000
        event = {
            "ph": "X",
            "name": name,
            "cat": category,
            "pid": self.pid,
            "tid": tid,
            "ts": ts,
            "dur": (span[1] - self.origin_ns) // 1000 - ts,
        }
        shown = {key: value for key, value in (args or {}).items() if value is not None}
        return event | {"args": shown} if shown else event

    def instant(self, tid: int, name: str, at: int) -> Event:
        ts = (at - self.origin_ns) // 1000
        return {"ph": "i", "s": "t", "name": name, "cat": "model", "pid": self.pid, "tid": tid, "ts": ts}

    def loop(
        self,
        loop: LoopRecord,
        tid: int,
        beside: _Tracks,
        calls: list[tuple[ToolCall, str]],
        flows: Iterator[int],
    ) -> Iterator[Event]:
        """A loop and all its rounds; adds their calls, each with the id of its arrow, to `calls`.

        `beside` are for rounds that begin before the one before them has ended.
        """
        name = loop.name or "loop"
        args = _fields(loop, "id", "strategy", "status", "error_type", "trial", "parent") | {
            "model": None if loop.provider == NO_MODEL else f"{loop.provider} {loop.model}".strip() or None,
            "source": loop.source or None,
            "resolution_ms": loop.resolution_ns / 1e6 if loop.source else None,
            "derived": _times(loop.derived),
            "late_ms": None if loop.intended_ns is None else _ms(loop.started_ns - loop.due_ns),
            "lag_ms": _ms(loop.lag_ns or None),
            **{f"{phase}_ms": _ms(spent or None) for phase, spent in loop_phases(loop).items()},
            "prompt": _short(loop.prompt),
            "text": _short(loop.text),
        }
        whole = (loop.started_ns, loop.ended_ns)
        event = self.slice(tid, name if loop.number is None else f"{name} {loop.number}", "loop", whole, args)
        if loop.id in self.arrows:
            event |= {"bind_id": self.arrows[loop.id], "flow_in": True}
        yield event
        own, free = tid, whole[0]
        for round_ in sorted(loop.rounds, key=lambda one: one.started_ns):
            span = _inside(round_.started_ns, round_.ended_ns, whole)
            if span[0] >= free:
                tid, free = own, span[1]
            else:
                tid, named_track = beside.take(*span)
                yield from named_track
            event = self.slice(
                tid, f"round {round_.index}", "round", span, _fields(round_, "status", "shortfall")
            )
            if round_.tool_calls:
                flow = f"0x{next(flows):x}"
                event |= {"bind_id": flow, "flow_out": True}
                # By clocks of several machines a call may begin before its round: no arrow leads back.
                first = span[0] // 1000
                calls.extend((c, flow if c.began_ns // 1000 >= first else "") for c in round_.tool_calls)
            yield event
            if round_.model.asked:
                yield from self._model(round_.model, tid, span)
            yield from self._tool_phase(round_, tid, span)

    def _model(self, model: ModelCall, tid: int, parent: Interval) -> Iterator[Event]:
        span = _inside(model.started_ns, model.ended_ns, parent)
        args = _fields(model, "status", "error_type", "finish_reason", "request_id")
        args |= _fields(model, "input_tokens", "cached_tokens", "cache_written_tokens")
        args |= _fields(model, "output_tokens", "reasoning_tokens")
        args |= {"attempts": len(model.attempts), "resends": model.resends or None}
        args |= {"unreadable": model.unreadable or None}
        args |= {"derived": _times(model.derived), "unknown": _times(model.unknown)}
        yield self.slice(tid, f"chat {model.model}".rstrip(), "model", span, args)
        free = span[0]
        if held_ns := model_queue_ns(model):
            free = _inside(free, free + held_ns, span)[1]
            yield self.slice(tid, "queue", "queue", (span[0], free))
        before = None
        for number, attempt in enumerate(model.attempts, start=1):
            start, end = _inside(attempt.started_ns, attempt.ended_ns, (free, span[1]))
            if before is not None and start > free:
                reason = {"after": before.status or before.error_type}
                yield self.slice(tid, "backoff", "backoff", (free, start), reason)
            args = _fields(attempt, "status", "error_type", "request_id")
            args["retry_after_ms"] = _ms(attempt.retry_after_ns)
            yield self.slice(tid, f"attempt {number}", "attempt", (start, end), args)
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
                    yield self.slice(tid, name, "attempt", piece)
                    reached = piece[1]
            before, free = attempt, end
        for name, at in (
            ("first token", model.first_token_ns),
            ("first output", model.first_output_ns),
            ("first tool call", model.first_tool_call_ns),
        ):
            if at is not None:
                yield self.instant(tid, name, _inside(at, at, span)[0])

    def _tool_phase(self, round_: RoundRecord, tid: int, parent: Interval) -> Iterator[Event]:
        if round_.tools_started_ns is None or round_.tools_ended_ns is None:
            return
        free = _inside(round_.model.ended_ns, round_.model.ended_ns, parent)[0]
        start, end = span = _inside(round_.tools_started_ns, round_.tools_ended_ns, (free, parent[1]))
        # A recording says when calls ran, not when we would have had them parsed and their results collected.
        ours = all(call.waited_ns is not None for call in round_.tool_calls)
        if ours:
            yield self.slice(tid, "parse", "phase", (free, start))
        args: dict[str, object] = {"calls": len(round_.tool_calls)}
        if figures := tool_phase(round_):
            args["work_ms"] = _ms(figures.work_ns)
            args["critical_path_ms"] = _ms(figures.critical_path_ns)
            args["peak_concurrency"] = figures.peak_concurrency
            if figures.upper_bound:
                args["overlap"] = "upper bound"
        name = "≤ tool phase" if figures and figures.upper_bound else "tool phase"
        yield self.slice(tid, name, "phase", span, args)
        waiting = waits(round_.tool_calls)
        at = start
        busy = [_inside(*interval, span) for interval in union(runs(round_.tool_calls))]
        for low, high in [*busy, (end, end)]:
            for queue in union(_inside(*interval, (at, low)) for interval in waiting):
                yield self.slice(tid, "queue", "phase", queue)
            if high > low:
                yield self.slice(tid, "tools", "phase", (low, high))
            at = max(at, high)
        if ours:
            yield self.slice(tid, "collect", "phase", (end, parent[1]))

    def call(self, call: ToolCall, tid: int, flow: str) -> Iterator[Event]:
        """One call from its queueing to its end: its wait, then its execution, which may be in parts.

        `flow` is the id of its arrow, empty for none.
        """
        start, end = span = (call.queued_ns, max(call.queued_ns, call.ended_ns))
        args = _fields(call, "id", "status", "error_type") | {
            "thread_wait_ms": _ms(call.thread_wait_ns or None),
            "blocking_ms": _ms(call.blocking_ns or None),
            "arguments": _short(call.arguments),
            "result": _short(call.result),
            "server": call.server or None,
            "at_most_ms": _ms(call.duration_ns) if call.upper_bound else None,
            "derived": _times(call.derived),
            "unknown": _times(call.unknown),
        }
        name, what = call.name, "running"
        if call.untimed == "upper_bound":
            name, what = f"≤ {name}", "waiting or running"
        elif call.untimed == "never_ended":
            name, what = f"{name} (no end seen)", "no end seen"
        elif call.untimed == "wait":
            what = "waiting for another call"
        elif call.untimed == "never_started" and call.waited_ns is None:
            name += " (never started)"
        whole = self.slice(tid, name, "call", span, args)
        yield whole | {"bind_id": flow, "flow_in": True} if flow else whole
        started, _ = _inside(call.waited_until_ns, end, span)
        if started > start and call.waited_ns is not None:
            yield self.slice(tid, "queued", "call", (start, started))
        if call.started_ns is not None:
            running = self.slice(tid, what, "call", (started, end))
            arrow = next((self.arrows[id_] for id_ in call.loops if id_ in self.arrows), None)
            yield running if arrow is None else running | {"bind_id": arrow, "flow_out": True}
            yield from self._parts(call, tid, (started, end))

    def _parts(self, call: ToolCall, tid: int, parent: Interval) -> Iterator[Event]:
        """The parts of a call of an MCP server: when in between the server itself ran, nobody knows."""
        parts = remote_parts(call)
        there = "server and network"
        parts[there] = sum(parts.pop(one, 0) for one in ("server", "network", "server_and_network"))
        reached = parent[0]
        for part in ("session_wait", "client_wait", there, "parsing"):
            if lasted_ns := parts.get(part):
                piece = _inside(reached, reached + lasted_ns, parent)
                reached = piece[1]
                yield self.slice(tid, part.replace("_", " "), "mcp", piece)

    def request(self, call: ToolCall, span: Interval, tid: int) -> Iterator[Event]:
        """The request of a call to its MCP server, and in it the server's own part, right before the
        answer."""
        remote = call.remote
        if remote is None:
            return
        args = _fields(call, "id", "status", "error_type")
        args |= _fields(remote, "transport", "protocol", "reply", "http_status", "new_connection")
        args |= {"sends": remote.sends if remote.sends > 1 else None, "progress": remote.progress or None}
        args |= {f"{part}_ms": _ms(lasted_ns) for part, lasted_ns in remote_parts(call).items()}
        yield self.slice(tid, call.name, "mcp", span, args)
        if remote.server_ns is not None:
            yield self.slice(tid, "server", "mcp", _inside(span[1] - remote.server_ns, span[1], span))


def named(pid: int, kind: str, name: str, order: int) -> Iterator[Event]:
    """The name and the place of a group."""
    yield {"ph": "M", "name": kind, "pid": pid, "args": {"name": name}}
    yield {"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": order}}


def _inside(start: int, end: int, parent: Interval) -> Interval:
    """The part of an interval inside another; empty, at an edge, where there is none."""
    low, high = parent
    start = min(max(start, low), high)
    return start, min(max(end, start), high)


def _fields(one: object, *names: str) -> dict[str, object]:
    return {name: getattr(one, name) for name in names}


def _times(names: Sequence[str]) -> str | None:
    """The times of a recording that were derived, or are unknown: `ready_ns` is `ready` here."""
    return ", ".join(name.removesuffix("_ns") for name in names) or None


def _ms(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else round(nanoseconds / 1e6, 3)


def _short(text: str | None) -> str | None:
    return text if text is None or len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"
