"""The run directory: what is written is what is read, and what is broken is named."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from profiler import records, rundir
from profiler.errors import RecordError
from profiler.exporters.perfetto import write_trace
from profiler.load.output import RunOutput
from profiler.process.modes import opener_like
from profiler.records import LoopRecord
from profiler.report.html import write_report
from profiler.rundir import (
    Anchor,
    ClientHealth,
    Follower,
    Incident,
    Load,
    Machine,
    Progress,
    Run,
    RunDirectory,
    Spent,
    Trial,
)
from profiler.strategies import parse_strategies

RUN = Run(
    scenario="cities",
    provider="openai",
    strategies=parse_strategies("sequential,semaphore:4"),
    load=Load(model="closed", users=20),
    seed=7,
    anchor=Anchor(unix_ns=1_700_000_000_000_000_000, monotonic_ns=5_000_000_000),
    machine=Machine(cores=2, cpu="x", memory_bytes=1 << 33, os="Linux", python="CPython 3.11.7"),
    versions={"locust": "2.47.0"},
    arguments={"duration": "10s"},
)
TRIAL = Trial(
    index=0,
    block=0,
    strategy="sequential",
    users=20,
    started_ns=10,
    ended_ns=20,
    drained_ns=25,
    interrupted=1,
)


def loop(number: int) -> LoopRecord:
    return LoopRecord(
        id=f"l{number}", strategy="sequential", provider="openai", model="m", started_ns=number,
        ended_ns=number + 5, status="ok", rounds=(), number=number, trial=0,
    )  # fmt: skip


def test_run_survives_the_round_trip(tmp_path: Path) -> None:
    full = dataclasses.replace(
        RUN,
        trials=(TRIAL,),
        finished=True,
        slo="p95<2s",
        workers=2,
        client=(ClientHealth(process="w0", trial=0, loop_lag_p99=0.002, cpu=0.5),),
        incidents=(Incident("worker_lost", "worker 1 was killed"),),
    )
    directory = RunDirectory.create(tmp_path, RUN)
    directory.save(full)
    assert RunDirectory.open(directory.path).load() == full
    assert sorted(p.name for p in directory.path.iterdir()) == ["records.jsonl", "run.json"]


def test_run_json_has_the_documented_keys(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path, dataclasses.replace(RUN, trials=(TRIAL,)))
    data = json.loads((directory.path / "run.json").read_text())
    assert data["anchor"] == {"unix_ns": 1_700_000_000_000_000_000, "monotonic_ns": 5_000_000_000}
    assert data["load"]["model"] == "closed"
    assert data["load"]["users"] == 20
    assert data["trials"][0]["ended_ns"] == 20
    assert data["finished"] is False


def test_directories_of_one_second_do_not_collide(tmp_path: Path) -> None:
    names = [RunDirectory.create(tmp_path / "runs", RUN).path.name for _ in range(3)]
    assert names == ["20231114-221320", "20231114-221320-2", "20231114-221320-3"]


def test_directory_that_is_seen_has_its_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks for run directories meanwhile goes by `run.json`."""
    save, at_saving = RunDirectory.save, []

    def saving(directory: RunDirectory, run: Run) -> None:
        at_saving.append((RunDirectory.is_one(directory.path), directory.records_path.stat().st_size))
        save(directory, run)

    monkeypatch.setattr(RunDirectory, "save", saving)
    RunDirectory.create(tmp_path, RUN)
    assert at_saving == [(False, 0)]


def test_killed_run_is_readable(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path, dataclasses.replace(RUN, trials=(TRIAL,)))
    lines = b"\n".join(records.encode(loop(n)) for n in range(3))
    directory.records_path.write_bytes(lines[:-20])
    assert [r.number for r in directory.records()] == [0, 1]
    assert directory.load().trials == (TRIAL,)


def test_failed_write_leaves_the_old_run(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path, RUN)
    with pytest.raises(TypeError):
        directory.save(dataclasses.replace(RUN, arguments={"x": object()}))
    assert directory.load() == RUN


def test_keys_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path, dataclasses.replace(RUN, trials=(TRIAL,)))
    path = directory.path / "run.json"
    data = json.loads(path.read_text())
    data["novelty"] = 1
    data["trials"][0]["novelty"] = 2
    path.write_text(json.dumps(data))
    assert directory.load().trials == (TRIAL,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trials": [{"index": 0}]}, r"run\.json: key trials\.0\.block: Field required"),
        ({"seed": "x"}, r"run\.json: key seed: .*valid integer"),
        (
            {"load": {"model": "ajar", "users": 1}},
            r"run\.json: key load\.model: .*'closed', 'open' or 'recorded'",
        ),
        ({"schema": 99}, r"run\.json: run of schema 99.*upgrade"),
    ],
)
def test_file_that_is_broken_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    directory = RunDirectory.create(tmp_path, RUN)
    path = directory.path / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RecordError, match=message):
        directory.load()


def test_torn_json_names_the_line(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path, RUN)
    (directory.path / "run.json").write_text('{"schema": 1,\n"seed": ')
    with pytest.raises(RecordError, match=r"run\.json:2: not JSON"):
        directory.load()


def test_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="not a run directory"):
        RunDirectory.open(tmp_path)


def test_file_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(RecordError, match="cannot make a run directory"):
        RunDirectory.create(tmp_path / "runs", RUN)


def test_anchor_turns_monotonic_into_wall_clock() -> None:
    assert Anchor(unix_ns=1_000, monotonic_ns=100).unix(150) == 1_050


def test_facts_name_neither_host_nor_path() -> None:
    facts = rundir.machine()
    text = json.dumps([dataclasses.asdict(facts), rundir.versions()])
    assert facts.cores >= 1
    assert facts.python.startswith(("CPython 3.", "PyPy 3."))
    assert rundir.versions()["locust"].count(".") >= 1
    assert Path.home().as_posix() + "/" not in text
    import socket

    assert json.dumps(socket.gethostname()) not in text


def test_rundir_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    heavy = "{'numpy', 'scipy', 'pydantic', 'rich'}"
    code = f"import sys, profiler.rundir; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("changes", "lines", "removed"),
    [
        ({"model": "gpt-4o", "workers": 2}, b"", True),
        ({}, b"x", False),  # whatever it is
        ({"trials": (TRIAL,)}, b"", False),
        ({"incidents": (Incident("aborted", "hopeless"),)}, b"", False),
        ({"spent": Spent(2, 5, 900, 80)}, b"", False),
    ],
)
def test_directory_is_removed_only_if_nothing_was_recorded_in_it(
    tmp_path: Path, changes: dict[str, Any], lines: bytes, removed: bool
) -> None:
    directory = RunDirectory.create(tmp_path, RUN)
    directory.save(dataclasses.replace(RUN, **changes))
    directory.records_path.write_bytes(lines)
    (directory.path / "progress.jsonl").write_bytes(b"{}\n")
    assert directory.remove_if_unused() is removed
    assert directory.path.exists() is not removed


def test_run_that_cannot_be_read_is_not_removed(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path, RUN)
    (directory.path / "run.json").write_text("{")
    assert not directory.remove_if_unused()
    assert directory.path.exists()


def test_spending_of_a_run_from_before_caches_were_counted_is_readable(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path, RUN)
    data = json.loads((directory.path / "run.json").read_text())
    data["spent"] = {"loops": 2, "requests": 5, "input_tokens": 900, "output_tokens": 80}
    (directory.path / "run.json").write_text(json.dumps(data))
    spent = directory.load().spent
    assert spent == Spent(2, 5, 900, 80)
    assert spent.asked == "5 requests, 900 tokens in, 80 out"


def line(number: float) -> bytes:
    return rundir.encode_progress(Progress(number, "measuring", loops=int(number)))


def test_progress_is_followed_through_half_lines_garbage_and_another_file(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    follower = Follower(tmp_path)

    def comes(data: bytes, mode: str = "ab") -> list[float]:
        with open(path, mode) as file:
            file.write(data)
        return [progress.unix for progress in follower.new()]

    assert list(follower.new()) == []  # not there yet
    assert comes(line(1.0) + line(2.0)[:9]) == [1.0]
    assert comes(line(2.0)[9:]) == [2.0]
    odd = [b"\xff\xfe\x00", b"", b"[1]", b"{", b"null", b'{"unix": "x", "state": "measuring"}', b"{}"]
    odd += [b'{"unix": 2.5, "state": "asleep"}', b"[" * 100_000, b'{"unix": 2.5}', b"\xc3(" * 9]
    assert comes(b"\n".join(odd) + b"\n" + line(3.0)) == [3.0]
    later = line(4.0).replace(b"{", b'{"of_a_later_version": {"x": 1}, ', 1)
    assert comes(later) == [4.0]
    assert comes(line(5.0)[:20], "wb") == []  # shorter than before: another one
    assert comes(line(5.0)[20:]) == [5.0]
    path.unlink()
    assert list(follower.new()) == []
    path.mkdir()
    assert list(follower.new()) == []
    path.rmdir()
    assert comes(line(6.0)) == [6.0]


def test_growing_file_is_read_in_whole_lines_wherever_it_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    whole = b"".join(b"%d%s\n" % (number, b"x" * (number % 7)) for number in range(40))
    for most in (-1, 1, 16):
        path.write_bytes(b"")
        offset, lines = 0, []
        for cut in range(1, len(whole) + 1):
            path.write_bytes(whole[:cut])
            found, offset = rundir.appended(path, offset, most)
            lines += found
        while found:
            found, offset = rundir.appended(path, offset, most)
            lines += found
        assert lines == whole.splitlines()


def test_loops_that_one_error_ended_are_counted_where_a_line_is_torn_too(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path, RUN)
    lines = [records.encode(dataclasses.replace(loop(k), status="error", error_type=kind)) for k, kind in
             enumerate(("internal", "timeout", "internal"))]  # fmt: skip
    torn = lines[0][: len(lines[0]) // 2] + b'"internal"'
    directory.records_path.write_bytes(b"\n".join([*lines, torn]))
    assert directory.ended_by("internal") == 2
    assert directory.ended_by("http_500") == 0
    directory.records_path.unlink()
    assert directory.ended_by("internal") == 0


@pytest.mark.parametrize("content", [False, True])
def test_directory_with_content_is_the_owners_alone_and_so_is_what_is_made_of_it(
    tmp_path: Path, content: bool
) -> None:
    """From the start: no file is opened for others first. What is outside keeps the usual mode."""
    before = os.umask(0o022)
    try:
        parent = tmp_path / "runs" / "more"
        directory = RunDirectory.create(
            parent, dataclasses.replace(RUN, arguments={"record_content": content})
        )
        directory.save_summary({"schema": 1})
        output = RunOutput(directory, directory.load())
        output.targets({"worker": 9464}, "127.0.0.1")
        output.write(records.encode(loop(0)) + b"\n", 1)
        output.close()
        outside = tmp_path / "trace.json"
        outside.write_text("of before")
        write_trace(directory, outside)
        page = write_report(directory, tmp_path / "page.html", material=None)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in directory.path.iterdir()}
    assert set(modes) == {"run.json", "records.jsonl", "summary.json", "progress.jsonl", "targets.json"}
    assert set(modes.values()) == {0o600 if content else 0o644}
    assert directory.path.stat().st_mode & 0o777 == (0o700 if content else 0o755)
    assert parent.stat().st_mode & 0o777 == 0o755
    assert {one.stat().st_mode & 0o777 for one in (outside, page)} == {0o600 if content else 0o644}


def test_what_is_no_regular_file_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir(0o700)
    opener = opener_like(tmp_path / "private")
    mode = os.stat(os.devnull).st_mode
    with open(os.devnull, "wb", opener=opener):
        assert os.stat(os.devnull).st_mode == mode
    assert opener_like(tmp_path / "missing") is None


def test_directory_whose_making_is_interrupted_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunDirectory, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        RunDirectory.create(tmp_path, RUN)
    assert list(tmp_path.iterdir()) == []
