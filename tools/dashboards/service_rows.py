"""Rows about what the loops depend on: tools, model, quotas, the generator itself, the objective."""

from __future__ import annotations

from functools import partial

from profiler import metrics, palette
from profiler.metrics import Metric
from tools.dashboards.panels import (
    AMBER,
    GREEN,
    RED,
    Panel,
    Scope,
    heatmap,
    ratio,
    row,
    stat,
    timeline,
    timeseries,
)
from tools.dashboards.strategy_rows import LAG_LIMIT, NOW, WHOLE, every_loop

OBJECTIVE = 0.99
"""Share of loops that should end well within the SLO's threshold."""

FAST_BURN, SLOW_BURN = 14.4, 6.0
"""Burn rates that use up 2 % of a 30-day budget in an hour, and 5 % in six hours."""

_quarter = partial(timeseries, width=6)


def tools() -> list[Panel]:
    return [
        row("Tools"),
        timeseries(
            "Call duration p95 by tool",
            "Which tool is slow, once it has been let through the limiter? The slowest one decides a "
            "gathered round: cache it, time it out, or ask for it first.",
            "s",
            {"{{tool}}": NOW.quantile(0.95, metrics.TOOL_CALL_DURATION, by="tool")},
        ),
        timeseries(
            "Queue p95 by tool",
            "How long do calls wait for the limiter? Long here and short on the left: the tool is fine, "
            "the limit is too low. Empty for recorded loops: nobody writes down when a call was queued.",
            "s",
            {"{{tool}}": NOW.quantile(0.95, metrics.TOOL_CALL_QUEUE, by="tool")},
        ),
        timeseries(
            "Queue share of the tool phase",
            "Which share of the tool phase passes with calls waiting and none of the loop's own running? "
            "Above half, agents wait for each other more than for their tools: raise the shared limit, or "
            "run fewer agents per process. Always 0 for recorded loops, whose waits are not known.",
            "percentunit",
            {"{{strategy}}": queue_share(NOW, "strategy")},
            limit=0.5,
            highest=1,
        ),
        heatmap(
            "Call duration, every call",
            "Is a tool slow always or sometimes? A band far above the rest is a timeout, a retry or a cold "
            "cache. Choose one tool above; exemplars lead to the trace.",
            "s",
            NOW.increase(metrics.TOOL_CALL_DURATION, "_bucket", by="le"),
        ),
        _quarter(
            "Calls per second by status",
            "How do calls end? Timeouts that grow with the load mean that the tool is saturated: a lower "
            "limit makes it faster. Calls without a duration are beside them: *Calls without a duration*.",
            "ops",
            {
                "{{status}}": NOW.rate(metrics.TOOL_CALL_DURATION, "_count", by="status"),
                "without a duration": f"{NOW.rate(metrics.TOOL_CALLS_UNTIMED)} or "
                f"0 * {NOW.rate(metrics.TOOL_CALL_DURATION, '_count')}",
            },
            height=9,
            stack=True,
            colours=palette.STATUSES,
        ),
        _quarter(
            "Errors per second",
            "Which tool fails, and how? invalid_arguments and invalid_json are the model's mistakes "
            "(describe the tool better), the rest are the tool's.",
            "ops",
            {"{{tool}} {{error_type}}": NOW.rate(metrics.TOOL_ERRORS, by="tool, error_type")},
            height=9,
        ),
        timeseries(
            "Calls in flight and queued",
            "What is under way now? A queue that keeps growing means that agents ask for more than the "
            "limit lets through. Empty for recorded loops, which are known once they have ended.",
            "none",
            {
                "{{strategy}} in flight": NOW.gauge(metrics.TOOL_CALLS_IN_FLIGHT, by="strategy"),
                "{{strategy}} queued": NOW.gauge(metrics.TOOL_CALLS_QUEUED, by="strategy"),
            },
            width=24,
            height=7,
        ),
    ]


def servers() -> list[Panel]:
    calls = NOW.rate(metrics.MCP_CALL_DURATION, "_count", by="server")
    return [
        row("MCP servers"),
        _quarter(
            "Calls per second by server",
            "How many calls does each MCP server take, and how do they end? Calls that fail at once look "
            "like throughput: read it beside the errors.",
            "ops",
            {"{{server}} {{status}}": NOW.rate(metrics.MCP_CALL_DURATION, "_count", by="server, status")},
        ),
        _quarter(
            "Calls at each server, mean",
            "How many calls does each server hold at once, on average? One, under a load that asks for "
            "several, means that something lets through one call at a time.",
            "none",
            {"{{server}}": NOW.rate(metrics.MCP_CALL_DURATION, "_sum", by="server")},
        ),
        _quarter(
            "Server errors per second",
            "Which server fails, and how? tool_error is what the tool itself says; rpc_ and http_ are the "
            "server's; session_lost means that another call's failure ended the session.",
            "ops",
            {"{{server}} {{error_type}}": NOW.rate(metrics.MCP_ERRORS, by="server, error_type")},
        ),
        _quarter(
            "New connections per call",
            "Does each call open a connection of its own? At 1 it does, as the official SDK does for each "
            "reply that is an event stream: let the server answer in JSON.",
            "percentunit",
            {"{{server}}": ratio(NOW.rate(metrics.MCP_NEW_CONNECTIONS, by="server"), calls)},
            highest=1,
        ),
        timeseries(
            "Call p95 by part",
            "Where is the time of a call: waiting for the session, in the client, at the server, or reading "
            "the answer? Waits before it is sent are the client's, and no faster server shortens them. "
            "server_and_network: the server does not say how long it took.",
            "s",
            {"{{server}} {{part}}": NOW.quantile(0.95, metrics.MCP_CALL_PART, by="server, part")},
            width=24,
            height=7,
        ),
    ]


def waiting_share(scope: Scope, by: str) -> str:
    """Seconds that calls of MCP servers waited before they were sent, for each second they took."""
    waited = scope.rate(metrics.MCP_CALL_PART, "_sum", by=by, part="=~.+_wait")
    return ratio(waited, scope.rate(metrics.MCP_CALL_PART, "_sum", by=by))


def model() -> list[Panel]:
    def p95(metric: Metric) -> str:
        return NOW.quantile(0.95, metric, by="provider, model")

    return [
        row("Model"),
        _quarter(
            "Request p95",
            "How long does the model take, retries and backoff included? No strategy for tool calls "
            "changes this: if it is most of a loop, use fewer rounds or a faster model.",
            "s",
            {"{{provider}} {{model}}": p95(metrics.MODEL_REQUEST_DURATION)},
        ),
        _quarter(
            "First token, first output and first call p95",
            "How long until a streamed answer begins, reasoning or not, until its first token that is no "
            "reasoning, and until its first tool call is complete? A call complete long before the end of "
            "the request could start early. Streamed requests only.",
            "s",
            {
                "{{provider}} {{model}} token": p95(metrics.MODEL_FIRST_TOKEN),
                "{{provider}} {{model}} output": p95(metrics.MODEL_FIRST_OUTPUT),
                "{{provider}} {{model}} call": p95(metrics.MODEL_FIRST_TOOL_CALL),
            },
        ),
        _quarter(
            "Tokens per second",
            "How fast are tokens used? Input grows with every round of a loop: long tool results are paid "
            "again and again, unless they are cached. Cached and cache_written are part of the input, "
            "reasoning of the output. Replies of unknown tokens: there were more than are counted.",
            "none",
            {
                "{{model}} {{direction}}": NOW.rate(metrics.MODEL_TOKENS, by="model, direction"),
                "{{model}} {{kind}}": NOW.rate(metrics.MODEL_TOKEN_DETAILS, by="model, kind"),
                "{{model}} replies of unknown tokens": NOW.rate(metrics.MODEL_UNKNOWN_TOKENS, by="model"),
            },
        ),
        _quarter(
            "Requests per second by status",
            "How do model requests end, after all retries? Errors here fail whole loops.",
            "reqps",
            {"{{status}}": NOW.rate(metrics.MODEL_REQUEST_DURATION, "_count", by="status")},
            stack=True,
            colours=palette.STATUSES,
        ),
    ]


def rate_limits() -> list[Panel]:
    who = "strategy, target, name, reason"
    legend = "{{strategy}} {{target}} {{name}} {{reason}}"
    return [
        row("Rate limits"),
        _quarter(
            "Attempts refused",
            "Whose quota refuses attempts, under which strategy? Refusals that start with a strategy are "
            "its concurrency; refusals under all of them are the load.",
            "reqps",
            {legend: NOW.rate(metrics.RATE_LIMITED, by=who)},
        ),
        _quarter(
            "Retries",
            "What is tried again, and why? Retries multiply the load: when they grow with refusals, "
            "lower the limit rather than retry more.",
            "reqps",
            {legend: NOW.rate(metrics.RETRIES, by=who)},
        ),
        _quarter(
            "Quota left",
            "How much of the quota did the provider last say is left? Near zero the next burst is refused.",
            "percentunit",
            {
                "{{model}} {{resource}}": ratio(
                    NOW.gauge(metrics.QUOTA_REMAINING, by="provider, model, resource", how="min"),
                    NOW.gauge(metrics.QUOTA_LIMIT, by="provider, model, resource", how="min"),
                )
            },
            highest=1,
        ),
        _quarter(
            "Backoff",
            "How many agents, on average, sit out a backoff (seconds of backoff per second)? They hold "
            "their loops open and do nothing.",
            "none",
            {legend: NOW.rate(metrics.BACKOFF, by=who)},
        ),
    ]


def generator() -> list[Panel]:
    return [
        row("Generator health"),
        _quarter(
            "Event-loop lag p99",
            "How late do timers fire in each process? Above 50 ms the process is saturated, or a tool "
            "blocks it, and all latencies on this page are too high. Empty for recorded loops: those who ran "
            "them do not say.",
            "s",
            {"{{instance}}": NOW.quantile(0.99, metrics.EVENT_LOOP_LAG, by="instance")},
            limit=LAG_LIMIT,
        ),
        _quarter(
            "Schedule lag p99",
            "How late do loops start against the load that was asked for? When it grows, the load is not "
            "what it says it is: add processes. Empty for recorded loops: no load was asked for.",
            "s",
            {"{{instance}}": NOW.quantile(0.99, metrics.SCHEDULE_LAG, by="instance")},
        ),
        _quarter(
            "Agents",
            "How many agents run loops? Compare latencies only at equal numbers. Empty for recorded loops: "
            "how many there are is not known.",
            "none",
            {"{{user_class}}": NOW.gauge(metrics.AGENTS, by="user_class")},
        ),
        _quarter(
            "Lost for monitoring",
            "Is anything missing here? Dropped records are loops that no metric counts; overflow is "
            "observations under __other__ because there were more than 50 tools, error types or strategies, "
            "or 20 models, providers, servers or sources. Unseen are calls that no watched tool ran, "
            "outside those that ran beside every loop, ambiguous those that could not be told apart, "
            "unreadable parts of replies, failed the watching itself, by what it watched.",
            "ops",
            {
                "dropped by {{sink}}": NOW.rate(metrics.RECORDS_DROPPED, by="sink"),
                "overflow of {{label}}": NOW.rate(metrics.LABEL_OVERFLOW, by="label"),
                "unseen": NOW.rate(metrics.UNOBSERVED_CALLS),
                "outside loops": NOW.rate(metrics.ORPHAN_CALLS),
                "ambiguous": NOW.rate(metrics.AMBIGUOUS_CALLS),
                "unreadable": NOW.rate(metrics.UNREADABLE),
                "failed {{part}}": NOW.rate(metrics.WATCH_FAILURES, by="part"),
            },
        ),
        timeline(
            "Strategy under test",
            "Which strategy had the system to itself, when? The same changes are the annotations of every "
            "graph. Empty outside a load test, as for recorded loops.",
            NOW.gauge(metrics.RUN_INFO, by="strategy", how="max"),
            "{{strategy}}",
        ),
    ]


def objective() -> list[Panel]:
    threshold = "$slo"
    return [
        row("SLO"),
        stat(
            "Loops within the objective",
            "Which share of loops ended well within the threshold chosen above? "
            f"The objective is {OBJECTIVE:.0%}. The threshold is a bucket bound, so the figure is exact.",
            "percentunit",
            within(WHOLE, threshold, "strategy"),
            steps=((None, RED), (1 - FAST_BURN * (1 - OBJECTIVE), AMBER), (OBJECTIVE, GREEN)),
            decimals=2,
            width=8,
            height=8,
        ),
        timeseries(
            "Burn rate",
            f"How fast is the error budget ({1 - OBJECTIVE:.0%} of loops) used up? 1 uses it up exactly. "
            f"Above {FAST_BURN} over 1h and 5m, or above {SLOW_BURN:g} over 6h and 30m, an alert fires; the "
            "long window says that it matters, the short one that it still goes on.",
            "none",
            {window: burn_rate(NOW.over(window), threshold) for window in ("5m", "30m", "1h", "6h")},
            limit=FAST_BURN,
            width=16,
        ),
    ]


def queue_share(scope: Scope, by: str, **matchers: str) -> str:
    return ratio(
        scope.rate(metrics.ROUND_PHASE, by=by, phase="=queue", **matchers),
        scope.rate(metrics.ROUND_PHASE, by=by, phase="=~tools|queue", **matchers),
    )


def within(scope: Scope, threshold: str, by: str = "", **matchers: str) -> str:
    """Share of loops that were good within the threshold: absent without loops, 0 when none was."""
    good = scope.rate(metrics.LOOP_DURATION, "_bucket", by=by, status="=ok", le=f"={threshold}", **matchers)
    every = every_loop(scope.rate, by, **matchers)
    return f"({good} or 0 * {every}) / ({every} > 0)"


def burn_rate(scope: Scope, threshold: str, by: str = "", **matchers: str) -> str:
    return f"(1 - {within(scope, threshold, by, **matchers)}) / {1 - OBJECTIVE:g}"
