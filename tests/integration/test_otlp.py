"""OpenTelemetry over the wire: what a collector would get, from loops against the emulator.

A small OTLP/HTTP receiver in this process decodes what arrives. The last test sends from a
process that gevent has patched, as Locust's is.
"""

from __future__ import annotations

import asyncio
import gzip
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from anthropic import AsyncAnthropic
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from profiler import ProviderError, SemaphoreLimited, ToolLoop, tool
from profiler.emulator.process import start_emulator
from profiler.exporters.opentelemetry import OpenTelemetrySink
from profiler.providers.anthropic_messages import AnthropicMessages
from profiler.providers.endpoint import Endpoint
from profiler.providers.openai_chat import OpenAIChat
from profiler.rundir import Anchor

ROOT = Path(__file__).resolve().parents[2]


@tool
async def get_weather(city: str, units: str = "celsius") -> str:
    """Current weather of a city."""
    return f"fine in {city} ({units})"


@tool
async def get_population(city: str) -> str:
    """Number of inhabitants of a city."""
    return f"many in {city}"


TOOLS = [get_weather, get_population]


class Receiver:
    """An OTLP/HTTP endpoint that keeps what it is sent."""

    def __init__(self):
        self.spans = []
        self.metrics = {}
        self.requests = Counter()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.headers["Content-Type"] == "application/x-protobuf"
                receiver.take(self.path, body)
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def take(self, path, body):
        self.requests[path] += 1
        if path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    self.spans.extend((scope.scope.name, span) for span in scope.spans)
        elif path == "/v1/metrics":
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:  # cumulative: the last export is the whole
                        self.metrics[metric.name] = metric
        else:
            raise AssertionError(path)

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def named(self, name):
        return [span for _, span in self.spans if span.name == name]

    def of(self, scope):
        return [span for name, span in self.spans if name == scope]

    def points(self, name):
        metric = self.metrics[name]
        return list((metric.histogram if metric.HasField("histogram") else metric.sum).data_points)


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture(scope="module")
def emulator():
    with start_emulator("instant") as emulator:
        yield emulator


@contextmanager
def exporting(receiver):
    """A sink whose providers export to the receiver; everything has arrived when the block ends."""
    tracers = TracerProvider()
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{receiver.url}/v1/traces")))
    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(f"{receiver.url}/v1/metrics"), export_interval_millis=3_600_000
    )
    meters = MeterProvider([reader])
    sink = OpenTelemetrySink(tracers, meters, anchor=ANCHOR)
    try:
        yield sink, tracers
    finally:
        sink.close()
        tracers.shutdown()
        meters.shutdown()
    assert sink.dropped == 0


ANCHOR = Anchor.now()


def attributes(of):
    def plain(value):
        kind = value.WhichOneof("value")
        return [plain(v) for v in value.array_value.values] if kind == "array_value" else getattr(value, kind)

    return {item.key: plain(item.value) for item in of.attributes}


async def test_a_loop_over_otlp(receiver, emulator):
    with exporting(receiver) as (sink, tracers):
        model = OpenAIChat(endpoint=Endpoint.parse(emulator.url))
        loop = ToolLoop(model, TOOLS, SemaphoreLimited(2), sinks=[sink], name="support")
        with tracers.get_tracer("app").start_as_current_span("handle request"):
            result = await loop.run("Question 1: call the tools, then answer in one line.")
        await model.client.close()
    record = result.record
    calls = list(record.tool_calls)
    assert len(calls) == 3
    (application,) = receiver.named("handle request")
    (agent,) = receiver.named("invoke_agent support")
    rounds = sorted(receiver.named("toolloop.round"), key=lambda span: span.start_time_unix_nano)
    assert len(receiver.spans) == 1 + 1 + len(record.rounds) * 2 + len(calls)
    assert {span.trace_id for _, span in receiver.spans} == {application.trace_id}

    def times(span):
        return span.start_time_unix_nano, span.end_time_unix_nano

    def expected(part):
        return ANCHOR.unix(part.started_ns), ANCHOR.unix(part.ended_ns)

    assert agent.parent_span_id == application.span_id
    assert times(agent) == expected(record)
    assert [times(span) for span in rounds] == [expected(round_) for round_ in record.rounds]
    assert {span.parent_span_id for span in rounds} == {agent.span_id}
    chats = {span.parent_span_id: span for span in receiver.named("chat gpt-4o")}
    assert [times(chats[span.span_id]) for span in rounds] == [expected(r.model) for r in record.rounds]
    assert all(span.kind == span.SPAN_KIND_CLIENT for span in chats.values())
    first = attributes(chats[rounds[0].span_id])
    assert first["gen_ai.usage.output_tokens"] == record.rounds[0].model.output_tokens > 0
    assert first["gen_ai.response.finish_reasons"] == ["tool_calls"]
    assert first["toolloop.request.id"] == record.rounds[0].model.request_id

    executions = {
        attributes(span)["gen_ai.tool.call.id"]: span
        for _, span in receiver.spans
        if span.name.startswith("execute_tool ")
    }
    assert executions.keys() == {call.id for call in calls}
    for call in calls:
        span = executions[call.id]
        assert span.name == f"execute_tool {call.name}"
        assert span.parent_span_id == rounds[0].span_id
        assert times(span) == expected(call)
        assert attributes(span)["toolloop.queue"] == (call.started_ns - call.queued_ns) / 1e9
        assert attributes(span)["toolloop.strategy"] == "semaphore:2"

    (duration,) = receiver.points("gen_ai.invoke_agent.duration")
    assert duration.count == 1
    assert duration.sum == (record.ended_ns - record.started_ns) / 1e9
    assert attributes(duration) == {
        "gen_ai.agent.name": "support",
        "toolloop.strategy": "semaphore:2",
    }
    # An exemplar leads from the histogram to the trace.
    assert [e.trace_id for e in duration.exemplars] == [agent.trace_id]
    assert [e.span_id for e in duration.exemplars] == [agent.span_id]
    (requests,) = receiver.points("gen_ai.client.inference.duration")
    assert requests.count == len(record.rounds)
    assert list(requests.explicit_bounds) == [0.01 * 2**i for i in range(17)]
    by_tool = {
        attributes(point)["gen_ai.tool.name"]: point.count
        for point in receiver.points("gen_ai.execute_tool.duration")
    }
    assert by_tool == Counter(call.name for call in calls)
    (written,) = receiver.points("gen_ai.client.inference.usage.output_tokens")
    assert written.as_int == sum(r.model.output_tokens for r in record.rounds)
    assert sum(p.as_double for p in receiver.points("toolloop.round_phase")) == pytest.approx(
        sum(r.ended_ns - r.started_ns for r in record.rounds) / 1e9, rel=0.02
    )


SDK = "com.anthropic.sdk.python"


@pytest.mark.parametrize("stream", [False, True])
async def test_anthropic_s_own_chat_spans_are_not_doubled(receiver, emulator, stream):
    with exporting(receiver) as (sink, tracers):
        client = AsyncAnthropic(
            base_url=emulator.url, api_key="none", open_telemetry={"tracer_provider": tracers}
        )
        loop = ToolLoop(AnthropicMessages(client, "claude-test"), TOOLS, sinks=[sink], stream=stream)
        with tracers.get_tracer("app").start_as_current_span("handle request"):
            result = await loop.run("Question 1: call the tools, then answer in one line.")
        await client.close()
    theirs = sorted(receiver.of(SDK), key=lambda span: span.start_time_unix_nano)
    assert [attributes(span)["gen_ai.operation.name"] for span in theirs] == ["chat", "chat"]
    assert [attributes(span)["anthropic.request.id"] for span in theirs] == [
        round_.model.request_id for round_ in result.record.rounds
    ]
    assert not [span for _, span in receiver.spans if span.name.startswith("chat ")]
    rounds = sorted(receiver.named("toolloop.round"), key=lambda span: span.start_time_unix_nano)
    assert [[link.span_id for link in span.links] for span in rounds] == [[s.span_id] for s in theirs]
    # Theirs and ours hang under the same span of the application, in one trace.
    assert len({span.trace_id for _, span in receiver.spans}) == 1
    (requests,) = receiver.points("gen_ai.client.inference.duration")
    assert requests.count == 2


async def test_many_loops_at_once_and_each_finds_its_own_span(receiver, emulator):
    with exporting(receiver) as (sink, tracers):
        client = AsyncAnthropic(
            base_url=emulator.url, api_key="none", open_telemetry={"tracer_provider": tracers}
        )
        loop = ToolLoop(AnthropicMessages(client, "claude-test"), TOOLS, sinks=[sink])
        prompts = [f"Question {i}: call the tools, then answer in one line." for i in range(40)]
        results = await asyncio.gather(*(loop.run(prompt, number=i) for i, prompt in enumerate(prompts)))
        await client.close()
    request_of = {span.span_id: attributes(span)["anthropic.request.id"] for span in receiver.of(SDK)}
    assert len(request_of) == 80
    loops = {span.span_id: attributes(span)["toolloop.loop.id"] for span in receiver.named("invoke_agent")}
    linked = {
        (loops[span.parent_span_id], attributes(span)["toolloop.round.index"]): request_of[link.span_id]
        for span in receiver.named("toolloop.round")
        for link in span.links
    }
    assert linked == {
        (r.record.id, round_.index): round_.model.request_id for r in results for round_ in r.record.rounds
    }


async def test_failed_requests_are_not_doubled_either(receiver):
    """No response, so no request id to go by."""
    with exporting(receiver) as (sink, tracers):
        client = AsyncAnthropic(
            base_url="http://127.0.0.1:9",  # nothing listens there
            api_key="none",
            max_retries=0,
            open_telemetry={"tracer_provider": tracers},
        )
        loop = ToolLoop(AnthropicMessages(client, "claude-test"), TOOLS, sinks=[sink])
        with pytest.raises(ProviderError):
            await loop.run("hello")
        await client.close()
    (theirs,) = receiver.of(SDK)
    assert theirs.status.code == theirs.status.STATUS_CODE_ERROR
    (round_,) = receiver.named("toolloop.round")
    assert [link.span_id for link in round_.links] == [theirs.span_id]
    assert not [span for _, span in receiver.spans if span.name.startswith("chat ")]
    (agent,) = receiver.named("invoke_agent")
    assert attributes(agent)["error.type"] == "refused"
    assert agent.status.code == agent.status.STATUS_CODE_ERROR


async def test_anthropic_without_spans_of_its_own_gets_ours(receiver, emulator):
    with exporting(receiver) as (sink, _):
        client = AsyncAnthropic(base_url=emulator.url, api_key="none", open_telemetry=False)
        loop = ToolLoop(AnthropicMessages(client, "claude-test"), TOOLS, sinks=[sink])
        await loop.run("Question 1: call the tools, then answer in one line.")
        await client.close()
    assert receiver.of(SDK) == []
    assert len([span for _, span in receiver.spans if span.name.startswith("chat claude")]) == 2


PATCHED = """
from gevent import monkey
monkey.patch_all()
import sys
import gevent
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from profiler.exporters.opentelemetry import OpenTelemetrySink
from profiler.records import LoopRecord, ModelCall, RoundRecord, ToolCall
from profiler.loop.eventloop import start_native_thread

url, loops = sys.argv[1], int(sys.argv[2])
tracers = TracerProvider()
tracers.add_span_processor(
    BatchSpanProcessor(OTLPSpanExporter(url + "/v1/traces"), max_queue_size=100_000, max_export_batch_size=64)
)
reader = PeriodicExportingMetricReader(OTLPMetricExporter(url + "/v1/metrics"), export_interval_millis=50)
meters = MeterProvider([reader])
sink = OpenTelemetrySink(tracers, meters)
calls = tuple(ToolCall(f"c{i}", "search", 10, 10, 10, 20) for i in range(4))
rounds = (RoundRecord(0, 0, 30, ModelCall("openai", "m", 0, 10), 10, 20, calls),)
done = []

def run():
    for i in range(loops):
        sink(LoopRecord(f"l-{i}", "gathered", "openai", "m", 0, 30, "ok", rounds))
    done.append(True)

start_native_thread(run)
while not done or sink._queue.qsize():
    gevent.sleep(0.01)
sink.close()
tracers.shutdown()
meters.shutdown()
print("dropped", sink.dropped)
"""


def test_from_a_process_that_gevent_has_patched(receiver):
    """The thread of the sink is native; batches and exports are greenlets of the main thread's hub."""
    loops = 300
    process = subprocess.run(
        [sys.executable, "-c", PATCHED, receiver.url, str(loops)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (process.stdout, process.returncode) == ("dropped 0\n", 0), process.stderr
    assert process.stderr == ""
    assert Counter(span.name for _, span in receiver.spans) == {
        "invoke_agent": loops,
        "toolloop.round": loops,
        "chat m": loops,
        "execute_tool search": 4 * loops,
    }
    (duration,) = receiver.points("gen_ai.execute_tool.duration")
    assert duration.count == 4 * loops
    assert receiver.requests["/v1/metrics"] > 1  # read while the thread was writing
