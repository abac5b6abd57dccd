"""How the leader and the workers of a load test wait, and how they reach the event loop.

Both are plain synchronous code. What it takes to wait without holding up the rest of the process is passed
in: under Locust greenlets of gevent's (`locust/bridge.py`), in unit tests a virtual clock.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Event(Protocol):
    """As `threading.Event`."""

    def is_set(self) -> bool: ...

    def set(self) -> None: ...

    def clear(self) -> None: ...

    def wait(self, timeout: float | None = None) -> bool: ...


class LoopTask(Protocol[T_co]):
    """A coroutine under way on an event loop in another thread."""

    def wait(self, timeout: float | None = None) -> T_co:
        """Its result, or what it raised. Raises `TimeoutError` after `timeout` seconds."""

    def cancel(self) -> None:
        """Ask it to stop; `wait` returns when it has."""


class LoopThread(Protocol):
    """An event loop in a thread of its own, which has been started."""

    def run(self, work: Callable[[], Coroutine[Any, Any, T]], timeout: float | None = None) -> T:
        """Run `work()` on the loop and wait; cancels it when the wait ends early, for whatever reason."""

    def submit(self, work: Callable[[], Coroutine[Any, Any, T]]) -> LoopTask[T]:
        """Run `work()` on the loop."""

    def call(self, function: Callable[[], None]) -> None:
        """Call `function` on the loop's thread, soon."""

    def post(self, function: Callable[[], object]) -> None:
        """From the loop's thread: call `function` where the others wait. It must not block."""

    def stop(self) -> None:
        """Cancel what is under way and end the thread; waits a bounded time."""
