"""Quotas (token buckets, and how the providers tell of them) and the capacity of tools, in virtual time."""

from __future__ import annotations

import pytest

from profiler.emulator.limits import (
    Rejected,
    ToolCapacity,
    go_duration,
    headers,
    key_quota,
    refusal_error,
    retry_headers,
    rfc3339,
)
from profiler.limits.token_bucket import QuotaRefusal, QuotaState
from profiler.scenarios import Capacity, CapacityStep, Quota

SECOND = 1_000_000_000

MINUTE = 60e9


def quota(split: bool = False, **limits: float) -> QuotaState:
    return key_quota(Quota(**limits), split_tokens=split, minute_ns=MINUTE, now_ns=0)  # type: ignore[arg-type]


def test_quota_lets_the_burst_pass_at_once_and_then_the_rate() -> None:
    state = quota(requests_per_minute=60, burst=0.1)
    assert [state.admit(0, 0, 0) for _ in range(6)] == [None] * 6
    refused = state.admit(0, 0, 0)
    assert refused is not None
    assert (refused.resource, refused.limit, refused.used, refused.requested) == ("requests", 60, 6, 1)
    assert refused.retry_ns == pytest.approx(SECOND, abs=2)
    assert state.admit(0, 0, refused.retry_ns) is None
    assert state.admit(0, 0, refused.retry_ns) is not None


def test_quota_accepts_exactly_its_rate_of_twice_as_much_offered() -> None:
    state = quota(requests_per_minute=120, burst=0.05)
    accepted = [n for n in range(0, 60 * 1000, 250) if state.admit(0, 0, n * 1_000_000) is None]
    after_burst = [n for n in accepted if n >= 10_000]
    assert len(after_burst) / 50 == pytest.approx(2.0, rel=0.01)


def test_quota_takes_nothing_from_any_bucket_for_a_refused_request() -> None:
    state = quota(requests_per_minute=60, input_tokens_per_minute=500, output_tokens_per_minute=500)
    assert state.admit(600, 0, 0) is None
    for _ in range(5):
        refused = state.admit(600, 0, 0)
        assert refused is not None
        assert (refused.resource, refused.used, refused.requested) == ("tokens", 600, 600)
    assert state.buckets[0].level(0) == 59


def test_input_and_output_are_apart_on_anthropic() -> None:
    state = quota(split=True, input_tokens_per_minute=1000, output_tokens_per_minute=100)
    assert state.admit(10, 90, 0) is None
    refused = state.admit(10, 20, 0)
    assert refused is not None
    assert refused.resource == "output-tokens"
    assert refused.retry_ns == pytest.approx(6 * SECOND, abs=2)


def test_request_larger_than_the_bucket_passes_when_it_is_full() -> None:
    state = quota(input_tokens_per_minute=100, output_tokens_per_minute=100)
    assert state.admit(5000, 0, 0) is None
    refused = state.admit(1, 0, 0)
    assert refused is not None
    assert refused.retry_ns == pytest.approx(60 * SECOND / 200, abs=2)


def test_concurrency_is_released() -> None:
    state = quota(concurrent_requests=2)
    assert (state.admit(0, 0, 0), state.admit(0, 0, 0)) == (None, None)
    assert state.admit(0, 0, 0) == QuotaRefusal("concurrent", 2, 2, 1, 0)
    state.release()
    assert state.admit(0, 0, 0) is None


def test_openai_headers_and_body() -> None:
    state = quota(requests_per_minute=600, input_tokens_per_minute=20_000, output_tokens_per_minute=10_000)
    assert state.admit(3000, 906, 0) is None
    assert headers("openai", state, 0, 0.0).decode().splitlines() == [
        "x-ratelimit-limit-requests: 600",
        "x-ratelimit-remaining-requests: 599",
        "x-ratelimit-reset-requests: 100ms",
        "x-ratelimit-limit-tokens: 30000",
        "x-ratelimit-remaining-tokens: 26094",
        "x-ratelimit-reset-tokens: 7.812s",
    ]
    error = refusal_error("openai", QuotaRefusal("tokens", 30000, 28039, 3906, 3_890_000_000), "gpt-4.1")
    assert (error.status, error.kind, error.param, error.code) == (429, "tokens", None, "rate_limit_exceeded")
    assert error.message.startswith(
        "Rate limit reached for gpt-4.1 in organization org-emulator on tokens per min (TPM): Limit 30000, "
        "Used 28039, Requested 3906. Please try again in 3.89s. "
    )
    assert refusal_error("openai", QuotaRefusal("requests", 3, 3, 1, 1), "m").kind == "requests"
    assert retry_headers("openai", 1_500_000_001) == b"retry-after: 2\r\nretry-after-ms: 1501\r\n"


def test_anthropic_headers_and_body() -> None:
    state = quota(split=True, input_tokens_per_minute=30_000, output_tokens_per_minute=8_000)
    assert state.admit(15_000, 0, 0) is None
    lines = headers("anthropic", state, 0, 1_750_000_000.2).decode().splitlines()
    assert lines[:3] == [
        "anthropic-ratelimit-input-tokens-limit: 30000",
        "anthropic-ratelimit-input-tokens-remaining: 15000",
        "anthropic-ratelimit-input-tokens-reset: 2025-06-15T15:07:11Z",
    ]
    assert lines[6:8] == [
        "anthropic-ratelimit-tokens-limit: 38000",
        "anthropic-ratelimit-tokens-remaining: 23000",
    ]
    error = refusal_error("anthropic", QuotaRefusal("input-tokens", 30000, 1, 1, 1), "claude")
    assert (error.status, error.kind) == (429, "rate_limit_error")
    assert error.message.startswith(
        "This request would exceed your organization's rate limit of 30,000 input tokens per minute ("
    )
    assert retry_headers("anthropic", 1) == b"retry-after: 1\r\n"


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0s"),
        (1_500_000, "2ms"),
        (3_890_000_000, "3.89s"),
        (72 * SECOND, "1m12s"),
        (3661 * SECOND, "1h1m1s"),
    ],
)
def test_durations_as_openai_writes_them(ns: int, text: str) -> None:
    assert go_duration(ns) == text


def test_times_as_anthropic_writes_them() -> None:
    assert rfc3339(0.0) == "1970-01-01T00:00:00Z"
    assert rfc3339(0.001) == "1970-01-01T00:00:01Z"


MS = 1_000_000


def machine(scale: float = 1.0, **capacity: object) -> ToolCapacity:
    return ToolCapacity(Capacity(**capacity), scale, 0)  # type: ignore[arg-type]


def run(state: ToolCapacity, arrivals: list[tuple[int, int]], until: int = 10_000) -> dict[int, float]:
    """Arrivals (at ms, work ms) by their number → when each ended, in ms; without those rejected."""
    ended: dict[int, float] = {}
    for number, (at, work) in enumerate(arrivals):
        ended |= {key: when / MS for key, when in state.advance(at * MS)}
        state.arrive(number, work * MS, at * MS)
    ended |= {key: when / MS for key, when in state.advance(until * MS)}
    return {key: round(when, 3) for key, when in ended.items()}


def test_capacity_rejects_above_the_limit_and_takes_a_free_slot() -> None:
    state = machine(concurrent=2)
    assert state.arrive(1, 100 * MS, 0) is None
    assert state.arrive(2, 200 * MS, 0) is None
    assert state.arrive(3, 100 * MS, 0) == Rejected(429, "at most 2 calls at once", None)
    assert state.in_flight == 2
    assert state.next_ns() == 100 * MS
    assert state.advance(100 * MS) == [(1, 100 * MS)]
    assert state.arrive(4, 100 * MS, 100 * MS) is None


def test_refusals_announce_the_wait_that_is_stated() -> None:
    state = machine(concurrent=1, retry_after=1.5)
    assert state.arrive(1, 100 * MS, 0) is None
    assert state.arrive(2, 100 * MS, 0) == Rejected(429, "at most 1 calls at once", 1500 * MS)
    state = machine(requests_per_second=1, retry_after=7)
    assert state.arrive(1, 100 * MS, 0) is None
    assert state.arrive(2, 100 * MS, 0) == Rejected(429, "too many requests a second", 7000 * MS)


def test_bounded_queue_serves_in_order_of_arrival() -> None:
    state = machine(concurrent=1, mode="queue", queue=2)
    assert run(state, [(0, 100), (10, 100), (20, 50)]) == {0: 100, 1: 200, 2: 250}
    state = machine(concurrent=1, mode="queue", queue=1)
    assert [state.arrive(n, 100 * MS, 0) for n in range(3)] == [
        None,
        None,
        Rejected(503, "queue of 1 is full", None),
    ]


def test_capacity_advanced_over_a_long_time_starts_each_queued_call_when_the_one_before_ended() -> None:
    assert run(machine(concurrent=2, mode="queue", queue=9), [(0, 100)] * 6) == {
        0: 100,
        1: 100,
        2: 200,
        3: 200,
        4: 300,
        5: 300,
    }


def test_shared_capacity_slows_everybody_down() -> None:
    # Alone until 50 ms, then at half speed: 0 has 50 left of its 100, which takes 100.
    assert run(machine(concurrent=1, mode="share"), [(0, 100), (50, 100)]) == {0: 150, 1: 200}
    # Two at once are full speed when two fit.
    assert run(machine(concurrent=2, mode="share"), [(0, 100), (0, 100)]) == {0: 100, 1: 100}


def test_schedule_changes_what_fits() -> None:
    steps = (CapacityStep(1.0, 0.4), CapacityStep(2.0, 1.0))
    state = machine(concurrent=10, schedule=steps)
    state.advance(1000 * MS)
    taken = [state.arrive(n, 5000 * MS, 1000 * MS) for n in range(5)]
    assert taken == [None] * 4 + [Rejected(429, "at most 4 calls at once", None)]
    state.advance(2000 * MS)
    assert [state.arrive(10 + n, 1, 2000 * MS) for n in range(7)] == [None] * 6 + [
        Rejected(429, "at most 10 calls at once", None)
    ]


def test_higher_capacity_starts_what_is_queued() -> None:
    steps = (CapacityStep(0.0, 0.5), CapacityStep(0.05, 1.0))
    state = machine(concurrent=2, mode="queue", queue=5, schedule=steps)
    assert run(state, [(0, 100), (0, 100)]) == {0: 100, 1: 150}


def test_outage_serves_nobody_until_it_ends() -> None:
    steps = (CapacityStep(0.0, 0.0), CapacityStep(0.5, 1.0))
    assert run(machine(concurrent=1, mode="queue", queue=5, schedule=steps), [(0, 100)]) == {0: 600}
    assert run(machine(concurrent=1, mode="share", schedule=steps), [(0, 100)]) == {0: 600}


def test_rates_announce_when_to_come_again() -> None:
    state = machine(requests_per_second=2, burst=2)
    assert [state.arrive(n, 0, 0) for n in range(3)] == [
        None,
        None,
        Rejected(429, "too many requests a second", 500_000_001),
    ]
    state.advance(500 * MS)
    assert state.arrive(4, 0, 500 * MS) is None
    assert state.arrive(5, 0, 500 * MS) is not None


def test_rates_scale_with_time() -> None:
    state = machine(scale=0.1, requests_per_second=2)
    assert state.arrive(1, 0, 0) is None
    assert state.arrive(2, 0, 0) == Rejected(429, "too many requests a second", 50_000_001)


def test_caller_that_leaves_frees_its_place() -> None:
    state = machine(concurrent=1, mode="queue", queue=1)
    state.arrive(1, 1000 * MS, 0)
    state.arrive(2, 100 * MS, 0)
    state.advance(10 * MS)
    state.leave(1)
    assert state.advance(200 * MS) == [(2, 110 * MS)]
    state.leave(99)
    assert state.in_flight == 0
