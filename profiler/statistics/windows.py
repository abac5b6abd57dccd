"""Which loops count: the windows of the trials, applied to the table of records.

Throughput counts the loops that *ended* inside a window. Latency is that of the loops that were *due*
inside it (they started, or in an open load were meant to start); those still running at its end are
waited for. Neither counts the warm-up of the system. A recording has no trials: slices of its time serve as
blocks, where it holds enough loops (`slices`). Of a load without a model nothing is left out: a queue
that grows from the first call on looks like a warm-up, and is what such a load is to show.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from profiler.records import NO_MODEL, RECORDED
from profiler.rundir import Run, Trial
from profiler.statistics.quantiles import FEWEST_BLOCKS, FEWEST_PER_BLOCK, Floats
from profiler.statistics.table import CANCELLED, OK, Ints, Table
from profiler.strategies import StrategySpec

Indices = NDArray[np.intp]

_NO_ROWS: Indices = np.empty(0, dtype=np.intp)


@dataclass(frozen=True, slots=True)
class Block:
    """One strategy in one block. `due` and `ended` are rows of loops in the table.

    `seconds` is the length of the window after the warm-up; `left_out` are the loops that were due before
    it opened. `interrupted` loops were cut off after the drain; `cut` counts the loops that left no
    record: some of those, and arrivals that never started. `windows` are start and end of each trial's part
    (monotonic ns). `cancelled` are those of the `due` ones that count neither as failed nor as good: of a
    recording, which a person or a program stopped for reasons of their own.
    """

    number: int
    seconds: float
    due: Indices
    ended: Indices
    interrupted: int
    cut: int
    left_out: Indices = field(default_factory=lambda: _NO_ROWS)
    windows: tuple[tuple[int, int], ...] = ()
    cancelled: Indices = field(default_factory=lambda: _NO_ROWS)


@dataclass(frozen=True, slots=True)
class Measured:
    """One strategy under one load: its blocks, and the warm-up left out of each.

    The warm-up is found in loops and left out by time, in `seconds` from the start of each trial: what
    warms up does so by the clock, and as many loops take another time where arrivals are random.
    `unclear_seconds` is how long the start of an only block differs from the rest without being left out,
    since it may be a stall. `rate` is how many loops a second an open load asked for, None in a closed one.
    """

    spec: StrategySpec
    users: int
    blocks: tuple[Block, ...]
    warm_up: WarmUp
    warm_up_seconds: float = 0.0
    unclear_seconds: float = 0.0
    rate: float | None = None

    @property
    def strategy(self) -> str:
        """Its name in records and figures."""
        return self.spec.text

    @property
    def due(self) -> Indices:
        """The loops that were due in any of the blocks."""
        return joined([block.due for block in self.blocks])

    @property
    def cancelled(self) -> Indices:
        """Those of them that count neither as failed nor as good."""
        return joined([block.cancelled for block in self.blocks])


class LoopColumns(Protocol):
    """The columns of a `Table` that windows go by: a row per loop, in any order."""

    @property
    def trial(self) -> Ints: ...

    @property
    def due(self) -> Ints: ...

    @property
    def ended(self) -> Ints: ...

    @property
    def status(self) -> Ints: ...

    @property
    def good(self) -> Ints: ...


def measure(run: Run, table: Table) -> list[Measured]:
    """Every strategy under every load of the run, ordered by load, then as in `run.strategies`.

    A recorded run is one, without a load.
    """
    if run.recording is not None:
        return slices(table)
    groups: dict[tuple[int, str], list[Trial]] = {}
    for trial in run.trials:
        groups.setdefault((trial.users, trial.strategy), []).append(trial)
    rank = {strategy.text: number for number, strategy in enumerate(run.strategies)}
    order = sorted(groups, key=lambda key: (key[0], rank.get(key[1], len(rank))))
    loops_of = _loops_by_trial(table)
    measured = (
        measure_strategy(
            run.strategy(strategy),
            users,
            groups[users, strategy],
            table,
            loops_of=loops_of,
            whole=run.provider == NO_MODEL,
            arrivals=run.provider == NO_MODEL and run.load.model == "open",
        )
        for users, strategy in order
    )
    return [replace(group, rate=run.load.rate_of(group.users)) for group in measured]


MOST_SLICES = 12
"""Slices that a recording is cut into: they can be joined to 6, 4 or 3 of equal size."""


def slices(table: Table) -> list[Measured]:
    """A recording as what was measured: slices of time, one after another, with as many loops each.

    There is one slice where there are not enough loops for `FEWEST_BLOCKS`, each with as many as a median
    takes. Loops inside tool calls of others are part of those; where there are only such, they count.
    """
    loops = np.flatnonzero(table.nested == 0)
    loops = loops if loops.size else np.arange(table.nested.size)
    if not loops.size:
        return []
    loops = loops[np.argsort(table.due[loops], kind="stable")]
    count = min(MOST_SLICES, loops.size // FEWEST_PER_BLOCK["p50"])
    parts = np.array_split(loops, count if count >= FEWEST_BLOCKS else 1)
    begins = [int(table.due[part[0]]) for part in parts]
    ends = [*begins[1:], max(int(table.ended[loops].max()), begins[-1])]
    blocks = tuple(
        Block(
            number,
            (end - begin) / 1e9,
            part,
            part,
            0,
            0,
            windows=((begin, end),),
            cancelled=cancelled(table, part),
        )
        for number, (part, begin, end) in enumerate(zip(parts, begins, ends, strict=True))
    )
    return [Measured(StrategySpec.recorded(RECORDED), 0, blocks, WarmUp(0, None))]


def by_load(measured: Iterable[Measured]) -> dict[int, list[Measured]]:
    """The same by the number of agents."""
    levels: dict[int, list[Measured]] = {}
    for group in measured:
        levels.setdefault(group.users, []).append(group)
    return levels


def joined(rows: Sequence[Indices]) -> Indices:
    """Rows of several blocks as one array."""
    return np.concatenate(rows) if rows else _NO_ROWS


def flagged(table: LoopColumns, loops: Indices) -> NDArray[np.bool_]:
    """For each loop of the table, whether it is one of these."""
    flags = np.zeros(table.trial.size, dtype=bool)
    flags[loops] = True
    return flags


def members(table: LoopColumns, loops: Indices, owner: Ints) -> Indices:
    """Rows of the rounds or calls that belong to these loops; `owner` is `round_loop` or `call_loop`."""
    return np.flatnonzero(flagged(table, loops)[owner])


def good(table: LoopColumns, loops: Indices) -> NDArray[np.bool_]:
    """Which of these loops were good (`LoopRecord.good`)."""
    result: NDArray[np.bool_] = table.good[loops] == 1
    return result


def completed(table: LoopColumns, loops: Indices) -> Indices:
    """The loops that came to an answer, whether or not every call succeeded."""
    result: Indices = loops[table.status[loops] == OK]
    return result


def cancelled(table: LoopColumns, loops: Indices) -> Indices:
    """The loops that were stopped before they came to an end of their own."""
    result: Indices = loops[table.status[loops] == CANCELLED]
    return result


def latency(table: LoopColumns, loops: Indices) -> Ints:
    """Nanoseconds from when each loop was due to its end."""
    return table.ended[loops] - table.due[loops]


def measure_strategy(
    strategy: StrategySpec,
    users: int,
    trials: Sequence[Trial],
    table: LoopColumns,
    *,
    loops_of: dict[int, Indices] | None = None,
    whole: bool = False,
    arrivals: bool = False,
) -> Measured:
    """One strategy under one load, from its trials; `loops_of`: the rows of each trial, where they are known.

    With `whole` no warm-up is looked for; with `arrivals` every loop that arrived was due in the window.

    A worker's trial begins a moment before the leader's window, and may end a moment after it.
    """
    loops_of = _loops_by_trial(table) if loops_of is None else loops_of
    inside: list[Indices] = []
    before: list[Floats] = []
    for trial in trials:
        loops = loops_of.get(trial.index, _NO_ROWS)
        loops = loops[np.argsort(table.due[loops], kind="stable")]
        due = table.due[loops]
        inside.append(loops if arrivals else loops[(due >= trial.started_ns) & (due < trial.ended_ns)])
        # While users are spawned the load still grows: the later half of these loops is nearly all of it.
        spawned = completed(table, loops[due < trial.started_ns])
        before.append(latency(table, spawned[spawned.size // 2 :]).astype(float))
    finished = [completed(table, loops) for loops in inside]
    warm_up = WarmUp(0, None)
    if not whole:
        warm_up = of_blocks([latency(table, loops).astype(float) for loops in finished], before)
    dues = [table.due[loops] for loops in finished]
    opening, unclear = (_opening(loops, trials, dues) for loops in (warm_up.skip, warm_up.unclear))
    by_block: dict[int, list[Block]] = {}
    for trial, due_inside, answered in zip(trials, inside, finished, strict=True):
        loops = loops_of.get(trial.index, _NO_ROWS)
        start = trial.started_ns + opening
        if not np.any(table.due[answered] >= start):  # a trial as short as the warm-up keeps what it has
            start = trial.started_ns
        late = table.due[due_inside] >= (0 if arrivals else start)
        kept = due_inside[late]
        ended = table.ended[loops]
        # Most loops that were cut off left a record, as cancelled; the others were only counted.
        told = cancelled(table, loops).size
        block = Block(
            number=trial.block,
            seconds=max(0, trial.ended_ns - start) / 1e9,
            due=kept,
            ended=loops[(ended >= start) & (ended < trial.ended_ns)],
            interrupted=max(trial.interrupted, told),
            cut=max(0, trial.interrupted - told) + trial.dropped,
            left_out=due_inside[~late],
            windows=((start, trial.ended_ns),),
        )
        by_block.setdefault(trial.block, []).append(block)
    blocks = tuple(_join(by_block[number]) for number in sorted(by_block))
    return Measured(strategy, users, blocks, warm_up, opening / 1e9, unclear / 1e9)


def _opening(skip: int, trials: Sequence[Trial], due: Sequence[Ints]) -> int:
    """Nanoseconds from the start of a trial to when its first `skip` loops have begun, typically."""
    if not skip:
        return 0
    waits = [
        int(times[skip]) - trial.started_ns
        for trial, times in zip(trials, due, strict=True)
        if skip < times.size
    ]
    return int(np.median(waits)) if waits else 0


def _join(parts: list[Block]) -> Block:
    """The trials of one strategy in one block, as one block."""
    return Block(
        number=parts[0].number,
        seconds=sum(part.seconds for part in parts),
        due=joined([part.due for part in parts]),
        ended=joined([part.ended for part in parts]),
        interrupted=sum(part.interrupted for part in parts),
        cut=sum(part.cut for part in parts),
        left_out=joined([part.left_out for part in parts]),
        windows=tuple(window for part in parts for window in part.windows),
    )


def _loops_by_trial(table: LoopColumns) -> dict[int, Indices]:
    order = np.argsort(table.trial, kind="stable")
    numbers, starts = np.unique(table.trial[order], return_index=True)
    # Not strict: of an empty table np.split makes one empty part.
    return {int(number): loops for number, loops in zip(numbers, np.split(order, starts[1:]), strict=False)}


# Where a series settles, so that the warm-up before it can be left out.
#
# MSER-5 (White 1997; White, Cobb & Spratt 2000): take the means z of batches of five and drop the first
# d of them, where d minimises the squared standard error of the mean of the rest,
#
#     sum((z_i - mean(z_d...))^2, i >= d) / (n - d)^2,    d <= n / 2.
#
# A minimum at the end of the range searched means that the series reached no steady state.

BATCH = 5
FEWEST_BATCHES = 20


@dataclass(frozen=True, slots=True)
class WarmUp:
    """The first `skip` samples are the warm-up; `steady` is None when the series is too short to tell.

    `unclear` samples at the start of an only block differ from the rest, but vary so much that it may be a
    stall as well: they are not left out.
    """

    skip: int
    steady: bool | None
    unclear: int = 0


def mser5(series: Floats) -> WarmUp:
    """The warm-up of a series of samples in the order of time.

    With fewer than `FEWEST_BATCHES` whole batches nothing is skipped and nothing is claimed: one in six
    stationary series of 10 batches would be called unsteady, one in twenty of 20 batches. Without a
    steady state nothing is skipped either, since no part of the series represents the system.
    """
    count = series.size // BATCH
    if count < FEWEST_BATCHES:
        return WarmUp(0, None)
    z = series[: count * BATCH].reshape(count, BATCH).mean(axis=1)
    # Sums over the tail z[d:] for every d at once, about the overall mean for numerical accuracy.
    centred = z - z.mean()
    left = count - np.arange(count)
    total = np.cumsum(centred[::-1])[::-1]
    squares = np.cumsum((centred**2)[::-1])[::-1]
    statistic = (squares - total**2 / left) / left**2
    last = count // 2
    best = int(np.argmin(statistic[: last + 1]))
    if best >= last - max(1, count // 50):  # "at the end", give or take a batch or 2 %
        return WarmUp(0, False)
    return WarmUp(best * BATCH, True)


# MSER-5 alone takes a hump that follows normal loops, such as a server that stands still for a while,
# for a warm-up: leaving it out makes what is left more even. So it may only propose. What is left out
# must begin with the load, ends where the latencies first come back to the level of the rest, and shows
# in most blocks. An only block has no others to agree with. There its first loops, one by one, must not be
# normal ones, and where single loops vary too much for that nothing is left out.

WINDOW = 3
"""Batches whose mean is held against the level of the rest."""
SEEN = 4.0
"""Standard deviations of such a mean by which the first one must differ from the level."""
LEAST = 0.1
"""A smaller difference, in logarithms, is no warm-up."""
RETURNED = 0.05
"""The share of the first difference below which latencies are back at the level."""
ALIKE = 1 / 2
"""The share of the largest difference that a block must have to show the warm-up too."""
UNLIKELY = 2.0
"""The log-likelihood by which first loops must speak for the level of the rest to be normal ones."""
LOWEST = 0.005
"""The share of an only block's loops so low that, moved to the height of a hump, none should be as low."""
FEWEST_NORMAL = 1 / 4
"""The share of an only block's loops that must be lower than that for normal ones to be known by it."""


def of_blocks(blocks: Sequence[Floats], before: Sequence[Floats] = ()) -> WarmUp:
    """One warm-up for the blocks of a strategy, from positive series aligned at their starts.

    The logarithms of the k-th samples of all blocks are averaged first (Welch's method), so that one
    slow loop in one block is not taken for a warm-up. Blocks shorter than half the median are ignored.
    `before` may hold, for each block, samples of the same load from just before it: what those do not
    show did not begin with the load.
    """
    sizes = [block.size for block in blocks if block.size]
    if not sizes:
        return WarmUp(0, None)
    enough = [place for place, block in enumerate(blocks) if block.size * 2 >= float(np.median(sizes))]
    shortest = min(blocks[place].size for place in enough)
    logs = np.log(np.maximum(np.stack([blocks[place][:shortest] for place in enough]), 1.0))
    proposed = mser5(logs.mean(axis=0))
    if proposed.steady is None or proposed == WarmUp(0, True):
        return proposed
    earlier = [np.log(np.maximum(before[place], 1.0)) if before else np.empty(0) for place in enough]
    settled = _settled(logs, earlier)
    last = shortest // BATCH // 2
    if settled is None or settled >= last - max(1, last // 25):  # as in `mser5`
        return WarmUp(0, False)
    unclear = 0
    if settled and len(enough) == 1:
        settled, unclear = _of_one(logs[0], settled)
    if settled == 0:  # what MSER-5 saw was a hump further on, or a trend
        return WarmUp(0, _begins_at_its_level(logs), unclear * BATCH)
    return WarmUp(min(settled * BATCH, proposed.skip or shortest), True)


def _settled(logs: Floats, earlier: Sequence[Floats]) -> int | None:
    """After how many batches a transient that most blocks begin with is over; None if not in the first half.

    `logs` is (blocks, loops). The level of a block is the median of its batches in the second half. The
    transient lasts while the mean of the next `WINDOW` batches, over all blocks, is off that level by a
    standard deviation (that of such means or, if it is more, what single loops make of it), on the side on
    which it began, and most blocks agree.
    """
    blocks = logs.shape[0]
    level, sums, each = _moving_means(logs)
    moving = each.mean(axis=0)
    side = 1.0 if moving[0] > 0 else -1.0
    each, moving = side * each, side * moving
    loops = side * (logs - level)
    means = loops.mean(axis=0)
    single = float(means[means.size // 2 :].std())
    noise = max(_deviation(moving[WINDOW:]), single / (WINDOW * BATCH) ** 0.5)
    if moving[0] <= max(SEEN * noise, LEAST):
        return 0
    agree = np.count_nonzero(each > moving * ALIKE, axis=0) * 2 > blocks
    lasts = agree & (moving > max(noise, RETURNED * moving[0]))
    if lasts.all():
        return None
    end = int(np.argmin(lasts))
    if end == 0:
        return 0
    differences = np.sort(side * sums[:, end] / end)
    # More than half of the blocks must show it, and so clearly that it is no stall in one and luck in others.
    spread = float(loops[:, means.size // 2 :].std())
    luck = SEEN * spread / (end * BATCH * (blocks + 1) / 2) ** 0.5
    if differences[(blocks - 1) // 2] <= max(differences[-1] * ALIKE, luck if blocks > 1 else 0.0):
        return 0
    height = float(loops[:, : end * BATCH].mean())
    preceding = np.concatenate([side * (part - own) for part, own in zip(earlier, level[:, 0], strict=True)])
    if preceding.size >= BATCH and float(preceding.mean()) < height / 2:
        return 0
    if blocks == 1:
        return end
    # Normal loops come first where they, rather than loops of the transient's height, explain the
    # beginning, however short it is taken.
    variance = max(_deviation(means[means.size // 2 :]), LEAST / 4) ** 2
    first = np.cumsum(means[: min(end, WINDOW) * BATCH])
    number = np.arange(1, first.size + 1)
    if np.min(height * (first - number * height / 2)) < -UNLIKELY * variance:
        return 0
    return end


def _of_one(logs: Floats, end: int) -> tuple[int, int]:
    """(batches of warm-up, batches that may be one) of an only block whose first `end` batches are a hump.

    A loop is normal that is lower than nearly all loops of the rest would be if moved to the height of the
    hump. Two among the first loops of the hump are the beginning of a normal series. Where there is one (a
    stall catches most loops before it in flight), or too few of the rest are normal, nothing can be told.
    """
    rest, hump = logs[logs.size // 2 :], logs[: end * BATCH]
    side = 1.0 if np.median(hump) > np.median(rest) else -1.0
    low, some, middle = np.quantile(side * rest, (LOWEST, FEWEST_NORMAL, 0.5))
    edge = low + float(np.median(side * hump)) - middle
    if edge <= some:
        return 0, end
    first = side * hump[: min(hump.size // 2, WINDOW * BATCH)]
    normal = int(np.count_nonzero(first < edge))
    return (0 if normal else end), (end if normal == 1 else 0)


def _begins_at_its_level(logs: Floats) -> bool:
    """Whether most of the first quarter is at the level of the second half, judged by steps of windows."""
    moving = _moving_means(logs)[2].mean(axis=0)
    noise = _deviation(np.diff(moving[::WINDOW])) / 2**0.5
    return bool(abs(np.median(moving[: moving.size // 4 + 1])) <= max(SEEN * noise, LEAST))


def _moving_means(logs: Floats) -> tuple[Floats, Floats, Floats]:
    """(level of each block, running sums of its batches above it, means of `WINDOW` batches above it)."""
    blocks, count = logs.shape[0], logs.shape[1] // BATCH
    z = logs[:, : count * BATCH].reshape(blocks, count, BATCH).mean(axis=2)
    level = np.median(z[:, count // 2 :], axis=1)[:, None]
    sums = np.cumsum(np.pad(z - level, ((0, 0), (1, 0))), axis=1)
    return level, sums, (sums[:, WINDOW:] - sums[:, :-WINDOW]) / WINDOW


def _deviation(values: Floats) -> float:
    """The standard deviation of normal values, from the median absolute deviation."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values)))) if values.size else 0.0
