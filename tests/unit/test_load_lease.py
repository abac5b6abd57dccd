"""A worker begins loops only while its leader counts on it."""

from __future__ import annotations

from profiler.load.lease import BEAT_SECONDS, LEASE_SECONDS, Lease

SECOND = 1_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now_ns = 100 * SECOND

    def __call__(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND)


def test_nothing_begins_before_the_first_answer() -> None:
    assert not Lease(Clock()).holds


def test_an_answer_holds_from_when_the_beat_was_sent() -> None:
    clock = Clock()
    lease = Lease(clock)
    sent = lease.beat()
    clock.sleep(1.0)  # so long it was on its way
    assert lease.renew(sent)
    clock.sleep(LEASE_SECONDS - 1.1)
    assert lease.holds
    clock.sleep(0.1)
    assert not lease.holds


def test_an_answer_that_waited_here_while_the_process_was_stopped_lets_nothing_begin() -> None:
    clock = Clock()
    lease = Lease(clock)
    sent = lease.beat()
    clock.sleep(20.0)
    assert not lease.renew(sent)
    assert not lease.holds
    assert lease.renew(lease.beat())
    assert lease.stood_still_seconds == 20.0 - BEAT_SECONDS


def test_answers_that_overtake_each_other_do_not_shorten_it() -> None:
    clock = Clock()
    lease = Lease(clock)
    first = lease.beat()
    clock.sleep(BEAT_SECONDS)
    assert lease.renew(lease.beat())
    assert lease.renew(first)
    clock.sleep(LEASE_SECONDS - 0.1)
    assert lease.holds
    assert lease.stood_still_seconds == 0.0  # beats that come in time are no stop


def test_nothing_begins_any_more_once_it_is_revoked() -> None:
    lease = Lease(Clock())
    lease.revoke()
    assert not lease.renew(lease.beat())
