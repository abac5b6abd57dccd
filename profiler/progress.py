"""How far a load test is: one line a second in `progress.jsonl` of its run directory.

For live views, which read the file as it grows. Nothing here is a result: those come from the records.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import orjson

PROGRESS = "progress.jsonl"

State = Literal["preparing", "ramping", "measuring", "draining", "finished"]


@dataclass(frozen=True, slots=True)
class Progress:
    """One moment of a run. Counts are of the trial under way, over all workers.

    `trial` counts from 1, of `trials` (None: until stopped); `block` of `blocks` likewise.
    `seconds_left` is an estimate for the whole run, None when there is no end. `failures` are loops
    that did not finish with every call answered, `rate_limited` attempts that a quota refused.
    `lag_seconds` is the worst event-loop lag of the last second. `directory` is the run's, filled
    in by `Follower`, which knows it: a view may want to look at the records too.
    """

    unix: float
    state: State
    strategy: str = ""
    users: int = 0
    trial: int = 0
    trials: int | None = None
    block: int = 0
    blocks: int | None = None
    elapsed_seconds: float = 0.0
    seconds_left: float | None = None
    loops: int = 0
    failures: int = 0
    rate_limited: int = 0
    in_flight: int = 0
    waiting: int = 0
    lag_seconds: float = 0.0
    directory: str | None = None


def encode(progress: Progress) -> bytes:
    """One line, with its newline."""
    return orjson.dumps(progress, option=orjson.OPT_APPEND_NEWLINE)


class Follower:
    """Reads what has come since the last time it was asked."""

    def __init__(self, directory: Path | str) -> None:
        self._path = Path(directory) / PROGRESS
        self._offset = 0

    def new(self) -> Iterator[Progress]:
        """The lines that are complete and were not seen yet."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            yield Progress(**{**orjson.loads(line), "directory": str(self._path.parent)})
