"""What goes through the proxy as records: an observer of its exchanges (`seen.Observer`).

Keys, prompts, arguments and results are in none of them; hashes of some are kept in memory while they are
needed, keyed by a salt that each process draws for itself.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable

from profiler.proxy.asked import asked_of
from profiler.proxy.conversations import LONGEST_REPLY_NS, Conversations
from profiler.proxy.exchange import Reading, body_of
from profiler.proxy.heads import tell_response
from profiler.proxy.kinds import kind_of
from profiler.proxy.matching import Matching
from profiler.proxy.mcp import McpCalls, McpReading
from profiler.proxy.seen import Exchange
from profiler.proxy.turns import Turn
from profiler.recordings.drafts import LoopDraft, Tally, record_of
from profiler.records import LoopRecord

Sink = Callable[[LoopRecord, Tally], None]

ALONE = (
    "the proxy sees no tools: a call that was alone in its round lasts from the reply that asked for it to"
    " the request with its result, its client's own time and any approval inside (derived)"
)
BOUNDS = (
    "of several calls in one round the proxy sees the time of all together, exactly, and of each an upper"
    " bound, except where it sees the call itself (--mcp-upstream)"
)
UNFINISHED = "requests whose client left before all of them was there"
BACKGROUND = "requests that a server works on in the background: their replies are fetched later, unread"
UNREAD = "responses that could not be read"

_TOLD = "told"
"""The state of an exchange of which nothing more is to be told at its end."""


class LoopObserver:
    """Turns exchanges into the records of loops, and hands each to `sink` when its loop has ended.

    `read` is told the kind of each request, `skip` of those that are in no record and `note` of what a reader
    has to know, as that some may not be where they belong (`doubts` counts these): in words that stay few.
    `mcp`: calls of tools are seen too.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        mcp: bool = False,
        read: Callable[[str], None] = lambda kind: None,
        skip: Callable[[str], None] = lambda reason: None,
        note: Callable[[str], None] = lambda words: None,
        salt: bytes | None = None,
    ) -> None:
        self._sink = sink
        self._read = read
        self._skip = skip
        self._note = note
        self.doubts: Counter[str] = Counter()
        self._salt = secrets.token_bytes(16) if salt is None else salt
        self._matching = Matching(self._salt) if mcp else None
        self._mcp = None if self._matching is None else McpCalls(self._matching)
        name = f"proxy-{secrets.token_hex(4)}"
        self._conversations = Conversations(self._ended, self._doubt, name, self._matching)
        self.requests: Counter[tuple[str, str]] = Counter()
        """Exchanges that have ended, by kind and by the class of their status (`2xx`, `none`)."""
        self.loops = 0
        self._under_way: dict[Exchange, None] = {}
        """Requests to models whose responses have not ended, the oldest first."""

    @property
    def open_loops(self) -> int:
        """Loops under way."""
        return len(self._conversations)

    def requested(self, exchange: Exchange) -> None:
        if exchange.kind == "mcp":
            if self._mcp is not None:
                exchange.state = self._mcp.requested(exchange)
            return
        path = exchange.path.decode("latin-1")
        _, api = kind_of(exchange.method, path)
        if api is None:
            exchange.request.pieces.clear()
            return
        asked = asked_of(api, path, exchange.request_headers, body_of(exchange), self._salt, exchange.key)
        if asked.background:
            self._skip(BACKGROUND)
            exchange.state = _TOLD
            return
        if not self._conversations.is_awaited(asked):
            self._tell_whole()
        turn = self._conversations.asked(asked, exchange.started_ns, exchange.connection)
        exchange.state = (turn, Reading(asked, exchange.started_ns))
        self._under_way[exchange] = None

    def responding(self, exchange: Exchange) -> None:
        state = exchange.state
        if isinstance(state, tuple):
            state[1].more(exchange)
        elif isinstance(state, McpReading) and self._mcp is not None:
            self._mcp.responding(exchange, state)
        else:
            exchange.response.pieces.clear()

    def ended(self, exchange: Exchange) -> None:
        state, exchange.state = exchange.state, None
        self._under_way.pop(exchange, None)
        kind = self._count(exchange)
        if isinstance(state, McpReading) and self._mcp is not None:
            self._mcp.ended(exchange, state)
        elif isinstance(state, tuple):
            self._told(exchange, *state)
        elif kind == "model" and state is not _TOLD and exchange.outcome == "client gone":
            self._skip(UNFINISHED)

    def tick(self, now_ns: int) -> None:
        while self._under_way and next(iter(self._under_way)).started_ns < now_ns - LONGEST_REPLY_NS:
            del self._under_way[next(iter(self._under_way))]  # its end was lost, or is not waited for
        self._conversations.tick(now_ns)
        if self._matching is not None and self._mcp is not None:
            self._mcp.tick(now_ns)
            self._matching.tick(now_ns)

    def close(self) -> None:
        """No more requests come: all loops have ended as they are."""
        self._conversations.close()
        if self._matching is not None:
            self._matching.close()

    def _tell_whole(self) -> None:
        """Take the replies that have said all for ended, though their servers keep the responses open.

        Their clients need not wait for that, and go on: so the request that brings the results of their calls
        comes before their end.
        """
        for exchange in [*self._under_way]:
            state = exchange.state
            assert isinstance(state, tuple)
            tell_response(exchange)
            state[1].more(exchange)
            if state[1].is_whole:
                del self._under_way[exchange]
                exchange.state = _TOLD
                self._told(exchange, *state)

    def _told(self, exchange: Exchange, turn: Turn, reading: Reading) -> None:
        told = reading.told(exchange)
        if told.model.unreadable:
            self._doubt(UNREAD)
        self._conversations.told(turn, told)

    def _doubt(self, words: str) -> None:
        self.doubts[words] += 1
        if self.doubts[words] == 1:
            self._note(words)

    def _count(self, exchange: Exchange) -> str:
        if exchange.kind == "mcp":
            kind = "mcp"
        else:
            kind = kind_of(exchange.method, exchange.path.decode("latin-1"))[0]
        status = "none" if exchange.status is None else f"{exchange.status // 100}xx"
        self.requests[kind, status] += 1
        self._read(kind)
        return kind

    def _ended(self, draft: LoopDraft) -> None:
        if self._matching is not None:
            draft.orphan_calls = self._matching.take_orphans()
        tally = Tally()
        record = record_of(draft, tally)
        self.loops += 1
        if tally.derived:
            self._note(ALONE)
        if tally.upper_bounds:
            self._note(BOUNDS)
        self._sink(record, tally)
