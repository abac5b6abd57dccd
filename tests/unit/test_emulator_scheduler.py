"""Timers never fire early, even on an event loop whose timers do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from profiler.emulator.scheduler import Scheduler

MS = 1_000_000


class EarlyLoop:
    """An event loop in virtual time whose timers fire 0.9 ms before they should."""

    def __init__(self) -> None:
        self.now = 0
        self.timers: list[tuple[int, Callable[[], None], list[bool]]] = []

    def clock(self) -> int:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> Any:
        cancelled = [False]
        self.timers.append((self.now + int(delay * 1e9) - 900_000, callback, cancelled))
        return type("Handle", (), {"cancel": lambda self: cancelled.__setitem__(0, True)})()

    def run(self) -> None:
        for _ in range(1000):
            live = [timer for timer in self.timers if not timer[2][0]]
            if not live:
                return
            timer = min(live, key=lambda timer: timer[0])
            self.timers.remove(timer)
            self.now = max(self.now, timer[0])
            timer[1]()
        raise AssertionError("it never ends")


def test_timers_are_never_early_and_no_later_than_a_tick() -> None:
    loop = EarlyLoop()
    scheduler = Scheduler(loop, loop.clock)  # type: ignore[arg-type]
    fired: dict[int, int] = {}
    for due in (5 * MS + 1, 3 * MS, 3 * MS + 400_000, 90 * MS, 0):
        scheduler.at(due, lambda due=due: fired.__setitem__(due, loop.now))  # type: ignore[misc]
    loop.run()
    assert sorted(fired) == [0, 3 * MS, 3 * MS + 400_000, 5 * MS + 1, 90 * MS]
    assert all(0 <= at - due <= 1.1 * MS for due, at in fired.items())
    assert list(fired.values()) == sorted(fired.values())


def test_timers_that_are_cancelled_do_not_fire_and_callbacks_may_schedule() -> None:
    loop = EarlyLoop()
    scheduler = Scheduler(loop, loop.clock)  # type: ignore[arg-type]
    fired: list[str] = []
    scheduler.at(MS, lambda: fired.append("cancelled")).cancel()
    scheduler.at(
        2 * MS, lambda: scheduler.at(4 * MS, lambda: fired.append("second")) and fired.append("first")
    )
    loop.run()
    assert fired == ["first", "second"]


def test_cancelled_timers_do_not_pile_up_until_they_are_due() -> None:
    loop = EarlyLoop()
    scheduler = Scheduler(loop, loop.clock)  # type: ignore[arg-type]
    fired: list[int] = []
    for n in range(20_000):
        timer = scheduler.at(3600 * 1000 * MS + n, lambda n=n: fired.append(n))  # type: ignore[misc]
        if n % 100:
            timer.cancel()
    assert len(scheduler._heap) < 2_000
    loop.run()
    assert fired == list(range(0, 20_000, 100))
