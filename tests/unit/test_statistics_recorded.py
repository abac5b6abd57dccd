"""What recordings say, on rounds whose figures were worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from profiler.limits.known import parse_quota
from profiler.records import Attempt, LoopRecord
from profiler.rundir import Recording
from profiler.statistics.recorded import RecordedFigures, recorded_figures
from profiler.statistics.rounds import list_schedule, round_times
from profiler.statistics.samples import EXACT, Percentiles, Samples
from tests.unit.recording_data import MS, bound, exact, loop, records


def figures(*loops: LoopRecord, **more: object) -> RecordedFigures:
    return recorded_figures(loops, **more)  # type: ignore[arg-type]


# A round, as the samples of each format have them.


def test_round_that_overlapped_its_calls() -> None:
    calls = [exact("a", 100, 400), exact("b", 100.4, 600.4), exact("c", 101, 301)]
    times = round_times(records(loop(calls))[0].rounds[0])
    assert times is not None
    assert (times.work, times.wall, times.busy) == (1000 * MS, 500.4 * MS, 500.4 * MS)
    assert (times.gathered, times.limits, times.peak) == (500 * MS, (500 * MS, 500 * MS, 500 * MS), 3)
    assert times.overlap == "measured"


def test_round_with_an_upper_bound_is_an_upper_bound() -> None:
    """Its limit of 2: the third call starts when the shortest of the first two has ended."""
    calls = [
        bound("grep", 2600, 2950),
        exact("glob", 2907, 3012),
        exact("fetch", 3120, 5200),
    ]
    times = round_times(records(loop(calls, model=2600))[0].rounds[0])
    assert times is not None
    assert (times.work, times.wall, times.busy) == (2535 * MS, 2600 * MS, 2492 * MS)
    assert (times.gathered, times.limits[0], times.peak) == (2080 * MS, 2185 * MS, 2)
    assert times.overlap == "upper bound"


def test_round_of_one_call_is_single_even_where_it_is_a_bound() -> None:
    times = round_times(records(loop([bound("bash", 100, 12_100)]))[0].rounds[0])
    assert times is not None
    assert (times.calls, times.work, times.wall, times.overlap) == (1, 12_000 * MS, 12_000 * MS, "single")


def test_round_leaves_out_calls_that_never_started_or_ended() -> None:
    refused = exact("b", 100, 900)
    refused.refused = True
    never = exact("c", 100, 900)
    never.ended_ns = None
    times = round_times(records(loop([exact("a", 100, 300), refused, never], until=1000))[0].rounds[0])
    assert times is not None
    assert (times.calls, times.work, times.overlap) == (1, 200 * MS, "single")
    assert round_times(records(loop([never]))[0].rounds[0]) is None


@pytest.mark.parametrize(("limit", "expected"), [(1, 14), (2, 8), (3, 7), (4, 6), (9, 6)], ids=str)
def test_list_schedule_starts_calls_in_the_order_asked(limit: int, expected: int) -> None:
    """Of 2: 3 | 1, 1, 6 ends at 8. Of 3: 3 | 1, 6 | 1, ... the 6 starts at 1."""
    assert list_schedule([3, 1, 1, 6, 3], limit) == expected


# What is concluded of many.


def test_rounds_one_after_another_are_estimated_gathered_and_limited() -> None:
    turn = [exact("a", 100, 300), exact("b", 300, 600), exact("c", 600, 700)]
    found = figures(*records(loop(turn, until=1000)))
    assert (found.parallel, found.in_turn.rounds, found.overlapped.rounds) == (1, 1, 0)
    assert found.in_turn.gathered_seconds == 0.3
    assert found.in_turn.limit_seconds == {"semaphore:2": 0.3, "semaphore:4": 0.3, "semaphore:8": 0.3}
    assert found.in_turn.less(found.in_turn.gathered_seconds) == pytest.approx(0.5)
    assert found.saved_seconds == pytest.approx(0.3)
    assert found.loop_seconds == 1.0


def test_gaps_between_calls_stay_in_the_estimate() -> None:
    """100 + 300 ms of calls, 100 ms between: gathered 300 + 100, which is 20 % less than 500."""
    found = figures(*records(loop([exact("a", 100, 200), exact("b", 300, 600)])))
    assert found.in_turn.gap_seconds == pytest.approx(0.1)
    assert found.in_turn.speed_up == pytest.approx(0.8)
    assert found.in_turn.busy_speed_up == 1.0
    assert found.in_turn.less(found.in_turn.gathered_seconds) == pytest.approx(0.2)


def test_ends_that_touch_within_a_tick_are_no_overlap() -> None:
    calls = [exact("a", 100, 301), exact("b", 300, 500)]
    assert figures(*records(loop(calls, resolution_ns=MS))).in_turn.rounds == 1
    assert figures(*records(loop(calls, resolution_ns=1000))).overlapped.rounds == 1


def test_rounds_that_cannot_bear_it_are_left_out_by_reason() -> None:
    never = exact("b", 400, 500)
    never.ended_ns = None
    found = figures(
        *records(
            loop([bound("a", 100, 300), exact("b", 300, 400)], at=0),
            loop([exact("a", 100, 300), never], at=1000, until=900),
            loop([exact("a", 100, 109), exact("b", 109, 400)], at=2000, resolution_ns=MS),
            loop([exact("a", 100, 110), exact("b", 110, 400)], at=3000, resolution_ns=MS),
            loop([exact("a", 100, 200), exact("write_stdin", 200, 400, wait=True)], at=4000),
        )
    )
    left = found.left_out
    assert (left.upper_bound, left.never_ended, left.wait, left.unresolved) == (1, 1, 1, 1)
    assert (found.parallel, left.rounds, found.in_turn.rounds) == (5, 4, 1)
    assert found.parallel_measured.rounds == 3  # of several durations, none of them a bound
    assert [(one.name, one.waits) for one in found.tools if one.waits] == [("write_stdin", 1)]


def test_what_ran_beside_the_model_or_after_the_loop_saves_the_loop_nothing() -> None:
    """Calls of 200 and 300 ms: the first ran beside the model, the last 200 ms are after the loop's end."""
    eager = [exact("a", 0, 200), exact("b", 200, 500)]
    found = figures(*records(loop(eager, model=300, until=350)))
    assert found.in_turn.less(found.in_turn.gathered_seconds) == pytest.approx(0.4)
    assert found.saved_seconds == pytest.approx(0.05)


def test_loops_inside_calls_are_in_the_totals_and_concluded_from_once() -> None:
    turn = [exact("a", 110, 200), exact("b", 200, 290)]
    inner = replace(records(loop(turn, at=1))[0], id="inner", parent="outer")
    outer = records(loop([exact("agent", 100, 400), exact("b", 400, 600)]))[0]
    call = outer.rounds[0].tool_calls[0]
    calls = (replace(call, loops=("inner",)), outer.rounds[0].tool_calls[1])
    outer = replace(outer, id="outer", rounds=(replace(outer.rounds[0], tool_calls=calls),))
    for order in ((inner, outer), (outer, inner)):
        found = figures(*order)
        assert (found.loops, found.nested, found.totals.rounds) == (2, 1, 2)
        assert (found.in_turn.rounds, found.in_turn.calls) == (1, 2)  # the agent's time holds the inner round
        assert found.in_turn.work_seconds == pytest.approx(0.5)
    alone = replace(outer, rounds=(replace(outer.rounds[0], tool_calls=calls[:1]),))
    found = figures(inner, alone)
    assert found.in_turn.rounds == 1
    assert found.saved_seconds == pytest.approx(0.09)  # the agent's call would have been shorter


def test_latencies_are_of_known_durations_and_bounds_are_counted_beside() -> None:
    calls = [exact("a", 100 + n, 101 + 2 * n) for n in range(99)]
    calls += [bound("a", 100, 9000), exact("a", 100, 200, status="error")]
    calls[-1].refused = True
    late = exact("a", 0, 250)
    late.started_ns, late.own_ns = None, 50 * MS
    (tool,) = figures(*records(loop([*calls, late]))).tools
    assert (tool.calls, tool.latency.count, tool.upper_bounds, tool.never_started) == (102, 100, 1, 1)
    assert (tool.derived, tool.failed) == (1, 1)
    assert tool.latency.p50 == pytest.approx(0.05)  # of 1 to 99 ms, and 50
    assert tool.latency.p95 == pytest.approx(0.0941, abs=0.0011)


def test_fewer_than_a_hundred_calls_have_no_tail() -> None:
    samples = Samples()
    for n in range(99):
        samples.add(n * MS)
    assert Percentiles.of(samples) == Percentiles(99, 0.049, None, None)
    samples.add(99 * MS)
    assert Percentiles.of(samples).p99 == pytest.approx(0.09801)


def test_samples_stay_within_half_a_percent_when_they_are_many() -> None:
    samples = Samples()
    for n in range(EXACT * 3):
        samples.add((n % 1000) * MS)
    assert samples.count == EXACT * 3
    assert samples.quantile(0.5) == pytest.approx(0.5, rel=0.006)
    assert samples.quantile(0.99) == pytest.approx(0.99, rel=0.006)
    assert samples.quantile(0.0) == 0.0
    assert Samples().quantile(0.5) is None


# Quotas, waits, first tokens.


def asked(record: LoopRecord, *attempts: Attempt, **fields: object) -> LoopRecord:
    model = replace(record.rounds[0].model, attempts=attempts, **fields)  # type: ignore[arg-type]
    return replace(record, rounds=(replace(record.rounds[0], model=model),))


def test_quota_is_held_against_the_fullest_window() -> None:
    at = (0, 30_000, 59_999, 60_000, 200_000)
    every = [
        asked(one, input_tokens=100 * (n + 1), cached_tokens=10, output_tokens=1)
        for n, one in enumerate(records(*(loop([], at=float(ms)) for ms in at)))
    ]
    found = figures(*every, quota=parse_quota("10rpm,1000itpm"))
    requests, read = found.quotas
    assert (requests.peak, requests.share) == (3, 0.3)  # a window does not hold both of its ends
    assert (read.resource, read.peak, read.cached) == ("input_tokens", 900, 30)
    assert found.quota_source == "as given"


def test_tokens_from_the_cache_are_apart_where_the_provider_leaves_them_out() -> None:
    (record,) = records(loop([]))
    record = asked(record, input_tokens=1000, cached_tokens=900, output_tokens=5)
    model = replace(record.rounds[0].model, provider="anthropic")
    record = replace(record, rounds=(replace(record.rounds[0], model=model),))
    (read,) = figures(record, quota=parse_quota("itpm=500")).quotas
    assert (read.peak, read.cached) == (100, 900)


def test_quota_from_headers_and_none_without_or_of_a_sample() -> None:
    (record,) = records(loop([]))
    headers = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
    }
    refused = Attempt(0, 10 * MS, 429, retry_after_ns=0)
    stated = asked(record, refused, Attempt(40 * MS, 90 * MS, 200, rate_limits=headers))
    found = figures(stated)
    assert [(one.resource, one.peak, one.limit) for one in found.quotas] == [("requests", 2, 60)]
    waits = found.waits
    assert (waits.retries, waits.backoff_seconds, waits.refused) == (1, 0.03, 1)
    assert figures(record).quotas == ()
    assert figures(stated, recording=Recording("import", sampled=0.1)).quotas == ()


def requested(
    count: int, provider: str, model: str, headers: dict[str, str] | None = None
) -> list[LoopRecord]:
    """So many requests, one a second."""
    return [
        asked(
            one,
            Attempt(one.started_ns, one.ended_ns, 200, rate_limits=headers),
            provider=provider,
            model=model,
        )
        for one in records(*(loop([], at=1000.0 * n) for n in range(count)))
    ]


def stating(prefix: str, limit: int) -> dict[str, str]:
    if prefix == "anthropic":
        return {"anthropic-ratelimit-requests-limit": str(limit)}
    return {"x-ratelimit-limit-requests-minute": str(limit)}


def shares(figures: RecordedFigures) -> list[tuple[str, str, float, int, int]]:
    return [(one.provider, one.model, one.limit, one.peak, one.models) for one in figures.quotas]


@pytest.mark.parametrize("spec", [None, "60rpm", "openai:rpm=60", "openai-responses:rpm=60"])
def test_quota_of_a_model_holds_over_its_apis(spec: str | None) -> None:
    headers = stating("openai", 60) if spec is None else None
    every = requested(18, "openai", "gpt-4o", headers) + requested(20, "openai-responses", "gpt-4o", headers)
    found = figures(*every, quota=None if spec is None else parse_quota(spec))
    assert shares(found) == [("openai", "gpt-4o", 60, 38, 1)]
    assert (found.models, found.requests) == (1, 38)


def test_limits_in_headers_are_of_the_provider_and_model_that_stated_them() -> None:
    small, large = stating("openai", 40), stating("openai", 10)
    every = [
        *requested(20, "openai", "gpt-4o", small),
        *requested(9, "openai", "o3", large),
        *requested(12, "openai", "without headers"),
        *requested(30, "anthropic", "claude", stating("anthropic", 50)),
    ]
    assert shares(figures(*every)) == [
        ("openai", "o3", 10, 9, 2),  # not 20 of 10
        ("anthropic", "claude", 50, 30, 1),  # not 30 of 10, nor 20 of 50
    ]


def test_given_quota_is_of_its_providers_models_or_of_the_model_that_used_most() -> None:
    every = [
        *requested(5, "openai", "gpt-4o"),
        *requested(3, "openai", "o3"),
        *requested(9, "anthropic", "c"),
    ]
    assert shares(figures(*every, quota=parse_quota("10rpm"))) == [("anthropic", "c", 10, 9, 3)]
    assert shares(figures(*every, quota=parse_quota("openai:rpm=10"))) == [("openai", "gpt-4o", 10, 5, 2)]
    strange = figures(*every, quota=parse_quota("groq:rpm=10"))
    assert (strange.quotas, strange.strange_quota) == ((), "groq")
    assert strange.providers == ("anthropic", "openai")
    unnamed = figures(*requested(4, "", "gpt-4o"), quota=parse_quota("openai:rpm=10"))
    assert shares(unnamed) == [("", "gpt-4o", 10, 4, 1)]


def test_first_tokens_are_of_requests_that_say_and_derived_ones_are_counted() -> None:
    (record,) = records(loop([]))
    seen = asked(record, first_token_ns=record.started_ns + 40 * MS)
    model = replace(seen.rounds[0].model, derived=("started_ns",))
    derived = replace(seen, rounds=(replace(seen.rounds[0], model=model),))
    found = figures(record, seen, derived)
    assert found.first_token == Percentiles(2, 0.04, None, None)
    assert found.first_tokens_derived == 1


def test_groups_that_came_through_the_proxy_have_a_wall_and_no_calls() -> None:
    draft = loop([bound("a", 100, 300), bound("b", 100, 300)], source="proxy")
    draft.rounds[0].tools_started_ns, draft.rounds[0].tools_ended_ns = (
        draft.rounds[0].calls[0].asked_ns,
        draft.rounds[0].calls[0].ended_ns,
    )
    found = figures(*records(draft))
    assert (found.proxied.rounds, found.proxied.wall_seconds) == (1, 0.2)
    assert (found.left_out.upper_bound, found.in_turn.rounds) == (1, 0)
