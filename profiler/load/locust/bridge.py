"""The bridge between gevent and asyncio: one event loop in a native thread, greenlets wait for it.

Locust runs its users as greenlets on gevent's hub, in the main thread; agents are coroutines on
a uvloop in a thread of its own, started with the unpatched primitive. Nothing is woken per
request: a greenlet hands over a whole coroutine and sleeps until it has ended, and what a
foreign thread has to tell the hub goes through one `async_` watcher.

Every lock here is a native one or none at all: in a patched process `threading`'s locks are
gevent's and must not be waited for from the loop's thread.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

import gevent
from gevent.event import AsyncResult
from gevent.monkey import is_module_patched

from profiler.errors import UsageError
from profiler.load.locust.quirks import NativeExecutor, settle_processor, use_native_locks
from profiler.loop.eventloop import start_native_thread

T = TypeVar("T")

Work = Callable[[], Coroutine[Any, Any, T]]

STOP_SECONDS = 5.0
"""How long `stop` waits for cancelled tasks before it gives the thread up."""


class HubCalls:
    """Calls functions on the hub of the greenlet that made it, on behalf of other threads.

    The functions run inside the hub: they must not block.
    """

    def __init__(self) -> None:
        self._calls: deque[Callable[[], object]] = deque()
        self._watcher = gevent.get_hub().loop.async_()
        self._watcher.start(self._run)

    def post(self, call: Callable[[], object]) -> None:
        """From any thread."""
        self._calls.append(call)
        self._watcher.send()

    def close(self) -> None:
        self._watcher.stop()
        self._watcher.close()

    def _run(self) -> None:
        # Sends that come close together wake the hub once, so everything there is gets run.
        while self._calls:
            self._calls.popleft()()


class BridgedTask(Generic[T]):
    """A coroutine under way on the loop's thread."""

    def __init__(self, thread: Bridge) -> None:
        self._thread = thread
        self._done: AsyncResult = AsyncResult()
        self._task: asyncio.Task[T] | None = None
        self._cancelled = False

    def wait(self, timeout: float | None = None) -> T:
        """The coroutine's result; blocks the calling greenlet alone.

        Raises what the coroutine raised, `asyncio.CancelledError` when it was cancelled,
        `TimeoutError` when `timeout` seconds pass first. The coroutine goes on in that case,
        and when the greenlet is killed: who does not want that calls `cancel`.
        """
        self._done.wait(timeout)
        if not self._done.ready():
            raise TimeoutError
        result: T = self._done.get()
        return result

    def cancel(self) -> None:
        """Ask the coroutine to stop; `wait` returns when it has."""
        self._thread.call(self._cancel)

    # On the loop's thread:

    def _start(self, work: Work[T]) -> None:
        if self._cancelled:
            self._settle(asyncio.CancelledError())
            return
        self._task = self._thread.loop.create_task(work())
        self._task.add_done_callback(self._finished)

    def _cancel(self) -> None:
        self._cancelled = True
        if self._task is not None:
            self._task.cancel()

    def _finished(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self._settle(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self._settle(error)
        else:
            result = task.result()
            self._thread.hub.post(lambda: self._done.set(result))

    def _settle(self, error: BaseException) -> None:
        self._thread.hub.post(lambda: self._done.set_exception(error))


class Bridge:
    """One event loop in one native thread. Make, start and stop it from greenlets of one hub.

    Not at import and not before a fork: threads do not survive one.
    """

    def __init__(self) -> None:
        self.hub = HubCalls()
        self.loop = new_event_loop()
        self._stopped: AsyncResult = AsyncResult()
        self._running = False

    def start(self) -> None:
        """Start the thread. It stops at interpreter exit, before the hub goes, if not earlier."""
        settle_processor()
        self._running = True
        use_native_locks()
        start_native_thread(self._main)
        atexit.register(self.stop)

    def submit(self, work: Work[T]) -> BridgedTask[T]:
        """Run `work()` on the loop. Raises `RuntimeError` when the loop has stopped."""
        task: BridgedTask[T] = BridgedTask(self)
        self.call(lambda: task._start(work))
        return task

    def run(self, work: Work[T], timeout: float | None = None) -> T:
        """Run `work()` on the loop and wait; cancels it when the wait ends early, for whatever reason."""
        task = self.submit(work)
        try:
            return task.wait(timeout)
        except BaseException:
            task.cancel()
            raise

    def call(self, function: Callable[[], None]) -> None:
        """Call `function` on the loop's thread, soon. Raises `RuntimeError` when the loop has stopped."""
        self.loop.call_soon_threadsafe(function)

    def post(self, function: Callable[[], object]) -> None:
        """Call `function` on the hub, soon, from the loop's thread. It must not block."""
        self.hub.post(function)

    def stop(self) -> None:
        """Cancel what is under way, close the loop and end the thread; waits a bounded time.

        Called twice, the second does nothing.
        """
        if not self._running:
            return
        self._running = False
        atexit.unregister(self.stop)
        with contextlib.suppress(RuntimeError):
            self.call(self.loop.stop)
        self._stopped.wait(timeout=STOP_SECONDS)
        self.hub.close()

    def _main(self) -> None:
        loop = self.loop
        asyncio.set_event_loop(loop)
        loop.set_default_executor(NativeExecutor())
        try:
            loop.run_forever()
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            if tasks:
                loop.run_until_complete(asyncio.wait(tasks, timeout=STOP_SECONDS - 1))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            loop.close()
            self.hub.post(lambda: self._stopped.set(None))


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A uvloop where there is one, else asyncio's own.

    Raises `UsageError` in a patched process without uvloop: asyncio's selectors are gevent's
    there, and nothing would ever complete.
    """
    try:
        import uvloop
    except ImportError:
        if is_module_patched("select"):
            raise UsageError(
                "without uvloop (which does not exist for Windows) set LOCUST_SKIP_MONKEY_PATCH=1"
            ) from None
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
