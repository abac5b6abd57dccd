"""A part of `benchmarks/causes.py`: every kind of loop, stalls everywhere around its calls."""

from __future__ import annotations

import pytest

from benchmarks import causes, causes_loops

pytestmark = pytest.mark.measures


def test_causes_are_those_that_were_made() -> None:
    chosen = causes.cases(24, seed=5)
    assert {case.loop for case in chosen} == {"ours", "hand", "openai", "anthropic"}
    assert {case.stall for case in chosen} == set(causes_loops.STALLS)
    told: list[str] = []
    found = causes.examine(chosen, told.append)
    assert (found.wrong, found.silent) == (0, 0), "\n".join(told)
    assert found.right_with_cause == found.with_cause >= 8
