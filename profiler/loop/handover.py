"""Hands work to a thread of its own, behind a bounded queue, and waits for it only if it is quick.

What an application gives us to call (a sink) may block, and nothing can interrupt it there. On another thread
it can block only that. Whoever hands work over waits for it while three things hold: the thread had nothing
else to do, the work has not run for longer than `WAIT_NS`, and the machine gives the thread its turn. So work
that is quick, such as appending to a list, is done when `put` returns, and work that blocks delays the caller
by less than half a millisecond at first, and not at all while it blocks.

A busy machine may take milliseconds to run the thread. For that a handover waits, too, but for no more than
`PATIENCE_NS` in its whole life: after that, and for work that turned out slow, results come later.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import os
import time
from _queue import SimpleQueue  # queue.SimpleQueue is gevent's in a patched process
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any

from profiler.loop.eventloop import start_native_thread, unpatched
from profiler.process.lifetime import at_exit, in_forked_child, is_ending

MOST_WAITING = 10_000
"""Pieces of work that may wait; more are refused."""

WAIT_NS = 400_000
"""A piece of work that has run for longer is not waited for."""

PATIENCE_NS = 100_000_000
"""For how long one handover waits in all, beyond quick work."""

EXIT_SECONDS = 2.0
"""For how long the end of the program waits for what is handed over."""

TURN_SECONDS = 0.02
"""It waits in turns, each of which counts for so long and no longer: on a machine that stands still, or is
busy, the thread may get no turn in two seconds."""

Work = Callable[[], None]

_log = logging.getLogger(__name__)


class _Piece:
    """A piece of work; `done` is locked until it is."""

    __slots__ = ("began_ns", "context", "done", "work")

    def __init__(self, work: Work, context: Context, done: Any) -> None:
        self.work, self.context, self.done = work, context, done
        self.began_ns: int | None = None


class _Thread:
    """The queue of one thread, and how much is in it. The thread refers to this alone."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.pieces: SimpleQueue[_Piece | None] = SimpleQueue()
        self.working = False
        self.ident: int | None = None

    def run(self) -> None:
        self.ident = unpatched(_thread, "get_ident")()
        try:
            while (piece := self.pieces.get()) is not None:
                self.working = True
                piece.began_ns = time.monotonic_ns()
                try:
                    piece.context.run(piece.work)
                except BaseException:  # of the work, not of this thread, whatever it is
                    pass
                finally:
                    self.working = False
                    piece.done.release()
                    del piece  # and its context: the next one may not come for long
        finally:
            _running.discard(self)


_running: set[_Thread] = set()


class Handover:
    """One thread, started with the first piece of work, and again in a forked child. Pieces run in order."""

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._thread: _Thread | None = None
        self._patience_ns = PATIENCE_NS

    def __del__(self) -> None:
        if self._thread is not None:
            with contextlib.suppress(Exception):
                self._thread.pieces.put(None)

    def put(self, work: Work, *, waits: bool = True) -> bool:
        """Have it done, in a copy of this context; False when it is refused, as the queue is full.

        With `waits` it is done already if it is quick. Does not raise.
        """
        try:
            thread = self._thread
            if thread is None or thread.pid != os.getpid():
                thread = self._started()
            waiting = thread.pieces.qsize()
            if waiting >= MOST_WAITING:
                return False
            idle = waiting == 0 and not thread.working
            piece = _Piece(work, copy_context(), unpatched(_thread, "allocate_lock")())
            piece.done.acquire()
            thread.pieces.put(piece)
        except Exception:  # no thread can be started, at the end of the program or at a limit of threads
            return False
        if waits and is_ending():
            _flush_at_exit(thread)  # nobody does so later
        elif waits and idle:
            self._wait(piece)
        return True

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything so far is done, up to `timeout` seconds; whether it is.

        A piece of work that asks for it is not done itself, so it waits for nothing.
        """
        thread = self._thread
        if thread is None or thread.pid != os.getpid():
            return True
        if thread.ident == unpatched(_thread, "get_ident")():
            return False
        return _flush(thread, timeout)

    def _started(self) -> _Thread:
        thread = _Thread()
        start_native_thread(thread.run)
        _running.add(thread)
        at_exit(_flush_all)  # before the sinks that were made until now close their files
        self._thread = thread
        return thread

    def _wait(self, piece: _Piece) -> None:
        asked_ns, left_ns = self._clock(), WAIT_NS
        while not piece.done.acquire(timeout=left_ns / 1e9):
            now_ns, began_ns = self._clock(), piece.began_ns
            # Not begun yet: the thread waits for a processor, or for the interpreter's lock.
            left_ns = WAIT_NS if began_ns is None else WAIT_NS // 2 - (now_ns - began_ns)
            if left_ns <= 0 or now_ns - asked_ns >= self._patience_ns:
                self._patience_ns -= now_ns - asked_ns
                return
        self._patience_ns -= max(0, self._clock() - asked_ns - WAIT_NS)


def _flush(thread: _Thread, timeout: float | None) -> bool:
    done = _marked(thread)
    return bool(done.acquire(timeout=-1 if timeout is None else max(0.0, timeout)))


def _marked(thread: _Thread) -> Any:
    """A lock that is released when the thread has done all that it was given so far."""
    last = _Piece(_nothing, copy_context(), unpatched(_thread, "allocate_lock")())
    last.done.acquire()
    thread.pieces.put(last)
    return last.done


def _nothing() -> None:
    pass


_TURNS = int(EXIT_SECONDS / TURN_SECONDS)
_turns_left = _TURNS


def _renew_turns() -> None:
    global _turns_left
    _turns_left = _TURNS


in_forked_child(_renew_turns)


def _flush_at_exit(thread: _Thread) -> bool:
    """As `Handover.flush`, for `EXIT_SECONDS` in all for the whole end of the program."""
    global _turns_left
    if thread.ident == unpatched(_thread, "get_ident")():
        return False
    done = _marked(thread)
    while not done.acquire(timeout=TURN_SECONDS):
        _turns_left -= 1
        if _turns_left <= 0:
            return False
    return True


def _flush_all() -> None:
    """Before the program ends, threads like these are stopped wherever they are."""
    left = 0
    for thread in list(_running):
        if thread.pid == os.getpid() and not _flush_at_exit(thread):
            left += max(1, thread.pieces.qsize() - 1)  # without the one that was to tell
    if left:
        _log.error("the program ends before %d records have reached a sink, which is too slow", left)
