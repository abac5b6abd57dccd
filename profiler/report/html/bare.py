"""Records without a load test, gathered for their page: kinds of loops, causes, loops that are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from profiler import records as records_file
from profiler.errors import RecordError, UsageError
from profiler.limits.known import KnownQuota
from profiler.records import LoopRecord
from profiler.report.html.data import lines_of
from profiler.report.html.waterfalls import MOST_CASES
from profiler.report.timeline import CauseKind, causes
from profiler.report.unseen import Unseen
from profiler.rundir import Run
from profiler.statistics.figures import StrategySummary, figures
from profiler.statistics.recorded import Recorded, RecordedFigures
from profiler.statistics.table import Table, tabulate
from profiler.statistics.windows import Block, Indices, Measured, WarmUp, cancelled
from profiler.strategies import StrategySpec

Again = Callable[[set[int]], Iterator[tuple[int, LoopRecord]]]
"""Reads some of the records once more, by their rows."""

MOST_GROUPS = 12
"""Kinds of loops that are told apart; those with the fewest loops are left out, which the page says."""
MOST_SLOWEST = 8
MOST_FAILED = 6


class Group(NamedTuple):
    """What tells kinds of loops apart. `inside`: it ran in a tool call of another loop."""

    name: str
    strategy: str
    provider: str
    model: str
    inside: bool

    @classmethod
    def of(cls, record: LoopRecord) -> Group:
        return cls(record.name, record.strategy, record.provider, record.model, record.nested)


@dataclass(slots=True)
class CauseInAll:
    """How much a cause took of all loops, in how many, and what it was in the one where it took most."""

    ns: int = 0
    loops: int = 0
    worst_ns: int = 0
    words: str = ""
    remedy: str = ""


@dataclass(slots=True)
class Bare:
    """Everything the page shows of records: `shown` are the kinds of loops, the most frequent first.

    `labels` name them, as far as they differ. `rows` are the loops that are drawn, in their order, with
    their number in the order in which they began. `left_out` older loops were not kept. `recorded` is there
    where another program's loops are among them, `run` where they are those of a recorded run.
    """

    source: str
    table: Table
    shown: list[Measured]
    summaries: list[StrategySummary]
    groups: list[Group]
    rows: dict[int, tuple[int, LoopRecord]]
    unseen: Unseen
    causes: dict[CauseKind, CauseInAll]
    groups_left: int = 0
    left_out: int = 0
    recorded: RecordedFigures | None = None
    run: Run | None = None

    @property
    def own(self) -> int:
        """How many loops are no recording, where others are."""
        return 0 if self.recorded is None else int(self.table.nested.size) - self.recorded.loops

    @property
    def tops(self) -> Indices:
        """Rows of the loops that ran inside no other, or of all where there are only such."""
        top = np.flatnonzero(self.table.nested == 0)
        return top if top.size else np.arange(self.table.nested.size)


def gather_files(
    path: Path, title: str | None = None, run: Run | None = None, quota: KnownQuota | None = None
) -> Bare:
    """The material of a file of records, or of a directory of such files; each is read twice.

    `run` is the recorded run that they are of; what recorded loops used is held against a `quota`. Raises
    `RecordError`, `UsageError` where there is a quota and no recorded loop.
    """
    files = records_file.files_of(path)
    counts: list[int] = []

    def every() -> Iterator[LoopRecord]:
        for file in files:
            count = 0
            for record in records_file.read(file):
                count += 1
                yield record
            counts.append(count)

    def again(rows: set[int]) -> Iterator[tuple[int, LoopRecord]]:
        first = 0
        for file, count in zip(files, counts, strict=True):
            mine = {row - first for row in rows if first <= row < first + count}
            yield from ((first + row, record) for row, record in lines_of(file, mine))
            first += count

    recorded = Recorded()
    found = _gather(title or path.name or str(path), every(), again, recorded)
    if found is None:
        raise RecordError(f"{path}: no loops: there are no records in it")
    if quota is not None and not recorded.loops and run is None:
        raise UsageError(
            f"--quota is for recorded loops: {path} holds none (profiler tune has one of its own)"
        )
    if recorded.loops or run is not None:
        found.run = run
        found.recorded = recorded.result(None if run is None else run.recording, quota)
    return found


def gather_records(records: Sequence[LoopRecord], source: str, left_out: int = 0) -> Bare:
    """The material of records in memory, of which there is one at least."""

    def again(rows: set[int]) -> Iterator[tuple[int, LoopRecord]]:
        return ((row, record) for row, record in enumerate(records) if row in rows)

    found = _gather(source, records, again)
    if found is None:
        raise RecordError(f"{source}: no loops: there are no records")
    found.left_out = left_out
    return found


def _gather(
    source: str, every: Iterable[LoopRecord], again: Again, recorded: Recorded | None = None
) -> Bare | None:
    unseen = Unseen()
    found: dict[CauseKind, CauseInAll] = {}
    inside: dict[CauseKind, CauseInAll] = {}
    keys: dict[Group, str] = {}

    def seen() -> Iterator[LoopRecord]:
        for record in every:
            unseen.add(record)
            if recorded is not None and record.source:
                recorded.add(record)
            for cause in causes(record):
                one = (inside if record.nested else found).setdefault(cause.kind, CauseInAll())
                one.ns += cause.ns
                one.loops += 1
                if cause.ns > one.worst_ns:
                    one.worst_ns, one.words, one.remedy = cause.ns, cause.words, cause.remedy
            group = Group.of(record)
            yield replace(record, strategy=keys.setdefault(group, str(len(keys))))

    table = tabulate(seen())
    if not table.nested.size:
        return None
    ordered = sorted(keys, key=lambda group: -int(np.count_nonzero(table.strategy == int(keys[group]))))
    ordered.sort(key=lambda group: group.inside)
    kept = ordered[:MOST_GROUPS]
    labels = dict(zip(kept, _labels(kept), strict=True))
    rows_of = {group: np.flatnonzero(table.strategy == int(keys[group])) for group in kept}
    table = replace(
        table, strategies=[labels.get(group, "") for group in sorted(keys, key=lambda one: int(keys[one]))]
    )
    shown = [_measured(labels[group], rows_of[group], table) for group in kept]
    bare = Bare(
        source=source,
        table=table,
        shown=shown,
        summaries=[figures(one, table) for one in shown],
        groups=kept,
        rows={},
        unseen=unseen,
        causes=found or inside,
        groups_left=len(ordered) - len(kept),
    )
    order = np.argsort(table.started, kind="stable")
    number_of = {int(row): place for place, row in enumerate(order, start=1)}
    chosen = _chosen(bare)
    bare.rows = {
        row: (number_of[row], record)
        for row, record in sorted(again(set(chosen)), key=lambda pair: chosen.index(pair[0]))
    }
    return bare


def _labels(groups: Sequence[Group]) -> list[str]:
    """A name for each, of what they differ in."""
    differ = [len({group[place] for group in groups}) > 1 for place in range(4)]
    found = []
    for group in groups:
        parts = [part or "no name" for part, differs in zip(group, differ, strict=False) if differs]
        label = " · ".join(str(part) for part in parts) or group.strategy
        found.append(f"{label} (inside tool calls)" if group.inside else label)
    return found


def _measured(label: str, rows: Indices, table: Table) -> Measured:
    """A kind of loops as one window: without blocks there are no intervals."""
    spent = int(table.ended[rows].max() - table.started[rows].min()) / 1e9
    one = Block(0, spent, rows, rows, 0, 0, cancelled=cancelled(table, rows))
    return Measured(StrategySpec.recorded(label), 1, (one,), WarmUp(0, None))


def _chosen(bare: Bare) -> list[int]:
    """Rows of the loops that are drawn: all where they are few, else the slowest, medians and failures."""
    table = bare.table
    if table.nested.size <= MOST_CASES:
        return [int(row) for row in np.argsort(table.started, kind="stable")]
    walls = table.ended - table.started
    tops = bare.tops
    rows = [int(row) for row in tops[np.argsort(-walls[tops], kind="stable")][:MOST_SLOWEST]]
    for group in bare.shown:
        due = group.due[np.argsort(walls[group.due], kind="stable")]
        rows += [int(due[-1]), int(due[(due.size - 1) // 2])]
    failed = tops[table.good[tops] == 0]  # those that were cancelled among them
    _, first = np.unique(table.error[failed], return_index=True)  # one of each kind, then more
    rows += [int(row) for row in [*failed[np.sort(first)], *failed][:MOST_FAILED]]
    return list(dict.fromkeys(rows))[:MOST_CASES]
