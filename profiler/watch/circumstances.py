"""Where code runs that is only watched: its thread, its task, its pool of threads, the SDK's runner above it.

Looked up when a tool starts, or a request, so it must cost next to nothing and may never fail. Pools and
runners are told by names and attributes of other people's code; where those are missing, nothing is known.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from profiler.shortfalls import Pool, Runner

MOST_FRAMES = 100


class Circumstances(NamedTuple):
    """Of a tool call, when it starts.

    `task` is 0 outside an event loop; `executor` gets the `ThreadPoolExecutor` whose thread it is.
    """

    thread: int
    task: int
    executor: Callable[[], Any] | None

    @property
    def in_event_loop(self) -> bool:
        return self.task != 0

    def same(self, other: Circumstances | None) -> bool:
        """Whether the other runs in this task, or outside tasks in this thread: not both at once."""
        return other is not None and self[:2] == other[:2]


_last = Circumstances(0, 0, None)
"""Those of the last call in a task: many calls of one follow each other."""


def circumstances() -> Circumstances:
    """Of the caller, now."""
    thread = threading.get_ident()
    loop = asyncio._get_running_loop()
    if loop is not None:
        global _last
        task, last = id(asyncio.current_task(loop)), _last
        if last.task != task or last.thread != thread:
            _last = last = Circumstances(thread, task, None)
        return last
    # Not threading.current_thread(), which makes an object for a foreign thread that is never removed.
    worker: Any = getattr(threading, "_active", {}).get(thread)
    arguments = getattr(worker, "_args", None)  # every worker of a pool has a weak reference to it
    executor = arguments[0] if arguments and isinstance(arguments[0], weakref.ref) else None
    return Circumstances(thread, 0, executor)


def pool(executor: Callable[[], Any]) -> Pool | None:
    """The pool of threads that an executor is, when one of its calls has ended.

    Work that waits at the end of a call waits for a thread. At the start of one it may be there for a moment
    only, until an idle thread takes it.
    """
    try:
        made = executor()
        size = made._max_workers
        return Pool(size, len(made._threads) >= size and made._work_queue.qsize() > 0)
    except Exception:  # one of another make
        return None


def runner() -> Runner | None:
    """The tool runner of an SDK whose code called this, directly or not."""
    frame = sys._getframe(1)
    for _ in range(MOST_FRAMES):
        module = frame.f_globals.get("__name__")
        if type(module) is str and module.endswith("runner"):
            if module.startswith("openai.lib."):
                return "openai"
            if module.startswith("anthropic.lib.tools."):
                return "anthropic"
        above = frame.f_back
        if above is None:
            return None
        frame = above
    return None
