"""The metrics of the OpenTelemetry sink: those of the GenAI conventions, and ours where they have none.

Ours are the metrics of `profiler.metrics` with the same name, labels and buckets:
`toolloop.round_duration` in seconds is what a Prometheus behind an OTLP receiver calls
`toolloop_round_duration_seconds`. The conventions' own have no buckets below 10 ms; those of model requests
go on above the 82 s that the conventions suggest, since the SDKs wait for 600 s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opentelemetry import metrics as otel_metrics
from opentelemetry.context import Context
from opentelemetry.metrics import Histogram, MeterProvider

from profiler import metrics
from profiler.anatomy import remote_parts
from profiler.metrics import Metric
from profiler.records import LoopRecord, ModelCall, RemoteCall, RoundRecord, ToolCall

CALL_BUCKETS = tuple(0.01 * 2**i for i in range(14))
"""Seconds: .01 doubling to 81.92."""

MODEL_BUCKETS = tuple(0.01 * 2**i for i in range(17))
"""Seconds: .01 doubling to 655.36."""

MCP_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds, as the conventions for MCP have them."""

TOOLS_CALL = "tools/call"
"""The method by which a tool of an MCP server is called."""

NETWORK_TRANSPORTS = {"http": "tcp", "stdio": "pipe"}
"""Our transports of MCP as the conventions' `network.transport`."""

COUNT_BUCKETS = tuple(float(2**i) for i in range(8))
"""1 doubling to 128."""

MAX_NAMES = 50
OTHER = "__other__"
UNKNOWN = "unknown"
"""Instead of the provider or the model where a recording does not name it."""
UNKNOWN_TOOL = "__unknown_tool__"
"""Instead of the names of tools that there are not: models make up as many as they like."""

_NS = 1e9

Attributes = dict[str, str]


def name_of(metric: Metric) -> str:
    """The name of one of our metrics in OpenTelemetry: dotted prefix, no unit, no `_total`."""
    name = metric.name.removesuffix("_total").removesuffix("_seconds")
    return name.replace("toolloop_", "toolloop.", 1)


def rpc_status(error_type: str | None) -> str | None:
    """The code of a JSON-RPC error, `-32602`; None where the error is none, or its code is not told."""
    code = (error_type or "").removeprefix("rpc_")
    return code if code != error_type and code.lstrip("-").isdecimal() else None


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
            f"{inference}.duration", "s", "A model request, all attempts and backoff included.", MODEL_BUCKETS
        )
        self._first_chunk = histogram(
            f"{inference}.time_to_first_chunk",
            "s",
            "From the start of a streamed model request to its first token, reasoning or not.",
            MODEL_BUCKETS,
        )
        self._first_output = own_histogram(metrics.MODEL_FIRST_OUTPUT, "s")
        self._input_tokens = meter.create_counter(
            f"{inference}.usage.input_tokens", "{token}", "Tokens of prompts, cached or not."
        )
        self._output_tokens = meter.create_counter(
            f"{inference}.usage.output_tokens", "{token}", "Tokens of responses, reasoning included."
        )
        self._cached_tokens = meter.create_counter(
            f"{inference}.usage.cache_read.input_tokens", "{token}", "Of the input, read from a cache."
        )
        self._cache_written_tokens = meter.create_counter(
            f"{inference}.usage.cache_write.input_tokens", "{token}", "Of the input, written to a cache."
        )
        self._reasoning_tokens = meter.create_counter(
            f"{inference}.usage.reasoning.output_tokens", "{token}", "Of the output, reasoning."
        )
        unknown, unreadable = metrics.MODEL_UNKNOWN_TOKENS, metrics.UNREADABLE
        self._unknown_tokens = meter.create_counter(name_of(unknown), "{reply}", unknown.help)
        self._unreadable = meter.create_counter(name_of(unreadable), "{part}", unreadable.help)
        self._call_duration = histogram(
            "gen_ai.execute_tool.duration", "s", "A tool call, from the moment it ran.", CALL_BUCKETS
        )
        self._operation = histogram(
            "mcp.client.operation.duration",
            "s",
            "A request to an MCP server, from when it was sent until its answer came.",
            MCP_BUCKETS,
        )
        self._server_call = own_histogram(metrics.MCP_CALL_DURATION, "s")
        self._server_part = own_histogram(metrics.MCP_CALL_PART, "s")
        errors, connections = metrics.MCP_ERRORS, metrics.MCP_NEW_CONNECTIONS
        self._server_errors = meter.create_counter(name_of(errors), "{call}", errors.help)
        self._connections = meter.create_counter(name_of(connections), "{connection}", connections.help)
        self._round_duration = own_histogram(metrics.ROUND_DURATION, "s")
        self._fanout = own_histogram(metrics.ROUND_FANOUT, "{call}")
        self._queue = own_histogram(metrics.TOOL_CALL_QUEUE, "s")
        untimed = metrics.TOOL_CALLS_UNTIMED
        self._untimed = meter.create_counter(name_of(untimed), "{call}", untimed.help)
        self._phase = meter.create_counter(name_of(metrics.ROUND_PHASE), "s", metrics.ROUND_PHASE.help)
        self._known: dict[str, set[str]] = {
            kind: set()
            for kind in ("strategy", "agent", "provider", "model", "tool", "error", "server", "protocol")
        }

    def loop(self, record: LoopRecord, spent: Mapping[str, int], context: Context) -> None:
        """`spent`: nanoseconds per phase, summed over the rounds."""
        strategy = self._strategy(record)
        attributes = {"toolloop.strategy": strategy}
        if record.name:
            attributes["gen_ai.agent.name"] = self._capped("agent", record.name)
        asked = sum(round_.model.asked for round_ in record.rounds)
        self._inference_calls.record(asked, attributes, context)
        self._tool_calls.record(sum(len(r.tool_calls) for r in record.rounds), attributes, context)
        self._agent_duration.record(
            record.wall_ns / _NS,
            # An agent that answered did its work, even if one of its calls failed.
            self._failed(attributes, None if record.answered else record.failure),
            context,
        )
        for phase, value in spent.items():
            if value > 0:  # `unaccounted` may be negative, and a counter only goes up
                self._phase.add(value / _NS, {"strategy": strategy, "phase": phase}, context)

    def round(self, record: LoopRecord, round_: RoundRecord, context: Context) -> None:
        strategy = self._strategy(record)
        if round_.tool_calls:
            self._fanout.record(len(round_.tool_calls), {"strategy": strategy}, context)
        self._round_duration.record(
            round_.duration_ns / _NS, {"strategy": strategy, "status": round_.status}, context
        )

    def chat(self, record: LoopRecord, model: ModelCall, context: Context) -> None:
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": self._capped("provider", model.provider or UNKNOWN),
            "gen_ai.request.model": self._capped("model", model.model or UNKNOWN),
            "toolloop.strategy": self._strategy(record),
        }
        if (latency_ns := model.latency_ns) is not None:
            self._chat_duration.record(latency_ns / _NS, self._failed(attributes, model.failure), context)
        if model.first_token_after_ns is not None:
            self._first_chunk.record(model.first_token_after_ns / _NS, attributes, context)
        for counter, tokens in (
            (self._input_tokens, model.input_tokens),
            (self._output_tokens, model.output_tokens),
            (self._cached_tokens, model.cached_tokens),
            (self._cache_written_tokens, model.cache_written_tokens),
            (self._reasoning_tokens, model.reasoning_tokens),
        ):
            if tokens is not None:
                counter.add(tokens, attributes, context)
        ours = {"strategy": attributes["toolloop.strategy"]}
        if model.unreadable:
            self._unreadable.add(model.unreadable, ours, context)
        ours |= {
            "provider": attributes["gen_ai.provider.name"],
            "model": attributes["gen_ai.request.model"],
        }
        if model.replied and not model.tokens_known:
            self._unknown_tokens.add(1, ours, context)
        if model.first_output_after_ns is not None:
            self._first_output.record(model.first_output_after_ns / _NS, ours, context)

    def call(self, record: LoopRecord, call: ToolCall, context: Context) -> None:
        unknown = call.error_type == "unknown_tool"
        tool = UNKNOWN_TOOL if unknown else self._capped("tool", call.name)
        strategy = self._strategy(record)
        ours = {"tool": tool, "strategy": strategy}
        if (waited_ns := call.waited_ns) is not None:
            self._queue.record(waited_ns / _NS, ours, context)
        if call.remote is not None:
            self._remote(strategy, tool, call, call.remote, context)
        if (untimed := call.untimed) is not None:
            self._untimed.add(1, ours | {"reason": untimed}, context)
        if (latency_ns := call.latency_ns) is None:
            return
        attributes = {"gen_ai.tool.name": tool, "toolloop.strategy": strategy}
        self._call_duration.record(latency_ns / _NS, self._failed(attributes, call.failure), context)

    def _remote(self, strategy: str, tool: str, call: ToolCall, remote: RemoteCall, context: Context) -> None:
        ours = {"strategy": strategy, "server": self._capped("server", remote.server)}
        if (latency_ns := call.latency_ns) is not None:
            self._server_call.record(latency_ns / _NS, ours | {"status": call.status}, context)
        for part, lasted_ns in remote_parts(call).items():
            self._server_part.record(lasted_ns / _NS, ours | {"part": part}, context)
        if remote.new_connection:
            self._connections.add(1, ours, context)
        if call.failure is not None:
            error = self._capped("error", call.failure)
            self._server_errors.add(1, ours | {"error_type": error}, context)
        if call.remote_ns is None:
            return
        protocol = None if remote.protocol is None else self._capped("protocol", remote.protocol)
        known = {
            "mcp.method.name": TOOLS_CALL,
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": tool,
            "toolloop.server": ours["server"],
            "mcp.protocol.version": protocol,
            "network.transport": NETWORK_TRANSPORTS.get(remote.transport),
            "rpc.response.status_code": rpc_status(call.error_type),
        }
        attributes = {name: value for name, value in known.items() if value is not None}
        self._operation.record(call.remote_ns / _NS, self._failed(attributes, call.failure), context)

    def _strategy(self, record: LoopRecord) -> str:
        return self._capped("strategy", record.strategy)

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
