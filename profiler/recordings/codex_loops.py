"""The loops of Codex's sessions: turns, and of each the rounds up to a changed count of tokens.

The file of a sub-agent, or of a fork, begins with its parent's history, all of it at one time: what comes
before its own first turn is not its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from profiler.recordings.codex_lines import (
    ABORT,
    CALL,
    CONTEXT,
    DONE,
    END,
    ERROR,
    META,
    OUTPUT,
    RETRY,
    RETURN,
    SPAWN,
    START,
    TOKENS,
    USER,
    Line,
    own_beginning,
)
from profiler.recordings.drafts import CallDraft, LoopDraft, ModelDraft, RoundDraft
from profiler.recordings.formats import Skipped
from profiler.recordings.sessions import AGENT_TOOLS, NO_VERDICT, RESULT_ALONE, UNLINKED, WAITS, mark_late
from profiler.records import ServerToolCall

REPLAYED = "lines of its parent's history, with which the file of a sub-agent or a fork begins"
NO_REPLY = "turns in which no model was asked (settings, compaction)"
NO_ITEMS = "counts of tokens without a reply (a summary was made)"
END_ALONE = "ends of what no call of the model's ran (a person typed it, or it ran inside a call)"
ROUNDED = "durations below 1 s that Codex rounded to tenths of a second"
"""A note (`Skipped.kept`)."""


@dataclass(slots=True)
class _Spawn:
    """A call that runs a sub-agent, and what tells which: threads, or what agents are called."""

    call: CallDraft
    threads: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    taken: bool = False


def loops_of(
    groups: Mapping[str, Sequence[Line]], source: str, resolution_ns: int
) -> Iterator[LoopDraft | Skipped]:
    """The loops of the lines of threads that ran one another, by their names."""
    threads = [_Thread(group, source, resolution_ns) for group in groups]
    counts: Counter[str] = Counter()
    for thread, lines in zip(threads, groups.values(), strict=True):
        thread.follow(lines)
        counts += thread.counts
    by_id = {thread.id: thread for thread in threads}
    for thread in threads:
        if thread.sub_agent:
            counts[UNLINKED] += len(thread.done) * (not _link(thread, by_id.get(thread.parent)))
    for thread in threads:
        yield from thread.done
    for reason, number in counts.items():
        if number:
            yield Skipped(reason, number, kept=reason in (NO_VERDICT, UNLINKED, ROUNDED))


def _link(thread: _Thread, parent: _Thread | None) -> bool:
    """Find the call that ran a sub-agent: by its thread, by its names; else it is the last one that was made
    before the sub-agent was, which is a guess (`LoopDraft.ambiguous_calls`)."""
    if parent is None or not thread.done:
        return not thread.done
    spawns = [one for one in parent.spawns.values() if not one.taken]
    found = [one for one in spawns if thread.id in one.threads]
    found = found or [one for one in spawns if not one.threads and one.names & thread.names]
    guessed = not found
    if guessed:
        unknown = [one for one in spawns if not one.threads and not one.names]
        found = [one for one in unknown if (one.call.asked_ns or 0) <= thread.began_ns][-1:]
    if not found:
        return False
    found[0].taken = True
    found[0].call.key = key = f"{thread.source}:{thread.id}"
    for draft in thread.done:
        draft.spawned_by = key
        draft.ambiguous_calls += guessed
    return True


@dataclass(slots=True)
class _Turn:
    draft: LoopDraft
    started: bool  # a line says so
    asked: bool = False
    open: _Round | None = None
    rounds: list[_Round] = field(default_factory=list)
    last_ns: int = 0
    error: str | None = None
    failed_ns: int | None = None


@dataclass(slots=True)
class _Round:
    draft: RoundDraft
    returned: bool = False  # the result of one of its calls was seen
    exact: set[int] = field(default_factory=set)  # calls whose own end was written down


class _Thread:
    def __init__(self, group: str, source: str, resolution_ns: int) -> None:
        self.id = group
        self.parent = ""
        self.names: set[str] = set()
        self.began_ns = 0
        self.sub_agent = False
        self.done: list[LoopDraft] = []
        self.spawns: dict[str, _Spawn] = {}
        self.counts: Counter[str] = Counter()
        self.source = source
        self._resolution_ns = resolution_ns
        self._provider = "openai"
        self._model = ""
        self._role = ""
        self._turn: _Turn | None = None
        self._made = 0
        self._calls: dict[str, tuple[_Round, CallDraft]] = {}
        self._early: dict[str, Line] = {}  # results of calls that were not asked for yet
        self._input_ns: int | None = None
        self._total: list[int | None] | None = None
        self._recorded = False  # of this turn there is a record of each reply's tokens: counts only repeat it
        self._turns_told = self._users_told = False
        self._resends = 0

    def follow(self, lines: Sequence[Line]) -> None:
        lines = self._own(lines)
        self._turns_told = any(line.kind == START for line in lines)
        self._users_told = any(line.kind == USER and line.body[0] for line in lines)
        counted = self._counted(lines)
        for place, line in enumerate(lines):
            at_ns, body = line.at_ns, line.body
            if line.kind == CONTEXT:
                self._model = body[0] or self._model
            elif line.kind == START:
                self._begin(at_ns, started=True)
            elif line.kind == USER:
                self._user(at_ns, *body)
            elif line.kind == OUTPUT:
                self._output(at_ns, body[0], counted[place])
            elif line.kind == CALL:
                id_, name, arguments = body
                self._call(at_ns, id_, name, arguments, counted[place])
                if early := self._early.pop(id_, None):
                    self._return(early.at_ns, *early.body)
            elif line.kind == TOKENS:
                self._tokens(at_ns, *body)
            elif line.kind == RETURN and body[0] and body[0] not in self._calls:
                # A clock that was set back, or of a call that is not in the recording.
                self.counts[RESULT_ALONE] += body[0] in self._early
                self._early[body[0]] = line
            elif line.kind == RETURN:
                self._return(at_ns, *body)
            elif line.kind == END:
                self._end(at_ns, *body)
            elif line.kind == SPAWN:
                self._spawn(*body)
            elif line.kind == RETRY:
                self._resends += 1
            elif self._turn is not None:
                self._finish(at_ns, line.kind, body)
        self._close()
        self.counts[RESULT_ALONE] += len(self._early)

    def _own(self, lines: Sequence[Line]) -> list[Line]:
        """The lines from the thread's own first turn; sets what the thread is."""
        metas = sorted((line for line in lines if line.kind == META), key=lambda line: line.number)
        if not metas:
            return list(lines)
        own = metas[0]
        thread, provider, self.sub_agent, self.parent, self._role, history, names, self.began_ns = own.body
        self.id = thread or self.id
        self.names = set(names)
        self._provider = provider or self._provider
        others = any(line.body[0] != own.body[0] for line in metas)
        if history is None or not (history or others):
            return list(lines)
        begins = own_beginning(lines, own)
        replayed = [line for line in lines if begins is None or line.number < begins.number]
        for line in replayed:
            if line.kind == TOKENS:
                self._total = line.body[0]
            elif line.kind == CONTEXT:
                self._model = line.body[0] or self._model
        kept = [] if begins is None else [line for line in lines if line.number >= begins.number]
        self.counts[REPLAYED] = sum(line.kind not in (META, CONTEXT) for line in replayed)
        return kept

    def _counted(self, lines: Sequence[Line]) -> list[bool]:
        """Of each line, whether a changed count of tokens follows it in its turn."""
        changed = []
        total = self._total
        recorded = False
        for line in lines:
            record = line.kind == TOKENS and bool(line.body[2])
            recorded = record or (recorded and line.kind != START)
            changed.append(line.kind == TOKENS and (record or (not recorded and line.body[0] != total)))
            if line.kind == TOKENS:
                total = line.body[0]
        result = [False] * len(lines)
        follows = False
        for place in range(len(lines) - 1, -1, -1):
            if lines[place].kind in (START, DONE, ABORT):
                follows = False
            follows = follows or changed[place]
            result[place] = follows
        return result

    def _begin(self, at_ns: int | None, started: bool = False) -> _Turn:
        self._close()
        draft = LoopDraft(
            f"{self.id}/{self._made}",
            self.source,
            agent=self._role,
            started_ns=at_ns,
            resolution_ns=self._resolution_ns,
        )
        self._made += 1
        self._input_ns = at_ns
        self._recorded = False
        self._turn = _Turn(draft, started)
        return self._turn

    def _user(self, at_ns: int, told: bool, words: str | None) -> None:
        if not told and self._users_told:
            return
        turn = self._turn
        if turn is None or (not self._turns_told and turn.rounds):
            turn = self._begin(at_ns)
        turn.asked = True
        turn.draft.prompt = turn.draft.prompt or words
        self._input_ns = at_ns

    def _output(self, at_ns: int, served: str | None, counted: bool) -> _Round:
        turn = self._turn or self._begin(None)
        if turn.error is not None:  # it went on all the same
            turn.error = None
            self._resends += 1
        round_ = turn.open
        if round_ is None or (round_.returned and not counted):
            ended = [one.draft.model.ended_ns or 0 for one in turn.rounds]
            started_ns = self._input_ns
            if started_ns is not None:
                started_ns = min(at_ns, max(started_ns, *ended)) if ended else min(at_ns, started_ns)
            model = ModelDraft(
                self._provider,
                self._model,
                started_ns,
                at_ns,
                ("started_ns", "ended_ns"),
                resends=self._resends,
            )
            self._resends = 0
            round_ = turn.open = _Round(RoundDraft(model))
            turn.rounds.append(round_)
        model = round_.draft.model
        model.ended_ns = max(model.ended_ns or 0, at_ns)
        turn.last_ns = max(turn.last_ns, at_ns)
        if served:
            model.server_tools = (*model.server_tools, ServerToolCall(served))
        return round_

    def _call(self, at_ns: int, id_: str, name: str, arguments: str | None, counted: bool) -> None:
        if id_ and id_ in self._calls:
            return
        round_ = self._output(at_ns, None, counted)
        calls = round_.draft.calls
        call = CallDraft(
            name, id_ or f"{self._made}.{len(calls)}.{at_ns}", at_ns, arguments=arguments, wait=name in WAITS
        )
        calls.append(call)
        self._calls[call.id] = round_, call
        if name in AGENT_TOOLS:
            self.spawns[call.id] = _Spawn(call)

    def _tokens(self, at_ns: int, total: list[int | None], last: list[int | None], reply: str) -> None:
        """`reply`: whose tokens they are; empty where a count tells, which may be shown again and again."""
        before, self._total = self._total, total
        self._recorded = self._recorded or bool(reply)
        if not reply and (self._recorded or total == before):
            return  # the same number shown once more
        turn = self._turn
        if turn is None or turn.open is None:
            self.counts[NO_ITEMS] += 1
            return
        model = turn.open.draft.model
        model.ended_ns = max(model.ended_ns or 0, at_ns)
        if all(number is None for number in last):
            last = [
                None if now is None else max(0, now - (then or 0))
                for now, then in zip(total, before or [None] * len(total), strict=True)
            ]
        model.input_tokens, model.cached_tokens, model.output_tokens, model.reasoning_tokens = last[:4]
        model.cache_written_tokens = last[4]
        if reply.startswith("resp_"):
            model.request_id = reply
        turn.open = None

    def _return(
        self,
        at_ns: int,
        id_: str,
        own_ns: int | None,
        rounded: bool,
        status: Any,
        error: str | None,
        refused: bool,
        running: bool,
        agent: str,
        words: str | None,
    ) -> None:
        known = self._calls.get(id_)
        if known is None:
            self.counts[RESULT_ALONE] += 1
            return
        round_, call = known
        round_.returned = True
        self._input_ns = max(at_ns, self._input_ns or 0)
        if self._turn is not None:
            self._turn.last_ns = max(self._turn.last_ns, at_ns)
        if agent:
            self.spawns.setdefault(call.id, _Spawn(call)).threads.add(agent)
        call.result = words
        call.wait = call.wait or running or bool(agent)
        exact = id(call) in round_.exact
        if call.ended_ns is not None and not exact:
            return
        if call.own_ns is None:
            call.own_ns = own_ns
            self.counts[ROUNDED] += rounded
        if exact:
            if status is not None and call.status == "ok":
                call.status, call.error_type = status, error
            return
        call.ended_ns, call.refused = at_ns, refused
        if status is not None:
            call.status, call.error_type = status, error
        else:
            self.counts[NO_VERDICT] += not running

    def _end(
        self,
        at_ns: int,
        id_: str,
        own_ns: int | None,
        status: Any,
        error: str | None,
        began_ns: int | None,
        ended_ns: int | None,
    ) -> None:
        """The end of a call. It began when it was seen to, unless its own duration says that it only waited
        then, for an approval."""
        known = self._calls.get(id_)
        if known is None:
            self.counts[END_ALONE] += 1
            return
        round_, call = known
        if call.ended_ns is not None:
            return  # it came back before: this is the end of what it left running
        call.ended_ns, call.own_ns = ended_ns or at_ns, own_ns
        if own_ns is None and began_ns is not None and began_ns < call.ended_ns:
            call.started_ns = began_ns
        if status is not None:
            call.status, call.error_type = status, error
        round_.exact.add(id(call))

    def _spawn(self, id_: str, threads: list[str], names: list[str]) -> None:
        known = self._calls.get(id_)
        if known is not None:
            spawn = self.spawns.setdefault(id_, _Spawn(known[1]))
            spawn.threads.update(one for one in threads if one != self.id)
            spawn.names.update(names)

    def _finish(self, at_ns: int, kind: str, body: list[Any]) -> None:
        turn = self._turn
        assert turn is not None
        if kind == ERROR:
            turn.error = body[0] or "error"
            turn.failed_ns = at_ns
            turn.last_ns = max(turn.last_ns, at_ns)
            return
        if kind not in (DONE, ABORT):
            return
        turn.draft.ended_ns = at_ns
        if kind == ABORT:
            turn.draft.status = "cancelled"
        else:
            _, first_ns, words, failed = body
            turn.draft.text = words
            if failed is not None and turn.error is None:
                turn.error, turn.failed_ns = failed, at_ns
            if first_ns is not None and turn.started and turn.rounds and turn.draft.started_ns is not None:
                model = turn.rounds[0].draft.model
                model.first_token_ns = turn.draft.started_ns + first_ns
                model.streamed = True
                model.derived = (*model.derived, "first_token_ns")
        self._close(told=True)

    def _close(self, told: bool = False) -> None:
        turn, self._turn = self._turn, None
        if turn is None:
            return
        draft = turn.draft
        if turn.error is not None and (turn.open is None or not turn.rounds):
            # No reply came. Where one had begun, it is that one which failed.
            model = ModelDraft(self._provider, self._model, self._input_ns, turn.failed_ns, ("started_ns",))
            model.resends, self._resends = self._resends, 0
            turn.open = _Round(RoundDraft(model))
            turn.rounds.append(turn.open)
        if turn.error is not None and turn.open is not None:
            turn.open.draft.model.status = "error"
            turn.open.draft.model.error_type = turn.error
        draft.rounds = [one.draft for one in turn.rounds]
        if not turn.rounds and not turn.asked:
            self.counts[NO_REPLY] += 1
            return
        # A turn that began, and of which no line says that it ended, was cut; unless its last reply is whole.
        answered = bool(turn.rounds) and not turn.rounds[-1].draft.calls
        answered = answered and not (turn.started and turn.open is not None)
        if turn.error is not None and draft.status == "ok":
            draft.status, draft.error_type = "error", turn.error
        elif not told and not answered:
            draft.status = "cancelled"
        if draft.ended_ns is None and turn.last_ns:
            draft.ended_ns = turn.last_ns
        for one in turn.rounds:
            mark_late([call for call in one.draft.calls if id(call) not in one.exact])
            for call in one.draft.calls:
                if call.ended_ns is None:
                    call.status = "cancelled"
        self.done.append(draft)
