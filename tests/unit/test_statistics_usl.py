"""The scalability law: known peaks are found, and no peak is claimed where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from profiler.statistics.usl import fit

LOADS = [1, 4, 8, 16, 32, 64]


def throughput(load: float, rate: float, contention: float, coherency: float) -> float:
    return rate * load / (1 + contention * (load - 1) + coherency * load * (load - 1))


def blocks(
    rate: float, contention: float, coherency: float, noise: float, count: int = 4
) -> list[list[float]]:
    rng = np.random.default_rng(1)
    return [
        [throughput(n, rate, contention, coherency) * math.exp(rng.normal(0, noise)) for _ in range(count)]
        for n in LOADS
    ]


def test_a_known_law_is_recovered() -> None:
    found = fit(LOADS, blocks(2.0, 0.05, 0.001, noise=0.0))
    assert found is not None
    assert found.rate == pytest.approx(2.0, rel=1e-3)
    assert found.contention == pytest.approx(0.05, rel=0.02)
    assert found.coherency.value == pytest.approx(0.001, rel=0.02)
    assert found.peak is not None
    assert found.peak.value == pytest.approx(math.sqrt(0.95 / 0.001), rel=0.02)
    assert found.sentence.startswith("throughput peaks at about 31 [31, 31] agents")
    assert found.throughput(16) == pytest.approx(throughput(16, 2.0, 0.05, 0.001), rel=1e-3)


def test_the_interval_holds_the_true_peak_under_noise() -> None:
    found = fit(LOADS, blocks(2.0, 0.05, 0.001, noise=0.03))
    assert found is not None
    assert found.peak is not None
    assert found.peak.low is not None
    assert found.peak.high is not None
    assert found.peak.low < math.sqrt(950) < found.peak.high
    assert found.peak.high < 1.5 * found.peak.low


def test_one_block_a_load_uses_residuals() -> None:
    found = fit(LOADS, blocks(2.0, 0.05, 0.001, noise=0.02, count=1))
    assert found is not None
    assert found.coherency.low is not None
    assert found.coherency.high is not None
    assert found.coherency.low < found.coherency.high


@pytest.mark.parametrize("contention", [0.0, 0.2])
def test_no_peak_is_seen_where_there_is_none(contention: float) -> None:
    found = fit(LOADS, blocks(2.0, contention, 0.0, noise=0.03))
    assert found is not None
    assert found.peak is None
    assert found.sentence == "no peak seen up to 64 agents"


def test_too_few_loads_fit_nothing() -> None:
    assert fit([1, 2, 4], [[1.0], [2.0], [4.0]]) is None
    assert fit(LOADS, [[1.0], [1.0], [1.0], [], [], []]) is None
    assert fit(LOADS, [[1.0], [0.0], [1.0], [1.0], [1.0], [1.0]]) is None
