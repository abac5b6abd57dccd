"""The limiters of a simulated process, entered as `profiler.limits.gate.Gate` has it, in virtual time."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from profiler.limits.limiter import ONE, UNTIL_RELEASE, Limiter, Signal, Ticket, Together
from profiler.limits.refusals import Holdback
from profiler.limits.spec import LaneKey, Rule, lanes_of
from profiler.prediction.simulation.servers import Clock


class Waiting(Protocol):
    """A call in a queue: its ticket of each lane that it has passed, and what it does next."""

    tickets: list[Ticket]

    def go_on(self) -> None: ...


# Limiters. `Lane` does what `profiler.limits.gate.Lane` does on an event loop.


class Lane:
    __slots__ = ("admitting", "clock", "due", "limiter", "queue")

    def __init__(self, clock: Clock, limiter: Limiter) -> None:
        self.admitting = False
        self.clock = clock
        self.limiter = limiter
        self.queue: deque[Waiting] = deque()
        self.due = 2**62

    def enter(self, call: Waiting) -> None:
        now = self.clock.now
        queue = self.queue
        limiter = self.limiter
        if not queue:
            wait_ns = limiter.wait_ns(now, ONE)
            if not wait_ns:
                call.tickets.append(limiter.enter(now, ONE))
                call.go_on()
                return
            if wait_ns < UNTIL_RELEASE:
                self._look_at(now + wait_ns)
        queue.append(call)

    def leave(self, ticket: Any, signal: Signal, used: dict[str, float] | None = None) -> None:
        self.limiter.leave(self.clock.now, ticket, signal, used)
        if self.queue:
            self.admit()

    def admit(self) -> None:
        """Let in whom the limiter lets in.

        Who is let in may leave at once, for a wait that its server asked for meanwhile: the next one then
        comes in here, not from in there, or a long queue would be as many calls deep.
        """
        if self.admitting:
            return
        queue, limiter, now = self.queue, self.limiter, self.clock.now
        wait, enter = limiter.wait_ns, limiter.enter
        self.admitting = True
        while queue:
            wait_ns = wait(now, ONE)
            if wait_ns:
                if wait_ns < UNTIL_RELEASE:
                    self._look_at(now + wait_ns)
                break
            call = queue.popleft()
            call.tickets.append(enter(now, ONE))
            call.go_on()
        self.admitting = False

    def _look_at(self, due: int) -> None:
        """Look at the queue then; one timer is enough, since an earlier one looks again."""
        if due < self.due:
            self.due = due
            self.clock.at(due, self._fire, due)

    def _fire(self, due: int) -> None:
        if due == self.due:
            self.due = 2**62
            self.admit()


class Process:
    """The limiters of one process, as `profiler.limits.gate.Gate` keeps them."""

    __slots__ = (
        "clock",
        "held",
        "holdbacks",
        "lanes",
        "noticed_ns",
        "of_tools",
        "paths",
        "random",
        "rules",
        "sent_ns",
        "share",
        "slots",
    )

    def __init__(self, clock: Clock, rules: Sequence[Rule], share: int, draw: random.Random) -> None:
        self.clock = clock
        self.rules = rules
        self.share = share
        self.random = draw
        self.lanes: dict[LaneKey, Lane] = {}
        self.paths: dict[tuple[str, str, str], tuple[Lane, ...]] = {}
        self.of_tools: list[tuple[Lane, ...]] = []  # where agents share all lanes
        self.holdbacks: dict[int, Holdback] = {}
        self.held = False
        self.slots = 0
        self.sent_ns = self.noticed_ns = 0  # of the last retry and the last refusal

    def path(self, tool: str, server: str, agent: str) -> tuple[Lane, ...]:
        """The lanes that a call passes, in order."""
        asked = (tool, server, agent)
        found = self.paths.get(asked)
        if found is None:
            lanes = []
            for key, rules in lanes_of(self.rules, tool, server, agent):
                lane = self.lanes.get(key)
                if lane is None:
                    lane = self.lanes[key] = self._lane(rules)
                lanes.append(lane)
            found = self.paths[asked] = tuple(lanes)
        return found

    def _lane(self, rules: Sequence[Rule]) -> Lane:
        limiters = [rule.make(self.share) for rule in rules]
        return Lane(self.clock, limiters[0] if len(limiters) == 1 else Together(limiters))
