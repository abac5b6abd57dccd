"""The stages of a search: what was measured in each, when one may end, what the setting promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from profiler.errors import Interrupted, TargetError
from profiler.rundir import RunDirectory
from profiler.statistics.gates import Outcome, objective_outcome
from profiler.statistics.objectives import Objective, parse_objective
from profiler.statistics.quantiles import Estimate
from profiler.statistics.table import tabulate
from profiler.tune.asked import Search
from profiler.tune.budget import trial_seconds, window_seconds
from profiler.tune.candidates import (
    SEMAPHORE,
    Candidate,
    ObjectiveName,
    by_level,
    promised,
    settled,
)
from profiler.tune.dial import Dial
from profiler.tune.experiments import Experiments, Planned
from profiler.tune.predictions import Predictions

FIRST_LOOK = 4
"""Blocks of the final stage before it may end early."""
FEWEST_SURPRISING = 2
"""Blocks after which a prediction may be found to be wrong."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Candidates that were measured in the same paired blocks."""

    asked: tuple[str, ...]
    found: list[Candidate]
    directory: RunDirectory

    @property
    def whole(self) -> bool:
        """Whether every candidate has a score."""
        return {one.spec for one in self.found if one.score.value is not None} >= set(self.asked)


def candidates(
    directory: RunDirectory, objective: ObjectiveName, slo: Objective | None, dial: Dial = SEMAPHORE
) -> list[Candidate]:
    """Every strategy of an experiment of one load, each compared with the best in paired blocks."""
    levels = by_level(directory.load(), tabulate(directory.records()), objective, slo, dial)
    return levels[max(levels)] if levels else []


class Stages:
    """Those of one search, in order: `found`.

    `confirmation` is the setting measured once more, and `moved` says that it had changed by then.
    """

    def __init__(self, search: Search, experiments: Experiments, predictions: Predictions) -> None:
        self.search = search
        self.experiments = experiments
        self.predictions = predictions
        self.found: list[Stage] = []
        self.confirmation: RunDirectory | None = None
        self.moved: str | None = None
        self._slo = None if search.load.slo is None else parse_objective(search.load.slo)

    @property
    def last_whole(self) -> Stage | None:
        """The last stage in which everything was measured, else the last with scores."""
        scored = [stage for stage in self.found if any(one.points for one in stage.found)]
        return next((stage for stage in reversed(scored) if stage.whole), scored[-1] if scored else None)

    def experiment(self, planned: Planned) -> RunDirectory:
        """`Experiments.run`; what one that fails or is interrupted has left counts as a stage."""
        enough = {"final": self._enough, "proof": self._proven}.get(planned.name)
        try:
            return self.experiments.run(planned, enough)
        except (TargetError, Interrupted):
            if self.experiments.failed is not None:
                self.measured(planned.specs, self.experiments.failed)
            raise

    def measured(self, specs: Sequence[str], directory: RunDirectory) -> list[Candidate]:
        """The candidates of an experiment, which is a stage from now on."""
        found = self._candidates(directory)
        self.found.append(Stage(tuple(specs), found, directory))
        return found

    def at_loads(self, directory: RunDirectory) -> dict[int, list[Candidate]]:
        """The candidates of an experiment by load."""
        table = tabulate(directory.records())
        return by_level(directory.load(), table, self.search.objective, self._slo, self.search.dial)

    def confirm(self, setting: Candidate, loop: float, seconds: float, until: float) -> None:
        """Measure the setting once more, alone and last, where there is time. A loop takes `loop` seconds.

        The best of several owes part of its score to luck, and in a window of its own it has none. Last,
        since what it serves may drift: what is promised is what comes after the search.
        """
        if seconds >= trial_seconds(loop):
            window = window_seconds([loop], seconds, 1)
            self.confirmation = self.experiment(Planned("confirm", (setting.spec,), 1, window, until))

    def promised(self, setting: Candidate, stage: Stage) -> Candidate:
        """The setting with the goodput that it promises: of its own window, else of the final stage."""
        found = Estimate(None)
        for directory in (self.confirmation, stage.directory):
            if directory is None or found.value is not None:
                continue
            found = promised(directory.load(), tabulate(directory.records()), setting.spec, self._slo)
            if directory is self.confirmation:
                found = self._with_drift(setting, found)
        score = found if self.search.objective == "goodput" else setting.score
        return replace(setting, goodput=found, score=score)

    @property
    def objective_outcome(self) -> Outcome | None:
        """Whether any setting meets `--slo`, each as it was measured last; None without one."""
        spec = self.search.load.slo
        if spec is None:
            return None
        last = {one.spec: one for stage in self.found for one in stage.found}
        best_first = sorted(last.values(), key=lambda one: -one.points)
        return objective_outcome(
            spec, [(one.spec, one.objective_met, one.objective_missed) for one in best_first]
        )

    def _with_drift(self, setting: Candidate, found: Estimate) -> Estimate:
        """The promise, allowing for another change like that since the final stage, where there was one."""
        before, when = setting.goodput.value, "in the final stage"
        if found.value is None or found.low is None or found.high is None:
            return found
        foreseen = self.predictions.changed(setting.spec, found)
        if foreseen is not None:
            # From the first look: what has changed since then shows before it shows in the final stage.
            before, when = foreseen, "as predicted from the first look"
        elif before is None or found.low <= before <= found.high:
            return found
        change = found.value - before
        self.moved = (
            f"{setting.spec} gave {before:.3g}/s {when} and {found.value:.3g}/s at the end: "
            "its interval allows for as large a change again"
        )
        low, high = found.low + min(0.0, change), found.high + max(0.0, change)
        return Estimate(found.value, max(0.0, low), high)

    def _candidates(self, directory: RunDirectory) -> list[Candidate]:
        return candidates(directory, self.search.objective, self._slo, self.search.dial)

    def _enough(self, directory: RunDirectory) -> bool:
        """Whether the final stage may end: its candidates are told apart, or shown to be as good."""
        trials = directory.load().trials
        if len({trial.block for trial in trials}) < FIRST_LOOK:
            return False
        return settled(self._candidates(directory))

    def _proven(self, directory: RunDirectory) -> bool:
        """Whether the measuring of what was predicted may end: as `_enough`, or since that was wrong."""
        if self._enough(directory):
            return True
        if len({trial.block for trial in directory.load().trials}) < FEWEST_SURPRISING:
            return False
        return self.predictions.disagreement(self._candidates(directory)) is not None
