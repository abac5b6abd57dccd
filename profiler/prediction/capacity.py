"""The largest load that a strategy can serve, and what limits it: by bisection over predicted loads. Pure.

A load can be served ("holds") while all of this is true:

- at most 1 % of the loops fail, or as many as the objective allows;
- the objective is met;
- closed load: the last fifth of the agents adds at least a quarter of the goodput that as many agents have on
  average; open load: loops are answered at the rate at which they arrive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from profiler.prediction.asking import Asked
from profiler.prediction.fitting import Fitted
from profiler.prediction.predict import Predicted, Question
from profiler.prediction.quotas.given import Demand, demands
from profiler.prediction.simulation.servers import ServerUse
from profiler.statistics.objectives import Objective
from profiler.statistics.quantiles import LEVELS
from profiler.strategies import StrategySpec

MOST_FAILURES = 0.01
"""The share of loops that may fail where the objective names none."""

SERVED = 0.97
"""An open load is served where so much of it comes to good loops, but for those under way at the end."""

GROWS = 0.25
"""A closed load holds while each agent of its last fifth adds this share of what the other agents have."""

OTHERS = 0.8

CLOSE = 1.05
"""The search ends where what holds and what does not are within this ratio, or one agent."""

MOST_STEPS = 24
MOST_TIMES = 8.0
"""Loads above this many times the highest that was asked about are not tried."""

FEWER = 8
"""Replicates of a load that is tried: no band is asked for."""

SURELY = 2.0
"""Standard errors by which fewer loops than arrive have to be answered."""

MEDIAN_ERROR = 1.25
"""The standard error of a median by that of a mean: sqrt(pi / 2)."""

OPEN_SECONDS, CLOSED_SECONDS = 120.0, 30.0
"""How long a load that is tried measures at least: in a shorter one a backlog is not seen."""

Ends = Literal["failures", "objective", "growth", "quota", "recording", "untried"]

Ask = Callable[[Sequence[Question], int], list[Predicted]]
"""Answers questions, with so many replicates each."""


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """What a load uses up: `utilisation` is the share of it in use, `capacity` a number of calls at once.

    `capacity` None: it is no such number. `seen`: the recording went past it.
    """

    name: str
    utilisation: float
    capacity: int | None
    seen: bool
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Capacity:
    """The most agents (of an open load: loops a second) of a strategy that hold, and what `ends` it there.

    `most` None: not even the least load holds. `ends` is `recording` where that says nothing of more, and
    `untried` where more was not tried.
    """

    strategy: str
    most: float | None
    unit: Literal["agents", "loops/s"]
    ends: Ends
    bottlenecks: tuple[Bottleneck, ...]
    sentence: str


@dataclass(frozen=True, slots=True)
class _Tried:
    """A load as predicted; `why` it does not hold, None where it does."""

    load: float
    predicted: Predicted
    why: Ends | None
    words: str = ""


def capacity_of(
    asked: Asked,
    strategy: StrategySpec,
    fitted: Fitted,
    ask: Ask,
    objective: Objective | None = None,
    quotas: Sequence[str] = (),
) -> Capacity | None:
    """The capacity under a strategy; None where nothing is predicted. `quotas`: those given, in words."""
    search = _Search(asked, strategy, fitted, ask, objective)
    found = search.bisect()
    if found is None:
        return None
    holds, fails = found
    unit: Literal["agents", "loops/s"] = "agents" if asked.arrivals is None else "loops/s"
    ends = fails.why or "recording"
    at = holds or fails
    uses = bottlenecks(fitted, at.predicted)
    most = None if holds is None else holds.load
    return Capacity(
        strategy.text,
        most,
        unit,
        ends,
        tuple(uses),
        _sentence(strategy.text, holds, fails, unit, uses, quotas),
    )


class _Search:
    def __init__(
        self, asked: Asked, strategy: StrategySpec, fitted: Fitted, ask: Ask, objective: Objective | None
    ) -> None:
        self._fitted = fitted
        self._strategy = strategy
        self._ask = ask
        self._objective = objective
        self._open = asked.arrivals is not None
        least = OPEN_SECONDS if self._open else CLOSED_SECONDS
        self._seconds = max(least, asked.trials.seconds * asked.trials.blocks)
        self._asked = replace(asked, trials=replace(asked.trials, seconds=self._seconds, blocks=1))
        self._alone = 0.0

    def _try(self, load: float) -> _Tried:
        fewer = float(min(load - 1, int(load * OTHERS)))
        if self._open or fewer < 1:
            return self._judged(load, *self._ask([self._question(load)], FEWER))
        one, other = self._ask([self._question(load), self._question(fewer)], FEWER)
        tried = self._judged(load, one)
        if tried.why is not None or "goodput" not in other.figures:
            return tried
        more, less = (each.figures["goodput"].value or 0.0 for each in (one, other))
        if more < less * (1 + GROWS * (load / fewer - 1)):
            words = f"{more:.3g} good loops/s with {load:.0f} agents, {less:.3g} with {fewer:.0f}"
            return replace(tried, why="growth", words=words)
        return tried

    def _question(self, load: float) -> Question:
        asked = self._asked
        if asked.arrivals is None:
            return asked.question(self._strategy, int(load))
        users = asked.levels[-1]
        arrivals = replace(asked.arrivals, rate=load, sources=users)
        return replace(asked, arrivals=arrivals).question(self._strategy, users)

    def _judged(self, load: float, one: Predicted) -> _Tried:
        if one.refused or "failure_rate" not in one.figures:
            return _Tried(load, one, "recording", one.refused[0] if one.refused else "")
        failed = one.figures["failure_rate"].value or 0.0
        goodput = one.figures["goodput"].value or 0.0
        objective = self._objective
        allowed = MOST_FAILURES
        if objective is not None and objective.errors is not None:
            allowed = objective.errors
        # In a run as short as this a full bucket may last: what is asked of it in the long run decides.
        for demand in _demands(self._fitted, one):
            if demand.share > 1:
                words = f"{demand.asked:,.0f} a minute are asked of {demand.name}"
                return _Tried(load, one, "quota", words)
        if failed > allowed:
            return _Tried(load, one, "failures", f"{failed:.1%} of the loops fail".replace("%", " %"))
        if objective is not None:
            latencies = {name: one.figures[name].value if name in one.figures else None for name in LEVELS}
            asked = replace(objective, latency={k: v for k, v in objective.latency.items() if latencies[k]})
            if missed := asked.missed(latencies, failed):
                return _Tried(load, one, "objective", ", ".join(missed))
        if self._open:
            alone = self._alone
            if not alone and "p50" in one.figures:
                alone = min(self._seconds / 2, one.figures["p50"].value or 0.0)
            # Few arrivals may be fewer than their rate says, by chance: the median of `FEWER` counts.
            chance = SURELY * MEDIAN_ERROR * math.sqrt(load / (self._seconds * FEWER))
            if goodput < SERVED * load * (1 - alone / self._seconds) - chance:
                return _Tried(load, one, "growth", f"{goodput:.3g} good loops/s come")
        return _Tried(load, one, None)

    def bisect(self) -> tuple[_Tried | None, _Tried] | None:
        """(the largest load that holds, the smallest that does not), close to each other."""
        top = (
            float(self._asked.levels[-1])
            if not self._open
            else self._asked.rate(self._asked.levels[-1]) or 1.0
        )
        least = 1.0 if not self._open else top / 64
        low = self._first(least, top)
        if low is None:
            return None
        if low.why is not None:
            return None, low
        if "p50" in low.predicted.figures:
            self._alone = min(self._seconds / 2, low.predicted.figures["p50"].value or 0.0)
        high, steps = top, 0
        fails: _Tried | None = None
        while fails is None and steps < MOST_STEPS and high <= MOST_TIMES * top:
            one = self._try(high)
            steps += 1
            if one.why is None:
                low, high = one, high * 1.5
                if not self._open:
                    high = float(int(high) + 1)
            else:
                fails = one
        if fails is None:
            return low, replace(low, why="untried")
        while steps < MOST_STEPS and not _close(low.load, fails.load, self._open):
            middle = (low.load * fails.load) ** 0.5
            one = self._try(
                middle
                if self._open
                else float(max(int(low.load) + 1, min(int(fails.load) - 1, round(middle))))
            )
            steps += 1
            if one.why is None:
                low = one
            else:
                fails = one
        return low, fails

    def _first(self, least: float, top: float) -> _Tried | None:
        """The smallest load of which anything is predicted."""
        load = least
        while load <= top:
            one = self._try(load)
            if one.why != "recording":
                return one
            load = load * 2
        return None


def _close(holds: float, fails: float, open_: bool) -> bool:
    return fails <= holds * CLOSE or (not open_ and fails - holds <= 1)


def _demands(fitted: Fitted, predicted: Predicted) -> list[Demand]:
    throughput = predicted.figures["throughput"].value if "throughput" in predicted.figures else None
    quota = predicted.question.quota or fitted.quota
    return demands(fitted, quota, throughput) if throughput else []


def bottlenecks(fitted: Fitted, predicted: Predicted) -> list[Bottleneck]:
    """What is used up under a load, the most used first: servers that have a capacity, and the client."""
    trials, load = predicted.question.trials, predicted.question.load
    seconds = trials.seconds * trials.blocks
    found = []
    for fit, use in zip((*fitted.servers, fitted.model), predicted.uses, strict=False):
        rule = fit.finding.rule
        share = _utilisation(rule.capacity, rule.rate, use, seconds)
        if share is not None:
            found.append(Bottleneck(fit.name, share, rule.capacity, fit.finding.identified, use.refused))
    throughput = predicted.figures.get("throughput")
    if fitted.cpu_ns is not None and throughput is not None and throughput.value:
        share = fitted.cpu_ns * 1e-9 * throughput.value / load.workers
        found.append(Bottleneck(CLIENT, share, None, True))
    found += _own_limits(predicted, len(fitted.servers), seconds)
    found += [
        Bottleneck(f"the quota of {one.name}", min(1.0, one.share), None, one.met)
        for one in _demands(fitted, predicted)
    ]
    return sorted(found, key=lambda one: (-bool(one.refused), -one.utilisation))


def _own_limits(predicted: Predicted, servers: int, seconds: float) -> list[Bottleneck]:
    """How much of the strategy's own semaphores for all tools is used by calls that a server works on."""
    load = predicted.question.load
    processes = 1 if load.share_limit else load.workers
    work_ns = sum(use.work_ns for use in predicted.uses[:servers])
    return [
        Bottleneck(
            f"the limit {rule.text} itself",
            min(1.0, work_ns / 1e9 / (rule.limit * processes * seconds)),
            None,
            True,
        )
        for rule in predicted.question.strategy.rules
        if rule.kind == "semaphore" and rule.scope == "process" and rule.limit
    ]


CLIENT = "this client's processor"


def _utilisation(capacity: int | None, rate: float | None, use: ServerUse, seconds: float) -> float | None:
    if rate is not None:
        return use.arrived / (rate * seconds)
    if capacity is None:
        return None
    # Work counts when it arrives: a queue that grows has been asked for more than there is.
    return min(1.0, use.work_ns / 1e9 / (capacity * seconds))


def _sentence(
    strategy: str,
    holds: _Tried | None,
    fails: _Tried,
    unit: str,
    uses: Sequence[Bottleneck],
    quotas: Sequence[str],
) -> str:
    under = f"with {' and '.join(quotas)}, " if quotas else ""
    if holds is None:
        return f"{strategy}: {under}not even {_load(fails.load, unit)}: {fails.words}"
    most = _load(holds.load, unit)
    if fails.why == "recording":
        head = f"{strategy}: {under}{most} at least: the recording says nothing of {_load(fails.load, unit)}"
    elif fails.why == "untried":
        head = f"{strategy}: {under}{most} at least, and more were not tried"
    elif fails.why == "growth" and unit == "agents":
        head = f"{strategy}: {under}more than about {most} bring little ({fails.words})"
    else:
        head = f"{strategy}: {under}{most} at most: {fails.words} with {_load(fails.load, unit)}"
    return f"{head}{_next(uses)}"


def _load(load: float, unit: str) -> str:
    if unit == "agents":
        return f"{load:.0f} agent{'' if load == 1 else 's'}"
    return f"{load:.3g} loops/s"


def _next(uses: Sequence[Bottleneck]) -> str:
    if not uses:
        return "; no server showed a capacity in the recording"
    first, *others = uses
    said = f"; the first bottleneck is {_named(first)}"
    return f"{said}, the next {_named(others[0])}" if others else said


def _named(one: Bottleneck) -> str:
    used = f"{one.utilisation:.0%}".replace("%", " %")
    if one.capacity is None:
        return f"{one.name} ({used} used)"
    seen = "seen" if one.seen else "not seen: a guess"
    return f"{one.name} (capacity about {one.capacity}, {seen}; {used} used)"
