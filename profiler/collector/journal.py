"""The spans of open traces, on disk, so that a kill loses none that were acknowledged.

A folder of segments (`1.jsonl`, `2.jsonl`, ...), each a first line that names the fields of a span, then a
line for each span (`spans.packed`) and one for traces whose records are written (`{"ended": [...]}`).
A segment goes when all its traces have ended, the oldest first, or a later line would be missed that says so.
One that a few long traces hold for too long is emptied by writing their spans again (`held`).

Whoever hands something in is not kept waiting: a thread writes, `FLUSH_SECONDS` later at most. The page cache
survives a kill of the process; that the machine's power fails is not provided for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from profiler.errors import RecordError, UsageError
from profiler.process.modes import OWNERS_DIRECTORY, new_for_owner
from profiler.recordings.span import Span, packed, unpacked
from profiler.rundir import append_lines

if sys.platform != "win32":
    import fcntl

FLUSH_SECONDS = 0.1
SEGMENT_BYTES = 32_000_000
MOST_SEGMENTS = 4
"""When there are more, the oldest is `held`."""
MOST_WAITING = 64_000_000
"""Bytes that wait to be written; `behind` when there are more."""

_FIELDS = [one.name for one in fields(Span)]
_LOCK = "lock"

_log = logging.getLogger(__name__)


def line_of(span: Span) -> bytes:
    """A span as the journal and the open traces keep it: a line of JSON."""
    # A copy: what orjson returns has some kilobytes behind it that nobody else can use.
    return orjson.dumps(packed(span)) + b"\n"


def span_of_line(line: bytes) -> Span:
    """Inverse of `line_of`."""
    return unpacked(orjson.loads(line))


@dataclass(slots=True, eq=False)
class _Segment:
    path: Path
    traces: set[str] = field(default_factory=set)
    size: int = 0


class _Entry(NamedTuple):
    """Lines to write, and what they say of traces. Those of a `moved` one need the oldest segment no more."""

    lines: bytes
    began: Iterable[str] = ()
    ended: Iterable[str] = ()
    moved: bool = False


class Journal:
    """The journal in a folder of its own, which is made, and removed when nothing is open at the end.

    `segment_bytes` and `most_segments` bound it, beside what is open. What cannot be written (on a full disk)
    waits, and is tried again.

    Raises `UsageError` when another process has it, `RecordError` when it cannot be written.
    """

    def __init__(
        self,
        directory: Path,
        segment_bytes: int = SEGMENT_BYTES,
        most_segments: int = MOST_SEGMENTS,
    ) -> None:
        self.skipped = 0
        self.hindered = ""
        """Why what has come cannot be written; empty where it can."""
        self._directory = directory
        self._segment_bytes, self._most = segment_bytes, most_segments
        try:
            directory.mkdir(OWNERS_DIRECTORY, parents=True, exist_ok=True)
            self._lock = FileIO(directory / _LOCK, "ab", opener=new_for_owner)
        except OSError as error:
            raise RecordError(f"{directory}: cannot be written: {error.strerror}") from error
        if not _locked(self._lock):
            self._lock.close()
            raise UsageError(
                f"{directory}: another `profiler collect` keeps its journal there: end it, or give one of"
                " them another --out"
            )
        self._segments = deque(_Segment(path) for path in self._paths())
        self._file: FileIO | None = None
        self._waiting: deque[_Entry] = deque()  # its appends and pops are atomic
        self._waiting_bytes = 0
        self._counting = threading.Lock()
        self._writing = threading.RLock()
        self._held: frozenset[str] = frozenset()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def replay(self, ended: Callable[[str, Iterable[str]], None]) -> Iterator[tuple[Span, bytes]]:
        """The spans that were open when the last process ended; called once, before anything is written.

        `ended` is told of the traces that had ended, and of their spans. A line that cannot be read was cut
        short by the kill, and is counted (`skipped`).
        """
        spans: dict[str, list[bytes]] = {}
        for segment in self._segments:
            for said in self._lines(segment.path):
                if isinstance(said, Span):
                    segment.traces.add(said.trace)
                    spans.setdefault(said.trace, []).append(line_of(said))
                else:
                    for trace in said:
                        ended(trace, {span_of_line(line).id for line in spans.pop(trace, ())})
        for segment in self._segments:
            segment.traces &= spans.keys()
            with contextlib.suppress(OSError):
                segment.size = segment.path.stat().st_size
        with self._writing:
            self._sweep(keep_last=False)
        for lines in spans.values():
            for line in lines:
                yield span_of_line(line), line

    def append(self, traces: Iterable[str], lines: bytes) -> None:
        """These spans came, of these traces."""
        self._put(_Entry(lines, began=traces))

    def ended(self, traces: Iterable[str]) -> None:
        """Note that these traces are in records: their spans are needed no more. From any thread."""
        line = orjson.dumps({"ended": list(traces)}, option=orjson.OPT_APPEND_NEWLINE)
        self._put(_Entry(line, ended=traces))

    @property
    def held(self) -> frozenset[str]:
        """Traces that keep a segment which is to go; empty as a rule. Hand them to `move`."""
        return self._held

    def move(self, traces: Iterable[tuple[str, Iterable[bytes]]]) -> None:
        """Write the spans of the `held` traces again that are open; of the others it will be said that they
        have ended."""
        written = {trace: b"".join(lines) for trace, lines in traces}
        self._held = frozenset()
        if written:
            self._put(_Entry(b"".join(written.values()), began=written, moved=True))

    @property
    def behind(self) -> bool:
        """More waits to be written than should."""
        return self._waiting_bytes > MOST_WAITING

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(segment.size for segment in list(self._segments))

    def close(self) -> None:
        """Write what is left; where nothing is open any more the folder goes."""
        self._closed.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        with self._writing:
            self.flush()
            self._sweep(keep_last=False)
            if self._file is not None:
                self._file.close()
                self._file = None
            if not self._segments:
                with contextlib.suppress(OSError):
                    (self._directory / _LOCK).unlink()
                    self._directory.rmdir()
            self._lock.close()

    def flush(self) -> None:
        """Write what has come so far; for the thread, and for who cannot wait for it."""
        with self._writing:
            entries = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if not entries:
                return
            lines = b"".join(entry.lines for entry in entries)
            count, error = self._write(lines)
            left: list[_Entry] = []
            if error is not None:
                self._fail(error)
                entries, left = _parted(entries, count)
                self._waiting.extendleft(reversed(left))
            else:
                self.hindered = ""
            with self._counting:
                self._waiting_bytes -= len(lines) - sum(len(entry.lines) for entry in left)
            if entries:
                self._account(entries)
            for entry in left:  # what they let go of makes room, perhaps
                self._let_go(entry.ended)
            self._sweep(keep_last=True)

    def _put(self, entry: _Entry) -> None:
        with self._counting:
            self._waiting_bytes += len(entry.lines)
        self._waiting.append(entry)
        if self._thread is None and not self._closed.is_set():
            with self._writing:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
                    self._thread.start()

    def _run(self) -> None:
        while not self._closed.wait(FLUSH_SECONDS):
            try:
                self.flush()
            except Exception:  # a defect of ours, which must not end the writing of what comes next
                _log.exception("%s: spans were not written", self._directory)

    def _write(self, lines: bytes) -> tuple[int, OSError | None]:
        """How many of the lines were written, and why no more were."""
        try:
            if self._file is None or self._segments[-1].size >= self._segment_bytes:
                self._next()
        except OSError as error:
            return 0, error
        assert self._file is not None
        failure = append_lines(self._file, lines)
        with contextlib.suppress(OSError):
            self._segments[-1].size = os.fstat(self._file.fileno()).st_size
        return (lines.count(b"\n"), None) if failure is None else failure

    def _next(self) -> None:
        """Begin a segment."""
        if self._file is not None:
            self._file.close()
            self._file = None
        number = int(self._segments[-1].path.stem) + 1 if self._segments else 1
        path = self._directory / f"{number}.jsonl"
        file = FileIO(path, "ab", opener=new_for_owner)
        head = orjson.dumps({"fields": _FIELDS}, option=orjson.OPT_APPEND_NEWLINE)
        failure = append_lines(file, head)
        if failure is not None:
            file.close()
            path.unlink()
            raise failure[1]
        self._file = file
        self._segments.append(_Segment(path, size=len(head)))

    def _account(self, entries: Sequence[_Entry]) -> None:
        current = self._segments[-1]
        for entry in entries:
            if entry.moved:
                self._segments[0].traces.difference_update(entry.began)
            self._let_go(entry.ended)
            current.traces.update(entry.began)

    def _let_go(self, ended: Iterable[str]) -> None:
        if ended:
            for segment in self._segments:
                segment.traces.difference_update(ended)

    def _sweep(self, keep_last: bool) -> None:
        """Remove segments that nothing needs, the oldest first."""
        while len(self._segments) > int(keep_last) and not self._segments[0].traces:
            segment = self._segments.popleft()
            if not self._segments and self._file is not None:
                self._file.close()
                self._file = None
            with contextlib.suppress(OSError):
                segment.path.unlink()
        if len(self._segments) > self._most:
            self._held = frozenset(self._segments[0].traces)

    def _lines(self, path: Path) -> Iterator[Span | list[str]]:
        names = _FIELDS
        try:
            file = open(path, "rb")  # noqa: SIM115 (closed below; the try is for opening alone)
        except OSError as error:
            raise RecordError(f"{path}: cannot be read: {error.strerror}") from error
        with file:
            for line in file:
                try:
                    said = orjson.loads(line)
                    if isinstance(said, list):
                        yield unpacked(said) if names == _FIELDS else _of_another_version(names, said)
                    elif "fields" in said:
                        names = said["fields"]
                    else:
                        yield said["ended"]
                except (ValueError, TypeError, KeyError):
                    self.skipped += 1

    def _paths(self) -> list[Path]:
        found = [path for path in self._directory.glob("*.jsonl") if path.stem.isdigit()]
        return sorted(found, key=lambda path: int(path.stem))

    def _fail(self, error: OSError) -> None:
        failing = bool(self.hindered)
        self.hindered = f"spans cannot be written to disk: {error.strerror}"
        if not failing:
            _log.error(
                "%s: cannot be written: %s; until it can, a kill loses the spans of open traces",
                self._directory,
                error.strerror,
            )


def _parted(entries: list[_Entry], count: int) -> tuple[list[_Entry], list[_Entry]]:
    """The entries of the first `count` lines, and the rest; one in both holds its traces in both."""
    for number, entry in enumerate(entries):
        lines = entry.lines.splitlines(keepends=True)
        if len(lines) > count:
            rest = entry._replace(lines=b"".join(lines[count:]))
            begun = [_Entry(b"", entry.began)] if count else []
            return entries[:number] + begun, [rest, *entries[number + 1 :]]
        count -= len(lines)
    return entries, []


def _of_another_version(names: Sequence[str], values: Sequence[Any]) -> Span:
    said = dict(zip(names, values, strict=True))
    said["calls"] = tuple((id_, name) for id_, name in said.get("calls", ()))
    return Span(**{name: said[name] for name in _FIELDS if name in said})


def _locked(file: FileIO) -> bool:
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
