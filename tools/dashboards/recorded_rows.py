"""The row about loops of other programs, that `profiler collect` and `profiler proxy` make records of."""

from __future__ import annotations

from functools import partial

from profiler import metrics
from tools.dashboards.panels import Panel, ratio, row, timeseries
from tools.dashboards.strategy_rows import NOW

_third = partial(timeseries, width=8)
_quarter = partial(timeseries, width=6)


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
        *_collector(),
        *_proxy(),
    ]


def _collector() -> list[Panel]:
    return [
        _quarter(
            "Collector: spans per second",
            "How many spans come in, and which of them are in no record? Those of no agent are other spans "
            "of the traces; late ones came after their loop had been written (raise the grace), unreadable "
            "ones are the sender's. Empty without profiler collect.",
            "ops",
            {
                "received": NOW.rate(metrics.COLLECTOR_SPANS),
                "dropped: {{reason}}": NOW.rate(metrics.COLLECTOR_SPANS_DROPPED, by="reason"),
            },
        ),
        _quarter(
            "Collector: what ended loops",
            "What ends the traces of loops? root is as it should be. idle: no root came, so that it is lost, "
            "sampled away or too slow. bound: too much was open at once, and loops are cut short. Empty "
            "without profiler collect.",
            "ops",
            {"{{end}}": NOW.rate(metrics.COLLECTOR_LOOPS, by="end")},
        ),
        _quarter(
            "Collector: requests per second",
            "Do senders get what they ask for? Any status but 200 is spans that were sent in vain, or sent "
            "again. Signals that are not traces are taken and not kept. Empty without profiler collect.",
            "reqps",
            {"{{signal}} {{status}}": NOW.rate(metrics.COLLECTOR_REQUESTS, by="signal, status")},
        ),
        _quarter(
            "Collector: open traces",
            "How many traces, and spans of them, wait for their end? Growing without more load: roots do not "
            "come. Empty without profiler collect.",
            "none",
            {
                "traces": NOW.gauge(metrics.COLLECTOR_OPEN_TRACES),
                "spans": NOW.gauge(metrics.COLLECTOR_OPEN_SPANS),
            },
        ),
        _quarter(
            "Collector: bytes of open traces",
            "How much is kept of traces that have not ended, in memory and (the journal, for a restart) on "
            "disk? Both are bounded; at the bound loops are cut short. Empty without profiler collect.",
            "bytes",
            {
                "memory": NOW.gauge(metrics.COLLECTOR_OPEN_BYTES),
                "journal": NOW.gauge(metrics.COLLECTOR_JOURNAL_BYTES),
            },
        ),
    ]


def _proxy() -> list[Panel]:
    return [
        _quarter(
            "Proxy: requests per second",
            "What do agents ask for through the proxy, and what do they get? The statuses are the "
            "upstream's: 429 is its quota. Empty without profiler proxy.",
            "reqps",
            {"{{kind}} {{status}}": NOW.rate(metrics.PROXY_REQUESTS, by="kind, status")},
        ),
        _quarter(
            "Proxy: how requests ended",
            "Who ends them? client gone: it gave up, or read no further. upstream gone: it died in between. "
            "Unobserved ones were forwarded and too little of them was read, since forwarding comes first: "
            "their rounds are missing. Doubtful ones may be in another loop than their own. Empty without "
            "profiler proxy.",
            "ops",
            {
                "{{outcome}}": NOW.rate(metrics.PROXY_EXCHANGES, by="outcome"),
                "unobserved": NOW.rate(metrics.PROXY_UNOBSERVED),
                "failures of the reading": NOW.rate(metrics.PROXY_DEFECTS),
                "doubtful: {{reason}}": NOW.rate(metrics.PROXY_DOUBTS, by="reason"),
            },
        ),
        _quarter(
            "Proxy: in flight",
            "What goes through it now? Upstream connections that are made as often as requests come are not "
            "kept alive by the upstream. Empty without profiler proxy.",
            "none",
            {
                "requests": NOW.gauge(metrics.PROXY_IN_FLIGHT),
                "clients": NOW.gauge(metrics.PROXY_CLIENTS),
                "upstream": NOW.gauge(metrics.PROXY_UPSTREAM),
                "open loops": NOW.gauge(metrics.PROXY_OPEN_LOOPS),
                "upstream, made per second": NOW.rate(metrics.PROXY_UPSTREAM_MADE),
            },
        ),
    ]


def _untimed_share() -> str:
    """By strategy and reason; 0 without a reason where every call has a duration."""
    timed = NOW.rate(metrics.TOOL_CALL_DURATION, "_count", by="strategy")
    untimed = NOW.rate(metrics.TOOL_CALLS_UNTIMED, by="strategy")
    every = f"(({timed} or 0 * {untimed}) + {untimed})"
    by_reason = NOW.rate(metrics.TOOL_CALLS_UNTIMED, by="strategy, reason")
    return f"{ratio(by_reason, every, 'on (strategy) group_left ()')} or on (strategy) 0 * {timed}"
