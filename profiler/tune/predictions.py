"""What a search does with predictions: what it measures because of them, and what it says of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from profiler.rundir import RunDirectory
from profiler.statistics.quantiles import Estimate
from profiler.tune.answer import AtLoad, at_other_loads, per_second
from profiler.tune.asked import Search
from profiler.tune.candidates import Candidate, ObjectiveName, best_of
from profiler.tune.predictor import PredictedSpace, Predicts, Seen, SpacePredictor

SHARE = 0.1
"""Of the budget, for predicting."""

FAR = 0.25
"""Where one of them has no interval, prediction and measurement disagree from this difference on."""

APART = 0.08
"""They agree where they differ by less than this share, whatever the intervals."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """A setting as predicted and as measured: loops a second, or seconds."""

    spec: str
    predicted: Estimate
    measured: Estimate
    unit: str = "/s"

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return (self.predicted.value or 0.0) / self.measured.value - 1 if self.measured.value else math.inf

    @property
    def holds(self) -> bool:
        """Whether they differ by no more than both leave open."""
        if abs(self.error) <= APART:
            return True
        mine, its = self.predicted, self.measured
        if mine.low is None or mine.high is None or its.low is None or its.high is None:
            return abs(self.error) <= FAR  # one block has no interval
        return mine.low <= its.high and its.low <= mine.high

    @property
    def words(self) -> str:
        """`predicted 5.7/s, measured 5.6/s (+1.8 %)`."""
        if not self.measured.value:
            return f"predicted {self.predicted.value or 0:.3g}{self.unit}, measured none"
        return (
            f"predicted {self.predicted.value or 0:.3g}{self.unit}, measured "
            f"{self.measured.value:.3g}{self.unit} ({100 * self.error:+.1f} %)"
        )


def agreement(predicted: Candidate, measured: Candidate, objective: ObjectiveName) -> Agreement:
    """Of one setting; `measured` may have no value."""
    if objective == "p95":
        return Agreement(measured.spec, predicted.p95, measured.p95, " s")
    which = "goodput" if objective == "goodput" else "throughput"
    return Agreement(measured.spec, getattr(predicted, which), getattr(measured, which))


def predictor_of(search: Search) -> Predicts | None:
    """What predicts for a search; None where nothing can be predicted, as of a setting of the agent's own."""
    return None if search.dial.setting is not None else SpacePredictor(search)


class Predictions:
    """Those of one search, from what it has recorded so far.

    `space` is what was predicted last, None before. `surprise` says in words that it was found to be wrong.
    """

    def __init__(self, search: Search, predictor: Predicts | None) -> None:
        self._search = search
        self._predictor = predictor
        self.space: PredictedSpace | None = None
        self.surprise: str | None = None

    def close(self) -> None:
        """End what predicts."""
        if self._predictor is not None:
            self._predictor.close()

    @property
    def possible(self) -> bool:
        """Whether anything is predicted at all."""
        return self._predictor is not None

    @property
    def shown(self) -> bool:
        """Whether what was predicted is part of the answer: else it only chose the settings to measure."""
        space = self.space
        good = space is not None and space.refused is None and not space.assumed
        return good and self.surprise is None

    def predict(self, recorded: Sequence[RunDirectory], seen: Seen) -> tuple[bool, str]:
        """Predict from these experiments; whether that tells what to measure, and a line that says so."""
        if self._predictor is None:
            return False, "nothing is predicted"
        seconds = SHARE * self._search.budget
        self.space = space = self._predictor.predict_space(recorded, seen, seconds)
        if space.refused is not None:
            return False, f"not predicted: {space.refused}"
        best = space.candidate(space.finalists[0])
        said = "" if best is None else f": best {best.spec}, {per_second(best.goodput)}"
        return True, f"predicted: {space.known} settings from {space.loops} loops{said}"

    def of(self, spec: str) -> Candidate | None:
        """A setting as predicted; None where it was not."""
        return None if self.space is None else self.space.candidate(spec)

    def to_measure(self, found: Sequence[Candidate]) -> list[str]:
        """The best as predicted, what may be as good, and the baseline to compare with.

        A limit that was the best of those `found` by measuring is among them: it may know better.
        """
        assert self.space is not None
        specs = [*self.space.finalists]
        measured = best_of(found) if found else None
        if measured is not None and measured.points:
            predicted = self.of(measured.spec)
            if predicted is None or measured.points > (predicted.score.high or predicted.points):
                specs.append(measured.spec)
        if self._search.part("eager") is not None:
            specs += ["eager", *(f"eager+{spec}" for spec in specs[:1] if spec.startswith("semaphore"))]
        return [*dict.fromkeys([*specs[:2], self._search.dial.baseline, *specs[2:]])]

    def disagreement(self, measured: Sequence[Candidate]) -> str | None:
        """That the best was measured to be another than predicted, in words; None where it was not."""
        best = best_of(measured)
        found = self._agreement(best)
        if found is None or found.holds:
            return None
        return f"the prediction was wrong: {best.spec} was {found.words}"

    def changed(self, spec: str, goodput: Estimate) -> float | None:
        """The goodput as predicted from the first look, where a measurement at the end contradicts that."""
        predicted = self.of(spec)
        if predicted is None or predicted.goodput.value is None or self.surprise is not None:
            return None
        held = Agreement(spec, predicted.goodput, goodput).holds
        return None if held else predicted.goodput.value

    def loads(self, setting: Candidate, levels: Sequence[int]) -> tuple[list[AtLoad], str | None]:
        """The setting and the baseline at other loads, as predicted; nothing where that was not so."""
        if self._predictor is None or not self.shown:
            return [], None
        baseline, users = self._search.dial.baseline, self._search.users
        found = self._predictor.at_loads([*dict.fromkeys([setting.spec, baseline])], levels)
        candidates = {
            level: [one.candidate for one in scored if one.candidate is not None]
            for level, scored in found.items()
        }
        return at_other_loads(candidates, setting.spec, baseline, users, "over the loads, as predicted")

    def added_to(self, measured: Sequence[Candidate]) -> list[Candidate]:
        """The curve, with what was only predicted beside what was measured; not where it was wrong."""
        if self.space is None or not self.shown:
            return [*measured]
        known = {one.limit for one in measured}
        others = [one.candidate for one in self.space.found.values() if one.candidate is not None]
        added = [one for one in others if one.limit is not None and one.limit not in known]
        return sorted([*measured, *added], key=lambda one: one.limit or 0)

    def words(self, measured: Candidate) -> str | None:
        """What was predicted, and how well that agreed with the setting as `measured`; None without any."""
        space = self.space
        if space is None:
            return None
        if space.refused is not None:
            return f"not predicted, but searched: {space.refused}"
        found = self._agreement(measured)
        said = "" if found is None else f"; {measured.spec} was {found.words}"
        if space.assumed:
            said = f"; what was measured was chosen as if this were known: {'; '.join(space.assumed)}{said}"
        took = f"{space.seconds:.0f} s"
        return f"{space.known} settings were predicted from {space.loops} loops in {took}{said}"

    def _agreement(self, measured: Candidate) -> Agreement | None:
        predicted = self.of(measured.spec)
        return None if predicted is None else agreement(predicted, measured, self._search.objective)
