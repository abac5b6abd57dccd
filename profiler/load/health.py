"""How one process of a load test fares: the loops of a trial, its lags and its CPU, its clock.

A client that is busy, or that its machine does not run, adds its own waiting to every latency it reports;
`statistics.lateness` says how much, `statistics.faults` whose fault that was.
"""

from __future__ import annotations

import math
import os
import socket
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from profiler.loop.kernel import MachineLoad, Throttling, read_text
from profiler.loop.lag import INTERVAL_SECONDS, LagSampler, Lateness
from profiler.records import LoopRecord
from profiler.rundir import Anchor, ClientHealth, Spent

KEPT = 20_000
"""Lags of one trial that are kept exactly; of more than that, a histogram's bins, within 0.5 %."""


@dataclass(slots=True)
class Tally:
    """Counts of a trial so far in one process; written on the loop's thread alone.

    `loops` have ended, and `failed` of them failed (`LoopRecord.good`); `rate_limited` counts refusals, and
    `unwritten` loops whose records could not be handed on. `lost_sessions`: calls that failed since their
    session with an MCP server was lost, by server.
    """

    loops: int = 0
    failed: int = 0
    rate_limited: int = 0
    unwritten: int = 0
    spent: Spent = field(default_factory=Spent)
    lost_sessions: Counter[str] = field(default_factory=Counter)

    def count(self, record: LoopRecord) -> None:
        """Count a loop that has ended. A nested one is no loop of its own."""
        self.rate_limited += sum(1 for _ in record.refusals)
        self.lost_sessions.update(lost_sessions(record))
        if not record.nested:
            self.loops += 1
            self.failed += not record.good


def lost_sessions(record: LoopRecord) -> Iterator[str]:
    """The server of each call of a loop that failed since its session was lost."""
    for call in record.tool_calls:
        if call.error_type == "session_lost" and call.remote is not None:
            yield call.remote.server


class Meter:
    """Lags and CPU of one process in one trial, from when it is made.

    `lags` are those of the event loop, `schedule` how late loops started; both in nanoseconds. The clocks are
    in seconds. `kernel` is what the kernel counts of a process that runs loops.
    """

    def __init__(
        self,
        cpu_clock: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
        kernel: Kernel | None = None,
    ) -> None:
        self.lags = Histogram(limit=KEPT)
        self.schedule = Histogram(limit=KEPT)
        self._cpu_clock, self._clock = cpu_clock, clock
        self._cpu, self._started = cpu_clock(), clock()
        self._worst_lag_ns = 0
        self._heard = self._started
        self._asked: float | None = None
        self._kernel = kernel
        self._lateness: tuple[Lateness, Lateness] | None = None  # of the event loop: at first, by now
        self._delay_ns: tuple[int, int] | None = None

    def lag(self, lag_ns: int, sampler: LagSampler | None = None) -> None:
        """A sample of event-loop lag, from the sampler that keeps account of whose fault it was."""
        self.lags.add(lag_ns)
        if sampler is not None:
            total, delay_ns = sampler.total(), sampler.run_delay_ns()
            self._lateness = (total if self._lateness is None else self._lateness[0]), total
            if delay_ns is not None:
                self._delay_ns = (delay_ns if self._delay_ns is None else self._delay_ns[0]), delay_ns
        self._heard = self._clock()
        if lag_ns > self._worst_lag_ns:
            self._worst_lag_ns = lag_ns

    def take_worst_lag(self, sampled: bool) -> int:
        """The worst lag since this was last asked, the one under way included.

        `sampled`: loops run, so samples ought to come. A blocked event loop takes none: then its lag is the
        time since the last one.
        """
        if self._kernel is not None:
            self._kernel.look()
        worst, self._worst_lag_ns = self._worst_lag_ns, 0
        now, asked = self._clock(), self._asked
        self._asked = now if sampled else None
        silent = asked is not None and self._heard < asked
        return int((now - self._heard - INTERVAL_SECONDS) * 1e9) if sampled and silent else worst

    def read(self, process: str, trial: int | None) -> ClientHealth:
        """The figures until now."""
        seconds = self._clock() - self._started
        health = ClientHealth(
            process=process,
            trial=trial,
            loop_lag_p99=quantile_seconds(self.lags, 0.99),
            schedule_lag_p99=quantile_seconds(self.schedule, 0.99),
            schedule_lag_p95=quantile_seconds(self.schedule, 0.95),
            seconds=seconds,
            cpu=(self._cpu_clock() - self._cpu) / seconds if seconds > 0 else None,
        )
        if self._lateness is not None:
            late = self._lateness[1] - self._lateness[0]
            # Stops from before the trial may have been told from held time within it.
            held_ns, machine_ns = max(0, late.held_ns), max(0, late.machine_ns)
            health = replace(health, held_seconds=held_ns / 1e9, machine_seconds=machine_ns / 1e9)
        if self._delay_ns is not None:
            health = replace(health, delayed_seconds=(self._delay_ns[1] - self._delay_ns[0]) / 1e9)
        return health if self._kernel is None else self._kernel.read(health, seconds)


class Kernel:
    """Throttling of the container and load of the machine, counted by the kernel since this was made."""

    def __init__(self, read_text: Callable[[str], str | None] = read_text) -> None:
        self._read_text = read_text
        self._throttling = Throttling(read_text)
        self._machine = MachineLoad.now(read_text)

    def look(self) -> None:
        """To be called now and then: a process may be moved into another container."""
        self._throttling.read_ns()

    def read(self, health: ClientHealth, seconds: float) -> ClientHealth:
        """The health with the kernel's counts, after so many seconds."""
        throttled_ns, now = self._throttling.read_ns(), MachineLoad.now(self._read_text)

        def share(before: float | None, after: float | None) -> float | None:
            return None if before is None or after is None or seconds <= 0 else (after - before) / seconds

        return replace(
            health,
            throttled_seconds=None if throttled_ns is None else throttled_ns / 1e9,
            waited=share(self._machine.waited, now.waited),
            stolen=share(self._machine.stolen, now.stolen),
        )


def quantile_seconds(lags_ns: Histogram, p: float) -> float | None:
    """The p-quantile (nearest rank) in seconds, None without samples."""
    samples = lags_ns.samples
    if samples is None:
        value = lags_ns.quantile(p)
        return None if value is None else value / 1e9
    ordered = sorted(samples[:])  # a copy: the loop's thread may go on adding
    return ordered[math.ceil(p * len(ordered)) - 1] / 1e9 if ordered else None


def cpu_seconds(pid: int) -> float | None:
    """CPU time that a process has used, its threads included; None where that cannot be read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def meters_of(processes: Mapping[str, int]) -> dict[str, Meter]:
    """A meter of each process's CPU, by name. `processes`: name → pid; left out where it cannot be read."""
    return {
        name: Meter(cpu_clock=lambda pid=pid: cpu_seconds(pid) or 0.0)  # type: ignore[misc]
        for name, pid in processes.items()
        if cpu_seconds(pid) is not None
    }


# All records of a run are on one clock: the monotonic one of the machine that leads.
#
# Processes of one machine share it. Records of another machine are translated by anchors, one instant on both
# clocks of a machine; that is as exact as the machines' wall clocks agree.


def machine_id() -> str:
    """The same for processes that share a monotonic clock. Sent to workers, never written down."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def shift_ns(own: Anchor, theirs: Anchor) -> int:
    """Nanoseconds to add to our monotonic times to get theirs."""
    return (own.unix_ns - own.monotonic_ns) - (theirs.unix_ns - theirs.monotonic_ns)


# A series of any length in bounded memory: exact samples at first, logarithmic bins later.
#
# Bin k holds the values in (γ^(k-1), γ^k], γ = (1 + α) / (1 - α), and reports 2 γ^k / (γ + 1), which is
# within a relative error of α of each of them (Masson et al., DDSketch, 2019).


ALPHA = 0.005
EXACT_LIMIT = 1_000_000

_GAMMA = (1 + ALPHA) / (1 - ALPHA)
_LOG_GAMMA = math.log(_GAMMA)


@dataclass(slots=True)
class Histogram:
    """Nanoseconds: exact while there are at most `limit` values, then within a relative error of `ALPHA`.

    Values that are not above 0 have no logarithm; they are counted in `zeros`, as 0.
    """

    limit: int = EXACT_LIMIT
    samples: array[int] | None = field(default_factory=lambda: array("q"))
    zeros: int = 0
    bins: dict[int, int] = field(default_factory=dict)
    count: int = 0

    def add(self, value: int) -> None:
        """Record one value."""
        self.count += 1
        if self.samples is None:
            self._bin(value)
            return
        self.samples.append(value)
        if len(self.samples) > self.limit:
            self._fold()

    def quantile(self, p: float) -> float | None:
        """The p-quantile: interpolated (type 7) while exact, then the value of the bin its rank is in."""
        if not self.count:
            return None
        rank = p * (self.count - 1)
        if self.samples is not None:
            ordered = sorted(self.samples)
            low = math.floor(rank)
            high = min(low + 1, self.count - 1)
            return ordered[low] + (rank - low) * (ordered[high] - ordered[low])
        left = round(rank) - self.zeros
        if left < 0:
            return 0.0
        value = 0.0
        for index in sorted(self.bins):
            value = 2 * _GAMMA**index / (_GAMMA + 1)
            left -= self.bins[index]
            if left < 0:
                break
        return value

    def _fold(self) -> None:
        samples, self.samples = self.samples or (), None
        for value in samples:
            self._bin(value)

    def _bin(self, value: int) -> None:
        if value <= 0:
            self.zeros += 1
            return
        index = math.ceil(math.log(value) / _LOG_GAMMA)
        self.bins[index] = self.bins.get(index, 0) + 1
