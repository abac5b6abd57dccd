"""What a recording tells of a loop, and the one rule set by which it becomes a record.

Every door builds drafts (files, spans, the proxy), and `record_of` makes the records of them. A draft holds
what was seen and nothing else: None is what the recording does not say. All times are nanoseconds of one
clock, whose zero the door chooses (Unix time, as a rule).

    call ended       as seen; else unknown, and the call has no duration
    call started     as seen; else its end less the tool's own duration, but not before it was ready
                     (derived); else when it was ready, and the duration is an upper bound
    call ready       as seen; else the end of the model call (derived)
    call queued      nobody writes it down: its start (unknown)
    model started    as seen; else the latest input before its first output (derived, by the door)
    first token      as seen, never guessed
    tokens           all input, cached included; None where unknown, and where a recorder wrote 0 for it:
                     nobody asks a model nothing

Wall clocks step: what would end before it began lasts 0, and is counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from profiler.records import (
    RECORDED,
    Attempt,
    LoopRecord,
    ModelCall,
    RemoteCall,
    RoundRecord,
    ServerToolCall,
    Status,
    ToolCall,
    ToolStatus,
)


@dataclass(slots=True)
class CallDraft:
    """A tool call. `own_ns` is the duration that the tool, or its runner, says it took.

    `asked_ns`: its arguments were complete. `refused`: somebody decided that it does not start. `ended_late`:
    its end was written down some time after it, so that its place is a guess and only `own_ns` counts.
    `wait`: as in `ToolCall`.
    `key` names it among all calls of an import, for loops that it spawned (`LoopDraft.spawned_by`). An `id`
    that the recording lacks is made up, by the door, of what does name the call there. `derived` names
    those of its times that the door worked out: of a call that alone made up a tool phase, its start and its
    end are those of the phase, with its client's own time inside.
    """

    name: str
    id: str = ""
    asked_ns: int | None = None
    started_ns: int | None = None
    ended_ns: int | None = None
    own_ns: int | None = None
    status: ToolStatus = "ok"
    error_type: str | None = None
    refused: bool = False
    ended_late: bool = False
    wait: bool = False
    arguments: str | None = None
    result: str | None = None
    remote: RemoteCall | None = None
    key: str | None = None
    derived: tuple[str, ...] = ()


@dataclass(slots=True)
class ModelDraft:
    """A model request. `derived` names those of its times that the door worked out from others.

    One without a start or without an end is given what its round tells, which is then derived.
    """

    provider: str = ""
    model: str = ""
    started_ns: int | None = None
    ended_ns: int | None = None
    derived: tuple[str, ...] = ()
    status: Status = "ok"
    error_type: str | None = None
    request_id: str | None = None
    finish_reason: str | None = None
    streamed: bool = False
    first_token_ns: int | None = None
    first_output_ns: int | None = None
    first_tool_call_ns: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    cache_written_tokens: int | None = None
    cache_written_1h_tokens: int | None = None
    reasoning_tokens: int | None = None
    attempts: tuple[Attempt, ...] = ()
    resends: int = 0
    server_tools: tuple[ServerToolCall, ...] = ()
    unreadable: int = 0


@dataclass(slots=True)
class RoundDraft:
    """A model request and the calls that it asked for.

    `tools_started_ns` and `tools_ended_ns` are for a door that saw the tool phase itself, and not its calls.
    `unobserved` are the names of calls that were asked for and of which nothing else is known.
    """

    model: ModelDraft
    calls: list[CallDraft] = field(default_factory=list)
    tools_started_ns: int | None = None
    tools_ended_ns: int | None = None
    unobserved: tuple[str, ...] = ()


@dataclass(slots=True)
class LoopDraft:
    """A loop. `started_ns` and `ended_ns` None: the first start and the last end of what is in it (derived).

    `clocks` are the machines or processes whose clocks its times are of; one of its `process` where empty.
    `spawned_by` is the `key` of the call in which it ran, of this file or another; `parent` the id of the
    loop, where only that is known. `sampled`: the share of all such loops that was recorded; None: not said.
    """

    id: str
    source: str
    rounds: list[RoundDraft] = field(default_factory=list)
    name: str = ""
    agent: str = ""
    process: str = ""
    clocks: tuple[str, ...] = ()
    started_ns: int | None = None
    ended_ns: int | None = None
    status: Status = "ok"
    error_type: str | None = None
    parent: str | None = None
    spawned_by: str | None = None
    sampled: float | None = None
    resolution_ns: int = 1
    ambiguous_calls: int = 0
    orphan_calls: int = 0
    rounds_dropped: int = 0
    prompt: str | None = None
    text: str | None = None


@dataclass(slots=True)
class Tally:
    """Counts of a recording's calls, by what is known of them (`rundir.Recording`)."""

    exact: int = 0
    derived: int = 0
    upper_bounds: int = 0
    never_ended: int = 0
    never_started: int = 0
    clamped: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.exact + other.exact,
            self.derived + other.derived,
            self.upper_bounds + other.upper_bounds,
            self.never_ended + other.never_ended,
            self.never_started + other.never_started,
            self.clamped + other.clamped,
        )


def record_of(loop: LoopDraft, tally: Tally, origin_ns: int = 0) -> LoopRecord:
    """The record of a loop, its times counted from `origin_ns`. `tally` counts its calls.

    Its rounds come in the order of their starts. One without a round is a loop all the same.
    """
    return _Maker(tally, origin_ns).loop(loop)


class _Maker:
    def __init__(self, tally: Tally, origin_ns: int) -> None:
        self._tally = tally
        self._origin_ns = origin_ns

    def loop(self, loop: LoopDraft) -> LoopRecord:
        derived = tuple(name for name in ("started_ns", "ended_ns") if getattr(loop, name) is None)
        seen = sorted(time for round_ in loop.rounds for time in _times(round_))
        first, last = (seen[0], seen[-1]) if seen else (loop.started_ns or 0, loop.started_ns or 0)
        started_ns = first if loop.started_ns is None else min(loop.started_ns, first)
        # Tools that were started and not waited for may outlive their loop: its end stays what it was.
        ended_ns = last if loop.ended_ns is None else loop.ended_ns
        ended_ns = self._not_before(ended_ns, started_ns)
        made = []
        before_ns = started_ns
        for index, round_ in enumerate(rounds_in_order(loop)):
            made.append(self._round(round_, index, before_ns, ended_ns))
            before_ns = made[-1].ended_ns + self._origin_ns
        last_model = made[-1].model if made else None
        providers = [round_.model.provider for round_ in made if round_.model.provider]
        models = [round_.model.model for round_ in made if round_.model.model]
        error_type = loop.error_type
        if error_type is None and loop.status == "error" and last_model is not None:
            error_type = last_model.error_type
        return LoopRecord(
            id=loop.id,
            strategy=RECORDED,
            provider=providers[0] if providers else "",
            model=models[0] if models else "",
            started_ns=started_ns - self._origin_ns,
            ended_ns=ended_ns - self._origin_ns,
            status=loop.status,
            rounds=tuple(made),
            error_type=error_type,
            name=loop.name,
            agent=loop.agent,
            process=loop.process,
            parent=loop.parent,
            ambiguous_calls=loop.ambiguous_calls,
            orphan_calls=loop.orphan_calls,
            rounds_dropped=loop.rounds_dropped,
            prompt=loop.prompt,
            text=loop.text,
            source=loop.source,
            resolution_ns=loop.resolution_ns,
            derived=derived,
        )

    def _round(self, round_: RoundDraft, index: int, before_ns: int, loop_ended_ns: int) -> RoundRecord:
        model = self._model(round_, before_ns, loop_ended_ns)
        model_ended_ns = model.ended_ns + self._origin_ns
        calls = tuple(self._call(call, model_ended_ns, loop_ended_ns) for call in round_.calls)
        started, ended = self._at(round_.tools_started_ns), self._at(round_.tools_ended_ns)
        if calls:
            # From the first start to the last end that were seen. What a person refused did not run.
            ran = [call for call in calls if call.duration_ns is not None]
            began_ns = min(call.began_ns for call in ran or calls)
            started = began_ns if started is None else started
            ended = max([call.ended_ns for call in ran], default=began_ns) if ended is None else ended
            ended = max(started, ended)
        ends = [call.ended_ns for call in calls if call.ended]
        last_ns = max([model.ended_ns, *ends, *([] if ended is None else [ended])])
        # Of tools that outlive their loop the round does not.
        last_ns = max(model.ended_ns, min(last_ns, loop_ended_ns - self._origin_ns))
        return RoundRecord(
            index=index,
            started_ns=model.started_ns,
            ended_ns=last_ns,
            model=model,
            tools_started_ns=started,
            tools_ended_ns=ended,
            tool_calls=calls,
            status=model.status,
            unobserved_calls=len(round_.unobserved),
            unobserved_tools=round_.unobserved,
        )

    def _model(self, round_: RoundDraft, before_ns: int, loop_ended_ns: int) -> ModelCall:
        draft = round_.model
        derived = list(draft.derived)
        started_ns, ended_ns = draft.started_ns, draft.ended_ns
        calls = [
            time for call in round_.calls for time in (call.asked_ns, call.started_ns) if time is not None
        ]
        if started_ns is None:
            started_ns = before_ns if ended_ns is None else min(before_ns, ended_ns)
            derived.append("started_ns")
        if ended_ns is None:
            ended_ns = min(calls, default=loop_ended_ns)
            derived.append("ended_ns")
        ended_ns = self._not_before(ended_ns, started_ns)
        told = bool(draft.input_tokens or draft.output_tokens)

        def within(time_ns: int | None) -> int | None:
            """A time in the reply; None for one of another clock, or of another request."""
            return self._at(time_ns) if time_ns is not None and started_ns <= time_ns <= ended_ns else None

        return ModelCall(
            provider=draft.provider,
            model=draft.model,
            started_ns=started_ns - self._origin_ns,
            ended_ns=ended_ns - self._origin_ns,
            status=draft.status,
            error_type=draft.error_type,
            request_id=draft.request_id,
            finish_reason=draft.finish_reason,
            streamed=draft.streamed,
            first_token_ns=within(draft.first_token_ns),
            first_output_ns=within(draft.first_output_ns),
            first_tool_call_ns=within(draft.first_tool_call_ns),
            input_tokens=draft.input_tokens or None,
            output_tokens=draft.output_tokens if told else None,
            cached_tokens=draft.cached_tokens if told else None,
            cache_written_tokens=draft.cache_written_tokens if told else None,
            cache_written_1h_tokens=draft.cache_written_1h_tokens if told else None,
            reasoning_tokens=draft.reasoning_tokens if told else None,
            attempts=tuple(self._attempt(one) for one in draft.attempts),
            server_tools=draft.server_tools,
            unreadable=draft.unreadable,
            resends=draft.resends,
            derived=tuple(dict.fromkeys(derived)),
        )

    def _attempt(self, attempt: Attempt) -> Attempt:
        if not self._origin_ns:
            return attempt
        return Attempt(
            started_ns=attempt.started_ns - self._origin_ns,
            ended_ns=attempt.ended_ns - self._origin_ns,
            status=attempt.status,
            error_type=attempt.error_type,
            request_id=attempt.request_id,
            connected_ns=self._at(attempt.connected_ns),
            sent_ns=self._at(attempt.sent_ns),
            first_byte_ns=self._at(attempt.first_byte_ns),
            retry_after_ns=attempt.retry_after_ns,
            rate_limits=attempt.rate_limits,
        )

    def _call(self, draft: CallDraft, model_ended_ns: int, loop_ended_ns: int) -> ToolCall:
        derived = list(draft.derived)
        unknown = ["queued_ns"]
        started_ns, ended_ns, upper_bound = draft.started_ns, draft.ended_ns, False
        ready_ns = draft.asked_ns
        if ready_ns is None:
            ready_ns = model_ended_ns
            if started_ns is not None:
                ready_ns = min(ready_ns, started_ns)
            derived.append("ready_ns")
        if ended_ns is None and started_ns is not None and draft.own_ns is not None:
            ended_ns = started_ns + draft.own_ns
            derived.append("ended_ns")
        if draft.refused:
            started_ns = None
            unknown += ["ended_ns"] if ended_ns is None else []
            self._tally.never_started += 1
        elif ended_ns is None:
            unknown.append("ended_ns")
            if started_ns is None:
                started_ns = ready_ns
                derived.append("started_ns")
            self._tally.never_ended += 1
        elif started_ns is not None:
            if draft.ended_late or "started_ns" in derived or "ended_ns" in derived:
                self._tally.derived += 1
            else:
                self._tally.exact += 1
        elif draft.own_ns is not None:
            # Only a time that was seen bounds it: calls start while replies still stream.
            earliest_ns = ready_ns if draft.asked_ns is not None else min(ready_ns, ended_ns)
            started_ns = max(ended_ns - draft.own_ns, earliest_ns)
            derived.append("started_ns")
            self._tally.derived += 1
        else:
            started_ns, upper_bound = ready_ns, True
            derived.append("started_ns")
            self._tally.upper_bounds += 1
        if draft.ended_late and ended_ns is not None:
            derived.append("ended_ns")
        if ended_ns is None:
            # Nothing tells: as long as its loop went on. A reader asks `ToolCall.ended` first.
            ended_ns = max(loop_ended_ns, started_ns or ready_ns)
        began_ns = ready_ns if started_ns is None else started_ns
        ended_ns = self._not_before(ended_ns, began_ns)
        return ToolCall(
            id=draft.id,
            name=draft.name,
            ready_ns=ready_ns - self._origin_ns,
            queued_ns=began_ns - self._origin_ns,
            started_ns=self._at(started_ns),
            ended_ns=ended_ns - self._origin_ns,
            status=draft.status,
            error_type=draft.error_type,
            arguments=draft.arguments,
            result=draft.result,
            remote=draft.remote,
            derived=tuple(dict.fromkeys(derived)),
            unknown=tuple(unknown),
            upper_bound=upper_bound,
            wait=draft.wait,
        )

    def _at(self, time_ns: int | None) -> int | None:
        return None if time_ns is None else time_ns - self._origin_ns

    def _not_before(self, ended_ns: int, started_ns: int) -> int:
        if ended_ns >= started_ns:
            return ended_ns
        self._tally.clamped += 1
        return started_ns


def _times(round_: RoundDraft) -> Iterator[int]:
    model = round_.model
    times = [model.started_ns, model.ended_ns]
    for call in round_.calls:
        times += [call.asked_ns, call.started_ns, call.ended_ns]
    return (time for time in times if time is not None)


def rounds_in_order(loop: LoopDraft) -> list[RoundDraft]:
    """A loop's rounds as its record has them: in the order of the first time of each."""
    first = min((time for round_ in loop.rounds for time in _times(round_)), default=0)
    return sorted(loop.rounds, key=lambda round_: min(_times(round_), default=first))


def calls_of(loops: Sequence[LoopDraft]) -> Iterator[CallDraft]:
    """Every call of every round, in order."""
    for loop in loops:
        for round_ in loop.rounds:
            yield from round_.calls
