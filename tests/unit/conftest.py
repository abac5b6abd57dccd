"""What several unit tests ask for."""

from __future__ import annotations

import pytest

from profiler.statistics import summary


@pytest.fixture
def few_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits the scalability law to 40 resamples, not 300: where the width of its interval matters little."""
    monkeypatch.setattr(summary, "REPEATS", 40)
