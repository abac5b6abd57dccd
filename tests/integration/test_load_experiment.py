"""`run_experiment`: a load test in a process of its own, from a process without gevent."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from profiler.emulator.process import start_emulator
from profiler.errors import Interrupted, ProfilerError, RecordError, TargetError, Terminated, UsageError
from profiler.load import experiment, locust_process
from profiler.load.experiment import Experiment, run_experiment
from profiler.load.locust_process import started_locust
from profiler.load.options import LoadOptions, conditions
from profiler.load.output import SETTLED
from profiler.rundir import Incident, Progress, RunDirectory, encode_progress
from profiler.strategies import parse_strategies
from tests.integration.kill import journal
from tests.integration.locust_process import MARK, ROOT, Locust, check_trials, locust, wait_until


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Locust]:
    with locust(tmp_path) as running:
        yield running


def options(out: Path, **changes: object) -> LoadOptions:
    fields: dict[str, object] = {
        "scenario": "instant",
        "strategies": parse_strategies("gathered,sequential"),
        "out": str(out / "runs"),
        "calibration_seconds": 0.0,
    }
    return LoadOptions(**{**fields, **changes})  # type: ignore[arg-type]


def test_blocks_of_every_strategy_on_the_same_tape(
    processes: Locust, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(MARK, processes.mark)
    said: list[str] = []
    meanwhile: list[tuple[bool, int]] = []  # whether anything was measured by then, in which thread
    path = run_experiment(
        Experiment(options(processes.path, blocks=2), users=6, seconds=1.0),
        progress=said.append,
        meanwhile=lambda: meanwhile.append((any(said), threading.get_ident())),
    )
    assert [began for began, _ in meanwhile] == [False]
    assert meanwhile[0][1] != threading.get_ident()
    run, records = (directory := RunDirectory.open(path)).load(), list(directory.records())
    check_trials(run, records, {"gathered", "sequential"})
    assert run.finished
    assert run.incidents == ()
    assert [trial.block for trial in run.trials] == [0, 0, 1, 1]
    lasted = [trial.ended_ns - trial.started_ns for trial in run.trials]
    assert min(lasted) >= 0.5e9
    assert min(lasted) < 2.5e9  # a busy machine prolongs some of them
    assert [trial.users for trial in run.trials] == [6] * 4
    for block in (0, 1):
        # Every strategy of a block begins at the same tape entry and leaves none out.
        numbers = [
            sorted(r.number for r in records if r.trial == trial.index and r.number is not None)
            for trial in run.trials
            if trial.block == block
        ]
        assert {own[0] for own in numbers} == {block * 1_000_000}
        assert all(own == list(range(own[0], own[0] + len(own))) for own in numbers)
    assert sum(line.startswith("trial ") for line in said) == 4
    assert processes.left() == [os.getpid()] or processes.left() == []
    assert capfd.readouterr().out == ""


ROUNDS = """
description = "loops of three requests"
prompt = "Trip {number}."

[model]
first_token = { kind = "constant", value = 0.1 }
tokens_per_second = { kind = "constant", value = 0 }

[loop]
rounds = { kind = "constant", value = 2 }
fan_out = { kind = "constant", value = 2 }

[tools.get_weather]
path = "/tools/weather"
description = "Weather."
duration = { kind = "constant", value = 0.2 }

[tools.get_weather.parameters]
type = "object"
properties.city = { type = "string" }
"""


@pytest.mark.parametrize(("limit", "before"), [({}, 1), ({"max_requests": 1000}, 3)])
def test_a_test_begins_after_one_request_unless_it_must_know_what_loops_spend(
    tmp_path: Path, limit: dict[str, int], before: int
) -> None:
    scenario = tmp_path / "rounds.toml"
    scenario.write_text(ROUNDS)
    seen: list[Progress] = []
    with start_emulator(str(scenario)) as emulator:
        made = options(
            tmp_path,
            scenario=str(scenario),
            base_url=emulator.url,
            strategies=parse_strategies("gathered"),
            calibration_seconds=0.1,
            blocks=1,
            **limit,
        )
        path = run_experiment(Experiment(made, users=2, seconds=1.0), watch=seen.append)
        asked = journal(emulator.url)
    assert len([entry for entry in asked if entry["trial"] is None]) == before
    run, loops = RunDirectory.open(path).load(), len(list(RunDirectory.open(path).records()))
    assert run.spent is not None
    assert (run.spent.requests, run.spent.loops) == (len(asked), loops + (before == 3))
    # What a loop is thought to take: three requests, and the tools of two rounds.
    assert run.loop_seconds is not None
    assert 0.7 <= run.loop_seconds < 3.0
    assert [progress.step for progress in seen if progress.step] == [
        "starting Locust",
        "importing what sends the requests",
        "asking the model once, measuring this client alone",
    ]
    assert [progress.unix for progress in seen] == sorted(progress.unix for progress in seen)
    assert (seen[2].state, seen[3].step) == ("preparing", "")
    assert run.capacity is not None
    assert set(run.capacity.request_cpu) == {"sdk", "lean"}  # measured when the load is over


def test_locust_that_is_told_nothing_is_gone_at_once() -> None:
    with started_locust(own_agent=False) as waiting:
        process = waiting._process
        assert process.poll() is None
    assert process.poll() == -signal.SIGKILL
    alone = subprocess.run(
        [sys.executable, "-P", str(locust_process.START)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,  # as when whoever started it has gone
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (alone.returncode, alone.stdout, alone.stderr) == (0, b"", b"")


def test_what_cannot_be_is_said_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs --allow-remote"):
        run_experiment(Experiment(options(tmp_path, base_url="https://api.example.com")))
    with pytest.raises(UsageError, match="--users must be at least 1"):
        Experiment(options(tmp_path), users=0)
    assert not (tmp_path / "runs").exists()


def test_a_target_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="openai"):
        run_experiment(Experiment(options(tmp_path, base_url="http://127.0.0.1:9"), users=1, seconds=1))


def test_nothing_that_fails_at_a_look_at_the_run_stops_the_next_look_or_the_early_end(tmp_path: Path) -> None:
    """The view's stream is gone, a record is half written, the run is unreadable for a moment."""
    (tmp_path / "records.jsonl").touch()
    with open(tmp_path / "progress.jsonl", "wb") as file:
        for block in (1, 2, 3, 4):
            file.write(encode_progress(Progress(1.0 + block, "measuring", block=block)))
            file.write(b"no progress\n")
    looks: list[int] = []
    said: list[str] = []

    def watch(progress: Progress) -> None:
        looks.append(progress.block)
        raise BrokenPipeError("the terminal is gone")

    def enough(directory: RunDirectory) -> bool:
        if looks[-1] == 2:
            raise RecordError("records.jsonl:7: not a loop record")
        return looks[-1] == 3

    over = threading.Event()
    over.set()
    first = Progress(0.0, "preparing", step="starting Locust")
    experiment._follow(RunDirectory(tmp_path), first, watch, enough, over, said.append)
    assert looks == [0, 1, 2, 3, 4]
    assert (tmp_path / SETTLED).exists()
    assert said == [
        "the live view failed, and is tried again: BrokenPipeError: the terminal is gone",
        "the look at whether this is enough failed, and is tried again: "
        "RecordError: records.jsonl:7: not a loop record",
    ]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (130, Interrupted),
        (-signal.SIGINT, Interrupted),  # while it was still importing
        (143, Terminated),
        (-signal.SIGTERM, Terminated),
        (-signal.SIGHUP, Terminated),
    ],
)
def test_locust_that_was_ended_before_anything_had_begun(code: int, kind: type[Interrupted]) -> None:
    with pytest.raises(Interrupted) as raised:
        locust_process._explain(code, deque(["KeyboardInterrupt"]))
    assert type(raised.value) is kind
    told = Terminated(signal.SIGHUP)
    with pytest.raises(Interrupted) as raised:
        locust_process._explain(code, deque(), told)
    assert raised.value is told


def test_an_early_end_names_the_directory_if_that_is_kept(tmp_path: Path) -> None:
    empty = RunDirectory.create(tmp_path, conditions(options(tmp_path), 1))
    early = "interrupted before anything was measured"
    assert str(experiment._ended_early(KeyboardInterrupt(), empty)) == f"{early}: nothing is kept"
    assert not empty.path.exists()
    noted = RunDirectory.create(tmp_path, conditions(options(tmp_path), 1))
    noted.save(dataclasses.replace(noted.load(), incidents=(Incident("interrupted", "stopped by the user"),)))
    assert str(experiment._ended_early(KeyboardInterrupt(), noted)) == f"{early}; see {noted.path}"
    assert len(noted.load().incidents) == 1
    noted.records_path.write_text("{}\n")
    ended = experiment._ended_early(Terminated(signal.SIGHUP), noted)
    assert str(ended) == f"told to end by SIGHUP in the middle; see {noted.path}"
    assert noted.load().incidents[1] == Incident("terminated", "told to end by SIGHUP")


TABLES = ["Type     Name    # reqs", "LOOP     gathered    105"] * 30


@pytest.mark.parametrize(
    ("code", "said", "kind", "message"),
    [
        (2, ["locust: error: --users: not a number"], UsageError, "--users: not a number"),
        (
            3,
            ["[t] vm/ERROR/profiler.load.locust.users: nobody there", *TABLES],
            TargetError,
            "nobody there",
        ),
        (
            2,  # no usage error: Locust's own code for an exception in one of its greenlets
            [
                "[t] vm/CRITICAL/locust.runners: Unhandled exception in greenlet: <G>",
                "Traceback (most recent call last):",
                '  File "runners.py", line 643, in __getitem__',
                "    return self._worker_nodes[k]",
                "KeyError: 'vm_1'",
                "[t] vm/INFO/locust.main: Shutting down (exit code 2)",
                *TABLES,
            ],
            ProfilerError,
            "the load test failed (exit code 2): Unhandled exception in greenlet: <G>: KeyError: 'vm_1'",
        ),
        (
            1,
            ["locust: error: two workers ended"],
            ProfilerError,
            "the load test failed (exit code 1): two workers ended",
        ),
        (
            1,
            ["Traceback (most recent call last):", "ModuleNotFoundError: No module named 'locust'"],
            ProfilerError,
            "the load test failed (exit code 1): ModuleNotFoundError: No module named 'locust'",
        ),
        (
            -9,
            ["[x] vm/WARNING/profiler.load.workers: a worker left"],
            locust_process.LeaderKilledError,
            "the load test's leader was killed by signal 9 (SIGKILL: by hand, or by a system out of memory)",
        ),
        (
            -11,
            [],
            locust_process.LeaderKilledError,
            "the load test's leader was killed by signal 11 (SIGSEGV)",
        ),
        (-200, [], ProfilerError, "the load test failed (exit code -200): it said nothing"),
    ],
)
def test_what_an_exit_code_means(code: int, said: list[str], kind: type[ProfilerError], message: str) -> None:
    with pytest.raises(ProfilerError) as raised:
        locust_process._explain(code, deque(said))
    assert type(raised.value) is kind
    assert str(raised.value) == message


SCRIPT = """
import sys
from profiler.load.experiment import Experiment, run_experiment
from profiler.load.options import LoadOptions
from profiler.strategies import parse_strategies
only = parse_strategies("gathered")
options = LoadOptions(scenario="instant", strategies=only, out=sys.argv[1], calibration_seconds=0.0)
run_experiment(Experiment(options, users=4, seconds=300.0, workers=2))
"""


def test_who_compares_imports_neither_locust_nor_gevent(tmp_path: Path) -> None:
    arguments = ["compare", "--scenario", "instant", "--users", "2", "--duration", "0.3s", "--blocks", "1"]
    arguments += ["--strategy", "gathered", "--calibrate", "0", "--allow-saturated", "--out", str(tmp_path)]
    script = (
        "import sys\nfrom profiler.cli import main\n"
        f"assert main({arguments}) == 0\nprint({{'locust', 'gevent', 'zmq'}} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGKILL])
def test_nobody_outlives_it(processes: Locust, ended_by: signal.Signals) -> None:
    runs = processes.path / "runs"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), MARK: processes.mark}
    with subprocess.Popen([sys.executable, "-c", SCRIPT, str(runs)], env=environment) as script:
        try:
            assert wait_until(lambda: any(f.stat().st_size > 0 for f in runs.glob("*/records.jsonl")), 60)
            script.send_signal(ended_by)
            code = script.wait(60)  # of its 300 s; a drain takes 30 at most
        finally:
            script.kill()
    assert code == (0 if ended_by == signal.SIGINT else -signal.SIGKILL)
    assert processes.all_left_within(15)
    run = processes.directory().load()
    assert not run.finished
    if ended_by == signal.SIGINT:
        assert [incident.kind for incident in run.incidents] == ["interrupted"]
        assert len(run.trials) == 1
