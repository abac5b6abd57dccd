"""The figures of one strategy, over the loops that count."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from profiler.anatomy import PHASES
from profiler.statistics.objectives import Objective
from profiler.statistics.quantiles import (
    FEWEST_BLOCKS,
    Estimate,
    Quantiles,
    block_interval,
    quantiles,
    student,
)
from profiler.statistics.table import CANCELLED, NONE, OK, Ints, Table
from profiler.statistics.windows import Block, Indices, Measured, completed, good, latency

ARRIVAL_WAIT = "arrival_wait"
"""The phase before a loop of an open load starts: from when it was due."""

_NS = 1e-9


@dataclass(frozen=True, slots=True)
class Loops:
    """Loops of the windows.

    `completed` (they came to an answer), `failed` (they were not good, see `LoopRecord.good`) and
    `per_second` (of completed ones) are of loops that ended inside; `due` of loops that were due inside,
    `incomplete` those of them that came to an answer although a call had failed, `interrupted` those cut
    off after the drain.
    """

    completed: int
    failed: int
    per_second: float | None
    due: int = 0
    incomplete: int = 0
    interrupted: int = 0


@dataclass(frozen=True, slots=True)
class Tool:
    """Calls of one tool in the loops that were due inside the windows.

    `seconds` is of the calls that ran, `queue_seconds` of all. `blocking_seconds` is the longest
    that one call held the event loop (0 for tools that never did), `blocking_total_seconds` their sum,
    `blocking_calls` how many did.
    """

    calls: int
    errors: int
    seconds: Quantiles
    queue_seconds: Quantiles
    error_types: dict[str, int]
    blocking_seconds: float = 0.0
    blocking_total_seconds: float = 0.0
    blocking_calls: int = 0


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens as the provider reported them."""

    input: int
    output: int


@dataclass(frozen=True, slots=True)
class MovingLimit:
    """A limit that adapts, of all processes together: its range in the windows, and where it was last."""

    low: int
    high: int
    last: int


@dataclass(frozen=True, slots=True)
class Overlap:
    """Tools beside the model that streams, in mean seconds of a completed loop.

    `seconds`: a call ran while the model streamed. `saved_seconds`: how much sooner the rounds ended
    than if all calls had started at the end of the reply (negative where a limiter held them longer),
    `savable_seconds`: than if each had started as soon as its arguments were complete.
    """

    seconds: float
    saved_seconds: float
    savable_seconds: float


@dataclass(frozen=True, slots=True)
class Totals:
    """Everything that was recorded of one strategy, whatever the windows.

    `failed` loops were not good; `cancelled` and `incomplete` are some of them. Loops inside another's tool
    call are not counted, their rounds, requests, calls and tokens are.
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


@dataclass(frozen=True, slots=True)
class StrategySummary:
    """One strategy under one load.

    `loop_seconds`, `round_seconds`, `tool_phase_seconds` (rounds with calls) and `phases` are of
    completed loops; read them beside `failure_rate`, the share of due loops that were not good.
    `goodput` is those that were, and met the objective if there is one, per second. `phases` are mean
    seconds per loop and sum to `mean_loop_seconds`. `speed_up` is work / wall and `efficiency` critical
    path / wall of the tool phases. `warm_up_loops` were left out of each block; `steady` is None when
    the series is too short to tell. `shortfalls` counts the rounds whose calls overlapped less than the
    strategy allows, by cause. `limit` is None unless the strategy's limit moves, `overlap` unless
    replies with calls were streamed.
    """

    strategy: str
    loops: Loops
    loop_seconds: Quantiles
    round_seconds: Quantiles
    tool_phase_seconds: Quantiles
    tools: dict[str, Tool]
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
    shortfalls: dict[str, int] = field(default_factory=dict)
    limit: MovingLimit | None = None
    overlap: Overlap | None = None


def figures(group: Measured, table: Table, objective: Objective | None = None) -> StrategySummary:
    """Every figure of one strategy. `objective_met` is None without an objective or without loops."""
    blocks = group.blocks
    limit_ns = limit(objective)
    due = _concatenate([block.due for block in blocks])
    ended = _concatenate([block.ended for block in blocks])
    finished = [completed(table, block.due) for block in blocks]
    everything = _concatenate(finished)
    seconds = sum(block.seconds for block in blocks)
    statuses = table.status[ended]
    done = int(np.count_nonzero(statuses == OK))
    in_rounds = [_members(table, loops, table.round_loop) for loops in finished]
    walls = [table.tool_wall[rounds] for rounds in in_rounds]
    short = table.shortfall[_concatenate(in_rounds)]
    mean, phases = mean_phases(table, everything)
    failures = table.error[due]
    loop_seconds = quantiles([latency(table, loops) for loops in finished], _NS)
    failed = failure_rate(table, blocks)
    return StrategySummary(
        strategy=group.strategy,
        loops=Loops(
            completed=done,
            failed=int(np.count_nonzero(~good(table, ended))),
            per_second=done / seconds if seconds else None,
            due=int(due.size),
            incomplete=int(np.count_nonzero(~good(table, everything))),
            interrupted=sum(block.interrupted for block in blocks),
        ),
        loop_seconds=loop_seconds,
        round_seconds=quantiles([table.round_wall[rounds] for rounds in in_rounds], _NS),
        tool_phase_seconds=quantiles([wall[wall != NONE] for wall in walls], _NS),
        tools=_tools(table, blocks),
        users=group.users,
        blocks=len(blocks),
        window_seconds=seconds,
        throughput=ratio_of_sums(
            [float(np.count_nonzero(table.status[b.ended] == OK)) for b in blocks],
            [b.seconds for b in blocks],
        ),
        goodput=ratio_of_sums(
            [float(good_loops(table, b, limit_ns)) for b in blocks], [b.seconds for b in blocks]
        ),
        failure_rate=failed,
        attempts_per_request=ratio_of_sums(*_sums(table, blocks, table.attempts, table.requests)),
        mean_loop_seconds=mean,
        phases=phases,
        speed_up=ratio_of_sums(*_sums(table, blocks, table.work, table.wall)),
        efficiency=ratio_of_sums(*_sums(table, blocks, table.critical, table.wall)),
        error_types=_count(failures[failures != NONE], table.errors),
        tokens=Tokens(int(table.input_tokens[due].sum()), int(table.output_tokens[due].sum())),
        warm_up_loops=group.warm_up.skip,
        steady=group.warm_up.steady,
        totals=_totals(table, group.strategy),
        objective_met=met(objective, loop_seconds, failed),
        shortfalls=_count(short[short != NONE], table.shortfalls),
        limit=_moving_limit(table, group.strategy, due) if group.spec.adapts else None,
        overlap=_overlap(table, everything),
    )


def limit(objective: Objective | None) -> float | None:
    """Nanoseconds that one loop may take under the objective."""
    seconds = None if objective is None else objective.limit_seconds
    return None if seconds is None else seconds / _NS


def met(objective: Objective | None, latencies: Quantiles, failed: Estimate) -> bool | None:
    """Whether the measured figures meet the objective (the figures themselves, not their intervals)."""
    if objective is None or failed.value is None:
        return None
    if objective.errors is not None and failed.value >= objective.errors:
        return False
    for name, seconds in objective.latency.items():
        value = latencies[name].value
        if value is None or value >= seconds:
            return False
    return True


def good_loops(table: Table, block: Block, limit_ns: float | None = None) -> int:
    """Good loops that ended inside the window, of a latency below `limit_ns`."""
    keep = good(table, block.ended)
    if limit_ns is not None:
        keep &= latency(table, block.ended) < limit_ns
    return int(np.count_nonzero(keep))


def block_failures(table: Table, block: Block) -> tuple[int, int]:
    """(failed loops, loops) of those due in the window; what left no record has failed."""
    loops = block.due.size + block.cut
    return loops - int(np.count_nonzero(good(table, block.due))), loops


def failure_rate(table: Table, blocks: tuple[Block, ...]) -> Estimate:
    """The share of due loops that failed, with a t-interval over blocks, kept inside 0 to 1.

    Blocks without a failure all agree; the interval then is no wider than the rule of three says.
    """
    counts = [block_failures(table, block) for block in blocks]
    counts = [(failed, loops) for failed, loops in counts if loops]
    loops = sum(count[1] for count in counts)
    if not loops:
        return Estimate(None)
    value = sum(count[0] for count in counts) / loops
    if len(counts) < FEWEST_BLOCKS:
        return Estimate(value)
    rates = np.array([failed / loops for failed, loops in counts])
    half = student(0.95, len(counts) - 1) * float(rates.std(ddof=1)) / len(counts) ** 0.5
    floor = 3.0 / loops  # rule of three: what no failure in `loops` cannot rule out
    return Estimate(
        value,
        max(0.0, value - half),
        min(1.0, max(value + half, floor)),
    )


def mean_phases(table: Table, loops: Indices) -> tuple[float | None, dict[str, float]]:
    """(mean seconds of a loop, mean seconds of each phase), the second summing to the first."""
    if not loops.size:
        return None, {}
    means = table.phases[loops].mean(axis=0) * _NS
    phases = {phase: float(value) for phase, value in zip(PHASES, means, strict=True)}
    wait = float((table.started[loops] - table.due[loops]).mean()) * _NS
    if wait:
        phases = {ARRIVAL_WAIT: wait, **phases}
    return float(latency(table, loops).mean()) * _NS, phases


def ratio_of_sums(above: list[float], below: list[float]) -> Estimate:
    """Σ above / Σ below, with an interval from the ratios of the blocks."""
    pairs = [(a, b) for a, b in zip(above, below, strict=True) if b > 0]
    if not pairs:
        return Estimate(None)
    value = sum(a for a, _ in pairs) / sum(b for _, b in pairs)
    return block_interval(value, [a / b for a, b in pairs])


def _sums(
    table: Table, blocks: tuple[Block, ...], above: Ints, below: Ints
) -> tuple[list[float], list[float]]:
    loops = [completed(table, block.due) for block in blocks]
    return [float(above[chosen].sum()) for chosen in loops], [float(below[chosen].sum()) for chosen in loops]


def _tools(table: Table, blocks: tuple[Block, ...]) -> dict[str, Tool]:
    of_block = [_members(table, block.due, table.call_loop) for block in blocks]
    calls = _concatenate(of_block)
    result: dict[str, Tool] = {}
    for code in np.unique(table.call_tool[calls]):
        chosen = [members[table.call_tool[members] == code] for members in of_block]
        every = _concatenate(chosen)
        errors = table.call_error[every]
        durations = [table.duration[members] for members in chosen]
        result[table.tools[code]] = Tool(
            calls=int(every.size),
            errors=int(np.count_nonzero(errors != NONE)),
            seconds=quantiles([values[values != NONE] for values in durations], _NS),
            queue_seconds=quantiles([table.queue[members] for members in chosen], _NS),
            error_types=_count(errors[errors != NONE], table.errors),
            blocking_seconds=float(table.blocking[every].max(initial=0)) * _NS,
            blocking_total_seconds=float(table.blocking[every].sum()) * _NS,
            blocking_calls=int(np.count_nonzero(table.blocking[every])),
        )
    return dict(sorted(result.items()))


def _moving_limit(table: Table, strategy: str, loops: Indices) -> MovingLimit | None:
    line = limit_line(table, strategy)
    chosen = np.zeros(table.trial.size, dtype=bool)
    chosen[loops] = True
    totals = line.totals[chosen[table.round_loop[line.rounds]]]
    return MovingLimit(int(totals.min()), int(totals.max()), int(totals[-1])) if totals.size else None


def _overlap(table: Table, loops: Indices) -> Overlap | None:
    found = (table.overlapped[loops], table.saved[loops], table.savable[loops])
    if not any(column.any() for column in found):
        return None
    return Overlap(*(float(column.mean()) * _NS for column in found))


def _totals(table: Table, strategy: str) -> Totals:
    code = table.strategies.index(strategy) if strategy in table.strategies else NONE
    chosen = table.strategy == code
    calls = chosen[table.call_loop]
    own = chosen & (table.nested == 0)
    failed = own & (table.good == 0)
    return Totals(
        loops=int(np.count_nonzero(own)),
        failed=int(np.count_nonzero(failed)),
        cancelled=int(np.count_nonzero(own & (table.status == CANCELLED))),
        incomplete=int(np.count_nonzero(failed & (table.status == OK))),
        rounds=int(np.count_nonzero(chosen[table.round_loop])),
        tool_calls=int(np.count_nonzero(calls)),
        tool_errors=int(np.count_nonzero(calls & (table.call_error != NONE))),
        model_requests=int(table.requests[chosen].sum()),
        attempts=int(table.attempts[chosen].sum()),
        tokens=Tokens(int(table.input_tokens[chosen].sum()), int(table.output_tokens[chosen].sum())),
    )


def _members(table: Table, loops: Indices, owner: Ints) -> Indices:
    """Indices of the rounds or calls whose owner is one of these loops."""
    chosen = np.zeros(table.trial.size, dtype=bool)
    chosen[loops] = True
    return np.flatnonzero(chosen[owner])


def _count(codes: Ints, texts: list[str]) -> dict[str, int]:
    return {texts[code]: count for code, count in Counter(codes.tolist()).most_common()}


def _concatenate(parts: list[Indices]) -> Indices:
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.intp)


# The limit of a strategy whose limit moves, over time.


@dataclass(frozen=True, slots=True)
class LimitLine:
    """The limit in force at the beginning of each tool phase of a strategy, in order of time.

    `limits` are those of the process in question, `totals` those of all processes together, since
    each has a limiter of its own. `rounds` are rows of the table.
    """

    times: Ints
    limits: Ints
    totals: Ints
    rounds: Ints


def limit_line(table: Table, strategy: str) -> LimitLine:
    """Empty for a strategy that sets no limit."""
    code = table.strategies.index(strategy) if strategy in table.strategies else NONE
    known = (table.limit != NONE) & (table.tools_started != NONE)
    rounds = np.flatnonzero(known & (table.strategy[table.round_loop] == code))
    rounds = rounds[np.argsort(table.tools_started[rounds], kind="stable")]
    limits = table.limit[rounds].astype(np.int64)
    processes = table.process[table.round_loop[rounds]]
    # What each process has before it is first heard of is what it says then.
    changes, first = np.zeros_like(limits), 0
    for process in np.unique(processes):
        mine = np.flatnonzero(processes == process)
        first += int(limits[mine[0]])
        changes[mine[1:]] = np.diff(limits[mine])
    return LimitLine(table.tools_started[rounds], limits, first + np.cumsum(changes), rounds)
