"""The answer of `profiler predict` as data: the shape of `profiler.statistics.summary`, marked as predicted.

Keys may be added, never changed. Intervals are bands of `band`: the middle 90 % of simulated runs as long as
the one that was asked about, each on a resample of the recorded loops.
"""

from __future__ import annotations

from dataclasses import dataclass

from profiler.prediction.capacity import Capacity
from profiler.prediction.predict import BAND
from profiler.rundir import Load
from profiler.statistics.quantiles import Estimate, Quantiles

SCHEMA = 1

NOTHING = Estimate(None)


@dataclass(frozen=True, slots=True)
class PredictedStrategy:
    """One strategy under one load. Where it is `refused`, which says why in sentences, there is no figure.

    `refused_share`: of all requests to tools and model, those that were refused for a load or a quota.
    """

    strategy: str
    users: int
    loop_seconds: Quantiles
    throughput: Estimate
    goodput: Estimate
    failure_rate: Estimate
    refused_share: Estimate
    objective_met: bool | None = None
    objective_missed: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    predicted: bool = True


@dataclass(frozen=True, slots=True)
class Better:
    """What there is to say of two strategies under one load; `certainty` as in `ranking.Pair`."""

    strategy: str
    baseline: str
    metric: str
    certainty: float
    told: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class PredictedLevel:
    """One of the loads: every strategy under it, and how they compare."""

    users: int
    strategies: tuple[PredictedStrategy, ...]
    verdicts: tuple[Better, ...] = ()
    rate: float | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """A sentence, and the strategies that it is about under so many agents; none: about all."""

    sentence: str
    strategies: tuple[str, ...] = ()
    users: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the prediction rests on."""

    run: str
    loops: int
    tool_calls: int
    levels: tuple[int, ...]
    strategies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """Everything that is printed.

    `strategies` and `verdicts` are those under the highest load; `levels` has every load where there are
    several. `changed` says what is asked to be other than it was recorded, `limits` which parts of the
    recording limit the answer, and `record` are commands that would tell more.
    """

    scenario: str
    provider: str
    model: str
    seed: int
    load: Load
    workers: int
    recorded: Recorded
    seconds: float
    blocks: int
    replicates: int
    strategies: tuple[PredictedStrategy, ...]
    warnings: tuple[Said, ...] = ()
    refused: tuple[Said, ...] = ()
    verdicts: tuple[Better, ...] = ()
    objective: str | None = None
    levels: tuple[PredictedLevel, ...] = ()
    curves: tuple[str, ...] = ()
    capacities: tuple[Capacity, ...] = ()
    limits: tuple[str, ...] = ()
    record: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    valid: bool = True
    predicted: bool = True
    band: float = BAND
    quantile: str = "linear"
    schema: int = SCHEMA

    @property
    def every_level(self) -> tuple[PredictedLevel, ...]:
        """Each load, also where there is one."""
        users = self.strategies[0].users if self.strategies else 0
        return self.levels or (PredictedLevel(users, self.strategies, self.verdicts, self.load.rate),)

    @property
    def told(self) -> bool:
        """Whether anything was predicted."""
        return any(not one.refused for level in self.every_level for one in level.strategies)
