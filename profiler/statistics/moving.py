"""The limit of a strategy whose limit moves, over time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from profiler.errors import UsageError
from profiler.statistics.table import NONE, Ints, Table
from profiler.strategies import parse_strategy


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


def moves(strategy: str) -> bool:
    """Whether the limit of the strategy of this spec adapts."""
    try:
        gate = parse_strategy(strategy).gate
    except UsageError:  # of a later version
        return False
    return gate is not None and gate.moves
