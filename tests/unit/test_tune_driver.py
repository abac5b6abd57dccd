"""The search against an invented system, whose best setting is known. Nothing runs."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from profiler import records
from profiler.errors import TargetError
from profiler.load.conditions import conditions
from profiler.load.experiment import Experiment
from profiler.load.options import LoadOptions
from profiler.load.plan import schedule
from profiler.records import LoopRecord
from profiler.rundir import RunDirectory, Trial
from profiler.strategies import parse_strategy
from profiler.tune import driver
from profiler.tune.driver import Search, tune
from tests.unit.statistics_data import loop

CAPACITY = 20


def goodput(spec: str, users: int) -> tuple[float, float]:
    """(loops a second, share that fails): two for each place in use; above the capacity, refusals."""
    limit = parse_strategy(spec).limit
    if spec == "adaptive":
        return min(2.0 * CAPACITY, 4.0 * users) * 0.93, 0.02
    if spec == "sequential":
        return 0.5 * users, 0.0
    places = min(8 * users, limit if limit is not None else 8 * users)
    return min(2.0 * places, 4.0 * users), min(0.9, max(0.0, 3 * (places - CAPACITY) / CAPACITY))


@pytest.fixture
def invented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Experiment]:
    """Replaces experiments by invented ones; the list gets what was asked for."""
    asked: list[Experiment] = []

    def run_experiment(experiment: Experiment, enough: Callable[[RunDirectory], bool] | None = None) -> Path:
        asked.append(experiment)
        options = experiment.options
        draw = random.Random(options.seed)
        run = conditions(replace(options, out=str(tmp_path)), experiment.users)
        directory = RunDirectory.create(tmp_path, run)
        made: list[LoopRecord] = []
        trials: list[Trial] = []
        now, window = 1.0, experiment.seconds / experiment.blocks

        def save() -> None:
            directory.records_path.write_bytes(b"".join(records.encode(one) + b"\n" for one in made))
            directory.save(replace(run, trials=tuple(trials), finished=True))

        for planned in schedule(options.strategies, options.seed, experiment.blocks, options.levels):
            if trials and planned.block > trials[-1].block and enough is not None:
                save()
                if enough(directory):
                    break
            users = planned.users or experiment.users
            rate, failing = goodput(planned.strategy, users)
            rate *= draw.uniform(0.99, 1.01)
            for number in range(int(rate * (window + 0.71))):
                start = round((now + number / rate - 0.71) * 1000)  # in full swing when it begins
                failed = draw.random() < failing
                one = loop(
                    start,
                    10.0,
                    [(0.0, 500.0)],
                    planned.strategy,
                    planned.index,
                    tool_status="error" if failed else "ok",
                )
                made.append(_with_limit(one, failed))
            ends = now + window
            trials.append(
                Trial(
                    planned.index,
                    planned.block,
                    planned.strategy,
                    users,
                    int(now * 1e9),
                    int(ends * 1e9),
                    int((ends + 0.1) * 1e9),
                )
            )
            now = ends + 0.1
        save()
        return directory.path

    monkeypatch.setattr(driver, "run_experiment", run_experiment)
    return asked


def _with_limit(record: LoopRecord, failed: bool) -> LoopRecord:
    if record.strategy != "adaptive":
        return record
    first, *rest = record.rounds
    calls = tuple(replace(c, error_type="http_429" if failed else None) for c in first.tool_calls)
    return replace(record, rounds=(replace(first, limit=CAPACITY, tool_calls=calls), *rest))


def search(users: int, **changes) -> Search:
    return Search(LoadOptions(scenario="crowded"), users, **{"budget": 120.0, **changes})


def test_the_capacity_is_found_and_the_cliff_beyond_it(invented):
    said: list[str] = []
    answer = tune(search(20), said.append)
    assert answer.setting.limit is not None
    assert 0.95 * CAPACITY <= answer.setting.limit <= CAPACITY
    assert answer.setting.goodput.value == pytest.approx(2.0 * answer.setting.limit, rel=0.05)
    assert answer.shape is not None
    assert answer.shape.cliff is not None
    assert CAPACITY < answer.shape.cliff <= 1.5 * CAPACITY
    assert not answer.gathered_is_as_good
    assert answer.sentence.startswith(f"semaphore:{answer.setting.limit}, shared: goodput ")
    assert "for gathered" in answer.sentence
    assert "no difference shown)" not in answer.sentence
    assert [at.share for at in answer.loads] == [0.5, 0.75, 1.25, 1.5]
    assert answer.scalability is not None
    assert answer.effective == f"{answer.setting.spec}: up to {answer.setting.limit} calls at once"
    assert f'Gate("{answer.setting.spec}")' in answer.python
    assert said[-1].startswith("loads: ")
    # Every rung does work of its own, and the last one decides among few.
    assert len({one.options.seed for one in invented}) == len(invented) == 4
    assert len(invented[2].options.strategies) <= 5


def test_where_nothing_is_refused_gathering_is_as_good(invented):
    answer = tune(search(2))
    assert answer.setting.spec == "gathered"
    assert answer.gathered_is_as_good
    assert answer.shape is not None
    assert answer.shape.cliff is None
    assert answer.sentence.startswith("gathered: at this load gathering is as good as any limit")


def test_several_processes_share_what_was_found(invented):
    load = LoadOptions(scenario="crowded", share_limit=True)
    answer = tune(Search(load, 20, workers=2, budget=120.0))
    assert answer.setting.limit is not None
    each = answer.setting.limit // 2
    assert answer.effective == (
        f"{answer.setting.spec}: {each} per process × 2 processes = up to {2 * each} calls at once"
    )
    assert f'Gate("{answer.setting.spec}", share=2)' in answer.python
    assert all(one.workers == 2 for one in invented)


def test_the_last_rung_ends_when_everything_in_it_is_told_apart(invented):
    answer = tune(search(20))
    last = RunDirectory.open(answer.runs[2]).load()
    assert invented[2].blocks == 8
    assert len({trial.block for trial in last.trials}) == 4


def test_arrivals_grow_with_the_load(invented):
    load = LoadOptions(scenario="crowded", arrivals="constant:10/s")
    tune(Search(load, 20, budget=120.0))
    *before, loads = invented
    assert {one.options.arrivals for one in before} == {"constant:10/s"}
    assert (loads.users, loads.options.arrivals) == (30, "constant:15.000000/s")


def test_rates_are_tried_when_asked_for(invented):
    tune(search(20, over=("semaphore", "rate")))
    assert sum(spec.startswith("rate:") for spec in invented[2].options.strategies) == 3


def test_an_experiment_that_measured_nothing_is_an_error(invented, monkeypatch):
    monkeypatch.setattr(driver, "candidates", lambda *arguments: [])
    with pytest.raises(TargetError, match="nothing was measured"):
        tune(search(20))
