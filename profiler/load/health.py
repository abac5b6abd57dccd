"""How this process fares as a load generator: lags while a trial measures, and its CPU.

A client that is busy adds its own waiting to every latency it reports; `statistics.caveats` has
the limits above which it says so.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from profiler.load.spending import spent_by
from profiler.loop.eventloop import INTERVAL_SECONDS
from profiler.records import LoopRecord
from profiler.rundir import Anchor, ClientHealth, Spent
from profiler.statistics.histogram import Histogram


@dataclass(slots=True)
class Tally:
    """What has come of a trial so far in one process; written on the loop's thread alone.

    Loops, and those of them that failed (`LoopRecord.good`); `rate_limited` counts refusals.
    """

    loops: int = 0
    failed: int = 0
    rate_limited: int = 0
    spent: Spent = field(default_factory=Spent)

    def count(self, record: LoopRecord) -> None:
        """A loop has ended. A nested one is no loop of its own, but what it spent was spent."""
        self.spent += spent_by(record)
        self.rate_limited += sum(1 for _ in record.refusals)
        if not record.nested:
            self.loops += 1
            self.failed += not record.good


KEPT = 20_000
"""Lags of one trial that are kept as they are; of more only how many were how long, within 0.5 %."""


@dataclass(slots=True)
class Meter:
    """Samples of one process in one trial, however long; lags in nanoseconds."""

    cpu_clock: Callable[[], float] = time.process_time
    clock: Callable[[], float] = time.monotonic
    lags: Histogram = field(default_factory=lambda: Histogram(limit=KEPT))
    schedule: Histogram = field(default_factory=lambda: Histogram(limit=KEPT))
    worst_lag_ns: int = 0
    _heard: float = 0.0
    _asked: float | None = None
    _cpu: float = 0.0
    _started: float = 0.0

    def start(self) -> None:
        self._cpu, self._started = self.cpu_clock(), self.clock()
        self._heard = self._started

    def lag(self, lag_ns: int) -> None:
        """A sample of event-loop lag."""
        self.lags.add(lag_ns)
        self._heard = self.clock()
        if lag_ns > self.worst_lag_ns:
            self.worst_lag_ns = lag_ns

    def take_worst_lag(self, sampled: bool) -> int:
        """The worst lag since the last time this was asked, the one under way included.

        `sampled`: loops run, so that samples ought to come. A loop that is blocked takes none.
        """
        worst, self.worst_lag_ns = self.worst_lag_ns, 0
        now, asked = self.clock(), self._asked
        self._asked = now if sampled else None
        silent = asked is not None and self._heard < asked
        return int((now - self._heard - INTERVAL_SECONDS) * 1e9) if sampled and silent else worst

    def read(self, process: str, trial: int | None) -> ClientHealth:
        """The figures from `start` until now."""
        seconds = self.clock() - self._started
        return ClientHealth(
            process=process,
            trial=trial,
            loop_lag_p99=p99_seconds(self.lags),
            schedule_lag_p99=p99_seconds(self.schedule),
            cpu=(self.cpu_clock() - self._cpu) / seconds if seconds > 0 else None,
        )


def p99_seconds(lags_ns: Histogram) -> float | None:
    """The 99th percentile (nearest rank) in seconds; None of nothing. The loop's thread may go on adding."""
    samples = lags_ns.samples
    if samples is None:
        value = lags_ns.quantile(0.99)
        return None if value is None else value / 1e9
    ordered = sorted(samples[:])
    return ordered[math.ceil(0.99 * len(ordered)) - 1] / 1e9 if ordered else None


def cpu_seconds(pid: int) -> float | None:
    """CPU time that a process has used, its threads included; None where that cannot be read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


# Whether a target that is not ours has gone away in the middle of a run. Pure.
#
# Loops fail, none succeeds any more, and for a while nobody can connect: what comes after that measures
# nothing. A target that answers with errors, or late, can be connected to, and is left to the loops.

PATIENCE_SECONDS = 5.0
"""A server that is restarted is back within that."""


class ConnectionWatch:
    """Told of the loops of the trial under way, and of attempts to connect."""

    def __init__(self) -> None:
        self._loops = 0
        self._failed = 0
        self._failing = False
        self._since: float | None = None

    def is_due(self, loops: int, failed: int) -> bool:
        """Whether it is worth an attempt to connect: since the last look loops failed, and none succeeded."""
        if loops < self._loops:  # another trial has begun
            self._loops = self._failed = 0
        if loops - failed > self._loops - self._failed:
            self._failing, self._since = False, None
        elif failed > self._failed:
            self._failing = True
        self._loops, self._failed = loops, failed
        return self._failing

    def is_gone(self, now: float, connected: bool) -> bool:
        """An attempt to connect has ended; whether the target is gone by now."""
        if connected:
            self._failing, self._since = False, None
            return False
        self._since = now if self._since is None else self._since
        return now - self._since >= PATIENCE_SECONDS


# One clock for all records of a run: that of the machine that leads.
#
# Processes of one machine share its monotonic clock. Those of another are translated by anchors,
# instants that both machines name on both of their clocks; that is as exact as their wall clocks agree.


def machine_id() -> str:
    """The same for processes that share a monotonic clock. Sent to workers, never written down."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def shift_ns(own: Anchor, theirs: Anchor) -> int:
    """What to add to our monotonic times to get theirs."""
    return (own.unix_ns - own.monotonic_ns) - (theirs.unix_ns - theirs.monotonic_ns)
