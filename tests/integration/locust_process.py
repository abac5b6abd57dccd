"""Locust as a user runs it: in processes of its own, found again by a mark in their environment."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from profiler.records import LoopRecord
from profiler.rundir import Run, RunDirectory

ROOT = Path(__file__).resolve().parents[2]
COMPARE = ROOT / "locustfiles" / "compare.py"
MARK = "PROFILER_TEST_MARK"
UNCALIBRATED = ("--calibrate", "0")


@dataclass
class Locust:
    """Locust processes of one test, in the directory `path`; run directories land in `path/runs`."""

    path: Path
    file: Path = COMPARE
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        inherited = {
            key: value for key, value in os.environ.items() if not key.startswith(("LOCUST_", "PROFILER_"))
        }
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "locust",
                "-f",
                str(self.file),
                "--only-summary",
                *(() if "--worker" in arguments else UNCALIBRATED),  # theirs come from their master
                *arguments,
            ],
            cwd=self.path,
            env={
                **inherited,
                "PYTHONPATH": str(ROOT),
                "PYTHONFAULTHANDLER": "1",
                MARK: self.mark,
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def run(self, *arguments: str, timeout: float = 200, **environment: str) -> tuple[int, str]:
        """Exit code and everything it said; checks that nothing went wrong on the way out."""
        return self.end(self.start("--headless", *arguments, **environment), timeout)

    def end(self, process: subprocess.Popen[str], timeout: float = 200) -> tuple[int, str]:
        output, _ = process.communicate(timeout=timeout)
        assert "Traceback" not in output, output
        assert "being finalized" not in output, output
        assert "Exception ignored" not in output, output
        return process.returncode, output

    def left(self) -> list[int]:
        """Processes of this test that still run, descendants included."""
        return marked(self.mark)

    def all_left_within(self, seconds: float) -> bool:
        return wait_until(lambda: not self.left(), seconds)

    def directory(self) -> RunDirectory:
        (path,) = (self.path / "runs").iterdir()
        return RunDirectory.open(path)

    def close(self) -> None:
        """End what still runs. Only a failed test leaves its own: they say where they were."""
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGABRT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    print(process.communicate(timeout=60)[0][-20_000:])  # noqa: T201
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.started:
            if process.stdout is not None:
                process.stdout.close()
            process.wait(10)


@contextlib.contextmanager
def locust(path: Path) -> Iterator[Locust]:
    """Locust for one test; whatever is left at the end is killed."""
    processes = Locust(path)
    try:
        yield processes
    finally:
        processes.close()


def marked(mark: str) -> list[int]:
    """Processes with this mark in their environment that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                ours = f"{MARK}={mark}".encode() in (entry / "environ").read_bytes()
                if ours and "State:\tZ" not in (entry / "status").read_text():
                    found.append(int(entry.name))
    return found


def wait_until(true: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def check_trials(run: Run, records: list[LoopRecord], strategies: set[str]) -> None:
    """Each strategy had its turn, alone, and its loops had drained before the next began."""
    assert {trial.strategy for trial in run.trials} == strategies
    assert [trial.index for trial in run.trials] == list(range(len(run.trials)))
    for before, after in zip(run.trials, run.trials[1:], strict=False):
        assert before.ended_ns <= before.drained_ns <= after.started_ns
    for trial in run.trials:
        own = [record for record in records if record.trial == trial.index]
        assert own
        assert {record.strategy for record in own} == {trial.strategy}
        before = [other.drained_ns for other in run.trials if other.index < trial.index]
        assert max(before, default=0) <= min(record.started_ns for record in own)
        assert max(record.ended_ns for record in own) <= trial.drained_ns
    numbers = [(record.trial, record.number) for record in records]
    assert len(set(numbers)) == len(numbers)  # no worker took another's tape entries


def csv_counts(prefix: Path) -> dict[tuple[str, str], int]:
    """Requests by type and name, from Locust's statistics file."""
    with open(f"{prefix}_stats.csv", newline="") as file:
        return {(row["Type"], row["Name"]): int(row["Request Count"]) for row in csv.DictReader(file)}
