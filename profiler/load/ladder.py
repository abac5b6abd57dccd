"""The load test whose recording can be predicted from: a short ladder of loads that goes past the capacity.

Pure.
"""

from __future__ import annotations

from dataclasses import replace

from profiler.errors import UsageError
from profiler.load.options import DEFAULT_STRATEGIES, LoadOptions
from profiler.strategies import StrategySpec

SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)
"""Levels, as shares of the agents asked for.

A capacity is known only to a recording that went past it, and the times of calls that wait for nothing only
to one that stayed below.
"""

FEWEST_LEVELS = 3

GATHERED = StrategySpec("gathered")
SEQUENTIAL = StrategySpec("sequential", "sequential")


def ladder(users: int) -> tuple[int, ...]:
    """The levels around so many agents, each once."""
    levels = sorted({max(1, round(users * share)) for share in SHARES})
    while len(levels) < FEWEST_LEVELS:
        levels.append(levels[-1] + 1)
    return tuple(levels)


def for_prediction(options: LoadOptions, users: int, *, paid: bool) -> LoadOptions:
    """The options with levels and strategies of such a test, where none were named.

    Gathering asks most of the servers; where requests are not `paid` for, `sequential` shows calls alone too.
    Each turn does work of its own: a prediction is as good as the number of different loops.
    Raises `UsageError` for options that end the test where it gets interesting.
    """
    if options.abort_on is not None:
        raise UsageError(
            f"--for-prediction goes to where calls fail, and --abort-on {options.abort_on} ends the test "
            "there: leave one of them out"
        )
    if options.strategies is DEFAULT_STRATEGIES:
        strategies = (GATHERED,) if paid else (GATHERED, SEQUENTIAL)
        options = replace(options, strategies=strategies)
    return replace(options, levels=options.levels or ladder(users), own_work=True)
