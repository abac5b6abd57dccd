"""The independent server that predictions are held against does what its options say."""

from __future__ import annotations

import asyncio
import itertools
import math
import statistics
from collections.abc import Sequence

import pytest

from profiler.testing import run_virtual
from tests.capacity_server import Capacity, Drift, Shape, Tool


def served(capacity: Capacity, *arrivals: tuple[float, float]) -> Sequence[tuple[float, float | None]]:
    """When calls of (when, seconds) end, and the wait that their refusal announces."""

    async def main(_: object) -> list[tuple[float, float | None]]:
        async def one(at: float, seconds: float) -> tuple[float, float | None]:
            await asyncio.sleep(at)
            wait = await capacity.serve(seconds)
            return round(asyncio.get_running_loop().time(), 3), wait and round(wait, 3)

        return await asyncio.gather(*(one(*arrival) for arrival in arrivals))

    return run_virtual(main)


@pytest.mark.parametrize(
    ("rule", "amount", "expected"),
    [
        ("none", "1", [(2, None), (2.1, None), (2.2, None)]),
        ("refuse", "2", [(2, None), (2.1, None), (0.2, 0.0)]),
        ("queue", "2", [(2, None), (2.1, None), (4, None)]),
        # From 0.2 s on 1.8, 1.9 and 2 s are left, each at two thirds of the speed.
        ("share", "2", [(2.9, None), (3.0, None), (3.1, None)]),
        ("rate", "4/2", [(2, None), (2.1, None), (0.2, 0.05)]),
    ],
)
def test_a_capacity_serves_by_its_rule(
    rule: str, amount: str, expected: list[tuple[float, float | None]]
) -> None:
    assert served(Capacity(rule, amount), (0, 2), (0.1, 2), (0.2, 2)) == expected


def test_one_that_refuses_serves_again_when_a_call_has_ended() -> None:
    assert served(Capacity("refuse", "1"), (0, 1), (0.5, 1), (1.5, 1)) == [(1, None), (0.5, 0.0), (2.5, None)]


def shape(seed: str = "1", loop_share: float = 0.4, sigma: float = 0.8) -> Shape:
    return Shape(
        seed=seed,
        tools=[Tool.parse("search=0.5,refuse=20,weight=3"), Tool.parse("fetch=0.2")],
        sigma=sigma,
        loop_share=loop_share,
        round_share=0.2,
        rounds=(1, 3),
        fan_out=(2, 6),
        first_token=0.3,
        tokens=40,
        tokens_per_second=100,
    )


def test_work_follows_from_seed_and_place() -> None:
    one, same, other = shape(), shape(), shape("2")
    tool = one.tools[0]
    assert one.tool_seconds(tool, "7", 0, 1) == same.tool_seconds(tool, "7", 0, 1)
    assert one.tool_seconds(tool, "7", 0, 1) != other.tool_seconds(tool, "7", 0, 1)
    assert [len(one.calls("7", n)) for n in range(4)] == [len(same.calls("7", n)) for n in range(4)]


def test_loops_have_rounds_and_calls_within_their_bounds() -> None:
    drawn = [[shape().calls(str(loop), n) for n in range(4)] for loop in range(200)]
    assert {sum(bool(calls) for calls in rounds) for rounds in drawn} == {1, 2, 3}
    assert {len(calls) for rounds in drawn for calls in rounds} == {0, 2, 3, 4, 5, 6}
    names = [tool.name for rounds in drawn for calls in rounds for tool in calls]
    assert names.count("search") / len(names) == pytest.approx(0.75, abs=0.03)


def test_calls_of_a_loop_are_as_alike_as_its_share_says() -> None:
    work = shape(loop_share=0.4)
    tool = work.tools[0]
    first, of_another_round, of_the_same = (
        [math.log(work.tool_seconds(tool, str(loop), *place)) for loop in range(2000)]
        for place in ((0, 0), (1, 0), (0, 1))
    )
    assert statistics.correlation(first, of_another_round) == pytest.approx(0.4, abs=0.05)
    assert statistics.correlation(first, of_the_same) == pytest.approx(0.6, abs=0.05)
    assert statistics.stdev(first) == pytest.approx(0.8, rel=0.05)
    assert statistics.median(first) == pytest.approx(math.log(tool.median), abs=0.05)


def test_a_drift_is_now_above_now_below() -> None:
    async def main(_: object) -> list[float]:
        drift, found = Drift(1.5, 2.0, "3"), []
        for _step in range(400):
            found.append(drift.now())
            await asyncio.sleep(0.1)
        return found

    factors = run_virtual(main)
    assert {round(factor, 6) for factor in factors} == {1.5, round(1 / 1.5, 6)}
    changes = sum(a != b for a, b in itertools.pairwise(factors))
    assert 8 <= changes <= 40  # 20 are expected in 40 s


def test_an_option_that_no_tool_has_is_named() -> None:
    with pytest.raises(ValueError, match="speed=3: expected weight, refuse, queue, share or rate"):
        Tool.parse("search=0.5,speed=3")
