"""Which loops count: the windows of the trials, applied to the table of records.

Throughput counts the loops that *ended* inside a window. Latency is that of the loops that were *due*
inside it (they started, or in an open load were meant to start); those still running at its end are
waited for. Neither counts the warm-up of the system.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from profiler.rundir import Run, Trial
from profiler.statistics.quantiles import Floats
from profiler.statistics.table import CANCELLED, OK, Ints, Table
from profiler.strategies import StrategySpec

Indices = NDArray[np.intp]

_NO_ROWS: Indices = np.empty(0, dtype=np.intp)


@dataclass(frozen=True, slots=True)
class Block:
    """One strategy in one block. `due` and `ended` are rows of loops in the table.

    `seconds` is the length of the window after the warm-up. `interrupted` loops were cut off after the
    drain; `cut` counts the loops that left no record: some of those, and arrivals that never started.
    """

    number: int
    seconds: float
    due: Indices
    ended: Indices
    interrupted: int
    cut: int


@dataclass(frozen=True, slots=True)
class Measured:
    """One strategy under one load: its blocks, and the warm-up left out of each.

    `rate` is how many loops a second an open load asked for, None in a closed one.
    """

    spec: StrategySpec
    users: int
    blocks: tuple[Block, ...]
    warm_up: WarmUp
    rate: float | None = None

    @property
    def strategy(self) -> str:
        """Its name in records and figures."""
        return self.spec.text

    @property
    def due(self) -> Indices:
        """The loops that were due in any of the blocks."""
        return joined([block.due for block in self.blocks])


def measure(run: Run, table: Table) -> list[Measured]:
    """Every strategy under every load of the run, ordered by load, then as in `run.strategies`."""
    groups: dict[tuple[int, str], list[Trial]] = {}
    for trial in run.trials:
        groups.setdefault((trial.users, trial.strategy), []).append(trial)
    rank = {strategy.text: number for number, strategy in enumerate(run.strategies)}
    order = sorted(groups, key=lambda key: (key[0], rank.get(key[1], len(rank))))
    loops_of = _loops_by_trial(table)
    measured = (
        _measure(run.strategy(strategy), users, groups[users, strategy], table, loops_of)
        for users, strategy in order
    )
    return [replace(group, rate=run.load.rate_of(group.users)) for group in measured]


def by_load(measured: Iterable[Measured]) -> dict[int, list[Measured]]:
    """The same by the number of agents."""
    levels: dict[int, list[Measured]] = {}
    for group in measured:
        levels.setdefault(group.users, []).append(group)
    return levels


def joined(rows: Sequence[Indices]) -> Indices:
    """Rows of several blocks as one array."""
    return np.concatenate(rows) if rows else _NO_ROWS


def flagged(table: Table, loops: Indices) -> NDArray[np.bool_]:
    """For each loop of the table, whether it is one of these."""
    flags = np.zeros(table.trial.size, dtype=bool)
    flags[loops] = True
    return flags


def members(table: Table, loops: Indices, owner: Ints) -> Indices:
    """Rows of the rounds or calls that belong to these loops; `owner` is `round_loop` or `call_loop`."""
    return np.flatnonzero(flagged(table, loops)[owner])


def good(table: Table, loops: Indices) -> NDArray[np.bool_]:
    """Which of these loops were good (`LoopRecord.good`)."""
    result: NDArray[np.bool_] = table.good[loops] == 1
    return result


def completed(table: Table, loops: Indices) -> Indices:
    """The loops that came to an answer, whether or not every call succeeded."""
    result: Indices = loops[table.status[loops] == OK]
    return result


def latency(table: Table, loops: Indices) -> Ints:
    """Nanoseconds from when each loop was due to its end."""
    return table.ended[loops] - table.due[loops]


def _measure(
    strategy: StrategySpec, users: int, trials: list[Trial], table: Table, loops_of: dict[int, Indices]
) -> Measured:
    inside: list[Indices] = []
    for trial in trials:
        loops = loops_of.get(trial.index, _NO_ROWS)
        due = table.due[loops]
        chosen = loops[(due >= trial.started_ns) & (due < trial.ended_ns)]
        inside.append(chosen[np.argsort(table.due[chosen], kind="stable")])
    warm_up = of_blocks([latency(table, completed(table, loops)).astype(float) for loops in inside])
    by_block: dict[int, list[Block]] = {}
    for trial, due_inside in zip(trials, inside, strict=True):
        loops = loops_of.get(trial.index, _NO_ROWS)
        start = trial.started_ns
        kept = due_inside
        finished = completed(table, due_inside)
        # The warm-up is a number of completed loops; the window opens when the next one was due.
        if 0 < warm_up.skip < finished.size:
            start = int(table.due[finished[warm_up.skip]])
            kept = due_inside[table.due[due_inside] >= start]
        ended = table.ended[loops]
        # Most loops that were cut off left a record, as cancelled; the others were only counted.
        cancelled = int(np.count_nonzero(table.status[loops] == CANCELLED))
        block = Block(
            number=trial.block,
            seconds=max(0, trial.ended_ns - start) / 1e9,
            due=kept,
            ended=loops[(ended >= start) & (ended < trial.ended_ns)],
            interrupted=max(trial.interrupted, cancelled),
            cut=max(0, trial.interrupted - cancelled) + trial.dropped,
        )
        by_block.setdefault(trial.block, []).append(block)
    blocks = tuple(_join(by_block[number]) for number in sorted(by_block))
    return Measured(strategy, users, blocks, warm_up)


def _join(parts: list[Block]) -> Block:
    """The trials of one strategy in one block, as one block."""
    return Block(
        number=parts[0].number,
        seconds=sum(part.seconds for part in parts),
        due=joined([part.due for part in parts]),
        ended=joined([part.ended for part in parts]),
        interrupted=sum(part.interrupted for part in parts),
        cut=sum(part.cut for part in parts),
    )


def _loops_by_trial(table: Table) -> dict[int, Indices]:
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
    """The first `skip` samples are the warm-up; `steady` is None when the series is too short to tell."""

    skip: int
    steady: bool | None


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


def of_blocks(blocks: Sequence[Floats]) -> WarmUp:
    """One warm-up for the blocks of a strategy, from positive series aligned at their starts.

    The logarithms of the k-th samples of all blocks are averaged first (Welch's method), so that one
    slow loop in one block is not taken for a warm-up. Blocks shorter than half the median are ignored.
    """
    sizes = [block.size for block in blocks if block.size]
    if not sizes:
        return WarmUp(0, None)
    enough = [block for block in blocks if block.size * 2 >= float(np.median(sizes))]
    shortest = min(block.size for block in enough)
    logs = np.log(np.maximum(np.stack([block[:shortest] for block in enough]), 1.0))
    return mser5(logs.mean(axis=0))
