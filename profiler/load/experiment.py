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
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from profiler.errors import ProfilerError, TargetError, UsageError
from profiler.load.declared import Options
from profiler.load.options import SECRETS, LoadOptions, Size, conditions
from profiler.load.output import SETTLED
from profiler.load.plan import blocks_for
from profiler.modes import opener_like
from profiler.rundir import Follower, Progress, RunDirectory
from profiler.scenarios import load_scenario
from profiler.streams import IN_CHILDREN

PARENT_FD = "PROFILER_PARENT_FD"
"""Environment variable with the number of an inherited descriptor; it reads end-of-file when we are gone."""

INTERRUPTED = 130
"""Locust's exit code when it was interrupted before anything had begun."""

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
        return self.options.blocks if self.options.blocks is not None else blocks_for(self.seconds)

    @property
    def limit_seconds(self) -> float:
        """A test that takes longer than this hangs."""
        trials = self.blocks * len(self.options.strategies) * max(1, len(self.options.levels))
        each = self.seconds / self.blocks + self.options.drain_seconds + 20.0
        return OVERHEAD_SECONDS + self.users / SPAWN_RATE + trials * each


def run_experiment(
    experiment: Experiment,
    progress: Callable[[str], None] | None = None,
    watch: Callable[[Progress], None] | None = None,
    enough: Callable[[RunDirectory], bool] | None = None,
) -> Path:
    """Run an experiment; returns the path of the run directory.

    `progress` gets a line at each step, `watch` the progress every second. `enough` is asked after every
    block whether what was measured suffices: then the run ends before its next trial. All are called from
    threads of their own.

    After one interrupt (SIGINT) the loops in flight are waited for and the rest is left out; after a second
    one they are cut off. Either way the run directory is complete for what had finished, its `finished` is
    false and its `incidents` say `interrupted`. Raises `KeyboardInterrupt` when nothing had begun,
    `UsageError` for options that cannot be used, `TargetError` when the target cannot be reached, refuses us
    or goes away, `ProfilerError` when Locust failed. These name the run directory, unless nothing was
    recorded in it: then it is removed.
    """
    options = experiment.options
    options.check_targets(os.environ)
    load_scenario(options.scenario)
    options = replace(
        options, blocks=experiment.blocks, trial_seconds=max(0.1, experiment.seconds / experiment.blocks)
    )
    directory = RunDirectory.create(options.out, conditions(options, experiment.users))
    options = replace(options, run_directory=str(directory.path))
    try:
        _run(experiment, options, directory, progress, watch, enough)
    except BaseException as error:
        kept = not directory.remove_if_unused()
        if kept and isinstance(error, ProfilerError) and not isinstance(error, UsageError):
            error.run_directory = str(directory.path)
        raise
    return directory.path


def _run(
    experiment: Experiment,
    options: LoadOptions,
    directory: RunDirectory,
    progress: Callable[[str], None] | None,
    watch: Callable[[Progress], None] | None,
    enough: Callable[[RunDirectory], bool] | None,
) -> None:
    """Run Locust from its start to its end."""
    with _locust(experiment, options) as process:
        assert process.stderr is not None
        said: deque[str] = deque(maxlen=KEPT_LINES)
        reader = threading.Thread(target=_listen, args=(process.stderr, said, progress), daemon=True)
        reader.start()
        over = threading.Event()
        watcher = threading.Thread(target=_follow, args=(directory, watch, enough, over), daemon=True)
        watcher.start()
        try:
            code = _wait(process, experiment.limit_seconds)
            reader.join(KILL_SECONDS)
        finally:
            over.set()
            watcher.join(KILL_SECONDS)
    _explain(code, said)


def command_line(experiment: Experiment, options: LoadOptions) -> list[str]:
    """Locust's command line."""
    command = [sys.executable, "-P", "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"]
    command += ["-u", str(experiment.users), "-r", str(min(experiment.users, SPAWN_RATE))]
    command += ["--exit-code-on-error", "0", f"--run-directory={options.run_directory}"]
    if experiment.workers > 1:
        port = str(_free_port())
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


def _wait(process: subprocess.Popen[str], seconds: float) -> int:
    """Wait for its exit code. The first two interrupts are passed on; the third one ends the waiting."""
    interrupts = 0
    while True:
        try:
            return process.wait(seconds)
        except KeyboardInterrupt:
            interrupts += 1
            if interrupts > 2:
                raise
            process.send_signal(signal.SIGINT)
        except subprocess.TimeoutExpired:
            raise TargetError(f"the load test hung: no end after {seconds:.0f} s") from None


def _listen(stream: IO[str], said: deque[str], progress: Callable[[str], None] | None) -> None:
    with contextlib.suppress(ValueError, OSError):
        for line in stream:
            said.append(line.rstrip())
            match = _SAID.search(line)
            if match and progress is not None:
                progress(match[1])


def _follow(
    directory: RunDirectory,
    watch: Callable[[Progress], None] | None,
    enough: Callable[[RunDirectory], bool] | None,
    over: threading.Event,
) -> None:
    if watch is None and enough is None:
        return
    follower = Follower(directory.path)
    block = 1
    while True:
        last = over.wait(FOLLOW_SECONDS)
        for progress in follower.new():
            if watch is not None:
                watch(progress)
            if enough is not None and progress.block > block:
                block = progress.block
                if enough(directory):
                    open(directory.path / SETTLED, "ab", opener=opener_like(directory.path)).close()
                    enough = None
        if last:
            return


def _explain(code: int, said: deque[str]) -> None:
    """Raise the error that the exit code stands for."""
    if code == 0:
        return
    if code in (INTERRUPTED, -signal.SIGINT):  # the latter while it was still importing
        raise KeyboardInterrupt
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


def _free_port() -> int:
    """A port that was free a moment ago, for the master: two experiments may run on one machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
