"""The adaptive limit on the emulator: the capacity falls to 40 % and comes back."""

from __future__ import annotations

import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor

import pytest

from benchmarks.adaptive import Step, run

pytestmark = pytest.mark.measures

STEP = Step(measure=40, scale=0.1)


def test_it_follows_the_capacity_and_plain_aimd_does_not():
    """Goodput from 40 mean tool durations after each change on, against an oracle that is told it.

    `benchmarks/adaptive.py` measures longer, one at a time, and finds 99 to 101 %; here a window holds
    some 40 to 100 loops, whose number varies by a tenth.
    """
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        runs = [pool.submit(run, name, 0, 0, STEP) for name in ("oracle", "adaptive", "aimd")]
        (oracle, _, _), (ours, limits, refused), (plain, _, refused_plain) = [one.result() for one in runs]
    assert min(oracle) > 1.8
    assert all(good >= 0.8 * best for good, best in zip(ours, oracle, strict=True))
    assert sum(plain) < 0.7 * sum(ours)
    assert refused < refused_plain / 5
    low = [limit for at, limit in limits if 120 <= at < 160]  # the second half of the low phase
    assert 6 <= statistics.median(low) <= 9
