"""What a format of recordings has to say, and the table of those that are known.

A format reads a file twice over, in two pure halves. `read` turns it into `Item`s, one after another, without
keeping any; each names the group that it belongs to: a trace, a session. What reads all files then keeps the
items of each group together, on disk, whatever order they came in; drops those that came before (same group,
same `id`); and hands each group to `loops`, which makes drafts of its loops.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from profiler.recordings.drafts import LoopDraft


class Item(NamedTuple):
    """One thing that a recording tells: a span, a line. `data` is JSON data, kept as such meanwhile.

    `at_ns` is the earliest time in it (Unix): it orders the items of a group, those of one time as they came,
    and the earliest of all is the zero of the records' times. `id` names it in its group, None: it has no
    name, and is never dropped as a repeat. `version`: of several with one id the largest counts, else the
    first. `link`: groups with the same one are one group (a conversation over several traces). `place`
    orders items of one time where the order of a file tells something (its line); without one their content
    does, so that files in another order, or with their lines in another order, tell the same.
    """

    group: str
    at_ns: int
    data: object
    id: str | None = None
    version: int = 0
    link: str | None = None
    place: int = 0


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that was read and is in no record: why, in words that stay few (they are counted).

    `where` is the first place of its kind worth naming (`spans.jsonl:17`); empty where that tells nothing.
    `kept`: it is in a record all the same, and this is what a reader has to know of it (a note, not a loss).
    """

    reason: str
    count: int = 1
    where: str = ""
    kept: bool = False


class Source(NamedTuple):
    """A file that is being read. `open` gives its bytes, unpacked; `name` is for messages."""

    path: Path
    name: str
    stream: BinaryIO


class Format(Protocol):
    """A way to write down what agents did."""

    name: str
    """As `--from` and `LoopRecord.source` say it."""
    resolution_ns: int
    """The tick of its times; a finer one of a file is for its loops to say."""

    def recognises(self, beginning: bytes, path: Path) -> bool:
        """Whether a file that begins so is of this format; told by its content, and by its name only where
        two formats look alike. Never raises."""
        ...

    def read(self, source: Source, content: bool) -> Iterator[Item | Skipped]:
        """What a file tells, bit by bit. `content`: arguments, results and prompts are wanted too.

        Raises `RecordError` where nothing of the file can be read; a bad line is `Skipped`.
        """
        ...

    def loops(self, items: Sequence[Item], content: bool) -> Iterator[LoopDraft | Skipped]:
        """The loops of one group, and `Skipped` for what is in none; `items` by `at_ns`."""
        ...
