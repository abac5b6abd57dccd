"""Everything the page shows of a run, gathered with one read of its records.

The read fills the statistics' table, from which the summary follows, and three more columns that
only pictures need. Then the lines of a few loops (those that are drawn, and those that the
counterfactual replays) are decoded once more, by their number.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from profiler.errors import RecordError
from profiler.records import LoopRecord, decode
from profiler.rundir import Run, RunDirectory
from profiler.statistics.replay import CALLS_PER_TRIAL, Counterfactual, Estimated, counterfactuals
from profiler.statistics.summary import Summary, summarise_table
from profiler.statistics.table import NONE, Ints, Table, tabulate
from profiler.statistics.windows import Indices, Measured, completed, good, latency, measure

REPLAYED_TOOLS = 6
"""Tools that the counterfactual makes faster: those whose calls took the most time."""


@dataclass(frozen=True, slots=True)
class Instants:
    """What the table leaves out: when each call was queued, how many calls each round had, and
    when servers refused something for a quota. In the order of the table."""

    queued: Ints
    round_calls: Ints
    limited: Ints


@dataclass(frozen=True, slots=True)
class Material:
    """A run, its figures, and the loops that are drawn. `loops` maps rows of the table to records."""

    run: Run
    table: Table
    instants: Instants
    summary: Summary
    measured: tuple[Measured, ...]
    cases: tuple[Case, ...]
    loops: dict[int, LoopRecord]
    counterfactuals: tuple[Counterfactual, ...]


def gather(directory: RunDirectory, baseline: str | None = None) -> Material:
    """The material of a run directory. Raises `RecordError`, `UsageError` as the statistics do."""
    run = directory.load()
    watch = _Watch()
    table = tabulate(watch.pass_on(directory.records()))
    summary = summarise_table(run, table, baseline)
    measured = tuple(measure(run, table))
    cases = choose(table, [group for group in measured if group.users == _top(summary)])
    drawn = {row for case in cases for row in case.rows.values()}
    replayed = _replayed(run, table)
    loops: dict[int, LoopRecord] = {}
    chosen = _lines(directory.records_path, drawn | replayed, drawn, loops)
    estimates = counterfactuals(run, (loop for row, loop in chosen if row in replayed), _tools(table))
    for _ in chosen:  # what comes after the last replayed loop
        pass
    estimates = tuple(anchored(one, summary) for one in estimates)
    return Material(run, table, watch.instants(), summary, measured, cases, loops, estimates)


def anchored(estimate: Counterfactual, summary: Summary) -> Counterfactual:
    """The estimate put on the summary's quantiles, which leave warm-up out; what the replay says of the
    change is a factor and stays."""
    for level in summary.levels or (summary,):
        for strategy in level.strategies:
            if (strategy.strategy, strategy.users) == (estimate.strategy, estimate.users):
                p50, p95 = (
                    _on(one, strategy.loop_seconds[name].value)
                    for name, one in (("p50", estimate.p50), ("p95", estimate.p95))
                )
                return replace(estimate, p50=p50, p95=p95)
    return estimate


def _on(one: Estimated, measured: float | None) -> Estimated:
    if not measured or not one.measured:
        return one
    return Estimated(measured, measured * one.estimated / one.measured)


def _top(summary: Summary) -> int:
    return summary.strategies[0].users if summary.strategies else summary.load.users


class _Watch:
    """Notes three columns of the records that pass by."""

    def __init__(self) -> None:
        self._queued, self._calls, self._limited = array("q"), array("i"), array("q")

    def pass_on(self, records: Iterable[LoopRecord]) -> Iterator[LoopRecord]:
        """The same records."""
        queued, counts, limited = self._queued, self._calls, self._limited
        for record in records:
            for round_ in record.rounds:
                calls = round_.tool_calls
                counts.append(len(calls))
                queued.extend([call.queued_ns for call in calls])
            limited.extend([refusal.at_ns for refusal in record.refusals])
            yield record

    def instants(self) -> Instants:
        """The columns, complete."""
        queued, counts, limited = (
            np.array(column, dtype=np.int64) for column in (self._queued, self._calls, self._limited)
        )
        return Instants(queued, counts, limited)


def _replayed(run: Run, table: Table) -> set[int]:
    """Rows of the loops that the counterfactual looks at: of each trial those with its first calls."""
    trials = {trial.index for trial in run.trials}
    calls = np.bincount(table.call_loop, minlength=table.trial.size)
    rows: set[int] = set()
    for trial in trials:
        mine = np.flatnonzero(table.trial == trial)
        before = np.cumsum(calls[mine]) - calls[mine]
        rows.update(mine[before < CALLS_PER_TRIAL].tolist())
    return rows


def _tools(table: Table) -> list[str]:
    """The tools whose calls took the most time, the longest first."""
    ran = table.duration != NONE
    spent = np.bincount(
        table.call_tool[ran], weights=table.duration[ran].astype(float), minlength=len(table.tools)
    )
    return [table.tools[code] for code in np.argsort(-spent, kind="stable")[:REPLAYED_TOOLS]]


def _lines(
    path: Path, rows: set[int], kept: set[int], into: dict[int, LoopRecord]
) -> Iterator[tuple[int, LoopRecord]]:
    """(row, record) of some lines, in order; those of `kept` also go into a dictionary."""
    try:
        with open(path, "rb") as file:
            for row, line in enumerate(file):
                if row in rows:
                    record = decode(line)
                    if row in kept:
                        into[row] = record
                    yield row, record
    except OSError as error:
        raise RecordError(f"{path}: cannot read records: {error.strerror}") from error


# Which loops are drawn: of each strategy the slowest, the median and a failed one.
#
# Beside each stand the loops that the other strategies ran for the same entry of the tape, where
# they got that far: the same work, done differently.

CaseKind = Literal["slowest", "median", "failed"]

NEAR = 5
"""Of this many loops next to the median the one that most strategies also ran is taken."""


@dataclass(frozen=True, slots=True)
class Case:
    """One tape entry worth a look: why, in which strategy's eyes, and the table's row per strategy."""

    kind: CaseKind
    strategy: str
    number: int | None
    rows: dict[str, int]


def choose(table: Table, groups: Sequence[Measured]) -> tuple[Case, ...]:
    """The cases of these strategies (under one load), at most three of each."""
    due = {group.strategy: _due(group) for group in groups}
    by_number = {
        strategy: {int(n): int(row) for n, row in zip(table.number[rows], rows, strict=True) if n != NONE}
        for strategy, rows in due.items()
    }

    def case(kind: CaseKind, strategy: str, row: int) -> Case:
        number = int(table.number[row])
        rows = {strategy: row}
        if number != NONE:
            rows = {name: found[number] for name, found in by_number.items() if number in found} | rows
        ordered = {name: rows[name] for name in due if name in rows}
        return Case(kind, strategy, None if number == NONE else number, ordered)

    cases: list[Case] = []
    for strategy, rows in due.items():
        done = completed(table, rows)
        done = done[np.argsort(latency(table, done), kind="stable")]
        if done.size:
            cases.append(case("slowest", strategy, int(done[-1])))
            middle = (done.size - 1) // 2
            near = sorted(
                range(max(0, middle - NEAR // 2), min(done.size, middle + NEAR // 2 + 1)),
                key=lambda place: abs(place - middle),
            )
            medians = [case("median", strategy, int(done[place])) for place in near]
            cases.append(max(medians, key=lambda one: len(one.rows)))
        failed = rows[~good(table, rows)]
        if failed.size:
            candidates = [case("failed", strategy, int(row)) for row in failed[:NEAR]]
            cases.append(max(candidates, key=lambda one: len(one.rows)))
    return tuple(cases)


def _due(group: Measured) -> Indices:
    parts = [block.due for block in group.blocks]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.intp)
