"""The scalability law: known peaks are found, and no peak is claimed where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from profiler.statistics.summary import Scalability, fit


@pytest.mark.parametrize(("coherency", "seen"), [(4e-6, False), (1e-4, True)])
def test_peak_far_beyond_the_largest_load_is_not_claimed(coherency, seen):
    """The law without noise: κ is known exactly, and N* = 500 or 100 where 200 was the most."""
    loads = [10, 25, 50, 100, 200]
    rates = [[100 * n / (1 + coherency * n * (n - 1))] * 3 for n in loads]
    law = fit(loads, rates)
    assert law is not None
    assert law.coherency.value == pytest.approx(coherency, rel=0.02)
    assert (law.peak is not None) == seen
    assert law.sentence.startswith("goodput peaks at about 100" if seen else "no peak seen up to 200")


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


def test_known_law_is_recovered() -> None:
    found = fit(LOADS, blocks(2.0, 0.05, 0.001, noise=0.0))
    assert found is not None
    assert found.rate == pytest.approx(2.0, rel=1e-3)
    assert found.contention == pytest.approx(0.05, rel=0.02)
    assert found.coherency.value == pytest.approx(0.001, rel=0.02)
    assert found.peak is not None
    assert found.peak.value == pytest.approx(math.sqrt(0.95 / 0.001), rel=0.02)
    assert found.sentence.startswith("goodput peaks at about 31 [31, 31] agents")
    assert found.throughput(16) == pytest.approx(throughput(16, 2.0, 0.05, 0.001), rel=1e-3)


def test_interval_holds_the_true_peak_under_noise() -> None:
    found = fit(LOADS, blocks(2.0, 0.05, 0.001, noise=0.03))
    assert found is not None
    assert found.peak is not None
    assert found.peak.low is not None
    assert found.peak.high is not None
    assert found.peak.low < math.sqrt(950) < found.peak.high
    assert found.peak.high < 1.5 * found.peak.low


def test_fit_of_one_block_a_load_uses_residuals() -> None:
    found = fit(LOADS, blocks(2.0, 0.05, 0.001, noise=0.02, count=1))
    assert found is not None
    assert found.coherency.low is not None
    assert found.coherency.high is not None
    assert found.coherency.low < found.coherency.high


@pytest.mark.parametrize("contention", [0.0, 0.2])
def test_peak_is_not_seen_where_there_is_none(contention: float) -> None:
    found = fit(LOADS, blocks(2.0, contention, 0.0, noise=0.03))
    assert found is not None
    assert found.peak is None
    assert found.sentence == "no peak seen up to 64 agents"


def test_fit_of_too_few_loads_is_none() -> None:
    assert fit([1, 2, 4], [[1.0], [2.0], [4.0]]) is None
    assert fit(LOADS, [[1.0], [1.0], [1.0], [], [], []]) is None
    assert fit(LOADS, [[1.0], [0.0], [1.0], [1.0], [1.0], [1.0]]) is None


@pytest.mark.usefixtures("few_repeats")
def test_throughput_that_falls_from_the_first_load_on_has_no_peak() -> None:
    found = fit(LOADS, [[2.0 / (1 + 0.01 * (n - 1))] * 3 for n in LOADS])
    assert found is not None
    assert (found.peak, found.sentence) == (None, "goodput falls with every agent beyond 1")


@pytest.mark.usefixtures("few_repeats")
def test_peak_that_noise_could_have_made_is_not_seen() -> None:
    rng = np.random.default_rng(9)
    noisy = [
        [throughput(n, 2.0, 0.05, 0.0002) * math.exp(rng.normal(0, 0.2)) for _ in range(2)] for n in LOADS
    ]
    found = fit(LOADS, noisy)
    assert found is not None
    peak = math.sqrt((1 - found.contention) / (found.coherency.value or 1))
    assert LOADS[0] < peak < LOADS[-1]  # where the best fit has it
    assert found.peak is None


@pytest.mark.usefixtures("few_repeats")
def test_interval_of_a_peak_reaches_to_both_sides() -> None:
    found = fit(LOADS, blocks(2.0, 0.05, 0.001, noise=0.03))
    assert found is not None
    assert found.peak is not None
    assert found.peak.low < found.peak.value < found.peak.high


@pytest.mark.usefixtures("few_repeats")
@pytest.mark.parametrize(("coherency", "noise"), [(1e-5, 0.0), (0.0, 0.03)])
def test_law_without_a_peak_is_told_all_the_same(coherency: float, noise: float) -> None:
    found = fit(LOADS, blocks(0.02, 0.2, coherency, noise))
    assert found is not None
    assert found.peak is None
    assert found.rate == pytest.approx(0.02, rel=0.1)
    assert found.contention == pytest.approx(0.2, rel=0.2)
    assert found.throughput(16) == pytest.approx(throughput(16, 0.02, 0.2, coherency), rel=0.1)


OFF = [1.05, 0.95, 1.04, 0.97, 1.05, 0.96]
"""How far the throughputs of each load are off the law."""


def width(found: Scalability | None) -> float:
    assert found is not None
    assert found.coherency.low is not None
    assert found.coherency.high is not None
    return found.coherency.high - found.coherency.low


@pytest.mark.usefixtures("few_repeats")
def test_blocks_are_drawn_within_their_load_only_where_every_load_has_several() -> None:
    means = [off * throughput(n, 2.0, 0.05, 0.001) for n, off in zip(LOADS, OFF, strict=True)]
    agreeing = fit(LOADS, [[mean] * 2 for mean in means])
    assert width(agreeing) < 1e-6  # what the blocks say of each load is certain, law or no law
    assert width(fit(LOADS, [[means[0]], *([mean] * 3 for mean in means[1:])])) > 1e-4


@pytest.mark.usefixtures("few_repeats")
def test_fit_of_a_few_points_leaves_more_doubt_than_their_residuals_show() -> None:
    loads = [1, 8, 32, 64]
    means = [off * throughput(n, 2.0, 0.05, 0.001) for n, off in zip(loads, OFF, strict=False)]
    once = width(fit(loads, [[mean] for mean in means]))
    twice = width(fit(loads * 2, [[mean] for mean in means * 2]))
    assert once > 1.8 * twice  # of four points three parameters leave one degree of freedom


def test_interval_from_residuals_is_as_wide_as_the_noise_makes_it():
    """Twelve loads of one block each, 2 % of noise: N* is known within a few per cent."""
    rng = np.random.default_rng(3)
    loads = [1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 64, 96]
    rates = [
        [2 * n / (1 + 0.05 * (n - 1) + 0.001 * n * (n - 1)) * np.exp(rng.normal(0, 0.02))] for n in loads
    ]
    law = fit(loads, rates)
    assert law is not None
    assert law.peak is not None
    assert law.peak.low < 950**0.5 < law.peak.high
    assert 1.02 < law.peak.high / law.peak.low < 1.25
