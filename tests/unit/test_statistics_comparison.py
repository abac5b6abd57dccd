"""Comparisons, verdicts and gates on blocks whose truth is known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest

from profiler.statistics.comparison import (
    Comparison,
    Side,
    compare,
    compare_runs,
    dependence,
    holm,
    holm_adjust,
)
from profiler.statistics.measure import measure
from profiler.statistics.objectives import parse_gates
from profiler.statistics.summary import summarise
from profiler.statistics.table import tabulate
from profiler.statistics.verdicts import decide, verdict
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


def recorded(seed: int, factor: float) -> tuple[object, object]:
    rng = np.random.default_rng(seed)
    trials, records = [], []
    for block in range(4):
        trials.append(trial(block, "gathered", block * 50_000, block * 50_000 + 30_000, block=block))
        models = rng.lognormal(4, 0.3, 150) * factor
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
    other = summarise(run(trials), records, baseline="gathered")
    assert other.comparisons[0].baseline == "gathered"
    assert other.verdicts[0].kind == "slower"


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
