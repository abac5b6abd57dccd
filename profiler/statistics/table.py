"""Records as columns: what the statistics need of each loop, round and call, a few bytes each.

A run may hold a million tool calls. They are streamed into typed arrays, never kept as objects;
everything after is arithmetic on numpy views of them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from profiler.anatomy import PHASES, eagerness, loop_phases, tool_phase
from profiler.records import LoopRecord, read

Ints = NDArray[np.int64]

OK, ERROR, CANCELLED = 0, 1, 2
_STATUS = {"ok": OK, "error": ERROR, "cancelled": CANCELLED}

_LOOP = (
    *("trial", "strategy", "number", "due", "started", "ended", "status", "good", "error"),
    *("requests", "attempts", "input_tokens", "output_tokens", "work", "critical", "wall", "process"),
    *("overlapped", "saved", "savable", "nested"),
)

NONE = -1
"""In a column: did not happen, or has no such thing."""


@dataclass(slots=True)
class Names:
    """Texts, each stored once; a column holds their codes."""

    texts: list[str] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)

    def code(self, text: str | None) -> int:
        """The code of a text, new or known; `NONE` of None."""
        if text is None:
            return NONE
        known = self.codes.get(text)
        if known is None:
            known = self.codes[text] = len(self.texts)
            self.texts.append(text)
        return known


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of equal length per kind of thing; times in nanoseconds, `NONE` for absent.

    Loops: `due` is when the loop was meant to start (open load), else its start; `good` is 1
    for a loop that was (`LoopRecord.good`); `nested` is 1 for a loop inside another's tool call,
    whose time is that call's, and its `trial` is `NONE`; `phases` has one row per loop, in the order of
    `anatomy.PHASES`; `work`, `critical` and `wall` are summed over the rounds with calls; `process` is a
    code, the same for loops of the same process; `overlapped`, `saved` and `savable` are summed over
    streamed rounds: calls running beside the model, how much sooner the round ended than with calls
    started at the end of the reply, and how much sooner it could have (`anatomy.Eagerness`).
    Rounds: `tool_wall` and `tools_started` are `NONE` in a round without calls; `shortfall` is a code of
    `shortfalls`; `limit` is `NONE` where the strategy set none.
    Calls: `duration` is `NONE` for a call that never got through its limiter; `blocking` is for how
    long the call held the event loop.
    """

    strategies: list[str]
    tools: list[str]
    errors: list[str]
    shortfalls: list[str]

    trial: Ints
    strategy: Ints
    number: Ints
    due: Ints
    started: Ints
    ended: Ints
    status: Ints
    good: Ints
    error: Ints
    requests: Ints
    attempts: Ints
    input_tokens: Ints
    output_tokens: Ints
    work: Ints
    critical: Ints
    wall: Ints
    process: Ints
    overlapped: Ints
    saved: Ints
    savable: Ints
    nested: Ints
    phases: Ints

    round_loop: Ints
    round_wall: Ints
    tool_wall: Ints
    shortfall: Ints
    tools_started: Ints
    limit: Ints

    call_loop: Ints
    call_tool: Ints
    call_error: Ints
    duration: Ints
    queue: Ints
    blocking: Ints


def tabulate_file(path: Path) -> Table:
    """The table of a records file; of `records.read`.

    Raises `RecordError` as `records.read` does; a torn last line is left out.
    """
    return tabulate(read(path))


def tabulate(records: Iterable[LoopRecord]) -> Table:
    """The table of a stream of records."""
    strategies, tools, errors, shortfalls, processes = Names(), Names(), Names(), Names(), Names()
    loops = [array("q") for _ in _LOOP]
    phases = array("q")
    round_loop, round_wall, tool_wall, shortfall = array("i"), array("q"), array("q"), array("b")
    tools_started, limit = array("q"), array("i")
    call_loop, call_tool, call_error = array("i"), array("i"), array("i")
    duration, queue, blocking = array("q"), array("q"), array("q")
    for index, record in enumerate(records):
        requests = attempts = input_tokens = output_tokens = work = critical = wall = 0
        overlapped = saved = savable = 0
        for round_ in record.rounds:
            model = round_.model
            requests += 1
            attempts += model.attempt_count
            input_tokens += model.input_tokens or 0
            output_tokens += model.output_tokens or 0
            phase = tool_phase(round_)
            if phase is not None:
                work += phase.work_ns
                critical += phase.critical_path_ns
                wall += phase.wall_ns
                eager = eagerness(round_)
                if eager is not None:
                    overlapped += eager.overlapped_ns
                    saved += eager.gathered_ns - eager.wall_ns
                    savable += eager.gathered_ns - eager.bound_ns
            round_loop.append(index)
            round_wall.append(round_.duration_ns)
            tool_wall.append(phase.wall_ns if phase is not None else NONE)
            shortfall.append(shortfalls.code(round_.shortfall))
            tools_started.append(NONE if round_.tools_started_ns is None else round_.tools_started_ns)
            limit.append(NONE if round_.limit is None else round_.limit)
            for call in round_.tool_calls:
                call_loop.append(index)
                call_tool.append(tools.code(call.name))
                call_error.append(errors.code(call.failure))
                duration.append(NONE if call.duration_ns is None else call.duration_ns)
                queue.append(call.waited_ns)
                blocking.append(call.blocking_ns)
        row = (
            NONE if record.trial is None or record.nested else record.trial,
            strategies.code(record.strategy),
            NONE if record.number is None else record.number,
            record.due_ns,
            record.started_ns,
            record.ended_ns,
            _STATUS[record.status],
            int(record.good),
            errors.code(record.failure),
            requests,
            attempts,
            input_tokens,
            output_tokens,
            work,
            critical,
            wall,
            processes.code(record.process),
            overlapped,
            saved,
            savable,
            int(record.nested),
        )
        for column, value in zip(loops, row, strict=True):
            column.append(value)
        phases.extend(loop_phases(record).values())
    return Table(
        strategies=strategies.texts,
        tools=tools.texts,
        errors=errors.texts,
        shortfalls=shortfalls.texts,
        phases=_view(phases).reshape(-1, len(PHASES)),
        round_loop=_view(round_loop),
        round_wall=_view(round_wall),
        tool_wall=_view(tool_wall),
        shortfall=_view(shortfall),
        tools_started=_view(tools_started),
        limit=_view(limit),
        call_loop=_view(call_loop),
        call_tool=_view(call_tool),
        call_error=_view(call_error),
        duration=_view(duration),
        queue=_view(queue),
        blocking=_view(blocking),
        **{name: _view(column) for name, column in zip(_LOOP, loops, strict=True)},
    )


def _view(column: array[int]) -> Ints:
    return np.frombuffer(column, dtype=column.typecode) if column else np.empty(0, dtype=np.int64)
