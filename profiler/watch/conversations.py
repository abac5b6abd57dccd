"""Loops that nobody marked: each conversation with a model is one, from its first request to its last answer.

A request that holds results of calls that a conversation asked for belongs to that one; one that holds other
answers of a model goes on with the conversation of its context; any other begins a new one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson

from profiler.loop.lag import LagSampler, Stall, StopSampler
from profiler.records import LoopRecord
from profiler.watch.loop import ObservedLoop

MOST_OPEN = 1_000
"""Conversations that may be under way at once; the oldest is taken to have ended when there are more."""

_RESULT_OF = ("tool_call_id", "tool_use_id", "call_id")
_ANSWERS = ("assistant", "tool", "model")


class Conversations:
    """The conversations of one profiler that are under way. `ended` gets the record of each."""

    def __init__(
        self,
        begin: Callable[[ObservedLoop | None], tuple[ObservedLoop, LagSampler | StopSampler | None]],
        ended: Callable[[LoopRecord], None],
    ) -> None:
        self._begin = begin
        self._ended = ended
        self._open: dict[str, tuple[ObservedLoop, LagSampler | StopSampler | None]] = {}
        self._lock = threading.Lock()

    def __contains__(self, loop: ObservedLoop) -> bool:
        return loop.id in self._open

    def of(self, body: bytes, current: ObservedLoop | None, inside_a_call: bool) -> ObservedLoop:
        """The conversation that a request belongs to; `current` is the one of its context, if any.

        `inside_a_call`: a tool of `current` makes the request, so what it begins is a conversation below it.
        """
        ids, answered = _said(body)
        with self._lock:
            known = [loop for loop, _ in reversed(self._open.values())]
            own = current if current is not None and current.id in self._open else None
            if ids:
                # That of the context first: servers may use an id twice.
                for loop in known if own is None else [own, *known]:
                    if not ids.isdisjoint(_asked(loop)):
                        return loop
            if own is not None and answered and not inside_a_call:
                return own
            if len(self._open) >= MOST_OPEN:
                self._end(next(iter(self._open)))
            loop, sampler = self._begin(current if inside_a_call else None)
            self._open[loop.id] = loop, sampler
            return loop

    def end(self) -> None:
        """All of them have come to their end."""
        with self._lock:
            while self._open:
                self._end(next(iter(self._open)))

    def forget(self) -> None:
        """In a forked child: they are the parent's."""
        self._lock = threading.Lock()
        self._open = {}

    def _end(self, number: str) -> None:
        loop, sampler = self._open.pop(number)
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


def _asked(loop: ObservedLoop) -> set[str]:
    """The ids of the calls that the model asked for in it."""
    found = {call.id for round_ in loop.rounds[-8:] for call in round_.reply.calls}
    found |= {request.id for round_ in loop.rounds[-8:] for request, _ in round_.unclaimed}
    found |= {call.request.id for round_ in loop.rounds[-8:] for call in round_.asked}
    return found - {""}


def _said(body: bytes) -> tuple[set[str], bool]:
    """(the ids of calls whose results a request holds, whether it holds any answer of a model)."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        return set(), False
    if not isinstance(data, dict):
        return set(), False
    ids: set[str] = set()
    answered = bool(data.get("previous_response_id") or data.get("conversation"))
    items = data.get("messages", data.get("input"))
    for item in items if isinstance(items, list) else ():
        if not isinstance(item, dict):
            continue
        answered = answered or item.get("role") in _ANSWERS or item.get("type") == "function_call"
        content: Any = item.get("content")
        for part in (item, *(content if isinstance(content, list) else ())):
            if isinstance(part, dict):
                ids |= {part[name] for name in _RESULT_OF if isinstance(part.get(name), str)}
    return ids, answered or bool(ids)
