"""Whether an open load is served, or its backlog grows: from when loops were due, and when they ended.

Loops that arrive faster than they are served wait longer and longer: how long says how long the test
ran, not how fast the system is. Two things must be seen together:

- The backlog (arrived and not ended) grows more than that of a system that is just fast enough. From
  empty, such a backlog is a random walk that cannot fall below 0: after n arrivals and ends it is about
  |N(0, n)|, with the mean √(2n/π) and the standard deviation √(n(1 - 2/π)). The blocks' growths are summed.
- Later arrivals get through their first round later (`Table.first_round`, from when they were due): the
  last third of each block against the first, by the ranks of Gehan (1965), for which a loop that was cut
  off took at least as long as it was given. Loops that are only long, in a window that ends before they
  do, leave a backlog too, but it does not slow down who comes later.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from profiler.statistics.table import NONE, Table
from profiler.statistics.windows import Block, Measured, completed, joined, members

SERVED_SHARE = 0.95
"""A load of which a larger share is served is not called unserved, whatever can be shown."""
FEWEST_ARRIVALS = 12
SIGMAS = 4.0
"""Standard deviations by which a backlog must grow more than chance would let it."""
RANK_SIGMAS = 3.0
SLOWER = 3.0
"""How many times as many pairs of an early and a late loop must say "later" as say "sooner"."""

_WALK_MEAN = math.sqrt(2 / math.pi)
_WALK_DEVIATION = math.sqrt(1 - 2 / math.pi)


@dataclass(frozen=True, slots=True)
class Backlog:
    """An open load that is not served: in its windows loops arrived faster than they ended, to the end.

    Loops per second: `rate` was asked for, `arrived` came, `served` of them came to an answer, and at most
    `most` could be served: the rounds that ended, in loops of as many rounds as those that were answered
    had. The two differ where loops compete with each other's later rounds, so that most of them are begun
    and few are ended. `growth` is by how many loops the backlog of a block grew, on average.
    """

    rate: float
    arrived: float
    served: float
    most: float
    growth: float


def growing_backlog(group: Measured, table: Table) -> Backlog | None:
    """The backlog of a strategy; None in a closed load, and where it is not shown to grow."""
    if group.rate is None:
        return None
    blocks = [block for block in group.blocks if block.seconds and (block.due.size or block.cut)]
    arrived = [block.due.size + block.cut for block in blocks]
    ended = [block.ended.size for block in blocks]
    if sum(arrived) < FEWEST_ARRIVALS or sum(ended) > SERVED_SHARE * sum(arrived):
        return None
    events = [came + went for came, went in zip(arrived, ended, strict=True)]
    growth = sum(arrived) - sum(ended)
    by_chance = _WALK_MEAN * sum(math.sqrt(count) for count in events)
    if growth < by_chance + SIGMAS * _WALK_DEVIATION * math.sqrt(sum(events)):
        return None
    if not _later_is_slower(table, blocks):
        return None
    seconds = sum(block.seconds for block in blocks)
    served = _served(table, blocks)
    most = max(served, _rounds_served(table, blocks) / seconds)
    return Backlog(group.rate, sum(arrived) / seconds, served, most, growth / len(blocks))


def _later_is_slower(table: Table, blocks: list[Block]) -> bool:
    """Whether first rounds of the last third of each block took longer than those of its first third."""
    total = variance = 0.0
    later = sooner = 0
    for block in blocks:
        third = block.due.size // 3
        if not third:
            continue
        rows = np.concatenate([block.due[:third], block.due[-third:]])
        whole = table.ended[rows] - table.due[rows]
        cut = table.first_round[rows] == NONE
        took = np.where(cut, whole, table.first_round[rows])
        observed, limits = np.sort(took[~cut]), np.sort(took[cut])
        # Of each loop: how many took less for certain, and how many took more.
        less = np.searchsorted(observed, took, "left")
        less[cut] = np.searchsorted(observed, took[cut], "right")
        more = observed.size - np.searchsorted(observed, took, "right")
        more += limits.size - np.searchsorted(limits, took, "left")
        more[cut] = 0
        scores = (less - more).astype(float)
        total += float(scores[third:].sum())
        variance += float((scores**2).sum()) * third * third / (2 * third * (2 * third - 1))
        early, late_cut = np.sort(took[:third][~cut[:third]]), cut[third:]
        later += int(np.searchsorted(early, took[third:], "left").sum())
        sooner += int((early.size - np.searchsorted(early, took[third:][~late_cut], "right")).sum())
        sooner += int(np.count_nonzero(~late_cut)) * int(np.count_nonzero(cut[:third]))
    return total > RANK_SIGMAS * math.sqrt(variance) and later >= SLOWER * sooner


def _served(table: Table, blocks: list[Block]) -> float:
    """Loops per second that came to an answer: over the windows, or from the first one on where that is more.

    A window that opens on an empty system has no answers at first. From the first one on counts only
    where that is most of the window: a few answers close together are no rate.
    """
    count = since_first = 0
    seconds = since = 0.0
    for block in blocks:
        ends = np.sort(table.ended[completed(table, block.ended)])
        count += ends.size
        seconds += block.seconds
        span = float(ends[-1] - ends[0]) / 1e9 if ends.size else 0.0
        if block.seconds / 2 <= span <= block.seconds:
            since_first += ends.size - 1
            since += span
    return max(count / seconds, since_first / since if since else 0.0)


def _rounds_served(table: Table, blocks: list[Block]) -> float:
    """The rounds that ended in the windows, in loops of as many rounds as those that were answered had."""
    answered = joined([completed(table, block.due) for block in blocks])
    if not answered.size:
        return 0.0
    ended = 0
    for block in blocks:
        at = table.round_ended[members(table, block.due, table.round_loop)]
        ended += sum(int(np.count_nonzero((at >= start) & (at < end))) for start, end in block.windows)
    return ended * answered.size / max(1, members(table, answered, table.round_loop).size)
