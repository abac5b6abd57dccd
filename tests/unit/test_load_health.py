"""What a process knows of itself as a load generator, and when a target counts as gone."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest

from profiler.load.health import Histogram, Kernel, Meter, Tally, quantile_seconds, shift_ns
from profiler.load.spending import LoopAccount
from profiler.load.target import PATIENCE_SECONDS, ConnectionWatch
from profiler.loop.lag import Lateness
from profiler.records import Attempt, LoopRecord, ModelCall, RemoteCall, RoundRecord, ToolCall, shifted
from profiler.rundir import Anchor, ClientHealth, Spent

MS = 1_000_000


def loop(status: Any = "ok", call_status: Any = "ok", statuses: tuple[int, ...] = (200,)) -> LoopRecord:
    attempts = tuple(Attempt(0, MS, status=code, retry_after_ns=7) for code in statuses)
    call = ToolCall("c", "compute", MS, MS, 2 * MS, 9 * MS, status=call_status, blocking_ns=6 * MS)
    never = ToolCall(
        "d", "compute", MS, MS, None, 9 * MS, status="cancelled" if call_status != "ok" else "ok"
    )
    model = ModelCall("openai", "m", 0, MS, attempts=attempts)
    round_ = RoundRecord(0, 0, 9 * MS, model, MS, 9 * MS, (call, never))
    return LoopRecord("1", "gathered", "openai", "m", 0, 9 * MS, status, (round_,), intended_ns=-MS, lag_ns=3)


def test_percentile_is_the_nearest_rank() -> None:
    def p99(*lags: int, limit: int = 1000) -> float | None:
        kept = Histogram(limit=limit)
        for lag in lags:
            kept.add(lag)
        return quantile_seconds(kept, 0.99)

    assert p99() is None
    assert p99(5 * MS) == 0.005
    assert p99(*(k * MS for k in range(1, 101))) == pytest.approx(0.099)
    assert p99(*(k * MS for k in range(1, 101)), limit=50) == pytest.approx(0.099, rel=0.005)


def test_meter_reads_what_happened_since_it_was_started() -> None:
    cpu, now = iter([2.0, 3.5]), 10.0
    meter = Meter(cpu_clock=lambda: next(cpu), clock=lambda: now)
    for lag in (MS, 8 * MS, 2 * MS):
        meter.lag(lag)
    meter.schedule.add(4 * MS)
    assert meter.take_worst_lag(sampled=True) == 8 * MS
    now = 11.0
    assert meter.take_worst_lag(sampled=False) == 0  # no loop runs, no sample is taken
    assert meter.take_worst_lag(sampled=True) == 0
    now = 12.0
    assert meter.take_worst_lag(sampled=True) == 1_990 * MS  # samples ought to come, and none does
    assert meter.read("p", 3) == ClientHealth("p", 3, 0.008, 0.004, 0.75, schedule_lag_p95=0.004, seconds=2.0)


def test_loop_failed_when_a_call_of_it_did() -> None:
    tally, account = Tally(), LoopAccount()
    for one in (loop(), loop(call_status="error"), loop(status="error", statuses=(429, 429, 529))):
        tally.count(one)
        account.record(one)
    assert (tally.loops, tally.failed, tally.rate_limited) == (3, 2, 3)
    assert account.spent == Spent(0, 5, 0, 0, replies=3, unknown_replies=3)


def test_calls_whose_session_was_lost_are_counted_by_server() -> None:
    tally = Tally()
    record = loop()
    (round_,) = record.rounds

    def call(server: str, error_type: str | None) -> ToolCall:
        remote = RemoteCall(server, "stdio", posted_ns=3 * MS, answered_ns=4 * MS)
        return replace(round_.tool_calls[0], error_type=error_type, remote=remote)

    calls = (call("a", "session_lost"), call("a", "session_lost"), call("b", "session_lost"), call("c", None))
    tally.count(replace(record, rounds=(replace(round_, tool_calls=(*round_.tool_calls, *calls)),)))
    tally.count(record)
    assert tally.lost_sessions == {"a": 2, "b": 1}


def test_records_move_onto_another_clock_and_keep_their_durations() -> None:
    own, theirs = Anchor(unix_ns=1_000, monotonic_ns=100), Anchor(unix_ns=1_200, monotonic_ns=900)
    by = shift_ns(own, theirs)
    assert by == 600
    # One instant on both clocks: ours 100 is 1,000 of Unix time, which is their 700.
    assert theirs.unix(100 + by) == own.unix(100)
    before, after = loop(), shifted(loop(), by)
    assert (after.started_ns, after.ended_ns, after.intended_ns) == (by, 9 * MS + by, by - MS)
    assert after.lag_ns == before.lag_ns
    round_, call = after.rounds[0], after.rounds[0].tool_calls[0]
    assert (round_.tools_started_ns, round_.model.ended_ns) == (MS + by, MS + by)
    assert (call.ready_ns, call.started_ns, call.blocking_ns) == (MS + by, 2 * MS + by, 6 * MS)
    assert round_.tool_calls[1].started_ns is None
    assert round_.model.attempts[0] == Attempt(by, MS + by, status=200, retry_after_ns=7)
    assert shifted(after, -by) == before


def test_watch_does_not_connect_while_loops_succeed_or_nothing_ends() -> None:
    watch = ConnectionWatch()
    assert [watch.is_due(loops, failed) for loops, failed in [(0, 0), (3, 0), (5, 1), (5, 1)]] == [False] * 4


def test_target_is_gone_when_nobody_could_connect_for_so_long() -> None:
    watch = ConnectionWatch()
    watch.is_due(4, 0)
    assert watch.is_due(5, 1)
    assert not watch.is_gone(10.0, False)
    assert watch.is_due(5, 1)  # nothing ends: it is asked again
    assert not watch.is_gone(10.0 + PATIENCE_SECONDS - 0.1, False)
    assert watch.is_gone(10.0 + PATIENCE_SECONDS, False)


def test_next_trial_does_not_make_it_forget() -> None:
    watch = ConnectionWatch()
    assert watch.is_due(9, 9)
    watch.is_gone(10.0, False)
    assert watch.is_due(0, 0)
    assert watch.is_gone(10.0 + PATIENCE_SECONDS, False)


def test_connection_or_a_loop_that_succeeds_begins_anew() -> None:
    watch = ConnectionWatch()
    assert watch.is_due(2, 2)
    watch.is_gone(10.0, False)
    watch.is_gone(12.0, True)
    assert not watch.is_due(2, 2)
    assert watch.is_due(3, 3)  # it fails in other ways
    assert not watch.is_gone(10.0 + PATIENCE_SECONDS, False)
    assert not watch.is_due(5, 4)
    assert watch.is_due(6, 5)
    assert not watch.is_gone(10.0 + 2 * PATIENCE_SECONDS, False)


def test_meter_tells_whose_the_lags_of_the_trial_were() -> None:
    class Sampler:
        total_ns, delay_ns = Lateness(5 * MS, 7 * MS), 100 * MS

        def total(self) -> Lateness:
            return self.total_ns

        def run_delay_ns(self) -> int:
            return self.delay_ns

    sampler: Any = Sampler()
    meter = Meter(cpu_clock=lambda: 1.0, clock=lambda: 10.0)
    meter.lag(0, sampler)
    assert meter.read("p", 0).held_seconds == 0
    sampler.total_ns, sampler.delay_ns = Lateness(8 * MS, 47 * MS), 160 * MS
    meter.lag(MS, sampler)
    read = meter.read("p", 0)
    assert (read.held_seconds, read.machine_seconds, read.delayed_seconds) == (0.003, 0.040, 0.060)


def test_kernels_counts_are_those_of_the_trial() -> None:
    texts = {
        "/proc/self/cgroup": "0::/",
        "/proc/self/mountinfo": "30 23 0:26 / /g rw - cgroup2 cgroup2 rw",
        "/g/cpu.stat": "throttled_usec 1000000",
        "/proc/pressure/cpu": "some avg10=0.00 avg60=0.00 avg300=0.00 total=3000000",
        "/proc/stat": "cpu 1 0 1 1 1 1 1 100 0 0",
    }
    tick = os.sysconf("SC_CLK_TCK")
    kernel = Kernel(texts.get)
    texts |= {
        "/g/cpu.stat": "throttled_usec 1500000",
        "/proc/pressure/cpu": "some avg10=0.00 avg60=0.00 avg300=0.00 total=4000000",
        "/proc/stat": f"cpu 1 0 1 1 1 1 1 {100 + tick} 0 0",
    }
    kernel.look()
    read = kernel.read(ClientHealth("p", 0), 4.0)
    assert (read.throttled_seconds, read.waited, read.stolen) == (0.5, 0.25, 0.25)


def test_where_the_kernel_does_not_count_nothing_is_known() -> None:
    read = Kernel(lambda path: None).read(ClientHealth("p", 0), 4.0)
    assert (read.throttled_seconds, read.waited, read.stolen) == (None, None, None)
