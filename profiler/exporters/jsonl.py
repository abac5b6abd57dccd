"""Records as lines of JSON, written by a thread of their own as loops finish."""

from __future__ import annotations

import contextlib
from _queue import Empty, SimpleQueue  # queue.SimpleQueue is gevent's in a patched process
from collections import deque
from pathlib import Path

from profiler.loop.eventloop import start_native_thread
from profiler.modes import new_for_owner
from profiler.records import LoopRecord, encode

FLUSH_SECONDS = 0.2


class JsonlSink:
    """Appends every record to a file, at most `FLUSH_SECONDS` after its loop ended.

    Encoding happens on the loop's thread (some 10 µs a loop), writing never does. After a failed write
    (a full disk) nothing more is written: `error` says why, `dropped` counts the lost records. A new file is
    its owner's alone, since records may hold what was said; one that exists keeps its mode.
    """

    waited_for = True

    def __init__(self, path: Path | str) -> None:
        self.error: OSError | None = None
        self.dropped = 0
        self._lines: deque[bytes] = deque()  # its appends and pops are atomic
        self._stop: SimpleQueue[None] = SimpleQueue()
        self._stopped: SimpleQueue[None] = SimpleQueue()
        self._file = open(path, "ab", opener=new_for_owner)  # noqa: SIM115 (closed by the writer)
        start_native_thread(self._write)

    def __call__(self, record: LoopRecord) -> None:
        self._lines.append(encode(record))

    def close(self) -> None:
        """Write what is left and close the file."""
        self._stop.put(None)
        self._stopped.get()

    def _write(self) -> None:
        stopping = False
        while not stopping:
            try:
                self._stop.get(timeout=FLUSH_SECONDS)
                stopping = True
            except Empty:
                pass
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            if not lines:
                continue
            if self.error is None:
                try:
                    self._file.write(b"\n".join(lines) + b"\n")
                    self._file.flush()
                    continue
                except OSError as error:
                    self.error = error
            self.dropped += len(lines)
        with contextlib.suppress(OSError):  # lines that could not be flushed are counted already
            self._file.close()
        self._stopped.put(None)
