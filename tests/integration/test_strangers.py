"""A worker that runs something else than its master is named, and not waited for."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from profiler.process.ports import free_port
from profiler.rundir import versions
from tests.integration.kill import SCENARIO
from tests.integration.locust_process import COMPARE, ROOT, locust

OTHER = """
from locust import User, task

class Mine(User):
    @task
    def work(self): ...
"""

CHANGED = """
from profiler.load import AgentUser

class Agents(AgentUser):
    weight = 2
"""

VERSION = re.escape(versions()["toolcall-profiler"])
CANNOT = r"locust: error: worker \S+_[0-9a-f]{8} cannot take part: "
ALIKE = ": start all of them with the same"
EXPECTED = {
    "another file": rf"{CANNOT}it does not answer, so it runs another Locust file than compare\.py or "
    rf"another toolcall-profiler than {VERSION}{ALIKE}",
    "a changed file": rf"{CANNOT}it runs the Locust file other\.py, the master compare\.py{ALIKE}",
    "another version": rf"{CANNOT}it runs toolcall-profiler 9\.9\.9, the master {VERSION}{ALIKE}",
    "another scenario": r"locust: error: worker \d \(\S+, pid \d+\) has another scenario \./quick\.toml than "
    "the master: give both the same file",
}


def start(path: Path, kind: str) -> tuple[int, str, int]:
    """(exit code of a master of two workers one of which is a stranger, what it said, processes left)."""
    theirs = path / "theirs"
    theirs.mkdir()
    (path / "quick.toml").write_text(SCENARIO)
    (theirs / "quick.toml").write_text(SCENARIO.replace("fan_out = 3", "fan_out = 2"))
    (theirs / "other.py").write_text(CHANGED if kind == "a changed file" else OTHER)
    metadata = theirs / "site" / "toolcall_profiler-9.9.9.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toolcall-profiler\nVersion: 9.9.9\n")
    port = str(free_port())
    to_it = ("--worker", "--master-host", "127.0.0.1", "--master-port", port)
    with locust(path) as processes:
        master = processes.start(
            *("--master", "--headless", "--expect-workers", "2", "-u", "4", "-t", "5s", "--no-metrics"),
            *("--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--scenario", "./quick.toml"),
        )
        processes.start(*to_it)
        environment = {}
        if kind == "another version":
            environment["PYTHONPATH"] = os.pathsep.join((str(theirs / "site"), str(ROOT)))
        if kind == "another scenario":
            processes.path = theirs
        processes.file = theirs / "other.py" if kind.endswith("file") else COMPARE
        processes.start(*to_it, **environment)
        code, said = processes.end(master, 60)
        processes.all_left_within(60)
        return code, said, len(processes.left())


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, int]]:
    """All at the same time: most of it is waiting."""
    with ThreadPoolExecutor() as pool:
        runs = {kind: pool.submit(start, tmp_path_factory.mktemp("stranger"), kind) for kind in EXPECTED}
    return {kind: run.result() for kind, run in runs.items()}


@pytest.mark.parametrize("kind", EXPECTED)
def test_a_worker_that_runs_something_else_ends_the_test_before_it_begins_and_is_named(
    kind: str, started: dict[str, tuple[int, str, int]]
) -> None:
    code, said, left = started[kind]
    (error,) = [line for line in said.splitlines() if line.startswith("locust: error: ")]
    assert re.fullmatch(EXPECTED[kind], error), error
    assert (code, left) == (2, 0)
