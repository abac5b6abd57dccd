"""Runners of loops: the built-in `ToolLoop`, or an agent that the user wrote.

All agents of a process share one `LoopRunner` for each strategy, as they share a client in production. What
runs inside a user's agent is recorded through `context.profiler` (an instrumented client, wrapped tools) or
through a `ToolLoop` with `sinks=[context.sink]`. Either way it becomes one record, in its place in the load
test.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import CodeType
from typing import TYPE_CHECKING, Any, Protocol

from msgspec.structs import replace

from profiler.errors import (
    ProfilerError,
    ProviderError,
    RequestRefused,
    TargetError,
    ToolServerError,
    UsageError,
    unwrapped,
)
from profiler.load.agents import LoadedAgent
from profiler.load.context import AgentCall, AgentContext, LoopPosition, OneLoop, agent_call
from profiler.load.places import raised_line
from profiler.load.selfcheck import CHECK_SECONDS, Trace, tracing
from profiler.loop.boundary import place_of
from profiler.loop.recorder import Recorder, Sink, fresh_id
from profiler.loop.supervision import Supervision, cancelled_as, supervised
from profiler.providers.attempts import request_guard
from profiler.records import INTERNAL, LOOP_TIMEOUT, LoopRecord, Status
from profiler.redaction import describe
from profiler.strategies import StrategySpec

if TYPE_CHECKING:
    from profiler.loop.loop import ToolLoop
    from profiler.loop.tools import Tool

_log = logging.getLogger(__name__)


class LoopRunner(Protocol):
    """Runs loops of one strategy."""

    async def run(self, position: LoopPosition) -> bool:
        """Run one loop; returns whether it came to its end. Raises nothing but cancellation."""

    async def close(self) -> None: ...


class BuiltInAgent:
    """The built-in loop, for `timeout` seconds at most (None: any time).

    `tools_of` gives an agent its tools, before each of its loops, and may take a while the first time; where
    they are others than before, the loop has these from then on. Else all have those of the loop. Whatever it
    raises is caught here, and nowhere else: what is no failure of a server's is a defect of ours, and ends
    one loop, not the agent.
    """

    def __init__(
        self,
        loop: ToolLoop,
        prompt: str,
        timeout: float | None = None,
        tools_of: Callable[[str], Awaitable[Sequence[Tool]]] | None = None,
    ) -> None:
        self._loop = loop
        self._prompt = prompt
        self._timeout = timeout
        self._tools_of = tools_of
        self._of_agents: dict[str, tuple[Sequence[Tool], ToolLoop]] = {}

    async def run(self, position: LoopPosition) -> bool:
        over = Supervision()
        recorder = self._loop.recorder
        started_ns = recorder.clock()
        try:
            error = await supervised(partial(self._once, position), self._timeout, over)
        finally:
            if over.left:
                record = _left(over, started_ns, recorder.clock(), self._loop.strategy.spec)
                recorder.emit(_at(record, position, self._loop.strategy.spec))
        if error is not None and not is_expected(error):
            note_defect(error)
        return error is None

    async def _loop_of(self, position: LoopPosition) -> ToolLoop:
        """The loop with the tools that its agent has now."""
        assert self._tools_of is not None
        recorder = self._loop.recorder
        started_ns = recorder.clock()
        status: Status = "error"
        error_type = INTERNAL
        try:
            tools = await self._tools_of(position.agent)
            known = self._of_agents.get(position.agent)
            if known is None or known[0] is not tools:
                known = self._of_agents[position.agent] = tools, self._loop.with_tools(tools)
            status = "ok"
            return known[1]
        except ToolServerError as error:
            error_type = error.error_type
            raise
        except asyncio.CancelledError:
            status, error_type = cancelled_as()
            raise
        finally:
            if status != "ok":
                spec = self._loop.strategy.spec
                record = _bare(started_ns, recorder.clock(), spec, status, error_type)
                recorder.emit(_at(record, position, spec))

    async def _once(self, position: LoopPosition) -> None:
        loop = self._loop if self._tools_of is None else await self._loop_of(position)
        await loop.run(
            self._prompt.replace("{number}", str(position.number)),
            number=position.number,
            agent=position.agent,
            trial=position.trial,
            process=position.process,
            intended_ns=position.intended_ns,
        )

    async def close(self) -> None:
        client = getattr(self._loop.model, "client", None)
        if client is not None:
            await client.close()


def is_expected(error: BaseException) -> bool:
    """Whether the built-in loop may raise this: a fault of its server's, or the end of its time."""
    return isinstance(error, ProviderError | ToolServerError | TimeoutError | asyncio.CancelledError)


_defects = 0


def note_defect(error: BaseException) -> None:
    """A loop, which is recorded as `internal`, ended with an exception that nobody expects.

    The first is logged: its type and its place, since its text may hold what nobody asked to record.
    """
    global _defects
    _defects += 1
    if _defects == 1:
        _log.error(
            "a defect of the profiler ended a loop, which is recorded as %r: %s at %s; later ones are only "
            "counted",
            *(INTERNAL, type(error).__name__, place_of(error)),
        )


def _left(over: Supervision, started_ns: int, ended_ns: int, strategy: str) -> LoopRecord:
    """The record of a loop that did not end when it was cancelled: of what it had done by then."""
    _log.warning("a loop did not end when it was cancelled, and was left to itself")
    status, error_type = over.ending
    if over.so_far is not None:
        try:
            return over.so_far(status, error_type)
        except Exception as error:
            note_defect(error)
    return _bare(started_ns, ended_ns, strategy, status, error_type)


def _bare(started_ns: int, ended_ns: int, strategy: str, status: Status, error_type: str) -> LoopRecord:
    """The record of a loop of which nothing else is known."""
    return LoopRecord(fresh_id(), strategy, "", "", started_ns, ended_ns, status, (), error_type)


class CustomAgent:
    """Loops of an agent that the user wrote."""

    def __init__(
        self, agent: OneLoop, context: AgentContext, sinks: Sequence[Sink], timeout: float | None = None
    ) -> None:
        self._agent = agent
        self._context = context
        self._timeout = timeout
        self._recorder = Recorder(sinks)
        self._trace: Trace | None = None
        self.failure: BaseException | None = None

    @classmethod
    async def make(
        cls,
        agent: LoadedAgent,
        context: AgentContext,
        sinks: Sequence[Sink],
        timeout: float | None = None,
        variant: Mapping[str, Any] | None = None,
    ) -> CustomAgent:
        """Those of an agent as `--agent` names it. Raises `UsageError` where it cannot be called so."""
        return cls(await agent.make(context, variant), context, sinks, timeout)

    async def first(
        self, position: LoopPosition, sinks: Sequence[Sink] = (), seconds: float = CHECK_SECONDS
    ) -> FirstLoop:
        """Run one loop, recorded in `sinks` alone, for so many seconds at most; returns what it showed.

        The first use of a client takes long. Raises what `first_failed` says when the loop fails.
        """
        profiler = self._context.profiler
        found = FirstLoop([], Trace(), profiler.sources)
        recorder, self._recorder = self._recorder, Recorder([*sinks, found.records.append])
        timeout, self._timeout = self._timeout, min(seconds, self._timeout or seconds)
        profiler.on_start = tracing(profiler)
        self._trace = found.trace
        try:
            if not await self.run(position):
                found.timed_out = isinstance(self.failure, TimeoutError) and not found.ended
                if not found.timed_out:
                    raise first_failed(self.failure)
        finally:
            self._recorder, self._timeout, self._trace = recorder, timeout, None
            profiler.on_start = None
        return found

    async def run(self, position: LoopPosition) -> bool:
        call = AgentCall(position, self._context, asyncio.get_running_loop(), trace=self._trace)
        over = Supervision()
        clock, spec = self._recorder.clock, self._context.strategy.spec
        started_ns = clock()
        token, guarded = agent_call.set(call), request_guard.set(self._context.guard)
        error: BaseException | None = None
        try:
            error = await supervised(partial(self._once, position), self._timeout, over)
            call.returned = error is None
        finally:
            call.over = True
            for task in [*call.waits]:  # their threads go on, to their end
                task.cancel()
            request_guard.reset(guarded)
            agent_call.reset(token)
            if over.left:
                call.records.append(_left(over, started_ns, clock(), spec))
            elif not call.records:  # it was cancelled before its first step
                call.records.append(_bare(started_ns, clock(), spec, *over.ending))
            for record in self._placed(call, started_ns):
                self._recorder.emit(record)
        if call.refused is not None:
            error = call.refused.error  # whatever the agent made of it
        if error is None:
            return True
        if self._trace is not None:
            pass  # of the first loop it is said by who asked for it
        elif self.failure is None and call.refused is not None:
            _log.warning("%s (later ones are only counted)", error)
        elif self.failure is None:
            _log.warning("the agent raised %s (later ones are only counted)", describe(error))
        self.failure = error
        return False

    async def _once(self, position: LoopPosition) -> None:
        context = self._context
        async with context.profiler.loop(
            strategy=context.strategy.spec,
            agent=position.agent,
            number=position.number,
            trial=position.trial,
        ) as observed:
            agent = self._agent()
            if self._trace is not None:
                self._trace.agent, self._trace.task = agent, asyncio.current_task()
                self._trace.observed = observed
            await agent

    def _placed(self, call: AgentCall, started_ns: int) -> list[LoopRecord]:
        """The records of the call. It leaves one in any case."""
        spec, position = self._context.strategy.spec, call.position
        try:
            held = self._context.profiler.hold is not None
            records = placed(call.records, position, spec, call.asked, held)
            if call.refused is not None:
                records = [_refused(record) for record in records]
            return records
        except Exception as error:
            note_defect(error)
            ended_ns = self._recorder.clock()
            return [_at(_bare(started_ns, ended_ns, spec, "error", INTERNAL), position, spec)]

    async def close(self) -> None:
        await self._context.close()


@dataclass(slots=True, eq=False)
class FirstLoop:
    """A loop before the load: its records, and what was seen of it; `sources` are the code of its tools.

    `timed_out`: it was ended.
    """

    records: list[LoopRecord]
    trace: Trace
    sources: Mapping[str, CodeType]
    timed_out: bool = False

    @property
    def ended(self) -> bool:
        """Whether the agent itself came to its end, such as by a `TimeoutError` of its own."""
        return not any(record.error_type == LOOP_TIMEOUT for record in self.records)


def first_failed(error: BaseException | None) -> ProfilerError:
    """The error that a test ends with whose first loop failed so."""
    error = None if error is None else unwrapped(error)
    if isinstance(error, UsageError):
        return error
    said = "nothing was raised" if error is None else describe(error)
    where = None if error is None else raised_line(error)
    said += f" ({where})" if where else ""
    if isinstance(error, RuntimeError) and "event loop" in str(error):
        said += (
            "; what belongs to an event loop (a client, a lock, a queue) is to be made where it is used, and "
            "not at module level"
        )
    failed = TargetError(f"the agent's first loop failed: {said}")
    failed.__cause__ = error
    return failed


def placed(
    records: Sequence[LoopRecord],
    position: LoopPosition,
    strategy: str,
    asked: bool = True,
    held: bool = False,
) -> list[LoopRecord]:
    """The records of one call of an agent, put in its position. The last one is of the call as a whole.

    `asked`: the agent handed something to the strategy. Where it did not, calls that nobody watched went
    around its limit too. So they did where watched tools are `held` back, but for those of the last reply,
    which may never have run.

    Where that one saw no model request of its own, a `ToolLoop` or a `profiler.loop` inside has recorded the
    loop, and to keep the empty frame around it would count the loop twice.
    """
    *inner, outer = records
    if outer.rounds or not any(record.parent in (None, outer.id) for record in inner):
        kept = records
    else:
        top = [record.parent in (None, outer.id) for record in inner]
        kept = [replace(r, parent=None) if is_top else r for r, is_top in zip(inner, top, strict=True)]
    return [
        _at(record, position, strategy, unlimited_calls=_unlimited(record, strategy, asked, held))
        for record in kept
    ]


def _refused(record: LoopRecord) -> LoopRecord:
    """The record of a loop, one of whose requests was refused, though it may have caught that."""
    if record.status != "ok" or record.parent is not None:
        return record
    return replace(record, status="error", error_type=RequestRefused.__name__)


def _at(record: LoopRecord, position: LoopPosition, strategy: str, **changes: Any) -> LoopRecord:
    """The record, in this place of a load test, with further `changes`."""
    return replace(
        record,
        strategy=strategy,
        number=position.number,
        agent=position.agent,
        trial=position.trial,
        process=position.process,
        intended_ns=position.intended_ns if record.parent is None else None,
        **changes,
    )


def _unlimited(record: LoopRecord, strategy: str, asked: bool, held: bool) -> int | None:
    """Calls of a loop that went around the limit of the strategy that it was to run under."""
    spec, own = StrategySpec.recorded(strategy), StrategySpec.recorded(record.strategy)
    if spec.kind not in ("sequential", "limited"):
        return None
    if record.unlimited_calls is None:  # a `ToolLoop`, with a strategy of its own
        return 0 if own.text == spec.text else len(list(record.tool_calls))
    rounds = record.rounds[:-1] if held else () if asked else record.rounds
    return record.unlimited_calls + sum(one.unobserved_calls for one in rounds)
