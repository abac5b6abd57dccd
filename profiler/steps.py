"""Runs a coroutine and notes how long it held the event loop.

An async function that computes, or calls something that blocks, stops every other task of the
loop while it does: calls that look parallel run one after another. Timing each step between two
awaits tells whose fault that was.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any

BLOCKING_NS = 10_000_000
"""A step shorter than this is no blame: the interpreter itself switches threads every 5 ms."""


class Steps:
    """Awaits the coroutine; `blocking_ns` is the time it spent in steps longer than `BLOCKING_NS`.

    Only the coroutine's own steps count, not those of tasks that it creates.
    """

    __slots__ = ("_clock", "_coroutine", "blocking_ns")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], clock: Callable[[], int]) -> None:
        self._coroutine = coroutine
        self._clock = clock
        self.blocking_ns = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        clock, coroutine = self._clock, self._coroutine
        step: Callable[[Any], Any] = coroutine.send
        argument: Any = None
        while True:
            began = clock()
            try:
                waits_for = step(argument)
            except StopIteration as done:
                return done.value
            finally:
                held = clock() - began
                if held > BLOCKING_NS:
                    self.blocking_ns += held
            try:
                argument = yield waits_for
                step = coroutine.send
            except GeneratorExit:
                coroutine.close()
                raise
            except BaseException as error:
                step, argument = coroutine.throw, error
