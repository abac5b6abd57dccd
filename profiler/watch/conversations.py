"""Loops that nobody marked: each conversation with a model is one, from its first request to its last answer.

A request that holds results of calls that a conversation asked for belongs to that one; one that holds other
answers of a model goes on with the conversation of its context; any other begins a new one. Servers may use
an id twice, and a task may hold several conversations: then the first message of the user tells them apart.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson
from msgspec.structs import replace

from profiler.loop.lag import LagSampler, Stall, StopSampler
from profiler.records import LoopRecord
from profiler.watch.loop import ObservedLoop

MOST_OPEN = 1_000
"""Conversations that may be under way at once; the oldest is taken to have ended when there are more."""

MOST_ANSWERED = 100
"""As many that have their answer may still be gone on with; when there are more, the oldest has ended."""

_RESULT_OF = ("tool_call_id", "tool_use_id", "call_id")
_ANSWERS = ("assistant", "tool", "model")


class Conversations:
    """The conversations of one profiler that are under way. `ended` gets the record of each.

    Once answered, one asks for no calls: `rests` is told of it until it goes on, with True, and then False.
    """

    def __init__(
        self,
        begin: Callable[[ObservedLoop | None], tuple[ObservedLoop, LagSampler | StopSampler | None]],
        ended: Callable[[LoopRecord], None],
        rests: Callable[[ObservedLoop, bool], object],
    ) -> None:
        self._begin = begin
        self._ended = ended
        self._rests = rests
        self._answered: dict[str, None] = {}  # of those that are open
        self._began: dict[str, int | None] = {}  # the user's first message in each
        self._open: dict[str, tuple[ObservedLoop, LagSampler | StopSampler | None]] = {}
        self._lock = threading.Lock()

    def __contains__(self, loop: ObservedLoop) -> bool:
        return loop.id in self._open

    def of(self, body: bytes, current: ObservedLoop | None, inside_a_call: bool) -> ObservedLoop:
        """The conversation that a request belongs to; `current` is the one of its context, if any.

        `inside_a_call`: a tool of `current` makes the request, so what it begins is a conversation below it.
        """
        said = _said(body)
        with self._lock:
            loop = self._known(said, current, inside_a_call)
            if loop is not None:
                if loop.id in self._answered:
                    del self._answered[loop.id]
                    self._rests(loop, False)
                return loop
            self._put_to_rest()
            if len(self._open) >= MOST_OPEN:
                self._end(next(iter(self._open)))
            loop, sampler = self._begin(current if inside_a_call else None)
            self._open[loop.id] = loop, sampler
            self._began[loop.id] = said.began
            return loop

    def _known(self, said: _Said, current: ObservedLoop | None, inside_a_call: bool) -> ObservedLoop | None:
        """The one that a request goes on with."""
        own = current if current is not None and current.id in self._open else None
        known = [loop for loop, _ in reversed(self._open.values())]
        if own is not None:
            known = [own, *known]

        def begins_so(loop: ObservedLoop) -> bool:
            return said.began is not None and self._began[loop.id] == said.began

        if own is not None and begins_so(own) and own.rounds and _waits_for(own, said.ids):
            return own  # as nearly always, without a look at all others
        asked = [loop for loop in known if said.ids and not said.ids.isdisjoint(_asked(loop))]
        if asked:
            return max(asked, key=lambda loop: (begins_so(loop), _waits_for(loop, said.ids)))
        if own is None or inside_a_call or not said.answered:
            return None
        return next(filter(begins_so, known), own)

    def _put_to_rest(self) -> None:
        for loop, _ in [*self._open.values()]:
            if loop.id not in self._answered and _is_answered(loop):
                self._answered[loop.id] = None
                self._rests(loop, True)
        while len(self._answered) > MOST_ANSWERED:
            self._end(next(iter(self._answered)))

    def end(self) -> None:
        """All of them have come to their end."""
        with self._lock:
            while self._open:
                self._end(next(iter(self._open)))

    def forget(self) -> None:
        """In a forked child: they are the parent's."""
        self._lock = threading.Lock()
        for loop, _ in self._open.values():
            loop.open = False
        self._open, self._answered, self._began = {}, {}, {}

    def _end(self, number: str) -> None:
        loop, sampler = self._open.pop(number)
        self._answered.pop(number, None)
        self._began.pop(number, None)
        loop.open = False
        stalls: list[Stall] | None = None
        if sampler is not None:
            stalls = sampler.stalls(loop.started_ns)
            sampler.leave(loop.started_ns)
        self._ended(_record_of(loop, stalls))


def _record_of(loop: ObservedLoop, stalls: list[Stall] | None) -> LoopRecord:
    """The record of a conversation. It ended with the last that is known of it, perhaps long ago."""
    last = loop.rounds[-1] if loop.rounds else None
    ends = [call.ended_ns for round_ in loop.rounds for call in round_.calls]
    ends += [round_.ended_ns for round_ in loop.rounds]
    ended_ns = max((end for end in ends if end is not None), default=loop.clock())
    # What is still under way ends now.
    if None in ends:
        ended_ns = loop.clock()
    lag_ns = 0
    if stalls is not None:
        # The timer of an event loop that was closed since looks like a stall that goes on.
        stalls = [stall for stall in stalls if stall.started_ns < ended_ns]
        lag_ns = max((stall.lag_ns for stall in stalls), default=0)
    error_type = None if last is None else last.error_type
    record = loop.record("ok" if error_type is None else "error", error_type, lag_ns, stalls)
    rounds = tuple(replace(one, ended_ns=min(one.ended_ns, ended_ns)) for one in record.rounds)
    return replace(record, ended_ns=ended_ns, rounds=rounds)


def _is_answered(loop: ObservedLoop) -> bool:
    """Whether its last reply has come and asked for nothing, and all calls have ended."""
    if not loop.rounds or loop.rounds[-1].ended_ns is None or loop.rounds[-1].reply.calls:
        return False
    # Calls that were asked for before it and did not run are not going to.
    return not any(call.ended_ns is None for round_ in loop.rounds[-8:] for call in round_.calls)


def _asked(loop: ObservedLoop) -> set[str]:
    """The ids of the calls that the model asked for in it."""
    found = {call.id for round_ in loop.rounds[-8:] for call in round_.reply.calls}
    found |= {request.id for round_ in loop.rounds[-8:] for request, _ in round_.unclaimed}
    found |= {call.request.id for round_ in loop.rounds[-8:] for call in round_.asked}
    return found - {""}


def _waits_for(loop: ObservedLoop, ids: set[str]) -> bool:
    """Whether its last reply asked for some of these calls: nothing has been made of their results yet."""
    last = loop.rounds[-1]
    return not ids.isdisjoint(
        {call.id for call in last.reply.calls} | {call.request.id for call in last.asked}
    )


class _Said(NamedTuple):
    """What a request tells: the ids of calls whose results it holds, whether it holds any answer of a model,
    and by what its conversation began, if that is known."""

    ids: set[str]
    answered: bool
    began: int | None


def _said(body: bytes) -> _Said:
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        data = None
    if not isinstance(data, dict):
        return _Said(set(), False, None)
    ids: set[str] = set()
    began: int | None = None
    answered = bool(data.get("previous_response_id") or data.get("conversation"))
    items = data.get("messages", data.get("input"))
    for item in items if isinstance(items, list) else ():
        if not isinstance(item, dict):
            continue
        content: Any = item.get("content")
        if began is None and item.get("role") == "user":
            began = hash(orjson.dumps(content))
        answered = answered or item.get("role") in _ANSWERS or item.get("type") == "function_call"
        for part in (item, *(content if isinstance(content, list) else ())):
            if isinstance(part, dict):
                ids |= {part[name] for name in _RESULT_OF if isinstance(part.get(name), str)}
    return _Said(ids, answered or bool(ids), began)
