"""Which failure of a test of times counts, by invented figures of the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.measuring import Disturbance, Look, Measurement, NotMeasured, Watch, disturbance, judge

CALM = Disturbance()
BUSY = Disturbance(others=1.5, delayed=0.2)
"""Others use one and a half cores, and a thread of ours waits for a fifth of the time."""


def watches(*seen: Disturbance) -> Callable[[], Watch]:
    """One watch after the other, each of a machine that was like that."""
    left: Iterator[Disturbance] = iter(seen)

    class Invented(Watch):
        def __enter__(self) -> Watch:
            self.seen = next(left)
            return self

        def __exit__(self, *_: object) -> None:
            pass

    return Invented


class Test:
    """Fails so many times, then passes."""

    __test__ = False

    def __init__(self, failures: int, error: BaseException | None = None) -> None:
        self.failures, self.tries = failures, 0
        self.error = error or AssertionError("too slow")

    def __call__(self) -> None:
        self.tries += 1
        if self.tries <= self.failures:
            raise self.error


def test_judge_takes_a_try_that_passes_however_busy_the_machine():
    judge(test := Test(0), watch=watches(BUSY))
    assert test.tries == 1


@pytest.mark.parametrize(
    "seen",
    [
        CALM,
        Disturbance(others=1.9, delayed=0.05),  # beside others, and hardly kept waiting
        Disturbance(others=0.19, delayed=0.9),  # kept waiting by ourselves
    ],
)
def test_judge_fails_where_a_failure_that_nothing_disturbed_comes_again(seen):
    test = Test(2)
    with pytest.raises(AssertionError, match="too slow"):
        judge(test, watch=watches(seen, seen))
    assert test.tries == 2


def test_judge_lets_one_failure_pass_that_does_not_come_again():
    judge(test := Test(1), watch=watches(CALM, CALM))
    assert test.tries == 2


def test_judge_repeats_what_was_disturbed():
    judge(test := Test(2), watch=watches(BUSY, BUSY, CALM))
    assert test.tries == 3


@pytest.mark.parametrize("seen", [(BUSY, CALM, CALM), (BUSY, BUSY, CALM), (CALM, BUSY, BUSY)])
def test_judge_fails_where_one_of_three_failures_was_not_disturbed(seen):
    test = Test(3)
    with pytest.raises(AssertionError, match="too slow"):
        judge(test, watch=watches(*seen))
    assert test.tries == 3


@pytest.mark.parametrize("error", [None, TimeoutError("no answer"), pytest.fail.Exception("DID NOT RAISE")])
def test_judge_says_after_three_disturbed_tries_that_it_was_not_measured(error):
    test = Test(3, error)
    with pytest.raises(NotMeasured) as raised:
        judge(test, watch=watches(BUSY, BUSY, BUSY))
    assert test.tries == 3
    one = "others used 1.5 cores, a thread of ours waited 20% of the time"
    assert str(raised.value) == f"not measured, the machine was busy 3 times: {one}; {one}; {one}"


def test_judge_fails_where_the_test_holds_beside_so_much():
    test = Test(2)
    with pytest.raises(AssertionError, match="too slow"):
        judge(test, tolerates=0.2, watch=watches(BUSY, BUSY))
    assert test.tries == 2


def shared(*seen: Disturbance) -> tuple[Measurement[int], list[int]]:
    taken: list[int] = []

    def take() -> int:
        taken.append(len(taken) + 1)
        return taken[-1]

    return Measurement(take, watches(*seen)), taken


def holds_from(measurement: Measurement[int], least: int) -> None:
    assert measurement() >= least


def test_measurement_is_taken_once_for_all_that_pass():
    measurement, taken = shared(BUSY)
    for _ in range(3):
        judge(lambda: holds_from(measurement, 1), shared=[measurement], watch=watches(CALM))
    assert taken == [1]


def test_measurement_is_taken_again_where_it_was_disturbed_three_times_at_most():
    measurement, taken = shared(BUSY, BUSY, BUSY)
    # How the machine is while the figures are compared does not matter.
    judge(lambda: holds_from(measurement, 2), shared=[measurement], watch=watches(CALM, CALM))
    assert taken == [1, 2]
    for _ in range(2):
        with pytest.raises(NotMeasured):
            judge(lambda: holds_from(measurement, 9), shared=[measurement], watch=watches(CALM, CALM))
    assert taken == [1, 2, 3]


def test_measurement_that_was_not_disturbed_is_taken_again_for_what_fails():
    measurement, taken = shared(CALM, CALM, CALM)
    with pytest.raises(AssertionError):
        judge(lambda: holds_from(measurement, 9), shared=[measurement], watch=watches(BUSY, BUSY))
    assert taken == [1, 2]
    judge(lambda: holds_from(measurement, 3), shared=[measurement], watch=watches(BUSY, BUSY))
    with pytest.raises(AssertionError):
        judge(lambda: holds_from(measurement, 9), shared=[measurement], watch=watches(BUSY))
    assert taken == [1, 2, 3]


def test_disturbance_is_what_others_used_and_what_our_most_hindered_thread_waited():
    looks = [
        Look(at=10.0, busy=100.0, stolen=5.0, tasks={(1, 1): (3.0, 1.0)}),
        Look(at=11.0, busy=101.5, stolen=5.0, tasks={(1, 1): (3.5, 1.1), (2, 2): (0.25, 0.5)}),
        Look(at=12.0, busy=103.0, stolen=5.0, tasks={(1, 1): (4.0, 1.2)}),  # 2 has ended
    ]
    assert disturbance(looks) == Disturbance(others=pytest.approx((3.0 - 1.0 - 0.25) / 2), delayed=0.25)


def test_disturbance_counts_what_the_host_took(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    looks = [Look(0.0, 0.0, 0.0, {(1, 1): (0.0, 0.0)}), Look(2.0, 1.0, 0.8, {(1, 1): (1.0, 0.1)})]
    assert disturbance(looks) == Disturbance(others=0.4, delayed=pytest.approx((0.1 + 0.8 / 2) / 2))
