"""The table: the quick reader sees what the careful one does, and fails as it does."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from profiler import records
from profiler.anatomy import PHASES
from profiler.errors import RecordError
from profiler.records import Attempt, LoopRecord
from profiler.rundir import RunDirectory
from profiler.statistics.summary import summarise, summarise_directory
from profiler.statistics.table import NONE, Table, tabulate
from tests.unit.statistics_data import MS, loop, run, trial


def some_records() -> list[LoopRecord]:
    plain = loop(0, calls=[(0, 50), (20, 30)], number=7)
    first, *others = plain.rounds
    never = dataclasses.replace(first.tool_calls[0], started_ns=None, status="cancelled", error_type=None)
    tried = dataclasses.replace(
        first.model, attempts=(Attempt(0, 20 * MS, 429), Attempt(40 * MS, 100 * MS, 200)), input_tokens=None
    )
    odd = dataclasses.replace(
        plain,
        rounds=(dataclasses.replace(first, model=tried, tool_calls=(never, *first.tool_calls[1:])), *others),
        status="error",
        error_type="http_429",
        trial=None,
        intended_ns=-5,
    )
    return [plain, odd, loop(300, strategy="sequential")]


def test_calls_beside_a_streaming_model_are_added_up() -> None:
    """The model streams for 100 ms; a call of 80 ms was complete at 40 ms and began at 60 ms."""
    plain = loop(0, calls=[(0, 80)], strategy="eager")
    first, *others = plain.rounds
    (call,) = first.tool_calls
    call = dataclasses.replace(
        call, ready_ns=40 * MS, queued_ns=40 * MS, started_ns=60 * MS, ended_ns=140 * MS
    )
    streamed = dataclasses.replace(first.model, streamed=True)
    first = dataclasses.replace(first, model=streamed, tool_calls=(call,))
    record = dataclasses.replace(plain, rounds=(first, *others), ended_ns=240 * MS)
    table = tabulate([record, plain])
    assert table.overlapped.tolist() == [40 * MS, 0]
    assert table.saved.tolist() == [40 * MS, 0]
    assert table.savable.tolist() == [60 * MS, 0]
    summary = summarise(run([trial(0, "eager", 0, 1000)]), [record])
    found = summary.strategies[0].overlap
    assert found is not None
    assert (found.seconds, found.saved_seconds, found.savable_seconds) == pytest.approx((0.04, 0.04, 0.06))


def write(path: Path, made: list[LoopRecord]) -> Path:
    path.write_bytes(b"".join(records.encode(record) + b"\n" for record in made))
    return path


def same(one: Table, other: Table) -> bool:
    return all(
        np.array_equal(getattr(one, field.name), getattr(other, field.name))
        for field in dataclasses.fields(Table)
    )


def test_columns_hold_what_the_records_say() -> None:
    table = tabulate(some_records())
    assert table.strategies == ["gathered", "sequential"]
    assert table.trial.tolist() == [0, NONE, 0]
    assert table.due.tolist() == [0, -5, 300 * MS]
    assert table.good.tolist() == [1, 0, 1]
    assert table.requests.tolist() == [2, 2, 1]
    assert table.attempts.tolist() == [2, 3, 1]
    assert table.input_tokens.tolist() == [20, 10, 10]
    assert table.number.tolist() == [7, 7, NONE]
    assert table.limit.tolist() == table.shortfall.tolist() == [NONE] * 5
    assert table.tools_started.tolist() == [100 * MS, NONE, 100 * MS, NONE, NONE]
    assert table.work.tolist() == [80 * MS, 30 * MS, 0]
    assert table.critical.tolist() == [50 * MS, 30 * MS, 0]
    assert table.wall.tolist() == [50 * MS, 50 * MS, 0]
    assert table.tool_wall.tolist() == [50 * MS, NONE, 50 * MS, NONE, NONE]
    assert table.call_loop.tolist() == [0, 0, 1, 1]
    assert table.duration.tolist() == [50 * MS, 30 * MS, NONE, 30 * MS]
    assert table.queue.tolist() == [0, 20 * MS, 50 * MS, 20 * MS]
    assert [table.errors[code] for code in table.call_error if code != NONE] == ["cancelled"]
    assert table.phases[1, PHASES.index("backoff")] == 20 * MS
    assert (table.phases.sum(axis=1) == table.ended - table.started).all()


def test_limit_of_any_size_has_room_in_its_column() -> None:
    (record,) = some_records()[:1]
    vast = replace(record, rounds=tuple(replace(one, limit=2**40) for one in record.rounds))
    assert set(tabulate([vast]).limit.tolist()) == {2**40}


def test_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "records.jsonl", some_records())
    whole = path.read_bytes()
    for cut in (3, 50, len(whole) // 6):
        path.write_bytes(whole[:-cut])
        assert same(tabulate(records.read(path)), tabulate(some_records()[:2]))


@pytest.mark.parametrize(
    "bad", [b"{}", b"[]", b"nonsense", b'{"schema": 99}', b'{"schema": 1, "rounds": [{}]}']
)
def test_bad_line_is_named_as_the_careful_reader_names_it(tmp_path: Path, bad: bytes) -> None:
    path = write(tmp_path / "records.jsonl", some_records())
    path.write_bytes(bad + b"\n" + path.read_bytes())
    with pytest.raises(RecordError, match=r"records\.jsonl:1: "):
        tabulate(records.read(path))


def test_table_of_no_records_is_empty(tmp_path: Path) -> None:
    table = tabulate(records.read(write(tmp_path / "records.jsonl", [])))
    assert table.trial.size == table.duration.size == 0
    assert table.phases.shape == (0, len(PHASES))
    with pytest.raises(RecordError, match="cannot read records"):
        tabulate(records.read(tmp_path / "none.jsonl"))


def test_directory_is_summarised_like_its_records(tmp_path: Path) -> None:
    conditions = run([trial(0, "gathered", 0, 1000)])
    directory = RunDirectory.create(tmp_path, conditions)
    write(directory.records_path, some_records())
    assert summarise_directory(directory) == summarise(conditions, some_records())


def test_loop_inside_a_tool_call_belongs_to_no_trial_and_is_no_loop_of_its_own() -> None:
    nested = dataclasses.replace(loop(10), parent="loop-0")
    table = tabulate([loop(0), nested])
    assert table.trial.tolist() == [0, NONE]
    strategy = summarise(run([trial(0, "gathered", 0, 1000)]), [loop(0), nested]).strategies[0]
    assert strategy.loops.completed == 1
    assert (strategy.totals.loops, strategy.totals.rounds, strategy.totals.model_requests) == (1, 2, 2)


def test_lines_written_before_a_field_existed_are_read(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    line = records.encode(loop(0, calls=[(0, 50)]))
    for key in (b',"blocking_ns":0', b',"shortfall":null', b',"parent":null'):
        assert key in line
        line = line.replace(key, b"")
    path.write_bytes(line + b"\n")
    table = tabulate(records.read(path))
    assert table.blocking.tolist() == [0]
    assert table.trial.tolist() == [0]


def test_summary_names_who_held_the_event_loop() -> None:
    record = loop(0, calls=[(0, 50), (20, 30)])
    first, *others = record.rounds
    held = dataclasses.replace(first.tool_calls[0], blocking_ns=200 * MS)
    first = dataclasses.replace(first, tool_calls=(held, *first.tool_calls[1:]), shortfall="blocked_loop")
    made = summarise(
        run([trial(0, "gathered", 0, 1000)]), [dataclasses.replace(record, rounds=(first, *others))]
    )
    tool = made.strategies[0].tools["get_weather"]
    assert (tool.blocking_seconds, tool.blocking_total_seconds) == (pytest.approx(0.2), pytest.approx(0.2))
    assert made.strategies[0].shortfalls == {"blocked_loop": 1}
    caveat = next(c for c in made.warnings if c.kind == "blocking_tool")
    assert caveat.detail.startswith("get_weather held the event loop for up to 200 ms")
    assert not caveat.invalid


def test_stall_in_many_calls_is_no_tools_fault() -> None:
    record = loop(0, calls=[(0, 50), *[(0, 30)] * 40])
    first, *others = record.rounds
    held = dataclasses.replace(first.tool_calls[0], blocking_ns=200 * MS)
    first = dataclasses.replace(first, tool_calls=(held, *first.tool_calls[1:]))
    made = summarise(
        run([trial(0, "gathered", 0, 1000)]), [dataclasses.replace(record, rounds=(first, *others))]
    )
    tool = made.strategies[0].tools["get_weather"]
    assert (tool.calls, tool.blocking_calls) == (41, 1)
    assert [c.kind for c in made.warnings if c.kind == "blocking_tool"] == []
