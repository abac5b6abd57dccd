"""Rows about the strategies: the verdict, side by side, and what happens inside a round."""

from __future__ import annotations

from collections.abc import Callable

from profiler import metrics, palette
from profiler.metrics import Metric
from profiler.records import RECORDED
from tools.dashboards.panels import (
    AMBER,
    GREEN,
    NEUTRAL,
    RANGE,
    RED,
    Panel,
    Queries,
    Scope,
    bars,
    heatmap,
    ratio,
    row,
    stat,
    table,
    timeseries,
)

NOW = Scope()
"""Over the scrape intervals around each point of a graph."""

WHOLE = Scope(window=RANGE)
"""Over the dashboard's whole time range: comparable between strategies that took turns."""

Counted = Callable[..., str]
"""`Scope.rate` or `Scope.increase`."""

LAG_LIMIT = 0.05
"""Seconds of event-loop lag at p99 above which the process measures itself and not the agents."""


def verdict() -> list[Panel]:
    by = "strategy"
    return [
        row("Verdict"),
        stat(
            "Loop p95",
            "How long do 95 in 100 loops take at most, from the user's message to the final answer? "
            "Over the whole time range. If it is too long, see below which phase the time goes to.",
            "s",
            WHOLE.quantile(0.95, metrics.LOOP_DURATION, by=by),
        ),
        stat(
            "Speed-up",
            "How much faster is a tool phase than its calls one after another (work / wall)? 1 is "
            "sequential; if a concurrent strategy stays near 1, rounds have few calls, or something "
            "serialises them: see fan-out and event-loop lag. Of recorded loops, rounds with upper bounds "
            "are left out.",
            "none",
            per_wall_second(WHOLE.rate, metrics.TOOL_PHASE_WORK, by),
            decimals=2,
        ),
        stat(
            "Efficiency",
            "How near is a tool phase to its longest call (critical path / wall)? 1: the strategy costs "
            "nothing. Below 0.5 more time is lost to waiting than the work needs: raise the limit, if the "
            "quotas allow it. Of recorded loops, rounds with upper bounds are left out.",
            "percentunit",
            per_wall_second(WHOLE.rate, metrics.TOOL_PHASE_CRITICAL_PATH, by),
            steps=((None, AMBER), (0.5, NEUTRAL), (0.8, GREEN)),
            decimals=0,
        ),
        stat(
            "Failed loops",
            "Which share of loops failed: no answer, an answer although a tool call had failed, or (open "
            "load) an arrival that never started? Quantiles flatter a strategy that fails: read this first. "
            "The tool and model rows say what failed. Recorded loops that were cancelled are left out.",
            "percentunit",
            failed(WHOLE.rate, by),
            steps=((None, NEUTRAL), (0.01, AMBER), (0.05, RED)),
            decimals=2,
        ),
        stat(
            "Refused per second",
            "How often did a quota refuse an attempt (429, 529)? Anything lasting means that the strategy "
            "asks for more than the quota: lower its limit.",
            "reqps",
            WHOLE.rate(metrics.RATE_LIMITED, by=by),
            steps=((None, NEUTRAL), (0.1, AMBER), (1, RED)),
            decimals=2,
            empty="none",
        ),
        stat(
            "Generator lag p99",
            "Was the process itself too slow? Above 50 ms its own event loop adds to every latency here, "
            "and the figures are invalid: fewer agents per process, more processes. Empty for recorded "
            "loops.",
            "s",
            f"max({WHOLE.quantile(0.99, metrics.EVENT_LOOP_LAG, by='instance')})",
            legend="worst process",
            steps=((None, GREEN), (LAG_LIMIT, RED)),
        ),
    ]


def side_by_side() -> list[Panel]:
    by = "strategy"
    return [
        row("Strategies side by side"),
        timeseries(
            "Loop duration",
            "How long do loops take under each strategy? Compare the p99s: a strategy may win the median "
            "and lose the tail.",
            "s",
            quantiles(metrics.LOOP_DURATION, p50=0.5, p95=0.95, p99=0.99),
            width=12,
        ),
        timeseries(
            "Round duration",
            "How long does one round take, model request and tool calls together? If loops are slow and "
            "rounds are not, loops have many rounds.",
            "s",
            quantiles(metrics.ROUND_DURATION, p50=0.5, p95=0.95, p99=0.99),
            width=12,
        ),
        bars(
            "Where the wall time goes",
            "Which phase of an average loop takes the time? The phases partition it, so they add up "
            "(stacked percentiles would not). Large queue: the limiter. Large backoff: the quota. Large "
            "tools: the tools themselves. Large model: nothing that a strategy could change. Of recorded "
            "loops unaccounted is what their recording does not explain: launches, approvals, waits.",
            "s",
            ratio(
                WHOLE.increase(metrics.ROUND_PHASE, by="strategy, phase"),
                WHOLE.increase(metrics.LOOP_DURATION, "_count", by=by),
                "on (strategy) group_left ()",
            ),
            across="strategy",
            within="phase",
            colours=palette.PHASES,
        ),
        timeseries(
            "Where the wall time goes, over time",
            "Seconds of round time per second, by phase: did the mix change during the run or the day? "
            "A phase that grows while the load does not is where to look.",
            "s",
            {"{{phase}}": NOW.rate(metrics.ROUND_PHASE, by="phase")},
            width=12,
            height=9,
            stack=True,
            colours=palette.PHASES,
        ),
        timeseries(
            "Lost to limiting",
            "How many seconds of each loop wait for our limiters (queue of the tools, model_queue) or for a "
            "quota (backoff)? A queue without backoff: the limit is too low. Backoff: it is too high. Of "
            "recorded loops only backoff is seen, and that by the proxy.",
            "s",
            {
                "{{strategy}} {{phase}}": ratio(
                    NOW.rate(metrics.ROUND_PHASE, by="strategy, phase", phase="=~model_queue|queue|backoff"),
                    NOW.rate(metrics.LOOP_DURATION, "_count", by=by),
                    "on (strategy) group_left ()",
                )
            },
        ),
        timeseries(
            "Good loops per second",
            "How many loops end well? Those that fail at once are none: else the strategy that fails most "
            "would look best. In a closed load (N agents) a faster strategy also does more.",
            "ops",
            {"{{strategy}}": NOW.rate(metrics.LOOP_DURATION, "_count", by=by, status="=ok")},
        ),
        timeseries(
            "Rounds and calls per loop",
            "Do the strategies do the same work? If these differ, so do the loops, and durations cannot "
            "be compared.",
            "none",
            {
                "{{strategy}} rounds": NOW.mean(metrics.LOOP_ROUNDS, by=by),
                "{{strategy}} calls": NOW.mean(metrics.LOOP_TOOL_CALLS, by=by),
            },
        ),
        comparison(),
    ]


def comparison() -> Panel:
    by = "strategy"
    tool_phase = WHOLE.increase(metrics.ROUND_PHASE, by=by, phase="=~tools|queue")
    return table(
        "Comparison over the time range",
        "Which strategy is best, all things considered? One row each, over the whole time range. For a "
        "verdict with confidence intervals use `profiler compare`: this table has none.",
        "s",
        ["strategy"],
        {
            "loops": ("short", WHOLE.increase(metrics.LOOP_DURATION, "_count", by=by)),
            "failed": ("percentunit", failed(WHOLE.rate, by)),
            "loop p50": ("s", WHOLE.quantile(0.5, metrics.LOOP_DURATION, by=by)),
            "loop p95": ("s", WHOLE.quantile(0.95, metrics.LOOP_DURATION, by=by)),
            "loop p99": ("s", WHOLE.quantile(0.99, metrics.LOOP_DURATION, by=by)),
            "speed-up": ("none", per_wall_second(WHOLE.rate, metrics.TOOL_PHASE_WORK, by)),
            "efficiency": ("percentunit", per_wall_second(WHOLE.rate, metrics.TOOL_PHASE_CRITICAL_PATH, by)),
            "calls per round": ("none", WHOLE.mean(metrics.ROUND_FANOUT, by=by)),
            "queue share": (
                "percentunit",
                ratio(WHOLE.increase(metrics.ROUND_PHASE, by=by, phase="=queue"), tool_phase),
            ),
            "backoff per loop": (
                "s",
                ratio(
                    WHOLE.increase(metrics.ROUND_PHASE, by=by, phase="=backoff"),
                    WHOLE.increase(metrics.LOOP_DURATION, "_count", by=by),
                ),
            ),
            "refused": ("short", WHOLE.increase(metrics.RATE_LIMITED, by=by)),
        },
    )


def fan_out() -> list[Panel]:
    by = "strategy"
    return [
        row("Fan-out and stragglers"),
        heatmap(
            "Round duration, every round",
            "Are rounds of one kind or of several? Two bands are two populations (other tools, other "
            "fan-outs), and no quantile describes both. The marks are exemplars: slow, failed or sampled "
            "rounds; follow one to its trace.",
            "s",
            NOW.increase(metrics.ROUND_DURATION, "_bucket", by="le"),
        ),
        heatmap(
            "Fan-out",
            "How many tool calls does the model ask for at once? With one call per round no strategy can "
            "help: allow parallel tool calls, or offer tools that take lists.",
            "none",
            NOW.increase(metrics.ROUND_FANOUT, "_bucket", by="le"),
            exemplars=False,
        ),
        timeseries(
            "Straggler ratio",
            "How much longer than the median call is the longest of its round? Gathered calls end with "
            "the last one: above 3, time out or hedge the slow tool rather than raise the limit.",
            "none",
            quantiles(metrics.ROUND_STRAGGLER_RATIO, p50=0.5, p95=0.95),
            lowest=1,
        ),
        timeseries(
            "Calls running, mean, and the limit",
            "How many calls run at once on average (seconds of call per second: Little's law), over all "
            "processes? Near the limit: the limit decides the throughput. Far below it: the limit costs "
            "nothing. Recorded loops have no limit that is known, and calls of theirs without a duration are "
            "not in it.",
            "none",
            {
                "{{strategy}} running": NOW.rate(metrics.TOOL_CALL_DURATION, "_sum", by=by),
                "{{strategy}} limit": NOW.gauge(metrics.CONCURRENCY_LIMIT, by=by),
            },
        ),
        timeseries(
            "Peak concurrency of a round",
            "How many calls of one round really overlapped? If it stays below the fan-out without a "
            "limit, *Causes of little overlap* says why.",
            "none",
            {
                "{{strategy}} peak": NOW.mean(metrics.ROUND_PEAK_CONCURRENCY, by=by),
                "{{strategy}} fan-out": NOW.mean(metrics.ROUND_FANOUT, by=by),
            },
        ),
        timeseries(
            "Causes of little overlap",
            "Why did calls of a round overlap less than they could have? Rounds per second by their main "
            "cause; each has a setting of its own: the table of causes in docs/measuring.md. Empty for "
            "recorded loops: why their calls ran as they did is not in a recording.",
            "ops",
            {"{{strategy}} {{cause}}": NOW.rate(metrics.ROUND_SHORTFALLS, by="strategy, cause")},
        ),
    ]


def quantiles(metric: Metric, **named: float) -> Queries:
    """The named quantiles of a histogram, for each strategy."""
    return {f"{{{{strategy}}}} {name}": NOW.quantile(q, metric, by="strategy") for name, q in named.items()}


def per_wall_second(counted: Counted, part: Metric, by: str, **matchers: str) -> str:
    """Seconds of `part` (work, or critical path) per second that tool phases took."""
    return ratio(counted(part, by=by, **matchers), counted(metrics.TOOL_PHASE_WALL, by=by, **matchers))


def failed(counted: Counted, by: str, **matchers: str) -> str:
    """Share of loops that failed, as `compare` prints it; 0, not absent, when none did.

    Of recorded loops those that were cancelled are left out, where they can be told apart by their strategy.
    """
    good = counted(metrics.LOOP_DURATION, "_count", by=by, status="=ok", **matchers)
    every = every_loop(counted, by, **matchers)
    if "strategy" in by:
        own = {**matchers, "strategy": f"={RECORDED}", "status": "=cancelled"}
        stopped = counted(metrics.LOOP_DURATION, "_count", by=by, **own)
        every = f"({every} - ({stopped} or 0 * {every}))"
    return f"1 - ({good} or 0 * {every}) / ({every} > 0)"


def every_loop(counted: Counted, by: str, **matchers: str) -> str:
    """Loops that ended, and arrivals whose loop never started."""
    ended = counted(metrics.LOOP_DURATION, "_count", by=by, **matchers)
    dropped = counted(metrics.ARRIVALS_DROPPED, by=by, **matchers)
    return f"({ended} + ({dropped} or 0 * {ended}))"
