"""`profiler compare`: exit codes, standard output, and the gate over two recorded runs."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from profiler.cli import main
from profiler.load import experiment
from profiler.load.experiment import Experiment
from profiler.records import encode
from profiler.rundir import ClientHealth, Incident, RunDirectory
from tests.unit.statistics_data import loop, run, trial


def record(
    parent: Path, milliseconds: float, calls: Sequence[tuple[float, float]] = (), **changes: Any
) -> Path:
    """A run directory: five blocks of 30 loops of about that long, jittered the same way in every run."""
    trials = [
        trial(block, "gathered", block * 10_000, block * 10_000 + 6000, block=block) for block in range(5)
    ]
    made = run(trials, **changes)
    directory = RunDirectory.create(parent, made)
    loops = [
        loop(block * 10_000 + k * 200, milliseconds * (1 + 0.01 * ((7 * k + block) % 5)), calls, trial=block)
        for block in range(5)
        for k in range(30)
    ]
    directory.records_path.write_bytes(b"".join(encode(one) + b"\n" for one in loops))
    return directory.path


@pytest.mark.parametrize(
    ("gate", "code", "word"),
    [("p50 > +5%", 1, "failed"), ("p50 > +30%", 0, "passed"), ("p95 > +5%", 0, "not decided")],
)
def test_gate_fails_only_when_the_interval_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], gate: str, code: int, word: str
) -> None:
    before, after = record(tmp_path, 100), record(tmp_path, 115)
    assert main(["compare", str(before), str(after), "--fail-on", gate]) == code
    said = capsys.readouterr()
    assert word in said.out
    assert said.err == ""


def test_annotations_for_github(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = record(tmp_path, 100), record(tmp_path, 115)
    arguments = ["compare", str(before), str(after), "--fail-on", "p50 > +5%", "--format", "github"]
    assert main(arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("::error ", "::notice ", "::warning ")) for line in lines)
    assert sum(line.startswith("::error ") and "p50 +15.0 %25" in line for line in lines) == 1


def test_compare_of_two_runs_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = record(tmp_path, 100), record(tmp_path, 80)
    assert main(["compare", str(before), str(after), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["comparisons"][0]["p50"]["value"] == pytest.approx(0.8)
    assert found["verdicts"][0]["kind"] == "faster"


def test_compare_takes_runs_in_pairs_and_gates_for_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only = record(tmp_path, 100)
    assert main(["compare", str(only)]) == 2
    assert main(["compare", "--fail-on", "p95 > +5%"]) == 2
    assert main(["compare", str(only), str(only), "--fail-on", "p95 < +5%"]) == 2
    assert main(["compare", str(only), str(tmp_path / "none")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "compare takes two run directories, or none: 1 given" in said.err
    assert (
        "gate 'p95 > +5%': a change is between two recorded runs (profiler compare RUN_A RUN_B)" in said.err
    )


SATURATED = (ClientHealth("worker 0 (pid 1)", 0, loop_lag_p99=0.2, cpu=0.91),)


@pytest.mark.parametrize(
    ("changes", "arguments", "code"),
    [
        ({}, [], 0),
        ({"client": SATURATED}, [], 1),
        ({"client": SATURATED}, ["--allow-saturated"], 0),
        ({"incidents": (Incident("aborted", "hopeless"),)}, ["--allow-saturated"], 1),
        ({"incidents": (Incident("limited", "stopped at --max-loops 9: 9 begun"),)}, [], 1),
        ({"incidents": (Incident("interrupted"),)}, [], 130),
    ],
)
def test_compare_has_its_exit_codes_and_nothing_but_json_on_standard_output(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    arguments: list[str],
    code: int,
) -> None:
    asked: list[Experiment] = []

    def instead(wanted: Experiment, *_: Any) -> Path:
        asked.append(wanted)
        return record(tmp_path, 100, **changes)

    monkeypatch.setattr(experiment, "run_experiment", instead)
    assert (
        main(["compare", "--json", "--users", "7", "--arrivals", "3/s", "--slo", "p95<2s", *arguments])
        == code
    )
    said = capsys.readouterr()
    summary = json.loads(said.out)
    assert summary["valid"] == ("client" not in changes)
    plan, *rest = said.err.splitlines()
    assert plan.startswith(
        "plan: 3 strategies, 45 s of measuring with 7 agents on the embedded emulator: about"
    )
    assert [line.startswith("invalid: this client is saturated") for line in rest] == [True] * (
        "client" in changes
    )
    (wanted,) = asked
    assert (wanted.users, wanted.options.arrivals, wanted.options.slo) == (7, "3/s", "p95<2s")


def test_run_without_a_good_loop_exits_with_1_and_names_the_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call of every loop had arguments that could not be read; the model answered all the same."""
    trials = [
        trial(block, "gathered", block * 10_000, block * 10_000 + 6000, block=block) for block in range(3)
    ]
    directory = RunDirectory.create(tmp_path, run(trials))
    loops = [
        loop(block * 10_000 + k * 200, 50, [(0, 1)], trial=block, tool_status="error")
        for block in range(3)
        for k in range(20)
    ]
    directory.records_path.write_bytes(b"".join(encode(one) + b"\n" for one in loops))
    monkeypatch.setattr(experiment, "run_experiment", lambda *_: directory.path)
    for arguments in ([], ["--allow-saturated"]):
        assert main(["compare", "--quiet", *arguments]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "gathered: no loop had all its calls answered: TimeoutError (get_weather) 60;" in said


def test_runs_of_different_scenarios_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = record(tmp_path, 100), record(tmp_path, 100, scenario="crowded")
    assert main(["compare", str(before), str(after)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert "differ in scenario (crowded against cities)" in said.err
    assert main(["compare", str(before), str(after), "--allow-different"]) == 0
    assert "between runs that differ in scenario (crowded against cities): " in capsys.readouterr().out


def test_invalid_run_says_so_in_its_first_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        experiment, "run_experiment", lambda *_, **__: record(tmp_path, 100, [(0, 1)], client=SATURATED)
    )
    assert main(["compare", "--quiet"]) == 1
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("invalid: this client is saturated: the event loop was late by 200 ms")


REMOTE = ["compare", "--base-url", "https://api.example.com", "--allow-remote", "--json"]


@pytest.mark.parametrize(
    ("terminal", "arguments", "answer", "asks", "starts"),
    [
        (False, [], "", False, True),
        (True, ["--yes"], "", False, True),
        (True, [], "y\n", True, True),
        (True, ["--quiet"], "YES\n", True, True),
        (True, [], "\n", True, False),
        (True, [], "", True, False),  # the end of input
    ],
)
def test_compare_asks_before_leaving_this_machine_where_somebody_can_answer(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
    arguments: list[str],
    answer: str,
    asks: bool,
    starts: bool,
) -> None:
    started: list[bool] = []

    def instead(*_: Any) -> Path:
        started.append(True)
        return record(tmp_path, 100)

    monkeypatch.setattr(experiment, "run_experiment", instead)
    stdin = io.StringIO(answer)
    monkeypatch.setattr(stdin, "isatty", lambda: terminal)
    monkeypatch.setattr("sys.stdin", stdin)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    assert main([*REMOTE, *arguments]) == (0 if starts else 1)
    said = capsys.readouterr().err
    assert ("start? [y/N]" in said) == asks
    assert bool(started) == starts
    assert "some $" in said
    assert ("nothing was started" in said) == (not starts)


def test_target_elsewhere_needs_to_be_meant_before_anything_is_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["compare", "--base-url", "https://api.example.com", "--yes"]) == 2
    said = capsys.readouterr().err
    assert "needs --allow-remote" in said
    assert "plan:" not in said
