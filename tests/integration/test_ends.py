"""SIGTERM and SIGHUP end what runs as the first Ctrl-C does: what was measured is kept, with an exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from profiler.process.ports import free_port
from profiler.process.signals import DRAIN_SECONDS
from profiler.rundir import Run, RunDirectory
from tests.integration.locust_process import MARK, ROOT, locust, wait_until
from tests.integration.plain_server import Asked, PlainServer, response

SCENARIO = """
description = "a tool call each, of which one in ten takes a minute"
prompt = "Question {number}"

[model]
first_token = 0.02
tokens_per_second = 0

[loop]
rounds = 1
fan_out = 1

[tools.look]
path = "/tools/look"
description = "Looks."
duration = { kind = "empirical", values = [0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 60.0] }
"""

LOAD = ("--scenario", "./hangs.toml", "--users", "6", "--duration", "60s", "--strategy", "gathered")
COMPARE = ("compare", *LOAD, "--calibrate", "0", "--no-metrics", "--quiet", "--allow-saturated")


@dataclass(frozen=True)
class Ended:
    """A process that has ended, and its run directory."""

    code: int
    out: str
    err: str
    path: Path | None

    @property
    def run(self) -> Run:
        assert self.path is not None
        return RunDirectory.open(self.path).load()

    @property
    def incidents(self) -> list[tuple[str, str]]:
        return [(incident.kind, incident.detail) for incident in self.run.incidents]

    @property
    def statuses(self) -> set[str]:
        assert self.path is not None
        return {record.status for record in RunDirectory.open(self.path).records()}


@contextmanager
def profiler(path: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], Callable[[], Ended]]]:
    """The command in `path`, and what became of it; it is gone at the end of the block."""
    (path / "hangs.toml").write_text(SCENARIO)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "profiler", *arguments],
        cwd=path,
        env={**os.environ, "PYTHONPATH": str(ROOT), MARK: path.name},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

    def ended() -> Ended:
        out, err = process.communicate(timeout=100)
        (kept,) = [*path.glob("runs/*")] or [None]
        return Ended(process.returncode, out, err, kept)

    try:
        yield process, ended
    finally:
        process.kill()
        process.wait(60)


def recorded(path: Path) -> bool:
    return any(file.stat().st_size for file in path.glob("runs/*/records.jsonl"))


def compare(path: Path, *signals: signal.Signals, early: bool = False) -> Ended:
    """`compare` that gets these signals, half a second apart, once it has loops or (`early`) a directory."""
    path.mkdir()
    with profiler(path, *COMPARE) as (process, ended):
        assert wait_until(lambda: any(path.glob("runs/*")) if early else recorded(path), 60)
        for number in signals:
            process.send_signal(number)
            time.sleep(0.5)
        return ended()


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """All at the same time: most of it is waiting."""
    path = tmp_path_factory.mktemp("ends")
    with ThreadPoolExecutor() as pool:
        ended = {
            "once": pool.submit(compare, path / "once", signal.SIGTERM),
            "twice": pool.submit(compare, path / "twice", signal.SIGHUP, signal.SIGTERM),
            "after ctrl-c": pool.submit(compare, path / "both", signal.SIGINT, signal.SIGTERM),
            "early": pool.submit(compare, path / "early", signal.SIGTERM, early=True),
        }
    return {name: one.result() for name, one in ended.items()}


TOLD = ("terminated", "told to end by SIGTERM")


def drained_seconds(run: Run) -> float:
    (trial,) = run.trials
    return (trial.drained_ns - trial.ended_ns) / 1e9


def test_sigterm_cuts_what_is_in_flight_after_ten_seconds_and_makes_the_report(
    ends: dict[str, Ended],
) -> None:
    one = ends["once"]
    assert one.code == 143, one.err
    assert one.incidents == [TOLD]
    assert one.statuses == {"ok", "cancelled"}
    assert drained_seconds(one.run) > 0.9 * DRAIN_SECONDS
    assert not one.run.finished
    assert one.path is not None
    assert (one.path / "report.html").exists()
    assert "report: runs/" in one.out


@pytest.mark.parametrize(
    ("which", "incidents"),
    [
        ("twice", [("terminated", "told to end by SIGHUP")]),
        ("after ctrl-c", [("interrupted", "stopped by the user"), TOLD]),
    ],
)
def test_a_second_signal_cuts_at_once(
    which: str, incidents: list[tuple[str, str]], ends: dict[str, Ended]
) -> None:
    one = ends[which]
    assert one.code == 143, one.err
    assert one.incidents == incidents
    assert one.statuses == {"ok", "cancelled"}
    assert drained_seconds(one.run) < DRAIN_SECONDS


def test_before_the_first_trial_it_says_that_nothing_was_measured(ends: dict[str, Ended]) -> None:
    """A directory is kept where the start had come so far that there is anything in it."""
    one = ends["early"]
    assert (one.code, one.out) == (143, "")
    said = "profiler: told to end by SIGTERM before anything was measured"
    if one.path is None:
        assert one.err in (f"{said}\n", f"{said}: nothing is kept\n")
    else:
        assert one.err == f"{said}; see runs/{one.path.name}\n"
        assert (one.incidents, one.statuses) == ([TOLD], set())


def test_locust_by_itself_ends_its_workers_and_keeps_its_records(tmp_path: Path) -> None:
    """All of its processes are told at the same time, as a service manager does."""
    with locust(tmp_path) as processes:
        port = str(free_port())
        process = processes.start(
            "--headless", "--scenario", "instant", "-u", "2", "-r", "2", "--strategy", "gathered",
            "--processes", "2", "--master-bind-port", port, "--master-port", port,
        )  # fmt: skip
        assert wait_until(lambda: recorded(tmp_path), 60)
        os.killpg(process.pid, signal.SIGTERM)
        code, output = processes.end(process)
        assert code == 0, output
        assert processes.all_left_within(15)
        directory = processes.directory()
    assert [(incident.kind, incident.detail) for incident in directory.load().incidents] == [TOLD]
    assert {record.status for record in directory.records()} == {"ok"}
    assert drained_seconds(directory.load()) < DRAIN_SECONDS


ANSWER = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Here it is."}}
    ],
}


@pytest.mark.parametrize("in_time", [True, False])
def test_run_waits_for_its_loop_or_draws_what_there_was(in_time: bool, tmp_path: Path) -> None:
    asked, answered = threading.Event(), threading.Event()

    def answer(_: Asked) -> bytes:
        asked.set()
        answered.wait(60)
        return response(200, ANSWER)

    server = PlainServer(answer)
    arguments = ("run", "--base-url", server.url, "--tools-url", server.url, "--out", "runs")
    try:
        with profiler(tmp_path, *arguments) as (process, ended):
            assert asked.wait(60)
            process.send_signal(signal.SIGTERM)
            if in_time:
                answered.set()
            else:
                time.sleep(0.5)
                process.send_signal(signal.SIGTERM)
            one = ended()
    finally:
        answered.set()
        server.close()
    assert one.code == 143, one.err
    assert one.statuses == {"ok" if in_time else "cancelled"}
    assert ("Here it is." in one.out) == in_time
    assert "the model" in one.out  # the timeline
    said = "" if in_time else "profiler: told to end by SIGTERM in the middle of the loop\n"
    assert one.err == said
    assert one.incidents == ([] if in_time else [TOLD])
