"""Infers a loop that is not ours from its model requests and tool calls.

Every model request begins a round. A tool call joins the round that asked for it: the newest one with
an unclaimed call of that name and those arguments. What cannot be told apart is counted as ambiguous.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from profiler.anatomy import Interval
from profiler.limits.gate import current_slot
from profiler.loop.eventloop import BLOCKING_NS
from profiler.loop.lag import Stall, held_ns
from profiler.loop.model import CallRequest, Probe
from profiler.loop.recorder import fresh_id
from profiler.loop.tools import current_call
from profiler.providers.wire import ObservedReply
from profiler.records import (
    Clock,
    LoopRecord,
    ModelCall,
    RoundRecord,
    Status,
    ToolAttempt,
    ToolCall,
    ToolStatus,
)
from profiler.shortfalls import Application, Pool, Ran, Runner, shortfall
from profiler.watch.arguments import EQUAL, FITTING, POSSIBLE, Fit, fit_of, same_request
from profiler.watch.circumstances import Circumstances, circumstances, pool, runner

MAX_ROUNDS = 10_000
"""Rounds kept of one loop, so that one that never ends does not grow for ever."""


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
    round made.
    """

    request: CallRequest
    ready_ns: int
    started_ns: int
    ended_ns: int | None = None
    status: ToolStatus = "ok"
    error_type: str | None = None
    steps: list[Interval] = field(default_factory=list)
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
    tries: list[ObservedCall] = field(default_factory=list)
    nested: bool = False

    def end(self, now_ns: int) -> None:
        """In the thread that ran it."""
        self.ended_ns = now_ns
        if self.where is not None and self.where.executor is not None:
            self.pool = pool(self.where.executor)


@dataclass(slots=True, eq=False)
class ObservedRound:
    """A model request, and the calls of tools that it led to.

    `unclaimed` are the requested calls that no tool has run yet, each with the time it was ready.
    `misfits` are those of the `calls` whose arguments are not the requested ones. `requested_by` and
    `called_by` are the SDK's runner that made the request, and the first call; `read_in` is where the reply
    was read, as it streamed.
    """

    provider: str
    model: str
    probe: Probe
    started_ns: int
    ended_ns: int | None = None
    late_ns: int = 0
    streamed: bool = False
    error_type: str | None = None
    reply: ObservedReply = field(default_factory=ObservedReply)
    unclaimed: list[tuple[CallRequest, int]] = field(default_factory=list)
    calls: list[ObservedCall] = field(default_factory=list)
    misfits: list[ObservedCall] = field(default_factory=list)
    requested_by: Runner | None = None
    called_by: Runner | None = None
    read_in: Circumstances | None = None


LOOKED_BACK = 8
"""The newest rounds of a loop, in which a starting tool looks for its request."""


class Match(NamedTuple):
    """A requested call that a starting tool may be running.

    `holder`: a call that has claimed the request although its own arguments do not fit. `certain`: it can
    be no other call of this loop.
    """

    round: ObservedRound
    request: CallRequest
    ready_ns: int
    holder: ObservedCall | None
    fit: Fit
    certain: bool = True


@dataclass(slots=True, eq=False, weakref_slot=True)
class ObservedLoop:
    """A loop under way, as far as it has been observed; `record` makes it a `LoopRecord`."""

    clock: Clock
    name: str
    strategy: str
    parent: str | None = None
    agent: str = ""
    number: int | None = None
    trial: int | None = None
    id: str = field(default_factory=fresh_id)
    started_ns: int = field(init=False)
    rounds: list[ObservedRound] = field(default_factory=list)
    rounds_dropped: int = 0
    ambiguous_calls: int = 0
    unlimited_calls: int = 0
    open: bool = True
    prompt: str | None = None

    def __post_init__(self) -> None:
        self.started_ns = self.clock()

    def begin_round(self, provider: str, model: str) -> ObservedRound:
        """A model request starts."""
        now, handed = self.clock(), handed_over.get()
        if handed is not None:
            handed.begun = True
        if len(self.rounds) >= MAX_ROUNDS:
            del self.rounds[0]
            self.rounds_dropped += 1
        round_ = ObservedRound(provider, model, Probe(self.clock, began_ns=now), now)
        round_.requested_by = runner()
        self.rounds.append(round_)
        return round_

    def match(self, name: str, arguments: Mapping[str, Any] | None) -> Match | None:
        """The requested call that a starting tool runs, None if there is none of its name.

        Arguments decide (None: they are not known). Those that the model left out (defaults) and those
        that a framework added do not count against a call. Equal calls of a round are interchangeable. Of
        those that differ only in what a framework may have changed, the equal one is meant.
        Where no call fits, one that does not may still be meant, since frameworks change arguments; it
        loses its request again to a call that fits.
        """
        found: list[Match] = []
        for round_ in self.rounds[: -LOOKED_BACK - 1 : -1]:
            if round_.unclaimed:
                for request, ready_ns in [*round_.unclaimed]:  # other threads claim, too
                    if request.name == name:
                        fit = fit_of(request.arguments, arguments)
                        found.append(Match(round_, request, ready_ns, None, fit))
                        if fit[0] == EQUAL:
                            break  # no other of this round fits better; one that fits as well asks the same
            if round_.misfits:
                for call in [*round_.misfits]:
                    if call.request.name == name:
                        fit = fit_of(call.request.arguments, arguments)
                        if fit[0] >= FITTING:
                            found.append(Match(round_, call.request, call.ready_ns, call, fit))
        if not found:
            return None
        first = max(found, key=lambda match: match.fit)
        level = first.fit[0]
        if level < FITTING:
            certain = level == POSSIBLE and len(found) == 1
        else:
            certain = len(found) == 1 or not any(_rivals(first, other) for other in found)
        if certain and level < EQUAL and arguments is not None:
            certain = not _may_be_swapped(first, arguments)
        return first if certain else first._replace(certain=False)

    def claim(self, found: Match) -> bool:
        """Take the request of a match; False when another thread has taken it since."""
        try:
            if found.holder is None:
                found.round.unclaimed.remove((found.request, found.ready_ns))
                return True
            found.round.misfits.remove(found.holder)
        except ValueError:
            return False
        # A call that fits is here, so the holder, which does not, was not the one that was asked for.
        self.ambiguous_calls -= found.holder.ambiguous
        found.holder.request = CallRequest("", found.request.name, "")
        found.holder.arguments, found.holder.ambiguous = None, False
        return True

    def begin_call(self, name: str, found: Match | None) -> ObservedCall:
        """A tool starts, whose request was claimed.

        Without a match its call joins the newest round, with no id and no arguments.
        """
        now = self.clock()
        if found is None:
            round_ = self.rounds[-1] if self.rounds else None
            call = ObservedCall(CallRequest("", name, ""), now, now)
        else:
            round_ = found.round
            call = ObservedCall(found.request, found.ready_ns, now, ambiguous=not found.certain)
            self.ambiguous_calls += call.ambiguous
            if found.fit[0] < FITTING:
                round_.misfits.append(call)
        call.where = circumstances()
        outer = current_call.get()
        if outer is not None and round_ is not None:
            call.nested = any(
                outer.observed is one and one.ended_ns is None
                for made in round_.calls
                for one in (made, *made.tries)
            )
        handed = handed_over.get()
        self.unlimited_calls += handed is None and current_slot.get() is None
        if handed is not None:
            waited_ns = 0 if handed.begun else handed.released_ns - handed.at_ns
            handed.begun = True
            # When the round began later, a whole agent was handed over, not this call.
            if round_ is not None and round_.started_ns <= handed.at_ns:
                call.handed_over = handed
                # Not from at_ns on: the callable's own work before its first call is no waiting.
                if found is None:
                    call.ready_ns = now - waited_ns
                call.queued_ns = max(call.ready_ns, now - waited_ns)
        if round_ is not None:
            if not round_.calls:
                round_.called_by = runner()
            round_.calls.append(call)
        return call

    def try_again(self, name: str, arguments: Mapping[str, Any] | None) -> ObservedCall | None:
        """A tool starts that nothing asked for, with the arguments of a call that has failed: its next try.

        None where there is no such call in the newest rounds.
        """
        for round_ in self.rounds[:-4:-1]:
            failed: list[tuple[Fit, ObservedCall]] = []
            for call in reversed(round_.calls):
                last = call.tries[-1] if call.tries else call
                if call.request.name != name or not call.request.id or last.ended_ns is None:
                    continue
                if last.status != "ok":
                    fit = fit_of(call.request.arguments, arguments)
                    if fit[0] >= FITTING:
                        failed.append((fit, call))
            if failed:
                fit, call = max(failed, key=lambda one: one[0])
                asked = call.request.arguments
                self.ambiguous_calls += any(
                    other[1] == fit[1] and not same_request(asked, one.request.arguments)
                    for other, one in failed
                )
                tried = ObservedCall(call.request, call.ready_ns, self.clock(), where=circumstances())
                call.tries.append(tried)
                return tried
        return None

    def record(
        self, status: Status, error_type: str | None, lag_ns: int, stalls: Sequence[Stall] | None = None
    ) -> LoopRecord:
        """The record of the loop; calls and requests that still run end now.

        `stalls` are those of its event loop, in sync code of the process, None where neither was watched.
        """
        ended_ns = self.clock()
        ends = [*(round_.started_ns for round_ in self.rounds[1:]), ended_ns][: len(self.rounds)]
        rounds = tuple(
            _round(index, round_, end, stalls)
            for index, (round_, end) in enumerate(zip(self.rounds, ends, strict=True))
        )
        first = self.rounds[0] if self.rounds else None
        return LoopRecord(
            id=self.id,
            strategy=self.strategy,
            provider=first.provider if first else "",
            model=first.model if first else "",
            started_ns=self.started_ns,
            ended_ns=ended_ns,
            status=status,
            rounds=rounds,
            error_type=error_type,
            name=self.name,
            agent=self.agent,
            number=self.number,
            trial=self.trial,
            parent=self.parent,
            lag_ns=lag_ns,
            ambiguous_calls=self.ambiguous_calls,
            rounds_dropped=self.rounds_dropped,
            unlimited_calls=self.unlimited_calls,
            prompt=self.prompt,
        )


def _round(index: int, observed: ObservedRound, next_ns: int, stalls: Sequence[Stall] | None) -> RoundRecord:
    """A round ends where the next begins, unless its own work goes on beyond that."""
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
            first_tool_call_ns=observed.probe.first_tool_call_ns,
            input_tokens=observed.reply.input_tokens,
            output_tokens=observed.reply.output_tokens,
            attempts=tuple(observed.probe.attempts),
            sending_ns=observed.probe.sending_ns,
            late_ns=observed.late_ns,
        ),
        tools_started_ns=tools_started_ns,
        tools_ended_ns=tools_ended_ns,
        tool_calls=tuple(recorded),
        status="error" if failed else "ok",
        shortfall=reason,
        unobserved_calls=len(observed.unclaimed),
        limit=limit,
        pool_threads=_full_pool(calls) if reason == "threads" else None,
    )


def _call(call: ObservedCall, queued_ns: int, next_ns: int, stalls: Sequence[Stall]) -> ToolCall:
    """The record of a call, from its first try to the end of its last."""
    tries = [call, *call.tries] if call.tries else [call]
    last = tries[-1]
    steps = _steps(call)
    ended_ns = [one.ended_ns if one.ended_ns is not None else max(next_ns, one.started_ns) for one in tries]
    attempts: tuple[ToolAttempt, ...] = ()
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
    )


def _ending(call: ObservedCall) -> tuple[ToolStatus, str | None]:
    return ("cancelled", "unfinished") if call.ended_ns is None else (call.status, call.error_type)


def _steps(call: ObservedCall) -> list[Interval]:
    """The long steps of all its tries; a sync tool that ran in the event loop's own thread was one."""
    steps = []
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


def _rivals(first: Match, other: Match) -> bool:
    """Whether another request than the first may be meant as well, and asks for something else."""
    if other.fit[0] < FITTING or other.fit[1] < first.fit[1]:
        return False
    if other.round is not first.round:
        return True
    return other.fit == first.fit and not same_request(first.request.arguments, other.request.arguments)


def _may_be_swapped(found: Match, arguments: Mapping[str, Any]) -> bool:
    """Whether a call that has claimed its request may be the one of `found`, and this one that one's.

    So it is where these arguments fit that request better than they fit the one that is left.
    """
    for call in [*found.round.calls]:
        if call.request.name == found.request.name:
            fit = fit_of(call.request.arguments, arguments)
            if fit[1] and fit > found.fit:
                return True
    return False
