"""Strategies against a baseline, and a recorded run against another.

Within a run the comparison is paired: every block ran every strategy, in random order, on the
same tape, so that what the blocks share (drift, the tape's work) cancels. The effect is
exp(mean of the log-ratios of the blocks ± half), with `quantiles.spread`'s half-width.

Between two runs it is Welch's t on the same logarithms, paired only when their tapes match. Nothing
cancels the drift then. Drift makes neighbouring blocks alike, so the lag-1 correlation r of the
blocks' medians widens the interval by √((1 + r) / (1 - r)). On systems that wander by 5 % a block
that takes a gate's false alarms from 17 to 7 % (`benchmarks/coverage.py`); only pairing removes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from profiler.rundir import Run
from profiler.statistics.figures import block_failures, good_loops
from profiler.statistics.quantiles import (
    CONFIDENCE,
    FEWEST_BLOCKS,
    FEWEST_PER_BLOCK,
    LEVELS,
    Floats,
    block_quantiles,
    coarsen,
    join,
    spread,
    student,
    student_tails,
)
from profiler.statistics.table import OK, Table
from profiler.statistics.windows import Block, Measured, completed, latency

Metric = Literal["p50", "p95", "p99", "throughput", "goodput"]

SIGNIFICANCE = 1 - CONFIDENCE
RELEVANT_FAILURES = 0.01
"""Failure rates differ when that is shown and the difference is at least this."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """candidate / baseline of one metric, with its 95 % interval and Holm-adjusted p value.

    `value` alone is a point estimate. `needed` is how many more loops of each strategy a verdict
    takes: None when there are enough. `shown` says whether the ratio differs from 1.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    needed: int | None = None
    shown: bool = False


@dataclass(frozen=True, slots=True)
class Difference:
    """candidate - baseline of the share of failed loops; `shown` as in `Ratio`, and relevant."""

    value: float | None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    shown: bool = False


@dataclass(frozen=True, slots=True)
class Comparison:
    """One strategy against the baseline: latencies of completed loops, rates, failures."""

    strategy: str
    baseline: str
    p50: Ratio
    p95: Ratio
    p99: Ratio
    throughput: Ratio
    goodput: Ratio
    failures: Difference
    paired: bool
    blocks: int


@dataclass(frozen=True, slots=True)
class Side:
    """One strategy's blocks, reduced to what a comparison needs. Latencies are in time order."""

    name: str
    latencies: tuple[Floats, ...]
    seconds: tuple[float, ...]
    done: tuple[int, ...]
    good: tuple[int, ...]
    failures: tuple[tuple[int, int], ...]


def side(group: Measured, table: Table, limit_ns: float | None = None, blocks: Sequence[Block] = ()) -> Side:
    """What a comparison needs of a strategy; `blocks` picks some of its blocks."""
    chosen = blocks or group.blocks
    return Side(
        name=group.strategy,
        latencies=tuple(latency(table, completed(table, block.due)).astype(float) for block in chosen),
        seconds=tuple(block.seconds for block in chosen),
        done=tuple(int(np.count_nonzero(table.status[block.ended] == OK)) for block in chosen),
        good=tuple(good_loops(table, block, limit_ns) for block in chosen),
        failures=tuple(block_failures(table, block) for block in chosen),
    )


def compare_strategies(
    groups: Sequence[Measured], table: Table, limit_ns: float | None = None, baseline: str | None = None
) -> tuple[Comparison, ...]:
    """Every strategy against the baseline (the first one by default), on the blocks both ran."""
    if len(groups) < 2:
        return ()
    names = [group.strategy for group in groups]
    base = groups[names.index(baseline)] if baseline in names else groups[0]
    found = []
    for group in groups:
        if group is base:
            continue
        common = {block.number for block in base.blocks} & {block.number for block in group.blocks}
        ours = [block for block in group.blocks if block.number in common]
        theirs = [block for block in base.blocks if block.number in common]
        if common:
            found.append(
                compare(side(group, table, limit_ns, ours), side(base, table, limit_ns, theirs), paired=True)
            )
    return holm(found)


def compare_runs(
    runs: tuple[Run, Run],
    tables: tuple[Table, Table],
    groups: tuple[Sequence[Measured], Sequence[Measured]],
    limit_ns: float | None = None,
) -> tuple[Comparison, ...]:
    """The second run against the first, for each strategy and load in both.

    Paired when both ran the same tape: scenario, seed, load and number of blocks are equal.
    """
    baseline, candidate = groups
    found = []
    for group in candidate:
        for base in baseline:
            if (group.strategy, group.users) != (base.strategy, base.users):
                continue
            if group.blocks and base.blocks:
                ours, theirs = side(group, tables[1], limit_ns), side(base, tables[0], limit_ns)
                found.append(compare(ours, theirs, same_tape(*runs, group, base), same_run=False))
    return holm(found)


def same_tape(one: Run, other: Run, group: Measured, base: Measured) -> bool:
    """Whether block k of both runs did the same work."""
    return (one.scenario, one.seed, one.load, len(base.blocks)) == (
        other.scenario,
        other.seed,
        other.load,
        len(group.blocks),
    )


def compare(candidate: Side, baseline: Side, paired: bool, same_run: bool = True) -> Comparison:
    """One comparison, p values not yet adjusted for others beside it.

    Of two runs (not `same_run`) the blocks' dependence widens the intervals, paired or not.
    """
    ratios = {name: _latency_ratio(candidate, baseline, name, paired, same_run) for name in LEVELS}
    return Comparison(
        strategy=candidate.name,
        baseline=baseline.name,
        throughput=_rate_ratio(candidate.done, baseline.done, candidate, baseline, paired, same_run),
        goodput=_rate_ratio(candidate.good, baseline.good, candidate, baseline, paired, same_run),
        failures=_failure_difference(candidate, baseline, paired, same_run),
        paired=paired,
        blocks=min(len(candidate.seconds), len(baseline.seconds)),
        **ratios,
    )


def holm(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """Adjust the p values of each metric over the comparisons (Holm 1979), and decide what is shown."""
    adjusted = list(comparisons)
    for metric in ("p50", "p95", "p99", "throughput", "goodput", "failures"):
        figures = [getattr(comparison, metric) for comparison in adjusted]
        p_values = holm_adjust([figure.p_value for figure in figures])
        for place, (figure, p_value) in enumerate(zip(figures, p_values, strict=True)):
            shown = p_value is not None and p_value < SIGNIFICANCE
            if metric == "failures":
                shown = shown and abs(figure.value) >= RELEVANT_FAILURES
            adjusted[place] = replace(
                adjusted[place], **{metric: replace(figure, p_value=p_value, shown=shown)}
            )
    return tuple(adjusted)


def holm_adjust(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment; None (no test was made) stays None and counts for nothing."""
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    result: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        result[place] = highest
    return result


def _latency_ratio(candidate: Side, baseline: Side, name: str, paired: bool, same_run: bool) -> Ratio:
    p, fewest = LEVELS[name], FEWEST_PER_BLOCK[name]
    sides = (candidate.latencies, baseline.latencies)
    pooled = [np.concatenate(groups) if groups else np.empty(0) for groups in sides]
    if not all(values.size for values in pooled):
        return Ratio(None, needed=FEWEST_BLOCKS * fewest)
    point = float(np.quantile(pooled[0], p) / np.quantile(pooled[1], p))
    sizes = [[group.size for group in groups] for groups in sides]
    runs: list[list[slice] | None]
    if paired:
        shared = coarsen([min(pair) for pair in zip(*sizes, strict=True)], fewest)
        runs = [shared, shared]
    else:
        runs = [coarsen(side_sizes, fewest) for side_sizes in sizes]
    if runs[0] is None or runs[1] is None:
        return Ratio(point, needed=_needed(sizes, fewest))
    joined = [join(groups, run) for groups, run in zip(sides, (runs[0], runs[1]), strict=True)]
    logs = [np.log(block_quantiles(groups, p)) for groups in joined]
    correlation = 0.0 if same_run else dependence(*joined)
    if paired:
        difference, halves = logs[0] - logs[1]
        found = spread(difference, halves, correlation=correlation)
        return _ratio(found.mean, found.half, found.p_value)
    bias = [float((whole - halves).mean()) for whole, halves in logs]
    return _ratio(*_welch(logs[0][0], logs[1][0], correlation, bias[0] - bias[1]))


def dependence(ours: Sequence[Floats], theirs: Sequence[Floats]) -> float:
    """The lag-1 correlation of the blocks' median logarithms, pooled over both runs.

    Corrected for the bias of short series, (r + 1/n) / (1 - 4/n) (Kendall 1954; the divisor not
    below 0.2), and kept within 0 to 1 - 2/n: few blocks say little of it. 0 where a block is empty.
    """
    above = below = 0.0
    count = min(len(ours), len(theirs))
    for groups in (ours, theirs):
        if min((group.size for group in groups), default=0) == 0:
            return 0.0
        medians = np.log([float(np.median(group)) for group in groups])
        centred = medians - medians.mean()
        above += float(centred[1:] @ centred[:-1])
        below += float(centred @ centred)
    if below == 0:
        return 0.0
    corrected = (above / below + 1 / count) / max(1 - 4 / count, 0.2)
    return min(max(corrected, 0.0), 1 - 2 / count)


def _needed(sizes: Sequence[Sequence[int]], fewest: int) -> int:
    """Loops of each strategy still missing, at the number of blocks there are (not below three)."""
    short = []
    for blocks in sizes:
        total = sum(blocks)
        missing = FEWEST_BLOCKS * fewest - total
        # Enough in all, but spread too unevenly over the blocks: about one more block's worth.
        short.append(missing if missing > 0 else fewest)
    return math.ceil(max(short) / 10) * 10


def _rate_ratio(
    ours: Sequence[int],
    theirs: Sequence[int],
    candidate: Side,
    baseline: Side,
    paired: bool,
    same_run: bool,
) -> Ratio:
    """Ratio of counts per second; half a loop is added to each count, so that none is no infinity."""
    rates = [
        np.log((np.asarray(counts) + 0.5) / np.maximum(np.asarray(one.seconds), 1e-9))
        for counts, one in ((ours, candidate), (theirs, baseline))
    ]
    if min(len(ours), len(theirs)) < FEWEST_BLOCKS:
        per_second = [
            sum(counts) / max(sum(one.seconds), 1e-9)
            for counts, one in ((ours, candidate), (theirs, baseline))
        ]
        point = per_second[0] / per_second[1] if per_second[1] else None
        fewest = FEWEST_BLOCKS * FEWEST_PER_BLOCK["p50"]
        return Ratio(point, needed=max(10, fewest - min(sum(candidate.done), sum(baseline.done))))
    correlation = 0.0 if same_run else dependence(candidate.latencies, baseline.latencies)
    if paired:
        found = spread(rates[0] - rates[1], correlation=correlation)
        return _ratio(found.mean, found.half, found.p_value)
    return _ratio(*_welch(rates[0], rates[1], correlation))


def _ratio(mean: float, half: float, p_value: float) -> Ratio:
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half), p_value)


def _welch(ours: Floats, theirs: Floats, correlation: float, bias: float = 0.0) -> tuple[float, float, float]:
    """(difference of the means, half its interval, p value) of two sets of blocks.

    `correlation` is that of neighbouring blocks, `bias` the step from halves to wholes (`spread`).
    """
    variances = [float(values.var(ddof=1)) / values.size for values in (ours, theirs)]
    total = sum(variances)
    parts = [v**2 / (values.size - 1) for v, values in zip(variances, (ours, theirs), strict=True)]
    freedom = total**2 / sum(parts) if sum(parts) > 0 else float(ours.size + theirs.size - 2)
    t = student(CONFIDENCE, freedom)
    mean = float(ours.mean() - theirs.mean())
    half = math.hypot(t * math.sqrt(total * (1 + correlation) / (1 - correlation)), 2 * bias)
    if half == 0:
        return mean, half, 0.0 if mean else 1.0
    return mean, half, student_tails(mean * t / half, freedom)


def _failure_difference(candidate: Side, baseline: Side, paired: bool, same_run: bool) -> Difference:
    """The difference of failure rates by blocks, no more certain than as many independent loops would be."""
    counts = [[c for c in one.failures if c[1]] for one in (candidate, baseline)]
    if not counts[0] or not counts[1]:
        return Difference(None)
    totals = [(sum(failed for failed, _ in side_), sum(n for _, n in side_)) for side_ in counts]
    value = totals[0][0] / totals[0][1] - totals[1][0] / totals[1][1]
    rates = [np.array([failed / n for failed, n in side_]) for side_ in counts]
    if min(rate.size for rate in rates) < FEWEST_BLOCKS:
        return Difference(value)
    correlation = 0.0 if same_run else dependence(candidate.latencies, baseline.latencies)
    if paired and rates[0].size == rates[1].size:
        found = spread(rates[0] - rates[1], correlation=correlation)
        half, freedom = found.half, found.freedom
    else:
        _, half, _ = _welch(rates[0], rates[1], correlation)
        freedom = float(rates[0].size + rates[1].size - 2)
    # Blocks that all agree (0 % against 0 %) have no spread; the counts still have.
    smoothed = [((failed + 1) / (n + 2), n) for failed, n in totals]
    binomial = math.sqrt(sum(p * (1 - p) / n for p, n in smoothed))
    t = student(CONFIDENCE, freedom)
    half = max(half, t * binomial)
    return Difference(
        value,
        max(-1.0, value - half),
        min(1.0, value + half),
        student_tails(value * t / half, freedom),
    )
