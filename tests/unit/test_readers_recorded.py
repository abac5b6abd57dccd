"""Each reader of records, on a loop of a recording: what it says of calls whose times are not all known."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from profiler import metrics
from profiler.anatomy import eagerness, loop_phases, phases, remote_parts, tool_phase
from profiler.exporters.opentelemetry import OpenTelemetrySink
from profiler.exporters.perfetto import write_trace
from profiler.exporters.prometheus import MAX_PROVIDERS, OTHER, PrometheusSink
from profiler.records import RECORDED, LoopRecord, ModelCall, RemoteCall, encode
from profiler.report.html.still import still
from profiler.report.html.waterfalls import loop as waterfall
from profiler.report.running import RunningTotals
from profiler.report.timeline import causes, render_timeline
from profiler.report.unseen import Unseen
from profiler.rundir import Anchor, Recording, RunDirectory, Trial, recorded_run
from profiler.statistics.servers import ServerCalls
from profiler.statistics.summary import summarise
from profiler.statistics.table import NONE, tabulate
from tests.unit.recorded_data import MS, recorded_loop
from tests.unit.statistics_data import loop, run

WALL = 1_700_000_000_000_000_000


def call_of(record: LoopRecord, name: str):
    return next(call for call in record.tool_calls if call.name == name)


# What a record says


def test_call_says_why_it_has_no_latency():
    record = recorded_loop()
    said = {call.name: call.untimed for call in record.tool_calls}
    assert said == {
        "exact": None,
        "derived": None,
        "bound": "upper_bound",
        "open": "never_ended",
        "refused": "never_started",
        "waited": "wait",
    }
    assert [call.latency_ns for call in record.rounds[1].tool_calls] == [None, 40 * MS]
    assert {call.waited_ns for call in record.tool_calls} == {None}


def test_model_call_without_a_start_has_no_latency():
    model = ModelCall("p", "m", 5, 9)
    assert model.latency_ns == 4
    assert replace(model, unknown=("first_token_ns",)).latency_ns == 4
    assert replace(model, unknown=("started_ns",)).latency_ns is None


def test_times_at_an_mcp_server_are_unknown_of_a_call_without_an_end():
    remote = RemoteCall("docs", "http", posted_ns=802 * MS)
    call = replace(call_of(recorded_loop(), "open"), remote=remote)
    assert (call.client_wait_ns, call.remote_ns, call.parsing_ns) == (None, None, None)
    assert remote_parts(call) == {}


# Where the time went


def test_tool_phase_of_a_recording_lasts_from_the_first_start_to_the_last_end_that_were_seen():
    first, second, third = map(tool_phase, recorded_loop().rounds)
    assert first is not None
    assert second is not None
    assert third is not None
    assert (first.wall_ns, first.work_ns, first.upper_bound) == (200 * MS, 250 * MS, False)
    assert (second.wall_ns, second.work_ns, second.upper_bound) == (200 * MS, 240 * MS, True)
    # Neither the call that never ended nor the refused one is in it.
    assert (third.wall_ns, third.work_ns, third.upper_bound) == (20 * MS, 20 * MS, False)


def test_round_ends_with_what_was_seen_of_it_and_with_its_loop():
    assert [round_.ended_ns for round_ in recorded_loop().rounds] == [320 * MS, 700 * MS, 850 * MS]
    assert recorded_loop(ended_ns=830 * MS).rounds[-1].ended_ns == 830 * MS


def test_gaps_of_a_recording_are_nobodys():
    record = recorded_loop()
    spent = {name: ns // MS for name, ns in phases(record.rounds[0]).items() if ns}
    assert spent == {"model": 100, "tools": 200, "unaccounted": 20}
    whole = {name: ns // MS for name, ns in loop_phases(record).items() if ns}
    assert whole == {"model": 300, "tools": 420, "unaccounted": 280}


def test_gaps_of_a_recording_are_nobodys_where_rounds_overlap():
    record = recorded_loop()
    first, second, _ = record.rounds
    early = replace(second, started_ns=310 * MS, model=replace(second.model, started_ns=310 * MS))
    whole = loop_phases(replace(record, rounds=(first, early)))
    assert (whole["parse"], whole["queue"], whole["collect"]) == (0, 0, 0)
    assert sum(whole.values()) == record.wall_ns


def test_how_eager_calls_were_is_unknown_where_their_starts_are():
    record = recorded_loop()
    for round_ in record.rounds:  # the exact calls of this recording do not say when they were ready
        assert eagerness(replace(round_, model=replace(round_.model, streamed=True))) is None
    calls = tuple(replace(call, derived=()) for call in record.rounds[0].tool_calls)
    streamed = replace(record.rounds[0].model, streamed=True, ended_ns=200 * MS)
    known = eagerness(replace(record.rounds[0], model=streamed, tool_calls=calls))
    assert known is not None
    assert known.overlapped_ns == 80 * MS


def test_calls_that_a_coarse_clock_gives_no_length_ran_at_least_alone():
    record = recorded_loop()
    instant = replace(record.rounds[2].tool_calls[2], ended_ns=810 * MS)
    found = tool_phase(replace(record.rounds[2], tool_calls=(instant,)))
    assert found is not None
    assert (found.peak_concurrency, found.work_ns) == (1, 0)


# Prometheus


def series(sink: PrometheusSink, metric: metrics.Metric) -> dict[tuple[str, ...], float]:
    """Labels → value; of a histogram the number of observations."""
    if metric.kind == "histogram":
        return {labels: sum(child.counts) for labels, child in sink.children(metric)}
    return dict(sink.values(metric))


def test_prometheus_counts_bounds_beside_latencies():
    sink = PrometheusSink()
    sink(recorded_loop())
    of = RECORDED
    assert series(sink, metrics.TOOL_CALL_DURATION) == {(of, "exact", "ok"): 3, (of, "derived", "ok"): 1}
    untimed = {labels: n for labels, n in series(sink, metrics.TOOL_CALLS_UNTIMED).items() if n}
    assert untimed == {
        (of, "bound", "upper_bound"): 1,
        (of, "open", "never_ended"): 1,
        (of, "refused", "never_started"): 1,
        (of, "waited", "wait"): 1,
    }
    assert series(sink, metrics.TOOL_CALLS_UNTIMED)[of, "exact", "upper_bound"] == 0  # seen from zero on
    assert series(sink, metrics.TOOL_CALL_QUEUE) == {}
    assert series(sink, metrics.ROUND_UPPER_BOUNDS) == {(of,): 1}
    assert series(sink, metrics.TOOL_PHASE_WORK) == {(of,): pytest.approx(0.27)}
    assert series(sink, metrics.TOOL_PHASE_WALL) == {(of,): pytest.approx(0.22)}
    assert series(sink, metrics.ROUND_PEAK_CONCURRENCY) == {(of,): 2}
    assert series(sink, metrics.ROUND_FANOUT) == {(of,): 3}
    assert series(sink, metrics.RECORDED_LOOPS) == {("otel",): 1}


def test_prometheus_shows_models_that_a_recording_does_not_name_and_tries_without_times():
    sink = PrometheusSink()
    sink(recorded_loop())
    assert series(sink, metrics.MODEL_REQUEST_DURATION) == {
        (RECORDED, "openai", "m", "ok"): 1,
        (RECORDED, "unknown", "unknown", "ok"): 2,
    }
    assert series(sink, metrics.RETRIES) == {(RECORDED, "model", "unknown", "unknown"): 2}
    assert series(sink, metrics.BACKOFF) == {}


def test_prometheus_counts_a_loop_inside_a_call_not_beside_it():
    sink = PrometheusSink()
    sink(recorded_loop(parent="loop-0"))
    assert series(sink, metrics.RECORDED_LOOPS) == {}
    assert series(sink, metrics.ROUND_FANOUT) == {(RECORDED,): 3}


def test_prometheus_bounds_what_spans_of_strangers_may_name():
    sink = PrometheusSink()
    for number in range(MAX_PROVIDERS + 5):
        record = recorded_loop(source=f"s{number}")
        model = replace(record.rounds[0].model, provider=f"p{number}")
        sink(replace(record, rounds=(replace(record.rounds[0], model=model),)))
    assert {labels[1] for labels in series(sink, metrics.MODEL_REQUEST_DURATION)} == {
        *(f"p{number}" for number in range(MAX_PROVIDERS)),
        OTHER,
    }
    overflow = series(sink, metrics.LABEL_OVERFLOW)
    assert (overflow["provider",], overflow["source",]) == (5, 5)


def test_prometheus_observes_no_request_whose_times_are_unknown():
    sink, record = PrometheusSink(), recorded_loop()
    model = replace(record.rounds[0].model, unknown=("started_ns",))
    sink(replace(record, rounds=(replace(record.rounds[0], model=model),)))
    assert series(sink, metrics.MODEL_REQUEST_DURATION) == {}
    assert series(sink, metrics.MODEL_TOKENS)[RECORDED, "openai", "m", "input"] == 10


# OpenTelemetry


class Exported:
    def __init__(self, *records: LoopRecord) -> None:
        exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        # Another instrumentation's span, of this process and now: of no request of the recording.
        sink = OpenTelemetrySink(provider, MeterProvider([self.reader]), anchor=Anchor(WALL, 0))
        other = provider.get_tracer("other").start_span(
            "chat m", attributes={"gen_ai.operation.name": "chat"}
        )
        other.end()
        for record in records:
            sink(record)
        sink.close()
        assert sink.dropped == 0
        self.spans = [
            span for span in exporter.get_finished_spans() if span.instrumentation_scope.name != "other"
        ]

    def named(self, name: str):
        (found,) = [span for span in self.spans if span.name == name]
        return found

    def points(self, name: str):
        return [
            point
            for resource in self.reader.get_metrics_data().resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


def test_spans_of_a_recording_have_its_times_and_say_which_were_not_seen():
    found = Exported(recorded_loop())
    whole = found.named("invoke_agent")
    assert (whole.start_time - WALL, whole.end_time - WALL) == (0, 1000 * MS)
    assert (whole.attributes["toolloop.source"], whole.attributes["toolloop.resolution"]) == ("otel", 0.001)
    bound = found.named("execute_tool bound")
    assert (bound.start_time - WALL, bound.end_time - WALL) == (500 * MS, 700 * MS)
    assert bound.attributes["toolloop.upper_bound"] is True
    assert bound.attributes["toolloop.derived"] == ("started",)
    assert bound.attributes["toolloop.unknown"] == ("queued",)
    assert "toolloop.queue" not in bound.attributes
    assert found.named("execute_tool open").attributes["toolloop.ended"] is False
    assert found.named("execute_tool refused").attributes["toolloop.started"] is False
    assert "toolloop.ended" not in found.named("execute_tool derived").attributes


def test_recording_is_exported_once_whatever_spans_are_made_here_meanwhile():
    chats = [span for span in Exported(recorded_loop()).spans if span.name.startswith("chat")]
    assert [(span.name, span.attributes.get("gen_ai.request.model")) for span in chats] == [
        ("chat m", "m"),
        ("chat", None),
        ("chat", None),
    ]
    assert "gen_ai.provider.name" not in chats[1].attributes
    assert [span.attributes.get("http.request.resend_count") for span in chats] == [None, 2, None]


def test_loop_inside_a_call_of_a_recording_is_a_child_of_the_call_whichever_came_first():
    parent = recorded_loop()
    first = parent.rounds[0]
    calls = (replace(first.tool_calls[0], loops=("child",)), *first.tool_calls[1:])
    parent = replace(parent, rounds=(replace(first, tool_calls=calls), *parent.rounds[1:]))
    child = replace(recorded_loop(id="child", parent="loop-1"), name="helper", rounds=())
    for order in ((parent, child), (child, parent)):
        found = Exported(*order)
        spawned = next(span for span in found.spans if span.name == "execute_tool exact")
        assert found.named("invoke_agent helper").parent.span_id == spawned.context.span_id


def test_loop_inside_a_recorded_one_is_in_the_round_that_ran_then_where_the_call_is_not_known():
    child = recorded_loop(id="child", parent="loop-1")
    child = replace(child, name="helper", started_ns=450 * MS, rounds=())
    found = Exported(recorded_loop(), child)
    second = next(span for span in found.spans if span.attributes.get("toolloop.round.index") == 1)
    assert found.named("invoke_agent helper").parent.span_id == second.context.span_id


def test_opentelemetry_measures_no_bounds():
    found = Exported(recorded_loop())
    durations = found.points("gen_ai.execute_tool.duration")
    counted = {point.attributes["gen_ai.tool.name"]: point.count for point in durations}
    assert counted == {"exact": 3, "derived": 1}
    untimed = found.points("toolloop.tool_calls_untimed")
    assert {(p.attributes["tool"], p.attributes["reason"]): p.value for p in untimed} == {
        ("bound", "upper_bound"): 1,
        ("open", "never_ended"): 1,
        ("refused", "never_started"): 1,
        ("waited", "wait"): 1,
    }
    assert found.points("toolloop.tool_call_queue") == []


# Perfetto


def traced(tmp_path, *records: LoopRecord, recording: Recording | None = None):
    source: list[LoopRecord] | RunDirectory = list(records)
    if recording is not None:
        source = RunDirectory.create(tmp_path, recorded_run(recording, Anchor(WALL, 0), "spans"))
        source.records_path.write_bytes(b"".join(encode(record) + b"\n" for record in records))
    trace = write_trace(source, tmp_path / "trace.json")
    return trace, json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_trace_marks_what_a_recording_does_not_know(tmp_path):
    trace, events = traced(tmp_path, recorded_loop())
    slices = [event for event in events if event["ph"] == "X"]
    calls = {one["name"]: one for one in slices if one["cat"] == "call" and "flow_in" in one}
    marked = {"≤ bound", "open (no end seen)", "refused (never started)"}
    assert calls.keys() == {"exact", "derived", "waited", *marked}
    assert calls["≤ bound"]["args"]["at_most_ms"] == 200
    assert calls["≤ bound"]["args"]["derived"] == "started"
    assert calls["open (no end seen)"]["args"]["unknown"] == "queued, ended"
    names = {one["name"] for one in slices}
    assert {"≤ tool phase", "tool phase", "waiting or running", "no end seen", "running"} <= names
    assert "waiting for another call" in names
    assert names.isdisjoint({"queued", "queue", "parse", "collect"})
    assert [one["args"].get("resends") for one in slices if one["cat"] == "model"] == [None, 2, None]
    (whole,) = [one for one in slices if one["cat"] == "loop"]
    assert (whole["args"]["source"], whole["args"]["resolution_ms"]) == ("otel", 1)
    assert len(trace.notes) == 3


def test_trace_counts_no_open_call_as_running_and_no_unknown_wait_as_queued(tmp_path):
    _, events = traced(tmp_path, recorded_loop())
    counters = [event for event in events if event["ph"] == "C" and event["name"] == "calls"]
    queued = [event["args"]["queued"] for event in counters if "queued" in event["args"]]
    running = {event["ts"]: event["args"]["in flight"] for event in counters if "in flight" in event["args"]}
    assert set(queued) == {0}
    assert (running[810_000], running[830_000]) == (1, 0)


def test_trace_says_when_times_are_of_several_clocks(tmp_path):
    trace, events = traced(tmp_path, recorded_loop(), recording=Recording("import", clocks=3))
    assert "the times are of 3 clocks, which may differ" in trace.notes
    (name,) = [
        e["args"]["name"] for e in events if e["ph"] == "M" and e["pid"] == 1 and e["name"] == "process_name"
    ]
    assert name.endswith("3 clocks, which may differ")


def test_trace_of_our_own_loops_has_no_notes(tmp_path):
    trace, _ = traced(tmp_path, loop(0, calls=[(0, 50)]))
    assert trace.notes == ()


# Statistics


def test_table_holds_latencies_and_counts_bounds():
    table = tabulate([recorded_loop()])
    names = [table.tools[code] for code in table.call_tool]
    assert dict(zip(names, table.call_bound.tolist(), strict=True))["bound"] == 1
    assert table.call_bound.sum() == 1
    assert sorted(table.duration.tolist()) == sorted([200 * MS, 50 * MS, 40 * MS, 10 * MS, *[NONE] * 4])
    assert set(table.queue.tolist()) == {NONE}
    assert (table.work[0], table.wall[0], table.critical[0]) == (270 * MS, 220 * MS, 210 * MS)
    assert table.tool_wall.tolist() == [200 * MS, NONE, 20 * MS]
    assert table.attempts[0] == 5


def test_figures_of_a_tool_leave_bounds_out_of_its_percentiles():
    trial = Trial(0, 0, RECORDED, 1, 0, 2000 * MS, 2000 * MS)
    (made,) = summarise(run([trial]), [replace(recorded_loop(), trial=0)]).strategies
    assert (made.tools["bound"].calls, made.tools["bound"].upper_bounds) == (1, 1)
    assert made.tools["bound"].seconds.p50.value is None
    assert made.tools["exact"].seconds.p50.value == pytest.approx(0.04)
    assert made.tools["exact"].queue_seconds.p95.value is None


def test_servers_have_no_durations_of_bounds():
    record = recorded_loop()
    calls = tuple(replace(call, remote=RemoteCall("docs", "http")) for call in record.rounds[1].tool_calls)
    (found,) = ServerCalls.of(
        [replace(record, rounds=(replace(record.rounds[1], tool_calls=calls),))]
    ).figures()
    assert found.calls.calls == 2
    assert found.calls.seconds["duration"].p50.value == pytest.approx(0.04)


def test_running_totals_have_no_bounds_and_no_unknown_waits(tmp_path):
    totals = RunningTotals(tmp_path)
    totals.add(recorded_loop())
    tools = {one["name"]: one for one in totals.data()["tools"]}
    assert (tools["bound"]["calls"], tools["bound"]["p50"], tools["bound"]["queue_p95"]) == (1, None, None)
    assert tools["derived"]["p50"] == pytest.approx(0.05)


# In words


def test_causes_blame_nobody_for_what_a_recording_does_not_tell():
    found = {cause.kind: (cause.ns // MS, cause.words, cause.remedy) for cause in causes(recorded_loop())}
    assert found == {
        "tools": (420, "tools ran, or waited to (longest: exact, 200 ms)", ""),
        "model": (300, "the model (3 requests, slowest 100 ms)", ""),
        "rest": (280, "not explained by the recording", ""),
    }


def test_timeline_marks_bounds_and_open_calls():
    text = render_timeline(recorded_loop(), width=100)
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ")}
    assert rows["bound"].endswith("≤ 200 ms")
    assert "▄" in rows["bound"]
    assert rows["open"].endswith("no end seen")
    assert rows["refused"].endswith("cancelled, never started")
    assert "░" not in text  # nothing is known to have been queued
    assert "6 tool calls in 2 of 3 rounds: 270 ms of work in 220 ms (speed-up 1.23" in text
    assert "1 round with calls of which only an upper bound is known" in text


def test_what_a_recording_lacks_is_said_without_advice_to_watch_more():
    said = Unseen.of([recorded_loop()]).sentences()
    assert said == [
        "of 1 call only an upper bound is known (≤), any wait and approval inside: no start was recorded",
        "of 1 call no end was recorded, and so no duration",
        "1 call never started",
        "1 call only waited for what other calls had begun: they are in no latency",
        "1 call was asked for, and nothing more was recorded",
        "2 calls were recorded without the request that asked for them",
    ]


def test_waterfall_has_no_queue_and_says_what_is_not_recorded():
    rows = {row["label"]: row for row in waterfall(recorded_loop())["rows"]}
    assert rows["≤ bound"]["bound"] == "≤ "
    assert [span["kind"] for span in rows["≤ bound"]["spans"]] == ["upper_bound"]
    assert [span["kind"] for span in rows["open (no end seen)"]["spans"]] == ["never_ended"]
    assert rows["refused"]["spans"] == []
    assert rows["open (no end seen)"]["took"] is None
    detail = dict(rows["≤ bound"]["detail"])
    assert (detail["queued"], detail["waited"]) == ("not recorded", "not recorded")
    assert detail["ran"] == "at most 200 ms, with any wait before it"
    assert detail["worked out from other times"] == "started"
    assert dict(rows["open (no end seen)"]["detail"])["not recorded"] == "ended"
    assert dict(rows["model 2"]["detail"])["sent again"] == "2 times, when is not recorded"


def test_notebook_shows_bounds_and_open_calls():
    text = re.sub(r"<[^>]+>", " ", still([recorded_loop()]))
    assert "≤ 200 ms" in text
    assert "at most so long" in text
    assert "no end seen" in text
    assert "queued" not in text
