"""Records as lines of JSON, written by a thread of their own as loops finish."""

from __future__ import annotations

import _thread
import atexit
import itertools
import logging
import time
from collections import deque
from io import FileIO
from pathlib import Path

from profiler.loop.eventloop import native_sleep, start_native_thread, unpatched
from profiler.process.lifetime import at_exit, in_forked_child
from profiler.process.modes import new_for_owner
from profiler.records import LoopRecord, encode
from profiler.rundir import RunDirectory, append_lines

FLUSH_SECONDS = 0.2

_log = logging.getLogger(__name__)


class JsonlDirectory:
    """Appends every record to a new file of this process in a directory, as `JsonlSink` does.

    The file is made with the first record, and named by its time (UTC): `20261129-134501.jsonl`, or with
    `-2`, `-3`, ... where one of that name exists. A forked child has a file of its own. `path` is None until
    then. Raises `RecordError` when no file can be made there.
    """

    waited_for = True

    def __init__(self, directory: Path | str) -> None:
        RunDirectory.check_parent(directory)
        self._directory = Path(directory)
        self._renew()
        in_forked_child(self._renew)

    def _renew(self) -> None:
        self.path: Path | None = None
        self._parents = getattr(self, "_sink", None)  # kept: to close its file is for the parent to do
        self._sink: JsonlSink | None = None
        self._making = unpatched(_thread, "allocate_lock")()

    def __call__(self, record: LoopRecord) -> None:
        sink = self._sink
        if sink is None:
            with self._making:
                sink = self._sink = self._sink or self._made()
        sink(record)

    def close(self) -> None:
        """Write what is left and close the file; a record that comes after that is counted as lost."""
        if self._sink is not None:
            self._sink.close()

    def _made(self) -> JsonlSink:
        self._directory.mkdir(parents=True, exist_ok=True)
        stem = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        for number in itertools.count(1):
            path = self._directory / f"{stem if number == 1 else f'{stem}-{number}'}.jsonl"
            try:
                FileIO(path, "xb", opener=new_for_owner).close()  # nobody else has it
            except FileExistsError:
                continue
            self.path = path
            break
        assert self.path is not None
        return JsonlSink(self.path)


class JsonlSink:
    """Appends every record to a file, at most `FLUSH_SECONDS` after its loop ended.

    Encoding happens on the loop's thread (a few µs a loop), writing never does while the process runs. At
    the end of the process what is left is written; where it is killed, or leaves by `os._exit`, the last
    `FLUSH_SECONDS` are lost. A forked child appends its own records to the same file, in whole lines.

    After a failed write (a full disk) nothing more is written: `error` says why, `dropped` counts the lost
    records, those after `close` too.

    A new file is its owner's alone, since records may hold what was said; one that exists keeps its mode.
    """

    waited_for = True

    def __init__(self, path: Path | str) -> None:
        self.error: OSError | None = None
        self.dropped = 0
        self._path = path
        self._lines: deque[bytes] = deque()  # its appends and pops are atomic
        # Unbuffered: a buffer would be copied into a forked child, and split lines that two processes write.
        self._file = FileIO(path, "ab", opener=new_for_owner)
        self._renew()
        in_forked_child(self._renew)
        at_exit(self._finish)

    def _renew(self) -> None:
        """No thread runs, and nothing waits to be written; in a child its parent writes what waited."""
        self.dropped = 0
        self._lines.clear()
        self._writing = unpatched(_thread, "RLock")()
        self._running = False
        self._at_once = self._file.closed

    def __call__(self, record: LoopRecord) -> None:
        self._lines.append(encode(record))
        if self._at_once:
            self._write()
        elif not self._running:
            self._start()

    def close(self) -> None:
        """Write what is left and close the file. A second call does nothing."""
        self._finish()
        atexit.unregister(self._finish)
        with self._writing:
            self._file.close()

    def _start(self) -> None:
        with self._writing:
            if self._running:
                return
            self._running = True
        at_exit(self._finish)  # once more, for a child of multiprocessing
        try:
            start_native_thread(self._run)
        except RuntimeError:  # at a limit of threads, or at the end of the process
            self._finish()

    def _run(self) -> None:
        while not self._at_once:
            native_sleep(FLUSH_SECONDS)
            self._write()

    def _finish(self) -> None:
        """Write what is left; records that come from now on are written as they come.

        There may be some: other threads, and whatever else is done at the end of the process, may end loops.
        """
        self._at_once = True
        self._write()

    def _write(self) -> None:
        with self._writing:
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            kept = 0
            if lines and self.error is None and not self._file.closed:
                failure = append_lines(self._file, b"\n".join(lines) + b"\n")
                if failure is None:
                    return
                kept, self.error = failure
                _log.error("%s: cannot be written: %s; later records are counted", self._path, self.error)
            self.dropped += len(lines) - kept
