"""Loop records as Chrome trace events, one group of tracks per agent.

Every agent is a group ("process" in that format). On its track `loops` lie loop > round > model
request > attempt > connect, send, wait, receive; then parse, the tool phase (partitioned into
`tools` and `queue`) and collect. The calls lie on lanes of their own, as many as ran or waited
at once, so that slices of one track nest and never overlap otherwise; an arrow leads from each
round to its calls.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from profiler.anatomy import Interval, loop_phases, model_queue_ns, tool_phase, union
from profiler.records import LoopRecord, ModelCall, RoundRecord, ToolCall

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
            late_ms=None if loop.intended_ns is None else _ms(loop.started_ns - loop.intended_ns),
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
        waiting = [
            (c.queued_ns, c.ended_ns if c.started_ns is None else c.started_ns) for c in round_.tool_calls
        ]
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
        started, _ = _inside(end if call.started_ns is None else call.started_ns, end, (start, end))
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
