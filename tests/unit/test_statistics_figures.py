"""Figures of one strategy whose values are known by counting."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from profiler.records import Attempt, LoopRecord, ServerToolCall
from profiler.statistics.figures import MovingLimit, Overlap, StrategySummary, Tokens, figures, limit_line
from profiler.statistics.objectives import parse_objective
from profiler.statistics.quantiles import Estimate
from profiler.statistics.summary import summarise
from profiler.statistics.table import tabulate
from profiler.statistics.windows import measure
from profiler.strategies import StrategySpec
from tests.unit.statistics_data import MS, loop, run, trial, trials


def summary(failed: list[int], loops: int = 20, slo: str | None = None, **changes: object) -> StrategySummary:
    """One block of 4 s for each entry: so many of its loops of 100 ms failed."""
    trials = [trial(b, "gathered", b * 5000, b * 5000 + 4000, block=b) for b in range(len(failed))]
    records = [
        loop(b * 5000 + k * 100, trial=b, status="error" if k < count else "ok", **changes)  # type: ignore[arg-type]
        for b, count in enumerate(failed)
        for k in range(loops)
    ]
    return figures_of(records, trials, slo)


def figures_of(records: list[LoopRecord], trials: list, slo: str | None = None) -> StrategySummary:
    table = tabulate(records)
    (group,) = measure(run(trials), table)
    return figures(group, table, None if slo is None else parse_objective(slo))


# ── failures ───────────────────────────────────────────────────────────────────────────────────


def test_failure_rate_has_the_t_interval_of_its_blocks() -> None:
    half = 4.302652729911275 * 0.05 / 3**0.5  # t(0.975, 2) · 0.05 / √3
    assert summary([9, 10, 11]).failure_rate == Estimate(
        0.5, pytest.approx(0.5 - half), pytest.approx(0.5 + half)
    )
    assert summary([9, 11]).failure_rate == Estimate(0.5)
    assert summary([1, 0, 5]).failure_rate.low == 0.0
    assert summary([20, 19, 15]).failure_rate.high == 1.0


def test_failure_rate_of_none_in_sixty_loops_may_be_one_in_twenty() -> None:
    assert summary([0, 0, 0]).failure_rate == Estimate(0.0, 0.0, 3 / 60)


def test_blocks_in_which_nothing_was_due_say_nothing_of_failures() -> None:
    trials = [trial(b, "gathered", b * 5000, b * 5000 + 4000, block=b) for b in range(3)]
    assert figures_of([], trials).failure_rate == Estimate(None)
    one = figures_of([loop(0), loop(200, status="error")], trials)
    assert one.failure_rate == Estimate(0.5)


def test_objective_is_missed_by_what_just_reaches_it() -> None:
    assert summary([2, 2], slo="errors<10%").objective_met is False
    assert summary([2, 2], slo="errors<10.1%").objective_met is True
    assert summary([0, 0], slo="p95<100ms").objective_met is False
    assert summary([0, 0], slo="p95<101ms").objective_met is True
    assert summary([0, 0], slo="p95<100ms").goodput.value == 0.0
    assert summary([0, 0], slo="p95<101ms").goodput.value == 5.0


def test_incomplete_loops_are_counted_among_the_completed() -> None:
    records = [loop(0, calls=[(0, 10)]), loop(300), loop(600, calls=[(0, 10), (0, 20)], tool_status="error")]
    found = figures_of(records, [trial(0, "gathered", 0, 4000)])
    assert (found.loops.completed, found.loops.incomplete) == (3, 1)
    assert (found.totals.tool_calls, found.totals.tool_errors) == (3, 2)


def test_totals_leave_out_the_calls_of_other_strategies() -> None:
    records = [
        loop(0, calls=[(0, 10)]),
        loop(300, calls=[(0, 10)], strategy="sequential", trial=None, tool_status="error"),
    ]
    assert figures_of(records, [trial(0, "gathered", 0, 4000)]).totals.tool_errors == 0


# ── rates, phases, tools ───────────────────────────────────────────────────────────────────────


def test_blocks_that_agree_give_a_rate_without_any_width() -> None:
    assert summary([0, 0, 0]).throughput == Estimate(5.0, pytest.approx(5.0), pytest.approx(5.0))


def test_arrivals_are_none_to_wait_for_under_a_closed_load() -> None:
    assert "arrival_wait" not in summary([0]).phases


def test_blocking_is_the_longest_the_sum_and_the_count() -> None:
    def held(start: float, *blocking_ms: int) -> LoopRecord:
        one = loop(start, calls=[(0, 50)] * len(blocking_ms))
        first, last = one.rounds
        calls = tuple(
            dataclasses.replace(call, blocking_ns=ms * MS)
            for call, ms in zip(first.tool_calls, blocking_ms, strict=True)
        )
        return dataclasses.replace(one, rounds=(dataclasses.replace(first, tool_calls=calls), last))

    trials = [trial(0, "gathered", 0, 4000)]
    tool = figures_of([held(0, 30, 0), held(500, 40, 20)], trials).tools["get_weather"]
    assert tool.blocking_seconds == pytest.approx(0.04)
    assert tool.blocking_total_seconds == pytest.approx(0.09)
    assert tool.blocking_calls == 3
    tool = figures_of([held(0, 0, 0)], trials).tools["get_weather"]
    assert (tool.blocking_seconds, tool.blocking_total_seconds, tool.blocking_calls) == (0.0, 0.0, 0)


def test_overlap_is_shown_when_any_of_its_figures_is_something() -> None:
    table = tabulate([loop(0, calls=[(0, 50)]), loop(500, calls=[(0, 50)])])
    (group,) = measure(run([trial(0, "gathered", 0, 4000)]), table)
    assert figures(group, table).overlap is None
    saved = dataclasses.replace(table, saved=np.array([-30 * MS, 10 * MS]))
    assert figures(group, saved).overlap == Overlap(0.0, pytest.approx(-0.01), 0.0)


# ── limits that move ───────────────────────────────────────────────────────────────────────────


def limited(start: float, limit: int | None, process: str = "w0", strategy: str = "adaptive") -> LoopRecord:
    one = loop(start, calls=[(0, 50)], strategy=strategy)
    first, last = one.rounds
    return dataclasses.replace(one, rounds=(dataclasses.replace(first, limit=limit), last), process=process)


LINE = [
    limited(900, 7, "w1"),
    limited(0, 8, "w0"),
    limited(300, 4, "w1"),
    limited(600, 10, "w0"),
    limited(1200, 9, "w0"),
    limited(1100, 3, "w2"),
    limited(1500, None, "w0"),
    limited(100, 99, "w0", "semaphore:99"),
]


def test_limits_of_all_processes_are_added_as_they_stand() -> None:
    """Before a process is first heard of it has what it says then."""
    line = limit_line(tabulate(LINE), "adaptive")
    assert (line.times // MS).tolist() == [100, 400, 700, 1000, 1200, 1300]
    assert line.limits.tolist() == [8, 4, 10, 7, 3, 9]
    assert line.totals.tolist() == [15, 15, 17, 20, 20, 19]
    assert limit_line(tabulate(LINE), "rate:5/s").totals.size == 0


def test_moving_limit_is_its_range_in_the_windows_and_the_last() -> None:
    def moving(strategy: str, start: float = 0.0, end: float = 2000.0) -> MovingLimit | None:
        found = figures_of(LINE, [trial(0, strategy, start, end)])
        return found.limit

    assert moving("adaptive") == MovingLimit(15, 20, 19)
    assert moving("adaptive", 300, 700) == MovingLimit(15, 17, 17)
    assert moving("adaptive", 5000, 6000) is None
    assert moving("semaphore:99") is None


def test_limits_that_move() -> None:
    specs = ("adaptive", "eager+adaptive:4", "semaphore:8", "gathered", "of-a-later-version:9")
    assert [StrategySpec.recorded(spec).adapts for spec in specs] == [True, True, False, False, False]


def test_server_tools_are_among_the_phases_only_where_any_ran() -> None:
    """Every second loop of 100 ms has a search of 40 ms: 20 ms a loop."""
    records = []
    for k in range(20):
        record = loop(k * 100)
        (only,) = record.rounds
        search = ServerToolCall("web_search", k * 100 * MS, (k * 100 + 40) * MS)
        model = dataclasses.replace(only.model, server_tools=(search,) if k % 2 else ())
        records.append(dataclasses.replace(record, rounds=(dataclasses.replace(only, model=model),)))
    found = figures_of(records, [trial(0, "gathered", 0, 4000)]).phases
    assert found["server_tools"] == pytest.approx(0.02)
    assert found["model"] == pytest.approx(0.08)
    assert "server_tools" not in summary([0]).phases


def test_tokens_that_no_reply_names_are_unknown_and_not_none() -> None:
    """20 loops of 10 in, 2 out: every fourth says what was cached, every fifth says nothing."""
    records = []
    for k in range(20):
        record = loop(k * 100)
        (only,) = record.rounds
        model = only.model
        if k % 4 == 0:
            model = dataclasses.replace(model, cached_tokens=6, cache_written_tokens=3)
        if k % 5 == 0:
            model = dataclasses.replace(
                model, input_tokens=None, output_tokens=None, cached_tokens=None, cache_written_tokens=None
            )
        records.append(dataclasses.replace(record, rounds=(dataclasses.replace(only, model=model),)))
    found = figures_of(records, [trial(0, "gathered", 0, 4000)])
    assert found.tokens == Tokens(160, 32, 24, 12, None, 20, 4)  # 4 of the 5 fourths are no fifth
    assert found.totals.tokens == found.tokens


def test_totals_count_why_calls_failed_and_loops_ended_and_what_was_our_own_defect() -> None:
    internal = [dataclasses.replace(loop(k, status="error"), error_type="internal") for k in range(2)]
    nested = dataclasses.replace(internal[0], parent="l")
    records = [
        *(loop(k * 200, calls=[(0, 1), (0, 1)], tool_status="error") for k in range(3)),
        *(loop(k, status="error") for k in range(4)),
        *internal,
        nested,
        loop(0, strategy="other", status="error"),
    ]
    totals = summarise(run(trials()), records).strategies[0].totals
    assert totals.causes == {"TimeoutError (get_weather)": 6, "http_429": 4, "internal": 2}
    assert list(totals.causes) == ["TimeoutError (get_weather)", "http_429", "internal"]
    assert totals.internal == 3
    silent = dataclasses.replace(records[3].rounds[0].model, status="error", attempts=(Attempt(0, 1),))
    unheard = dataclasses.replace(
        records[3], rounds=(dataclasses.replace(records[3].rounds[0], model=silent),)
    )
    found = summarise(run(trials()), [*records[:1], unheard])
    assert (found.totals[0].heard_requests, found.totals[0].unheard_requests) == (2, 1)
    assert not found.unanswered
    assert summarise(run(trials()), [unheard]).unanswered
    assert found.internal == 0
