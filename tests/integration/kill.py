"""`profiler compare` with one of its processes killed, and what has to hold afterwards.

The truth is the emulator's own: its journal is read a moment before the kill, over HTTP, from a
process that knows nothing of records. What it calls finished a second earlier has to be on disk.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from profiler import cli
from profiler.rundir import RunDirectory
from tests.integration.locust_process import MARK, ROOT, marked, wait_until

Victim = Literal["parent", "locust", "worker", "emulator", "interrupt"]
"""Who is killed. `interrupt`: nobody, the command gets what Ctrl-C sends."""

VICTIMS: tuple[Victim, ...] = ("parent", "locust", "worker", "emulator")

OWED_NS = 1_000_000_000
"""A loop that ended this long before the kill has to be on disk."""

END_SECONDS = 25.0
LEAVE_SECONDS = 15.0

SCENARIO = """
description = "one round of three calls, quick"
prompt = "Question {number}"

[model]
first_token = 0.02
tokens_per_second = 0

[loop]
rounds = 1
fan_out = 3

[tools.look]
path = "/tools/look"
description = "Looks."
duration = 0.02
"""


@dataclass(frozen=True, slots=True)
class Killed:
    """What became of a run. `after` is when it was killed, in seconds since its start; `wrong` in words.

    `owed`: loops that the emulator had seen end a second before; `kept`: those among them on disk.
    """

    victim: Victim
    after: float
    code: int | None
    loops: int
    owed: int
    kept: int
    report: int | None
    said: str
    wrong: tuple[str, ...]


def kill_one(
    path: Path,
    victim: Victim,
    after: float,
    *,
    strategies: tuple[str, ...] = ("gathered", "semaphore:2"),
    seconds: float = 2.0,
    once_loops_run: bool = False,
) -> Killed:
    """Run `profiler compare` in `path` and kill `victim` when it has run for `after` seconds.

    Each strategy has its turn for `seconds`. With `once_loops_run`, `after` counts from the first
    record on. Two workers run where one is to be killed. Everything is gone when it returns.
    """
    path.mkdir(parents=True, exist_ok=True)
    (path / "quick.toml").write_text(SCENARIO)
    mark = uuid.uuid4().hex
    with open(path / "said.txt", "w+b") as said:
        process = subprocess.Popen(
            [
                *COMPARE,
                *(f"--strategy={spec}" for spec in strategies),
                *("--duration", f"{seconds:g}s", "--workers", "2" if victim == "worker" else "1"),
            ],
            cwd=path,
            env={**os.environ, "PYTHONPATH": str(ROOT), MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            if once_loops_run:
                wait_until(lambda: any(f.stat().st_size for f in path.glob("runs/*/records.jsonl")), 60)
            begun = time.monotonic()
            found = _look(process.pid, mark, victim, begun + after)
            wrong, code = [], None
            try:
                code = process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                wrong.append(f"no end within {END_SECONDS:g} s")
            if not wait_until(lambda: not marked(mark), LEAVE_SECONDS):
                wrong.append("left behind: " + "; ".join(_command(pid) for pid in marked(mark)))
        finally:
            for pid in marked(mark):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait(10)
        said.seek(0)
        words = said.read().decode()
    if "Traceback" in words:
        wrong.append("a traceback")
    with judging:
        return _judge(path, victim, found, code, words, wrong)


judging = threading.Lock()
"""What `profiler report` says goes to the one standard output of this process."""

COMPARE = [
    *(sys.executable, "-P", "-m", "profiler", "compare", "--scenario", "./quick.toml", "--users", "6"),
    *("--blocks", "1", "--calibrate", "0", "--no-metrics", "--quiet", "--allow-saturated"),
]


@dataclass(frozen=True, slots=True)
class _Kill:
    after: float
    """Seconds since the process started or its first record came; below 0: it was over before."""
    pid: int | None
    owed: frozenset[tuple[int, int]]
    """(trial, number) of what has to be on disk."""


def _look(parent: int, mark: str, victim: Victim, at: float) -> _Kill:
    """Wait until `at`, ask the emulator what has ended, kill the victim at once."""
    begun = time.monotonic()
    while True:
        time.sleep(max(0.0, at - time.monotonic()))
        pids = _by_role(parent, mark)
        if parent not in marked(mark):
            return _Kill(-1.0, None, frozenset())
        if pids.get(victim):
            break
        at = time.monotonic() + 0.02  # not there yet
    owed: frozenset[tuple[int, int]] = frozenset()
    for emulator in pids.get("emulator", []):
        with contextlib.suppress(OSError, ValueError):
            entries = journal(f"http://127.0.0.1:{_port(emulator)}")
            owed = frozenset(
                (int(entry["trial"]), entry["loop"])
                for entry in entries
                if entry["round"] == 1  # the answer
                and entry["trial"] is not None
                and entry["status"] == 200
                and entry["outcome"] == "complete"
                and entry["finished_ns"] < time.monotonic_ns() - OWED_NS
            )
    pid = pids[victim][0]
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGINT if victim == "interrupt" else signal.SIGKILL)
    return _Kill(time.monotonic() - begun, pid, owed)


def _judge(path: Path, victim: Victim, kill: _Kill, code: int | None, said: str, wrong: list[str]) -> Killed:
    directories = sorted((path / "runs").glob("*")) if (path / "runs").is_dir() else []
    loops, kept, report = 0, 0, None
    done = False
    for directory in directories:
        try:
            opened = RunDirectory.open(directory)
            run, records = opened.load(), list(opened.records())
        except Exception as error:
            wrong.append(f"cannot be opened: {error}")
            continue
        loops = len(records)
        done = run.finished and all(record.status == "ok" for record in records)
        have = {(record.trial, record.number) for record in records if record.status == "ok"}
        kept = len(kill.owed & have)
        if kept < len(kill.owed):
            wrong.append(f"{len(kill.owed) - kept} loops are missing")
        whole = [t.index for t in run.trials if t.ended_ns - t.started_ns > OWED_NS]
        lost = [index for index in whole if not any(record.trial == index for record in records)]
        if lost:
            wrong.append(f"trials without a record: {lost}")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
            report = cli.main(["report", str(directory)])
        if report != 0:
            wrong.append(f"report: {errors.getvalue().strip()}")
        if run.finished and len(run.trials) < len(run.strategies):
            wrong.append("calls itself finished")
    if kill.owed and not directories:
        wrong.append("no run directory")
    # Without one of its workers a test goes on, but does not begin. An emulator may go when all is done.
    expected = {
        "parent": -signal.SIGKILL,
        "locust": 1,
        "worker": 0 if loops else 1,
        "emulator": 0 if done and code == 0 else 3,
    }.get(victim, 130)
    if kill.after >= 0 and code != expected:
        wrong.append(f"exit code {code}, not {expected}")
    return Killed(victim, kill.after, code, loops, len(kill.owed), kept, report, said.strip(), tuple(wrong))


def _by_role(parent: int, mark: str) -> dict[Victim, list[int]]:
    """The processes of a run: Locust (with workers: the master), those it forked, the emulator."""
    found: dict[Victim, list[int]] = {"parent": [parent], "interrupt": [parent]}
    found |= {"locust": [], "worker": [], "emulator": []}
    parents = {pid: _parent(pid) for pid in marked(mark)}
    for pid, its_parent in parents.items():
        command = _command(pid)
        if "-m profiler.emulator" in command:
            found["emulator"].append(pid)
        elif "/locust/start.py" in command:
            found["locust" if its_parent == parent else "worker"].append(pid)
    return found


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return ""


def _port(pid: int) -> int:
    """Where a process listens. Raises `OSError`, `ValueError` when it does not (yet)."""
    sockets = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            sockets.add(os.readlink(entry))
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
            return int(fields[1].partition(":")[2], 16)
    raise ValueError(f"{pid} does not listen")


def journal(root: str) -> list[dict[str, Any]]:
    """The model requests that an emulator has seen."""
    with urllib.request.urlopen(f"{root}/emulator/journal?kind=model", timeout=60) as response:
        entries: list[dict[str, Any]] = json.load(response)["entries"]
    return entries
