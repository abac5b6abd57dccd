"""What is asked of a run, judged: gates on one run and between two, the objective, validity, its end. Pure.

All of it is one list of `Outcome`s. The exit code, the terminal, JUnit, Markdown and annotations go by it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from profiler.records import RECORDED
from profiler.statistics.caveats import Caveat, labels
from profiler.statistics.comparison import Comparison, Difference, Ratio
from profiler.statistics.figures import StrategySummary, share
from profiler.statistics.objectives import QualityGate, apart
from profiler.statistics.quantiles import CONFIDENCE, FEWEST_BLOCKS, LEVELS, Estimate
from profiler.statistics.windows import completed, latency

if TYPE_CHECKING:
    from profiler.rundir import Incident
    from profiler.statistics.summary import Summary
    from profiler.statistics.table import Ints, Table
    from profiler.statistics.windows import Measured

Result = Literal["passed", "failed", "not decided"]
_RESULTS: dict[bool | None, Result] = {True: "passed", False: "failed", None: "not decided"}
_SAID = {True: " passed", False: " failed", None: ": not decided"}

OutcomeKind = Literal["gate", "objective", "validity", "loops", "end"]

_CUT_SHORT = {
    "aborted": "it was aborted",
    "limited": "a limit ended it",
    "interrupted": "it was interrupted",
    "terminated": "it was told to end (SIGTERM)",
}
"""Incidents after which a run has not done what was asked of it."""

MOST_CAUSES = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether one thing that was asked holds; `holds` is None, and the `result` *not decided*, where it
    cannot be told.

    `gate` is what was asked, `strategy` of which strategy (empty: of the run), `confidence` the level of the
    interval that decided. `about` is the strategy without what differs from run to run, such as a directory.
    """

    gate: str
    strategy: str
    holds: bool | None
    sentence: str
    confidence: float = CONFIDENCE
    kind: OutcomeKind = "gate"
    about: str = ""
    result: Result = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "result", _RESULTS[self.holds])


def missed(outcomes: Collection[Outcome], undecided_fails: bool = False) -> bool:
    """Whether something that was asked does not hold, or with `undecided_fails` cannot be told."""
    return any(one.holds is False or (undecided_fails and one.holds is None) for one in outcomes)


def judge(
    summary: Summary,
    gates: Sequence[QualityGate] = (),
    latencies: Latencies | None = None,
    incidents: Sequence[Incident] = (),
    allow_saturated: bool = False,
    tick: float = 0.0,
) -> tuple[Outcome, ...]:
    """Everything that was asked of one run, the gates last. `incidents`: of the run that has just ended.

    `latencies` and `tick`: as in `judge_gates`.
    """
    every = summary.every_strategy
    found = [judge_validity(summary.warnings, allow_saturated), judge_loops(every)]
    found.append(judge_end(incidents))
    if summary.objective is not None:
        lowest = summary.levels[0].strategies if summary.levels else summary.strategies
        found.append(judge_objective(summary.objective, lowest, several_loads=bool(summary.levels)))
    return (*found, *judge_gates(gates, every, latencies, summary.warnings, allow_saturated, tick))


def judge_validity(warnings: Collection[Caveat], allowed: bool) -> Outcome:
    said = "; ".join(one.detail for one in warnings if one.invalid)
    if not said:
        return Outcome("valid", "", True, "the figures are valid.", kind="validity")
    if allowed:
        return Outcome("valid", "", True, f"invalid, as --allow-saturated allows: {said}.", kind="validity")
    return Outcome("valid", "", False, f"the figures are invalid: {said}.", kind="validity")


def judge_loops(strategies: Sequence[StrategySummary]) -> Outcome:
    """Whether anything was measured, of strategies under all loads."""
    if nothing := nothing_measured(strategies):
        return Outcome("loops", "", False, f"{nothing.sentence}.", kind="loops")
    measured = {one.strategy for one in strategies if not unmeasured(one)}
    for one in strategies:
        if one.strategy not in measured:
            return Outcome("loops", "", False, f"{not_measured(one)}.", kind="loops")
    totals = {one.strategy: one.totals for one in strategies}.values()
    loops, failed = sum(one.loops for one in totals), sum(one.failed for one in totals)
    return Outcome("loops", "", True, f"{loops} loops were recorded, {failed} of them failed.", kind="loops")


class Nothing(NamedTuple):
    """Why a run has no figures, in words."""

    kind: Literal["every_loop_failed", "nothing_measured"]
    sentence: str


def nothing_measured(strategies: Sequence[StrategySummary]) -> Nothing | None:
    """Why there is not one good loop in figures of these strategies; None where there is one."""
    totals = {one.strategy: one.totals for one in strategies}
    loops = {name: each.loops for name, each in totals.items() if each.loops}
    # Loops that were cut off, or never started, may have left no record.
    lost = sum(one.loops.interrupted for one in strategies if not one.totals.loops)
    if not loops and not lost:
        return Nothing("nothing_measured", "nothing was measured: no loop was recorded")
    if not any(each.good for each in totals.values()):
        causes = sum((Counter(each.causes) for each in totals.values()), Counter())
        most = ", ".join(f"{what} {count}" for what, count in causes.most_common(MOST_CAUSES))
        counts = ", ".join(f"{count} of {name}" for name, count in loops.items())
        stopped = sum(one.loops.cancelled for one in strategies)
        what = "every loop failed or was cancelled" if stopped else "every loop failed"
        said = f"{what} ({counts or f'{lost} of them without a record'})"
        return Nothing("every_loop_failed", said + (f": {most}" if most else ""))
    if all(map(unmeasured, strategies)):
        longest = max(one.window_seconds / one.blocks if one.blocks else 0.0 for one in strategies)
        return Nothing("nothing_measured", f"nothing was measured: {_no_loop_in(longest)}")
    return None


def unmeasured(strategy: StrategySummary) -> bool:
    """Whether no loop was due in any of its blocks, so that there is neither a latency nor a failure."""
    return strategy.failure_rate.value is None


def not_measured(strategy: StrategySummary) -> str:
    seconds = strategy.window_seconds / strategy.blocks if strategy.blocks else 0.0
    return f"nothing was measured of {strategy.strategy}: {_no_loop_in(seconds)}"


def _no_loop_in(seconds: float) -> str:
    if not seconds:
        return "no turn of it came to its end"
    return (
        f"no loop began within a block of {seconds:.3g} s, since loops take longer; run longer (--duration)"
    )


def judge_end(incidents: Sequence[Incident]) -> Outcome:
    for incident in incidents:
        if incident.kind in _CUT_SHORT:
            said = f"the run did not come to its end: {_CUT_SHORT[incident.kind]}"
            detail = f": {incident.detail}" if incident.detail else ""
            return Outcome("end", "", False, f"{said}{detail}.", kind="end")
    return Outcome("end", "", True, "the run came to its end.", kind="end")


def judge_objective(spec: str, strategies: Sequence[StrategySummary], several_loads: bool = False) -> Outcome:
    """Whether any strategy meets the objective; of several loads these are those under the lowest one."""
    at = ""
    if several_loads and strategies:
        users = strategies[0].users
        at = f" at {users} agent{'' if users == 1 else 's'}"
    found = [(one.strategy, one.objective_met, one.objective_missed) for one in strategies]
    return objective_outcome(spec, found, at)


def objective_outcome(
    spec: str, found: Sequence[tuple[str, bool | None, Sequence[str]]], at: str = ""
) -> Outcome:
    """The outcome of an objective, from (name, whether it is met, what is missed in words) of what was tried.

    It fails when nothing meets it; then it is said by how much.
    """
    met = [name for name, holds, _ in found if holds]
    if met:
        text = f"objective {spec} passed{at}: met by {', '.join(met)}."
        return Outcome(spec, "", True, text, kind="objective")
    said = "; ".join(f"{name}: {', '.join(missed) or 'no loop was measured'}" for name, _, missed in found)
    text = f"objective {spec} failed{at}: nothing meets it ({said or 'nothing was measured'})."
    return Outcome(spec, "", False, text, kind="objective")


# Gates on one run: each figure and its interval against a bound.


Latencies = Mapping[tuple[str, int], Sequence["Ints"]]
"""Of each strategy under each load (agents): nanoseconds of each block's loops that came to an answer."""


def latencies_of(measured: Sequence[Measured], table: Table) -> Latencies:
    return {
        (group.strategy, group.users): [latency(table, completed(table, block.due)) for block in group.blocks]
        for group in measured
    }


RATES = ("throughput", "goodput")
NO_RATE = "how many loops a second came to a recording was up to whoever wanted them"

ALLOWED = ", of invalid figures, as --allow-saturated allows"


def judge_gates(
    gates: Sequence[QualityGate],
    strategies: Sequence[StrategySummary],
    latencies: Latencies | None = None,
    warnings: Collection[Caveat] = (),
    allow_saturated: bool = False,
    tick: float = 0.0,
) -> list[Outcome]:
    """Whether each gate on one run holds for each strategy that it is about, under each load.

    It fails when the figure's whole interval, of 95 %, is beyond the bound, passes when none of the interval
    is, and is not decided otherwise: without an interval, with the bound inside it, or where the figures are
    the client's, unless those are allowed. So a strategy exactly at the bound fails in 2.5 % of cases.

    A quantile of too few loops for an interval is judged by how many of them took longer than the bound,
    which a few loops tell where they are far from it. That takes their `latencies`. No quantile within a
    `tick` of the bound (seconds, of a recording's clock) is told from it.
    """
    invalid = {name for caveat in warnings if caveat.invalid for name in caveat.strategies}
    return [
        _judge_gate(
            gate,
            one,
            label,
            (latencies or {}).get((one.strategy, one.users), ()),
            invalid=bool(invalid & {one.strategy, f"{one.strategy} ({one.users} agents)"}),
            allowed=allow_saturated,
            tick=tick,
        )
        for gate in gates
        for one, label in zip(strategies, labels(strategies, strategies), strict=True)
        if not gate.relative and gate.strategy in (None, one.strategy)
    ]


def _judge_gate(
    gate: QualityGate,
    strategy: StrategySummary,
    label: str,
    latencies: Sequence[Ints],
    *,
    invalid: bool,
    allowed: bool,
    tick: float,
) -> Outcome:
    def outcome(holds: bool | None, words: str) -> Outcome:
        besides = ALLOWED if invalid and allowed else ""
        return Outcome(gate.text, label, holds, f"{label}: {gate.text}{_SAID[holds]}{words}{besides}.")

    if invalid and not allowed:
        return outcome(None, ", it is invalid")
    if gate.metric in RATES and strategy.strategy == RECORDED:
        return outcome(None, f", {NO_RATE}")
    figure, limit = interval_of(gate, strategy), gate.threshold
    if figure.value is None:
        nothing = "no loop was measured" if unmeasured(strategy) else "no loop came to an answer"
        return outcome(None, f", {nothing}")
    value = f"{gate.metric} {_shown(gate, figure.value)}"
    if gate.metric in LEVELS and abs(figure.value - limit) < tick:
        return outcome(None, f", {value} is within a tick of the recording's clock ({tick:g} s) of the bound")
    if figure.low is None or figure.high is None:
        holds, words = _longer(gate, strategy, latencies)
        return outcome(holds, f"{words}: {value}" if holds is None else f": {value}{words}")
    worse, better = (figure.low, figure.high) if gate.upward else (-figure.high, -figure.low)
    bound = limit if gate.upward else -limit
    holds = False if worse > bound else True if better <= bound else None
    interval = f"[{_shown(gate, figure.low, False)}, {_shown(gate, figure.high, False)}]"
    if holds and strategy.backlog is not None and gate.metric in LEVELS:
        return outcome(None, f", the backlog grows, and latency with it: {value} {interval} so far")
    return outcome(holds, f": {value} {interval}")


def _longer(
    gate: QualityGate, strategy: StrategySummary, latencies: Sequence[Ints]
) -> tuple[bool | None, str]:
    """Whether the gate holds by how many loops took longer than its bound, and that in words.

    A quantile is beyond the bound where more than its share of the loops are: 5 % at p95.
    """
    blocks = [(int((block > gate.threshold * 1e9).sum()), int(block.size)) for block in latencies]
    loops = sum(size for _, size in blocks)
    if (
        gate.metric not in LEVELS
        or strategy.memory_seconds
        or strategy.backlog is not None
        or sum(size > 0 for _, size in blocks) < FEWEST_BLOCKS
    ):
        return None, ", too few loops or blocks for an interval"
    found, most = _share(share(blocks), loops), 1 - LEVELS[gate.metric]
    value, low, high = found.value or 0.0, found.low or 0.0, found.high or 0.0
    holds = False if low > most else True if high < most else None
    shown = [apart(one * 100, most * 100) for one in (value, low, high)]
    words = f"{shown[0]} % [{shown[1]}, {shown[2]}] of {loops} loops took longer"
    return holds, f", too few loops: {words}" if holds is None else f", {words}"


def interval_of(gate: QualityGate, strategy: StrategySummary) -> Estimate:
    """The figure that a gate is about, with the interval that decides.

    It is the run's own, but no more certain than so many loops can be: blocks that agree by chance have no
    spread, while their counts leave room.
    """
    if gate.metric == "errors":
        return _share(strategy.failure_rate, strategy.loops.due)
    if gate.metric in ("throughput", "goodput"):
        return _rate(getattr(strategy, gate.metric), strategy)
    return strategy.loop_seconds[gate.metric]


def _share(found: Estimate, loops: int) -> Estimate:
    value, low, high = found.value, found.low, found.high
    if value is None or low is None or high is None or not loops or not value:
        return found  # with no failure at all the rule of three has been applied
    z = 1.96  # Wilson (1927)
    middle = (value + z**2 / (2 * loops)) / (1 + z**2 / loops)
    half = z * math.sqrt(value * (1 - value) / loops + z**2 / (4 * loops**2)) / (1 + z**2 / loops)
    return Estimate(value, min(low, max(0.0, middle - half)), max(high, min(1.0, middle + half)))


def _rate(found: Estimate, strategy: StrategySummary) -> Estimate:
    value, low, high = found.value, found.low, found.high
    if value is None or low is None or high is None or not strategy.window_seconds:
        return found
    # A block's edges cut loops: its count may as well be one more or one less.
    grain = math.sqrt(strategy.blocks) / strategy.window_seconds
    return Estimate(value, min(low, max(0.0, value - grain)), max(high, value + grain))


def _shown(gate: QualityGate, value: float, unit: bool = True) -> str:
    """A figure in the gate's unit, with so many digits that it is told from the bound."""
    scale, name = (100, " %") if gate.metric == "errors" else (1, " s" if gate.upward else "/s")
    return apart(value * scale, gate.threshold * scale) + (name if unit else "")


# Gates between two runs: the interval of a change against the change that is allowed.


def decide(
    gates: Sequence[QualityGate], comparisons: Sequence[Comparison], names: Sequence[str] | None = None
) -> list[Outcome]:
    """Whether each gate holds for each comparison; `names`: their strategies, where a gate is about one.

    It fails when the whole interval is beyond it, and passes when none of the interval is; with the limit
    inside the interval, or too few loops for one, it is not decided. So a change of exactly the threshold
    fails in 2.5 % of cases. With more than two decisions the intervals are those of a higher level
    (Bonferroni), so that 5 % is the chance of any false alarm; the level is said.
    """
    named = names if names is not None else [one.strategy for one in comparisons]
    asked = [
        (gate, comparison)
        for gate in gates
        for comparison, name in zip(comparisons, named, strict=True)
        if gate.relative and gate.strategy in (None, name)
    ]
    # Two one-sided decisions at 2.5 % each are what a 95 % interval allows for.
    return [_decide(gate, comparison, max(2, len(asked))) for gate, comparison in asked]


def _decide(gate: QualityGate, comparison: Comparison, decisions: int) -> Outcome:
    figure: Ratio | Difference
    if gate.metric == "errors":
        figure, unchanged = comparison.failures, 0.0
    else:
        figure, unchanged = getattr(comparison, gate.metric), 1.0
    name = f"{comparison.strategy} against {comparison.baseline}"
    confidence = 1 - 2 * (1 - CONFIDENCE) / decisions
    interval = figure.interval(confidence=confidence)
    if gate.metric in RATES and isinstance(figure, Ratio) and figure.value is None and figure.needed is None:
        text = f"{name}: {gate.text}: not decided, {NO_RATE}."
        return Outcome(gate.text, comparison.strategy, None, text, confidence)
    if figure.value is None or interval is None:
        more = f": {figure.missing}" if isinstance(figure, Ratio) and figure.needed else ""
        text = f"{name}: {gate.text}: not decided, too few loops{more}."
        return Outcome(gate.text, comparison.strategy, None, text, confidence)
    limit = unchanged + gate.threshold
    worse, better = interval if gate.threshold > 0 else (-interval[1], -interval[0])
    limit = limit if gate.threshold > 0 else -limit
    holds = False if worse > limit else True if better <= limit else None
    value, low, high = (f"{(x - unchanged) * 100:+.1f}" for x in (figure.value, *interval))
    unit = "points" if gate.metric == "errors" else "%"
    text = f"{name}: {gate.text}{_SAID[holds]}: {gate.metric} {value} {unit} [{low}, {high}]"
    if decisions > 2:
        text += f" ({at_level(confidence, decisions)})"
    if holds is False and not comparison.same_run:
        text += ", unless the system drifted between the two runs"
    return Outcome(gate.text, comparison.strategy, holds, f"{text}.", confidence)


_COUNTS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def at_level(confidence: float, among: int) -> str:
    """`98.3 %, one of three`: the level of an interval; as many digits as it takes not to say 100."""
    percent = f"{confidence * 100:.3g} %" if confidence < 0.9995 else f"{confidence * 100:.5g} %"
    return f"{percent}, one of {_COUNTS[among] if among < len(_COUNTS) else among}"
