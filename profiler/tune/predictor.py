"""Predicts the settings of a search from what it recorded so far, before it measures any of them for long."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol

from profiler.arrivals import Arrivals, scaled
from profiler.prediction.fitting import Fitted, ServerFit, fit_run
from profiler.prediction.predict import Question
from profiler.prediction.processes import Predictor, Settings, cores
from profiler.prediction.simulation.load import SimulatedLoad, Trials
from profiler.prediction.support import invalid_of, of_question, of_recording
from profiler.rundir import RunDirectory
from profiler.statistics.objectives import parse_objective
from profiler.strategies import parse_strategy
from profiler.tune.asked import Search
from profiler.tune.candidates import Candidate
from profiler.tune.recorded import merged
from profiler.tune.scores import Scored, finalists, leaders, scored
from profiler.tune.space import explore, space_of

COARSE, FINE = 5, 24
"""Replicates: of everything, and of what may be the best."""

LOOPS = 400
"""Loops that a simulated run measures: as many as a final stage does, or less where that would take long."""

SHORTEST, LONGEST = 5.0, 30.0
"""Seconds of a simulated run."""

PARTS = 0.5
"""Of the time for predicting, after which the search of the space ends and the best are looked at."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a first look shows: `loop` (seconds) under the load, `peak` calls at once of all agents, `widest`
    those of one."""

    loop: float
    peak: int
    widest: int


@dataclass(frozen=True, slots=True)
class PredictedSpace:
    """What was predicted, and which settings are worth measuring; `refused` says in words why nothing was.

    `servers`: what is known of those that were taken past their capacity, a sentence each. `seconds`: how
    long it took. `assumed`: what was taken to be so since it is likely, a sentence each: then the figures
    only choose what is measured, and are not shown.
    """

    found: Mapping[str, Scored]
    finalists: tuple[str, ...] = ()
    refused: str | None = None
    loops: int = 0
    seconds: float = 0.0
    servers: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()

    def candidate(self, spec: str) -> Candidate | None:
        """A setting as predicted; None where it was not."""
        one = self.found.get(spec)
        return None if one is None else one.candidate

    @property
    def known(self) -> int:
        """How many settings were predicted."""
        return sum(bool(one.scores) for one in self.found.values())


class Predicts(Protocol):
    """Predictions for a search."""

    def predict_space(self, parts: Sequence[RunDirectory], seen: Seen, seconds: float) -> PredictedSpace: ...

    def at_loads(self, specs: Sequence[str], levels: Sequence[int]) -> dict[int, list[Scored]]: ...

    def close(self) -> None: ...


class SpacePredictor:
    """Predictions from recorded experiments, on all cores; `clock` in seconds."""

    def __init__(
        self, search: Search, clock: Callable[[], float] = time.monotonic, processes: int | None = None
    ) -> None:
        self._search = search
        self._clock = clock
        self._processes = cores() if processes is None else processes
        self._slo = None if search.load.slo is None else parse_objective(search.load.slo)
        self._predictor: Predictor | None = None
        self._seen = Seen(1.0, 1, 1)
        self._trials = Trials(LONGEST)

    def __enter__(self) -> SpacePredictor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes that predict."""
        if self._predictor is not None:
            self._predictor.__exit__()
            self._predictor = None

    def predict_space(self, parts: Sequence[RunDirectory], seen: Seen, seconds: float) -> PredictedSpace:
        """Predict the space from these experiments; refuses in words where they do not tell.

        In some `seconds`: what has begun by then is finished, so that it may take a little longer.
        """
        began = self._clock()
        self.close()
        self._seen = seen
        fitted, assumed = with_likely(self._fit(parts))
        reasons = (*of_recording(fitted), *of_question(fitted, parse_strategy(self._search.dial.baseline)))
        found = {} if reasons else self._predict(fitted, seconds, began)
        took = self._clock() - began
        chosen = finalists(found.values(), self._search.dial)
        limits = [one for one in found.values() if one.scores and one.spec != self._search.dial.baseline]
        if not chosen or not limits:
            why = next(
                (one.refused[0] for one in found.values() if one.refused), "nothing gets anything done"
            )
            return PredictedSpace(found, (), (reasons or (why,))[0], len(fitted.loops), took)
        known = [f"{fit.name} {fit.finding.sentence}" for fit in fitted.servers if _capacity(fit)]
        if assumed:
            known = []
        return PredictedSpace(found, tuple(chosen), None, len(fitted.loops), took, tuple(known), assumed)

    def at_loads(self, specs: Sequence[str], levels: Sequence[int]) -> dict[int, list[Scored]]:
        """These settings under other loads, as far as they can be predicted."""
        if self._predictor is None:
            return {}
        asked = [(users, spec) for users in levels for spec in specs]
        answers = self._predictor([self._question(spec, users) for users, spec in asked], COARSE)
        found: dict[int, list[Scored]] = {}
        for (users, _), one in zip(asked, answers, strict=True):
            made = scored(one, self._search.objective, self._slo, self._search.dial)
            if made.candidate is not None:
                found.setdefault(users, []).append(made)
        return found

    def _fit(self, parts: Sequence[RunDirectory]) -> Fitted:
        run, records = merged([(one.load(), one.records()) for one in parts])
        invalid, _ = invalid_of(run, records)
        return fit_run(run, records, seed=self._search.load.seed, invalid=invalid)

    def _predict(self, fitted: Fitted, seconds: float, began: float) -> dict[str, Scored]:
        search = self._search
        settings = Settings(self._slo, COARSE, search.load.seed)
        self._predictor = Predictor(fitted, settings, self._processes)
        rate = search.users / max(0.01, self._seen.loop)
        self._trials = Trials(min(LONGEST, max(SHORTEST, 4 * self._seen.loop, LOOPS / rate)))
        shared = 1 if search.load.share_limit else search.workers
        servers = [(fit.name, _capacity(fit)) for fit in fitted.servers]
        space = space_of(
            search.over,
            search.dial,
            servers=servers,
            peak=max(self._seen.peak, sum(served for _, served in servers)),
            widest=self._seen.widest,
            sharing=shared,
            rates=self._rates(fitted, rate),
        )

        def left(share: float) -> bool:
            return self._clock() - began < share * seconds

        found = explore(space, self._ask, COARSE, lambda: left(PARTS))
        best = leaders(found.values())
        if len(best) > 1 and left(PARTS + 0.25):
            # All of the leaders again, on the same replicates: those of fewer are the first ones of these.
            found |= {one.spec: one for one in self._ask([one.spec for one in best], FINE)}
        return found

    def _rates(self, fitted: Fitted, loops: float) -> list[str]:
        """Rates around what there would be if nothing held the calls back."""
        rate = self._search.part("rate")
        if rate is None:
            return []
        calls = fitted.calls / max(1, fitted.recorded)
        values = rate.given.spaced(7) if rate.given is not None else []
        values = values or [loops * calls * share for share in (0.25, 0.4, 0.6, 0.8, 1.0, 1.2)]
        return rate.specs(values)

    def _ask(self, specs: Sequence[str], replicates: int) -> list[Scored]:
        assert self._predictor is not None
        questions = [self._question(spec, self._search.users) for spec in specs]
        answers = self._predictor(questions, replicates)
        return [scored(one, self._search.objective, self._slo, self._search.dial) for one in answers]

    def _question(self, spec: str, users: int) -> Question:
        load, search = self._search.load, self._search
        arrivals = None
        if load.arrivals is not None:
            # Each agent is a source of arrivals.
            text = load.arrivals if users == search.users else scaled(load.arrivals, users / search.users)
            arrivals = Arrivals.parse(text, users)
        simulated = SimulatedLoad(
            users,
            arrivals=arrivals,
            max_in_flight=load.max_in_flight,
            think_seconds=load.think_seconds,
            workers=search.workers,
            share_limit=bool(load.share_limit),
        )
        trials = replace(self._trials, drain_seconds=load.drain_seconds)
        return Question(parse_strategy(spec), simulated, trials)


def _capacity(fit: ServerFit) -> int:
    """How many calls at once a server is known to serve; 0 where that is not known."""
    rule = fit.finding.rule
    limited = fit.finding.identified and rule.kind in ("refuse", "queue", "share")
    return (rule.capacity or 0) if limited else 0


def with_likely(fitted: Fitted) -> tuple[Fitted, tuple[str, ...]]:
    """The recording with the likeliest rule of each server of tools for a known one; what that assumes.

    Good enough to choose what is measured next, which then shows whether it was right.
    """
    servers, assumed = [], []
    for fit in fitted.servers:
        if fit.finding.identified or fit.finding.rule.kind not in ("refuse", "queue", "share"):
            servers.append(fit)
            continue
        assumed.append(f"{fit.name}: {fit.finding.sentence}")
        servers.append(replace(fit, finding=replace(fit.finding, identified=True)))
    return replace(fitted, servers=tuple(servers)), tuple(assumed)
