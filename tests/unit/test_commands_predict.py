"""`profiler predict`: what is asked, what cannot be, the exit codes, and the report of a check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from profiler.arrivals import Arrivals
from profiler.cli import main, parse
from profiler.commands.predict import Request, request_of
from profiler.errors import UsageError
from profiler.prediction import processes
from profiler.prediction.simulation.load import Trials
from profiler.rundir import Load, Recording, Run
from tests.unit.prediction_data import directory, predicted, recorded
from tests.unit.statistics_data import run, trial

TRIALS = [trial(0, "gathered", 0, 2000, users=10), trial(1, "sequential", 3000, 5000, users=20)]
CLOSED = run(TRIALS, users=20, arguments={"drain_seconds": 9.0}, workers=2)
OPEN = run(TRIALS, load=Load("open", 20, arrivals="5/s", rate=5.0), arguments={"max_in_flight": 7})
IMPORTED = run([], load=Load("recorded", 0), recording=Recording("import"))


def request(of: Run, *options: str) -> Request:
    return request_of(parse(["predict", "runs/x", *options]), of)


def test_what_is_not_said_is_as_it_was_recorded() -> None:
    asked = request(CLOSED).asked
    assert [spec.text for spec in asked.strategies] == ["gathered", "sequential"]
    assert (asked.levels, asked.trials, asked.workers) == ((10, 20), Trials(5.0, 3, 9.0), 2)
    assert (asked.arrivals, asked.think_seconds, asked.model_time) == (None, 0.0, 1.0)


def test_what_is_said_is_as_compare_has_it() -> None:
    asked = request(
        CLOSED,
        *("--strategy", "semaphore:8", "--strategy", "gathered", "--users", "40", "--think", "2s"),
        *("--duration", "1m", "--blocks", "4", "--workers", "3", "--share-limit", "--drain", "5"),
        *("--tool-time", "search=0.5", "--model-time", "2"),
    )
    assert [spec.text for spec in asked.asked.strategies] == ["semaphore:8", "gathered"]
    assert (asked.asked.levels, asked.asked.trials) == ((40,), Trials(15.0, 4, 5.0))
    assert (asked.asked.think_seconds, asked.asked.workers, asked.asked.share_limit) == (2.0, 3, True)
    assert (asked.asked.tool_time, asked.asked.model_time) == ((("search", 0.5),), 2.0)
    assert asked.load == Load("closed", 40, think_seconds=2.0)
    assert asked.changed == ("search takes 0.5 times as long", "the model takes 2 times as long")


def test_an_open_load_stays_open_until_agents_are_asked_for() -> None:
    asked = request(OPEN).asked
    assert (asked.arrivals, asked.max_in_flight, asked.rate(20)) == (Arrivals(5.0, 20), 7, 5.0)
    closed = request(OPEN, "--users", "30")
    assert (closed.asked.arrivals, closed.asked.max_in_flight, closed.load.model) == (None, None, "closed")
    assert closed.changed == ("a closed load, where the recorded one was open",)
    other = request(CLOSED, "--arrivals", "8/s", "--levels", "10,40", "--users", "20")
    assert [other.asked.rate(users) for users in other.asked.levels] == [4.0, 16.0]
    assert other.load == Load("open", 40, arrivals="8/s", rate=16.0)


def test_over_a_range_is_a_curve_of_strategies_beside_those_that_are_named() -> None:
    found = request(CLOSED, "--over", "semaphore=2,8,32,adaptive", "--strategy", "semaphore:8")
    assert [spec.text for spec in found.asked.strategies] == [
        "semaphore:8",
        "semaphore:2",
        "semaphore:32",
        "adaptive",
    ]
    assert found.curves == (("semaphore", [(2, "semaphore:2"), (8, "semaphore:8"), (32, "semaphore:32")]),)
    free = request(CLOSED, "--over", "semaphore").asked.strategies
    assert (free[0].text, free[-1].text, len(free)) == ("semaphore:1", "semaphore:40", 9)


@pytest.mark.parametrize(
    ("of", "options", "message"),
    [
        (CLOSED, ["--max-in-flight", "5"], "--max-in-flight is for an open load"),
        (CLOSED, ["--think", "1s", "--arrivals", "5/s"], "--think is for a closed load"),
        (CLOSED, ["--arrivals", "many"], "--arrivals many: expected a rate"),
        (CLOSED, ["--strategy", "gathered", "--strategy", "gathered"], "each strategy can be named once"),
        (CLOSED, ["--strategy", "gatherd"], "gathered"),
        (CLOSED, ["--over", "semaphore=8"], "two or more of them"),
        (CLOSED, ["--over", "rate"], "--over rate: say which"),
        (CLOSED, ["--levels", "10,10"], "each level can be named once"),
        (IMPORTED, [], "does not say under which load its loops ran: say --users N, or --arrivals R/s"),
    ],
)
def test_what_cannot_be_asked(of: Run, options: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        request(of, *options)


def test_a_recording_of_another_program_is_asked_about_strategies_without_a_number() -> None:
    asked = request(IMPORTED, "--users", "10").asked
    assert ([spec.text for spec in asked.strategies], asked.levels) == (["sequential", "gathered"], (10,))


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory; predictions of it are made in this process, with few replicates."""
    monkeypatch.setattr(processes, "cores", lambda: 1)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: type("Size", (), {"columns": 100}))
    of, records = recorded((10, 12))
    return directory(tmp_path, of, records).path


def answer(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Let every question have the same answer."""

    def instead(fitted: Any, settings: Any, question: Any, replicates: int | None = None) -> Any:
        return predicted(question.strategy.text, question.load.users, trials=question.trials, **changes)

    monkeypatch.setattr(processes, "predicted", instead)


@pytest.mark.parametrize(
    ("options", "changes", "code"),
    [
        ([], {}, 0),
        ([], {"refused": ("never loaded",)}, 1),
        (["--slo", "p95<3s"], {}, 0),
        (["--slo", "p95<1s"], {}, 1),
        (["--tool-time", "serch=2"], {}, 2),
        (["--quota", "rpm"], {}, 2),
    ],
)
def test_exit_codes(
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    changes: dict[str, Any],
    code: int,
) -> None:
    answer(monkeypatch, **changes)
    assert main(["predict", str(made), "--users", "3", "--quiet", *options]) == code
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == (code == 2)
    if "serch=2" in options:
        assert "did you mean 'search'?" in said.err


def test_not_a_run_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(tmp_path / "nothing")]) == 2
    assert "not a run directory" in capsys.readouterr().err


def test_progress_is_on_standard_error_alone(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(monkeypatch)
    assert main(["predict", str(made), "--levels", "1,2,3", "--json"]) == 0
    said = capsys.readouterr()
    assert said.err.splitlines()[:2] == [f"reading {made}", "predicted: 3"]
    assert [level["users"] for level in json.loads(said.out)["levels"]] == [1, 2, 3]


def test_a_check_is_kept_and_shown_in_the_report(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(made), "--check", "--replicates", "4", "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "without 10 agents, predicted from the others:" in shown
    kept = json.loads((made / "prediction.json").read_text())
    assert [(cell["left_out"], cell["users"]) for cell in kept["cells"]] == [
        ("10 agents", 10),
        ("12 agents", 12),
    ]
    assert kept["cells"][0]["figures"]
    assert all(abs(cell["figures"]["p50"]["error"]) < 0.1 for cell in kept["cells"] if cell["figures"])
    assert main(["report", str(made)]) == 0
    page = (made / "report.html").read_text()
    assert "Prediction, checked" in page
    assert 'id="table-checked"' in page
    (made / "prediction.json").write_text("{}")
    assert main(["report", str(made)]) != 0
    assert "prediction.json: key cells" in capsys.readouterr().err


def test_a_check_is_of_the_recorded_settings(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(made), "--check", "--users", "5"]) == 2
    assert "leave out --users" in capsys.readouterr().err
