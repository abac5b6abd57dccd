"""What a worker answers its leader, whatever happens in it."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from profiler.errors import TargetError, UsageError
from profiler.load.health import machine_id
from profiler.load.lease import Lease
from profiler.load.messages import Begin, Drained, Grant, Prepare, Ready, Returned, TrialState
from profiler.load.options import LoadOptions
from profiler.load.spending import LoopAccount
from profiler.load.trial import TrialAgent
from profiler.load.worker import Worker, _TrialSink
from profiler.loop.ledger import current_ledger
from profiler.loop.recorder import Recorder
from profiler.records import LoopRecord
from profiler.rundir import Anchor
from tests.unit.statistics_data import loop
from tests.unit.test_load_workers import Clock

PREPARE = Prepare(
    LoadOptions(metrics=False), "http://127.0.0.1:1", 0, 1, machine_id(), Anchor(unix_ns=2, monotonic_ns=1)
)


class Thread:
    """A loop's thread whose first work fails with `error`; what it is to call is called at once."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error

    def run(self, work: Callable[[], Any], timeout: float | None = None) -> Any:
        error, self.error = self.error, None
        if error is not None:
            raise error

    submit = run

    def call(self, function: Callable[[], None]) -> None:
        function()

    def post(self, function: Callable[[], object]) -> None:
        function()

    def stop(self) -> None:
        pass


def worker(
    error: BaseException | None = None,
    pulses: list[int] | None = None,
    report: Callable[[LoopRecord], None] = lambda record: None,
) -> Worker:
    return Worker(
        report=report,
        start_thread=lambda: Thread(error),
        new_event=Clock().event,
        factories=lambda: {"Agent": None},
        send_pulse=lambda: None if pulses is None else pulses.append(1),
    )


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (UsageError("the agent's factory failed"), Ready("the agent's factory failed", 2)),
        (TargetError("openai: http_401"), Ready("openai: http_401", 3)),
        (
            TimeoutError(),
            Ready(
                "http://127.0.0.1:1: the first loop did not end within 60 s; "
                "try a single one: profiler run --base-url ...",
                3,
            ),
        ),
        (ValueError("of our own"), Ready("ValueError: of our own", 1)),
        (asyncio.CancelledError(), None),
    ],
)
def test_worker_says_what_it_cannot_do(error: BaseException, answer: Ready | None) -> None:
    one = worker(error)
    assert one.prepare(PREPARE) == answer
    one.close()


def test_worker_that_is_leaving_has_nothing_to_say() -> None:
    one = worker(ValueError("nobody is there any more"))
    one.leaving = True
    assert one.prepare(PREPARE) is None
    one.begin(Begin(1, 0, 0, "gathered", 0, 1, 1))
    assert one.pulse() is None
    one.close()


def test_trial_is_pulsed_granted_and_drained_by_its_own_sequence() -> None:
    one = worker()
    assert (one.pulse(), one.end()) == (None, Drained(0))
    one.begin(Begin(4, 2, 0, "gathered", 0, 1, 1, limited=True))
    trial = one.next_trial(None)
    one.grant(Grant(3, 9))  # of an earlier trial
    assert trial.granted == 0
    one.grant(Grant(4, 9))
    assert trial.granted == 9
    pulse = one.pulse()
    assert pulse is not None
    assert (pulse.sequence, pulse.state) == (4, TrialState())
    drained = one.end(0.0)
    assert (drained.sequence, drained.interrupted, drained.loops) == (4, 0, 0)
    assert drained.health is not None
    assert drained.health.trial == 2
    assert (one.trial, trial.open) == (None, False)
    assert one.end() == Drained(4)
    one.close()


class At:
    """A clock that somebody sets."""

    now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


def leased(clock: At) -> tuple[Worker, list[LoopRecord]]:
    reported: list[LoopRecord] = []
    one = Worker(
        report=reported.append,
        start_thread=Thread,
        new_event=Clock().event,
        factories=lambda: {"Agent": None},
        send_pulse=lambda: None,
        lease=Lease(clock),
    )
    return one, reported


def test_loops_that_end_unheard_are_reported_once_the_leader_has_heard_of_this_worker() -> None:
    clock = At()
    one, reported = leased(clock)
    one.heard(clock())
    first, second, third = (loop(float(start)) for start in range(3))
    one._take(first)
    clock.now_ns = 20_000_000_000
    one._take(second)
    one.heard(500_000_000)  # an answer that had waited here
    one._take(third)
    assert reported == [first]
    one.heard(clock())
    assert reported == [first, second, third]
    one.close()


def test_worker_that_was_given_up_begins_nothing_and_keeps_apart_what_it_had_in_flight() -> None:
    clock = At()
    one, reported = leased(clock)
    assert one.lease is not None
    one.heard(one.lease.beat())
    one.begin(Begin(1, 0, 0, "gathered", 0, 1, 1))
    trial = one.next_trial(None)
    clock.now_ns = 20_500_000_000
    one.lease.beat()
    one._take(loop(1.0))
    one._take(replace(loop(2.0), parent="another"))  # a loop inside another's call is none of its own
    assert one.give_up() == Returned(1, 20.0)
    assert (trial.open, one.leaving, one.pulse(), reported) == (False, True, None, [])
    one.heard(clock())
    assert (one.lease.holds, reported) == (False, [])
    one.close()


def test_worker_that_is_asked_again_gives_the_same_answer_without_making_its_clients_anew() -> None:
    one = worker()
    one._loop_thread().run = lambda work, timeout=None: Ready(model="m")  # type: ignore[method-assign]
    first = one.prepare(PREPARE)
    one._loop_thread().run = lambda work, timeout=None: Ready(model="other")  # type: ignore[method-assign]
    assert one.prepare(replace(PREPARE, worker=1, workers=2)) == first == Ready(model="m")
    again = one.prepare(replace(PREPARE, root="http://127.0.0.1:2"))
    assert again == Ready(model="other")
    one.close()


def test_worker_with_another_scenario_says_which_and_where() -> None:
    one = worker()
    answer = one.prepare(replace(PREPARE, worker=1, scenario="another0"))
    assert answer is not None
    assert answer.exit_code == 2
    assert answer.error == (
        f"worker 1 ({socket.gethostname()}, pid {os.getpid()}) has another scenario cities than the master: "
        "give both the same file"
    )
    one.close()


def test_loop_whose_record_cannot_be_handed_on_is_counted() -> None:
    def full(_: LoopRecord) -> None:
        raise TypeError("str is not valid UTF-8: surrogates not allowed")

    one = worker(report=full)
    one.begin(Begin(4, 2, 0, "gathered", 0, 1, 1))
    one.next_trial(None)
    recorder = Recorder([_TrialSink(one)])
    account = LoopAccount()
    token = current_ledger.set(account)
    recorder.emit(loop(0))
    current_ledger.reset(token)
    assert (recorder.dropped, account.spent.requests) == (1, 1)
    drained = one.end(0.0)
    assert (drained.loops, drained.unwritten) == (1, 1)
    one.close()


def test_code_that_holds_the_event_loop_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profiler.load.worker.CUT_SECONDS", 0.0)
    monkeypatch.setattr("profiler.load.worker.TURN_SECONDS", 0.0)
    one = worker()
    one.begin(Begin(4, 2, 0, "gathered", 0, 1, 1))
    trial = one.next_trial(None)
    trial.tasks[Held()] = TrialAgent("a", 0, lambda: False)
    one._thread_id = threading.get_ident()
    monkeypatch.setattr(Thread, "post", lambda self, function: None)  # it never comes to that
    held = one.end(0.0).held
    assert held is not None
    assert "the event loop does not go on" in held
    assert "worker.py" in held  # what this very thread does now
    one.close()


class Held:
    """An agent's task that does not end."""

    def wait(self, timeout: float | None = None) -> object:
        raise TimeoutError

    def cancel(self) -> None:
        pass
