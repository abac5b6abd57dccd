"""What the kernel counts about a thread; None wherever it does not count, as outside Linux."""

from __future__ import annotations

import os
import threading
import weakref


class RunDelay:
    """How long the calling thread has been runnable and did not run, since it began.

    The second field of `/proc/self/task/TID/schedstat`. It grows while other work has the thread's core, and
    while the container's quota keeps it waiting; not while the process is stopped, frozen or suspended. The
    file stays open, so that a reading costs microseconds.
    """

    __slots__ = ("__weakref__", "_file")

    def __init__(self) -> None:
        try:
            self._file: int | None = os.open(
                f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY | os.O_CLOEXEC
            )
        except OSError:
            self._file = None
        else:
            weakref.finalize(self, os.close, self._file).atexit = False

    def read_ns(self) -> int | None:
        """Nanoseconds until now; to be called by any thread while the one that made this lives."""
        if self._file is None:
            return None
        try:
            return int(os.pread(self._file, 128, 0).split()[1])
        except (OSError, ValueError, IndexError):
            return None
