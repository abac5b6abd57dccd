"""One recorded run against another: what changed, and whether a gate lets it pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from profiler.errors import UsageError
from profiler.rundir import RUN, RunDirectory
from profiler.statistics.caveats import TWO_RUNS, Caveat, caveats
from profiler.statistics.comparison import Comparison, compare_runs
from profiler.statistics.figures import figures
from profiler.statistics.objectives import Gate, parse_objective
from profiler.statistics.table import tabulate
from profiler.statistics.verdicts import Outcome, Verdict, decide, verdict
from profiler.statistics.windows import Measured, measure


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
    baseline: RunDirectory, candidate: RunDirectory, gates: Sequence[Gate] = (), slo: str | None = None
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
