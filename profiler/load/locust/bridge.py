"""The bridge between gevent and asyncio: one event loop in a native thread, and greenlets that wait for it.

Locust runs its users as greenlets on gevent's hub, in the main thread; agents are coroutines on a uvloop in a
thread of its own, started with the unpatched primitive. Nothing is woken per request: a greenlet hands over a
whole coroutine and sleeps until it has ended. What other threads have to tell the hub goes through one
`async_` watcher.

Nothing here takes a lock of `threading`: in a patched process those are gevent's, and the loop's thread must
not wait for them.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

import gevent
from gevent.event import AsyncResult
from gevent.monkey import is_module_patched

from profiler.errors import UsageError
from profiler.load.locust.quirks import NativeExecutor, settle_processor, use_native_locks
from profiler.loop.eventloop import start_native_thread

_log = logging.getLogger(__name__)

T = TypeVar("T")

Work = Callable[[], Coroutine[Any, Any, T]]

STOP_SECONDS = 5.0
"""How long `stop` waits for the thread, and one second less for cancelled tasks."""


class BridgedTask(Generic[T]):
    """A coroutine under way on the loop's thread."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._done: AsyncResult = AsyncResult()
        self._task: asyncio.Task[T] | None = None
        self._cancelled = False

    def wait(self, timeout: float | None = None) -> T:
        """The coroutine's result; blocks the calling greenlet alone.

        Raises what the coroutine raised, `asyncio.CancelledError` when it was cancelled, `TimeoutError` when
        `timeout` seconds pass first. After a timeout, or when the greenlet is killed, the coroutine goes on
        unless `cancel` is called.
        """
        self._done.wait(timeout)
        if not self._done.ready():
            raise TimeoutError
        result: T = self._done.get()
        return result

    def cancel(self) -> None:
        """Ask the coroutine to stop; `wait` returns when it has."""
        self._bridge.call(self._cancel)

    # On the loop's thread:

    def _start(self, work: Work[T]) -> None:
        self._task = self._bridge.loop.create_task(work())
        self._task.add_done_callback(lambda task: self._bridge.post(lambda: self._settle(task)))
        if self._cancelled:
            self._task.cancel()

    def _cancel(self) -> None:
        self._cancelled = True
        if self._task is not None:
            self._task.cancel()

    # On the hub:

    def _settle(self, task: asyncio.Task[T]) -> None:
        try:
            self._done.set(task.result())
        except BaseException as error:
            self._done.set_exception(error)


class Bridge:
    """One event loop in one native thread. Make, start and stop it from greenlets of one hub.

    Neither at import nor before a fork, which threads do not survive.
    """

    def __init__(self) -> None:
        self.loop = new_event_loop()
        self._hub_calls: deque[Callable[[], object]] = deque()
        self._watcher = gevent.get_hub().loop.async_()
        self._watcher.start(self._run_hub_calls)
        self._stopped: AsyncResult = AsyncResult()
        self._running = False

    def start(self) -> None:
        """Start the thread. It stops at interpreter exit at the latest, before the hub goes."""
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
        """Call `function` on the hub, soon; from any thread. It must not block."""
        self._hub_calls.append(function)
        self._watcher.send()

    def stop(self) -> None:
        """Cancel what is under way, close the loop and end the thread. A second call does nothing."""
        if not self._running:
            return
        self._running = False
        atexit.unregister(self.stop)
        with contextlib.suppress(RuntimeError):
            self.call(self.loop.stop)
        self._stopped.wait(timeout=STOP_SECONDS)
        self._watcher.stop()
        self._watcher.close()

    def _run_hub_calls(self) -> None:
        # Sends that come close together wake the hub once, so everything that is there gets run.
        while self._hub_calls:
            self._hub_calls.popleft()()

    def _main(self) -> None:
        loop = self.loop
        asyncio.set_event_loop(loop)
        loop.set_default_executor(NativeExecutor())
        try:
            self._run_on()
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            if tasks:
                loop.run_until_complete(asyncio.wait(tasks, timeout=STOP_SECONDS - 1))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            loop.close()
            self.post(lambda: self._stopped.set(None))

    def _run_on(self) -> None:
        """Run the loop until `stop`. What asyncio lets end a loop ends only the task that raised it: an agent
        may make tasks of its own, in which somebody calls `sys.exit`."""
        while True:
            try:
                self.loop.run_forever()
                return
            except (SystemExit, KeyboardInterrupt) as error:
                _log.warning("a task of an agent raised %s", type(error).__name__)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A uvloop where there is one, else asyncio's own.

    Raises `UsageError` in a patched process without uvloop: asyncio's selectors are gevent's there, and
    nothing would ever complete.
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
