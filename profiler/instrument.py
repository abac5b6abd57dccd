"""The profiler of an application, and what it shows of the loops that it has seen.

    with Profiler() as prof:
        ...                         # code that calls models and tools, unchanged
    prof.report("page.html")

At the end of the block the loops are printed, with why they took so long: on a terminal and in a notebook,
never into a service's log.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from profiler.errors import RecordError, UsageError
from profiler.loop.recorder import listeners
from profiler.process.streams import fitting
from profiler.watch.asgi import ProfilerMiddleware as ProfilerMiddleware
from profiler.watch.profiler import Profiler as Watcher

if TYPE_CHECKING:
    from profiler.records import LoopRecord

MOST_KEPT = 1_000
"""Loops that are kept to be shown: the newest."""

_WIDEST, _WIDTH = 120, 100
_log = logging.getLogger(__name__)


class Kept:
    """A sink that keeps the newest loops; `left_out` counts the older ones."""

    waited_for = True

    def __init__(self) -> None:
        self.records: deque[LoopRecord] = deque(maxlen=MOST_KEPT)
        self._count = 0

    def __call__(self, record: LoopRecord) -> None:
        self._count += 1
        self.records.append(record)

    @property
    def left_out(self) -> int:
        return self._count - len(self.records)


class Profiler(Watcher):
    __doc__ = Watcher.__doc__

    _kept: Kept | None = None
    _depth = 0
    _process = 0

    def __enter__(self) -> Self:
        """Watch every SDK client and the tools that are asked for, and keep the newest loops to show them.

        Each conversation is a loop, which ends with the block at the latest, and so is what a `ToolLoop` or
        another profiler of the process records meanwhile.
        """
        self._depth += 1
        if self._depth == 1:
            self._kept, self._process = Kept(), os.getpid()
            listeners.append(self._kept)
            self.auto(find_tools=True, conversations=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth:
            return
        try:
            self.stop()
        finally:
            if self._kept in listeners:
                listeners.remove(self._kept)
            if self._process == os.getpid():  # not in a child that was forked in the block
                try:
                    self._show()
                except Exception:  # what the block raised, or did, matters more
                    _log.exception("the loops could not be shown")

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def _show(self) -> None:
        """On a terminal or in a notebook; nowhere else, since it would land in a log."""
        if in_notebook():
            sys.modules["IPython"].display.display(self)
            return
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and stream.isatty():
                self.print(stream)
                return

    def print(self, file: IO[str] | None = None) -> None:
        """Print the newest loops since `with` began, the slowest as timelines, on `file` (standard output).

        Loops that are under way are not among them. Raises `UsageError` before the first `with`.
        """
        from profiler.report.text import use_color

        file = sys.stdout if file is None else file
        columns = min(shutil.get_terminal_size().columns, _WIDEST) if file.isatty() else _WIDTH
        file.write(fitting(self._text(columns, use_color(file, os.environ)), file))
        file.flush()

    def report(self, path: Path | str = "report.html") -> Path:
        """Write the newest loops since `with` began as a page; returns where it is.

        Raises `UsageError` before the first `with`, `RecordError` where there is no loop to show, or the page
        cannot be written.
        """
        from profiler.report.html.bare import gather_records
        from profiler.report.html.page import write_page
        from profiler.report.html.records import render_records
        from profiler.report.look import NOTHING_RECORDED

        path, kept = Path(path), self._shown()
        if not kept.records:
            raise RecordError(f"{path}: not written: {NOTHING_RECORDED}")
        bare = gather_records(list(kept.records), "with Profiler()", kept.left_out)
        return write_page(path, render_records(bare), private=self._content is not None)

    def _text(self, width: int, color: bool = False) -> str:
        from profiler.report.look import look

        kept = self._shown()
        return look(list(kept.records), self.found, width, color, kept.left_out)

    def _shown(self) -> Kept:
        if self._kept is None:
            raise UsageError("no loops are kept to be shown: use it as `with Profiler() as prof:`")
        return self._kept

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str] | None:
        """For notebooks: HTML without scripts, and text."""
        if self._kept is None:
            return None
        from profiler.report.html.still import still
        from profiler.report.look import watched_words

        plain = self._text(_WIDTH)
        if not self._kept.records:
            return {"text/plain": plain}
        shown = still(list(self._kept.records), watched_words(self.found), self._kept.left_out)
        return {"text/html": shown, "text/plain": plain}


def in_notebook() -> bool:
    """Whether this code runs in the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = getattr(ipython, "get_ipython", lambda: None)()
    return shell is not None and getattr(shell, "kernel", None) is not None
