"""What a finished run would have looked like with one thing changed. The results are estimates, labelled so.

The loops of each trial run again in the engine, in their recorded order and with their recorded pauses or
arrivals, under the change; calls take their service times free of waiting, so that waits for limiters, places
(`--max-in-flight`) and servers follow anew. An estimate is the measured quantile times (run again with the
change / run again without it): what both get wrong in proportion cancels, and so does most of the chance.
`replay_error` says how far the run without a change was from what was measured.

The band is the 5th to 95th percentile over resamples of stretches of time, of both runs alike, made wider by
√2: another run of that length has chances of its own, as large as those of the recording.

Nothing is estimated that the recording does not show: where more calls than it ever saw would be in flight at
a server whose capacity is not known, and that may matter.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from profiler.prediction.fitting import Fitted, ServerFit, fit_run
from profiler.prediction.servers.calls import Rule
from profiler.prediction.simulation.engine import Simulated, simulate_recorded
from profiler.prediction.simulation.load import RecordedTrial, SimulatedLoad
from profiler.prediction.simulation.recorded import Stretch, stretch_of, with_load
from profiler.prediction.simulation.work import LoopWork, RoundWork
from profiler.prediction.support import BEYOND, known_up_to, refuses_as_seen, share_above
from profiler.records import LoopRecord
from profiler.rundir import Run, Trial
from profiler.statistics.quantiles import Floats
from profiler.statistics.table import Ints
from profiler.strategies import StrategySpec

CALLS = 60_000
"""Tool calls that are simulated in all, which bounds the time; each simulation has its part of them."""
FEWEST_CALLS_EACH = 1_000
"""The least part."""

REPLAY_TOLERANCE = 0.10
"""Where the run without a change misses the measured median by a larger share, nothing is estimated."""
FEWEST_LOOPS = 20
"""With fewer answered loops nothing is estimated."""
WORST_TOLERANCE = 0.10
"""Outside of what is known of a server (`support`) nothing is estimated of other loads and limits. Of a
faster tool or model something is, where p50 and p95 differ by no more than this share if that server queues
what is above. The band then holds both."""
LOAD_FACTORS = (1.5, 2.0)
LIMIT_FACTORS = (2.0, 0.5)

_PARTS = 16
"""Stretches of time that are resampled: long ones, since the waits of a busy system go on for long."""
_WIDER = 1.1
"""By so much Student's t with that many parts is wider than the normal distribution that resamples follow."""
_RESAMPLES = 200
_BAND = (0.05, 0.95)

ChangeKind = Literal["tool", "first_token", "limiter", "limit", "load"]


@dataclass(frozen=True, slots=True)
class Change:
    """One thing to be different: a tool or the first token twice as fast, the limiter gone, a limit or the
    load by a `factor`."""

    kind: ChangeKind
    tool: str | None = None
    factor: float | None = None

    @property
    def words(self) -> str:
        """`with get_weather twice as fast`."""
        if self.kind == "tool":
            return f"with {self.tool} twice as fast"
        if self.kind == "first_token":
            return "with the first token twice as fast"
        if self.kind == "limiter":
            return "without the limiter"
        if self.kind == "limit":
            return "with twice the limit" if self.factor == 2 else "with half the limit"
        return "with twice the load" if self.factor == 2 else f"with {self.factor:g} times the load"


@dataclass(frozen=True, slots=True)
class Estimated:
    """A quantile of the loop in seconds, or a share: as measured, and as estimated under the change with the
    90 % band of the estimate."""

    measured: float
    estimated: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """One change to one strategy under one load.

    `failures` is the share of loops that did not end well. `replay_error` is |run again / measured - 1| at
    p50, where nothing was changed.
    """

    strategy: str
    users: int
    change: Change
    p50: Estimated
    p95: Estimated
    failures: Estimated
    loops: int
    replay_error: float


@dataclass(frozen=True, slots=True)
class NotEstimated:
    """Why there is no estimate for a strategy under a load: of a change, or (None) of any. In words."""

    strategy: str
    users: int
    change: Change | None
    why: str


@dataclass(frozen=True, slots=True)
class WhatIf:
    """Estimates, and what could not be estimated."""

    estimates: tuple[Counterfactual, ...]
    unknown: tuple[NotEstimated, ...] = ()


def counterfactuals(
    run: Run, records: Iterable[LoopRecord], tools: Sequence[str] = ()
) -> tuple[Counterfactual, ...]:
    """Every estimate that the recording supports; `what_if` says what it does not."""
    return what_if(run, records, tools).estimates


def what_if(
    run: Run, records: Iterable[LoopRecord], tools: Sequence[str] = (), *, users: int | None = None
) -> WhatIf:
    """Every change that applies to every strategy of the run, under every load or that of `users` agents.

    `tools` names the tools to try. Changes without effect are left out: no first token was observed, there is
    no limiter, the tool was not called.
    """
    every = [record for record in records if record.trial is not None]
    by_trial: dict[int, list[int]] = {}
    for place, record in enumerate(every):
        by_trial.setdefault(record.trial or 0, []).append(place)
    groups: dict[tuple[str, int], list[Trial]] = {}
    for trial in run.trials:
        if trial.index in by_trial and users in (None, trial.users):
            groups.setdefault((trial.strategy, trial.users), []).append(trial)
    estimates: list[Counterfactual] = []
    unknown: list[NotEstimated] = []
    known = {}
    for (strategy, load), trials in groups.items():
        why = _not_simulated(run.strategy(strategy))
        if why is None:
            known[strategy, load] = trials
        else:
            unknown.append(NotEstimated(strategy, load, None, why))
    if not known:
        return WhatIf((), tuple(unknown))
    fitted = fit_run(run, every, recorded_order=True)
    works = dict(zip(fitted.places, fitted.loops, strict=True))
    simulations = sum(1 + len(_changes(run.strategy(strategy), tools)) for strategy, _ in known)
    part = max(FEWEST_CALLS_EACH, CALLS // simulations)
    for (strategy, load), trials in known.items():
        stretches = _stretches(run, trials, every, by_trial, works, part)
        group = _Group(run, fitted, run.strategy(strategy), load, stretches)
        estimates += group.estimates(_changes(group.spec, tools))
        unknown += group.unknown
    return WhatIf(tuple(estimates), tuple(unknown))


def _not_simulated(spec: StrategySpec) -> str | None:
    if spec.kind == "unknown":
        return "this version does not know how it runs calls"
    if spec.kind == "own" or spec.variant:
        return "how calls run is up to the agent's own code"
    if spec.needs_stream:
        return "calls that start while the reply streams are not simulated"
    return None


def _changes(spec: StrategySpec, tools: Sequence[str]) -> list[Change]:
    changes = [*(Change("tool", tool) for tool in tools), Change("first_token")]
    if spec.kind == "sequential" or spec.rules:
        changes.append(Change("limiter"))
    changes += [Change("limit", factor=factor) for factor in LIMIT_FACTORS if _with_limit(spec, factor)]
    return [*changes, *(Change("load", factor=factor) for factor in LOAD_FACTORS)]


def _with_limit(spec: StrategySpec, factor: float) -> StrategySpec | None:
    """The strategy with `factor` times its limits; None without any, with one that adapts, or below 1."""
    rules = []
    for rule in spec.rules:
        if rule.kind == "semaphore" and rule.limit is not None and int(rule.limit * factor) >= 1:
            rules.append(replace(rule, limit=int(rule.limit * factor)))
        elif rule.kind == "rate":
            rules.append(replace(rule, rate=rule.rate * factor))
        else:
            return None
    return replace(spec, rules=tuple(rules)) if rules else None


def _stretches(
    run: Run,
    trials: Sequence[Trial],
    records: Sequence[LoopRecord],
    by_trial: dict[int, list[int]],
    works: dict[int, LoopWork],
    most_calls: int,
) -> list[Stretch]:
    """Whole trials with `most_calls` calls in all, or the beginning of one."""
    found: list[Stretch] = []
    left = most_calls
    for trial in trials:
        places = by_trial[trial.index]
        calls = sum(1 for place in places for _ in records[place].tool_calls)
        if found and calls > left:
            break
        mine = {number: works[place] for number, place in enumerate(places) if place in works}
        stretch = stretch_of(run, trial, [records[place] for place in places], mine, left)
        left -= calls
        if stretch is not None:
            found.append(stretch)
    return found


@dataclass(frozen=True, slots=True)
class _Latencies:
    """Of the answered loops that were due in a window: the part of the time that each is of, and its latency,
    ascending; and the share of all that did not end well."""

    part: Ints
    latencies: Ints
    failed: float

    def quantile(self, p: float) -> float:
        return float(np.quantile(self.latencies, p)) if self.latencies.size else math.nan

    def resampled(self, counts: Ints, p: float) -> Floats:
        """The quantile in each resample; a row of `counts` says how often each part is in it."""
        weights = np.cumsum(counts[:, self.part], axis=1)
        at = np.argmax(weights >= p * weights[:, -1:], axis=1)
        found: Floats = self.latencies[at].astype(np.float64)
        return found


@dataclass(frozen=True, slots=True)
class _Outside:
    """`why` nothing can be estimated. Else which servers, by place, had more calls in flight than were ever
    seen, and how many were seen; and that in words."""

    why: str | None
    beyond: Mapping[int, int] = field(default_factory=dict)
    beyond_words: str = ""


class _Group:
    """The trials of one strategy under one load."""

    def __init__(
        self, run: Run, fitted: Fitted, spec: StrategySpec, users: int, stretches: Sequence[Stretch]
    ) -> None:
        self._run = run
        self._fitted = fitted
        self.spec = spec
        self._users = users
        self._stretches = stretches
        self.unknown: list[NotEstimated] = []
        self._trials = [stretch.trial for stretch in stretches]
        workers = max([run.workers, *(len(trial.slots) for trial in self._trials)])
        self._load = SimulatedLoad(
            users,
            think_seconds=run.load.think_seconds,
            workers=workers,
            share_limit=bool(run.arguments.get("share_limit")),
        )
        drain = run.arguments.get("drain_seconds")
        self._drain = float(drain) if isinstance(drain, int | float) else 1e6
        # Every stretch has as many parts as its share of the time.
        seconds = sum(trial.seconds for trial in self._trials)
        self._parts = [max(1, round(_PARTS * trial.seconds / seconds)) for trial in self._trials]
        total = sum(self._parts)
        draw = np.random.default_rng(random.Random(f"{run.seed}/{spec.text}/{users}").getrandbits(64))
        chosen = draw.integers(0, total, (_RESAMPLES, total))
        self._counts = np.apply_along_axis(np.bincount, 1, chosen, minlength=total)

    def estimates(self, changes: Sequence[Change]) -> list[Counterfactual]:
        """The estimates that the recording supports; the others are in `unknown`."""
        measured = self._measured()
        if measured.latencies.size < FEWEST_LOOPS:
            return self._none(None, f"only {measured.latencies.size} loops were answered")
        same = self._latencies(self._simulate(None))
        error = abs(same.quantile(0.5) / max(1.0, measured.quantile(0.5)) - 1)
        if not error <= REPLAY_TOLERANCE:
            return self._none(
                None,
                f"run again without a change, its median is {100 * error:.0f} % off: something is not "
                "simulated",
            )
        found = []
        for change in changes:
            simulated = self._simulate(change)
            changed = self._latencies(simulated)
            if np.array_equal(changed.latencies, same.latencies):
                continue
            outside = self._outside(simulated)
            worst: _Latencies | None = None
            why = outside.why
            if outside.beyond and why is None:
                if change.kind in ("tool", "first_token"):
                    worst = self._latencies(self._simulate(change, outside.beyond))
                if worst is None or self._differ(worst, changed):
                    why = outside.beyond_words
            if why is None and changed.latencies.size < FEWEST_LOOPS:
                why = "hardly any loop would come to an answer"
            if why is not None:
                self._none(change, why)
                continue
            found.append(
                Counterfactual(
                    self.spec.text,
                    self._users,
                    change,
                    self._estimate(measured, same, changed, worst, 0.5),
                    self._estimate(measured, same, changed, worst, 0.95),
                    self._failures(measured, same, changed),
                    int(measured.latencies.size),
                    error,
                )
            )
        return found

    @staticmethod
    def _differ(worst: _Latencies, changed: _Latencies) -> bool:
        return any(
            not abs(worst.quantile(p) / changed.quantile(p) - 1) <= WORST_TOLERANCE for p in (0.5, 0.95)
        )

    def _none(self, change: Change | None, why: str) -> list[Counterfactual]:
        self.unknown.append(NotEstimated(self.spec.text, self._users, change, why))
        return []

    def _simulate(self, change: Change | None, slow: Mapping[int, int] | None = None) -> Simulated:
        """The run under a change. `slow`: servers, by place (the model's last), that queue above a number."""
        spec, trials = self.spec, self._trials
        if change is None:
            pass
        elif change.kind == "limiter":
            spec = StrategySpec(spec.text, "gathered")
        elif change.kind == "limit":
            spec = _with_limit(spec, change.factor or 1.0) or spec
        elif change.kind == "load":
            trials = [with_load(trial, change.factor or 1.0) for trial in trials]
        else:
            trials = self._faster(trials, change)
        system = self._fitted.system
        if slow:
            servers = [
                replace(one, rule=Rule("queue", slow[place])) if place in slow else one
                for place, one in enumerate((*system.servers, system.model))
            ]
            system = replace(system, servers=tuple(servers[:-1]), model=servers[-1])
        return simulate_recorded(system, spec, self._load, trials, self._drain, seed=str(self._run.seed))

    def _faster(self, trials: Sequence[RecordedTrial], change: Change) -> list[RecordedTrial]:
        tools = self._fitted.system.tools
        place = tools.index(change.tool) if change.tool in tools else -1
        made: dict[int, LoopWork] = {}

        def faster(loop: LoopWork) -> LoopWork:
            if id(loop) not in made:
                made[id(loop)] = replace(
                    loop, rounds=tuple(_faster(one, change, place) for one in loop.rounds)
                )
            return made[id(loop)]

        return [
            replace(
                trial,
                chains=tuple(replace(chain, loops=tuple(map(faster, chain.loops))) for chain in trial.chains),
            )
            for trial in trials
        ]

    def _outside(self, simulated: Simulated) -> _Outside:
        """How far a simulated run is outside of what the recording shows."""
        fits = (*self._fitted.servers, self._fitted.model)
        beyond: dict[int, int] = {}
        words = []
        for place, (fit, use) in enumerate(zip(fits, simulated.servers, strict=True)):
            finding = fit.finding
            if not use.arrived:
                continue
            known = known_up_to(fit)
            if known is None or refuses_as_seen(fit, use):
                continue
            if not finding.identified and (finding.warnings or finding.capacities):
                return _Outside(f"{_name(fit)}: {finding.sentence}")
            if share_above(use, known) > BEYOND:
                beyond[place] = known
                words.append(
                    f"{_name(fit)} would have up to {len(use.at_arrival)} at once and was seen with {known}"
                )
        return _Outside(
            None,
            beyond,
            f"outside the recording: {'; '.join(words)}; what is above that is not known",
        )

    def _measured(self) -> _Latencies:
        parts = [self._part_of(number, stretch.due) for number, stretch in enumerate(self._stretches)]
        loops = sum(stretch.loops for stretch in self._stretches)
        good = sum(stretch.good for stretch in self._stretches)
        return _joined(
            [stretch.latencies for stretch in self._stretches], parts, 1 - good / loops if loops else 0.0
        )

    def _latencies(self, simulated: Simulated) -> _Latencies:
        latencies, parts = [], []
        loops = failed = 0
        for number, one in enumerate(simulated.trials):
            due, ended = np.array(one.due, np.int64), np.array(one.ended, np.int64)
            until = one.started_ns + int(one.seconds * 1e9)
            inside = (due >= one.started_ns) & (due < until)
            loops += int(np.count_nonzero(inside)) + one.dropped
            failed += int(np.count_nonzero(inside & ~np.array(one.good, bool))) + one.dropped
            done = inside & np.array(one.ok, bool)
            latencies.append((ended - due)[done])
            begun = one.started_ns - self._trials[number].warm_up_ns
            parts.append(self._part_of(number, due[done] - begun))
        return _joined(latencies, parts, failed / loops if loops else 0.0)

    def _part_of(self, number: int, due: Ints) -> Ints:
        """The part of all the time in which loops of a trial were due, in ns from its start."""
        trial, parts = self._trials[number], self._parts[number]
        place = ((due - trial.warm_up_ns) / max(1.0, trial.seconds * 1e9) * parts).astype(np.int64)
        return sum(self._parts[:number]) + np.clip(place, 0, parts - 1)

    def _estimate(
        self, measured: _Latencies, same: _Latencies, changed: _Latencies, worst: _Latencies | None, p: float
    ) -> Estimated:
        before = measured.quantile(p)
        estimate = before * changed.quantile(p) / same.quantile(p)
        counts = self._counts
        # A resample may lack the loops of one of them.
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = np.log(
                measured.resampled(counts, p) * changed.resampled(counts, p) / same.resampled(counts, p)
            )
        drawn = drawn[np.isfinite(drawn)]
        low, high = 0.0, 0.0
        if drawn.size:
            low, high = (np.quantile(drawn, _BAND) - np.median(drawn)) * _WIDER * math.sqrt(2)
        slower = 1.0 if worst is None else max(1.0, worst.quantile(p) / changed.quantile(p))
        seconds = estimate / 1e9
        return Estimated(before / 1e9, seconds, seconds * math.exp(low), seconds * math.exp(high) * slower)

    def _failures(self, measured: _Latencies, same: _Latencies, changed: _Latencies) -> Estimated:
        """Shares add up rather than multiply; the band is that of a share of as many loops, twice."""
        share = min(1.0, max(0.0, measured.failed + changed.failed - same.failed))
        error = 1.645 * math.sqrt(2 * max(share * (1 - share), 1 / self._loops) / self._loops)
        return Estimated(measured.failed, share, max(0.0, share - error), min(1.0, share + error))

    @property
    def _loops(self) -> int:
        return max(1, sum(stretch.loops for stretch in self._stretches))


def _joined(latencies: Sequence[Ints], parts: Sequence[Ints], failed: float) -> _Latencies:
    every = np.concatenate(latencies) if latencies else np.zeros(0, np.int64)
    part = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    order = np.argsort(every, kind="stable")
    return _Latencies(part[order], every[order], failed)


def _faster(one: RoundWork, change: Change, tool: int) -> RoundWork:
    if change.kind == "first_token":
        return replace(one, service_ns=one.service_ns - one.first_token_ns // 2)
    calls = tuple(
        replace(call, service_ns=call.service_ns // 2) if call.tool == tool else call for call in one.calls
    )
    return replace(one, calls=calls)


def _name(fit: ServerFit) -> str:
    return ", ".join(fit.tools) or fit.name
