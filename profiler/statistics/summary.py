"""`summary.json`: the figures of a run, as one tree of data.

The shape is a contract: keys may be added, never changed. Seconds are floats, quantiles are those of
`quantiles`, intervals are 95 % (those of comparisons have the `confidence` at which they were decided).
`windows` and `figures` say which loops each figure is of; `totals` are of every record, warm-up and drain
included, as Prometheus counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from profiler.records import NO_MODEL, LoopRecord
from profiler.rundir import Load, Run, RunDirectory
from profiler.statistics.caveats import Caveat, caveats
from profiler.statistics.columns import table_of
from profiler.statistics.comparison import Comparison, compare_strategies
from profiler.statistics.direct import DirectLoad, direct_loads
from profiler.statistics.figures import StrategySummary, Totals, figures, good_loops
from profiler.statistics.gates import Outcome
from profiler.statistics.invented import invented
from profiler.statistics.objectives import Objective, parse_objective
from profiler.statistics.quantiles import CONFIDENCE, Estimate, Floats
from profiler.statistics.recorded import RecordedFigures
from profiler.statistics.servers import ServerFigures
from profiler.statistics.table import Table, tabulate
from profiler.statistics.verdicts import LOOPS, TOOL_CALLS, VOID, Verdict, invalidated, verdicts
from profiler.statistics.windows import Measured, WarmUp, by_load, measure

# Goodput against load (loops that fail at once are no throughput): Gunther's Universal Scalability Law.
#
#     X(N) = λN / (1 + σ(N - 1) + κN(N - 1)),    σ, κ ≥ 0,    peak at N* = √((1 - σ) / κ)
#
# λ is the throughput of one agent, σ the cost of contention, κ that of keeping agents coherent
# (Gunther 1993).

FEWEST_LOADS = 4
REPEATS = 300
_NEGLIGIBLE = 1e-9
"""A fitted κ below this counts as 0: its N* would be above 30,000 agents."""


@dataclass(frozen=True, slots=True)
class Scalability:
    """A fit: `rate` is λ, `contention` σ, `coherency` κ; `peak` is N*, None when no peak was seen."""

    rate: float
    contention: float
    coherency: Estimate
    peak: Estimate | None
    sentence: str

    def throughput(self, load: float) -> float:
        """The fitted loops per second under a load."""
        return float(_usl(np.array([load]), self.rate, self.contention, self.coherency.value or 0.0)[0])


def fit(loads: Sequence[float], throughputs: Sequence[Sequence[float]], seed: int = 0) -> Scalability | None:
    """The law fitted to the blocks' throughputs under each load; None below `FEWEST_LOADS` loads.

    Relative errors are minimised, since throughput varies in proportion to itself. The intervals come
    from a bootstrap of the blocks within each load, or of the residuals where a load has one block.
    A peak counts as seen when κ's interval stays above 0 and N* lies between the smallest load (below
    it, goodput falls from the start) and twice the largest.
    """
    if len({load for load, blocks in zip(loads, throughputs, strict=True) if len(blocks)}) < FEWEST_LOADS:
        return None
    rng = np.random.default_rng(seed)
    x = np.concatenate(
        [np.full(len(blocks), load, float) for load, blocks in zip(loads, throughputs, strict=True)]
    )
    y = np.concatenate([np.asarray(blocks, float) for blocks in throughputs])
    if not np.all(y > 0):
        return None
    best = rate, contention, kappa = _fit(x, y)
    replicated = all(len(blocks) > 1 for blocks in throughputs)
    fitted = _usl(x, *best)
    # Least squares uses up three degrees of freedom, which shrinks the residuals.
    residuals = np.log(y / fitted) * math.sqrt(x.size / max(1, x.size - 3))
    draws = []
    for _ in range(REPEATS):
        if replicated:
            resampled = np.concatenate(
                [rng.choice(np.asarray(blocks, float), len(blocks)) for blocks in throughputs]
            )
        else:
            resampled = fitted * np.exp(rng.choice(residuals, x.size))
        draws.append(_fit(x, resampled, best))
    tail = (1 - CONFIDENCE) / 2
    fits = np.array(draws)
    low, high = (float(v) for v in np.quantile(fits[:, 2], [tail, 1 - tail]))
    peak = None
    at = math.sqrt((1 - contention) / kappa) if min(low, kappa) > _NEGLIGIBLE else math.inf
    if at > 2 * max(loads):
        sentence = f"no peak seen up to {max(loads):.0f} agents"
    elif at < x.min():
        sentence = f"goodput falls with every agent beyond {x.min():.0f}"
    else:
        peaks = np.sqrt(np.maximum(1 - fits[:, 1], 0) / np.maximum(fits[:, 2], _NEGLIGIBLE))
        first, last = (float(v) for v in np.quantile(peaks, [tail, 1 - tail]))
        peak = Estimate(at, min(first, at), max(last, at))
        sentence = f"goodput peaks at about {at:.0f} [{peak.low:.0f}, {peak.high:.0f}] agents"
    return Scalability(rate, contention, Estimate(kappa, low, high), peak, sentence)


def _fit(x: Floats, y: Floats, start: tuple[float, float, float] | None = None) -> tuple[float, float, float]:
    from scipy.optimize import least_squares

    first = start or (float(np.max(y / x)), 0.01, 1e-4)
    first = (first[0], min(max(first[1], 1e-6), 0.99), max(first[2], 1e-8))
    found = least_squares(
        lambda parameters: np.log(_usl(x, *parameters) / y),
        first,
        bounds=([1e-12, 0.0, 0.0], [np.inf, 1.0, 1.0]),
        x_scale=(first[0], 0.1, 1e-3),
    )
    return float(found.x[0]), float(found.x[1]), float(found.x[2])


def _usl(load: Floats, rate: float, contention: float, coherency: float) -> Floats:
    return rate * load / (1 + contention * (load - 1) + coherency * load * (load - 1))


# The summary.

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
    short. `warnings` are to be read before anything else; `valid` is False when one is invalid. `outcomes`
    say whether what was asked of the run holds, where a command asked. `servers` are the MCP servers that
    were called, warm-up and drain included. `loads` are those of calls without a model, the lowest first.
    `recorded` is there for a recorded run.
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
    outcomes: tuple[Outcome, ...] = ()
    servers: tuple[ServerFigures, ...] = ()
    loads: tuple[DirectLoad, ...] = ()
    recorded: RecordedFigures | None = None

    @property
    def void(self) -> bool:
        """Whether there is nothing to compare, which is said before anything else."""
        return any(one.kind in VOID for one in self.verdicts)

    @property
    def every_strategy(self) -> list[StrategySummary]:
        """Each strategy under each load."""
        return [one for level in self.levels for one in level.strategies] or list(self.strategies)

    @property
    def totals(self) -> list[Totals]:
        """Everything that was recorded, by strategy: totals are of all loads."""
        return list({one.strategy: one.totals for one in self.every_strategy}.values())

    @property
    def internal(self) -> int:
        """Loops that a defect of ours ended."""
        return sum(one.internal for one in self.totals)

    @property
    def unanswered(self) -> bool:
        """Requests were sent, and nothing at all came back to any of them."""
        return any(one.unheard_requests for one in self.totals) and not any(
            one.heard_requests for one in self.totals
        )

    @property
    def idle(self) -> bool:
        """Whether the model asked for no tool at all."""
        return any(one.metric == TOOL_CALLS for one in self.verdicts)


def summarise(run: Run, records: Iterable[LoopRecord]) -> Summary:
    """The summary of a run from its records, which are streamed.

    Strategies are compared with the first of the run. Raises `UsageError` when the run's objective
    cannot be parsed.
    """
    return summarise_table(run, tabulate(records))


def summarise_directory(directory: RunDirectory) -> Summary:
    """The summary of a run directory, finished or not. Raises `RecordError`, `UsageError`."""
    run, table = directory.load(), table_of(directory)
    return with_loads(summarise_table(run, table), run, table, directory.records())


def with_loads(summary: Summary, run: Run, table: Table, records: Iterable[LoopRecord]) -> Summary:
    """The summary with the loads of calls without a model, where the run made such calls."""
    if run.provider != NO_MODEL:
        return summary
    return replace(summary, loads=tuple(direct_loads(run, records, table)))


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
        _level(users, groups, table, objective, run.arguments.get("max_in_flight"))
        for users, groups in sorted(by_load(measured).items())
    )
    top = every[-1] if every else Level(run.load.users, ())
    lower = [strategy for level in every[:-1] for strategy in level.strategies]
    servers = table.servers.figures(per_agent=bool(run.arguments.get("mcp_per_agent")))
    raised = {one.name: (one.calls.error_types.get("tool_error", 0), one.calls.calls) for one in servers}
    warnings = (*caveats(run, top.strategies, lower), *invented(run, raised))
    every = tuple(_with_validity(level, warnings, several=len(every) > 1) for level in every)
    top = every[-1] if every else top
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
        scalability=_scalability(measured, table, objective),
        servers=servers,
    )


def _with_validity(level: Level, warnings: Iterable[Caveat], several: bool) -> Level:
    """The level with its strategies marked that are invalid, and the verdicts that involve one of them."""
    named = {name for warning in warnings if warning.invalid for name in warning.strategies}

    def valid(strategy: str) -> bool:
        return (f"{strategy} ({level.users} agents)" if several else strategy) not in named

    # That no tool was called, or nothing measured, is so, whoever was late.
    return replace(
        level,
        strategies=tuple(replace(one, valid=valid(one.strategy)) for one in level.strategies),
        verdicts=tuple(
            one
            if one.metric in (TOOL_CALLS, LOOPS) or (valid(one.strategy) and valid(one.baseline))
            else invalidated(one)
            for one in level.verdicts
        ),
    )


def _scalability(
    measured: list[Measured], table: Table, objective: Objective | None
) -> dict[str, Scalability]:
    """The scalability law of each strategy that ran under enough loads, from its blocks' goodput."""
    laws = {}
    for strategy in dict.fromkeys(group.strategy for group in measured):
        groups = [group for group in measured if group.strategy == strategy and group.blocks]
        rates = [
            [good_loops(table, block, objective) / block.seconds for block in group.blocks if block.seconds]
            for group in groups
        ]
        law = fit([group.users for group in groups], rates)
        if law is not None:
            laws[strategy] = law
    return laws


def _level(
    users: int, groups: list[Measured], table: Table, objective: Objective | None, max_in_flight: object
) -> Level:
    strategies = tuple(figures(group, table, objective) for group in groups)
    comparisons = compare_strategies(groups, table, objective)
    return Level(users, strategies, comparisons, verdicts(strategies, comparisons, max_in_flight))
