"""Predictions: replicates of the run that is asked about, on resampled loops, with bands. Pure.

A replicate is one simulated run of the asked length, on a bootstrap resample of the recorded loops and with a
seed of its own. So the band, the 5th to 95th percentile over replicates, holds both what the recording leaves
open and the noise of a run of that length.
"""

from __future__ import annotations

import random
from copy import copy
from dataclasses import dataclass, replace

import numpy as np

from profiler.prediction.fitting import Fitted
from profiler.prediction.quotas.finding import QuotaFinding
from profiler.prediction.simulation.engine import Simulated, simulate
from profiler.prediction.simulation.figures import Figures, figures_of
from profiler.prediction.simulation.load import SimulatedLoad, Trials
from profiler.prediction.simulation.servers import ServerUse
from profiler.prediction.simulation.work import LoopWork
from profiler.prediction.support import is_recorded, of_question, of_recording, of_result
from profiler.statistics.objectives import Objective
from profiler.statistics.quantiles import Estimate
from profiler.strategies import StrategySpec

BAND = 0.9
REPLICATES = 40
FEWEST_FOR_P99 = 5_000
LONGEST_SPREAD = 0.5


@dataclass(frozen=True, slots=True)
class Question:
    """A run to predict: `strategy` under `load`, measured for `trials`.

    Factors multiply durations. `quota` None: the recording's.
    """

    strategy: StrategySpec
    load: SimulatedLoad
    trials: Trials
    tool_time: tuple[tuple[str, float], ...] = ()
    model_time: float = 1.0
    quota: QuotaFinding | None = None


@dataclass(frozen=True, slots=True)
class Predicted:
    """The answer: figures with bands by name, or why there are none (`refused`).

    `every` are those of each replicate: those of one number rest on the same resample, whatever was asked.
    """

    question: Question
    figures: dict[str, Estimate]
    refused: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    uses: tuple[ServerUse, ...] = ()
    every: tuple[Figures, ...] = ()


class Work:
    """The recorded loops as the question has them; each is made when it is first drawn.

    `rate` is the requests a second that the question's client makes, None where that is not known yet: then
    loops keep what their own client added.
    """

    def __init__(self, fitted: Fitted, question: Question, rate: float | None = None) -> None:
        self._loops = fitted.loops
        self._client = fitted.client
        self._rate = rate
        factors = dict(question.tool_time)
        self._of_tool = [factors.get(name, 1.0) for name in fitted.system.tools]
        self._of_model = question.model_time
        self._scaled = bool(factors) or question.model_time != 1.0
        self._made: dict[int, LoopWork] = {}
        self.weights = np.array([loop.weight for loop in fitted.loops])
        names, self.clusters = np.unique([loop.cluster for loop in fitted.loops], return_inverse=True)
        self.cluster_count = names.size

    def at(self, rate: float) -> Work:
        """The same where the client makes so many requests a second."""
        found = copy(self)
        found._rate, found._made = rate, {}
        return found

    def __getitem__(self, place: int) -> LoopWork:
        found = self._made.get(place)
        if found is None:
            found = self._loops[place]
            if self._rate is not None:
                found = self._client.moved(found, self._rate)
            if self._scaled:
                found = self._with_factors(found)
            self._made[place] = found
        return found

    def _with_factors(self, loop: LoopWork) -> LoopWork:
        of_tool, of_model = self._of_tool, self._of_model
        return replace(
            loop,
            rounds=tuple(
                replace(
                    one,
                    service_ns=int(one.service_ns * of_model),
                    calls=tuple(
                        replace(call, service_ns=int(call.service_ns * of_tool[call.tool]))
                        for call in one.calls
                    ),
                )
                for one in loop.rounds
            ),
        )


class Loops:
    """The loops of a replicate: drawn again and again from a bootstrap resample of clusters."""

    def __init__(self, work: Work, seed: str) -> None:
        self._work = work
        self._rng = np.random.default_rng(random.Random(seed).getrandbits(64))
        count = work.cluster_count
        counts = np.bincount(self._rng.integers(0, count, count), minlength=count)
        weights = work.weights * counts[work.clusters]
        self._chances = weights / weights.sum()
        self._drawn: list[int] = []

    def __call__(self, now_ns: int, agent: int) -> LoopWork:
        if not self._drawn:
            self._drawn = self._rng.choice(self._chances.size, size=1024, p=self._chances).tolist()
        return self._work[self._drawn.pop()]


def predict(
    fitted: Fitted,
    question: Question,
    *,
    objective: Objective | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Predicted:
    """The figures that `compare` would print of this run; none, but why, where the recording cannot tell."""
    reasons = (*of_recording(fitted), *of_question(fitted, question.strategy))
    if reasons:
        return Predicted(question, {}, reasons)
    work = Work(fitted, question)
    load = question.load
    if load.arrivals is None or fitted.client.rates:
        first = _run(fitted, work, question, replace(load, spread_seconds=0.0), f"{seed}/first")
        work = work.at(_requests_a_second(first, load.workers))
        if load.arrivals is None:
            spread = min(_cycle_seconds(first, load.users), LONGEST_SPREAD * question.trials.seconds)
            load = replace(load, spread_seconds=spread)
    runs = [_run(fitted, work, question, load, f"{seed}/0")]
    began = sum(len(one.due) for one in runs[0].trials)
    rate = began / sum(load.spread_seconds + one.seconds for one in runs[0].trials)
    same = not question.tool_time and question.model_time == 1.0 and question.quota is None
    recorded = same and is_recorded(fitted, question.strategy, question.load)
    refused, warnings = of_result(fitted, runs[0].servers, rate, load.workers, recorded=recorded)
    if refused:
        return Predicted(question, {}, refused, warnings, runs[0].servers)
    runs += [_run(fitted, work, question, load, f"{seed}/{number}") for number in range(1, replicates)]
    found = [figures_of(run, question.strategy, load.users, objective) for run in runs]
    figures = {}
    for name, values in zip(Figures._fields, np.array(found).T, strict=True):
        if np.isnan(values).all():
            continue
        # One more replicate, which is what a run is, lies below the p·(n + 1)-th of n with probability p.
        # The usual interpolation at p·(n - 1) + 1 would make a band of 90 % from 40 replicates hold 86 %.
        ends = [(1 - BAND) / 2, 0.5, (1 + BAND) / 2]
        low, middle, high = np.nanquantile(values, ends, method="weibull")
        figures[name] = Estimate(float(middle), float(low), float(high))
    if fitted.calls < FEWEST_FOR_P99:
        figures.pop("p99", None)
    return Predicted(question, figures, (), warnings, runs[0].servers, tuple(found))


def _cycle_seconds(run: Simulated, users: int) -> float:
    """What an agent takes from the start of a loop to that of the next, its pauses too, by Little's law.

    Half of the drain counts, in which agents end one by one. A test lets its agents start within this time.
    """
    loops = sum(len(one.due) for one in run.trials)
    ends = [one.started_ns + int(one.seconds * 1e9) for one in run.trials]
    drains = [max([0, *(at - end for at in one.ended)]) for one, end in zip(run.trials, ends, strict=True)]
    seconds = sum(one.seconds for one in run.trials) + sum(drains) / 2e9
    return users * seconds / loops if loops else seconds


def _requests_a_second(run: Simulated, workers: int) -> float:
    """Of one process of the client, refused ones too."""
    return sum(use.arrived for use in run.servers) / sum(one.seconds for one in run.trials) / workers


def _run(fitted: Fitted, work: Work, question: Question, load: SimulatedLoad, seed: str) -> Simulated:
    return simulate(
        fitted.system,
        question.strategy,
        load,
        Loops(work, seed),
        question.trials,
        quota=fitted.quota if question.quota is None else question.quota,
        retry=fitted.retries,
        seed=seed,
    )
