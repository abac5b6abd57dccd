"""Run directories of what never ends: a new one from time to time, the oldest removed as `--keep` says.

A door that is open for weeks writes its records here as loops end. `Keep` is the limit and decides, purely;
`KeptRuns` is the sink: a thread of its own writes, so that whoever hands it a record is never kept waiting.

Only run directories that the same door made are ever removed (`run.json` says which), none that a living
process writes to, and nothing else in the folder.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from profiler.errors import RecordError, UsageError
from profiler.process.lifetime import at_exit
from profiler.process.modes import opener_like
from profiler.recordings.drafts import Tally
from profiler.recordings.sampling import agreed
from profiler.records import MOST, LoopRecord, decode, encode
from profiler.rundir import Anchor, Door, Recording, RunDirectory, append_lines, recorded_run

if sys.platform != "win32":
    import fcntl

FLUSH_SECONDS = 0.2
"""Records are in their file this long after they came."""
SAVE_SECONDS = 1.0
"""`run.json` is replaced this often, where anything has changed: what it counts is that much older than the
records at most."""
LOOK_SECONDS = 60.0
"""How often the folder is looked at for what has become too old."""
SHARES = 7
"""A limit is cut into this many run directories: of a week each has a day."""
WHOLE_SECONDS, WHOLE_BYTES = 86_400.0, 256_000_000
"""The most that one run directory holds, whatever the limit: a report reads all of it."""
MOST_WAITING = 64_000_000
"""Bytes of records that wait to be written; what comes while there are more is lost, and counted."""

_SHOWN_AGES = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_AGES = {**_SHOWN_AGES, "w": 604_800}
_SIZES = {
    unit + letter + "b": base**power
    for power, unit in enumerate(("", "k", "m", "g", "t"))
    for letter, base in (("", 1000), ("i", 1024))
    if power or not letter
}
_LIMIT = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([a-z]{1,3})", re.IGNORECASE)

_MOST_CLOCKS = 1_000
_ID = b'{"id":"'
_UNWRITTEN = "records could not be written"

_log = logging.getLogger(__name__)


class Kept(NamedTuple):
    """A run directory in the folder: the bytes in it, and when it was last written to (Unix seconds)."""

    path: Path
    size: int
    written: float


@dataclass(frozen=True, slots=True)
class Keep:
    """How much of the past is kept; None is without limit."""

    seconds: float | None = None
    bytes: int | None = None

    @property
    def share_seconds(self) -> float:
        """The time after which a run directory has got its share."""
        return WHOLE_SECONDS if self.seconds is None else min(WHOLE_SECONDS, self.seconds / SHARES)

    @property
    def share_bytes(self) -> int:
        """The size at which it has."""
        return WHOLE_BYTES if self.bytes is None else min(WHOLE_BYTES, self.bytes // SHARES)

    def is_full(self, seconds: float, size: int) -> bool:
        """Whether a run directory of this age and size is to be followed by a new one."""
        return seconds >= self.share_seconds or size >= self.share_bytes

    def too_much(self, runs: Iterable[Kept], in_use: int, now: float) -> list[Kept]:
        """Which of `runs` to remove, oldest first. `in_use`: bytes in those that are written to."""
        kept = sorted(runs, key=lambda run: (run.written, run.path))
        total = in_use + sum(run.size for run in kept)
        removed = []
        for run in kept:
            old = self.seconds is not None and now - run.written > self.seconds
            large = self.bytes is not None and total > self.bytes
            if not old and not large:
                break
            removed.append(run)
            total -= run.size
        return removed

    def __str__(self) -> str:
        if self.seconds is None and self.bytes is None:
            return "everything"
        return ",".join(
            text
            for text in (
                "" if self.seconds is None else _shown(self.seconds, _SHOWN_AGES),
                "" if self.bytes is None else _shown(self.bytes, _SIZES, str.upper),
            )
            if text
        )


def parse_keep(text: str) -> Keep:
    """The limit that `7d`, `2GB` or `7d,2GB` says. Raises `UsageError`."""
    seconds: float | None = None
    size: int | None = None
    for part in text.split(","):
        found = _LIMIT.fullmatch(part.strip())
        unit = "" if found is None else found[2].lower()
        amount = 0.0 if found is None else float(found[1])
        if amount and unit in _AGES and seconds is None:
            seconds = amount * _AGES[unit]
        elif amount and unit in _SIZES and size is None and amount * _SIZES[unit] >= 1:
            size = int(amount * _SIZES[unit])
        else:
            raise UsageError(
                f"--keep {text!r}: expected an age (7d, 12h, 30m), a size (2GB, 500MB), or one of each with a"
                " comma between them (7d,2GB)"
            )
    return Keep(seconds, size)


class KeptRuns:
    """A sink of recorded loops.

    `anchor` is an instant on Unix time and on the clock of the records' times. `title` and `options` are the
    run's title and arguments. `written` is told the tokens of records whose lines are in their file, in the
    thread that writes them. `check` raises `RecordError` for a line that nothing could read; the default
    reads it, which takes as long as all else. The first run directory is made with the first record; `path`
    is that of the newest, None until then.

    What cannot be written (on a full disk) waits, in memory, and is tried again; what was lost in the end is
    counted in `lost`, and among what the run skipped. Raises `RecordError` when no run directory can be made
    in `parent`.
    """

    waited_for = True

    def __init__(
        self,
        parent: Path | str,
        door: Door,
        keep: Keep,
        title: str,
        anchor: Anchor,
        *,
        options: dict[str, Any] | None = None,
        written: Callable[[Sequence[object]], None] = lambda tokens: None,
        check: Callable[[bytes], object] = decode,
        clock: Callable[[], float] = time.time,
    ) -> None:
        RunDirectory.check_parent(parent)
        self._made = not os.path.exists(parent)
        try:  # now, and not when the first loop has ended: a server would go on without writing anything
            Path(parent).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecordError(f"{parent}: cannot make a run directory: {error.strerror}") from error
        self.path: Path | None = None
        self.records = self.lost = 0
        self.hindered = ""
        """Why what has come cannot be written; empty where it can."""
        self._parent = Path(parent)
        self._door: Door = door
        self._keep = keep
        self._title = title
        self._anchor = anchor
        self._options = options or {}
        self._written = written
        self._check = check
        self._clock = clock
        self._waiting: deque[_Line] = deque()  # its appends and pops are atomic
        self._waiting_bytes = 0
        self._counting = threading.Lock()
        self._counts = _Counts()
        self._writing = threading.RLock()
        self._current: _Current | None = None
        self._others: list[Kept] = []
        self._looked = 0.0
        self._complained = False
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        at_exit(self.close)

    def __call__(
        self,
        record: LoopRecord,
        tally: Tally | None = None,
        token: object = None,
        clocks: Collection[str] = (),
        sampled: float | None = None,
    ) -> None:
        """Write a record; `tally` counts its own calls (`drafts.record_of`), `clocks` are its draft's.

        `sampled`: the share of all such traces that was kept.
        """
        try:
            text = encode(record)
            self._check(text)  # what is written can be read
        except RecordError:
            self._lose(1, "a time or a count that cannot be")
            self._written([token])
            return
        about = (record.provider, record.model, record.resolution_ns)
        line = _Line(text + b"\n", *about, tally, token, clocks or (record.process,), sampled)
        if self._closed.is_set() or self._waiting_bytes > MOST_WAITING:
            self._lose(1, _UNWRITTEN if self.hindered else "written down too slowly")
            return
        with self._counting:
            self._waiting_bytes += len(line.text)
        self._waiting.append(line)
        if self._thread is None:
            self._start()

    @property
    def behind(self) -> bool:
        """So much waits to be written that records may be lost soon."""
        return self._waiting_bytes > MOST_WAITING // 2

    def count_read(self, kind: str, count: int = 1) -> None:
        """So many more spans, lines or requests came in this format (`Recording.read`)."""
        with self._counting:
            self._counts.read[kind] += count
            self._counts.changed = True

    def count_skipped(self, reason: str, count: int = 1) -> None:
        """So many more of them are in no record, for this reason (`Recording.skipped`)."""
        with self._counting:
            self._counts.skipped[reason] += count
            self._counts.changed = True

    def note(self, words: str) -> None:
        """Have every run say this from now on (`Recording.notes`); saying it again changes nothing."""
        with self._counting:
            self._counts.notes.setdefault(words)
            self._counts.changed = True

    def close(self) -> None:
        """Write what is left, and mark the run as finished. A record that comes after that is lost."""
        self._closed.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        with self._writing:
            self.flush()
            if self._waiting:
                self._lose(len(self._waiting), _UNWRITTEN)
                self._waiting.clear()
            self._end()
            if self.path is None and self._made:
                with contextlib.suppress(OSError):  # something is in it
                    self._parent.rmdir()

    def flush(self) -> None:
        """Write what has come so far; for the thread, and for who cannot wait for it."""
        with self._writing:
            lines = [self._waiting.popleft() for _ in range(len(self._waiting))]
            came = _size_of(lines)
            try:
                while lines:
                    self._append(lines)
                self.hindered = ""
                self._save(SAVE_SECONDS)
            except (RecordError, OSError) as error:
                self._fail(error, lines)
            self._waiting.extendleft(reversed(lines))
            with self._counting:
                self._waiting_bytes -= came - _size_of(lines)
            try:
                self._tidy()
            except OSError as error:
                _log.warning("%s: old runs cannot be removed: %s", self._parent, error.strerror)

    def _start(self) -> None:
        with self._writing:
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._run, name="records", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._closed.wait(FLUSH_SECONDS):
            try:
                self.flush()
            except Exception:  # a defect of ours, which must not end the writing of what comes next
                _log.exception("%s: records were not written", self._parent)

    def _append(self, lines: list[_Line]) -> None:
        """Write some of the lines, and take them off; those that are left are for the next run directory."""
        now = self._clock()
        current = self._current
        if current is not None and self._keep.is_full(now - current.began, current.size):
            self._end()
            current = None
        if current is None:
            current = self._current = self._begin(now)
        room, taken, size = self._keep.share_bytes - current.size, 0, 0
        for line in lines:
            if taken and size + len(line.text) > room:
                break
            size += len(line.text)
            taken += 1
        failure = append_lines(current.file, b"".join(line.text for line in lines[:taken]))
        kept = lines[: taken if failure is None else failure[0]]
        for line in kept:
            current.take(line)
        self.records += len(kept)
        if kept:
            self._written([line.token for line in kept])
        del lines[: len(kept)]
        if failure is not None:
            raise failure[1]
        self._complained = False

    def _begin(self, now: float) -> _Current:
        unix_ns = int(now * 1e9)
        anchor = Anchor(unix_ns, unix_ns - self._anchor.unix_ns + self._anchor.monotonic_ns)
        directory = RunDirectory.create(
            self._parent, recorded_run(Recording(self._door), anchor, self._title, arguments=self._options)
        )
        path = directory.records_path
        try:
            file = FileIO(path, "ab", opener=opener_like(path.parent))
        except OSError:
            directory.remove_if_unused()
            raise
        _lock(file)
        self.path = directory.path
        return _Current(directory, file, anchor, now)

    def _save(self, seconds: float, finished: bool = False) -> None:
        """Replace `run.json` if it was not within these seconds, and anything has changed since."""
        current, now = self._current, self._clock()
        if current is None or abs(now - current.saved) < seconds:
            return
        if not current.directory.path.is_dir():  # somebody removed it: what comes goes into a new one
            current.file.close()
            self._current = None
            return
        with self._counting:
            if not (self._counts.changed or current.changed or finished):
                return
            current.read += self._counts.read
            current.skipped += self._counts.skipped
            self._counts.read.clear()
            self._counts.skipped.clear()
            self._counts.changed = False
            notes = tuple(self._counts.notes)
        current.saved, current.changed = now, False
        recording = Recording(
            self._door,
            dict(current.read),
            dict(current.skipped),
            **asdict(current.tally),
            resolution_ns=current.resolution_ns,
            clocks=max(1, len(current.clocks)),
            sampled=agreed(current.shares),
            notes=notes,
        )
        current.directory.save(
            recorded_run(
                recording,
                current.anchor,
                self._title,
                provider=_only(current.providers),
                model=_only(current.models),
                arguments=self._options,
                finished=finished,
            )
        )

    def _end(self) -> None:
        """The current run directory has got its share."""
        if self._current is None:
            return
        try:
            self._save(0, finished=True)
        except (RecordError, OSError) as error:
            self._fail(error)
        if self._current is not None:
            self._current.file.close()
        self._current = None
        self._looked = 0.0

    def _tidy(self) -> None:
        now = self._clock()
        if self._keep == Keep():
            return
        if not 0 <= now - self._looked < LOOK_SECONDS:
            self._looked = now
            self._others = list(self._found())
        for run in self._keep.too_much(self._others, 0 if self._current is None else self._current.size, now):
            self._others.remove(run)
            remove(run.path)

    def _found(self) -> Iterable[Kept]:
        """The run directories of this door in the folder that nobody writes to."""
        current = None if self._current is None else self._current.directory.path
        if not self._parent.is_dir():
            return
        for path in sorted(self._parent.iterdir()):
            if path == current or path.is_symlink() or not RunDirectory.is_one(path):
                continue
            with contextlib.suppress(RecordError, OSError):
                directory = RunDirectory.open(path)
                recording = directory.load().recording
                if recording is None or recording.door != self._door or is_in_use(directory):
                    continue
                files = [one.stat() for one in path.rglob("*") if one.is_file()]
                records = directory.records_path
                written = (records if records.exists() else path).stat().st_mtime
                yield Kept(path, sum(one.st_size for one in files), written)

    def _fail(self, error: RecordError | OSError, lines: Sequence[_Line] = ()) -> None:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if lines:
            self.hindered = f"records cannot be written: {reason}"
        if not self._complained:
            self._complained = True
            _log.error("%s: records cannot be written: %s; they wait until they can", self._parent, reason)

    def _lose(self, count: int, reason: str) -> None:
        self.lost += count
        self.count_skipped(f"loops: {reason}", count)


_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
_LONG_NUMBER = b"0" * len(str(MOST))


def check_numbers(line: bytes) -> None:
    """For `KeptRuns`: where the types of all fields are known to be right, only a number may be too large."""
    if _LONG_NUMBER in line.translate(_DIGITS):
        decode(line)


class _Line(NamedTuple):
    """A record that waits to be written; without its objects, which take as much memory again as its text."""

    text: bytes
    provider: str
    model: str
    resolution_ns: int
    tally: Tally | None
    token: object
    clocks: Collection[str]
    sampled: float | None


@dataclass(slots=True)
class _Counts:
    """What came since `run.json` was replaced; `notes` in their order."""

    read: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    notes: dict[str, None] = field(default_factory=dict)
    changed: bool = False


@dataclass(slots=True)
class _Current:
    """The run directory that is written to."""

    directory: RunDirectory
    file: FileIO
    anchor: Anchor
    began: float
    saved: float = 0.0
    size: int = 0
    changed: bool = False
    tally: Tally = field(default_factory=Tally)
    read: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    providers: set[str] = field(default_factory=set)
    models: set[str] = field(default_factory=set)
    clocks: set[str] = field(default_factory=set)
    shares: set[float | None] = field(default_factory=set)
    resolution_ns: int = 1

    def take(self, line: _Line) -> None:
        self.size += len(line.text)
        self.changed = True
        if line.tally is not None:
            self.tally += line.tally
        for known, one, most in (
            (self.providers, line.provider, 2),
            (self.models, line.model, 2),
        ):
            if len(known) < most:
                known.add(one)
        if len(self.clocks) < _MOST_CLOCKS:
            self.clocks.update(line.clocks)
        if len(self.shares) < 2:
            self.shares.add(line.sampled)
        self.resolution_ns = max(self.resolution_ns, line.resolution_ns)


def _size_of(lines: Iterable[_Line]) -> int:
    return sum(len(line.text) for line in lines)


def _only(found: set[str]) -> str:
    """The one that all loops have, else nothing."""
    return next(iter(found)) if len(found) == 1 else ""


def _shown(amount: float, units: dict[str, int], written: Callable[[str], str] = str) -> str:
    unit = max(
        (unit for unit in units if amount % units[unit] == 0 and "i" not in unit),
        key=lambda one: units[one],
        default=min(units, key=lambda one: units[one]),
    )
    return f"{amount / units[unit]:g}{written(unit)}"


def _lock(file: FileIO) -> None:
    """Mark the records as being written to, for as long as the file is open here."""
    if sys.platform != "win32":
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_in_use(directory: RunDirectory) -> bool:
    """Whether a living process writes records into it; on Windows nobody knows, and its files tell."""
    if sys.platform == "win32":
        return False
    try:
        with open(directory.records_path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def remove(path: Path) -> None:
    """Remove a run directory. What says that it is one goes last: if it is cut short it is tried again."""
    for one in path.iterdir():
        if one.name != "run.json":
            shutil.rmtree(one) if one.is_dir() and not one.is_symlink() else one.unlink()
    shutil.rmtree(path)
    _log.info("%s: removed, as --keep says", path)


def made_by(parent: Path | str, door: Door) -> list[RunDirectory]:
    """The run directories that a door made in this folder, the oldest first."""
    found = []
    with contextlib.suppress(OSError):
        for path in sorted(Path(parent).iterdir(), key=_by_name):
            with contextlib.suppress(RecordError):
                if RunDirectory.is_one(path):
                    directory = RunDirectory.open(path)
                    recording = directory.load().recording
                    if recording is not None and recording.door == door:
                        found.append(directory)
    return found


def _by_name(path: Path) -> list[int | str]:
    """`20260101-120000-10` comes after `20260101-120000-9`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]


def recent_ids(parent: Path | str, door: Door, size: int = 64_000_000) -> frozenset[str]:
    """The ids of the loops that a door wrote last: those of its last two runs, of so many bytes each."""
    found = set()
    for directory in made_by(parent, door)[-2:]:
        with contextlib.suppress(OSError), open(directory.records_path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            for line in file:
                # The last may have been cut short: then it is no record.
                if line.startswith(_ID) and line.endswith(b"}\n"):
                    with contextlib.suppress(orjson.JSONDecodeError):
                        end = line.index(b'","strategy":')
                        found.add(str(orjson.loads(line[len(_ID) - 1 : end + 1])))
    return frozenset(found)
