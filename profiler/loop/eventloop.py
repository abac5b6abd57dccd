"""Keeping an event loop free, and measuring when it is not.

`NativeThreads` runs sync tools beside the loop, `TimedCoroutine` finds out how long a coroutine held the
loop between two awaits. How late the loop is: `profiler.loop.lag`.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import contextvars
import sys
import time
import weakref
from _queue import SimpleQueue  # queue.SimpleQueue is gevent's in a patched process
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from types import ModuleType
from typing import Any

from profiler.process.lifetime import in_forked_child

Job = Callable[[], None]


class NativeThreads:
    """A pool of daemon threads, grown on demand up to `limit`; idle ones are kept as long as the pool is.

    asyncio's default executor will not do: it has six threads on a two-core machine, and in a process
    that gevent has patched its threads are greenlets, for which a foreign event loop waits in vain.
    These threads are started by the unpatched primitive, wait in an unpatched queue, and answer through
    `call_soon_threadsafe`.
    """

    def __init__(self, limit: int = 64) -> None:
        self.limit = limit
        self._renew()
        in_forked_child(self._renew)

    def _renew(self) -> None:
        """No thread runs yet, and none waits; jobs of a forked child's parent are the parent's."""
        self.threads = 0
        self.idle = 0
        self._counting = unpatched(_thread, "allocate_lock")()  # several event loops may share a pool
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        # A `ToolLoop` made for a single conversation must not leave its threads behind.
        weakref.finalize(self, self._jobs.put, None).atexit = False

    async def run(self, function: Callable[[], Any], on_start: Callable[[], None] | None = None) -> Any:
        """The function's result, from a thread, with the caller's context variables.

        `on_start` is called in the thread just before the function. When the caller is cancelled the
        thread goes on to the end (nothing can stop it), and its result is dropped.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        context = contextvars.copy_context()

        def settle(result: Any, error: BaseException | None) -> None:
            with self._counting:
                self.idle += 1
            if future.done():
                return
            if error is None:
                future.set_result(result)
            elif isinstance(error, StopIteration):  # which a future refuses to raise
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

        with self._counting:
            starts = self.idle <= 0 and self.threads < self.limit
            self.threads += starts
            self.idle -= self.idle > 0
        if starts:
            start_native_thread(partial(_work, self._jobs))
        self._jobs.put(job)
        return await future


def _work(jobs: SimpleQueue[Job | None]) -> None:
    """The loop of one thread. It refers to the queue alone, so that an unused pool can be collected."""
    while (job := jobs.get()) is not None:
        job()
        del job  # it refers to the caller's event loop, and the next one may not come for long
    jobs.put(None)  # for the next thread


def start_native_thread(function: Callable[[], None]) -> None:
    """Start a real daemon thread, whether or not gevent has patched this process."""
    unpatched(_thread, "start_new_thread")(function, ())


def native_sleep(seconds: float) -> None:
    """Block a native thread; the `time.sleep` that gevent patches would make a hub of its own in it."""
    unpatched(time, "sleep")(seconds)


def unpatched(module: ModuleType, name: str) -> Callable[..., Any]:
    """A function of a module as it is without gevent."""
    # The name is missing while another thread imports gevent: nothing has been patched by then.
    get_original = getattr(sys.modules.get("gevent.monkey"), "get_original", None)
    original: Callable[..., Any] = (
        getattr(module, name) if get_original is None else get_original(module.__name__, name)
    )
    return original


BLOCKING_NS = 10_000_000
"""Shorter steps are not counted as blocking: the interpreter itself switches threads every 5 ms."""
WAITED_NS = 2_000_000
"""A shorter pause between two steps is no wait that an event loop which was held could have drawn out."""
MOST_WAITS = 256
"""Ends of waits that are kept of one coroutine: the newest, so that one that never ends does not grow."""


class TimedCoroutine:
    """Awaits a coroutine; `steps` are those between two awaits that took longer than `BLOCKING_NS`.

    An async function that computes, or calls something that blocks, stops every other task of its
    event loop: calls that look parallel run one after another. Timing each step between two awaits
    tells which coroutine did that, unless the machine did not run it meanwhile (`profiler.loop.lag`).
    Steps of tasks that it creates do not count. `resumed` are the times at which it went on after a wait of
    more than `WAITED_NS`: one at the end of a stall had waited for that. `sending_ns` is about the time from
    its start until a request that it makes in its first step has been written; 0 for one that awaits nothing.
    """

    __slots__ = ("_clock", "_coroutine", "resumed", "sending_ns", "steps", "waited")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], clock: Callable[[], int]) -> None:
        self._coroutine = coroutine
        self._clock = clock
        self.steps: list[tuple[int, int]] = []
        self.resumed: list[int] = []
        self.sending_ns = 0
        self.waited = False

    def __await__(self) -> Generator[Any, Any, Any]:
        clock, coroutine = self._clock, self._coroutine
        step: Callable[[Any], Any] = coroutine.send
        argument: Any = None
        ended: int | None = None
        while True:
            began = clock()
            if ended is not None and began - ended > WAITED_NS:
                self.resumed.append(began)
                if len(self.resumed) > MOST_WAITS:
                    del self.resumed[: MOST_WAITS // 2]
            try:
                waits_for = step(argument)
            except StopIteration as done:
                return done.value
            finally:
                ended = clock()
                if ended - began > BLOCKING_NS:
                    self.steps.append((began, ended))
            if not self.waited:
                self.waited = True
                self.sending_ns = ended - began
                loop = asyncio._get_running_loop()  # None where another framework takes the steps
                if loop is not None:
                    with contextlib.suppress(Exception):  # a loop of another make; the coroutine goes on
                        loop.call_soon(self._sent, began)
            try:
                argument = yield waits_for
                step = coroutine.send
            except GeneratorExit:
                coroutine.close()
                raise
            except BaseException as error:
                step, argument = coroutine.throw, error

    def _sent(self, began_ns: int) -> None:
        # Without a body a request is written in the step, else in the turn after it: between the two.
        self.sending_ns += (self._clock() - began_ns - self.sending_ns) // 2
