"""The Prometheus exporter: values from records made by hand, the text of a scrape, exemplars."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from profiler import metrics
from profiler.anatomy import PARTS
from profiler.exporters.prometheus import MAX_SERVERS, OTHER, UNKNOWN_TOOL, Exposition, PrometheusSink
from profiler.loop.recorder import Recorder
from profiler.records import Attempt, LoopRecord, ModelCall, RoundRecord, Shortfall, ToolCall
from profiler.strategies import parse_strategy
from tests.unit.statistics_data import asked_by_nobody, loop, served

S = 1_000_000_000

MOST_SERIES = 20_600
"""Of 50 tools under 6 strategies, each with calls that ended well and not (`benchmarks/scrape.py`)."""


def record(**changes) -> LoopRecord:
    attempts = (
        Attempt(0, S // 10, 429, rate_limits={"x-ratelimit-limit-requests": "500"}),
        Attempt(
            S // 2,
            S,
            200,
            rate_limits={"x-ratelimit-remaining-tokens": "29000", "x-ratelimit-reset-tokens": "2ms"},
        ),
    )
    model = ModelCall(
        *("openai", "gpt-4o", 0, S),
        input_tokens=100,
        cached_tokens=60,
        cache_written_tokens=30,
        output_tokens=20,
        reasoning_tokens=15,
        first_token_ns=S // 4,
        first_output_ns=S // 2,
        attempts=attempts,
        unreadable=2,
    )
    calls = (
        ToolCall("1", "search", S, S, S, 3 * S),
        ToolCall("2", "search", S, S, 2 * S, 3 * S, "timeout", "timeout"),
        ToolCall("3", "lookup", S, S, None, S, "error", "invalid_json"),
    )
    first = RoundRecord(0, 0, 3 * S, model, S, 3 * S, calls)
    last = RoundRecord(1, 3 * S, 4 * S, ModelCall("openai", "gpt-4o", 3 * S, 4 * S))
    return replace(LoopRecord("x", "gathered", "openai", "gpt-4o", 0, 4 * S, "ok", (first, last)), **changes)


@pytest.fixture
def sink() -> PrometheusSink:
    return PrometheusSink(labels={"testid": "t1"})


def value(sink: PrometheusSink, name: str, /, **labels: str) -> float | None:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(sink)
    return registry.get_sample_value(name, {**labels, "testid": "t1"})


def test_rounds_are_counted_by_what_kept_their_calls_from_overlapping(sink):
    made = record()
    late = replace(made.rounds[0], shortfall="inside_tools")
    sink(replace(made, rounds=(late, replace(late, index=1), made.rounds[1])))
    name = "toolloop_round_shortfalls_total"
    assert value(sink, name, strategy="gathered", cause="inside_tools") == 2
    others = [cause for cause in get_args(Shortfall) if cause != "inside_tools"]
    assert [value(sink, name, strategy="gathered", cause=cause) for cause in others] == [
        0
    ] * 11  # from zero on


def test_loop_leaves_every_observation(sink):
    sink(record())
    expected = {
        ("toolloop_loop_duration_seconds_sum", "status=incomplete"): 4.0,
        ("toolloop_loop_duration_seconds_count", "status=incomplete"): 1,
        ("toolloop_loop_duration_seconds_count", "status=ok"): 0,
        ("toolloop_loop_duration_seconds_bucket", "status=incomplete le=3.2"): 0,
        ("toolloop_loop_duration_seconds_bucket", "status=incomplete le=6.4"): 1,
        ("toolloop_loop_rounds_sum", ""): 2,
        ("toolloop_loop_tool_calls_sum", ""): 3,
        ("toolloop_round_duration_seconds_sum", "status=ok"): 4.0,
        ("toolloop_round_phase_seconds_total", "phase=model"): 1.6,
        ("toolloop_round_phase_seconds_total", "phase=backoff"): 0.4,
        ("toolloop_round_phase_seconds_total", "phase=tools"): 2.0,
        ("toolloop_round_phase_seconds_total", "phase=queue"): 0.0,
        ("toolloop_round_fanout_sum", ""): 3,
        ("toolloop_round_peak_concurrency_sum", ""): 2,
        ("toolloop_tool_phase_wall_seconds_total", ""): 2.0,
        ("toolloop_tool_phase_work_seconds_total", ""): 3.0,
        ("toolloop_tool_phase_critical_path_seconds_total", ""): 2.0,
        ("toolloop_round_straggler_ratio_sum", ""): 2 / 1.5,
        ("toolloop_tool_call_duration_seconds_sum", "tool=search status=ok"): 2.0,
        ("toolloop_tool_call_duration_seconds_sum", "tool=search status=timeout"): 1.0,
        ("toolloop_tool_call_duration_seconds_count", "tool=lookup status=error"): None,
        ("toolloop_tool_call_queue_seconds_sum", "tool=search"): 1.0,
        ("toolloop_tool_errors_total", "tool=lookup error_type=invalid_json"): 1,
        ("toolloop_tool_errors_total", "tool=search error_type=timeout"): 1,
        ("toolloop_model_request_duration_seconds_sum", "provider=openai model=gpt-4o status=ok"): 2.0,
        ("toolloop_model_time_to_first_token_seconds_sum", "provider=openai model=gpt-4o"): 0.25,
        ("toolloop_model_tokens_total", "provider=openai model=gpt-4o direction=input"): 100,
        ("toolloop_model_tokens_total", "provider=openai model=gpt-4o direction=output"): 20,
        ("toolloop_model_token_details_total", "provider=openai model=gpt-4o kind=cached"): 60,
        ("toolloop_model_token_details_total", "provider=openai model=gpt-4o kind=cache_written"): 30,
        ("toolloop_model_token_details_total", "provider=openai model=gpt-4o kind=reasoning"): 15,
        ("toolloop_model_unknown_tokens_total", "provider=openai model=gpt-4o"): 1,
        ("toolloop_model_time_to_first_output_seconds_sum", "provider=openai model=gpt-4o"): 0.5,
        ("toolloop_unreadable_total", ""): 2,
        ("toolloop_rate_limited_total", "target=model name=gpt-4o reason=429"): 1,
        ("toolloop_retries_total", "target=model name=gpt-4o reason=429"): 1,
        ("toolloop_backoff_seconds_total", "target=model name=gpt-4o reason=429"): 0.4,
    }
    found = {
        (name, labels): value(
            sink, name, strategy="gathered", **dict(pair.split("=") for pair in labels.split())
        )
        for name, labels in expected
    }
    assert found == pytest.approx(expected)


def test_tool_that_a_quota_refused_counts_as_rate_limited(sink):
    calls = (ToolCall("1", "search", S, S, S, 2 * S, "error", "http_429"),)
    sink(record(rounds=(RoundRecord(0, 0, 2 * S, ModelCall("p", "m", 0, S), S, 2 * S, calls),)))
    labels = {"strategy": "gathered", "target": "tool", "name": "search", "reason": "429"}
    registry = CollectorRegistry(auto_describe=False)
    registry.register(sink)
    found = registry.get_sample_value("toolloop_rate_limited_total", {**labels, "testid": "t1"})
    assert found == 1


def test_gauges_show_now(sink):
    live = sink.live_calls("gathered", "search")
    live.running, live.queued = 3, 2
    sink.watch_limit("semaphore:4", parse_strategy("semaphore:4").build())
    sink.watch_limit("gathered", parse_strategy("gathered").build())
    sink.set_agents("Agent", 20)
    sink.set_strategy("cities", "gathered")
    sink(record())
    assert value(sink, "toolloop_tool_calls_in_flight", strategy="gathered", tool="search") == 3
    assert value(sink, "toolloop_tool_calls_queued", strategy="gathered", tool="search") == 2
    assert value(sink, "toolloop_concurrency_limit", strategy="semaphore:4") == 4
    assert value(sink, "toolloop_concurrency_limit", strategy="gathered") is None
    assert value(sink, "toolloop_agents", user_class="Agent") == 20
    who = {"provider": "openai", "model": "gpt-4o"}
    assert value(sink, "toolloop_quota_remaining", **who, resource="tokens") == 29000
    info = [line for line in exposition(sink).splitlines() if line.startswith("toolloop_run_info{")]
    assert len(info) == 1
    assert 'scenario="cities",strategy="gathered"' in info[0]
    sink.set_strategy("cities", None)
    assert "toolloop_run_info{" not in exposition(sink)


async def test_gauge_of_a_limit_that_adapts_moves(sink):
    strategy = parse_strategy("adaptive:2").build()
    sink.watch_limit("adaptive:2", strategy)
    seen = [value(sink, "toolloop_concurrency_limit", strategy="adaptive:2")]
    for refused in (False, True):
        slots = [await strategy.gate.enter(strategy.gate.slot()) for _ in range(2)]
        for slot in slots:
            slot.signal = "rejected" if refused else "ok"
            strategy.gate.leave(slot)
        seen.append(value(sink, "toolloop_concurrency_limit", strategy="adaptive:2"))
    assert seen == [2, 3, 1]


def exposition(sink: PrometheusSink) -> str:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(sink)
    return generate_latest(registry).decode()


def test_lag_is_observed(sink):
    sink.observe_lag(30_000_000)
    sink.observe_schedule_lag(2_000_000)
    assert value(sink, "toolloop_event_loop_lag_seconds_sum") == pytest.approx(0.03)
    assert value(sink, "toolloop_schedule_lag_seconds_bucket", le="0.0025") == 1


def test_tool_names_are_capped(sink):
    calls = tuple(ToolCall(str(i), f"tool{i}", 0, 0, 0, S) for i in range(60))
    round_ = RoundRecord(0, 0, S, ModelCall("p", "m", 0, 0), 0, S, calls)
    sink(record(rounds=(round_,)))
    labels = {"strategy": "gathered", "tool": OTHER}
    assert value(sink, "toolloop_tool_call_duration_seconds_count", **labels, status="ok") == 10
    # Duration and queue of a call share one look-up of its name.
    assert value(sink, "toolloop_label_overflow_total", label="tool") == 10


def test_names_that_a_model_made_up_are_no_labels(sink):
    calls = tuple(
        ToolCall(str(i), f"made_up_{i}", 0, 0, None, S, "error", "unknown_tool") for i in range(1000)
    )
    sink(record(rounds=(RoundRecord(0, 0, S, ModelCall("p", "m", 0, 0), 0, S, calls),)))
    assert "made_up" not in exposition(sink)
    labels = {"strategy": "gathered", "tool": UNKNOWN_TOOL}
    assert value(sink, "toolloop_tool_errors_total", **labels, error_type="unknown_tool") == 1000
    assert value(sink, "toolloop_label_overflow_total", label="tool") == 0


def test_strategies_and_models_are_capped_wherever_they_are_labels(sink):
    attempts = (Attempt(0, 1, 429), Attempt(2, 3, 200, rate_limits={"x-ratelimit-limit-requests": "5"}))
    for number in range(70):
        model = ModelCall("openai", f"model-{number}", 0, S, attempts=attempts, first_output_ns=1)
        rounds = (RoundRecord(0, 0, S, model),)
        sink(record(strategy=f"rate:{number}/s", model=f"model-{number}", rounds=rounds))
        sink.live_calls(f"rate:{number}/s", "search").running = 1
        sink.watch_limit(f"rate:{number}/s", parse_strategy("semaphore:4").build())
        sink.count_dropped_arrival(f"rate:{number}/s")
    text = exposition(sink)
    assert set(re.findall(r'strategy="([^"]*)"', text)) == {OTHER, *(f"rate:{n}/s" for n in range(50))}
    models = set(re.findall(r'(?:model|name)="([^"]*)"', text))
    assert models == {OTHER, *(f"model-{n}" for n in range(20))}
    assert value(sink, "toolloop_loop_duration_seconds_count", strategy=OTHER, status="ok") == 20
    assert value(sink, "toolloop_arrivals_dropped_total", strategy=OTHER) == 20
    assert value(sink, "toolloop_label_overflow_total", label="model") == 50


def test_series_stay_within_what_a_scrape_may_cost():
    from benchmarks.scrape import filled

    text = Exposition(filled(tools=50, strategies=6)).render()
    assert sum(not line.startswith(b"#") for line in text.splitlines()) <= MOST_SERIES


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({"x-ratelimit-limit-requests": "500"}, {("limit", "requests"): 500}),
        ({"anthropic-ratelimit-input-tokens-remaining": "12"}, {("remaining", "input_tokens"): 12}),
        ({"anthropic-ratelimit-tokens-reset": "2026-01-01T00:00:00Z"}, {}),
        ({"x-ratelimit-remaining-tokens": "many"}, {}),
        ({"x-ratelimit-limit-gpus": "3"}, {}),
        (
            {"x-ratelimit-limit-requests-day": "14400", "x-ratelimit-limit-requests-minute": "30"},
            {("limit", "requests_day"): 14400, ("limit", "requests"): 30},
        ),
        (
            {"ratelimit-policy": "100;w=60, 1000;w=3600"},
            {("limit", "requests"): 100, ("limit", "requests_hour"): 1000},
        ),
    ],
)
def test_quotas_are_read_from_either_providers_headers(headers, found):
    sink = PrometheusSink()
    asked = ModelCall("openai", "gpt-4o", 0, 1, attempts=(Attempt(0, 1, 200, rate_limits=headers),))
    sink(record(rounds=(RoundRecord(0, 0, 1, asked),)))
    gauges = {"limit": metrics.QUOTA_LIMIT, "remaining": metrics.QUOTA_REMAINING}
    shown = {
        (word, labels[-1]): value for word, gauge in gauges.items() for labels, value in sink.values(gauge)
    }
    assert shown == found


def test_table_is_well_formed():
    names = [metric.name for metric in metrics.TABLE]
    assert len(names) == len(set(names)) == 49
    for metric in metrics.TABLE:
        assert metric.name.startswith("toolloop_")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert bool(metric.buckets) == (metric.kind == "histogram")
        assert metric.help.endswith(".")
    assert metrics.TOOL_BUCKETS[3:6] == (0.01, 0.02, 0.04)
    assert metrics.TOOL_BUCKETS[-1] == pytest.approx(81.92)
    assert metrics.ROUND_BUCKETS[-1] == pytest.approx(3276.8)
    assert metrics.MODEL_BUCKETS[-1] == pytest.approx(655.36)
    assert len(metrics.MODEL_BUCKETS) == len(metrics.TOOL_BUCKETS)
    for metric in metrics.TABLE:
        if metric.name.startswith("toolloop_model_") and metric.buckets:
            assert metric.buckets == metrics.MODEL_BUCKETS


CALLS = ((0.0, 30.0), (10.0, 120.0))


def samples(families) -> dict[tuple, float]:
    return {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}


@pytest.fixture
def filled() -> PrometheusSink:
    filled = PrometheusSink(labels={"testid": 'a "test"\\\n'})
    for number in range(3):
        filled(loop(number, model=100.0 * (number + 1), calls=CALLS, strategy=f"semaphore:{number + 1}"))
    filled(loop(9, calls=CALLS, status="error", tool_status="timeout"))
    filled.live_calls("gathered", "search").queued = 3
    filled.set_agents("Agent", 7)
    filled.set_strategy("cities", "gathered")
    filled.observe_lag(4_000_000)
    return filled


@pytest.fixture
def registry(filled) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(filled)
    return registry


def test_exposition_says_what_prometheus_client_says(filled, registry):
    ours = samples(parse_text(Exposition(filled).render().decode()))
    theirs = samples(parse_text(generate_latest(registry).decode()))
    assert len(ours) > 500
    assert ours == theirs


def test_exposition_in_openmetrics_says_what_prometheus_client_says(filled, registry):
    ours = samples(parse_openmetrics(Exposition(filled).render(openmetrics=True).decode()))
    theirs = samples(parse_openmetrics(openmetrics.generate_latest(registry).decode()))
    assert len(ours) > 500
    assert ours == theirs


def test_scrape_has_the_new_values(filled):
    exposition = Exposition(filled)
    first = samples(parse_text(exposition.render().decode()))
    filled(loop(20, model=50.0, calls=CALLS, strategy="semaphore:1"))
    second = samples(parse_text(exposition.render().decode()))
    key = (
        "toolloop_loop_duration_seconds_count",
        ("status", "ok"),
        ("strategy", "semaphore:1"),
        ("testid", 'a "test"\\\n'),
    )
    assert (first[key], second[key]) == (1.0, 2.0)


def exemplars(sink: PrometheusSink, name: str) -> list[tuple[str, str, float]]:
    """(le, trace, value) of each exemplar of a histogram's buckets."""
    families = parse_openmetrics(Exposition(sink).render(openmetrics=True).decode())
    return [
        (s.labels["le"], s.exemplar.labels["trace_id"], s.exemplar.value)
        for family in families
        for s in family.samples
        if s.name == f"{name}_bucket" and s.exemplar is not None
    ]


def test_exemplar_of_a_bucket_is_its_first_loop_since_the_last_scrape():
    sink = PrometheusSink()
    for number, model in enumerate((300.0, 310.0, 5000.0)):
        sink(replace(loop(0, model=model), id=f"loop-{number}"))
    name = "toolloop_loop_duration_seconds"
    assert exemplars(sink, name) == [("0.4", "loop-0", 0.3), ("6.4", "loop-2", 5.0)]
    sink(replace(loop(0, model=320.0), id="loop-3"))
    sink(replace(loop(0, model=330.0), id="loop-4"))
    assert exemplars(sink, name) == [("0.4", "loop-3", 0.32), ("6.4", "loop-2", 5.0)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("toolloop_loop_duration_seconds", 0.33),
        ("toolloop_round_duration_seconds", 0.23),
        ("toolloop_model_request_duration_seconds", 0.1),
        ("toolloop_tool_call_duration_seconds", 0.12),
    ],
)
def test_exemplars_of_rounds_requests_and_calls_lead_to_their_loop(name, value):
    sink = PrometheusSink()
    sink(replace(loop(0, calls=CALLS), id="7-1"))
    found = exemplars(sink, name)
    assert {trace for _, trace, _ in found} == {"7-1"}
    assert value in [pytest.approx(v) for _, _, v in found]


def test_exemplars_are_in_openmetrics_alone(filled):
    assert b"trace_id" not in Exposition(filled).render()


def test_tool_is_counted_from_zero():
    """What a counter holds when it is first scraped, no rate ever sees."""
    sink = PrometheusSink()
    sink.live_calls("gathered", "search")
    found = samples(parse_text(Exposition(sink).render().decode()))
    labels = (("status", "ok"), ("strategy", "gathered"))
    assert found["toolloop_tool_call_duration_seconds_count", *labels, ("tool", "search")] == 0.0
    assert found["toolloop_loop_duration_seconds_count", *labels] == 0.0
    assert found["toolloop_tool_phase_work_seconds_total", ("strategy", "gathered")] == 0.0


def test_records_that_a_sink_fails_on_are_counted_by_sink():
    def full_disk(record):
        raise OSError("no space left")

    sink = PrometheusSink()
    recorder = Recorder([full_disk, sink])
    recorder.emit(loop(0))
    recorder.emit(loop(1))
    assert recorder.flush(timeout=60)
    found = samples(parse_text(Exposition(sink).render().decode()))
    assert found["toolloop_records_dropped_total", ("sink", "full_disk")] == 2.0
    assert found["toolloop_records_dropped_total", ("sink", "PrometheusSink")] == 0.0


# MCP servers


def test_parts_of_a_call_of_an_mcp_server_sum_to_its_duration(sink):
    told = served(0, session=50, client=5, remote=100, parsing=2, told=90)
    untold = served(0, client=10, remote=200, parsing=3, new_connection=True)
    sink(asked_by_nobody([told, untold]))

    def parts(suffix: str) -> dict[str, float | None]:
        name = f"toolloop_mcp_call_part_seconds_{suffix}"
        return {part: value(sink, name, strategy="gathered", server="docs", part=part) for part in PARTS}

    assert parts("count") == dict.fromkeys(PARTS, 2) | dict.fromkeys(
        ("server", "network", "server_and_network"), 1
    )
    assert parts("sum") == pytest.approx(
        {
            "session_wait": 0.05,
            "client_wait": 0.015,
            "server": 0.09,
            "network": 0.01,
            "server_and_network": 0.2,
            "parsing": 0.005,
        }
    )
    name = "toolloop_mcp_call_duration_seconds_sum"
    whole = value(sink, name, strategy="gathered", server="docs", status="ok")
    assert sum(parts("sum").values()) == pytest.approx(whole)
    name = "toolloop_mcp_new_connections_total"
    assert value(sink, name, strategy="gathered", server="docs") == 1


def test_failures_of_an_mcp_server_are_counted_by_what_they_are(sink):
    sink(
        asked_by_nobody(
            [
                served(0, status="error", error_type="tool_error"),
                served(0, status="error", error_type="rpc_-32602"),
                served(0, status="error", error_type="rpc_-32602", server="wiki"),
                replace(served(0, status="cancelled", error_type="cancelled"), started_ns=None),
            ]
        )
    )
    found = {
        (server, error): value(
            sink, "toolloop_mcp_errors_total", strategy="gathered", server=server, error_type=error
        )
        for server in ("docs", "wiki")
        for error in ("tool_error", "rpc_-32602", "cancelled")
    }
    assert {key: count for key, count in found.items() if count} == {
        ("docs", "tool_error"): 1,
        ("docs", "rpc_-32602"): 1,
        ("docs", "cancelled"): 1,
        ("wiki", "rpc_-32602"): 1,
    }
    name = "toolloop_mcp_call_duration_seconds_count"
    assert value(sink, name, strategy="gathered", server="docs", status="cancelled") is None


def test_servers_beyond_the_most_share_a_label(sink):
    sink(asked_by_nobody([*(served(0, server=f"server-{number}") for number in range(MAX_SERVERS + 5))]))
    name = "toolloop_mcp_call_duration_seconds_count"
    assert value(sink, name, strategy="gathered", server=OTHER, status="ok") == 5
    assert value(sink, name, strategy="gathered", server=f"server-{MAX_SERVERS}", status="ok") is None
    assert value(sink, "toolloop_label_overflow_total", label="server") == 5


def test_no_model_request_is_counted_where_no_model_was_asked(sink):
    sink(asked_by_nobody([served(0)]))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(sink)
    counted = {
        sample.name
        for family in registry.collect()
        for sample in family.samples
        if sample.name.startswith("toolloop_model") and not sample.name.endswith("_created")
    }
    assert counted == set()
    name = "toolloop_round_phase_seconds_total"
    assert value(sink, name, strategy="gathered", phase="model") == 0
    assert value(sink, name, strategy="gathered", phase="tools") == pytest.approx(0.102)


def test_calls_of_other_tools_leave_no_trace_of_servers(sink):
    sink(record())
    text = Exposition(sink).render().decode()
    assert not re.search(r"^toolloop_mcp_\w+\{", text, re.MULTILINE)
