"""Where the time of a round or a loop went: pure functions of records.

The phases partition wall time. Where activities overlap (calls with each other, eager calls with
the model) each instant belongs to the first that applies:

    model_queue, backoff > server_tools > model > any call running (tools) > any call queued (queue)
    > the rest

where the rest is `parse` before the tool phase, `collect` after it, and `unaccounted` elsewhere. A recording
does not tell when the tool phase began: there all of the rest is `unaccounted`.
`backoff` is the part of a model request between two of its attempts, `model_queue` the part before
the first attempt during which one of our own limiters held the request, `server_tools` the part in which
the model's server ran tools of its own (`ServerToolCall`), so far as a stream told their times. Without
times their part is `model`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from profiler.records import MOST, LoopRecord, ModelCall, RoundRecord, ToolCall

PHASES = (
    *("model", "server_tools", "model_queue", "backoff"),
    *("parse", "tools", "queue", "collect", "unaccounted"),
)
SELDOM: frozenset[str] = frozenset({"server_tools"})
"""Phases that most loops have none of: readers leave them out where they are nothing everywhere."""

Interval = tuple[int, int]
"""Start and end in nanoseconds; the end is exclusive."""


@dataclass(frozen=True, slots=True)
class ToolPhase:
    """The tool phase of one round with calls, in nanoseconds.

    `wall` runs from the first start to the last end, of the phase and of its calls: a call that begins
    beside the model, or outlives the round, is inside all the same. `work` is the sum of the durations,
    `critical_path` the longest. So efficiency, critical_path / wall, is at most 1, and speed-up, work /
    wall, at most the number of calls. `peak_concurrency` counts the tries that ran at once: a call that
    waits between two of its tries, or for its limiter, is not running. `straggler_ratio` is longest /
    median duration. Calls that other calls made are part of those, and not counted beside them.

    `upper_bound`: of a call among them the duration is one (`ToolCall.upper_bound`), and so is all of this.
    """

    wall_ns: int
    work_ns: int
    critical_path_ns: int
    peak_concurrency: int
    straggler_ratio: float
    upper_bound: bool = False


def phases(round_: RoundRecord) -> dict[str, int]:
    """Nanoseconds per phase (keys: `PHASES`, in their order), none negative; they sum to the wall time."""
    return _plain_phases(round_) or _phases(round_)


def _plain_phases(round_: RoundRecord) -> dict[str, int] | None:
    """The same of nearly every round, in one pass: of one request and then the calls. None of any other."""
    model, tools_started_ns, tools_ended_ns = round_.model, round_.tools_started_ns, round_.tools_ended_ns
    asked_ns, replied_ns, ended_ns = model.started_ns, model.ended_ns, round_.ended_ns
    if len(model.attempts) > 1 or model.server_tools or not model.asked:
        return None
    if not round_.started_ns <= asked_ns <= replied_ns <= ended_ns:
        return None
    parse = tools = queue = collect = 0
    if tools_started_ns is not None and tools_ended_ns is not None:
        busy = _busy(round_.tool_calls)
        if busy is None or not replied_ns <= tools_started_ns <= busy.started_ns:
            return None
        if not busy.ended_ns <= tools_ended_ns <= ended_ns:
            return None
        parse, collect = tools_started_ns - replied_ns, ended_ns - tools_ended_ns
        tools = busy.running_ns
        queue = busy.ended_ns - busy.started_ns - tools
    model_queue = model_queue_ns(model) if model.limiter_wait_ns else 0
    return {
        "model": replied_ns - asked_ns - model_queue,
        "server_tools": 0,
        "model_queue": model_queue,
        "backoff": 0,
        "parse": parse,
        "tools": tools,
        "queue": queue,
        "collect": collect,
        "unaccounted": asked_ns - round_.started_ns + ended_ns - replied_ns - parse - tools - queue - collect,
    }


class _Busy(NamedTuple):
    """One interval in which calls waited or ran: its start and end, and for how long any ran."""

    started_ns: int
    ended_ns: int
    running_ns: int


def _busy(calls: Sequence[ToolCall]) -> _Busy | None:
    """That of calls of which everything was seen, and that started in this order.

    None of any others, of none, and where there is a time between them in which nobody waited.
    """
    busy_since_ns = until_ns = MOST
    started_ns, running_ns = -MOST, 0
    for call in calls:
        start, end, queued = call.started_ns, call.ended_ns, call.queued_ns
        if start is None or call.unknown or not queued <= start <= end or start < started_ns:
            return None
        started_ns = start
        if queued < busy_since_ns:
            busy_since_ns = queued
        if until_ns == MOST or start > until_ns:
            if queued > until_ns:
                return None
            running_ns += end - start
            until_ns = end
        elif end > until_ns:
            running_ns += end - until_ns
            until_ns = end
    return None if until_ns == MOST else _Busy(busy_since_ns, until_ns, running_ns)


def _phases(round_: RoundRecord) -> dict[str, int]:
    """`phases` of any round."""
    window = (round_.started_ns, round_.ended_ns)
    model, calls = round_.model, round_.tool_calls
    asked = _clipped((model.started_ns, model.ended_ns if model.asked else model.started_ns), window)
    model_wall = asked[1] - asked[0]
    model_queue, backoff, server_tools = model_queue_ns(model), 0, 0
    if len(model.attempts) > 1:
        # Not `model.backoff_ns`: a request that was given up may have been tried again after that.
        backoff = overlap(union(_backoffs(model)), asked)
    if model.server_tools:
        waited = [(asked[0], asked[0] + model_queue), *_backoffs(model)]
        covered = overlap(union([*waited, *server_tool_runs(model)]), asked)
        server_tools = covered - overlap(union(waited), asked)
    tools = queue = parse = collect = 0
    if round_.tools_started_ns is not None and round_.tools_ended_ns is not None:
        running, waiting = union(runs(calls)), waits(calls)
        busy = union(running + waiting)
        parsing = _clipped((asked[1], round_.tools_started_ns), window)
        collecting = _clipped((max(asked[1], round_.tools_ended_ns), window[1]), window)
        parse, collect = parsing[1] - parsing[0], collecting[1] - collecting[0]
        if busy and busy[0][0] >= parsing[1] and busy[-1][1] <= collecting[0]:  # nearly every round
            tools = length(running)
            queue = length(busy) - tools
        else:
            # Whatever the model covers is its own; outside it come the calls, then parsing and collecting.
            outside = [(window[0], asked[0]), (asked[1], window[1])]
            tools = sum(overlap(running, part) for part in outside)
            queue = sum(overlap(busy, part) for part in outside) - tools
            parse -= overlap(busy, parsing)
            collect -= overlap(busy, collecting)
        if len(waiting) < len(calls):  # nobody saw when the calls were queued, and so when parsing ended
            parse = collect = 0
    return {
        "model": model_wall - backoff - model_queue - server_tools,
        "server_tools": server_tools,
        "model_queue": model_queue,
        "backoff": backoff,
        "parse": parse,
        "tools": tools,
        "queue": queue,
        "collect": collect,
        "unaccounted": round_.duration_ns - (model_wall + parse + tools + queue + collect),
    }


def _clipped(interval: Interval, window: Interval) -> Interval:
    """The part of an interval inside the window; an empty one where there is none."""
    start = min(max(interval[0], window[0]), window[1])
    return start, max(start, min(interval[1], window[1]))


def _backoffs(model: ModelCall) -> list[Interval]:
    return [(before.ended_ns, after.started_ns) for before, after in pairwise(model.attempts)]


def model_queue_ns(model: ModelCall) -> int:
    """How long our own limiters held a model request before its first attempt."""
    if not model.limiter_wait_ns:
        return 0
    first_ns = model.attempts[0].started_ns if model.attempts else model.ended_ns
    return max(0, min(model.limiter_wait_ns, first_ns - model.started_ns))


def server_tool_runs(model: ModelCall) -> list[Interval]:
    """The interval in which each tool of the model's server ran, of those whose times are known."""
    return [
        (one.started_ns, one.ended_ns)
        for one in model.server_tools
        if one.started_ns is not None and one.ended_ns is not None
    ]


def tool_phase(round_: RoundRecord) -> ToolPhase | None:
    """The tool phase, or None for a round without a call that ran."""
    first_ns = last_started_ns = last_ns = first_ended_ns = 0
    durations: list[int] = []
    tried = upper_bound = False
    in_turn = True  # each starts when the one before has ended
    for call in round_.tool_calls:
        start, end = call.started_ns, call.ended_ns
        if call.nested:
            continue
        tried |= bool(call.attempts)
        upper_bound |= call.upper_bound
        if start is None or (call.unknown and not call.ended):
            continue
        if not durations:
            first_ns = last_started_ns = start
            last_ns = first_ended_ns = end
        else:
            in_turn = in_turn and start >= last_ns
            first_ns, last_started_ns = min(first_ns, start), max(last_started_ns, start)
            last_ns, first_ended_ns = max(last_ns, end), min(first_ended_ns, end)
        durations.append(end - start)
    if not durations or round_.tools_started_ns is None or round_.tools_ended_ns is None:
        return None
    if not tried and (in_turn or last_started_ns < first_ended_ns):
        most = 1 if in_turn else len(durations)
    else:
        # Where the clock is coarse, calls may have no length.
        most = peak(_tries([call for call in round_.tool_calls if not call.nested])) or 1
    durations.sort()
    middle = len(durations) // 2
    # Every round comes through here, and statistics.median would take several times as long.
    median = durations[middle] if len(durations) % 2 else (durations[middle - 1] + durations[middle]) / 2
    return ToolPhase(
        wall_ns=max(round_.tools_ended_ns, last_ns) - min(round_.tools_started_ns, first_ns),
        work_ns=sum(durations),
        critical_path_ns=durations[-1],
        peak_concurrency=most,
        straggler_ratio=durations[-1] / median if median else 1.0,
        upper_bound=upper_bound,
    )


@dataclass(frozen=True, slots=True)
class Eagerness:
    """How much of a streamed round's tool work ran while the model did, and how much could have.

    `overlapped_ns`: how long any call ran while the model streamed. `wall_ns`: from the start of the
    model request to the end of the last call. `bound_ns`: the same, had every call started as soon as
    it could: max(D, max(eᵢ + dᵢ)) for a reply that takes D and calls that take dᵢ and could start after
    eᵢ, when their arguments were complete. The arguments are complete when the reply is, and those of a
    call that ran were when it started, whatever was noted: so bound ≤ wall, and bound ≤ gathered.
    `gathered_ns`: the same, had all calls started when the reply was complete: D + max dᵢ.
    """

    overlapped_ns: int
    wall_ns: int
    bound_ns: int
    gathered_ns: int


def eagerness(round_: RoundRecord) -> Eagerness | None:
    """The eagerness of a round; None when no call ran or the reply was not streamed.

    None too where a recording does not say when its calls were ready, or when they started.
    """
    model, ran = round_.model, runs(round_.tool_calls)
    if not ran or not model.streamed:
        return None
    if any(call.upper_bound or "ready_ns" in call.derived for call in round_.tool_calls):
        return None
    durations = [
        (min(call.ready_ns, call.started_ns, model.ended_ns), call.ended_ns - call.started_ns)
        for call in round_.tool_calls
        if call.started_ns is not None and call.ended
    ]
    start = model.started_ns
    return Eagerness(
        overlapped_ns=overlap(union(ran), (start, model.ended_ns)),
        wall_ns=max(model.ended_ns, *(ended for _, ended in ran)) - start,
        bound_ns=max(model.ended_ns, *(ready + duration for ready, duration in durations)) - start,
        gathered_ns=model.ended_ns + max(duration for _, duration in durations) - start,
    )


def loop_phases(loop: LoopRecord) -> dict[str, int]:
    """Nanoseconds per phase of a whole loop; they sum to its wall time.

    Time outside every round is `unaccounted`. In a loop that was only observed, rounds may overlap
    (model requests made at the same time); even then each instant belongs to one phase. What a recording
    shows before the start or after the end of a loop is no part of it.
    """
    rounds = loop.rounds
    if rounds and (rounds[0].started_ns < loop.started_ns or rounds[-1].ended_ns > loop.ended_ns):
        return _phases_of_overlapping_rounds(loop)
    if any(after.started_ns < before.ended_ns for before, after in pairwise(rounds)):
        return _phases_of_overlapping_rounds(loop)
    total = dict.fromkeys(PHASES, 0)
    outside = loop.wall_ns
    for round_ in loop.rounds:
        outside -= round_.duration_ns
        for phase, value in phases(round_).items():
            total[phase] += value
    total["unaccounted"] += outside
    return total


def _phases_of_overlapping_rounds(loop: LoopRecord) -> dict[str, int]:
    rounds, models = loop.rounds, [round_.model for round_ in loop.rounds]
    calls = list(loop.tool_calls)
    # As in `phases`: where nobody saw the calls being queued, nobody saw what lies before and after them.
    seen = [round_ for round_ in rounds if len(waits(round_.tool_calls)) == len(round_.tool_calls)]
    # In the order of precedence: a phase owns the time that none before it covers.
    intervals_of: dict[str, list[Interval]] = {
        "model_queue": [(model.started_ns, model.started_ns + model_queue_ns(model)) for model in models],
        "backoff": [
            _clipped(gap, (model.started_ns, model.ended_ns)) for model in models for gap in _backoffs(model)
        ],
        "server_tools": [
            _clipped(run, (model.started_ns, model.ended_ns))
            for model in models
            for run in server_tool_runs(model)
        ],
        "model": [(model.started_ns, model.ended_ns) for model in models],
        "tools": runs(calls),
        "queue": waits(calls),
        "parse": [(r.model.ended_ns, r.tools_started_ns) for r in seen if r.tools_started_ns is not None],
        "collect": [(r.tools_ended_ns, r.ended_ns) for r in seen if r.tools_ended_ns is not None],
    }
    total = dict.fromkeys(PHASES, 0)
    taken: list[Interval] = []
    window = (loop.started_ns, loop.ended_ns)
    covered = 0
    for phase, intervals in intervals_of.items():
        taken = union([*taken, *intervals])
        total[phase] = overlap(taken, window) - covered
        covered += total[phase]
    total["unaccounted"] = loop.wall_ns - covered
    return total


def runs(calls: Iterable[ToolCall]) -> list[Interval]:
    """The interval in which each call ran, for calls that started and of which an end was seen."""
    return [
        (call.started_ns, call.ended_ns)
        for call in calls
        if call.started_ns is not None and (not call.unknown or call.ended)
    ]


def _tries(calls: Iterable[ToolCall]) -> list[Interval]:
    """The intervals in which tries of calls ran; of a call without any of its own, the call's."""
    return [
        interval
        for call in calls
        if call.started_ns is not None and (not call.unknown or call.ended)
        for interval in (
            [(one.started_ns, one.ended_ns) for one in call.attempts] or [(call.started_ns, call.ended_ns)]
        )
    ]


PARTS = ("session_wait", "client_wait", "server", "network", "server_and_network", "parsing")
"""Parts of a call of an MCP server's tool, in their order; without the server's own word, the two in one."""


def remote_parts(call: ToolCall) -> dict[str, int]:
    """Nanoseconds per part (keys: some of `PARTS`), none negative; they sum to the call's duration.

    Empty for any other call, and for one whose duration is not known. A server that claims more than the
    time from request to answer took all of that.
    """
    remote, started_ns, ended_ns = call.remote, call.started_ns, call.ended_ns
    if remote is None or started_ns is None or call.latency_ns is None:
        return {}
    # Of a call that was tried again the times are those of its last try.
    taken_ns = min(started_ns + remote.session_wait_ns, ended_ns)
    posted_ns = ended_ns if remote.posted_ns is None else min(max(remote.posted_ns, taken_ns), ended_ns)
    found = {"session_wait": taken_ns - started_ns, "client_wait": posted_ns - taken_ns}
    if remote.posted_ns is None:
        return found
    answered_ns = ended_ns if remote.answered_ns is None else remote.answered_ns
    answered_ns = min(max(answered_ns, posted_ns), ended_ns)
    if remote.server_ns is None:
        found["server_and_network"] = answered_ns - posted_ns
    else:
        found["server"] = min(remote.server_ns, answered_ns - posted_ns)
        found["network"] = answered_ns - posted_ns - found["server"]
    if remote.answered_ns is not None:
        found["parsing"] = ended_ns - answered_ns
    return found


def waits(calls: Iterable[ToolCall]) -> list[Interval]:
    """The interval in which each call waited in its strategy, perhaps empty; none where nobody saw it."""
    return [
        (call.queued_ns, call.waited_until_ns)
        for call in calls
        if not call.unknown or "queued_ns" not in call.unknown
    ]


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Disjoint, sorted intervals that cover the same instants, none of them empty."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if end <= start:
            continue
        if merged and start <= merged[-1][1]:
            if end > merged[-1][1]:
                merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged


def length(intervals: Iterable[Interval]) -> int:
    """Total length of disjoint intervals."""
    return sum(end - start for start, end in intervals)


def overlap(intervals: Iterable[Interval], window: Interval) -> int:
    """Length of the part of disjoint intervals inside the window."""
    low, high = window
    return sum(max(0, min(end, high) - max(start, low)) for start, end in intervals)


def peak(intervals: Iterable[Interval]) -> int:
    """The largest number of intervals that share one instant."""
    edges: list[tuple[int, int]] = []
    for start, end in intervals:
        edges.append((start, 1))
        edges.append((end, -1))
    edges.sort()
    highest = current = 0
    for _, step in edges:
        current += step
        highest = max(highest, current)
    return highest
