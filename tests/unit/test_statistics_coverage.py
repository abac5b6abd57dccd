"""A small version of `benchmarks/coverage.py`: verdicts are right about as often as they claim."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import coverage_intervals, coverage_slow, coverage_warm_up

pytestmark = pytest.mark.slow


# Of 400 experiments at a true coverage of 95 %, 92 to 98 % holds 99 times in 100.
@pytest.mark.parametrize(
    ("sigmas", "correlation", "blocks", "loops"),
    [((0.6, 0.6), 0.5, 10, 40), ((0.4, 1.0), 0.8, 10, 100), ((0.4, 1.0), 0.8, 4, 200)],
)
def test_intervals_hold_the_truth(
    sigmas: tuple[float, float], correlation: float, blocks: int, loops: int
) -> None:
    shape = coverage_intervals.lognormal(correlation, sigmas, -0.05)
    found = coverage_intervals.paired_coverage(np.random.default_rng(7), shape, blocks, loops, 400)
    assert found["too few"].hits == 0
    for name in ("p50", "p95"):
        assert found[name].tries == 400
        assert 0.92 <= found[name].share <= 0.985
    assert found["p99"].tries == 0  # 500 loops a block cannot be made of these


def test_blocks_that_are_thin_get_no_verdict() -> None:
    shape = coverage_intervals.lognormal(0.5, (0.6, 0.6), -0.05)
    for blocks, loops in ((10, 5), (2, 400)):
        found = coverage_intervals.paired_coverage(np.random.default_rng(7), shape, blocks, loops, 50)
        assert found["too few"].share == 1.0
        assert found["p50"].tries == found["p95"].tries == 0


@pytest.mark.parametrize(
    ("sojourn", "ratio", "shared", "blocks", "loops"),
    [
        (100, 2.0, False, 10, 400),
        (300, 4.0, False, 3, 500),
        (300, 2.0, False, 10, 100),
        (1000, 4.0, False, 10, 400),
        (100, 3.0, True, 10, 100),
        (300, 3.0, True, 10, 400),
        (300, 0.0, False, 10, 400),
        (300, 0.0, False, 10, 100),
    ],
)
def test_intervals_hold_the_truth_of_a_server_that_changes_slowly_or_are_refused(
    sojourn: int, ratio: float, shared: bool, blocks: int, loops: int
) -> None:
    slow = coverage_slow.Slow(sojourn, ratio, shared)
    found = coverage_slow.slow_coverage(np.random.default_rng(7), slow, blocks, loops, 60)
    for kind in ("paired", "alone") if shared else ("paired", "two runs", "alone"):
        for name in ("p50", "p95"):
            held, refused = found[f"{kind} {name}"]
            assert refused.tries >= 30
            assert (held.hits + refused.hits) / refused.tries >= 0.85  # 0.95 are promised


def test_latencies_that_forget_soon_are_seldom_refused_and_hardly_widened() -> None:
    shape = coverage_intervals.queue(0.7)
    found = coverage_intervals.paired_coverage(np.random.default_rng(7), shape, 5, 200, 100)
    assert found["too few"].share <= 0.1
    wider = coverage_intervals.widening(np.random.default_rng(7), shape, 5, 200, 100)
    assert wider["paired"] <= 1.5
    assert wider["alone"] <= 1.5


@pytest.mark.parametrize("load", ["open", "closed"])
@pytest.mark.parametrize(("spread", "blocks"), [("σ 0.3", 1), ("σ 0.3", 3), ("two modes", 10), ("σ 1.0", 10)])
def test_stalls_are_measured_and_warm_ups_left_out(load: str, spread: str, blocks: int) -> None:
    def share(planted: str) -> float:
        found, _ = coverage_warm_up.left_out(np.random.default_rng(7), load, spread, blocks, 40, planted)
        hits: float = found.share
        return hits

    assert share("stall") == share("pauses") == 0.0
    assert share("warm-up") >= 0.9


@pytest.mark.parametrize("moving", ["drift", "jitter"])
def test_gate_does_not_cry_wolf_but_does_cry(moving: str) -> None:
    def alarms(change: float) -> float:
        rng = np.random.default_rng(7)
        share: float = coverage_intervals.false_alarms(
            rng, 0.5, 10, 100, 300, change, getattr(coverage_intervals, moving)
        ).share
        return share

    assert alarms(1.05) < 0.06
    assert alarms(2.0) > 0.8
