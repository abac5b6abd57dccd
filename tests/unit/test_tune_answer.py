"""What the answer of a search says where there is little to say: no limit, no loops, no difference."""

from __future__ import annotations

from dataclasses import replace

import pytest

from profiler.records import Attempt, encode
from profiler.rundir import RunDirectory
from profiler.statistics.objectives import parse_objective
from profiler.statistics.quantiles import Estimate
from profiler.statistics.scalability import fit
from profiler.tune.answer import AtLoad, choose, per_second, render, seconds
from profiler.tune.candidates import on_one_scale, shape
from profiler.tune.quotas import Demand, Quota, advise, demand, parse_quota, seen_quota
from profiler.tune.search import candidates
from tests.unit.statistics_data import loop as recorded
from tests.unit.statistics_data import run, trial
from tests.unit.test_tune import answer, loop, scored

S = 1_000_000_000


def test_gathering_against_nothing_needs_no_comparison():
    found = answer([scored("gathered", 5.0)], [])
    assert found.sentence == (
        "gathered: at this load gathering is as good as any limit: goodput 5/s [4.75, 5.25]"
    )


def test_a_setting_that_is_no_semaphore_is_not_called_shared():
    final = [scored("adaptive", 5.0), scored("gathered", 4.0, 0.8, width=0.5)]
    found = answer(final, [])
    assert found.sentence == (
        "adaptive: goodput 5/s [4.75, 5.25] against 4/s [2, 6] for gathered (no difference shown)"
    )
    assert found.headroom is None


def test_headroom_needs_the_setting_at_four_fifths():
    final = [scored("semaphore:10", 5.0), scored("semaphore:9", 4.9, 0.98)]
    assert answer(final, final).setting.spec == "semaphore:10"
    assert answer(final, final).headroom is None
    without_score = [scored("semaphore:10", 5.0), scored("semaphore:8", None)]
    assert answer(without_score, without_score).headroom is None


def test_where_nothing_has_a_score_the_first_one_is_the_setting():
    setting, as_good = choose([scored("semaphore:8", None), scored("adaptive", None)])
    assert (setting.spec, as_good) == ("semaphore:8", False)


def test_the_figures_of_an_objective():
    p95 = replace(scored("semaphore:8", 2.0), p95=Estimate(0.5, 0.4, 0.6))
    assert answer([p95], [p95], objective="p95").sentence == "semaphore:8, shared: p95 0.5 s [0.4, 0.6]"
    throughput = replace(scored("semaphore:8", 2.0), throughput=Estimate(7.0))
    assert answer([throughput], [throughput], objective="throughput").sentence == (
        "semaphore:8, shared: throughput 7/s"
    )
    assert (per_second(Estimate(None)), seconds(Estimate(None))) == ("too few", "too few")
    assert (per_second(Estimate(5.678)), seconds(Estimate(1.234))) == ("5.68/s", "1.23 s")


def test_the_text_has_the_curve_other_loads_scalability_and_rates():
    final = [scored("semaphore:20", 5.0), scored("gathered", 1.0, 0.2, shown=True)]
    curve = [scored("semaphore:10", 4.0, 0.8, shown=True), final[0], scored("semaphore:40", 1.0)]
    taken = demand([loop(0, None)])
    assert taken is not None
    found = answer(
        final,
        curve,
        loads=(AtLoad(1.5, 30, final[0], final[1]), AtLoad(0.5, 10, final[0], None)),
        scalability="throughput peaks at about 40 [35, 50] agents",
        rates=(advise(parse_quota("openai:tpm=30000"), taken),),
        effective="semaphore:20: up to 20 calls at once",
        runs=("runs/1", "runs/2"),
    )
    lines = render(found).splitlines()
    assert "      20  5/s [4.75, 5.25]             1 s                        0.0%  ←" in lines
    assert "      10  4/s [3.8, 4.2]               1 s                        0.0%" in lines
    assert "knee at 20, cliff at 40" in lines
    assert "  +50% (30 agents): semaphore:20 5/s [4.75, 5.25]; gathered 1/s [0.95, 1.05]" in lines
    assert "  -50% (10 agents): semaphore:20 5/s [4.75, 5.25]" in lines
    assert "throughput peaks at about 40 [35, 50] agents" in lines
    assert "  look: 4 calls/s at that rate" in lines
    assert "  gpt-4o: 100% of the tokens" in lines
    assert lines[-1] == "290 s, 2 experiments: runs/1, runs/2"


def test_the_curve_is_shown_too_where_what_is_set_is_no_limit():
    final = [scored("adaptive", 5.0), scored("semaphore:20", 4.0, 0.8, shown=True)]
    curve = [scored("semaphore:10", 3.0), final[1]]
    lines = render(answer(final, curve, shape=shape(curve, 20))).splitlines()
    assert lines[:6] == [
        "adaptive: goodput 5/s [4.75, 5.25].",
        "",
        "   limit  goodput                      p95                        failed",
        "      10  3/s [2.85, 3.15]             1 s                        0.0%",
        "      20  4/s [3.8, 4.2]               1 s                        0.0%",
        "",
    ]
    assert lines[6:10] == [
        "knee at 20, no cliff seen",
        "",
        "in the same paired blocks:",
        "                strategy  goodput                      p95                        failed",
    ]


def test_limits_are_apart_when_their_intervals_do_not_meet_or_one_has_none_and_is_clearly_less():
    best = scored("semaphore:20", 5.0, width=0.02)
    near = replace(scored("semaphore:18", 4.8, width=0.01), against_best=None)
    assert shape([near, best], 20).low == 20  # 4.85 < 4.9
    near = replace(near, score=Estimate(4.8, 4.6, 5.0))
    assert shape([near, best], 20).low == 18
    assert shape([replace(near, score=Estimate(4.8)), best], 20).low == 18  # 96 % of the best
    assert shape([replace(near, score=Estimate(4.7)), best], 20).low == 20  # 94 %


def test_a_curve_without_a_common_candidate_keeps_its_scale():
    curve = on_one_scale([[scored("semaphore:10", 5.0)], [scored("semaphore:20", 10.0)]])
    assert [one.score.value for one in curve] == [5.0, 10.0]


def test_what_nobody_takes_limits_nothing():
    silent = Demand(requests=1.0, input_tokens=0.0, output_tokens=0.0, tools={}, models={})
    assert advise(parse_quota("tpm=30000"), silent) is None
    assert demand([replace(loop(0, None), status="error")]) is None
    taken = demand([loop(0, None)])
    assert taken is not None
    only_requests = advise(parse_quota("rpm=60"), taken)
    assert only_requests is not None
    assert only_requests.limits == "rate:60/min"


def test_a_million_requests_a_minute_is_no_limit_beside_one_that_is():
    stated = {"x-ratelimit-limit-requests": "1000000", "x-ratelimit-limit-tokens": "30000"}
    found = seen_quota([loop(0, None, attempts=(Attempt(0, 1, 200, rate_limits=stated),))])
    assert found == Quota("openai", {"tokens": 30000.0}, "from its headers")


@pytest.mark.parametrize(("coherency", "seen"), [(4e-6, False), (1e-4, True)])
def test_a_peak_far_beyond_the_largest_load_is_not_claimed(coherency, seen):
    """The law without noise: κ is known exactly, and N* = 500 or 100 where 200 was the most."""
    loads = [10, 25, 50, 100, 200]
    rates = [[100 * n / (1 + coherency * n * (n - 1))] * 3 for n in loads]
    law = fit(loads, rates)
    assert law is not None
    assert law.coherency.value == pytest.approx(coherency, rel=0.02)
    assert (law.peak is not None) == seen
    assert law.sentence.startswith("throughput peaks at about 100" if seen else "no peak seen up to 200")


# ── from an experiment to candidates ───────────────────────────────────────────────────────────


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


def test_who_fails_has_no_latency_worth_a_score(tmp_path):
    directory = experiment(tmp_path, failing=True)
    found = {one.spec: one for one in candidates(directory, "p95", None)}
    assert found["gathered"].score.value is None
    assert found["gathered"].failures.value == pytest.approx(82 / 110)
    lenient = {one.spec: one for one in candidates(directory, "p95", parse_objective("errors<80%"))}
    assert lenient["gathered"].score.value is not None
    goodput = {one.spec: one for one in candidates(directory, "goodput", None)}
    assert goodput["gathered"].score.value == pytest.approx(2.8)
    assert goodput["gathered"].against_best.value < 0.3


def test_where_nothing_finished_nobody_is_best(tmp_path):
    trials = [trial(0, "gathered", 0, 1000)]
    directory = RunDirectory.create(tmp_path, run(trials))
    directory.records_path.write_bytes(b"")
    (only,) = candidates(directory, "p95", None)
    assert (only.score.value, only.against_best) == (None, None)
    assert candidates(RunDirectory.create(tmp_path / "none", run([])), "p95", None) == []
