"""Tool calls, however they arrive: their places on the tape, their durations, their turns at the tool.

The wires (`tool_service` for plain HTTP, `mcp_service` for MCP) read requests and write answers; what a call
meets is decided here, so that both measure the same.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

from profiler.emulator.draws import Place
from profiler.emulator.journal import Entry, Journal
from profiler.emulator.limits import Rejected, ToolCapacity
from profiler.emulator.model_service import UNMATCHED
from profiler.emulator.places import Outstanding, Places
from profiler.emulator.scheduler import Scheduler, Timer
from profiler.emulator.tape import Tape
from profiler.scenarios import Capacity, Fault, FaultKind, ToolSpec


class Identity(NamedTuple):
    """The call that a request belongs to, as its client says; None for what it does not say."""

    call_id: str | None = None
    loop: int | None = None
    trial: str | None = None


class Served(Protocol):
    """A request at a tool, as its wire has it."""

    @property
    def entry(self) -> Entry: ...

    def answer(self, due_ns: int) -> None:
        """The tool's work ends at `due_ns`, now or later: send what it says then."""

    def refuse(self, rejected: Rejected) -> None:
        """The tool does not take the call; the client is told when it is due (`entry.due_ns`)."""


class ToolCalls:
    """The calls of all tools, of one emulator."""

    def __init__(
        self, tape: Tape, journal: Journal, outstanding: Outstanding, places: Places, scheduler: Scheduler
    ) -> None:
        self.tape = tape
        self.scenario = tape.scenario
        self.journal = journal
        self.scheduler = scheduler
        self._outstanding = outstanding
        self._places = places
        self._shares_ids = any(fault.kind == "duplicate_ids" for fault in tape.scenario.faults)
        self._in_flight: dict[str, int] = {}  # by name; only names with calls in flight, so it stays small
        self._queues: dict[str, _Queue] = {}  # by tool
        self._of_servers: dict[str, _Queue] = {}
        self._unmatched = 0
        self._started_ns = time.monotonic_ns()

    def arrive(
        self, api: str, name: str, arguments: dict[str, Any], received_ns: int, identity: Identity
    ) -> Entry:
        """The journal's entry of a call that has arrived, with its place, and how long it takes."""
        entry = self.journal.open("tool", api, received_ns)
        entry.tool = name
        entry.trial = identity.trial
        place = self._place(identity, name, arguments, entry)
        entry.loop, entry.round, entry.call = place
        entry.duration_ns = duration_ns = int(self.tape.duration(place, name) * 1e9)
        entry.due_ns = received_ns + duration_ns
        entry.in_flight = in_flight = self._in_flight.get(name, 0)
        self._in_flight[name] = in_flight + 1
        entry.on_finished = partial(self._left, name)
        return entry

    def fault(self, entry: Entry, *kinds: FaultKind) -> Fault | None:
        """The fault among `kinds` that this call meets, if any."""
        if not self.scenario.faults:
            return None
        place = Place(entry.loop or 0, entry.round or 0, entry.call or 0)
        return self.tape.call_fault(place, entry.tool or "", *kinds)

    def listing_fault(self, number: int) -> Fault | None:
        """The fault that listing number `number` meets, if any; its place is that of a loop."""
        return self.tape.call_fault(Place(number, 0, 0), "", "mcp_endless_listing")

    def serve(self, spec: ToolSpec, name: str, served: Served) -> Callable[[], None] | None:
        """Have the tool serve a call, or refuse it; `served` is told, now or later.

        Returns what to call when the client has gone before that: None where nothing waits for its turn.
        """
        capacity = spec.capacity
        if spec.server is not None:
            # Names of tools come from clients, and could be that of a server: it has a dictionary of its own.
            return self._queue(self._of_servers, spec.server, self.scenario.servers[spec.server]).arrive(
                served
            )
        if capacity is None:
            served.answer(served.entry.due_ns)
            return None
        return self._queue(self._queues, name, capacity).arrive(served)

    def _left(self, name: str) -> None:
        self._in_flight[name] -= 1
        if not self._in_flight[name]:
            del self._in_flight[name]

    def _queue(self, queues: dict[str, _Queue], name: str, capacity: Capacity) -> _Queue:
        queue = queues.get(name)
        if queue is None:
            if len(queues) > 1000:  # any name is a tool: a client could invent them without end
                raise RuntimeError("more than a thousand tools with a capacity")
            state = ToolCapacity(capacity, self.scenario.time_scale, self._started_ns)
            refusal_ns = int(capacity.refusal_seconds * self.scenario.time_scale * 1e9)
            queue = queues[name] = _Queue(state, self.scheduler, refusal_ns)
        return queue

    def _place(self, identity: Identity, name: str, arguments: Mapping[str, Any], entry: Entry) -> Place:
        """The call's place: from its id, or by matching; a request that belongs to no call gets its own."""
        call_id = identity.call_id
        if call_id is not None:
            entry.call_id = call_id
            place = self._places.find(call_id)
            if place is not None and not self._shares_ids:
                return place
            # An id that several calls have, or that the client made up since there was none.
            handed = self._outstanding.take(name, arguments, "" if place is None else call_id)
            if handed is not None:
                return handed.place
            if place is not None:
                return place
        else:
            handed = self._outstanding.take(name, arguments)
            if handed is not None:
                entry.call_id = handed.call_id
                return handed.place
        if identity.loop is not None:
            # A call that no model asked for, in a loop that the client counts: the same one next time, in
            # whatever order they arrive.
            return Place(identity.loop, 0, zlib.crc32((call_id or "").encode()) & 0xFFF)
        self._unmatched += 1
        return Place(UNMATCHED + self._unmatched, 0, 0)


class _Queue:
    """The requests at a tool of limited capacity, waiting or served; one timer, for the next to end."""

    def __init__(self, state: ToolCapacity, scheduler: Scheduler, refusal_ns: int) -> None:
        self._state = state
        self._refusal_ns = refusal_ns
        self._scheduler = scheduler
        self._serial = 0
        self._waiting: dict[int, Served] = {}
        self._timer: Timer | None = None

    def arrive(self, served: Served) -> Callable[[], None] | None:
        """Serve, queue or reject one request; it is answered when its work is done."""
        entry = served.entry
        now_ns = entry.received_ns
        self._end(self._state.advance(now_ns))
        self._serial = serial = self._serial + 1
        rejected = self._state.arrive(serial, entry.due_ns - now_ns, now_ns)
        if rejected is not None:
            entry.status = rejected.status
            entry.due_ns = now_ns + self._refusal_ns
            entry.fault = None  # a call that was not served met none
            served.refuse(rejected)
            return None
        self._waiting[serial] = served
        self._arm()
        return partial(self._leave, serial)

    def _leave(self, serial: int) -> None:
        if self._waiting.pop(serial, None) is not None:
            self._end(self._state.advance(time.monotonic_ns()))
            self._state.leave(serial)
            self._arm()

    def _tick(self) -> None:
        self._timer = None
        self._end(self._state.advance(time.monotonic_ns()))
        self._arm()

    def _end(self, ended: list[tuple[int, int]]) -> None:
        for serial, when_ns in ended:
            served = self._waiting.pop(serial, None)
            if served is not None:
                served.entry.due_ns = when_ns
                served.answer(when_ns)

    def _arm(self) -> None:
        due_ns = self._state.next_ns()
        if self._timer is not None:
            if due_ns is not None and self._timer.due_ns <= due_ns:
                return  # fires early, looks again
            self._timer.cancel()
            self._timer = None
        if due_ns is not None:
            self._timer = self._scheduler.at(due_ns, self._tick)
