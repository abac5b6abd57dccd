"""Quantiles and intervals: definitions, and the cases where there is too little to say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.statistics.quantiles import (
    Estimate,
    block_interval,
    block_quantiles,
    coarsen,
    independent,
    memory,
    quantile,
    quantiles,
    spread,
)
from profiler.statistics.windows import WarmUp, mser5, of_blocks


def test_quantile_is_the_interpolated_order_statistic() -> None:
    samples = np.array([30.0, 10.0, 20.0, 40.0])
    assert quantile(samples, 0.5) == 25.0
    assert quantile(samples, 0.95) == pytest.approx(38.5)
    assert quantile(samples, 1.0) == 40.0
    assert quantile(np.empty(0), 0.5) is None


def test_block_interval_is_t_on_logarithms() -> None:
    blocks = [math.exp(x) for x in (-0.1, 0.0, 0.1)]
    found = block_interval(1.0, blocks)
    half = 4.302652729911275 * 0.1 / math.sqrt(3)  # t(0.975, 2 degrees of freedom)
    assert found.low == pytest.approx(math.exp(-half))
    assert found.high == pytest.approx(math.exp(half))
    assert block_interval(1.0, blocks[:2]) == Estimate(1.0)


def test_block_interval_holds_its_value_and_copes_with_zeros() -> None:
    assert block_interval(5.0, [1.0, 1.0, 1.0]) == Estimate(5.0, 1.0, 5.0)
    assert block_interval(0.0, [0.0, 0.0, 0.0]) == Estimate(0.0, 0.0, 0.0)
    some = block_interval(0.1, [0.0, 0.1, 0.2])
    assert some.low == 0.0
    assert some.high == pytest.approx(0.1 + 4.302652729911275 * 0.1 / math.sqrt(3))


def test_step_from_halves_to_wholes_widens_as_a_square() -> None:
    plain, widened = spread([1.0, 2.0, 3.0]), spread([1.0, 2.0, 3.0], [0.5, 1.5, 2.5])
    assert widened.half == pytest.approx(math.hypot(plain.half, 1.0))
    assert widened.mean == plain.mean == 2.0


def test_p_value_agrees_with_the_interval() -> None:
    low = spread([0.9, 1.1, 1.3, 1.0])
    assert low.p_value < 0.05
    assert low.mean - low.half > 0
    edge = spread([0.0, 1.0, 2.0])
    scaled = spread([1.0 - edge.half, 1.0, 1.0 + edge.half])
    assert (scaled.p_value < 0.05) == (scaled.half < scaled.mean)
    assert spread([0.0, 0.0]).p_value == 1.0
    assert spread([1.0, 1.0]).p_value == 0.0


def test_block_quantiles_use_rank_n_plus_one() -> None:
    whole, halves = block_quantiles([np.arange(1, 40, dtype=float)], 0.5)
    assert whole == [20.0]  # rank (39 + 1) / 2
    assert halves == [pytest.approx(math.sqrt(10.0 * 29.5))]


def test_blocks_that_are_thin_are_joined_with_their_neighbours() -> None:
    assert coarsen([100, 100, 100], 100) == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert coarsen([30] * 10, 100) is None
    assert coarsen([40] * 10, 100) == [slice(0, 3), slice(3, 7), slice(7, 10)]
    assert coarsen([1000, 1000], 100) is None
    assert coarsen([], 1) is None


@given(st.lists(st.integers(0, 50), max_size=12), st.integers(1, 60))
def test_joined_blocks_partition_and_are_thick(sizes: list[int], fewest: int) -> None:
    runs = coarsen(sizes, fewest)
    if runs is None:
        assert len(sizes) < 3 or sum(sizes) < 3 * fewest or min(sizes) < fewest
        return
    assert [index for run in runs for index in range(run.start, run.stop)] == list(range(len(sizes)))
    assert len(runs) >= 3
    assert all(sum(sizes[run]) >= fewest for run in runs)


def test_thick_blocks_give_intervals_and_thin_ones_none() -> None:
    rng = np.random.default_rng(1)
    thick = quantiles([rng.lognormal(0, 0.5, 100) for _ in range(5)])
    assert thick.p50.low is not None
    assert thick.p50.value is not None
    assert thick.p50.high is not None
    assert thick.p50.low < 1.0 < thick.p50.high
    assert thick.p95.low is not None
    assert thick.p99.low is None  # 500 samples a block for p99; 3 blocks cannot be made of 500
    assert quantiles([rng.lognormal(0, 0.5, 19) for _ in range(3)]).p50.low is None
    assert quantiles([]).p50 == Estimate(None)


def test_scaling_converts_value_and_interval() -> None:
    groups = [np.full(30, 2_000_000_000), np.full(30, 2_000_000_000), np.full(30, 2_000_000_000)]
    assert quantiles(groups, 1e-9).p50 == Estimate(2.0, pytest.approx(2.0), pytest.approx(2.0))


def test_warm_up_is_found_to_the_batch() -> None:
    series = np.concatenate([np.full(30, 9.0), 1.0 + np.tile([0.0, 0.1, 0.2, 0.1, 0.0], 40)])
    found = mser5(series)
    assert (found.skip, found.steady) == (30, True)


def test_trend_is_no_steady_state() -> None:
    found = mser5(np.linspace(1.0, 3.0, 200))
    assert (found.skip, found.steady) == (0, False)


def test_short_series_claims_nothing() -> None:
    found = mser5(np.concatenate([np.full(5, 9.0), np.ones(94)]))
    assert (found.skip, found.steady) == (0, None)
    assert of_blocks([]).steady is None


def test_slow_loop_in_one_block_is_no_warm_up() -> None:
    rng = np.random.default_rng(2)
    blocks = [np.exp(rng.normal(0, 0.3, 200)) * 1e9 for _ in range(8)]
    blocks[0][3] *= 5
    assert of_blocks(blocks).skip == 0
    for block in blocks:
        block[:20] *= 8
    assert 20 <= of_blocks(blocks).skip <= 50


def test_halves_widen_logarithms_too() -> None:
    found = block_interval(1.0, [1.0, 1.0, 1.0], [0.5, 0.5, 0.5])
    assert (found.low, found.high) == (pytest.approx(0.25), pytest.approx(4.0))


def test_rank_before_the_first_sample_is_the_first() -> None:
    whole, _ = block_quantiles([np.arange(1, 5, dtype=float)], 0.1)
    assert whole == [1.0]


def test_zeros_alone_are_zero_for_certain() -> None:
    assert quantiles([np.zeros(30)] * 3).p50 == Estimate(0.0, 0.0, 0.0)


# ── memory ─────────────────────────────────────────────────────────────────────────────────────


def in_states(lasting: int, blocks: int = 10, loops: int = 400, seed: int = 1) -> list[np.ndarray]:
    """Loops of a server that is three times as slow for `lasting` loops, then fast for as many (means)."""
    rng = np.random.default_rng(seed)
    lengths = rng.exponential(lasting, blocks * loops).astype(int) + 1
    slow = np.repeat(np.arange(lengths.size) % 2, lengths)[: blocks * loops]
    return list((np.exp(rng.normal(0, 0.3, slow.size)) * np.where(slow, 3.0, 1.0)).reshape(blocks, loops))


def test_memory_of_states_is_about_half_of_how_long_they_last() -> None:
    """Two states in turn are forgotten at the sum of both rates: exp(-2t / mean length)."""
    found = [memory(in_states(300, seed=seed)) for seed in range(5)]
    assert 100 < np.median(found) < 450  # the longest that is plausible, of 150


def test_loops_that_forget_within_a_block_have_no_memory_to_speak_of() -> None:
    rng = np.random.default_rng(1)
    independent_ones = [rng.lognormal(0, 1.0, 100) for _ in range(10)]
    assert memory(independent_ones) == 0.0
    drifting = [block * (1 + 0.05 * k) for k, block in enumerate(independent_ones)]
    assert memory(drifting) == 0.0
    levels = np.exp(rng.normal(0, 0.05, 10).cumsum())
    assert memory([block * level for block, level in zip(independent_ones, levels, strict=True)]) == 0.0


def test_what_every_block_goes_through_is_not_remembered() -> None:
    """Such as a queue that builds up from the start of each block."""
    rng = np.random.default_rng(1)
    course = np.exp(np.linspace(0, 2, 400))
    assert memory([course * rng.lognormal(0, 0.3, 400) for _ in range(10)]) == 0.0


def test_what_pairs_share_is_not_remembered_by_their_difference() -> None:
    rng = np.random.default_rng(2)
    one = in_states(1000)
    other = [block * rng.lognormal(0, 0.3, block.size) for block in one]
    assert memory(one) > 100
    assert memory(one, other) == 0.0
    assert memory(one, in_states(1000, seed=3)) > 100


def test_memory_within_blocks_leaves_aside_how_far_they_lie_apart() -> None:
    rng = np.random.default_rng(1)
    apart = [rng.lognormal(0, 0.1, 200) * (1.0 if k // 5 % 2 else 3.0) for k in range(20)]
    assert memory(apart) > 200
    assert memory(apart, within=True) == 0.0


def test_too_little_remembers_nothing() -> None:
    assert memory([]) == memory([np.empty(0)] * 3) == memory([np.ones(23)] * 10) == 0.0
    assert memory([np.zeros(100)] * 10) == memory([np.ones(100)] * 10) == 0.0
    waits = in_states(300)
    assert memory([np.where(block > 2, block, 0.0) for block in waits]) > 50  # zeros are no obstacle
    assert memory([(block * 1e9).astype(np.int64) for block in waits]) == memory(waits)


def test_blocks_are_joined_until_they_forget() -> None:
    assert independent([5, 5, 5], 0.0) == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert independent([100] * 9, 60.0) == [slice(0, 3), slice(3, 6), slice(6, 9)]  # four memories: 240
    assert independent([100] * 9, 80.0) is None


def test_states_longer_than_the_blocks_give_no_interval() -> None:
    assert quantiles(in_states(1000)).p50.low is None
    found = quantiles(in_states(100, loops=1000)).p50
    assert found.low is not None
    assert found.high is not None
    assert found.low < math.sqrt(3) < found.high  # half of the loops are in either state


# ── warm-up ────────────────────────────────────────────────────────────────────────────────────


def step(batches: int, at: int, outlier: int | None = None) -> np.ndarray:
    """Batches of 1 ± 0.001 after `at` batches of 3; one of 2 where told."""
    means = np.where(np.arange(batches) < at, 3.0, 1.0 + 0.001 * (np.arange(batches) % 2))
    if outlier is not None:
        means[outlier] = 2.0
    return np.repeat(means, 5)


@pytest.mark.parametrize(
    ("batches", "at", "expected"),
    [
        (20, 0, (0, True)),
        (20, 8, (40, True)),
        (20, 9, (0, False)),  # at the end of the search, but for one batch
        (20, 10, (0, False)),
        (200, 95, (475, True)),
        (200, 96, (0, False)),  # of 200 batches, four
    ],
)
def test_warm_up_is_found_in_the_first_half_but_for_its_end(
    batches: int, at: int, expected: tuple[int, bool]
) -> None:
    found = mser5(step(batches, at))
    assert (found.skip, found.steady) == expected


def test_search_ends_with_the_first_half() -> None:
    assert mser5(step(20, 3, outlier=9)).steady is False  # all but the second half would be left out
    assert mser5(step(20, 3, outlier=10)).skip == 15  # it cannot be: ten are not enough to go by


@settings(max_examples=50)
@given(st.lists(st.floats(0.5, 50.0), min_size=100, max_size=160))
def test_warm_up_is_the_one_that_the_formula_names(values: list[float]) -> None:
    z = [sum(values[k : k + 5]) / 5 for k in range(0, len(values) // 5 * 5, 5)]
    n = len(z)
    errors = [float(np.var(z[d:])) / (n - d) for d in range(n // 2 + 1)]
    found = mser5(np.array(values))
    if found.steady:
        assert errors[found.skip // 5] == pytest.approx(min(errors))
    else:
        assert min(errors[-2:]) == pytest.approx(min(errors))


def test_blocks_shorter_than_half_the_median_are_not_asked_for_a_warm_up() -> None:
    long, empty = step(40, 10), np.empty(0)
    assert of_blocks([long, long, long[:99]]) == WarmUp(50, True)
    assert of_blocks([long, long, long[:100]]) == WarmUp(0, False)  # half of it: a hundred are looked at
    assert of_blocks([long, empty, empty, empty]) == WarmUp(50, True)
    assert of_blocks([empty]) == WarmUp(0, None)
    assert of_blocks([np.zeros(100)]) == WarmUp(0, True)


def noisy(count: int = 400, seed: int = 3) -> np.ndarray:
    """Lognormal loops around 0.2 s, in nanoseconds."""
    return 2e8 * np.exp(np.random.default_rng(seed).normal(0, 0.3, count))


def with_stall(block: np.ndarray, first: int, loops: int = 40, each: float = 0.05e9) -> np.ndarray:
    """Loops due every `each` nanoseconds, of which those from `first` on wait for the end of a stall."""
    held = block.copy()
    held[first : first + loops] += each * np.arange(loops, 0, -1)
    return held


@pytest.mark.parametrize("blocks", [1, 2, 3, 10])
@pytest.mark.parametrize("first", [6, 12, 40, 80, 120, 160])
def test_stall_after_normal_loops_is_no_warm_up(blocks: int, first: int) -> None:
    calm = [noisy(seed=k) for k in range(blocks)]
    one = [with_stall(block, first) if k == 0 else block for k, block in enumerate(calm)]
    assert of_blocks(one) == WarmUp(0, True)
    every = [with_stall(block, first) for block in calm]  # such as a collection of garbage, each time
    assert of_blocks(every).skip == 0


@pytest.mark.parametrize("blocks", [2, 3, 10])
def test_stall_at_the_start_of_one_of_several_blocks_is_no_warm_up(blocks: int) -> None:
    series = [noisy(seed=k) for k in range(blocks)]
    series[-1] = with_stall(series[-1], 0)
    assert of_blocks(series).skip == 0


def test_warm_up_shows_in_more_than_half_of_the_blocks() -> None:
    def slow(count: int) -> int:
        series = [noisy(seed=k) for k in range(4)]
        for block in series[:count]:
            block[:40] *= 3
        return of_blocks(series).skip

    assert [slow(count) for count in range(3)] == [0, 0, 0]
    assert 40 <= slow(3) <= 50


def test_warm_up_ends_where_latencies_are_first_back_whatever_comes_later() -> None:
    block = noisy()
    block[:40] *= 3
    assert of_blocks([block]).skip == 40
    assert of_blocks([with_stall(block, 120)]).skip == 40  # MSER-5 alone: 160


def test_start_that_is_faster_than_the_rest_is_left_out_too() -> None:
    series = [noisy(seed=k) for k in range(3)]
    for block in series:
        block[:40] /= 3
    assert of_blocks(series).skip == 40


def test_hump_that_loops_from_before_the_window_do_not_show_began_later() -> None:
    stalled = with_stall(noisy(), 0)
    assert of_blocks([stalled]).skip > 0
    assert of_blocks([stalled], before=[noisy(8)]).skip == 0
    assert of_blocks([stalled], before=[noisy(8) * 10]).skip > 0
    assert of_blocks([stalled], before=[noisy(4)]).skip > 0  # four loops prove nothing


def test_stall_in_the_middle_is_not_called_a_missing_steady_state() -> None:
    stalled = with_stall(noisy(), 160)
    assert mser5(np.log(stalled)).steady is False
    assert of_blocks([stalled]) == WarmUp(0, True)
    assert of_blocks([noisy() * np.linspace(1, 3, 400)]).steady is False


def test_an_only_block_is_not_cut_where_single_loops_vary_too_much_to_tell_a_stall_from_a_warm_up() -> None:
    def wide(seed: int) -> np.ndarray:
        block = 2e8 * np.exp(np.random.default_rng(seed).normal(0, 1.0, 400))
        block[:40] *= 4
        return block

    found = of_blocks([wide(1)])
    assert found.skip == 0
    assert 30 <= found.unclear <= 60
    several = of_blocks([wide(seed) for seed in range(3)])
    assert 30 <= several.skip <= 60
    assert several.unclear == 0


def test_one_normal_loop_in_front_of_the_hump_of_an_only_block_makes_it_unclear_and_two_a_stall() -> None:
    def begun_normally(loops: int) -> np.ndarray:
        block = noisy()
        block[:40] *= 3
        block[3 : 3 + loops] = 2e8
        return block

    assert of_blocks([begun_normally(0)]) == WarmUp(40, True)
    assert of_blocks([begun_normally(1)]) == WarmUp(0, True, unclear=40)
    assert of_blocks([begun_normally(2)]) == WarmUp(0, True)


def test_stall_in_one_block_and_luck_in_another_are_no_warm_up() -> None:
    series = [noisy(seed=k) for k in range(3)]
    series[0] = with_stall(series[0], 0)
    series[1][:5] *= 1.2
    assert of_blocks(series).skip == 0
