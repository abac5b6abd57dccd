"""What else than the load of a server its calls may be slow for, so that it can be taken out of their times.

Slow drift is told from load where the same levels ran in several blocks. What is common to the calls of a
loop, as where slow loops have more calls, is told from load by the calls of other loops.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from profiler.prediction.servers.calls import Bools, Floats, Ints

_SIZES = 16
"""Numbers of calls of a loop at once, or ranges of them, that are held apart."""


@dataclass(frozen=True, slots=True)
class Repeated:
    """Levels that ran in several blocks: `block` of each row from 0, and whether it is of the `levels`.

    The effect of levels and that of time are estimated together (least squares), so that neither is taken for
    the other. Time has an effect that is slow (linear, but for the middle of each inner block) or one that
    changes from block to block. The two differ by how time goes on within a block, which levels in the same
    order in every block do not tell: what is to be trusted must hold with both.
    """

    block: Ints
    levels: Floats
    slow: Floats
    steps: Floats

    @classmethod
    def of(cls, started: Ints, block: Ints | None, level: Ints | None) -> Repeated | None:
        """None unless all rows are of known trials and two levels or more ran in several blocks."""
        if block is None or level is None or not block.size or min(block.min(), level.min()) < 0:
            return None
        blocks, block = np.unique(block, return_inverse=True)
        levels, level = np.unique(level, return_inverse=True)
        ran = np.zeros((levels.size, blocks.size), dtype=np.bool_)
        ran[level, block] = True
        if (ran.sum(axis=1) > 1).sum() < 2:
            return None
        time = (started - started.min()) / max(1, int(np.ptp(started)))
        middle = np.sort([time[block == each].mean() for each in range(blocks.size)])
        slow = np.column_stack([time] + [np.maximum(0.0, time - at) for at in middle[1:-1]])
        return cls(block, np.eye(levels.size)[level], slow, np.eye(blocks.size)[block][:, 1:])

    def of_time(self, logs: Floats, *, slow: bool) -> Floats:
        """Of each row the effect of its time."""
        basis = self.slow if slow else self.steps
        count = self.levels.shape[1]
        design = np.hstack((self.levels, basis))
        found = np.linalg.lstsq(design.T @ design, design.T @ logs, rcond=1e-9)[0]
        effect: Floats = basis @ found[count:]
        effect -= effect.mean()
        return effect

    def of_level(self, logs: Floats) -> Floats:
        """Of each row the effect of its level, beside that of its block."""
        design = np.hstack((self.levels, self.steps))
        found = np.linalg.lstsq(design.T @ design, design.T @ logs, rcond=1e-9)[0]
        effect: Floats = self.levels @ found[: self.levels.shape[1]]
        return effect


@dataclass(frozen=True, slots=True)
class OwnCalls:
    """Of each row the calls of its own loop: how many ran `together` with it without a pause, itself counted,
    and how many others of it were `in_flight` when it started."""

    together: Ints
    in_flight: Ints

    @classmethod
    def of(cls, started: Ints, ended: Ints, loop: Ints) -> OwnCalls:
        if not started.size:
            return cls(started, started)
        begin = int(started.min())
        span = np.int64(int(ended.max()) - begin + 1)
        base = np.unique(loop, return_inverse=True)[1].astype(np.int64) * span
        starts, ends = base + (started - begin), base + (ended - begin)
        order = np.argsort(starts, kind="stable")  # of calls that start together the earlier rows came first
        starts, ends, base = starts[order], ends[order], base[order]
        latest = np.maximum.accumulate(ends)
        fresh = np.append(True, (starts[1:] >= latest[:-1]) | (base[1:] != base[:-1]))
        part = np.cumsum(fresh) - 1
        before = np.arange(starts.size) - np.searchsorted(base, base, side="left")
        over = np.searchsorted(np.sort(ends), starts, side="right") - np.searchsorted(base, base, side="left")
        together, in_flight = np.empty_like(starts), np.empty_like(starts)
        together[order] = np.bincount(part)[part]
        in_flight[order] = np.maximum(0, before - over)
        return cls(together, in_flight)

    def parts(self) -> Ints:
        """Numbers the rows by how many calls of their loop ran together."""
        edges = np.unique(self.together)[1:]
        if edges.size >= _SIZES:
            edges = np.unique(np.quantile(self.together, np.linspace(0, 1, _SIZES + 1)[1:-1]))
        return np.searchsorted(edges, self.together, side="right").astype(np.int64)


def stretches(group: Ints, least: int, most: int) -> Ints:
    """Numbers stretches of neighbouring rows of one group: `least` rows or more, at most `most` a group."""
    numbers = np.empty(group.size, dtype=np.int64)
    made = 0
    for one in np.unique(group):
        rows = np.flatnonzero(group == one)
        count = int(np.clip(rows.size // least, 1, most))
        numbers[rows] = made + np.arange(rows.size) * count // rows.size
        made += count
    return numbers


def medians(values: Floats, part: Ints, usable: Bools) -> Floats:
    """Of each row the median of its part."""
    found = np.zeros(int(part.max(initial=0)) + 1)
    order = np.argsort(part, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
        chosen = values[rows[usable[rows]]]
        if rows.size:
            found[part[rows[0]]] = np.median(chosen) if chosen.size else 0.0
    return found[part]
