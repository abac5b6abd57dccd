"""Tests of times on a busy machine: a try that fails counts only if the machine let it measure.

While a test marked `measures` runs, the kernel is asked how much of the processors went to others, and for
how long a thread of ours (the emulator, Locust and its workers included) was ready to run and had no core. A
test that fails is tried again, even where nothing was seen to disturb it, since the kernel does not count all
that keeps a process waiting (a disk, a host that stops its guests). It fails where an undisturbed failure
comes again. After three disturbed tries it was not measured: it says so, and what kept it from it. Without
/proc nothing counts as disturbed.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import pytest

TRIES = 3
CONFIRMED = 2
"""So many undisturbed failures fail the test."""
OTHERS = 0.2
"""Cores in use by others, from which on a failure may be their doing."""
TOLERATED = 0.05
"""Share of a try for which a thread of ours may wait for a core; a test that holds beside more says so."""
INTERVAL_SECONDS = 0.2
"""How often is looked: what a process did after the last look before its end is not seen."""

KNOWN = all(os.path.exists(f"/proc/thread-self/{name}") for name in ("schedstat", "children"))

Task = tuple[int, int]
"""Process, thread."""
T = TypeVar("T")


@dataclass(frozen=True)
class Disturbance:
    """`others`: cores that others used, or the host took; `delayed`: share of the time a thread waited."""

    others: float = 0.0
    delayed: float = 0.0

    def excuses(self, tolerated: float) -> bool:
        return self.others >= OTHERS and self.delayed > tolerated

    def __str__(self) -> str:
        return f"others used {self.others:.1f} cores, a thread of ours waited {self.delayed:.0%} of the time"


@dataclass(frozen=True)
class Look:
    """What the kernel had counted by then, in seconds; of our tasks: (on a core, ready without one)."""

    at: float
    busy: float
    stolen: float
    tasks: dict[Task, tuple[float, float]]

    @classmethod
    def now(cls) -> Look:
        user, nice, system, _, _, irq, softirq, stolen = _jiffies()
        return cls(time.monotonic(), user + nice + system + irq + softirq, stolen, dict(_tasks(os.getpid())))


def disturbance(looks: Sequence[Look]) -> Disturbance:
    """From the first look to the last; a new task began at zero, one that is gone counts as last seen."""
    first, last = looks[0], looks[-1]
    ended = {task: spent for look in looks for task, spent in look.tasks.items()}
    spent = []
    for task, (ran, waited) in ended.items():
        before = first.tasks.get(task, (0.0, 0.0))
        spent.append((ran - before[0], waited - before[1]))
    seconds = last.at - first.at
    stolen = last.stolen - first.stolen
    others = last.busy - first.busy - sum(ran for ran, _ in spent) + stolen
    delayed = max((waited for _, waited in spent), default=0.0) + stolen / (os.cpu_count() or 1)
    return Disturbance(max(0.0, others / seconds), min(1.0, delayed / seconds))


class Watch:
    """`with Watch() as watch:`, then `watch.seen`."""

    seen = Disturbance()

    def __enter__(self) -> Watch:
        self._looks: list[Look] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        if KNOWN:
            self._looks.append(Look.now())
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._looks:
            self._thread.join()
            self._looks.append(Look.now())
            self.seen = disturbance(self._looks)

    def _look(self) -> None:
        while not self._done.wait(INTERVAL_SECONDS):
            self._looks.append(Look.now())


class Measurement(Generic[T]):
    """A measurement that tests share: taken for the first, and again where one fails and it was disturbed."""

    def __init__(self, take: Callable[[], T], watch: Callable[[], Watch] = Watch) -> None:
        self._take, self._watch = take, watch
        self._taken: list[T] = []
        self.tries = 0
        self.seen = Disturbance()

    def __call__(self) -> T:
        if not self._taken:
            self.tries += 1
            watch = self._watch()
            try:
                with watch:
                    self._taken.append(self._take())
            finally:
                self.seen = watch.seen
        return self._taken[0]

    def discard(self) -> None:
        self._taken.clear()


class NotMeasured(Exception):
    """No failure: the machine was too busy, three times."""


def judge(
    test: Callable[[], object],
    tolerates: float = TOLERATED,
    shared: Sequence[Measurement[Any]] = (),
    watch: Callable[[], Watch] = Watch,
) -> None:
    """Run a test of times up to three times; where it judges shared measurements, their disturbance decides.

    Raises what failed where two tries failed undisturbed, or all three and one of them undisturbed;
    `NotMeasured` where all three failed disturbed.
    """
    __tracebackhide__ = True
    reasons: list[str] = []
    undisturbed = 0
    while True:
        watching = watch()
        try:
            with watching:
                test()
            return
        except (Exception, pytest.fail.Exception):
            seen = [one.seen for one in shared] or [watching.seen]
            reasons.append(", ".join(map(str, seen)))
            undisturbed += not any(one.excuses(tolerates) for one in seen)
            last = max([len(reasons), *(one.tries for one in shared)]) >= TRIES
            if undisturbed and (undisturbed == CONFIRMED or last):
                raise
        if last:
            raise NotMeasured(f"not measured, the machine was busy {TRIES} times: {'; '.join(reasons)}")
        for one in shared:
            one.discard()


def _tasks(root: int) -> Iterator[tuple[Task, tuple[float, float]]]:
    """Every thread of a process and of those that it started, directly or not."""
    processes = [root]
    while processes:
        process = processes.pop()
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{process}/task"):
                task = f"/proc/{process}/task/{thread}"
                if counted := _numbers(f"{task}/schedstat"):
                    yield (process, int(thread)), (counted[0] / 1e9, counted[1] / 1e9)
                processes += _numbers(f"{task}/children")


def _numbers(path: str) -> list[int]:
    """What is in a file; nothing once its process has ended."""
    try:
        with open(path) as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def _jiffies() -> list[float]:
    """Seconds of all cores: user, nice, system, idle, iowait, irq, softirq, stolen by the host."""
    tick = os.sysconf("SC_CLK_TCK")
    with open("/proc/stat") as file:
        return [int(word) / tick for word in file.readline().split()[1:9]]
