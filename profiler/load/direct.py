"""Runs loops without a model: each is one call of a tool of an MCP server, as `profiler mcp load` makes them.

The call goes through the same code as one that a model asked for, and is recorded the same: a loop of one
round. What is not there is the model's request (`records.NO_MODEL`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

from msgspec.structs import replace

from profiler.errors import TargetError, ToolServerError, UsageError
from profiler.limits.refusals import Returned, is_refusal
from profiler.load.calls import CallPlan, plan_calls, read_calls
from profiler.load.context import LoopPosition
from profiler.load.options import LoadOptions
from profiler.load.plan import agent_name
from profiler.load.runners import is_expected, note_defect
from profiler.load.tool_servers import CLOSE_SECONDS
from profiler.loop.calls import CallOwner, Executor, OpenCall
from profiler.loop.eventloop import NativeThreads
from profiler.loop.model import CallRequest
from profiler.loop.nesting import Running
from profiler.loop.recorder import Recorder, Sink, fresh_id
from profiler.loop.supervision import Supervision, can_tell, cancelled_as, supervised
from profiler.loop.tools import SchemaTool, current_call
from profiler.mcp.session import META, CallResult, ListedTool, Session
from profiler.mcp.tools import failure_of
from profiler.records import (
    BUSY,
    CLIENT_LIMIT,
    INTERNAL,
    NO_MODEL,
    Clock,
    LoopRecord,
    ModelCall,
    RoundRecord,
    Status,
    ToolCall,
)
from profiler.redaction import Content, Redact
from profiler.rundir import McpServer
from profiler.strategies import Strategy

_log = logging.getLogger(__name__)

KEPT_FILES = 100
"""Files that are kept free for other things than calls: records, reports, the connection to Locust."""

OPENING = 4
"""Sessions that are opened at once: each may be a process that starts."""

_OURS = tuple(map(os.strerror, (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL)))

Connect = Callable[[], Awaitable[Session]]

_session: ContextVar[Session] = ContextVar("toolcall_direct_session")


class Sessions:
    """The sessions of one process with the server under load: one for all agents, or one for each.

    Used on one event loop. `connect` raises `ToolServerError`.
    """

    def __init__(self, connect: Connect, per_agent: bool = False) -> None:
        self._connect = connect
        self._per_agent = per_agent
        self._open: dict[str, asyncio.Task[Session]] = {}

    async def of(self, agent: str) -> Session:
        """The session of an agent, opened at its first call."""
        name = agent if self._per_agent else ""
        opening = self._open.get(name)
        if opening is None:
            # In a task of its own: of the calls that wait for it, any may be cancelled.
            opening = self._open[name] = asyncio.ensure_future(self._connect())
        try:
            return await asyncio.shield(opening)
        except ToolServerError:
            self._open.pop(name, None)
            raise

    async def open(self, agents: Sequence[str]) -> None:
        """Open those of these agents, before their first call, which would have to wait for it."""
        few = asyncio.Semaphore(OPENING)

        async def one(agent: str) -> None:
            async with few:
                await self.of(agent)

        await asyncio.gather(*map(one, agents))

    async def close(self) -> None:
        """Close all of them, at once: each may be a process that takes a while to end."""
        opened, self._open = list(self._open.values()), {}
        opening = [task for task in opened if not task.done()]
        for task in opening:
            task.cancel()
        if opening:
            await asyncio.wait(opening, timeout=CLOSE_SECONDS)
        await asyncio.gather(*map(_closed, opened))


class Places:
    """How many calls may be under way at once: `most` (None: any number)."""

    def __init__(self, most: int | None = None) -> None:
        self.most, self.taken = most, 0

    @property
    def full(self) -> bool:
        return self.most is not None and self.taken >= self.most


def _tool(listed: ListedTool, server: str, places: Places) -> SchemaTool:
    async def call(**arguments: Any) -> str:
        context = current_call.get()
        assert context is not None
        assert context.answer is not None
        meta: dict[str, Any] = {f"{META}call": context.call_id, f"{META}loop": context.number}
        if context.trial is not None:
            meta[f"{META}trial"] = context.trial
        if places.full:
            context.answer.failure = Returned(CLIENT_LIMIT, "unknown")
            return "this machine has no connection left"
        places.taken += 1
        tell = partial(setattr, context.answer, "telling")
        try:
            result = await _session.get().call(listed.name, arguments, meta=meta, tell=tell)
        finally:
            places.taken -= 1
        context.answer.telling = lambda: result.remote
        context.answer.failure = _failure(result)
        return result.text

    return SchemaTool(
        call,
        name=listed.name,
        description=listed.description,
        parameters=listed.parameters,
        server=server,
    )


def _failure(result: CallResult) -> Returned | None:
    failure, error = failure_of(result), result.error_type
    if failure is None or error is None:
        return None
    if answered(error) and is_refusal(result.text):
        return Returned(BUSY, "rejected", failure.retry_after_ns)
    if error == "connection" and any(words in result.text for words in _OURS):
        return Returned(CLIENT_LIMIT, "unknown")
    return failure


def answered(error_type: str | None) -> bool:
    """Whether a call that ended so has the server's answer, be it that the tool failed."""
    return error_type is None or error_type == "tool_error" or error_type.startswith("rpc_")


class DirectAgent:
    """Loops of one call each, for `timeout` seconds at most (None: any time)."""

    def __init__(
        self,
        plan: CallPlan,
        sessions: Sessions,
        strategy: Strategy,
        sinks: Sequence[Sink],
        *,
        server: str = "",
        timeout: float | None = None,
        content: Content | None = None,
        places: Places | None = None,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        self._plan = plan
        self._sessions = sessions
        self._strategy = strategy
        self._timeout = timeout
        self._content = content
        self.recorder = Recorder(sinks, clock)
        places = places or Places()
        tools = {one.name: _tool(one, server, places) for one in plan.tools}
        live = {name: self.recorder.live_calls(strategy.spec, name) for name in tools}
        self._executor = Executor(tools, strategy, NativeThreads(), live, clock)
        self._warned = False

    async def run(self, position: LoopPosition) -> bool:
        """Make the call of this number; whether the server answered it.

        After a call that it did not answer, or refused, an agent of a closed load pauses. That a tool failed
        is an answer.
        """
        over = Supervision()
        started_ns = self.recorder.clock()
        calls: list[OpenCall] = []
        try:
            error = await supervised(partial(self._once, position, calls), self._timeout, over)
        finally:
            if over.left:
                _log.warning("a call did not end when it was cancelled, and was left to itself")
                self.recorder.emit(self._record(position, fresh_id(), started_ns, calls, *over.ending))
        if isinstance(error, ToolServerError):
            if not self._warned:
                self._warned = True
                _log.warning("%s (later ones are only counted)", error)
        elif error is not None and not is_expected(error):
            note_defect(error)
        return error is None and bool(calls) and answered(calls[0].error_type)

    async def _once(self, position: LoopPosition, calls: list[OpenCall]) -> None:
        recorder, clock = self.recorder, self.recorder.clock
        sampler = recorder.enter()
        started_ns = clock()
        running = Running(fresh_id(), recorder.sinks)
        can_tell(
            lambda status, error_type: self._record(
                position, running.id, started_ns, calls, status, error_type
            )
        )
        planned = self._plan.call(position.number)
        owner = CallOwner(position.agent, position.number, position.trial, running)
        request = CallRequest(f"call_{position.number}", planned.tool, planned.arguments)
        call = OpenCall(request, started_ns, started_ns, owner)
        calls.append(call)
        status: Status = "error"
        error_type: str | None = INTERNAL
        try:
            _session.set(await self._sessions.of(position.agent))
            # Unchecked: what is wrong with the arguments that a user gave, the server is to say.
            call.arguments, call.tool = dict(planned.arguments), self._executor.tools[planned.tool]
            call.queued_ns = clock()
            await self._executor.execute([call])
            status, error_type = ("ok", None) if call.status == "ok" else ("error", call.error_type)
        except ToolServerError:
            error_type = "connection"
            call.fail("error", error_type, "no session with the server could be opened")
            raise
        except asyncio.CancelledError:
            status, error_type = cancelled_as()
            raise
        finally:
            running.open = False
            record = self._record(position, running.id, started_ns, calls, status, error_type)
            if sampler is not None:
                record = replace(record, lag_ns=sampler.leave(started_ns))
            recorder.emit(record)

    def _record(
        self,
        position: LoopPosition,
        id: str,
        started_ns: int,
        calls: Sequence[OpenCall],
        status: Status,
        error_type: str | None,
    ) -> LoopRecord:
        now_ns = self.recorder.clock()
        made = tuple(call.record(now_ns, self._content) for call in calls)
        first_ns = min((call.queued_ns for call in made), default=started_ns)
        return LoopRecord(
            id=id,
            strategy=self._strategy.spec,
            provider=NO_MODEL,
            model="",
            started_ns=started_ns,
            ended_ns=now_ns,
            status=status,
            rounds=(_round(started_ns, first_ns, now_ns, made, status),),
            error_type=error_type,
            agent=position.agent,
            number=position.number,
            trial=position.trial,
            process=position.process,
            intended_ns=position.intended_ns,
        )

    async def close(self) -> None:
        await self._sessions.close()


def _round(
    started_ns: int, first_ns: int, ended_ns: int, calls: tuple[ToolCall, ...], status: Status
) -> RoundRecord:
    return RoundRecord(
        index=0,
        started_ns=started_ns,
        ended_ns=ended_ns,
        model=ModelCall(NO_MODEL, "", started_ns, started_ns),
        tools_started_ns=first_ns,
        tools_ended_ns=max((call.ended_ns for call in calls), default=ended_ns),
        tool_calls=calls,
        status="cancelled" if status == "cancelled" else "ok",
    )


async def opened_plan(options: LoadOptions, session: Session) -> CallPlan:
    """The calls of a server's tools that the options ask for.

    Raises `UsageError`, `ToolServerError`.
    """
    listed = await session.list_tools()
    return plan_calls(
        listed,
        server=session.server,
        emulated=session.info.emulated,
        seed=options.seed,
        allowed=options.allow_writes,
        named=options.call,
        arguments=None if options.call_arguments is None else json.loads(options.call_arguments),
        calls=() if options.calls_from is None else read_calls(options.calls_from),
    )


def connector(options: LoadOptions) -> Connect:
    """Opens a session with the server of these options."""
    from profiler.mcp.client import connect

    return partial(connect, options.server, client="sdk" if options.mcp_client == "sdk" else "lean")


@dataclass(frozen=True, slots=True)
class DirectAgents:
    """An agent for each strategy, by its text; `server` is what they load.

    `first` makes a call before the load, and returns how it failed.
    """

    agents: Mapping[str, DirectAgent]
    first: Callable[[Sequence[Sink]], Awaitable[str | None]]
    server: McpServer


async def _closed(task: asyncio.Task[Session]) -> None:
    if not task.done() or task.cancelled() or task.exception() is not None:
        return
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await task.result().close()
    except Exception as error:
        _log.debug("a session did not close: %s", error)


def raise_file_limit() -> int | None:
    """Let this process have as many connections as it may: each call that waits in an open load is one.

    Returns how many that are, with some files left for what is written; None where nobody knows.
    """
    with contextlib.suppress(ImportError, OSError, ValueError):  # then it has what it has
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return hard - min(KEPT_FILES, hard // 2) if hard != resource.RLIM_INFINITY else None
    return None


async def direct_agents(
    options: LoadOptions,
    strategies: Mapping[str, Strategy],
    sinks: Sequence[Sink],
    redact: Redact | None = None,
) -> DirectAgents:
    """The agents of one process.

    Raises `TargetError` where the server cannot be reached, `UsageError` for what it cannot be asked.
    """
    files = raise_file_limit()
    places = Places(files if options.server.url is not None else None)
    sessions = Sessions(connector(options), options.mcp_per_agent)
    # The first agent's is also that of the listing and of the first call.
    agents = [agent_name(ordinal) for ordinal in range(options.expected_agents or 1)]
    try:
        session = await sessions.of(agents[0])
        plan = await opened_plan(options, session)
        if options.mcp_per_agent:
            await sessions.open(agents)
    except (TargetError, UsageError):
        await sessions.close()
        raise
    content = Content(redact) if options.record_content else None

    def made(strategy: Strategy, sinks: Sequence[Sink]) -> DirectAgent:
        return DirectAgent(
            plan,
            sessions,
            strategy,
            sinks,
            server=options.server.name,
            timeout=options.loop_timeout,
            content=content,
            places=places,
        )

    async def first(sinks: Sequence[Sink]) -> str | None:
        heard: list[LoopRecord] = []
        agent = made(next(iter(strategies.values())), [*sinks, heard.append])
        await agent.run(LoopPosition(0, agents[0], None, ""))
        return heard[0].error_type if heard else None

    spec, info = options.server, session.info
    server = McpServer(
        spec.name,
        spec.transport,
        spec.shown,
        info.protocol,
        info.name,
        info.version,
        tuple(one.name for one in plan.tools),
        plan.withheld,
    )
    return DirectAgents({text: made(strategy, sinks) for text, strategy in strategies.items()}, first, server)
