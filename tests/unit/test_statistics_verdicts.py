"""Verdicts and gates in words, from comparisons whose truth is known."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from profiler.statistics.comparison import Comparison, Difference, Ratio
from profiler.statistics.gates import decide
from profiler.statistics.objectives import parse_gates
from profiler.statistics.quantiles import Estimate
from profiler.statistics.verdicts import verdict
from tests.unit.statistics_data import against, side


def test_verdict_names_factor_interval_and_quantile() -> None:
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


def test_verdict_of_no_difference_is_an_answer() -> None:
    said = verdict(against(side("a", 1.0), side("b", 1.0, seed=2)))
    assert said.kind == "no_difference"
    assert "a against b: no difference shown at p95 (time " in said.sentence


def test_verdict_of_too_few_says_how_many_more() -> None:
    found = against(side("a", 0.5, blocks=2, loops=30), side("b", 1.0, blocks=2, loops=30, seed=2))
    assert (found.p50.low, found.p95.low) == (None, None)
    said = verdict(found)
    assert said.kind == "too_few"
    assert said.sentence == (
        "a against b: too few loops: about 240 more of each needed, in at least 3 blocks "
        f"(so far {1 / found.p50.value:.2f}× faster at p50)."
    )


def test_verdict_of_too_few_leads_with_failures_that_are_apart() -> None:
    fails = side("a", 0.5, blocks=2, loops=30, failing=(15, 15))
    said = verdict(against(fails, side("b", 1.0, blocks=2, loops=30, seed=2)))
    assert said.kind == "too_few"
    assert said.sentence == (
        "50 % of the loops of a fail, 0 % of those of b (+50.0 points, too few blocks to show it); too few "
        "loops to compare latencies: about 240 more of each needed, in at least 3 blocks "
        "(so far 0.50× the goodput)."
    )


def test_verdict_at_p50_where_it_is_not_enough_for_p95() -> None:
    found = against(side("a", 0.5, blocks=4, loops=40), side("b", 1.0, blocks=4, loops=40, seed=2))
    said = verdict(found)
    assert (said.kind, said.metric) == ("faster", "p50")
    assert said.sentence.endswith("at p50; too few loops for p95: about 140 more of each needed.")


def test_verdict_leads_with_failures_that_differ_whatever_goodput_shows() -> None:
    fails = side("a", 0.5, failing=[60] * 8)
    worse = verdict(against(fails, side("b", 1.0, seed=2)))
    assert (worse.kind, worse.metric) == ("more_failures", "failures")
    said = "40 % of the loops of a fail, 0 % of those of b (+40.0 points [+36.6, +43.4]); "
    assert worse.sentence.startswith(f"{said}a has 1.66× [")
    assert worse.sentence.endswith("] less goodput than b.")
    better = verdict(against(side("b", 1.0, seed=2), fails))
    assert (better.kind, better.metric) == ("fewer_failures", "failures")
    assert "; b has 1.66× [" in better.sentence
    assert better.sentence.endswith("] the goodput of a.")
    # As many good loops a second, since it tries more of them.
    tries = dataclasses.replace(fails, good=(150,) * 8)
    alike = verdict(against(tries, side("b", 1.0, seed=2)))
    assert alike.kind == "more_failures"
    assert alike.sentence == f"{said}a against b: no difference in goodput shown (1.00× [1.00, 1.00])."
    found = against(fails, side("b", 1.0, seed=2))
    found = verdict(dataclasses.replace(found, goodput=dataclasses.replace(found.goodput, needed=60)))
    assert found.kind == "more_failures"
    assert found.sentence == f"{said}a against b: too few loops to compare goodput."


def test_verdict_leads_with_failures_where_one_side_has_no_goodput() -> None:
    nothing = dataclasses.replace(side("a", 1.0, failing=[150] * 8), latencies=(np.empty(0),) * 8)
    said = verdict(against(nothing, side("b", 1.0, seed=2)))
    assert said.kind == "more_failures"
    assert said.sentence.startswith("100 % of the loops of a fail, 0 % of those of b (+100.0 points [")
    assert said.sentence.endswith("; a has no goodput.")
    other = verdict(against(side("b", 1.0, seed=2), nothing))
    assert (other.kind, other.sentence.split("; ")[-1]) == ("fewer_failures", "a has no goodput.")
    neither = verdict(against(nothing, dataclasses.replace(nothing, name="b")))
    assert (neither.kind, neither.sentence) == ("too_few", "no loop of a or of b succeeded.")


def test_verdict_leads_with_failures_where_latencies_are_too_few() -> None:
    few = side("a", 1.0, blocks=3, loops=15, failing=[6, 7, 6])
    found = against(few, side("b", 1.0, blocks=3, loops=15, seed=2))
    assert found.p50.needed is not None
    said = verdict(found)
    assert (said.kind, said.metric) == ("more_failures", "failures")
    assert said.sentence.startswith("42 % of the loops of a fail, 0 % of those of b (+42.2 points [")


def test_failures_that_are_apart_and_not_shown_are_said_all_the_same() -> None:
    bursts = side("a", 1.0, blocks=3, failing=[2, 130, 44])
    found = against(bursts, side("b", 1.0, blocks=3, seed=2))
    assert not found.failures.shown
    said = verdict(found)
    assert said.metric == "p95"
    assert "; 39 % of the loops of a fail, 0 % of those of b (+39.1 points [" in said.sentence
    assert said.sentence.endswith(", not shown).")


def test_verdict_of_slower_so_far_is_said_too() -> None:
    found = verdict(against(side("a", 3.0, blocks=2, loops=30), side("b", 1.0, blocks=2, loops=30)))
    assert found.sentence.endswith("(so far 3.00× slower at p50).")
    assert "in at least 3 blocks" in found.sentence
    many = verdict(against(side("a", 30.0, blocks=3, loops=5), side("b", 1.0, blocks=3, loops=5)))
    assert many.sentence.endswith("more of each needed (so far 30.0× slower at p50).")


def test_verdict_of_nothing_completed_is_too_few() -> None:
    empty = dataclasses.replace(side("a", 1.0), latencies=(np.empty(0),) * 8)
    assert verdict(against(empty, side("b", 1.0))).kind == "too_few"


def test_verdict_puts_failures_first_where_failures_differ() -> None:
    faster_but_failing = side("gathered", 0.5, failing=[130, 135, 140, 130, 128, 138, 135, 131])
    found = against(faster_but_failing, side("sequential", 1.0, seed=2))
    assert found.failures.shown
    assert found.failures.low < 0.89 < found.failures.high
    said = verdict(found)
    assert (said.metric, said.kind) == ("failures", "more_failures")
    assert "less goodput than sequential" in said.sentence


def test_verdict_is_not_about_a_few_failures_everywhere() -> None:
    found = against(side("a", 0.5, failing=[1] * 8), side("b", 1.0, failing=[0] * 8, seed=2))
    assert not found.failures.shown  # 0.7 points: shown perhaps, relevant no
    assert verdict(found).metric == "p95"


def test_gate_is_decided_only_where_the_whole_interval_is_on_one_side_of_it() -> None:
    (gate,) = parse_gates("p95 > +5%")
    slow = against(side("new", 1.5), side("old", 1.0, seed=2))
    (outcome,) = decide([gate], [slow])
    assert outcome.holds is False
    assert outcome.sentence.startswith("new against old: p95 > +5% failed: p95 +")
    straddling = dataclasses.replace(slow, p95=dataclasses.replace(slow.p95, value=1.10, low=1.04, high=1.17))
    (outcome,) = decide([gate], [straddling])
    assert outcome.holds is None
    assert outcome.sentence == "new against old: p95 > +5%: not decided: p95 +10.0 % [+4.0, +17.0]."
    below = dataclasses.replace(slow, p95=dataclasses.replace(slow.p95, value=1.01, low=0.98, high=1.04))
    assert decide([gate], [below])[0].holds is True
    thin = against(side("new", 1.5, loops=20), side("old", 1.0, loops=20, seed=2))
    assert decide([gate], [thin])[0].holds is None
    assert "too few loops: about 140 more" in decide([gate], [thin])[0].sentence


def test_gates_on_rates_and_errors_look_the_other_way() -> None:
    gates = parse_gates("goodput < -10%, errors > +5%")
    failing = against(side("new", 1.0, failing=[60] * 8), side("old", 1.0, seed=2))
    assert [outcome.holds for outcome in decide(gates, [failing])] == [False, False]
    better = against(side("new", 1.0), side("old", 1.0, failing=[60] * 8, seed=2))
    assert [outcome.holds for outcome in decide(gates, [better])] == [True, True]


def test_gates_that_are_many_widen_the_intervals() -> None:
    (gate,) = parse_gates("p95 > +5%")
    base = against(side("new", 1.5), side("old", 1.0, seed=2))
    close = dataclasses.replace(base, p95=dataclasses.replace(base.p95, value=1.10, low=1.055, high=1.147))
    assert decide([gate], [close])[0].holds is False
    assert all(outcome.holds is None for outcome in decide([gate], [close] * 8))


KNOWN = against(side("a", 1.0), side("b", 1.0, seed=2))


def changed(**figures: Ratio | Difference) -> Comparison:
    return dataclasses.replace(KNOWN, **figures)


def test_verdict_says_beside_p95_what_is_shown_at_p50_alone() -> None:
    found = changed(p95=Ratio(0.9, 0.8, 1.01), p50=Ratio(0.5, 0.4, 0.8, shown=True))
    assert verdict(found).sentence == (
        "a against b: no difference shown at p95 (time 0.90× [0.80, 1.01]); "
        "at p50 it is 2.00× [1.25, 2.50] faster."
    )


def test_verdict_has_one_decimal_from_ten_on_and_dashes_for_unknown_numbers() -> None:
    assert (
        "a is 12.5× [9.90, 20.0] slower" in verdict(changed(p95=Ratio(12.5, 9.9, 20.0, shown=True))).sentence
    )
    assert "a is 2.00× [–, –] faster" in verdict(changed(p95=Ratio(0.5, shown=True))).sentence
    assert "a is –× [–, –] faster" in verdict(changed(p95=Ratio(0.0, shown=True))).sentence
    assert "(time –× [–, –])" in verdict(changed(p95=Ratio(None))).sentence


def test_verdict_so_far_names_whoever_fails_less_too() -> None:
    few, no = Ratio(1.5, needed=10), Ratio(3.0, needed=10)
    found = changed(p50=few, p95=few, goodput=no, failures=Difference(-1.0))
    assert "failure rates (-100.0 points, too few blocks to show it)" in verdict(found).sentence
    assert verdict(found).sentence.endswith("(so far 3.00× the goodput).")
    found = changed(p50=few, p95=few, goodput=no, failures=Difference(0.012, shares=(0.032, 0.02)))
    assert verdict(found).sentence.startswith(
        "3.2 % of the loops of a fail, 2.0 % of those of b (+1.2 points, "
    )
    found = changed(p50=few, p95=few, goodput=no, failures=Difference(0.009))
    assert verdict(found).sentence.endswith("(so far 1.50× slower at p50).")


def test_verdict_adds_from_summaries_how_many_good_loops_there_were() -> None:
    def summary(goodput: float | None, failed: float | None) -> SimpleNamespace:
        return SimpleNamespace(goodput=Estimate(goodput), failure_rate=Estimate(failed), backlog=None)

    found = changed(
        failures=Difference(0.4, 0.3, 0.5, 0.001, shown=True, shares=(0.4, 0.0)),
        goodput=Ratio(0.5, 0.4, 0.8, 0.001, shown=True),
    )
    lead = "40 % of the loops of a fail, 0 % of those of b (+40.0 points [+30.0, +50.0]); a has "
    absolute = f"{lead}2.00× [1.25, 2.50] less goodput than b"
    assert verdict(found, summary(3.456, 0.4), summary(10.0, 0.005)).sentence == (  # type: ignore[arg-type]
        f"{absolute} (3.46 against 10.00 good loops/s)."
    )
    assert verdict(found, summary(0.0, 1.0), summary(2.0, 0.0)).sentence == f"{lead}no goodput."  # type: ignore[arg-type]
    whole = summary(1.0, 0.1)
    for pair in ((None, whole), (whole, None), (whole, summary(None, 0.1)), (summary(None, 0.1), whole)):
        assert verdict(found, *pair).sentence == f"{absolute}."  # type: ignore[arg-type]


def test_gate_prints_the_interval_that_it_was_decided_by() -> None:
    slow = changed(p95=Ratio(1.5, 1.1, 2.1), failures=Difference(0.05, 0.03, 0.09))
    gates = parse_gates("p95 > +5%, errors > +1%")
    one, two = (outcome.sentence for outcome in decide(gates, [slow]))
    assert one == "a against b: p95 > +5% failed: p95 +50.0 % [+10.0, +110.0]."
    assert two == "a against b: errors > +1% failed: errors +5.0 points [+3.0, +9.0]."
    assert decide(gates[:1], [slow])[0].sentence == one
    assert "p95 +50.0 % [+7.1, +116.1] (96.7 %, one of three)." in decide(gates[:1], [slow] * 3)[0].sentence
    sentences = [outcome.sentence for outcome in decide(gates, [slow] * 4)]  # z(1 - 0.05/8) = 1.274 z(0.975)
    level = "(98.8 %, one of eight)."
    assert sentences[0] == f"a against b: p95 > +5%: not decided: p95 +50.0 % [+1.0, +130.3] {level}"
    assert sentences[4] == f"a against b: errors > +1% failed: errors +5.0 points [+2.5, +10.1] {level}"


def test_interval_that_touches_a_gate_holds() -> None:
    found = changed(goodput=Ratio(0.75, 0.5, 0.875), failures=Difference(0.0625, 0.0, 0.125))
    outcomes = decide(parse_gates("goodput < -50%, errors > +12.5%"), [found])
    assert [outcome.holds for outcome in outcomes] == [True, True]


def test_failures_of_too_few_loops_decide_no_gate() -> None:
    (outcome,) = decide(parse_gates("errors > +1%"), [changed(failures=Difference(0.5))])
    assert outcome.holds is None
    assert outcome.sentence == "a against b: errors > +1%: not decided, too few loops."


@pytest.mark.parametrize(
    ("share", "word"), [(0, "0 %"), (2, "0.5 %"), (20, "5.0 %"), (40, "10 %"), (200, "50 %")]
)
def test_share_that_is_small_is_shown_to_a_tenth(share, word):
    """`share` of 400 loops failed; of the other's 300."""
    from profiler.statistics.verdicts import _share

    assert _share(share / 400) == word
