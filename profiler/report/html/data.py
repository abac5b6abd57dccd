"""Everything the page shows of a run, gathered with one read of its records.

The read fills the statistics' table, from which the summary follows. Then the lines of some loops (those
that are drawn, and those of which estimates are made) are decoded once more, by their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from profiler.errors import RecordError
from profiler.prediction.check import Checked
from profiler.prediction.what_if import Counterfactual, Estimated, NotEstimated, what_if
from profiler.records import LoopRecord, decode, read_at
from profiler.report.html.checked import read_checked
from profiler.rundir import Run, RunDirectory
from profiler.statistics.columns import kept_table
from profiler.statistics.summary import Summary, summarise_table, with_loads
from profiler.statistics.table import NONE, Table
from profiler.statistics.windows import Measured, by_load, completed, good, latency, measure

CALLS_READ = 30_000
"""Tool calls from which estimates are made, of each trial its first: that bounds the time and the memory."""

ESTIMATED_TOOLS = 6
"""Tools of which estimates are made: those whose calls took the most time."""


@dataclass(frozen=True, slots=True)
class Material:
    """A run, its figures, and the loops that are drawn. `loops` maps rows of the table to records.

    `counterfactuals` are estimates under the highest load, `unknown` those that cannot be made. `checked` is
    how well the run predicts itself, where that was asked.
    """

    run: Run
    table: Table
    summary: Summary
    measured: tuple[Measured, ...]
    cases: tuple[Case, ...]
    loops: dict[int, LoopRecord]
    counterfactuals: tuple[Counterfactual, ...]
    unknown: tuple[NotEstimated, ...] = ()
    checked: Checked | None = None

    @property
    def shown(self) -> list[Measured]:
        """The strategies under the highest load, which is the one that the page is about."""
        return under_highest_load(self.measured)


class Shown(Protocol):
    """Loops as columns, and kinds of them (strategies, of a load test) that are shown side by side."""

    @property
    def table(self) -> Table: ...

    @property
    def shown(self) -> list[Measured]: ...


def under_highest_load(measured: Sequence[Measured]) -> list[Measured]:
    """Those under the highest of the loads."""
    levels = by_load(measured)
    return levels[max(levels)] if levels else []


def gather(directory: RunDirectory) -> Material:
    """The material of a run directory. Raises `RecordError`, `UsageError` as the statistics do."""
    run = directory.load()
    found_table = kept_table(directory.records_path)
    table, lines = found_table.table, found_table.lines
    summary = with_loads(summarise_table(run, table), run, table, directory.records())
    measured = tuple(measure(run, table))
    cases = choose(table, under_highest_load(measured))
    drawn = {row for case in cases for row in case.rows.values()}
    kept = _kept(run, table)
    loops: dict[int, LoopRecord] = {}

    def kept_loops() -> Iterator[LoopRecord]:
        rows = sorted(drawn | kept)
        some = read_at(directory.records_path, lines[rows].tolist())
        for row, record in zip(rows, some, strict=True):
            if row in drawn:
                loops[row] = record
            if row in kept:
                yield record

    users = max((group.users for group in measured), default=None)
    found = what_if(run, kept_loops(), _slowest_tools(table), users=users)
    return Material(
        run=run,
        table=table,
        summary=summary,
        measured=measured,
        cases=cases,
        loops=loops,
        counterfactuals=tuple(anchored(one, summary) for one in found.estimates),
        unknown=found.unknown,
        checked=read_checked(directory),
    )


def anchored(estimate: Counterfactual, summary: Summary) -> Counterfactual:
    """The estimate with the summary's quantiles as the measured ones: those leave out the warm-up.

    What the simulation says about the change is a factor, which stays.
    """
    for level in summary.levels or (summary,):
        for strategy in level.strategies:
            if (strategy.strategy, strategy.users) == (estimate.strategy, estimate.users):
                p50, p95 = strategy.loop_seconds.p50.value, strategy.loop_seconds.p95.value
                return replace(estimate, p50=_from(p50, estimate.p50), p95=_from(p95, estimate.p95))
    return estimate


def _from(measured: float | None, one: Estimated) -> Estimated:
    if not measured or not one.measured:
        return one
    factor = measured / one.measured
    return Estimated(measured, one.estimated * factor, one.low * factor, one.high * factor)


def _kept(run: Run, table: Table) -> set[int]:
    """Rows of the loops from which estimates are made: of each trial those that started first."""
    calls = np.bincount(table.call_loop, minlength=table.trial.size)
    rows: set[int] = set()
    indices = {trial.index for trial in run.trials}
    for trial in indices:
        mine = np.flatnonzero(table.trial == trial)
        mine = mine[np.argsort(table.started[mine], kind="stable")]
        before = np.cumsum(calls[mine]) - calls[mine]
        rows.update(mine[before < CALLS_READ / len(indices)].tolist())
    return rows


def _slowest_tools(table: Table) -> list[str]:
    """The `ESTIMATED_TOOLS` tools whose calls took the most time, the longest first."""
    ran = table.duration != NONE
    spent = np.bincount(
        table.call_tool[ran], weights=table.duration[ran].astype(float), minlength=len(table.tools)
    )
    return [table.tools[code] for code in np.argsort(-spent, kind="stable")[:ESTIMATED_TOOLS]]


def lines_of(path: Path, rows: set[int]) -> Iterator[tuple[int, LoopRecord]]:
    """(row, record) of some lines of the records, in order."""
    try:
        with open(path, "rb") as file:
            for row, line in enumerate(file):
                if row in rows:
                    yield row, decode(line)
    except OSError as error:
        raise RecordError(f"{path}: cannot read records: {error.strerror}") from error


# Which loops are drawn: the slowest, the median and a failed one of each strategy.
#
# Beside each stand the loops of the other strategies that worked on the same entry of the tape, where
# they got that far: the same work, done differently.

CaseKind = Literal["slowest", "median", "failed"]

NEAR = 5
"""This many loops around the median are looked at; the one whose work most strategies did is taken."""


@dataclass(frozen=True, slots=True)
class Case:
    """A tape entry worth a look: of which strategy it is the `kind` of loop, and each strategy's row for it.

    `number` is the entry, None for a loop without one.
    """

    kind: CaseKind
    strategy: str
    number: int | None
    rows: dict[str, int]


def choose(table: Table, groups: Sequence[Measured]) -> tuple[Case, ...]:
    """The cases of these strategies (under one load), at most three of each."""
    due = {group.strategy: group.due for group in groups}
    by_number = {
        strategy: {int(n): int(row) for n, row in zip(table.number[rows], rows, strict=True) if n != NONE}
        for strategy, rows in due.items()
    }

    def case(kind: CaseKind, strategy: str, row: int) -> Case:
        number = int(table.number[row])
        rows = {name: found[number] for name, found in by_number.items() if number in found}
        rows[strategy] = row
        ordered = {name: rows[name] for name in due if name in rows}
        return Case(kind, strategy, None if number == NONE else number, ordered)

    def most_compared(kind: CaseKind, strategy: str, rows: Iterable[int]) -> Case:
        return max((case(kind, strategy, int(row)) for row in rows), key=lambda one: len(one.rows))

    cases: list[Case] = []
    for strategy, rows in due.items():
        done = completed(table, rows)
        done = done[np.argsort(latency(table, done), kind="stable")]
        if done.size:
            middle = (done.size - 1) // 2
            around = range(max(0, middle - NEAR // 2), min(done.size, middle + NEAR // 2 + 1))
            nearest_first = sorted(around, key=lambda place: abs(place - middle))
            cases.append(case("slowest", strategy, int(done[-1])))
            cases.append(most_compared("median", strategy, done[nearest_first]))
        failed = rows[~good(table, rows)]
        if failed.size:
            cases.append(most_compared("failed", strategy, failed[:NEAR]))
    return tuple(cases)
