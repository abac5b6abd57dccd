"""`profiler tune`: the plan, the question before it starts, the exit code."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from profiler.cli import main
from profiler.load.estimate import estimate_load
from profiler.load.options import LoadOptions
from profiler.rundir import RunDirectory
from profiler.scenarios import load_scenario
from profiler.statistics.gates import Outcome, objective_outcome
from profiler.strategies import parse_strategies
from profiler.tune import search as driver
from profiler.tune.asked import Search
from profiler.tune.candidates import Candidate
from profiler.tune.search import Tuner
from profiler.tune.stages import Stage
from tests.unit.tune_data import answer, scored


def test_plan_of_a_search_is_an_upper_bound_and_says_so() -> None:
    options = LoadOptions(strategies=parse_strategies("gathered"), max_requests=100)
    planned = estimate_load(options, 8, 300.0, 1, load_scenario("instant"), remote=False, search=True)
    assert planned.lines() == [
        "plan: a search of up to 300 s with 8 agents on the embedded emulator: "
        "up to about 60,000 loops, 120,000 requests"
    ]


ELSEWHERE = ["tune", "--base-url", "https://api.example.com", "--allow-remote", "--max-cost", "1"]


@pytest.mark.parametrize(
    ("typed", "arguments", "changes", "code", "started"),
    [
        ("y\n", [], {}, 0, True),
        ("\n", [], {}, 1, False),
        ("", ["--quiet"], {}, 1, False),
        ("", ["--yes"], {}, 0, True),
        ("y\n", [], {"stopped": "stopped at --max-cost 1: $1.02 spent"}, 1, True),
        ("y\n", [], {"stopped": "the search ended early: gone", "failed": True}, 3, True),
        ("y\n", [], {"stopped": "the search was interrupted", "ended": "interrupted"}, 130, True),
        ("y\n", [], {"stopped": "the search was told to end", "ended": "terminated"}, 143, True),
    ],
)
def test_tune_elsewhere_asks_first_and_its_exit_code_says_what_ended_it(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    typed: str,
    arguments: list[str],
    changes: dict[str, Any],
    code: int,
    started: bool,
) -> None:
    asked: list[Search] = []

    def instead(search: Search, say: Any) -> Any:
        asked.append(search)
        found = [scored("semaphore:8", 5.0)]
        return answer(found, found, spent="9 loops, 20 requests", **changes)

    monkeypatch.setattr(driver, "tune", instead)
    stdin = io.StringIO(typed)
    monkeypatch.setattr(stdin, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", stdin)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main([*ELSEWHERE, *arguments]) == code
    said = capsys.readouterr()
    assert said.err.startswith(
        "plan: a search of up to 150 s with 20 agents on https://api.example.com (gpt-4o)\n"
    )
    assert "  --max-cost 1 will end it after about " in said.err
    assert ("start? [y/N]" in said.err) == ("--yes" not in arguments)
    assert ("nothing was started" in said.err) == (not started)
    assert [search.load.max_cost for search in asked] == [1.0] * started
    if started:
        lines = said.out.splitlines()
        assert lines[-1] == "spent: 9 loops, 20 requests"
        assert not changes or lines[0] == f"{changes['stopped']}."


def test_tune_on_this_machine_asks_nothing_and_its_json_has_what_ended_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [scored("semaphore:8", 5.0), scored("gathered", 2.0)]
    ended = answer(found, found, stopped="stopped at --max-loops 9: 9 begun", proven=False)
    monkeypatch.setattr(driver, "tune", lambda *_: ended)
    assert main(["tune", "--max-loops", "9", "--json", "--quiet"]) == 1
    said = capsys.readouterr()
    assert said.err == ""
    data = json.loads(said.out)
    assert data["sentence"] == (
        "best so far semaphore:8: goodput 5/s [4.75, 5.25] against 2/s [1.9, 2.1] for gathered; "
        "the search had not come to its end"
    )
    assert (data["stopped"], data["proven"], data["headroom"]) == (
        "stopped at --max-loops 9: 9 begun",
        False,
        None,
    )


@pytest.mark.parametrize(
    ("valid", "options", "code"), [(True, [], 0), (False, [], 1), (False, ["--allow-saturated"], 0)]
)
def test_exit_code_is_that_of_the_settings_own_figures(
    monkeypatch: pytest.MonkeyPatch, valid: bool, options: list[str], code: int
) -> None:
    found = [scored("semaphore:8", 5.0), scored("gathered", 2.0)]
    said = "invalid: this client is saturated under gathered"
    monkeypatch.setattr(driver, "tune", lambda *_: answer(found, found, invalid=(said,), valid=valid))
    assert main(["tune", "--quiet", *options]) == code


SLO = "p95<2s,errors<1%"


def meeting(spec: str, met: bool) -> Candidate:
    return replace(scored(spec, 5.0), objective_met=met, objective_missed=() if met else ("p95 2.31 s",))


@pytest.mark.parametrize(
    ("changes", "code", "said", "err"),
    [
        ({}, 0, "", ""),
        (
            {"slo": objective_outcome(SLO, [("semaphore:8", False, ("p95 2.31 s",))])},
            1,
            f"objective {SLO} failed: nothing meets it (semaphore:8: p95 2.31 s).",
            "",
        ),
        (
            {
                "slo": objective_outcome(
                    SLO, [("gathered", False, ("errors 4 %",)), ("semaphore:8", True, ())]
                )
            },
            0,
            f"objective {SLO} passed: met by semaphore:8.",
            "",
        ),
        (
            {"nothing": "every loop failed (9 of gathered): timeout 9", "unanswered": True},
            3,
            "every loop failed (9 of gathered): timeout 9.",
            "the target never answered",
        ),
        ({"nothing": "every loop failed (9 of gathered): http_500 9"}, 1, "http_500 9.", ""),
        ({"internal": 2, "stopped": "gone", "failed": True}, 70, "gone.", "2 loops ended by a defect"),
        ({"stopped": "the search was interrupted", "ended": "interrupted"}, 130, "interrupted.", ""),
        ({"stopped": "the search was told to end", "ended": "terminated"}, 143, "told to end.", ""),
    ],
)
def test_tune_exits_with_what_was_asked_of_it_and_says_so(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    changes: dict[str, Any],
    code: int,
    said: str,
    err: str,
) -> None:
    found = [scored("semaphore:8", 5.0), scored("gathered", 2.0)]
    monkeypatch.setattr(driver, "tune", lambda *_: answer(found, found, **changes))
    file = tmp_path / "junit.xml"
    assert main(["tune", "--quiet", "--slo", SLO, "--junit", str(file)]) == code
    printed = capsys.readouterr()
    assert said in printed.out
    assert err in printed.err
    assert bool(err) == bool(printed.err)
    root = ElementTree.parse(file).getroot()
    failing = {"nothing", "stopped"} & set(changes) or (code == 1)
    assert (root.attrib["failures"] != "0") is bool(failing)


def test_tune_in_markdown_has_its_sentence_and_the_settings_of_the_last_stage(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = [scored("semaphore:8", 5.0), scored("gathered", 2.0)]
    monkeypatch.setattr(driver, "tune", lambda *_: answer(found, found))
    assert main(["tune", "--quiet", "--format", "markdown"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("### profiler tune: cities: passed\n\nsemaphore:8, shared: goodput 5/s ")
    assert "| semaphore:8 | 5/s \\[4.75, 5.25\\] | 1 s | 0 % |" in text
    with pytest.raises(SystemExit) as left:
        main(["tune", "--fail-on", "p95 > 2s"])
    assert left.value.code == 2
    assert "unknown argument '--fail-on' (an option of compare)" in capsys.readouterr().err
    assert main(["tune", "--junit", str(tmp_path)]) == 2


def test_search_judges_the_objective_by_the_last_measurement_of_each_setting() -> None:
    def judged(*stages: list[Candidate], slo: str | None = SLO) -> Outcome | None:
        tuner = Tuner(Search(LoadOptions(slo=slo), 8), lambda _: None)
        tuner._stages.found = [Stage((), found, RunDirectory(Path())) for found in stages]
        return tuner._stages.objective_outcome

    assert judged([meeting("gathered", True)], slo=None) is None
    first, last = [meeting("gathered", True), meeting("semaphore:4", False)], [meeting("gathered", False)]
    outcome = judged(first, last)
    assert outcome is not None
    assert outcome.sentence == (
        f"objective {SLO} failed: nothing meets it (gathered: p95 2.31 s; semaphore:4: p95 2.31 s)."
    )
    outcome = judged(last, first)
    assert outcome is not None
    assert outcome.holds is True
