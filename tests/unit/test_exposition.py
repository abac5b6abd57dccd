"""The text of a scrape: what prometheus-client would have written, and exemplars that lead to records."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from profiler.exporters.prometheus import Exposition, PrometheusSink
from profiler.loop.recorder import Recorder
from tests.unit.statistics_data import loop

CALLS = ((0.0, 30.0), (10.0, 120.0))


def samples(families) -> dict[tuple, float]:
    return {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}


@pytest.fixture
def sink() -> PrometheusSink:
    sink = PrometheusSink(labels={"testid": 'a "test"\\\n'})
    for number in range(3):
        sink(loop(number, model=100.0 * (number + 1), calls=CALLS, strategy=f"semaphore:{number + 1}"))
    sink(loop(9, calls=CALLS, status="error", tool_status="timeout"))
    sink.live_calls("gathered", "search").queued = 3
    sink.set_agents("Agent", 7)
    sink.set_strategy("cities", "gathered")
    sink.observe_lag(4_000_000)
    return sink


@pytest.fixture
def registry(sink) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(sink)
    return registry


def test_the_text_says_what_prometheus_client_says(sink, registry):
    ours = samples(parse_text(Exposition(sink).render().decode()))
    theirs = samples(parse_text(generate_latest(registry).decode()))
    assert len(ours) > 500
    assert ours == theirs


def test_openmetrics_says_what_prometheus_client_says(sink, registry):
    ours = samples(parse_openmetrics(Exposition(sink).render(openmetrics=True).decode()))
    theirs = samples(parse_openmetrics(openmetrics.generate_latest(registry).decode()))
    assert len(ours) > 500
    assert ours == theirs


def test_a_second_scrape_has_the_new_values(sink):
    exposition = Exposition(sink)
    first = samples(parse_text(exposition.render().decode()))
    sink(loop(20, model=50.0, calls=CALLS, strategy="semaphore:1"))
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


def test_each_bucket_has_the_first_loop_since_the_last_scrape_as_its_exemplar():
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
def test_loops_rounds_requests_and_calls_lead_to_their_loop(name, value):
    sink = PrometheusSink()
    sink(replace(loop(0, calls=CALLS), id="7-1"))
    found = exemplars(sink, name)
    assert {trace for _, trace, _ in found} == {"7-1"}
    assert value in [pytest.approx(v) for _, _, v in found]


def test_exemplars_are_in_openmetrics_alone(sink):
    assert b"trace_id" not in Exposition(sink).render()


def test_a_tool_is_counted_from_zero():
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
    found = samples(parse_text(Exposition(sink).render().decode()))
    assert found["toolloop_records_dropped_total", ("sink", "full_disk")] == 2.0
    assert found["toolloop_records_dropped_total", ("sink", "PrometheusSink")] == 0.0
