"""The OpenTelemetry sink: spans, their parents, times and attributes; metrics by value."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import time
from dataclasses import replace

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from profiler import metrics, tool
from profiler.errors import UsageError
from profiler.exporters import opentelemetry as sink_module
from profiler.exporters.opentelemetry import OpenTelemetrySink
from profiler.exporters.opentelemetry_metrics import MAX_NAMES, name_of
from profiler.loop.loop import ToolLoop
from profiler.records import (
    Attempt,
    LoopRecord,
    ModelCall,
    RemoteCall,
    RoundRecord,
    ServerToolCall,
    ToolCall,
)
from profiler.rundir import Anchor
from profiler.testing import ScriptedModel, call, run_virtual
from tests.unit.statistics_data import asked_by_nobody, served

MS = 1_000_000
WALL = 1_700_000_000_000_000_000
"""Wall-clock time of the records' time 0."""


class Out:
    """A sink with providers that keep what they get."""

    def __init__(self, **provider_options):
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(**provider_options)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.sink = OpenTelemetrySink(
            self.provider, MeterProvider([self.reader]), anchor=Anchor(unix_ns=WALL, monotonic_ns=0)
        )

    def spans(self):
        self.sink.close()
        assert self.sink.dropped == 0
        last_first = reversed(self.exporter.get_finished_spans())  # a parent ends after its children
        return sorted(last_first, key=lambda span: (span.start_time, -span.end_time))

    def one(self, name):
        (found,) = [span for span in self.spans() if span.name == name]
        return found

    def points(self):
        """{metric: {attributes: (count, sum) of a histogram, or the value}}"""
        self.sink.close()
        data = self.reader.get_metrics_data()
        found = {}
        for resource in data.resource_metrics if data else ():
            for metric in resource.scope_metrics[0].metrics:
                found[metric.name] = {
                    tuple(sorted(point.attributes.items())): (
                        (point.count, pytest.approx(point.sum)) if hasattr(point, "count") else point.value
                    )
                    for point in metric.data.data_points
                }
        return found


@pytest.fixture
def out():
    return Out()


def a_call(name, queued, started, ended, **other):
    return ToolCall(
        f"id_{name}_{ended}",
        name,
        queued * MS,
        queued * MS,
        None if started is None else started * MS,
        ended * MS,
        **other,
    )


def a_loop(**changes):
    """0 to 1000 ms: a request tried twice, three calls through semaphore:2, an answer."""
    first = ModelCall(
        provider="openai",
        model="gpt-4o",
        started_ns=0,
        ended_ns=300 * MS,
        streamed=True,
        first_token_ns=240 * MS,
        finish_reason="tool_calls",
        request_id="req_1",
        input_tokens=10,
        output_tokens=20,
        attempts=(
            Attempt(10 * MS, 50 * MS, status=429, request_id="req_0", retry_after_ns=100 * MS),
            Attempt(150 * MS, 300 * MS, status=200, request_id="req_1"),
        ),
    )
    calls = (
        a_call("search", 300, 300, 400),
        a_call("fetch", 300, 300, 500, thread_wait_ns=3 * MS, blocking_ns=7 * MS),
        a_call("search", 300, 400, 600, status="timeout", error_type="timeout"),
    )
    second = ModelCall("openai", "gpt-4o", 600 * MS, 1000 * MS, finish_reason="stop", input_tokens=30)
    rounds = (
        RoundRecord(0, 0, 600 * MS, first, 300 * MS, 600 * MS, calls, shortfall="limiter"),
        RoundRecord(1, 600 * MS, 1000 * MS, second),
    )
    loop = LoopRecord(
        id="p-1",
        strategy="semaphore:2",
        provider="openai",
        model="gpt-4o",
        started_ns=0,
        ended_ns=1000 * MS,
        status="ok",
        rounds=rounds,
        name="support",
        agent="7",
        number=42,
        trial=3,
        intended_ns=-20 * MS,
    )
    return replace(loop, **changes)


def tree(spans):
    """[(names from the root, start ms, end ms)]"""
    by_id = {span.context.span_id: span for span in spans}

    def path(span):
        above = by_id.get(span.parent.span_id) if span.parent else None
        return (path(above) if above else []) + [span.name]

    return [(path(s), (s.start_time - WALL) // MS, (s.end_time - WALL) // MS) for s in spans]


def test_loop_becomes_spans(out):
    out.sink(a_loop())
    spans = out.spans()
    loop, round_0, round_1 = "invoke_agent support", "toolloop.round", "toolloop.round"
    assert tree(spans) == [
        ([loop], 0, 1000),
        ([loop, round_0], 0, 600),
        ([loop, round_0, "chat gpt-4o"], 0, 300),
        ([loop, round_0, "execute_tool fetch"], 300, 500),
        ([loop, round_0, "execute_tool search"], 300, 400),
        ([loop, round_0, "execute_tool search"], 400, 600),
        ([loop, round_1], 600, 1000),
        ([loop, round_1, "chat gpt-4o"], 600, 1000),
    ]
    calls = [span for span in spans if span.name.startswith("execute_tool")]
    assert len({span.parent.span_id for span in calls}) == 1  # siblings, under one round
    assert len({span.context.trace_id for span in spans}) == 1
    assert {s.name: s.kind for s in spans} == {
        loop: SpanKind.INTERNAL,
        "toolloop.round": SpanKind.INTERNAL,
        "chat gpt-4o": SpanKind.CLIENT,
        "execute_tool search": SpanKind.INTERNAL,
        "execute_tool fetch": SpanKind.INTERNAL,
    }


def test_attributes(out):
    out.sink(a_loop())
    spans = out.spans()
    assert dict(spans[0].attributes) == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.agent.name": "support",
        "gen_ai.usage.input_tokens": 40,
        "gen_ai.usage.output_tokens": 20,
        "toolloop.loop.id": "p-1",
        "toolloop.strategy": "semaphore:2",
        "toolloop.status": "ok",
        "toolloop.rounds": 2,
        "toolloop.tool_calls": 3,
        "toolloop.agent": "7",
        "toolloop.number": 42,
        "toolloop.trial": 3,
        "toolloop.schedule_lag": 0.02,
    }
    assert dict(spans[1].attributes) == {
        "toolloop.round.index": 0,
        "toolloop.round.fanout": 3,
        "toolloop.round.shortfall": "limiter",
        "toolloop.strategy": "semaphore:2",
        "toolloop.status": "ok",
        "toolloop.phase.model": 0.2,
        "toolloop.phase.backoff": 0.1,
        "toolloop.phase.tools": 0.3,
    }
    assert dict(spans[2].attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.request.stream": True,
        "gen_ai.response.finish_reasons": ("tool_calls",),
        "gen_ai.response.time_to_first_chunk": 0.24,
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 20,
        "http.request.resend_count": 1,
        "toolloop.request.id": "req_1",
        "toolloop.status": "ok",
    }
    assert [(e.name, (e.timestamp - WALL) // MS, dict(e.attributes)) for e in spans[2].events] == [
        (
            "toolloop.attempt",
            10,
            {
                "toolloop.attempt.number": 1,
                "toolloop.attempt.duration": 0.04,
                "toolloop.attempt.retry_after": 0.1,
                "toolloop.request.id": "req_0",
                "http.response.status_code": 429,
            },
        ),
        (
            "toolloop.attempt",
            150,
            {
                "toolloop.attempt.number": 2,
                "toolloop.attempt.duration": 0.15,
                "toolloop.request.id": "req_1",
                "http.response.status_code": 200,
            },
        ),
    ]
    assert dict(spans[3].attributes) == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "fetch",
        "gen_ai.tool.call.id": "id_fetch_500",
        "gen_ai.tool.type": "function",
        "toolloop.strategy": "semaphore:2",
        "toolloop.status": "ok",
        "toolloop.queue": 0.0,
        "toolloop.thread_wait": 0.003,
        "toolloop.blocking": 0.007,
    }
    timed_out = spans[5]
    assert timed_out.attributes["toolloop.queue"] == 0.1
    assert timed_out.attributes["error.type"] == "timeout"
    assert timed_out.status.status_code is StatusCode.ERROR
    assert [s.status.status_code for s in spans if s is not timed_out] == [StatusCode.UNSET] * 7


def test_content_only_where_it_was_recorded(out):
    first, second = a_loop().rounds
    recorded = replace(first.tool_calls[0], arguments='{"q": 1}', result="found")
    out.sink(
        a_loop(rounds=(replace(first, tool_calls=(recorded,)), second), prompt="Größe?", text="Eins achtzig.")
    )
    spans = out.spans()
    assert json.loads(spans[0].attributes["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": "Größe?"}]}
    ]
    assert json.loads(spans[0].attributes["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "Eins achtzig."}]}
    ]
    assert spans[3].attributes["gen_ai.tool.call.arguments"] == '{"q": 1}'
    assert spans[3].attributes["gen_ai.tool.call.result"] == "found"


def test_spans_of_what_failed_and_was_cancelled(out):
    round_ = a_loop().rounds[0]
    model = replace(round_.model, status="error", error_type="http_500")
    failed = replace(round_, model=model, status="error", tool_calls=(), ended_ns=300 * MS)
    out.sink(a_loop(rounds=(failed,), status="error", error_type="http_500", ended_ns=300 * MS))
    waiting = a_call("search", 300, None, 600, status="cancelled", error_type="cancelled")
    cut_off = replace(round_, tool_calls=(waiting,), status="cancelled")
    out.sink(
        a_loop(
            id="p-2",
            name="",
            rounds=(cut_off,),
            status="cancelled",
            error_type="cancelled",
            ended_ns=600 * MS,
        )
    )
    found = {
        (span.name, span.attributes["toolloop.status"]): (
            span.status.status_code,
            span.attributes.get("error.type"),
        )
        for span in out.spans()
    }
    assert found == {
        ("invoke_agent support", "error"): (StatusCode.ERROR, "http_500"),
        ("toolloop.round", "error"): (StatusCode.ERROR, None),
        ("chat gpt-4o", "error"): (StatusCode.ERROR, "http_500"),
        ("invoke_agent", "cancelled"): (StatusCode.UNSET, "cancelled"),
        ("toolloop.round", "cancelled"): (StatusCode.UNSET, None),
        ("chat gpt-4o", "ok"): (StatusCode.UNSET, None),
        ("execute_tool search", "cancelled"): (StatusCode.UNSET, "cancelled"),
    }
    never_ran = out.one("execute_tool search")
    assert never_ran.attributes["toolloop.started"] is False
    assert never_ran.attributes["toolloop.queue"] == 0.3
    assert "gen_ai.execute_tool.duration" not in out.points()


def test_metrics(out):
    out.sink(a_loop())
    out.sink(a_loop(id="p-2", status="error", error_type="http_500", ended_ns=1200 * MS))
    s, ours = ("toolloop.strategy", "semaphore:2"), ("strategy", "semaphore:2")
    agent = ("gen_ai.agent.name", "support")
    chat = (
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.provider.name", "openai"),
        ("gen_ai.request.model", "gpt-4o"),
        s,
    )
    search, fetch = ("gen_ai.tool.name", "search"), ("gen_ai.tool.name", "fetch")
    assert out.points() == {
        "gen_ai.invoke_agent.duration": {
            (agent, s): (1, 1.0),
            (("error.type", "http_500"), agent, s): (1, 1.2),
        },
        "gen_ai.invoke_agent.inference_calls": {(agent, s): (2, 4)},
        "gen_ai.invoke_agent.tool_calls": {(agent, s): (2, 6)},
        "gen_ai.client.inference.duration": {chat: (4, 1.4)},
        "gen_ai.client.inference.time_to_first_chunk": {chat: (2, 0.48)},
        "gen_ai.client.inference.usage.input_tokens": {chat: 80},
        "gen_ai.client.inference.usage.output_tokens": {chat: 40},
        "gen_ai.execute_tool.duration": {
            (search, s): (2, 0.2),
            (fetch, s): (2, 0.4),
            (("error.type", "timeout"), search, s): (2, 0.4),
        },
        "toolloop.model_unknown_tokens": {(("model", "gpt-4o"), ("provider", "openai"), ours): 2},
        "toolloop.round_duration": {(("status", "ok"), ours): (4, 2.0)},
        "toolloop.round_fanout": {(ours,): (2, 6)},
        "toolloop.tool_call_queue": {
            (ours, ("tool", "search")): (4, 0.2),
            (ours, ("tool", "fetch")): (2, 0),
        },
        "toolloop.round_phase": {
            (("phase", "model"), ours): pytest.approx(1.2),
            (("phase", "backoff"), ours): pytest.approx(0.2),
            (("phase", "tools"), ours): pytest.approx(0.6),
        },
    }


def test_buckets(out):
    out.sink(a_loop())
    out.sink.close()
    (scope,) = out.reader.get_metrics_data().resource_metrics[0].scope_metrics
    bounds = {
        m.name: m.data.data_points[0].explicit_bounds
        for m in scope.metrics
        if hasattr(m.data.data_points[0], "explicit_bounds")
    }
    doubling = tuple(0.01 * 2**i for i in range(17))
    assert doubling[-1] > 600
    assert bounds["gen_ai.client.inference.duration"] == doubling
    assert bounds["gen_ai.client.inference.time_to_first_chunk"] == doubling
    assert bounds["gen_ai.execute_tool.duration"] == doubling[:14]
    assert bounds["gen_ai.invoke_agent.duration"] == tuple(0.1 * 2**i for i in range(16))
    assert bounds["toolloop.round_duration"] == metrics.ROUND_BUCKETS
    assert bounds["gen_ai.invoke_agent.tool_calls"] == (1, 2, 4, 8, 16, 32, 64, 128)
    assert bounds["toolloop.tool_call_queue"] == metrics.TOOL_BUCKETS
    assert {m.name: m.unit for m in scope.metrics if m.name.startswith("toolloop.")} == {
        "toolloop.round_duration": "s",
        "toolloop.round_fanout": "{call}",
        "toolloop.tool_call_queue": "s",
        "toolloop.round_phase": "s",
        "toolloop.model_unknown_tokens": "{reply}",
    }


def test_metric_names_become_those_of_the_table_in_prometheus():
    """An OTLP receiver appends the unit, and `_total` to counters."""
    assert name_of(metrics.ROUND_DURATION) + "_seconds" == "toolloop.round_duration_seconds"
    assert name_of(metrics.ROUND_PHASE) + "_seconds_total" == "toolloop.round_phase_seconds_total"
    assert metrics.ROUND_PHASE.name == "toolloop_round_phase_seconds_total"


def test_tool_names_are_capped_in_metrics(out):
    first, second = a_loop().rounds
    calls = tuple(a_call(f"tool_{i}", 300, 300, 400) for i in range(53))
    out.sink(a_loop(rounds=(replace(first, tool_calls=calls), second)))
    durations = out.points()["gen_ai.execute_tool.duration"]
    assert len(durations) == 51
    other = (("gen_ai.tool.name", "__other__"), ("toolloop.strategy", "semaphore:2"))
    assert durations[other] == (3, 0.3)
    assert len([s for s in out.spans() if s.name.startswith("execute_tool")]) == 53


def test_loop_becomes_a_child_of_the_application_s_span(out):
    with out.provider.get_tracer("app").start_as_current_span("handle request") as application:
        out.sink(a_loop())
    loop = out.one("invoke_agent support")
    assert loop.parent.span_id == application.get_span_context().span_id
    assert loop.context.trace_id == application.get_span_context().trace_id


def test_spans_of_a_loop_that_really_ran(out):
    """Its record comes to the sink in the loop's own context, so its span has the right parent."""

    @tool
    async def search(query: str) -> str:
        """Search."""
        await asyncio.sleep(0.1)
        return query

    tracer = out.provider.get_tracer("app")

    async def request(clock, name):
        with tracer.start_as_current_span(name):
            model = ScriptedModel([[call("search", query="a"), call("search", query="b")], "done"], seconds=1)
            await ToolLoop(model, tools=[search], sinks=[out.sink], clock=clock, name=name).run("go")

    async def main(clock):
        await asyncio.gather(request(clock, "one"), request(clock, "two"))

    run_virtual(main)
    spans = out.spans()
    by_id = {span.context.span_id: span for span in spans}
    for name in ("one", "two"):
        assert by_id[out.one(f"invoke_agent {name}").parent.span_id].name == name
    assert [(p[-1], a, b) for p, a, b in tree([s for s in spans if s.name.startswith("execute")])] == [
        ("execute_tool search", 1000, 1100)
    ] * 4


def nested_loop(identity, started, ended, **changes):
    model = ModelCall("openai", "gpt-4o", started * MS, ended * MS)
    return LoopRecord(
        identity,
        "gathered",
        "openai",
        "gpt-4o",
        started * MS,
        ended * MS,
        "ok",
        (RoundRecord(0, started * MS, ended * MS, model),),
        **{"parent": "p-1", **changes},
    )


def test_nested_loops_lie_under_the_call_they_ran_in(out):
    loop = a_loop()
    calls = {call.id: call for call in loop.tool_calls}
    held = {"id_search_600": ("n-1", "n-6"), "id_search_400": ("n-2",)}
    first, *others = loop.rounds
    first = replace(
        first, tool_calls=tuple(replace(call, loops=held.get(call.id, ())) for call in first.tool_calls)
    )
    assert set(held) < set(calls)
    out.sink(nested_loop("n-1", 310, 390))
    out.sink(nested_loop("n-2", 310, 390, name="search"))
    out.sink(nested_loop("n-3", 410, 590))  # beside the calls, in none of them
    out.sink(nested_loop("n-4", 700, 800))
    out.sink(nested_loop("n-7", 5000, 5001))  # in no round either
    out.sink(nested_loop("n-5", 320, 380, parent="n-1"))  # in the first nested one, which has no call
    out.sink(replace(loop, rounds=(first, *others)))
    out.sink(nested_loop("n-6", 420, 5000))  # goes on after the call, and after its loop
    spans = out.spans()
    by_id = {span.context.span_id: span for span in spans}
    parents = {
        span.attributes["toolloop.loop.id"]: by_id.get(span.parent.span_id) if span.parent else None
        for span in spans
        if span.name.startswith("invoke_agent")
    }
    assert parents["p-1"] is None
    assert parents["n-1"].attributes["gen_ai.tool.call.id"] == "id_search_600"
    assert parents["n-2"].attributes["gen_ai.tool.call.id"] == "id_search_400"
    assert parents["n-3"].attributes["toolloop.round.index"] == 0
    assert parents["n-4"].attributes["toolloop.round.index"] == 1
    assert parents["n-5"].name == "toolloop.round"
    assert parents["n-6"] is parents["n-1"]
    assert parents["n-7"].name.startswith("invoke_agent")
    assert len({span.context.trace_id for span in spans}) == 1


def test_nested_loops_whose_parent_never_comes(out, monkeypatch):
    monkeypatch.setattr(sink_module, "MAX_HELD", 2)
    for i in range(4):
        out.sink(nested_loop(f"n-{i}", i, i + 1, parent=f"lost-{i}"))
    roots = [span for span in out.spans() if span.name == "invoke_agent"]
    assert sorted(span.attributes["toolloop.parent"] for span in roots) == [f"lost-{i}" for i in range(4)]
    assert {span.parent for span in roots} == {None}


def a_foreign_chat(out, scope="com.anthropic.sdk.python", operation="chat", **attributes):
    """As the SDK makes it, around nothing. Monotonic (start, end) of a request that held it."""
    started = time.monotonic_ns()
    span = out.provider.get_tracer(scope).start_span(
        "anthropic.messages.create", attributes={"gen_ai.operation.name": operation}
    )
    span.set_attributes({key.replace("_", "."): value for key, value in attributes.items()})
    span.end()
    return started, time.monotonic_ns(), span.get_span_context()


def loop_of_requests(*times, request_ids=()):
    rounds = tuple(
        RoundRecord(
            i,
            started,
            ended,
            ModelCall(
                "anthropic",
                "claude",
                started,
                ended,
                request_id=request_ids[i] if request_ids else None,
                attempts=(Attempt(started, ended, 200),),
            ),
        )
        for i, (started, ended) in enumerate(times)
    )
    return LoopRecord("p-1", "gathered", "anthropic", "claude", times[0][0], times[-1][1], "ok", rounds)


def test_request_gets_no_second_span_where_an_sdk_made_one(out):
    start, end, theirs = a_foreign_chat(out)
    later = (time.monotonic_ns(), time.monotonic_ns() + 1)
    out.sink(loop_of_requests((start, end), later))
    rounds = [span for span in out.spans() if span.name == "toolloop.round"]
    assert [[link.context.span_id for link in span.links] for span in rounds] == [[theirs.span_id], []]
    assert [event.name for event in rounds[0].events] == ["toolloop.attempt"]
    ours = out.one("chat claude")  # the second request's, which has none of theirs
    assert ours.parent.span_id == rounds[1].context.span_id
    # Both requests count.
    ((_, durations),) = out.points()["gen_ai.client.inference.duration"].items()
    assert durations[0] == 2


def test_sdk_s_span_counts_for_one_request(out):
    start, end, _ = a_foreign_chat(out)
    out.sink(loop_of_requests((start, end)))
    out.sink(replace(loop_of_requests((start, end)), id="p-2"))
    assert len([span for span in out.spans() if span.name == "chat claude"]) == 1


def test_sdk_s_span_from_outside_the_request_does_not_count(out):
    before = time.monotonic_ns()
    before = (before, time.monotonic_ns())
    a_foreign_chat(out)
    out.sink(loop_of_requests(before, (time.monotonic_ns(), time.monotonic_ns() + 1)))
    assert len([span for span in out.spans() if span.name == "chat claude"]) == 2


def test_sdk_s_span_of_another_request_does_not_count(out):
    start, end, _ = a_foreign_chat(out, anthropic_request_id="req_b")
    out.sink(loop_of_requests((start, end), request_ids=("req_a",)))
    assert out.one("chat claude").attributes["toolloop.request.id"] == "req_a"


def test_spans_that_are_no_chats_do_not_count(out):
    start, end, _ = a_foreign_chat(out, scope="app", operation="execute_tool")
    out.sink(loop_of_requests((start, end)))
    assert out.one("chat claude").links == ()


def test_global_provider_that_is_set_later(out, monkeypatch):
    """OpenTelemetry may be set up after the sink: its spans and those of the SDK are seen all the same."""
    provider = trace.ProxyTracerProvider()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    sink = OpenTelemetrySink()
    provider = out.provider
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", out.provider)
    sink._take(a_loop(), Context())
    start, end, _ = a_foreign_chat(out)
    sink(loop_of_requests((start, end)))
    sink.close()
    assert sink.dropped == 0
    names = [span.name for span in out.exporter.get_finished_spans()]
    assert names.count("invoke_agent support") == 1
    assert names.count("anthropic.messages.create") == 1
    assert names.count("chat claude") == 0


def test_loops_that_are_not_sampled_count_in_metrics():
    out = Out(sampler=ALWAYS_OFF)
    out.sink(a_loop())
    assert out.spans() == []
    points = out.points()
    assert list(points["gen_ai.invoke_agent.tool_calls"].values()) == [(1, 3)]
    assert sum(count for count, _ in points["gen_ai.execute_tool.duration"].values()) == 3


def test_sink_without_the_extra_says_what_to_install(monkeypatch):
    for module in [name for name in sys.modules if name.startswith("profiler.exporters.opentelemetry")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(UsageError, match=r"pip install 'toolcall-profiler\[otel\]'"):
        importlib.import_module("profiler.exporters.opentelemetry")


def test_full_queue_drops_and_counts(out, monkeypatch):
    monkeypatch.setattr(sink_module, "MAX_QUEUED", 0)
    out.sink(a_loop())
    assert out.sink.dropped == 1


def test_sink_that_is_closed_drops_and_counts_records(out):
    out.sink(a_loop())
    out.sink.close()
    out.sink.close()
    out.sink(a_loop())
    assert out.sink.dropped == 1
    assert len(out.exporter.get_finished_spans()) == 8


def test_record_that_cannot_be_exported_is_counted_and_the_next_one_goes_out(out, monkeypatch):
    broken = replace(a_loop(), rounds=(None,))
    out.sink(broken)
    out.sink(a_loop())
    out.sink.close()
    assert out.sink.dropped == 1
    assert len([s for s in out.exporter.get_finished_spans() if s.name == "chat gpt-4o"]) == 2


def test_server_tools_are_spans_inside_the_request(out):
    loop = a_loop()
    tools = (ServerToolCall("web_search", 160 * MS, 220 * MS), ServerToolCall("web_search"))
    first = replace(loop.rounds[0], model=replace(loop.rounds[0].model, server_tools=tools))
    out.sink(replace(loop, rounds=(first, loop.rounds[1])))
    span = out.one("execute_tool web_search")
    chat = next(one for one in out.spans() if one.name == "chat gpt-4o")
    assert span.parent.span_id == chat.context.span_id
    assert (span.start_time - WALL, span.end_time - WALL) == (160 * MS, 220 * MS)
    assert span.attributes["gen_ai.tool.type"] == "extension"
    rounds = [one for one in out.spans() if one.name == "toolloop.round"]
    found = [one.attributes.get("toolloop.phase.server_tools") for one in rounds]
    assert found == [0.06, None]


def test_tokens_and_first_output_of_a_request(out):
    loop = a_loop()
    model = replace(
        loop.rounds[0].model,
        input_tokens=50_012,
        cached_tokens=30_000,
        cache_written_tokens=20_000,
        reasoning_tokens=4,
        first_output_ns=260 * MS,
        unreadable=1,
    )
    out.sink(replace(loop, rounds=(replace(loop.rounds[0], model=model), loop.rounds[1])))
    chat = next(one for one in out.spans() if one.name == "chat gpt-4o").attributes
    agent = next(one for one in out.spans() if one.name.startswith("invoke_agent")).attributes
    usage = {
        "gen_ai.usage.cache_read.input_tokens": 30_000,
        "gen_ai.usage.cache_creation.input_tokens": 20_000,
        "gen_ai.usage.reasoning.output_tokens": 4,
    }
    assert {name: chat[name] for name in usage} == {name: agent[name] for name in usage} == usage
    assert (chat["gen_ai.usage.input_tokens"], agent["gen_ai.usage.input_tokens"]) == (50_012, 50_042)
    assert (chat["toolloop.time_to_first_output"], chat["toolloop.unreadable"]) == (0.26, 1)
    points = out.points()
    usage_name = "gen_ai.client.inference.usage"
    found = {
        name: sum(points[f"{usage_name}.{name}"].values())
        for name in ("cache_read.input_tokens", "cache_write.input_tokens", "reasoning.output_tokens")
    }
    assert found == {
        "cache_read.input_tokens": 30_000,
        "cache_write.input_tokens": 20_000,
        "reasoning.output_tokens": 4,
    }
    assert sum(points["toolloop.unreadable"].values()) == 1
    assert list(points["toolloop.model_time_to_first_output"].values()) == [(1, pytest.approx(0.26))]


def test_names_from_outside_are_capped_in_metrics(out):
    """Strategies, models and agents; and no tool that there is not has a name."""
    first, second = a_loop().rounds
    made_up = tuple(
        a_call(f"made_up_{i}", 300, 300, 400, status="error", error_type="unknown_tool") for i in range(60)
    )
    for number in range(60):
        rounds = (
            replace(first, model=replace(first.model, model=f"model-{number}"), tool_calls=made_up[:1]),
            second,
        )
        out.sink(a_loop(strategy=f"rate:{number}/s", name=f"agent-{number}", rounds=rounds))
    out.sink(a_loop(rounds=(replace(first, tool_calls=made_up), second)))
    values: dict[str, set[str]] = {}
    for series in out.points().values():
        for attributes in series:
            for name, found in attributes:
                values.setdefault(name, set()).add(found)
    assert len(values["gen_ai.request.model"]) == len(values["toolloop.strategy"]) == 51
    assert len(values["strategy"]) == len(values["gen_ai.agent.name"]) == 51
    assert values["gen_ai.tool.name"] == values["tool"] == {"__unknown_tool__"}


def test_spans_that_go_nowhere_are_said(caplog, monkeypatch):
    monkeypatch.setattr(trace, "get_tracer_provider", trace.ProxyTracerProvider)
    sink = OpenTelemetrySink()
    sink(a_loop())
    sink(a_loop())
    sink.close()
    (said,) = caplog.messages
    assert said.startswith("the spans of 2 loops went nowhere, since OpenTelemetry has no tracer provider")


# MCP servers


def test_call_of_an_mcp_server_has_the_names_of_the_conventions(out):
    out.sink(
        asked_by_nobody(
            [
                served(
                    0, session=5, client=1, remote=100, parsing=2, told=90, new_connection=True, reply="sse"
                ),
                served(0, status="error", error_type="rpc_-32602", name="read", transport="stdio"),
                served(0, status="error", error_type="tool_error", name="write", transport="memory"),
                served(0, status="error", error_type="http_503", name="list", http_status=503, sends=2),
            ]
        )
    )
    usual = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.type": "extension",
        "mcp.method.name": "tools/call",
        "mcp.protocol.version": "2025-11-25",
        "toolloop.server": "docs",
    }
    found = {name: dict(out.one(f"execute_tool {name}").attributes) for name in ("search", "read", "write")}
    assert all(usual.items() <= attributes.items() for attributes in found.values())
    assert (
        found["search"].items()
        >= {
            "network.transport": "tcp",
            "network.protocol.name": "http",
            "toolloop.server.session_wait": 0.005,
            "toolloop.server.client_wait": 0.001,
            "toolloop.server.server": 0.09,
            "toolloop.server.network": 0.01,
            "toolloop.server.parsing": 0.002,
            "toolloop.server.reply": "sse",
            "toolloop.server.new_connection": True,
        }.items()
    )
    assert (
        found["read"].items()
        >= {
            "network.transport": "pipe",
            "error.type": "rpc_-32602",
            "rpc.response.status_code": "-32602",
            "toolloop.server.server_and_network": 0.1,
        }.items()
    )
    assert found["write"]["error.type"] == "tool_error"
    assert not {"network.transport", "rpc.response.status_code", "mcp.session.id"} & found["write"].keys()
    listed = dict(out.one("execute_tool list").attributes)
    assert (listed["http.response.status_code"], listed["toolloop.server.sends"]) == (503, 2)
    # One span for each call, inside of its loop: the request's own is the client's to make.
    kinds = [span.kind for span in out.spans()]
    assert kinds == [SpanKind.INTERNAL] * 6


def test_operations_of_mcp_servers_are_measured_under_the_conventions(out):
    out.sink(
        asked_by_nobody(
            [
                served(0, session=5, client=1, remote=100),
                served(0, remote=200, status="error", error_type="rpc_-32602"),
            ]
        )
    )
    usual = {
        "mcp.method.name": "tools/call",
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "search",
        "toolloop.server": "docs",
        "mcp.protocol.version": "2025-11-25",
        "network.transport": "tcp",
    }
    failed = {"rpc.response.status_code": "-32602", "error.type": "rpc_-32602"}
    points = out.points()
    assert points["mcp.client.operation.duration"] == {
        tuple(sorted(usual.items())): (1, 0.1),
        tuple(sorted((usual | failed).items())): (1, 0.2),
    }
    assert points["toolloop.mcp_errors"] == {
        (("error_type", "rpc_-32602"), ("server", "docs"), ("strategy", "gathered")): 1
    }
    assert "gen_ai.client.inference.duration" not in points
    assert list(points["gen_ai.invoke_agent.inference_calls"].values()) == [(1, 0)]


def test_span_of_the_client_s_own_request_is_linked_once(out):
    started = time.monotonic_ns()
    theirs = [
        out.provider.get_tracer("mcp-python-sdk").start_span(
            f"MCP send tools/call {name}",
            kind=SpanKind.CLIENT,
            attributes={"mcp.method.name": "tools/call", "jsonrpc.request.id": str(number)},
        )
        for number, name in enumerate(("search", "fetch", "search"))
    ]
    for span in theirs:
        span.end()
    ended = time.monotonic_ns()
    remote = RemoteCall("docs", "http")
    calls = [
        ToolCall(f"call_{n}", name, started, started, started, ended, remote=remote)
        for n, name in enumerate(("search", "search", "search", "fetch", "other"))
    ]
    out.sink(asked_by_nobody(calls))
    found = {
        span.attributes["gen_ai.tool.call.id"]: (
            [link.context.span_id for link in span.links],
            span.attributes.get("jsonrpc.request.id"),
        )
        for span in out.spans()
        if span.name.startswith("execute_tool")
    }
    ids = [span.get_span_context().span_id for span in theirs]
    assert found == {
        "call_0": ([ids[0]], "0"),
        "call_1": ([ids[2]], "2"),
        "call_2": ([], None),
        "call_3": ([ids[1]], "1"),
        "call_4": ([], None),
    }


def test_server_names_are_capped_in_metrics(out):
    out.sink(asked_by_nobody([served(0, server=f"server-{number}") for number in range(MAX_NAMES + 5)]))
    points = out.points()["toolloop.mcp_call_duration"]
    assert len(points) == MAX_NAMES + 1
    (other,) = [count for labels, count in points.items() if dict(labels)["server"] == "__other__"]
    assert other[0] == 5
