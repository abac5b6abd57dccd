"""Runs a load test from outside: Locust in a process of its own, and the run directory that it leaves.

So the caller's process stays free of gevent, and keeps its standard output to itself.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from profiler.errors import (
    Interrupted,
    ProfilerError,
    RecordError,
    TargetError,
    Terminated,
    UsageError,
)
from profiler.load.declared import Options
from profiler.load.options import SECRETS, LoadOptions, Size, conditions
from profiler.load.output import SETTLED
from profiler.load.plan import MOST_DRAIN_SECONDS, blocks_for, turns
from profiler.process.modes import opener_like
from profiler.process.ports import free_port
from profiler.process.signals import DRAIN_SECONDS, ENDING
from profiler.process.streams import IN_CHILDREN
from profiler.redaction import describe
from profiler.rundir import Follower, Incident, Progress, RunDirectory
from profiler.scenarios import load_scenario

PARENT_FD = "PROFILER_PARENT_FD"
"""Environment variable with the number of an inherited descriptor; it reads end-of-file when we are gone."""

_ENDED = {
    **dict.fromkeys((Interrupted.exit_code, -signal.SIGINT), Interrupted),
    **dict.fromkeys((Terminated.exit_code, *(-number for number in ENDING)), Terminated),
}
"""Locust's exit codes when it was ended before anything had begun; by the signal while it still imported."""

LOCUSTFILE = Path(__file__).with_name("locustfile.py")

SPAWN_RATE = 100
"""Users a second at most; Locust warns above that."""

OVERHEAD_SECONDS = 180.0
"""Start, preparation, ramp and exit, at the very most."""

KILL_SECONDS = 10.0
"""How long Locust may take to leave by itself before it is killed."""

KEPT_LINES = 500
"""Last lines of Locust's output that are kept: its tables at the end come after its complaints."""

FOLLOW_SECONDS = 0.25

_SAID = re.compile(r"(?:locust: error: |/(?:ERROR|WARNING|INFO)/profiler\.(?:load|exporters)\.[\w.]+: )(.*)")
_REFUSAL = re.compile(r"(?:locust: error: |/ERROR/profiler\.[\w.]+: )(.*)")
_FAILURE = re.compile(r"(?:locust: error: |/(?:ERROR|CRITICAL)/[\w.]+: )(.*)")
_RAISED = re.compile(r"[A-Za-z_][\w.]*(?:: .*)?")
"""The last line of a traceback."""

_SIZE = Size()


class LeaderKilledError(ProfilerError):
    """Locust's process, which leads a load test, was killed by a signal."""


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
) -> Path:
    """Run an experiment; returns the path of the run directory.

    `progress` gets a line at each step, `watch` the progress every second. `enough` is asked after every
    block whether what was measured suffices: then the run ends before its next trial. `meanwhile` is called
    once Locust's process has started, which takes seconds to import what it needs: it may do the same, and
    nothing afterwards, when the load runs. All are called from threads of their own.

    After one interrupt (SIGINT) the loops in flight are waited for and the rest is left out; after a second
    one they are cut off. After `Terminated` they are cut off in `DRAIN_SECONDS`. Either way the run directory
    is complete for what had finished, its `finished` is false and its `incidents` say `interrupted` or
    `terminated`. Where nothing had been measured, or no end came, `Interrupted` or `Terminated` is raised.

    Raises `UsageError` for options that cannot be used, `TargetError` when the target cannot be reached,
    refuses us or goes away, `ProfilerError` when Locust failed. All of these name the run directory, unless
    nothing was recorded in it: then it is removed.
    """
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
        _run(experiment, options, directory, progress, watch, enough, meanwhile)
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


def _run(
    experiment: Experiment,
    options: LoadOptions,
    directory: RunDirectory,
    progress: Callable[[str], None] | None,
    watch: Callable[[Progress], None] | None,
    enough: Callable[[RunDirectory], bool] | None,
    meanwhile: Callable[[], None],
) -> None:
    """Run Locust from its start to its end."""
    with _locust(experiment, options) as process:
        assert process.stderr is not None
        said: deque[str] = deque(maxlen=KEPT_LINES)
        reader = threading.Thread(target=_listen, args=(process.stderr, said, progress), daemon=True)
        reader.start()
        beside = threading.Thread(target=meanwhile, daemon=True)
        beside.start()
        over = threading.Event()
        watcher = threading.Thread(
            target=_follow, args=(directory, watch, enough, over, progress), daemon=True
        )
        watcher.start()
        try:
            code, told = _wait(process, experiment.limit_seconds)
            reader.join(KILL_SECONDS)
        finally:
            over.set()
            watcher.join(KILL_SECONDS)
            beside.join()  # an interpreter that ends while C++ is being imported may abort
    _explain(code, said, told)


def command_line(experiment: Experiment, options: LoadOptions) -> list[str]:
    """Locust's command line."""
    command = [sys.executable, "-P", "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"]
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
    """The variable that hands the secrets among the options to Locust's process; none without secrets."""
    secrets = options.secrets()
    return {SECRETS: json.dumps(secrets)} if secrets else {}


@contextlib.contextmanager
def _locust(experiment: Experiment, options: LoadOptions) -> Iterator[subprocess.Popen[str]]:
    """Locust under way, in a session of its own, so that we pass on an interrupt at the terminal.

    It leaves by itself when this process is gone, and does not outlive the `with` block.
    """
    inherited, kept = os.pipe()
    root = str(LOCUSTFILE.parents[2])
    environment = {  # without settings of Locust's, which are meant for other tests
        name: value
        for name, value in os.environ.items()
        if not name.startswith("LOCUST_") or name == "LOCUST_SKIP_MONKEY_PATCH"
    }
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    if options.agent is not None:
        # It may run in threads, and call what it likes: `load/locust/quirks.py`, about native threads.
        environment["LOCUST_SKIP_MONKEY_PATCH"] = "1"
    environment[PARENT_FD] = str(inherited)
    environment |= IN_CHILDREN
    environment |= secrets_in_environment(options)
    process = subprocess.Popen(
        command_line(experiment, options),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env=environment,
        pass_fds=(inherited,),
        start_new_session=True,
    )
    os.close(inherited)
    try:
        yield process
    except KeyboardInterrupt:  # nobody waits for it, and while it imports it does not see that we go
        process.terminate()
        raise
    finally:
        os.close(kept)
        if process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(KILL_SECONDS)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # whoever is left of its session; usually nobody
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def _wait(process: subprocess.Popen[str], seconds: float) -> tuple[int, KeyboardInterrupt | None]:
    """Wait for its exit code; returns it with the last of what interrupted the waiting.

    The first two interrupts are passed on; the third one ends the waiting, and so does the end of the time.
    """
    interrupts = 0
    told: KeyboardInterrupt | None = None
    until = time.monotonic() + seconds
    while True:
        try:
            return process.wait(max(0.0, until - time.monotonic())), told
        except KeyboardInterrupt as error:
            interrupts += 1
            told = error
            if interrupts > 2:
                raise
            if isinstance(error, Terminated):
                process.send_signal(error.signal)
                until = min(until, time.monotonic() + DRAIN_SECONDS + KILL_SECONDS)
            else:
                process.send_signal(signal.SIGINT)
        except subprocess.TimeoutExpired:
            if isinstance(told, Terminated):
                raise told from None
            raise TargetError(f"the load test hung: no end after {seconds:.0f} s") from None


def _listen(stream: IO[str], said: deque[str], progress: Callable[[str], None] | None) -> None:
    with contextlib.suppress(ValueError, OSError):
        for line in stream:
            said.append(line.rstrip())
            match = _SAID.search(line)
            if match and progress is not None:
                with contextlib.suppress(Exception):  # nobody would read on, and Locust would wait for that
                    progress(match[1])


def _follow(
    directory: RunDirectory,
    watch: Callable[[Progress], None] | None,
    enough: Callable[[RunDirectory], bool] | None,
    over: threading.Event,
    say: Callable[[str], None] | None = None,
) -> None:
    """Whatever fails here is said once and tried again: files may be read while they are being written."""
    if watch is None and enough is None:
        return
    follower = Follower(directory.path)
    block = 1
    failed: set[str] = set()

    def fails(what: str, error: Exception) -> None:
        if what not in failed and say is not None:
            with contextlib.suppress(Exception):  # of the stream that it would be written to
                say(f"{what} failed, and is tried again: {describe(error)}")
        failed.add(what)

    while True:
        last = over.wait(FOLLOW_SECONDS)
        for progress in follower.new():
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


def _explain(code: int, said: deque[str], told: KeyboardInterrupt | None = None) -> None:
    """Raise the error that the exit code stands for; `told` is what we were told, and have passed on."""
    if code == 0:
        return
    if code in _ENDED:
        raise told or _ENDED[code]()
    if code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            hint = ": by hand, or by a system out of memory" if code == -signal.SIGKILL else ""
            raise LeaderKilledError(f"the load test's leader was killed by signal {-code} ({name}{hint})")
    refusals = [match[1] for line in said if (match := _REFUSAL.search(line))]
    for kind in (UsageError, TargetError):
        if refusals and code == kind.exit_code:
            raise kind(refusals[-1])
    raise ProfilerError(f"the load test failed (exit code {code}): {_failure(list(said))}")


def _failure(said: list[str]) -> str:
    """Locust's last complaint, with the exception if it shows one, in one line."""
    for number in reversed(range(len(said))):
        if match := _FAILURE.search(said[number]):
            text = match[1].strip().rstrip(":")
            traceback = itertools.dropwhile(
                lambda line: not line.startswith("Traceback "), said[number + 1 :]
            )
            raised = next(filter(_RAISED.fullmatch, traceback), None)
            return text if raised is None else f"{text}: {raised}"
    return said[-1] if said else "it said nothing"
