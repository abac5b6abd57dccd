"""The client's own part of recorded loops: taken out as it was, put in again as it would be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from profiler.prediction.client import never_falling, rates_of
from profiler.prediction.fitting import Fitted, fit_run
from profiler.prediction.loops import weights_of
from profiler.prediction.predict import Question, Work, predict
from profiler.prediction.requests import Requests
from profiler.prediction.servers.calls import Calls, Rule, service_times
from profiler.prediction.simulation.load import SimulatedLoad, Trials
from profiler.records import Attempt, LoopRecord, ModelCall
from profiler.rundir import ClientHealth, Run
from profiler.strategies import parse_strategy
from tests.unit.prediction_data import recorded
from tests.unit.statistics_data import MS

LONGER = 30 * MS
"""What the client of a trial whose processor was wanted by others added to each request and call."""


def late(record: LoopRecord, added: int) -> LoopRecord:
    """The loop with a client that took `added` more for each request and call: half sending, half late."""
    rounds, moved = [], 0
    for one in record.rounds:
        model = one.model
        began, moved = model.started_ns + moved, moved + added
        ended = model.ended_ns + moved
        calls = []
        for call in one.tool_calls:
            assert call.ended_ns is not None
            start, end = ended, call.ended_ns + moved + added
            calls.append(
                replace(
                    call,
                    ready_ns=start,
                    queued_ns=start,
                    started_ns=start,
                    ended_ns=end,
                    sending_ns=added // 2,
                    late_ns=added,  # at most: half of that is the mean
                )
            )
        moved += added if calls else 0
        rounds.append(
            replace(
                one,
                started_ns=began,
                ended_ns=one.ended_ns + moved,
                model=replace(model, started_ns=began, ended_ns=ended, sending_ns=added // 2, late_ns=added),
                tools_started_ns=ended if calls else None,
                tools_ended_ns=one.ended_ns + moved if calls else None,
                tool_calls=tuple(calls),
            )
        )
    return replace(record, ended_ns=record.ended_ns + moved, rounds=tuple(rounds))


def health(trial: int, waited: float) -> ClientHealth:
    return ClientHealth("locust", trial=trial, delayed_seconds=2 * waited, seconds=2.0)


def recording(waited: Sequence[float], added: Sequence[int]) -> tuple[Run, list[LoopRecord]]:
    """Trials of 1 and 2 agents, as many blocks as it takes; each with its client."""
    run, records = recorded((1, 2), blocks=len(waited) // 2)
    records = [late(one, added[one.trial or 0]) for one in records]
    return replace(run, client=tuple(health(n, share) for n, share in enumerate(waited))), records


def seconds(fitted: Fitted, users: int, **changes: float) -> float:
    question = Question(parse_strategy("gathered"), SimulatedLoad(users), Trials(5.0), **changes)
    value = predict(fitted, question, replicates=5).figures["p50"].value
    assert value is not None
    return value


def test_busy_client_of_a_recording_is_not_the_predictions() -> None:
    """One block in three ran while something else wanted the processor."""
    calm = recording([0.05] * 6, [2 * MS] * 6)
    busy = recording([0.05, 0.05, 0.5, 0.5, 0.05, 0.05], [2 * MS, 2 * MS, LONGER, LONGER, 2 * MS, 2 * MS])
    expected = seconds(fit_run(*calm), 2)
    assert expected == pytest.approx(0.111, abs=0.003)
    fitted = fit_run(*busy)
    assert fitted.client.trials[2].call == LONGER
    assert {one.call for one in fitted.client.calm} == {2 * MS}
    assert seconds(fitted, 2) == pytest.approx(expected, abs=0.003)  # not a third of the way to 0.2


def test_load_makes_the_client_late_and_another_load_less() -> None:
    fitted = fit_run(*recording([0.05] * 6, [2 * MS, 20 * MS] * 3))
    assert fitted.client.rates == pytest.approx((38.0, 76.0), rel=0.05)
    few, many = (fitted.client.at(rate).call for rate in fitted.client.rates)
    assert (few, many) == (2 * MS, 20 * MS)
    middle = sum(fitted.client.rates) / 2
    assert fitted.client.at(middle).call == pytest.approx(11 * MS)
    assert fitted.client.at(1e6) == fitted.client.calm[-1]
    assert seconds(fitted, 1) == pytest.approx(0.111, abs=0.004)
    # Loops of 105 ms, and three times what a client adds that makes the requests of 2 agents in some 147 ms
    # (a mean of the recorded ones): 9.4 ms.
    assert seconds(fitted, 2) == pytest.approx(0.105 + 3 * 0.0094, abs=0.004)


def test_client_all_of_whose_trials_were_busy_counts_as_it_was() -> None:
    fitted = fit_run(*recording([0.6, 0.5, 0.4, 0.7, 0.6, 0.6], [LONGER] * 6))
    assert {one.call for one in fitted.client.calm} == {LONGER}
    assert seconds(fitted, 2) == pytest.approx(0.1 + 3 * 0.03, abs=0.01)


def test_tool_that_is_twice_as_fast_leaves_the_client_as_it_is() -> None:
    fitted = fit_run(*recording([0.05] * 2, [8 * MS] * 2))
    work = Work(
        fitted, Question(parse_strategy("gathered"), SimulatedLoad(2), Trials(5.0), (("search", 0.5),))
    )
    for place, loop in enumerate(fitted.loops[:20]):
        changed = work[place]
        for one, other in zip(loop.rounds, changed.rounds, strict=True):
            assert other.service_ns == one.service_ns
            assert [of.service_ns for of in other.calls] == [of.service_ns // 2 for of in one.calls]
            assert [of.client_ns for of in other.calls] == [8 * MS] * len(one.calls)
        assert work[place] is changed  # made once


def test_recording_without_trials_keeps_what_its_client_added() -> None:
    run, records = recording([0.05] * 2, [8 * MS] * 2)
    fitted = fit_run(replace(run, trials=()), [replace(one, trial=None) for one in records])
    assert (fitted.client.trials, fitted.client.rates) == ({}, ())
    loop = fitted.loops[0]
    assert fitted.client.moved(loop, 1000.0) is loop
    assert rates_of(replace(run, trials=()), records) == {}


def test_rate_is_the_requests_a_second_of_one_process() -> None:
    run, records = recorded((4,))
    whole = rates_of(run, records)[0]
    started = [
        of.started_ns
        for one in records
        for round_ in one.rounds
        for of in (round_.model, *round_.tool_calls)
        if of.started_ns is not None
    ]
    assert whole == sum(at < 2000 * MS for at in started) / 2.0
    halves = [replace(one, process="one" if n % 2 else "two") for n, one in enumerate(records)]
    assert rates_of(run, halves)[0] == whole / 2


def test_mean_that_never_falls() -> None:
    assert never_falling([(1.0, 1), (3.0, 1), (2.0, 3), (5.0, 1)]) == (1.0, 2.25, 2.25, 5.0)
    assert never_falling([(3.0, 1), (2.0, 1), (1.0, 1)]) == (2.0, 2.0, 2.0)
    assert never_falling([]) == ()


def test_calls_are_taken_as_the_server_saw_them() -> None:
    """Two calls of a queue of one: the second is served from when the first was over."""
    calls = Calls(
        started=np.array([0, 1]) * MS,
        ended=np.array([100, 190]) * MS,
        refused=np.zeros(2, bool),
        group=np.zeros(2, np.int64),
        sending=np.array([5, 5]) * MS,
        late=np.array([10, 10]) * MS,
    )
    served = calls.at_server()
    assert (served.started.tolist(), served.ended.tolist()) == ([5 * MS, 6 * MS], [95 * MS, 185 * MS])
    assert service_times(served, Rule("queue", 1)).tolist() == [90 * MS, 90 * MS]
    assert service_times(served, Rule("none")).tolist() == [90 * MS, 179 * MS]
    assert served.at_server() is served
    # A call cannot have been shorter than nothing.
    short = replace(calls, ended=np.array([2, 8]) * MS).at_server()
    assert (short.started.tolist(), short.ended.tolist()) == ([2 * MS, 6 * MS], [2 * MS, 6 * MS])


def test_busy_client_is_no_server_that_shares() -> None:
    """Calls take longer under more load, and all of that is the client's."""
    fitted = fit_run(*recording([0.05] * 6, [2 * MS, 20 * MS] * 3))
    assert [(one.finding.rule.kind, one.finding.identified) for one in fitted.servers] == [("none", True)]
    assert fitted.model.finding.rule.kind == "none"
    assert {call.service_ns // MS for loop in fitted.loops for one in loop.rounds for call in one.calls} == {
        *range(20, 30)
    }


def test_sending_of_an_attempt_is_that_before_it_was_sent() -> None:
    rows = Requests()
    model = ModelCall("openai", "m", 0, 100, sending_ns=70, late_ns=8)
    rows.add(0, 50, False, 0, 0, None, model, 30)
    rows.add(0, 90, False, 0, 0, None, model)
    assert [rows.client_ns(row) for row in range(2)] == [34, 74]


def given_up(after: int, of: LoopRecord) -> LoopRecord:
    """The loop, ended by a refusal of its request number `after` (from 0)."""
    rounds = list(of.rounds[: after + 1])
    last = rounds[-1]
    attempts = (Attempt(last.model.started_ns, last.model.ended_ns, 429),)
    rounds[-1] = replace(last, model=replace(last.model, status="error", attempts=attempts), tool_calls=())
    return replace(of, status="error", error_type="http_429", rounds=tuple(rounds))


def test_loops_stand_for_those_that_were_lost_after_the_first_request() -> None:
    """Of ten loops of two requests four lose the first and two the second: those left stand for 6/4 each."""
    _, records = recorded((1,))
    ten = [replace(records[0], number=n) for n in range(10)]
    ended = [given_up(0, one) for one in ten[:4]] + [given_up(1, one) for one in ten[4:6]] + ten[6:]
    assert weights_of(ended)[0] == [1.0, pytest.approx(6 / 4)]
    assert weights_of(ten)[0] == [1.0, 1.0]
    # Where nearly all are lost, the few that were not do not stand for all of them.
    assert weights_of([given_up(1, one) for one in ten[1:]] + ten[:1])[0] == [1.0, 2.0]
