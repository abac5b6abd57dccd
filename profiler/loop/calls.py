"""Tool calls while they happen: parsed, let through their gates, run, tried again, recorded.

Whatever goes wrong with a call becomes its error result; only a cancellation is raised.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from profiler.anatomy import Interval
from profiler.limits.gate import Gate, current_slot, exclusive_lane
from profiler.limits.refusals import (
    delay_ns,
    is_transient,
    retry_after_ns,
    returned_failure,
    signal_of,
)
from profiler.loop.eventloop import BLOCKING_NS, MOST_WAITS, NativeThreads, TimedCoroutine
from profiler.loop.lag import Stall, held_ns, late_ns
from profiler.loop.model import CallRequest, current_probe
from profiler.loop.nesting import Running, enter, leave
from profiler.loop.recorder import LiveCalls
from profiler.loop.tools import (
    Answer,
    CallContext,
    InvalidArguments,
    Tool,
    current_call,
    drained,
    failure_text,
    failure_type,
    finished,
    is_pending,
    result_text,
)
from profiler.records import Clock, RemoteCall, ToolAttempt, ToolCall, ToolStatus
from profiler.redaction import Content
from profiler.strategies import Strategy

_random = random.SystemRandom()  # in the children of a fork others than in the parent


class CallOwner(NamedTuple):
    """The loop that a call belongs to, as in `LoopRecord`."""

    agent: str
    number: int | None
    trial: int | None
    loop: Running


@dataclass(slots=True, eq=False)
class OpenCall:
    """One tool call while it happens. `task` is set when it starts before the model's reply is complete."""

    request: CallRequest
    ready_ns: int
    queued_ns: int
    owner: CallOwner
    started_ns: int | None = None
    thread_ns: int | None = None
    exclusive_wait_ns: int = 0
    steps: list[Interval] = field(default_factory=list)
    resumed: Sequence[int] = ()
    sending_ns: int = 0
    late_ns: int = 0
    ended_ns: int | None = None
    status: ToolStatus = "ok"
    error_type: str | None = None
    result: str | None = None
    tool: Tool | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    attempts: list[ToolAttempt] = field(default_factory=list)
    loops: list[str] = field(default_factory=list)
    remote: RemoteCall | None = None
    task: asyncio.Task[Any] | None = None

    def fail(self, status: ToolStatus, error_type: str, message: str) -> None:
        self.status = status
        self.error_type = error_type
        self.result = f"Error: {message}"

    def record(self, now_ns: int, content: Content | None, stalls: Sequence[Stall] = ()) -> ToolCall:
        """The call as it ended, with what `content` keeps of its arguments and its result."""
        ended_ns, started_ns = self.ended_ns, self.started_ns
        if ended_ns is None:
            # It never ran: refused before the strategy saw it, or cancelled while it waited.
            ended_ns = self.queued_ns
            if self.status == "ok":
                self.fail("cancelled", "cancelled", "cancelled")
                ended_ns = now_ns
        return ToolCall(
            id=self.request.id,
            name=self.request.name,
            ready_ns=self.ready_ns,
            queued_ns=self.queued_ns,
            started_ns=started_ns,
            ended_ns=ended_ns,
            status=self.status,
            error_type=self.error_type,
            thread_wait_ns=(
                0 if self.thread_ns is None or started_ns is None else self.thread_ns - started_ns
            ),
            blocking_ns=held_ns(self.steps, stalls, BLOCKING_NS) if self.steps else 0,
            arguments=None if content is None else content.keep(arguments_text(self.request.arguments)),
            result=None if content is None or self.result is None else content.keep(self.result),
            attempts=tuple(self.attempts),
            sending_ns=self.sending_ns,
            late_ns=self.late_ns,
            loops=tuple(self.loops),
            remote=self.remote,
        )


@dataclass(slots=True, eq=False)
class Executor:
    """Runs the calls of a `ToolLoop`, eager ones (started while the model streams) included."""

    tools: Mapping[str, Tool]
    strategy: Strategy
    threads: NativeThreads
    live: Mapping[str, LiveCalls]
    clock: Clock

    def parse(self, call: OpenCall) -> bool:
        """Find a call's tool and validate its arguments; False when the call failed with that already."""
        request = call.request
        tool = self.tools.get(request.name)
        if tool is None:
            known = ", ".join(self.tools)
            call.fail("error", "unknown_tool", f"there is no tool {request.name!r}; available: {known}")
        elif request.truncated:
            call.fail("error", "truncated", "the reply was cut off before this call was complete")
        else:
            try:
                call.arguments = tool.parse(request.arguments)
                call.tool = tool
                return True
            except InvalidArguments as error:
                call.fail("error", error.error_type, f"{error.error_type}: {error}")
        return False

    async def execute(self, calls: Sequence[OpenCall]) -> None:
        """Run parsed calls as the strategy says."""
        for call in calls:
            self.live[call.request.name].queued += 1
        try:
            await self.strategy.execute([partial(self._run, call) for call in calls])
        finally:
            for call in calls:
                self._count_unstarted(call)

    def _count_unstarted(self, call: OpenCall, _: object = None) -> None:
        """A call is over; one that never started is no longer queued either."""
        if call.started_ns is None:
            self.live[call.request.name].queued -= 1

    def start_early(self, early: list[OpenCall], owner: CallOwner, request: CallRequest) -> None:
        """Start a call whose arguments are complete while the model still streams, if it may run now."""
        tool = self.tools.get(request.name)
        if tool is None or not (tool.pure or self.strategy.eager == "all"):
            return
        now_ns = self.clock()
        call = OpenCall(request, now_ns, now_ns, owner)
        if not self.parse(call):
            return  # its error becomes a result when the reply is complete
        early.append(call)
        self.live[request.name].queued += 1
        context = copy_context()
        context.run(current_probe.set, None)  # a model request inside the tool is not the one that streams
        context.run(current_slot.set, None)  # nor is what a limiter learns of the tool about that request
        call.task = asyncio.create_task(self._run(call), context=context)
        call.task.add_done_callback(partial(self._count_unstarted, call))

    async def wait(self, early: Iterable[OpenCall]) -> None:
        """Wait until calls that started early have ended."""
        await asyncio.wait([call.task for call in early if call.task is not None])

    async def cancel(self, early: Iterable[OpenCall]) -> None:
        """Cancel calls that started early, and wait until they are gone."""
        pending = [call.task for call in early if call.task is not None and not call.task.done()]
        for task in pending:
            task.cancel()
        while pending := [task for task in pending if not task.done()]:  # a tool may refuse once or twice
            await asyncio.wait(pending)

    def _run(self, call: OpenCall) -> Coroutine[Any, Any, Any]:
        """Run one call to its result or error, every attempt of it through the gates."""
        tool = call.tool
        assert tool is not None
        if tool.exclusive is not None or tool.retries:
            return self._attempts(call, tool)
        gate = self.strategy.gate
        return self._attempt(call, tool) if gate is None else self._gated(call, tool, gate)

    async def _attempts(self, call: OpenCall, tool: Tool) -> None:
        gate = self.strategy.gate
        attempt = 0
        try:
            while True:
                attempt += 1
                error = await self._attempt_in_turn(call, tool)
                if error is None or attempt > tool.retries or not is_transient(error):
                    return
                asked_ns = retry_after_ns(error)
                if gate is None or asked_ns is None:
                    await asyncio.sleep(delay_ns(attempt, signal_of(error), asked_ns, _random) / 1e9)
                # Else the gate holds all calls of this tool, this one too, as long as the server asked.
        except asyncio.CancelledError:
            if call.started_ns is not None and call.status != "cancelled":
                call.fail("cancelled", "cancelled", "cancelled between two attempts")
                call.ended_ns = self.clock()
            raise

    async def _attempt_in_turn(self, call: OpenCall, tool: Tool) -> BaseException | None:
        """One attempt, inside the gate and the lane of its `exclusive` name; its failure, if any."""
        gate = self.strategy.gate
        lane = None if tool.exclusive is None else exclusive_lane(tool.exclusive)
        ticket = None
        if lane is not None:
            asked_ns = self.clock()
            ticket = await lane.enter()
            call.exclusive_wait_ns += self.clock() - asked_ns
        try:
            if gate is None:
                return await self._attempt(call, tool)
            return await self._gated(call, tool, gate)
        finally:
            if lane is not None:
                lane.leave(ticket)

    async def _gated(self, call: OpenCall, tool: Tool, gate: Gate) -> BaseException | None:
        async with gate.slot(tool.name, call.owner.agent, server=tool.server):
            return await self._attempt(call, tool)

    async def _attempt(self, call: OpenCall, tool: Tool) -> BaseException | None:
        clock, request, owner = self.clock, call.request, call.owner
        live = self.live[request.name]
        started_ns = clock()
        late_ns()  # a look at the start too, so that the one at the end knows of pauses between
        if call.started_ns is None:
            call.started_ns = started_ns
            live.queued -= 1
        elif call.status != "ok":
            call.status, call.error_type = "ok", None
        live.running += 1
        failure: BaseException | None = None
        answer = Answer()
        token = current_call.set(
            CallContext(request.id, request.name, owner.number, owner.trial, answer=answer)
        )
        place = enter(owner.loop, call.loops)
        deadline = None if tool.timeout is None else asyncio.timeout(tool.timeout)
        try:
            if deadline is None:
                value = await self._invoke(call, tool)
            else:
                async with deadline:
                    value = await self._invoke(call, tool)
            call.result = result_text(value)
            self._note_returned(call, value, answer)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                call.fail("cancelled", "cancelled", "cancelled")
                raise
            # Nobody cancelled this call: something inside the tool was cancelled, so the tool failed.
            call.fail("error", "CancelledError", "the tool was cancelled from inside")
            failure = error
            if (slot := current_slot.get()) is not None:
                slot.learn("unknown")
        except (Exception, SystemExit) as error:  # a tool that calls sys.exit() has failed
            failure = error
            if (slot := current_slot.get()) is not None:  # also one around the whole loop
                slot.failed(error)
            if deadline is not None and deadline.expired():
                call.fail("timeout", "timeout", f"timed out after {tool.timeout:g} s")
            else:
                call.fail("error", failure_type(error), failure_text(error))
        finally:
            current_call.reset(token)
            leave(place)
            live.running -= 1
            call.remote = answer.remote
            call.ended_ns = clock()
            if tool.retries:
                self._note_attempt(call, started_ns, failure)
        return failure

    def _note_returned(self, call: OpenCall, value: Any, answer: Answer) -> None:
        """A failure that the tool returned is one in the record; the model gets the result as it is."""
        returned = answer.or_of(returned_failure(value))
        if returned is None:
            return
        slot = current_slot.get()
        if slot is not None:
            slot.learn(returned.signal, returned.retry_after_ns)
        if returned.error_type is not None:
            call.status = "timeout" if returned.error_type == "timeout" else "error"
            call.error_type = returned.error_type

    def _note_attempt(self, call: OpenCall, started_ns: int, failure: BaseException | None) -> None:
        assert call.ended_ns is not None
        asked_ns = None if failure is None else retry_after_ns(failure)
        call.attempts.append(ToolAttempt(started_ns, call.ended_ns, call.status, call.error_type, asked_ns))

    async def _invoke(self, call: OpenCall, tool: Tool) -> Any:
        if tool.is_async:
            value = tool.function(**call.arguments)
        else:
            function = partial(drained, partial(tool.function, **call.arguments))
            value = await self.threads.run(function, partial(self._note_thread, call))
            if not is_pending(value):
                return value
        timed = TimedCoroutine(finished(value), self.clock)
        try:
            return await timed
        finally:
            if timed.steps:
                call.steps += timed.steps
            if timed.resumed:
                call.resumed = [*call.resumed, *timed.resumed][-MOST_WAITS:]
            if timed.waited:
                call.sending_ns += timed.sending_ns
                call.late_ns += late_ns()

    def _note_thread(self, call: OpenCall) -> None:
        call.thread_ns = self.clock()


def arguments_text(arguments: str | Mapping[str, Any]) -> str:
    """The arguments of a `CallRequest` as JSON text."""
    return arguments if isinstance(arguments, str) else result_text(arguments)
