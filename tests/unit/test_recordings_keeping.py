"""What `--keep` says, and the run directories that are begun, followed and removed as it does."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from io import FileIO
from pathlib import Path

import pytest

from profiler.errors import RecordError, UsageError
from profiler.recordings import keeping
from profiler.recordings.drafts import Tally
from profiler.recordings.keeping import Keep, Kept, KeptRuns, made_by, parse_keep
from profiler.records import RECORDED, LoopRecord
from profiler.rundir import Anchor, Recording, RunDirectory, recorded_run

DAY = 86_400.0
EVERYTHING = Keep()


@pytest.mark.parametrize(
    ("text", "seconds", "size"),
    [
        ("7d", 7 * DAY, None),
        ("12h", 43_200, None),
        ("90s", 90, None),
        ("30m", 1800, None),
        ("1.5d", 1.5 * DAY, None),
        ("2w", 14 * DAY, None),
        ("2GB", None, 2_000_000_000),
        ("500mb", None, 500_000_000),
        ("1GiB", None, 2**30),
        ("64 kB", None, 64_000),
        ("7d,2GB", 7 * DAY, 2_000_000_000),
        ("2GB, 7d", 7 * DAY, 2_000_000_000),
    ],
)
def test_a_limit_is_an_age_a_size_or_both(text, seconds, size):
    assert parse_keep(text) == Keep(seconds, size)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "d",
        "7y",
        "-7d",
        "0d",
        "0GB",
        "0.1b",
        "7d,8d",
        "1GB,2GB",
        "7d,",
        "1e3s",
        "١d,2GB7",
        "9" * 16 + "d",
    ],
)
def test_what_is_no_limit_is_refused_in_words(text):
    with pytest.raises(
        UsageError, match=r"^--keep .*expected an age \(7d, 12h, 30m\), a size \(2GB, 500MB\)"
    ):
        parse_keep(text)


@pytest.mark.parametrize(
    ("keep", "text"),
    [
        (Keep(), "everything"),
        (Keep(7 * DAY), "7d"),
        (Keep(90.0, 2_500_000_000), "90s,2500MB"),
        (Keep(0.5), "0.5s"),
    ],
)
def test_a_limit_is_shown_as_it_is_given(keep, text):
    assert str(keep) == text
    if keep != Keep():
        assert parse_keep(text) == keep


def test_a_run_directory_has_a_seventh_of_the_limit_and_no_more_than_a_day():
    assert Keep(7 * DAY).share_seconds == DAY
    assert Keep(700 * DAY).share_seconds == DAY == Keep().share_seconds
    assert Keep(bytes=700).share_bytes == 100
    assert Keep().share_bytes == Keep(bytes=10**15).share_bytes == keeping.WHOLE_BYTES
    keep = Keep(700, 7000)
    assert [keep.is_full(*one) for one in ((99, 999), (100, 0), (0, 1000))] == [False, True, True]


def test_the_oldest_are_removed_until_the_limit_holds():
    runs = [Kept(Path(name), 100, written) for name, written in (("c", 30), ("a", 10), ("b", 20))]
    assert [run.path.name for run in Keep(bytes=350).too_much(runs, 50, 40)] == []
    assert [run.path.name for run in Keep(bytes=349).too_much(runs, 50, 40)] == ["a"]
    assert [run.path.name for run in Keep(bytes=50).too_much(runs, 50, 40)] == ["a", "b", "c"]
    assert [run.path.name for run in Keep(seconds=15).too_much(runs, 50, 40)] == ["a", "b"]
    assert [run.path.name for run in Keep(seconds=25, bytes=150).too_much(runs, 50, 40)] == ["a", "b"]
    assert Keep().too_much(runs, 10**18, 10**9) == []


class Clock:
    """Unix seconds; they begin now, since files have the machine's times."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def record(number: int, provider="openai", model="m") -> LoopRecord:
    return LoopRecord(
        f"r{number}", RECORDED, provider, model, 0, 1, "ok", (), source="otel", resolution_ns=1000
    )


LINE = len(keeping.encode(record(0))) + 1


def kept_runs(tmp_path, keep=EVERYTHING, door="collect", **more):
    clock = more.pop("clock", None) or Clock()
    anchor = Anchor(unix_ns=int(clock.now * 1e9), monotonic_ns=0)
    return KeptRuns(tmp_path, door, keep, "spans", anchor, clock=clock, **more)


def write(runs, *numbers):
    for number in numbers:
        runs(record(number), Tally(exact=1))
    runs.flush()


def ids_of(path):
    return [one.id for one in RunDirectory.open(path).records()]


def test_nothing_is_left_where_no_record_came(tmp_path):
    runs = kept_runs(tmp_path / "runs")
    runs.count_read("otel", 3)
    runs.close()
    assert list(tmp_path.iterdir()) == []
    assert runs.path is None


def test_a_run_is_valid_while_it_grows_and_finished_at_the_end(tmp_path):
    clock = Clock()
    runs = kept_runs(tmp_path, clock=clock, options={"host": "127.0.0.1"})
    runs.count_read("otel", 2)
    write(runs, 1)
    run = RunDirectory.open(runs.path).load()
    assert (run.finished, run.recording.door, run.load.model) == (False, "collect", "recorded")
    runs.count_skipped("no span of an agent", 4)
    runs.note("said once")
    runs.note("said once")
    clock.now += keeping.SAVE_SECONDS
    write(runs, 2)
    run = RunDirectory.open(runs.path).load()
    assert run.recording == Recording(
        "collect",
        {"otel": 2},
        {"no span of an agent": 4},
        exact=2,
        resolution_ns=1000,
        notes=("said once",),
    )
    assert (run.provider, run.model, run.arguments) == ("openai", "m", {"host": "127.0.0.1"})
    runs(record(3, model="other"))
    runs.close()
    run = RunDirectory.open(runs.path).load()
    assert (run.finished, run.provider, run.model) == (True, "openai", "")
    assert ids_of(runs.path) == ["r1", "r2", "r3"]


def test_records_of_every_run_directory_have_one_clock(tmp_path):
    clock = Clock()
    runs = kept_runs(tmp_path, Keep(70), clock=clock)
    write(runs, 1)
    first = RunDirectory.open(runs.path).load().anchor
    clock.now += 10
    write(runs, 2)
    second = RunDirectory.open(runs.path).load().anchor
    runs.close()
    assert second.unix(0) == pytest.approx(first.unix(0), abs=1000)
    assert second.unix_ns - first.unix_ns == pytest.approx(10e9, abs=1000)


def test_a_run_directory_is_followed_by_a_new_one_when_it_has_its_share(tmp_path):
    runs = kept_runs(tmp_path, Keep(bytes=14 * LINE))
    write(runs, 1, 2, 3, 4, 5)
    assert [ids_of(one.path) for one in made_by(tmp_path, "collect")] == [
        ["r1", "r2"],
        ["r3", "r4"],
        ["r5"],
    ]
    loaded = [one.load() for one in made_by(tmp_path, "collect")]
    assert [run.recording.exact for run in loaded][:2] == [2, 2]
    assert [run.finished for run in loaded] == [True, True, False]
    runs.close()


def test_the_oldest_runs_of_this_door_alone_are_removed(tmp_path):
    clock = Clock()
    anchor = Anchor(int((clock.now - 100 * DAY) * 1e9), 0)
    mine, theirs, measured = (
        RunDirectory.create(tmp_path, recorded_run(Recording(door), anchor, "t"))
        for door in ("collect", "proxy", "import")
    )
    measured.save(replace(measured.load(), recording=None))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "records.jsonl").write_bytes(b"not a run\n")
    (tmp_path / "linked").symlink_to(mine.path)
    (mine.path / "charts").mkdir()
    (mine.path / "charts" / "one.png").write_bytes(b"1")
    for one in (mine, theirs, measured):
        os.utime(one.records_path, (clock.now - 99 * DAY,) * 2)
    runs = kept_runs(tmp_path, Keep(7 * DAY), clock=clock)
    write(runs, 1)
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(
        [theirs.path.name, measured.path.name, "notes", "linked", runs.path.name]
    )
    clock.now += 30 * DAY
    write(runs, 2)  # makes a second one, and the first is 30 days old
    assert ids_of(runs.path) == ["r2"]
    assert len(made_by(tmp_path, "collect")) == 1
    assert theirs.path.exists()
    runs.close()


def test_a_size_holds_for_all_runs_of_the_door(tmp_path):
    clock = Clock()
    runs = kept_runs(tmp_path, Keep(bytes=100_000), clock=clock)
    for number in range(2000):
        write(runs, number)
    sizes = sum(one.stat().st_size for one in tmp_path.rglob("*") if one.is_file())
    assert 60_000 < sizes < 105_000
    assert runs.path.exists()
    runs.close()


@pytest.mark.skipif(sys.platform == "win32", reason="no locks of this kind")
def test_a_run_that_somebody_writes_to_is_not_removed(tmp_path):
    clock = Clock()
    other = kept_runs(tmp_path, clock=clock)
    write(other, 1)
    runs = kept_runs(tmp_path, Keep(DAY), clock=clock)
    write(runs, 2)
    clock.now += 30 * DAY
    write(runs, 3)
    assert other.path.exists()
    other.close()
    clock.now += DAY
    write(runs, 4)
    assert not other.path.exists()
    runs.close()


def test_a_run_that_somebody_removed_is_followed_by_a_new_one(tmp_path):
    clock = Clock()
    runs = kept_runs(tmp_path, clock=clock)
    write(runs, 1)
    keeping.remove(runs.path)
    clock.now += keeping.SAVE_SECONDS
    write(runs, 2)
    write(runs, 3)
    assert ids_of(runs.path) == ["r3"]
    runs.close()


def test_tokens_are_told_when_their_records_are_in_the_file(tmp_path):
    told = []
    runs = kept_runs(tmp_path, written=lambda tokens: told.append((tokens, ids_of(runs.path))))
    runs(record(1), token="one")
    runs(record(2), token="two")
    runs.close()
    assert [token for tokens, _ in told for token in tokens] == ["one", "two"]
    assert told[-1][1] == ["r1", "r2"]


def test_the_thread_writes_without_being_asked(tmp_path):
    runs = kept_runs(tmp_path)
    runs(record(1))
    deadline = time.monotonic() + 60
    while runs.records == 0 and time.monotonic() < deadline:
        os.sched_yield()
    assert ids_of(runs.path) == ["r1"]
    runs.close()
    runs(record(2))
    assert (runs.records, runs.lost) == (1, 1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_is_said_once_and_tried_again(tmp_path, caplog):
    runs = kept_runs(tmp_path)
    write(runs, 1)
    good = runs._current.file
    runs._current.file = FileIO("/dev/full", "ab")
    write(runs, 2)
    write(runs, 3)
    assert (runs.records, runs.lost) == (1, 0)
    assert [one.getMessage().partition(": ")[2] for one in caplog.records] == [
        "records cannot be written: No space left on device; they wait until they can"
    ]
    assert runs.hindered == "records cannot be written: No space left on device"
    full, runs._current.file = runs._current.file, good
    write(runs, 4)
    assert ids_of(runs.path) == ["r1", "r2", "r3", "r4"]
    assert (runs.hindered, runs._waiting_bytes) == ("", 0)
    runs._current.file = full
    runs(record(5))
    runs.close()
    good.close()
    assert (runs.records, runs.lost) == (4, 1)
    assert RunDirectory.open(runs.path).load().recording.skipped == {"loops: records could not be written": 1}


def test_a_run_directory_that_cannot_be_made_leaves_nothing(tmp_path, monkeypatch):
    def full(path, value):
        raise RecordError(f"{path}: cannot be written: No space left on device")

    runs = kept_runs(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("profiler.rundir._replace", full)
        for number in range(3):
            write(runs, number)
        assert "No space left on device" in runs.hindered
        assert not list(tmp_path.iterdir())
    write(runs, 3)
    assert ids_of(runs.path) == ["r0", "r1", "r2", "r3"]
    runs.close()


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_comes(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RecordError, match="cannot make a run directory"):
        kept_runs(tmp_path / "file")
    with pytest.raises(RecordError, match="cannot make a run directory: File name too long"):
        kept_runs(tmp_path / ("x" * 300))
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_the_last_ids_are_those_of_whole_lines(tmp_path):
    runs = kept_runs(tmp_path, Keep(bytes=14 * LINE))
    write(runs, 1, 2, 3, 4, 5)
    with open(runs.path / "records.jsonl", "ab") as file:
        file.write(keeping.encode(record(6))[:-9])
    assert keeping.recent_ids(tmp_path, "collect") == {"r3", "r4", "r5"}
    assert keeping.recent_ids(tmp_path, "proxy") == frozenset()
    runs.close()


def test_runs_of_one_second_are_in_the_order_they_were_made(tmp_path):
    clock = Clock()
    runs = kept_runs(tmp_path, Keep(bytes=7 * LINE), clock=clock)
    write(runs, *range(12))
    assert [ids_of(one.path) for one in made_by(tmp_path, "collect")][-2:] == [["r10"], ["r11"]]
    runs.close()


def test_a_record_that_could_not_be_read_is_not_written(tmp_path):
    told = []
    runs = kept_runs(tmp_path, written=told.extend)
    runs(replace(record(1), ended_ns=2**63), token="bad")
    runs(record(2), token="good")
    runs.close()
    assert ids_of(runs.path) == ["r2"]
    assert (runs.lost, told) == (1, ["bad", "good"])


def test_the_clocks_of_its_records_are_counted(tmp_path):
    runs = kept_runs(tmp_path)
    runs(record(1), Tally(exact=1), clocks=("h1", "h2"))
    runs(record(2), Tally(exact=1), clocks=("h2",))
    runs.close()
    assert runs.path is not None
    assert RunDirectory.open(runs.path).load().recording.clocks == 2
