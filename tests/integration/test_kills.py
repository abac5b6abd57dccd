"""A comparison that loses one of its processes, its disk or its directory: what is left can be read."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from profiler import cli
from profiler.emulator.process import start_emulator
from profiler.rundir import RunDirectory
from profiler.strategies import parse_strategies
from tests.integration.disturb import Event, Round, disturb_one
from tests.integration.kill import COMPARE, SCENARIO, VICTIMS, Killed, Victim, kill_one
from tests.integration.locust_process import MARK, ROOT, marked, wait_until

AFTER = 1.6
"""Seconds after the first record: so that there are loops which ended a second before."""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[Victim, Killed]:
    """One kill of each, all at the same time: most of it is waiting.

    All are over before a test begins: judging them takes this process's standard output and error.
    """
    with ThreadPoolExecutor() as pool:
        kills = {
            victim: pool.submit(
                kill_one,
                tmp_path_factory.mktemp(victim),
                victim,
                AFTER,
                strategies=parse_strategies("gathered"),
                seconds=3.0,
                once_loops_run=True,
            )
            for victim in VICTIMS
        }
    return {victim: kill.result() for victim, kill in kills.items()}


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_kill_loses_at_most_the_last_second(victim: Victim, killed: dict[Victim, Killed]) -> None:
    one = killed[victim]
    assert one.wrong == (), f"{one.wrong}\n{one.said}"
    assert one.owed > 0
    assert one.report == 0
    if victim == "emulator":
        assert one.said.splitlines()[-1].startswith(
            "profiler: the emulator ended in the middle of the run (killed by signal 9); see runs/"
        )


def test_the_death_of_the_leader_is_named_with_where_the_records_are(killed: dict[Victim, Killed]) -> None:
    said = killed["locust"].said.splitlines()[-1]
    assert re.fullmatch(
        r"profiler: the load test's leader was killed by signal 9 \(SIGKILL: by hand, or by a system out of "
        r"memory\); what was recorded is in runs/[\w-]+",
        said,
    )


ROUNDS = (
    (Event("stop", 0.8, worker=1, seconds=7.0), Event("stop_target", 1.5, seconds=6.0)),
    (Event("cut", 1.0, worker=0), Event("kill", 2.0, worker=2)),
    (Event("silence", 0.8, worker=2, seconds=7.0), Event("kill_master", 9.0)),
)


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> list[Round]:
    """All at the same time: most of it is waiting. benchmarks/kills.py draws many more."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(disturb_one, [tmp_path_factory.mktemp("round") for _ in ROUNDS], ROUNDS))


@pytest.mark.parametrize("number", range(len(ROUNDS)))
def test_no_loop_is_lost_unsaid_and_the_load_is_never_more_than_was_asked_for(
    number: int, rounds: list[Round]
) -> None:
    one = rounds[number]
    assert one.wrong == (), f"{one.wrong}\n{one.said}"
    assert one.recorded > 0
    if number == 0:
        assert {"worker_lost", "worker_returned"} <= set(one.incidents)


def test_a_target_of_ones_own_that_goes_away_ends_the_run(tmp_path: Path) -> None:
    """Stopped and killed, both at the same time. Until then all of its loops succeeded."""
    (tmp_path / "quick.toml").write_text(SCENARIO)
    signals = (signal.SIGTERM, signal.SIGKILL)
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        ended = {}
        for sent in signals:
            emulator = stack.enter_context(start_emulator(str(tmp_path / "quick.toml")))
            to_it = ("--base-url", emulator.url, "--out", sent.name, "--strategy", "gathered")
            process = stack.enter_context(
                subprocess.Popen(
                    [*COMPARE, *to_it, "--duration", "60s"],
                    cwd=tmp_path,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            ended[sent] = pool.submit(process.communicate, timeout=100), process, emulator
        for sent, (_, _, emulator) in ended.items():
            assert wait_until(lambda out=sent.name: any(_records(tmp_path / out)), 60)  # type: ignore[misc]
            os.kill(emulator.pid, sent)
        for sent, (said, process, emulator) in ended.items():
            out, err = said.result()
            gone = (
                f"the target {emulator.url} went away in the middle of the run (Connection refused, for 5 s)"
            )
            (path,) = (tmp_path / sent.name).iterdir()
            kept = path.relative_to(tmp_path)
            assert err == f"profiler: {gone}; what was measured is kept; see {kept}\n"
            assert (process.returncode, out) == (3, "")
            directory = RunDirectory.open(path)
            assert [(i.kind, i.detail.startswith(gone)) for i in directory.load().incidents] == [
                ("aborted", True)
            ]
            assert not directory.load().finished
            statuses = [record.status for record in directory.records()]
            assert statuses[0] == "ok"
            assert "error" in statuses
            assert cli.main(["report", str(path)]) == 0
            assert gone in (path / "report.html").read_text()


def _records(out: Path) -> Iterator[Path]:
    return (path for path in out.glob("*/records.jsonl") if path.stat().st_size)


def test_a_full_disk_ends_the_run_in_words_and_keeps_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "quick.toml").write_text(SCENARIO)
    mark = uuid.uuid4().hex
    most = 40_000
    ended = subprocess.run(
        [*COMPARE, "--strategy", "gathered"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), MARK: mark},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        # What a user who is not root can have: no file of the run may grow beyond this.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
    )
    assert ended.returncode == 2
    said = ended.stderr.splitlines()[-1]
    found = re.fullmatch(
        r"profiler: (runs/[\w-]+)/records\.jsonl: cannot be written: File too large; "
        r"the (\d+) loops before that are kept",
        said,
    )
    assert found, ended.stderr
    assert "Traceback" not in ended.stderr
    directory = RunDirectory.open(tmp_path / found[1])
    assert len(list(directory.records())) == int(found[2]) > 0
    assert 0 < directory.records_path.stat().st_size <= most
    run = directory.load()
    assert not run.finished
    assert [incident.kind for incident in run.incidents] == ["aborted"]
    assert cli.main(["report", str(directory.path)]) == 0
    assert wait_until(lambda: not marked(mark), 60)


def test_a_directory_that_cannot_be_made_is_said_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "runs"
    assert cli.main(["compare", "--scenario", "instant", "--out", str(out)]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("plan: ")]
    assert len(error) == 1
    assert re.fullmatch(
        rf"profiler: {re.escape(str(out))}/[\d-]+: cannot make a run directory: Not a directory", error[0]
    )


def test_output_that_cannot_be_written_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "profiler", "scenarios"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert ended.stderr == "profiler: the output: cannot be written: No space left on device\n"
    assert ended.returncode == 2
