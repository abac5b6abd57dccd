"""Comparisons as sentences that claim no more than was shown; one recorded run against another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from profiler.errors import UsageError
from profiler.rundir import RUN, Run, RunDirectory
from profiler.statistics.backlog import Backlog
from profiler.statistics.caveats import Caveat, caveats
from profiler.statistics.columns import table_of
from profiler.statistics.comparison import (
    RELEVANT_FAILURES,
    Comparison,
    Difference,
    Ratio,
    comparable,
    compare_runs,
)
from profiler.statistics.figures import StrategySummary, figures
from profiler.statistics.gates import (
    ALLOWED,
    Outcome,
    at_level,
    decide,
    judge_gates,
    latencies_of,
    not_measured,
    nothing_measured,
    unmeasured,
)
from profiler.statistics.objectives import QualityGate, check_gates, parse_objective
from profiler.statistics.quantiles import CONFIDENCE, FEWEST_BLOCKS, LEVELS
from profiler.statistics.recorded import Recorded, RecordedFigures
from profiler.statistics.table import tabulate
from profiler.statistics.two_runs import TWO_RUNS, different_conditions, tick_of, unlike
from profiler.statistics.windows import Measured, measure

VerdictKind = Literal[
    "not_served",
    "no_tool_calls",
    "every_loop_failed",
    "nothing_measured",
    "not_measured",
    "more_failures",
    "fewer_failures",
    "more_goodput",
    "less_goodput",
    "faster",
    "slower",
    "no_difference",
    "too_few",
]


TOOL_CALLS = "tool_calls"
"""The metric of the verdict that no tool call was asked for, which takes the place of all others."""

LOOPS = "loops"
"""The metric of verdicts that nothing was measured."""

VOID: tuple[VerdictKind, ...] = ("no_tool_calls", "every_loop_failed", "nothing_measured")
"""Verdicts that take the place of all others, and come before anything else is said."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A finding on one metric; `sentence` says it in words. `baseline` is empty where nothing is compared.

    `valid` is False where the figures it rests on describe the client (`caveats`).
    """

    strategy: str
    baseline: str
    metric: str
    kind: VerdictKind
    sentence: str
    valid: bool = True


def verdicts(
    strategies: Sequence[StrategySummary],
    comparisons: Sequence[Comparison],
    max_in_flight: object = None,
) -> tuple[Verdict, ...]:
    """What there is to say of strategies under one load, the most important first.

    A load that a strategy does not serve comes before every comparison. Where the model asked for no tool
    call at all, strategies had nothing to run, and are not compared; nor are they where every loop failed.
    `max_in_flight` is the cap of the load, if it had one.
    """
    if idle := _no_tool_calls(strategies):
        return (idle,)
    ran = any(one.totals.loops or one.loops.interrupted for one in strategies)
    if ran and (nothing := nothing_measured(strategies)):
        names = ", ".join(one.strategy for one in strategies)
        return (Verdict(names, "", LOOPS, nothing.kind, f"{nothing.sentence}."),)
    named = {strategy.strategy: strategy for strategy in strategies}
    return (
        *(
            Verdict(one.strategy, "", LOOPS, "not_measured", f"{not_measured(one)}.")
            for one in strategies
            if ran and unmeasured(one)
        ),
        *(_not_served(one, one.backlog, max_in_flight) for one in strategies if one.backlog is not None),
        *(verdict(c, named.get(c.strategy), named.get(c.baseline)) for c in comparisons),
    )


def _not_served(strategy: StrategySummary, backlog: Backlog, max_in_flight: object) -> Verdict:
    held = f" with --max-in-flight {max_in_flight}" if max_in_flight else ""
    most = f"at most {backlog.most:.2g}/s" if backlog.most else "no loop came to an answer"
    text = f"{strategy.strategy} cannot serve {backlog.rate:.3g}/s{held}: {most}, the backlog grows."
    return Verdict(strategy.strategy, "", "served", "not_served", text)


def _no_tool_calls(strategies: Sequence[StrategySummary]) -> Verdict | None:
    """The verdict where loops came to an answer and not one asked for a tool."""
    totals = [strategy.totals for strategy in strategies]
    if any(one.tool_calls or one.unobserved_calls for one in totals):
        return None
    if not any(one.good for one in totals):
        return None
    text = no_tool_calls(
        sum(one.loops for one in totals),
        sum(one.server_tool_calls for one in totals),
        sum(one.unreadable for one in totals),
        "there was nothing to run in parallel"
        + (", so strategies are not compared" if len(totals) > 1 else ""),
    )
    return Verdict(", ".join(one.strategy for one in strategies), "", TOOL_CALLS, "no_tool_calls", text)


def no_tool_calls(loops: int, server_tools: int, unreadable: int, so: str) -> str:
    """Why a model that is there to ask for tools may not have, in words; `so`: what follows from it.

    `server_tools` calls were run by the model's server, `unreadable` parts of replies were not understood.
    """
    besides = f" but {server_tools} that the model's server ran itself" if server_tools else ""
    causes = [
        "the model server does not parse tool calls (vLLM: --enable-auto-tool-choice and --tool-call-parser)",
        "a tool_choice of none",
        "a model that knows no tools",
    ]
    if unreadable:
        causes.insert(0, f"calls among the {unreadable} parts of replies that could not be understood")
    return (
        f"{loops} loop{'' if loops == 1 else 's'}, no tool call was asked for{besides}: {so}; "
        f"likely causes: {', '.join(causes)}"
    )


def invalidated(found: Verdict) -> Verdict:
    """The same verdict of figures that are invalid."""
    return replace(found, valid=False, sentence=f"invalid: {found.sentence}")


def verdict(
    comparison: Comparison, candidate: StrategySummary | None = None, baseline: StrategySummary | None = None
) -> Verdict:
    """The verdict of one comparison: failures where they differ, else p95, else p50.

    Where the load of either is not served it is goodput, since latencies mean nothing then. The summaries,
    when given, add absolute figures.
    """
    for summary, side in ((candidate, comparison.strategy), (baseline, comparison.baseline)):
        if summary is not None and summary.backlog is not None:
            kind, text = _on_goodput(comparison, candidate, baseline)
            text += f"; the backlog of {side} grows, so latencies are not compared"
            return _said(comparison, "goodput", kind, text)
    if comparison.failures.shown:
        return _on_failures(comparison, candidate, baseline)
    name, other = comparison.strategy, comparison.baseline
    if comparison.failures.shares == (1.0, 1.0):
        return _said(comparison, "failures", "too_few", f"no loop of {name} or of {other} succeeded")
    apart = abs(comparison.failures.value or 0.0) >= RELEVANT_FAILURES
    also = f"; {_failures(comparison)}" if apart else ""
    tail, middle = comparison.p95, comparison.p50
    if tail.needed is None:
        kind, text = _on_latency(comparison, tail, "p95")
        if not tail.shown and middle.shown:
            text += f"; at p50 it is {_faster(middle)}{_level(middle)}"
        return _said(comparison, "p95", kind, text + also)
    missing = tail.missing
    if middle.needed is None:
        kind, text = _on_latency(comparison, middle, "p50")
        return _said(comparison, "p50", kind, f"{text}{also}; too few loops for p95: {missing}")
    if comparison.blocks < FEWEST_BLOCKS:
        missing += f", in at least {FEWEST_BLOCKS} blocks"
    if apart:
        # The latency of the loops that succeeded would flatter the strategy that fails more.
        text = f"{_failures(comparison)}; too few loops to compare latencies: {missing}"
        if comparison.goodput.value is not None:
            text += f" (so far {_number(comparison.goodput.value)}× the goodput)"
        return _said(comparison, "failures", "too_few", text)
    text = f"{name} against {other}: too few loops: {missing}"
    if middle.value:
        word, factor = ("faster", 1 / middle.value) if middle.value < 1 else ("slower", middle.value)
        text += f" (so far {_number(factor)}× {word} at p50)"
    return _said(comparison, "p95", "too_few", text)


def _said(comparison: Comparison, metric: str, kind: VerdictKind, text: str) -> Verdict:
    """The verdict as a sentence, which of two runs says what a drift between them may have done."""
    if not comparison.same_run and kind != "too_few":
        if kind == "no_difference":
            text += "; a drift of the system between the two runs may hide one"
        else:  # beside what it is about, before what could not be told
            shown, too_few, missing = text.partition("; too few loops for p95")
            text = f"{shown}, unless the system drifted between the two runs{too_few}{missing}"
    return Verdict(comparison.strategy, comparison.baseline, metric, kind, text + ".")


def _on_failures(
    comparison: Comparison, candidate: StrategySummary | None, baseline: StrategySummary | None
) -> Verdict:
    kind: VerdictKind = "more_failures" if (comparison.failures.value or 0.0) > 0 else "fewer_failures"
    if comparison.goodput.value is None and comparison.goodput.needed is None:  # a recording has none
        return _said(comparison, "failures", kind, _failures(comparison))
    _, goodput = _on_goodput(comparison, candidate, baseline)
    return _said(comparison, "failures", kind, f"{_failures(comparison)}; {goodput}")


def _failures(comparison: Comparison) -> str:
    """`39 % of the loops of a fail, 0 % of those of b (+39.0 points [30.1, 47.9])`."""
    found, name, other = comparison.failures, comparison.strategy, comparison.baseline
    text = f"{name} against {other}: failure rates"
    if found.shares is not None:
        ours, theirs = map(_share, found.shares)
        text = f"{ours} of the loops of {name} fail, {theirs} of those of {other}"
    points = f"{(found.value or 0.0) * 100:+.1f} points"
    if found.low is None or found.high is None:
        return f"{text} ({points}, too few blocks to show it)"
    interval = f"[{found.low * 100:+.1f}, {found.high * 100:+.1f}]"
    return f"{text} ({points} {interval}{'' if found.shown else ', not shown'}{_level(found, '; ')})"


def _on_goodput(
    comparison: Comparison, candidate: StrategySummary | None, baseline: StrategySummary | None
) -> tuple[VerdictKind, str]:
    ratio, name, other = comparison.goodput, comparison.strategy, comparison.baseline
    ours, theirs = (_goodput(comparison, place, one) for place, one in enumerate((candidate, baseline)))
    rates = "" if ours is None or theirs is None else f"{ours:.2f} against {theirs:.2f} good loops/s"
    beside = f" ({rates})" if rates else ""
    if ours == 0 or theirs == 0:
        # A factor between nothing and something is no number.
        if ours == theirs:
            return "too_few", f"neither {name} nor {other} has any goodput"
        none = f"{name if ours == 0 else other} has no goodput"
        return "less_goodput" if ours == 0 else "more_goodput", none
    if ratio.needed is not None or ratio.low is None:
        return "too_few", f"{name} against {other}: too few loops to compare goodput{beside}"
    said = "; ".join(filter(None, (_level(ratio, ""), rates)))
    beside = f" ({said})" if said else ""
    if not ratio.shown:
        inside = "; ".join(filter(None, (_times(ratio), said)))
        return "no_difference", f"{name} against {other}: no difference in goodput shown ({inside})"
    if (ratio.value or 0) > 1:
        return "more_goodput", f"{name} has {_times(ratio)} the goodput of {other}{beside}"
    return "less_goodput", f"{name} has {_times(ratio.inverse)} less goodput than {other}{beside}"


def _goodput(comparison: Comparison, place: int, summary: StrategySummary | None) -> float | None:
    """The good loops per second of one side (0 candidate, 1 baseline); None if they are not known."""
    if summary is not None:
        return summary.goodput.value
    shares = comparison.failures.shares
    return 0.0 if shares is not None and shares[place] == 1.0 else None


def _on_latency(comparison: Comparison, ratio: Ratio, metric: str) -> tuple[VerdictKind, str]:
    name, baseline = comparison.strategy, comparison.baseline
    if not ratio.shown or ratio.value is None:
        said = f"time {_times(ratio)}{_level(ratio, '; ')}"
        return "no_difference", f"{name} against {baseline}: no difference shown at {metric} ({said})"
    kind: VerdictKind = "faster" if ratio.value < 1 else "slower"
    return kind, f"{name} is {_faster(ratio)} than {baseline} at {metric}{_level(ratio)}"


def _faster(ratio: Ratio) -> str:
    """`1.31× [1.22, 1.41] faster` for a ratio of times below 1, else `… slower`."""
    return f"{_times(ratio.inverse)} faster" if (ratio.value or 0) < 1 else f"{_times(ratio)} slower"


def _times(ratio: Ratio) -> str:
    """`1.31× [1.22, 1.41]`; a bound that is not 1 is not rounded to 1, which would say the opposite."""
    low, high = ratio.low, ratio.high
    for digits in range(2, 9):
        shown = tuple(_number(bound, digits) for bound in (ratio.value, low, high))
        if not ratio.shown or not any(float(one) == 1 for one in shown[1:] if one != "–"):
            break
    return f"{shown[0]}× [{shown[1]}, {shown[2]}]"


def _number(value: float | None, digits: int = 2) -> str:
    if value is None:
        return "–"
    return f"{value:.{digits}f}" if value < 9.995 else f"{value:.{digits - 1}f}"


def _level(figure: Ratio | Difference, before: str | None = None) -> str:
    """The level of an interval that is not one of 95 %: ` (98.3 %, one of three)`.

    With `before` it stands after that, without parentheses of its own.
    """
    if figure.confidence == CONFIDENCE:
        return ""
    text = at_level(figure.confidence, figure.among)
    return f" ({text})" if before is None else f"{before}{text}"


def _share(value: float | None) -> str:
    percent = (value or 0.0) * 100
    return f"{percent:.1f} %" if 0 < percent < 10 else f"{percent:.0f} %"


# One recorded run against another: what changed, and whether a gate lets it pass.


@dataclass(frozen=True, slots=True)
class Regression:
    """The candidate run against the baseline run, for each strategy and load in both.

    `outcomes` are of the gates. `holds` is False when a gate fails, and None when none fails but one is not
    decided. `warnings` are of both runs.
    `before` and `after` are the figures of what both measured, in the order of `comparisons`. `recorded` is
    what either recording says.
    """

    comparisons: tuple[Comparison, ...]
    verdicts: tuple[Verdict, ...]
    outcomes: tuple[Outcome, ...]
    holds: bool | None
    warnings: tuple[Caveat, ...]
    before: tuple[StrategySummary, ...] = ()
    after: tuple[StrategySummary, ...] = ()
    recorded: tuple[RecordedFigures, RecordedFigures] | None = None


def compare_directories(
    baseline: RunDirectory,
    candidate: RunDirectory,
    gates: Sequence[QualityGate] = (),
    slo: str | None = None,
    allow_different: bool = False,
    allow_saturated: bool = False,
) -> Regression:
    """Compare two run directories. `slo` (by default the candidate's) says what counts as good.

    Gates that are not `relative` judge the candidate alone. No gate of a strategy that is invalid in either
    is decided, unless that is allowed. Raises `RecordError` for a file that cannot be
    read, `UsageError` when no strategy ran in both under the same load, a gate is about one that did not, the
    objective cannot be parsed, or the runs did different work (`unlike`), unless that is allowed; every
    sentence says then what differs.
    """
    before, after = baseline.load(), candidate.load()
    apart = unlike(before, after)
    if apart and not allow_different:
        raise UsageError(
            f"not compared: {candidate.path} and {baseline.path} differ in {', '.join(apart)}, so a "
            "difference says nothing about the system; make both alike, or pass --allow-different"
        )
    spec, source = (slo, "--slo") if slo else (after.slo, f"{candidate.path / RUN}: key slo")
    objective = None if spec is None else parse_objective(spec, source)
    both = [Recorded(), Recorded()] if before.recording is not None and after.recording is not None else []
    if both:
        tables = (tabulate(both[0].seen(baseline.records())), tabulate(both[1].seen(candidate.records())))
    else:
        tables = (table_of(baseline), table_of(candidate))
    groups = (measure(before, tables[0]), measure(after, tables[1]))
    found = compare_runs((before, after), tables, groups, objective)
    if not found:
        raise UsageError(
            f"nothing to compare: no strategy was measured under the same load in both runs "
            f"({_names(groups[0])} and {_names(groups[1])})"
        )
    old, new = (
        [figures(group, table, objective) for group in measured]
        for table, measured in zip(tables, groups, strict=True)
    )
    pairs = [(a, b) for b in new for a in old if comparable(a, b)]
    check_gates(gates, list(dict.fromkeys(b.strategy for _, b in pairs)), runs=2)
    tick = max(tick_of(before), tick_of(after))
    several_loads = len({b.users for _, b in pairs}) > 1
    comparisons: list[Comparison] = []
    unserved: list[Verdict] = []
    said: list[Verdict] = []
    for comparison, pair in zip(found, pairs, strict=True):
        users = pair[1].users
        load = f" ({users} agents)" if several_loads else ""
        a, b = (
            replace(one, strategy=f"{one.strategy}{load} in {directory.path.name}")
            for one, directory in zip(pair, (baseline, candidate), strict=True)
        )
        comparisons.append(replace(comparison, strategy=b.strategy, baseline=a.strategy))
        for one, made in ((b, after), (a, before)):
            if one.backlog is not None:
                unserved.append(_not_served(one, one.backlog, made.arguments.get("max_in_flight")))
        said.append(verdict(comparisons[-1], b, a))
        if (metric := said[-1].metric) in LEVELS and _within(tick, metric, a, b):
            text = f"{b.strategy} against {a.strategy}: no difference shown at {metric}: it is within a tick"
            text += f" of the recording's clock ({tick:g} s)."
            said[-1] = replace(said[-1], kind="no_difference", sentence=text)
    outcomes: Sequence[Outcome] = decide(gates, comparisons, [b.strategy for _, b in pairs])
    blurred = {
        (comparison.strategy, metric)
        for comparison, (a, b) in zip(comparisons, pairs, strict=True)
        for metric in LEVELS
        if _within(tick, metric, a, b)
    }
    metrics = {gate.text: gate.metric for gate in gates}
    outcomes = [
        _undecided(one, "the difference is within a tick of the recording's clock")
        if (one.strategy, metrics[one.gate]) in blurred
        else one
        for one in outcomes
    ]
    of_candidate = caveats(after, new)
    of_both = (*_named(of_candidate, after, candidate), *_named(caveats(before, old), before, baseline))
    warnings = (*different_conditions(before, after, tables), *of_both)
    warnings = tuple(sorted((*warnings, TWO_RUNS), key=lambda caveat: not caveat.invalid))
    invalid = {name for caveat in warnings if caveat.invalid for name in caveat.strategies}
    broken = {
        named.strategy
        for named, (_, b) in zip(comparisons, pairs, strict=True)
        if invalid & {b.strategy, f"{b.strategy} ({b.users} agents)"}
    }
    plain = {one.strategy: one.strategy.removesuffix(f" in {candidate.path.name}") for one in comparisons}
    outcomes = [replace(one, about=plain[one.strategy]) for one in outcomes]
    judged_anyway = _allowed if allow_saturated else _undecided
    outcomes = [judged_anyway(one) if one.strategy in broken else one for one in outcomes]
    said = [invalidated(one) if one.strategy in broken else one for one in said]
    if apart:
        lead = f"between runs that differ in {', '.join(apart)}: "
        said = [replace(one, sentence=lead + one.sentence) for one in said]
        outcomes = [replace(one, sentence=lead + one.sentence) for one in outcomes]
    outcomes += [
        replace(one, sentence=f"{candidate.path.name}: {one.sentence}")
        for one in judge_gates(
            gates,
            list({(b.strategy, b.users): b for _, b in pairs}.values()),
            latencies_of(groups[1], tables[1]),
            of_candidate,
            allow_saturated,
            tick_of(after),
        )
    ]
    return Regression(
        tuple(comparisons),
        (*unserved, *said),
        tuple(outcomes),
        _holds(outcomes),
        warnings,
        before=tuple(a for a, _ in pairs),
        after=tuple(b for _, b in pairs),
        recorded=(both[0].result(before.recording), both[1].result(after.recording)) if both else None,
    )


def _named(found: Sequence[Caveat], run: Run, directory: RunDirectory) -> Sequence[Caveat]:
    """Those of a recording say which one: they are of what was recorded, and not of a strategy."""
    if run.recording is None:
        return found
    return [replace(one, detail=f"{directory.path.name}: {one.detail}") for one in found]


def _within(tick: float, metric: str, a: StrategySummary, b: StrategySummary) -> bool:
    """Whether two quantiles differ by no more than a tick."""
    old, new = a.loop_seconds[metric].value, b.loop_seconds[metric].value
    return bool(tick) and old is not None and new is not None and abs(new - old) <= tick


def _undecided(outcome: Outcome, why: str = "it is invalid") -> Outcome:
    """A gate that is not decided, and why; by default, since the figures are invalid."""
    name = outcome.sentence.partition(": ")[0]
    return replace(outcome, holds=None, sentence=f"{name}: {outcome.gate}: not decided, {why}.")


def _allowed(outcome: Outcome) -> Outcome:
    return replace(outcome, sentence=f"{outcome.sentence.removesuffix('.')}{ALLOWED}.")


def _holds(outcomes: Sequence[Outcome]) -> bool | None:
    answers = [outcome.holds for outcome in outcomes]
    if False in answers:
        return False
    return None if None in answers else True


def _names(measured: Sequence[Measured]) -> str:
    return (
        ", ".join(f"{one.strategy} with {one.users}" if one.users else one.strategy for one in measured)
        or "none"
    )
