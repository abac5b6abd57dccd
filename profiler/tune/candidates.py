"""The search, pure: candidates as measured, which of them stay, which limits to try, what the curve shows.

Successive halving: limits far apart in short blocks first, then only the candidates that are not shown
to be worse, closer together and for longer. The last stage is judged by its own figures: the winner of
an earlier stage owes part of its score there to luck.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from profiler.anatomy import peak
from profiler.over import LARGEST
from profiler.records import LoopRecord, ToolCall
from profiler.rundir import Run
from profiler.statistics.comparison import Ratio, compare_strategies
from profiler.statistics.figures import StrategySummary, figures, limit_line
from profiler.statistics.objectives import Objective
from profiler.statistics.quantiles import Estimate, spread
from profiler.statistics.table import Ints, Table, tabulate
from profiler.statistics.windows import by_load, good, latency, measure
from profiler.tune.dial import Dial

ObjectiveName = Literal["goodput", "p95", "throughput"]

MOST_FAILURES = 0.01
"""With `p95` as the objective, whatever fails more often has no score: the latency of successes flatters."""

KNEE_SHARE = 0.95
"""The knee is the smallest limit with this share of the best score."""

CLIFF_SHARE = 0.9
"""Beyond the cliff less than this share of the best is left."""

EQUIVALENT = 0.05
"""A difference below this share does not matter."""

EARLY = 1.5
"""Before the end intervals count as this much wider, since whoever looks often finds differences by luck."""

MOST_PARTS, FEWEST_PARTS = 8, 4
"""Into how many parts a window is cut to see how its rate varies, and from how many on that is looked at."""

FEWEST_LOOPS = 10
"""Without so many in its windows there is no interval of what is promised."""

LEAST_DOUBT = 0.04
"""Two measurements of the same differ so much for reasons that neither shows."""

SEMAPHORE = Dial()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A strategy as measured in one experiment, or as predicted. The higher the `score`, the better.

    `limit` is that of a shared semaphore, or the value of the setting that is searched; None for others.
    `calls_per_second` counts its tool calls. `against_best` is the paired ratio of its score to the best
    one's, None for the best itself. `objective_met` is whether it meets `--slo` (None without one),
    `objective_missed` says what it misses. A `predicted` one was not measured: its intervals are bands of
    simulated runs.
    """

    spec: str
    limit: int | None
    score: Estimate
    goodput: Estimate
    throughput: Estimate
    p95: Estimate
    failures: Estimate
    calls_per_second: float
    against_best: Ratio | None = None
    objective_met: bool | None = None
    objective_missed: tuple[str, ...] = ()
    predicted: bool = False

    @property
    def points(self) -> float:
        """The score, 0 without one."""
        return self.score.value or 0.0

    @property
    def shown_worse(self) -> bool:
        """Whether it is shown to be worse than the best."""
        ratio = self.against_best
        return ratio is not None and ratio.shown and (ratio.value or 1.0) < 1


def by_level(
    run: Run, table: Table, objective: ObjectiveName, slo: Objective | None, dial: Dial = SEMAPHORE
) -> dict[int, list[Candidate]]:
    """For each load of an experiment every strategy, compared with the best in paired blocks."""
    found = {}
    for users, measured in by_load(measure(run, table)).items():
        candidates = [_candidate(figures(group, table, slo), objective, slo, dial) for group in measured]
        if any(one.score.value is not None for one in candidates):
            compared = compare_strategies(measured, table, slo, best_of(candidates).spec)
            ratios: dict[str, Ratio] = {one.strategy: getattr(one, objective) for one in compared}
            if objective == "p95":  # more is to be better, of a latency too
                ratios = {spec: ratio.inverse for spec, ratio in ratios.items()}
            candidates = [replace(one, against_best=ratios.get(one.spec)) for one in candidates]
        found[users] = candidates
    return found


def _candidate(
    found: StrategySummary, objective: ObjectiveName, slo: Objective | None, dial: Dial
) -> Candidate:
    score = found.goodput if objective == "goodput" else found.throughput
    p95 = found.loop_seconds.p95
    if objective == "p95":
        allowed = MOST_FAILURES if slo is None or slo.errors is None else slo.errors
        hopeless = (found.failure_rate.value or 0.0) > allowed
        score = Estimate(None) if hopeless else _per_second(p95)
    calls = sum(tool.calls for tool in found.tools.values())
    return Candidate(
        spec=found.strategy,
        limit=dial.value(found.strategy),
        score=score,
        goodput=found.goodput,
        throughput=found.throughput,
        p95=p95,
        failures=found.failure_rate,
        calls_per_second=calls / found.window_seconds if found.window_seconds else 0.0,
        objective_met=found.objective_met,
        objective_missed=found.objective_missed,
    )


def _per_second(seconds: Estimate) -> Estimate:
    return Estimate(*(1 / one if one else None for one in (seconds.value, seconds.high, seconds.low)))


def best_of(candidates: Iterable[Candidate]) -> Candidate:
    """The one with the highest score; the first of them where several have it, or none has one."""
    return max(candidates, key=lambda one: one.points)


def survivors(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates with a score that are not shown to be worse than the best, the best first."""
    kept = [one for one in candidates if one.score.value is not None and not one.shown_worse]
    return sorted(kept, key=lambda one: -one.points)


def equivalent(ratio: Ratio | None, wider: float = 1.0) -> bool:
    """Whether a ratio to the best is shown to be at least nearly 1."""
    interval = None if ratio is None else ratio.interval(wider)
    return interval is not None and interval[0] >= 1 - EQUIVALENT


def settled(candidates: Sequence[Candidate]) -> bool:
    """Whether every candidate is shown to be worse than the best, or as good, so that no more is needed."""
    if sum(one.score.value is not None for one in candidates) < 2:
        return False
    best = best_of(candidates)
    for one in candidates:
        if one is best or one.score.value == 0:
            continue
        interval = None if one.against_best is None else one.against_best.interval(EARLY)
        if interval is None or not (interval[1] < 1 or equivalent(one.against_best, EARLY)):
            return False
    return True


# Which limits to try.


MOST_FIRST, FEWEST_FIRST = 5, 3
"""Limits to begin with."""

NEARLY = 0.1
"""Two limits that differ by a smaller share are one to begin with, unless both are guessed."""

A_LITTLE_LESS = 0.97
"""Of how many calls a server seems to serve: where that is one too many, all of them may fail."""


def first_limits(
    highest: int,
    lowest: int = 1,
    guesses: Sequence[int] = (),
    *,
    most: int = MOST_FIRST,
    failing: bool = False,
) -> list[int]:
    """At most `most` limits to begin with, the most telling first.

    Evenly spaced by ratio from `lowest` to `highest`; with `guesses` (the best one first) these, and around
    them, closer together. `lowest`
    is what the calls need on average: below it they only queue, and take long to drain. Where calls are
    `failing` that average says little, and so lower ones are tried: what fails may do so because of the load.
    """
    highest = max(1, highest)
    if guesses:
        best = guesses[0]
        around = [best * share for share in (0.5, 1.4, 0.7, 0.25, 2.0)]
        limits = [*dict.fromkeys(guesses)]
        for limit in (round(max(1.0, one)) for one in around):
            if all(abs(limit - other) > NEARLY * max(limit, other) for other in limits):
                limits.append(limit)
    else:
        lowest = min(max(1, min(lowest, highest // 8) if failing else lowest), highest)
        steps = max(1, most - 1)
        spaced = [round(lowest * (highest / lowest) ** (k / steps)) for k in range(steps + 1)]
        # The middle and what is below it, where calls fail; else the highest are the most telling.
        middle = steps / 2
        limits = sorted(spaced, key=lambda one: abs(spaced.index(one) - middle)) if failing else spaced[::-1]
    return [*dict.fromkeys(limits)][:most]


def first_values(dial: Dial, seen: Pilot) -> list[int]:
    """The values to begin with, after a first look, the most telling first."""
    lowest, highest = dial.low, dial.high
    if dial.setting is None:
        # Calls of one agent, or of one of several tools, are fewer than all those that the mean counts.
        lowest = dial.nearest(seen.mean / 2) if dial.knob.shared else lowest
        highest = dial.nearest(seen.peak)
    # What a setting's value lets through is not known: the whole range counts.
    guesses = dial.distinct(seen.guesses)
    found = dial.distinct(first_limits(highest, lowest, guesses, failing=seen.failing))
    if len(found) < FEWEST_FIRST and dial.high < LARGEST:
        # What was seen lies beyond the values that are asked for.
        found += dial.distinct(dial.values.spaced(MOST_FIRST)[::-1])
    return [*dict.fromkeys(found)][:MOST_FIRST]


def knee_of(scores: Mapping[int, float]) -> int:
    """The smallest limit with nearly the best score."""
    return min(limit for limit in scores if scores[limit] >= KNEE_SHARE * max(scores.values()))


def refine(scores: Mapping[int, float], most: int = 5, best: int | None = None) -> list[int]:
    """Limits between the best and its neighbours, the nearest to the best first (itself); at most `most`.

    `best`: the one to go by; None for that with the best score.
    """
    if not scores:
        return []
    tried = sorted(scores)
    best = max(tried, key=lambda limit: scores[limit]) if best is None else best
    place = tried.index(best)
    below = tried[place - 1] if place else max(1, best // 2)
    above = tried[place + 1] if place + 1 < len(tried) else round(best * 1.5)
    between = {best}
    for k in range(1, most // 2 + 1):
        share = k / (most // 2 + 1)
        between |= {round(best * (neighbour / best) ** share) for neighbour in (below, above)}
    return sorted(between, key=lambda limit: (abs(math.log(limit / best)), limit))[:most]


# What the setting promises.


def promised(run: Run, table: Table, spec: str, slo: Objective | None) -> Estimate:
    """The goodput that another measurement of a strategy will find, with an interval for that.

    From the good loops that ended in parts of its windows, each part as long as a loop or more: so there is
    an interval however few blocks there are, where `FEWEST_LOOPS` were measured. It is that of the next
    measurement of the same length, √2 times as wide as that of the mean, and `LEAST_DOUBT` to each side at
    least.

    Long calls hold their places over several parts, which are then more alike than windows are: so the
    interval is at least that of a renewal process, in which the number of loops has a variance of c² times
    its mean (Cox, Renewal Theory, 1962, 4.2), c being the coefficient of variation of what a loop takes: of
    its calls where a limit holds them back, or of the whole loop. Loops that fail by chance add their share.
    """
    trials = {trial.block: trial for trial in run.trials if trial.strategy == spec}
    groups = [group for group in measure(run, table) if group.strategy == spec]
    counts: list[int] = []
    seconds: list[float] = []
    ended: list[Ints] = []
    for block in groups[-1].blocks if groups else ():
        ended.append(block.ended)
        rows = block.ended[good(table, block.ended)]
        if slo is not None and slo.limit_seconds is not None:
            rows = rows[latency(table, rows) < slo.limit_seconds * 1e9]
        loop = float(np.median(latency(table, block.ended))) / 1e9 if block.ended.size else block.seconds
        parts = max(1, min(MOST_PARTS, int(block.seconds / max(loop, 0.5))))
        end_ns = trials[block.number].ended_ns
        edges = end_ns - np.linspace(block.seconds * 1e9, 0.0, parts + 1)
        counts += np.histogram(table.ended[rows], edges)[0].tolist()
        seconds += [block.seconds / parts] * parts
    if not sum(seconds):
        return Estimate(None)
    value = sum(counts) / sum(seconds)
    rows = np.concatenate(ended)
    if not value or rows.size < FEWEST_LOOPS:
        return Estimate(value)
    half = value * max(LEAST_DOUBT, _doubt(table, rows, sum(counts)))
    if len(counts) >= FEWEST_PARTS:
        rates = [count / part for count, part in zip(counts, seconds, strict=True)]
        half = max(half, math.sqrt(2) * spread(rates).half)
    return Estimate(value, max(0.0, value - half), value + half)


def _doubt(table: Table, rows: Ints, successes: int) -> float:
    """By what share two windows of a renewal process with these loops differ, in 95 of 100 cases at most."""
    taken = (table.work[rows].astype(float), latency(table, rows).astype(float))
    variation = max(float(np.var(each)) / max(1.0, float(np.mean(each)) ** 2) for each in taken)
    failing = 1.0 - successes / rows.size
    return 1.96 * math.sqrt(2 * (variation / rows.size + failing / successes))


# The curve of score over limit.


def on_one_scale(stages: Sequence[Sequence[Candidate]], dial: Dial = SEMAPHORE) -> list[Candidate]:
    """Every candidate with a limit, by that: from the last stage that tried it, on the last stage's scale.

    Blocks of different lengths at different times cannot be compared as they are: the rates of a stage
    are multiplied by what the candidates that it shares with the next one gained or lost there.
    """
    curve: dict[int, Candidate] = {}
    factor = 1.0
    later: dict[str, float] = {}
    # Their scores depend on the length of blocks in another way than those of limits near the best.
    unlimited = (dial.baseline, "sequential")
    for stage in reversed(stages):
        own = {one.spec: one.score.value for one in stage if one.score.value}
        common = [spec for spec in own if spec in later and spec not in unlimited]
        if common:
            factor *= sum(later[spec] for spec in common) / sum(own[spec] for spec in common)
        for one in stage:
            if one.limit is not None and one.limit not in curve:
                curve[one.limit] = replace(
                    one,
                    score=_times(one.score, factor),
                    goodput=_times(one.goodput, factor),
                    throughput=_times(one.throughput, factor),
                )
        later = own
    return [curve[limit] for limit in sorted(curve)]


def _times(one: Estimate, factor: float) -> Estimate:
    return Estimate(*(None if value is None else value * factor for value in (one.value, one.low, one.high)))


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of the curve: limits that were tried, or None.

    `knee`: the smallest with nearly the best score. `cliff`: the smallest beyond the best at which clearly
    less is left. `low` to `high` around the best: those not shown to differ from it, with at least
    `CLIFF_SHARE` of its score.
    """

    best: int
    knee: int
    cliff: int | None
    low: int
    high: int


def shape(curve: Sequence[Candidate], best: int) -> Shape:
    """The shape of a curve of shared semaphores, one for each limit; `best` is one of the limits."""
    points = [(one.limit, one) for one in curve if one.limit is not None]
    points.sort(key=lambda point: point[0])
    place = [limit for limit, _ in points].index(best)
    top = points[place][1]
    knee = next(limit for limit, one in points if one.points >= KNEE_SHARE * top.points)
    beyond = [(limit, one) for limit, one in points[place + 1 :] if one.score.value is not None]
    cliff = (limit for limit, one in beyond if (one.score.high or one.points) < CLIFF_SHARE * top.points)
    low = high = place
    while low > 0 and not _apart(points[low - 1][1], top):
        low -= 1
    while high + 1 < len(points) and not _apart(points[high + 1][1], top):
        high += 1
    return Shape(best, min(knee, best), next(cliff, None), points[low][0], points[high][0])


def _apart(one: Candidate, best: Candidate) -> bool:
    """Whether a candidate is shown to differ, or so far below that only too few loops can hide it.

    By the paired comparison, else by intervals that do not meet.
    """
    if one.points < CLIFF_SHARE * best.points:
        return True
    if one.against_best is not None and one.against_best.interval() is not None:
        return one.against_best.shown
    if one.score.high is None or best.score.low is None:
        return one.points < KNEE_SHARE * best.points
    return one.score.high < best.score.low


# What a first short experiment tells.


@dataclass(frozen=True, slots=True)
class Pilot:
    """Findings of the pilot experiment: which limits are worth trying, and what trials cost.

    `peak`: tool calls that ran at once under the baseline, such as `gathered`; where some failed, as many as
    were asked for at once, since a refused call is soon over. `mean`: calls that ran at once on average,
    under the strategy that got more done. `guesses`, the best first: how many calls at once a server that
    refused others was seen to serve (of a setting: the value that lets so many run), and where the adaptive
    limit was in the end; none when no limit was met. `failing`: calls failed. In seconds:
    `loops` is the mean loop of each strategy, `loop` that of good loops where they took least, and `work`
    what the tool calls of a loop take together. `widest`: the most calls of one round.
    """

    peak: int
    mean: float
    guesses: tuple[int, ...]
    failing: bool = False
    loops: Mapping[str, float] = field(default_factory=dict)
    loop: float = 0.0
    work: float = 0.0
    dial: Dial = SEMAPHORE
    widest: int = 1

    def loop_seconds(self, spec: str, users: int) -> float:
        """The mean loop to expect of a strategy: as measured, or by Little's law of the places that it has.

        A shared semaphore of k lets k seconds of calls be done in a second, so that users · work / k seconds
        pass until each agent has had its calls. Of a setting it is not known what it limits: half the value
        may make loops twice as long, and a larger one makes them no longer.
        """
        if spec in self.loops:
            return self.loops[spec]
        limit = self.dial.value(spec)
        longest = max(self.loops.values(), default=self.loop)
        if limit is None:
            return longest
        if self.dial.setting is None:
            sharing = 1 if self.dial.knob.scope == "agent" else users
            return max(self.loop, sharing * self.work / limit)
        seen = {self.dial.value(name): seconds for name, seconds in self.loops.items()}
        slower = [(value, seconds) for value, seconds in seen.items() if value is not None and value <= limit]
        if slower:
            return max(slower)[1]
        value, seconds = min((one for one in seen.items() if one[0] is not None), default=(limit, longest))
        return max(self.loop, seconds * (value or limit) / limit)


def pilot(run: Run, records: Sequence[LoopRecord], dial: Dial = SEMAPHORE) -> Pilot:
    """The `Pilot` of an experiment with the baseline and, if possible, `adaptive`.

    Where the limit is of one tool or of one MCP server, the calls are those of that.
    """
    gathered = [record for record in records if record.strategy == dial.baseline]
    asked = [call for record in gathered for call in dial.calls(record.tool_calls)]
    calls = [call for record in records for call in dial.calls(record.tool_calls)]
    means = []
    for trial in run.trials:
        ours = (record for record in records if record.strategy == trial.strategy)
        spans = _running(call for record in ours for call in dial.calls(record.tool_calls))
        busy = sum(max(0, min(end, trial.ended_ns) - max(start, trial.started_ns)) for start, end in spans)
        means.append(busy / max(1, trial.ended_ns - trial.started_ns))
    rounds = (one for record in gathered for one in record.rounds)
    widest = max((len(dial.calls(one.tool_calls)) + one.unobserved_calls for one in rounds), default=1)
    if dial.knob.scope == "agent":
        most = widest
    elif all(call.status == "ok" for call in asked):
        most = peak(_running(asked))
    else:
        most = run.load.users * widest
    guesses: list[int] = []
    if any(call.refusals for call in asked):
        # A server that refuses what is too much serves as many at once as ran while it refused others. A
        # limit that adapts may still have been on its way there.
        served = served_at_refusals(asked)
        guesses = _values_letting_through(served, records, dial, run.load.users)
    adaptive = [record for record in records if record.strategy == "adaptive"]
    adapted = settled_limit(adaptive) if dial.knob.shared else None
    if adapted is not None and all(abs(adapted - one) > NEARLY * max(adapted, one) for one in guesses):
        guesses.append(adapted)
    ran = [call.duration_ns for call in calls if call.status == "ok" and call.duration_ns is not None]
    whole = [record for record in records if not record.nested and record.status != "cancelled"]
    loops, shortest = {}, math.inf
    for spec in dict.fromkeys(record.strategy for record in whole):
        mine = [record for record in whole if record.strategy == spec]
        loops[spec] = _mean([record.wall_ns for record in mine]) / 1e9
        if well := [record.wall_ns for record in mine if record.good]:
            shortest = min(shortest, _mean(well) / 1e9)
    return Pilot(
        peak=max(1, most),
        mean=max(means, default=1.0),
        guesses=tuple(guesses),
        failing=any(call.status not in ("ok", "cancelled") for call in calls),
        loops=loops,
        loop=min(loops.values(), default=0.0) if math.isinf(shortest) else shortest,
        work=_mean(ran) / 1e9 * len(calls) / max(1, len(whole)),
        dial=dial,
        widest=widest,
    )


def served_at_refusals(calls: Sequence[ToolCall]) -> int:
    """How many calls that succeeded ran when others were refused: the median over the refusals.

    The most that ever ran are more than the server had at once, since a call takes time on its way there and
    back; and one more than it serves may be many too many.
    """
    ran = [call for call in calls if call.started_ns is not None]
    served = [call for call in ran if call.status == "ok"]
    started = np.sort([call.started_ns or 0 for call in served])
    ended = np.sort([call.ended_ns for call in served])
    at = [((call.started_ns or 0) + call.ended_ns) // 2 for call in ran if call.refusals]
    if not at:
        return 0
    running = np.searchsorted(started, at, "right") - np.searchsorted(ended, at, "right")
    return round(float(np.median(running)))


def _values_letting_through(calls: int, records: Sequence[LoopRecord], dial: Dial, users: int) -> list[int]:
    """The values with which so many calls of `users` agents, and a few less, run at once.

    Of a setting in proportion to what one value let run.
    """
    share = 1 / users if dial.knob.scope == "agent" else 1.0
    if dial.setting is not None:
        value = dial.value(dial.beside)
        beside = [record for record in records if record.strategy == dial.beside]
        ran = peak(_running(call for record in beside for call in record.tool_calls))
        share = (value or 0) / max(1, ran)
    if not calls * share:
        return []
    found = dial.distinct([calls * share, math.floor(A_LITTLE_LESS * calls * share)])
    # Of few places one less is so much less that it only competes with the guess.
    return found if found[-1] >= (1 - EQUIVALENT) * found[0] else found[:1]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _running(calls: Iterable[ToolCall]) -> Iterator[tuple[int, int]]:
    for call in calls:
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
