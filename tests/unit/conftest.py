"""What several unit tests ask for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from unittest import mock

import pytest

from profiler import redaction
from profiler.statistics import summary


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """What a test puts into the environment or the path of imports, or its command does, is gone after it."""
    with mock.patch.dict(os.environ), mock.patch.object(sys, "path", [*sys.path]):
        yield


@pytest.fixture(autouse=True)
def own_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The secrets that a test gives as options are no other's."""
    monkeypatch.setattr(redaction, "_kept", set())
    redaction._carried.cache_clear()


@pytest.fixture
def few_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits the scalability law to 40 resamples, not 300: where the width of its interval matters little."""
    monkeypatch.setattr(summary, "REPEATS", 40)
