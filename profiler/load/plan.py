"""The plan of a load test: its trials, their order and length, and the tape entries that they work on.

Pure: no clock, no sockets. The leader and the workers ask here.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

NUMBERS_PER_PART = 1_000_000
"""Tape entries set aside for one part; a trial that used more would run into the next one's."""

WARM_UP_BLOCK = 999
"""The block whose tape entries are used, unmeasured, while users are still being spawned."""

FEWEST_BLOCKS, MOST_BLOCKS = 3, 10
"""Fewer than three blocks give no confidence interval, more than ten hardly a better one."""

BLOCK_SECONDS = 5.0
"""A block measures each strategy at least this long before the time is cut into more than three."""

LEAST_SECONDS = 1.0
"""A shorter block says nothing: where time is that short, there are fewer than three blocks."""


@dataclass(frozen=True, slots=True)
class PlannedTrial:
    """One strategy's turn. `index` counts all trials of the run, `block` the rounds of turns.

    An `index` below 0: nothing is measured. `users` is the level of a ladder of loads, None without one.
    """

    index: int
    block: int
    strategy: str
    users: int | None = None


def schedule(
    strategies: Sequence[str],
    seed: int,
    blocks: int | None = None,
    levels: Sequence[int] = (),
    *,
    climb: bool = False,
) -> Iterator[PlannedTrial]:
    """The trials of complete blocks, without end when `blocks` is None.

    A block runs every strategy once, in a random order, on every level; levels rise within a block. In a
    `climb` all but the first strategy run on the highest level only.
    """
    index = itertools.count()
    for block in itertools.count() if blocks is None else range(blocks):
        for users in sorted(levels) or (None,):
            every = not climb or users is None or users == max(levels)
            for strategy in block_order(strategies if every else strategies[:1], seed, block, users):
                yield PlannedTrial(next(index), block, strategy, users)


def turns(strategies: int, levels: int, *, climb: bool = False) -> int:
    """The trials of a block of `schedule`."""
    if climb and levels:
        return strategies + levels - 1
    return strategies * max(1, levels)


def block_order(strategies: Sequence[str], seed: int, block: int, users: int | None = None) -> list[str]:
    """The order within a block: a function of (seed, block, level), so that a run can be repeated."""
    order = list(strategies)
    random.Random(f"{seed}/{block}" if users is None else f"{seed}/{block}/{users}").shuffle(order)
    return order


def tape_numbers(part: int, worker: int, workers: int) -> Iterator[int]:
    """The tape entries that worker `worker` of `workers` works on in a trial.

    Strategies that are compared in a block work on the same part of the tape.

    Entries i ≡ worker (mod workers): the workers' shares are disjoint, and together leave nothing out.
    """
    return itertools.count(part * NUMBERS_PER_PART + worker, workers)


def blocks_for(seconds: float) -> int:
    """How many blocks to cut `seconds` per strategy into: few when time is short."""
    if seconds < FEWEST_BLOCKS * LEAST_SECONDS:
        return max(1, int(seconds / LEAST_SECONDS))
    return max(FEWEST_BLOCKS, min(MOST_BLOCKS, int(seconds / BLOCK_SECONDS)))


@dataclass(frozen=True, slots=True)
class Timing:
    """How long the trials of a run are.

    With `total` seconds for everything, windows and drains together fill them. Else each trial measures
    `window` seconds, and drains come on top. `blocks` None: until the test is stopped.
    """

    window: float
    blocks: int | None
    total: float | None = None

    def block_window(self, turns: int, block: int, elapsed: float, drain: float) -> float:
        """Seconds that each of the `turns` trials of `block` measures, decided when the block begins.

        `elapsed` seconds of the total are gone, and draining took up to `drain` seconds so far. At least half
        of a trial's share is measured; where draining takes more than the rest, later trials get less.
        """
        if self.total is None or self.blocks is None:
            return self.window
        trials = (self.blocks - block) * turns
        share = (self.total - elapsed) / trials
        return max(share / 2, share - drain)

    def fit(self, window: float, trials_left: int | None, elapsed: float) -> float:
        """`window`, or less where drains took so long that the trials left would not get their share."""
        if self.total is None:
            return window
        share = (self.total - elapsed) / (trials_left or 1)
        return max(0.0, min(window, share))


def timing(
    *, turns: int, total: float | None, window: float | None, blocks: int | None, default_window: float
) -> Timing:
    """The timing that the user asked for; a block has `turns` trials.

    `total` is Locust's `-t`. It is filled with `blocks` blocks (by default as many as `blocks_for` says),
    unless a `window` is asked for: then blocks of such trials follow each other until the time is over.
    """
    if total is None:
        return Timing(default_window if window is None else window, blocks)
    if window is not None:
        return Timing(window, blocks, total)
    return Timing(0.0, blocks_for(total / turns) if blocks is None else blocks, total)


def ramp_seconds(users: int, rate: float) -> float:
    """How long Locust takes to spawn `users` at `rate` a second; it spawns the first `rate` at once."""
    return max(0.0, (users - rate) / rate) if rate > 0 else 0.0


MOST_DRAIN_SECONDS = 600.0
"""The longest drain, in seconds; calls that still wait then are cut off, and counted."""


def drain_bound(waiting: int, ended: int, seconds: float, least: float = 30.0) -> float:
    """Seconds to wait until `waiting` calls have ended, where `ended` ones did in `seconds`: with a margin.

    Twice the time that the server needs for them at that rate, `least` and `MOST_DRAIN_SECONDS` at the ends.
    """
    if not ended or seconds <= 0:
        return least
    return min(MOST_DRAIN_SECONDS, max(least, 2 * waiting * seconds / ended + 10))


def agent_name(ordinal: int) -> str:
    """The name of an agent by its number in its process."""
    return f"a{ordinal}"
