"""The asyncio gate that drives limiters: first come, first served, safe under cancellation.

It is of use on its own, in an application:

    gate = Gate("semaphore:48")
    async with gate.slot("get_weather"):
        ...
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from profiler.limits import (
    ONE,
    UNTIL_RELEASE,
    Cost,
    FixedLimit,
    Holdback,
    Limiter,
    Outcome,
    RateLimit,
    Ticket,
    Together,
)
from profiler.limits.refusals import outcome_of, retry_after_ns, stated
from profiler.limits.spec import Rule, parse_rules

Clock = Callable[[], int]
"""Monotonic nanoseconds."""

NOTHING: Cost = {}


class Lane:
    """One queue in front of one limiter. Belongs to one event loop.

    Waiters are let in in the order they came. Cancelling one at any await gives back whatever it
    had been granted.
    """

    __slots__ = ("__weakref__", "_clock", "_queue", "_timer", "limiter", "waiting")

    def __init__(self, limiter: Limiter, clock: Clock = time.monotonic_ns) -> None:
        self.limiter = limiter
        self.waiting = 0
        """Calls that wait now."""
        self._clock = clock
        # Those that gave up stay in it until they are passed.
        self._queue: deque[tuple[asyncio.Future[Ticket], Cost]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def enter(self, cost: Cost = ONE) -> Ticket:
        """Wait for the turn, and take it. What is returned goes to `leave`."""
        if not self.waiting:
            now_ns = self._clock()
            if self.limiter.wait_ns(now_ns, cost) == 0:
                return self.limiter.enter(now_ns, cost)
        waiter: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()
        self._queue.append((waiter, cost))
        self.waiting += 1
        if self.waiting == 1:
            self._admit()
        try:
            return await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled():
                # Granted and cancelled in the same tick: the place goes to the next.
                self.leave(waiter.result(), "unknown", NOTHING)
            else:
                waiter.cancel()
                self.waiting -= 1
                if len(self._queue) > 2 * self.waiting:
                    self._queue = deque(left for left in self._queue if not left[0].done())
                self._admit()
            raise

    def leave(self, ticket: Ticket, outcome: Outcome = "ok", used: Cost | None = None) -> None:
        """Give the place back."""
        now_ns = self._clock()
        self.limiter.leave(now_ns, ticket, outcome, used)
        if self.waiting:
            self._let_in(now_ns)

    def _admit(self) -> None:
        self._let_in(self._clock())

    def _let_in(self, now_ns: int) -> None:
        """Whoever may enter now, in order."""
        queue, limiter = self._queue, self.limiter
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while queue:
            waiter, cost = queue[0]
            if waiter.done():
                queue.popleft()
                continue
            wait_ns = limiter.wait_ns(now_ns, cost)
            if wait_ns:
                if wait_ns < UNTIL_RELEASE:
                    loop = asyncio.get_running_loop()
                    self._timer = loop.call_later(wait_ns / 1e9, self._admit)
                return
            queue.popleft()
            self.waiting -= 1
            waiter.set_result(limiter.enter(now_ns, cost))


class Slot:
    """A call's way through a gate: `async with gate.slot("search") as slot:`.

    Inside, say how it went, unless an exception does. `used`: what it took in truth, such as
    `{"requests": 1, "tokens": 812}`.
    """

    __slots__ = ("_gate", "agent", "cost", "lanes", "outcome", "retry_after_ns", "tickets", "tool", "used")

    def __init__(self, gate: Gate, tool: str, agent: str, cost: Cost) -> None:
        self._gate = gate
        self.tool = tool
        self.agent = agent
        self.cost = cost
        self.lanes: Sequence[Lane] = ()
        self.tickets: list[Ticket] = []
        self.outcome: Outcome = "ok"
        self.used: Cost | None = None
        self.retry_after_ns: int | None = None

    def rejected(self, retry_after: float | None = None) -> None:
        """The server refused the call for its load, and asked for a wait of so many seconds."""
        self.outcome = "rejected"
        self.retry_after_ns = None if retry_after is None else int(retry_after * 1e9)

    def failed(self, error: BaseException) -> None:
        """The call raised this."""
        self.outcome = outcome_of(error)
        if self.outcome == "rejected":
            self.retry_after_ns = retry_after_ns(error)

    def __aenter__(self) -> Coroutine[Any, Any, Slot]:
        return self._gate.enter(self)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.failed(error)
        self._gate.leave(self)


class _Place:
    """The lanes of one event loop."""

    def __init__(self) -> None:
        self.process: Lane | None = None
        self.of_tools: dict[str, Lane] = {}
        # An agent's lane lives as long as someone is inside or waits; an idle one holds no state.
        self.of_agents: WeakValueDictionary[str, Lane] = WeakValueDictionary()
        self.paths: dict[str, tuple[Lane, ...]] = {}
        self.holdbacks: dict[str, Holdback] = {}


class Gate:
    """What a call has to pass: the limiters of a spec, one queue for each scope they have.

    `rules`: a spec such as `semaphore:48`, `rate:20/s`, `adaptive`, several joined by `+`, or the
    rules themselves. Limiters of one scope are taken together, all or none; a call first takes its
    place among its agent's, then its tool's, then the process's. When a server asked for a wait
    (Retry-After), calls of the same tool wait that long and a random while more.

    `share`: how many processes share the limits; each takes its part. Usable from any number of
    event loops, each of which has limiters of its own.
    """

    def __init__(
        self,
        rules: str | Sequence[Rule],
        *,
        share: int = 1,
        clock: Clock = time.monotonic_ns,
        seed: int | None = None,
    ) -> None:
        self.rules = parse_rules(rules) if isinstance(rules, str) else tuple(rules)
        self.share = share
        self._clock = clock
        self._random = random.Random(seed)
        self._places: WeakKeyDictionary[asyncio.AbstractEventLoop, _Place] = WeakKeyDictionary()
        self._last: tuple[asyncio.AbstractEventLoop, _Place] | None = None
        self._by_agent = any(rule.scope == "agent" for rule in self.rules)
        self.adapts = any(rule.adapts for rule in self.rules)
        """Whether its limit moves."""
        limits = [(rule.adapts, rule.make(share).limit) for rule in self.rules]
        self._fixed = min((n for adapts, n in limits if n is not None and not adapts), default=None)
        self._first = min((n for adapts, n in limits if n is not None and adapts), default=None)

    @property
    def limit(self) -> int | None:
        """Calls that may be inside at once now, by the narrowest rule; None without such a rule."""
        if not self.adapts:
            return self._fixed
        lane = next((place.process for place in list(self._places.values()) if place.process), None)
        now = self._first if lane is None else lane.limiter.limit
        return min((limit for limit in (now, self._fixed) if limit is not None), default=None)

    @property
    def waiting(self) -> int:
        """Calls of the running event loop that wait now."""
        place = self._place()
        lanes = [place.process, *place.of_tools.values(), *place.of_agents.values()]
        return sum(lane.waiting for lane in lanes if lane is not None)

    def limiters(self, tool: str = "") -> tuple[Limiter, ...]:
        """The limiters that a call of this tool shares with other agents, on the running event loop."""
        return tuple(lane.limiter for lane in self._shared(self._place(), tool))

    def heed(self, tool: str, headers: Mapping[str, str]) -> None:
        """Lower what is allowed to what a response's rate-limit headers say is left, never raise it."""
        figures: dict[str, dict[str, float]] = {}
        for word, resource, value in stated(headers):
            figures.setdefault(resource, {})[word] = value
        for limiter in self.limiters(tool):
            for one in limiter.limiters if isinstance(limiter, Together) else (limiter,):
                said = figures.get(one.resource) if isinstance(one, RateLimit) else None
                if said and isinstance(one, RateLimit):
                    limit = said.get("limit")
                    rate = None if limit is None else limit / 60
                    one.lower(self._clock(), said.get("remaining", -1.0), rate)

    def slot(self, tool: str = "", agent: str = "", cost: Cost = ONE) -> Slot:
        """`async with gate.slot("search") as slot:` around one call.

        What it raises (429, Retry-After, a timeout) is heeded, and goes on.
        """
        return Slot(self, tool, agent, cost)

    async def enter(self, slot: Slot) -> Slot:
        """Wait for the slot's turn; `leave` must follow. `async with slot` does both."""
        place = self._place()
        tool = slot.tool
        lanes = place.paths.get(tool)
        if lanes is None:
            lanes = self._shared(place, tool)
        if self._by_agent:
            lanes = (*self._of_agent(place, slot.agent), *lanes)
        slot.lanes = lanes
        while True:
            if place.holdbacks:
                await self._hold(place, tool)
            tickets = slot.tickets = []
            try:
                for lane in lanes:
                    tickets.append(await lane.enter(slot.cost))  # noqa: PERF401 (who is cancelled has some)
            except BaseException:
                self._give_up(slot)
                raise
            if not place.holdbacks:
                return slot
            holdback = place.holdbacks.get(tool)
            if holdback is None or not holdback.is_closed(self._clock()):
                return slot
            self._give_up(slot)  # refused while we waited in line

    def leave(self, slot: Slot) -> None:
        """The call has ended, as the slot says."""
        if slot.retry_after_ns is not None:
            holdbacks = self._place().holdbacks
            holdback = holdbacks.get(slot.tool)
            if holdback is None:
                holdback = holdbacks[slot.tool] = Holdback(self._random)
            holdback.refused(self._clock(), slot.retry_after_ns)
        outcome, used = slot.outcome, slot.used
        for lane, ticket in zip(slot.lanes, slot.tickets, strict=True):
            lane.leave(ticket, outcome, used)

    def _give_up(self, slot: Slot) -> None:
        for lane, ticket in zip(slot.lanes, slot.tickets, strict=False):
            lane.leave(ticket, "unknown", NOTHING)

    async def _hold(self, place: _Place, tool: str) -> None:
        holdback = place.holdbacks.get(tool)
        if holdback is None:
            return
        wait_ns = holdback.wait_ns(self._clock())
        while wait_ns:
            await asyncio.sleep(wait_ns / 1e9)
            now_ns = self._clock()
            wait_ns = holdback.wait_ns(now_ns) if holdback.is_closed(now_ns) else 0

    def _place(self) -> _Place:
        loop = asyncio.get_running_loop()
        last = self._last
        if last is not None and last[0] is loop:
            return last[1]
        place = self._places.get(loop)
        if place is None:
            place = self._places[loop] = _Place()
        self._last = (loop, place)
        return place

    def _shared(self, place: _Place, tool: str) -> tuple[Lane, ...]:
        path = place.paths.get(tool)
        if path is None:
            lanes = []
            by_tool = [rule for rule in self.rules if rule.scope == "tool" and rule.tool in (None, tool)]
            if by_tool:
                lanes.append(place.of_tools.setdefault(tool, self._lane(by_tool)))
            process = [rule for rule in self.rules if rule.scope == "process"]
            if process:
                place.process = place.process or self._lane(process)
                lanes.append(place.process)
            path = place.paths[tool] = tuple(lanes)
        return path

    def _of_agent(self, place: _Place, agent: str) -> tuple[Lane, ...]:
        lane = place.of_agents.get(agent)
        if lane is None:
            lane = self._lane([rule for rule in self.rules if rule.scope == "agent"])
            place.of_agents[agent] = lane
        return (lane,)

    def _lane(self, rules: Sequence[Rule]) -> Lane:
        limiters = [rule.make(self.share) for rule in rules]
        return Lane(limiters[0] if len(limiters) == 1 else Together(limiters), self._clock)


_exclusive: WeakValueDictionary[tuple[int, str], Lane] = WeakValueDictionary()


def exclusive_lane(name: str) -> Lane:
    """The lane of tools that must not overlap (`@tool(exclusive=name)`), one in each event loop."""
    key = (id(asyncio.get_running_loop()), name)
    lane = _exclusive.get(key)
    if lane is None:
        lane = _exclusive[key] = Lane(FixedLimit(1))
    return lane
