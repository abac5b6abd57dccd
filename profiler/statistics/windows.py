"""Which loops count: the windows of the trials, applied to the table of records.

Throughput counts loops that *ended* inside a window. Latency is of the loops that were *due*
inside it (started, or in an open load were meant to start), waited for after its end. The
warm-up of the system belongs to neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiler.rundir import Run, Trial
from profiler.statistics.quantiles import Floats
from profiler.statistics.table import CANCELLED, OK, Table
from profiler.strategies import StrategySpec

Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Block:
    """One strategy in one block. `due` and `ended` index the loops of the table.

    `cut` counts loops that left no record: interrupted after the drain, or arrivals that never started.
    """

    number: int
    seconds: float
    due: Indices
    ended: Indices
    interrupted: int
    cut: int


@dataclass(frozen=True, slots=True)
class Measured:
    """One strategy under one load: its blocks, and the warm-up that was left out of each."""

    spec: StrategySpec
    users: int
    blocks: tuple[Block, ...]
    warm_up: WarmUp

    @property
    def strategy(self) -> str:
        """Its name in records and figures."""
        return self.spec.text


def measure(run: Run, table: Table) -> list[Measured]:
    """Every strategy under every load of the run, in the order of the loads, then of `run.strategies`."""
    groups: dict[tuple[int, str], list[Trial]] = {}
    for trial in run.trials:
        groups.setdefault((trial.users, trial.strategy), []).append(trial)
    rank = {strategy.text: number for number, strategy in enumerate(run.strategies)}
    order = sorted(groups, key=lambda key: (key[0], rank.get(key[1], len(rank))))
    loops_of = _loops_by_trial(table)
    return [
        _measure(run.strategy(strategy), users, groups[users, strategy], table, loops_of)
        for users, strategy in order
    ]


def good(table: Table, loops: Indices) -> NDArray[np.bool_]:
    """Which of these loops were good (`LoopRecord.good`)."""
    result: NDArray[np.bool_] = table.good[loops] == 1
    return result


def completed(table: Table, loops: Indices) -> Indices:
    """Those of the loops that came to an answer, whether every call succeeded or not."""
    result: Indices = loops[table.status[loops] == OK]
    return result


def latency(table: Table, loops: Indices) -> NDArray[np.int64]:
    """Nanoseconds from when each loop was due to its end."""
    return table.ended[loops] - table.due[loops]


def _measure(
    strategy: StrategySpec, users: int, trials: list[Trial], table: Table, loops_of: dict[int, Indices]
) -> Measured:
    none = np.empty(0, dtype=np.intp)
    inside: list[Indices] = []
    for trial in trials:
        loops = loops_of.get(trial.index, none)
        due = table.due[loops]
        chosen = loops[(due >= trial.started_ns) & (due < trial.ended_ns)]
        inside.append(chosen[np.argsort(table.due[chosen], kind="stable")])
    warm_up = of_blocks([latency(table, completed(table, loops)).astype(float) for loops in inside])
    by_block: dict[int, list[Block]] = {}
    for trial, due_inside in zip(trials, inside, strict=True):
        loops = loops_of.get(trial.index, none)
        start = trial.started_ns
        kept = due_inside
        finished = completed(table, due_inside)
        if 0 < warm_up.skip < finished.size:
            start = int(table.due[finished[warm_up.skip]])
            kept = due_inside[table.due[due_inside] >= start]
        ended = table.ended[loops]
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
    """Several trials of one strategy in one block are one block."""
    if len(parts) == 1:
        return parts[0]
    return Block(
        number=parts[0].number,
        seconds=sum(part.seconds for part in parts),
        due=np.concatenate([part.due for part in parts]),
        ended=np.concatenate([part.ended for part in parts]),
        interrupted=sum(part.interrupted for part in parts),
        cut=sum(part.cut for part in parts),
    )


def _loops_by_trial(table: Table) -> dict[int, Indices]:
    if not table.trial.size:
        return {}
    order = np.argsort(table.trial, kind="stable")
    numbers, starts = np.unique(table.trial[order], return_index=True)
    return {
        int(number): loops
        for number, loops in zip(numbers, np.split(order, starts[1:]), strict=True)
        if loops.size
    }


# Where a series settles, so that what came before can be left out.
#
# MSER-5 (White 1997; White, Cobb & Spratt 2000): of the means z of batches of five, drop the first
# d that minimise the squared standard error of the mean of the rest,
#
#     sum((z_i - mean(z_d...))^2, i >= d) / (n - d)^2,    d <= n / 2.
#
# When the minimum sits at the end of the search, the series has shown no steady state.

BATCH = 5
FEWEST_BATCHES = 20


@dataclass(frozen=True, slots=True)
class WarmUp:
    """`skip` samples of the series belong to the warm-up; `steady` is None when it is too short to tell."""

    skip: int
    steady: bool | None


def mser5(series: Floats) -> WarmUp:
    """The warm-up of a series in the order in which it was made.

    Fewer than `FEWEST_BATCHES` whole batches: nothing is skipped and nothing is claimed (of stationary
    series of 10 batches, one in six would be called unsteady; of 20, one in twenty). Without a
    steady state nothing is skipped either: no part of the series stands for the system.
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
    if best >= last - max(1, count // 50):  # "at the end" within the resolution of the batches
        return WarmUp(0, False)
    return WarmUp(best * BATCH, True)


def of_blocks(blocks: Sequence[Floats]) -> WarmUp:
    """One warm-up for the blocks of a strategy, from positive series aligned at their starts.

    The k-th logarithms of all blocks are averaged first (Welch's method), so that one slow loop
    in one block is not taken for a warm-up. Blocks shorter than half the median are not asked.
    """
    sizes = [block.size for block in blocks if block.size]
    if not sizes:
        return WarmUp(0, None)
    enough = [block for block in blocks if block.size * 2 >= float(np.median(sizes))]
    shortest = min(block.size for block in enough)
    logs = np.log(np.maximum(np.stack([block[:shortest] for block in enough]), 1.0))
    return mser5(logs.mean(axis=0))
