"""When a target counts as gone."""

from __future__ import annotations

from profiler.load.target import PATIENCE_SECONDS, ConnectionWatch


def test_nobody_connects_while_loops_succeed_or_nothing_ends() -> None:
    watch = ConnectionWatch()
    assert [watch.is_due(loops, failed) for loops, failed in [(0, 0), (3, 0), (5, 1), (5, 1)]] == [False] * 4


def test_a_target_is_gone_when_nobody_could_connect_for_so_long() -> None:
    watch = ConnectionWatch()
    watch.is_due(4, 0)
    assert watch.is_due(5, 1)
    assert not watch.is_gone(10.0, False)
    assert watch.is_due(5, 1)  # nothing ends: it is asked again
    assert not watch.is_gone(10.0 + PATIENCE_SECONDS - 0.1, False)
    assert watch.is_gone(10.0 + PATIENCE_SECONDS, False)


def test_the_next_trial_does_not_make_it_forget() -> None:
    watch = ConnectionWatch()
    assert watch.is_due(9, 9)
    watch.is_gone(10.0, False)
    assert watch.is_due(0, 0)
    assert watch.is_gone(10.0 + PATIENCE_SECONDS, False)


def test_a_connection_or_a_loop_that_succeeds_begins_anew() -> None:
    watch = ConnectionWatch()
    assert watch.is_due(2, 2)
    watch.is_gone(10.0, False)
    watch.is_gone(12.0, True)
    assert not watch.is_due(2, 2)
    assert watch.is_due(3, 3)  # it fails in other ways
    assert not watch.is_gone(10.0 + PATIENCE_SECONDS, False)
    assert not watch.is_due(5, 4)
    assert watch.is_due(6, 5)
    assert not watch.is_gone(10.0 + 2 * PATIENCE_SECONDS, False)
