"""Records as columns: what the statistics need of each loop, round and call, a few bytes each.

A run may hold a million tool calls. They are streamed into typed arrays, never kept as objects;
everything after that is arithmetic on numpy views of the arrays.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from profiler.anatomy import PHASES, eagerness, loop_phases, server_tool_runs, tool_phase
from profiler.records import LoopRecord
from profiler.statistics.servers import ServerCalls

Ints = NDArray[np.int64]

OK, ERROR, CANCELLED = 0, 1, 2
_STATUS = {"ok": OK, "error": ERROR, "cancelled": CANCELLED}

_LOOP = (
    *("trial", "strategy", "number", "due", "started", "ended", "status", "good", "error"),
    *("requests", "attempts", "input_tokens", "output_tokens", "work", "critical", "wall", "process"),
    *("overlapped", "saved", "savable", "nested", "first_round", "agent", "unlimited"),
    *("loop_sending", "loop_late", "unobserved", "ambiguous", "orphans"),
    *("cached_tokens", "cache_written_tokens", "reasoning_tokens", "replies", "unknown_replies"),
    *("unreadable", "server_tools", "untimed_server_tools", "heard", "unheard"),
)
_ROUND = (
    *("round_loop", "round_wall", "round_ended", "round_calls", "tool_wall", "shortfall"),
    *("tools_started", "limit", "model_wall", "model_sending", "model_late"),
)
_CALL = (
    *("call_loop", "call_tool", "call_error", "queued", "duration", "queue", "blocking"),
    *("call_sending", "call_late", "call_server", "call_bound"),
)
_NARROW = {
    **dict.fromkeys(("shortfall", "call_bound"), "b"),
    **dict.fromkeys(
        ("round_loop", "round_calls", "call_loop", "call_tool", "call_error", "call_server"), "i"
    ),
}
"""Columns that need fewer than the 64 bits of the others."""

NONE = -1
"""In a column: did not happen, or there is no such thing."""


class _Codes(dict[str, int]):
    """Texts with a number each, counted from 0 as they come; a column holds the numbers."""

    def of(self, text: str | None) -> int:
        """The number of a text, new or known; `NONE` for None."""
        return NONE if text is None else self.setdefault(text, len(self))


@dataclass(frozen=True, slots=True)
class Table:
    """An array per column; columns of loops have a row per loop, those of rounds and calls likewise.

    Times are in nanoseconds; `NONE` stands for what is absent. `strategies`, `tools`, `errors` and
    `shortfalls` are the texts that the codes in columns stand for.

    Loops: `due` is when the loop was meant to start (open load), else its start. `good` is 1 for a loop
    that was (`LoopRecord.good`). `nested` is 1 for a loop inside another's tool call: its time is part of
    that call, and its `trial` is `NONE`. `phases` has one row per loop, in the order of `anatomy.PHASES`.
    `work`, `critical` and `wall` (`anatomy.ToolPhase`) are summed over the rounds with calls, without those
    of which they are only upper bounds. `process`
    is a code, the same for loops of one process. `overlapped`, `saved` and `savable` are summed over
    streamed rounds: for how long calls ran beside the model, how much sooner the round ended than if
    its calls had started at the end of the reply, and how much sooner it could have (`anatomy.Eagerness`).
    `first_round` is from when the loop was due to the end of its first round, `NONE` where that was cut off.
    `agent` is a code. `unobserved`, `ambiguous` and `orphans` are the calls that `LoopRecord` counts under
    these names, `unlimited` those that went around the strategy's limit (`NONE` where none could).
    `input_tokens` and `output_tokens` are those that are known; of the `replies` that came `unknown_replies`
    did not say both. `cached_tokens`, `cache_written_tokens` and `reasoning_tokens` are parts of them, `NONE`
    where no reply said. `unreadable` parts of replies could not be understood. Of the `server_tools` calls
    that the model's server ran itself, `untimed_server_tools` have no times. Of its model requests, something
    came back to the `heard` ones and nothing at all to the `unheard` ones (`ModelCall.heard`).
    `loop_sending` is the time in which the client had neither a request nor a call under way at the start and
    the end of the loop, with the `sending_ns` of its first request; `loop_late` is the `late_ns` of the last.
    Rounds: `tool_wall` and `tools_started` are `NONE` in a round without calls, `tool_wall` also where it is
    an upper bound, `limit` where the strategy set none. `model_wall` is of the request, `NONE` where that is
    not known, `model_sending` and `model_late` are its `sending_ns` and `late_ns`.
    Calls, in the order of their rounds: `queued` is when a call was handed to the strategy, `queue` its
    wait there, `NONE` where nobody saw it; `duration` is `NONE` for a call that never got through its
    limiter, or whose end was not seen, or of which only an upper bound is known (`call_bound` is 1);
    `blocking` is for how long it held the event loop; `call_sending` and `call_late` are its `sending_ns` and
    `late_ns`, `call_server` is a code of `server_names`, `NONE` for a tool of no MCP server.
    Refusals: `refused` is when a server refused something for a quota.
    `servers` has the calls of MCP servers, which most runs have none of.
    """

    strategies: list[str]
    tools: list[str]
    server_names: list[str]
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
    first_round: Ints
    agent: Ints
    unlimited: Ints
    loop_sending: Ints
    loop_late: Ints
    unobserved: Ints
    ambiguous: Ints
    orphans: Ints
    cached_tokens: Ints
    cache_written_tokens: Ints
    reasoning_tokens: Ints
    replies: Ints
    unknown_replies: Ints
    unreadable: Ints
    server_tools: Ints
    untimed_server_tools: Ints
    heard: Ints
    unheard: Ints
    phases: Ints

    round_loop: Ints
    round_wall: Ints
    round_ended: Ints
    round_calls: Ints
    tool_wall: Ints
    shortfall: Ints
    tools_started: Ints
    limit: Ints
    model_wall: Ints
    model_sending: Ints
    model_late: Ints

    call_loop: Ints
    call_tool: Ints
    call_error: Ints
    queued: Ints
    duration: Ints
    queue: Ints
    blocking: Ints
    call_sending: Ints
    call_late: Ints
    call_server: Ints
    call_bound: Ints

    refused: Ints

    servers: ServerCalls = field(default_factory=ServerCalls)


def tabulate(records: Iterable[LoopRecord]) -> Table:
    """The table of a stream of records."""
    strategies, tools, errors, shortfalls, processes, agents, server_names = (_Codes() for _ in range(7))
    columns = {name: array(_NARROW.get(name, "q")) for name in (*_LOOP, *_ROUND, *_CALL)}
    loops = [columns[name] for name in _LOOP]
    round_loop, round_wall, round_ended, round_calls, tool_wall, shortfall, *others = (
        columns[name] for name in _ROUND
    )
    tools_started, limit, model_wall, model_sending, model_late = others
    call_loop, call_tool, call_error, queued, duration, queue, blocking, *more = (
        columns[name] for name in _CALL
    )
    call_sending, call_late, call_server, call_bound = more
    phases, refused, servers = array("q"), array("q"), ServerCalls()
    for index, record in enumerate(records):
        requests = attempts = input_tokens = output_tokens = work = critical = wall = 0
        overlapped = saved = savable = 0
        for round_ in record.rounds:
            model = round_.model
            if model.asked:
                requests += 1
                attempts += model.attempt_count
            input_tokens += model.input_tokens or 0
            output_tokens += model.output_tokens or 0
            phase = tool_phase(round_)
            if phase is not None and phase.upper_bound:
                phase = None
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
            round_ended.append(round_.ended_ns)
            round_calls.append(len(round_.tool_calls))
            tool_wall.append(phase.wall_ns if phase is not None else NONE)
            shortfall.append(shortfalls.of(round_.shortfall))
            tools_started.append(NONE if round_.tools_started_ns is None else round_.tools_started_ns)
            limit.append(NONE if round_.limit is None else round_.limit)
            model_wall.append(NONE if model.latency_ns is None else model.latency_ns)
            model_sending.append(model.sending_ns)
            model_late.append(model.late_ns)
            for call in round_.tool_calls:
                call_loop.append(index)
                call_tool.append(tools.of(call.name))
                call_server.append(server_names.of(call.server or None))
                call_error.append(errors.of(call.failure))
                queued.append(call.queued_ns)
                latency_ns, waited_ns = call.latency_ns, call.waited_ns
                duration.append(NONE if latency_ns is None else latency_ns)
                queue.append(NONE if waited_ns is None else waited_ns)
                call_bound.append(call.upper_bound)
                blocking.append(call.blocking_ns)
                call_sending.append(call.sending_ns)
                call_late.append(call.late_ns)
                if call.remote is not None:
                    servers.add(record, round_, len(round_loop), call, call.remote)
        row = (
            NONE if record.trial is None or record.nested else record.trial,
            strategies.of(record.strategy),
            NONE if record.number is None else record.number,
            record.due_ns,
            record.started_ns,
            record.ended_ns,
            _STATUS[record.status],
            int(record.good),
            errors.of(record.failure),
            requests,
            attempts,
            input_tokens,
            output_tokens,
            work,
            critical,
            wall,
            processes.of(record.process),
            overlapped,
            saved,
            savable,
            int(record.nested),
            _first_round(record),
            agents.of(record.agent),
            NONE if record.unlimited_calls is None else record.unlimited_calls,
            *_lateness(record),
            record.unobserved_calls,
            record.ambiguous_calls,
            record.orphan_calls,
            *_replies(record),
        )
        for column, value in zip(loops, row, strict=True):
            column.append(value)
        phases.extend(loop_phases(record).values())
        refused.extend(refusal.at_ns for refusal in record.refusals)
    return Table(
        strategies=list(strategies),
        tools=list(tools),
        server_names=list(server_names),
        errors=list(errors),
        shortfalls=list(shortfalls),
        phases=_view(phases).reshape(-1, len(PHASES)),
        refused=_view(refused),
        servers=servers,
        **{name: _view(column) for name, column in columns.items()},
    )


def _first_round(record: LoopRecord) -> int:
    if not record.rounds or record.rounds[0].status == "cancelled":
        return NONE
    return record.rounds[0].ended_ns - record.due_ns


def _replies(record: LoopRecord) -> tuple[int, ...]:
    """The last columns of a loop: what its replies say of tokens, could not be read, and ran themselves."""
    cached = written = reasoning = NONE
    replies = unknown = unreadable = tools = untimed = heard = unheard = 0
    for round_ in record.rounds:
        model = round_.model
        if model.cached_tokens is not None:
            cached = max(0, cached) + model.cached_tokens
        if model.cache_written_tokens is not None:
            written = max(0, written) + model.cache_written_tokens
        if model.reasoning_tokens is not None:
            reasoning = max(0, reasoning) + model.reasoning_tokens
        if not model.asked:
            continue
        if model.replied:
            replies += 1
            unknown += not model.tokens_known
        unreadable += model.unreadable
        heard += model.heard is True
        unheard += model.heard is False
        if model.server_tools:
            tools += len(model.server_tools)
            untimed += len(model.server_tools) - len(server_tool_runs(model))
    return cached, written, reasoning, replies, unknown, unreadable, tools, untimed, heard, unheard


def _lateness(record: LoopRecord) -> tuple[int, int]:
    """`loop_sending` and `loop_late` of a loop."""
    if not record.rounds:
        return 0, 0
    first, last = record.rounds[0].model, record.rounds[-1].model
    ends = [(last.ended_ns, last.late_ns)]
    ends += [(call.ended_ns, call.late_ns) for call in record.rounds[-1].tool_calls]
    ended_ns, late_ns = max(ends)
    before_ns, after_ns = first.started_ns - record.started_ns, record.ended_ns - ended_ns
    return max(0, before_ns) + first.sending_ns + max(0, after_ns), late_ns


def _view(column: array[int]) -> Ints:
    return np.frombuffer(column, dtype=column.typecode) if column else np.empty(0, dtype=np.int64)
