"""Whatever files are given: a run directory that can be read, or one line and exit 2. Never a traceback."""

from __future__ import annotations

import gzip
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from profiler.cli import main
from profiler.errors import RecordError
from profiler.recordings.importing import FORMATS, import_files
from profiler.rundir import RunDirectory
from tests.recorded_samples import ROWS, SAMPLES, lines

ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    2**31,
    2**63,
    -(2**70),
    1e308,
    -1.5,
    float("nan"),
    "",
    "x",
    "\ud800",
    "\0",
    "x" * 5000,
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999999Z",
    "2026-13-45T99:99:99Z",
    "1e400",
    [],
    [[]],
    [None, 1, "x", {}],
    {},
    {"a": {"b": []}},
    {"type": {"type": "type"}},
]
"""Values that one format or another does not have in mind."""


JUNK = [b"\n", b"\0", b"{", b"}", b'"', b"[[[[", b"\xff\xfe", b"\\u", b"NaN"]


def mutated(value: Any, draw: random.Random, chance: float) -> Any:
    """JSON data with some of its values exchanged, left out or told twice."""
    if draw.random() < chance:
        return draw.choice(ODD)
    if isinstance(value, dict):
        kept = {k: mutated(v, draw, chance) for k, v in value.items() if draw.random() >= chance / 2}
        if kept and draw.random() < chance / 2:
            kept[draw.choice(list(kept))] = draw.choice(list(value.values()))
        return kept
    if isinstance(value, list):
        result = [mutated(one, draw, chance) for one in value if draw.random() >= chance / 2]
        if result and draw.random() < chance:
            result.append(draw.choice(result))
        return result
    return value


def torn(data: bytes, draw: random.Random) -> bytes:
    """Bytes with some of them changed, cut out or repeated."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 8)):
        at = draw.randrange(len(changed))
        what = draw.randrange(4)
        if what == 0:
            changed[at] = draw.randrange(256)
        elif what == 1:
            del changed[at : at + draw.randint(1, 200)]
        elif what == 2:
            changed[at:at] = changed[max(0, at - 100) : at]
        else:
            changed[at:at] = draw.choice(
                [b"\n", b"\0", b"{", b"}", b'"', b"[[[[", b"\xff\xfe", b"\\u", b"NaN"]
            )
        if not changed:
            return b""
    return bytes(changed)


def holds(paths: list[Path], out: Path, said: str, format: str | None = None) -> None:
    """The import is a run that can be read, or refused in words."""
    try:
        result = import_files(paths, out, format=format)
    except RecordError:
        assert not out.exists() or not list(out.iterdir()), said
        return
    directory = RunDirectory.open(result.directory)
    run = directory.load()
    assert run.recording is not None
    found = list(directory.records())
    calls = sum(len(list(one.tool_calls)) for one in found)
    tally = run.recording
    counted = tally.exact + tally.derived + tally.upper_bounds + tally.never_ended + tally.never_started
    assert (len(found), calls) == (result.loops, result.calls)
    assert counted == calls, said
    ids = [one.id for one in found]
    assert len(set(ids)) == len(ids), said
    assert {one.parent for one in found} <= {None, *ids}
    assert not [reason for reason in tally.skipped if "understood (" in reason or "its end as" in reason], (
        said,
        tally.skipped,
    )


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("seed", range(40))
def test_rows_with_wrong_values_are_imported_or_refused(tmp_path, name, seed):
    draw = random.Random(f"{name} {seed}")
    chance = draw.choice([0.01, 0.05, 0.2])
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines([mutated(row, draw, chance) for row in ROWS[name]()]))
    holds([path], tmp_path / "runs", f"{name} {seed}")
    holds([path], tmp_path / "named", f"{name} {seed}", format=name)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("seed", range(20))
def test_files_with_wrong_bytes_are_imported_or_refused(tmp_path, name, seed):
    draw = random.Random(f"{name} {seed}")
    format, data = SAMPLES[name]
    path = tmp_path / "rows"
    data = torn(data, draw)
    path.write_bytes(torn(gzip.compress(data), draw) if seed % 4 == 0 else data)
    holds([path], tmp_path / "runs", f"{name} {seed}")
    holds([path], tmp_path / "named", f"{name} {seed}", format=format)


@pytest.mark.parametrize("format", FORMATS, ids=lambda one: one.name)
@pytest.mark.parametrize("name", ROWS)
def test_files_said_to_be_of_another_format_are_imported_or_refused(tmp_path, format, name):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(ROWS[name]()))
    if format.name == name:
        return
    with pytest.raises(RecordError, match=r"no loop in|no recording|no span"):
        import_files([path], tmp_path / "runs", format=format.name)


def deep(opened: str, closed: str, depth: int) -> bytes:
    return (opened * depth + closed * depth).encode()


REFUSED = {
    "empty": (b"", "an empty file"),
    "blank": (b"\n \n", "an empty file"),
    "binary": (bytes(range(256)) * 20, "a binary file"),
    "parquet": (b"PAR1" + bytes(100), "a Parquet file"),
    "deep": (deep("[", "]", 100_000), "JSON of no recording"),
    "deep row": (deep('{"timing_events": "session_id", "a":', "}", 50_000), ""),
    "deep spans": (b'{"resourceSpans":' + deep("[", "]", 50_000) + b"}", ""),
    "long": (b'{"resourceSpans": [{"x": "' + b"x" * 1_000_000, ""),
    "truncated gzip": (gzip.compress(lines(ROWS["otel"]()))[:40], ""),
    "weka": (b'{"requests":[{"t":0,"in":1,"out":2,"api_time":1}]}', "a Weka trace"),
    "aiperf": (b'{"session_id":"a","turns":[],"forks":[]}', "an AIPerf conversation"),
    "our records": (b'{"id":"x","strategy":"gathered","started_ns":1,"rounds":[]}', "`profiler report`"),
    "nan": (b'{"a": NaN}', "with the keys a"),
    "surrogate": (b'{"a": "\\ud800"}', "with the keys a"),
    "a name": (b'{"\x1b[2Jevil": 1}', "JSON of no recording"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_no_recording_is_one_line_and_exit_2(tmp_path, capsys, monkeypatch, name):
    data, said = REFUSED[name]
    monkeypatch.chdir(tmp_path)
    Path("file").write_bytes(data)
    assert main(["import", "file"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("profiler: ")
    assert printed.err.count("\n") == 1
    assert printed.err.isprintable() or "\x1b" not in printed.err
    assert said in printed.err
    assert "otel" in printed.err or "no loop in" in printed.err
    assert not Path("runs").exists()


def test_a_run_directory_of_ours_is_refused_with_a_hint(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_bytes(SAMPLES["otel"][1])
    assert main(["import", "file"]) == 0
    (directory,) = Path("runs").iterdir()
    capsys.readouterr()
    for path in (directory, directory / "records.jsonl", directory / "run.json", Path("runs")):
        assert main(["import", str(path)]) == 2
        printed = capsys.readouterr()
        assert "`profiler report` reads" in printed.err
        assert printed.err.count("\n") == 1
    assert [*Path("runs").iterdir()] == [directory]


def test_wrong_words_on_the_command_line_are_one_line_and_exit_2(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_bytes(SAMPLES["otel"][1])
    assert main(["import", "nowhere"]) == 2
    assert capsys.readouterr().err == "profiler: nowhere: No such file or directory\n"
    assert main(["import", "file", "--out", "file/runs"]) == 2
    assert capsys.readouterr().err == "profiler: file/runs: cannot make a run directory: Not a directory\n"
    for words in (["import"], ["import", "file", "--from", "otle"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
    assert "did you mean 'otel'?" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes in directories there")
def test_a_directory_of_anything_is_imported_for_what_is_in_it(tmp_path, capsys, monkeypatch):
    import os

    monkeypatch.chdir(tmp_path)
    Path("all").mkdir()
    for name, (data, _) in REFUSED.items():
        Path("all", name).write_bytes(data)
    os.mkfifo("all/pipe")
    Path("all/zero").symlink_to("/dev/zero")
    Path("all/up").symlink_to("..")
    Path("all/sample").write_bytes(SAMPLES["codex"][1])
    assert main(["import", "all"]) == 0
    printed = capsys.readouterr().out
    assert "loops      2, 4 rounds, 4 tool calls\n" in printed
    assert "2 files: not a file that can be read (first: all/pipe: not a regular file)" in printed
