"""SIGTERM and SIGHUP (a terminal that was closed) end a command as the first Ctrl-C does.

Only the command line installs handlers, for as long as a command runs. A `Profiler` in an application
installs none, and a signal that is ignored (`nohup`), or that somebody handles already, is left alone.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from profiler.errors import Terminated

DRAIN_SECONDS = 10.0
"""For how long what is in flight may go on after SIGTERM: then it is cut off."""

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Signals:
    """What this command has been told. `told` is the first of the signals that came, None without one.

    `outcome` is what an interrupt now would leave, where that is known (`Interrupted.outcome`).
    """

    def __init__(self) -> None:
        self.told: Terminated | None = None
        self.outcome = ""
        self._handle: Callable[[Terminated], None] | None = None
        self._timer: threading.Timer | None = None
        self._terminals: list[int] = []

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Until the end of the block a signal raises `Terminated` in the main thread, unless handled."""
        before = {}
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:
                if signal.getsignal(number) is signal.SIG_DFL:
                    before[number] = signal.signal(number, self._on_signal)
        self.told, self.outcome, self._handle = None, "", None
        self._terminals = [fd for fd in (1, 2) if os.isatty(fd)]
        try:
            yield
        finally:
            if self._timer is not None:
                self._timer.cancel()
            for number, handler in before.items():
                signal.signal(number, handler)
            self._handle = None

    @contextmanager
    def handled(self, handle: Callable[[Terminated], None]) -> Iterator[None]:
        """Inside the block a signal calls `handle`, in the main thread between two steps of other code."""
        before, self._handle = self._handle, handle
        try:
            yield
        finally:
            self._handle = before

    def finish_first(self, run_directory: str) -> None:
        """From now on the command ends by itself when told to: all that is left is the report of this run.

        The signal is raised after all with the next one, and when `DRAIN_SECONDS` were not enough.
        """
        self.outcome = f"before its report was made: profiler report {run_directory}"

        def later(told: Terminated) -> None:
            self._handle = None
            self._timer = threading.Timer(DRAIN_SECONDS, _again, (told.signal,))
            self._timer.daemon = True
            self._timer.start()

        self._handle = later

    def exit_code(self, code: int) -> int:
        """The exit code of a command that ended with this one: the signal's, unless it tells of a fault."""
        return code if self.told is None or code in _BEFORE else self.told.exit_code

    def _on_signal(self, number: int, _: object) -> None:
        told = Terminated(signal.Signals(number))
        _let_go_of(self._terminals)
        self.told = self.told or told
        if self._handle is None:
            raise told
        self._handle(told)


def _let_go_of(terminals: Sequence[int]) -> None:
    """Write nowhere in place of a terminal that was closed: it would fail, and with it the report."""
    for fd in terminals:
        if not os.isatty(fd):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, fd)
            os.close(nowhere)


def _again(number: signal.Signals) -> None:
    # To the main thread, which may wait for something, and no other thread's signal would wake it.
    signal.pthread_kill(threading.main_thread().ident or 0, number)


_BEFORE = (2, 70)
"""Exit codes of wrong usage and of a defect, which are more important."""

signals = Signals()
"""Of this process."""
