"""Which loops count: at the edges of windows, in blocks of several trials, with what left no record."""

from __future__ import annotations

import dataclasses

import pytest

from profiler.statistics.table import tabulate
from profiler.statistics.windows import Block, measure
from tests.unit.statistics_data import loop, run, trial


def block_of(trials: list, records: list) -> Block:
    (group,) = measure(run(trials), tabulate(records))
    (block,) = group.blocks
    return block


def test_window_holds_its_beginning_and_not_its_end() -> None:
    starts_inside = [loop(1000, model=500), loop(1999, model=500)]
    ends_inside = [loop(900, model=100), loop(1899, model=100)]
    outside = [loop(999, model=1500), loop(2000, model=100), loop(800, model=199)]
    block = block_of([trial(0, "gathered", 1000, 2000)], [*starts_inside, *ends_inside, *outside])
    assert sorted(block.due.tolist()) == [0, 1, 3]
    assert sorted(block.ended.tolist()) == [0, 2, 3]
    assert block.seconds == 1.0
    ends_at_the_end = [loop(1900, model=100)]
    assert block_of([trial(0, "gathered", 1000, 2000)], ends_at_the_end).ended.size == 0


def test_loops_are_in_the_order_in_which_they_were_due() -> None:
    records = [loop(900, intended=300), loop(500, intended=400), loop(950, intended=100)]
    block = block_of([trial(0, "gathered", 0, 1000)], records)
    assert block.due.tolist() == [2, 0, 1]


def test_trials_of_one_block_are_added() -> None:
    trials = [
        trial(0, "gathered", 0, 1000, block=4, interrupted=2),
        dataclasses.replace(trial(1, "gathered", 2000, 4000, block=4, interrupted=1), dropped=5),
    ]
    block = block_of(trials, [loop(0), loop(2100, trial=1), loop(3000, trial=1)])
    assert (block.number, block.seconds, block.interrupted, block.cut) == (4, 3.0, 3, 8)
    assert (block.due.tolist(), block.ended.tolist()) == ([0, 1, 2], [0, 1, 2])


@pytest.mark.parametrize(("interrupted", "cancelled", "known", "cut"), [(3, 1, 3, 2), (1, 3, 3, 0)])
def test_loop_that_was_interrupted_and_left_a_record_is_not_counted_twice(
    interrupted: int, cancelled: int, known: int, cut: int
) -> None:
    records = [loop(k * 10, status="cancelled") for k in range(cancelled)] + [loop(500)]
    block = block_of([trial(0, "gathered", 0, 1000, interrupted=interrupted)], records)
    assert (block.interrupted, block.cut) == (known, cut)


def test_block_as_short_as_the_warm_up_keeps_its_loops() -> None:
    trials, records = [], []
    for block, count in enumerate((200, 200, 200, 20, 21)):
        trials.append(trial(block, "gathered", block * 100_000, block * 100_000 + 40_000, block=block))
        for k in range(count):
            slow = 400 if k < 20 else 100 + (k * 37 % 11)
            records.append(loop(block * 100_000 + k * 200, model=slow, trial=block))
    (group,) = measure(run(trials), tabulate(records))
    assert group.warm_up.skip == 20
    assert [block.due.size for block in group.blocks] == [180, 180, 180, 20, 1]
    assert [block.seconds for block in group.blocks] == [36.0, 36.0, 36.0, 40.0, 36.0]


def test_warm_up_is_left_out_by_time_whatever_the_rate_of_a_block() -> None:
    """Two seconds of slow loops: 20, 16 or 25 of them; all go, and the window opens where 20 were."""
    trials, records = [], []
    for block, each in enumerate((100, 125, 80)):
        trials.append(trial(block, "gathered", block * 100_000, block * 100_000 + 20_000, block=block))
        for at in range(0, 20_000, each):
            slow = 400 if at < 2000 else 100 + (at // each * 37 % 11)
            records.append(loop(block * 100_000 + at, model=slow, trial=block))
    (group,) = measure(run(trials), tabulate(records))
    assert group.warm_up.skip == 20
    assert group.warm_up_seconds == 2.0
    assert [block.left_out.size for block in group.blocks] == [20, 16, 25]
    assert [block.due.size for block in group.blocks] == [180, 144, 225]
    assert [block.seconds for block in group.blocks] == [18.0] * 3


def test_hump_that_does_not_show_before_the_window_is_no_warm_up() -> None:
    trials = [trial(0, "gathered", 1000, 21_000)]
    inside = [loop(1000 + k * 100, model=400 if k < 20 else 100 + k * 37 % 11) for k in range(200)]
    assert measure(run(trials), tabulate(inside))[0].warm_up.skip == 20
    spawned = [loop(k * 100, model=100 + k) for k in range(10)]
    (group,) = measure(run(trials), tabulate([*spawned, *inside]))
    assert (group.warm_up.skip, group.blocks[0].left_out.size, group.blocks[0].due.size) == (0, 0, 200)


def test_groups_stand_in_the_order_of_loads_then_of_the_run_then_as_met() -> None:
    trials = [
        trial(0, "other", 0, 10, users=1),
        trial(1, "b", 20, 30, users=4),
        trial(2, "b", 40, 50, users=1),
        trial(3, "a", 60, 70, users=1),
    ]
    groups = measure(run(trials, strategies=("a", "b")), tabulate([]))
    assert [(group.users, group.strategy) for group in groups] == [(1, "a"), (1, "b"), (1, "other"), (4, "b")]
    assert [group.blocks[0].due.size for group in groups] == [0, 0, 0, 0]


def test_blocks_are_in_the_order_of_their_numbers() -> None:
    trials = [
        trial(k, "gathered", k * 1000, k * 1000 + 500, block=number) for k, number in enumerate((2, 0, 1))
    ]
    (group,) = measure(run(trials), tabulate([loop(0), loop(1000, trial=1)]))
    assert [(block.number, block.due.tolist()) for block in group.blocks] == [(0, [1]), (1, []), (2, [0])]
