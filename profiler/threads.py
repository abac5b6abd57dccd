"""Native threads for sync tools.

The default executor will not do: it has six threads on a two-core machine, and in a process
that gevent has patched its threads are greenlets that a foreign event loop waits for in vain.
These threads are started with the unpatched primitive, wait in an unpatched queue, and answer
through `call_soon_threadsafe`.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import contextvars
import sys
import weakref
from _queue import SimpleQueue  # queue.SimpleQueue is gevent's in a patched process
from collections.abc import Callable
from functools import partial
from typing import Any

Job = Callable[[], None]


class NativeThreads:
    """A pool of daemon threads, grown on demand up to `limit`; idle ones are kept as long as the pool is."""

    def __init__(self, limit: int = 64) -> None:
        self.limit = limit
        self.threads = 0
        self.idle = 0
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        # A loop that is made for one conversation must not leave its threads behind.
        weakref.finalize(self, self._jobs.put, None).atexit = False

    async def run(self, function: Callable[[], Any], on_start: Callable[[], None] | None = None) -> Any:
        """The function's result, from a thread, with the caller's context variables.

        `on_start` is called in the thread just before. When the caller is cancelled the thread
        goes on to the end (nothing can stop it), and its result is dropped.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        context = contextvars.copy_context()

        def settle(result: Any, error: BaseException | None) -> None:
            self.idle += 1  # counted on the loop's thread alone: no lock, no lost update
            if future.done():
                return
            if error is None:
                future.set_result(result)
            elif isinstance(error, StopIteration):
                future.set_exception(RuntimeError(f"the function raised {error!r}"))
            else:
                future.set_exception(error)

        def job() -> None:
            result, failure = None, None
            try:
                if on_start is not None:
                    on_start()
                result = context.run(function)
            except BaseException as error:
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
                loop.call_soon_threadsafe(settle, result, failure)

        if self.idle > 0:
            self.idle -= 1
        elif self.threads < self.limit:
            self.threads += 1
            start_native_thread(partial(_work, self._jobs))
        self._jobs.put(job)
        return await future


def _work(jobs: SimpleQueue[Job | None]) -> None:
    """A thread's life. It holds the queue alone, so that a pool that nobody uses any more can go."""
    while (job := jobs.get()) is not None:
        job()
        del job
    jobs.put(None)  # for the next thread


def start_native_thread(function: Callable[[], None]) -> None:
    """Start a real daemon thread, whether or not gevent has patched this process."""
    start: Callable[..., Any] = _thread.start_new_thread
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None:
        start = monkey.get_original("_thread", "start_new_thread")
    start(function, ())
