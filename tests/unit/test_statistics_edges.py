"""The limits that statistics decide by, from both sides."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from profiler import records as codec
from profiler.records import LoopRecord
from profiler.rundir import ClientHealth, Load, RunDirectory
from profiler.statistics.comparison import Side, compare, dependence, holm
from profiler.statistics.regression import compare_directories
from profiler.statistics.scalability import fit
from profiler.statistics.summary import Summary, summarise
from profiler.statistics.verdicts import verdict
from tests.unit.statistics_data import loop, run, trial

BLOCKS = 3


def made(count: int = 30, each: float = 200.0, window: float = 6000.0, **changes: object) -> list[LoopRecord]:
    return [
        loop(block * 10_000 + k * each, trial=block, **changes)  # type: ignore[arg-type]
        for block in range(BLOCKS)
        for k in range(count)
    ]


def trials(window: float = 6000.0, **changes: object):
    return [
        dataclasses.replace(trial(b, "gathered", b * 10_000, b * 10_000 + window, block=b), **changes)
        for b in range(BLOCKS)
    ]


def kinds(summary: Summary) -> list[str]:
    return [caveat.kind for caveat in summary.warnings]


@pytest.mark.parametrize(("cut", "said"), [(1, []), (2, ["loops_cut"])])
def test_one_loop_in_a_hundred_may_be_cut_off(cut, said):
    """120 loops were due."""
    all_trials = trials(window=9000.0)
    all_trials[0] = dataclasses.replace(all_trials[0], interrupted=cut)
    assert kinds(summarise(run(all_trials), made(40))) == said


@pytest.mark.parametrize(("users", "said"), [(19, []), (18, ["load_not_delivered"])])
def test_one_agent_in_twenty_may_be_missing(users, said):
    assert kinds(summarise(run(trials(users=users, wanted=20)), made())) == said


@pytest.mark.parametrize(("late", "said"), [(1, []), (2, ["arrivals_late"])])
def test_one_arrival_in_a_hundred_may_wait(late, said):
    """180 arrived, 60 in each trial."""
    all_trials = trials(arrived=60)
    all_trials[0] = dataclasses.replace(all_trials[0], late=late)
    conditions = run(all_trials, load=Load("open", users=2, rate=10.0))
    assert kinds(summarise(conditions, made())) == said


@pytest.mark.parametrize(("arrived", "said"), [(48, []), (42, ["load_not_delivered"])])
def test_arrivals_may_fall_short_by_three_standard_deviations(arrived, said):
    """60 are expected of each of three trials: 180 ± 13.4; 144 are within three of them, 126 are not."""
    conditions = run(trials(arrived=arrived), load=Load("open", users=2, rate=10.0))
    assert kinds(summarise(conditions, made())) == said


@pytest.mark.parametrize(("window", "said"), [(6000.0, []), (5900.0, ["short_window"])])
def test_a_block_holds_two_loops_at_least(window, said):
    conditions = run(trials(window=window))
    assert kinds(summarise(conditions, made(each=10, model=3000.0))) == said


@pytest.mark.parametrize(
    ("blocking", "held", "said"),
    [(4, 60, []), (5, 60, ["blocking_tool"]), (5, 50, []), (90, 51, ["blocking_tool"])],
)
def test_a_tool_is_blamed_for_one_call_in_twenty_that_held_the_loop_for_long(blocking, held, said):
    """90 calls of one tool, of which some held the event loop, that many milliseconds each."""
    loops = made(model=20.0, calls=[(0.0, 100.0)])
    for place in range(blocking):
        first, last = loops[place].rounds
        call = dataclasses.replace(first.tool_calls[0], blocking_ns=held * 1_000_000)
        loops[place] = dataclasses.replace(
            loops[place], rounds=(dataclasses.replace(first, tool_calls=(call,)), last)
        )
    assert kinds(summarise(run(trials()), loops)) == said


def test_saturated_by_several_at_once_names_each():
    client = (
        ClientHealth("w0", loop_lag_p99=0.06, cpu=0.95),
        ClientHealth("w1", loop_lag_p99=0.055, schedule_lag_p99=0.02),
        ClientHealth("the master", cpu=1.4),
    )
    (caveat,) = summarise(run(trials(), client=client), made()).warnings
    assert caveat.detail == (
        "the client was saturated: the event loop was late by 60 ms at p99 (limit 50 ms), "
        "and loops started 20 ms late at p99, more than 5 % of the median 100 ms, "
        "and a client process kept a core 95 % busy (limit 90 %), "
        "and the master kept a core 100 % busy (limit 90 %)"
    )


def test_one_invalid_caveat_among_others_makes_a_run_invalid_and_is_first():
    found = summarise(run(trials(), client=(ClientHealth("w0", cpu=0.95),), finished=False), made())
    assert kinds(found) == ["client_saturated", "unfinished"]
    assert found.valid is False
    assert summarise(run(trials(), finished=False), made()).valid is True


# ── comparisons ────────────────────────────────────────────────────────────────────────────────


def side(name: str, done: list[int], scale: float = 1.0, failed: int = 0) -> Side:
    rng = np.random.default_rng(len(name))
    return Side(
        name,
        tuple(scale * rng.lognormal(0, 0.2, count) for count in done),
        (10.0,) * len(done),
        tuple(done),
        tuple(count - failed for count in done),
        tuple((failed, count) for count in done),
    )


def test_rates_of_two_blocks_are_a_point_and_say_how_many_more():
    found = compare(side("a", [15, 20]), side("bb", [30, 40]), paired=True)
    assert found.throughput.value == pytest.approx(0.5)
    assert (found.throughput.needed, found.throughput.low) == (25, None)  # 3 · 20, less the 35 there are
    assert compare(side("a", [100, 20]), side("bb", [30, 40]), paired=True).throughput.needed == 10
    none = compare(side("a", [15, 20]), side("bb", [0, 0]), paired=True).throughput
    assert (none.value, none.needed) == (None, 60)


@pytest.mark.parametrize(
    ("share", "word"), [(0, "0 %"), (2, "0.5 %"), (20, "5.0 %"), (40, "10 %"), (200, "50 %")]
)
def test_small_shares_are_shown_to_a_tenth(share, word):
    """`share` of 400 loops failed; of the other's 300."""
    from profiler.statistics.verdicts import _share

    assert _share(share / 400) == word


def test_failures_differ_from_one_point_on():
    less = holm([compare(side("a", [2000] * 4, failed=19), side("bb", [2000] * 4), paired=True)])[0]
    more = holm([compare(side("a", [2000] * 4, failed=21), side("bb", [2000] * 4), paired=True)])[0]
    assert (less.failures.p_value < 0.05, less.failures.shown) == (True, False)
    assert more.failures.shown
    assert verdict(less).metric == "p95"
    assert verdict(more).metric == "goodput"


def test_only_blocks_of_two_runs_are_taken_to_depend_on_their_neighbours():
    def drifting(name: str, scale: float) -> Side:
        one = side(name, [100] * 8, scale)
        return dataclasses.replace(
            one, latencies=tuple(block * 1.2**k for k, block in enumerate(one.latencies))
        )

    sides = drifting("a", 1.0), drifting("bb", 1.1)
    assert compare(*sides, paired=True) == compare(*sides, paired=True, same_run=True)
    within, across = (compare(*sides, paired=True, same_run=same).p50 for same in (True, False))
    assert within.value == pytest.approx(across.value)
    assert across.high / across.low > 1.02 * within.high / within.low


def test_between_runs_dependence_widens_by_its_formula_paired_or_not():
    rng = np.random.default_rng(5)
    drift = [0, 1, 2, 1, 0, 1, 2, 1, 0, 1]  # r = 0.163
    groups = tuple(np.full(100, np.exp(value)) for value in drift)
    ours, theirs = (
        dataclasses.replace(side(name, [100] * 10), latencies=groups, done=tuple(rng.integers(80, 120, 10)))
        for name in ("a", "bb")
    )
    r = dependence(groups, groups)
    for paired in (True, False):
        within, across = (compare(ours, theirs, paired, same_run=same).throughput for same in (True, False))
        widths = [math.log(ratio.high / ratio.low) for ratio in (within, across)]
        assert widths[1] / widths[0] == pytest.approx(math.sqrt((1 + r) / (1 - r)))


def test_runs_without_any_spread_are_equal_or_certainly_not():
    same = compare(side("a", [100] * 4), side("bb", [100] * 4), paired=False).throughput
    assert (same.value, same.p_value) == (1.0, 1.0)
    twice = compare(side("a", [200] * 4), side("bb", [100] * 4), paired=False).throughput
    assert (twice.low, twice.p_value) == (twice.high, 0.0)


def test_the_bias_of_both_sides_joins_where_runs_are_not_paired():
    """The p50 of halves and wholes differ on one side alone: blocks whose second half is slower."""
    even = side("a", [40] * 5)
    even = dataclasses.replace(
        even, latencies=tuple(np.linspace(1.0, 1.1, 40) * (1 + b / 50) for b in range(5))
    )
    apart = tuple(np.concatenate([np.full(15, 1.0), np.full(25, 4.0)]) * (1 + b / 50) for b in range(5))
    skewed = dataclasses.replace(even, name="bb", latencies=apart)
    widths = []
    for one, other in ((even, even), (skewed, even), (even, skewed), (skewed, skewed)):
        found = compare(one, other, paired=False).p50
        widths.append(math.log(found.high / found.low))
    assert compare(skewed, even, paired=False).p50.value == pytest.approx(
        4 / 1.05
    )  # of wholes, not of halves
    assert widths[1] == pytest.approx(widths[2])
    assert widths[1] > 3 * widths[0]
    assert widths[3] < widths[1] / 2  # the same bias on both sides cancels


def test_an_objective_can_be_given_to_runs_that_had_none(tmp_path: Path):
    def recorded(model: float) -> RunDirectory:
        directory = RunDirectory.create(tmp_path, run(trials()))
        lines = [codec.encode(one) + b"\n" for one in made(model=model)]
        directory.records_path.write_bytes(b"".join(lines))
        return directory

    before, after = recorded(100.0), recorded(140.0)
    (plain,) = compare_directories(before, after).comparisons
    (held,) = compare_directories(before, after, slo="p95<120ms").comparisons
    assert plain.goodput.value == pytest.approx(1.0)
    assert held.goodput.value < 0.05


def test_the_dependence_of_blocks_is_corrected_for_how_few_there_are():
    logs = [0, 1, 2, 1, 0, 1, 2, 1, 0, 1]
    groups = [np.full(3, np.exp(value)) for value in logs]
    assert dependence(groups, groups) == pytest.approx((-0.01 / 4.9 + 1 / 10) / (1 - 4 / 10))
    few = groups[:4]  # r = 0: 0.25 / 0.2, but no more than 1 - 2/n
    assert dependence(few, few) == 0.5
    assert dependence(groups, [np.empty(0)]) == 0.0


def test_failure_rates_are_paired_only_where_the_comparison_is():
    ours, theirs = side("a", [200] * 5), side("bb", [200] * 5)
    drift = (10, 60, 20, 80, 40)
    ours = dataclasses.replace(ours, failures=tuple((failed + 6, 200) for failed in drift))
    theirs = dataclasses.replace(theirs, failures=tuple((failed, 200) for failed in drift))
    paired = compare(ours, theirs, paired=True).failures
    apart = compare(ours, theirs, paired=False).failures
    assert paired.value == apart.value == pytest.approx(0.03)
    assert apart.high - apart.low > 1.5 * (paired.high - paired.low)


def test_throughput_is_of_the_whole_window():
    summary = summarise(run(trials()), made())
    assert summary.strategies[0].loops.per_second == pytest.approx(30 / 6)


def test_a_strategy_without_a_turn_stands_under_the_highest_load():
    steps = [
        trial(k, "gathered", 20_000 * k, 20_000 * k + 9000, 0, users) for k, users in enumerate((2, 8, 4))
    ]
    loops = [loop(s.started_ns / 1e6, trial=s.index) for s in steps]
    summary = summarise(run(steps, strategies=("gathered", "adaptive")), loops)
    assert [(level.users, len(level.strategies)) for level in summary.levels] == [(2, 1), (4, 1), (8, 2)]
    assert summary.strategies[-1].strategy == "adaptive"


def test_the_interval_from_residuals_is_as_wide_as_the_noise_makes_it():
    """Twelve loads of one block each, 2 % of noise: N* is known within a few per cent."""
    rng = np.random.default_rng(3)
    loads = [1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 64, 96]
    rates = [
        [2 * n / (1 + 0.05 * (n - 1) + 0.001 * n * (n - 1)) * np.exp(rng.normal(0, 0.02))] for n in loads
    ]
    law = fit(loads, rates)
    assert law is not None
    assert law.peak is not None
    assert law.peak.low < 950**0.5 < law.peak.high
    assert 1.02 < law.peak.high / law.peak.low < 1.25


def test_a_ladder_s_levels_are_named_by_their_agents(tmp_path: Path):
    def recorded(users: tuple[int, ...]) -> RunDirectory:
        steps = [
            trial(
                4 * level + b, "gathered", 20_000 * (4 * level + b), 20_000 * (4 * level + b) + 9000, b, count
            )
            for level, count in enumerate(users)
            for b in range(4)
        ]
        directory = RunDirectory.create(tmp_path, run(steps))
        loops = [loop(s.started_ns / 1e6 + 80 * k, trial=s.index) for s in steps for k in range(30)]
        directory.records_path.write_bytes(b"".join(codec.encode(one) + b"\n" for one in loops))
        return directory

    before, after = recorded((2, 4)), recorded((2, 4))
    names = [one.strategy for one in compare_directories(before, after).comparisons]
    assert names == [f"gathered ({users} agents) in {after.path.name}" for users in (2, 4)]
    alone = compare_directories(before, recorded((4,))).comparisons
    assert [one.strategy.partition(" in ")[0] for one in alone] == ["gathered"]
