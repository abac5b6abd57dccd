"""A loop as its requests come, and the draft of it that is made in the end."""

from __future__ import annotations

from dataclasses import dataclass, field

from profiler.proxy.asked import Asked
from profiler.proxy.exchange import AskedCall, Told
from profiler.proxy.matching import Call
from profiler.recordings.drafts import CallDraft, LoopDraft, ModelDraft, RoundDraft
from profiler.records import Status


@dataclass(slots=True, eq=False)
class Turn:
    """One request that is a part of a loop: a try of a round's model request."""

    round: Round
    asked: Asked
    started_ns: int
    told: Told | None = None


@dataclass(slots=True, eq=False)
class Round:
    loop: Loop
    turns: list[Turn] = field(default_factory=list)
    told: Told | None = None
    calls: list[Call] = field(default_factory=list)
    waits: bool = False
    results_ns: int | None = None
    after: Round | None = None
    indexed: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Each of its requests has ended, and none well."""
        return all(turn.told is not None and turn.told.status != "ok" for turn in self.turns)


@dataclass(slots=True, eq=False)
class Loop:
    id: str
    rounds: list[Round] = field(default_factory=list)
    open: bool = True
    touched_ns: int = 0
    until_ns: int | None = None
    connection: int = 0
    ambiguous: int = 0
    dropped: int = 0
    held: tuple[bytes, Round] | None = None

    @property
    def last(self) -> Round:
        return self.rounds[-1]

    @property
    def asked(self) -> Asked:
        """Its newest request."""
        return self.rounds[-1].turns[-1].asked


def loop_draft(loop: Loop) -> LoopDraft:
    """The draft of a loop that is over."""
    last = loop.last
    status: Status = "cancelled"
    error_type = None
    if last.told is not None and not last.waits and all(turn.told is not None for turn in last.turns):
        status, error_type = last.told.status, last.told.model.error_type
    guessed = sum(call.guessed for round_ in loop.rounds for call in round_.calls)
    return LoopDraft(
        loop.id,
        "proxy",
        [_round_draft(round_) for round_ in loop.rounds],
        started_ns=loop.rounds[0].turns[0].started_ns,
        ended_ns=None if last.told is None else last.told.ended_ns,
        status=status,
        error_type=error_type if status == "error" else None,
        ambiguous_calls=loop.ambiguous + guessed,
        rounds_dropped=loop.dropped,
    )


def _round_draft(round_: Round) -> RoundDraft:
    """What was seen of a round.

    Its tool phase is exact: from when its last call was complete to the request with the results. Of several
    calls each ended no later than that. One that was alone took as long as the phase, with its client's own
    time inside; and one that was seen for itself has its own times.
    """
    told = round_.told
    model = _model_draft(round_)
    calls = round_.calls
    if told is None or not calls or (told.status != "ok" and round_.results_ns is None):
        return RoundDraft(model)
    started_ns = max(call.draft.asked_ns or told.ended_ns for call in calls)
    only = calls[0].draft if len(calls) == 1 else None
    if only is not None and only.started_ns is None and only.ended_ns is not None and not only.refused:
        only.started_ns, only.derived = started_ns, ("started_ns", "ended_ns")
    return RoundDraft(model, [call.draft for call in calls], started_ns, round_.results_ns)


def _model_draft(round_: Round) -> ModelDraft:
    """The request of a round, with all of its tries."""
    first, last = round_.turns[0], round_.turns[-1]
    attempts = [attempt for turn in round_.turns if turn.told for attempt in turn.told.model.attempts]
    told = round_.told
    if told is None:
        ended_ns = attempts[-1].ended_ns if last.told is not None and attempts else None
        draft = ModelDraft(last.asked.api, last.asked.model, ended_ns=ended_ns, status="cancelled")
    else:
        draft = told.model
    retries = max((turn.asked.retry or 0 for turn in round_.turns), default=0)
    draft.started_ns, draft.attempts = first.started_ns, tuple(attempts)
    draft.resends = max(0, retries + 1 - len(round_.turns))
    return draft


def draft_of(one: AskedCall) -> CallDraft:
    draft = CallDraft(one.name, one.id, one.asked_ns)
    if one.truncated:
        draft.status, draft.error_type, draft.refused = "error", "truncated", True
    return draft
