"""The search on top of predictions: what it measures, what it says, what it does where they are wrong.

The experiments are those of an invented system, whose capacity is 20.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from profiler.load.options import LoadOptions
from profiler.over import parse_over
from profiler.prediction import support
from profiler.prediction.servers.calls import Rule
from profiler.rundir import Run, RunDirectory
from profiler.tune.answer import Answer, render
from profiler.tune.asked import Search
from profiler.tune.predictor import PredictedSpace, Seen, SpacePredictor, with_likely
from profiler.tune.recorded import at_the_top, merged
from profiler.tune.scores import Scored
from profiler.tune.search import tune
from tests.unit.prediction_data import directory, fitted, recorded
from tests.unit.test_tune_search import goodput, invented, search  # noqa: F401  (a fixture)
from tests.unit.tune_data import scored

SPECS = ("gathered", "adaptive", *(f"semaphore:{k}" for k in (4, 8, 12, 16, 18, 19, 20, 22)))


class Foresight:
    """Predicts the invented system, `factor` times as fast; refuses the first `refusals` times."""

    def __init__(self, factor: float = 1.0, refusals: int = 0) -> None:
        self.factor = factor
        self.refusals = refusals
        self.asked: list[tuple[int, Seen]] = []
        self.closed = False

    def predict_space(self, parts: Sequence[RunDirectory], seen: Seen, seconds: float) -> PredictedSpace:
        self.asked.append((len(parts), seen))
        if len(self.asked) <= self.refusals:
            return PredictedSpace({}, (), "look: nothing is known of it", 99)
        found = {one.spec: one for one in self.at_loads(SPECS, [20])[20]}
        return PredictedSpace(
            found, ("semaphore:20", "semaphore:18"), None, 600, 3.0, ("look refuses above 20",)
        )

    def at_loads(self, specs: Sequence[str], levels: Sequence[int]) -> dict[int, list[Scored]]:
        found: dict[int, list[Scored]] = {}
        for users in levels:
            for spec in specs:
                rate, failing = goodput(spec, users)
                good = self.factor * rate * (1 - failing)
                one = scored(spec, good)
                found.setdefault(users, []).append(Scored(spec, (good,), replace(one, predicted=True)))
        return found

    def close(self) -> None:
        self.closed = True


def found_with(foresight: Foresight, said: list[str] | None = None) -> Answer:
    return tune(search(20), [].append if said is None else said.append, predictor=foresight)


def names(invented) -> list[list[str]]:  # noqa: F811
    return [[str(spec) for spec in one.options.strategies] for one in invented]


@pytest.mark.slow
def test_what_is_predicted_to_be_best_is_all_that_is_measured(invented) -> None:  # noqa: F811
    said: list[str] = []
    foresight = Foresight()
    answer = found_with(foresight, said)
    assert names(invented) == [
        ["gathered", "adaptive"],
        ["semaphore:20", "semaphore:18", "gathered"],
        ["semaphore:20"],
    ]
    assert (invented[0].options.levels, invented[0].options.climb) == ((7, 12, 20), True)
    assert [(parts, seen.widest) for parts, seen in foresight.asked] == [(1, 1)]
    assert foresight.closed
    assert answer.setting.spec == "semaphore:20"
    assert answer.prediction is not None
    assert answer.prediction.startswith(
        "10 settings were predicted from 600 loops in 3 s; semaphore:20 was pre"
    )
    assert answer.surprise is None
    assert (answer.servers, answer.untried) == (("look refuses above 20",), ())
    assert said[1] == "predicted: 10 settings from 600 loops: best semaphore:20, 20/s [19, 21]"
    # The curve has both, and says which is which; so have the other loads.
    assert [one.limit for one in answer.curve if not one.predicted] == [18, 20]
    assert [one.limit for one in answer.curve if one.predicted] == [4, 8, 12, 16, 19, 22]
    assert answer.shape is not None
    assert (answer.shape.cliff, answer.shape.low) == (22, 20)
    assert all(at.setting.predicted for at in answer.loads)
    text = render(answer)
    assert "at other loads, as predicted:" in text
    assert sum(line.endswith(" predicted") for line in text.splitlines()) == 7  # the headroom as well
    assert answer.headroom is not None
    assert answer.headroom.startswith("headroom: at semaphore:16 (80 % of the limit) 79% of it")


@pytest.mark.slow
def test_what_cannot_be_predicted_is_searched_and_the_ladder_may_tell_more(invented) -> None:  # noqa: F811
    said: list[str] = []
    foresight = Foresight(refusals=9)
    answer = found_with(foresight, said)
    assert len(invented) == 5  # the first look, a ladder, the final stage, other loads, the setting once more
    assert [parts for parts, _ in foresight.asked] == [1, 2]
    assert "not predicted: look: nothing is known of it" in said
    assert answer.prediction == "not predicted, but searched: look: nothing is known of it"
    assert 19 <= (answer.setting.limit or 0) <= 20
    assert not any(one.predicted for one in answer.curve)

    invented.clear()
    answer = found_with(Foresight(refusals=1))
    _, ladder, proof, confirm = names(invented)
    assert len(ladder) > 2
    assert proof[:2] == ["semaphore:20", "semaphore:18"]
    assert confirm == ["semaphore:20"]
    assert answer.prediction is not None
    assert "10 settings were predicted" in answer.prediction


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.6, 1.5])
def test_wrong_prediction_is_said_first_and_the_search_goes_on_without_it(invented, factor) -> None:  # noqa: F811
    answer = found_with(Foresight(factor))
    assert answer.surprise is not None
    assert answer.surprise.startswith("the prediction was wrong: semaphore:20 was predicted ")
    assert render(answer).splitlines()[0] == f"{answer.surprise}."
    assert len(names(invented)[2]) > 2  # a ladder of its own
    assert 19 <= (answer.setting.limit or 0) <= 20
    assert not any(one.predicted for one in answer.curve)


@pytest.mark.slow
def test_strategies_that_start_early_are_measured_beside_what_is_predicted(invented) -> None:  # noqa: F811
    load = LoadOptions(scenario="crowded", stream=True)
    tune(Search(load, 20, over=parse_over("semaphore,eager"), budget=120.0), predictor=Foresight())
    assert {"eager", "eager+semaphore:20"} <= set(names(invented)[1])


def test_agents_of_ones_own_and_short_searches_have_the_first_look_as_before(invented) -> None:  # noqa: F811
    for changes in ({"agent": "my:agent"}, {}):
        invented.clear()
        load = LoadOptions(scenario="crowded", **changes)
        tune(Search(load, 20, budget=120.0 if changes else 60.0), predictor=Foresight())
        assert (invented[0].options.levels, names(invented)[0]) == ((), ["gathered", "adaptive"])


def test_experiments_are_one_recording_with_trials_and_work_of_their_own() -> None:
    run, records = recorded((1, 2), ("gathered",))
    other, more = recorded((2,), ("semaphore:1",))
    both, every = merged([(run, records), (other, more)])
    assert [one.index for one in both.trials] == [0, 1, 2]
    assert {one.trial for one in every} == {0, 1, 2}
    assert [spec.text for spec in both.strategies][: len(run.strategies)] == [
        spec.text for spec in run.strategies
    ]
    top, kept = at_the_top(run, records)
    assert [trial.users for trial in top.trials] == [2]
    assert {one.trial for one in kept} == {1}


def test_space_is_predicted_from_what_was_recorded_or_says_why_not(tmp_path) -> None:
    run, records = recorded((1, 2, 4), ("gathered",), blocks=6)
    asked = Search(
        LoadOptions(scenario="crowded"), 2, over=parse_over("semaphore=1..8,adaptive"), budget=60.0
    )
    with SpacePredictor(asked, clock=lambda: 0.0, processes=1) as predictor:
        space = predictor.predict_space([directory(tmp_path, run, records)], Seen(0.1, 4, 2), 6.0)
        assert space.refused is None
        assert space.loops == len(records)
        gathered, one = space.candidate("gathered"), space.candidate("semaphore:1")
        assert gathered is not None
        assert one is not None
        assert gathered.goodput.value == pytest.approx(2 / 0.105, rel=0.03)
        assert one.goodput.value < gathered.goodput.value
        assert "gathered" in space.finalists
        loads = predictor.at_loads(["gathered"], [1, 2])
        assert loads[2][0].value == pytest.approx(2 * loads[1][0].value, rel=0.05)
    few = directory(tmp_path, *recorded((1,), ("gathered",)))
    with SpacePredictor(asked, processes=1) as predictor:
        space = predictor.predict_space([few], Seen(0.1, 4, 2), 6.0)
        assert space.refused is not None
        assert "whole loops are too few" in space.refused
        assert predictor.at_loads(["gathered"], [1]) == {}


@pytest.mark.slow
def test_what_is_only_likely_chooses_what_is_measured_and_is_not_shown(invented) -> None:  # noqa: F811
    class Guess(Foresight):
        def predict_space(self, parts: Sequence[RunDirectory], seen: Seen, seconds: float) -> PredictedSpace:
            return replace(
                super().predict_space(parts, seen, seconds), servers=(), assumed=("look: refuses above 20",)
            )

    answer = found_with(Guess())
    assert names(invented)[1] == ["semaphore:20", "semaphore:18", "gathered"]
    assert answer.prediction is not None
    assert (
        "; what was measured was chosen as if this were known: look: refuses above 20; " in answer.prediction
    )
    assert not any(one.predicted for one in answer.curve)
    assert not any(at.setting.predicted for at in answer.loads)


def test_rule_that_is_likely_is_taken_for_known_and_said() -> None:
    queue, none = Rule("queue", 8), Rule("none")
    fit = fitted(servers=[("a", queue, False), ("b", none, False), ("c", queue, True)])
    found, assumed = with_likely(fit)
    assert [one.finding.identified for one in found.servers] == [True, False, True]
    assert assumed == ("a: queue it is",)


def test_figures_of_the_client_refuse_a_prediction_only_where_none_is_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a first look one load may be the machine's, as calls refused in 2 ms are: the others tell enough."""
    run, records = recorded((1, 2, 4), ("gathered",), blocks=6)
    asked = Search(LoadOptions(scenario="crowded"), 2, over=parse_over("semaphore=1..8"), budget=60.0)
    for invalid, refused in (({4}, False), ({1, 2, 4}, True)):
        monkeypatch.setattr(support, "summarise_table", lambda run, table, of=invalid: Summarised(run, of))
        with SpacePredictor(asked, clock=lambda: 0.0, processes=1) as predictor:
            space = predictor.predict_space([directory(tmp_path, run, records)], Seen(0.1, 4, 2), 6.0)
        assert (space.refused == "busy") == refused


class Summarised:
    """A summary in which the loads of these numbers of agents are invalid."""

    def __init__(self, run: Run, invalid: set[int]) -> None:
        self.warnings = [SimpleNamespace(invalid=True, sentence="busy")]
        self.every_strategy = [
            SimpleNamespace(valid=users not in invalid) for users in {one.users for one in run.trials}
        ]
