"""Figures of loads without a model, of queues and refusals whose truth is known; and their sentences."""

from __future__ import annotations

import heapq
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from profiler.records import (
    NO_MODEL,
    LoopRecord,
    ModelCall,
    RemoteCall,
    RoundRecord,
    Status,
    ToolCall,
    encode,
)
from profiler.report.direct import headline, in_calls, render_direct, verdict
from profiler.report.html import gather, render
from profiler.rundir import DRAWN_ARGUMENTS, Load, Run, RunDirectory
from profiler.statistics.direct import DirectLoad, direct_loads
from profiler.statistics.summary import summarise, summarise_directory
from profiler.statistics.table import tabulate
from tests.unit.statistics_data import MS, run, trial

WINDOW = 5_000.0


def called(
    number: int,
    due: float,
    start: float,
    end: float,
    *,
    error: str | None = None,
    tool: str = "search",
    server: float | None = None,
    index: int = 0,
    intended: bool = True,
) -> LoopRecord:
    """One call, in milliseconds: handed over 1 ms after its start, its answer read for 2 ms."""
    status: Status = "ok" if error is None else "cancelled" if error == "cancelled" else "error"
    at = [int(one * MS) for one in (due, start, end)]
    remote = RemoteCall(
        "files",
        "http",
        "2026-07-28",
        at[1] + MS,
        at[2] - 2 * MS,
        None if server is None else int(server * MS),
    )
    of_tool = ToolCall(
        f"c{number}", tool, at[1], at[1], at[1], at[2],
        status, error, remote=remote,
    )  # fmt: skip
    nobody = ModelCall(NO_MODEL, "", at[1], at[1])
    round_ = RoundRecord(0, at[1], at[2], nobody, at[1], at[2], (of_tool,))
    return LoopRecord(
        f"l{number}", "gathered", NO_MODEL, "", at[1], at[2],
        status, (round_,), error, number=number, trial=index, intended_ns=at[0] if intended else None,
    )  # fmt: skip


def figures(records: list[LoopRecord], made: Run) -> list[DirectLoad]:
    return direct_loads(made, records, tabulate(records))


def open_run(rate: float, **changes) -> Run:
    load = Load("open", 2, arrivals=f"{rate:g}/s", rate=rate)
    return run([trial(0, "gathered", 0, WINDOW, **changes)], provider=NO_MODEL, load=load)


def queue(rate: float, places: int, service: float, cut: float = float("inf")) -> list[LoopRecord]:
    """Arrivals of a Poisson process to a server with places, first come, first served."""
    rng = np.random.default_rng(3)
    due = np.sort(rng.uniform(0, WINDOW, rng.poisson(rate * WINDOW / 1e3)))
    free = [0.0] * places
    records = []
    for number, at in enumerate(due):
        ended = max(at, heapq.heappop(free)) + service
        heapq.heappush(free, ended)
        error = "cancelled" if ended > cut else None
        records.append(called(number, at, at, min(ended, cut), error=error))
    return records


def test_overload_counts_every_arrival_from_when_it_was_due_and_says_so_first():
    records = queue(80.0, 8, 200.0)
    (found,) = figures(records, open_run(80.0))
    truth = [record.latency_ns / 1e9 for record in records]
    assert found.calls == len(records)
    assert found.seconds.p95.value == pytest.approx(np.quantile(truth, 0.95))
    assert found.served.value == pytest.approx(40, rel=0.02)
    assert found.unserved
    waiting = sum(record.ended_ns >= WINDOW * MS for record in records)
    last = max(record.ended_ns for record in records) / 1e9 - WINDOW / 1e3
    assert (found.waiting, found.waiting_seconds) == (waiting, pytest.approx(last))
    said = verdict(found, "files")
    assert said.startswith("cannot serve: files cannot serve 80.0/s: it answered 4")
    assert f"the backlog grew to {waiting} calls / {last:.2f} s" in said


def test_calls_that_never_ended_count_with_the_time_they_had():
    records = queue(80.0, 8, 200.0, cut=6_000.0)
    cut = sum(record.status == "cancelled" for record in records)
    (found,) = figures(records, open_run(80.0, interrupted=cut + 3))
    assert cut > 20
    assert (found.cut, found.unstarted) == (cut, 3)
    assert found.at_least == ("p50", "p95", "p99")
    assert found.failure_share == pytest.approx((cut + 3) / (len(records) + 3))
    assert f"{cut + 3} of which never ended" in verdict(found, "files")


def test_load_that_is_served_says_so():
    records = queue(20.0, 8, 200.0)
    (found,) = figures(records, open_run(20.0))
    assert not found.unserved
    assert found.seconds.p95.value == pytest.approx(0.2, rel=0.05)
    assert verdict(found, "files") == "files serves 20.0/s: p95 200 ms from when calls were due; none failed"


def test_parts_are_split_where_the_server_says_its_time():
    told = [called(k, k * 100.0, k * 100.0 + 4, k * 100.0 + 50, server=40) for k in range(20)]
    untold = [called(k, k * 100.0, k * 100.0 + 4, k * 100.0 + 50, tool="find") for k in range(20, 40)]
    (found,) = figures([*told, *untold], open_run(10.0))
    find, search = found.tools
    assert search.parts == pytest.approx(
        {"to start": 0.004, "client": 0.001, "server": 0.040, "network": 0.003, "parsing": 0.002}
    )
    assert find.parts == pytest.approx(
        {"to start": 0.004, "client": 0.001, "server + network": 0.043, "parsing": 0.002}
    )


def closed_run(users: int, **changes) -> Run:
    load = Load("closed", users)
    return run([trial(0, "gathered", 0, WINDOW, users=users)], users, provider=NO_MODEL, load=load, **changes)


def refused(cap: int) -> list[LoopRecord]:
    """`cap` calls of 100 ms at once, and every 50 ms one that is refused within 2 ms."""
    good = [
        called(cap * step + place, step * 100.0, step * 100.0, step * 100.0 + 100, intended=False)
        for step in range(50)
        for place in range(cap)
    ]
    bad = [
        called(10_000 + k, 30.0 + k * 50, 30.0 + k * 50, 33.0 + k * 50, error="http_429", intended=False)
        for k in range(99)
    ]
    return [*good, *bad]


def test_refusals_tell_how_many_calls_the_server_had():
    (found,) = figures(refused(6), closed_run(8))
    assert found.beside_failures == 6
    assert found.failures == {"http_429": 99}
    # A refusal at once is no fast answer.
    assert found.seconds.p50.value == pytest.approx(0.1)
    assert found.served.value == pytest.approx(60, rel=0.05)
    said = verdict(found, "files")
    assert said.startswith("files does not take 8 calls at once: it answered")
    assert "(http_429 99)" in said


def test_nothing_of_a_load_without_a_model_counts_as_a_model_request():
    records = refused(6)
    summary = summarise(closed_run(8), records)
    (strategy,) = summary.strategies
    totals = strategy.totals
    assert (totals.model_requests, totals.attempts, totals.heard_requests, totals.unheard_requests) == (
        0, 0, 0, 0,
    )  # fmt: skip
    assert totals.tool_calls == len(records)
    assert not summary.unanswered


def test_page_of_figures_leads_with_the_verdict_and_has_each_tool():
    records, made = queue(80.0, 8, 200.0), open_run(80.0)
    loads = figures(records, made)
    text = render_direct(loads, summarise(made, records), made, "files", "runs/1")
    lines = text.splitlines()
    assert lines[0] == headline(loads, "files")[0]
    assert lines[2].split() == ["tool", "calls", "failed", "p50", "p95", "p99"]
    assert lines[3].split()[:3] == ["search", str(len(records)), "0"]
    assert lines[-1] == "runs/1"


def test_ladder_has_a_figure_for_each_load_the_highest_first():
    trials = [trial(0, "gathered", 0, 1000, users=1), trial(1, "gathered", 2000, 3000, users=4)]
    made = run(trials, 4, provider=NO_MODEL, load=Load("closed", 4))
    records = [called(k, k * 100.0, k * 100.0, k * 100.0 + 100, intended=False) for k in range(10)]
    records += [
        called(
            100 + k,
            2000.0 + k // 4 * 100,
            2000.0 + k // 4 * 100,
            2100.0 + k // 4 * 100,
            index=1,
            intended=False,
        )
        for k in range(40)
    ]
    low, high = figures(records, made)
    assert (low.users, high.users) == (1, 4)
    assert high.served.value == pytest.approx(4 * (low.served.value or 0), rel=0.2)
    assert [line.split(" with ")[1][:7] for line in headline([low, high], "files")] == ["4 calls", "1 call "]


def test_nothing_is_said_where_nothing_was_measured():
    assert headline([], "files") == ["nothing was measured"]


def test_summary_page_and_terminal_leave_out_nothing_of_a_queue_that_grows(tmp_path: Path):
    records, made = queue(80.0, 8, 200.0), open_run(80.0)
    directory = RunDirectory.create(tmp_path, made)
    directory.records_path.write_bytes(b"".join(encode(record) + b"\n" for record in records))
    truth = np.quantile([record.latency_ns / 1e9 for record in records], [0.5, 0.95, 0.99])
    summary = summarise_directory(directory)
    (load,), (strategy,) = summary.loads, summary.strategies
    for seconds in (load.seconds, strategy.loop_seconds):
        assert [seconds[q].value for q in ("p50", "p95", "p99")] == pytest.approx(truth)
    assert (strategy.loops.due, strategy.warm_up_loops) == (len(records), 0)
    row = ["search", str(len(records)), "0", *(f"{value:.2f} s" for value in truth)]
    text = render_direct(summary.loads, summary, made, "files")
    assert re.split(r" {2,}", text.splitlines()[3]) == row
    page = re.sub(r"<script.*?</script>|<style.*?</style>", "", render(gather(directory)), flags=re.DOTALL)
    shown = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    assert " ".join(row) in shown
    assert headline(summary.loads, "cities")[0] in shown
    assert not re.search(r"gathered|\bloops?/s|\b(?<!event )(?<!event-)loops?\b", shown)


def test_arrivals_at_the_edges_of_the_window_count_everywhere_alike():
    records = [called(k, due, due, due + 90) for k, due in enumerate([997.0, 1_100.0, 4_000.0, 5_002.0])]
    load = Load("open", 2, arrivals="1/s", rate=1.0)
    made = run([trial(0, "gathered", 1_000, WINDOW)], provider=NO_MODEL, load=load)
    (found,), (strategy,) = figures(records, made), summarise(made, records).strategies
    assert (found.calls, strategy.loops.due) == (4, 4)


def test_calls_that_began_before_a_closed_window_are_not_taken_for_calls_that_never_began():
    load = Load("closed", 2)
    made = run([trial(0, "gathered", 1000, WINDOW, interrupted=2)], 2, provider=NO_MODEL, load=load)
    records = [called(k, k * 100.0, k * 100.0, k * 100.0 + 90, intended=False) for k in range(40)]
    records += [
        called(90 + k, 500.0 + 1000 * k, 500.0 + 1000 * k, 9_000.0, error="cancelled", intended=False)
        for k in range(2)
    ]
    (found,) = figures(records, made)
    assert (found.cut, found.unstarted) == (1, 0)


def said_of(records: list[LoopRecord], made: Run) -> str:
    return render_direct(figures(records, made), summarise(made, records), made, "files")


def failing_with(error: str) -> list[LoopRecord]:
    return [called(k, k * 50.0, k * 50.0, k * 50.0 + 40, error=error, intended=False) for k in range(99)]


@pytest.mark.parametrize(("drawn", "told"), [(True, True), (False, False)])
def test_arguments_that_were_drawn_are_suspected_where_tools_refuse_them(drawn, told):
    text = said_of(failing_with("tool_error"), closed_run(1, arguments={DRAWN_ARGUMENTS: drawn}))
    assert ("99 of 99 calls were answered with an error; their arguments were drawn" in text) is told
    assert ("--args-from FILE" in text) is told
    assert "paused" not in text


@pytest.mark.parametrize(("error", "pauses"), [("http_429", True), ("busy", True), ("rpc_-32603", False)])
def test_pauses_of_a_closed_load_are_said(error, pauses):
    text = said_of(failing_with(error), closed_run(1))
    assert ("its caller paused" in text) is pauses


def test_errors_that_say_busy_are_refusals():
    records = [*refused(6)[:300], *failing_with("busy")]
    (found,) = figures(records, closed_run(8))
    assert found.refused == found.failures["busy"] == 99
    assert "does not take 8 calls at once" in verdict(found, "files")


def test_connections_that_ran_out_are_the_clients_fault_and_said_first():
    first = said_of(failing_with("client_limit"), closed_run(1)).splitlines()[0]
    assert first.startswith("INVALID: for 99 calls this machine had no connection left")


def test_what_is_wrong_with_the_server_is_said_below_the_verdict():
    records, made = queue(20.0, 8, 200.0), open_run(20.0)
    summary = summarise(made, records)
    servers = tuple(replace(one, advice=("it does this; do that",)) for one in summary.servers)
    text = render_direct(figures(records, made), replace(summary, servers=servers), made, "files")
    assert text.splitlines()[1] == "MCP server files: it does this; do that"


@pytest.mark.parametrize(
    ("loops", "calls"),
    [
        ("gathered (4 agents): 5.9 ms of loop p95", "a load of 4: 5.9 ms of call p95"),
        ("Loops: good loops/s, loop lag p99", "Calls: calls/s, event-loop lag p99"),
        (
            "the event loop was late, the event-loop lag too",
            "the event loop was late, the event-loop lag too",
        ),
        ("an uvloop of ours", "an uvloop of ours"),
    ],
)
def test_loops_of_a_strategy_are_calls(loops, calls):
    assert in_calls(loops) == calls
