"""What is 30 % slower fails, alone and beside processes that take every core; what is not passes."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.measuring import KNOWN, NotMeasured, Watch, judge

pytestmark = [
    pytest.mark.measures(tolerates=1.0),
    pytest.mark.skipif(not KNOWN, reason="this system has no /proc that counts who waits for a core"),
]

BURN = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"


@contextmanager
def burners(cores: int) -> Iterator[None]:
    """A process on each of the first cores that never gives it up by itself, and is no child of ours."""
    pids = []
    try:
        for core in sorted(os.sched_getaffinity(0))[:cores]:
            command = [
                "sh",
                "-c",
                '"$@" > /dev/null 2>&1 & echo $!',
                "sh",
                sys.executable,
                "-c",
                BURN,
                str(core),
            ]
            pids.append(int(subprocess.run(command, check=True, capture_output=True).stdout))
        time.sleep(0.1)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


def in_turns(turns: int, clock: Callable[[], float], act: Callable[[float], object], slower: float) -> float:
    """How much longer `act(slower)` takes than `act(1)`, where they take turns; the median of each."""
    spent: tuple[list[float], list[float]] = ([], [])
    for turn in range(turns):
        started = clock()
        act(slower if turn % 2 else 1.0)
        spent[turn % 2].append(clock() - started)
    return statistics.median(spent[1]) / statistics.median(spent[0])


def work(amount: float) -> None:
    sum(range(int(300_000 * amount)))


def waiting(slower: float) -> float:
    return in_turns(20, time.perf_counter, lambda amount: time.sleep(0.1 * amount), slower)


def working(slower: float) -> float:
    return in_turns(40, time.thread_time, work, slower)


def hurrying() -> float:
    """No ratio within one run, but the wall time of some work over what it takes alone."""
    started, spent = time.perf_counter(), time.thread_time()
    working(1.0)
    return (time.perf_counter() - started) / (time.thread_time() - spent)


@pytest.mark.parametrize("cores", [0, os.cpu_count()], ids=["alone", "beside burners"])
@pytest.mark.parametrize(("figure", "tolerates"), [(waiting, 0.3), (working, 1.0)])
def test_judge_lets_through_what_is_as_fast_and_fails_what_is_30_percent_slower(
    cores: int, figure: Callable[[float], float], tolerates: float
) -> None:
    found: list[float] = []

    def bounded(slower: float) -> None:
        found.append(figure(slower))
        assert found[-1] < 1.15

    with burners(cores):
        judge(lambda: bounded(1.0), tolerates)
        judged = len(found)
        with pytest.raises(AssertionError):
            judge(lambda: bounded(1.3), tolerates)
    assert len(found) == judged + 2
    assert min(found[judged:]) > 1.15


def test_judge_calls_a_time_that_burners_doubled_not_measured() -> None:
    def bounded() -> None:
        assert hurrying() < 1.15

    with burners(os.cpu_count() or 1), pytest.raises(NotMeasured, match=r"others used .* waited \d\d%"):
        judge(bounded)


def test_watch_sees_who_takes_the_cores_and_who_waits() -> None:
    with burners(os.cpu_count() or 1), Watch() as watch:
        hurrying()
    assert watch.seen.others > 0.4 * (os.cpu_count() or 1)
    assert watch.seen.delayed > 0.2
