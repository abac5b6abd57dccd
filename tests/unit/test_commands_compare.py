"""`profiler compare`: exit codes, standard output, and the gate over two recorded runs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from profiler.cli import main
from profiler.errors import TargetError
from profiler.load import experiment, locust_process
from profiler.load.experiment import Experiment
from profiler.records import INTERNAL, encode
from profiler.rundir import ClientHealth, Incident, IncidentKind, RunDirectory
from tests.unit.statistics_data import loop, run, trial


@pytest.fixture(autouse=True)
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of Locust's is started; `run_experiment` is replaced where it would tell one what to run."""
    waiting = contextlib.nullcontext(SimpleNamespace(started=0.0))
    monkeypatch.setattr(locust_process, "started_locust", lambda *_, **__: waiting)


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

    def instead(wanted: Experiment, *_: Any, **__: Any) -> Path:
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
    monkeypatch.setattr(experiment, "run_experiment", lambda *_, **__: directory.path)
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

    def instead(*_: Any, **__: Any) -> Path:
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


GATES = ["--fail-on", "p50 > 1s, errors > 50%", "--fail-on", "gathered: goodput < 1/s"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (GATES, 0, "gathered: p50 > 1s passed: p50 0.204 s ["),
        (["--fail-on", "p50 > 50ms"], 1, "gathered: p50 > 50ms failed: p50 0.204 s ["),
        (["--fail-on", "errors > 1%"], 0, "gathered: errors > 1%: not decided: errors 0 % [0, 2]."),
        (["--fail-on", "errors > 1%", "--undecided", "pass"], 0, "not decided"),
        (["--fail-on", "errors > 1%", "--undecided", "fail"], 1, "not decided"),
        (
            ["--slo", "p95<50ms,errors<1%"],
            1,
            "objective p95<50ms,errors<1% failed: nothing meets it (gathered: p95 ",
        ),
        (["--slo", "p95<2s"], 0, "objective p95<2s: met by gathered"),
    ],
)
def test_one_run_is_judged_when_it_ends_and_when_it_was_recorded(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    slo = arguments[1] if arguments[0] == "--slo" else None
    path = record(tmp_path, 100, [(0, 0)], slo=slo)
    monkeypatch.setattr(experiment, "run_experiment", lambda *_, **__: path)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((100, 24)))
    running = ["compare", "--quiet", "--strategy", "gathered", *arguments]
    for command in (running, ["compare", str(path), *arguments]):
        assert main(command) == code
        assert said in " ".join(capsys.readouterr().out.split())


def test_objective_that_a_run_was_recorded_with_is_judged_where_it_is_asked_again(tmp_path: Path) -> None:
    path = str(record(tmp_path, 100, [(0, 0)], slo="p95<50ms"))
    assert main(["compare", path, "--fail-on", "p50 > 1s"]) == 0
    assert main(["compare", path, "--fail-on", "p50 > 1s", "--slo", "p95<50ms"]) == 1
    other = str(record(tmp_path, 100, [(0, 0)], slo="p95<50ms"))
    assert main(["compare", path, other]) == 0
    assert main(["compare", path, other, "--slo", "p95<50ms"]) == 1


def test_gates_of_two_runs_may_hold_the_second_against_a_bound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = record(tmp_path, 300), record(tmp_path, 100)
    gates = ["--fail-on", "p50 > +5%, p50 > 150ms", "--fail-on", "gathered: p50 > 50ms"]
    file = tmp_path / "junit.xml"
    command = ["compare", str(before), str(after), *gates, "--format", "github", "--junit", str(file)]
    assert main(command) == 1
    names = [case.attrib["name"] for case in ElementTree.parse(file).getroot().iter("testcase")]
    assert names[2:] == [f"gathered: {gate}" for gate in ("p50 > +5%", "p50 > 150ms", "p50 > 50ms")]
    lines = [line.partition("title=profiler::")[2] for line in capsys.readouterr().out.splitlines()]
    assert [line.split(": p50 0.102")[0] for line in lines if line.startswith(f"{after.name}: ")] == [
        f"{after.name}: gathered: p50 > 150ms passed",
        f"{after.name}: gathered: p50 > 50ms failed",
    ]
    assert main(["compare", str(before), str(after), "--fail-on", "sequential: p50 > +5%"]) == 2
    assert "no strategy 'sequential' here: expected one of gathered" in capsys.readouterr().err


def test_junit_and_markdown_of_one_run_are_what_the_exit_code_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, file = record(tmp_path, 100, [(0, 0)]), tmp_path / "junit.xml"
    command = ["compare", str(path), *GATES, "--fail-on", "p50 > 50ms", "--junit", str(file)]
    assert main([*command, "--format", "markdown"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("### profiler compare: cities: failed\n")
    root = ElementTree.parse(file).getroot()
    assert [root.attrib[name] for name in ("tests", "failures", "errors", "skipped")] == ["6", "1", "0", "0"]
    names = [case.attrib["name"] for case in root.iter("testcase")]
    assert names[2:] == [
        f"gathered: {gate}" for gate in ("p50 > 1s", "errors > 50%", "goodput < 1/s", "p50 > 50ms")
    ]
    assert all(f"| {name} | " in out for name in names[2:] if "<" not in name)
    assert main([*command, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["outcomes"]
    assert [one["result"] for one in found] == [*["passed"] * 5, "failed"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--fail-on", "p95 > +5%"], "a change is between two recorded runs"),
        (["--fail-on", "semaphore:9: p95 > 2s"], "no strategy 'semaphore:9' here"),
        (["--fail-on", "p95 > 2"], "expected something like 'p95 > 2s'"),
        (["--undecided", "fail"], "--undecided is about gates"),
        (["--allow-different"], "--allow-different is for two recorded runs"),
        (["--junit", "none/junit.xml"], "--junit none/junit.xml: cannot be written: No such file"),
        (["--junit", "."], "--junit .: cannot be written: Is a directory"),
        (["--json", "--format", "markdown"], "--json and --format markdown: standard output can hold one"),
    ],
)
def test_what_cannot_be_judged_or_written_is_refused_before_anything_runs(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    started: list[bool] = []
    monkeypatch.setattr(experiment, "run_experiment", lambda *_, **__: started.append(True))
    assert main(["compare", "--quiet", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert started == []
    assert list(tmp_path.iterdir()) == []


def test_junit_file_is_not_made_before_there_is_something_to_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "junit.xml"

    def unreachable(*_: Any, **__: Any) -> Path:
        assert not file.exists()
        raise TargetError("the target refused us")

    monkeypatch.setattr(experiment, "run_experiment", unreachable)
    assert main(["compare", "--quiet", "--junit", str(file)]) == 3
    assert capsys.readouterr().err == "profiler: the target refused us\n"
    (error,) = ElementTree.parse(file).getroot().iter("error")
    assert error.attrib["message"] == "the target refused us"


def spoilt(path: Path, error_type: str, every: int = 1) -> Path:
    """The run with every n-th loop ended by this error."""
    file = RunDirectory(path).records_path
    lines = [json.loads(line) for line in file.read_bytes().splitlines()]
    for line in lines[::every]:
        line |= {"status": "error", "error_type": error_type}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("error", "code"), [(None, 70), ("the target went away; what was measured is kept", 70)]
)
def test_loop_that_a_defect_of_ours_ended_is_said_beside_a_complete_report(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: str | None,
    code: int,
) -> None:
    path = spoilt(record(tmp_path, 100, [(0, 0)], incidents=(Incident("terminated"),)), INTERNAL, every=50)

    def instead(*_: Any, **__: Any) -> Path:
        if error is None:
            return path
        failure = TargetError(error)
        failure.run_directory = str(path)
        raise failure

    monkeypatch.setattr(experiment, "run_experiment", instead)
    assert main(["compare", "--quiet"]) == code
    said = capsys.readouterr()
    words = " ".join(said.out.split())
    assert (
        "note: 3 loops ended by a defect of the profiler (internal) and count as failed; please report"
        in words
    )
    assert (path / "report.html").stat().st_size > 10_000
    assert said.err.splitlines() == [
        *([] if error is None else [f"profiler: {error}; see {path}"]),
        "profiler: 3 loops ended by a defect of the profiler (internal): please report it with what --debug "
        f"shows; the records are in {path}",
    ]
    for recorded in ([str(path), "--fail-on", "p50 > 1s"], [str(path), str(path)]):
        assert main(["compare", *recorded]) == 70


@pytest.mark.parametrize(
    ("kind", "code"),
    [("terminated", 143), ("interrupted", 130), ("aborted", 1), ("limited", 1), ("settled", 0)],
)
def test_exit_code_says_how_the_run_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: IncidentKind, code: int
) -> None:
    path = record(tmp_path, 100, [(0, 0)], incidents=(Incident(kind),))
    monkeypatch.setattr(experiment, "run_experiment", lambda *_, **__: path)
    assert main(["compare", "--quiet"]) == code
    # Of a run that was recorded the gates decide: how it ended was said then, and is a note now.
    assert main(["compare", str(path), "--fail-on", "p50 > 1s"]) == 0


def test_target_that_never_answered_has_its_own_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = spoilt(record(tmp_path, 100), "timeout")
    file = RunDirectory(path).records_path
    silent = {"started_ns": 0, "ended_ns": 1, "error_type": "timeout"}
    lines = [json.loads(line) for line in file.read_bytes().splitlines()]
    for line in lines:
        line["rounds"][0]["model"] |= {"status": "error", "error_type": "timeout", "attempts": [silent] * 2}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(experiment, "run_experiment", lambda *_, **__: path)
    assert main(["compare", "--quiet"]) == 3
    said = capsys.readouterr()
    assert said.out.startswith("every loop failed (150 of gathered): timeout 150.\n")
    assert said.err == "profiler: the target never answered: nothing came back to any request\n"
    # One status, if only of a refusal, and it did.
    lines[0]["rounds"][0]["model"]["attempts"][0]["status"] = 500
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["compare", "--quiet"]) == 1


@pytest.mark.parametrize("nothing", ["no records", "no turn", "no loop in a block"])
def test_run_in_which_nothing_was_measured_does_not_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, nothing: str
) -> None:
    path = record(tmp_path, 100, [(0, 0)])
    file = RunDirectory(path).records_path
    if nothing == "no turn":
        RunDirectory(path).save(run([], strategies=("gathered",)))
    if nothing == "no records":
        file.write_bytes(b"")
    if nothing == "no loop in a block":
        late = [encode(loop(block * 10_000 + 7000, 50, [(0, 0)], trial=block)) for block in range(5)]
        file.write_bytes(b"\n".join([*late, b""]))
    monkeypatch.setattr(experiment, "run_experiment", lambda *_, **__: path)
    assert main(["compare", "--quiet", "--allow-saturated"]) == 1
    assert capsys.readouterr().out.startswith("nothing was measured: no ")
    assert main(["compare", str(path), "--fail-on", "p95 > 2s"]) in (1, 2)


@pytest.mark.slow
def test_reader_that_has_gone_does_not_change_the_exit_code(tmp_path: Path) -> None:
    """As `| head -1` does, once the pipe is full."""
    path = record(tmp_path, 100, [(0, 0)])
    command = [sys.executable, "-m", "profiler", "compare", str(path), "--fail-on", "p50 > 50ms"]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=60)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["RUN"], "--for-prediction records a run of its own: leave out RUN"),
        (["RUN", "RUN"], "--for-prediction records a run of its own: leave out RUN"),
        (
            ["--abort-on", "errors>20%"],
            "--for-prediction goes to where calls fail, and --abort-on errors>20% ends",
        ),
    ],
)
def test_recording_to_predict_from_is_a_load_test_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    given = [str(record(tmp_path, 100)) if one == "RUN" else one for one in arguments]
    assert main(["compare", "--for-prediction", *given]) == 2
    assert capsys.readouterr().err.startswith(f"profiler: {said}")


def test_plan_of_a_recording_to_predict_from_has_its_ladder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Experiment] = []

    def started(given: Experiment, *_: Any, **__: Any) -> Path:
        asked.append(given)
        raise TargetError("gone")

    monkeypatch.setattr(experiment, "run_experiment", started)
    assert main(["compare", "--for-prediction", "--users", "40", "--arrivals", "4/s"]) == 3
    (only,) = asked
    assert only.options.levels == (5, 10, 20, 40, 80)
    assert [*map(str, only.options.strategies)] == ["gathered", "sequential"]
    assert "with 5, 10, 20, 40, 80 agents" in capsys.readouterr().err
