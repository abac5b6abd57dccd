"""Files are found, opened and unpacked in bounded time, whatever they are; what is no recording is named."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import sys
from pathlib import Path

import pytest
import zstandard

from profiler.errors import RecordError
from profiler.recordings import files
from profiler.recordings.files import Opened, found
from profiler.recordings.formats import Skipped
from profiler.recordings.unknown import what_it_is

posix = pytest.mark.skipif(sys.platform == "win32", reason="no such files there")


def names(root: Path, *paths: Path) -> list[str]:
    return [
        one.reason if isinstance(one, Skipped) else str(one.relative_to(root))
        for one in found(paths or [root])
    ]


def test_found_walks_directories_by_name_and_takes_each_file_once(tmp_path):
    for name in ("b/2", "b/1", "a", "c/d/3"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert names(tmp_path) == ["a", "b/1", "b/2", "c/d/3"]
    assert names(tmp_path, tmp_path / "c", tmp_path / "a", tmp_path) == ["c/d/3", "a", "b/1", "b/2"]


@posix
def test_found_follows_links_and_no_circle_of_them(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "file").write_bytes(b"x")
    (tmp_path / "inside" / "up").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "inside" / "file")
    (tmp_path / "self").symlink_to("self")
    one, broken = names(tmp_path)
    assert one == "inside/file"
    assert broken.startswith("files: one that cannot be read (Too many levels of symbolic links")


def test_found_leaves_out_run_directories_of_ours(tmp_path):
    (tmp_path / "runs" / "1").mkdir(parents=True)
    for name in ("run.json", "records.jsonl"):
        (tmp_path / "runs" / "1" / name).write_bytes(b"{}")
    assert names(tmp_path) == ["files: run directories of this package (`profiler report` reads them)"]


def test_found_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_DEEPEST", 2)
    monkeypatch.setattr(files, "_MOST_FILES", 4)
    (tmp_path / "1" / "2" / "3").mkdir(parents=True)
    assert names(tmp_path) == ["files: in more than 2 directories"]
    for name in "abcd":
        (tmp_path / "1" / name).write_bytes(b"x")
    assert names(tmp_path)[-1] == "files: more than 4"


def test_found_raises_for_a_path_that_is_not_there(tmp_path):
    with pytest.raises(RecordError, match="gone: No such file or directory"):
        list(found([tmp_path / "gone"]))
    with pytest.raises(RecordError):
        list(found([tmp_path / "a\0b"]))


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read anything")
def test_found_names_a_directory_without_permission(tmp_path):
    (tmp_path / "shut").mkdir(mode=0)
    assert names(tmp_path) == ["files: a directory that cannot be read (Permission denied)"]


@posix
def test_opened_waits_for_no_pipe_and_reads_no_device(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(RecordError, match="not a regular file"):
            Opened(path)


def content(path: Path) -> tuple[bytes, str | None]:
    opened = Opened(path)
    try:
        beginning = opened.beginning()
        data = opened.stream.read()
        assert data.startswith(beginning)
        return data, opened.problem
    finally:
        opened.close()


TEXT = b"".join(b"line %d\n" % n for n in range(20_000))
PACKERS = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "two gzips": lambda data: gzip.compress(data[:1000]) + gzip.compress(data[1000:]),
    "zstd": zstandard.compress,
    "two zstds": lambda data: zstandard.compress(data[:1000]) + zstandard.compress(data[1000:]),
    "streamed zstd": lambda data: zstandard.ZstdCompressor(write_content_size=False).compress(data),
}


@pytest.mark.parametrize("packer", PACKERS)
def test_opened_unpacks(tmp_path, packer):
    (tmp_path / "file").write_bytes(PACKERS[packer](TEXT))
    assert content(tmp_path / "file") == (TEXT, None)


@pytest.mark.parametrize("packer", [one for one in PACKERS if one != "plain"])
@pytest.mark.parametrize("cut", [0.05, 0.5, 0.99])
def test_opened_reads_a_file_that_was_cut_off_to_there_and_says_so(tmp_path, packer, cut):
    packed = PACKERS[packer](TEXT)
    (tmp_path / "file").write_bytes(packed[: int(len(packed) * cut)])
    data, problem = content(tmp_path / "file")
    assert TEXT.startswith(data)
    assert problem == "files: not read to its end: damaged or cut off"


def test_opened_reads_a_damaged_file_to_there_and_says_so(tmp_path):
    packed = bytearray(gzip.compress(TEXT))
    packed[len(packed) // 2 :] = bytes(len(packed) - len(packed) // 2)
    (tmp_path / "file").write_bytes(packed)
    data, problem = content(tmp_path / "file")
    assert len(data) < len(TEXT)
    assert problem == "files: not read to its end: damaged or cut off"


@pytest.mark.parametrize("packer", ["gzip", "zstd"])
def test_opened_leaves_a_bomb(tmp_path, packer, monkeypatch):
    monkeypatch.setattr(files, "_FREE", 10_000)
    monkeypatch.setattr(files, "_RATIO", 10)
    (tmp_path / "file").write_bytes(PACKERS[packer](b"\n" * 20_000_000))
    data, problem = content(tmp_path / "file")
    assert len(data) < 2_000_000
    assert problem == "files: not read to its end: unpacks to more than 10 times its size"


def test_opened_leaves_a_file_in_which_nothing_is_understood(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_IDLE", 1_000_000)
    (tmp_path / "file").write_bytes(b"x" * 10_000_000)
    data, problem = content(tmp_path / "file")
    assert len(data) < 2_000_000
    assert problem is not None
    assert problem.startswith("files: not read to its end: nothing understood in")
    opened = Opened(tmp_path / "file")
    while opened.stream.read(100_000):
        opened.understood()
    assert opened.problem is None
    opened.close()


def test_opened_reads_a_file_that_grows_to_where_it_was(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    opened = Opened(path)
    with open(path, "ab") as file:
        file.write(b"after")
    assert opened.stream.read() == b"before"
    opened.close()


RECORD = {"id": "l", "strategy": "gathered", "provider": "openai", "started_ns": 1, "rounds": [], "schema": 2}


@pytest.mark.parametrize(
    ("beginning", "said"),
    [
        (b"", "an empty file"),
        (b" \n\t\n", "an empty file"),
        (b"PAR1\x15\x04", "a Parquet file: export JSON lines"),
        (b"PK\x03\x04\x14\0", "a zip archive: unpack it first"),
        (bz2.compress(b"x"), "packed with bzip2: unpack it first"),
        (gzip.compress(b"x", mtime=0), "packed twice"),
        (b"x" * 257 + b"ustar\0", "a tar archive: unpack it first"),
        ("{}".encode("utf-16"), "text in UTF-16: save it as UTF-8"),
        (b"\x7fELF\x00\x01", "a binary file"),
        (b"<!doctype html>", "HTML or XML"),
        (b"caf\xe9 in latin 1, and more of it", "neither text in UTF-8"),
        (b"hello", "text that is neither JSON nor"),
        (json.dumps(RECORD).encode(), "records of this package: `profiler report` reads them"),
        (b'{\n "scenario": "x",\n "strategies": [],\n "anchor": {}\n}', "the run.json of a run directory"),
        (b'{"traceEvents": []}', "a Chrome or Perfetto trace"),
        (b'{"id":"a","requests":[{"t":0.0,"in":9,"out":4,"api_time":1.0}]}', "a Weka trace"),
        (b'{"session_id":"s","turns":[{"text":"x","delay":3}]}', "an AIPerf conversation"),
        (b'{"session_id":"s","turns":[],"spawns":["t"]}', "an AIPerf conversation"),
        (b'{"load_summary": {}, "successes": {}, "failures": {}}', "a report of inference-perf"),
        (b'{"resourceMetrics": []}', "OTLP metrics"),
        (
            b'{"batch":[{"type":"span-create","timestamp":"x","body":{"id":"s","traceId":"t"}}]}',
            "what is sent to Langfuse: import what it exports",
        ),
        (
            b'{"type":"thread.started","thread_id":"t"}\n{"type":"turn.started"}',
            "what `codex exec --json` prints",
        ),
        (b'{"id":"0","msg":{"type":"task_started"}}', "what `codex exec --json` prints"),
        (
            b'{"id":"a","timestamp":"2025-08-01T00:00:00Z","instructions":null}\n{"record_type":"state"}',
            "a session of Codex from before October 2025",
        ),
        (b'{"a": 1, "hi there": 2, "b.c": [3]}', "JSON of no known recording, with the keys a, b.c"),
        (b"[1, 2]", "JSON of no recording"),
        (b"[" * 10_000, "JSON of no recording"),
    ],
)
def test_what_is_no_recording_is_named(beginning, said):
    assert what_it_is(beginning).startswith(said)
