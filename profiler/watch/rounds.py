"""The rounds of a loop that is not ours, with their calls, as they are observed; and their records."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from profiler.anatomy import Interval
from profiler.loop.eventloop import BLOCKING_NS
from profiler.loop.lag import Stall, held_ns
from profiler.loop.model import CallRequest, Probe, Reply
from profiler.records import ModelCall, RoundRecord, ToolAttempt, ToolCall, ToolStatus
from profiler.shortfalls import Application, Pool, Ran, Runner, shortfall
from profiler.watch.circumstances import Circumstances, pool
from profiler.watch.remote import Requests


@dataclass(slots=True, eq=False)
class HandedOver:
    """A callable that a strategy was given (`at_ns`) and let run (`released_ns`), and the limit at first.

    `begun`: the callable has begun a tool call or a model request. Its tasks and threads have copies of
    its context but share this object, so that the first to begin something counts for all of them.
    """

    at_ns: int
    released_ns: int
    limit: int | None
    begun: bool = False


handed_over: ContextVar[HandedOver | None] = ContextVar("toolloop_handed_over", default=None)
"""The callable that runs in this context; None where the loop's own code decides when calls run.

Only the first thing that a callable begins has waited in the strategy; the rest, it times itself.
"""


@dataclass(slots=True, eq=False)
class ObservedCall:
    """A call of a wrapped tool, while it runs and after, with its content if that is recorded.

    `queued_ns` is known only for a call made by a callable that was `handed_over`. `steps` are those in which
    its code held the event loop for long, `resumed` the ends of its waits; `sync`: all of it was one step.
    `tries` are the calls by which the application tried it again, `nested` is one that another call of its
    round made, `loops` are the ids of those that began in it. `requests` are those of a
    tool of an MCP server.
    """

    request: CallRequest
    ready_ns: int
    started_ns: int
    ended_ns: int | None = None
    status: ToolStatus = "ok"
    error_type: str | None = None
    steps: Sequence[Interval] = ()
    resumed: Sequence[int] = ()
    arguments: str | None = None
    result: str | None = None
    queued_ns: int | None = None
    sending_ns: int = 0
    late_ns: int = 0
    handed_over: HandedOver | None = None
    ambiguous: bool = False
    where: Circumstances | None = None
    pool: Pool | None = None
    sync: bool = False
    tries: Sequence[ObservedCall] = ()
    nested: bool = False
    loops: list[str] = field(default_factory=list)
    requests: Requests | None = None

    def end(self, now_ns: int) -> None:
        """In the thread that ran it."""
        self.ended_ns = now_ns
        if self.where is not None and self.where.executor is not None:
            self.pool = pool(self.where.executor)


NO_REPLY = Reply("", (), [])


@dataclass(slots=True, eq=False)
class ObservedRound:
    """A model request, and the calls of tools that it led to.

    `unclaimed` are the requested calls that no tool has run yet, each with the time it was ready. A tool may
    be called thousands of times unasked, so a call that starts does not look at all `calls`: `asked` are
    those that were asked for, `began` is all of them and their next tries.
    `misfits` are those of the `calls` whose arguments are not the requested ones. `requested_by` and
    `called_by` are the SDK's runner that made the request, and the first call; `read_in` is where the reply
    was read, as it streamed. `unread`: times that reading the reply failed. `body`: the stream of the body
    that was sent last.
    """

    provider: str
    model: str
    probe: Probe
    started_ns: int
    ended_ns: int | None = None
    late_ns: int = 0
    streamed: bool = False
    error_type: str | None = None
    reply: Reply = NO_REPLY
    unclaimed: list[tuple[CallRequest, int]] = field(default_factory=list)
    calls: list[ObservedCall] = field(default_factory=list)
    asked: list[ObservedCall] = field(default_factory=list)
    began: set[ObservedCall] = field(default_factory=set)
    misfits: list[ObservedCall] = field(default_factory=list)
    requested_by: Runner | None = None
    called_by: Runner | None = None
    read_in: Circumstances | None = None
    unread: int = 0
    body: weakref.ref[Any] | None = None

    def add(self, call: ObservedCall, asked: bool) -> None:
        self.calls.append(call)
        self.began.add(call)
        if asked:
            self.asked.append(call)

    def sends(self, request: Any) -> None:
        try:
            self.body = weakref.ref(request.stream)
        except TypeError:  # a class of one's own without such references
            self.body = None

    def sent(self, request: Any) -> bool:
        """Whether this body was sent for it: the client follows a redirection, or a challenge to log in."""
        return self.body is not None and self.body() is request.stream


def round_record(
    index: int, observed: ObservedRound, next_ns: int, stalls: Sequence[Stall] | None
) -> RoundRecord:
    """The record of a round. It ends at `next_ns`, where the next one begins, unless its own work goes on.

    `stalls` are those of its event loop, in sync code of the process, None where neither was watched.
    """
    model_ended_ns = observed.ended_ns if observed.ended_ns is not None else next_ns
    unfinished = observed.ended_ns is None
    calls = sorted(observed.calls, key=lambda call: call.started_ns)
    queued = [_queued_ns(call, calls[0].started_ns) for call in calls]
    tools_started_ns = min(queued, default=None)
    handed = [call.handed_over for call in calls if call.handed_over is not None]
    limit = handed[0].limit if handed else None
    recorded = [
        _call(call, queued_ns, next_ns, stalls or ()) for call, queued_ns in zip(calls, queued, strict=True)
    ]
    tools_ended_ns = max((c.ended_ns for c in recorded), default=None)
    reason = None
    if tools_ended_ns is not None:
        ran = _ran(observed, model_ended_ns, calls, recorded)
        began_ns = min([one.started_ns for one in ran] + [one.at_ns for one in handed])
        wall_ns = max(one.ended_ns for one in ran) - began_ns
        runner = _runner_of(observed, calls)
        application = None if handed else Application(model_ended_ns, runner, _in_threads(calls))
        reason = shortfall(ran, wall_ns, limit, stalls, application)
    failed = observed.error_type is not None
    return RoundRecord(
        index=index,
        started_ns=observed.started_ns,
        ended_ns=max(next_ns, model_ended_ns, tools_ended_ns or 0),
        model=ModelCall(
            provider=observed.provider,
            model=observed.model,
            started_ns=observed.started_ns,
            ended_ns=model_ended_ns,
            status="error" if failed else "cancelled" if unfinished else "ok",
            error_type=observed.error_type,
            request_id=observed.probe.attempts[-1].request_id if observed.probe.attempts else None,
            finish_reason=observed.reply.finish_reason,
            streamed=observed.streamed,
            first_token_ns=observed.probe.first_token_ns,
            first_output_ns=observed.probe.first_output_ns,
            first_tool_call_ns=observed.probe.first_tool_call_ns,
            input_tokens=observed.reply.input_tokens,
            output_tokens=observed.reply.output_tokens,
            cached_tokens=observed.reply.cached_tokens,
            cache_written_tokens=observed.reply.cache_written_tokens,
            cache_written_1h_tokens=observed.reply.cache_written_1h_tokens,
            reasoning_tokens=observed.reply.reasoning_tokens,
            server_tools=observed.reply.server_tools,
            unreadable=observed.reply.unreadable + observed.unread,
            attempts=tuple(observed.probe.attempts),
            sending_ns=observed.probe.sending_ns,
            late_ns=observed.late_ns,
        ),
        tools_started_ns=tools_started_ns,
        tools_ended_ns=tools_ended_ns,
        tool_calls=tuple(recorded),
        status="error" if failed else "ok",
        shortfall=reason,
        # Those of a reply that failed are not to be run.
        unobserved_calls=0 if failed else len(observed.unclaimed),
        unobserved_tools=() if failed else tuple(request.name for request, _ in observed.unclaimed),
        limit=limit,
        pool_threads=_full_pool(calls) if reason == "threads" else None,
    )


def _call(call: ObservedCall, queued_ns: int, next_ns: int, stalls: Sequence[Stall]) -> ToolCall:
    """The record of a call, from its first try to the end of its last."""
    tries = [call, *call.tries] if call.tries else [call]
    last = tries[-1]
    steps = _steps(call)
    ended_ns = [one.ended_ns if one.ended_ns is not None else max(next_ns, one.started_ns) for one in tries]
    attempts = () if call.requests is None else call.requests.attempts()
    if call.tries:
        pairs = zip(tries, ended_ns, strict=True)
        attempts = tuple(ToolAttempt(one.started_ns, end, *_ending(one)) for one, end in pairs)
    status, error_type = _ending(last)
    return ToolCall(
        id=call.request.id,
        name=call.request.name,
        ready_ns=call.ready_ns,
        queued_ns=queued_ns,
        started_ns=call.started_ns,
        ended_ns=ended_ns[-1],
        status=status,
        error_type=error_type,
        blocking_ns=held_ns(steps, stalls, BLOCKING_NS) if steps else 0,
        arguments=call.arguments,
        result=last.result,
        attempts=attempts,
        sending_ns=call.sending_ns,
        late_ns=last.late_ns,
        nested=call.nested,
        loops=tuple(id_ for one in tries for id_ in one.loops),
        remote=None if last.requests is None else last.requests.record(),
    )


def _ending(call: ObservedCall) -> tuple[ToolStatus, str | None]:
    return ("cancelled", "unfinished") if call.ended_ns is None else (call.status, call.error_type)


def _steps(call: ObservedCall) -> list[Interval]:
    """The long steps of all its tries; a sync tool that ran in the event loop's own thread was one."""
    steps: list[Interval] = []
    for one in (call, *call.tries) if call.tries else (call,):
        steps += one.steps
        if one.sync and one.where is not None and one.where.in_event_loop and one.ended_ns is not None:
            steps.append((one.started_ns, one.ended_ns))
    return steps


def _resumed(call: ObservedCall) -> Sequence[int]:
    """When it went on after a wait, in all of its tries."""
    return call.resumed if not call.tries else [at for one in (call, *call.tries) for at in one.resumed]


def _ran(
    observed: ObservedRound, model_ended_ns: int, calls: Sequence[ObservedCall], recorded: Sequence[ToolCall]
) -> list[Ran]:
    """The calls as they were scheduled: those that were asked for, where any is known to have been.

    A callable that was handed over is one, from its release to the end of its last call.
    """
    pairs = [pair for pair in zip(calls, recorded, strict=True) if not pair[1].nested]
    asked = [pair for pair in pairs if pair[0].request.id or pair[0].handed_over is not None] or pairs
    found: dict[int, Ran] = {}
    for call, one in asked:
        started_ns = call.started_ns if call.handed_over is None else call.handed_over.released_ns
        key = id(call) if call.handed_over is None else id(call.handed_over)
        whole = found.get(key)
        read_on = observed.ended_ns is not None and call.started_ns >= observed.ended_ns
        found[key] = Ran(
            name=one.name,
            ready_ns=one.ready_ns if call.request.id else min(started_ns, model_ended_ns),
            started_ns=started_ns,
            ended_ns=max(one.ended_ns, whole.ended_ns if whole else 0),
            steps=[*_steps(call), *(whole.steps if whole else ())],
            resumed=[*_resumed(call), *whole.resumed] if whole else _resumed(call),
            pool=call.pool,
            reads=not read_on and call.where is not None and call.where.same(observed.read_in),
            remote=one.remote,
        )
    return list(found.values())


def _runner_of(observed: ObservedRound, calls: Sequence[ObservedCall]) -> Runner | None:
    """The SDK's runner that started the calls; from a thread of a pool it cannot be seen."""
    if observed.called_by is None and all(call.pool for call in calls):
        return observed.requested_by
    return observed.called_by


def _in_threads(calls: Sequence[ObservedCall]) -> bool:
    """Whether they ran in several threads, with no event loop."""
    where = [call.where for call in calls if call.where is not None and not call.where.in_event_loop]
    return len(where) == len(calls) and len({one.thread for one in where}) > 1


def _full_pool(calls: Sequence[ObservedCall]) -> int | None:
    return max(
        (call.pool.threads for call in calls if call.pool is not None and call.pool.full), default=None
    )


def _queued_ns(call: ObservedCall, first_ns: int) -> int:
    """When a call was handed over; `first_ns` is the start of the first call of its round."""
    if call.queued_ns is not None:
        return call.queued_ns
    # When the loop's own code hands a call over cannot be observed, but no call can have waited for
    # another one of its round before the first of them started.
    return max(call.ready_ns, min(first_ns, call.started_ns))
