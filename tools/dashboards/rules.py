"""Recording and alert rules, with a section of the runbook for each alert."""

from __future__ import annotations

import json
from dataclasses import dataclass

from profiler import metrics
from tools.dashboards.board import SLO_SECONDS
from tools.dashboards.panels import Scope
from tools.dashboards.service_rows import (
    FAST_BURN,
    OBJECTIVE,
    SLOW_BURN,
    burn_rate,
    queue_share,
    waiting_share,
)
from tools.dashboards.strategy_rows import LAG_LIMIT, per_wall_second

RUNBOOK = "dashboards/README.md"

_SCOPE = Scope(variables=False)
_BY = "job, testid, strategy"


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert. `meaning`, `look` and `change` are its section of the runbook."""

    name: str
    expr: str
    wait: str
    severity: str
    summary: str
    description: str
    meaning: str
    look: str
    change: str


def recordings() -> dict[str, str]:
    """Name → PromQL. A name says its labels, the metric and the operation, as Prometheus recommends."""
    found = {}
    for metric in (metrics.LOOP_DURATION, metrics.ROUND_DURATION):
        buckets = _SCOPE.over("1m").rate(metric, "_bucket", by="strategy, le")
        for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
            found[f"strategy:{metric.name}:{name}_rate1m"] = f"histogram_quantile({q}, {buckets}) >= 0"
    for name, part in (
        ("speedup", metrics.TOOL_PHASE_WORK),
        ("efficiency", metrics.TOOL_PHASE_CRITICAL_PATH),
    ):
        found[_tool_phase(name)] = per_wall_second(_SCOPE.over("5m").rate, part, _BY)
    for window in ("1m", "5m", "30m", "1h", "6h"):
        found[_burn(window)] = burn_rate(_SCOPE.over(window), f"{SLO_SECONDS:.10g}", "job, testid")
    return found


def alerts() -> list[Alert]:
    lag = _SCOPE.over("1m").quantile(0.99, metrics.EVENT_LOOP_LAG, by="job, instance, testid")
    observed = _SCOPE.select(metrics.LOOP_DURATION, "_count", testid="=")
    return [
        Alert(
            "ToolloopSLOFastBurn",
            f"{_burn('1h')} > {FAST_BURN} and {_burn('5m')} > {FAST_BURN}",
            "2m",
            "page",
            "{{ $labels.job }} fails its loop objective fast",
            "The error budget of loops burns {{ $value | humanize }} times too fast, over 1h and over 5m.",
            f"More than {FAST_BURN * (1 - OBJECTIVE):.0%} of loops failed or took longer than "
            f"{SLO_SECONDS} s, over an hour and still now: a month's budget is gone in two days.",
            "Row *SLO*, then *Failed loops* and *Loop p95* in *Verdict*: failures or slowness? Then *Where "
            "the wall time goes*, and *Requests per second by status* or *Errors per second* for what fails.",
            "Undo the last change of strategy, limit, model or tool. If a quota refuses attempts, lower the "
            "limit.",
        ),
        Alert(
            "ToolloopSLOSlowBurn",
            f"{_burn('6h')} > {SLOW_BURN:g} and {_burn('30m')} > {SLOW_BURN:g}",
            "15m",
            "ticket",
            "{{ $labels.job }} fails its loop objective slowly",
            "The error budget of loops burns {{ $value | humanize }} times too fast, over 6h and over 30m.",
            f"More than {SLOW_BURN * (1 - OBJECTIVE):.0%} of loops failed or took too long, over six hours "
            "and still now.",
            "As for the fast burn, over a day: *Where the wall time goes, over time* shows which phase grew.",
            "Whatever grew: a tool (timeout, cache), the model (fewer rounds), the queue (raise the limit).",
        ),
        Alert(
            "ToolloopSLOTestBurn",
            f'{_burn("5m")}{{testid!=""}} > {FAST_BURN} and {_burn("1m")}{{testid!=""}} > {FAST_BURN}',
            "30s",
            "info",
            "The load test {{ $labels.testid }} fails its objective",
            "In the test, loops fail or take too long {{ $value | humanize }} times more often than the "
            "objective allows.",
            "The fast burn for a load test, over 5m and 1m: a test is over before an hour's window says "
            "anything.",
            "*Comparison over the time range*: one strategy or all of them? *Generator lag p99*: is the "
            "test valid?",
            "If it is all strategies: fewer agents, or another threshold. If it is one: that is the "
            "test's result.",
        ),
        Alert(
            "ToolloopRateLimited",
            f"{_SCOPE.over('5m').rate(metrics.RATE_LIMITED, by='job, testid, strategy, target, name')} > 0.1",
            "5m",
            "ticket",
            "{{ $labels.name }} refuses attempts of {{ $labels.job }}",
            '{{ printf "%.2f" $value }} attempts a second are refused for a quota of {{ $labels.target }} '
            "{{ $labels.name }} under {{ $labels.strategy }}.",
            "A quota has refused more than one attempt in ten seconds, for ten minutes. Retries hide that "
            "from users at first, and multiply the load.",
            "Row *Rate limits*: model or tool, and under which strategy; *Quota left*; *Backoff* for "
            "its price.",
            "Lower the strategy's limit, or run fewer processes (each has a limiter of its own); ask for "
            "more quota.",
        ),
        Alert(
            "ToolloopQueueDominates",
            # Under `sequential` calls always wait for each other: that is what it does.
            f"{queue_share(_SCOPE.over('5m'), _BY, strategy='!=sequential')} > 0.5",
            "5m",
            "ticket",
            "Calls of {{ $labels.job }} wait more than they run",
            "{{ $value | humanizePercentage }} of the tool phase under {{ $labels.strategy }} passes with "
            "calls queued and none of the loop's own running.",
            "Agents wait for each other at the limiter for more than half of the tool phase.",
            "*Queue p95 by tool*, *Calls running, mean, and the limit*: is the limit reached all the time?",
            "Raise the limit if *Rate limits* is quiet; else fewer agents per process. One slow tool that "
            "holds all places wants a timeout.",
        ),
        Alert(
            "ToolloopMCPClientWaits",
            f"{waiting_share(_SCOPE.over('5m'), 'job, testid, server')} > 0.5",
            "5m",
            "ticket",
            "Calls of {{ $labels.job }} wait in the client of {{ $labels.server }}",
            "{{ $value | humanizePercentage }} of the time of calls of {{ $labels.server }} passes before "
            "they are sent.",
            "Calls of an MCP server spend more than half of their time in its client: behind a lock of the "
            "session, or for a connection.",
            "*Call p95 by part*: session_wait is a lock of the framework's, client_wait its connections. "
            "*Calls at each server, mean*: near 1, the session lets one call through at a time.",
            "Several sessions, or a client that does not lock its session; more connections in its "
            "http_client.",
        ),
        Alert(
            "ToolloopLowEfficiency",
            # `sequential` runs its calls in turn, and why other programs ran theirs so is in no recording.
            f'{_tool_phase("efficiency")}{{strategy!~"sequential|recorded"}} < 0.5',
            "10m",
            "ticket",
            "Tool phases of {{ $labels.job }} take twice their longest call",
            "Under {{ $labels.strategy }} the longest call is {{ $value | humanizePercentage }} of the "
            "tool phase.",
            "Tool phases take more than twice as long as their longest call: the limiter, or something that "
            "serialises the calls, costs more than the work.",
            "*Peak concurrency of a round* against the fan-out. Peak below fan-out without a queue: a tool "
            "blocks the event loop, *Event-loop lag p99* agrees. With a queue: the limit.",
            "Make the blocking tool async, or raise the limit.",
        ),
        Alert(
            "ToolloopGeneratorSaturated",
            f"({lag}) > {LAG_LIMIT}",
            "1m",
            "ticket",
            "{{ $labels.instance }} is too busy to measure",
            "Timers of its event loop are {{ $value | humanizeDuration }} late at p99: its latencies "
            "are invalid.",
            "The process itself is the bottleneck. Every latency it reports includes its own delay.",
            "Row *Generator health*, by process; the machine's CPU; a tool that blocks (its *Call duration* "
            "grows with the agents).",
            "Fewer agents per process, more processes or machines. Do not use the figures of the time.",
        ),
        Alert(
            "ToolloopLabelOverflow",
            f"{_SCOPE.over('15m').increase(metrics.LABEL_OVERFLOW, by='job, testid, label')} > 0",
            "0m",
            "ticket",
            "{{ $labels.job }} has too many values of {{ $labels.label }}",
            "{{ $value | humanize }} observations in 15m are under __other__ as {{ $labels.label }}.",
            "More than 50 different tools, error types or strategies, or more than 20 models, providers, "
            "servers or sources: the rest share the name `__other__`. Names that no tool has do not count: "
            "they are `__unknown_tool__`.",
            "`count by (tool) (toolloop_tool_call_duration_seconds_count)`: real tools, or names that a "
            "model made up?",
            "Answer unknown tools with `unknown_tool` (the loop does); give tools stable names without "
            "ids in them.",
        ),
        Alert(
            "ToolloopRecordsDropped",
            f"{_SCOPE.over('5m').increase(metrics.RECORDS_DROPPED, by='job, instance, testid, sink')} > 0",
            "0m",
            "ticket",
            "{{ $labels.instance }} loses records",
            "{{ $value | humanize }} records in 5m could not be taken by {{ $labels.sink }}.",
            "A sink failed on records or could not keep up: what it shows is less than what happened.",
            "The process's log holds the first failure; a full disk is the usual one for `jsonl`.",
            "Make room, or drop the sink. Do not compare figures across the gap.",
        ),
        Alert(
            "ToolloopRecordingIncomplete",
            " or ".join(
                f"{_SCOPE.over('15m').increase(metric, by='job, instance', **matchers)} > 0"
                for metric, matchers in (
                    (metrics.COLLECTOR_SPANS_DROPPED, {"reason": "=~late|unreadable"}),
                    (metrics.COLLECTOR_LOOPS, {"end": "=bound"}),
                    (metrics.PROXY_UNOBSERVED, {}),
                    (metrics.PROXY_DEFECTS, {}),
                )
            ),
            "0m",
            "ticket",
            "{{ $labels.instance }} does not record all that happens",
            "In 15m {{ $value | humanize }} spans, loops or requests are in no record, or not whole.",
            "The collector got spans too late or unreadable, or had too many open at once; or the proxy "
            "forwarded requests and could not read them along. What agents do is not affected: what is shown "
            "of it lacks something.",
            "*Collector: spans per second*, *Collector: what ended loops*, *Proxy: how requests ended*; the "
            "process's log.",
            "Late spans: let traces stay open for longer. Too much open: more collectors, each with whole "
            "traces. Unobserved requests: more proxies.",
        ),
        Alert(
            "ToolloopMetricsVanished",
            # A load test's metrics end with it: only what carries no testid is expected to stay.
            f"count by (job) (last_over_time({observed}[1h])) unless count by (job) "
            f"(last_over_time({observed}[5m]))",
            "5m",
            "page",
            "No metrics from {{ $labels.job }} any more",
            "{{ $labels.job }} exposed loop metrics within the last hour, and none for 5m.",
            "The service is down, its /metrics is not reached, or the exporter is gone from it. No other "
            "alert can fire for it now. It ends by itself after an hour.",
            "`up{job=…}`; Prometheus's page of targets; the service's last deployment.",
            "Restore the endpoint, or remove the scrape job if it is gone for good.",
        ),
    ]


def render() -> str:
    """`rules.yml`."""
    lines = [
        "# Built by `profiler dashboards`: change the code, not this file.",
        "groups:",
        "  - name: toolloop-recordings",
        "    rules:",
    ]
    for name, expr in recordings().items():
        lines += [f"      - record: {name}", f"        expr: {json.dumps(expr)}"]
    lines += ["  - name: toolloop-alerts", "    rules:"]
    for alert in alerts():
        lines += [
            f"      - alert: {alert.name}",
            f"        expr: {json.dumps(alert.expr)}",
            f"        for: {alert.wait}",
            "        labels:",
            f"          severity: {alert.severity}",
            "        annotations:",
            f"          summary: {json.dumps(alert.summary)}",
            f"          description: {json.dumps(alert.description)}",
            f"          runbook_url: {RUNBOOK}#{alert.name.lower()}",
        ]
    return "\n".join(lines) + "\n"


def runbook() -> str:
    """A section of `README.md` for each alert."""
    return "\n".join(
        f"### {alert.name}\n\n{alert.meaning}\n\n*Look at:* {alert.look}\n\n*Change:* {alert.change}\n"
        for alert in alerts()
    )


def _tool_phase(name: str) -> str:
    return f"job_testid_strategy:toolloop_tool_phase_{name}:ratio_rate5m"


def _burn(window: str) -> str:
    return f"job_testid:toolloop_slo_burn:rate{window}"
