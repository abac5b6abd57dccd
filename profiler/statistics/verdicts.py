"""Comparisons as sentences that claim no more than was shown; gates; one recorded run against another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

from profiler.errors import UsageError
from profiler.rundir import RUN, RunDirectory
from profiler.statistics.caveats import TWO_RUNS, Caveat, caveats
from profiler.statistics.comparison import Comparison, Difference, Ratio, compare_runs
from profiler.statistics.figures import StrategySummary, figures
from profiler.statistics.objectives import RegressionGate, parse_objective
from profiler.statistics.quantiles import FEWEST_BLOCKS
from profiler.statistics.table import tabulate
from profiler.statistics.windows import Measured, measure

VerdictKind = Literal["faster", "slower", "more_goodput", "less_goodput", "no_difference", "too_few"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The finding of a comparison on one metric; `sentence` says it in words."""

    strategy: str
    baseline: str
    metric: str
    kind: VerdictKind
    sentence: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether a gate holds; None when there are too few loops to decide."""

    gate: str
    strategy: str
    holds: bool | None
    sentence: str


FAILURES_APART = 0.01
"""Where the shares of failed loops differ by more, goodput is named instead of latency."""


def verdict(
    comparison: Comparison, candidate: StrategySummary | None = None, baseline: StrategySummary | None = None
) -> Verdict:
    """The verdict of one comparison: on goodput where failures differ, else on p95, else on p50.

    The summaries, when given, add absolute figures.
    """
    if comparison.failures.shown:
        return _on_goodput(comparison, candidate, baseline)
    tail, middle = comparison.p95, comparison.p50
    name, baseline_name = comparison.strategy, comparison.baseline
    if tail.needed is None:
        kind, text = _on_latency(comparison, tail, "p95")
        if not tail.shown and middle.shown:
            text += f"; at p50 it is {_faster(middle)}"
        return Verdict(name, baseline_name, "p95", kind, text + ".")
    missing = f"about {tail.needed} more of each needed"
    if middle.needed is None:
        kind, text = _on_latency(comparison, middle, "p50")
        text += f"; too few loops for p95: {missing}."
        return Verdict(name, baseline_name, "p50", kind, text)
    if comparison.blocks < FEWEST_BLOCKS:
        missing += f", in at least {FEWEST_BLOCKS} blocks"
    text = f"{name} against {baseline_name}: too few loops: {missing}"
    fails, good = comparison.failures.value, comparison.goodput.value
    if fails is not None and abs(fails) > FAILURES_APART and good is not None:
        # The latency of the loops that succeeded would flatter the strategy that fails more.
        word = "more" if fails > 0 else "fewer"
        text += (
            f" (so far {_number(good)}× the goodput, {abs(fails) * 100:.0f} points {word} of its loops fail)"
        )
    elif middle.value:
        word, factor = ("faster", 1 / middle.value) if middle.value < 1 else ("slower", middle.value)
        text += f" (so far {_number(factor)}× {word} at p50)"
    return Verdict(name, baseline_name, "p95", "too_few", text + ".")


def decide(gates: Sequence[RegressionGate], comparisons: Sequence[Comparison]) -> list[Outcome]:
    """Whether each gate holds for each comparison: it fails only when the whole interval is beyond it.

    Since this is the interval that is printed, a change of exactly the threshold fails in 2.5 % of
    cases. With more than two decisions the intervals are widened (Bonferroni) so that 5 % is the
    chance of any false alarm. With too few loops a gate is not decided.
    """
    # Two one-sided decisions at 2.5 % each are what a 95 % interval allows for.
    decisions = max(2, len(gates) * len(comparisons))
    wider = NormalDist().inv_cdf(1 - 0.05 / decisions) / NormalDist().inv_cdf(0.975)
    return [_decide(gate, comparison, wider) for gate in gates for comparison in comparisons]


def _decide(gate: RegressionGate, comparison: Comparison, wider: float) -> Outcome:
    figure: Ratio | Difference
    if gate.metric == "errors":
        figure, unchanged = comparison.failures, 0.0
    else:
        figure, unchanged = getattr(comparison, gate.metric), 1.0
    name = f"{comparison.strategy} against {comparison.baseline}"
    interval = figure.interval(wider)
    if figure.value is None or interval is None:
        needed = figure.needed if isinstance(figure, Ratio) else None
        more = f": about {needed} more of each needed" if needed else ""
        text = f"{name}: {gate.text}: not decided, too few loops{more}."
        return Outcome(gate.text, comparison.strategy, None, text)
    limit = unchanged + gate.threshold
    broken = interval[1] < limit if gate.metric in ("throughput", "goodput") else interval[0] > limit
    value, low, high = (f"{(x - unchanged) * 100:+.1f}" for x in (figure.value, *interval))
    word = "fails" if broken else "holds"
    text = f"{name}: {gate.text} {word}: {gate.metric} {value} % [{low}, {high}]."
    return Outcome(gate.text, comparison.strategy, not broken, text)


def _on_goodput(
    comparison: Comparison, candidate: StrategySummary | None, baseline: StrategySummary | None
) -> Verdict:
    ratio, name, other = comparison.goodput, comparison.strategy, comparison.baseline
    kind: VerdictKind
    if ratio.needed is not None or ratio.low is None:
        kind, text = "too_few", f"{name} against {other}: too few loops to compare goodput"
    elif not ratio.shown:
        kind = "no_difference"
        text = f"{name} against {other}: no difference in goodput shown ({_times(ratio)})"
    elif (ratio.value or 0) > 1:
        kind, text = "more_goodput", f"{name} has {_times(ratio)} the goodput of {other}"
    else:
        kind, text = "less_goodput", f"{name} has {_times(ratio.inverse)} less goodput than {other}"
    difference = (comparison.failures.value or 0.0) * 100
    why = f"its failure rate is {difference:+.1f} points"
    if candidate is not None and baseline is not None:
        rates = [one.goodput.value for one in (candidate, baseline)]
        shares = [one.failure_rate.value for one in (candidate, baseline)]
        if None not in rates and None not in shares:
            text += f" ({rates[0]:.2f} against {rates[1]:.2f} good loops/s)"
            why = f"{_share(shares[0])} of its loops fail, of the other's {_share(shares[1])}"
    return Verdict(name, other, "goodput", kind, f"{text}: {why}.")


def _on_latency(comparison: Comparison, ratio: Ratio, metric: str) -> tuple[VerdictKind, str]:
    name, baseline = comparison.strategy, comparison.baseline
    if not ratio.shown or ratio.value is None:
        return "no_difference", (
            f"{name} against {baseline}: no difference shown at {metric} (time {_times(ratio)})"
        )
    kind: VerdictKind = "faster" if ratio.value < 1 else "slower"
    return kind, f"{name} is {_faster(ratio)} than {baseline} at {metric}"


def _faster(ratio: Ratio) -> str:
    """`1.31× [1.22, 1.41] faster` for a ratio of times below 1, else `… slower`."""
    return f"{_times(ratio.inverse)} faster" if (ratio.value or 0) < 1 else f"{_times(ratio)} slower"


def _times(ratio: Ratio) -> str:
    return f"{_number(ratio.value)}× [{_number(ratio.low)}, {_number(ratio.high)}]"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}"


def _share(value: float | None) -> str:
    percent = (value or 0.0) * 100
    return f"{percent:.1f} %" if 0 < percent < 10 else f"{percent:.0f} %"


# One recorded run against another: what changed, and whether a gate lets it pass.


@dataclass(frozen=True, slots=True)
class Regression:
    """The candidate run against the baseline run, for each strategy and load in both.

    `holds` is False when a gate fails, and None when none fails but one is not decided; no gate is
    decided on an invalid run. `warnings` are of both runs.
    """

    comparisons: tuple[Comparison, ...]
    verdicts: tuple[Verdict, ...]
    outcomes: tuple[Outcome, ...]
    holds: bool | None
    warnings: tuple[Caveat, ...]


def compare_directories(
    baseline: RunDirectory,
    candidate: RunDirectory,
    gates: Sequence[RegressionGate] = (),
    slo: str | None = None,
) -> Regression:
    """Compare two run directories. `slo` (by default the candidate's) says what counts as good.

    Raises `RecordError` for a file that cannot be read, `UsageError` when no strategy ran in both under
    the same load, or the objective cannot be parsed.
    """
    before, after = baseline.load(), candidate.load()
    spec, source = (slo, "--slo") if slo else (after.slo, f"{candidate.path / RUN}: key slo")
    objective = None if spec is None else parse_objective(spec, source)
    tables = (tabulate(baseline.records()), tabulate(candidate.records()))
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
    pairs = [(a, b) for b in new for a in old if (a.strategy, a.users) == (b.strategy, b.users)]
    several_loads = len({b.users for _, b in pairs}) > 1
    comparisons, verdicts = [], []
    for comparison, (a, b) in zip(found, pairs, strict=True):
        name = f"{comparison.strategy} ({b.users} agents)" if several_loads else comparison.strategy
        named = replace(
            comparison,
            strategy=f"{name} in {candidate.path.name}",
            baseline=f"{name} in {baseline.path.name}",
        )
        comparisons.append(named)
        verdicts.append(verdict(named, b, a))
    outcomes = tuple(decide(gates, comparisons))
    warnings = (*caveats(after, new), *caveats(before, old), TWO_RUNS)
    warnings = tuple(sorted(warnings, key=lambda caveat: not caveat.invalid))
    invalid = any(caveat.invalid for caveat in warnings)
    return Regression(tuple(comparisons), tuple(verdicts), outcomes, _holds(outcomes, invalid), warnings)


def _holds(outcomes: Sequence[Outcome], invalid: bool) -> bool | None:
    if invalid and outcomes:
        return None
    answers = [outcome.holds for outcome in outcomes]
    if False in answers:
        return False
    return None if None in answers else True


def _names(measured: Sequence[Measured]) -> str:
    return ", ".join(f"{group.strategy} with {group.users}" for group in measured) or "none"
