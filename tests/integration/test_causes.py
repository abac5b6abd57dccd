"""A part of `benchmarks/causes.py`: every kind of loop, stalls everywhere around its calls."""

from __future__ import annotations

import pytest

from benchmarks import causes, causes_loops

pytestmark = pytest.mark.measures

TRIES = 3
"""A crowded machine may be the cause of a shortfall, or make one; a fault misses the same case each time."""


def test_causes_are_those_that_were_made() -> None:
    chosen = causes.cases(24, seed=5)
    assert {case.loop for case in chosen} == {"ours", "hand", "openai", "anthropic"}
    assert {case.stall for case in chosen} == set(causes_loops.STALLS)
    told: list[str] = []
    for _ in range(TRIES):
        found = causes.examine(chosen, told.append)
        chosen = found.missed
        if not chosen:
            return
    raise AssertionError("\n".join(told))
