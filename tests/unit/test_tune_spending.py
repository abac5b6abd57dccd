"""Limits on what a whole search may spend: what each experiment gets, the plan, and the exit code."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from profiler.cli import main
from profiler.load.estimate import estimate_load
from profiler.load.options import LoadOptions
from profiler.rundir import Incident, Run, Spent
from profiler.scenarios.schema import load_scenario
from profiler.strategies import parse_strategies
from profiler.tune import search as driver
from profiler.tune.search import Search, Spending
from tests.unit.statistics_data import run
from tests.unit.test_tune import answer, scored

LIMITS = LoadOptions(max_loops=100, max_requests=250, max_tokens=9_000, max_cost=0.02, price="1/10")


def spent(loops: int, requests: int, given: int, taken: int, *incidents: Incident) -> Run:
    return run([], spent=Spent(loops, requests, given, taken), incidents=incidents)


def test_what_is_left_is_the_limit_of_the_next_experiment() -> None:
    spending = Spending(LIMITS)
    assert spending.left(LIMITS) == LIMITS
    spending.add(spent(10, 30, 2000, 100))
    spending.add(spent(5, 12, 1000, 50))
    left = spending.left(LIMITS)
    assert (left.max_loops, left.max_requests, left.max_tokens) == (85, 208, 5850)
    assert left.max_cost == pytest.approx(0.02 - 0.003 - 0.0015)
    assert spending.described == "15 loops, 42 requests, 3,000 tokens in, 150 out: $0.0045 at " + (
        "$1/$10 per million tokens in/out"
    )
    assert spending.stopped is None


def test_another_experiment_needs_room_for_more_than_its_first_loops() -> None:
    spending = Spending(LIMITS)
    assert spending.allows(1000)  # what a loop spends is not known yet
    spending.add(spent(80, 160, 6000, 0))  # 20 loops are left, 45 of requests, 40 of tokens
    assert spending.allows(19)
    assert not spending.allows(20)
    assert (spending.limit, spending.stopped) == ("loops", "stopped at --max-loops 100: 80 begun")


def test_the_limit_that_ended_an_experiment_ends_the_search() -> None:
    spending = Spending(LIMITS)
    spending.add(spent(40, 252, 4000, 100, Incident("limited", "stopped at --max-requests 250: 252 sent")))
    assert spending.stopped == "stopped at --max-requests 250: 252 sent"
    assert not spending.allows(0)
    assert spending.left(LIMITS).max_requests == 1  # a limit all the same


def test_without_limits_nothing_ends_it() -> None:
    spending = Spending(LoadOptions())
    spending.add(spent(10**6, 10**7, 10**9, 10**9))
    assert spending.allows(1000)
    assert spending.left(LoadOptions()) == LoadOptions()
    spending.add(run([]))  # of an older version
    assert spending.spent.loops == 10**6


def test_the_plan_of_a_search_is_an_upper_bound_and_says_so() -> None:
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
    ],
)
def test_a_search_elsewhere_is_asked_about_and_what_ended_it_is_the_exit_code(
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


def test_here_nothing_is_asked_and_json_has_what_ended_it(
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
