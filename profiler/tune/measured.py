"""One experiment's candidates as figures, and what it showed of the system under load."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from profiler.anatomy import peak
from profiler.records import LoopRecord
from profiler.rundir import Run, RunDirectory
from profiler.statistics.comparison import Ratio, compare_strategies
from profiler.statistics.figures import StrategySummary, figures, limit_line
from profiler.statistics.objectives import Objective
from profiler.statistics.quantiles import Estimate
from profiler.statistics.table import tabulate
from profiler.statistics.windows import Measured, measure
from profiler.tune.candidates import Scored

ObjectiveName = Literal["goodput", "p95", "throughput"]

MOST_FAILURES = 0.01
"""With `p95` as the objective, who fails more often has no score: the latency of successes flatters."""


def candidates(directory: RunDirectory, objective: ObjectiveName, slo: Objective | None) -> list[Scored]:
    """Every strategy of an experiment of one load, each compared with the best in paired blocks."""
    levels = by_level(directory, objective, slo)
    return levels[max(levels)] if levels else []


def by_level(
    directory: RunDirectory, objective: ObjectiveName, slo: Objective | None
) -> dict[int, list[Scored]]:
    """The same for each load of a ladder."""
    run = directory.load()
    table = tabulate(directory.records())
    groups: dict[int, list[Measured]] = {}
    for group in measure(run, table):
        groups.setdefault(group.users, []).append(group)
    found = {}
    for users, measured in groups.items():
        scored = [_scored(figures(group, table, slo), objective, slo) for group in measured]
        ranked = [one for one in scored if one.score.value is not None]
        if ranked:
            best = max(ranked, key=lambda one: one.score.value or 0.0).spec
            ratios = {
                comparison.strategy: _ratio(getattr(comparison, objective), objective)
                for comparison in compare_strategies(measured, table, slo, best)
            }
            scored = [replace(one, against_best=ratios.get(one.spec)) for one in scored]
        found[users] = scored
    return found


def _scored(found: StrategySummary, objective: ObjectiveName, slo: Objective | None) -> Scored:
    score = found.goodput if objective == "goodput" else found.throughput
    p95 = found.loop_seconds.p95
    if objective == "p95":
        allowed = MOST_FAILURES if slo is None or slo.errors is None else slo.errors
        hopeless = p95.value is None or (found.failure_rate.value or 0.0) > allowed
        score = Estimate(None) if hopeless else _inverse(p95)
    calls = sum(tool.calls for tool in found.tools.values())
    return Scored(
        spec=found.strategy,
        limit=shared_limit(found.strategy),
        score=score,
        goodput=found.goodput,
        throughput=found.throughput,
        p95=p95,
        failures=found.failure_rate,
        calls_per_second=calls / found.window_seconds if found.window_seconds else 0.0,
    )


def _inverse(one: Estimate) -> Estimate:
    return Estimate(
        1 / one.value if one.value else None,
        1 / one.high if one.high else None,
        1 / one.low if one.low else None,
    )


def _ratio(ratio: Ratio, objective: ObjectiveName) -> Ratio:
    """More is better, of a latency too."""
    if objective != "p95" or not ratio.value:
        return ratio
    return replace(
        ratio,
        value=1 / ratio.value,
        low=1 / ratio.high if ratio.high else None,
        high=1 / ratio.low if ratio.low else None,
    )


def shared_limit(spec: str) -> int | None:
    """N of `semaphore:N`."""
    match = re.fullmatch(r"semaphore:(\d+)", spec)
    return int(match[1]) if match else None


@dataclass(frozen=True, slots=True)
class Pilot:
    """What a first short experiment shows: how high the ladder has to reach, and what trials cost.

    `peak`: tool calls that ran at once when nothing held them back (or were asked for at once, where some
    failed, since a call that is refused is soon over); `guess`: where the adaptive limit
    settled, None when it met no limit; `mean`: calls that ran at once on average, of whichever got more
    done. Seconds: `between` trials, and what the experiment took `beside` them.
    """

    peak: int
    mean: float
    guess: int | None
    between: float
    beside: float


def pilot(run: Run, records: Sequence[LoopRecord], elapsed: float) -> Pilot:
    """Of an experiment with `gathered` and, if possible, `adaptive`, which took `elapsed` seconds."""
    between, beside = overheads(run, elapsed)
    gathered = [record for record in records if record.strategy == "gathered"]
    means = []
    for trial in run.trials:
        inside = _running(r for r in records if r.strategy == trial.strategy)
        window = (trial.started_ns, trial.ended_ns)
        work = sum(max(0, min(end, window[1]) - max(start, window[0])) for start, end in inside)
        means.append(work / max(1, trial.ended_ns - trial.started_ns))
    return Pilot(
        peak=max(1, _demand(run, gathered)),
        mean=max(means, default=1.0),
        guess=settled_limit([record for record in records if record.strategy == "adaptive"]),
        between=between,
        beside=beside,
    )


def _demand(run: Run, gathered: Sequence[LoopRecord]) -> int:
    """How many calls may want to run at once."""
    if all(call.status == "ok" for record in gathered for call in record.tool_calls):
        return peak(_running(gathered))
    widest = max(len(round_.tool_calls) for record in gathered for round_ in record.rounds)
    return run.load.users * widest


def overheads(run: Run, elapsed: float) -> tuple[float, float]:
    """(seconds between two trials, seconds beside all of them) of an experiment that took `elapsed`."""
    gaps = [max(0, after.started_ns - before.ended_ns) / 1e9 for before, after in pairwise(run.trials)]
    gaps += [(trial.drained_ns - trial.ended_ns) / 1e9 for trial in run.trials[-1:]]
    between = sum(gaps) / len(gaps) if gaps else 0.0
    measured = sum((trial.ended_ns - trial.started_ns) / 1e9 for trial in run.trials)
    return between, max(0.0, elapsed - measured - between * len(run.trials))


def _running(records: Iterable[LoopRecord]) -> Iterable[tuple[int, int]]:
    for record in records:
        for call in record.tool_calls:
            if call.started_ns is not None:
                yield call.started_ns, call.ended_ns


def settled_limit(records: Sequence[LoopRecord]) -> int | None:
    """The median of an adaptive limit over the second half of the time; None when nothing was refused."""
    line = limit_line(tabulate(records), "adaptive").limits
    refused = any(call.refusals for record in records for call in record.tool_calls)
    if line.size < 4 or not refused:
        return None
    late = sorted(line[line.size // 2 :])
    return int(late[len(late) // 2])
