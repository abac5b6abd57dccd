"""How much one tool can serve: rejection above a limit, a bounded queue, or processor sharing.

Pure: a state machine driven by monotonic ns that are passed in. It is told of arrivals and
departures, and asked what ends when; the timers are the application's.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from profiler.scenario import Capacity


class Rejected(NamedTuple):
    """A call that is not served. `retry_ns` is the announced wait, None when nothing is announced."""

    status: int
    reason: str
    retry_ns: int | None


class _Call:
    __slots__ = ("done_ns", "work_ns")

    def __init__(self, work_ns: float) -> None:
        self.work_ns = work_ns  # left to do, while shared or queued
        self.done_ns = 0  # when it ends, while served at full speed


class ToolCapacity:
    """The state of one tool. Keys are whatever the caller tells calls apart by."""

    def __init__(self, capacity: Capacity, time_scale: float, start_ns: int) -> None:
        self._capacity = capacity
        self._scale = time_scale
        self._steps = [
            (start_ns + int(step.after * time_scale * 1e9), step.fraction) for step in capacity.schedule
        ]
        self._fraction = 1.0
        self._running: dict[int, _Call] = {}
        self._queue: OrderedDict[int, _Call] = OrderedDict()
        self._now_ns = start_ns
        self._tokens = float(capacity.burst)

    @property
    def in_flight(self) -> int:
        """Calls served or queued."""
        return len(self._running) + len(self._queue)

    def _slots(self) -> float:
        if self._capacity.concurrent is None:
            return float("inf")
        # A capacity of no slot at all is an outage; a fraction of one still serves one.
        return max(1, round(self._capacity.concurrent * self._fraction)) if self._fraction > 0 else 0

    def arrive(self, key: int, work_ns: int, now_ns: int) -> Rejected | None:
        """Take call `key` in, or say why not. Call `advance(now_ns)` first."""
        rate = self._capacity.requests_per_second
        if rate is not None:
            rate = rate * self._fraction / self._scale if self._scale else float("inf")
            if self._tokens < 1:
                wait = (1 - self._tokens) / rate * 1e9 if rate > 0 else 1e9
                return Rejected(429, "too many requests a second", int(wait) + 1)
        slots, mode = self._slots(), self._capacity.mode
        call = _Call(work_ns)
        if mode == "share":
            self._running[key] = call
        elif len(self._running) < slots:
            call.done_ns = now_ns + work_ns
            self._running[key] = call
        elif mode == "reject":
            return Rejected(429, f"at most {int(slots)} calls at once", None)
        elif len(self._queue) >= self._capacity.queue:
            return Rejected(503, f"queue of {self._capacity.queue} is full", None)
        else:
            self._queue[key] = call
        if self._capacity.requests_per_second is not None:
            self._tokens -= 1
        return None

    def leave(self, key: int) -> None:
        """A caller went away; what it held is free."""
        if self._running.pop(key, None) is None:
            self._queue.pop(key, None)
        else:
            self._fill(self._now_ns)

    def advance(self, now_ns: int) -> list[tuple[int, int]]:
        """Everything that ends up to `now_ns`, as (key, when)."""
        ended: list[tuple[int, int]] = []
        while (at := self.next_ns()) is not None and at <= now_ns:
            self._step(at, ended)
        self._step(now_ns, ended)
        return ended

    def next_ns(self) -> int | None:
        """When something ends or the capacity changes next; None when nothing will."""
        candidates = [self._steps[0][0]] if self._steps else []
        if self._running:
            if self._capacity.mode == "share":
                speed = self._speed()
                if speed > 0:
                    least = min(call.work_ns for call in self._running.values())
                    # Up by one: the floor would leave a fraction of a ns undone, and time would stand.
                    candidates.append(self._now_ns + int(max(0.0, least) / speed) + 1)
            else:
                candidates.append(min(call.done_ns for call in self._running.values()))
        return min(candidates) if candidates else None

    def _speed(self) -> float:
        slots = self._slots()
        return min(1.0, slots / len(self._running)) if self._running else 1.0

    def _step(self, at: int, ended: list[tuple[int, int]]) -> None:
        """Move time to `at`, which is not beyond the next change."""
        elapsed = max(0, at - self._now_ns)
        rate = self._capacity.requests_per_second
        if rate is not None:
            per_ns = rate * self._fraction / self._scale / 1e9 if self._scale else float("inf")
            self._tokens = (
                min(float(self._capacity.burst), self._tokens + elapsed * per_ns) if elapsed else self._tokens
            )
        if self._capacity.mode == "share":
            done = elapsed * self._speed()
            for key, call in list(self._running.items()):
                call.work_ns -= done
                if call.work_ns <= 0.5:
                    del self._running[key]
                    ended.append((key, at))
        else:
            for key, call in list(self._running.items()):
                if call.done_ns <= at:
                    del self._running[key]
                    ended.append((key, call.done_ns))
        self._now_ns = max(self._now_ns, at)
        while self._steps and self._steps[0][0] <= at:
            self._fraction = self._steps.pop(0)[1]
        self._fill(at)

    def _fill(self, now_ns: int) -> None:
        """Start queued calls while there is room."""
        while self._queue and len(self._running) < self._slots():
            key, call = self._queue.popitem(last=False)
            call.done_ns = now_ns + int(call.work_ns)
            self._running[key] = call
