"""Candidates of a search: a pilot, which are tried, how they are ranked, the shape of their curve."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import mean, pvariance
from types import SimpleNamespace

import pytest

from profiler.over import parse_over
from profiler.records import encode
from profiler.rundir import RunDirectory
from profiler.statistics.objectives import parse_objective
from profiler.statistics.quantiles import Estimate
from profiler.statistics.table import tabulate
from profiler.tune.candidates import (
    Pilot,
    first_limits,
    first_values,
    knee_of,
    on_one_scale,
    pilot,
    promised,
    refine,
    settled,
    settled_limit,
    shape,
    survivors,
)
from profiler.tune.dial import dial_of
from profiler.tune.stages import candidates
from tests.unit.statistics_data import loop as recorded
from tests.unit.statistics_data import run, trial
from tests.unit.tune_data import loop, scored

S = 1_000_000_000


def test_ladder_reaches_from_the_mean_to_the_peak_or_lies_around_a_guess():
    assert first_limits(16, 1) == [16, 8, 4, 2, 1]
    assert first_limits(1) == [1]
    assert first_limits(160, 10, guesses=[20]) == [20, 10, 28, 14, 5]
    assert first_limits(160, 10, guesses=[90, 68]) == [90, 68, 45, 126, 22]  # 63 is nearly 68
    assert first_limits(4, guesses=[2]) == [2, 1, 3, 4]
    assert first_limits(5, 40) == [5]  # a peak below the mean is no peak: nothing was lost there


@pytest.mark.parametrize(("most", "limits"), [(2, [23, 10]), (3, [23, 10, 32])])
def test_ladder_cut_short_has_a_low_rung_where_calls_fail(most, limits):
    assert first_limits(160, 60, guesses=[23], most=most, failing=True)[:1] == limits[:1]
    assert min(first_limits(160, 60, guesses=[23], most=most, failing=True)) <= 12


def test_ladder_without_a_guess_begins_in_the_middle_where_calls_fail():
    limits = first_limits(160, 60, failing=True)
    assert sorted(limits) == [20, 34, 57, 95, 160]
    assert limits[0] == 57
    assert first_limits(160, 60) == [160, 125, 98, 77, 60]


def test_refine_looks_between_the_best_and_its_neighbours():
    found = refine({10: 3.0, 20: 5.0, 40: 4.0})
    assert 20 in found
    assert all(10 < limit < 40 for limit in found)
    assert len(found) == 5
    assert max(refine({10: 3.0, 20: 5.0})) > 20  # the best is the last: look beyond it
    assert min(refine({10: 5.0, 20: 3.0})) < 10
    assert refine({}) == []
    assert 1 in refine({1: 5.0, 2: 5.0})


def test_survivors_are_those_not_shown_to_be_worse():
    found = [
        scored("gathered", 1.0, 0.2, shown=True),
        scored("semaphore:8", 4.9, 0.98),
        scored("semaphore:16", 5.0),
        scored("adaptive", None),
    ]
    assert [one.spec for one in survivors(found)] == ["semaphore:16", "semaphore:8"]


def test_rungs_of_different_lengths_are_put_on_one_scale():
    """The same system, of which the first rung saw a quarter more than the last."""
    first = [scored("gathered", 1.0), scored("semaphore:10", 5.0), scored("semaphore:20", 10.0)]
    last = [scored("gathered", 2.0), scored("semaphore:16", 6.4), scored("semaphore:20", 8.0)]
    curve = on_one_scale([first, last])
    assert [(one.limit, one.score.value) for one in curve] == [(10, pytest.approx(4.0)), (16, 6.4), (20, 8.0)]
    assert curve[0].goodput.high == pytest.approx(4.0 * 1.05)


def test_shape_of_a_curve():
    curve = [
        scored("semaphore:5", 2.0, 0.4, shown=True),
        scored("semaphore:10", 4.8, 0.96, shown=True),
        scored("semaphore:18", 4.95, 0.99),
        scored("semaphore:20", 5.0),
        scored("semaphore:22", 4.9, 0.98),
        scored("semaphore:40", 1.0, 0.2, shown=True),
    ]
    found = shape(curve, 20)
    assert (found.best, found.knee, found.cliff, found.low, found.high) == (20, 10, 40, 18, 22)
    assert shape(curve[:4], 20).cliff is None
    curve[4] = scored(
        "semaphore:22", 2.0, 0.4, width=1.0
    )  # not shown, for want of loops: no reason to name it
    assert shape(curve, 20).high == 20


def test_settled_when_everything_is_told_apart_or_alike_with_room_to_spare():
    best = scored("semaphore:20", 5.0)
    far = scored("gathered", 1.0, 0.2, width=0.3)
    assert settled([best, far])
    assert settled([best, far, scored("semaphore:16", 4.95, 0.99, width=0.02)])
    # Shown at the end, but not when one looks more than once: 0.9 ± 8 % counts as ± 12 %.
    assert not settled([best, scored("semaphore:16", 4.5, 0.9, width=0.08)])
    assert not settled([best, far, scored("adaptive", 4.9, 0.98, width=0.05)])
    assert not settled([best, scored("adaptive", None)])
    assert settled([best, scored("gathered", 0.0)])  # not one loop ended well
    assert not settled([best])


def test_limits_are_apart_when_their_intervals_do_not_meet_or_one_has_none_and_is_clearly_less():
    best = scored("semaphore:20", 5.0, width=0.02)
    near = replace(scored("semaphore:18", 4.8, width=0.01), against_best=None)
    assert shape([near, best], 20).low == 20  # 4.85 < 4.9
    near = replace(near, score=Estimate(4.8, 4.6, 5.0))
    assert shape([near, best], 20).low == 18
    assert shape([replace(near, score=Estimate(4.8)), best], 20).low == 18  # 96 % of the best
    assert shape([replace(near, score=Estimate(4.7)), best], 20).low == 20  # 94 %


def test_curve_without_a_common_candidate_keeps_its_scale():
    curve = on_one_scale([[scored("semaphore:10", 5.0)], [scored("semaphore:20", 10.0)]])
    assert [one.score.value for one in curve] == [5.0, 10.0]


def test_settled_limit_is_where_an_adaptive_one_stayed():
    records = [loop(i * S, limit) for i, limit in enumerate([8, 16, 32, 21, 20, 20, 19])]
    assert settled_limit(records) is None  # nothing was refused: it only grew
    records[3] = loop(3 * S, 21, error="http_429")
    assert settled_limit(records) == 20


def test_pilot_tells_the_peak_and_what_trials_cost():
    trial = SimpleNamespace(strategy="gathered", started_ns=0, ended_ns=4 * S, drained_ns=5 * S)
    later = SimpleNamespace(strategy="adaptive", started_ns=6 * S, ended_ns=10 * S, drained_ns=12 * S)
    records = [loop(0, None, strategy="gathered"), replace(loop(S // 2, None, strategy="gathered"), id="b")]
    run = SimpleNamespace(trials=(trial, later), load=SimpleNamespace(users=10))
    found = pilot(run, records)
    assert (found.peak, found.mean, found.guesses) == (4, 1.0, ())
    assert (found.failing, found.loops, found.loop, found.work) == (False, {"gathered": 1.0}, 1.0, 2.0)
    assert found.loop_seconds("gathered", 10) == 1.0
    assert found.loop_seconds("semaphore:5", 10) == 4.0  # ten agents with 2 s of calls each, five at a time
    assert found.loop_seconds("semaphore:40", 10) == 1.0
    records.append(loop(S // 4, None, strategy="gathered", error="http_429"))
    found = pilot(run, records)
    assert found.peak == 20  # ten agents that ask for two calls at once
    assert (found.guesses, found.failing) == ((4,), True)  # as many as ran when it was refused


def test_pilot_in_which_nothing_was_recorded_knows_nothing():
    run = SimpleNamespace(trials=(), load=SimpleNamespace(users=10))
    assert pilot(run, []).loops == {}


def test_promise_is_the_rate_of_good_loops_with_an_interval_for_the_next_measurement(tmp_path):
    directory = experiment(tmp_path, failing=True)
    run_, table = directory.load(), tabulate(directory.records())
    sure = promised(run_, table, "semaphore:4", None)
    assert sure.value == pytest.approx(11.0, rel=0.02)
    assert sure.low < 10.7 < 11.3 < sure.high
    assert promised(run_, table, "gathered", None).value == pytest.approx(2.8, rel=0.02)
    assert promised(run_, table, "gathered", parse_objective("p50<0.0001s")).value == 0.0
    assert promised(run_, table, "semaphore:9", None).value is None


def test_promise_is_as_wide_as_loops_differ_however_few_there_are():
    # The window is too short for four parts of a loop each: only how much loops differ is known.
    loops = [recorded(50.0 * k, 0.0, [(0.0, 300.0 + 600.0 * (k % 2))], "semaphore:4") for k in range(34)]
    measured = run([trial(0, "semaphore:4", 1000.0, 2700.0)])
    found = promised(measured, tabulate(loops), "semaphore:4", None)
    ended = [one.wall_ns for one in loops if one.ended_ns >= S]
    assert found.value == pytest.approx(len(ended) / 1.7)
    variation = pvariance(ended) / mean(ended) ** 2
    share = (found.high - found.value) / found.value
    assert share == pytest.approx(1.96 * math.sqrt(2 * variation / len(ended)))
    assert found.value - found.low == pytest.approx(found.high - found.value)
    few = promised(measured, tabulate(loops[-8:]), "semaphore:4", None)
    assert few.value == pytest.approx(8 / 1.7)
    assert (few.low, few.high) == (None, None)


def experiment(tmp_path, *, failing: bool = False):
    """Three blocks of two strategies: loops of some 100 and some 200 ms, of which three of four may fail."""
    trials, records = [], []
    for block in range(3):
        for place, (spec, wall) in enumerate((("semaphore:4", 100.0), ("gathered", 200.0))):
            index = 2 * block + place
            begins = 10_000.0 * index
            trials.append(trial(index, spec, begins, begins + 10_000, block=block))
            for k in range(110):
                status = "error" if failing and spec == "gathered" and k % 4 else "ok"
                records.append(
                    recorded(
                        begins + 80 * k,
                        wall * (1 + (k * 7 % 11) / 200 + place * block / 100),
                        strategy=spec,
                        trial=index,
                        status=status,
                    )
                )
    directory = RunDirectory.create(tmp_path, run(trials))
    directory.records_path.write_bytes(b"".join(encode(record) + b"\n" for record in records))
    return directory


def test_candidates_are_scored_and_compared_with_the_best(tmp_path):
    found = {one.spec: one for one in candidates(experiment(tmp_path), "p95", None)}
    fast, slow = found["semaphore:4"], found["gathered"]
    assert (fast.limit, slow.limit) == (4, None)
    assert fast.score.value == pytest.approx(1 / fast.p95.value)  # more is better, of a latency too
    assert fast.score.low == pytest.approx(1 / fast.p95.high)
    assert fast.against_best is None
    assert slow.against_best.value == pytest.approx(0.5, rel=0.02)
    assert slow.against_best.low < slow.against_best.value < slow.against_best.high < 0.55
    assert slow.against_best.shown
    assert fast.throughput.value == pytest.approx(11.0)


def test_candidate_that_fails_has_no_latency_worth_a_score(tmp_path):
    directory = experiment(tmp_path, failing=True)
    found = {one.spec: one for one in candidates(directory, "p95", None)}
    assert found["gathered"].score.value is None
    assert found["gathered"].failures.value == pytest.approx(82 / 110)
    lenient = {one.spec: one for one in candidates(directory, "p95", parse_objective("errors<80%"))}
    assert lenient["gathered"].score.value is not None
    goodput = {one.spec: one for one in candidates(directory, "goodput", None)}
    assert goodput["gathered"].score.value == pytest.approx(2.8)
    assert goodput["gathered"].against_best.value < 0.3


def test_candidates_where_nothing_finished_have_no_best(tmp_path):
    trials = [trial(0, "gathered", 0, 1000)]
    directory = RunDirectory.create(tmp_path, run(trials))
    directory.records_path.write_bytes(b"")
    (only,) = candidates(directory, "p95", None)
    assert (only.score.value, only.against_best) == (None, None)
    assert candidates(RunDirectory.create(tmp_path / "none", run([])), "p95", None) == []


def test_loops_under_a_setting_are_taken_to_be_twice_as_long_with_half_the_value_at_most():
    seen = Pilot(
        40,
        10.0,
        (),
        loops={"calls=32": 1.0, "calls=6": 2.0},
        loop=0.5,
        work=8.0,
        dial=dial_of(parse_over("calls=1..32")),
    )
    expected = {32: 1.0, 6: 2.0, 12: 2.0, 3: 4.0, 1: 12.0}
    assert {value: seen.loop_seconds(f"calls={value}", 40) for value in expected} == expected


def test_first_values_of_a_setting_cover_its_range_and_begin_with_the_guess():
    within, listed = dial_of(parse_over("calls=1..32")), dial_of(parse_over("calls=1,2,4,8"))
    assert first_values(within, Pilot(99, 50.0, (), dial=within)) == [32, 13, 6, 2, 1]
    assert first_values(listed, Pilot(99, 50.0, (), dial=listed)) == [8, 4, 2, 1]
    assert first_values(within, Pilot(99, 50.0, (10, 9), True, dial=within)) == [10, 9, 5, 14, 7]
    assert first_values(within, Pilot(99, 50.0, (30,), True, dial=within)) == [30, 15, 32, 21, 8]


@pytest.mark.parametrize(
    ("over", "guesses", "first"),
    [
        ("semaphore", (20, 19), [20, 19, 10, 28, 14]),
        ("semaphore=2..64", (20, 19), [20, 19, 10, 28, 14]),
        ("semaphore=2..24", (20, 19), [20, 19, 10, 24, 14]),
        ("semaphore=22..40", (20, 19), [22, 31, 40, 34, 30]),
        ("semaphore=1..6", (20, 19), [6, 3, 4, 2]),
        ("semaphore=4,9,16,40", (20, 19), [16, 9, 4]),
        ("semaphore=2..40", (), [40, 36, 32, 28, 25]),
        ("semaphore@agent=1..8", (), [8, 5, 3, 2, 1]),
    ],
)
def test_first_limits_stay_within_what_was_asked_for(over, guesses, first):
    dial = dial_of(parse_over(over))
    assert first_values(dial, Pilot(99, 50.0, guesses, dial=dial)) == first


def test_guess_of_a_setting_is_the_value_that_lets_as_many_run_as_were_served():
    """Four agents run two calls each at the value in the middle, and the server refuses above four."""
    dial = dial_of(parse_over("calls=1..16"))
    assert dial.beside == "calls=4"
    trials = tuple(
        SimpleNamespace(strategy=spec, started_ns=0, ended_ns=4 * S, drained_ns=5 * S)
        for spec in ("calls=16", "calls=4")
    )
    records = [loop(0, None, strategy="calls=16"), replace(loop(S // 2, None, strategy="calls=16"), id="b")]
    records += [loop(S // 4, None, strategy="calls=16", error="http_429")]
    records += [replace(loop(0, None, strategy="calls=4"), id=f"m{n}") for n in range(4)]
    found = pilot(SimpleNamespace(trials=trials, load=SimpleNamespace(users=10)), records, dial)
    assert found.guesses == (2,)  # eight ran with four, so four do with two
    assert found.loops == {"calls=16": 1.0, "calls=4": 1.0}


@pytest.mark.parametrize(("served", "guesses"), [(8, (8,)), (30, (30, 29)), (100, (100, 97))])
def test_guess_comes_with_a_little_less_where_that_is_nearly_as_good(served, guesses):
    run_ = SimpleNamespace(trials=(), load=SimpleNamespace(users=10))
    records = [loop(0, None, strategy="gathered") for _ in range(served // 2)]  # of two calls each
    records.append(loop(S // 4, None, strategy="gathered", error="http_429"))
    assert pilot(run_, records).guesses == guesses


def test_knee_is_the_smallest_with_nearly_the_best_score():
    assert knee_of({4: 1.0, 8: 4.8, 16: 5.0, 32: 2.0}) == 8
    assert refine({4: 1.0, 8: 4.8, 16: 5.0, 32: 2.0}, 3, 8)[0] == 8
