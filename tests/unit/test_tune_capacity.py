"""What a search makes of servers whose truth is known: simulated, without a clock."""

from __future__ import annotations

import pytest

from profiler.errors import UsageError
from profiler.load.experiment import Experiment
from profiler.load.options import LoadOptions
from profiler.statistics.direct import DirectLoad
from profiler.statistics.objectives import parse_objective
from profiler.statistics.quantiles import Estimate, Quantiles
from profiler.tune.capacity import (
    best_rate,
    bracket,
    failing,
    guess,
    judge_capacity,
    known,
    ladder,
    rate_sentence,
    to_try,
)
from profiler.tune.direct import DirectSearch, DirectTuner, Measurement, render_capacity

SERVICE = 0.1
TRIAL = 2.0


def load(
    users: int,
    served: float,
    seconds: float,
    *,
    calls: int | None = None,
    failures: dict[str, int] | None = None,
    beside: float | None = None,
    rate: float | None = None,
    unserved: bool = False,
) -> DirectLoad:
    estimate = Estimate(seconds)
    return DirectLoad(
        users=users,
        rate=rate,
        served=Estimate(served),
        calls=round(served * TRIAL) + sum((failures or {}).values()) if calls is None else calls,
        failures=failures or {},
        cut=0,
        unstarted=0,
        waiting=round((rate or 0.0) - served) * 2 if unserved else 0,
        waiting_seconds=0.0,
        unserved=unserved,
        in_flight=users,
        accepted=users,
        beside_failures=beside,
        mean=seconds,
        service=seconds,
        seconds=Quantiles(estimate, estimate, estimate),
        at_least=(),
        tools=(),
    )


def refusing(cap: int):
    """A server that answers an error above `cap` calls at once."""

    def at(users: int) -> DirectLoad:
        if users <= cap:
            return load(users, users / SERVICE, SERVICE)
        over = 5 * (users - cap)
        return load(users, cap / SERVICE, SERVICE, failures={"http_429": over}, beside=float(cap))

    return at


def queueing(places: int):
    """A server that works on `places` calls at once."""

    def at(users: int) -> DirectLoad:
        served = min(users, places) / SERVICE
        return load(users, served, users / served)

    return at


def thrashing(best: int):
    """A server that is slowed down by what is above `best` calls at once."""

    def at(users: int) -> DirectLoad:
        served = min(users, best) / SERVICE * (1.0 if users <= best else (best / users) ** 0.5)
        return load(users, served, users / served)

    return at


def loads(server, *users: int) -> list[DirectLoad]:
    return [server(one) for one in users]


def test_ladder_doubles_up_to_the_most():
    assert ladder(64) == [1, 2, 4, 8, 16, 32, 64]
    assert ladder(40) == [1, 2, 4, 8, 16, 32, 40]
    assert ladder(1) == [1]


@pytest.mark.parametrize(("failed", "of", "is_failing"), [(1, 100, False), (2, 100, True), (40, 100, True)])
def test_load_fails_where_more_fails_than_alone(failed, of, is_failing):
    alone, above = load(1, 10, 0.1), load(8, 80, 0.1, failures={"tool_error": failed}, calls=of)
    assert failing(above, alone) is is_failing


def test_load_whose_calls_fail_as_often_as_alone_is_taken():
    alone = load(1, 10, 0.1, failures={"tool_error": 10}, calls=100)
    above = load(8, 80, 0.1, failures={"tool_error": 90}, calls=800)
    assert not failing(above, alone)


@pytest.mark.parametrize("cap", [8, 16, 40])
def test_refusing_server_is_bracketed_and_its_cap_is_tried_next(cap):
    found = loads(refusing(cap), *ladder(64))
    bounds = bracket(found)
    assert bounds.refused is not None
    assert bounds.taken <= cap < bounds.refused
    assert guess(found, bounds) == cap
    wanted = to_try(found)
    assert cap + 1 in wanted
    found += loads(refusing(cap), *wanted)
    assert known(found)
    answer = judge_capacity("files", found)
    assert (answer.kind, answer.limit) == ("refuses", cap)
    assert f"semaphore:{cap}@server" in answer.sentence
    assert answer.rate.value == pytest.approx(cap / SERVICE)


def test_server_whose_refusals_do_not_tell_is_searched_in_equal_steps():
    blind = [load(32, 160, 0.1), load(1, 10, 0.1), load(64, 160, 0.1, failures={"timeout": 40})]
    assert to_try(blind) == [37, 41, 46, 50, 55, 59]


def test_queueing_server_gains_nothing_of_a_limit_and_its_capacity_is_named():
    answer = judge_capacity("files", loads(queueing(16), *ladder(64)))
    assert (answer.kind, answer.limit) == ("queues", None)
    assert answer.parallel == pytest.approx(16)
    assert answer.rate.value == pytest.approx(160)
    assert "a limit gains nothing" in answer.sentence
    assert "160/s, 16 in parallel" in answer.sentence


@pytest.mark.parametrize("server", [queueing(16), refusing(16)])
def test_half_load_needs_no_limit(server):
    answer = judge_capacity("files", loads(server, *ladder(8)))
    assert (answer.kind, answer.limit, answer.parallel) == ("enough", None, None)
    assert "no limit is needed: with 8 calls at once" in answer.sentence


def test_server_that_is_slowed_down_is_given_the_load_at_which_it_answers_most():
    answer = judge_capacity("files", loads(thrashing(8), *ladder(64)))
    assert (answer.kind, answer.limit) == ("degrades", 8)


def test_server_that_answers_nothing_alone_is_said_to_fail():
    answer = judge_capacity("files", [load(1, 0.0, 0.0, failures={"tool_error": 9})])
    assert answer.kind == "fails"
    assert "tool_error 9" in answer.sentence


def test_largest_rate_is_the_last_below_which_all_meet_the_objective():
    slo = parse_objective("p95<500ms,errors<1%")
    rates = [
        load(1, 40, 0.2, rate=40.0),
        load(2, 60, 0.6, rate=60.0),
        load(3, 70, 0.3, rate=70.0),
        load(4, 70, 9.9, rate=90.0, unserved=True),
    ]
    found = best_rate(rates, slo, "p95<500ms,errors<1%")
    assert found.met is rates[0]
    assert found.missed is rates[1]
    assert rate_sentence("files", found).startswith("the largest rate within p95<500ms,errors<1%: 40.0/s")
    assert best_rate(rates[3:], slo, "p95<500ms").met is None


class World:
    """Measures what `server` shows of closed loads, and of open ones with the latency of a queue."""

    def __init__(self, server, capacity: float, start: float = 5.0) -> None:
        self.server, self.capacity, self.start = server, capacity, start
        self.now = 0.0
        self.experiments: list[Experiment] = []

    def measure(self, experiment: Experiment) -> Measurement:
        self.experiments.append(experiment)
        options = experiment.options
        seconds = (experiment.seconds + 0.2) * len(options.levels)
        self.now += seconds + self.start
        found = [self._one(options, users) for users in options.levels]
        return Measurement(tuple(found), f"runs/{len(self.experiments)}", seconds=seconds)

    def _one(self, options: LoadOptions, users: int) -> DirectLoad:
        if options.arrivals is None:
            return self.server(users)
        rate = float(options.arrivals.removesuffix("/s")) * users / 100
        busy = rate / self.capacity
        waits = SERVICE * busy / max(0.01, 1 - busy)
        return load(users, min(rate, self.capacity), SERVICE + waits, rate=rate, unserved=busy > 1)


def search(server, capacity: float, **given):
    world = World(server, capacity, given.pop("start", 5.0))
    options = LoadOptions(direct=True, mcp=("files=http://127.0.0.1:1/mcp",), slo=given.pop("slo", None))
    asked = DirectSearch(options, **{"most": 64, "alone": SERVICE, **given})
    answer = DirectTuner(asked, lambda text: None, world.measure, lambda: world.now).run()
    return answer, world


@pytest.mark.parametrize("cap", [8, 16, 23, 40, 57])
def test_search_finds_a_cap_in_two_experiments(cap):
    answer, world = search(refusing(cap), cap / SERVICE)
    assert answer.limit == cap
    assert len(world.experiments) == 2
    assert world.now < 60
    assert f"limit the calls to files to {cap} at once" in render_capacity(answer)


def test_search_finds_the_largest_rate_within_an_objective_at_the_limit_of_the_server():
    answer, world = search(refusing(16), 160.0, slo="p95<500ms")
    assert answer.rates is not None
    assert answer.rates.met is not None
    # By the formula above 0.5 s are reached at 0.8 of the capacity.
    assert answer.rates.met.rate == pytest.approx(128, rel=0.06)
    assert world.experiments[-1].options.max_in_flight == 16
    assert world.now <= 120


def test_search_with_too_little_time_says_how_much_is_enough():
    with pytest.raises(UsageError, match=r"--budget 30s is too little: a lone call takes 5.0 s"):
        search(queueing(4), 40.0, alone=5.0, budget=30.0)


def test_search_that_runs_out_of_time_says_that_the_limit_is_known_no_better():
    answer, _ = search(refusing(40), 400.0, budget=30.0, start=12.0)
    assert answer.limit == 32
    assert any("the budget was too short" in note for note in answer.notes)


@pytest.mark.parametrize("budget", [30.0, 40.0, 60.0, 120.0])
@pytest.mark.parametrize("server", [refusing(16), queueing(16), queueing(1), thrashing(8)])
def test_search_keeps_to_its_budget_with_a_ladder_of_rates(server, budget):
    _, world = search(server, 160.0, slo="p95<500ms", budget=budget, start=6.0)
    assert world.now <= 1.2 * budget


@pytest.mark.parametrize(
    ("given", "blocks"),
    [
        ({"arrivals": "40/s"}, 1),
        ({}, 3),
        ({"arrivals": "40/s", "blocks": 5}, 5),
        ({"arrivals": "40/s", "direct": False, "mcp": ()}, 3),
    ],
)
def test_calls_that_arrive_without_a_model_are_one_block(given, blocks):
    options = LoadOptions(**{"direct": True, "mcp": ("files=http://127.0.0.1:1/mcp",), **given})
    assert Experiment(options, users=20, seconds=10.0).blocks == blocks


def test_what_the_first_look_took_is_of_the_budget():
    _, world = search(queueing(16), 160.0, slo="p95<500ms", budget=60.0, spent=25.0)
    assert world.now <= 1.2 * 35


def test_search_without_time_for_rates_says_so():
    answer, _ = search(queueing(16), 160.0, slo="p95<500ms", budget=40.0, start=20.0)
    assert answer.rates is None
    assert any("no time was left to look for a rate within p95<500ms" in note for note in answer.notes)


def test_search_with_little_time_tries_fewer_loads():
    answer, world = search(queueing(16), 160.0, budget=24.0)
    assert world.experiments[0].options.levels == (1, 4, 16, 64)
    assert answer.parallel == pytest.approx(16)
