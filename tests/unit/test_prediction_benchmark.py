"""What the benchmark of predictions says of predictions whose errors are known."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from benchmarks.prediction import figures
from benchmarks.prediction_noise import Chain, intervals
from benchmarks.prediction_table import Figure, Pair, compared, report, separated


def pair(
    strategy: str, truth: Mapping[str, Figure], predicted: Mapping[str, Figure], users: int = 30
) -> Pair:
    said = () if predicted else ("Nothing above 12 in flight was recorded.",)
    return Pair("oth-queue", strategy, users, truth, predicted, said)


def test_times_are_compared_as_shares_and_shares_in_points() -> None:
    found = compared(
        pair(
            "gathered",
            {"p50": (2.0, None, None), "failure_rate": (0.30, None, None), "goodput": (0.0, None, None)},
            {"p50": (2.1, 1.9, 2.3), "failure_rate": (0.35, 0.33, 0.37), "goodput": (1.0, 0.0, 2.0)},
        )
    )
    assert [(one.name, round(one.error, 6), one.inside) for one in found] == [
        ("p50", 0.05, True),
        ("failure_rate", 0.05, False),
    ]
    assert [one.half_width for one in found] == pytest.approx([0.1, 0.02])


def test_pairs_are_ranked_where_the_runs_tell_them_apart() -> None:
    def cell(strategy: str, p50: float, predicted: float, goodput: float, users: int = 30) -> Pair:
        truth: dict[str, Figure] = {
            "p50": (p50, 0.95 * p50, 1.05 * p50),
            "goodput": (goodput, 0.9 * goodput, 1.1 * goodput),
        }
        return pair(strategy, truth, {"p50": (predicted, None, None), "goodput": (9.0, None, None)}, users)

    cells = [
        cell("gathered", 2.0, 2.0, 5.0),
        cell("sequential", 3.0, 4.0, 5.1),
        cell("rate:5/s", 4.0, 3.0, 4.9),
        cell("adaptive", 9.0, 1.0, 1.0, users=60),
    ]
    assert separated(cells) == [
        ("oth-queue 30 p50: gathered before sequential", True),
        ("oth-queue 30 p50: gathered before rate:5/s", True),
        ("oth-queue 30 p50: sequential before rate:5/s", False),
    ]


@pytest.mark.parametrize(("error", "code"), [(0.01, 0), (0.2, 1)])
def test_the_exit_code_says_whether_the_goals_are_met(error: float, code: int) -> None:
    truth: dict[str, Figure] = {"p50": (2.0, 1.9, 2.1)}
    predicted: dict[str, Figure] = {"p50": (2.0 * (1 + error), 1.9, 2.1)}
    said: list[str] = []
    assert report([pair("gathered", truth, predicted)], said.append) == code
    assert "beyond 10 %: oth-queue gathered 30 p50 +20.0 %" in said or not code
    assert "bands that hold: 100.0 % of 1 (goal 88)  ok" in said


def test_a_refusal_counts_as_no_number_and_is_quoted() -> None:
    said: list[str] = []
    assert report([pair("gathered", {"p50": (2.0, 1.9, 2.1)}, {})], said.append) == 1
    assert "no figure: Nothing above 12 in flight was recorded." in said[1]
    assert "cells with a number: 0 of 1 (goal: 10 of 12)  MISSED" in said


def test_figures_of_runs_and_predictions_are_read_alike() -> None:
    assert figures(
        {
            "loop_seconds": {"p50": {"value": 2.0, "low": 1.9, "high": 2.1}, "p95": {"value": None}},
            "throughput": {"value": 5.0, "low": None, "high": None},
            "refused_share": 0.1,
            "tools": {"search": {"seconds": {"p50": {"value": 0.4, "low": 0.3, "high": 0.5}}}},
        }
    ) == {
        "p50": (2.0, 1.9, 2.1),
        "throughput": (5.0, None, None),
        "refused_share": (0.1, None, None),
        "search p50": (0.4, 0.3, 0.5),
    }


def test_the_noise_of_a_run_is_that_of_its_agents() -> None:
    alike = [Chain([1.0, 2.0], good=2, attempts=10, refused=1) for _ in range(30)]
    assert intervals(alike)["throughput"] == (1.0, 1.0)
    assert intervals(alike)["refused_share"] == (0.0, 0.0)
    apart = [Chain([1.0] if n % 2 else [3.0], failed=n % 2, good=1 - n % 2) for n in range(40)]
    low, high = intervals(apart)["failure_rate"]
    assert (low, high) == pytest.approx((-0.155, 0.155), abs=0.03)  # 1.96 × √(0.25 / 40)
