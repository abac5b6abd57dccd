"""Runs the experiments of a search, within its budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from profiler.arrivals import scaled
from profiler.errors import Interrupted, ProfilerError, TargetError, Terminated
from profiler.load.experiment import Experiment
from profiler.process.signals import signals
from profiler.rundir import RunDirectory
from profiler.strategies import parse_strategies
from profiler.tune.asked import Search
from profiler.tune.budget import DECIDING, END, SHARES, START, WINDOW_LOOPS, Spending, trial_seconds


class LimitReachedError(ProfilerError):
    """A limit on what may be spent is reached: no more experiments begin."""


@dataclass(frozen=True, slots=True)
class Planned:
    """An experiment of paired blocks: each trial measures `window` seconds, and `loops` loops, at least.

    It is over at `until` by the clock, with fewer trials if need be. `climb`: from the smallest of `levels`
    to the largest, each trial with work of its own.
    """

    name: str
    specs: tuple[str, ...]
    blocks: int
    window: float
    until: float
    levels: tuple[int, ...] = ()
    loops: float = WINDOW_LOOPS
    climb: bool = False


class Experiments:
    """Those of one search: `run` runs one, `clock` (seconds) is what the budget is measured by.

    `directories` are those so far, `failed` the last one where it failed or was interrupted but left
    records, and `start_seconds` what one takes beside its trials. `shares` are what the stages to come get
    of the time that is left.
    """

    def __init__(
        self,
        search: Search,
        say: Callable[[str], None],
        run: Callable[..., Path],
        clock: Callable[[], float],
    ) -> None:
        self._search = search
        self._say = say
        self._run = run
        self._clock = clock
        self.began = clock()
        self.directories: list[RunDirectory] = []
        self.failed: RunDirectory | None = None
        self.spending = Spending(search.load)
        self.start_seconds = START
        self.shares = dict(SHARES)

    @property
    def end(self) -> float:
        """When the last experiment has to be over, by the clock."""
        return self.began + self._search.budget - END

    @property
    def left(self) -> float:
        """Seconds until then."""
        return self.end - self._clock()

    @property
    def passed(self) -> float:
        """Seconds since the search began."""
        return self._clock() - self.began

    @property
    def paths(self) -> str:
        return ", ".join(str(directory.path) for directory in self.directories)

    def share(self, name: str, loop: float) -> tuple[float, float]:
        """(seconds for the trials of a stage, when they end at the latest); those after it get their own.

        A loop takes `loop` seconds.
        """
        left = self.left
        share = left * self.shares[name] / sum(self.shares.values())
        del self.shares[name]
        least = trial_seconds(loop)
        start = self.start_seconds
        if name in DECIDING and (left - share < start + least or share < start + 3 * least):
            share = left  # no stage after it could begin, or not even it
        return share - start, min(self.end, self._clock() + share)

    def run(self, planned: Planned, enough: Callable[[RunDirectory], bool] | None = None) -> RunDirectory:
        """Run one, which is over when there is `enough`, too.

        The work is new in each. Raises `LimitReachedError` when too little is left to spend on it.
        """
        search = self._search
        self.failed = None
        # The user's own agents are made anew for each strategy, and each has a first loop.
        if not self.spending.allows(search.workers * (len(planned.specs) if search.load.agent else 1)):
            raise LimitReachedError
        levels, blocks, window = planned.levels, planned.blocks, planned.window
        load = f" at {', '.join(map(str, levels))} agents" if levels else ""
        self._say(f"{planned.name}: {', '.join(planned.specs)}{load}, {blocks} × {window:.1f} s each")
        options = replace(
            self.spending.left(),
            strategies=parse_strategies(planned.specs),
            blocks=blocks,
            levels=levels,
            seed=search.load.seed + len(self.directories),
            calibration_seconds=search.load.calibration_seconds if planned.name in DECIDING else 0.0,
            metrics=False,
            window_loops=planned.loops,
            until_seconds=planned.until,
            climb=planned.climb,
            own_work=planned.climb,
        )
        most = max(levels, default=search.users)
        began = self._clock()
        if search.load.arrivals is not None and levels:
            # Each agent is a source of arrivals: more agents make more of them, each as many as before.
            options = replace(options, arrivals=scaled(search.load.arrivals, most / search.users))
        experiment = Experiment(options, most, window * blocks, search.workers)
        try:
            directory = RunDirectory.open(self._run(experiment, enough=enough))
        except TargetError as error:
            if error.run_directory is not None:
                self.failed = RunDirectory.open(error.run_directory)
                self.directories.append(self.failed)
                self.spending.add(self.failed.load())
            raise
        self.directories.append(directory)
        signals.outcome = f"before the search had come to its end; see {self.paths}"
        run = directory.load()
        if run.trials:
            measured = (run.trials[-1].drained_ns - run.trials[0].started_ns) / 1e9
            self.start_seconds = max(0.0, self._clock() - began - measured)
        self.spending.add(run)
        for ended in (Terminated, Interrupted):
            if any(incident.kind == ended.incident for incident in run.incidents):
                self.failed = directory
                raise ended()
        return directory
