"""Holds back the calls of a plain agent's tools, as the strategy under test says.

Such an agent runs its calls in its own way: on the event loop of the agents, in threads, or on an event loop
of its own in a thread. All of them wait for the same gate, which lives on the event loop of the agents.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
from collections.abc import Callable
from contextvars import Token
from typing import Any

from profiler.errors import RequestRefused, UsageError
from profiler.limits.gate import Gate, Slot, current_slot
from profiler.load.context import AgentCall, agent_call
from profiler.loop.eventloop import unpatched
from profiler.records import Clock
from profiler.strategies import Sequential
from profiler.watch.rounds import HandedOver, handed_over


def hold(tool: str, server: str = "") -> HeldBack | None:
    """The place that a call of this tool waits for, by the caller's loop; None where no strategy limits it.

    `server`: the name of the MCP server whose tool it is, if one's.

    For `Profiler.hold`, which asks for no call that runs inside another one: that one has the place.
    """
    call = agent_call.get()
    if call is None or call.over or call.context is None:
        return None
    strategy = call.context.strategy
    gate = strategy.gate
    if isinstance(strategy, Sequential):
        gate = call.turn = call.turn or Gate("semaphore:1")
    if gate is None:
        return None
    call.asked = True
    return HeldBack(call, gate, tool, call.context.profiler.recorder.clock, server)


class HeldBack:
    """A place in a gate for one call. Enter it by `async with`, or by `with` in a thread without event loop.

    Raises what ends the thread of a loop that is over.
    """

    def __init__(self, call: AgentCall, gate: Gate, tool: str, clock: Clock, server: str = "") -> None:
        self._call = call
        self._slot = gate.slot(tool, call.position.agent, server=server)
        self._clock = clock
        self._lock = unpatched(_thread, "allocate_lock")()
        self._entered = self._given_up = False
        self._tokens: tuple[Token[Slot | None], Token[HandedOver | None]] | None = None

    async def __aenter__(self) -> None:
        at_ns = self._clock()
        here = asyncio.get_running_loop()
        if here is self._call.loop:
            await self._slot.gate.enter(self._slot)
            self._entered = True
        else:
            entered: asyncio.Future[None] = here.create_future()

            def settle() -> None:
                if not entered.done():
                    entered.set_result(None)

            def told() -> None:
                with contextlib.suppress(RuntimeError):  # the agent's own loop is closed by now
                    here.call_soon_threadsafe(settle)

            try:
                self._ask(told)
                await entered
            except BaseException:
                self._give_up()
                raise
        self._released(at_ns)

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._left(error)

    def __enter__(self) -> None:
        at_ns = self._clock()
        entered = unpatched(_thread, "allocate_lock")()
        entered.acquire()
        try:
            self._ask(entered.release)
            entered.acquire()
        except BaseException:
            self._give_up()
            raise
        self._released(at_ns)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._left(error)

    def _ask(self, told: Callable[[], object]) -> None:
        """Have a place taken on the gate's event loop; `told` is called when it is, or never will be."""

        async def enter() -> None:
            await self._slot.gate.enter(self._slot)
            with self._lock:
                self._entered = True
                given_up = self._given_up
            if given_up:
                self._slot.gate.leave(self._slot)

        loop, waits = self._call.loop, self._call.waits
        assert loop is not None

        def done(task: asyncio.Task[None]) -> None:
            # Not in `enter` itself: a task that is cancelled before its first step runs none of its code.
            waits.discard(task)
            told()

        def begin() -> None:
            if self._call.over:  # nobody would cancel it any more
                told()
                return
            task = loop.create_task(enter())
            waits.add(task)
            task.add_done_callback(done)

        try:
            loop.call_soon_threadsafe(begin)
        except RuntimeError as error:  # the event loop of the agents is closed
            raise RequestRefused(UsageError("the loop was ended")) from error

    def _give_up(self) -> None:
        """Nobody waits for the place any more."""
        with self._lock:
            self._given_up = True
            entered = self._entered
        if entered:
            self._leave()

    def _released(self, at_ns: int) -> None:
        if self._call.over or not self._entered:
            self._give_up()
            raise RequestRefused(UsageError("the loop was ended"))
        limit = None if self._call.context is None else self._call.context.strategy.limit
        self._tokens = (
            current_slot.set(self._slot),
            handed_over.set(HandedOver(at_ns, self._clock(), limit)),
        )

    def _left(self, error: BaseException | None) -> None:
        if error is not None:
            self._slot.failed(error)
        elif self._slot.cut_short:
            # A call inside was cancelled, but not the pass: its caller's own timeout ended it.
            self._slot.learn("timeout")
        if self._tokens is not None:
            slot, handed = self._tokens
            with contextlib.suppress(ValueError):  # left in another context than the one it was entered in
                handed_over.reset(handed)
                current_slot.reset(slot)
        self._leave()

    def _leave(self) -> None:
        gate, slot, loop = self._slot.gate, self._slot, self._call.loop
        if asyncio._get_running_loop() is loop:
            gate.leave(slot)
        elif loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed: nobody waits there
                loop.call_soon_threadsafe(gate.leave, slot)
