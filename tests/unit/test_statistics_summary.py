"""`summary.json`: its shape, its windows, its figures."""

from __future__ import annotations

import json

import numpy as np
import orjson
import pytest

from profiler.statistics.comparison import compare_strategies
from profiler.statistics.summary import summarise
from profiler.statistics.table import tabulate
from profiler.statistics.verdicts import verdict
from profiler.statistics.windows import measure
from tests.unit.statistics_data import loop, made, run, trial, trials

Q_KEYS = {"p50", "p95", "p99"}


def test_summary_has_the_documented_shape() -> None:
    made = summarise(run([trial(0, "gathered", 0, 1000)]), [loop(0, calls=[(0, 50), (10, 30)])])
    data = json.loads(orjson.dumps(made))
    assert data["schema"] == 1
    assert data["scenario"] == "cities"
    assert data["provider"] == "openai"
    strategy = data["strategies"][0]
    assert strategy["strategy"] == "gathered"
    assert strategy["loops"]["completed"] == 1
    assert strategy["loops"]["failed"] == 0
    assert strategy["loops"]["per_second"] == 1.0
    for key in ("loop_seconds", "round_seconds", "tool_phase_seconds"):
        assert strategy[key].keys() == Q_KEYS
    assert strategy["loop_seconds"]["p50"] == {"value": 0.25, "low": None, "high": None}
    assert strategy["round_seconds"]["p50"]["value"] == pytest.approx(0.125)
    assert strategy["tool_phase_seconds"]["p99"]["value"] == 0.05
    tool = strategy["tools"]["get_weather"]
    assert (tool["calls"], tool["errors"]) == (2, 0)
    assert tool["seconds"]["p50"]["value"] == pytest.approx(0.04)
    assert tool["queue_seconds"]["p50"]["value"] == pytest.approx(0.005)


def test_throughput_counts_ends_and_latency_counts_starts_in_the_window() -> None:
    records = [
        loop(-50, model=100),  # ends inside: throughput only
        loop(100, model=200),  # both
        loop(950, model=300),  # starts inside, ends after: latency only
        loop(1000, model=400),  # starts at the end: neither
    ]
    made = summarise(run([trial(0, "gathered", 0, 1000)]), records).strategies[0]
    assert made.loops.completed == 2
    assert made.loops.per_second == 2.0
    assert made.loop_seconds.p50.value == pytest.approx(0.25)  # of 0.2 and 0.3
    assert made.loops.due == 2
    assert made.totals.loops == 4


def test_open_load_counts_from_the_intended_start() -> None:
    made = summarise(run([trial(0, "gathered", 0, 1000)]), [loop(500, model=100, intended=200)])
    strategy = made.strategies[0]
    assert strategy.loop_seconds.p50.value == pytest.approx(0.4)
    assert strategy.phases["arrival_wait"] == pytest.approx(0.3)
    assert sum(strategy.phases.values()) == pytest.approx(strategy.mean_loop_seconds)


def test_phases_sum_to_the_mean_loop_and_name_the_queue() -> None:
    records = [loop(t, calls=[(0, 50), (60, 30)]) for t in (0, 300)]
    strategy = summarise(run([trial(0, "gathered", 0, 1000)]), records).strategies[0]
    assert strategy.mean_loop_seconds == pytest.approx(0.290)
    assert sum(strategy.phases.values()) == pytest.approx(0.290)
    assert strategy.phases["model"] == pytest.approx(0.2)
    assert strategy.phases["tools"] == pytest.approx(0.08)
    assert strategy.phases["queue"] == pytest.approx(0.01)
    assert strategy.speed_up.value == pytest.approx(80 / 90)
    assert strategy.efficiency.value == pytest.approx(50 / 90)


def test_failures_are_counted_by_kind() -> None:
    records = [
        loop(0),
        loop(100, status="error"),
        loop(200, calls=[(0, 10)], tool_status="error"),  # answered, but a call had failed
        loop(300, status="cancelled"),
    ]
    made = summarise(run([trial(0, "gathered", 0, 1000, interrupted=2)]), records)
    strategy = made.strategies[0]
    assert (strategy.loops.completed, strategy.loops.failed) == (2, 3)
    assert (strategy.loops.incomplete, strategy.loops.interrupted) == (1, 2)
    # 4 recorded, one cut off without a record: 1 of 5 is good.
    assert strategy.failure_rate.value == pytest.approx(0.8)
    assert strategy.goodput.value == pytest.approx(1.0)
    assert strategy.error_types == {"http_429": 2, "incomplete": 1}
    assert strategy.tools["get_weather"].error_types == {"TimeoutError": 1}


def test_totals_include_what_no_window_holds() -> None:
    records = [loop(0, trial=None, calls=[(0, 10)]), loop(5000, trial=7), loop(100, trial=0)]
    totals = summarise(run([trial(0, "gathered", 0, 1000)]), records).strategies[0].totals
    assert (totals.loops, totals.rounds, totals.tool_calls) == (3, 4, 1)
    assert (totals.tokens.input, totals.tokens.output) == (40, 8)
    assert (totals.model_requests, totals.attempts) == (4, 4)


def test_run_killed_in_its_first_trial_shows_totals() -> None:
    made = summarise(run([], finished=False, strategies=("gathered",)), [loop(0)])
    assert made.finished is False
    assert made.strategies[0].totals.loops == 1
    assert made.strategies[0].loops.per_second is None
    assert made.strategies[0].loop_seconds.p50.value is None


def test_intervals_come_from_blocks_and_need_thick_ones() -> None:
    rng = np.random.default_rng(3)
    trials, records = [], []
    for block in range(4):
        trials.append(trial(block, "gathered", block * 10_000, (block + 1) * 10_000, block=block))
        starts = (block * 10_000 + k * 200 for k in range(40))
        records += [loop(start, model=float(rng.lognormal(4, 0.5)), trial=block) for start in starts]
    strategy = summarise(run(trials), records).strategies[0]
    p50, p95 = strategy.loop_seconds.p50, strategy.loop_seconds.p95
    assert p50.value is not None
    assert p50.low is not None
    assert p50.high is not None
    assert p50.low < p50.value < p50.high
    assert (p95.low, p95.high) == (None, None)  # 40 loops a block are too few for p95
    assert strategy.blocks == 4


def test_warm_up_is_left_out_of_windows_and_kept_in_totals() -> None:
    trials, records = [], []
    for block in range(3):
        trials.append(trial(block, "gathered", block * 100_000, block * 100_000 + 40_000, block=block))
        for k in range(200):
            slow = 400 if k < 20 else 100 + (k * 37 % 11)
            records.append(loop(block * 100_000 + k * 200, model=slow, trial=block))
    strategy = summarise(run(trials), records).strategies[0]
    assert strategy.warm_up_loops == 20
    assert strategy.steady is True
    assert strategy.loops.due == 3 * 180
    assert strategy.window_seconds == pytest.approx(3 * 36.0)
    assert strategy.loop_seconds.p99.value is not None
    assert strategy.loop_seconds.p99.value < 0.12
    assert strategy.totals.loops == 600
    left = strategy.left_out
    assert left is not None
    assert (left.loops, left.due, left.seconds) == (60, 600, 4.0)
    assert (left.p50, left.p95, left.p99) == (pytest.approx(0.105, abs=0.002), 0.4, 0.4)


def test_ladder_keeps_its_levels_apart() -> None:
    trials = [
        trial(0, "gathered", 0, 1000, users=1),
        trial(1, "gathered", 1000, 2000, users=5),
    ]
    records = [loop(100, model=100, trial=0), loop(1100, model=300, trial=1)]
    made = summarise(run(trials), records)
    assert [level.users for level in made.levels] == [1, 5]
    assert made.levels[0].strategies[0].loop_seconds.p50.value == pytest.approx(0.1)
    assert made.strategies == made.levels[1].strategies
    assert made.strategies[0].loop_seconds.p50.value == pytest.approx(0.3)


@pytest.mark.usefixtures("few_repeats")
def test_long_ladder_gets_a_law() -> None:
    trials, records = [], []
    for index, users in enumerate((1, 2, 4, 8)):
        trials.append(trial(index, "gathered", index * 10_000, index * 10_000 + 4000, users=users))
        count = 20 * users  # 5 loops/s an agent, no contention
        records += [loop(index * 10_000 + k * 4000 / count, model=1, trial=index) for k in range(count)]
    made = summarise(run(trials), records)
    assert made.scalability["gathered"].rate == pytest.approx(5.0, rel=0.01)
    assert made.scalability["gathered"].sentence == "no peak seen up to 8 agents"


def test_summary_of_one_load_is_no_ladder_and_of_no_strategy_no_level() -> None:
    assert summarise(run([trial(0, "gathered", 0, 1000)]), [loop(0)]).levels == ()
    nothing = summarise(run([]), [])
    assert (nothing.strategies, nothing.levels) == ((), ())
    killed = summarise(run([], finished=False, strategies=("gathered",)), [loop(0)])
    assert killed.strategies[0].warm_up_loops == 0


@pytest.mark.usefixtures("few_repeats")
def test_strategy_has_a_law_of_its_own() -> None:
    trials, records = [], []
    for index, (strategy, users) in enumerate(
        (s, u) for s in ("gathered", "sequential") for u in (1, 2, 4, 8)
    ):
        trials.append(trial(index, strategy, index * 10_000, index * 10_000 + 4000, users=users))
        count = (20 if strategy == "gathered" else 10) * users
        records += [
            loop(index * 10_000 + k * 4000 / count, model=1, strategy=strategy, trial=index)
            for k in range(count)
        ]
    trials.append(trial(8, "sequential", 90_000, 90_000, users=8, block=1))  # cut short at once
    laws = summarise(run(trials), records).scalability
    assert laws["gathered"].rate == pytest.approx(5.0, rel=0.01)
    assert laws["sequential"].rate == pytest.approx(2.5, rel=0.01)


def test_summary_carries_comparisons_verdicts_and_objectives() -> None:
    trials, records = [], []
    rng = np.random.default_rng(4)
    for block in range(3):
        for strategy, base in (("sequential", 300.0), ("gathered", 100.0)):
            index = len(trials)
            start = index * 60_000
            trials.append(trial(index, strategy, start, start + 30_000, block=block))
            models = base * rng.lognormal(0, 0.2, 250)
            records += [
                loop(start + k * 120, model=float(m), strategy=strategy, trial=index)
                for k, m in enumerate(models)
            ]
    records.append(loop(0, calls=[(0, 1)], trial=None))  # without any call nothing would be compared
    made = summarise(run(trials, slo="p95<200ms,errors<1%"), records)
    (comparison,) = made.comparisons
    assert (comparison.strategy, comparison.baseline, comparison.blocks) == ("gathered", "sequential", 3)
    assert comparison.p50.value == pytest.approx(1 / 3, rel=0.05)
    assert made.verdicts[0].sentence.startswith("gathered is ")
    assert [s.objective_met for s in made.strategies] == [False, True]
    sequential, gathered = made.strategies
    assert gathered.goodput.value == pytest.approx(gathered.throughput.value, rel=0.02)
    assert sequential.goodput.value is not None
    assert sequential.throughput.value is not None
    assert sequential.goodput.value < 0.1 * sequential.throughput.value
    table = tabulate(records)
    (other,) = compare_strategies(measure(run(trials), table), table, baseline="gathered")
    assert other.baseline == "gathered"
    assert verdict(other).kind == "slower"


def test_throughput_is_of_the_whole_window():
    summary = summarise(run(trials()), made())
    assert summary.strategies[0].loops.per_second == pytest.approx(30 / 6)


def test_strategy_without_a_turn_stands_under_the_highest_load():
    steps = [
        trial(k, "gathered", 20_000 * k, 20_000 * k + 9000, 0, users) for k, users in enumerate((2, 8, 4))
    ]
    loops = [loop(s.started_ns / 1e6, trial=s.index) for s in steps]
    summary = summarise(run(steps, strategies=("gathered", "adaptive")), loops)
    assert [(level.users, len(level.strategies)) for level in summary.levels] == [(2, 1), (4, 1), (8, 2)]
    assert summary.strategies[-1].strategy == "adaptive"
