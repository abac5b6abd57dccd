"""How the time of a search is spent, pure: what a trial takes, how many fit, and the budget that suffices.

And what else it may spend: loops, requests, tokens and money.

A window lasts at least three loops: shorter ones measure how a load starts. Where time is short there are
fewer candidates, then fewer blocks, and never shorter windows. Agents start one after another over about
the length of a loop, and the last loops are waited for: both are part of the time of a trial.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from profiler.load.options import LoadOptions
from profiler.load.spending import Resource
from profiler.rundir import Run, Spent

WINDOW_LOOPS = 3.0
PILOT_LOOPS = 1.5
"""The pilot only looks; nothing it measures is promised."""

LEAST_WINDOW, MOST_WINDOW = 2.0, 60.0
"""Seconds."""

DRAIN_LOOPS = 1.5
START, END = 6.0, 2.0
"""Seconds of an experiment before its first trial, until one has been seen, and of what follows the last."""

PILOT_SHARE = 0.45
"""The share of the budget after which the pilot is over, so that a refusal comes in the first half."""

LOADED = 2.5
"""How much longer a loop may be under the load than alone, where the load has not been seen."""

MARGIN = 1.25
"""Of the budget that is named as sufficient."""

SHARES = {"limits": 0.3, "final": 0.45, "loads": 0.15, "confirm": 0.1}
"""Shares of the time after the first look, by stage; what one leaves over is for those after it."""
SHARES_PREDICTED = {"proof": 0.75, "loads": 0.0, "confirm": 0.25}
"""The same where everything was predicted, other loads as well, and only the best is measured."""
SHARES_ASSUMED = {"proof": 0.65, "loads": 0.15, "confirm": 0.2}
"""The same where that was predicted from what is likely."""
BLOCKS = {"limits": 2, "final": 8, "loads": 1, "proof": 5}
"""Blocks of each stage, at most."""
DECIDING = ("final", "proof")
"""Stages that decide: they may end as soon as their candidates are told apart."""


def trial_seconds(loop: float, window: float = 0.0, loops: float = WINDOW_LOOPS) -> float:
    """The time of a trial whose mean loop takes `loop` seconds, and which measures at least `window`."""
    measured = max(window, LEAST_WINDOW, loops * loop)
    return min(loop, measured / 2) + measured + DRAIN_LOOPS * loop


def fitting(loops: Sequence[float], seconds: float, blocks: int = 1) -> int:
    """How many candidates, the first ones of those with these mean loops, can be measured in `blocks`."""
    count, left = 0, seconds
    for loop in loops:
        left -= blocks * trial_seconds(loop)
        if left < 0:
            break
        count += 1
    return count


def within(loops: Sequence[float], seconds: float) -> list[int]:
    """The places of the candidates that there is time to measure; one that takes too long is left out."""
    places, left = [], seconds
    for place, loop in enumerate(loops):
        if trial_seconds(loop) <= left:
            places.append(place)
            left -= trial_seconds(loop)
    return places


def affordable(loops: Sequence[float], seconds: float, most: int) -> int:
    """In how many blocks, up to `most` and at least one, all these candidates can be measured."""
    each = sum(map(trial_seconds, loops))
    return max(1, min(most, int(seconds / each))) if each else 1


def window_seconds(loops: Sequence[float], seconds: float, blocks: int) -> float:
    """The longest window, the same for all candidates, with which they fit into `seconds`."""
    low, high = LEAST_WINDOW, MOST_WINDOW
    for _ in range(20):
        middle = (low + high) / 2
        if blocks * sum(trial_seconds(loop, middle) for loop in loops) <= seconds:
            low = middle
        else:
            high = middle
    return low


def sufficient(loop: float, budget: float, start: float = START) -> float:
    """A budget, in seconds and above `budget`, for loops that take up to `loop` under the load."""
    pilot = (start + loop + 2 * trial_seconds(loop, loops=PILOT_LOOPS)) / PILOT_SHARE
    rest = (start + 3 * trial_seconds(loop) + END) / (1 - PILOT_SHARE)
    return math.ceil(max(MARGIN * max(pilot, rest), budget + 1) / 30) * 30.0


# What a search may spend over all its experiments: each gets what those before it left.


class Spending:
    """The spending that `options` allow, and that done so far; `limit` is the limit that ended the search."""

    def __init__(self, options: LoadOptions) -> None:
        self.spent = Spent()
        self.limit: Resource | None = None
        self._options = options
        self._budget = options.budget()

    def add(self, run: Run) -> None:
        """Count an experiment that has ended, perhaps because it came to a limit."""
        self.spent += run.spent or Spent()
        self._budget = self._options.budget(run.model)
        if any(incident.kind == "limited" for incident in run.incidents):
            _, self.limit = self._budget.room(self.spent, 0)

    def allows(self, first_loops: int) -> bool:
        """Whether another experiment may begin, whose clients spend `first_loops` on getting ready."""
        if self.limit is None and self.spent.loops:
            room, which = self._budget.room(self.spent, 0)
            if room <= first_loops:
                self.limit = which
        return self.limit is None

    def left(self) -> LoadOptions:
        """The options, limited to what is left."""
        options, used = self._options, self._budget.used

        def rest(limit: int | None, resource: Resource) -> int | None:
            # 1 is the smallest limit that options can have; `allows` decides whether to begin at all.
            return None if limit is None else max(1, math.floor(limit - used(self.spent, resource)))

        return replace(
            options,
            max_loops=rest(options.max_loops, "loops"),
            max_requests=rest(options.max_requests, "requests"),
            max_tokens=rest(options.max_tokens, "tokens"),
            max_cost=options.max_cost and max(1e-9, options.max_cost - used(self.spent, "cost")),
        )

    @property
    def stopped(self) -> str | None:
        """Which limit ended the search, in words; None when none did."""
        return None if self.limit is None else self._budget.stopped(self.limit, self.spent)

    @property
    def described(self) -> str:
        """The spending in words, with its cost where the price is known."""
        return self._budget.describe(self.spent)
