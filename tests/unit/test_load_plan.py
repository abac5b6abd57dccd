"""The plan of a load test, its arrivals and pauses, and when a run is hopeless: pure."""

from __future__ import annotations

from itertools import islice

import pytest

from profiler.errors import UsageError
from profiler.load.plan import (
    NUMBERS_PER_PART,
    PlannedTrial,
    block_order,
    blocks_for,
    ramp_seconds,
    schedule,
    tape_numbers,
    timing,
    turns,
)
from profiler.statistics.objectives import AbortRule
from profiler.strategies import effective_limits, parse_strategy

STRATEGIES = ("sequential", "gathered", "semaphore:4")


def test_block_runs_every_strategy_once() -> None:
    trials = list(schedule(STRATEGIES, seed=7, blocks=4))
    assert [trial.index for trial in trials] == list(range(12))
    assert [trial.block for trial in trials] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    for block in range(4):
        assert sorted(t.strategy for t in trials if t.block == block) == sorted(STRATEGIES)


def test_order_is_random_over_blocks_and_repeats_with_the_seed() -> None:
    first = {block: block_order(STRATEGIES, 1, block) for block in range(60)}
    assert first == {block: block_order(STRATEGIES, 1, block) for block in range(60)}
    assert first != {block: block_order(STRATEGIES, 2, block) for block in range(60)}
    leads = [order[0] for order in first.values()]
    assert min(leads.count(strategy) for strategy in STRATEGIES) >= 10  # 20 expected of each


def test_schedule_without_blocks_never_ends() -> None:
    assert list(islice(schedule(("gathered",), 0), 3)) == [
        PlannedTrial(0, 0, "gathered"),
        PlannedTrial(1, 1, "gathered"),
        PlannedTrial(2, 2, "gathered"),
    ]


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_workers_share_the_tape_without_gap_or_overlap(workers: int) -> None:
    shares = [list(islice(tape_numbers(2, worker, workers), 10)) for worker in range(workers)]
    together = sorted(number for share in shares for number in share)
    start = 2 * NUMBERS_PER_PART
    assert together == list(range(start, start + 10 * workers))
    assert all(
        number % workers == (start + worker) % workers for worker, s in enumerate(shares) for number in s
    )


@pytest.mark.parametrize(
    ("seconds", "blocks"), [(0.5, 1), (2, 2), (3, 3), (10, 3), (19, 3), (20, 4), (50, 10), (3600, 10)]
)
def test_blocks_are_few_when_time_is_short(seconds: float, blocks: int) -> None:
    assert blocks_for(seconds) == blocks


def test_total_is_shared_by_all_trials_and_their_drains() -> None:
    plan = timing(turns=3, total=90, window=None, blocks=3, default_window=10)
    assert plan.blocks == 3
    assert plan.block_window(3, block=0, elapsed=0, drain=2) == 8  # 9 × (8 + 2) = 90
    assert plan.block_window(3, block=2, elapsed=66, drain=2) == 6
    # Draining may not eat more than half of a share ...
    assert plan.block_window(3, block=0, elapsed=0, drain=9) == 5
    # ... and what was lost to it shortens what is left.
    assert plan.fit(5, trials_left=4, elapsed=82) == 2
    assert plan.fit(5, trials_left=1, elapsed=91) == 0


def test_timing_without_a_total_has_the_window_that_was_asked_for() -> None:
    plan = timing(turns=3, total=None, window=4, blocks=2, default_window=10)
    assert (plan.block_window(3, 0, elapsed=500, drain=9), plan.blocks) == (4, 2)
    assert plan.fit(4, trials_left=1, elapsed=10_000) == 4
    unbounded = timing(turns=3, total=None, window=None, blocks=None, default_window=10)
    assert (unbounded.window, unbounded.blocks) == (10, None)


def test_window_within_a_total_repeats_until_time_is_out() -> None:
    plan = timing(turns=2, total=60, window=5, blocks=None, default_window=10)
    assert plan.blocks is None
    assert plan.block_window(2, block=3, elapsed=40, drain=1) == 5
    assert plan.fit(5, trials_left=None, elapsed=57) == 3


def test_climb_runs_the_first_strategy_on_every_level_and_the_others_on_the_highest() -> None:
    trials = list(schedule(STRATEGIES, seed=7, blocks=2, levels=(40, 10, 20), climb=True))
    assert [trial.index for trial in trials] == list(range(10))
    assert [trial.users for trial in trials[:5]] == [10, 20, 40, 40, 40]
    assert [trial.strategy for trial in trials[:2]] == ["sequential"] * 2
    assert sorted(trial.strategy for trial in trials[2:5]) == sorted(STRATEGIES)
    assert turns(3, 3, climb=True) == 5
    assert (turns(3, 0, climb=True), turns(3, 3), turns(3, 0)) == (3, 9, 3)


def test_ladder_runs_every_strategy_on_every_level_of_a_block_rising() -> None:
    trials = list(schedule(STRATEGIES, seed=7, blocks=2, levels=(40, 10)))
    assert [trial.users for trial in trials] == [10] * 3 + [40] * 3 + [10] * 3 + [40] * 3
    assert [trial.block for trial in trials] == [0] * 6 + [1] * 6
    for place in range(0, 12, 3):
        assert sorted(t.strategy for t in trials[place : place + 3]) == sorted(STRATEGIES)


def test_ramp_seconds() -> None:
    assert ramp_seconds(20, 20) == 0
    assert ramp_seconds(20, 1) == 19
    assert ramp_seconds(1, 100) == 0


@pytest.mark.parametrize(
    ("spec", "workers", "said"),
    [
        ("semaphore:4", 1, "semaphore:4: up to 4 calls at once"),
        ("semaphore:4", 2, "semaphore:4: 4 per process × 2 processes = up to 8 calls at once"),
        ("semaphore:4@agent", 2, "semaphore:4@agent: 4 per agent × 20 agents = up to 80 calls at once"),
        (
            "semaphore:4@tool",
            2,
            "semaphore:4@tool: 4 per process × 2 processes = up to 8 calls of each tool at once",
        ),
        ("sequential", 2, "sequential: 1 per agent × 20 agents = up to 20 calls at once"),
        ("eager+semaphore:4", 1, "eager+semaphore:4: up to 4 calls at once"),
        ("gathered", 1, "gathered: no limit on calls running at once"),
        ("eager", 1, "eager: no limit on calls running at once"),
        ("adaptive", 1, "adaptive: adapts, from 8 calls at once"),
        ("rate:20/s", 2, "rate:20/s: 20 per process × 2 processes = up to 40 calls/s"),
    ],
)
def test_effective_limits_are_totals_over_the_workers(spec: str, workers: int, said: str) -> None:
    assert effective_limits([parse_strategy(spec)], agents=20, processes=workers) == [said]


def test_shared_limits_are_those_of_one_process_in_all() -> None:
    assert effective_limits([parse_strategy("semaphore:4+rate:20/s")], agents=20, processes=2, share=2) == [
        "semaphore:4: 2 per process × 2 processes = up to 4 calls at once",
        "rate:20/s: 10 per process × 2 processes = up to 20 calls/s",
    ]


def test_hopeless_trial() -> None:
    rule = AbortRule.parse("errors > 20%")
    assert rule.broken(19, 19) is None  # too few to tell
    assert rule.broken(20, 4) is None
    assert rule.broken(20, 5) == "5 of 20 loops failed, more than 20 %"


@pytest.mark.parametrize("spec", ["errors<20%", "errors>20", "errors>100%", "p95>2s", ""])
def test_abort_rule_that_is_none_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="--abort-on"):
        AbortRule.parse(spec)
