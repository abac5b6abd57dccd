"""What is predicted and in which order, and which settings are then measured. Nothing runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from profiler.over import parse_over
from profiler.statistics.objectives import parse_objective
from profiler.statistics.quantiles import Estimate
from profiler.strategies import StrategySpec, parse_strategy
from profiler.tune.candidates import Candidate
from profiler.tune.dial import Dial, dial_of
from profiler.tune.predictions import agreement
from profiler.tune.scores import Scored, finalists, leaders, scored, sort_of
from profiler.tune.space import Space, explore, space_of
from tests.unit.prediction_data import predicted
from tests.unit.tune_data import scored as candidate

CAPACITY = 23


def one_tool(spec: str) -> float:
    """Loops a second of 40 agents: a call for each place, up to a capacity above which most of them fail."""
    if spec == "gathered":
        return 7.0
    limit = parse_strategy(spec).limit or 0
    return float(limit) if limit <= CAPACITY else 8.0


def two_tools(spec: str) -> float:
    """`a` serves 4 calls at once and `b` 30; refuses beyond, and each loop needs one of both."""
    strategy = StrategySpec.recorded(spec)
    places = {"a": 60, "b": 60}
    for rule in strategy.rules:
        for name in places:
            if rule.tool in (None, name):
                places[name] = min(places[name], (rule.limit or 0) // (1 if rule.tool else 2))
    served = {"a": 4, "b": 30}
    return min(
        (places[name] if places[name] <= served[name] else 1) / need for name, need in (("a", 1), ("b", 6))
    )


class Asked:
    """Answers from a function, and counts what it was asked."""

    def __init__(self, rate: Callable[[str], float], *refused: str) -> None:
        self.rate = rate
        self.refused = refused
        self.specs: list[str] = []

    def __call__(self, specs: Sequence[str], replicates: int) -> list[Scored]:
        self.specs += specs
        return [
            made(spec, self.rate(spec)) if spec not in self.refused else Scored(spec, refused=("why",))
            for spec in specs
        ]


def made(spec: str, rate: float, *noise: float) -> Scored:
    scores = tuple(rate * (1 + share) for share in noise or (0.0, 0.01, -0.01))
    return Scored(spec, scores, candidate(spec, rate))


def always() -> bool:
    return True


def test_limits_come_closer_and_closer_to_the_best() -> None:
    ask = Asked(one_tool)
    space = Space(("gathered",), ((Dial(), 1, 160),))
    found = explore(space, ask, 4, always)
    best = max(found.values(), key=lambda one: one.value)
    assert best.spec == "semaphore:23"
    assert len(ask.specs) == len(set(ask.specs)) < 20
    # Without time for more there is what was asked first.
    early = explore(space, Asked(one_tool), 4, lambda: False)
    assert list(early) == ["gathered", *(f"semaphore:{k}" for k in (1, 2, 5, 13, 29, 69, 160))]


def test_what_a_server_is_known_to_serve_is_tried_at_once() -> None:
    over = parse_over("semaphore=1..64,adaptive")
    space = space_of(over, dial_of(over), servers=[("a", CAPACITY)], peak=160, widest=4)
    assert space.first()[:4] == ["gathered", "adaptive", "semaphore:23", "semaphore:22"]
    assert {parse_strategy(spec).limit or 0 for spec in space.first()} <= set(range(65))
    # Two processes, each with a limit of its own.
    space = space_of(over, dial_of(over), servers=[("a", CAPACITY)], peak=160, widest=4, sharing=2)
    assert "semaphore:11" in space.first()


def test_limits_of_each_tool_are_searched_together() -> None:
    over = parse_over("semaphore")
    space = space_of(over, dial_of(over), servers=[("a", 4), ("b", 30)], peak=60, widest=6)
    ask = Asked(two_tools)
    found = explore(space, ask, 4, always)
    best = max(found.values(), key=lambda one: one.value)
    assert best.spec == "semaphore:a=4,b=30"
    assert {"semaphore:a=3,b=30", "semaphore:b=30"} <= set(found)
    assert any(spec.endswith("@agent") for spec in found)
    assert finalists(found.values(), dial_of(over))[0] == "semaphore:a=4,b=30"


def test_named_limits_stay_within_what_was_asked_for_and_no_other_form_is_tried() -> None:
    over = parse_over("semaphore:a=1..3,semaphore:b=10..40")
    space = space_of(over, dial_of(over), servers=[("a", 4), ("b", 30)], peak=60, widest=6)
    ask = Asked(two_tools)
    found = explore(space, ask, 4, always)
    assert max(found.values(), key=lambda one: one.value).spec == "semaphore:a=3,b=30"
    assert all(spec == "gathered" or spec.startswith("semaphore:a=") for spec in found)
    assert all(
        1 <= rule.limit <= 3 for spec in found for rule in parse_strategy(spec).rules if rule.tool == "a"
    )


def test_a_limit_of_one_tool_is_a_curve_of_its_own() -> None:
    over = parse_over("semaphore:a=1..16")
    space = space_of(over, dial_of(over), servers=[("a", 4), ("b", 0)], peak=60, widest=6)
    assert space.first() == ["gathered", *(f"semaphore:a={k}" for k in (1, 2, 3, 4, 6, 10, 16))]
    assert not space.named


def test_only_those_that_may_be_the_best_are_measured() -> None:
    found = [
        made("semaphore:23", 20.0),
        made("semaphore:22", 19.7),
        made("semaphore:20", 18.9, 0.0, 0.08, -0.01),  # better in one of three
        made("semaphore:16", 14.0),
        made("gathered", 7.0),
        Scored("adaptive", refused=("why",)),
    ]
    assert [one.spec for one in leaders(found)] == ["semaphore:23", "semaphore:22", "semaphore:20"]
    # Of limits as good one with clearly fewer places, not one that cannot be told apart.
    assert finalists(found, Dial()) == ["semaphore:23", "semaphore:20"]
    assert finalists(found[3:], Dial()) == ["semaphore:16"]
    assert finalists([], Dial()) == finalists([Scored("gathered", (0.0, 0.0))], Dial()) == []


def test_simpler_settings_come_first_and_limits_of_tools_only_where_they_gain() -> None:
    equal = [
        made("adaptive", 10.0),
        made("semaphore:a=4,b=9", 10.05),
        made("semaphore:8", 9.95),
        made("gathered", 9.9),
    ]
    assert finalists(equal, Dial()) == ["adaptive", "gathered", "semaphore:8"]
    gains = [*equal, made("semaphore:a=3,b=9", 10.6)]
    assert finalists(gains, Dial())[0] == "semaphore:a=3,b=9"
    assert [
        sort_of(spec, Dial()) for spec in ("gathered", "semaphore:2", "semaphore:2@agent", "rate:5/s")
    ] == [
        "baseline",
        "shared",
        "scoped",
        "rate",
    ]


def test_score_of_a_prediction_is_that_of_the_objective() -> None:
    one = predicted("semaphore:8", every=[{"goodput": 4.0}, {"goodput": 6.0, "failure_rate": 0.5}])
    by_goodput = scored(one, "goodput", None, Dial())
    assert (by_goodput.scores, by_goodput.value) == ((4.0, 6.0), 5.0)
    assert by_goodput.candidate is not None
    assert (by_goodput.candidate.limit, by_goodput.candidate.predicted) == (8, True)
    assert scored(one, "p95", None, Dial()).scores == (0.5, 0.0)  # the second one fails too often
    assert scored(one, "p95", parse_objective("errors<60%"), Dial()).scores == (0.5, 0.5)
    assert scored(one, "throughput", None, Dial()).scores == (5.0, 5.0)
    assert scored(predicted("adaptive", refused=("why",)), "goodput", None, Dial()).refused == ("why",)


def measured(rate: float | None, width: float = 0.02) -> Candidate:
    return candidate("semaphore:8", rate, width=width)


@pytest.mark.parametrize(
    ("rate", "width", "holds", "words"),
    [
        (5.6, 0.02, True, "predicted 5.7/s, measured 5.6/s (+1.8 %)"),
        (4.5, 0.02, False, "predicted 5.7/s, measured 4.5/s (+26.7 %)"),
        (4.5, 0.25, True, "predicted 5.7/s, measured 4.5/s (+26.7 %)"),  # too short to tell
        (None, 0.0, False, "predicted 5.7/s, measured none"),
    ],
)
def test_prediction_is_held_against_what_was_measured(rate, width, holds, words) -> None:
    found = agreement(measured(5.7, 0.05), measured(rate, width), "goodput")
    assert (found.holds, found.words) == (holds, words)


def test_latency_is_compared_where_it_is_the_objective() -> None:
    one = agreement(measured(5.7), measured(1.0), "p95")
    assert one.measured == Estimate(1.0)
    assert one.words == "predicted 1 s, measured 1 s (+0.0 %)"
