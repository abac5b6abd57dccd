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
    """A coroutine under way on an event loop in another thread.

    `wait` returns its result or raises what it raised; `TimeoutError` after `timeout` seconds.
    """

    def wait(self, timeout: float | None = None) -> T_co: ...

    def cancel(self) -> None: ...


class LoopThread(Protocol):
    """A started event loop in a thread of its own.

    `run` waits for `work()` to end and cancels it when the wait ends early, `submit` does not wait. `call`
    has a function called on the loop's thread, `post` from there where the others wait.
    """

    def run(self, work: Callable[[], Coroutine[Any, Any, T]], timeout: float | None = None) -> T: ...

    def submit(self, work: Callable[[], Coroutine[Any, Any, T]]) -> LoopTask[T]: ...

    def call(self, function: Callable[[], None]) -> None: ...

    def post(self, function: Callable[[], object]) -> None: ...

    def stop(self) -> None: ...
