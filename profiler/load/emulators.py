"""The emulators of a load test: the target when no other is given, and the one for calibration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from profiler.emulator.process import EmulatorProcess, start_emulator
from profiler.load.options import LoadOptions

CALIBRATION_SCENARIO = "instant"


class Emulators:
    """Started when they are needed, kept while they fit."""

    def __init__(self) -> None:
        self._wanted: tuple[str, int] | None = None
        self._running: EmulatorProcess | None = None

    def root(self, options: LoadOptions) -> str:
        """The target's root URL; starts the emulator when none is given and none of its kind runs."""
        if options.base_url is not None:
            return options.base_url
        wanted = (options.scenario, options.seed)
        if self._running is None or self._wanted != wanted:
            self.stop()
            self._running, self._wanted = start_emulator(options.scenario, seed=options.seed), wanted
        return self._running.url

    @contextmanager
    def for_calibration(self) -> Iterator[str]:
        """The URL of one without latency, for a moment."""
        if self._running is not None and self._wanted is not None and self._wanted[0] == CALIBRATION_SCENARIO:
            yield self._running.url
            return
        with start_emulator(CALIBRATION_SCENARIO) as emulator:
            yield emulator.url

    @property
    def pid(self) -> int | None:
        """Of the target, where it is ours."""
        return None if self._running is None else self._running.pid

    def stop(self) -> None:
        """End the target, where it is ours."""
        running, self._running = self._running, None
        if running is not None:
            running.stop()
