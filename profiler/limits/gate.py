"""The asyncio gate that drives limiters: first come, first served, safe under cancellation.

It can be used on its own, in an application:

    gate = Gate("semaphore:48")
    async with gate.slot("get_weather"):
        ...
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from types import TracebackType
from weakref import WeakKeyDictionary, WeakValueDictionary

from profiler.limits.limiter import (
    ONE,
    UNTIL_RELEASE,
    Cost,
    FixedLimit,
    Limiter,
    RateLimit,
    Signal,
    Ticket,
    Together,
)
from profiler.limits.quotas import stated
from profiler.limits.refusals import Holdback, retry_after_ns, signal_of
from profiler.limits.spec import PROCESS, LaneKey, Rule, lanes_of, parse_rules
from profiler.process.lifetime import in_forked_child
from profiler.records import Clock

NOTHING: Cost = {}
"""The cost of a call that never ran."""


class Lane:
    """One queue in front of one limiter, on one event loop.

    Calls enter in the order they came. A call that is cancelled, at whatever await, gives back the place
    it had been granted.
    """

    __slots__ = ("__weakref__", "_clock", "_queue", "_timer", "limiter", "waiting")

    def __init__(self, limiter: Limiter, clock: Clock = time.monotonic_ns) -> None:
        self.limiter = limiter
        self.waiting = 0  # calls; those that gave up stay in the queue until they are passed
        self._clock = clock
        self._queue: deque[tuple[asyncio.Future[Ticket], Cost]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def enter(self, cost: Cost = ONE) -> Ticket:
        """Wait for a turn and take it. The ticket goes to `leave`."""
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
                # Granted and cancelled in the same step of the event loop: the place goes to the next.
                self.leave(waiter.result(), "unknown", NOTHING)
            else:
                waiter.cancel()
                self.waiting -= 1
                if len(self._queue) > 2 * self.waiting:
                    self._queue = deque(left for left in self._queue if not left[0].done())
                self._admit()
            raise

    def leave(self, ticket: Ticket, signal: Signal = "ok", used: Cost | None = None) -> None:
        """Give the place back."""
        now_ns = self._clock()
        self.limiter.leave(now_ns, ticket, signal, used)
        if self.waiting:
            self._let_in(now_ns)

    def _admit(self) -> None:
        self._let_in(self._clock())

    def _let_in(self, now_ns: int) -> None:
        """Let in those who may enter now, in order; sets a timer when the next one is a matter of time."""
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


_TELLING: dict[Signal, int] = {"ok": 0, "unknown": 1, "timeout": 2, "rejected": 3}
"""When calls in one slot ended differently, the signal with the highest number counts."""


@dataclass(slots=True, eq=False)
class Slot:
    """One call's pass through a gate: `async with gate.slot("search") as slot:`.

    An exception that leaves the block says how the call went, and so does whatever is observed of calls
    inside it (`profiler.watch`), also where the application turns a failure into a result before it
    leaves. Otherwise set `signal`, or call `rejected`. `used`: what the call really took, such as
    `{"requests": 1, "tokens": 812}`.
    """

    gate: Gate
    tool: str
    agent: str
    cost: Cost
    lanes: Sequence[Lane] = ()
    tickets: Sequence[Ticket] = ()
    signal: Signal = "ok"
    used: Cost | None = None
    retry_after_ns: int | None = None
    cut_short: bool = False
    server: str = ""
    _token: Token[Slot | None] | None = None

    def rejected(self, retry_after: float | None = None) -> None:
        """The server refused the call because of its load, and asked for a wait of so many seconds."""
        self.signal = "rejected"
        self.retry_after_ns = None if retry_after is None else int(retry_after * 1e9)

    def failed(self, error: BaseException) -> None:
        """The call raised this exception, or one inside it did."""
        signal = signal_of(error)
        self.learn(signal, retry_after_ns(error) if signal == "rejected" else None)
        self.cut_short |= isinstance(error, asyncio.CancelledError)

    def learn(self, signal: Signal, retry_after_ns: int | None = None) -> None:
        """A call inside ended so. May be called for each of several, from any thread."""
        if _TELLING[signal] > _TELLING[self.signal]:
            self.signal = signal
        if retry_after_ns is not None:
            self.retry_after_ns = max(retry_after_ns, self.retry_after_ns or 0)

    async def __aenter__(self) -> Slot:
        await self.gate.enter(self)
        self._token = current_slot.set(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.failed(error)
        elif self.cut_short:
            # A call inside was cancelled, but not the pass: its caller's own timeout ended it.
            self.learn("timeout")
        try:
            if self._token is not None:
                current_slot.reset(self._token)
        except ValueError:
            pass  # left in another context than the one it was entered in, as async generators may
        self.gate.leave(self)


current_slot: ContextVar[Slot | None] = ContextVar("toolloop_slot", default=None)
"""The innermost slot that the running code is in; its tasks and threads have it too."""


@dataclass(slots=True, eq=False)
class _LoopLanes:
    """The lanes of a gate on one event loop; `paths`: by tool and server, those that agents share."""

    shared: dict[LaneKey, Lane] = field(default_factory=dict)
    # An agent's lane lives as long as a call is inside or waits; an idle one holds no state.
    of_agents: WeakValueDictionary[str, Lane] = field(default_factory=WeakValueDictionary)
    paths: dict[tuple[str, str], tuple[Lane, ...]] = field(default_factory=dict)
    holdbacks: dict[str, Holdback] = field(default_factory=dict)


class Gate:
    """The limiters of a spec, with one queue for each scope among them.

    `rules`: a spec such as `semaphore:48`, `rate:20/s`, `adaptive`, several joined by `+`, or the
    rules themselves. Limiters of one scope are entered together, all or none; a call queues for those
    of its agent first, then its tool's, its MCP server's, the process's. When a server asked for a wait
    (Retry-After), calls of the same tool wait that long and a random while more.

    `share`: how many processes share the limits; each takes its part. A gate may be used from any
    number of event loops, each of which has limiters of its own.
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
        # Not one of its own unless asked for: the children of a fork would all wait for equally long.
        self._random = random.SystemRandom() if seed is None else random.Random(seed)
        self._by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopLanes] = WeakKeyDictionary()
        self._latest: tuple[asyncio.AbstractEventLoop, _LoopLanes] | None = None
        self._by_agent = [rule for rule in self.rules if rule.scope == "agent"]
        self.adapts = any(rule.adapts for rule in self.rules)  # then `limit` changes
        limits = [(rule.adapts, rule.make(share).limit) for rule in self.rules]
        self._fixed = min((n for adapts, n in limits if n is not None and not adapts), default=None)
        self._first = min((n for adapts, n in limits if n is not None and adapts), default=None)
        in_forked_child(self._renew)

    def _renew(self) -> None:
        """In a forked child: the calls that are inside, or wait, are the parent's."""
        self._by_loop = WeakKeyDictionary()
        self._latest = None

    @property
    def limit(self) -> int | None:
        """How many calls may be inside at once now, by the narrowest rule; None without such a rule."""
        if not self.adapts:
            return self._fixed
        found = (one.shared.get(PROCESS) for one in list(self._by_loop.values()))
        lane = next((one for one in found if one is not None), None)
        now = self._first if lane is None else lane.limiter.limit
        return min((limit for limit in (now, self._fixed) if limit is not None), default=None)

    @property
    def waiting(self) -> int:
        """How many calls of the running event loop wait now."""
        here = self._lanes_here()
        return sum(lane.waiting for lane in (*here.shared.values(), *here.of_agents.values()))

    def limiters(self, tool: str = "", server: str = "") -> tuple[Limiter, ...]:
        """The limiters that a call of this tool shares with other agents, on the running event loop."""
        return tuple(lane.limiter for lane in self._shared(self._lanes_here(), tool, server))

    def heed(self, tool: str, headers: Mapping[str, str]) -> None:
        """Lower the rates to the quotas that a response's headers state, and to what is left of them.

        They are never raised. Of processes that share the limits each takes its part.
        """
        quotas = stated(headers, time.time())
        for limiter in self.limiters(tool) if quotas else ():
            for one in limiter.limiters if isinstance(limiter, Together) else (limiter,):
                if isinstance(one, RateLimit):
                    for quota in quotas:
                        if quota.resource == one.resource:
                            rate = quota.lowers(one.rate * self.share)
                            left = -1.0 if quota.remaining is None else quota.remaining / self.share
                            one.lower(self._clock(), left, None if rate is None else rate / self.share)

    def slot(self, tool: str = "", agent: str = "", cost: Cost = ONE, server: str = "") -> Slot:
        """`async with gate.slot("search") as slot:` around one call. `server`: the MCP server's name, if any.

        An exception of the call (429, with or without Retry-After, or a timeout) is learned from and
        passed on.
        """
        return Slot(self, tool, agent, cost, server=server)

    async def enter(self, slot: Slot) -> Slot:
        """Wait for the slot's turn; `leave` must follow. `async with slot` does both."""
        here = self._lanes_here()
        tool = slot.tool
        lanes = here.paths.get((tool, slot.server))
        if lanes is None:
            lanes = self._shared(here, tool, slot.server)
        if self._by_agent:
            lanes = (self._agent_lane(here, slot.agent), *lanes)
        slot.lanes = lanes
        while True:
            if here.holdbacks:
                await self._hold(here, tool)
            slot.tickets = tickets = []
            try:
                for lane in lanes:
                    tickets.append(await lane.enter(slot.cost))  # noqa: PERF401 (on a cancellation some are in)
            except BaseException:
                self._give_up(slot)
                raise
            if not here.holdbacks:
                return slot
            holdback = here.holdbacks.get(tool)
            if holdback is None or not holdback.is_closed(self._clock()):
                return slot
            self._give_up(slot)  # the server asked for a wait while this call stood in the queue

    def leave(self, slot: Slot) -> None:
        """The call has ended, in the way that the slot says."""
        if slot.retry_after_ns is not None:
            holdbacks = self._lanes_here().holdbacks
            holdback = holdbacks.get(slot.tool)
            if holdback is None:
                holdback = holdbacks[slot.tool] = Holdback(self._random)
            holdback.refused(self._clock(), slot.retry_after_ns)
        signal, used = slot.signal, slot.used
        for lane, ticket in zip(slot.lanes, slot.tickets, strict=True):
            lane.leave(ticket, signal, used)

    def _give_up(self, slot: Slot) -> None:
        for lane, ticket in zip(slot.lanes, slot.tickets, strict=False):
            lane.leave(ticket, "unknown", NOTHING)

    async def _hold(self, here: _LoopLanes, tool: str) -> None:
        holdback = here.holdbacks.get(tool)
        if holdback is None:
            return
        wait_ns = holdback.wait_ns(self._clock())
        while wait_ns:
            await asyncio.sleep(wait_ns / 1e9)
            now_ns = self._clock()
            # Only a new refusal means waiting again: the random part has been waited already.
            wait_ns = holdback.wait_ns(now_ns) if holdback.is_closed(now_ns) else 0

    def _lanes_here(self) -> _LoopLanes:
        loop = asyncio.get_running_loop()
        latest = self._latest  # nearly always the same loop, and looking up a weak key takes longer
        if latest is not None and latest[0] is loop:
            return latest[1]
        here = self._by_loop.setdefault(loop, _LoopLanes())
        self._latest = (loop, here)
        return here

    def _shared(self, here: _LoopLanes, tool: str, server: str) -> tuple[Lane, ...]:
        path = here.paths.get((tool, server))
        if path is None:
            lanes = []
            for key, rules in lanes_of(self.rules, tool, server):
                if key[0] != "agent":
                    lane = here.shared.get(key)
                    if lane is None:
                        lane = here.shared[key] = self._lane(rules)
                    lanes.append(lane)
            path = here.paths[tool, server] = tuple(lanes)
        return path

    def _agent_lane(self, here: _LoopLanes, agent: str) -> Lane:
        lane = here.of_agents.get(agent)
        if lane is None:
            lane = here.of_agents[agent] = self._lane(self._by_agent)
        return lane

    def _lane(self, rules: Sequence[Rule]) -> Lane:
        limiters = [rule.make(self.share) for rule in rules]
        return Lane(limiters[0] if len(limiters) == 1 else Together(limiters), self._clock)


_exclusive: WeakValueDictionary[tuple[int, str], Lane] = WeakValueDictionary()


in_forked_child(lambda: _exclusive.clear())  # noqa: PLW0108 (a method's object would have to be hashable)


def exclusive_lane(name: str) -> Lane:
    """The lane of tools that must not overlap (`@tool(exclusive=name)`), one in each event loop."""
    key = (id(asyncio.get_running_loop()), name)
    lane = _exclusive.get(key)
    if lane is None:
        lane = _exclusive[key] = Lane(FixedLimit(1))
    return lane
