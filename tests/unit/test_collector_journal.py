"""The journal of open traces: what it holds after a kill, what it lets go of, and how large it becomes."""

from __future__ import annotations

import errno
import os
import sys
import time

import orjson
import pytest

from profiler.collector import journal as journal_module
from profiler.collector.journal import Journal, line_of, span_of_line
from profiler.errors import RecordError, UsageError
from profiler.recordings.span import Span


def span(trace: str, number: int) -> Span:
    return Span(
        trace, f"{number}", "p", "model", "chat é", 10**18, 10**18 + 5, calls=(("c1", "f"), ("c2", "g"))
    )


def come(journal, trace, *numbers):
    journal.append([trace], b"".join(line_of(span(trace, number)) for number in numbers))
    journal.flush()


def end(journal, *traces):
    journal.ended(list(traces))
    journal.flush()


def replayed(directory, **more):
    """What the next process finds: open spans by trace, and the traces that had ended with their spans."""
    ended = []
    journal = Journal(directory, **more)
    spans = [one for one, _ in journal.replay(lambda trace, ids: ended.append((trace, set(ids))))]
    return journal, [(one.trace, one.id) for one in spans], ended


def killed(journal):
    """As a kill leaves it: nothing is closed, but the lock is gone."""
    journal._closed.set()
    if journal._thread is not None:
        journal._thread.join()
    journal._lock.close()
    if journal._file is not None:
        journal._file.close()


@pytest.fixture(autouse=True)
def _nothing_stays_open(monkeypatch):
    made = []
    init = Journal.__init__

    def counted(self, *arguments, **more):
        init(self, *arguments, **more)
        made.append(self)

    monkeypatch.setattr(Journal, "__init__", counted)
    yield
    for journal in made:
        killed(journal)


def files(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_span_is_what_its_line_says():
    one = span("t", 1)
    assert span_of_line(line_of(one)) == one


def test_open_spans_are_there_after_a_kill_and_ended_traces_are_not(tmp_path):
    journal = Journal(tmp_path / "j")
    come(journal, "open", 1, 2)
    come(journal, "done", 3)
    end(journal, "done")
    come(journal, "open", 4)
    killed(journal)
    journal, spans, ended = replayed(tmp_path / "j")
    assert spans == [("open", "1"), ("open", "2"), ("open", "4")]
    assert ended == [("done", {"3"})]
    come(journal, "open", 5)
    end(journal, "open")
    journal.close()
    assert not (tmp_path / "j").exists()


def test_what_was_cut_short_by_the_kill_is_left_out(tmp_path):
    journal = Journal(tmp_path)
    come(journal, "t", 1)
    killed(journal)
    with open(tmp_path / "1.jsonl", "ab") as file:
        file.write(line_of(span("t", 2))[:-20])
    journal, spans, _ = replayed(tmp_path)
    assert spans == [("t", "1")]
    assert journal.skipped == 1
    come(journal, "t", 3)  # into a file of its own, not behind the torn line
    killed(journal)
    assert replayed(tmp_path)[1] == [("t", "1"), ("t", "3")]


def test_a_version_with_other_fields_is_read(tmp_path):
    names = ["trace", "id", "parent", "kind", "name", "started_ns", "ended_ns", "gone", "calls"]
    values = ["t", "1", "p", "tool", "f", 5, 6, "?", [["c", "f"]]]
    (tmp_path / "7.jsonl").write_bytes(b"\n".join(map(orjson.dumps, ({"fields": names}, values))) + b"\n")
    journal, spans, _ = replayed(tmp_path)
    assert spans == [("t", "1")]
    come(journal, "u", 1)
    assert files(tmp_path) == ["7.jsonl", "8.jsonl", "lock"]


def test_segments_go_when_their_traces_have_ended_the_oldest_first(tmp_path):
    journal = Journal(tmp_path, segment_bytes=10, most_segments=100)
    for number in range(4):
        come(journal, f"t{number}", number)
    assert files(tmp_path) == ["1.jsonl", "2.jsonl", "3.jsonl", "4.jsonl", "lock"]
    end(journal, "t1", "t2")
    assert files(tmp_path)[:4] == ["1.jsonl", "2.jsonl", "3.jsonl", "4.jsonl"]
    end(journal, "t0")
    assert files(tmp_path)[0] == "4.jsonl"
    killed(journal)
    assert replayed(tmp_path)[1] == [("t3", "3")]


def test_a_trace_that_goes_on_does_not_hold_the_journal_for_ever(tmp_path):
    journal = Journal(tmp_path, segment_bytes=2000, most_segments=3)
    come(journal, "long", 0)
    spans = {"long": [line_of(span("long", 0))]}
    most = 0
    for number in range(200):
        come(journal, f"t{number}", number)
        end(journal, f"t{number}")
        if journal.held:
            assert journal.held == {"long"}
            journal.move(spans.items())
        most = max(most, journal.size)
    assert most < 6 * 2200
    killed(journal)
    journal, spans, _ = replayed(tmp_path)
    assert set(spans) == {("long", "0")}


def test_a_trace_that_has_ended_but_is_not_noted_yet_is_not_let_go(tmp_path):
    journal = Journal(tmp_path, segment_bytes=10, most_segments=1)
    come(journal, "ending", 0)
    come(journal, "later", 1)
    assert journal.held == {"ending"}
    journal.move(())  # it is open no more
    come(journal, "later", 2)
    killed(journal)
    assert ("ending", "0") in replayed(tmp_path)[1]


@pytest.mark.skipif(sys.platform == "win32", reason="no locks of this kind")
def test_two_collectors_cannot_have_one_journal(tmp_path):
    journal = Journal(tmp_path)
    with pytest.raises(UsageError, match="another `profiler collect` keeps its journal there"):
        Journal(tmp_path)
    journal.close()
    Journal(tmp_path).close()


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RecordError, match="cannot be written: Not a directory"):
        Journal(tmp_path / "file" / "j")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_is_said_once_and_tried_again(tmp_path, caplog):
    journal = Journal(tmp_path)
    come(journal, "t", 1)
    good, journal._file = journal._file, open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    come(journal, "t", 2)
    come(journal, "t", 3)
    end(journal, "old")
    assert len(caplog.records) == 1
    assert "No space left on device; until it can, a kill loses the spans of open traces" in caplog.text
    assert journal.hindered == "spans cannot be written to disk: No space left on device"
    journal._file.close()
    journal._file = good
    come(journal, "t", 4)
    assert journal.hindered == ""
    killed(journal)
    _, spans, ended = replayed(tmp_path)
    assert spans == [("t", "1"), ("t", "2"), ("t", "3"), ("t", "4")]
    assert ended == [("old", set())]


def test_what_a_full_disk_took_a_part_of_is_whole_once_there_is_room(tmp_path, monkeypatch):
    """Of three spans one was written; their segment is held until the others are."""
    journal = Journal(tmp_path)
    real = journal_module.append_lines

    def cut_short(file, lines):
        monkeypatch.setattr(journal_module, "append_lines", real)
        real(file, lines[: lines.index(b"\n") + 1])
        return 1, OSError(errno.ENOSPC, "No space left on device")

    come(journal, "old", 1)
    monkeypatch.setattr(journal_module, "append_lines", cut_short)
    come(journal, "t", 1, 2, 3)
    assert journal._segments[-1].traces == {"old", "t"}
    end(journal, "old")
    killed(journal)
    assert replayed(tmp_path)[1] == [("t", "1"), ("t", "2"), ("t", "3")]


def test_a_segment_that_a_full_disk_has_no_room_for_is_begun_later(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patched:
        patched.setattr(journal_module, "append_lines", lambda file, lines: (0, full))
        come(journal, "t", 1)
        assert journal.hindered
        assert not list(tmp_path.glob("*.jsonl"))
    come(journal, "t", 2)
    killed(journal)
    assert replayed(tmp_path)[1] == [("t", "1"), ("t", "2")]


def test_the_thread_writes_without_being_asked(tmp_path):
    journal = Journal(tmp_path)
    journal.append(["t"], line_of(span("t", 1)))
    deadline = time.monotonic() + 60
    while not journal.size and time.monotonic() < deadline:
        os.sched_yield()
    killed(journal)
    assert replayed(tmp_path)[1] == [("t", "1")]


def test_what_waits_is_bounded_in_words(tmp_path, monkeypatch):
    monkeypatch.setattr("profiler.collector.journal.MOST_WAITING", 100)
    journal = Journal(tmp_path)
    assert not journal.behind
    with journal._writing:
        journal.append(["t"], line_of(span("t", 1)) * 3)
        assert journal.behind
    journal.flush()
    assert not journal.behind
    journal.close()
