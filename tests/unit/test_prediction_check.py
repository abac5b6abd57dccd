"""What is left out of a recording, and how predictions of it are held against what was measured."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from profiler.prediction.check import (
    check_one,
    checked,
    halved,
    holdouts,
    measured_figures,
    part_of,
)
from profiler.prediction.predict import Predicted, Question
from profiler.records import LoopRecord
from profiler.rundir import Run
from tests.unit.prediction_data import predicted, recorded
from tests.unit.statistics_data import run


def test_each_level_and_each_strategy_is_left_out_in_turn() -> None:
    of, _ = recorded((10, 20), ("gathered", "sequential"))
    assert [(one.kind, one.name, sorted(one.trials)) for one in holdouts(of)] == [
        ("level", "10 agents", [0, 1]),
        ("level", "20 agents", [2, 3]),
        ("strategy", "gathered", [0, 2]),
        ("strategy", "sequential", [1, 3]),
    ]


def test_of_one_setting_the_second_half_of_the_blocks_is_left_out() -> None:
    of, _ = recorded((2,), blocks=3)
    assert [(one.kind, sorted(one.trials)) for one in holdouts(of)] == [("blocks", [1, 2])]
    assert holdouts(run([])) == []


def test_an_only_trial_is_cut_in_two() -> None:
    of, records = recorded((1,))
    halves, moved = halved(of, records)
    assert [(one.index, one.started_ns, one.ended_ns) for one in halves.trials] == [
        (0, 0, 1_000_000_000),
        (1, 1_000_000_000, 2_000_000_000),
    ]
    assert {record.trial for record in moved if record.started_ns < 1_000_000_000} == {0}
    assert {record.trial for record in moved if record.started_ns >= 1_000_000_000} == {1}


def test_a_part_has_only_its_own_trials_strategies_loads_and_records() -> None:
    of, records = recorded((1, 2), ("gathered", "sequential"))
    part, some = part_of(of, records, {0})
    assert [one.index for one in part.trials] == [0]
    assert [spec.text for spec in part.strategies] == ["gathered"]
    assert part.load.users == 1
    assert {record.trial for record in some} == {0}


def test_figures_are_held_against_what_was_measured() -> None:
    of, records = recorded((1, 2))
    asked: list[tuple[tuple[int, ...], set[int | None], int]] = []

    def ask(run: Run, some: Sequence[LoopRecord], questions: Sequence[Question]) -> list[Predicted]:
        asked.extend(
            (tuple(trial.users for trial in run.trials), {one.trial for one in some}, question.load.users)
            for question in questions
        )
        return [predicted("gathered", 2, p50=0.11, throughput=19.0, goodput=19.0, failure_rate=0.1)]

    (cell,) = check_one(of, records, holdouts(of)[1], ask)
    assert asked == [((1,), {0}, 2)]
    (measured, loops) = measured_figures(of, records)["gathered", 2]
    assert (cell.left_out, cell.users, cell.loops) == ("2 agents", 2, loops)
    p50 = cell.figures["p50"]
    assert p50.measured == measured["p50"] == pytest.approx(0.1045, abs=0.001)
    assert p50.error == pytest.approx(0.11 / 0.1045 - 1, abs=0.01)
    assert p50.held
    failed = cell.figures["failure_rate"]
    assert (failed.measured, failed.error, failed.points, failed.held) == (0.0, 0.1, True, False)


def test_what_is_said_of_all_cells() -> None:
    of, records = recorded((1, 2))

    def ask(run: Run, some: Sequence[LoopRecord], questions: Sequence[Question]) -> list[Predicted]:
        users = questions[0].load.users
        if users == 2:
            return [predicted("gathered", 2, refused=("never so many",))]
        return [predicted("gathered", 1, p50=0.105, p95=0.2, throughput=9.5, goodput=9.5)]

    cells = [cell for holdout in holdouts(of) for cell in check_one(of, records, holdout, ask)]
    found = checked(of, cells, replicates=10, seed=1, band=0.9)
    assert not found.one_setting
    assert found.overall["p95"].held == 0
    assert found.sentences[0].startswith("median error of 1 predicted cells: p50 0.")
    assert found.sentences[2] == (
        "1 of 2 cells are outside of what is left of the recording, and are refused"
    )


def test_one_setting_is_said_to_check_itself_only() -> None:
    of, records = recorded((2,), blocks=2)
    cells = check_one(of, records, holdouts(of)[0], lambda run, some, questions: [predicted(users=2)])
    found = checked(of, cells, replicates=10, seed=1, band=0.9)
    assert found.one_setting
    assert found.sentences[0].startswith("one setting was recorded (gathered, 2 agents): ")
    assert "checks this setting only" in found.sentences[0]
