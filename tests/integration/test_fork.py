"""After a fork, in child and parent, and at the end of a process: nothing is lost, nothing comes twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from profiler.records import read
from tests.integration.locust_process import ROOT

LOOPS, CHILDREN = 4, 3

WARNS_NOT = ("-W", "ignore:This process:DeprecationWarning")
"""Python 3.12 and later warn of any fork in a process with threads."""


def python(path: Path, *arguments: str, code: int = 0) -> str:
    """What a program says that runs in `path` and ends with this exit code."""
    ended = subprocess.run(
        [sys.executable, *WARNS_NOT, *arguments],
        cwd=path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == code, ended.stderr
    return ended.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("how", ["fork", "multiprocessing", "thread"])
def test_tools_gates_and_sinks_work_in_children_and_in_the_parent_afterwards(
    how: str, tmp_path: Path
) -> None:
    said = python(tmp_path, str(Path(__file__).with_name("forking.py")), how, str(LOOPS), str(CHILDREN))
    each = 2 * LOOPS
    numbers = Counter(1000 * process + n for process in range(2 + CHILDREN) for n in range(each))
    for name in ("lines.jsonl", "behind.jsonl"):
        records = list(read(tmp_path / name))
        assert Counter(one.number for one in records if one.number is not None) == numbers
        assert len({one.id for one in records}) == len(records)
    spans = [line.split() for line in (tmp_path / "spans.txt").read_text().splitlines()]
    assert Counter(int(number) for number, _ in spans) == numbers
    before = {pid for number, pid in spans if int(number) < 2000}
    assert len(before) == 1  # the parent exports those before the fork
    counted = dict(line.split() for line in (tmp_path / "metrics.txt").read_text().splitlines())
    of_parent = int(counted.pop("1"))  # all of its own; in its threads it runs more than are numbered
    assert of_parent > 2 * each if how == "thread" else of_parent == 2 * each
    assert counted == {str(process): str(each) for process in (0, 2, 3, 4)}
    # The parent serves its metrics, and cannot serve a child's.
    assert [line.rpartition("; ")[2] for line in said.splitlines()] == [
        "serve them after the fork, in each process at a port of its own"
    ] * CHILDREN


PROGRAM = """
import asyncio, atexit, os, signal, sys, threading, time
from profiler.exporters.jsonl import JsonlSink
from profiler.instrument import Profiler

sink = JsonlSink("lines.jsonl")
profiler = Profiler(sinks=[sink, lambda record: (time.sleep(seconds), behind(record))])
behind = JsonlSink("behind.jsonl")
seconds = 0.2 if sys.argv[1].startswith("slow") else 0


def loops(count=3):
    for _ in range(count):
        with profiler.loop():
            pass


def late():
    loops()


def nothing():
    loops()


slow = nothing  # the first record reaches the file behind only while the process ends


def exit():
    loops()
    sys.exit(0)


def exception():
    loops()
    raise ValueError("the application's own")


def daemons():
    def one_loop():
        loops(1)
        ended.append(1)
        time.sleep(60)

    threads = [threading.Thread(target=one_loop, daemon=True) for _ in range(3)]
    for one in threads:
        one.start()
    while len(ended) < 3:
        time.sleep(0.01)


ended = []


def interrupted():
    async def endless():
        async with profiler.loop():
            loops(2)
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(60)

    asyncio.run(endless())


def loop_closed():
    async def some():
        loops(1)

    for _ in range(3):  # a sink under several event loops, each closed
        asyncio.run(some())


def os_exit():
    loops()
    time.sleep(1)
    os._exit(0)


def killed():
    loops()
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


if sys.argv[1].endswith("late"):
    atexit.register(late)
    with profiler.loop():  # so that the threads are there
        pass
else:
    globals()[sys.argv[1]]()
"""

ENDS = {
    "nothing": 0,
    "exit": 0,
    "exception": 1,
    "daemons": 0,
    "interrupted": -signal.SIGINT,
    "loop_closed": 0,
    "os_exit": 0,
    "killed": -signal.SIGKILL,
    "late": 0,
    "slow": 0,
    "slow_late": 0,
}


def test_the_end_of_a_process_loses_no_record(tmp_path: Path) -> None:
    """All ends at the same time: most of it is waiting."""

    def ended(end: str) -> tuple[list[int], str]:
        path = tmp_path / end
        path.mkdir()
        said = python(path, "-c", PROGRAM, end, code=ENDS[end])
        return [len(list(read(path / name))) for name in ("lines.jsonl", "behind.jsonl")], said

    with ThreadPoolExecutor(3) as pool:
        found = dict(zip(ENDS, pool.map(ended, ENDS), strict=True))
    assert {end: loops for end, (loops, _) in found.items()} == {
        end: [4, 4] if end.endswith("late") else [3, 3] for end in ENDS
    }
    assert {end for end, (_, said) in found.items() if said} == {"exception", "interrupted"}
