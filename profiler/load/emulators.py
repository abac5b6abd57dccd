"""The emulators of a load test: the target when no other is given, the tools, and the one for calibration."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from profiler.emulator.process import EmulatorProcess, is_emulator, start_emulator
from profiler.load.options import LoadOptions
from profiler.providers.endpoint import Endpoint

CALIBRATION_SCENARIO = "instant"


def emulator_at(base_url: str) -> str | None:
    """The root of a base URL where that is an emulator on this machine; None for any other server."""
    endpoint = Endpoint.parse(base_url)
    return endpoint.root if endpoint.is_loopback and is_emulator(endpoint.root) else None


class Emulators:
    """Started when they are needed, kept while they fit."""

    def __init__(self) -> None:
        self._wanted: tuple[str, int] | None = None
        self._running: EmulatorProcess | None = None
        self._beside: EmulatorProcess | None = None
        self._environment = os.environ.get("PROFILER_TOOLS_URL")

    def root(self, options: LoadOptions) -> str:
        """The target's root URL; starts the emulator when none is given and none of its kind runs."""
        if options.base_url is not None:
            return options.base_url
        wanted = (options.scenario, options.seed)
        if self._running is None or self._wanted != wanted:
            self.stop()
            self._running, self._wanted = start_emulator(options.scenario, seed=options.seed), wanted
        return self._running.url

    def tools_root(self, options: LoadOptions) -> str:
        """The root URL of the tools, from where they are named to an emulator beside a model that is none.

        After `root`. In this order: `--tools-url`, the environment, the emulator that is the target.
        A model server is never asked for tools.
        """
        named = options.tools_url or self._environment
        if named:
            return named
        if options.base_url is None:
            return self.root(options)
        found = emulator_at(options.base_url)
        if found is not None:
            return found
        if self._beside is None:
            self._beside = start_emulator(options.scenario, seed=options.seed)
        return self._beside.url

    @contextmanager
    def for_calibration(self) -> Iterator[str]:
        """The URL of one without latency, for a moment."""
        if self._running is not None and self._wanted is not None and self._wanted[0] == CALIBRATION_SCENARIO:
            yield self._running.url
            return
        with start_emulator(CALIBRATION_SCENARIO) as emulator:
            yield emulator.url

    def ended(self) -> str | None:
        """What became of one of ours that ought to run, in words; None while all do."""
        for running in (self._running, self._beside):
            code = None if running is None else running.poll()
            if code is not None:
                how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
                return f"the emulator ended in the middle of the run ({how})"
        return None

    @property
    def pid(self) -> int | None:
        """Of the target, where it is ours."""
        return None if self._running is None else self._running.pid

    def stop(self) -> None:
        """End those that are ours."""
        for running in (self._running, self._beside):
            if running is not None:
                running.stop()
        self._running = self._beside = None
