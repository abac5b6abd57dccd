"""One conversation of Claude Code, followed from first to last: a session's own, or that of a sub-agent.

A reply is a message with all its lines; a call's result is found by the call's id and never by its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from profiler.recordings.claude_lines import (
    COMMAND,
    GAVE_UP,
    NOTICE,
    PROMPT,
    REPLY,
    RESULTS,
    SHOWN,
    STOP,
    Line,
)
from profiler.recordings.drafts import CallDraft, LoopDraft, ModelDraft, RoundDraft
from profiler.recordings.sessions import TOGETHER_NS, WAITS
from profiler.records import Attempt, ServerToolCall

_UNFINISHED = ("tool_use", "pause_turn")
"""Why a reply ended that something was to follow; with the calls it asked for lost, where there are none."""

_LOOKED_AHEAD = 200
"""Lines after one that was said while a call was open, in which the call may come back."""


@dataclass(slots=True)
class Loop:
    draft: LoopDraft
    prompt_hash: str = ""
    said_ns: int = 0  # the last line of a reply
    returned_ns: int = 0  # the last result of a call that had started
    stopped_ns: int | None = None
    stopped: bool = False
    gave_up: bool = False
    failures: list[tuple[int, list[Any]]] = field(default_factory=list)
    copied: bool = False

    @property
    def answered(self) -> bool:
        """Its last reply is whole, and asked for nothing more."""
        last = self.draft.rounds[-1] if self.draft.rounds else None
        return last is not None and not last.calls and last.model.finish_reason not in _UNFINISHED


@dataclass(slots=True)
class Asked:
    """A call that may have run a sub-agent."""

    call: CallDraft
    asked_ns: int
    prompt_hash: str
    kind: str
    agent: str = ""
    taken: bool = False


class Thread:
    """A session's own lines, or those of one sub-agent, followed from first to last."""

    def __init__(self, session: str, agent: str, source: str, resolution_ns: int, seen: set[str]) -> None:
        self.agent = agent
        self.loops: list[Loop] = []
        self.asked: list[Asked] = []
        self.replies: set[str] = set()
        self.copies = self.alone = 0
        self.run = ""
        self.after = ""  # the line of another thread that it went on from
        self.early: dict[str, tuple[int, list[Any]]] = {}
        """Results of calls that were not asked for yet; in the end, of calls that are not of this thread."""
        self._name = f"{session}:{agent}" if agent else session
        self._source = source
        self._resolution_ns = resolution_ns
        self._seen = seen
        self._loop: Loop | None = None
        self._rounds: dict[str, tuple[Loop, RoundDraft]] = {}
        self._calls: dict[str, tuple[Loop, CallDraft]] = {}
        self._asked: dict[str, Asked] = {}
        self._copied: set[int] = set()
        self._input_ns: int | None = None
        self._command_ns: int | None = None

    def follow(self, lines: Sequence[Line], forked: set[str], places: dict[str, Loop]) -> None:
        """Make loops of the lines. `places` is given the loops of those lines that are in `forked`."""
        self.after, self.run = lines[0].parent, lines[0].run
        for place, line in enumerate(lines):
            at_ns, body = line.at_ns, line.body
            if line.kind == REPLY:
                self._reply(at_ns, body)
            elif line.kind == RESULTS:
                self._results(at_ns, *body)
            elif line.kind == PROMPT:
                ahead = lines[place + 1 : place + 1 + _LOOKED_AHEAD]
                self._prompt(at_ns, *body, goes_on=self._goes_on(ahead))
            elif line.kind == COMMAND:
                self._command_ns = self._input_ns = at_ns
            elif line.kind == SHOWN:
                self._command_ns = None
            elif line.kind == NOTICE:
                self._input_ns = at_ns
            elif self._loop is not None:
                self._broken(at_ns, line.kind, body)
            if self._loop is not None and line.uuid in forked:
                places.setdefault(line.uuid, self._loop)
        self._close()
        self._drop_copies()

    @property
    def open(self) -> list[str]:
        """The calls whose results are not in this thread."""
        return [
            call.id
            for loop in self.loops
            for round_ in loop.draft.rounds
            for call in round_.calls
            if call.ended_ns is None
        ]

    def came_back(self, at_ns: int, result: list[Any]) -> None:
        """A result that another thread has."""
        loop, call = self._calls[result[0]]
        self._ended(loop, call, at_ns, result)
        if loop.draft.status != "ok" and loop.draft.ended_ns is not None:
            loop.draft.ended_ns = max(loop.draft.ended_ns, loop.returned_ns)

    def _begin(self, started_ns: int | None) -> Loop:
        self._close()
        number = len(self.loops)
        draft = LoopDraft(
            f"{self._name}/{number}", self._source, started_ns=started_ns, resolution_ns=self._resolution_ns
        )
        self._loop = Loop(draft, said_ns=started_ns or 0)
        self.loops.append(self._loop)
        self._command_ns = None
        return self._loop

    def _goes_on(self, lines: Sequence[Line]) -> bool:
        """Whether a call that is open comes back, in these lines, before another reply: what was said
        meanwhile steers its loop and begins none."""
        loop = self._loop
        if loop is None or loop.stopped or not loop.draft.rounds:
            return False
        open_ = {call.id for call in loop.draft.rounds[-1].calls if call.ended_ns is None}
        for line in lines if open_ else ():
            back = [result for result in line.body[0] if result[0] in open_] if line.kind == RESULTS else []
            if any(status != "cancelled" for _, status, *_ in back):
                return True
            if line.kind in (STOP, COMMAND) or (line.kind == REPLY and line.body[0] not in self._rounds):
                return False
        return False

    def _prompt(self, at_ns: int, hash_: str, words: str | None, *, goes_on: bool) -> None:
        loop = self._loop
        if loop is not None and goes_on:
            self._input_ns = at_ns
            return
        if loop is None or loop.draft.rounds or loop.stopped or loop.failures or not self._just_said(at_ns):
            loop = self._begin(at_ns)
        else:
            hash_, words = loop.prompt_hash, loop.draft.prompt  # said in two messages
        self._input_ns = at_ns
        loop.prompt_hash = hash_
        loop.draft.prompt = words

    def _just_said(self, at_ns: int) -> bool:
        return self._input_ns is not None and at_ns - self._input_ns <= TOGETHER_NS

    def _reply(self, at_ns: int, body: list[Any]) -> None:
        name, request, model, reason, usage, calls, served, words = body
        loop = self._loop
        known = self._rounds.get(name)
        if known is None:
            if loop is None or (self._command_ns is not None and loop.answered):
                loop = self._begin(self._command_ns)
            known = self._rounds[name] = loop, RoundDraft(self._model(loop, at_ns, request, model))
            loop.draft.rounds.append(known[1])
            self.replies.add(name)
            if name in self._seen:
                self._copied.add(id(known[1]))
        loop, round_ = known
        self._command_ns = None
        loop.said_ns = max(loop.said_ns, at_ns)
        draft = round_.model
        draft.ended_ns = max(draft.ended_ns or 0, at_ns)
        if draft.attempts:
            *before, last = draft.attempts
            draft.attempts = (*before, Attempt(last.started_ns, draft.ended_ns))
        draft.finish_reason = reason or draft.finish_reason
        if words is not None:
            loop.draft.text = words or loop.draft.text
        for field_, number in zip(
            (
                "input_tokens",
                "cached_tokens",
                "cache_written_tokens",
                "cache_written_1h_tokens",
                "output_tokens",
            ),
            usage,
            strict=True,
        ):
            if number is not None:
                setattr(draft, field_, max(number, getattr(draft, field_) or 0))
        draft.server_tools += tuple(ServerToolCall(one) for one in served)
        for id_, tool, arguments, hash_, kind in calls:
            if id_ and id_ in self._calls:
                continue
            call = CallDraft(tool, id_ or f"{name}.{len(round_.calls)}", asked_ns=at_ns, arguments=arguments)
            call.wait = tool in WAITS
            round_.calls.append(call)
            early = self.early.pop(call.id, None)
            self._calls[call.id] = loop, call
            if id(round_) not in self._copied:
                self._asked[call.id] = Asked(call, at_ns, hash_, kind)
                self.asked.append(self._asked[call.id])
            if early is not None:
                self._results(early[0], [early[1]], False)

    def _model(self, loop: Loop, at_ns: int, request: str, model: str) -> ModelDraft:
        """A request was sent when its last input was there, and the reply before it complete."""
        before = [one.model.ended_ns for one in loop.draft.rounds if one.model.ended_ns is not None]
        times = [*before, *([] if self._input_ns is None else [self._input_ns])]
        started_ns = max((time for time in times if time <= at_ns), default=None)
        draft = ModelDraft(
            "anthropic",
            model,
            started_ns,
            at_ns,
            ("started_ns", "ended_ns"),
            request_id=request or None,
        )
        if loop.failures:
            draft.attempts = (
                *_attempts(loop.failures, started_ns),
                Attempt(_next_ns(loop.failures, at_ns), at_ns),
            )
            draft.derived = (*draft.derived, "attempts")
        loop.failures = []
        loop.gave_up = False
        return draft

    def _results(self, at_ns: int, results: list[list[Any]], stopped: bool) -> None:
        for result in results:
            id_ = result[0]
            known = self._calls.get(id_)
            if known is None:  # a clock that was set back, or of a call that is not in the recording
                self.alone += id_ in self.early
                self.early[id_] = at_ns, result
                continue
            loop, call = known
            if call.ended_ns is not None:
                continue
            self._ended(loop, call, at_ns, result)
            self._input_ns = max(at_ns, self._input_ns or 0)
        if stopped and self._loop is not None:
            self._loop.stopped = True

    def _ended(self, loop: Loop, call: CallDraft, at_ns: int, result: list[Any]) -> None:
        id_, status, error, refused, own_ns, agent, background, words = result
        call.ended_ns = at_ns
        call.status, call.error_type, call.refused, call.own_ns = status, error, refused, own_ns
        call.result = words
        call.wait = call.wait or background
        if not refused:
            loop.returned_ns = max(loop.returned_ns, at_ns)
        if id_ in self._asked:
            self._asked[id_].agent = agent

    def _broken(self, at_ns: int, kind: str, body: list[Any]) -> None:
        loop = self._loop
        assert loop is not None
        if kind == STOP:
            loop.stopped = True
            refused = any(call.refused for one in loop.draft.rounds[-1:] for call in one.calls)
            if not (body[0] and refused):
                loop.stopped_ns = at_ns
        elif kind == GAVE_UP:
            loop.gave_up = True
            status, error, _ = body
            if status is None and error is None:
                status, error, _ = loop.failures[-1][1] if loop.failures else (None, "api_error", None)
            loop.failures.append((at_ns, [status, error, None]))
            loop.said_ns = at_ns
        else:
            loop.failures.append((at_ns, body))

    def _close(self) -> None:
        loop, self._loop = self._loop, None
        if loop is None:
            return
        draft = loop.draft
        if loop.failures:
            status, error, _ = loop.failures[-1][1]
            started_ns = self._input_ns
            failed_ns = loop.failures[-1][0]
            model = ModelDraft("anthropic", "", None, failed_ns, ("started_ns", "ended_ns", "attempts"))
            if started_ns is not None and started_ns <= failed_ns:
                model.started_ns = started_ns
            model.status = "error" if loop.gave_up else "cancelled"
            model.error_type = f"http_{status}" if status is not None else error
            model.attempts = _attempts(loop.failures, model.started_ns)
            draft.rounds.append(RoundDraft(model))
            draft.error_type = model.error_type
        if loop.gave_up:
            draft.status = "error"
        elif loop.stopped or not loop.answered or loop.failures:
            draft.status = "cancelled"
        ended_ns = max(loop.said_ns, loop.stopped_ns or 0)
        if draft.status != "ok":
            ended_ns = max(ended_ns, loop.returned_ns)
        draft.ended_ns = ended_ns or None
        for round_ in draft.rounds:
            for call in round_.calls:
                if call.ended_ns is None:
                    call.status = "cancelled"

    def _drop_copies(self) -> None:
        for loop in self.loops:
            own = [one for one in loop.draft.rounds if id(one) not in self._copied]
            copies = len(loop.draft.rounds) - len(own)
            if copies:
                self.copies += copies
                loop.copied = not own
                loop.draft.started_ns = None
                loop.draft.rounds = own
        self.loops = [loop for loop in self.loops if not loop.copied]


def _attempts(failures: list[tuple[int, list[Any]]], started_ns: int | None) -> tuple[Attempt, ...]:
    """The tries that failed. When each ended was written down; it began when the wait before it was over."""
    result = []
    for at_ns, (status, error, wait_ns) in failures:
        began_ns = at_ns if started_ns is None else min(started_ns, at_ns)
        result.append(Attempt(began_ns, at_ns, status, error))
        started_ns = at_ns + (wait_ns or 0)
    return tuple(result)


def _next_ns(failures: list[tuple[int, list[Any]]], ended_ns: int) -> int:
    at_ns, (_, _, wait_ns) = failures[-1]
    return min(at_ns + (wait_ns or 0), ended_ns)
