"""The row about loops of other programs, that `profiler collect` and `profiler proxy` make records of."""

from __future__ import annotations

from functools import partial

from profiler import metrics
from tools.dashboards.panels import Panel, ratio, row, timeseries
from tools.dashboards.strategy_rows import NOW

_third = partial(timeseries, width=8)


def recorded() -> list[Panel]:
    return [
        row("Recorded loops"),
        _third(
            "Recorded loops per second",
            "How many loops of other programs end, by what told of them: their spans (otel, profiler "
            "collect) or their requests (proxy, profiler proxy)? Everywhere on this page their strategy is "
            "recorded. Empty where neither runs.",
            "ops",
            {"{{source}}": NOW.rate(metrics.RECORDED_LOOPS, by="source")},
        ),
        _third(
            "Calls without a duration",
            "Which share of the calls is in no duration on this page, and why? upper_bound: a proxy sees "
            "when a call could start and when its result was back, not when it ran. never_ended: no end was "
            "seen. never_started: refused, or given up in the queue. wait: it waited for what another call "
            "began. The tool panels are about the other calls alone.",
            "percentunit",
            {"{{strategy}} {{reason}}": _untimed_share()},
            highest=1,
        ),
        _third(
            "Rounds whose overlap is not known",
            "Which share of the rounds with calls is left out of speed-up, efficiency, peak and stragglers, "
            "since of a call only an upper bound of its duration is known? Always 0 for loops that are not "
            "recorded.",
            "percentunit",
            {
                "{{strategy}}": ratio(
                    NOW.rate(metrics.ROUND_UPPER_BOUNDS, by="strategy"),
                    NOW.rate(metrics.ROUND_FANOUT, "_count", by="strategy"),
                )
            },
            highest=1,
        ),
    ]


def _untimed_share() -> str:
    """By strategy and reason; 0 without a reason where every call has a duration."""
    timed = NOW.rate(metrics.TOOL_CALL_DURATION, "_count", by="strategy")
    untimed = NOW.rate(metrics.TOOL_CALLS_UNTIMED, by="strategy")
    every = f"(({timed} or 0 * {untimed}) + {untimed})"
    by_reason = NOW.rate(metrics.TOOL_CALLS_UNTIMED, by="strategy, reason")
    return f"{ratio(by_reason, every, 'on (strategy) group_left ()')} or on (strategy) 0 * {timed}"
