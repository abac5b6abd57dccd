"""Strategies against a baseline, and a recorded run against another.

Within a run the comparison is paired: every block ran every strategy, in random order, on the
same tape, so that what the blocks share (drift, the tape's work) cancels. The effect is
exp(mean of the log-ratios of the blocks ± half), where half is the half-width of `quantiles.spread`.

Between two runs it is Welch's t on the same logarithms, paired only when their tapes match. Drift does
not cancel then. It makes neighbouring blocks alike, so the lag-1 correlation r of the blocks' medians
widens the interval by √((1 + r) / (1 - r)). On systems that drift by 5 % a block this takes a gate's
false alarms from 17 to 7 % (`benchmarks/coverage.py`); only running both in one run removes them. Few
stretches of a level that lasts tell neither r nor how far it wanders: of a run that is not three memories
of its level long (`quantiles.memory`) nothing is claimed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal, Protocol

import numpy as np

from profiler.records import RECORDED
from profiler.rundir import Run
from profiler.statistics.figures import block_failures, good_loops
from profiler.statistics.objectives import Objective
from profiler.statistics.quantiles import (
    CONFIDENCE,
    FEWEST_BLOCKS,
    FEWEST_PER_BLOCK,
    LEVELS,
    MEMORIES,
    Floats,
    Spread,
    block_quantiles,
    coarsen,
    independent,
    join,
    memory,
    spread,
    student,
    student_tails,
    thick,
)
from profiler.statistics.table import Table
from profiler.statistics.windows import Block, Measured, completed, latency

Metric = Literal["p50", "p95", "p99", "throughput", "goodput"]

SIGNIFICANCE = 1 - CONFIDENCE
RELEVANT_FAILURES = 0.01
"""Failure rates that differ by a smaller share of the loops count as equal."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """candidate / baseline of one metric, with the interval that decides and the Holm-adjusted p value.

    Without an interval, `value` is a point estimate, and `needed` says how many more loops of each
    strategy an interval would take. Where that is because latency changes slowly, over `memory_seconds`
    (`quantiles.memory`), `needed_seconds` are how long each strategy must be measured in all. `shown` says
    whether the ratio is shown to differ from 1: exactly where the interval excludes 1. `confidence` is the
    level of the interval, above 0.95 where the comparison was decided as one `among` several (`holm`);
    `freedom` the degrees of freedom of its t (None: as if normal).
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    needed: int | None = None
    shown: bool = False
    confidence: float = CONFIDENCE
    among: int = 1
    freedom: float | None = None
    memory_seconds: float | None = None
    needed_seconds: float | None = None

    @property
    def missing(self) -> str:
        """What an interval would take, in words."""
        text = f"about {self.needed} more of each needed"
        if self.memory_seconds and self.needed_seconds:
            text += (
                f", {self.needed_seconds:.0f} s of each in all, "
                f"since latency changes slowly, over about {self.memory_seconds:.1f} s"
            )
        return text

    def interval(self, wider: float = 1.0, confidence: float = CONFIDENCE) -> tuple[float, float] | None:
        """(low, high) at a level of confidence, widened by a factor on the logarithmic scale.

        None without an interval.
        """
        if not self.value or self.low is None or self.high is None:
            return None
        value, low, high = self.value, self.low, self.high
        power = wider * _critical(confidence, self.freedom) / _critical(self.confidence, self.freedom)
        return value * (low / value) ** power, value * (high / value) ** power

    def decided(self, confidence: float, among: int, p_value: float | None) -> Ratio:
        """The same at the level at which it is decided, as one `among` several."""
        low, high = self.interval(confidence=confidence) or (self.low, self.high)
        shown = low is not None and high is not None and not low <= 1 <= high
        return replace(
            self, low=low, high=high, p_value=p_value, shown=shown, confidence=confidence, among=among
        )

    @property
    def inverse(self) -> Ratio:
        """baseline / candidate."""
        value, low, high = (1 / bound if bound else None for bound in (self.value, self.high, self.low))
        return replace(self, value=value, low=low, high=high)


@dataclass(frozen=True, slots=True)
class Difference:
    """candidate - baseline of the share of failed loops; `shares` are those of the two.

    `shown` says whether it is shown to differ from 0 and is at least `RELEVANT_FAILURES`. The interval,
    `confidence`, `among` and `freedom` as in `Ratio`.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    shown: bool = False
    shares: tuple[float, float] | None = None
    confidence: float = CONFIDENCE
    among: int = 1
    freedom: float | None = None

    def interval(self, wider: float = 1.0, confidence: float = CONFIDENCE) -> tuple[float, float] | None:
        """(low, high) at a level of confidence, widened by a factor; None without an interval."""
        if self.value is None or self.low is None or self.high is None:
            return None
        factor = wider * _critical(confidence, self.freedom) / _critical(self.confidence, self.freedom)
        low, high = (self.value + (bound - self.value) * factor for bound in (self.low, self.high))
        return max(-1.0, low), min(1.0, high)

    def decided(self, confidence: float, among: int, p_value: float | None) -> Difference:
        """The same at the level at which it is decided, as one `among` several."""
        low, high = self.interval(confidence=confidence) or (self.low, self.high)
        excluded = low is not None and high is not None and not low <= 0 <= high
        shown = excluded and abs(self.value or 0.0) >= RELEVANT_FAILURES
        return replace(
            self, low=low, high=high, p_value=p_value, shown=shown, confidence=confidence, among=among
        )


def _critical(confidence: float, freedom: float | None) -> float:
    """How many standard errors an interval of this level reaches to either side."""
    if freedom is None:
        return NormalDist().inv_cdf(0.5 + confidence / 2)
    return student(confidence, freedom)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One strategy against the baseline: latencies of completed loops, rates, failures.

    `same_run` is False for two runs, between which the system may have drifted.
    """

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
    same_run: bool = True


@dataclass(frozen=True, slots=True)
class Side:
    """One strategy's blocks, reduced to what a comparison needs; one entry per block.

    `latencies` are of completed loops, in nanoseconds and in the order of time. `done` and `good` count
    the loops that ended inside the window of `seconds`, `failures` are (failed loops, loops) due in it.
    """

    name: str
    latencies: tuple[Floats, ...]
    seconds: tuple[float, ...]
    done: tuple[int, ...]
    good: tuple[int, ...]
    failures: tuple[tuple[int, int], ...]


def side(
    group: Measured, table: Table, objective: Objective | None = None, blocks: Sequence[Block] = ()
) -> Side:
    """The side of a strategy in a comparison; `blocks` picks some of its blocks."""
    chosen = blocks or group.blocks
    return Side(
        name=group.strategy,
        latencies=tuple(latency(table, completed(table, block.due)).astype(float) for block in chosen),
        seconds=tuple(block.seconds for block in chosen),
        done=tuple(completed(table, block.ended).size for block in chosen),
        good=tuple(good_loops(table, block, objective) for block in chosen),
        failures=tuple(block_failures(table, block) for block in chosen),
    )


def compare_strategies(
    groups: Sequence[Measured], table: Table, objective: Objective | None = None, baseline: str | None = None
) -> tuple[Comparison, ...]:
    """Every strategy against the baseline (the first one by default), on the blocks both ran."""
    if len(groups) < 2:
        return ()
    names = [group.strategy for group in groups]
    base = groups[names.index(baseline)] if baseline in names else groups[0]
    found = []
    for group in groups:
        common = {block.number for block in base.blocks} & {block.number for block in group.blocks}
        if group is base or not common:
            continue
        ours, theirs = (
            side(one, table, objective, [block for block in one.blocks if block.number in common])
            for one in (group, base)
        )
        found.append(compare(ours, theirs, paired=True))
    return holm(found)


def compare_runs(
    runs: tuple[Run, Run],
    tables: tuple[Table, Table],
    groups: tuple[Sequence[Measured], Sequence[Measured]],
    objective: Objective | None = None,
) -> tuple[Comparison, ...]:
    """The second run against the first, for each strategy and load in both.

    Paired when both ran the same tape: scenario, seed, load and number of blocks are equal. No two recordings
    did.
    """
    tapes = {(run.scenario, run.seed, run.load) for run in runs}
    same_work = len(tapes) == 1 and runs[0].recording is None
    found = []
    for group in groups[1]:
        for base in groups[0]:
            if comparable(group, base) and group.blocks and base.blocks:
                ours, theirs = side(group, tables[1], objective), side(base, tables[0], objective)
                paired = same_work and len(group.blocks) == len(base.blocks)
                found.append(compare(ours, theirs, paired, same_run=False))
    return holm(found)


class _Named(Protocol):
    @property
    def strategy(self) -> str: ...
    @property
    def users(self) -> int: ...


def comparable(one: _Named, other: _Named) -> bool:
    """The same strategy under the same load; or one of them is a recording's, which has neither."""
    if RECORDED in (one.strategy, other.strategy):
        return True
    return (one.strategy, one.users) == (other.strategy, other.users)


def compare(candidate: Side, baseline: Side, paired: bool, same_run: bool = True) -> Comparison:
    """One comparison, its p values not yet adjusted for other comparisons beside it.

    Between two runs (not `same_run`) the dependence of the blocks widens the intervals, paired or not.
    Blocks that remember the one before them are joined (`quantiles.memory`), save for failures, which
    need not come and go with latency.
    """
    sides = (candidate, baseline)
    correlation = 0.0 if same_run else dependence(candidate.latencies, baseline.latencies)
    remembered = _remembered((candidate.latencies, baseline.latencies), paired, same_run)
    latencies = {
        name: _latency_ratio(candidate, baseline, name, paired, same_run, remembered) for name in LEVELS
    }
    throughput = goodput = Ratio(None)  # how often loops of a recording came was up to whoever wanted them
    if RECORDED not in (candidate.name, baseline.name):
        throughput = _rate_ratio((candidate.done, baseline.done), sides, paired, same_run, remembered)
        goodput = _rate_ratio((candidate.good, baseline.good), sides, paired, same_run, remembered)
    return Comparison(
        strategy=candidate.name,
        baseline=baseline.name,
        throughput=throughput,
        goodput=goodput,
        failures=_failure_difference(sides, paired, correlation),
        paired=paired,
        blocks=min(len(candidate.seconds), len(baseline.seconds)),
        same_run=same_run,
        **latencies,
    )


@dataclass(frozen=True, slots=True)
class _Remembered:
    """Over how many loops latency is remembered (0: not seen), and how many memories a block must last."""

    loops: float
    memories: float

    def thick(self, fewest: int) -> int:
        """How many loops a block must have, with `fewest` for its quantile."""
        return thick(fewest, self.loops, self.memories)


def _remembered(
    sides: tuple[Sequence[Floats], Sequence[Floats]], paired: bool, same_run: bool
) -> _Remembered:
    """What blocks must forget: in pairs only what the strategies of a block do not share.

    Between two runs it is what changes within blocks, since what neighbours share widens the interval by
    their `dependence`; but a run shorter than three memories has no say in that, and gets no interval.
    """
    if paired:
        return _Remembered(memory(*sides), MEMORIES)
    if not same_run:
        across = max(memory(one) for one in sides)
        if FEWEST_BLOCKS * across > min(sum(block.size for block in one) for one in sides):
            return _Remembered(across, 1.0)
    return _Remembered(max(memory(one, within=True) for one in sides), MEMORIES)


def holm(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """The comparisons, each metric decided after Holm (1979), with the intervals that decide.

    Holm's k-th smallest of m p values is tested at 0.05 / (m - k + 1), until one is not below that; those
    after it are not shown either. So an interval of the level 1 - 0.05 / (m - k + 1), with the k at which a
    comparison was decided, excludes "no difference" exactly where a difference is shown.
    """
    adjusted = list(comparisons)
    for metric in ("p50", "p95", "p99", "throughput", "goodput", "failures"):
        figures = [getattr(comparison, metric) for comparison in adjusted]
        p_values = holm_adjust([figure.p_value for figure in figures])
        among = sum(p_value is not None for p_value in p_values)
        rejected = sum(p_value is not None and p_value < SIGNIFICANCE for p_value in p_values)
        tested = [place for place, p_value in enumerate(p_values) if p_value is not None]
        for rank, place in enumerate(sorted(tested, key=lambda place: figures[place].p_value)):
            level = 1 - SIGNIFICANCE / (among - min(rank, rejected))
            decided = figures[place].decided(level, among, p_values[place])
            adjusted[place] = replace(adjusted[place], **{metric: decided})
    return tuple(adjusted)


def holm_adjust(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment; None (no test was made) stays None and is not counted as a test."""
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    result: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        result[place] = highest
    return result


def _latency_ratio(
    candidate: Side, baseline: Side, name: str, paired: bool, same_run: bool, remembered: _Remembered
) -> Ratio:
    p, fewest = LEVELS[name], remembered.thick(FEWEST_PER_BLOCK[name])
    sides = (candidate.latencies, baseline.latencies)
    pooled = [np.concatenate(blocks) if blocks else np.empty(0) for blocks in sides]
    if not all(values.size for values in pooled):
        return Ratio(None, needed=FEWEST_BLOCKS * fewest)
    point = float(np.quantile(pooled[0], p) / np.quantile(pooled[1], p))
    sizes = [[block.size for block in blocks] for blocks in sides]
    if paired:  # block k of one side is joined with the same neighbours as block k of the other
        ours = theirs = coarsen([min(pair) for pair in zip(*sizes, strict=True)], fewest)
    else:
        ours, theirs = (coarsen(side_sizes, fewest) for side_sizes in sizes)
    if ours is None or theirs is None:
        return _too_few(point, (candidate, baseline), fewest, remembered)
    blocks = [join(sides[0], ours), join(sides[1], theirs)]
    (our_logs, our_halves), (their_logs, their_halves) = (np.log(block_quantiles(one, p)) for one in blocks)
    correlation = 0.0 if same_run else dependence(*blocks)
    if paired:
        return _ratio(spread(our_logs - their_logs, our_halves - their_halves, correlation=correlation))
    step = float((our_logs - our_halves).mean()) - float((their_logs - their_halves).mean())
    return _ratio(_welch(our_logs, their_logs, correlation, step))


def dependence(ours: Sequence[Floats], theirs: Sequence[Floats]) -> float:
    """The lag-1 correlation of the logarithms of the blocks' medians, pooled over both runs.

    Corrected for the bias of short series, (r + 1/n) / (1 - 4/n) (Kendall 1954; the divisor not
    below 0.2), and kept within 0 to 1 - 2/n, since few blocks tell little. 0 where a block is empty.
    """
    above = below = 0.0
    count = min(len(ours), len(theirs))
    if count < FEWEST_BLOCKS:
        return 0.0
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


def _too_few(point: float | None, sides: tuple[Side, Side], fewest: int, remembered: _Remembered) -> Ratio:
    """A ratio without an interval, which would take `FEWEST_BLOCKS` blocks of `fewest` loops."""
    sizes = [[block.size for block in one.latencies] for one in sides]
    needed = _needed(sizes, fewest)
    rates = [
        sum(counts) / sum(one.seconds) for counts, one in zip(sizes, sides, strict=True) if sum(one.seconds)
    ]
    if fewest > remembered.thick(1) or not all(rates):  # what is remembered is not what it takes
        return Ratio(point, needed=needed)
    rate = min(rates)
    seconds = max(FEWEST_BLOCKS * fewest, min(map(sum, sizes)) + needed) / rate
    return Ratio(point, needed=needed, memory_seconds=remembered.loops / rate, needed_seconds=seconds)


def _needed(sizes: Sequence[Sequence[int]], fewest: int) -> int:
    """Loops of each strategy still missing for `FEWEST_BLOCKS` blocks of `fewest`, rounded up to tens."""
    missing = [FEWEST_BLOCKS * fewest - sum(blocks) for blocks in sizes]
    # Where there are enough in all, they are spread too unevenly: about one more block's worth.
    return math.ceil(max(short if short > 0 else fewest for short in missing) / 10) * 10


def _rate_ratio(
    counts: tuple[Sequence[int], Sequence[int]],
    sides: tuple[Side, Side],
    paired: bool,
    same_run: bool,
    remembered: _Remembered,
) -> Ratio:
    """Ratio of counts per second; half a loop is added to each count, so that 0 has a logarithm too."""
    rates = [sum(each) / max(sum(one.seconds), 1e-9) for each, one in zip(counts, sides, strict=True)]
    point = rates[0] / rates[1] if rates[1] else None
    if min(map(len, counts)) < FEWEST_BLOCKS:
        missing = FEWEST_BLOCKS * FEWEST_PER_BLOCK["p50"] - min(sum(one.done) for one in sides)
        return Ratio(point, needed=max(10, missing))
    sizes = [[block.size for block in one.latencies] for one in sides]
    if paired:
        sizes = [[min(pair) for pair in zip(*sizes, strict=True)]] * 2
    parts = [independent(of_side, remembered.loops, remembered.memories) for of_side in sizes]
    if parts[0] is None or parts[1] is None:
        return _too_few(point, sides, remembered.thick(1), remembered)
    ours, theirs = (
        np.array([math.log((sum(each[p]) + 0.5) / max(sum(one.seconds[p]), 1e-9)) for p in of_side or ()])
        for each, one, of_side in zip(counts, sides, parts, strict=True)
    )
    joined = [join(one.latencies, of_side or ()) for one, of_side in zip(sides, parts, strict=True)]
    correlation = 0.0 if same_run else dependence(*joined)
    if paired:
        return _ratio(spread(ours - theirs, correlation=correlation))
    return _ratio(_welch(ours, theirs, correlation))


def _ratio(logs: Spread) -> Ratio:
    low, value, high = (math.exp(logs.mean + step) for step in (-logs.half, 0.0, logs.half))
    return Ratio(value, low, high, logs.p_value, freedom=logs.freedom)


def _welch(ours: Floats, theirs: Floats, correlation: float, step: float = 0.0) -> Spread:
    """The t-interval of the difference of the means of two sets of blocks (Welch 1947).

    `correlation` is that of neighbouring blocks; `step`, from halves of blocks to whole ones, widens
    the interval as in `spread`.
    """
    variances = [float(values.var(ddof=1)) / values.size for values in (ours, theirs)]
    total = sum(variances)
    parts = [v**2 / (values.size - 1) for v, values in zip(variances, (ours, theirs), strict=True)]
    freedom = total**2 / sum(parts) if sum(parts) > 0 else float(ours.size + theirs.size - 2)
    t = student(CONFIDENCE, freedom)
    half = math.hypot(t * math.sqrt(total * (1 + correlation) / (1 - correlation)), 2 * step)
    return Spread(float(ours.mean() - theirs.mean()), half, t, freedom)


def _failure_difference(sides: tuple[Side, Side], paired: bool, correlation: float) -> Difference:
    """The difference of failure rates by blocks, no more certain than as many independent loops would be."""
    counts = [[(failed, loops) for failed, loops in one.failures if loops] for one in sides]
    if not all(counts):
        return Difference(None)
    totals = [(sum(failed for failed, _ in one), sum(loops for _, loops in one)) for one in counts]
    shares = (totals[0][0] / totals[0][1], totals[1][0] / totals[1][1])
    value = shares[0] - shares[1]
    ours, theirs = (np.array([failed / loops for failed, loops in one]) for one in counts)
    if min(ours.size, theirs.size) < FEWEST_BLOCKS:
        return Difference(value, shares=shares)
    if paired and ours.size == theirs.size:
        found = spread(ours - theirs, correlation=correlation)
        half, freedom = found.half, found.freedom
    else:
        half, freedom = _welch(ours, theirs, correlation).half, float(ours.size + theirs.size - 2)
    # Blocks that all agree (0 % and 0 %) have no spread, but their counts leave room for a difference
    # (smoothed as in Agresti & Caffo 2000).
    smoothed = [((failed + 1) / (loops + 2), loops) for failed, loops in totals]
    binomial = math.sqrt(sum(p * (1 - p) / loops for p, loops in smoothed))
    half = max(half, student(CONFIDENCE, freedom) * binomial)
    return Difference(
        value,
        max(-1.0, value - half),
        min(1.0, value + half),
        student_tails(value * student(CONFIDENCE, freedom) / half, freedom),
        shares=shares,
        freedom=freedom,
    )
