"""Which loops are drawn: of each strategy the slowest, the median and a failed one.

Beside each stand the loops that the other strategies ran for the same entry of the tape, where
they got that far: the same work, done differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from profiler.statistics.measure import Indices, Measured, completed, good, latency
from profiler.statistics.table import NONE, Table

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
