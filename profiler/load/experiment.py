"""Runs a load test from outside: Locust in a process of its own, and the run directory that it leaves.

So the caller's process stays free of gevent, and keeps its standard output to itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from profiler.errors import Interrupted, ProfilerError, RecordError, Terminated, UsageError
from profiler.load.declared import Options
from profiler.load.locust_process import (
    KILL_SECONDS,
    STARTING,
    LeaderKilledError,
    LocustProcess,
    started_locust,
)
from profiler.load.options import SECRETS, LoadOptions, Size, conditions
from profiler.load.output import SETTLED
from profiler.load.plan import MOST_DRAIN_SECONDS, blocks_for, turns
from profiler.process.modes import opener_like
from profiler.process.ports import free_port
from profiler.redaction import describe
from profiler.rundir import Follower, Incident, Progress, RunDirectory
from profiler.scenarios import load_scenario

LOCUSTFILE = Path(__file__).with_name("locustfile.py")

SPAWN_RATE = 100
"""Users a second at most; Locust warns above that."""

OVERHEAD_SECONDS = 180.0
"""Start, preparation, ramp and exit, at the very most."""

FOLLOW_SECONDS = 0.25

_SIZE = Size()


@dataclass(frozen=True, slots=True)
class Experiment:
    """A load test of `profiler compare`: `users` agents, `seconds` of measuring per strategy over all blocks.

    `workers` 1 runs everything in one process; more are a Locust master and that many workers.
    """

    options: LoadOptions
    users: int = _SIZE.users
    seconds: float = _SIZE.seconds
    workers: int = _SIZE.workers

    def __post_init__(self) -> None:
        Size(self.users, self.workers, self.seconds)  # refuses what cannot be

    @property
    def blocks(self) -> int:
        options = self.options
        if options.blocks is not None:
            return options.blocks
        return 1 if options.uninterrupted else blocks_for(self.seconds)

    @property
    def limit_seconds(self) -> float:
        """A test that takes longer than this hangs."""
        options = self.options
        trials = self.blocks * turns(len(options.strategies), len(options.levels), climb=options.climb)
        drain = self.options.drain_seconds
        if self.options.uninterrupted:
            drain = max(drain, MOST_DRAIN_SECONDS)
        each = self.seconds / self.blocks + drain + 20.0
        return OVERHEAD_SECONDS + self.users / SPAWN_RATE + trials * each


def run_experiment(
    experiment: Experiment,
    progress: Callable[[str], None] | None = None,
    watch: Callable[[Progress], None] | None = None,
    enough: Callable[[RunDirectory], bool] | None = None,
    meanwhile: Callable[[], None] = lambda: None,
    locust: LocustProcess | None = None,
) -> Path:
    """Run an experiment; returns the path of the run directory.

    `progress` gets a line at each step, `watch` the progress every second. `enough` is asked after every
    block whether what was measured suffices: then the run ends before its next trial. `meanwhile` is called
    once Locust's process has its command line, and still takes a second or more until the load begins: it may
    take as long, and do nothing afterwards. All are called from threads of their own. `locust` is started
    here unless it is given.

    After one interrupt (SIGINT) the loops in flight are waited for and the rest is left out; after a second
    one they are cut off. After `Terminated` they are cut off in `DRAIN_SECONDS`. Either way the run directory
    is complete for what had finished, its `finished` is false and its `incidents` say `interrupted` or
    `terminated`. Where nothing had been measured, or no end came, `Interrupted` or `Terminated` is raised.

    Raises `UsageError` for options that cannot be used, `TargetError` when the target cannot be reached,
    refuses us or goes away, `ProfilerError` when Locust failed. All of these name the run directory, unless
    nothing was recorded in it: then it is removed.
    """
    if locust is None:
        with started_locust(experiment.options.agent is not None) as started:
            return run_experiment(experiment, progress, watch, enough, meanwhile, started)
    options = experiment.options
    options.check_variants()
    options.check_targets(os.environ)
    load_scenario(options.scenario)
    options = replace(
        options, blocks=experiment.blocks, trial_seconds=max(0.1, experiment.seconds / experiment.blocks)
    )
    directory = RunDirectory.create(options.out, conditions(options, experiment.users))
    try:
        options = replace(options, run_directory=str(directory.path))
        locust.begin(command_line(experiment, options), secrets_in_environment(options), progress)
        _wait(locust, experiment, directory, progress, watch, enough, meanwhile)
    except KeyboardInterrupt as error:
        raise _ended_early(error, directory) from None
    except BaseException as error:
        kept = not directory.remove_if_unused()
        if kept and isinstance(error, LeaderKilledError):
            raise LeaderKilledError(f"{error}; what was recorded is in {directory.path}") from None
        if kept and isinstance(error, ProfilerError) and not isinstance(error, UsageError):
            error.run_directory = str(directory.path)
        raise
    ended = _EARLY.get(next((i.kind for i in directory.load().incidents if i.kind in _EARLY), ""))
    if ended is not None and directory.records_path.stat().st_size == 0:
        raise _ended_early(ended(), directory)
    return directory.path


_EARLY: dict[str, type[Interrupted]] = {kind.incident: kind for kind in (Interrupted, Terminated)}


def _ended_early(error: KeyboardInterrupt, directory: RunDirectory) -> Interrupted:
    """The error to raise when a run was ended before its first trial, or did not end as it was told to."""
    ended = error if isinstance(error, Interrupted) else Interrupted()
    if directory.remove_if_unused():
        ended.outcome = "before anything was measured: nothing is kept"
        return ended
    with contextlib.suppress(RecordError):
        run = directory.load()
        if all(incident.kind != ended.incident for incident in run.incidents):
            incident = Incident(ended.incident, ended.cause)
            directory.save(replace(run, incidents=(*run.incidents, incident)))
    measured = directory.records_path.stat().st_size > 0
    ended.outcome = f"{'in the middle' if measured else 'before anything was measured'}; see {directory.path}"
    return ended


def _wait(
    locust: LocustProcess,
    experiment: Experiment,
    directory: RunDirectory,
    progress: Callable[[str], None] | None,
    watch: Callable[[Progress], None] | None,
    enough: Callable[[RunDirectory], bool] | None,
    meanwhile: Callable[[], None],
) -> None:
    """Wait for Locust's end, and follow what it does until then."""
    beside = threading.Thread(target=meanwhile, daemon=True)
    beside.start()
    over = threading.Event()
    first = Progress(locust.started, "preparing", step=STARTING)
    watcher = threading.Thread(
        target=_follow, args=(directory, first, watch, enough, over, progress), daemon=True
    )
    watcher.start()
    try:
        locust.wait(experiment.limit_seconds)
    finally:
        over.set()
        watcher.join(KILL_SECONDS)
        beside.join()  # an interpreter that ends while C++ is being imported may abort


def command_line(experiment: Experiment, options: LoadOptions) -> list[str]:
    """Locust's arguments."""
    command = ["-f", str(LOCUSTFILE), "--headless", "--only-summary"]
    most = max((experiment.users, *options.levels))  # the rate holds for all steps of a ladder
    command += ["-u", str(experiment.users), "-r", str(min(most, SPAWN_RATE))]
    command += ["--exit-code-on-error", "0", f"--run-directory={options.run_directory}"]
    if experiment.workers > 1:
        port = str(free_port())
        command += ["--processes", str(experiment.workers), "--expect-workers-max-wait", "60"]
        command += ["--enable-rebalancing"]  # the agents of a worker that died start again on the others
        command += ["--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port]
    return command


def secrets_in_environment(options: Options) -> dict[str, str]:
    """The secrets among the options, as `asked` finds them in an environment; empty without secrets."""
    secrets = options.secrets()
    return {SECRETS: json.dumps(secrets)} if secrets else {}


def _follow(
    directory: RunDirectory,
    first: Progress,
    watch: Callable[[Progress], None] | None,
    enough: Callable[[RunDirectory], bool] | None,
    over: threading.Event,
    say: Callable[[str], None] | None = None,
) -> None:
    """Whatever fails here is said once and tried again: files may be read while they are being written."""
    if watch is None and enough is None:
        return
    follower = Follower(directory.path)
    came: Iterable[Progress] = [first]
    block, last = 1, False
    failed: set[str] = set()

    def fails(what: str, error: Exception) -> None:
        if what not in failed and say is not None:
            with contextlib.suppress(Exception):  # of the stream that it would be written to
                say(f"{what} failed, and is tried again: {describe(error)}")
        failed.add(what)

    while True:
        for progress in came:
            if watch is not None:
                try:
                    watch(progress)
                except Exception as error:
                    fails("the live view", error)
            if enough is not None and progress.block > block:
                block = progress.block
                try:
                    if enough(directory):
                        open(directory.path / SETTLED, "ab", opener=opener_like(directory.path)).close()
                        enough = None
                except Exception as error:
                    fails("the look at whether this is enough", error)
        if last:
            return
        last = over.wait(FOLLOW_SECONDS)
        came = follower.new()
