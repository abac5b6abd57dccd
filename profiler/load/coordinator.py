"""Runs the trials of a load test, on Locust's master or on the only process.

It leads the team through them, waits until all have drained, and writes the run directory.
Strategies never run mixed: the next trial begins when the last loop of this one has ended
everywhere.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import Any

from gevent.event import Event

from profiler import rundir
from profiler.errors import ProfilerError
from profiler.load.options import LoadOptions
from profiler.load.plan import (
    WARM_UP_BLOCK,
    Pacing,
    PlannedTrial,
    effective_limit,
    pacing,
    ramp_seconds,
    schedule,
)
from profiler.load.team import Team
from profiler.rundir import Incident, Run, RunDirectory
from profiler.strategies import parse_strategy

DEFAULT_WINDOW = 10.0
"""Seconds a trial measures when nothing says how long: the web UI's start without a run time."""

SPAWN_GRACE_SECONDS = 30.0
SHORT_RAMP_SECONDS = 1.0
"""Up to this long, agents wait for each other; during longer ramps they work, and nothing is measured."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Ramp:
    """What the user asked Locust for: `users` at `rate` a second, `seconds` in all (None: until stopped)."""

    users: int
    rate: float
    seconds: float | None


class Coordinator:
    """One load test, from its first trial to its last."""

    def __init__(
        self, options: LoadOptions, root: str, ramp: Ramp, team: Team, directory: RunDirectory, run: Run
    ) -> None:
        self.options = options
        self.run_data = run
        self.directory = directory
        self.error: ProfilerError | None = None
        self.records = 0
        self._root = root
        self._ramp = ramp
        self._team = team
        self._stop = Event()
        self._spawned = Event()
        self._started = time.monotonic()
        self._longest_drain = 0.0
        self._file = open(directory.records_path, "ab")  # noqa: SIM115 (closed by finish)
        self._pacing: Pacing = pacing(
            strategies=len(options.strategies),
            total=ramp.seconds,
            window=options.trial_seconds,
            blocks=options.blocks,
            default_window=DEFAULT_WINDOW,
        )

    # Called from other greenlets:

    def spawned(self) -> None:
        """All users are there."""
        self._spawned.set()

    def stop(self) -> None:
        """Let the trial under way be the last: its loops drain, nothing new starts."""
        self._stop.set()

    def cut(self) -> None:
        """Stop, and wait for nothing."""
        self._stop.set()
        self._team.cut()

    def write(self, lines: bytes, count: int) -> None:
        """Records of a worker, or of this process."""
        if not self._file.closed:
            self._file.write(lines)
            self._file.flush()
            self.records += count

    # The coordinator's own greenlet:

    def run(self) -> None:
        """Run all trials. What ends it early is in `error`; the run directory is whole in any case."""
        try:
            if self._ramp_up():
                self._trials()
                self._say_who_had_no_turn()
                self._stop.wait(self.options.linger_seconds)
            self._save(finished=not self._stop.is_set() or self._time_is_out())
        except ProfilerError as error:
            self.error = error
            self.note(Incident("aborted", str(error)))

    def finish(self) -> None:
        """After the last record has come."""
        self._file.close()
        _log.info("%d loops recorded in %s", self.records, self.directory.path)

    def _ramp_up(self) -> bool:
        """Prepare the workers and see the users in; False when stopped meanwhile."""
        workers = self._enlist()
        self._save(model=self._team.model, workers=len(workers))
        self._print_limits(len(workers))
        ramp = ramp_seconds(self._ramp.users, self._ramp.rate)
        if ramp > SHORT_RAMP_SECONDS and not self._spawned.is_set():
            _log.info("users are being spawned for some %.0f s: nothing is measured until then", ramp)
            self._team.begin(
                workers, None, WARM_UP_BLOCK, next(schedule(self.options.strategies, 0)).strategy
            )
            self._wait(self._spawned, ramp + SPAWN_GRACE_SECONDS)
            self._end(workers)
        else:
            self._wait(self._spawned, SPAWN_GRACE_SECONDS)
        return not self._stop.is_set()

    def _trials(self) -> None:
        strategies, blocks = self.options.strategies, self._pacing.blocks
        trials = None if blocks is None else blocks * len(strategies)
        window = 0.0
        for planned in schedule(strategies, self.options.seed, blocks):
            if planned.index % len(strategies) == 0:
                window = self._pacing.block_window(
                    len(strategies), planned.block, self._elapsed(), self._longest_drain
                )
            left = None if trials is None else trials - planned.index
            seconds = self._pacing.fit(window, left, self._elapsed())
            if self._stop.is_set() or seconds <= 0:
                break
            self._trial(planned, seconds)

    def _say_who_had_no_turn(self) -> None:
        turns = {trial.strategy for trial in self.run_data.trials}
        missed = [strategy for strategy in self.options.strategies if strategy not in turns]
        if missed:
            _log.warning("no turn for %s: give it more time or fewer strategies", ", ".join(missed))

    def _trial(self, planned: PlannedTrial, seconds: float) -> None:
        workers = self._enlist()
        _log.info("trial %d: %s for %.1f s", planned.index, planned.strategy, seconds)
        started_ns = time.monotonic_ns()
        self._team.begin(workers, planned.index, planned.block, planned.strategy)
        self._stop.wait(seconds)
        users = self._team.users()
        ended_ns = time.monotonic_ns()
        interrupted = self._end(workers)
        drained_ns = time.monotonic_ns()
        self._longest_drain = max(self._longest_drain, (drained_ns - ended_ns) / 1e9)
        trial = rundir.Trial(
            index=planned.index,
            block=planned.block,
            strategy=planned.strategy,
            users=users,
            started_ns=started_ns,
            ended_ns=ended_ns,
            drained_ns=drained_ns,
            interrupted=interrupted,
        )
        self._save(trials=(*self.run_data.trials, trial), workers=len(workers))

    def _enlist(self) -> list[str]:
        workers = self._team.enlist(self.options, self._root)
        # The best guess at what draining takes, until it has been seen.
        self._longest_drain = max(self._longest_drain, self._team.loop_seconds)
        return workers

    def _end(self, workers: list[str]) -> int:
        """End the trial under way; returns how many loops were cut off."""
        interrupted, lost = self._team.end(workers, self.options.drain_seconds)
        if lost:
            self.note(Incident("worker_lost", "a worker left during a trial", lost))
        return interrupted

    def _wait(self, event: Event, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not event.is_set() and not self._stop.is_set() and time.monotonic() < deadline:
            event.wait(0.05)

    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _time_is_out(self) -> bool:
        return self._ramp.seconds is not None and self._elapsed() > self._ramp.seconds - 1.0

    def _print_limits(self, workers: int) -> None:
        for spec in self.options.strategies:
            strategy = parse_strategy(spec)
            _log.info("%s", effective_limit(spec, strategy.limit, strategy.scope, self._ramp.users, workers))

    def note(self, incident: Incident) -> None:
        """Keep what happened with the run."""
        _log.warning("%s: %s", incident.kind, incident.detail)
        self._save(incidents=(*self.run_data.incidents, incident))

    def _save(self, **changes: Any) -> None:
        self.run_data = dataclasses.replace(self.run_data, **changes)
        self.directory.save(self.run_data)
