"""Which traces are open, and when one has ended. Pure: the time is handed in, in seconds that never go back.

Spans come when they end, so a trace's root comes last as a rule, and whatever is left of other processes a
little later. A trace has ended

    root       when its root has come, and nothing more for `grace` seconds
    remote     when one came whose parent is in another process, and nothing more for `settle` seconds:
               the root may be somebody's who sends no spans here
    idle       without either, when nothing came for `idle` seconds: its process was killed, or its root is
               not recorded
    bound      when there is too much at once: the one for which nothing came for longest
    stopped    when the collector ends

A trace without an agent's span that belongs to a conversation waits, with others of the conversation, until
nothing came for `idle` seconds: one loop may be spread over them.

Of a trace that has ended it is remembered for a while that it has, and which spans it had: exporters send a
batch again when the answer was lost.

A trace of which nothing came for `PACK_SECONDS` takes a third of the memory: its spans are compressed until
it has ended. So waiting minutes for the tools of slow agents, or for roots that never come, costs little.
"""

from __future__ import annotations

import marshal
import zlib
from array import array
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, NamedTuple

from profiler.recordings.span import Span

Why = Literal["root", "remote", "idle", "bound", "stopped"]
Came = Literal["new", "repeated", "late"]

SETTLE_SECONDS = 30.0
PACK_SECONDS, MOST_PACKED = 15.0, 200
"""More than most traces wait for after their roots: those end first, and are never compressed. And how many
are at once: some milliseconds of work."""
MOST_RECENT, MOST_REMEMBERED = 16_384, 32_768
"""Traces that have ended: of the first so many the spans are remembered, of the others that they have."""


@dataclass(frozen=True, slots=True)
class Patience:
    """For how long (seconds) nothing may come before a trace is taken to have ended."""

    grace: float = 10.0
    settle: float = SETTLE_SECONDS
    idle: float = 300.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may be open at once."""

    traces: int = 50_000
    spans: int = 500_000
    bytes: int = 256_000_000


class Ended(NamedTuple):
    """A trace that has ended, or those of a conversation; of each its spans by their ids."""

    traces: dict[str, dict[str, bytes]]
    why: Why

    @property
    def spans(self) -> Iterator[bytes]:
        """All spans, as they were handed in."""
        for spans in self.traces.values():
            yield from spans.values()


_State = Literal["waiting", "rooted", "remote", "talking"]
_WHY: dict[_State, Why] = {"rooted": "root", "remote": "remote", "waiting": "idle", "talking": "idle"}


@dataclass(slots=True, eq=False)
class _Group:
    """Traces that end together: one, as a rule. `last`: when something new came. `running`: spans of which
    only the beginning came, as some send. `packed`: what came before it was last quiet; `known`: the hashes
    of those spans' names, sorted."""

    name: str
    traces: dict[str, dict[str, bytes]]
    last: float
    state: _State = "waiting"
    agent: bool = False
    conversation: str = ""
    spans: int = 0
    size: int = 0
    running: set[str] | None = None
    packed: tuple[bytes, ...] = ()
    known: array[int] | None = None

    def has(self, span: Span) -> bool:
        """Whether the span came before."""
        if span.id in self.traces[span.trace]:
            return True
        if self.known is None:
            return False
        key = hash((span.trace, span.id))
        place = bisect_left(self.known, key)
        return place < len(self.known) and self.known[place] == key

    def pack(self) -> int:
        """Compress what is not; returns the bytes that it takes less."""
        before = sum(len(text) for spans in self.traces.values() for text in spans.values())
        new = [hash((trace, id_)) for trace, spans in self.traces.items() for id_ in spans]
        # A span that ended after its beginning had been packed is in it twice, and once in `known`.
        self.known = array("q", sorted({*(self.known or ()), *new}))
        packed = zlib.compress(marshal.dumps(self.traces), 1)
        self.packed += (packed,)
        self.traces = {trace: {} for trace in self.traces}
        return before - len(packed)

    def all_traces(self) -> dict[str, dict[str, bytes]]:
        """Its traces, with all spans."""
        if not self.packed:
            return self.traces
        found: dict[str, dict[str, bytes]] = {}
        for traces in (*map(_unpacked, self.packed), self.traces):
            for trace, spans in traces.items():
                found.setdefault(trace, {}).update(spans)
        return found


def _unpacked(packed: bytes) -> dict[str, dict[str, bytes]]:
    found: dict[str, dict[str, bytes]] = marshal.loads(zlib.decompress(packed))
    return found


@dataclass(slots=True)
class OpenTraces:
    """The traces of which spans came, and which have not ended."""

    patience: Patience = field(default_factory=Patience)
    bounds: Bounds = field(default_factory=Bounds)
    spans: int = 0
    size: int = 0
    _of: dict[str, _Group] = field(default_factory=dict)
    _queues: dict[_State, OrderedDict[str, _Group]] = field(
        default_factory=lambda: {state: OrderedDict() for state in _WHY}
    )  # each by `last`
    _loose: OrderedDict[_Group, None] = field(default_factory=OrderedDict)  # not packed; by `last`
    _recent: OrderedDict[int, array[int]] = field(default_factory=OrderedDict)
    _before: deque[int] = field(default_factory=deque)
    _remembered: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self._of)

    def add(self, span: Span, text: bytes, now: float, remote: bool = False) -> Came:
        """A span came; `text` is what is kept of it meanwhile. `remote`: its parent is in another process."""
        trace = span.trace
        group = self._of.get(trace)
        if group is None:
            if (ended := self._ended(trace, span.id)) is not None:
                return ended
            group = self._of[trace] = _Group(trace, {trace: {}}, now)
            self._queues["waiting"][trace] = group
        had = group.has(span)
        running = group.running
        if had and (running is None or span.id not in running or span.ended_ns is None):
            return "repeated"
        spans = group.traces[trace]
        size_more = len(text) - len(spans.get(span.id, b""))
        spans[span.id] = text
        if span.ended_ns is None:
            if running is None:
                running = group.running = set()
            running.add(span.id)
        elif running is not None:
            running.discard(span.id)
        spans_more = int(not had)
        group.spans += spans_more
        group.size += size_more
        self.spans += spans_more
        self.size += size_more
        self._loose[group] = None
        self._loose.move_to_end(group)
        group.agent = group.agent or span.kind == "agent"
        group.conversation = group.conversation or span.conversation
        self._queue(group, self._state(group, span, remote), now)
        return "new"

    def due(self, now: float) -> Iterator[Ended]:
        """Take out the traces that have ended by now, and those beyond `bounds`; pack quiet ones."""
        for state, queue in self._queues.items():
            while queue:
                group = next(iter(queue.values()))
                if group.last + self._seconds(state) > now:
                    break
                if group.conversation and not group.agent and state != "talking":
                    self._join(group, now)
                else:
                    yield self._end(group, _WHY[state])
        yield from self.excess()
        self._pack(now)

    def excess(self) -> Iterator[Ended]:
        """Take out the oldest traces while there is more than `bounds` says."""
        bounds = self.bounds
        while len(self._of) > bounds.traces or self.spans > bounds.spans or self.size > bounds.bytes:
            heads = [next(iter(queue.values())) for queue in self._queues.values() if queue]
            yield self._end(min(heads, key=lambda group: group.last), "bound")

    def all(self) -> Iterator[Ended]:
        """Everything, since no more will come: what has its root first, as it would have ended."""
        for state, queue in self._queues.items():
            while queue:
                yield self._end(next(iter(queue.values())), "root" if state == "rooted" else "stopped")

    def remember(self, traces: Iterable[tuple[str, Iterable[str]]]) -> None:
        """These have ended, with these spans: what comes of them from now on comes late, or again."""
        for trace, spans in traces:
            self._recent[hash(trace)] = array("q", map(hash, spans))
            if len(self._recent) > MOST_RECENT:
                older, _ = self._recent.popitem(last=False)
                self._before.append(older)
                self._remembered.add(older)
                if len(self._before) > MOST_REMEMBERED:
                    self._remembered.discard(self._before.popleft())

    def texts(self, traces: Iterable[str]) -> Iterator[tuple[str, Iterable[bytes]]]:
        """The spans that are kept of those of these traces that are open."""
        for trace in traces:
            group = self._of.get(trace)
            if group is not None:
                yield trace, group.all_traces()[trace].values()

    def _pack(self, now: float) -> None:
        for group in list(islice(self._loose, MOST_PACKED)):
            if group.last + PACK_SECONDS > now:
                break
            del self._loose[group]
            less = group.pack()
            group.size -= less
            self.size -= less

    def _seconds(self, state: _State) -> float:
        patience = self.patience
        return {"rooted": patience.grace, "remote": patience.settle}.get(state, patience.idle)

    def _ended(self, trace: str, span: str) -> Came | None:
        key = hash(trace)
        recent = self._recent.get(key)
        if recent is not None:
            return "repeated" if hash(span) in recent else "late"
        return "late" if key in self._remembered else None

    @staticmethod
    def _state(group: _Group, span: Span, remote: bool) -> _State:
        if group.state in ("talking", "rooted") or span.ended_ns is None:
            return group.state
        if not span.parent:
            return "rooted"
        return "remote" if remote else group.state

    def _queue(self, group: _Group, state: _State, now: float) -> None:
        """Put it last in the queue of its state."""
        del self._queues[group.state][group.name]
        group.state, group.last = state, now
        self._queues[state][group.name] = group

    def _join(self, group: _Group, now: float) -> None:
        """Let it wait for others of its conversation."""
        name = f"conversation {group.conversation}"
        talk = self._queues["talking"].get(name)
        del self._queues[group.state][group.name]
        if talk is None:
            group.name, group.state, group.last = name, "talking", now
            self._queues["talking"][name] = group
            return
        talk.traces.update(group.traces)
        talk.packed += group.packed
        if group.known is not None:
            talk.known = array("q", sorted((*(talk.known or ()), *group.known)))
        if group.running:
            talk.running = (talk.running or set()) | group.running
        if self._loose.pop(group, True) is None:
            self._loose[talk] = None
            self._loose.move_to_end(talk)
        talk.spans += group.spans
        talk.size += group.size
        for trace in group.traces:
            self._of[trace] = talk
        self._queue(talk, "talking", now)

    def _end(self, group: _Group, why: Why) -> Ended:
        del self._queues[group.state][group.name]
        for trace in group.traces:
            del self._of[trace]
        self._loose.pop(group, None)
        self.spans -= group.spans
        self.size -= group.size
        return Ended(group.all_traces(), why)
