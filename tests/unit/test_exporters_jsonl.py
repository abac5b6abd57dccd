"""The JSONL sink: every record a line, soon; a full disk is said and counted."""

from __future__ import annotations

import os
import time

import pytest

from profiler.exporters.jsonl import JsonlSink
from profiler.records import LoopRecord, read


def record(number: int) -> LoopRecord:
    return LoopRecord(f"r{number}", "gathered", "p", "m", 0, 1, "ok", (), number=number)


def test_records_are_lines_of_the_file(tmp_path):
    path = tmp_path / "records.jsonl"
    for numbers in (range(3), range(3, 5)):  # a second sink appends
        sink = JsonlSink(path)
        for number in numbers:
            sink(record(number))
        sink.close()
    assert list(read(path)) == [record(number) for number in range(5)]
    assert (sink.error, sink.dropped) == (None, 0)


def test_records_are_there_before_the_sink_is_closed(tmp_path):
    path = tmp_path / "records.jsonl"
    sink = JsonlSink(path)
    sink(record(0))
    end = time.monotonic() + 60
    while path.stat().st_size == 0 and time.monotonic() < end:
        os.sched_yield()
    assert list(read(path)) == [record(0)]
    sink.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_full_disk_is_said_and_lost_records_are_counted(caplog):
    sink = JsonlSink("/dev/full")
    sink(record(0))
    sink(record(1))
    sink.close()
    assert isinstance(sink.error, OSError)
    assert "No space left" in str(sink.error)
    assert sink.dropped == 2
    (said,) = caplog.messages
    assert said.startswith("/dev/full: cannot be written: ")


def test_after_close_records_are_counted_and_a_second_close_does_nothing(tmp_path):
    sink = JsonlSink(tmp_path / "records.jsonl")
    sink(record(0))
    sink.close()
    sink.close()
    sink(record(1))
    assert list(read(tmp_path / "records.jsonl")) == [record(0)]
    assert (sink.error, sink.dropped) == (None, 1)


def test_new_file_is_the_owners_alone_and_one_that_exists_keeps_its_mode(tmp_path):
    (tmp_path / "shared.jsonl").touch(0o644)
    (tmp_path / "shared.jsonl").chmod(0o644)
    for name, mode in (("new.jsonl", 0o600), ("shared.jsonl", 0o644)):
        JsonlSink(tmp_path / name).close()
        assert (tmp_path / name).stat().st_mode & 0o777 == mode
