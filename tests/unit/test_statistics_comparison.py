"""Comparisons, verdicts and gates on blocks whose truth is known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from profiler.statistics.comparison import (
    SIGNIFICANCE,
    Comparison,
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
from profiler.statistics.objectives import parse_gates
from profiler.statistics.quantiles import Estimate
from profiler.statistics.summary import summarise
from profiler.statistics.table import tabulate
from profiler.statistics.verdicts import decide, verdict
from profiler.statistics.windows import measure
from tests.unit.statistics_data import loop, run, trial


def side(
    name: str, scale: float, blocks: int = 8, loops: int = 150, failing: Sequence[int] = (), seed: int = 1
) -> Side:
    """Lognormal latencies around `scale` with a drift that all sides share."""
    rng = np.random.default_rng(seed)
    drift = np.exp(0.3 * np.sin(np.arange(blocks)))
    failed = failing or [0] * blocks
    return Side(
        name=name,
        latencies=tuple(scale * drift[b] * rng.lognormal(0, 0.3, loops) for b in range(blocks)),
        seconds=tuple([10.0] * blocks),
        done=tuple([loops] * blocks),
        good=tuple(loops - f for f in failed),
        failures=tuple((f, loops) for f in failed),
    )


def against(candidate: Side, baseline: Side, paired: bool = True) -> Comparison:
    return holm([compare(candidate, baseline, paired)])[0]


def test_the_paired_ratio_finds_the_truth_through_drift() -> None:
    found = against(side("fast", 1 / 1.3), side("slow", 1.0, seed=2))
    for name in ("p50", "p95"):
        ratio = getattr(found, name)
        assert ratio.low < 1 / 1.3 < ratio.high
        assert ratio.shown
        assert ratio.needed is None
    assert found.p95.value == pytest.approx(1 / 1.3, rel=0.1)
    unpaired = holm([compare(side("fast", 1 / 1.3), side("slow", 1.0, seed=2), False, same_run=False)])[0]
    assert math.log(unpaired.p50.high / unpaired.p50.low) > 2 * math.log(found.p50.high / found.p50.low)


def test_a_verdict_names_factor_interval_and_quantile() -> None:
    found = against(side("semaphore:8", 1 / 1.31), side("sequential", 1.0, seed=2))
    said = verdict(found)
    ratio = found.p95
    assert said.kind == "faster"
    assert said.sentence == (
        f"semaphore:8 is {1 / ratio.value:.2f}× [{1 / ratio.high:.2f}, {1 / ratio.low:.2f}] "
        "faster than sequential at p95."
    )
    slower = verdict(against(side("sequential", 1.0, seed=2), side("semaphore:8", 1 / 1.31)))
    assert slower.kind == "slower"
    assert slower.sentence.startswith(f"sequential is {1 / ratio.value:.2f}× [")


def test_no_difference_is_an_answer() -> None:
    said = verdict(against(side("a", 1.0), side("b", 1.0, seed=2)))
    assert said.kind == "no_difference"
    assert "a against b: no difference shown at p95 (time " in said.sentence


def test_too_few_says_how_many_more() -> None:
    found = against(side("a", 0.5, blocks=2, loops=30), side("b", 1.0, blocks=2, loops=30, seed=2))
    assert (found.p50.low, found.p95.low) == (None, None)
    said = verdict(found)
    assert said.kind == "too_few"
    assert said.sentence == (
        "a against b: too few loops: about 240 more of each needed, in at least 3 blocks "
        f"(so far {1 / found.p50.value:.2f}× faster at p50)."
    )


def test_too_few_names_goodput_where_failures_are_apart() -> None:
    fails = side("a", 0.5, blocks=2, loops=30, failing=(15, 15))
    said = verdict(against(fails, side("b", 1.0, blocks=2, loops=30, seed=2)))
    assert said.kind == "too_few"
    assert said.sentence.endswith("(so far 0.50× the goodput, 50 points more of its loops fail).")


def test_enough_for_p50_but_not_for_p95() -> None:
    found = against(side("a", 0.5, blocks=4, loops=40), side("b", 1.0, blocks=4, loops=40, seed=2))
    said = verdict(found)
    assert (said.kind, said.metric) == ("faster", "p50")
    assert said.sentence.endswith("at p50; too few loops for p95: about 140 more of each needed.")


def test_where_failures_differ_goodput_is_named_whatever_it_shows() -> None:
    fails = side("a", 0.5, failing=[60] * 8)
    worse = verdict(against(fails, side("b", 1.0, seed=2)))
    assert (worse.kind, worse.metric) == ("less_goodput", "goodput")
    assert worse.sentence.startswith("a has 1.66× [")
    assert worse.sentence.endswith("] less goodput than b: its failure rate is +40.0 points.")
    better = verdict(against(side("b", 1.0, seed=2), fails))
    assert better.kind == "more_goodput"
    assert better.sentence.startswith("b has 1.66× [")
    assert better.sentence.endswith("] the goodput of a: its failure rate is -40.0 points.")
    # As many good loops a second, since it tries more of them.
    tries = dataclasses.replace(fails, good=(150,) * 8)
    alike = verdict(against(tries, side("b", 1.0, seed=2)))
    assert alike.kind == "no_difference"
    assert alike.sentence == (
        "a against b: no difference in goodput shown (1.00× [1.00, 1.00]): its failure rate is +40.0 points."
    )
    found = against(fails, side("b", 1.0, seed=2))
    found = verdict(dataclasses.replace(found, goodput=dataclasses.replace(found.goodput, needed=60)))
    assert found.kind == "too_few"
    assert found.sentence.startswith("a against b: too few loops to compare goodput: its failure rate is ")


def test_slower_so_far_is_said_too() -> None:
    found = verdict(against(side("a", 3.0, blocks=2, loops=30), side("b", 1.0, blocks=2, loops=30)))
    assert found.sentence.endswith("(so far 3.00× slower at p50).")
    assert "in at least 3 blocks" in found.sentence
    many = verdict(against(side("a", 30.0, blocks=3, loops=5), side("b", 1.0, blocks=3, loops=5)))
    assert many.sentence.endswith("more of each needed (so far 30.0× slower at p50).")


def test_nothing_completed_is_too_few() -> None:
    empty = dataclasses.replace(side("a", 1.0), latencies=(np.empty(0),) * 8)
    assert verdict(against(empty, side("b", 1.0))).kind == "too_few"


def test_failures_that_differ_put_goodput_first() -> None:
    faster_but_failing = side("gathered", 0.5, failing=[130, 135, 140, 130, 128, 138, 135, 131])
    found = against(faster_but_failing, side("sequential", 1.0, seed=2))
    assert found.failures.shown
    assert found.failures.low < 0.89 < found.failures.high
    said = verdict(found)
    assert (said.metric, said.kind) == ("goodput", "less_goodput")
    assert "less goodput than sequential" in said.sentence


def test_a_few_failures_everywhere_do_not_take_over() -> None:
    found = against(side("a", 0.5, failing=[1] * 8), side("b", 1.0, failing=[0] * 8, seed=2))
    assert not found.failures.shown  # 0.7 points: shown perhaps, relevant no
    assert verdict(found).metric == "p95"


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


def test_a_gate_fails_only_when_the_whole_interval_is_beyond_it() -> None:
    (gate,) = parse_gates("p95 > +5%")
    slow = against(side("new", 1.5), side("old", 1.0, seed=2))
    (outcome,) = decide([gate], [slow])
    assert outcome.holds is False
    assert outcome.sentence.startswith("new against old: p95 > +5% fails: p95 +")
    straddling = dataclasses.replace(slow, p95=dataclasses.replace(slow.p95, value=1.10, low=1.04, high=1.17))
    assert decide([gate], [straddling])[0].holds is True
    thin = against(side("new", 1.5, loops=20), side("old", 1.0, loops=20, seed=2))
    assert decide([gate], [thin])[0].holds is None
    assert "too few loops: about 140 more" in decide([gate], [thin])[0].sentence


def test_gates_on_rates_and_errors_look_the_other_way() -> None:
    gates = parse_gates("goodput < -10%, errors > +5%")
    failing = against(side("new", 1.0, failing=[60] * 8), side("old", 1.0, seed=2))
    assert [outcome.holds for outcome in decide(gates, [failing])] == [False, False]
    better = against(side("new", 1.0), side("old", 1.0, failing=[60] * 8, seed=2))
    assert [outcome.holds for outcome in decide(gates, [better])] == [True, True]


def test_many_decisions_widen_the_intervals() -> None:
    (gate,) = parse_gates("p95 > +5%")
    base = against(side("new", 1.5), side("old", 1.0, seed=2))
    close = dataclasses.replace(base, p95=dataclasses.replace(base.p95, value=1.10, low=1.055, high=1.147))
    assert decide([gate], [close])[0].holds is False
    assert all(outcome.holds for outcome in decide([gate], [close] * 8))


def recorded(seed: int, factor: float, drift: float = 1.0) -> tuple[object, object]:
    rng = np.random.default_rng(seed)
    trials, records = [], []
    for block in range(4):
        trials.append(trial(block, "gathered", block * 50_000, block * 50_000 + 30_000, block=block))
        models = rng.lognormal(4, 0.3, 150) * factor * drift**block
        records += [loop(block * 50_000 + k * 200, model=float(m), trial=block) for k, m in enumerate(models)]
    return run(trials, seed=seed), records


def test_two_recorded_runs_are_compared_unpaired_unless_tapes_match() -> None:
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


def test_a_summary_carries_comparisons_verdicts_and_objectives() -> None:
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


# ── against what SciPy and arithmetic say ──────────────────────────────────────────────────────


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


def test_a_ratio_of_rates_of_two_runs_is_welchs() -> None:
    expected = stats.ttest_ind(*LOGS, equal_var=False)
    low, high = expected.confidence_interval(0.95)
    found = compare(ONE, OTHER, paired=False)
    assert found.blocks == 4
    for ratio in (found.throughput, found.goodput):
        assert ratio.value == pytest.approx(math.exp(LOGS[0].mean() - LOGS[1].mean()))
        assert (ratio.low, ratio.high) == pytest.approx((math.exp(low), math.exp(high)))
        assert ratio.p_value == pytest.approx(expected.pvalue)


def test_a_ratio_of_rates_within_a_run_is_the_paired_t_of_the_blocks() -> None:
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


def test_less_than_three_blocks_give_a_ratio_of_rates_without_an_interval() -> None:
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


def test_a_side_without_blocks_needs_all_of_them() -> None:
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


def test_a_run_that_is_too_thin_gives_no_interval_whichever_it_is() -> None:
    thin, full = side("thin", 1.0, blocks=5, loops=30), side("full", 1.0)
    for pair in ((thin, full), (full, thin)):
        found = compare(*pair, paired=False).p95
        assert (found.low, found.needed) == (None, 150)


def test_how_many_loops_are_missing_is_rounded_up_to_tens() -> None:
    def needed(*sizes: int) -> int | None:
        one = counted(sizes, latencies=[[1.0] * n for n in sizes])
        return compare(one, one, paired=True).p50.needed

    assert needed(19, 19, 19) == 10
    assert needed(19, 10, 10) == 30
    assert needed(50, 5, 4) == 10  # one is missing
    assert needed(50, 5, 5) == 20  # enough in all, in blocks too uneven: one more block's worth


def test_the_bias_of_a_quantile_joins_the_interval() -> None:
    """Halves at 1 and at 4: a median of 2.5 of the whole, of 2 of the halves; twice that step."""
    steps = counted([40] * 3, latencies=[[1.0] * 20 + [4.0] * 20] * 3)
    flat = counted([40] * 3, latencies=[[1.0] * 40] * 3)
    for paired in (True, False):
        found = compare(steps, flat, paired).p50
        assert (found.low, found.value, found.high) == pytest.approx((2.5 / 1.25**2, 2.5, 2.5 * 1.25**2))


def test_a_correlation_of_eight_tenths_makes_everything_between_runs_three_times_as_wide() -> None:
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


def test_a_share_of_failures_differs_by_no_more_than_all_of_it() -> None:
    every, none = counted([4] * 3, failures=[(4, 4)] * 3), counted([4] * 3, failures=[(0, 4)] * 3)
    assert compare(every, none, paired=True).failures.high == 1.0
    assert compare(none, every, paired=True).failures.low == -1.0


def test_a_block_in_which_nothing_ended_breaks_no_pair() -> None:
    gap = counted([100] * 4, failures=[(10, 100), (0, 0), (12, 100), (9, 100)])
    found = compare(gap, counted([100] * 4, failures=[(20, 100)] * 4), paired=True).failures
    assert found.value == pytest.approx(31 / 300 - 0.2)
    assert found.low is not None
    empty = counted([0] * 4, failures=[(0, 0)] * 4)
    for pair in ((empty, gap), (gap, empty)):
        assert compare(*pair, paired=True).failures == Difference(None)


def test_what_is_shown_is_below_five_per_cent_and_relevant() -> None:
    found = compare(ONE, OTHER, paired=False)
    at = dataclasses.replace(
        found,
        p50=Ratio(1.2, 1.0, 1.4, SIGNIFICANCE),
        p95=Ratio(1.2, 1.0, 1.4, 0.99 * SIGNIFICANCE),
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


# ── in words ───────────────────────────────────────────────────────────────────────────────────

KNOWN = against(side("a", 1.0), side("b", 1.0, seed=2))


def changed(**figures: Ratio | Difference) -> Comparison:
    return dataclasses.replace(KNOWN, **figures)


def test_what_is_shown_at_p50_alone_is_said_beside_p95() -> None:
    found = changed(p95=Ratio(0.9, 0.8, 1.01), p50=Ratio(0.5, 0.4, 0.8, shown=True))
    assert verdict(found).sentence == (
        "a against b: no difference shown at p95 (time 0.90× [0.80, 1.01]); "
        "at p50 it is 2.00× [1.25, 2.50] faster."
    )


def test_numbers_from_ten_on_have_one_decimal_and_unknown_ones_are_dashes() -> None:
    assert (
        "a is 12.5× [9.90, 20.0] slower" in verdict(changed(p95=Ratio(12.5, 9.9, 20.0, shown=True))).sentence
    )
    assert "a is 2.00× [–, –] faster" in verdict(changed(p95=Ratio(0.5, shown=True))).sentence
    assert "a is –× [–, –] faster" in verdict(changed(p95=Ratio(0.0, shown=True))).sentence
    assert "(time –× [–, –])" in verdict(changed(p95=Ratio(None))).sentence


def test_so_far_names_whoever_fails_less_too() -> None:
    few, no = Ratio(1.5, needed=10), Ratio(3.0, needed=10)
    found = changed(p50=few, p95=few, goodput=no, failures=Difference(-1.0))
    assert verdict(found).sentence.endswith("(so far 3.00× the goodput, 100 points fewer of its loops fail).")
    found = changed(p50=few, p95=few, goodput=no, failures=Difference(0.012))
    assert verdict(found).sentence.endswith("(so far 3.00× the goodput, 1 points more of its loops fail).")
    found = changed(p50=few, p95=few, goodput=no, failures=Difference(0.01))
    assert verdict(found).sentence.endswith("(so far 1.50× slower at p50).")


def test_the_summaries_add_how_many_good_loops_there_were() -> None:
    def summary(goodput: float | None, failed: float | None) -> SimpleNamespace:
        return SimpleNamespace(goodput=Estimate(goodput), failure_rate=Estimate(failed))

    found = changed(
        failures=Difference(0.4, 0.3, 0.5, 0.001, shown=True), goodput=Ratio(0.5, 0.4, 0.8, 0.001, shown=True)
    )
    absolute = "a has 2.00× [1.25, 2.50] less goodput than b"
    points = f"{absolute}: its failure rate is +40.0 points."
    assert verdict(found, summary(3.456, 0.4), summary(10.0, 0.005)).sentence == (  # type: ignore[arg-type]
        f"{absolute} (3.46 against 10.00 good loops/s): 40 % of its loops fail, of the other's 0.5 %."
    )
    assert verdict(found, summary(0.0, 1.0), summary(2.0, 0.0)).sentence == (  # type: ignore[arg-type]
        f"{absolute} (0.00 against 2.00 good loops/s): 100 % of its loops fail, of the other's 0 %."
    )
    whole = summary(1.0, 0.1)
    for pair in ((None, whole), (whole, None), (whole, summary(None, 0.1)), (summary(1.0, None), whole)):
        assert verdict(found, *pair).sentence == points  # type: ignore[arg-type]


def test_a_gate_prints_the_interval_that_it_was_decided_by() -> None:
    slow = changed(p95=Ratio(1.5, 1.1, 2.1), failures=Difference(0.05, 0.03, 0.09))
    gates = parse_gates("p95 > +5%, errors > +1%")
    one, two = (outcome.sentence for outcome in decide(gates, [slow]))
    assert one == "a against b: p95 > +5% fails: p95 +50.0 % [+10.0, +110.0]."
    assert two == "a against b: errors > +1% fails: errors +5.0 % [+3.0, +9.0]."
    assert decide(gates[:1], [slow])[0].sentence == one
    assert "p95 +50.0 % [+7.1, +116.1]" in decide(gates[:1], [slow] * 3)[0].sentence
    sentences = [outcome.sentence for outcome in decide(gates, [slow] * 4)]  # z(1 - 0.05/8) = 1.274 z(0.975)
    assert sentences[0] == "a against b: p95 > +5% holds: p95 +50.0 % [+1.0, +130.3]."
    assert sentences[4] == "a against b: errors > +1% fails: errors +5.0 % [+2.5, +10.1]."


def test_an_interval_that_touches_a_gate_holds() -> None:
    found = changed(goodput=Ratio(0.25, 0.125, 0.5), failures=Difference(0.25, 0.125, 0.5))
    outcomes = decide(parse_gates("goodput < -50%, errors > +12.5%"), [found])
    assert [outcome.holds for outcome in outcomes] == [True, True]


def test_failures_of_too_few_loops_decide_no_gate() -> None:
    (outcome,) = decide(parse_gates("errors > +1%"), [changed(failures=Difference(0.5))])
    assert outcome.holds is None
    assert outcome.sentence == "a against b: errors > +1%: not decided, too few loops."
