"""Every reader of records, held against the others: the same loops, the same counts and sums.

The records are generated with everything that a loop can come to. What each count means is said on the
record (`profiler.records`); no reader may have a meaning of its own.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry

from profiler.anatomy import PARTS, PHASES, phases, remote_parts, tool_phase
from profiler.exporters.opentelemetry import OpenTelemetrySink
from profiler.exporters.perfetto import write_trace
from profiler.exporters.prometheus import PrometheusSink
from profiler.load.health import Tally
from profiler.load.output import reported
from profiler.load.spending import LoopAccount
from profiler.records import (
    NO_MODEL,
    Attempt,
    LoopRecord,
    ModelCall,
    RemoteCall,
    RoundRecord,
    ServerToolCall,
    ToolAttempt,
    ToolCall,
    Untimed,
    encode,
)
from profiler.report.html.charts import course
from profiler.report.html.data import gather
from profiler.report.live import Rolling
from profiler.report.running import RunningTotals
from profiler.rundir import Progress, RunDirectory, Trial
from profiler.statistics.summary import summarise
from profiler.statistics.table import NONE, tabulate
from tests.unit.statistics_data import run

MS = 1_000_000
SECONDS = 1e-9
TRIAL = Trial(0, 0, "gathered", 20, 0, 5_000 * MS, 6_000 * MS)

Facts = dict[str, float]


# The records


class Maker:
    """Loops of one trial, with everything that can happen to them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0
        self.recorded = False

    def some(self, share: float) -> bool:
        return self.random.random() < share

    def passes(self, most_ms: int = 30) -> int:
        """Moves the clock on, by whole milliseconds: sums are exact."""
        self.now += self.random.randrange(most_ms + 1) * MS
        return self.now

    def loops(self, count: int) -> list[LoopRecord]:
        made: list[LoopRecord] = []
        for number in range(count):
            self.now = self.random.randrange(1_000) * MS
            record = self.loop(number)
            if made and self.some(0.15):
                record = replace(record, parent=made[-1].id)
            made.append(record)
        return made

    def loop(self, number: int) -> LoopRecord:
        started = self.now
        self.recorded = self.some(0.4)
        status = self.random.choices(("ok", "error", "cancelled"), (7, 2, 1))[0]
        rounds = tuple(self.round(index) for index in range(self.random.randrange(4)))
        if status != "ok" and rounds:
            rounds = (*rounds[:-1], replace(rounds[-1], status=status))
        return LoopRecord(
            id=f"loop-{number}",
            strategy="gathered",
            provider="openai",
            model="m",
            started_ns=started,
            ended_ns=self.passes(),
            status=status,
            rounds=rounds,
            error_type=None if status == "ok" or self.some(0.3) else "http_500",
            trial=0,
            number=number,
            # Of an open load, late by up to 100 ms; the others are of a closed one, or were only observed.
            intended_ns=max(0, started - self.random.randrange(101) * MS) if self.some(0.4) else None,
            ambiguous_calls=self.random.randrange(2),
            source=self.random.choice(("otel", "proxy")) if self.recorded else "",
        )

    def round(self, index: int) -> RoundRecord:
        started = self.now
        # As `profiler mcp load` makes them: calls that no model asked for.
        model = ModelCall(NO_MODEL, "", started, started) if self.some(0.1) else self.model()
        calls: tuple[ToolCall, ...] = ()
        self.passes(3)  # parsing
        if self.some(0.8):
            early = model.streamed and self.some(0.5)
            calls = tuple(self.call(n, model, early) for n in range(self.random.randrange(1, 5)))
        tools_started = self.now if calls else None
        tools_ended = max((self.now, *(call.ended_ns for call in calls))) if calls else None
        self.now = max(self.now, tools_ended or 0)
        return RoundRecord(
            index=index,
            started_ns=started,
            ended_ns=self.passes(),
            model=model,
            tools_started_ns=tools_started,
            tools_ended_ns=tools_ended,
            tool_calls=calls,
            unobserved_calls=self.random.randrange(2),
        )

    def model(self) -> ModelCall:
        started, attempts = self.now, []
        for status in self.random.choice(((200,), (200,), (429, 200), (529, 429), (None, 200), (500,), ())):
            begun = self.passes()
            error = {None: "connection", 200: None}.get(status, f"http_{status}")
            attempts.append(Attempt(begun, self.passes(), status, error))
        ended = self.passes()
        held = self.random.randrange(attempts[0].started_ns - started + 1) if attempts else 0
        failed = bool(attempts) and attempts[-1].status != 200
        streamed = self.some(0.5)
        counted = self.some(0.8)
        cached = self.random.randrange(50) if self.some(0.5) else None
        reasoned = self.random.randrange(50) if self.some(0.5) else None
        first = self.random.randrange(started, ended + 1)
        return ModelCall(
            provider="openai",
            model="m",
            started_ns=started,
            ended_ns=ended,
            status="error" if failed else "ok",
            error_type=attempts[-1].error_type if failed else None,
            streamed=streamed,
            first_token_ns=first if streamed else None,
            first_output_ns=self.random.randrange(first, ended + 1) if streamed and self.some(0.8) else None,
            input_tokens=100 + self.random.randrange(100) if counted else None,
            output_tokens=50 + self.random.randrange(100) if counted and self.some(0.9) else None,
            cached_tokens=cached if counted else None,
            cache_written_tokens=self.random.randrange(50) if counted and cached is not None else None,
            reasoning_tokens=reasoned if counted else None,
            attempts=tuple(attempts),
            limiter_wait_ns=held,
            server_tools=tuple(self.server_tool(started, ended) for _ in range(self.random.randrange(3))),
            unreadable=self.random.randrange(2),
            resends=self.random.randrange(3) if self.recorded else 0,
            derived=("started_ns",) if self.recorded and self.some(0.3) else (),
        )

    def server_tool(self, started: int, ended: int) -> ServerToolCall:
        if self.some(0.3):
            return ServerToolCall("code_execution")
        began = started + self.random.randrange((ended - started) // MS + 1) * MS
        return ServerToolCall("web_search", began, min(ended, began + self.random.randrange(20) * MS))

    def call(self, n: int, model: ModelCall, early: bool) -> ToolCall:
        queued = model.started_ns if early else self.now
        kind = self.random.choice(
            ("ok", "ok", "ok", "error", "timeout", "cancelled", "never", "refused", "retried", "unnamed")
        )
        started = queued + self.random.randrange(20) * MS
        ended = started + self.random.randrange(1, 40) * MS
        made = ToolCall(f"c{n}", self.random.choice(("search", "lookup")), queued, queued, started, ended)
        if self.some(0.4):
            made = replace(made, remote=self.remote(started, ended))
        if self.recorded:
            made = self.as_recorded(made)
        if kind in ("error", "timeout", "cancelled"):
            return replace(made, status=kind, error_type=kind if kind != "error" else "ValueError")
        if kind == "never":
            return replace(
                made, started_ns=None, status="cancelled", error_type="cancelled", upper_bound=False
            )
        if kind == "unnamed":
            return replace(made, status="error")
        if kind == "refused":
            return replace(made, status="error", error_type=self.random.choice(("http_429", "http_529")))
        if kind == "retried":
            tries = (
                ToolAttempt(started, started + MS, "error", "http_429"),
                ToolAttempt(started + 3 * MS, started + 5 * MS, "error", "http_529"),
                ToolAttempt(started + 9 * MS, started + 10 * MS),
            )
            return replace(made, ended_ns=started + 10 * MS, attempts=tries)
        return made

    def as_recorded(self, call: ToolCall) -> ToolCall:
        """As a recording tells of a call: never when it was queued, perhaps not when it began or ended."""
        call = replace(call, queued_ns=call.started_ns, unknown=("queued_ns",))
        kind = self.random.choice(("exact", "derived", "bound", "open", "wait"))
        if kind == "bound":
            return replace(call, derived=("started_ns",), upper_bound=True)
        if kind == "open":
            return replace(call, derived=("started_ns",), unknown=("queued_ns", "ended_ns"))
        return replace(
            call, derived=("ready_ns", "started_ns") if kind == "derived" else (), wait=kind == "wait"
        )

    def remote(self, started: int, ended: int) -> RemoteCall:
        """Times of a call of an MCP server's tool, some of them unknown."""
        posted, answered = sorted(self.random.randrange(started, ended + 1) for _ in range(2))
        sent, came = self.some(0.9), self.some(0.9)
        return RemoteCall(
            self.random.choice(("docs", "wiki")),
            "http",
            "2025-11-25",
            posted if sent else None,
            answered if sent and came else None,
            self.random.randrange(answered - posted + 1) if came and self.some(0.5) else None,
            self.random.randrange(posted - started + 1),
            self.random.choice(("json", "sse")),
            new_connection=self.random.choice((True, False, None)),
        )


def generated(seed: int) -> list[LoopRecord]:
    return Maker(seed).loops(80)


# What they are, by the definitions on the record


def said(records: Sequence[LoopRecord]) -> Facts:
    own = [record for record in records if not record.nested]
    rounds = [round_ for record in records for round_ in record.rounds]
    models = [round_.model for round_ in rounds if round_.model.asked]
    calls = [call for round_ in rounds for call in round_.tool_calls]
    served = [call for call in calls if call.remote is not None]
    ran = [call.latency_ns for call in calls if call.latency_ns is not None]
    waits = [call.waited_ns for call in calls if call.waited_ns is not None]
    tries = [*models, *calls]
    measured = [phase for phase in map(tool_phase, rounds) if phase is not None and not phase.upper_bound]
    return {
        "records": len(records),
        "records answered": sum(record.answered for record in records),
        "loops": len(own),
        "good": sum(record.good for record in own),
        "failed": sum(not record.good for record in own),
        "incomplete": sum(record.outcome == "incomplete" for record in own),
        "cancelled": sum(record.outcome == "cancelled" for record in own),
        "answered": sum(record.answered for record in own),
        "latency": sum(record.latency_ns for record in own),
        "latency of answered": sum(record.latency_ns for record in own if record.answered),
        "rounds": len(rounds),
        "round time": sum(round_.duration_ns for round_ in rounds),
        "asked rounds": len(models),
        "asked round time": sum(round_.duration_ns for round_ in rounds if round_.model.asked),
        "requests": len(models),
        "requests answered": sum(model.failure is None for model in models),
        "request time": sum(model.duration_ns for model in models),
        "attempts": sum(model.attempt_count for model in models),
        "input tokens": sum(model.input_tokens or 0 for model in models),
        "output tokens": sum(model.output_tokens or 0 for model in models),
        "cached tokens": sum(model.cached_tokens or 0 for model in models),
        "written tokens": sum(model.cache_written_tokens or 0 for model in models),
        "reasoning tokens": sum(model.reasoning_tokens or 0 for model in models),
        "replies": sum(model.replied for model in models),
        "unknown replies": sum(model.replied and not model.tokens_known for model in models),
        "unreadable": sum(model.unreadable for model in models),
        "server tools": sum(len(model.server_tools) for model in models),
        "untimed server tools": sum(
            one.started_ns is None or one.ended_ns is None for model in models for one in model.server_tools
        ),
        "first tokens": sum(model.first_token_ns is not None for model in models),
        "first outputs": sum(model.first_output_ns is not None for model in models),
        "calls": len(calls),
        "calls that ran": len(ran),
        "calls that ran well": sum(one.latency_ns is not None and one.failure is None for one in calls),
        **{name: sum(call.untimed == name for call in calls) for name in get_args(Untimed)},
        "failed calls": sum(call.failure is not None for call in calls),
        "call time": sum(ran),
        "waits": len(waits),
        "wait": sum(waits),
        "bounded rounds": sum(bool(phase and phase.upper_bound) for phase in map(tool_phase, rounds)),
        "work": sum(phase.work_ns for phase in measured),
        "wall": sum(phase.wall_ns for phase in measured),
        "critical path": sum(phase.critical_path_ns for phase in measured),
        "recorded loops": sum(record.source != "" for record in own),
        "refusals": sum(1 for record in records for _ in record.refusals),
        "retries": sum(one.attempt_count - 1 for one in tries),
        "backoff": sum(retry.backoff_ns for one in tries for retry in one.retries),
        **{f"phase {phase}": sum(phases(round_)[phase] for round_ in rounds) for phase in PHASES},
        "served calls": len(served),
        "served calls that ran": sum(call.latency_ns is not None for call in served),
        "served time": sum(call.latency_ns or 0 for call in served),
        "served failures": sum(call.failure is not None for call in served),
        "new connections": sum(call.remote.new_connection is True for call in served if call.remote),
        **{f"part {part}": sum(remote_parts(call).get(part, 0) for call in served) for part in PARTS},
    }


# What each reader makes of them


def tally(records: Sequence[LoopRecord], _: Path) -> Facts:
    """The live line, progress.jsonl and limits on what is spent are of this."""
    found, account = Tally(), LoopAccount()
    for record in records:
        found.count(record)
        account.record(record)
    spent = account.spent
    return {
        "loops": found.loops,
        "failed": found.failed,
        "refusals": found.rate_limited,
        "attempts": spent.requests,
        "input tokens": spent.input_tokens,
        "output tokens": spent.output_tokens,
        "cached tokens": spent.cached_tokens,
        "written tokens": spent.cache_written_tokens,
        "reasoning tokens": spent.reasoning_tokens,
        "replies": spent.replies,
        "unknown replies": spent.unknown_replies,
    }


def running(records: Sequence[LoopRecord], path: Path) -> Facts:
    """Locust's page, while the run goes on."""
    found = RunningTotals(path)
    for record in records:
        found.add(record)
    (one,) = found._strategies.values()
    return {
        "loops": one.loops,
        "failed": one.failed,
        "incomplete": one.incomplete,
        "answered": len(one.walls),
        "latency of answered": sum(one.walls) / SECONDS,
        "calls": sum(tool.calls for tool in one.tools.values()),
        "failed calls": sum(tool.errors for tool in one.tools.values()),
        "calls that ran": sum(len(tool.seconds) for tool in one.tools.values()),
        "call time": sum(sum(tool.seconds) for tool in one.tools.values()) / SECONDS,
        "waits": sum(len(tool.queue) for tool in one.tools.values()),
        "wait": sum(sum(tool.queue) for tool in one.tools.values()) / SECONDS,
    }


def live_line(records: Sequence[LoopRecord], path: Path) -> Facts:
    """The rolling figures of the terminal, from the file as it grows."""
    (path / "records.jsonl").write_bytes(b"".join(encode(record) + b"\n" for record in records))
    rolling = Rolling()
    rolling.per_second(Progress(1.0, "measuring", trial=1))
    rolling.p95(path)
    return {
        "answered": len(rolling._loops),
        "latency of answered": sum(wall for _, wall in rolling._loops),
    }


def table(records: Sequence[LoopRecord], _: Path) -> Facts:
    found = tabulate(records)
    own = found.nested == 0
    ran = found.duration[found.duration != NONE]
    return {
        "records": found.trial.size,
        "loops": own.sum(),
        "good": found.good[own].sum(),
        "latency": (found.ended - found.due)[own].sum(),
        "rounds": found.round_loop.size,
        "round time": found.round_wall.sum(),
        "requests": found.requests.sum(),
        "attempts": found.attempts.sum(),
        "input tokens": found.input_tokens.sum(),
        "output tokens": found.output_tokens.sum(),
        "cached tokens": found.cached_tokens[found.cached_tokens != NONE].sum(),
        "written tokens": found.cache_written_tokens[found.cache_written_tokens != NONE].sum(),
        "reasoning tokens": found.reasoning_tokens[found.reasoning_tokens != NONE].sum(),
        "replies": found.replies.sum(),
        "unknown replies": found.unknown_replies.sum(),
        "unreadable": found.unreadable.sum(),
        "server tools": found.server_tools.sum(),
        "untimed server tools": found.untimed_server_tools.sum(),
        "calls": found.call_loop.size,
        "calls that ran": ran.size,
        "failed calls": (found.call_error != NONE).sum(),
        "call time": ran.sum(),
        "upper_bound": found.call_bound.sum(),
        "waits": (found.queue != NONE).sum(),
        "wait": found.queue[found.queue != NONE].sum(),
        "work": found.work.sum(),
        "wall": found.wall.sum(),
        "critical path": found.critical.sum(),
        **{
            f"phase {phase}": total
            for phase, total in zip(PHASES, found.phases.sum(axis=0), strict=True)
            if phase != "unaccounted"  # of a loop it holds what lies outside every round, too
        },
    }


def summary(records: Sequence[LoopRecord], _: Path) -> Facts:
    made = summarise(run([TRIAL], strategies=("gathered",)), records)
    (strategy,), servers = made.strategies, made.servers
    for one in servers:
        for divided in (one.tools, one.strategies):
            assert sum(part.calls for part in divided.values()) == one.calls.calls
    totals, loops = strategy.totals, strategy.loops
    assert strategy.failure_rate.value == pytest.approx(totals.failed / totals.loops)
    assert (loops.due, loops.failed, loops.incomplete) == (totals.loops, totals.failed, totals.incomplete)
    assert sum(strategy.error_types.values()) == totals.failed
    return {
        "loops": totals.loops,
        "failed": totals.failed,
        "incomplete": totals.incomplete,
        "cancelled": totals.cancelled,
        "answered": loops.completed,
        "latency of answered": (strategy.mean_loop_seconds or 0.0) * loops.completed / SECONDS,
        "rounds": totals.rounds,
        "requests": totals.model_requests,
        "attempts": totals.attempts,
        "input tokens": totals.tokens.input,
        "output tokens": totals.tokens.output,
        "cached tokens": totals.tokens.cached or 0,
        "written tokens": totals.tokens.cache_written or 0,
        "reasoning tokens": totals.tokens.reasoning or 0,
        "replies": totals.tokens.replies,
        "unknown replies": totals.tokens.unknown_replies,
        "unreadable": totals.unreadable,
        "server tools": totals.server_tool_calls,
        "untimed server tools": totals.untimed_server_tool_calls,
        "calls": totals.tool_calls,
        "upper_bound": sum(tool.upper_bounds for tool in strategy.tools.values()) + _nested_bounds(records),
        "failed calls": totals.tool_errors,
        "served calls": sum(server.calls.calls for server in servers),
        "served failures": sum(server.calls.errors for server in servers),
        "new connections": sum(server.new_connections for server in servers),
    }


def _nested_bounds(records: Sequence[LoopRecord]) -> int:
    """The upper bounds of loops that are inside others, which the tools of a strategy do not count."""
    return sum(call.upper_bound for record in records if record.nested for call in record.tool_calls)


def page(records: Sequence[LoopRecord], path: Path) -> Facts:
    """The report's columns beside the table, and its pictures over time."""
    directory = RunDirectory.create(path, run([TRIAL], strategies=("gathered",)))
    directory.records_path.write_bytes(b"".join(encode(record) + b"\n" for record in records))
    material = gather(directory)
    drawn = course(material)
    (one,) = drawn["trials"]
    return {
        "calls": material.table.queued.size,
        "rounds": material.table.round_calls.size,
        "refusals": material.table.refused.size,
        "good": sum(one["good"]) * drawn["width"],
        "failed": sum(one["failed"]) * drawn["width"],
    }


def locust_rows(records: Sequence[LoopRecord], _: Path) -> Facts:
    rows = [row for record in records for row in reported(record)]
    counts = Counter(row.request_type for row in rows)
    failed = Counter(row.request_type for row in rows if row.exception is not None)
    time = Counter[str]()
    for row in rows:
        time[row.request_type] += row.response_time * 1e6
    return {
        "loops": counts["LOOP"],
        "failed": failed["LOOP"],
        "incomplete": sum(row.exception == "incomplete" for row in rows),
        "latency": time["LOOP"],
        "asked rounds": counts["ROUND"],
        "asked round time": time["ROUND"],
        "requests": counts["MODEL"],
        "request time": time["MODEL"],
        "calls": counts["TOOL"],
        "failed calls": failed["TOOL"],
    }


def prometheus(records: Sequence[LoopRecord], _: Path) -> Facts:
    sink, registry = PrometheusSink(), CollectorRegistry()
    registry.register(sink)
    for record in records:
        sink(record)
    samples = [sample for family in registry.collect() for sample in family.samples]

    def total(name: str, **labels: str) -> float:
        chosen = (
            s.value for s in samples if s.name == f"toolloop_{name}" and labels.items() <= s.labels.items()
        )
        return sum(chosen)

    loops = "loop_duration_seconds"
    return {
        "loops": total(f"{loops}_count"),
        "good": total(f"{loops}_count", status="ok"),
        "failed": total(f"{loops}_count") - total(f"{loops}_count", status="ok"),
        "incomplete": total(f"{loops}_count", status="incomplete"),
        "cancelled": total(f"{loops}_count", status="cancelled"),
        "latency": total(f"{loops}_sum") / SECONDS,
        "rounds": total("round_duration_seconds_count"),
        "round time": total("round_duration_seconds_sum") / SECONDS,
        "requests": total("model_request_duration_seconds_count"),
        "request time": total("model_request_duration_seconds_sum") / SECONDS,
        "input tokens": total("model_tokens_total", direction="input"),
        "output tokens": total("model_tokens_total", direction="output"),
        "cached tokens": total("model_token_details_total", kind="cached"),
        "written tokens": total("model_token_details_total", kind="cache_written"),
        "reasoning tokens": total("model_token_details_total", kind="reasoning"),
        "unknown replies": total("model_unknown_tokens_total"),
        "unreadable": total("unreadable_total"),
        "first tokens": total("model_time_to_first_token_seconds_count"),
        "first outputs": total("model_time_to_first_output_seconds_count"),
        "calls": total("tool_call_duration_seconds_count") + total("tool_calls_untimed_total"),
        "calls that ran": total("tool_call_duration_seconds_count"),
        **{name: total("tool_calls_untimed_total", reason=name) for name in get_args(Untimed)},
        "waits": total("tool_call_queue_seconds_count"),
        "bounded rounds": total("round_upper_bounds_total"),
        "work": total("tool_phase_work_seconds_total") / SECONDS,
        "wall": total("tool_phase_wall_seconds_total") / SECONDS,
        "critical path": total("tool_phase_critical_path_seconds_total") / SECONDS,
        "recorded loops": total("recorded_loops_total"),
        "failed calls": total("tool_errors_total"),
        "call time": total("tool_call_duration_seconds_sum") / SECONDS,
        "wait": total("tool_call_queue_seconds_sum") / SECONDS,
        "refusals": total("rate_limited_total"),
        "retries": total("retries_total"),
        "backoff": total("backoff_seconds_total") / SECONDS,
        **{f"phase {p}": total("round_phase_seconds_total", phase=p) / SECONDS for p in PHASES},
        "served calls that ran": total("mcp_call_duration_seconds_count"),
        "served time": total("mcp_call_duration_seconds_sum") / SECONDS,
        "served failures": total("mcp_errors_total"),
        "new connections": total("mcp_new_connections_total"),
        **{f"part {p}": total("mcp_call_part_seconds_sum", part=p) / SECONDS for p in PARTS},
    }


def opentelemetry(records: Sequence[LoopRecord], _: Path) -> Facts:
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    sink = OpenTelemetrySink(tracer_provider=TracerProvider(), meter_provider=provider)
    for record in records:
        sink(record)
    sink.close()
    data = reader.get_metrics_data()
    assert data is not None
    points = {
        metric.name: list(metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    provider.shutdown()

    def count(name: str, *, well: bool = False) -> int:
        return sum(p.count for p in points[name] if not (well and "error.type" in p.attributes))

    def total(name: str) -> float:
        return sum(point.sum if hasattr(point, "sum") else point.value for point in points[name])

    return {
        "records": count("gen_ai.invoke_agent.duration"),  # an agent inside another's call is one there
        "records answered": count("gen_ai.invoke_agent.duration", well=True),
        "rounds": count("toolloop.round_duration"),
        "round time": total("toolloop.round_duration") / SECONDS,
        "requests": total("gen_ai.invoke_agent.inference_calls"),
        "requests answered": count("gen_ai.client.inference.duration", well=True),
        "request time": total("gen_ai.client.inference.duration") / SECONDS,
        "input tokens": total("gen_ai.client.inference.usage.input_tokens"),
        "output tokens": total("gen_ai.client.inference.usage.output_tokens"),
        "cached tokens": total("gen_ai.client.inference.usage.cache_read.input_tokens"),
        "written tokens": total("gen_ai.client.inference.usage.cache_write.input_tokens"),
        "reasoning tokens": total("gen_ai.client.inference.usage.reasoning.output_tokens"),
        "unknown replies": total("toolloop.model_unknown_tokens"),
        "unreadable": total("toolloop.unreadable"),
        "first tokens": count("gen_ai.client.inference.time_to_first_chunk"),
        "first outputs": count("toolloop.model_time_to_first_output"),
        "calls": total("gen_ai.invoke_agent.tool_calls"),
        "calls that ran": count("gen_ai.execute_tool.duration"),
        "calls that ran well": count("gen_ai.execute_tool.duration", well=True),
        "call time": total("gen_ai.execute_tool.duration") / SECONDS,
        **{
            point.attributes["reason"]: sum(
                other.value
                for other in points["toolloop.tool_calls_untimed"]
                if other.attributes["reason"] == point.attributes["reason"]
            )
            for point in points["toolloop.tool_calls_untimed"]
        },
        "waits": count("toolloop.tool_call_queue"),
        "wait": total("toolloop.tool_call_queue") / SECONDS,
        **{
            f"phase {point.attributes['phase']}": point.value / SECONDS
            for point in points["toolloop.round_phase"]
            if point.attributes["phase"] != "unaccounted"  # may fall, which no counter can
        },
        "served calls that ran": count("toolloop.mcp_call_duration"),
        "served time": total("toolloop.mcp_call_duration") / SECONDS,
        "served failures": total("toolloop.mcp_errors"),
        "new connections": total("toolloop.mcp_new_connections"),
        **{
            f"part {part}": sum(
                point.sum for point in points["toolloop.mcp_call_part"] if point.attributes["part"] == part
            )
            / SECONDS
            for part in PARTS
        },
    }


def trace(records: Sequence[LoopRecord], path: Path) -> Facts:
    """What Perfetto shows."""
    write_trace(records, path / "trace.json")
    slices = [one for one in json.loads((path / "trace.json").read_text())["traceEvents"] if one["ph"] == "X"]
    outer = [one for one in slices if one["cat"] == "call" and "flow_in" in one]
    return {
        "records": sum(one["cat"] == "loop" for one in slices),
        "rounds": sum(one["cat"] == "round" for one in slices),
        "requests": sum(one["cat"] == "model" for one in slices),
        "calls": len(outer),
        "upper_bound": sum(one["name"].startswith("≤ ") for one in outer),
        "never_ended": sum(one["name"].endswith("(no end seen)") for one in outer),
        "calls that ran": sum(one["name"] == "running" for one in slices),
    }


READERS = (tally, running, live_line, table, summary, page, locust_rows, prometheus, opentelemetry, trace)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_readers_agree(reader: Callable[[Sequence[LoopRecord], Path], Facts], seed: int, tmp_path: Path):
    records = generated(seed)
    expected, found = said(records), reader(records, tmp_path)
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {name: float(expected[name]) for name in found}, rel=1e-9, abs=1e-3
    )


def test_generated_records_hold_everything_that_can_happen():
    records = [record for seed in range(4) for record in generated(seed)]
    facts = said(records)
    assert all(facts.values())
    assert {record.outcome for record in records} == {"ok", "incomplete", "error", "cancelled"}
    assert {call.status for record in records for call in record.tool_calls} == {
        *("ok", "error", "timeout", "cancelled")
    }
    assert any(record.nested for record in records)
    assert any(record.due_ns < record.started_ns for record in records)
    assert any(call.started_ns is None for record in records for call in record.tool_calls)
    assert any(_early(record) for record in records)


def _early(record: LoopRecord) -> bool:
    return any(c.began_ns < r.model.ended_ns for r in record.rounds for c in r.tool_calls)


@pytest.mark.parametrize(
    ("outcome", "status", "calls"),
    [
        ("ok", "ok", ("ok", "ok")),
        ("incomplete", "ok", ("ok", "timeout")),
        ("error", "error", ("ok",)),
        ("error", "error", ("error",)),
        ("cancelled", "cancelled", ()),
    ],
)
def test_outcome_says_whether_a_loop_is_good(outcome: str, status: str, calls: Iterable[str]):
    made = tuple(ToolCall("c", "t", 0, 0, 0, 1, one, None if one == "ok" else "x") for one in calls)
    round_ = RoundRecord(0, 0, 2, ModelCall("p", "m", 0, 1), 1, 2, made)
    record = LoopRecord("l", "s", "p", "m", 5, 9, status, (round_,), intended_ns=2)
    assert (record.outcome, record.good) == (outcome, outcome == "ok")
    assert (record.due_ns, record.wall_ns, record.latency_ns) == (2, 4, 7)
    assert record.failure == {"ok": None}.get(outcome, outcome)
    assert math.isclose(record.latency_ns - record.wall_ns, record.started_ns - record.due_ns)


def test_refusals_and_retries_are_those_of_every_attempt_of_models_and_tools():
    model = ModelCall(
        "p", "m", 0, 60, attempts=(Attempt(0, 10, 429), Attempt(25, 30, 529), Attempt(31, 60, 200))
    )
    unwatched = ModelCall("p", "m", 0, 60, "error", "http_429")
    tried = ToolCall(
        *("c", "t", 10, 10, 11, 50),
        attempts=(
            ToolAttempt(11, 20, "error", "http_429"),
            ToolAttempt(25, 30, "timeout", "timeout"),
            ToolAttempt(35, 50),
        ),
    )
    refused = ToolCall("d", "t", 10, 10, 11, 50, "error", "http_529")
    rounds = (RoundRecord(0, 0, 60, model, 10, 50, (tried, refused)), RoundRecord(1, 60, 90, unwatched))
    record = LoopRecord("l", "s", "p", "m", 0, 90, "ok", rounds)
    assert [*record.refusals] == [("429", 10), ("529", 30), ("429", 20), ("529", 50), ("429", 60)]
    assert model.retries == [("429", 15), ("529", 1)]
    assert model.backoff_ns == 16
    assert tried.retries == [("429", 5), ("timeout", 5)]
    assert (tried.waited_ns, tried.duration_ns, model.attempt_count, unwatched.attempt_count) == (1, 39, 3, 1)
