"""How much load there can be: a bisection over loads whose figures are a formula here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from profiler.arrivals import Arrivals
from profiler.errors import UsageError
from profiler.limits.known import parse_quota
from profiler.prediction.asking import Asked
from profiler.prediction.capacity import Capacity, bottlenecks, capacity_of
from profiler.prediction.predict import Predicted, Question
from profiler.prediction.quotas.finding import Limit, QuotaFinding
from profiler.prediction.quotas.given import given_quota
from profiler.prediction.servers.calls import Rule
from profiler.prediction.simulation.engine import ServerUse
from profiler.prediction.simulation.load import Trials
from profiler.statistics.objectives import parse_objective
from profiler.strategies import parse_strategy
from tests.unit.prediction_data import fitted, predicted

ASKED = Asked((parse_strategy("gathered"),), (20,), Trials(5.0, 3))
FIT = fitted(servers=[("search", Rule("queue", 40), True), ("fetch", Rule("none"), True)], cpu_ns=5e6)


def used(seconds: float, load: float) -> tuple[ServerUse, ...]:
    """Search has `load` calls under way on average."""
    return (ServerUse(work_ns=int(load * seconds * 1e9)), ServerUse(), ServerUse())


def answer(question: Question, *, fails_from: int = 10**9, refused_from: int = 10**9) -> Predicted:
    """A second for a loop alone, and room for 60 agents' worth of loops."""
    users = question.load.users
    if users >= refused_from:
        return predicted("gathered", users, refused=("nobody saw so many",), trials=question.trials)
    rate = min(users, 60) / 1.0
    return predicted(
        "gathered",
        users,
        p50=users / rate,
        p95=2 * users / rate,
        throughput=rate,
        goodput=rate,
        failure_rate=0.05 if users >= fails_from else 0.0,
        uses=used(question.trials.seconds, min(40.0, users * 2 / 3)),
        trials=question.trials,
    )


def found(slo: str | None = None, **changes: int) -> Capacity:
    asked: list[int] = []

    def ask(questions: Sequence[Question], replicates: int) -> list[Predicted]:
        asked.extend(question.load.users for question in questions)
        return [answer(question, **changes) for question in questions]

    objective = None if slo is None else parse_objective(slo)
    capacity = capacity_of(ASKED, ASKED.strategies[0], FIT, ask, objective)
    assert capacity is not None
    assert len(asked) < 50
    return capacity


def test_more_agents_than_the_servers_have_work_for_bring_nothing() -> None:
    capacity = found()
    assert capacity.ends == "growth"
    # The last fifth of N agents brings a quarter of its share up to N = 60 / (0.8 · 1.0625).
    assert capacity.most == pytest.approx(70, abs=4)
    assert capacity.sentence.endswith(
        "; the first bottleneck is search (capacity about 40, seen; 100 % used), the next this client's "
        "processor (30 % used)"
    )


def test_failures_end_it_at_the_last_load_without_them() -> None:
    capacity = found(fails_from=39)
    assert (capacity.most, capacity.ends) == (38, "failures")
    assert capacity.sentence.startswith(
        "gathered: 38 agents at most: 5.0 % of the loops fail with 39 agents; "
    )


def test_an_objective_ends_it_and_says_which_term() -> None:
    capacity = found(slo="p95<2.2s,errors<1%")
    assert capacity.ends == "objective"
    assert capacity.most == pytest.approx(65, abs=2)
    assert "at most: p95 2." in capacity.sentence


def test_what_was_never_recorded_is_no_capacity() -> None:
    capacity = found(refused_from=31)
    assert (capacity.most, capacity.ends) == (30, "recording")
    assert "30 agents at least: the recording says nothing of 31 agents" in capacity.sentence


def test_not_even_one_agent() -> None:
    capacity = found(fails_from=1)
    assert (capacity.most, capacity.sentence) == (
        None,
        "gathered: not even 1 agent: 5.0 % of the loops fail",
    )


def test_nothing_is_said_where_nothing_is_predicted() -> None:
    def ask(questions: Sequence[Question], replicates: int) -> list[Predicted]:
        return [answer(question, refused_from=0) for question in questions]

    assert capacity_of(ASKED, ASKED.strategies[0], FIT, ask) is None


def test_an_open_load_is_held_while_it_is_served() -> None:
    asked = Asked(ASKED.strategies, (20,), Trials(5.0, 3), arrivals=Arrivals(30.0, 20))

    def ask(questions: Sequence[Question], replicates: int) -> list[Predicted]:
        answers = []
        for question in questions:
            assert question.load.arrivals is not None
            rate = min(60.0, question.load.arrivals.rate)
            answers.append(predicted(goodput=rate, throughput=rate, p50=1.0, trials=question.trials))
        return answers

    capacity = capacity_of(asked, asked.strategies[0], FIT, ask)
    assert capacity is not None
    assert (capacity.unit, capacity.ends) == ("loops/s", "growth")
    assert capacity.most == pytest.approx(61.5, rel=0.05)


def test_few_arrivals_may_be_fewer_than_their_rate_by_chance() -> None:
    asked = Asked(ASKED.strategies, (20,), Trials(5.0, 3), arrivals=Arrivals(3.0, 20))

    def ask(questions: Sequence[Question], replicates: int) -> list[Predicted]:
        answers = []
        for question in questions:
            assert question.load.arrivals is not None
            rate = question.load.arrivals.rate
            # Of the smallest load, 3/64 a second, a tenth fewer came: 5 loops in 120 s rather than 5.6.
            served = 0.9 * rate if rate < 0.05 else min(6.0, rate)
            answers.append(predicted(goodput=served, throughput=served, p50=1.0, trials=question.trials))
        return answers

    capacity = capacity_of(asked, asked.strategies[0], FIT, ask)
    assert capacity is not None
    assert capacity.most == pytest.approx(6.15, rel=0.07)


def test_a_server_that_refused_is_the_first_bottleneck() -> None:
    fit = fitted(servers=[("fetch", Rule("queue", 10), True), ("search", Rule("refuse", 40), False)])
    one = predicted(
        uses=(ServerUse(work_ns=9 * 10**10), ServerUse(work_ns=2 * 10**11, refused=7), ServerUse())
    )
    first, second = bottlenecks(fit, one)
    assert (first.name, first.utilisation, first.capacity, first.seen) == ("search", 0.5, 40, False)
    assert (second.name, second.utilisation) == ("fetch", 0.9)


def test_the_strategys_own_limit_may_be_the_bottleneck() -> None:
    fit = fitted(servers=[("search", Rule("queue", 40), True)])
    one = predicted("semaphore:10", uses=(ServerUse(work_ns=95 * 10**9), ServerUse()))
    assert [(found.name, found.utilisation) for found in bottlenecks(fit, one)] == [
        ("the limit semaphore:10 itself", 0.95),
        ("search", 0.2375),
    ]


def test_a_quota_ends_it_by_what_is_asked_in_the_long_run() -> None:
    quota = QuotaFinding((Limit("requests", 600.0, "given", burst=600.0),))

    def ask(questions: Sequence[Question], replicates: int) -> list[Predicted]:
        return [replace(answer(question), question=question) for question in questions]

    capacity = capacity_of(replace(ASKED, quota=quota), ASKED.strategies[0], FIT, ask, None, ["rpm=600"])
    assert capacity is not None
    # A loop has one request, and an agent a loop a second.
    assert (capacity.most, capacity.ends) == (10, "quota")
    assert capacity.sentence.startswith(
        "gathered: with rpm=600, 10 agents at most: 660 a minute are asked of 600 requests a minute with 11 "
        "agents; the first bottleneck is the quota of 600 requests a minute (100 % used), the next "
    )


def test_a_quota_that_is_given_takes_the_place_of_the_recorded_one() -> None:
    recorded = QuotaFinding(
        (Limit("requests", 500.0, "headers", burst=50.0), Limit("tokens", 9e4, "headers")), refused=3
    )
    fit = replace(FIT, quota=recorded)
    found = given_quota([parse_quota("openai:rpm=100,rpd=1440")], fit)
    assert found is not None
    # Of a day it is as much as it lets through in a minute on average.
    assert [(one.resource, one.amount, one.burst) for one in found.limits] == [
        ("tokens", 9e4, None),
        ("requests", 100.0, 100.0),
        ("requests", 1.0, 1440.0),
    ]
    with pytest.raises(UsageError, match="the recording is of openai"):
        given_quota([parse_quota("anthropic:rpm=5")], fit)
    assert given_quota([], fit) is None
