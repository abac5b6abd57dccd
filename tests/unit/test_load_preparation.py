"""Which failure of the very first request ends a load test before it has begun."""

from __future__ import annotations

import pytest

from profiler.errors import ProviderError
from profiler.load.preparation import is_hopeless


@pytest.mark.parametrize(
    ("status", "error_type", "hopeless"),
    [
        (None, "refused", True),
        (None, "timeout", True),
        *((status, f"http_{status}", True) for status in (308, 400, 401, 402, 403, 404, 405, 413, 422, 451)),
        *((status, f"http_{status}", False) for status in (408, 409, 425, 429, 500, 502, 503, 504, 529)),
        (200, "unreadable", True),
        (200, "truncated_stream", False),
        (200, "overloaded_error", False),
    ],
)
def test_what_every_request_would_meet_is_hopeless(
    status: int | None, error_type: str, hopeless: bool
) -> None:
    error = ProviderError("said", provider="openai", status=status, error_type=error_type)
    assert is_hopeless(error) is hopeless
