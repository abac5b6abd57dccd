"""The run that a prediction is asked about: strategies and loads, each pair of them a question. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from profiler.arrivals import Arrivals
from profiler.prediction.predict import Question
from profiler.prediction.quotas.finding import QuotaFinding
from profiler.prediction.simulation.load import SimulatedLoad, Trials
from profiler.rundir import Run
from profiler.strategies import StrategySpec, parse_strategies

DRAIN_SECONDS = 30.0
"""How long a trial drains at most where the recording does not say."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Every strategy under each number of agents (of an open load: of sources), measured for `trials`.

    `arrivals` None: a closed load. Factors multiply durations; `quota` None: the recording's (`Question`).
    """

    strategies: tuple[StrategySpec, ...]
    levels: tuple[int, ...]
    trials: Trials
    arrivals: Arrivals | None = None
    max_in_flight: int | None = None
    think_seconds: float = 0.0
    workers: int = 1
    share_limit: bool = False
    tool_time: tuple[tuple[str, float], ...] = ()
    model_time: float = 1.0
    quota: QuotaFinding | None = None

    def question(self, strategy: StrategySpec, users: int) -> Question:
        """One cell."""
        load = SimulatedLoad(
            users,
            arrivals=self.arrivals,
            max_in_flight=self.max_in_flight,
            think_seconds=self.think_seconds,
            workers=self.workers,
            share_limit=self.share_limit,
        )
        return Question(strategy, load, self.trials, self.tool_time, self.model_time, self.quota)

    def questions(self) -> list[Question]:
        """All cells, the smallest load first."""
        return [self.question(strategy, users) for users in self.levels for strategy in self.strategies]

    def rate(self, users: int) -> float | None:
        """Loops a second that arrive from so many sources; None in a closed load."""
        return None if self.arrivals is None else self.arrivals.expected(users, 1.0)


def recorded_strategies(run: Run) -> tuple[StrategySpec, ...]:
    """The strategies of the run; `sequential` and `gathered` for another program's, which names none."""
    return run.strategies or parse_strategies("sequential,gathered")


def recorded_levels(run: Run) -> tuple[int, ...]:
    """The numbers of agents that the run had, the smallest first; empty for another program's run."""
    return tuple(sorted({trial.users for trial in run.trials})) or (
        (run.load.users,) if run.load.users else ()
    )


def recorded_arrivals(run: Run) -> Arrivals | None:
    """Its arrivals, from as many sources as make up the rate that it names; None for a closed load."""
    load = run.load
    if load.model != "open" or load.arrivals is None or not load.rate:
        return None
    one = Arrivals.parse(load.arrivals)
    return replace(one, sources=max(1, round(load.users * one.rate / load.rate)))


def recorded_trials(run: Run, strategy: str, users: int) -> Trials | None:
    """The trials of one cell of a run, as long on average as they were; None where it had none."""
    mine = [one for one in run.trials if one.strategy == strategy and one.users == users]
    if not mine:
        return None
    seconds = sum(one.ended_ns - one.started_ns for one in mine) / len(mine) / 1e9
    return Trials(seconds, len(mine), recorded_drain(run))


def recorded_drain(run: Run) -> float:
    """How long its trials were let drain at most."""
    given = run.arguments.get("drain_seconds")
    return float(given) if isinstance(given, int | float) else DRAIN_SECONDS


def as_recorded(run: Run, strategies: Sequence[StrategySpec], levels: Sequence[int], trials: Trials) -> Asked:
    """The load of the run itself, for these strategies and numbers of agents."""
    in_flight = run.arguments.get("max_in_flight")
    return Asked(
        tuple(strategies),
        tuple(levels),
        trials,
        arrivals=recorded_arrivals(run),
        max_in_flight=in_flight if isinstance(in_flight, int) else None,
        think_seconds=run.load.think_seconds,
        workers=run.workers,
        share_limit=bool(run.arguments.get("share_limit")),
    )
