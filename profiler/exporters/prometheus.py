"""Records as Prometheus metrics: a sink, the text of a scrape, and the thread that serves it.

A loop makes some fifty observations, and prometheus-client's own metrics take a lock for each (gevent's
lock, in a process that Locust has patched). So the sink keeps plain integers, written on the loop's
thread alone, and becomes prometheus-client families only when it is scraped. Times are summed as integer
nanoseconds, so that what is scraped equals what the records add up to.

prometheus-client builds an object and a dictionary per line of a scrape, which at 50 tools and six
strategies takes a quarter of a second of the interpreter that the event loop needs too. So `Exposition`
makes every line but its number once and keeps it, and a scrape is mostly joining strings. Its text is the
same as that of prometheus-client's `generate_latest` (a test compares them), which serves the registry of
an application.
"""

from __future__ import annotations

import gzip
import logging
import os
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeVar, get_args
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from profiler import metrics
from profiler.anatomy import PHASES, phases, remote_parts, tool_phase
from profiler.limits.quotas import stated
from profiler.loop.boundary import Part
from profiler.loop.recorder import LiveCalls
from profiler.metrics import Metric
from profiler.process.lifetime import in_forked_child
from profiler.providers.endpoint import exposed
from profiler.records import LoopRecord, ModelCall, RemoteCall, RoundRecord, Shortfall, ToolCall, Untimed

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

    from profiler.strategies import Strategy

MAX_STRATEGIES = 50
MAX_MODELS = 20
MAX_TOOLS = 50
MAX_ERROR_TYPES = 50
MAX_SERVERS = 20
MAX_PROVIDERS = 20
MAX_SOURCES = 20
OTHER = "__other__"
UNKNOWN = "unknown"
"""Instead of the provider or the model where a recording does not name it: an empty label is none."""
UNKNOWN_TOOL = "__unknown_tool__"
"""Instead of the names of tools that there are not: models make up as many as they like."""

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_AT_ONCE = 20
"""Histograms rendered before the event loop gets its turn: some 0.2 ms of work."""

_PAUSE_SECONDS = 5e-5
"""Not 0, or the interpreter's lock would be taken back before the other thread wakes up."""

_NS = 1_000_000_000

_UNTIMED: tuple[Untimed, ...] = get_args(Untimed)

_log = logging.getLogger(__name__)

K = TypeVar("K")
V = TypeVar("V")


class _Made(dict[K, V]):
    """A dictionary that makes the values it lacks from their keys. A look-up costs what a dict's does."""

    def __init__(self, make: Callable[[K], V]) -> None:
        self._make = make

    def __missing__(self, key: K) -> V:
        value = self[key] = self._make(key)
        return value


@dataclass(slots=True, eq=False)
class CounterChild:
    """A counter's value under one set of labels: nanoseconds where the metric is in seconds."""

    value: int = 0


class HistogramChild:
    """Counts per bucket, and the sum; bounds and sum in nanoseconds where the metric is in seconds."""

    __slots__ = ("bounds", "counts", "exemplars", "sum", "wanted")

    def __init__(self, metric: Metric) -> None:
        scale = _NS if metric.is_time else 1
        self.bounds = [bound * scale for bound in metric.buckets]
        self.counts = [0] * (len(metric.buckets) + 1)
        self.sum: float = 0
        self.wanted = [True] * len(self.counts)  # buckets without an exemplar since the last scrape
        self.exemplars: dict[int, tuple[str, float, float]] = {}

    def reset(self) -> None:
        self.counts = [0] * len(self.counts)
        self.sum = 0
        self.wanted = [True] * len(self.counts)
        self.exemplars.clear()

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def observe_in(self, value: float, trace: str) -> None:
        """Observe, and keep the first value of each bucket since the last scrape as its exemplar.

        So the rare buckets (slow loops) and the children of failures always have one, the usual
        buckets a sample; and the number of exemplars depends on the scrapes, not on the load.
        """
        index = bisect_left(self.bounds, value)
        self.counts[index] += 1
        self.sum += value
        if self.wanted[index]:
            self.wanted[index] = False
            self.exemplars[index] = (trace, value, time.time())

    def take_exemplars(self) -> dict[int, tuple[str, float, float]]:
        """Bucket → (trace, value, Unix time); from now on each bucket takes another."""
        exemplars = self.exemplars.copy()
        self.wanted = [True] * len(self.counts)
        return exemplars


def _histogram_children(metric: Metric) -> _Made[tuple[str, ...], HistogramChild]:
    return _Made(lambda _: HistogramChild(metric))


class _Strategy:
    """The children of one strategy, so that they need not be looked up by all their labels each time."""

    def __init__(self, sink: PrometheusSink, name: str) -> None:
        histogram, count = sink.histogram, sink.count
        self.name = name
        self.loop_rounds = histogram(metrics.LOOP_ROUNDS, name)
        self.loop_tool_calls = histogram(metrics.LOOP_TOOL_CALLS, name)
        self.phases = [count(metrics.ROUND_PHASE, name, phase) for phase in PHASES]
        self.fanout = histogram(metrics.ROUND_FANOUT, name)
        self.peak = histogram(metrics.ROUND_PEAK_CONCURRENCY, name)
        self.straggler = histogram(metrics.ROUND_STRAGGLER_RATIO, name)
        self.wall = count(metrics.TOOL_PHASE_WALL, name)
        self.work = count(metrics.TOOL_PHASE_WORK, name)
        self.critical_path = count(metrics.TOOL_PHASE_CRITICAL_PATH, name)
        self.shortfalls = {
            cause: count(metrics.ROUND_SHORTFALLS, name, cause) for cause in get_args(Shortfall)
        }
        self.upper_bounds = count(metrics.ROUND_UPPER_BOUNDS, name)
        self.unobserved = count(metrics.UNOBSERVED_CALLS, name)
        self.ambiguous = count(metrics.AMBIGUOUS_CALLS, name)
        self.loop_duration: _Made[str, HistogramChild] = _Made(
            lambda outcome: histogram(metrics.LOOP_DURATION, name, outcome)
        )
        self.round_duration: _Made[str, HistogramChild] = _Made(
            lambda status: histogram(metrics.ROUND_DURATION, name, status)
        )
        self.unreadable = count(metrics.UNREADABLE, name)
        # By provider, model and status; tokens by provider and model: all of them, and parts of them.
        self.model_duration: _Made[tuple[str, str, str], HistogramChild] = _Made(
            lambda key: histogram(metrics.MODEL_REQUEST_DURATION, name, *key)
        )
        self.first_token: _Made[tuple[str, str], HistogramChild] = _Made(
            lambda key: histogram(metrics.MODEL_FIRST_TOKEN, name, *key)
        )
        self.first_output: _Made[tuple[str, str], HistogramChild] = _Made(
            lambda key: histogram(metrics.MODEL_FIRST_OUTPUT, name, *key)
        )
        self.first_tool_call: _Made[tuple[str, str], HistogramChild] = _Made(
            lambda key: histogram(metrics.MODEL_FIRST_TOOL_CALL, name, *key)
        )
        self.tokens: _Made[tuple[str, str], tuple[CounterChild, CounterChild]] = _Made(
            lambda key: (
                count(metrics.MODEL_TOKENS, name, *key, "input"),
                count(metrics.MODEL_TOKENS, name, *key, "output"),
            )
        )
        self.details: _Made[tuple[str, str], tuple[CounterChild, CounterChild, CounterChild]] = _Made(
            lambda key: (
                count(metrics.MODEL_TOKEN_DETAILS, name, *key, "cached"),
                count(metrics.MODEL_TOKEN_DETAILS, name, *key, "cache_written"),
                count(metrics.MODEL_TOKEN_DETAILS, name, *key, "reasoning"),
            )
        )
        self.unknown_tokens: _Made[tuple[str, str], CounterChild] = _Made(
            lambda key: count(metrics.MODEL_UNKNOWN_TOKENS, name, *key)
        )
        # Duration by tool and status, queue wait by tool.
        self.calls: _Made[tuple[str, str], HistogramChild] = _Made(
            lambda key: histogram(metrics.TOOL_CALL_DURATION, name, *key)
        )
        self.waits: _Made[str, HistogramChild] = _Made(
            lambda tool: histogram(metrics.TOOL_CALL_QUEUE, name, tool)
        )
        self.untimed: _Made[tuple[str, Untimed], CounterChild] = _Made(
            lambda key: count(metrics.TOOL_CALLS_UNTIMED, name, *key)
        )
        # Of MCP servers: duration by status, parts by name, new connections.
        self.server_calls: _Made[tuple[str, str], HistogramChild] = _Made(
            lambda key: histogram(metrics.MCP_CALL_DURATION, name, *key)
        )
        self.server_parts: _Made[tuple[str, str], HistogramChild] = _Made(
            lambda key: histogram(metrics.MCP_CALL_PART, name, *key)
        )
        self.connections: _Made[str, CounterChild] = _Made(
            lambda server: count(metrics.MCP_NEW_CONNECTIONS, name, server)
        )
        # Children that are to be seen from zero on: a rate never counts the value at which a counter
        # first appears, so it would miss the first failures, and a share of them would be wrong.
        for outcome in ("ok", "incomplete", "error"):
            self.loop_duration[outcome]
        self.round_duration["ok"]
        count(metrics.ARRIVALS_DROPPED, name)


class PrometheusSink(Collector):
    """A sink that shows the records it was given as metrics. One per process.

    `labels` (such as `testid`) are constant for the process and added at exposition.
    """

    waited_for = True  # it only counts

    def __init__(self, *, labels: dict[str, str] | None = None) -> None:
        self.labels = labels or {}
        self._counts: dict[Metric, _Made[tuple[str, ...], CounterChild]] = {}
        self._histograms: dict[Metric, _Made[tuple[str, ...], HistogramChild]] = {}
        for metric in metrics.TABLE:
            if metric.kind == "counter":
                self._counts[metric] = _Made(lambda _: CounterChild())
            elif metric.kind == "histogram":
                self._histograms[metric] = _histogram_children(metric)
        self._strategies: _Made[str, _Strategy] = _Made(partial(_Strategy, self))
        self._live: _Made[tuple[str, str], LiveCalls] = _Made(lambda _: LiveCalls())
        self._limits: dict[str, Strategy] = {}
        self._names: dict[str, str] = {}  # of strategies
        self._models: dict[str, str] = {}
        self._tools: dict[str, str] = {}
        self._error_types: dict[str, str] = {}
        self._servers: dict[str, str] = {}
        self._providers: dict[str, str] = {}
        self._sources: dict[str, str] = {}
        self._agents: dict[str, int] = {}
        self._run_info: tuple[str, str, str] | None = None
        self._rate_limits: dict[tuple[str, str], Mapping[str, str]] = {}
        for label in ("strategy", "provider", "model", "tool", "error_type", "server", "source"):
            self.count(metrics.LABEL_OVERFLOW, label)  # from zero, as in _Strategy
        self.count(metrics.RECORDS_DROPPED, type(self).__name__)
        self.count(metrics.ORPHAN_CALLS)
        for part in get_args(Part):
            self.count(metrics.WATCH_FAILURES, part)
        self._loop_lag = self.histogram(metrics.EVENT_LOOP_LAG)
        self._schedule_lag = self.histogram(metrics.SCHEDULE_LAG)
        self._served = self._unserved = False
        in_forked_child(self._renew)

    def _renew(self) -> None:
        """In a forked child: from zero on, or what its parent has counted would count in each child again.

        In place, since those who count keep the children. The thread that served them has not come along.
        """
        for counters in self._counts.values():
            for counter in counters.values():
                counter.value = 0
        for histograms in self._histograms.values():
            for histogram in histograms.values():
                histogram.reset()
        for live in self._live.values():
            live.queued = live.running = 0
        self._agents.clear()
        self._rate_limits.clear()
        self._run_info = None
        self._served, self._unserved = False, self._served

    def _warn_unserved(self) -> None:
        self._unserved = False
        _log.warning(
            "the metrics of process %d are served nowhere: the port is its parent's; serve them after "
            "the fork, in each process at a port of its own",
            os.getpid(),
        )

    def count(self, metric: Metric, *labels: str) -> CounterChild:
        return self._counts[metric][labels]

    def histogram(self, metric: Metric, *labels: str) -> HistogramChild:
        return self._histograms[metric][labels]

    def live_calls(self, strategy: str, tool: str) -> LiveCalls:
        """The counts of a tool's queued and running calls, which the code that runs calls changes."""
        shown, strategy = self._capped(self._tools, tool, MAX_TOOLS, "tool"), self._strategy(strategy)
        self._strategies[strategy].calls[shown, "ok"]  # from zero, as in _Strategy
        self._strategies[strategy].waits[shown]
        return self._live[strategy, shown]

    def watch_limit(self, spec: str, strategy: Strategy) -> None:
        """Show how many calls the strategy lets run at once in this process; some change it as they go."""
        if (shown := self._strategy(spec)) != OTHER:  # several have no limit in common
            self._limits[shown] = strategy

    def __call__(self, record: LoopRecord) -> None:
        if self._unserved:
            self._warn_unserved()
        strategy = self._strategies[self._strategy(record.strategy)]
        trace = record.id
        calls = 0
        for round_ in record.rounds:
            self._round(strategy, round_, trace)
            calls += len(round_.tool_calls)
            strategy.unobserved.value += round_.unobserved_calls
        strategy.ambiguous.value += record.ambiguous_calls
        if record.nested:
            return
        if record.source:
            source = self._capped(self._sources, record.source, MAX_SOURCES, "source")
            self.count(metrics.RECORDED_LOOPS, source).value += 1
        strategy.loop_duration[record.outcome].observe_in(record.latency_ns, trace)
        strategy.loop_rounds.observe(len(record.rounds))
        strategy.loop_tool_calls.observe(calls)

    def _round(self, strategy: _Strategy, round_: RoundRecord, trace: str) -> None:
        strategy.round_duration[round_.status].observe_in(round_.duration_ns, trace)
        for count, spent_ns in zip(strategy.phases, phases(round_).values(), strict=True):
            count.value += spent_ns
        if round_.model.asked:
            self._model(strategy, round_.model, trace)
        if not round_.tool_calls:
            return
        if round_.shortfall is not None:
            strategy.shortfalls[round_.shortfall].value += 1
        strategy.fanout.observe(len(round_.tool_calls))
        for call in round_.tool_calls:
            self._tool_call(strategy, call, trace)
        phase_ = tool_phase(round_)
        if phase_ is not None and phase_.upper_bound:
            strategy.upper_bounds.value += 1
        elif phase_ is not None:
            strategy.wall.value += phase_.wall_ns
            strategy.work.value += phase_.work_ns
            strategy.critical_path.value += phase_.critical_path_ns
            strategy.peak.observe(phase_.peak_concurrency)
            strategy.straggler.observe(phase_.straggler_ratio)

    def _model(self, strategy: _Strategy, model: ModelCall, trace: str) -> None:
        name = strategy.name
        whose = self._capped(self._models, model.model or UNKNOWN, MAX_MODELS, "model")
        who = self._capped(self._providers, model.provider or UNKNOWN, MAX_PROVIDERS, "provider"), whose
        if (latency_ns := model.latency_ns) is not None:
            strategy.model_duration[*who, model.status].observe_in(latency_ns, trace)
        if (after_ns := model.first_token_after_ns) is not None:
            strategy.first_token[who].observe(after_ns)
        if (after_ns := model.first_output_after_ns) is not None:
            strategy.first_output[who].observe(after_ns)
        if (after_ns := model.first_tool_call_after_ns) is not None:
            strategy.first_tool_call[who].observe(after_ns)
        tokens_in, tokens_out = model.input_tokens, model.output_tokens
        unknown = strategy.unknown_tokens[who]
        if tokens_in is not None or tokens_out is not None:
            taken, made = strategy.tokens[who]
            taken.value += tokens_in or 0
            made.value += tokens_out or 0
        if not model.tokens_known and model.replied:
            unknown.value += 1
        if model.cached_tokens or model.cache_written_tokens or model.reasoning_tokens:
            details = (model.cached_tokens, model.cache_written_tokens, model.reasoning_tokens)
            for detail, tokens in zip(strategy.details[who], details, strict=True):
                detail.value += tokens or 0
        if model.unreadable:
            strategy.unreadable.value += model.unreadable
        attempts = model.attempts
        if len(attempts) != 1 or attempts[0].refused:
            self._tries(name, "model", whose, model)
        if model.resends:
            self.count(metrics.RETRIES, name, "model", whose, UNKNOWN).value += model.resends
        if attempts and attempts[-1].rate_limits and whose != OTHER:  # whose quota it is must be clear
            self._rate_limits[who] = attempts[-1].rate_limits

    def _tries(self, strategy: str, target: str, name: str, call: ModelCall | ToolCall) -> None:
        """The attempts that were refused, and those after the first."""
        for refusal in call.refusals:
            self.count(metrics.RATE_LIMITED, strategy, target, name, refusal.reason).value += 1
        for retry in call.retries:
            labels = (strategy, target, name, self._error(retry.reason))
            self.count(metrics.RETRIES, *labels).value += 1
            self.count(metrics.BACKOFF, *labels).value += retry.backoff_ns

    def _tool_call(self, strategy: _Strategy, call: ToolCall, trace: str) -> None:
        tool = self._tools.get(call.name)
        if tool is None:
            unknown = call.error_type == "unknown_tool"
            tool = UNKNOWN_TOOL if unknown else self._capped(self._tools, call.name, MAX_TOOLS, "tool")
        latency_ns, waited_ns = call.latency_ns, call.waited_ns
        if call.unknown:  # of a recording: from zero, as in _Strategy
            for reason in _UNTIMED:
                strategy.untimed[tool, reason]
        if latency_ns is None:
            strategy.untimed[tool, call.untimed or "wait"].value += 1
        else:
            strategy.calls[tool, call.status].observe_in(latency_ns, trace)
        if waited_ns is not None:
            strategy.waits[tool].observe(waited_ns)
        failure = call.failure
        if failure is not None:
            self.count(metrics.TOOL_ERRORS, strategy.name, tool, self._error(failure)).value += 1
        if failure is not None or call.attempts:
            self._tries(strategy.name, "tool", tool, call)
        if call.remote is not None:
            self._server_call(strategy, call, call.remote, trace)

    def _server_call(self, strategy: _Strategy, call: ToolCall, remote: RemoteCall, trace: str) -> None:
        server = self._capped(self._servers, remote.server, MAX_SERVERS, "server")
        if (latency_ns := call.latency_ns) is not None:
            strategy.server_calls[server, call.status].observe_in(latency_ns, trace)
        for part, lasted_ns in remote_parts(call).items():
            strategy.server_parts[server, part].observe(lasted_ns)
        connections = strategy.connections[server]  # from zero, as in _Strategy
        if remote.new_connection:
            connections.value += 1
        if call.failure is not None:
            self.count(metrics.MCP_ERRORS, strategy.name, server, self._error(call.failure)).value += 1

    def _strategy(self, name: str) -> str:
        return self._capped(self._names, name, MAX_STRATEGIES, "strategy")

    def _error(self, error: str) -> str:
        return self._capped(self._error_types, error, MAX_ERROR_TYPES, "error_type")

    def _capped(self, known: dict[str, str], value: str, most: int, label: str) -> str:
        """A label's value, or `OTHER` when there are `most` others already."""
        shown = known.get(value)
        if shown is not None:
            return shown
        if len(known) < most:
            known[value] = value
            return value
        self.count(metrics.LABEL_OVERFLOW, label).value += 1
        return OTHER

    def count_dropped(self, sink: str) -> None:
        """A sink of this name, perhaps this one, could not take a record."""
        self.count(metrics.RECORDS_DROPPED, sink).value += 1

    def count_orphan(self) -> None:
        """A watched tool was called outside every loop; where there is none, no record tells of it."""
        self.count(metrics.ORPHAN_CALLS).value += 1

    def count_watch_failure(self, part: str) -> None:
        """Watching a loop, a request or a tool failed."""
        self.count(metrics.WATCH_FAILURES, part).value += 1

    def count_dropped_arrival(self, strategy: str) -> None:
        """An arrival of an open load will never start."""
        self.count(metrics.ARRIVALS_DROPPED, self._strategy(strategy)).value += 1

    def observe_lag(self, lag_ns: int) -> None:
        """One sample of event-loop lag."""
        self._loop_lag.observe(lag_ns)

    def observe_schedule_lag(self, lag_ns: int) -> None:
        """How late an agent started a loop against when the load meant it to."""
        self._schedule_lag.observe(lag_ns)

    def set_agents(self, user_class: str, agents: int) -> None:
        """How many agents run loops in this process now."""
        self._agents[user_class] = agents

    def set_strategy(self, scenario: str, strategy: str | None) -> None:
        """Which strategy has the system to itself from now on; None between trials."""
        self._run_info = None if strategy is None else (scenario, strategy, version("toolcall-profiler"))

    def children(self, metric: Metric) -> list[tuple[tuple[str, ...], HistogramChild]]:
        """The children of a histogram by their labels; safe while the loop's thread goes on."""
        return list(self._histograms[metric].items())  # list() copies in one step of the interpreter

    def values(self, metric: Metric) -> list[tuple[tuple[str, ...], float]]:
        """The values of a counter or a gauge by their labels, in base units."""
        if metric.kind == "gauge":
            return self._gauge_values(metric)
        children = list(self._counts[metric].items())
        if metric.is_time:
            return [(labels, count.value / _NS) for labels, count in children]
        return [(labels, count.value) for labels, count in children]

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        """The families, for prometheus-client. Called in the thread that serves the scrape."""
        constant = tuple(self.labels.values())
        for metric in metrics.TABLE:
            names = (*metric.labels, *self.labels)
            if metric.kind == "histogram":
                histogram = HistogramMetricFamily(metric.name, metric.help, labels=names)
                for labels, child in self.children(metric):
                    histogram.add_metric((*labels, *constant), *_exposed(metric, child))
                yield histogram
            else:
                family = (CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily)(
                    metric.name, metric.help, labels=names
                )
                for labels, value in self.values(metric):
                    family.add_metric((*labels, *constant), value)
                yield family

    def _gauge_values(self, metric: Metric) -> list[tuple[tuple[str, ...], float]]:
        if metric is metrics.TOOL_CALLS_IN_FLIGHT:
            return [(key, live.running) for key, live in list(self._live.items())]
        if metric is metrics.TOOL_CALLS_QUEUED:
            return [(key, live.queued) for key, live in list(self._live.items())]
        if metric is metrics.CONCURRENCY_LIMIT:
            limits = [(spec, strategy.limit) for spec, strategy in list(self._limits.items())]
            return [((spec,), limit) for spec, limit in limits if limit is not None]
        if metric is metrics.AGENTS:
            return [((user_class,), agents) for user_class, agents in list(self._agents.items())]
        if metric is metrics.RUN_INFO:
            return [] if self._run_info is None else [(self._run_info, 1)]
        figures: dict[tuple[str, ...], float] = {}
        for who, headers in list(self._rate_limits.items()):
            for quota in stated(headers):
                value = quota.limit if metric is metrics.QUOTA_LIMIT else quota.remaining
                if value is not None:  # of several quotas of one name, such as two policies, the narrowest
                    figures[*who, quota.name] = min(value, figures.get((*who, quota.name), value))
        return list(figures.items())

    def serve(self, port: int, host: str = "127.0.0.1") -> int:
        """Serve `/metrics` from a thread of its own; port 0 takes a free one. Returns the port.

        Raises OSError when the port is taken.
        """
        its_port = serve(Exposition(self).render, port, host)
        self._served, self._unserved = True, False
        return its_port


def register(sink: PrometheusSink, registry: CollectorRegistry = REGISTRY) -> PrometheusSink:
    """Add the sink to a registry, unless one is there already. Returns the one that is there now."""
    for known in list(registry._collector_to_names):
        if isinstance(known, PrometheusSink):
            return known
    registry.register(sink)
    return sink


def _exposed(metric: Metric, child: HistogramChild) -> tuple[list[Any], float]:
    """Buckets, each (le, cumulated count, exemplar if it has one), and the sum."""
    counts, total = child.counts[:], child.sum
    scale = _NS if metric.is_time else 1
    exemplars = child.take_exemplars() if child.exemplars else {}
    buckets: list[Any] = []
    for index, (bound, count) in enumerate(zip(bounds(metric), accumulate(counts), strict=True)):
        exemplar = exemplars.get(index)
        if exemplar is None:
            buckets.append((bound, count))
        else:
            trace, value, at = exemplar
            buckets.append((bound, count, Exemplar({"trace_id": trace}, value / scale, at)))
    return buckets, total / scale if metric.is_time else total


class Exposition:
    """Renders a sink as text. Only OpenMetrics has exemplars, each shown until a newer one replaces it."""

    def __init__(self, sink: PrometheusSink) -> None:
        self._sink = sink
        self._heads: _Made[tuple[Metric, tuple[str, ...]], list[str]] = _Made(self._make_heads)

    def render(self, openmetrics: bool = False) -> bytes:
        """All metrics as text. Reads the sink while the loop's thread goes on writing."""
        lines: list[str] = []
        for metric in metrics.TABLE:
            family = metric.name
            if openmetrics and metric.kind == "counter":
                family = family.removesuffix("_total")
            lines.append(f"# HELP {family} {metric.help}\n# TYPE {family} {metric.kind}\n")
            if metric.kind == "histogram":
                for number, (labels, child) in enumerate(self._sink.children(metric)):
                    if number % _AT_ONCE == _AT_ONCE - 1:
                        time.sleep(_PAUSE_SECONDS)
                    lines += self._histogram(metric, self._heads[metric, labels], child, openmetrics)
            else:
                for labels, value in self._sink.values(metric):
                    lines.append(f"{self._heads[metric, labels][0]}{value!r}\n")
        if openmetrics:
            lines.append("# EOF\n")
        return "".join(lines).encode()

    @staticmethod
    def _histogram(metric: Metric, heads: list[str], child: HistogramChild, openmetrics: bool) -> list[str]:
        counts, total = child.counts[:], child.sum
        cumulated = list(accumulate(counts))
        lines = [f"{head}{count}\n" for head, count in zip(heads, cumulated, strict=False)]
        if openmetrics and child.exemplars:
            scale = _NS if metric.is_time else 1
            for index, (trace, value, at) in child.take_exemplars().items():
                exemplar = f'{{trace_id="{_escaped(trace)}"}} {value / scale!r} {at:.3f}'
                lines[index] = f"{lines[index][:-1]} # {exemplar}\n"
        lines.append(f"{heads[-2]}{cumulated[-1]}\n{heads[-1]}{total / _NS if metric.is_time else total!r}\n")
        return lines

    def _make_heads(self, key: tuple[Metric, tuple[str, ...]]) -> list[str]:
        """The lines of a child without their numbers; those of a histogram are buckets, count, sum."""
        metric, labels = key
        names = (*metric.labels, *self._sink.labels)
        values = (*labels, *self._sink.labels.values())
        pairs = [f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True)]
        if metric.kind != "histogram":
            return [f"{metric.name}{_braced(pairs)} "]
        buckets = [_braced([*pairs, f'le="{bound}"']) for bound in bounds(metric)]
        return [
            *(f"{metric.name}_bucket{inside} " for inside in buckets),
            f"{metric.name}_count{_braced(pairs)} ",
            f"{metric.name}_sum{_braced(pairs)} ",
        ]


def bounds(metric: Metric) -> list[str]:
    """A histogram's bucket bounds as the label `le` shows them."""
    return [*(str(float(f"{bound:.10g}")) for bound in metric.buckets), "+Inf"]


def serve(render: Callable[[bool], bytes], port: int, host: str) -> int:
    """Answer GET /metrics from a thread of its own; returns the port. Raises OSError when it is taken.

    Logs a warning when other machines can reach it.
    """

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] not in ("/metrics", "/"):
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"this serves /metrics\n"]
        openmetrics = "application/openmetrics-text" in environ.get("HTTP_ACCEPT", "")
        body = render(openmetrics)
        headers = [("Content-Type", OPENMETRICS if openmetrics else TEXT)]
        if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
            body = gzip.compress(body, 1)  # releases the interpreter's lock
            headers.append(("Content-Encoding", "gzip"))
        start_response("200 OK", [*headers, ("Content-Length", str(len(body)))])
        return [body]

    server = make_server(host, port, application, WSGIServer, _Quiet)
    warning = exposed("/metrics", host, server.server_port)
    if warning is not None:
        _log.warning("%s", warning)
    in_forked_child(server.server_close)  # or the port stays taken when this process is gone
    # A greenlet in a process that gevent has patched.
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


class _Quiet(WSGIRequestHandler):
    timeout = 5.0  # seconds, for a peer that connects and sends nothing

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing: it would be a line per scrape."""


def _braced(pairs: list[str]) -> str:
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
