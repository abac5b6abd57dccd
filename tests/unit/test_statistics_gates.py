"""What is asked of a run, judged: gates on one run, the objective, what was measured, its validity."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from profiler.rundir import Incident
from profiler.statistics.backlog import Backlog
from profiler.statistics.caveats import Caveat
from profiler.statistics.figures import StrategySummary
from profiler.statistics.gates import (
    Outcome,
    interval_of,
    judge,
    judge_gates,
    judge_loops,
    judge_objective,
    latencies_of,
    missed,
    nothing_measured,
)
from profiler.statistics.objectives import parse_gates
from profiler.statistics.quantiles import Estimate
from profiler.statistics.summary import Level, Summary, summarise, summarise_table
from profiler.statistics.table import tabulate
from profiler.statistics.windows import measure
from tests.unit.statistics_data import MS, loop, made, run, trial, trials

WHOLE = summarise(run(trials()), made()).strategies[0]
"""Three blocks of 30 loops, 5 a second, 100 ms each."""


def of(**figures: object) -> StrategySummary:
    return dataclasses.replace(WHOLE, **figures)  # type: ignore[arg-type]


def at_p95(*figure: float | None) -> StrategySummary:
    return of(loop_seconds=dataclasses.replace(WHOLE.loop_seconds, p95=Estimate(*figure)))


def judged(gate: str, strategy: StrategySummary = WHOLE, latencies: Sequence[np.ndarray] = ()) -> Outcome:
    found = {(strategy.strategy, strategy.users): latencies}
    (outcome,) = judge_gates(parse_gates(gate), [strategy], found)
    return outcome


@pytest.mark.parametrize(
    ("gate", "strategy", "result", "words"),
    [
        ("p95 > 2s", at_p95(2.5, 2.1, 2.9), "failed", ": p95 2.5 s [2.1, 2.9]."),
        ("p95 > 2s", at_p95(2.5, 1.9, 2.9), "not decided", ": p95 2.5 s [1.9, 2.9]."),
        ("p95 > 2s", at_p95(1.5, 1.1, 1.9), "passed", ": p95 1.5 s [1.1, 1.9]."),
        ("p95 > 2s", at_p95(1.5, 1.1, 2.0), "passed", ": p95 1.5 s [1.1, 2]."),
        # What is printed does not contradict what was decided.
        ("p95 > 2s", at_p95(2.5, 2.0004, 2.9), "failed", ": p95 2.5 s [2.0004, 2.9]."),
        (
            "p95 > 2s",
            at_p95(1.5, None, None),
            "not decided",
            ", too few loops or blocks for an interval: p95",
        ),
        ("p95 > 2s", at_p95(None), "not decided", ", no loop came to an answer."),
        ("goodput < 5/s", of(goodput=Estimate(4.0, 3.0, 4.9)), "failed", ": goodput 4/s [3, 4.9]."),
        ("goodput < 5/s", of(goodput=Estimate(4.8, 4.6, 5.1)), "not decided", ": goodput 4.8/s [4.6, 5.1]."),
        ("goodput < 300/m", of(goodput=Estimate(6.0, 5.5, 7.0)), "passed", ": goodput 6/s [5.5, 7]."),
        ("throughput < 4/s", of(throughput=Estimate(6.0, 5.5, 7.0)), "passed", ": throughput 6/s [5.5, 7]."),
        ("errors > 1%", of(failure_rate=Estimate(0.5, 0.3, 0.7)), "failed", ": errors 50 % [30, 70]."),
        ("errors > 40%", of(failure_rate=Estimate(0.5, 0.3, 0.7)), "not decided", ": errors 50 % [30, 70]."),
        # Of 90 loops no failure says at most 3 in 90.
        ("errors > 1%", WHOLE, "not decided", ": errors 0 % [0, 3.33]."),
        ("errors > 4%", WHOLE, "passed", ": errors 0 % [0, 3.33]."),
    ],
)
def test_gate_is_decided_only_by_a_whole_interval(
    gate: str, strategy: StrategySummary, result: str, words: str
) -> None:
    outcome = judged(gate, strategy)
    assert outcome.result == result
    assert outcome.sentence.startswith(
        f"gathered: {gate}{':' if result == 'not decided' else ''} {result}{words}"
    )


def test_blocks_that_agree_by_chance_are_no_more_certain_than_their_loops() -> None:
    agreeing = of(failure_rate=Estimate(0.1, 0.1, 0.1), loops=dataclasses.replace(WHOLE.loops, due=30))
    (gate,) = parse_gates("errors > 5%")
    assert interval_of(gate, agreeing).low == pytest.approx(0.035, abs=0.001)  # Wilson's of 3 in 30
    assert judged("errors > 5%", agreeing).holds is None
    every = of(failure_rate=Estimate(1.0, 1.0, 1.0), loops=dataclasses.replace(WHOLE.loops, due=6))
    assert judged("errors > 50%", every).holds is False
    assert judged("errors > 70%", every).holds is None
    # Three blocks, 18 s: √3 loops more or less.
    (gate,) = parse_gates("goodput < 5/s")
    found = interval_of(gate, of(goodput=Estimate(5.0, 5.0, 5.0)))
    assert (found.low, found.high) == pytest.approx((5 - 3**0.5 / 18, 5 + 3**0.5 / 18))


def test_quantile_of_few_loops_is_judged_by_how_many_took_longer() -> None:
    few = at_p95(1.5)
    blocks = [np.array([1500 * MS] * 7)] * 3
    assert judged("p95 > 1ms", few, blocks).sentence == (
        "gathered: p95 > 1ms failed: p95 1.5 s, 100 % [84.5, 100] of 21 loops took longer."
    )
    # Whether one loop in twenty takes longer, 21 loops cannot tell.
    assert judged("p95 > 60s", few, blocks).sentence == (
        "gathered: p95 > 60s: not decided, too few loops: 0 % [0, 14.3] of 21 loops took longer: p95 1.5 s."
    )
    half = of(loop_seconds=dataclasses.replace(WHOLE.loop_seconds, p50=Estimate(1.5)))
    assert judged("p50 > 60s", half, blocks).holds is True
    for not_told in (blocks[:2], [*blocks[:2], np.array([])]):
        assert judged("p95 > 1ms", few, not_told).holds is None
    # Loops of one slow stretch are one piece of evidence.
    assert judged("p95 > 1ms", dataclasses.replace(few, memory_seconds=4.0), blocks).holds is None


def test_latency_that_grows_with_a_backlog_is_never_good_enough() -> None:
    backlog = Backlog(rate=6.0, arrived=360, served=36, growth=5.4, most=0.6)
    growing = dataclasses.replace(at_p95(1.5, 1.1, 1.9), backlog=backlog)
    said = judged("p95 > 2s", growing)
    assert said.holds is None
    assert "the backlog grows, and latency with it: p95 1.5 s [1.1, 1.9] so far" in said.sentence
    assert judged("p95 > 1s", growing).holds is False
    assert judged("errors > 4%", growing).holds is True


def test_gate_is_of_any_strategy_or_of_the_one_that_it_names() -> None:
    other = of(strategy="semaphore:8")
    gates = parse_gates("errors > 4%, p50 > +5%", "semaphore:8: p95 > 2s, goodput < 1/s")
    found = judge_gates(gates, [WHOLE, other])
    assert [(one.strategy, one.gate) for one in found] == [
        ("gathered", "errors > 4%"),
        ("semaphore:8", "errors > 4%"),
        ("semaphore:8", "p95 > 2s"),
        ("semaphore:8", "goodput < 1/s"),
    ]
    ladder = judge_gates(gates[:1], [WHOLE, dataclasses.replace(WHOLE, users=40)])
    assert [one.strategy for one in ladder] == ["gathered (2 agents)", "gathered (40 agents)"]


def test_invalid_figures_decide_nothing_unless_they_are_allowed() -> None:
    busy = Caveat("machine_busy", "this machine is busy", "stop it", invalid=True, strategies=("gathered",))
    gates = parse_gates("errors > 4%")
    (said,) = judge_gates(gates, [WHOLE], warnings=[busy])
    assert (said.holds, said.sentence) == (None, "gathered: errors > 4%: not decided, it is invalid.")
    (said,) = judge_gates(gates, [WHOLE], warnings=[busy], allow_saturated=True)
    assert said.holds is True
    assert said.sentence.endswith("[0, 3.33], of invalid figures, as --allow-saturated allows.")


def test_undecided_gate_counts_as_it_is_asked_to() -> None:
    undecided = Outcome("p95 > 2s", "a", None, "")
    assert not missed([undecided])
    assert missed([undecided], undecided_fails=True)
    assert missed([undecided, Outcome("p95 > 2s", "a", False, "")])


def ladder(*met: tuple[bool, bool]) -> Summary:
    """Gathered and sequential under so many loads, and whether each meets the objective there."""

    def level(users: int, holds: tuple[bool, bool]) -> Level:
        both = (
            of(strategy=name, users=users, objective_met=one, objective_missed=() if one else ("p95 0.1 s",))
            for name, one in zip(("gathered", "sequential"), holds, strict=True)
        )
        return Level(users, tuple(both))

    levels = tuple(level(users, pair) for users, pair in enumerate(met, 1))
    base = summarise(run(trials(), slo="p95<50ms"), made())
    several = levels if len(levels) > 1 else ()
    return dataclasses.replace(base, strategies=levels[-1].strategies, levels=several)


@pytest.mark.parametrize(
    ("met", "holds", "said"),
    [
        ([(True, False)], True, "objective p95<50ms passed: met by gathered."),
        (
            [(False, False)],
            False,
            "objective p95<50ms failed: nothing meets it (gathered: p95 0.1 s; sequential: p95 0.1 s).",
        ),
        # What a ladder is asked is at its lowest load: above, it looks for where it ends.
        ([(False, True), (False, False)], True, "objective p95<50ms passed at 1 agent: met by sequential."),
        (
            [(False, False), (True, True)],
            False,
            "objective p95<50ms failed at 1 agent: nothing meets it "
            "(gathered: p95 0.1 s; sequential: p95 0.1 s).",
        ),
    ],
)
def test_objective_is_missed_where_no_strategy_meets_it_at_the_lowest_load(
    met: list[tuple[bool, bool]], holds: bool, said: str
) -> None:
    (outcome,) = [one for one in judge(ladder(*met)) if one.kind == "objective"]
    assert (outcome.holds, outcome.sentence) == (holds, said)


def test_objective_that_is_missed_says_each_figure_that_misses_it() -> None:
    (one,) = summarise(run(trials(), slo="p50<100ms,p99<2s,errors<1%"), made()).strategies
    assert one.objective_met is False
    assert one.objective_missed == ("p50 0.1 s",)
    assert judge_objective("p50<100ms", []).holds is False
    failing = summarise(run(trials(), slo="p50<2s,errors<40%"), made(status="error")).strategies[0]
    assert failing.objective_missed == ("no p50, since no loop came to an answer", "errors 100 %")


def test_run_in_which_every_loop_failed_says_why() -> None:
    unreadable = made(calls=[(0, 1)], tool_status="error")
    found = summarise(run(trials()), unreadable)
    said = "every loop failed (90 of gathered): TimeoutError (get_weather) 90"
    assert [(one.kind, one.sentence) for one in found.verdicts] == [("every_loop_failed", f"{said}.")]
    assert found.void
    assert judge_loops(found.strategies).sentence == f"{said}."
    refused = summarise(run(trials()), made(status="error"))
    assert refused.verdicts[0].sentence == "every loop failed (90 of gathered): http_429 90."
    one_good = summarise(run(trials()), [*made(status="error")[1:], made(calls=[(0, 1)])[0]])
    assert judge_loops(one_good.strategies).holds is True
    assert not one_good.void


@pytest.mark.parametrize(
    ("records", "blocks", "said"),
    [
        ([], trials(), "nothing was measured: no loop was recorded"),
        (made(), [], "nothing was measured: no turn of it came to its end"),
        (
            [loop(b * 10_000 + 7000, trial=b) for b in range(3)],
            trials(),
            "nothing was measured: no loop began within a block of 6 s, since loops take longer; "
            "run longer (--duration)",
        ),
    ],
    ids=["no loop", "no turn", "no loop in a block"],
)
def test_run_without_a_figure_is_said_to_have_none(records, blocks, said: str) -> None:
    found = summarise(run(blocks, strategies=("gathered",)), records)
    nothing = nothing_measured(found.strategies)
    assert nothing is not None
    assert (nothing.kind, nothing.sentence) == ("nothing_measured", said)
    assert judge_loops(found.strategies).holds is False
    assert found.void is bool(records)


def test_loops_that_were_cut_off_without_a_record_have_failed() -> None:
    cut = [dataclasses.replace(one, interrupted=2) for one in trials()]
    nothing = nothing_measured(summarise(run(cut), []).strategies)
    assert nothing is not None
    assert nothing.sentence == "every loop failed (6 of them without a record)"


def test_strategy_without_a_turn_is_not_measured() -> None:
    found = summarise(run(trials(), strategies=("gathered", "sequential")), made(calls=[(0, 1)]))
    said = "nothing was measured of sequential: no turn of it came to its end."
    assert [one.sentence for one in found.verdicts if one.kind == "not_measured"] == [said]
    assert judge_loops(found.strategies).sentence == said
    assert not found.void


def test_early_end_is_an_outcome_of_the_run_that_had_it() -> None:
    found = summarise(run(trials()), made())
    limited = [Incident("worker_lost"), Incident("limited", "stopped at --max-loops 9: 9 begun")]
    (end,) = [one for one in judge(found, incidents=limited) if one.kind == "end"]
    assert end.holds is False
    assert end.sentence == (
        "the run did not come to its end: a limit ended it: stopped at --max-loops 9: 9 begun."
    )
    assert not missed(judge(found, incidents=limited[:1]))


def test_latencies_are_those_of_loops_that_came_to_an_answer_by_block() -> None:
    conditions = run([*trials(), trial(3, "gathered", 30_000, 36_000, block=3, users=5)])
    records = [*made(count=2), loop(0, 100, status="error"), loop(30_000, 40, trial=3)]
    table = tabulate(records)
    found = latencies_of(measure(conditions, table), table)
    assert {key: [block.tolist() for block in blocks] for key, blocks in found.items()} == {
        ("gathered", 2): [[100 * MS] * 2] * 3,
        ("gathered", 5): [[40 * MS]],
    }
    assert summarise_table(conditions, table).strategies[0].users == 5
