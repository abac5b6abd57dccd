"""One experiment's candidates as figures, what a pilot tells, where an adaptive limit settled."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from profiler.records import encode
from profiler.rundir import RunDirectory
from profiler.statistics.objectives import parse_objective
from profiler.tune.measured import candidates, pilot, settled_limit
from tests.unit.statistics_data import loop as recorded
from tests.unit.statistics_data import run, trial
from tests.unit.tune_data import loop

S = 1_000_000_000


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
    found = pilot(run, records, 18.0)
    assert (found.peak, found.mean, found.guess) == (4, 1.0, None)
    assert (found.between, found.beside) == (2.0, 6.0)
    records.append(loop(S, None, strategy="gathered", error="http_429"))
    assert pilot(run, records, 18.0).peak == 20  # ten agents that ask for two calls at once


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
