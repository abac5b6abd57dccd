"""Files become a run directory: the same one in whatever order they are read, and nothing is lost unsaid."""

from __future__ import annotations

import gzip
import json
import random
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import zstandard

from profiler.errors import RecordError
from profiler.recordings import importing
from profiler.recordings.drafts import CallDraft, LoopDraft, ModelDraft, RoundDraft
from profiler.recordings.formats import Item, Skipped, Source
from profiler.recordings.importing import FORMATS, REPEATED, import_files
from profiler.recordings.reading import values
from profiler.records import LoopRecord
from profiler.rundir import RunDirectory
from tests.recorded_samples import CALLS, CANARY, ROWS, SAMPLES, lines

MS = 1_000_000
START = 1_790_000_000_000 * MS


class Notes:
    """A format of these tests: {"notes": group, "at": ms, "name": call, ...}, a loop for each group."""

    name = "notes"
    resolution_ns = 1000

    def recognises(self, beginning: bytes, path: Path) -> bool:
        return b'"notes"' in beginning

    def read(self, source: Source, content: bool) -> Iterator[Item | Skipped]:
        for one in values(source):
            if isinstance(one, Skipped):
                yield one
                continue
            row = one.data
            assert isinstance(row, dict)
            if "raises" in row:
                raise KeyError(row["raises"])
            at_ns = row["at_ns"] if "at_ns" in row else START + row.get("at", 0) * MS
            yield Item(row["notes"], at_ns, row, row.get("id"), row.get("version", 0), row.get("link"))

    def loops(self, items: Sequence[Item], content: bool) -> Iterator[LoopDraft | Skipped]:
        loop = LoopDraft(items[0].group, self.name, process=items[0].data.get("process", ""))
        for item in items:
            row = item.data
            assert isinstance(row, dict)
            if row.get("useless"):
                yield Skipped("useless", 1, f"{item.group}!")
                continue
            if row.get("defect"):
                raise ZeroDivisionError
            at = item.at_ns
            model = ModelDraft(
                "openai", row.get("model", "m"), at, at + MS, input_tokens=row.get("tokens", 1)
            )
            call = CallDraft(row.get("name", "f"), "c", None, at + 2 * MS, at + 3 * MS, key=row.get("key"))
            loop.rounds.append(RoundDraft(model, [call]))
            loop.spawned_by = row.get("spawned_by", loop.spawned_by)
            loop.parent = row.get("parent", loop.parent)
            loop.id = row.get("loop", loop.id)
        if loop.rounds:
            yield loop


def notes(tmp_path: Path, *files: list[dict]) -> list[Path]:
    paths = []
    for number, rows in enumerate(files):
        path = tmp_path / f"notes{number}.jsonl"
        path.write_bytes(lines(rows))
        paths.append(path)
    return paths


def imported(tmp_path: Path, *files: list[dict]) -> importing.Imported:
    return import_files(notes(tmp_path, *files), tmp_path / "runs", formats=[Notes()])


def records_of(result: importing.Imported) -> list[LoopRecord]:
    return list(RunDirectory.open(result.directory).records())


def test_import_counts_times_from_the_first_instant(tmp_path):
    result = imported(tmp_path, [{"notes": "b", "at": 50}, {"notes": "a", "at": 20}])
    run = RunDirectory.open(result.directory).load()
    assert (run.anchor.unix_ns, run.anchor.monotonic_ns) == (START + 20 * MS, 0)
    assert [(one.id, one.started_ns, one.ended_ns) for one in records_of(result)] == [
        ("a", 0, 3 * MS),
        ("b", 30 * MS, 33 * MS),
    ]
    assert run.finished
    assert (run.load.model, run.strategies, run.trials) == ("recorded", (), ())
    assert (run.provider, run.model) == ("openai", "m")
    recording = run.recording
    assert recording is not None
    assert (recording.door, recording.read, recording.skipped) == ("import", {"notes": 2}, {})
    assert (recording.exact, recording.resolution_ns, recording.clocks) == (2, 1, 1)
    assert (result.files, result.loops, result.rounds, result.calls, result.kept) == (1, 2, 2, 2, 2)


def test_import_names_no_model_where_there_are_several(tmp_path):
    result = imported(tmp_path, [{"notes": "a", "model": "x"}, {"notes": "b", "model": "y"}])
    run = RunDirectory.open(result.directory).load()
    assert (run.provider, run.model) == ("openai", "")


def test_import_keeps_of_each_id_the_latest_version_and_counts_the_rest(tmp_path):
    rows = [
        {"notes": "a", "id": "1", "name": "old", "version": 1},
        {"notes": "a", "id": "1", "name": "new", "version": 2},
        {"notes": "a", "id": "2", "at": 1, "name": "same"},
    ]
    result = imported(tmp_path, rows, rows[2:])
    (record,) = records_of(result)
    assert [call.name for call in record.tool_calls] == ["new", "same"]
    assert result.recording.skipped == {REPEATED: 2}
    assert result.kept == 2


def test_import_takes_what_has_no_id_for_a_repeat_only_in_another_file(tmp_path):
    twice = [{"notes": "a"}, {"notes": "a"}]
    result = imported(tmp_path, twice, twice[:1])
    (record,) = records_of(result)
    assert len(record.rounds) == 2
    assert result.recording.skipped == {REPEATED: 1}


def test_import_joins_groups_by_their_links(tmp_path):
    rows = [
        {"notes": "a", "at": 0, "link": "x"},
        {"notes": "b", "at": 10, "link": "y"},
        {"notes": "c", "at": 20, "link": "z"},
        {"notes": "c", "at": 30, "link": "y"},
        {"notes": "b", "at": 40, "link": "x"},
        {"notes": "d", "at": 50, "link": "alone"},
    ]
    first, second = records_of(imported(tmp_path, rows[:3], rows[3:]))
    assert [one.started_ns // MS for one in first.rounds] == [0, 10, 20, 30, 40]
    assert [one.started_ns // MS for one in second.rounds] == [50]


def test_import_puts_loops_inside_the_calls_that_they_ran_in(tmp_path):
    outer = [{"notes": "outer", "at": 0}, {"notes": "outer", "at": 10, "key": "k"}]
    inner = [{"notes": "late", "at": 13, "spawned_by": "k"}, {"notes": "early", "at": 12, "spawned_by": "k"}]
    result = imported(tmp_path, inner, outer)
    records = {one.id: one for one in records_of(result)}
    assert {one.id: one.parent for one in records.values()} == {
        "outer": None,
        "early": "outer",
        "late": "outer",
    }
    assert [call.loops for call in records["outer"].tool_calls] == [(), ("early", "late")]
    assert result.inner_loops == 2
    assert result.recording.notes == ()


def test_import_leaves_loops_alone_whose_call_is_not_there(tmp_path):
    rows = [{"notes": "a", "spawned_by": "gone"}, {"notes": "b", "parent": "gone"}]
    rows += [{"notes": "c", "parent": "a"}]
    result = imported(tmp_path, rows)
    assert {one.id: one.parent for one in records_of(result)} == {"a": None, "b": None, "c": "a"}
    assert result.recording.notes[0].startswith("2 of the loops ran inside a call that is not")


def test_import_makes_no_circle_of_loops(tmp_path):
    rows = [
        {"notes": "self", "key": "s", "spawned_by": "s"},
        {"notes": "one", "at": 1, "key": "1", "spawned_by": "2"},
        {"notes": "two", "at": 2, "key": "2", "spawned_by": "1"},
    ]
    parents = {one.id: one.parent for one in records_of(imported(tmp_path, rows))}
    assert parents["self"] is None
    assert sorted(str(parents[id]) for id in ("one", "two")) in (["None", "one"], ["None", "two"])


def test_import_gives_each_loop_an_id_of_its_own(tmp_path):
    rows = [{"notes": name, "at": at, "loop": "same"} for at, name in enumerate("abc")]
    assert [one.id for one in records_of(imported(tmp_path, rows))] == ["same", "same-2", "same-3"]


def test_import_counts_clocks_and_says_what_it_skipped_and_where(tmp_path):
    rows = [
        {"notes": "a", "process": "p1"},
        {"notes": "b", "process": "p2", "useless": True},
        {"notes": "c", "process": "p3"},
        {"notes": "d", "defect": True},
        {"notes": "e", "at_ns": 0},
        {"notes": "f", "at_ns": 2**70},
        {"notes": "g", "tokens": 2**63},
        {"notes": "h", "tokens": 2**63 + 5, "x": 2**62},
    ]
    (path,) = notes(tmp_path, rows)
    path.write_bytes(path.read_bytes() + b"nonsense\n")
    result = import_files([path], tmp_path / "runs", formats=[Notes()])
    skipped = result.recording.skipped
    assert result.recording.clocks == 2
    assert skipped.pop("useless") == 1
    assert skipped.pop("not JSON") == 1
    assert skipped.pop("a time that cannot be") == 2
    assert skipped.pop("loops: a time or a count that cannot be") == 2
    ((defect, count),) = skipped.items()
    assert count == 1
    assert defect.startswith("not understood (ZeroDivisionError at test_recordings_importing.py:")
    assert result.places["useless"] == "b!"
    assert result.places["not JSON"] == f"{path}:9"
    assert result.read == 9


def test_import_reads_on_where_a_format_fails_in_a_file(tmp_path):
    result = imported(tmp_path, [{"notes": "a"}, {"notes": "b", "raises": "x"}], [{"notes": "c"}])
    assert [one.id for one in records_of(result)] == ["a", "c"]
    ((reason, count),) = result.recording.skipped.items()
    assert count == 1
    assert reason.startswith("files: not read to its end as notes (KeyError at test_recordings_importing.py:")


def test_import_leaves_nothing_behind_when_it_fails(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunDirectory, "save", full)
    with pytest.raises(OSError, match="No space"):
        imported(tmp_path, [{"notes": "a"}])
    monkeypatch.undo()
    monkeypatch.setattr(importing.records, "decode", lambda line: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        imported(tmp_path, [{"notes": "a"}])
    monkeypatch.undo()

    written = []

    def ended(self, run) -> None:
        written.append(run.finished)
        if run.finished:
            assert json.loads((self.path / "run.json").read_bytes())["finished"] is False
            raise KeyboardInterrupt
        original(self, run)

    original = RunDirectory.save
    monkeypatch.setattr(RunDirectory, "save", ended)
    with pytest.raises(KeyboardInterrupt):
        imported(tmp_path, [{"notes": "a"}])
    assert written == [False, True]
    assert [one for one in (tmp_path / "runs").glob("*") if "records.jsonl" in str(list(one.iterdir()))] == []


def expected(source: str) -> list[list[object]]:
    """[start, calls with their starts and durations] of each loop of a sample, ms."""
    start = {"look": 1010, "weigh": 1010}
    return [[at, sorted([name, at + start[name], took - 10] for name, took in CALLS)] for at in (0, 600_000)]


def shape(records: Sequence[LoopRecord]) -> list[list[object]]:
    return [
        [
            one.started_ns / MS,
            sorted([call.name, call.started_ns / MS, call.latency_ns / MS] for call in one.tool_calls),
        ]
        for one in records
    ]


@pytest.mark.parametrize("packed", [lambda data: data, gzip.compress, zstandard.compress])
@pytest.mark.parametrize("sample", SAMPLES)
def test_import_recognises_and_reads_every_format(tmp_path, sample, packed):
    source, data = SAMPLES[sample]
    path = tmp_path / "recording"  # its name says nothing
    path.write_bytes(packed(data))
    result = import_files([path], tmp_path / "runs")
    found = records_of(result)
    assert {one.source for one in found} == {source}
    assert shape(found) == expected(source)
    assert [one.model.input_tokens for record in found for one in record.rounds] == [100] * 4
    assert [one.model.cached_tokens for record in found for one in record.rounds] == [80] * 4
    assert [one.status for one in found] == ["ok", "ok"]


def bytes_of(tmp_path: Path, name: str, paths: Sequence[Path]) -> bytes:
    result = import_files(paths, tmp_path / name)
    return (result.directory / "records.jsonl").read_bytes()


@pytest.mark.parametrize("sample", ROWS)
def test_import_of_files_in_any_order_and_given_twice_is_the_same(tmp_path, sample):
    rows = ROWS[sample]()
    whole = tmp_path / "whole.jsonl"
    whole.write_bytes(lines(rows))
    once = bytes_of(tmp_path, "once", [whole])
    assert once.count(b"\n") == 2
    again = tmp_path / "again"
    again.mkdir()
    (again / "copy.jsonl").write_bytes(whole.read_bytes())
    (again / "packed").write_bytes(gzip.compress(whole.read_bytes()))
    assert bytes_of(tmp_path, "twice", [again, whole]) == once
    assert bytes_of(tmp_path, "other", [whole, again, whole]) == once


def apart(rows: list[dict]) -> list[dict]:
    """Requests of OTLP with one span each."""
    return [
        {"resourceSpans": [{**resource, "scopeSpans": [{**scope, "spans": [span]}]}]}
        for row in rows
        for resource in row["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


@pytest.mark.parametrize("sample", [one for one in ROWS if one != "codex"])  # whose lines have nothing else
@pytest.mark.parametrize("seed", range(5))
def test_import_of_shuffled_lines_is_the_same(tmp_path, sample, seed):
    draw = random.Random(seed)
    rows = apart(ROWS[sample]()) if sample == "otel" else ROWS[sample]()
    whole = tmp_path / "whole.jsonl"
    whole.write_bytes(lines(rows))
    shuffled = draw.sample(rows, len(rows))
    parts = [tmp_path / "p1.jsonl", tmp_path / "p2.jsonl"]
    parts[0].write_bytes(lines(shuffled[: len(rows) // 2]))
    parts[1].write_bytes(lines(shuffled[len(rows) // 2 :]))
    assert bytes_of(tmp_path, "shuffled", parts) == bytes_of(tmp_path, "whole", [whole])


def test_import_of_several_formats_at_once_is_all_of_them(tmp_path):
    folder = tmp_path / "all" / "inside"
    folder.mkdir(parents=True)
    for number, (_, data) in enumerate(SAMPLES.values()):
        (folder / str(number)).write_bytes(data)
    result = import_files([tmp_path / "all"], tmp_path / "runs")
    found = records_of(result)
    assert {one.source for one in found} == set(ROWS)
    assert [one.started_ns for one in found] == sorted(one.started_ns for one in found)
    assert result.files == len(SAMPLES)
    assert result.recording.read.keys() == set(ROWS)


@pytest.mark.parametrize("sample", SAMPLES)
def test_import_keeps_content_only_where_it_is_asked_for(tmp_path, sample, monkeypatch, capsys):
    from profiler.cli import main

    monkeypatch.chdir(tmp_path)
    Path("recording").write_bytes(SAMPLES[sample][1])
    assert main(["import", "recording"]) == 0
    printed = capsys.readouterr()
    (directory,) = (tmp_path / "runs").iterdir()
    files = {path.name: path.read_text() for path in directory.iterdir()}
    assert files.keys() == {"run.json", "records.jsonl"}
    assert CANARY not in "".join([*files.values(), *files, printed.out, printed.err])

    assert main(["import", "recording", "--content", "--out", "kept"]) == 0
    assert CANARY not in capsys.readouterr().out
    (directory,) = (tmp_path / "kept").iterdir()
    if sample != "tracelab":  # which has none
        assert CANARY in (directory / "records.jsonl").read_text()
    if sys.platform != "win32":
        modes = {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in (directory, *directory.iterdir())}
        assert modes == {0}
    assert RunDirectory.open(directory).load().arguments == {"record_content": True}


def test_import_reads_a_file_as_what_it_is_said_to_be(tmp_path):
    class Others(Notes):
        name = "others"

        def recognises(self, beginning: bytes, path: Path) -> bool:
            return False

    (path,) = notes(tmp_path, [{"notes": "a"}])
    formats = [Notes(), Others()]
    assert import_files([path], tmp_path / "runs", formats=formats).recording.read == {"notes": 1}
    result = import_files([path], tmp_path / "runs", format="others", formats=formats)
    assert result.recording.read == {"others": 1}


def test_import_of_nothing_says_so(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match="nothing to import: no file in it"):
        import_files([tmp_path / "empty"], tmp_path / "runs")
    with pytest.raises(RecordError, match=r"no loop in what was read \(2 of notes; 2 × useless \(a!\)\)"):
        imported(tmp_path, [{"notes": "a", "useless": True}, {"notes": "b", "useless": True}])
    assert not (tmp_path / "runs").exists()


def test_import_names_every_format_on_its_command_line():
    from profiler.commands.importing import FORMATS as NAMED

    assert sorted(NAMED) == sorted(one.name for one in FORMATS)
