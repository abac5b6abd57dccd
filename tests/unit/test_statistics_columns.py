"""The columns that are kept beside records: the same table, or none, whatever happened to either file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from profiler.errors import RecordError
from profiler.records import LoopRecord, encode, read, read_at
from profiler.report.html import write_report
from profiler.rundir import RunDirectory
from profiler.statistics import columns
from profiler.statistics.columns import CODE, COLUMNS, KeptTable, kept_table
from profiler.statistics.summary import summarise_directory
from profiler.statistics.table import Table, tabulate
from profiler.statistics.verdicts import compare_directories
from tests.unit.statistics_data import asked_by_nobody, loop, run, served, trial

RECORDS = [
    *(loop(k * 200, 50 + 7 * (k % 5), [(k % 3, 40), (0, 10 + k)], number=k) for k in range(40)),
    *(loop(k * 200, 60, strategy="sequential", status="error", trial=1) for k in range(40, 60)),
    loop(1, 2, [(0, 1)], tool_status="error", trial=None, intended=0.5),
    asked_by_nobody(
        [served(0, told=30.0, new_connection=True, reply="sse"), served(3, server="wiki", name="läse")],
        [served(200, status="error", error_type="tool_error", transport="stdio", server="wiki")],
        process="worker 1",
    ),
    loop(9000, 5, [(0, 3)]),
]


@pytest.fixture(autouse=True)
def few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "LEAST_BYTES", 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path / "records.jsonl", RECORDS)


def written(path: Path, records: list[LoopRecord]) -> Path:
    path.write_bytes(b"".join(encode(one) + b"\n" for one in records))
    return path


def beside(path: Path) -> Path:
    return path.with_name(COLUMNS)


def same(one: Table, other: Table) -> None:
    """Equal in every text, number and type, and in the figures of MCP servers."""
    for field in fields(Table):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(ours, np.ndarray):
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), field.name
            assert ours.tolist() == theirs.tolist(), field.name
        elif isinstance(ours, list):
            assert ours == theirs, field.name
    assert one.servers.figures() == other.servers.figures()
    assert [figure.name for figure in one.servers.figures()] == ["docs", "wiki"]


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("the records were read again")


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the records were read."""
    times: list[int] = []

    def reading(records: Any) -> Table:
        times.append(1)
        return tabulate(records)

    monkeypatch.setattr(columns, "tabulate", reading)
    return times


def test_second_reading_has_the_same_table_without_the_records(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = kept_table(path)
    monkeypatch.setattr(columns, "tabulate", refuse)
    again = kept_table(path)
    same(first.table, again.table)
    same(tabulate(RECORDS), again.table)
    assert again.lines.tolist() == first.lines.tolist()
    assert list(read_at(path, again.lines[[3, 0, 60]].tolist())) == [RECORDS[3], RECORDS[0], RECORDS[60]]


def test_records_without_a_loop_have_columns_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "records.jsonl", [])
    empty = KeptTable(tabulate([]), np.empty(0, np.int64))
    columns._write(beside(path), {"code": columns._code()}, empty)
    again = columns._read(beside(path), {"code": columns._code()})
    assert again is not None
    assert (again.table.trial.size, again.table.phases.shape, again.lines.size) == (0, (0, 9), 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(path.read_bytes() + encode(RECORDS[0]) + b"\n"),
        lambda path: written(path, RECORDS[::-1]),
        lambda path: os.utime(path, ns=(1, path.stat().st_mtime_ns + 1)),
        lambda path: path.write_bytes(path.read_bytes()[:-3]),  # the last line is torn
    ],
    ids=["grown", "rewritten", "touched", "cut off"],
)
def test_columns_of_other_records_are_none(
    path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object]
) -> None:
    kept_table(path)
    times = counted(monkeypatch)
    change(path)
    expected = tabulate(read(path))
    for _ in range(3):
        found = kept_table(path).table
        assert found.started.tolist() == expected.started.tolist()
    assert len(times) == 1


def test_rewritten_within_a_tick_of_the_clock_is_told_by_its_ends(path: Path) -> None:
    kept_table(path)
    before = path.stat()
    later = [*RECORDS[:-1], loop(9001, 5, [(0, 3)])]
    written(path, later)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert kept_table(path).table.started[-1] == later[-1].started_ns


def test_columns_of_other_code_are_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept_table(path)
    times = counted(monkeypatch)
    monkeypatch.setattr(columns, "_code", lambda: "other")
    kept_table(path)
    assert len(times) == 1
    monkeypatch.setattr(columns, "_code", lambda: None)  # without its sources nothing tells whose they are
    kept_table(path)
    kept_table(path)
    assert len(times) == 3


def test_code_is_all_that_says_what_a_column_holds() -> None:
    script = "import sys, profiler.statistics.table; print(*(n for n in sys.modules if n[:9] == 'profiler.'))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert {f"profiler.{name}" for name in CODE} == set(done.stdout.split())


def test_file_that_is_torn_or_changed_anywhere_is_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = kept_table(path).table
    whole = beside(path).read_bytes()
    length = int.from_bytes(whole[8:16], "little")
    spoiled = [
        *(whole[:size] for size in (0, 4, 8, 12, 16, 24, 40, 24 + length, 24 + length + 5, len(whole) - 1)),
        whole[: 24 + length] + bytes(len(whole) - 24 - length),  # after a power cut
        whole + b"\0",
        whole[:24] + b"[]" + whole[26:],
        whole[:8] + (2**62).to_bytes(8, "little") + whole[16:],
        *(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(0, len(whole), 499)),
        b"PK\3\4" + whole[4:],
    ]
    for content in spoiled:
        beside(path).write_bytes(content)
        same(first, kept_table(path).table)
        assert beside(path).read_bytes() == whole  # and it is kept again


def test_columns_that_cannot_be_kept_or_read_cost_nothing_but_time(path: Path) -> None:
    beside(path).mkdir()
    same(tabulate(RECORDS), kept_table(path).table)
    assert [one.name for one in path.parent.iterdir() if one.name.startswith(".")] == []


def test_few_records_are_not_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "LEAST_BYTES", path.stat().st_size + 1)
    kept_table(path)
    assert not beside(path).exists()


def test_records_that_grow_while_they_are_read_are_not_kept(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reading(records: Any) -> Table:
        table = tabulate(records)
        with open(path, "ab") as file:
            file.write(encode(RECORDS[0]) + b"\n")
        return table

    monkeypatch.setattr(columns, "tabulate", reading)
    kept_table(path)
    assert not beside(path).exists()


def test_bad_line_is_said_every_time(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:5], b'{"id": 7}\n', *lines[5:]]))
    for _ in range(2):
        with pytest.raises(RecordError, match=r"records\.jsonl:6: "):
            kept_table(path)
    assert not beside(path).exists()


def test_columns_are_their_owners_alone_where_the_records_are(path: Path) -> None:
    path.parent.chmod(0o700)
    kept_table(path)
    assert beside(path).stat().st_mode & 0o777 == 0o600


def test_report_summary_and_comparison_are_the_same_with_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for milliseconds in (100, 130):
        trials = [trial(k, "gathered", k * 10_000, k * 10_000 + 6000, block=k) for k in range(5)]
        directory = RunDirectory.create(tmp_path, run(trials))
        loops = [
            loop(k * 10_000 + j * 150, milliseconds + j % 7, [(0, 20), (3, 30)], trial=k, number=j)
            for k in range(5)
            for j in range(30)
        ]
        written(directory.records_path, loops)
        made.append(directory)

    def everything() -> tuple[Any, ...]:
        pages = [write_report(directory).read_bytes() for directory in made]
        return *pages, *map(summarise_directory, made), compare_directories(*made)

    cold = everything()
    assert [beside(directory.records_path).exists() for directory in made] == [True, True]
    monkeypatch.setattr(columns, "tabulate", refuse)
    assert everything() == cold
