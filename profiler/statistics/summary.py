"""`summary.json`: the figures of a run, as one tree of data.

The shape is a contract: keys may be added, never changed. Seconds are floats, intervals are 95 %,
quantiles are those of `quantiles`. `windows` and `figures` say which loops each figure is of; `totals`
are of every record, warm-up and drain included, as Prometheus counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from profiler.records import LoopRecord
from profiler.rundir import Load, Run, RunDirectory
from profiler.statistics.caveats import Caveat, caveats
from profiler.statistics.comparison import Comparison, compare_strategies
from profiler.statistics.figures import StrategySummary, figures
from profiler.statistics.objectives import Objective, parse_objective
from profiler.statistics.quantiles import CONFIDENCE
from profiler.statistics.scalability import Scalability, fit
from profiler.statistics.table import Table, tabulate
from profiler.statistics.verdicts import Verdict, verdict
from profiler.statistics.windows import Measured, WarmUp, by_load, completed, measure

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Level:
    """One of several loads: every strategy under it, and how they compare."""

    users: int
    strategies: tuple[StrategySummary, ...]
    comparisons: tuple[Comparison, ...] = ()
    verdicts: tuple[Verdict, ...] = ()


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything a report shows of a run.

    `strategies` (with `comparisons` and `verdicts`) are those under the highest load; `levels` has every
    load where there are several, and is empty otherwise. `finished` is False for a run that was cut
    short. `warnings` are to be read before anything else; `valid` is False when one is invalid.
    """

    scenario: str
    provider: str
    strategies: tuple[StrategySummary, ...]
    model: str
    seed: int
    load: Load
    workers: int
    finished: bool
    valid: bool = True
    warnings: tuple[Caveat, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    objective: str | None = None
    levels: tuple[Level, ...] = ()
    scalability: dict[str, Scalability] = field(default_factory=dict)
    confidence: float = CONFIDENCE
    quantile: str = "linear"
    schema: int = SCHEMA


def summarise(run: Run, records: Iterable[LoopRecord]) -> Summary:
    """The summary of a run from its records, which are streamed.

    Strategies are compared with the first of the run. Raises `UsageError` when the run's objective
    cannot be parsed.
    """
    return summarise_table(run, tabulate(records))


def summarise_directory(directory: RunDirectory) -> Summary:
    """The summary of a run directory, finished or not. Raises `RecordError`, `UsageError`."""
    return summarise(directory.load(), directory.records())


def summarise_table(run: Run, table: Table) -> Summary:
    """The summary of a run whose records are already a table."""
    objective = None if run.slo is None else parse_objective(run.slo, "run.json: key slo")
    measured = measure(run, table)
    named = {group.strategy for group in measured}
    # A strategy that was recorded but has no finished trial still has totals to show.
    for strategy in dict.fromkeys([*map(str, run.strategies), *table.strategies]):
        if strategy not in named:
            users = max((group.users for group in measured), default=run.load.users)
            measured.append(Measured(run.strategy(strategy), users, (), WarmUp(0, None)))
    every = tuple(
        _level(users, groups, table, objective) for users, groups in sorted(by_load(measured).items())
    )
    top = every[-1] if every else Level(run.load.users, ())
    warnings = caveats(run, top.strategies)
    return Summary(
        scenario=run.scenario,
        provider=run.provider,
        strategies=top.strategies,
        model=run.model,
        seed=run.seed,
        load=run.load,
        workers=run.workers,
        finished=run.finished,
        valid=not any(warning.invalid for warning in warnings),
        warnings=warnings,
        comparisons=top.comparisons,
        verdicts=top.verdicts,
        objective=run.slo,
        levels=every if len(every) > 1 else (),
        scalability=_scalability(measured, table),
    )


def _scalability(measured: list[Measured], table: Table) -> dict[str, Scalability]:
    """The scalability law of each strategy that ran under enough loads, from its blocks' throughput."""
    laws = {}
    for strategy in dict.fromkeys(group.strategy for group in measured):
        groups = [group for group in measured if group.strategy == strategy and group.blocks]
        rates = [
            [completed(table, block.ended).size / block.seconds for block in group.blocks if block.seconds]
            for group in groups
        ]
        law = fit([group.users for group in groups], rates)
        if law is not None:
            laws[strategy] = law
    return laws


def _level(users: int, groups: list[Measured], table: Table, objective: Objective | None) -> Level:
    strategies = tuple(figures(group, table, objective) for group in groups)
    comparisons = compare_strategies(groups, table, objective)
    named = {strategy.strategy: strategy for strategy in strategies}
    verdicts = tuple(verdict(c, named.get(c.strategy), named.get(c.baseline)) for c in comparisons)
    return Level(users, strategies, comparisons, verdicts)
