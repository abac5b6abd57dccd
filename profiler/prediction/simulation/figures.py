"""The figures of simulated trials, by the same rules as those of a real run (`profiler.statistics`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from profiler.prediction.simulation.engine import Simulated
from profiler.rundir import Trial
from profiler.statistics.figures import block_failures, good_loops
from profiler.statistics.objectives import Objective
from profiler.statistics.quantiles import LEVELS, quantile
from profiler.statistics.table import ERROR, OK, Ints
from profiler.statistics.windows import completed, joined, latency, measure_strategy
from profiler.strategies import StrategySpec


class Figures(NamedTuple):
    """One run's figures: seconds, loops a second, shares. NaN: there is none.

    `refused_share`: of all requests to tools and model, those that were refused for a load or a quota.
    """

    p50: float
    p95: float
    p99: float
    throughput: float
    goodput: float
    failure_rate: float
    refused_share: float


@dataclass(frozen=True, slots=True)
class _Columns:
    trial: Ints
    due: Ints
    ended: Ints
    status: Ints
    good: Ints


def figures_of(
    simulated: Simulated, strategy: StrategySpec, users: int, objective: Objective | None = None
) -> Figures:
    """The figures that `compare` would print of these trials."""
    results = simulated.trials
    columns = _Columns(
        np.repeat(np.arange(len(results)), [len(one.due) for one in results]),
        np.array([due for one in results for due in one.due], np.int64),
        np.array([end for one in results for end in one.ended], np.int64),
        np.array([OK if ok else ERROR for one in results for ok in one.ok], np.int64),
        np.array([good for one in results for good in one.good], np.int64),
    )
    trials = [
        Trial(
            number,
            number,
            strategy.text,
            users,
            one.started_ns,
            one.started_ns + int(one.seconds * 1e9),
            one.started_ns + int(one.seconds * 1e9),
            interrupted=0,  # they are among the loops, as failed ones
            dropped=one.dropped,
        )
        for number, one in enumerate(results)
    ]
    blocks = measure_strategy(strategy, users, trials, columns).blocks
    seconds = sum(block.seconds for block in blocks)
    latencies = latency(columns, completed(columns, joined([block.due for block in blocks]))) / 1e9
    failed, due = map(sum, zip(*(block_failures(columns, block) for block in blocks), strict=True))
    nan = float("nan")
    p50, p95, p99 = (quantile(latencies, p) or nan for p in LEVELS.values())
    return Figures(
        p50,
        p95,
        p99,
        sum(completed(columns, block.ended).size for block in blocks) / seconds,
        sum(good_loops(columns, block, objective) for block in blocks) / seconds,
        failed / due if due else nan,
        simulated.refused / simulated.attempts if simulated.attempts else 0.0,
    )
