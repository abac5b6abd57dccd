"""The figures of one strategy, over the loops that count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from profiler.anatomy import PHASES, SELDOM
from profiler.records import INTERNAL, RECORDED
from profiler.statistics.backlog import Backlog, growing_backlog
from profiler.statistics.lateness import ClientPart, client_parts
from profiler.statistics.objectives import Objective
from profiler.statistics.quantiles import (
    FEWEST_BLOCKS,
    LEVELS,
    Estimate,
    Quantiles,
    block_interval,
    independent,
    memory,
    quantile,
    quantiles,
    spread,
)
from profiler.statistics.table import CANCELLED, NONE, OK, Ints, Table
from profiler.statistics.windows import (
    Block,
    Indices,
    LoopColumns,
    Measured,
    completed,
    flagged,
    good,
    joined,
    latency,
    members,
)
from profiler.strategies import StrategySpec

ARRIVAL_WAIT = "arrival_wait"
"""The phase of an open load from when a loop was due until it started."""

_NS = 1e-9


@dataclass(frozen=True, slots=True)
class Loops:
    """Loops of the windows.

    Of the loops that ended inside: `completed` ones came to an answer (`per_second` of them), `failed`
    ones were not good (`LoopRecord.good`). Of the loops that were `due` inside: `incomplete` ones came to
    an answer although a call had failed, `interrupted` ones were cut off after the drain. `cancelled` ones
    are of a recording: they are due, but neither failed nor good, and in no rate of failures.
    """

    completed: int
    failed: int
    per_second: float | None
    due: int = 0
    incomplete: int = 0
    interrupted: int = 0
    cancelled: int = 0


@dataclass(frozen=True, slots=True)
class ToolFigures:
    """Calls of one tool in the loops that were due inside the windows.

    `seconds` is of the calls that ran, without the `upper_bounds` among them (`ToolCall.upper_bound`),
    `queue_seconds` of all whose wait was seen. `blocking_calls` held the event loop:
    the longest of them for `blocking_seconds`, all together for `blocking_total_seconds`.
    """

    calls: int
    errors: int
    seconds: Quantiles
    queue_seconds: Quantiles
    error_types: dict[str, int]
    blocking_seconds: float = 0.0
    blocking_total_seconds: float = 0.0
    blocking_calls: int = 0
    upper_bounds: int = 0


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens as the provider reported them; what they mean is said at `records.ModelCall`.

    `input` and `output` are those that are known: `unknown_replies` of the `replies` did not say both.
    `cached`, `cache_written` and `reasoning` are parts of them, None where no reply said.
    """

    input: int
    output: int
    cached: int | None = None
    cache_written: int | None = None
    reasoning: int | None = None
    replies: int = 0
    unknown_replies: int = 0


@dataclass(frozen=True, slots=True)
class MovingLimit:
    """A limit that adapts, summed over all processes: its range in the windows, and its last value."""

    low: int
    high: int
    last: int


@dataclass(frozen=True, slots=True)
class AgentCalls:
    """How the calls of a user's own agent kept to the strategy, over everything that was recorded of it.

    Of all `calls`, `unlimited` ones went around its limit, and `unobserved` ones were run by functions that
    nobody watched. `most` is, for each of the strategy's rules in order (one for `sequential`), how many
    calls ran at once within the rule's scope.
    """

    calls: int
    unlimited: int
    unobserved: int
    most: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Overlap:
    """Tools that ran beside a streaming model, in mean seconds of a completed loop.

    `seconds`: for how long a call ran while the model streamed. `saved_seconds`: how much sooner the
    rounds ended than if all calls had started at the end of the reply (negative where a limiter held
    them longer). `savable_seconds`: the same, had each call started once its arguments were complete.
    """

    seconds: float
    saved_seconds: float
    savable_seconds: float


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What was left out of the figures as warm-up, and what the figures would be with it.

    `loops` of the `due` ones, due in the first `seconds` of each block (of each of its trials). `p50`,
    `p95` and `p99` are seconds of completed loops, those that were left out among them.
    """

    loops: int
    due: int
    seconds: float
    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class Totals:
    """Everything that was recorded of one strategy, inside the windows or not.

    `failed` loops were not `good`; `incomplete` ones are some of them, and so are `cancelled` ones, but not
    those of a recording, which nobody cut off to end a test. A loop inside another's
    tool call does not count as a loop; its rounds, requests, calls and tokens do count. Three counts are of
    loops that were watched: calls that the model asked for and no watched tool ran, calls that could not be
    told apart, calls of watched tools that ran outside every loop. `unreadable` counts parts of replies that
    could not be understood, `server_tool_calls` the tools that the model's server ran itself, of which
    `untimed_server_tool_calls` have no times. Something came back to `heard_requests`, nothing at all to
    `unheard_requests`. `internal` loops, nested or not, were ended by a defect of ours. `causes` count why
    calls failed (`invalid_json (get_weather)`) and loops ended, the most frequent first.
    """

    loops: int
    failed: int
    cancelled: int
    rounds: int
    tool_calls: int
    tool_errors: int
    model_requests: int
    attempts: int
    tokens: Tokens
    incomplete: int = 0
    unobserved_calls: int = 0
    ambiguous_calls: int = 0
    orphan_calls: int = 0
    unreadable: int = 0
    server_tool_calls: int = 0
    untimed_server_tool_calls: int = 0
    heard_requests: int = 0
    unheard_requests: int = 0
    internal: int = 0
    causes: dict[str, int] = field(default_factory=dict)
    good: int = 0


@dataclass(frozen=True, slots=True)
class StrategySummary:
    """One strategy under one load.

    `loop_seconds`, `round_seconds`, `tool_phase_seconds` (rounds with calls) and `phases` are of
    completed loops; read them beside `failure_rate`, the share of due loops that were not good.
    `goodput` is the rate of loops that were good, and met the objective if there is one. `phases` are
    mean seconds per loop and sum to `mean_loop_seconds`. `objective_missed` says in words which terms of the
    objective are missed, and by what figure. `speed_up` is work / wall and `efficiency`
    critical path / wall of the tool phases. The warm-up was found to last `warm_up_loops` in a block;
    `left_out` says what that left out, None where there was none; `unclear_seconds` at the start of an only
    block may be one and were not left out. `steady` is None when the series is too
    short to tell. `memory_seconds` is over how long the level of latency is remembered
    (`quantiles.memory`), 0 where that is not seen; blocks not much longer are joined. `shortfalls` counts,
    by cause, the rounds whose calls overlapped less than the strategy allows. `client_parts` are how much
    of its figures is the client's own; `valid` is False where that is too much (`caveats`). `limit` is None
    unless the strategy's limit adapts, `overlap` unless replies with calls were streamed, `agent_calls`
    unless a user's own agent ran under a strategy with a limit. `backlog` is there where an open load was
    not served: latencies then say how long the windows were, and nothing about the system.
    """

    strategy: str
    loops: Loops
    loop_seconds: Quantiles
    round_seconds: Quantiles
    tool_phase_seconds: Quantiles
    tools: dict[str, ToolFigures]
    users: int
    blocks: int
    window_seconds: float
    throughput: Estimate
    goodput: Estimate
    failure_rate: Estimate
    attempts_per_request: Estimate
    mean_loop_seconds: float | None
    phases: dict[str, float]
    speed_up: Estimate
    efficiency: Estimate
    error_types: dict[str, int]
    tokens: Tokens
    warm_up_loops: int
    steady: bool | None
    totals: Totals
    objective_met: bool | None = None
    objective_missed: tuple[str, ...] = ()
    shortfalls: dict[str, int] = field(default_factory=dict)
    limit: MovingLimit | None = None
    overlap: Overlap | None = None
    agent_calls: AgentCalls | None = None
    backlog: Backlog | None = None
    memory_seconds: float = 0.0
    left_out: LeftOut | None = None
    unclear_seconds: float = 0.0
    client_parts: tuple[ClientPart, ...] = ()
    valid: bool = True


def figures(group: Measured, table: Table, objective: Objective | None = None) -> StrategySummary:
    """Every figure of one strategy. `objective_met` is None without an objective or without loops."""
    blocks, due = group.blocks, group.due
    ended = [block.ended for block in blocks]
    done = [completed(table, rows).size for rows in ended]
    answered = [completed(table, block.due) for block in blocks]
    every_answered = joined(answered)
    rounds = [members(table, loops, table.round_loop) for loops in answered]
    short = table.shortfall[joined(rounds)]
    seconds = [block.seconds for block in blocks]
    rated = group.strategy != RECORDED  # how often loops of a recording came was up to whoever wanted them
    mean, phases = _mean_phases(table, every_answered)
    latencies = [latency(table, loops) for loops in answered]
    loop_seconds = quantiles(latencies, _NS)
    remembered = memory(latencies)
    parts = independent([loops.size for loops in answered], remembered)
    failed = _failure_rate(table, blocks)
    missed = None
    if objective is not None and failed.value is not None:
        missed = objective.missed({name: loop_seconds[name].value for name in LEVELS}, failed.value)

    def ratio(above: Ints, below: Ints) -> Estimate:
        sums = [[float(column[loops].sum()) for loops in answered] for column in (above, below)]
        return _ratio_of_sums(sums[0], sums[1], parts)

    return StrategySummary(
        strategy=group.strategy,
        loops=Loops(
            completed=sum(done),
            failed=_count_failed(table, joined(ended)) - group.cancelled.size,
            per_second=sum(done) / sum(seconds) if sum(seconds) and rated else None,
            due=int(due.size),
            incomplete=_count_failed(table, every_answered),
            interrupted=sum(block.interrupted for block in blocks),
            cancelled=int(group.cancelled.size),
        ),
        loop_seconds=loop_seconds,
        round_seconds=quantiles([table.round_wall[rows] for rows in rounds], _NS),
        tool_phase_seconds=quantiles([present(table.tool_wall[rows]) for rows in rounds], _NS),
        tools=_tools(table, blocks),
        users=group.users,
        blocks=len(blocks),
        window_seconds=sum(seconds),
        throughput=_ratio_of_sums(done, seconds if rated else (), parts),
        goodput=_ratio_of_sums(
            [good_loops(table, block, objective) for block in blocks], seconds if rated else (), parts
        ),
        failure_rate=failed,
        attempts_per_request=ratio(table.attempts, table.requests),
        mean_loop_seconds=mean,
        phases=phases,
        speed_up=ratio(table.work, table.wall),
        efficiency=_efficiency(ratio(table.wall - table.critical, table.critical)),
        error_types=_count(table.error[np.setdiff1d(due, group.cancelled)], table.errors),
        tokens=_tokens(table, due),
        warm_up_loops=group.warm_up.skip,
        steady=group.warm_up.steady,
        totals=_totals(table, group),
        objective_met=None if missed is None else not missed,
        objective_missed=missed or (),
        shortfalls=_count(short, table.shortfalls),
        limit=_moving_limit(table, group.strategy, due) if group.spec.adapts else None,
        overlap=_overlap(table, every_answered),
        agent_calls=_agent_calls(table, group.spec),
        backlog=growing_backlog(group, table),
        memory_seconds=remembered * sum(seconds) / max(1, every_answered.size),
        left_out=_left_out(group, table),
        unclear_seconds=group.unclear_seconds,
        client_parts=tuple(client_parts(table, due)),
    )


def present(values: Ints) -> Ints:
    """Those that are not `NONE`."""
    kept: Ints = values[values != NONE]
    return kept


def good_loops(table: LoopColumns, block: Block, objective: Objective | None = None) -> int:
    """Good loops that ended inside the window, within the latency that the objective allows one loop."""
    keep = good(table, block.ended)
    if objective is not None and objective.limit_seconds is not None:
        keep &= latency(table, block.ended) < objective.limit_seconds / _NS
    return int(np.count_nonzero(keep))


def block_failures(table: LoopColumns, block: Block) -> tuple[int, int]:
    """(failed loops, loops) of those due in the window; loops that left no record have failed."""
    spared = block.cancelled.size
    return _count_failed(table, block.due) - spared + block.cut, block.due.size - spared + block.cut


def _left_out(group: Measured, table: Table) -> LeftOut | None:
    loops = joined([block.left_out for block in group.blocks])
    if not loops.size:
        return None
    every = joined([loops, group.due])
    seconds = latency(table, completed(table, every)) * _NS
    each = {name: quantile(seconds, p) for name, p in LEVELS.items()}
    return LeftOut(int(loops.size), int(every.size), group.warm_up_seconds, **each)


def _failure_rate(table: Table, blocks: Sequence[Block]) -> Estimate:
    """The share of due loops that failed."""
    return share([block_failures(table, block) for block in blocks])


def share(blocks: Sequence[tuple[int, int]]) -> Estimate:
    """The share of loops that, say, failed, from (how many of them did, loops) of each block.

    With a t-interval over blocks, kept inside 0 to 1. Where no block had a failure they all agree, and t
    gives an interval of no width; its upper end is then that of the rule of three: 3 / n is what no failure
    in n loops cannot rule out.
    """
    counts = [(failed, loops) for failed, loops in blocks if loops]
    loops = sum(loops for _, loops in counts)
    if not loops:
        return Estimate(None)
    value = sum(failed for failed, _ in counts) / loops
    if len(counts) < FEWEST_BLOCKS:
        return Estimate(value)
    half = spread([failed / loops for failed, loops in counts]).half
    return Estimate(value, max(0.0, value - half), min(1.0, max(value + half, 3.0 / loops)))


def _mean_phases(table: Table, loops: Indices) -> tuple[float | None, dict[str, float]]:
    """(mean seconds of a loop, mean seconds of each phase), the second summing to the first."""
    if not loops.size:
        return None, {}
    means = table.phases[loops].mean(axis=0) * _NS
    phases = {
        phase: float(value)
        for phase, value in zip(PHASES, means, strict=True)
        if value or phase not in SELDOM
    }
    wait = float((table.started[loops] - table.due[loops]).mean()) * _NS
    if wait:
        phases = {ARRIVAL_WAIT: wait, **phases}
    return float(latency(table, loops).mean()) * _NS, phases


def _ratio_of_sums(above: Sequence[float], below: Sequence[float], parts: Sequence[slice] | None) -> Estimate:
    """Σ above / Σ below, with an interval from the ratios of the joined blocks, if there are `parts`."""
    if not sum(below):
        return Estimate(None)
    joined_parts = [(float(sum(above[part])), float(sum(below[part]))) for part in parts or ()]
    return block_interval(float(sum(above)) / float(sum(below)), [a / b for a, b in joined_parts if b > 0])


def _efficiency(lost: Estimate) -> Estimate:
    """critical path / wall from (wall - critical path) / critical path, which cannot be negative.

    So its interval ends at 1 at most, which that of a ratio would not.
    """
    return Estimate(*(None if one is None else 1 / (1 + one) for one in (lost.value, lost.high, lost.low)))


def _tools(table: Table, blocks: Sequence[Block]) -> dict[str, ToolFigures]:
    of_block = [members(table, block.due, table.call_loop) for block in blocks]
    result: dict[str, ToolFigures] = {}
    for code in np.unique(table.call_tool[joined(of_block)]):
        calls = [rows[table.call_tool[rows] == code] for rows in of_block]
        every = joined(calls)
        errors, blocking = table.call_error[every], table.blocking[every]
        result[table.tools[code]] = ToolFigures(
            calls=int(every.size),
            errors=present(errors).size,
            seconds=quantiles([present(table.duration[rows]) for rows in calls], _NS),
            queue_seconds=quantiles([present(table.queue[rows]) for rows in calls], _NS),
            error_types=_count(errors, table.errors),
            blocking_seconds=float(blocking.max(initial=0)) * _NS,
            blocking_total_seconds=float(blocking.sum()) * _NS,
            blocking_calls=int(np.count_nonzero(blocking)),
            upper_bounds=int(table.call_bound[every].sum()),
        )
    return dict(sorted(result.items()))


def _moving_limit(table: Table, strategy: str, loops: Indices) -> MovingLimit | None:
    line = limit_line(table, strategy)
    totals = line.totals[flagged(table, loops)[table.round_loop[line.rounds]]]
    return MovingLimit(int(totals.min()), int(totals.max()), int(totals[-1])) if totals.size else None


def _agent_calls(table: Table, spec: StrategySpec) -> AgentCalls | None:
    loops = np.flatnonzero((table.strategy == _code(table, spec.text)) & (table.unlimited != NONE))
    if not loops.size:
        return None
    mine = np.flatnonzero(flagged(table, loops)[table.call_loop] & (table.duration != NONE))
    loop, tool = table.call_loop[mine], table.call_tool[mine]
    began = table.queued[mine] + np.maximum(0, table.queue[mine])
    ended = began + table.duration[mine]
    most = []
    for rule in spec.rules or (None,):
        if rule is None:  # sequential: one loop's calls in turn
            kept, scope = np.ones(mine.size, dtype=bool), loop.astype(np.int64)
        else:
            kept = np.ones(mine.size, dtype=bool)
            if rule.tool is not None:
                kept = tool == (table.tools.index(rule.tool) if rule.tool in table.tools else NONE)
            names, server = table.server_names, table.call_server[mine].astype(np.int64)
            if rule.server is not None:
                kept = server == names.index(rule.server) if rule.server in names else np.zeros_like(kept)
            elif rule.scope == "server":
                kept = server != NONE
            inner = {"process": 0, "agent": table.agent[loop], "tool": tool, "server": server}[rule.scope]
            codes = 1 + len(table.tools) + len(names) + table.agent.max(initial=0)
            scope = table.process[loop] * codes + inner
        most.append(_most_at_once(began[kept], ended[kept], scope[kept]))
    unobserved = int(table.unobserved[loops].sum())
    return AgentCalls(
        calls=int(np.count_nonzero(flagged(table, loops)[table.call_loop])) + unobserved,
        unlimited=int(table.unlimited[loops].sum()),
        unobserved=unobserved,
        most=tuple(most),
    )


def _most_at_once(began: Ints, ended: Ints, scope: Ints) -> int:
    """The largest number of spans of one scope that share an instant."""
    highest = 0
    for one in np.unique(scope):
        mine = scope == one
        times = np.concatenate([began[mine], ended[mine]])
        steps = np.repeat([1, -1], np.count_nonzero(mine))
        running = np.cumsum(steps[np.lexsort((steps, times))])  # what ends at a time has left before it
        highest = max(highest, int(running.max(initial=0)))
    return highest


def _overlap(table: Table, loops: Indices) -> Overlap | None:
    found = (table.overlapped[loops], table.saved[loops], table.savable[loops])
    if not any(column.any() for column in found):
        return None
    return Overlap(*(float(column.mean()) * _NS for column in found))


def _totals(table: Table, group: Measured) -> Totals:
    ran = table.strategy == _code(table, group.strategy)
    calls = ran[table.call_loop]
    internal = table.errors.index(INTERNAL) if INTERNAL in table.errors else NONE - 1
    loops = ran & (table.nested == 0)
    failed = loops & (table.good == 0) & ~flagged(table, group.cancelled)
    return Totals(
        loops=int(np.count_nonzero(loops)),
        failed=int(np.count_nonzero(failed)),
        cancelled=int(np.count_nonzero(loops & (table.status == CANCELLED))),
        incomplete=int(np.count_nonzero(failed & (table.status == OK))),
        rounds=int(np.count_nonzero(ran[table.round_loop])),
        tool_calls=int(np.count_nonzero(calls)),
        tool_errors=int(np.count_nonzero(calls & (table.call_error != NONE))),
        model_requests=int(table.requests[ran].sum()),
        attempts=int(table.attempts[ran].sum()),
        tokens=_tokens(table, np.flatnonzero(ran)),
        unobserved_calls=int(table.unobserved[ran].sum()),
        ambiguous_calls=int(table.ambiguous[ran].sum()),
        orphan_calls=int(table.orphans[ran].sum()),
        unreadable=int(table.unreadable[ran].sum()),
        server_tool_calls=int(table.server_tools[ran].sum()),
        untimed_server_tool_calls=int(table.untimed_server_tools[ran].sum()),
        heard_requests=int(table.heard[ran].sum()),
        unheard_requests=int(table.unheard[ran].sum()),
        internal=int(np.count_nonzero(ran & (table.error == internal))),
        causes=_causes(table, calls, failed),
        good=int(np.count_nonzero(loops & (table.good == 1))),
    )


MOST_CAUSES = 50
"""Names of tools are part of them, and a model may invent a new one in every call."""


def _causes(table: Table, calls: Any, loops: Any) -> dict[str, int]:
    """Why calls failed and loops ended, of the rows of these masks, the most frequent first."""
    found: Counter[str] = Counter(_count(table.error[loops], table.errors))
    del found["incomplete"]  # what made it so is among the calls
    failed = calls & (table.call_error != NONE)
    of_calls = Counter(zip(table.call_error[failed].tolist(), table.call_tool[failed].tolist(), strict=True))
    for (error, tool), count in of_calls.items():
        found[f"{table.errors[error]} ({table.tools[tool]})"] += count
    return dict(found.most_common(MOST_CAUSES))


def _code(table: Table, strategy: str) -> int:
    return table.strategies.index(strategy) if strategy in table.strategies else NONE


def _tokens(table: Table, loops: Indices) -> Tokens:
    def known(column: Ints) -> int | None:
        told = present(column[loops])
        return int(told.sum()) if told.size else None

    return Tokens(
        int(table.input_tokens[loops].sum()),
        int(table.output_tokens[loops].sum()),
        known(table.cached_tokens),
        known(table.cache_written_tokens),
        known(table.reasoning_tokens),
        int(table.replies[loops].sum()),
        int(table.unknown_replies[loops].sum()),
    )


def _count_failed(table: LoopColumns, loops: Indices) -> int:
    return int(np.count_nonzero(~good(table, loops)))


def _count(codes: Ints, texts: list[str]) -> dict[str, int]:
    """How often each text occurs in a column of codes, the most frequent first."""
    return {texts[code]: count for code, count in Counter(present(codes).tolist()).most_common()}


@dataclass(frozen=True, slots=True)
class LimitLine:
    """The limit in force at the beginning of each tool phase of a strategy whose limit adapts, by time.

    Each process has a limiter of its own: `limits` are those of the process whose phase it is, `totals`
    those of all processes together. `times` are nanoseconds, `rounds` rows of the table.
    """

    times: Ints
    limits: Ints
    totals: Ints
    rounds: Ints


def limit_line(table: Table, strategy: str) -> LimitLine:
    """The limits over time; empty for a strategy that sets none."""
    known = (table.limit != NONE) & (table.tools_started != NONE)
    rounds = np.flatnonzero(known & (table.strategy[table.round_loop] == _code(table, strategy)))
    rounds = rounds[np.argsort(table.tools_started[rounds], kind="stable")]
    limits = table.limit[rounds].astype(np.int64)
    processes = table.process[table.round_loop[rounds]]
    # A process is taken to have had the first limit that is known of it from the beginning.
    changes, first = np.zeros_like(limits), 0
    for process in np.unique(processes):
        mine = np.flatnonzero(processes == process)
        first += int(limits[mine[0]])
        changes[mine[1:]] = np.diff(limits[mine])
    return LimitLine(table.tools_started[rounds], limits, first + np.cumsum(changes), rounds)
