"""Counts of the kernel for a thread, its container, its machine; None where it does not (not Linux)."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self


def read_text(path: str) -> str | None:
    """The text of a small file; None where there is none, or it may not be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return None


class RunDelay:
    """How long the calling thread has been runnable and did not run, since it began.

    The second field of `/proc/self/task/TID/schedstat`. It grows while other work has the thread's core, and
    while the container's quota keeps it waiting; not while the process is stopped, frozen or suspended. The
    file stays open, so that a reading costs microseconds.
    """

    __slots__ = ("__weakref__", "_file")

    def __init__(self) -> None:
        try:
            self._file: int | None = os.open(
                f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY | os.O_CLOEXEC
            )
        except OSError:
            self._file = None
        else:
            weakref.finalize(self, os.close, self._file).atexit = False

    def read_ns(self) -> int | None:
        """Nanoseconds until now; to be called by any thread while the one that made this lives."""
        if self._file is None:
            return None
        try:
            return int(os.pread(self._file, 128, 0).split()[1])
        except (OSError, ValueError, IndexError):
            return None


class Throttling:
    """For how long a quota of this process's container kept its threads from running, since this was made.

    From `cpu.stat` of the process's cgroup and of those around it, version 1 or 2; each has a quota of its
    own. The sum over processors, so it may grow faster than time passes. A process that is moved into another
    group is followed; what that one has counted before is not known.
    """

    def __init__(self, read: Callable[[str], str | None] = read_text) -> None:
        self._read = read
        self._counted: dict[str, int] = {}
        self._total_ns: int | None = None
        self.read_ns()

    def read_ns(self) -> int | None:
        """Nanoseconds until now; None where nothing counts. To be called now and then, and at the end."""
        memberships, mounts = self._read("/proc/self/cgroup"), self._read("/proc/self/mountinfo")
        if memberships is None or mounts is None:
            return self._total_ns
        for path in cpu_stat_paths(memberships, mounts):
            text = self._read(path)
            counted = None if text is None else throttled_ns(text)
            if counted is None:
                continue
            self._total_ns = (self._total_ns or 0) + counted - self._counted.get(path, counted)
            self._counted[path] = counted
        return self._total_ns


def throttled_ns(cpu_stat: str) -> int | None:
    """Nanoseconds of throttling in a `cpu.stat` of either version; None where it does not count them."""
    for line in cpu_stat.splitlines():
        match line.split():
            case ["throttled_time", number]:
                return int(number)
            case ["throttled_usec", number]:
                return int(number) * 1000
    return None


def cpu_stat_paths(memberships: str, mounts: str) -> list[str]:
    """The `cpu.stat` of a process's cgroup and of each around it that can be seen, the innermost first.

    `memberships` is the text of its `/proc/self/cgroup`, `mounts` that of `/proc/self/mountinfo`. Where there
    are both versions, version 1 if it has the cpu controller.
    """
    groups: dict[str, str] = {}
    for line in memberships.splitlines():
        _, controllers, group = line.split(":", 2)
        for controller in controllers.split(","):
            groups[controller] = group
    found: dict[str, tuple[str, str]] = {}
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        root, point = fields[3], fields[4]
        if kind[0] == "cgroup" and "cpu" in kind[2].split(","):
            found["cpu"] = root, point
        elif kind[0] == "cgroup2":
            found[""] = root, point
    for controller in ("cpu", ""):
        if controller in found and controller in groups:
            root, point = found[controller]
            # Of a container's own group only what is below `root` can be seen, at the mount itself.
            group = groups[controller]
            inside = group.removeprefix(root) if group.startswith(root) else ""
            parts = [part for part in inside.split("/") if part and part != ".."]
            return ["/".join([point, *parts[:length], "cpu.stat"]) for length in range(len(parts), -1, -1)]
    return []


@dataclass(frozen=True, slots=True)
class MachineLoad:
    """Counts of the whole machine, in seconds since it started; None where it does not count.

    `waited`: in which some task was ready to run and had no processor (`/proc/pressure/cpu`). `stolen`: that
    the host gave to others, of all processors (`/proc/stat`).
    """

    waited: float | None = None
    stolen: float | None = None

    @classmethod
    def now(cls, read: Callable[[str], str | None] = read_text) -> Self:
        pressure, stat = read("/proc/pressure/cpu"), read("/proc/stat")
        return cls(
            waited=None if pressure is None else pressure_seconds(pressure),
            stolen=None if stat is None else stolen_seconds(stat),
        )


def pressure_seconds(pressure: str) -> float | None:
    """Seconds in which some task waited for a processor, from the text of `/proc/pressure/cpu`."""
    for line in pressure.splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "some":
            total = rest.rpartition("total=")[2]
            return int(total) / 1e6 if total.isdigit() else None
    return None


def stolen_seconds(stat: str, ticks: int | None = None) -> float | None:
    """Processor seconds that the host kept from this machine, from the text of `/proc/stat`."""
    fields = stat.partition("\n")[0].split()
    if len(fields) < 9 or fields[0] != "cpu":
        return None
    return int(fields[8]) / (ticks or os.sysconf("SC_CLK_TCK"))
