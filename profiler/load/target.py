"""The target of loops: the user's server or our emulator, and its tools; whether they still run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from profiler.emulator.process import EmulatorProcess, is_emulator, start_emulator
from profiler.load.options import AS_THE_SCENARIO, LoadOptions

CALIBRATION_SCENARIO = "instant"
"""The shipped scenario without latency."""

PATIENCE_SECONDS = 5.0
"""A target that nobody can connect to for so long is gone; a server that is restarted is back by then."""


@dataclass(frozen=True, slots=True)
class Target:
    """The root URL that loops are run against.

    `gone` says in words which of the servers that ought to run has ended, None while all run. `others`: our
    own processes that run no loops, by name → pid.
    """

    root: str
    gone: Callable[[], str | None] = lambda: None
    others: Callable[[], Mapping[str, int]] = dict


class Emulators:
    """The emulators of a load test, or of one loop; started when they are needed, kept while they fit."""

    def __init__(self) -> None:
        self._wanted: tuple[str, int, str] | None = None
        self._target: EmulatorProcess | None = None
        self._beside: EmulatorProcess | None = None
        self._calibrating: EmulatorProcess | None = None
        self._environment = os.environ.get("PROFILER_TOOLS_URL")

    def begin(self, options: LoadOptions) -> None:
        """Start the target's and the one to calibrate against, where needed, without waiting for them."""
        if options.base_url is None and not options.direct:
            self._start_target(options)
        if options.calibration_seconds > 0 and not self._is_without_latency:
            self._start_calibrating()

    def root(self, options: LoadOptions) -> str:
        """The target's root URL; starts an emulator unless a server is named, or one of its kind runs.

        Where an MCP server is loaded without a model, its address or command.
        """
        if options.direct:
            return options.server.shown
        if options.base_url is not None:
            return options.base_url
        return self._start_target(options).url

    def _start_target(self, options: LoadOptions) -> EmulatorProcess:
        wanted = (options.scenario, options.seed, options.dialect)
        if self._target is None or self._wanted != wanted:
            self.stop()
            dialect = None if options.dialect == AS_THE_SCENARIO else options.dialect
            self._target = start_emulator(options.scenario, seed=options.seed, dialect=dialect, waits=False)
            self._wanted = wanted
        return self._target

    def _start_calibrating(self) -> EmulatorProcess:
        if self._calibrating is None or self._calibrating.poll() is not None:
            self._calibrating = start_emulator(CALIBRATION_SCENARIO, waits=False)
        return self._calibrating

    @property
    def _is_without_latency(self) -> bool:
        """Whether the target is an emulator that one may calibrate against."""
        return self._wanted is not None and self._wanted[0] == CALIBRATION_SCENARIO

    def tools_root(self, options: LoadOptions) -> str:
        """The root URL of the tools; call `root` first.

        In this order: `--tools-url`, the environment, the target where it is an emulator, else an emulator
        started beside it. A model server is never asked for tools. With `--mcp` nobody asks for these.
        """
        if options.direct:
            return ""
        named = options.tools_url or self._environment
        if named:
            return named
        if options.base_url is None:
            return self.root(options)
        if options.mcp:
            return options.base_url
        endpoint = options.endpoint(options.base_url)
        context = endpoint.tls.context() if endpoint.url.startswith("https") else None
        if endpoint.is_loopback and endpoint.is_bare and is_emulator(endpoint.root, context):
            return endpoint.root
        if self._beside is None:
            self._beside = start_emulator(options.scenario, seed=options.seed)
        return self._beside.url

    @contextmanager
    def for_calibration(self) -> Iterator[str]:
        """The URL of an emulator without latency: the target if it is one, else one that waits until it is
        needed again.
        """
        if self._target is not None and self._is_without_latency:
            yield self._target.url
        else:
            yield self._start_calibrating().url

    def ended(self) -> str | None:
        """In words, how an emulator that ought to run has ended; None while all run."""
        for running in (self._target, self._beside):
            code = None if running is None else running.poll()
            if code is not None:
                how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
                return f"the emulator ended in the middle of the run ({how})"
        return None

    @property
    def pid(self) -> int | None:
        """The target's process, where it is an emulator of ours."""
        return None if self._target is None else self._target.pid

    def stop(self) -> None:
        """End all of them."""
        for running in (self._target, self._beside):
            if running is not None:
                running.stop()
        self._target = self._beside = self._wanted = None
        self._stop_calibrating()

    def _stop_calibrating(self) -> None:
        running, self._calibrating = self._calibrating, None
        if running is not None:
            running.stop()


class ConnectionWatch:
    """Tells when a target that is not ours has gone away in the middle of a run. Pure.

    Loops fail, none succeeds any more, and for a while nobody can connect: then what follows would measure
    nothing. A target that answers late or with errors can be connected to, and is left to the loops.
    """

    def __init__(self) -> None:
        self._loops = 0
        self._failed = 0
        self._failing = False
        self._since: float | None = None

    def is_due(self, loops: int, failed: int) -> bool:
        """Whether to try to connect: since the last look, loops of the trial failed and none succeeded."""
        if loops < self._loops:  # another trial has begun
            self._loops = self._failed = 0
        if loops - failed > self._loops - self._failed:
            self._failing, self._since = False, None
        elif failed > self._failed:
            self._failing = True
        self._loops, self._failed = loops, failed
        return self._failing

    def is_gone(self, now: float, connected: bool) -> bool:
        """Whether the target is gone, after an attempt to connect that ended at `now` (seconds)."""
        if connected:
            self._failing, self._since = False, None
            return False
        self._since = now if self._since is None else self._since
        return now - self._since >= PATIENCE_SECONDS
