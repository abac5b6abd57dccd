"""What the run directory holds when the disk is full."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from profiler.errors import RecordError
from profiler.load import output as module
from profiler.load.options import LoadOptions, conditions
from profiler.load.output import RunOutput
from profiler.records import LoopRecord, ModelCall, RoundRecord, encode
from profiler.rundir import Follower, Incident, Progress, RunDirectory
from profiler.strategies import parse_strategies

RECORD = LoopRecord(
    "1", "gathered", "openai", "m", 1, 9, "ok", (RoundRecord(0, 1, 9, ModelCall("openai", "m", 1, 5)),)
)
LINE = encode(RECORD) + b"\n"


class Disk(FileIO):
    """A file on a disk with room for `room` more bytes; all of them share it."""

    room = 0

    def write(self, data: Any) -> int:
        fits = bytes(data)[: Disk.room]
        if not fits:
            raise OSError(errno.ENOSPC, "No space left on device")
        Disk.room -= len(fits)
        return super().write(fits)


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunOutput]:
    run = conditions(LoadOptions(strategies=parse_strategies("gathered")), users=1)
    directory = RunDirectory.create(tmp_path, run)
    monkeypatch.setattr(module, "FileIO", Disk)
    made = RunOutput(directory, run)
    yield made
    made.close()


def test_targets_have_no_labels_so_that_one_named_twice_is_scraped_once(output: RunOutput) -> None:
    output.targets({"worker 0": 9465, "worker 1": 9466}, "127.0.0.1")
    written = json.loads((output.directory.path / "targets.json").read_text())
    assert written == [{"targets": ["127.0.0.1:9465", "127.0.0.1:9466"]}]


def test_whole_lines_stay_and_nothing_comes_after_a_torn_one(output: RunOutput) -> None:
    Disk.room = 3 * len(LINE) + len(LINE) // 2
    output.write(LINE, 1)
    assert output.error is None
    output.write(LINE * 4, 4)
    path = output.directory.records_path
    assert str(output.error) == (
        f"{path}: cannot be written: No space left on device; the 3 loops before that are kept"
    )
    assert isinstance(output.error, RecordError)
    Disk.room = 10_000  # somebody made room: what was lost between would be missed by nobody
    output.write(LINE * 2, 2)
    output.close()
    assert output.records == 3
    assert list(output.directory.records()) == [RECORD] * 3


def test_progress_that_cannot_be_written_is_left_out(output: RunOutput) -> None:
    Disk.room = 1_000
    for _ in range(10):
        output.progress(Progress(1.0, "measuring"))
    Disk.room = 1_000
    output.progress(Progress(2.0, "finished"))
    seen = list(Follower(output.directory.path).new())
    assert seen == seen[:1] * len(seen)
    assert 1 <= len(seen) < 10


def test_incidents_are_noted_as_far_as_they_can_be(
    output: RunOutput, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = output.directory.load()
    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(module, "opener_like", full)
    output.note(Incident("aborted", "the disk is full"))
    with pytest.raises(RecordError, match=r"run\.json: cannot be written: No space left on device"):
        output.save(finished=True)
    with pytest.raises(RecordError, match=r"targets\.json: cannot be written: No space left on device"):
        output.targets({"w": 9464}, "127.0.0.1")
    monkeypatch.undo()
    assert output.directory.load() == before
    assert sorted(path.name for path in output.directory.path.iterdir()) == [
        "progress.jsonl",
        "records.jsonl",
        "run.json",
    ]
