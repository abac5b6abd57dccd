"""`profiler tune`: the plan, the question before it starts, the exit code."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from profiler.cli import main
from profiler.load.estimate import estimate_load
from profiler.load.options import LoadOptions
from profiler.scenarios import load_scenario
from profiler.strategies import parse_strategies
from profiler.tune import search as driver
from profiler.tune.search import Search
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
        "plan: a search of up to 300 s with 20 agents on https://api.example.com (gpt-4o)\n"
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
