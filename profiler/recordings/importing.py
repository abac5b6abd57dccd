"""Files of other people's recordings become a run directory.

Every file is read once, bit by bit, and what it tells is sorted on disk (`spool`). Then each group becomes
loops, each loop a record, and the records are written by their starts. So files in another order, with their
lines in another order, or given twice, make the same records.
"""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from profiler import records
from profiler.errors import RecordError
from profiler.process.modes import opener_like
from profiler.recordings.claude_code import ClaudeCode
from profiler.recordings.codex import Codex
from profiler.recordings.drafts import LoopDraft, Tally, record_of
from profiler.recordings.files import Opened, found
from profiler.recordings.formats import Format, Item, Skipped, Source
from profiler.recordings.inner import calls_in_order, with_inner
from profiler.recordings.langfuse import Langfuse
from profiler.recordings.openai_agents import OpenAIAgents
from profiler.recordings.otlp import Otlp
from profiler.recordings.sampling import agreed
from profiler.recordings.spool import Spool, SpoolError
from profiler.recordings.tracelab import TraceLab
from profiler.recordings.unknown import is_no_text, what_it_is
from profiler.records import MOST
from profiler.rundir import Anchor, Recording, Run, RunDirectory, recorded_run

FORMATS: tuple[Format, ...] = (TraceLab(), ClaudeCode(), Codex(), OpenAIAgents(), Otlp(), Langfuse())
"""Every format, the most particular first: the first one that recognises a file reads it."""

REPEATED = "repeats"
_MOST_REASONS = 100
_MOST_IDLE = 1_000_000
"""Lines in a row that are of no use, after which a file is left."""
_MOST_TIME_NS = MOST // 2
"""The latest time of a recording (2043), so that differences fit."""


@dataclass(slots=True)
class Imported:
    """What an import came to. `kept` and `skipped` count what was read, as `Recording.read` does.

    `places` are the first places of what was skipped, by its reason. `refused` are files that are in no known
    format or could not be read, with what they are.
    """

    directory: Path = Path()
    recording: Recording = field(default_factory=lambda: Recording("import"))
    files: int = 0
    loops: int = 0
    inner_loops: int = 0
    rounds: int = 0
    calls: int = 0
    places: dict[str, str] = field(default_factory=dict)

    @property
    def read(self) -> int:
        return sum(self.recording.read.values())

    @property
    def kept(self) -> int:
        skipped = self.recording.skipped.items()
        return self.read - sum(count for reason, count in skipped if not reason.startswith("files: "))


def import_files(
    paths: Sequence[Path],
    parent: Path,
    *,
    format: str | None = None,
    content: bool = False,
    formats: Sequence[Format] | None = None,
) -> Imported:
    """Read the files that the paths name, and make a run directory of them in `parent`.

    `format`: all of them are of this one, whatever they look like. `content`: arguments, results and prompts
    are kept too. Raises `RecordError` where a path cannot be read or no loop was found in any; then there is
    no directory.
    """
    RunDirectory.check_parent(parent)
    with Spool() as spool:
        work = _Import(spool, tuple(FORMATS if formats is None else formats), format, content)
        work.read(paths)
        work.make_records()
        return work.write(parent)


class _Import:
    def __init__(self, spool: Spool, formats: tuple[Format, ...], named: str | None, content: bool) -> None:
        self._spool = spool
        self._formats = formats
        self._named = named
        self._content = content
        self._read = dict.fromkeys((one.name for one in formats), 0)
        self._skipped: dict[str, int] = {}
        self._noted: dict[str, int] = {}
        self._places: dict[str, str] = {}
        self._refused: list[str] = []
        self._files = 0
        self._origin_ns = MOST
        self._tally = Tally()
        self._resolution_ns = 1
        self._clocks: set[str] = set()
        self._sources: set[str] = set()
        self._providers: set[str] = set()
        self._models: set[str] = set()
        self._shares: set[float | None] = set()
        self._counts = Imported()

    # Reading.

    def read(self, paths: Sequence[Path]) -> None:
        for number, path in enumerate(found(paths)):
            if isinstance(path, Skipped):
                self._skip(path)
                continue
            try:
                opened = Opened(path)
            except RecordError as error:
                self._refuse("files: not a file that can be read", str(error))
                continue
            try:
                self._file(opened, path, number)
            finally:
                opened.close()

    def _file(self, opened: Opened, path: Path, number: int) -> None:
        beginning = opened.beginning()
        index = self._format_of(beginning, path)
        if index is None:
            known = ", ".join(one.name for one in self._formats)
            what = opened.problem or what_it_is(beginning)
            if opened.problem:
                what = opened.problem.removeprefix("files: ")
            asked = self._named or f"one of {known}"
            place = f"{path}: {what}"
            self._refuse(
                "files: in no known format", f"{path}: no recording: {what} (expected {asked})", place
            )
            return
        self._files += 1
        format = self._formats[index]
        source = Source(path, str(path), opened.stream)
        idle = 0
        try:
            for one in format.read(source, self._content):
                if isinstance(one, Skipped):
                    self._read[format.name] += 0 if one.kept else one.count
                    self._skip(one)
                    idle += 1
                    if idle > _MOST_IDLE:
                        said = f"nothing understood in {_MOST_IDLE:,} lines"
                        self._refuse(f"files: not read to its end: {said}", str(path))
                        break
                else:
                    self._read[format.name] += 1
                    self._item(index, number, one, source.name, opened)
                    idle = 0
        except SpoolError:
            raise
        except RecordError as error:
            self._refuse(f"files: not read as {format.name}", str(error))
        except Exception as error:
            self._refuse(f"files: not read to its end as {format.name} ({_place(error)})", str(path))
        if opened.problem:
            self._refuse(opened.problem, str(path))

    def _format_of(self, beginning: bytes, path: Path) -> int | None:
        for index, format in enumerate(self._formats):
            if self._named is not None:
                if format.name == self._named and beginning.strip() and not is_no_text(beginning):
                    return index
                continue
            try:
                if format.recognises(beginning, path):
                    return index
            except Exception:  # it is not to raise: that would be a defect, and the file another's
                continue
        return None

    def _item(self, index: int, file: int, item: Item, name: str, opened: Opened) -> None:
        if not 0 < item.at_ns < _MOST_TIME_NS:
            self._skip(Skipped("a time that cannot be", 1, name))
            return
        try:
            self._spool.add(index, file, item)
        except ValueError:
            self._skip(Skipped("a value that JSON cannot say", 1, name))
            return
        opened.understood()
        self._origin_ns = min(self._origin_ns, item.at_ns)

    # Loops.

    def make_records(self) -> None:
        """Every group's loops become records, in the spool."""
        for index, together in self._spool.groups():
            items, repeats = without_repeats(together)
            if repeats:
                self._skip(Skipped(REPEATED, repeats))
            self._group(self._formats[index], items)

    def _group(self, format: Format, items: list[Item]) -> None:
        told = 0
        try:
            for one in format.loops(items, self._content):
                told += not (isinstance(one, Skipped) and one.kept)
                if isinstance(one, Skipped):
                    self._skip(one)
                else:
                    self._loop(one)
        except SpoolError:
            raise
        except Exception as error:
            self._skip(Skipped(f"not understood ({_place(error)})", len(items), items[0].group))
        else:
            if not told:
                self._skip(Skipped("in no loop", len(items), items[0].group))

    def _loop(self, draft: LoopDraft) -> None:
        tally = Tally()
        record = record_of(draft, tally, self._origin_ns)
        try:
            line = records.encode(record)
            records.decode(line)  # what is written can be read
        except RecordError:
            self._skip(Skipped("loops: a time or a count that cannot be", 1, draft.id))
            return
        number = self._spool.keep(line, record.id, record.started_ns, record.ended_ns, draft.parent)
        if draft.spawned_by is not None:
            self._spool.ran_inside(draft.spawned_by, number)
        for position, call in enumerate(calls_in_order(draft)):
            if call.key is not None:
                self._spool.call(call.key, number, position)
        self._tally += tally
        self._resolution_ns = max(self._resolution_ns, record.resolution_ns)
        self._clocks.update(draft.clocks or (record.process,))
        self._sources.add(record.source)
        if len(self._providers) < 2 and len(self._models) < 2:
            self._providers.add(record.provider)
            self._models.add(record.model)
        if len(self._shares) < 2:
            self._shares.add(draft.sampled)
        counts = self._counts
        counts.loops += 1
        counts.rounds += len(record.rounds)
        counts.calls += sum(len(round_.tool_calls) for round_ in record.rounds)

    # Writing.

    def write(self, parent: Path) -> Imported:
        """The run directory. Until it is whole its `run.json` says that it is not."""
        if not self._counts.loops:
            raise RecordError(self._nothing())
        outers, alone = self._spool.join_loops()
        counts = self._counts
        counts.inner_loops = len(outers)
        counts.files = self._files
        counts.places = self._places
        notes = [f"{count:,} {reason}" for reason, count in self._noted.items()]
        if alone:
            notes.append(
                f"{alone:,} of the loops ran inside a call that is not in what was imported, and stand alone"
            )
        tally = {one: getattr(self._tally, one) for one in Tally.__dataclass_fields__}
        counts.recording = Recording(
            "import",
            read={name: count for name, count in self._read.items() if count},
            skipped=dict(sorted(self._skipped.items(), key=lambda one: (-one[1], one[0]))),
            resolution_ns=self._resolution_ns,
            clocks=max(1, len(self._clocks)),
            sampled=agreed(self._shares),
            notes=tuple(notes),
            **tally,
        )
        directory = RunDirectory.create(parent, run := self._run(counts.recording))
        try:
            self._write_records(directory, outers)
            directory.save(replace(run, finished=True))
        except OSError as error:
            shutil.rmtree(directory.path, ignore_errors=True)
            raise RecordError(f"{directory.path}: cannot be written: {error.strerror}") from error
        except BaseException:
            shutil.rmtree(directory.path, ignore_errors=True)
            raise
        counts.directory = directory.path
        return counts

    def _run(self, recording: Recording) -> Run:
        arguments: dict[str, Any] = {"record_content": True} if self._content else {}
        return recorded_run(
            recording,
            Anchor(unix_ns=self._origin_ns, monotonic_ns=0),
            f"recording of {', '.join(sorted(self._sources))}",
            arguments=arguments,
            provider=self._providers.pop() if len(self._providers) == 1 else "",
            model=self._models.pop() if len(self._models) == 1 else "",
        )

    def _write_records(self, directory: RunDirectory, outers: dict[int, int]) -> None:
        renamed = self._spool.repeated_ids()
        outer_ones = set(outers.values())

        def id_of(number: int) -> str:
            return renamed.get(number) or self._spool.id_of(number)

        opener = opener_like(directory.path)
        with open(directory.records_path, "wb", opener=opener) as file:
            for number, _, parent, line in self._spool.records():
                outer = outers.get(number)
                changed = line
                if outer is not None or parent is not None or number in outer_ones or number in renamed:
                    record = records.decode(line)
                    if number in outer_ones:
                        inside = self._spool.inside(number)
                        record = with_inner(record, [(place, id_of(inner)) for place, inner in inside])
                    id = renamed.get(number, record.id)
                    changed = records.encode(
                        replace(record, id=id, parent=None if outer is None else id_of(outer))
                    )
                file.write(changed + b"\n")

    # What is left out.

    def _skip(self, skipped: Skipped) -> None:
        reason = skipped.reason
        counts = self._noted if skipped.kept else self._skipped
        if reason not in counts and len(counts) >= _MOST_REASONS:
            reason = "for other reasons"
        counts[reason] = counts.get(reason, 0) + skipped.count
        if skipped.where:
            self._places.setdefault(reason, skipped.where)

    def _refuse(self, reason: str, message: str, place: str | None = None) -> None:
        self._skip(Skipped(reason, 1, place or message))
        if not self._refused:
            self._refused.append(message)

    def _nothing(self) -> str:
        """Why there is nothing to write, in one line."""
        if self._refused and not self._files:
            refused = sum(count for reason, count in self._skipped.items() if reason.startswith("files: "))
            if refused == 1:
                return self._refused[0]
            return f"no recording in {refused:,} files; the first: {self._refused[0]}"
        if not self._files:
            first = next(iter(self._skipped), None)
            said = (
                "no file in it"
                if first is None
                else f"{first.removeprefix('files: ')}: {self._places[first]}"
            )
            return f"nothing to import: {said}"
        read = ", ".join(f"{count:,} of {name}" for name, count in self._read.items() if count)
        reasons = sorted(self._skipped.items(), key=lambda one: -one[1])[:3]
        said = ", ".join(
            f"{count:,} × {reason.removeprefix('files: ')}"
            + (f" ({self._places[reason]})" if reason in self._places else "")
            for reason, count in reasons
        )
        return f"no loop in what was read ({read or 'nothing'}{'; ' if said else ''}{said})"


def without_repeats(items: Sequence[tuple[int, Item]]) -> tuple[list[Item], int]:
    """The items of a group (with the numbers of their files), each once, and how many came again.

    Of those with one id the one of the largest version counts, else the first. Those without an id are
    repeats where another file has the same: such count as often as the file has it that has it most often.
    """
    best: dict[tuple[str, str], int] = {}
    unnamed: dict[bytes, dict[int, int]] = {}
    kept: list[Item | None] = []
    for file, item in items:
        if item.id is None:
            times = unnamed.setdefault(orjson.dumps((item.at_ns, item.place, item.data)), {})
            most = max(times.values(), default=0)
            times[file] = times.get(file, 0) + 1
            if times[file] > most:
                kept.append(item)
            continue
        # Groups may have been joined: a span's id names it in its trace.
        name = item.group, item.id
        before = best.get(name)
        if before is None:
            best[name] = len(kept)
            kept.append(item)
            continue
        other = kept[before]
        if other is None or item.version > other.version:
            kept[before] = None
            best[name] = len(kept)
            kept.append(item)
    once = [item for item in kept if item is not None]
    return once, len(items) - len(once)


def _place(error: Exception) -> str:
    """Which error, and where in our code: what tells a defect from a file that is no recording."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
