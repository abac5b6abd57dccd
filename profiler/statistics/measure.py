"""Which loops count: the windows of the trials, applied to the table of records.

Throughput counts loops that *ended* inside a window. Latency is of the loops that were *due*
inside it (started, or in an open load were meant to start), waited for after its end. The
warm-up of the system belongs to neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiler.rundir import Run, Trial
from profiler.statistics.table import CANCELLED, OK, Table
from profiler.statistics.warmup import WarmUp, of_blocks

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

    strategy: str
    users: int
    blocks: tuple[Block, ...]
    warm_up: WarmUp


def measure(run: Run, table: Table) -> list[Measured]:
    """Every strategy under every load of the run, in the order of the loads, then of `run.strategies`."""
    groups: dict[tuple[int, str], list[Trial]] = {}
    for trial in run.trials:
        groups.setdefault((trial.users, trial.strategy), []).append(trial)
    rank = {strategy: number for number, strategy in enumerate(run.strategies)}
    order = sorted(groups, key=lambda key: (key[0], rank.get(key[1], len(rank))))
    loops_of = _loops_by_trial(table)
    return [_measure(strategy, users, groups[users, strategy], table, loops_of) for users, strategy in order]


def good(table: Table, loops: Indices) -> NDArray[np.bool_]:
    """Which of these loops finished with every call answered."""
    result: NDArray[np.bool_] = (table.status[loops] == OK) & (table.answered[loops] == 1)
    return result


def completed(table: Table, loops: Indices) -> Indices:
    """Those of the loops that finished, with every call answered or not."""
    result: Indices = loops[table.status[loops] == OK]
    return result


def latency(table: Table, loops: Indices) -> NDArray[np.int64]:
    """Nanoseconds from when each loop was due to its end."""
    return table.ended[loops] - table.due[loops]


def _measure(
    strategy: str, users: int, trials: list[Trial], table: Table, loops_of: dict[int, Indices]
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
