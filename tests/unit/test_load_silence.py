"""When a target counts as gone."""

from __future__ import annotations

from profiler.load.health import PATIENCE_SECONDS, Silence


def test_nobody_connects_while_loops_succeed_or_nothing_ends() -> None:
    silence = Silence()
    assert [silence.doubts(loops, failed) for loops, failed in [(0, 0), (3, 0), (5, 1), (5, 1)]] == [
        False
    ] * 4


def test_a_target_is_gone_when_nobody_could_connect_for_so_long() -> None:
    silence = Silence()
    silence.doubts(4, 0)
    assert silence.doubts(5, 1)
    assert not silence.tried(10.0, False)
    assert silence.doubts(5, 1)  # nothing ends: it is asked again
    assert not silence.tried(10.0 + PATIENCE_SECONDS - 0.1, False)
    assert silence.tried(10.0 + PATIENCE_SECONDS, False)


def test_the_next_trial_does_not_make_it_forget() -> None:
    silence = Silence()
    assert silence.doubts(9, 9)
    silence.tried(10.0, False)
    assert silence.doubts(0, 0)
    assert silence.tried(10.0 + PATIENCE_SECONDS, False)


def test_a_connection_or_a_loop_that_succeeds_begins_anew() -> None:
    silence = Silence()
    assert silence.doubts(2, 2)
    silence.tried(10.0, False)
    silence.tried(12.0, True)
    assert not silence.doubts(2, 2)
    assert silence.doubts(3, 3)  # it fails in other ways
    assert not silence.tried(10.0 + PATIENCE_SECONDS, False)
    assert not silence.doubts(5, 4)
    assert silence.doubts(6, 5)
    assert not silence.tried(10.0 + 2 * PATIENCE_SECONDS, False)
