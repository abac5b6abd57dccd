"""Tool calls while they happen: parsed, let through their gates, run, tried again, recorded.

Whatever goes wrong with a call becomes its error result; only a cancellation gets out.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextvars import copy_context
from functools import partial
from typing import Any, NamedTuple

from profiler.limits.gate import Gate, exclusive_lane
from profiler.limits.refusals import delay_ns, is_transient, outcome_of, retry_after_ns
from profiler.loop.eventloop import NativeThreads, Steps
from profiler.loop.model import CallRequest, current_probe
from profiler.loop.recorder import Clock, LiveCalls
from profiler.loop.tools import (
    CallContext,
    InvalidArguments,
    Tool,
    Toolbox,
    current_call,
    failure_text,
    failure_type,
    result_text,
)
from profiler.records import ToolAttempt, ToolCall, ToolStatus
from profiler.redaction import Content
from profiler.strategies import Strategy

_random = random.Random()


class CallOwner(NamedTuple):
    """Whose call it is: the fields of `LoopRecord`."""

    agent: str
    number: int | None
    trial: int | None


class Call:
    """One tool call while it happens. `task` is set when it runs before the model's reply is complete."""

    __slots__ = (
        "arguments",
        "attempts",
        "blocking_ns",
        "ended_ns",
        "error_type",
        "owner",
        "queued_ns",
        "ready_ns",
        "request",
        "result",
        "started_ns",
        "status",
        "task",
        "thread_ns",
        "tool",
    )

    def __init__(self, request: CallRequest, ready_ns: int, owner: CallOwner) -> None:
        self.request = request
        self.owner = owner
        self.ready_ns = ready_ns
        self.queued_ns = ready_ns
        self.started_ns: int | None = None
        self.thread_ns: int | None = None
        self.blocking_ns = 0
        self.ended_ns: int | None = None
        self.status: ToolStatus = "ok"
        self.error_type: str | None = None
        self.result: str | None = None
        self.tool: Tool | None = None
        self.arguments: dict[str, Any] = {}
        self.attempts: list[ToolAttempt] | None = None
        self.task: asyncio.Task[Any] | None = None

    def fail(self, status: ToolStatus, error_type: str, message: str) -> None:
        self.status = status
        self.error_type = error_type
        self.result = f"Error: {message}"

    def record(self, now_ns: int, content: Content | None) -> ToolCall:
        """The call as it came out; with what `content` keeps of arguments and result."""
        ended_ns = self.ended_ns
        if ended_ns is None:
            # Never ran: refused before the strategy saw it, or cancelled while it waited.
            if self.status == "ok":
                self.fail("cancelled", "cancelled", "cancelled")
                ended_ns = now_ns
            else:
                ended_ns = self.queued_ns
        started_ns = self.started_ns
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
                self.thread_ns - started_ns if self.thread_ns is not None and started_ns is not None else 0
            ),
            blocking_ns=self.blocking_ns,
            arguments=None if content is None else content.keep(arguments_text(self.request.arguments)),
            result=None if content is None or self.result is None else content.keep(self.result),
            attempts=() if self.attempts is None else tuple(self.attempts),
        )


class Executor:
    """Runs the calls of a `ToolLoop`."""

    def __init__(
        self,
        *,
        tools: Toolbox,
        strategy: Strategy,
        threads: NativeThreads,
        live: Mapping[str, LiveCalls],
        clock: Clock,
    ) -> None:
        self.tools = tools
        self.strategy = strategy
        self.threads = threads
        self.live = live
        self.clock = clock

    def parse(self, call: Call) -> bool:
        """Validate a call's arguments; False if the model gets an error result instead of a run."""
        request = call.request
        tool = self.tools.get(request.name)
        if tool is None:
            known = ", ".join(self.tools.names)
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

    async def execute(self, calls: Sequence[Call]) -> None:
        """Run parsed calls as the strategy says."""
        live, run = self.live, self._run
        for call in calls:
            live[call.request.name].queued += 1
        try:
            await self.strategy.execute([partial(run, call) for call in calls])
        finally:
            for call in calls:
                if call.started_ns is None:
                    live[call.request.name].queued -= 1

    # ── eager calls ────────────────────────────────────────────────────────────────────────

    def start_early(self, early: dict[str, Call], owner: CallOwner, request: CallRequest) -> None:
        """The arguments of a call are complete while the model still streams: run it, if it may."""
        tool = self.tools.get(request.name)
        if tool is None or request.id in early or not (tool.pure or self.strategy.eager == "all"):
            return
        call = Call(request, self.clock(), owner)
        if not self.parse(call):
            return  # it will be refused with the reply as a whole
        early[request.id] = call
        self.live[request.name].queued += 1
        context = copy_context()
        context.run(current_probe.set, None)  # model requests inside the tool are not this one
        call.task = asyncio.create_task(self._run(call), context=context)
        call.task.add_done_callback(partial(self._early_ended, call))

    def _early_ended(self, call: Call, task: asyncio.Task[Any]) -> None:
        if call.started_ns is None:
            self.live[call.request.name].queued -= 1

    async def wait(self, calls: Iterable[Call]) -> None:
        """Wait for those that began early."""
        await asyncio.wait([call.task for call in calls if call.task is not None])

    async def cancel(self, calls: Iterable[Call]) -> None:
        """Cancel those that run early, and wait until they are gone."""
        tasks = [call.task for call in calls if call.task is not None and not call.task.done()]
        for task in tasks:
            task.cancel()
        while tasks and (pending := [task for task in tasks if not task.done()]):
            await asyncio.wait(pending)

    # ── one call ───────────────────────────────────────────────────────────────────────────

    def _run(self, call: Call) -> Coroutine[Any, Any, Any]:
        """Run one call, every attempt through the gates, to its result or error."""
        tool = call.tool
        assert tool is not None
        if tool.exclusive is not None or tool.retries:
            return self._attempts(call, tool)
        gate = self.strategy.gate
        return self._attempt(call, tool) if gate is None else self._gated(call, tool, gate)

    async def _attempts(self, call: Call, tool: Tool) -> None:
        gate = self.strategy.gate
        attempt = 0
        try:
            while True:
                attempt += 1
                error = await self._pass(call, tool)
                if error is None or attempt > tool.retries or not is_transient(error):
                    return
                asked_ns = retry_after_ns(error)
                if gate is None or asked_ns is None:
                    await asyncio.sleep(delay_ns(attempt, outcome_of(error), asked_ns, _random) / 1e9)
                # With a gate, that holds all calls of this tool as long as the server asked.
        except asyncio.CancelledError:
            if call.started_ns is not None and call.status != "cancelled":
                call.fail("cancelled", "cancelled", "cancelled between two attempts")
                call.ended_ns = self.clock()
            raise

    async def _pass(self, call: Call, tool: Tool) -> BaseException | None:
        """One attempt, inside its gates; what went wrong, None if nothing did."""
        gate = self.strategy.gate
        lane = None if tool.exclusive is None else exclusive_lane(tool.exclusive)
        ticket = None if lane is None else await lane.enter()
        try:
            if gate is None:
                return await self._attempt(call, tool)
            return await self._gated(call, tool, gate)
        finally:
            if lane is not None:
                lane.leave(ticket)

    async def _gated(self, call: Call, tool: Tool, gate: Gate) -> BaseException | None:
        slot = await gate.enter(gate.slot(tool.name, call.owner.agent))
        slot.outcome = "unknown"
        try:
            error = await self._attempt(call, tool)
            if error is None:
                slot.outcome = "ok"
            else:
                slot.failed(error)
            return error
        finally:
            gate.leave(slot)

    async def _attempt(self, call: Call, tool: Tool) -> BaseException | None:
        clock, request, owner = self.clock, call.request, call.owner
        live = self.live[request.name]
        started_ns = clock()
        if call.started_ns is None:
            call.started_ns = started_ns
            live.queued -= 1
        elif call.status != "ok":
            call.status, call.error_type = "ok", None
        live.running += 1
        failure: BaseException | None = None
        token = current_call.set(CallContext(request.id, request.name, owner.number, owner.trial))
        deadline = None if tool.timeout is None else asyncio.timeout(tool.timeout)
        try:
            if deadline is None:
                value = await self._invoke(call, tool)
            else:
                async with deadline:
                    value = await self._invoke(call, tool)
            call.result = result_text(value)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                call.fail("cancelled", "cancelled", "cancelled")
                raise
            # Not ours: something inside the tool was cancelled, which is the tool's failure.
            call.fail("error", "CancelledError", "the tool was cancelled from inside")
            failure = error
        except (Exception, SystemExit) as error:  # a tool that calls sys.exit() is one that failed
            failure = error
            if deadline is not None and deadline.expired():
                call.fail("timeout", "timeout", f"timed out after {tool.timeout:g} s")
            else:
                call.fail("error", failure_type(error), failure_text(error))
        finally:
            current_call.reset(token)
            live.running -= 1
            call.ended_ns = clock()
            if tool.retries:
                self._note_attempt(call, started_ns, failure)
        return failure

    def _note_attempt(self, call: Call, started_ns: int, failure: BaseException | None) -> None:
        assert call.ended_ns is not None
        if call.attempts is None:
            call.attempts = []
        asked_ns = None if failure is None else retry_after_ns(failure)
        call.attempts.append(ToolAttempt(started_ns, call.ended_ns, call.status, call.error_type, asked_ns))

    async def _invoke(self, call: Call, tool: Tool) -> Any:
        if not tool.is_async:
            return await self.threads.run(
                partial(tool.function, **call.arguments), partial(self._got_thread, call)
            )
        steps = Steps(tool.function(**call.arguments), self.clock)
        try:
            return await steps
        finally:
            call.blocking_ns += steps.blocking_ns

    def _got_thread(self, call: Call) -> None:
        call.thread_ns = self.clock()


def arguments_text(arguments: str | Mapping[str, Any]) -> str:
    """As JSON, where they came as that; where the SDK had parsed them, as JSON again."""
    return arguments if isinstance(arguments, str) else result_text(arguments)
