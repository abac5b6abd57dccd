"""The metrics of the OpenTelemetry sink: those of the GenAI conventions, and ours where they have none.

Ours are the metrics of `profiler.metrics` with the same name, labels and buckets:
`toolloop.round_duration` in seconds is what a Prometheus behind an OTLP receiver calls
`toolloop_round_duration_seconds`. The conventions' own have no buckets below 10 ms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opentelemetry import metrics as otel_metrics
from opentelemetry.context import Context
from opentelemetry.metrics import Histogram, MeterProvider

from profiler import metrics
from profiler.metrics import Metric
from profiler.records import LoopRecord, ModelCall, RoundRecord, ToolCall

CALL_BUCKETS = tuple(0.01 * 2**i for i in range(14))
"""Seconds: .01 doubling to 81.92."""

COUNT_BUCKETS = tuple(float(2**i) for i in range(8))
"""1 doubling to 128."""

MAX_NAMES = 50
OTHER = "__other__"

_NS = 1e9

Attributes = dict[str, str]


def name_of(metric: Metric) -> str:
    """The name of one of our metrics in OpenTelemetry: dotted prefix, no unit, no `_total`."""
    name = metric.name.removesuffix("_total").removesuffix("_seconds")
    return name.replace("toolloop_", "toolloop.", 1)


class Instruments:
    """Every instrument, and how records are measured with them. Used by one thread."""

    def __init__(self, provider: MeterProvider | None, scope: str) -> None:
        meter = otel_metrics.get_meter(scope, meter_provider=provider)

        def histogram(name: str, unit: str, description: str, buckets: Sequence[float]) -> Histogram:
            return meter.create_histogram(
                name, unit, description, explicit_bucket_boundaries_advisory=buckets
            )

        def own_histogram(metric: Metric, unit: str) -> Histogram:
            return histogram(name_of(metric), unit, metric.help, metric.buckets)

        agent, inference = "gen_ai.invoke_agent", "gen_ai.client.inference"
        self._agent_duration = histogram(
            f"{agent}.duration", "s", "A loop, from message to answer.", metrics.ROUND_BUCKETS
        )
        self._inference_calls = histogram(
            f"{agent}.inference_calls", "{inference_call}", "Model requests of a loop.", COUNT_BUCKETS
        )
        self._tool_calls = histogram(
            f"{agent}.tool_calls", "{tool_call}", "Tool calls of a loop.", COUNT_BUCKETS
        )
        self._chat_duration = histogram(
            f"{inference}.duration", "s", "A model request, all attempts and backoff included.", CALL_BUCKETS
        )
        self._first_chunk = histogram(
            f"{inference}.time_to_first_chunk",
            "s",
            "From the start of a streamed model request to its first token.",
            CALL_BUCKETS,
        )
        self._input_tokens = meter.create_counter(
            f"{inference}.usage.input_tokens", "{token}", "Tokens of prompts."
        )
        self._output_tokens = meter.create_counter(
            f"{inference}.usage.output_tokens", "{token}", "Tokens of responses."
        )
        self._call_duration = histogram(
            "gen_ai.execute_tool.duration", "s", "A tool call, from the moment it ran.", CALL_BUCKETS
        )
        self._round_duration = own_histogram(metrics.ROUND_DURATION, "s")
        self._fanout = own_histogram(metrics.ROUND_FANOUT, "{call}")
        self._queue = own_histogram(metrics.TOOL_CALL_QUEUE, "s")
        self._phase = meter.create_counter(name_of(metrics.ROUND_PHASE), "s", metrics.ROUND_PHASE.help)
        self._known: dict[str, set[str]] = {"tool": set(), "error": set()}

    def loop(self, record: LoopRecord, spent: Mapping[str, int], context: Context) -> None:
        """`spent`: nanoseconds per phase, summed over the rounds."""
        attributes = {"toolloop.strategy": record.strategy}
        if record.name:
            attributes["gen_ai.agent.name"] = record.name
        self._inference_calls.record(len(record.rounds), attributes, context)
        self._tool_calls.record(sum(len(r.tool_calls) for r in record.rounds), attributes, context)
        self._agent_duration.record(
            record.wall_ns / _NS,
            # An agent that answered did its work, even if one of its calls failed.
            self._failed(attributes, None if record.answered else record.failure),
            context,
        )
        for phase, value in spent.items():
            if value > 0:  # `unaccounted` may be negative, and a counter only goes up
                self._phase.add(value / _NS, {"strategy": record.strategy, "phase": phase}, context)

    def round(self, record: LoopRecord, round_: RoundRecord, context: Context) -> None:
        if round_.tool_calls:
            self._fanout.record(len(round_.tool_calls), {"strategy": record.strategy}, context)
        self._round_duration.record(
            round_.duration_ns / _NS,
            {"strategy": record.strategy, "status": round_.status},
            context,
        )

    def chat(self, record: LoopRecord, model: ModelCall, context: Context) -> None:
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": model.provider,
            "gen_ai.request.model": model.model,
            "toolloop.strategy": record.strategy,
        }
        self._chat_duration.record(model.duration_ns / _NS, self._failed(attributes, model.failure), context)
        if model.first_token_after_ns is not None:
            self._first_chunk.record(model.first_token_after_ns / _NS, attributes, context)
        if model.input_tokens is not None:
            self._input_tokens.add(model.input_tokens, attributes, context)
        if model.output_tokens is not None:
            self._output_tokens.add(model.output_tokens, attributes, context)

    def call(self, record: LoopRecord, call: ToolCall, context: Context) -> None:
        tool = self._capped("tool", call.name)
        self._queue.record(call.waited_ns / _NS, {"tool": tool, "strategy": record.strategy}, context)
        if call.duration_ns is None:
            return
        attributes = {"gen_ai.tool.name": tool, "toolloop.strategy": record.strategy}
        self._call_duration.record(call.duration_ns / _NS, self._failed(attributes, call.failure), context)

    def _failed(self, attributes: Attributes, error_type: str | None) -> Attributes:
        if error_type is None:
            return attributes
        return attributes | {"error.type": self._capped("error", error_type)}

    def _capped(self, kind: str, value: str) -> str:
        known = self._known[kind]
        if value not in known:
            if len(known) >= MAX_NAMES:
                return OTHER
            known.add(value)
        return value
