"""The table of metrics: each one is defined here, under its full name, and nowhere else.

Base units (seconds). Labels are bounded: ids, prompts, arguments and error texts are never labels;
the exporter caps how many strategies, models, tool names and error types there can be, and names that a model
made up are none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TOOL_BUCKETS = (0.001, 0.0025, 0.005, *(0.01 * 2**i for i in range(14)))
"""Seconds: .001, .0025, .005, then .01 doubling to 81.92."""

MODEL_BUCKETS = (0.005, 0.01, 0.04, *(0.01 * 2**i for i in range(3, 17)))
"""Seconds: .005, .01, .04, then .08 doubling to 655.36: the SDKs wait for 600 s. As many as of a tool."""

ROUND_BUCKETS = tuple(0.1 * 2**i for i in range(16))
"""Seconds: .1 doubling to 3276.8."""

COUNT_BUCKETS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0, 128.0)

RATIO_BUCKETS = (1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `name` is the full name as scraped (a counter's ends in `_total`)."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def is_time(self) -> bool:
        """Its values are seconds, kept as nanoseconds until they are exposed."""
        return self.name.removesuffix("_total").endswith("_seconds")


def counter(name: str, help: str, labels: tuple[str, ...] = ()) -> Metric:
    return Metric(name, "counter", help, labels)


def gauge(name: str, help: str, labels: tuple[str, ...] = ()) -> Metric:
    return Metric(name, "gauge", help, labels)


def histogram(name: str, help: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Metric:
    return Metric(name, "histogram", help, labels, buckets)


LOOP_DURATION = histogram(
    "toolloop_loop_duration_seconds",
    "A loop, from when it was due (in an open load: its arrival) to the final answer; status is ok, "
    "incomplete (answered, but a tool call had failed), error or cancelled. Incomplete ones and errors have "
    "failed; so have cancelled ones that a load test cut off, but not those of another program (strategy "
    "recorded), which its user stopped, or of which no more came.",
    ("strategy", "status"),
    ROUND_BUCKETS,
)
RECORDED_LOOPS = counter(
    "toolloop_recorded_loops_total",
    "Loops of other programs, by what told of them: otel (their spans) or proxy (their requests). All "
    "metrics of theirs have the strategy recorded.",
    ("source",),
)
LOOP_ROUNDS = histogram("toolloop_loop_rounds", "Rounds of a loop.", ("strategy",), COUNT_BUCKETS)
LOOP_TOOL_CALLS = histogram("toolloop_loop_tool_calls", "Tool calls of a loop.", ("strategy",), COUNT_BUCKETS)
ARRIVALS_DROPPED = counter(
    "toolloop_arrivals_dropped_total",
    "Arrivals of an open load whose loop never started; they have failed too.",
    ("strategy",),
)
ROUND_DURATION = histogram(
    "toolloop_round_duration_seconds",
    "Wall time of a round: one model response and the execution of every tool call in it.",
    ("strategy", "status"),
    ROUND_BUCKETS,
)
ROUND_PHASE = counter(
    "toolloop_round_phase_seconds_total",
    "Wall time of rounds by phase; the phases partition it.",
    ("strategy", "phase"),
)
ROUND_FANOUT = histogram(
    "toolloop_round_fanout",
    "Tool calls the model asked for in one round with calls.",
    ("strategy",),
    COUNT_BUCKETS,
)
ROUND_PEAK_CONCURRENCY = histogram(
    "toolloop_round_peak_concurrency",
    "Most tool calls of one round that ran at the same time.",
    ("strategy",),
    COUNT_BUCKETS,
)
TOOL_PHASE_WALL = counter(
    "toolloop_tool_phase_wall_seconds_total", "Wall time of tool phases.", ("strategy",)
)
TOOL_PHASE_WORK = counter(
    "toolloop_tool_phase_work_seconds_total",
    "Sum of the durations of the calls of tool phases; work / wall is the speed-up.",
    ("strategy",),
)
TOOL_PHASE_CRITICAL_PATH = counter(
    "toolloop_tool_phase_critical_path_seconds_total",
    "Longest call of each tool phase, summed; critical path / wall is the efficiency.",
    ("strategy",),
)
ROUND_STRAGGLER_RATIO = histogram(
    "toolloop_round_straggler_ratio",
    "Longest over median call duration of a round.",
    ("strategy",),
    RATIO_BUCKETS,
)
ROUND_SHORTFALLS = counter(
    "toolloop_round_shortfalls_total",
    "Rounds whose calls overlapped less than they could have, by the main cause.",
    ("strategy", "cause"),
)
TOOL_CALL_DURATION = histogram(
    "toolloop_tool_call_duration_seconds",
    "Execution of a tool call, from the moment it was through its limiter.",
    ("strategy", "tool", "status"),
    TOOL_BUCKETS,
)
TOOL_CALLS_UNTIMED = counter(
    "toolloop_tool_calls_untimed_total",
    "Tool calls that are not in toolloop_tool_call_duration_seconds; reason is never_started, never_ended "
    "(no end was seen), upper_bound (a recording does not say when it started, only when it could have) or "
    "wait (it only waited for what another call began).",
    ("strategy", "tool", "reason"),
)
ROUND_UPPER_BOUNDS = counter(
    "toolloop_round_upper_bounds_total",
    "Rounds with calls that are left out of work, wall, critical path, peak concurrency and straggler ratio, "
    "since of a call only an upper bound of its duration is known.",
    ("strategy",),
)
TOOL_CALL_QUEUE = histogram(
    "toolloop_tool_call_queue_seconds",
    "Wait of a tool call from being handed to the strategy until it started, or was given up; of those of "
    "which it was seen.",
    ("strategy", "tool"),
    TOOL_BUCKETS,
)
TOOL_ERRORS = counter(
    "toolloop_tool_errors_total",
    "Tool calls that did not end well, by bounded error type.",
    ("strategy", "tool", "error_type"),
)
UNOBSERVED_CALLS = counter(
    "toolloop_unobserved_calls_total",
    "Calls that the model asked for and no watched tool ran.",
    ("strategy",),
)
AMBIGUOUS_CALLS = counter(
    "toolloop_ambiguous_calls_total",
    "Calls of watched tools that could not be told apart, or only resembled what the model had asked for.",
    ("strategy",),
)
ORPHAN_CALLS = counter("toolloop_orphan_calls_total", "Calls of watched tools that ran outside every loop.")
WATCH_FAILURES = counter(
    "toolloop_watch_failures_total",
    "Times that watching a loop, request or tool failed: records lack it, the application did not notice.",
    ("part",),
)
MCP_CALL_DURATION = histogram(
    "toolloop_mcp_call_duration_seconds",
    "A call of an MCP server's tool, from the moment it was through its limiter.",
    ("strategy", "server", "status"),
    TOOL_BUCKETS,
)
MCP_CALL_PART = histogram(
    "toolloop_mcp_call_part_seconds",
    "The parts of such a call, which sum to its duration: session_wait and client_wait (before its request "
    "was sent), server and network (server_and_network where the server does not say how long it took), "
    "parsing.",
    ("strategy", "server", "part"),
    TOOL_BUCKETS,
)
MCP_ERRORS = counter(
    "toolloop_mcp_errors_total",
    "Calls of an MCP server's tools that did not end well, by bounded error type.",
    ("strategy", "server", "error_type"),
)
MCP_NEW_CONNECTIONS = counter(
    "toolloop_mcp_new_connections_total",
    "Calls for which the client had to open a connection to the MCP server.",
    ("strategy", "server"),
)
TOOL_CALLS_IN_FLIGHT = gauge("toolloop_tool_calls_in_flight", "Tool calls running now.", ("strategy", "tool"))
TOOL_CALLS_QUEUED = gauge(
    "toolloop_tool_calls_queued",
    "Tool calls handed to the strategy and not yet started.",
    ("strategy", "tool"),
)
CONCURRENCY_LIMIT = gauge(
    "toolloop_concurrency_limit",
    "Tool calls the strategy lets run at once in this process; absent when it sets no limit.",
    ("strategy",),
)
MODEL_REQUEST_DURATION = histogram(
    "toolloop_model_request_duration_seconds",
    "A model request as the caller sees it, all attempts and backoff included.",
    ("strategy", "provider", "model", "status"),
    MODEL_BUCKETS,
)
MODEL_FIRST_TOKEN = histogram(
    "toolloop_model_time_to_first_token_seconds",
    "From the start of a streamed model request to its first generated token, reasoning or not.",
    ("strategy", "provider", "model"),
    MODEL_BUCKETS,
)
MODEL_FIRST_OUTPUT = histogram(
    "toolloop_model_time_to_first_output_seconds",
    "From the start of a streamed model request to the first token of a text or a call, reasoning left out.",
    ("strategy", "provider", "model"),
    MODEL_BUCKETS,
)
MODEL_FIRST_TOOL_CALL = histogram(
    "toolloop_model_time_to_first_tool_call_seconds",
    "From the start of a streamed model request to its first call with complete arguments.",
    ("strategy", "provider", "model"),
    MODEL_BUCKETS,
)
MODEL_TOKENS = counter(
    "toolloop_model_tokens_total",
    "All tokens that replies named; direction is input or output.",
    ("strategy", "provider", "model", "direction"),
)
MODEL_TOKEN_DETAILS = counter(
    "toolloop_model_token_details_total",
    "Tokens that are part of toolloop_model_tokens_total: kind is cached (input read from the provider's "
    "cache), cache_written (input written to it) or reasoning (output).",
    ("strategy", "provider", "model", "kind"),
)
MODEL_UNKNOWN_TOKENS = counter(
    "toolloop_model_unknown_tokens_total",
    "Replies that did not say all of their tokens: there were more than are counted.",
    ("strategy", "provider", "model"),
)
UNREADABLE = counter(
    "toolloop_unreadable_total", "Parts of replies that could not be understood.", ("strategy",)
)
RATE_LIMITED = counter(
    "toolloop_rate_limited_total",
    "Attempts refused for a quota; target is model or tool, reason the status (429, 529).",
    ("strategy", "target", "name", "reason"),
)
RETRIES = counter(
    "toolloop_retries_total",
    "Attempts after the first; reason is the status or error that caused them, unknown where only their "
    "number is known.",
    ("strategy", "target", "name", "reason"),
)
BACKOFF = counter(
    "toolloop_backoff_seconds_total",
    "Time between an attempt and the next; reason is the status or error that caused it.",
    ("strategy", "target", "name", "reason"),
)
QUOTA_REMAINING = gauge(
    "toolloop_quota_remaining",
    "What the provider's rate-limit headers last said is left; resource is requests or a kind of tokens, "
    "requests_day where they are those of a day.",
    ("provider", "model", "resource"),
)
QUOTA_LIMIT = gauge(
    "toolloop_quota_limit",
    "What the provider's rate-limit headers last said is allowed.",
    ("provider", "model", "resource"),
)
EVENT_LOOP_LAG = histogram(
    "toolloop_event_loop_lag_seconds",
    "How late a timer of the event loop fired: what a blocked loop adds to every latency.",
    (),
    TOOL_BUCKETS,
)
SCHEDULE_LAG = histogram(
    "toolloop_schedule_lag_seconds",
    "How late an agent started a loop against when the load meant it to start.",
    (),
    TOOL_BUCKETS,
)
AGENTS = gauge("toolloop_agents", "Agents that run loops in this process now.", ("user_class",))
RUN_INFO = gauge(
    "toolloop_run_info",
    "1 while the strategy has the system to itself; its changes mark the trials of a run.",
    ("scenario", "strategy", "version"),
)
RECORDS_DROPPED = counter("toolloop_records_dropped_total", "Records that a sink could not take.", ("sink",))
LABEL_OVERFLOW = counter(
    "toolloop_label_overflow_total",
    "Observations whose label value was replaced by __other__ because there were too many.",
    ("label",),
)

TABLE = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""What a process shows that runs loops, watches them, or records them."""

COLLECTOR_REQUESTS = counter(
    "toolloop_collector_requests_total",
    "Requests that `profiler collect` answered, by what they carried and the HTTP status.",
    ("signal", "status"),
)
COLLECTOR_SPANS = counter(
    "toolloop_collector_spans_total", "Spans that came in, those that came again or in vain included."
)
COLLECTOR_SPANS_DROPPED = counter(
    "toolloop_collector_spans_dropped_total",
    "Spans that are in no record: of no agent, repeated, late (their loop had been written) or unreadable.",
    ("reason",),
)
COLLECTOR_LOOPS = counter(
    "toolloop_collector_loops_total",
    "Loops that were recorded, by what ended their trace: its root, one whose parent is in another process "
    "(remote), nothing more for a while (idle), too much at once (bound), the collector's own end (stopped).",
    ("end",),
)
COLLECTOR_OPEN_TRACES = gauge(
    "toolloop_collector_open_traces", "Traces of which spans came, and which have not ended."
)
COLLECTOR_OPEN_SPANS = gauge("toolloop_collector_open_spans", "Spans of open traces.")
COLLECTOR_OPEN_BYTES = gauge("toolloop_collector_open_bytes", "Bytes that are kept of open traces.")
COLLECTOR_JOURNAL_BYTES = gauge(
    "toolloop_collector_journal_bytes", "Bytes on disk that keep open traces over a kill."
)

COLLECTOR_TABLE = tuple(
    value
    for value in list(globals().values())
    if isinstance(value, Metric) and value.name.startswith("toolloop_collector_")
)
"""What `profiler collect` shows of itself, beside the loops that it recorded."""

PROXY_REQUESTS = counter(
    "toolloop_proxy_requests_total",
    "Forwarded requests that have ended, by what they were for, and by the class of their status (none: no "
    "response came).",
    ("kind", "status"),
)
PROXY_EXCHANGES = counter("toolloop_proxy_exchanges_total", "Requests by how they ended.", ("outcome",))
PROXY_IN_FLIGHT = gauge("toolloop_proxy_requests_in_flight", "Requests that are being forwarded.")
PROXY_CLIENTS = gauge("toolloop_proxy_client_connections", "Connections of clients.")
PROXY_UPSTREAM = gauge("toolloop_proxy_upstream_connections", "Connections to upstreams.")
PROXY_UPSTREAM_MADE = counter(
    "toolloop_proxy_upstream_connections_made_total", "Connections made to upstreams."
)
PROXY_OPEN_LOOPS = gauge("toolloop_proxy_open_loops", "Loops that have not ended, or not for long.")
PROXY_DOUBTS = counter(
    "toolloop_proxy_doubts_total",
    "Requests that may not be in the loop where they belong, or of which something was not seen.",
    ("reason",),
)
PROXY_UNOBSERVED = counter(
    "toolloop_proxy_unobserved_total",
    "Requests that were forwarded and of which too little was read along, under load.",
)
PROXY_DEFECTS = counter("toolloop_proxy_defects_total", "Failures of what reads along.")

PROXY_TABLE = tuple(
    value
    for value in list(globals().values())
    if isinstance(value, Metric) and value.name.startswith("toolloop_proxy_")
)
"""What `profiler proxy` shows of itself, beside the loops that it recorded."""
