"""The adaptive limit on the emulator: the capacity falls to 40 % and comes back."""

from __future__ import annotations

import pytest

from benchmarks import adaptive


@pytest.mark.slow
def test_it_follows_the_capacity_and_plain_aimd_does_not(monkeypatch):
    """Goodput from 40 mean tool durations after each change on, against an oracle that is told it.

    `benchmarks/adaptive.py` measures longer and finds 99 to 101 %; here a window holds some 40
    to 100 loops, whose number varies by a tenth.
    """
    monkeypatch.setattr(adaptive, "MEASURE", 40)
    monkeypatch.setenv("PROFILER_TOOLS_URL", "")
    oracle, _, _ = adaptive.run("oracle", retries=0, seed=0)
    ours, limits, refused = adaptive.run("adaptive", retries=0, seed=0)
    plain, _, refused_plain = adaptive.run("aimd", retries=0, seed=0)
    assert min(oracle) > 3
    assert all(good >= 0.8 * best for good, best in zip(ours, oracle, strict=True))
    assert all(good <= 0.6 * best for good, best in zip(plain, oracle, strict=True))
    assert refused < refused_plain / 5
    low = [limit for at, limit in limits if 120 <= at < 160]  # the second half of the low phase
    assert 6 <= sorted(low)[len(low) // 2] <= 9
