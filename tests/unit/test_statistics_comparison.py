"""Comparisons of blocks whose truth is known, against what SciPy and arithmetic say."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from profiler.statistics.comparison import (
    SIGNIFICANCE,
    Difference,
    Ratio,
    Side,
    compare,
    compare_runs,
    compare_strategies,
    dependence,
    holm,
    holm_adjust,
)
from profiler.statistics.comparison import side as side_of
from profiler.statistics.table import tabulate
from profiler.statistics.verdicts import verdict
from profiler.statistics.windows import measure
from tests.unit.statistics_data import against, loop, run, side, trial


def test_paired_ratio_finds_the_truth_through_drift() -> None:
    found = against(side("fast", 1 / 1.3), side("slow", 1.0, seed=2))
    for name in ("p50", "p95"):
        ratio = getattr(found, name)
        assert ratio.low < 1 / 1.3 < ratio.high
        assert ratio.shown
        assert ratio.needed is None
    assert found.p95.value == pytest.approx(1 / 1.3, rel=0.1)
    unpaired = holm([compare(side("fast", 1 / 1.3), side("slow", 1.0, seed=2), False)])[0]
    assert math.log(unpaired.p50.high / unpaired.p50.low) > 2 * math.log(found.p50.high / found.p50.low)


def wandering(name: str, blocks: int, memory: int, seed: int) -> Side:
    """Lognormal latencies on a level of σ 0.3 that is forgotten over so many loops; blocks of 100."""
    rng = np.random.default_rng(seed)
    keep, level, levels = math.exp(-1 / memory), 0.0, []
    for step in rng.normal(0, 0.3 * math.sqrt(1 - keep**2), 100 * blocks):
        level = keep * level + step
        levels.append(level)
    logs = np.array(levels) + rng.normal(0, 0.3, len(levels))
    return dataclasses.replace(
        sampled(name, [100] * blocks), latencies=tuple(np.exp(logs).reshape(blocks, 100))
    )


def test_two_runs_no_longer_than_their_level_lasts_are_not_compared() -> None:
    short = compare(wandering("a", 10, 300, 1), wandering("bb", 10, 300, 2), False, same_run=False)
    for ratio in (short.p50, short.p95, short.throughput, short.goodput):
        assert (ratio.low, ratio.high) == (None, None)
        assert ratio.memory_seconds is not None
        assert ratio.needed_seconds == pytest.approx(3 * ratio.memory_seconds, rel=0.02)
        assert "since latency changes slowly, over about" in ratio.missing
    long = compare(wandering("a", 40, 30, 1), wandering("bb", 40, 30, 2), False, same_run=False)
    assert long.p50.low < 1 < long.p50.high
    assert long.throughput.low is not None


def test_goodput_of_zero_is_no_infinity() -> None:
    found = against(side("a", 1.0, failing=[150] * 8), side("b", 1.0, seed=2))
    assert found.goodput.value == pytest.approx(0.5 / 150.5)
    assert found.goodput.shown


def test_holm_steps_down_and_keeps_order() -> None:
    assert holm_adjust([0.01, 0.04, None, 0.03]) == [pytest.approx(0.03), 0.06, None, 0.06]
    assert holm_adjust([0.9, 0.8]) == [1.0, 1.0]


def test_holm_may_withdraw_what_one_comparison_would_show() -> None:
    weak = compare(side("a", 0.96, loops=100), side("b", 1.0, loops=100, seed=2), paired=True)
    alone = holm([weak])[0].p50
    p = alone.p_value
    assert p is not None
    count = math.ceil(0.05 / p) + 1
    among = holm([weak] * count)[0].p50
    assert among.p_value == pytest.approx(min(1.0, p * count))
    assert not among.shown


def recorded(seed: int, factor: float, drift: float = 1.0) -> tuple[object, object]:
    rng = np.random.default_rng(seed)
    trials, records = [], []
    for block in range(4):
        trials.append(trial(block, "gathered", block * 50_000, block * 50_000 + 30_000, block=block))
        models = rng.lognormal(4, 0.3, 150) * factor * drift**block
        records += [loop(block * 50_000 + k * 200, model=float(m), trial=block) for k, m in enumerate(models)]
    return run(trials, seed=seed), records


def test_recorded_runs_are_compared_unpaired_unless_tapes_match() -> None:
    one, two = recorded(1, 1.0), recorded(2, 1.5)
    tables = [tabulate(records) for _, records in (one, two)]  # type: ignore[arg-type]
    groups = [measure(made, table) for (made, _), table in zip((one, two), tables, strict=True)]  # type: ignore[arg-type]
    (found,) = compare_runs((one[0], two[0]), (tables[0], tables[1]), (groups[0], groups[1]))  # type: ignore[arg-type]
    assert found.paired is False
    assert found.p50.low < 1.5 < found.p50.high
    assert found.p50.shown
    same = compare_runs((one[0], one[0]), (tables[0], tables[0]), (groups[0], groups[0]))  # type: ignore[arg-type]
    assert same[0].paired is True
    assert same[0].p95.value == pytest.approx(1.0)


def test_drift_widens_the_comparison_of_two_recorded_runs() -> None:
    made, records = recorded(1, 1.0, drift=1.5)
    table = tabulate(records)  # type: ignore[arg-type]
    (group,) = measure(made, table)  # type: ignore[arg-type]
    other = dataclasses.replace(made, seed=2)  # type: ignore[type-var]
    (found,) = compare_runs((made, other), (table, table), ([group], [group]))  # type: ignore[arg-type]
    within = compare(side_of(group, table), side_of(group, table), paired=False)
    assert width(found.p50) > 1.2 * width(within.p50)


def test_blocks_that_depend_on_each_other_widen_the_comparison_of_two_runs() -> None:
    rng = np.random.default_rng(6)
    walk = np.exp(np.linspace(0, 0.5, 10))
    calm = [rng.lognormal(0, 0.1, 50) for _ in range(10)]
    drifting = [block * step for block, step in zip(calm, walk, strict=True)]
    alternating = [block * (1.3 if k % 2 else 1.0) for k, block in enumerate(calm)]
    assert dependence(drifting, drifting) == pytest.approx(0.8)  # as much as 10 blocks may say
    assert dependence(alternating, alternating) == 0.0
    assert dependence([np.empty(0)], [np.ones(3)]) == 0.0
    assert dependence([np.ones(3)] * 4, [np.ones(3)] * 4) == 0.0


def counted(
    done: Sequence[int],
    seconds: Sequence[float] | None = None,
    failures: Sequence[tuple[int, int]] | None = None,
    latencies: Sequence[Sequence[float]] | None = None,
) -> Side:
    """Blocks with these loops done, in these seconds (10 each)."""
    return Side(
        name="counted",
        latencies=tuple(np.asarray(block, dtype=float) for block in latencies or [[1.0]] * len(done)),
        seconds=tuple(seconds or [10.0] * len(done)),
        done=tuple(done),
        good=tuple(done),
        failures=tuple(failures or [(0, n) for n in done]),
    )


def width(found: Ratio) -> float:
    assert found.low is not None
    assert found.high is not None
    return math.log(found.high / found.low)


ONE = counted([120, 150, 90, 130], [10, 12, 9, 11])

OTHER = counted([100, 95, 110, 105, 99], [10, 8, 11, 10, 7])

LOGS = [np.log((np.array(side_.done) + 0.5) / np.array(side_.seconds)) for side_ in (ONE, OTHER)]


def test_ratio_of_rates_of_two_runs_is_welchs() -> None:
    expected = stats.ttest_ind(*LOGS, equal_var=False)
    low, high = expected.confidence_interval(0.95)
    found = compare(ONE, OTHER, paired=False)
    assert found.blocks == 4
    for ratio in (found.throughput, found.goodput):
        assert ratio.value == pytest.approx(math.exp(LOGS[0].mean() - LOGS[1].mean()))
        assert (ratio.low, ratio.high) == pytest.approx((math.exp(low), math.exp(high)))
        assert ratio.p_value == pytest.approx(expected.pvalue)


def test_ratio_of_rates_within_a_run_is_the_paired_t_of_the_blocks() -> None:
    four = counted(OTHER.done[:4], OTHER.seconds[:4])
    expected = stats.ttest_rel(LOGS[0], LOGS[1][:4])
    low, high = expected.confidence_interval(0.95)
    found = compare(ONE, four, paired=True).throughput
    assert (found.low, found.high) == pytest.approx((math.exp(low), math.exp(high)))
    assert found.p_value == pytest.approx(expected.pvalue)


def test_rates_that_never_vary_are_known_exactly() -> None:
    found = compare(counted([150] * 4), counted([100] * 3), paired=False).throughput
    assert (found.value, found.low, found.high) == pytest.approx((150.5 / 100.5,) * 3)
    assert found.p_value == 0.0
    assert compare(counted([150] * 4), counted([150] * 3), paired=False).throughput.p_value == 1.0


def test_ratio_of_rates_of_less_than_three_blocks_has_no_interval() -> None:
    found = compare(counted([30, 60], [10, 5]), counted([40, 20], [8, 12]), paired=True).throughput
    assert found == Ratio(2.0, needed=10)
    assert compare(counted([10, 20]), counted([45]), paired=False).throughput == Ratio(1 / 3, needed=30)
    assert compare(counted([10, 20]), counted([0, 0]), paired=True).throughput == Ratio(None, needed=60)
    many = compare(counted([100] * 8), counted([100] * 2), paired=False)
    assert (many.throughput.low, many.failures.low, many.blocks) == (None, None, 2)


def test_blocks_of_no_length_are_no_division_by_zero() -> None:
    none = counted([1, 2, 3], [0.0, 0.0, 0.0])
    assert compare(none, none, paired=True).throughput.value == 1.0
    short = counted([1, 2], [0.0, 0.0])
    assert compare(short, short, paired=True).throughput.value == 1.0


def test_side_without_blocks_needs_all_of_them() -> None:
    found = compare(counted([]), counted([100] * 3), paired=False)
    assert [found.p50, found.p95, found.p99] == [Ratio(None, needed=n) for n in (60, 300, 1500)]
    assert found.failures == Difference(None)
    assert compare(counted([100] * 3), counted([]), paired=False).failures == Difference(None)


def test_blocks_are_paired_only_where_the_comparison_is() -> None:
    fast, slow = side("fast", 1 / 1.3), side("slow", 1.0, seed=2)
    paired, alone = compare(fast, slow, paired=True), compare(fast, slow, paired=False)
    assert width(alone.p50) > 3 * width(paired.p50)
    assert alone.p50.value == pytest.approx(paired.p50.value)


def test_pairs_are_joined_alike_where_one_side_is_thin() -> None:
    found = compare(side("thin", 1.0, loops=60), side("full", 1.0, loops=150, seed=2), paired=True)
    assert found.p95.low is not None  # four pairs of blocks
    found = compare(side("thin", 1.0, loops=30), side("full", 1.0, loops=150, seed=2), paired=True)
    assert found.p95.low is None  # 240 pairs are not three hundred


def test_run_that_is_too_thin_gives_no_interval_whichever_it_is() -> None:
    thin, full = side("thin", 1.0, blocks=5, loops=30), side("full", 1.0)
    for pair in ((thin, full), (full, thin)):
        found = compare(*pair, paired=False).p95
        assert (found.low, found.needed) == (None, 150)


def test_needed_loops_are_rounded_up_to_tens() -> None:
    def needed(*sizes: int) -> int | None:
        one = counted(sizes, latencies=[[1.0] * n for n in sizes])
        return compare(one, one, paired=True).p50.needed

    assert needed(19, 19, 19) == 10
    assert needed(19, 10, 10) == 30
    assert needed(50, 5, 4) == 10  # one is missing
    assert needed(50, 5, 5) == 20  # enough in all, in blocks too uneven: one more block's worth


def test_bias_of_a_quantile_joins_the_interval() -> None:
    """Halves at 1 and at 4: a median of 2.5 of the whole, of 2 of the halves; twice that step."""
    steps = counted([40] * 3, latencies=[[1.0] * 20 + [4.0] * 20] * 3)
    flat = counted([40] * 3, latencies=[[1.0] * 40] * 3)
    for paired in (True, False):
        found = compare(steps, flat, paired).p50
        assert (found.low, found.value, found.high) == pytest.approx((2.5 / 1.25**2, 2.5, 2.5 * 1.25**2))


def test_correlation_of_eight_tenths_makes_everything_between_runs_three_times_as_wide() -> None:
    drift = [[math.exp(k)] for k in range(10)]
    assert dependence([np.array(b) for b in drift], [np.array(b) for b in drift]) == pytest.approx(0.8)
    done = [(100, 150, 90, 130, 120)[k % 5] for k in range(10)]
    failures = [((0, 30, 10)[k % 3], 100) for k in range(10)]
    one = counted(done, failures=failures, latencies=drift)
    other = counted(done[::-1], failures=failures[1:] + failures[:1], latencies=drift)
    for paired in (True, False):
        within, between = (compare(one, other, paired, same_run) for same_run in (True, False))
        assert width(between.throughput) == pytest.approx(3 * width(within.throughput))
        halves = [found.failures.high - found.failures.value for found in (within, between)]
        assert halves[1] == pytest.approx(3 * halves[0])


def test_failures_are_compared_by_blocks() -> None:
    rates = [np.array([0.02, 0.30, 0.10, 0.18]), np.array([0.05, 0.40, 0.31, 0.22])]
    sides = [counted([100] * 4, failures=[(round(100 * rate), 100) for rate in side_]) for side_ in rates]
    for paired in (True, False):
        found = compare(sides[0], sides[1], paired).failures
        test = stats.ttest_rel(*rates) if paired else stats.ttest_ind(*rates, equal_var=False)
        low, high = test.confidence_interval(0.95)
        assert found.value == pytest.approx(-0.095)
        assert (found.low, found.high) == pytest.approx((low, high))
    assert compare(*sides, paired=True).failures.p_value == pytest.approx(stats.ttest_rel(*rates).pvalue)


def test_failures_that_never_vary_are_as_certain_as_independent_loops() -> None:
    one = counted([100] * 4, failures=[(10, 100)] * 4)
    none = counted([200] * 4, failures=[(0, 200)] * 4)
    p, q = 41 / 402, 1 / 802
    error = math.sqrt(p * (1 - p) / 400 + q * (1 - q) / 800)
    fewer = counted([200] * 3 + [200], failures=[(0, 200)] * 3 + [(0, 0)])
    assert compare(one, fewer, paired=False).failures.p_value == pytest.approx(
        2 * stats.t.sf(0.1 / math.sqrt(p * (1 - p) / 400 + 1 / 602 * 601 / 602 / 600), 5)
    )
    for paired, freedom in ((True, 3), (False, 6)):
        found = compare(one, none, paired).failures
        half = stats.t.ppf(0.975, freedom) * error
        assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1 - half, 0.1 + half))
        assert found.p_value == pytest.approx(2 * stats.t.sf(0.1 / error, freedom))


def test_share_of_failures_differs_by_no_more_than_all_of_it() -> None:
    every, none = counted([4] * 3, failures=[(4, 4)] * 3), counted([4] * 3, failures=[(0, 4)] * 3)
    assert compare(every, none, paired=True).failures.high == 1.0
    assert compare(none, every, paired=True).failures.low == -1.0


def test_block_in_which_nothing_ended_breaks_no_pair() -> None:
    gap = counted([100] * 4, failures=[(10, 100), (0, 0), (12, 100), (9, 100)])
    found = compare(gap, counted([100] * 4, failures=[(20, 100)] * 4), paired=True).failures
    assert found.value == pytest.approx(31 / 300 - 0.2)
    assert found.low is not None
    empty = counted([0] * 4, failures=[(0, 0)] * 4)
    for pair in ((empty, gap), (gap, empty)):
        assert compare(*pair, paired=True).failures == Difference(None)


def test_difference_is_shown_below_five_per_cent_and_if_relevant() -> None:
    found = compare(ONE, OTHER, paired=False)
    at = dataclasses.replace(
        found,
        p50=Ratio(1.2, 1.0, 1.44, SIGNIFICANCE),
        p95=Ratio(1.2, 1.001, 1.44, 0.99 * SIGNIFICANCE),
        failures=Difference(0.01, 0.005, 0.015, 0.001),
    )
    (decided,) = holm([at])
    assert (decided.p50.shown, decided.p95.shown, decided.failures.shown) == (False, True, True)


def test_dependence_is_the_lag_one_correlation_corrected_for_few_blocks() -> None:
    def alike(*logs: float) -> float:
        blocks = [np.array([math.exp(log)]) for log in logs]
        return dependence(blocks, blocks)

    assert alike(0, 0, 1, 1, 0, 0, 1, 1, 0, 0) == pytest.approx((0.1 + 0.1) / 0.6)
    assert alike(0, 2, 3, 1) == pytest.approx((0.25 - 0.15) / 0.2)
    walk = [np.array([math.exp(k)]) for k in range(10)]
    assert dependence(walk, walk[:6]) == pytest.approx(1 - 2 / 6)  # as much as six blocks may say
    assert dependence([np.empty(0), np.ones(3), np.ones(3)], walk) == 0.0
    assert dependence([], []) == 0.0


def switching(name: str, lasting: int, seed: int) -> Side:
    """Ten blocks of 400 loops in 10 s, three times as slow for `lasting` loops, then fast for as many."""
    rng = np.random.default_rng(seed)
    slow = (np.arange(4000) + rng.integers(2 * lasting)) // lasting % 2
    loops = np.exp(rng.normal(0, 0.3, 4000)) * np.where(slow, 3.0, 1.0)
    return Side(name, tuple(loops.reshape(10, 400)), (10.0,) * 10, (400,) * 10, (400,) * 10, ((0, 400),) * 10)


def test_latency_that_changes_slowly_gives_no_interval_but_the_duration_it_takes() -> None:
    found = compare(switching("a", 900, 1), switching("b", 900, 5), paired=True)
    for ratio in (found.p50, found.p95, found.p99, found.throughput, found.goodput):
        assert ratio.low is None
        assert ratio.memory_seconds is not None
        assert ratio.needed_seconds is not None
        assert 3 < ratio.memory_seconds < 40  # 900 loops are 22 s
        assert ratio.needed_seconds == pytest.approx(12 * ratio.memory_seconds, rel=0.01)
        assert ratio.needed == pytest.approx((ratio.needed_seconds - 100) * 40, rel=0.02)
        assert ratio.missing == (
            f"about {ratio.needed} more of each needed, {ratio.needed_seconds:.0f} s of each in all, "
            f"since latency changes slowly, over about {ratio.memory_seconds:.1f} s"
        )
    assert found.failures.low is not None
    assert ratio.missing in verdict(found).sentence


def test_latency_that_changes_soon_is_compared_in_longer_blocks() -> None:
    one, other = switching("a", 130, 1), switching("b", 110, 5)
    found = compare(one, other, paired=True).p50
    assert found.low is not None
    assert found.low < 1 < found.high


def test_thin_blocks_need_no_duration_in_words() -> None:
    assert Ratio(1.0, needed=240).missing == "about 240 more of each needed"


def test_strategies_are_compared_on_the_blocks_that_both_ran() -> None:
    trials, records = [], []
    for strategy, first, slow in (("a", 0, 1.0), ("b", 1, 2.0), ("c", 9, 1.0)):
        for block in range(first, first + 4):
            start = len(trials) * 20_000
            factor = 50.0 if (strategy, block) in (("a", 0), ("b", 4)) else 1.0  # what only one ran
            trials.append(trial(len(trials), strategy, start, start + 10_000, block=block))
            records += [
                loop(
                    start + k * 10,
                    model=factor * slow * (100 + k),
                    strategy=strategy,
                    trial=len(trials) - 1,
                    status="error" if strategy == "b" and k >= 20 else "ok",
                )
                for k in range(25)
            ]
    table = tabulate(records)
    groups = measure(run(trials), table)
    (found,) = compare_strategies(groups, table)  # c ran none of a's
    assert (found.strategy, found.baseline, found.blocks, found.paired) == ("b", "a", 3, True)
    assert found.p50.value == pytest.approx(2 * 109.5 / 112)
    assert found.throughput.value == pytest.approx(20.5 / 25.5)
    assert found.failures.value == 0.2
    assert compare_strategies([], table) == ()
    nothing = dataclasses.replace(groups[0], blocks=())
    for pair in ((nothing, groups[0]), (groups[0], nothing)):
        assert compare_runs((run(trials), run(trials)), (table, table), ([pair[0]], [pair[1]])) == ()


def sampled(name: str, done: list[int], scale: float = 1.0, failed: int = 0) -> Side:
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
    found = compare(sampled("a", [15, 20]), sampled("bb", [30, 40]), paired=True)
    assert found.throughput.value == pytest.approx(0.5)
    assert (found.throughput.needed, found.throughput.low) == (25, None)  # 3 · 20, less the 35 there are
    assert compare(sampled("a", [100, 20]), sampled("bb", [30, 40]), paired=True).throughput.needed == 10
    none = compare(sampled("a", [15, 20]), sampled("bb", [0, 0]), paired=True).throughput
    assert (none.value, none.needed) == (None, 60)


def test_failures_differ_from_one_point_on():
    less = holm([compare(sampled("a", [2000] * 4, failed=19), sampled("bb", [2000] * 4), paired=True)])[0]
    more = holm([compare(sampled("a", [2000] * 4, failed=21), sampled("bb", [2000] * 4), paired=True)])[0]
    assert (less.failures.p_value < 0.05, less.failures.shown) == (True, False)
    assert more.failures.shown
    assert verdict(less).metric == "p95"
    assert verdict(more).metric == "failures"


def test_blocks_are_taken_to_depend_on_their_neighbours_only_between_runs():
    def drifting(name: str, scale: float) -> Side:
        one = sampled(name, [100] * 8, scale)
        return dataclasses.replace(
            one, latencies=tuple(block * 1.2**k for k, block in enumerate(one.latencies))
        )

    sides = drifting("a", 1.0), drifting("bb", 1.1)
    assert compare(*sides, paired=True) == compare(*sides, paired=True, same_run=True)
    within, across = (compare(*sides, paired=True, same_run=same).p50 for same in (True, False))
    assert within.value == pytest.approx(across.value)
    assert across.high / across.low > 1.02 * within.high / within.low


def test_dependence_between_runs_widens_by_its_formula_paired_or_not():
    rng = np.random.default_rng(5)
    drift = [0, 1, 2, 1, 0, 1, 2, 1, 0, 1]  # r = 0.163; a level of 11 loops a block is not looked for
    groups = tuple(np.full(11, np.exp(value)) for value in drift)
    ours, theirs = (
        dataclasses.replace(
            sampled(name, [100] * 10), latencies=groups, done=tuple(rng.integers(80, 120, 10))
        )
        for name in ("a", "bb")
    )
    r = dependence(groups, groups)
    for paired in (True, False):
        within, across = (compare(ours, theirs, paired, same_run=same).throughput for same in (True, False))
        widths = [math.log(ratio.high / ratio.low) for ratio in (within, across)]
        assert widths[1] / widths[0] == pytest.approx(math.sqrt((1 + r) / (1 - r)))


def test_runs_without_any_spread_are_equal_or_certainly_not():
    same = compare(sampled("a", [100] * 4), sampled("bb", [100] * 4), paired=False).throughput
    assert (same.value, same.p_value) == (1.0, 1.0)
    twice = compare(sampled("a", [200] * 4), sampled("bb", [100] * 4), paired=False).throughput
    assert (twice.low, twice.p_value) == (twice.high, 0.0)


def test_bias_of_both_sides_joins_where_runs_are_not_paired():
    """The p50 of halves and wholes differ on one side alone: blocks whose second half is slower."""
    even = sampled("a", [40] * 5)
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


def test_dependence_of_blocks_is_corrected_for_how_few_there_are():
    logs = [0, 1, 2, 1, 0, 1, 2, 1, 0, 1]
    groups = [np.full(3, np.exp(value)) for value in logs]
    assert dependence(groups, groups) == pytest.approx((-0.01 / 4.9 + 1 / 10) / (1 - 4 / 10))
    few = groups[:4]  # r = 0: 0.25 / 0.2, but no more than 1 - 2/n
    assert dependence(few, few) == 0.5
    assert dependence(groups, [np.empty(0)]) == 0.0


def test_failure_rates_are_paired_only_where_the_comparison_is():
    ours, theirs = sampled("a", [200] * 5), sampled("bb", [200] * 5)
    drift = (10, 60, 20, 80, 40)
    ours = dataclasses.replace(ours, failures=tuple((failed + 6, 200) for failed in drift))
    theirs = dataclasses.replace(theirs, failures=tuple((failed, 200) for failed in drift))
    paired = compare(ours, theirs, paired=True).failures
    apart = compare(ours, theirs, paired=False).failures
    assert paired.value == apart.value == pytest.approx(0.03)
    assert apart.high - apart.low > 1.5 * (paired.high - paired.low)


@pytest.mark.parametrize("blocks", [3, 5, 10])
def test_interval_that_is_printed_is_the_one_that_decides(blocks: int) -> None:
    """Three strategies against a baseline: an interval excludes 1 exactly where it is shown."""
    shown = hidden = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)

        def made(name: str, factor: float, rng: np.random.Generator = rng) -> Side:
            loops, failed = 120, rng.integers(0, 12, blocks)
            return Side(
                name,
                tuple(
                    factor * np.exp(rng.normal(0, 0.3, loops) + rng.normal(0, 0.02)) for _ in range(blocks)
                ),
                (6.0,) * blocks,
                tuple(int(n) for n in rng.integers(100, 140, blocks)),
                tuple(int(n) for n in rng.integers(80, 100, blocks)),
                tuple((int(n), loops) for n in failed),
            )

        base = made("base", 1.0)
        found = holm([compare(made(name, 0.95), base, paired=True) for name in "abc"])
        for metric in ("p50", "p95", "throughput", "goodput", "failures"):
            figures = [getattr(one, metric) for one in found]
            levels = sorted((one.confidence for one in figures), reverse=True)
            assert all(level in (1 - 0.05 / 3, 1 - 0.05 / 2, 0.95) for level in levels)
            assert levels[0] == pytest.approx(1 - 0.05 / 3)
            assert {one.among for one in figures} == {3}
            for one in figures:
                nothing = 0.0 if metric == "failures" else 1.0
                excluded = not one.low <= nothing <= one.high
                if metric == "failures":
                    excluded = excluded and abs(one.value) >= 0.01
                assert one.shown == excluded == (one.p_value < 0.05 and (metric != "failures" or excluded))
                shown += one.shown
                hidden += not one.shown
        for one in found:
            sentence = verdict(one).sentence
            bounds = re.search(r"× \[([\d.]+), ([\d.]+)\]", sentence)
            if bounds and one.p95.needed is None and one.failures.shown is False:
                includes = float(bounds[1]) <= 1 <= float(bounds[2])
                assert includes == ("no difference" in sentence)
    assert min(shown, hidden) > 10


def test_level_of_an_interval_follows_the_step_at_which_it_was_decided() -> None:
    def at(p_value: float) -> Ratio:
        half = stats.t.ppf(0.975, 4) / stats.t.isf(p_value / 2, 4) * math.log(1.5)
        return Ratio(
            1.5, math.exp(math.log(1.5) - half), math.exp(math.log(1.5) + half), p_value, freedom=4.0
        )

    base = compare(sampled("a", [100] * 5), sampled("bb", [100] * 5), paired=True)
    ratios = [at(p_value) for p_value in (0.03, 0.001, 0.04)]
    found = [one.p50 for one in holm([dataclasses.replace(base, p50=ratio) for ratio in ratios])]
    assert [one.confidence for one in found] == pytest.approx([0.975, 1 - 0.05 / 3, 0.975])
    assert [one.shown for one in found] == [False, True, False]
    assert [one.p_value for one in found] == pytest.approx([0.06, 0.003, 0.06])
    assert found[0].low < 1 < found[0].high
    assert found[1].low > 1
    # At 95 % again: the interval of the comparison alone.
    assert found[0].interval() == pytest.approx((ratios[0].low, ratios[0].high))
    assert "(98.3 %, one of three)" in verdict(dataclasses.replace(base, p95=found[1])).sentence
